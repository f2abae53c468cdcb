"""Adaptation of an avatar to a clip's light: step 2 of Chen et al. 2021, their Algorithm 1.

On key frames, the clip's light and then the lighting network with the frames' pose and code, in turns.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from facejax.fitting.checkpoint import Checkpoint
from facejax.fitting.config import FitConfig
from facejax.fitting.optimise import stepwise
from facejax.fitting.registration import Pictures, Registration, Tell, by_flow, turns_of
from facejax.fitting.rendered_fit import RenderedData, draw, inside, rendered_objective
from facejax.fitting.variables import FrameVariables, put_frames, take_frames
from facejax.geometry.colour import srgb_to_linear
from facejax.geometry.errors import InputError
from facejax.geometry.records import PyTree
from facejax.models.head import Stage

_ROOM = 128  # key frames that arrays have room for, or a multiple
_LINEAR_FRAMES = 4
_LINEAR_CHANGING = 16
_LINEAR_PIXELS = 1500  # of each frame
_LINEAR_UNIT = 4.0  # of a code: a row alone at this strength is about as bright as rooms are
_LINEAR_RIDGE = 2e-6  # a unit of code adds about 0.01 to a pixel


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
    turns = turns_of(stage, config)
    flows = {turn: by_flow(start, turn) for turn in turns if turn.by == "flow"}
    solved = start.unlit()
    if config.light_start == "linear":
        solved = _aligned_start(solved, given, ids, next(iter(flows.values()), None))
    one = rendered_objective(solved.head, solved.lights, solved.render, solved.camera, solved.reference_px, config)
    # Any number of key frames fills the same arrays, so that another number compiles nothing anew.
    room = -(-len(ids) // _ROOM) * _ROOM
    rows = ids[np.minimum(np.arange(room), len(ids) - 1)]
    kernel = jnp.asarray(time_kernel(ids, room, config.light_change_frames))

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
        flows[turn] if turn in flows else stepwise(loss, turn.free, steps=turn.steps, rate=turn.rate) for turn in turns
    ]

    def lit(v: PyTree) -> FrameVariables:
        """The key frames with their own lights: what is solved for has these as its means over time."""
        light = jnp.einsum("bk,kgc->bgc", kernel, v["frame"].light) if config.changing_light else v["frame"].light
        return take_frames(v["frame"].replace(light=light), slice(len(ids)))

    for number in range(done, stage.rounds):
        for place, (turn, run) in enumerate(zip(turns, runs, strict=True)):
            tell(number * len(turns) + place, stage.rounds * len(turns))
            if turn in flows:
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


def _aligned_start(
    dark: Registration, given: Pictures, ids: np.ndarray, follow: Callable[..., FrameVariables] | None
) -> Registration:
    """`linear_start`, the frames moved by flow (`follow`, of `by_flow`) under that light, and the light found again."""
    if follow is None:
        return linear_start(dark, given, ids)
    one_light = dataclasses.replace(dark, config=dataclasses.replace(dark.config, changing_light=False))
    first = linear_start(one_light, given, ids)
    variables = {"params": first.params, "shared": first.shared, "frame": take_frames(first.frames, ids)}
    frames = jax.tree_util.tree_map(np.array, dark.frames)
    put_frames(frames, ids, follow(variables, first.data(given, ids)))
    return linear_start(dark.lit_from(dark.shared, frames), given, ids)


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


def time_kernel(ids: np.ndarray, room: int, width: float) -> Float[np.ndarray, "room room"]:
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


def _between(light: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    """Lights of all frames from those of key frames, linear in between and constant beyond."""
    flat = light.reshape(len(ids), -1)
    everywhere = np.arange(count)
    columns = [np.interp(everywhere, ids, flat[:, i]) for i in range(flat.shape[1])]
    return np.stack(columns, axis=1).reshape(count, *light.shape[1:]).astype(np.float32)
