"""The default `render`: light at vertices, rasterised, texture per pixel, silhouettes anti-aliased."""

import functools
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from facejax.geometry.cameras import project, to_camera_frame
from facejax.geometry.meshes import Topology, edge_neighbours, normalise, vertex_normals
from facejax.geometry.records import Camera, Face, Image, Pose, PRNGKey
from facejax.renderers.checks import check_coefficients, check_scene, check_topology
from facejax.renderers.directional_albedo import check_energy, diffuse_share, specular_albedo
from facejax.renderers.raster import antialias, interpolate, rasterise
from facejax.renderers.sh import irradiance_basis, reflection_basis
from facejax.renderers.texture import sample_texture


@runtime_checkable
class Render(Protocol):
    """Any renderer: pixels of one head in one frame.

    light: spherical harmonics of the incoming radiance, (bands², 3), in the CAMERA frame. key: for renderers that draw
    random numbers. Topology and image size are fixed when a renderer is made.
    """

    def __call__(
        self, face: Face, light: Float[Array, "b 3"], pose: Pose, camera: Camera, key: PRNGKey | None = None
    ) -> Image: ...


def light_bases(
    face: Face, pose: Pose, normals_head: Float[Array, "v 3"], bands: int, energy: str = "additive"
) -> tuple[Float[Array, "v b"], Float[Array, "v b"]]:
    """(irradiance / pi, specular radiance) at vertices per coefficient of an unshadowed light in the camera frame.

    The specular term is the light that arrives from around the mirror direction, times the directional albedo of a GGX
    surface (`specular_albedo`). energy: "additive", or "dimmed": the diffuse term is then scaled by what the lobe
    leaves (`diffuse_share`). Raises `InputError` for another.
    """
    check_energy(energy, lights_known=False)
    normals = jnp.matmul(normals_head, pose.rotation.T, precision=jax.lax.Precision.HIGHEST)
    to_eye = normalise(-to_camera_frame(face.vertices, pose))
    facing = jnp.clip(jnp.sum(normals * to_eye, axis=-1), 0.0, 1.0)
    gloss = specular_albedo(face.specular, face.roughness, facing)
    lobe = reflection_basis(normals, to_eye, face.roughness, bands)
    matt = irradiance_basis(normals, bands)
    if energy != "additive":
        matt = matt * diffuse_share(energy, face.specular, face.roughness, facing)[:, None]
    return matt, gloss[:, None] * lobe


def vertex_light(
    face: Face,
    light: Float[Array, "b 3"],
    pose: Pose,
    normals_head: Float[Array, "v 3"],
    energy: str = "additive",
) -> tuple[Float[Array, "v 3"], Float[Array, "v 3"]]:
    """(irradiance / pi, specular radiance) at vertices, unshadowed, light in the camera frame; never negative.

    energy: "additive", or "dimmed": no surface returns more than it gets, see `light_bases`.
    """
    check_coefficients(light)
    diffuse, specular = light_bases(face, pose, normals_head, math.isqrt(light.shape[0]), energy)
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(product(diffuse, light), 0.0), jnp.maximum(product(specular, light), 0.0)


def make_renderer(
    topology: Topology,
    size: tuple[int, int],
    *,
    shade: Callable[..., tuple[Array, Array]] = vertex_light,
    antialiased: bool = True,
    cull: bool = True,
) -> Render:
    """A `render` for one mesh topology and image size (height, width).

    shade: (face, light, pose, normals_head) -> (irradiance / pi, specular radiance) at vertices;
    `functools.partial(vertex_light, energy="dimmed")` for surfaces that return no more light than they get. Raises
    `InputError` for a mesh or size that cannot be drawn, and at calls outside of `jit` for values that cannot
    (`check_scene`).
    """
    check_topology(topology, size)
    faces, uv_faces, uv = topology.faces, topology.uv_faces, topology.uv
    neighbours = edge_neighbours(faces)

    def render(face: Face, light: Array, pose: Pose, camera: Camera, key: PRNGKey | None = None) -> Image:
        del key
        check_scene(topology, face, pose, camera)
        in_camera = to_camera_frame(face.vertices, pose)
        on_image = jnp.concatenate([project(in_camera, camera), in_camera[:, 2:]], axis=-1)
        fragments = rasterise(on_image, faces, size, cull=cull)
        diffuse, specular = shade(face, light, pose, vertex_normals(face.vertices, faces))
        lit = interpolate(jnp.concatenate([face.albedo * diffuse, specular], axis=-1), fragments, faces)
        texture = sample_texture(face.texture, interpolate(jnp.asarray(uv), fragments, uv_faces))
        covered = (fragments.triangle >= 0)[..., None]
        colour = jnp.where(covered, lit[..., :3] * texture + lit[..., 3:], 0.0)
        stack = jnp.concatenate([colour, covered.astype(colour.dtype)], axis=-1)
        if antialiased:
            stack = antialias(stack, fragments, on_image, faces, neighbours)
        return Image(colour=stack[..., :3], coverage=stack[..., 3], depth=fragments.depth)

    return render
