"""A head drawn as what it is made of: colour, normals and clay, from one rasterisation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from facejax.geometry.cameras import project, to_camera_frame
from facejax.geometry.meshes import Topology, edge_neighbours, normalise, vertex_normals
from facejax.geometry.records import Camera, Face, Pose
from facejax.renderers.checks import check_topology
from facejax.renderers.deferred import vertex_light
from facejax.renderers.raster import antialias, interpolate, rasterise
from facejax.renderers.texture import sample_texture

LAYERS = 8
"""Linear radiance (3), normals as colours (3), clay (1), coverage (1)."""

# a key light from above the camera's left shoulder shows the shape better than one at the lens
_KEY_LIGHT = np.array([-0.35, -0.45, -1.0], dtype=np.float32) / np.float32(1.151)


def make_layers_renderer(topology: Topology, size: tuple[int, int]) -> Callable[..., Float[Array, "h w 8"]]:
    """(face, light, pose, camera) -> the `LAYERS` of a picture of `size` = (height, width), premultiplied by coverage.

    Normals are shown as 0.5 + 0.5 n with +x right, +y up and +z towards the viewer; clay is the shape in grey under a
    light beside the camera, in display values. Colour is that of `make_renderer`.
    """
    check_topology(topology, size)
    faces, uv, uv_faces = topology.faces, jnp.asarray(topology.uv), topology.uv_faces
    neighbours = edge_neighbours(faces)

    def draw(face: Face, light: Float[Array, "b 3"], pose: Pose, camera: Camera) -> Float[Array, "h w 8"]:
        in_camera = to_camera_frame(face.vertices, pose)
        on_image = jnp.concatenate([project(in_camera, camera), in_camera[:, 2:]], axis=-1)
        fragments = rasterise(on_image, faces, size)
        normals_head = vertex_normals(face.vertices, faces)
        diffuse, gloss = vertex_light(face, light, pose, normals_head)
        normals = jnp.matmul(normals_head, pose.rotation.T, precision=jax.lax.Precision.HIGHEST)
        values = interpolate(jnp.concatenate([face.albedo * diffuse, gloss, normals], axis=-1), fragments, faces)
        texture = sample_texture(face.texture, interpolate(uv, fragments, uv_faces))
        n = normalise(values[..., 6:])
        clay = 0.25 + 0.7 * jnp.maximum(jnp.sum(n * _KEY_LIGHT, axis=-1, keepdims=True), 0)
        shown = 0.5 + 0.5 * n * jnp.array([1.0, -1.0, -1.0])
        colour = values[..., :3] * texture + values[..., 3:6]
        stack = jnp.concatenate([colour, shown, clay, jnp.ones_like(clay)], axis=-1)
        stack = jnp.where((fragments.triangle >= 0)[..., None], stack, 0.0)
        return antialias(stack, fragments, on_image, faces, neighbours)

    return draw
