"""What a folder of Multiface holds, whether its parts agree, and how much disk each choice of the data set needs."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from facejax.data.files import atomic_write
from facejax.data.multiface import (
    BLACK,
    GAIN,
    TEXTURES,
    UV_SIZE,
    Choice,
    Missing,
    Multiface,
    average_texture,
    choose_cameras,
    missing_files,
    pictured_cameras,
    read_frame_list,
    read_krt,
)
from facejax.geometry.errors import InputError
from facejax.renderers.uv import texture_chart

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Contents:
    """What one person's folder holds."""

    person: str
    cameras: int
    segments: dict[str, int]
    """Frames of each segment that is there, as frame_list.txt counts them."""
    absent: tuple[str, ...]
    """Segments that frame_list.txt names and that are not there."""
    missing: Missing
    """Of the segments that are there."""
    agreement: tuple[float, float] | None
    """Correlation of one texture with the picture that its camera took, looked up through mesh, pose, calibration and
    lens: as facejax counts rows, and upside down. None where no frame is whole."""


def people(folder: Path | str) -> list[Path]:
    """Folders of persons: `folder` itself, or those in it. Raises `InputError` if there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"No such folder: {folder}.")
    found = [
        f for f in (folder, *sorted(folder.iterdir())) if (f / "KRT").is_file() or (f / "frame_list.txt").is_file()
    ]
    if not found:
        raise InputError(
            f"{folder} holds no person of Multiface (a folder m--DATE--TIME--ID--GHS with KRT and frame_list.txt): "
            "give such a folder or the one above; `facejax data multiface --plan` tells what to download."
        )
    return found[:1] if found[0] == folder else found


def survey(folder: Path, cameras: Sequence[str] | int | None = None) -> Contents:
    """What one person's folder holds, and whether pictures, meshes, poses, calibration and textures agree."""
    lenses, frames = read_krt(folder / "KRT"), read_frame_list(folder)
    there = {s for s in {s for s, _ in frames} if (folder / "tracked_mesh" / s).is_dir()}
    present = [f for f in frames if f[0] in there]
    names = choose_cameras(lenses, pictured_cameras(folder, [*there], lenses), cameras, None, folder) if there else ()
    missing = missing_files(folder, present, names)
    whole = [f for f in present if f not in missing.frames]
    counts: dict[str, int] = {}
    for segment, _ in present:
        counts[segment] = counts.get(segment, 0) + 1
    return Contents(
        person=folder.name.split("--")[3] if folder.name.count("--") >= 4 else folder.name,
        cameras=len(names),
        segments=counts,
        absent=tuple(dict.fromkeys(s for s, _ in frames if s not in there)),
        missing=missing,
        agreement=_agreement(folder, whole[0][0], names) if whole else None,
    )


def describe(contents: Contents) -> str:
    """What `survey` found, for a person to read."""
    missing, total = contents.missing, sum(contents.segments.values())
    counted = f"{contents.cameras} cameras, {len(contents.segments)} segments, {total} frames"
    lines = [f"person {contents.person}: {counted}"]
    lines += [f"  {name}: {count}" for name, count in contents.segments.items()]
    if contents.absent:
        lines.append(
            f"  {len(contents.absent)} more segments of frame_list.txt are not here ({contents.absent[0]}, ...): "
            "choose with --segments"
        )
    for kind, paths in missing.files.items():
        lines.append(f"  missing: {len(paths)} x {kind}, the first {paths[0]}")
    if missing.files:
        lines.append(f"  incomplete frames: {len(missing.frames)} (--skip-incomplete leaves them out)")
    if contents.agreement is not None:
        right, turned = contents.agreement
        verdict = "mesh, pose, lens and texture fit together"
        if turned > right:
            verdict = "TEXTURES ARE UPSIDE DOWN: rows are counted from the other end than facejax takes them to be"
        elif right < 0.5:
            verdict = "MESH, POSE, LENS AND TEXTURE DO NOT FIT TOGETHER"
        lines.append(f"  picture and texture correlate by {right:.3f} (upside down {turned:.3f}): {verdict}")
    return "\n".join(lines)


def _agreement(folder: Path, segment: str, cameras: Sequence[str]) -> tuple[float, float] | None:
    """See `Contents.agreement`, for the first whole frame of a segment and its most frontal camera."""
    from scipy.ndimage import map_coordinates, minimum_filter

    capture = Multiface(
        folder,
        segments=[segment],
        cameras=cameras,
        texture_size=256,
        image_scale=0.5,
        incomplete="skip",
        choice=Choice(),
    )
    facing = np.einsum("cj,j->c", capture.cameras["rotation"][:, 2], np.asarray(capture.view(0, 0).head.rotation)[:, 2])
    view = capture.view(0, int(np.argmin(facing)))
    chart = texture_chart(capture.topology, capture.texture_size)
    points = np.einsum("nij,ni->nj", view.vertices[chart.triangles], chart.weights)
    points = points @ np.asarray(view.pose.rotation).T + np.asarray(view.pose.translation)
    xy = points[:, :2] / points[:, 2:] * np.asarray(view.camera.focal) + np.asarray(view.camera.principal_point) - 0.5
    looked_up = np.stack([map_coordinates(view.image[..., k], xy.T[::-1], order=1) for k in range(3)], axis=-1)
    inner = (
        map_coordinates(minimum_filter(view.mask, 7), xy.T[::-1], order=1) > 0.99
    )  # outlines mix with what is behind
    found = []
    for texture, seen in ((view.texture, view.seen), (view.texture[::-1], view.seen[::-1])):
        usable = inner & (seen.reshape(-1)[chart.texels] > 0.99)
        a, b = looked_up[usable].ravel(), texture.reshape(-1, 3)[chart.texels][usable].ravel()
        varied = len(a) > 1 and a.std() > 0 and b.std() > 0
        found.append(float(np.corrcoef(a, b)[0, 1]) if varied else 0.0)
    return found[0], found[1]


def write_averages(capture: Multiface, progress: Progress | None = None) -> int:
    """Write the `average` textures that the layout leaves to its users, over the capture's cameras; how many.

    Those that are there stay. progress: called with (stage, done, total).
    """
    from PIL import Image

    written = 0
    for i in range(len(capture.entries)):
        if progress is not None:
            progress("mean textures", i + 1, len(capture.entries))
        path = capture.file(TEXTURES, i, "average")
        if path.is_file():
            continue
        linear = average_texture([capture.file(TEXTURES, i, n) for n in capture.camera_names], UV_SIZE)
        raw = np.where(linear > 0, (linear + BLACK) / GAIN, 0)
        with atomic_write(path) as temporary:
            Image.fromarray(np.round(np.clip(raw, 0, 1) * 255).astype(np.uint8)).save(temporary)
        written += 1
    return written


# -- how much to download ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Person:
    """Sizes that the data set's authors publish (documentation/INSTALLATION.md of facebookresearch/multiface)."""

    id: str
    script: int
    """1 or 2: which list of expressions and which rig of cameras."""
    images_gb: int
    textures_gb: int
    meshes_gb: int


PEOPLE = (
    Person("002645310", 2, 7800, 2400, 45), Person("002643814", 1, 1600, 412, 21),
    Person("002539136", 1, 1500, 381, 20), Person("7889059", 1, 1800, 493, 29),
    Person("002757580", 1, 1400, 380, 21), Person("2183941", 1, 2100, 577, 32),
    Person("5372021", 1, 2000, 513, 27), Person("8870559", 1, 2400, 611, 32), Person("6674443", 1, 1700, 429, 26),
    Person("5067077", 2, 11000, 3100, 49), Person("002914589", 1, 1100, 367, 21), Person("6795937", 1, 1900, 521, 27),
    Person("002421669", 2, 13000, 3100, 51),
)  # fmt: skip
CAMERAS = {1: 39, 2: 147}
"""Colour cameras of each rig, of which pictures are published (documentation/CAMERA_VIEW.md)."""
SEGMENTS = {1: 121, 2: 82}
"""Segments of each script, counted in download_config.json: v1 66 peak expressions, 1 range of motion, 4 of gaze and 50
sentences; v2 22 expressions, 10 of gaze, 50 sentences."""
MESH_GB = 401 / (10 * 12_200 + 3 * 23_000)
"""Of one frame: all meshes over the frames that the authors give on average, 12,200 (v1) and 23,000 (v2) a person."""


@dataclasses.dataclass(frozen=True)
class Size:
    """Disk of a choice, in gigabytes (10^9 bytes); estimates unless it is a whole person."""

    choice: str
    frames: float
    images: float
    textures: float
    meshes: float

    @property
    def total(self) -> float:
        return self.images + self.textures + self.meshes


def estimate(
    subjects: Sequence[str] = (), cameras: int | None = None, expressions: int | None = None
) -> tuple[Size, ...]:
    """Disk that each of some persons (ids; none: all) needs, for so many cameras and segments (None: all).

    A camera is taken to need its share of a person's pictures and textures, a segment its share of the frames.
    Raises `InputError` for ids that are not in the data set and numbers below 1.
    """
    known = {p.id: p for p in PEOPLE}
    wrong = [s for s in subjects if s not in known]
    if wrong:
        raise InputError(f"Multiface has no person {wrong[0]!r}: choose among {', '.join(known)}.")
    for name, value in (("--cameras", cameras), ("--expressions", expressions)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}.")
    return tuple(_size(known[s], cameras, expressions) for s in subjects or known)


def _size(person: Person, cameras: int | None, expressions: int | None) -> Size:
    rig, script = CAMERAS[person.script], SEGMENTS[person.script]
    eyes, faces = min(cameras or rig, rig), min(expressions or script, script)
    seen, time = eyes / rig, faces / script
    return Size(
        choice=f"{person.id} (v{person.script}), {eyes} of {rig} cameras, {faces} of {script} segments",
        frames=person.meshes_gb / MESH_GB * time,
        images=person.images_gb * seen * time,
        textures=person.textures_gb * seen * time,
        meshes=person.meshes_gb * time,
    )


def plan_text(subjects: Sequence[str] = (), cameras: int | None = None, expressions: int | None = None) -> str:
    """A table of `estimate`, with what the numbers rest on; without a choice, some typical ones beside the whole."""
    rows = list(estimate(subjects, cameras, expressions))
    if len(rows) > 1:
        total = [sum(getattr(r, n) for r in rows) for n in ("frames", "images", "textures", "meshes")]
        rows.append(Size(f"all {len(rows)}", *total))
    if not subjects and cameras is None and expressions is None:
        rows += [_size(PEOPLE[11], c, e) for c, e in ((8, None), (None, 2), (8, 10), (4, 2))]
        rows += [_size(PEOPLE[12], c, e) for c, e in ((40, None), (8, 10))]
    width = max(len(r.choice) for r in rows)
    lines = [f"{'choice':{width}}  {'frames':>8} {'images':>9} {'textures':>9} {'meshes':>8} {'total GB':>10}"]
    for r in rows:
        numbers = f"{r.frames:8,.0f} {r.images:9,.1f} {r.textures:9,.1f} {r.meshes:8,.2f} {r.total:10,.1f}"
        lines.append(f"{r.choice:{width}}  {numbers}")
    lines += [
        "",
        "Whole persons: as published (13 persons: 49.3 TB images, 13.3 TB textures, 0.4 TB meshes). Parts are",
        f"estimates: equal shares per camera ({CAMERAS[1]} in v1, {CAMERAS[2]} in v2) and segment "
        f"({SEGMENTS[1]} and {SEGMENTS[2]}); {1e3 * MESH_GB:.1f} MB of meshes a frame give the frames.",
        "Segments differ in length: peak expressions of v1 have about half the mean (51 and 64 frames in the mini",
        "set), gaze and ranges of motion more. The mini set (6795937, 2 peak expressions, all cameras) is published",
        f"as 16.2 GB; for its {_MINI_FRAMES} frames these shares give {_mini():.1f} GB: a third too high.",
        "Archives come one a segment with all cameras (long segments: one a camera), so fewer cameras save disk, not",
        "always download; unpacking needs up to twice the size for a while (120 TB for the 65 TB, say the authors).",
        "https://github.com/facebookresearch/multiface, CC-BY-NC 4.0.",
    ]
    return "\n".join(lines)


_MINI_FRAMES = 115  # lines of mini_frame_list.txt


def _mini() -> float:
    """What the estimate says of the mini set's frames."""
    whole = _size(PEOPLE[11], None, None)
    return whole.total * _MINI_FRAMES / whole.frames
