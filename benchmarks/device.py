"""Measure facejax on one device: pictures, tracked frames and training steps per second, and the pinned checkpoints.

    python benchmarks/device.py --json device.json
    python benchmarks/device.py --size small

Compilation is measured apart. Nothing is needed but the package and JAX: no data, no detector, no other renderer. See
`benchmarks/README.md`.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from machine import Row, machine_facts, print_table, say

import facejax
from facejax.apps.demo import make_light, render_clip
from facejax.apps.track import StageClock
from facejax.data.checkpoints import SHIPPED
from facejax.data.sources import Example
from facejax.evaluation.reproduce import evaluation_of, reproduce
from facejax.geometry.cameras import project, to_camera_frame
from facejax.geometry.records import Camera, Face, Pose
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.made_up.truth_clip import TruthSpec, make_truth
from facejax.models.morphable import MorphableHead
from facejax.renderers import interpolate, make_renderer, make_shadowed_renderer, rasterise
from facejax.training import find_recipe, make_step, preset_of, recipe_names, rehearse
from facejax.training.metrics import flops_of, peak_flops

FORMAT = 1
"""Of the JSON file; `benchmarks/README.md` says what is in it."""

PARTS = ("pinned", "renderers", "recipes", "tracking")
DRAWN = ("rasterise", "image", "self-shadowed image")

PEAKS = {
    "NVIDIA A100": {"tf32": 156e12, "fp32": 19.5e12},
    "NVIDIA H100": {"tf32": 494.5e12, "fp32": 67e12},
    "NVIDIA H200": {"tf32": 494.5e12, "fp32": 67e12},
    "NVIDIA L4": {"tf32": 60.5e12, "fp32": 30.3e12},
}
"""Dense FLOP/s as the maker states them, by the beginning of JAX's `device_kind`: TF32 is what XLA multiplies float32
in on these unless told otherwise. Peaks in bfloat16 are the training engine's own table."""

_LEAST_SECONDS = 0.05  # calls are repeated until a run takes this long: clocks and launches are no part of the figure
_TRACKING_SECONDS = 150.0


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured."""

    side: int
    """Of drawn pictures, pixels."""
    batches: tuple[int, ...]
    """Pictures drawn at once."""
    frames: int
    """Of the clip that is tracked."""
    clip_side: int
    """Of its frames and of the face crop, pixels."""
    appearance: bool
    """Whether the fit goes on to light, skin and texture, or stops after landmarks, which compiles much faster."""
    preset: str
    """Of each recipe."""
    examples: int | None
    """In a training step; None: as the preset says."""
    runs: int
    """Whose median is reported."""
    seconds: float
    """After so many no further measurement is begun."""


SIZES = {
    "small": Size(32, (2,), 4, 64, False, "small", 2, 2, 600.0),
    "paper": Size(256, (1, 64), 128, 256, True, "paper", None, 7, 420.0),
}


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A compiled function and what compiling it took."""

    call: Any
    seconds: float
    flops: float | None
    """By XLA's count of the program as written, one turn of each loop."""
    flops_compiled: float | None
    """The same of the compiled program, where calls of a vendor's library may count for nothing."""
    memory_gb: float | None
    """Arguments, results and scratch."""

    @classmethod
    def of(cls, function: Callable[..., Any], *arguments: Any, donate: tuple[int, ...] = ()) -> "Program":
        began = time.perf_counter()
        lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
        call = lowered.compile()
        seconds = time.perf_counter() - began
        memory = call.memory_analysis()
        taken = None
        if memory is not None:
            sizes = (memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes)
            taken = (sum(sizes) - memory.alias_size_in_bytes) / 1e9
        return cls(call, seconds, flops_of(lowered), flops_of(call), taken)


def seconds_of(call: Callable[[], Any], runs: int) -> list[float]:
    """Seconds per call in each of several runs; nothing is compiled any more."""
    jax.block_until_ready(call())
    began = time.perf_counter()
    jax.block_until_ready(call())
    once = time.perf_counter() - began
    repeats = int(np.clip(_LEAST_SECONDS / max(once, 1e-6), 1, 200))
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        for _ in range(repeats):
            found = call()
        jax.block_until_ready(found)
        taken.append((time.perf_counter() - began) / repeats)
    return taken


def rate(count: int, compiling: float, taken: list[float]) -> dict[str, Any]:
    """What is said of everything that is timed; `count` things are made per call."""
    middle = statistics.median(taken)
    return {"compile_seconds": compiling, "run_seconds": middle, "runs": taken, "per_second": count / middle}


def largest_that_fits(batch: int, measure: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """`measure(batch)`, with half of it as often as the device's memory does not hold it."""
    asked = batch
    while True:
        try:
            return {"asked": asked, "batch": batch, **measure(batch)}
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or batch == 1:
                raise
        say(f"  a batch of {batch} does not fit into memory: {batch // 2}")
        batch //= 2


# --- pictures ---------------------------------------------------------------------------------------------------------


def measure_drawing(head: MorphableHead, what: str, size: Size, batch: int) -> dict[str, Any]:
    """Pictures per second, each of a face and a pose of its own, forward and with the gradient.

    The gradient is of the mean square of the picture, by vertices, albedo and light; of `rasterise` by vertices,
    through the interpolated points. A self-shadowed picture takes a table of what each vertex sees, which is measured
    apart: it serves as long as the shape does.
    """
    arguments = _faces(head, batch)
    one, tables = _drawing(head, what, size.side, arguments[0])
    batched = jax.vmap(one, in_axes=(0, None, None, 0, 0))

    def energy(*given: Any) -> jax.Array:
        return jnp.mean(batched(*given) ** 2)

    moved = (0,) if what == "rasterise" else (0, 1, 2)
    found: dict[str, Any] = {}
    for name, function in (("forward", batched), ("forward and backward", jax.value_and_grad(energy, argnums=moved))):
        program = Program.of(function, *arguments, tables)
        taken = seconds_of(lambda call=program.call: call(*arguments, tables), size.runs)  # type: ignore[misc]
        found[name] = {**rate(batch, program.seconds, taken), "memory_gb": program.memory_gb}
    return found


def measure_visibility(head: MorphableHead, size: Size) -> dict[str, Any]:
    """Tables per second of what every vertex sees along 256 directions."""
    render = make_shadowed_renderer(head.topology, (size.side, size.side))
    program = Program.of(render.visibility_of, head.params.mean)
    taken = seconds_of(lambda: program.call(head.params.mean), size.runs)
    return {"asked": 1, "batch": 1, "forward": {**rate(1, program.seconds, taken), "memory_gb": program.memory_gb}}


def _faces(head: MorphableHead, batch: int) -> tuple[jax.Array, jax.Array, jax.Array, Pose]:
    """(vertices of each face, albedo, light, poses)."""
    basis = head.params.expression_basis
    vertices = head.params.mean + 0.5 * basis[jnp.arange(batch) % len(basis)]
    upright = jnp.diag(jnp.array([1.0, -1.0, -1.0]))

    def turned(yaw: jax.Array) -> Pose:
        turn = rotvec_to_matrix(jnp.zeros(3).at[1].set(yaw))
        return Pose(rotation=upright @ turn, translation=jnp.array([0.0, 0.0, 0.9]))

    poses = jax.vmap(turned)(jnp.linspace(-0.6, 0.6, batch))
    return vertices, jnp.full((head.topology.n_vertices, 3), 0.6), jnp.asarray(make_light()), poses


def _drawing(
    head: MorphableHead, what: str, side: int, vertices: jax.Array
) -> tuple[Callable[..., jax.Array], jax.Array]:
    """(function of (vertices, albedo, light, pose, table) for one picture, a table for each picture)."""
    topology, n = head.topology, head.topology.n_vertices
    camera = Camera(focal=jnp.full(2, 2.4 * side), principal_point=jnp.full(2, side / 2.0))
    none = jnp.zeros((len(vertices), 0))

    def face_of(points: jax.Array, albedo: jax.Array) -> Face:
        return Face(
            vertices=points, albedo=albedo, texture=jnp.ones((4, 4, 3)), specular=jnp.full(n, 0.04),
            roughness=jnp.full(n, 0.3),
        )  # fmt: skip

    if what == "rasterise":
        faces = jnp.asarray(topology.faces)

        def points_of(
            points: jax.Array, albedo: jax.Array, light: jax.Array, pose: Pose, table: jax.Array
        ) -> jax.Array:
            seen = to_camera_frame(points, pose)
            on_image = jnp.concatenate([project(seen, camera), seen[:, 2:]], axis=-1)
            return interpolate(points, rasterise(on_image, faces, (side, side)), faces)

        return points_of, none
    if what == "image":
        plain = make_renderer(topology, (side, side))
        return (
            lambda points, albedo, light, pose, table: plain(face_of(points, albedo), light, pose, camera).colour,
            none,
        )
    shadowed = make_shadowed_renderer(topology, (side, side))
    tables = jnp.stack([jax.jit(shadowed.visibility_of)(points) for points in vertices])
    return (
        lambda points, albedo, light, pose, table: (
            shadowed(face_of(points, albedo), light, pose, camera, visibility=table).colour
        )
    ), tables


# --- tracking ---------------------------------------------------------------------------------------------------------


def measure_tracking(head: MorphableHead, size: Size) -> dict[str, Any]:
    """Frames per second of `fit_sequence` on a made-up clip with exact landmarks and a known camera.

    The first run compiles. What later runs trace or compile again is counted in their seconds, and told beside. There
    are as many of them as fit into `_TRACKING_SECONDS`, and at least one.
    """
    spec = TruthSpec(seed=4, frames=size.frames, size=size.clip_side, yaw_degrees=30.0, warp_mm=1.0)
    truth, subject = make_truth(head, spec)
    video = np.stack(list(render_clip(truth, subject, make_light(), spec)))
    config = facejax.FitConfig(size=size.clip_side, texture=size.appearance)
    taken: list[float] = []
    compiling: list[float] = []
    while len(taken) < 2 or (len(taken) <= size.runs and sum(taken) + taken[-1] < _TRACKING_SECONDS):
        with StageClock() as clock:
            began = time.perf_counter()
            result = facejax.fit_sequence(
                video, head, landmarks=truth.landmarks, intrinsics=truth.intrinsics, config=config
            )
            taken.append(time.perf_counter() - began)
            compiling.append(clock.compilation())
    placed = np.stack(
        [np.asarray(head.landmark_points(jnp.asarray(result.vertices_at(k)))) for k in range(len(result))]
    )
    pixels = placed @ truth.intrinsics.T
    missed = np.linalg.norm(pixels[..., :2] / pixels[..., 2:] - truth.landmarks, axis=-1)
    later = statistics.median(compiling[1:])
    return {
        "frames": size.frames,
        "side": size.clip_side,
        "stages": "all" if size.appearance else "landmarks",
        **rate(size.frames, compiling[0], taken[1:]),
        "compile_seconds_later": later,
        "per_second_compilation_apart": size.frames / (statistics.median(taken[1:]) - later),
        "first_run_seconds": taken[0],
        "share_tracked": float(np.mean(result.valid)),
        "landmark_error_px": float(missed.mean()),
    }


# --- training ---------------------------------------------------------------------------------------------------------


def measure_recipe(name: str, size: Size) -> dict[str, Any]:
    """Images per second of a training step on random data, and what share of the device's peak its products are."""
    kind = find_recipe(name)
    recipe = kind(preset_of(kind, size.preset).config)
    step, peaks = make_step(recipe), peaks_of(jax.devices()[0].device_kind)

    def measure(batch: int) -> dict[str, Any]:
        state, rows = rehearse(recipe, batch)
        program = Program.of(step, state, rows, donate=(0,))
        numbers: dict[str, jax.Array] = {}

        def advance() -> Any:
            nonlocal state, numbers
            state, numbers = program.call(state, rows)
            return numbers

        found = rate(batch, program.seconds, seconds_of(advance, size.runs))
        return {
            **found,
            "parameters": sum(x.size for x in jax.tree.leaves(state["params"])),
            "multiplies_in": "bfloat16" if recipe.config.run.bf16 else "float32",
            "flops": program.flops,
            "flops_compiled": program.flops_compiled,
            "mfu": {kind: _share(program.flops, found["run_seconds"], peak) for kind, peak in peaks.items()},
            "memory_gb": program.memory_gb,
            "finite": all(bool(np.isfinite(x)) for x in numbers.values()),
        }

    return {"preset": size.preset, **largest_that_fits(size.examples or recipe.config.run.batch, measure)}


def peaks_of(kind: str) -> dict[str, float | None]:
    """FLOP/s that a kind of device could reach, by what it multiplies in; None where nobody knows."""
    known = [peaks for name, peaks in PEAKS.items() if kind.startswith(name)]
    return {"bf16": peak_flops(kind), **(known[0] if known else {"tf32": None, "fp32": None})}


def _share(flops: float | None, seconds: float, peak: float | None) -> float | None:
    return None if flops is None or peak is None else flops / seconds / peak


# --- pinned checkpoints -----------------------------------------------------------------------------------------------


def measure_pinned(name: str, examples: list[Example] | None) -> dict[str, Any]:
    """Every number of a pinned checkpoint, as recorded on a CPU and as measured here."""
    began = time.perf_counter()
    compared = reproduce(SHIPPED / name, examples=examples)
    return {
        "seconds": time.perf_counter() - began,
        "values": {
            row.name: {
                "recorded": row.recorded, "measured": row.measured, "tolerance": row.tolerance, "agrees": row.agrees,
            }
            for row in compared
        },
    }  # fmt: skip


def shipped() -> list[str]:
    return sorted(path.name for path in SHIPPED.iterdir() if path.is_dir())


def pack_examples(path: Path) -> None:
    """Writes what pinned checkpoints are measured on to one .npz, for a machine that has no grain."""
    rows: dict[str, Any] = {
        f"{name}/{number}/{field}": value
        for name in shipped()
        for number, example in enumerate(_in_order(evaluation_of(SHIPPED / name)))
        for field, value in example.items()
    }
    np.savez_compressed(path, **rows)


def unpack_examples(path: Path) -> dict[str, list[Example]]:
    """What `pack_examples` wrote, by the checkpoint's name."""
    found: dict[str, dict[int, Example]] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            name, number, field = key.split("/", 2)
            found.setdefault(name, {}).setdefault(int(number), {})[field] = file[key]
    return {name: [examples[i] for i in range(len(examples))] for name, examples in found.items()}


def _in_order(source: Any) -> Iterator[Example]:
    return (source[i] for i in range(len(source)))


# --- the table and the command ----------------------------------------------------------------------------------------

HEADS = {
    **dict.fromkeys(PARTS, ("figure", "value", "run (s)", "compilation (s)")),
    "pinned": ("figure", "measured", "recorded", ""),
}
"""Of each part's table."""

Measurement = tuple[str, str, Callable[[], dict[str, Any]]]
"""(part, name, what to call)."""


def plan(parts: list[str], only: list[str], size: Size, examples: dict[str, list[Example]]) -> list[Measurement]:
    """Everything that is to be measured, the dearest last; of it what has one of the words `only` in its name."""
    head = facejax.load_model("generic")
    todo: list[Measurement] = [
        ("pinned", name, functools.partial(measure_pinned, name, examples.get(name))) for name in shipped()
    ]
    for batch in size.batches:
        for what in DRAWN:
            measure = functools.partial(measure_drawing, head, what, size)
            todo.append(("renderers", f"{what}, batch {batch}", functools.partial(largest_that_fits, batch, measure)))
    todo.append(("renderers", "table of what vertices see", functools.partial(measure_visibility, head, size)))
    todo += [("recipes", name, functools.partial(measure_recipe, name, size)) for name in recipe_names()]
    todo.append(("tracking", "fit_sequence", functools.partial(measure_tracking, head, size)))
    return [entry for entry in todo if entry[0] in parts and any(word in entry[1] for word in only)]


def rows_of(part: str, name: str, m: dict[str, Any]) -> list[Row]:
    """Lines of the table, see `HEADS`."""

    def line(what: str, found: dict[str, Any]) -> Row:
        return what, found["per_second"], f"{found['run_seconds']:.3g}", f"{found['compile_seconds']:.3g}"

    if part == "renderers":
        smaller = "" if m["batch"] == m["asked"] else f" (only {m['batch']} fit)"
        ways = [way for way in ("forward", "forward and backward") if way in m]
        return [line(f"{name}{smaller}, {way}: per second", m[way]) for way in ways]
    if part == "tracking":
        return [
            line(f"frames per second, stages: {m['stages']}", m),
            ("the same, compilation apart", m["per_second_compilation_apart"], "", f"{m['compile_seconds_later']:.3g}"),
            ("share of frames tracked", m["share_tracked"], "", ""),
            ("landmark error (px)", m["landmark_error_px"], "", ""),
        ]
    if part == "pinned":
        return [
            (f"{name}: {value}", told["measured"], f"{told['recorded']:.4g}", "" if told["agrees"] else "DIFFERS")
            for value, told in m["values"].items()
        ]
    return [
        line(f"{name}, batch {m['batch']} of {m['asked']}: images per second", m),
        *((f"{name}: share of the peak in {p} (%)", 100 * x, "", "") for p, x in m["mfu"].items() if x is not None),
    ]


def _plain(value: Any) -> Any:
    """As JSON says it: null for what is not a finite number."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there, after each of them")
    parser.add_argument("--size", choices=tuple(SIZES), default="paper")
    parser.add_argument("--parts", default=",".join(PARTS), help="of " + ",".join(PARTS))
    parser.add_argument("--only", default="", help="measure only what has one of these words in its name")
    parser.add_argument("--seconds", type=float, help="begin no further measurement after so many")
    parser.add_argument("--pack", type=Path, metavar="FILE", help="only write the pinned checkpoints' examples there")
    parser.add_argument("--examples", type=Path, metavar="FILE", help="that --pack wrote, for a machine without grain")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if not set(parts) <= set(PARTS):
        parser.error(f"--parts takes {', '.join(PARTS)}, not {options.parts}")
    if options.pack:
        pack_examples(options.pack)
        return 0
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is one of the figures
    size = SIZES[options.size]
    most = size.seconds if options.seconds is None else options.seconds
    began = time.perf_counter()
    report: dict[str, Any] = {
        "format": FORMAT,
        "size": options.size,
        "machine": {**machine_facts(cache_off=True), "backend": jax.default_backend()},
        **{part: {} for part in PARTS if part in parts},
        "failed": {},
        "left_out": [],
    }

    def keep() -> None:
        report["seconds"] = time.perf_counter() - began
        if options.json:
            options.json.write_text(json.dumps(_plain(report), indent=1, allow_nan=False) + "\n")

    todo = plan(parts, options.only.split(","), size, unpack_examples(options.examples) if options.examples else {})
    for number, (part, name, measure) in enumerate(todo):
        passed = time.perf_counter() - began
        if passed > most:
            report["left_out"].append(f"{part}: {name}")
            continue
        left = f", about {passed / number * (len(todo) - number):.0f} s left" if number else ""
        say(f"[{number + 1}/{len(todo)}] {part}: {name} ({passed:.0f} s so far{left})")
        try:
            report[part][name] = measure()
        except Exception as error:  # the other figures do not depend on this one
            traceback.print_exc()
            report["failed"][f"{part}: {name}"] = f"{type(error).__name__}: {error}"
        keep()
    keep()
    for part in PARTS:
        rows = [row for name, m in report.get(part, {}).items() for row in rows_of(part, name, m)]
        if rows:
            print_table(part, rows, HEADS[part])
    for name in report["left_out"]:
        say(f"left out after {most:.0f} s: {name}")
    for name, why in report["failed"].items():
        say(f"FAILED {name}: {why.splitlines()[0]}")
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
