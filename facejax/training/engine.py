"""The training loop. It takes a recipe and knows no system by name; read `train` from top to bottom.

Rules that hold here:
- Two runs of one config on one machine agree to the last bit, interrupted or not. Random draws depend on seed and step,
  batches on seed and position, and both are in the checkpoint.
- A state that is not finite is never kept: a checkpoint is saved after every step up to it was looked at.
- The loop does not wait for the devices. It looks at the numbers of a step while the next ones are under way.
- --resume goes on from the last whole checkpoint, or from the start where there is none. Config, recipe version and
  data must be those of the run; what is under `machine` may change, the number of devices and hosts too.
- SIGTERM, Ctrl-C and a host's notice of preemption finish the step, save, and end the run.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from facejax.data.checkpoints import describe_files, provenance
from facejax.data.sources import Batches, MachineError, Share, Source, fingerprint
from facejax.geometry.errors import InputError
from facejax.geometry.processes import safe_workers
from facejax.geometry.records import PyTree
from facejax.training.config import differences, from_json, to_json
from facejax.training.folder import Checkpoints, is_remote, locked, open_folder, read_json, write_json
from facejax.training.metrics import Pace, Reporter, flops_of, peak_flops
from facejax.training.recipe import Recipe
from facejax.training.sharding import check_batch, make_mesh, put_batch, replicated, rows, shardings

FORMAT = 1
"""Of config.json and manifest.json in a run's folder."""

_LAG = 2  # steps under way whose numbers have not been looked at
_GRADIENT = "gradient norm"


class NonFiniteLossError(MachineError):
    """The loss, or its gradient, became infinite or not a number."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    step: int
    """Steps done in all."""
    finished: bool
    """Whether that is all of them; if not, `--resume` goes on."""
    stopped_by: str = ""
    """What ended it early."""
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    """The last evaluation on the test split."""
    best_step: int | None = None
    """Step of the best checkpoint."""
    ready_seconds: float = 0.0
    """From the call to the first step, compilation and the restoring of a checkpoint included."""


def train(
    recipe: Recipe,
    data: Path | str,
    out: Path | str,
    *,
    preset: str = "",
    resume: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Outcome:
    """Trains a recipe on a data folder and keeps everything in `out`, a folder or gs:// address.

    progress: `progress(stage, done, total)`, called often. say: takes a line of text at each report.

    Raises `InputError` for what the caller can mend, `NonFiniteLossError` with step and term, and `MachineError` for a
    full disk or a worker process that died.
    """
    began = time.perf_counter()
    run, machine = recipe.config.run, recipe.config.machine
    if jax.process_index() != 0:  # one host speaks
        progress = say = None
    progress, say, data = progress or _ignore, say or _ignore, Path(data).expanduser()
    with contextlib.ExitStack() as stack:
        stack.enter_context(safe_workers())
        # Where: devices, the folder, the data.
        mesh = make_mesh(jax.devices(), machine.model_axis)
        check_batch(run.batch, mesh)
        source, test = recipe.data(data, "train"), recipe.data(data, "test")
        folder = open_folder(out)
        stack.enter_context(locked(folder))
        begin(recipe, preset, folder, fingerprint(data), resume)
        stop = stack.enter_context(stop_signals())
        checkpoints = Checkpoints(folder / "checkpoints", recipe.score)
        stack.callback(checkpoints.close)

        # From what: the last checkpoint, or the first parameters.
        initial = functools.partial(initial_state, recipe, source)
        layout = lay_out(jax.eval_shape(initial), mesh, recipe)
        if checkpoints.last() is None:
            state, start = jax.jit(initial, out_shardings=jax.tree.map(lambda s: s.sharding, layout))(), 0
        else:
            state, start = checkpoints.restore(layout)
            say(f"goes on from step {start}")
        reporter = Reporter(folder, start, machine.tensorboard)
        stack.callback(reporter.close)

        # By what: the compiled step, and batches from where the last one ended.
        share = Share(jax.process_index(), jax.process_count())
        augment = None if type(recipe).augment is Recipe.augment else recipe.augment
        batches = Batches(
            source, run.batch, seed=run.seed, position=start, share=share, augment=augment,
            threads=machine.threads, workers=machine.workers,
        )  # fmt: skip
        stack.callback(batches.close)
        peek, batches_ahead = _peek(batches)
        advance, names = compile_step(recipe, layout, mesh, peek)
        watch, evaluator, flops = Watch(names), Evaluator(recipe, test, mesh, run.batch), flops_of(advance)
        pace = Pace(run.batch, mesh.size, flops, peak_flops(mesh.devices.flat[0].device_kind, machine.peak_tflops))
        ready, scores = time.perf_counter() - began, checkpoints.scores(start)
        reporter.line(start, {"event": "start", "ready_s": ready, "devices": mesh.size, "flops_per_step": flops})
        pace.start(start, batches.waited)

        for step in range(start + 1, run.steps + 1):
            batch = put_batch(next(batches_ahead), mesh)
            with jax.transfer_guard("disallow"):  # nothing slips between host and devices unseen
                state, numbers = advance(state, batch)
            watch.look(step, numbers)
            progress("train", step, run.steps)

            last, stopped = step == run.steps, stop.asked(step)
            if _due(step, machine.log_every) or last or stopped:
                watch.catch_up()
                checkpoints.check()  # a save that failed is told soon
                line = {**watch.means(), **pace.report(step, batches.waited)}
                reporter.line(step, line)
                say(_told(step, run.steps, line))
            aside, scores_here = time.perf_counter(), None
            if _due(step, machine.eval_every) or last:
                watch.catch_up()
                scores = scores_here = evaluator.scores(state)
                reporter.line(step, {f"test/{name}": value for name, value in scores.items()})
            if _due(step, machine.pictures_every) or last:
                reporter.pictures(step, evaluator.pictures(state))
            pace.leave_out(time.perf_counter() - aside)
            if _due(step, machine.save_every) or scores_here or stopped:
                watch.catch_up()  # what went wrong is not kept
                checkpoints.save(step, state, step, scores_here)
                reporter.flush()
            if stopped and not last:
                checkpoints.wait()
                return Outcome(step, False, stop.reason, scores, checkpoints.best(), ready)

        # All steps done: the record of what was made, from what, by what.
        checkpoints.wait()
        if jax.process_index() == 0 and not is_remote(folder):
            write_json(folder / "manifest.json", run_manifest(recipe, folder, mesh, checkpoints.best()))
        return Outcome(run.steps, True, "", scores, checkpoints.best(), ready)


def initial_state(recipe: Recipe, source: Source) -> PyTree:
    """Everything that changes from step to step, as the first step finds it."""
    return _before(recipe, *recipe.init(jax.random.key(recipe.config.run.seed), source))


def rehearse(recipe: Recipe, batch: int | None = None) -> tuple[PyTree, PyTree]:
    """(a state, a batch) of random numbers that `make_step` takes: what a step costs is measured on them, without data.

    batch: examples, all of them the same; by default as many as the recipe's config says. Raises `InputError` for a
    recipe without a `rehearsal`.
    """
    params, state, example = recipe.rehearsal(jax.random.key(recipe.config.run.seed))
    count = recipe.config.run.batch if batch is None else batch
    rows = {name: jnp.repeat(jnp.asarray(value)[None], count, axis=0) for name, value in example.items()}
    return _before(recipe, params, state), rows


def _before(recipe: Recipe, params: PyTree, state: PyTree) -> PyTree:
    """What the first step finds."""
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "state": state,
        "optimiser": recipe.optimiser().init(params),
    }


def lay_out(shapes: PyTree, mesh: Mesh, recipe: Recipe) -> PyTree:
    """The shapes of a state with where each array lies."""
    places = shardings(shapes, mesh, recipe.sharding_rules())
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, places
    )


def make_step(recipe: Recipe) -> Callable[[PyTree, PyTree], tuple[PyTree, dict[str, jax.Array]]]:
    """(state, batch) -> (next state, terms of the loss and the gradient's norm): one step, a pure function."""
    optimiser, seed = recipe.optimiser(), recipe.config.run.seed

    def step(state: PyTree, batch: PyTree) -> tuple[PyTree, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state["step"])

        def total(params: PyTree) -> tuple[jax.Array, tuple[dict[str, jax.Array], PyTree]]:
            terms, rest = recipe.loss(params, state["state"], batch, key)
            return functools.reduce(jnp.add, terms.values()), (terms, rest)

        (_, (terms, rest)), gradient = jax.value_and_grad(total, has_aux=True)(state["params"])
        updates, optimiser_state = optimiser.update(gradient, state["optimiser"], state["params"])
        after = {
            "step": state["step"] + 1,
            "params": optax.apply_updates(state["params"], updates),
            "state": rest,
            "optimiser": optimiser_state,
        }
        return after, {**terms, _GRADIENT: optax.tree.norm(gradient)}

    return step


def compile_step(recipe: Recipe, layout: PyTree, mesh: Mesh, example: PyTree) -> tuple[Any, list[str]]:
    """(compiled step, names of its numbers).

    The step takes the state's memory over, and gives the numbers as one array.
    example: a batch of this process, for its shapes.
    """
    step = make_step(recipe)
    one = jax.eval_shape(lambda b: b, put_batch(example, mesh))
    batch = jax.tree.map(lambda b: jax.ShapeDtypeStruct(b.shape, b.dtype, sharding=rows(mesh)), one)
    names = list(jax.eval_shape(step, layout, batch)[1])  # a dict out of eval_shape is in the order of its keys

    def stacked(state: PyTree, batch: PyTree) -> tuple[PyTree, jax.Array]:
        after, numbers = step(state, batch)
        return after, jnp.stack([jnp.asarray(numbers[name], jnp.float32) for name in names])

    places = (jax.tree.map(lambda leaf: leaf.sharding, layout), replicated(mesh))
    return jax.jit(stacked, donate_argnums=0, out_shardings=places).lower(layout, batch).compile(), names


class Watch:
    """Looks at each step's numbers a little later, when they are there anyway; stops where one is not finite."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._under_way: collections.deque[tuple[int, jax.Array]] = collections.deque()
        self._seen: list[np.ndarray] = []

    def look(self, step: int, numbers: jax.Array) -> None:
        """Takes a step's numbers and looks at those of some steps before; `NonFiniteLossError` names step and term."""
        self._under_way.append((step, numbers))
        while len(self._under_way) > _LAG:
            self._look_at(*self._under_way.popleft())

    def catch_up(self) -> None:
        """Looks at everything; waits for the devices."""
        while self._under_way:
            self._look_at(*self._under_way.popleft())

    def _look_at(self, step: int, numbers: jax.Array) -> None:
        values = np.asarray(numbers)
        if not np.isfinite(values).all():
            wrong = [f"{n!r} is {v}" for n, v in zip(self._names, values, strict=True) if not math.isfinite(v)]
            terms = [w for w in wrong if not w.startswith(repr(_GRADIENT))] or wrong
            raise NonFiniteLossError(
                f"At step {step} {' and '.join(terms)}; nothing of it was kept. Lower the learning rate or look at "
                "the data of that step; --resume goes on from the last checkpoint."
            )
        self._seen.append(values)

    def means(self) -> dict[str, float]:
        """ "loss" and each number, averaged over the steps since the last call."""
        if not self._seen:
            return {}
        mean, self._seen = np.mean(np.stack(self._seen), axis=0, dtype=np.float64), []
        numbers = dict(zip(self._names, np.asarray(mean).tolist(), strict=True))
        return {"loss": sum(v for n, v in numbers.items() if n != _GRADIENT), **numbers}


class Evaluator:
    """Scores on a split, an average over all its examples."""

    def __init__(self, recipe: Recipe, source: Source, mesh: Mesh, batch: int) -> None:
        self._recipe, self._source, self._mesh = recipe, source, mesh
        self._batch = min(batch, -(-max(len(source), 1) // mesh.size) * mesh.size)
        if len(source) == 0:
            raise InputError(f"Expected examples to test on, but {source!r} has none.")
        self._evaluate = jax.jit(recipe.evaluate, out_shardings=replicated(mesh))

    def scores(self, state: PyTree) -> dict[str, float]:
        """Means of what `Recipe.evaluate` gives for each example."""
        total: dict[str, float] = collections.defaultdict(float)
        for first in range(0, len(self._source), self._batch):
            count = min(self._batch, len(self._source) - first)
            errors = self._evaluate(state["params"], state["state"], self._put(first))
            for name, values in errors.items():
                total[name] += float(np.sum(np.asarray(values)[:count], dtype=np.float64))
        return {name: value / len(self._source) for name, value in total.items()}

    def pictures(self, state: PyTree) -> dict[str, np.ndarray]:
        """The recipe's sample pictures of the first test examples; on the first host of a run without others."""
        if jax.process_count() > 1:  # pictures are made eagerly, and arrays of other hosts cannot be looked at
            return {}
        few = [self._source[i] for i in range(min(8, len(self._source)))]
        params, rest = jax.device_get((state["params"], state["state"]))
        return self._recipe.pictures(params, rest, {k: np.stack([e[k] for e in few]) for k in few[0]})

    def _put(self, first: int) -> PyTree:
        """A batch from there on, filled up with the last example; this process reads its share alone."""
        processes, process = jax.process_count(), jax.process_index()
        mine = self._batch // processes
        wanted = range(first + process * mine, first + (process + 1) * mine)
        examples = [self._source[min(i, len(self._source) - 1)] for i in wanted]
        return put_batch({k: np.stack([e[k] for e in examples]) for k in examples[0]}, self._mesh)


class StopSignals:
    """Whether somebody wants the run to end."""

    def __init__(self) -> None:
        self.reason = ""

    def ask(self, number: int, frame: Any) -> None:
        """Handler: notes the signal; a second Ctrl-C ends at once."""
        if number == signal.SIGINT and self.reason:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name

    def asked(self, step: int) -> bool:
        """Whether to save and end after this step; all hosts agree on the step."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self.reason = self.reason or "preemption"
                return True
            return False
        return bool(self.reason)


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """SIGTERM and Ctrl-C are noted inside, and acted on between steps.

    With several hosts JAX's own notice of preemption, which SIGTERM sets off, is what they agree by.
    """
    stop = StopSignals()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def begin(recipe: Recipe, preset: str, folder: Any, data: str, resume: bool) -> None:
    """Writes config.json, or with `resume` compares it; `InputError` for a folder in use and for another config."""
    if jax.process_index() == 0:
        record = {
            "format": FORMAT, "recipe": recipe.name, "version": recipe.version, "preset": preset, "data": data,
            "config": to_json(recipe.config),
        }  # fmt: skip
        path = folder / "config.json"
        if path.exists():
            if not resume:
                raise InputError(f"{folder} holds a run already: go on with --resume, or choose another folder.")
            _compare(recipe, read_json(path), record, folder)
        elif folder.exists() and any(entry.name != "lock" for entry in folder.iterdir()):
            raise InputError(f"{folder} holds other files and no run: choose a new or an empty folder.")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("the run's folder is ready")


def _compare(recipe: Recipe, old: dict[str, Any], new: dict[str, Any], folder: Any) -> None:
    for what in ("recipe", "version"):
        if old.get(what) != new[what]:
            raise InputError(
                f"{folder} is a run of {what} {old.get(what)!r}, not {new[what]!r}: --resume needs the same one."
            )
    changed = list(differences(from_json(type(recipe.config), old["config"]), recipe.config))
    if changed:
        raise InputError(f"--resume needs the config of {folder}: {'; '.join(changed)}.")
    if old["data"] != new["data"]:
        raise InputError(
            f"The data is not what {folder} was trained on (fingerprint {old['data'][:12]}, now "
            f"{new['data'][:12]}): give the same --data, or start a new run."
        )


def run_manifest(recipe: Recipe, folder: Any, mesh: Mesh, best: int | None) -> dict[str, Any]:
    """What was made, from what, by what: a complete run's manifest."""
    config = read_json(folder / "config.json")
    device = mesh.devices.flat[0]
    return {
        **config,
        "kind": "run",
        "step": recipe.config.run.steps,
        "best_step": best,
        "seeds": {"run.seed": recipe.config.run.seed},
        **provenance(f"{mesh.size} x {device.device_kind}, {jax.process_count()} process(es)"),
        "files": describe_files(Path(folder), ["config.json", "checkpoints"]),
    }


def _peek(batches: Batches) -> tuple[PyTree, Iterator[PyTree]]:
    """The next batch, and the batches with it still in front."""
    first = next(batches)
    return first, itertools.chain([first], batches)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _told(step: int, steps: int, line: dict[str, Any]) -> str:
    used = "" if line.get("mfu") is None else f", {100 * line['mfu']:.1f} % of peak"
    left = (steps - step) / line["steps_per_s"]
    return (
        f"step {step}/{steps}  loss {line['loss']:.5g}  "
        f"{line['images_per_s_per_device']:.4g} images/s per device{used}, "
        f"{100 * line['input_wait_share']:.0f} % waiting for input, {left:.0f} s left"
    )


def _ignore(*_: Any) -> None:
    """Says nothing to nobody."""
