"""Identity modes of the built-in head: how adults differ, as smooth displacements of one standard deviation each.

Every mode is a smooth field in space, written by hand from published spreads of facial measures, or drawn from low
frequencies. Eyeballs move rigidly with the field at their centre, and the lids with them. Millimetres, head frame.
"""

from collections.abc import Callable

import numpy as np

from facejax.models.generic import build, sculpt
from facejax.models.generic.build import Mesh
from facejax.models.generic.sculpt import FLIP, smooth_step

Field = Callable[[np.ndarray], np.ndarray]
"""Displacements (n, 3) at points (n, 3)."""


def _bump(p: np.ndarray, centre: tuple, sigma: tuple) -> np.ndarray:
    return np.exp(-0.5 * np.sum(((p - np.array(centre)) / np.array(sigma)) ** 2, axis=-1))


def _push(centre: tuple, sigma: tuple, amount: tuple) -> Field:
    """A soft push of the neighbourhood of `centre`, and its mirror image."""

    def field(p: np.ndarray) -> np.ndarray:
        left = _bump(p, centre, sigma)[:, None] * np.array(amount)
        right = _bump(p * FLIP, centre, sigma)[:, None] * (np.array(amount) * FLIP)
        return left + right

    return field


def _middle(centre: tuple, sigma: tuple, amount: tuple) -> Field:
    """A soft push of a place on the midline."""

    def field(p: np.ndarray) -> np.ndarray:
        return _bump(p, centre, sigma)[:, None] * np.array(amount)

    return field


def _scale(centre: tuple, sigma: tuple, rate: tuple) -> Field:
    """Stretch about `centre` in a soft neighbourhood; `rate` per axis. Mirrored if the centre is off the midline."""

    def one(p: np.ndarray) -> np.ndarray:
        return _bump(p, centre, sigma)[:, None] * (p - np.array(centre)) * np.array(rate)

    if centre[0] == 0:
        return one
    return lambda p: one(p) + one(p * FLIP) * FLIP


def _sum(*fields: Field) -> Field:
    return lambda p: sum(f(p) for f in fields)  # type: ignore[return-value]


_WIDE = (400.0, 400.0, 400.0)


def _named() -> dict[str, Field]:
    """The modes written by hand, symmetric first."""

    def face_width(p: np.ndarray) -> np.ndarray:
        d = np.zeros_like(p)
        d[:, 0] = 0.034 * p[:, 0] * smooth_step(p[:, 1], 150, 20)
        return d

    def head_length(p: np.ndarray) -> np.ndarray:
        d = np.zeros_like(p)
        d[:, 2] = 0.045 * np.minimum(p[:, 2] - 60.0, 0.0) * smooth_step(p[:, 1], -60, 0)
        return d

    def face_height(p: np.ndarray) -> np.ndarray:
        d = np.zeros_like(p)
        d[:, 1] = 5.0 * np.tanh((p[:, 1] - 36.0) / 110.0) * smooth_step(p[:, 1], -200, -60)
        return d

    def lower_face(p: np.ndarray) -> np.ndarray:
        d = np.zeros_like(p)
        d[:, 1] = -4.2 * smooth_step(p[:, 1], 10, -70) * smooth_step(p[:, 2], -30, 50)
        d[:, 1] -= 1.2 * smooth_step(p[:, 1], -40, -110) * smooth_step(p[:, 2], 50, -30)
        return d

    def jaw_forward(p: np.ndarray) -> np.ndarray:
        d = np.zeros_like(p)
        d[:, 2] = 3.0 * smooth_step(p[:, 1], -10, -62) * smooth_step(p[:, 2], 10, 85)
        return d

    def neck_width(p: np.ndarray) -> np.ndarray:
        w = smooth_step(p[:, 1], -30, -95) * smooth_step(p[:, 2], 85, 45)
        return w[:, None] * 0.085 * (p - np.array([0, 0, -15])) * np.array([1.0, 0.0, 1.0])

    def forehead_slope(p: np.ndarray) -> np.ndarray:
        d = np.zeros_like(p)
        d[:, 2] = -4.0 * smooth_step(p[:, 1], 55, 125) * smooth_step(p[:, 2], 0, 80)
        return d

    def cranium_height(p: np.ndarray) -> np.ndarray:
        d = np.zeros_like(p)
        d[:, 1] = 5.5 * smooth_step(p[:, 1], 50, 150)
        return d

    def cranium_width(p: np.ndarray) -> np.ndarray:
        d = np.zeros_like(p)
        d[:, 0] = 0.042 * p[:, 0] * smooth_step(p[:, 1], 10, 80) * smooth_step(p[:, 2], 95, 30)
        return d

    return {
        "size": lambda p: 0.026 * (p - np.array([0, 10.0, 20.0])),
        "face width": face_width,
        "head length": head_length,
        "face height": face_height,
        "lower face": lower_face,
        "jaw width": _push((62, -36, 26), (26, 24, 34), (3.6, 0, 0)),
        "chin height": _middle((0, -68, 90), (24, 13, 26), (0, -3.0, 0.4)),
        "chin forward": _middle((0, -66, 95), (20, 15, 22), (0, 0, 3.2)),
        "chin width": _push((20, -66, 90), (12, 13, 20), (2.4, 0, -0.4)),
        "jaw forward": jaw_forward,
        "neck width": neck_width,
        "fullness": _sum(
            _push((50, -26, 62), (22, 24, 26), (3.4, -0.5, 1.4)), _middle((0, -84, 62), (34, 14, 26), (0, -3.6, 0.6))
        ),
        "nose length": _middle((0, -2, 116), (17, 13, 16), (0, -2.6, 0.3)),
        "nose forward": _middle((0, 4, 118), (15, 15, 16), (0, 0.2, 2.6)),
        "nose width": _push((14, -2, 105), (7, 9, 11), (1.9, 0, 0.2)),
        "nose bridge height": _middle((0, 30, 108), (12, 15, 13), (0, 0, 2.2)),
        "nose bridge width": _push((8, 30, 100), (6, 15, 10), (1.2, 0, 0.4)),
        "nose hump": _middle((0, 20, 113), (8, 7, 10), (0, 0, 1.5)),
        "nose tip up": _middle((0, 0, 124), (10, 8, 9), (0, 1.9, 0.3)),
        "nose tip bulk": _scale((0, 2, 116), (12, 10, 11), (0.14, 0.08, 0.10)),
        "eye spacing": _push((31, 37, 88), (15, 19, 22), (1.7, 0, -0.2)),
        "eye depth": _push((31, 37, 88), (14, 12, 20), (0, 0, -1.7)),
        "eye height": _push((31, 38, 88), (22, 16, 22), (0, 1.6, 0)),
        "eye opening": _scale((31.5, 36, 97), (11, 7, 12), (0.0, 0.22, 0.0)),
        "eye length": _scale((31.5, 36, 95), (13, 9, 13), (0.08, 0.0, 0.0)),
        "eye tilt": _sum(_push((45, 36, 84), (7, 8, 12), (0, 1.2, 0)), _push((17, 36, 90), (5, 7, 12), (0, -0.6, 0))),
        "upper lid fold": _push((34, 47, 93), (13, 4.5, 10), (0, -1.2, 1.0)),
        "brow ridge": _push((22, 55, 98), (22, 8, 14), (0, -0.4, 2.3)),
        "brow height": _push((30, 56, 92), (22, 9, 14), (0, 2.0, 0)),
        "forehead slope": forehead_slope,
        "forehead bulge": _middle((0, 88, 98), (34, 20, 24), (0, 0, 2.4)),
        "cranium height": cranium_height,
        "cranium width": cranium_width,
        "cheek bones": _push((50, 10, 70), (15, 14, 20), (2.2, 0.2, 2.0)),
        "cheek flesh": _push((36, -12, 88), (15, 15, 16), (0.6, 0, 2.3)),
        "under the eye": _push((28, 22, 94), (13, 7, 12), (0, 0, -1.1)),
        "mouth width": _push((25, -31, 98), (10, 12, 16), (2.3, 0, -0.4)),
        "mouth height": _middle((0, -31, 108), (30, 12, 22), (0, 1.8, 0)),
        "lip fullness": _scale((0, -31.5, 108), (24, 9, 12), (0.0, 0.17, 0.10)),
        "lips forward": _middle((0, -31, 113), (22, 10, 14), (0, 0, 2.0)),
        "upper lip length": _middle((0, -17, 112), (20, 6.5, 14), (0, 1.3, -0.3)),
        "lower lip bulk": _middle((0, -38, 112), (16, 4.5, 9), (0, -0.8, 1.3)),
        "ear size": _scale((72, 20, -4), (30, 32, 26), (0.0, 0.085, 0.085)),
        "ear stand": _push((86, 22, -16), (11, 26, 18), (3.2, 0, 0.9)),
        "temples": _push((66, 56, 50), (16, 22, 24), (1.9, 0, 0)),
        "fold above the chin": _middle((0, -50, 106), (16, 6, 12), (0, 0, -1.3)),
    }


def _asymmetric() -> dict[str, Field]:
    def bend(p: np.ndarray) -> np.ndarray:
        d = np.zeros_like(p)
        d[:, 0] = 1.5 * smooth_step(p[:, 1], 20, -75) * smooth_step(p[:, 2], -20, 60)
        return d

    def one(centre: tuple, sigma: tuple, amount: tuple) -> Field:
        left, right = _middle(centre, sigma, amount), np.array(amount) * FLIP
        return lambda p: left(p) - _bump(p * FLIP, centre, sigma)[:, None] * right

    return {
        "jaw to the side": bend,
        "nose to the side": _middle((0, 5, 116), (14, 16, 16), (1.1, 0, 0)),
        "eyes unlevel": one((31, 38, 88), (20, 14, 22), (0, 0.8, 0)),
        "mouth unlevel": one((24, -31, 98), (11, 11, 16), (0, 0.8, 0)),
        "jaw uneven": one((60, -36, 30), (24, 24, 32), (1.2, 0, 0)),
        "cheeks uneven": one((46, 2, 76), (17, 18, 20), (0.8, 0.3, 0.8)),
    }


def _waves(count: int, seed: int) -> dict[str, Field]:
    """Smooth fields of low frequency, mirrored, that let a fit reach shapes which the named modes do not span."""
    rng = np.random.default_rng(seed)
    out: dict[str, Field] = {}
    for k in range(count):
        length = rng.uniform(45.0, 110.0)
        wave = rng.normal(size=(8, 3)) * (2.0 / length)
        phase = rng.uniform(0, 2 * np.pi, 8)
        amount = rng.normal(size=(8, 3)) / np.sqrt(8)

        def field(
            p: np.ndarray, wave: np.ndarray = wave, phase: np.ndarray = phase, amount: np.ndarray = amount
        ) -> np.ndarray:
            def one(q: np.ndarray) -> np.ndarray:
                return np.cos(q @ wave.T + phase) @ amount

            return 0.20 * (one(p) + one(p * FLIP) * FLIP) * (1.3 * smooth_step(p[:, 2], -60, 60) + 0.7)[:, None]

        out[f"wave {k}"] = field
    return out


def _with_eyes(field: Field, vertices: np.ndarray, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A field on the mesh, the eyeballs moved as rigid bodies: ((V, 3), (2, 3) motion of both centres)."""
    d = field(vertices)
    centres = np.stack([sculpt.EYE, sculpt.EYE * FLIP])
    probe = centres + np.array([0, 0, 7.0])
    moves = field(probe)
    for side in range(2):
        w = near[:, side : side + 1]
        d = (1 - w) * d + w * moves[side]
    return d, moves


def modes(mesh: Mesh) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """((I, V, 3) metres, (I, 2, 3) motion of the eyeballs' centres, names), by decreasing variance."""
    v = mesh.vertices.astype(float) * 1e3
    ball = mesh.part == build.EYEBALL
    near = np.zeros((len(v), 2))
    shape_near = np.zeros((len(v), 2))
    for side in range(2):
        c = sculpt.EYE * (FLIP if side else 1.0)
        r = np.linalg.norm((v - c) / np.array([1.0, 1.0, 1.0]), axis=1)
        mine = ball & (v[:, 0] * (1 if side == 0 else -1) > 0)
        near[:, side] = np.where(mine, 1.0, np.where(ball, 0.0, smooth_step(r, 24, 14.5)))
        shape_near[:, side] = np.where(mine, 1.0, 0.0)
    basis, pivots, names, power = [], [], [], []
    for name, field in {**_named(), **_asymmetric(), **_waves(16, 7)}.items():
        own = name in ("eye opening", "eye length", "eye tilt", "upper lid fold")
        d, moves = _with_eyes(field, v, shape_near if own else near)
        if own:  # these shape the lids; the eyeballs stay
            d[ball] = 0.0
            moves = np.zeros((2, 3))
        elif name == "size":
            # Eyeballs hardly differ between adults: they move, but keep their radius.
            moves = field(np.stack([sculpt.EYE, sculpt.EYE * FLIP]))
        if name not in (
            "jaw to the side",
            "nose to the side",
            "eyes unlevel",
            "mouth unlevel",
            "jaw uneven",
            "cheeks uneven",
        ):
            d = (d + d[mesh.mirror] * FLIP) / 2
            moves = (moves + moves[::-1] * FLIP) / 2
        for side in range(2):
            mine = ball & (v[:, 0] * (1 if side == 0 else -1) > 0)
            d[mine] = moves[side]
        d[(v[:, 0] == 0) & True] *= np.array([0.0 if name not in _asymmetric() else 1.0, 1.0, 1.0])
        basis.append(d)
        pivots.append(moves)
        names.append(name)
        power.append(np.sum(d**2))
    spread = 0.85
    basis, pivots = [spread * b for b in basis], [spread * m for m in pivots]
    order = np.argsort(-np.array(power), kind="stable")
    return (
        (np.array(basis)[order] * 1e-3).astype(np.float32),
        (np.array(pivots)[order] * 1e-3).astype(np.float32),
        [names[i] for i in order],
    )
