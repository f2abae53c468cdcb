"""Photos of one person, of several sizes and cameras: how they are opened, and what `fit_image` makes of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from toy_head import toy_codes, toy_head

from facejax.data.photos import are_photos, open_photos, photo_landmarks
from facejax.data.video import open_video
from facejax.fitting import FitConfig, Known, fit_image
from facejax.fitting.plans import tracking
from facejax.geometry.cameras import project, to_camera_frame
from facejax.geometry.errors import InputError
from facejax.geometry.records import Camera, Pose
from facejax.geometry.rotations import rotation_angle, rotvec_to_matrix
from facejax.models.morphable import REGIONS

SIZES = ((320, 240), (200, 260), (160, 120))
FOCAL = (400.0, 380.0, 210.0)
EXACT = FitConfig(texture=False, prior_weight=1e-3, size=64, samples=200, texture_size=32)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def head():
    plain = toy_head(16, 24)
    empty = dict.fromkeys(REGIONS, np.zeros(plain.topology.n_vertices, np.float32))
    return dataclasses.replace(plain, regions={**empty, "narrow_face": plain.regions["skin"], **plain.regions})


def photographed(seeds=(2, 2, 2)):
    """(landmarks, poses, cameras, persons): a person seen by three cameras, or by each another one."""
    points, poses, cameras, persons = [], [], [], []
    for k, ((width, height), focal, seed) in enumerate(zip(SIZES, FOCAL, seeds, strict=True)):
        person, moves, _, _ = toy_codes(head(), 3, seed=seed)
        person = person.replace(shape=3 * person.shape)
        turn = rotvec_to_matrix(jnp.array([0.1 * k, 0.3 - 0.3 * k, 0.0]))
        upright = jnp.diag(jnp.array([1.0, -1.0, -1.0]))
        pose = Pose(rotation=jnp.matmul(upright, turn), translation=jnp.array([0.01 * k, 0.0, 0.7]))
        camera = Camera(focal=jnp.full(2, focal), principal_point=jnp.array([width / 2, height / 2]))
        move = jax.tree.map(lambda x: 0.3 * x[k], moves)  # noqa: B023
        vertices = head().vertices(head().params, person, move)
        points.append(np.asarray(project(to_camera_frame(head().landmark_points(vertices), pose), camera)))
        poses.append(pose)
        cameras.append(camera)
        persons.append(person)
    return points, poses, cameras, persons


def pictures():
    return [np.full((height, width, 3), 60 + 40 * k, np.uint8) for k, (width, height) in enumerate(SIZES)]


def intrinsics(cameras):
    return np.array([[*c.focal, *c.principal_point] for c in cameras])


def quick(known):
    (stage, *_) = tracking(EXACT, known)
    (turn,) = stage.turns
    return (dataclasses.replace(stage, turns=(dataclasses.replace(turn, steps=250),)),)


def test_photos_of_several_sizes_are_one_source(tmp_path):
    for k, picture in enumerate(pictures()):
        Image.fromarray(picture).save(tmp_path / f"{k + 9}.png")  # 9, 10, 11: natural order
    photos = open_photos(tmp_path)
    assert photos.n_frames == 3
    np.testing.assert_array_equal(photos.sizes, SIZES)
    for got, given in zip(photos.each([2, 0]), [pictures()[2], pictures()[0]], strict=True):
        np.testing.assert_array_equal(got, given)
    assert are_photos(tmp_path)
    assert are_photos(tmp_path / "9.png")
    np.testing.assert_array_equal(next(open_photos(tmp_path / "10.png").frames()), pictures()[1])
    in_memory = open_photos(pictures())
    np.testing.assert_array_equal(in_memory.sizes, SIZES)
    assert "each with its own pose" in photos.notes[0]
    assert "the model's guess" in open_photos(pictures()[0]).notes[0]


def test_frames_of_one_size_are_a_clip(tmp_path):
    for k in range(3):
        Image.fromarray(pictures()[0]).save(tmp_path / f"{k}.png")
    assert not are_photos(tmp_path)
    assert open_video(tmp_path).n_frames == 3
    assert open_photos(tmp_path).n_frames == 3  # where a person says so


def test_three_photos_share_a_shape_and_keep_their_cameras():
    points, poses, cameras, (person, *_) = photographed()
    known = Known(zoom=True, photos=True)
    result = fit_image(
        pictures(), head(), landmarks=points, intrinsics=intrinsics(cameras), config=EXACT, stages=quick(known)
    )
    assert result.valid.all()
    turned = jax.vmap(rotation_angle)(jnp.asarray(result.rotation), jnp.stack([p.rotation for p in poses]))
    assert np.degrees(turned).max() < 1.0
    np.testing.assert_allclose(result.translation, [p.translation for p in poses], atol=0.02)
    np.testing.assert_allclose(result.identity, person.shape, atol=0.8)
    np.testing.assert_array_equal(result.frame_size, SIZES)
    np.testing.assert_allclose(result.frame_intrinsics[:, 0, 0], FOCAL, rtol=1e-5)
    assert np.linalg.norm(result.landmarks - np.stack(points), axis=-1).mean() < 0.5
    assert not [n for n in result.metrics["notes"] if "another person" in n]


def test_unknown_focal_lengths_are_each_photo_s_own():
    points, _, _, _ = photographed()
    result = fit_image(pictures(), head(), landmarks=points, config=EXACT, stages=quick(Known(photos=True)))
    found = result.frame_intrinsics[:, 0, 0]
    guess = 0.5 * np.array([max(s) for s in SIZES]) / np.tan(np.radians(15))
    assert (np.abs(np.log(found / FOCAL)) < np.abs(np.log(guess / FOCAL))).all()
    assert len(set(np.round(found / guess, 3))) == 3  # not one zoom for all
    np.testing.assert_allclose(result.frame_intrinsics[:, :2, 2], np.array(SIZES) / 2)


def test_one_photo_is_fitted():
    points, poses, cameras, _ = photographed()
    result = fit_image(
        pictures()[0], head(), landmarks=points[:1], intrinsics=intrinsics(cameras)[0], config=EXACT,
        stages=quick(Known(zoom=True, photos=True)),
    )  # fmt: skip
    assert len(result) == 1
    assert np.degrees(rotation_angle(jnp.asarray(result.rotation[0]), poses[0].rotation)) < 1.5
    assert any("one photo" in note for note in result.metrics["notes"])


def test_a_photo_of_somebody_else_is_told():
    points, _, cameras, _ = photographed(seeds=(2, 2, 5))
    known = Known(zoom=True, photos=True)
    result = fit_image(
        pictures(), head(), landmarks=points, intrinsics=intrinsics(cameras), config=EXACT, stages=quick(known)
    )
    assert any("is it another person?" in note for note in result.metrics["notes"])


def test_a_photo_without_a_face_is_said_and_left_out():
    points, _, cameras, _ = photographed()
    points[1] = np.full_like(points[1], np.nan)
    known = Known(zoom=True, photos=True)
    result = fit_image(
        pictures(), head(), landmarks=points, intrinsics=intrinsics(cameras), config=EXACT, stages=quick(known)
    )
    np.testing.assert_array_equal(result.valid, [True, False, True])
    assert any("photo 1: no face" in note for note in result.metrics["notes"])


def test_what_are_no_photos_is_refused(tmp_path):
    Image.fromarray(pictures()[0]).save(tmp_path / "0.png")
    (tmp_path / "talk.mp4").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds videos \(talk.mp4\) beside pictures"):
        open_photos(tmp_path)
    with pytest.raises(InputError, match="No such picture or folder"):
        open_photos(tmp_path / "nowhere")
    with pytest.raises(InputError, match="Photos are a picture"):
        open_photos(3)
    with pytest.raises(InputError, match="at least 32"):
        open_photos([np.zeros((8, 8, 3), np.uint8)])
    photos = open_photos(pictures())
    with pytest.raises(InputError, match="for each of 3 photos, and 2 were"):
        photo_landmarks(photos, [np.ones((478, 2))] * 2)
    with pytest.raises(InputError, match="No face was found in any photo"):
        photo_landmarks(photos, [np.full((478, 2), np.nan)] * 3)
    with pytest.raises(InputError, match="one for each of 3, got 2"):
        fit_image(pictures(), head(), landmarks=photographed()[0], intrinsics=np.ones((2, 4)), config=EXACT)
