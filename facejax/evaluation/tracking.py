"""How well a finished track fits its clip and, where it is known, the truth; controls stand beside the figures."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from facejax.data.results import TrackResult
from facejax.data.video import Video, scaled_size
from facejax.geometry.cameras import crop_camera
from facejax.geometry.colour import linear_to_srgb, srgb_to_linear
from facejax.geometry.errors import InputError
from facejax.geometry.records import Image
from facejax.geometry.rotations import nearest_rotation, rotation_angle
from facejax.made_up.truth_clip import Truth
from facejax.models.landmark_names import INNER_FACE, LID_PAIRS_LEFT, LID_PAIRS_RIGHT, LIP_GAP_PAIRS, LIPS
from facejax.objectives.metrics import (
    Similarity,
    SurfaceSearch,
    align_to_surface,
    dead_face_control,
    high_frequency_motion,
    hull_coverage,
    hull_mask,
    landmark_errors,
    opening,
    opening_correlation,
    peak_amplitude_and_lag,
    psnr,
    similarity_align,
    ssim,
)
from facejax.renderers import make_renderer

GROUPS = {"inner_face": INNER_FACE, "lips": LIPS}
"""Landmarks whose errors are reported."""
LID_PAIRS = (*LID_PAIRS_RIGHT, *LID_PAIRS_LEFT)
"""Pairs whose distances are the lid opening, both eyes together."""

# --- against the clip -------------------------------------------------------------------------------------------------


def evaluate_track(
    result: TrackResult,
    video: Video | None = None,
    *,
    target_depth: Float[np.ndarray, "f 478"] | None = None,
    frames: Sequence[int] | None = None,
    size: int = 512,
    max_frames: int = 40,
) -> dict[str, Any]:
    """Figures of a track against its clip; frames that failed are left out, and `valid_share` says how many did not.

    `landmarks`: errors in per cent of the outer-eye distance; `correlation`: of lip gap and lid opening with the
    detector's; both with those of `dead_face_control` beside them. With a video, `picture`: see `evaluate_picture`.

    target_depth: the detector's z in pixels, so that the dead face can turn in space; without it, it can only in the
    plane and the control is too easy to beat. frames, size, max_frames: for `evaluate_picture`.
    """
    target = np.where(result.valid[:, None, None], result.landmarks_target, np.nan).astype(np.float64)
    deep = target if target_depth is None else np.concatenate([target, target_depth[..., None]], axis=-1)
    dead = dead_face_control(deep)
    report: dict[str, Any] = {
        "frames": len(result),
        "valid_share": float(np.mean(result.valid)),
        "landmarks": {
            **landmark_errors(result.landmarks, target, GROUPS),
            **{f"{k}_dead_face": v for k, v in landmark_errors(dead, target, GROUPS).items()},
        },
        "correlation": {
            f"{name}{suffix}": opening_correlation(points, target, pairs)
            for name, pairs in (("lip_gap", LIP_GAP_PAIRS), ("lid_opening", LID_PAIRS))
            for suffix, points in (("", result.landmarks), ("_dead_face", dead))
        },
    }
    if video is not None:
        report["picture"] = evaluate_picture(result, video, frames=frames, size=size, max_frames=max_frames)
    return report


def evaluate_picture(
    result: TrackResult, video: Video, *, frames: Sequence[int] | None = None, size: int = 512, max_frames: int = 40
) -> dict[str, Any]:
    """PSNR and SSIM of the tracked head's rendering against the video, means over frames, sRGB values.

    Compared where the rendering covers whole pixels (rims are mixed with what is behind) inside the landmarks' convex
    hull; `hull_coverage` is the share of the hull that is covered. Controls: `..._without_texture` (the albedo of the
    skin prior under the same light) and `..._mean_colour` (each frame's own mean colour, everywhere).

    frames: numbers within the result, e.g. those withheld from the texture; by default up to `max_frames` valid ones,
    evenly spaced. size: the longer side of the pictures compared; smaller videos are not enlarged.
    """
    usable = np.flatnonzero(result.valid & np.isfinite(result.landmarks).all(axis=(1, 2)))
    if frames is not None:
        usable = np.intersect1d(usable, np.asarray(frames))
    elif len(usable) > max_frames:
        usable = usable[np.linspace(0, len(usable) - 1, max_frames).round().astype(int)]
    if not len(usable):
        return {"frames": 0}

    @functools.cache
    def drawer(picture: tuple[int, int]) -> Callable[..., Image]:
        return jax.jit(make_renderer(result.topology, picture))

    rows = []
    for i in usable.tolist():
        width, height = (int(x) for x in result.frame_size[i])
        w, h = scaled_size((width, height), size)
        camera = crop_camera(result.camera_at(i), jnp.array([0.0, 0.0, width, height]), (h, w))
        draw = functools.partial(drawer((h, w)), camera=camera)
        photo = video.read([int(result.frame_ids[i]) - video.first], max_side=size)[0].astype(np.float32) / 255
        face, light, pose = result.face(int(i)), jnp.asarray(result.light[i]), result.pose(int(i))
        points = result.landmarks_target[i] if np.isfinite(result.landmarks_target[i]).all() else result.landmarks[i]
        points = points * [w / width, h / height]
        image = draw(face, light, pose)
        coverage = np.asarray(image.coverage)
        mask = hull_mask(points, (h, w)) & (coverage > 0.99)
        if not mask.any():
            continue
        bare = draw(dataclasses.replace(face, texture=jnp.ones_like(face.texture)), light, pose)
        pictures = {
            "": _displayed(image, photo),
            "_without_texture": _displayed(bare, photo),
            "_mean_colour": np.broadcast_to(photo[mask].mean(axis=0), photo.shape),
        }
        row = {"hull_coverage": hull_coverage(coverage, points)}
        for suffix, picture in pictures.items():
            row[f"psnr{suffix}"] = float(psnr(picture, photo, mask))
            row[f"ssim{suffix}"] = float(ssim(picture, photo, mask))
        rows.append(row)
    means = {key: float(np.mean([r[key] for r in rows])) for key in (rows[0] if rows else ())}
    return {"frames": len(rows), **means}


def _displayed(image: Image, photo: np.ndarray) -> np.ndarray:
    """A rendering laid over the photo, as sRGB values in [0, 1]: beyond the head the two agree."""
    behind = np.asarray(srgb_to_linear(photo)) * (1 - np.asarray(image.coverage)[..., None])
    return np.asarray(linear_to_srgb(np.clip(np.asarray(image.colour) + behind, 0, 1)), np.float32)


# --- against the truth ------------------------------------------------------------------------------------------------


def evaluate_truth(result: TrackResult, truth: Truth, *, posed_frames: int = 4) -> dict[str, Any]:
    """Figures of a track of a clip whose every vertex is known; the meshes may differ.

    `surface`: distances in mm from the truth's narrow face to the tracked skin, both without expression, after the best
    similarity by iterated closest points from the landmarks; `mean_head_mm` is the same for the model's mean head and
    `ratio` the first over the second. `metric_...` are rigid, without scale, and only mean something if the track was
    given a scale; `scale` is the truth's size over the track's. `posed_mm`: the same distance after a similarity for
    each of a few frames, expression included.

    `rotation`: degrees between tracked and true head rotations. Two meshes have two head frames: the constant rotation
    between them is taken from the whole clip (the chordal mean of R_true^T R_tracked) and removed, and `offset_degrees`
    says by how much that differs from what the alignment of the neutral surfaces says of the same rotation. A constant
    error would show there, but so do differences of shape: some degrees between two persons.

    `blink`, `lips`: see `PeakMatch`, between landmarks in space. A blink is how far the lids close as a share of their
    median opening in the clip, so that a person's narrow eyes are no error of motion; `blink_absolute` and `lips` are
    in outer-eye distances. `jitter`, of a still clip only: RMS in mm of the narrow face's motion above 5 Hz, and of
    what is left of it after each frame's rigid motion is taken out. Poses are compared on frames that did not fail;
    the signals take all frames, bridged ones included.

    Raises `InputError` when the track has frames that the truth does not, or poses that are not finite.
    """
    ids = np.asarray(result.frame_ids)
    if len(ids) == 0 or ids.max() >= len(truth.vertices):
        raise InputError(
            f"the truth has {len(truth.vertices)} frames, the track goes up to frame {ids.max(initial=-1)}: "
            "is it another clip's?"
        )
    broken = ~np.isfinite(result.rotation).all(axis=(1, 2)) | ~np.isfinite(result.translation).all(axis=1)
    if broken.any():
        raise InputError(f"the track's pose is not finite in {broken.sum()} of {len(ids)} frames: track the clip again")
    head = result.load_head()

    def mark(vertices: np.ndarray) -> np.ndarray:
        return np.asarray(head.landmark_points(jnp.asarray(vertices)))

    inner = np.array(INNER_FACE)
    skin = result.faces[(result.parts[result.faces] == result.part_names.index("skin")).all(axis=1)]
    narrow_true = np.flatnonzero(truth.narrow_face > 0.5)
    points = truth.neutral[narrow_true]

    def aligned(neutral: np.ndarray, with_scale: bool) -> tuple[Similarity, float]:
        """Similarity from `neutral` to the truth, and the mean distance in mm."""
        marks = mark(neutral)
        start = similarity_align(marks[inner], truth.landmarks_neutral[inner], with_scale=with_scale)
        align, distance = align_to_surface(points, SurfaceSearch(neutral, skin), start, with_scale=with_scale)
        return align, float(1000 * distance.mean())

    mean_head = np.asarray(head.neutral(head.params, head.init_code()[0]))
    best, error = aligned(result.neutral, True)
    mean_error = aligned(mean_head, True)[1]
    metric_error, metric_mean = aligned(result.neutral, False)[1], aligned(mean_head, False)[1]

    use = np.flatnonzero(result.valid)
    posed = []
    for i in use[np.linspace(0, len(use) - 1, min(posed_frames, len(use))).round().astype(int)]:
        search = SurfaceSearch(result.vertices_at(int(i)), skin)
        tracked_marks = mark(result.vertices_at(int(i)))
        start = similarity_align(tracked_marks[inner], truth.landmarks_camera[ids[i]][inner])
        posed.append(align_to_surface(truth.vertices[ids[i]][narrow_true], search, start, iterations=15)[1].mean())

    report: dict[str, Any] = {
        "valid_share": float(np.mean(result.valid)),
        "surface": {
            "narrow_face_mm": error,
            "mean_head_mm": mean_error,
            "ratio": error / max(mean_error, 1e-9),
            "scale": best.scale,
            "metric_narrow_face_mm": metric_error,
            "metric_mean_head_mm": metric_mean,
            "posed_mm": float(1000 * np.mean(posed)) if posed else float("nan"),
        },
    }
    if len(use):
        report["rotation"] = _rotation_errors(result.rotation[use], truth.rotation[ids[use]], best.rotation)
    still = np.ptp(truth.vertices, axis=0).max() < 1e-6
    if still:
        narrow = np.flatnonzero(np.asarray(head.regions["narrow_face"]) > 0.5)
        moved = np.stack([result.vertices_at(i)[narrow] for i in range(len(result))])
        held = np.stack([similarity_align(v, moved[0], with_scale=False).apply(v) for v in moved])
        report["jitter"] = {
            "mm": high_frequency_motion(moved, float(truth.fps)),
            "within_face_mm": high_frequency_motion(held, float(truth.fps)),
        }
    else:
        tracked, true = np.stack([mark(result.vertices_at(i)) for i in range(len(result))]), truth.landmarks_camera[ids]
        lids, true_lids = opening(tracked, LID_PAIRS), opening(true, LID_PAIRS)
        signals = {
            "blink": (1 - lids / np.median(lids), 1 - true_lids / np.median(true_lids)),
            "blink_absolute": (-lids, -true_lids),
            "lips": (opening(tracked, LIP_GAP_PAIRS), opening(true, LIP_GAP_PAIRS)),
        }
        for name, (signal, true_signal) in signals.items():
            report[name] = dataclasses.asdict(peak_amplitude_and_lag(signal, true_signal, float(truth.fps)))
    return report


def _rotation_errors(
    tracked: Float[np.ndarray, "f 3 3"], true: Float[np.ndarray, "f 3 3"], surface_rotation: Float[np.ndarray, "3 3"]
) -> dict[str, float]:
    """Degrees between rotations once the constant one between the two head frames is removed, see `evaluate_truth`."""
    angle = jax.vmap(rotation_angle)
    frame_change = np.asarray(nearest_rotation(jnp.asarray(np.einsum("fji,fjk->ik", true, tracked), jnp.float32)))
    expected = np.einsum("fij,jk->fik", true, frame_change).astype(np.float32)
    errors = np.degrees(np.asarray(angle(jnp.asarray(expected), jnp.asarray(tracked, dtype=jnp.float32))))
    # The alignment takes tracked to true coordinates: x_true = s Q x_tracked, so that R_tracked = R_true Q.
    offset = rotation_angle(jnp.asarray(surface_rotation, jnp.float32), jnp.asarray(frame_change))
    return {
        "mean_degrees": float(errors.mean()),
        "max_degrees": float(errors.max()),
        "offset_degrees": float(np.degrees(offset)),
    }
