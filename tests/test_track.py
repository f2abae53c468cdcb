"""`facejax track` end to end on a small head: what it writes, how it goes on, and the input that it must take."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from toy_head import toy_codes, toy_head

from facejax.apps import track as track_module
from facejax.apps.track import StageClock, progress_folder
from facejax.data.results import RESULT_FILES, TrackResult
from facejax.data.video import open_video, write_video
from facejax.fitting import FitConfig, Known, fit_sequence
from facejax.fitting.plans import tracking
from facejax.geometry.cameras import project, to_camera_frame
from facejax.geometry.records import Pose
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.models.morphable import REGIONS, MorphableHead
from facejax.renderers import make_renderer

N_FRAMES = 6
CONFIG = FitConfig(preset="full", size=64, key_frames=4, window=8, texture_size=32, samples=150)
LANDMARKS_ONLY = dataclasses.replace(CONFIG, preset="fast", texture=False)
QUICK = {"identity": (40, 1.0), "motion": (30, 1.0), "refinement": (3, 0.5)}


def quick(config):
    """The head's plan in few steps, or one stage of it that compiles soon."""
    stages = []
    for stage in tracking(config, Known()):
        if stage.name in QUICK and (config.preset == "full" or stage.name == "motion"):
            steps, rate = QUICK[stage.name]
            (turn,) = stage.turns
            stages.append(dataclasses.replace(stage, turns=(dataclasses.replace(turn, steps=steps, rate=rate),)))
    return tuple(stages)


def track(*arguments, config=CONFIG, **options):
    return track_module.track(*arguments, config=config, stages=quick(config), **options)


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """What one test compiles the next finds again; and little time goes into making tiny problems fast."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("xla")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings} | {"jax_disable_most_optimizations": False}
    jax.config.update("jax_disable_most_optimizations", True)
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def head() -> MorphableHead:
    toy = toy_head()
    nothing = np.zeros(toy.topology.n_vertices, np.float32)
    regions = {name: toy.regions.get(name, nothing) for name in REGIONS} | {"narrow_face": toy.regions["skin"]}
    return dataclasses.replace(toy, regions=regions)


@dataclasses.dataclass(frozen=True)
class Clip:
    """A rendered clip: its pictures, and where the 478 points are."""

    pictures: np.ndarray
    points: np.ndarray

    def landmarks(self, folder: Path, missing=()) -> Path:
        points = self.points.copy()
        points[list(missing)] = np.nan
        np.savez(folder / "landmarks.npz", landmarks=points)
        return folder / "landmarks.npz"


@pytest.fixture(scope="module")
def clip(head) -> Clip:
    """Six frames of 160 x 120 pixels: the head turns while its expression changes."""
    shared, two, poses, camera = toy_codes(head, 2)
    along = np.linspace(0, 1, N_FRAMES)
    frames = jax.tree_util.tree_map(
        lambda x: jnp.stack([(1 - a) * x[0] + a * x[1] for a in along]).astype(jnp.float32), two
    )
    turns = jax.vmap(rotvec_to_matrix)(jnp.asarray(along[:, None] * [0.05, 0.4, 0.1], jnp.float32))
    place = jnp.tile(jnp.array([0.0, 0.0, 0.6]), (N_FRAMES, 1))
    poses = jax.vmap(Pose)(jnp.diag(jnp.array([1.0, -1.0, -1.0])) @ turns, place)
    camera = camera.replace(focal=camera.focal / 4, principal_point=camera.principal_point / 4)
    render = make_renderer(head.topology, (120, 160))

    @jax.jit
    def one(frame, pose):
        face = head.decode(head.params, shared, frame)
        points = project(to_camera_frame(head.landmark_points(face.vertices), pose), camera)
        return render(face, head.init_light(), pose, camera), points

    pictures, points = [], []
    for k in range(N_FRAMES):
        image, where = one(*jax.tree_util.tree_map(lambda x: x[k], (frames, poses)))  # noqa: B023
        pictures.append(np.asarray(jnp.clip(image.colour, 0, 1) ** (1 / 2.2) * 255).astype(np.uint8))
        points.append(np.asarray(where))
    return Clip(pictures=np.stack(pictures), points=np.stack(points))


VARIABLE_TIME = np.array([0.0, 0.04, 0.08, 0.2, 0.24, 0.28])
LOST = (2, 3)  # the face leaves, and returns


@pytest.fixture(scope="module")
def tracked(clip, head, tmp_path_factory):
    """The whole of it, once: (folder, rows, the arguments)."""
    folder = tmp_path_factory.mktemp("tracked")
    write_video(folder / "clip.mp4", clip.pictures, time=VARIABLE_TIME)
    options = {"model": head, "landmarks": clip.landmarks(folder, missing=LOST), "config": CONFIG}
    rows = track(folder / "clip.mp4", folder / "out", renders=True, **options)
    return folder, rows, options


def test_every_file_is_there_and_can_be_read(tracked):
    folder, _, _ = tracked
    out = folder / "out"
    assert {p.name for p in out.iterdir()} == set(RESULT_FILES)
    assert not progress_folder(out).exists()
    assert {p.name for p in folder.iterdir()} == {"out", "clip.mp4", "landmarks.npz"}
    result = TrackResult.load(out)
    assert result.vertices.shape == (N_FRAMES, len(result.neutral), 3)
    assert np.isfinite(result.vertices).all()
    assert result.texture.shape == (32, 32, 3)
    overlay = open_video(out / "overlay.mp4")
    assert overlay.n_frames == N_FRAMES
    np.testing.assert_allclose(overlay.time, VARIABLE_TIME, atol=2e-3)
    with Image.open(out / "preview.png") as sheet:
        assert min(sheet.size) > 100
    assert (out / "head.glb").read_bytes()[:4] == b"glTF"
    renders = sorted((out / "renders").iterdir())
    assert [p.name for p in renders] == [f"{k:05d}.png" for k in range(N_FRAMES)]
    with Image.open(renders[0]) as picture:
        assert (picture.size, picture.mode) == ((160, 120), "RGBA")
        assert np.asarray(picture)[..., 3].max() == 255


def test_frames_without_a_face_say_so(tracked, clip):
    folder, rows, _ = tracked
    result = TrackResult.load(folder / "out")
    assert [k for k in range(N_FRAMES) if not result.valid[k]] == list(LOST)
    assert {result.status_names[result.status[k]] for k in LOST} == {"no face found"}
    table = {name: value for name, value, _ in rows}
    assert table["frames tracked"] == "4 of 6 (2 no face found)"
    assert np.isnan(result.landmarks_target[list(LOST)]).all()
    with Image.open(folder / "out" / "renders" / "00002.png") as picture:
        assert np.asarray(picture).max() == 0


def test_the_table_and_the_file_agree_and_carry_controls(tracked):
    folder, rows, _ = tracked
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    table = {name: (value, control) for name, value, control in rows if name != "note"}
    value, control = table["inner face error (% of eye distance)"]
    assert float(value) == pytest.approx(metrics["inner_face_percent"], rel=0.01)
    assert metrics["inner_face_percent"] < metrics["controls"]["dead_face"]["inner_face_percent"]
    assert control.endswith("(dead face)")
    assert metrics["psnr_db"] > metrics["controls"]["mean_colour"]["psnr_db"]
    assert table["scale"] == ("the model's prior", None)
    assert "(estimated)" in table["focal length (px)"][0]
    assert metrics["config"]["size"] == 64
    assert metrics["versions"]["facejax"]
    assert {"identity", "motion", "refinement", "overlay"} <= metrics["timing_seconds"].keys()
    assert TrackResult.load(folder / "out").metrics == metrics


def test_notes_of_the_input_are_passed_on(tracked):
    _, rows, _ = tracked
    notes = [value for name, value, _ in rows if name == "note"]
    assert any("variable frame rate" in note for note in notes)
    assert any("landmarks.npz" in note for note in notes)


def interrupt_at(stage: str):
    def progress(name, done, total):
        if name == stage:
            raise KeyboardInterrupt

    return progress


def test_going_on_after_an_interruption_ends_as_if_there_was_none(tracked, tmp_path):
    folder, _, options = tracked
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        track(folder / "clip.mp4", out, progress=interrupt_at("refinement"), **options)
    assert list(tmp_path.iterdir()) == [progress_folder(out)]  # hidden, and nothing beside it
    stages = []
    track(folder / "clip.mp4", out, resume=True, progress=lambda stage, *_: stages.append(stage), **options)
    assert "identity" not in stages
    assert "refinement" in stages
    assert list(tmp_path.iterdir()) == [out]
    once, twice = TrackResult.load(folder / "out"), TrackResult.load(out)
    for name in ("rotation", "translation", "expression", "identity", "texture", "intrinsics", "light"):
        np.testing.assert_allclose(getattr(twice, name), getattr(once, name), atol=1e-6, err_msg=name)


def test_without_resume_earlier_work_is_not_used(tracked, tmp_path):
    folder, _, options = tracked
    out = tmp_path / "out"
    progress_folder(out).mkdir()
    (progress_folder(out) / "left").write_text("over")
    with pytest.raises(KeyboardInterrupt):
        track(folder / "clip.mp4", out, progress=interrupt_at("identity"), **options)
    assert not (progress_folder(out) / "left").exists()
    assert not out.exists()


@pytest.mark.parametrize("stage", ["overlay", "head.glb", "renders"])
def test_an_interruption_while_writing_leaves_what_was_there(stage, tracked, tmp_path, monkeypatch):
    folder, _, options = tracked
    result = TrackResult.load(folder / "out")
    object.__setattr__(result, "head", options["model"])
    monkeypatch.setattr(track_module, "fit_sequence", lambda *args, **more: result)
    out = tmp_path / "out"
    out.mkdir()
    (out / "track.npz").write_text("an earlier result")
    with pytest.raises(KeyboardInterrupt):
        track(folder / "clip.mp4", out, renders=True, progress=interrupt_at(stage), **options)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (out / "track.npz").read_text() == "an earlier result"


def test_a_held_identity_stays_and_its_focal_length_too(tracked, clip, tmp_path):
    folder, _, options = tracked
    rows = track(
        clip.pictures[:4],
        tmp_path / "again",
        model=options["model"],
        landmarks=_first_landmarks(clip, tmp_path, 4),
        identity=folder / "out",
        config=LANDMARKS_ONLY,
    )
    before, after = TrackResult.load(folder / "out"), TrackResult.load(tmp_path / "again")
    for name in ("identity", "texture", "skin", "intrinsics", "neutral"):
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), rtol=1e-6, err_msg=name)
    assert "the identity's" in {name: value for name, value, _ in rows}["focal length (px)"]


def _first_landmarks(clip: Clip, folder: Path, count: int) -> Path:
    np.savez(folder / "some.npz", landmarks=clip.points[:count])
    return folder / "some.npz"


def test_a_known_pupil_distance_scales_everything(clip, head):
    options = {"landmarks": clip.points, "config": LANDMARKS_ONLY}
    free = fit_sequence(clip.pictures, head, **options)
    known = fit_sequence(clip.pictures, head, ipd_mm=70.0, **options)
    factor = float(known.translation[0, 2] / free.translation[0, 2])
    assert float(known.scale) == pytest.approx(factor, rel=1e-3)
    pivots = np.asarray(known.load_head().eye_pivots(known.load_head().params, known.identity_code()))
    assert np.linalg.norm(pivots[0] - pivots[1]) == pytest.approx(0.070, rel=1e-4)
    for name in ("neutral", "translation", "landmarks68_neutral"):
        np.testing.assert_allclose(getattr(known, name), factor * getattr(free, name), rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(known.landmarks, free.landmarks, atol=0.02)  # the picture is the same


def test_one_grey_frame(clip, head, tmp_path):
    grey = clip.pictures[0].mean(axis=2).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "face.png")
    rows = track(
        tmp_path / "face.png",
        tmp_path / "out",
        model=head,
        landmarks=_first_landmarks(clip, tmp_path, 1),
        config=LANDMARKS_ONLY,
    )
    table = {name: value for name, value, _ in rows}
    assert table["frames tracked"] == "1 of 1"
    assert table["correlation of lip gap"] == "n/a"
    assert len(TrackResult.load(tmp_path / "out")) == 1
    assert open_video(tmp_path / "out" / "overlay.mp4").n_frames == 1


def test_a_second_of_video_and_a_part_of_it(clip, head, tmp_path):
    there_and_back = np.abs((np.arange(25) + 5) % 10 - 5)
    np.savez(tmp_path / "points.npz", landmarks=clip.points[there_and_back])
    write_video(tmp_path / "second.mp4", clip.pictures[there_and_back], fps=25.0)
    options = {"model": head, "landmarks": tmp_path / "points.npz", "config": LANDMARKS_ONLY}
    track(tmp_path / "second.mp4", tmp_path / "out", frames=(5, None), **options)
    result = TrackResult.load(tmp_path / "out")
    np.testing.assert_array_equal(result.frame_ids, np.arange(5, 25))
    np.testing.assert_allclose(result.time, np.arange(5, 25) / 25, atol=1e-3)
    assert result.valid.all()


def test_masked_points_do_not_pull(clip, head, tmp_path):
    """A hand over the right half of the picture: what the detector guesses there is ignored."""
    (tmp_path / "masks").mkdir()
    mask = np.zeros((120, 160), np.uint8)
    mask[:, 80:] = 255
    for k in range(N_FRAMES):
        Image.fromarray(mask).save(tmp_path / "masks" / f"{k}.png")
    wrong = clip.points.copy()
    covered = (wrong[..., 0] >= 80) & (wrong[..., 0] < 150)
    wrong[covered] += [8.0, 6.0]
    options = {"landmarks": wrong, "config": LANDMARKS_ONLY}
    fooled = fit_sequence(clip.pictures, head, **options)
    warned = fit_sequence(clip.pictures, head, masks=tmp_path / "masks", **options)

    def error(result):
        return np.linalg.norm(result.landmarks - clip.points, axis=2)[~covered].mean()

    assert error(warned) < 0.5 * error(fooled)


def test_terminating_cleans_up_as_an_interruption_does(clip, head, tmp_path):
    import os
    import signal

    def terminate(stage, done, total):
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        track(clip.pictures, tmp_path / "out", model=head, landmarks=clip.landmarks(tmp_path), progress=terminate)
    assert not (tmp_path / "out").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_clock_counts_nested_traces_once():
    clock = StageClock()
    clock._compiled = [(0.0, 2.0), (0.5, 1.0), (1.5, 3.0), (5.0, 6.0)]
    assert clock.compilation() == 4.0


def test_the_clock_hears_of_compilation_until_it_is_left():
    with StageClock() as clock:
        jax.jit(lambda x: x + 1)(np.ones(3))
    heard = clock.compilation()
    assert heard > 0
    jax.jit(lambda x: x + 2)(np.ones(3))
    assert clock.compilation() == heard
