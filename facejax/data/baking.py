"""A head's colour as a picture over its UV chart, for programs that take no colours at vertices."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int

from facejax.data.results import TrackResult
from facejax.renderers.texture import sample_texture
from facejax.renderers.uv import fill_outside, rasterise_chart

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
