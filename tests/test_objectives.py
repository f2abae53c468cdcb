"""Terms of objectives: their values where they can be written down, their gradients where they could break."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.geometry.colour import linear_to_srgb
from facejax.objectives.landmarks import closure_loss, face_radius_px, landmark_loss, robust
from facejax.objectives.photometric import display, photometric_loss
from facejax.objectives.temporal import change, robust_acceleration

RNG = np.random.default_rng(0)
MM = jnp.asarray(0.5)


def f32(x):
    return jnp.asarray(x, jnp.float32)


def test_robust_is_square_near_zero_and_linear_far_out():
    np.testing.assert_allclose(robust(f32([1e-4, 1e-2]), 3.0), [1e-4, 1e-2], rtol=1e-2)
    np.testing.assert_allclose(robust(f32([1e8]), 3.0), [2 * 9 * (1e4 / 3 - 1)], rtol=1e-3)
    slopes = jax.vmap(jax.grad(lambda r: robust(r**2, 3.0)))(f32([0.0, 0.01, 300.0]))
    np.testing.assert_allclose(slopes, [0, 0.02, 6], rtol=1e-3, atol=1e-7)  # the influence of an outlier is bounded


def test_landmark_loss_is_in_millimetres():
    target = f32(RNG.uniform(0, 100, (10, 2)))
    shifted = target + f32([0.3, -0.4])
    loss = landmark_loss(shifted, target, jnp.ones(10), MM, scale_mm=1e3)
    np.testing.assert_allclose(loss, (0.5 * 0.5) ** 2, rtol=1e-3)
    assert landmark_loss(target, target, jnp.ones(10), MM) == 0


def test_points_that_were_not_seen_do_not_count():
    pixels, target = f32(RNG.uniform(0, 100, (10, 2))), RNG.uniform(0, 100, (10, 2))
    target[3:5] = np.nan
    weights = jnp.ones(10).at[3:5].set(0.0)
    value, slope = jax.value_and_grad(landmark_loss)(pixels, f32(target), weights, MM)
    rest = np.r_[0:3, 5:10]
    np.testing.assert_allclose(value, landmark_loss(pixels[rest], f32(target[rest]), jnp.ones(8), MM), rtol=1e-5)
    assert np.isfinite(np.asarray(slope)).all()
    assert (np.asarray(slope)[3:5] == 0).all()
    assert (np.abs(np.asarray(slope)[rest]) > 0).all()
    none = jax.value_and_grad(landmark_loss)(pixels, f32(np.full((10, 2), np.nan)), jnp.zeros(10), MM)
    assert none[0] == 0
    assert (np.asarray(none[1]) == 0).all()


def test_weights_weigh():
    pixels = jnp.zeros((2, 2))
    target = f32([[1, 0], [3, 0]])
    loss = landmark_loss(pixels, target, f32([3, 1]), jnp.asarray(1.0), scale_mm=1e3)
    np.testing.assert_allclose(loss, (3 * 1 + 1 * 9) / 4, rtol=1e-3)


PAIRS = np.array([[0, 1], [2, 3]])


def test_closure_sees_gaps_and_not_common_shifts():
    target = f32([[0, 0], [0, 4], [10, 0], [10, 6]])
    weights = jnp.ones(4)
    assert closure_loss(target + 5, target, weights, PAIRS, MM) < 1e-9
    opened = target.at[1, 1].add(2.0)
    np.testing.assert_allclose(closure_loss(opened, target, weights, PAIRS, MM, scale_mm=1e3), 1 / 2, rtol=1e-3)
    slope = jax.grad(closure_loss)(opened, target, weights, PAIRS, MM)
    assert slope[1, 1] > 0 > slope[0, 1]
    np.testing.assert_allclose(slope.sum(axis=0), 0, atol=1e-6)


def test_closure_needs_both_points_of_a_pair():
    target = f32([[0, 0], [0, np.nan], [10, 0], [10, 6]])
    pixels = f32([[0, 0], [0, 9], [10, 0], [10, 8]])
    value, slope = jax.value_and_grad(closure_loss)(pixels, target, f32([1, 0, 1, 1]), PAIRS, MM, scale_mm=1e3)
    np.testing.assert_allclose(value, 1.0, rtol=1e-3)
    assert (np.asarray(slope)[:2] == 0).all()
    assert np.isfinite(np.asarray(slope)).all()


def test_face_radius():
    angle = np.linspace(0, 2 * np.pi, 478, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=-1) * 50 + [300, 200]
    np.testing.assert_allclose(face_radius_px(np.stack([ring, 2 * ring])), [50, 100])
    ring[::2] = np.nan
    np.testing.assert_allclose(face_radius_px(ring[None]), [50])


def test_display_is_near_srgb_and_finite_at_black():
    linear = np.linspace(0.02, 1, 50).astype(np.float32)
    np.testing.assert_allclose(display(f32(linear)), linear_to_srgb(linear), atol=0.035)
    slopes = np.asarray(jax.vmap(jax.grad(display))(f32([-1.0, 0.0, 1e-6, 0.5])))
    assert np.isfinite(slopes).all()
    assert slopes[3] > 0


def test_photometric_loss():
    radiance = f32(RNG.uniform(0.05, 0.9, (20, 3)))
    assert photometric_loss(radiance, display(radiance), jnp.ones(20)) == 0
    observed = display(radiance) + f32([0.01, 0, 0])
    np.testing.assert_allclose(photometric_loss(radiance, observed, jnp.ones(20), scale=10.0), 1e-4, rtol=0.02)
    weights = jnp.ones(20).at[:5].set(0.0)
    spoiled = observed.at[:5].set(1.0)
    np.testing.assert_allclose(photometric_loss(radiance, spoiled, weights, scale=10.0), 1e-4, rtol=0.02)
    brighter = jax.grad(photometric_loss)(radiance, display(radiance) + 0.1, jnp.ones(20))
    assert (np.asarray(brighter) < 0).all()
    assert photometric_loss(radiance, observed, jnp.zeros(20)) == 0


TIME = np.arange(8.0)


def test_steady_motion_is_smooth():
    line = f32(np.outer(TIME, [2.0, -1.0]) + 3)
    np.testing.assert_allclose(robust_acceleration(line, jnp.ones(8), 0.1), 0, atol=1e-8)
    np.testing.assert_allclose(change(line, jnp.ones(8)), 7 * 5, rtol=1e-6)


def test_acceleration_of_a_parabola():
    parabola = f32(0.5 * 0.3 * TIME**2)
    np.testing.assert_allclose(robust_acceleration(parabola, jnp.ones(8), 1e3), 6 * 0.3**2, rtol=2e-2)
    matrices = jnp.broadcast_to(parabola[:, None, None], (8, 3, 3))
    np.testing.assert_allclose(robust_acceleration(matrices, jnp.ones(8), 1e3), 9 * 6 * 0.3**2, rtol=2e-2)


@pytest.mark.parametrize("term", [change, lambda v, w: robust_acceleration(v, w, 0.1)])
def test_gaps_are_not_bridged(term):
    values = np.zeros(8)
    values[4:] = 100
    weights = np.ones(8)
    weights[4] = 0
    values[4] = 50
    assert term(f32(values), jnp.ones(8)) > 1
    cut = np.ones(8)
    cut[3:5] = 0
    assert term(f32(values), f32(cut)) == 0


def test_a_jump_costs_less_than_its_square():
    jump = f32(np.where(TIME < 4, 0.0, 5.0))
    assert robust_acceleration(jump, jnp.ones(8), 0.05) < 0.05 * robust_acceleration(jump, jnp.ones(8), 1e6)


@pytest.mark.parametrize("frames", [1, 2])
def test_a_clip_too_short_to_accelerate(frames):
    assert robust_acceleration(jnp.ones((frames, 3)), jnp.ones(frames), 1.0) == 0
    assert change(jnp.ones((frames, 3)), jnp.ones(frames)) == 0
