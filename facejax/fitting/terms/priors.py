"""Priors: what of the unknowns is likely, before anything was seen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from facejax.fitting.footage import Footage
from facejax.fitting.terms.term import Observed, Term
from facejax.geometry.records import PyTree
from facejax.scenes import ClipVariables, FrameVariables, Scene, Unknowns
from facejax.scenes.unknowns import light_in


@dataclasses.dataclass(frozen=True)
class CodePrior(Term):
    """The head's own prior on its codes, the clip's and each frame's apart."""

    frame: float = 4.0
    """Of the prior on each frame's code."""
    clip: float = 0.1
    """Of the prior on the clip's code, beside the mean over frames."""
    per_number: bool = False
    """Whether a frame's prior is divided by how many numbers its code has."""

    def loss(
        self, scene: Scene, params: PyTree, clip: ClipVariables, frame: FrameVariables, seen: PyTree, shared: PyTree
    ) -> Float[Array, ""]:
        """Of a frame's code."""
        del clip, seen, shared
        size = max(ravel_pytree(frame.code)[0].size, 1) if self.per_number else 1
        return self.frame / size * scene.head.code_prior(params, scene.head.init_code()[0], frame.code)

    def clip_loss(self, scene: Scene, params: PyTree, clip: ClipVariables, shared: PyTree) -> Float[Array, ""]:
        """Of the clip's code."""
        del shared
        return self.clip * scene.head.code_prior(params, clip.code, scene.head.init_code()[1])


@dataclasses.dataclass(frozen=True)
class ZoomPrior(Term):
    """Log-normal prior on focal lengths about their guess."""

    deviation: float = 0.25
    """Standard deviation of the natural log."""

    def loss(
        self, scene: Scene, params: PyTree, clip: ClipVariables, frame: FrameVariables, seen: PyTree, shared: PyTree
    ) -> Float[Array, ""]:
        """Of a frame's own focal length."""
        del scene, params, clip, seen, shared
        return (frame.log_zoom / self.deviation) ** 2

    def clip_loss(self, scene: Scene, params: PyTree, clip: ClipVariables, shared: PyTree) -> Float[Array, ""]:
        """Of the clip's."""
        del scene, params, shared
        return (clip.log_zoom / self.deviation) ** 2


@dataclasses.dataclass(frozen=True)
class LightPrior(Term):
    """The lighting's own prior on each frame's light."""

    weight: float = 1.0

    def loss(
        self, scene: Scene, params: PyTree, clip: ClipVariables, frame: FrameVariables, seen: PyTree, shared: PyTree
    ) -> Float[Array, ""]:
        """Of a frame's light."""
        del params, seen, shared
        return self.weight * scene.lighting.prior(light_in(clip, frame))


@dataclasses.dataclass(frozen=True)
class StayNear(Term):
    """How far the head's `params` have left where they were when a stage began: squares, summed."""

    weight: float

    def observe(
        self, scene: Scene, footage: Footage, unknowns: Unknowns, ids: np.ndarray, before: Observed | None = None
    ) -> Observed:
        """The parameters as they are."""
        del scene, footage, ids
        return Observed(frames=(), shared=unknowns.params) if before is None else before

    def clip_loss(self, scene: Scene, params: PyTree, clip: ClipVariables, shared: PyTree) -> Float[Array, ""]:
        """Squared distance."""
        del scene, clip
        moved = jax.tree_util.tree_map(lambda a, b: jnp.sum((a - b) ** 2), params, shared)
        return self.weight * jnp.sum(jnp.stack(jax.tree_util.tree_leaves(moved)))
