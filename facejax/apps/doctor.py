"""What this machine has and lacks, on one screen: `facejax doctor`."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import facejax
from facejax.geometry.errors import InputError
from facejax.geometry.processes import find_program, run_python
from facejax.renderers.llvm import require_llvm

if TYPE_CHECKING:
    from rich.table import Table

GET_LANDMARKS_LIBRARIES = "apt install libgl1 libegl1 libgles2 libglib2.0-0"
"""MediaPipe, and the OpenCV it brings, load these on Linux, where a server's image may lack them."""

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "trimesh", "mitsuba", "av")


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    state: Literal["ok", "optional", "missing"]
    """`optional`: tracking works without it; `missing`: it does not."""
    detail: str
    """What was found, or what cannot be done without it."""
    fix: str = ""
    """The command that gets it, where something is not there."""


def examine() -> Iterator[Check]:
    """Looks at everything, one check after another; a check that fails unexpectedly is a line of the report, too."""
    for look in (_versions, _devices, _codecs, _mediapipe, _mitsuba, _assets, _cache):
        try:
            yield from look()
        except Exception as error:  # the doctor must say what else is wrong, whatever breaks
            yield Check(look.__name__.strip("_"), "missing", f"{type(error).__name__}: {error}")


def report(checks: Iterator[Check] | None = None, print_table: "Callable[[Table], None] | None" = None) -> int:
    """Prints the report; 1 if something is missing that tracking needs, else 0."""
    from rich.console import Console
    from rich.table import Table

    found = list(examine() if checks is None else checks)
    table = Table(title=f"facejax {facejax.__version__}", title_justify="left", show_lines=False)
    table.add_column("", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("what is there", overflow="fold")
    colours = {"ok": "green", "optional": "yellow", "missing": "red"}
    for check in found:
        detail = check.detail + (f"\nget it: {check.fix}" if check.fix else "")
        table.add_row(check.name, f"[{colours[check.state]}]{check.state}[/]", _plain(detail))
    (print_table or Console().print)(table)
    return int(any(check.state == "missing" for check in found))


def asset_table() -> "Table":
    """What `facejax assets list` shows: each asset, whether it is there, its licence, and where it lies."""
    from rich.table import Table

    from facejax.data.assets import list_assets

    table = Table()
    for column in ("asset", "state", "licence", "where"):
        table.add_column(column, overflow="fold")
    table.add_row("generic", "built in", "Apache-2.0", "facejax itself")
    for asset in list_assets():
        if asset.installed:
            state, where = "installed", str(asset.path)
        else:
            state, where = f"{asset.size / 1e6:.0f} MB to get", f"facejax assets install {asset.name}"
        table.add_row(asset.name, state, asset.licence, _plain(where))
    return table


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _last_words(stderr: str) -> str:
    """The line of a failed process that says why: the first error named, since what follows it is often its echo."""
    lines = stderr.strip().splitlines() or ["it ended without a word"]
    return next((line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)), lines[-1])


def _versions() -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    found, absent = [], []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            absent.append(package)
    yield Check("packages", "ok", ", ".join(found))
    if absent:
        yield Check("packages", "missing", ", ".join(absent), f"pip install {' '.join(absent)}")


def _devices() -> Iterator[Check]:
    import jax

    devices = jax.devices()
    kinds = sorted({f"{d.platform} ({d.device_kind})" for d in devices})
    yield Check("JAX devices", "ok", f"{len(devices)}: {', '.join(kinds)}; {os.cpu_count()} CPU cores")
    if devices[0].platform == "cpu" and find_program("nvidia-smi"):
        yield Check("GPU", "optional", "this machine has one, but JAX does not use it", 'pip install "jax[cuda12]"')


def _codecs() -> Iterator[Check]:
    import av

    def has(codec: str, mode: Literal["r", "w"]) -> bool:
        try:
            av.codec.Codec(codec, mode)
        except ValueError:  # UnknownCodecError is one
            return False
        return True

    wanted: dict[str, tuple[str, Literal["r", "w"]]] = {
        "h264 decoder": ("h264", "r"),
        "hevc decoder": ("hevc", "r"),
        "av1 decoder": ("av1", "r"),
        "h264 encoder (overlay.mp4)": ("libx264", "w"),
    }
    there = [name for name, codec in wanted.items() if has(*codec)]
    absent = [name for name in wanted if name not in there]
    if there:
        yield Check("codecs", "ok", ", ".join(there))
    if absent:
        # a PyAV built against the system's FFmpeg has what that one has; the wheel brings all of these
        fix = "pip install --force-reinstall --only-binary av av"
        needed = any(name.startswith("h264") for name in absent)
        yield Check("codecs", "missing" if needed else "optional", f"not there: {', '.join(absent)}", fix)


def _mediapipe() -> Iterator[Check]:
    if importlib.util.find_spec("mediapipe") is None:
        without = "not installed: landmarks must then be given (`--landmarks FILE`)"
        yield Check("mediapipe", "optional", without, "pip install mediapipe")
        return
    # Importing is not enough: the library itself is loaded when an image is made. It has a process of its own, as has
    # everything here that could take this one down with it.
    code = (
        "import mediapipe, numpy; mediapipe.Image("
        "image_format=mediapipe.ImageFormat.SRGB, data=numpy.zeros((8, 8, 3), numpy.uint8))"
    )
    run = run_python(code)
    version = importlib.metadata.version("mediapipe")
    if run.returncode == 0:
        yield Check("mediapipe", "ok", version)
        return
    said = _last_words(run.stderr)
    fix = GET_LANDMARKS_LIBRARIES if sys.platform == "linux" else "pip install --force-reinstall mediapipe"
    yield Check("mediapipe", "optional", f"{version} is installed but does not start: {said}", fix)


def _mitsuba() -> Iterator[Check]:
    try:
        path, version = require_llvm()
    except InputError as error:
        sentence, _, fix = str(error).rpartition(": install it with ")
        yield Check("path tracer", "optional", f"without gradients (scalar_rgb): {sentence}", fix.strip("`."))
        return
    variant = "llvm_ad_rgb"
    code = f"import mitsuba; mitsuba.set_variant({variant!r}); import drjit; drjit.eval(mitsuba.Float(1) * 0.3)"
    run = run_python(code)
    llvm = f"LLVM {'.'.join(map(str, version))} ({path})"
    if run.returncode == 0:
        yield Check("path tracer", "ok", f"Mitsuba {variant}, {llvm}")
    else:
        said = _last_words(run.stderr)
        fix = "pip install --force-reinstall mitsuba"
        yield Check("path tracer", "optional", f"Mitsuba {variant} does not start with {llvm}: {said}", fix)


def _assets() -> Iterator[Check]:
    from facejax.data.assets import list_assets

    for asset in list_assets():
        if asset.installed:
            yield Check(f"asset {asset.name}", "ok", str(asset.path))
        else:
            yield Check(f"asset {asset.name}", "optional", "not installed", f"facejax assets install {asset.name}")


def _cache() -> Iterator[Check]:
    from facejax.data.assets import home

    folder = Path(home())
    there = next(p for p in (folder, *folder.parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        why = f"{folder} cannot be written ({error.strerror}): nothing can be installed, and every run compiles again"
        yield Check("cache", "optional", why, "export FACEJAX_HOME=/a/folder/of/yours")
        return
    free = shutil.disk_usage(there).free / 1e9
    if free < 2:
        yield Check("cache", "optional", f"{folder}: only {free:.1f} GB free", "export FACEJAX_HOME=/a/larger/disk")
    else:
        yield Check("cache", "ok", f"{folder}, {free:.0f} GB free")
