"""Regions and colours of the built-in head, from where its vertices lie."""

import numpy as np

from facejax.models.generic import build, parts, sculpt
from facejax.models.generic.build import Mesh
from facejax.models.generic.sculpt import smooth_step

_BROW = np.array([[7.5, 50.5], [14.0, 54.5], [24.0, 58.0], [33.0, 59.0], [41.0, 55.5], [48.0, 49.5]])
_BROW_HALF_HEIGHT = np.array([3.4, 3.8, 3.4, 2.9, 2.2, 1.2])


def _distance_2d(p: np.ndarray, line: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Distance (n,) from points to a polyline, divided by the half height that it has there."""
    best = np.full(len(p), np.inf)
    for a, b, ha, hb in zip(line[:-1], line[1:], half[:-1], half[1:], strict=True):
        t = np.clip((p - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        best = np.minimum(best, np.linalg.norm(p - a - t[:, None] * (b - a), axis=1) / (ha + t * (hb - ha)))
    return best


def regions(mesh: Mesh) -> dict[str, np.ndarray]:
    """The masks of `REGIONS`, (V,) float32 in [0, 1]."""
    v = mesh.vertices.astype(float) * 1e3
    x, y, z = np.abs(v[:, 0]), v[:, 1], v[:, 2]
    part, ring = mesh.part, mesh.ring
    socket = (part == build.EYE) & (ring >= build.SOCKET_RING)
    bag = (part == build.MOUTH) & (ring >= build.BAG_RING)
    skin = (part <= build.EAR) & ~socket & ~bag
    front = skin & (part != build.EAR)
    ears = skin & (part == build.EAR) & (ring >= 1)
    throat = smooth_step(y, -66, -92) * smooth_step(y + 0.55 * z, -18, -42)
    nape = smooth_step(y, -10, -40) * smooth_step(z, 8, -14)
    neck = np.maximum(throat, nape) * front
    # The hair line: level above the forehead, down before the ears, round behind them.
    edge = np.interp(x, [0, 35, 50, 58, 66, 72], [92, 90, 80, 62, 40, 30]) + 0.55 * np.minimum(z - 45, 0)
    hair = np.maximum(
        smooth_step(y - edge, -5, 6) * smooth_step(y, -2, 16), smooth_step(z, -2, -20) * smooth_step(y, -32, -8)
    )
    scalp = hair * front * (1 - neck)
    oval = ((x / 62) ** 2 + ((y + 2) / np.where(y > -2, 78.0, 80.0)) ** 2) ** 0.5
    narrow = smooth_step(oval, 1.0, 0.93) * smooth_step(z, 38, 50) * front * (1 - neck)
    nostril = (part == build.NOSTRIL) & skin
    nose = front * smooth_step(np.hypot(x / (9.5 + 12 * smooth_step(y, 26, 0)), (y - 12) / 33), 1.05, 0.85) * (z > 90)
    brow = _distance_2d(np.column_stack([x, y]), _BROW, _BROW_HALF_HEIGHT)
    masks = {
        "skin": skin,
        "narrow_face": narrow,
        "neck": neck,
        "scalp": scalp,
        "ears": ears,
        "lips": (part == build.MOUTH)
        * (ring < build.BAG_RING)
        * np.interp(ring, [3, 4, 5], [0.1, 0.6, 1.0])
        * (ring >= 3),
        "nose": np.maximum(nose, nostril),
        "brows": smooth_step(brow, 1.7, 0.3) * front * (z > 55),
        "eye_sockets": socket,
        "eyeballs": part == build.EYEBALL,
        "iris": (part == build.EYEBALL) & (ring <= 6),
        "teeth": (part == build.UPPER_TEETH) | (part == build.LOWER_TEETH),
        "gums": (part >= build.UPPER_GUM) | bag,
    }
    return {name: np.asarray(m, np.float32) for name, m in masks.items()}


def _mix(colour: np.ndarray, other: tuple, weight: np.ndarray) -> np.ndarray:
    return colour * (1 - weight[:, None]) + np.array(other) * weight[:, None]


def mean_albedo(mesh: Mesh, masks: dict[str, np.ndarray], prior: np.ndarray) -> np.ndarray:
    """Linear albedo (V, 3) of the mean head: the skin prior's (V, 3), with what the prior leaves plain painted in.

    Brows get denser; lashes, nostrils, the rings of the iris, the pupil and the borders of teeth are added.
    """
    x, y = np.abs(mesh.vertices[:, 0]) * 1e3, mesh.vertices[:, 1] * 1e3
    part, ring = mesh.part, mesh.ring
    c = _mix(prior, (0.035, 0.026, 0.019), 0.55 * masks["brows"])
    lashes = (part == build.EYE) * np.interp(ring, [6.9, 8, 9], [0, 0.62, 0.35])
    c = _mix(c, (0.04, 0.025, 0.02), lashes * np.where(y > sculpt.EYE[1] - 1.0, 1.0, 0.45))
    c = _mix(c, (0.10, 0.035, 0.03), (part == build.NOSTRIL) * np.interp(ring, [1, 2, 4], [0, 0.6, 1.0]))
    c = _mix(c, (0.16, 0.04, 0.035), (part == build.MOUTH) * np.interp(ring, [9, 12], [0, 1.0]))
    ball = part == build.EYEBALL
    aside = np.clip(np.abs(x - sculpt.EYE[0]) / sculpt.EYE_RADIUS, 0, 1)
    c = _mix(c, (0.58, 0.40, 0.35), ball * smooth_step(aside, 0.6, 1.0))
    inner = ball & (ring <= 6)
    c[inner] = _IRIS[ring[inner]]
    return _mix(c, (0.36, 0.29, 0.20), 0.8 * masks["teeth"] * (ring % 3 == 0))


_IRIS = np.array(
    [
        [0.008] * 3,
        [0.008] * 3,
        [0.008] * 3,
        [0.16, 0.095, 0.045],
        [0.13, 0.09, 0.055],
        [0.08, 0.065, 0.048],
        [0.03, 0.027, 0.025],
    ]
)
"""Linear albedo of the rings of an eyeball, from the middle of the pupil to the rim of the iris."""


def specular_and_roughness(mesh: Mesh, masks: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Fresnel reflectance at normal incidence and lobe width (V,) of skin, eyes, teeth and gums."""
    specular = np.full(len(mesh.vertices), 0.028)
    roughness = np.full(len(mesh.vertices), 0.40)
    for name, f0, alpha in (
        ("nose", 0.030, 0.33),
        ("lips", 0.032, 0.30),
        ("eyeballs", 0.025, 0.06),
        ("teeth", 0.045, 0.15),
        ("gums", 0.030, 0.20),
        ("brows", 0.02, 0.5),
    ):
        w = masks[name]
        specular, roughness = specular * (1 - w) + f0 * w, roughness * (1 - w) + alpha * w
    return specular.astype(np.float32), roughness.astype(np.float32)


def iris_ids(mesh: Mesh, left: bool) -> list[int]:
    """Vertices of an iris: centre, then its rim towards +x, up, towards -x, down."""
    here = (mesh.part == build.EYEBALL) & ((mesh.vertices[:, 0] > 0) == left)
    n = parts.EYE_SLICES
    order = (0, n // 4, n // 2, 3 * n // 4) if left else (n // 2, n // 4, 0, 3 * n // 4)
    pick = [np.flatnonzero(here & (mesh.ring == 0))[0]]
    pick += [np.flatnonzero(here & (mesh.ring == 6) & (mesh.slot == s))[0] for s in order]
    return [int(i) for i in pick]
