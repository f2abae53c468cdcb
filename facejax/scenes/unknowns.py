"""The unknowns of a scene: what a clip shares, what each frame has, and how poses are parametrised for an optimiser."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from facejax.geometry.records import Camera, Pose, PyTree, Record, record
from facejax.geometry.rotations import rotvec_to_matrix

_HIGHEST = jax.lax.Precision.HIGHEST


@record
class Lens(Record):
    """What a frame was taken with, as far as it is known before a fit: constants."""

    camera: Camera
    """In pixels of the frame; its focal length is a guess where a zoom is solved for."""
    reference_px: Float[Array, ""]
    """Typical radius of the face in pixels: the unit of `PoseVariables`."""


@record
class PoseVariables(Record):
    """A head pose that an optimiser moves well: its coordinates barely interact, none depends on the focal length."""

    base: Float[Array, "3 3"]
    """Rotation that `turn` starts from; constant."""
    turn: Float[Array, "3"]
    """Axis-angle (rad) applied after `base`, camera frame."""
    anchor: Float[Array, "2"]
    """Where the head's origin projects, minus the principal point, over `reference_px`."""
    log_scale: Float[Array, ""]
    """Log of focal length over depth of the head's origin (px per metre), over `reference_px`."""


@record
class ClipVariables(Record):
    """What is one for a whole clip, or for all photos of a person."""

    code: PyTree
    """The head's clip code."""
    light: PyTree
    """Light in every frame, in the terms of the scene's lighting, camera frame."""
    log_zoom: Float[Array, ""]
    """Log of the focal length over the lens's guess."""


@record
class FrameVariables(Record):
    """What each frame has for itself; the frames of a clip are one record of arrays with a leading axis."""

    lens: Lens
    pose: PoseVariables
    code: PyTree
    """The head's frame code."""
    light: PyTree
    """Light that is added to the clip's."""
    log_zoom: Float[Array, ""]
    """Added to the clip's: photos have a focal length each."""


@record
class Unknowns(Record):
    """All that a fit may move, and what it settles in closed form."""

    params: PyTree
    """The head's, and with them the weights of its lighting network."""
    clip: ClipVariables
    frames: FrameVariables
    """On the host, a leading axis of frames."""
    settled: PyTree
    """What terms solved in closed form, by name, such as the colours of points on the skin."""


def pose_of(variables: PoseVariables, camera: Camera, reference_px: Float[ArrayLike, ""] | float) -> Pose:
    """The rigid motion that `PoseVariables` stand for under a camera."""
    rotation = jnp.matmul(rotvec_to_matrix(variables.turn), variables.base, precision=_HIGHEST)
    depth = camera.focal[0] / (jnp.exp(variables.log_scale) * reference_px)
    offset = variables.anchor * reference_px / camera.focal * depth
    return Pose(rotation=rotation, translation=jnp.append(offset, depth))


def variables_of(pose: Pose, camera: Camera, reference_px: Float[ArrayLike, ""] | float) -> PoseVariables:
    """Inverse of `pose_of`, with `turn` zero."""
    depth = pose.translation[2]
    return PoseVariables(
        base=pose.rotation,
        turn=jnp.zeros(3),
        anchor=pose.translation[:2] / depth * camera.focal / reference_px,
        log_scale=jnp.log(camera.focal[0] / depth / reference_px),
    )


def camera_of(clip: ClipVariables, frame: FrameVariables) -> Camera:
    """A frame's camera with the focal length that is being solved for; aspect and principal point are kept."""
    camera = frame.lens.camera
    return camera.replace(focal=camera.focal * jnp.exp(clip.log_zoom + frame.log_zoom))


def placed(clip: ClipVariables, frame: FrameVariables) -> tuple[Pose, Camera]:
    """(where the head is, the camera that sees it) in a frame."""
    camera = camera_of(clip, frame)
    return pose_of(frame.pose, camera, frame.lens.reference_px), camera


def light_in(clip: ClipVariables, frame: FrameVariables) -> PyTree:
    """The light of a frame: the clip's and its own."""
    return jax.tree_util.tree_map(jnp.add, clip.light, frame.light)


def take_frames(tree: PyTree, ids: Any) -> PyTree:
    """Rows of every leaf: some frames of a batch, or one without its axis."""
    return jax.tree_util.tree_map(lambda x: x[ids], tree)


def put_frames(tree: PyTree, ids: np.ndarray | int, values: PyTree) -> PyTree:
    """A copy of host arrays with these rows written."""

    def put(target: np.ndarray, value: Any) -> np.ndarray:
        copy = np.array(target)
        copy[ids] = np.asarray(value)
        return copy

    return jax.tree_util.tree_map(put, tree, values)


AT_ONCE = 64
"""Frames that `over_frames` takes at once."""


def over_frames(one: Callable[..., PyTree], frames: tuple[PyTree, ...], *shared: PyTree) -> PyTree:
    """A compiled function of frames, (shared..., frames...) -> a record of them, applied to all frames of a clip.

    frames: trees on the host with a leading axis. They are taken `AT_ONCE` at a time, the last of them repeated, so
    that a clip of another length compiles nothing; what comes back is on the host too.
    """
    count = len(jax.tree_util.tree_leaves(frames)[0])
    parts = []
    for start in range(0, count, AT_ONCE):
        rows = np.minimum(np.arange(start, start + AT_ONCE), count - 1)
        found = one(*shared, *take_frames(frames, rows))
        parts.append(jax.tree_util.tree_map(lambda x: np.asarray(x)[: count - start], found))  # noqa: B023
    return jax.tree_util.tree_map(lambda *x: np.concatenate(x), *parts)


def on_host(tree: PyTree) -> PyTree:
    """Every leaf as a numpy array of its own."""
    return jax.tree_util.tree_map(np.array, tree)


def repeat_frames(tree: PyTree, count: int) -> PyTree:
    """One frame's record as `count` equal ones on the host."""
    return jax.tree_util.tree_map(lambda x: np.broadcast_to(x, (count, *np.shape(x))).copy(), tree)


def path_name(path: tuple) -> str:
    """A key path as dotted names, e.g. `frame.pose.turn`."""
    return ".".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def leaf_at(tree: PyTree, name: str) -> Any:
    """The leaf with this dotted path."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if path_name(path) == name:
            return leaf
    raise KeyError(name)


def with_leaf(tree: PyTree, name: str, value: Any) -> PyTree:
    """The same tree with another value at this dotted path."""
    leaf_at(tree, name)
    return jax.tree_util.tree_map_with_path(lambda p, x: value if path_name(p) == name else x, tree)
