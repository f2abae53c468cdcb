"""What every head offers, and what a result keeps of it: one suite over all heads. A new head starts by passing it."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pygltflib
import pytest
from toy_avatar import GROUPS, toy_avatar
from toy_head import toy_head

from facejax.data import assets as installed
from facejax.data import heads, results
from facejax.data.gltf import write_glb
from facejax.data.results import TrackResult, assemble
from facejax.geometry.cameras import project, to_camera_frame
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import SurfacePoints
from facejax.geometry.records import Camera, Pose
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.models.avatar import Avatar
from facejax.models.head import ROLES, HeadModel
from facejax.models.morphable import MorphableHead
from facejax.scenes import make_scene
from facejax.scenes.lighting import light_rows
from facejax.scenes.unknowns import path_name

HEADS = ("toy", "generic", pytest.param("ict-facekit", marks=pytest.mark.assets), "toy avatar")
FRAMES = 3
VIEW = jnp.array([0.0, 0.0, 1.0])


@functools.cache
def adapted_avatar() -> Avatar:
    return dataclasses.replace(toy_avatar(), source="/nowhere/avatar of toy")


@pytest.fixture(scope="module", params=HEADS)
def head(request, tmp_path_factory):
    if request.param == "ict-facekit":
        archive = request.getfixturevalue("assets") / "ict-facekit" / "FaceXModel.tar.xz"
        if not archive.is_file():
            pytest.skip("ICT-FaceKit's archive is not among the development assets")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FACEJAX_HOME", str(tmp_path_factory.mktemp("home")))
            installed.install("ict-facekit", archive)
            yield heads.load_head("ict-facekit")
        return
    yield {"toy": toy_head, "generic": lambda: heads.load_head("generic"), "toy avatar": adapted_avatar}[
        request.param
    ]()


@pytest.fixture(scope="module")
def codes(head):
    """(clip, frames): random codes, as far from rest as a face goes."""
    rng = np.random.default_rng(1)

    def near(like, *leading):
        return jax.tree.map(
            lambda x: jnp.asarray(x + 0.3 * np.abs(rng.normal(size=(*leading, *x.shape))), jnp.float32), like
        )

    clip, frame = head.init_code()
    return near(clip), near(frame, FRAMES)


def frame_of(frames, k):
    return jax.tree.map(lambda x: x[k], frames)


def all_vertices(head, params, clip, frames):
    return np.asarray(jax.jit(jax.vmap(lambda frame: head.vertices(params, clip, frame)))(frames))


# --- the head ---------------------------------------------------------------------------------------------------------


def test_it_is_a_head_model(head):
    assert isinstance(head, HeadModel)
    hash(head)  # what is compiled for it is found again
    assert heads.resolve_head(head) is head
    assert re.fullmatch("[0-9a-f]{64}", head.sha256)
    assert set(head.roles) <= set(ROLES)
    leaves = jax.tree_util.tree_leaves_with_path(
        {"params": head.params, "clip": {"code": head.init_code()[0]}, "frame": {"code": head.init_code()[1]}}
    )
    names = {path_name(path) for path, _ in leaves}
    for role, paths in head.roles.items():
        assert all(any(n == p or n.startswith(p + ".") for n in names) for p in paths), role
    assert "motion" in head.roles


def test_codes_start_finite_and_in_the_same_shape_each_time(head):
    one, other = head.init_code(), head.init_code()
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert all(leaf.dtype == jnp.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(one))
    assert head.motion_features(one[1]).ndim == 1


def test_at_rest_it_is_the_neutral_person(head):
    clip, frame = head.init_code()
    at_rest = head.vertices(head.params, clip, frame)
    assert at_rest.shape == (head.topology.n_vertices, 3)
    np.testing.assert_allclose(at_rest, head.neutral(head.params, clip), atol=1e-6)
    pivots = np.asarray(head.eye_pivots(head.params, clip))
    assert pivots[0, 0] > 0 > pivots[1, 0]  # the subject's left is +x, and comes first


def test_the_decoded_geometry_is_that_of_vertices(head, codes):
    clip, frames = codes
    frame = frame_of(frames, 1)
    face = jax.jit(lambda p, c, f: head.decode(p, c, f, VIEW))(head.params, clip, frame)
    np.testing.assert_allclose(face.vertices, head.vertices(head.params, clip, frame), atol=1e-6)
    assert np.abs(face.vertices - head.neutral(head.params, clip)).max() > 1e-5  # it moves
    n = head.topology.n_vertices
    assert face.albedo.shape == (n, 3)
    assert face.specular.shape == face.roughness.shape == (n,)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(face))


def test_gradients_at_rest_are_finite(head):
    def total(params, clip, frame):
        face = head.decode(params, clip, frame, VIEW)
        parts = jax.tree.map(lambda x: jnp.sum(x**2), (face, head.vertices(params, clip, frame)))
        return sum(jax.tree.leaves(parts)) + head.code_prior(params, clip, frame)

    gradients = jax.jit(jax.grad(total, argnums=(1, 2)))(head.params, *head.init_code())
    assert jax.tree.structure(gradients) == jax.tree.structure(head.init_code())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    moved = jax.jit(jax.grad(lambda f: jnp.sum(head.vertices(head.params, head.init_code()[0], f) ** 2)))
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(moved(head.init_code()[1])))


def test_the_prior_prefers_rest(head, codes):
    clip, frames = codes
    at_rest = head.code_prior(head.params, *head.init_code())
    assert at_rest.shape == ()
    assert head.code_prior(head.params, clip, frame_of(frames, 0)) > at_rest


def test_reduced_to_points_it_gives_the_points_of_the_whole(head, codes):
    clip, frames = codes
    skin = (
        np.asarray(head.regions["skin"])[head.topology.faces].min(axis=1) > 0.5
    )  # eyes turn rigidly, by nearest corner
    triangles = head.topology.faces[np.flatnonzero(skin)[:: max(1, skin.sum() // 50)]]
    weights = np.random.default_rng(2).dirichlet(np.ones(3), len(triangles)).astype(np.float32)
    points = SurfacePoints(triangles, weights)
    reduced = head.at_points(points)
    for k in range(FRAMES):
        frame = frame_of(frames, k)
        whole = points.on(head.vertices(head.params, clip, frame))
        np.testing.assert_allclose(reduced.vertices(reduced.params, clip, frame), whole, atol=1e-6)


def test_scaled_it_is_larger_everywhere_and_nothing_else(head, codes):
    clip, frames = codes
    frame, large = frame_of(frames, 2), head.scaled(1.5)
    assert large.sha256 == head.sha256
    np.testing.assert_allclose(
        large.vertices(large.params, clip, frame), 1.5 * head.vertices(head.params, clip, frame), atol=1e-6
    )
    np.testing.assert_allclose(
        large.eye_pivots(large.params, clip), 1.5 * head.eye_pivots(head.params, clip), atol=1e-6
    )
    shown, other = (h.decode(h.params, clip, frame, VIEW) for h in (head, large))
    np.testing.assert_allclose(other.texture, shown.texture, atol=1e-5)
    np.testing.assert_array_equal(other.albedo, shown.albedo)


def test_landmarks_lie_on_the_head(head):
    at_rest = np.asarray(head.neutral(head.params, head.init_code()[0]))
    points = np.asarray(head.landmark_points(jnp.asarray(at_rest)))
    assert points.shape == (478, 3)
    np.testing.assert_allclose(points, head.landmarks478.on(jnp.asarray(at_rest)), atol=1e-6)
    assert (points.min(axis=0) >= at_rest.min(axis=0) - 1e-6).all()
    assert (points.max(axis=0) <= at_rest.max(axis=0) + 1e-6).all()


def test_as_a_morphable_head_it_has_the_same_mesh(head, codes):
    clip, frames = codes
    start = make_scene(head, (32, 32)).lighting.init()
    light = jnp.broadcast_to(start, (FRAMES, *start.shape))
    twin, identity, expressions, harmonics = head.as_morphable(head.params, clip, frames, light)
    assert isinstance(twin, MorphableHead)
    assert harmonics.shape == (FRAMES, 9, 3)
    expected = all_vertices(head, head.params, clip, frames)
    np.testing.assert_allclose(all_vertices(twin, twin.params, identity, expressions), expected, atol=1e-5)
    np.testing.assert_array_equal(twin.topology.faces, head.topology.faces)


# --- a result of it ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def poses():
    turns = jax.vmap(rotvec_to_matrix)(
        jnp.asarray(0.2 * np.random.default_rng(3).normal(size=(FRAMES, 3)), jnp.float32)
    )
    away = jnp.tile(jnp.array([0.0, 0.0, 0.8]), (FRAMES, 1))
    return jax.vmap(Pose)(jnp.diag(jnp.array([1.0, -1.0, -1.0])) @ turns, away)


CAMERA = Camera(focal=jnp.array([900.0, 900.0]), principal_point=jnp.array([320.0, 240.0]))


def result_of(head, codes, poses, **changes) -> TrackResult:
    params = head.params
    if isinstance(head, Avatar):  # as after a fit, in which the network learns
        params = {**params, "lighting": jax.tree.map(lambda x: x + 0.01, params["lighting"])}
    rows = light_rows(make_scene(head, (32, 32)).lighting)
    fields = {
        "params": params,
        "code": codes[0],
        "frames": codes[1],
        "poses": poses,
        "light": np.random.default_rng(4).uniform(1, 2, (FRAMES, rows, 3)).astype(np.float32),
        "light_model": "network" if isinstance(head, Avatar) else "",
        "camera": CAMERA,
        "image_size": (640, 480),
        "time": np.arange(FRAMES) / 25,
        "frame_ids": np.arange(FRAMES),
        "landmarks_target": np.full((FRAMES, 478, 2), np.nan, np.float32),
        "valid": np.ones(FRAMES, bool),
        "status": np.zeros(FRAMES, int),
        "status_names": ("ok",),
    }
    return assemble(head, **fields | changes)


@pytest.fixture(scope="module")
def result(head, codes, poses):
    return result_of(head, codes, poses)


@pytest.fixture
def findable(head, monkeypatch):
    """`load_head` knows the toy head by its name; all others it finds by itself."""
    known = heads.load_head
    monkeypatch.setattr(heads, "load_head", lambda name: head if head.name == "toy" == name else known(name))


def assert_same_codes(loaded, codes):
    for got, want in ((loaded.identity_code(), codes[0]), (loaded.frame_codes(), codes[1])):
        assert jax.tree.structure(got) == jax.tree.structure(want)
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_result_keeps_the_head_s_own_codes(head, codes, poses, result):
    assert result.load_head() is head
    assert_same_codes(result, codes)
    in_head = all_vertices(head, head.params, *codes)
    in_camera = np.asarray(jax.vmap(to_camera_frame)(in_head, poses))
    np.testing.assert_allclose(result.vertices, in_camera, atol=1e-6)
    np.testing.assert_allclose(result.head_vertices_at(slice(1, 3)), in_head[1:3], atol=1e-6)
    np.testing.assert_allclose(result.vertices_at(-1), in_camera[-1], atol=1e-6)
    points = jax.vmap(lambda v: project(head.landmark_points(v), CAMERA))(jnp.asarray(in_camera))
    np.testing.assert_allclose(result.landmarks, points, atol=1e-2)


def test_saved_and_loaded_it_is_the_same_to_the_bit(head, codes, result, tmp_path, findable):
    result.save(tmp_path / "out")
    loaded = TrackResult.load(tmp_path / "out")
    assert loaded.head is None  # nothing asked for the head yet
    assert_same_codes(loaded, codes)
    assert loaded.load_head().sha256 == head.sha256
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), loaded.load_params(), result.params
    )
    np.testing.assert_array_equal(loaded.light_code, result.light_code)
    loaded.save(tmp_path / "again")
    again = TrackResult.load(tmp_path / "again")
    assert_same_codes(again, codes)
    assert again.light_model == result.light_model
    assert again.head_source == result.head_source


def test_a_long_clip_s_vertices_are_derived_from_the_file(head, codes, result, tmp_path, findable, monkeypatch):
    monkeypatch.setattr(results, "MAX_FRAMES_WITH_VERTICES", FRAMES - 1)
    result.save(tmp_path)
    loaded = TrackResult.load(tmp_path)
    assert loaded.stored_vertices is None
    np.testing.assert_allclose(loaded.vertices, result.vertices, atol=1e-6)
    np.testing.assert_allclose(loaded.face(1).vertices, all_vertices(head, head.params, *codes)[1], atol=1e-6)


def test_a_loaded_result_is_exported(head, result, tmp_path, findable):
    result.save(tmp_path)
    write_glb(tmp_path / "loaded.glb", TrackResult.load(tmp_path), texture_size=16)
    write_glb(tmp_path / "made.glb", result, texture_size=16)
    made, loaded = (pygltflib.GLTF2().load(str(tmp_path / f"{n}.glb")) for n in ("made", "loaded"))
    assert len(made.animations[0].channels) > 2
    assert [m.name for m in made.meshes] == [m.name for m in loaded.meshes]
    assert [m.extras for m in made.meshes] == [m.extras for m in loaded.meshes]


def test_a_scaled_result_finds_its_head_at_that_scale(head, codes, poses, tmp_path, findable, monkeypatch):
    monkeypatch.setattr(results, "MAX_FRAMES_WITH_VERTICES", 0)
    large = head.scaled(1.25)
    params = large.params
    result = result_of(large, codes, poses, params=params, scale=1.25)
    result.save(tmp_path)
    loaded = TrackResult.load(tmp_path)
    np.testing.assert_allclose(loaded.head_vertices_at(1), 1.25 * all_vertices(head, head.params, *codes)[1], atol=1e-6)
    assert loaded.load_head().sha256 == head.sha256


def test_a_head_that_is_gone_is_told_with_where_it_was(head, result, tmp_path):
    result.save(tmp_path)
    (tmp_path / "avatar.npz").unlink(missing_ok=True)
    lost = dataclasses.replace(TrackResult.load(tmp_path), model_name="gone", head_source="/nowhere/bob.npz")
    with pytest.raises(
        InputError, match=r"made with the head 'gone', which was at /nowhere/bob\.npz and is there no long"
    ):
        lost.load_head()
    with pytest.raises(InputError, match="track the clip again"):
        lost.frame_codes()


def test_every_frame_may_have_its_own_camera_and_size(head, codes, poses):
    focal = np.array([[900.0, 900.0], [700.0, 720.0], [800.0, 800.0]], np.float32)
    centre = np.array([[320.0, 240.0], [200.0, 300.0], [320.0, 240.0]], np.float32)
    cameras = CAMERA.replace(focal=jnp.asarray(focal), principal_point=jnp.asarray(centre))
    sizes = np.array([[640, 480], [400, 600], [640, 480]])
    result = result_of(head, codes, poses, camera=cameras, image_size=sizes)
    np.testing.assert_array_equal(result.frame_size, sizes)
    np.testing.assert_array_equal(result.image_size, sizes[0])
    np.testing.assert_array_equal(result.camera_at(1).focal, focal[1])
    np.testing.assert_array_equal(result.camera.focal, focal[0])
    points = project(head.landmark_points(jnp.asarray(result.vertices_at(1))), result.camera_at(1))
    np.testing.assert_allclose(result.landmarks[1], points, atol=1e-2)


def test_avatars_and_others_are_told_apart(head, result, tmp_path):
    assert result.is_avatar == isinstance(head, Avatar)
    result.save(tmp_path)
    assert TrackResult.load(tmp_path).is_avatar == isinstance(head, Avatar)
    rows = GROUPS if isinstance(head, Avatar) else 9
    assert result.light_code.shape == (FRAMES, rows, 3)
    assert result.light.shape == (FRAMES, 9, 3)
