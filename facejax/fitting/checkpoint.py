"""Where a long fit can go on: finished landmarks, stages and windows, on disk, tied to the input they came from."""

import dataclasses
import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from facejax.data.files import atomic_write
from facejax.geometry.arrays import open_npz
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
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
            return None
        return jax.tree_util.tree_unflatten(structure, values), numbers

    def discard(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)


def fingerprint(**facts: Any) -> str:
    """A short digest of everything that decides a result."""
    text = json.dumps({k: repr(v) for k, v in facts.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
