"""Pictures: the whole drawn head against the frame (Chen et al. 2021, eq. 7), and the light that has a closed form."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from facejax.fitting.footage import Footage, Look
from facejax.fitting.terms.term import Observed, Term
from facejax.geometry.colour import linear_to_srgb, srgb_to_linear
from facejax.geometry.records import PRNGKey, PyTree, Record, batch_of, record
from facejax.objectives.pictures import inside, picture_loss
from facejax.scenes import ClipVariables, FrameVariables, Scene, Unknowns
from facejax.scenes.lighting import in_darkness, light_rows
from facejax.scenes.unknowns import take_frames

MARGIN = 1.6
"""Face crops that whole pictures are compared on, in widths of the landmarks' box."""
_LOST = 60.0  # mean absolute difference, of 255
_FEW = 4
_FEW_CHANGING = 16
_PIXELS = 1500  # of each frame
_UNIT = 4.0  # of a light: a row alone at this strength is about as bright as rooms are
_RIDGE = 2e-6  # a unit of light adds about 0.01 to a pixel


@record
class SeenPicture(Record):
    """What was seen in a frame."""

    picture: Float[Array, "s s 3"]
    """Face crop, display values in [0, 1]."""
    ignore: Float[Array, "s s"]
    """1 where a mask says that a pixel is not the face, or there is no picture."""
    box: Float[Array, "4"]
    """Left, top, width, height of the crop in pixels of the input video."""
    prepared: PyTree
    """Of the lighting, for the frame's geometry when it was observed."""


def observe_pictures(scene: Scene, footage: Footage, unknowns: Unknowns, ids: np.ndarray) -> SeenPicture:
    """Crops of the scene's size, and what its lighting holds, of frames as they are; leading axis."""
    picture, ignore = footage.crops(ids, Look(scene.size[0], MARGIN))
    prepare = _prepare(scene)
    rows = [prepare(unknowns.params, unknowns.clip, take_frames(unknowns.frames, int(i))) for i in ids]
    prepared = jax.tree_util.tree_map(lambda *x: np.stack([np.asarray(y) for y in x]), *rows)
    return batch_of(SeenPicture, picture, ignore, footage.boxes(MARGIN)[ids], prepared)


@functools.lru_cache(maxsize=16)
def _prepare(scene: Scene) -> Callable[..., PyTree]:
    return jax.jit(scene.prepare)


@dataclasses.dataclass(frozen=True)
class Pictures(Term):
    """Mean absolute difference of display values over the head, of 255, and that of its Laplacian. Crops are squares of
    the scene's size."""

    laplacian: float = 0.3
    """Of the image Laplacian of the residuals, beside the residuals; the paper does not give its own."""
    seed: int = 0
    """Of the random numbers that a renderer may draw."""

    def observe(
        self, scene: Scene, footage: Footage, unknowns: Unknowns, ids: np.ndarray, before: Observed | None = None
    ) -> Observed:
        """See `observe_pictures`."""
        if before is not None:
            return before
        return Observed(frames=observe_pictures(scene, footage, unknowns, ids), shared=jax.random.key(self.seed))

    def loss(
        self,
        scene: Scene,
        params: PyTree,
        clip: ClipVariables,
        frame: FrameVariables,
        seen: SeenPicture,
        shared: PRNGKey,
    ) -> Float[Array, ""]:
        """Eq. 7 of one frame."""
        drawn = scene.picture(params, clip, frame, seen.box, shared, seen.prepared)
        mask = jax.lax.stop_gradient(inside(drawn.image.coverage * (1 - seen.ignore)))
        return picture_loss(linear_to_srgb(drawn.image.colour), seen.picture, mask, self.laplacian)

    @property
    def lost_above(self) -> float:
        """See `Term.lost_above`."""
        return _LOST


@dataclasses.dataclass(frozen=True)
class LightOfPictures(Term):
    """The clip's light as if light added up: each row of it lights the head alone, and a sum explains the frames.

    Least squares of linear radiance over pixels that are not burnt out, on a few frames, without negative light where
    rows are lamps. A network is only nearly linear, so this is where descent starts; the paper starts from darkness.
    """

    changing: bool = False
    """Whether some frames then get what their own pixels say, close to the clip's, and those between them what lies
    between."""

    def settle(
        self, scene: Scene, footage: Footage, unknowns: Unknowns, ids: np.ndarray, seen: Observed | None
    ) -> Unknowns:
        """The unknowns with the clip's light, and frames' own, replaced."""
        del seen
        rows = light_rows(scene.lighting)
        few = ids[np.linspace(0, len(ids) - 1, min(_FEW_CHANGING if self.changing else _FEW, len(ids))).astype(int)]
        dark = in_darkness(unknowns, scene.lighting)
        systems = []
        for i in few:
            told = take_frames(observe_pictures(scene, footage, dark, np.array([i])), 0)
            basis, mask = _responses(scene)(dark.params, dark.clip, take_frames(dark.frames, int(i)), told)
            picture = np.asarray(told.picture)
            use = (np.asarray(mask) > 0) & (np.asarray(told.ignore) < 0.01) & (picture.max(axis=-1) < 0.98)
            where = np.flatnonzero(use)[:: max(int(use.sum()) // _PIXELS, 1)]
            columns = np.asarray(basis).reshape(rows, -1, 3)[:, where].transpose(2, 1, 0)  # (colour, pixel, row)
            systems.append((columns, srgb_to_linear(picture).reshape(-1, 3)[where].T))
        positive = bool(getattr(scene.lighting, "positive", False))
        light = _least_squares(systems, np.zeros((rows, 3)), _RIDGE, positive)
        frames = dark.frames
        if self.changing:
            own = np.stack([_least_squares([s], light, 10 * _RIDGE, positive) for s in systems])
            frames = frames.replace(light=between(own - light, few, len(frames.light)))
        return dark.replace(clip=dark.clip.replace(light=jnp.asarray(light, jnp.float32)), frames=frames)


@functools.lru_cache(maxsize=8)
def _responses(scene: Scene) -> Callable[..., tuple[Array, Array]]:
    """(radiance per unit of each row of the light (r, s, s, 3), pixels that show the head alone) of a frame."""
    rows = light_rows(scene.lighting)

    @jax.jit
    def responses(params: PyTree, clip: PyTree, frame: PyTree, seen: SeenPicture) -> tuple[Array, Array]:
        def under(light: Array) -> tuple[Array, Array]:
            lit = scene.picture(params, clip.replace(light=light), frame, seen.box, None, seen.prepared)
            return lit.image.colour, lit.image.coverage

        none, coverage = under(jnp.zeros((rows, 3)))
        unit = _UNIT * jnp.eye(rows)[:, :, None] * jnp.ones(3)
        each = jax.lax.map(lambda light: under(light)[0], unit, batch_size=4)
        return (each - none) / _UNIT, inside(coverage)

    return responses


def _least_squares(
    systems: list[tuple[np.ndarray, np.ndarray]], near: np.ndarray, ridge: float, positive: bool
) -> Float[np.ndarray, "r 3"]:
    """(rows, 3): per colour the light x that minimises the mean square of A x - b, plus ridge |x - near|²."""
    from scipy.optimize import lsq_linear

    found = []
    for colour in range(3):
        a = np.concatenate([s[0][colour] for s in systems]).astype(np.float64)
        b = np.concatenate([s[1][colour] for s in systems]).astype(np.float64)
        weight = np.sqrt(ridge * len(b))
        a = np.concatenate([a, weight * np.eye(a.shape[1])])
        b = np.concatenate([b, weight * near[:, colour]])
        found.append(lsq_linear(a, b, bounds=(0 if positive else -np.inf, np.inf), method="bvls").x)
    return np.stack(found, axis=1)


def between(light: Float[np.ndarray, "k r 3"], ids: np.ndarray, count: int) -> Float[np.ndarray, "f r 3"]:
    """Lights of all frames from those of some, linear in between and constant beyond."""
    flat = light.reshape(len(ids), -1)
    everywhere = np.arange(count)
    columns = [np.interp(everywhere, ids, flat[:, i]) for i in range(flat.shape[1])]
    return np.stack(columns, axis=1).reshape(count, *light.shape[1:]).astype(np.float32)


def draw_frames(
    scene: Scene, footage: Footage, unknowns: Unknowns, ids: np.ndarray, at_once: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(drawn, coverage, seen) of these frames' crops: drawn in linear radiance, seen in display values."""
    drawn, cover, seen = [], [], []
    for first in range(0, len(ids), at_once):
        part = np.asarray(ids[first : first + at_once])
        padded = part[np.minimum(np.arange(at_once), len(part) - 1)]
        told = observe_pictures(scene, footage, unknowns, padded)
        image = drawer(scene)(unknowns.params, unknowns.clip, take_frames(unknowns.frames, padded), told).image
        drawn.append(np.asarray(image.colour)[: len(part)])
        cover.append(np.asarray(image.coverage)[: len(part)])
        seen.append(np.asarray(told.picture)[: len(part)])
    return np.concatenate(drawn), np.concatenate(cover), np.concatenate(seen)


@functools.lru_cache(maxsize=16)
def drawer(scene: Scene) -> Callable[..., PyTree]:
    """(params, clip, frames, what was seen) -> the frames' crops as they are drawn, leading axis."""

    def one(params: PyTree, clip: PyTree, frame: PyTree, seen: SeenPicture) -> PyTree:
        return scene.picture(params, clip, frame, seen.box, jax.random.key(0), seen.prepared)

    return jax.jit(jax.vmap(one, in_axes=(None, None, 0, 0)))
