"""`track.npz` gives back what was tracked, and says in one sentence what is wrong with a file that does not."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from toy_avatar import toy_avatar
from toy_head import toy_codes, toy_head, toy_result

from facejax.data import heads, npz, results
from facejax.data.codes import flatten_code, unflatten_code
from facejax.data.results import RESULT_FILES, TrackResult, assemble, load_metrics, save_metrics
from facejax.geometry.cameras import project, to_camera_frame
from facejax.geometry.errors import InputError


@pytest.fixture(scope="module")
def result():
    return toy_result()


def fields_of(result):
    return {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}


def rewrite(folder, **changes):
    """Change arrays of a saved file; None removes one."""
    with np.load(folder / "track.npz") as file:
        arrays = dict(file) | changes
    np.savez(folder / "track.npz", **{k: v for k, v in arrays.items() if v is not None})


def test_derived_vertices_are_the_models(result):
    head = result.head
    shared, frames, poses, camera = toy_codes(head, len(result))
    in_head = jax.vmap(lambda frame: head.vertices(head.params, shared, frame))(frames)
    in_camera = jax.vmap(to_camera_frame)(in_head, poses)
    np.testing.assert_allclose(result.vertices, in_camera, atol=1e-6)
    np.testing.assert_allclose(result.head_vertices_at(slice(1, 3)), in_head[1:3], atol=1e-6)
    np.testing.assert_allclose(result.vertices_at(-1), in_camera[-1], atol=1e-6)
    points = jax.vmap(lambda v: project(head.landmark_points(v), camera))(in_camera)
    np.testing.assert_allclose(result.landmarks, points, atol=1e-2)


def test_everything_comes_back(result, tmp_path):
    result.save(tmp_path / "new" / "out")
    assert sorted(p.name for p in (tmp_path / "new" / "out").iterdir()) == ["metrics.json", "track.npz"]
    assert set(RESULT_FILES) >= {"metrics.json", "track.npz"}
    loaded = TrackResult.load(tmp_path / "new" / "out")
    for name, value in fields_of(result).items():
        if name in ("head", "params", "stored_vertices", "codes", "folder"):
            continue
        np.testing.assert_array_equal(getattr(loaded, name), value, err_msg=name)
    assert loaded.codes.keys() == result.codes.keys()
    for name, value in result.codes.items():
        np.testing.assert_array_equal(loaded.codes[name], value, err_msg=name)
    assert loaded.folder == tmp_path / "new" / "out"
    np.testing.assert_array_equal(loaded.vertices, result.vertices)
    np.testing.assert_allclose(loaded.head_vertices_at(2), result.head_vertices_at(2), atol=1e-6)
    assert loaded.stored_vertices.dtype == np.float32
    assert loaded.head is None  # nothing asked for the model
    again = TrackResult.load(tmp_path / "new" / "out" / "track.npz")
    again.save(tmp_path / "again")  # a loaded result can be saved
    np.testing.assert_array_equal(TrackResult.load(tmp_path / "again").vertices, result.vertices)


def test_the_file_is_plain_arrays_under_the_documented_names(result, tmp_path):
    result.save(tmp_path)
    with np.load(tmp_path / "track.npz", allow_pickle=False) as file:
        f, v, e = len(result), len(result.neutral), result.expression.shape[1]
        shapes = {name: file[name].shape for name in file.files}
    expected = {
        "format_version": (), "model_name": (), "model_sha256": (), "vertices": (f, v, 3), "neutral": (v, 3),
        "faces": result.faces.shape, "landmarks68_neutral": (68, 3), "identity": (3,), "expression": (f, e),
        "expression_names": (e,), "gaze": (f, 2, 2), "eyelids": (f, 2), "joint_rotation": (f, 0, 3, 3),
        "joint_names": (0,), "rotation": (f, 3, 3), "translation": (f, 3), "intrinsics": (3, 3), "image_size": (2,),
        "time": (f,), "light": (f, 9, 3), "albedo": (v, 3), "texture": (16, 16, 3), "uv": result.uv.shape,
        "uv_faces": result.faces.shape, "landmarks": (f, 478, 2), "landmarks_target": (f, 478, 2), "valid": (f,),
        "status": (f,), "status_names": (2,), "head_source": (), "light_code": (f, 9, 3), "light_model": (),
        "frame_intrinsics": (f, 3, 3), "frame_size": (f, 2), "code.clip.shape": (3,), "code.clip.skin": (2,),
        "code.clip.texture": (16, 16, 3), "code.frame.activations": (f, e), "code.frame.gaze": (f, 2, 2),
        "code.frame.eyelids": (f, 2),
    }  # fmt: skip
    assert expected.items() <= shapes.items()


NEW_IN_FORMAT_2 = ("head_source", "light_code", "light_model", "frame_intrinsics", "frame_size")


def as_format_1(folder):
    """The file as facejax wrote it before results kept the head's own codes."""
    with np.load(folder / "track.npz") as file:
        later = [name for name in file.files if name.startswith("code.") or name in NEW_IN_FORMAT_2]
    assert len(later) > len(NEW_IN_FORMAT_2)
    rewrite(folder, format_version=np.int32(1), **dict.fromkeys(later))


@pytest.mark.parametrize("with_vertices", [True, False])
def test_a_file_of_format_1_still_loads(result, tmp_path, monkeypatch, with_vertices):
    monkeypatch.setattr(results, "MAX_FRAMES_WITH_VERTICES", 100 if with_vertices else 0)
    monkeypatch.setattr(heads, "load_head", lambda name: toy_head())
    result.save(tmp_path)
    as_format_1(tmp_path)
    loaded = TrackResult.load(tmp_path)
    for name in (*NEW_IN_FORMAT_2, "expression", "landmarks", "texture"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(result, name), err_msg=name)
    np.testing.assert_allclose(loaded.vertices, result.vertices, atol=1e-6)
    for got, want in ((loaded.identity_code(), result.identity_code()), (loaded.frame_codes(), result.frame_codes())):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)
    loaded.save(tmp_path / "again")  # in the format of today
    assert TrackResult.load(tmp_path / "again").codes.keys() == result.codes.keys()


def avatar_result():
    """Three frames of the toy avatar, whose network has learnt something."""
    avatar, n = toy_avatar(), 3
    clip, frame = avatar.init_code()
    rng = np.random.default_rng(0)
    _, _, poses, camera = toy_codes(toy_head(), n)
    return assemble(
        avatar,
        params={**avatar.params, "lighting": jax.tree.map(lambda x: x + 0.1, avatar.params["lighting"])},
        code=clip,
        frames=frame.replace(code=rng.normal(size=(n, *frame.code.shape)).astype(np.float32)),
        poses=poses,
        light=rng.uniform(size=(n, *avatar.no_light().shape)).astype(np.float32),
        light_model="network",
        camera=camera,
        image_size=(640, 480),
        time=np.arange(n) / 25,
        frame_ids=np.arange(n),
        landmarks_target=np.full((n, 478, 2), np.nan, np.float32),
        valid=np.ones(n, bool),
        status=np.zeros(n, int),
        status_names=("ok",),
    )


def test_an_avatar_s_file_of_format_1_takes_its_codes_from_the_avatar_beside_it(tmp_path):
    made = avatar_result()
    made.save(tmp_path)
    as_format_1(tmp_path)
    loaded = TrackResult.load(tmp_path)
    assert loaded.light_model == "network"
    np.testing.assert_array_equal(loaded.frame_codes().code, made.frame_codes().code)
    np.testing.assert_allclose(loaded.light_code, made.light_code)
    (tmp_path / "avatar.npz").unlink()
    orphan = TrackResult.load(tmp_path)
    with pytest.raises(InputError, match="No model named 'toy'"):
        orphan.load_head()
    with pytest.raises(InputError, match="older facejax, without the codes of its head 'toy'"):
        orphan.with_head(toy_avatar()).frame_codes()


def test_a_clip_s_code_may_be_empty(result, tmp_path):
    """Where light is not the head's and a person is fixed, nothing of the code is one for a clip."""
    assert flatten_code((), "code.clip") == {}
    assert unflatten_code((), {}, "code.clip") == ()
    tree = {"a": np.arange(2), "b": (np.ones(3), ())}
    flat = flatten_code(tree, "code.frame")
    assert set(flat) == {"code.frame.a", "code.frame.b.0"}
    jax.tree.map(np.testing.assert_array_equal, unflatten_code(tree, flat, "code.frame"), tree)
    with pytest.raises(InputError, match=r"has no `code\.frame\.c`, which its head's code has"):
        unflatten_code({"c": 0}, flat, "code.frame")


def test_long_clips_store_no_vertices_and_derive_the_same(result, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "MAX_FRAMES_WITH_VERTICES", 4)
    result.save(tmp_path)
    with np.load(tmp_path / "track.npz") as file:
        assert "vertices" not in file.files
    loaded = TrackResult.load(tmp_path).with_head(result.head)
    np.testing.assert_array_equal(loaded.vertices, result.vertices)


def test_another_version_of_the_model_is_refused(result, monkeypatch):
    other = dataclasses.replace(result, head=None, params=None, model_sha256="1" * 64)
    monkeypatch.setattr(heads, "load_head", lambda name: toy_head())
    with pytest.raises(InputError, match="installed one is 000000000000"):
        other.vertices_at(0)
    with pytest.raises(InputError, match="this one is 000000000000"):
        other.with_head(toy_head())
    with pytest.raises(InputError, match="load the head with the parts it was tracked with"):
        result.with_head(toy_head(rows=12))
    right = dataclasses.replace(result, head=None, params=None)
    np.testing.assert_array_equal(right.vertices_at(0), result.vertices_at(0))


def test_large_arrays_are_mapped_not_read(result, tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "_MAP_BYTES", 1000)
    result.save(tmp_path)
    loaded = TrackResult.load(tmp_path)
    assert isinstance(loaded.stored_vertices, np.memmap)
    assert isinstance(loaded.landmarks, np.memmap)
    np.testing.assert_array_equal(loaded.stored_vertices, result.vertices)
    np.testing.assert_array_equal(loaded.landmarks_target, result.landmarks_target)


def test_codes_for_fitting_come_back(result):
    shared, frames, _, camera = toy_codes(result.head, len(result))
    jax.tree.map(np.testing.assert_array_equal, result.identity_code(), shared)
    jax.tree.map(np.testing.assert_array_equal, result.frame_codes(), frames)
    np.testing.assert_array_equal(result.camera.focal, camera.focal)
    assert result.face(1).vertices.shape == result.neutral.shape
    np.testing.assert_allclose(
        to_camera_frame(result.face(1).vertices, result.pose(1)), result.vertices_at(1), atol=1e-6
    )


def test_parts_of_the_head(result):
    names = np.array(result.part_names)[result.parts]
    assert set(names) == {"skin", "left_eye", "right_eye", "teeth"}
    assert result.neutral[names == "left_eye", 0].mean() > 0.02  # the subject's left is +x


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gaze": None}, "lacks `gaze`"),
        ({"format_version": None}, "no `format_version`"),
        ({"format_version": np.int32(99)}, "pip install --upgrade"),
        ({"rotation": np.zeros((4, 3, 3), np.float32)}, r"`rotation` must have shape \(5, 3, 3\), got \(4, 3, 3\)"),
        ({"vertices": np.zeros((5, 7, 3), np.float32)}, "`vertices` must be float32"),
        ({"faces": np.zeros((9, 3), np.float32)}, "`faces` must hold int32"),
        ({"faces": np.full((10, 3), -1, np.int32)}, r"`faces`|`uv_faces`"),
        ({"light": np.zeros((5, 7, 3), np.float32)}, "bands squared"),
        ({"expression_names": np.array(["jawOpen"])}, "`expression_names` must have 6 entries"),
        ({"model_name": np.float32(3)}, "`model_name` must be one name"),
        ({"frame_size": np.ones((5, 2), np.int32)}, "`image_size` must be that of the first frame in `frame_size`"),
        ({"light_code": np.zeros((4, 9, 3), np.float32)}, r"`light_code` must have shape \(5, r, 3\)"),
        ({"code.frame.gaze": np.zeros((4, 2, 2), np.float32)}, r"`code.frame.gaze` must have 5 frames"),
        ({"status": np.full(5, 9, np.int32)}, r"`status` must lie in 0..1"),
    ],
)
def test_a_damaged_file_is_told_by_file_and_field(result, tmp_path, changes, words):
    result.save(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(InputError, match=words) as caught:
        TrackResult.load(tmp_path)
    assert "track.npz" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 100, 50_000, -10])
def test_a_truncated_file_is_told(result, tmp_path, keep):
    result.save(tmp_path)
    path = tmp_path / "track.npz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="truncated"):
        TrackResult.load(tmp_path)


def test_no_pickle_is_ever_run(result, tmp_path):
    result.save(tmp_path)
    rewrite(tmp_path, gaze=np.array([print], dtype=object))
    with pytest.raises(InputError, match="cannot be read"):
        TrackResult.load(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="No result"):
        TrackResult.load(tmp_path)
    with pytest.raises(InputError, match="No result"):
        TrackResult.load(tmp_path / "nowhere")


def test_misfitting_arrays_are_refused_when_made(result):
    with pytest.raises(ValueError, match=r"`parts` must lie in 0..5, got 0..6"):
        dataclasses.replace(result, parts=np.minimum(np.arange(len(result.neutral), dtype=np.int32), 6))


def test_metrics_are_valid_json(tmp_path):
    metrics = {"psnr": np.float32(25.5), "lips": np.array([1.0, np.nan]), "nested": {"n": 3, "inf": float("inf")}}
    save_metrics(tmp_path, metrics)
    loaded = json.loads((tmp_path / "metrics.json").read_text())
    assert loaded == {"psnr": 25.5, "lips": [1.0, None], "nested": {"n": 3, "inf": None}} == load_metrics(tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(InputError, match="valid JSON"):
        load_metrics(tmp_path)
    assert load_metrics(tmp_path / "nowhere") is None
