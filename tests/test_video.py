"""Clips are read as a person sees them (upright, in time, in the right colours), and what cannot be used is refused."""

import dataclasses
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from facejax.data import video as video_module
from facejax.data.video import MIN_SIDE, load_masks, natural_key, open_video, scaled_size, write_video
from facejax.geometry.errors import InputError

WIDTH, HEIGHT = 96, 64


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A frame that tells its number (a grey level) and its orientation (red top left, green top right)."""
    frame = np.full((height, width, 3), 40 + 5 * (number % 40), np.uint8)
    frame[: height // 4, : width // 4] = (220, 30, 30)
    frame[: height // 4, -width // 4 :] = (30, 200, 30)
    return frame


def number_of(frame: np.ndarray) -> int:
    height, width = frame.shape[:2]
    return round((float(frame[height // 2 + 4 :, width // 3 : -width // 3].mean()) - 40) / 5)


def encode(
    path: Path,
    count: int = 12,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times_ms: list[int] | None = None,
    gop: int = 5,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    audio: str | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Path:
    """A clip of `picture`s, 25 per second unless `times_ms` says otherwise; `audio` adds a tone in that codec."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.options = options if options is not None else ({"crf": "10"} if codec == "libx264" else {})
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream(audio, rate=44100, layout="mono") if audio else None
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24").reformat(format=pix_fmt)
            frame.pts = times_ms[i] if times_ms else 40 * i
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            samples = np.arange(int(44100 * count / 25))
            tone = (0.5 * np.sin(2 * np.pi * 440 * samples / 44100) * 32767).astype(np.int16)
            for start in range(0, len(tone), 1024):
                block = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="s16", layout="mono")
                block.sample_rate, block.pts, block.time_base = 44100, start, Fraction(1, 44100)
                container.mux(sound.encode(block))
            container.mux(sound.encode(None))
    return path


def corner_colours(frame: np.ndarray) -> dict[str, str]:
    height, width = frame.shape[:2]
    names = {}
    for name, y, x in (("tl", 5, 5), ("tr", 5, width - 6), ("bl", height - 6, 5), ("br", height - 6, width - 6)):
        r, g, _ = (int(v) for v in frame[y, x])
        names[name] = "red" if r > g + 60 else "green" if g > r + 60 else "grey"
    return names


def test_frames_times_and_random_access_agree(tmp_path):
    clip = open_video(encode(tmp_path / "a.mp4"))
    assert (clip.n_frames, clip.size, clip.has_audio, clip.damaged) == (12, (WIDTH, HEIGHT), False, ())
    assert clip.fps == pytest.approx(25.0)
    np.testing.assert_allclose(clip.time, np.arange(12) / 25, atol=1e-6)
    frames = list(clip.frames())
    assert [number_of(f) for f in frames] == list(range(12))
    np.testing.assert_array_equal(clip.read([11, 0, 6, 6]), np.stack([frames[i] for i in (11, 0, 6, 6)]))
    np.testing.assert_array_equal(next(clip.frames(7, 8)), frames[7])  # by a seek to the key frame before it


@pytest.mark.parametrize("name", ["Meeting-12:30.mp4", "concat:a|b.mp4", "data:x.mp4", "100%25 %03d?x#y.mp4"])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_name_is_no_address(tmp_path, monkeypatch, name, absolute):
    """FFmpeg takes what stands before a colon for a protocol."""
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "plain.mp4", audio="aac").rename(tmp_path / name)
    source = tmp_path / name if absolute else Path(name)
    video = open_video(source)
    assert [number_of(f) for f in video.read([0, 7])] == [0, 7]
    written = source.with_name(f"o:{name}")
    assert write_video(written, video.frames(), video.fps, audio_from=source) == ()
    assert open_video(written).n_frames == video.n_frames
    assert open_video(written).has_audio


def test_streaming_does_not_decode_ahead_of_what_is_taken(tmp_path, monkeypatch):
    clip = open_video(encode(tmp_path / "a.mp4", 40))
    converted = []
    original = video_module._to_rgb
    monkeypatch.setattr(video_module, "_to_rgb", lambda *a: converted.append(1) or original(*a))
    stream = clip.frames()
    for _ in range(3):
        next(stream)
    assert len(converted) == 3
    converted.clear()
    clip.read([2, 37])
    assert len(converted) == 2


def test_a_range_of_frames_counts_from_its_first(tmp_path):
    clip = open_video(encode(tmp_path / "a.mp4"), (3, 9))
    assert (clip.n_frames, clip.first, clip.source_frames) == (6, 3, 12)
    assert [number_of(f) for f in clip.frames()] == [3, 4, 5, 6, 7, 8]
    assert number_of(clip.read([2])[0]) == 5
    np.testing.assert_allclose(clip.time[0], 3 / 25, atol=1e-6)
    assert open_video(clip.path, (None, 4)).n_frames == 4
    assert open_video(clip.path, (10, None)).n_frames == 2


@pytest.mark.parametrize("frames", [(0, 13), (12, None), (5, 5), (-3, 4), (7, 2)])
def test_a_range_outside_the_clip_is_refused_with_the_count(tmp_path, frames):
    with pytest.raises(InputError, match="12 frames"):
        open_video(encode(tmp_path / "a.mp4"), frames)


def test_methods_refuse_frames_that_are_not_there(tmp_path):
    clip = open_video(encode(tmp_path / "a.mp4", 4))
    for ask in (lambda: clip.frames(2, 9), lambda: clip.read([4]), lambda: clip.read([])):
        with pytest.raises(InputError):
            ask()


# PyAV's angle is counterclockwise: red (top left) goes to the bottom left at 90.
@pytest.mark.parametrize(
    ("rotation", "red", "green"), [(0, "tl", "tr"), (90, "bl", "tl"), (180, "br", "bl"), (-90, "tr", "br")]
)
@pytest.mark.parametrize("max_side", [None, 48])
def test_phone_rotation_is_applied(tmp_path, rotation, red, green, max_side):
    clip = open_video(encode(tmp_path / "a.mp4", 3, rotation=rotation), max_side=max_side)
    upright = (WIDTH, HEIGHT) if rotation in (0, 180) else (HEIGHT, WIDTH)
    assert clip.size == upright
    frame = next(clip.frames())
    assert frame.shape == (clip.frame_size[1], clip.frame_size[0], 3)
    assert frame.flags.c_contiguous
    colours = corner_colours(frame)
    assert (colours[red], colours[green]) == ("red", "green")
    assert any("orientation" in note for note in clip.notes) == bool(rotation)


def test_the_display_matrix_convention_is_that_of_iso_14496(tmp_path):
    # A phone held upright writes {0, 1, 0, -1, 0, 0}: x' = -y, y' = x, that is a quarter turn clockwise.
    @dataclasses.dataclass
    class Frame:
        side_data: dict

    from av.sidedata.sidedata import Type

    matrix = (np.asarray([0, 1, 0, -1, 0, 0, 0, 0, 16384]) * 65536).astype("=i4")
    orientation = video_module._orientation(Frame({Type.DISPLAYMATRIX: matrix.tobytes()}))
    turned = video_module._orient(picture(0), orientation)
    np.testing.assert_array_equal(turned, np.rot90(picture(0), -1))
    mirror = (np.asarray([-1, 0, 0, 0, 1, 0, 0, 0, 16384]) * 65536).astype("=i4")
    orientation = video_module._orientation(Frame({Type.DISPLAYMATRIX: mirror.tobytes()}))
    np.testing.assert_array_equal(video_module._orient(picture(0), orientation), picture(0)[:, ::-1])


def test_variable_frame_rate_keeps_its_timestamps(tmp_path):
    times = [0, 33, 66, 200, 233, 700, 733, 766]
    clip = open_video(encode(tmp_path / "a.mp4", 8, times_ms=times))
    np.testing.assert_allclose(clip.time, np.asarray(times) / 1e3, atol=1e-3)
    assert (np.diff(clip.time) > 0).all()
    assert clip.fps == pytest.approx(1 / 0.033, rel=0.05)
    assert any("variable frame rate" in note for note in clip.notes)
    assert [number_of(f) for f in clip.frames()] == list(range(8))


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [
        ("libx264", "yuv420p10le", ".mp4"),
        ("libx264", "yuv444p", ".mkv"),
        ("ffv1", "gray", ".mkv"),
        ("ffv1", "bgra", ".mkv"),
        ("ffv1", "gray16le", ".mkv"),
        ("mpeg4", "yuv420p", ".avi"),
        ("libx264", "yuv420p", ".avi"),
        ("mjpeg", "yuvj420p", ".mov"),
        ("png", "rgba", ".mov"),
        ("libx264", "yuv420p", ".ts"),
        ("libx264", "yuv420p", ".h264"),
    ],
)
def test_pixel_formats_and_containers(tmp_path, codec, pix_fmt, suffix):
    clip = open_video(encode(tmp_path / f"a{suffix}", 6, codec=codec, pix_fmt=pix_fmt))
    frames = list(clip.frames())
    assert [number_of(f) for f in frames] == list(range(6))
    assert clip.n_frames == 6
    np.testing.assert_allclose(clip.time, np.arange(6) / 25, atol=1e-3)
    assert clip.damaged == ()
    np.testing.assert_array_equal(clip.read([4])[0], frames[4])
    if pix_fmt.startswith("gray"):
        assert float(np.ptp(frames[0].astype(int), axis=-1).max()) == 0
    else:
        assert corner_colours(frames[0])["tl"] == "red"


@pytest.mark.parametrize("height", [64, 720])
def test_colours_come_back_without_bias(tmp_path, height):
    # swscale's default rounding darkens yuv420p by 1 to 1.5 levels; the wrong matrix is off by 10 and more.
    rng = np.random.default_rng(0)
    patches = np.kron(rng.integers(20, 235, (4, 8, 3)), np.ones((height // 4, 16, 1))).astype(np.uint8)
    write_video(tmp_path / "a.mp4", [patches], 25.0, crf=1)
    inner = np.s_[6 :: height // 4, 7::16]
    error = open_video(tmp_path / "a.mp4").read([0])[0][inner].astype(int) - patches[inner].astype(int)
    assert np.abs(error).max() <= 4
    assert np.abs(error.mean(axis=(0, 1))).max() < 0.7


def test_one_frame(tmp_path):
    clip = open_video(encode(tmp_path / "a.mp4", 1))
    assert clip.n_frames == len(list(clip.frames())) == 1
    assert clip.fps == pytest.approx(25.0)


@pytest.mark.parametrize("faststart", [False, True])
def test_a_truncated_mp4_is_refused(tmp_path, faststart):
    options = {"movflags": "+faststart"} if faststart else {}
    whole = encode(tmp_path / "a.mp4", 60, options={"crf": "1"}, container_options=options, audio="aac")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    with pytest.raises(InputError, match="truncated"):
        open_video(cut)


def test_the_whole_part_of_a_truncated_clip_can_be_asked_for(tmp_path):
    whole = encode(tmp_path / "a.mp4", 60, options={"crf": "1"}, container_options={"movflags": "+faststart"})
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    clip = open_video(cut, (0, 10))
    assert [number_of(f) for f in clip.frames()] == list(range(10))
    assert any("truncated" in note for note in clip.notes)


def test_a_truncated_matroska_is_refused(tmp_path):
    whole = encode(tmp_path / "a.mkv", 120, options={"crf": "1"})
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(InputError, match="truncated"):
        open_video(cut)


def test_corrupt_packets_cost_their_frames_and_are_reported(tmp_path):
    path = encode(tmp_path / "a.mov", 12, codec="png", pix_fmt="rgb24")
    with av.open(str(path)) as container:
        entry = container.streams.video[0].index_entries[5]
        place, size = entry.pos, entry.size
    data = bytearray(path.read_bytes())
    data[place : place + size] = b"\x00" * size
    path.write_bytes(data)
    clip = open_video(path)
    frames = list(clip.frames())
    assert [number_of(f) for f in frames] == [0, 1, 2, 3, 4, 4, 6, 7, 8, 9, 10, 11]
    assert clip.damaged == (5,)
    again = open_video(path)
    assert number_of(again.read([5])[0]) in (4, 6)
    assert again.damaged == (5,)
    assert open_video(path, (6, 9)).damaged == ()


def test_refused_files(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.txt").write_text("This is not a film.\n" * 200)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(50_000))
    with av.open(str(tmp_path / "sound.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), format="s16", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for name, words in (
        ("missing.mp4", "No such file"),
        ("empty.mp4", "empty"),
        ("text.txt", "not|another kind"),
        ("noise.mp4", "another kind"),
        ("sound.m4a", "only audio"),
    ):
        with pytest.raises(InputError, match=words):
            open_video(tmp_path / name)


def test_a_video_with_no_frames_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    encode(path, 0)
    with pytest.raises(InputError):
        open_video(path)


def test_small_frames_are_refused(tmp_path):
    with pytest.raises(InputError, match=f"at least {MIN_SIDE} pixels"):
        open_video(encode(tmp_path / "a.mp4", 2, size=(64, 24)))
    with pytest.raises(InputError, match="31"):
        open_video(np.zeros((2, 31, 64, 3), np.uint8))
    assert open_video(np.zeros((2, 32, 32, 3), np.uint8)).n_frames == 2


def test_max_side_scales_the_frames_and_keeps_the_size(tmp_path):
    clip = open_video(encode(tmp_path / "a.mp4", 4), max_side=48)
    assert (clip.size, clip.frame_size) == ((WIDTH, HEIGHT), (48, 32))
    assert next(clip.frames()).shape == (32, 48, 3)
    assert next(clip.frames(max_side=WIDTH)).shape == (HEIGHT, WIDTH, 3)
    assert [number_of(f) for f in clip.frames()] == list(range(4))
    array = open_video(np.stack([picture(i) for i in range(3)]), max_side=48)
    assert number_of(array.read([2])[0]) == 2
    assert array.read([2]).shape == (1, 32, 48, 3)
    assert scaled_size((10, 20), None) == scaled_size((10, 20), 30) == (10, 20)


def test_an_array_and_its_floats_give_the_same_frames():
    frames = np.stack([picture(i) for i in range(4)])
    clip = open_video(frames)
    assert (clip.size, clip.n_frames, clip.path, clip.fps) == ((WIDTH, HEIGHT), 4, None, 25.0)
    np.testing.assert_array_equal(np.stack(list(clip.frames())), frames)
    np.testing.assert_array_equal(open_video(frames / np.float32(255)).read(range(4)), frames)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((2, 64, 64, 3), 128.0, np.float32), "divide by 255"),
        (np.full((2, 64, 64, 3), -0.5, np.float32), r"\[0, 1\]"),
        (np.where(np.arange(64 * 64 * 3).reshape(1, 64, 64, 3) == 7, np.nan, 0.5).astype(np.float32), "NaN"),
        (np.zeros((2, 64, 64), np.uint8), "frames, height, width, 3"),
        (np.zeros((64, 64, 3), np.uint8), "frames, height, width, 3"),
        (np.zeros((2, 64, 64, 4), np.uint8), "alpha"),
        (np.zeros((0, 64, 64, 3), np.uint8), "no frames"),
        (np.zeros((2, 64, 64, 3), np.int32), "int32"),
        (object(), "path or an array|frames, height"),
    ],
)
def test_refused_arrays(array, words):
    with pytest.raises(InputError, match=words):
        open_video(array)


def test_a_folder_of_images_is_in_natural_order(tmp_path):
    for i in range(12):
        Image.fromarray(picture(i)).save(tmp_path / f"frame{i}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    clip = open_video(tmp_path, image_fps=10.0)
    assert [number_of(f) for f in clip.frames()] == list(range(12))
    assert clip.fps == pytest.approx(10.0)
    assert [p.name for p in sorted([Path("b10"), Path("b9"), Path("B1")], key=natural_key)] == ["B1", "b9", "b10"]


def test_images_of_all_kinds(tmp_path):
    base = Image.fromarray(picture(3))
    base.convert("L").save(tmp_path / "grey.png")
    base.convert("RGBA").save(tmp_path / "alpha.png")
    base.convert("P").save(tmp_path / "palette.png")
    base.save(tmp_path / "photo.jpg", quality=95)
    base.save(tmp_path / "photo.webp", lossless=True)
    Image.fromarray(picture(3)[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for path in sorted(tmp_path.iterdir()):
        frame = open_video(path).read([0])[0]
        assert frame.shape == (HEIGHT, WIDTH, 3), path.name
        assert number_of(frame) == 3, path.name


def test_a_photograph_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(picture(0)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    clip = open_video(tmp_path / "a.jpg")
    assert clip.size == (HEIGHT, WIDTH)
    colours = corner_colours(clip.read([0])[0])
    assert (colours["tr"], colours["br"]) == ("red", "green")


def test_refused_folders(tmp_path):
    with pytest.raises(InputError, match="no images"):
        open_video(tmp_path)
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    Image.fromarray(picture(0)[:40]).save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"b\.png is 96 x 40"):
        open_video(tmp_path)
    (tmp_path / "b.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"b\.png could not be read"):
        open_video(tmp_path)


# Masks ---------------------------------------------------------------------------------------------------------------


def write_masks(folder: Path, count: int, size: tuple[int, int] = (WIDTH, HEIGHT), mode: str = "L") -> Path:
    folder.mkdir()
    for i in range(count):
        values = np.zeros((size[1], size[0]), np.uint8)
        values[i, 2 * i] = 1
        image = Image.fromarray(values)
        image.convert(mode).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_masks_say_what_to_ignore(tmp_path, mode):
    clip = open_video(np.zeros((11, HEIGHT, WIDTH, 3), np.uint8))
    masks = load_masks(write_masks(tmp_path / "m", 11, mode=mode), clip)
    stack = np.stack(list(masks.frames()))
    assert stack.dtype == bool
    assert [tuple(int(v) for v in np.argwhere(m)[0]) for m in stack] == [(i, 2 * i) for i in range(11)]
    assert (stack.sum(axis=(1, 2)) == 1).all()
    np.testing.assert_array_equal(masks.read([9, 2]), stack[[9, 2]])
    small = next(masks.frames(3, 4, max_side=24))
    assert small.shape == (16, 24)
    assert np.argwhere(small).tolist() == [[0, 1]]


def test_masks_of_the_whole_clip_serve_a_range(tmp_path):
    folder = write_masks(tmp_path / "m", 11)
    part = open_video(np.zeros((11, HEIGHT, WIDTH, 3), np.uint8), (4, 7))
    masks = load_masks(folder, part)
    assert masks.n_frames == 3
    assert np.argwhere(next(masks.frames())).tolist() == [[4, 8]]


def test_refused_masks(tmp_path):
    clip = open_video(np.zeros((4, HEIGHT, WIDTH, 3), np.uint8))
    with pytest.raises(InputError, match="No such folder"):
        load_masks(tmp_path / "none", clip)
    with pytest.raises(InputError, match="one mask per frame, 4 in all, and holds 3"):
        load_masks(write_masks(tmp_path / "few", 3), clip)
    with pytest.raises(InputError, match="96 x 64"):
        load_masks(write_masks(tmp_path / "small", 4, (80, 64)), clip)


# Writing -------------------------------------------------------------------------------------------------------------


def test_written_video_comes_back(tmp_path):
    frames = [picture(i) for i in range(8)]
    assert write_video(tmp_path / "out.mp4", iter(frames), 30.0, crf=10) == ()
    clip = open_video(tmp_path / "out.mp4")
    assert (clip.n_frames, clip.size) == (8, (WIDTH, HEIGHT))
    assert clip.fps == pytest.approx(30.0, rel=1e-3)
    assert clip.time[0] == 0.0
    assert [number_of(f) for f in clip.frames()] == list(range(8))
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


def test_written_times_and_odd_sizes(tmp_path):
    time = np.asarray([1.0, 1.05, 1.3, 1.32])
    write_video(tmp_path / "out.mp4", [picture(i)[:-1, :-1] for i in range(4)], time=time)
    clip = open_video(tmp_path / "out.mp4")
    assert clip.size == (WIDTH, HEIGHT)
    np.testing.assert_allclose(clip.time, time - 1.0, atol=1e-3)


def sound_of(path: Path) -> tuple[str, float, float]:
    """Codec, time of the first and end of the last packet of the sound."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        packets = [p for p in container.demux(stream) if p.pts is not None]
        ends = [float((p.pts + p.duration) * p.time_base) for p in packets]
        return stream.codec_context.name, float(packets[0].pts * packets[0].time_base), max(ends)


@pytest.mark.parametrize(
    ("suffix", "codec", "kept", "note"), [(".mp4", "aac", "aac", ""), (".mkv", "pcm_s16le", "aac", "re-encoded")]
)
def test_the_sound_of_the_input_is_kept_for_the_range(tmp_path, suffix, codec, kept, note):
    source = open_video(encode(tmp_path / f"in{suffix}", 75, audio=codec), (25, 50))
    assert source.has_audio
    out = tmp_path / "out.mp4"
    span = (float(source.time[0]), float(source.time[-1]) + 1 / source.fps)
    notes = write_video(out, source.frames(), source.fps, audio_from=source.path, audio_range=span)
    assert note in " ".join(notes)
    name, start, end = sound_of(out)
    assert name == kept
    assert -0.03 <= start < 0.05
    assert end == pytest.approx(1.0, abs=0.06)
    with av.open(str(out)) as container:
        heard = [f.to_ndarray() for f in container.decode(audio=0)]
    spectrum = np.abs(np.fft.rfft(np.concatenate(heard, axis=-1)[0, 4096 : 4096 + 22050]))
    assert abs(int(np.argmax(spectrum)) * 2 - 440) <= 4
    assert open_video(out).n_frames == 25


def test_a_source_without_sound_gives_a_silent_video(tmp_path):
    source = open_video(encode(tmp_path / "in.mp4", 4))
    write_video(tmp_path / "out.mp4", source.frames(), source.fps, audio_from=source.path)
    assert not open_video(tmp_path / "out.mp4").has_audio


def test_without_an_h264_encoder_mpeg4_is_written_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(video_module, "VIDEO_ENCODERS", ("libnothing", "mpeg4"))
    notes = write_video(tmp_path / "out.mp4", [picture(i) for i in range(5)], 25.0)
    assert "mpeg4" in notes[0]
    assert [number_of(f) for f in open_video(tmp_path / "out.mp4").frames()] == list(range(5))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_half_written(tmp_path, error):
    out = tmp_path / "out.mp4"
    out.write_bytes(b"the older one")

    def frames():
        yield picture(0)
        raise error

    with pytest.raises(error):
        write_video(out, frames(), 25.0)
    assert out.read_bytes() == b"the older one"
    assert list(tmp_path.iterdir()) == [out]


def test_refused_writes(tmp_path):
    with pytest.raises(InputError, match="could not be written"):
        write_video(tmp_path / "none" / "out.mp4", [picture(0)], 25.0)
    with pytest.raises(InputError, match="no frame"):
        write_video(tmp_path / "out.mp4", [], 25.0)
    with pytest.raises(InputError, match="uint8"):
        write_video(tmp_path / "out.mp4", [picture(0) / 255.0], 25.0)
    with pytest.raises(InputError, match="share a size"):
        write_video(tmp_path / "out.mp4", [picture(0), picture(0)[:32]], 25.0)
    with pytest.raises(InputError, match="`fps` or `time`"):
        write_video(tmp_path / "out.mp4", [picture(0)])
    assert list(tmp_path.iterdir()) == []
