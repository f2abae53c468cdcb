"""The built-in head in the registry: it has a name and no file."""

import os
from collections.abc import Sequence

from facejax.geometry.errors import InputError
from facejax.models.morphable import MorphableHead

NAMES = ("generic",)


def takes(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether this is the built-in head's name."""
    return os.fspath(name_or_path) in NAMES


def load(name_or_path: str | os.PathLike[str], parts: Sequence[str] | None = None) -> MorphableHead:
    """The built-in head. Raises `InputError` if parts of it are asked for: it has one only."""
    from facejax.models.generic import generic_head

    del name_or_path
    if parts is not None:
        raise InputError("The generic head has one part only: load it without `parts`.")
    return generic_head()
