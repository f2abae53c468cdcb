"""The skin prior: the physics behave, the range is people's, and the painting is smooth, symmetric and complete."""

import numpy as np
import pytest

from facejax.geometry.errors import InputError
from facejax.models import skin
from facejax.models.morphable import REGIONS


@pytest.fixture(scope="module")
def head():
    """A symmetric cloud in the shape of a head, with balls for eyes: (positions, regions, mirror)."""
    t, p = np.meshgrid(np.linspace(0.15, np.pi - 0.15, 60), np.linspace(0.02, np.pi - 0.02, 60), indexing="ij")
    half = np.stack([0.075 * np.sin(t) * np.sin(p), 0.11 * np.cos(t), 0.095 * np.sin(t) * np.cos(p)], -1).reshape(-1, 3)
    rng = np.random.default_rng(0)
    eye = rng.normal(size=(60, 3))
    eye = np.array([0.032, 0.02, 0.07]) + 0.0125 * eye / np.linalg.norm(eye, axis=1, keepdims=True)
    tooth = np.array([[0.004, -0.04, 0.08], [0.012, -0.04, 0.078]])
    left = np.concatenate([half, eye, tooth])
    kind = np.repeat([0, 1, 2], [len(half), len(eye), len(tooth)])
    positions = np.concatenate([left, left * [-1, 1, 1]])
    n = len(left)
    mirror = np.r_[n : 2 * n, 0:n]
    x, y, z = np.abs(positions[:, 0]), positions[:, 1], positions[:, 2]
    on_skin = np.tile(kind == 0, 2)
    front = on_skin & (z > 0)
    regions = {name: np.zeros(2 * n) for name in REGIONS}
    regions["skin"] = on_skin.astype(float)
    regions["eyeballs"] = np.tile(kind == 1, 2).astype(float)
    regions["iris"] = regions["eyeballs"] * (z > 0.08)
    regions["teeth"] = np.tile(kind == 2, 2).astype(float)
    regions["lips"] = (front & (x < 0.025) & (np.abs(y + 0.04) < 0.008)).astype(float)
    regions["nose"] = (front & (x < 0.012) & (np.abs(y + 0.005) < 0.018)).astype(float)
    regions["brows"] = (front & (x > 0.012) & (x < 0.05) & (np.abs(y - 0.04) < 0.005)).astype(float)
    regions["ears"] = (on_skin & (x > 0.065) & (np.abs(z) < 0.015) & (np.abs(y) < 0.03)).astype(float)
    regions["scalp"] = (on_skin & (y > 0.08)).astype(float)
    regions["neck"] = (on_skin & (y < -0.085)).astype(float)
    return positions, regions, mirror


def test_melanin_darkens_blue_most_and_every_channel():
    series = np.stack([skin.skin_reflectance(m) for m in np.geomspace(0.004, 0.9, 30)])
    assert (np.diff(series, axis=0) < 0).all()
    assert ((series > 0) & (series < 1)).all()
    assert (np.diff(series, axis=1) < 0).all()  # red over green over blue, at any amount
    fall = np.log(series[0] / series[-1])
    assert fall[0] < fall[1] < fall[2]


def test_haemoglobin_reddens_and_oxygen_too():
    pale, flushed = skin.skin_reflectance(0.1, 0.01), skin.skin_reflectance(0.1, 0.08)
    assert flushed[0] / flushed[1] > 1.15 * pale[0] / pale[1]
    assert (flushed < pale).all()
    assert skin.skin_reflectance(0.1, 0.05, 0.9)[0] > skin.skin_reflectance(0.1, 0.05, 0.3)[0]
    slope = skin.blood_slope(0.15)
    assert slope[1] < slope[2] < slope[0] < 0  # haemoglobin's visible bands lie in the green


def test_white_reflects_white():
    np.testing.assert_allclose(skin._sensitivities().sum(1), 1, atol=1e-12)


def test_the_line_follows_the_physics_and_spans_peoples_skin():
    mean, slope, amount = skin.melanin_series()
    np.testing.assert_allclose(np.exp(mean), skin.skin_reflectance(amount), rtol=0.1)
    light, medium, dark = (np.exp(mean + k * slope) for k in (-2.5, 0, 2.5))
    assert skin.typology_angle(light) > 55
    assert 10 < skin.typology_angle(medium) < 35
    assert skin.typology_angle(dark) < -30


def test_typology_angle_of_known_patches():
    """The light and dark skin patches of the ColorChecker, L*a*b* (D50) about (65.7, 18, 18) and (38, 13.6, 14)."""
    srgb = np.array([[194, 150, 130], [115, 82, 68]]) / 255
    linear = ((srgb + 0.055) / 1.055) ** 2.4
    np.testing.assert_allclose(skin.typology_angle(linear), [43, -41], atol=2)
    assert skin.typology_angle(np.array([0.5, 0.4, 0.3])).shape == ()


def test_every_direction_stays_an_albedo_and_skin_stays_skin(head):
    positions, regions, _ = head
    mean, basis = skin.skin_prior(positions, regions)
    assert basis.shape == (len(skin.SKIN_MODES), len(positions), 3)
    assert mean.dtype == basis.dtype == np.float32
    on_skin = regions["skin"] > 0.5
    for direction in basis:
        for k in (-3, 3):
            albedo = np.exp(mean + k * direction)
            assert (albedo > 0).all()
            assert (albedo < 1).all()
            colour = albedo[on_skin]
            assert (colour[:, 0] > colour[:, 1]).all()
            assert (colour[:, 1] > colour[:, 2]).all()


def test_directions_do_what_their_names_say(head):
    positions, regions, _ = head
    mean, basis = skin.skin_prior(positions, regions)
    by = dict(zip(skin.SKIN_MODES, basis, strict=True))
    on_skin = regions["skin"] > 0.5
    assert (by["melanin"][on_skin] < 0).all()
    red = by["haemoglobin"][..., 0] - by["haemoglobin"][..., 1]
    assert (red[on_skin] > 0).all()
    size = {name: -d[:, 1] for name, d in by.items()}
    assert np.abs(positions[size["cheek_redness"].argmax(), 0]) > 0.02
    assert size["nose_ear_redness"][regions["ears"] > 0].min() > 0.05
    assert (size["lip_colour"][regions["lips"] == 0] == 0).all()
    assert (size["brow_hair"][regions["brows"] == 0] == 0).all()
    assert (size["scalp_hair"][regions["scalp"] == 0] == 0).all()
    assert positions[size["beard"] > 0.5 * size["beard"].max(), 1].max() < 0.02
    assert size["beard"][regions["lips"] > 0].max() == 0
    assert positions[size["forehead_tan"] > 0.05, 1].min() > 0.03
    assert 0 < positions[size["under_eye"].argmax(), 1] < 0.02
    lips, cheek = regions["lips"] > 0, size["cheek_redness"].argmax()
    assert (mean[lips, 0] - mean[lips, 1]).min() > mean[cheek, 0] - mean[cheek, 1]


def test_left_is_right_and_materials_are_no_skin(head):
    positions, regions, mirror = head
    mean, basis = skin.skin_prior(positions, regions)
    np.testing.assert_allclose(mean, mean[mirror], atol=1e-6)
    np.testing.assert_allclose(basis, basis[:, mirror], atol=1e-6)
    off = regions["skin"] == 0
    assert (basis[:, off] == 0).all()
    teeth = regions["teeth"] > 0
    np.testing.assert_allclose(np.exp(mean[teeth]), np.tile(skin.material_albedo("teeth"), (teeth.sum(), 1)), rtol=1e-5)


def test_zones_are_smooth(head):
    """Neighbours on the cloud, 3 to 4 mm apart, never differ by more than what 12 mm of a smooth step allow."""
    positions, regions, _ = head
    bare = {name: mask if name in ("skin", "neck") else mask * 0 for name, mask in regions.items()}
    anchors = {name: regions[name] for name in ("eyeballs", "brows", "lips", "ears", "nose")}
    zones = skin.facial_zones(positions, {**bare, **anchors})
    grid = {name: zone[:3600].reshape(60, 60) for name, zone in zones.items()}
    for name in ("cheeks", "under_eye"):
        assert grid[name].max() > 0.5
        assert np.abs(np.diff(grid[name], axis=1)).max() < 0.6


@pytest.mark.parametrize(
    "name", ["sclera", "iris", "pupil", "teeth", "gums", "mouth", "eye_socket", "hair", "brow", "lips"]
)
def test_materials(name):
    albedo = np.array(skin.material_albedo(name))
    assert albedo.shape == (3,)
    assert ((albedo > 0) & (albedo < 1)).all()


def test_refusals(head):
    positions, regions, _ = head
    with pytest.raises(InputError, match="No material named 'gold'"):
        skin.material_albedo("gold")
    with pytest.raises(InputError, match="'lips' is missing"):
        skin.skin_prior(positions, {k: v for k, v in regions.items() if k != "lips"})
    with pytest.raises(InputError, match="selects no vertex"):
        skin.skin_prior(positions, {**regions, "brows": 0 * regions["brows"]})
    with pytest.raises(InputError, match="must have shape"):
        skin.skin_prior(positions, {**regions, "iris": regions["iris"][:-1]})
