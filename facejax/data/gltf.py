"""A tracked head as binary glTF 2.0: textured, separate eyes and teeth, named morph targets, animated.

The file opens in Blender, Unity, three.js and every glTF viewer. Metres, +y up, the face towards +z; the video's camera
stands at the origin and looks along -z, so a node animation of the head in front of it repeats the clip.
"""

import io
import json
import math
import struct
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from facejax.data.baking import bake_albedo
from facejax.data.files import atomic_write
from facejax.data.results import TrackResult
from facejax.geometry.cameras import opencv_to_opengl
from facejax.geometry.colour import linear_to_srgb_bytes
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import vertex_normals
from facejax.geometry.records import Pose
from facejax.geometry.rotations import gaze_to_matrix, matrix_to_quaternion
from facejax.models.morphable import MorphableHead

_SIDES = ("Left", "Right")

ARKIT_NAMES = (
    *(f"eye{what}{side}" for side in _SIDES
      for what in ("Blink", "LookDown", "LookIn", "LookOut", "LookUp", "Squint", "Wide")),
    "jawForward", "jawLeft", "jawRight", "jawOpen",
    "mouthClose", "mouthFunnel", "mouthPucker", "mouthLeft", "mouthRight",
    *(f"mouth{what}{side}" for what in ("Smile", "Frown", "Dimple", "Stretch") for side in _SIDES),
    "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper",
    *(f"mouth{what}{side}" for what in ("Press", "LowerDown", "UpperUp") for side in _SIDES),
    "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight",
    "cheekPuff", "cheekSquintLeft", "cheekSquintRight", "noseSneerLeft", "noseSneerRight", "tongueOut",
)  # fmt: skip
"""The 52 shapes of Apple's ARKit, which face-animation tools know by name."""

_MESHES = {  # mesh -> parts of the head that it gathers
    "skin": ("skin", "eye_sockets"),
    "left_eye": ("left_eye",),
    "right_eye": ("right_eye",),
    "teeth": ("teeth", "gums"),
}
_STILL = 1e-6  # metres: a vertex that a shape moves by less is left out of its target
_FLOAT, _UINT, _USHORT = 5126, 5125, 5123
_ARRAY_BUFFER, _ELEMENT_BUFFER = 34962, 34963
_TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}
_matrices_to_quaternions = jax.jit(jax.vmap(matrix_to_quaternion))
_gaze_to_matrices = jax.jit(jax.vmap(gaze_to_matrix))


class _Document:
    """A glTF document under construction: JSON lists that grow, and one binary buffer."""

    def __init__(self) -> None:
        self.lists: dict[str, list[dict[str, Any]]] = {}
        self.binary = bytearray()

    def add(self, kind: str, entry: dict[str, Any]) -> int:
        entries = self.lists.setdefault(kind, [])
        entries.append(entry)
        return len(entries) - 1

    def view(self, data: bytes, **more: int) -> int:
        self.binary.extend(b"\0" * (-len(self.binary) % 4))
        view = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data), **more}
        self.binary.extend(data)
        return self.add("bufferViews", view)

    def accessor(self, array: np.ndarray, *, bounds: bool = False, **view: int) -> int:
        """Float32, uint16 or uint32 values of one or several components."""
        array = np.ascontiguousarray(array)
        component = {np.dtype("f4"): _FLOAT, np.dtype("u4"): _UINT, np.dtype("u2"): _USHORT}[array.dtype]
        entry = {
            "bufferView": self.view(array.tobytes(), **view),
            "componentType": component,
            "count": len(array),
            "type": _TYPES[1 if array.ndim == 1 else array.shape[1]],
        }
        return self.add("accessors", entry | (_bounds(array) if bounds else {}))

    def sparse_accessor(self, array: Float32[np.ndarray, "n 3"], moved: Bool[np.ndarray, "n"]) -> int:
        """Displacements that are zero but for the `moved` rows, of which only those are stored."""
        if moved.mean() > 0.7:  # ids and values would be larger than the values alone
            return self.accessor(array, bounds=True, target=_ARRAY_BUFFER)
        ids, values = np.flatnonzero(moved), np.where(moved[:, None], array, 0).astype(np.float32)
        wide = len(array) > 0xFFFF
        sparse = {
            "count": len(ids),
            "indices": {
                "bufferView": self.view(ids.astype(np.uint32 if wide else np.uint16).tobytes()),
                "componentType": _UINT if wide else _USHORT,
            },
            "values": {"bufferView": self.view(values[ids].tobytes())},
        }
        entry = {"componentType": _FLOAT, "count": len(array), "type": "VEC3", "sparse": sparse}
        return self.add("accessors", entry | _bounds(values))

    def write(self, path: Path, **top: Any) -> None:
        buffers = [{"byteLength": len(self.binary)}]
        text = json.dumps({**top, **self.lists, "buffers": buffers}, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        self.binary.extend(b"\0" * (-len(self.binary) % 4))
        total = 12 + 8 + len(text) + 8 + len(self.binary)
        if total >= 1 << 32:
            raise InputError(f"{path} would be over 4 GB, which a GLB cannot hold: export fewer frames.")
        with open(path, "wb") as file:
            file.write(struct.pack("<4sII", b"glTF", 2, total))
            file.write(struct.pack("<I4s", len(text), b"JSON") + text)
            file.write(struct.pack("<I4s", len(self.binary), b"BIN\0"))
            file.write(self.binary)


def _bounds(array: np.ndarray) -> dict[str, list[float]]:
    flat = array.reshape(len(array), -1)
    return {"min": flat.min(axis=0).tolist(), "max": flat.max(axis=0).tolist()}


def write_glb(
    path: Path | str,
    result: TrackResult,
    *,
    targets: Literal["all", "arkit"] = "all",
    texture_size: int = 1024,
) -> None:
    """Write a tracked clip as one GLB file, whole or not at all.

    Nodes: `camera` (the video's, at the origin), `head` (rotation and translation per frame) and below it a mesh each
    for `skin`, `teeth`, `left_eye`, `right_eye`; the eyes' nodes stand at their centres of rotation and turn with the
    gaze. Meshes carry the neutral person, and the expressions that move them as morph targets, named in
    `extras.targetNames`, with their weights per frame. The base colour is albedo times texture, baked to `texture_size`
    pixels a side (skin; half of it for the others).

    targets: `arkit` keeps the 52 shapes that ARKit names, and drops the motion of others. An avatar's shapes are its
    decoder's mesh features. The camera is the first frame's: glTF has one that does not change. A principal point off
    the image's centre cannot be said there and is left in the camera's `extras`. Raises `InputError`.
    """
    if len(result) == 0:
        raise InputError("A result without frames cannot be animated: track at least one frame.")
    head = result.morphable
    doc = _Document()
    meshes = {name: _mesh_triangles(result, parts) for name, parts in _MESHES.items()}
    meshes = {name: ids for name, ids in meshes.items() if len(ids)}
    pivots = np.asarray(result.load_head().eye_pivots(result.load_params(), result.identity_code()))
    normals = np.asarray(jax.jit(vertex_normals)(result.neutral, result.faces))
    time = doc.accessor(_times(result.time), bounds=True)
    samplers: list[dict[str, Any]] = []
    channels: list[dict[str, Any]] = []

    def animate(node: int, what: str, values: np.ndarray) -> None:
        samplers.append({"input": time, "output": doc.accessor(values.astype("f4")), "interpolation": "LINEAR"})
        channels.append({"sampler": len(samplers) - 1, "target": {"node": node, "path": what}})

    camera = doc.add("nodes", {"name": "camera", "camera": _add_camera(doc, result)})
    rotation, translation = _head_motion(result)
    first = {"rotation": rotation[0].tolist(), "translation": translation[0].tolist()}
    head_node = doc.add("nodes", {"name": "head", **first, "children": []})
    animate(head_node, "rotation", rotation)
    animate(head_node, "translation", translation)
    for name, triangles in meshes.items():
        eye = ("left_eye", "right_eye").index(name) if name.endswith("_eye") else None
        origin = np.zeros(3, np.float32) if eye is None else pivots[eye].astype(np.float32)
        mesh, columns = _add_mesh(doc, result, head, name, triangles, normals, origin, targets, texture_size)
        node: dict[str, Any] = {"name": name, "mesh": mesh}
        if eye is not None:
            turns = _quaternions(np.asarray(_gaze_to_matrices(jnp.asarray(result.gaze[:, eye]))))
            node |= {"translation": origin.tolist(), "rotation": turns[0].tolist()}
        index = doc.add("nodes", node)
        doc.lists["nodes"][head_node]["children"].append(index)
        if eye is not None:
            animate(index, "rotation", turns)
        if columns:
            animate(index, "weights", result.expression[:, columns].reshape(-1))  # frame after frame
    doc.add("scenes", {"name": "clip", "nodes": [camera, head_node]})
    doc.add("animations", {"name": "clip", "samplers": samplers, "channels": channels})
    with atomic_write(path) as temporary:
        doc.write(
            temporary,
            asset={"version": "2.0", "generator": "facejax", "extras": {"model": result.model_name}},
            scene=0,
            extensionsUsed=["KHR_materials_ior"],
        )


def _times(time: np.ndarray) -> Float32[np.ndarray, "f"]:
    """Seconds from the first frame, strictly increasing as glTF demands."""
    since = (time - time[0]).astype(np.float32)
    if np.any(np.diff(since) <= 0):
        raise InputError("The result's `time` must increase from frame to frame: track the clip again.")
    return since


def _mesh_triangles(result: TrackResult, parts: tuple[str, ...]) -> Int[np.ndarray, "n"]:
    wanted = [i for i, name in enumerate(result.part_names) if name in parts]
    return np.flatnonzero(np.isin(result.parts[result.faces[:, 0]], wanted))


def _add_camera(doc: _Document, result: TrackResult) -> int:
    k, (width, height) = result.intrinsics.astype(float), result.image_size.astype(float)
    perspective = {
        "yfov": 2 * math.atan(height / (2 * k[1, 1])),
        "aspectRatio": (width / k[0, 0]) / (height / k[1, 1]),
        "znear": 0.01,
        "zfar": 100.0,
    }
    extras = {"intrinsics": k.tolist(), "imageSize": [int(width), int(height)]}
    return doc.add("cameras", {"type": "perspective", "perspective": perspective, "extras": extras})


def _head_motion(result: TrackResult) -> tuple[Float32[np.ndarray, "f 4"], Float32[np.ndarray, "f 3"]]:
    """Quaternions (x, y, z, w) and translations (m) of the head before glTF's camera."""
    convert = jax.jit(jax.vmap(lambda r, t: opencv_to_opengl(Pose(rotation=r, translation=t))))
    poses = convert(jnp.asarray(result.rotation), jnp.asarray(result.translation))
    return _quaternions(np.asarray(poses.rotation)), np.asarray(poses.translation)


def _quaternions(rotations: Float[np.ndarray, "f 3 3"]) -> Float32[np.ndarray, "f 4"]:
    """Unit quaternions (x, y, z, w), each on the side of its predecessor, so that interpolation takes the short way."""
    q = np.asarray(_matrices_to_quaternions(jnp.asarray(rotations)))[:, [1, 2, 3, 0]]
    flips = np.sum(q[1:] * q[:-1], axis=-1) < 0
    sign = np.where(np.concatenate([[0], np.cumsum(flips)]) % 2, -1.0, 1.0)
    return (q * sign[:, None]).astype(np.float32)


def _add_mesh(
    doc: _Document,
    result: TrackResult,
    head: MorphableHead,
    name: str,
    triangles: Int[np.ndarray, "n"],
    normals: Float32[np.ndarray, "v 3"],
    origin: Float32[np.ndarray, "3"],
    targets: str,
    texture_size: int,
) -> tuple[int, list[int]]:
    """Index of a new mesh of some triangles, about `origin`, and the columns of `expression` that are its targets."""
    corners = np.stack([result.faces[triangles], result.uv_faces[triangles]], axis=-1).reshape(-1, 2)
    split, faces = np.unique(corners, axis=0, return_inverse=True)  # one vertex per (vertex, texture coordinate)
    ids, uv = split[:, 0], result.uv[split[:, 1]]
    normals = normals[ids]
    normals = np.where(np.abs(np.linalg.norm(normals, axis=-1, keepdims=True) - 1) < 1e-3, normals, [0, 0, 1])
    # the mesh's own part of the chart fills its picture, so that a small chart (an eye's) does not cost its iris
    low, high = uv.min(axis=0), uv.max(axis=0)
    extent = np.maximum(high - low, 1e-6)
    size = texture_size if name == "skin" else max(texture_size // 2, 4)
    u0, v0, u1, v1 = (float(x) for x in (*low, *(low + extent)))
    picture = bake_albedo(result, size, triangles=triangles, window=(u0, v0, u1, v1))
    u, v = ((uv - low) / extent).T
    index_type = np.uint32 if len(ids) > 0xFFFE else np.uint16
    primitive: dict[str, Any] = {
        "attributes": {
            "POSITION": doc.accessor(result.neutral[ids] - origin, bounds=True, target=_ARRAY_BUFFER),
            "NORMAL": doc.accessor(normals.astype("f4"), target=_ARRAY_BUFFER),
            "TEXCOORD_0": doc.accessor(np.stack([u, 1 - v], axis=-1).astype("f4"), target=_ARRAY_BUFFER),
        },
        "indices": doc.accessor(faces.reshape(-1).astype(index_type), target=_ELEMENT_BUFFER),
        "material": _add_material(doc, result, name, picture, np.unique(ids)),
    }
    mesh: dict[str, Any] = {"name": name, "primitives": [primitive]}
    basis = np.asarray(head.params.expression_basis, dtype=np.float32)
    columns, morphs = [], []
    for column, label in enumerate(result.expression_names):
        moved = np.linalg.norm(basis[column, ids], axis=-1) > _STILL
        if moved.any() and (targets == "all" or label in ARKIT_NAMES):
            columns.append(column)
            morphs.append({"POSITION": doc.sparse_accessor(basis[column, ids], moved)})
    if columns:
        primitive["targets"] = morphs
        mesh["weights"] = result.expression[0, columns].tolist()
        mesh["extras"] = {"targetNames": [result.expression_names[c] for c in columns]}
    return doc.add("meshes", mesh), columns


def _add_material(
    doc: _Document, result: TrackResult, name: str, picture: Float[np.ndarray, "h w 3"], ids: Int[np.ndarray, "n"]
) -> int:
    from PIL import Image

    png = io.BytesIO()
    Image.fromarray(linear_to_srgb_bytes(picture)).save(png, "PNG", optimize=True)
    image = doc.add("images", {"name": name, "mimeType": "image/png", "bufferView": doc.view(png.getvalue())})
    if "samplers" not in doc.lists:
        doc.add("samplers", {"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071})
    texture = doc.add("textures", {"source": image, "sampler": 0})
    # glTF says the lobe's width as its root, and the reflectance at normal incidence by an index of refraction
    root = math.sqrt(float(np.clip(result.specular[ids].mean(), 0, 0.9)))
    return doc.add(
        "materials",
        {
            "name": name,
            "pbrMetallicRoughness": {
                "baseColorTexture": {"index": texture},
                "metallicFactor": 0.0,
                "roughnessFactor": math.sqrt(float(np.clip(result.roughness[ids].mean(), 0, 1))),
            },
            "extensions": {"KHR_materials_ior": {"ior": (1 + root) / (1 - root)}},
        },
    )
