"""Tables 1 and 2 of Chen et al. 2021 on clips whose every vertex is known (`facejax.made_up.wild_clips`).

Frames that adaptation did not see are registered and compared with the clip: mean squared error of display values on a
scale of 0 to 255 (L2), SSIM and PSNR over the pixels that the avatar covers wholly; and, which the authors could not
measure, the mesh in millimetres, the pose in degrees, and gaze.
"""

import dataclasses
import importlib
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from facejax.data.files import atomic_write
from facejax.data.video import Video, open_video
from facejax.fitting.config import FitConfig
from facejax.fitting.footage import Footage
from facejax.fitting.plans import adaptation, refinement
from facejax.fitting.schedule import Job, run_stage
from facejax.fitting.sequence import Fit, fit_clip
from facejax.fitting.start import spread_frames
from facejax.fitting.terms.pictures import draw_frames
from facejax.geometry.arrays import read_npz
from facejax.geometry.colour import linear_to_srgb
from facejax.geometry.errors import InputError
from facejax.geometry.rotations import rotation_angle
from facejax.made_up.truth_clip import Truth
from facejax.models.avatar import Avatar
from facejax.objectives.metrics import psnr, similarity_align, ssim
from facejax.objectives.pictures import inside
from facejax.scenes import make_scene
from facejax.scenes.lighting import in_darkness
from facejax.scenes.unknowns import placed

Identity = Callable[[np.ndarray, np.ndarray], float]
"""(picture, avatar) as uint8 sRGB -> cosine similarity of whatever says who a person is: CSIM, a plug-in."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A line of a table: how a clip is registered."""

    name: str
    key_frames: int | None = 48
    """Frames that adaptation sees, spread over the clip; None: all."""
    light_model: str = "network"
    adapt: bool = True
    """Whether the lighting network's weights move."""
    pretrained: bool = True
    """Whether they start from the capture, or at random."""
    changing_light: bool = False


TABLE_1: tuple[Method, ...] = (
    Method("ours"),
    Method("SH, 27 parameters", light_model="sh"),
    Method("SH with cast shadows, 81 per colour", light_model="shadowed-sh"),
)
"""Ours and the baselines, in one code."""

TABLE_2: tuple[Method, ...] = (
    Method("w/o pre-training", pretrained=False),
    Method("w/o adaptation", adapt=False),
    Method("K = 1", key_frames=1),
    Method("K = 12", key_frames=12),
    Method("K = 48"),
    Method("K = all", key_frames=None),
)
"""The ablation."""


TABLE_CHANGING: tuple[Method, ...] = (
    Method("one light per clip"),
    Method("a light per frame", changing_light=True),
)
"""Beyond the paper: light that changes during the clip."""

TABLES = {"1": TABLE_1, "2": TABLE_2, "changing": TABLE_CHANGING}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How clips are measured."""

    size: int = 128
    """Side of the face crop that is fitted and compared, pixels."""
    preset: str = "fast"
    held_out: int = 24
    """Frames that no method adapts to; those are measured."""
    landmark_noise_px: float | None = None
    """Standard deviation of noise on the true landmarks, in place of the detector's; None: the detector's."""
    frames_at_once: int = 4
    seeds: tuple[int, ...] = (0,)
    known_camera: bool = True
    """The paper knows its cameras."""


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """A clip with its truth."""

    name: str
    video: Video
    truth: Truth
    shadowed: Float[np.ndarray, " f"]
    """Share of the skin's pixels in cast shadow."""


def open_clip(folder: Path | str) -> Clip:
    """A folder of `facejax data wild-clip`; `InputError` where something of it is missing."""
    folder = Path(folder)
    for name in ("frames", "truth.npz", "wild.npz"):
        if not (folder / name).exists():
            raise InputError(
                f"{folder} is no clip with truth, it lacks {name}: make one with `facejax data wild-clip`."
            )
    truth = Truth.load(folder)
    shadowed = read_npz(folder / "wild.npz", "make the clip again", ("shadowed",))["shadowed"]
    return Clip(folder.name, open_video(folder / "frames"), truth, np.asarray(shadowed, np.float64))


def held_out_frames(count: int, wanted: int) -> np.ndarray:
    """Ids spread evenly over a clip of `count` frames."""
    if wanted >= count:
        raise InputError(f"{wanted} frames cannot be held out of a clip of {count}: hold out fewer.")
    return np.unique((np.arange(wanted) + 0.5) * count / wanted).astype(int)


def key_frames(rotation: Float[np.ndarray, "f 3 3"], among: np.ndarray, count: int | None) -> np.ndarray:
    """Up to `count` of the frames `among`, spread over head rotation as in the paper; None takes all of them."""
    if count is None or count >= len(among):
        return among
    if count < 1:
        raise InputError(f"Adaptation needs a key frame at least, and {count} were asked for.")
    return among[spread_frames(rotation[among, 2], count)]


def first_step(avatar: Avatar, clip: Clip, told: Protocol) -> Fit:
    """Step 1: pose and code of every frame from landmarks; what every method starts from.

    Its footage has the fitted landmarks in place of those that were seen: crops are the same for all methods.
    """
    landmarks = None
    if told.landmark_noise_px is not None:
        rng = np.random.default_rng(0)
        landmarks = clip.truth.landmarks + rng.normal(0, told.landmark_noise_px, clip.truth.landmarks.shape)
    config = _config(told, texture=False)
    intrinsics = np.asarray(clip.truth.intrinsics) if told.known_camera else None
    fit = fit_clip(clip.video, avatar, landmarks=landmarks, intrinsics=intrinsics, config=config)
    result = fit.result()
    valid = np.asarray(result.valid)
    footage = Footage(clip.video, None, np.asarray(result.landmarks), np.ones(result.landmarks.shape[:2]), valid)
    return dataclasses.replace(fit, footage=footage)


def run_method(
    begun: Fit, clip: Clip, method: Method, told: Protocol, seed: int = 0, identity: Identity | None = None
) -> dict[str, Any]:
    """Registers the held-out frames of a clip by one method, and measures them."""
    avatar: Avatar = begun.scene.head  # type: ignore[assignment]
    config = _config(
        told, light_model=method.light_model, adapt=method.adapt, changing_light=method.changing_light, seed=seed
    )
    scene = make_scene(avatar, (told.size, told.size), light_model=config.light_model)
    unknowns = in_darkness(begun.unknowns, scene.lighting)
    if not method.pretrained:
        lighting = avatar.network.init(jax.random.key(1000 + seed))
        unknowns = unknowns.replace(params={**unknowns.params, "lighting": lighting})
    valid = np.asarray(begun.footage.valid)
    test = held_out_frames(len(clip.truth.vertices), told.held_out)
    others = np.setdiff1d(np.flatnonzero(valid), test)
    keys = key_frames(np.asarray(_poses(begun).rotation), others, method.key_frames)
    job = Job(scene, begun.footage, keys, np.zeros((len(valid), 0), np.float32))
    began = time.perf_counter()
    for stage in adaptation(config):
        unknowns, _ = run_stage(job, stage, unknowns)
    lit = dataclasses.replace(begun, scene=scene, unknowns=jax.block_until_ready(unknowns))
    adapted = time.perf_counter()
    test = test[valid[test]]
    unknowns, _ = run_stage(job, refinement(config), unknowns, only=test)
    done = dataclasses.replace(lit, unknowns=jax.block_until_ready(unknowns))
    registered = time.perf_counter()
    pictures = frame_pictures(done, test, identity)
    return {
        "held out": _means(pictures),
        "per frame": {"L2": [row["L2"] for row in pictures], "shadowed": clip.shadowed[test].tolist()},
        "before step 3": measure_pictures(lit, test),
        "adapted to": measure_pictures(lit, keys[np.linspace(0, len(keys) - 1, min(24, len(keys))).astype(int)]),
        "geometry": measure_geometry(done, clip.truth.vertices, test),
        "geometry of step 1": measure_geometry(begun, clip.truth.vertices, test),
        "shadowed": float(clip.shadowed[test].mean()),
        "seconds": {"adaptation": adapted - began, "registration per frame": (registered - adapted) / len(test)},
        "frames": {"adapted to": len(keys), "measured": len(test)},
    }


def measure_pictures(done: Fit, ids: np.ndarray) -> dict[str, float]:
    """Means over frames of `frame_pictures`."""
    return _means(frame_pictures(done, ids))


def frame_pictures(done: Fit, ids: np.ndarray, identity: Identity | None = None) -> list[dict[str, float]]:
    """L2, SSIM, PSNR of each frame over the pixels that the avatar covers wholly; CSIM with a plug-in."""
    drawn, cover, seen = draw_frames(done.scene, done.footage, done.unknowns, ids)
    rows = []
    for colour, coverage, picture in zip(drawn, cover, seen, strict=True):
        mask = np.asarray(inside(jnp.asarray(coverage)))
        shown = np.clip(np.asarray(linear_to_srgb(colour)), 0, 1).astype(np.float32)
        laid = np.where(mask[..., None] > 0, shown, picture)
        square = ((laid - picture) ** 2).mean(axis=-1)
        row = {
            "L2": float(255**2 * (square * mask).sum() / max(mask.sum(), 1)),
            "SSIM": float(ssim(jnp.asarray(laid), jnp.asarray(picture), jnp.asarray(mask))),
            "PSNR": float(psnr(jnp.asarray(laid), jnp.asarray(picture), jnp.asarray(mask))),
        }
        if identity is not None:
            row["CSIM"] = float(identity(*((255 * x).round().astype(np.uint8) for x in (picture, laid))))
        rows.append(row)
    return rows


def measure_geometry(done: Fit, truth: Float[np.ndarray, "f v 3"], ids: np.ndarray) -> dict[str, float]:
    """Errors against true vertices (camera frame, metres), means over frames: mesh (mm), head rotation and gaze.

    The avatar's mesh is the subject's, so vertices are compared one by one after the best rigid motion, in the narrow
    face (the whole head, where a head has no such region) and in parts of it.
    Rotation: the best rigid motion from the fitted narrow face to the true one, camera frame, so that how a decoder
    shares motion between pose and mesh does not count. Gaze: of the eyeballs against the face.
    """
    head: Any = done.scene.head
    unknowns = done.unknowns
    vertices = jax.jit(jax.vmap(lambda c: head.vertices(unknowns.params, unknowns.clip.code, c)))
    found = np.asarray(vertices(jax.tree_util.tree_map(lambda x: x[ids], unknowns.frames.code)))
    poses = _poses(done)
    rotation, translation = np.asarray(poses.rotation)[ids], np.asarray(poses.translation)[ids]
    face = _ids(head, "narrow_face")
    face = face if len(face) else np.arange(head.topology.n_vertices)
    parts = {"face": face, "lips": _ids(head, "lips"), "eyes": _ids(head, "eyeballs", "iris")}
    rows = []
    for k, i in enumerate(ids):
        mine = found[k] @ rotation[k].T + translation[k]
        true = truth[i].astype(np.float64)
        motion = similarity_align(mine[face], true[face], with_scale=False)
        off = np.linalg.norm(motion.apply(mine) - true, axis=1)
        row = {f"{name} (mm)": float(1e3 * off[part].mean()) for name, part in parts.items() if len(part)}
        row["rotation (degrees)"] = _degrees(motion.rotation)
        row["position (mm)"] = float(1e3 * np.linalg.norm((mine[face] - true[face]).mean(axis=0)[:2]))
        gaze = []
        for side in _eyes(head):
            eye = similarity_align(mine[side], true[side], with_scale=False)
            gaze.append(_degrees(eye.rotation @ motion.rotation.T))
        if gaze:
            row["gaze (degrees)"] = float(np.mean(gaze))
        rows.append(row)
    return _means(rows)


def evaluate_clips(
    avatar: Avatar,
    clips: Sequence[Path | str],
    methods: Sequence[Method],
    told: Protocol,
    out: Path | str,
    *,
    identity: Identity | None = None,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Every method on every clip with every seed; a line of `out`/runs.jsonl each, which are not run again."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "runs.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    facts = {"avatar": avatar.sha256, "protocol": json.loads(json.dumps(dataclasses.asdict(told)))}
    facts["protocol"].pop("seeds")
    done = {(r["clip"], r["method"], r["seed"]): r for r in rows if {k: r.get(k) for k in facts} == facts}
    wanted = [(str(c), m, s) for c in clips for s in told.seeds for m in methods]
    began, todo = time.perf_counter(), 0
    clip: Clip | None = None
    for number, (folder, method, seed) in enumerate(wanted):
        key = (Path(folder).name, method.name, seed)
        if key in done:
            continue
        if clip is None or clip.name != key[0]:
            clip = open_clip(folder)
            begun = first_step(avatar, clip, told)
        todo += 1
        result = run_method(begun, clip, method, told, seed, identity)
        row = {"clip": key[0], "method": method.name, "seed": seed, **facts, **result}
        done[key] = row
        rows.append(row)
        with atomic_write(path) as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in rows))
        left = (time.perf_counter() - began) / todo * sum((Path(c).name, m.name, s) not in done for c, m, s in wanted)
        say(
            f"{number + 1} of {len(wanted)}: {key[0]}, {method.name}, seed {seed}: L2 {result['held out']['L2']:.2f}, "
            f"{result['geometry']['face (mm)']:.2f} mm, about {left / 60:.0f} min left"
        )
    return [done[(Path(c).name, m.name, s)] for c, m, s in wanted]


def clips_in(folder: Path | str) -> list[Path]:
    """The clips with truth in a folder, or the folder itself where it is one; `InputError` if there are none."""
    folder = Path(folder)
    found = [p.parent for p in sorted(folder.glob("*/wild.npz"))] or (
        [folder] if (folder / "wild.npz").is_file() else []
    )
    if not found:
        raise InputError(f"{folder} holds no clips with truth: make some with `facejax data wild-clip`.")
    return found


def report(
    avatar: Avatar,
    clips: Sequence[Path | str],
    out: Path | str,
    told: Protocol,
    tables: Sequence[str] = ("1", "2"),
    *,
    identity: Identity | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Runs the tables of these names (`TABLES`) on clips and writes `out`/tables.md beside `runs.jsonl`: its text."""
    unknown = [t for t in tables if t not in TABLES]
    if unknown or not tables:
        raise InputError(f"Tables are {', '.join(TABLES)}, and {', '.join(unknown) or 'none'} was asked for.")
    parts = []
    for name in tables:
        rows = evaluate_clips(avatar, clips, TABLES[name], told, out, identity=identity, say=say)
        parts.append(f"## Table {name}: all clips\n\n{table(rows)}\n")
        if name == "1":
            parts.append(f"### By cast shadow\n\n{by_shadow(rows)}\n")
        if name == "2" and len(told.seeds) > 1:
            parts.append(f"### Effect sizes\n\n{effects(rows)}\n")
        parts += [f"### {Path(c).name}\n\n{table(rows, [Path(c).name])}\n" for c in clips if len(clips) > 1]
    text = "\n".join(parts)
    with atomic_write(Path(out) / "tables.md") as path:
        path.write_text(text)
    return text


def table(rows: Sequence[Mapping[str, Any]], clips: Sequence[str] | None = None) -> str:
    """A Markdown table: a line per method, means over clips and seeds; ± is the standard deviation over seeds."""
    methods = list(dict.fromkeys(r["method"] for r in rows))
    columns = [("held out", c) for c in ("L2", "SSIM", "PSNR", "CSIM")] + [
        ("geometry", c) for c in ("face (mm)", "lips (mm)", "eyes (mm)", "rotation (degrees)", "gaze (degrees)")
    ]
    columns = [(group, c) for group, c in columns if all(c in r[group] for r in rows)]
    lines = [
        "| method | " + " | ".join(c for _, c in columns) + " | L2 adapted to |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for method in methods:
        own = [r for r in rows if r["method"] == method and (clips is None or r["clip"] in clips)]
        if not own:
            continue
        cells = [_spread(own, lambda r, g=group, c=c: r[g][c]) for group, c in columns]  # type: ignore[misc]
        cells.append(_spread(own, lambda r: r["adapted to"]["L2"]))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def effect_size(a: Sequence[float], b: Sequence[float]) -> float:
    """Cohen's d of two groups of equal size: difference of the means over the pooled standard deviation."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    pooled = np.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2) if min(len(x), len(y)) > 1 else float("nan")
    return float((x.mean() - y.mean()) / pooled) if pooled > 0 else float("inf") * np.sign(x.mean() - y.mean())


def identity_plugin(name: str) -> Identity:
    """The function `module:function`; `InputError` where it cannot be imported."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"The identity plug-in {name!r} cannot be imported ({error}): give module:function, of two pictures."
        ) from error


def effects(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table: held-out L2 of each line of Table 2 against the next better one, in the paper's order.

    The standard deviation in Cohen's d is that of seeds, each a mean over clips.
    """
    order = ("K = all", "K = 48", "K = 12", "w/o pre-training", "w/o adaptation", "K = 1")
    seeds = sorted({r["seed"] for r in rows})
    means = {
        m: [float(np.mean([r["held out"]["L2"] for r in rows if r["method"] == m and r["seed"] == s])) for s in seeds]
        for m in order
    }
    lines = ["| worse in the paper | better | ratio of L2 | Cohen's d |", "|---|---|---|---|"]
    for better, worse in itertools.pairwise(order):
        a, b = means[worse], means[better]
        lines.append(f"| {worse} | {better} | {np.mean(a) / np.mean(b):.3f} | {effect_size(a, b):.1f} |")
    return "\n".join(lines)


def by_shadow(rows: Sequence[Mapping[str, Any]], parts: int = 3) -> str:
    """A Markdown table: held-out L2 of Table 1's methods for frames with little, more and most cast shadow.

    Frames of all clips are sorted by the share of the skin's pixels in shadow and cut into equal parts.
    """
    names = [m.name for m in TABLE_1]
    clips = list(dict.fromkeys(r["clip"] for r in rows))

    def gathered(method: str, what: str) -> np.ndarray:
        picked = [[r["per frame"][what] for r in rows if r["method"] == method and r["clip"] == clip] for clip in clips]
        return np.concatenate([np.mean(frames, axis=0) for frames in picked])

    share = gathered(names[0], "shadowed")
    errors = {name: gathered(name, "L2") for name in names}
    lines = [
        "| share of skin in cast shadow | frames | " + " | ".join(names) + " | ours over SH |",
        "|---" * (len(names) + 3) + "|",
    ]
    for part in np.array_split(np.argsort(share, kind="stable"), parts):
        cells = [float(errors[name][part].mean()) for name in names]
        shown = " | ".join(f"{c:.1f}" for c in cells)
        lines.append(f"| {100 * share[part].mean():.1f} % | {len(part)} | {shown} | {cells[0] / cells[1]:.2f} |")
    return "\n".join(lines)


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _spread(rows: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float]) -> str:
    seeds = sorted({r["seed"] for r in rows})
    means = [np.mean([value(r) for r in rows if r["seed"] == s]) for s in seeds]
    text = f"{np.mean(means):.3g}" if abs(np.mean(means)) < 10 else f"{np.mean(means):.2f}"
    return text if len(seeds) == 1 else f"{text} ± {np.std(means, ddof=1):.2g}"


def _config(told: Protocol, **changes: Any) -> FitConfig:
    return FitConfig(preset=told.preset, size=told.size, frames_at_once=told.frames_at_once, **changes)  # type: ignore[arg-type]


def _poses(done: Fit) -> Any:
    return jax.vmap(lambda f: placed(done.unknowns.clip, f)[0])(done.unknowns.frames)


def _degrees(turn: np.ndarray) -> float:
    return float(np.degrees(rotation_angle(jnp.eye(3), jnp.asarray(turn, jnp.float32))))


def _ids(head: Any, *regions: str) -> np.ndarray:
    masks = [np.asarray(head.regions[r]) > 0.5 for r in regions if r in head.regions]
    return np.flatnonzero(np.any(masks, axis=0)) if masks else np.zeros(0, int)


def _eyes(head: Any) -> list[np.ndarray]:
    """Vertices of each eyeball: those of the eyes on either side of the face."""
    eyes = _ids(head, "eyeballs", "iris")
    if not len(eyes):
        return []
    x = np.asarray(head.params["mesh"]["mean"])[eyes, 0]
    return [eyes[x > 0], eyes[x <= 0]]
