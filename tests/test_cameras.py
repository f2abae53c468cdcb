"""Cameras: projection and its inverse, crops, and the borders to the frames of other tools."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from facejax.geometry.cameras import (
    camera_matrix,
    crop_camera,
    intrinsics_to_ndc,
    ndc_to_intrinsics,
    opencv_to_opengl,
    opencv_to_pytorch3d,
    opengl_to_opencv,
    project,
    pytorch3d_to_opencv,
    to_camera_frame,
    unproject,
)
from facejax.geometry.records import Camera, Pose

SIZE = (480, 640)  # height, width


@pytest.fixture
def camera() -> Camera:
    return Camera(focal=jnp.array([900.0, 880.0]), principal_point=jnp.array([331.0, 228.5]))


@pytest.fixture
def pose() -> Pose:
    rotation = Rotation.from_euler("yxz", [0.5, -0.3, 0.1]).as_matrix() @ np.diag([1, -1, -1])  # facing the camera
    return Pose(rotation=jnp.array(rotation, dtype=jnp.float32), translation=jnp.array([0.02, -0.03, 0.6]))


@pytest.fixture
def points() -> jax.Array:
    return jnp.array(np.random.default_rng(0).uniform(-0.1, 0.1, (40, 3)), dtype=jnp.float32)


def test_to_camera_frame_turns_then_moves(pose, points):
    expected = np.stack([np.asarray(pose.rotation) @ p + np.asarray(pose.translation) for p in np.asarray(points)])
    np.testing.assert_allclose(to_camera_frame(points, pose), expected, atol=1e-6)


def test_a_head_before_the_camera_is_the_right_way_round(camera):
    """The identity of a frontal head is diag(1, -1, -1): its left is on the image's right, its top is up."""
    frontal = Pose(rotation=jnp.diag(jnp.array([1.0, -1.0, -1.0])), translation=jnp.array([0.0, 0.0, 0.5]))
    centre, left, top, nose = project(to_camera_frame(jnp.eye(4, 3, k=-1) * 0.1, frontal), camera)
    assert left[0] > centre[0]
    assert top[1] < centre[1]
    assert to_camera_frame(jnp.array([0.0, 0.0, 0.1]), frontal)[2] < 0.5  # the nose is nearer
    np.testing.assert_allclose(nose, centre, atol=1e-4)


def test_project_is_the_matrix_k(camera, pose, points):
    x = to_camera_frame(points, pose)
    homogeneous = np.asarray(x, dtype=np.float64) @ np.asarray(camera_matrix(camera), dtype=np.float64).T
    np.testing.assert_allclose(project(x, camera), homogeneous[:, :2] / homogeneous[:, 2:], rtol=1e-5)
    np.testing.assert_array_equal(camera_matrix(camera)[2], [0, 0, 1])


def test_unproject_undoes_project(camera, pose, points):
    x = to_camera_frame(points, pose)
    np.testing.assert_allclose(unproject(project(x, camera), x[:, 2], camera), x, atol=1e-6)


def test_points_at_and_behind_the_camera_stay_finite(camera):
    x = jnp.array([[0.0, 0.0, 0.0], [0.1, 0.1, -1.0], [0.0, 0.1, 1e-9]])
    assert np.isfinite(project(x, camera)).all()
    gradient = jax.grad(lambda x: project(x, camera).sum())(x)
    assert np.isfinite(gradient).all()


def test_projection_keeps_precision_for_a_very_long_lens():
    """8 degrees over 640 pixels: one micrometre at the face still moves the pixel by the right amount."""
    focal = 320 / np.tan(np.deg2rad(4))
    camera = Camera(focal=jnp.full(2, focal, dtype=jnp.float32), principal_point=jnp.array([320.0, 240.0]))
    x = np.random.default_rng(1).uniform(-0.1, 0.1, (50, 3)).astype(np.float32) + np.float32([0, 0, 3])
    exact = x[:, :2].astype(np.float64) / x[:, 2:] * focal + [320, 240]
    np.testing.assert_allclose(project(jnp.array(x), camera), exact, atol=1e-3)


@pytest.mark.parametrize("size", [(256, 256), (100, 333)])
def test_crop_camera_sees_what_the_crop_shows(camera, pose, points, size):
    left, top, width, height = crop = np.float32([210.5, 100.25, 180, 150])
    x = to_camera_frame(points, pose)
    in_crop = (np.asarray(project(x, camera)) - [left, top]) * [size[1] / width, size[0] / height]
    np.testing.assert_allclose(project(x, crop_camera(camera, jnp.array(crop), size)), in_crop, atol=2e-3)


def test_crop_camera_of_the_whole_image_is_the_camera(camera):
    whole = crop_camera(camera, jnp.array([0.0, 0.0, SIZE[1], SIZE[0]]), SIZE)
    np.testing.assert_allclose(whole.focal, camera.focal, rtol=1e-6)
    np.testing.assert_allclose(whole.principal_point, camera.principal_point, rtol=1e-6)


def test_opengl_round_trip_and_meaning(camera, pose, points):
    gl = opencv_to_opengl(pose)
    x, y = np.asarray(to_camera_frame(points, pose)), np.asarray(to_camera_frame(points, gl))
    np.testing.assert_allclose(y, x * [1, -1, -1], atol=1e-6)  # +y up, and what is before the camera has z < 0
    assert np.linalg.det(np.asarray(gl.rotation)) == pytest.approx(1, abs=1e-5)
    back = opengl_to_opencv(gl)
    np.testing.assert_array_equal(back.rotation, pose.rotation)
    np.testing.assert_array_equal(back.translation, pose.translation)


def test_pytorch3d_round_trip_and_meaning(pose, points):
    r, t = opencv_to_pytorch3d(pose)
    # PyTorch3D: points are rows, +x left, +y up, +z forward
    seen = np.asarray(points) @ np.asarray(r) + np.asarray(t)
    np.testing.assert_allclose(seen, np.asarray(to_camera_frame(points, pose)) * [-1, -1, 1], atol=1e-6)
    back = pytorch3d_to_opencv(r, t)
    np.testing.assert_array_equal(back.rotation, pose.rotation)
    np.testing.assert_array_equal(back.translation, pose.translation)


@pytest.mark.parametrize("size", [SIZE, (640, 480), (256, 256)])
def test_ndc_round_trip_and_meaning(camera, pose, points, size):
    focal, principal = intrinsics_to_ndc(camera, size)
    back = ndc_to_intrinsics(focal, principal, size)
    np.testing.assert_allclose(back.focal, camera.focal, rtol=1e-6)
    np.testing.assert_allclose(back.principal_point, camera.principal_point, rtol=1e-6)
    # the whole way through PyTorch3D: its camera, its NDC, and then pixels as it defines them
    r, t = opencv_to_pytorch3d(pose)
    x = np.asarray(points) @ np.asarray(r) + np.asarray(t)
    ndc = x[:, :2] / x[:, 2:] * np.asarray(focal) + np.asarray(principal)
    height, width = size
    pixels = np.array([width, height]) / 2 - ndc * min(size) / 2
    np.testing.assert_allclose(pixels, project(to_camera_frame(points, pose), camera), atol=1e-3)


def test_corners_of_the_shorter_side_are_one_in_ndc():
    centred = Camera(focal=jnp.array([240.0, 240.0]), principal_point=jnp.array([320.0, 240.0]))
    focal, principal = intrinsics_to_ndc(centred, SIZE)
    np.testing.assert_allclose(focal, [1, 1])
    np.testing.assert_allclose(principal, [0, 0])
