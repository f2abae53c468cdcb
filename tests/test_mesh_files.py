"""Meshes in files: what is written is read back by us and by trimesh, and what cannot be read is said in a sentence."""

import numpy as np
import pytest
import trimesh
from toy_head import toy_head, toy_result

from facejax.data.meshes import SUFFIXES, read_mesh, split_at_seams, write_mesh
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import Topology

HEAD = toy_head()
VERTICES = np.asarray(HEAD.params.mean)
QUAD = """# a quad, and a triangle on its other side of a seam
v 0 0 0
v 1 0 0 0.5 0.5 0.5
v 1 1 0
v 0 1 0.123456789
v 9 9 9
vt 0 0
vt 1 0 0
vt 1 1
vt 0 1
vn 0 0 1
g part
f 1/1/1 2/2/1 3/3/1 4/4/1
f 1/3 2/1 3/2
"""


def stray(topology):
    """The same with a vertex before all others that no triangle uses."""
    return Topology(topology.faces + 1, topology.uv, topology.uv_faces, topology.n_vertices + 1)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("with_stray", [False, True])
def test_a_written_mesh_is_read_back(tmp_path, suffix, with_stray):
    topology = stray(HEAD.topology) if with_stray else HEAD.topology
    vertices = np.concatenate([[[9.0, 9.0, 9.0]], VERTICES]) if with_stray else VERTICES
    path = tmp_path / f"head{suffix}"
    write_mesh(path, vertices, topology)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no material beside it
    back, read = read_mesh(path)
    np.testing.assert_array_equal(back[: len(vertices)], vertices.astype(np.float32))  # the head's own ids
    np.testing.assert_array_equal(back[read.faces], vertices[topology.faces].astype(np.float32))
    if suffix == ".ply":
        np.testing.assert_array_equal(read.faces, topology.faces)
        np.testing.assert_array_equal(read.uv, [[0, 0]])
    else:
        np.testing.assert_allclose(read.uv[read.uv_faces], topology.uv[topology.uv_faces], atol=1e-7)
    if suffix == ".obj":
        np.testing.assert_array_equal(read.faces, topology.faces)
        np.testing.assert_array_equal(read.uv_faces, topology.uv_faces)
        np.testing.assert_array_equal(read.uv, topology.uv)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_second_reader_sees_the_same_surface(tmp_path, suffix):
    write_mesh(tmp_path / f"head{suffix}", VERTICES, HEAD.topology)
    seen = trimesh.load(tmp_path / f"head{suffix}", force="mesh")
    want = trimesh.Trimesh(VERTICES, HEAD.topology.faces)
    assert len(seen.faces) == len(want.faces)
    np.testing.assert_allclose(seen.area, want.area, rtol=1e-5)
    np.testing.assert_allclose(seen.volume, want.volume, rtol=1e-5)  # and its triangles face outwards
    assert want.volume > 0


def test_vertices_are_split_at_seams_only():
    ids, uv_ids, faces = split_at_seams(HEAD.topology)
    t = HEAD.topology
    np.testing.assert_array_equal(ids[: t.n_vertices], np.arange(t.n_vertices))
    np.testing.assert_array_equal(ids[faces], t.faces)
    np.testing.assert_array_equal(uv_ids[faces], t.uv_faces)
    pairs = np.unique(np.stack([t.faces, t.uv_faces], axis=-1).reshape(-1, 2), axis=0)
    assert len(ids) == len(pairs) + t.n_vertices - len(np.unique(t.faces)) > t.n_vertices


def test_an_obj_s_ids_are_kept(tmp_path):
    """Where trimesh would renumber, drop the last vertex and lose the coordinates of a seam."""
    path = tmp_path / "x.obj"
    path.write_text(QUAD)
    vertices, topology = read_mesh(path)
    assert vertices.shape == (5, 3)
    np.testing.assert_array_equal(vertices[3], np.float32([0, 1, 0.123456789]))
    np.testing.assert_array_equal(topology.faces, [[0, 1, 2], [0, 2, 3], [0, 1, 2]])
    np.testing.assert_array_equal(topology.uv_faces, [[0, 1, 2], [0, 2, 3], [2, 0, 1]])
    np.testing.assert_array_equal(topology.uv, [[0, 0], [1, 0], [1, 1], [0, 1]])


def test_an_obj_without_coordinates_has_one(tmp_path):
    (tmp_path / "x.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1//1 2//1 3//1\nf 3 2 1\n")
    _, topology = read_mesh(tmp_path / "x.obj")
    np.testing.assert_array_equal(topology.uv, [[0, 0]])
    np.testing.assert_array_equal(topology.uv_faces, np.zeros((2, 3)))


def test_a_scene_s_meshes_become_one_where_its_nodes_put_them(tmp_path):
    box = trimesh.creation.box()
    scene = trimesh.Scene()
    scene.add_geometry(box, node_name="a")
    scene.add_geometry(box, node_name="b", transform=trimesh.transformations.translation_matrix([5, 0, 0]))
    scene.export(tmp_path / "two.glb")
    vertices, topology = read_mesh(tmp_path / "two.glb")
    assert topology.n_faces == 24
    np.testing.assert_allclose([vertices[:, 0].min(), vertices[:, 0].max()], [-0.5, 5.5], atol=1e-6)


@pytest.mark.parametrize("frame", [0, -1])
def test_a_result_s_frame_is_written_in_the_head_frame(tmp_path, frame):
    result = toy_result(3)
    result.write_mesh(tmp_path / "head.obj", frame)
    vertices, topology = read_mesh(tmp_path / "head.obj")
    np.testing.assert_array_equal(vertices, result.head_vertices_at(frame))
    np.testing.assert_array_equal(topology.uv_faces, result.uv_faces)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.obj", "v 0 0 0\nf 1 2 3\n", "corners are among its 1 vertices"),
        ("x.obj", "v 0 0\n", "line 1, is no vertex"),
        ("x.obj", "v 0 0 0\nf 1 a 1\n", "line 2, is no vertex"),
        ("x.obj", "", "corners are among its 0 vertices"),
        ("x.obj", b"\xff\xfe\x00", "cannot be read as an OBJ"),
        ("x.ply", "nonsense", "cannot be read as a mesh"),
        ("x.glb", "nonsense", "cannot be read as a mesh"),
        ("x.stl", "solid", "ends in .obj, .ply, .glb, and 'x.stl' does not"),
        ("x.ply", None, "No mesh at"),
    ],
)
def test_what_is_no_mesh_is_refused(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=words):
        read_mesh(tmp_path / name)


@pytest.mark.parametrize("suffix", [".ply", ".glb"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"head{suffix}"
    write_mesh(path, VERTICES, HEAD.topology)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="cannot be read as a mesh"):
        read_mesh(path)


def test_a_mesh_that_does_not_fit_or_has_no_format_is_not_written(tmp_path):
    with pytest.raises(InputError, match=rf"must have {len(VERTICES)} vertices"):
        write_mesh(tmp_path / "x.obj", VERTICES[1:], HEAD.topology)
    with pytest.raises(InputError, match="ends in"):
        write_mesh(tmp_path / "x.stl", VERTICES, HEAD.topology)
    assert not list(tmp_path.iterdir())
