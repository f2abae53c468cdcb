"""`facejax track --live`: files and cameras in, a table and a result out."""

import dataclasses
import sys
import threading
import time
import types
from pathlib import Path

import av
import numpy as np
import pytest
import test_fit
from test_fit import EXACT, head
from test_live import N, clip

from facejax import cli
from facejax.apps import live as app
from facejax.apps.live import track_live
from facejax.data import devices
from facejax.data.devices import CameraDevice, is_device, open_camera
from facejax.data.results import TrackResult, load_metrics
from facejax.fitting.live import LiveConfig
from facejax.geometry.errors import InputError

quick_compilation = test_fit.quick_compilation
CONFIG = LiveConfig(fit=dataclasses.replace(EXACT, key_frames=4), steps=12)


@pytest.fixture
def given(tmp_path):
    """A clip as a folder of images, and its landmarks in a file; the third frame shows no face."""
    from PIL import Image

    pictures, landmarks, *_ = clip()
    folder = tmp_path / "clip"
    folder.mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i:03}.png")
    gone = landmarks.copy()
    gone[[2, 8]] = np.nan
    np.savez(tmp_path / "landmarks.npz", landmarks=gone)
    return folder, tmp_path / "landmarks.npz"


def test_a_folder_is_followed_and_its_result_is_like_any_other(given, tmp_path):
    folder, landmarks = given
    lines = []
    rows = track_live(
        folder, tmp_path / "out", model=head(), landmarks=landmarks, intrinsics=(400, 400, 160, 120), enrol=4,
        config=CONFIG, show=lines.append,
    )  # fmt: skip
    table = {name: value for name, value, _ in rows}
    left = N - 5  # one frame without a face before the fourth with one
    assert table["frames enrolled on"] == 4
    assert table["frames tracked live"] == f"{left - 1} of {left} (1 no face found)"
    assert table["frames dropped"] == 0
    assert table["frames per second"] > 0
    assert table["delay, 95th percentile (ms)"] >= table["delay, median (ms)"]
    assert len(lines) == left
    assert lines[-1].startswith(f"frame {left}: ")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["metrics.json", "track.npz"]
    result = TrackResult.load(tmp_path / "out").with_head(head())
    np.testing.assert_array_equal(result.frame_ids, [0, 1, *range(3, N)])
    assert [result.status_names[s] for s in result.status] == [
        "no face found" if i == 8 else "tracked" for i in result.frame_ids
    ]
    np.testing.assert_array_equal(result.valid, result.status == 0)
    assert np.linalg.norm(result.landmarks - clip()[1][result.frame_ids], axis=-1)[result.valid].mean() < 1
    np.testing.assert_allclose(np.diff(result.time[2:]), 0.04, atol=1e-5)
    assert load_metrics(tmp_path / "out")["frames_live"] == left


def test_an_interruption_keeps_what_was_tracked(given, tmp_path):
    folder, landmarks = given

    def stop(line):
        if line.startswith("frame 3:"):
            raise KeyboardInterrupt

    rows = track_live(
        folder, tmp_path / "out", model=head(), landmarks=landmarks, intrinsics=(400, 400, 160, 120), enrol=4,
        config=CONFIG, show=stop,
    )  # fmt: skip
    assert dict(r[:2] for r in rows)["frames tracked live"] == "3 of 3"
    assert len(TrackResult.load(tmp_path / "out").with_head(head())) == 4 + 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"enrol": 2}, "at least 4 frames"),
        ({"enrol": N}, "there were 10"),
        ({"enrol": 4, "frames": (0, 5), "intrinsics": (400, 400, 160, 120)}, "No frame was left"),
        ({"source": "7", "landmarks": None}, "camera .* could not be opened"),
        ({"source": "/dev/video7", "landmarks": None}, "/dev/video7 could not be opened"),
        ({"source": "/dev/video7"}, "leave both out"),
        ({"source": "no-such.mp4"}, "No such file"),
    ],
    ids=str,
)
def test_refused(given, tmp_path, monkeypatch, changes, words):
    class Detector:
        def __init__(self, face):
            pass

    monkeypatch.setattr(app, "FaceDetector", Detector)
    folder, landmarks = given
    options = {"source": folder, "landmarks": landmarks} | changes
    with pytest.raises(InputError, match=words) as caught:
        track_live(options.pop("source"), tmp_path / "out", model=head(), config=CONFIG, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


# -- cameras -----------------------------------------------------------------------------------------------------------


def test_what_is_a_camera(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_device("0")
    assert is_device(Path("/dev/video12"))
    assert not is_device("talk.mp4")
    assert not is_device("/dev/null")
    Path("7").mkdir()
    assert not is_device("7")  # a folder of images


def picture(value):
    return av.VideoFrame.from_ndarray(np.full((32, 48, 3), value, np.uint8), format="rgb24")


class Wheel:
    """Stands in for a camera's container: frames when they are let through."""

    def __init__(self, count):
        self.count, self.passed, self.closed = count, threading.Semaphore(0), False
        self.streams = types.SimpleNamespace(video=[0])

    def decode(self, video):
        for i in range(self.count):
            self.passed.acquire()
            yield picture(i)

    def close(self):
        self.closed = True


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_the_latest_frame_wins_and_dropped_ones_are_counted():
    wheel = Wheel(6)
    with CameraDevice(wheel, "wheel") as camera:
        shots = camera.shots()
        wheel.passed.release()
        first = next(shots)
        assert first.picture.shape == (32, 48, 3)
        assert first.picture[0, 0, 0] == 0
        for _ in range(4):  # while the first is looked at
            wheel.passed.release()
        until(lambda: camera.dropped == 3)
        second = next(shots)
        assert second.picture[0, 0, 0] == 4
        assert second.arrived >= first.arrived
        wheel.passed.release()
        assert next(shots).picture[0, 0, 0] == 5
        with pytest.raises(StopIteration):
            next(shots)
    assert wheel.closed


def test_a_camera_that_is_opened_by_ffmpeg(monkeypatch):
    """A test picture is FFmpeg's own camera."""
    real = devices.open_device
    monkeypatch.setattr(devices, "open_device", lambda _: real("testsrc=size=64x48:rate=200:duration=0.5", "lavfi"))
    with open_camera("0") as camera:
        shots = list(camera.shots())
    assert shots
    assert all(s.picture.shape == (48, 64, 3) and s.picture.dtype == np.uint8 for s in shots)


def test_a_camera_without_a_picture_is_refused(monkeypatch):
    real = devices.open_device
    monkeypatch.setattr(devices, "open_device", lambda _: real("sine=duration=0.1", "lavfi"))
    with pytest.raises(InputError, match="no picture"):
        open_camera("0")


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    recorded = []

    def track_live(source, out, **options):
        recorded.append((source, out, options))
        options["show"]("frame 1: fast")
        return [("frames per second", 12.5, None)]

    fake = types.SimpleNamespace(track_live=track_live, live_config=app.live_config)
    monkeypatch.setitem(sys.modules, "facejax.apps.live", fake)
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    return recorded


def test_the_command_passes_its_options_on(calls, capsys):
    assert cli.main(["track", "--live", "0", "--enrol", "16", "--steps", "8", "--intrinsics", "9,9,5,5"]) == 0
    ((source, out, options),) = calls
    assert (source, out) == (Path("0"), None)
    assert options["enrol"] == 16
    assert options["intrinsics"] == (9, 9, 5, 5)
    assert options["config"].steps == 8
    shown = capsys.readouterr()
    assert "frames per second" in shown.out
    assert "frame 1: fast" in shown.err


@pytest.mark.parametrize(
    ("option", "words"),
    [(["--masks", "m"], "--masks"), (["--ipd-mm", "63"], "--ipd-mm"), (["--renders"], "--renders"),
     (["--steps", "0"], "at least 1 step"), (["--resume"], "--resume")],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)  # fmt: skip
def test_options_that_do_not_go_with_it_are_one_sentence(option, words, calls, capsys):
    assert cli.main(["track", "--live", "a.mp4", *option]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not calls
