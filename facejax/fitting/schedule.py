"""What is solved when: stages over key frames together, over windows in time, or over frames alone.

A stage takes the unknowns of a whole clip and gives them back moved, with a record of how it ended. What is finished is
kept on disk, so that an interrupted run goes on.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from facejax.fitting.checkpoint import Checkpoint
from facejax.fitting.footage import Footage
from facejax.fitting.solve import (
    Descent,
    GaussNewton,
    Lots,
    Settle,
    Solved,
    Turn,
    by_lots,
    curvature_solver,
    descent_solver,
    gauss_newton_solver,
)
from facejax.fitting.start import bridge, spread_from_keys
from facejax.fitting.terms.pictures import between
from facejax.fitting.terms.term import Observed
from facejax.geometry.errors import InputError
from facejax.geometry.records import PyTree
from facejax.scenes import Scene, Unknowns
from facejax.scenes.unknowns import on_host, put_frames, take_frames

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and how much there is."""

_OVERLAP = 8  # frames that two windows share: half are held as the earlier window left them, half solved again
_CURVATURE_FRAMES = 8
_ROOM = 128  # key frames that arrays of a stage by lots have room for, or a multiple
_SAVE_EVERY_S = 10.0


@dataclasses.dataclass(frozen=True)
class Stage:
    """Optimisations that follow each other on some frames."""

    name: str
    """Shown in the progress display and in records of how a fit went."""
    turns: tuple[Turn, ...]
    frames: Literal["key", "windows", "alone"]
    """`key`: the key frames, with what they share; `windows`: every frame, in overlapping windows of time, what is
    shared held; `alone`: every frame with a face on its own."""
    rounds: int = 1
    """How often the turns are taken."""
    window: int = 64
    """Frames of a window."""
    others: Literal["stay", "alike", "light"] = "stay"
    """Where frames that are no key frames go on from: as they are; from the key frame most like them, posed anew; or
    under the median of the key frames' light."""
    settle: bool = False
    """Whether the terms' closed forms are settled at the end."""

    def __post_init__(self) -> None:
        allowed = {"key": (Descent, Lots, GaussNewton, Settle), "windows": (Descent,), "alone": (Lots, GaussNewton)}
        wrong = [type(t.by).__name__ for t in self.turns if not isinstance(t.by, allowed[self.frames])]
        if wrong or not self.turns or (self.frames == "windows" and len(self.turns) > 1):
            names = " or ".join(kind.__name__ for kind in allowed[self.frames])
            many = "one turn" if self.frames == "windows" else "turns"
            raise InputError(
                f"The stage {self.name!r} over {self.frames} frames takes {many} by {names}, and has {len(self.turns)} "
                f"by {', '.join(wrong) or 'these'}."
            )


@dataclasses.dataclass(frozen=True)
class StageLog:
    """How a stage ended."""

    name: str
    frames: int
    losses: tuple[float, ...]
    """Of the last turn, before each step; of windows the mean."""
    stopped: Bool[np.ndarray, "f"]
    """Frames that were not finite, or stopped being so."""
    unmatched: Bool[np.ndarray, "f"]
    """Frames whose pictures stayed too far off."""

    def as_numbers(self) -> dict[str, Any]:
        """For `metrics.json`."""
        ends = {"first_loss": self.losses[0], "last_loss": self.losses[-1]} if self.losses else {}
        return {"name": self.name, "frames": self.frames, **ends, "frames_stopped": int(self.stopped.sum())}


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """What stages work on."""

    scene: Scene
    footage: Footage
    key: np.ndarray
    """Ids of the key frames."""
    alike: Float[np.ndarray, "f d"]
    """What tells frames apart, see `facejax.fitting.start.likeness`."""
    report: Progress = lambda stage, done, total: None
    keep: Checkpoint | None = None

    @property
    def usable(self) -> Bool[np.ndarray, "f"]:
        """Frames with enough points to count."""
        return np.isfinite(self.footage.points).all(axis=2).sum(axis=1) >= 8


def run_stages(job: Job, stages: tuple[Stage, ...], unknowns: Unknowns) -> tuple[Unknowns, list[StageLog]]:
    """All stages in order. What a checkpoint already holds is not done again."""
    logs = []
    for number, stage in enumerate(stages):
        name = f"{number}-{stage.name}"
        kept = _kept(job, name, unknowns)
        if kept is not None:
            unknowns, log = kept[0], _kept_log(stage, kept[1])
        else:
            unknowns, log = run_stage(job, stage, unknowns, name)
            _keep(job, name, unknowns, frames=log.frames, losses=np.array(log.losses), stopped=log.stopped,
                  unmatched=log.unmatched)  # fmt: skip
        logs.append(log)
    return unknowns, logs


def _moving(job: Job, unknowns: Unknowns) -> PyTree:
    """What a stage may have moved: not the bases of a head whose parameters no stage frees."""
    params = unknowns.params if "network" in job.scene.head.roles else ()
    return params, unknowns.clip, unknowns.frames


def _keep(job: Job, name: str, unknowns: Unknowns, **numbers: Any) -> None:
    """On disk, where a checkpoint is asked for."""
    if job.keep:
        settled = {f"settled {k}": v for k, v in unknowns.settled.items()}
        job.keep.save(name, _moving(job, unknowns), **settled, **numbers)


def _kept(job: Job, name: str, unknowns: Unknowns) -> tuple[Unknowns, dict[str, Any]] | None:
    """The unknowns as an interrupted run of this input kept them, and the numbers beside."""
    kept = job.keep.load(name, _moving(job, unknowns)) if job.keep else None
    if kept is None:
        return None
    (params, clip, frames), numbers = kept
    settled = {k.removeprefix("settled "): v for k, v in numbers.items() if k.startswith("settled ")}
    moved = unknowns.replace(clip=clip, frames=frames, settled=settled)
    return (moved if params == () else moved.replace(params=params)), numbers


def _kept_log(stage: Stage, numbers: dict[str, Any]) -> StageLog:
    losses = tuple(float(x) for x in numbers["losses"])
    return StageLog(stage.name, int(numbers["frames"]), losses, numbers["stopped"], numbers["unmatched"])


def run_stage(
    job: Job, stage: Stage, unknowns: Unknowns, name: str = "", only: np.ndarray | None = None
) -> tuple[Unknowns, StageLog]:
    """One stage. only: ascending ids of the frames to move in a stage over frames alone; None: all with a face."""
    if stage.frames == "windows":
        return _windows(job, stage, unknowns, name or stage.name)
    if stage.frames == "alone":
        return _alone(job, stage, unknowns, name or stage.name, only)
    return _key_frames(job, stage, unknowns, name or stage.name)


# -- key frames --------------------------------------------------------------------------------------------------------


def _key_frames(job: Job, stage: Stage, unknowns: Unknowns, name: str) -> tuple[Unknowns, StageLog]:
    ids = job.key[job.footage.valid[job.key]]
    if not len(ids):
        raise InputError(f"The stage {stage.name!r} needs a key frame in which a face was found: check the frames.")
    sight = _Sight(job, ids)
    kept = _kept(job, f"{name}-rounds", unknowns) if stage.rounds > 1 else None
    done = int(kept[1]["done"]) if kept else 0
    unknowns = kept[0] if kept else unknowns
    solved, kernel = None, None
    for number in range(done, stage.rounds):
        for place, turn in enumerate(stage.turns):
            job.report(stage.name, number * len(stage.turns) + place, stage.rounds * len(stage.turns))
            if isinstance(turn.by, Settle):
                for term in turn.terms:
                    unknowns = term.settle(job.scene, job.footage, unknowns, ids, None)
            elif isinstance(turn.by, GaussNewton):
                unknowns = _follow(job, turn, unknowns, ids, sight, kernel)
            elif isinstance(turn.by, Lots):
                kernel = sight.kernel(turn.by)
                unknowns, solved = _drawn(job, turn, unknowns, ids, sight, kernel, number * len(stage.turns) + place)
            else:
                unknowns, solved = _together(job, turn, unknowns, ids, sight)
        if stage.rounds > 1:
            _keep(job, f"{name}-rounds", unknowns, done=number + 1)
    if kernel is not None:
        unknowns = _lights_over_time(unknowns, ids, kernel)
    if stage.settle:
        for term in stage.turns[-1].terms:
            good = ids[~sight.stopped[ids]]
            unknowns = term.settle(job.scene, job.footage, unknowns, good, sight.rows(stage.turns[-1], term, good))
    unknowns = _lead_others(job, stage, unknowns, ids)
    job.report(stage.name, 1, 1)
    return unknowns, _log(stage, job, ids, solved, sight)


class _Sight:
    """What was observed of the frames of a stage, a term at a time, and which of them failed."""

    def __init__(self, job: Job, ids: np.ndarray) -> None:
        self.job, self.ids = job, ids
        self.stopped = np.zeros(len(job.footage.points), bool)
        self.unmatched = np.zeros(len(job.footage.points), bool)
        self._seen: dict[Any, Observed] = {}

    def of(self, turn: Turn, unknowns: Unknowns, again: bool = False) -> tuple[Observed, ...]:
        """Each term's observation, made once unless asked for `again`."""
        for term in turn.terms:
            before = self._seen.get(term)
            if before is None or again:
                self._seen[term] = term.observe(self.job.scene, self.job.footage, unknowns, self.ids, before)
        return tuple(self._seen[term] for term in turn.terms)

    def rows(self, turn: Turn, term: Any, ids: np.ndarray) -> Observed:
        seen = self._seen[term]
        return seen.replace(frames=take_frames(seen.frames, np.searchsorted(self.ids, ids)))

    def kernel(self, by: Lots) -> Float[Array, "k k"] | None:
        if by.light_frames <= 0:
            return None
        return jnp.asarray(time_kernel(self.ids, _room(len(self.ids)), by.light_frames))

    def took(self, turn: Turn, ids: np.ndarray, solved: Solved) -> None:
        """Remember which frames failed in a solve whose first rows are `ids`."""
        finite = np.asarray(solved.finite)[: len(ids)] & bool(solved.whole)
        self.stopped[ids] |= ~finite
        last = np.asarray(solved.last)[:, : len(ids)]
        for losses, term in zip(last, turn.terms, strict=True):
            if term.lost_above is not None:
                self.unmatched[ids] = losses > term.lost_above


def _together(job: Job, turn: Turn, unknowns: Unknowns, ids: np.ndarray, sight: _Sight) -> tuple[Unknowns, Solved]:
    """All key frames in one descent, with what they share."""
    seen = sight.of(turn, unknowns, again=True)
    good = _finite_frames(unknowns, seen, ids)
    sight.stopped[ids[~good]] = True
    if not good.any():
        return unknowns, _nothing_solved(turn, len(ids))
    few = np.flatnonzero(good)[np.linspace(0, good.sum() - 1, min(_CURVATURE_FRAMES, _bucket(len(ids)))).astype(int)]
    metric = curvature_solver(job.scene, turn, False)(_variables(unknowns, ids[few]), _rows(seen, few))
    rows = np.minimum(np.arange(_bucket(len(ids))), len(ids) - 1)
    real = (np.arange(len(rows)) < len(ids)) & good[rows] & job.usable[ids[rows]]
    rows = np.where(good[rows], rows, few[0])
    solved = descent_solver(job.scene, turn, False)(
        metric, _variables(unknowns, ids[rows]), _rows(seen, rows), jnp.asarray(real, jnp.float32),
        jnp.zeros(len(rows), bool),
    )  # fmt: skip
    sight.took(turn, ids, solved)
    return _written(unknowns, ids, good, solved), solved


def _drawn(
    job: Job,
    turn: Turn,
    unknowns: Unknowns,
    ids: np.ndarray,
    sight: _Sight,
    kernel: Array | None,
    number: int,
) -> tuple[Unknowns, Solved]:
    """Key frames by lot. Any number of them fills the same arrays, so that another number compiles nothing anew."""
    assert isinstance(turn.by, Lots)
    seen = sight.of(turn, unknowns)
    good = _finite_frames(unknowns, seen, ids)
    sight.stopped[ids[~good]] = True
    if not good.any():
        return unknowns, _nothing_solved(turn, len(ids))
    rows = np.minimum(np.arange(_room(len(ids))), len(ids) - 1)
    rows = np.where(good[rows], rows, np.flatnonzero(good)[0])
    draws = np.flatnonzero(good)[_draws(int(good.sum()), turn.by, turn.steps, number)]
    solved = by_lots(job.scene, turn, _variables(unknowns, ids[rows]), _rows(seen, rows), draws, kernel)
    sight.took(turn, ids, solved)
    return _written(unknowns, ids, good, solved), solved


def _follow(
    job: Job, turn: Turn, unknowns: Unknowns, ids: np.ndarray, sight: _Sight, kernel: Array | None = None
) -> Unknowns:
    """Gauss-Newton: frames a few at a time, observed anew before each of the turn's steps."""
    assert isinstance(turn.by, GaussNewton)
    (term,) = turn.terms
    latent = unknowns.frames.light
    lit = unknowns if kernel is None else _lights_over_time(unknowns, ids, kernel)
    solve = gauss_newton_solver(job.scene, turn)
    for first in range(0, len(ids), turn.by.frames):
        part = ids[np.minimum(np.arange(first, first + turn.by.frames), len(ids) - 1)]
        seen = None
        for _ in range(turn.steps):
            seen = term.observe(job.scene, job.footage, lit, part, seen)
            frames, finite = solve(_variables(lit, part), seen)
            sight.stopped[part[~np.asarray(finite)]] = True
            lit = lit.replace(frames=put_frames(lit.frames, part, frames))
    return lit.replace(frames=lit.frames.replace(light=latent))


def _lead_others(job: Job, stage: Stage, unknowns: Unknowns, ids: np.ndarray) -> Unknowns:
    if stage.others == "alike":
        return spread_from_keys(job.scene, job.footage, unknowns, ids, job.alike)
    if stage.others == "light":

        def median(x: np.ndarray) -> np.ndarray:
            led = np.broadcast_to(np.median(x[ids], axis=0), x.shape).copy()
            led[ids] = x[ids]
            return led

        light = jax.tree_util.tree_map(median, unknowns.frames.light)
        return unknowns.replace(frames=unknowns.frames.replace(light=light))
    return unknowns


def _lights_over_time(unknowns: Unknowns, ids: np.ndarray, kernel: Array) -> Unknowns:
    """Frames' lights as the means over time that a kernel makes of key frames', linear between those."""
    weights = np.asarray(kernel)[: len(ids), : len(ids)]
    frames = unknowns.frames

    def mean(x: np.ndarray) -> np.ndarray:
        means = np.tensordot(weights, x[ids], 1).astype(np.float32)
        if len(ids) > 1:
            return between(means, ids, len(x))
        return np.broadcast_to(means, x.shape).copy()

    return unknowns.replace(frames=frames.replace(light=jax.tree_util.tree_map(mean, frames.light)))


# -- windows -----------------------------------------------------------------------------------------------------------


def _windows(job: Job, stage: Stage, unknowns: Unknowns, name: str) -> tuple[Unknowns, StageLog]:
    """Every frame, in overlapping windows; neighbours in time pull at each other."""
    (turn,) = stage.turns
    count = len(job.footage.points)
    window, starts = window_starts(count, stage.window)
    sight, losses = _Sight(job, np.arange(count)), []
    kept = _kept(job, f"{name}-windows", unknowns)
    done = int(kept[1]["done"]) if kept else 0
    if kept:
        unknowns, sight.stopped, sight.unmatched = kept[0], kept[1]["stopped"], kept[1]["unmatched"]
        losses = [kept[1]["losses"]] if kept[1]["losses"].size else []
    metric, saved = None, time.monotonic()
    key = job.key[np.linspace(0, len(job.key) - 1, _CURVATURE_FRAMES).astype(int)]
    for number in range(done, len(starts)):
        if metric is None:
            seen = _Sight(job, key).of(turn, unknowns)
            good = np.flatnonzero(_finite_frames(unknowns, seen, key))
            if not len(good):
                sight.stopped[:] = True
                break
            few = good[np.linspace(0, len(good) - 1, len(key)).astype(int)]
            metric = curvature_solver(job.scene, turn, True)(_variables(unknowns, key[few]), _rows(seen, few))
        start = starts[number]
        job.report(stage.name, start, count)
        ids = np.arange(start, min(start + window, count))
        solved, good = _window(job, turn, unknowns, ids, window, metric, held=start > 0)
        sight.stopped[ids[~good]] = True
        sight.took(turn, ids, solved)
        unknowns = _written(unknowns, ids, good, solved, clip=False)
        losses.append(np.asarray(solved.losses))
        if time.monotonic() - saved > _SAVE_EVERY_S:
            _keep(job, f"{name}-windows", unknowns, done=number + 1, stopped=sight.stopped, unmatched=sight.unmatched,
                  losses=np.mean(losses, axis=0))  # fmt: skip
            saved = time.monotonic()
    valid = np.asarray(job.footage.valid)
    frames = unknowns.frames
    unknowns = unknowns.replace(frames=frames.replace(pose=bridge(frames.pose, valid), code=bridge(frames.code, valid)))
    job.report(stage.name, count, count)
    mean = tuple(float(x) for x in np.mean(losses, axis=0)) if losses else ()
    return unknowns, StageLog(stage.name, count, mean, sight.stopped, sight.unmatched)


def window_starts(count: int, wanted: int) -> tuple[int, list[int]]:
    """(frames of a window, first frame of each) over a clip: of `wanted` frames, or the power of two that holds all;
    each overlaps the one before by 8 frames, or by half."""
    window = max(8, min(wanted, 1 << (count - 1).bit_length()))
    starts = [0]
    while starts[-1] + window < count:
        starts.append(starts[-1] + window - min(_OVERLAP, window // 2))
    return window, starts


def _window(
    job: Job, turn: Turn, unknowns: Unknowns, ids: np.ndarray, window: int, metric: Array, held: bool
) -> tuple[Solved, np.ndarray]:
    """(how it ended, which frames took part) of one window, padded to its length."""
    seen = _Sight(job, ids).of(turn, unknowns)
    good = _finite_frames(unknowns, seen, ids)
    rows = np.minimum(np.arange(window), len(ids) - 1)
    real = (np.arange(window) < len(ids)) & good[rows] & job.usable[ids[rows]]
    if good.any():
        rows = np.where(good[rows], rows, np.flatnonzero(good)[0])
    still = jnp.asarray((np.arange(window) < _OVERLAP // 2) & held)
    solved = descent_solver(job.scene, turn, True)(
        metric, _variables(unknowns, ids[rows]), _rows(seen, rows), jnp.asarray(real, jnp.float32), still
    )
    return solved, good


# -- frames alone ------------------------------------------------------------------------------------------------------


def _alone(job: Job, stage: Stage, unknowns: Unknowns, name: str, only: np.ndarray | None) -> tuple[Unknowns, StageLog]:
    """Every frame on its own, a few at a time; the next few need nothing of these."""
    valid = np.asarray(job.footage.valid)
    chosen = np.flatnonzero(valid) if only is None else only[valid[only]]
    total, whole = len(chosen), _Sight(job, chosen)
    batch = max(min(next((t.by.frames for t in stage.turns if isinstance(t.by, (Lots, GaussNewton))), 4), total), 1)
    kept = _kept(job, f"{name}-frames", unknowns)
    done = int(kept[1]["done"]) if kept else 0
    if kept:
        unknowns, whole.stopped, whole.unmatched = kept[0], kept[1]["stopped"], kept[1]["unmatched"]
    saved, solved = time.monotonic(), None
    for first in range(done, total, batch):
        job.report(stage.name, first, total)
        fresh = np.arange(first, min(first + batch, total))
        ids = chosen[np.minimum(np.arange(first, first + batch), total - 1)]
        sight = _Sight(job, ids)
        for _ in range(stage.rounds):
            for turn in stage.turns:
                if isinstance(turn.by, GaussNewton):
                    unknowns = _follow(job, turn, unknowns, ids, sight)
                    continue
                seen = sight.of(turn, unknowns, again=True)
                good = _finite_frames(unknowns, seen, ids)
                sight.stopped[ids[~good]] = True
                if not good.any():
                    continue
                rows = np.where(good, np.arange(batch), np.flatnonzero(good)[0])
                everyone = np.tile(np.arange(batch), (turn.steps, 1))
                solved = by_lots(job.scene, turn, _variables(unknowns, ids[rows]), _rows(seen, rows), everyone)
                sight.took(turn, ids, solved)
                unknowns = _written(unknowns, ids, good, solved, clip=False)
        whole.stopped |= sight.stopped
        whole.unmatched |= sight.unmatched
        if time.monotonic() - saved > _SAVE_EVERY_S:
            _keep(job, f"{name}-frames", unknowns, done=int(fresh[-1]) + 1, stopped=whole.stopped,
                  unmatched=whole.unmatched)  # fmt: skip
            saved = time.monotonic()
    job.report(stage.name, total, total)
    return unknowns, _log(stage, job, chosen, solved, whole)


# -- pieces ------------------------------------------------------------------------------------------------------------


def _variables(unknowns: Unknowns, ids: np.ndarray) -> dict[str, PyTree]:
    return {"params": unknowns.params, "clip": unknowns.clip, "frame": take_frames(unknowns.frames, ids)}


def _rows(seen: tuple[Observed, ...], rows: np.ndarray) -> tuple[Observed, ...]:
    return tuple(told.replace(frames=take_frames(told.frames, rows)) for told in seen)


def _written(unknowns: Unknowns, ids: np.ndarray, good: np.ndarray, solved: Solved, clip: bool = True) -> Unknowns:
    """The unknowns with what a solve found, of the frames that took part and stayed finite."""
    v, rows = solved.variables, np.flatnonzero(good & np.asarray(solved.finite)[: len(ids)])
    frames = put_frames(unknowns.frames, ids[rows], take_frames(on_host(v["frame"]), rows))
    if not clip or not bool(solved.whole):
        return unknowns.replace(frames=frames)
    return unknowns.replace(params=v["params"], clip=v["clip"], frames=frames)


def _finite_frames(unknowns: Unknowns, seen: tuple[Observed, ...], ids: np.ndarray) -> Bool[np.ndarray, "n"]:
    """Frames of which everything is finite: one that is not would spoil what it shares with others."""
    good = np.ones(len(ids), bool)
    trees = [take_frames(unknowns.frames, ids), *(told.frames for told in seen)]
    for leaf in jax.tree_util.tree_leaves(trees):
        values = np.asarray(leaf)
        if np.issubdtype(values.dtype, np.floating):
            good &= np.isfinite(values).reshape(len(ids), -1).all(axis=1)
    return good


def _nothing_solved(turn: Turn, count: int) -> Solved:
    return Solved(
        variables={},
        losses=jnp.zeros(0),
        last=jnp.zeros((len(turn.terms), count)),
        finite=jnp.zeros(count, bool),
        whole=jnp.asarray(False),
    )


def _log(stage: Stage, job: Job, ids: np.ndarray, solved: Solved | None, sight: _Sight) -> StageLog:
    losses = () if solved is None else tuple(float(x) for x in np.asarray(solved.losses))
    return StageLog(stage.name, len(ids), losses, sight.stopped, sight.unmatched)


def _bucket(count: int) -> int:
    """The power of two with room for so many: another clip's key frames compile nothing anew."""
    return 1 << max(count - 1, 0).bit_length()


def _room(count: int) -> int:
    return -(-count // _ROOM) * _ROOM


def _draws(count: int, by: Lots, steps: int, turn: int) -> np.ndarray:
    """(steps, b) which of `count` key frames each step of a turn looks at: by lot, or all of them."""
    random = np.random.default_rng([by.seed, turn])
    if by.frames >= count:
        every = np.arange(max(by.frames, 1)) % count
        return np.tile(every, (steps, 1)).astype(np.int32)
    lots = [random.choice(count, by.frames, replace=False) for _ in range(steps)]
    return np.stack(lots).astype(np.int32)


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
