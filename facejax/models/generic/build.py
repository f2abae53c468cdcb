"""Build the mesh of the built-in head: `python -m facejax.models.generic.build` writes `mesh.npz` beside this file.

Laying out and relaxing the mesh takes half a minute and scipy, so the result is shipped; what is computed from it when
the head is loaded (identity modes, expressions, colours) is in the other modules.
"""

import dataclasses
from pathlib import Path

import numpy as np

from facejax.geometry.arrays import open_npz
from facejax.models.generic import layout, parts, sculpt

TABLE = Path(__file__).parent / "mesh.npz"

SKIN, EYE, MOUTH, NOSTRIL, EAR, EYEBALL, UPPER_TEETH, LOWER_TEETH, UPPER_GUM, LOWER_GUM, TONGUE = range(11)
"""Values of `Mesh.part`: 0 to 4 are one surface, the skin with the rings around its openings."""
BAG_RING = 10
"""First ring of the mouth that lies inside, behind where the lips meet."""
SOCKET_RING = 10
"""First ring of the eye that lies behind the lid."""


@dataclasses.dataclass(frozen=True, eq=False)
class Mesh:
    """The neutral mean head: both halves, every part."""

    vertices: np.ndarray
    """(V, 3) metres, head frame."""
    faces: np.ndarray
    """(T, 3) int32."""
    uv: np.ndarray
    """(U, 2) float32."""
    uv_faces: np.ndarray
    """(T, 3) int32."""
    mirror: np.ndarray
    """(V,) int32."""
    part: np.ndarray
    """(V,) int8: which part, see above."""
    ring: np.ndarray
    """(V,) int8: number of its ring from outside; -1 on free skin."""
    slot: np.ndarray
    """(V,) int8: place on the ring; the mirror image has the same."""
    jaw: np.ndarray
    """(V,) float32: how much a vertex moves with the jaw bone."""
    lip: np.ndarray
    """(V,) float32: 1 on the lips, falling to 0 around the mouth."""


def _disc(direction: np.ndarray) -> np.ndarray:
    """Azimuthal chart of directions (n, 3) about +z, the back compressed: (n, 2) within the unit disc."""
    rho = np.arccos(np.clip(direction[:, 2], -1, 1)) / np.pi
    radius = 1.7 * rho - 0.7 * rho**2
    flat = direction[:, :2] / np.maximum(np.linalg.norm(direction[:, :2], axis=1, keepdims=True), 1e-12)
    return radius[:, None] * flat


def _half_chart(half: layout.Half) -> np.ndarray:
    """Chart (n, 2) of the skin's left half in the unit disc; the inside of the mouth is left at 0."""
    uv = _disc(half.direction)
    for part in (EYE, MOUTH, NOSTRIL, EAR):
        here = half.part == part
        rings = half.ring[here].max() + 1
        outer = np.flatnonzero(here & (half.ring == 0))
        if part in (EYE, MOUTH):
            shown = SOCKET_RING if part == EYE else BAG_RING

            # Seen from the front the rings lie inside one another: place them as they look, drawn to the outer ring.
            def place(ring: int, part: int = part) -> np.ndarray:
                ids = np.flatnonzero((half.part == part) & (half.ring == ring))
                p = half.position[ids].copy()
                p[:, 2] = 96.0 if part == EYE else 104.0
                if part == MOUTH and ring == BAG_RING - 1:  # a gap between the lips, also in the chart
                    p[1:-1, 1] += 0.4 * np.sign(half.slot[ids][1:-1] - layout.MOUTH_COUNT // 4)
                return layout._unit(p - layout.CENTRE)

            drift = uv[outer] - _disc(place(0))
            for k in range(1, shown):
                ids = np.flatnonzero(here & (half.ring == k))
                uv[ids] = _disc(place(k)) + drift * (1 - k / shown)
            if part == EYE:
                last = uv[np.flatnonzero(here & (half.ring == shown - 1))]
                line = last.copy()
                line[:, 1] = (last[:, 1] + last[(-np.arange(len(last))) % len(last), 1]) / 2
                centre = last.mean(0)
                line = centre + 0.9 * (line - centre)
                for k in range(shown, rings):
                    f = (k - shown + 1) / (rings - shown + 1)
                    uv[np.flatnonzero(here & (half.ring == k))] = (1 - f) * last + f * line
        else:
            centre = uv[outer].mean(0)
            for k in range(1, rings):
                ids = np.flatnonzero(here & (half.ring == k))
                f = 1 - k / (rings - 1)
                uv[ids] = centre + f * (uv[outer] - centre) if len(ids) > 1 else centre
    return uv


_CELLS = {  # lower left corner and size of each part's cell; skin is the disc above
    "bag": ((0.01, 0.01), (0.17, 0.17)),
    EYEBALL: ((0.20, 0.01), (0.15, 0.15)),
    "eyeball right": ((0.36, 0.01), (0.15, 0.15)),
    UPPER_TEETH: ((0.53, 0.085), (0.22, 0.065)),
    LOWER_TEETH: ((0.53, 0.01), (0.22, 0.065)),
    UPPER_GUM: ((0.77, 0.10), (0.22, 0.03)),
    LOWER_GUM: ((0.77, 0.055), (0.22, 0.03)),
    TONGUE: ((0.85, 0.15), (0.14, 0.14)),
}
_DISC_CENTRE, _DISC_RADIUS = np.array([0.5, 0.578]), 0.415


def _cell(key: object, uv: np.ndarray) -> np.ndarray:
    corner, size = _CELLS[key]
    return np.array(corner) + uv * np.array(size)


def signed_areas(uv: np.ndarray, uv_faces: np.ndarray) -> np.ndarray:
    """Signed areas (T,) of the triangles of a chart."""
    a, b, c = (uv[uv_faces[:, i]] for i in range(3))
    return 0.5 * ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0])


def _unfold(uv: np.ndarray, uv_faces: np.ndarray, movable: np.ndarray) -> None:
    """Move the `movable` corners of folded triangles to the mean of their neighbours, in place, until none is."""
    for _ in range(200):
        bad = (signed_areas(uv, uv_faces) < 1e-8) & movable[uv_faces].any(axis=1)
        if not bad.any():
            return
        touched = np.unique(uv_faces[bad])
        touched = touched[movable[touched]]
        g = uv_faces[np.isin(uv_faces, touched).any(axis=1)]
        total, count = np.zeros_like(uv), np.zeros(len(uv))
        for i in range(3):
            for j in range(3):
                if i != j:
                    np.add.at(total, g[:, i], uv[g[:, j]])
                    np.add.at(count, g[:, i], 1)
        uv[touched] += 0.5 * (total[touched] / count[touched, None] - uv[touched])


def _harmonic(faces: np.ndarray, value: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """The membrane (n,) through the `fixed` values; vertices apart from any fixed one keep their value."""
    from scipy.sparse import coo_matrix, diags
    from scipy.sparse.csgraph import connected_components
    from scipy.sparse.linalg import spsolve

    n = len(value)
    i = np.concatenate([faces[:, k] for k in (0, 1, 2, 1, 2, 0)])
    j = np.concatenate([faces[:, k] for k in (1, 2, 0, 0, 1, 2)])
    adjacency = coo_matrix((np.ones(len(i)), (i, j)), shape=(n, n)).tocsr()
    adjacency.data[:] = 1.0
    _, label = connected_components(adjacency, directed=False)
    reached = np.isin(label, np.unique(label[fixed]))
    free = reached & ~fixed
    laplacian = (diags(np.asarray(adjacency.sum(axis=1)).ravel()) - adjacency).tocsr()
    out = value.copy()
    out[free] = spsolve(laplacian[free][:, free].tocsc(), -laplacian[free][:, fixed] @ value[fixed])
    return out


def _soft_weights(
    v: np.ndarray, faces: np.ndarray, mirror: np.ndarray, part: np.ndarray, ring: np.ndarray, slot: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How much each vertex goes with the jaw, and how much it belongs to the lips."""
    corner = layout.MOUTH_COUNT // 4
    x, y, z = np.abs(v[:, 0]), v[:, 1], v[:, 2]
    mouth = part == MOUTH
    lips = mouth & (ring >= 4)
    pole = mouth & (ring == ring[mouth].max())
    u = np.abs(slot - corner) / corner  # 1 in the middle of a lip, 0 at the corner
    lower = 0.42 + 0.58 * (1 - (1 - u) ** 3)
    upper = 0.42 * (1 - u) ** 3
    value = np.where(slot < corner, lower, np.where(slot > corner, upper, 0.42))
    value = np.where(lips, value, 0.0)
    value[pole] = 0.4
    line = sculpt._capsule(np.column_stack([x, y, z]), (44, -38, 28), (18, -64, 84), 0, 0)
    chin = (part <= EAR) & ~mouth & (((y < -56) & (z > 62)) | ((line < 15) & (y < -46) & (z > 40)))
    still = (part <= EAR) & ~lips & ((y > -6) | (z < 4) | (y < -112) | (part == EAR) | (part == NOSTRIL))
    value[chin] = 1.0
    jaw = _harmonic(faces, value, lips | chin | still)
    jaw[(part == LOWER_TEETH) | (part == LOWER_GUM) | (part == TONGUE)] = 1.0
    jaw[(part == UPPER_TEETH) | (part == UPPER_GUM) | (part == EYEBALL)] = 0.0
    belong = np.where(lips & (ring < BAG_RING + 3), 1.0, 0.0)
    far = (part <= EAR) & ~lips & (np.hypot(x / 1.15, y - sculpt.MOUTH_Y) > 33) | (part == NOSTRIL) | (chin & (y < -60))
    inner = mouth & (ring >= BAG_RING + 3)
    lip = _harmonic(faces, belong, (lips & (ring < BAG_RING + 3)) | inner | far)
    lip[part > EAR] = 0.0
    return (jaw + jaw[mirror]) / 2, (lip + lip[mirror]) / 2


def build() -> Mesh:
    """Lay out, relax, add the parts, mirror, chart."""
    half = layout.build_half()
    position = layout.relax(half)
    half = dataclasses.replace(half, position=position)
    pieces = [
        (EYEBALL, parts.eyeball()),
        (UPPER_TEETH, parts.teeth(True)),
        (LOWER_TEETH, parts.teeth(False)),
        (UPPER_GUM, parts.gum(True)),
        (LOWER_GUM, parts.gum(False)),
        (TONGUE, parts.tongue()),
    ]
    n_skin = len(position)
    positions, faces = [position], [half.faces]
    part, ring, slot = [half.part], [half.ring], [half.slot]
    local = [np.zeros((n_skin, 2))]
    start = n_skin
    for code, piece in pieces:
        f = piece.faces
        p = piece.position
        if code != EYEBALL:  # close the half on the midline to know which way its triangles face
            a, b, c = (p[f[:, i]] for i in range(3))
            if (
                np.einsum(
                    "ni,ni->",
                    np.cross(a - [0, p[:, 1].mean(), 70], b - [0, p[:, 1].mean(), 70]),
                    c - [0, p[:, 1].mean(), 70],
                )
                < 0
            ):
                f = f[:, ::-1]
        positions.append(p)
        faces.append(f + start)
        part.append(np.full(len(p), code))
        ring.append(piece.ring)
        slot.append(piece.slot)
        local.append(piece.uv)
        start += len(p)
    half_all = dataclasses.replace(half, position=np.concatenate(positions), faces=np.concatenate(faces))
    part_h, ring_h, slot_h = np.concatenate(part), np.concatenate(ring), np.concatenate(slot)
    vertices, tri, mirror, source = layout.mirror_half(half_all, half_all.position)

    n = len(half_all.position)
    part_v, ring_v, slot_v = part_h[source], ring_h[source], slot_h[source]
    right = np.arange(len(vertices)) >= n
    sign = np.where(right, -1.0, 1.0)
    uv = np.zeros((len(vertices), 2))
    skin = part_v <= EAR
    chart = np.concatenate([_half_chart(half), np.zeros((n - n_skin, 2))])[source]
    uv[skin] = _DISC_CENTRE + _DISC_RADIUS * np.column_stack([sign * chart[:, 0], chart[:, 1]])[skin]
    cells = np.concatenate(local)[source]
    for code, _ in pieces:
        here = part_v == code
        own = cells.copy()
        if code != EYEBALL:
            own[:, 0] = np.where(right, 1 - own[:, 0], own[:, 0])
            uv[here] = _cell(code, own[here])
        else:
            own[:, 0] = np.where(right, 1 - own[:, 0], own[:, 0])
            uv[here & ~right] = _cell(EYEBALL, own[here & ~right])
            uv[here & right] = _cell("eyeball right", own[here & right])
    uv_faces = tri.copy()
    extra: list[np.ndarray] = []

    def copy_of(value: np.ndarray) -> int:
        extra.append(value)
        return len(vertices) + len(extra) - 1

    # The inside of the mouth has its own disc, from where the lips meet.
    bag = np.flatnonzero((part_v == MOUTH) & (ring_v >= BAG_RING - 1))
    rings = ring_v[bag].max()
    turn = (slot_v[bag] / (layout.MOUTH_COUNT // 2) - 0.5) * np.pi
    radius = (rings - ring_v[bag]) / (rings - BAG_RING + 1)
    disc = 0.5 + 0.5 * radius[:, None] * np.column_stack([sign[bag] * np.cos(turn), np.sin(turn)])
    lookup = {int(v): copy_of(_cell("bag", d)) for v, d in zip(bag, disc, strict=True)}
    inside = np.all(np.isin(tri, bag), axis=1)
    for row in np.flatnonzero(inside):
        uv_faces[row] = [lookup[int(v)] for v in tri[row]]
    # Tubes (teeth, gums) are cut along their first row, the tongue along its back.
    wraps: dict[tuple[int, bool], int] = {}
    for code, _ in pieces[1:]:
        here = np.flatnonzero(part_v[tri[:, 0]] == code)
        top = slot_v[part_v == code].max()
        corner, size = _CELLS[code]
        for row in here:
            slots = slot_v[tri[row]]
            on_right = bool(right[tri[row]].any())
            for c in range(3):
                v = int(tri[row, c])
                if code == TONGUE and slots[c] == top and on_right and vertices[v, 0] == 0:
                    value = uv[v] * [-1, 1] + [2 * (corner[0] + 0.5 * size[0]), 0]
                elif (
                    code != TONGUE
                    and slots[c] == 0
                    and (slots == top).any()
                    and ring_v[v] < ring_v[part_v == code].max()
                ):
                    value = np.array([uv[v, 0], corner[1] + 0.98 * size[1]])
                else:
                    continue
                if (v, on_right) not in wraps:
                    wraps[v, on_right] = copy_of(value)
                uv_faces[row, c] = wraps[v, on_right]
    # Points that a disc shows as its whole rim get a copy for every triangle around them.
    behind = np.concatenate([half.direction, np.zeros((n - n_skin, 3))])[source, 2] < -0.99999
    back = np.flatnonzero(skin & behind)
    poles = [(int(v), _DISC_CENTRE, _DISC_RADIUS) for v in back]
    for key, flag in ((EYEBALL, ~right), ("eyeball right", right)):
        v = np.flatnonzero((part_v == EYEBALL) & (ring_v == len(parts.EYE_ANGLES) + 1) & flag)[0]
        poles.append((int(v), _cell(key, np.array([0.5, 0.5])), _CELLS[key][1][0] / 2))
    for v, centre, rim in poles:
        for row, corner in np.argwhere(tri == v):
            others = uv[tri[row][[(corner + 1) % 3, (corner + 2) % 3]]] - centre
            outward = others.sum(0) / np.linalg.norm(others.sum(0))
            reach = max(rim, 1.01 * np.linalg.norm(others, axis=1).max())
            uv_faces[row, corner] = copy_of(centre + outward * reach)
    uv_all = np.concatenate([uv, np.array(extra)])
    movable = np.zeros(len(uv_all), bool)
    movable[: len(vertices)] = (part_v == EYE) | (part_v == MOUTH) & (ring_v < BAG_RING)
    _unfold(uv_all, uv_faces, movable)
    jaw, lip = _soft_weights(vertices, tri, mirror, part_v, ring_v, slot_v)
    return Mesh(
        vertices=(vertices * 1e-3).astype(np.float32),
        faces=tri.astype(np.int32),
        uv=uv_all.astype(np.float32),
        uv_faces=uv_faces.astype(np.int32),
        mirror=mirror.astype(np.int32),
        part=part_v.astype(np.int8),
        ring=ring_v.astype(np.int8),
        slot=slot_v.astype(np.int8),
        jaw=jaw.astype(np.float32),
        lip=lip.astype(np.float32),
    )


def load() -> Mesh:
    """The shipped mesh."""
    with open_npz(TABLE) as data:
        return Mesh(**{f.name: data[f.name] for f in dataclasses.fields(Mesh)})


def main() -> None:
    """Write the table."""
    mesh = build()
    np.savez_compressed(TABLE, **{f.name: getattr(mesh, f.name) for f in dataclasses.fields(Mesh)})
    print(f"{len(mesh.vertices)} vertices, {len(mesh.faces)} triangles, {TABLE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
