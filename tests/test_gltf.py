"""`head.glb` is read back by readers that are not ours, and moves as the result says."""

import dataclasses
import io
import struct

import jax.numpy as jnp
import numpy as np
import pygltflib
import pytest
import trimesh
from PIL import Image
from scipy.ndimage import map_coordinates
from toy_head import NAMES, toy_result

from facejax.data.baking import bake_albedo
from facejax.data.gltf import ARKIT_NAMES, write_glb
from facejax.geometry.colour import srgb_bytes_to_linear
from facejax.geometry.errors import InputError
from facejax.geometry.rotations import quaternion_to_matrix
from facejax.renderers.uv import fill_outside, rasterise_chart

DTYPES = {5126: "<f4", 5125: "<u4", 5123: "<u2"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


@pytest.fixture(scope="module")
def result():
    return toy_result(n_frames=6)


@pytest.fixture(scope="module")
def path(result, tmp_path_factory):
    path = tmp_path_factory.mktemp("glb") / "head.glb"
    write_glb(path, result, texture_size=128)
    return path


def view_bytes(gltf, index):
    view = gltf.bufferViews[index]
    return gltf.binary_blob()[view.byteOffset : view.byteOffset + view.byteLength]


def read(gltf, index):
    """Values of an accessor, sparse ones included."""
    a = gltf.accessors[index]
    values = np.zeros((a.count, WIDTHS[a.type]), DTYPES[a.componentType])
    if a.bufferView is not None:
        values[:] = np.frombuffer(view_bytes(gltf, a.bufferView), values.dtype).reshape(values.shape)
    if a.sparse is not None:
        ids = np.frombuffer(view_bytes(gltf, a.sparse.indices.bufferView), DTYPES[a.sparse.indices.componentType])
        values[ids] = np.frombuffer(view_bytes(gltf, a.sparse.values.bufferView), "<f4").reshape(-1, values.shape[1])
    if a.min:
        np.testing.assert_allclose(values.min(0), a.min, atol=1e-6)
        np.testing.assert_allclose(values.max(0), a.max, atol=1e-6)
    return values


def posed(gltf, frame):
    """Mesh name -> vertices in glTF's world at one frame of the animation, with (vertices, uv, faces) of the rest."""
    tracks = {}
    for channel in gltf.animations[0].channels:
        sampler = gltf.animations[0].samplers[channel.sampler]
        assert sampler.interpolation == "LINEAR"
        times, values = read(gltf, sampler.input), read(gltf, sampler.output)
        tracks[channel.target.node, channel.target.path] = values.reshape(len(times), -1)[frame]
    meshes = {}

    def visit(index, matrix):
        node = gltf.nodes[index]
        local = np.eye(4)
        x, y, z, w = tracks.get((index, "rotation"), node.rotation or [0, 0, 0, 1])
        local[:3, :3] = quaternion_to_matrix(jnp.array([w, x, y, z], dtype=jnp.float32))
        local[:3, 3] = tracks.get((index, "translation"), node.translation or [0, 0, 0])
        matrix = matrix @ local
        if node.mesh is not None:
            primitive = gltf.meshes[node.mesh].primitives[0]
            v = read(gltf, primitive.attributes.POSITION).astype(float)
            for target, weight in zip(primitive.targets, tracks.get((index, "weights"), []), strict=True):
                v = v + weight * read(gltf, target["POSITION"])
            meshes[gltf.meshes[node.mesh].name] = v @ matrix[:3, :3].T + matrix[:3, 3]
        for child in node.children:
            visit(child, matrix)

    for root in gltf.scenes[gltf.scene].nodes:
        visit(root, np.eye(4))
    return meshes


def lookup(picture, uv):
    """Bilinear colours at glTF's texture coordinates (v down)."""
    at = (uv * picture.shape[1::-1] - 0.5)[:, ::-1].T
    return np.stack([map_coordinates(picture[..., c], at, order=1, mode="nearest") for c in range(3)], -1)


def corners_of(gltf, name, vertices):
    mesh = next(m for m in gltf.meshes if m.name == name)
    return vertices[read(gltf, mesh.primitives[0].indices).reshape(-1, 3)]


def triangles_of(result, name):
    wanted = {"skin": ("skin", "eye_sockets"), "teeth": ("teeth", "gums")}.get(name, (name,))
    return np.array([result.part_names[p] in wanted for p in result.parts[result.faces[:, 0]]])


@pytest.mark.parametrize("frame", [0, 3, 5])
def test_the_animation_repeats_the_tracked_vertices(result, path, frame):
    gltf = pygltflib.GLTF2().load(str(path))
    meshes = posed(gltf, frame)
    assert set(meshes) == {"skin", "teeth", "left_eye", "right_eye"}
    expected = result.vertices_at(frame) * [1, -1, -1]  # OpenCV's camera frame to glTF's
    for name, vertices in meshes.items():
        want = expected[result.faces[triangles_of(result, name)]]
        np.testing.assert_allclose(corners_of(gltf, name, vertices), want, atol=5e-5, err_msg=name)
    # upright and in front of the camera: the head's top above its chin, all of it at negative z
    assert meshes["left_eye"][:, 1].mean() > meshes["teeth"][:, 1].mean()
    assert max(v[:, 2].max() for v in meshes.values()) < 0


def test_targets_are_named_and_belong_to_the_meshes_that_they_move(result, path):
    gltf = pygltflib.GLTF2().load(str(path))
    names = {m.name: (m.extras or {}).get("targetNames", []) for m in gltf.meshes}
    assert names == {"skin": list(NAMES), "teeth": ["jawOpen"], "left_eye": [], "right_eye": []}
    skin = next(m for m in gltf.meshes if m.name == "skin")
    assert len(skin.weights) == len(skin.primitives[0].targets) == len(NAMES)
    assert any(gltf.accessors[t["POSITION"]].sparse for t in skin.primitives[0].targets)
    times = read(gltf, gltf.animations[0].samplers[0].input)[:, 0]
    np.testing.assert_allclose(times, result.time - result.time[0], atol=1e-6)


def test_the_arkit_subset_drops_other_names(result, tmp_path):
    assert len(set(ARKIT_NAMES)) == 52
    write_glb(tmp_path / "a.glb", result, targets="arkit", texture_size=16)
    gltf = pygltflib.GLTF2().load(str(tmp_path / "a.glb"))
    skin = next(m for m in gltf.meshes if m.name == "skin")
    assert skin.extras["targetNames"] == list(NAMES[:-1])


def test_a_second_reader_sees_the_same_scene(result, path):
    scene = trimesh.load(path, force="scene")
    at_rest = {k: np.zeros_like(a) if k.startswith("code.frame.") else a for k, a in result.codes.items()}
    gazing = {"code.frame.gaze": result.gaze}  # eyes are turned by their nodes, all else is at rest
    still = dataclasses.replace(result, codes=at_rest | gazing)
    expected = still.vertices_at(0) * [1, -1, -1]
    for node in scene.graph.nodes_geometry:
        matrix, name = scene.graph[node]
        mesh = scene.geometry[name]
        want = expected[result.faces[triangles_of(result, name)]]
        got = trimesh.transform_points(mesh.vertices, matrix)[mesh.faces]
        np.testing.assert_allclose(got, want, atol=5e-5)
        assert mesh.volume > 0  # triangles face outwards
        assert np.sum(mesh.vertex_normals * mesh.face_normals[mesh.vertex_faces[:, 0]], -1).mean() > 0.7
        assert mesh.visual.material.baseColorTexture is not None


def test_pictures_hold_the_right_colour_at_every_vertex(result, path):
    gltf = pygltflib.GLTF2().load(str(path))
    head_albedo = np.asarray(result.albedo)
    for mesh in gltf.meshes:
        primitive = mesh.primitives[0]
        material = gltf.materials[primitive.material]
        source = gltf.textures[material.pbrMetallicRoughness.baseColorTexture.index].source
        png = view_bytes(gltf, gltf.images[source].bufferView)
        picture = srgb_bytes_to_linear(np.array(Image.open(io.BytesIO(png))))
        uv = read(gltf, primitive.attributes.TEXCOORD_0)
        inside = corners_of(gltf, mesh.name, lookup(picture, uv))
        wanted = triangles_of(result, mesh.name)
        factor = lookup(result.texture, result.uv * [1, -1] + [0, 1])
        want = np.clip(head_albedo[result.faces[wanted]] * factor[result.uv_faces[wanted]], 0, 1)
        assert np.median(np.abs(inside - want)) < 0.005
        assert np.abs(inside - want).max() < 0.06  # texels at the chart's poles and rim are shared
        specular = material.extensions["KHR_materials_ior"]["ior"]
        np.testing.assert_allclose(((specular - 1) / (specular + 1)) ** 2, 0.03, atol=1e-5)
        alpha = 0.25 if mesh.name == "skin" else 0.04
        np.testing.assert_allclose(material.pbrMetallicRoughness.roughnessFactor**2, alpha, atol=1e-5)


def test_the_camera_is_the_videos(result, path):
    camera = pygltflib.GLTF2().load(str(path)).cameras[0]
    np.testing.assert_allclose(np.tan(camera.perspective.yfov / 2), 240 / 900, rtol=1e-6)
    np.testing.assert_allclose(camera.perspective.aspectRatio, 640 / 480, rtol=1e-6)


def test_quaternions_take_the_short_way(result, tmp_path):
    turn = np.linspace(0, 4 * np.pi, 40, dtype=np.float32)
    zero, one = np.zeros_like(turn), np.ones_like(turn)
    spin = np.stack([np.cos(turn), zero, np.sin(turn), zero, one, zero, -np.sin(turn), zero, np.cos(turn)], -1)
    long = toy_result(n_frames=40)
    write_glb(tmp_path / "a.glb", dataclasses.replace(long, rotation=spin.reshape(-1, 3, 3)), texture_size=16)
    gltf = pygltflib.GLTF2().load(str(tmp_path / "a.glb"))
    head = next(i for i, n in enumerate(gltf.nodes) if n.name == "head")
    channel = next(c for c in gltf.animations[0].channels if (c.target.node, c.target.path) == (head, "rotation"))
    q = read(gltf, gltf.animations[0].samplers[channel.sampler].output)
    np.testing.assert_allclose(np.linalg.norm(q, axis=-1), 1, atol=1e-6)
    assert np.sum(q[1:] * q[:-1], axis=-1).min() > 0.9


def test_one_frame_is_enough_and_none_or_stuck_time_is_refused(result, tmp_path):
    write_glb(tmp_path / "one.glb", toy_result(n_frames=1), texture_size=16)
    assert len(pygltflib.GLTF2().load(str(tmp_path / "one.glb")).meshes) == 4
    with pytest.raises(InputError, match="`time` must increase"):
        write_glb(tmp_path / "a.glb", dataclasses.replace(result, time=np.zeros_like(result.time)))
    assert [p.name for p in tmp_path.iterdir()] == ["one.glb"]


def test_the_container_says_its_own_length(path):
    data = path.read_bytes()
    magic, version, total = struct.unpack_from("<4sII", data)
    assert (magic, version, total) == (b"glTF", 2, len(data))


def test_chart_raster_covers_a_square_once_with_exact_weights():
    square = np.array([[[0, 0], [8, 0], [0, 8]], [[8, 0], [8, 8], [0, 8]]], dtype=float)
    triangle, weights = rasterise_chart(square, 8)
    assert (triangle >= 0).all()
    assert set(np.unique(triangle)) == {0, 1}
    where = np.einsum("hwc,hwcj->hwj", weights, square[triangle])
    y, x = np.mgrid[:8, :8] + 0.5
    np.testing.assert_allclose(where, np.stack([x, y], -1), atol=1e-5)
    flipped, _ = rasterise_chart(square[:, ::-1], 8)  # either winding
    assert (flipped >= 0).all()


def test_chart_raster_at_any_triangle_size_and_off_the_edge():
    rng = np.random.default_rng(0)
    for scale in (0.3, 3, 30, 300):
        xy = rng.uniform(-20, 84, (200, 1, 2)) + rng.normal(scale=scale, size=(200, 3, 2))
        triangle, weights = rasterise_chart(xy, 64)
        y, x = np.mgrid[:64, :64] + 0.5
        hit = triangle >= 0
        where = np.einsum("nc,ncj->nj", weights[hit], xy[triangle[hit]])
        np.testing.assert_allclose(where, np.stack([x, y], -1)[hit], atol=1e-2)
        assert weights[hit].min() > -1e-5
        centres = np.stack([x, y], -1).reshape(-1, 1, 1, 2)  # a texel is empty only if no triangle holds its centre
        edge, to = np.roll(xy, -1, axis=1) - xy, centres - xy
        sides = np.moveaxis(edge[..., 0] * to[..., 1] - edge[..., 1] * to[..., 0], -1, 0)
        inside = ((sides > 1e-6).all(0) | (sides < -1e-6).all(0)).any(-1).reshape(64, 64)
        assert not (inside & ~hit).any()


def test_outside_continues_the_nearest_colour():
    picture, covered = np.zeros((37, 50, 3), np.float32), np.zeros((37, 50), bool)
    covered[:, :25] = True
    picture[:, :25] = 0.25
    covered[10:20, 40:] = True
    picture[10:20, 40:] = 0.75
    filled = fill_outside(picture, covered)
    np.testing.assert_array_equal(filled[covered], picture[covered])
    assert filled.min() >= 0.25
    np.testing.assert_allclose(filled[:, 25], 0.25, atol=1e-6)
    np.testing.assert_allclose(fill_outside(picture, np.zeros_like(covered)), picture)


def test_bake_of_a_window_is_a_part_of_the_whole(result):
    whole = bake_albedo(result, 64)
    part = bake_albedo(result, 32, window=(0.0, 0.5, 0.5, 1.0))
    np.testing.assert_allclose(part[4:28, 4:28], whole[4:28, 4:28], atol=1e-3)
