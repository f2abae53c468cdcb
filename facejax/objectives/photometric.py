"""Photometric terms: how far a lit head is from the picture, compared in display values, where the eye compares."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from facejax.objectives.landmarks import robust


def display(linear: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Linear radiance to display values by a power of 1 / 2.2: like sRGB, with a bounded derivative at black."""
    return jnp.maximum(linear, 1e-3) ** (1 / 2.2)


def photometric_loss(
    radiance: Float[Array, "n 3"], observed: Float[Array, "n 3"], weights: Float[Array, "n"], *, scale: float = 0.05
) -> Float[Array, ""]:
    """Weighted mean of robust squared differences in display values; `observed` is in display values already."""
    squared = jnp.sum((display(radiance) - observed) ** 2, axis=-1)
    return jnp.sum(weights * robust(squared, scale)) / jnp.maximum(jnp.sum(weights), 1e-6)
