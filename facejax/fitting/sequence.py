"""`fit_sequence`: a head followed through a video, stage by stage."""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from facejax.data.heads import resolve_head
from facejax.data.landmarks import Landmarks, detect_landmarks, landmarks_from_array, load_landmarks
from facejax.data.results import TrackResult, assemble
from facejax.data.video import Video, load_masks, open_video
from facejax.fitting.checkpoint import Checkpoint, fingerprint
from facejax.fitting.config import FitConfig
from facejax.fitting.footage import Footage, footage_of
from facejax.fitting.plans import Known, plan_for
from facejax.fitting.schedule import Job, Progress, Stage, StageLog, run_stages
from facejax.fitting.start import first_unknowns, likeness, spread_frames
from facejax.fitting.terms.landmarks import landmark_residual_mm, landmarks_of
from facejax.fitting.texture import solve_texture
from facejax.geometry.errors import InputError
from facejax.geometry.records import Camera
from facejax.models.head import HeadModel
from facejax.objectives.landmarks import face_radius_px
from facejax.scenes import Lens, LinearLighting, Scene, Unknowns, make_scene
from facejax.scenes.unknowns import over_frames, placed

STATUS_NAMES = ("tracked", "no face found", "landmarks not matched", "picture not matched", "not finite")
"""How a frame ended; what is worse comes later."""

LOST_MM = 9.0
"""Mean landmark residual on the face above which a frame is said to have failed."""


def fit_sequence(
    video: Any,
    params: HeadModel | str | os.PathLike[str],
    *,
    landmarks: Any = None,
    intrinsics: Any = None,
    masks: Any = None,
    identity: TrackResult | str | os.PathLike[str] | None = None,
    face: int = 0,
    frames: tuple[int | None, int | None] | None = None,
    ipd_mm: float | None = None,
    config: FitConfig = FitConfig(),  # noqa: B008 (frozen)
    scene: Scene | None = None,
    stages: tuple[Stage, ...] | None = None,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> TrackResult:
    """Follow one face through a video: shape, motion, expression, gaze, light and skin.

    video: path of a video, of a folder of images or of an image, or an array (frames, height, width, 3) of uint8 or of
        floats in [0, 1], sRGB-encoded; or what `open_video` returned.
    params: the head, from `load_head`; or its name, or the path of a model or of a person's avatar.
    landmarks: MediaPipe's 478 points per frame: a `Landmarks`, an array (F, 478, 2 or 3) in pixels with NaN where
        missing, or the path of an `.npz` with them. By default the detector runs (extra `landmarks`, asset
        `face-landmarker`).
    intrinsics: (fx, fy, cx, cy) in pixels, or the 3x3 matrix. Unknown: one focal length is solved for, the principal
        point is the centre of the image.
    masks: pixels to ignore: a folder of one image per frame (not zero: ignore).
    identity: an earlier result (or its folder) of the same person and model whose shape, skin, texture and focal
        length are held.
    face: which of several faces, by size in the first frame that shows any. frames: (first, one past the last).
    ipd_mm: the person's interpupillary distance, which makes all lengths metric; otherwise the model's prior decides
        scale.
    scene: how the head is lit and drawn, instead of what `config` says; its head must be `params`. stages: what is
        solved when, instead of the head's plan.
    progress: see `Progress`. checkpoint: folder in which finished work is kept, and found again after an interruption
        of a run with the very same input.

    Raises InputError, in one sentence, for anything that cannot be tracked.
    """
    fit = fit_clip(
        video, params, landmarks=landmarks, intrinsics=intrinsics, masks=masks, identity=identity, face=face,
        frames=frames, config=config, scene=scene, stages=stages, progress=progress, checkpoint=checkpoint,
    )  # fmt: skip
    return fit.result(ipd_mm)


def fit_clip(
    video: Any,
    params: HeadModel | str | os.PathLike[str],
    *,
    landmarks: Any = None,
    intrinsics: Any = None,
    masks: Any = None,
    identity: TrackResult | str | os.PathLike[str] | None = None,
    face: int = 0,
    frames: tuple[int | None, int | None] | None = None,
    config: FitConfig = FitConfig(),  # noqa: B008 (frozen)
    scene: Scene | None = None,
    stages: tuple[Stage, ...] | None = None,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> "Fit":
    """`fit_sequence` with its result in the scene's own terms, from which further stages can go on."""
    head = resolve_head(params)
    if config.key_frames < 1:
        raise InputError(
            f"What frames share is solved on key frames: `key_frames` must be 1 or more, got {config.key_frames}."
        )
    clip = video if isinstance(video, Video) else open_video(video, frames)
    report = progress or (lambda stage, done, total: None)
    mask_source = load_masks(masks, clip) if isinstance(masks, str | os.PathLike) else masks
    known = camera_from(intrinsics) if intrinsics is not None else None
    before = _identity_of(identity, head)
    keep = None
    if checkpoint is not None:
        print_ = fingerprint(clip, head, landmarks, intrinsics, masks, identity, face, config, scene, stages)
        keep = Checkpoint(Path(checkpoint), print_)
    seen = _landmarks_of(landmarks, clip, face, report, keep)
    if not seen.valid.any():
        raise InputError("No face was found in any frame; check that a face is visible, or give landmarks of your own.")
    scene = scene or make_scene(head, (config.size, config.size), light_model=config.light_model, bands=config.bands)
    footage = footage_of(clip, seen, mask_source)
    earlier = before.camera if before is not None and known is None else None
    camera = known or earlier or guessed_camera(clip.size, config)
    lens = one_lens(camera, footage)
    told = Known(zoom=known is not None or before is not None, person=before is not None)
    stages = plan_for(head.roles, config, told) if stages is None else stages
    fit = run_fit(scene, footage, lens, stages, config, told, before, report, keep)
    own = "texture" not in head.roles
    return dataclasses.replace(fit, light_model=config.light_model if own else "")


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """A fit that ended: all of it, in the scene's own terms."""

    scene: Scene
    footage: Footage
    unknowns: Unknowns
    logs: list[StageLog]
    scale: float = 1.0
    """Of the head's lengths, where an earlier result knows it."""
    light_model: str = ""
    """How a head that brings its own appearance is lit, see `make_scene`; empty for light on a surface."""

    @property
    def status(self) -> np.ndarray:
        """(f,) how each frame ended, an index into `STATUS_NAMES`."""
        seen = landmarks_of(self.footage)
        residual = landmark_residual_mm(self.scene, self.unknowns, seen)
        status = np.zeros(len(residual), np.int32)
        if self.logs:
            status[self.logs[-1].unmatched] = 3
        status[residual > LOST_MM] = 2
        stopped = np.any([log.stopped for log in self.logs], axis=0) if self.logs else np.zeros(len(status), bool)
        status[stopped | ~np.isfinite(residual)] = 4
        status[np.asarray(seen.weights).sum(axis=1) <= 0] = 1
        return status

    def result(self, ipd_mm: float | None = None) -> TrackResult:
        """Everything as arrays. ipd_mm: the person's interpupillary distance, where lengths are to be metric."""
        clip_of, scale = self.footage.clip, self.scale
        head, unknowns, status = self.scene.head, self.unknowns, self.status
        clip, frames = unknowns.clip, unknowns.frames
        poses, cameras = over_frames(_placed(), (frames,), clip)
        if ipd_mm is not None:
            pivots = head.eye_pivots(unknowns.params, clip.code)
            scale = float(ipd_mm / 1e3 / jnp.linalg.norm(pivots[0] - pivots[1]))
        params = unknowns.params
        if scale != 1.0:
            head, poses = head.scaled(scale), poses.replace(translation=poses.translation * scale)
            params = dataclasses.replace(self.scene.head, params=params).scaled(scale).params  # type: ignore[type-var]
        return assemble(
            head,
            params=params,
            code=clip.code,
            frames=frames.code,
            poses=poses,
            light=jax.tree_util.tree_map(lambda a, b: np.asarray(a)[None] + b, clip.light, frames.light),
            light_model=self.light_model,
            camera=cameras,
            image_size=clip_of.sizes,
            time=np.asarray(clip_of.time, np.float32),
            frame_ids=np.arange(clip_of.n_frames) + clip_of.first,
            landmarks_target=np.where(np.isfinite(self.footage.points), self.footage.points, np.nan),
            valid=status == 0,
            status=status,
            status_names=STATUS_NAMES,
            scale=scale,
            metrics={"stages": [log.as_numbers() for log in self.logs]},
        )


@functools.cache
def _placed():  # type: ignore[no-untyped-def]
    return jax.jit(jax.vmap(placed, in_axes=(None, 0)))


def run_fit(
    scene: Scene,
    footage: Footage,
    lens: Lens,
    stages: tuple[Stage, ...],
    config: FitConfig,
    known: Known = Known(),  # noqa: B008 (frozen)
    before: TrackResult | None = None,
    report: Progress = lambda stage, done, total: None,
    keep: Checkpoint | None = None,
) -> Fit:
    """The stages of a plan on footage, and then the texture where the head has one to solve for.

    lens: of every frame, leading axis. before: an earlier result of the same person, who is held.
    """
    code = before.identity_code() if before is not None else None
    unknowns = first_unknowns(scene, footage, lens, code)
    alike = likeness(scene, footage, lens)
    count = len(footage.points) if known.photos else config.key_frames
    job = Job(scene, footage, key_frames(alike, footage, count), alike, report, keep)
    unknowns, logs = run_stages(job, stages, unknowns)
    linear = isinstance(scene.lighting, LinearLighting)  # a texture is what is left when light is divided out
    if config.texture and linear and "texture" in scene.head.roles and not known.person:
        unknowns = solve_texture(job, unknowns, config)
    return Fit(scene, footage, unknowns, logs, float(before.scale) if before is not None else 1.0)


def key_frames(alike: Float[np.ndarray, "f d"], footage: Footage, count: int) -> np.ndarray:
    """Frames that differ most, among those with a face."""
    valid = np.flatnonzero(footage.valid)
    return valid[spread_frames(alike[valid], count)]


def guessed_camera(size: tuple[int, int], config: FitConfig) -> Camera:
    """Of a picture of (width, height) of which nothing is known."""
    width, height = size
    guess = 0.5 * max(width, height) / np.tan(np.radians(config.field_of_view_deg) / 2)
    return Camera(focal=jnp.full(2, guess), principal_point=jnp.array([width / 2, height / 2]))


def one_lens(camera: Camera, footage: Footage) -> Lens:
    """The same camera for all frames, and the face's typical radius."""
    count = len(footage.points)
    reference = float(np.median(face_radius_px(footage.points[footage.valid])))
    lens = Lens(camera=camera, reference_px=jnp.asarray(reference, jnp.float32))
    return jax.tree_util.tree_map(lambda x: np.broadcast_to(x, (count, *x.shape)), lens)


def camera_from(intrinsics: Any) -> Camera:
    """From (fx, fy, cx, cy) in pixels, or the 3x3 camera matrix; `InputError` for anything else."""
    values = np.asarray(intrinsics, dtype=np.float64)
    if values.shape == (3, 3):
        values = np.array([values[0, 0], values[1, 1], values[0, 2], values[1, 2]])
    if values.shape != (4,) or not np.isfinite(values).all() or (values[:2] <= 0).any():
        raise InputError(
            "Intrinsics must be fx, fy, cx, cy in pixels with positive focal lengths, or the 3x3 camera matrix, "
            f"and {np.asarray(intrinsics).tolist()} was given."
        )
    return Camera(focal=jnp.asarray(values[:2], jnp.float32), principal_point=jnp.asarray(values[2:], jnp.float32))


def _identity_of(identity: Any, head: HeadModel) -> TrackResult | None:
    if identity is None:
        return None
    if "shape" not in head.roles:
        raise InputError(f"The head {head.name!r} is one person already: leave the identity of an earlier result out.")
    result = identity if isinstance(identity, TrackResult) else TrackResult.load(identity)
    if result.model_sha256 != head.sha256:
        raise InputError(
            f"The earlier result was made with the model {result.model_name!r} ({result.model_sha256[:12]}), "
            f"and this is {head.name!r} ({head.sha256[:12]}); an identity can only be held within one model."
        )
    return result.with_head(head)


def _landmarks_of(given: Any, clip: Video, face: int, report: Progress, keep: Checkpoint | None) -> Landmarks:
    if isinstance(given, Landmarks):
        return given
    if isinstance(given, str | os.PathLike):
        return load_landmarks(given, clip.n_frames, clip.size, source_frames=clip.source_frames, first=clip.first)
    if given is not None:
        return landmarks_from_array(np.asarray(given), clip.n_frames, clip.size)
    like = dict.fromkeys(("points", "depth", "blendshapes", "valid", "confidence", "box"), 0)
    kept = keep.load("landmarks", like) if keep else None
    if kept is not None:
        names = tuple(str(n) for n in kept[1]["names"])
        return Landmarks(
            **kept[0], blendshape_names=names, image_size=clip.size, notes=("landmarks of the earlier run",)
        )
    found = detect_landmarks(clip, face=face, progress=lambda done, total: report("landmarks", done, total))
    if keep:
        keep.save("landmarks", {k: getattr(found, k) for k in like}, names=list(found.blendshape_names))
    return found
