"""`facejax track --live`: a face followed as its frames come, from a file or a camera."""

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from facejax.apps.track import Progress, Row, StageClock, versions
from facejax.data.devices import CameraDevice, is_device, open_camera
from facejax.data.files import atomic_folder, terminate_as_interrupt
from facejax.data.heads import resolve_head
from facejax.data.landmarks import FaceDetector, Landmarks, load_landmarks
from facejax.data.results import RESULT_FILES, TrackResult, assemble, save_metrics
from facejax.data.video import Video, open_video
from facejax.fitting import FitConfig, live
from facejax.fitting.live import LiveConfig, LiveFrame, LiveState, Tracked
from facejax.fitting.sequence import STATUS_NAMES, Fit
from facejax.geometry.errors import InputError
from facejax.geometry.records import PyTree
from facejax.models.head import HeadModel
from facejax.scenes.unknowns import light_in, on_host, placed

Show = Callable[[str], None]
"""Called with one line that says how it goes."""

_RECENT = 100  # frames that the line speaks of
_LEAST_ENROLLED = 4
_GIVE_UP_S = 60.0  # of a camera that shows no face


class _Came(NamedTuple):
    """A frame, with its points."""

    frame: LiveFrame
    depth: Float[np.ndarray, "478"]
    confidence: Float[np.ndarray, "478"]
    arrived: float
    """`time.monotonic` when there was a picture."""
    number: int
    """In the source."""


def track_live(
    source: Path | str,
    out: Path | str | None = None,
    *,
    model: str | Path | HeadModel = "generic",
    landmarks: Path | str | None = None,
    intrinsics: Any = None,
    face: int = 0,
    frames: tuple[int | None, int | None] | None = None,
    enrol: int = 32,
    config: LiveConfig = LiveConfig(),  # noqa: B008 (frozen)
    progress: Progress | None = None,
    show: Show | None = None,
) -> list[Row]:
    """Follow the face in a video, a folder of images or a camera; returns the table of what was reached.

    source: a path, or a camera's number or device file. The first `enrol` frames with a face are fitted together, as
    `track` fits a clip; every later frame is solved when it comes. Of a camera the latest frame is taken and others are
    dropped; of a file none is. landmarks, frames: of a file, as of `track`. show: told the speed, about as often as a
    person reads. An interruption ends it, and what was tracked until then is kept.

    out: folder for `track.npz` and `metrics.json`, written whole or not at all. Raises `InputError`, in one sentence,
    for what cannot be tracked and a camera that cannot be opened.
    """
    if enrol < _LEAST_ENROLLED:
        raise InputError(
            f"Live tracking needs at least {_LEAST_ENROLLED} frames to enrol on, and {enrol} was asked for."
        )
    report, say = progress or (lambda stage, done, total: None), show or (lambda line: None)
    head, clock = resolve_head(model), StageClock()
    with contextlib.ExitStack() as open_things:
        open_things.enter_context(terminate_as_interrupt())
        folder = open_things.enter_context(atomic_folder(out, RESULT_FILES)) if out is not None else None
        open_things.enter_context(clock)
        feed = open_things.enter_context(_feed(source, landmarks, face, frames))
        clock("enrolment")
        fit, enrolled, state = _enrolled(feed, head, intrinsics, enrol, config, report)
        seconds = clock.seconds()["enrolment"]
        clock("live")
        run = _Run(say, keep=folder is not None)
        with contextlib.suppress(KeyboardInterrupt):
            run.through(feed, fit, state)
        if not run.delays:
            raise InputError(
                f"No frame was left to track live after the {len(enrolled)} enrolled on: take a longer clip, or "
                "enrol on fewer frames."
            )
        clock("writing")
        metrics = _metrics(run, feed, len(enrolled), seconds, clock.compilation()) | {
            "config": dataclasses.asdict(config) | {"face": face, "model": head.name},
            "versions": versions(),
            "notes": list(feed.notes),
        }
        if folder is not None:
            _result(fit, enrolled, run, metrics).save(folder)
            save_metrics(folder, metrics)
    return [*_rows(metrics), *(("note", note, None) for note in feed.notes)]


# -- where frames come from --------------------------------------------------------------------------------------------


class _Feed:
    """Frames with their points, in order. A context."""

    notes: tuple[str, ...] = ()
    dropped = 0
    first = 0  # number of the first frame in the source

    def __init__(self, finder: FaceDetector | Landmarks) -> None:
        self._finder = finder

    def __iter__(self) -> Iterator[_Came]:
        for picture, at, arrived, number in self._pictures():
            points = live.NO_POINTS
            depth, confidence = np.full(478, np.nan, np.float32), np.zeros(478, np.float32)
            if isinstance(self._finder, Landmarks):
                found = self._finder
                points, depth, confidence = found.points[number], found.depth[number], found.confidence[number]
            else:
                seen = self._finder.detect(picture, at)
                if seen is not None:
                    points, depth, confidence = seen.points, seen.depth, seen.confidence
            yield _Came(LiveFrame(picture, points, at, confidence), depth, confidence, arrived, self.first + number)

    def _pictures(self) -> Iterator[tuple[UInt8[np.ndarray, "h w 3"], float, float, int]]:
        """(picture, its time, when it arrived, how many came before)."""
        raise NotImplementedError

    def __enter__(self) -> "_Feed":
        return self

    def __exit__(self, *unused: object) -> None:
        if isinstance(self._finder, FaceDetector):
            self._finder.__exit__()


class _FileFeed(_Feed):
    def __init__(self, clip: Video, finder: FaceDetector | Landmarks) -> None:
        super().__init__(finder)
        self._clip, self._next, self.notes, self.first = clip, 0, clip.notes, clip.first

    def _pictures(self) -> Iterator[tuple[UInt8[np.ndarray, "h w 3"], float, float, int]]:
        if self._next == self._clip.n_frames:
            return
        for picture in self._clip.frames(self._next):
            number, self._next = self._next, self._next + 1
            yield picture, float(self._clip.time[number]), time.monotonic(), number


class _CameraFeed(_Feed):
    def __init__(self, camera: CameraDevice, finder: FaceDetector) -> None:
        super().__init__(finder)
        self._camera, self._number = camera, 0

    @property
    def dropped(self) -> int:  # type: ignore[override]
        return self._camera.dropped

    def _pictures(self) -> Iterator[tuple[UInt8[np.ndarray, "h w 3"], float, float, int]]:
        for picture, arrived in self._camera.shots():
            number, self._number = self._number, self._number + 1
            yield picture, arrived, arrived, number

    def __enter__(self) -> "_CameraFeed":
        self._camera.__enter__()
        return self

    def __exit__(self, *unused: object) -> None:
        self._camera.__exit__()
        super().__exit__()


def _feed(
    source: Path | str, landmarks: Path | str | None, face: int, frames: tuple[int | None, int | None] | None
) -> _Feed:
    if is_device(source):
        if landmarks is not None or frames is not None:
            raise InputError("A camera has neither landmarks in a file nor numbered frames: leave both out.")
        camera = open_camera(source)
        return _CameraFeed(camera, FaceDetector(face=face))
    clip = open_video(source, frames)
    if landmarks is None:
        return _FileFeed(clip, FaceDetector(face=face))
    given = load_landmarks(landmarks, clip.n_frames, clip.size, source_frames=clip.source_frames, first=clip.first)
    return _FileFeed(clip, given)


# -- the two halves ----------------------------------------------------------------------------------------------------


def _enrolled(
    feed: _Feed, head: HeadModel, intrinsics: Any, count: int, config: LiveConfig, report: Progress
) -> tuple[Fit, list[_Came], LiveState]:
    """(fit of the first frames with a face, these frames, the state that a step goes on from); all is compiled."""
    came: list[_Came] = []
    began = time.monotonic()
    report("enrolment", 0, count)
    for one in feed:
        if np.isfinite(one.frame.points).all():
            came.append(one)
            report("enrolment", len(came), count)
        if len(came) == count:
            break
        if not came and isinstance(feed, _CameraFeed) and time.monotonic() - began > _GIVE_UP_S:
            break
    if len(came) < count:
        raise InputError(
            f"Live tracking enrols on {count} frames with a face, and there were {len(came)}: check that a face is "
            "visible and upright, or enrol on fewer frames."
        )
    points, depth, confidence = (
        np.stack(x) for x in ([c.frame.points for c in came], [c.depth for c in came], [c.confidence for c in came])
    )
    height, width = came[0].frame.picture.shape[:2]
    seen = Landmarks(
        points=points,
        depth=depth,
        blendshapes=np.full((count, 0), np.nan, np.float32),
        blendshape_names=(),
        valid=np.ones(count, bool),
        confidence=confidence,
        image_size=(width, height),
        box=np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1),
    )
    pictures = [c.frame.picture for c in came]
    fit = live.enrol(pictures, head, seen, config, intrinsics=intrinsics, progress=report)
    state = live.init(fit, config)
    live.step(fit.scene, state, came[-1].frame)  # compiles: the next one is on time
    return fit, came, state


class _Run:
    """Frames as they are tracked, and how long each took."""

    def __init__(self, say: Show, keep: bool) -> None:
        self._say, self._keep = say, keep
        self.rows: list[tuple[PyTree, Float[np.ndarray, "478 2"], int, float]] = []
        """(frame variables, points, number, time) of every frame, where they are kept."""
        self.statuses = np.zeros(len(STATUS_NAMES), np.int64)
        self.status: list[int] = []
        self.delays: list[float] = []
        self.seconds = 0.0

    def through(self, feed: _Feed, fit: Fit, state: LiveState) -> None:
        began = time.monotonic()
        recent: deque[float] = deque([began], maxlen=_RECENT)
        for came in feed:
            state, tracked = live.step(fit.scene, state, came.frame)
            now = time.monotonic()
            self._took(came, tracked, now - came.arrived)
            recent.append(now)
            self.seconds = now - began
            self._say(self._line(recent, feed.dropped))

    def _took(self, came: _Came, tracked: Tracked, delay: float) -> None:
        self.delays.append(delay)
        self.statuses[tracked.status] += 1
        if self._keep:
            self.status.append(tracked.status)
            self.rows.append((on_host(tracked.frame), came.frame.points, came.number, came.frame.time))

    def _line(self, recent: deque[float], dropped: int) -> str:
        rate = (len(recent) - 1) / max(recent[-1] - recent[0], 1e-9)
        middle, late = np.quantile(self.delays[-_RECENT:], [0.5, 0.95]) * 1e3
        lost = int(self.statuses[1:].sum())
        return (
            f"frame {len(self.delays)}: {rate:.1f} per second, delay {middle:.0f} ms (95 %: {late:.0f} ms)"
            + (f", {lost} lost" if lost else "")
            + (f", {dropped} dropped" if dropped else "")
        )


# -- what was reached --------------------------------------------------------------------------------------------------


def _metrics(run: _Run, feed: _Feed, enrolled: int, seconds: float, compiling: float) -> dict[str, Any]:
    middle, late = np.quantile(run.delays, [0.5, 0.95]) * 1e3
    return {
        "frames": enrolled + len(run.delays),
        "frames_enrolled": enrolled,
        "frames_live": len(run.delays),
        "frames_tracked_live": int(run.statuses[0]),
        "frames_dropped": feed.dropped,
        "frames_by_status": {name: int(n) for name, n in zip(STATUS_NAMES, run.statuses, strict=True)},
        "frames_per_second": len(run.delays) / max(run.seconds, 1e-9),
        "delay_ms_median": float(middle),
        "delay_ms_95_percent": float(late),
        "enrolment_seconds": seconds,
        "compilation_seconds": compiling,
    }


def _rows(metrics: dict[str, Any]) -> list[Row]:
    failed = [f"{n} {name}" for name, n in list(metrics["frames_by_status"].items())[1:] if n]
    tracked = f"{metrics['frames_tracked_live']} of {metrics['frames_live']}" + (
        f" ({', '.join(failed)})" if failed else ""
    )
    return [
        ("frames enrolled on", metrics["frames_enrolled"], None),
        ("frames tracked live", tracked, None),
        ("frames dropped", metrics["frames_dropped"], None),
        ("frames per second", round(metrics["frames_per_second"], 1), None),
        ("delay, median (ms)", round(metrics["delay_ms_median"]), None),
        ("delay, 95th percentile (ms)", round(metrics["delay_ms_95_percent"]), None),
        ("seconds of enrolment", round(metrics["enrolment_seconds"], 1), None),
        ("of which compilation", round(metrics["compilation_seconds"], 1), None),
    ]


def _result(fit: Fit, enrolled: list[_Came], run: _Run, metrics: dict[str, Any]) -> TrackResult:
    """Frames enrolled on and tracked live as one result."""
    clip = fit.unknowns.clip
    later = jax.tree_util.tree_map(lambda *x: np.stack(x), *(row[0] for row in run.rows))
    frames = jax.tree_util.tree_map(lambda a, b: np.concatenate([a, b]), fit.unknowns.frames, later)
    poses, cameras = jax.vmap(placed, in_axes=(None, 0))(clip, frames)
    status = np.concatenate([fit.status, np.array(run.status, np.int32)]).astype(np.int32)
    times = np.array([c.frame.time for c in enrolled] + [row[3] for row in run.rows])
    return assemble(
        fit.scene.head,
        params=fit.unknowns.params,
        code=clip.code,
        frames=frames.code,
        poses=poses,
        light=jax.vmap(light_in, in_axes=(None, 0))(clip, frames),
        light_model=fit.light_model,
        camera=cameras,
        image_size=(int(fit.footage.clip.sizes[0, 0]), int(fit.footage.clip.sizes[0, 1])),
        time=(times - times[0]).astype(np.float32),
        frame_ids=np.array([c.number for c in enrolled] + [row[2] for row in run.rows], np.int32),
        landmarks_target=np.stack([c.frame.points for c in enrolled] + [row[1] for row in run.rows]),
        valid=status == 0,
        status=status,
        status_names=STATUS_NAMES,
        metrics=metrics,
    )


def live_config(preset: str, size: int, light_model: str, steps: int) -> LiveConfig:
    """From the command's options; `InputError` for numbers that make no sense."""
    if steps < 1:
        raise InputError(f"Live tracking takes at least 1 step a frame, not {steps}.")
    return LiveConfig(fit=FitConfig(preset=preset, size=size, light_model=light_model), steps=steps)  # type: ignore[arg-type]
