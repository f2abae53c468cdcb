"""Where a fit starts: poses in closed form from points, which frames are the key ones, and how others follow them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from facejax.fitting.footage import Footage, Look
from facejax.fitting.terms.landmarks import landmarks_of
from facejax.geometry.cameras import crop_camera
from facejax.geometry.records import Camera, Pose, PyTree
from facejax.geometry.rotations import nearest_rotation
from facejax.models.head import Encoder
from facejax.objectives.landmarks import face_radius_px
from facejax.scenes import ClipVariables, FrameVariables, Lens, Scene, Unknowns
from facejax.scenes.lighting import zero_light
from facejax.scenes.unknowns import (
    camera_of,
    on_host,
    over_frames,
    put_frames,
    repeat_frames,
    take_frames,
    variables_of,
)

_HIGHEST = jax.lax.Precision.HIGHEST
_ENCODER_MARGIN = 1.5


def first_unknowns(
    scene: Scene, footage: Footage, lens: Lens, clip_code: PyTree = None, params: PyTree = None
) -> Unknowns:
    """The mean head at rest, or what the head's own encoder guesses, posed in closed form on every frame's points.

    lens: of every frame, leading axis. clip_code: of a person who is known already.
    """
    head, count = scene.head, len(footage.points)
    code, frame_code = head.init_code()
    params = head.params if params is None else params
    clip = ClipVariables(
        code=code if clip_code is None else clip_code, light=zero_light(scene.lighting), log_zoom=jnp.zeros(())
    )
    first = take_frames(lens, 0)
    pose = variables_of(Pose(rotation=jnp.eye(3), translation=jnp.array([0.0, 0.0, 1.0])), first.camera, 1.0)
    one = FrameVariables(lens=first, pose=pose, code=frame_code, light=scene.lighting.init(), log_zoom=jnp.zeros(()))
    frames = repeat_frames(one, count).replace(lens=on_host(lens))
    unknowns = Unknowns(params=params, clip=clip, frames=frames, settled={})
    rest = scene.landmarks.head
    at_rest = rest.neutral(rest.params, clip.code)
    unknowns = unknowns.replace(frames=frames.replace(pose=pose_start(footage, unknowns, at_rest)))
    return encoded(scene, footage, unknowns) if isinstance(head, Encoder) else unknowns


def encoded(scene: Scene, footage: Footage, unknowns: Unknowns) -> Unknowns:
    """The unknowns as the head's encoder guesses them from face crops; of the clip's codes the mean."""
    head = scene.head
    assert isinstance(head, Encoder)
    look = Look(scene.size[0], _ENCODER_MARGIN)
    encode = jax.jit(head.encode)
    ids = np.flatnonzero(footage.valid)
    codes, frames = [], unknowns.frames
    for i in ids:
        box = jnp.asarray(footage.boxes(_ENCODER_MARGIN)[i])
        camera = camera_of(unknowns.clip, take_frames(unknowns.frames, int(i)))
        crop = jnp.asarray(footage.crops(np.array([i]), look)[0][0])
        guess = encode(unknowns.params, crop, crop_camera(camera, box, scene.size))
        codes.append(guess.clip)
        row = take_frames(frames, int(i)).replace(code=guess.frame)
        if guess.pose is not None:
            row = row.replace(pose=variables_of(guess.pose, camera, row.lens.reference_px))
        frames = put_frames(frames, int(i), row)
    mean = jax.tree_util.tree_map(lambda *x: jnp.mean(jnp.stack(x), axis=0), *codes)
    valid = np.asarray(footage.valid)
    frames = frames.replace(code=bridge(frames.code, valid), pose=bridge(frames.pose, valid))
    return unknowns.replace(clip=unknowns.clip.replace(code=mean), frames=frames)


def closed_form_poses(footage: Footage, points: Float[Array | np.ndarray, "*f 478 3"], cameras: Camera) -> Pose:
    """Every frame's pose from landmark points in the head frame, the same in all frames or each frame's own.

    cameras: leading axis of frames, on the host. So is what comes back.
    """
    seen = landmarks_of(footage)
    given = (np.asarray(points), seen.target, seen.weights, cameras)
    if points.ndim == 2:
        return over_frames(_pose_estimator(True), given[1:], given[0])
    return over_frames(_pose_estimator(False), given)


@functools.cache
def _pose_estimator(one_face: bool):  # type: ignore[no-untyped-def]
    return jax.jit(jax.vmap(pose_from_landmarks, in_axes=(None if one_face else 0, 0, 0, 0)))


def pose_start(footage: Footage, unknowns: Unknowns, points: Float[Array | np.ndarray, "*f 478 3"]) -> PyTree:
    """`PoseVariables` of all frames from landmark points in the head frame; frames without a face are bridged."""
    cameras = over_frames(_cameras(), (unknowns.frames,), unknowns.clip)
    poses = closed_form_poses(footage, points, cameras)
    variables = over_frames(_as_variables(), (poses, cameras, unknowns.frames.lens.reference_px))
    return bridge(variables, np.asarray(footage.valid))


@functools.cache
def _cameras():  # type: ignore[no-untyped-def]
    return jax.jit(jax.vmap(camera_of, in_axes=(None, 0)))


@functools.cache
def _as_variables():  # type: ignore[no-untyped-def]
    return jax.jit(jax.vmap(variables_of))


def likeness(scene: Scene, footage: Footage, lens: Lens) -> Float[np.ndarray, "f 6"]:
    """What tells frames apart before anything is fitted: head pose, and how open mouth and eyes are."""
    head = scene.landmarks.head
    at_rest = head.neutral(head.params, head.init_code()[0])
    rotation = closed_form_poses(footage, at_rest, lens.camera).rotation
    points = footage.points
    radius = face_radius_px(np.nan_to_num(points))[:, None]
    mouth = np.linalg.norm(points[:, 13] - points[:, 14], axis=1, keepdims=True) / np.maximum(radius, 1)
    lids = np.linalg.norm(points[:, [159, 386]] - points[:, [145, 374]], axis=2) / np.maximum(radius, 1)
    return np.nan_to_num(np.concatenate([rotation[:, 2], 0.8 * mouth, 0.8 * lids], axis=1))


def spread_from_keys(
    scene: Scene, footage: Footage, unknowns: Unknowns, ids: np.ndarray, alike: Float[np.ndarray, "f d"]
) -> Unknowns:
    """Start every other frame from the expression of the key frame most like it, its pose solved for that face."""
    distance = np.linalg.norm(alike[:, None] - alike[ids], axis=2)
    frames = unknowns.frames
    code = take_frames(frames.code, ids[distance.argmin(axis=1)])
    points = over_frames(_frame_points(scene), (code,), scene.landmarks.head.params, unknowns.clip.code)
    pose = pose_start(footage, unknowns, points)
    pose = put_frames(pose, ids, take_frames(frames.pose, ids))
    return unknowns.replace(frames=frames.replace(code=on_host(code), pose=pose))


@functools.lru_cache(maxsize=16)
def _frame_points(scene: Scene):  # type: ignore[no-untyped-def]
    return jax.jit(jax.vmap(scene.landmarks.head.vertices, in_axes=(None, None, 0)))


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


def bridge(tree: PyTree, valid: np.ndarray) -> PyTree:
    """Rows of frames without a face, interpolated linearly between the nearest with one; rotations made proper
    again."""
    if valid.all():
        return jax.tree_util.tree_map(lambda x: np.array(x), tree)
    good, bad = np.flatnonzero(valid), np.flatnonzero(~valid)

    def fill(x: np.ndarray) -> np.ndarray:
        x = np.array(x)
        flat = x.reshape(len(x), -1)
        for column in range(flat.shape[1]):
            flat[bad, column] = np.interp(bad, good, flat[good, column])
        if x.shape[1:] == (3, 3):
            x[bad] = np.asarray(jax.vmap(nearest_rotation)(jnp.asarray(x[bad])))
        return x

    return jax.tree_util.tree_map(fill, tree)
