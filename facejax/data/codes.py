"""A head's own codes: as flat arrays with names, for files, and decoded to vertices, for many frames at once."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Float32

from facejax.geometry.errors import InputError
from facejax.geometry.records import PyTree
from facejax.geometry.rotations import rotate
from facejax.models.head import HeadModel
from facejax.scenes.unknowns import take_frames

CLIP_CODE, FRAME_CODE = "code.clip", "code.frame"
"""What the names of a code's arrays start with in the file; the path in the head's own code follows."""

AT_ONCE = 16
"""Frames that are decoded together: more of a full head do not fit into a processor's cache."""


def flatten_code(code: PyTree, prefix: str) -> dict[str, np.ndarray]:
    """A code's arrays by name, `code.clip.shape`; none for an empty code."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(code)
    return {_name(prefix, path): np.asarray(leaf) for path, leaf in leaves}


def unflatten_code(like: PyTree, arrays: Mapping[str, np.ndarray], prefix: str) -> PyTree:
    """The code that `flatten_code` took apart, in the shape of `like`; `InputError` where an array is missing."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [_name(prefix, path) for path, _ in leaves]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InputError(
            f"The result has no `{missing[0]}`, which its head's code has in this facejax: track the clip again."
        )
    return jax.tree_util.tree_unflatten(structure, [arrays[name] for name in names])


def _name(prefix: str, path: tuple[Any, ...]) -> str:
    return ".".join([prefix, *(jax.tree_util.keystr((key,), simple=True) for key in path)])


def decoded_vertices(
    head: HeadModel,
    params: PyTree,
    clip: PyTree,
    frames: PyTree,
    count: int,
    pose: tuple[Float[np.ndarray, "f 3 3"], Float[np.ndarray, "f 3"]] | None = None,
) -> Float32[np.ndarray, "f v 3"]:
    """`HeadModel.vertices` of `count` frames, metres: in the head frame, or in the camera frame of their poses.

    frames: codes with a leading axis of frames. pose: (rotations, translations).
    """
    rotation, translation = pose or (np.broadcast_to(np.eye(3, dtype=np.float32), (count, 3, 3)), np.zeros((count, 3)))
    decode, size = _vertices_of(head), 1 if count == 1 else AT_ONCE
    result = np.empty((count, head.topology.n_vertices, 3), dtype=np.float32)
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)  # always as many, so that it compiles once
        vertices = decode(params, clip, take_frames(frames, rows), rotation[rows], translation[rows])
        result[start : start + size] = np.asarray(vertices)[: count - start]
    return result


@functools.lru_cache(maxsize=4)
def _vertices_of(head: HeadModel) -> Callable[..., Array]:
    """(params, clip, frames, rotations, translations) -> (n, v, 3), compiled once per head and number of frames."""

    def one(params: PyTree, clip: PyTree, frame: PyTree, rotation: Array, translation: Array) -> Array:
        return rotate(head.vertices(params, clip, frame), rotation) + translation

    return jax.jit(jax.vmap(one, in_axes=(None, None, 0, 0, 0)))
