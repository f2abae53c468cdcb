"""The `facejax` command. Thin: it parses, calls `facejax.apps` or `facejax.data`, and prints what was reached.

Nothing heavy is imported before a command needs it, so `facejax --help` answers at once.
"""

import contextlib
import dataclasses
import errno
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import tyro

import facejax

if TYPE_CHECKING:
    from rich.progress import Progress

ProgressCallback = Callable[[str, int, int], None]
"""`progress(stage, done, total)`: how far a long piece of work has come."""

Row = tuple[str, object, object]
"""(name, value, control): a line of the table of what was reached, and what a method that does nothing would reach."""


@dataclasses.dataclass(frozen=True)
class Track:
    """Track the face in a video: shape, motion, expression, light and skin, as arrays, pictures and a GLB file."""

    video: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="VIDEO")]
    """Video file, folder of images, or photo; a folder of photos of several sizes is one person's. With --live also a
    camera: its number, or /dev/video0."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for the results; it is written whole or not at all. It may be left out with --live."""
    live: bool = False
    """Follow the face frame by frame as frames come, and say how fast; --out then writes track.npz and metrics.json."""
    enrol: int = 32
    """Frames with a face that --live fits together first: they show who it is."""
    steps: int = 12
    """Steps that --live takes on each frame; fewer are faster, more are closer."""
    model: str = "generic"
    """Head model: a name from `facejax assets list`, `generic` (built in), or a path; or the run folder or pinned
    checkpoint of a person's avatar (`facejax train deep-lighting`)."""
    landmarks: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """.npz with `landmarks` (frames, 478, 3) in pixels, NaN where missing; by default MediaPipe finds them."""
    intrinsics: Annotated[str | None, tyro.conf.arg(metavar="fx,fy,cx,cy")] = None
    """Known focal lengths and principal point in pixels of the video; by default the focal length is estimated."""
    masks: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of images, one per frame: pixels to ignore (hair, hands, glasses) are not black."""
    identity: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of an earlier result whose shape, texture and focal length are held."""
    face: int = 0
    """Which face to follow where there are several: 0 is the largest in the first frame that has one."""
    ipd_mm: float | None = None
    """Known distance between the pupils in millimetres; it fixes the scale, which one camera cannot see."""
    size: int = 256
    """Side in pixels of the face crop that is compared with the rendering."""
    frames: Annotated[str | None, tyro.conf.arg(metavar="A:B")] = None
    """Frames A up to, not including, B; either side may be left out."""
    photos: bool = False
    """The folder holds photos of one person, not a clip's frames."""
    preset: Literal["fast", "full"] = "fast"
    """`full` takes about five times as long and fits closer."""
    light: Literal["network", "sh", "shadowed-sh"] = "network"
    """How an avatar is lit: its lighting network, spherical harmonics, or those with cast shadows."""
    changing_light: bool = False
    """Let an avatar's light change during the clip."""
    renders: bool = False
    """Also write renders/00000.png... (RGBA, at the video's resolution)."""
    resume: bool = False
    """Go on from the frames that an interrupted run had finished."""

    def run(self) -> int:
        """Runs the command; the exit status."""
        intrinsics, frames = parse_intrinsics(self.intrinsics), parse_frames(self.frames)
        _check_track(self)
        if self.live:
            return self._run_live(intrinsics, frames)
        out = self.out
        if out is None:
            return _fail(
                2, "facejax track VIDEO takes --out DIR, the folder for the results; only --live goes without."
            )
        use_compilation_cache()
        from facejax.apps.track import progress_folder, track

        with show_progress() as progress, _resumable(lambda: progress_folder(out).is_dir()):
            rows = track(
                self.video,
                out,
                model=self.model,
                landmarks=self.landmarks,
                intrinsics=intrinsics,
                masks=self.masks,
                identity=self.identity,
                face=self.face,
                ipd_mm=self.ipd_mm,
                size=self.size,
                frames=frames,
                photos=self.photos,
                preset=self.preset,
                light_model=self.light,
                changing_light=self.changing_light,
                renders=self.renders,
                resume=self.resume,
                progress=progress,
            )
        print_summary(rows, f"{self.video} -> {out}")
        return 0

    def _run_live(self, intrinsics: tuple[float, ...] | None, frames: tuple[int | None, int | None] | None) -> int:
        use_compilation_cache()
        from facejax.apps.live import live_config, track_live

        with show_progress() as progress:
            rows = track_live(
                self.video,
                self.out,
                model=self.model,
                landmarks=self.landmarks,
                intrinsics=intrinsics,
                face=self.face,
                frames=frames,
                enrol=self.enrol,
                config=live_config(self.preset, self.size, self.light, self.steps),
                progress=progress,
                show=progress.line,
            )
        print_summary(rows, f"{self.video}" + (f" -> {self.out}" if self.out is not None else ""))
        return 0


@dataclasses.dataclass(frozen=True)
class AssetsList:
    """Say which head models and detectors are there, their licences, and where they lie."""

    def run(self) -> int:
        """Runs the command; the exit status."""
        from rich.console import Console

        from facejax.apps.doctor import asset_table

        Console().print(asset_table())
        return 0


@dataclasses.dataclass(frozen=True)
class AssetsInstall:
    """Download a head model or a detector, check it, and convert it once."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """A name from `facejax assets list`."""
    source: Annotated[Path | None, tyro.conf.arg(name="from", metavar="PATH")] = None
    """A local copy (folder or archive) to take instead of downloading."""

    def run(self) -> int:
        """Runs the command; the exit status."""
        from facejax.data.assets import install

        with show_progress() as progress:
            path = install(self.name, self.source, progress=progress)
        print(f"{self.name} is installed: {path}")
        return 0


@dataclasses.dataclass(frozen=True)
class Demo:
    """Render a short clip of the built-in head with known motion, track it, and print the errors against the truth."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("facejax-demo")
    """Folder for the results."""

    def run(self) -> int:
        """Runs the command; the exit status."""
        use_compilation_cache()
        from facejax.apps.demo import demo

        with show_progress() as progress:
            rows = demo(self.out, progress=progress)
        print_summary(rows, f"demo -> {self.out}")
        return 0


@dataclasses.dataclass(frozen=True)
class Relight:
    """Show a tracked head under new light: a video, a preview, and pictures with alpha."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """Folder that `facejax track` wrote."""
    out: Annotated[Path, tyro.conf.arg(metavar="OUT")]
    """Folder for the pictures; it is written whole or not at all."""
    env: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Light from an environment map, .hdr or .exr, twice as wide as high; its middle is straight ahead."""
    sh: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Light from spherical harmonics: (bands squared, 3) numbers as .npy, .npz, .json or .txt."""
    point: Annotated[str | None, tyro.conf.arg(metavar="x,y,z")] = None
    """Light from a white bulb, metres from the middle of the head: right, down and away as the camera sees it."""
    rotate: Annotated[str | None, tyro.conf.arg(metavar="DEG")] = None
    """Turn the light about the vertical: 90 brings what was ahead to the right; 30/s goes on turning; 90,30/s both."""
    exposure: float = 0.0
    """Stops brighter (or, negative, darker) than the meter says."""
    path_traced: bool = False
    """Trace paths with Mitsuba: slower, and the reference."""
    samples: int = 128
    """Paths per pixel."""
    view: Literal["camera", "turntable"] = "camera"
    """`turntable` turns the head once around, every six seconds."""
    frames: Annotated[str | None, tyro.conf.arg(metavar="A:B")] = None
    """Frames A up to, not including, B of the result; either side may be left out."""
    renders: bool = False
    """Also write renders/00000.png... (RGBA, straight alpha)."""
    size: int = 512
    """Height of the pictures in pixels."""

    def run(self) -> int:
        """Runs the command; the exit status."""
        point, frames, (rotate, sweep) = parse_point(self.point), parse_frames(self.frames), parse_turn(self.rotate)
        if self.size < 32:
            _refuse(f"--size must be at least 32 pixels, not {self.size}.")
        if self.samples < 1:
            _refuse(f"--samples must be at least 1 path per pixel, not {self.samples}.")
        if not abs(self.exposure) <= 30:
            _refuse(f"--exposure must be stops between -30 and 30, not {self.exposure:g}.")
        use_compilation_cache()
        from facejax.apps.relight import RelightConfig, relight_folder

        config = RelightConfig(
            view=self.view,
            frames=frames,
            size=self.size,
            rotate=rotate,
            sweep=sweep,
            exposure=self.exposure,
            path_traced=self.path_traced,
            samples=self.samples,
        )
        with show_progress() as progress:
            rows = relight_folder(
                self.folder,
                self.out,
                env=self.env,
                sh=self.sh,
                point=point,
                config=config,
                renders=self.renders,
                progress=progress,
            )
        print_summary(rows, f"{self.folder} -> {self.out}")
        return 0


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Say which devices, assets, Mitsuba variant and codecs are there, and how to get what is missing."""

    def run(self) -> int:
        """Runs the command; the exit status is 1 when something that tracking cannot do without is missing."""
        from facejax.apps.doctor import report

        return report()


@dataclasses.dataclass(frozen=True)
class Assets:
    """List or install head models and detectors."""

    action: (
        Annotated[AssetsList, tyro.conf.subcommand("list")] | Annotated[AssetsInstall, tyro.conf.subcommand("install")]
    )

    def run(self) -> int:
        """Runs the command; the exit status."""
        return self.action.run()


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a recipe. `facejax train --list` shows them; `facejax train RECIPE --help` every field of its config."""

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")] = ""
    """A name from `facejax train --list`, or a .py file with a recipe of your own."""
    preset: str = "small"
    """Which of the recipe's configs to start from."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Data folder."""
    out: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    """Folder of the run, or a gs:// address."""
    resume: bool = False
    """Go on from the last checkpoint in RUN; from the start where there is none."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=VALUE"), tyro.conf.UseAppendAction] = ()
    """Change a field of the config, as --set run.batch=32; may be given many times."""
    make_data: bool = False
    """First write the recipe's own data to DIR, where it can make them and DIR is not there yet."""
    list: bool = False
    """Show recipes and presets: command, hardware, time and score."""
    distributed: bool = False
    """Join the other hosts of a TPU pod or cluster, which JAX finds by itself."""
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Join hosts that JAX cannot find: the first one's address, with --hosts and --host."""
    hosts: int = 1
    """How many processes there are in all."""
    host: int = 0
    """Number of this one, from 0."""

    def run(self) -> int:
        """Runs the command; the exit status: 143 or 130 when a signal ended it after a save."""
        if self.list:
            from facejax.training.listing import recipe_list

            print(recipe_list())
            return 0
        data, out = self.data, self.out
        if not self.recipe or data is None or out is None:
            return _fail(
                2, "facejax train takes RECIPE --data DIR --out RUN; `facejax train --list` shows the recipes."
            )
        use_compilation_cache()
        from facejax.data.sources import MachineError
        from facejax.training import find_recipe, join_hosts, override, preset_of, train

        if self.distributed or self.coordinator:
            join_hosts(self.coordinator, self.hosts, self.host)  # before anything else that asks JAX for devices
        kind = find_recipe(self.recipe)
        recipe = kind(override(preset_of(kind, self.preset).config, self.set))
        if self.make_data and not data.exists():
            recipe.write_data(data)
        try:
            with show_progress() as progress:
                outcome = train(
                    recipe,
                    data,
                    out,
                    preset=self.preset,
                    resume=self.resume,
                    progress=progress,
                    say=lambda line: print(line, file=sys.stderr, flush=True),
                )
        except MachineError as error:
            return _fail(1, str(error))
        if not outcome.finished:
            return _fail(
                130 if outcome.stopped_by == "SIGINT" else 143,
                f"stopped by {outcome.stopped_by} after step {outcome.step}, all of it saved; --resume goes on.",
            )
        rows: list[Row] = [(name, value, None) for name, value in outcome.scores.items()]
        print_summary([*rows, ("best step", outcome.best_step, None)], f"{self.recipe} -> {out}")
        return 0


@dataclasses.dataclass(frozen=True)
class CheckpointsList:
    """Show the pinned checkpoints on this machine, and what each reaches."""

    def run(self) -> int:
        """Runs the command; the exit status."""
        from facejax.data.checkpoints import pinned, read_manifest

        for name, folder in pinned().items():
            manifest = read_manifest(folder)
            values = ", ".join(f"{k} {v['value']:.4g}" for k, v in manifest["evaluation"]["values"].items())
            size = sum(file["bytes"] for file in manifest["files"].values()) / 1e6
            print(f"{name}: {manifest['recipe']}, {size:.2f} MB, {values}\n  {folder}")
        return 0


@dataclasses.dataclass(frozen=True)
class CheckpointsVerify:
    """Compare every file of a checkpoint, or of a complete run, with its manifest."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """A name from `facejax checkpoints list`, or a folder."""

    def run(self) -> int:
        """Runs the command; the exit status."""
        from facejax.data.checkpoints import find_checkpoint, verify

        folder = find_checkpoint(self.name)
        print(f"{folder}: {len(verify(folder)['files'])} files are as they were written")
        return 0


@dataclasses.dataclass(frozen=True)
class CheckpointsFetch:
    """Take a pinned checkpoint from a folder, a .zip or an https:// address of one, check it, and install it."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """What to call it here."""
    source: Annotated[str, tyro.conf.arg(name="from", metavar="WHERE")]
    """Folder, .zip or https:// address."""
    sha256: str | None = None
    """Of its manifest.json, as published."""

    def run(self) -> int:
        """Runs the command; the exit status."""
        from facejax.data.checkpoints import fetch

        print(f"{self.name} is installed: {fetch(self.name, self.source, self.sha256)}")
        return 0


@dataclasses.dataclass(frozen=True)
class CheckpointsPin:
    """Make a pinned checkpoint of a complete run: network, evaluation data, and the numbers it reaches on them."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    data: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Data folder that it was trained on."""
    out: Annotated[Path, tyro.conf.arg(metavar="NAME")]
    """Folder to write; its name is the checkpoint's."""
    examples: int = 64
    """How many test examples to bring along."""
    tolerance: float = 0.01
    """Relative tolerance of every number, at most 0.02."""
    recipe: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """The recipe's .py file, where it is one of your own."""

    def run(self) -> int:
        """Runs the command; the exit status."""
        from facejax.evaluation.reproduce import pin

        count, tolerance, recipe = self.examples, self.tolerance, self.recipe
        pin(self.run_folder, self.data, self.out, examples=count, tolerance=tolerance, recipe_file=recipe)
        print(f"{self.out} is written; `facejax reproduce {self.out}` measures it again")
        return 0


@dataclasses.dataclass(frozen=True)
class CheckpointsExport:
    """Write a checkpoint's network as .safetensors."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """A name from `facejax checkpoints list`, or a folder of a complete run."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """File to write."""

    def run(self) -> int:
        """Runs the command; the exit status."""
        from facejax.data.checkpoints import export_safetensors, find_checkpoint

        print(f"{self.out}: {export_safetensors(find_checkpoint(self.name), self.out)} arrays")
        return 0


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """List, verify, fetch, pin or export trained networks."""

    action: (
        Annotated[CheckpointsList, tyro.conf.subcommand("list")]
        | Annotated[CheckpointsVerify, tyro.conf.subcommand("verify")]
        | Annotated[CheckpointsFetch, tyro.conf.subcommand("fetch")]
        | Annotated[CheckpointsPin, tyro.conf.subcommand("pin")]
        | Annotated[CheckpointsExport, tyro.conf.subcommand("export")]
    )

    def run(self) -> int:
        """Runs the command; the exit status."""
        return self.action.run()


@dataclasses.dataclass(frozen=True)
class Reproduce:
    """Measure a pinned checkpoint again, on the data that it brings, and compare every number with the recorded one."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """A name from `facejax checkpoints list`, or a folder."""
    recipe: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """The recipe's .py file, where it is one of your own."""

    def run(self) -> int:
        """Runs the command; the exit status is 1 when a number is off by more than its tolerance."""
        use_compilation_cache()
        from facejax.evaluation.reproduce import reproduce

        compared = reproduce(self.name, self.recipe)
        for row in compared:
            word = "agrees" if row.agrees else "DIFFERS"
            print(
                f"{row.name}: {row.measured:.6g} here, {row.recorded:.6g} recorded, "
                f"tolerance {100 * row.tolerance:g} %: {word}"
            )
        return 0 if all(row.agrees for row in compared) else 1


@dataclasses.dataclass(frozen=True)
class EvalDeepLighting:
    """Print and write the tables of Chen et al. 2021 for an avatar on clips with truth."""

    model: str
    """Run of deep-lighting, or pinned checkpoint of one."""
    clips: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder of clips made by `facejax data wild-clip`, or one of them."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for runs.jsonl and tables.md; what is there already is not run again."""
    only: tuple[str, ...] = ()
    """Names of the clips to take; by default all."""
    tables: tuple[str, ...] = ("1", "2")
    """1: ours and the baselines; 2: the ablation; changing: one light per clip against a light per frame."""
    seeds: tuple[int, ...] = (0,)
    """A run for each."""
    size: int = 128
    """Side in pixels of the face crop that is fitted and compared."""
    preset: Literal["fast", "full"] = "fast"
    """`full` takes the paper's iterations."""
    held_out: int = 24
    """Frames that adaptation does not see, on which everything is measured."""
    landmark_noise_px: float | None = None
    """Take the true landmarks with noise of this many pixels, in place of the detector's."""
    identity: str = ""
    """Adds CSIM: `module:function` of two 8-bit pictures, which says how alike the persons are."""

    def run(self) -> int:
        """Runs the command; the exit status."""
        use_compilation_cache()
        from facejax.data.heads import load_avatar
        from facejax.evaluation.deep_lighting import Protocol, clips_in, identity_plugin, report

        clips = [c for c in clips_in(self.clips) if not self.only or c.name in self.only]
        told = Protocol(
            size=self.size,
            preset=self.preset,
            held_out=self.held_out,
            landmark_noise_px=self.landmark_noise_px,
            seeds=self.seeds,
        )
        plugin = identity_plugin(self.identity) if self.identity else None
        print(report(load_avatar(self.model), clips, self.out, told, self.tables, identity=plugin))
        return 0


@dataclasses.dataclass(frozen=True)
class EvalList:
    """Say which systems can be measured."""

    def run(self) -> int:
        """Runs the command; the exit status."""
        print("deep-lighting   Chen et al. 2021, Tables 1 and 2, on clips with truth (facejax data wild-clip)")
        return 0


@dataclasses.dataclass(frozen=True)
class Eval:
    """Measure a trained system by its paper's tables."""

    action: (
        Annotated[EvalDeepLighting, tyro.conf.subcommand("deep-lighting")]
        | Annotated[EvalList, tyro.conf.subcommand("list")]
    )

    def run(self) -> int:
        """Runs the command; the exit status."""
        return self.action.run()


@dataclasses.dataclass(frozen=True)
class DataLightStage:
    """Make a capture of a made-up person on a virtual light stage: what avatars and their light are trained on."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """Folder to write. One that holds a part of the same capture is completed."""
    preset: Literal["small", "paper"] = "small"
    """`small` is for two processor cores, `paper` for a cluster."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=VALUE"), tyro.conf.UseAppendAction] = ()
    """Change a field of `LightStageSpec`, as --set expressions=60; may be given many times."""

    def run(self) -> int:
        """Runs the command; the exit status."""
        use_compilation_cache()
        from facejax.made_up.light_stage import PRESETS, write_capture
        from facejax.training import override

        began = time.monotonic()
        spec = override(PRESETS[self.preset], self.set)
        with show_progress() as progress:
            write_capture(self.out, spec, progress)
        rows: list[Row] = [
            ("frames", spec.expressions * (1 + spec.partly_lit), None),
            ("cameras", spec.cameras, None),
            ("minutes", (time.monotonic() - began) / 60, None),
        ]
        print_summary(rows, f"light stage -> {self.out}")
        return 0


@dataclasses.dataclass(frozen=True)
class DataWildClip:
    """Path trace a clip of a capture's person in the wild, with truth: another camera, motion and light."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """Folder to write. One that holds a part of the same clip is completed."""
    capture: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder of `facejax data light-stage`, whose person is shown."""
    light: Literal["soft", "sun", "lamp", "environment", "changing", "steady", "profile"] = "sun"
    """`profile` is the sun on a head that turns to profile, `steady` the first moment of `changing`, held."""
    environment: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """.hdr or .exr picture of light, for --light environment."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=VALUE"), tyro.conf.UseAppendAction] = ()
    """Change a field of `WildSpec`, as --set frames=24; may be given many times."""

    def run(self) -> int:
        """Runs the command; the exit status."""
        use_compilation_cache()
        from facejax.made_up.wild_clips import Person, WildSpec, make_wild_clip
        from facejax.training import override

        began = time.monotonic()
        spec = override(WildSpec(light=self.light, environment=self.environment), self.set)
        person = Person.of_capture(self.capture)
        with show_progress() as progress:
            made = make_wild_clip(self.out, person, spec, progress=progress)
        rows: list[Row] = [
            ("frames", spec.frames, None),
            ("in cast shadow", f"{made.shadowed.mean():.1%}", None),
            ("minutes", (time.monotonic() - began) / 60, None),
        ]
        print_summary(rows, f"wild clip -> {self.out}")
        return 0


@dataclasses.dataclass(frozen=True)
class DataTestImages:
    """Add path-traced test images under the stage's own lights to a capture of the virtual light stage."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """Folder of `facejax data light-stage`."""
    count: int = 15
    """How many moments, each seen by all cameras; those that are there already are kept."""
    samples: int = 256
    """Paths per pixel."""

    def run(self) -> int:
        """Runs the command; the exit status."""
        use_compilation_cache()
        from facejax.made_up.traced_stage import add_test_images

        began = time.monotonic()
        with show_progress() as progress:
            entries = add_test_images(self.folder, self.count, samples=self.samples, progress=progress)
        rows: list[Row] = [("entries", len(entries), None), ("minutes", (time.monotonic() - began) / 60, None)]
        print_summary(rows, f"test images -> {self.folder}")
        return 0


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """Say what a capture holds, after checking that its parts are there."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """Folder of a capture."""

    def run(self) -> int:
        """Runs the command; the exit status."""
        from facejax.data.captures import LightStage, select

        capture = LightStage(self.folder)
        full, test = select(capture, "train", fully_lit=True), [e for e in capture.entries if e.split == "test"]
        rows: list[Row] = [
            ("frames", len(capture.entries), None),
            ("of these for tests", len(test), None),
            ("fully lit, for training", len(full), None),
            ("cameras", capture.n_cameras, None),
            ("groups of lights", capture.groups, None),
            ("image", "{} x {}".format(*capture.image_size), None),
            ("texture", f"{capture.texture_size} x {capture.texture_size}", None),
            ("vertices", capture.topology.n_vertices, None),
        ]
        print_summary(rows, str(self.folder))
        return 0


@dataclasses.dataclass(frozen=True)
class DataMultiface:
    """Say what a folder of the public data set Multiface holds and whether its parts agree, or what to download."""

    folder: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")] = None
    """Folder of one person (m--DATE--TIME--ID--GHS), or the one above."""
    plan: bool = False
    """Instead, say how many GB each choice of person, camera and expression needs."""
    subjects: tuple[str, ...] = ()
    """Plan: ids of persons; by default all."""
    expressions: int | None = None
    """Plan: how many segments of each person; by default all."""
    cameras: int | None = None
    """How many cameras, spread evenly; by default all."""
    segments: tuple[str, ...] = ()
    """With --save or --averages: segments to use; by default all that frame_list.txt names."""
    texture_size: int = 1024
    """With --save: side of the textures that training reads, where its config does not say."""
    image_scale: float | None = None
    """With --save: factor on the size of the pictures that training reads; by default that of the textures."""
    skip_incomplete: bool = False
    """With --save or --averages: leave out frames of which a camera lacks a file."""
    save: bool = False
    """Keep this choice in DIR, so that `facejax train RECIPE --data DIR` uses it."""
    averages: bool = False
    """Write each frame's mean texture over the chosen cameras to DIR, where the data set leaves that to its users."""

    def run(self) -> int:
        """Runs the command; the exit status is 1 when files are missing."""
        from facejax.data import multiface, multiface_survey

        if self.plan:
            print(multiface_survey.plan_text(self.subjects, self.cameras, self.expressions))
            return 0
        if self.folder is None:
            return _fail(2, "facejax data multiface takes a folder, or --plan to say what to download.")
        choice = multiface.Choice(
            segments=self.segments or None,
            cameras=self.cameras,
            texture_size=self.texture_size,
            image_scale=self.image_scale,
            incomplete="skip" if self.skip_incomplete else "refuse",
        )
        if self.save:
            print(f"{multiface.save_choice(self.folder, choice)} keeps the choice")
        if self.averages:
            capture = multiface.Multiface(self.folder, choice=choice)
            with show_progress() as progress:
                print(f"{multiface_survey.write_averages(capture, progress)} mean textures are written")
        if self.save or self.averages:
            return 0
        found = [multiface_survey.survey(person, self.cameras) for person in multiface_survey.people(self.folder)]
        print("\n".join(multiface_survey.describe(contents) for contents in found))
        return 1 if any(contents.missing.files for contents in found) else 0


@dataclasses.dataclass(frozen=True)
class Data:
    """Make captures, and say what they hold."""

    action: (
        Annotated[DataLightStage, tyro.conf.subcommand("light-stage")]
        | Annotated[DataWildClip, tyro.conf.subcommand("wild-clip")]
        | Annotated[DataTestImages, tyro.conf.subcommand("test-images")]
        | Annotated[DataInfo, tyro.conf.subcommand("info")]
        | Annotated[DataMultiface, tyro.conf.subcommand("multiface")]
    )

    def run(self) -> int:
        """Runs the command; the exit status."""
        return self.action.run()


Command = (
    Annotated[Track, tyro.conf.subcommand("track")]
    | Annotated[Assets, tyro.conf.subcommand("assets")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Relight, tyro.conf.subcommand("relight")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Checkpoints, tyro.conf.subcommand("checkpoints")]
    | Annotated[Eval, tyro.conf.subcommand("eval")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `facejax` with these arguments (default: the process's) and returns its exit status.

    0 done; 1 the machine cannot (disk, memory, a broken installation); 2 the input cannot be used; 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"facejax {facejax.__version__}")
        return 0
    try:
        if arguments[:1] == ["train"] and {"-h", "--help"} & {*arguments}:
            _show_fields(arguments[1:])
        command = parse(arguments)
        return command.run()
    except KeyboardInterrupt as stopped:
        return _fail(130, f"stopped; nothing half-written{stopped}")
    except BrokenPipeError:  # the reader of our output went away, as in `facejax assets list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        explained = explain(error)
        if explained is None:
            raise
        return _fail(*explained)


def parse(
    arguments: Sequence[str],
) -> Track | Assets | Demo | Relight | Data | Train | Checkpoints | Eval | Reproduce | Doctor:
    """The command that these arguments name; prints usage and raises `SystemExit` where they name none."""
    return tyro.cli(
        Command,
        args=arguments,
        prog="facejax",
        description="Track, relight and learn 3D faces from ordinary video. `facejax --version` prints the version.",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def _show_fields(arguments: Sequence[str]) -> None:
    """`facejax train RECIPE --help` begins with every field of the recipe's config."""
    names = [word for word in arguments[:1] if not word.startswith("-")]
    if names:
        from facejax.training.listing import config_help

        presets = [after for word, after in itertools.pairwise(arguments) if word == "--preset"]
        print(config_help(names[0], *presets[:1]))


@contextlib.contextmanager
def _resumable(is_kept: Callable[[], bool]) -> Iterator[None]:
    """Has an interruption tell how to go on, where finished work is kept."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt(", --resume goes on from here" if is_kept() else "") from stopped


def parse_intrinsics(text: str | None) -> tuple[float, float, float, float] | None:
    """(fx, fy, cx, cy) in pixels from "fx,fy,cx,cy"; `InputError` unless it is four numbers, the first two positive."""
    if text is None:
        return None
    try:
        fx, fy, cx, cy = (float(part) for part in text.split(","))
    except ValueError:
        fx = fy = cx = cy = math.nan
    if not (all(map(math.isfinite, (fx, fy, cx, cy))) and fx > 0 and fy > 0):
        _refuse(f"--intrinsics takes four numbers fx,fy,cx,cy in pixels, the first two positive, not {text!r}.")
    return fx, fy, cx, cy


def parse_frames(text: str | None) -> tuple[int, int | None] | None:
    """(first, stop) from "A:B", "A:" or ":B", stop None for the end; `InputError` when it is not such a range."""
    if text is None:
        return None
    first, colon, stop = text.partition(":")
    # more digits than any clip has frames, and at some length Python itself refuses to read them
    usable = colon and all(part == "" or (part.isdecimal() and len(part) < 19) for part in (first, stop))
    start, end = (int(first or 0), int(stop) if stop else None) if usable else (0, 0)
    if end is not None and end <= start:
        _refuse(f"--frames takes A:B with 0 <= A < B (either may be left out), not {text!r}.")
    return start, end


def parse_point(text: str | None) -> tuple[float, float, float] | None:
    """(x, y, z) in metres from "x,y,z"; `InputError` unless it is three finite numbers."""
    if text is None:
        return None
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError:
        x = y = z = math.nan
    if not all(map(math.isfinite, (x, y, z))):
        _refuse(f"--point takes three numbers x,y,z in metres, not {text!r}.")
    return x, y, z


def parse_turn(text: str | None) -> tuple[float, float]:
    """(degrees, degrees per second) from "DEG", "DEG/s" or "DEG,DEG/s"; `InputError` when it is none of them."""
    angle = speed = 0.0
    for part in (text or "0").split(",", 1):
        try:
            value = float(part.removesuffix("/s"))
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            _refuse(f"--rotate takes degrees, as 90, 30/s or 90,30/s, not {text!r}.")
        if part.endswith("/s"):
            speed = value
        else:
            angle = value
    return angle, speed


def explain(error: Exception) -> tuple[int, str] | None:
    """(exit status, sentence) of an error that a person can act on; None of a bug, which keeps its traceback."""
    from facejax.geometry.errors import InputError

    if isinstance(error, InputError):
        return 2, str(error)
    where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError):
        return 1, "out of memory: close other programs, take fewer frames (--frames A:B) or a smaller --size."
    if number in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):  # Windows knows no quota error
        return 1, f"the disk is full{where}: free some space and run the command again; nothing half-written."
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return 1, f"not allowed to read or write there{where}: choose a folder that is yours."
    if isinstance(error, FileNotFoundError):
        return 2, f"no such file or folder{where}: check the path."
    if "RESOURCE_EXHAUSTED" in str(error):  # what JAX raises when a device's memory is full
        return explain(MemoryError())
    return None


def use_compilation_cache() -> None:
    """Lets JAX keep compiled programs in facejax's cache folder, so that a second run starts quickly.

    `JAX_COMPILATION_CACHE_DIR` is honoured. Where the folder cannot be written there is no cache, and nothing is said:
    `facejax doctor` does.
    """
    import jax

    from facejax.data.assets import home

    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        folder = Path(home()) / "xla"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


@contextlib.contextmanager
def show_progress() -> Iterator["ShownProgress"]:
    """A callback that shows stage, count, speed and time left on stderr: bars on a terminal, else plain lines."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield PlainProgress(print_line=lambda line: print(line, file=sys.stderr, flush=True))
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as bars:
        yield _BarProgress(bars)


class ShownProgress(Protocol):
    """A `ProgressCallback` that also shows a line of its own, which changes."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...

    def line(self, text: str) -> None: ...


class PlainProgress:
    """Progress as plain lines: when a stage begins, when it ends, and in between at most every `interval` seconds.

    Speed and time left count from the stage's first report, so work that `--resume` found done does not flatter them.
    """

    def __init__(
        self, print_line: Callable[[str], None], interval: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._print, self._interval, self._clock = print_line, interval, clock
        self._stage: str | None = None
        self._began = self._said = 0.0
        self._first = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Notes that `done` of `total` parts of `stage` are finished."""
        now = self._clock()
        new = stage != self._stage
        if new:
            self._stage, self._began, self._first = stage, now, done
        if new or done >= total or now - self._said >= self._interval:
            self._said = now
            self._print(f"{stage} {done}/{total}{_pace(done - self._first, total - done, now - self._began)}")

    def line(self, text: str) -> None:
        """Prints a line that changes, at most every `interval` seconds."""
        now = self._clock()
        if now - self._said >= self._interval:
            self._said = now
            self._print(text)


class _BarProgress:
    """Progress as one bar per stage."""

    def __init__(self, bars: "Progress") -> None:
        self._bars = bars
        self._tasks: dict[str, tuple[int, float, int]] = {}  # stage -> (bar, when it began, what was done then)
        self._line: int | None = None

    def line(self, text: str) -> None:
        """Shows a line below the bars, in place of the one before."""
        if self._line is None:
            self._line = int(self._bars.add_task(text, total=None, speed=""))
        self._bars.update(self._line, description=text)  # type: ignore[arg-type]

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage not in self._tasks:
            self._tasks[stage] = (int(self._bars.add_task(stage, total=total, speed="")), now, done)
        bar, began, first = self._tasks[stage]
        rate = (done - first) / (now - began) if now > began else 0.0
        self._bars.update(bar, completed=done, total=total, speed=f"{rate:.1f}/s" if rate else "")  # type: ignore[arg-type]


def print_summary(rows: Iterable[Row], title: str) -> None:
    """Prints the short table of what was reached; a control column is shown only where some row has one.

    Rows named "note" follow below it, a line each.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # file names are shown as they are: a plain string would be read as markup

    every = list(rows)
    rows, notes = [r for r in every if r[0] != "note"], [r[1] for r in every if r[0] == "note"]
    controls = any(control not in (None, "") for _, _, control in rows)
    table = Table(title=Text(title, style="table.title"), title_justify="left")
    table.add_column("reached")
    table.add_column("value", justify="right")
    if controls:
        table.add_column("control", justify="right")
    for name, value, control in rows:
        table.add_row(*[Text(_cell(c)) for c in ((name, value, control) if controls else (name, value))])
    console = Console()
    console.print(table)
    for note in notes:
        console.print(f"note: {note}", markup=False, highlight=False)


def _cell(value: object) -> str:
    """A number with four significant digits, nothing for None, anything else as it is."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _pace(finished: int, left: int, seconds: float) -> str:
    """Speed and time left, "" while nothing is known."""
    if finished <= 0 or seconds <= 0:
        return ""
    rate = finished / seconds
    return f", {rate:.1f} per second" + (f", {left / rate:.0f} s left" if left > 0 else "")


def _check_track(options: Track) -> None:
    """Refuses numbers that no video could make sense of, before anything is loaded."""
    if options.size < 32:
        _refuse(f"--size must be at least 32 pixels, not {options.size}.")
    if options.face < 0:
        _refuse(f"--face counts from 0, so it cannot be {options.face}.")
    if options.ipd_mm is not None and not 20 <= options.ipd_mm <= 100:
        _refuse(
            f"--ipd-mm is the distance between the pupils in millimetres (people: 45 to 80), not {options.ipd_mm:g}."
        )

    if options.live:
        apart = ("masks", "identity", "ipd_mm", "renders", "resume", "changing_light")
        given = [f"--{name.replace('_', '-')}" for name in apart if getattr(options, name) not in (None, False)]
        if given:
            _refuse(f"--live goes without {', '.join(given)}: leave out what only a whole clip can use.")


def _refuse(sentence: str) -> None:
    """Raises `InputError`."""
    from facejax.geometry.errors import InputError

    raise InputError(sentence)


def _fail(status: int, sentence: str) -> int:
    """Says why on stderr and gives back the status."""
    print(f"facejax: {sentence}", file=sys.stderr)
    return status
