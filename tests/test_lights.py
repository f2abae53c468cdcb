"""Lights as sampled by renderers: directions, environments, energy, turning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.geometry.errors import InputError
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.renderers.lights import (
    Environment,
    NearLights,
    check_light,
    environment_directions,
    power_along,
    radiance_towards,
    rotate_light,
    solid_angles,
    sphere_directions,
)
from facejax.renderers.sh import sh_basis


def turn(*rotvec):
    return rotvec_to_matrix(jnp.array(rotvec, jnp.float32))


def some_environment(height=16, width=32, seed=0):
    return Environment(
        radiance=jnp.asarray(np.random.default_rng(seed).uniform(0.1, 2, (height, width, 3)), jnp.float32)
    )


def some_sh(bands=4, seed=0, white=3.0):
    light = np.random.default_rng(seed).normal(size=(bands**2, 3)) * 0.3
    light[0] += white
    return jnp.asarray(light, jnp.float32)


def some_directions(n=50, seed=3):
    d = np.random.default_rng(seed).normal(size=(n, 3))
    return (d / np.linalg.norm(d, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("n", [2, 64, 256, 1024])
def test_directions_are_unit_vectors_in_opposite_pairs(n):
    d = sphere_directions(n)
    assert d.shape == (n, 3)
    np.testing.assert_allclose(np.linalg.norm(d, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(d[n // 2 :], -d[: n // 2])


@pytest.mark.parametrize("n", [64, 256])
def test_directions_are_nearly_uniform(n):
    d = sphere_directions(n)
    cosine = d @ d.T
    np.fill_diagonal(cosine, -1)
    apart = np.arccos(cosine.max(axis=1)) / np.sqrt(4 * np.pi / n)
    assert apart.min() > 0.8
    assert apart.max() < 1.1


@pytest.mark.parametrize(("n", "bands"), [(64, 5), (190, 9), (256, 9), (512, 9)])
def test_directions_integrate_products_of_harmonics_exactly(n, bands):
    y = np.asarray(sh_basis(jnp.asarray(sphere_directions(n)), bands), np.float64)
    np.testing.assert_allclose(4 * np.pi / n * y.T @ y, np.eye(bands**2), atol=2e-5)


def test_directions_must_be_even():
    with pytest.raises(InputError, match="even"):
        sphere_directions(7)


def test_environment_convention():
    d = environment_directions(64, 128)
    np.testing.assert_allclose(d[0].mean(axis=0), [0, -1, 0], atol=1e-3)  # top row is up
    np.testing.assert_allclose(d[31:33, 63:65].mean(axis=(0, 1)), [0, 0, 1], atol=1e-3)  # centre is ahead
    np.testing.assert_allclose(d[31:33, 95:97].mean(axis=(0, 1)), [1, 0, 0], atol=1e-3)  # columns run to the right
    np.testing.assert_allclose(np.linalg.norm(d, axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 16), (5, 7), (64, 64)])
def test_solid_angles_cover_the_sphere(size):
    np.testing.assert_allclose(solid_angles(*size).sum(dtype=np.float64), 4 * np.pi, rtol=1e-6)


def test_texel_centres_are_read_back():
    light = some_environment(32, 64)
    d = environment_directions(32, 64).reshape(-1, 3)
    np.testing.assert_array_equal(radiance_towards(light, d), light.radiance.reshape(-1, 3))


def test_halfway_between_texels_is_their_mean_around_the_back_and_over_a_pole():
    light = some_environment(8, 16)
    np.testing.assert_allclose(
        radiance_towards(light, np.array([[0, 0, -1.0], [0, -1, 0], [0, 1, 0]], np.float32)),
        np.stack(
            [
                np.asarray(light.radiance)[3:5][:, [0, -1]].mean(axis=(0, 1)),
                np.asarray(light.radiance)[0, [0, 7, 8, 15]].mean(axis=0),
                np.asarray(light.radiance)[-1, [0, 7, 8, 15]].mean(axis=0),
            ]
        ),
        rtol=1e-5,
    )


def test_radiance_is_continuous_across_a_pole_and_the_back():
    light = some_environment(8, 16)
    for axis, step in [((0, -1, 0), (1, 0, 0.3)), ((0, 1, 0), (1, 0, 0.3)), ((0, 0.2, -1), (1, 0, 0))]:
        near = np.asarray(axis, np.float64) + np.array([[-1e-4], [1e-4]]) * np.asarray(step)
        near /= np.linalg.norm(near, axis=1, keepdims=True)
        a, b = np.asarray(radiance_towards(light, near.astype(np.float32)))
        np.testing.assert_allclose(a, b, atol=0.01)


def test_gradients_for_directions_are_finite_at_the_poles_and_right_elsewhere():
    light = some_environment(8, 16)
    slopes = jax.jit(jax.jacfwd(lambda d: radiance_towards(light, d[None])[0]))
    for pole in ((0.0, -1, 0), (0, 1.0, 0), (0, 0, -1.0)):
        assert np.isfinite(np.asarray(slopes(jnp.array(pole)))).all()
    d = np.array([0.48, -0.6, 0.64])
    for axis in np.eye(3):
        tangent = np.cross(axis, d)
        a, b = (np.asarray(turn(*(s * axis))) @ d for s in (1e-3, -1e-3))
        both = np.asarray(radiance_towards(light, jnp.asarray(np.stack([a, b]), jnp.float32)), np.float64)
        np.testing.assert_allclose(
            np.asarray(slopes(jnp.asarray(d, jnp.float32))) @ tangent, (both[0] - both[1]) / 2e-3, atol=0.02
        )


def test_sh_radiance_is_cut_off_at_zero():
    light = jnp.zeros((4, 3)).at[2].set(1.0)
    values = radiance_towards(light, np.array([[0, 0, 1], [0, 0, -1]], np.float32))
    np.testing.assert_allclose(values[0], np.sqrt(3 / (4 * np.pi)), rtol=1e-5)
    np.testing.assert_array_equal(values[1], 0)


@pytest.mark.parametrize("n", [6, 64, 256])
@pytest.mark.parametrize("size", [(16, 32), (32, 33), (2, 4)])
def test_power_keeps_all_energy(n, size):
    light = some_environment(*size)
    total = (np.asarray(light.radiance, np.float64) * solid_angles(*size)[..., None]).sum(axis=(0, 1))
    power = np.asarray(power_along(light, sphere_directions(n)), np.float64)
    assert (power >= 0).all()
    np.testing.assert_allclose(power.sum(axis=0), total, rtol=1e-5)


def test_power_of_two_directions_keeps_all_energy():
    light = some_environment()
    total = (np.asarray(light.radiance, np.float64) * solid_angles(16, 32)[..., None]).sum(axis=(0, 1))
    np.testing.assert_allclose(power_along(light, sphere_directions(2)).sum(axis=0), total, rtol=1e-5)


def test_power_of_a_lamp_goes_to_its_neighbours_and_keeps_its_direction():
    directions = sphere_directions(256)
    centres = environment_directions(64, 128)
    for row, column in [(5, 30), (31, 127), (0, 0), (63, 64), (40, 99)]:
        light = Environment(radiance=jnp.zeros((64, 128, 3)).at[row, column].set(1.0))
        power = np.asarray(power_along(light, directions)[:, 0], np.float64)
        assert 1 <= (power > 0).sum() <= 3
        mean = power @ directions / np.linalg.norm(power @ directions)
        assert mean @ centres[row, column] > np.cos(1e-3)
        assert (directions[power > 0] @ centres[row, column]).min() > np.cos(0.35)


def test_power_is_smooth_as_light_turns():
    """Half a texel of a turn moves half a texel's worth of power, not whole cells."""
    directions = sphere_directions(64)
    powers = []
    for column in range(64):
        light = Environment(radiance=jnp.zeros((32, 64, 3)).at[12, column].set(1.0))
        powers.append(np.asarray(power_along(light, directions)[:, 0]) / solid_angles(32, 64)[12, 0])
    jump = np.abs(np.diff(powers, axis=0)).max()
    assert jump < 0.35


def test_power_is_linear_and_its_gradient_is_the_split():
    a, b = some_environment(8, 16, 1), some_environment(8, 16, 2)
    d = sphere_directions(16)
    both = Environment(radiance=2 * a.radiance + 3 * b.radiance)
    np.testing.assert_allclose(power_along(both, d), 2 * power_along(a, d) + 3 * power_along(b, d), rtol=1e-5)
    slope = jax.grad(lambda r: power_along(Environment(radiance=r), d)[:, 1].sum())(a.radiance)
    np.testing.assert_allclose(slope[..., 1], solid_angles(8, 16), rtol=1e-5)
    np.testing.assert_array_equal(slope[..., 0], 0)


def test_power_of_even_sh_light_is_that_of_an_even_environment():
    d = sphere_directions(256)
    even = power_along(jnp.zeros((9, 3)).at[0].set(np.sqrt(4 * np.pi)), d)
    np.testing.assert_allclose(even, 4 * np.pi / 256, rtol=1e-5)
    gathered = power_along(Environment(radiance=jnp.ones((64, 128, 3))), d)
    np.testing.assert_allclose(gathered, even, rtol=0.2)


@pytest.mark.parametrize("make", [some_sh, some_environment])
def test_jit_is_eager_and_vmap_is_a_loop(make):
    d = sphere_directions(32)
    lights = [make(seed=i) for i in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *lights)
    rotation = turn(0.3, 0.2, -0.5)
    for f in (lambda l: power_along(l, d), lambda l: radiance_towards(l, d), lambda l: rotate_light(l, rotation)):
        batched = jax.vmap(f)(stacked)
        for i, light in enumerate(lights):
            one = f(light)
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), one, jax.jit(f)(light))
            jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x, y[i], atol=2e-5), one, batched)


def test_turning_by_whole_columns_moves_texels_and_changes_none():
    light = Environment(radiance=some_environment(128, 256).radiance.at[40, 10].set(1e5))
    for columns in (1, 37, 200):
        angle = 2 * np.pi * columns / 256
        # +y of the camera is down: a positive turn about it takes ahead (+z) to the right (+x)
        turned = rotate_light(light, turn(0, angle, 0))
        np.testing.assert_array_equal(turned.radiance, jnp.roll(light.radiance, columns, axis=1))


@pytest.mark.parametrize("rotvec", [(0.0, 0, 0), (0.7, -0.4, 1.1), (3.1, 0, 0)])
def test_turned_lights_are_seen_from_turned_directions(rotvec):
    rotation = turn(*rotvec)
    d = some_directions()
    seen = d @ np.asarray(rotation)  # rotation.T @ d
    sh = some_sh(5)
    np.testing.assert_allclose(radiance_towards(rotate_light(sh, rotation), d), radiance_towards(sh, seen), atol=2e-5)
    smooth = Environment(
        radiance=radiance_towards(sh, environment_directions(64, 128).reshape(-1, 3)).reshape(64, 128, 3)
    )
    np.testing.assert_allclose(
        radiance_towards(rotate_light(smooth, rotation), d), radiance_towards(smooth, seen), atol=0.02
    )


def test_lamps_turn_about_the_camera():
    lamps = NearLights(positions=jnp.array([[0.0, 0, 1]]), intensity=jnp.ones((1, 3)))
    np.testing.assert_allclose(rotate_light(lamps, turn(0, np.pi / 2, 0)).positions, [[1, 0, 0]], atol=1e-6)


def test_lamps_have_no_direction():
    lamps = NearLights(positions=jnp.array([[0.0, 0, 1]]), intensity=jnp.ones((1, 3)))
    with pytest.raises(InputError, match="infinitely far"):
        radiance_towards(lamps, some_directions())
    with pytest.raises(InputError, match="infinitely far"):
        power_along(lamps, some_directions())


def test_good_lights_pass():
    check_light(some_sh())
    check_light(some_environment())
    check_light(some_environment(8, 8), two_to_one=False)
    check_light(NearLights(positions=jnp.ones((2, 3)), intensity=jnp.ones((2, 3))))


@pytest.mark.parametrize(
    ("light", "words"),
    [
        (jnp.ones((5, 3)), r"1, 4, 9.*\(5, 3\)"),
        (jnp.ones((0, 3)), r"\(0, 3\)"),
        (jnp.full((9, 3), jnp.nan), "finite"),
        (Environment(radiance=jnp.ones((8, 8, 3))), "twice as wide.*8x8"),
        (Environment(radiance=jnp.full((8, 16, 3), jnp.inf)), "finite, got 384"),
        (Environment(radiance=jnp.full((8, 16, 3), jnp.nan)), "finite"),
        (Environment(radiance=jnp.full((8, 16, 3), -0.5)), "negative, got -0.5"),
        (NearLights(positions=jnp.full((1, 3), jnp.nan), intensity=jnp.ones((1, 3))), "finite"),
        (NearLights(positions=jnp.ones((1, 3)), intensity=jnp.full((1, 3), -1.0)), "negative"),
        (NearLights(positions=jnp.ones((0, 3)), intensity=jnp.ones((0, 3))), "at least one"),
    ],
)
def test_bad_lights_are_refused(light, words):
    with pytest.raises(InputError, match=words):
        check_light(light)
