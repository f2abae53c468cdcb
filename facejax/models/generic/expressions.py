"""The 52 ARKit-named expressions of the built-in head, as displacements at activation 1. Millimetres inside.

The jaw turns about the joint in front of the ears; lids slide over the eyeballs; the rest are soft pushes of muscles.
The subject's left is made, the right is its mirror image.
"""

import numpy as np

from facejax.models.generic import build, layout, sculpt
from facejax.models.generic.build import Mesh
from facejax.models.generic.sculpt import FLIP, smooth_step

ARKIT_NAMES = (
    "eyeBlinkLeft", "eyeLookDownLeft", "eyeLookInLeft", "eyeLookOutLeft", "eyeLookUpLeft", "eyeSquintLeft",
    "eyeWideLeft", "eyeBlinkRight", "eyeLookDownRight", "eyeLookInRight", "eyeLookOutRight", "eyeLookUpRight",
    "eyeSquintRight", "eyeWideRight", "jawForward", "jawLeft", "jawRight", "jawOpen", "mouthClose", "mouthFunnel",
    "mouthPucker", "mouthLeft", "mouthRight", "mouthSmileLeft", "mouthSmileRight", "mouthFrownLeft", "mouthFrownRight",
    "mouthDimpleLeft", "mouthDimpleRight", "mouthStretchLeft", "mouthStretchRight", "mouthRollLower", "mouthRollUpper",
    "mouthShrugLower", "mouthShrugUpper", "mouthPressLeft", "mouthPressRight", "mouthLowerDownLeft",
    "mouthLowerDownRight", "mouthUpperUpLeft", "mouthUpperUpRight", "browDownLeft", "browDownRight", "browInnerUp",
    "browOuterUpLeft", "browOuterUpRight", "cheekPuff", "cheekSquintLeft", "cheekSquintRight", "noseSneerLeft",
    "noseSneerRight", "tongueOut",
)  # fmt: skip
"""In the order of Apple's `ARFaceAnchor.BlendShapeLocation` documentation."""

JAW_ANGLE = 0.30
"""Rotation (rad) of the jaw at `jawOpen` 1."""


def _bump(p: np.ndarray, centre: tuple, sigma: tuple) -> np.ndarray:
    return np.exp(-0.5 * np.sum(((p - np.array(centre)) / np.array(sigma)) ** 2, axis=-1))


class _Muscles:
    """Soft pushes of the skin of one mesh."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        v = self.v = mesh.vertices.astype(float) * 1e3
        ring, part = mesh.ring, mesh.part
        skin = (part <= build.EAR).astype(float)
        inside = np.interp(ring, [8, 9, 10, 11, 12, 13], [1, 1, 0.95, 0.6, 0.2, 0])
        self.soft = skin * np.where(part == build.MOUTH, inside, 1.0)
        # Pushes of brow and cheek do not drag the lids over the eyeball.
        for side in (1.0, -1.0):
            r = np.linalg.norm((v - sculpt.EYE * np.array([side, 1, 1])) / np.array([1.15, 1.0, 1.0]), axis=1)
            self.soft *= 0.04 + 0.96 * smooth_step(r, 14.2, 21)
        self.jaw, self.lip = mesh.jaw.astype(float), mesh.lip.astype(float)
        self.upper = smooth_step(self.jaw, 0.46, 0.08)
        self.lower = smooth_step(self.jaw, 0.38, 0.80)

    def push(self, centre: tuple, sigma: tuple, amount: tuple, mask: np.ndarray | float = 1.0) -> np.ndarray:
        return (self.soft * mask * _bump(self.v, centre, sigma))[:, None] * np.array(amount)

    def both(self, centre: tuple, sigma: tuple, amount: tuple, mask: np.ndarray | float = 1.0) -> np.ndarray:
        left = self.push(centre, sigma, amount, mask)
        return left + left[self.mesh.mirror] * FLIP

    def jaw_turn(self) -> np.ndarray:
        """Displacement of every vertex if it were bone of the jaw at `jawOpen` 1."""
        q = self.v - sculpt.TMJ
        c, s = np.cos(JAW_ANGLE), np.sin(JAW_ANGLE)
        turned = np.column_stack([q[:, 0], c * q[:, 1] - s * q[:, 2], s * q[:, 1] + c * q[:, 2]])
        return turned - q + np.array([0.0, 0.0, 4.0])


def lids(mesh: Mesh, upper: float, lower: float) -> np.ndarray:
    """Displacement (V, 3), mm, of the left lids: shares by which the margins turn towards the line where they meet."""
    v = mesh.vertices.astype(float) * 1e3
    out = np.zeros_like(v)
    n = layout.EYE_COUNT // 2
    here = (mesh.part == build.EYE) & (v[:, 0] > 0)

    def ids(ring: int) -> np.ndarray:
        k = np.flatnonzero(here & (mesh.ring == ring))
        return k[np.argsort(mesh.slot[k])]

    def angle(p: np.ndarray) -> np.ndarray:
        return np.arctan2(p[:, 1] - sculpt.EYE[1], p[:, 2] - sculpt.EYE[2])

    margin = v[ids(8)]
    alpha = angle(margin)
    opposite = (-np.arange(2 * n)) % (2 * n)
    on_top = np.arange(2 * n) < n
    top, bottom = np.where(on_top, alpha, alpha[opposite]), np.where(on_top, alpha[opposite], alpha)
    meet = bottom + 0.12 * (top - bottom)
    turn = np.where(on_top, upper, lower) * (meet - alpha)
    # The skin between crease and margin unrolls evenly.
    share = {2: 0.02, 3: 0.06, 4: 0.13, 5: 0.26, 6: 0.52, 7: 0.80, 8: 1.0, 9: 1.0, 10: 1.0, 11: 0.9}
    low = {2: 0.10, 3: 0.22, 4: 0.38, 5: 0.55, 6: 0.72, 7: 0.88, 8: 1.0, 9: 1.0, 10: 1.0, 11: 0.9}
    floor = {7: 14.0, 8: 14.1, 9: 13.25, 10: 13.1, 11: 12.9}
    for ring, s in share.items():
        k = ids(ring)
        p = v[k] - sculpt.EYE
        t = turn * np.where(on_top, s, low[ring])
        c, w = np.cos(t), np.sin(t)
        q = np.column_stack([p[:, 0], c * p[:, 1] + w * p[:, 2], -w * p[:, 1] + c * p[:, 2]])
        if ring in floor:
            r = np.linalg.norm(q, axis=1)
            short = np.maximum(floor[ring] - r, 0.0) * smooth_step(np.abs(t), 0.0, 0.35)
            q *= (1 + short / r)[:, None]
        out[k] = q - p
    return out


def displacements(mesh: Mesh) -> np.ndarray:
    """(52, V, 3) float32 metres, in the order of `ARKIT_NAMES`."""
    m = _Muscles(mesh)
    v, mirror, jaw, lip = m.v, mesh.mirror, m.jaw, m.lip
    push, both = m.push, m.both
    shapes: dict[str, np.ndarray] = {}

    def pair(name: str, left: np.ndarray) -> None:
        shapes[name + "Left"] = left
        shapes[name + "Right"] = left[mirror] * FLIP

    # Eyes: what the lids do; the eyeballs turn by gaze.
    near = _bump(v, (31.5, 36, 96), (11, 8, 9)) * (mesh.part == build.EYE)
    shift = near[:, None] * np.array([1.0, 0.0, 0.0])
    pair("eyeBlink", lids(mesh, 1.0, 1.0) + push((31, 49, 93), (16, 6, 10), (0, -1.2, 0)))
    pair("eyeLookDown", lids(mesh, 0.62, -1.8))
    pair("eyeLookUp", lids(mesh, -0.28, 0.7))
    pair("eyeLookIn", -0.7 * shift)
    pair("eyeLookOut", 0.7 * shift)
    pair("eyeSquint", lids(mesh, 0.12, 2.2) + push((34, 20, 93), (14, 8, 12), (0, 2.4, 1.0)))
    pair("eyeWide", lids(mesh, -0.32, -0.5) + push((30, 50, 93), (16, 6, 10), (0, 1.4, 0)))

    # The jaw.
    turn = m.jaw_turn()
    shapes["jawOpen"] = jaw[:, None] * turn
    shapes["mouthClose"] = (lip * (0.42 - jaw))[:, None] * turn
    shapes["jawForward"] = jaw[:, None] * np.array([0.0, -0.5, 6.0])
    reach = np.clip((v[:, 2] + 20) / 120, 0, 1)
    shapes["jawLeft"] = (jaw * reach)[:, None] * np.array([7.0, 0.0, 0.0])
    shapes["jawRight"] = shapes["jawLeft"][mirror] * FLIP

    # The mouth.
    x, _y = v[:, 0], v[:, 1]
    corner = (25.0, -31.5, 98.0)
    muzzle = _bump(v, (0, -31, 108), (24, 14, 26)) * m.soft
    narrow = np.zeros_like(v)
    narrow[:, 0] = -0.42 * x * _bump(v, (0, -31, 104), (30, 15, 30)) * m.soft
    forward = _bump(v, (0, -31, 110), (17, 12, 26)) * m.soft
    # Pouting turns the red of the lips outwards.
    red = np.where(mesh.part == build.MOUTH, np.interp(mesh.ring, [2, 4, 6, 8, 9], [0, 0.4, 1, 0.4, 0]), 0.0)
    flare = np.zeros_like(v)
    flare[:, 1] = muzzle * red * (m.upper - m.lower)
    shapes["mouthPucker"] = narrow + forward[:, None] * np.array([0, 0, 7.0]) + 0.9 * flare
    funnel = np.zeros_like(v)
    funnel[:, 1] = muzzle * (4.6 * m.upper - 5.6 * m.lower)
    shapes["mouthFunnel"] = 0.62 * narrow + forward[:, None] * np.array([0, 0, 6.5]) + funnel + 0.8 * flare
    shapes["mouthLeft"] = push((0, -31, 108), (27, 15, 30), (8.0, 0, 0)) + push(
        (26, -30, 96), (13, 13, 20), (1.0, 0.8, -3.0)
    )
    shapes["mouthRight"] = shapes["mouthLeft"][mirror] * FLIP
    pair(
        "mouthSmile",
        push(corner, (12, 10.5, 20), (5.2, 7.0, -4.5)) + push((13, -31, 108), (8, 9, 20), (1.6, 1.2, -1.6))
        + push((39, -4, 90), (14, 12, 16), (1.0, 4.0, 2.4)) + push((34, 14, 90), (13, 7, 12), (0, 1.5, 0.6)),
    )  # fmt: skip
    pair(
        "mouthFrown",
        push((25, -33, 97), (10.5, 10, 20), (1.0, -6.5, -1.2)) + push((13, -36, 106), (8, 8, 18), (0, -1.2, 0)),
    )
    pair("mouthDimple", push((26, -31.5, 97), (8.5, 8, 18), (3.6, 0.8, -4.0)))
    pair(
        "mouthStretch",
        push((26, -35, 95), (13, 14, 22), (6.5, -4.0, -4.0)) + push((14, -38, 106), (8, 9, 18), (1.5, -1.6, -0.8)),
    )
    wide = _bump(v, (0, -31, 110), (19, 14, 30))
    roll = np.where(
        mesh.part == build.MOUTH,
        np.interp(mesh.ring, [1, 3, 4, 6, 8, 9, 10, 12], [0, 0.55, 1, 0.9, 0.35, 0.0, 0, 0]),
        0.0,
    )
    back = np.where(
        mesh.part == build.MOUTH, np.interp(mesh.ring, [1, 3, 5, 7, 9, 11, 13], [0, 0.3, 0.8, 1.0, 1.0, 0.5, 0]), 0.0
    )
    shapes["mouthRollLower"] = (m.lower * wide)[:, None] * np.column_stack([0 * x, 5.2 * roll, -4.2 * back])
    shapes["mouthRollUpper"] = (m.upper * wide)[:, None] * np.column_stack([0 * x, -4.6 * roll, -4.2 * back])
    shapes["mouthShrugLower"] = (
        push((0, -42, 108), (18, 11, 24), (0, 4.5, 2.4), m.lower) + push((0, -64, 100), (18, 12, 22), (0, 3.6, 0.6))
        + push((0, -27, 110), (18, 9, 24), (0, 3.0, 0.8), m.upper)
    )  # fmt: skip
    shapes["mouthShrugUpper"] = push((0, -25, 112), (20, 9, 26), (0, 3.4, 1.8), m.upper)
    press = np.column_stack([0 * x, roll * (2.0 * m.lower - 1.8 * m.upper), -1.6 * back])
    pair(
        "mouthPress", _bump(v, (15, -31, 106), (9, 14, 30))[:, None] * press + push(corner, (8, 7, 18), (0.8, 0, -1.2))
    )
    pair("mouthLowerDown", push((12, -38, 106), (11, 10, 26), (1.4, -6.5, -0.5), m.lower))
    pair(
        "mouthUpperUp",
        push((12, -25, 108), (11, 9, 26), (1.2, 5.5, 0.2), m.upper) + push((19, -5, 100), (9, 9, 12), (0.4, 2.0, 0.6)),
    )

    # Brows, cheeks, nose.
    pair(
        "browDown",
        push((21, 54, 97), (15, 9, 16), (-2.0, -5.0, 0.6)) + push((9, 54, 102), (8, 8, 12), (-1.6, -2.0, 0.8)),
    )
    shapes["browInnerUp"] = both((13, 57, 100), (11, 12, 16), (-0.6, 6.2, 0.2)) + push(
        (0, 74, 106), (24, 13, 16), (0, 2.6, 0)
    )
    pair("browOuterUp", push((38, 57, 87), (14, 12, 16), (0.4, 6.5, 0)))
    shapes["cheekPuff"] = both((39, -24, 86), (16, 17, 22), (7.5, 0, 5.5)) + push(
        (0, -31, 108), (26, 14, 22), (0, 0, 2.2)
    )
    pair("cheekSquint", push((37, 12, 90), (16, 10, 16), (0.2, 4.4, 2.2)))
    pair(
        "noseSneer",
        push((13, 0, 105), (8, 10, 12), (0.8, 3.4, -0.2)) + push((9, 24, 104), (7, 10, 10), (-0.6, 1.8, 0.9))
        + push((12, -22, 108), (9, 8, 20), (0.2, 2.4, 0), m.upper),
    )  # fmt: skip
    tongue = mesh.part == build.TONGUE
    along = smooth_step(v[:, 2], 46, 92) * tongue
    shapes["tongueOut"] = np.column_stack([-0.1 * x * along, 6.5 * along - 3.5 * along**4, 34.0 * along])
    return (np.stack([shapes[name] for name in ARKIT_NAMES]) * 1e-3).astype(np.float32)
