"""The avatar as a head model, and avatars in files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_avatar import CODE, GROUPS, toy_avatar

from facejax import fit_sequence
from facejax.apps.avatar import how_it_fits
from facejax.data.avatars import load_adapted, save_adapted
from facejax.data.heads import load_avatar, load_head
from facejax.data.heads.avatar import AVATAR, is_avatar
from facejax.fitting import FitConfig, Known, Lots
from facejax.fitting.plans import registration as registration_plan
from facejax.geometry.cameras import view_direction
from facejax.geometry.errors import InputError
from facejax.geometry.records import Pose
from facejax.models.avatar import AvatarClip, AvatarFrame
from facejax.models.head import HeadModel

CODES = np.random.default_rng(5).normal(size=(3, CODE)).astype(np.float32)
POSE = Pose(rotation=jnp.diag(jnp.array([1.0, -1.0, -1.0])), translation=jnp.array([0.0, 0.0, 0.8]))
DARK = AvatarClip()


def frame(code):
    return AvatarFrame(code=jnp.asarray(code))


def test_it_is_a_head_model():
    assert isinstance(toy_avatar(), HeadModel)


def test_vertices_are_those_of_the_decoder():
    avatar = toy_avatar()
    for code in CODES:
        decoded = avatar.appearance.decode_vertices(avatar.params, avatar.state, jnp.asarray(code))
        np.testing.assert_allclose(avatar.vertices(avatar.params, DARK, frame(code)), decoded, atol=2e-7)
        moved = np.abs(np.asarray(decoded) - avatar.neutral(avatar.params, DARK)).max()
        assert moved > 1e-4


def test_reduced_to_points_it_gives_the_points_of_the_whole():
    avatar = toy_avatar()
    reduced = avatar.at_points(avatar.landmarks478)
    whole = avatar.landmark_points(avatar.vertices(avatar.params, DARK, frame(CODES[0])))
    np.testing.assert_allclose(reduced.vertices(reduced.params, DARK, frame(CODES[0])), whole, atol=2e-7)


def test_scaled_it_is_larger_everywhere():
    avatar, twice = toy_avatar(), toy_avatar().scaled(2.0)
    face = jax.jit(lambda h, p: h.decode(p, DARK, frame(CODES[1]), view_direction(POSE)), static_argnums=0)
    one, other = face(avatar, avatar.params), face(twice, twice.params)
    np.testing.assert_allclose(other.vertices, 2 * one.vertices, rtol=1e-6)
    np.testing.assert_allclose(other.texture, one.texture, atol=1e-6)
    np.testing.assert_allclose(twice.eye_pivots(None, DARK), 2 * avatar.eye_pivots(None, DARK))


def test_an_untrained_network_shows_the_decoder_s_texture():
    avatar = toy_avatar()
    config = dataclasses.replace(avatar.network.config, head_scale=0.0)
    fresh = dataclasses.replace(avatar, network=type(avatar.network)(config))
    params = {**avatar.params, "lighting": fresh.network.init(jax.random.key(0))}
    face = fresh.decode(params, DARK, frame(CODES[0]), view_direction(POSE))
    lit = fresh.relit(params, face, fresh.network.full_light(), POSE)
    np.testing.assert_allclose(lit.texture, face.texture, atol=1e-6)


def test_full_stages_take_the_paper_s_iterations():
    landmarks, _, *light, adaptation, registration = registration_plan(FitConfig(preset="full"), Known())
    assert landmarks.turns[0].steps == 1000
    assert [s.name for s in light] == ["light"]
    assert [t.steps for t in adaptation.turns if isinstance(t.by, Lots)] == [250, 500]
    assert adaptation.rounds == 4
    assert [t.steps for t in registration.turns if isinstance(t.by, Lots)] == [1000]
    assert [s.name for s in registration_plan(FitConfig(light_start="dark"), Known())][2] == "adaptation"


LIGHT = np.arange(3 * GROUPS * 3, dtype=np.float32).reshape(3, GROUPS, 3)


def save(folder, avatar, about=None):
    """A clip of three frames, after the network learnt something."""
    params = {**avatar.params, "lighting": jax.tree.map(lambda x: x + 0.5, avatar.params["lighting"])}
    frames, code = frame(CODES[0]).replace(code=CODES), AvatarClip()
    save_adapted(folder, avatar, params=params, code=code, frames=frames, light=LIGHT, about=about or {})
    return params


def test_an_adapted_avatar_comes_back_from_its_file(tmp_path):
    avatar = toy_avatar()
    params = save(tmp_path, avatar, {"light_model": "network"})
    assert is_avatar(tmp_path)
    clip = load_adapted(tmp_path)
    back = clip.avatar
    assert clip.about == {"light_model": "network"}
    jax.tree.map(np.testing.assert_array_equal, back.params["lighting"], avatar.params["lighting"])
    jax.tree.map(np.testing.assert_array_equal, clip.params["lighting"], params["lighting"])
    np.testing.assert_allclose(back.params["mesh"]["basis"], avatar.params["mesh"]["basis"], atol=1e-7)
    np.testing.assert_array_equal(clip.frames.code, CODES)
    np.testing.assert_allclose(clip.light, LIGHT)
    np.testing.assert_array_equal(back.topology.faces, avatar.topology.faces)
    assert load_avatar(tmp_path).sha256 == back.sha256 == avatar.sha256
    assert load_head(tmp_path / AVATAR).source == str(tmp_path)


def test_a_file_without_light_in_the_clip_s_code_or_without_a_sha256_is_read(tmp_path):
    """Of later and of earlier facejax."""
    avatar = toy_avatar()
    frames = frame(CODES[0]).replace(code=CODES)
    save_adapted(tmp_path, avatar, params=avatar.params, code=(), frames=frames, light=LIGHT, about={})
    np.testing.assert_array_equal(load_adapted(tmp_path).light, LIGHT)
    with np.load(tmp_path / AVATAR) as file:
        arrays = dict(file)
    facts = json.loads(str(arrays.pop("facts")))
    del facts["sha256"]
    np.savez(tmp_path / AVATAR, facts=np.array(json.dumps(facts)), **arrays)
    back = load_avatar(tmp_path)
    assert len(back.sha256) == 64
    assert back.sha256 != avatar.sha256  # of its arrays, where the toy's is made up


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a whole archive", None])
def test_a_damaged_avatar_is_refused(tmp_path, damage):
    avatar = toy_avatar()
    save(tmp_path, avatar)
    path = tmp_path / AVATAR
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if damage is None else damage)
    with pytest.raises(InputError, match="is not a whole avatar"):
        load_avatar(path)


def test_a_checkpoint_of_another_recipe_is_no_avatar():
    with pytest.raises(InputError, match="checkpoint of 'head-autoencoder', and an avatar is made by 'deep-lighting'"):
        load_avatar("head-autoencoder-small")


FRAMES = np.zeros((1, 32, 32, 3), np.uint8)


def test_no_key_frame_is_refused():
    with pytest.raises(InputError, match="`key_frames` must be 1 or more, got 0"):
        fit_sequence(FRAMES, toy_avatar(), config=FitConfig(key_frames=0))


def test_an_avatar_takes_no_identity(tmp_path):
    with pytest.raises(InputError, match="'toy' is one person already"):
        fit_sequence(FRAMES, toy_avatar(), identity=tmp_path)


def test_somebody_else_s_avatar_is_called_so():
    assert how_it_fits(1.2) == ""
    assert how_it_fits(None) == ""
    assert "lips are off by 7.5 % of the eye distance" in how_it_fits(7.5)
