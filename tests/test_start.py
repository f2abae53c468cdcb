"""How a fit parametrises poses, where it starts, and which frames it picks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.fitting.start import pose_from_landmarks, spread_frames
from facejax.geometry.cameras import project, to_camera_frame
from facejax.geometry.records import Camera, Pose
from facejax.geometry.rotations import rotation_angle, rotvec_to_matrix
from facejax.scenes.unknowns import pose_of, variables_of

RNG = np.random.default_rng(0)
UPRIGHT = jnp.diag(jnp.array([1.0, -1.0, -1.0]))
POINTS = jnp.asarray(RNG.normal(scale=(0.05, 0.06, 0.03), size=(478, 3)), jnp.float32)
CAMERA = Camera(focal=jnp.array([1500.0, 1500.0]), principal_point=jnp.array([640.0, 360.0]))


def some_pose(seed=0, distance=0.7):
    rng = np.random.default_rng(seed)
    turn = rotvec_to_matrix(jnp.asarray(rng.normal(scale=0.4, size=3), jnp.float32))
    return Pose(
        rotation=jnp.matmul(UPRIGHT, turn, precision="highest"),
        translation=jnp.asarray([*rng.normal(scale=0.05, size=2), distance], jnp.float32),
    )


def pixels_of(pose, camera=CAMERA):
    return project(to_camera_frame(POINTS, pose), camera)


@pytest.mark.parametrize("focal", [[1500.0, 1500.0], [900.0, 1000.0]])
@pytest.mark.parametrize("seed", range(4))
def test_variables_stand_for_the_pose_they_were_made_of(seed, focal):
    camera, pose = CAMERA.replace(focal=jnp.array(focal)), some_pose(seed)
    variables = variables_of(pose, camera, 120.0)
    assert (np.asarray(variables.turn) == 0).all()
    back = pose_of(variables, camera, 120.0)
    np.testing.assert_allclose(back.rotation, pose.rotation, atol=1e-6)
    np.testing.assert_allclose(back.translation, pose.translation, atol=1e-6)


def test_turn_is_applied_in_the_camera_frame():
    turn = jnp.array([0.1, -0.2, 0.3])
    pose = some_pose(1)
    turned = pose_of(variables_of(pose, CAMERA, 120.0).replace(turn=turn), CAMERA, 120.0)
    expected = np.asarray(rotvec_to_matrix(turn)) @ np.asarray(pose.rotation)
    np.testing.assert_allclose(turned.rotation, expected, atol=1e-6)
    np.testing.assert_allclose(turned.translation, pose.translation, atol=1e-6)


def test_the_focal_length_moves_depth_and_not_the_image():
    """The head's origin stays where it is seen, at the same scale; only perspective changes."""
    variables = variables_of(some_pose(2), CAMERA, 120.0)
    far = CAMERA.replace(focal=CAMERA.focal * 2)
    near_pose, far_pose = pose_of(variables, CAMERA, 120.0), pose_of(variables, far, 120.0)
    np.testing.assert_allclose(far_pose.translation[2], 2 * near_pose.translation[2], rtol=1e-5)
    origin = jnp.zeros(3)
    np.testing.assert_allclose(
        project(to_camera_frame(origin, far_pose), far), project(to_camera_frame(origin, near_pose), CAMERA), atol=1e-2
    )
    moved = np.asarray(pixels_of(far_pose, far) - pixels_of(near_pose))
    assert np.abs(moved).max() < 0.1 * np.ptp(np.asarray(pixels_of(near_pose)))


def test_poses_from_landmarks_are_exact_for_a_distant_camera():
    for seed in range(5):
        pose = some_pose(seed, distance=200.0)
        camera = CAMERA.replace(focal=CAMERA.focal * 300)
        found = pose_from_landmarks(POINTS, pixels_of(pose, camera), jnp.ones(478), camera)
        assert np.degrees(rotation_angle(found.rotation, pose.rotation)) < 0.05
        np.testing.assert_allclose(found.translation[2], 200, rtol=1e-3)
        np.testing.assert_allclose(found.translation[:2], pose.translation[:2], atol=1e-3)


def test_poses_from_landmarks_are_a_good_start_at_arm_length():
    for seed in range(5):
        pose = some_pose(seed)
        found = pose_from_landmarks(POINTS, pixels_of(pose), jnp.ones(478), CAMERA)
        assert np.degrees(rotation_angle(found.rotation, pose.rotation)) < 1
        np.testing.assert_allclose(found.translation, pose.translation, atol=0.01)
        np.testing.assert_allclose(np.linalg.det(found.rotation), 1, atol=1e-5)


def test_pixels_that_are_not_square():
    camera = Camera(focal=jnp.array([1000.0, 1300.0]) * 300, principal_point=jnp.array([640.0, 360.0]))
    pose = some_pose(3, distance=200.0)
    found = pose_from_landmarks(POINTS, pixels_of(pose, camera), jnp.ones(478), camera)
    assert np.degrees(rotation_angle(found.rotation, pose.rotation)) < 0.1
    np.testing.assert_allclose(found.translation[2], 200, rtol=1e-3)


def test_points_of_no_weight_do_not_count():
    pose = some_pose(4, distance=200.0)
    camera = CAMERA.replace(focal=CAMERA.focal * 300)
    pixels = pixels_of(pose, camera).at[100:200].set(0.0)
    weights = jnp.ones(478).at[100:200].set(0.0)
    found = pose_from_landmarks(POINTS, pixels, weights, camera)
    assert np.degrees(rotation_angle(found.rotation, pose.rotation)) < 0.05
    together = jax.vmap(lambda w: pose_from_landmarks(POINTS, pixels, w, camera))(jnp.stack([weights, weights]))
    np.testing.assert_allclose(together.rotation[1], found.rotation, atol=1e-4)


def test_frames_are_spread():
    clusters = np.concatenate([np.zeros((50, 2)), np.full((3, 2), 10.0), [[-8.0, 9.0]]])
    clusters = clusters + RNG.normal(scale=0.01, size=clusters.shape)
    chosen = spread_frames(clusters, 3)
    assert (np.diff(chosen) > 0).all()
    assert chosen[0] < 50 <= chosen[1] < 53 == chosen[2]
    np.testing.assert_array_equal(spread_frames(clusters, 3), chosen)


def test_frames_when_there_are_few_or_all_alike():
    np.testing.assert_array_equal(spread_frames(RNG.normal(size=(4, 3)), 10), np.arange(4))
    np.testing.assert_array_equal(spread_frames(np.zeros((1, 3)), 32), [0])
    alike = spread_frames(np.ones((20, 3)), 5)
    assert len(alike) >= 1
    assert alike.max() < 20
