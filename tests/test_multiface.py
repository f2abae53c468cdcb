"""Reading Multiface from its own layout, on a miniature written here in exactly that layout."""

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from facejax.cli import main
from facejax.data import multiface_survey
from facejax.data.captures import select
from facejax.data.goliath import goliath_light_codes, read_light_patterns
from facejax.data.multiface import (
    Choice,
    LensCamera,
    Multiface,
    coverage,
    display,
    distort,
    open_capture,
    pinhole,
    save_choice,
    to_linear,
    undistort_image,
)
from facejax.geometry.cameras import project, to_camera_frame
from facejax.geometry.errors import InputError
from facejax.geometry.records import Camera, Pose
from facejax.models.deep_appearance import DeepAppearanceConfig
from facejax.renderers.uv import rasterise_chart
from facejax.training import find_recipe, preset_of, train
from facejax.training.config import Machine, Run

SIDE, USED, VERTICES = 76, 76 * 76, 7306
SIZE = (512, 334)  # a quarter of the real pictures
NAMES = ("400013", "400016", "400030")
FRAMES = (("E001_Neutral_Eyes_Open", "000102"), ("E001_Neutral_Eyes_Open", "000105"), ("EXP_ROM07_Facial", "012003"))
DISTORTION = np.array([-0.3, 0.12, 0.004, -0.003, 0.05])
PERSON = "m--20180227--0000--6795937--GHS"
DOTS = [20 * SIDE + 25, 38 * SIDE + 38, 55 * SIDE + 50, 60 * SIDE + 24, 14 * SIDE + 52]


# -- the miniature -----------------------------------------------------------------------------------------------------


def _turn(axis: list[float], angle: float) -> np.ndarray:
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


WORLD = _turn([1, 2, -1], 1.1)  # the world of the calibration is turned against everything else
HEAD_PLACE = np.array([40.0, -200.0, 900.0])


def _surface(u: np.ndarray, v: np.ndarray, frame: int) -> np.ndarray:
    """Points in the head frame, mm: front of an ellipsoid, u to the subject's left, v up."""
    a, b = (u - 0.5) * 1.5 * np.pi, (v - 0.5) * 0.9 * np.pi
    bump = 1 + 0.03 * frame * np.exp(-20 * ((u - 0.5) ** 2 + (v - 0.3) ** 2))
    return np.stack([80 * np.sin(a) * np.cos(b), 110 * np.sin(b), 90 * np.cos(a) * np.cos(b) * bump], axis=-1)


def _colour(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Raw values, 0 to 1: neither left and right nor up and down look alike."""
    wave = [0.20 + 0.10 * np.sin(11 * u + 3 * v), 0.22 + 0.12 * np.sin(9 * v * v + 2 * u), 0.15 + 0.08 * u * v]
    return np.stack(wave, axis=-1)


def _grid() -> tuple[np.ndarray, np.ndarray]:
    v, u = np.meshgrid(np.linspace(0, 1, SIDE), np.linspace(0, 1, SIDE), indexing="ij")
    return u.ravel(), v.ravel()


def _faces() -> np.ndarray:
    i = (np.arange(SIDE - 1)[:, None] * SIDE + np.arange(SIDE - 1)).ravel()
    return np.concatenate([np.stack([i, i + 1, i + SIDE + 1], -1), np.stack([i, i + SIDE + 1, i + SIDE], -1)])


def _vertices(frame: int) -> np.ndarray:
    spare = np.random.default_rng(5).normal(size=(VERTICES - USED, 3)) * 5
    return np.concatenate([_surface(*_grid(), frame), spare]).astype(np.float32)


def _head(frame: int) -> np.ndarray:
    """Head to world, mm."""
    rotation = WORLD @ _turn([0.2, 1, 0.1], 0.12 * frame)
    return np.concatenate([rotation, (HEAD_PLACE + 4.0 * frame)[:, None]], axis=1)


def _camera(i: int) -> tuple[np.ndarray, np.ndarray]:
    """(K, [R | t]) of camera i, mm."""
    off = [_turn([0, 1, 0], 0.0), _turn([0, 1, 0], 0.6), _turn([1, 0.4, 0], -0.5)][i]
    from_head = np.diag([1.0, -1.0, -1.0]) @ off.T  # looks at the face from the front, then turned about it
    rotation = from_head @ WORLD.T
    translation = np.array([2.0, -3.0, 600.0 + 10 * i]) - rotation @ HEAD_PLACE
    matrix = np.array([[900.0 + i, 0.4, 165.3], [0, 905.0, 251.7 + i], [0, 0, 1]])
    return matrix, np.concatenate([rotation, translation[:, None]], axis=1)


def _lens(points: np.ndarray, matrix: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Pixels (first centre at 0, 0) of points in the camera's frame, spelt out apart from the code under test."""
    out = []
    for x, y in points[:, :2] / points[:, 2:]:
        r = np.hypot(x, y)
        grow = 1 + d[0] * r**2 + d[1] * r**4 + d[4] * r**6
        xd = x * grow + 2 * d[2] * x * y + d[3] * (r**2 + 2 * x**2)
        yd = y * grow + d[2] * (r**2 + 2 * y**2) + 2 * d[3] * x * y
        out.append(matrix @ [xd, yd, 1])
    return np.array(out)[:, :2]


def _in_picture(i: int, frame: int) -> np.ndarray:
    """Where the lens puts the vertices in picture i, pixels, the first pixel's corner at (0, 0)."""
    matrix, extrinsics = _camera(i)
    head = _head(frame)
    world = _vertices(frame)[:USED] @ head[:, :3].T + head[:, 3]
    return _lens(world @ extrinsics[:, :3].T + extrinsics[:, 3], matrix, DISTORTION) + 0.5


def _picture(i: int, frame: int) -> np.ndarray:
    """The face in its colours, as the lens shows it."""
    xy, faces, (u, v) = _in_picture(i, frame), _faces(), _grid()
    a, b, c = (xy[faces[:, k]] for k in range(3))
    front = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0] < 0
    triangle, weights = rasterise_chart(xy[faces[front]], max(SIZE))
    ids = faces[front][np.maximum(triangle, 0)]
    image = _colour(np.sum(u[ids] * weights, -1), np.sum(v[ids] * weights, -1)) * (triangle >= 0)[..., None]
    return np.round(255 * image[: SIZE[0], : SIZE[1]]).astype(np.uint8)


def _dots(i: int, frame: int) -> np.ndarray:
    """Dots at some vertices, on black."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    spots = [np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 1.5**2)) for x, y in _in_picture(i, frame)[DOTS]]
    return np.repeat(np.round(200 * np.maximum.reduce(spots)).astype(np.uint8)[..., None], 3, axis=-1)


def _texture(i: int, frame: int) -> np.ndarray:
    """As published: upright, v = 1 in the first row, zero where the camera does not see the face."""
    centres = (np.arange(1024) + 0.5) / 1024
    u, v = np.meshgrid(centres, 1 - centres)
    _, extrinsics = _camera(i)
    head = _head(frame)
    eye = (head[:, :3].T @ (-extrinsics[:, :3].T @ extrinsics[:, 3] - head[:, 3])).astype(np.float64)
    coarse_u, coarse_v = u[2::4, 2::4], v[2::4, 2::4]
    p, step = _surface(coarse_u, coarse_v, frame), 1e-3
    normal = np.cross(_surface(coarse_u + step, coarse_v, frame) - p, _surface(coarse_u, coarse_v + step, frame) - p)
    seen = np.kron(np.sum(normal * (eye - p), axis=-1) > 0, np.ones((4, 4)))[..., None]
    return np.round(255 * _colour(u, v) * seen).astype(np.uint8)


def _save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, compress_level=1)


def _write(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "frame_list.txt").write_text("".join(f"{s} {f}\n" for s, f in FRAMES))
    blocks = []
    for i, name in enumerate(NAMES):
        matrix, extrinsics = _camera(i)
        rows = [*matrix, DISTORTION, *extrinsics]
        blocks.append("\n".join([name, *(" ".join(f"{x:.9g}" for x in row) for row in rows), "", ""]))
    (folder / "KRT").write_text("".join(blocks))
    (u, v), faces = _grid(), _faces() + 1
    for number, (segment, frame) in enumerate(FRAMES):
        place = folder / "tracked_mesh" / segment
        place.mkdir(parents=True, exist_ok=True)
        _vertices(number).tofile(place / f"{frame}.bin")
        np.savetxt(place / f"{frame}_transform.txt", _head(number))
        lines = [f"v {x:.4f} {y:.4f} {z:.4f}" for x, y, z in _vertices(number)]
        lines += [f"vt {a:.6f} {b:.6f}" for a, b in zip(u, v, strict=True)]
        lines += [f"f {a}/{a} {b}/{b} {c}/{c}" for a, b, c in faces]
        (place / f"{frame}.obj").write_text("\n".join(lines) + "\n")
        for i, name in enumerate(NAMES):
            _save(folder / "images" / segment / name / f"{frame}.png", _picture(i, number))
            _save(folder / "unwrapped_uv_1024" / segment / name / f"{frame}.png", _texture(i, number))
    _save(folder / "tex_mean.png", _texture(0, 0))
    (folder / "tex_var.txt").write_text("650.25\n")
    _vertices(0).tofile(folder / "vert_mean.bin")
    (folder / "vert_var.txt").write_text("6.25\n")
    return folder


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("multiface") / PERSON)


@pytest.fixture(scope="module")
def dotted(person: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with dots in place of the face."""
    folder = shutil.copytree(person, tmp_path_factory.mktemp("dotted") / PERSON, copy_function=os.link)
    for number, (segment, frame) in enumerate(FRAMES):
        for i, name in enumerate(NAMES):
            path = folder / "images" / segment / name / f"{frame}.png"
            path.unlink()
            _save(path, _dots(i, number))
    return folder


@pytest.fixture
def copy(person: Path, tmp_path: Path) -> Path:
    """A copy to damage: files are linked, so write to a new name or through `_replace`."""
    return shutil.copytree(person, tmp_path / PERSON, copy_function=os.link)


def _replace(path: Path, content: bytes | str) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


# -- geometry ----------------------------------------------------------------------------------------------------------


def _peak(image: np.ndarray, near: np.ndarray, radius: float) -> np.ndarray:
    """Centroid (x, y) of what is bright around a place."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    bright = image.min(axis=-1) * (np.hypot(columns - near[0], rows - near[1]) < radius)
    assert bright.sum() > 0, f"no dot within {radius} pixels of {near}"
    return np.array([(columns * bright).sum(), (rows * bright).sum()]) / bright.sum()


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_vertices_project_to_where_their_dots_were_painted(dotted: Path, scale: float) -> None:
    capture = Multiface(dotted, texture_size=32, image_scale=scale)
    assert capture.image_size == (round(512 * scale), round(334 * scale))
    worst = worst_raw = 0.0
    for entry in range(3):
        for camera in range(3):
            view = capture.view(entry, camera)
            expected = np.asarray(project(to_camera_frame(jnp.asarray(view.vertices[DOTS]), view.pose), view.camera))
            for place in expected:
                worst = max(worst, float(np.linalg.norm(_peak(view.image, place, 6 * scale) - place)))
            raw = _in_picture(camera, entry)[DOTS] * scale
            worst_raw = max(worst_raw, float(np.linalg.norm(raw - expected, axis=1).max()))
    assert worst < 0.1
    assert worst_raw > 2 * scale  # the lens mattered: without straightening, dots lie elsewhere


def test_distortion_by_hand() -> None:
    radial = np.array([0.1, 0.2, 0, 0, 0.4])
    np.testing.assert_allclose(distort(np.array([0.5, 0.0]), radial), [0.5 * (1 + 0.025 + 0.0125 + 0.00625), 0])
    tangential = np.array([0, 0, 0.01, 0.02, 0])  # r^2 = 0.3125 at (0.5, 0.25)
    expected = [0.5 + 2 * 0.01 * 0.125 + 0.02 * (0.3125 + 0.5), 0.25 + 0.01 * (0.3125 + 0.125) + 2 * 0.02 * 0.125]
    np.testing.assert_allclose(distort(np.array([0.5, 0.25]), tangential), expected)


def _any_lens(skew: float) -> LensCamera:
    matrix = np.array([[300.0, skew, 101.2], [0, 310.0, 80.9], [0, 0, 1]])
    return LensCamera(matrix=matrix, distortion=DISTORTION, rotation=np.eye(3), translation=np.zeros(3))


def test_straightening_agrees_with_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    points = np.random.default_rng(0).uniform(-0.4, 0.4, (50, 2))
    flat = np.concatenate([points, np.ones((50, 1))], axis=1)
    expected, _ = cv2.projectPoints(flat, np.zeros(3), np.zeros(3), np.eye(3), DISTORTION)
    np.testing.assert_allclose(distort(points, DISTORTION), expected[:, 0], atol=1e-12)

    lens = _any_lens(0.0)
    image = cv2.GaussianBlur(np.random.default_rng(1).uniform(0, 1, (160, 200, 3)).astype(np.float32), (0, 0), 2)
    ours, inside = undistort_image(image, lens)
    theirs = cv2.undistort(image, lens.matrix, DISTORTION)
    core = (inside > 0)[8:-8, 8:-8]
    assert core.mean() > 0.95
    assert np.abs(ours - theirs)[8:-8, 8:-8][core].max() < 0.01  # OpenCV rounds places to 1/32 pixel


def test_straightening_without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(1).uniform(0, 1, (40, 50, 3)).astype(np.float32)
    image = np.repeat(np.repeat(image, 4, axis=0), 4, axis=1)
    lens = _any_lens(1.5)
    with_cv2, _ = undistort_image(image, lens)
    monkeypatch.setitem(sys.modules, "cv2", None)  # as if it were not installed
    without, inside = undistort_image(image, lens)
    assert np.abs(with_cv2 - without).max() < 0.05
    assert np.abs(with_cv2 - without).mean() < 0.002
    assert without[inside == 0].max(initial=0) == 0


def test_a_shrunk_picture_has_the_shrunk_camera() -> None:
    whole, half = pinhole(_any_lens(0.0)), pinhole(_any_lens(0.0), (0.5, 0.5))
    np.testing.assert_allclose(whole.principal_point, [101.7, 81.4], rtol=1e-6)  # OpenCV's origin is a pixel's centre
    np.testing.assert_allclose(half.principal_point, np.asarray(whole.principal_point) / 2)
    np.testing.assert_allclose(half.focal, [150, 155])


def test_frames_of_reference(person: Path) -> None:
    capture = Multiface(person, texture_size=16, image_scale=0.25)
    np.testing.assert_allclose(capture.cameras["rotation"][0], np.eye(3), atol=1e-6)  # camera 0 is the frontal one
    np.testing.assert_allclose(capture.cameras["translation"][0][:2], 0, atol=0.02)  # the origin is ahead of it
    for entry in range(3):
        views = [capture.view(entry, c) for c in range(3)]
        np.testing.assert_allclose(views[0].vertices, _vertices(entry) / 1000, rtol=1e-6)
        turned = _turn([0.2, 1, 0.1], 0.12 * entry)
        np.testing.assert_allclose(views[0].head.rotation, np.diag([1, -1, -1]) @ turned, atol=1e-5)
        for camera, view in enumerate(views):
            _, extrinsics = _camera(camera)
            head = _head(entry)
            np.testing.assert_allclose(view.pose.rotation, extrinsics[:, :3] @ head[:, :3], atol=1e-5)
            expected = (extrinsics[:, :3] @ head[:, 3] + extrinsics[:, 3]) / 1000
            np.testing.assert_allclose(view.pose.translation, expected, atol=1e-5)
    moved = np.asarray(capture.view(1, 0).head.translation) - np.asarray(capture.view(0, 0).head.translation)
    assert np.linalg.norm(moved) == pytest.approx(0.004 * 3**0.5, rel=1e-3)


def test_the_stage_does_not_depend_on_the_choice_of_cameras(person: Path) -> None:
    one = Multiface(person, cameras=["400030"], texture_size=16, image_scale=0.25)
    every = Multiface(person, texture_size=16, image_scale=0.25)
    np.testing.assert_array_equal(one.cameras["rotation"][0], every.cameras["rotation"][2])
    np.testing.assert_array_equal(one.cameras["translation"][0], every.cameras["translation"][2])


def test_masks_are_where_the_mesh_is_and_the_lens_sees(person: Path) -> None:
    capture = Multiface(person, texture_size=16, image_scale=1.0)
    view = capture.view(1, 1)
    shown = view.image.max(axis=-1) > 0.01
    drawn = view.mask > 0.5
    assert 0.1 < drawn.mean() < 0.9
    # the picture was drawn from front faces of an open shell, the mask covers its inside too
    assert (shown & ~drawn).sum() < 0.01 * drawn.sum()
    assert (drawn & ~shown).sum() < 0.02 * drawn.sum()
    _, inside = undistort_image(np.ones((*SIZE, 3), np.float32), _any_lens(0.0))
    assert inside.min() == 0  # there are pixels that the lens never saw


def test_coverage_is_a_share_of_the_pixel() -> None:
    square = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
    pose = Pose(rotation=jnp.eye(3), translation=jnp.array([0.0, 0.0, 1.0]))
    camera = Camera(focal=jnp.array([10.0, 20.0]), principal_point=jnp.array([3.5, 4.25]))
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    found = coverage(square, faces, pose, camera, (40, 30))  # it spans x 3.5 to 13.5 and y 4.25 to 24.25
    assert found.sum() == pytest.approx(200, rel=0.06)
    np.testing.assert_array_equal(found[6:23, 5:12], 1)
    np.testing.assert_allclose(found[10, 3], 0.5, atol=0.26)
    assert found[:, 15:].max() == found[:, :3].max() == found[26:].max() == 0
    behind = Pose(rotation=jnp.eye(3), translation=jnp.array([0.0, 0.0, -1.0]))
    assert coverage(square, faces, behind, camera, (40, 30)).max() == 0


# -- colour and textures -----------------------------------------------------------------------------------------------


def test_colour_is_the_viewers(person: Path) -> None:
    raw = np.random.default_rng(0).uniform(0, 1, (100, 3)).astype(np.float32)
    viewer = np.empty_like(raw)
    for k, gain in enumerate((1.4, 1.1, 1.6)):
        dark = np.clip(raw[:, k] * gain / 1.1 - 3 / 255, 0, 2)
        viewer[:, k] = np.clip((dark * 0.95 / (1 - 3 / 255)) ** (1 / 2.0) - 15 / 255, 0, 2)
    np.testing.assert_allclose(display(to_linear(raw)), viewer, atol=1e-6)
    assert to_linear(np.zeros(3)).max() == 0
    np.testing.assert_allclose(to_linear(np.full(3, 0.5)), 0.5 * np.array([1.4, 1.1, 1.6]) / 1.1 - 3 / 255, rtol=1e-6)
    view = Multiface(person, texture_size=64, image_scale=1.0).view(0, 0)
    assert view.image.dtype == view.texture.dtype == view.mean_texture.dtype == np.float32


def test_textures_are_upright_and_linear(person: Path) -> None:
    size = 64
    view = Multiface(person, texture_size=size, image_scale=0.25).view(0, 0)
    centres = (np.arange(size) + 0.5) / size
    u, v = np.meshgrid(centres, 1 - centres)  # row 0 is v = 1
    whole = view.seen == 1
    assert 0.3 < whole.mean() < 0.95
    np.testing.assert_allclose(view.texture[whole], to_linear(_colour(u, v))[whole], atol=0.005)
    assert np.abs(view.texture[::-1] - to_linear(_colour(u, v)))[whole & whole[::-1]].max() > 0.1
    assert (view.texture[view.seen == 0] == 0).all()


def test_texels_half_seen_keep_their_colour(copy: Path) -> None:
    path = copy / "unwrapped_uv_1024" / FRAMES[0][0] / NAMES[0] / f"{FRAMES[0][1]}.png"
    image = np.zeros((1024, 1024, 3), np.uint8)
    image[:, :8] = (100, 50, 200)  # half of each first texel of 64
    path.unlink()
    _save(path, image)
    view = Multiface(copy, texture_size=64, image_scale=0.25).view(0, 0)
    np.testing.assert_allclose(view.seen[:, 0], 0.5)
    np.testing.assert_allclose(
        view.texture[:, 0], np.tile(to_linear(np.array([100, 50, 200]) / 255), (64, 1)), rtol=1e-5
    )
    assert view.seen[:, 1:].max() == 0


def test_mean_textures_are_computed_or_taken(copy: Path) -> None:
    capture = Multiface(copy, texture_size=64, image_scale=0.25)
    views = [capture.view(0, c) for c in range(3)]
    weights = np.stack([v.seen for v in views])[..., None]
    expected = (np.stack([v.texture for v in views]) * weights).sum(0) / np.maximum(weights.sum(0), 1e-6)
    np.testing.assert_allclose(views[1].mean_texture, expected, atol=1e-6)
    fewer = Multiface(copy, cameras=NAMES[:1], texture_size=64, image_scale=0.25).view(0, 0)
    np.testing.assert_allclose(fewer.mean_texture, fewer.texture, atol=1e-6)  # over the chosen cameras

    assert multiface_survey.write_averages(capture) == 3
    assert multiface_survey.write_averages(capture) == 0
    kept = Multiface(copy, texture_size=64, image_scale=0.25).view(0, 0).mean_texture
    np.testing.assert_allclose(kept, expected, atol=0.02)
    assert np.abs(kept - expected).mean() < 0.002
    average = copy / "unwrapped_uv_1024" / FRAMES[0][0] / "average" / f"{FRAMES[0][1]}.png"
    average.unlink()
    _save(average, np.full((1024, 1024, 3), 80, np.uint8))
    taken = Multiface(copy, texture_size=64, image_scale=0.25).view(0, 0).mean_texture
    np.testing.assert_allclose(taken, np.broadcast_to(to_linear(np.full(3, 80 / 255)), taken.shape), rtol=1e-5)


def test_statistics(person: Path) -> None:
    found = Multiface(person, texture_size=32, image_scale=0.25).statistics
    np.testing.assert_allclose(found.vertices, _vertices(0) / 1000, rtol=1e-6)
    assert found.vertices_deviation == pytest.approx(0.0025)  # 6.25 mm^2
    np.testing.assert_allclose(found.texture_deviation, 0.1 * np.array([1.4, 1.1, 1.6]) / 1.1, rtol=1e-5)
    assert found.texture.shape == (32, 32, 3)


# -- the capture -------------------------------------------------------------------------------------------------------


def test_its_entries_and_mesh_are_those_of_the_folder(person: Path) -> None:
    capture = Multiface(person, texture_size=32, image_scale=0.25)
    assert (capture.groups, capture.n_cameras, len(capture.entries)) == (0, 3, 3)
    assert [e.split for e in capture.entries] == ["train", "train", "test"]
    assert select(capture, "train", fully_lit=True) == [0, 1]
    assert all(e.tracked and e.fully_lit and (person / e.file).is_file() for e in capture.entries)
    assert len({e.expression for e in capture.entries}) == 3
    topology = capture.topology
    assert topology.n_vertices == VERTICES
    assert topology.faces.max() < USED  # vertices in no triangle are kept
    assert topology.uv.shape == (USED, 2)


def test_segments_cameras_and_topology_can_be_chosen(person: Path, tmp_path: Path) -> None:
    obj = tmp_path / "mesh.obj"
    shutil.copy(next(person.glob("tracked_mesh/*/*.obj")), obj)
    capture = Multiface(
        person, segments=[FRAMES[2][0]], cameras=["400030", "400013"], texture_size=16, image_scale=0.25,
        topology=obj, test_segments=["E001"],
    )  # fmt: skip
    assert [e.split for e in capture.entries] == ["train"]
    assert capture.camera_names == ("400030", "400013")
    assert Multiface(person, cameras=1, image_scale=0.25).camera_names == ("400013",)  # the frontal one
    assert Multiface(person, cameras=2, image_scale=0.25).camera_names[0] == "400013"


def test_a_choice_is_kept_beside_the_data(copy: Path, tmp_path: Path) -> None:
    choice = Choice(segments=(FRAMES[0][0],), cameras=2, texture_size=32, image_scale=0.25)
    assert save_choice(copy, choice).is_file()
    capture = open_capture(copy)
    assert isinstance(capture, Multiface)
    assert (capture.n_cameras, capture.texture_size, len(capture.entries)) == (2, 32, 2)
    assert Multiface(copy, cameras=NAMES, texture_size=64).n_cameras == 3  # what is given goes before what is kept
    assert Multiface(copy, choice=Choice()).image_size == SIZE
    _replace(copy / "facejax.json", '{"format": "facejax-multiface", "texture_size": "big"}')
    with pytest.raises(InputError, match="texture_size is 'big'"):
        open_capture(copy)
    (copy / "facejax.json").unlink()
    assert Multiface(copy, texture_size=256).image_size == (128, 84)  # as fine as the textures
    with pytest.raises(InputError, match="names no segment"):
        save_choice(copy, dataclasses.replace(choice, segments=("E099",)))
    _replace(copy / "facejax.json", '{"format": "facejax-multiface", "size": 3}')
    with pytest.raises(InputError, match="save the choice again"):
        open_capture(copy)
    with pytest.raises(InputError, match="no capture"):
        open_capture(tmp_path)


# -- bad input ---------------------------------------------------------------------------------------------------------

SEGMENT, FRAME = FRAMES[0]
KRT_LINES = 9  # of a camera, with the blank one


def _krt_line(folder: Path, number: int, text: str) -> None:
    lines = (folder / "KRT").read_text().splitlines()
    lines[number] = text
    _replace(folder / "KRT", "\n".join(lines) + "\n")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no KRT": (lambda f: (f / "KRT").unlink(), "metadata.tar"),
    "KRT cut short": (lambda f: _replace(f / "KRT", (f / "KRT").read_text()[:400]), "KRT"),
    "KRT of words": (lambda f: _krt_line(f, 2, "a b c"), "KRT, line 3, must be 3 finite numbers, not 'a b c'"),
    "KRT of NaN": (lambda f: _krt_line(f, 4, "nan 0 0 0 0"), "line 5, must be 5 finite numbers"),
    "KRT without focal": (lambda f: _krt_line(f, 1, "-900 0 165"), "positive focal lengths"),
    "KRT without rotation": (lambda f: _krt_line(f, 5, "9 0 0 0"), "rotation of camera 400013"),
    "camera twice": (lambda f: _krt_line(f, KRT_LINES, "400013"), "camera 400013 twice"),
    "camera outside": (lambda f: _krt_line(f, 0, "../../etc"), "no plain file name"),
    "pictures without KRT": (lambda f: (f / "images" / SEGMENT / "400099").mkdir(), "Camera 400099 took pictures"),
    "no pictures": (lambda f: shutil.rmtree(f / "images"), "has no pictures of the chosen segments"),
    "no frame list": (lambda f: (f / "frame_list.txt").unlink(), "no frame_list.txt"),
    "empty frame list": (lambda f: _replace(f / "frame_list.txt", "\n"), "lists no frames"),
    "odd frame list": (lambda f: _replace(f / "frame_list.txt", f"{SEGMENT}\n"), "line 1, must be a segment"),
    "binary frame list": (lambda f: _replace(f / "frame_list.txt", b"\xff\xfe\x00"), "cannot be read as text"),
    "segment outside": (lambda f: _replace(f / "frame_list.txt", "../secret 000102\n"), "no plain file name"),
    "frame outside": (lambda f: _replace(f / "frame_list.txt", f"{SEGMENT} ../000102\n"), "a frame number"),
    "absent segment": (
        lambda f: _replace(f / "frame_list.txt", f"{SEGMENT} {FRAME}\nE099_Nothing 000007\n"),
        "1 of 2 segments that frame_list.txt names are not in .* E099_Nothing",
    ),
    "absent frame": (
        lambda f: _replace(f / "frame_list.txt", f"{SEGMENT} {FRAME}\n{SEGMENT} 000999\n"),
        "8 files of 1 frame are missing from .*, the first is the head pose",
    ),
    "no mesh": (lambda f: (f / "tracked_mesh" / SEGMENT / f"{FRAME}.bin").unlink(), f"mesh tracked_mesh/.*{FRAME}.bin"),
    "no transform": (
        lambda f: (f / "tracked_mesh" / SEGMENT / f"{FRAME}_transform.txt").unlink(), "the head pose tracked_mesh",
    ),
    "no picture": (
        lambda f: (f / "images" / SEGMENT / NAMES[1] / f"{FRAME}.png").unlink(), "1 file of 1 frame .* picture images",
    ),
    "no camera": (lambda f: shutil.rmtree(f / "images" / SEGMENT / NAMES[1]), "2 files of 2 frames .* the picture"),
    "no texture": (
        lambda f: (f / "unwrapped_uv_1024" / SEGMENT / NAMES[1] / f"{FRAME}.png").unlink(), "the texture unwrapped",
    ),
    "mesh cut short": (
        lambda f: _replace(f / "tracked_mesh" / SEGMENT / f"{FRAME}.bin", b"\0" * 1001), "7306 x 3 .* 1001 bytes",
    ),
    "mesh not finite": (
        lambda f: _replace(f / "tracked_mesh" / SEGMENT / f"{FRAME}.bin", b"\xff" * 12 * VERTICES),
        "not finite",
    ),
    "odd transform": (
        lambda f: _replace(f / "tracked_mesh" / SEGMENT / f"{FRAME}_transform.txt", "1 0 0 0\n"), "3 rows of 4 numbers",
    ),
    "transform that scales": (
        lambda f: _replace(f / "tracked_mesh" / SEGMENT / f"{FRAME}_transform.txt", "2 0 0 0\n0 2 0 0\n0 0 2 0\n"),
        "rotation of the head",
    ),
    "texture of another size": (
        lambda f: _replace_image(f / "unwrapped_uv_1024" / SEGMENT / NAMES[0] / f"{FRAME}.png", (512, 512)),
        "must be 1024 x 1024 texels, and it is 512 x 512",
    ),
    "picture of another size": (
        lambda f: _replace_image(f / "images" / SEGMENT / NAMES[1] / f"{FRAME}.png", (100, 80)), "several sizes",
    ),
    "picture cut short": (
        lambda f: _replace(f / "images" / SEGMENT / NAMES[0] / f"{FRAME}.png", b"\x89PNG\r\n\x1a\n"),
        "could not be read",
    ),
    "no obj": (lambda f: [p.unlink() for p in f.glob("tracked_mesh/*/*.obj")], "holds no .obj"),
    "odd obj": (
        lambda f: _replace(f / "tracked_mesh" / SEGMENT / f"{FRAME}.obj", "v 0 0 0\nvt 0 0\nf 1/1 2/1 3/1"), "corners",
    ),
    "obj without uv": (
        lambda f: _replace(f / "tracked_mesh" / SEGMENT / f"{FRAME}.obj", "v 0 0 0\nf 1 1 1\n"), "no texture coord",
    ),
    "no statistics": (lambda f: (f / "tex_var.txt").unlink(), "lacks tex_var.txt"),
    "odd statistics": (lambda f: _replace(f / "vert_var.txt", "-1"), "must be positive"),
}  # fmt: skip


def _replace_image(path: Path, size: tuple[int, int]) -> None:
    path.unlink()
    _save(path, np.full((*size, 3), 9, np.uint8))


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_told_in_one_sentence(copy: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    damage(copy)
    with pytest.raises(InputError, match=message) as caught:  # noqa: PT012 - where it shows depends on the kind
        capture = Multiface(copy, texture_size=16, image_scale=0.25)
        _ = capture.statistics
        capture.view(0, 0), capture.view(0, 1)
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segments": ["E099"]}, "names no segment 'E099'"),
        ({"segments": []}, "names none"),
        ({"cameras": ["1"]}, "calibrates no camera '1'"),
        ({"cameras": 4}, "3 cameras in .* so 4 cannot"),
        ({"texture_size": 2048}, "between 1 and 1024"),
        ({"image_scale": 1.5}, "at most 1"),
    ],
)
def test_choices_that_do_not_fit_are_refused(person: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Multiface(person, **options)


def test_krt_may_calibrate_cameras_that_took_no_pictures(copy: Path) -> None:
    for path in copy.glob("images/*/400016"):
        shutil.rmtree(path)
    assert Multiface(copy, texture_size=16).camera_names == ("400013", "400030")
    with pytest.raises(InputError, match="picture images"):
        Multiface(copy, cameras=["400016"], texture_size=16)


def test_incomplete_frames_can_be_left_out(copy: Path) -> None:
    (copy / "images" / SEGMENT / NAMES[1] / f"{FRAME}.png").unlink()
    capture = Multiface(copy, texture_size=16, image_scale=0.25, incomplete="skip")
    assert (len(capture.entries), capture.skipped) == (2, 1)
    assert len(Multiface(copy, cameras=NAMES[::2], image_scale=0.25).entries) == 3  # only that camera lacked it


# -- surveys, plans, commands ------------------------------------------------------------------------------------------


def test_survey_tells_that_everything_fits_together(person: Path) -> None:
    found = multiface_survey.survey(person)
    assert (found.person, found.cameras, found.segments) == ("6795937", 3, {FRAMES[0][0]: 2, FRAMES[2][0]: 1})
    assert not found.missing.files
    assert found.agreement is not None
    upright, upside_down = found.agreement
    assert upright > 0.95
    assert upside_down < 0.7


def test_the_command_surveys_and_plans(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "multiface", str(copy.parent)]) == 0
    text = capsys.readouterr().out
    assert "6795937" in text
    assert "3 cameras" in text
    assert main(["data", "multiface", str(copy), "--save", "--texture-size", "32", "--cameras", "2"]) == 0
    assert json.loads((copy / "facejax.json").read_text())["cameras"] == 2
    (copy / "images" / SEGMENT / NAMES[1] / f"{FRAME}.png").unlink()
    capsys.readouterr()
    assert main(["data", "multiface", str(copy)]) == 1
    assert f"images/{SEGMENT}/{NAMES[1]}/{FRAME}.png" in capsys.readouterr().out
    assert main(["data", "multiface", str(copy.parent / "nothing")]) == 2
    assert main(["data", "multiface", "--plan", "--subjects", "6795937", "--cameras", "8", "--expressions", "10"]) == 0
    assert "8 of 39 cameras" in capsys.readouterr().out
    assert main(["data", "multiface"]) == 2


def test_plans_add_up_to_what_is_published() -> None:
    every = multiface_survey.estimate()
    assert len(every) == 13
    assert sum(s.images for s in every) == pytest.approx(49_300)
    assert sum(s.textures for s in every) == pytest.approx(13_284)
    assert sum(s.meshes for s in every) == pytest.approx(401)
    (whole,) = multiface_survey.estimate(["6795937"])
    (part,) = multiface_survey.estimate(["6795937"], cameras=13, expressions=11)
    assert part.images == pytest.approx(whole.images / 33)  # a third of the cameras, an eleventh of the segments
    assert part.meshes == pytest.approx(whole.meshes / 11)  # which all cameras share
    (more,) = multiface_survey.estimate(["6795937"], cameras=1000)
    assert more.total == whole.total
    for wrong in ({"subjects": ["42"]}, {"cameras": 0}, {"expressions": -1}):
        with pytest.raises(InputError):
            multiface_survey.estimate(**wrong)


# -- Goliath's lights --------------------------------------------------------------------------------------------------


@pytest.fixture
def goliath(tmp_path: Path) -> Path:
    lights = tmp_path / "lights"
    lights.mkdir()
    full = [[i, 5555] for i in range(20)]
    partial = [
        [[i, 5555] for i in range(0, 5)],
        [[i, 2777.5] for i in range(7, 12)],
        [[i, 5555] for i in range(4, -1, -1)],
    ]
    patterns = [{"light_index_durations": p} for p in [full, *partial, []]]
    positions = np.random.default_rng(0).normal(size=(20, 3)) * 1000
    metadata = {"light_positions": positions.tolist(), "light_patterns": patterns}
    (lights / "light_pattern_metadata.json").write_text(json.dumps(metadata))
    (lights / "light_pattern_per_frame.json").write_text(
        json.dumps([[10, 0], [11, 1], [12, 2], [13, 0], [14, 3], [15, 4]])
    )
    return tmp_path


def test_light_codes(goliath: Path) -> None:
    held = read_light_patterns(goliath)
    assert held.groups == (tuple(range(5)), tuple(range(7, 12)))  # pattern 3 is pattern 1 in another order
    assert np.linalg.norm(held.positions, axis=1).max() < 5  # metres
    codes = goliath_light_codes(goliath, [10, 11, 12, 14, 15])
    assert codes.shape == (5, 2, 3)
    np.testing.assert_allclose(codes[..., 0], [[1, 1], [1, 0], [0, 0.5], [1, 0], [0, 0]])
    np.testing.assert_array_equal(codes[..., 0], codes[..., 2])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata", None, "is missing"),
        ("metadata", "{", "is not JSON"),
        ("metadata", "{}", "must have light_positions"),
        ("metadata", '{"light_positions": [[0,0,0]], "light_patterns": []}', "begin with the fully lit one"),
        ("per_frame", "[[11, 77]]", "do not belong together"),
        ("per_frame", "[[12, 0]]", "Frame 11 has no light pattern"),
    ],
)
def test_damaged_light_patterns(goliath: Path, name: str, text: str | None, message: str) -> None:
    path = goliath / "lights" / f"light_pattern_{name}.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        goliath_light_codes(goliath, [11])


# -- training ----------------------------------------------------------------------------------------------------------


def test_the_same_recipe_trains_on_it(person: Path, tmp_path: Path) -> None:
    kind = find_recipe("deep-appearance")
    config = preset_of(kind, "small").config
    network = DeepAppearanceConfig(
        n_vertices=VERTICES, texture_size=32, code=4, features=8, encoder_channels=(4, 4, 4), decoder_channels=(4,),
        n_cameras=3,
    )  # fmt: skip
    told = dataclasses.replace(
        config,
        network=network,
        run=Run(steps=2, batch=2),
        machine=Machine(eval_every=0, save_every=1000, log_every=1, tensorboard="off"),
    )
    outcome = train(kind(told), person, tmp_path / "run")
    assert outcome.finished
    assert outcome.step == 2
    # the test segment's mesh differs from the training mean by millimetres, not by metres or kilometres
    assert 0 < outcome.scores["mean mesh (mm)"] < 20
    assert np.isfinite(list(outcome.scores.values())).all()
