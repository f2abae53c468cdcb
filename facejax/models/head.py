"""What every head offers to fitting: `HeadModel`, and the table of stages that says what is solved when.

A head is a file that implements this protocol. `fit_sequence` never asks which head it has.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float

from facejax.geometry.meshes import SurfacePoints, Topology
from facejax.geometry.records import Face, PyTree


@dataclasses.dataclass(frozen=True)
class Turn:
    """One of several optimisations that a stage takes in turns: what moves in it, for how long."""

    free: tuple[str, ...]
    """As in `Stage`."""
    steps: int
    """Optimiser steps."""
    rate: float = 1.0
    """Factor on every leaf's own learning rate."""
    by: Literal["gradient", "flow"] = "gradient"
    """Descent on pictures; or Gauss-Newton steps of each frame's own leaves towards where optical flow from the drawn
    head to the picture says that vertices are, the head drawn anew before each."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One optimisation: which variables move, on which frames, against which data, for how long."""

    name: str
    """Shown in the progress display and in records of how a fit went."""
    data: Literal["landmarks", "photometric", "rendered"]
    """What the frames are compared with: points; colours at points of the skin, whose albedo is solved for; or whole
    rendered pictures of a head that brings its own appearance."""
    frames: Literal["key", "all"]
    """`key`: the key frames together, with what they share; `all`: every frame, in batches, what is shared held."""
    free: tuple[str, ...] = ()
    """Leaves that move, as prefixes of paths in {"params", "shared", "frame"}, e.g. ("shared.shape", "frame.pose")."""
    steps: int = 0
    """Optimiser steps."""
    rate: float = 1.0
    """Factor on every leaf's own learning rate."""
    turns: tuple[Turn, ...] = ()
    """Instead of `free`, `steps` and `rate`: optimisations that follow each other, `rounds` times over."""
    rounds: int = 1


@runtime_checkable
class HeadModel(Protocol):
    """A head that can be decoded from a code and fitted to pictures.

    `params` is a pytree of arrays (a morphable model's bases, a network's weights); `shared` and `frame` are the two
    parts of a code: what is one for a whole clip, and what each frame has for itself. All methods are pure.
    """

    def __hash__(self) -> int:
        """Of the object, as equality is: what is compiled for a head is found by the head itself."""
        ...

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    @property
    def topology(self) -> Topology: ...

    @property
    def regions(self) -> Mapping[str, np.ndarray]:
        """Named (V,) masks in [0, 1]."""
        ...

    @property
    def landmarks478(self) -> SurfacePoints:
        """MediaPipe's points on the mesh."""
        ...

    @property
    def params(self) -> PyTree: ...

    def stages(self, preset: str) -> tuple[Stage, ...]:
        """What `fit_sequence` does to this head, in order."""
        ...

    def init_code(self) -> tuple[PyTree, PyTree]:
        """(shared, frame) of the mean head at rest."""
        ...

    def init_light(self, bands: int = 3) -> Float[Array, "b 3"]:
        """Spherical harmonics of even white light, camera frame."""
        ...

    def vertices(self, params: PyTree, shared: PyTree, frame: PyTree) -> Float[Array, "v 3"]:
        """The geometry of `decode` alone."""
        ...

    def neutral(self, params: PyTree, shared: PyTree) -> Float[Array, "v 3"]:
        """The person at rest, head frame."""
        ...

    def decode(self, params: PyTree, shared: PyTree, frame: PyTree, view: Float[Array, "3"]) -> Face:
        """Geometry and appearance in the head frame; `view` is the unit vector from the head to the camera."""
        ...

    def code_prior(self, params: PyTree, shared: PyTree, frame: PyTree) -> Float[Array, ""]:
        """Negative log prior of a code, up to a constant."""
        ...

    def motion_features(self, frame: PyTree) -> Float[Array, "m"]:
        """What of a frame's code moves smoothly in time; 1 is a full movement."""
        ...

    def landmark_points(self, vertices: Float[Array, "v 3"]) -> Float[Array, "478 3"]:
        """MediaPipe's 478 points on a decoded head, in its frame."""
        ...

    def eye_pivots(self, params: PyTree, shared: PyTree) -> Float[Array, "2 3"]:
        """Centres of the subject's (left, right) eyeball, head frame."""
        ...

    def scaled(self, factor: float) -> "HeadModel":
        """The same head with every length multiplied."""
        ...

    def at_points(self, points: SurfacePoints) -> "HeadModel":
        """The same head reduced to points on its surface, each a vertex: what makes fits to points cheap."""
        ...

    def as_morphable(
        self, params: PyTree, shared: PyTree, frames: PyTree, light: Float[Array, "f b 3"]
    ) -> tuple[Any, PyTree, PyTree, Float[Array, "f c 3"]]:
        """(head, identity, expressions, light) that say the same as a `MorphableHead`, for results and their files.

        frames, light: codes with a leading axis of frames.
        """
        ...
