"""Points on a head: spread by area, and which of them a camera sees."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2
from toy_head import ball

from facejax.data.video import open_video
from facejax.fitting.footage import Footage, Look, crop_image, face_boxes, read_frames, without
from facejax.geometry.cameras import to_camera_frame
from facejax.geometry.meshes import sample_surface
from facejax.geometry.records import Camera, Pose
from facejax.renderers.depth_test import visible_points

VERTICES, FACES, _, _ = ball((0, 0, 0), (0.08, 0.11, 0.09), 24, 32, (0, 0, 1, 1))


def areas(vertices=VERTICES, faces=FACES):
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1)


def test_samples_are_spread_by_area():
    count = 20_000
    points = sample_surface(VERTICES, FACES, np.ones(len(VERTICES)), count)
    np.testing.assert_allclose(points.weights.sum(axis=1), 1, atol=1e-5)
    assert (points.weights >= 0).all()
    at = np.einsum("ni,nic->nc", points.weights, VERTICES[points.triangles])
    # cells by octant and height, whose share of the area is known; strata make it even more even than chance
    mass = areas() / areas().sum()
    middle = VERTICES[FACES].mean(axis=1)

    def cell(x):
        return (x[:, 0] > 0) * 8 + (x[:, 2] > 0) * 4 + np.clip((x[:, 1] + 0.11) / 0.055, 0, 3).astype(int)

    expected = np.bincount(cell(middle), weights=mass, minlength=16) * count
    found = np.bincount(cell(at), minlength=16)
    border = 0.1 * expected  # triangles across a cell's border are counted whole above
    assert (np.abs(found - expected) < border + 5 * np.sqrt(expected)).all()
    ids = {tuple(f): k for k, f in enumerate(FACES)}
    per_triangle = np.bincount([ids[tuple(t)] for t in points.triangles], minlength=len(FACES))
    statistic = np.sum((per_triangle - mass * count) ** 2 / (mass * count))
    assert statistic < chi2.ppf(0.99, len(FACES) - 1)


def test_points_are_uniform_within_a_triangle():
    points = sample_surface(np.eye(3), np.array([[0, 1, 2]]), np.ones(3), 9_000)
    np.testing.assert_allclose(points.weights.mean(axis=0), 1 / 3, atol=0.01)
    quarter = (points.weights > 0.5).any(axis=1).mean()  # three of the four similar quarters
    np.testing.assert_allclose(quarter, 0.75, atol=0.02)


def test_weight_zero_is_left_alone_and_double_counts_twice():
    weight = np.where(VERTICES[:, 2] > 0, 2.0, 0.0) + (VERTICES[:, 1] > 0) * (VERTICES[:, 2] > 0) * 2.0
    points = sample_surface(VERTICES, FACES, weight, 4000)
    assert (weight[points.triangles].sum(axis=1) > 0).all()
    up = VERTICES[points.triangles].mean(axis=1)[:, 1] > 0
    np.testing.assert_allclose(up.mean(), 2 / 3, atol=0.03)


def test_the_same_seed_gives_the_same_points():
    one, again, other = (sample_surface(VERTICES, FACES, np.ones(len(VERTICES)), 200, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(one.triangles, again.triangles)
    np.testing.assert_array_equal(one.weights, again.weights)
    assert (one.weights != other.weights).any()


POSE = Pose(rotation=jnp.diag(jnp.array([1.0, -1.0, -1.0])), translation=jnp.array([0.0, 0.0, 0.6]))
CAMERA = Camera(focal=jnp.array([200.0, 200.0]), principal_point=jnp.array([40.0, 40.0]))


def test_the_front_of_a_ball_is_seen_and_its_back_is_not():
    points = sample_surface(VERTICES, FACES, np.ones(len(VERTICES)), 2000)
    weight, normal = visible_points(jnp.asarray(VERTICES, jnp.float32), FACES, points, POSE, CAMERA, (80, 80))
    at = np.einsum("ni,nic->nc", points.weights, VERTICES[points.triangles])
    outward = at / np.square([0.08, 0.11, 0.09])
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    assert np.einsum("ni,ni->n", outward, normal).min() > 0.98
    view = np.array([0, 0, 0.6]) - at
    cosine = np.einsum("ni,ni->n", outward, view / np.linalg.norm(view, axis=1, keepdims=True))
    expected = np.clip((cosine - 0.25) / 0.75, 0, 1)
    error = np.abs(np.asarray(weight) - expected)
    assert error.max() < 0.2  # a point at the limb may fall on a pixel whose centre lies nearer
    assert np.quantile(error, 0.99) < 0.05
    assert (np.asarray(weight)[cosine < 0.15] == 0).all()


def test_a_nose_hides_what_is_behind_it():
    nose, nose_faces, _, _ = ball((0.02, 0, 0.2), (0.02, 0.02, 0.02), 12, 16, (0, 0, 1, 1))
    vertices = np.concatenate([VERTICES, nose])
    faces = np.concatenate([FACES, nose_faces + len(VERTICES)])
    points = sample_surface(VERTICES, FACES, (VERTICES[:, 2] > 0.02).astype(float), 3000)
    args = (points, POSE, CAMERA, (80, 80))
    alone, _ = visible_points(jnp.asarray(VERTICES, jnp.float32), FACES, *args)
    behind, _ = visible_points(jnp.asarray(vertices, jnp.float32), faces, *args)
    at = np.einsum("ni,nic->nc", points.weights, VERTICES[points.triangles])
    seen = np.asarray(to_camera_frame(jnp.asarray(at, jnp.float32), POSE))
    distance = np.hypot(seen[:, 0] / seen[:, 2] - 0.02 / 0.4, seen[:, 1] / seen[:, 2])  # from the nose's centre
    assert (np.asarray(behind)[distance < 0.85 * 0.02 / 0.4] == 0).all()
    clear = distance > 1.2 * 0.02 / 0.4
    np.testing.assert_allclose(np.asarray(behind)[clear], np.asarray(alone)[clear], atol=1e-5)
    assert (np.asarray(alone)[distance < 0.04] > 0.5).any()


def test_outside_the_image_nothing_is_seen():
    points = sample_surface(VERTICES, FACES, np.ones(len(VERTICES)), 300)
    away = POSE.replace(translation=jnp.array([5.0, 0.0, 0.6]))
    weight, _ = visible_points(jnp.asarray(VERTICES, jnp.float32), FACES, points, away, CAMERA, (80, 80))
    assert (np.asarray(weight) == 0).all()


def picture(height=60, width=90):
    y, x = np.mgrid[:height, :width]
    return np.stack([2 * x, 3 * y, x + y], axis=-1).astype(np.uint8)


def test_a_crop_of_whole_pixels_is_a_slice():
    frame = picture()
    crop = crop_image(frame, np.array([10, 20, 32, 32], np.float32), 32)
    np.testing.assert_allclose(crop, frame[20:52, 10:42] / 255, atol=1e-6)
    assert crop.dtype == np.float32


def test_a_crop_at_parts_of_pixels_interpolates():
    crop = crop_image(picture(), np.array([10.5, 20.25, 16, 16], np.float32), 32)
    y, x = (np.mgrid[:32, :32] + 0.5) * 0.5
    inner = np.s_[2:-2, 2:-2]
    np.testing.assert_allclose(crop[..., 0][inner], (2 * (10.5 + x - 0.5) / 255)[inner], atol=1.1 / 255)
    np.testing.assert_allclose(crop[..., 1][inner], (3 * (20.25 + y - 0.5) / 255)[inner], atol=1.1 / 255)


def test_a_smaller_crop_averages():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    crop = crop_image(noise, np.array([0, 0, 64, 64], np.float32), 8)
    assert crop.std() < 0.3 * noise.std() / 255
    np.testing.assert_allclose(crop.mean(), noise.mean() / 255, atol=0.02)


@pytest.mark.parametrize("box", [(-20, -10, 40, 40), (70, 40, 40, 40), (-500, 0, 30, 30), (-50, -50, 300, 300)])
def test_beyond_the_frame_it_is_black(box):
    frame = np.full((60, 90, 3), 200, np.uint8)
    crop = crop_image(frame, np.array(box, np.float32), 40)
    y, x = (np.mgrid[:40, :40] + 0.5) * box[2] / 40
    x, y = x + box[0], y + box[1]
    step = box[2] / 40
    inside = (x > step) & (x < 90 - step) & (y > step) & (y < 60 - step)
    outside = (x < -step) | (x > 90 + step) | (y < -step) | (y > 60 + step)
    np.testing.assert_allclose(crop[inside], 200 / 255, atol=1e-3)
    assert (crop[outside] == 0).all()


def test_a_mask_is_cropped_and_a_blur_blurs():
    mask = np.zeros((60, 90), bool)
    mask[:, 45:] = True
    crop = crop_image(mask, np.array([30, 10, 30, 30], np.float32), 30)
    np.testing.assert_allclose(crop[:, :15], 0)
    np.testing.assert_allclose(crop[:, 15:], 1)
    soft = crop_image(
        np.where(mask[..., None], 255, 0).repeat(3, axis=2).astype(np.uint8), np.array([30, 10, 30, 30]), 30, blur=2.0
    )
    assert 0.3 < soft[15, 14, 0] < 0.5 < soft[15, 15, 0] < 0.7


def test_boxes_are_squares_around_what_was_seen():
    points = np.full((4, 478, 2), np.nan, np.float32)
    points[1, :3] = [[10, 20], [50, 30], [30, 100]]
    points[3, 5:7] = [[0, 0], [10, 4]]
    boxes = face_boxes(points, 1.5)
    np.testing.assert_allclose(boxes[1], [30 - 60, 60 - 60, 120, 120])
    np.testing.assert_allclose(boxes[3], [5 - 7.5, 2 - 7.5, 15, 15])
    np.testing.assert_array_equal(boxes[0], boxes[1])
    assert boxes.dtype == np.float32


def test_key_frames_come_in_the_order_asked_for():
    frames = np.broadcast_to(np.arange(31, dtype=np.uint8)[:, None, None, None], (31, 40, 40, 3))
    pairs = list(read_frames(open_video(np.array(frames)), None, np.array([1, 4, 5, 9, 12, 30])))
    assert [int(f[0, 0, 0]) for f, _ in pairs] == [1, 4, 5, 9, 12, 30]
    assert all(m is None for _, m in pairs)


def test_crops_are_those_of_frames_read_one_by_one_in_any_order():
    """A pass over the clip, jumps within it and back, and frames that two calls share."""
    rng = np.random.default_rng(5)
    video = open_video(rng.integers(0, 255, (60, 64, 80, 3)).astype(np.uint8))
    points = np.tile(np.array([[20.0, 20.0], [50.0, 40.0]]), (60, 1, 1)) + np.arange(60)[:, None, None] * 0.15
    footage = Footage(video, None, points, np.ones((60, 2)), np.ones(60, bool))
    look = Look(size=16, margin=1.5, blur_px=0.5)
    for ids in (
        np.arange(8),
        np.arange(4, 20),
        np.array([1, 30, 59]),
        np.arange(20, 60),
        np.array([3, 3, 2]),
        np.arange(5),
    ):
        pictures, ignore = footage.crops(ids, look)
        for k, i in enumerate(ids):
            frame = video.read([int(i)])[0]
            np.testing.assert_array_equal(pictures[k], crop_image(frame, footage.boxes(1.5)[i], 16, blur=0.5))
        assert not ignore.any()


def test_what_lies_outside_of_the_frame_is_ignored():
    video = open_video(np.full((1, 40, 60, 3), 200, np.uint8))
    points = np.array([[[40.0, 10.0], [60.0, 30.0]]])  # a face that leaves the frame on its right
    footage = Footage(video, None, points, np.ones((1, 2)), np.ones(1, bool))
    pictures, ignore = footage.crops(np.array([0]), Look(size=20, margin=1.0))
    assert not ignore.any()  # up to the frame's border
    pictures, ignore = footage.crops(np.array([0]), Look(size=32, margin=1.6))
    np.testing.assert_allclose(footage.boxes(1.6)[0], [34, 4, 32, 32], atol=1e-5)
    np.testing.assert_array_equal(ignore[0, :, 26:], 1)
    np.testing.assert_array_equal(ignore[0, :, :25], 0)
    assert pictures[0, :, :25].min() > 0.7


def test_what_is_ignored_does_not_reach_its_neighbours():
    rng = np.random.default_rng(0)
    frame = rng.integers(50, 200, (40, 40, 3)).astype(np.uint8)
    mask = np.zeros((40, 40), bool)
    mask[10:20, 12:30] = True
    spoilt = np.where(mask[..., None], 255, frame).astype(np.uint8)
    box = np.array([5.0, 5.0, 30.0, 30.0])
    one, other = (without(f, mask, box) for f in (frame, spoilt))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(one[~mask], frame[~mask])
    assert np.unique(one[mask], axis=0).shape == (1, 3)
    assert without(frame, mask, np.array([0.0, 25.0, 10.0, 10.0])) is frame  # nothing of it is near
