"""Scores of a face's shape by the protocols of NoW and REALY, written anew: what they measure, not their programs.

NoW (Sanyal et al. 2019): seven landmarks, then closest points, bring a face onto a scan; the distances from the scan's
vertices to the face are the score. REALY (Chai et al. 2022): the same per region of the face, without scale, and over
correspondences of a deformation instead of closest points. Both look from the scan to the face only, where thin spikes
of the face are hardly seen: scores here hold the way back, and normals, too.

Surfaces are in metres, scans in true size; errors are in millimetres and radians. Identical surfaces score 0; a
similarity of the face changes nothing (with `with_scale=False` a rigid motion).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from facejax.geometry.errors import InputError
from facejax.objectives.metrics import Similarity, align_to_surface, similarity_align
from facejax.objectives.surface_metrics import Surface, angles_between

REALY_REGIONS = ("nose", "mouth", "forehead", "cheek")
"""The parts of a face that REALY scores, and whose mean is its total."""

NOW_LANDMARKS = (
    "right eye, outer corner", "right eye, inner corner", "left eye, inner corner", "left eye, outer corner",
    "bottom of the nose", "right mouth corner", "left mouth corner",
)  # fmt: skip
"""The order of NoW's seven points: 36, 39, 42, 45, 33, 48, 54 of the 68, counted from 0. Sides are the subject's."""

_STEER = 1000
"""About how many points steer an alignment."""


@dataclasses.dataclass(frozen=True)
class ShapeScore:
    """How far a face is from a scan, or from a region of one."""

    distances_mm: Float[np.ndarray, " n"]
    """From each vertex of the scan to its match on the face: to be pooled over faces, as NoW does."""
    median_mm: float
    mean_mm: float
    """REALY calls this NMSE."""
    std_mm: float
    back_mm: float
    """Mean distance to the scan of the face's vertices around the matches: spikes of the face that matches avoid."""
    back_worst_mm: float
    """The largest of those distances."""
    normal_rad: float
    """Mean angle between the scan's normals and the face's at the matches, weighed by area; NaN if there are none."""
    alignment: Similarity
    """From the face's frame to that of the scan."""


def now_score(
    face: Surface,
    landmarks: Float[np.ndarray, "_ 3"],
    scan: Surface,
    scan_landmarks: Float[np.ndarray, "_ 3"],
    with_scale: bool = True,
) -> ShapeScore:
    """A face without expression against a scan by NoW's protocol.

    landmarks, scan_landmarks: in the order of `NOW_LANDMARKS`. with_scale: False is the "metrical" variant. The scan is
    cropped by `now_crop`, the landmarks' similarity is refined by closest points (least squares, where NoW minimises a
    robust sum), and distances go from the crop's vertices to the face. Raises `InputError` for points that are not
    seven, not finite or on a line, and for a scan with no vertex in the crop.
    """
    start = _from_landmarks(landmarks, scan_landmarks, with_scale, count=7)
    inside = np.flatnonzero(
        now_crop(scan.vertices, scan_landmarks) & np.isin(np.arange(len(scan.vertices)), scan.faces)
    )
    if not len(inside):
        raise InputError(
            "No vertex of the scan is near its landmarks: the landmarks must be in the scan's frame, in metres."
        )
    alignment, _ = align_to_surface(scan.vertices[inside], face.search, start, with_scale, iterations=30)
    moved = Surface(alignment.apply(face.vertices), face.faces)
    return _score(moved, scan, inside, *moved.search.nearest(scan.vertices[inside]), alignment)


def now_crop(points: Float[np.ndarray, "n 3"], landmarks: Float[np.ndarray, "7 3"]) -> Bool[np.ndarray, " n"]:
    """Which points NoW scores: those in a sphere about a place 0.3 of the way from the nose's bottom to its bridge.

    The bridge is midway between the inner corners of the eyes; the radius is 0.7 times the sum of the distance between
    the outer corners and the nose's length. landmarks: in the order of `NOW_LANDMARKS`, in the points' frame.
    """
    outer_right, inner_right, inner_left, outer_left, bottom = np.asarray(landmarks, np.float64)[:5]
    nose = (inner_right + inner_left) / 2 - bottom
    radius = 0.7 * (np.linalg.norm(outer_left - outer_right) + np.linalg.norm(nose))
    return np.linalg.norm(np.asarray(points) - (bottom + 0.3 * nose), axis=1) <= radius


def realy_score(
    face: Surface,
    keypoints: Float[np.ndarray, "k 3"],
    regions: Mapping[str, Surface],
    scan_keypoints: Float[np.ndarray, "_ 3"],
    start: Sequence[int] | None = None,
    with_scale: bool = False,
) -> dict[str, ShapeScore]:
    """A face against regions of a scan (`REALY_REGIONS`, or any) by REALY's protocol; the total is the mean of regions.

    keypoints, scan_keypoints: the same points on both, in their frames. start: ids of those whose similarity is the
    first guess (seven in REALY); None: all. Each region is then aligned by itself with closest points, rigidly (REALY)
    or with scale, up to 100 times, tolerance 1e-6; keypoints on the region take part, with the weight of a tenth of its
    points (REALY repeats them an unsaid number of times). The region is then bent onto the face, ever less stiffly, and
    each vertex's match is the point of the face where that puts it (a non-rigid registration of our own: smooth
    displacements over the region's edges). Distances go from the vertices, unbent, to their matches.

    Raises `InputError` for keypoints that do not fit, and when there is no region.
    """
    if not regions:
        raise InputError(f"Regions of a scan are surfaces by name, such as {', '.join(REALY_REGIONS)}; none was given.")
    if len(keypoints) != len(scan_keypoints):
        raise InputError(
            f"Keypoints of face and scan must be the same points, got {len(keypoints)} and {len(scan_keypoints)}."
        )
    chosen = list(range(len(keypoints))) if start is None else list(start)
    whole = _from_landmarks(np.asarray(keypoints)[chosen], np.asarray(scan_keypoints)[chosen], with_scale=True)
    scores = {}
    for name, region in regions.items():
        alignment = _align_region(face, region, whole, keypoints, scan_keypoints, with_scale)
        moved = Surface(alignment.apply(face.vertices), face.faces)
        bent = bend_onto(region, moved)
        used = np.unique(region.faces)
        scores[name] = _score(moved, region, used, *moved.search.nearest(bent[used]), alignment)
    return scores


def realy_total_mm(scores: Mapping[str, ShapeScore]) -> float:
    """REALY's figure for a whole face: the mean of the regions' `mean_mm`, all regions alike."""
    return float(np.mean([score.mean_mm for score in scores.values()]))


def bend_onto(
    surface: Surface, target: Surface, stiffness: Sequence[float] = (100.0, 30.0, 10.0, 3.0, 1.0), repeats: int = 2
) -> Float[np.ndarray, "v 3"]:
    """Vertices of a surface, displaced onto another one as evenly as `stiffness` says, from stiff to soft.

    Minimises squared distances to closest points on the target plus stiffness times squared differences of displacement
    over edges, `repeats` times at each stiffness. Both in one frame; a surface that lies on the target stays.
    """
    from scipy.sparse import coo_matrix, identity
    from scipy.sparse.linalg import splu

    count = len(surface.vertices)
    edges = np.unique(np.sort(surface.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1), axis=0)
    edges = edges[edges[:, 0] != edges[:, 1]]
    rows, columns = np.concatenate([edges, edges[:, ::-1]]).T
    joined = coo_matrix((np.ones(len(rows)), (rows, columns)), (count, count)).tocsr()
    degree = np.asarray(joined.sum(axis=1)).ravel()
    laplacian = (coo_matrix((degree, (np.arange(count), np.arange(count))), (count, count)) - joined).tocsr()
    bent = surface.vertices
    for weight in stiffness:
        solve = splu((identity(count) + weight * laplacian).tocsc()).solve
        for _ in range(repeats):
            bent = surface.vertices + solve(target.search.closest(bent) - surface.vertices)
    return bent


def _from_landmarks(
    landmarks: Float[np.ndarray, "_ 3"],
    scan_landmarks: Float[np.ndarray, "_ 3"],
    with_scale: bool,
    count: int | None = None,
) -> Similarity:
    """The similarity that takes the face's landmarks to the scan's."""
    source, target = np.asarray(landmarks, np.float64), np.asarray(scan_landmarks, np.float64)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 3 or count not in (None, len(source)):
        wanted = f"({count}, 3)" if count else "(k, 3)"
        raise InputError(
            f"Landmarks of face and scan must be the same points, {wanted} each, got {source.shape} and {target.shape}."
        )
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise InputError("Landmarks of face and scan must be finite: leave out those that were not found.")
    for name, points in (("face", source), ("scan", target)):
        spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False) if len(points) > 2 else np.zeros(2)
        if spread[1] <= 1e-6 * spread[0] or spread[0] == 0:
            raise InputError(
                f"An alignment needs three landmarks that are not on a line, those of the {name} are {len(points)} "
                "on one line or in one place."
            )
    return similarity_align(source, target, with_scale=with_scale)


def _align_region(
    face: Surface,
    region: Surface,
    start: Similarity,
    keypoints: Float[np.ndarray, "k 3"],
    scan_keypoints: Float[np.ndarray, "k 3"],
    with_scale: bool,
) -> Similarity:
    """The motion that takes the face onto a region, from closest points and the region's own keypoints."""
    used = np.unique(region.faces)
    few = region.vertices[used[:: max(1, len(used) // _STEER)]]
    # "on the region": nearer to it than its vertices are to each other
    corners = region.vertices[region.faces]
    spacing = np.median(np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2))
    own = np.linalg.norm(scan_keypoints - region.search.closest(scan_keypoints), axis=1) <= spacing
    weights = np.ones(len(few) + own.sum())
    weights[len(few) :] = 0.1 * len(few) / max(own.sum(), 1)
    # sizes are settled by the landmarks: the face at that size, so that what follows is rigid
    sized = Similarity(start.scale, np.eye(3), np.zeros(3))
    body = Surface(sized.apply(face.vertices), face.faces)
    points = sized.apply(np.asarray(keypoints, np.float64)[own])
    motion, before = Similarity(1.0, start.rotation, start.translation), np.inf
    for _ in range(100):
        matched = body.search.closest(motion.invert(few))
        error = float(np.linalg.norm(motion.apply(matched) - few, axis=1).mean())
        if before - error <= 1e-6 * before:
            break
        before = error
        motion = similarity_align(
            np.concatenate([matched, points]), np.concatenate([few, scan_keypoints[own]]), weights, with_scale
        )
    return Similarity(motion.scale * start.scale, motion.rotation, motion.translation)


def _score(
    face: Surface,
    scan: Surface,
    rows: Int[np.ndarray, " n"],
    matched: Float[np.ndarray, "n 3"],
    triangles: Int[np.ndarray, " n"],
    alignment: Similarity,
) -> ShapeScore:
    """Of a face in the scan's frame, whose points `matched` on `triangles` belong to the scan's vertices `rows`."""
    distances = 1000 * np.linalg.norm(scan.vertices[rows] - matched, axis=1)
    weights = face.weights_at(matched, triangles)
    # corners that carry a match, not all of its triangle: else a region's border would count what is beyond it
    around = np.unique(face.faces[triangles][weights > 1e-6])
    back = 1000 * np.linalg.norm(face.vertices[around] - scan.search.closest(face.vertices[around]), axis=1)
    angles = angles_between(scan.normals[rows], face.normals_at(matched, triangles))
    # at its border a scan lacks part of the triangles that its normals are means of
    area = np.where(np.isfinite(angles) & ~scan.on_border[rows], scan.areas[rows], 0.0)
    return ShapeScore(
        distances_mm=distances,
        median_mm=float(np.median(distances)),
        mean_mm=float(distances.mean()),
        std_mm=float(distances.std()),
        back_mm=float(back.mean()),
        back_worst_mm=float(back.max()),
        normal_rad=float(area @ np.nan_to_num(angles) / area.sum()) if area.sum() > 0 else float("nan"),
        alignment=alignment,
    )
