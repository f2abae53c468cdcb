"""Landmark terms: how far a head's points are from where they were seen, in millimetres on the face."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

FACE_RADIUS_MM = 58.0
"""Root-mean-square distance of MediaPipe's face points from their centre on a mean head, seen from the front."""


def face_radius_px(pixels: Float[np.ndarray, "f n 2"]) -> Float[np.ndarray, "f"]:
    """Root-mean-square distance (px) of each frame's points from their centre, NaN-aware."""
    centred = pixels - np.nanmean(pixels, axis=1, keepdims=True)
    return np.sqrt(np.nanmean(np.sum(centred**2, axis=2), axis=1))


def robust(squared: Float[Array, "*n"], scale: float) -> Float[Array, "*n"]:
    """Squared residuals, growing linearly beyond `scale` (pseudo-Huber): 2 s² (sqrt(1 + x / s²) - 1) -> x near 0."""
    return 2 * squared / (jnp.sqrt(1 + squared / scale**2) + 1)  # not the form with `- 1`, which loses small residuals


def landmark_loss(
    pixels: Float[Array, "n 2"],
    target: Float[Array, "n 2"],
    weights: Float[Array, "n"],
    mm_per_px: Float[Array, ""],
    *,
    scale_mm: float = 3.0,
) -> Float[Array, ""]:
    """Weighted mean of robust squared reprojection errors (mm² on the face). `target` may be NaN where weight is 0."""
    target = jnp.where(weights[:, None] > 0, target, jax.lax.stop_gradient(pixels))
    squared = jnp.sum(((pixels - target) * mm_per_px) ** 2, axis=-1)
    return jnp.sum(weights * robust(squared, scale_mm)) / jnp.maximum(jnp.sum(weights), 1e-6)


def closure_loss(
    pixels: Float[Array, "n 2"],
    target: Float[Array, "n 2"],
    weights: Float[Array, "n"],
    pairs: np.ndarray,
    mm_per_px: Float[Array, ""],
    *,
    scale_mm: float = 3.0,
) -> Float[Array, ""]:
    """Mean robust squared error (mm²) of the vectors between paired points, such as upper and lower lip.

    pairs: (k, 2) ids. It keeps a mouth that was seen closed shut even where the points themselves are biased.
    """
    both = weights[pairs[:, 0]] * weights[pairs[:, 1]]
    target = jnp.where(weights[:, None] > 0, target, jax.lax.stop_gradient(pixels))
    gap = pixels[pairs[:, 0]] - pixels[pairs[:, 1]] - (target[pairs[:, 0]] - target[pairs[:, 1]])
    squared = jnp.sum((gap * mm_per_px) ** 2, axis=-1)
    return jnp.sum(both * robust(squared, scale_mm)) / jnp.maximum(jnp.sum(both), 1e-6)
