"""Where a long fit can go on: finished landmarks, stages and windows, on disk, tied to the input they came from."""

import dataclasses
import functools
import hashlib
import inspect
import os
import shutil
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import facejax
from facejax.data.files import atomic_write
from facejax.data.video import Masks, Video
from facejax.geometry.arrays import DAMAGE, open_npz
from facejax.geometry.errors import InputError
from facejax.geometry.records import PyTree


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A folder of small `.npz` files, each written whole. Entries of another fingerprint are never read."""

    folder: Path
    fingerprint: str

    def save(self, name: str, tree: PyTree, **numbers: Any) -> None:
        """Keep the leaves of `tree` and some numbers under `name`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {f"leaf{i}": np.asarray(x) for i, x in enumerate(jax.tree_util.tree_leaves(tree))}
        arrays |= {f"number_{k}": np.asarray(v) for k, v in numbers.items()}
        with atomic_write(self.folder / f"{name}.npz") as temporary, open(temporary, "wb") as file:
            np.savez(file, fingerprint=np.asarray(self.fingerprint), **arrays)

    def load(self, name: str, like: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
        """What was kept under `name`, with the structure of `like`; None if there is none for this very input."""
        path = self.folder / f"{name}.npz"
        try:
            with open_npz(path) as file:
                if str(file["fingerprint"]) != self.fingerprint:
                    return None
                leaves, structure = jax.tree_util.tree_flatten(like)
                values = [file[f"leaf{i}"] for i in range(len(leaves))]
                numbers = {k[7:]: file[k] for k in file.files if k.startswith("number_")}
        except DAMAGE:
            return None
        return jax.tree_util.tree_unflatten(structure, values), numbers

    def discard(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)


def fingerprint(*facts: Any, **named: Any) -> str:
    """A short digest of the content of everything that decides a result, and of this version of facejax.

    Arrays count by dtype, shape and bytes; files by path, size and time of change, folders by all their files; records,
    collections and functions by their parts. Raises `InputError` for a thing whose content cannot be told.
    """
    digest = hashlib.sha256(facejax.__version__.encode())
    _add(digest, facts)
    _add(digest, named)
    return digest.hexdigest()[:24]


def _add(digest: Any, fact: Any) -> None:
    digest.update(f"<{type(fact).__module__}.{type(fact).__qualname__}>".encode())
    if fact is None or isinstance(fact, (bool, int, float, complex, bytes)):
        digest.update(repr(fact).encode())
    elif isinstance(fact, (str, os.PathLike)):
        digest.update(str(fact).encode())
        _add_files(digest, Path(fact))
    elif isinstance(fact, (np.ndarray, np.generic, jax.Array)):
        array = np.asarray(fact)
        digest.update(f"{array.dtype} {array.shape}".encode())
        if array.dtype.hasobject:
            _add(digest, array.tolist())
        else:
            digest.update(np.ascontiguousarray(array).data if array.size else b"")
    elif isinstance(fact, Video):
        _add_video(digest, fact)
    elif isinstance(fact, Masks):
        for path in fact.paths:
            _add_files(digest, Path(path))
    elif isinstance(getattr(fact, "sha256", None), str):  # heads
        digest.update(fact.sha256.encode())
    elif isinstance(fact, Mapping):
        _add(digest, sorted(map(str, fact)))
        for key in sorted(fact, key=str):
            _add(digest, fact[key])
    elif isinstance(fact, (tuple, list, set, frozenset)):
        for item in sorted(fact, key=repr) if isinstance(fact, (set, frozenset)) else fact:
            _add(digest, item)
        digest.update(f"<{len(fact)}>".encode())
    elif dataclasses.is_dataclass(fact) and not isinstance(fact, type):
        for field in dataclasses.fields(fact):
            digest.update(field.name.encode())
            _add(digest, getattr(fact, field.name))
    elif hasattr(fact, "__wrapped__"):  # by jax.jit, functools or a type checker
        _add(digest, inspect.unwrap(fact))
    elif isinstance(fact, functools.partial):
        _add(digest, (fact.func, fact.args, fact.keywords))
    elif isinstance(fact, types.FunctionType):
        digest.update(f"{fact.__module__}.{fact.__qualname__}".encode())
        _add_code(digest, fact.__code__)
        for cell in fact.__closure__ or ():
            _add(digest, cell.cell_contents)
    else:
        raise InputError(
            f"What a {type(fact).__name__} holds cannot be told from one run to the next: leave `checkpoint` out."
        )


def _add_code(digest: Any, code: types.CodeType) -> None:
    """A function's instructions and constants, those of functions within it too."""
    digest.update(code.co_code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _add_code(digest, constant)
        else:
            digest.update(repr(constant).encode())


def _add_files(digest: Any, path: Path) -> None:
    """A file as it is now, or every file of a folder; nothing where there is none of that name."""
    path = path.expanduser()
    if not path.exists():
        return
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        facts = file.stat()
        digest.update(f"{file} {facts.st_size} {facts.st_mtime_ns}".encode())


def _add_video(digest: Any, clip: Video) -> None:
    digest.update(f"{clip.first} {clip.n_frames} {clip.size}".encode())
    if clip.path is not None:
        _add(digest, Path(clip.path))
        return
    for frame in clip.frames():  # an array
        digest.update(np.ascontiguousarray(frame).data)
