"""How good a picture, a surface or a motion is: what fitting, training and evaluation report.

Landmarks are MediaPipe's 478 in image pixels, NaN where there are none. Geometry is in metres; functions whose name or
docstring says so report millimetres or per cent. All are pure; those on clips are plain numpy in float64.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from facejax.models.landmark_names import OUTER_EYE_CORNERS

# --- pictures ---------------------------------------------------------------------------------------------------------


def masked_mean(values: Float[Array, "h w *c"], mask: Float[Array, "h w"] | Bool[Array, "h w"]) -> Float[Array, ""]:
    """Mean of `values` over pixels, weighted by `mask` (h, w), and over channels. NaN when the mask is empty."""
    weight = jnp.asarray(mask, jnp.float32)
    per_pixel = values.reshape(*weight.shape, -1).mean(axis=-1)
    return jnp.sum(per_pixel * weight) / jnp.sum(weight)


@jax.jit
def psnr(
    image: Float[Array, "h w c"], reference: Float[Array, "h w c"], mask: Float[Array, "h w"] | Bool[Array, "h w"]
) -> Float[Array, ""]:
    """Peak signal-to-noise ratio in dB of values in [0, 1], squared errors averaged over `mask`; infinite if equal."""
    return -10 * jnp.log10(masked_mean((image - reference) ** 2, mask))


def _blur(image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    """11x11 Gaussian of sigma 1.5, the border mirrored."""
    tap = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    tap = tap / tap.sum()
    for axis, n in enumerate(image.shape[:2]):
        pad = [(5, 5) if i == axis else (0, 0) for i in range(3)]
        padded = jnp.pad(image, pad, mode="symmetric")
        terms = [float(t) * jax.lax.slice_in_dim(padded, i, i + n, axis=axis) for i, t in enumerate(tap)]
        image = functools.reduce(jnp.add, terms)
    return image


@jax.jit
def ssim_map(
    image: Float[Array, "h w c"],
    reference: Float[Array, "h w c"],
    valid: Float[Array, "h w"] | Bool[Array, "h w"] | None = None,
) -> Float[Array, "h w c"]:
    """Structural similarity around every pixel (Wang et al. 2004: K1 0.01, K2 0.03, range 1), in [-1, 1].

    valid: pixels that count in windows, which are renormalised; None: all. What other pixels hold, NaN included, is
    never seen; their own similarity means nothing.
    """
    c1, c2 = 0.01**2, 0.03**2
    # Moments about one half: single precision loses less when the squared means are subtracted.
    x, y = image - 0.5, reference - 0.5
    weight, inside = jnp.ones(()), jnp.ones(())
    if valid is not None:
        weight = jnp.asarray(valid, jnp.float32)[..., None]
        x, y = (jnp.where(weight > 0, v, 0.0) for v in (x, y))
        inside = jnp.maximum(_blur(weight), 1e-6)

    def blur(values: Array) -> Array:
        return _blur(values * weight) / inside

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    mx, my = mx + 0.5, my + 0.5
    return (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))


@jax.jit
def ssim(
    image: Float[Array, "h w c"], reference: Float[Array, "h w c"], mask: Float[Array, "h w"] | Bool[Array, "h w"]
) -> Float[Array, ""]:
    """Mean of `ssim_map` over `mask`. Windows at the mask's border see pixels outside it."""
    return masked_mean(ssim_map(image, reference), mask)


def hull_mask(points: Float[np.ndarray, "n 2"], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Pixels of an image of `size` = (height, width) whose centres lie in the convex hull of points.

    NaN points are left out. All False when fewer than three points are left or they lie on a line.
    """
    from scipy.spatial import ConvexHull, QhullError

    points = np.asarray(points, np.float64)
    points = points[np.isfinite(points).all(axis=1)]
    try:
        half_planes = ConvexHull(points).equations
    except (QhullError, ValueError):
        return np.zeros(size, bool)
    x, y = np.arange(size[1]) + 0.5, np.arange(size[0])[:, None] + 0.5
    return np.logical_and.reduce([a * x + b * y + c <= 1e-9 for a, b, c in half_planes])


def hull_coverage(coverage: Float[np.ndarray, "h w"], landmarks: Float[np.ndarray, "n 2"]) -> float:
    """Share of the landmarks' convex hull that a rendering covers, in [0, 1]; NaN when the hull has no pixel."""
    hull = hull_mask(landmarks, coverage.shape)
    return float(np.asarray(coverage)[hull].mean()) if hull.any() else float("nan")


# --- surfaces ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Similarity:
    """`x -> scale * rotation @ x + translation`, in two or three dimensions."""

    scale: float
    rotation: Float[np.ndarray, "d d"]
    translation: Float[np.ndarray, " d"]

    def apply(self, points: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
        """The points moved."""
        return self.scale * (points @ self.rotation.T) + self.translation

    def invert(self, points: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
        """The points that `apply` takes to `points`."""
        return (points - self.translation) @ self.rotation / self.scale


def similarity_align(
    source: Float[np.ndarray, "n d"],
    target: Float[np.ndarray, "n d"],
    weights: Float[np.ndarray, " n"] | None = None,
    with_scale: bool = True,
) -> Similarity:
    """Least-squares similarity that takes `source` to `target` (Umeyama 1991, eq. 40-42); a rigid motion without scale.

    Never a reflection. Raises ValueError when fewer points than dimensions have weight.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    w = np.ones(len(source)) if weights is None else np.asarray(weights, np.float64)
    d = source.shape[1]
    if np.count_nonzero(w) < d:
        raise ValueError(
            f"a similarity in {d} dimensions needs at least {d} points with weight, got {np.count_nonzero(w)}"
        )
    w = w / w.sum()
    mean_s, mean_t = w @ source, w @ target
    s, t = source - mean_s, target - mean_t
    u, singular, vt = np.linalg.svd((t * w[:, None]).T @ s)
    sign = np.ones(d)
    sign[-1] = np.sign(np.linalg.det(u @ vt))
    rotation = (u * sign) @ vt
    scale = float(singular @ sign / (w @ (s * s).sum(axis=1))) if with_scale else 1.0
    return Similarity(scale=scale, rotation=rotation, translation=mean_t - scale * rotation @ mean_s)


def _closest_on_triangles(p: np.ndarray, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Closest point to p[i] of triangle i, all (m, 3): the foot on the plane if it is inside, else the best edge's."""

    def dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.einsum("ij,ij->i", x, y)

    best, best_d2 = a.copy(), np.full(len(p), np.inf)
    edges = ((a, b), (b, c), (c, a))
    for start, end in edges:
        edge = end - start
        along = np.clip(dot(p - start, edge) / np.maximum(dot(edge, edge), 1e-30), 0, 1)
        q = start + along[:, None] * edge
        d2 = dot(p - q, p - q)
        better = d2 < best_d2
        best[better], best_d2[better] = q[better], d2[better]
    normal = np.cross(b - a, c - a)
    area2 = dot(normal, normal)
    foot = p - (dot(p - a, normal) / np.maximum(area2, 1e-30))[:, None] * normal
    inside = area2 > 1e-30
    for start, end in edges:
        inside &= dot(np.cross(end - start, foot - start), normal) >= 0
    best[inside] = foot[inside]
    return best


class SurfaceSearch:
    """Exact closest points on a triangle mesh; a tree over the triangles' centres is built once."""

    def __init__(self, vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "t 3"]) -> None:
        from scipy.spatial import cKDTree

        self.corners = np.asarray(vertices, np.float64)[np.asarray(faces)]  # (t, 3, 3)
        centres = self.corners.mean(axis=1)
        radius = np.linalg.norm(self.corners - centres[:, None], axis=2).max(axis=1)
        # One tree per octave of triangle size, so that a few large triangles do not widen the search among the small.
        octave = np.floor(np.log2(np.maximum(radius, 1e-12))).astype(int)
        self._trees = []
        for o in np.unique(octave):
            ids = np.flatnonzero(octave == o)
            self._trees.append((ids, cKDTree(centres[ids]), float(radius[ids].max())))

    def near(
        self, points: Float[np.ndarray, "n 3"], distances: Float[np.ndarray, " n"]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of (rows of points, triangles), among them every triangle within its distance of each point.

        Rows ascend in a batch. `distances` are read batch by batch: a caller may lower them meanwhile.
        """
        everyone = np.arange(len(points))
        for ids, tree, radius in self._trees:
            # A triangle nearer than the distance has its centre within distance + radius.
            for chunk in np.array_split(everyone, max(1, len(points) // 1000)):
                near = tree.query_ball_point(points[chunk], distances[chunk] + radius)
                count = np.array([len(x) for x in near], dtype=int)
                if count.sum():
                    yield np.repeat(chunk, count), ids[np.concatenate([x for x in near if x]).astype(int)]

    def nearest(self, points: Float[np.ndarray, "n 3"]) -> tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, " n"]]:
        """The point of the surface closest to each point, and a triangle that it is on."""
        points = np.asarray(points, np.float64)
        best, bound, owner = np.empty_like(points), np.full(len(points), np.inf), np.zeros(len(points), int)

        def improve(rows: np.ndarray, triangles: np.ndarray) -> None:
            """Take candidates (point rows[i], triangle triangles[i]) into account; `rows` ascend."""
            q = _closest_on_triangles(points[rows], *(self.corners[triangles, i] for i in range(3)))
            distance = np.linalg.norm(points[rows] - q, axis=1)
            order = np.lexsort((distance, rows))
            first = order[np.unique(rows[order], return_index=True)[1]]
            first = first[distance[first] < bound[rows[first]]]
            best[rows[first]], bound[rows[first]], owner[rows[first]] = q[first], distance[first], triangles[first]

        for ids, tree, _ in self._trees:
            improve(np.arange(len(points)), ids[tree.query(points)[1]])
        for rows, triangles in self.near(points, bound):
            improve(rows, triangles)
        return best, owner

    def closest(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """The point of the surface closest to each point."""
        return self.nearest(points)[0]


def surface_distance(
    points: Float[np.ndarray, "n 3"], vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "t 3"]
) -> Float[np.ndarray, " n"]:
    """Distance from each point to the surface of a mesh, exact, in the unit of its vertices."""
    return np.linalg.norm(np.asarray(points) - SurfaceSearch(vertices, faces).closest(points), axis=1)


def align_to_surface(
    points: Float[np.ndarray, "n 3"],
    surface: SurfaceSearch,
    start: Similarity,
    with_scale: bool = True,
    iterations: int = 20,
    sample: int = 1000,
) -> tuple[Similarity, Float[np.ndarray, " n"]]:
    """Move a surface onto points by iterated closest points; of many points, about `sample` steer.

    start: a first guess that takes the surface's frame to that of the points, e.g. from landmarks.
    Returns the similarity from the surface's frame to that of the points, and the points' distances to the moved
    surface in the unit of the points.
    """
    points = np.asarray(points, np.float64)
    few = points[:: max(1, len(points) // sample)]
    align = start
    for _ in range(iterations):
        align = similarity_align(surface.closest(align.invert(few)), few, with_scale=with_scale)
    closest = surface.closest(align.invert(points))
    return align, np.linalg.norm(align.apply(closest) - points, axis=1)


# --- landmarks --------------------------------------------------------------------------------------------------------


def eye_distance(landmarks: Float[np.ndarray, "f n d"]) -> Float[np.ndarray, " f"]:
    """Distance between the outer eye corners in each frame, in the unit of the landmarks (2D or 3D)."""
    return np.linalg.norm(landmarks[:, OUTER_EYE_CORNERS[0]] - landmarks[:, OUTER_EYE_CORNERS[1]], axis=-1)


def landmark_errors(
    landmarks: Float[np.ndarray, "f n _"],
    target: Float[np.ndarray, "f n _"],
    groups: Mapping[str, Sequence[int] | np.ndarray],
) -> dict[str, float]:
    """Mean distance of landmarks to their targets, in per cent of the target's outer-eye distance in each frame.

    groups: name -> landmark ids. Points and frames that are NaN on either side are left out; NaN if nothing is left.
    """
    unit = eye_distance(np.asarray(target)[..., :2])[:, None]
    error = 100 * np.linalg.norm(np.asarray(landmarks)[..., :2] - np.asarray(target)[..., :2], axis=-1) / unit
    return {name: _nanmean(error[:, list(ids)]) for name, ids in groups.items()}


def _nanmean(values: np.ndarray) -> float:
    """Mean of the finite values; NaN, without a warning, when there are none."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else float("nan")


def dead_face_control(target: Float[np.ndarray, "f n d"], iterations: int = 10) -> Float[np.ndarray, "f n 2"]:
    """The clip's mean landmark shape posed per frame: how well a face that never moves a muscle would do.

    target: landmarks with the detector's depth, (x, y, z) in pixels: the mean shape is three-dimensional and is turned,
    scaled and moved in space, then seen orthographically. Without depth (d = 2) a similarity of the plane.
    The mean is that of generalised Procrustes analysis over the complete frames (Gower 1975); the others become NaN.
    """
    target = np.asarray(target, np.float64)
    whole = np.isfinite(target).all(axis=(1, 2))
    shapes = target[whole]
    result = np.full((*target.shape[:2], 2), np.nan)
    if not len(shapes):
        return result
    unit = np.mean([np.linalg.norm(s - s.mean(axis=0)) for s in shapes])
    mean = shapes[len(shapes) // 2]
    for _ in range(iterations):
        mean = np.mean([similarity_align(s, mean).apply(s) for s in shapes], axis=0)
        mean = mean - mean.mean(axis=0)
        mean = mean * (unit / np.linalg.norm(mean))  # or the mean would shrink at every turn
    result[whole] = [similarity_align(mean, s).apply(mean)[:, :2] for s in shapes]
    return result


def opening(landmarks: Float[np.ndarray, "f n d"], pairs: Sequence[tuple[int, int]]) -> Float[np.ndarray, " f"]:
    """Mean distance between pairs of landmarks (upper and lower lip or lid), per outer-eye distance of each frame.

    In the plane or in space, as the landmarks are: in the plane both distances are foreshortened as the head turns.
    """
    upper, lower = np.asarray(pairs).T
    gap = np.linalg.norm(landmarks[:, upper] - landmarks[:, lower], axis=-1).mean(axis=1)
    return gap / eye_distance(landmarks)


def correlation(a: Float[np.ndarray, " f"], b: Float[np.ndarray, " f"]) -> float:
    """Pearson's correlation of two signals where both are finite; NaN when one is constant or too few are."""
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 2:
        return float("nan")
    x, y = a[both] - a[both].mean(), b[both] - b[both].mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 1e-12 else float("nan")


def opening_correlation(
    landmarks: Float[np.ndarray, "f n _"], target: Float[np.ndarray, "f n _"], pairs: Sequence[tuple[int, int]]
) -> float:
    """Correlation over a clip of how far lips or lids are open in the image, see `opening`, with the detector's."""
    return correlation(opening(landmarks[..., :2], pairs), opening(target[..., :2], pairs))


# --- motion -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PeakMatch:
    """How a signal follows the peaks of the truth."""

    amplitude: float
    """Height of the signal's peaks per height of the truth's, all peaks together; 1 is perfect."""
    worst: float
    """The smallest such ratio of any one peak."""
    lag_frames: float
    """By how many frames the signal is late; negative when early."""
    lag_seconds: float
    n_peaks: int


def peak_amplitude_and_lag(
    signal: Float[np.ndarray, " _"],
    truth: Float[np.ndarray, " _"],
    fps: float,
    prominence: float = 0.3,
    window: int = 2,
    max_lag: int = 5,
) -> PeakMatch:
    """Compare the peaks of a signal (a blink, a lip opening) with those of the truth, in the same unit.

    A peak is a maximum of the truth, not at an end of the clip, that stands out by `prominence` of the truth's range.
    Its height counts from the higher of the two feet beside it; the signal's is its maximum within `window` frames of
    the peak over its value at the same foot. The lag is where the correlation over whole-frame shifts up to `max_lag`
    is largest, refined by a parabola. All NaN when there is no peak. Raises ValueError for signals of different length
    or with NaN.
    """
    from scipy.signal import find_peaks

    signal, truth = np.asarray(signal, np.float64), np.asarray(truth, np.float64)
    if signal.shape != truth.shape or not np.isfinite(signal).all() or not np.isfinite(truth).all():
        raise ValueError(f"signal {signal.shape} and truth {truth.shape} must be finite and of one length")
    nan = float("nan")
    peaks, info = (
        find_peaks(truth, prominence=prominence * max(float(np.ptp(truth)), 1e-12)) if len(truth) else ([], {})
    )
    if not len(peaks):
        return PeakMatch(amplitude=nan, worst=nan, lag_frames=nan, lag_seconds=nan, n_peaks=0)
    heights = []
    for p, left, right in zip(peaks, info["left_bases"], info["right_bases"], strict=True):
        foot = left if truth[left] > truth[right] else right
        heights.append((signal[max(0, p - window) : p + window + 1].max() - signal[foot], truth[p] - truth[foot]))
    got, true = np.array(heights).T

    shifts = range(-max_lag, max_lag + 1)
    n = len(truth)
    score = np.array(
        [correlation(signal[max(0, k) : n + min(0, k)], truth[max(0, -k) : n - max(0, k)]) for k in shifts]
    )
    score = np.where(np.isfinite(score), score, -1.0)
    i = int(np.argmax(score))
    lag = float(shifts[i])
    if 0 < i < len(shifts) - 1:
        before, here, after = score[i - 1 : i + 2]
        curvature = before - 2 * here + after
        lag += float(0.5 * (before - after) / curvature) if curvature < 0 else 0.0
    if np.ptp(signal) < 1e-12:
        lag = nan
    return PeakMatch(
        amplitude=float(got.sum() / true.sum()),
        worst=float((got / true).min()),
        lag_frames=lag,
        lag_seconds=lag / fps,
        n_peaks=len(peaks),
    )


def high_frequency_motion(vertices: Float[np.ndarray, "f v 3"], fps: float, cutoff: float = 5.0) -> float:
    """RMS over frames and vertices of the displacement above `cutoff` Hz, in millimetres, of vertices in metres.

    A fourth-order Butterworth filter, run forwards and backwards (no shift, half the amplitude at the cutoff). NaN for
    clips under eight frames, or of a frame rate that cannot show the cutoff.
    """
    from scipy.signal import butter, sosfiltfilt

    frames = len(vertices)
    if frames < 8 or cutoff >= fps / 2:
        return float("nan")
    filter_ = butter(4, cutoff, "highpass", fs=fps, output="sos")
    fast = sosfiltfilt(filter_, np.asarray(vertices, np.float64), axis=0, padlen=min(15, frames - 1))
    return float(1000 * np.sqrt((fast**2).sum(axis=-1).mean()))
