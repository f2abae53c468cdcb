"""Heads by name or path: the one registry. Each file beside this one knows one kind of head's name or files.

A kind of head is a module with `NAMES` (built-in names), `takes(name_or_path)` and `load(name_or_path, parts)`. Other
packages add heads of theirs without touching this one, by an entry point of the group `facejax.heads`:

    [project.entry-points."facejax.heads"]
    flame = "my_package:load_flame"     # called with what follows "flame:", or with "flame" alone; returns a HeadModel

which `load_head("flame")` and `load_head("flame:folder/of/files")` then find. Only installed packages are imported.
"""

import difflib
import importlib.metadata
import os
from collections.abc import Sequence
from typing import Any

from facejax.data.checkpoints import pinned
from facejax.data.heads import avatar, generic, ict_facekit, model_file
from facejax.data.heads.avatar import is_avatar as is_avatar
from facejax.data.heads.avatar import load_avatar as load_avatar
from facejax.geometry.errors import InputError
from facejax.models.head import HeadModel
from facejax.models.morphable import MorphableHead

GROUP = "facejax.heads"
"""The group of entry points by which other packages add heads."""

_KINDS: tuple[Any, ...] = (generic, avatar, ict_facekit, model_file)  # the first that takes a name or path loads it
MODELS: tuple[str, ...] = tuple(name for kind in _KINDS for name in kind.NAMES)
"""Names of the heads that come with the package, or that it installs."""


def load_head(name_or_path: str | os.PathLike[str], parts: Sequence[str] | None = None) -> HeadModel:
    """The head with this name or in this file or folder.

    name_or_path: one of `MODELS`; a converted `.npz` or an ICT-FaceKit `FaceXModel` folder; an avatar: a run of the
        recipe `deep-lighting`, a pinned checkpoint (name or folder), or the folder of a clip tracked with one; or
        what an installed package adds, see above.
    parts: meshes of the head (see `facejax.data.heads.model_file.select_parts`), None for those meant for tracking.

    Raises `InputError` for an unknown name, a model that is not installed, or a file that is not a head.
    """
    for kind in _KINDS:
        if kind.takes(name_or_path):
            return kind.load(name_or_path, parts)
    name, _, rest = os.fspath(name_or_path).partition(":")
    plugins = {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}
    if name not in plugins:
        raise _unknown(os.fspath(name_or_path), (*MODELS, *plugins))
    if parts is not None:
        raise InputError(f"The head {name!r} of another package is loaded whole: leave `parts` out.")
    head = plugins[name].load()(rest or name)
    if not isinstance(head, HeadModel):
        raise InputError(
            f"The head {name!r} of {plugins[name].value} must be a HeadModel, and is a {type(head).__name__}: tell the "
            "package's authors."
        )
    return head


def load_model(name_or_path: str | os.PathLike[str], parts: Sequence[str] | None = None) -> HeadModel:
    """The same as `load_head`, under its older name."""
    return load_head(name_or_path, parts)


def load_morphable(name_or_path: str | os.PathLike[str], parts: Sequence[str] | None = None) -> MorphableHead:
    """As `load_head`, where only a linear head will do; `InputError` for another."""
    head = load_head(name_or_path, parts)
    if not isinstance(head, MorphableHead):
        raise InputError(
            f"{os.fspath(name_or_path)} is no morphable head but of type {type(head).__name__}: give "
            f"{' or '.join(MODELS)}."
        )
    return head


def resolve_head(head: Any) -> HeadModel:
    """A head as it was given to a function: its name or path, or the head itself. `InputError` for anything else."""
    if isinstance(head, str | os.PathLike):
        return load_head(head)
    if isinstance(head, HeadModel):
        return head
    raise InputError(
        f"A head is a name ({', '.join(MODELS)}), a file or folder, or what `load_head` returned, and a "
        f"{type(head).__name__} was given: pass the head itself, not its `params`."
    )


def _unknown(name: str, names: Sequence[str]) -> InputError:
    near = difflib.get_close_matches(name.lower(), (*names, *pinned()), n=1)
    meant = f" (did you mean {near[0]}?)" if near else ""
    return InputError(
        f"No model named {name!r}, nor a file or folder of that path{meant}: give {' or '.join(names)} (ict-facekit is "
        "installed by `facejax assets install ict-facekit`), or the path of a converted .npz, of ICT-FaceKit's "
        "FaceXModel folder, or of an avatar."
    )
