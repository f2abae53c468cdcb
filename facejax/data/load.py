"""`load_model`: a head by its name or from its file."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from facejax.data.assets import asset_path
from facejax.data.ict import convert_facekit, facekit_head
from facejax.data.model_file import read_head
from facejax.geometry.errors import InputError
from facejax.models.morphable import MorphableHead

MODELS = ("generic", "ict-facekit")
"""Names that `load_model` knows."""


def load_model(name_or_path: str | Path, parts: Sequence[str] | None = None) -> MorphableHead:
    """The head with this name (`MODELS`), in a converted `.npz`, or in an ICT-FaceKit `FaceXModel` folder.

    `parts` picks meshes of the head (see `facejax.data.model_file.select_parts`), None those meant for tracking. Raises
    `InputError` for an unknown name, a model that is not installed, or a file that is not a head.
    """
    name = str(name_or_path)
    if name == "generic":
        from facejax.models.generic import generic_head

        if parts is not None:
            raise InputError("The generic head has one part only: load it without `parts`.")
        return generic_head()
    if name == "ict-facekit":
        return read_head(asset_path(name), parts)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not (path / "generic_neutral_mesh.obj").is_file() and (path / "FaceXModel").is_dir():
            path = path / "FaceXModel"
        return facekit_head(convert_facekit(path), parts)
    if path.is_file():
        return read_head(path, parts)
    near = difflib.get_close_matches(name.lower(), MODELS, n=1)
    meant = f" (did you mean {near[0]}?)" if near else ""
    raise InputError(
        f"No model named {name!r}, nor a file or folder of that path{meant}: give {' or '.join(MODELS)} (installed by "
        "`facejax assets install ict-facekit`), or the path of a converted .npz or of ICT-FaceKit's FaceXModel folder."
    )
