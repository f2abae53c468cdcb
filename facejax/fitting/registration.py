"""Registration of an avatar by what it looks like: steps 2 and 3 of Chen et al. 2021.

`adapt` is Algorithm 1: on key frames, the clip's light and then the lighting network with the frames' pose and code, in
turns. `register` then moves every frame on its own, under that light.
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
    inside,
    rendered_objective,
    visible_vertices,
)
from facejax.fitting.variables import ClipVariables, FrameVariables, put_frames, take_frames, variables_of
from facejax.geometry.colour import srgb_to_linear
from facejax.geometry.errors import InputError
from facejax.geometry.records import Camera, PyTree
from facejax.models.head import HeadModel, Stage, Turn
from facejax.objectives.landmarks import face_radius_px
from facejax.renderers.deferred import Render
from facejax.renderers.textured import make_textured_renderer

Tell = Callable[[int, int], None]
_SAVE_EVERY_S = 10.0
_ROOM = 128  # key frames that arrays have room for, or a multiple
_LINEAR_FRAMES = 4
_LINEAR_CHANGING = 16
_LINEAR_PIXELS = 1500  # of each frame
_LINEAR_UNIT = 4.0  # of a code: a row alone at this strength is about as bright as rooms are
_LINEAR_RIDGE = 2e-6  # a unit of code adds about 0.01 to a pixel


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


def adapt(
    start: Registration,
    given: Pictures,
    key: np.ndarray,
    stage: Stage,
    tell: Tell,
    keep: Checkpoint | None = None,
    name: str = "adaptation",
) -> Registration:
    """Algorithm 1 (eq. 7) on the key frames `key`: each of the stage's turns, `stage.rounds` times over.

    At each step of a descent `config.frames_at_once` key frames are drawn by lot; with as many as there are, it is all
    of them, as in the paper. Turns by flow are not in the paper: a network that adapts to frames as landmarks left them
    learns their error, a constant lean above all, and step 3 then finds nothing to mend. With `config.changing_light`
    frames have lights of their own, smooth in time, and those between key frames are interpolated.
    """
    config = start.config
    ids = key[given.valid[key]]
    if not len(ids):
        raise InputError("Adaptation needs a key frame in which a face was found, and there is none: check the frames.")
    turns = _turns(stage, config)
    solved = start.unlit()
    if config.light_start == "linear":
        solved = _aligned_start(solved, given, ids, turns)
    one = rendered_objective(solved.head, solved.lights, solved.render, solved.camera, solved.reference_px, config)
    # Any number of key frames fills the same arrays, so that another number compiles nothing anew.
    room = -(-len(ids) // _ROOM) * _ROOM
    rows = ids[np.minimum(np.arange(room), len(ids) - 1)]
    kernel = jnp.asarray(_kernel(ids, room, config.light_change_frames))

    def loss(v: PyTree, drawn: Array, data: RenderedData, first: PyTree, kernel: Array) -> Array:
        frames, seen = take_frames(v["frame"], drawn), take_frames(data, drawn)
        if config.changing_light:
            frames = frames.replace(light=jnp.einsum("bk,kgc->bgc", kernel[drawn], v["frame"].light))
        each = jax.vmap(lambda f, d: one(v["params"], v["shared"], f, d, False))(frames, seen)
        total = jnp.mean(each)
        if config.changing_light:
            total += 1e-3 * jnp.mean(v["frame"].light ** 2)  # what all frames share belongs to the clip's light
        if config.network_prior > 0:
            moved = jax.tree_util.tree_map(lambda a, b: jnp.sum((a - b) ** 2), v["params"], first)
            total += config.network_prior * sum(jax.tree_util.tree_leaves(moved))
        return total

    data = take_frames(solved.data(given, ids), np.minimum(np.arange(room), len(ids) - 1))
    variables = {"params": solved.params, "shared": solved.shared, "frame": take_frames(solved.frames, rows)}
    kept = keep.load(f"{name}-rounds", variables) if keep else None
    done = int(kept[1]["done"]) if kept else 0
    if kept:
        variables = jax.tree_util.tree_map(jnp.asarray, kept[0])
    runs: list[Callable[..., Any]] = [
        _by_flow(start, turn) if turn.by == "flow" else stepwise(loss, turn.free, steps=turn.steps, rate=turn.rate)
        for turn in turns
    ]

    def lit(v: PyTree) -> FrameVariables:
        """The key frames with their own lights: what is solved for has these as its means over time."""
        light = jnp.einsum("bk,kgc->bgc", kernel, v["frame"].light) if config.changing_light else v["frame"].light
        return take_frames(v["frame"].replace(light=light), slice(len(ids)))

    for number in range(done, stage.rounds):
        for place, (turn, run) in enumerate(zip(turns, runs, strict=True)):
            tell(number * len(turns) + place, stage.rounds * len(turns))
            if turn.by == "flow":
                found = run({**variables, "frame": lit(variables)}, take_frames(data, slice(len(ids))))
                found = take_frames(found, np.minimum(np.arange(room), len(ids) - 1))
                variables = {**variables, "frame": found.replace(light=variables["frame"].light)}
                continue
            draws = _draws(len(ids), config, turn.steps, number * len(turns) + place)
            variables = run(variables, draws, data, start.params, kernel)
        jax.block_until_ready(variables)
        if keep:
            keep.save(f"{name}-rounds", variables, done=number + 1)
    frames, fitted = jax.tree_util.tree_map(np.array, solved.frames), lit(variables)
    put_frames(frames, ids, fitted)
    if config.changing_light and len(ids) > 1:
        frames = frames.replace(light=_between(np.asarray(fitted.light), ids, len(frames.light)))
    tell(1, 1)
    return dataclasses.replace(solved.lit_from(variables["shared"], frames), params=variables["params"])


def _kernel(ids: np.ndarray, room: int, width: float) -> Float[np.ndarray, "room room"]:
    """Rows that average over key frames `ids` with a Gaussian of this standard deviation in frames; none over padding.

    A light that is such a mean of unknowns without correlation has a Gaussian process in time as its prior. Unlike a
    penalty on differences it also lets every frame that is drawn speak for its neighbours' light.
    """
    kernel = np.zeros((room, room), np.float32)
    apart = (ids[:, None] - ids[None]) / max(width, 1e-3)
    near = np.exp(-0.5 * apart.astype(np.float64) ** 2)
    kernel[: len(ids), : len(ids)] = near / near.sum(axis=1, keepdims=True)
    return kernel


def _draws(count: int, config: FitConfig, steps: int, turn: int) -> Array:
    """(steps, b) which of `count` key frames each step of a turn looks at: by lot, or all of them."""
    random = np.random.default_rng([config.seed, turn])
    if config.frames_at_once >= count:
        every = np.arange(max(config.frames_at_once, 1)) % count if count < config.frames_at_once else np.arange(count)
        return jnp.asarray(np.tile(every, (steps, 1)), jnp.int32)
    lots = [random.choice(count, config.frames_at_once, replace=False) for _ in range(steps)]
    return jnp.asarray(np.stack(lots), jnp.int32)


def linear_start(dark: Registration, given: Pictures, ids: np.ndarray) -> Registration:
    """The clip's light as if light added up: each row of the code lights the head alone, and a sum explains the frames.

    Least squares of linear radiance over pixels that are not burnt out, on a few frames, without negative light where
    rows are lamps. A network is only nearly linear, so this is where Adam starts; the paper starts from darkness.
    With `config.changing_light` some key frames then get what their own pixels say, close to the clip's, and those
    between them what lies between.
    """
    config, rows = dark.config, dark.lights.rows
    wanted = _LINEAR_CHANGING if config.changing_light else _LINEAR_FRAMES
    few = ids[np.linspace(0, len(ids) - 1, min(wanted, len(ids))).astype(int)]

    @jax.jit
    def responses(params: PyTree, shared: PyTree, frame: PyTree, data: RenderedData) -> tuple[Array, Array]:
        def under(light: Array) -> tuple[Array, Array]:
            lit = shared.replace(code=shared.code.replace(light=light))
            image, *_ = draw(
                dark.head, dark.lights, dark.render, params, lit, frame, data, dark.camera, dark.reference_px
            )
            return image.colour, image.coverage

        none, coverage = under(jnp.zeros((rows, 3)))
        unit = _LINEAR_UNIT * jnp.eye(rows)[:, :, None] * jnp.ones(3)
        each = jax.lax.map(lambda light: under(light)[0], unit, batch_size=config.frames_at_once)
        return (each - none) / _LINEAR_UNIT, inside(coverage)

    systems = []
    for i in few:
        data = dark.data(given, np.array([i]))
        one = take_frames(data, 0)
        basis, mask = responses(dark.params, dark.shared, take_frames(dark.frames, int(i)), one)
        seen = np.asarray(one.picture)
        use = (np.asarray(mask) > 0) & (np.asarray(one.ignore) < 0.5) & (seen.max(axis=-1) < 0.98)
        where = np.flatnonzero(use)[:: max(int(use.sum()) // _LINEAR_PIXELS, 1)]
        columns = np.asarray(basis).reshape(rows, -1, 3)[:, where].transpose(2, 1, 0)  # (colour, pixel, row)
        systems.append((columns, srgb_to_linear(seen).reshape(-1, 3)[where].T))
    positive = config.light_model == "network"
    light = _least_squares(systems, np.zeros((rows, 3)), _LINEAR_RIDGE, positive)
    frames = dark.frames
    if config.changing_light:
        own = np.stack([_least_squares([s], light, 10 * _LINEAR_RIDGE, positive) for s in systems])
        frames = frames.replace(light=_between(own - light, few, len(frames.light)))
    code = dark.shared.code.replace(light=jnp.asarray(light, jnp.float32))
    return dark.lit_from(dark.shared.replace(code=code), frames)


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

    turns = _turns(stage, config)
    runs: list[Callable[..., Any]] = [
        _by_flow(start, turn) if turn.by == "flow" else stepwise(loss, turn.free, steps=turn.steps, rate=turn.rate)
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


def _turns(stage: Stage, config: FitConfig) -> tuple[Turn, ...]:
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


def _by_flow(start: Registration, turn: Turn) -> Callable[..., FrameVariables]:
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


def _aligned_start(dark: Registration, given: Pictures, ids: np.ndarray, turns: tuple[Turn, ...]) -> Registration:
    """`linear_start`, the frames moved by flow under that light, and the light found again."""
    flow = next((t for t in turns if t.by == "flow"), None)
    if flow is None:
        return linear_start(dark, given, ids)
    one_light = dataclasses.replace(dark, config=dataclasses.replace(dark.config, changing_light=False))
    first = linear_start(one_light, given, ids)
    variables = {"params": first.params, "shared": first.shared, "frame": take_frames(first.frames, ids)}
    frames = jax.tree_util.tree_map(np.array, dark.frames)
    put_frames(frames, ids, _by_flow(first, flow)(variables, first.data(given, ids)))
    return linear_start(dark.lit_from(dark.shared, frames), given, ids)


def _between(light: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    """Lights of all frames from those of key frames, linear in between and constant beyond."""
    flat = light.reshape(len(ids), -1)
    everywhere = np.arange(count)
    columns = [np.interp(everywhere, ids, flat[:, i]) for i in range(flat.shape[1])]
    return np.stack(columns, axis=1).reshape(count, *light.shape[1:]).astype(np.float32)


def registration_of(head: HeadModel, result: TrackResult, config: FitConfig) -> Registration:
    """Where steps 2 and 3 start: what `fit_sequence` found of a head, by landmarks alone (`texture=False`) or more."""
    if result.fitted is None:
        raise InputError("Registration goes on from a fit, and this result was read from a file: track the clip again.")
    reference = float(np.median(face_radius_px(result.landmarks)))
    camera = result.camera
    poses = [variables_of(result.pose(k), camera, reference) for k in range(len(result))]
    fitted = result.fitted
    frames = FrameVariables(
        pose=jax.tree_util.tree_map(lambda *x: np.stack(x), *poses),
        code=jax.tree_util.tree_map(np.array, fitted.frames),
        light=np.array(fitted.light),
    )
    shared = ClipVariables(code=fitted.shared, log_focal=jnp.log(camera.focal[0]))
    return Registration(head, fitted.params, shared, frames, camera, reference, config)
