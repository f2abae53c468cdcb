"""What a fit compares: the shape that every term has."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from facejax.fitting.footage import Footage
from facejax.geometry.records import PyTree, Record, record
from facejax.scenes import ClipVariables, FrameVariables, Scene, Unknowns


@record
class Observed(Record):
    """What a term saw of some frames."""

    frames: PyTree
    """Of each frame: arrays with a leading axis."""
    shared: PyTree
    """One for all of them."""


NOTHING = Observed(frames=(), shared=())


@dataclasses.dataclass(frozen=True)
class Term:
    """A part of an objective: it compares a scene with frames, or says what is likely. One file each.

    A term is a choice (its fields are weights and options) and knows no head by name. What a fit minimises is the mean
    over frames of `loss`, plus `clip_loss`, plus, where frames follow each other in time, `over_time`.
    """

    def observe(
        self, scene: Scene, footage: Footage, unknowns: Unknowns, ids: np.ndarray, before: Observed | None = None
    ) -> Observed:
        """On the host, before a solve: crops, visibility, flow, detections of the frames `ids`, for the unknowns as
        they are now. before: an earlier observation of the same frames, whose pictures may be used again."""
        del scene, footage, unknowns, ids, before
        return NOTHING

    def common(
        self,
        scene: Scene,
        params: PyTree,
        clip: ClipVariables,
        frames: FrameVariables,
        seen: Observed,
        weight: Float[Array, "f"],
    ) -> Observed:
        """`seen` with what the frames say together, at every evaluation, such as a colour of each point. It is the
        minimiser for the given unknowns, so that it is not differentiated (variable projection)."""
        del scene, params, clip, frames, weight
        return seen

    def loss(
        self, scene: Scene, params: PyTree, clip: ClipVariables, frame: FrameVariables, seen: PyTree, shared: PyTree
    ) -> Float[Array, ""]:
        """Of one frame; pure."""
        del scene, params, clip, frame, seen, shared
        return jnp.zeros(())

    def clip_loss(self, scene: Scene, params: PyTree, clip: ClipVariables, shared: PyTree) -> Float[Array, ""]:
        """Once for all frames; pure."""
        del scene, params, clip, shared
        return jnp.zeros(())

    def over_time(
        self, scene: Scene, params: PyTree, clip: ClipVariables, frames: FrameVariables, weight: Float[Array, "f"]
    ) -> Float[Array, ""]:
        """Of frames in a row, divided by their number; a pair or three neighbours count where all have weight."""
        del scene, params, clip, frames, weight
        return jnp.zeros(())

    def residuals(
        self, scene: Scene, params: PyTree, clip: ClipVariables, frame: FrameVariables, seen: PyTree, shared: PyTree
    ) -> tuple[Float[Array, "n 2"], Float[Array, "n"]]:
        """(residuals, weights) of one frame, for terms that Gauss-Newton can take; see `facejax.fitting.solve`."""
        raise NotImplementedError(f"{type(self).__name__} is no sum of squares")

    def settle(
        self, scene: Scene, footage: Footage, unknowns: Unknowns, ids: np.ndarray, seen: Observed | None
    ) -> Unknowns:
        """The part of the unknowns that has a closed form for the frames `ids`; as it is where there is none."""
        del scene, footage, ids, seen
        return unknowns

    @property
    def lost_above(self) -> float | None:
        """Loss of a frame above which it is not matched; None: no telling."""
        return None


def settled(unknowns: Unknowns, **values: Any) -> Unknowns:
    """The same with some closed-form parts replaced."""
    return unknowns.replace(settled={**unknowns.settled, **values})
