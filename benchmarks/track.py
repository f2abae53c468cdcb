"""Measure tracking: speed, landmarks, motion, pictures of withheld frames, and clips whose truth is known.

Every figure stands beside what a method that does nothing would reach (control) and what the project asks for (goal).
See `benchmarks/README.md`.
"""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from machine import Row, machine_facts, print_table, say

from facejax.apps.track import StageClock
from facejax.data.heads import load_model
from facejax.data.landmarks import Landmarks, detect_landmarks
from facejax.data.video import open_video
from facejax.evaluation.tracking import _rotation_errors, evaluate_picture, evaluate_track, evaluate_truth
from facejax.fitting import FitConfig, fit_sequence
from facejax.geometry.errors import InputError
from facejax.made_up.truth_clip import Truth, TruthSpec, make_truth_clip
from facejax.models.landmark_names import (
    BROW_LEFT,
    BROW_RIGHT,
    EYE_LEFT_UPPER,
    EYE_RIGHT_UPPER,
    INNER_FACE,
    IRIS_LEFT,
    IRIS_RIGHT,
    LIPS,
)
from facejax.models.morphable import MorphableHead

PARTS = ("clip", "withheld", "truth")
GOALS: dict[str, dict[str, float]] = {
    "fast": {
        "speed": 0.15,
        "inner_face": 1.0,
        "lips": 1.2,
        "lip_gap": 0.95,
        "lid_opening": 0.8,
        "psnr": 25.0,
        "ssim": 0.80,
    },
    "full": {
        "speed": 0.7,
        "inner_face": 0.8,
        "lips": 0.9,
        "lip_gap": 0.97,
        "lid_opening": 0.85,
        "psnr": 27.0,
        "ssim": 0.85,
    },
}
ENVIRONMENT = "hdr/urban_alley_01_1k.hdr"


# --- a clip without truth ---------------------------------------------------------------------------------------------


def timed_track(
    path: Path, head: MorphableHead, frames: tuple[int, int] | None, config: FitConfig
) -> tuple[Any, Landmarks, dict[str, Any]]:
    """(track, its landmarks, seconds): landmarks are detected within the time that is measured."""
    start, cpu = time.perf_counter(), time.process_time()
    with StageClock() as clock:
        clip = open_video(path, frames)
        clock("landmarks")
        seen = detect_landmarks(clip)
        result = fit_sequence(
            clip, head, landmarks=seen, config=config, progress=lambda stage, done, total: clock(stage)
        )
        stages = clock.seconds()
        compiling = clock.compilation()
    seconds = time.perf_counter() - start
    return result, seen, {
        "seconds": seconds,
        "compiling": compiling,
        "cpu_seconds": time.process_time() - cpu,
        "seconds_per_frame": (seconds - compiling) / len(result),
        "stages": {k: round(v, 2) for k, v in stages.items()},
        "load_before": os.getloadavg()[0],
    }  # fmt: skip


def measure_clip(
    path: Path, head: MorphableHead, frames: tuple[int, int] | None, preset: str, runs: int
) -> dict[str, Any]:
    """Speed of `runs` runs in this process, memory, and figures against the detector."""
    config = FitConfig(preset=preset)  # type: ignore[arg-type]
    timing = []
    for _ in range(runs):
        result, seen, seconds = timed_track(path, head, frames, config)
        timing.append(seconds)
    peak = peak_memory_gb()  # before the evaluation, which holds pictures of its own
    reached = evaluate_track(result, open_video(path, frames), target_depth=seen.depth)
    return {"runs": timing, "peak_memory_gb": peak, **reached}


def clip_rows(m: dict[str, Any], preset: str) -> list[Row]:
    goal, points, signals, picture = GOALS[preset], m["landmarks"], m["correlation"], m["picture"]
    last = m["runs"][-1]
    rows: list[Row] = [
        ("seconds per frame, compilation apart", last["seconds_per_frame"], "", f"<= {goal['speed']}"),
        ("seconds per frame, whole last run", last["seconds"] / m["frames"], "", ""),
        ("compilation, first run (s)", m["runs"][0]["compiling"], "", "< 90"),
        ("peak memory (GB)", m["peak_memory_gb"], "", "<= 4"),
        ("share of frames tracked", m["valid_share"], "", ""),
    ]
    if len(m["runs"]) > 1:
        rows.insert(3, ("compilation, last run (s)", last["compiling"], "", ""))
        rows.insert(4, ("first run less last run (s)", m["runs"][0]["seconds"] - last["seconds"], "", ""))
    for key, name in (("inner_face", "inner face (% of eye distance)"), ("lips", "lips (% of eye distance)")):
        rows.append((name, points[key], f"{points[key + '_dead_face']:.3g} dead face", f"<= {goal[key]}"))
    for key, name in (("lip_gap", "correlation of lip gap"), ("lid_opening", "correlation of lid opening")):
        rows.append((name, signals[key], f"{signals[key + '_dead_face']:.3g} dead face", f">= {goal[key]}"))
    return [*rows, *picture_rows(picture, "own texture", goal, scored=False)]


def measure_withheld(path: Path, head: MorphableHead, frames: tuple[int, int], preset: str) -> dict[str, Any]:
    """Pictures of frames that gave nothing to the texture: the last quarter of the clip, then the first."""
    config = FitConfig(preset=preset)  # type: ignore[arg-type]
    first, last = frames
    quarter = (last - first) // 4
    splits = {  # name -> frames of the texture, frames compared
        "end": ((first, last - quarter), (last - quarter, last)),
        "start": ((first + quarter, last), (first, first + quarter)),
    }
    report: dict[str, Any] = {}
    for name, (known, withheld) in splits.items():
        earlier = fit_sequence(path, head, frames=known, config=config)
        result = fit_sequence(path, head, frames=withheld, identity=earlier, config=config)
        picture = evaluate_picture(result, open_video(path, withheld))
        report[name] = {"texture_from": list(known), "evaluated_on": list(withheld), **picture}
        say(f"withheld {withheld[0]}:{withheld[1]}: PSNR {picture['psnr']:.2f}, SSIM {picture['ssim']:.3f}")
    keys = [k for k, v in report["end"].items() if isinstance(v, float)]
    report["mean"] = {k: float(np.mean([report[s][k] for s in splits])) for k in keys}
    return report


def picture_rows(p: dict[str, Any], name: str, goal: dict[str, float], scored: bool = True) -> list[Row]:
    """Rows of `evaluate_picture`; scored: whether the goals are about these frames."""

    def control(key: str) -> str:
        return f"{p[key + '_without_texture']:.3g} no texture, {p[key + '_mean_colour']:.3g} mean colour"

    return [
        (f"PSNR (dB), {name}", p["psnr"], control("psnr"), f">= {goal['psnr']}" if scored else ""),
        (f"SSIM, {name}", p["ssim"], control("ssim"), f">= {goal['ssim']}" if scored else ""),
        (f"share of hull covered, {name}", p["hull_coverage"], "", ">= 0.95"),
    ]


# --- clips with truth -------------------------------------------------------------------------------------------------


def truth_folder(folder: Path, moving: bool, assets: Path) -> Path:
    """A clip with truth in `folder`, rendered if it is not there."""
    out = folder / ("moving" if moving else "still")
    if not (out / "truth.npz").is_file():
        environment = assets / ENVIRONMENT
        say(f"rendering {out.name} truth clip")
        make_truth_clip(
            out, load_model("ict-facekit"), TruthSpec(moving=moving), environment if environment.is_file() else None
        )
    return out


def rigid_points_control(truth: Truth, points: np.ndarray) -> dict[str, float] | None:
    """Rotation errors of the true shape posed on landmarks by PnP: what the landmarks alone say of the rotation.

    Only points that no expression moves much; None where OpenCV is absent.
    """
    try:
        import cv2
    except ImportError:
        return None
    moving = {*LIPS, *EYE_LEFT_UPPER, *EYE_RIGHT_UPPER, *BROW_LEFT, *BROW_RIGHT}
    ids = [i for i in INNER_FACE if i not in moving]
    seen = np.flatnonzero(np.isfinite(points).all(axis=(1, 2)))
    shape, camera = truth.landmarks_neutral[ids].astype(np.float64), truth.intrinsics.astype(np.float64)
    turns = [cv2.Rodrigues(cv2.solvePnP(shape, points[i, ids].astype(np.float64), camera, None)[1])[0] for i in seen]
    return _rotation_errors(np.stack(turns), truth.rotation[seen], np.eye(3))


def measure_truth(folder: Path, head: MorphableHead, preset: str, assets: Path) -> dict[str, Any]:
    """The moving clip with focal length unknown, known, and with exact landmarks too; jitter on the still one."""
    config = FitConfig(preset=preset)  # type: ignore[arg-type]
    moving = truth_folder(folder, True, assets)
    truth = Truth.load(moving)
    clip = open_video(moving / "frames", image_fps=float(truth.fps))
    seen = detect_landmarks(clip)
    cases = {
        "focal_unknown": (seen, None),
        "focal_known": (seen, truth.intrinsics),
        "exact_landmarks": (truth.landmarks, truth.intrinsics),
    }
    iris = np.array([IRIS_LEFT[0], IRIS_RIGHT[0]])
    ipd_mm = float(1e3 * np.linalg.norm(np.subtract(*truth.landmarks_neutral[iris])))
    report: dict[str, Any] = {
        "pnp_of_true_shape": {
            "detector": rigid_points_control(truth, seen.points),
            "exact_landmarks": rigid_points_control(truth, truth.landmarks),
        }
    }
    for name, (points, intrinsics) in cases.items():
        result = fit_sequence(clip, head, landmarks=points, intrinsics=intrinsics, ipd_mm=ipd_mm, config=config)
        focal = {"focal_px": float(result.intrinsics[0, 0]), "true_focal_px": float(truth.intrinsics[0, 0])}
        report[name] = {**evaluate_truth(result, truth), **focal}
        say(f"truth, {name}: rotation {report[name]['rotation']['mean_degrees']:.2f} degrees, "
            f"surface {report[name]['surface']['narrow_face_mm']:.2f} mm")  # fmt: skip
    still = truth_folder(folder, False, assets)
    held = Truth.load(still)
    result = fit_sequence(open_video(still / "frames", image_fps=float(held.fps)), head, config=config)
    report["still"] = evaluate_truth(result, held)
    return report


def truth_rows(m: dict[str, Any]) -> list[Row]:
    rows: list[Row] = []
    for key, name in (("focal_unknown", "focal unknown"), ("focal_known", "focal known"),
                      ("exact_landmarks", "focal known, exact landmarks")):  # fmt: skip
        case, goals = m[key], key != "exact_landmarks"
        surface, blink, lips = case["surface"], case["blink"], case["lips"]
        mean_head = f"{surface['mean_head_mm']:.3g} mean head"
        rows += [
            (f"narrow face (mm), {name}", surface["narrow_face_mm"], mean_head, "<= 1.5" if goals else ""),
            (f"ratio to mean head, {name}", surface["ratio"], "1 mean head", "<= 0.65" if goals else ""),
            (f"the same, size from the eyes' distance (mm), {name}", surface["metric_narrow_face_mm"],
             f"{surface['metric_mean_head_mm']:.3g} mean head, its own size", ""),
            (f"rotation (degrees), {name}", case["rotation"]["mean_degrees"], "", "<= 1" if goals else ""),
            (f"focal length over true, {name}", case["focal_px"] / case["true_focal_px"], "", ""),
            (f"blink amplitude, {name}", blink["amplitude"], "0 dead face", ">= 0.9" if goals else ""),
            (f"blink lag (frames), {name}", blink["lag_frames"], "", "<= 0.5" if goals else ""),
            (f"lip amplitude, {name}", lips["amplitude"], "0 dead face", ">= 0.9" if goals else ""),
            (f"lip lag (frames), {name}", lips["lag_frames"], "", "<= 0.5" if goals else ""),
        ]  # fmt: skip
    for key, name in (("detector", "detector's points"), ("exact_landmarks", "exact landmarks")):
        pnp = m["pnp_of_true_shape"][key]
        if pnp is not None:
            rows.append((f"rotation of the true shape on {name} by PnP (degrees)", pnp["mean_degrees"], "", ""))
    jitter = m["still"]["jitter"]
    rows.append(("motion above 5 Hz, still head (mm RMS)", jitter["mm"], "", "<= 0.15"))
    rows.append(("of it within the face (mm RMS)", jitter["within_face_mm"], "", ""))
    return rows


# --- the machine, the table, the command ------------------------------------------------------------------------------


def peak_memory_gb() -> float:
    """Of this process since it started."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6 / 1.024)


def frame_range(text: str) -> tuple[int, int]:
    try:
        first, last = (int(x) for x in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"a range of frames is FIRST:LAST, not {text!r}") from None
    return first, last


def main() -> int:
    default = os.environ.get("FACEJAX_ASSETS", Path(__file__).resolve().parents[2] / "shared" / "assets")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure and facts of the machine")
    parser.add_argument("--assets", type=Path, default=Path(default), help="folder with clips/wojtek.mp4")
    parser.add_argument("--preset", choices=("fast", "full", "both"), default="fast")
    parser.add_argument("--frames", type=frame_range, metavar="A:B", help="part of the clip, end excluded")
    parser.add_argument("--truth", type=Path, metavar="DIR", help="clips with truth; rendered there if missing")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--runs", type=int, default=2, help="of the whole clip, in one process")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if not set(parts) <= set(PARTS):
        parser.error(f"--parts takes {', '.join(PARTS)}, not {args.parts}")

    if "clip" in parts:
        jax.config.update("jax_enable_compilation_cache", False)  # the first compilation is one of the figures
    path = args.assets / "clips" / "wojtek.mp4"
    try:
        head = load_model("ict-facekit")
    except InputError as error:
        say(f"The model is missing, nothing can be measured: {error}")
        return 1
    if not path.is_file() and {"clip", "withheld"} & set(parts):
        say(f"No clip at {path}: give its folder with --assets or FACEJAX_ASSETS. Only clips with truth are measured.")
        parts = [p for p in parts if p == "truth"]
    if "truth" in parts and args.truth is None:
        say("No --truth DIR: clips with truth are left out.")
        parts = [p for p in parts if p != "truth"]
    if not parts:
        return 1

    facts = machine_facts("clip" in parts)
    report: dict[str, dict[str, Any]] = {}
    for preset in ("fast", "full") if args.preset == "both" else (args.preset,):
        figures = report[preset] = {}
        goal = GOALS[preset]
        for part in [p for p in PARTS if p in parts]:
            say(f"{preset}: {part}")
            if part == "clip":
                m = measure_clip(path, head, args.frames, preset, args.runs)
                rows = clip_rows(m, preset)
            elif part == "withheld":
                m = measure_withheld(path, head, args.frames or (0, open_video(path).n_frames), preset)
                rows = [
                    r for name in ("end", "start", "mean") for r in picture_rows(m[name], f"withheld: {name}", goal)
                ]
            else:
                m = measure_truth(args.truth, head, preset, args.assets)
                rows = truth_rows(m)
            figures[part] = m
            print_table(f"{preset}, {part}", rows)
            if args.json is not None:  # after every part: an interrupted run keeps what it has
                args.json.write_text(json.dumps({"machine": facts, **report}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
