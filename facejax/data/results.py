"""The record of a tracked clip, and the folder it lives in: `track.npz` and `metrics.json`."""

import dataclasses
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from facejax.data.files import atomic_write
from facejax.geometry.arrays import open_npz
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import Topology
from facejax.geometry.records import Camera, Face, Pose
from facejax.models.morphable import Expression, Identity, MorphableHead

FORMAT_VERSION = 1
"""Of `track.npz`; it grows when an older reader would misread the file."""

RESULT_FILES = ("track.npz", "metrics.json", "overlay.mp4", "preview.png", "head.glb", "renders")
"""Names that a result folder holds, for `facejax.data.files.atomic_folder`: the first tells a folder as ours."""

MAX_FRAMES_WITH_VERTICES = 5000
"""Longer clips do not store `vertices`: they are derived from the parameters."""

PART_NAMES = ("skin", "left_eye", "right_eye", "teeth", "gums", "eye_sockets")
"""What `TrackResult.parts` counts; left and right are the subject's."""

_CHUNK = 64  # frames of vertices in memory at a time while they are derived
_MAP_BYTES = 1 << 24  # arrays above 16 MiB are mapped from the file, not read


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """A fit in the head's own terms: what `facejax.models.head.HeadModel.decode` takes."""

    params: Any
    shared: Any
    frames: Any
    """Codes with a leading axis of frames."""
    light: Any
    """Of each frame, (f, b, 3)."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TrackResult:
    """A tracked clip as plain numpy arrays: what `track.npz` holds, under the same names.

    Metres, radians, seconds. Head frame: +x to the subject's left, +y up, +z out of the face. Camera frame: OpenCV (+x
    right, +y down, +z forward). Letters: f frames, v vertices, t triangles, u texture coordinates, i identity modes,
    k skin modes, e expressions, j joints, b light coefficients (bands squared), h and w texture size.

    `ValueError` where shapes or indices do not fit together.
    """

    model_name: str
    """The head model's name, as `load_model` takes it."""
    model_sha256: str
    """Of the model's data."""
    faces: Int32[np.ndarray, "t 3"]
    """Vertex ids of triangles, counter-clockwise seen from outside."""
    uv: Float32[np.ndarray, "u 2"]
    """Texture coordinates, (0, 0) at the bottom left."""
    uv_faces: Int32[np.ndarray, "t 3"]
    """Ids into `uv` of the triangles' corners."""
    parts: Int32[np.ndarray, "v"]
    """Which of `part_names` each vertex belongs to."""
    part_names: tuple[str, ...]
    neutral: Float32[np.ndarray, "v 3"]
    """The person without expression, head frame, metres."""
    landmarks68_neutral: Float32[np.ndarray, "68 3"]
    """iBUG-68 points on `neutral`, metres."""
    identity: Float32[np.ndarray, "i"]
    """Identity coefficients, standard deviations."""
    skin: Float32[np.ndarray, "k"]
    """Skin colour coefficients, standard deviations."""
    scale: Float32[np.ndarray, ""]
    """Factor on the model's own lengths: 1, or what a known interpupillary distance made of it."""
    albedo: Float32[np.ndarray, "v 3"]
    """Diffuse reflectance, linear, in [0, 1]."""
    texture: Float32[np.ndarray, "h w 3"]
    """Factor per texel on `albedo`, linear; row 0 is the top of the UV square (v = 1)."""
    specular: Float32[np.ndarray, "v"]
    """Fresnel reflectance at normal incidence."""
    roughness: Float32[np.ndarray, "v"]
    """Width alpha of the specular lobe, the square of what editors call roughness."""
    expression: Float32[np.ndarray, "f e"]
    """FULL activations, what lids and gaze add included: neutral + expression @ basis, then the eyeballs turn."""
    expression_names: tuple[str, ...]
    gaze: Float32[np.ndarray, "f 2 2"]
    """(yaw, pitch) in rad of the subject's (left, right) eye in the head frame; + is to the subject's left, and up."""
    eyelids: Float32[np.ndarray, "f 2"]
    """Closure of the subject's (left, right) lids: the part of `eyeBlink...` that the lids themselves were given."""
    joint_rotation: Float32[np.ndarray, "f j 3 3"]
    """Rotations of joints against their parents; j is 0 for models without joints."""
    joint_names: tuple[str, ...]
    rotation: Float32[np.ndarray, "f 3 3"]
    """Head to camera: x_camera = rotation @ x_head + translation."""
    translation: Float32[np.ndarray, "f 3"]
    """Metres, camera frame."""
    light: Float32[np.ndarray, "f b 3"]
    """Spherical harmonics of the incoming radiance, camera frame; orthonormal, index l*l + l + m."""
    intrinsics: Float32[np.ndarray, "3 3"]
    """Camera matrix in pixels of the input video; the centre of the top-left pixel is (0.5, 0.5)."""
    image_size: Int32[np.ndarray, "2"]
    """[width, height] of the input video."""
    time: Float32[np.ndarray, "f"]
    """Seconds since the start of the input video."""
    frame_ids: Int32[np.ndarray, "f"]
    """Number of each frame in the input video, from 0."""
    landmarks: Float32[np.ndarray, "f 478 2"]
    """MediaPipe's points on the tracked head, projected into the input video, pixels."""
    landmarks_target: Float32[np.ndarray, "f 478 2"]
    """The same as observed, pixels; NaN where nothing was."""
    valid: Bool[np.ndarray, "f"]
    """False where tracking failed: the frame's numbers are then a bridge between its neighbours."""
    status: Int32[np.ndarray, "f"]
    """How each frame ended, as an index into `status_names`."""
    status_names: tuple[str, ...]
    stored_vertices: Float32[np.ndarray, "f v 3"] | None = None
    """`vertices` as the file has them; None: derived when asked for."""
    metrics: dict[str, Any] | None = None
    """What `metrics.json` says."""
    head: MorphableHead | None = dataclasses.field(default=None, repr=False)
    fitted: Fitted | None = dataclasses.field(default=None, repr=False)
    """The same in the terms of the head that was fitted; not in the file."""
    """The model, where it is at hand; else `load_model(model_name)` is asked, and only when something needs it."""

    def __post_init__(self) -> None:
        checked = _check_fields({name: getattr(self, name) for name in _FIELDS}, "")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.time)

    @cached_property
    def vertices(self) -> Float32[np.ndarray, "f v 3"]:
        """All frames' vertices in the camera frame, metres. For long clips `vertices_at` needs less memory."""
        return self.vertices_at(slice(None))

    def vertices_at(self, frames: int | slice | np.ndarray) -> Float32[np.ndarray, "*n v 3"]:
        """Vertices in the camera frame, metres, of one frame (v, 3) or several (n, v, 3)."""
        if self.stored_vertices is not None:
            return np.asarray(self.stored_vertices[frames])
        return self._derive(frames, in_camera=True)

    def head_vertices_at(self, frames: int | slice | np.ndarray) -> Float32[np.ndarray, "*n v 3"]:
        """As `vertices_at`, in the head frame."""
        if self.stored_vertices is None:
            return self._derive(frames, in_camera=False)
        return (self.vertices_at(frames) - self.translation[frames][..., None, :]) @ self.rotation[frames]

    def _derive(self, frames: int | slice | np.ndarray, in_camera: bool) -> np.ndarray:
        ids = np.arange(len(self))[frames]
        pick = np.atleast_1d(ids)
        rotation, translation = (self.rotation[pick], self.translation[pick]) if in_camera else (None, None)
        result = derive_vertices(
            self.load_head(), self.neutral, self.identity, self.expression[pick], self.gaze[pick], rotation, translation
        )
        return result[0] if ids.ndim == 0 else result

    def load_head(self) -> MorphableHead:
        """The head model that the result was made with, at the result's scale; `InputError` if it is not installed or
        has changed since."""
        if self.head is not None:
            return self.head
        from facejax.data.load import load_model

        head = load_model(self.model_name)
        if head.sha256 != self.model_sha256:
            raise InputError(
                f"The result was made with {self.model_name} of sha256 {self.model_sha256[:12]}..., but the installed "
                f"one is {head.sha256[:12]}...: install that version, or track the clip again."
            )
        head = head if self.scale == 1 else head.scaled(float(self.scale))
        object.__setattr__(self, "head", head)
        return head

    @cached_property
    def topology(self) -> Topology:
        """Connectivity and texture coordinates; one object each time, so what is compiled for it is found again."""
        return Topology(faces=self.faces, uv=self.uv, uv_faces=self.uv_faces, n_vertices=len(self.neutral))

    @property
    def camera(self) -> Camera:
        """The input video's camera."""
        k = self.intrinsics
        return Camera(focal=jnp.array([k[0, 0], k[1, 1]]), principal_point=jnp.array([k[0, 2], k[1, 2]]))

    @property
    def frame_seconds(self) -> float:
        """Median time between frames; that of 25 a second where there is one frame only."""
        return float(np.median(np.diff(self.time))) if len(self) > 1 else 0.04

    def pose(self, frame: int) -> Pose:
        """Where the head is in one frame."""
        return Pose(rotation=jnp.asarray(self.rotation[frame]), translation=jnp.asarray(self.translation[frame]))

    def face(self, frame: int) -> Face:
        """What `render` draws in one frame: geometry in the head frame, and appearance."""
        return Face(
            vertices=jnp.asarray(self.head_vertices_at(frame)),
            albedo=jnp.asarray(self.albedo),
            texture=jnp.asarray(self.texture),
            specular=jnp.asarray(self.specular),
            roughness=jnp.asarray(self.roughness),
        )

    def identity_code(self) -> Identity:
        """The person as fitting takes it: to hold shape, skin and texture in another clip."""
        return Identity(
            shape=jnp.asarray(self.identity), skin=jnp.asarray(self.skin), texture=jnp.asarray(self.texture)
        )

    def frame_codes(self) -> Expression:
        """All frames' expressions as fitting takes them (leading axis f): without what lids and gaze add."""
        head = self.load_head()
        gaze, eyelids = jnp.asarray(self.gaze), jnp.asarray(self.eyelids)

        def without_added(full: Array, gaze: Array, eyelids: Array) -> Expression:
            rest = Expression(activations=jnp.zeros_like(full), gaze=gaze, eyelids=eyelids)
            return Expression(activations=full - head.full_activations(rest), gaze=gaze, eyelids=eyelids)

        return jax.vmap(without_added)(jnp.asarray(self.expression), gaze, eyelids)

    def save(self, folder: Path | str) -> None:
        """Write `track.npz`, and `metrics.json` if there are metrics, into `folder`, each whole or not at all.

        The folder is made if missing. Clips over `MAX_FRAMES_WITH_VERTICES` frames are stored without `vertices`.
        Raises `InputError` for a full disk or a folder that cannot be written.
        """
        folder = Path(folder)
        arrays: dict[str, Any] = {"format_version": np.int32(FORMAT_VERSION)}
        for name in _FIELDS:
            value = getattr(self, name)
            arrays[name] = np.array(value, dtype=np.str_) if isinstance(value, (str, tuple)) else value
        with_vertices = len(self) <= MAX_FRAMES_WITH_VERTICES
        with atomic_write(folder / "track.npz") as path:
            _write_npz(path, arrays, {"vertices": self._vertices_in_chunks} if with_vertices else {})
        if self.metrics is not None:
            save_metrics(folder, self.metrics)

    def _vertices_in_chunks(self) -> tuple[tuple[int, ...], Iterator[np.ndarray]]:
        starts = range(0, len(self), _CHUNK)
        return (len(self), *self.neutral.shape), (self.vertices_at(slice(s, s + _CHUNK)) for s in starts)

    @classmethod
    def load(cls, folder: Path | str) -> "TrackResult":
        """Read a result folder (or its `track.npz`); arrays above 16 MiB stay in the file until they are used.

        Raises `InputError`, naming file and field, if there is no result, or it is truncated, incomplete, written by a
        newer facejax, or does not fit together.
        """
        path = Path(folder).expanduser()
        path = path / "track.npz" if path.is_dir() else path
        if not path.is_file():
            raise InputError(f"No result at {path}: expected the folder that `facejax track --out` wrote.")
        arrays = _read_npz(path)
        version = arrays.get("format_version")
        if version is None or version.shape != () or not np.issubdtype(version.dtype, np.integer):
            raise InputError(
                f"{path} has no `format_version`, so it is not a result of facejax: give a result's folder."
            )
        if int(version) > FORMAT_VERSION:
            raise InputError(
                f"{path} has format version {int(version)}, this facejax reads up to {FORMAT_VERSION}: "
                "run `pip install --upgrade facejax`."
            )
        missing = [name for name in _FIELDS if name not in arrays]
        if missing:
            raise InputError(f"{path} lacks `{missing[0]}`: the file is incomplete, track the clip again.")
        try:
            fields = _check_fields({name: arrays[name] for name in _FIELDS}, f"{path}: ")
            stored = arrays.get("vertices")
            if stored is not None:
                want = (len(fields["time"]), *fields["neutral"].shape)
                if stored.shape != want or stored.dtype != np.float32:
                    raise ValueError(f"{path}: `vertices` must be float32 {want}, got {stored.dtype} {stored.shape}.")
        except ValueError as error:
            raise InputError(f"{error} The file is damaged: track the clip again.") from error
        return cls(**fields, stored_vertices=stored, metrics=load_metrics(path.parent))


def _array_fields() -> dict[str, Any]:
    apart = ("stored_vertices", "metrics", "head", "fitted")
    return {f.name: f.type for f in dataclasses.fields(TrackResult) if f.name not in apart}


_FIELDS = _array_fields()  # name -> type: the annotations are the layout of the file


def _check_fields(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values as the annotations of `TrackResult` want them; `ValueError`, starting with `where`, if they do not fit."""
    sizes: dict[str, int] = {}
    checked: dict[str, Any] = {}
    for name, kind in _FIELDS.items():
        value = values[name]
        if kind is str or not hasattr(kind, "dim_str"):
            checked[name] = _text(value, many=kind is not str, label=f"{where}`{name}`")
            continue
        value = np.asanyarray(value)
        want = np.dtype(kind.dtypes[0])
        families = {"f": "f", "i": "iu", "b": "b"}[want.kind]
        if value.dtype.kind not in families:
            raise ValueError(f"{where}`{name}` must hold {want.name}, got {value.dtype}.")
        dims = kind.dim_str.split()
        bound = tuple(int(d) if d.isdigit() else sizes.get(d) for d in dims)
        if len(dims) != value.ndim or any(b is not None and b != n for b, n in zip(bound, value.shape, strict=True)):
            told = ", ".join(str(d if b is None else b) for d, b in zip(dims, bound, strict=True))
            raise ValueError(f"{where}`{name}` must have shape ({told}), got {value.shape}.")
        sizes.update({d: n for d, n in zip(dims, value.shape, strict=True) if not d.isdigit()})
        checked[name] = value if value.dtype == want else value.astype(want)
    for names, count in (("expression_names", "e"), ("joint_names", "j")):
        if len(checked[names]) != sizes[count]:
            raise ValueError(f"{where}`{names}` must have {sizes[count]} entries, got {len(checked[names])}.")
    if math.isqrt(sizes["b"]) ** 2 != sizes["b"]:
        raise ValueError(f"{where}`light` must have bands squared coefficients (1, 4, 9, ...), got {sizes['b']}.")
    for name, limit in (
        ("faces", sizes["v"]),
        ("uv_faces", sizes["u"]),
        ("parts", len(checked["part_names"])),
        ("status", len(checked["status_names"])),
    ):
        ids = checked[name]
        if ids.size and (ids.min() < 0 or ids.max() >= limit):
            raise ValueError(f"{where}`{name}` must lie in 0..{limit - 1}, got {ids.min()}..{ids.max()}.")
    return checked


def _text(value: Any, many: bool, label: str) -> str | tuple[str, ...]:
    array = np.asarray(value, dtype=np.str_) if isinstance(value, (str, tuple, list)) else np.asarray(value)
    if array.dtype.kind != "U" or array.ndim != int(many):
        raise ValueError(
            f"{label} must be {'a list of names' if many else 'one name'}, got {array.dtype} {array.shape}."
        )
    return tuple(str(s) for s in array) if many else str(array)


def _write_npz(
    path: Path,
    arrays: Mapping[str, Any],
    streams: Mapping[str, Callable[[], tuple[tuple[int, ...], Iterator[np.ndarray]]]],
) -> None:
    """An uncompressed npz; `streams` give (shape, float32 chunks along axis 0) of arrays too large for memory."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, value in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(value), allow_pickle=False)
        for name, stream in streams.items():
            shape, chunks = stream()
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for chunk in chunks:
                    member.write(np.ascontiguousarray(chunk, dtype="<f4").tobytes())


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz; the large ones mapped from the file if they are not compressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            mapped = {
                info.filename.removesuffix(".npy"): _map_member(path, info)
                for info in archive.infolist()
                if info.file_size > _MAP_BYTES and info.compress_type == zipfile.ZIP_STORED
            }
        with open_npz(path) as file:
            return {name: mapped[name] if name in mapped else file[name] for name in file.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, struct.error, NotImplementedError) as error:
        raise InputError(f"{path} cannot be read as a result ({error}): it is truncated or not an npz file.") from error


def _map_member(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        local = file.read(30)
        name_length, extra_length = struct.unpack("<HH", local[26:30])  # they may differ from the central directory's
        file.seek(name_length + extra_length, 1)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject or file.tell() + dtype.itemsize * math.prod(shape) > path.stat().st_size:
            raise ValueError(f"`{info.filename}` does not fit the file")
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def save_metrics(folder: Path | str, metrics: Mapping[str, Any]) -> None:
    """`metrics.json`: numbers by name, nested as they come; what is not finite becomes null, as JSON has no NaN."""
    with atomic_write(Path(folder) / "metrics.json") as path:
        path.write_text(json.dumps(_plain(metrics), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def load_metrics(folder: Path | str) -> dict[str, Any] | None:
    """The other way; None if there is no such file."""
    path = Path(folder) / "metrics.json"
    if not path.is_file():
        return None
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): remove it or track the clip again.") from error
    if not isinstance(metrics, dict):
        raise InputError(f"{path} must hold one JSON object, got {type(metrics).__name__}: remove it.")
    return metrics


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (np.ndarray, jax.Array)):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def derive_vertices(
    head: MorphableHead,
    neutral: Float[np.ndarray, "v 3"],
    identity: Float[np.ndarray, "i"],
    expression: Float[np.ndarray, "f e"],
    gaze: Float[np.ndarray, "f 2 2"],
    rotation: Float[np.ndarray, "f 3 3"] | None = None,
    translation: Float[np.ndarray, "f 3"] | None = None,
) -> Float32[np.ndarray, "f v 3"]:
    """Vertices from stored parameters, metres: head frame, or camera frame where rotation and translation are given.

    expression: FULL activations. The same as `MorphableHead.vertices`, for many frames, in numpy.
    """
    n_frames, n_vertices = len(expression), len(neutral)
    basis = np.asarray(head.params.expression_basis).reshape(-1, n_vertices * 3)
    weight = np.asarray(head.params.eye_weight)
    pivots = eye_pivots(head, identity)
    result = (expression @ basis).reshape(n_frames, n_vertices, 3)
    result += neutral
    turns = _gaze_matrices(gaze)
    for side in range(2):
        ids = np.flatnonzero(weight[:, side])
        moved = np.einsum("fij,fvj->fvi", turns[:, side] - np.eye(3, dtype=np.float32), result[:, ids] - pivots[side])
        result[:, ids] += weight[ids, side, None] * moved
    if rotation is not None:
        for k in range(n_frames):  # frame by frame: no second array of that size
            result[k] = result[k] @ rotation[k].T
    if translation is not None:
        result += translation[:, None]
    return result


def eye_pivots(head: MorphableHead, identity: Float[np.ndarray, "i"]) -> Float32[np.ndarray, "2 3"]:
    """Centres of rotation of a person's (left, right) eyeball, head frame, metres."""
    p = head.params
    return np.asarray(p.eye_pivot) + np.tensordot(np.asarray(identity, np.float32), np.asarray(p.eye_pivot_basis), 1)


def _gaze_matrices(gaze: np.ndarray) -> np.ndarray:
    """`gaze_to_matrix` for (f, 2, 2) at once: (f, 2, 3, 3)."""
    (sy, cy), (sp, cp) = ((np.sin(gaze[..., i]), np.cos(gaze[..., i])) for i in range(2))
    zero = np.zeros_like(sy)
    rows = [cy, -sy * sp, sy * cp, zero, cp, sp, -sy, -cy * sp, cy * cp]
    return np.stack(rows, axis=-1).reshape(*gaze.shape[:-1], 3, 3)


def parts_of(head: MorphableHead) -> Int32[np.ndarray, "v"]:
    """Which of `PART_NAMES` each vertex belongs to: an eyeball if it turns with one, else its region, else skin."""
    parts = np.zeros(head.topology.n_vertices, dtype=np.int32)
    for name in ("eye_sockets", "gums", "teeth"):
        if name in head.regions:
            parts[np.asarray(head.regions[name]) > 0.5] = PART_NAMES.index(name)
    weight = np.asarray(head.params.eye_weight)
    for side, name in enumerate(("left_eye", "right_eye")):
        parts[weight[:, side] > 0.5] = PART_NAMES.index(name)
    return parts


def assemble(
    head: MorphableHead,
    *,
    shared: Identity,
    frames: Expression,
    poses: Pose,
    light: Float[Array | np.ndarray, "f b 3"],
    camera: Camera,
    image_size: tuple[int, int],
    time: Float[Array | np.ndarray, "f"],
    frame_ids: Int[Array | np.ndarray, "f"],
    landmarks_target: Float[Array | np.ndarray, "f 478 2"],
    valid: Bool[Array | np.ndarray, "f"],
    status: Int[Array | np.ndarray, "f"],
    status_names: tuple[str, ...],
    scale: float = 1.0,
    metrics: dict[str, Any] | None = None,
) -> TrackResult:
    """The result of a fit from its codes: `frames`, `poses` and `light` with a leading axis of frames.

    head: at the scale of the poses; `scale` says what its own lengths were multiplied by to get there.

    camera: of the input video, in its pixels. image_size: (width, height). Vertices are derived when they are needed.
    """
    get = np.asarray
    focal, centre = get(camera.focal), get(camera.principal_point)
    intrinsics = np.array([[focal[0], 0, centre[0]], [0, focal[1], centre[1]], [0, 0, 1]], dtype=np.float32)
    expression = get(jax.vmap(head.full_activations)(frames))
    neutral = get(head.neutral(head.params, shared))
    rotation, translation, identity, gaze = map(get, (poses.rotation, poses.translation, shared.shape, frames.gaze))
    points = head.landmarks478
    landmarks = np.empty((len(expression), len(points.triangles), 2), dtype=np.float32)
    for start in range(0, len(expression), _CHUNK):
        s = slice(start, start + _CHUNK)
        v = derive_vertices(head, neutral, identity, expression[s], gaze[s], rotation[s], translation[s])
        x = np.einsum("fnij,ni->fnj", v[:, points.triangles], points.weights)
        landmarks[s] = x[..., :2] / np.maximum(x[..., 2:], 1e-3) * focal + centre
    fields = {
        "model_name": head.name,
        "model_sha256": head.sha256,
        "faces": head.topology.faces,
        "uv": head.topology.uv,
        "uv_faces": head.topology.uv_faces,
        "parts": parts_of(head),
        "part_names": PART_NAMES,
        "neutral": neutral,
        "landmarks68_neutral": get(head.landmarks68.on(jnp.asarray(neutral))),
        "identity": identity,
        "skin": get(shared.skin),
        "albedo": get(head.albedo(head.params, shared)),
        "texture": get(shared.texture),
        "specular": get(head.params.specular),
        "roughness": get(head.params.roughness),
        "expression": expression,
        "expression_names": head.expression_names,
        "gaze": gaze,
        "eyelids": get(frames.eyelids),
        "joint_rotation": np.zeros((len(expression), 0, 3, 3), dtype=np.float32),
        "joint_names": (),
        "rotation": rotation,
        "translation": translation,
        "light": get(light),
        "intrinsics": intrinsics,
        "image_size": np.array(image_size, dtype=np.int32),
        "time": get(time),
        "frame_ids": get(frame_ids),
        "landmarks": landmarks,
        "landmarks_target": get(landmarks_target),
        "valid": get(valid),
        "status": get(status),
        "status_names": status_names,
        "scale": np.asarray(scale, np.float32),
    }
    return TrackResult(**_check_fields(fields, ""), metrics=metrics, head=head)
