"""Input that cannot be used: the command says why in one sentence, exits with another status than 0, leaves nothing."""

import errno
import os
import re
import sys
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from toy_head import toy_head, toy_result

from facejax import cli
from facejax.apps import track as track_module
from facejax.data import files as files_module
from facejax.data.video import write_video
from facejax.fitting import fit_sequence
from facejax.geometry.errors import InputError

SIZE = (64, 48)
N_FRAMES = 6


@pytest.fixture(autouse=True)
def no_global_changes(monkeypatch, tmp_path):
    """The command's compilation cache is the process's; the home is empty, so that nothing is installed."""
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    monkeypatch.setenv("FACEJAX_HOME", str(tmp_path / "home"))


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder with a good clip and good landmarks, to spoil one of."""
    folder = tmp_path / "place"
    folder.mkdir()
    rng = np.random.default_rng(0)
    write_video(folder / "clip.mp4", rng.integers(0, 255, (N_FRAMES, SIZE[1], SIZE[0], 3), dtype=np.uint8), fps=25.0)
    np.savez(folder / "good.npz", landmarks=rng.uniform(10, 40, (N_FRAMES, 478, 2)))
    return folder


def contents(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}


def refuse(capsys, place: Path, arguments: list, *words: str) -> None:
    """The command refuses, names `words`, and leaves everything in `place` as it was."""
    before = contents(place), sorted(p.name for p in place.iterdir())
    status = cli.main([str(a) for a in arguments])
    said = capsys.readouterr().err
    assert status in (1, 2), said
    assert "Traceback" not in said
    assert "Warning" not in said
    lines = [line for line in said.splitlines() if not re.fullmatch(r"[a-z. ]+ \d+/\d+.*", line)]  # progress
    assert len(lines) == 1, said
    assert lines[0].startswith("facejax: ")
    for word in words:
        assert word in lines[0]
    assert (contents(place), sorted(p.name for p in place.iterdir())) == before


def track(place: Path, video: str = "clip.mp4", *more, landmarks: str | None = "good.npz", out="out") -> list:
    chosen = [] if landmarks is None else ["--landmarks", place / landmarks]
    return ["track", place / video, "--out", place / out, *chosen, *more]


# The video -----------------------------------------------------------------------------------------------------------


def test_no_such_file(place, capsys):
    refuse(capsys, place, track(place, "gone.mp4"), "No such file", "gone.mp4")


@pytest.mark.parametrize("content", [b"just some words\n" * 99, b"", b"%PDF-1.4 nothing", bytes(range(256)) * 20])
def test_not_a_video(content, place, capsys):
    (place / "notes.mp4").write_bytes(content)
    refuse(capsys, place, track(place, "notes.mp4"), "notes.mp4", "video")


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_video(share, place, capsys):
    whole = (place / "clip.mp4").read_bytes()
    (place / "cut.mp4").write_bytes(whole[: int(share * len(whole))])
    refuse(capsys, place, track(place, "cut.mp4"), "cut.mp4", "truncated")


def test_a_video_without_frames(place, capsys):
    with av.open(str(place / "empty.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    refuse(capsys, place, track(place, "empty.mp4"), "empty.mp4")


def test_a_folder_without_images(place, capsys):
    (place / "pictures").mkdir()
    refuse(capsys, place, track(place, "pictures"), "holds no images")


def test_frames_under_32_pixels(place, capsys):
    Image.new("RGB", (31, 40)).save(place / "small.png")
    refuse(capsys, place, track(place, "small.png"), "32 pixels", "31 x 40")


@pytest.mark.parametrize("frames", ["0:7", "6:9", "100:"])
def test_frames_outside_the_clip(frames, place, capsys):
    refuse(capsys, place, track(place, "clip.mp4", "--frames", frames), f"{N_FRAMES} frames")


# Faces and landmarks -------------------------------------------------------------------------------------------------


def test_no_face_at_all(place, capsys, assets):
    pytest.importorskip("mediapipe")
    task = assets / "mediapipe" / "face_landmarker.task"
    assert cli.main(["assets", "install", "face-landmarker", "--from", str(task)]) == 0
    capsys.readouterr()
    refuse(capsys, place, track(place, landmarks=None), "No face was found")


def test_the_detector_is_not_installed(place, capsys):
    pytest.importorskip("mediapipe")
    refuse(capsys, place, track(place, landmarks=None), "facejax assets install face-landmarker")


def test_a_missing_extra(place, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    refuse(capsys, place, track(place, landmarks=None), 'pip install "facejax[landmarks]"')


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.ones((N_FRAMES + 1, 478, 2)), "7 frames"),
        (np.ones((N_FRAMES, 68, 2)), "478"),
        (np.ones((N_FRAMES, 478)), "478"),
        (np.full((N_FRAMES, 478, 2), np.nan), "NaN"),
        (np.full((N_FRAMES, 478, 2), 0.5), "normalised"),
        (np.full((N_FRAMES, 478, 2), np.inf), "infinite"),
    ],
)
def test_landmarks_that_do_not_fit(values, words, place, capsys):
    np.savez(place / "bad.npz", landmarks=values)
    refuse(capsys, place, track(place, landmarks="bad.npz"), "bad.npz", words)


def test_landmarks_that_are_no_such_file(place, capsys):
    (place / "bad.npz").write_bytes(b"no zip")
    refuse(capsys, place, track(place, landmarks="bad.npz"), "bad.npz")
    refuse(capsys, place, track(place, landmarks="gone.npz"), "No such file")
    np.savez(place / "other.npz", something=np.ones(3))
    refuse(capsys, place, track(place, landmarks="other.npz"), "`landmarks`")


# The other inputs ----------------------------------------------------------------------------------------------------


def test_an_unknown_model(place, capsys):
    refuse(capsys, place, track(place, "clip.mp4", "--model", "ict-facekt"), "ict-facekt", "did you mean ict-facekit")


def test_a_model_that_is_not_installed(place, capsys):
    refuse(capsys, place, track(place, "clip.mp4", "--model", "ict-facekit"), "facejax assets install ict-facekit")


def test_masks_that_do_not_fit(place, capsys):
    refuse(capsys, place, track(place, "clip.mp4", "--masks", place / "gone"), "No such folder of masks")
    (place / "masks").mkdir()
    Image.new("L", SIZE).save(place / "masks" / "0.png")
    refuse(capsys, place, track(place, "clip.mp4", "--masks", place / "masks"), "one mask per frame")


def test_an_identity_that_is_none(place, capsys):
    refuse(capsys, place, track(place, "clip.mp4", "--identity", place / "gone"), "No result at")
    toy_result(2, valid=np.ones(2, bool)).save(place / "other")
    refuse(capsys, place, track(place, "clip.mp4", "--identity", place / "other"), "within one model")


def test_arrays_that_are_no_video():
    head, points = toy_head(), np.ones((2, 478, 2))
    picture = np.full((2, 64, 64, 3), 0.5, np.float32)
    for array, words in [
        (np.where(np.arange(64)[:, None] == 3, np.nan, picture), "NaN"),
        (picture * 255, "divide by 255"),
        (picture[0], "leading axis"),
        (picture[:0], "no frames"),
        (picture.astype(np.int32), "uint8"),
        (picture[:, :20, :20], "32 pixels"),
    ]:
        with pytest.raises(InputError, match=words):
            fit_sequence(array, head, landmarks=points)


# Places to write -----------------------------------------------------------------------------------------------------


def test_a_folder_of_something_else_is_not_replaced(place, capsys):
    (place / "out").mkdir()
    (place / "out" / "thesis.tex").write_text("years of work")
    refuse(capsys, place, track(place), "holds other files")


def test_a_file_is_in_the_way(place, capsys):
    refuse(capsys, place, track(place, out="good.npz"), "is a file")
    refuse(capsys, place, track(place, out="good.npz/out"), "good.npz")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(place, capsys):
    (place / "locked").mkdir(mode=0o555)
    refuse(capsys, place, track(place, out="locked/out"), "no permission")


def test_permission_that_the_system_denies(place, capsys, monkeypatch):
    monkeypatch.setattr(files_module.os, "access", lambda path, mode: False)
    refuse(capsys, place, track(place), "no permission")


@pytest.mark.parametrize("stage", ["track.npz", "overlay", "renders"])
def test_a_full_disk(stage, place, capsys, monkeypatch):
    """Whatever is being written when the disk is full, the folder does not appear."""
    result = toy_result(N_FRAMES, image_size=SIZE)
    monkeypatch.setattr(track_module, "fit_sequence", lambda *args, **options: result)
    monkeypatch.setattr(track_module, "resolve_head", lambda name: result.head)
    nothing = dict.fromkeys(("inner_face", "lips", "lip_gap", "lid_opening"), 1.0)
    controls = {f"{name}_dead_face": 1.0 for name in nothing}
    reached = {"landmarks": nothing | controls, "correlation": nothing | controls}
    monkeypatch.setattr(track_module, "evaluate_track", lambda *args, **options: reached)
    real = track_module.write_result

    def write_result(folder, result, clip, *, renders, progress):
        def full(name, done, total):
            if name == stage:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / name))

        return real(folder, result, clip, renders=renders, progress=full)

    monkeypatch.setattr(track_module, "write_result", write_result)
    words = "No space left" if stage == "overlay" else "disk is full"
    refuse(capsys, place, track(place, "clip.mp4", "--renders"), words)


# Assets --------------------------------------------------------------------------------------------------------------


def test_an_archive_with_a_path_that_escapes(place, capsys):
    (place / "evil.txt").write_text("gotcha")
    with tarfile.open(place / "evil.tar", "w") as tar:
        tar.add(place / "evil.txt", arcname="../../escaped.txt")
    install = ["assets", "install", "ict-facekit", "--from", place / "evil.tar"]
    refuse(capsys, place, install, "escaped.txt")
    assert not list(place.parent.rglob("escaped.txt"))
    assert not list((place.parent / "home").rglob("*.npz"))


def test_a_wrong_checksum(place, capsys):
    (place / "face_landmarker.task").write_bytes(b"not what it says")
    install = ["assets", "install", "face-landmarker", "--from", place / "face_landmarker.task"]
    refuse(capsys, place, install, "sha256")
    assert not list((place.parent / "home").rglob("*.task"))


def test_an_asset_that_nobody_knows(place, capsys):
    refuse(capsys, place, ["assets", "install", "flame"], "flame")
