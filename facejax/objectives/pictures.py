"""Whole pictures compared: what is drawn against what was seen (Chen et al. 2021, eq. 7 and 8).

Residuals are display values on a scale of 0 to 255, averaged over the head's pixels where the paper sums: weights then
do not depend on resolution.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def laplacian(image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    """Sum of the four neighbours minus four times the pixel; borders repeat. Zero on constants and slopes."""
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    return padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * image


def inside(mask: Float[Array, "h w"]) -> Float[Array, "h w"]:
    """1 where a pixel and all its neighbours are wholly covered."""
    whole = (mask > 0.999).astype(mask.dtype)
    return -jax.lax.reduce_window(-whole, -jnp.inf, jax.lax.max, (3, 3), (1, 1), "SAME")


def picture_loss(
    drawn: Float[Array, "h w 3"], seen: Float[Array, "h w 3"], mask: Float[Array, "h w"], laplacian_weight: float
) -> Float[Array, ""]:
    """Eq. (7) of one frame: mean absolute difference over the mask, and that of the difference's Laplacian.

    drawn, seen: display values in [0, 1]; where the picture is burnt out, brighter is no error. What is returned counts
    from 0 to 255, mean over pixels and colours.
    """
    burnt_out = (seen > 0.995) & (drawn > seen)
    residual = 255 * jnp.where(burnt_out, 0.0, seen - drawn)
    total = jnp.maximum(3 * jnp.sum(mask), 1.0)
    first = jnp.sum(mask[..., None] * jnp.abs(residual)) / total
    if laplacian_weight == 0:
        return first
    return first + laplacian_weight * jnp.sum(mask[..., None] * jnp.abs(laplacian(residual))) / total


def flow_loss(
    pixels: Float[Array, "v 2"], target: Float[Array, "v 2"], weight: Float[Array, "v"], side_px: int
) -> Float[Array, ""]:
    """Eq. (8) of one frame: mean squared distance of projected vertices from where flow puts them.

    side_px: of the crop; distances are taken as if it were 256, so that the weight serves every size.
    """
    squared = jnp.sum((256.0 / side_px * (pixels - target)) ** 2, axis=-1)
    return jnp.sum(weight * squared) / jnp.maximum(jnp.sum(weight), 1.0)
