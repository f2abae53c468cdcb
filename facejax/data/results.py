"""The record of a tracked clip, and the folder it lives in: `track.npz` and `metrics.json`."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from facejax.data.codes import (
    AT_ONCE,
    CLIP_CODE,
    FRAME_CODE,
    decoded_vertices,
    flatten_code,
    unflatten_code,
)
from facejax.data.files import atomic_write
from facejax.data.heads.avatar import AVATAR
from facejax.data.meshes import write_mesh
from facejax.data.npz import read_npz, write_npz
from facejax.geometry.cameras import camera_matrix, project
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import Topology
from facejax.geometry.records import Camera, Face, Pose, PyTree
from facejax.models.avatar import Avatar
from facejax.models.head import HeadModel
from facejax.models.morphable import Expression, Identity, MorphableHead, full_activations
from facejax.scenes.unknowns import over_frames, take_frames

FORMAT_VERSION = 2
"""Of `track.npz`; it grows when an older reader would misread the file, or miss what it needs.

1 had the morphable description alone; 2 adds the head's own codes (`code.clip...`, `code.frame...`), where the head was
loaded from (`head_source`), the light in the rows of the head's own lighting (`light_code`, `light_model`), and a
camera and size for each frame (`frame_intrinsics`, `frame_size`)."""

RESULT_FILES = ("track.npz", "metrics.json", "overlay.mp4", "preview.png", "head.glb", "renders")
"""Names that a result folder holds, for `facejax.data.files.atomic_folder`: the first tells a folder as ours."""

MAX_FRAMES_WITH_VERTICES = 5000
"""Longer clips do not store `vertices`: they are derived from the parameters."""

PART_NAMES = ("skin", "left_eye", "right_eye", "teeth", "gums", "eye_sockets")
"""What `TrackResult.parts` counts; left and right are the subject's."""

_CHUNK = 64  # frames of vertices in memory at a time while they are written


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TrackResult:
    """A tracked clip as plain numpy arrays: what `track.npz` holds, under the same names.

    The head's own codes are kept beside a description as a morphable head, which readers without facejax understand and
    from which pictures and GLB files are made: for an avatar, the decoder's mesh features as expressions.

    Metres, radians, seconds. Head frame: +x to the subject's left, +y up, +z out of the face. Camera frame: OpenCV (+x
    right, +y down, +z forward). Letters: f frames, v vertices, t triangles, u texture coordinates, i identity modes,
    k skin modes, e expressions, j joints, b light coefficients (bands squared), r rows of the head's own lighting, h
    and w texture size.

    `ValueError` where shapes or indices do not fit together.
    """

    model_name: str
    """The head model's name."""
    model_sha256: str
    """Of the model's data."""
    head_source: str
    """The name or absolute path that `load_head` loaded it from."""
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
    light_code: Float32[np.ndarray, "f r 3"]
    """Light as the head's own lighting takes it: the same harmonics, or a colour for each group of lights."""
    light_model: str
    """Which way of lighting that is, as `FitConfig.light_model` says it; empty for harmonics on a tracked surface."""
    intrinsics: Float32[np.ndarray, "3 3"]
    """Camera matrix of the first frame, in pixels of the input; the centre of the top-left pixel is (0.5, 0.5)."""
    image_size: Int32[np.ndarray, "2"]
    """[width, height] of the first frame of the input."""
    frame_intrinsics: Float32[np.ndarray, "f 3 3"]
    """As `intrinsics`, of each frame: photographs may each have a camera of their own."""
    frame_size: Int32[np.ndarray, "f 2"]
    """As `image_size`, of each frame."""
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
    head: HeadModel | None = dataclasses.field(default=None, repr=False)
    """The head at the result's scale, where it is at hand; else `load_head` finds it, and only when it is needed."""
    params: PyTree = dataclasses.field(default=None, repr=False)
    """The head's parameters as fitted, where it is at hand: an avatar's networks adapt to a clip."""
    codes: Mapping[str, np.ndarray] | None = dataclasses.field(default=None, repr=False)
    """Arrays of the head's own codes by their names in the file: `code.clip.` or `code.frame.`, and the path in the
    code. Those of frames have a leading axis of frames. None in files of format 1."""
    folder: Path | None = None
    """Where the result was loaded from."""

    def __post_init__(self) -> None:
        checked = _check_fields({name: getattr(self, name) for name in _FIELDS}, "")
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        _check_codes(self.codes, len(self), "")

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
        pose = (self.rotation[pick], self.translation[pick]) if in_camera else None
        result = decoded_vertices(
            self.load_head(), self.load_params(), self._codes[0], take_frames(self._codes[1], pick), len(pick), pose
        )
        return result[0] if ids.ndim == 0 else result

    def load_head(self) -> HeadModel:
        """The head that the result was made with, as it was before the fit, at the result's scale.

        It is the one in memory, else an avatar kept beside the track, else what `facejax.data.heads.load_head` finds
        where the head came from, or under its name. `InputError` if it is gone or has changed since.
        """
        if self.head is None:
            object.__setattr__(self, "head", self._at_scale(self._find_head()))
        assert self.head is not None
        return self.head

    def with_head(self, head: HeadModel) -> "TrackResult":
        """The same result with its head at hand. head: at its own scale. `InputError` if it is another one."""
        return dataclasses.replace(self, head=self._at_scale(head))

    def _at_scale(self, head: HeadModel) -> HeadModel:
        if head.sha256 != self.model_sha256:
            raise self._another(head, "this one")
        if head.topology.n_vertices != len(self.neutral):
            raise InputError(
                f"The result's mesh has {len(self.neutral)} vertices, and that of {head.name!r} has "
                f"{head.topology.n_vertices}: load the head with the parts it was tracked with, and give it to "
                "`with_head`."
            )
        return head if self.scale == 1 else head.scaled(float(self.scale))

    def _find_head(self) -> HeadModel:
        from facejax.data.heads import load_head

        adapted = self._adapted
        if adapted is not None and adapted.avatar.sha256 == self.model_sha256:
            return adapted.avatar
        for place in dict.fromkeys((self.head_source, self.model_name)):
            try:
                head = load_head(place)
            except InputError as error:
                refused = error
                continue
            if head.sha256 == self.model_sha256:
                return head
            refused = self._another(head, f"the one at {place}" if Path(place).is_absolute() else "the installed one")
            break
        if Path(self.head_source).is_absolute() and not Path(self.head_source).exists():
            raise InputError(
                f"The result was made with the head {self.model_name!r}, which was at {self.head_source} and is there "
                "no longer: put it back, or track the clip again."
            ) from refused
        raise refused

    def _another(self, head: HeadModel, which: str) -> InputError:
        return InputError(
            f"The result was made with {self.model_name} of sha256 {self.model_sha256[:12]}..., but {which} is "
            f"{head.sha256[:12]}...: install that version, or track the clip again."
        )

    @cached_property
    def _adapted(self) -> Any:
        """The avatar kept beside the track, see `facejax.data.avatars.Adapted`; None where there is none."""
        from facejax.data.avatars import load_adapted

        if self.folder is None or not (self.folder / AVATAR).is_file():
            return None
        return load_adapted(self.folder)

    @property
    def is_avatar(self) -> bool:
        """Whether the head is an avatar at hand or beside the track: it brings its own appearance."""
        return isinstance(self.head, Avatar) or (self.folder is not None and (self.folder / AVATAR).is_file())

    def load_params(self) -> PyTree:
        """The head's parameters as fitted, at the result's scale: with what an avatar's networks learnt of the clip."""
        if self.params is None:
            head, adapted = self.load_head(), self._adapted
            params = head.params if adapted is None else {**head.params, "lighting": adapted.params["lighting"]}
            object.__setattr__(self, "params", params)
        return self.params

    @cached_property
    def topology(self) -> Topology:
        """Connectivity and texture coordinates; one object each time, so what is compiled for it is found again."""
        return Topology(faces=self.faces, uv=self.uv, uv_faces=self.uv_faces, n_vertices=len(self.neutral))

    @property
    def camera(self) -> Camera:
        """The input's camera in the first frame; `camera_at` has every frame's."""
        return _camera(self.intrinsics)

    def camera_at(self, frame: int) -> Camera:
        """The camera of one frame."""
        return _camera(self.frame_intrinsics[frame])

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

    def identity_code(self) -> PyTree:
        """The clip's part of the head's own code, as fitting takes it: to hold a person in another clip."""
        return jax.tree_util.tree_map(jnp.asarray, self._codes[0])

    def frame_codes(self) -> PyTree:
        """The frames' part of the head's own code, as fitting takes it, with a leading axis of frames."""
        return jax.tree_util.tree_map(jnp.asarray, self._codes[1])

    @cached_property
    def _codes(self) -> tuple[PyTree, PyTree]:
        """(clip, frames) as numpy arrays in the shape of the head's code; `InputError` where the file lacks some."""
        if self.codes is None:
            return self._codes_of_format_1()
        parts = zip((CLIP_CODE, FRAME_CODE), self.load_head().init_code(), strict=True)
        clip, frames = (unflatten_code(like, self.codes, prefix) for prefix, like in parts)
        return clip, frames

    def _codes_of_format_1(self) -> tuple[PyTree, PyTree]:
        """From the file of an avatar beside the track, or from the description, which was a morphable head's code."""
        head, adapted = self.load_head(), self._adapted
        if adapted is not None:
            return jax.tree_util.tree_map(np.asarray, (adapted.code, adapted.frames))
        if not isinstance(head, MorphableHead):
            raise InputError(
                f"The result was written by an older facejax, without the codes of its head {self.model_name!r}: track "
                "the clip again."
            )
        identity = Identity(
            shape=jnp.asarray(self.identity), skin=jnp.asarray(self.skin), texture=jnp.asarray(self.texture)
        )

        def without_added(full: Array, gaze: Array, eyelids: Array) -> Expression:
            rest = Expression(activations=jnp.zeros_like(full), gaze=gaze, eyelids=eyelids)
            return Expression(activations=full - head.full_activations(rest), gaze=gaze, eyelids=eyelids)

        frames = jax.vmap(without_added)(*(jnp.asarray(x) for x in (self.expression, self.gaze, self.eyelids)))
        return jax.tree_util.tree_map(np.asarray, (identity, frames))

    @cached_property
    def morphable(self) -> MorphableHead:
        """The linear head whose codes `identity`, `expression`, `gaze` and `eyelids` are: the head itself, or its
        description where it is of another kind."""
        first = jax.tree_util.tree_map(lambda x: jnp.asarray(x[:1]), self._codes[1])
        light = jnp.asarray(self.light_code[:1])
        return self.load_head().as_morphable(self.load_params(), self.identity_code(), first, light)[0]

    def write_mesh(self, path: Path | str, frame: int) -> None:
        """Write the head of one frame as a mesh: `.obj`, `.ply` or `.glb`, see `facejax.data.meshes.write_mesh`.

        Metres, head frame. `facejax.data.gltf.write_glb` writes the animated, textured head.
        """
        write_mesh(path, self.head_vertices_at(frame), self.topology)

    def save(self, folder: Path | str) -> None:
        """Write `track.npz`, and `metrics.json` if there are metrics, into `folder`, each whole or not at all.

        For an avatar, `avatar.npz` too: the track needs it, and only there are its networks as they were adapted. The
        folder is made if missing. Clips over `MAX_FRAMES_WITH_VERTICES` frames are stored without `vertices`.
        Raises `InputError` for a full disk or a folder that cannot be written.
        """
        folder = Path(folder)
        arrays: dict[str, Any] = {"format_version": np.int32(FORMAT_VERSION)}
        for name in _FIELDS:
            value = getattr(self, name)
            arrays[name] = np.array(value, dtype=np.str_) if isinstance(value, (str, tuple)) else value
        clip, frames = self._codes if self.codes is None else (None, None)
        arrays |= self.codes or flatten_code(clip, CLIP_CODE) | flatten_code(frames, FRAME_CODE)
        with_vertices = len(self) <= MAX_FRAMES_WITH_VERTICES
        with atomic_write(folder / "track.npz") as path:
            write_npz(path, arrays, {"vertices": self._vertices_in_chunks} if with_vertices else {})
        if self.metrics is not None:
            save_metrics(folder, self.metrics)
        if self.is_avatar:
            self._save_avatar(folder)

    def _save_avatar(self, folder: Path) -> None:
        from facejax.data.avatars import save_adapted

        avatar, scale = self.load_head(), float(self.scale)
        assert isinstance(avatar, Avatar)
        clip, frames = self._codes
        save_adapted(
            folder,
            avatar if scale == 1 else avatar.scaled(1 / scale),
            params=self.load_params(),
            code=clip,
            frames=frames,
            light=self.light_code,
            about={"light_model": self.light_model},
        )

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
        arrays = read_npz(path)
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
        if int(version) < 2:
            arrays |= _added_by_format_2(arrays, path.parent)
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
            own = {name: a for name, a in arrays.items() if name.startswith((f"{CLIP_CODE}.", f"{FRAME_CODE}."))}
            codes = own if int(version) >= 2 else None
            _check_codes(codes, len(fields["time"]), f"{path}: ")
        except ValueError as error:
            raise InputError(f"{error} The file is damaged: track the clip again.") from error
        folder = path.parent.resolve()
        return cls(**fields, stored_vertices=stored, metrics=load_metrics(folder), codes=codes, folder=folder)


def _added_by_format_2(arrays: Mapping[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """What a file of format 1, and an avatar beside it, say of later fields; nothing where they lack the source."""
    from facejax.data.avatars import load_adapted

    frames = len(arrays["time"]) if "time" in arrays and arrays["time"].ndim else 0
    known = {"head_source": "model_name", "light_code": "light"}
    every = {"frame_intrinsics": "intrinsics", "frame_size": "image_size"}
    light_model = ""
    if (folder / AVATAR).is_file():
        adapted = load_adapted(folder)
        arrays = {**arrays, "light": np.asarray(adapted.light)}
        light_model = adapted.about.get("light_model", "network")
    return {
        **{new: arrays[old] for new, old in known.items() if old in arrays},
        **{
            new: np.broadcast_to(arrays[old], (frames, *arrays[old].shape))
            for new, old in every.items()
            if old in arrays
        },
        "light_model": np.array(light_model, dtype=np.str_),
    }


def _array_fields() -> dict[str, Any]:
    apart = ("stored_vertices", "metrics", "head", "params", "codes", "folder")
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
    for name, every in (("intrinsics", "frame_intrinsics"), ("image_size", "frame_size")):
        if sizes["f"] and not np.array_equal(checked[name], checked[every][0]):
            raise ValueError(f"{where}`{name}` must be that of the first frame in `{every}`.")
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


def _check_codes(codes: Mapping[str, np.ndarray] | None, n_frames: int, where: str) -> None:
    """`ValueError`, starting with `where`, if codes of frames are not as many as frames."""
    for name, value in (codes or {}).items():
        if name.startswith(f"{FRAME_CODE}.") and value.shape[:1] != (n_frames,):
            raise ValueError(f"{where}`{name}` must have {n_frames} frames, got shape {value.shape}.")


def _text(value: Any, many: bool, label: str) -> str | tuple[str, ...]:
    array = np.asarray(value, dtype=np.str_) if isinstance(value, (str, tuple, list)) else np.asarray(value)
    if array.dtype.kind != "U" or array.ndim != int(many):
        raise ValueError(
            f"{label} must be {'a list of names' if many else 'one name'}, got {array.dtype} {array.shape}."
        )
    return tuple(str(s) for s in array) if many else str(array)


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


def _camera(k: Float[np.ndarray, "3 3"]) -> Camera:
    return Camera(focal=jnp.array([k[0, 0], k[1, 1]]), principal_point=jnp.array([k[0, 2], k[1, 2]]))


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
    head: HeadModel,
    *,
    params: PyTree,
    code: PyTree,
    frames: PyTree,
    poses: Pose,
    light: Float[Array | np.ndarray, "f r 3"],
    camera: Camera,
    image_size: tuple[int, int] | Int[np.ndarray, "f 2"],
    time: Float[Array | np.ndarray, "f"],
    frame_ids: Int[Array | np.ndarray, "f"],
    landmarks_target: Float[Array | np.ndarray, "f 478 2"],
    valid: Bool[Array | np.ndarray, "f"],
    status: Int[Array | np.ndarray, "f"],
    status_names: tuple[str, ...],
    scale: float = 1.0,
    metrics: dict[str, Any] | None = None,
    source: str | None = None,
    light_model: str = "",
) -> TrackResult:
    """The result of a fit of any head from its own codes.

    head, params: at the scale of the poses; params as fitted. `scale` says what the head's own lengths were multiplied
        by to get there.
    code, frames: the two parts of the head's code; `frames`, `poses` and `light` with a leading axis of frames.
    light: in the rows of the head's own lighting, which `light_model` names, see `TrackResult`.
    camera: of the input, in its pixels: one, or one for each frame (leading axis). image_size: (width, height), or
        (f, 2) of each frame.
    source: name or absolute path that the head was loaded with; None for what the head itself knows.

    Vertices are derived when they are needed.
    """
    get = np.asarray
    rotation, translation = get(poses.rotation), get(poses.translation)
    count = len(rotation)
    twin, identity, expressions, harmonics = head.as_morphable(params, code, frames, get(light))
    neutral = get(twin.neutral(twin.params, identity))
    cameras = jax.tree_util.tree_map(lambda x: np.broadcast_to(get(x), (count, 2)), camera)
    matrices = over_frames(_matrices(), (cameras,))
    sizes = np.asarray(image_size, dtype=np.int32)
    clip, moving = jax.tree_util.tree_map(get, (code, frames))
    landmarks = np.empty((count, len(head.landmarks478.triangles), 2), dtype=np.float32)
    place = _landmarks_of(head)
    for start in range(0, count, AT_ONCE):
        rows = np.minimum(np.arange(start, start + AT_ONCE), count - 1)
        vertices = decoded_vertices(
            head, params, clip, take_frames(moving, rows), AT_ONCE, (rotation[rows], translation[rows])
        )
        landmarks[start : start + AT_ONCE] = get(place(vertices, take_frames(cameras, rows)))[: count - start]
    fields = {
        "model_name": head.name,
        "model_sha256": head.sha256,
        "head_source": source or getattr(head, "source", "") or head.name,
        "faces": head.topology.faces,
        "uv": head.topology.uv,
        "uv_faces": head.topology.uv_faces,
        "parts": parts_of(twin),
        "part_names": PART_NAMES,
        "neutral": neutral,
        "landmarks68_neutral": get(twin.landmarks68.on(jnp.asarray(neutral))),
        "identity": get(identity.shape),
        "skin": get(identity.skin),
        "albedo": get(twin.albedo(twin.params, identity)),
        "texture": get(identity.texture),
        "specular": get(twin.params.specular),
        "roughness": get(twin.params.roughness),
        "expression": over_frames(_activations_of(twin.expression_names), (jax.tree_util.tree_map(get, expressions),)),
        "expression_names": twin.expression_names,
        "gaze": get(expressions.gaze),
        "eyelids": get(expressions.eyelids),
        "joint_rotation": np.zeros((count, 0, 3, 3), dtype=np.float32),
        "joint_names": (),
        "rotation": rotation,
        "translation": translation,
        "light": get(harmonics),
        "light_code": get(light),
        "light_model": light_model,
        "intrinsics": matrices[0],
        "image_size": sizes.reshape(-1, 2)[0],
        "frame_intrinsics": matrices,
        "frame_size": np.broadcast_to(sizes, (count, 2)),
        "time": get(time),
        "frame_ids": get(frame_ids),
        "landmarks": landmarks,
        "landmarks_target": get(landmarks_target),
        "valid": get(valid),
        "status": get(status),
        "status_names": status_names,
        "scale": np.asarray(scale, np.float32),
    }
    codes = flatten_code(clip, CLIP_CODE) | flatten_code(moving, FRAME_CODE)
    return TrackResult(**_check_fields(fields, ""), metrics=metrics, head=head, params=params, codes=codes)


@functools.cache
def _matrices() -> Callable[..., Array]:
    return jax.jit(jax.vmap(camera_matrix))


@functools.lru_cache(maxsize=16)
def _activations_of(names: tuple[str, ...]) -> Callable[..., Array]:
    return jax.jit(jax.vmap(functools.partial(full_activations, names)))


@functools.lru_cache(maxsize=4)
def _landmarks_of(head: HeadModel) -> Callable[..., Array]:
    """(vertices in the camera frame, cameras) -> (n, 478, 2) pixels, compiled once per head."""
    return jax.jit(jax.vmap(lambda vertices, camera: project(head.landmark_points(vertices), camera)))
