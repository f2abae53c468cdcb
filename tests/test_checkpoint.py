"""What tells one input of a long fit from another: content, never what a `repr` shows."""

import dataclasses
import os

import numpy as np
import pytest
from PIL import Image
from toy_head import toy_head, toy_result

from facejax.data.video import load_masks, open_video
from facejax.fitting import FitConfig
from facejax.fitting.checkpoint import fingerprint
from facejax.geometry.errors import InputError
from facejax.scenes import make_scene


def images(folder, shade=0, count=3):
    folder.mkdir(exist_ok=True)
    for k in range(count):
        Image.fromarray(np.full((48, 64, 3), shade + k, np.uint8)).save(folder / f"{k}.png")
    return folder


def differs(one, other):
    assert fingerprint(one) == fingerprint(one)
    assert fingerprint(one) != fingerprint(other)


def test_arrays_that_differ_in_the_middle_are_two():
    """`repr` of an array elides its middle: other landmarks, 40 px away, once counted as the same."""
    one = np.zeros((400, 478, 2), np.float32)
    other = one.copy()
    other[200, 240] = 40.0
    assert repr(one) == repr(other)
    differs(one, other)
    differs(one, one.astype(np.float64))
    differs(one, one.reshape(200, 956, 2))


def test_videos_given_as_arrays_are_their_pixels():
    black, white = (np.full((5, 48, 64, 3), x, np.uint8) for x in (0, 255))
    differs(open_video(black), open_video(white))
    assert fingerprint(open_video(black)) == fingerprint(open_video(black.copy()))


def test_an_image_edited_in_place_is_noticed(tmp_path):
    """The folder's own size and time do not change when a file in it is written over."""
    folder = images(tmp_path / "clip")
    before = fingerprint(open_video(folder))
    kept = os.stat(folder)
    path = folder / "1.png"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(1, 1))
    assert (os.stat(folder).st_mtime_ns, os.stat(folder).st_size) == (kept.st_mtime_ns, kept.st_size)
    assert fingerprint(open_video(folder)) != before


def test_masks_are_their_files(tmp_path):
    clip = open_video(images(tmp_path / "clip"))
    one, other = (load_masks(images(tmp_path / name, shade), clip) for name, shade in (("a", 0), ("b", 200)))
    differs(one, other)
    before = fingerprint(one)
    os.utime(tmp_path / "a" / "0.png", ns=(5, 5))
    assert fingerprint(one) != before


def test_an_earlier_result_is_its_arrays():
    one = toy_result(3)
    differs(one, dataclasses.replace(one, texture=one.texture + np.float32(0.1)))


def test_files_named_by_their_path_count_with_their_content(tmp_path):
    path = tmp_path / "landmarks.npz"
    path.write_bytes(b"one")
    before = fingerprint(str(path))
    path.write_bytes(b"two, longer")
    assert fingerprint(str(path)) != before


def test_choices_and_scenes_are_their_parts():
    differs(FitConfig(), FitConfig(size=128))
    head = toy_head()
    one, other = make_scene(head, (32, 32)), make_scene(head, (48, 48))
    differs(one, other)
    differs(one, make_scene(head, (32, 32), bands=2))
    assert fingerprint(make_scene(toy_head(), (32, 32))) == fingerprint(one)  # the same head, made again


def test_what_has_no_content_to_tell_is_refused():
    with pytest.raises(InputError, match="leave `checkpoint` out"):
        fingerprint(object())
