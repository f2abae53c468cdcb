"""Landmarks: the detector on real footage (small, several, moving, missing faces), the confidence, and files."""

import builtins
import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facejax.data import landmarks as landmarks_module
from facejax.data.landmarks import (
    BLENDSHAPE_NAMES,
    CHEEK_LEFT,
    CHEEK_RIGHT,
    CHIN,
    FOREHEAD,
    N_BLENDSHAPES,
    N_POINTS,
    FaceDetector,
    Landmarks,
    detect_landmarks,
    landmark_confidence,
    load_landmarks,
    quiet_stderr,
    save_landmarks,
)
from facejax.data.video import open_video
from facejax.geometry.errors import InputError

SIZE = (640, 480)


# Confidence ----------------------------------------------------------------------------------------------------------


def head(yaw_deg: float = 0.0, roll_deg: float = 0.0, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """(478, 3): points on the front of an ellipsoid, x right, y down, z away, as MediaPipe gives a head."""
    rng = np.random.default_rng(1)
    azimuth, height = rng.uniform(-1.4, 1.4, N_POINTS), rng.uniform(-0.8, 0.8, N_POINTS)
    for i, (a, h) in {
        CHEEK_RIGHT: (-1.5, 0.0),
        CHEEK_LEFT: (1.5, 0.0),
        FOREHEAD: (0.0, -0.8),
        CHIN: (0.0, 0.8),
    }.items():
        azimuth[i], height[i] = a, h
    ring = np.sqrt(1 - height**2)
    xyz = np.stack([80 * ring * np.sin(azimuth), 110 * height, -80 * ring * np.cos(azimuth)], axis=-1)
    yaw, roll = np.radians(yaw_deg), np.radians(roll_deg)
    turn = np.asarray([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    tilt = np.asarray([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    xyz = scale * xyz @ (tilt @ turn).T + [320 + shift, 240, 0]
    return xyz.astype(np.float32)


SKIN = np.arange(468)  # all but the irises, whose weight follows the lids


def confidence_of(xyz: np.ndarray) -> np.ndarray:
    return landmark_confidence(xyz[:, :2], xyz[:, 2], SIZE)


def test_a_frontal_face_is_trusted_everywhere():
    confidence = confidence_of(head())
    assert confidence.dtype == np.float32
    assert confidence[SKIN].min() > 0.6
    assert confidence[SKIN].max() <= 1.0


@pytest.mark.parametrize("yaw", [35.0, -35.0, 60.0, -60.0])
def test_the_far_side_of_a_turned_head_is_trusted_less(yaw):
    frontal, turned = head(), head(yaw)
    confidence = confidence_of(turned)
    far = SKIN[(frontal[SKIN, 0] - 320) * np.sign(-yaw) > 60]  # positive yaw takes the image's left side away from us
    near = SKIN[(frontal[SKIN, 0] - 320) * np.sign(-yaw) < -40]
    assert (turned[far, 2].mean() > turned[near, 2].mean()) == (yaw != 0)
    assert confidence[far].mean() < confidence[near].mean() - 0.3
    assert confidence[near].min() > 0.95


def test_confidence_does_not_depend_on_place_scale_or_tilt():
    base = confidence_of(head(30.0))[SKIN]
    for other in (head(30.0, shift=40.0), head(30.0, scale=0.5), head(30.0, roll_deg=50.0)):
        np.testing.assert_allclose(confidence_of(other)[SKIN], base, atol=0.02)


def test_missing_and_outside_points():
    xyz = head()
    xyz[7] = np.nan
    xyz[9, 0] = -30.0
    confidence = confidence_of(xyz)
    assert confidence[7] == 0.0
    assert 0.0 < confidence[9] <= 0.2
    assert (confidence_of(np.full_like(xyz, np.nan)) == 0).all()


def test_a_closed_eye_hides_its_iris():
    xyz = head()
    xyz[33, :2], xyz[133, :2] = (280, 220), (310, 220)
    xyz[159, :2], xyz[145, :2] = (295, 215), (295, 225)
    opened = confidence_of(xyz)[468:473]
    xyz[159, 1], xyz[145, 1] = 220, 220
    assert (confidence_of(xyz)[468:473] == 0).all()
    assert opened.min() > 0.3


# Files ---------------------------------------------------------------------------------------------------------------


def plain(n_frames: int = 5) -> Landmarks:
    points = np.stack([head(5.0 * i) for i in range(n_frames)])
    points[2] = np.nan
    points[3, 17] = np.nan
    return Landmarks(
        points=points[..., :2],
        depth=points[..., 2],
        blendshapes=np.full((n_frames, N_BLENDSHAPES), 0.25, np.float32),
        blendshape_names=tuple(f"shape{i}" for i in range(N_BLENDSHAPES)),
        valid=np.asarray([i != 2 for i in range(n_frames)]),
        confidence=np.stack([confidence_of(p) for p in points]),
        image_size=SIZE,
        box=np.full((n_frames, 4), 3.0, np.float32),
        notes=("a note",),
    )


def test_landmarks_survive_the_file(tmp_path):
    before = plain()
    save_landmarks(tmp_path / "l.npz", before, 30.0)
    after = load_landmarks(tmp_path / "l.npz", 5, SIZE)
    for field in dataclasses.fields(Landmarks):
        if field.name != "notes":
            np.testing.assert_array_equal(getattr(after, field.name), getattr(before, field.name), err_msg=field.name)
    assert list(tmp_path.iterdir()) == [tmp_path / "l.npz"]


def test_a_file_for_the_whole_clip_serves_a_range(tmp_path):
    save_landmarks(tmp_path / "l.npz", plain(), 30.0)
    part = load_landmarks(tmp_path / "l.npz", 2, SIZE, source_frames=5, first=3)
    np.testing.assert_array_equal(part.points, plain().points[3:])
    np.testing.assert_array_equal(part.valid, [True, True])


def test_two_dimensional_landmarks_alone_are_enough(tmp_path):
    np.savez(tmp_path / "l.npz", landmarks=plain().points)
    loaded = load_landmarks(tmp_path / "l.npz", 5, SIZE)
    np.testing.assert_array_equal(loaded.valid, [True, True, False, True, True])
    assert loaded.blendshape_names == BLENDSHAPE_NAMES
    assert np.isnan(loaded.depth).all()
    assert np.isnan(loaded.blendshapes).all()
    np.testing.assert_array_equal(loaded.confidence == 0, np.isnan(loaded.points).any(axis=-1))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"points": np.zeros(3)}, "must hold an array `landmarks`"),
        ({"landmarks": np.zeros((5, 68, 2))}, "478"),
        ({"landmarks": np.zeros((5, 478, 4))}, "2 or 3"),
        ({"landmarks": np.zeros((478, 3))}, "2 or 3"),
        ({"landmarks": np.full((5, 478, 2), "a")}, "numbers"),
        ({"landmarks": np.full((4, 478, 2), 9.0)}, "for 4 frames, and the video has 5"),
        ({"landmarks": np.full((5, 478, 3), np.nan)}, r"missing \(NaN\) in every frame"),
        ({"landmarks": np.full((5, 478, 3), np.inf)}, "infinite"),
        ({"landmarks": np.random.default_rng(0).uniform(0, 1, (5, 478, 2))}, "normalised"),
        ({"landmarks": np.full((5, 478, 2), 9.0), "image_size": np.asarray([512, 512])}, "512 x 512"),
        ({"landmarks": np.full((5, 478, 2), 9.0), "blendshapes": np.zeros((5, 10))}, "`blendshapes`"),
        ({"landmarks": np.asarray([{"an": "object"}], dtype=object)}, "cannot be read as an .npz"),
    ],
)
def test_refused_files(tmp_path, arrays, words):
    np.savez(tmp_path / "l.npz", **arrays)
    with pytest.raises(InputError, match=words):
        load_landmarks(tmp_path / "l.npz", 5, SIZE)


def test_files_that_are_no_npz(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        load_landmarks(tmp_path / "none.npz", 5, SIZE)
    for content in (b"", b"not a zip", np.random.default_rng(0).bytes(500), b"PK\x03\x04 broken"):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(InputError, match=r"cannot be read as an \.npz"):
            load_landmarks(tmp_path / "bad.npz", 5, SIZE)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(InputError):
        load_landmarks(tmp_path / "one.npy", 5, SIZE)
    with pytest.raises(InputError, match="could not be written"):
        save_landmarks(tmp_path / "nowhere" / "l.npz", plain(), 25.0)


# Quiet, and what is missing ------------------------------------------------------------------------------------------


def test_native_log_lines_are_kept_back_but_errors_are_not(capfd):
    with quiet_stderr():
        os.write(2, b"W0000 00:00:01 chatter\nE0000 00:00:02 real trouble\n")
    assert capfd.readouterr().err == "E0000 00:00:02 real trouble\n"

    def fail():
        with quiet_stderr():
            os.write(2, b"W0000 what led to it\n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "what led to it" in capfd.readouterr().err


def test_without_mediapipe_the_install_command_is_given(monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("mediapipe"):
            raise ImportError("No module named 'mediapipe'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r'pip install "facejax\[landmarks\]"'):
        detect_landmarks(open_video(np.zeros((1, 64, 64, 3), np.uint8)))


def test_importing_the_module_does_not_import_mediapipe():
    import subprocess

    code = "import sys, facejax.data.landmarks; sys.exit('mediapipe' in sys.modules or 'av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Geometry of the search ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "side"), [((1920, 1080), 540), ((640, 480), 480), ((100, 300), 64), ((512, 512), 512)]
)
def test_tiles_cover_the_frame_and_overlap_by_half(size, side):
    seen = np.zeros(size[::-1], int)
    for x0, y0, x1, y1 in landmarks_module._tiles(size, side):
        assert x1 - x0 <= side
        assert y1 - y0 <= side
        seen[int(y0) : int(y1), int(x0) : int(x1)] += 1
    assert seen.min() >= 1
    # Anything of half a tile's side lies whole in one tile.
    rng = np.random.default_rng(0)
    for _ in range(50):
        low = np.floor(rng.uniform(0, np.maximum(np.asarray(size) - side // 2, 1)))
        box = np.concatenate([low, np.minimum(low + side // 2, size)])
        tiles = landmarks_module._tiles(size, side)
        assert any((t[:2] <= box[:2]).all() and (t[2:] >= box[2:]).all() for t in tiles)


# The detector --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(assets) -> Path:
    with quiet_stderr():
        pytest.importorskip("mediapipe")
    return assets / "mediapipe" / "face_landmarker.task"


@pytest.fixture(scope="module")
def clip(assets) -> tuple[np.ndarray, np.ndarray]:
    """The first frames of the real clip, and their stored landmarks (frames, 478, 2)."""
    frames = open_video(assets / "clips" / "wojtek.mp4").read(range(24))
    with np.load(assets / "clips" / "wojtek_landmarks.npz") as data:
        return frames, data["landmarks"][:24, :, :2]


def scene(frames: np.ndarray, size: tuple[int, int], n: int, *people) -> np.ndarray:
    """A noisy backdrop with the clip pasted in: a person is (side of the pasted square, place(i) or None, mirrored)."""
    rng = np.random.default_rng(0)
    backdrop = rng.normal(100, 6, (size[1], size[0], 1)).clip(0, 255).astype(np.uint8).repeat(3, axis=-1)
    out = np.repeat(backdrop[None], n, axis=0)
    for side, place, mirrored in people:
        for i in range(n):
            if place(i) is None:
                continue
            x, y = place(i)
            small = np.asarray(Image.fromarray(frames[i]).resize((side, side), Image.Resampling.LANCZOS))
            out[i, y : y + side, x : x + side] = small[:, ::-1] if mirrored else small
    return out


def error_percent(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(frames,) mean distance, in per cent of the distance between the outer eye corners."""
    eyes = np.linalg.norm(expected[:, 33] - expected[:, 263], axis=-1)
    return 100 * np.linalg.norm(found - expected, axis=-1).mean(axis=-1) / eyes


def test_the_stored_landmarks_of_the_real_clip_are_reproduced(clip, model):
    frames, stored = clip
    calls = []
    progress = lambda done, n: calls.append((done, n))  # noqa: E731
    found = detect_landmarks(open_video(frames), model_path=model, smoothing=True, progress=progress)
    assert found.valid.all()
    assert found.image_size == (512, 512)
    assert calls == [(i + 1, 24) for i in range(24)]
    # The stored ones come from VIDEO mode on whole frames, as here; another build of the library may differ a little.
    assert error_percent(found.points, stored).max() < 0.5
    assert found.blendshape_names == BLENDSHAPE_NAMES
    assert 0 <= found.blendshapes.min() <= found.blendshapes.max() <= 1
    nose, cheeks = found.depth[:, 1], found.depth[:, [CHEEK_RIGHT, CHEEK_LEFT]].mean(axis=1)
    assert (nose < cheeks - 20).all()
    assert found.confidence[:, 1].min() > 0.9


def test_points_follow_the_pixel_centre_convention(clip, model):
    # Flipped left to right, x must become width - x: half a pixel of disagreement about centres would show as a shift.
    frames, _ = clip
    flip = np.ascontiguousarray(frames[:4, :, ::-1])
    found = detect_landmarks(open_video(frames[:4]), model_path=model, smoothing=False)
    mirrored = detect_landmarks(open_video(flip), model_path=model, smoothing=False)
    shift = (512 - mirrored.points[:, [10, 152, 1, 168], 0]) - found.points[:, [10, 152, 1, 168], 0]
    assert abs(float(shift.mean())) < 0.5


def test_without_smoothing_points_are_closer_to_single_frames(clip, model):
    frames, _ = clip
    video = open_video(frames)
    smooth = detect_landmarks(video, model_path=model, smoothing=True).points
    raw = detect_landmarks(video, model_path=model, smoothing=False).points
    jitter = [np.median(np.linalg.norm(np.diff(p, 2, axis=0), axis=-1)) for p in (smooth, raw)]
    assert jitter[0] < 0.85 * jitter[1]
    assert error_percent(smooth, raw).max() < 3


@pytest.mark.parametrize(("side", "tolerance"), [(320, 2.0), (200, 3.0), (100, 6.0)])
def test_a_small_face_in_a_wide_shot(clip, model, side, tolerance):
    frames, stored = clip
    video = open_video(scene(frames, (1920, 1080), 5, (side, lambda i: (1300, 250), False)))
    found = detect_landmarks(video, model_path=model)
    assert found.valid.all()
    assert error_percent(found.points, stored[:5] * side / 512 + [1300, 250]).max() < tolerance
    assert (found.box[:, 2] - found.box[:, 0] < 1.3 * side).all()
    assert any("small face" in note for note in found.notes) == (side < 256)


def test_a_moving_face_is_followed(clip, model):
    frames, stored = clip
    place = lambda i: (60 + 24 * i, 120 + 4 * i)  # noqa: E731
    found = detect_landmarks(open_video(scene(frames, (1280, 720), 24, (300, place, False))), model_path=model)
    assert found.valid.all()
    expected = stored * 300 / 512 + np.asarray([place(i) for i in range(24)])[:, None]
    assert error_percent(found.points, expected).max() < 6


def test_one_of_two_faces_is_followed_and_named(clip, model):
    frames, stored = clip
    two = scene(frames, (1280, 720), 6, (300, lambda i: (80 + 10 * i, 150), False), (420, lambda i: (700, 100), True))
    video = open_video(two)
    largest = detect_landmarks(video, model_path=model)
    assert (largest.points[..., 0].mean(axis=1) > 700).all()
    assert "2 faces in frame 0: following face 0, the largest" in largest.notes[0]
    other = detect_landmarks(video, face=1, model_path=model)
    expected = stored[:6] * 300 / 512 + np.asarray([(80 + 10 * i, 150) for i in range(6)])[:, None]
    assert error_percent(other.points, expected).max() < 6
    with pytest.raises(InputError, match=r"only 2 faces were seen \(in frame 0\)"):
        detect_landmarks(video, face=2, model_path=model)


def test_frames_without_the_face_are_flagged_and_it_is_found_again(clip, model):
    frames, stored = clip
    place = lambda i: None if i in (0, 5, 6, 7, 8) else ((40, 60) if i < 5 else (560, 120))  # noqa: E731
    found = detect_landmarks(open_video(scene(frames, (960, 540), 14, (360, place, False))), model_path=model)
    absent = np.asarray([place(i) is None for i in range(14)])
    assert not found.valid[absent].any()
    assert found.valid[1:5].all()
    assert found.valid[11:].all()
    for field in (found.points, found.depth, found.blendshapes, found.box):
        assert np.isnan(field[~found.valid]).all()
        assert np.isfinite(field[found.valid]).all()
    assert (found.confidence[~found.valid] == 0).all()
    assert found.notes[0] == "no face before frame 1"
    assert any(note.startswith("no face in frames 5 to") for note in found.notes)
    expected = stored[11:14] * 360 / 512 + [560, 120]
    assert error_percent(found.points[11:], expected).max() < 4


def test_the_face_that_stays_is_not_taken_for_the_one_that_left(clip, model):
    frames, _ = clip
    people = (400, lambda i: (60, 60) if i < 3 else None, False), (280, lambda i: (620, 120), True)
    found = detect_landmarks(open_video(scene(frames, (960, 540), 8, *people)), model_path=model)
    np.testing.assert_array_equal(found.valid, [True] * 3 + [False] * 5)


def test_large_frames_are_reduced_not_refused(clip, model):
    frames, stored = clip
    large = np.repeat(np.repeat(frames[:2], 8, axis=1), 8, axis=2)  # 4096 pixels
    found = detect_landmarks(open_video(large), model_path=model)
    assert error_percent(found.points, stored[:2] * 8).max() < 3
    assert found.image_size == (4096, 4096)


def test_one_frame(clip, model):
    frames, stored = clip
    found = detect_landmarks(open_video(frames[:1]), model_path=model)
    assert error_percent(found.points, stored[:1]).max() < 3


def test_no_face_at_all_is_refused(model):
    noise = np.random.default_rng(0).integers(0, 255, (4, 240, 320, 3)).astype(np.uint8)
    with pytest.raises(InputError, match="No face was found in any of the 4 frames"):
        detect_landmarks(open_video(noise), model_path=model)


def test_refused_arguments(clip, model, tmp_path):
    video = open_video(clip[0][:1])
    with pytest.raises(InputError, match="0 or more"):
        detect_landmarks(video, face=-1, model_path=model)
    with pytest.raises(InputError, match="No such landmark model"):
        detect_landmarks(video, model_path=tmp_path / "none.task")
    (tmp_path / "bad.task").write_bytes(b"not a bundle")
    with pytest.raises(InputError, match="could not be loaded"):
        detect_landmarks(video, model_path=tmp_path / "bad.task")


def test_detection_is_silent(clip, model, capfd):
    detect_landmarks(open_video(clip[0][:3]), model_path=model)
    captured = capfd.readouterr()
    assert captured.err == ""
    assert captured.out == ""


def test_a_detector_of_frames_that_come_one_by_one_finds_what_a_clip_does(clip, model):
    frames, _ = clip
    found = detect_landmarks(open_video(frames[:3]), model_path=model)
    with FaceDetector(model_path=model) as detector:
        assert detector.detect(np.zeros_like(frames[0]), 0.0) is None
    with FaceDetector(model_path=model) as detector:
        for i, frame in enumerate(frames[:3]):
            seen = detector.detect(frame, i / 25)
            np.testing.assert_allclose(seen.points, found.points[i], atol=1e-3)
            np.testing.assert_allclose(seen.confidence, found.confidence[i], atol=1e-5)
    with pytest.raises(InputError, match="0 or more"):
        FaceDetector(face=-1)
