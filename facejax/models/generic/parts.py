"""What lies behind the skin of the built-in head: eyeballs, teeth, gums and tongue, as closed surfaces of their own.

Only the left half (x >= 0, exactly 0 on the midline) is made; the other is its mirror image. Millimetres, head frame.
"""

import dataclasses

import numpy as np

from facejax.models.generic import sculpt

EYE_SLICES = 24
EYE_ANGLES = (4.5, 9.5, 10.5, 17.0, 24.0, 28.3, 30.6, 38.0, 48.0, 60.0, 75.0, 95.0, 120.0, 150.0)
"""Angles (degrees) from the axis of the eyeball of its rings: pupil to 9.5, iris from 10.5 to 28.3, then the white."""
UPPER_TEETH, LOWER_TEETH = 101.0, 98.3
"""z of the middle of the front teeth."""


@dataclasses.dataclass
class Part:
    """A piece of the left half: (n, 3) vertices, (t, 3) triangles, (n,) rings and places on them, (n, 2) chart."""

    position: np.ndarray
    faces: np.ndarray
    ring: np.ndarray
    slot: np.ndarray
    uv: np.ndarray
    """Own chart of the piece within [0, 1]^2."""


def grid_faces(rows: int, columns: int, closed: bool) -> np.ndarray:
    """Triangles of a (rows, columns) grid, the columns closed into a loop if asked; row-major ids."""
    c = np.arange(columns if closed else columns - 1)
    faces = []
    for r in range(rows - 1):
        a, b = r * columns + c, r * columns + (c + 1) % columns
        faces += [np.column_stack([a, b, b + columns]), np.column_stack([a, b + columns, a + columns])]
    return np.concatenate(faces)


def eyeball() -> Part:
    """The left eyeball, 12 mm in radius, the cornea bulging about 1 mm; vertex 0 is the middle of the pupil."""
    theta = np.radians(EYE_ANGLES)
    bulge = np.clip(1 - np.array(EYE_ANGLES) / 33.0, 0, 1)
    r = sculpt.EYE_RADIUS + 0.9 * (1 - (1 - bulge) ** 2)
    phi = np.arange(EYE_SLICES) * 2 * np.pi / EYE_SLICES
    ring = (
        np.stack(
            [
                np.sin(theta)[:, None] * np.cos(phi),
                np.sin(theta)[:, None] * np.sin(phi),
                np.broadcast_to(np.cos(theta)[:, None], (len(theta), len(phi))),
            ],
            axis=-1,
        )
        * r[:, None, None]
    )
    front, back = np.array([[0, 0, sculpt.EYE_RADIUS + 0.9]]), np.array([[0, 0, -sculpt.EYE_RADIUS]])
    position = sculpt.EYE + np.concatenate([front, ring.reshape(-1, 3), back])
    n, m = EYE_SLICES, len(theta)
    i = np.arange(n)
    j = (i + 1) % n
    last = 1 + (m - 1) * n
    faces = np.concatenate(
        [
            np.column_stack([np.zeros(n, int), 1 + i, 1 + j]),
            grid_faces(m, n, True)[:, ::-1] + 1,
            np.column_stack([last + j, last + i, np.full(n, len(position) - 1)]),
        ]
    )
    # Two discs would waste the back: one disc, the angle from the axis as radius.
    radius = np.concatenate([[0], np.array(EYE_ANGLES) / 165.0, [1.0]])
    uv = 0.5 + 0.5 * np.column_stack(
        [
            np.concatenate([[0], (radius[1:-1, None] * np.cos(phi)).ravel(), [0]]),
            np.concatenate([[0], (radius[1:-1, None] * np.sin(phi)).ravel(), [0]]),
        ]
    )
    return Part(
        position,
        faces,
        np.concatenate([[0], np.repeat(np.arange(1, m + 1), n), [m + 1]]),
        np.concatenate([[0], np.tile(i, m), [0]]),
        uv,
    )


def _tube(sections: np.ndarray, cap: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A tube through (columns, points, 3) sections, the first on x = 0; its far end is closed by a vertex."""
    c, p, _ = sections.shape
    position = sections.reshape(-1, 3)
    faces = grid_faces(c, p, True)
    ring, slot = np.repeat(np.arange(c), p), np.tile(np.arange(p), c)
    uv = np.column_stack([np.repeat(np.linspace(0.5, 0.97, c), p), np.tile(np.linspace(0.05, 0.9, p), c)])
    if cap:
        i = np.arange(p)
        start = (c - 1) * p
        faces = np.concatenate([faces, np.column_stack([start + i, start + (i + 1) % p, np.full(p, len(position))])])
        position = np.concatenate([position, sections[-1].mean(0)[None]])
        ring, slot = np.append(ring, c), np.append(slot, 0)
        uv = np.concatenate([uv, [[0.995, 0.5]]])
    return position, faces, ring, slot, uv


def _arch(length: np.ndarray, front: float, half_width: float, depth: float) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 2) in (x, z) at arc lengths along a dental arch, and their outward normals."""
    t = np.linspace(0, np.pi / 2, 2000)
    x, z = half_width * np.sin(t) ** 0.9, front - depth + depth * np.cos(t)
    s = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(z)))])
    point = np.column_stack([np.interp(length, s, x), np.interp(length, s, z)])
    ahead = np.column_stack([np.interp(length + 0.5, s, x), np.interp(length + 0.5, s, z)])
    tangent = ahead - point
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    normal = np.column_stack([-tangent[:, 1], tangent[:, 0]])
    normal[length == 0] = [0.0, 1.0]
    return point, normal


def _sweep(point: np.ndarray, normal: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """Sections (c, p, 3): profile (c, p, 2) of (outward, y) along an arch."""
    xz = point[:, None] + profile[..., :1] * normal[:, None]
    xz[0, :, 0] = 0.0
    return np.stack([xz[..., 0], profile[..., 1], xz[..., 1]], axis=-1)


_UPPER_WIDTHS = (8.4, 6.6, 7.6, 7.0, 6.8, 9.5)
_LOWER_WIDTHS = (5.3, 5.9, 6.8, 7.0, 7.2, 10.5)


def teeth(upper: bool) -> Part:
    """Left half of a row of twelve teeth."""
    widths = _UPPER_WIDTHS if upper else _LOWER_WIDTHS
    ends = np.concatenate([[0], np.cumsum(widths)])
    # Three columns per tooth: its border, where it is recessed, and two on its face.
    length = np.sort(np.concatenate([ends, ends[:-1] + 0.22 * np.diff(ends), ends[:-1] + 0.78 * np.diff(ends)]))
    gap = np.isin(length, ends)
    point, normal = _arch(
        length, UPPER_TEETH if upper else LOWER_TEETH, 26.5 if upper else 24.5, 41.0 if upper else 39.0
    )
    tooth = np.clip(np.searchsorted(ends, length, side="right") - 1, 0, len(widths) - 1)
    tall = np.array([10.4, 9.2, 10.2, 8.4, 7.8, 7.4] if upper else [9.0, 9.2, 10.0, 8.8, 8.0, 7.6])[tooth]
    sign = -1.0 if upper else 1.0
    gum = sculpt.MOUTH_Y + (7.4 if upper else -10.6)
    thick = np.interp(tooth, [0, 2, 3, 5], [2.2, 3.4, 6.5, 9.0])
    inset, short = np.where(gap, 0.85, 0.0), np.where(gap, 0.9, 0.0)
    edge = gum + sign * (tall - short)
    rows = [
        (-0.9 - 0.3 * inset, gum - sign * 2.5),
        (0.1 - inset, gum + sign * 1.2),
        (0.55 - inset, gum + sign * 0.55 * tall),
        (-0.1 - inset, edge - sign * 0.7),
        (-0.9 - inset, edge),
        (-thick * 0.75, edge - sign * 0.6),
        (-thick - 1.0, gum),
    ]
    profile = np.stack([np.column_stack([np.full(len(length), a), np.full(len(length), b)]) for a, b in rows], axis=1)
    return Part(*_tube(_sweep(point, normal, profile)))


def gum(upper: bool) -> Part:
    """Left half of the gum of a row of teeth."""
    length = np.linspace(0, 46.0, 17)
    point, normal = _arch(
        length, UPPER_TEETH if upper else LOWER_TEETH, 26.5 if upper else 24.5, 41.0 if upper else 39.0
    )
    sign = 1.0 if upper else -1.0
    base = sculpt.MOUTH_Y + (7.4 if upper else -10.6)
    rows = [
        (0.75, base - sign * 0.4),
        (1.15, base + sign * 3.0),
        (0.4, base + sign * 9.0),
        (-7.0, base + sign * 9.0),
        (-6.0, base - sign * 1.0),
    ]
    profile = np.stack([np.column_stack([np.full(len(length), a), np.full(len(length), b)]) for a, b in rows], axis=1)
    return Part(*_tube(_sweep(point, normal, profile)))


def tongue() -> Part:
    """Left half of the tongue, resting on the floor of the mouth behind the lower teeth."""
    z = np.array([90.5, 88.5, 84.0, 78.0, 71.0, 63.0, 55.0, 48.0])
    wide = np.array([4.5, 9.0, 13.5, 16.0, 17.5, 18.0, 17.0, 13.0])
    high = np.array([1.6, 2.9, 4.4, 5.8, 7.0, 8.0, 8.4, 7.0])
    y = np.array([-37.5, -37.6, -37.6, -37.4, -37.2, -37.2, -38.0, -40.0])
    turn = np.linspace(-np.pi / 2, np.pi / 2, 9)
    x = wide[:, None] * np.cos(turn)
    x[:, 0] = x[:, -1] = 0.0
    groove = 0.12 * high[:, None] * np.exp(-((x / 3.0) ** 2)) * (turn > 0)
    section = np.stack(
        [x, y[:, None] + high[:, None] * np.sin(turn) - groove, np.broadcast_to(z[:, None], x.shape)], axis=-1
    )
    rows, columns = x.shape
    position = np.concatenate([section.reshape(-1, 3), [[0, y[0] - 0.2, 92.0]], [[0, y[-1], 44.0]]])
    tip, root = rows * columns, rows * columns + 1
    i = np.arange(columns - 1)
    last = (rows - 1) * columns
    faces = np.concatenate(
        [
            grid_faces(rows, columns, False)[:, ::-1],
            np.column_stack([i, i + 1, np.full(columns - 1, tip)]),
            np.column_stack([last + i + 1, last + i, np.full(columns - 1, root)]),
        ]
    )
    uv = np.column_stack(
        [0.5 + 0.45 * np.tile(np.linspace(0.0, 1.0, columns), rows), np.repeat(np.linspace(0.92, 0.08, rows), columns)]
    )
    uv = np.concatenate([uv, [[0.5, 0.99], [0.5, 0.01]]])
    return Part(
        position,
        faces,
        np.append(np.repeat(np.arange(rows), columns), [rows, rows + 1]),
        np.append(np.tile(np.arange(columns), rows), [0, 0]),
        uv,
    )
