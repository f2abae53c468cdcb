"""Where MediaPipe's 478 landmarks lie on a head: derived once per head, kept as a small table of barycentric points.

MediaPipe's landmarks index its canonical face mesh, another person's face. `derive_landmarks` lays that mesh on a head:
a similarity brings it near, curves of the head's own lid margins and lips pin the contours, and a Laplacian-regularised ICP
pulls the rest to the skin. `refine_landmarks` then moves the points by what a real clip shows as a constant offset.

Needs scipy (extra `test`), as a developer's tool; users only read the tables.

    python -m facejax.data.correspondence HEAD --canonical canonical_face_model.obj --out facejax/data/tables/HEAD.npz
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from facejax.geometry.errors import InputError
from facejax.models import landmark_names as names

IRIS_RADIUS_M = 0.00585
"""Half the visible iris diameter of an adult, 11.7 mm, nearly the same in everybody."""

TABLES = Path(__file__).parent / "tables"


@dataclasses.dataclass(frozen=True, eq=False)
class LandmarkTable:
    """Points on a head: (n, 3) int32 vertex ids and (n, 3) float32 weights that sum to 1."""

    triangles: np.ndarray
    weights: np.ndarray

    def on(self, vertices: np.ndarray) -> np.ndarray:
        """(n, 3) the points on a head with these (V, 3) vertices (also (k, V, 3) bases)."""
        return np.einsum("...nic,ni->...nc", vertices[..., self.triangles, :], self.weights)


def load_table(name: str) -> LandmarkTable:
    """The table shipped for a head (`ict-facekit`, `generic`). Raises InputError where there is none."""
    path = TABLES / f"{name}.npz"
    if not path.is_file():
        raise InputError(
            f"No landmark table for the head {name!r}: expected {path.name}; there are "
            f"{sorted(p.stem for p in TABLES.glob('*.npz'))}. Derive one with `python -m facejax.data.correspondence`."
        )
    with np.load(path) as data:
        return LandmarkTable(data["landmarks478_triangles"], data["landmarks478_weights"])


def read_canonical(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """MediaPipe's `canonical_face_model.obj`: (468, 3) metres in the head frame, and (898, 3) triangles."""
    vertices, faces = [], []
    for line in Path(path).read_text().splitlines():
        key, *rest = line.split() or [""]
        if key == "v":
            vertices.append([float(x) / 100 for x in rest[:3]])
        elif key == "f":
            faces.append([int(x.split("/")[0]) - 1 for x in rest])
    if len(vertices) != 468 or any(len(f) != 3 for f in faces):
        raise InputError(f"{path} is not MediaPipe's canonical face mesh: expected 468 vertices, got {len(vertices)}.")
    return np.array(vertices), np.array(faces)


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """(s, R, t) that minimise |s R source + t - target| over (n, 3) pairs (Umeyama 1991)."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, d, vt = np.linalg.svd(b.T @ a)
    sign = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * sign) @ vt
    scale = float((d * sign).sum() / (a**2).sum())
    return scale, rotation, target.mean(0) - scale * rotation @ source.mean(0)


class _Surface:
    """Closest points on a set of triangles of a head, by exact distance among the triangles whose centres are near."""

    def __init__(self, vertices: np.ndarray, triangles: np.ndarray):
        from scipy.spatial import cKDTree

        corners = vertices[triangles]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        area = np.linalg.norm(normal, axis=1)
        keep = area > 1e-12
        self.triangles, self.corners = triangles[keep], corners[keep]
        self.normals = normal[keep] / area[keep, None]
        self.tree = cKDTree(self.corners.mean(1))

    def closest(
        self, points: np.ndarray, normals: np.ndarray | None = None, candidates: int = 80
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(n,) row of the nearest triangle, (n, 3) weights, (n, 3) points; triangles that face away from `normals` count as 5 mm farther."""
        k = min(candidates, len(self.triangles))
        _, near = self.tree.query(points, k)
        near = near.reshape(len(points), k)
        weights = _closest_weights(points[:, None], self.corners[near])
        found = np.einsum("nkij,nki->nkj", self.corners[near], weights)
        distance = np.linalg.norm(found - points[:, None], axis=-1)
        if normals is not None:
            distance = distance + 0.005 * (np.einsum("nkj,nj->nk", self.normals[near], normals) < 0.3)
        best = distance.argmin(1)
        rows = np.arange(len(points))
        return near[rows, best], weights[rows, best], found[rows, best]


def _closest_weights(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Barycentric weights (..., 3) of the points of triangles (..., 3, 3) that are closest to points (..., 3)."""
    points = np.broadcast_to(points, corners.shape[:-2] + (3,))
    a, b, c = corners[..., 0, :], corners[..., 1, :], corners[..., 2, :]
    e0, e1, d = b - a, c - a, points - a
    g00, g01, g11 = (e0 * e0).sum(-1), (e0 * e1).sum(-1), (e1 * e1).sum(-1)
    h0, h1 = (e0 * d).sum(-1), (e1 * d).sum(-1)
    det = np.maximum(g00 * g11 - g01**2, 1e-30)
    v, w = (g11 * h0 - g01 * h1) / det, (g00 * h1 - g01 * h0) / det
    inside = np.stack([1 - v - w, v, w], -1)
    options, costs = [inside], [np.where((inside >= 0).all(-1), 0.0, np.inf)]
    for i, j in ((0, 1), (1, 2), (2, 0)):  # outside: the nearest point lies on one of the three edges
        p, q = corners[..., i, :], corners[..., j, :]
        t = ((points - p) * (q - p)).sum(-1) / np.maximum(((q - p) ** 2).sum(-1), 1e-30)
        t = np.clip(t, 0, 1)
        on_edge = np.zeros_like(inside)
        on_edge[..., i], on_edge[..., j] = 1 - t, t
        options.append(on_edge)
        costs.append(np.linalg.norm(p + t[..., None] * (q - p) - points, axis=-1))
    best = np.stack(costs, -1).argmin(-1)
    return np.take_along_axis(np.stack(options, -2), best[..., None, None], -2)[..., 0, :]


_CURVES = (  # MediaPipe's points from end to end, and the iBUG landmarks that the head's own curve passes through
    (names.EYE_RIGHT_UPPER, (36, 37, 38, 39)),
    (names.EYE_RIGHT_LOWER, (36, 41, 40, 39)),
    (names.EYE_LEFT_UPPER, (42, 43, 44, 45)),
    (names.EYE_LEFT_LOWER, (42, 47, 46, 45)),
    (names.LIPS_INNER_UPPER, (60, 61, 62, 63, 64)),
    (names.LIPS_INNER_LOWER, (60, 67, 66, 65, 64)),
    (names.LIPS_OUTER_UPPER, (48, 49, 50, 51, 52, 53, 54)),
    (names.LIPS_OUTER_LOWER, (48, 59, 58, 57, 56, 55, 54)),
)
_SEEDS = (  # iBUG landmark, MediaPipe point, weight: what is well defined apart from the curves
    *((i, names.IBUG68_FROM_MEDIAPIPE[i], 0.3) for i in range(17, 27)),
    (27, 168, 0.3), (30, 4, 0.5), (31, 98, 0.3), (33, 2, 1.0), (35, 327, 0.3),
)  # fmt: skip


def _edge_graph(vertices: np.ndarray, triangles: np.ndarray) -> Any:
    from scipy.sparse import coo_matrix

    i = triangles[:, [0, 1, 2]].ravel()
    j = triangles[:, [1, 2, 0]].ravel()
    length = np.linalg.norm(vertices[i] - vertices[j], axis=1)
    graph = coo_matrix((length, (i, j)), shape=(len(vertices),) * 2).tocsr()
    return graph.maximum(graph.T)


def _mesh_path(graph: Any, through: list[int]) -> list[int]:
    """Vertex ids of the shortest way along edges through the given vertices."""
    from scipy.sparse.csgraph import dijkstra

    path = [through[0]]
    for start, end in zip(through[:-1], through[1:], strict=True):
        _, before = dijkstra(graph, indices=start, return_predecessors=True, limit=0.1)
        leg = [end]
        while leg[-1] != start:
            if before[leg[-1]] < 0:
                raise InputError(f"Vertices {start} and {end} of the head are not joined by the skin triangles given.")
            leg.append(int(before[leg[-1]]))
        path += leg[-2::-1]
    return path


def _resample(curve: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """Points of a polyline (n, 3) at fractions (m,) of its length."""
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    return np.stack([np.interp(fractions * along[-1], along, curve[:, i]) for i in range(3)], axis=1)


def _fractions(curve: np.ndarray) -> np.ndarray:
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    return along / along[-1]


def open_faces(canonical_faces: np.ndarray) -> np.ndarray:
    """Faces of the canonical mesh without those that close its mouth and its eyes."""
    keep = np.ones(len(canonical_faces), bool)
    for contour in (names.LIPS_INNER, names.EYE_RIGHT, names.EYE_LEFT):
        keep &= ~np.isin(canonical_faces, contour).all(1)
    return canonical_faces[keep]


def mesh_laplacian(faces: np.ndarray, n: int) -> Any:
    """Uniform graph Laplacian (n, n), sparse: a vertex minus the mean of its neighbours."""
    from scipy.sparse import coo_matrix, diags

    i, j = faces[:, [0, 1, 2]].ravel(), faces[:, [1, 2, 0]].ravel()
    adjacency = coo_matrix((np.ones(2 * len(i)), (np.r_[i, j], np.r_[j, i])), shape=(n, n)).tocsr()
    adjacency.data[:] = 1
    degree = np.asarray(adjacency.sum(1)).ravel()
    return diags((degree > 0).astype(float)) - diags(1 / np.maximum(degree, 1)) @ adjacency


def _vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    c = vertices[faces]
    n = np.cross(c[:, 1] - c[:, 0], c[:, 2] - c[:, 0])
    out = np.zeros_like(vertices)
    for i in range(3):
        np.add.at(out, faces[:, i], n)
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-20)


def _mirrored_mean(points: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    return (points + points[mirror] * np.array([-1, 1, 1])) / 2


def derive_landmarks(
    mean: np.ndarray,
    skin_triangles: np.ndarray,
    landmarks68: np.ndarray,
    canonical_vertices: np.ndarray,
    canonical_faces: np.ndarray,
    eyeball_triangles: tuple[np.ndarray, np.ndarray],
    rounds: int = 30,
) -> LandmarkTable:
    """MediaPipe's 478 points on a left-right symmetric head.

    mean: (V, 3) metres, head frame, mouth and eyes as in the neutral head. skin_triangles: (T, 3) ids into `mean`, the outer
    skin only (no mouth cavity, eye sockets or eyeballs, or points will land there). landmarks68: (68,) vertex ids of iBUG's
    landmarks; the inner lips' and the lids' must lie on the rims. canonical_*: from `read_canonical`. eyeball_triangles: the
    outer surfaces of the subject's (left, right) eyeball, looking along +z. Raises InputError for seeds off the skin.
    """
    from scipy.sparse import diags, identity
    from scipy.sparse.linalg import splu

    landmarks68 = np.asarray(landmarks68)
    if landmarks68.shape != (68,):
        raise InputError(f"`landmarks68` must be 68 vertex ids, got shape {landmarks68.shape}.")
    mean = np.asarray(mean, np.float64)
    mirror = names.MIRROR478[:468]
    surface = _Surface(mean, skin_triangles)
    graph = _edge_graph(mean, skin_triangles)

    seeds = mean[landmarks68]
    usable = [k for k in range(17, 68)]
    scale, rotation, shift = similarity(canonical_vertices[[names.IBUG68_FROM_MEDIAPIPE[k] for k in usable]], seeds[usable])
    start = scale * canonical_vertices @ rotation.T + shift

    weight, target = np.zeros(468), np.zeros((468, 3))
    curve_of: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for points, through in _CURVES:
        path = mean[_mesh_path(graph, [int(landmarks68[k]) for k in through])]
        for _ in range(2):  # take the zigzag of mesh edges off
            path[1:-1] = (path[:-2] + 2 * path[1:-1] + path[2:]) / 4
        places = _resample(path, _fractions(canonical_vertices[list(points)]))
        for point, place in zip(points, places, strict=True):
            weight[point], target[point] = 10.0, place
            curve_of[point] = (path, place)
    for ibug, point, w in _SEEDS:
        weight[point], target[point] = w, seeds[ibug]

    faces = open_faces(canonical_faces)
    laplacian = mesh_laplacian(faces, 468)
    smooth = laplacian.T @ laplacian
    moved = start
    for k in range(rounds):
        stiffness = 30.0 * (0.2 / 30.0) ** (k / max(rounds - 1, 1))  # stiff first, so that far regions travel together
        pull = 0.0 if k == 0 else 1.0
        _, _, near = surface.closest(moved, _vertex_normals(moved, canonical_faces))
        pulls = np.where(weight >= 10, 0.0, pull)
        system = diags(weight + pulls) + stiffness * smooth + 1e-6 * identity(468)
        right = weight[:, None] * (target - start) + pulls[:, None] * (near - start)
        moved = _mirrored_mean(start + splu(system.tocsc()).solve(right), mirror)
    table = project_to_skin(moved, mean, skin_triangles, canonical_faces)
    irises = [_iris(mean, eyeball_triangles[side]) for side in (1, 0)]
    return LandmarkTable(
        np.concatenate([table.triangles, *(i.triangles for i in irises)]).astype(np.int32),
        np.concatenate([table.weights, *(i.weights for i in irises)]).astype(np.float32),
    )


def project_to_skin(
    points: np.ndarray, mean: np.ndarray, skin_triangles: np.ndarray, canonical_faces: np.ndarray
) -> LandmarkTable:
    """The places on the skin nearest to (468, 3) points, upper lip to upper lip, lower to lower, by the way they face."""
    normals = _vertex_normals(points, open_faces(canonical_faces))
    # A point of a rim faces both ways; half of its normal comes from the direction away from the opening.
    for upper, lower in ((names.LIPS_INNER_UPPER, names.LIPS_INNER_LOWER),):
        normals[list(upper[1:-1])] += 0.5 * np.array([0.0, -1.0, 0.0])
        normals[list(lower[1:-1])] += 0.5 * np.array([0.0, 1.0, 0.0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    surface = _Surface(mean, skin_triangles)
    row, weights, _ = surface.closest(points, normals)
    return LandmarkTable(surface.triangles[row].astype(np.int32), weights.astype(np.float32))


def _iris(mean: np.ndarray, triangles: np.ndarray) -> LandmarkTable:
    """Centre and rim (subject's left, top, subject's right, bottom) of an iris on an eyeball that looks along +z.

    The rim is where lines along z at 5.85 mm from the front pole meet the eyeball first. The centre is the mean of the rim's
    top and bottom triangles' points: it lies in the iris, behind the cornea, and is no point of the surface.
    """
    corners = mean[triangles]
    pole = mean[triangles.ravel()[mean[triangles.ravel(), 2].argmax()]]
    # The pole of a tessellated eyeball is one vertex of a flat ring: take the middle of everything within 0.1 mm of it.
    cap = mean[np.unique(triangles)]
    cap = cap[cap[:, 2] > pole[2] - 1e-4]
    centre = (cap.min(0) + cap.max(0)) / 2
    rims: list[tuple[np.ndarray, np.ndarray]] = []

    def hit(x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
        a, b, c = (corners[:, i, :2] - (x, y) for i in range(3))
        cross = lambda p, q: p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]  # noqa: E731
        w = np.stack([cross(b, c), cross(c, a), cross(a, b)], 1)
        total = w.sum(1)
        w = w / np.where(np.abs(total) < 1e-14, np.inf, total)[:, None]
        inside = (w > -1e-6).all(1) & (np.abs(w.sum(1) - 1) < 1e-6)
        if not inside.any():
            raise InputError("An eyeball is smaller than an iris: expected the outer surface of an eye that looks along +z.")
        depth = np.where(inside, (w * corners[:, :, 2]).sum(1), -np.inf)
        best = int(depth.argmax())
        return triangles[best], np.clip(w[best], 0, 1) / np.clip(w[best], 0, 1).sum()

    for dx, dy in ((1, 0), (0, 1), (-1, 0), (0, -1)):
        rims.append(hit(centre[0] + dx * IRIS_RADIUS_M, centre[1] + dy * IRIS_RADIUS_M))
    ring = np.array([t[w.argmax()] for t, w in (hit(*(centre[:2] + IRIS_RADIUS_M * np.array([np.cos(v), np.sin(v)])))
                                              for v in np.deg2rad([90, 210, 330]))])  # fmt: skip
    # Weights of the three rim vertices that give the centre's x and y exactly.
    system = np.vstack([mean[ring, :2].T, np.ones(3)])
    middle = np.linalg.solve(system, np.array([centre[0], centre[1], 1.0]))
    return LandmarkTable(
        np.stack([ring, *(t for t, _ in rims)]), np.stack([middle, *(w for _, w in rims)])
    )


def save_table(path: str | Path, table: LandmarkTable) -> None:
    """Write a table as `landmarks478_triangles` and `landmarks478_weights`."""
    np.savez_compressed(
        path,
        landmarks478_triangles=table.triangles.astype(np.int32),
        landmarks478_weights=table.weights.astype(np.float32),
    )
