"""Flow: where optical flow from the drawn head to the picture puts its vertices (Chen et al. 2021, eq. 8).

Pose and expression pull at the same pixels, so descent on pictures takes hundreds of steps to tell them apart. Given
targets, the problem is one of small nonlinear least squares, whose Jacobian is known: Gauss-Newton takes a few.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from facejax.fitting.footage import Footage
from facejax.fitting.optical_flow import dense_flow
from facejax.fitting.terms.pictures import SeenPicture, observe_pictures
from facejax.fitting.terms.term import Observed, Term
from facejax.geometry.cameras import crop_camera, project, to_camera_frame
from facejax.geometry.colour import linear_to_srgb_bytes
from facejax.geometry.meshes import SurfacePoints
from facejax.geometry.records import PyTree, Record, batch_of, record
from facejax.objectives.pictures import flow_loss
from facejax.renderers.depth_test import visible_vertices
from facejax.renderers.texture import sample_bilinear
from facejax.scenes import ClipVariables, FrameVariables, Scene, Unknowns
from facejax.scenes.unknowns import placed, take_frames

_VERTICES = 2500  # that speak for all
_SIDE = 256.0  # px: distances are taken as if crops had this side


@record
class SeenFlow(Record):
    """What flow says of a frame."""

    picture: SeenPicture
    target: Float[Array, "v 2"]
    """Where each of the head's vertices is, pixels of the crop."""
    weight: Float[Array, "v"]
    """0 where flow says nothing of a vertex."""


@dataclasses.dataclass(frozen=True)
class Flow(Term):
    """Mean squared distance of vertices from where flow puts them, pixels of a crop of 256."""

    weight: float = 3.0

    def observe(
        self, scene: Scene, footage: Footage, unknowns: Unknowns, ids: np.ndarray, before: Observed | None = None
    ) -> Observed:
        """Draws the frames as they are, and follows the flow to their pictures; the picture itself is the backdrop."""
        told = before.frames.picture if before is not None else observe_pictures(scene, footage, unknowns, ids)
        frames = take_frames(unknowns.frames, ids)
        colour, coverage, pixels, visible = _looks(scene)(unknowns.params, unknowns.clip, frames, told)
        target, weight = flow_targets(told.picture, told.ignore, colour, coverage, pixels, visible)
        return Observed(frames=batch_of(SeenFlow, told, target, weight), shared=_thinned(scene)[1].head.params)

    def loss(
        self, scene: Scene, params: PyTree, clip: ClipVariables, frame: FrameVariables, seen: SeenFlow, shared: PyTree
    ) -> Float[Array, ""]:
        """Eq. 8 of one frame."""
        del shared
        pixels = scene.vertices_px(params, clip, frame, seen.picture.box)
        return self.weight * flow_loss(pixels, seen.target, seen.weight, scene.size[0])

    def residuals(
        self, scene: Scene, params: PyTree, clip: ClipVariables, frame: FrameVariables, seen: SeenFlow, shared: PyTree
    ) -> tuple[Float[Array, "n 2"], Float[Array, "n"]]:
        """See `Term.residuals`: of a few thousand vertices, without the term's weight."""
        del params
        few, thinned = _thinned(scene)
        pose, camera = placed(clip, frame)
        small = crop_camera(camera, seen.picture.box, scene.size)
        where = to_camera_frame(thinned.head.vertices(shared, clip.code, frame.code), pose)
        return _SIDE / scene.size[0] * (project(where, small) - seen.target[few]), seen.weight[few]


@functools.lru_cache(maxsize=16)
def _thinned(scene: Scene) -> tuple[np.ndarray, Scene]:
    """Ids of vertices spread over the head, and the scene reduced to them."""
    count = scene.head.topology.n_vertices
    few = np.arange(0, count, max(count // _VERTICES, 1))
    corners = np.tile(np.array([1, 0, 0], np.float32), (len(few), 1))
    return few, scene.at(SurfacePoints(np.repeat(few[:, None], 3, axis=1).astype(np.int32), corners))


@functools.lru_cache(maxsize=16)
def _looks(scene: Scene) -> Callable[..., tuple[Array, Array, Array, Array]]:
    """(picture, coverage, vertices' pixels, their visibility) of a batch of frames as they are."""

    def one(params: PyTree, clip: PyTree, frame: PyTree, seen: SeenPicture) -> tuple[Array, Array, Array, Array]:
        drawn = scene.picture(params, clip, frame, seen.box, jax.random.key(0), seen.prepared)
        at, visible = visible_vertices(drawn.face, drawn.image, drawn.pose, drawn.camera, scene.head.topology.faces)
        return drawn.image.colour, drawn.image.coverage, at, visible

    return jax.jit(jax.vmap(one, in_axes=(None, None, 0, 0)))


def flow_targets(
    picture: ArrayLike, ignore: ArrayLike, colour: ArrayLike, coverage: ArrayLike, pixels: ArrayLike, visible: ArrayLike
) -> tuple[Float[np.ndarray, "f v 2"], Float[np.ndarray, "f v"]]:
    """(target, weight): where flow from the drawn head to the picture says that each vertex is.

    All arguments have a leading axis of frames. picture: display values. ignore: 1 where it does not show the face:
    flow is none there, and says nothing of the vertices. colour, coverage: as drawn, linear radiance. pixels, visible:
    where vertices are drawn, and 1 where they are seen there.
    """
    seen = np.asarray(picture)
    keep = 1 - np.asarray(ignore)[..., None]
    cover = np.asarray(coverage)[..., None] * keep
    where, visible = np.asarray(pixels), np.asarray(visible)
    targets, weights = [], []
    for k in range(len(seen)):
        drawn = linear_to_srgb_bytes(np.asarray(colour)[k]).astype(np.float32) / 255
        source = cover[k] * drawn + (1 - cover[k]) * seen[k]
        flow, trust = dense_flow(*((255 * x + 0.5).clip(0, 255).astype(np.uint8) for x in (source, seen[k])))
        stack = np.concatenate([np.nan_to_num(flow), trust[..., None], keep[k]], axis=-1)
        at = np.asarray(sample_bilinear(jnp.asarray(stack, jnp.float32), jnp.asarray(where[k])))
        targets.append(where[k] + at[:, :2])
        weights.append(visible[k] * (at[:, 2:].min(axis=1) > 0.99))
    return np.stack(targets).astype(np.float32), np.stack(weights).astype(np.float32)
