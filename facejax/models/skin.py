"""A prior on skin colour from the physics of its pigments: a few directions of melanin, haemoglobin and hair.

Nothing here is learned from anyone's scans. Reflectance is that of a two-layer skin: an epidermis that absorbs by
melanin over a dermis that scatters and absorbs by blood, seen by a camera with sRGB's primaries under D65. What is
linear in the prior is the natural logarithm of linear albedo, where pigments add up (Beer and Lambert).

Constants and where they come from (facts, tabulated):

- Melanosomes absorb 6.6e11 wavelength^-3.33 per cm (nm), the bloodless dermis 0.244 + 85.3 exp(-(wavelength - 154) /
  66.2) per cm; the dermis scatters 46 (wavelength / 500)^-1.421 per cm (reduced): Jacques, Skin Optics (OMLC, 1998)
  and Optical Properties of Biological Tissues, Phys. Med. Biol. 58 (2013).
- Molar extinction of oxy- and deoxyhaemoglobin: Prahl's tabulation (OMLC, 1998); 150 g of it per litre of blood.
- Blood is packed in vessels, which hide part of it: the correction (1 - exp(-d)) / d of van Veen et al. (2002).
- A dermis is a half-space of Kubelka and Munk, K = 2 mu_a, S = 3/4 mu_s'.
- CIE 1931 colour matching: the fit of Wyman, Sloan and Shirley, JCGT 2 (2013); D65: CIE.

Paths through the epidermis are taken as exponentially distributed. That, vessels of 8 um, 2.4 % blood, 0.9 of the
dermis's own absorption and 2 % returned above the melanin are our choices, fitted to six colours of skin, from very
light (L* 71, a* 9, b* 16) to dark (37, 10.5, 14), which the physics meets within 1.5 units. Those six are plausible
round numbers, not measurements of anyone, and the straight line that the prior uses is up to 4 units of b* too yellow
at the dark end: check it against a spectrophotometric data set before relying on absolute colours.
"""

from collections.abc import Mapping

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from facejax.geometry.errors import InputError

SKIN_MODES = (
    "melanin", "haemoglobin", "cheek_redness", "nose_ear_redness", "lip_colour", "beard", "brow_hair", "under_eye",
    "forehead_tan", "scalp_hair",
)  # fmt: skip
"""What each direction of `skin_prior` adds when its coefficient is positive; all but the first two are regional."""

_REGIONS = (
    "skin",
    "neck",
    "scalp",
    "ears",
    "lips",
    "nose",
    "brows",
    "eye_sockets",
    "eyeballs",
    "iris",
    "teeth",
    "gums",
)

_MATERIALS = {
    "sclera": (0.66, 0.60, 0.56),
    "iris": (0.13, 0.085, 0.055),
    "pupil": (0.01, 0.01, 0.01),
    "teeth": (0.62, 0.56, 0.45),
    "gums": (0.40, 0.15, 0.14),
    "mouth": (0.30, 0.10, 0.09),
    "eye_socket": (0.45, 0.24, 0.20),
    "hair": (0.035, 0.026, 0.019),
}

_WAVELENGTH = np.arange(400.0, 701.0, 10.0)
_OXY = np.array([
    266232, 466840, 480360, 246072, 102580, 62816, 44480, 33209.2, 26629.2, 23684.4, 20932.8, 20035.2, 24202.4, 39956.8,
    53236, 43016, 32613.2, 44496, 50104, 14400.8, 3200, 1506, 942, 610, 442, 368, 319.6, 294, 277.6, 276, 290,
])  # fmt: skip
_DEOXY = np.array([
    223296, 303956, 407560, 528600, 413280, 103292, 23388.8, 16156.4, 14550, 16684, 20862, 25773.6, 31589.6, 39036.4,
    46592, 53412, 53788, 45072, 37020, 28324.4, 14677.2, 9443.6, 6509.6, 5148.8, 4345.2, 3750.12, 3226.56, 2795.12,
    2407.92, 2051.96, 1794.28,
])  # fmt: skip
_D65 = np.array([
    82.75, 91.49, 93.43, 86.68, 104.86, 117.01, 117.81, 114.86, 115.92, 108.81, 109.35, 107.80, 104.79, 107.69, 104.41,
    104.05, 100.00, 96.33, 95.79, 88.69, 90.01, 89.60, 87.70, 83.29, 83.70, 80.03, 80.21, 82.28, 78.28, 69.72, 71.61,
])  # fmt: skip
_XYZ_TO_RGB = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])

_BLOOD = 0.024
_LIGHTEST, _DARKEST = 0.004, 0.58
"""Melanin at -2.5 and +2.5 standard deviations: effective volume fraction for a mean path of 0.2 mm."""


def _lobe(centre: float, below: float, above: float) -> np.ndarray:
    width = np.where(centre > _WAVELENGTH, below, above)
    return np.exp(-0.5 * ((_WAVELENGTH - centre) / width) ** 2)


def _sensitivities() -> np.ndarray:
    """(3, wavelengths) weights that take a reflectance spectrum to linear sRGB, white to (1, 1, 1)."""
    x = 1.056 * _lobe(599.8, 37.9, 31.0) + 0.362 * _lobe(442.0, 16.0, 26.7) - 0.065 * _lobe(501.1, 20.4, 26.2)
    y = 0.821 * _lobe(568.8, 46.9, 40.5) + 0.286 * _lobe(530.9, 16.3, 31.1)
    z = 1.217 * _lobe(437.0, 11.8, 36.0) + 0.681 * _lobe(459.0, 26.0, 13.8)
    rgb = _XYZ_TO_RGB @ (np.stack([x, y, z]) * _D65)
    return rgb / rgb.sum(axis=1, keepdims=True)


def skin_reflectance(melanin: float, blood: float = _BLOOD, saturation: float = 0.7) -> np.ndarray:
    """Linear sRGB reflectance (3,) of skin.

    melanin: effective volume fraction of melanosomes, 0.01 (very light) to 0.9 (very dark). blood: volume fraction in
    the dermis, 0.01 (pale) to 0.1 (flushed). saturation: share of the blood's haemoglobin that carries oxygen.
    """
    path_cm, radius_cm, returned_above = 0.02, 0.0008, 0.02
    melanosome = 6.6e11 * _WAVELENGTH**-3.33
    whole_blood = 2.303 * 150 / 64500 * (saturation * _OXY + (1 - saturation) * _DEOXY)
    depth = 2 * whole_blood * radius_cm
    packed_blood = whole_blood * (1 - np.exp(-depth)) / depth
    bloodless = 0.9 * (0.244 + 85.3 * np.exp(-(_WAVELENGTH - 154) / 66.2))
    absorption = blood * packed_blood + (1 - blood) * bloodless
    scattering = 46 * (_WAVELENGTH / 500) ** -1.421
    ratio = 2 * absorption / (0.75 * scattering)
    dermis = 1 + ratio - np.sqrt(ratio * ratio + 2 * ratio)
    epidermis = 1 / (1 + melanosome * melanin * path_cm)
    return _sensitivities() @ (returned_above + (1 - returned_above) * epidermis * dermis)


def melanin_series() -> tuple[np.ndarray, np.ndarray, float]:
    """(mean, slope, melanin): log albedo (3,) at the mean, its change (3,) per standard deviation, the mean's melanin.

    Standard deviations step evenly through the logarithm of green albedo, where the series from very light to very dark
    skin is nearly straight in the other two channels; the line is its least-squares fit over +-2.5.
    """
    amounts = np.geomspace(_LIGHTEST, _DARKEST, 200)
    series = np.log(np.stack([skin_reflectance(m) for m in amounts]))
    green = series[:, 1]
    steps = np.linspace(-2.5, 2.5, 41)
    at = green[0] + (steps + 2.5) / 5 * (green[-1] - green[0])
    line = np.stack([np.interp(-at, -green, series[:, c]) for c in range(3)], axis=1)
    slope = steps @ line / np.sum(steps**2)
    return line.mean(axis=0), slope, float(np.interp(-at[20], -green, amounts))


def blood_slope(melanin: float, factor: float = 1.35, saturation: float = 0.7) -> np.ndarray:
    """(3,) change of log albedo when the blood in the dermis grows by `factor`: secant over two steps either way."""
    more, less = (skin_reflectance(melanin, _BLOOD * factor**k, saturation) for k in (2, -2))
    return np.log(more / less) / 4


def material_albedo(name: str) -> tuple[float, float, float]:
    """Linear sRGB albedo of what is not plain skin: sclera, iris, pupil, teeth, gums, mouth, eye_socket, hair, tints.

    `brow` and `lips` are what the mean skin becomes under a brow's hair and in the red of the lips. Raises InputError.
    """
    if name in ("brow", "lips"):
        mean, _, melanin = melanin_series()
        log = mean + (_hair_log(mean, 0.5) if name == "brow" else _lip_log(melanin))
        red, green, blue = np.exp(log)
        return float(red), float(green), float(blue)
    if name not in _MATERIALS:
        raise InputError(f"No material named {name!r}: choose one of {', '.join((*_MATERIALS, 'brow', 'lips'))}.")
    return _MATERIALS[name]


def _hair_log(mean: np.ndarray, coverage: float) -> np.ndarray:
    """(3,) change of log albedo where hair covers a share of skin of log albedo `mean`."""
    return np.log((1 - coverage) + coverage * np.array(_MATERIALS["hair"]) / np.exp(mean))


def _lip_log(melanin: float) -> np.ndarray:
    """(3,) log albedo of lips over that of the skin around them: a thin epidermis with little melanin, much blood."""
    return np.log(skin_reflectance(0.7 * melanin, 5 * _BLOOD) / skin_reflectance(melanin))


def _smooth(x: np.ndarray, start: float, end: float) -> np.ndarray:
    """0 at `start`, 1 at `end`, smooth between; `start` may be the larger."""
    t = np.clip((x - start) / (end - start), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def _centre(positions: np.ndarray, mask: np.ndarray, name: str) -> np.ndarray:
    """(3,) middle of the subject's left half of a region."""
    chosen = (mask > 0.5) & (positions[:, 0] >= 0)
    if not chosen.any():
        raise InputError(f"The skin prior needs the region {name!r}, but its mask selects no vertex of the left half.")
    here = positions[chosen]
    return (here.min(0) + here.max(0)) / 2


def facial_zones(positions: Float[ArrayLike, "v 3"], regions: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    """Smooth masks (V,) in [0, 1] of cheeks, nose_ears, beard, under_eye and forehead, placed by the head's regions.

    positions: metres, head frame. Mirrored vertices get equal values. Raises InputError for a missing or empty region.
    """
    points = np.asarray(positions, np.float64)
    missing = [r for r in _REGIONS if r not in regions]
    if missing:
        raise InputError(f"The skin prior needs the region masks {', '.join(_REGIONS)}; {missing[0]!r} is missing.")
    mask = {r: np.asarray(regions[r], np.float64) for r in _REGIONS}
    wrong = [r for r in _REGIONS if mask[r].shape != (len(points),)]
    if wrong:
        raise InputError(f"The mask {wrong[0]!r} must have shape ({len(points)},), got {mask[wrong[0]].shape}.")
    eye = _centre(points, mask["eyeballs"], "eyeballs")
    brow = _centre(points, mask["brows"], "brows")
    lips = _centre(points, mask["lips"], "lips")
    ear = _centre(points, mask["ears"], "ears")
    _centre(points, mask["nose"], "nose")
    nose = points[mask["nose"] > 0.5]
    tip = nose[nose[:, 2].argmax()] * [0, 1, 1]
    unit = eye[0] / 0.032  # a head with eyes 64 mm apart is of size 1
    x, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]
    front = _smooth(z, eye[2] - 0.05 * unit, eye[2] - 0.02 * unit)
    skin = mask["skin"] * (1 - mask["eyeballs"]) * (1 - mask["eye_sockets"])

    def spot(cx: float, cy: float, wx: float, wy: float) -> np.ndarray:
        return np.exp(-0.5 * (((x - cx) / (wx * unit)) ** 2 + ((y - cy) / (wy * unit)) ** 2))

    nose_base = nose[:, 1].min()
    cheeks = spot(1.2 * eye[0], 0.5 * (eye[1] + nose_base) - 0.004 * unit, 0.017, 0.014) * front
    tip_zone = np.exp(-0.5 * np.sum((points - tip) ** 2, axis=1) / (0.013 * unit) ** 2)
    # The upper edge of a beard runs from under the nose down the cheek, then up to the ear.
    mouth = lips[0] * 2  # half a mouth's width: the middle of its left half is at half of it
    edge = np.interp(
        x,
        [0.4 * mouth, 1.0 * mouth, 0.5 * (mouth + ear[0]), ear[0] - 0.004 * unit],
        [nose_base, nose_base - 0.006 * unit, lips[1], ear[1]],
    )
    below = _smooth(edge - y, -0.003 * unit, 0.009 * unit)
    before_ear = _smooth(z, ear[2], ear[2] + 0.03 * unit)
    return {
        "cheeks": cheeks * skin * (1 - mask["lips"]),
        "nose_ears": np.maximum(0.9 * tip_zone * skin, mask["ears"] * skin),
        "beard": below * before_ear * skin * (1 - mask["lips"]) * (1 - mask["ears"]) * (1 - mask["nose"])
        * (1 - mask["neck"]) * (1 - mask["scalp"]),
        "under_eye": spot(0.9 * eye[0], eye[1] - 0.017 * unit, 0.012, 0.005) * front * skin,
        "forehead": _smooth(y, brow[1], brow[1] + 0.025 * unit) * skin * (1 - mask["scalp"]) * (1 - mask["brows"]),
    }  # fmt: skip


def skin_prior(
    positions: Float[ArrayLike, "v 3"], regions: Mapping[str, ArrayLike]
) -> tuple[Float[np.ndarray, "v 3"], Float[np.ndarray, "k v 3"]]:
    """Mean (V, 3) and directions (K, V, 3), per standard deviation, of the natural log of linear sRGB albedo.

    positions: (V, 3) metres, head frame. regions: (V,) masks in [0, 1], those of `facejax.models.morphable.REGIONS`.
    The directions are `SKIN_MODES`, zero off the skin, where the mean is that of the materials. At +-2.5 standard
    deviations of melanin the individual typology angle passes 55 (very light) and -30 degrees (dark). Raises
    InputError.
    """
    zones = facial_zones(positions, regions)
    mask = {r: np.asarray(regions[r], np.float64) for r in _REGIONS}
    skin = mask["skin"]
    base, melanin, amount = melanin_series()
    blood = blood_slope(amount)
    stale_blood = blood_slope(amount, saturation=0.3)  # what shines through the thin skin under the eyes
    lips, scalp, brows = mask["lips"] * skin, mask["scalp"] * skin, mask["brows"] * skin

    def paint(zone: np.ndarray, colour: np.ndarray) -> np.ndarray:
        return zone[:, None] * colour

    mean = paint(skin, base)
    mean += paint(lips, _lip_log(amount))
    mean += paint(zones["cheeks"], 0.8 * blood) + paint(zones["nose_ears"], 0.7 * blood)
    mean += paint(zones["under_eye"], 0.15 * melanin + 0.2 * stale_blood)
    mean += paint(zones["beard"], _hair_log(base, 0.06))
    mean += paint(brows, _hair_log(base, 0.5)) + paint(scalp, _hair_log(base, 0.6))
    for region, material in (
        ("eye_sockets", "eye_socket"), ("eyeballs", "sclera"), ("iris", "iris"), ("teeth", "teeth"), ("gums", "gums"),
    ):  # fmt: skip
        share = mask[region][:, None]
        mean = mean * (1 - share) + share * np.log(_MATERIALS[material])
    no_hair = skin * (1 - 0.6 * scalp) * (1 - 0.5 * brows)
    directions = np.stack([
        paint(no_hair * (1 - 0.3 * lips), melanin),
        paint(no_hair, blood),
        paint(zones["cheeks"], blood),
        paint(zones["nose_ears"], blood),
        paint(lips, 1.2 * blood),
        paint(zones["beard"], _hair_log(base, 0.14)),
        paint(brows, _hair_log(base, 0.25)),
        paint(zones["under_eye"], 0.3 * melanin + 0.3 * stale_blood),
        paint(zones["forehead"], 0.35 * melanin),
        paint(scalp, _hair_log(base, 0.3)),
    ])  # fmt: skip
    bare = np.ones(len(skin))
    for region in ("eye_sockets", "eyeballs", "iris", "teeth", "gums"):
        bare *= 1 - mask[region]
    return mean.astype(np.float32), (directions * bare[:, None]).astype(np.float32)


def typology_angle(albedo: Float[ArrayLike, "*n 3"]) -> Float[np.ndarray, "*n"]:
    """Individual typology angle, degrees, of linear sRGB albedo under D65: atan((L* - 50) / b*).

    Above 55 very light, 41 to 55 light, 28 to 41 intermediate, 10 to 28 tan, -30 to 10 brown, below dark (Chardon
    1991).
    """
    to_xyz = np.linalg.inv(_XYZ_TO_RGB)
    xyz = np.asarray(albedo, np.float64) @ to_xyz.T / to_xyz.sum(axis=1)
    f = np.where(xyz > 216 / 24389, np.cbrt(np.maximum(xyz, 1e-12)), (24389 / 27 * xyz + 16) / 116)
    lightness, yellow = 116 * f[..., 1] - 16, 200 * (f[..., 1] - f[..., 2])
    return np.asarray(np.degrees(np.arctan2(lightness - 50, yellow)))
