"""`facejax track`: a video in, a folder of results out, whole or not at all."""

import dataclasses
import functools
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import facejax
from facejax.apps.avatar import AVATAR_FILES, AvatarView, how_it_fits, picture_of, write_avatar
from facejax.apps.pictures import overlay_video, preview_frames, preview_png, write_renders
from facejax.data.files import atomic_folder, terminate_as_interrupt
from facejax.data.gltf import write_glb
from facejax.data.heads import resolve_head
from facejax.data.landmarks import Landmarks, detect_landmarks, load_landmarks
from facejax.data.photos import are_photos, open_photos, photo_landmarks
from facejax.data.results import RESULT_FILES, TrackResult, save_metrics
from facejax.data.video import Video, load_masks, open_video
from facejax.evaluation.tracking import evaluate_track
from facejax.fitting import FitConfig, Stage, fit_image, fit_sequence
from facejax.fitting.checkpoint import Checkpoint, fingerprint
from facejax.geometry.errors import InputError
from facejax.models.avatar import Avatar
from facejax.models.head import HeadModel

Row = tuple[str, object, object]
"""(name, value, control): a line of the table, and what a method that does nothing would reach."""
Progress = Callable[[str, int, int], None]
"""`progress(stage, done, total)`."""

_PICTURES_COMPARED = 10  # frames on which PSNR and SSIM are measured: enough for a table
_COMPARED_PX = 512
_PREVIEW_PIXELS = 50_000_000  # of input frames held in memory for the preview sheet


def track(
    video: Any,
    out: Path | str,
    *,
    model: str | Path | HeadModel = "generic",
    landmarks: Landmarks | Path | str | None = None,
    intrinsics: Any = None,
    masks: Path | str | None = None,
    identity: Path | str | None = None,
    face: int = 0,
    ipd_mm: float | None = None,
    size: int = 256,
    frames: tuple[int | None, int | None] | None = None,
    photos: bool = False,
    preset: str = "fast",
    light_model: str = "network",
    changing_light: bool = False,
    renders: bool = False,
    resume: bool = False,
    config: FitConfig | None = None,
    stages: tuple[Stage, ...] | None = None,
    progress: Progress | None = None,
    extra: Callable[[TrackResult, Path], Iterable[Row]] | None = None,
    extra_files: Iterable[str] = (),
) -> list[Row]:
    """Track the face in a video and write the folder `out`; returns the table of what was reached.

    Options are those of `fit_sequence`; model: a name, a path or a head; an avatar writes `AVATAR_FILES` too, and is
    lit by `light_model`, changing in the clip or not, see `FitConfig`. frames: (first, one past the last). photos: the
    pictures are photos of one person, see `fit_image`; one picture, and a folder of several sizes, are taken so anyway.
    config: instead of preset and size. stages: instead of the head's plan. renders: write `renders/` too. extra: writes
    files of its own, named in `extra_files`, into the folder, and returns more rows for the table and `metrics.json`.

    Nothing appears at `out` before everything is there. Finished work is kept in the hidden folder
    `progress_folder(out)` until then; with `resume` an interrupted run goes on from it, else it is discarded.
    Raises `InputError`, in one sentence, for input that cannot be tracked and a folder that cannot be written.
    """
    report, clock = progress or (lambda stage, done, total: None), StageClock()

    def tell(stage: str, done: int, total: int) -> None:
        clock(stage)
        report(stage, done, total)

    work = progress_folder(out)
    with terminate_as_interrupt(), atomic_folder(out, (*RESULT_FILES, *AVATAR_FILES, *extra_files)) as folder, clock:
        if not resume:
            shutil.rmtree(work, ignore_errors=True)
        resumed = work.is_dir()
        photos = photos or are_photos(video)
        clip = _opened(video, frames, photos)
        config = config or _config(preset, size, light_model=light_model, changing_light=changing_light)
        head = resolve_head(model)
        avatar = head if isinstance(head, Avatar) else None
        ignored = load_masks(masks, clip) if masks is not None else None
        earlier = TrackResult.load(identity) if identity is not None else None
        seen = find_landmarks(clip, landmarks, face=face, work=work, progress=tell)
        options: dict[str, Any] = {
            "landmarks": seen,
            "intrinsics": intrinsics,
            "ipd_mm": ipd_mm,
            "config": config,
            "progress": tell,
            "checkpoint": work,
            "stages": stages,
        }
        if photos:
            if ignored is not None or earlier is not None:
                raise InputError("Photos are fitted without masks and without an earlier identity: leave both out.")
            result = fit_image(clip, head, **options)
        else:
            result = fit_sequence(clip, head, masks=ignored, identity=earlier, **options)
        tell("measuring", 0, 1)
        seconds, compiling = clock.seconds(), clock.compilation()
        view = None
        if avatar is not None:
            view = AvatarView(result)
        reached = evaluate_track(
            result,
            clip if view is None else None,
            target_depth=seen.depth if np.isfinite(seen.depth).any() else None,
            size=_COMPARED_PX,
            max_frames=_PICTURES_COMPARED,
        )
        if view is not None:
            reached["picture"] = picture_of(view, result, clip, _PICTURES_COMPARED)
        more = list(extra(result, folder)) if extra else []
        tell("measuring", 1, 1)
        known = {"intrinsics": intrinsics is not None, "identity": identity is not None, "ipd_mm": ipd_mm}
        notes: list[str] = (result.metrics or {}).get("notes") or _notes(clip, seen)
        if view is not None:
            notes += filter(None, [how_it_fits(reached["landmarks"]["lips"])])
        if resume:
            notes.append(
                "went on from an interrupted run: times are of this run" if resumed else "nothing to go on from"
            )
        metrics = _metrics(result, reached, known, sum(seconds.values()) - seconds["loading"], compiling)
        result = dataclasses.replace(result, metrics=metrics)
        notes += write_result(folder, result, clip, renders=renders, progress=tell)
        if view is not None:
            write_avatar(folder, view, result, clip, tell)
        metrics |= {
            "truth": {name: {"value": value, "control": control} for name, value, control in more},
            "config": dataclasses.asdict(config) | {"face": face, "ipd_mm": ipd_mm, "model": result.model_name},
            "versions": versions(),
            "timing_seconds": clock.seconds() | {"compilation": clock.compilation()},
            "notes": notes,
        }
        save_metrics(folder, metrics)
    shutil.rmtree(work, ignore_errors=True)
    return [*_rows(result, metrics), *more, *(("note", note, None) for note in notes)]


def _opened(video: Any, frames: tuple[int | None, int | None] | None, photos: bool) -> Video:
    if isinstance(video, Video):
        return video
    if not photos:
        return open_video(video, frames)
    if frames is not None:
        raise InputError("Photos have no frames to choose among: give those that are wanted, without `frames`.")
    return open_photos(video)


def _config(preset: str, size: int, **light: Any) -> FitConfig:
    if preset not in ("fast", "full"):
        raise InputError(f"`preset` must be 'fast' or 'full', not {preset!r}.")
    if size < 32:
        raise InputError(f"`size` must be at least 32 pixels, not {size}.")
    return FitConfig(preset=preset, size=size, **light)  # type: ignore[arg-type]


def progress_folder(out: Path | str) -> Path:
    """The hidden folder beside `out` in which an interrupted run keeps what it had finished."""
    path = Path(out).expanduser().resolve()
    return path.with_name(f".{path.name}.progress")


def find_landmarks(
    clip: Video, given: Landmarks | Path | str | None, *, face: int, work: Path, progress: Progress
) -> Landmarks:
    """Landmarks as given, from a file, kept in `work` by an interrupted run, or by the detector."""
    if isinstance(given, Landmarks):
        return given
    if given is not None:
        return load_landmarks(given, clip.n_frames, clip.size, source_frames=clip.source_frames, first=clip.first)
    tell = functools.partial(progress, "landmarks")
    keep = Checkpoint(work, fingerprint(clip, face))
    arrays = ("points", "depth", "blendshapes", "valid", "confidence", "box")
    kept = keep.load("landmarks", dict.fromkeys(arrays, 0))
    if kept is not None and clip.path is not None:
        names, notes = (tuple(str(n) for n in kept[1][k].tolist()) for k in ("names", "notes"))
        return Landmarks(**kept[0], blendshape_names=names, image_size=clip.size, notes=notes)
    tell(0, clip.n_frames)
    detect: Callable[..., Landmarks] = photo_landmarks if clip.photo_sizes else detect_landmarks
    found = detect(clip, face=face, progress=tell)
    keep.save(
        "landmarks",
        {name: getattr(found, name) for name in arrays},
        names=np.array(found.blendshape_names, dtype=np.str_),
        notes=np.array(found.notes, dtype=np.str_),
    )
    return found


def write_result(
    folder: Path, result: TrackResult, clip: Video, *, renders: bool, progress: Progress
) -> tuple[str, ...]:
    """Write every file of a result but `metrics.json` into `folder`; returns notes for a person."""
    progress("track.npz", 0, 1)
    result.save(folder)
    progress("track.npz", 1, 1)
    sound = clip.path if clip.has_audio else None
    notes = overlay_video(folder / "overlay.mp4", clip.frames(), result, audio_from=sound, progress=progress)
    progress("preview.png", 0, 1)
    count = int(np.clip(_PREVIEW_PIXELS // (clip.size[0] * clip.size[1]), 1, 4))
    picks = preview_frames(result, count)
    preview_png(folder / "preview.png", clip.each(picks), result, picks)
    progress("preview.png", 1, 1)
    progress("head.glb", 0, 1)
    write_glb(folder / "head.glb", result)
    progress("head.glb", 1, 1)
    if renders:
        write_renders(folder / "renders", result, progress=progress)
    return notes


class StageClock:
    """Seconds per stage of a run, and how many of them went into compilation. A context; use it once."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._stage, self._since = "loading", time.perf_counter()
        self._compiled: list[tuple[float, float]] = []

    def __enter__(self) -> "StageClock":
        jax.monitoring.register_event_duration_secs_listener(self._compiling)
        return self

    def __exit__(self, *unused: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._compiling)

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = stage, now

    def seconds(self) -> dict[str, float]:
        """Stage -> seconds so far."""
        self(self._stage)
        return dict(self._seconds)

    def compilation(self) -> float:
        """Seconds in which JAX traced or compiled. Traces nest, so that their sum would count some twice."""
        total = last = 0.0
        for start, end in sorted(self._compiled):
            total += max(0.0, end - max(start, last))
            last = max(last, end)
        return total

    def _compiling(self, event: str, duration_secs: float, **unused: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            now = time.perf_counter()
            self._compiled.append((now - duration_secs, now))


def _notes(clip: Video, seen: Landmarks) -> list[str]:
    notes = [*clip.notes, *seen.notes]
    if clip.first and any("frame" in note for note in seen.notes):
        notes.append(f"frame numbers in notes count from frame {clip.first} of the video")
    if clip.damaged:
        shown = ", ".join(map(str, clip.damaged[:5])) + (", ..." if len(clip.damaged) > 5 else "")
        notes.append(f"{len(clip.damaged)} damaged frames, replaced by the one before: {shown}")
    return notes


def _metrics(
    result: TrackResult, reached: dict[str, Any], known: dict[str, Any], seconds: float, compiling: float
) -> dict[str, Any]:
    """What `metrics.json` says of a track: plain numbers first, which the preview sheet shows, then their controls."""
    points, signals, picture = reached["landmarks"], reached["correlation"], reached.get("picture", {})
    camera = "identity" if known["identity"] else "estimated"
    return {
        "inner_face_percent": points["inner_face"],
        "lips_percent": points["lips"],
        "lip_gap_correlation": signals["lip_gap"],
        "lid_correlation": signals["lid_opening"],
        "psnr_db": picture.get("psnr"),
        "ssim": picture.get("ssim"),
        "hull_coverage": picture.get("hull_coverage"),
        "frames": len(result),
        "frames_tracked": int(result.valid.sum()),
        "seconds_per_frame": max(seconds - compiling, 0.0) / len(result),
        "compilation_seconds": compiling,
        "focal_px": [float(result.intrinsics[0, 0]), float(result.intrinsics[1, 1])],
        "focal_from": "given" if known["intrinsics"] else camera,
        "scale": float(result.scale),
        "scale_from": "ipd_mm" if known["ipd_mm"] is not None else camera.replace("estimated", "prior"),
        "stages": (result.metrics or {}).get("stages", []),
        "frames_by_status": {name: int(np.sum(result.status == i)) for i, name in enumerate(result.status_names)},
        "controls": {
            "dead_face": {
                "inner_face_percent": points["inner_face_dead_face"],
                "lips_percent": points["lips_dead_face"],
                "lip_gap_correlation": signals["lip_gap_dead_face"],
                "lid_correlation": signals["lid_opening_dead_face"],
            },
            "without_texture": {
                "psnr_db": picture.get("psnr_without_texture"),
                "ssim": picture.get("ssim_without_texture"),
            },
            "mean_colour": {"psnr_db": picture.get("psnr_mean_colour"), "ssim": picture.get("ssim_mean_colour")},
            "frames_compared": picture.get("frames", 0),
        },
    }


def _rows(result: TrackResult, metrics: dict[str, Any]) -> list[Row]:
    """The table of what was reached."""
    failed = [f"{n} {name}" for name, n in list(metrics["frames_by_status"].items())[1:] if n]
    tracked = f"{metrics['frames_tracked']} of {metrics['frames']}" + (f" ({', '.join(failed)})" if failed else "")

    def pair(name: str, key: str, control: str) -> Row:
        value, other = metrics[key], metrics["controls"][control][key]
        return (name, _number(value), f"{_number(other)} ({control.replace('_', ' ')})" if value is not None else None)

    focal = metrics["focal_px"]
    lengths = f"{focal[0]:.0f}" if abs(focal[0] - focal[1]) < 0.5 else f"{focal[0]:.0f}, {focal[1]:.0f}"
    camera = {"given": "given", "identity": "the identity's", "estimated": "estimated"}[metrics["focal_from"]]
    scale = {
        "prior": "the model's prior",
        "identity": "the identity's",
        "ipd_mm": f"{metrics['scale']:.4g} of the model's, from the pupils",
    }[metrics["scale_from"]]
    return [
        ("frames tracked", tracked, None),
        pair("inner face error (% of eye distance)", "inner_face_percent", "dead_face"),
        pair("lip error (% of eye distance)", "lips_percent", "dead_face"),
        pair("correlation of lip gap", "lip_gap_correlation", "dead_face"),
        pair("correlation of lid opening", "lid_correlation", "dead_face"),
        pair("PSNR in the face (dB)", "psnr_db", "mean_colour"),
        pair("SSIM in the face", "ssim", "mean_colour"),
        ("share of the face covered", _number(metrics["hull_coverage"]), None),
        ("seconds per frame, once compiled", _number(metrics["seconds_per_frame"]), None),
        ("seconds of compilation", _number(metrics["compilation_seconds"]), None),
        ("focal length (px)", f"{lengths} ({camera})", None),
        ("scale", scale, None),
    ]


def _number(value: float | None) -> str:
    """With three significant digits; "n/a" where there is nothing to measure (one frame has no correlation)."""
    return "n/a" if value is None or not np.isfinite(value) else f"{value:.3g}"


def versions() -> dict[str, str]:
    """Of what a result was made with, and where."""
    return {
        "facejax": facejax.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "cores": str(os.cpu_count()),
    }
