"""Convolutions on the vertices of a mesh, and going to a coarser mesh and back (Ranjan et al. 2018, CoMA).

What depends on the mesh alone is made once on the host with numpy and scipy, and is constant under `jit`.
"""

import dataclasses
import heapq

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from facejax.geometry.errors import InputError
from facejax.geometry.meshes import closest_weights
from facejax.models.layers.convolution import glorot_uniform

_BORDER_WEIGHT = 100.0
"""Of planes upright on border edges, beside those of triangles: borders keep their course."""


@dataclasses.dataclass(frozen=True, eq=False)
class SparseMatrix:
    """A constant matrix of few entries, compared by identity, static under jit.

    One list for all rows: on heads some vertices have many times the usual number of neighbours.
    """

    rows: np.ndarray
    """(k,) int32, ascending: the row of each entry."""
    columns: np.ndarray
    """(k,) int32: its column."""
    weights: np.ndarray
    """(k,) float32: the entry."""
    shape: tuple[int, int]

    def __matmul__(self, x: Float[Array, "n c"]) -> Float[Array, "r c"]:
        """The product, in full float32."""
        products = jnp.asarray(self.weights)[:, None] * x[self.columns]
        return jax.ops.segment_sum(products, jnp.asarray(self.rows), self.shape[0], indices_are_sorted=True)

    def dense(self) -> np.ndarray:
        """With every zero, float32."""
        made = np.zeros(self.shape, np.float32)
        np.add.at(made, (self.rows, self.columns), self.weights)
        return made


@dataclasses.dataclass(frozen=True, eq=False)
class MeshPooling:
    """A mesh with fewer vertices, and the ways there and back."""

    faces: np.ndarray
    """(t, 3) int32: the coarse mesh's triangles, by its own vertex ids."""
    kept: np.ndarray
    """(m,) int32: which vertices of the fine mesh the coarse one's are, ascending."""
    down: SparseMatrix
    """(m, n): picks the kept vertices."""
    up: SparseMatrix
    """(n, m): the kept vertices as they are; the others where they are nearest to the coarse mesh. Rows sum to 1."""


class ChebyshevConvolution(nnx.Module):
    """(vertices, inputs) to (vertices, outputs): Chebyshev polynomials of a graph's Laplacian (Defferrard et al. 2016).

    y = sum over k < order of T_k(L) x W_k + bias, with T_0 = 1, T_1 = L, T_k = 2 L T_(k-1) - T_(k-2). Order 1 sees each
    vertex alone, order k its neighbours up to k - 1 edges away.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        order: int,
        laplacian: SparseMatrix,
        *,
        slope: float = 0.0,
        bias: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        """laplacian: see `scaled_laplacian`. slope: of the activation that follows. Raises InputError for order 0."""
        if order < 1:
            raise InputError(f"a Chebyshev convolution has at least order 1, got {order}.")
        self.kernel = nnx.Param(glorot_uniform(rngs.params(), (order, inputs, outputs), slope))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None
        self.laplacian = laplacian

    def __call__(self, x: Float[Array, "v i"]) -> Float[Array, "v o"]:
        kernel = self.kernel[...]
        terms = [x]
        if len(kernel) > 1:
            terms.append(self.laplacian @ x)
        while len(terms) < len(kernel):
            terms.append(2 * (self.laplacian @ terms[-1]) - terms[-2])
        y = jnp.einsum("kvi,kio->vo", jnp.stack(terms), kernel, precision=jax.lax.Precision.HIGHEST)
        return y if self.bias is None else y + self.bias[...]


def scaled_laplacian(faces: np.ndarray, n_vertices: int) -> SparseMatrix:
    """The normalised Laplacian of a mesh's edges, moved to eigenvalues in [-1, 1]: -D^(-1/2) A D^(-1/2).

    That is 2 L / 2 - 1 with L = 1 - D^(-1/2) A D^(-1/2), whose eigenvalues are at most 2; A is 1 where two vertices
    share an edge, D counts the edges of each. The row of a vertex without edges is zero. Raises InputError for vertex
    ids outside the mesh.
    """
    faces = _checked(faces, n_vertices)
    both = _edges(faces)
    both = np.concatenate([both, both[:, ::-1]])
    degree = np.bincount(both[:, 0], minlength=n_vertices)
    values = -1 / np.sqrt(degree[both[:, 0]] * degree[both[:, 1]].astype(np.float64))
    return _sparse(both[:, 0], both[:, 1], values, (n_vertices, n_vertices))


def quadric_pooling(vertices: np.ndarray, faces: np.ndarray, n_vertices: int) -> MeshPooling:
    """A mesh of `n_vertices` of a mesh's vertices (v, 3), by collapsing the edges that change its surface least.

    Of each edge one end goes into the other, where the sum of squared distances to the planes of all triangles that
    went into both is less (Garland and Heckbert 1997, with vertices kept in place as in CoMA). A collapse that would
    fold the surface over, or pinch it, is left out. The same input gives the same mesh. Takes about a second per
    thousand vertices. Raises InputError where fewer vertices are asked for than can be reached.
    """
    faces = _checked(faces, len(vertices))
    points = np.asarray(vertices, np.float64)
    if not 3 <= n_vertices <= len(points):
        raise InputError(f"expected from 3 to {len(points)} vertices, which the mesh has, got {n_vertices}.")
    coarse = _Collapsing(points, faces).down_to(n_vertices)
    kept = np.flatnonzero(coarse.alive).astype(np.int32)
    number = np.full(len(points), -1, np.int32)
    number[kept] = np.arange(len(kept))
    left = np.array([face for face in coarse.faces if face is not None], np.int32).reshape(-1, 3)
    places = np.arange(len(kept))
    down = _sparse(places, kept, np.ones(len(kept)), (len(kept), len(points)))
    lost = np.flatnonzero(~coarse.alive)
    triangles, weights = _on_coarse(points, left, lost)
    up = _sparse(
        np.concatenate([kept, np.repeat(lost, 3)]),
        np.concatenate([places, number[triangles].ravel()]),
        np.concatenate([np.ones(len(kept)), weights.ravel()]),
        (len(points), len(kept)),
    )
    return MeshPooling(number[left], kept, down, up)


class _Collapsing:
    """A mesh that loses vertices one by one."""

    def __init__(self, points: np.ndarray, faces: np.ndarray) -> None:
        self.points = points
        self.faces: list[tuple[int, int, int] | None] = [(int(a), int(b), int(c)) for a, b, c in faces]
        self.alive = np.ones(len(points), bool)
        self.around: list[set[int]] = [set() for _ in points]  # triangles of each vertex
        for n, face in enumerate(faces):
            for vertex in face:
                self.around[vertex].add(n)
        self.quadrics = _quadrics(points, faces)
        self.age = np.zeros(
            len(points), np.int64
        )  # how often a vertex took another in: older entries of the queue lapse

    def down_to(self, count: int) -> "_Collapsing":
        queue = [self._entry(int(a), int(b)) for a, b in _edges(np.array(self.faces))]
        heapq.heapify(queue)
        left = len(self.points)
        while left > count:
            if not queue:
                raise InputError(
                    f"the mesh cannot have fewer than {left} vertices without folding, got {count}: ask for more."
                )
            _, goes, stays, ages = heapq.heappop(queue)
            current = self.alive[goes] and self.alive[stays] and ages == (self.age[goes], self.age[stays])
            if not current or not self._possible(goes, stays):
                continue
            self._collapse(goes, stays)
            left -= 1
            for other in sorted(self._neighbours(stays)):
                heapq.heappush(queue, self._entry(stays, other))
        return self

    def _entry(self, a: int, b: int) -> tuple[float, int, int, tuple[int, int]]:
        """(cost, who goes, who stays, the ages of both) of the edge's cheaper collapse."""
        quadric = self.quadrics[a] + self.quadrics[b]
        at_a, at_b = (float(p @ quadric @ p) for p in (np.append(self.points[v], 1.0) for v in (a, b)))
        goes, stays = (a, b) if (at_b, b) <= (at_a, a) else (b, a)
        return min(at_a, at_b), goes, stays, (int(self.age[goes]), int(self.age[stays]))

    def _neighbours(self, vertex: int) -> set[int]:
        return {v for n in self.around[vertex] for v in self.faces[n] or ()} - {vertex}

    def _possible(self, goes: int, stays: int) -> bool:
        shared = self.around[goes] & self.around[stays]
        opposite = {v for n in shared for v in self.faces[n] or ()} - {goes, stays}
        if not shared or self._neighbours(goes) & self._neighbours(stays) != opposite:
            return False  # the surface would touch itself
        moved = [self.faces[n] or () for n in self.around[goes] - shared]
        if not moved:
            return False  # the last triangles of a piece
        turned = [[stays if v == goes else v for v in face] for face in moved]
        there = {frozenset(self.faces[n] or ()) for n in self.around[stays] - shared}
        if there & set(map(frozenset, turned)):
            return False  # two triangles on top of each other: all that is left is a tetrahedron
        before, after = self.points[np.array(moved)], self.points[np.array(turned)]
        return bool((np.einsum("ni,ni->n", _normals(before), _normals(after)) > 0).all())

    def _collapse(self, goes: int, stays: int) -> None:
        for n in sorted(self.around[goes]):
            face = self.faces[n] or ()
            if stays in face:
                for vertex in face:
                    self.around[vertex].discard(n)
                self.faces[n] = None
            else:
                a, b, c = (stays if v == goes else v for v in face)
                self.faces[n] = (a, b, c)
                self.around[stays].add(n)
        self.around[goes].clear()
        self.alive[goes] = False
        self.quadrics[stays] += self.quadrics[goes]
        self.age[stays] += 1


def _quadrics(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(v, 4, 4): p' Q p is the sum of squared distances of a point p (x, y, z, 1) to the planes at each vertex."""
    corners = points[faces]
    normals = _normals(corners)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-300)
    planes = np.concatenate([normals, -np.einsum("ni,ni->n", normals, corners[:, 0])[:, None]], axis=1)
    made = np.zeros((len(points), 4, 4))
    for i in range(3):
        np.add.at(made, faces[:, i], planes[:, :, None] * planes[:, None, :])
    sides = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    _, row, uses = np.unique(np.sort(sides, axis=1), axis=0, return_inverse=True, return_counts=True)
    border = uses[row.reshape(-1)] == 1
    ends, upon = sides[border], np.tile(normals, (3, 1))[border]
    upright = np.cross(points[ends[:, 1]] - points[ends[:, 0]], upon)
    upright /= np.maximum(np.linalg.norm(upright, axis=-1, keepdims=True), 1e-300)
    planes = np.concatenate([upright, -np.einsum("ni,ni->n", upright, points[ends[:, 0]])[:, None]], axis=1)
    for i in range(2):
        np.add.at(made, ends[:, i], _BORDER_WEIGHT * planes[:, :, None] * planes[:, None, :])
    return made


def _normals(corners: np.ndarray) -> np.ndarray:
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def _on_coarse(points: np.ndarray, faces: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) vertex ids and weights of the points of a mesh that are nearest to the points of these numbers."""
    from scipy.spatial import cKDTree

    corners = points[faces]
    centres = corners.mean(axis=1)
    reach = np.linalg.norm(corners - centres[:, None], axis=-1).max(initial=0.0)
    # No triangle is nearer than a corner is, so its centre lies within that distance and the largest radius.
    nearest, _ = cKDTree(corners.reshape(-1, 3)).query(points[which])
    near = cKDTree(centres).query_ball_point(points[which], nearest + reach * (1 + 1e-9), return_sorted=True)
    triangles, weights = np.zeros((len(which), 3), np.int32), np.zeros((len(which), 3))
    for row, (point, candidates) in enumerate(zip(points[which], near, strict=True)):
        found = closest_weights(point, corners[candidates])
        distance = np.linalg.norm(np.einsum("kij,ki->kj", corners[candidates], found) - point, axis=-1)
        best = distance.argmin()
        triangles[row], weights[row] = faces[candidates[best]], found[best]
    return triangles, weights


def _checked(faces: np.ndarray, n_vertices: int) -> np.ndarray:
    faces = np.asarray(faces)
    if faces.ndim != 2 or faces.shape[1] != 3 or not np.issubdtype(faces.dtype, np.integer):
        raise InputError(f"expected triangles as (t, 3) whole numbers, got {faces.dtype} of shape {faces.shape}.")
    if faces.size and not (faces.min() >= 0 and faces.max() < n_vertices):
        raise InputError(
            f"triangles name vertices {faces.min()} to {faces.max()}, "
            f"expected 0 to {n_vertices - 1}: give the mesh's own."
        )
    return faces


def _edges(faces: np.ndarray) -> np.ndarray:
    """(e, 2) pairs of different vertices, each pair once, the lower first."""
    sides = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    sides = np.unique(sides, axis=0)
    return sides[sides[:, 0] != sides[:, 1]]


def _sparse(rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, shape: tuple[int, int]) -> SparseMatrix:
    """Of entries in any order."""
    order = np.lexsort((columns, rows))
    kinds = (np.int32, np.int32, np.float32)
    rows, columns, weights = (x[order].astype(k) for x, k in zip((rows, columns, weights), kinds, strict=True))
    return SparseMatrix(rows, columns, weights, shape)
