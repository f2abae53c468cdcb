"""Maps and coefficients from files: what is read back, which way up it is, and what is refused."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from facejax.data.environments import load_environment, load_sh, resize_environment, save_environment
from facejax.geometry.errors import InputError
from facejax.renderers.lights import Environment, environment_directions, radiance_towards, solid_angles

RNG = np.random.default_rng(0)


def some_map(height=16, sun=50.0):
    radiance = RNG.uniform(0.1, 1, (height, 2 * height, 3)).astype(np.float32)
    radiance[3, 5] = sun
    return Environment(radiance=jnp.asarray(radiance))


def energy(environment):
    radiance = np.asarray(environment.radiance)
    return (radiance * solid_angles(*radiance.shape[:2])[..., None]).sum(axis=(0, 1))


@pytest.mark.parametrize(("suffix", "tolerance"), [(".exr", 1e-3), (".hdr", 1e-2), (".EXR", 1e-3)])
def test_a_map_comes_back(tmp_path, suffix, tolerance):
    given = some_map()
    save_environment(tmp_path / f"map{suffix}", given)
    found = load_environment(tmp_path / f"map{suffix}")
    scale = np.asarray(given.radiance).max(axis=-1, keepdims=True)  # RGBE shares one exponent
    assert (np.abs(found.radiance - given.radiance) <= tolerance * scale).all()
    assert [p.name for p in tmp_path.iterdir()] == [f"map{suffix}"]


def test_light_of_more_than_half_floats_hold(tmp_path):
    save_environment(tmp_path / "sun.exr", some_map(sun=2e5))
    assert load_environment(tmp_path / "sun.exr").radiance.max() == 2e5


def test_which_way_a_file_looks(tmp_path):
    """The middle of a file is straight ahead of the camera, its right half to the right, its top row above."""
    radiance = np.full((32, 64, 3), 0.01, np.float32)
    radiance[15:17, 31:33, 0] = 10  # red in the middle
    radiance[15:17, 47:49, 1] = 10  # green a quarter to the right of it
    radiance[0, :, 2] = 10  # blue along the top
    save_environment(tmp_path / "axes.exr", Environment(radiance=jnp.asarray(radiance)))
    light = load_environment(tmp_path / "axes.exr")
    ahead, right, up = np.asarray(radiance_towards(light, jnp.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]])))
    assert ahead[0] > 9
    assert right[1] > 9
    assert up[2] > 9
    assert ahead[1:].max() < 0.1


@pytest.mark.parametrize("height", [16, 8, 5, 1, 24])
def test_resizing_keeps_energy_and_direction(height):
    given = some_map(16)
    small = resize_environment(given, height)
    assert small.radiance.shape == (height, 2 * height, 3)
    np.testing.assert_allclose(energy(small), energy(given), rtol=1e-5)
    if height in (8, 24):

        def mean_direction(e):
            power = np.asarray(e.radiance)[..., :1] * solid_angles(*e.radiance.shape[:2])[..., None]
            return (environment_directions(*e.radiance.shape[:2]) * power).sum(axis=(0, 1))

        before, after = mean_direction(given), mean_direction(small)
        assert np.linalg.norm(before - after) < 0.03 * energy(given)[0]


def test_resizing_by_a_whole_factor_is_a_mean():
    given = some_map(8)
    rows = solid_angles(8, 16)[:, :1, None]
    weighted = (np.asarray(given.radiance) * rows).reshape(4, 2, 8, 2, 3).sum(axis=(1, 3))
    weights = np.broadcast_to(rows, (8, 16, 1)).reshape(4, 2, 8, 2, 1).sum(axis=(1, 3))
    np.testing.assert_allclose(resize_environment(given, 4).radiance, weighted / weights, rtol=1e-5)


def test_large_maps_are_averaged_down_on_loading(tmp_path):
    save_environment(tmp_path / "large.hdr", some_map(64))
    small = load_environment(tmp_path / "large.hdr", max_height=16)
    whole = load_environment(tmp_path / "large.hdr", max_height=None)
    assert small.radiance.shape == (16, 32, 3)
    np.testing.assert_allclose(energy(small), energy(whole), rtol=1e-5)


def test_real_maps(assets):
    for path in sorted((assets / "hdr").glob("*.hdr")):
        light = load_environment(path, max_height=64)
        assert light.radiance.shape == (64, 128, 3)
        assert np.isfinite(light.radiance).all()
        assert light.radiance.max() > 4  # high dynamic range, not 8 bits
    sky, grass = np.asarray(load_environment(assets / "hdr" / "spruit_sunrise.hdr").radiance)[[20, -20]].mean(axis=1)
    assert sky[2] > sky[0]
    assert grass[2] < grass[1]


def write(path, radiance):
    import mitsuba as mi

    if mi.variant() is None:
        mi.set_variant("scalar_rgb")
    mi.Bitmap(np.ascontiguousarray(radiance, dtype=np.float32)).write(str(path))
    return path


def changed(value, share=0.0):
    radiance = np.array(some_map().radiance)
    radiance[2, 3, 1] = value
    if share:
        radiance[8:] = value
    return radiance


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda d: d / "gone.hdr", "No environment map at"),
        (lambda d: d / "map.png", "as .hdr or .exr, got 'map.png'"),
        (lambda d: write(d / "square.exr", np.ones((8, 8, 3))), "8 x 8 pixels, but .* twice as wide"),
        (lambda d: write(d / "inf.exr", changed(np.inf)), "1 pixels that are infinite"),
        (lambda d: write(d / "nan.exr", changed(np.nan)), "1 pixels that are infinite or not a number"),
        (lambda d: write(d / "below.exr", changed(-3.0, 0.5)), "negative radiance"),
        (lambda d: write(d / "black.exr", np.zeros((8, 16, 3))), "black everywhere"),
        (lambda d: write(d / "many.exr", np.ones((8, 16, 7))), "several layers or channels"),
    ],
)
def test_maps_that_are_refused(tmp_path, make, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        load_environment(make(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".hdr", ".exr"])
def test_damaged_maps_are_refused(tmp_path, suffix):
    path = tmp_path / f"map{suffix}"
    path.write_bytes(b"not a picture")
    with pytest.raises(InputError, match="cannot be read as an environment map"):
        load_environment(path)
    save_environment(path, some_map(32))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be read as an environment map"):
        load_environment(path)


def test_grey_maps_and_alpha_are_taken_and_small_negatives_cut(tmp_path):
    grey = load_environment(write(tmp_path / "grey.exr", np.full((8, 16, 1), 0.5)))
    np.testing.assert_allclose(grey.radiance, 0.5)
    alpha = load_environment(write(tmp_path / "alpha.exr", np.full((8, 16, 4), 0.5)))
    assert alpha.radiance.shape == (8, 16, 3)
    assert load_environment(write(tmp_path / "ringing.exr", changed(-0.01))).radiance.min() == 0


@pytest.mark.parametrize(
    ("name", "radiance", "sentence"),
    [
        ("a.png", np.ones((4, 8, 3)), "as .hdr or .exr"),
        ("a.exr", np.ones((4, 4, 3)), "twice as wide"),
        ("a.exr", np.full((4, 8, 3), np.nan), "not a number"),
    ],
)
def test_nothing_is_written_that_would_be_refused(tmp_path, name, radiance, sentence):
    with pytest.raises(InputError, match=sentence):
        save_environment(tmp_path / name, Environment(radiance=jnp.asarray(radiance, jnp.float32)))
    assert not list(tmp_path.iterdir())


def test_a_variant_that_a_caller_set_stays(tmp_path):
    save_environment(tmp_path / "a.hdr", some_map())
    code = """
import sys, mitsuba
mitsuba.set_variant("scalar_spectral")
from facejax.data.environments import load_environment
print(load_environment(sys.argv[1]).radiance.shape, mitsuba.variant())
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.hdr")], capture_output=True, text=True, check=True
    )
    assert run.stdout.split("\n")[0] == "(16, 32, 3) scalar_spectral"


# -- spherical harmonics ----------------------------------------------------------------------------------------------

TABLE = np.concatenate([np.full((1, 3), 2.0), RNG.normal(scale=0.3, size=(8, 3))]).astype(np.float32)


def test_every_kind_of_file_holds_the_same_light(tmp_path):
    np.save(tmp_path / "a.npy", TABLE)
    np.savez(tmp_path / "b.npz", other=np.zeros(3), sh=TABLE)
    np.savez(tmp_path / "c.npz", whatever=TABLE)
    (tmp_path / "d.json").write_text(json.dumps(TABLE.tolist()))
    (tmp_path / "e.json").write_text(json.dumps({"light": TABLE.tolist(), "from": "here"}))
    np.savetxt(tmp_path / "f.txt", TABLE)
    np.savetxt(tmp_path / "g.txt", TABLE, delimiter=",", header="red, green, blue")
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_allclose(load_sh(path), TABLE, rtol=1e-5, err_msg=path.name)


@pytest.mark.parametrize(
    ("name", "table", "sentence"),
    [
        ("gone.npy", None, "No file of spherical harmonics"),
        ("a.csv", None, "as .npy, .npz, .json or .txt"),
        ("a.npy", TABLE[:8], r"bands squared coefficients \(1, 4, 9, .*\), got 8"),
        ("a.npy", np.ones((100, 3)), "got 100"),
        ("a.npy", TABLE[:, :2], "one row of red, green and blue"),
        ("a.npy", TABLE[None], "one row of red, green and blue"),
        ("a.npy", np.where(TABLE == 2, np.nan, TABLE), "infinite or not a number"),
        ("a.npy", -TABLE, "no light on average"),
        ("a.npy", np.array(["x"]), "table of numbers"),
    ],
)
def test_coefficients_that_are_refused(tmp_path, name, table, sentence):
    if table is not None:
        np.save(tmp_path / name, table)
    with pytest.raises(InputError, match=sentence):
        load_sh(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.npy", "junk"), ("a.npz", "junk"), ("a.json", "{"), ("a.json", '{"sh": "x"}'), ("a.txt", "1 2 x")],
)
def test_damaged_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match="cannot be read as a table"):
        load_sh(tmp_path / name)


def test_a_file_of_several_tables_must_name_the_light(tmp_path):
    np.savez(tmp_path / "a.npz", one=TABLE, two=TABLE)
    with pytest.raises(InputError, match="holds one, two"):
        load_sh(tmp_path / "a.npz")
