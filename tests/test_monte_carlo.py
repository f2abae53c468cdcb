"""The Monte Carlo renderer against quadrature, by statistics: unbiased, variance as 1 / K, derivatives of both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_shadows import CAMERA, FACE, POSE, TOPOLOGY

from facejax.geometry.errors import InputError
from facejax.geometry.meshes import normalise
from facejax.renderers.deferred import Render
from facejax.renderers.lights import Environment, NearLights, sphere_directions
from facejax.renderers.microfacet import specular_from_cosines
from facejax.renderers.monte_carlo import make_monte_carlo_renderer, monte_carlo_light, table_lookup

POINTS = 5
FINE = 24  # each texel of the light is cut into FINE x FINE for quadrature
RNG = np.random.default_rng(0)
NORMALS = normalise(jnp.asarray(RNG.normal(size=(POINTS, 3)), jnp.float32))
TO_EYE = normalise(NORMALS + 0.6 * normalise(jnp.asarray(RNG.normal(size=(POINTS, 3)), jnp.float32)))
SPECULAR = jnp.array([0.04, 0.04, 0.5, 0.0, 0.1])
ROUGHNESS = jnp.array([0.3, 0.15, 0.4, 0.3, 0.8])
SKY = Environment(radiance=jnp.asarray(RNG.random((6, 12, 3)) ** 4, jnp.float32).at[2, 5].mul(30.0))
DIRECTIONS = sphere_directions(32)
TABLE = jnp.asarray(RNG.random((POINTS, 32)) < 0.6, jnp.float32)
LOOK = table_lookup(TABLE, DIRECTIONS, POSE.rotation)


def quadrature(normals, specular, roughness, radiance, distribution="ggx", shadowed=True):
    """(2, points, 3) by midpoints of small patches, for the map's texels as even patches of sky."""
    height, width = radiance.shape[0] * FINE, radiance.shape[1] * FINE
    edges = np.cos(np.pi * np.arange(radiance.shape[0] + 1) / radiance.shape[0])
    # even steps of the cosine within each row of texels, so that all patches of a row are alike
    step = (np.arange(FINE) + 0.5) / FINE
    down = (edges[:-1, None] + step * np.diff(edges)[:, None]).ravel()
    area = np.repeat(-np.diff(edges) / FINE, FINE) * 2 * np.pi / width
    azimuth = 2 * np.pi * (np.arange(width) + 0.5) / width
    across = np.sqrt(1 - down**2)[:, None]
    towards = np.stack(
        [-across * np.sin(azimuth), np.broadcast_to(-down[:, None], (height, width)), -across * np.cos(azimuth)],
        axis=-1,
    ).reshape(-1, 3)
    towards = jnp.asarray(towards, jnp.float32)
    bright = jnp.repeat(jnp.repeat(radiance, FINE, axis=0), FINE, axis=1).reshape(-1, 3)
    power = bright * jnp.asarray(np.repeat(area, width), jnp.float32)[:, None]
    seen = LOOK(jnp.broadcast_to(towards, (POINTS, *towards.shape))) if shadowed else 1.0
    cosine = normals @ towards.T
    gloss = specular_from_cosines(
        cosine,
        TO_EYE @ towards.T,
        jnp.sum(normals * TO_EYE, axis=-1, keepdims=True),
        specular[:, None],
        roughness[:, None],
        distribution,
    )
    return jnp.stack([(seen * jnp.maximum(cosine, 0) / jnp.pi) @ power, (seen * gloss) @ power])


def estimate(key, samples=8, distribution="ggx", shadowed=True, sky=SKY, specular=SPECULAR, roughness=ROUGHNESS):
    look = LOOK if shadowed else None
    both = monte_carlo_light(
        key, NORMALS, TO_EYE, specular, roughness, sky, look, samples=samples, distribution=distribution
    )
    return jnp.stack(both)


def many(count, **options):
    return np.asarray(jax.jit(jax.vmap(lambda k: estimate(k, **options)))(jax.random.split(jax.random.key(1), count)))


@pytest.mark.parametrize("distribution", ["ggx", "beckmann"])
@pytest.mark.parametrize("shadowed", [True, False])
def test_unbiased(distribution, shadowed):
    runs = many(4000, distribution=distribution, shadowed=shadowed)
    exact = np.asarray(quadrature(NORMALS, SPECULAR, ROUGHNESS, SKY.radiance, distribution, shadowed))
    error = runs.mean(0) - exact
    standard = runs.std(0) / np.sqrt(len(runs))
    # 30 numbers: five standard errors by chance less than once in 50,000; quadrature itself is good to some 1e-3
    assert (np.abs(error) < 5 * standard + 3e-3 * exact.max()).all()
    assert (standard < 0.02 * exact.max()).all()  # so that the bound says something


def test_variance_falls_with_samples_and_balance_helps():
    few, more = (many(1500, samples=k).var(0).mean() for k in (4, 32))
    assert few / more > 7  # 8 without strata, more with them


def test_derivatives_are_those_of_the_integral():
    """By colour of the light, specular reflectance and roughness, with visibility and the choice of samples held."""
    weights = jnp.asarray(RNG.normal(size=(2, POINTS, 3)), jnp.float32)

    def by_samples(changes, key):
        got = estimate(key, sky=Environment(radiance=changes[0]), specular=changes[1], roughness=changes[2])
        return jnp.sum(weights * got)

    def exactly(changes):
        return jnp.sum(weights * quadrature(NORMALS, changes[1], changes[2], changes[0]))

    at = (SKY.radiance, SPECULAR, ROUGHNESS)
    exact = jax.jit(jax.grad(exactly))(at)
    runs = jax.jit(jax.vmap(jax.grad(by_samples), in_axes=(None, 0)))(at, jax.random.split(jax.random.key(2), 3000))
    for want, got in zip(exact, runs, strict=True):
        standard = np.asarray(got.std(0)) / np.sqrt(len(got))
        error = np.abs(np.asarray(got.mean(0) - want))
        assert (error < 5 * standard + 0.01 * np.abs(want).max()).all()
        assert np.abs(want).max() > 3 * np.median(standard)


def test_dark_sky_is_black_and_lookup_takes_the_nearest():
    assert not estimate(jax.random.key(0), sky=Environment(radiance=jnp.zeros((4, 8, 3)))).any()
    towards = jnp.asarray(DIRECTIONS @ np.asarray(POSE.rotation).T)
    seen = LOOK(jnp.broadcast_to(towards, (POINTS, *towards.shape)))
    np.testing.assert_array_equal(seen, TABLE)


def test_renderer_is_reproducible_linear_and_compiles_once():
    render = make_monte_carlo_renderer(TOPOLOGY, (24, 24), directions=32, depth_samples=5000, resolution=48)
    assert isinstance(render, Render)
    seen = render.visibility_of(FACE.vertices)
    traces = []

    @jax.jit
    def draw(light, key):
        traces.append(1)
        return render(FACE, light, POSE, CAMERA, key, visibility=seen).colour

    one = draw(SKY, jax.random.key(0))
    assert jnp.isfinite(one).all()
    np.testing.assert_array_equal(one, draw(SKY, jax.random.key(0)))
    assert np.abs(one - draw(SKY, jax.random.key(1))).max() > 0
    np.testing.assert_allclose(
        draw(Environment(radiance=2 * SKY.radiance), jax.random.key(0)), 2 * one, rtol=1e-3, atol=1e-4
    )
    assert len(traces) == 1
    loss = jax.jit(
        jax.grad(
            lambda face, light: jnp.sum(
                render(face, light, POSE, CAMERA, jax.random.key(0), visibility=seen).colour ** 2
            ),
            argnums=(0, 1),
        )
    )
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(loss(FACE, SKY)))


def test_refuses_lamps_odd_numbers_and_no_key():
    render = make_monte_carlo_renderer(TOPOLOGY, (24, 24), directions=32)
    with pytest.raises(InputError, match="give it a `key`"):
        render(FACE, SKY, POSE, CAMERA)
    lamps = NearLights(positions=jnp.ones((1, 3)), intensity=jnp.ones((1, 3)))
    with pytest.raises(InputError, match="make_shadowed_renderer"):
        render(FACE, lamps, POSE, CAMERA, jax.random.key(0))
    with pytest.raises(InputError, match="even number"):
        estimate(jax.random.key(0), samples=3)
