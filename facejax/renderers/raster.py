"""A triangle rasteriser in JAX alone: triangle ids, perspective-correct barycentrics and depth, at any triangle size.

Visibility (which triangle is in front at a pixel) is a step function and carries no derivative; everything computed from
the winning triangle (`Fragments.barycentric`, `Fragments.depth`, `interpolate`) is differentiable in the vertices, and
`antialias` gives silhouettes theirs by blending neighbouring pixels in the share that the edge between them covers.

Method: each triangle's bounding box is cut into patches of K x K pixels; the first patch of every triangle is drawn in one
scatter, the further patches of large triangles in a loop over a compacted list, so small triangles cost one patch and a
triangle that fills the image still comes out whole.
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
    """Twice the signed area of (a, b, p); positive where p lies right of a->b with y down."""
    return (b[..., 0] - a[..., 0]) * (py - a[..., 1]) - (b[..., 1] - a[..., 1]) * (px - a[..., 0])


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


def _patch_fragments(corners: Array, boxes: _Boxes, tri: Array, patch: Array, size: tuple[int, int]) -> tuple[Array, Array]:
    """Flat pixel ids and inverse depths (n, K*K) of patch number `patch` of triangle `tri`; missed pixels get id h*w."""
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
    """Flat ids (h*w,) of the nearest triangle per pixel, -1 for none. Two passes: nearest inverse depth, then its owner."""
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
        patch = jnp.where(item < n_further, item - before + 1, boxes.patches[tri])  # past the end: a patch that draws nothing
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
    corners = vertices[faces[jnp.maximum(triangle, 0)]]
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
    faces: np.ndarray,
    neighbours: np.ndarray,
    *,
    max_pairs: int | None = None,
) -> Float[Array, "h w c"]:
    """Blend pixels across silhouette edges in the share that the nearer surface covers: smooth in the vertices.

    For two neighbouring pixels that show different triangles, the edge of the nearer triangle that crosses the line between
    the two centres is found; if it is a silhouette (border of the mesh, or its two triangles turn opposite ways), the pixel
    whose half the edge cuts takes that share of the other's colour (Laine et al. 2020, section 3.6).
    neighbours: `edge_neighbours(faces)`. max_pairs: pairs that can be blended, default 16 (height + width); more stay as
    they are.
    """
    height, width, channels = image.shape
    flat = image.reshape(-1, channels)
    result = flat
    limit = max_pairs or 16 * (height + width)
    triangle, depth = fragments.triangle, jnp.where(fragments.triangle >= 0, fragments.depth, jnp.inf)
    for axis in (0, 1):
        a = triangle[:-1] if axis == 0 else triangle[:, :-1]
        b = triangle[1:] if axis == 0 else triangle[:, 1:]
        rows, columns = jnp.nonzero(a != b, size=limit // 2, fill_value=-1)
        alive = rows >= 0
        p = jnp.where(alive, rows * width + columns, 0)
        q = jnp.where(alive, p + (width if axis == 0 else 1), 0)
        share, from_q = _edge_share(p, q, axis, triangle, depth, vertices, faces, neighbours, width)
        share = jnp.where(alive, share, 0.0)
        # share > 0: pixel p shows `share` of q's colour; share < 0: pixel q shows -share of p's
        del from_q
        mix_p = jnp.maximum(share, 0.0)[:, None] * (flat[q] - flat[p])
        mix_q = jnp.maximum(-share, 0.0)[:, None] * (flat[p] - flat[q])
        result = result.at[p].add(mix_p).at[q].add(mix_q)
    return result.reshape(image.shape)


def _edge_share(
    p: Array, q: Array, axis: int, triangle: Array, depth: Array, vertices: Array, faces: np.ndarray, neighbours: np.ndarray, width: int
) -> tuple[Array, Array]:
    """Signed share of a pixel pair (see `antialias`), 0 where no silhouette edge crosses between the two centres."""
    tri_flat, depth_flat = triangle.reshape(-1), depth.reshape(-1)
    q_near = depth_flat[q] < depth_flat[p]
    near = jnp.maximum(jnp.where(q_near, tri_flat[q], tri_flat[p]), 0)
    corners = vertices[jnp.asarray(faces)[near], :2]
    far_id = jnp.asarray(neighbours)[near]
    far = vertices[jnp.maximum(far_id, 0), :2]
    centre = jnp.stack([p % width, p // width], axis=-1) + 0.5
    along, across = (1, 0) if axis == 0 else (0, 1)
    crossing = jnp.full(p.shape, jnp.inf)
    for e in range(3):
        s, t, own = corners[:, (e + 1) % 3], corners[:, (e + 2) % 3], corners[:, e]
        side_own = _edge(s, t, own[:, 0], own[:, 1])
        side_far = _edge(s, t, far[:, e, 0], far[:, e, 1])
        silhouette = (far_id[:, e] < 0) | (side_own * side_far > 0)
        ds, dt = s[:, across] - centre[:, across], t[:, across] - centre[:, across]
        straddles = (ds <= 0) != (dt <= 0)
        span = jnp.where(straddles, dt - ds, 1.0)
        at = s[:, along] - (t[:, along] - s[:, along]) * ds / span - centre[:, along]
        hit = silhouette & straddles & (at >= 0) & (at <= 1)
        crossing = jnp.where(hit & ~jnp.isfinite(crossing), at, crossing)
    found = jnp.isfinite(crossing)
    at = jnp.where(found, crossing, 0.5)
    # nearer surface at p covers [0, at] of the way to q; at q it covers [at, 1]: in both, `0.5 - at` is q's share in p
    return jnp.where(found, 0.5 - at, 0.0), q_near
