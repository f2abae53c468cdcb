"""Rotations against scipy, and their values and gradients where formulas usually break: at the identity and at pi."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from facejax.geometry.rotations import (
    gaze_to_matrix,
    matrix_to_quaternion,
    matrix_to_rotvec,
    nearest_rotation,
    quaternion_to_matrix,
    rotate,
    rotation_angle,
    rotvec_to_matrix,
    skew,
)

AXES = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [0.6, -0.8, 0], [0.48, 0.6, -0.64]], dtype=np.float32)
ANGLES = [0.0, 1e-7, 1e-4, 9.9e-3, 1.01e-2, 0.3, 1.5, 3.0, np.pi - 1e-3, np.pi]
ROTVECS = np.stack([axis * angle for axis in AXES for angle in ANGLES]).astype(np.float32)

_ROUND_TRIP_JACOBIAN = jax.jit(jax.jacrev(lambda w: matrix_to_rotvec(rotvec_to_matrix(w))))


def random_rotvecs(n: int) -> np.ndarray:
    return Rotation.random(n, rng=np.random.default_rng(0)).as_rotvec().astype(np.float32)


def test_skew_is_the_cross_product():
    a, b = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    np.testing.assert_allclose(skew(jnp.array(a)) @ b, np.cross(a, b), atol=1e-6)


def test_rotvec_to_matrix_agrees_with_scipy():
    rotvecs = np.concatenate([ROTVECS, random_rotvecs(200)])
    np.testing.assert_allclose(
        jax.vmap(rotvec_to_matrix)(jnp.array(rotvecs)), Rotation.from_rotvec(rotvecs).as_matrix(), atol=1e-6
    )


def test_matrix_to_quaternion_agrees_with_scipy_at_every_angle():
    rotvecs = np.concatenate([ROTVECS, random_rotvecs(200)])
    truth = Rotation.from_rotvec(rotvecs)
    found = np.asarray(jax.vmap(matrix_to_quaternion)(jnp.array(truth.as_matrix(), dtype=jnp.float32)))
    expected = truth.as_quat(scalar_first=True)
    assert (found[:, 0] >= 0).all()
    np.testing.assert_allclose(np.abs(np.sum(found * expected, axis=1)), 1, atol=1e-6)  # q and -q are one rotation
    clear = expected[:, 0] > 1e-3
    np.testing.assert_allclose(found[clear], expected[clear], atol=2e-6)


def test_quaternion_to_matrix_takes_any_length_and_the_scalar_first():
    q = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    expected = Rotation.from_quat(q, scalar_first=True).as_matrix()
    np.testing.assert_allclose(jax.vmap(quaternion_to_matrix)(jnp.array(3 * q)), expected, atol=1e-6)


def test_rotvec_round_trip():
    rotvecs = np.concatenate([ROTVECS, random_rotvecs(200)])
    back = np.asarray(jax.vmap(lambda w: matrix_to_rotvec(rotvec_to_matrix(w)))(jnp.array(rotvecs)))
    half_turn = np.linalg.norm(rotvecs, axis=1) > np.pi - 1e-3  # axis and minus axis turn alike
    np.testing.assert_allclose(back[~half_turn], rotvecs[~half_turn], atol=4e-6)
    same = np.minimum(np.abs(back - rotvecs).max(1), np.abs(back + rotvecs).max(1))
    assert same[half_turn].max() < 1e-3
    assert (np.linalg.norm(back, axis=1) <= np.pi + 1e-6).all()


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_rotvec_gradient_at_identity_is_the_generators(mode):
    generators = mode(rotvec_to_matrix)(jnp.zeros(3))  # [i, j, k] = dR_ij / dw_k
    np.testing.assert_allclose(generators, np.stack([np.asarray(skew(e)) for e in jnp.eye(3)], axis=-1), atol=1e-7)
    np.testing.assert_allclose(mode(matrix_to_rotvec)(jnp.eye(3))[0], [[0, 0, 0], [0, 0, -0.5], [0, 0.5, 0]], atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 9e-3, 1.1e-2, 0.5, np.pi])
def test_second_derivatives_are_right_on_both_sides_of_the_series(angle):
    w = jnp.array([0.36, 0.48, 0.8]) * angle

    def moved(v):
        return (rotvec_to_matrix(v) @ jnp.array([0.2, -0.7, 0.4]))[0]

    with jax.enable_x64(True):
        exact = np.asarray(jax.jit(jax.hessian(moved))(jnp.asarray(np.asarray(w), dtype=jnp.float64)))
    np.testing.assert_allclose(jax.jit(jax.hessian(moved))(w), exact, atol=2e-3)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("angle", [0.0, 1e-5, 0.7, 3.1, np.pi])
def test_round_trip_gradient_is_the_identity(axis, angle):
    """Finite everywhere, half turns included, and the right one below them."""
    w = jnp.array(axis * np.float32(angle))
    jacobian = np.asarray(_ROUND_TRIP_JACOBIAN(w))
    assert np.isfinite(jacobian).all()
    if angle < 3.12:
        np.testing.assert_allclose(jacobian, np.eye(3), atol=1e-4)


def test_rotation_angle():
    a, b = (Rotation.random(30, rng=np.random.default_rng(s)) for s in (1, 2))
    found = jax.vmap(rotation_angle)(*(jnp.array(r.as_matrix(), dtype=jnp.float32) for r in (a, b)))
    np.testing.assert_allclose(found, (a.inv() * b).magnitude(), atol=2e-6)
    assert rotation_angle(jnp.eye(3), rotvec_to_matrix(jnp.array([0.0, 1e-3, 0.0]))) == pytest.approx(1e-3, rel=1e-4)
    np.testing.assert_array_equal(jax.grad(rotation_angle)(jnp.eye(3), jnp.eye(3)), np.zeros((3, 3)))


def test_nearest_rotation_undoes_noise_and_never_reflects():
    rng = np.random.default_rng(3)
    truth = Rotation.random(20, rng=rng).as_matrix()
    noisy = (2.5 * truth + 0.02 * rng.normal(size=truth.shape)).astype(np.float32)
    found = np.asarray(jax.vmap(nearest_rotation)(jnp.array(noisy)))
    np.testing.assert_allclose(found, truth, atol=0.05)
    np.testing.assert_allclose(found @ found.transpose(0, 2, 1), np.tile(np.eye(3), (20, 1, 1)), atol=1e-5)
    mirrored = np.asarray(nearest_rotation(jnp.diag(jnp.array([1.0, 1.0, -0.3]))))
    assert np.linalg.det(mirrored) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(mirrored, np.eye(3), atol=1e-5)


def test_gaze_points_where_it_says():
    yaw, pitch = 0.3, -0.2
    sight = gaze_to_matrix(jnp.array([yaw, pitch])) @ jnp.array([0.0, 0.0, 1.0])
    expected = [np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)]
    np.testing.assert_allclose(sight, expected, atol=1e-6)
    assert (gaze_to_matrix(jnp.array([0.1, 0.0])) @ jnp.array([0.0, 0.0, 1.0]))[0] > 0.09  # to the subject's left
    assert (gaze_to_matrix(jnp.array([0.0, 0.1])) @ jnp.array([0.0, 0.0, 1.0]))[1] > 0.09  # up


def test_many_points_under_one_rotation():
    points = np.random.default_rng(0).normal(size=(4, 7, 3)).astype(np.float32)
    rotation = Rotation.from_rotvec([0.3, -1.2, 0.7])
    turned = rotate(jnp.asarray(points), jnp.asarray(rotation.as_matrix(), jnp.float32))
    np.testing.assert_allclose(turned.reshape(-1, 3), rotation.apply(points.reshape(-1, 3)), atol=1e-6)
