"""Registration of an avatar by what it looks like: what steps 2 and 3 of Chen et al. 2021 share, and step 3.

`register` moves every frame on its own, under the light that `facejax.fitting.adaptation` found.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from facejax.data.results import TrackResult
from facejax.data.video import Masks, Video
from facejax.fitting.checkpoint import Checkpoint
from facejax.fitting.config import FitConfig
from facejax.fitting.crops import crop_image, key_frame_images
from facejax.fitting.flow_fit import flow_solver, flow_targets
from facejax.fitting.light_models import LightModel, light_model
from facejax.fitting.optimise import stepwise
from facejax.fitting.rendered_fit import (
    RenderedData,
    draw,
    rendered_objective,
    visible_vertices,
)
from facejax.fitting.variables import ClipVariables, FrameVariables, put_frames, take_frames, variables_of
from facejax.geometry.records import Camera, PyTree
from facejax.models.head import HeadModel, Stage, Turn
from facejax.objectives.landmarks import face_radius_px
from facejax.renderers.deferred import Render
from facejax.renderers.textured import make_textured_renderer

Tell = Callable[[int, int], None]
_SAVE_EVERY_S = 10.0


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Where frames come from: a clip, pixels to ignore, and the box of each frame's face."""

    clip: Video
    masks: Masks | None
    boxes: Float[np.ndarray, "f 4"]
    valid: np.ndarray

    def crops(self, ids: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(pictures (n, s, s, 3) display values in [0, 1], ignore (n, s, s)) of these frames."""
        images = key_frame_images(self.clip, self.masks, ids)
        cut = [self._crop(int(i), frame, mask, size) for i, (frame, mask) in zip(ids, images, strict=True)]
        return np.stack([c[0] for c in cut]), np.stack([c[1] for c in cut])

    def stream(self, ids: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same of ascending frames, one by one: the clip is decoded once, from the first to the last of them."""
        if not len(ids):
            return
        first, last, wanted = int(ids[0]), int(ids[-1]), set(ids.tolist())
        masks = self.masks.frames(first) if self.masks is not None else None
        for k, frame in enumerate(self.clip.frames(first, last + 1), start=first):
            mask = next(masks) if masks is not None else None
            if k in wanted:
                yield self._crop(k, frame, mask, size)

    def _crop(self, k: int, frame: np.ndarray, mask: np.ndarray | None, size: int) -> tuple[np.ndarray, np.ndarray]:
        ignored = np.zeros((size, size), np.float32) if mask is None else crop_image(mask, self.boxes[k], size)
        return crop_image(frame, self.boxes[k], size), ignored


@dataclasses.dataclass(frozen=True, eq=False)
class Registration:
    """A head, where it is in every frame, and how it is lit."""

    head: HeadModel
    params: PyTree
    shared: ClipVariables
    frames: FrameVariables
    camera: Camera
    reference_px: float
    config: FitConfig

    @functools.cached_property
    def lights(self) -> LightModel:
        return light_model(self.head, self.config)

    @functools.cached_property
    def render(self) -> Render:
        return make_textured_renderer(self.head.topology, (self.config.size, self.config.size))

    @functools.cached_property
    def _prepare(self) -> Callable[..., Array]:
        def prepare(params: PyTree, shared: PyTree, code: PyTree) -> Array:
            return self.lights.prepare(self.head.vertices(params, shared, code))

        return jax.jit(prepare)

    def data(
        self, given: Pictures, ids: np.ndarray, crops: tuple[np.ndarray, np.ndarray] | None = None
    ) -> RenderedData:
        """What was seen in these frames, with a leading axis; nothing of flow yet. crops: as `Pictures.crops` gives."""
        size, count = self.config.size, len(ids)
        picture, ignore = given.crops(ids, size) if crops is None else crops
        prepared = [self._prepare(self.params, self.shared.code, take_frames(self.frames.code, i)) for i in ids]
        n_vertices = self.head.topology.n_vertices
        zero = RenderedData(
            picture=jnp.zeros((size, size, 3)),
            ignore=jnp.zeros((size, size)),
            box=jnp.zeros(4),
            prepared=prepared[0],
            target=jnp.zeros((n_vertices, 2)),
            target_weight=jnp.zeros(n_vertices),
        )
        return zero.replace(
            picture=jnp.asarray(picture),
            ignore=jnp.asarray(ignore),
            box=jnp.asarray(given.boxes[ids]),
            prepared=jnp.stack(prepared),
            target=jnp.zeros((count, n_vertices, 2)),
            target_weight=jnp.zeros((count, n_vertices)),
        )

    def pictures(self, given: Pictures, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(drawn, coverage, seen) of these frames' crops: drawn in linear radiance, seen in display values."""
        see, drawn, cover, seen = _seen_by(self), [], [], []
        for first in range(0, len(ids), self.config.frames_at_once):
            part = ids[first : first + self.config.frames_at_once]
            data = self.data(given, part)
            colour, coverage, _, _ = see(self.params, self.shared, take_frames(self.frames, part), data)
            drawn.append(np.asarray(colour))
            cover.append(np.asarray(coverage))
            seen.append(np.asarray(data.picture))
        return np.concatenate(drawn), np.concatenate(cover), np.concatenate(seen)

    def lit_from(self, shared: ClipVariables, frames: FrameVariables) -> "Registration":
        """The same with these variables."""
        return dataclasses.replace(self, shared=shared, frames=frames)

    def unlit(self) -> "Registration":
        """The same without any light, its codes of the length that the light model wants."""
        none = jnp.zeros((self.lights.rows, 3))
        code = self.shared.code.replace(light=none)
        light = np.zeros((len(self.frames.light), self.lights.rows, 3), np.float32)
        return self.lit_from(self.shared.replace(code=code), self.frames.replace(light=light))


def register(
    start: Registration,
    given: Pictures,
    stage: Stage,
    tell: Tell,
    keep: Checkpoint | None = None,
    name: str = "registration",
    only: np.ndarray | None = None,
) -> Registration:
    """Step 3 (eq. 7 and 8): pose and code of every frame, alone, under the light as it is: the stage's turns.

    only: ascending ids of the frames to move; None: all with a face.
    """
    config = start.config
    chosen = np.flatnonzero(given.valid) if only is None else only[given.valid[only]]
    total = len(chosen)
    one = rendered_objective(start.head, start.lights, start.render, start.camera, start.reference_px, config)
    see = _seen_by(start)

    def loss(v: PyTree, drawn: Array, params: PyTree, shared: PyTree, data: RenderedData) -> Array:
        del drawn  # a sum over all: Adam takes every number on its own, so frames do not meet
        return jnp.sum(jax.vmap(lambda f, d: one(params, shared, f, d, True))(v["frame"], data))

    turns = turns_of(stage, config)
    runs: list[Callable[..., Any]] = [
        by_flow(start, turn) if turn.by == "flow" else stepwise(loss, turn.free, steps=turn.steps, rate=turn.rate)
        for turn in turns
    ]
    frames = jax.tree_util.tree_map(np.array, start.frames)
    kept = keep.load(f"{name}-frames", frames) if keep else None
    done = int(kept[1]["done"]) if kept else 0
    if kept:
        frames = jax.tree_util.tree_map(np.array, kept[0])
    saved, batch = time.monotonic(), max(min(config.frames_at_once, total), 1)
    crops = given.stream(chosen[done:], config.size)
    for first in range(done, total, batch):
        tell(first, total)
        ids = chosen[np.minimum(np.arange(first, first + batch), total - 1)]
        current = dataclasses.replace(start, frames=frames)
        cut = list(itertools.islice(crops, min(batch, total - first)))
        cut += [cut[-1]] * (batch - len(cut))
        data = current.data(given, ids, (np.stack([c[0] for c in cut]), np.stack([c[1] for c in cut])))
        moved = take_frames(frames, ids)
        for turn, run in zip(turns, runs, strict=True):
            if turn.by == "flow":
                moved = run({"params": start.params, "shared": start.shared, "frame": moved}, data)
                continue
            if config.flow_weight > 0:
                data = flow_targets(data, *see(start.params, start.shared, moved, data))
            all_of_them = jnp.zeros((turn.steps, 1), jnp.int32)
            moved = run({"frame": moved}, all_of_them, start.params, start.shared, data)["frame"]
        fresh = np.arange(min(batch, total - first))
        put_frames(frames, ids[fresh], take_frames(moved, fresh))
        if keep and time.monotonic() - saved > _SAVE_EVERY_S:
            keep.save(f"{name}-frames", frames, done=first + batch)
            saved = time.monotonic()
    tell(total, total)
    return dataclasses.replace(start, frames=frames)


def _seen_by(start: Registration) -> Callable[..., Any]:
    """(picture, coverage, vertices' pixels, their visibility) of a batch of frames as they are."""

    def one(params: PyTree, shared: PyTree, frame: PyTree, data: RenderedData) -> Any:
        image, lit, pose, small = draw(
            start.head, start.lights, start.render, params, shared, frame, data, start.camera, start.reference_px
        )
        return image.colour, image.coverage, *visible_vertices(lit, image, pose, small, start.head.topology.faces)

    return jax.jit(jax.vmap(one, in_axes=(None, None, 0, 0)))


def turns_of(stage: Stage, config: FitConfig) -> tuple[Turn, ...]:
    """A stage's turns without what the config holds still."""

    def moves(name: str, turn: Turn) -> bool:
        return not (
            (name == "frame.light" and not config.changing_light)
            or (name.startswith("params.") and not config.adapt)
            or (turn.by == "flow" and config.flow_weight <= 0)
        )

    turns = stage.turns or (Turn(stage.free, stage.steps, stage.rate),)
    allowed = (dataclasses.replace(t, free=tuple(f for f in t.free if moves(f, t))) for t in turns)
    return tuple(t for t in allowed if t.free and t.steps)


def by_flow(start: Registration, turn: Turn) -> Callable[..., FrameVariables]:
    """(variables, data) -> their frames, `turn.steps` times drawn, compared by optical flow, and moved."""
    config = start.config
    see = _seen_by(start)
    solve = flow_solver(start.head, start.camera, start.reference_px, config, turn.free)

    def run(variables: PyTree, data: RenderedData) -> FrameVariables:
        params, shared, count = variables["params"], variables["shared"], len(data.picture)
        found = jax.tree_util.tree_map(lambda x: np.array(x[:count]), variables["frame"])
        for first in range(0, count, config.frames_at_once):
            rows = np.minimum(np.arange(first, first + config.frames_at_once), count - 1)
            frames, seen = take_frames(found, rows), take_frames(data, rows)
            for _ in range(turn.steps):
                frames = solve(shared, frames, flow_targets(seen, *see(params, shared, frames, seen)))
            put_frames(found, rows, frames)
        return found

    return run


def registration_of(head: HeadModel, result: TrackResult, config: FitConfig) -> Registration:
    """Where steps 2 and 3 start: what `fit_sequence` found of a head, by landmarks alone (`texture=False`) or more."""
    reference = float(np.median(face_radius_px(result.landmarks)))
    camera = result.camera
    poses = [variables_of(result.pose(k), camera, reference) for k in range(len(result))]
    frames = FrameVariables(
        pose=jax.tree_util.tree_map(lambda *x: np.stack(x), *poses),
        code=jax.tree_util.tree_map(np.array, result.frame_codes()),
        light=np.array(result.light_code),
    )
    shared = ClipVariables(code=result.identity_code(), log_focal=jnp.log(camera.focal[0]))
    return Registration(head, result.load_params(), shared, frames, camera, reference, config)
