"""Clips with known truth: the subject, its motion, its picture; and that tracks of it are judged rightly."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh

from facejax.data.results import TrackResult, assemble
from facejax.data.video import open_video
from facejax.evaluation.tracking import LID_PAIRS, evaluate_track, evaluate_truth
from facejax.geometry.colour import linear_to_srgb_bytes
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import SurfacePoints, Topology
from facejax.geometry.records import Camera, Pose
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.made_up import truth_clip
from facejax.made_up.subjects import SubdividedPart, make_motion, make_subject
from facejax.made_up.truth_clip import Truth, TruthSpec, make_truth, make_truth_clip
from facejax.models.landmark_names import LIP_GAP_PAIRS
from facejax.models.morphable import REGIONS, MorphableHead, MorphableParams
from facejax.objectives.metrics import similarity_align, surface_distance
from facejax.renderers import make_renderer


@pytest.fixture(scope="module")
def head() -> MorphableHead:
    """An egg of head size with a nose, two eyeballs and three shapes: enough of a head for everything here."""
    rng = np.random.default_rng(0)
    ball = trimesh.creation.icosphere(subdivisions=3)
    unit = np.asarray(ball.vertices)
    skin = unit * [0.075, 0.11, 0.09]
    skin[:, 2] += 0.03 * np.exp(-((unit[:, 0] / 0.15) ** 2) - ((unit[:, 1] + 0.1) / 0.25) ** 2) * (unit[:, 2] > 0)
    eye = trimesh.creation.icosphere(subdivisions=2, radius=0.012)
    pivots = np.array([[0.032, 0.03, 0.078], [-0.032, 0.03, 0.078]])
    n, m = len(skin), len(eye.vertices)
    vertices = np.concatenate([skin, *(np.asarray(eye.vertices) + p for p in pivots)]).astype(np.float32)
    faces = np.concatenate([np.asarray(ball.faces), *(np.asarray(eye.faces) + n + i * m for i in range(2))])
    v = len(vertices)
    on_skin = np.arange(v) < n
    regions = {name: np.zeros(v, np.float32) for name in REGIONS}
    regions["skin"] = on_skin.astype(np.float32)
    regions["eyeballs"] = 1 - regions["skin"]
    regions["narrow_face"] = (on_skin & (vertices[:, 2] > 0.03)).astype(np.float32)
    regions["lips"] = (on_skin & (np.abs(vertices[:, 1] + 0.05) < 0.01) & (vertices[:, 2] > 0.07)).astype(np.float32)

    def shape(centre: list[float], width: float, push: list[float]) -> np.ndarray:
        bump = np.exp(-((vertices - centre) ** 2).sum(axis=1) / (2 * width**2)) * on_skin
        return bump[:, None] * np.array(push)

    modes = np.stack([vertices * [0.05, 0, 0], vertices * [0, 0.05, 0], vertices * [0, 0, 0.05]]) * on_skin[:, None]
    expression = [
        shape([0, -0.09, 0.06], 0.03, [0, -0.03, 0]),
        shape([0.032, 0.04, 0.09], 0.008, [0, -0.02, 0]),
        shape([-0.032, 0.04, 0.09], 0.008, [0, -0.02, 0]),
    ]
    # Landmarks anywhere on the front, save the pairs that measure openings: one above, one below.
    marks = rng.choice(np.flatnonzero(regions["narrow_face"]), 478)

    def nearest(p: list[float]) -> int:
        return int(np.argmin(np.linalg.norm(skin - p, axis=1)))

    marks[33], marks[263] = nearest([-0.045, 0.03, 0.07]), nearest([0.045, 0.03, 0.07])
    for up, low in LIP_GAP_PAIRS:
        marks[up], marks[low] = nearest([0, -0.03, 0.1]), nearest([0, -0.09, 0.06])
    for i, (up, low) in enumerate(LID_PAIRS):
        x = -0.032 if i < 5 else 0.032
        marks[up], marks[low] = nearest([x, 0.04, 0.09]), nearest([x, 0.01, 0.09])
    one = np.tile(np.array([1, 0, 0], np.float32), (478, 1))
    points = SurfacePoints(triangles=np.repeat(marks[:, None], 3, axis=1).astype(np.int32), weights=one)
    eye_weight = np.stack([(np.arange(v) >= n) & (np.arange(v) < n + m), np.arange(v) >= n + m], axis=1)
    params = MorphableParams(
        mean=jnp.asarray(vertices),
        identity_basis=jnp.asarray(modes, jnp.float32),
        expression_basis=jnp.asarray(np.stack(expression), jnp.float32),
        skin_mean=jnp.full((v, 3), -0.8),
        skin_basis=jnp.zeros((1, v, 3)),
        eye_weight=jnp.asarray(eye_weight, jnp.float32),
        eye_pivot=jnp.asarray(pivots, jnp.float32),
        eye_pivot_basis=jnp.zeros((3, 2, 3)),
        specular=jnp.full(v, 0.04),
        roughness=jnp.full(v, 0.4),
    )
    uv = np.stack([0.5 + 4 * vertices[:, 0], 0.5 + 4 * vertices[:, 1]], axis=1).clip(0, 1).astype(np.float32)
    faces = faces.astype(np.int32)
    return MorphableHead(
        name="egg",
        sha256="",
        params=params,
        topology=Topology(faces=faces, uv=uv, uv_faces=faces, n_vertices=v),
        expression_names=("jawOpen", "eyeBlinkLeft", "eyeBlinkRight"),
        landmarks68=SurfacePoints(triangles=points.triangles[:68], weights=one[:68]),
        landmarks478=points,
        regions=regions,
        mirror=np.arange(v),
    )


def test_subject_leaves_the_identity_space(head: MorphableHead) -> None:
    subject = make_subject(head, seed=3, identity_scale=0.0, warp_mm=2.0)
    before, after = np.asarray(head.params.mean), np.asarray(subject.params.mean)
    narrow = np.asarray(head.regions["narrow_face"]) > 0.5
    rest = similarity_align(after[narrow], before[narrow]).apply(after[narrow]) - before[narrow]
    # The warp scales with its size to first order only, so 2 mm is not exact.
    assert 1e3 * np.sqrt((rest**2).sum(axis=1).mean()) == pytest.approx(2.0, rel=0.1)
    basis = np.asarray(head.params.identity_basis)[:, narrow].reshape(3, -1).T
    out_of_space = rest.ravel() - basis @ np.linalg.lstsq(basis, rest.ravel(), rcond=None)[0]
    assert np.linalg.norm(out_of_space) > 0.5 * np.linalg.norm(rest)


def test_warp_moves_eyeballs_whole(head: MorphableHead) -> None:
    subject = make_subject(head, seed=3, warp_mm=4.0)
    for side in range(2):
        ball = np.asarray(head.params.eye_weight)[:, side] > 0.5
        radius = np.linalg.norm(
            np.asarray(subject.params.mean)[ball] - np.asarray(subject.params.eye_pivot)[side], axis=1
        )
        np.testing.assert_allclose(radius, 0.96 * 0.012, atol=1e-5)
    assert np.abs(np.asarray(subject.params.eye_pivot - head.params.eye_pivot)).max() > 1e-4


def test_truth_is_consistent_and_repeats(head: MorphableHead, tmp_path: Path) -> None:
    spec = TruthSpec(frames=24, size=64, seed=5)
    truth, subject = make_truth(head, spec)
    again, _ = make_truth(head, spec)
    np.testing.assert_array_equal(truth.vertices, again.vertices)
    assert not np.array_equal(truth.neutral, make_truth(head, dataclasses.replace(spec, seed=6))[0].neutral)

    in_head = np.einsum("fji,fvj->fvi", truth.rotation, truth.vertices - truth.translation[:, None])
    far = subject.params.expression_basis
    still = (np.abs(np.asarray(far)).max(axis=(0, 2)) < 1e-9) & (np.asarray(subject.params.eye_weight).sum(axis=1) == 0)
    np.testing.assert_allclose(
        in_head[:, still], np.broadcast_to(truth.neutral[still], in_head[:, still].shape), atol=2e-6
    )
    facing = -truth.rotation[:, :, 2]  # the head's +z, towards the camera, so -z of the camera
    yaw = np.degrees(np.arctan2(truth.rotation[:, 0, 2], facing[:, 2]))
    assert yaw.min() == pytest.approx(-40, abs=1)
    assert yaw.max() == pytest.approx(40, abs=1)
    assert np.linalg.det(truth.rotation) == pytest.approx(1, abs=1e-5)
    lids = truth.activations[:, list(truth.expression_names).index("eyeBlinkLeft")]
    assert lids.max() == 1
    assert (np.diff((lids > 0.1).astype(int)) == 1).sum() == 2
    pixels = truth.landmarks_camera @ truth.intrinsics.T
    np.testing.assert_allclose(truth.landmarks, pixels[..., :2] / pixels[..., 2:], atol=1e-3)
    assert (truth.landmarks > 0).all()
    assert (truth.landmarks < 64).all()

    truth.save(tmp_path / "truth.npz")
    loaded = Truth.load(tmp_path)
    for field in dataclasses.fields(Truth):
        np.testing.assert_array_equal(getattr(loaded, field.name), getattr(truth, field.name))


def test_still_clip_stands_still(head: MorphableHead) -> None:
    truth, _ = make_truth(head, TruthSpec(frames=5, moving=False))
    assert np.ptp(truth.vertices, axis=0).max() == 0


def test_long_lens_keeps_the_size(head: MorphableHead) -> None:
    wide, _ = make_truth(head, TruthSpec(frames=1, field_of_view_degrees=40.0))
    long, _ = make_truth(head, TruthSpec(frames=1, field_of_view_degrees=8.0))
    assert long.vertices[..., 2].mean() > 2 * wide.vertices[..., 2].mean()
    assert np.ptp(long.landmarks[0, :, 1]) == pytest.approx(np.ptp(wide.landmarks[0, :, 1]), rel=0.1)


def test_subdivision_keeps_the_surface(head: MorphableHead) -> None:
    part = SubdividedPart.of(head.topology.faces, 1)
    vertices = np.asarray(head.params.mean)
    dense = part.spread(vertices)
    assert len(part.faces) == 4 * len(head.topology.faces)
    assert surface_distance(dense, vertices, head.topology.faces).max() < 1e-7
    area = [
        trimesh.Trimesh(v, f, process=False).area for v, f in ((vertices, head.topology.faces), (dense, part.faces))
    ]
    assert area[1] == pytest.approx(area[0], rel=1e-5)
    volume = trimesh.Trimesh(dense, part.faces, process=False).volume
    assert volume == pytest.approx(trimesh.Trimesh(vertices, head.topology.faces, process=False).volume, rel=1e-4)


def test_noise_has_the_stated_variance() -> None:
    spec = TruthSpec(shot_noise=1e-3, read_noise=5e-3)
    linear = np.full((200, 200), 0.25)
    noisy = truth_clip.add_sensor_noise(linear, spec, np.random.default_rng(0))
    assert noisy.var() == pytest.approx(1e-3 * 0.25 + 25e-6, rel=0.05)


def test_rendering_lies_where_the_truth_says(head: MorphableHead, tmp_path: Path) -> None:
    """Two frames by the path tracer: files, determinism, and the head's outline against its projected vertices."""
    spec = TruthSpec(frames=2, size=64, samples=16, seed=1, shot_noise=0.0, read_noise=0.0)
    truth = make_truth_clip(tmp_path / "a", head, spec)
    make_truth_clip(tmp_path / "b", head, spec)
    video = open_video(tmp_path / "a" / "frames")
    assert (video.n_frames, video.size) == (2, (64, 64))
    frames = video.read([0, 1])
    np.testing.assert_array_equal(frames, open_video(tmp_path / "b" / "frames").read([0, 1]))
    np.testing.assert_array_equal(Truth.load(tmp_path / "a").vertices, truth.vertices)

    _, subject = make_truth(head, spec)
    studio = truth_clip._Studio(subject, truth, spec, None)
    empty = studio.render(truth.vertices[0] + np.array([0, 0, -50], np.float32), seed=0)
    for v in truth.vertices:
        seen = np.abs(studio.render(v, seed=1) - empty).sum(axis=2) > 0.15
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        pixels = v @ truth.intrinsics.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        got = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        np.testing.assert_allclose(got, [*pixels.min(axis=0), *pixels.max(axis=0)], atol=1.6)


def test_missing_environment_is_refused(head: MorphableHead, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no environment picture"):
        make_truth_clip(tmp_path, head, TruthSpec(), tmp_path / "none.hdr")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="a clip needs"):
        TruthSpec(frames=0)


# --- judging tracks ---------------------------------------------------------------------------------------------------


def _perfect(head: MorphableHead, truth: Truth, spec: TruthSpec) -> TrackResult:
    """The track that knows the truth: the subject itself as the model."""
    _, subject = make_truth(head, spec)
    expression, _ = make_motion(subject, spec)
    f, size = spec.frames, spec.size
    rng = np.random.default_rng(0)
    shared, _ = subject.init_code()
    shared = dataclasses.replace(shared, texture=jnp.asarray(rng.uniform(0.5, 1.3, (16, 16, 3)), jnp.float32))
    light = jnp.tile(subject.init_light(), (f, 1, 1)).at[:, 2].set(0.5).at[:, 1].set(-0.7)
    return assemble(
        subject,
        params=subject.params,
        code=shared,
        frames=expression,
        poses=jax.vmap(lambda r, t: Pose(rotation=r, translation=t))(truth.rotation, truth.translation),
        light=light,
        camera=Camera(focal=jnp.asarray(truth.intrinsics[[0, 1], [0, 1]]), principal_point=jnp.full(2, size / 2)),
        image_size=(size, size),
        time=np.arange(f, dtype=np.float32) / 25,
        frame_ids=np.arange(f),
        landmarks_target=truth.landmarks.astype(np.float32),
        valid=np.ones(f, bool),
        status=np.zeros(f, np.int32),
        status_names=("ok",),
    )


@pytest.fixture(scope="module")
def case(head: MorphableHead) -> tuple[TrackResult, Truth]:
    spec = TruthSpec(frames=24, size=64, seed=2)
    truth, _ = make_truth(head, spec)
    return _perfect(head, truth, spec), truth


def test_the_truth_scores_perfectly(case: tuple[TrackResult, Truth]) -> None:
    result, truth = case
    np.testing.assert_allclose(result.vertices, truth.vertices, atol=1e-5)
    report = evaluate_truth(result, truth)
    assert report["surface"]["narrow_face_mm"] < 1e-2
    assert report["surface"]["metric_narrow_face_mm"] < 1e-2
    assert report["surface"]["posed_mm"] < 1e-2
    assert report["surface"]["scale"] == pytest.approx(1, abs=1e-3)
    assert report["rotation"]["max_degrees"] < 0.05
    for name in ("blink", "blink_absolute", "lips"):
        assert report[name]["amplitude"] == pytest.approx(1, abs=1e-3)
        assert abs(report[name]["lag_frames"]) < 0.02
    assert report["blink"]["n_peaks"] == 2
    assert "jitter" not in report


def test_errors_are_measured_as_made(case: tuple[TrackResult, Truth], head: MorphableHead) -> None:
    result, truth = case
    turn = np.asarray(rotvec_to_matrix(jnp.array([0.0, 0.2, 0.1])))
    wobble = np.radians(2) * (np.arange(24) % 2 * 2 - 1)
    wobbles = np.asarray(jax.vmap(rotvec_to_matrix)(jnp.asarray(wobble[:, None] * [1.0, 0, 0], jnp.float32)))
    wrong = dataclasses.replace(
        result,
        neutral=(result.neutral * 1.1).astype(np.float32),
        rotation=(truth.rotation @ turn @ wobbles).astype(np.float32),
        stored_vertices=np.roll(truth.vertices, 1, axis=0),
        head=head,
    )
    report = evaluate_truth(wrong, truth)
    assert report["surface"]["narrow_face_mm"] < 0.05
    assert report["surface"]["mean_head_mm"] > 1
    assert report["surface"]["ratio"] < 0.05
    assert report["surface"]["metric_narrow_face_mm"] > 1
    assert report["surface"]["scale"] == pytest.approx(1 / 1.1, rel=5e-3)
    assert report["rotation"]["mean_degrees"] == pytest.approx(2, abs=0.05)
    assert report["rotation"]["offset_degrees"] == pytest.approx(np.degrees(np.hypot(0.2, 0.1)), abs=0.5)
    assert report["blink"]["lag_frames"] == pytest.approx(1, abs=0.15)
    with pytest.raises(InputError, match="another clip"):
        evaluate_truth(result, make_truth(head, TruthSpec(frames=5))[0])
    with pytest.raises(InputError, match="not finite in 24 of 24"):
        evaluate_truth(dataclasses.replace(result, rotation=result.rotation * np.float32("nan")), truth)


def test_jitter_of_a_still_clip(head: MorphableHead) -> None:
    spec = TruthSpec(frames=24, moving=False)
    truth, _ = make_truth(head, spec)
    result = _perfect(head, truth, spec)
    shake = np.zeros((24, 1, 3), np.float32)
    shake[::2, :, 0] = 2e-3
    report = evaluate_truth(dataclasses.replace(result, stored_vertices=truth.vertices + shake), truth)
    assert report["jitter"]["mm"] == pytest.approx(1, rel=0.1)
    assert report["jitter"]["within_face_mm"] < 0.02
    assert "blink" not in report
    assert evaluate_truth(result, truth)["jitter"]["mm"] < 1e-3


def test_picture_and_landmarks_of_a_perfect_track(case: tuple[TrackResult, Truth]) -> None:
    result, truth = case
    render = make_renderer(result.topology, (64, 64))
    draw = jax.jit(lambda face, light, pose: render(face, light, pose, result.camera).colour)
    pictures = [draw(result.face(i), jnp.asarray(result.light[i]), result.pose(i)) for i in range(24)]
    video = open_video(np.stack([linear_to_srgb_bytes(p) for p in pictures]))
    depth = truth.landmarks_camera[..., 2] * truth.intrinsics[0, 0] / truth.landmarks_camera[..., 2].mean()
    report = evaluate_track(result, video, target_depth=depth, frames=[0, 9, 23], size=64)
    assert report["valid_share"] == 1
    assert report["landmarks"]["inner_face"] < 0.01
    assert 0.1 < report["landmarks"]["inner_face_dead_face"] < 10
    assert report["correlation"]["lip_gap"] == pytest.approx(1, abs=1e-4)
    picture = report["picture"]
    assert picture["frames"] == 3
    assert picture["hull_coverage"] > 0.98
    assert picture["psnr"] > 40
    assert picture["ssim"] > 0.98
    assert picture["psnr_without_texture"] < picture["psnr"] - 10
    assert picture["psnr_mean_colour"] < picture["psnr"] - 10

    lost = dataclasses.replace(result, valid=np.arange(24) < 12)
    assert evaluate_track(lost)["valid_share"] == 0.5
    nothing = dataclasses.replace(result, valid=np.zeros(24, bool))
    report = evaluate_track(nothing, video)
    assert report["picture"] == {"frames": 0}
    assert np.isnan(report["landmarks"]["lips"])
