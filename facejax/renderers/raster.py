"""A triangle rasteriser in JAX alone: triangle ids, perspective-correct barycentrics and depth, at any triangle size.

Visibility (which triangle is in front at a pixel) is a step function and carries no derivative; everything computed
from the winning triangle (`Fragments.barycentric`, `Fragments.depth`, `interpolate`) is differentiable in the vertices,
and `antialias` gives silhouettes theirs by blending neighbouring pixels in the share that the edge between them covers.

Method: each triangle's bounding box is cut into patches of K x K pixels; the first patch of every triangle is drawn in
one scatter, the further patches of large triangles in a loop over a compacted list, so small triangles cost one patch
and a triangle that fills the image still comes out whole.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from facejax.geometry.records import Record, record

_PATCH = 3  # pixels; measured best for faces of 20,000 triangles at 256 to 512 pixels
_CHUNK = 4096  # further patches drawn per turn of the loop
_NEAR = 1e-3  # metres


@record
class Fragments(Record):
    """What is visible at each pixel."""

    triangle: Int[Array, "h w"]
    """Id of the visible triangle, -1 where there is none."""
    barycentric: Float[Array, "h w 3"]
    """Perspective-correct weights of its corners; 0 where there is none."""
    depth: Float[Array, "h w"]
    """Metres along +z; 0 where there is none."""


class _Boxes(NamedTuple):
    left: Int[Array, "t"]
    top: Int[Array, "t"]
    columns: Int[Array, "t"]
    patches: Int[Array, "t"]


def _edge(a: Array, b: Array, px: Array, py: Array) -> Array:
    """Twice the signed area of (a, b, p); positive where p lies right of a->b with y down.

    The ends are taken in one order, so that the two triangles of an edge get values that differ in sign only: otherwise
    rounding could leave a pixel on the edge to neither.
    """
    swap = (b[..., 0] < a[..., 0]) | ((b[..., 0] == a[..., 0]) & (b[..., 1] < a[..., 1]))
    s, t = jnp.where(swap[..., None], b, a), jnp.where(swap[..., None], a, b)
    area = (t[..., 0] - s[..., 0]) * (py - s[..., 1]) - (t[..., 1] - s[..., 1]) * (px - s[..., 0])
    return jnp.where(swap, -area, area)


def _screen_weights(corners: Array, px: Array, py: Array) -> Array:
    """Affine barycentric weights (..., 3) of a pixel in screen space; `corners` (..., 3, 3) is x, y, depth."""
    a, b, c = corners[..., 0, :], corners[..., 1, :], corners[..., 2, :]
    w = jnp.stack([_edge(b, c, px, py), _edge(c, a, px, py), _edge(a, b, px, py)], axis=-1)
    area = _edge(a, b, c[..., 0], c[..., 1])[..., None]
    return w / jnp.where(jnp.abs(area) < 1e-12, 1.0, area)


def _boxes(corners: Array, size: tuple[int, int], cull: bool) -> _Boxes:
    height, width = size
    xy = corners[..., :2]
    low, high = jnp.min(xy, axis=1), jnp.max(xy, axis=1)
    limit = jnp.array([width, height], dtype=xy.dtype)
    first = jnp.clip(jnp.ceil(low - 0.5), 0, limit).astype(jnp.int32)
    last = jnp.clip(jnp.floor(high - 0.5), -1, limit - 1).astype(jnp.int32)
    extent = jnp.maximum(last - first + 1, 0)
    area = _edge(xy[:, 0], xy[:, 1], xy[:, 2, 0], xy[:, 2, 1])
    drawn = jnp.isfinite(area) & (jnp.min(corners[..., 2], axis=1) > _NEAR)
    drawn &= (area < -1e-12) if cull else (jnp.abs(area) > 1e-12)  # counter-clockwise from outside, y down: negative
    cells = (extent + _PATCH - 1) // _PATCH
    patches = jnp.where(drawn, cells[:, 0] * cells[:, 1], 0)
    return _Boxes(left=first[:, 0], top=first[:, 1], columns=jnp.maximum(cells[:, 0], 1), patches=patches)


def _patch_fragments(
    corners: Array, boxes: _Boxes, tri: Array, patch: Array, size: tuple[int, int]
) -> tuple[Array, Array]:
    """Flat pixel ids and inverse depths (n, K*K) of patch `patch` of triangle `tri`; missed pixels get id h*w."""
    height, width = size
    k = np.arange(_PATCH * _PATCH)
    corner = corners[tri]
    col = boxes.left[tri] + (patch % boxes.columns[tri]) * _PATCH
    row = boxes.top[tri] + (patch // boxes.columns[tri]) * _PATCH
    x = col[:, None] + (k % _PATCH)
    y = row[:, None] + (k // _PATCH)
    weights = _screen_weights(corner[:, None], x + 0.5, y + 0.5)
    inverse_depth = jnp.sum(weights / corner[:, None, :, 2], axis=-1)
    alive = (patch < boxes.patches[tri])[:, None] & (x < width) & (y < height) & jnp.all(weights >= 0, axis=-1)
    return jnp.where(alive, y * width + x, height * width), inverse_depth


def _visible_triangles(vertices: Array, faces: Array, size: tuple[int, int], cull: bool) -> Array:
    """Flat ids (h*w,) of the nearest triangle per pixel, -1 for none. Two passes: nearest depth, then its owner."""
    height, width = size
    corners = vertices[faces]
    boxes = _boxes(corners, size, cull)
    n_faces = faces.shape[0]
    all_triangles = jnp.arange(n_faces)
    pixel0, inv0 = _patch_fragments(corners, boxes, all_triangles, jnp.zeros(n_faces, jnp.int32), size)
    further = jnp.cumsum(jnp.maximum(boxes.patches - 1, 0))
    n_further = further[-1]

    def chunk(i: Array) -> tuple[Array, Array, Array]:
        item = i * _CHUNK + jnp.arange(_CHUNK)
        tri = jnp.minimum(jnp.searchsorted(further, item, side="right"), n_faces - 1)
        before = jnp.where(tri > 0, further[jnp.maximum(tri - 1, 0)], 0)
        # past the end: a patch that draws nothing
        patch = jnp.where(item < n_further, item - before + 1, boxes.patches[tri])
        pixel, inv = _patch_fragments(corners, boxes, tri, patch, size)
        return tri, pixel, inv

    def over_chunks(body: object, start: Array) -> Array:
        def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
            i, buffer = state
            return i + 1, body(buffer, *chunk(i))  # type: ignore[operator]

        return jax.lax.while_loop(lambda s: s[0] * _CHUNK < n_further, step, (jnp.int32(0), start))[1]

    nearest = jnp.full(height * width, -jnp.inf, dtype=vertices.dtype).at[pixel0].max(inv0, mode="drop")
    nearest = over_chunks(lambda buffer, tri, pixel, inv: buffer.at[pixel].max(inv, mode="drop"), nearest)
    bound = jnp.append(nearest * (1 - 1e-6), jnp.inf)  # a pass may round its depths differently: accept a near tie

    def claim(buffer: Array, tri: Array, pixel: Array, inv: Array) -> Array:
        target = jnp.where(inv >= bound[pixel], pixel, height * width)
        return buffer.at[target].max(jnp.broadcast_to(tri[:, None], pixel.shape), mode="drop")

    owner = claim(jnp.full(height * width, -1, dtype=jnp.int32), all_triangles.astype(jnp.int32), pixel0, inv0)
    return over_chunks(lambda b, tri, pixel, inv: claim(b, tri.astype(jnp.int32), pixel, inv), owner)


def fragments_of(
    triangle: Int[Array, "h w"], vertices: Float[Array, "v 3"], faces: Int[Array, "t 3"] | np.ndarray
) -> Fragments:
    """Barycentrics and depth of known visible triangles: the differentiable half of `rasterise`."""
    height, width = triangle.shape
    covered = triangle >= 0
    faces = jnp.asarray(faces)
    # where nothing is drawn, any triangle does, but not one that makes NaN: those would come back as gradients
    corners = jnp.where(covered[..., None, None], vertices[faces[jnp.maximum(triangle, 0)]], jnp.eye(3))
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    affine = _screen_weights(corners, x, y)
    over_depth = affine / jnp.maximum(corners[..., 2], _NEAR)
    inverse = jnp.sum(over_depth, axis=-1)
    inverse = jnp.where(covered & (jnp.abs(inverse) > 1e-12), inverse, 1.0)
    return Fragments(
        triangle=triangle,
        barycentric=jnp.where(covered[..., None], over_depth / inverse[..., None], 0.0),
        depth=jnp.where(covered, 1 / inverse, 0.0),
    )


def rasterise(
    vertices: Float[Array, "v 3"], faces: Int[Array, "t 3"] | np.ndarray, size: tuple[int, int], *, cull: bool = True
) -> Fragments:
    """Find the nearest triangle at every pixel centre.

    vertices: x, y in pixels of the image to be drawn (centre of the top-left pixel at (0.5, 0.5)), and depth in metres.
    faces: counter-clockwise seen from outside. size: (height, width). cull: leave out triangles seen from inside.
    Triangles with a corner nearer than 1 mm, NaN corners or no area are not drawn.
    """
    faces = jnp.asarray(faces, dtype=jnp.int32)
    owner = _visible_triangles(jax.lax.stop_gradient(vertices), faces, size, cull)
    return fragments_of(owner.reshape(size), vertices, faces)


def interpolate(
    attributes: Float[Array, "v c"], fragments: Fragments, faces: Int[Array, "t 3"] | np.ndarray
) -> Float[Array, "h w c"]:
    """Values of per-vertex attributes at every pixel; 0 where nothing is drawn. `faces` may be `uv_faces` for UVs."""
    corner = jnp.asarray(faces)[jnp.maximum(fragments.triangle, 0)]
    values = attributes[corner[..., 0]] * fragments.barycentric[..., :1]
    for i in (1, 2):
        values = values + attributes[corner[..., i]] * fragments.barycentric[..., i : i + 1]
    return values


def antialias(
    image: Float[Array, "h w c"],
    fragments: Fragments,
    vertices: Float[Array, "v 3"],
    faces: Int[Array, "t 3"] | np.ndarray,
    neighbours: Int[Array, "t 3"] | np.ndarray,
    *,
    max_crossings: int | None = None,
) -> Float[Array, "h w c"]:
    """Blend pixels across silhouette edges in the share that the nearer surface covers: smooth in the vertices.

    Every silhouette edge (border of the mesh, or its two triangles lie on one side of it) is followed over the lines
    that join pixel centres. Where it crosses between two neighbours that show different triangles, the farther of them
    behind it, the pixel whose half the edge cuts takes that share of the other's colour (Laine et al. 2020, section
    3.6). They look for the edge among those of the nearer pixel's triangle; on a fine mesh that is hardly ever the one
    on the limb, so here edges look for their pixels. An edge crosses rows and columns: its blends are weighed by the
    squares of its normal's components, so that the sum of an image changes by length times movement at any orientation.

    neighbours: `edge_neighbours(faces)`. max_crossings: of edges with the lines of each direction, default
    16 (height + width); what is beyond that stays as it is.
    """
    height, width, channels = image.shape
    flat = image.reshape(-1, channels)
    triangle = fragments.triangle.reshape(-1)
    depth = jnp.where(triangle >= 0, jax.lax.stop_gradient(fragments.depth).reshape(-1), jnp.inf)
    start, end, positive, usable = _silhouettes(vertices, jnp.asarray(faces), jnp.asarray(neighbours))
    count = max_crossings or 16 * (height + width)
    result = flat
    for axis in (0, 1):  # of the image: neighbours one above the other, then side by side
        along, across = 1 - axis, axis  # of (x, y)
        lines, pairs, stride = (width, height - 1, width) if axis == 0 else (height, width - 1, 1)
        edge, line, alive = _crossings(start[:, across], end[:, across], usable, lines, count)
        safe = alive[:, None]
        s = jnp.where(safe, start[edge], jnp.array([0.0, 0.0, 1.0]))
        t = jnp.where(safe, end[edge], jnp.array([1.0, 1.0, 1.0]))
        direction = t - s
        reach = jnp.where(direction[:, across] == 0, 1.0, direction[:, across])
        part = (line + 0.5 - s[:, across]) / reach
        place = s[:, along] + part * direction[:, along] - 0.5
        surface_at_q = (direction[:, across] > 0) == (positive[edge] == (axis == 0))
        first = jax.lax.stop_gradient(place)  # an edge on a centre covers that pixel: the pair is the one beyond it
        first = jnp.where(surface_at_q, jnp.ceil(first) - 1, jnp.floor(first))
        alive &= (first >= 0) & (first < pairs)
        row, column = (x.astype(jnp.int32) for x in ((first, line) if axis == 0 else (line, first)))
        p = jnp.where(alive, row * width + column, 0)
        q = jnp.where(alive, p + stride, 0)
        near, far = jnp.where(surface_at_q, q, p), jnp.where(surface_at_q, p, q)
        inverse = (1 - part) / s[:, 2] + part / t[:, 2]
        alive &= (triangle[p] != triangle[q]) & (depth[near] < depth[far]) & (inverse * depth[far] > 1)
        at = place - first  # of the way from p's centre to q's
        item = _outermost(jnp.where(surface_at_q, 1 - at, at), jnp.where(alive, p, height * width), height * width)
        weight = jax.lax.stop_gradient(direction[:, across] ** 2 / jnp.sum(direction[:, :2] ** 2, axis=-1))
        share = jnp.where(alive & (item[p] == jnp.arange(count)), (0.5 - at) * weight, 0.0)[:, None]
        # nearer surface at p covers [0, at] of the way to q; at q it covers [at, 1]: in both, `0.5 - at` is q's share
        # in p, and where it is negative, p's share in q
        difference = flat[q] - flat[p]
        result = result.at[p].add(jnp.maximum(share, 0.0) * difference).at[q].add(jnp.minimum(share, 0.0) * difference)
    return result.reshape(image.shape)


def _silhouettes(vertices: Array, faces: Array, neighbours: Array) -> tuple[Array, Array, Array, Array]:
    """Edges of all triangles, (3 T, ...): start, end, whether the surface is where `_edge` is positive, which count."""
    corners, far = vertices[faces], vertices[jnp.maximum(neighbours, 0)]
    area = _edge(corners[:, 0], corners[:, 1], corners[:, 2, 0], corners[:, 2, 1])
    drawable = jnp.isfinite(area) & (jnp.abs(area) > 1e-12) & (jnp.min(corners[..., 2], axis=1) > _NEAR)
    starts, ends, usable = [], [], []
    for e in range(3):
        s, t = corners[:, (e + 1) % 3], corners[:, (e + 2) % 3]
        other = _edge(s, t, far[:, e, 0], far[:, e, 1])
        # an edge between a triangle seen from outside and one from inside is taken from the former only
        usable.append(drawable & ((neighbours[:, e] < 0) | ((area < 0) & ~(other > 0))))
        starts.append(s)
        ends.append(t)
    return jnp.concatenate(starts), jnp.concatenate(ends), jnp.tile(area > 0, 3), jnp.concatenate(usable)


def _crossings(a: Array, b: Array, usable: Array, lines: int, count: int) -> tuple[Array, Array, Array]:
    """(edge, line, real) of up to `count` crossings of intervals [a, b) with the lines at 0.5, 1.5, ..."""
    a, b = jax.lax.stop_gradient(a), jax.lax.stop_gradient(b)
    first = jnp.clip(jnp.ceil(jnp.minimum(a, b) - 0.5), 0, lines)
    stop = jnp.clip(jnp.ceil(jnp.maximum(a, b) - 0.5), 0, lines)
    total = jnp.cumsum(jnp.where(usable, stop - first, 0.0).astype(jnp.int32))
    item = jnp.arange(count)
    edge = jnp.minimum(jnp.searchsorted(total, item, side="right"), a.shape[0] - 1)
    before = jnp.where(edge > 0, total[jnp.maximum(edge - 1, 0)], 0)
    return edge, first[edge] + (item - before), item < total[-1]


def _outermost(extent: Array, target: Array, size: int) -> Array:
    """For each of `size` places, the id of the item with the largest extent among those aimed at it, -1 for none."""
    extent = jax.lax.stop_gradient(extent)
    largest = jnp.full(size + 1, -jnp.inf).at[target].max(extent)
    wins = jnp.where(extent >= largest[target], target, size)
    return jnp.full(size + 1, -1, jnp.int32).at[wins].max(jnp.arange(len(extent), dtype=jnp.int32))
