"""The virtual light stage: its lights, cameras, patterns and performance; and that its pictures are what these say."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from facejax.data.captures import FRAME_KEYS, LightStage, mean_over_views, select
from facejax.geometry.errors import InputError
from facejax.made_up.light_stage import (
    FLIP,
    PRESETS,
    LightStageSpec,
    capture_bytes,
    dome,
    light_weights,
    list_entries,
    patterns_of,
    perform,
    ring_cameras,
    subject_of,
    write_capture,
)

TINY = LightStageSpec(
    seed=2, expressions=2, partly_lit=5, cameras=2, image_size=32, texture_size=32, shadow_size=32, lights=20, groups=5,
    test_every=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_capture(tmp_path_factory.mktemp("stage") / "capture", TINY)


@pytest.fixture(scope="module")
def capture(folder: Path) -> LightStage:
    return LightStage(folder)


@pytest.fixture(scope="module")
def person():
    return subject_of(TINY)


# -- lights ------------------------------------------------------------------------------------------------------------


def test_460_lights_stand_in_50_groups_of_neighbours():
    directions, group = dome(460, 50)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(directions[230:], -directions[:230], atol=1e-6)
    sizes = np.bincount(group, minlength=50)
    assert sizes.tolist().count(10) == 10
    assert sizes.tolist().count(9) == 40
    centres = np.stack([directions[group == k].mean(axis=0) for k in range(50)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    away = np.degrees(np.arccos(np.clip((directions * centres[group]).sum(axis=1), -1, 1)))
    assert away.max() < 35  # a fiftieth of the sphere reaches 16 degrees
    assert away.mean() < 13


def test_the_full_light_gives_a_white_surface_radiance_one():
    directions, group = dome(460, 50)
    weights = light_weights(np.ones((1, 50)), group)[:, 0]
    normals = np.random.default_rng(0).normal(size=(100, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    radiance = np.maximum(normals @ directions.T, 0) @ weights / np.pi
    np.testing.assert_allclose(radiance, 1, atol=5e-3)


def test_every_group_comes_as_often_as_any_other_and_by_its_number_alone():
    spec = PRESETS["small"]
    seen = np.zeros(50, int)
    for n in range(spec.expressions):
        full, *others = patterns_of(spec, n)
        assert full.name == "full"
        assert (full.code == 1).all()
        groups = [int(np.flatnonzero(p.code)[0]) for p in others]
        assert len(set(groups)) == spec.partly_lit
        assert all(p.code.sum() == 1 for p in others)
        seen[groups] += 1
    assert (seen == 18).all()
    longer = patterns_of(dataclasses.replace(spec, expressions=900), 7)
    assert [p.name for p in longer] == [p.name for p in patterns_of(spec, 7)]


def test_mixtures_have_several_groups_at_several_strengths():
    spec = dataclasses.replace(PRESETS["small"], mixtures=2)
    *_, a, b = patterns_of(spec, 4)
    for pattern in (a, b):
        on = pattern.code[pattern.code > 0]
        assert len(on) >= 2
        assert len(np.unique(on)) == len(on)
        assert on.max() <= 1
    assert not np.array_equal(a.code, b.code)


# -- cameras -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 4, 7, 12, 40])
def test_cameras_stand_in_front_and_look_at_the_middle(count):
    cameras = ring_cameras(count, 256, 1.1)
    rotation, translation = cameras["rotation"], cameras["translation"]
    assert rotation.shape == (count, 3, 3)
    np.testing.assert_array_equal(rotation[0], np.eye(3))
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (count, 1, 1)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)
    places = -np.einsum("cji,cj->ci", rotation, translation)
    np.testing.assert_allclose(np.linalg.norm(places, axis=1), 1.1, atol=1e-5)
    assert (places[:, 2] < 0).all()
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1) + 9 * np.eye(count)
    assert apart.min() > 0.15
    assert (rotation[:, 1, 1] > 0.3).all()  # upright: down in the picture is down on the stage


# -- the performance ---------------------------------------------------------------------------------------------------


def test_heads_turn_all_the_way_and_the_first_is_at_rest(person):
    spec = PRESETS["small"]
    expression, pose = perform(person, spec, 0)
    assert not np.asarray(expression.activations).any()
    np.testing.assert_allclose(pose.rotation, FLIP, atol=1e-6)
    forward = np.stack([np.asarray(perform(person, spec, n)[1].rotation)[:, 2] for n in range(1, 60)])
    yaw = np.degrees(np.arctan2(forward[:, 0], -forward[:, 2]))
    assert yaw.min() == pytest.approx(-40, abs=1.5)
    assert yaw.max() == pytest.approx(40, abs=1.5)
    assert np.histogram(yaw, 4, (-45, 45))[0].min() >= 8


def test_an_expression_is_what_seed_and_number_say(person):
    for n in (1, 5):
        a, b = perform(person, TINY, n), perform(person, dataclasses.replace(TINY, expressions=99, cameras=1), n)
        np.testing.assert_array_equal(a[0].activations, b[0].activations)
        np.testing.assert_array_equal(a[1].rotation, b[1].rotation)
    other = perform(person, dataclasses.replace(TINY, seed=3), 5)
    assert not np.array_equal(other[0].activations, a[0].activations)
    blinks = sum(float(perform(person, TINY, n)[0].eyelids.max()) > 0.9 for n in range(60))
    assert 2 <= blinks <= 15


# -- frames ------------------------------------------------------------------------------------------------------------


def test_a_capture_reads_as_it_was_written(capture):
    assert len(capture.entries) == 12
    assert [e.split for e in capture.entries] == ["train"] * 6 + ["test"] * 6
    assert [e.expression for e in capture.entries] == [0] * 6 + [1] * 6
    assert select(capture, "train", fully_lit=True) == [0]
    assert select(capture, "test", fully_lit=False) == [7, 8, 9, 10, 11]
    assert capture.entries == tuple(list_entries(TINY))
    frame = capture.frame(3)
    assert set(FRAME_KEYS) <= set(frame)
    assert frame["image"].dtype == np.float16
    assert frame["mask"].dtype == frame["seen"].dtype == np.uint8
    assert {"activations", "gaze"} <= set(frame)
    assert capture.landmarks478.weights.shape == (478, 3)
    assert "lips" in capture.regions
    with np.load(capture.folder / "lights.npz") as lights:
        np.testing.assert_allclose(lights["weight"].sum(), 4 * np.pi, rtol=1e-5)
        assert lights["directions"].shape == (20, 3)
    assert "hold" in (capture.folder / "README.md").read_text()


def test_the_full_light_is_the_sum_of_its_groups(capture):
    for first in (0, 6):
        full, parts = capture.frame(first), [capture.frame(first + k) for k in range(1, 6)]
        assert sorted(e.pattern for e in capture.entries[first + 1 : first + 6]) == [f"group-0{k}" for k in range(5)]
        np.testing.assert_array_equal(sum(p["light"] for p in parts), full["light"])
        for name in ("image", "texture"):
            whole, summed = full[name].astype(np.float32), sum(p[name].astype(np.float32) for p in parts)
            assert whole.max() > 0.2
            np.testing.assert_allclose(summed, whole, atol=2e-3)
        for same in ("mask", "seen", "vertices", "rotation", "translation"):
            np.testing.assert_array_equal(parts[0][same], full[same])


def test_one_group_lights_the_side_that_it_stands_on(capture):
    with np.load(capture.folder / "lights.npz") as lights:
        group, directions = lights["group"], lights["directions"]
    for k in range(1, 6):
        view = capture.view(k, 0)
        number = int(np.flatnonzero(view.light[:, 0])[0])
        to_light = directions[group == number].mean(axis=0)
        brightness = view.image.sum(axis=-1)
        columns = np.arange(32) - (view.mask.sum(axis=0) @ np.arange(32)) / view.mask.sum()
        if abs(to_light[0]) > 0.5:
            assert np.sign(brightness.sum(axis=0) @ columns) == np.sign(to_light[0])


def test_there_is_nothing_beside_the_head(capture):
    for entry in (0, 6):
        for camera in range(2):
            view = capture.view(entry, camera)
            at = view.vertices @ np.asarray(view.pose.rotation).T + np.asarray(view.pose.translation)
            pixels = at[:, :2] / at[:, 2:] * np.asarray(view.camera.focal) + np.asarray(view.camera.principal_point)
            column, row = pixels[((pixels > 0) & (pixels < 32)).all(axis=1)].astype(int).T
            reached = np.zeros((32, 32))
            reached[row, column] = 1
            assert reached[view.mask > 0.99].mean() > 0.95  # the head is nowhere that no vertex is near
            assert not view.image[view.mask == 0].any()


def test_textures_are_unwrapped_pictures(capture):
    frame = capture.frame(0)
    texture, seen = frame["texture"].astype(np.float32), frame["seen"]
    assert 0.1 < (seen > 0).mean() < 0.9
    assert not texture[seen == 0].any()
    assert texture[seen > 100].mean() > 0.1
    expected = mean_over_views(texture, seen.astype(np.float32) / 255)
    np.testing.assert_allclose(frame["mean_texture"], expected, atol=2e-3)
    assert not np.array_equal(seen[0], seen[1])  # cameras see different sides


# -- making ------------------------------------------------------------------------------------------------------------


def test_a_capture_is_the_same_to_the_bit_and_goes_on_where_it_was_stopped(folder, tmp_path):
    class Stop(Exception):
        pass

    def stop_after_one(stage: str, done: int, total: int) -> None:
        if done == 1:
            raise Stop

    again = tmp_path / "again"
    with pytest.raises(Stop):
        write_capture(again, TINY, stop_after_one)
    assert len(list((again / "frames").iterdir())) == 6
    with pytest.raises(InputError, match=r"6 of 12 frames .* are missing, the first is frames/00006.npz"):
        LightStage(again)
    kept = (again / "frames/00002.npz").stat().st_mtime_ns
    (again / "frames/00004.npz").unlink()
    (again / "frames/00004.npz").write_bytes((folder / "frames/00004.npz").read_bytes())
    said: list[tuple[int, int]] = []
    write_capture(again, TINY, lambda stage, done, total: said.append((done, total)))
    assert said == [(1, 2), (2, 2)]
    assert (again / "frames/00002.npz").stat().st_mtime_ns == kept
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".npz":
            with np.load(path) as a, np.load(again / path.relative_to(folder)) as b:
                assert set(a.files) == set(b.files)
                for name in a.files:
                    np.testing.assert_array_equal(a[name], b[name])
    assert (again / "capture.json").read_text() == (folder / "capture.json").read_text()
    facts = json.loads((again / "capture.json").read_text())
    facts["entries"].append(facts["entries"][0] | {"file": "frames/traced-000.npz", "split": "test"})
    (again / "capture.json").write_text(json.dumps(facts))
    write_capture(again, TINY)  # nothing is missing, and what was added stays
    assert json.loads((again / "capture.json").read_text()) == facts


def test_a_folder_of_something_else_is_left_alone(folder, tmp_path):
    with pytest.raises(InputError, match=r"another capture .*cameras 2 there, 1 asked"):
        write_capture(folder, dataclasses.replace(TINY, cameras=1))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        write_capture(tmp_path, TINY)
    with pytest.raises(InputError, match="is a file"):
        write_capture(tmp_path / "notes.txt", TINY)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_full_disk_is_noticed_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 1000})())
    with pytest.raises(InputError, match=r"needs .* GB .* free"):
        write_capture(tmp_path / "new", TINY)
    assert not (tmp_path / "new").exists()


def test_the_size_on_disk_is_foretold(folder):
    frames = sum(p.stat().st_size for p in (folder / "frames").iterdir())
    assert frames == pytest.approx(capture_bytes(TINY, 7303), rel=0.05)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cameras": 41}, "places for 40 cameras"),
        ({"cameras": 0}, "cameras of at least 1"),
        ({"lights": 461}, "pairs"),
        ({"mixtures": 9}, "mixtures"),
        ({"partly_lit": 51}, "partly_lit"),
        ({"image_size": 8}, "image_size of at least 16"),
    ],
)
def test_a_stage_that_cannot_be_is_refused(change, said):
    with pytest.raises(InputError, match=said):
        dataclasses.replace(LightStageSpec(), **change)


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_makes_captures_and_says_what_they_hold(folder, capsys):
    from facejax.cli import DataLightStage, main, parse

    command = parse(["data", "light-stage", "somewhere", "--set", "expressions=3"])
    assert isinstance(command.action, DataLightStage)
    assert (command.action.out, command.action.preset, command.action.set) == (
        Path("somewhere"),
        "small",
        ("expressions=3",),
    )
    assert main(["data", "info", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "32 x 32" in shown
    assert "7303" in shown


def test_the_command_refuses_in_one_sentence(folder, capsys):
    from facejax.cli import main

    for arguments in (
        ["data", "light-stage", str(folder), "--set", "cameras=1"],
        ["data", "light-stage", str(folder), "--set", "camera=1"],
        ["data", "light-stage", str(folder), "--set", "cameras=99"],
        ["data", "info", str(folder.parent)],
    ):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("facejax: ")
        assert said.count("\n") == 1
