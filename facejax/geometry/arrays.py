"""Reading NumPy's files: the one place that calls `np.load`, which never unpickles.

A file may come from a stranger, or be damaged. NumPy and zipfile tell that by exceptions of many kinds: `DAMAGE` lists
them once.
"""

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from facejax.geometry.errors import InputError

DAMAGE = (
    OSError,  # missing, unreadable; bytes lost inside an archive
    EOFError,  # cut short
    KeyError,  # an array that should be there is not
    ValueError,  # no such file at all, pickled objects, text that is not UTF-8
    OverflowError,  # a shape of absurd size
    RuntimeError,  # encrypted; NotImplementedError (a compression that zipfile lacks) is one
    SyntaxError,  # a header that is no literal, and so the next
    tokenize.TokenError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading a damaged, foreign or incomplete .npy or .npz raises."""


@contextmanager
def open_npz(path: Path | str) -> Iterator[np.lib.npyio.NpzFile]:
    """An .npz whose arrays are read when they are asked for. Raises one of `DAMAGE`, then and inside."""
    with open(require_file(path), "rb") as stream:
        held = _load(stream)
        if not isinstance(held, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        with held:
            yield held


def read_npz(path: Path | str, advice: str, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name: those of `names`, or all.

    Raises `InputError` for a file that is missing or damaged, of another kind, or lacks one of `names`; its sentence
    ends with `advice`, as "make the clip again".
    """
    try:
        with open_npz(path) as held:
            arrays = {name: held[name] for name in (held.files if names is None else names)}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):  # numpy gives the bytes of a member that is no .npy
                raise ValueError(f"{name} is no array")
    except DAMAGE as error:
        raise InputError(f"{path} cannot be read as an .npz of plain arrays ({_reason(error)}): {advice}.") from error
    return arrays


def read_npy(path: Path | str) -> np.ndarray:
    """The array of an .npy. Raises one of `DAMAGE`."""
    with open(require_file(path), "rb") as stream:
        held = _load(stream)
        if not isinstance(held, np.ndarray):
            raise ValueError("it holds several arrays")
        return held


def require_file(path: Path | str) -> Path:
    """The path; `InputError` where it is there, but is no regular file: a pipe or device may have no end."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no regular file: give a file.")
    return path


def _load(stream: BinaryIO) -> Any:
    """An array or an `NpzFile`. The caller opens and closes the file: NumPy would leave a damaged one open."""
    magic = stream.read(6)
    if magic and not magic.startswith((b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY")):
        raise ValueError("it is of another kind, or damaged")  # NumPy would say that it holds pickled data
    stream.seek(0)
    return np.load(stream, allow_pickle=False)


def _reason(error: BaseException) -> str:
    """The first line of what it says."""
    text = str(error.strerror if isinstance(error, OSError) and error.strerror else error)
    return text.splitlines()[0] if text else type(error).__name__
