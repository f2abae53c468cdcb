"""Captures in facejax's own layout: what is read back, and that damage is refused in one sentence."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from facejax.data.captures import Entry, LightStage, head_to_camera, mean_over_views, select, write_facts
from facejax.geometry.errors import InputError
from facejax.geometry.records import Pose

C, H, W, S, V, G = 2, 6, 8, 4, 5, 3


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


def turned(angle: float) -> np.ndarray:
    s, c = np.sin(angle), np.cos(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float32)


def frame(rng: np.random.Generator, code: list[float]) -> dict[str, np.ndarray]:
    return {
        "image": rng.uniform(size=(C, H, W, 3)).astype(np.float16),
        "mask": rng.integers(0, 256, (C, H, W), dtype=np.uint8),
        "texture": rng.uniform(size=(C, S, S, 3)).astype(np.float16),
        "seen": rng.integers(0, 256, (C, S, S), dtype=np.uint8),
        "mean_texture": rng.uniform(size=(S, S, 3)).astype(np.float16),
        "vertices": rng.normal(size=(V, 3)).astype(np.float32),
        "light": np.tile(np.array(code, np.float32)[:, None], 3),
        "rotation": turned(0.3),
        "translation": np.array([0.01, 0.02, 0.03], np.float32),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    entries = [
        Entry("frames/0.npz", 0, "train", "full", True),
        Entry("frames/1.npz", 0, "train", "group-01", True),
        Entry("frames/2.npz", 1, "test", "full", True),
    ]
    for entry, code in zip(entries, ([1, 1, 1], [0, 1, 0], [1, 1, 1]), strict=True):
        write_npz(tmp_path / entry.file, **frame(rng, code))
    write_npz(
        tmp_path / "cameras.npz",
        rotation=np.stack([np.eye(3), turned(-0.5)]),
        translation=np.tile([0, 0, 1.0], (C, 1)),
        focal=np.full((C, 2), 10.0),
        principal_point=np.tile([4.0, 3.0], (C, 1)),
    )
    write_npz(
        tmp_path / "head.npz",
        faces=np.array([[0, 1, 2], [2, 3, 4]]),
        uv=np.zeros((5, 2)),
        uv_faces=np.array([[0, 1, 2], [2, 3, 4]]),
        landmark_triangles=np.zeros((478, 3), np.int32),
        landmark_weights=np.full((478, 3), 1 / 3),
        region_lips=np.ones(V),
    )
    facts = {"image_size": [H, W], "texture_size": S, "groups": G, "cameras": C, "vertices": V}
    write_facts(tmp_path, entries, **facts)
    return tmp_path


def change_facts(folder: Path, **changes: object) -> None:
    facts = json.loads((folder / "capture.json").read_text())
    (folder / "capture.json").write_text(json.dumps({**facts, **changes}))


def change_arrays(path: Path, drop: str = "", **changes: np.ndarray) -> None:
    with np.load(path) as held:
        arrays = {**{k: held[k] for k in held.files if k != drop}, **changes}
    np.savez(path, **arrays)


def test_views_are_what_was_stored(folder):
    capture = LightStage(folder)
    assert (capture.n_cameras, capture.groups, capture.image_size, capture.texture_size) == (C, G, (H, W), S)
    assert capture.topology.n_vertices == V
    assert set(capture.regions) == {"lips"}
    view, stored = capture.view(1, 1), capture.frame(1)
    np.testing.assert_array_equal(view.image, stored["image"][1].astype(np.float32))
    np.testing.assert_array_equal(view.mask, stored["mask"][1] / np.float32(255))
    np.testing.assert_array_equal(view.texture, stored["texture"][1].astype(np.float32))
    np.testing.assert_array_equal(view.light[:, 0], [0, 1, 0])


def test_a_point_of_the_head_goes_to_the_camera_by_way_of_the_stage(folder):
    view = LightStage(folder).view(0, 1)
    point = np.array([0.03, -0.02, 0.05], np.float32)
    on_stage = np.asarray(view.head.rotation) @ point + np.asarray(view.head.translation)
    in_camera = turned(-0.5) @ on_stage + [0, 0, 1]
    np.testing.assert_allclose(
        np.asarray(view.pose.rotation) @ point + np.asarray(view.pose.translation), in_camera, atol=1e-6
    )
    still = head_to_camera(Pose(rotation=view.head.rotation, translation=view.head.translation), np.eye(3), np.zeros(3))
    np.testing.assert_allclose(still.rotation, view.head.rotation, atol=1e-6)


def test_entries_are_selected_by_split_and_light(folder):
    capture = LightStage(folder)
    assert select(capture, "train") == [0, 1]
    assert select(capture, "train", fully_lit=True) == [0]
    assert select(capture, "train", fully_lit=False) == [1]
    with pytest.raises(InputError, match="no partly lit frames of the split 'test'"):
        select(capture, "test", fully_lit=False)


def test_the_mean_over_views_weighs_by_what_is_seen():
    textures = np.stack([np.full((2, 2, 3), 1.0), np.full((2, 2, 3), 4.0)])
    seen = np.array([[[1, 0.5], [0, 0]], [[0, 1], [0.25, 0]]])
    mean = mean_over_views(textures, seen)
    np.testing.assert_allclose(mean[..., 0], [[1, 3], [4, 0]], atol=1e-6)


# -- refused -----------------------------------------------------------------------------------------------------------


def refused(folder: Path, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        LightStage(folder).view(0, 0)
    assert str(error.value).rstrip().endswith((".", "`.")), "one whole sentence"


def test_a_folder_that_is_no_capture(tmp_path):
    refused(tmp_path, r"is no capture: it has no capture.json")


def test_a_missing_frame(folder):
    (folder / "frames/1.npz").unlink()
    refused(folder, r"1 of 3 frames .* missing, the first is frames/1.npz")


def test_missing_calibration(folder):
    (folder / "cameras.npz").unlink()
    refused(folder, r"lacks cameras.npz")


def test_a_missing_head(folder):
    (folder / "head.npz").unlink()
    refused(folder, r"lacks head.npz")


def test_a_camera_too_few(folder):
    change_facts(folder, cameras=3)
    refused(folder, r"calibrates 2 cameras and the capture has 3")


def test_a_camera_without_focal_length(folder):
    change_arrays(folder / "cameras.npz", drop="focal")
    refused(folder, r"cameras.npz lacks focal")


@pytest.mark.parametrize("focal", [np.full(C, 10.0), np.full((C, 2), np.nan)])
def test_calibration_that_is_none(folder, focal):
    change_arrays(folder / "cameras.npz", focal=focal)
    refused(folder, r"'focal' .* must be finite numbers of shape \(2, 2\)")


def test_a_frame_without_its_pattern(folder):
    change_arrays(folder / "frames/0.npz", drop="light")
    refused(folder, r"0.npz lacks light")


@pytest.mark.parametrize(
    ("name", "shape"),
    [("texture", (C, 8, 8, 3)), ("light", (4, 3)), ("image", (1, H, W, 3)), ("vertices", (V + 1, 3))],
)
def test_a_frame_of_another_size(folder, name, shape):
    change_arrays(folder / "frames/0.npz", **{name: np.zeros(shape, np.float32)})
    refused(folder, rf"'{name}' .* has the shape .* capture.json says")


def test_a_frame_cut_short(folder):
    data = (folder / "frames/0.npz").read_bytes()
    (folder / "frames/0.npz").write_bytes(data[: len(data) // 2])
    refused(folder, r"0.npz cannot be read")


def test_facts_that_are_amiss(folder):
    change_facts(folder, version=99)
    refused(folder, r"does not say format")
    change_facts(folder, version=1, entries=[{"file": "frames/0.npz"}])
    refused(folder, r"An entry of .* is not as it should be")
    (folder / "capture.json").write_text("{")
    refused(folder, r"is not JSON")


def test_facts_that_lack_something(folder):
    facts = json.loads((folder / "capture.json").read_text())
    del facts["groups"]
    (folder / "capture.json").write_text(json.dumps(facts))
    refused(folder, r"lacks groups")


def test_entries_and_cameras_that_are_not_there(folder):
    capture = LightStage(folder)
    for entry, camera in ((0, 2), (0, -1), (3, 0), (-1, 0)):
        with pytest.raises(InputError, match="numbered from 0"):
            capture.view(entry, camera)


def test_a_copy_reads_the_same(folder, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copies") / "copy"
    shutil.copytree(folder, copy)
    np.testing.assert_array_equal(LightStage(copy).view(2, 0).image, LightStage(folder).view(2, 0).image)
