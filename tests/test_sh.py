"""Spherical harmonics against quadrature and scipy, and the light that surfaces make of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from facejax.geometry.rotations import rotvec_to_matrix
from facejax.renderers.sh import (
    irradiance,
    irradiance_basis,
    lambert_kernel,
    per_band,
    reflection,
    roughness_kernel,
    sh_basis,
)

BANDS = 9


def sphere(n=24):
    """Gauss-Legendre in z times uniform in azimuth: exact for polynomials of degree 2 n - 1. (directions, weights)."""
    z, w = np.polynomial.legendre.leggauss(n)
    phi = (np.arange(2 * n) + 0.5) * np.pi / n
    z, phi = (x.ravel() for x in np.meshgrid(z, phi, indexing="ij"))
    r = np.sqrt(1 - z**2)
    return np.stack([r * np.cos(phi), r * np.sin(phi), z], axis=-1), np.repeat(w, 2 * n) * np.pi / n


def basis(directions, bands=BANDS):
    return np.asarray(jax.jit(sh_basis, static_argnums=1)(jnp.asarray(directions, jnp.float32), bands), np.float64)


def test_orthonormal():
    directions, weights = sphere()
    y = basis(directions)
    np.testing.assert_allclose((y * weights[:, None]).T @ y, np.eye(BANDS**2), atol=1e-5)


def test_band_one_points_along_y_z_x():
    y = basis(np.eye(3), 2)
    np.testing.assert_allclose(
        y[:, 1:], np.sqrt(3 / (4 * np.pi)) * np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]]), atol=1e-6
    )


def test_agrees_with_scipy():
    """scipy's are complex, with the Condon-Shortley phase."""
    directions = np.random.default_rng(0).normal(size=(200, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    theta, phi = np.arccos(directions[:, 2]), np.arctan2(directions[:, 1], directions[:, 0])
    y = basis(directions)
    for l in range(BANDS):
        for m in range(-l, l + 1):
            if hasattr(special, "sph_harm_y"):
                value = special.sph_harm_y(l, abs(m), theta, phi)
            else:
                value = special.sph_harm(abs(m), l, phi, theta)
            part = value.real if m >= 0 else value.imag
            expected = part * (1 if m == 0 else np.sqrt(2) * (-1) ** m)
            np.testing.assert_allclose(y[:, l * l + l + m], expected, atol=1e-5)


def test_the_documented_vector():
    direction = np.array([0.3, -0.5, 0.81])
    expected = [0.282095, -0.244779, 0.396542, 0.146867, -0.164524, -0.444215, 0.307824, 0.266529, -0.087746]
    np.testing.assert_allclose(basis(direction / np.linalg.norm(direction), 3), expected, atol=2e-6)


def test_more_bands_only_append():
    directions = sphere(4)[0]
    np.testing.assert_array_equal(basis(directions, 4), basis(directions, BANDS)[:, :16])


slopes_of_basis = jax.jit(jax.jacfwd(lambda x: sh_basis(x, BANDS)))


@pytest.mark.parametrize("direction", [[0, 0, 1], [0, 0, -1], [1, 0, 0], [0, -1, 0], [0.6, 0, 0.8]])
def test_derivatives_along_the_sphere_are_finite_and_right_at_the_poles_too(direction):
    slope = np.asarray(slopes_of_basis(jnp.array(direction, dtype=jnp.float32)))
    assert np.isfinite(slope).all()
    step = 0.01
    for axis in np.eye(3):
        tangent = np.cross(axis, direction)
        turn = [np.asarray(rotvec_to_matrix(jnp.asarray(a * axis, jnp.float32))) @ direction for a in (step, -step)]
        difference = (basis(turn[0]) - basis(turn[1])) / (2 * step)
        np.testing.assert_allclose(slope @ tangent, difference, atol=0.02)


def test_second_derivatives_at_the_pole_are_finite():
    curvature = jax.jit(jax.hessian(lambda x: sh_basis(x, 4)))(jnp.array([0.0, 0.0, 1.0]))
    assert np.isfinite(np.asarray(curvature)).all()


def test_lambert_kernel_is_the_projected_clamped_cosine():
    z, w = np.polynomial.legendre.leggauss(40)
    z, w = (z + 1) / 2, w / 2  # of [0, 1]
    expected = [2 * np.sum(w * z * special.eval_legendre(l, z)) for l in range(BANDS)]
    np.testing.assert_allclose(lambert_kernel(BANDS), expected, atol=1e-6)
    np.testing.assert_allclose(lambert_kernel(5), [1, 2 / 3, 1 / 4, 0, -1 / 24], atol=1e-7)


def test_per_band_repeats():
    np.testing.assert_array_equal(per_band(np.array([1.0, 2.0, 3.0]), 3), [1, 2, 2, 2, 3, 3, 3, 3, 3])


def some_light(bands, seed=0):
    light = np.random.default_rng(seed).normal(size=(bands**2, 3)) / np.sqrt(bands)
    return jnp.asarray(light, jnp.float32)


@pytest.mark.parametrize("bands", [1, 3, BANDS])
def test_even_light_leaves_a_white_surface_white(bands):
    light = jnp.zeros((bands**2, 3)).at[0].set(np.sqrt(4 * np.pi))
    normals = jnp.asarray(sphere(6)[0], jnp.float32)
    np.testing.assert_allclose(irradiance(normals, light), 1.0, atol=1e-6)
    to_eye = jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0]), normals.shape)
    np.testing.assert_allclose(reflection(normals, to_eye, light, jnp.full(len(normals), 0.3)), 1.0, atol=1e-6)


@pytest.mark.parametrize("bands", [3, 6])
def test_irradiance_is_the_integral_over_the_hemisphere(bands):
    light = some_light(bands)
    directions, weights = sphere(200)
    radiance = basis(directions, bands) @ np.asarray(light, np.float64)
    normals = sphere(3)[0]
    cosine = np.maximum(normals @ directions.T, 0)
    expected = (cosine * weights) @ radiance / np.pi
    found = irradiance(jnp.asarray(normals, jnp.float32), light)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    np.testing.assert_allclose(
        irradiance_basis(jnp.asarray(normals, jnp.float32), bands) @ light, found, rtol=1e-5, atol=1e-5
    )


def test_turning_light_and_surface_together_changes_nothing():
    light = some_light(5)
    turn = np.asarray(rotvec_to_matrix(jnp.array([0.4, -1.1, 0.7])), np.float64)
    directions, weights = sphere()
    turned = jnp.asarray(
        (basis(directions, 5) * weights[:, None]).T @ (basis(directions @ turn, 5) @ light), jnp.float32
    )
    normals = sphere(4)[0]
    before = irradiance(jnp.asarray(normals, jnp.float32), light)
    after = irradiance(jnp.asarray(normals @ turn.T, jnp.float32), turned)
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert np.abs(np.asarray(irradiance(jnp.asarray(normals, jnp.float32), turned)) - before).max() > 0.1


def test_a_mirror_shows_the_light_it_reflects():
    light = some_light(4)
    normals = jnp.asarray(sphere(3)[0], jnp.float32)
    to_eye = jnp.broadcast_to(jnp.array([0.0, 0.6, 0.8]), normals.shape)
    mirror = 2 * (normals @ to_eye[0])[:, None] * normals - to_eye
    expected = basis(mirror, 4) @ np.asarray(light)
    np.testing.assert_allclose(reflection(normals, to_eye, light, jnp.zeros(len(normals))), expected, atol=1e-5)


def test_roughness_blurs_from_a_mirror_to_the_mean():
    alpha = jnp.linspace(0, 1, 11)
    kernel = np.asarray(roughness_kernel(alpha, 5))
    np.testing.assert_array_equal(kernel[:, 0], 1)
    np.testing.assert_array_equal(kernel[0], 1)
    assert (np.diff(kernel[:, 1:], axis=0) < 0).all()
    assert (np.diff(kernel[1:], axis=1) < 0).all()
    np.testing.assert_allclose(kernel[5, 2], np.exp(-0.25 * 6), rtol=1e-6)
    assert np.isfinite(np.asarray(jax.jacfwd(lambda a: roughness_kernel(a, 5))(jnp.zeros(())))).all()
