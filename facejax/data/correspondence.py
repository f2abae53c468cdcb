"""Where MediaPipe's 478 landmarks lie on a head: derived once per head, kept as a small table of barycentric points.

MediaPipe's landmarks index its canonical face mesh, another person's face. `derive_landmarks` lays that mesh on a
head: a similarity brings it near, curves of the head's own lid margins and lips pin the contours, and a
Laplacian-regularised ICP pulls the rest to the skin. `refine_landmarks` then fits the head to detections of a real clip
and moves the points by what stays constant over all its frames, smoothly over the face and the same on both sides.

Needs scipy (extra `test`), as a developer's tool; users only read the tables. HEAD is what `load_morphable` takes; for
ICT-FaceKit give its `FaceXModel` folder, so that all 26,719 vertices keep their numbers.

    python -m facejax.data.correspondence HEAD --canonical canonical_face_model.obj \\
        --out facejax/data/tables/HEAD.npz --detections clip_landmarks.npz
"""

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from facejax.data.meshes import read_mesh
from facejax.geometry.arrays import open_npz, read_npz
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import closest_weights
from facejax.models import landmark_names as names
from facejax.models.morphable import MorphableHead

IRIS_RADIUS_M = 0.00585
"""Half the visible iris diameter of an adult, 11.7 mm, nearly the same in everybody."""

IRIS_ASPECT = 0.85
"""Height over width of the rings that MediaPipe draws around irises: 0.83 to 0.88 in three people."""

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
    with open_npz(path) as data:
        return LandmarkTable(data["landmarks478_triangles"], data["landmarks478_weights"])


def read_canonical(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """MediaPipe's `canonical_face_model.obj`: (468, 3) metres in the head frame, and (898, 3) triangles."""
    vertices, topology = read_mesh(path)
    if len(vertices) != 468:
        raise InputError(f"{path} is not MediaPipe's canonical face mesh: expected 468 vertices, got {len(vertices)}.")
    return vertices.astype(float) / 100, topology.faces


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
        """(n,) row of the nearest triangle, (n, 3) weights, (n, 3) points.

        Triangles that face away from `normals` count as 5 mm farther.
        """
        k = min(candidates, len(self.triangles))
        _, near = self.tree.query(points, k)
        near = near.reshape(len(points), k)
        weights = closest_weights(points[:, None], self.corners[near])
        found = np.einsum("nkij,nki->nkj", self.corners[near], weights)
        distance = np.linalg.norm(found - points[:, None], axis=-1)
        if normals is not None:
            distance = distance + 0.005 * (np.einsum("nkj,nj->nk", self.normals[near], normals) < 0.3)
        best = distance.argmin(1)
        rows = np.arange(len(points))
        return near[rows, best], weights[rows, best], found[rows, best]


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
    for start, end in itertools.pairwise(through):
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

    mean: (V, 3) metres, head frame, mouth and eyes as in the neutral head. skin_triangles: (T, 3) ids into `mean`, the
    outer skin only (no mouth cavity, eye sockets or eyeballs, or points will land there). landmarks68: (68,) vertex ids
    of iBUG's landmarks; the inner lips' and the lids' must lie on the rims. canonical_*: from `read_canonical`.
    eyeball_triangles: the outer surfaces of the subject's (left, right) eyeball, looking along +z. Raises InputError
    for seeds off the skin.
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
    usable = list(range(17, 68))
    scale, rotation, shift = similarity(
        canonical_vertices[[names.IBUG68_FROM_MEDIAPIPE[k] for k in usable]], seeds[usable]
    )
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
    """The places on the skin nearest to (468, 3) points: upper lip to upper lip, lower to lower, by how they face."""
    normals = _vertex_normals(points, open_faces(canonical_faces))
    # The meeting lips' points face half into the opening.
    normals[list(names.LIPS_INNER_UPPER[1:-1]), 1] -= 0.5
    normals[list(names.LIPS_INNER_LOWER[1:-1]), 1] += 0.5
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    surface = _Surface(mean, skin_triangles)
    row, weights, _ = surface.closest(points, normals)
    return LandmarkTable(surface.triangles[row].astype(np.int32), weights.astype(np.float32))


def _iris(mean: np.ndarray, triangles: np.ndarray) -> LandmarkTable:
    """Centre and rim (subject's left, top, subject's right, bottom) of an iris on an eyeball that looks along +z.

    The rim is where lines along z, beside the front pole, meet the eyeball first. The centre is a combination of three
    vertices near the rim: it lies in the iris, behind the cornea, and is no point of the surface.
    """
    corners = mean[triangles]
    used = np.unique(triangles)
    cap = mean[
        used[mean[used, 2] > mean[used, 2].max() - 1e-4]
    ]  # the pole of a tessellated eyeball may be a small ring
    centre = (cap.min(0) + cap.max(0))[:2] / 2

    def hit(dx: float, dy: float) -> tuple[np.ndarray, np.ndarray]:
        a, b, c = (corners[:, i, :2] - centre - IRIS_RADIUS_M * np.array([dx, dy]) for i in range(3))
        areas = [p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0] for p, q in ((b, c), (c, a), (a, b))]
        w = np.stack(areas, axis=1)
        total = w.sum(1)
        w = w / np.where(np.abs(total) < 1e-14, np.inf, total)[:, None]
        inside = (w > -1e-6).all(1) & (w.sum(1) > 0.5)
        if not inside.any():
            raise InputError(
                "An eyeball is smaller than an iris: expected the outer surface of an eye that looks along +z."
            )
        best = int(np.where(inside, (w * corners[:, :, 2]).sum(1), -np.inf).argmax())
        weights = np.clip(w[best], 0, 1)
        return triangles[best], weights / weights.sum()

    rim = [hit(dx, dy * IRIS_ASPECT) for dx, dy in ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))]
    around = [hit(float(np.cos(angle)), float(np.sin(angle))) for angle in np.radians([90, 210, 330])]
    ring = np.array([ids[weights.argmax()] for ids, weights in around])
    middle = np.linalg.solve(np.vstack([mean[ring, :2].T, np.ones(3)]), np.append(centre, 1.0))
    return LandmarkTable(np.stack([ring, *(t for t, _ in rim)]), np.stack([middle, *(w for _, w in rim)]))


def outer_shell(mean: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Of an eyeball's triangles, those joined to its foremost vertex: the shell that is seen."""
    from scipy.sparse.csgraph import connected_components

    _, label = connected_components(_edge_graph(mean, triangles), directed=False)
    used = np.unique(triangles)
    return triangles[label[triangles[:, 0]] == label[used[mean[used, 2].argmax()]]]


@dataclasses.dataclass(frozen=True, eq=False)
class HeadShapes:
    """What `refine_landmarks` needs of a linear head, metres, head frame."""

    mean: np.ndarray
    """(V, 3)"""
    identity: np.ndarray
    """(I, V, 3) per standard deviation."""
    expression: np.ndarray
    """(E, V, 3) at activation 1; irises must not move with it."""
    eye_pivot: np.ndarray
    """(2, 3) centres of the (left, right) eyeball."""
    eye_pivot_basis: np.ndarray
    """(I, 2, 3)"""


class DetectionFit:
    """Identity, focal length, and per frame pose, expression and gaze that explain detected landmarks, by Gauss-Newton.

    A small least-squares tracker in numpy, for tables alone: frames are eliminated by Schur complement, so 40 frames
    take 0.1 s per step. detections: (F, 478, 3) pixels, z as MediaPipe gives it (used to start the pose). The camera's
    principal point is the middle of `image_size` (width, height). Identity and expression have Gaussian priors,
    activations below 0 cost 20 times as much.
    """

    def __init__(
        self, table: LandmarkTable, head: HeadShapes, detections: np.ndarray, image_size: Sequence[float] | np.ndarray
    ):
        self.table, self.head = table, head
        self.mean, self.identity = table.on(head.mean), table.on(head.identity)
        self.expression = table.on(head.expression)
        self.expression[:, 468:] = 0  # irises move by gaze
        self.observed = np.asarray(detections, np.float64)[..., :2]
        self.centre = np.asarray(image_size, np.float64) / 2
        frames = len(detections)
        outer = np.linalg.norm(self.observed[:, 33] - self.observed[:, 263], axis=-1)
        self.eye_distance_px = float(outer.mean())
        self.sigma = 0.0075 * self.eye_distance_px
        self.focal = 2.4 * float(max(image_size))
        self.shape = np.zeros(len(self.identity))
        self.activations = np.zeros((frames, len(self.expression)))
        self.gaze = np.zeros((frames, 2, 2))
        self.rotation, self.translation = np.zeros((frames, 3, 3)), np.zeros((frames, 3))
        flip = np.diag([1.0, -1.0, -1.0])
        for i, seen in enumerate(np.asarray(detections, np.float64)):
            scale, turn, _ = similarity(self.mean[:468], seen[:468] @ flip)
            self.rotation[i] = flip @ turn
            middle = self.rotation[i] @ self.mean[:468].mean(0)
            offset = (seen[:468, :2].mean(0) - self.centre) / scale
            self.translation[i] = [*(offset - middle[:2]), self.focal / scale]

    def points(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Points of frame i in the head frame (478, 3); their derivative by (left, right) (yaw, pitch) (478, 3, 4)."""
        p = (
            self.mean
            + np.tensordot(self.shape, self.identity, 1)
            + np.tensordot(self.activations[i], self.expression, 1)
        )
        by_gaze = np.zeros((478, 3, 4))
        for side, iris in enumerate((slice(473, 478), slice(468, 473))):
            pivot = self.head.eye_pivot[side] + np.tensordot(self.shape, self.head.eye_pivot_basis[:, side], 1)
            (cy, cp), (sy, sp) = np.cos(self.gaze[i, side]), np.sin(self.gaze[i, side])
            yaw = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
            turn = yaw @ np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
            moved = (p[iris] - pivot) @ turn.T
            p[iris] = pivot + moved
            by_gaze[iris, :, 2 * side] = np.cross([0.0, 1.0, 0.0], moved)
            by_gaze[iris, :, 2 * side + 1] = np.cross(yaw @ [-1.0, 0.0, 0.0], moved)
        return p, by_gaze

    def projection(self, p: np.ndarray, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of points (n, 3) in frame i: camera frame (n, 3), pixels (n, 2), d pixels / d camera frame (n, 2, 3)."""
        c = p @ self.rotation[i].T + self.translation[i]
        inverse = self.focal / c[:, 2]
        d = np.zeros((len(c), 2, 3))
        d[:, 0, 0] = d[:, 1, 1] = inverse
        d[:, :, 2] = -c[:, :2] / c[:, 2:] * inverse[:, None]
        return c, c[:, :2] * inverse[:, None] + self.centre, d

    def residuals(self) -> np.ndarray:
        """(F, 478, 2) pixels, detected minus modelled."""
        frames = range(len(self.observed))
        return np.stack([self.observed[i] - self.projection(self.points(i)[0], i)[1] for i in frames])

    def step(self, identity_weight: float, expression_weight: float, free_focal: bool) -> None:
        """One Gauss-Newton step on all variables."""
        n_frames, n_id, n_ex = len(self.observed), len(self.shape), len(self.expression)
        hessian, gradient, frames = np.zeros((n_id + 1,) * 2), np.zeros(n_id + 1), []
        for i in range(n_frames):
            p, by_gaze = self.points(i)
            c, pixels, d = self.projection(p, i)
            d_head = d @ self.rotation[i]
            r = self.observed[i] - pixels
            weight = 1 / (self.sigma * np.sqrt(1 + np.sum(r**2, axis=1) / (8 * self.sigma) ** 2))
            x, y, z = (c - self.translation[i]).T
            o = np.zeros_like(x)
            turning = np.stack([np.stack([o, z, -y], 1), np.stack([-z, o, x], 1), np.stack([y, -x, o], 1)], axis=1)
            depth = d[:, :, 2:] * self.translation[i, 2]  # the focal length takes the distance with it: the size stays
            by_shared = np.concatenate(
                [d_head @ self.identity.transpose(1, 2, 0), (pixels - self.centre)[..., None] + depth], axis=2
            )
            by_frame = np.concatenate(
                [d @ turning, 0.1 * d, d_head @ self.expression.transpose(1, 2, 0), d_head @ by_gaze], axis=2
            )
            a = (by_shared * weight[:, None, None]).reshape(956, -1)
            b = (by_frame * weight[:, None, None]).reshape(956, -1)
            rr = (r * weight[:, None]).ravel()
            activation = self.activations[i]
            outside = np.where(activation < 0, 20.0, np.where(activation > 1, 3.0, 1.0))
            prior = np.concatenate([np.full(6, 1e-3), expression_weight * outside, np.ones(4)])
            at = np.concatenate([np.zeros(6), activation, self.gaze[i].ravel()])
            inner = np.linalg.inv(b.T @ b + np.diag(prior))
            g, cross = b.T @ rr - prior * at, a.T @ b
            frames.append((inner, g, cross))
            hessian += a.T @ a - cross @ inner @ cross.T
            gradient += a.T @ rr - cross @ inner @ g
        prior = np.append(np.full(n_id, identity_weight * n_frames), n_frames if free_focal else 1e12)
        step = np.linalg.solve(hessian + np.diag(prior), gradient - prior * np.append(self.shape, 0.0))
        step[-1] = np.clip(step[-1], -0.3, 0.3)
        self.shape = self.shape + step[:-1]
        self.focal *= float(np.exp(step[-1]))
        self.translation[:, 2] *= np.exp(step[-1])
        for i, (inner, g, cross) in enumerate(frames):
            own = inner @ (g - cross.T @ step)
            self.rotation[i] = _rotation(own[:3]) @ self.rotation[i]
            self.translation[i] += 0.1 * own[3:6]
            self.activations[i] += own[6 : 6 + n_ex]
            self.gaze[i] += own[6 + n_ex :].reshape(2, 2)

    def run(self, steps: int = 11) -> "DetectionFit":
        """Fit: three stiff steps, then free ones, the focal length included."""
        for k in range(steps):
            stiff = k < 3
            self.step(20.0 if stiff else 1.0, 200.0 if stiff else 20.0, free_focal=not stiff)
        return self


def _rotation(v: np.ndarray) -> np.ndarray:
    angle = float(np.linalg.norm(v))
    k = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    if angle < 1e-8:
        return np.eye(3) + k
    return np.eye(3) + np.sin(angle) / angle * k + (1 - np.cos(angle)) / angle**2 * k @ k


def _fit_canonical(table: LandmarkTable, head: HeadShapes, canonical: np.ndarray, steps: int = 8) -> np.ndarray:
    """(468, 3) metres, what is left when the head's identity and expressions are fitted to the canonical mesh in 3D."""
    mean = table.on(head.mean)[:468]
    basis = np.concatenate([table.on(head.identity)[:, :468], table.on(head.expression)[:, :468]])
    n_id = len(head.identity)
    a = basis.reshape(len(basis), -1).T / 0.0008
    code = np.zeros(len(basis))
    target = mean
    for _ in range(steps):
        scale, rotation, shift = similarity(mean + np.tensordot(code, basis, 1), canonical)
        target = (canonical - shift) @ rotation / scale
        prior = np.concatenate([np.ones(n_id), np.where(code[n_id:] < 0, 500.0, 5.0)])
        code = np.linalg.solve(a.T @ a + np.diag(prior), a.T @ (target - mean).ravel() / 0.0008)
    return target - mean - np.tensordot(code, basis, 1)


def error_groups(fit: DetectionFit) -> dict[str, tuple[float, float]]:
    """Per group of landmarks, per cent of the outer-eye distance: mean error, mean length of the constant offset."""
    r = fit.residuals() / fit.eye_distance_px * 100
    groups = {
        "inner face": names.INNER_FACE, "lips": names.LIPS, "lids": (*names.EYE_LEFT, *names.EYE_RIGHT),
        "brows": (*names.BROW_LEFT, *names.BROW_RIGHT), "nose": names.NOSE, "oval": names.FACE_OVAL,
        "irises": (*names.IRIS_RIGHT, *names.IRIS_LEFT),
    }  # fmt: skip
    length = np.linalg.norm(r, axis=-1).mean(0)
    offset = np.linalg.norm(r.mean(0), axis=-1)
    return {k: (float(length[list(v)].mean()), float(offset[list(v)].mean())) for k, v in groups.items()}


def refine_landmarks(
    table: LandmarkTable,
    head: HeadShapes,
    skin_triangles: np.ndarray,
    detections: np.ndarray,
    image_size: Sequence[float] | np.ndarray,
    canonical_vertices: np.ndarray,
    canonical_faces: np.ndarray,
    rounds: int = 8,
    damping: float = 0.7,
    smoothness: float = 0.25,
    canonical_weight: float = 0.05,
) -> LandmarkTable:
    """Move the points along the skin until a real clip shows no constant offsets.

    Each round fits the head to detections (F, 478, 3), some 40 frames of varied pose, and solves for one displacement
    per point in its tangent plane: least squares over the frames and, with `canonical_weight`, over the canonical mesh
    as a second person. `smoothness` weighs the Laplacian of the displacements, and mirrored points share theirs: what
    remains of one person's own shape, beyond the identity modes, should not enter the table.
    """
    from scipy.sparse import block_diag, csr_matrix, identity, kron
    from scipy.sparse.linalg import spsolve

    mirror, flip = names.MIRROR478[:468], np.array([-1.0, 1.0, 1.0])
    laplacian = mesh_laplacian(open_faces(canonical_faces), 468)
    stiff = smoothness * kron(laplacian.T @ laplacian, identity(3)) + 0.05 * identity(3 * 468)
    points = table.on(head.mean)[:468]
    for _ in range(rounds):
        fit = DetectionFit(table, head, detections, image_size).run()
        residual = fit.residuals()[:, :468]
        corners = head.mean[table.triangles[:468]]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        tangent = np.eye(3) - normal[:, :, None] * normal[:, None, :]
        information, pull = np.zeros((468, 3, 3)), np.zeros((468, 3))
        for i, r in enumerate(residual):
            c, _, d = fit.projection(fit.points(i)[0][:468], i)
            q = d @ fit.rotation[i] @ tangent
            ray = c / np.linalg.norm(c, axis=1, keepdims=True)
            seen = np.clip(
                -np.sum(normal @ fit.rotation[i].T * ray, axis=1), 0.1, 1
            )  # points that face away say little
            information += np.einsum("n,nki,nkj->nij", seen, q, q)
            pull += np.einsum("n,nki,nk->ni", seen, q, r)
        scale = len(residual) * (fit.focal / np.mean(fit.translation[:, 2] - 0.1)) ** 2  # per frame, in metres
        information = information / scale + canonical_weight * tangent
        left = _fit_canonical(table, head, canonical_vertices)
        pull = pull / scale + canonical_weight * np.einsum("nij,nj->ni", tangent, left)
        information = (information + flip[:, None] * information[mirror] * flip) / 2
        pull = (pull + pull[mirror] * flip) / 2
        system = csr_matrix(block_diag(list(information)) + stiff)
        points = points + damping * spsolve(system.tocsc(), pull.ravel()).reshape(468, 3)
        found = project_to_skin(_mirrored_mean(points, mirror), head.mean, skin_triangles, canonical_faces)
        points = found.on(head.mean)
        table = LandmarkTable(
            np.concatenate([found.triangles, table.triangles[468:]]),
            np.concatenate([found.weights, table.weights[468:]]),
        )
    return table


def save_table(path: str | Path, table: LandmarkTable) -> None:
    """Write a table as `landmarks478_triangles` and `landmarks478_weights`."""
    np.savez_compressed(
        path,
        landmarks478_triangles=table.triangles.astype(np.int32),
        landmarks478_weights=table.weights.astype(np.float32),
    )


def head_parts(head: MorphableHead) -> tuple[HeadShapes, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Of a head: its shapes, the triangles of its skin, the vertices nearest its iBUG points, both eyeballs' shells."""
    p = head.params
    shapes = HeadShapes(
        *(
            np.asarray(a, np.float64)
            for a in (p.mean, p.identity_basis, p.expression_basis, p.eye_pivot, p.eye_pivot_basis)
        )
    )
    faces = head.topology.faces
    inside = np.maximum.reduce([np.asarray(head.regions[k]) for k in ("eyeballs", "eye_sockets", "teeth", "gums")])
    skin = faces[((np.asarray(head.regions["skin"]) > 0.5) & (inside < 0.5))[faces].all(1)]
    table = head.landmarks68
    vertices68 = table.triangles[np.arange(68), table.weights.argmax(1)]
    turns = np.asarray(p.eye_weight) > 0.5
    left, right = (outer_shell(shapes.mean, faces[turns[:, side][faces].all(1)]) for side in range(2))
    return shapes, skin, vertices68, (left, right)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command in the module's docstring."""
    from facejax.data.heads import load_morphable

    parser = argparse.ArgumentParser(description="Derive where MediaPipe's 478 landmarks lie on a head.")
    parser.add_argument("head", help="what `load_morphable` takes: a name, a converted .npz, or a FaceXModel folder")
    parser.add_argument("--canonical", required=True, help="MediaPipe's canonical_face_model.obj")
    parser.add_argument("--out", required=True, help="table to write, .npz")
    parser.add_argument(
        "--detections", help="landmarks of a real clip, .npz with `landmarks` (F, 478, 3) and `image_size`"
    )
    parser.add_argument("--frames", type=int, default=40, help="how many frames of it, spread evenly")
    options = parser.parse_args(arguments)
    head = load_morphable(options.head, None if options.head == "generic" else ("all",))
    shapes, skin, vertices68, eyeballs = head_parts(head)
    canonical_vertices, canonical_faces = read_canonical(options.canonical)
    table = derive_landmarks(shapes.mean, skin, vertices68, canonical_vertices, canonical_faces, eyeballs)
    if options.detections:
        data = read_npz(options.detections, "detect again", ("landmarks", "image_size"))
        landmarks, size = data["landmarks"], data["image_size"]
        landmarks = landmarks[np.isfinite(landmarks).all(axis=(1, 2))]
        chosen = landmarks[np.linspace(0, len(landmarks) - 1, min(options.frames, len(landmarks))).astype(int)]
        print("per cent of the outer-eye distance: mean error, constant offset")
        print("before", error_groups(DetectionFit(table, shapes, chosen, size).run()))
        table = refine_landmarks(table, shapes, skin, chosen, size, canonical_vertices, canonical_faces)
        print("after ", error_groups(DetectionFit(table, shapes, chosen, size).run()))
    save_table(options.out, table)


if __name__ == "__main__":
    main()
