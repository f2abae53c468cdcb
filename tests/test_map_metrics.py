"""Maps and colours compared: published pairs, closed forms, masks, and maps of two layouts seen by one camera."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_shadows import CAMERA, POSE, topology_of
from test_visibility import sphere

from facejax.geometry.errors import InputError
from facejax.geometry.meshes import Topology
from facejax.models.skin import typology_angle
from facejax.objectives import (
    TONES,
    delta_e_1976,
    delta_e_2000,
    draw_map,
    linear_to_lab,
    map_score,
    projected_score,
    ssim_map,
    tone_errors,
    tone_of,
)

SHARMA = """
50 2.6772 -79.7751 50 0 -82.7485 2.0425
50 3.1571 -77.2803 50 0 -82.7485 2.8615
50 2.8361 -74.0200 50 0 -82.7485 3.4412
50 -1.3802 -84.2814 50 0 -82.7485 1.0000
50 -1.1848 -84.8006 50 0 -82.7485 1.0000
50 -0.9009 -85.5211 50 0 -82.7485 1.0000
50 0 0 50 -1 2 2.3669
50 -1 2 50 0 0 2.3669
50 2.49 -0.001 50 -2.49 0.0009 7.1792
50 2.49 -0.001 50 -2.49 0.0010 7.1792
50 2.49 -0.001 50 -2.49 0.0011 7.2195
50 2.49 -0.001 50 -2.49 0.0012 7.2195
50 -0.001 2.49 50 0.0009 -2.49 4.8045
50 -0.001 2.49 50 0.0010 -2.49 4.8045
50 -0.001 2.49 50 0.0011 -2.49 4.7461
50 2.5 0 50 0 -2.5 4.3065
50 2.5 0 73 25 -18 27.1492
50 2.5 0 61 -5 29 22.8977
50 2.5 0 56 -27 -3 31.9030
50 2.5 0 58 24 15 19.4535
50 2.5 0 50 3.1736 0.5854 1.0000
50 2.5 0 50 3.2972 0 1.0000
50 2.5 0 50 1.8634 0.5757 1.0000
50 2.5 0 50 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""
"""Sharma, Wu and Dalal 2005, table 1: two colours in CIELAB and their difference."""


def test_ciede2000_of_the_published_pairs():
    pairs = np.array([line.split() for line in SHARMA.split("\n") if line], float)
    assert pairs.shape == (34, 7)
    one, other, wanted = pairs[:, :3], pairs[:, 3:6], pairs[:, 6]
    np.testing.assert_allclose(delta_e_2000(one, other), wanted, atol=5.1e-5)
    np.testing.assert_allclose(delta_e_2000(other, one), wanted, atol=5.1e-5)
    assert not delta_e_2000(one, one).any()
    np.testing.assert_allclose(delta_e_1976(one, other), np.sqrt(((one - other) ** 2).sum(1)))


def test_cielab_of_colours_that_everybody_knows():
    primaries = np.array([[1, 1, 1], [0, 0, 0], [1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    wanted = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]]
    np.testing.assert_allclose(linear_to_lab(primaries), wanted, atol=0.01)
    grey = linear_to_lab(np.full(3, 0.18418651851244416))  # the reflectance whose L* is 50
    np.testing.assert_allclose(grey, [50, 0, 0], atol=1e-6)


LIGHT, DARK = np.array([0.62, 0.38, 0.27]), np.array([0.06, 0.032, 0.022])


def test_typology_angle_is_that_of_cielab():
    lightness, _, yellow = np.moveaxis(linear_to_lab(np.stack([LIGHT, DARK])), -1, 0)
    angle = np.degrees(np.arctan2(lightness - 50, yellow))
    np.testing.assert_allclose(typology_angle(np.stack([LIGHT, DARK])), angle, atol=0.1)
    assert [tone_of(a) for a in angle] == ["light", "dark"]
    assert [tone_of(a) for a in (90.0, 55.0, 41.0, 28.0, 10.0, -30.0, -90.0)] == [*list(TONES), "dark"]


def test_errors_by_tone():
    """Dark skin made lighter, light skin left nearly as it is: the mean must not hide it."""
    truth = np.concatenate([np.tile(LIGHT, (9, 1)), DARK[None]])
    made = np.concatenate([np.tile(1.05 * LIGHT, (9, 1)), 2.5 * DARK[None]])
    found = tone_errors(made, truth)
    assert list(found.by_tone) == ["light", "dark"]
    assert found.by_tone["light"].count == 9
    for name, skin, factor in (("light", LIGHT, 1.05), ("dark", DARK, 2.5)):
        shift = float(typology_angle(factor * skin) - typology_angle(skin))
        assert shift > 0
        assert found.by_tone[name].shift_deg == pytest.approx(shift)
        assert found.by_tone[name].error_deg == pytest.approx(shift)
    light, dark = (found.by_tone[name].error_deg for name in ("light", "dark"))
    assert found.worst_over_best == pytest.approx(dark / light)
    assert found.error_deg == pytest.approx((dark + light) / 2)
    assert tone_errors(truth / 1.05, truth).by_tone["light"].shift_deg < 0
    same = tone_errors(truth, truth)
    assert (same.error_deg, same.worst_over_best) == (0, 1)
    half = truth.copy()
    half[-1] *= 2
    assert tone_errors(half, truth).worst_over_best == np.inf


def test_skin_colours_that_are_none_are_refused():
    with pytest.raises(InputError, match="at least one person, got"):
        tone_errors(np.zeros((0, 3)), np.zeros((0, 3)))
    with pytest.raises(InputError, match="must be finite"):
        tone_errors(LIGHT[None] * np.nan, LIGHT[None])
    with pytest.raises(InputError, match="is a number of degrees"):
        tone_of(np.nan)


def picture(seed, size=(48, 40), channels=3):
    return np.random.default_rng(seed).random((*size, channels)).astype(np.float32)


def test_maps_in_uv():
    one, other = picture(0), picture(1)
    mask = np.zeros(one.shape[:2], bool)
    mask[8:40, 5:30] = True
    other_there = np.where(mask[..., None], one + 0.25 * (0.5 - one), other)
    found = map_score(other_there, one, mask)
    error = ((other_there - one)[mask] ** 2).mean()
    assert found.psnr_db == pytest.approx(-10 * np.log10(error), abs=1e-3)
    assert found.share == pytest.approx(mask.mean())
    noise = np.where(mask[..., None], other_there, np.nan).astype(np.float32)
    assert map_score(noise, one, mask) == found  # what is not valid is not looked at
    assert map_score(one, one, mask).ssim == pytest.approx(1, abs=1e-5)
    assert map_score(1 - one, one).ssim < 0
    swapped = map_score(one, other_there, mask)  # symmetric
    assert (swapped.psnr_db, swapped.ssim) == pytest.approx((found.psnr_db, found.ssim), abs=1e-4)
    grey = map_score(one[..., :1], one[..., :1] * 0.9)
    assert grey.ssim < 1


def test_masked_similarity_against_one_window_by_hand():
    one, other = picture(2)[..., :1], picture(3)[..., :1]
    valid = np.random.default_rng(4).random(one.shape[:2]) < 0.7
    y, x = 20, 17
    tap = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    window = np.outer(tap, tap) * valid[y - 5 : y + 6, x - 5 : x + 6]
    window /= window.sum()
    p, q = (i[y - 5 : y + 6, x - 5 : x + 6, 0].astype(float) for i in (one, other))
    mp, mq = (window * p).sum(), (window * q).sum()
    vp, vq, cov = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum(), (window * (p - mp) * (q - mq)).sum()
    wanted = (2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4))
    assert float(ssim_map(one, other, valid)[y, x, 0]) == pytest.approx(wanted, abs=2e-5)
    np.testing.assert_allclose(ssim_map(one, other, np.ones_like(valid)), ssim_map(one, other), atol=1e-5)


def test_maps_that_cannot_be_compared_are_refused():
    one = picture(0)
    with pytest.raises(InputError, match="of one size, got"):
        map_score(one, picture(0, (8, 8)))
    with pytest.raises(InputError, match="No texel is valid in both"):
        map_score(one, one, np.zeros(one.shape[:2], bool))
    with pytest.raises(InputError, match=r"must be in \[0, 1\], got from"):
        map_score(one, 255 * one)
    with pytest.raises(InputError, match=r"must be in \[0, 1\], got from nan"):
        map_score(one, np.full_like(one, np.nan))
    with pytest.raises(InputError, match="a mask of the same size"):
        map_score(one, one, np.ones((3, 3), bool))


def layouts():
    """A ball with two layouts of one map: planar from the front, and the same turned by a right angle."""
    vertices, faces = sphere((0, 0, 0), 0.1, 16)
    uv = np.asarray(0.5 + 0.45 * vertices[:, :2] / 0.1, np.float32)
    turned = np.stack([1 - uv[:, 1], uv[:, 0]], axis=1)
    return vertices, *(Topology(faces=faces, uv=u, uv_faces=faces, n_vertices=len(vertices)) for u in (uv, turned))


def smooth(shift=0.0, size=96):
    """A map with soft waves, (size, size, 3)."""
    x = (np.arange(size) + 0.5) / size
    wave = 0.5 + 0.3 * np.sin(9 * x[:, None] + 5 * x + shift)
    return np.stack([wave, wave**2, 1 - wave], axis=-1).astype(np.float32)


def test_maps_of_two_layouts_are_alike_through_one_camera():
    vertices, plain, turned = layouts()
    values = smooth()
    first = draw_map(plain, vertices, values, POSE, CAMERA, (40, 40))
    # a counter-clockwise turn of UV by a right angle is one of the picture
    same = draw_map(turned, vertices, np.ascontiguousarray(np.rot90(values)), POSE, CAMERA, (40, 40))
    assert first.valid.sum() > 200
    found = projected_score(same, first)
    assert found.share == 1
    assert found.psnr_db > 60
    assert found.ssim > 0.999
    other = draw_map(turned, vertices, np.ascontiguousarray(np.rot90(smooth(0.5))), POSE, CAMERA, (40, 40))
    assert projected_score(other, first).psnr_db < 25
    assert draw_map(plain, vertices, values, POSE, CAMERA, (40, 40)).values.max() <= values.max() + 1e-6


def test_a_drawn_map_has_its_own_values_and_leaves_out_what_is_not_valid():
    vertices, plain, _ = layouts()
    half = np.ones((96, 96), bool)
    half[:, :48] = False
    values = np.where(half[..., None], 0.7, np.nan)[..., :1].astype(np.float32)
    drawn = draw_map(plain, vertices, values, POSE, CAMERA, (40, 40), half)
    whole = draw_map(plain, vertices, np.full_like(values, 0.7), POSE, CAMERA, (40, 40))
    np.testing.assert_allclose(drawn.values[drawn.valid], 0.7, atol=1e-6)
    assert drawn.values.shape == (40, 40, 1)
    assert 0.2 < drawn.valid.sum() / whole.valid.sum() < 0.8
    assert projected_score(drawn, whole).share == pytest.approx(drawn.valid.sum() / whole.valid.sum())
    away = POSE.replace(translation=jnp.array([0.0, 0.0, -0.8]))
    behind = draw_map(plain, vertices, values, away, CAMERA, (40, 40), half)
    with pytest.raises(InputError, match="No texel is valid in both"):
        projected_score(behind, whole)
    with pytest.raises(InputError, match=r"\(h, w, 1\) or \(h, w, 3\)"):
        draw_map(plain, vertices, np.zeros((4, 4, 2)), POSE, CAMERA, (40, 40))
    with pytest.raises(InputError, match="was made for"):
        draw_map(topology_of(*sphere((0, 0, 0), 0.1, 6)), vertices, np.zeros((4, 4, 3)), POSE, CAMERA, (40, 40))
