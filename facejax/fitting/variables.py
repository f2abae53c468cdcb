"""The unknowns of a fit: what a clip shares, what each frame has, and how poses are parametrised for an optimiser."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from facejax.geometry.records import Camera, Pose, PyTree, Record, record
from facejax.geometry.rotations import nearest_rotation, rotvec_to_matrix

_HIGHEST = jax.lax.Precision.HIGHEST


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
    """What is one for a whole clip."""

    code: PyTree
    """The head's shared code."""
    log_focal: Float[Array, ""]
    """Log of the focal length in px of the input video."""


@record
class FrameVariables(Record):
    """What each frame has for itself."""

    pose: PoseVariables
    code: PyTree
    """The head's per-frame code."""
    light: Float[Array | np.ndarray, "*frames b 3"]
    """Spherical harmonics, camera frame; on the host, those of all frames of a clip as one numpy array."""


def pose_of(variables: PoseVariables, camera: Camera, reference_px: float | Float[Array, ""]) -> Pose:
    """The rigid motion that `PoseVariables` stand for under a camera."""
    rotation = jnp.matmul(rotvec_to_matrix(variables.turn), variables.base, precision=_HIGHEST)
    depth = camera.focal[0] / (jnp.exp(variables.log_scale) * reference_px)
    offset = variables.anchor * reference_px / camera.focal * depth
    return Pose(rotation=rotation, translation=jnp.append(offset, depth))


def variables_of(pose: Pose, camera: Camera, reference_px: float) -> PoseVariables:
    """Inverse of `pose_of`, with `turn` zero."""
    depth = pose.translation[2]
    return PoseVariables(
        base=pose.rotation,
        turn=jnp.zeros(3),
        anchor=pose.translation[:2] / depth * camera.focal / reference_px,
        log_scale=jnp.log(camera.focal[0] / depth / reference_px),
    )


def pose_from_landmarks(
    points: Float[Array, "n 3"],
    pixels: Float[Array, "n 2"],
    weights: Float[Array, "n"],
    camera: Camera,
    *,
    rounds: int = 6,
) -> Pose:
    """Pose from points on a head and where they are seen: weighted scaled orthography, then perspective.

    points: head frame, metres. Each round multiplies the pixels by the points' depth relative to the origin's and
    solves the linear problem again (POSIT, DeMenthon and Davis 1995).
    """
    total = jnp.maximum(jnp.sum(weights), 1e-6)
    centre_3d = jnp.sum(weights[:, None] * points, axis=0) / total
    x = points - centre_3d
    moments = jnp.matmul((weights[:, None] * x).T, x, precision=_HIGHEST) + 1e-9 * jnp.eye(3)
    rays = (pixels - camera.principal_point) / camera.focal

    def solve(relative_depth: Array) -> Pose:
        seen = rays * relative_depth[:, None]
        centre = jnp.sum(weights[:, None] * seen, axis=0) / total
        affine = jnp.linalg.solve(moments, jnp.matmul((weights[:, None] * x).T, seen - centre, precision=_HIGHEST)).T
        scale = jnp.sqrt(jnp.maximum(jnp.linalg.norm(affine[0]) * jnp.linalg.norm(affine[1]), 1e-12))  # 1 / depth
        third = jnp.cross(affine[0], affine[1]) / scale
        rotation = nearest_rotation(jnp.concatenate([affine, third[None]], axis=0) / scale)
        return Pose(rotation=rotation, translation=jnp.append(centre, 1.0) / scale)

    def improve(_: Array, pose: Pose) -> Pose:
        return solve(1 + jnp.matmul(x, pose.rotation[2], precision=_HIGHEST) / pose.translation[2])

    pose = jax.lax.fori_loop(0, rounds, improve, solve(jnp.ones(len(points))))
    return pose.replace(translation=pose.translation - jnp.matmul(pose.rotation, centre_3d, precision=_HIGHEST))


def spread_frames(features: np.ndarray, count: int) -> np.ndarray:
    """Sorted ids of `count` rows far apart from each other (greedy farthest points, from the most typical row)."""
    features = np.asarray(features, dtype=np.float64)
    chosen = [int(np.argmin(np.linalg.norm(features - np.median(features, axis=0), axis=1)))]
    distance = np.linalg.norm(features - features[chosen[0]], axis=1)
    while len(chosen) < min(count, len(features)):
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, np.linalg.norm(features - features[chosen[-1]], axis=1))
    return np.unique(chosen)


def take_frames(tree: PyTree, ids: Any) -> PyTree:
    """Rows of every leaf: some frames of a batch, or one without its axis."""
    return jax.tree_util.tree_map(lambda x: x[ids], tree)


def put_frames(tree: PyTree, ids: np.ndarray, values: PyTree) -> None:
    """Write rows into host arrays in place."""
    for target, value in zip(jax.tree_util.tree_leaves(tree), jax.tree_util.tree_leaves(values), strict=True):
        target[ids] = np.asarray(value)
