"""Whatever is wrong with a NumPy file, and whoever made it, reading it says so in one sentence and runs nothing."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from facejax.geometry.arrays import DAMAGE, open_npz, read_npy, read_npz
from facejax.geometry.errors import InputError

ARRAYS = {"points": np.arange(600, dtype=np.float32).reshape(20, 30), "names": np.array(["a", "b"])}


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(params=[np.savez, np.savez_compressed], ids=["stored", "compressed"])
def whole(request, tmp_path):
    request.param(tmp_path / "whole.npz", **ARRAYS)
    return tmp_path / "whole.npz"


def member(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    return path


def npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def refused(path: Path, *names: str) -> str:
    with pytest.raises(InputError, match=r"cannot be read as an \.npz .*: copy it again\.$") as caught:
        read_npz(path, "copy it again", names or None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_was_written_is_read(whole):
    found = read_npz(whole, "copy it again")
    assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in ARRAYS.items()}
    assert set(read_npz(whole, "copy it again", ["names"])) == {"names"}
    with open_npz(whole) as held:
        np.testing.assert_array_equal(held["points"], ARRAYS["points"])


def test_any_damage_is_one_sentence(whole):
    """1,000 files with some bytes altered, taken out or put in."""
    rng, content, damaged = np.random.default_rng(0), whole.read_bytes(), 0
    for _ in range(1000):
        spoilt = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            at, kind = int(rng.integers(len(spoilt))), rng.integers(3)
            if kind == 0:
                spoilt[at] = int(rng.integers(256))
            elif kind == 1:
                del spoilt[at : at + int(rng.integers(1, 9))]
            else:
                spoilt[at:at] = rng.bytes(3)
        whole.write_bytes(spoilt)
        try:
            read_npz(whole, "copy it again")
        except InputError:
            damaged += 1
    assert damaged > 500


def test_other_files_are_told_by_what_is_wrong_with_them(whole, tmp_path):
    assert "points2" in refused(whole, "points2")
    assert "No such file" in refused(tmp_path / "none.npz")
    np.save(tmp_path / "single.npy", ARRAYS["points"])
    assert "a single array" in refused(tmp_path / "single.npy")
    assert "notes is no array" in refused(member(tmp_path / "text.npz", "notes", b"not an array"))
    (tmp_path / "empty.npz").touch()
    assert "No data" in refused(tmp_path / "empty.npz")
    (tmp_path / "notes.npz").write_text("not an archive")
    assert "another kind" in refused(tmp_path / "notes.npz")


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (",  # tokenize.TokenError
        b"\n  {'descr'\n :\n  'x'\n",  # SyntaxError
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}\n",  # OverflowError
        b"(" * 9000,  # RecursionError or MemoryError of the parser
    ],
)
def test_headers_that_are_no_literals(header, tmp_path):
    refused(member(tmp_path / "header.npz", "x.npy", npy(header)))
    (tmp_path / "header.npy").write_bytes(npy(header))
    with pytest.raises(DAMAGE):
        read_npy(tmp_path / "header.npy")


def test_encrypted_and_unknown_compression(tmp_path):
    content = npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (0,)}\n")
    for offset, value in ((6, 1), (8, 99)):  # in the local header: encrypted, method 99; 2 further in the directory's
        spoilt = bytearray(member(tmp_path / "x.npz", "x.npy", content).read_bytes())
        directory = spoilt.index(b"PK\x01\x02")
        spoilt[offset] = spoilt[directory + offset + 2] = value
        (tmp_path / "x.npz").write_bytes(spoilt)
        refused(tmp_path / "x.npz")


def test_nothing_is_unpickled(tmp_path):
    stream = io.BytesIO()
    np.save(stream, np.array([Payload(tmp_path / "ran")], dtype=object), allow_pickle=True)
    refused(member(tmp_path / "x.npz", "x.npy", stream.getvalue()))
    (tmp_path / "x.npy").write_bytes(stream.getvalue())
    (tmp_path / "y.npy").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    for path in (tmp_path / "x.npy", tmp_path / "y.npy"):
        with pytest.raises(DAMAGE):
            read_npy(path)
    assert not (tmp_path / "ran").exists()


def test_an_npz_is_no_npy(whole):
    with pytest.raises(ValueError, match="several arrays"):
        read_npy(whole)
