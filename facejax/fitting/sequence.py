"""`fit_sequence`: a head followed through a video, stage by stage."""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from facejax.data.landmarks import Landmarks, detect_landmarks, landmark_confidence, load_landmarks
from facejax.data.results import TrackResult, assemble
from facejax.data.video import Masks, Video, load_masks, open_video
from facejax.fitting.adaptation import adapt
from facejax.fitting.checkpoint import Checkpoint, fingerprint
from facejax.fitting.config import FitConfig
from facejax.fitting.crops import crop_image, detail, face_boxes, key_frame_images
from facejax.fitting.landmark_fit import (
    LandmarkData,
    at_points,
    clip_camera,
    landmark_data,
    landmark_objective,
    motion_smoothness,
)
from facejax.fitting.optimise import Descent, frame_curvature, join, minimise, split, whitening
from facejax.fitting.photometric_fit import (
    PhotometricData,
    common_colour,
    common_detail,
    crop_coordinates,
    photometric_objective,
    picture_axes,
)
from facejax.fitting.registration import Pictures, Registration, register
from facejax.fitting.samples import sample_surface, visible_points
from facejax.fitting.texture import combine, fill_holes, on_image, texture_chart, unwrap_frame, unwrap_ratio
from facejax.fitting.variables import (
    ClipVariables,
    FrameVariables,
    pose_from_landmarks,
    pose_of,
    put_frames,
    spread_frames,
    take_frames,
    variables_of,
)
from facejax.geometry.cameras import crop_camera
from facejax.geometry.colour import srgb_to_linear
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import SurfacePoints
from facejax.geometry.records import Camera, Pose, PyTree
from facejax.geometry.rotations import nearest_rotation
from facejax.models.head import HeadModel, Stage
from facejax.models.morphable import Identity
from facejax.objectives.landmarks import face_radius_px
from facejax.objectives.temporal import change
from facejax.renderers.deferred import light_bases, make_renderer
from facejax.renderers.texture import sample_bilinear, sample_texture

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and how much there is."""

STATUS_NAMES = ("tracked", "no face found", "landmarks not matched")
_LOST_MM = 9.0  # mean landmark residual on the face above which a frame is said to have failed
_OVERLAP = 8  # frames that two windows share: half are held as the earlier window left them, half solved again
_RENDERED_MARGIN = 1.6  # face crops that whole pictures are compared on
_CROP_MARGIN = 1.5  # face crops for photometric terms, in widths of the landmarks' box
_TEXTURE_MARGIN = 2.2
_TEXTURE_CROP_PX = 1024
_LANDMARK_WINDOW = 512
_CURVATURE_FRAMES = 8
_SAVE_EVERY_S = 10.0


def fit_sequence(
    video: Any,
    params: HeadModel,
    *,
    landmarks: Any = None,
    intrinsics: Any = None,
    masks: Any = None,
    identity: TrackResult | str | os.PathLike[str] | None = None,
    face: int = 0,
    frames: tuple[int | None, int | None] | None = None,
    ipd_mm: float | None = None,
    config: FitConfig = FitConfig(),  # noqa: B008 (frozen)
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> TrackResult:
    """Follow one face through a video: shape, motion, expression, gaze, light and skin.

    video: path of a video, of a folder of images or of an image, or an array (frames, height, width, 3) of uint8 or of
        floats in [0, 1], sRGB-encoded; or what `open_video` returned.
    params: the head, from `load_model`, or a person's avatar, from `load_avatar`.
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
    progress: see `Progress`. checkpoint: folder in which finished work is kept, and found again after an interruption.

    Raises InputError, in one sentence, for anything that cannot be tracked.
    """
    if config.key_frames < 1:
        raise InputError(
            f"What frames share is solved on key frames: `key_frames` must be 1 or more, got {config.key_frames}."
        )
    if identity is not None and not isinstance(params.init_code()[0], Identity):
        raise InputError(
            f"The head {params.name!r} is one person already: leave the identity of an earlier result out."
        )
    clip = video if isinstance(video, Video) else open_video(video, frames)
    report = progress or (lambda stage, done, total: None)
    mask_source = load_masks(masks, clip) if isinstance(masks, str | os.PathLike) else masks
    known = _camera_from(intrinsics) if intrinsics is not None else None
    before = _identity_of(identity, params)
    keep = _open_checkpoint(checkpoint, clip, params, landmarks, intrinsics, masks, identity, face, ipd_mm, config)
    seen = _landmarks_of(landmarks, clip, face, report, keep)
    if not seen.valid.any():
        raise InputError("No face was found in any frame; check that a face is visible, or give landmarks of your own.")
    fit = _Fit(clip, params, seen, mask_source, known, before, config, report, keep)
    fit.run()
    return fit.result(ipd_mm)


def _camera_from(intrinsics: Any) -> Camera:
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


def landmarks_from_array(points: np.ndarray, n_frames: int, size: tuple[int, int]) -> Landmarks:
    """Landmarks from an array (F, 478, 2 or 3) in pixels, NaN where missing."""
    if points.ndim != 3 or points.shape[1] != 478 or points.shape[2] not in (2, 3):
        raise InputError(f"Landmarks must have the shape (frames, 478, 2 or 3), and these have {points.shape}.")
    if len(points) != n_frames:
        raise InputError(
            f"Landmarks must be given for every frame: the video has {n_frames} and these are {len(points)}."
        )
    points = points.astype(np.float32)
    depth = points[..., 2] if points.shape[2] == 3 else np.full(points.shape[:2], np.nan, np.float32)
    seen = np.isfinite(points[..., :2]).all(axis=2)
    if not seen.any():
        raise InputError("Every landmark is NaN; give at least one frame with a face.")
    confidence = np.stack([landmark_confidence(p[:, :2], d, size) for p, d in zip(points, depth, strict=True)])
    box = np.concatenate([np.nanmin(np.where(seen[..., None], points[..., :2], np.inf), axis=1),
                          np.nanmax(np.where(seen[..., None], points[..., :2], -np.inf), axis=1)], axis=1)  # fmt: skip
    return Landmarks(
        points=points[..., :2],
        depth=depth,
        blendshapes=np.full((n_frames, 0), np.nan, np.float32),
        blendshape_names=(),
        valid=seen.any(axis=1),
        confidence=confidence.astype(np.float32),
        image_size=size,
        box=box.astype(np.float32),
    )


def _open_checkpoint(folder: Any, clip: Video, head: HeadModel, *rest: Any) -> Checkpoint | None:
    if folder is None:
        return None
    stamp = (os.path.getsize(clip.path), os.path.getmtime(clip.path)) if clip.path else None
    facts = {"path": clip.path, "stamp": stamp, "first": clip.first, "n": clip.n_frames, "size": clip.size}
    return Checkpoint(Path(folder), fingerprint(**facts, model=head.sha256, rest=rest))


class _Fit:
    """One run of `fit_sequence`: the variables on the host, and a compiled solver per stage."""

    def __init__(
        self,
        clip: Video,
        head: HeadModel,
        seen: Landmarks,
        masks: Masks | None,
        known: Camera | None,
        before: TrackResult | None,
        config: FitConfig,
        report: Progress,
        keep: Checkpoint | None,
    ) -> None:
        self.clip, self.head, self.seen, self.masks, self.config = clip, head, seen, masks, config
        self.report, self.keep, self.before, self.known = report, keep, before, known
        self.kept_at = time.monotonic()
        self.n = clip.n_frames
        width, height = clip.size
        guess = 0.5 * max(width, height) / np.tan(np.radians(config.field_of_view_deg) / 2)
        centre = Camera(focal=jnp.full(2, guess), principal_point=jnp.array([width / 2, height / 2]))
        earlier = before.camera if before is not None and known is None else None
        self.camera = known or earlier or centre
        self.focal_free = known is None and before is None
        radius = face_radius_px(seen.points[seen.valid])
        self.reference_px = float(np.median(radius))
        self.landmark_head = head.at_points(head.landmarks478)
        self.params = head.params
        self.landmark_data = landmark_data(seen.points, self._masked_confidence())
        self.key = self._key_frames()
        self.shared, self.frames = self._start()
        self.stages = tuple(s for s in map(self._effective, head.stages(config.preset)) if s is not None)
        self.colour = np.zeros((0, 0), np.float32)
        if any(s.data == "photometric" for s in self.stages):
            self._start_colour()

    # -- preparation --------------------------------------------------------------------------------------------------

    @functools.cached_property
    def points(self) -> SurfacePoints:
        """Where on the skin photometric stages compare colours."""
        head = self.head
        at_rest = np.asarray(head.neutral(head.params, head.init_code()[0]))
        return sample_surface(at_rest, head.topology.faces, _sample_weight(head), self.config.samples_for_preset)

    @functools.cached_property
    def sample_head(self) -> Any:
        return self.head.at_points(self.points)

    def _start_colour(self) -> None:
        self.colour = np.ones((len(self.points.triangles), 3 + len(self.config.detail_px)), np.float32)
        if self.before is not None:
            self.colour[:, :3] = self._held_colour()

    def _effective(self, stage: Stage) -> Stage | None:
        """A stage without what is known already: None if nothing is left of it."""
        if stage.data == "rendered":
            return stage if self.config.texture else None
        free = stage.free if self.focal_free else tuple(f for f in stage.free if f != "shared.log_focal")
        if self.before is not None:
            free = tuple(f for f in free if not f.startswith("shared."))
        if not free or (stage.data != "landmarks" and not self.config.texture):
            return None
        return dataclasses.replace(stage, free=free)

    def _masked_confidence(self) -> np.ndarray:
        """Confidence of landmarks, 0 for those on ignored pixels."""
        confidence = np.where(np.isfinite(self.seen.confidence), self.seen.confidence, 1.0)
        if self.masks is None:
            return confidence
        confidence = confidence.copy()
        for k, mask in enumerate(self.masks.frames()):
            at = np.nan_to_num(self.seen.points[k]).astype(int)
            column, row = np.clip(at[:, 0], 0, mask.shape[1] - 1), np.clip(at[:, 1], 0, mask.shape[0] - 1)
            confidence[k, mask[row, column]] = 0.0
        return confidence

    def _closed_form_poses(self, points: jax.Array, camera: Camera) -> Pose:
        """Every frame's pose from landmark points in the head frame: (478, 3), or (F, 478, 3) where faces move."""
        estimate = jax.jit(jax.vmap(pose_from_landmarks, in_axes=(None if points.ndim == 2 else 0, 0, 0, None)))
        return estimate(points, self.landmark_data.target, self.landmark_data.weights, camera)

    @functools.cached_property
    def _landmarks_at_rest(self) -> jax.Array:
        head = self.landmark_head
        return head.neutral(head.params, head.init_code()[0])

    @functools.cached_property
    def _likeness(self) -> np.ndarray:
        """(F, 6) what tells frames apart before anything is fitted: head pose, and how open mouth and eyes are."""
        rotation = np.asarray(self._closed_form_poses(self._landmarks_at_rest, self.camera).rotation)
        points, radius = self.seen.points, face_radius_px(np.nan_to_num(self.seen.points))[:, None]
        mouth = np.linalg.norm(points[:, 13] - points[:, 14], axis=1, keepdims=True) / np.maximum(radius, 1)
        lids = np.linalg.norm(points[:, [159, 386]] - points[:, [145, 374]], axis=2) / np.maximum(radius, 1)
        return np.nan_to_num(np.concatenate([rotation[:, 2], 0.8 * mouth, 0.8 * lids], axis=1))

    def _key_frames(self) -> np.ndarray:
        """Frames that differ most, among those with a face."""
        valid = np.flatnonzero(self.seen.valid)
        return valid[spread_frames(self._likeness[valid], self.config.key_frames)]

    def _start(self) -> tuple[ClipVariables, FrameVariables]:
        shared_code, frame_code = self.head.init_code()
        light = self.head.init_light(self.config.bands)
        if self.before is not None:
            shared_code = self.before.identity_code()
        shared = ClipVariables(code=shared_code, log_focal=jnp.log(self.camera.focal[0]))
        frames = FrameVariables(
            pose=self._pose_start(self.landmark_head.neutral(self.landmark_head.params, shared_code), self.camera),
            code=jax.tree_util.tree_map(lambda x: np.broadcast_to(x, (self.n, *x.shape)).copy(), frame_code),
            light=np.broadcast_to(light, (self.n, *light.shape)).copy(),
        )
        return shared, jax.tree_util.tree_map(np.asarray, frames)

    def _pose_start(self, points: jax.Array, camera: Camera) -> PyTree:
        poses = self._closed_form_poses(points, camera)
        variables = jax.vmap(lambda p: variables_of(p, camera, self.reference_px))(poses)
        return _bridge(jax.tree_util.tree_map(np.asarray, variables), self.seen.valid)

    # -- solving ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """All stages in order, then the texture. What a checkpoint already holds is not done again."""
        for number, stage in enumerate(self.stages):
            name = f"{number}-{stage.name}"
            if stage.data == "rendered":
                self._run_rendered(stage, name)
                continue
            kept = self.keep.load(name, (self.shared, self.frames, self.colour)) if self.keep else None
            if kept is not None:
                self.shared, self.frames, self.colour = jax.tree_util.tree_map(np.array, kept[0])
                continue
            if stage.frames == "key":
                self._run_key(stage)
            else:
                self._run_all(stage, name)
            if self.keep:
                self.keep.save(name, (self.shared, self.frames, self.colour))
        if any(s.data == "photometric" for s in self.stages) and self.before is None:
            self._solve_texture()

    def _run_rendered(self, stage: Stage, name: str) -> None:
        registration = Registration(
            self.head, self.params, self.shared, self.frames, self.camera, self.reference_px, self.config
        )
        given = Pictures(self.clip, self.masks, face_boxes(self.seen.points, _RENDERED_MARGIN), self.seen.valid)
        tell, keep = functools.partial(self.report, stage.name), (self.keep, name)
        if stage.frames == "key":
            solved = adapt(registration, given, self.key, stage, tell, *keep)
        else:
            solved = register(registration, given, stage, tell, *keep)
        self.params, self.shared, self.frames = solved.params, solved.shared, solved.frames

    def _objective(
        self, stage: Stage, params: PyTree, v: PyTree, seen: LandmarkData, pictures: PhotometricData | None,
        from_frames: bool = False,
    ) -> jax.Array:  # fmt: skip
        """Mean over frames of everything a stage minimises but smoothness in time."""
        camera, reference, config = self.camera, self.reference_px, self.config
        if pictures is not None:  # a detector's points lean with the head's turn; the picture does not
            config = dataclasses.replace(config, landmark_weight=config.landmark_weight * config.landmark_share)
        total = jnp.zeros(())
        if not _lights_only(stage):
            total += landmark_objective(self.landmark_head, {**v, "params": params[0]}, seen, camera, reference, config)
        if pictures is not None:
            total += photometric_objective(
                self.sample_head, {**v, "params": params[1]}, pictures, seen.frame_weight, camera, reference, config,
                colour_from_frames=from_frames and self.before is None,
                detail_from_frames=from_frames, use_detail=not _lights_only(stage),
            )  # fmt: skip
            total += config.prior_weight * jnp.sum(v["shared"].code.skin ** 2)
            total += _tinted_light(v["frame"].light, seen.frame_weight)
        return total

    def _smoothness(self, frames: FrameVariables, weights: jax.Array, photometric: bool) -> jax.Array:
        total = motion_smoothness(self.landmark_head, frames, weights, self.camera, self.reference_px, self.config)
        if photometric:
            total += self.config.light_smoothness * change(frames.light, weights) / jnp.maximum(jnp.sum(weights), 1.0)
        return total

    def _metric(self, stage: Stage, smooth: bool) -> jax.Array:
        """How one frame's variables are to be whitened in a stage: the mean curvature over a few key frames.

        Smoothness in time counts as it would for a frame between two pairs of still neighbours.
        """
        ids = self.key[np.linspace(0, len(self.key) - 1, min(_CURVATURE_FRAMES, len(self.key))).astype(int)]
        photometric = stage.data == "photometric"
        pictures = self._pictures(ids, self._key_crops(ids)) if photometric else None
        free = tuple(f for f in stage.free if f.startswith("frame."))

        def one(params: PyTree, shared: PyTree, frame: PyTree, seen: PyTree, pictures: PyTree) -> jax.Array:
            moving, held = split({"frame": frame}, free)

            def loss(moving: PyTree) -> jax.Array:
                current = join({"frame": moving}, held)["frame"]
                alone = {"shared": shared, "frame": _lead(current)}
                total = self._objective(stage, params, alone, _lead(seen), _lead_pictures(pictures))
                if smooth:
                    five = jax.tree_util.tree_map(lambda x, x0: jnp.stack([x0, x0, x, x0, x0]), current, frame)
                    total += 5 * self._smoothness(five, jnp.ones(5), photometric)
                return total

            return frame_curvature(loss, moving["frame"])

        per_frame = None if pictures is None else picture_axes(pictures)
        mean = jax.jit(
            lambda p, s, f, d, g: jnp.mean(jax.vmap(one, in_axes=(None, None, 0, 0, per_frame))(p, s, f, d, g), axis=0)
        )
        curvature = mean(
            self._params(stage),
            self.shared,
            take_frames(self.frames, ids),
            take_frames(self.landmark_data, ids),
            pictures,
        )
        return whitening(curvature, Descent().floor)

    def _params(self, stage: Stage) -> PyTree:
        return self.landmark_head.params, self.sample_head.params if stage.data == "photometric" else None

    def _solver(self, stage: Stage, smooth: bool) -> Callable[..., tuple[PyTree, jax.Array]]:
        """The compiled minimisation of a stage: (variables, landmarks, pictures, held frames) -> (variables,
        losses)."""
        photometric = stage.data == "photometric"
        from_frames = photometric and stage.frames == "key" and "shared.code.skin" not in stage.free

        def solve(
            params: PyTree, metric: jax.Array, variables: PyTree, seen: LandmarkData, pictures: PhotometricData | None,
            held: jax.Array,
        ) -> tuple[PyTree, jax.Array]:  # fmt: skip
            start = variables["frame"]

            def loss(v: PyTree) -> jax.Array:
                frames = jax.tree_util.tree_map(
                    lambda x, x0: jnp.where(held.reshape((-1,) + (1,) * (x.ndim - 1)), x0, x), v["frame"], start
                )
                total = self._objective(stage, params, {**v, "frame": frames}, seen, pictures, from_frames)
                return total + self._smoothness(frames, seen.frame_weight, photometric) if smooth else total

            return minimise(loss, variables, stage.free, steps=stage.steps, rate=stage.rate, metric=metric)

        return functools.partial(jax.jit(solve), self._params(stage), self._metric(stage, smooth))

    def _run_key(self, stage: Stage) -> None:
        self.report(stage.name, 0, 1)
        ids = self.key
        pictures = self._pictures(ids, self._key_crops(ids)) if stage.data == "photometric" else None
        if pictures is not None and "shared.code.skin" in stage.free:
            pictures = pictures.replace(colour=jnp.ones_like(pictures.colour))
        variables = {"shared": self.shared, "frame": take_frames(self.frames, ids)}
        held = jnp.zeros(len(ids), bool)
        solved, _ = self._solver(stage, smooth=False)(variables, take_frames(self.landmark_data, ids), pictures, held)
        self.shared = solved["shared"]
        put_frames(self.frames, ids, solved["frame"])
        if pictures is not None:
            self._recolour(ids, pictures)
            light = np.median(np.asarray(solved["frame"].light), axis=0)
            self.frames = self.frames.replace(light=np.broadcast_to(light, self.frames.light.shape).copy())
            self.frames.light[ids] = np.asarray(solved["frame"].light)
        else:
            self._spread_from_keys(ids)
        self.report(stage.name, 1, 1)

    def _spread_from_keys(self, ids: np.ndarray) -> None:
        """Start every other frame from the expression of the key frame most like it, its pose solved for that face."""
        distance = np.linalg.norm(self._likeness[:, None] - self._likeness[ids], axis=2)
        code = take_frames(self.frames.code, ids[distance.argmin(axis=1)])
        head = self.landmark_head
        points = jax.vmap(lambda c: head.vertices(head.params, self.shared.code, c))(code)
        pose = self._pose_start(points, clip_camera(self.shared, self.camera))
        put_frames(pose, ids, take_frames(self.frames.pose, ids))
        self.frames = self.frames.replace(code=code, pose=pose)

    def _run_all(self, stage: Stage, name: str) -> None:
        photometric = stage.data == "photometric"
        size = self.config.window if photometric else _LANDMARK_WINDOW
        window = max(8, min(size, 1 << (self.n - 1).bit_length()))
        solver = self._solver(stage, smooth=True)
        starts = [0]
        while starts[-1] + window < self.n:
            starts.append(starts[-1] + window - _OVERLAP)
        done = self._resume_windows(name)
        crops = self._streamed_crops(starts[done]) if photometric and done < len(starts) else None
        waiting: list[Any] = []
        for number, start in list(enumerate(starts))[done:]:
            stop = min(start + window, self.n)
            self.report(stage.name, start, self.n)
            ids = np.minimum(np.arange(start, start + window), self.n - 1)
            padding = np.arange(start, start + window) >= self.n
            held = jnp.asarray((np.arange(window) < _OVERLAP // 2) & (start > 0))
            seen = take_frames(self.landmark_data, ids)
            seen = seen.replace(frame_weight=jnp.where(jnp.asarray(padding), 0.0, seen.frame_weight))
            pictures = None
            if crops is not None:
                waiting = waiting[-_OVERLAP:] if number > done else []
                while len(waiting) < stop - start:
                    waiting.append(next(crops))
                padded = waiting + [waiting[-1]] * (window - len(waiting))
                pictures = self._pictures(ids, padded).replace(colour=jnp.asarray(self.colour))
            variables = {"shared": self.shared, "frame": take_frames(self.frames, ids)}
            solved, _ = solver(variables, seen, pictures, held)
            put_frames(self.frames, ids[: stop - start], take_frames(solved["frame"], np.arange(stop - start)))
            if self.keep and time.monotonic() - self.kept_at > _SAVE_EVERY_S:
                self.keep.save(f"{name}-windows", self.frames, done=number + 1)
                self.kept_at = time.monotonic()
        self.frames = self.frames.replace(
            pose=_bridge(self.frames.pose, self.seen.valid), code=_bridge(self.frames.code, self.seen.valid)
        )
        self.report(stage.name, self.n, self.n)

    def _resume_windows(self, name: str) -> int:
        """How many windows of a stage an interrupted run had finished; their frames are taken over."""
        kept = self.keep.load(f"{name}-windows", self.frames) if self.keep else None
        if kept is None:
            return 0
        self.frames = jax.tree_util.tree_map(np.array, kept[0])
        return int(kept[1]["done"])

    # -- pictures -----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _boxes(self) -> np.ndarray:
        return face_boxes(self.seen.points, _CROP_MARGIN)

    def _crop(self, frame: np.ndarray, mask: np.ndarray | None, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = self.config.size
        picture = crop_image(frame, box, size, blur=self.config.blur_px)
        picture = np.concatenate([picture, detail(picture, self.config.detail_px)], axis=-1)
        return picture, np.zeros((size, size), np.float32) if mask is None else crop_image(mask, box, size)

    def _key_crops(self, ids: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        images = key_frame_images(self.clip, self.masks, ids)
        return [self._crop(f, m, b) for (f, m), b in zip(images, self._boxes[ids], strict=True)]

    def _streamed_crops(self, first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        masks = self.masks.frames(first) if self.masks is not None else None
        for k, frame in enumerate(self.clip.frames(first), start=first):
            yield self._crop(frame, next(masks) if masks is not None else None, self._boxes[k])

    @functools.cached_property
    def _look(self) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
        head, points, bands, size = self.head, self.points, self.config.bands, self.config.size

        def look(
            params: PyTree, samples: PyTree, shared: ClipVariables, frame: FrameVariables, box: jax.Array
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            camera = clip_camera(shared, self.camera)
            pose = pose_of(frame.pose, camera, self.reference_px)
            vertices = head.vertices(params, shared.code, frame.code)
            small = crop_camera(camera, box, (size, size))
            weights, normals = visible_points(vertices, head.topology.faces, points, pose, small, (size, size))
            face = self.sample_head.decode(samples, shared.code, frame.code)
            diffuse, specular = light_bases(face, pose, normals, bands)
            return weights, diffuse, specular

        return functools.partial(jax.jit(look), self.head.params, self.sample_head.params)

    def _pictures(self, ids: np.ndarray, crops: list[tuple[np.ndarray, np.ndarray]]) -> PhotometricData:
        """Crops, and what of the samples each frame sees with the variables as they are now."""
        seen = [self._look(self.shared, take_frames(self.frames, i), jnp.asarray(self._boxes[i])) for i in ids]
        weights, diffuse, specular = (jnp.stack(x) for x in zip(*seen, strict=True))
        return PhotometricData(
            crop=jnp.asarray(np.stack([c[0] for c in crops])),
            ignore=jnp.asarray(np.stack([c[1] for c in crops])),
            box=jnp.asarray(self._boxes[ids]),
            weights=weights,
            diffuse=diffuse,
            specular=specular,
            colour=jnp.asarray(self.colour),
        )

    def _held_colour(self) -> np.ndarray:
        """Sample colours from the texture of the earlier result: what is left to solve is light."""
        topology = self.head.topology
        row = {tuple(corners): i for i, corners in enumerate(topology.faces.tolist())}
        faces = np.array([row[tuple(corners)] for corners in self.points.triangles.tolist()])
        uv = np.einsum("nij,ni->nj", topology.uv[topology.uv_faces[faces]], self.points.weights)
        return np.asarray(sample_texture(jnp.asarray(self.shared.code.texture), jnp.asarray(uv, jnp.float32)))

    def _recolour(self, ids: np.ndarray, pictures: PhotometricData) -> None:
        """Sample colours from the key frames as they are aligned now."""

        def one(params: PyTree, shared: PyTree, frame: PyTree, d: PhotometricData) -> Any:
            pixels, albedo = at_points(self.sample_head, params, shared, frame, self.camera, self.reference_px)
            where = crop_coordinates(pixels, d.box, d.crop.shape[0])
            keep = sample_bilinear(d.ignore[..., None], where)[..., 0] < 0.01
            lit = albedo * jnp.maximum(d.diffuse @ frame.light, 0.0)
            return sample_bilinear(d.crop, where), lit, jnp.maximum(d.specular @ frame.light, 0.0), d.weights * keep

        @jax.jit
        def colours(params: PyTree, shared: PyTree, frames: PyTree, d: PhotometricData) -> Any:
            sampled = jax.vmap(one, in_axes=(None, None, 0, picture_axes(d)))(params, shared, frames, d)
            seen, lit, gloss, weights = sampled
            pattern = common_detail(seen[..., 3:], weights)
            return jnp.concatenate([common_colour(seen[..., :3], lit, gloss, weights), pattern], -1), weights.sum(
                axis=0
            )

        colour, total = colours(self.sample_head.params, self.shared, take_frames(self.frames, ids), pictures)
        self.colour = np.where(np.asarray(total)[:, None] > 0.2, colour, 1.0).astype(np.float32)
        if self.before is not None:
            self.colour[:, :3] = self._held_colour()

    def _solve_texture(self) -> None:
        """Unwrap key frames through the fitted head into the shared texture, then add what its renders still lack.

        Each further round renders the key frames, unwraps the ratio of picture to render and multiplies it in
        (iterative back-projection): resampling blurs, and this takes most of the blur back.
        """
        size, head = self.config.texture_size_for_preset, self.head
        chart = texture_chart(head.topology, size)
        boxes = face_boxes(self.seen.points, _TEXTURE_MARGIN)
        side = int(min(_TEXTURE_CROP_PX, max(64, np.median(boxes[self.key, 2]))))
        render = make_renderer(head.topology, (side, side), antialiased=False)

        @functools.partial(jax.jit, static_argnames="first")
        def unwrap(params: PyTree, shared: PyTree, frame: PyTree, picture: jax.Array, ignore: jax.Array, box: jax.Array,
                   triangles: jax.Array, weights: jax.Array, first: bool) -> Any:  # fmt: skip
            camera = crop_camera(clip_camera(shared, self.camera), box, (side, side))
            pose = pose_of(frame.pose, clip_camera(shared, self.camera), self.reference_px)
            face = head.decode(params, shared.code, frame.code)
            linear = srgb_to_linear(picture)
            factor, trust = unwrap_frame(linear, ignore, face, frame.light, pose, camera, head.topology.faces,
                                         triangles, weights)  # fmt: skip
            if first:
                return factor, trust
            drawn = render(face, frame.light, pose, camera).colour
            return unwrap_ratio(linear, drawn, on_image(face, pose, camera), triangles, weights), trust

        pictures = []
        for i, (frame, mask) in zip(self.key, key_frame_images(self.clip, self.masks, self.key), strict=True):
            ignore = np.zeros((side, side), np.float32) if mask is None else crop_image(mask, boxes[i], side)
            pictures.append(((crop_image(frame, boxes[i], side) * 255).astype(np.uint8), ignore))
        triangles, weights = jnp.asarray(chart.triangles), jnp.asarray(chart.weights)
        texture = np.ones((size, size, 3), np.float32)
        rounds = 1 + self.config.sharpening_for_preset
        for n in range(rounds):
            factors, trust = [], []
            for done, (i, (picture, ignore)) in enumerate(zip(self.key, pictures, strict=True)):
                self.report("texture", n * len(self.key) + done, rounds * len(self.key))
                frame = take_frames(self.frames, i)
                f, t = unwrap(head.params, self.shared, frame, jnp.asarray(picture, jnp.float32) / 255,
                              jnp.asarray(ignore), jnp.asarray(boxes[i]), triangles, weights, n == 0)  # fmt: skip
                factors.append(np.asarray(f, np.float16))
                trust.append(np.asarray(t, np.float16))
            colour, total = combine(np.stack(factors), np.stack(trust))
            layer, weight = np.ones((size, size, 3), np.float32), np.zeros((size, size), np.float32)
            layer.reshape(-1, 3)[chart.texels], weight.reshape(-1)[chart.texels] = colour, np.clip(2 * total, 0, 1)
            if n == 0:
                texture = fill_holes(layer, weight)
            else:
                texture = np.clip(texture * np.where(weight[..., None] > 0.2, layer, 1.0), 0.0, 20.0)
            self.shared = self.shared.replace(code=self.shared.code.replace(texture=texture.astype(np.float32)))
        self.report("texture", 1, 1)

    # -- the end ------------------------------------------------------------------------------------------------------

    def residual_mm(self) -> np.ndarray:
        """Mean landmark residual of each frame, millimetres on the face."""
        place = jax.jit(jax.vmap(functools.partial(at_points, self.landmark_head), in_axes=(None, None, 0, None, None)))
        pixels, _ = place(self.landmark_head.params, self.shared, self.frames, self.camera, self.reference_px)
        d = self.landmark_data
        error = np.linalg.norm(np.asarray(pixels - d.target), axis=2) * np.asarray(d.mm_per_px)[:, None]
        weights = np.asarray(d.weights)
        return (error * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-6)

    def result(self, ipd_mm: float | None) -> TrackResult:
        """Everything as arrays."""
        residual = self.residual_mm()
        found = np.asarray(self.landmark_data.frame_weight) > 0
        status = np.where(~found, 1, np.where(residual > _LOST_MM, 2, 0))
        camera = clip_camera(self.shared, self.camera)
        poses = jax.vmap(lambda p: pose_of(p, camera, self.reference_px))(self.frames.pose)
        head, scale = self.head, 1.0
        if ipd_mm is not None:
            pivots = head.eye_pivots(head.params, self.shared.code)
            scale = float(ipd_mm / 1e3 / jnp.linalg.norm(pivots[0] - pivots[1]))
        elif self.before is not None:
            scale = float(self.before.scale)
        params = self.params
        if scale != 1.0:
            params = dataclasses.replace(head, params=params).scaled(scale).params  # type: ignore[type-var]
            head, poses = head.scaled(scale), poses.replace(translation=poses.translation * scale)
        return assemble(
            head,
            params=params,
            code=self.shared.code,
            frames=self.frames.code,
            poses=poses,
            light=self.frames.light,
            light_model=self.config.light_model if any(s.data == "rendered" for s in self.stages) else "",
            camera=camera,
            image_size=self.clip.size,
            time=np.asarray(self.clip.time, np.float32),
            frame_ids=np.arange(self.n) + self.clip.first,
            landmarks_target=np.where(np.isfinite(self.seen.points), self.seen.points, np.nan),
            valid=status == 0,
            status=status,
            status_names=STATUS_NAMES,
            scale=scale,
        )


def _sample_weight(head: HeadModel) -> np.ndarray:
    """(V,) how densely to sample the skin: the face most, lips more; no scalp, which is hair, nor neck."""
    region = {k: np.asarray(v) for k, v in head.regions.items()}
    skin = region["skin"] * (1 - region["scalp"]) * (1 - region["neck"]) * (1 - 0.7 * region["ears"])
    return np.clip(skin, 0, 1) * (0.3 + region["narrow_face"] + 1.5 * region["lips"])


def _lights_only(stage: Stage) -> bool:
    """Whether nothing moves that landmarks could tell about."""
    return all(f in ("shared.code.skin", "frame.light") for f in stage.free)


def _tinted_light(light: jax.Array, weights: jax.Array) -> jax.Array:
    """How far light changes colour with direction, per frame: most lamps in a room are of one colour."""
    tint = light - light.mean(axis=2, keepdims=True)
    return 0.5 * jnp.sum(weights[:, None, None] * tint[:, 1:] ** 2) / jnp.maximum(jnp.sum(weights), 1.0)


def _lead(tree: PyTree) -> PyTree:
    """One frame as a batch of one."""
    return jax.tree_util.tree_map(lambda x: x[None], tree)


def _lead_pictures(pictures: PhotometricData | None) -> PhotometricData | None:
    return None if pictures is None else _lead(pictures).replace(colour=pictures.colour)


def _bridge(tree: PyTree, valid: np.ndarray) -> PyTree:
    """Rows of frames without a face, interpolated linearly between the nearest with one; rotations made proper
    again."""
    if valid.all():
        return jax.tree_util.tree_map(lambda x: np.array(x), tree)
    good, bad = np.flatnonzero(valid), np.flatnonzero(~valid)

    def fill(x: np.ndarray) -> np.ndarray:
        x = np.array(x)
        flat = x.reshape(len(x), -1)
        for column in range(flat.shape[1]):
            flat[bad, column] = np.interp(bad, good, flat[good, column])
        if x.shape[1:] == (3, 3):
            x[bad] = np.asarray(jax.vmap(nearest_rotation)(jnp.asarray(x[bad])))
        return x

    return jax.tree_util.tree_map(fill, tree)
