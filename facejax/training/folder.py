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
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from facejax.data.checkpoints import describe_files
from facejax.data.sources import MachineError
from facejax.geometry.errors import InputError
from facejax.geometry.records import PyTree

SUMS = "sha256.json"
"""In a checkpoint's folder: size and sha256 of its files."""

_ITEMS = ("state", "about")
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
        """score: the name of the score that says which is best, lower is better."""
        import orbax.checkpoint as ocp

        self._ocp, self._folder, self._score = ocp, folder, score
        self._scores: dict[int, dict[str, float]] = {}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Keep(lambda: (self.best(), self.last())),
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        self._saving: int | None = None
        self._manager = ocp.CheckpointManager(folder, options=options, item_names=_ITEMS)
        self._read_scores()

    def _read_scores(self) -> None:
        """Recalls the scores of earlier checkpoints, and ends the removal of those that a kill left half removed."""
        for step in self._manager.all_steps():
            try:
                self._scores[step] = self._about(step)["scores"]
            except InputError:
                if step == self.last():
                    raise
        if jax.process_count() == 1:
            for step in set(self._manager.all_steps()) - {self.best(), self.last()}:
                self._manager.delete(step)

    def last(self) -> int | None:
        """Step of the last checkpoint, the one that is being written included."""
        return self._manager.latest_step()

    def last_whole(self) -> int | None:
        """Step of the last checkpoint that is whole on the disk."""
        return max(self._manager.all_steps(read=True), default=None)

    def best(self) -> int | None:
        """Step of the best checkpoint that was evaluated; the last one where none was."""
        known = {step: self._scores.get(step, {}).get(self._score) for step in self._manager.all_steps()}
        scored = {step: score for step, score in known.items() if score is not None and math.isfinite(score)}
        return min(scored, key=lambda step: scored[step]) if scored else self.last()

    def scores(self, step: int) -> dict[str, float]:
        """What the evaluation at a checkpoint's step gave; empty where there was none."""
        return dict(self._scores.get(step, {}))

    def save(self, step: int, state: PyTree, position: int, scores: dict[str, float] | None = None) -> None:
        """Begins to write a checkpoint and returns when its arrays are copied off the devices.

        Waits for the one before it to be whole. `MachineError` when that one found the disk full.
        """
        ocp, self._scores[step] = self._ocp, scores or {}
        about = {"position": position, "scores": self._scores[step]}
        self.wait()
        self._saving = step
        with explained(self._folder, self.last_whole):
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)),
                force=True,
            )

    def _seal(self) -> None:
        """Adds the sha256 of every file to a checkpoint just before it gets its name; runs in orbax's thread.

        Arrays on the disk have no sums of their own, so that without these a flipped bit would go unseen. Reading a
        checkpoint back from an object store, which keeps sums itself, would cost more than it gives.
        """
        if is_remote(self._folder) or jax.process_index() != 0:
            return
        for folder in Path(self._folder).glob(f"{self._saving}.orbax-checkpoint-tmp*"):
            write_json(folder / SUMS, describe_files(folder, _ITEMS))

    def _check_seal(self, step: int) -> None:
        """`InputError` for files that changed since."""
        folder = Path(self._folder) / str(step)
        if is_remote(self._folder):
            return
        try:
            same = read_json(folder / SUMS) == describe_files(folder, _ITEMS)
        except (OSError, InputError) as error:
            raise self._altered(step) from error
        if not same:
            raise self._altered(step)

    def _about(self, step: int) -> dict[str, Any]:
        arguments = self._ocp.args.Composite(about=self._ocp.args.JsonRestore())
        try:
            about = self._manager.restore(step, args=arguments)["about"]
            return {"position": int(about["position"]), "scores": dict(about["scores"])}
        except Exception as error:
            raise self._altered(step) from error

    def _altered(self, step: int) -> InputError:
        others = [s for s in self._manager.all_steps() if s != step]
        go_on = f"remove it to go on from step {max(others)}" if others else "it is the only one: start a new run"
        return InputError(
            f"The checkpoint {self._folder}/{step} was altered, truncated or is of another model; {go_on}."
        )

    def check(self) -> None:
        """Raises what went wrong with a save in the background."""
        with explained(self._folder, self.last_whole):
            self._manager.check_for_errors()

    def restore(self, like: PyTree, step: int | None = None) -> tuple[PyTree, int]:
        """(state, position) of a checkpoint, by default the last; laid out as `like`, a tree of shapes and shardings.

        The mesh may be another than the one that saved. `InputError` for a checkpoint that is not whole, or of another
        model.
        """
        step = self.last() if step is None else step
        if step is None:
            raise InputError(f"{self._folder} holds no checkpoint yet.")
        self._check_seal(step)
        arguments = self._ocp.args.Composite(state=self._ocp.args.StandardRestore(like))
        try:
            return self._manager.restore(step, args=arguments)["state"], self._about(step)["position"]
        except InputError:
            raise
        except Exception as error:
            raise self._altered(step) from error

    def wait(self) -> None:
        """Returns when the last save is whole on the disk."""
        with explained(self._folder, self.last_whole):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Lets go of threads, after the save that may be under way."""
        with explained(self._folder, self.last_whole):
            self._manager.close()


class _Keep:
    """Tells orbax which checkpoints to keep."""

    def __init__(self, steps: Callable[[], tuple[int | None, ...]]) -> None:
        self._steps = steps

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        kept = self._steps()
        return [info.step in kept for info in checkpoints]
