"""Avatars as heads in files: a run of the recipe `deep-lighting`, a pinned checkpoint of one, or beside a clip's track.

`facejax.data.avatars` writes the latter, and reads what a clip adds to it.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from facejax.data.checkpoints import MANIFEST, arrays_sha256, find_checkpoint, flatten, pinned, read_network, unflatten
from facejax.geometry.arrays import DAMAGE, open_npz
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import SurfacePoints, Topology
from facejax.geometry.records import PyTree
from facejax.models.avatar import Avatar
from facejax.models.deep_appearance import DeepAppearanceConfig, DeepAppearanceModel
from facejax.models.lighting_network import LightingNetwork, LightingNetworkConfig

NAMES = ()
AVATAR = "avatar.npz"
"""In the folder of a tracked clip: the avatar as it was adapted, the codes of every frame, and their light."""
FORMAT = 1
"""Of that file."""

_RECIPE = "deep-lighting"


def is_avatar(path: str | os.PathLike[str]) -> bool:
    """Whether a path, or the name of a pinned checkpoint, is one that `load_avatar` takes."""
    folder = Path(path).expanduser()
    return (
        os.fspath(path) in pinned()
        or folder.name == AVATAR
        or (folder / AVATAR).is_file()
        or (folder / MANIFEST).is_file()
    )


takes = is_avatar


def load(path: str | os.PathLike[str], parts: Sequence[str] | None = None) -> Avatar:
    """As `load_avatar`; `InputError` if parts of it are asked for: it has one only."""
    if parts is not None:
        raise InputError("An avatar has one part only: load it without `parts`.")
    return load_avatar(path)


def load_avatar(path: str | os.PathLike[str]) -> Avatar:
    """The avatar of a run of `deep-lighting`, of a pinned checkpoint of one (name or folder), or of a tracked clip.

    Raises `InputError` for a run of another recipe, one that is not complete, and damaged files.
    """
    place = Path(path).expanduser()
    if place.name == AVATAR or (place / AVATAR).is_file():
        return read_adapted(place)[0]
    folder = Path(find_checkpoint(os.fspath(path)))
    manifest, arrays = read_network(folder)
    if manifest["recipe"] != _RECIPE:
        raise InputError(
            f"{path} is a checkpoint of {manifest['recipe']!r}, and an avatar is made by {_RECIPE!r}: train that on "
            "the same capture (facejax train deep-lighting)."
        )
    config, tree = manifest["config"], unflatten(arrays)
    avatar = avatar_from(
        folder.name,
        config["appearance"],
        config["network"],
        decoder=tree["state"]["appearance"]["params"]["decoder"],
        state=tree["state"]["appearance"]["state"],
        lighting=tree["params"]["network"],
        head=tree["state"]["head"],
    )
    return dataclasses.replace(avatar, source=str(folder.resolve()))


def read_adapted(path: str | os.PathLike[str]) -> tuple[Avatar, dict[str, Any], PyTree]:
    """(avatar as trained, facts, all arrays) of `avatar.npz`, or of the folder with it; `InputError` for a damaged one.

    Facts say the format and how the clip was fitted. Among the arrays are "lighting", the network as it was adapted,
    and "clip", the codes and lights of the frames.
    """
    place = Path(path).expanduser()
    place = place / AVATAR if place.is_dir() else place
    if not place.is_file():
        raise InputError(
            f"{place.parent} holds no {AVATAR}: track a clip with an avatar first (facejax track --model)."
        )
    try:
        with open_npz(place) as file:
            facts = json.loads(str(file["facts"]))
            tree = unflatten({k: file[k] for k in file.files if k != "facts"})
        number, name, about = int(facts["format"]), facts["name"], facts["about"]
        parts = {k: tree[k] for k in ("decoder", "state", "head")} | {"lighting": tree["trained"]}
        tree["lighting"], tree["clip"]["code"], tree["clip"]["light"], about.items()
    except (*DAMAGE, TypeError, AttributeError) as error:
        raise InputError(f"{place} is not a whole avatar ({error}): track the clip again.") from error
    if number > FORMAT:
        raise InputError(f"{place} is of format {number}, newer than this facejax reads ({FORMAT}): upgrade facejax.")
    avatar = avatar_from(name, facts["appearance"], facts["network"], sha256=facts.get("sha256"), **parts)
    return dataclasses.replace(avatar, source=str(place.parent.resolve())), facts, tree


def avatar_from(
    name: str,
    appearance: dict[str, Any],
    network: dict[str, Any],
    *,
    decoder: PyTree,
    state: PyTree,
    lighting: PyTree,
    head: dict[str, np.ndarray],
    sha256: str | None = None,
) -> Avatar:
    """An avatar of its parts; appearance, network: configs as JSON holds them; head: mesh and landmark tables.

    sha256: of the avatar, None to take that of its arrays.
    """
    model = DeepAppearanceModel(_config(DeepAppearanceConfig, appearance))
    decoder, state, lighting = (float32_tree(x) for x in (decoder, state, lighting))
    mean, basis = model.linear_mesh({"decoder": decoder}, state)
    topology = Topology(
        faces=np.asarray(head["faces"], np.int32),
        uv=np.asarray(head["uv"], np.float32),
        uv_faces=np.asarray(head["uv_faces"], np.int32),
        n_vertices=len(mean),
    )
    table = SurfacePoints(
        np.asarray(head["landmark_triangles"], np.int32), np.asarray(head["landmark_weights"], np.float32)
    )
    centres = head["eye_pivot"] if "eye_pivot" in head else _iris_centres(table, np.asarray(mean))
    return Avatar(
        name=name,
        sha256=sha256 or arrays_sha256(flatten({"decoder": decoder, "state": state, "lighting": lighting})),
        appearance=model,
        network=LightingNetwork(_config(LightingNetworkConfig, network)),
        params={"decoder": decoder, "lighting": lighting, "mesh": {"mean": mean, "basis": basis}},
        state=state,
        topology=topology,
        landmarks478=table,
        regions={k.removeprefix("region_"): np.asarray(v) for k, v in head.items() if k.startswith("region_")},
        eye_centres=np.asarray(centres, np.float32),
        light_directions=head.get("light_directions"),
        light_group=head.get("light_group"),
    )


def _config(kind: Any, values: dict[str, Any]) -> Any:
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except TypeError as error:
        raise InputError(f"The avatar's {kind.__name__} does not fit this facejax ({error}): upgrade it.") from error


def float32_tree(tree: PyTree) -> PyTree:
    """Nested dicts of arrays on the device, in single precision."""
    if isinstance(tree, dict):
        return {k: float32_tree(v) for k, v in tree.items()}
    return jnp.asarray(tree, jnp.float32)


def _iris_centres(table: SurfacePoints, vertices: np.ndarray) -> np.ndarray:
    """Middles of the (left, right) iris: where a capture does not say where eyeballs turn."""
    points = np.einsum("nij,ni->nj", vertices[table.triangles], table.weights)
    return np.stack([points[473:478].mean(axis=0), points[468:473].mean(axis=0)])
