"""ICT-FaceKit light (MIT licence): from the distribution's `FaceXModel` folder to the arrays of a linear head.

The distribution is one OBJ per shape, in centimetres, with the axes of our head frame already (+x the subject's left,
+y up, +z out of the face). Vertex and polygon ranges of its parts, and the Multi-PIE landmark ids, are its README's.

Li et al., Learning Formation of Physically-Based Face Attributes, CVPR 2020.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from facejax.data.assets import asset_path
from facejax.data.checkpoints import arrays_sha256
from facejax.data.heads.model_file import head_from_arrays, read_head
from facejax.geometry.arrays import open_npz
from facejax.geometry.errors import InputError
from facejax.models.morphable import MorphableHead
from facejax.models.skin import material_albedo, skin_prior

NAMES = ("ict-facekit",)
SOURCE = "https://github.com/ICT-VGL/ICT-FaceKit/tree/da5f95a607f5e6b37755b38d3385d7f2853732e5/FaceXModel"
LICENCE = "MIT"
N_VERTICES, N_POLYGONS, N_IDENTITY = 26719, 26384, 100

PARTS: Mapping[str, tuple[int, int]] = {
    # first vertex, first polygon. An eyeball is two closed shells: the outer one is sclera and cornea, the inner one,
    # which the distribution calls iris, carries a flat iris with the hole of the pupil behind the (glassy) cornea.
    "face": (0, 0),
    "head_neck": (9409, 9230),
    "mouth_socket": (11248, 11144),
    "eye_socket_left": (13294, 13226),
    "eye_socket_right": (13678, 13630),
    "gums_tongue": (14062, 14034),
    "teeth": (17039, 17006),
    "eyeball_left": (21451, 21496),
    "iris_left": (22221, 22296),
    "eyeball_right": (23021, 23094),
    "iris_right": (23791, 23894),
    "lacrimal_fluid_left": (24591, 24692),
    "lacrimal_fluid_right": (24795, 24855),
    "eye_blend_left": (24999, 25018),
    "eye_blend_right": (25023, 25033),
    "eye_occlusion_left": (25047, 25048),
    "eye_occlusion_right": (25199, 25176),
    "eyelashes_left": (25351, 25304),
    "eyelashes_right": (26035, 25844),
}

TRACKING_PARTS = (
    "face", "head_neck", "mouth_socket", "eye_socket_left", "eye_socket_right", "gums_tongue", "teeth", "eyeball_left",
    "eyeball_right",
)  # fmt: skip
"""What an opaque renderer sees. The mouth socket is among them because the head has a hole behind the lips without it:
an open mouth would show the inside of the nape, or the background. The inner eye shells are not: they lie behind the
outer ones, on which the iris is painted instead. Nor are tears, occlusion meshes and lashes: they need transparency."""

_NARROW_FACE = 6706
"""Vertices before this one are the README's narrow face area."""

LANDMARKS68 = (
    1225, 1888, 1052, 367, 1719, 1722, 2199, 1447, 966, 3661, 4390, 3927, 3924, 2608, 3272, 4088, 3443, 268, 493, 1914,
    2044, 1401, 3615, 4240, 4114, 2734, 2509, 978, 4527, 4942, 4857, 1140, 2075, 1147, 4269, 3360, 1507, 1542, 1537,
    1528, 1518, 1511, 3742, 3751, 3756, 3721, 3725, 3732, 5708, 5695, 2081, 0, 4275, 6200, 6213, 6346, 6461, 5518, 5957,
    5841, 5702, 5711, 5533, 6216, 6207, 6470, 5517, 5966,
)  # fmt: skip
"""Vertices of the 68 Multi-PIE (iBUG) points."""

_IRIS_RADIUS_M = 0.00585
_PUPIL_RADIUS_M = 0.0019
_EYE_POLES_UV = ((0.5, 0.5), (0.0885, 0.9125))
"""Front and back pole of an eyeball's outer shell on its tile."""


def takes(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether this is the installed head's name, or a folder, which should be the distribution's."""
    return os.fspath(name_or_path) in NAMES or Path(name_or_path).expanduser().is_dir()


def load(name_or_path: str | os.PathLike[str], parts: Sequence[str] | None = None) -> MorphableHead:
    """The installed head, or one converted from the distribution's folder. Raises `InputError`."""
    if os.fspath(name_or_path) in NAMES:
        return read_head(asset_path(NAMES[0]), parts)
    path = Path(name_or_path).expanduser().resolve()
    if not (path / "generic_neutral_mesh.obj").is_file() and (path / "FaceXModel").is_dir():
        path = path / "FaceXModel"
    arrays = convert_facekit(path)
    return dataclasses.replace(facekit_head(arrays, parts, arrays_sha256(arrays)), source=str(path))


# Its OBJ files are read here, not by `facejax.data.meshes`: quads must stay quads until `triangulate` cuts them, and
# 158 files of 26,719 vertices are read in seconds only in blocks. trimesh would cut quads and renumber vertices.


def read_obj_vertices(path: Path, n_vertices: int = N_VERTICES) -> np.ndarray:
    """(V, 3) float64 vertices of an OBJ whose `v` lines stand together, in the file's units. Raises `InputError`."""
    data = _read_bytes(path)
    start = data.find(b"\nv ") + 1
    end = data.find(b"\nvt ", start)
    block = data[start : end if end > 0 else len(data)]
    return _numbers(block.replace(b"v", b""), (n_vertices, 3), f"{path}: its vertices")


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"The ICT-FaceKit folder must hold {path.name}, but {path} does not exist.") from error


def _numbers(text: bytes, shape: tuple[int, int], what: str) -> np.ndarray:
    try:
        values = np.array(text.split(), dtype=np.float64)
    except ValueError as error:
        raise InputError(f"{what} must be numbers: {error}; is the file whole and unchanged?") from error
    if values.size != shape[0] * shape[1]:
        raise InputError(f"{what} must be {shape[0]} x {shape[1]} numbers, got {values.size}; is the file whole?")
    if not np.isfinite(values).all():
        raise InputError(f"{what} must be finite numbers; is the file whole and unchanged?")
    return values.reshape(shape)


def read_obj_polygons(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(polygons, uv_polygons, uv) of an OBJ: (F, 4) ids, a triangle repeating its last corner; (U, 2)."""
    lines = _read_bytes(path).splitlines()
    uv_lines = [line.split()[1:3] for line in lines if line.startswith(b"vt ")]
    uv = _numbers(b" ".join(b" ".join(x) for x in uv_lines), (len(uv_lines), 2), f"{path}: its texture coordinates")
    corners = [line.split()[1:] for line in lines if line.startswith(b"f ")]
    corners = [c if len(c) == 4 else [*c, c[-1]] for c in corners]
    if not corners or any(len(c) != 4 for c in corners):
        raise InputError(f"{path} must hold polygons of 3 or 4 corners; is the file whole and unchanged?")
    flat = b" ".join(b" ".join(c) for c in corners).replace(b"/", b" ")
    ids = _numbers(flat, (4 * len(corners), 2), f"{path}: its polygons").astype(np.int32).reshape(-1, 4, 2) - 1
    return ids[..., 0], ids[..., 1], uv


def arkit_name(name: str) -> str:
    """`eyeBlink_L` to `eyeBlinkLeft`, `PupilDilate_R` to `pupilDilateRight`; names without a side stay."""
    name = name[0].lower() + name[1:]
    return {"_L": name[:-2] + "Left", "_R": name[:-2] + "Right"}.get(name[-2:], name)


def triangulate(vertices: np.ndarray, polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quads cut along their shorter diagonal: (T, 3) corners in 0..3 of each triangle, and (T,) its polygon.

    The shorter diagonal keeps triangles closer to equilateral and follows the creases of the lids and lips.
    """
    p = vertices[polygons]
    first = np.sum((p[:, 0] - p[:, 2]) ** 2, axis=1) <= np.sum((p[:, 1] - p[:, 3]) ** 2, axis=1)
    single = polygons[:, 2] == polygons[:, 3]
    pairs = np.where((first | single)[:, None, None], [[0, 1, 2], [0, 2, 3]], [[0, 1, 3], [1, 2, 3]])
    keep = np.stack([np.ones(len(single), bool), ~single], axis=1)
    return pairs[keep], np.repeat(np.arange(len(polygons)), keep.sum(1))


_CELLS: Mapping[str, tuple[float, float, float]] = {
    # left, bottom, size of each chart's square in the atlas
    "face": (0.0, 0.0, 0.75),
    "head_neck": (0.0, 0.75, 0.25),  # with the rear of the face part and the sockets of mouth and eyes
    "gums_tongue": (0.25, 0.75, 0.25),
    "teeth": (0.5, 0.75, 0.25),
    "eyeball_left": (0.75, 0.5, 0.25),
    "eyeball_right": (0.75, 0.25, 0.25),
    "iris_left": (0.75, 0.125, 0.125),
    "iris_right": (0.875, 0.125, 0.125),
    "eyelashes": (0.75, 0.0, 0.125),  # both sides share one tile
    "lacrimal_fluid_left": (0.75, 0.75, 0.125),
    "lacrimal_fluid_right": (0.875, 0.75, 0.125),
    "eye_occlusion_left": (0.75, 0.875, 0.125),
    "eye_occlusion_right": (0.875, 0.875, 0.125),
    "eye_blend_left": (0.875, 0.0625, 0.0625),
    "eye_blend_right": (0.9375, 0.0625, 0.0625),
}
_GUTTER = 1 / 256
"""Margin inside each cell, so that filtering at 256 texels or more takes nothing from a neighbour."""


def pack_atlas(uv: np.ndarray, uv_polygons: np.ndarray, polygon_part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Charts of several tiles packed into one square: (U', 2) float32 coordinates in [0, 1] and (F, 4) ids into them.

    In the distribution the tile number (the whole part of u) tells skin, gums and teeth apart, while the eye meshes lie
    on the face's tile: so a chart is a tile, and within tile 0 a part.
    """
    names = list(PARTS)
    cells = list(_CELLS)
    tile = np.floor(uv[uv_polygons].mean(1)[:, 0]).astype(int)
    chart = np.full(len(uv_polygons), -1)
    for p, name in enumerate(names):
        own = "eyelashes" if name.startswith("eyelashes") else name
        here = polygon_part == p
        chart[here] = cells.index(own) if own in cells else cells.index("head_neck")
        if own == "face":
            chart[here & (tile == 1)] = cells.index("head_neck")
    key, new = np.unique(chart[:, None].astype(np.int64) * len(uv) + uv_polygons, return_inverse=True)
    old = key % len(uv)
    left, bottom, size = np.array([_CELLS[c] for c in cells]).T[:, key // len(uv)]
    local = uv[old] - np.floor(uv[old])
    span = (size - 2 * _GUTTER)[:, None]
    packed = np.stack([left, bottom], axis=1) + _GUTTER + span * local
    return packed.astype(np.float32), new.reshape(-1, 4).astype(np.int32)


def sphere_centre(points: np.ndarray) -> tuple[np.ndarray, float]:
    """(centre, radius) of the sphere nearest to points (N, 3), by linear least squares (|p|^2 = 2 c.p + k)."""
    a = np.concatenate([2 * points, np.ones((len(points), 1))], axis=1)
    *c, k = np.linalg.lstsq(a, np.sum(points**2, axis=1), rcond=None)[0]
    centre = np.array(c)
    return centre, float(np.sqrt(k + centre @ centre))


def eye_pivots(mean: np.ndarray, identity_basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres of rotation (2, 3) of the left and right eyeball, and how they move per identity mode (I, 2, 3), metres.

    The centre is that of a sphere fitted to the outer shell without the cornea, whose bulge would pull it forward. Its
    derivative along a mode is the central difference of the same fit at one standard deviation: within 0.02 mm of the
    fit to whole random heads, where the mean displacement of the shell is 0.4 mm off, because its vertices crowd in
    front and modes also change the eyeball's size.
    """
    centres, moves = [], []
    for name in ("eyeball_left", "eyeball_right"):
        shell = part_vertices(name)
        points = mean[shell]
        centre, _ = sphere_centre(points)
        front = points[np.argmax(points[:, 2])] - centre
        direction = points - centre
        cosine = direction @ front / np.linalg.norm(front) / np.linalg.norm(direction, axis=1)
        sclera = cosine < np.cos(np.radians(25.0))
        fit = [sphere_centre(points[sclera])[0]]
        for mode in identity_basis[:, shell]:
            plus, minus = (sphere_centre((points + sign * mode)[sclera])[0] for sign in (1, -1))
            fit.append((plus - minus) / 2)
        centres.append(fit[0])
        moves.append(fit[1:])
    return np.stack(centres), np.stack(moves, axis=1)


def part_vertices(name: str) -> slice:
    """Range of a part's vertices."""
    starts = [*(v for v, _ in PARTS.values()), N_VERTICES]
    i = list(PARTS).index(name)
    return slice(starts[i], starts[i + 1])


def _swap_sides(name: str, left: str, right: str) -> str:
    return name.replace(left, "#").replace(right, left).replace("#", right)


def mirror_map(mean: np.ndarray, shapes: Mapping[str, np.ndarray], vertex_part: np.ndarray) -> np.ndarray:
    """(V,) id of each vertex's mirror image.

    The nearest vertex to the mirrored one, in position and in how it moves with the mirrored expressions: vertices of
    the two lips, or of lid and socket, coincide at rest and part when the face moves.
    """
    from scipy.spatial import cKDTree

    flip = np.array([-1.0, 1.0, 1.0])
    names = list(PARTS)
    other = np.array(
        [names.index(n.replace("left", "#").replace("right", "left").replace("#", "right")) for n in names]
    )
    swap = {n: n.replace("Left", "#").replace("Right", "Left").replace("#", "Right") for n in shapes}
    swap.update({n: n for n in ("jawLeft", "jawRight", "mouthLeft", "mouthRight")})
    chosen = (
        "jawOpen",
        "eyeBlinkLeft",
        "eyeBlinkRight",
        "mouthRollLower",
        "mouthRollUpper",
        "mouthSmileLeft",
        "mouthSmileRight",
    )
    far = 1.0  # metres between parts, so that none is matched to the wrong one
    there = np.concatenate([mean, *(shapes[n] for n in chosen), far * vertex_part[:, None]], axis=1)
    here = np.concatenate(
        [
            mean * flip,
            *(shapes[_swap_sides(n, "Left", "Right")] * flip for n in chosen),
            far * other[vertex_part][:, None],
        ],
        axis=1,
    )
    _, nearest = cKDTree(there).query(here)
    return nearest.astype(np.int32)


_JAW = (1280, 1278, 1275, 1272, 1248, 12, 820, 1834, 1902, 243, 844, 781, 1673, 2199, 801, 1447, 800, 966)
"""The README's extended right jawline and the chin: the bone, where `LANDMARKS68` follow the silhouette."""
_EAR_OUTLINE_UV = (
    (-0.01, 0.48), (-0.01, 0.69), (0.04, 0.695), (0.075, 0.68), (0.09, 0.64), (0.095, 0.6), (0.1, 0.57), (0.105, 0.53),
    (0.085, 0.49), (0.05, 0.465),
)  # fmt: skip
"""The right ear on the face's tile."""
_NAPE_M = ((-0.12, -0.05), (-0.05, -0.045), (-0.005, -0.035))
"""(z, y) where the neck begins behind the ears."""
_HAIRLINE_M = ((-0.06, -0.03), (-0.02, -0.012), (0.0, -0.004), (0.02, 0.012), (0.04, 0.03), (0.06, 0.05), (0.08, 0.066),
               (0.1, 0.085), (0.115, 0.12))  # fmt: skip
"""(y, z) of the hairline seen from the side: the scalp lies behind it."""


def _smooth(x: np.ndarray, start: float, end: float) -> np.ndarray:
    """0 at `start`, 1 at `end`, smooth between; `start` may be the larger."""
    t = np.clip((x - start) / (end - start), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def _signed_distance(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """(N,) distance in the plane to a closed polygon (M, 2), positive inside."""
    a, b = polygon, np.roll(polygon, -1, axis=0)
    edge, to = b - a, points[:, None] - a
    t = np.clip(np.sum(to * edge, -1) / np.sum(edge**2, -1), 0, 1)
    distance = np.linalg.norm(to - t[..., None] * edge, axis=-1).min(1)
    above = (a[:, 1] > points[:, None, 1]) != (b[:, 1] > points[:, None, 1])
    rise = np.where(edge[:, 1] == 0, 1e-12, edge[:, 1])
    crossing = above & (points[:, None, 0] < a[:, 0] + to[..., 1] * edge[:, 0] / rise)
    return np.where(crossing.sum(1) % 2 == 1, distance, -distance)


def _polyline_distance(points: np.ndarray, line: np.ndarray) -> np.ndarray:
    a, edge = line[:-1], np.diff(line, axis=0)
    to = points[:, None] - a
    t = np.clip(np.sum(to * edge, -1) / np.sum(edge**2, -1), 0, 1)
    return np.linalg.norm(to - t[..., None] * edge, axis=-1).min(1)


def region_masks(mean: np.ndarray, vertex_uv: np.ndarray) -> dict[str, np.ndarray]:
    """The masks (V,) in [0, 1] of `REGIONS`.

    `mean` (V, 3) metres; `vertex_uv` (V, 2) a coordinate of each vertex in the distribution's tiles, where the face is
    spread flat. `gums` holds all wet tissue: gums, tongue and mouth socket.
    """
    skin = _in_parts("face", "head_neck")
    face = _in_parts("face") * (vertex_uv[:, 0] < 1)
    x, y, z = mean.T
    points = mean[list(LANDMARKS68)]
    flat = vertex_uv[list(LANDMARKS68)]

    folded = np.stack([0.5 - np.abs(vertex_uv[:, 0] - 0.5), vertex_uv[:, 1]], axis=1)  # both ears on one outline
    in_ear = (face > 0) & (_signed_distance(folded, np.array(_EAR_OUTLINE_UV)) > 0)
    near_ear = _nearest_distance(mean, mean[in_ear])
    ears = skin * _smooth(near_ear, 0.008, 0.004) * _smooth(np.abs(x), 0.055, 0.065)

    hairline_y, hairline_z = np.array(_HAIRLINE_M).T
    behind = np.interp(y, hairline_y, hairline_z) - z
    scalp = skin * (1 - ears) * _smooth(behind, -0.006, 0.006) * _smooth(y, -0.065, -0.045)

    jaw = mean[list(_JAW)]
    jaw = jaw[jaw[:, 1] < -0.025]  # the ascending branch, in front of the ear, bounds no neck
    line = np.concatenate([np.array(_NAPE_M), jaw[np.argsort(jaw[:, 2])][:, [2, 1]]])
    below = np.interp(z, line[:, 0], line[:, 1]) - y
    neck = skin * (1 - ears) * (1 - scalp) * _smooth(below, 0.0, 0.012)

    lips = face * _smooth(_signed_distance(vertex_uv, flat[48:60]), -0.007, 0.005)
    top, middle, ala, base = flat[27], flat[29], flat[31], flat[33]
    right_half = np.array(
        [
            [top[0] - 0.02, top[1]],
            [middle[0] - 0.032, middle[1]],
            [ala[0] - 0.012, ala[1] + 0.04],
            [ala[0] - 0.012, ala[1]],
            [base[0] - 0.03, base[1] - 0.002],
        ]
    )
    nose_outline = np.concatenate([right_half, (right_half * [-1, 1] + [1, 0])[::-1]])
    nose = face * _smooth(_signed_distance(vertex_uv, nose_outline), -0.006, 0.006)
    to_brow = np.minimum(_polyline_distance(mean, points[17:22]), _polyline_distance(mean, points[22:27]))
    brows = face * _smooth(to_brow, 0.0065, 0.0035)
    iris = np.maximum(*(_smooth(d, _IRIS_RADIUS_M + 3e-4, _IRIS_RADIUS_M - 3e-4) for d in _off_axis(mean, vertex_uv)))
    return {
        "skin": skin,
        "narrow_face": (np.arange(N_VERTICES) < _NARROW_FACE).astype(float),
        "neck": neck,
        "scalp": scalp,
        "ears": ears,
        "lips": lips,
        "nose": nose,
        "brows": brows,
        "eye_sockets": _in_parts("eye_socket_left", "eye_socket_right"),
        "eyeballs": _in_parts("eyeball_left", "eyeball_right", "iris_left", "iris_right"),
        "iris": iris,
        "teeth": _in_parts("teeth"),
        "gums": _in_parts("gums_tongue", "mouth_socket"),
    }


def _in_parts(*parts: str) -> np.ndarray:
    mask = np.zeros(N_VERTICES)
    for part in parts:
        mask[part_vertices(part)] = 1
    return mask


def _nearest_distance(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    from scipy.spatial import cKDTree

    return cKDTree(targets).query(points)[0]


def _off_axis(mean: np.ndarray, vertex_uv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance (V,) of the front of the (left, right) eyeball's shells from its axis, metres; infinite elsewhere.

    The axis joins the poles of the outer shell, where its meridians meet, so that circles around it follow the rings of
    the mesh. At rest it points 4 degrees outward: the angle between the optical axis and the line of sight, which is
    what `gaze` turns from straight ahead.
    """
    distances = []
    for side in ("left", "right"):
        shell = part_vertices(f"eyeball_{side}")
        uv = vertex_uv[shell] - np.floor(vertex_uv[shell])
        front, back = (mean[shell][np.argmin(np.sum((uv - pole) ** 2, axis=1))] for pole in _EYE_POLES_UV)
        axis = (front - back) / np.linalg.norm(front - back)
        d = np.full(len(mean), np.inf)
        for name in (f"eyeball_{side}", f"iris_{side}"):
            here = part_vertices(name)
            to = mean[here] - (front + back) / 2
            along = to @ axis
            d[here] = np.where(along > 0, np.linalg.norm(to - along[:, None] * axis, axis=1), np.inf)
        distances.append(d)
    return distances[0], distances[1]


def _appearance(
    mean: np.ndarray, masks: Mapping[str, np.ndarray], pupil: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(mean log albedo (V, 3), its directions (K, V, 3), specular (V,), roughness (V,)); `pupil` (V,) in [0, 1]."""
    log, directions = (np.asarray(a, np.float64) for a in skin_prior(mean, masks))
    for parts, material in (  # what no region mask covers
        (("mouth_socket",), "mouth"),
        (("lacrimal_fluid_left", "lacrimal_fluid_right", "eye_blend_left", "eye_blend_right"), "sclera"),
        (("eye_occlusion_left", "eye_occlusion_right"), "eye_socket"),
        (("eyelashes_left", "eyelashes_right"), "hair"),
    ):
        log[_in_parts(*parts) > 0] = np.log(material_albedo(material))
    log += pupil[:, None] * (np.log(material_albedo("pupil")) - log)
    roughness = np.full(N_VERTICES, 0.35)
    for region, value in (("eye_sockets", 0.2), ("eyeballs", 0.1), ("teeth", 0.2), ("gums", 0.25)):
        roughness += masks[region] * (value - roughness)
    return log, directions, np.full(N_VERTICES, 0.04), roughness


def _landmarks478() -> tuple[np.ndarray, np.ndarray]:
    """The table of MediaPipe's points on this mesh, in the numbering of all parts."""
    path = Path(__file__).parents[1] / "tables" / "ict-facekit.npz"
    if not path.is_file():
        return np.zeros((478, 3), np.int32), np.tile([1.0, 0.0, 0.0], (478, 1))
    with open_npz(path) as table:
        return table["landmarks478_triangles"].astype(np.int32), table["landmarks478_weights"].astype(np.float32)


def convert_facekit(folder: Path) -> dict[str, np.ndarray]:
    """The distribution's `FaceXModel` folder as arrays of a linear head (schema in `facejax.data.heads.model_file`).

    All 26,719 vertices stay, in their order, with a label of the part per vertex and triangle. Raises `InputError` for
    a missing or damaged file. Takes 2 to 5 s.
    """
    folder = Path(folder)
    neutral_path = folder / "generic_neutral_mesh.obj"
    neutral = read_obj_vertices(neutral_path)
    polygons, uv_polygons, tiles = read_obj_polygons(neutral_path)
    if len(polygons) != N_POLYGONS or polygons.min() < 0 or polygons.max() >= N_VERTICES:
        raise InputError(f"{neutral_path} must hold {N_POLYGONS} polygons on {N_VERTICES} vertices; is it whole?")

    def shape(path: Path) -> np.ndarray:
        return ((read_obj_vertices(path) - neutral) / 100).astype(np.float32)

    identity = np.stack([shape(folder / f"identity{i:03d}.obj") for i in range(N_IDENTITY)])
    files = sorted(p for p in folder.glob("*.obj") if not p.name.startswith(("identity", "generic", ".")))
    expressions = {arkit_name(p.stem): shape(p) for p in files}
    if "jawOpen" not in expressions:
        raise InputError(f"The ICT-FaceKit folder {folder} must hold the expression shapes, but has no jawOpen.obj.")
    for name, move in expressions.items():
        if name.startswith("eyeLook"):  # lids only: the eyeballs turn rigidly, by `gaze`
            for eyeball in ("eyeball_left", "iris_left", "eyeball_right", "iris_right"):
                move[part_vertices(eyeball)] = 0
    mean = neutral / 100

    part_names = list(PARTS)
    vertex_part = np.zeros(N_VERTICES, np.int32)
    polygon_part = np.zeros(N_POLYGONS, np.int32)
    for p, (first_vertex, first_polygon) in enumerate(PARTS.values()):
        vertex_part[first_vertex:] = p
        polygon_part[first_polygon:] = p
    corners, of = triangulate(mean, polygons)
    uv, uv_ids = pack_atlas(tiles, uv_polygons, polygon_part)
    vertex_uv = np.zeros((N_VERTICES, 2))
    vertex_uv[polygons[::-1].reshape(-1)] = tiles[
        uv_polygons[::-1].reshape(-1)
    ]  # the face's own tile wins at its seams

    pivots, pivot_basis = eye_pivots(mean, identity)
    masks = region_masks(mean, vertex_uv)
    pupil = np.maximum(
        *(_smooth(d, _PUPIL_RADIUS_M + 2e-4, _PUPIL_RADIUS_M - 2e-4) for d in _off_axis(mean, vertex_uv))
    )
    skin_mean, skin_basis, specular, roughness = _appearance(mean, masks, pupil)
    table_triangles, table_weights = _landmarks478()
    faces = np.take_along_axis(polygons[of], corners, axis=1).astype(np.int32)

    # a point at a vertex: any triangle around it, turned so that the vertex comes first
    incident = np.array([np.argwhere(faces == v)[0] for v in LANDMARKS68])
    around = np.stack([np.roll(faces[t], -corner) for t, corner in incident])
    eye_weight = np.zeros((N_VERTICES, 2))
    for side, name in enumerate(("left", "right")):
        eye_weight[part_vertices(f"eyeball_{name}"), side] = 1
        eye_weight[part_vertices(f"iris_{name}"), side] = 1
    arrays = {
        "mean": mean,
        "identity_basis": identity,
        "expression_basis": np.stack(list(expressions.values())),
        "skin_mean": skin_mean,
        "skin_basis": skin_basis,
        "specular": specular,
        "roughness": roughness,
        "eye_weight": eye_weight,
        "eye_pivot": pivots,
        "eye_pivot_basis": pivot_basis,
        "uv": uv,
        "landmarks68_weights": np.tile([1.0, 0.0, 0.0], (68, 1)),
        "landmarks478_weights": table_weights,
        "region_masks": np.stack(list(masks.values())),
    }
    return {
        "name": np.array("ict-facekit"),
        "source": np.array(SOURCE),
        "licence": np.array(LICENCE),
        "units": np.array("m"),
        **{key: np.ascontiguousarray(a, dtype=np.float32) for key, a in arrays.items()},
        "expression_names": np.array(list(expressions)),
        "faces": faces,
        "uv_faces": np.take_along_axis(uv_ids[of], corners, axis=1).astype(np.int32),
        "landmarks68_triangles": around.astype(np.int32),
        "landmarks478_triangles": table_triangles,
        "region_names": np.array(list(masks)),
        "mirror": mirror_map(mean, expressions, vertex_part),
        "part_names": np.array(part_names),
        "vertex_part": vertex_part,
        "face_part": polygon_part[of],
        "default_parts": np.array(TRACKING_PARTS),
    }


def facekit_head(
    arrays: Mapping[str, np.ndarray], parts: Sequence[str] | None = TRACKING_PARTS, sha256: str = ""
) -> MorphableHead:
    """A head of the chosen parts from `convert_facekit`'s arrays; see `facejax.data.heads.model_file.select_parts`."""
    return head_from_arrays(arrays, parts, sha256)
