"""Smoothness in time of pose, expression and light."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from facejax.fitting.terms.term import Term
from facejax.geometry.records import PyTree
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.objectives.landmarks import FACE_RADIUS_MM
from facejax.objectives.temporal import change, robust_acceleration
from facejax.scenes import ClipVariables, FrameVariables, Scene


@dataclasses.dataclass(frozen=True)
class Smoothness(Term):
    """Second differences in time of pose (mm on the face) and of expression, first differences of light, per frame."""

    pose: float = 4.0
    code: float = 5.0
    light: float = 0.0

    def over_time(
        self, scene: Scene, params: PyTree, clip: ClipVariables, frames: FrameVariables, weight: Float[Array, "f"]
    ) -> Float[Array, ""]:
        """See `Term.over_time`."""
        del params, clip
        reference = frames.lens.reference_px
        rotation = jax.vmap(lambda p: jnp.matmul(rotvec_to_matrix(p.turn), p.base, precision="highest"))(frames.pose)
        scale = jax.lax.stop_gradient(jnp.exp(frames.pose.log_scale) * reference)  # px per metre
        place_mm = frames.pose.anchor * (reference / scale)[:, None] * 1e3
        still = functools.partial(robust_acceleration, weights=weight, scale=0.3)
        pose = still(rotation * FACE_RADIUS_MM) / 2 + still(place_mm)
        depth = still(frames.pose.log_scale * 4 * FACE_RADIUS_MM)
        code = robust_acceleration(jax.vmap(scene.head.motion_features)(frames.code), weight, 0.05)
        total = self.pose * (pose + depth) + self.code * 20 * code
        if self.light > 0:
            total += self.light * sum(change(x, weight) for x in jax.tree_util.tree_leaves(frames.light))
        return total / jnp.maximum(jnp.sum(weight), 1.0)
