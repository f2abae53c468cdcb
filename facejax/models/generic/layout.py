"""Where the vertices of the built-in head lie: rings around eyes, mouth, nostrils and ears, triangles between them.

The mesh of the left half is laid out on the smooth head (no nose, no eyes), which is star-shaped about `CENTRE`:
directions from there are a chart without seams, so the triangles between the rings are the convex hull of directions.
It is then moved onto the sculpture. Millimetres, head frame.
"""

import dataclasses

import numpy as np

from facejax.models.generic import sculpt

CENTRE = np.array([0.0, 10.0, 0.0])
NECK_Y = -142.0
EYE_COUNT, MOUTH_COUNT, NOSTRIL_COUNT, EAR_COUNT = 40, 48, 16, 28


@dataclasses.dataclass
class Ring:
    """One loop of vertices around a feature, counter-clockwise from outside; for the mouth its half with x >= 0."""

    guide: np.ndarray
    """(n, 3) points whose directions place it in the chart; used only for the outermost ring of a feature."""
    position: np.ndarray
    """(n, 3) where it starts on the head."""
    hold: float | np.ndarray
    """1: stays where it is; 0: is relaxed on the skin like any other vertex."""


def radius(direction: np.ndarray, features: bool) -> np.ndarray:
    """Distance (n,) from `CENTRE` to the outermost crossing of the surface along unit directions (n, 3)."""
    t = np.linspace(200.0, 40.0, 81)
    low, high = np.zeros(len(direction)), np.full(len(direction), 200.0)
    open_ = np.ones(len(direction), bool)
    for ti in t:
        inside = open_ & (sculpt.field(CENTRE + ti * direction, features) < 0)
        low[inside], high[inside] = ti, ti + 2.0
        open_ &= ~inside
    for _ in range(14):
        mid = (low + high) / 2
        inside = sculpt.field(CENTRE + mid[:, None] * direction, features) < 0
        low, high = np.where(inside, mid, low), np.where(inside, high, mid)
    return (low + high) / 2


def along(p: np.ndarray, direction: np.ndarray, features: bool = True, reach: float = 60.0) -> np.ndarray:
    """First point of the skin met from `p + reach * direction` going against `direction`, for each p (n, 3)."""
    d = np.broadcast_to(direction, p.shape)
    d = d / np.linalg.norm(d, axis=-1, keepdims=True)
    low, high = np.full(len(p), -80.0), np.full(len(p), reach)
    open_ = np.ones(len(p), bool)
    for ti in np.arange(reach, -80.0, -1.0):
        inside = open_ & (sculpt.field(p + ti * d, features) < 0)
        low[inside], high[inside] = ti, ti + 1.0
        open_ &= ~inside
    for _ in range(12):
        mid = (low + high) / 2
        inside = sculpt.field(p + mid[:, None] * d, features) < 0
        low, high = np.where(inside, mid, low), np.where(inside, high, mid)
    return p + ((low + high) / 2)[:, None] * d


def _front(xy: np.ndarray, features: bool) -> np.ndarray:
    return along(np.column_stack([xy, np.full(len(xy), 70.0)]), np.array([0.0, 0.0, 1.0]), features, 70.0)


def lid_depth(dx: np.ndarray, dy: np.ndarray, r: float) -> np.ndarray:
    """z of a lid margin at offset (dx, dy) from the eye's centre: on the sphere of radius r, joined to the canthi."""
    sphere = np.sqrt(np.maximum(r * r - dx * dx - dy * dy, 0.0))
    canthus = 2.6 - 0.17 * dx
    k = 3.0
    h = np.maximum(k - np.abs(sphere - canthus), 0) / k
    return sculpt.EYE[2] + np.maximum(sphere, canthus) + h**3 * k / 6


def eye_rings() -> list[Ring]:
    """Rings of the left eye from the orbit to behind the lid."""
    n = EYE_COUNT // 2
    # Upper lid from the outer to the inner corner, then the lower lid back.
    s = np.linspace(0, np.pi, n + 1)
    c = np.concatenate([np.cos(s[:-1]), -np.cos(s[:-1])])
    up = np.concatenate([np.ones(n, bool), np.zeros(n, bool)])
    mid, half = (sculpt.EYE_OUTER + sculpt.EYE_INNER) / 2, (sculpt.EYE_OUTER - sculpt.EYE_INNER) / 2
    dx = mid + half * np.sign(c) * np.abs(c) ** 0.9
    upper, lower, crease_y = sculpt.lid_curves(dx)
    margin = np.column_stack([dx, np.where(up, upper, lower)])
    phi = np.concatenate([s[:-1], np.pi + s[:-1]])
    oval = np.column_stack([1.0 + 21.5 * np.cos(phi), np.where(up, 15.0, 15.5) * np.sin(phi) - 0.5])
    lower_crease = lower - 5.5 * np.sin(np.pi * np.clip((1 - np.abs(c)), 0, 1) / 2) - 0.8
    crease = np.column_stack([dx * 1.06 + 0.0, np.where(up, crease_y, lower_crease)])
    crease[0] += [2.6, 0.4]
    crease[n] += [-1.6, -0.2]
    rings = []
    for f in (0.0, 0.2, 0.4, 0.6, 0.8):
        xy = (1 - f) * oval + f * crease
        rings.append(Ring(_front(xy + sculpt.EYE[:2], False), _front(xy + sculpt.EYE[:2], True), 0.0))
    for f, offset in ((0.0, -1.7), (0.33, 0.1), (0.67, 0.15)):
        xy = (1 - f) * crease + f * margin
        p = _front(xy + sculpt.EYE[:2], True)
        lid = lid_depth(xy[:, 0], xy[:, 1], sculpt.LID_RADIUS)
        p[:, 2] = np.maximum(lid, p[:, 2]) if f > 0 else p[:, 2]
        weight = np.where(up, 1.0, 0.35) * np.sin(np.pi * np.arange(2 * n) / n) ** 2
        p[:, 2] += offset * weight
        even = np.abs(np.sin(np.pi * np.arange(2 * n) / n))  # 0 at the corners, where the skin finds its own way
        rings.append(Ring(p, p, (0.6 if f > 0 else 0.7) * even**0.7))
    inward = np.array([mid, 0.0]) - margin
    inward /= np.linalg.norm(inward, axis=1, keepdims=True)
    for step, r in ((0.0, 13.7), (0.45, 12.55), (-2.5, 12.6), (-6.0, 12.8)):
        xy = margin + step * (1 - 0.75 * (step < 0) * np.abs(c)[:, None] ** 4) * inward
        z = lid_depth(xy[:, 0], xy[:, 1], r)
        if step < 0:
            z = np.minimum(z, lid_depth(margin[:, 0], margin[:, 1], 12.4)) + 0.7 * step * (np.abs(c) ** 4)
        p = np.column_stack([xy + sculpt.EYE[:2], z])
        if step < 0:  # behind the skin, also where that falls off to the temple and the nose
            p[:, 2] = np.minimum(z, _front(p[:, :2], True)[:, 2] - 1.2 - 1.8 * np.abs(c) ** 4)
            # In the corners the pocket closes on the eyeball instead, or one would look past it into the skull.
            ball = np.column_stack([np.clip(margin[:, 0], -10.2, 10.4), 0.75 * margin[:, 1], np.zeros(2 * n)])
            ball[:, 2] = np.sqrt(12.3**2 - ball[:, 0] ** 2 - ball[:, 1] ** 2)
            ball *= 1.0 if step > -3 else 11.75 / 12.3
            if step < -3:
                ball[:, 0] *= 0.94
            share = sculpt.smooth_step(np.abs(c), 0.60, 0.92)[:, None]
            p = (1 - share) * p + share * (sculpt.EYE + ball)
        rings.append(Ring(p, p, 1.0))
    return rings


def mouth_rings() -> list[Ring]:
    """Left half (x >= 0) of the rings of the mouth, from the muzzle over the lips into the closed cavity.

    Each runs from the bottom at x = 0 over the corner to the top at x = 0.
    """
    n = MOUTH_COUNT // 4
    phi = np.linspace(-np.pi / 2, np.pi / 2, 2 * n + 1)
    cos, up = np.abs(np.cos(phi)), phi > 1e-9
    corner = np.abs(phi) < 1e-9
    cos[0] = cos[-1] = 0.0
    w = sculpt.MOUTH_HALF_WIDTH

    def at(level: float, widen: float) -> np.ndarray:
        x = (w + widen) * cos
        hu, hl = sculpt.lip_heights(np.minimum(x, w))
        y0 = sculpt.mouth_line(x)
        y = np.where(up, y0 + level * hu, y0 - level * hl)
        return np.column_stack([x, np.where(corner, y0, y)])

    oval = np.column_stack([34.5 * cos, np.where(up, -31 + 16.5 * np.sin(phi), -31 + 20.5 * np.sin(phi))])
    border = at(1.32, 3.2)
    rings = []
    for f in (0.0, 0.36, 0.7):
        xy = (1 - f) * oval + f * border
        rings.append(Ring(_front(xy, False), _front(xy, True), 0.0))
    for level, widen in ((1.32, 3.2), (1.04, 1.7), (0.86, 1.2), (0.62, 0.8), (0.38, 0.4), (0.17, 0.15)):
        p = _front(at(level, widen), True)
        rings.append(Ring(p, p, 0.3 if level > 1.1 else 0.85))
    front = _front(at(0.17, 0.15), True)
    lip_z = front[:, 2]
    shut = at(0.03, 0.0)
    shut[:, 1] = sculpt.mouth_line(shut[:, 0]) + np.where(corner, 0.0, np.where(up, 0.12, -0.12))
    rings.append(Ring(p, np.column_stack([shut, lip_z - 2.0]), 1.0))
    for dz, wide, high_up, high_low in (  # the vestibule between lips and teeth, then the cavity
        (5.0, -0.5, 0.5, 0.5),
        (6.5, 1.0, 6.0, 6.0),
        (10.0, 2.0, 13.0, 11.5),
        (19.0, 5.0, 18.0, 18.0),
        (42.0, 2.0, 19.0, 21.0),
        (58.0, -8.0, 12.0, 15.0),
    ):
        x = (w + wide) * cos
        y = sculpt.mouth_line(shut[:, 0]) + np.where(up, high_up, -high_low) * np.abs(np.sin(phi)) ** 0.7
        z = lip_z - dz - (2.0 * cos**2 if dz > 6 else 0.0)
        rings.append(Ring(p, np.column_stack([x, y, z]), 1.0))
    return rings


def nostril_rings() -> list[Ring]:
    """Rings of the left nostril: around it on the underside of the nose, its rim, and up into it."""
    centre, axis = sculpt.nostril_axis()
    phi = np.arange(NOSTRIL_COUNT) * 2 * np.pi / NOSTRIL_COUNT
    guide = np.column_stack([8.6 + 4.6 * np.cos(phi), -8.2 + 3.0 * np.sin(phi)])
    forward = np.array([-0.42, 0.0, 1.0])
    forward -= (forward @ axis) * axis
    forward /= np.linalg.norm(forward)
    side = np.cross(axis, forward)
    side *= np.sign(side[0])
    # phi = 0 is lateral and pi / 2 in front: counter-clockwise from below, and so from the front of the chart.
    rings: list[Ring] = []
    for scale, depth, hold in ((1.35, 0.0, 0.0), (1.0, 0.0, 0.7), (0.86, 2.0, 1.0), (0.75, 5.0, 1.0), (0.45, 8.5, 1.0)):
        q = centre + scale * (3.0 * np.cos(phi)[:, None] * side + 5.2 * np.sin(phi)[:, None] * forward)
        p = along(q, -axis, True, 6.0) + depth * axis
        if depth > 0:
            p = (
                rings[1].position.mean(0)
                + 0.6 * (p - rings[1].position.mean(0))
                + 0.4 * (q + depth * axis - rings[1].position.mean(0))
            )
        rings.append(Ring(_front(guide, False), p, hold))
    return rings


def ear_rings() -> list[Ring]:
    """Rings of the left ear, from the skull over helix and antihelix into the concha."""
    phi = np.arange(EAR_COUNT) * 2 * np.pi / EAR_COUNT  # 0 behind, pi / 2 above, pi in front, 3 pi / 2 below
    a, b = np.cos(phi), np.sin(phi)
    front = sculpt.smooth_step(-a, 0.15, 0.85)  # 1 where the ear is grown to the face
    lobe = np.exp(-(((phi - 1.42 * np.pi) / 0.55) ** 2))
    tilt = np.radians(12)
    root = np.array([20.0, -4.0])  # (y, z) of the middle of the ear

    def plane(back: np.ndarray, up: np.ndarray) -> np.ndarray:
        y = root[0] + np.cos(tilt) * up - np.sin(tilt) * back * 0.6
        z = root[1] - np.cos(tilt) * back - np.sin(tilt) * up
        return np.column_stack([np.zeros_like(y), y, z])

    side = np.array([1.0, 0.0, 0.0])

    def skin_at(back: np.ndarray, up: np.ndarray) -> np.ndarray:
        return along(plane(back, up), side, True, 110.0)[:, 0]

    base_xy = np.column_stack([-2 + 13.0 * a, 25.0 * b])
    base = along(plane(base_xy[:, 0], base_xy[:, 1]), side, True, 110.0)
    rings = [Ring(along(plane(base_xy[:, 0], base_xy[:, 1]), side, False, 110.0), base, 0.3)]
    # An egg, wider and further back above, with the lobe below in front.
    outline = np.column_stack([np.where(a > 0, 17.5 + 3.5 * b, 12.5) * a - 1.0 - 3.0 * lobe, 30.5 * b + 1.0])
    middle = np.array([-3.0, -2.0])
    loose = 1 - front
    rise = loose * (8 + 8.5 * np.clip(a, 0, 1) + 3.0 * np.clip(b, 0, 1) - 3.5 * lobe)
    wall = skin_at(base_xy[:, 0], base_xy[:, 1])
    # Scale of the outline; height relative to the rim where the ear is free; height above the skin where it is not.
    profile = (
        (0.84, -6.5, 0.2), (0.96, -3.0, 0.6), (1.00, -0.8, 1.2), (0.97, 0.9, 1.8), (0.90, 0.7, 2.0), (0.82, -2.2, 2.0),
        (0.70, -2.4, 2.2), (0.60, -0.4, 2.4), (0.49, -2.6, 1.4), (0.40, -6.5, -1.0), (0.22, -8.5, -4.0),
    )  # fmt: skip
    tragus = np.exp(-(((phi - 1.10 * np.pi) / 0.30) ** 2))
    for k, (scale, lift, grown) in enumerate(profile):
        full = middle + scale * (outline - middle)
        held = middle + (1.06 - 0.055 * k) * (outline - middle) if k < 9 else full
        xy = loose[:, None] * full + front[:, None] * held
        q = plane(xy[:, 0], xy[:, 1])
        depth = lift * (1 - 0.7 * lobe * (k > 0))
        flesh = grown + (2.6 * tragus if 5 <= k <= 8 else 0.0)
        q[:, 0] = loose * (wall + np.maximum(rise + depth, -4.0)) + front * (skin_at(xy[:, 0], xy[:, 1]) + flesh)
        rings.append(Ring(q, q, 0.7))
    return rings


_ANCHORS = (  # centre, radius within which the edge length is h0, h0, growth beyond
    ((0, 0, 108), 19, 2.0, 0.15),
    ((30, 52, 90), 15, 2.15, 0.12),
    ((31, 34, 88), 24, 2.9, 0.12),
    ((0, -31, 100), 36, 3.3, 0.11),
    ((0, 5, 86), 60, 4.2, 0.11),
    ((72, 18, -4), 26, 4.2, 0.15),
)


def edge_length(p: np.ndarray) -> np.ndarray:
    """Wanted length (n,) of edges at points (n, 3) of the left half."""
    h = np.full(len(p), 9.6)
    for centre, r, h0, growth in _ANCHORS:
        h = np.minimum(h, h0 + growth * np.maximum(np.linalg.norm(p - np.array(centre), axis=1) - r, 0))
    return h


def _hull(directions: np.ndarray) -> np.ndarray:
    from scipy.spatial import ConvexHull

    hull = ConvexHull(directions)
    tri = hull.simplices.copy()
    a, b, c = (directions[tri[:, i]] for i in range(3))
    flip = np.einsum("ni,ni->n", np.cross(b - a, c - a), a + b + c) < 0
    tri[flip] = tri[flip][:, ::-1]
    return tri


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def _inside(points: np.ndarray, loop: np.ndarray, margin: float) -> np.ndarray:
    """Whether directions lie within a closed loop of directions grown by `margin` (relative)."""
    centre = _unit(loop.mean(0))
    u = _unit(np.cross(centre, [0.0, 1.0, 0.1]))
    v = np.cross(centre, u)

    def flat(d: np.ndarray) -> np.ndarray:
        return np.column_stack([d @ u, d @ v]) / np.maximum(d @ centre, 0.05)[:, None]

    q, poly = flat(points), flat(loop) * margin
    x1, y1 = poly.T
    x2, y2 = np.roll(poly, -1, axis=0).T
    cross = (y1 > q[:, 1:]) != (y2 > q[:, 1:])
    t = (q[:, 1:] - y1) / np.where(y2 == y1, 1.0, y2 - y1)
    odd = np.sum(cross & (q[:, :1] < x1 + t * (x2 - x1)), axis=1) % 2 == 1
    return odd & (points @ centre > 0.3)


@dataclasses.dataclass
class Half:
    """The skin of the left half: vertices with x >= 0 (exactly 0 on the midline)."""

    position: np.ndarray
    faces: np.ndarray
    hold: np.ndarray
    part: np.ndarray
    """Feature of each vertex: 0 free skin, 1 eye, 2 mouth, 3 nostril, 4 ear."""
    ring: np.ndarray
    """Number of its ring from outside; -1 for free skin."""
    slot: np.ndarray
    """Place on its ring; -1 for free skin."""
    direction: np.ndarray
    """(n, 3) its place in the chart (unit vectors), meaningful for free skin and outermost rings."""


def _strip(outer: np.ndarray, inner: np.ndarray, closed: bool) -> np.ndarray:
    n = len(outer)
    i = np.arange(n if closed else n - 1)
    j = (i + 1) % n
    return np.concatenate(
        [np.column_stack([outer[i], outer[j], inner[j]]), np.column_stack([outer[i], inner[j], inner[i]])]
    )


def _lift(d: np.ndarray) -> np.ndarray:
    """Points (n, 3) of the smooth head in directions (n, 3)."""
    return CENTRE + radius(d, False)[:, None] * d


def _neck_end() -> np.ndarray:
    """Points (17, 3) of the left half of the neck's lower end, from the front to the back."""
    turn = np.linspace(0, np.pi, 17)
    axis = np.column_stack([0 * turn, np.full(17, NECK_Y), np.full(17, -25.0)])
    neck = along(axis, np.column_stack([np.sin(turn), 0 * turn, np.cos(turn)]), False, 110.0)
    neck[0, 0] = neck[-1, 0] = 0.0
    return neck


def _seam_rings() -> np.ndarray:
    """Directions around the point behind the head that the texture chart shows as its rim.

    That point must be a vertex, and even rings must surround it, or the chart's straight edges would fold over its rim.
    """
    turn = np.linspace(-np.pi / 2, np.pi / 2, 15)
    rings = [
        np.column_stack([np.sin(rho) * np.cos(turn), np.sin(rho) * np.sin(turn), np.full(15, np.cos(rho))])
        for rho in np.radians([174.0, 167.0, 160.0, 152.0])
    ]
    return np.concatenate([[[0.0, 0.0, -1.0]], *rings])


def _thin(d: np.ndarray, taken: np.ndarray, order: np.ndarray, factor: float, loops: list[np.ndarray]) -> np.ndarray:
    """Of directions (n, 3), those that keep the wanted distances among each other and to `taken` points, by `order`.

    None is kept within a closed loop or at the end of the neck. `factor` scales the distances.
    """
    from scipy.spatial import cKDTree

    p = _lift(d)
    ok = p[:, 1] > NECK_Y + 5
    for loop in loops:
        ok &= ~_inside(d, loop, 1.06)
    d, p, order = d[ok], p[ok], order[ok]
    h = edge_length(p) * factor
    open_ = cKDTree(taken).query(p)[0] > 0.75 * h
    kept = np.zeros(len(p), bool)
    tree = cKDTree(p)
    for k in np.argsort(order):
        if open_[k]:
            open_[tree.query_ball_point(p[k], h[k])] = False
            kept[k] = True
    return d[kept]


def _scatter(fixed: np.ndarray, loops: list[np.ndarray], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """First directions of free vertices: on the midline, and to its left."""
    rng = np.random.default_rng(seed)
    m = 60_000  # a Fibonacci sphere of candidates, taken in a fixed random order
    turn, y = np.pi * (1 + 5**0.5) * (np.arange(m) + 0.5), 1 - 2 * (np.arange(m) + 0.5) / m
    sphere = np.column_stack([np.cos(turn) * np.sqrt(1 - y**2), y, np.sin(turn) * np.sqrt(1 - y**2)])
    sphere = sphere[sphere[:, 0] > 0]
    meridian = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    line = np.column_stack([0 * meridian, np.sin(meridian), np.cos(meridian)])
    taken = _lift(fixed)
    middle = _thin(line, taken, np.arange(len(line)), 0.95, loops)
    # Half an edge away from the midline, so that no triangle crosses it.
    p = _lift(sphere)
    sphere = sphere[p[:, 0] > 0.6 * edge_length(p)]
    taken = np.concatenate([taken, _lift(middle)])
    return middle, _thin(sphere, taken, rng.random(len(sphere)), 0.84, loops)


def _spread(fixed: np.ndarray, middle: np.ndarray, free: np.ndarray, ghosts: np.ndarray, steps: int) -> np.ndarray:
    """Directions of fixed and free vertices after the free ones have pushed each other apart to the wanted distances.

    Ghosts push but are not kept. Vertices on the midline stay there; what slips over the end of the neck is dropped.
    """
    d = np.concatenate([fixed, middle, free, ghosts])
    n, first_free, end = len(d), len(fixed) + len(middle), len(d) - len(ghosts)
    index = np.arange(n)
    moves = (index >= len(fixed)) & (index < end)
    side = d[:, 0] > 0
    twin = np.flatnonzero(side)
    for step in range(steps):
        if step % 4 == 0:
            tri = _hull(np.concatenate([d, d[twin] * sculpt.FLIP]))
            edges = np.unique(np.sort(np.concatenate([tri[:, [0, 1]], tri[:, [1, 2]], tri[:, [2, 0]]]), axis=1), axis=0)
        if step % 8 == 0:
            r = radius(d, False)
        p = CENTRE + r[:, None] * d
        both = np.concatenate([p, p[twin] * sculpt.FLIP])
        h = edge_length(np.abs(both))
        e = both[edges[:, 1]] - both[edges[:, 0]]
        length = np.linalg.norm(e, axis=1)
        want = 1.12 * (h[edges[:, 0]] + h[edges[:, 1]]) / 2
        force = np.maximum(want - length, 0)[:, None] * e / length[:, None]
        total = np.zeros_like(both)
        np.add.at(total, edges[:, 0], -force)
        np.add.at(total, edges[:, 1], force)
        move = 0.18 * total[:n] * moves[:, None]
        move[len(fixed) : first_free, 0] = 0
        d = _unit(d * r[:, None] + move)
        low = moves & (p[:, 1] < NECK_Y + 7)
        d[low, 1] += 2.0 / r[low]
        near = moves & (index >= first_free) & (d[:, 0] * r < 0.62 * h[:n])
        d[near, 0] = 0.62 * h[:n][near] / r[near]
        d = _unit(d)
        d[~side, 0] = 0.0
    return d[(index < end) & (~moves | (p[:, 1] > NECK_Y + 2))]


def _triangulate(d: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Triangles between directions of the left half, but those that fill a loop (all corners of one owner >= 0)."""
    tri = _hull(np.concatenate([d, d[d[:, 0] > 0] * sculpt.FLIP]))
    tri = tri[np.all(tri < len(d), axis=1)]
    o = owner[tri]
    return tri[~((o[:, 0] >= 0) & (o[:, 0] == o[:, 1]) & (o[:, 0] == o[:, 2]))]


def _fan(ring: np.ndarray, apex: int, closed: bool) -> np.ndarray:
    """Triangles from the vertices of a ring to one vertex."""
    last = np.roll(ring, -1)
    fan = np.column_stack([ring, last, np.full(len(ring), apex)])
    return fan if closed else fan[:-1]


def build_half(seed: int = 0, steps: int = 140) -> Half:
    """Lay out the left half and bring it onto the sculpture (not yet relaxed there)."""
    features = [eye_rings(), mouth_rings(), nostril_rings(), ear_rings()]
    loops = [_unit(f[0].guide - CENTRE) for f in features]
    closed_loops = [loops[0], np.concatenate([loops[1], (loops[1] * sculpt.FLIP)[-2:0:-1]]), loops[2], loops[3]]
    neck = _neck_end()
    fixed = np.concatenate([*loops, _unit(neck - CENTRE), _seam_rings()])
    fixed[np.abs(fixed[:, 0]) < 1e-7, 0] = 0.0
    middle, free = _scatter(fixed, closed_loops, seed)
    # Ghosts in the middle of the loops' edges keep free vertices away, so that the loops are edges of the hull.
    ghosts = np.concatenate(
        [_unit(l[1:] + l[:-1]) if k == 1 else _unit(l + np.roll(l, -1, axis=0)) for k, l in enumerate(loops)]
    )
    d = _spread(fixed, middle, free, ghosts, steps)
    n = len(d)
    starts = np.concatenate([[0], np.cumsum([len(l) for l in loops])])
    owner = np.full(n, -1)
    for k in range(len(loops)):
        owner[starts[k] : starts[k + 1]] = k
    end = slice(starts[-1], starts[-1] + len(neck))
    owner[end] = len(loops)

    position, hold = CENTRE + radius(d, True)[:, None] * d, np.zeros(n)
    position[end], hold[end] = neck, 1.0
    part, ring_number, slot = np.zeros(n, int), np.full(n, -1), np.full(n, -1)
    blocks = {"position": [position], "hold": [hold], "part": [part], "ring": [ring_number], "slot": [slot]}
    faces = [_triangulate(d, owner)]
    count = n

    def add(p: np.ndarray, stay: float | np.ndarray, code: int, number: int) -> np.ndarray:
        nonlocal count
        m = len(p)
        blocks["position"].append(p)
        blocks["hold"].append(np.full(m, stay))
        blocks["part"].append(np.full(m, code))
        blocks["ring"].append(np.full(m, number))
        blocks["slot"].append(np.arange(m))
        count += m
        return np.arange(count - m, count)

    for k, rings in enumerate(features):
        closed = k != 1  # of the mouth this is the left half
        outer = np.arange(starts[k], starts[k + 1])
        position[outer], hold[outer] = rings[0].position, rings[0].hold
        part[outer], ring_number[outer], slot[outer] = k + 1, 0, np.arange(len(outer))
        for j, ring in enumerate(rings[1:], 1):
            inner = add(ring.position, ring.hold, k + 1, j)
            faces.append(_strip(outer, inner, closed))
            outer = inner
        if k == 0:
            continue  # the pocket behind the lids stays open: it lies inside the orbit
        last = rings[-1].position
        centre = last.mean(axis=0)
        if k == 1:
            centre = np.array([0.0, centre[1], last[:, 2].min() - 4.0])
        apex = add(centre[None], 1.0, k + 1, len(rings))
        faces.append(_fan(outer, int(apex[0]), closed))
    out = {name: np.concatenate(v) for name, v in blocks.items()}
    zero = np.abs(out["position"][:, 0]) < 1e-9
    zero[:n] |= d[:, 0] == 0
    out["position"][zero, 0] = 0.0
    direction = np.zeros((count, 3))
    direction[:n] = d
    return Half(faces=np.concatenate(faces), direction=direction, **out)


def relax(half: Half, steps: int = 30) -> np.ndarray:
    """Positions after the free vertices have been evened out on the sculpture."""
    p, n = half.position.copy(), len(half.position)
    f = half.faces
    edges = np.unique(np.sort(np.concatenate([f[:, [0, 1]], f[:, [1, 2]], f[:, [2, 0]]]), axis=1), axis=0)
    mid = p[:, 0] == 0
    target = half.position
    loose = half.hold < 1
    h = edge_length(p)
    for _step in range(steps):
        w = 1.0 / (h[edges[:, 0]] + h[edges[:, 1]])
        acc, total = np.zeros_like(p), np.zeros(n)
        for a, b in ((0, 1), (1, 0)):
            i, j = edges[:, a], edges[:, b]
            np.add.at(acc, i, w[:, None] * p[j])
            np.add.at(total, i, w)
        # On the midline the mirror image pulls as well: only x is affected, which stays zero.
        mean = acc / np.maximum(total, 1e-9)[:, None]
        q = p + 0.5 * (mean - p)
        q[mid, 0] = 0
        on_skin = ~((half.part == 4) & (half.ring > 0))[:, None]
        for _ in range(2):
            g = sculpt.gradient(q)
            g[mid, 0] = 0
            q = q - on_skin * np.clip(0.8 * sculpt.field(q), -3, 3)[:, None] * g
        hold = half.hold[:, None]
        q = hold * target + (1 - hold) * q
        p = np.where(loose[:, None], q, p)
        p[mid, 0] = 0
    return p


def mirror_half(half: Half, position: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(vertices, faces, mirror, source): both halves; `source` is each vertex's id in the half."""
    n = len(position)
    side = np.flatnonzero(position[:, 0] != 0)
    twin = np.arange(n)
    twin[side] = n + np.arange(len(side))
    vertices = np.concatenate([position, position[side] * sculpt.FLIP])
    faces = np.concatenate([half.faces, twin[half.faces][:, ::-1]])
    mirror = np.concatenate([twin, side])
    return vertices, faces, mirror, np.concatenate([np.arange(n), side])
