"""Captures of one person by many calibrated cameras, perhaps under many lights: what avatars are trained on.

A `Capture` is what recipes read. `LightStage` is one in facejax's own layout, described in `docs/captures.md`;
`facejax.data.multiface` reads another. A capture is a list of entries (one moment under one light); each is seen by
every camera. Frames of reference: the head's; the STAGE's, fixed to the lights, origin at the middle of the stage, axes
as a camera's in front of the subject (OpenCV: +x image right, +y down, +z away from that camera); each camera's own.
Metres; images and textures are linear radiance, row 0 at the top.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from facejax.data.files import atomic_write
from facejax.geometry.arrays import read_npz
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import SurfacePoints, Topology
from facejax.geometry.records import Camera, Pose

FORMAT = "facejax-capture"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Entry:
    """One moment under one light."""

    file: str
    """Where it is, relative to the capture's folder."""
    expression: int
    """Entries with the same number show the same face in the same place, under different lights."""
    split: str
    """"train" or "test"."""
    pattern: str
    """"full" for all lights on, else a name of the lights that are on."""
    tracked: bool
    """Whether its mesh is known from fully lit frames (partly lit frames of a real stage have none)."""

    @property
    def fully_lit(self) -> bool:
        return self.pattern == "full"


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """An entry as one camera sees it, as host arrays."""

    image: Float32[np.ndarray, "h w 3"]
    """Linear radiance."""
    mask: Float32[np.ndarray, "h w"]
    """Share of the pixel that shows the head, in [0, 1]."""
    texture: Float32[np.ndarray, "s s 3"]
    """The image unwrapped through the mesh; 0 where `seen` is."""
    seen: Float32[np.ndarray, "s s"]
    """How well each texel is seen, in [0, 1]."""
    mean_texture: Float32[np.ndarray, "s s 3"]
    """Mean over all cameras, each texel weighed by how well it is seen; 0 where no camera sees it."""
    vertices: Float32[np.ndarray, "v 3"]
    """Metres, head frame; meaningless where the entry is not tracked."""
    light: Float32[np.ndarray, "g 3"]
    """Colour of each group of lights; all ones under the full light."""
    head: Pose
    """Head to stage."""
    pose: Pose
    """Head to this camera."""
    camera: Camera


@runtime_checkable
class Capture(Protocol):
    """What recipes read; implemented by `LightStage` and `facejax.data.multiface.Multiface`."""

    topology: Topology
    entries: tuple[Entry, ...]
    n_cameras: int
    groups: int
    """Groups of lights; 0 for a capture under one even light."""
    image_size: tuple[int, int]
    """(height, width) of every image."""
    texture_size: int

    def view(self, entry: int, camera: int) -> View:
        """Entry number `entry` as camera number `camera` sees it."""
        ...


def head_to_camera(head: Pose, rotation: np.ndarray, translation: np.ndarray) -> Pose:
    """Pose of a head in a camera's frame from its pose in the stage and the camera's extrinsics (stage to camera)."""
    return Pose(
        rotation=jnp.asarray(rotation @ np.asarray(head.rotation), jnp.float32),
        translation=jnp.asarray(rotation @ np.asarray(head.translation) + translation, jnp.float32),
    )


def select(capture: Capture, split: str, *, fully_lit: bool | None = None) -> list[int]:
    """Numbers of the entries of a split: fully lit ones, others, or both (None). `InputError` if there are none."""
    found = [
        i for i, e in enumerate(capture.entries) if e.split == split and (fully_lit is None or e.fully_lit == fully_lit)
    ]
    if not found:
        kind = {None: "", True: "fully lit ", False: "partly lit "}[fully_lit]
        raise InputError(f"The capture has no {kind}frames of the split {split!r}: make it with more of them.")
    return found


# -- facejax's own layout ----------------------------------------------------------------------------------------------

_CAMERA_KEYS = ("rotation", "translation", "focal", "principal_point")
_HEAD_KEYS = ("faces", "uv", "uv_faces", "landmark_triangles", "landmark_weights")
FRAME_KEYS = (
    "image", "mask", "texture", "seen", "mean_texture", "vertices", "light", "rotation", "translation",
)  # fmt: skip
"""Arrays of a frame's file: image (c, h, w, 3) float16, mask (c, h, w) uint8 of 255, texture (c, s, s, 3) float16, seen
(c, s, s) uint8 of 255, mean_texture (s, s, 3) float16, vertices (v, 3), light (g, 3), and the head's rotation (3, 3)
and translation (3,) in the stage; a synthetic frame adds `activations` (e,) and `gaze` (2, 2)."""


class LightStage:
    """A capture folder: `capture.json`, `cameras.npz`, `head.npz`, `lights.npz` and a file per frame."""

    def __init__(self, folder: Path | str) -> None:
        """Raises `InputError` for a folder that is not a capture, or one with parts missing or of another size."""
        self.folder = Path(folder)
        facts = read_facts(self.folder)
        self.facts = facts
        self.image_size = (int(facts["image_size"][0]), int(facts["image_size"][1]))
        self.texture_size, self.groups = int(facts["texture_size"]), int(facts["groups"])
        self.entries = tuple(entries_in(facts, self.folder))
        cameras = _read(self.folder / "cameras.npz", _CAMERA_KEYS)
        self.cameras = {k: cameras[k].astype(np.float32) for k in _CAMERA_KEYS}
        self.n_cameras = len(self.cameras["rotation"])
        if self.n_cameras != int(facts["cameras"]):
            raise InputError(
                f"{self.folder / 'cameras.npz'} calibrates {self.n_cameras} cameras and the capture has "
                f"{facts['cameras']}: restore the file, or make the capture again."
            )
        for name, shape in (("rotation", (3, 3)), ("translation", (3,)), ("focal", (2,)), ("principal_point", (2,))):
            found = self.cameras[name]
            if found.shape != (self.n_cameras, *shape) or not np.isfinite(found).all():
                raise InputError(
                    f"{name!r} in {self.folder / 'cameras.npz'} must be finite numbers of shape "
                    f"{(self.n_cameras, *shape)}, got {found.shape}: restore the file, or make the capture again."
                )
        held = _read(self.folder / "head.npz", _HEAD_KEYS)
        self.topology = Topology(
            faces=held["faces"].astype(np.int32),
            uv=held["uv"].astype(np.float32),
            uv_faces=held["uv_faces"].astype(np.int32),
            n_vertices=int(facts["vertices"]),
        )
        self.landmarks478 = SurfacePoints(held["landmark_triangles"], held["landmark_weights"].astype(np.float32))
        self.regions = {k.removeprefix("region_"): v for k, v in held.items() if k.startswith("region_")}
        missing = [e.file for e in self.entries if not (self.folder / e.file).is_file()]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(self.entries)} frames of the capture {self.folder} are missing, the first is "
                f"{missing[0]}: run the command that made it again with the same options; it makes what is missing."
            )

    def frame(self, entry: int) -> dict[str, np.ndarray]:
        """The arrays of an entry as they are stored, see `FRAME_KEYS`."""
        if not 0 <= entry < len(self.entries):
            raise InputError(
                f"The capture has {len(self.entries)} entries, numbered from 0, and {entry} was asked for."
            )
        return dict(_frame(self.folder / self.entries[entry].file, self._shapes()))

    def view(self, entry: int, camera: int) -> View:
        """See `Capture.view`."""
        if not 0 <= camera < self.n_cameras:
            raise InputError(f"The capture has {self.n_cameras} cameras, numbered from 0, and {camera} was asked for.")
        held = self.frame(entry)
        head = Pose(rotation=jnp.asarray(held["rotation"]), translation=jnp.asarray(held["translation"]))
        rotation, translation, focal, centre = (self.cameras[k][camera] for k in _CAMERA_KEYS)
        return View(
            image=held["image"][camera].astype(np.float32),
            mask=held["mask"][camera].astype(np.float32) / 255,
            texture=held["texture"][camera].astype(np.float32),
            seen=held["seen"][camera].astype(np.float32) / 255,
            mean_texture=held["mean_texture"].astype(np.float32),
            vertices=held["vertices"].astype(np.float32),
            light=held["light"].astype(np.float32),
            head=head,
            pose=head_to_camera(head, rotation, translation),
            camera=Camera(focal=jnp.asarray(focal), principal_point=jnp.asarray(centre)),
        )

    def _shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        (h, w), s, c = self.image_size, self.texture_size, self.n_cameras
        return (
            ("image", (c, h, w, 3)), ("mask", (c, h, w)), ("texture", (c, s, s, 3)), ("seen", (c, s, s)),
            ("mean_texture", (s, s, 3)), ("vertices", (self.topology.n_vertices, 3)), ("light", (self.groups, 3)),
            ("rotation", (3, 3)), ("translation", (3,)),
        )  # fmt: skip


def read_facts(folder: Path) -> dict[str, Any]:
    """`capture.json` of a capture folder; `InputError` where there is none, or of another format or version."""
    path = Path(folder) / "capture.json"
    if not path.is_file():
        raise InputError(
            f"{folder} is no capture: it has no capture.json. Make one with `facejax data light-stage {folder}`."
        )
    try:
        facts = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): restore it, or make the capture again.") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or facts.get("version") != VERSION:
        raise InputError(f"{path} does not say format {FORMAT!r}, version {VERSION}: it was made by something else.")
    needed = {"image_size", "texture_size", "groups", "entries", "cameras", "vertices"} - facts.keys()
    if needed:
        raise InputError(f"{path} lacks {', '.join(sorted(needed))}: restore it, or make the capture again.")
    return facts


def entries_in(facts: dict[str, Any], folder: Path) -> list[Entry]:
    """The entries that `capture.json` lists; `InputError` for one that is not as it should be."""
    try:
        return [Entry(**e) for e in facts["entries"]]
    except TypeError as error:
        raise InputError(
            f"An entry of {folder / 'capture.json'} is not as it should be ({error}): restore the file, or make the "
            "capture again."
        ) from error


def write_facts(folder: Path, entries: list[Entry], **facts: Any) -> None:
    """Write `capture.json`: the list of entries and what else there is to say about a capture."""
    text = json.dumps(
        {"format": FORMAT, "version": VERSION, **facts, "entries": [dataclasses.asdict(e) for e in entries]}, indent=1
    )
    with atomic_write(folder / "capture.json") as path:
        path.write_text(text)


def mean_over_views(
    textures: Float[np.ndarray, "c s s 3"], seen: Float[np.ndarray, "c s s"]
) -> Float32[np.ndarray, "s s 3"]:
    """The encoder's input: the cameras' textures averaged by how well they see each texel, 0 where none does."""
    total = seen.sum(axis=0)[..., None]
    return np.where(total > 0, (textures * seen[..., None]).sum(axis=0) / np.maximum(total, 1e-6), 0).astype(np.float32)


def _read(path: Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"The capture lacks {path.name} ({path}): restore it, or make the capture again.")
    arrays = read_npz(path, "delete it and make the capture again")
    missing = [k for k in keys if k not in arrays]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}: delete it and make the capture again.")
    return arrays


@functools.lru_cache(maxsize=8)  # the cameras of an entry are often read in turn; a large capture's frames are large
def _frame(path: Path, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, np.ndarray]:
    held = _read(path, FRAME_KEYS)
    for name, shape in shapes:
        if held[name].shape != shape:
            raise InputError(
                f"{name!r} in {path} has the shape {held[name].shape} and capture.json says {shape}: frames of "
                "different sizes cannot be mixed, make the capture again."
            )
    return held
