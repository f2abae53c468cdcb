"""Which points of a head a camera sees: its own depth image in front of them, and which way they face."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from facejax.geometry.cameras import project, to_camera_frame
from facejax.geometry.meshes import SurfacePoints, barycentric_points, normalise, vertex_normals
from facejax.geometry.records import Camera, Face, Image, Pose
from facejax.renderers.raster import rasterise


def visible_points(
    vertices: Float[Array, "v 3"],
    faces: np.ndarray,
    points: SurfacePoints,
    pose: Pose,
    camera: Camera,
    size: tuple[int, int],
    *,
    tolerance_m: float = 0.004,
) -> tuple[Float[Array, "n"], Float[Array, "n 3"]]:
    """(weight, normal): how well each point is seen, and its unit normal in the head frame.

    The weight is the cosine to the viewer, from 0 at 75 degrees, and 0 where the depth image of the head itself, drawn
    at `size` by `camera`, lies more than `tolerance_m` in front.
    """
    in_camera = to_camera_frame(vertices, pose)
    on_image = jnp.concatenate([project(in_camera, camera), in_camera[:, 2:]], axis=-1)
    depth = rasterise(on_image, faces, size).depth
    normals = normalise(barycentric_points(vertex_normals(vertices, faces), points.triangles, points.weights))
    where = barycentric_points(in_camera, points.triangles, points.weights)
    cosine = jnp.sum(jnp.matmul(normals, pose.rotation.T, precision="highest") * normalise(-where), axis=-1)
    pixel = project(where, camera)
    column = jnp.clip(jnp.floor(pixel[:, 0]).astype(jnp.int32), 0, size[1] - 1)
    row = jnp.clip(jnp.floor(pixel[:, 1]).astype(jnp.int32), 0, size[0] - 1)
    front = depth[row, column]
    inside: Bool[Array, n] = (pixel > 0).all(axis=-1) & (pixel[:, 0] < size[1]) & (pixel[:, 1] < size[0])
    open_view = inside & ((front == 0) | (where[:, 2] < front + tolerance_m))
    return jnp.where(open_view, jnp.clip((cosine - 0.25) / 0.75, 0.0, 1.0), 0.0), jax.lax.stop_gradient(normals)


def visible_vertices(
    face: Face, image: Image, pose: Pose, camera: Camera, faces: np.ndarray, tolerance_m: float = 0.003
) -> tuple[Float[Array, "v 2"], Float[Array, "v"]]:
    """(pixels, weight): where vertices are in the image of their own mesh, and 1 if they are seen there, else 0."""
    in_camera = to_camera_frame(face.vertices, pose)
    pixels = project(in_camera, camera)
    normals = jnp.matmul(vertex_normals(face.vertices, faces), pose.rotation.T, precision=jax.lax.Precision.HIGHEST)
    facing = jnp.sum(normals * normalise(-in_camera), axis=-1)
    height, width = image.depth.shape
    column, row = (jnp.floor(pixels[:, i]).astype(jnp.int32) for i in (0, 1))
    on_picture = (column >= 0) & (row >= 0) & (column < width) & (row < height)
    front = image.depth[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
    seen = on_picture & (front > 0) & (in_camera[:, 2] < front + tolerance_m) & (facing > 0.3)
    return pixels, seen.astype(jnp.float32)
