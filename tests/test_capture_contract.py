"""What every `Capture` owes the recipes that read it, however its files lie: one suite, all of them.

A capture joins by one line in `CAPTURES`: a miniature of it. How its files are decoded is for its own tests.
"""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_light_stage
import test_multiface
import test_recipes_deep

from facejax.data.captures import Capture, Entry, LightStage, View, head_to_camera, select
from facejax.data.multiface import Multiface
from facejax.geometry.cameras import project, to_camera_frame
from facejax.geometry.errors import InputError
from facejax.geometry.records import Pose
from facejax.made_up.light_stage import write_capture

CAPTURES = {
    "light stage": lambda folder: LightStage(write_capture(folder / "stage", test_light_stage.TINY)),
    "toy": lambda folder: LightStage(test_recipes_deep.write_capture(folder / "stage")),
    "multiface": lambda folder: Multiface(
        test_multiface._write(folder / test_multiface.PERSON), texture_size=32, image_scale=0.25
    ),
}


@pytest.fixture(scope="module", params=list(CAPTURES))
def capture(request, tmp_path_factory) -> Capture:
    return CAPTURES[request.param](tmp_path_factory.mktemp("capture"))


@pytest.fixture(scope="module")
def views(capture) -> dict[tuple[int, int], View]:
    """By entry and camera: two entries of the training split, one of the test split."""
    numbers = [*select(capture, "train")[:2], select(capture, "test")[0]]
    return {(i, c): capture.view(i, c) for i in numbers for c in range(capture.n_cameras)}


def test_it_is_a_capture(capture):
    assert isinstance(capture, Capture)
    assert capture.n_cameras >= 1
    assert capture.groups >= 0
    assert isinstance(capture.entries, tuple)
    topology = capture.topology
    assert 0 <= topology.faces.min() <= topology.faces.max() < topology.n_vertices
    assert topology.uv_faces.shape == topology.faces.shape
    assert topology.uv_faces.max() < len(topology.uv)
    assert 0 <= topology.uv.min() <= topology.uv.max() <= 1


def test_its_entries_are_moments_under_a_light(capture):
    assert all(isinstance(entry, Entry) for entry in capture.entries)
    assert {entry.split for entry in capture.entries} == {"train", "test"}
    train, test = (select(capture, split) for split in ("train", "test"))
    assert sorted([*train, *test]) == list(range(len(capture.entries)))
    expressions = [{capture.entries[i].expression for i in part} for part in (train, test)]
    assert not expressions[0] & expressions[1]  # a face of the test split is never trained on
    for number, entry in enumerate(capture.entries):
        assert entry.fully_lit == (entry.pattern == "full")
        assert (number in select(capture, entry.split, fully_lit=entry.fully_lit)) or not entry.fully_lit
    seen = {(entry.expression, entry.pattern) for entry in capture.entries}
    assert len(seen) == len(capture.entries)
    assert len({entry.file for entry in capture.entries}) == len(capture.entries)


def test_views_have_the_shapes_and_ranges_of_the_capture(capture, views):
    (h, w), s, v = capture.image_size, capture.texture_size, capture.topology.n_vertices
    expected = {
        "image": (h, w, 3), "mask": (h, w), "texture": (s, s, 3), "seen": (s, s), "mean_texture": (s, s, 3),
        "vertices": (v, 3), "light": (capture.groups, 3),
    }  # fmt: skip
    for (entry, _), view in views.items():
        for name, shape in expected.items():
            value = getattr(view, name)
            assert isinstance(value, np.ndarray), name
            assert value.shape == shape, name
            assert value.dtype == np.float32, name
            assert np.isfinite(value).all(), name
        for name in ("image", "texture", "mean_texture", "light"):
            assert getattr(view, name).size == 0 or getattr(view, name).min() >= 0
        for share in (view.mask, view.seen):
            assert share.min() >= 0
            assert share.max() <= 1
            assert 0.02 < (share > 0.5).mean() < 0.98
        assert not view.texture[view.seen == 0].any()
        if capture.entries[entry].fully_lit:
            assert 0.01 < view.texture[view.seen > 0.5].mean() < 1.5
            assert 0.01 < view.image[view.mask > 0.99].mean() < 1.5


def test_the_full_light_is_all_ones(capture):
    for number, entry in enumerate(capture.entries):
        light = capture.view(number, 0).light
        assert (light == 1).all() if entry.fully_lit else (light != 1).any(), entry.pattern


def test_poses_are_rigid_and_go_by_way_of_the_stage(capture, views):
    places = {}
    for (_, camera), view in views.items():
        for pose in (view.head, view.pose):
            rotation = np.asarray(pose.rotation)
            np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
            assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-5)
            assert pose.rotation.dtype == pose.translation.dtype == jnp.float32
        # stage to camera, which is the same for every entry
        rotation = np.asarray(view.pose.rotation) @ np.asarray(view.head.rotation).T
        translation = np.asarray(view.pose.translation) - rotation @ np.asarray(view.head.translation)
        found = head_to_camera(view.head, rotation, translation)
        np.testing.assert_allclose(found.rotation, view.pose.rotation, atol=1e-5)
        np.testing.assert_allclose(found.translation, view.pose.translation, atol=1e-5)
        known = places.setdefault(camera, (rotation, translation))
        np.testing.assert_allclose(rotation, known[0], atol=1e-5)
        np.testing.assert_allclose(translation, known[1], atol=1e-5)
    point = jnp.array([0.03, -0.02, 0.05])
    view = next(iter(views.values()))
    on_stage = to_camera_frame(point, view.head)
    rotation, translation = places[0]
    np.testing.assert_allclose(rotation @ on_stage + translation, to_camera_frame(point, view.pose), atol=1e-6)


def test_all_cameras_see_one_head(views):
    for (entry, _), view in views.items():
        first = views[entry, 0]
        for name in ("rotation", "translation"):
            np.testing.assert_array_equal(getattr(view.head, name), getattr(first.head, name))
        for name in ("vertices", "light", "mean_texture"):
            np.testing.assert_array_equal(getattr(view, name), getattr(first, name))


def test_one_face_under_several_lights_stands_still(capture):
    by_face = {}
    for number, entry in enumerate(capture.entries):
        by_face.setdefault(entry.expression, []).append(capture.view(number, 0))
    for first, *others in by_face.values():
        for view in others:
            np.testing.assert_array_equal(view.vertices, first.vertices)
            np.testing.assert_array_equal(view.head.rotation, first.head.rotation)
            np.testing.assert_array_equal(view.mask, first.mask)
            assert not np.array_equal(view.image, first.image)


def test_the_mesh_projects_onto_the_head(capture, views):
    """Cameras, poses and meshes agree with the masks: vertices fall on the head, and cover it."""
    height, width = capture.image_size
    used = np.unique(capture.topology.faces)
    for view in views.values():
        in_camera = to_camera_frame(jnp.asarray(view.vertices[used]), view.pose)
        assert float(in_camera[:, 2].min()) > 0
        pixels = np.asarray(project(in_camera, view.camera))
        on_picture = ((pixels >= 0) & (pixels < [width, height])).all(axis=1)
        assert on_picture.mean() > 0.5
        column, row = pixels[on_picture].astype(int).T
        assert (view.mask[row, column] > 0).mean() > 0.97
        rows, columns = np.nonzero(view.mask > 0.5)
        for mine, theirs in ((row, rows), (column, columns)):  # and the head ends where its vertices do
            low, high = np.quantile(mine, [0.0, 1.0])
            slack = 0.05 * max(height, width)
            assert abs(low - theirs.min()) < slack
            assert abs(high - theirs.max()) < slack


def test_a_view_is_the_same_whenever_it_is_read(capture, views):
    carried = pickle.loads(pickle.dumps(capture))  # as worker processes get it
    (entry, camera), view = list(views.items())[-1]
    for again in (capture.view(entry, camera), carried.view(entry, camera)):
        for one, other in zip(*map(jax.tree.leaves, (vars(again), vars(view))), strict=True):
            np.testing.assert_array_equal(one, other)


def test_what_is_not_there_is_refused(capture):
    entries, cameras = len(capture.entries), capture.n_cameras
    for entry in (-1, entries):
        with pytest.raises(InputError, match=f"has {entries} entries"):
            capture.view(entry, 0)
    for camera in (-1, cameras):
        with pytest.raises(InputError, match=f"has {cameras} cameras"):
            capture.view(0, camera)


def test_a_head_at_the_middle_of_the_stage_is_where_the_camera_looks():
    still = Pose(rotation=jnp.eye(3), translation=jnp.zeros(3))
    found = head_to_camera(still, np.diag([1.0, -1, -1]), np.array([0.1, 0.2, 0.9]))
    np.testing.assert_allclose(found.rotation, np.diag([1, -1, -1]))
    np.testing.assert_allclose(found.translation, [0.1, 0.2, 0.9], rtol=1e-6)
