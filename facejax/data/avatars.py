"""Avatars as files: read from a run of the recipe `deep-lighting`, and kept, as adapted to a clip, beside its track."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from facejax.data.checkpoints import MANIFEST, find_checkpoint, flatten, pinned, read_network, unflatten
from facejax.data.files import atomic_write
from facejax.data.results import Fitted
from facejax.geometry.arrays import DAMAGE, open_npz
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import SurfacePoints, Topology
from facejax.geometry.records import PyTree
from facejax.models.avatar import Avatar, AvatarClip, AvatarFrame
from facejax.models.deep_appearance import DeepAppearanceConfig, DeepAppearanceModel
from facejax.models.lighting_network import LightingNetwork, LightingNetworkConfig

AVATAR = "avatar.npz"
"""In the folder of a tracked clip: the avatar as it was adapted, the codes of every frame, and their light."""

_RECIPE = "deep-lighting"
_FORMAT = 1


def is_avatar(path: Path | str) -> bool:
    """Whether a path, or the name of a pinned checkpoint, is one that `load_avatar` takes."""
    folder = Path(path).expanduser()
    return (
        str(path) in pinned() or folder.name == AVATAR or (folder / AVATAR).is_file() or (folder / MANIFEST).is_file()
    )


def load_avatar(path: Path | str) -> Avatar:
    """The avatar of a run of `deep-lighting`, of a pinned checkpoint of one (name or folder), or of a tracked clip.

    Raises `InputError` for a run of another recipe, one that is not complete, and damaged files.
    """
    place = Path(path).expanduser()
    if place.name == AVATAR or (place / AVATAR).is_file():
        return load_adapted(place)[0]
    manifest, arrays = read_network(find_checkpoint(path))
    if manifest["recipe"] != _RECIPE:
        raise InputError(
            f"{path} is a checkpoint of {manifest['recipe']!r}, and an avatar is made by {_RECIPE!r}: train that on "
            "the same capture (facejax train deep-lighting)."
        )
    config, tree = manifest["config"], unflatten(arrays)
    return avatar_from(
        Path(find_checkpoint(path)).name,
        config["appearance"],
        config["network"],
        decoder=tree["state"]["appearance"]["params"]["decoder"],
        state=tree["state"]["appearance"]["state"],
        lighting=tree["params"]["network"],
        head=tree["state"]["head"],
    )


def avatar_from(
    name: str,
    appearance: dict[str, Any],
    network: dict[str, Any],
    *,
    decoder: PyTree,
    state: PyTree,
    lighting: PyTree,
    head: dict[str, np.ndarray],
) -> Avatar:
    """An avatar of its parts; appearance, network: configs as JSON holds them; head: mesh and landmark tables."""
    model = DeepAppearanceModel(_config(DeepAppearanceConfig, appearance))
    decoder, state, lighting = (_float32(x) for x in (decoder, state, lighting))
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
        sha256=_digest({"decoder": decoder, "state": state, "lighting": lighting}),
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


def save_adapted(folder: Path | str, avatar: Avatar, fitted: Fitted, about: dict[str, Any]) -> None:
    """Write `avatar.npz` into a clip's folder: the avatar, its lighting network as trained and as adapted to the clip,
    every frame's code and light; whole or not at all.

    about: how it was fitted, such as the light model.
    """
    lights = {"light_directions": avatar.light_directions, "light_group": avatar.light_group}
    held = {
        "decoder": fitted.params["decoder"],
        "lighting": fitted.params["lighting"],
        "trained": avatar.params["lighting"],
        "state": avatar.state,
        "head": {
            "faces": avatar.topology.faces,
            "uv": avatar.topology.uv,
            "uv_faces": avatar.topology.uv_faces,
            "landmark_triangles": avatar.landmarks478.triangles,
            "landmark_weights": avatar.landmarks478.weights,
            "eye_pivot": avatar.eye_centres,
            **{f"region_{k}": v for k, v in avatar.regions.items()},
            **({} if avatar.light_group is None else lights),
        },
        "clip": {
            "code": fitted.frames.code,
            "light": np.asarray(fitted.light),
        },
    }
    facts = {
        "format": _FORMAT,
        "name": avatar.name,
        "appearance": dataclasses.asdict(avatar.appearance.config),
        "network": dataclasses.asdict(avatar.network.config),
        "about": about,
    }
    with atomic_write(Path(folder) / AVATAR) as path, open(path, "wb") as file:
        np.savez(file, allow_pickle=False, facts=np.asarray(json.dumps(facts)), **flatten(held))


def load_adapted(path: Path | str) -> tuple[Avatar, Fitted, dict[str, Any]]:
    """(avatar as trained, fit, about) of `avatar.npz`, or of the folder with it; `InputError` for a damaged one."""
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
        number = int(facts["format"])
        parts = {k: tree[k] for k in ("decoder", "state", "head")} | {"lighting": tree["trained"]}
        adapted = _float32(tree["lighting"])
        code, light = tree["clip"]["code"], tree["clip"]["light"]
    except (*DAMAGE, TypeError, AttributeError) as error:
        raise InputError(f"{place} is not a whole avatar ({error}): track the clip again.") from error
    if number > _FORMAT:
        raise InputError(f"{place} is of format {number}, newer than this facejax reads ({_FORMAT}): upgrade facejax.")
    avatar = avatar_from(facts["name"], facts["appearance"], facts["network"], **parts)
    fitted = Fitted(
        params={**avatar.params, "lighting": adapted},
        shared=AvatarClip(),
        frames=AvatarFrame(code=jnp.zeros(code.shape[1:])).replace(code=jnp.asarray(code)),
        light=jnp.asarray(light),
    )
    return avatar, fitted, facts["about"]


def _config(kind: Any, values: dict[str, Any]) -> Any:
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except TypeError as error:
        raise InputError(f"The avatar's {kind.__name__} does not fit this facejax ({error}): upgrade it.") from error


def _float32(tree: PyTree) -> PyTree:
    if isinstance(tree, dict):
        return {k: _float32(v) for k, v in tree.items()}
    return jnp.asarray(tree, jnp.float32)


def _iris_centres(table: SurfacePoints, vertices: np.ndarray) -> np.ndarray:
    """Middles of the (left, right) iris: where a capture does not say where eyeballs turn."""
    points = np.einsum("nij,ni->nj", vertices[table.triangles], table.weights)
    return np.stack([points[473:478].mean(axis=0), points[468:473].mean(axis=0)])


def _digest(tree: PyTree) -> str:
    total = hashlib.sha256()
    for name, array in sorted(flatten(tree).items()):
        total.update(name.encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
