"""The sRGB transfer curve: linear inside, sRGB where a file is read or written.

Both functions take numpy or JAX arrays and answer in kind.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LINEAR_KNEE = 0.0031308
_SRGB_KNEE = 0.04045


def _namespace(x: Any) -> Any:
    return jnp if isinstance(x, jax.Array) else np


def linear_to_srgb(linear: Any) -> Any:
    """Linear radiance to sRGB values by the piecewise curve of IEC 61966-2-1; [0, 1] maps to [0, 1], any shape.

    Values above 1 follow the power law, values below 0 the straight piece, so nothing becomes NaN, nor does a gradient.
    """
    xp = _namespace(linear)
    # the power law is evaluated above the knee only: its derivative at 0 is infinite and would leak through `where`
    power = 1.055 * xp.maximum(linear, _LINEAR_KNEE) ** (1 / 2.4) - 0.055
    return xp.where(linear <= _LINEAR_KNEE, 12.92 * linear, power)


def srgb_to_linear(srgb: Any) -> Any:
    """Inverse of `linear_to_srgb`: sRGB values, [0, 1], to linear radiance."""
    xp = _namespace(srgb)
    power = ((xp.maximum(srgb, _SRGB_KNEE) + 0.055) / 1.055) ** 2.4
    return xp.where(srgb <= _SRGB_KNEE, srgb / 12.92, power)


def luminance(linear: Any) -> Any:
    """Relative luminance of linear sRGB (ITU-R BT.709): (..., 3) to (...)."""
    return linear @ np.array([0.2126, 0.7152, 0.0722], np.float32)


def srgb_bytes_to_linear(image: np.ndarray) -> np.ndarray:
    """8-bit sRGB to linear float32 by table: what a decoded picture or video frame is."""
    table = srgb_to_linear(np.arange(256, dtype=np.float32) / np.float32(255)).astype(np.float32)
    return table[image]


def linear_to_srgb_bytes(linear: Any) -> np.ndarray:
    """Linear radiance to 8-bit sRGB, clipped to [0, 1] and rounded; NaN becomes 0."""
    srgb = linear_to_srgb(np.clip(np.nan_to_num(np.asarray(linear, np.float32)), 0, 1))
    return (srgb * np.float32(255) + np.float32(0.5)).astype(np.uint8)
