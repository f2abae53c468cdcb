"""The file of a linear head: one `.npz` of plain arrays, read whole and checked before it is used.

Schema (`FORMAT_VERSION` 1; metres, head frame; V vertices, I identity modes, E expressions, K skin modes, T triangles,
U texture coordinates, P parts, R regions):

| key | shape | what |
|---|---|---|
| `format_version` | () int | 1 |
| `name`, `source`, `licence`, `units` | () text | its name, origin with the commit, terms; "m" |
| `mean`, `identity_basis`, `expression_basis` | (V, 3), (I, V, 3), (E, V, 3) float32 | see `MorphableParams` |
| `expression_names` | (E,) text | ARKit's names where ARKit has the shape |
| `skin_mean`, `skin_basis` | (V, 3), (K, V, 3) float32 | log albedo |
| `specular`, `roughness` | (V,) float32 | specular lobe |
| `eye_weight`, `eye_pivot`, `eye_pivot_basis` | (V, 2), (2, 3), (I, 2, 3) float32 | left, right eyeball |
| `faces`, `uv`, `uv_faces` | (T, 3) int32, (U, 2) float32, (T, 3) int32 | see `Topology` |
| `landmarks68_triangles`, `landmarks68_weights` | (68, 3) int32, (68, 3) float32 | iBUG-68 |
| `landmarks478_triangles`, `landmarks478_weights` | (478, 3) int32, (478, 3) float32 | MediaPipe's points |
| `region_names`, `region_masks` | (R,) text, (R, V) float32 | see `REGIONS` |
| `mirror` | (V,) int32 | id of the vertex mirrored across x = 0 |
| `part_names`, `vertex_part`, `face_part` | (P,) text, (V,) int32, (T,) int32 | meshes that can be left out |
| `default_parts` | (D,) text | the parts that are read when none are asked for |
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from facejax.data.files import atomic_write
from facejax.geometry.arrays import DAMAGE, open_npz
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import SurfacePoints, Topology
from facejax.models.morphable import REGIONS, MorphableHead, MorphableParams

NAMES = ()
FORMAT_VERSION = 1

_SHAPES: Mapping[str, tuple[str | int, ...]] = {
    "mean": ("V", 3),
    "identity_basis": ("I", "V", 3),
    "expression_basis": ("E", "V", 3),
    "expression_names": ("E",),
    "skin_mean": ("V", 3),
    "skin_basis": ("K", "V", 3),
    "specular": ("V",),
    "roughness": ("V",),
    "eye_weight": ("V", 2),
    "eye_pivot": (2, 3),
    "eye_pivot_basis": ("I", 2, 3),
    "faces": ("T", 3),
    "uv": ("U", 2),
    "uv_faces": ("T", 3),
    "landmarks68_triangles": (68, 3),
    "landmarks68_weights": (68, 3),
    "landmarks478_triangles": (478, 3),
    "landmarks478_weights": (478, 3),
    "region_names": ("R",),
    "region_masks": ("R", "V"),
    "mirror": ("V",),
    "part_names": ("P",),
    "vertex_part": ("V",),
    "face_part": ("T",),
    "default_parts": ("D",),
}
_PARAMS = (
    "mean", "identity_basis", "expression_basis", "skin_mean", "skin_basis", "eye_weight", "eye_pivot",
    "eye_pivot_basis", "specular", "roughness",
)  # fmt: skip
_TEXT = ("name", "source", "licence", "units")
_INDEX_LIMITS = {  # arrays of ids, and the dimension that each must stay below
    "faces": "V",
    "uv_faces": "U",
    "landmarks68_triangles": "V",
    "landmarks478_triangles": "V",
    "mirror": "V",
    "vertex_part": "P",
    "face_part": "P",
}


def check_arrays(arrays: Mapping[str, np.ndarray], what: str) -> None:
    """Raise `InputError`, naming `what`, unless `arrays` are a linear head as the schema above says."""
    advice = "make the file again with `facejax assets install`, or with `facejax.data.heads.model_file.save_head`"
    missing = [key for key in (*_TEXT, *_SHAPES) if key not in arrays]
    if missing:
        raise InputError(f"{what} is not a facejax head: it has no array `{missing[0]}`; {advice}.")
    units = str(arrays["units"])
    if units != "m":
        raise InputError(f"{what} must be in metres (units 'm'), it says {units!r}; {advice}.")
    sizes: dict[str, int] = {}
    for key, shape in _SHAPES.items():
        got = arrays[key].shape
        wanted = tuple(sizes.get(d, d) if isinstance(d, str) else d for d in shape)
        if len(got) != len(shape) or any(isinstance(w, int) and w != g for w, g in zip(wanted, got, strict=True)):
            raise InputError(f"{what}: `{key}` must have shape {wanted}, it has {got}; {advice}.")
        sizes.update({d: g for d, g in zip(shape, got, strict=True) if isinstance(d, str)})
    if not sizes["V"] or not sizes["T"]:
        raise InputError(f"{what} must have vertices and triangles, it has none; {advice}.")
    for key in _SHAPES:
        a = arrays[key]
        kind = "text" if key.endswith("_names") or key == "default_parts" else "ids" if key in _INDEX_LIMITS else "real"
        if a.dtype.kind not in {"text": "U", "ids": "iu", "real": "f"}[kind]:
            raise InputError(f"{what}: `{key}` must hold {kind} values, it holds {a.dtype}; {advice}.")
        if kind == "real" and not np.isfinite(a).all():
            raise InputError(f"{what}: `{key}` holds a value that is not finite; {advice}.")
        if kind == "ids" and a.size and (a.min() < 0 or a.max() >= sizes[_INDEX_LIMITS[key]]):
            limit = sizes[_INDEX_LIMITS[key]]
            raise InputError(f"{what}: `{key}` must lie in [0, {limit}), it spans [{a.min()}, {a.max()}]; {advice}.")
    absent = sorted(set(REGIONS) - set(arrays["region_names"].tolist()))
    if absent:
        raise InputError(f"{what} has no region `{absent[0]}`; {advice}.")
    stray = sorted(set(arrays["default_parts"].tolist()) - set(arrays["part_names"].tolist()))
    if stray:
        raise InputError(f"{what}: the default part {stray[0]!r} is not among its parts; {advice}.")


def select_parts(arrays: Mapping[str, np.ndarray], parts: Sequence[str] | None) -> dict[str, np.ndarray]:
    """The same head with only some of its parts, vertices renumbered in their old order.

    `parts` None takes `default_parts`, ("all",) everything. A vertex stays if a triangle that stays uses it, or if a
    landmark lies on it: so all 68 and 478 points exist whatever is left out. Raises `InputError` for an unknown part.
    """
    names = arrays["part_names"].tolist()
    chosen = list(arrays["default_parts"].tolist() if parts is None else parts)
    if chosen == ["all"]:
        chosen = names
    unknown = [p for p in chosen if p not in names]
    if unknown or not chosen:
        got = repr(unknown[0]) if unknown else "none"
        raise InputError(f"`parts` must be among {', '.join(names)} (or all), got {got}.")
    keep_part = np.isin(names, chosen)
    if keep_part.all():
        return dict(arrays)
    keep_face = keep_part[arrays["face_part"]]
    keep = np.zeros(len(arrays["mean"]), bool)
    keep[arrays["faces"][keep_face]] = True
    for table in ("landmarks68", "landmarks478"):
        used = np.abs(arrays[f"{table}_weights"]) > 0
        keep[arrays[f"{table}_triangles"][used]] = True
    old = np.flatnonzero(keep)
    new = np.zeros(len(keep), np.int32)
    new[old] = np.arange(len(old), dtype=np.int32)
    out = dict(arrays)
    for key, shape in _SHAPES.items():
        if "V" in shape:
            out[key] = np.take(arrays[key], old, axis=shape.index("V"))
    for table in ("landmarks68", "landmarks478"):  # an id of weight 0 may point at a vertex that is gone: it becomes 0
        out[f"{table}_triangles"] = new[arrays[f"{table}_triangles"]]
    out["faces"] = new[arrays["faces"][keep_face]]
    out["face_part"] = arrays["face_part"][keep_face]
    # A vertex whose mirror image is left out is its own: no part here is chosen on one side only, save by hand.
    mirror = arrays["mirror"][old]
    out["mirror"] = np.where(keep[mirror], new[mirror], np.arange(len(old))).astype(np.int32)
    uv_old, uv_new = np.unique(arrays["uv_faces"][keep_face], return_inverse=True)
    out["uv"] = arrays["uv"][uv_old]
    out["uv_faces"] = uv_new.reshape(-1, 3).astype(np.int32)
    return out


def head_from_arrays(
    arrays: Mapping[str, np.ndarray], parts: Sequence[str] | None = None, sha256: str = ""
) -> MorphableHead:
    """A head from arrays of the schema above; `parts` as in `select_parts`. Expects what `check_arrays` passes."""
    a = select_parts(arrays, parts)
    params = MorphableParams(**{key: jnp.asarray(a[key], jnp.float32) for key in _PARAMS})
    return MorphableHead(
        name=str(a["name"]),
        sha256=sha256,
        params=params,
        topology=Topology(
            faces=a["faces"].astype(np.int32),
            uv=a["uv"].astype(np.float32),
            uv_faces=a["uv_faces"].astype(np.int32),
            n_vertices=len(a["mean"]),
        ),
        expression_names=tuple(a["expression_names"].tolist()),
        landmarks68=SurfacePoints(triangles=a["landmarks68_triangles"], weights=a["landmarks68_weights"]),
        landmarks478=SurfacePoints(triangles=a["landmarks478_triangles"], weights=a["landmarks478_weights"]),
        regions=dict(zip(a["region_names"].tolist(), a["region_masks"], strict=True)),
        mirror=a["mirror"],
    )


def arrays_of_head(head: MorphableHead, source: str, licence: str) -> dict[str, np.ndarray]:
    """A head as arrays of the schema above, all in one part named "head"."""
    p = head.params
    v = head.topology.n_vertices
    return {
        "name": np.array(head.name),
        "source": np.array(source),
        "licence": np.array(licence),
        "units": np.array("m"),
        **{key: np.asarray(getattr(p, key), np.float32) for key in _PARAMS},
        "expression_names": np.array(head.expression_names, dtype=str),
        "faces": head.topology.faces,
        "uv": head.topology.uv,
        "uv_faces": head.topology.uv_faces,
        "landmarks68_triangles": head.landmarks68.triangles,
        "landmarks68_weights": head.landmarks68.weights,
        "landmarks478_triangles": head.landmarks478.triangles,
        "landmarks478_weights": head.landmarks478.weights,
        "region_names": np.array(list(head.regions), dtype=str),
        "region_masks": np.stack([np.asarray(m, np.float32) for m in head.regions.values()]),
        "mirror": head.mirror,
        "part_names": np.array(["head"]),
        "vertex_part": np.zeros(v, np.int32),
        "face_part": np.zeros(head.topology.n_faces, np.int32),
        "default_parts": np.array(["head"]),
    }


def save_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Check the arrays and write them to `path`, whole or not at all. Raises `InputError` where either is bad."""
    path = Path(path)
    check_arrays(arrays, f"the head to be written to {path}")
    everything: dict[str, Any] = {**arrays, "format_version": np.array(FORMAT_VERSION)}
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        # Uncompressed: 50 MB that read in a tenth of a second, where deflate saves a tenth of the size.
        np.savez(stream, **everything)
    return path


def save_head(path: str | Path, head: MorphableHead, *, source: str, licence: str) -> Path:
    """Write a head to `path` (`.npz`), whole or not at all; `source` says where it came from, `licence` its terms."""
    return save_arrays(path, arrays_of_head(head, source, licence))


def read_arrays(path: str | Path) -> tuple[dict[str, np.ndarray], str]:
    """(arrays, sha256 of the file), checked. Raises `InputError` for a missing or damaged file, or another kind."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"No head file at {path}: give the `.npz` of a converted head, or a model's name.")
    advice = "make it again with `facejax assets install`, or with `facejax.data.heads.model_file.save_head`"
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        with open_npz(path) as file:
            version = int(file["format_version"]) if "format_version" in file.files else None
            if version != FORMAT_VERSION:
                raise InputError(f"{path} must be a head of format {FORMAT_VERSION}, it is of {version}; {advice}.")
            arrays = {key: file[key] for key in (*_TEXT, *_SHAPES) if key in file.files}
    except InputError:
        raise
    except (*DAMAGE, TypeError) as error:
        raise InputError(f"{path} cannot be read as a head (`.npz` of plain arrays): {error}; {advice}.") from error
    check_arrays(arrays, str(path))
    return arrays, digest


def read_head(path: str | Path, parts: Sequence[str] | None = None) -> MorphableHead:
    """The head in a file, its `sha256` that of the file; `parts` as in `select_parts`. Raises `InputError`."""
    arrays, digest = read_arrays(path)
    return head_from_arrays(arrays, parts, digest)


def takes(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether this is a file."""
    return Path(name_or_path).expanduser().is_file()


def load(name_or_path: str | os.PathLike[str], parts: Sequence[str] | None = None) -> MorphableHead:
    """As `read_head`, and the head knows where it was read from."""
    path = Path(name_or_path).expanduser().resolve()
    return dataclasses.replace(read_head(path, parts), source=str(path))
