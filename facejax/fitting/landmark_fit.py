"""The landmark objective: pose, expression and identity from where points were seen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from facejax.fitting.config import FitConfig
from facejax.fitting.variables import ClipVariables, FrameVariables, pose_of
from facejax.geometry.cameras import project, to_camera_frame
from facejax.geometry.records import Camera, PyTree, Record, record
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.models import landmark_names as names
from facejax.objectives.landmarks import FACE_RADIUS_MM, closure_loss, face_radius_px, landmark_loss
from facejax.objectives.temporal import robust_acceleration

CLOSURE_PAIRS = np.array([*names.LIP_GAP_PAIRS, *names.LID_PAIRS_LEFT, *names.LID_PAIRS_RIGHT])


def group_weights() -> np.ndarray:
    """(478,) how much each point counts: what a viewer looks at most counts most, the oval slides and counts least."""
    weights = np.full(478, 0.6, dtype=np.float32)
    weights[list(names.FACE_OVAL)] = 0.2
    weights[[*names.BROW_LEFT, *names.BROW_RIGHT, *names.NOSE]] = 1.0
    weights[[*names.EYE_LEFT, *names.EYE_RIGHT]] = 2.0
    weights[list(names.LIPS)] = 2.5
    weights[[*names.IRIS_LEFT, *names.IRIS_RIGHT]] = 1.5
    return weights


@record
class LandmarkData(Record):
    """What was seen in a batch of frames."""

    target: Float[Array, "f 478 2"]
    """Pixels of the input video; 0 where missing."""
    weights: Float[Array, "f 478"]
    """0 where missing."""
    mm_per_px: Float[Array, "f"]
    """Millimetres on the face per pixel."""
    frame_weight: Float[Array, "f"]
    """1 for a frame to be fitted, 0 for padding and frames without a face."""


def landmark_data(points: np.ndarray, confidence: np.ndarray) -> LandmarkData:
    """From detected points (F, 478, 2) px, NaN for missing, and their confidence (F, 478) in [0, 1]."""
    seen = np.isfinite(points).all(axis=2)
    valid = seen.sum(axis=1) >= 8
    with np.errstate(invalid="ignore"):
        radius = np.where(
            valid, face_radius_px(np.where(valid[:, None, None], points, 1.0 * np.arange(478)[None, :, None])), 100.0
        )
    weights = np.where(seen, confidence * group_weights(), 0.0) * valid[:, None]
    return LandmarkData(
        target=jnp.asarray(np.where(seen[..., None], points, 0.0), jnp.float32),
        weights=jnp.asarray(weights, jnp.float32),
        mm_per_px=jnp.asarray(FACE_RADIUS_MM / radius, jnp.float32),
        frame_weight=jnp.asarray(valid, jnp.float32),
    )


def clip_camera(shared: ClipVariables, camera: Camera) -> Camera:
    """The camera with the focal length that is being solved for; its aspect ratio and principal point are kept."""
    return camera.replace(focal=camera.focal / camera.focal[0] * jnp.exp(shared.log_focal))


def at_points(
    head: PyTree,
    params: PyTree,
    shared: ClipVariables,
    frame: FrameVariables,
    camera: Camera,
    reference_px: float | Array,
) -> tuple[Float[Array, "n 2"], Float[Array, "n 3"]]:
    """(pixels, linear albedo) in one frame of a head's vertices: its landmarks or samples, for one reduced to them."""
    camera = clip_camera(shared, camera)
    face = head.decode(params, shared.code, frame.code, jnp.array([0.0, 0.0, 1.0]))
    return project(to_camera_frame(face.vertices, pose_of(frame.pose, camera, reference_px)), camera), face.albedo


def landmark_objective(
    head: PyTree, variables: PyTree, data: LandmarkData, camera: Camera, reference_px: float | Array, config: FitConfig
) -> Float[Array, ""]:
    """Mean over frames of landmark, closure and prior terms. `head` is reduced to its 478 landmarks."""
    params, shared, frames = variables["params"], variables["shared"], variables["frame"]
    start = head.init_code()

    def one(frame: FrameVariables, target: Array, weights: Array, mm_per_px: Array) -> Array:
        pixels, _ = at_points(head, params, shared, frame, camera, reference_px)
        reprojection = landmark_loss(pixels, target, weights, mm_per_px)
        closure = closure_loss(pixels, target, weights, CLOSURE_PAIRS, mm_per_px)
        prior = head.code_prior(params, start[0], frame.code)
        return config.landmark_weight * reprojection + config.closure_weight * closure + config.prior_weight * prior

    losses = jax.vmap(one)(frames, data.target, data.weights, data.mm_per_px)
    total = jnp.maximum(jnp.sum(data.frame_weight), 1.0)
    focal = (shared.log_focal - jnp.log(camera.focal[0])) / config.focal_prior
    # what is shared by all frames has one prior beside the mean of their terms
    person = config.identity_prior * head.code_prior(params, shared.code, start[1])
    return jnp.sum(jnp.where(data.frame_weight > 0, losses, 0.0)) / total + person + focal**2


def motion_smoothness(
    head: PyTree,
    frames: FrameVariables,
    weights: Float[Array, "f"],
    camera: Camera,
    reference_px: float | Array,
    config: FitConfig,
) -> Float[Array, ""]:
    """Second differences in time of pose (in mm on the face) and of expression, per frame."""
    rotation = jax.vmap(lambda p: jnp.matmul(rotvec_to_matrix(p.turn), p.base, precision="highest"))(frames.pose)
    scale = jax.lax.stop_gradient(jnp.exp(frames.pose.log_scale) * reference_px)  # px per metre
    place_mm = frames.pose.anchor * reference_px / scale[:, None] * 1e3
    still = functools.partial(robust_acceleration, weights=weights, scale=0.3)
    pose = still(rotation * FACE_RADIUS_MM) / 2 + still(place_mm)
    depth = still(frames.pose.log_scale * 4 * FACE_RADIUS_MM)
    code = robust_acceleration(jax.vmap(head.motion_features)(frames.code), weights, 0.05)
    return (config.pose_smoothness * (pose + depth) + config.code_smoothness * 20 * code) / jnp.maximum(
        jnp.sum(weights), 1.0
    )
