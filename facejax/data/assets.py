"""What facejax uses but does not ship: downloaded, or taken from a copy at hand, checked by sha256, kept in one folder."""

import hashlib
import os
from pathlib import Path

from facejax.data import ict
from facejax.geometry.errors import InputError

_TABLES = Path(__file__).parent / "tables"
CONVERSION_VERSION = 1
"""Raised when the conversion of a distribution to a head file changes, so that stale files are not read."""


def home() -> Path:
    """The folder of installed assets: `FACEJAX_HOME`, else the platform's cache folder."""
    if folder := os.environ.get("FACEJAX_HOME"):
        return Path(folder).expanduser()
    import pooch

    return Path(pooch.os_cache("facejax"))


def _facekit_file() -> Path:
    digest = hashlib.sha256(f"{CONVERSION_VERSION}\n{ict.COMMIT}".encode()).hexdigest()[:16]
    return home() / "ict-facekit" / f"{digest}.npz"


def asset_path(name: str) -> Path:
    """Where an installed asset lies. Raises `InputError` that says how to install it."""
    path = {"ict-facekit": _facekit_file}[name]()
    if not path.is_file():
        raise InputError(
            f"{name} is not installed: run `facejax assets install {name}`, "
            f"or `facejax assets install {name} --from PATH` with a copy that you have."
        )
    return path
