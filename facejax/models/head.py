"""What every head offers: `HeadModel`.

A head is a file that implements this protocol. `fit_sequence` never asks which head it has: it asks for the roles that
the head's leaves play.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float

from facejax.geometry.meshes import SurfacePoints, Topology
from facejax.geometry.records import Camera, Face, Pose, PyTree, Record, record

ROLES = ("shape", "skin", "texture", "motion", "network")
"""Parts that leaves of a head play in a fit, see `HeadModel.roles`."""


@record
class Guess(Record):
    """What an encoder says of a picture."""

    clip: PyTree
    """Clip code: of several pictures the mean is taken."""
    frame: PyTree
    """Frame code."""
    pose: Pose | None
    """Head to camera; None: from points."""


@runtime_checkable
class Encoder(Protocol):
    """A head that brings a network's first guess: where a fit starts instead of the mean head at rest."""

    def encode(self, params: PyTree, picture: Float[Array, "s s 3"], camera: Camera) -> Guess:
        """picture: face crop, display values in [0, 1]. camera: of the crop, in its pixels."""
        ...


@runtime_checkable
class HeadModel(Protocol):
    """A head that can be decoded from a code and fitted to pictures.

    `params` is a pytree of arrays (a morphable model's bases, a network's weights); `shared` and `frame` are the two
    parts of a code: what is one for a whole clip, and what each frame has for itself. Light is no part of it: see
    `facejax.scenes`. All methods are pure.
    A head may also have `rates`: learning rates by name of its leaves, where 0.01 is not right for them.
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

    @property
    def roles(self) -> Mapping[str, tuple[str, ...]]:
        """Which leaves play which of the `ROLES`, as prefixes of dotted paths in (params, clip, frame).

        `shape` and `skin`: what is one for a person, in geometry and colour. `texture`: one (h, w, 3) factor on the
        skin's colour that a clip solves for; a head without it brings its own appearance. `motion`: what moves from
        frame to frame. `network`: weights that adapt to a clip. Missing: the head has none.
        """
        ...

    def init_code(self) -> tuple[PyTree, PyTree]:
        """(clip, frame) codes of the mean head at rest."""
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
        self, params: PyTree, shared: PyTree, frames: PyTree, light: Float[Array | np.ndarray, "f b 3"]
    ) -> tuple[Any, PyTree, PyTree, Float[Array | np.ndarray, "f c 3"]]:
        """(head, identity, expressions, light) that say the same as a `MorphableHead`, for results and their files.

        frames, light: codes with a leading axis of frames.
        """
        ...
