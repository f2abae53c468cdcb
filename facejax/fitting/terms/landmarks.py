"""Landmarks: pose, expression and identity from where points were seen."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from facejax.fitting.footage import Footage
from facejax.fitting.terms.term import Observed, Term
from facejax.geometry.records import PyTree, Record, batch_of, record
from facejax.models import landmark_names as names
from facejax.objectives.landmarks import FACE_RADIUS_MM, closure_loss, face_radius_px, landmark_loss
from facejax.scenes import ClipVariables, FrameVariables, Scene, Unknowns
from facejax.scenes.unknowns import over_frames, take_frames

CLOSURE_PAIRS = np.array([*names.LIP_GAP_PAIRS, *names.LID_PAIRS_LEFT, *names.LID_PAIRS_RIGHT])


@record
class SeenLandmarks(Record):
    """What was seen in a frame."""

    target: Float[Array, "478 2"]
    """Pixels of the input video; 0 where missing."""
    weights: Float[Array, "478"]
    """0 where missing."""
    mm_per_px: Float[Array, ""]
    """Millimetres on the face per pixel."""


@dataclasses.dataclass(frozen=True)
class Landmarks(Term):
    """Robust reprojection of MediaPipe's points, and how far lips and lids are apart, both in mm² on the face.

    The head's `params` are reduced to the points when frames are observed: a turn that frees them compares pictures.
    """

    weight: float = 60.0
    """Of the mean robust residual of a frame."""
    closure: float = 30.0
    """Of how far lips and lids are apart, compared with the observed distance."""

    def observe(
        self, scene: Scene, footage: Footage, unknowns: Unknowns, ids: np.ndarray, before: Observed | None = None
    ) -> Observed:
        """Targets of these frames; the head reduced to the points."""
        del unknowns, before
        return Observed(frames=take_frames(landmarks_of(footage), ids), shared=scene.landmarks.head.params)

    def loss(
        self,
        scene: Scene,
        params: PyTree,
        clip: ClipVariables,
        frame: FrameVariables,
        seen: SeenLandmarks,
        shared: PyTree,
    ) -> Float[Array, ""]:
        """Reprojection and closure."""
        del params
        pixels = scene.landmarks.points(shared, clip, frame).pixels
        reprojection = landmark_loss(pixels, seen.target, seen.weights, seen.mm_per_px)
        closure = closure_loss(pixels, seen.target, seen.weights, CLOSURE_PAIRS, seen.mm_per_px)
        return self.weight * reprojection + self.closure * closure


def group_weights() -> Float[np.ndarray, "478"]:
    """How much each point counts: what a viewer looks at most counts most, the oval slides and counts least."""
    weights = np.full(478, 0.6, dtype=np.float32)
    weights[list(names.FACE_OVAL)] = 0.2
    weights[[*names.BROW_LEFT, *names.BROW_RIGHT, *names.NOSE]] = 1.0
    weights[[*names.EYE_LEFT, *names.EYE_RIGHT]] = 2.0
    weights[list(names.LIPS)] = 2.5
    weights[[*names.IRIS_LEFT, *names.IRIS_RIGHT]] = 1.5
    return weights


def landmark_data(points: Float[np.ndarray, "f 478 2"], confidence: Float[np.ndarray, "f 478"]) -> SeenLandmarks:
    """Of all frames (leading axis, on the host), from detected points (px, NaN for missing) and their confidence."""
    seen = np.isfinite(points).all(axis=2)
    valid = seen.sum(axis=1) >= 8
    with np.errstate(invalid="ignore"):
        radius = np.where(
            valid, face_radius_px(np.where(valid[:, None, None], points, 1.0 * np.arange(478)[None, :, None])), 100.0
        )
    weights = np.where(seen, confidence * group_weights(), 0.0) * valid[:, None]
    return batch_of(
        SeenLandmarks,
        np.where(seen[..., None], points, 0.0).astype(np.float32),
        weights.astype(np.float32),
        (FACE_RADIUS_MM / radius).astype(np.float32),
    )


@functools.lru_cache(maxsize=4)
def landmarks_of(footage: Footage) -> SeenLandmarks:
    """All frames' landmarks, those on ignored pixels without weight."""
    return landmark_data(footage.points, footage.masked_confidence())


def landmark_residual_mm(scene: Scene, unknowns: Unknowns, seen: SeenLandmarks) -> Float[np.ndarray, "f"]:
    """Mean distance of each frame's landmarks from where they were seen, millimetres on the face."""
    shared = scene.landmarks.head.params, unknowns.clip
    off = over_frames(_residuals(scene), (unknowns.frames, seen), *shared)
    weights = np.asarray(seen.weights)
    return (off * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-6)


@functools.lru_cache(maxsize=16)
def _residuals(scene: Scene):  # type: ignore[no-untyped-def]
    def one(params: PyTree, clip: PyTree, frame: PyTree, seen: SeenLandmarks) -> Array:
        off = scene.landmarks.points(params, clip, frame).pixels - seen.target
        return jnp.linalg.norm(off, axis=-1) * seen.mm_per_px

    return jax.jit(jax.vmap(one, in_axes=(None, None, 0, 0)))
