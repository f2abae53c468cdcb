"""The one registry of heads: names, files, folders, avatars, other packages' heads, and what is none of them."""

import importlib.metadata

import numpy as np
import pytest
from toy_avatar import toy_avatar
from toy_head import toy_head

import facejax
from facejax.data import heads
from facejax.data.avatars import save_adapted
from facejax.data.heads import load_avatar, load_head, load_model, load_morphable, model_file, resolve_head
from facejax.geometry.errors import InputError
from facejax.models.head import HeadModel


def plugged(monkeypatch, name, load):
    class Entry:
        value = "their_package:load"

        def __init__(self):
            self.name = name

        def load(self):
            return load

    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda *, group: [Entry()] if group == "facejax.heads" else []
    )


@pytest.fixture
def tracked(tmp_path):
    """A folder with an avatar in it."""
    avatar = toy_avatar()
    clip, frame = avatar.init_code()
    frames = frame.replace(code=np.zeros((2, len(frame.code)), np.float32))
    light = np.zeros((2, *avatar.no_light().shape), np.float32)
    save_adapted(tmp_path, avatar, params=avatar.params, code=clip, frames=frames, light=light, about={})
    return tmp_path


def test_every_name_is_at_hand():
    assert facejax.load_head is load_head
    assert facejax.load_model is load_model
    assert "generic" in heads.MODELS
    assert "ict-facekit" in heads.MODELS
    assert load_head("generic") is load_model("generic") is load_morphable("generic")


def test_files_know_where_they_came_from(tmp_path):
    arrays = model_file.arrays_of_head(load_head("generic"), "here", "CC0")
    path = model_file.save_arrays(tmp_path / "mine.npz", arrays)
    assert load_head(path).source == load_head(str(path)).source == str(path)
    assert load_head("generic").source == ""


def test_an_avatar_is_a_head_like_any_other(tracked):
    assert load_head(tracked).sha256 == load_model(str(tracked)).sha256 == load_avatar(tracked).sha256
    assert load_head(tracked).source == str(tracked)
    with pytest.raises(InputError, match="is no morphable head but of type Avatar: give generic or ict-fac"):
        load_morphable(tracked)
    with pytest.raises(InputError, match="An avatar has one part only"):
        load_head(tracked, parts=["face"])


def test_other_packages_add_heads(monkeypatch):
    asked = []
    plugged(monkeypatch, "flame", lambda given: asked.append(given) or toy_head())
    assert isinstance(load_head("flame"), HeadModel)
    assert load_head("flame:some/folder").name == "toy"
    assert asked == ["flame", "some/folder"]
    with pytest.raises(InputError, match=r"did you mean flame\?"):
        load_head("flam")
    with pytest.raises(InputError, match="leave `parts` out"):
        load_head("flame", parts=["face"])
    plugged(monkeypatch, "flame", lambda given: None)
    with pytest.raises(InputError, match="'flame' of their_package:load must be a HeadModel, and is a NoneType"):
        load_head("flame")


def test_no_file_is_ever_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flame.py").write_text("raise SystemExit('ran')")
    with pytest.raises(InputError, match="No model named 'flame:x'"):
        load_head("flame:x")


def test_a_head_is_resolved_from_whatever_says_it(tmp_path):
    head = toy_head()
    assert resolve_head(head) is head
    assert resolve_head("generic") is load_head("generic")
    path = model_file.save_arrays(tmp_path / "mine.npz", model_file.arrays_of_head(load_head("generic"), "x", "CC0"))
    assert resolve_head(path).source == str(path)


@pytest.mark.parametrize("wrong", [toy_head().params, {"mean": 1}, None, 3, np.zeros(2), [toy_head()]])
def test_what_is_no_head_is_refused_in_one_sentence(wrong):
    kind = type(wrong).__name__
    with pytest.raises(InputError, match=rf"what `load_head` returned, and a {kind} was given: pass the head itself"):
        resolve_head(wrong)
