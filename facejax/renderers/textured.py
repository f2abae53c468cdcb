"""A head drawn from its texture alone, whose texels say what they send to the camera: no light is computed.

That is how an avatar is seen (Chen et al. 2021, eq. 4): the relit texture, rasterised.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from facejax.geometry.errors import InputError
from facejax.geometry.meshes import Topology, edge_neighbours
from facejax.geometry.records import Camera, Face, Image, Pose, PRNGKey
from facejax.renderers.checks import check_topology
from facejax.renderers.deferred import Render
from facejax.renderers.raster import Fragments, antialias, interpolate, rasterise
from facejax.renderers.texture import sample_texture
from facejax.renderers.uv import on_image


def draw_texture(
    vertices: Float[Array, "v 3"],
    texture: Float[Array, "h w 3"],
    pose: Pose,
    camera: Camera,
    topology: Topology,
    size: tuple[int, int],
    *,
    factor: Float[Array, "v 3"] | None = None,
    antialiased: bool = True,
) -> Image:
    """An image of `size` = (height, width) of a mesh that shows `texture` as it is.

    vertices: metres, head frame. texture: linear radiance towards this camera, row 0 at the top; may be negative, as
    networks are free to be. pose: head to camera. factor: on the texture, at vertices. Differentiable in all five;
    silhouettes only if `antialiased`. Raises `InputError` for another number of vertices than the topology's, and for a
    mesh or size that cannot be drawn.
    """
    check_topology(topology, size)
    if vertices.shape != (topology.n_vertices, 3):
        raise InputError(
            f"`vertices` must be ({topology.n_vertices}, 3) for this topology, got {vertices.shape}: decode the head "
            "that the topology belongs to, or wrap a batch in `jax.vmap`."
        )
    drawn = on_image(vertices, pose, camera)
    fragments = rasterise(drawn, topology.faces, size)
    shown = sample_texture(texture, texture_coordinates(fragments, topology.uv, topology.uv_faces))
    if factor is not None:
        shown = shown * interpolate(factor, fragments, topology.faces)
    covered = (fragments.triangle >= 0)[..., None]
    stack = jnp.concatenate([jnp.where(covered, shown, 0.0), covered.astype(shown.dtype)], axis=-1)
    if antialiased:
        stack = antialias(stack, fragments, drawn, topology.faces, edge_neighbours(topology.faces))
    return Image(colour=stack[..., :3], coverage=stack[..., 3], depth=fragments.depth)


def make_textured_renderer(topology: Topology, size: tuple[int, int], *, antialiased: bool = True) -> Render:
    """A `render` of faces that show their own radiance: albedo times texture; what it takes as light is not used."""

    def render(face: Face, light: Array, pose: Pose, camera: Camera, key: PRNGKey | None = None) -> Image:
        del light, key
        return draw_texture(
            face.vertices, face.texture, pose, camera, topology, size, factor=face.albedo, antialiased=antialiased
        )

    return render


def texture_coordinates(
    fragments: Fragments, uv: Float[Array, "u 2"] | np.ndarray, uv_faces: Int[Array, "t 3"] | np.ndarray
) -> Float[Array, "h w 2"]:
    """UV at every pixel, (0, 0) where nothing is drawn: what one rasterisation gives to many textures."""
    return interpolate(jnp.asarray(uv), fragments, uv_faces)
