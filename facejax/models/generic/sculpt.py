"""The sculpture behind the built-in head: a signed field in space whose zero set is the skin of an average adult.

Masses of bone and flesh (ellipsoids and tapered capsules) are joined by smooth unions, sockets are carved, and finer
forms (lips, philtrum, folds, lids) are laid on as smooth offsets. Sizes follow published anthropometry of adults.
Everything here is in MILLIMETRES, head frame (+x to the subject's left, +y up, +z out of the face), numpy float64.
"""

from collections.abc import Callable

import numpy as np

EYE = np.array([31.5, 36.0, 84.0])
"""Centre of the subject's left eyeball."""
EYE_RADIUS = 12.0
LID_RADIUS = 14.0
"""Distance of the skin of closed lids from the centre of the eyeball."""
MOUTH_Y = -31.0
MOUTH_HALF_WIDTH = 25.0
TMJ = np.array([0.0, 8.0, 12.0])
"""A point on the axis (along x) about which the jaw opens."""

FLIP = np.array([-1.0, 1.0, 1.0])
Real = float | int


def smooth_step(x: np.ndarray, low: Real, high: Real) -> np.ndarray:
    """0 below `low`, 1 above `high`, with continuous first derivative between (`low > high` descends)."""
    t = np.clip((np.asarray(x, float) - low) / (high - low), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def _union(a: np.ndarray, b: np.ndarray, k: Real) -> np.ndarray:
    """Smooth minimum: the blend is `k` wide."""
    h = np.maximum(k - np.abs(a - b), 0.0) / k
    return np.minimum(a, b) - h * h * h * k / 6.0


def _carve(a: np.ndarray, b: np.ndarray, k: Real) -> np.ndarray:
    """Remove `b` from `a`, smoothly."""
    return -_union(-a, b, k)


def _ellipsoid(p: np.ndarray, centre: tuple, radii: tuple) -> np.ndarray:
    q = p - np.array(centre)
    r = np.array(radii)
    k0 = np.linalg.norm(q / r, axis=-1)
    k1 = np.linalg.norm(q / (r * r), axis=-1)
    return k0 * (k0 - 1.0) / np.maximum(k1, 1e-9)


def _capsule(p: np.ndarray, a: tuple, b: tuple, ra: Real, rb: Real, squash: tuple = (1.0, 1.0, 1.0)) -> np.ndarray:
    """Capsule from `a` to `b` with radii that change linearly; `squash` scales space, so that sections can be oval."""
    s = np.array(squash)
    a_, b_ = np.array(a) / s, np.array(b) / s
    d = b_ - a_
    q = p / s - a_
    t = np.clip(q @ d / (d @ d), 0.0, 1.0)
    return (np.linalg.norm(q - t[..., None] * d, axis=-1) - (ra + (rb - ra) * t)) * s.min()


def _pair(shape: Callable[[np.ndarray], np.ndarray], p: np.ndarray, k: Real) -> np.ndarray:
    """A shape and its mirror image."""
    return _union(shape(p), shape(p * FLIP), k)


def _bump(p: np.ndarray, centre: tuple, sigma: tuple) -> np.ndarray:
    """Gaussian of unit height."""
    return np.exp(-0.5 * np.sum(((p - np.array(centre)) / np.array(sigma)) ** 2, axis=-1))


def _bumps(p: np.ndarray, centre: tuple, sigma: tuple) -> np.ndarray:
    return _bump(p, centre, sigma) + _bump(p * FLIP, centre, sigma)


def _groove(p: np.ndarray, a: tuple, b: tuple, width: Real) -> np.ndarray:
    """Gaussian of unit height across the segment a-b (distance in space), and its mirror image."""
    return np.exp(-0.5 * (_capsule(p, a, b, 0, 0) / width) ** 2) + np.exp(
        -0.5 * (_capsule(p * FLIP, a, b, 0, 0) / width) ** 2
    )


def mouth_line(x: np.ndarray) -> np.ndarray:
    """Height of the line where the lips meet."""
    t = np.clip(np.abs(x) / MOUTH_HALF_WIDTH, 0, 1.2)
    return MOUTH_Y + 0.9 * np.cos(2.2 * np.pi * t) * (1 - t) ** 2 - 0.9 * np.exp(-((t / 0.13) ** 2)) + 1.2 * t**3 - 0.6


def lip_heights(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Height of the red of the (upper, lower) lip above and below the mouth line, measured along y."""
    t = np.clip(np.abs(x) / MOUTH_HALF_WIDTH, 0, 1)
    upper = (
        8.4 * (1 - t**1.35) ** 0.95 - 1.3 * np.exp(-((x / 2.6) ** 2)) + 0.5 * np.exp(-(((np.abs(x) - 6) / 3.0) ** 2))
    )
    lower = 9.8 * (1 - t**2.0) ** 0.9
    return np.maximum(upper, 0.0) + 0.9, np.maximum(lower, 0.0) + 0.9


_UPPER_PROFILE = np.array(
    [[0, -0.62], [0.08, 0.1], [0.22, 0.7], [0.42, 1.0], [0.7, 0.92], [1.0, 0.62], [1.3, 0.32], [1.9, 0.12], [3.0, 0.0]]
)
_LOWER_PROFILE = np.array(
    [[0, -0.55], [0.08, 0.15], [0.22, 0.72], [0.45, 1.0], [0.7, 0.88], [1.0, 0.5], [1.3, 0.18], [1.8, 0.02], [3.0, 0.0]]
)


def _pchip(table: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Monotone cubic through a table, constant beyond its ends."""
    x, y = table[:, 0], table[:, 1]
    h, d = np.diff(x), np.diff(y) / np.diff(x)
    m = np.zeros(len(x))
    same = d[1:] * d[:-1] > 0
    m[1:-1] = np.where(same, 2 * d[1:] * d[:-1] / np.where(same, d[1:] + d[:-1], 1.0), 0.0)
    i = np.clip(np.searchsorted(x, s) - 1, 0, len(x) - 2)
    t = np.clip((s - x[i]) / h[i], 0.0, 1.0)
    return (
        y[i] * (1 + 2 * t) * (1 - t) ** 2
        + y[i + 1] * t * t * (3 - 2 * t)
        + h[i] * t * (1 - t) * (m[i] * (1 - t) - m[i + 1] * t)
    )


def lip_relief(p: np.ndarray) -> np.ndarray:
    """How far the lips stand out of the muzzle, mm along the normal."""
    x, y = p[..., 0], p[..., 1]
    t = np.abs(x) / MOUTH_HALF_WIDTH
    upper, lower = lip_heights(x)
    s = y - mouth_line(x)
    end = np.clip(1 - t, 0, 1)
    full = end**0.55 * smooth_step(t, 1.0, 0.8) + 0.0
    up = _pchip(_UPPER_PROFILE, np.maximum(s, 0) / upper) * 5.6 * full
    low = _pchip(_LOWER_PROFILE, np.maximum(-s, 0) / lower) * 6.6 * full
    relief = np.where(s >= 0, up, low)
    # The corner: a small dimple where the line ends.
    dimple = _bumps(p, (MOUTH_HALF_WIDTH + 0.5, MOUTH_Y + 0.2, 98), (2.4, 2.0, 20))
    return (relief - 1.6 * dimple) * smooth_step(p[..., 2], 80, 90)


# Ends of the opening between the lids, mm from the centre of the eye along x (lateral +).
EYE_INNER, EYE_OUTER = -15.0, 13.2


def lid_curves(dx: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heights above the centre of the eye of the (upper margin, lower margin, upper crease) at lateral offset dx."""
    t = np.clip((dx - EYE_INNER) / (EYE_OUTER - EYE_INNER), 0, 1)
    base = -1.6 + 2.4 * t
    upper = base + 6.2 * np.sin(np.pi * t**0.86) ** 0.78
    lower = base - 5.2 * np.sin(np.pi * t**1.15) ** 0.85
    crease = base + 2.2 + 8.0 * np.sin(np.pi * np.clip(t, 0.02, 0.98) ** 0.9) ** 0.75
    return upper, lower, crease


def _skull(p: np.ndarray) -> np.ndarray:
    d = _ellipsoid(p, (0, 64, -10), (75, 84, 82))
    d = _union(d, _ellipsoid(p, (0, 68, 40), (61, 70, 66)), 40)
    d = _union(d, _ellipsoid(p, (0, 0, 42), (59, 84, 61)), 24)
    return _union(d, _ellipsoid(p, (0, 10, 5), (63, 60, 60)), 30)


def _bones(p: np.ndarray, d: np.ndarray) -> np.ndarray:
    d = _union(d, _pair(lambda q: _capsule(q, (46, -35, 22), (18, -64, 84), 11, 13), p, 10), 28)  # jaw line
    d = _union(d, _pair(lambda q: _capsule(q, (51, 4, 14), (45, -33, 23), 13, 12), p, 4), 26)  # ramus
    d = _union(d, _pair(lambda q: _ellipsoid(q, (36, -18, 62), (24, 30, 30)), p, 4), 24)  # flesh of the cheek
    d = _union(d, _ellipsoid(p, (0, -64, 89), (22, 17, 20)), 22)  # chin
    d = _union(d, _pair(lambda q: _ellipsoid(q, (43, 8, 72), (19, 17, 18)), p, 4), 26)  # cheek bone
    d = _union(d, _pair(lambda q: _capsule(q, (52, 8, 58), (59, 14, 12), 10, 8), p, 4), 26)  # zygomatic arch
    d = _union(d, _pair(lambda q: _capsule(q, (6, 53, 97), (37, 56, 83), 7.5, 6.5), p, 14), 16)  # brow ridge
    d = _union(d, _pair(lambda q: _capsule(q, (37, 56, 83), (51, 38, 67), 6.5, 7), p, 4), 18)  # outer rim of the orbit
    return _union(d, _ellipsoid(p, (0, -27, 79), (34, 25, 31)), 22)  # muzzle


def _neck(p: np.ndarray, d: np.ndarray) -> np.ndarray:
    neck = _capsule(p, (0, 10, -8), (0, -190, -26), 49, 54, (1.0, 1.0, 1.0))
    d = _union(d, neck, 26)
    sterno = _pair(lambda q: _capsule(q, (52, -10, -18), (18, -150, 22), 9, 8), p, 4)
    return _union(d, sterno, 18)


def _nose(p: np.ndarray, d: np.ndarray) -> np.ndarray:
    d = _union(d, _capsule(p, (0, 44, 92), (0, 8, 111), 8.0, 9.5, (0.85, 1.0, 1.0)), 15)  # bridge
    d = _union(d, _ellipsoid(p, (0, 2.5, 115), (9.5, 9, 11)), 9)  # tip
    d = _union(d, _pair(lambda q: _ellipsoid(q, (11.8, -1.5, 104), (6.0, 8.0, 11.5)), p, 2), 7)  # wings
    return _union(d, _capsule(p, (0, -4, 116), (0, -9, 107), 4.2, 4.2), 4)  # columella


def nostril_axis() -> tuple[np.ndarray, np.ndarray]:
    """Centre of the subject's left nostril and the direction that leads into it."""
    return np.array([7.0, -8.0, 110.5]), np.array([0.12, 0.9, -0.25]) / np.linalg.norm([0.12, 0.9, -0.25])


def _eyes(p: np.ndarray, d: np.ndarray) -> np.ndarray:
    d = _carve(d, _pair(lambda q: _ellipsoid(q, (31, 36, 99), (18, 11, 8)), p, 1), 14)
    lids = _pair(lambda q: np.linalg.norm(q - EYE, axis=-1) - LID_RADIUS, p, 1)
    return _union(d, lids, 7)


def relief(p: np.ndarray) -> np.ndarray:
    """Fine forms, mm outwards along the normal."""
    r = lip_relief(p)
    r = r - 2.4 * _bump(p, (0, -50, 106), (16, 5.0, 14))  # fold above the chin
    r = r - 1.3 * _bump(p, (0, -18, 113), (2.6, 5.5, 9)) + 0.7 * _bumps(p, (5.2, -19, 112), (2.2, 6, 9))  # philtrum
    r = r - 1.6 * _groove(p, (19, -3, 100), (32, -26, 95), 3.0)  # nasolabial fold
    r = r + 2.2 * _bumps(p, (36, -6, 92), (12, 13, 14))  # flesh of the cheek
    r = r - 1.0 * _bumps(p, (36, -34, 86), (8, 12, 14))  # hollow beside the mouth
    r = r - 2.5 * _bumps(p, (66, 52, 52), (14, 20, 22))  # temple
    r = r - 1.3 * _bump(p, (0, 56, 107), (7, 7, 12))  # glabella
    r = r + 1.8 * _bumps(p, (22, 84, 96), (14, 14, 16))  # frontal eminence
    r = r - 1.2 * _groove(p, (16, 30, 97), (30, 17, 95), 3.5)  # below the inner eye
    return r - 1.0 * _bumps(p, (16.5, 35, 95), (4, 6, 7))  # inner corner of the eye


def field(p: np.ndarray, features: bool = True) -> np.ndarray:
    """Signed field (n,), mm, negative inside; near the surface about the distance to the skin of points (n, 3).

    `features=False` leaves out nose, eyes and fine forms: the smooth head on which the mesh is laid out.
    """
    d = _neck(p, _bones(p, _skull(p)))
    if not features:
        return d
    return _eyes(p, _nose(p, d)) - relief(p)


def gradient(p: np.ndarray, step: float = 0.05) -> np.ndarray:
    """Unit gradient of `field` (n, 3) by central differences: the outward normal."""
    g = np.stack([field(p + step * e) - field(p - step * e) for e in np.eye(3)], axis=-1)
    return g / np.maximum(np.linalg.norm(g, axis=-1, keepdims=True), 1e-9)
