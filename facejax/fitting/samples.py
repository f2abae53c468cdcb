"""Points on a head at which frames are compared, and which of them a frame sees."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from facejax.geometry.cameras import project, to_camera_frame
from facejax.geometry.meshes import SurfacePoints, barycentric_points, normalise, vertex_normals
from facejax.geometry.records import Camera, Pose
from facejax.renderers.raster import rasterise


def sample_surface(
    vertices: np.ndarray, faces: np.ndarray, weight: np.ndarray, count: int, seed: int = 0
) -> SurfacePoints:
    """`count` points spread over a surface in proportion to area times the mean vertex `weight` (V,).

    Stratified along the list of triangles, so the points are even; the same seed gives the same points.
    """
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    mass = 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1) * weight[faces].mean(axis=1)
    rng = np.random.default_rng(seed)
    steps = (np.arange(count) + rng.uniform(size=count)) / count * mass.sum()
    chosen = np.minimum(np.searchsorted(np.cumsum(mass), steps), len(faces) - 1)
    u, v = np.sqrt(rng.uniform(size=count)), rng.uniform(size=count)
    weights = np.stack([1 - u, u * (1 - v), u * v], axis=1)
    return SurfacePoints(triangles=faces[chosen].astype(np.int32), weights=weights.astype(np.float32))


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
