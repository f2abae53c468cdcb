"""What an avatar becomes in a clip, as a file beside the clip's track: adapted network, codes and light of frames."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from facejax.data.checkpoints import flatten
from facejax.data.files import atomic_write
from facejax.data.heads.avatar import AVATAR, FORMAT, float32_tree, read_adapted
from facejax.geometry.records import PyTree
from facejax.models.avatar import Avatar


@dataclasses.dataclass(frozen=True, eq=False)
class Adapted:
    """An avatar in a clip."""

    avatar: Avatar
    """As it was trained."""
    params: PyTree
    """With the lighting network as it was adapted to the clip."""
    code: PyTree
    """Of the clip: empty of light, which every frame has whole."""
    frames: PyTree
    """Codes with a leading axis of frames."""
    light: Float[Array, "f g 3"]
    """Of each frame, in the rows of its lighting code."""
    about: dict[str, Any]
    """How it was fitted, such as the light model."""


def save_adapted(
    folder: Path | str,
    avatar: Avatar,
    *,
    params: PyTree,
    code: PyTree,
    frames: PyTree,
    light: Float[Array | np.ndarray, "f g 3"],
    about: dict[str, Any],
) -> None:
    """Write `avatar.npz` into a clip's folder: the avatar, its lighting network as trained and as adapted to the clip,
    every frame's code and light; whole or not at all.

    avatar: as trained, at its own scale. params, code, frames, light: as fitted, see `Adapted`; what the clip's code
    holds of light is added to that of every frame. about: how it was fitted, such as the light model.
    """
    lights = {"light_directions": avatar.light_directions, "light_group": avatar.light_group}
    held = {
        "decoder": params["decoder"],
        "lighting": params["lighting"],
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
            "code": frames.code,
            "light": sum((np.asarray(part) for part in jax.tree_util.tree_leaves(code)), np.asarray(light)),
        },
    }
    facts = {
        "format": FORMAT,
        "name": avatar.name,
        "sha256": avatar.sha256,
        "appearance": dataclasses.asdict(avatar.appearance.config),
        "network": dataclasses.asdict(avatar.network.config),
        "about": about,
    }
    with atomic_write(Path(folder) / AVATAR) as path, open(path, "wb") as file:
        np.savez(file, allow_pickle=False, facts=np.asarray(json.dumps(facts)), **flatten(held))


def load_adapted(path: Path | str) -> Adapted:
    """What `save_adapted` wrote, from `avatar.npz` or the folder with it; `InputError` for a damaged one."""
    avatar, facts, tree = read_adapted(path)
    code, frame = avatar.init_code()
    return Adapted(
        avatar=avatar,
        params={**avatar.params, "lighting": float32_tree(tree["lighting"])},
        code=code,
        frames=frame.replace(code=jnp.asarray(tree["clip"]["code"])),
        light=jnp.asarray(tree["clip"]["light"]),
        about=facts["about"],
    )
