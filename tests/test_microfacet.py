"""Microfacet surfaces against integrals: densities, shadowing, energy, reciprocity, gradients at the edges."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.geometry.errors import InputError
from facejax.renderers.lights import sphere_directions
from facejax.renderers.microfacet import (
    brdf,
    check_surface,
    facet_density,
    gather_light,
    lambert,
    schlick,
    smith_g1,
    specular_brdf,
    specular_from_cosines,
)
from facejax.renderers.sh import lobe_kernel

BOTH = pytest.mark.parametrize("distribution", ["ggx", "beckmann"])
UP = np.array([0, 0, 1], np.float32)


def hemisphere(n=200, m=400):
    """Directions around +z with weights that integrate over solid angle, dense near the horizon, too."""
    z, w = np.polynomial.legendre.leggauss(n)
    z, w = (z + 1) / 2, w / 2
    azimuth = (np.arange(m) + 0.5) * 2 * np.pi / m
    z, azimuth = (x.ravel() for x in np.meshgrid(z, azimuth, indexing="ij"))
    r = np.sqrt(1 - z**2)
    d = np.stack([r * np.cos(azimuth), r * np.sin(azimuth), z], axis=-1).astype(np.float32)
    return d, np.repeat(w, m) * 2 * np.pi / m


def view(cosine):
    return np.array([math.sqrt(1 - cosine**2), 0, cosine], np.float32)


def random_units(n, seed=0):
    d = np.random.default_rng(seed).normal(size=(n, 3))
    return jnp.asarray(d / np.linalg.norm(d, axis=1, keepdims=True), jnp.float32)


@BOTH
@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0])
def test_facets_cover_the_surface_once(distribution, alpha):
    theta = (np.arange(20_000) + 0.5) * np.pi / 40_000
    d = np.asarray(facet_density(jnp.asarray(np.cos(theta), jnp.float32), alpha, distribution), np.float64)
    total = 2 * np.pi * (d * np.cos(theta) * np.sin(theta)).sum() * np.pi / 40_000
    np.testing.assert_allclose(total, 1, rtol=1e-3)
    assert float(facet_density(jnp.float32(-0.5), alpha, distribution)) == 0


@BOTH
@pytest.mark.parametrize(("alpha", "tolerance"), [(0.2, 0.005), (0.5, 0.005)])
@pytest.mark.parametrize("cosine", [0.95, 0.5, 0.15])
def test_shadowing_leaves_the_projected_area(distribution, alpha, tolerance, cosine):
    """Smith: the visible facets' projected area is that of the surface, G1 = n.v / integral of D (h.v)+."""
    h, weight = hemisphere(200, 200)
    d = np.asarray(facet_density(jnp.asarray(h[:, 2]), alpha, distribution), np.float64)
    area = (d * np.maximum(h @ view(cosine), 0) * weight).sum()
    np.testing.assert_allclose(smith_g1(jnp.float32(cosine), alpha, distribution), cosine / area, rtol=tolerance)


def test_shadowing_at_its_ends():
    for distribution in ("ggx", "beckmann"):
        assert float(smith_g1(jnp.float32(1), 0.3, distribution)) == pytest.approx(1, abs=1e-5)
        assert float(smith_g1(jnp.float32(0), 0.3, distribution)) == 0
        assert float(smith_g1(jnp.float32(-0.4), 0.3, distribution)) == 0


def test_schlick_at_its_ends():
    np.testing.assert_allclose(schlick(0.04, jnp.array([1.0, 0.0, -0.3])), [0.04, 1, 1], rtol=1e-6)


@BOTH
@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("cosine", [1.0, 0.6, 0.2, 0.05])
def test_no_energy_is_created(distribution, alpha, cosine):
    """A white furnace around a perfect mirror of facets: at most what came in, and most of it where it is smooth."""
    directions, weight = hemisphere(300, 200)
    eye = view(cosine)
    f = specular_from_cosines(directions[:, 2], directions @ eye, np.float32(cosine), 1.0, alpha, distribution)
    share = (np.asarray(f, np.float64) * weight).sum()
    assert share < 1.005
    if alpha <= 0.3 and cosine >= 0.6:
        assert share > 0.8


def test_directional_albedo_is_what_the_kernel_says():
    directions, weight = hemisphere(300, 100)
    for distribution, expected in (("ggx", 0.88), ("beckmann", 1.0)):
        f = specular_brdf(jnp.asarray(UP), jnp.asarray(directions), jnp.asarray(UP), 1.0, 0.3, distribution)
        share = (np.asarray(f, np.float64) * directions[:, 2] * weight).sum()
        kernel = lobe_kernel(0.3, 1, distribution, normalised=False)
        np.testing.assert_allclose(kernel[0], share, rtol=2e-3)
        np.testing.assert_allclose(kernel[0], expected, atol=0.005)


@BOTH
def test_light_and_viewer_can_be_exchanged(distribution):
    n, a, b = random_units(500, 1), random_units(500, 2), random_units(500, 3)
    there = specular_brdf(n, a, b, 0.04, 0.3, distribution)
    back = specular_brdf(n, b, a, 0.04, 0.3, distribution)
    np.testing.assert_allclose(there, back, rtol=2e-5, atol=1e-7)
    assert (np.asarray(there) > 0).sum() > 50


@BOTH
def test_the_printed_formula(distribution):
    """F D G / (4 (n.l)(n.v)) with an explicit half vector, in double precision."""
    rng = np.random.default_rng(5)
    n, a, b = (rng.normal(size=(400, 3)) for _ in range(3))
    n, a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (n, a, b))
    a, b = (x * np.sign((n * x).sum(1, keepdims=True)) for x in (a, b))
    alpha, f0 = rng.uniform(0.1, 1, 400), rng.uniform(0, 1, 400)
    h = (a + b) / np.linalg.norm(a + b, axis=1, keepdims=True)
    na, nb, nh, hb = (n * a).sum(1), (n * b).sum(1), (n * h).sum(1), (h * b).sum(1)
    tan2 = 1 / nh**2 - 1
    if distribution == "ggx":
        d = alpha**2 / (np.pi * (nh**2 * (alpha**2 - 1) + 1) ** 2)

        def g1(c):
            return 2 * c / (c + np.sqrt(alpha**2 + (1 - alpha**2) * c**2))
    else:
        d = np.exp(-tan2 / alpha**2) / (np.pi * alpha**2 * nh**4)

        def g1(c):
            t = 1 / (alpha * np.sqrt(1 / c**2 - 1))
            return np.where(t < 1.6, (3.535 * t + 2.181 * t**2) / (1 + 2.276 * t + 2.577 * t**2), 1)

    expected = (f0 + (1 - f0) * (1 - hb) ** 5) * d * g1(na) * g1(nb) / (4 * na * nb)
    given = [jnp.asarray(x, jnp.float32) for x in (n, a, b, f0, alpha)]
    np.testing.assert_allclose(specular_brdf(*given, distribution), expected, rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(
        specular_from_cosines(
            *(jnp.asarray(x, jnp.float32) for x in (na, (a * b).sum(1), nb, f0, alpha)), distribution
        ),
        expected * na,
        rtol=2e-3,
        atol=1e-5,
    )


@BOTH
def test_nothing_from_behind(distribution):
    down = jnp.asarray(-UP)
    assert float(specular_brdf(jnp.asarray(UP), down, jnp.asarray(UP), 0.5, 0.3, distribution)) == 0
    assert float(specular_brdf(jnp.asarray(UP), jnp.asarray(UP), down, 0.5, 0.3, distribution)) == 0
    assert (np.asarray(brdf(jnp.asarray(UP), down, jnp.asarray(UP), jnp.ones(3), 0.5, 0.3, distribution)) == 0).all()


def test_brdf_is_lambert_plus_gloss():
    n, a, b = jnp.asarray(UP), jnp.asarray(view(0.8)), jnp.asarray(view(0.5))
    albedo = jnp.array([0.8, 0.5, 0.3])
    total = brdf(n, a, b, albedo, 0.04, 0.3)
    np.testing.assert_allclose(total - specular_brdf(n, a, b, 0.04, 0.3), lambert(albedo), rtol=1e-6)


def test_no_reflectance_is_no_gloss_even_at_grazing_angles():
    """As `Face.specular` says; Schlick's term alone would leave a rim of light on matt skin."""
    for f0, dark in ((0.0, True), (1e-4, False)):
        value = specular_from_cosines(jnp.float32(0.1), jnp.float32(-0.9), jnp.float32(0.1), f0, 0.3)
        assert (float(value) == 0) == dark
    normals, eye, specular, roughness, directions, power, _ = scene(20, 16)
    assert (np.asarray(gather_light(normals, eye, 0 * specular, roughness, directions, power)[1]) == 0).all()


EDGES = {
    "mirror": (1.0, 1.0, 1.0),  # light, viewer and normal coincide
    "grazing light": (0.0, 0.3, 0.5),
    "grazing viewer": (0.5, 0.3, 0.0),
    "both grazing": (0.0, 0.2, 0.0),
    "viewer behind": (0.5, -0.2, -0.3),
    "light behind": (-0.4, 0.1, 0.5),
    "opposite": (0.5, -1.0, -0.5),  # the half vector is not defined
    "opposite along the surface": (0.0, -1.0, 0.0),
}


@BOTH
def test_values_and_gradients_are_finite_at_the_edges(distribution):
    cases = [(*edge, 0.04, alpha) for edge in EDGES.values() for alpha in (0.02, 0.3, 1.0)]
    points = jnp.array(cases)
    value = jax.jit(jax.vmap(jax.value_and_grad(lambda x: specular_from_cosines(*x, distribution))))
    for x in value(points):
        assert np.isfinite(np.asarray(x)).all()

    def f(normal, light, eye, alpha):
        return specular_brdf(normal, light, eye, 0.04, alpha, distribution)

    light, eye = (np.stack([view(max(p[i], 0)) for p in cases]) for i in (0, 2))
    slopes = jax.jit(jax.vmap(jax.grad(f, argnums=(0, 1, 2, 3)), in_axes=(None, 0, 0, 0)))
    for g in slopes(jnp.asarray(UP), jnp.asarray(light), jnp.asarray(eye), points[:, 4]):
        assert np.isfinite(np.asarray(g)).all()


@BOTH
def test_gradients_are_those_of_finite_differences(distribution):
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(*r, 60) for r in ((0.05, 0.95), (-0.2, 0.9), (0.05, 0.95), (0.02, 0.9), (0.2, 0.9))])
    points[1] = np.minimum(
        points[1], points[0] * points[2] + np.sqrt((1 - points[0] ** 2) * (1 - points[2] ** 2)) - 0.02
    )

    def value(x):
        return specular_from_cosines(x[0], x[1], x[2], x[3], x[4], distribution)

    slopes = jax.jit(jax.grad(lambda x: value(x).sum()))(jnp.asarray(points, jnp.float32))
    for i in range(5):
        step = np.zeros((5, 1))
        step[i] = 2e-3
        up, down = (np.asarray(value(jnp.asarray(points + s * step, jnp.float32)), np.float64) for s in (1, -1))
        np.testing.assert_allclose(slopes[i], (up - down) / 4e-3, rtol=0.03, atol=0.02 * np.abs(slopes[i]).max())


def scene(count=150, directions=64, seed=0):
    rng = np.random.default_rng(seed)
    normals = random_units(count, seed)
    eye = normals * 0.8 + 0.5 * random_units(count, seed + 1)
    return (
        normals,
        eye / jnp.linalg.norm(eye, axis=1, keepdims=True),
        jnp.asarray(rng.uniform(0.02, 0.3, count), jnp.float32),
        jnp.asarray(rng.uniform(0.2, 0.8, count), jnp.float32),
        sphere_directions(directions),
        jnp.asarray(rng.uniform(0, 1, (directions, 3)), jnp.float32),
        jnp.asarray(rng.uniform(size=(count, directions)) < 0.7),
    )


@BOTH
def test_gathered_light_is_the_sum_of_the_brdf(distribution):
    normals, eye, specular, roughness, directions, power, seen = scene(20, 16)
    diffuse, gloss = gather_light(
        normals, eye, specular, roughness, directions, power, seen, distribution=distribution, block=7
    )
    for i in range(20):
        cosine = jnp.maximum(directions @ normals[i], 0)
        share = jnp.where(seen[i], cosine, 0)
        np.testing.assert_allclose(diffuse[i], share @ power / np.pi, rtol=1e-4, atol=1e-6)
        f = specular_brdf(normals[i], jnp.asarray(directions), eye[i], specular[i], roughness[i], distribution)
        np.testing.assert_allclose(gloss[i], (f * share) @ power, rtol=2e-3, atol=1e-5)


def test_even_light_on_white_matt_skin_returns_itself_and_gloss_adds_its_albedo():
    normals, eye, specular, roughness, directions, _, _ = scene(50, 1024)
    power = jnp.full((1024, 3), 4 * np.pi / 1024)
    diffuse, gloss = gather_light(normals, eye, specular, roughness, directions, power)
    np.testing.assert_allclose(diffuse, 1, atol=3e-3)
    assert (np.asarray(gloss) < 1).all()


def test_soft_visibility_dims_and_has_a_gradient():
    normals, eye, specular, roughness, directions, power, seen = scene(30, 16)
    hard = gather_light(normals, eye, specular, roughness, directions, power, seen)
    soft = gather_light(normals, eye, specular, roughness, directions, power, 0.5 * seen)
    for a, b in zip(hard, soft, strict=True):
        np.testing.assert_allclose(0.5 * a, b, rtol=1e-5, atol=1e-7)
    slope = jax.grad(lambda v: gather_light(normals, eye, specular, roughness, directions, power, v)[0].sum())(
        0.5 * seen
    )
    expected = np.maximum(np.asarray(normals) @ directions.T, 0) * np.asarray(power).sum(axis=1) / np.pi
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-6)


def test_gathering_is_linear_in_light():
    normals, eye, specular, roughness, directions, power, seen = scene(30, 16)
    other = jnp.flip(power)
    args = (normals, eye, specular, roughness, directions)
    for both, a, b in zip(
        gather_light(*args, 2 * power + 3 * other, seen),
        gather_light(*args, power, seen),
        gather_light(*args, other, seen),
        strict=True,
    ):
        np.testing.assert_allclose(both, 2 * a + 3 * b, rtol=1e-4, atol=1e-5)


def test_gathering_compiled_is_gathering_and_a_batch_is_a_loop():
    normals, eye, specular, roughness, directions, power, seen = scene(30, 16)

    def f(normals, eye, specular, roughness, power, seen):
        return gather_light(normals, eye, specular, roughness, directions, power, seen, block=16)

    args = (normals, eye, specular, roughness, power, seen)
    one = f(*args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), jax.jit(f)(*args), one)
    flipped = (*args[:4], jnp.flip(power), ~seen)
    batch = jax.jit(jax.vmap(f))(*(jnp.stack(p) for p in zip(args, flipped, strict=True)))
    other = f(*flipped)
    for k in range(2):
        np.testing.assert_allclose(batch[k][0], one[k], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(batch[k][1], other[k], rtol=1e-4, atol=1e-6)


@BOTH
def test_gradients_of_gathered_light(distribution):
    """Against central differences along random changes of everything at once, one argument at a time."""
    normals, eye, specular, roughness, directions, power, seen = scene(40, 64)
    target = jnp.asarray(np.random.default_rng(9).normal(size=(2, 40, 3)), jnp.float32)

    @jax.jit
    def loss(args):
        n, e, s, r, p = args
        n, e = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (n, e))
        out = gather_light(n, e, s, r, directions, p, seen, distribution=distribution)
        return jnp.sum(jnp.stack(out) * target)

    args = (normals, eye, specular, roughness, power)
    slopes = jax.jit(jax.grad(loss))(args)
    rng = np.random.default_rng(2)
    for i, x in enumerate(args):
        change = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
        change = change / jnp.linalg.norm(change)
        up, down = (
            float(loss(tuple(y + s * 1e-2 * change if j == i else y for j, y in enumerate(args)))) for s in (1, -1)
        )
        np.testing.assert_allclose(
            float(jnp.sum(slopes[i] * change)),
            (up - down) / 2e-2,
            rtol=0.02,
            atol=5e-3 * float(jnp.linalg.norm(slopes[i])),
        )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"roughness": 0.0}, r"\(0, 1\], got values from 0"),
        ({"roughness": np.array([-0.1, 0.5])}, "from -0.1 to 0.5"),
        ({"roughness": 1.5}, "1.5"),
        ({"albedo": np.array([0.5, 128.0])}, "divide 8-bit"),
        ({"albedo": -0.01}, "from -0.01"),
        ({"albedo": np.nan}, "finite"),
        ({"albedo": np.zeros((0, 3))}, "got none"),
        ({"specular": 1.01}, "specular reflectance"),
    ],
)
def test_bad_surfaces_are_refused(values, words):
    with pytest.raises(InputError, match=words):
        check_surface(**values)


def test_good_surfaces_pass():
    check_surface(albedo=np.array([0.0, 1.0]), specular=0.028, roughness=np.array([0.05, 1.0]))


def test_unknown_distributions_are_refused():
    with pytest.raises(InputError, match="phong"):
        facet_density(jnp.float32(1), 0.3, "phong")
    with pytest.raises(InputError, match="phong"):
        smith_g1(jnp.float32(1), 0.3, "phong")
