"""Clips in the wild: the dense head, the light, what a clip says about itself, stopped runs, refused input."""

import dataclasses

import numpy as np
import pytest
from scipy.ndimage import binary_dilation
from toy_head import ball, toy_head

from facejax.geometry.errors import InputError
from facejax.made_up import studio as studio_module
from facejax.made_up import wild_clips
from facejax.made_up.studio import DenseHead, Lamp, StageStudio, sky_directions, sky_of, sky_of_lights
from facejax.made_up.subjects import SubdividedPart
from facejax.made_up.truth_clip import Truth
from facejax.made_up.wild_clips import LIGHTS, Person, WildSpec, WildTruth, make_wild_clip, wild_light
from facejax.models.morphable import REGIONS
from facejax.renderers.lights import sphere_directions
from facejax.renderers.llvm import require_llvm

CENTRE = np.array([0.0, 0.0, 0.5])
TINY = WildSpec(light="sun", frames=2, size=32, samples=9, seed=3)


@pytest.fixture(scope="module")
def llvm():
    try:
        return require_llvm()
    except InputError as e:
        pytest.skip(str(e))


def whole_head():
    """The toy head with every region that a morphable head carries."""
    head = toy_head()
    vertices, turning = np.asarray(head.params.mean), np.asarray(head.params.eye_weight).sum(axis=1)
    teeth = np.asarray(head.regions["teeth"], np.float32)
    regions = {name: np.zeros(len(vertices), np.float32) for name in REGIONS}
    regions |= {"eyeballs": (turning > 0.5).astype(np.float32), "teeth": teeth}
    regions["skin"] = 1 - regions["eyeballs"] - teeth
    regions["narrow_face"] = regions["skin"] * (vertices[:, 2] > 0.03)
    return dataclasses.replace(head, regions=regions)


@pytest.fixture(scope="module")
def person():
    return Person(head=whole_head(), skin=0.3, seed=1)


# -- the surface -------------------------------------------------------------------------------------------------------


def test_dense_points_lie_on_the_smooth_surface():
    vertices, faces, _, _ = ball((0, 0, 0), (0.1, 0.1, 0.1), 12, 16, (0, 0, 1, 1))
    part = SubdividedPart.of(faces, 2)
    normals = studio_module._vertex_normals(vertices, faces)
    points, dense_normals = studio_module._arcs(part, vertices.astype(np.float32), normals)
    off = np.abs(np.linalg.norm(points, axis=1) - 0.1)
    flat = np.abs(np.linalg.norm(part.spread(vertices), axis=1) - 0.1)
    assert off.max() < 0.2 * flat.max()
    np.testing.assert_allclose(np.linalg.norm(dense_normals, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(points[: len(part.used)], vertices[part.used], atol=1e-7)


def test_dense_head_has_every_material_and_a_finite_surface():
    head = whole_head()
    dense = DenseHead.of(head)
    points, _ = dense.surface(np.asarray(head.params.mean))
    assert np.isfinite(points).all()
    assert len(points) == len(dense.skin) == dense.faces.max() + 1
    assert 0 < dense.skin.mean() < 1


# -- light -------------------------------------------------------------------------------------------------------------


def test_lights_in_a_map_keep_their_power_and_direction():
    directions = sphere_directions(40).astype(np.float64)
    power = np.random.default_rng(0).uniform(0.1, 1, (40, 3))
    for d, p in zip(directions, power, strict=True):
        sky = sky_of_lights(d[None], p[None], rows=129).astype(np.float64)
        step = np.pi / 128
        held = np.sin(np.arange(129) * step) * step**2  # nearly, save at the poles
        total = (sky * held[:, None, None]).sum(axis=(0, 1))
        np.testing.assert_allclose(total, p, rtol=2e-3)
        mean = np.einsum("rcj,r,rck->jk", sky, held, sky_directions(129, 256))
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
        assert np.degrees(np.arccos(np.clip(mean @ d, -1, 1))).max() < 0.1


@pytest.mark.parametrize("light", [k for k in LIGHTS if k != "environment"])
def test_every_light_is_one_and_the_hard_one_is_where_it_is_said_to_be(light):
    spec = WildSpec(light=light, seed=5)
    for phase in (0.0, 0.5, 1.0):
        made = wild_light(spec, phase, CENTRE)
        fill = np.asarray(made.fill.radiance)
        assert np.isfinite(fill).all()
        assert fill.min() > 0
        towards = made.towards(CENTRE)
        assert np.linalg.norm(towards) == pytest.approx(0 if light == "soft" else 1)
        if made.sun is not None:
            sky = made.sky()
            row, column = np.unravel_index(sky.sum(axis=2).argmax(), sky.shape[:2])
            assert sky_directions(*sky.shape[:2])[row, column] @ towards > np.cos(np.radians(1))
    if light in ("sun", "profile", "lamp"):
        assert made.towards(CENTRE)[2] < 0  # in front of the face


def test_changing_light_goes_around_dims_and_changes_colour():
    spec = WildSpec(light="changing", seed=5)
    lamps = [wild_light(spec, t, CENTRE).lamp for t in (0.0, 0.5, 1.0)]
    x = [lamp.position[0] for lamp in lamps]
    assert x[0] * x[2] < 0
    assert sum(lamps[1].intensity) < 0.5 * sum(lamps[0].intensity)
    assert lamps[0].intensity[0] > lamps[0].intensity[2]
    assert lamps[2].intensity[0] < lamps[2].intensity[2]
    assert wild_light(dataclasses.replace(spec, light="steady"), 0.7, CENTRE).lamp == lamps[0]


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def white(llvm, person):
    """A matt grey head half a metre away, whose reflectance is 0.5 everywhere."""
    studio = StageStudio(person.head, skin=0.3, seed=1, size=(32, 32), samples=64, matt=True)
    n = len(studio.height)
    studio.height[:] = 0
    one = np.ones(n, np.float32)
    studio.bsdf.set_material(np.full((n, 3), 0.5, np.float32), np.ones((1, 1, 3), np.float32), 0 * one, 0.5 * one)
    vertices = np.asarray(person.head.params.mean) * [1, -1, -1] + CENTRE
    return studio, vertices, np.array([[40.0, 0, 16], [0, 40.0, 16], [0, 0, 1]])


def test_even_light_leaves_the_reflectance(white):
    studio, vertices, intrinsics = white
    studio.lit_by(sky_of(lambda d: np.ones_like(d), 65))
    studio.pose(vertices)
    even = studio.shoot(intrinsics, seed=0)
    inside = even.coverage > 0.999
    assert 60 < inside.sum() < 900
    # a little darker in the creases around the eyes
    assert np.median(even.colour[inside]) == pytest.approx(0.5, abs=0.01)
    n = 200
    studio.lit_by(sky_of_lights(sphere_directions(n), np.full((n, 3), 4 * np.pi / n), rows=65))
    dome = studio.shoot(intrinsics, seed=0)
    assert dome.colour[inside].mean() == pytest.approx(even.colour[inside].mean(), rel=0.02)
    np.testing.assert_array_equal(even.colour, _again(studio, intrinsics))


def _again(studio, intrinsics):
    studio.lit_by(sky_of(lambda d: np.ones_like(d), 65))
    return studio.shoot(intrinsics, seed=0).colour


def test_a_lamp_lights_its_side_by_the_inverse_square(white):
    studio, vertices, intrinsics = white
    dark = sky_of(lambda d: np.full_like(d, 1e-6), 65)
    studio.lit_by(dark, Lamp((0.0, 0.0, 0.0), 0.005, (1.0, 2.0, 3.0)))
    studio.pose(vertices)
    shot = studio.shoot(intrinsics, seed=0)
    middle = shot.colour[14:16, 15:17].reshape(-1, 3).mean(axis=0)
    nearest = 0.5 - 0.09  # the front of the ellipsoid
    np.testing.assert_allclose(middle, 0.5 / np.pi * np.array([1, 2, 3]) / nearest**2, rtol=0.08)


def test_cast_shadows_are_told_from_attached_ones(white):
    studio, vertices, intrinsics = white
    side = np.array([[1.0, 0.0, 0.0]])
    studio.lit_by(sky_of_lights(side, np.ones((1, 3)), rows=65) + np.float32(1e-3))
    studio.pose(vertices)
    share = studio.light_share(intrinsics, seed=0)
    skin = np.isfinite(share)
    assert (share[skin] < 0.5).mean() < 0.1  # nearly convex: half is dark and little lies in a cast shadow
    # the eyeballs, as large as the head, stand between it and the light
    moved, eyes = vertices.copy(), studio.dense.parts[1].used
    moved[eyes] = (moved[eyes] - moved[eyes].mean(axis=0)) * 8 + CENTRE + [0.6, 0, 0]
    studio.pose(moved)
    shadowed = studio.light_share(intrinsics, seed=0)
    assert (shadowed[skin & np.isfinite(shadowed)] < 0.5).mean() > 0.3


# -- clips -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(llvm, person, tmp_path_factory):
    out = tmp_path_factory.mktemp("wild") / "sun"
    return out, make_wild_clip(out, person, TINY)


def _pictures(out):
    return [p.read_bytes() for p in sorted((out / "frames").iterdir())]


def test_the_truth_lies_where_the_pictures_say(clip, person):
    out, wild = clip
    truth = Truth.load(out)
    assert sorted(p.name for p in out.iterdir()) == ["frames", "truth.npz", "wild.json", "wild.npz"]
    assert wild.mask.shape == wild.light_share.shape == (2, 32, 32)
    for field in dataclasses.fields(WildTruth):
        np.testing.assert_array_equal(getattr(WildTruth.load(out), field.name), getattr(wild, field.name))
    for i in range(2):
        posed = wild.vertices[i] @ truth.rotation[i].T + truth.translation[i]
        np.testing.assert_allclose(posed, truth.vertices[i], atol=1e-5)
        pixels = posed @ truth.intrinsics.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        covered = wild.mask[i] > 0
        rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
        got = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        expected = np.clip([*pixels.min(axis=0), *pixels.max(axis=0)], 0, 32)
        np.testing.assert_allclose(got, expected, atol=1.2)
        column, row = np.clip(np.floor(pixels).astype(int), 0, 31).T
        assert (wild.mask[i] > 0)[row, column].mean() > 0.95
        assert binary_dilation(covered, np.ones((3, 3)))[row, column].all()
    assert ((wild.shadowed >= 0) & (wild.shadowed < 0.5)).all()
    assert np.ptp(truth.vertices, axis=0).max() > 1e-3


def test_a_clip_is_equal_to_the_bit_when_made_again(clip, person, tmp_path):
    out, wild = clip
    again = make_wild_clip(tmp_path / "again", person, TINY)
    assert _pictures(out) == _pictures(tmp_path / "again")
    np.testing.assert_array_equal(wild.light_share, again.light_share)


def test_a_stopped_clip_goes_on(clip, person, tmp_path):
    out, _ = clip
    partial = tmp_path / "stopped"

    class Stop(Exception):
        pass

    def stop(stage, done, total):
        raise Stop

    with pytest.raises(Stop):
        make_wild_clip(partial, person, TINY, progress=stop)
    assert len(_pictures(partial)) == 1
    with pytest.raises(InputError, match="let it finish"):
        WildTruth.load(partial)
    before = (partial / "frames" / "00000.png").stat().st_mtime_ns
    told = []
    make_wild_clip(partial, person, TINY, progress=lambda *x: told.append(x))
    assert told[-1] == ("frames", 2, 2)
    assert (partial / "frames" / "00000.png").stat().st_mtime_ns == before
    assert _pictures(partial) == _pictures(out)
    assert not (partial / "parts").exists()
    # whole: nothing is drawn again, and another clip is not written over it
    make_wild_clip(partial, person, TINY, progress=lambda *x: pytest.fail("drew a clip that was there"))
    with pytest.raises(InputError, match="other options"):
        make_wild_clip(partial, person, dataclasses.replace(TINY, light="lamp"))
    with pytest.raises(InputError, match="other options"):
        make_wild_clip(partial, dataclasses.replace(person, seed=2), TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"light": "moon"}, "light is one of"),
        ({"light": "environment"}, "needs a picture"),
        ({"environment": "a.hdr"}, "takes a picture of light"),
        ({"frames": 0}, "a frame"),
        ({"size": 16}, "32 pixels"),
        ({"samples": 0}, "path per pixel"),
        ({"field_of_view_degrees": 120.0}, "field of view"),
        ({"key_to_fill": 0.0}, "key_to_fill"),
    ],
)
def test_a_bad_spec_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        WildSpec(**change)


def test_bad_places_are_refused(person, tmp_path):
    with pytest.raises(InputError, match="No environment picture"):
        make_wild_clip(tmp_path / "a", person, WildSpec(light="environment", environment="/none.hdr"))
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="no wild clip"):
        make_wild_clip(tmp_path, person, TINY)
    (tmp_path / "wild.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        make_wild_clip(tmp_path, person, TINY)
    with pytest.raises(InputError, match="make the clip"):
        WildTruth.load(tmp_path)


def test_maps_that_are_no_light_are_refused(white):
    studio, _, intrinsics = white
    with pytest.raises(InputError, match="nowhere negative"):
        studio.lit_by(np.full((65, 128, 3), -1, np.float32))
    studio.lit_by(np.ones((65, 128, 3), np.float32))
    with pytest.raises(InputError, match="one size"):
        studio.lit_by(np.ones((33, 64, 3), np.float32))
    with pytest.raises(InputError, match="square pixels"):
        studio.shoot(intrinsics * [[1], [1.2], [1]], seed=0)


def test_profile_turns_to_profile():
    assert WildSpec(light="profile").performance().yaw_degrees == 60
    assert WildSpec(light="sun", yaw_degrees=10.0).performance().yaw_degrees == 10
    assert WildSpec().performance().seed >= wild_clips._HELD_OUT
