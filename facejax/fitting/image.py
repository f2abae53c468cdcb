"""`fit_image`: a head found in one photo, or in several of one person."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from facejax.data.heads import resolve_head
from facejax.data.photos import open_photos, photo_landmarks
from facejax.data.results import TrackResult
from facejax.data.video import Video
from facejax.fitting.checkpoint import Checkpoint, fingerprint
from facejax.fitting.config import FitConfig
from facejax.fitting.footage import Footage, footage_of
from facejax.fitting.plans import Known, plan_for
from facejax.fitting.schedule import Job, Progress, Stage, run_stage
from facejax.fitting.sequence import Fit, camera_from, guessed_camera, run_fit
from facejax.fitting.start import first_unknowns
from facejax.fitting.terms.landmarks import landmark_residual_mm, landmarks_of
from facejax.geometry.errors import InputError
from facejax.models.head import HeadModel
from facejax.objectives.landmarks import face_radius_px
from facejax.scenes import Lens, Scene, make_scene

_ANOTHER_MM, _ANOTHER_RATIO = 1.0, 1.5  # landmarks under the shared shape against the photo's own


def fit_image(
    images: Any,
    params: HeadModel | str | os.PathLike[str],
    *,
    landmarks: Any = None,
    intrinsics: Any = None,
    face: int = 0,
    ipd_mm: float | None = None,
    config: FitConfig = FitConfig(),  # noqa: B008 (frozen)
    scene: Scene | None = None,
    stages: tuple[Stage, ...] | None = None,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> TrackResult:
    """A head in one photo, or in several of one person: shape and skin are shared; pose, expression, light and focal
    length are each photo's own.

    images: path of a picture or of a folder of them, or a list of paths or of arrays (height, width, 3), of any sizes;
        or what `open_photos` returned. params: as in `fit_sequence`.
    landmarks: for each photo MediaPipe's 478 points (478, 2 or 3) in its pixels; by default the detector runs on each.
    intrinsics: (fx, fy, cx, cy) in pixels of all photos, or one row for each (f, 4). Unknown: each photo's focal length
        is solved for, its principal point is its centre.
    The rest as in `fit_sequence`; the frames of the result are the photos. `metrics["notes"]` says what photos do not
    tell, and which of them seems to show somebody else.

    Raises `InputError`, in one sentence, for anything that cannot be fitted.
    """
    head = resolve_head(params)
    photos = images if isinstance(images, Video) else open_photos(images)
    report = progress or (lambda stage, done, total: None)
    keep = None
    if checkpoint is not None:
        print_ = fingerprint(photos, head, landmarks, intrinsics, face, config, scene, stages)
        keep = Checkpoint(Path(checkpoint), print_)
    seen = photo_landmarks(photos, landmarks, face=face, progress=lambda done, total: report("landmarks", done, total))
    scene = scene or make_scene(head, (config.size, config.size), light_model=config.light_model, bands=config.bands)
    footage = footage_of(photos, seen)
    known = Known(zoom=intrinsics is not None, photos=True)
    lens = lens_of_photos(photos, footage, intrinsics, config)
    stages = plan_for(head.roles, config, known) if stages is None else stages
    fit = run_fit(scene, footage, lens, stages, config, known, None, report, keep)
    if "texture" not in head.roles:
        fit = dataclasses.replace(fit, light_model=config.light_model)
    result = fit.result(ipd_mm)
    notes = [*photos.notes, *seen.notes, *strangers(fit, stages)]
    return dataclasses.replace(result, metrics={**(result.metrics or {}), "notes": notes})


def lens_of_photos(photos: Video, footage: Footage, intrinsics: Any, config: FitConfig) -> Lens:
    """Each photo's camera, as given or guessed from its size, and its face's radius; leading axis of photos."""
    count = photos.n_frames
    if intrinsics is None:
        cameras = [guessed_camera((int(w), int(h)), config) for w, h in photos.sizes]
    else:
        rows = np.asarray(intrinsics, dtype=np.float64)
        each = rows if rows.ndim == 2 and rows.shape[1] == 4 else np.broadcast_to(rows, (count, *rows.shape))
        if len(each) != count:
            raise InputError(f"Intrinsics are one row for all photos or one for each of {count}, got {len(each)} rows.")
        cameras = [camera_from(row) for row in each]
    with np.errstate(invalid="ignore"):
        radius = np.where(footage.valid, face_radius_px(np.nan_to_num(footage.points)), np.nan)
    radius = np.where(np.isfinite(radius), radius, np.nanmedian(radius))
    camera = jax.tree_util.tree_map(lambda *x: np.stack(x), *cameras)
    return Lens(camera=camera, reference_px=jnp.ones(())).replace(camera=camera, reference_px=radius.astype(np.float32))


def strangers(fit: Fit, stages: tuple[Stage, ...]) -> list[str]:
    """A sentence for each photo whose landmarks fit another shape far better than the one that all photos share: it
    may show somebody else."""
    valid = np.flatnonzero(fit.footage.valid)
    first = next((s for s in stages if s.frames == "key"), None)
    if len(valid) < 2 or first is None or "shape" not in fit.scene.head.roles:
        return []
    shared = landmark_residual_mm(fit.scene, fit.unknowns, landmarks_of(fit.footage))
    notes = []
    for k in valid.tolist():
        own = _own_residual(fit, first, k)
        if shared[k] > own + _ANOTHER_MM and shared[k] > _ANOTHER_RATIO * own:
            notes.append(
                f"photo {k} does not fit the shape of the others: {shared[k]:.1f} mm, where a shape of its own fits to "
                f"{own:.1f} mm; is it another person?"
            )
    return notes


def _own_residual(fit: Fit, stage: Stage, k: int) -> float:
    """Mean landmark residual (mm) of one photo whose shape is its own."""
    part = np.array([k])
    footage = Footage(
        fit.footage.clip, None, fit.footage.points[part], fit.footage.confidence[part], fit.footage.valid[part]
    )
    lens = jax.tree_util.tree_map(lambda x: np.asarray(x)[part], fit.unknowns.frames.lens)
    unknowns = first_unknowns(fit.scene, footage, lens)
    job = Job(fit.scene, footage, np.array([0]), np.zeros((1, 0), np.float32))
    found, _ = run_stage(job, dataclasses.replace(stage, others="stay", settle=False), unknowns)
    return float(landmark_residual_mm(fit.scene, found, landmarks_of(footage))[0])
