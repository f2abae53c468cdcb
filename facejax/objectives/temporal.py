"""Smoothness in time, as part of an objective."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from facejax.objectives.landmarks import robust


def robust_acceleration(values: Float[Array, "f *n"], weights: Float[Array, "f"], scale: float) -> Float[Array, ""]:
    """Sum over time and components of pseudo-Huber second differences, each weighted by its three frames' product.

    Noise below `scale` is smoothed, a sudden true change is let through.
    """
    second = values[2:] - 2 * values[1:-1] + values[:-2]
    weight = weights[2:] * weights[1:-1] * weights[:-2]
    return jnp.sum(weight.reshape((-1,) + (1,) * (values.ndim - 1)) * robust(second**2, scale))


def change(values: Float[Array | np.ndarray, "f *n"], weights: Float[Array, "f"]) -> Float[Array, ""]:
    """Sum over time and components of squared first differences, weighted by both frames."""
    first = values[1:] - values[:-1]
    return jnp.sum((weights[1:] * weights[:-1]).reshape((-1,) + (1,) * (values.ndim - 1)) * first**2)
