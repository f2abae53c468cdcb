"""Overlay, preview and renders show the head where it is, in the right colours, and say where tracking failed."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation
from toy_head import toy_result

from facejax.apps import pictures
from facejax.apps.pictures import (
    PANELS,
    Window,
    face_window,
    overlay_video,
    preview_frames,
    preview_png,
    render_frames,
    write_renders,
)
from facejax.data.video import open_video
from facejax.geometry.cameras import project
from facejax.geometry.errors import InputError

SIZE = (96, 128)  # height, width: small pictures of the toy's 640 x 480 camera


def but(result, **changes):
    """A copy with other values, which shares what was compiled for its mesh."""
    copy = dataclasses.replace(result, **changes)
    copy.__dict__["topology"] = result.topology
    return copy


def seen_by(result, k, size):
    """With another camera in all frames."""
    k, size, n = np.asarray(k, np.float32), np.array(size, np.int32), len(result)
    every = {"frame_intrinsics": np.tile(k, (n, 1, 1)), "frame_size": np.tile(size, (n, 1))}
    return but(result, intrinsics=k, image_size=size, **every)


def shrink(result, scale=0.2):
    return seen_by(result, result.intrinsics * np.array([[scale], [scale], [1]], np.float32), SIZE[::-1])


def pick(result, frames):
    cut = {
        f.name: getattr(result, f.name)[frames]
        for f in dataclasses.fields(result)
        if getattr(f.type, "dim_str", "").split()[:1] == ["f"]
    }
    codes = {name: a[frames] if name.startswith("code.frame") else a for name, a in result.codes.items()}
    return but(result, **cut, codes=codes)


@pytest.fixture(scope="module")
def result():
    return shrink(toy_result(n_frames=4))


@pytest.fixture(scope="module")
def failed(result):
    """The same, its frame 2 lost."""
    valid = np.array([True, True, False, True])
    lost = np.where(valid[:, None], result.translation, np.nan).astype(np.float32)
    return but(result, valid=valid, status=(~valid).astype(np.int32), translation=lost)


def stripes(n):
    """Frames that tell themselves apart by their grey."""
    for k in range(n):
        yield np.full((*SIZE, 3), 60 + 40 * k, np.uint8)


def pixels_of(result, k):
    return np.asarray(project(jnp.asarray(result.vertices_at(k)), result.camera))


def test_the_window_holds_the_head_and_is_the_whole_image_when_the_head_is_large(result):
    window = face_window(result)
    for k in range(len(result)):
        xy = pixels_of(result, k)
        assert np.all(xy >= [window.left, window.top])
        assert np.all(xy <= [window.left + window.width, window.top + window.height])
    near = but(result, translation=result.translation * np.float32(0.5))
    assert face_window(near) == Window(left=0, top=0, width=128, height=96, size=(96, 128))
    assert face_window(result, whole=True).width == 128
    far = seen_by(result, [[900, 0, 3900], [0, 900, 1000], [0, 0, 1]], [7680, 4320])
    window = face_window(far, max_height=200)
    assert window.width < 1000
    assert 3900 - 1000 < window.left < 3900
    assert window.size[0] <= 200
    assert window.size[1] <= 400
    assert window.size[0] % 2 == window.size[1] % 2 == 0


def test_the_overlay_shows_panels_side_by_side_and_says_what_failed(failed, tmp_path):
    seen = []
    overlay_video(
        tmp_path / "o.mp4",
        stripes(4),
        failed,
        window=face_window(failed, whole=True),
        progress=lambda stage, done, total: seen.append((stage, done, total)),
    )
    assert seen == [("overlay", k, 4) for k in (1, 2, 3, 4)]
    video = open_video(tmp_path / "o.mp4")
    assert video.size == (4 * 128, 96)
    np.testing.assert_allclose(video.time, failed.time, atol=1e-3)
    rows = np.stack(list(video.frames())).astype(int)
    for k in range(4):
        panels = np.split(rows[k], 4, axis=1)
        clear = panels[0][20:70, 60:]  # away from label and caption
        assert np.abs(clear - (60 + 40 * k)).max() < 12
        overlay_differs = np.abs(panels[1] - panels[0])[20:70].max() > 40
        render_shows = panels[2][20:70].max() > 60
        assert overlay_differs == render_shows == failed.valid[k]
    centre = np.split(rows[0], 4, axis=1)[3][tuple(pixels_of(failed, 0).mean(0).astype(int)[::-1])]
    assert centre[2] > 200  # a normal towards the viewer is blue


def test_outlines_are_drawn_where_the_landmarks_are():
    landmarks = np.full((478, 2), 500.0)
    landmarks[list(pictures.LIPS_OUTER)] = [110.0, 60.0]
    window = Window(left=100, top=50, width=40, height=20, size=(40, 80))  # twice as large
    drawn = pictures._with_lines(np.zeros((40, 80, 3), np.uint8), landmarks, window)
    rows, columns = np.nonzero(drawn.any(-1))
    assert abs(rows.mean() + 0.5 - 20) <= 1
    assert abs(columns.mean() + 0.5 - 20) <= 1


def test_panels_can_be_chosen_and_misfitting_input_leaves_no_file(result, tmp_path):
    overlay_video(tmp_path / "one.mp4", stripes(4), result, panels=("overlay",), window=Window(0, 0, 128, 96, SIZE))
    assert open_video(tmp_path / "one.mp4").size == (128, 96)
    with pytest.raises(InputError, match="Unknown panel 'depth'"):
        overlay_video(tmp_path / "a.mp4", stripes(4), result, panels=("input", "depth"))
    with pytest.raises(InputError, match="ended after 3 frames"):
        overlay_video(tmp_path / "a.mp4", stripes(3), result, window=Window(0, 0, 128, 96, SIZE))
    with pytest.raises(InputError, match="128 x 96 pixels"):
        overlay_video(tmp_path / "a.mp4", (f[:50] for f in stripes(4)), result, window=Window(0, 0, 128, 96, SIZE))
    assert [p.name for p in tmp_path.iterdir()] == ["one.mp4"]


def test_one_frame_is_a_video_too(result, tmp_path):
    overlay_video(tmp_path / "o.mp4", stripes(1), pick(result, slice(0, 1)), window=Window(0, 0, 128, 96, SIZE))
    assert open_video(tmp_path / "o.mp4").n_frames == 1


def test_the_preview_shows_valid_frames(failed, tmp_path):
    np.testing.assert_array_equal(preview_frames(failed), [0, 1, 3])
    np.testing.assert_array_equal(preview_frames(but(failed, valid=np.zeros(4, bool)), 2), [0, 2])
    picks = preview_frames(failed)
    frames = list(stripes(4))
    window = face_window(failed, whole=True)
    preview_png(tmp_path / "p.png", (frames[k] for k in picks), failed, picks, window=window)
    sheet = np.asarray(Image.open(tmp_path / "p.png"))
    assert sheet.shape == (3 * 96 + 128, len(PANELS) * 128, 3)
    assert sheet[2 * 96 + 40, 100, 0] == 60 + 40 * 3  # the third row is frame 3
    ball = sheet[3 * 96 :, 256:384]
    np.testing.assert_array_equal(ball[64, 64], [255, 255, 255])  # even white light


def test_renders_are_straight_alpha_at_the_videos_size(failed, tmp_path):
    plain = but(
        failed,
        albedo=np.full_like(failed.albedo, 0.5),
        texture=np.ones_like(failed.texture),
        specular=np.zeros_like(failed.specular),
    )
    write_renders(tmp_path / "renders", plain)
    names = sorted(p.name for p in (tmp_path / "renders").iterdir())
    assert names == ["00000.png", "00001.png", "00002.png", "00003.png"]
    images = [np.asarray(Image.open(tmp_path / "renders" / name)) for name in names]
    for k, image in enumerate(images):
        assert image.shape == (*SIZE, 4)
        alpha = image[..., 3]
        if not failed.valid[k]:
            assert alpha.max() == 0
            continue
        # even white light of radiance 1 on albedo 0.5: sRGB 188 wherever the head is seen, its soft rim included
        assert np.abs(image[alpha > 30][:, :3].astype(int) - 188).max() <= 2
        assert ((alpha > 20) & (alpha < 235)).any()
        x, y = np.floor(pixels_of(failed, k)).astype(int).T
        hull = np.zeros(SIZE, bool)
        hull[y, x] = True
        assert not (hull & ~binary_dilation(alpha > 0)).any()
        assert (binary_dilation(hull, iterations=6) | (alpha == 0)).all()


def test_tiles_make_the_same_picture(result, monkeypatch):
    two = pick(result, slice(0, 2))
    whole = np.stack(list(render_frames(two)))
    monkeypatch.setattr(pictures, "_TILE", 60)
    tiled = np.stack(list(render_frames(two)))
    close = np.abs(whole.astype(int) - tiled.astype(int)).max(-1) <= 2
    assert close.mean() > 0.9995
    assert whole[..., 3].max() == 255
