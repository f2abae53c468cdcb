"""The share of even light that a rough surface reflects: against the integral of its BRDF, and at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_microfacet import UP, hemisphere, random_units, view

from facejax.geometry.errors import InputError
from facejax.renderers.directional_albedo import (
    diffuse_share,
    mean_specular_albedo,
    scale_and_bias,
    specular_albedo,
)
from facejax.renderers.microfacet import brdf, gather_light, specular_from_cosines

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


@pytest.mark.parametrize("alpha", [0.02, 0.3, 1.0])
def test_the_mean_is_that_of_the_integral(alpha):
    nodes, weights = np.polynomial.legendre.leggauss(400)
    cosines, weights = (nodes + 1) / 2, weights / 2
    scale, bias = scale_and_bias(alpha, cosines, (60, 30)).T
    for specular in (0.028, 1.0):
        mean = ((specular * scale + bias) * 2 * cosines * weights).sum()
        np.testing.assert_allclose(mean_specular_albedo(jnp.full(1, specular), jnp.full(1, alpha)), mean, rtol=0.006)
    assert float(mean_specular_albedo(jnp.zeros(()), jnp.full((), alpha))) == 0


SURFACES = [(s, a) for s in (0.0, 0.028, 0.3, 1.0) for a in (0.1, 0.3, 1.0)]


@pytest.mark.parametrize("energy", ["dimmed", "coupled"])
@pytest.mark.parametrize(("specular", "alpha"), SURFACES)
def test_a_white_furnace_gets_back_from_white_skin_what_it_sent(energy, specular, alpha):
    """Diffuse and specular term together, by quadrature over lights; without the option up to twice as much."""
    across, azimuth = jnp.sqrt(1 - HEIGHT**2), np.pi * (1 - T**3)  # dense around the mirror direction, as `integral` is
    lights = jnp.stack(jnp.broadcast_arrays(across * jnp.cos(azimuth), across * jnp.sin(azimuth), HEIGHT), axis=-1)
    weight = HEIGHT_WEIGHT * (2 * 3 * np.pi * T**2 / M)
    up, white = jnp.broadcast_to(jnp.asarray(UP), lights.shape), jnp.ones_like(lights)

    def returned(cosine, energy):
        eye = jnp.broadcast_to(jnp.asarray(view(cosine)), lights.shape)
        f = brdf(up, lights, eye, white, specular, alpha, energy=energy)
        return (np.asarray(f[..., 0], np.float64) * HEIGHT * weight).sum()

    for cosine in (1.0, 0.5, 0.2, 0.08):
        assert returned(cosine, energy) == pytest.approx(1, abs=0.012)
        lobe = float(specular_albedo(jnp.float32(specular), jnp.float32(alpha), jnp.float32(cosine)))
        assert returned(cosine, "additive") == pytest.approx(1 + lobe, abs=0.012)


@pytest.mark.parametrize("energy", ["dimmed", "coupled"])
def test_gathered_light_has_the_same_share(energy):
    """Of `gather_light` with its blocks against the sum of pointwise BRDFs, of surfaces of many kinds."""
    directions, weight = hemisphere(40, 60)
    lights = jnp.asarray(directions)
    up = jnp.broadcast_to(jnp.asarray(UP), lights.shape)
    draw = np.random.default_rng(2)
    n = 30
    eyes = jnp.stack([jnp.asarray(view(c)) for c in np.linspace(0.05, 1, n)])
    normals = jnp.tile(jnp.asarray(UP), (n, 1))
    specular, alpha = (jnp.asarray(draw.uniform(low, 1, n), jnp.float32) for low in (0, 0.3))
    power = jnp.asarray(weight[:, None] * draw.random((len(directions), 3)), jnp.float32)
    matt, gloss = gather_light(normals, eyes, specular, alpha, directions, power, energy=energy, block=16)
    plain = gather_light(normals, eyes, specular, alpha, directions, power, block=16)
    np.testing.assert_array_equal(gloss, plain[1])
    for i in range(n):
        eye = jnp.broadcast_to(eyes[i], lights.shape)
        f = brdf(up, lights, eye, jnp.ones_like(lights), specular[i], alpha[i], energy=energy)
        np.testing.assert_allclose((f * lights[:, 2:] * power).sum(0), matt[i] + gloss[i], rtol=1e-4)
    assert (matt < plain[0]).all()


def test_what_is_coupled_is_reciprocal_and_what_is_dimmed_is_not():
    n, a, b = random_units(500, 1), random_units(500, 2), random_units(500, 3)
    white = jnp.ones((500, 3))
    there, back = (brdf(n, x, y, white, 0.3, 0.4, energy="coupled") for x, y in ((a, b), (b, a)))
    np.testing.assert_allclose(there, back, rtol=3e-5, atol=1e-6)
    there, back = (brdf(n, x, y, white, 0.3, 0.4, energy="dimmed") for x, y in ((a, b), (b, a)))
    assert float(jnp.abs(there - back).max()) > 0.01


def test_a_lobe_that_is_off_takes_nothing_and_a_mirror_leaves_nothing():
    for energy in ("dimmed", "coupled"):
        assert float(diffuse_share(energy, 0.0, 0.3, 0.4, 0.6)) == 1
        assert 0 <= float(diffuse_share(energy, 1.0, 1e-3, 0.7, 0.7)) < 0.02
    assert float(diffuse_share("additive", 0.5, 0.3, 0.4)) == 1


@pytest.mark.parametrize("energy", ["dimmed", "coupled"])
@pytest.mark.parametrize("cosine", [-0.2, 0.0, 1e-6, 1.0])
def test_derivatives_are_finite_at_grazing_angles(energy, cosine):
    for alpha in (1e-3, 0.3, 1.0):
        for specular in (0.0, 0.04, 1.0):
            at = [jnp.float32(x) for x in (specular, alpha, cosine, cosine)]
            gradient = jax.grad(lambda x: diffuse_share(energy, *x))(at)
            assert np.isfinite(gradient).all(), (alpha, specular)


def test_other_energies_and_unknown_lights_are_refused():
    with pytest.raises(InputError, match='"additive", "dimmed" or "coupled", got \'lossless\''):
        diffuse_share("lossless", 0.04, 0.3, 0.5, 0.5)
    with pytest.raises(InputError, match="needs the direction of each light"):
        diffuse_share("coupled", 0.04, 0.3, 0.5)
    up = jnp.asarray(UP)
    with pytest.raises(InputError, match='of "ggx" facets only'):
        brdf(up, up, up, jnp.ones(3), 0.04, 0.3, "beckmann", "dimmed")
