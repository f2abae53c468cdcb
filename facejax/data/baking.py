"""A head's colour as a picture over its UV chart, for programs that take no colours at vertices."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from facejax.data.results import TrackResult
from facejax.renderers.texture import sample_texture

_sample = jax.jit(sample_texture)


def bake_albedo(
    result: TrackResult,
    size: int,
    *,
    triangles: Int[np.ndarray, "n"] | None = None,
    window: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
) -> Float32[np.ndarray, "size size 3"]:
    """Albedo times texture as one picture over UV, linear, clipped to [0, 1]; row 0 is the top (v = 1).

    triangles: ids of those to draw, by default all. window: the part of the chart (u0, v0, u1, v1) that fills the
    picture. Texels outside the chart continue the nearest colours, so that filtering finds no seam.
    """
    triangles = np.arange(len(result.faces)) if triangles is None else triangles
    corners = result.uv[result.uv_faces[triangles]]
    scale = size / np.array([window[2] - window[0], window[3] - window[1]])
    xy = (corners - np.array(window[:2])) * scale
    xy[..., 1] = size - xy[..., 1]
    triangle, weights = rasterise_chart(xy, size)
    covered = triangle >= 0
    albedo = result.albedo[result.faces[triangles]]
    uv = np.stack(
        [
            np.broadcast_to(window[0] + (np.arange(size) + 0.5) / scale[0], (size, size)),
            np.broadcast_to(window[3] - (np.arange(size)[:, None] + 0.5) / scale[1], (size, size)),
        ],
        axis=-1,
    )
    picture = np.array(_sample(jnp.asarray(result.texture), jnp.asarray(uv, dtype=jnp.float32)))
    picture[covered] *= np.einsum("nc,ncj->nj", weights[covered], albedo[triangle[covered]])
    return fill_outside(np.clip(picture, 0, 1), covered)


def rasterise_chart(
    xy: Float[np.ndarray, "t 3 2"], size: int
) -> tuple[Int[np.ndarray, "size size"], Float32[np.ndarray, "size size 3"]]:
    """Which triangle of a flat chart lies at each texel's centre (-1: none), and the barycentric weights there.

    xy: corners in texels, y down, the centre of the top-left texel at (0.5, 0.5). Where triangles overlap, one wins.
    """
    triangle = np.full(size * size, -1, dtype=np.int64)
    weights = np.zeros((size * size, 3), dtype=np.float32)
    low = np.clip(np.ceil(xy.min(axis=1) - 0.5), 0, size).astype(int)
    high = np.clip(np.floor(xy.max(axis=1) - 0.5), -1, size - 1).astype(int)
    extent = (high - low + 1).max(axis=1) * np.all(high >= low, axis=1)
    level = np.ceil(np.log2(np.maximum(extent, 1))).astype(int)  # triangles are drawn in groups of like size
    a, b, c = xy[:, 0], xy[:, 1], xy[:, 2]
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    for power in np.unique(level[extent > 0]):
        side = 1 << int(power)
        dy, dx = np.divmod(np.arange(side * side), side)
        group = np.flatnonzero((level == power) & (extent > 0) & (np.abs(area) > 1e-12))
        for ids in np.array_split(group, max(1, len(group) * side * side // (1 << 21))):
            column, row = low[ids, :1] + dx, low[ids, 1:] + dy
            px, py = column + 0.5, row + 0.5
            w = [
                ((q[ids, :1] - p[ids, :1]) * (py - p[ids, 1:]) - (q[ids, 1:] - p[ids, 1:]) * (px - p[ids, :1]))
                / area[ids, None]
                for p, q in ((b, c), (c, a), (a, b))
            ]
            inside = (np.minimum(np.minimum(w[0], w[1]), w[2]) >= -1e-6) & (column < size) & (row < size)
            flat = (row * size + column)[inside]
            triangle[flat] = np.broadcast_to(ids[:, None], inside.shape)[inside]
            weights[flat] = np.stack(w, axis=-1)[inside]
    return triangle.reshape(size, size), weights.reshape(size, size, 3)


def fill_outside(picture: Float[np.ndarray, "h w 3"], covered: Bool[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w 3"]:
    """Colours for texels that no triangle covers: the mean of covered ones in the smallest block that has any.

    Averages of 2 x 2 blocks go up a pyramid, and what is empty is filled from above on the way down (pull and push).
    """
    if not covered.any() or covered.all():
        return picture.astype(np.float32)
    height, width = covered.shape
    colour = np.pad(picture * covered[..., None], ((0, height % 2), (0, width % 2), (0, 0)))
    weight = np.pad(covered.astype(np.float32), ((0, height % 2), (0, width % 2)))
    blocks = weight.reshape(weight.shape[0] // 2, 2, -1, 2).sum(axis=(1, 3))
    sums = colour.reshape(blocks.shape[0], 2, blocks.shape[1], 2, 3).sum(axis=(1, 3))
    coarse = fill_outside(sums / np.maximum(blocks, 1)[..., None], blocks > 0)
    filled = coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return np.where(covered[..., None], picture, filled).astype(np.float32)
