"""Made-up people: relief whose gradient is the height's, looks by region, and motion on a skin that bends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.geometry.meshes import normalise
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.made_up.subjects import (
    MotionSpec,
    Surface,
    make_subject,
    relief_normals,
    skin_relief,
    smooth_noise,
    surface_at,
)
from facejax.made_up.truth_clip import TruthSpec
from facejax.models.generic import generic_head
from facejax.models.morphable import MorphableHead


@pytest.fixture(scope="module")
def person() -> MorphableHead:
    return make_subject(generic_head(), 3)


@pytest.fixture(scope="module")
def given(person: MorphableHead) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Points, regions and pivots: the person's vertices."""
    regions = {k: np.asarray(v) for k, v in person.regions.items()}
    return np.asarray(person.params.mean), regions, np.asarray(person.params.eye_pivot)


@pytest.fixture(scope="module")
def looks(given) -> Surface:
    return surface_at(*given, 0.4, 5)


def test_a_truth_clips_spec_says_what_motion_needs():
    assert isinstance(TruthSpec(), MotionSpec)


# -- relief ------------------------------------------------------------------------------------------------------------


def test_the_gradient_is_that_of_the_height(given):
    points, regions, pivots = given
    inside = np.flatnonzero((regions["skin"] == 1) & (regions["lips"] == 0) & (points[:, 2] > 0.05))
    assert len(inside) > 500
    _, gradient = skin_relief(points, regions, pivots, 5)
    step = 2e-5
    along = np.random.default_rng(0).normal(size=3)
    along /= np.linalg.norm(along)
    # where mouth and nose are found must not change with the points, so only points far from both are moved
    moving = regions["lips"] + regions["nose"] == 0
    ahead, behind = (skin_relief(points + s * step * along * moving[:, None], regions, pivots, 5)[0] for s in (1, -1))
    chosen = inside[moving[inside]]
    slope = ((ahead - behind) / (2 * step))[chosen]
    expected = gradient[chosen] @ along
    assert np.abs(expected).std() > 0.02
    assert np.abs(slope - expected).max() < 0.1 * np.abs(expected).max()
    assert np.corrcoef(slope, expected)[0, 1] > 0.999


def test_relief_is_on_the_skin_only_and_as_high_as_skin_is(given):
    points, regions, pivots = given
    height, gradient = skin_relief(points, regions, pivots, 5)
    for name in ("eyeballs", "teeth", "gums", "lips"):
        off = regions[name] == 1
        assert off.any()
        assert not height[off].any()
        assert not gradient[off].any()
    on = regions["skin"] == 1
    assert 1e-5 < height[on].std() < 1e-4
    assert np.abs(height).max() < 5e-4


def test_wrinkles_lie_on_the_forehead_beside_the_eyes_and_beside_the_mouth(given):
    points, regions, pivots = given
    height, _ = skin_relief(points, regions, pivots, 5, spacing=0.02)  # too coarse for pores: wrinkles alone are left
    deep = points[height < -5e-5]
    eye_x, eye_y = np.abs(pivots[:, 0]).mean(), pivots[:, 1].mean()
    assert (deep[:, 2] > 0.02).all()  # none at the back
    assert (deep[:, 1] > eye_y + 0.025).sum() > 20
    assert (deep[:, 1] < eye_y + 0.075).all()
    beside = (np.abs(deep[:, 1] - eye_y) < 0.02) & (np.abs(deep[:, 0]) > eye_x + 0.012)
    assert beside.sum() >= 4
    assert (deep[:, 1] < eye_y - 0.03).sum() >= 4


def test_bumps_too_fine_to_show_become_roughness(given, looks):
    coarse = surface_at(*given, 0.4, 5, spacing=0.003)
    skin = given[1]["skin"] == 1
    fine_slopes = np.square(looks.gradient[skin] - coarse.gradient[skin]).mean()  # per axis
    gained = (coarse.roughness[skin] ** 2 - looks.roughness[skin] ** 2).mean()
    np.testing.assert_allclose(gained, 2 * fine_slopes, rtol=0.15)
    np.testing.assert_array_equal(coarse.albedo, looks.albedo)


# -- normals -----------------------------------------------------------------------------------------------------------


def unit(key: int, n: int = 50) -> jax.Array:
    return normalise(jax.random.normal(jax.random.key(key), (n, 3)))


def test_normals_without_relief_stay():
    now, rest = unit(0), unit(1)
    np.testing.assert_allclose(relief_normals(now, rest, jnp.zeros((50, 3))), now, atol=1e-6)


def test_normals_of_a_height_field_are_its_own():
    up = jnp.array([[0.0, 0.0, 1.0]])
    made = relief_normals(up, up, jnp.array([[0.3, -0.2, 5.0]]))  # along the normal a gradient means nothing
    np.testing.assert_allclose(made, normalise(jnp.array([[-0.3, 0.2, 1.0]])), atol=1e-6)


def test_relief_turns_with_the_skin():
    rest, axis = unit(2), unit(3)
    axis = normalise(jnp.cross(rest, axis))  # across the normal: the least rotation is the rotation itself
    slope = 0.2 * unit(4)
    turns = jax.vmap(rotvec_to_matrix)(1.1 * axis)
    now = jnp.einsum("nij,nj->ni", turns, rest)
    expected = jnp.einsum("nij,nj->ni", turns, relief_normals(rest, rest, slope))
    np.testing.assert_allclose(relief_normals(now, rest, slope), expected, atol=1e-5)


# -- looks -------------------------------------------------------------------------------------------------------------


def test_looks_are_physical_and_vary_by_region(given, looks):
    points, regions, pivots = given
    assert looks.albedo.min() >= 0
    assert looks.albedo.max() <= 1
    assert looks.specular.min() > 0.004
    assert looks.specular.max() < 0.11
    assert 0.05 <= looks.roughness.min() <= looks.roughness.max() <= 1
    skin = (regions["skin"] == 1) & (regions["scalp"] == 0)
    cheek = skin & (regions["nose"] + regions["lips"] + regions["neck"] == 0) & (points[:, 1] < pivots[0, 1] - 0.01)
    for part in ("nose", "lips"):
        assert looks.specular[regions[part] == 1].mean() > 1.2 * looks.specular[cheek].mean()
    eyes = regions["eyeballs"] == 1
    assert looks.roughness[eyes].max() < 0.5 * looks.roughness[cheek].min() + 0.06
    assert looks.albedo[regions["teeth"] == 1].mean() > 3 * looks.albedo[(regions["gums"] == 1)].mean(axis=0)[1]
    assert looks.specular[cheek].std() > 1e-3
    assert looks.roughness[cheek].std() > 1e-3


def test_looks_follow_from_the_seed(given, looks):
    again, other = surface_at(*given, 0.4, 5), surface_at(*given, 0.4, 6)
    for name in ("albedo", "specular", "roughness", "height", "gradient"):
        np.testing.assert_array_equal(getattr(again, name), getattr(looks, name))
        assert np.abs(getattr(other, name) - getattr(looks, name)).max() > 0


def test_noise_has_unit_variance_and_the_asked_wavelength():
    points = np.random.default_rng(0).uniform(0, 1, (4000, 3))
    values = smooth_noise(points, 0.1, np.random.default_rng(1))
    assert 0.8 < values.std() < 1.2
    step = np.array([1e-4, 0, 0])
    slope = (smooth_noise(points + step, 0.1, np.random.default_rng(1)) - values) / 1e-4
    assert 0.4 < slope.std() / (2 * np.pi / 0.1 / np.sqrt(3)) < 1.4
