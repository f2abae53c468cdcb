"""Metrics against second implementations, closed forms and edges."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from facejax.objectives import metrics as m

RNG = np.random.default_rng


def _picture(seed: int, size: tuple[int, int] = (40, 53)) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(RNG(seed).normal(size=(*size, 3)), (2, 2, 0))
    return np.clip(0.5 + noise, 0, 1).astype(np.float32)


def test_psnr_closed_form_and_mask() -> None:
    a = np.full((4, 6, 3), 0.5, np.float32)
    b = a.copy()
    b[:, :3] += 0.1
    b[:, 3:] += 0.01
    left = np.zeros((4, 6), np.float32)
    left[:, :3] = 1
    assert float(m.psnr(b, a, left)) == pytest.approx(20, abs=1e-3)
    assert float(m.psnr(b, a, 1 - left)) == pytest.approx(40, abs=1e-2)
    assert float(m.psnr(b, a, np.ones((4, 6), np.float32))) == pytest.approx(-10 * np.log10(0.00505), abs=1e-3)
    assert np.isinf(m.psnr(a, a, left))
    assert np.isnan(m.psnr(a, b, 0 * left))


def test_ssim_against_direct_windows() -> None:
    """The definition, window by window, in float64 and without separable filters."""
    a, b = _picture(0), np.clip(_picture(0) + 0.1 * _picture(1), 0, 1).astype(np.float32)
    got = np.asarray(m.ssim_map(a, b))
    tap = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    window = np.outer(tap, tap) / tap.sum() ** 2
    for y, x in ((5, 5), (17, 30), (34, 47), (20, 6)):
        for c in range(3):
            p, q = (i[y - 5 : y + 6, x - 5 : x + 6, c].astype(np.float64) for i in (a, b))
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            want = (2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4))
            assert got[y, x, c] == pytest.approx(want, abs=2e-5)


def test_ssim_against_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    a, b = _picture(0), np.clip(0.8 * _picture(0) + 0.2 * _picture(1), 0, 1).astype(np.float32)
    _, want = metrics.structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=2, full=True
    )
    np.testing.assert_allclose(m.ssim_map(a, b), want, atol=5e-5)
    mask = _picture(2)[..., 0] > 0.5
    assert float(m.ssim(a, b, mask)) == pytest.approx(want[mask].mean(), abs=1e-5)


def test_ssim_of_equal_and_of_inverted() -> None:
    a = _picture(3)
    ones = np.ones(a.shape[:2], np.float32)
    assert float(m.ssim(a, a, ones)) == pytest.approx(1, abs=1e-6)
    assert float(m.ssim(1 - a, a, ones)) < 0


def test_hull() -> None:
    square = np.array([[10, 20], [30, 20], [30, 40], [10, 40], [20, 30], [np.nan, 1]])
    mask = m.hull_mask(square, (64, 48))
    want = np.zeros((64, 48), bool)
    want[20:40, 10:30] = True
    np.testing.assert_array_equal(mask, want)
    coverage = np.zeros((64, 48))
    coverage[:30] = 1
    assert m.hull_coverage(coverage, square) == pytest.approx(0.5)
    assert not m.hull_mask(square[:2], (8, 8)).any()
    assert not m.hull_mask(np.outer(np.arange(5.0), [1, 1]), (8, 8)).any()  # on a line
    assert np.isnan(m.hull_coverage(coverage, square[:2]))


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("with_scale", [True, False])
def test_similarity_recovers_motion(d: int, with_scale: bool) -> None:
    rng = RNG(d)
    x = rng.normal(size=(20, d))
    rotation = Rotation.from_rotvec([0.3, -2.0, 0.7]).as_matrix() if d == 3 else np.array([[0.6, -0.8], [0.8, 0.6]])
    scale = 1.7 if with_scale else 1.0
    y = scale * x @ rotation.T + rng.normal(size=d)
    y[:3] += 5  # outliers without weight
    got = m.similarity_align(x, y, weights=np.r_[np.zeros(3), rng.uniform(0.5, 1, 17)], with_scale=with_scale)
    np.testing.assert_allclose(got.rotation, rotation, atol=1e-12)
    assert got.scale == pytest.approx(scale)
    np.testing.assert_allclose(got.apply(x)[3:], y[3:], atol=1e-12)
    np.testing.assert_allclose(got.invert(got.apply(x)), x, atol=1e-12)


def test_similarity_is_the_optimum_and_never_mirrors() -> None:
    rng = RNG(1)
    x = rng.normal(size=(30, 3))
    y = x * [1, 1, -1] + 0.1 * rng.normal(size=(30, 3))  # a mirror image
    best = m.similarity_align(x, y)
    assert np.linalg.det(best.rotation) == pytest.approx(1)
    cost = ((best.apply(x) - y) ** 2).sum()
    for _ in range(50):
        turn = Rotation.from_rotvec(rng.normal(scale=0.05, size=3)).as_matrix()
        shift = 0.05 * rng.normal(size=3)
        other = m.Similarity(best.scale * rng.normal(1, 0.05), turn @ best.rotation, best.translation + shift)
        assert ((other.apply(x) - y) ** 2).sum() > cost
    with pytest.raises(ValueError, match="needs at least 3 points"):
        m.similarity_align(x[:2], y[:2])


def test_surface_distance_against_every_triangle() -> None:
    """Brute force over all pairs; long slivers, large and degenerate triangles among small ones."""
    rng = RNG(2)
    vertices = np.concatenate([rng.normal(size=(200, 3)), rng.normal(size=(20, 3)) * 10])
    small = rng.integers(200, size=(300, 1))
    faces = np.concatenate([(small + rng.integers(3, size=(300, 3))) % 200, rng.integers(220, size=(20, 3))])
    points = rng.normal(size=(50, 3)) * 3
    got = m.surface_distance(points, vertices, faces)
    a, b, c = (np.repeat(vertices[faces[:, i]], 1, axis=0) for i in range(3))
    # Second implementation: distance over a fine grid of barycentric weights bounds the true one from above.
    u = np.linspace(0, 1, 41)
    w = np.array([(i, j, 1 - i - j) for i in u for j in u if i + j <= 1 + 1e-9])
    samples = np.einsum("sk,tkc->tsc", w, np.stack([a, b, c], axis=1)).reshape(-1, 3)
    from scipy.spatial import cKDTree

    upper = cKDTree(samples).query(points)[0]
    assert (got <= upper + 1e-12).all()
    near = upper - got
    assert np.median(near) < 0.05
    one = [m.surface_distance(points, vertices, f[None]) for f in faces]
    np.testing.assert_allclose(got, np.min(one, axis=0), atol=1e-12)


def test_surface_distance_of_a_triangle_in_closed_form() -> None:
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    points = np.array([[0.2, 0.2, 0.5], [-1, -1, 0], [0.5, -2, 0], [1, 1, 0], [3, 0, 0]])
    got = m.surface_distance(points, vertices, np.array([[0, 1, 2]]))
    np.testing.assert_allclose(got, [0.5, np.sqrt(2), 2, np.sqrt(0.5), 2])


def test_surface_distance_against_trimesh() -> None:
    import trimesh

    sphere = trimesh.creation.icosphere(subdivisions=3, radius=0.1)
    points = RNG(3).normal(size=(100, 3)) * 0.1
    try:
        _, want, _ = trimesh.proximity.closest_point_naive(sphere, points)
    except ImportError as error:
        pytest.skip(f"trimesh cannot search here: {error}")
    np.testing.assert_allclose(m.surface_distance(points, sphere.vertices, sphere.faces), want, atol=1e-9)


def test_align_to_surface_finds_a_moved_ellipsoid() -> None:
    import trimesh

    sphere = trimesh.creation.icosphere(subdivisions=3)
    unit = np.asarray(sphere.vertices)
    vertices, faces = unit * [0.08, 0.11, 0.1] + 0.01 * np.sin(20 * unit[:, [1, 2, 0]]), np.asarray(sphere.faces)
    true = m.Similarity(1.1, Rotation.from_rotvec([0.05, -0.1, 0.08]).as_matrix(), np.array([0.01, 0, -0.02]))
    points = true.apply(vertices)
    start = m.Similarity(1.0, np.eye(3), np.zeros(3))
    got, distance = m.align_to_surface(points, m.SurfaceSearch(vertices, faces), start, iterations=100)
    assert distance.mean() < 2e-4
    assert got.scale == pytest.approx(1.1, rel=5e-3)
    _, rigid = m.align_to_surface(points, m.SurfaceSearch(vertices, faces), start, with_scale=False)
    assert rigid.mean() > 10 * distance.mean()


def _clip(frames: int = 12, depth: bool = True) -> np.ndarray:
    """Landmarks (F, 478, 3) of a rigid cloud that turns, scales and moves."""
    rng = RNG(4)
    shape = rng.normal(size=(478, 3)) * 50
    turn = Rotation.from_rotvec(np.linspace(0, 0.6, frames)[:, None] * [0.2, 1, 0.1]).as_matrix()
    clip = np.einsum("fij,nj->fni", turn, shape) * np.linspace(1, 1.3, frames)[:, None, None] + [256, 250, 0]
    return clip if depth else clip[..., :2]


def test_landmark_errors() -> None:
    target = _clip()[..., :2]
    unit = np.linalg.norm(target[:, 33] - target[:, 263], axis=1)
    moved = target.copy()
    moved[:, 10] += 0.05 * unit[:, None] * [0.6, 0.8]
    moved[3] = np.nan
    target_holes = target.copy()
    target_holes[5, 11] = np.nan
    got = m.landmark_errors(moved, target_holes, {"one": [10], "two": [10, 11], "none": [12]})
    assert got["one"] == pytest.approx(5)
    assert got["two"] == pytest.approx(5 * 11 / 21)  # 11 frames of one, 10 of the other
    assert got["none"] == 0
    assert np.isnan(m.landmark_errors(moved * np.nan, target, {"x": [0]})["x"])


def test_dead_face_follows_rigid_motion_but_not_expression() -> None:
    clip = _clip()
    np.testing.assert_allclose(m.dead_face_control(clip), clip[..., :2], atol=1e-6)
    moving = clip.copy()
    moving[:, 13, 1] -= 20 * (1 + np.sin(np.arange(12)))
    moving[7, 100] = np.nan
    dead = m.dead_face_control(moving)
    assert np.isnan(dead[7]).all()
    assert np.isfinite(dead[6]).all()
    moves = np.ptp(np.delete(moving[..., :2] - clip[..., :2], 7, axis=0)[:, 13, 1])
    stays = np.ptp(np.delete(dead - clip[..., :2], 7, axis=0)[:, 13, 1])  # the mean opening grows with the head
    assert stays < 0.2 * moves
    assert np.isnan(m.dead_face_control(clip * np.nan)).all()


def test_dead_face_without_depth_is_a_planar_similarity() -> None:
    clip = _clip(depth=False)[:1].repeat(5, axis=0) * np.linspace(1, 2, 5)[:, None, None]
    np.testing.assert_allclose(m.dead_face_control(clip), clip, atol=1e-6)
    turning = _clip(depth=False)
    assert np.abs(m.dead_face_control(turning) - turning).max() > 5  # a turn out of the plane is not in its reach


def test_opening_correlation() -> None:
    clip = _clip(30)
    gap = np.abs(np.sin(np.arange(30)))
    clip[:, 14, :2] = clip[:, 13, :2] + 10 * gap[:, None]
    other = clip * 2
    assert m.opening_correlation(other, clip, [(13, 14)]) == pytest.approx(1)
    other[:, 14] = other[:, 13] + RNG(0).normal(size=(30, 3))
    other[4] = np.nan
    assert abs(m.opening_correlation(other, clip, [(13, 14)])) < 0.6
    assert np.isnan(m.correlation(np.zeros(5), np.arange(5.0)))
    assert np.isnan(m.correlation(np.array([1.0, np.nan]), np.array([1.0, 2])))


def _blinks(shift: float = 0.0, gain: float = 1.0) -> np.ndarray:
    t = np.arange(60)
    return gain * sum(np.exp(-0.5 * ((t - c - shift) / 1.3) ** 2) for c in (12, 30, 47)) + 0.2


@pytest.mark.parametrize("shift", [-2.0, -0.4, 0.0, 0.3, 1.5])
@pytest.mark.parametrize("gain", [0.5, 1.0])
def test_peaks(shift: float, gain: float) -> None:
    got = m.peak_amplitude_and_lag(_blinks(shift, gain), _blinks(), fps=25.0)
    assert got.n_peaks == 3
    assert got.amplitude == pytest.approx(gain, rel=0.08)
    assert got.lag_frames == pytest.approx(shift, abs=0.12)
    assert got.lag_seconds == pytest.approx(got.lag_frames / 25)


def test_peaks_of_a_dead_signal_and_edges() -> None:
    dead = m.peak_amplitude_and_lag(np.zeros(60), _blinks(), fps=25.0)
    assert dead.amplitude == 0
    assert np.isnan(dead.lag_frames)
    assert m.peak_amplitude_and_lag(_blinks(), np.zeros(60), fps=25.0).n_peaks == 0
    rising = m.peak_amplitude_and_lag(_blinks()[:47], _blinks()[:47], fps=25.0)  # the third peak lies on the last frame
    assert (rising.n_peaks, rising.worst) == (2, 1)
    assert m.peak_amplitude_and_lag(np.zeros(0), np.zeros(0), fps=25.0).n_peaks == 0
    missed = _blinks()
    missed[25:36] = missed[25]
    assert m.peak_amplitude_and_lag(missed, _blinks(), fps=25.0).worst < 0.1
    with pytest.raises(ValueError, match="of one length"):
        m.peak_amplitude_and_lag(np.zeros(3), np.zeros(4), fps=25.0)


def test_high_frequency_motion() -> None:
    t = np.arange(100) / 25
    axis = np.array([1.0, 2, 2]) / 3
    slow = 0.01 * np.sin(2 * np.pi * 1 * t)[:, None, None] * axis + t[:, None, None] * [0.01, 0, 0]
    fast = 0.001 * np.sin(2 * np.pi * 8 * t)[:, None, None] * axis
    rest = np.zeros((1, 5, 3))
    assert m.high_frequency_motion(rest + fast, 25.0) == pytest.approx(1 / np.sqrt(2), rel=0.05)
    assert m.high_frequency_motion(rest + slow, 25.0) < 0.01
    assert m.high_frequency_motion(rest + slow + fast, 25.0) == pytest.approx(1 / np.sqrt(2), rel=0.05)
    assert m.high_frequency_motion((rest + slow + fast)[:24], 25.0) == pytest.approx(1 / np.sqrt(2), rel=0.1)
    assert np.isnan(m.high_frequency_motion((rest + fast)[:7], 25.0))
    assert np.isnan(m.high_frequency_motion(rest + fast, 9.0))
