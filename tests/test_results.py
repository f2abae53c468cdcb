"""`track.npz` gives back what was tracked, and says in one sentence what is wrong with a file that does not."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from toy_head import toy_codes, toy_head, toy_result

from facejax.data import results
from facejax.data.results import RESULT_FILES, TrackResult, load_metrics, save_metrics
from facejax.geometry.cameras import project, to_camera_frame
from facejax.geometry.errors import InputError
from facejax.geometry.rotations import gaze_to_matrix


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
    gaze = np.asarray(frames.gaze)
    np.testing.assert_allclose(results._gaze_matrices(gaze), jax.vmap(jax.vmap(gaze_to_matrix))(gaze), atol=1e-6)


def test_everything_comes_back(result, tmp_path):
    result.save(tmp_path / "new" / "out")
    assert sorted(p.name for p in (tmp_path / "new" / "out").iterdir()) == ["metrics.json", "track.npz"]
    assert set(RESULT_FILES) >= {"metrics.json", "track.npz"}
    loaded = TrackResult.load(tmp_path / "new" / "out")
    for name, value in fields_of(result).items():
        if name in ("head", "stored_vertices"):
            continue
        np.testing.assert_array_equal(getattr(loaded, name), value, err_msg=name)
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
        "status": (f,), "status_names": (2,),
    }  # fmt: skip
    assert expected.items() <= shapes.items()


def test_long_clips_store_no_vertices_and_derive_the_same(result, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "MAX_FRAMES_WITH_VERTICES", 4)
    result.save(tmp_path)
    with np.load(tmp_path / "track.npz") as file:
        assert "vertices" not in file.files
    loaded = dataclasses.replace(TrackResult.load(tmp_path), head=result.head)
    np.testing.assert_array_equal(loaded.vertices, result.vertices)


def test_another_version_of_the_model_is_refused(result, monkeypatch):
    other = dataclasses.replace(result, head=None, model_sha256="1" * 64)
    import sys
    import types

    monkeypatch.setitem(sys.modules, "facejax.data.load", types.SimpleNamespace(load_model=lambda name: toy_head()))
    with pytest.raises(InputError, match="installed one is 000000000000"):
        other.vertices_at(0)
    right = dataclasses.replace(result, head=None)
    np.testing.assert_array_equal(right.vertices_at(0), result.vertices_at(0))


def test_large_arrays_are_mapped_not_read(result, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "_MAP_BYTES", 1000)
    result.save(tmp_path)
    loaded = TrackResult.load(tmp_path)
    assert isinstance(loaded.stored_vertices, np.memmap)
    assert isinstance(loaded.landmarks, np.memmap)
    np.testing.assert_array_equal(loaded.stored_vertices, result.vertices)
    np.testing.assert_array_equal(loaded.landmarks_target, result.landmarks_target)


def test_codes_for_fitting_come_back(result):
    shared, frames, _, camera = toy_codes(result.head, len(result))
    np.testing.assert_array_equal(result.identity_code().shape, shared.shape)
    np.testing.assert_allclose(result.frame_codes().activations, frames.activations, atol=1e-6)
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
