"""Meshes as files that every 3D program opens: OBJ, PLY and GLB.

trimesh reads and writes PLY and GLB, whose vertices carry one texture coordinate each at most. OBJ is ours: its corners
pick vertex and coordinate apart, as `Topology` does, and trimesh keeps one of the two only. With `maintain_order` it
gives a vertex on a seam the coordinate of one side; without, vertices are split, renumbered and, where no triangle uses
them, dropped. A head's vertex ids are what its tables speak of, so neither will do.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from facejax.data.files import atomic_write
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import Topology

SUFFIXES = (".obj", ".ply", ".glb")
"""Of the files that `read_mesh` and `write_mesh` take."""


def write_mesh(path: Path | str, vertices: Float[np.ndarray, "v 3"], topology: Topology) -> None:
    """Write a mesh, whole or not at all, by the file's suffix; lengths stay metres.

    `.obj`: everything, under the head's own vertex ids. `.ply`: vertices and triangles under these ids, no texture
    coordinates. `.glb`: the ids, then a vertex more for each further texture coordinate of one on a seam. Raises
    `InputError` for another suffix, and vertices that do not fit the topology.
    """
    path, points = Path(path), np.asarray(vertices, np.float32)
    _check_suffix(path)
    if points.shape != (topology.n_vertices, 3):
        raise InputError(f"The mesh must have {topology.n_vertices} vertices of 3 coordinates, got {points.shape}.")
    with atomic_write(path) as temporary:
        if path.suffix.lower() == ".obj":
            temporary.write_text(_obj_text(points, topology), encoding="ascii")
        else:
            _write_by_trimesh(temporary, points, topology)


def read_mesh(path: Path | str) -> tuple[Float32[np.ndarray, "v 3"], Topology]:
    """(vertices, topology) of an OBJ, PLY or GLB file, in the file's units; several meshes of a GLB become one.

    Polygons are cut into fans. A mesh without texture coordinates has the single one (0, 0). Raises `InputError` for a
    missing, damaged or empty file.
    """
    path = Path(path).expanduser()
    _check_suffix(path)
    if not path.is_file():
        raise InputError(f"No mesh at {path}: give an .obj, .ply or .glb file.")
    return read_obj(path) if path.suffix.lower() == ".obj" else _read_by_trimesh(path)


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"A mesh's file ends in {', '.join(SUFFIXES)}, and {path.name!r} does not: choose one of them."
        )


# -- OBJ --------------------------------------------------------------------------------------------------------------


def _obj_text(vertices: Float32[np.ndarray, "v 3"], topology: Topology) -> str:
    corners = np.stack([topology.faces, topology.uv_faces], axis=-1) + 1
    return "".join(
        [
            "# made by facejax, metres\n",
            *("v {:.9g} {:.9g} {:.9g}\n".format(*v) for v in vertices.tolist()),
            *("vt {:.9g} {:.9g}\n".format(*t) for t in topology.uv.tolist()),
            *("f {}/{} {}/{} {}/{}\n".format(*f) for f in corners.reshape(-1, 6).tolist()),
        ]
    )


def read_obj(path: Path) -> tuple[Float32[np.ndarray, "v 3"], Topology]:
    """As `read_mesh`, of an OBJ: vertices in no triangle stay, and so do ids of vertices and coordinates."""
    vertices: list[list[float]] = []
    uv: list[list[float]] = []
    corners: list[list[tuple[int, int]]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as an OBJ file ({error}): is it whole?") from error
    for number, line in enumerate(lines, 1):
        word, *rest = line.split() or [""]
        try:
            if word == "v":
                x, y, z = rest[:3]
                vertices.append([float(x), float(y), float(z)])
            elif word == "vt":
                u, v = rest[:2]
                uv.append([float(u), float(v)])
            elif word == "f":
                ids = [(int(v), int(t or 1)) for v, t, *_ in (f"{corner}//".split("/") for corner in rest)]
                corners += [[ids[0], b, c] for b, c in itertools.pairwise(ids[1:])]
        except (ValueError, IndexError) as error:
            raise InputError(
                f"{path}, line {number}, is no vertex, texture coordinate or face: {line.strip()[:80]!r}."
            ) from error
    uv = uv or [[0.0, 0.0]]
    f, t = np.moveaxis(np.array(corners, np.int32).reshape(-1, 3, 2) - 1, -1, 0)
    if not len(f) or f.min() < 0 or t.min() < 0 or f.max() >= len(vertices) or t.max() >= len(uv):
        raise InputError(
            f"{path} must have faces whose corners are among its {len(vertices)} vertices and {len(uv)} texture "
            "coordinates: it is cut short or damaged, export or unpack it again."
        )
    topology = Topology(faces=f, uv=np.array(uv, np.float32), uv_faces=t, n_vertices=len(vertices))
    return np.array(vertices, np.float32), topology


# -- PLY and GLB, by trimesh ------------------------------------------------------------------------------------------


def _write_by_trimesh(path: Path, vertices: Float32[np.ndarray, "v 3"], topology: Topology) -> None:
    import trimesh

    if path.suffix.lower() == ".ply":
        trimesh.Trimesh(vertices, topology.faces, process=False).export(path)
        return
    ids, uv_ids, faces = split_at_seams(topology)
    chart = trimesh.visual.TextureVisuals(uv=topology.uv[uv_ids])
    trimesh.Trimesh(vertices[ids], faces, visual=chart, process=False).export(path)


def split_at_seams(topology: Topology) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(vertex ids, texture coordinate ids, triangles) of a mesh whose vertices have one texture coordinate each.

    The first are the topology's own vertices in their order; what follows are those that have further coordinates.
    """
    pairs = np.stack([topology.faces, topology.uv_faces], axis=-1).reshape(-1, 2)
    found, of = np.unique(pairs, axis=0, return_inverse=True)  # sorted by vertex, then by coordinate
    first = np.concatenate([[True], found[1:, 0] != found[:-1, 0]])
    rows = np.where(first, found[:, 0], topology.n_vertices + np.cumsum(~first) - 1)
    uv_ids = np.zeros(topology.n_vertices + int((~first).sum()), dtype=np.int64)
    uv_ids[rows] = found[:, 1]
    ids = np.concatenate([np.arange(topology.n_vertices), found[~first, 0]])
    return ids, uv_ids, rows[of.reshape(-1)].reshape(-1, 3).astype(np.int32)


def _read_by_trimesh(path: Path) -> tuple[Float32[np.ndarray, "v 3"], Topology]:
    import trimesh

    try:
        loaded = trimesh.load(path, process=False)
    except Exception as error:  # its readers raise whatever their parsing trips over
        raise InputError(f"{path} cannot be read as a mesh ({error}): is it whole?") from error
    found: Any = loaded.dump() if isinstance(loaded, trimesh.Scene) else [loaded]  # with their nodes' transforms
    parts = [part for part in found if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    if not parts:
        raise InputError(f"{path} holds no triangles: export the mesh again.")
    starts = np.cumsum([0, *(len(part.vertices) for part in parts)])
    faces = np.concatenate([part.faces + start for part, start in zip(parts, starts[:-1], strict=True)])
    charts = [uv for part in parts if (uv := getattr(part.visual, "uv", None)) is not None]
    if len(charts) == len(parts):
        uv, uv_faces = np.concatenate(charts).astype(np.float32), faces
    else:
        uv, uv_faces = np.zeros((1, 2), np.float32), np.zeros_like(faces)
    topology = Topology(
        faces=faces.astype(np.int32), uv=uv, uv_faces=uv_faces.astype(np.int32), n_vertices=int(starts[-1])
    )
    return np.concatenate([part.vertices for part in parts]).astype(np.float32), topology
