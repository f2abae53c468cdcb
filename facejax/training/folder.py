"""A run's folder: who is at work in it, what it was told, its checkpoints and its metrics.

    RUN/config.json          recipe, preset, resolved config, data fingerprint: what --resume compares
    RUN/checkpoints/STEP/    state and input position, by orbax; the best and the last are kept
    RUN/metrics.jsonl        a line per report; events for TensorBoard beside it
    RUN/pictures/            sample pictures
    RUN/manifest.json        written when the run is complete: versions, device, sha256 of every file
    RUN/lock                 held while a process is at work

Every part but the lock may also lie on gs:// (etils and tensorstore see to that).
"""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax

from facejax.data.sources import MachineError
from facejax.geometry.errors import InputError
from facejax.geometry.records import PyTree

_FULL = ("no space left", "disk quota exceeded", f"errno {errno.ENOSPC}]")


def open_folder(out: Any) -> Any:
    """The etils path of a run; `InputError` for a remote one that this installation cannot reach."""
    from etils import epath

    try:
        path = epath.Path(out)
        if is_remote(path):
            path.exists()  # fails here, not hours later
        return path if is_remote(path) else epath.Path(os.path.abspath(os.path.expanduser(path)))
    except Exception as error:
        if "://" not in str(out):
            raise
        raise InputError(
            f"{out} cannot be reached ({type(error).__name__}): writing there needs `pip install gcsfs` (for "
            "gs://; s3fs for s3://) and credentials of your own."
        ) from error


def is_remote(path: Any) -> bool:
    """Whether a path lies in an object store."""
    return "://" in str(path)


@contextlib.contextmanager
def locked(folder: Any) -> Iterator[None]:
    """Holds the folder for this process; `InputError` where another one is at work in it.

    The operating system lets go of the lock however the process ends, so a killed run leaves none behind. Only the
    first host locks, and nothing does on object stores, which have no locks.
    """
    if is_remote(folder) or jax.process_index() != 0:
        yield
        return
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "a+")  # noqa: SIM115 (held until the run ends)
    except OSError as error:
        raise InputError(f"Cannot write to {folder} ({error.strerror}): choose another folder for --out.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                f"Another run is at work in {folder} (process {file.read().strip() or 'unknown'}): "
                "wait for it, stop it, or choose another folder."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def explained(folder: Any, last: Callable[[], int | None]) -> Iterator[None]:
    """Inside, a full disk becomes a `MachineError` that says where the run can go on."""
    try:
        yield
    except (InputError, MachineError):
        raise
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not (full or any(word in str(error).lower() for word in _FULL)):
            raise
        step = last()
        told = "no checkpoint is whole yet" if step is None else f"the last whole checkpoint is of step {step}"
        raise MachineError(f"No space left in {folder}: {told}; free some space and go on with --resume.") from error


def write_json(path: Any, content: Any) -> None:
    """Writes JSON whole or not at all."""
    text = json.dumps(content, indent=1, sort_keys=False) + "\n"
    if is_remote(path):
        path.write_text(text)
        return
    from facejax.data.files import atomic_write

    with atomic_write(os.fspath(path), sync=True) as temporary:
        temporary.write_text(text)


def read_json(path: Any) -> Any:
    """What `write_json` wrote; `InputError` for a file that is not JSON."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not whole: take the folder's copy, or start a new run.") from error


class Checkpoints:
    """The checkpoints of a run: saved while training goes on, the best and the last kept.

    A checkpoint appears whole, by renaming, or not at all. What an interrupted save left is removed at the next start.
    """

    def __init__(self, folder: Any, score: str = "") -> None:
        """score: the metric that says which is best, lower is better; without it only the last is kept."""
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as policies

        self._ocp, self._folder = ocp, folder
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics[score], reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), *([best] if score else [])]),
            best_fn=(lambda metrics: metrics[score]) if score else None,  # without it metrics are not written
            best_mode="min",
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(folder, options=options, item_names=("state", "position"))
        self._score = score

    def last(self) -> int | None:
        """Step of the last whole checkpoint."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Step of the best checkpoint that was evaluated; the last one where none was."""
        scores = {step: self.scores(step).get(self._score) for step in self._manager.all_steps()}
        known = {step: score for step, score in scores.items() if score is not None}
        return min(known, key=lambda step: known[step]) if known else self.last()

    def scores(self, step: int) -> dict[str, float]:
        """What the evaluation at a checkpoint's step gave; empty where there was none."""
        return dict(self._manager.metrics(step) or {}) if step in self._manager.all_steps() else {}

    def save(self, step: int, state: PyTree, position: int, metrics: dict[str, float] | None = None) -> None:
        """Begins to write a checkpoint and returns when its arrays are copied off the devices.

        Waits for the one before it to be whole. `MachineError` when that one found the disk full.
        """
        ocp = self._ocp
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state), position=ocp.args.JsonSave({"position": position})
        )
        with explained(self._folder, self.last):
            self._manager.save(step, args=arguments, metrics=metrics, force=True)

    def check(self) -> None:
        """Raises what went wrong with a save in the background."""
        with explained(self._folder, self.last):
            self._manager.check_for_errors()

    def restore(self, like: PyTree, step: int | None = None) -> tuple[PyTree, int]:
        """(state, position) of a checkpoint, by default the last; laid out as `like`, a tree of shapes and shardings.

        The mesh may be another than the one that saved. `InputError` for a checkpoint that is not whole, or of another
        model.
        """
        ocp, step = self._ocp, self.last() if step is None else step
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(like), position=ocp.args.JsonRestore())
        try:
            found = self._manager.restore(step, args=arguments)
            return found["state"], int(found["position"]["position"])
        except Exception as error:
            others = [s for s in self._manager.all_steps() if s != step]
            go_on = f"remove it to go on from step {max(others)}" if others else "it is the only one: start a new run"
            raise InputError(
                f"The checkpoint {self._folder}/{step} was altered, truncated or is of another model; {go_on}."
            ) from error

    def wait(self) -> None:
        """Returns when the last save is whole on the disk."""
        with explained(self._folder, self.last):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Lets go of threads, after the save that may be under way."""
        with explained(self._folder, self.last):
            self._manager.close()
