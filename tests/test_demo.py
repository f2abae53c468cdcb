"""The demo: what its clip shows, what tracking is told, and that its table tells a good track from a bad one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.apps import demo as demo_module
from facejax.apps.demo import FILES, compare_with_truth, demo, make_landmarks, make_light, paint, render_clip
from facejax.data.landmarks import load_landmarks
from facejax.data.results import RESULT_FILES, TrackResult, assemble
from facejax.data.video import open_video
from facejax.geometry.records import Camera, Pose
from facejax.made_up.subjects import make_motion
from facejax.made_up.truth_clip import Truth, TruthSpec, make_truth
from facejax.models.generic import generic_head
from facejax.models.morphable import MorphableHead

SPEC = TruthSpec(seed=1, frames=10, size=64, yaw_degrees=20.0, warp_mm=1.0, identity_scale=0.7)


@pytest.fixture(scope="module")
def head() -> MorphableHead:
    return generic_head()


@pytest.fixture(scope="module")
def made(head):
    return make_truth(head, SPEC)


@pytest.fixture(scope="module")
def frames(made):
    truth, subject = made
    return np.stack(list(render_clip(truth, subject, make_light(), SPEC)))


def perfect(head, made) -> TrackResult:
    """The track that knows everything; its model is the very person."""
    truth, subject = made
    shared, _ = subject.init_code()
    expression, _ = make_motion(subject, SPEC)
    k, n = truth.intrinsics, SPEC.frames
    return assemble(
        subject,
        params=subject.params,
        code=shared,
        frames=expression,
        poses=jax.vmap(Pose)(jnp.asarray(truth.rotation), jnp.asarray(truth.translation)),
        light=np.tile(make_light(), (n, 1, 1)),
        camera=Camera(focal=jnp.asarray([k[0, 0], k[1, 1]]), principal_point=jnp.asarray(k[:2, 2])),
        image_size=(SPEC.size, SPEC.size),
        time=np.arange(n) / SPEC.fps,
        frame_ids=np.arange(n),
        landmarks_target=truth.landmarks,
        valid=np.ones(n, bool),
        status=np.zeros(n, int),
        status_names=("tracked",),
    )


def numbers(rows) -> dict[str, float]:
    return {name: float(value) for name, value, _ in rows}


def test_the_clip_shows_a_lit_head_before_a_wall(frames, made):
    assert frames.shape == (SPEC.frames, SPEC.size, SPEC.size, 3)
    assert frames.dtype == np.uint8
    truth, _ = made
    nose = truth.landmarks[:, 1].astype(int)
    skin = np.stack([frame[y, x] for frame, (x, y) in zip(frames, nose, strict=True)]).astype(int)
    assert (skin[:, 0] > skin[:, 2] + 10).all()  # skin is red, the wall is blue
    corner = frames[:, :4, :4].mean(axis=(0, 1, 2))
    assert corner[2] > corner[0]
    assert frames[1:, :4, :4].std() > 0.2  # noise
    assert len({frame.tobytes() for frame in frames}) == SPEC.frames


def test_the_lamp_stands_where_the_light_says(made):
    """A ball's brightest side faces the lamp, and no side is black."""
    from facejax.renderers.sh import irradiance

    directions = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lit = np.asarray(irradiance(jnp.asarray(directions), jnp.asarray(make_light()))).mean(axis=1)
    assert directions[lit.argmax()] @ (demo_module._LIGHT / np.linalg.norm(demo_module._LIGHT)) > 0.9
    assert 0.05 < lit.min() < 0.5 * lit.max()
    assert 0.8 < lit.max() < 2.5


def test_the_paint_is_on_the_skin_and_is_more_than_noise(made):
    texture = paint(made[1], np.random.default_rng(0))
    assert texture.min() > 0.1
    assert 0.02 < np.log(texture[texture != 1]).std() < 0.5


def test_landmarks_are_the_truth_plus_about_a_pixel(made):
    truth, _ = made
    landmarks = make_landmarks(truth, SPEC)
    error = landmarks.points - truth.landmarks
    assert 0.6 < error.std() < 1.2
    assert 0.3 < error.mean(axis=0).std() < 0.8  # a part does not average out, as a detector's bias does not
    assert landmarks.valid.all()
    assert landmarks.confidence.max() == 1


def test_a_perfect_track_scores_perfectly(head, made):
    found = numbers(compare_with_truth(perfect(head, made), made[0], make_light()))
    for name in ("shape error (mm)", "rotation error (degrees)", "lip gap error (mm)", "gaze error (degrees)"):
        assert found[name] < 0.05, name
    assert found["lip peaks (% of the truth's)"] == pytest.approx(100, abs=1)
    assert found["blinks (% of the truth's)"] == pytest.approx(100, abs=1)
    assert found["light's direction (degrees off)"] < 0.1
    assert found["focal length error (%)"] < 0.01


def test_a_face_that_never_moves_scores_the_controls(head, made):
    good = perfect(head, made)
    frozen = {k: np.broadcast_to(a.mean(axis=0), a.shape) for k, a in good.codes.items() if k.startswith("code.frame")}
    still = dataclasses.replace(
        good,
        codes=good.codes | frozen,
        gaze=np.tile(good.gaze.mean(axis=0), (len(good), 1, 1)),
        rotation=np.tile(good.rotation[5], (len(good), 1, 1)),
    )
    rows = compare_with_truth(still, made[0], make_light())
    found = numbers(rows)
    controls = {name: float(control.split(" ")[0]) for name, _, control in rows if control}
    for name in ("rotation error (degrees)", "gaze error (degrees)", "lip gap error (mm)"):
        assert found[name] == pytest.approx(controls[name], rel=0.4), name
        assert found[name] > 0.5
    assert abs(found["lip peaks (% of the truth's)"]) < 5


def test_the_demo_tracks_what_it_drew_and_leaves_it_there(head, made, frames, tmp_path, monkeypatch):
    """Without the fit, which the tests of tracking run: everything around it."""
    monkeypatch.setattr(demo_module, "render_clip", lambda *unused: iter(frames))
    asked = {}

    def fake_track(video, out, *, extra, extra_files, landmarks, model, size, progress):
        clip = open_video(video)
        asked.update(frames=clip.n_frames, size=clip.size, model=model.name, files=extra_files)
        out.mkdir()
        return [*extra(perfect(head, made), out), ("note", landmarks.notes[0], None)]

    monkeypatch.setattr(demo_module, "track", fake_track)
    stages = []
    rows = demo(tmp_path / "out", lambda *told: stages.append(told), spec=SPEC)
    assert asked == {"frames": SPEC.frames, "size": (64, 64), "model": "generic", "files": FILES}
    assert stages[-1] == ("rendering the clip", SPEC.frames, SPEC.frames)
    assert {p.name for p in (tmp_path / "out").iterdir()} == set(FILES)
    assert load_landmarks(tmp_path / "out" / "landmarks.npz", SPEC.frames, (64, 64)).valid.all()
    np.testing.assert_array_equal(Truth.load(tmp_path / "out").landmarks, made[0].landmarks)
    assert "no detector" in rows[-1][1]


@pytest.mark.slow
def test_the_whole_demo(tmp_path):
    """As `facejax demo` runs it, but smaller: the track must beat every control."""
    spec = dataclasses.replace(demo_module.SPEC, frames=24, size=192)
    rows = demo(tmp_path / "out", spec=spec, size=128)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {*RESULT_FILES, *FILES} - {"renders"}
    table = {name: (value, control) for name, value, control in rows}
    for name in ("shape error (mm)", "rotation error (degrees)", "lip gap error (mm)", "gaze error (degrees)"):
        value, control = table[name]
        assert float(value) < 0.8 * float(control.split(" ")[0]), name
    assert table["frames tracked"][0] == "24 of 24"
