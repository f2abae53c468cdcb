"""Differences of colours as people see them, and of skin tones: from linear sRGB under D65, on the host in float64."""

import dataclasses

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from facejax.geometry.errors import InputError
from facejax.models.skin import typology_angle

_LINEAR_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)

TONES = {
    "very light": (55.0, np.inf), "light": (41.0, 55.0), "intermediate": (28.0, 41.0), "tan": (10.0, 28.0),
    "brown": (-30.0, 10.0), "dark": (-np.inf, -30.0),
}  # fmt: skip
"""Skin tones by individual typology angle, degrees: above the first number, up to the second (Chardon 1991)."""


def linear_to_lab(linear: Float[ArrayLike, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """CIELAB (L*, a*, b*) under D65 of linear sRGB, white being (1, 1, 1); L* is 0 to 100."""
    xyz = np.asarray(linear, np.float64) @ _LINEAR_TO_XYZ.T / _LINEAR_TO_XYZ.sum(axis=1)
    f = np.where(xyz > 216 / 24389, np.cbrt(np.maximum(xyz, 1e-12)), (24389 / 27 * xyz + 16) / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def delta_e_1976(lab: Float[ArrayLike, "*#n 3"], reference: Float[ArrayLike, "*#n 3"]) -> Float[np.ndarray, "*#n"]:
    """CIE 1976 colour difference: the distance in CIELAB; about 2.3 is just noticed."""
    return np.linalg.norm(np.asarray(lab, np.float64) - np.asarray(reference, np.float64), axis=-1)


def delta_e_2000(lab: Float[ArrayLike, "*#n 3"], reference: Float[ArrayLike, "*#n 3"]) -> Float[np.ndarray, "*#n"]:
    """CIEDE2000 colour difference of CIELAB colours, all weights 1 (Sharma, Wu and Dalal 2005, eq. 2 to 22); symmetric.

    Discontinuous, as published, where hues are opposite.
    """
    l1, a1, b1 = np.moveaxis(np.asarray(lab, np.float64), -1, 0)
    l2, a2, b2 = np.moveaxis(np.asarray(reference, np.float64), -1, 0)

    def bend(chroma: np.ndarray) -> np.ndarray:
        return np.sqrt(chroma**7 / (chroma**7 + 25.0**7))

    g = 0.5 * (1 - bend((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2))
    a1, a2 = (1 + g) * a1, (1 + g) * a2
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    grey = c1 * c2 == 0
    turn = h2 - h1
    turn = np.where(grey, 0.0, turn - 360 * (turn > 180) + 360 * (turn < -180))
    d_light, d_chroma = l2 - l1, c2 - c1
    d_hue = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))

    light, chroma, total = (l1 + l2) / 2, (c1 + c2) / 2, h1 + h2
    across = np.where(total < 360, total + 360, total - 360)
    hue = np.where(grey, total, np.where(np.abs(h1 - h2) <= 180, total, across) / 2)
    t = (
        1
        - 0.17 * np.cos(np.radians(hue - 30))
        + 0.24 * np.cos(np.radians(2 * hue))
        + 0.32 * np.cos(np.radians(3 * hue + 6))
        - 0.20 * np.cos(np.radians(4 * hue - 63))
    )
    s_light = 1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2)
    s_chroma, s_hue = 1 + 0.045 * chroma, 1 + 0.015 * chroma * t
    rotation = -2 * bend(chroma) * np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2))))
    by_light, by_chroma, by_hue = d_light / s_light, d_chroma / s_chroma, d_hue / s_hue
    square = by_light**2 + by_chroma**2 + by_hue**2 + rotation * by_chroma * by_hue
    return np.asarray(np.sqrt(np.maximum(square, 0.0)))


@dataclasses.dataclass(frozen=True)
class ToneError:
    """The error of the individual typology angle over skin of one tone."""

    count: int
    error_deg: float
    """Mean of absolute differences."""
    shift_deg: float
    """Mean of differences: above 0, skin comes out lighter than it is."""


@dataclasses.dataclass(frozen=True)
class ToneErrors:
    """Errors by tone, and how unlike they are."""

    by_tone: dict[str, ToneError]
    """Of the tones that there was skin of, from light to dark."""
    error_deg: float
    """Mean over tones, all alike, however many people had each."""
    worst_over_best: float
    """Largest error of a tone over the smallest: 1 is fair, also when all are 0; infinite if only the smallest is 0."""


def tone_of(angle_deg: float) -> str:
    """The name in `TONES` of an individual typology angle, degrees. Raises `InputError` for NaN."""
    for name, (low, high) in TONES.items():
        if low < angle_deg <= high:
            return name
    raise InputError(f"A typology angle is a number of degrees, got {angle_deg}.")


def tone_errors(albedo: Float[ArrayLike, "n 3"], reference: Float[ArrayLike, "n 3"]) -> ToneErrors:
    """Errors of skin colours by the tone of the reference: linear sRGB albedo of n people (their means), or texels.

    Angles differ by the short way round. Raises `InputError` for other shapes, for none, and for NaN.
    """
    given, wanted = np.asarray(albedo, np.float64), np.asarray(reference, np.float64)
    if given.shape != wanted.shape or given.ndim != 2 or given.shape[1] != 3 or not len(given):
        raise InputError(
            f"Skin colours to compare are (n, 3) each, of at least one person, got {given.shape} and {wanted.shape}."
        )
    if not (np.isfinite(given).all() and np.isfinite(wanted).all()):
        raise InputError("Skin colours must be finite linear sRGB: take means over valid texels only.")
    truth = typology_angle(wanted)
    shift = (typology_angle(given) - truth + 180) % 360 - 180
    names = np.array([tone_of(angle) for angle in truth])
    by_tone = {}
    for name in TONES:
        own = shift[names == name]
        if own.size:
            by_tone[name] = ToneError(int(own.size), float(np.abs(own).mean()), float(own.mean()))
    errors = [tone.error_deg for tone in by_tone.values()]
    best, worst = min(errors), max(errors)
    return ToneErrors(
        by_tone=by_tone,
        error_deg=float(np.mean(errors)),
        worst_over_best=1.0 if worst == best else float("inf") if best == 0 else worst / best,
    )
