import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.geometry.colour import linear_to_srgb, linear_to_srgb_bytes, srgb_bytes_to_linear, srgb_to_linear


def test_known_values_of_the_standard():
    # IEC 61966-2-1: mid grey 0.5 and the 18 % card
    np.testing.assert_allclose(srgb_to_linear(np.float64(0.5)), 0.21404114, atol=1e-7)
    np.testing.assert_allclose(linear_to_srgb(np.float64(0.18)), 0.46135612, atol=1e-7)
    np.testing.assert_allclose(linear_to_srgb(np.array([0.0, 1.0])), [0.0, 1.0], atol=1e-12)


@pytest.mark.parametrize("xp", [np, jnp])
def test_round_trip_answers_in_kind(xp):
    x = xp.linspace(0, 1, 1001, dtype=xp.float32)
    back = srgb_to_linear(linear_to_srgb(x))
    assert isinstance(back, type(x))
    assert back.dtype == xp.float32
    np.testing.assert_allclose(back, x, atol=2e-6)


def test_bytes_survive_the_round_trip():
    every = np.arange(256, dtype=np.uint8)
    assert srgb_bytes_to_linear(every).dtype == np.float32
    np.testing.assert_array_equal(linear_to_srgb_bytes(srgb_bytes_to_linear(every)), every)


def test_out_of_range_and_nan_become_valid_bytes():
    np.testing.assert_array_equal(linear_to_srgb_bytes(np.array([-1.0, 2.0, np.nan, np.inf])), [0, 255, 0, 255])


@pytest.mark.parametrize("x", [-0.5, 0.0, 0.0031308, 0.04045, 1.0, 3.0])
def test_gradients_are_finite_everywhere_and_inverse(x):
    slope = jax.grad(lambda v: linear_to_srgb(v))(jnp.float32(x))
    back = jax.grad(lambda v: srgb_to_linear(v))(linear_to_srgb(jnp.float32(x)))
    assert np.isfinite(slope)
    np.testing.assert_allclose(
        slope * back, 1, rtol=2e-2
    )  # the standard's two pieces meet with slightly different slopes
