"""Texture lookup: where texels lie, and what is between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from facejax.renderers.texture import sample_bilinear, sample_texture

RNG = np.random.default_rng(0)
IMAGE = RNG.uniform(size=(5, 7, 3)).astype(np.float32)


def test_agrees_with_scipy_inside_and_beyond_the_border():
    xy = RNG.uniform(-2, 9, size=(300, 2)).astype(np.float32)
    at = [xy[:, 1] - 0.5, xy[:, 0] - 0.5]
    expected = np.stack([map_coordinates(IMAGE[..., c], at, order=1, mode="nearest") for c in range(3)], axis=-1)
    np.testing.assert_allclose(sample_bilinear(jnp.asarray(IMAGE), jnp.asarray(xy)), expected, atol=1e-5)


def test_pixel_centres_give_pixels():
    y, x = np.mgrid[:5, :7] + 0.5
    xy = jnp.asarray(np.stack([x, y], axis=-1), jnp.float32)
    np.testing.assert_allclose(sample_bilinear(jnp.asarray(IMAGE), xy), IMAGE, atol=1e-6)


def test_uv_starts_at_the_bottom_left():
    corners = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    expected = [IMAGE[-1, 0], IMAGE[-1, -1], IMAGE[0, 0], IMAGE[0, -1]]
    np.testing.assert_allclose(sample_texture(jnp.asarray(IMAGE), corners), expected, atol=1e-6)
    row, column = 1, 4
    uv = jnp.array([(column + 0.5) / 7, 1 - (row + 0.5) / 5])
    np.testing.assert_allclose(sample_texture(jnp.asarray(IMAGE), uv), IMAGE[row, column], atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 4, 2), (4, 1, 2), (2, 2, 2)])
def test_the_smallest_textures(shape):
    image = jnp.asarray(RNG.uniform(size=shape), jnp.float32)
    uv = jnp.asarray(RNG.uniform(size=(50, 2)), jnp.float32)
    value = np.asarray(sample_texture(image, uv))
    assert np.isfinite(value).all()
    assert (value >= np.asarray(image).min() - 1e-6).all()
    assert (value <= np.asarray(image).max() + 1e-6).all()
    if shape[:2] == (1, 1):
        np.testing.assert_allclose(value, np.broadcast_to(np.asarray(image)[0, 0], value.shape))


def test_derivatives():
    y, x = np.mgrid[:6, :8] + 0.5
    ramp = jnp.asarray(2 * x - 3 * y, jnp.float32)[..., None]
    slope = jax.jacfwd(lambda p: sample_bilinear(ramp, p)[0])
    np.testing.assert_allclose(slope(jnp.array([3.3, 2.6])), [2, -3], rtol=1e-5)
    np.testing.assert_allclose(slope(jnp.array([-4.0, 2.6])), [0, -3], rtol=1e-5, atol=1e-6)  # clamped: no slope
    by_texel = jax.grad(lambda t: jnp.sum(sample_bilinear(t, jnp.array([[3.0, 2.5], [3.25, 2.5]]))))(ramp)
    np.testing.assert_allclose(np.asarray(by_texel)[2, 2:4, 0], [0.75, 1.25], atol=1e-6)
    np.testing.assert_allclose(by_texel.sum(), 2, rtol=1e-6)


def test_vmap_over_textures():
    images = jnp.asarray(RNG.uniform(size=(3, 4, 4, 2)), jnp.float32)
    uv = jnp.asarray(RNG.uniform(size=(3, 9, 2)), jnp.float32)
    together = jax.vmap(sample_texture)(images, uv)
    np.testing.assert_allclose(together[1], sample_texture(images[1], uv[1]), atol=1e-6)
