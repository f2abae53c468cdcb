"""Texture lookup: row 0 is the top of the image, UV (0, 0) its bottom left; texel centres at half-integers."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def sample_bilinear(image: Float[Array, "h w c"], xy: Float[Array, "*n 2"]) -> Float[Array, "*n c"]:
    """Bilinear values at pixel coordinates (centre of the top-left pixel at (0.5, 0.5)); clamped at the border.

    Differentiable in the image and, inside it, in the coordinates.
    """
    height, width = image.shape[:2]
    x = jnp.clip(xy[..., 0] - 0.5, 0.0, width - 1.0)
    y = jnp.clip(xy[..., 1] - 0.5, 0.0, height - 1.0)
    x0 = jnp.clip(jnp.floor(x), 0, max(width - 2, 0)).astype(jnp.int32)
    y0 = jnp.clip(jnp.floor(y), 0, max(height - 2, 0)).astype(jnp.int32)
    x1, y1 = jnp.minimum(x0 + 1, width - 1), jnp.minimum(y0 + 1, height - 1)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    flat = image.reshape(height * width, -1)
    top = flat[y0 * width + x0] * (1 - fx) + flat[y0 * width + x1] * fx
    bottom = flat[y1 * width + x0] * (1 - fx) + flat[y1 * width + x1] * fx
    return top * (1 - fy) + bottom * fy


def sample_texture(texture: Float[Array, "h w c"], uv: Float[Array, "*n 2"]) -> Float[Array, "*n c"]:
    """Bilinear values of a texture at UV coordinates in [0, 1]."""
    height, width = texture.shape[:2]
    return sample_bilinear(texture, jnp.stack([uv[..., 0] * width, (1 - uv[..., 1]) * height], axis=-1))
