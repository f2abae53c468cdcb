"""Light from files: environment maps (.hdr, .exr) and spherical harmonics (.npy, .npz, .json, .txt).

Maps are read as panoramas seen from where the camera stands: the top row is up, the middle is straight ahead of the
camera, and columns run to its right; see `facejax.renderers.lights.Environment` and `docs/relighting.md`.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from facejax.data.files import atomic_write
from facejax.geometry.arrays import DAMAGE, open_npz, read_npy
from facejax.geometry.errors import InputError
from facejax.renderers.lights import Environment

MAP_SUFFIXES = (".hdr", ".exr")
"""Files that `load_environment` reads."""
SH_SUFFIXES = (".npy", ".npz", ".json", ".txt")
"""Files that `load_sh` reads."""

_MAX_BANDS = 9
_SH_NAMES = ("sh", "light", "coefficients")  # under which an .npz or .json may hold them
_NEGATIVE_SHARE = 0.01  # of all light: what resampling filters leave below zero is less


def load_environment(path: Path | str, *, max_height: int | None = 256) -> Environment:
    """An environment map from a Radiance .hdr or OpenEXR .exr file, linear RGB.

    max_height: larger maps are averaged down to this many rows, which keeps their energy; None keeps every pixel.
    Small negative values, which resampling leaves, become 0. Raises `InputError` for a file that is missing, of another
    kind, damaged, not twice as wide as high, not finite, negative or black.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in MAP_SUFFIXES:
        raise InputError(
            f"Expected an environment map as .hdr or .exr, got {path.name!r}: convert it, keeping linear values."
        )
    if not path.is_file():
        raise InputError(f"No environment map at {path}: check the path.")
    radiance = _read_map(path)
    height, width = radiance.shape[:2]
    if width != 2 * height:
        raise InputError(
            f"{path} is {width} x {height} pixels, but a latitude-longitude map is twice as wide as high: "
            "convert it from its cube or mirror-ball layout first."
        )
    check_radiance(radiance, str(path))
    environment = Environment(radiance=jnp.asarray(np.maximum(radiance, 0)))
    if max_height is not None and height > max_height:
        environment = resize_environment(environment, max_height)
    return environment


def check_radiance(radiance: Float[np.ndarray, "h w 3"], name: str) -> None:
    """Refuses light that is not finite, negative beyond what resampling leaves, or black everywhere."""
    bad = int((~np.isfinite(radiance)).any(axis=-1).sum())
    if bad:
        raise InputError(f"{name} has {bad} pixels that are infinite or not a number: clamp its brightest values.")
    below, total = -float(np.minimum(radiance, 0).sum()), float(np.maximum(radiance, 0).sum())
    if below > _NEGATIVE_SHARE * total:
        raise InputError(f"{name} has negative radiance, {below / max(total, 1e-9):.0%} of its light: expected none.")
    if total <= 0:
        raise InputError(f"{name} is black everywhere: there is no light in it.")


def _read_map(path: Path) -> Float32[np.ndarray, "h w 3"]:
    import mitsuba as mi

    if mi.variant() is None:  # a variant that a caller has set reads pictures as well, and stays
        mi.set_variant("scalar_rgb")
    try:
        bitmap = mi.Bitmap(str(path))
        if bitmap.pixel_format() == mi.Bitmap.PixelFormat.MultiChannel:
            raise InputError(f"{path} holds several layers or channels, expected one RGB picture: export it flat.")
        # Mitsuba takes half and float as linear, and so leaves them
        rgb = bitmap.convert(mi.Bitmap.PixelFormat.RGB, mi.Struct.Type.Float32, srgb_gamma=False)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{path} cannot be read as an environment map: it is damaged or of another kind.") from error
    return np.array(rgb, dtype=np.float32)


def save_environment(path: Path | str, environment: Environment) -> None:
    """Write a map that `load_environment` reads back: .exr (16-bit floats) or .hdr (RGBE, within 1 %).

    Whole or not at all. Raises `InputError` for another suffix and for what `load_environment` would refuse.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in MAP_SUFFIXES:
        raise InputError(f"An environment map is written as .hdr or .exr, not {path.name!r}.")
    radiance = np.asarray(environment.radiance, np.float32)
    if radiance.shape[1] != 2 * radiance.shape[0]:
        raise InputError(f"A map in a file is twice as wide as high, this one is {radiance.shape[1::-1]}: resize it.")
    check_radiance(radiance, "The environment")
    import mitsuba as mi

    if mi.variant() is None:
        mi.set_variant("scalar_rgb")
    bitmap = mi.Bitmap(np.array(radiance, order="C"))  # a copy: Mitsuba takes no read-only array
    if path.suffix.lower() == ".exr" and radiance.max() < 65_000:  # the largest 16-bit float
        bitmap = bitmap.convert(mi.Bitmap.PixelFormat.RGB, mi.Struct.Type.Float16, srgb_gamma=False)
    with atomic_write(path) as temporary:
        bitmap.write(str(temporary))


def resize_environment(environment: Environment, height: int) -> Environment:
    """The same light as a map of (height, 2 height): each pixel is the mean over its solid angle, so energy stays.

    Making a map larger repeats its pixels; it is not interpolated.
    """
    if height < 1:
        raise InputError(f"A map needs at least one row, not {height}.")
    radiance = np.asarray(environment.radiance, np.float64)
    rows, columns = radiance.shape[:2]
    # over latitude the solid angle of a band is the difference of cosines at its edges
    down = _overlap(np.cos(np.linspace(0, np.pi, rows + 1)), np.cos(np.linspace(0, np.pi, height + 1)))
    right = _overlap(np.linspace(1, 0, columns + 1), np.linspace(1, 0, 2 * height + 1))
    mean = np.einsum("ab,bcj->acj", down, radiance)
    return Environment(radiance=jnp.asarray(np.einsum("dc,acj->adj", right, mean), dtype=jnp.float32))


def _overlap(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """(new cells, old cells): the share of each new cell that each old one makes up; edges descend."""
    top = np.minimum(new[:-1, None], old[None, :-1])
    bottom = np.maximum(new[1:, None], old[None, 1:])
    return np.maximum(top - bottom, 0) / (new[:-1] - new[1:])[:, None]


# -- spherical harmonics ----------------------------------------------------------------------------------------------


def load_sh(path: Path | str) -> Float[Array, "b 3"]:
    """Coefficients of incoming radiance, (bands squared, 3), camera frame, in facejax's convention.

    .npy and .txt hold the table itself, .txt one line per coefficient (red, green, blue); .npz and .json may also hold
    it under the name `sh`, `light` or `coefficients`. The convention is that of `docs/conventions.md`: orthonormal,
    index l*l + l + m, no Condon-Shortley phase. Raises `InputError`, naming what came, for anything else.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in SH_SUFFIXES:
        raise InputError(f"Expected spherical harmonics as .npy, .npz, .json or .txt, got {path.name!r}.")
    if not path.is_file():
        raise InputError(f"No file of spherical harmonics at {path}: check the path.")
    try:
        raw = _read_table(path)
        table = np.asarray(raw, dtype=np.float32)
    except (*DAMAGE, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} cannot be read as a table of numbers: expected (bands squared, 3) of them."
        ) from error
    return jnp.asarray(check_sh(table, str(path)))


def check_sh(table: np.ndarray, name: str) -> Float32[np.ndarray, "b 3"]:
    """The table, if it is a light of 1 to 9 bands that shines at all."""
    counts = ", ".join(str(n * n) for n in range(1, _MAX_BANDS + 1))
    if table.ndim != 2 or table.shape[1] != 3:
        raise InputError(f"{name} must hold one row of red, green and blue per coefficient, got shape {table.shape}.")
    if math.isqrt(len(table)) ** 2 != len(table) or not 1 <= len(table) <= _MAX_BANDS**2:
        raise InputError(f"{name} must hold bands squared coefficients ({counts}), got {len(table)}.")
    if not np.isfinite(table).all():
        raise InputError(f"{name} has coefficients that are infinite or not a number.")
    if table[0].max() <= 0:
        raise InputError(f"{name} has no light on average: its first row, the mean, must be positive.")
    return table


def _read_table(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return np.loadtxt(path, ndmin=2, delimiter="," if "," in path.read_text(encoding="utf-8") else None)
    if suffix == ".json":
        held = json.loads(path.read_text(encoding="utf-8"))
        return _named(held, path) if isinstance(held, Mapping) else held
    if suffix == ".npy":
        return read_npy(path)
    with open_npz(path) as file:
        held = {name: file[name] for name in file.files}
    return _named(held, path)


def _named(held: Mapping[str, Any], path: Path) -> Any:
    for name in _SH_NAMES:
        if name in held:
            return held[name]
    if len(held) == 1:
        return next(iter(held.values()))
    raise InputError(f"{path} holds {', '.join(held)}: expected the coefficients under the name `sh`.")
