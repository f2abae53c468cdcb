"""The share of even light that a rough surface reflects: against the integral of its BRDF, and at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.renderers.directional_albedo import scale_and_bias, specular_albedo
from facejax.renderers.microfacet import specular_from_cosines

N, M = 300, 200
HEIGHT, HEIGHT_WEIGHT = ((np.polynomial.legendre.leggauss(N)[i][:, None] + (1 - i)) / 2 for i in (0, 1))
T = (np.arange(M) + 0.5) / M


@jax.jit
def integral(specular, alpha, cosine):
    """Of the BRDF times the light's cosine over the hemisphere of lights.

    Gauss and Legendre in the height of the light; its azimuth from the mirror direction's by midpoints of a cube, since
    lobes at grazing angles are narrow.
    """
    z, aside = jnp.asarray(HEIGHT), jnp.asarray(np.pi * T**3)
    between = cosine * z - jnp.sqrt(1 - cosine**2) * jnp.sqrt(1 - z**2) * jnp.cos(aside)
    value = specular_from_cosines(z, between, cosine, specular, alpha)
    return jnp.sum(value * HEIGHT_WEIGHT * (2 * 3 * np.pi * T**2 / M))


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.23, 0.3, 0.5, 0.77, 1.0])
def test_it_is_the_integral_of_the_brdf(alpha):
    grid = np.meshgrid([0.028, 0.04, 0.3, 1.0], [0.003, 0.05, 0.12, 0.31, 0.5, 0.8, 0.97, 1.0], indexing="ij")
    for specular, cosine in zip(*(x.ravel().astype(np.float32) for x in grid), strict=True):
        found = specular_albedo(jnp.asarray(specular), jnp.float32(alpha), jnp.asarray(cosine))
        np.testing.assert_allclose(found, integral(specular, alpha, cosine), rtol=0.01)


def test_between_the_table_s_entries_as_well():
    """At random places, against the table's own quadrature with many more samples, down to the widths of mirrors."""
    draw = np.random.default_rng(0)
    for alpha in np.exp(draw.uniform(np.log(0.005), 0, 40)):
        cosines = draw.uniform(0, 1, 40) ** 2
        scale, bias = scale_and_bias(alpha, cosines, (100, 50)).T
        found = specular_albedo(jnp.full(40, 0.04), jnp.full(40, alpha, jnp.float32), jnp.asarray(cosines, jnp.float32))
        np.testing.assert_allclose(found, 0.04 * scale + bias, rtol=0.01)


def test_a_mirror_has_schlicks_term():
    cosines = np.array([0.1, 0.4, 0.7, 1.0])
    found = specular_albedo(jnp.full(4, 0.04), jnp.full(4, 1e-3), jnp.asarray(cosines, jnp.float32))
    np.testing.assert_allclose(found, 0.04 + 0.96 * (1 - cosines) ** 5, rtol=0.02)


def test_it_is_a_share_and_grows_towards_grazing():
    grid = np.meshgrid([0.02, 0.04, 0.5, 1.0], np.linspace(0.001, 1, 83), np.linspace(0, 1, 95), indexing="ij")
    value = np.asarray(specular_albedo(*(jnp.asarray(g, jnp.float32) for g in grid)))
    assert value.min() > 0
    assert value.max() <= 1
    skin = value[:2, grid[1][0, :, 0] > 0.2]
    assert (np.diff(skin, axis=2) < 1e-4).all()
    assert (skin[..., 0] > 2 * skin[..., -1]).all()
    assert (np.diff(value, axis=0) > 0).all()  # more at normal incidence is more from everywhere
    assert (np.asarray(specular_albedo(jnp.zeros(5), jnp.full(5, 0.3), jnp.linspace(0, 1, 5))) == 0).all()


def test_derivatives_are_finite_at_the_edges_and_differences_between_them():
    edges = np.stack(np.meshgrid([0.0, 0.04, 1.0], [0.0, 1e-6, 1.0], [0.0, 1e-6, 1.0], indexing="ij"), axis=-1)
    slopes = jax.vmap(jax.grad(lambda x: specular_albedo(*x)))(jnp.asarray(edges.reshape(-1, 3), jnp.float32))
    assert np.isfinite(slopes).all()
    h = 0.05  # wider than a cell of the table, within which the slope is almost constant

    x = jnp.array([0.04, 0.3, 0.5])
    for i in (1, 2):
        steps = x + jnp.linspace(-h, h, 41)[:, None] * jnp.eye(3)[i]
        slope = jax.vmap(jax.grad(lambda x: specular_albedo(*x)))(steps)[:, i].mean()
        ends = [integral(*x.at[i].add(d)) for d in (-h, h)]
        np.testing.assert_allclose(slope, (ends[1] - ends[0]) / (2 * h), rtol=0.05)


def test_the_first_call_may_be_traced():
    arguments = [jnp.full(3, x) for x in (0.04, 0.3, 0.6)]
    traced = jax.jit(specular_albedo)(*arguments)
    np.testing.assert_allclose(specular_albedo(*arguments), traced, rtol=1e-6)


def test_skin_in_a_white_furnace_returns_no_more_than_it_gets():
    """Albedo and lobe are added; for skin seen from up to 80 degrees that stays below what came in."""
    gloss = specular_albedo(jnp.full(20, 0.028), jnp.full(20, 0.25), jnp.linspace(0.17, 1, 20))
    assert (0.8 + np.asarray(gloss) < 1.0).all()
