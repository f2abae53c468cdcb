"""Spherical harmonics as light: turning, maps, lobes, and what other tools call them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.geometry.errors import InputError
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.renderers.lights import (
    Environment,
    environment_directions,
    power_along,
    project_environment,
    radiance_towards,
    sh_to_environment,
    solid_angles,
    sphere_directions,
)
from facejax.renderers.microfacet import specular_brdf
from facejax.renderers.sh import (
    CONDON_SHORTLEY,
    DEEP3D,
    REDNER,
    SHConvention,
    filtered_light,
    from_convention,
    irradiance,
    lobe_kernel,
    mirror_direction,
    phong_kernel,
    rotate_sh,
    rotation_matrix_sh,
    roughness_kernel,
    sh_basis,
    to_convention,
    torrance_sparrow_kernel,
)

BANDS = 9
ROTATIONS = [(0.0, 0, 0), (0, 0, 0.3), (1.2, 0, 0), (0.7, -1.3, 2.1), (0, np.pi, 0)]


def units(n=100, seed=0):
    d = np.random.default_rng(seed).normal(size=(n, 3))
    return (d / np.linalg.norm(d, axis=1, keepdims=True)).astype(np.float32)


def some_light(bands=BANDS, seed=0, white=0.0):
    light = np.random.default_rng(seed).normal(size=(bands**2, 3)) / bands
    light[0] += white
    return jnp.asarray(light, jnp.float32)


def turn(rotvec):
    return rotvec_to_matrix(jnp.asarray(rotvec, jnp.float32))


@pytest.mark.parametrize("rotvec", ROTATIONS)
def test_turned_light_comes_from_turned_directions(rotvec):
    light, d, rotation = some_light(), units(), turn(rotvec)
    turned = sh_basis(jnp.asarray(d) @ rotation.T, BANDS) @ rotate_sh(light, rotation)
    np.testing.assert_allclose(turned, sh_basis(jnp.asarray(d), BANDS) @ light, atol=3e-5)


@pytest.mark.parametrize("rotvec", ROTATIONS[1:])
def test_rotation_matrix_is_orthogonal_and_keeps_each_bands_energy(rotvec):
    matrix = np.asarray(rotation_matrix_sh(turn(rotvec), BANDS), np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(BANDS**2), atol=1e-5)
    light = np.asarray(some_light())
    turned = matrix @ light
    for l in range(BANDS):
        band = slice(l * l, (l + 1) ** 2)
        np.testing.assert_allclose((turned[band] ** 2).sum(), (light[band] ** 2).sum(), rtol=1e-5)
        np.testing.assert_array_equal(matrix[band, (l + 1) ** 2 :], 0)


def test_rotations_compose():
    a, b = turn((0.3, 0.8, -0.2)), turn((-1.0, 0.4, 0.9))
    both = rotation_matrix_sh(a @ b, 5)
    np.testing.assert_allclose(rotation_matrix_sh(a, 5) @ rotation_matrix_sh(b, 5), both, atol=5e-6)
    assert np.abs(np.asarray(rotation_matrix_sh(b @ a, 5) - both)).max() > 0.1


def test_turning_is_differentiable_in_the_rotation():
    light, weight = some_light(4), some_light(4, 5)

    @jax.jit
    def f(rotvec):
        return jnp.sum(rotate_sh(light, rotvec_to_matrix(rotvec)) * weight)

    for start in ((0.0, 0, 0), (0.5, -0.3, 1.0)):
        slope = jax.grad(f)(jnp.array(start))
        for i, axis in enumerate(np.eye(3)):
            up, down = (float(f(jnp.asarray(start + s * 1e-2 * axis, jnp.float32))) for s in (1, -1))
            np.testing.assert_allclose(slope[i], (up - down) / 2e-2, atol=2e-3)


@pytest.mark.parametrize("bands", [1, 3, BANDS])
def test_light_survives_the_way_through_a_map(bands):
    light = some_light(bands, white=8.0)
    back = project_environment(sh_to_environment(light), bands)
    np.testing.assert_allclose(back, light, atol=2e-3 * float(jnp.linalg.norm(light, axis=0).max()))


def test_a_finer_map_keeps_more():
    light = some_light(white=8.0)
    coarse, fine = (
        np.abs(project_environment(sh_to_environment(light, n, 2 * n), BANDS) - light).max() for n in (16, 128)
    )
    assert fine < 5e-3
    assert fine < coarse / 20


@pytest.mark.parametrize("size", [(64, 64), (5, 10)])
def test_the_map_shows_what_comes_from_each_texel(size):
    light = some_light()
    expected = radiance_towards(light, environment_directions(*size).reshape(-1, 3)).reshape(*size, 3)
    found = sh_to_environment(light, *size).radiance
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert float(found.min()) == 0  # this light is negative in places, and cut off there


def test_projection_is_the_sum_over_texels():
    radiance = np.random.default_rng(0).uniform(0, 3, (6, 12, 3)).astype(np.float32)
    basis = np.asarray(sh_basis(jnp.asarray(environment_directions(6, 12)), BANDS), np.float64)
    expected = np.einsum("hwc,hwb,hw->bc", radiance, basis, solid_angles(6, 12))
    found = project_environment(Environment(radiance=jnp.asarray(radiance)), BANDS)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_projection_is_linear_with_the_right_gradient():
    slope = jax.grad(lambda r: project_environment(Environment(radiance=r), 3)[2, 1])(jnp.zeros((4, 8, 3)))
    d = environment_directions(4, 8)
    np.testing.assert_allclose(slope[..., 1], np.sqrt(3 / (4 * np.pi)) * d[..., 2] * solid_angles(4, 8), atol=1e-6)


@pytest.mark.parametrize(("bands", "gain"), [(3, 1.59), (5, 1.99), (7, 2.32), (9, 2.60)])
def test_cutting_off_a_lamp_multiplies_its_energy_as_known(bands, gain):
    lamp = jnp.repeat(sh_basis(jnp.array([[0.6, 0.0, 0.8]]), bands).T, 3, axis=1)
    cut = sh_to_environment(lamp, 128, 256).radiance[..., 0] * solid_angles(128, 256)
    np.testing.assert_allclose(cut.sum(), gain, atol=0.006)


def test_power_of_smooth_light_is_that_of_its_map():
    light = some_light(3, white=8.0)
    d = sphere_directions(64)
    direct = np.asarray(power_along(light, d), np.float64)
    through_map = np.asarray(power_along(sh_to_environment(light, 64, 128), d), np.float64)
    np.testing.assert_allclose(direct.sum(axis=0), through_map.sum(axis=0), rtol=1e-3)
    np.testing.assert_allclose(direct.T @ d, through_map.T @ d, atol=0.15)


TABLE = {
    ("beckmann", 0.2): [0.926, 0.793, 0.627, 0.456, 0.305, 0.185, 0.102, 0.050],
    ("beckmann", 0.3): [0.846, 0.601, 0.351, 0.162, 0.054, 0.009, -0.002, -0.002],
    ("ggx", 0.3): [0.793, 0.508, 0.284, 0.163, 0.105, 0.064, 0.032, 0.016],
}


@pytest.mark.parametrize(("lobe", "row"), TABLE.items(), ids=str)
def test_lobes_known_values(lobe, row):
    kernel = lobe_kernel(lobe[1], BANDS, lobe[0])
    np.testing.assert_allclose(kernel[0], 1, atol=1e-6)
    np.testing.assert_allclose(kernel[1:], row, atol=6e-4)


def test_closed_forms_known_values():
    np.testing.assert_allclose(
        roughness_kernel(jnp.float32(0.3), BANDS)[1:],
        [0.835, 0.583, 0.340, 0.165, 0.067, 0.023, 0.006, 0.002],
        atol=6e-4,
    )
    np.testing.assert_allclose(
        torrance_sparrow_kernel(0.2, BANDS)[1:], [0.961, 0.852, 0.698, 0.527, 0.368, 0.237, 0.141, 0.077], atol=6e-4
    )
    np.testing.assert_allclose(phong_kernel(12.5, 5), torrance_sparrow_kernel(0.2, 5), rtol=1e-5)


@pytest.mark.parametrize("distribution", ["ggx", "beckmann"])
@pytest.mark.parametrize("alpha", [0.05, 0.15, 0.5, 1.0])
def test_lobes_against_dense_integrals(distribution, alpha):
    """With the pointwise surface seen face on: its BRDF times the cosine, in Legendre polynomials of the light."""
    theta = (np.arange(20_000) + 0.5) * np.pi / 40_000
    light = np.stack([np.sin(theta), 0 * theta, np.cos(theta)], axis=-1).astype(np.float32)
    up = jnp.array([0.0, 0, 1])
    f = np.asarray(specular_brdf(up, jnp.asarray(light), up, 1.0, alpha, distribution), np.float64)
    ring = 2 * np.pi * f * np.cos(theta) * np.sin(theta) * np.pi / 40_000
    expected = [(ring * np.polynomial.Legendre.basis(l)(np.cos(theta))).sum() for l in range(BANDS)]
    np.testing.assert_allclose(lobe_kernel(alpha, BANDS, distribution, normalised=False), expected, atol=2e-3)


@pytest.mark.parametrize("distribution", ["ggx", "beckmann"])
def test_lobes_vary_by_point_and_have_the_right_slope(distribution):
    alpha = jnp.array([0.1, 0.3, 0.8])
    kernel = lobe_kernel(alpha, 5, distribution)
    assert kernel.shape == (3, 5)
    np.testing.assert_allclose(kernel[1], lobe_kernel(0.3, 5, distribution), atol=1e-6)
    slope = jax.jacfwd(lambda a: lobe_kernel(a, 5, distribution))(jnp.float32(0.3))
    difference = (lobe_kernel(0.305, 5, distribution) - lobe_kernel(0.295, 5, distribution)) / 0.01
    np.testing.assert_allclose(slope, difference, atol=0.01)


def test_unknown_lobes_are_refused():
    with pytest.raises(InputError, match="phong"):
        lobe_kernel(0.3, 3, "phong")


def test_frequency_domain_is_the_integral_face_on():
    """At normal view the lobe is round, and reading blurred light in the mirror direction is exact."""
    light = some_light(5)
    d = sphere_directions(2048)
    power = np.asarray(sh_basis(jnp.asarray(d), 5), np.float64) @ np.asarray(light) * 4 * np.pi / 2048
    for normal in units(4, 7):
        n = jnp.asarray(normal)
        f = np.asarray(specular_brdf(n, jnp.asarray(d), n, 1.0, 0.4, "ggx"), np.float64)
        pointwise = (f * np.maximum(d @ normal, 0)) @ power
        kernel = lobe_kernel(0.4, 5, "ggx", normalised=False)
        blurred = filtered_light(mirror_direction(n, n), light, kernel)
        np.testing.assert_allclose(blurred, pointwise, atol=0.01)


def test_filtered_light_takes_one_kernel_or_one_per_direction():
    light, d = some_light(4), jnp.asarray(units(6))
    kernel = roughness_kernel(jnp.float32(0.3), 3)
    one = filtered_light(d, light, kernel)
    np.testing.assert_allclose(filtered_light(d, light, jnp.tile(kernel, (6, 1))), one, atol=1e-6)
    with pytest.raises(InputError, match="at least 25"):
        filtered_light(d, light, roughness_kernel(jnp.float32(0.3), 5))


@pytest.mark.parametrize(
    "convention",
    [
        CONDON_SHORTLEY,
        REDNER,
        SHConvention(order="cosine first"),
        SHConvention(axes=((0, 0, 1), (1, 0, 0), (0, 1, 0)), band_scale=(1.0, 2.0, 3.0, 4.0)),
    ],
    ids=["phase", "redner", "order", "axes"],
)
def test_conventions_there_and_back(convention):
    light = some_light(4)
    np.testing.assert_allclose(from_convention(to_convention(light, convention), convention), light, atol=1e-5)
    assert np.abs(to_convention(light, convention) - light).max() > 0.1


def test_the_phase_flips_odd_orders_only():
    light = some_light(3)
    flipped = np.asarray(to_convention(light, CONDON_SHORTLEY))
    np.testing.assert_allclose(flipped[[0, 2, 4, 6, 8]], np.asarray(light)[[0, 2, 4, 6, 8]], atol=2e-6)
    np.testing.assert_allclose(flipped[[1, 3, 5, 7]], -np.asarray(light)[[1, 3, 5, 7]], atol=2e-6)


def test_redner_sees_the_same_light_in_its_own_frame():
    """With the phase, band 1 is (-y, z, -x) of a frame with +y up and +z towards us."""
    theirs = np.zeros((4, 3), np.float32)
    theirs[1] = -1  # from above
    ours = from_convention(jnp.asarray(theirs), REDNER)
    above, below = radiance_towards(ours, np.array([[0, -1, 0], [0, 1, 0]], np.float32))
    assert float(above[0]) > 0.4
    np.testing.assert_allclose(below, 0, atol=1e-6)


def test_cosine_first_is_reordered():
    theirs = jnp.arange(9.0)[:, None]  # bands: 0; 0 1 -1; 0 1 -1 2 -2
    ours = from_convention(theirs, SHConvention(order="cosine first"))
    np.testing.assert_allclose(ours[:, 0], [0, 3, 1, 2, 8, 6, 4, 5, 7], atol=1e-5)


def test_deep3d_lights_a_face_as_its_own_formula_does():
    """Its shading formula, with its constants, on its normals; ours on the same normals in the camera frame."""
    gamma = np.random.default_rng(1).normal(size=(9, 3))
    normals = units(20, 2).astype(np.float64)
    x, y, z = normals.T
    a = np.array([np.pi, 2 * np.pi / np.sqrt(3), 2 * np.pi / np.sqrt(8)])
    c = np.array([1 / np.sqrt(4 * np.pi), np.sqrt(3) / np.sqrt(4 * np.pi), 3 * np.sqrt(5) / np.sqrt(12 * np.pi)])
    basis = [
        a[0] * c[0] + 0 * x,
        -a[1] * c[1] * y,
        a[1] * c[1] * z,
        -a[1] * c[1] * x,
        a[2] * c[2] * x * y,
        -a[2] * c[2] * y * z,
        0.5 * a[2] * c[2] / np.sqrt(3) * (3 * z**2 - 1),
        -a[2] * c[2] * x * z,
        0.5 * a[2] * c[2] * (x**2 - y**2),
    ]
    ours = irradiance(
        jnp.asarray(normals * [1, -1, -1], jnp.float32), from_convention(jnp.asarray(gamma, jnp.float32), DEEP3D)
    )
    np.testing.assert_allclose(ours, np.stack(basis, axis=-1) @ gamma, atol=1e-4)


def test_conventions_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="has 3 bands"):
        from_convention(some_light(4), DEEP3D)
    with pytest.raises(InputError, match="sine first"):
        from_convention(some_light(2), SHConvention(order="sine first"))


def test_compiled_is_eager_and_a_batch_is_a_loop():
    rotation = turn((0.3, 0.2, 0.1))
    lights = jnp.stack([some_light(4, i, 3.0) for i in range(3)])
    for f in (
        lambda l: rotate_sh(l, rotation),
        lambda l: sh_to_environment(l, 8, 16).radiance,
        lambda l: project_environment(sh_to_environment(l, 8, 16), 3),
        lambda l: from_convention(l, REDNER),
    ):
        batch = jax.vmap(f)(lights)
        for i, light in enumerate(lights):
            np.testing.assert_allclose(batch[i], f(light), atol=1e-5)
        np.testing.assert_allclose(jax.jit(f)(lights[0]), batch[0], atol=1e-5)
