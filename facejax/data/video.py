"""Reading frames from videos, folders of images and arrays, and writing videos.

PyAV is used directly because the wrappers around it hide presentation timestamps and phone rotation, and both matter
here: the motion of a face is a function of time, and a head lying on its side is not found by any detector.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, SupportsIndex

import numpy as np
from jaxtyping import Bool, Float, Int32, UInt8

from facejax.data.containers import create_mp4, open_container
from facejax.data.pictures import open_picture
from facejax.geometry.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MIN_SIDE = 32
DEFAULT_FPS = 25.0  # of what has no clock: folders of images, arrays, a single image

# In order of preference. Wheels of PyAV carry libx264; distributions that may not ship it carry one of the others.
VIDEO_ENCODERS = ("libx264", "libopenh264", "mpeg4")
# What an MP4 file may hold, and players play; any other audio is re-encoded to AAC.
MP4_AUDIO = frozenset({"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"})
# FFmpeg shows text files as films of a terminal; to a person they are "not a video".
TEXT_CODECS = frozenset({"ansi", "bintext", "xbin", "idf", "text"})
HDR_TRANSFERS = frozenset({16, 18})  # SMPTE 2084 (PQ) and ARIB B67 (HLG), in FFmpeg's enumeration

Rgb = UInt8[np.ndarray, "height width 3"]


class _Reader(Protocol):
    """One kind of source. Frame numbers here are those of the whole source."""

    def iterate(self, start: int, stop: int, max_side: int | None) -> Iterator[np.ndarray]: ...

    def read(self, indices: Sequence[int], max_side: int | None) -> Iterator[np.ndarray]: ...

    @property
    def damaged(self) -> frozenset[int]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Video:
    """A clip: what it is, and its frames one at a time. Made by `open_video`.

    n_frames: frames of the chosen range. size: (width, height) in pixels after rotation, whatever `max_side` delivers.
    time: presentation time of each frame, seconds since the source began, strictly increasing. fps: the median rate.
    first, source_frames: number of the range's first frame in the source, and how many frames that has.
    notes: what a person should know about this input. Frame numbers in methods count from the range's first frame.
    """

    n_frames: int
    size: tuple[int, int]
    time: Float[np.ndarray, " frames"] = dataclasses.field(repr=False)
    fps: float
    has_audio: bool
    path: Path | None
    first: int
    source_frames: int
    max_side: int | None
    notes: tuple[str, ...]
    _reader: Any = dataclasses.field(repr=False)
    photo_sizes: tuple[tuple[int, int], ...] = ()
    """(width, height) of each, where the frames are photos, see `facejax.data.photos`: then `size` is the first's."""

    @property
    def sizes(self) -> Int32[np.ndarray, "frames 2"]:
        """(width, height) of every frame."""
        every = self.photo_sizes or ((self.size,) * self.n_frames)
        return np.asarray(every, np.int32).reshape(self.n_frames, 2)

    def frames(self, start: int = 0, stop: int | None = None, *, max_side: int | None = None) -> Iterator[Rgb]:
        """Frames start..stop-1, one by one: (height, width, 3) uint8, sRGB-encoded. Memory does not grow with the clip.

        max_side: longer frames are scaled down to this (default: what `open_video` was given). A frame that cannot be
        decoded is replaced by the one before it, so that frame numbers keep their meaning, and is listed in `damaged`.
        """
        stop = self.n_frames if stop is None else stop
        self._check_range(start, stop)
        return self._reader.iterate(self.first + start, self.first + stop, max_side or self.max_side)

    def read(
        self, indices: Sequence[SupportsIndex] | np.ndarray, *, max_side: int | None = None
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """The frames of these numbers, in the order given, as one array. One pass, jumping between key frames.

        Photos of several sizes do not fit into one array: take those by `each`.
        """
        wanted = [int(i) for i in np.asarray(indices).reshape(-1)]
        if not wanted:
            raise InputError("`indices` names no frame; give at least one frame number.")
        for i in wanted:
            self._check_range(i, i + 1)
        unique = sorted(set(wanted))
        stream = self._reader.read([self.first + i for i in unique], max_side or self.max_side)
        found = dict(zip(unique, stream, strict=True))
        return np.stack([found[i] for i in wanted])

    def each(self, indices: Sequence[SupportsIndex] | np.ndarray, *, max_side: int | None = None) -> Iterator[Rgb]:
        """The frames of these numbers, in the order given, one by one, whatever their sizes."""
        for i in np.asarray(indices).reshape(-1).tolist():
            yield next(self.frames(i, i + 1, max_side=max_side))

    @property
    def damaged(self) -> tuple[int, ...]:
        """Numbers of the frames that proved corrupt or unreadable in what has been decoded so far."""
        inside = (i - self.first for i in self._reader.damaged)
        return tuple(sorted(i for i in inside if 0 <= i < self.n_frames))

    @property
    def frame_size(self) -> tuple[int, int]:
        """(width, height) of the frames delivered: `size`, or less where `max_side` is smaller."""
        return scaled_size(self.size, self.max_side)

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start < stop <= self.n_frames:
            raise InputError(
                f"frames {start}:{stop} were asked for, but there are {self.n_frames} (0:{self.n_frames})."
            )


def scaled_size(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    """(width, height) scaled down so that the longer side is at most `max_side`; never up, never below one pixel."""
    longest = max(size)
    if max_side is None or longest <= max_side:
        return size
    return max(1, round(size[0] * max_side / longest)), max(1, round(size[1] * max_side / longest))


def open_video(
    source: Any,
    frames: tuple[int | None, int | None] | None = None,
    *,
    max_side: int | None = None,
    image_fps: float = DEFAULT_FPS,
) -> Video:
    """Open a video file, a folder of images (in natural order), one image, or an array, and check that it can be used.

    source: path, or (frames, height, width, 3) of uint8 or of floats in [0, 1], both sRGB-encoded.
    frames: (first, one past the last) to use, None for an end. max_side: deliver longer frames scaled down to this.
    image_fps: the rate of images and arrays, which have no clock.
    Raises InputError, in one sentence, for anything that cannot be tracked.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source).expanduser()
        if not path.exists():
            raise InputError(f"No such file or folder: {path}")
        if path.is_dir():
            facts = _open_images(path, images_in(path), image_fps)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            facts = _open_images(path, [path], image_fps)
        else:
            facts = _open_file(path, frames)
    else:
        path = None
        facts = _open_array(source, image_fps)
    if min(facts.size) < MIN_SIDE:
        raise InputError(
            f"Frames must be at least {MIN_SIDE} pixels on each side, and these are {facts.size[0]} x {facts.size[1]}."
        )
    start, stop = _resolve_range(frames, len(facts.time))
    time = facts.time[start:stop]
    steps = np.diff(facts.time)
    return Video(
        n_frames=stop - start,
        size=facts.size,
        time=time,
        fps=float(1.0 / np.median(steps)) if len(steps) else facts.nominal_fps,
        has_audio=facts.has_audio,
        path=path,
        first=start,
        source_frames=len(facts.time),
        max_side=max_side,
        notes=facts.notes,
        _reader=facts.reader,
    )


@dataclasses.dataclass(frozen=True)
class _Facts:
    reader: Any
    size: tuple[int, int]
    time: np.ndarray
    nominal_fps: float
    has_audio: bool = False
    notes: tuple[str, ...] = ()


def _resolve_range(frames: tuple[int | None, int | None] | None, n_frames: int) -> tuple[int, int]:
    if frames is None:
        return 0, n_frames
    start = 0 if frames[0] is None else int(frames[0])
    stop = n_frames if frames[1] is None else int(frames[1])
    if not 0 <= start < stop <= n_frames:
        raise InputError(
            f"Frames {start}:{stop} were asked for, but the input has {n_frames} frame{'s' * (n_frames != 1)}; "
            f"give A:B with 0 <= A < B <= {n_frames}."
        )
    return start, stop


# Arrays --------------------------------------------------------------------------------------------------------------


class _ArrayReader:
    damaged: frozenset[int] = frozenset()

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def iterate(self, start: int, stop: int, max_side: int | None) -> Iterator[np.ndarray]:
        return self.read(range(start, stop), max_side)

    def read(self, indices: Sequence[int], max_side: int | None) -> Iterator[np.ndarray]:
        for i in indices:
            frame = np.asarray(self._array[i])
            if frame.dtype != np.uint8:
                frame = np.round(np.clip(frame, 0.0, 1.0) * 255.0).astype(np.uint8)
            yield _shrink(np.ascontiguousarray(frame), max_side)


def _open_array(source: Any, fps: float) -> _Facts:
    try:
        array = np.asarray(source)
    except (TypeError, ValueError) as error:
        raise InputError(f"A video must be a path or an array, not {type(source).__name__}.") from error
    if array.ndim != 4 or array.shape[-1] != 3:
        raise InputError(
            f"A video given as an array must be (frames, height, width, 3), and this one is {array.shape}; "
            "add the leading axis to a single image, and drop an alpha channel."
        )
    if not len(array):
        raise InputError("The array has no frames.")
    if array.dtype != np.uint8:
        if not np.issubdtype(array.dtype, np.floating):
            raise InputError(
                f"A video given as an array must be uint8 or float in [0, 1], and this one is {array.dtype}."
            )
        for i, frame in enumerate(array):  # frame by frame: a second array of a long clip may not fit in memory
            low, high = float(frame.min()), float(frame.max())
            if not (np.isfinite(low) and np.isfinite(high)):
                raise InputError(f"Frame {i} of the array holds NaN or infinity; give finite values in [0, 1].")
            if low < -1e-3 or high > 1.0 + 1e-3:
                raise InputError(
                    f"Frame {i} of the float array spans [{low:.3g}, {high:.3g}], expected [0, 1] sRGB-encoded; "
                    "divide by 255, or give uint8."
                )
    size = (array.shape[2], array.shape[1])
    return _Facts(_ArrayReader(array), size, np.arange(len(array)) / fps, fps)


# Images --------------------------------------------------------------------------------------------------------------


class ImagesReader:
    """Frames from files, decoded when they are asked for."""

    damaged: frozenset[int] = frozenset()

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def iterate(self, start: int, stop: int, max_side: int | None) -> Iterator[np.ndarray]:
        return self.read(range(start, stop), max_side)

    def read(self, indices: Sequence[int], max_side: int | None) -> Iterator[np.ndarray]:
        for i in indices:
            yield _shrink(_read_image(self.paths[i]), max_side)


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sort key of a file name in which numbers count as numbers: frame2 before frame10."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in parts]


def images_in(folder: Path) -> list[Path]:
    """The pictures of a folder, in natural order; `InputError` if there are none."""
    names = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    if not names:
        raise InputError(f"The folder {folder} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    return sorted(names, key=natural_key)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) after EXIF rotation, from the header alone."""
    with open_picture(path) as image:
        turned = image.getexif().get(0x0112, 1) >= 5  # 5..8 are the orientations that swap the axes
        return image.size[::-1] if turned else image.size


def _read_image(path: Path) -> np.ndarray:
    from PIL import ImageOps

    with open_picture(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I") or image.mode == "F":
            # 16-bit greyscale: Pillow's own conversion to RGB clips at 255 instead of scaling.
            grey = np.asarray(image, dtype=np.float32) / (1.0 if image.mode == "F" else 65535.0)
            grey8 = np.round(np.clip(grey, 0.0, 1.0) * 255.0).astype(np.uint8)
            return np.repeat(grey8[..., None], 3, axis=-1)
        return np.array(image.convert("RGB"))


def _open_images(path: Path, paths: list[Path], fps: float) -> _Facts:
    sizes = [image_size(p) for p in paths]
    for p, size in zip(paths, sizes, strict=True):
        if size != sizes[0]:
            raise InputError(
                f"The images of {path} must share one size: {paths[0].name} is {sizes[0][0]} x {sizes[0][1]}, "
                f"{p.name} is {size[0]} x {size[1]}."
            )
    _read_image(paths[0])  # a header may be whole where the pixels are not
    notes = (f"{len(paths)} images taken as {fps:g} frames per second",) if len(paths) > 1 else ()
    return _Facts(ImagesReader(paths), sizes[0], np.arange(len(paths)) / fps, fps, notes=notes)


def _shrink(frame: np.ndarray, max_side: int | None) -> np.ndarray:
    height, width = frame.shape[:2]
    size = scaled_size((width, height), max_side)
    if size == (width, height):
        return frame
    from PIL import Image

    return np.array(Image.fromarray(frame).resize(size, Image.Resampling.BOX))


# Video files ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Index:
    """What a pass over the packets tells without decoding.

    pts: presentation times in ticks, ascending, or None where the container keeps none; then `dts`, the decoding times,
    are as far apart, if there are any.
    """

    pts: np.ndarray | None
    dts: np.ndarray | None
    is_key: np.ndarray
    end: float  # seconds, the latest end of any packet of any stream
    broke_off: bool


class _FileReader:
    def __init__(
        self, path: Path, stream: int, index: _Index, orientation: tuple[bool, bool, bool], n_frames: int
    ) -> None:
        self._path = path
        self._stream = stream
        self._orientation = orientation
        self._n_frames = n_frames
        self._pts = index.pts
        self._number = {} if index.pts is None else {int(p): i for i, p in enumerate(index.pts)}
        self._keys = np.flatnonzero(index.is_key) if index.pts is not None else np.zeros(1, int)
        self._damaged: set[int] = set()

    @property
    def damaged(self) -> frozenset[int]:
        return frozenset(self._damaged)

    def iterate(self, start: int, stop: int, max_side: int | None) -> Iterator[np.ndarray]:
        return self._decode(range(start, stop), max_side)

    def read(self, indices: Sequence[int], max_side: int | None) -> Iterator[np.ndarray]:
        """Frames of ascending `indices`. A new seek wherever a key frame lies between one wanted frame and the next."""
        block: list[int] = []
        for i in indices:
            if block and self._key_before(i) > block[-1]:
                yield from self._decode(block, max_side)
                block = []
            block.append(i)
        yield from self._decode(block, max_side)

    def _key_before(self, i: int) -> int:
        at = np.searchsorted(self._keys, i, side="right") - 1
        return int(self._keys[at]) if at >= 0 else 0

    def _decode(self, wanted: Sequence[int], max_side: int | None) -> Iterator[np.ndarray]:
        """The frames `wanted` (ascending). What cannot be decoded is replaced by the frame before it and noted."""
        if not wanted:
            return
        queue = iter(wanted)
        target: int | None = next(queue)
        before: Any = None
        for number, frame in self._numbered(wanted[0]):
            while target is not None and target < number:  # the file announces a frame that the decoder passed over
                self._damaged.add(target)
                yield self._convert(frame if before is None else before, max_side)
                target = next(queue, None)
            if target is None:
                return
            if number == target:
                if frame.is_corrupt:
                    self._damaged.add(number)
                yield self._convert(frame, max_side)
                target = next(queue, None)
            if target is None:
                return
            before = frame
        while target is not None:
            if before is None:
                raise InputError(f"{self._path}: no frame from {target} on could be decoded.")
            self._damaged.add(target)
            yield self._convert(before, max_side)
            target = next(queue, None)

    def _numbered(self, start: int) -> Iterator[tuple[int, Any]]:
        """(frame number, frame) in presentation order, from at or before `start`."""
        key = self._key_before(start)
        if self._pts is not None and key > 0:
            first = True
            for number, frame in self._numbered_from(int(self._pts[key])):
                if first and number > start:
                    break  # the container's seek table lied: start over from the beginning
                first = False
                yield number, frame
            if not first:
                return
        yield from self._numbered_from(None)

    def _numbered_from(self, seek_pts: int | None) -> Iterator[tuple[int, Any]]:

        with open_container(self._path) as container:
            stream: Any = container.streams[self._stream]
            stream.thread_type = "AUTO"
            if seek_pts is not None:
                container.seek(seek_pts, stream=stream, backward=True, any_frame=False)
            count = 0
            for frame in _frames_of(container, stream):
                if self._pts is None:
                    if count < self._n_frames:
                        yield count, frame
                    count += 1
                elif frame.pts in self._number:
                    yield self._number[frame.pts], frame

    def _convert(self, frame: Any, max_side: int | None) -> np.ndarray:
        return _orient(_to_rgb(frame, max_side), self._orientation)


def _frames_of(container: Any, stream: Any) -> Iterator[Any]:
    """Every frame that can be decoded: a corrupt packet costs its own frames, not the rest of the film."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (av.error.FFmpegError, OSError):
            return  # the file breaks off; `open_video` has decided already whether that is acceptable
        try:
            frames = packet.decode()
        except av.error.EOFError:
            return
        except (av.error.FFmpegError, OSError):
            continue
        yield from frames


def _to_rgb(frame: Any, max_side: int | None) -> np.ndarray:
    """(height, width, 3) uint8 before rotation. swscale does depth, greyscale, alpha, range and colour matrix."""
    width, height = scaled_size((frame.width, frame.height), max_side)
    # Untagged files: players take the HD matrix (BT.709) from 720 lines on, swscale would take the SD one (BT.601).
    untagged = int(frame.colorspace) == 2 and not frame.format.is_rgb
    extra: dict[str, Any] = {"src_colorspace": "ITU709"} if untagged and min(frame.width, frame.height) >= 720 else {}
    if frame.format.name.startswith("gray") and int(frame.color_range) != 1:
        extra["src_color_range"] = "JPEG"  # greyscale spans the full range unless it is tagged as limited
    scaled = (width, height) != (frame.width, frame.height)
    return frame.reformat(
        width, height, "rgb24", interpolation=_exact("AREA" if scaled else "BILINEAR"), **extra
    ).to_ndarray()


def _exact(interpolation: str) -> Any:
    """swscale flags for an unbiased conversion: its default truncates, darkening yuv420p by 1 to 1.5 levels of 255."""
    from av.video.reformatter import Interpolation

    flags = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
    return Interpolation[interpolation] | flags


def _orient(image: np.ndarray, orientation: tuple[bool, bool, bool]) -> np.ndarray:
    transpose, flip_x, flip_y = orientation
    if transpose:
        image = image.transpose(1, 0, 2)
    if flip_x:
        image = image[:, ::-1]
    if flip_y:
        image = image[::-1]
    return np.ascontiguousarray(image)


def _orientation(frame: Any) -> tuple[bool, bool, bool]:
    """(transpose, then flip x, then flip y) that shows the frame upright, from its display matrix.

    The matrix maps stored pixels to the screen, x' = a x + c y and y' = b x + d y with y down (16.16 fixed point,
    ISO 14496-12). All eight orientations are exact; other angles do not occur in cameras' files and are left alone.
    """
    from av.sidedata.sidedata import Type

    data = frame.side_data.get(Type.DISPLAYMATRIX)
    if data is None:
        return False, False, False
    matrix = np.frombuffer(bytes(data), dtype="=i4")[:9]
    a, b, c, d = (round(int(matrix[i]) / 65536) for i in (0, 1, 3, 4))
    if a == d == 0 and b != 0 and c != 0:
        return True, c < 0, b < 0
    if b == c == 0 and a != 0 and d != 0:
        return False, a < 0, d < 0
    return False, False, False


def _index_packets(container: Any, stream: Any) -> _Index:
    import av

    pts: list[int | None] = []
    dts: list[int | None] = []
    keys: list[bool] = []
    end, broke_off = 0.0, False
    packets = container.demux()
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except (av.error.FFmpegError, OSError):
            broke_off = True
            break
        if packet.size == 0 and packet.pts is None:  # the flush packet that PyAV appends
            continue
        if packet.pts is not None and packet.time_base:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index == stream.index and not packet.is_discard:
            pts.append(packet.pts)
            dts.append(packet.dts)
            keys.append(packet.is_keyframe)
    # AVI keeps no presentation times, and FFmpeg's guesses at them go wrong with B-frames.
    if not pts or any(p is None for p in pts) or container.format.name == "avi":
        ticks = np.asarray([d for d in dts if d is not None], np.int64)
        whole = len(ticks) == len(dts) > 0 and bool((np.diff(ticks) > 0).all())
        return _Index(None, ticks if whole else None, np.asarray(keys, bool), end, broke_off)
    values, first = np.unique(np.asarray(pts, np.int64), return_index=True)
    return _Index(values, None, np.asarray(keys, bool)[first], end, broke_off)


def _is_truncated(path: Path, container: Any, stream: Any, index: _Index) -> bool:
    """Whether the file ends before what its own header announces.

    The header's frame count is no witness (a trimmed phone video keeps the original's); where its frames lie is.
    """
    if index.broke_off:
        return True
    bytes_there = path.stat().st_size
    if any(entry.pos + entry.size > bytes_there for entry in stream.index_entries):
        return True
    # Elsewhere FFmpeg estimates the duration, from a bit rate for instance, and a whole file may fall short of it.
    states_duration = any(name in container.format.name for name in ("mp4", "matroska"))
    if container.duration is None or index.pts is None or not states_duration:
        return False
    announced = container.duration / 1e6 + (container.start_time or 0) / 1e6
    return index.end < announced - max(1.0, 0.05 * announced)


def _open_file(path: Path, frames: tuple[int | None, int | None] | None) -> _Facts:
    import av

    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); expected a video.")
    unusable = "could not be opened as a video: it is of another kind, or truncated"
    try:
        container = open_container(path)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise InputError(f"{path} {unusable} ({_reason(error)}).") from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            what = "only audio" if container.streams.audio else "no pictures"
            raise InputError(f"{path} has no video in it, {what}.")
        stream = streams[0]
        if stream.codec_context is None or stream.codec_context.name in TEXT_CODECS:
            raise InputError(f"{path} {unusable}.")
        # The earliest start of any stream is the clock's zero: pictures that begin after the sound keep their place.
        zero = container.start_time / 1e6 if container.start_time is not None else None
        codec, has_audio = stream.codec_context.name, bool(container.streams.audio)
        nominal = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
        time_base = stream.time_base
        stream_index = stream.index
        index = _index_packets(container, stream)
        truncated = _is_truncated(path, container, stream, index)
        count = len(index.is_key)
    if count == 0:
        raise InputError(f"{path} has a video track without a single frame in it.")
    if index.pts is not None:
        count = len(index.pts)
        seconds = index.pts * float(time_base or 0)
        time = seconds - (zero if zero is not None and zero <= seconds[0] else seconds[0])
    if truncated and (frames is None or frames[1] is None or frames[1] > count):
        raise InputError(
            f"{path} is truncated: it breaks off after {count} frames; copy it again, "
            f"or use what is there with frames 0:{count}."
        )
    head, decodable = _first_frame(path, stream_index, count_all=index.pts is None)
    if head is None:
        raise InputError(f"{path}: none of the {count} frames of its {codec} video could be decoded.")
    if index.pts is None:
        count = decodable
        time = np.arange(count) / nominal
        if index.dts is not None and len(index.dts) == count:
            time = (index.dts - index.dts[0]) * float(time_base or 0)
    orientation = _orientation(head)
    size = (head.height, head.width) if orientation[0] else (head.width, head.height)
    reader = _FileReader(path, stream_index, index, orientation, count)
    return _Facts(reader, size, time, nominal, has_audio, _file_notes(head, orientation, time, truncated))


def _first_frame(path: Path, stream_index: int, *, count_all: bool) -> tuple[Any, int]:
    """The first frame that decodes (None if none), and with `count_all` how many do."""

    head, count = None, 0
    with open_container(path) as container:
        stream: Any = container.streams[stream_index]
        stream.thread_type = "AUTO" if count_all else "SLICE"
        for frame in _frames_of(container, stream):
            head = frame if head is None else head
            count += 1
            if not count_all:
                break
    return head, count


def _file_notes(head: Any, orientation: tuple[bool, bool, bool], time: np.ndarray, truncated: bool) -> tuple[str, ...]:
    notes = []
    if any(orientation):
        notes.append("rotated as the camera's orientation tag says")
    steps = np.diff(time)
    if len(steps) > 1 and steps.max() > 1.5 * np.median(steps):
        notes.append(f"variable frame rate: steps from {steps.min() * 1e3:.0f} to {steps.max() * 1e3:.0f} ms")
    if head.format.name.startswith("gray"):
        notes.append("greyscale")
    if int(head.color_trc) in HDR_TRANSFERS:
        notes.append("high dynamic range: the transfer function is not undone, so colours are approximate")
    if head.interlaced_frame:
        notes.append("interlaced: the two fields are not separated")
    if truncated:
        notes.append("the file is truncated: only frames before the break are used")
    return tuple(notes)


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return str(text).splitlines()[0] if text else type(error).__name__


# Masks ---------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Masks:
    """Pixels to ignore, one mask per frame of a video, streamed like its frames. Made by `load_masks`."""

    n_frames: int
    size: tuple[int, int]
    paths: tuple[Path, ...] = dataclasses.field(repr=False)

    def frames(
        self, start: int = 0, stop: int | None = None, *, max_side: int | None = None
    ) -> Iterator[Bool[np.ndarray, "h w"]]:
        """Masks start..stop-1: (height, width), True where the pixel is to be ignored."""
        stop = self.n_frames if stop is None else stop
        if not 0 <= start < stop <= self.n_frames:
            raise InputError(f"masks {start}:{stop} were asked for, but there are {self.n_frames}.")
        return (_read_mask(p, max_side) for p in self.paths[start:stop])

    def read(
        self, indices: Sequence[SupportsIndex] | np.ndarray, *, max_side: int | None = None
    ) -> Bool[np.ndarray, "n h w"]:
        """The masks of these frame numbers as one array."""
        return np.stack([_read_mask(self.paths[int(i)], max_side) for i in np.asarray(indices).reshape(-1)])


def _read_mask(path: Path, max_side: int | None) -> np.ndarray:
    from PIL import Image

    with open_picture(path, "mask") as image:
        values = np.asarray(image.convert("RGB") if image.mode in ("P", "RGBA", "CMYK", "LA", "PA") else image)
    mask = np.asarray(values.any(axis=-1) if values.ndim == 3 else values != 0)
    # A reduced pixel is ignored as soon as any pixel under it is; float, so that one in a large block still counts.
    size = scaled_size((mask.shape[1], mask.shape[0]), max_side)
    if size == (mask.shape[1], mask.shape[0]):
        return mask
    reduced = Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BOX)
    return np.asarray(reduced) > 0


def load_masks(folder: str | os.PathLike[str], video: Video) -> Masks:
    """Masks from a folder of images, one per frame of `video` in natural order; not zero means: ignore this pixel.

    A folder for the whole source serves a range of it too. Raises InputError where the count or a size does not match.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise InputError(f"No such folder of masks: {path}")
    paths = images_in(path)
    if len(paths) == video.source_frames:
        paths = paths[video.first : video.first + video.n_frames]
    if len(paths) != video.n_frames:
        raise InputError(
            f"The folder {path} must hold one mask per frame, {video.n_frames} in all, and holds {len(paths)} images."
        )
    for p in paths:
        size = image_size(p)
        if size != video.size:
            raise InputError(
                f"Masks must have the video's size, {video.size[0]} x {video.size[1]}, "
                f"and {p.name} is {size[0]} x {size[1]}."
            )
    return Masks(n_frames=len(paths), size=video.size, paths=tuple(paths))


# Writing -------------------------------------------------------------------------------------------------------------


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[np.ndarray],
    fps: float | None = None,
    *,
    time: Float[np.ndarray, " frames"] | None = None,
    audio_from: str | os.PathLike[str] | None = None,
    audio_range: tuple[float, float] | None = None,
    crf: int = 18,
) -> tuple[str, ...]:
    """Write an MP4 (H.264, yuv420p; MPEG-4 where no H.264 encoder is there), whole or not at all.

    frames: (height, width, 3) uint8, all of one size; odd sizes are padded by one repeated row or column.
    fps, or time: a constant rate, or the presentation time of each frame in seconds (the first is shown at zero).
    audio_from: a file whose first sound track is kept, copied as it is where MP4 can hold it, else as AAC.
    audio_range: (from, to) seconds of its sound, on the clock of `Video.time`; by default from its beginning.
    It ends with the pictures.
    Returns notes for a person: another encoder than H.264, sound that could not be kept.
    Raises InputError if nothing can be written there, or there is no frame.
    """
    if (fps is None) == (time is None):
        raise InputError("Give either `fps` or `time`, the presentation times, to write a video.")
    import av

    target = Path(path)
    partial = target.with_name(f".{target.stem}.part{os.getpid()}.mp4")
    try:
        notes = _write_mp4(partial, frames, fps, time, audio_from, audio_range, crf)
        os.replace(partial, target)
    except (OSError, av.error.FFmpegError) as error:
        raise InputError(f"The video {target} could not be written: {_reason(error)}.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return notes


def _video_encoder(candidates: Sequence[str] = VIDEO_ENCODERS) -> str:
    import av

    for name in candidates:
        try:
            av.Codec(name, "w")
        except ValueError:  # UnknownCodecError
            continue
        return name
    raise InputError(f"No video can be written: this build of PyAV has none of the encoders {', '.join(candidates)}.")


def _write_mp4(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: float | None,
    time: np.ndarray | None,
    audio_from: str | os.PathLike[str] | None,
    audio_range: tuple[float, float] | None,
    crf: int,
) -> tuple[str, ...]:
    import av

    clock = 60_000  # ticks a second: whole for 24, 25, 30, 50, 60 and 30/1.001, and MPEG-4 allows 65535 at most
    seconds = 1.0 / (fps or DEFAULT_FPS)
    if time is not None and len(time) > 1:
        seconds = float(np.median(np.diff(time)))
    step = clock * seconds
    encoder = _video_encoder(VIDEO_ENCODERS)
    notes = [] if encoder.endswith("264") else [f"no H.264 encoder in this build of PyAV: written with {encoder}"]
    with create_mp4(path) as container:
        stream: Any = None
        sound: _Sound | None = None
        size, pts, previous, count = (0, 0), 0, -1, 0
        for count, frame in enumerate(frames, start=1):
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
                raise InputError(
                    f"Frames to write must be (height, width, 3) uint8, and one is {frame.shape} {frame.dtype}."
                )
            if stream is None:
                size = (frame.shape[1], frame.shape[0])
                stream = container.add_stream(encoder, rate=Fraction(clock / step).limit_denominator(60_000))
                stream.width, stream.height = size[0] + size[0] % 2, size[1] + size[1] % 2
                stream.pix_fmt = "yuv420p"
                stream.codec_context.time_base = Fraction(1, clock)
                stream.codec_context.colorspace, stream.codec_context.color_range = 1, 1  # BT.709, limited range
                stream.options = {"crf": str(crf), "preset": "medium"} if encoder == "libx264" else {}
                if encoder != "libx264":
                    stream.bit_rate = int(0.2 * size[0] * size[1] * clock / step)
                if audio_from is not None:
                    sound = _Sound.open(Path(audio_from), audio_range, container)
            elif (frame.shape[1], frame.shape[0]) != size:
                raise InputError(
                    f"Frames of one video must share a size: {size[0]} x {size[1]}, "
                    f"then {frame.shape[1]} x {frame.shape[0]}."
                )
            if time is None:
                pts = round((count - 1) * step)
            elif count > len(time):
                raise InputError(f"There are more frames than the {len(time)} presentation times given.")
            else:
                pts = max(previous + 1, round((float(time[count - 1]) - float(time[0])) * clock))
            padded = (
                np.pad(frame, ((0, size[1] % 2), (0, size[0] % 2), (0, 0)), mode="edge")
                if size[0] % 2 or size[1] % 2
                else frame
            )
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
            picture = picture.reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG", interpolation=_exact("BILINEAR")
            )
            picture.pts, picture.time_base = pts, Fraction(1, clock)
            previous = pts
            container.mux(stream.encode(picture))
            if sound is not None:
                sound.write_until(pts / clock)
        if stream is None:
            raise InputError("There is no frame to write to the video.")
        container.mux(stream.encode(None))
        if sound is not None:
            sound.write_until((pts + step) / clock, last=True)
            notes += sound.notes
            sound.close()
    return tuple(notes)


class _Sound:
    """The sound of one file on its way into another, kept level with the pictures so that the two interleave."""

    def __init__(self, source: Any, out_container: Any, packets: Iterator[tuple[float, Any]], notes: list[str]) -> None:
        self._source = source
        self._out = out_container
        self._packets = packets
        self._held: tuple[float, Any] | None = None
        self.notes = notes

    @classmethod
    def open(cls, path: Path, span: tuple[float, float] | None, out_container: Any) -> "_Sound | None":
        """Adds a sound stream to `out_container`; None where the file has no sound."""

        source = open_container(path)
        if not source.streams.audio:
            source.close()
            return None
        stream = source.streams.audio[0]
        zero = (source.start_time or 0) / 1e6
        start, stop = (zero, float("inf")) if span is None else (zero + span[0], zero + span[1])
        if start > zero:
            source.seek(int(start * 1e6), backward=True)
        if stream.codec_context.name in MP4_AUDIO:
            out = out_container.add_stream_from_template(stream)
            return cls(source, out_container, _copied_sound(source, stream, out, start, stop), [])
        rate = stream.codec_context.rate
        rate = rate if rate in (16000, 22050, 24000, 32000, 44100, 48000) else 48000
        layout = "mono" if stream.codec_context.channels == 1 else "stereo"
        out = out_container.add_stream("aac", rate=rate, layout=layout)
        note = f"sound re-encoded from {stream.codec_context.name} to AAC"
        return cls(source, out_container, _encoded_sound(source, stream, out, start, stop), [note])

    def write_until(self, seconds: float, *, last: bool = False) -> None:
        """Write the packets up to this time of the output; `last` flushes an encoder, and drops what is later."""
        while True:
            item = self._held if self._held is not None else next(self._packets, None)
            self._held = None
            if item is None:
                return
            if item[0] > seconds:
                if last and item[0] != float("inf"):
                    continue
                if not last:
                    self._held = item
                    return
            self._out.mux(item[1])

    def close(self) -> None:
        self._source.close()


def _sound_packets(source: Any, stream: Any, stop: float) -> Iterator[Any]:
    import av

    packets = source.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError, OSError):
            return
        if packet.pts is None:
            continue
        if float(packet.pts * packet.time_base) >= stop:
            return
        yield packet


def _copied_sound(source: Any, stream: Any, out: Any, start: float, stop: float) -> Iterator[tuple[float, Any]]:
    for packet in _sound_packets(source, stream, stop):
        seconds = float(packet.pts * packet.time_base) - start
        if seconds < -1e-3:  # begins before the pictures do; the next one starts a few ms late, in step
            continue
        packet.pts = packet.dts = max(0, packet.pts - round(start / packet.time_base))
        packet.stream = out
        yield seconds, packet


def _encoded_sound(source: Any, stream: Any, out: Any, start: float, stop: float) -> Iterator[tuple[float, Any]]:
    import av

    seconds = 0.0
    for packet in _sound_packets(source, stream, stop):
        try:
            frames = packet.decode()
        except (av.error.FFmpegError, OSError):
            continue
        for frame in frames:
            if frame.pts is None:
                continue
            seconds = float(frame.pts * frame.time_base) - start
            if seconds < -1e-3:
                continue
            frame.pts = max(0, frame.pts - round(start / frame.time_base))
            for encoded in out.encode(frame):
                yield seconds, encoded
    for encoded in out.encode(None):
        yield float("inf"), encoded
