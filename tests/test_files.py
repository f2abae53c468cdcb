"""Files and folders appear whole or not at all."""
# ruff: noqa: PT012, the write that fails half way is the thing tested

import errno
import os

import pytest

from facejax.data.files import atomic_folder, atomic_write
from facejax.geometry.errors import InputError


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_when_the_body_ends_and_keeps_its_suffix(tmp_path):
    target = tmp_path / "new" / "deep" / "picture.png"
    with atomic_write(target, sync=True) as temporary:
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert names(target.parent) == ["picture.png"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    with pytest.raises(error), atomic_write(tmp_path / "x" / "y" / "b.txt") as temporary:
        raise error
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission"), (errno.EROFS, "read-only")]
)
def test_the_systems_refusals_are_one_sentence(tmp_path, code, words):
    with pytest.raises(InputError, match=words) as caught, atomic_write(tmp_path / "a.txt"):
        raise OSError(code, os.strerror(code))
    assert str(tmp_path / "a.txt") in str(caught.value)
    with pytest.raises(InputError, match=words), atomic_folder(tmp_path / "out") as partial:
        (partial / "half").write_text("half")
        raise OSError(code, os.strerror(code))
    assert names(tmp_path) == []


def test_other_system_errors_pass_through(tmp_path):
    with pytest.raises(OSError, match="pipe"), atomic_write(tmp_path / "a.txt"):
        raise OSError(errno.EPIPE, "pipe")


def test_a_file_in_the_way_of_a_parent_folder(tmp_path):
    (tmp_path / "a").write_text("file")
    with pytest.raises(InputError, match="Cannot write"), atomic_write(tmp_path / "a" / "b.txt"):
        pass
    with pytest.raises(InputError, match="Cannot write"), atomic_folder(tmp_path / "a" / "out"):
        pass
    with pytest.raises(InputError, match="folder of that name"), atomic_write(tmp_path):
        pass


def test_a_folder_appears_whole(tmp_path):
    with atomic_folder(tmp_path / "deep" / "out") as partial:
        (partial / "track.npz").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"]
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "deep" / "two") as partial:
        (partial / "track.npz").write_text("1")
        raise KeyboardInterrupt
    assert names(tmp_path / "deep") == ["out"]


def test_our_folder_is_replaced_and_a_persons_notes_survive(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    ours = ("track.npz", "renders")
    with atomic_folder(out, ours) as partial:  # an empty folder is fine
        (partial / "track.npz").write_text("1")
        (partial / "renders").mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RuntimeError), atomic_folder(out, ours) as partial:
        raise RuntimeError
    assert names(out) == ["notes.txt", "renders", "track.npz"]
    with atomic_folder(out, ours) as partial:
        (partial / "track.npz").write_text("2")
    assert names(out) == ["notes.txt", "track.npz"]
    assert (out / "track.npz").read_text() == "2"
    assert names(tmp_path) == ["out"]


def test_a_foreign_folder_is_refused_before_any_work(tmp_path):
    (tmp_path / "photo.jpg").write_text("precious")
    for ours in ((), ("track.npz",)):
        with pytest.raises(InputError, match="not replaced"), atomic_folder(tmp_path, ours):
            pytest.fail("the body ran")
    with pytest.raises(InputError, match="is a file"), atomic_folder(tmp_path / "photo.jpg", ("track.npz",)):
        pytest.fail("the body ran")
    assert names(tmp_path) == ["photo.jpg"]


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    with atomic_folder(tmp_path / "out", ("track.npz",)) as partial:
        (partial / "track.npz").write_text("1")
    assert (tmp_path / "out").is_symlink()
    assert names(tmp_path / "disk") == ["track.npz"]
