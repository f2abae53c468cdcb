"""What a run reports: JSON lines, TensorBoard, pictures, speed and how well the devices are used."""

import importlib.util
import json
import math
import time
from typing import Any

import jax
import numpy as np

from facejax.geometry.errors import InputError
from facejax.training.folder import is_remote

# Dense bfloat16 TFLOP/s of one device as its maker states it, by the beginning of JAX's `device_kind`.
PEAK_TFLOPS = {
    "TPU v2": 22.5,  # per core, as JAX counts devices
    "TPU v3": 61.5,  # per core
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5p": 459.0,
    "TPU v5": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
    "NVIDIA A100": 312.0,
    "NVIDIA H100": 989.0,
    "NVIDIA H200": 989.0,
    "NVIDIA L4": 121.0,
    "Tesla V100": 125.0,
    "Tesla T4": 65.0,
}


def peak_flops(kind: str, told_tflops: float = 0.0) -> float | None:
    """FLOP/s that one device of a kind could reach: what the user says, else the table; None where neither knows."""
    if told_tflops > 0:
        return told_tflops * 1e12
    known = [name for name in PEAK_TFLOPS if kind.startswith(name)]
    return PEAK_TFLOPS[max(known, key=len)] * 1e12 if known else None


def flops_of(compiled: Any) -> float | None:
    """Floating point operations of one call on one device, by XLA's count; None where the backend does not count."""
    try:
        cost = compiled.cost_analysis()
    except Exception:  # backends without the analysis raise what they like
        return None
    cost = cost[0] if isinstance(cost, list) else cost
    flops = (cost or {}).get("flops", -1.0)
    return float(flops) if flops > 0 else None


class Pace:
    """Speed since the last report."""

    def __init__(self, batch: int, devices: int, flops: float | None, peak: float | None) -> None:
        self._batch, self._devices, self._flops, self._peak = batch, devices, flops, peak
        self._time, self._step, self._waited = time.perf_counter(), 0, 0.0
        self._aside = 0.0

    def start(self, step: int, waited: float) -> None:
        """Counts from here."""
        self._time, self._step, self._waited, self._aside = time.perf_counter(), step, waited, 0.0

    def leave_out(self, seconds: float) -> None:
        """Takes an evaluation's time off."""
        self._aside += seconds

    def report(self, step: int, waited: float) -> dict[str, float | None]:
        """Images per second per device, share of the time spent waiting for input, utilisation; then counts anew."""
        seconds = max(time.perf_counter() - self._time - self._aside, 1e-9)
        steps = step - self._step
        rate = steps / seconds
        used = None if self._flops is None or self._peak is None else self._flops * rate / self._peak
        found: dict[str, float | None] = {
            "steps_per_s": rate,
            "images_per_s_per_device": rate * self._batch / self._devices,
            "input_wait_share": (waited - self._waited) / seconds,
            "mfu": used,
        }
        self.start(step, waited)
        return found


class Reporter:
    """Writes metrics and pictures of a run, from the first host only.

    `metrics.jsonl` is appended to line by line; after --resume, lines of steps that are done again are dropped first.
    On an object store, which cannot append, the whole file is written at each `flush`.
    """

    def __init__(self, folder: Any, resumed_at: int, tensorboard: str = "auto") -> None:
        """resumed_at: the step from which this process goes on. `InputError` for "on" without tensorboardX."""
        self._folder, self._path = folder, folder / "metrics.jsonl"
        self._here = jax.process_index() == 0
        self._events: Any = None
        self._lines: list[str] = []
        self._file: Any = None
        if not self._here:
            return
        if tensorboard == "on" or (tensorboard == "auto" and not is_remote(folder)):
            self._events = self._open_events(tensorboard == "on", resumed_at)
        if self._path.exists():
            self._lines = [line for line in self._path.read_text().splitlines() if _kept(line, resumed_at)]
        if not is_remote(folder):
            self._path.write_text("".join(line + "\n" for line in self._lines))
            self._lines = []
            self._file = open(self._path, "a")  # noqa: SIM115 (open as long as the run)

    def _open_events(self, required: bool, resumed_at: int) -> Any:
        if importlib.util.find_spec("tensorboardX") is None:
            if required:
                raise InputError("machine.tensorboard=on needs tensorboardX: pip install tensorboardX.")
            return None
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(self._folder), purge_step=resumed_at or None)

    def line(self, step: int, values: dict[str, Any]) -> None:
        """Adds one line, and its numbers to TensorBoard."""
        if not self._here:
            return
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        text = json.dumps({"step": step, "time": round(time.time(), 3), **values})
        if self._file is None:
            self._lines.append(text)
        else:
            self._file.write(text + "\n")
            self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._events.add_scalar(name, value, step)

    def pictures(self, step: int, pictures: dict[str, np.ndarray]) -> None:
        """Writes pictures/NAME-STEP.png."""
        if not self._here:
            return
        from PIL import Image

        for name, picture in pictures.items():
            if self._events is not None:
                self._events.add_image(name, picture, step, dataformats="HWC")
            folder = self._folder / "pictures"
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"{name}-{step:07d}.png").open("wb") as file:
                Image.fromarray(picture).save(file, format="PNG")

    def flush(self) -> None:
        """Makes everything so far visible to readers."""
        if self._here and self._file is None:
            self._path.write_text("".join(line + "\n" for line in self._lines))
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Writes what is left."""
        self.flush()
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()


def _kept(line: str, resumed_at: int) -> bool:
    """Whether a line is whole and of a step that is not done again."""
    try:
        return json.loads(line)["step"] <= resumed_at
    except (ValueError, KeyError, TypeError):
        return False
