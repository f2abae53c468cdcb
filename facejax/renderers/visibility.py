"""Cast shadows: how much of a mesh stands between points and the directions or lamps that light comes from.

Method: depth maps of surface samples. Points are spread evenly over the mesh's area, so that a map has few holes and
its cost does not depend on the size of triangles. For each PAIR of opposite directions they are projected once along
it, and per cell of a grid the farthest of them either way is kept (two scatters); cells that the samples missed are
filled from both sides. A receiver is lit where it is not farther behind than its bias, weighed over the four cells
around it. A lamp's map is the same in an azimuthal
projection around the lamp. On the CPU a scatter of samples costs about a nanosecond each, which beats triangles drawn
by patches, and rays walked through a tree, several times over.

Against acne, receivers are lifted along their normals by 0.85 of a cell, and by a slope bias: the height their own
tangent plane gains over one cell. Shadows of contact narrower than that are lost.

Visibility is a step function of geometry: results carry no derivative.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from facejax.geometry.errors import InputError
from facejax.geometry.meshes import face_normals, normalise, vertex_normals

SAMPLES = 400_000
"""Surface samples: 18 for each triangle of a head of 22,288."""
RESOLUTION = 384
"""Cells along a depth map's sides."""

_PER_CELL = 1.25  # samples per cell of area: fewer leave holes too wide to fill, more waste cells
_LIFT = 0.85  # cells, along the normal
_FLAT_BIAS = 0.1  # cells, towards the light
_SLOPE_BIAS = 1.0  # of the tangent plane's height over one cell
_STEEPEST = 6.0  # cells per cell
_HIGHEST = jax.lax.Precision.HIGHEST

_Rows = tuple[Array, Array, Array]  # x, y, z of many points: three contiguous rows vectorise where (n, 3) does not


def distant_visibility(
    vertices: Float[Array, "v 3"],
    faces: Int[Array, "t 3"] | np.ndarray,
    directions: Float[Array, "d 3"] | np.ndarray,
    points: Float[ArrayLike, "p 3"] | None = None,
    normals: Float[ArrayLike, "p 3"] | None = None,
    *,
    samples: int = SAMPLES,
    resolution: int = RESOLUTION,
) -> Float[Array, "p d"]:
    """Share of each distant light (0 blocked, 1 open) that the mesh lets through to each point.

    directions: unit, towards the light, in the vertices' frame, in opposite pairs: the second half is minus the first,
    as from `sphere_directions`. points, normals: receivers on the surface and their unit normals; None: the vertices.
    Below a receiver's horizon the answer is of no use (a thin sheet does not block it): weigh by max(n . w, 0).
    Triangles block from both sides; those with NaN corners or no area cast nothing.
    Raises `InputError` for directions that are not paired (where their values are known, that is outside of `jit`).
    """
    directions = _paired(directions)
    receivers, lift = _receivers(vertices, faces, points, normals)
    return _distant(vertices, jnp.asarray(faces), directions, receivers, lift, samples=samples, resolution=resolution)


@functools.partial(jax.jit, static_argnames=("samples", "resolution"))
def _distant(
    vertices: Array, faces: Array, directions: Array, receivers: _Rows, lift: _Rows, *, samples: int, resolution: int
) -> Array:
    surface, spacing, _ = _occluders(vertices, faces, samples)
    half = directions.shape[0] // 2

    def both_ways(direction: Array) -> tuple[Array, Array]:
        right, up = _tangents(direction)
        x, y, height = (_dot(axis, surface) for axis in (right, up, direction))
        lo_x, cell_x = _grid(x, spacing, resolution)
        lo_y, cell_y = _grid(y, spacing, resolution)
        cells = _cell(x, lo_x, cell_x, resolution) * resolution + _cell(y, lo_y, cell_y, resolution)
        cell = jnp.maximum(cell_x, cell_y)
        at = _along(receivers, lift, _LIFT * cell)
        column = (_dot(right, at) - lo_x) / cell_x
        row = (_dot(up, at) - lo_y) / cell_y
        level = _dot(direction, at)
        bias = _bias(jnp.abs(_dot(direction, lift)), cell)
        towards = _open_share(_tops(cells, height, resolution), column, row, level + bias, resolution)
        away = _open_share(_tops(cells, -height, resolution), column, row, bias - level, resolution)
        return towards, away

    first, second = jax.lax.map(both_ways, directions[:half])
    return jax.lax.stop_gradient(jnp.concatenate([first, second]).T)


def lamp_visibility(
    vertices: Float[Array, "v 3"],
    faces: Int[Array, "t 3"] | np.ndarray,
    positions: Float[Array, "n 3"],
    points: Float[ArrayLike, "p 3"] | None = None,
    normals: Float[ArrayLike, "p 3"] | None = None,
    *,
    samples: int = SAMPLES,
    resolution: int = RESOLUTION,
) -> Float[Array, "p n"]:
    """Share of each near lamp's light (0 blocked, 1 open) that the mesh lets through to each point.

    positions: metres, in the vertices' frame; they may be as near to the mesh as a few of its samples' distances. The
    rest as in `distant_visibility`, without its pairs.
    """
    receivers, lift = _receivers(vertices, faces, points, normals)
    positions = jax.lax.stop_gradient(positions)
    return _near(vertices, jnp.asarray(faces), positions, receivers, lift, samples=samples, resolution=resolution)


@functools.partial(jax.jit, static_argnames=("samples", "resolution"))
def _near(
    vertices: Array, faces: Array, positions: Array, receivers: _Rows, lift: _Rows, *, samples: int, resolution: int
) -> Array:
    surface, spacing, centre = _occluders(vertices, faces, samples)

    def one_lamp(position: Array) -> Array:
        axis = normalise(position - centre)
        axis = jnp.where(jnp.any(axis != 0), axis, jnp.array([0.0, 0.0, 1.0]))
        right, up = _tangents(axis)

        def seen(p: _Rows) -> tuple[Array, Array, Array, _Rows]:
            """Equal-area azimuthal coordinates around the lamp, distance, and direction from the lamp."""
            away = (p[0] - position[0], p[1] - position[1], p[2] - position[2])
            distance = jnp.maximum(jnp.sqrt(_dot(away, away)), 1e-6)
            unit = (away[0] / distance, away[1] / distance, away[2] / distance)
            # the centre of the mesh lies along -axis, and (x, y) of length 2 sin(angle / 2) around it
            stretch = jax.lax.rsqrt(jnp.maximum((1 - _dot(axis, unit)) / 2, 1e-6))
            return _dot(right, unit) * stretch, _dot(up, unit) * stretch, distance, unit

        x, y, distance, _ = seen(surface)
        nearest = jnp.maximum(jnp.min(distance), spacing)
        lo_x, cell_x = _grid(x, spacing / nearest, resolution)
        lo_y, cell_y = _grid(y, spacing / nearest, resolution)
        cells = _cell(x, lo_x, cell_x, resolution) * resolution + _cell(y, lo_y, cell_y, resolution)
        tops = _tops(cells, -distance, resolution)
        angle = jnp.maximum(cell_x, cell_y)
        _, _, far, _ = seen(receivers)
        at = _along(receivers, lift, _LIFT * angle * far)
        x, y, far, away = seen(at)
        bias = _bias(jnp.abs(_dot(away, lift)), angle * far)
        return _open_share(tops, (x - lo_x) / cell_x, (y - lo_y) / cell_y, bias - far, resolution)

    return jax.lax.stop_gradient(jax.lax.map(one_lamp, positions).T)


def surface_samples(
    vertices: Float[ArrayLike, "v 3"], faces: Int[Array, "t 3"] | np.ndarray, count: int
) -> tuple[Float[Array, "n 3"], Float[Array, ""]]:
    """(points spread evenly over the mesh's area, that area in square metres), the same ones for the same mesh.

    Triangles with NaN corners or no area get none; a mesh of only such gives copies of one of its vertices.
    """
    vertices, faces = jnp.asarray(vertices), jnp.asarray(faces)
    corners = vertices[faces]
    double = jnp.linalg.norm(face_normals(vertices, faces), axis=-1)
    upto = jnp.cumsum(jnp.where(jnp.isfinite(double), double, 0.0))
    index = np.arange(count)
    triangle = jnp.searchsorted(upto, ((index + 0.5) / count).astype(np.float32) * upto[-1])
    triangle = jnp.minimum(triangle, corners.shape[0] - 1)
    # the R2 sequence (Roberts 2018), folded into the triangle
    b, c = (np.mod(index * g, 1).astype(np.float32) for g in (0.7548776662466927, 0.5698402909980532))
    folded = b + c > 1
    b, c = np.where(folded, 1 - b, b), np.where(folded, 1 - c, c)
    a0, a1, a2 = (corners[:, i][triangle] for i in range(3))
    return jnp.nan_to_num(a0 + (a1 - a0) * b[:, None] + (a2 - a0) * c[:, None]), upto[-1] / 2


def _paired(directions: Array | np.ndarray) -> Array:
    n = directions.shape[0]
    opposite = n % 2 == 0
    if opposite and not isinstance(directions, jax.core.Tracer):
        known = np.asarray(directions)
        opposite = bool(np.allclose(known[n // 2 :], -known[: n // 2], atol=1e-5))
    if not opposite:
        raise InputError(
            f"Directions must come in opposite pairs, the second half minus the first, but these {n} do not: take them "
            "from `sphere_directions`, or append their negatives."
        )
    return jax.lax.stop_gradient(jnp.asarray(directions))


def _rows(points: Array) -> _Rows:
    return points[:, 0], points[:, 1], points[:, 2]


def _receivers(
    vertices: Array, faces: Array | np.ndarray, points: ArrayLike | None, normals: ArrayLike | None
) -> tuple[_Rows, _Rows]:
    if (points is None) != (normals is None):
        raise InputError("Points and normals go together: give both, or neither for the mesh's vertices.")
    if points is None or normals is None:
        points, normals = vertices, vertex_normals(vertices, faces)
    return _rows(jax.lax.stop_gradient(jnp.asarray(points))), _rows(jax.lax.stop_gradient(jnp.asarray(normals)))


def _occluders(vertices: Array, faces: Array | np.ndarray, samples: int) -> tuple[_Rows, Array, Array]:
    """Samples, the side of a cell that holds enough of them, and their centre."""
    surface, area = surface_samples(jax.lax.stop_gradient(vertices), faces, samples)
    spacing = jnp.maximum(jnp.sqrt(_PER_CELL * area / samples), 1e-7)
    return _rows(surface), spacing, jnp.mean(surface, axis=0)


def _dot(a: Array | _Rows, b: Array | _Rows) -> Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _along(start: _Rows, way: _Rows, length: Array) -> _Rows:
    return start[0] + length * way[0], start[1] + length * way[1], start[2] + length * way[2]


def _tangents(w: Float[Array, "3"]) -> tuple[Float[Array, "3"], Float[Array, "3"]]:
    """Two unit vectors that span the plane across unit `w` (Duff et al. 2017)."""
    sign = jnp.where(w[2] >= 0, 1.0, -1.0)
    a = -1 / (sign + w[2])
    b = w[0] * w[1] * a
    return jnp.stack([1 + sign * w[0] ** 2 * a, sign * b, -sign * w[0]]), jnp.stack([b, sign + w[1] ** 2 * a, -w[1]])


def _grid(x: Array, least: Array, resolution: int) -> tuple[Array, Array]:
    """(coordinate of the grid's border, side of a cell): all samples inside, with a rim of empty cells around them."""
    low, high = jnp.min(x), jnp.max(x)
    cell = jnp.maximum((high - low) / (resolution - 4), least)
    return low - 1.5 * cell, cell


def _cell(x: Array, low: Array, cell: Array, resolution: int) -> Array:
    return jnp.clip((x - low) * (1 / cell), 0, resolution - 1).astype(jnp.int32)


def _tops(cells: Array, height: Array, resolution: int) -> Array:
    empty = jnp.full(resolution * resolution, -jnp.inf, dtype=height.dtype)
    top = empty.at[cells].max(height, mode="promise_in_bounds")
    # a cell between two higher ones, in a row or a column, is a hole; borders of shadows stay where they are
    grid = jnp.pad(top.reshape(resolution, resolution), 1, constant_values=-jnp.inf)
    between = jnp.maximum(jnp.minimum(grid[:-2, 1:-1], grid[2:, 1:-1]), jnp.minimum(grid[1:-1, :-2], grid[1:-1, 2:]))
    return jnp.maximum(top, between.reshape(-1))


def _bias(cosine: Array, cell: Array) -> Array:
    slope = jnp.sqrt(jnp.maximum(1 - cosine * cosine, 0.0)) / jnp.maximum(cosine, 1e-3)
    return cell * (_FLAT_BIAS + _SLOPE_BIAS * jnp.minimum(slope, _STEEPEST))


def _open_share(tops: Array, column: Array, row: Array, level: Array, resolution: int) -> Array:
    """Bilinear share of the four cells around (column, row) that do not rise above `level`."""
    # written so that a NaN becomes a cell too: an index out of range would read anywhere
    x = jnp.nan_to_num(jnp.clip(column - 0.5, 0, resolution - 1.001))
    y = jnp.nan_to_num(jnp.clip(row - 0.5, 0, resolution - 1.001))
    i, j = jnp.minimum(x.astype(jnp.int32), resolution - 2), jnp.minimum(y.astype(jnp.int32), resolution - 2)
    fx, fy = x - i, y - j
    first = i * resolution + j
    blocked = jnp.zeros_like(level)  # and not the open share: its weights add up to 1 only nearly
    for step, weight in (
        (0, (1 - fx) * (1 - fy)),
        (1, (1 - fx) * fy),
        (resolution, fx * (1 - fy)),
        (resolution + 1, fx * fy),
    ):
        # `not <=`, so that a NaN is blocked
        blocked += weight * ~(tops.at[first + step].get(mode="promise_in_bounds") <= level)
    return 1 - jnp.minimum(blocked, 1.0)
