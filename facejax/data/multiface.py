"""Multiface (Wuu et al. 2022, CC-BY-NC-4.0): one person's folder of the public data set, read as a `Capture`.

The layout, what it stands for in facejax's conventions, and what is measured to tell that a folder was read correctly
are described in `docs/multiface.md`. Lengths on disk are millimetres, pictures are raw and linear, lenses distort;
what comes out is metres, linear radiance and pinhole cameras. The light is one and even, so there are no groups.
"""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Float64

from facejax.data.captures import Capture, Entry, LightStage, View, head_to_camera
from facejax.data.files import atomic_write
from facejax.data.meshes import read_obj
from facejax.data.pictures import open_picture
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import Topology
from facejax.geometry.records import Camera, Pose

UV_SIZE = 1024
"""Side of the unwrapped textures."""
TEXTURES = f"unwrapped_uv_{UV_SIZE}"
"""Their folder."""
TEST_SEGMENTS = ("EXP_ROM", "EXP_free_face")
"""What the data set's authors test on: segments whose names begin so."""
CHOICE = "facejax.json"
"""A person's choice of segments, cameras and sizes, kept beside the data (see `Choice`)."""

GAIN = np.array([1.4, 1.1, 1.6], np.float32) / np.float32(1.1)
BLACK = np.float32(3 / 255)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.'\-]*")
_MM = 1e-3

# -- colour ------------------------------------------------------------------------------------------------------------


def to_linear(raw: Float[np.ndarray, "*b 3"]) -> Float32[np.ndarray, "*b 3"]:
    """Linear radiance from raw values in [0, 1]: white balance and black level as its viewer has them, in [0, 2]."""
    return np.clip(np.asarray(raw, np.float32) * GAIN - BLACK, 0, 2)


def display(linear: Float[np.ndarray, "*b 3"]) -> Float32[np.ndarray, "*b 3"]:
    """Linear radiance as the data set's viewer shows it: a square root above a toe. For eyes, not for losses."""
    lifted = np.sqrt(np.maximum(np.asarray(linear, np.float32), 0) * np.float32(0.95 / (1 - 3 / 255)))
    return np.clip(lifted - np.float32(15 / 255), 0, 2)


# -- cameras -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class LensCamera:
    """A calibrated camera as the KRT file has it; `x_camera = rotation @ x_world + translation`, in metres."""

    matrix: Float64[np.ndarray, "3 3"]
    """Intrinsics K in pixels of the full picture, the top-left pixel's CENTRE at (0, 0) as OpenCV has it."""
    distortion: Float64[np.ndarray, "5"]
    """OpenCV's k1, k2, p1, p2, k3."""
    rotation: Float64[np.ndarray, "3 3"]
    translation: Float64[np.ndarray, "3"]

    @property
    def centre(self) -> Float64[np.ndarray, "3"]:
        """Where it stands in the world."""
        return -self.rotation.T @ self.translation


def read_krt(path: Path | str) -> dict[str, LensCamera]:
    """Cameras by name from a `KRT` file: a name, three rows of K, five distortion numbers, three rows of [R | t] (mm).

    Raises `InputError` for a file that is missing, cut short or not of that form, and for calibrations that cannot be.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path.parent} has no file KRT with its cameras: unpack the person's metadata.tar there.")
    lines = [(i, line.split()) for i, line in enumerate(_text(path).splitlines(), 1) if line.strip()]
    if not lines or len(lines) % 8:
        raise InputError(
            f"{path} must have 8 lines for each camera (name, 3 of K, distortion, 3 of [R | t]), and it has "
            f"{len(lines)} lines: it is damaged or of another layout, get it again."
        )
    cameras: dict[str, LensCamera] = {}
    for block in (lines[i : i + 8] for i in range(0, len(lines), 8)):
        name = _safe(" ".join(block[0][1]), path, "a camera")
        if name in cameras:
            raise InputError(f"{path} calibrates camera {name} twice: keep one of the two.")
        rows = [_row(path, *line, n) for line, n in zip(block[1:], (3, 3, 3, 5, 4, 4, 4), strict=True)]
        matrix, pose = np.stack(rows[:3]), np.stack(rows[4:])
        if not (matrix[0, 0] > 0 and matrix[1, 1] > 0 and np.allclose(matrix[2], [0, 0, 1])):
            raise InputError(
                f"{path}: the matrix K of camera {name} must have positive focal lengths and end in 0 0 1: "
                "it is damaged or of another layout, get it again."
            )
        _check_rotation(pose[:, :3], path, f"camera {name}")
        cameras[name] = LensCamera(
            matrix=matrix, distortion=rows[3], rotation=pose[:, :3], translation=pose[:, 3] * _MM
        )
    return cameras


def distort(points: Float[np.ndarray, "*b 2"], coefficients: Float[np.ndarray, "5"]) -> Float[np.ndarray, "*b 2"]:
    """Where a lens puts what a pinhole would put at `points` (x / z, y / z): OpenCV's k1, k2, p1, p2, k3."""
    k1, k2, p1, p2, k3 = coefficients
    x, y = points[..., 0], points[..., 1]
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    return np.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        ],
        axis=-1,
    )


def undistort_image(
    image: Float32[np.ndarray, "h w c"], lens: LensCamera, scale: tuple[float, float] = (1.0, 1.0)
) -> tuple[Float32[np.ndarray, "h w c"], Float32[np.ndarray, "h w"]]:
    """(picture of the pinhole camera `pinhole(lens, scale)`, 1 where the lens saw that pixel) of a distorted picture.

    scale: (x, y) factors by which the picture was shrunk since calibration. Bilinear, 0 where nothing was seen.
    A skewed K is straightened too, which `cv2.undistort` ignores.
    """
    h, w = image.shape[:2]
    camera = pinhole(lens, scale)
    focal, centre = np.asarray(camera.focal, np.float64), np.asarray(camera.principal_point, np.float64)
    x, y = np.meshgrid((np.arange(w) + 0.5 - centre[0]) / focal[0], (np.arange(h) + 0.5 - centre[1]) / focal[1])
    seen = distort(np.stack([x, y], axis=-1), lens.distortion)
    column = (seen @ lens.matrix[0, :2] + lens.matrix[0, 2] + 0.5) * scale[0] - 0.5
    row = (seen @ lens.matrix[1, :2] + lens.matrix[1, 2] + 0.5) * scale[1] - 0.5
    inside = (column > -0.5) & (column < w - 0.5) & (row > -0.5) & (row < h - 0.5)
    straight = _sample(image, column.astype(np.float32), row.astype(np.float32))
    return np.where(inside[..., None], straight, 0).astype(np.float32), inside.astype(np.float32)


def _sample(image: np.ndarray, column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Bilinear values at (column, row) counted from the first pixel's centre; borders repeat."""
    try:
        import cv2
    except ImportError:
        from scipy.ndimage import map_coordinates

        channels = [map_coordinates(image[..., c], (row, column), order=1, mode="nearest") for c in range(3)]
        return np.stack(channels, axis=-1)
    return cv2.remap(image, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def pinhole(lens: LensCamera, scale: tuple[float, float] = (1.0, 1.0)) -> Camera:
    """The camera of an undistorted picture shrunk by `scale` (x, y); the half pixel is OpenCV's origin against ours."""
    k, by = lens.matrix, np.asarray(scale)
    return Camera(
        focal=jnp.asarray(np.array([k[0, 0], k[1, 1]]) * by, jnp.float32),
        principal_point=jnp.asarray((k[:2, 2] + 0.5) * by, jnp.float32),
    )


# -- files of one person -----------------------------------------------------------------------------------------------


def read_frame_list(folder: Path) -> list[tuple[str, str]]:
    """(segment, frame) of every line of `frame_list.txt`, in its order. Raises `InputError`."""
    path = folder / "frame_list.txt"
    if not path.is_file():
        raise InputError(f"{folder} has no frame_list.txt: unpack the person's metadata.tar there.")
    found: dict[tuple[str, str], None] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        words = line.split()
        if len(words) not in (0, 2) or (words and not words[1].isdecimal()):
            raise InputError(f"{path}, line {number}, must be a segment and a frame number, not {line.strip()[:80]!r}.")
        if words:
            found[_safe(words[0], path, "a segment"), words[1]] = None
    if not found:
        raise InputError(f"{path} lists no frames: get it again.")
    return list(found)


def read_vertices(path: Path, count: int) -> Float32[np.ndarray, "v 3"]:
    """Vertices in metres, head frame, of a tracked mesh's .bin or of `vert_mean.bin`. Raises `InputError`."""
    try:
        held = np.fromfile(path, "<f4")
    except OSError as error:
        raise InputError(f"The mesh {path} cannot be read ({error.strerror}): unpack the segment again.") from error
    if held.size != 3 * count or path.stat().st_size != 12 * count:
        raise InputError(
            f"{path} must hold {count} x 3 float32 numbers ({12 * count} bytes), and it has {path.stat().st_size} "
            "bytes: it is cut short or of another topology, unpack the segment again."
        )
    if not np.isfinite(held).all():
        raise InputError(f"{path} holds numbers that are not finite: unpack the segment again.")
    return held.reshape(count, 3) * np.float32(_MM)


def read_transform(path: Path) -> Float64[np.ndarray, "3 4"]:
    """Head to world of a frame's `_transform.txt`, its translation in metres. Raises `InputError`."""
    rows = [line.split() for line in _text(path).splitlines() if line.strip()]
    if len(rows) != 3:
        raise InputError(f"{path} must have 3 rows of 4 numbers, and it has {len(rows)}: unpack the segment again.")
    matrix = np.stack([_row(path, i, row, 4) for i, row in enumerate(rows, 1)])
    _check_rotation(matrix[:, :3], path, "the head")
    matrix[:, 3] *= _MM
    return matrix


def read_topology(path: Path) -> Topology:
    """Triangles and texture coordinates of a tracked mesh's .obj; vertices in no triangle (1,565 of 7,306) stay."""
    _, topology = read_obj(path)
    if len(topology.uv) < 3:
        raise InputError(f"{path} has no texture coordinates: give a mesh of the person's own with `topology`.")
    return topology


def read_picture(path: Path, what: str) -> Float32[np.ndarray, "h w 3"]:
    """Raw values in [0, 1] of a PNG. Raises `InputError`."""
    with open_picture(path, what, "unpack its segment again") as image:
        return np.asarray(image.convert("RGB"), np.float32) / np.float32(255)


def shrink(image: Float32[np.ndarray, "h w c"], size: tuple[int, int]) -> Float32[np.ndarray, "H W c"]:
    """Mean over the area of each new pixel; size: (height, width)."""
    from PIL import Image

    if image.shape[:2] == size:
        return image
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(image[..., c])).resize(size[::-1], Image.Resampling.BOX))
        for c in range(image.shape[-1])
    ]
    return np.stack(planes, axis=-1)


def read_texture(path: Path, size: int) -> tuple[Float32[np.ndarray, "s s 3"], Float32[np.ndarray, "s s"]]:
    """(linear texture, share of each texel that was seen) of an unwrapped PNG; raw zeros mean "not seen".

    Stored with v = 1 in the first row, which is facejax's convention; the data set's own loader turns it over because
    its renderer counts rows from v = 0.
    """
    raw = read_picture(path, "texture")
    if raw.shape != (UV_SIZE, UV_SIZE, 3):
        raise InputError(
            f"The texture {path} must be {UV_SIZE} x {UV_SIZE} texels, and it is {raw.shape[1]} x {raw.shape[0]}: "
            "textures of several sizes cannot be mixed, unpack its segment again."
        )
    seen = np.any(raw > 0, axis=-1, keepdims=True).astype(np.float32)
    both = shrink(np.concatenate([raw, seen], axis=-1), (size, size))  # raw is 0 wherever it was not seen
    share = both[..., 3:]
    return np.where(share > 0, to_linear(both[..., :3] / np.maximum(share, 1e-6)), 0), share[..., 0]


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and spread over all frames and cameras that the data set's authors computed."""

    texture: Float32[np.ndarray, "s s 3"]
    """Mean texture, linear."""
    texture_deviation: Float32[np.ndarray, "3"]
    """Standard deviation of texels, one number in the file, in linear units of each channel."""
    vertices: Float32[np.ndarray, "v 3"]
    """Mean mesh, metres, head frame."""
    vertices_deviation: float
    """Standard deviation of a coordinate, metres."""


def read_statistics(folder: Path, n_vertices: int, texture_size: int) -> Statistics:
    """`tex_mean.png`, `tex_var.txt` (of values to 255, squared), `vert_mean.bin`, `vert_var.txt` (mm squared)."""
    missing = [
        n for n in ("tex_mean.png", "tex_var.txt", "vert_mean.bin", "vert_var.txt") if not (folder / n).is_file()
    ]
    if missing:
        raise InputError(f"{folder} lacks {', '.join(missing)}: unpack the person's metadata.tar there.")
    spread = [_row(folder / n, 1, _text(folder / n).split(), 1)[0] for n in ("tex_var.txt", "vert_var.txt")]
    if min(spread) <= 0:
        raise InputError(f"The variances in {folder} (tex_var.txt, vert_var.txt) must be positive: get them again.")
    return Statistics(
        texture=read_texture(folder / "tex_mean.png", texture_size)[0],
        texture_deviation=np.float32(np.sqrt(spread[0]) / 255) * GAIN,
        vertices=read_vertices(folder / "vert_mean.bin", n_vertices),
        vertices_deviation=float(np.sqrt(spread[1])) * _MM,
    )


# -- the capture -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Choice:
    """What of a person's folder is used. `facejax data multiface DIR --save` keeps one beside the data."""

    segments: tuple[str, ...] | None = None
    """Names of segments; None for all that frame_list.txt names."""
    cameras: tuple[str, ...] | int | None = None
    """Names of cameras, or how many, spread evenly from the frontal one; None for all that took pictures."""
    texture_size: int = UV_SIZE
    image_scale: float | None = None
    """Factor on the size of pictures; None for `texture_size` / 1024, which keeps them about as fine as textures."""
    incomplete: Literal["refuse", "skip"] = "refuse"
    """What to do with frames of which a chosen camera lacks the picture or the texture."""
    test_segments: tuple[str, ...] = TEST_SEGMENTS
    """Segments whose names begin so are the split "test"."""


class Multiface:
    """One person of Multiface as a `Capture`. Stage: the world turned to the axes of the most frontal camera."""

    def __init__(
        self,
        folder: Path | str,
        *,
        segments: Sequence[str] | None = None,
        cameras: Sequence[str] | int | None = None,
        texture_size: int | None = None,
        image_scale: float | None = None,
        incomplete: Literal["refuse", "skip"] | None = None,
        test_segments: Sequence[str] | None = None,
        topology: Path | str | None = None,
        choice: Choice | None = None,
    ) -> None:
        """What is not given is taken from `choice`, by default the one kept beside the data; see `Choice`.

        topology: an .obj of the 7,306-vertex mesh, by default the first in `tracked_mesh`. Raises `InputError` where
        parts are missing, cut short, of another layout or of another size.
        """
        self.folder = Path(folder)
        choice = read_choice(folder) if choice is None else choice
        segments = choice.segments if segments is None else segments
        cameras = choice.cameras if cameras is None else cameras
        texture_size = choice.texture_size if texture_size is None else texture_size
        image_scale = choice.image_scale if image_scale is None else image_scale
        incomplete = choice.incomplete if incomplete is None else incomplete
        test_segments = choice.test_segments if test_segments is None else test_segments
        if not 1 <= texture_size <= UV_SIZE:
            raise InputError(f"`texture_size` must be between 1 and {UV_SIZE} texels, not {texture_size}.")
        image_scale = texture_size / UV_SIZE if image_scale is None else image_scale
        if not 0 < image_scale <= 1:
            raise InputError(f"`image_scale` must be above 0 and at most 1, not {image_scale:g}.")
        self.texture_size, self.groups = texture_size, 0
        lenses = read_krt(self.folder / "KRT")
        frames = _chosen_frames(self.folder, read_frame_list(self.folder), segments)
        known = [f for f in frames if _mesh_files(self.folder, *f)[1].is_file()]
        if not known:
            raise missing_files(self.folder, frames, ()).error(self.folder)
        turned, middle, frontal = _stage(lenses, read_transform(_mesh_files(self.folder, *known[0])[1]))
        pictured = pictured_cameras(self.folder, [s for s, _ in frames], lenses)
        self.camera_names = choose_cameras(lenses, pictured, cameras, frontal, self.folder)
        self.lenses = tuple(lenses[n] for n in self.camera_names)
        self.n_cameras = len(self.lenses)
        missing = missing_files(self.folder, frames, self.camera_names)
        whole = [f for f in frames if f not in missing.frames]
        if missing.files and (incomplete == "refuse" or not whole):
            raise missing.error(self.folder)
        self.skipped = len(frames) - len(whole)
        self.frames = tuple(whole)
        self.topology = read_topology(Path(topology) if topology else _any_obj(self.folder, whole))
        first = read_picture(self.file("images", 0, self.camera_names[0]), "picture")
        height, width = self._full_size = first.shape[:2]
        self.image_size = (max(1, round(height * image_scale)), max(1, round(width * image_scale)))
        self._scale = (self.image_size[1] / width, self.image_size[0] / height)
        tests = tuple(test_segments)
        self.entries = tuple(
            Entry(
                file=f"tracked_mesh/{segment}/{frame}.bin",
                expression=i,
                split="test" if segment.startswith(tests) else "train",
                pattern="full",
                tracked=True,
            )
            for i, (segment, frame) in enumerate(whole)
        )
        self._turned, self._middle = turned, middle
        pinholes = [pinhole(lens, self._scale) for lens in self.lenses]
        self.cameras = {  # stage to camera, as in `LightStage.cameras`
            "rotation": np.stack([c.rotation @ turned.T for c in self.lenses]).astype(np.float32),
            "translation": np.stack([c.rotation @ middle + c.translation for c in self.lenses]).astype(np.float32),
            "focal": np.stack([np.asarray(p.focal) for p in pinholes]),
            "principal_point": np.stack([np.asarray(p.principal_point) for p in pinholes]),
        }
        self._kept: dict[int, tuple[np.ndarray, Pose, np.ndarray]] = {}

    @functools.cached_property
    def statistics(self) -> Statistics:
        """What the data set's authors computed over all frames; see `read_statistics` for what is raised."""
        return read_statistics(self.folder, self.topology.n_vertices, self.texture_size)

    def view(self, entry: int, camera: int) -> View:
        """See `Capture.view`."""
        if not 0 <= camera < self.n_cameras:
            raise InputError(f"The capture has {self.n_cameras} cameras, numbered from 0, and {camera} was asked for.")
        if not 0 <= entry < len(self.entries):
            raise InputError(
                f"The capture has {len(self.entries)} entries, numbered from 0, and {entry} was asked for."
            )
        vertices, head, mean_texture = self._still(entry)
        rotation, translation, focal, centre = (
            self.cameras[k][camera] for k in ("rotation", "translation", "focal", "principal_point")
        )
        pose = head_to_camera(head, rotation, translation)
        path = self.file("images", entry, self.camera_names[camera])
        raw = read_picture(path, "picture")
        if raw.shape[:2] != self._full_size:
            raise InputError(
                f"The picture {path} is {raw.shape[1]} x {raw.shape[0]} pixels and the first of the capture "
                f"{self._full_size[1]} x {self._full_size[0]}: pictures of several sizes cannot be mixed."
            )
        straight, inside = undistort_image(shrink(raw, self.image_size), self.lenses[camera], self._scale)
        texture, seen = read_texture(self.file(TEXTURES, entry, self.camera_names[camera]), self.texture_size)
        pinhole_camera = Camera(focal=jnp.asarray(focal), principal_point=jnp.asarray(centre))
        return View(
            image=to_linear(straight),
            mask=inside * coverage(vertices, self.topology.faces, pose, pinhole_camera, self.image_size),
            texture=texture,
            seen=seen,
            mean_texture=mean_texture,
            vertices=vertices,
            light=np.zeros((0, 3), np.float32),
            head=head,
            pose=pose,
            camera=pinhole_camera,
        )

    def __getstate__(self) -> dict[str, Any]:  # data loaders send it to their workers
        return {**self.__dict__, "_kept": {}}

    def _still(self, entry: int) -> tuple[np.ndarray, Pose, np.ndarray]:
        """(vertices, head to stage, mean texture): what does not depend on the camera; of the last 8 entries."""
        if entry not in self._kept:
            while len(self._kept) >= 8:
                self._kept.pop(next(iter(self._kept)))
            self._kept[entry] = self._read_still(entry)
        return self._kept[entry]

    def _read_still(self, entry: int) -> tuple[np.ndarray, Pose, np.ndarray]:
        mesh, transform = _mesh_files(self.folder, *self.frames[entry])
        matrix = read_transform(transform)
        head = Pose(
            rotation=jnp.asarray(self._turned @ matrix[:, :3], jnp.float32),
            translation=jnp.asarray(self._turned @ (matrix[:, 3] - self._middle), jnp.float32),
        )
        return read_vertices(mesh, self.topology.n_vertices), head, self._mean_texture(entry)

    def _mean_texture(self, entry: int) -> np.ndarray:
        average = self.file(TEXTURES, entry, "average")
        if average.is_file():
            return read_texture(average, self.texture_size)[0]
        return average_texture([self.file(TEXTURES, entry, n) for n in self.camera_names], self.texture_size)

    def file(self, kind: str, entry: int, camera: str) -> Path:
        """Where an entry's PNG is; kind: "images" or `TEXTURES`."""
        segment, frame = self.frames[entry]
        return self.folder / kind / segment / camera / f"{frame}.png"


def average_texture(paths: Sequence[Path], size: int) -> Float32[np.ndarray, "s s 3"]:
    """Mean of unwrapped textures over those that see each texel, linear, 0 where none does; one file at a time."""
    total, weight = np.zeros((size, size, 3), np.float32), np.zeros((size, size), np.float32)
    for path in paths:
        texture, seen = read_texture(path, size)
        total += texture * seen[..., None]
        weight += seen
    return np.where(weight[..., None] > 0, total / np.maximum(weight, 1e-6)[..., None], 0).astype(np.float32)


def coverage(
    vertices: Float32[np.ndarray, "v 3"], faces: np.ndarray, pose: Pose, camera: Camera, size: tuple[int, int]
) -> Float32[np.ndarray, "h w"]:
    """Share of each pixel that a mesh covers, to a quarter of a pixel at its outline: the capture's mask.

    vertices: metres, head frame. size: (height, width). Triangles with a corner behind the camera are left out.
    """
    from PIL import Image, ImageDraw

    fine = 4 if max(size) <= 1024 else 2
    points = vertices.astype(np.float64) @ np.asarray(pose.rotation, np.float64).T + np.asarray(pose.translation)
    ahead = np.all(points[faces, 2] > 0.01, axis=1)
    xy = points[:, :2] / np.maximum(points[:, 2:], 0.01) * np.asarray(camera.focal) + np.asarray(camera.principal_point)
    drawn = Image.new("L", (fine * size[1], fine * size[0]))
    pen = ImageDraw.Draw(drawn)
    for corners in (fine * xy[faces[ahead]] - 0.5).reshape(-1, 6).tolist():  # Pillow's pixels have whole-number centres
        pen.polygon(corners, fill=255)
    return np.asarray(drawn.resize(size[::-1], Image.Resampling.BOX), np.float32) / np.float32(255)


# -- what is there -----------------------------------------------------------------------------------------------------

_SOURCES = {"head pose": "tracked_mesh", "mesh": "tracked_mesh", "picture": "images", "texture": TEXTURES}


@dataclasses.dataclass(frozen=True)
class Missing:
    """What frames lack."""

    files: dict[str, tuple[str, ...]]
    """Kind ("head pose", "mesh", "picture", "texture") to paths below the person's folder."""
    frames: frozenset[tuple[str, str]]

    def error(self, folder: Path) -> InputError:
        """One sentence about it."""
        kind, paths = next(iter(self.files.items()))
        total, frames = sum(map(len, self.files.values())), len(self.frames)
        number = f"{total} files of {frames} frame{'s' * (frames > 1)} are" if total > 1 else "1 file of 1 frame is"
        return InputError(
            f"{number} missing from {folder}, the first is the {kind} {paths[0]}: download what is missing, choose "
            "other segments or cameras, or leave such frames out (incomplete='skip', or --skip-incomplete)."
        )


def missing_files(folder: Path, frames: Sequence[tuple[str, str]], cameras: Sequence[str]) -> Missing:
    """Which files of (segment, frame) pairs are not there, by one listing of each folder."""
    listed = functools.cache(lambda path: frozenset(os.listdir(path)) if path.is_dir() else frozenset())
    files: dict[str, list[str]] = {}
    broken = set()
    for segment, frame in frames:
        wanted = [("head pose", "", f"{frame}_transform.txt"), ("mesh", "", f"{frame}.bin")]
        wanted += [(kind, camera, f"{frame}.png") for camera in cameras for kind in ("picture", "texture")]
        for kind, camera, name in wanted:
            place = Path(_SOURCES[kind], segment, camera)
            if name not in listed(folder / place):
                files.setdefault(kind, []).append((place / name).as_posix())
                broken.add((segment, frame))
    return Missing({k: tuple(v) for k, v in files.items()}, frozenset(broken))


# -- choices and opening -----------------------------------------------------------------------------------------------


def save_choice(folder: Path | str, choice: Choice) -> Path:
    """Keep a choice beside a person's data, where `Multiface` finds it. Raises `InputError` if it does not fit."""
    Multiface(folder, choice=choice)
    with atomic_write(Path(folder) / CHOICE) as path:
        path.write_text(json.dumps({"format": "facejax-multiface", **dataclasses.asdict(choice)}, indent=1) + "\n")
    return Path(folder) / CHOICE


def read_choice(folder: Path | str) -> Choice:
    """The choice kept beside a person's data; the default where there is none. Raises `InputError`."""
    path = Path(folder) / CHOICE
    if not path.is_file():
        return Choice()
    try:
        held = json.loads(_text(path))
        known = {f.name for f in dataclasses.fields(Choice)}
        if not isinstance(held, dict) or held.pop("format", None) != "facejax-multiface" or held.keys() - known:
            raise ValueError("it is of another format")
        values: dict[str, Any] = {k: tuple(map(str, v)) if isinstance(v, list) else v for k, v in held.items()}
        kinds = {"texture_size": int, "image_scale": float | int | None, "cameras": tuple | int | None}
        wrong = [k for k, v in values.items() if not isinstance(v, kinds.get(k, tuple | str | None))]
        if wrong:
            raise ValueError(f"{wrong[0]} is {values[wrong[0]]!r}")
        return Choice(**values)
    except ValueError as error:
        raise InputError(f"{path} cannot be used ({error}): delete it, or save the choice again.") from error


def open_capture(folder: Path | str, texture_size: int | None = None) -> Capture:
    """The capture in a folder, whichever layout it has: facejax's own, or one person of Multiface.

    texture_size: at which Multiface's textures are read; None: as the choice kept with them says. `InputError` where
    there is no capture, or one with parts missing.
    """
    folder = Path(folder)
    return Multiface(folder, texture_size=texture_size) if (folder / "KRT").is_file() else LightStage(folder)


# -- helpers -----------------------------------------------------------------------------------------------------------


def _chosen_frames(
    folder: Path, frames: list[tuple[str, str]], segments: Sequence[str] | None
) -> list[tuple[str, str]]:
    listed = dict.fromkeys(s for s, _ in frames)
    unknown = [s for s in segments or () if s not in listed]
    if unknown:
        raise InputError(
            f"{folder / 'frame_list.txt'} names no segment {unknown[0]!r}, which was chosen: see its names."
        )
    chosen = set(listed if segments is None else segments)
    absent = [s for s in listed if s in chosen and not (folder / "tracked_mesh" / s).is_dir()]
    if absent:
        raise InputError(
            f"{len(absent)} of {len(chosen)} segments that frame_list.txt names are not in {folder}, the first is "
            f"{absent[0]}: download their tracked_mesh, images and {TEXTURES}, or choose the segments that are there."
        )
    if not chosen:
        raise InputError("`segments` names none: choose at least one, or None for all.")
    return [f for f in frames if f[0] in chosen]


def pictured_cameras(folder: Path, segments: Sequence[str], lenses: dict[str, LensCamera]) -> list[str]:
    """Cameras of KRT that have a folder of pictures of one of the segments: KRT may calibrate more.

    Raises `InputError` where a camera has pictures and no calibration, or none has pictures.
    """
    found: set[str] = set()
    for place in (folder / "images" / s for s in dict.fromkeys(segments)):
        found |= {f.name for f in place.iterdir() if f.is_dir()} if place.is_dir() else set()
    unknown = sorted(found - lenses.keys())
    if unknown:
        raise InputError(
            f"Camera {unknown[0]} took pictures, and {folder / 'KRT'} does not calibrate it: get the person's "
            "metadata.tar again."
        )
    if not found:
        raise InputError(f"{folder / 'images'} has no pictures of the chosen segments: download their images.")
    return [name for name in lenses if name in found]


def choose_cameras(
    lenses: dict[str, LensCamera],
    pictured: Sequence[str],
    cameras: Sequence[str] | int | None,
    frontal: str | None,
    folder: Path,
) -> tuple[str, ...]:
    """Names, in the order of KRT unless given by name; pictured: those that took pictures.

    A number takes the frontal camera, where it took pictures, then always the one farthest from those taken.
    """
    if cameras is None:
        return tuple(pictured)
    if isinstance(cameras, int):
        if not 1 <= cameras <= len(pictured):
            raise InputError(f"{len(pictured)} cameras in {folder} took pictures, so {cameras} cannot be chosen.")
        places = np.stack([lenses[n].centre for n in pictured])
        taken = [pictured.index(frontal) if frontal in pictured else 0]
        while len(taken) < cameras:
            away = np.linalg.norm(places[:, None] - places[taken], axis=-1).min(axis=1)
            taken.append(int(np.argmax(away)))
        return tuple(pictured[i] for i in sorted(taken))
    unknown = [n for n in cameras if n not in lenses]
    if unknown or not cameras:
        raise InputError(
            f"{folder / 'KRT'} calibrates no camera {unknown[0] if unknown else ''!r}: choose among its {len(lenses)}, "
            f"{', '.join([*lenses][:3])}{', ...' * (len(lenses) > 3)}."
        )
    return tuple(cameras)


def _stage(lenses: dict[str, LensCamera], head: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """(rotation from world to stage, the stage's origin in the world, name of the frontal camera).

    The frontal camera, of all in KRT, looks most against the head's +z; the origin is the point nearest to all optical
    axes, or the head where they do not meet.
    """
    axes = np.stack([c.rotation[2] for c in lenses.values()])
    frontal = list(lenses)[int(np.argmin(axes @ head[:, 2]))]
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    total = across.sum(axis=0)
    middle = head[:, 3].copy()
    if np.linalg.eigvalsh(total)[0] > 1e-3 * len(axes):
        places = np.stack([c.centre for c in lenses.values()])
        middle = np.linalg.solve(total, np.einsum("cij,cj->i", across, places))
    return lenses[frontal].rotation, middle, frontal


def _mesh_files(folder: Path, segment: str, frame: str) -> tuple[Path, Path]:
    place = folder / "tracked_mesh" / segment
    return place / f"{frame}.bin", place / f"{frame}_transform.txt"


def _any_obj(folder: Path, frames: Sequence[tuple[str, str]]) -> Path:
    for segment in dict.fromkeys(s for s, _ in frames):
        found = sorted((folder / "tracked_mesh" / segment).glob("*.obj"))
        if found:
            return found[0]
    raise InputError(
        f"{folder / 'tracked_mesh'} holds no .obj with triangles and texture coordinates: unpack a segment whole, or "
        "give another person's with `topology` (all share one)."
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({error}): get it again.") from error


def _row(path: Path, number: int, words: Sequence[str], count: int) -> np.ndarray:
    try:
        row = np.array([float(word) for word in words])
    except ValueError:
        row = np.array([])
    if len(row) != count or not np.isfinite(row).all():
        raise InputError(
            f"{path}, line {number}, must be {count} finite number{'s' * (count > 1)}, not {' '.join(words)[:80]!r}: "
            "the file is damaged or of another layout, get it again."
        )
    return row


def _check_rotation(matrix: np.ndarray, path: Path, whose: str) -> None:
    if not (np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-2) and np.linalg.det(matrix) > 0):
        raise InputError(f"{path}: the rotation of {whose} is none: the file is damaged or of another layout.")


def _safe(name: str, path: Path, what: str) -> str:
    """A name from a file that becomes a part of a path."""
    if not _NAME.fullmatch(name):
        raise InputError(f"{path} names {what} {name[:80]!r}, which is no plain file name: it was refused.")
    return name
