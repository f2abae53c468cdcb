"""Triangle meshes: connectivity prepared once, then normals and barycentric points as pure functions."""

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

if TYPE_CHECKING:
    _HostArray = np.ndarray
else:
    _HostArray = np.ndarray | Array  # traced in one case, see `Topology`


@dataclasses.dataclass(frozen=True, eq=False)
class Topology:
    """Connectivity of a mesh: constant while a head moves, so plain numpy, compared by identity, static under jit.

    A program that is trained from a state that holds its mesh may make one of traced arrays, for a renderer within.
    """

    faces: _HostArray
    """(T, 3) int32 vertex ids, counter-clockwise seen from outside."""
    uv: _HostArray
    """(U, 2) float32 texture coordinates in [0, 1], (0, 0) at the bottom left."""
    uv_faces: _HostArray
    """(T, 3) int32 ids into `uv`."""
    n_vertices: int

    @property
    def n_faces(self) -> int:
        return len(self.faces)


def face_normals(vertices: Float[Array, "v 3"], faces: Int[Array, "t 3"] | np.ndarray) -> Float[Array, "t 3"]:
    """Normals of triangles, not normalised: length is twice the area."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return jnp.cross(b - a, c - a)


def normalise(v: Float[Array, "*n 3"], epsilon: float = 1e-30) -> Float[Array, "*n 3"]:
    """Unit vectors; one whose squared length is at most `epsilon` becomes zero, with zero gradient."""
    square = jnp.sum(v * v, axis=-1, keepdims=True)
    usable = square > epsilon
    return v * jnp.where(usable, jax.lax.rsqrt(jnp.where(usable, square, 1.0)), 0.0)


def vertex_normals(vertices: Float[Array, "v 3"], faces: Int[Array, "t 3"] | np.ndarray) -> Float[Array, "v 3"]:
    """Unit normals at vertices, the area-weighted mean over incident triangles."""
    n = face_normals(vertices, faces)
    summed = jnp.zeros_like(vertices)
    for i in range(3):
        summed = summed.at[faces[:, i]].add(n)
    return normalise(summed)


def barycentric_points(
    vertices: Float[Array, "v 3"],
    triangles: Int[Array, "n 3"] | np.ndarray,
    weights: Float[Array, "n 3"] | np.ndarray,
) -> Float[Array, "n 3"]:
    """Points on a surface: vertex ids of each point's triangle, and its barycentric weights (sum 1)."""
    return jnp.einsum("nij,ni->nj", vertices[triangles], jnp.asarray(weights), precision=jax.lax.Precision.HIGHEST)


def edge_neighbours(faces: np.ndarray) -> np.ndarray:
    """For each triangle and edge e (opposite corner e): the far vertex of the neighbour across it, -1 at a border.

    Returns (T, 3) int32. An edge shared by more than two triangles counts as a border.
    """
    faces = np.asarray(faces)
    n = len(faces)
    edges = np.stack([faces[:, [1, 2]], faces[:, [2, 0]], faces[:, [0, 1]]], axis=1).reshape(-1, 2)
    opposite = faces.reshape(-1)
    key = np.sort(edges, axis=1)
    order = np.lexsort((key[:, 1], key[:, 0]))
    key_sorted = key[order]
    same = np.all(key_sorted[1:] == key_sorted[:-1], axis=1)
    run_start = np.concatenate([[True], ~same])
    run_id = np.cumsum(run_start) - 1
    run_length = np.bincount(run_id)
    result = np.full(3 * n, -1, dtype=np.int32)
    first = np.flatnonzero(run_start)[run_length == 2]
    a, b = order[first], order[first + 1]
    result[a], result[b] = opposite[b], opposite[a]
    return result.reshape(n, 3)


@dataclasses.dataclass(frozen=True, eq=False)
class SurfacePoints:
    """Points fixed on a mesh: (n, 3) vertex ids of each point's triangle and (n, 3) barycentric weights."""

    triangles: np.ndarray
    weights: np.ndarray

    def on(self, vertices: Float[Array, "v 3"]) -> Float[Array, "n 3"]:
        """The points on a mesh with these vertices."""
        return barycentric_points(vertices, self.triangles, self.weights)


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


def closest_weights(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Barycentric weights (..., 3) of the points of triangles (..., 3, 3) that are closest to points (..., 3).

    On the host, in the points' own precision.
    """
    points = np.broadcast_to(points, (*corners.shape[:-2], 3))
    a, b, c = corners[..., 0, :], corners[..., 1, :], corners[..., 2, :]
    e0, e1, d = b - a, c - a, points - a
    g00, g01, g11 = (e0 * e0).sum(-1), (e0 * e1).sum(-1), (e1 * e1).sum(-1)
    h0, h1 = (e0 * d).sum(-1), (e1 * d).sum(-1)
    det = np.maximum(g00 * g11 - g01**2, 1e-30)
    v, w = (g11 * h0 - g01 * h1) / det, (g00 * h1 - g01 * h0) / det
    inside = np.stack([1 - v - w, v, w], -1)
    options, costs = [inside], [np.where((inside >= 0).all(-1), 0.0, np.inf)]
    for i, j in ((0, 1), (1, 2), (2, 0)):  # outside: the nearest point lies on one of the three edges
        p, q = corners[..., i, :], corners[..., j, :]
        t = ((points - p) * (q - p)).sum(-1) / np.maximum(((q - p) ** 2).sum(-1), 1e-30)
        t = np.clip(t, 0, 1)
        on_edge = np.zeros_like(inside)
        on_edge[..., i], on_edge[..., j] = 1 - t, t
        options.append(on_edge)
        costs.append(np.linalg.norm(p + t[..., None] * (q - p) - points, axis=-1))
    best = np.stack(costs, -1).argmin(-1)
    return np.take_along_axis(np.stack(options, -2), best[..., None, None], -2)[..., 0, :]
