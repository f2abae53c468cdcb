"""Pictures for people of a tracked clip: the overlay video, the preview sheet, renders with alpha.

Colour is linear inside and sRGB in the files; normals and the clay of the overlay are display values.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from facejax.data.baking import bake_albedo
from facejax.data.files import atomic_write
from facejax.data.results import TrackResult
from facejax.data.video import write_video
from facejax.geometry.cameras import crop_camera
from facejax.geometry.colour import linear_to_srgb_bytes, srgb_to_linear
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import Topology
from facejax.geometry.records import Camera, Face, Pose
from facejax.models.landmark_names import EYE_LEFT, EYE_RIGHT, IRIS_LEFT, IRIS_RIGHT, LIPS_INNER, LIPS_OUTER
from facejax.renderers.layers import make_layers_renderer
from facejax.renderers.sh import irradiance

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

Rgb = UInt8[np.ndarray, "_ _ 3"]
"""A picture as files have it: 8-bit sRGB."""
Progress = Callable[[str, int, int], None]
"""`progress(stage, done, total)`."""

PANELS = ("input", "overlay", "render", "normals")
"""What `overlay_video` can show side by side."""

_LABELS = {"input": "input", "overlay": "mesh over input", "render": "rendering", "normals": "normals"}
_BACKGROUND = 24  # grey, 8 bit, behind renderings
_CLAY = 0.6  # opacity of the mesh over the input
_LINES = (
    EYE_RIGHT,
    EYE_LEFT,
    IRIS_RIGHT[1:],
    IRIS_LEFT[1:],
    LIPS_OUTER,
    LIPS_INNER,
)  # closed, on the mesh over the input
_LINE_COLOUR = (80, 255, 200)
_TILE = 1024  # pixels: larger renders are drawn in tiles, so that memory does not grow with the video's size
_CHUNK = 16  # frames of vertices at a time


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of the input image, and the size in pixels at which it is shown."""

    left: int
    top: int
    width: int
    height: int
    size: tuple[int, int]
    """(height, width) of the picture."""


@dataclasses.dataclass(frozen=True, eq=False)
class Layers:
    """One frame's head, drawn: float arrays of a picture's size, colours premultiplied by `coverage`."""

    colour: np.ndarray
    """(h, w, 3) linear radiance."""
    normals: np.ndarray
    """(h, w, 3) 0.5 + 0.5 n, n with +x right, +y up, +z towards the viewer."""
    clay: np.ndarray
    """(h, w, 1) the shape in grey under a light beside the camera, display values."""
    coverage: np.ndarray
    """(h, w, 1) in [0, 1]."""


def _make_draw(result: TrackResult, size: tuple[int, int]) -> Callable[..., Array]:
    """(vertices in the head frame, light, rotation, translation, camera) -> (h, w, 8): the four `Layers`."""
    names = ("albedo", "texture", "specular", "roughness")
    return functools.partial(_compiled(result.topology, size), {n: jnp.asarray(getattr(result, n)) for n in names})


@functools.lru_cache(maxsize=4)
def _compiled(topology: Topology, size: tuple[int, int]) -> Callable[..., Array]:
    draw_layers = make_layers_renderer(topology, size)

    def draw(
        appearance: dict[str, Array], vertices: Array, light: Array, rotation: Array, translation: Array, camera: Camera
    ) -> Array:
        face = Face(vertices=vertices, **appearance)
        return draw_layers(face, light, Pose(rotation=rotation, translation=translation), camera)

    return jax.jit(draw)


def _drawn(
    result: TrackResult, draw: Callable[..., Array], window: Window, frames: Sequence[int] | np.ndarray
) -> Iterator[Layers | None]:
    """The head of each of `frames` in a window of the image; None where tracking failed."""
    before: list[Array | None] = []  # JAX draws a frame while the one before it is painted and encoded
    for start in range(0, len(frames), _CHUNK):
        ids = np.asarray(frames[start : start + _CHUNK])
        for k, v in zip(ids.tolist(), result.head_vertices_at(ids), strict=True):
            if result.valid[k] and np.isfinite(v).all():
                camera = window_camera(result, window, k)
                before.append(draw(v, result.light[k], result.rotation[k], result.translation[k], camera))
            else:
                before.append(None)
            if len(before) > 1:
                yield _layers(before.pop(0))
    yield from map(_layers, before)


def _layers(drawn: Array | None) -> Layers | None:
    if drawn is None:
        return None
    stack = np.asarray(drawn)
    return Layers(colour=stack[..., :3], normals=stack[..., 3:6], clay=stack[..., 6:7], coverage=stack[..., 7:])


def face_window(result: TrackResult, *, max_height: int = 512, whole: bool = False) -> Window:
    """The part of the image that holds the head in every valid frame, with a margin; all of it if that is over a half.

    Where frames differ in size, the image is what all of them have.

    The picture's sides are even, as video encoders want them, its height at most `max_height` and its width at most
    twice that. whole: the whole image in any case.
    """
    width, height = (int(n) for n in (result.frame_size.min(axis=0) if len(result) else result.image_size))
    left, top, right, bottom = 0, 0, width, height
    good = np.flatnonzero(result.valid & np.isfinite(result.translation).all(axis=-1))
    if len(good) and not whole:
        some = result.neutral[:: max(1, len(result.neutral) // 500)]
        x = some @ np.swapaxes(result.rotation[good], 1, 2) + result.translation[good, None]
        xy = _on_image(x, result.frame_intrinsics[good])
        low, high = xy.min(axis=(0, 1)), xy.max(axis=(0, 1))
        margin = 0.1 * float((high - low).max())
        l, t = np.clip(np.floor(low - margin), 0, [width, height]).astype(int)
        r, b = np.clip(np.ceil(high + margin), 0, [width, height]).astype(int)
        if r - l >= 16 and b - t >= 16 and (r - l) * (b - t) <= 0.5 * width * height:
            left, top, right, bottom = int(l), int(t), int(r), int(b)
    w, h = right - left, bottom - top
    scale = min(1.0, max_height / h, 2 * max_height / w)
    even = (max(2, round(h * scale / 2) * 2), max(2, round(w * scale / 2) * 2))
    return Window(left=left, top=top, width=w, height=h, size=even)


def crop_window(frame: Rgb, window: Window) -> Rgb:
    from PIL import Image

    box = (window.left, window.top, window.left + window.width, window.top + window.height)
    size = (window.size[1], window.size[0])
    if size == (window.width, window.height):
        return frame[window.top : box[3], window.left : box[2]]
    return np.array(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS, box=box))


def _on_image(points: Float[np.ndarray, "*f v 3"], k: Float[np.ndarray, "*f 3 3"]) -> Float[np.ndarray, "*f v 2"]:
    """Pixels of points in the camera frame, by the intrinsics of each frame."""
    focal = np.stack([k[..., 0, 0], k[..., 1, 1]], axis=-1)[..., None, :]
    return points[..., :2] / np.maximum(points[..., 2:], 1e-3) * focal + k[..., None, :2, 2]


def window_camera(result: TrackResult, window: Window, frame: int = 0) -> Camera:
    """A frame's camera for the part of its image that a window shows."""
    crop = jnp.array([window.left, window.top, window.width, window.height], dtype=jnp.float32)
    return crop_camera(result.camera_at(frame), crop, window.size)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write an 8-bit picture, whole or not at all."""
    from PIL import Image

    with atomic_write(path) as temporary:
        Image.fromarray(picture).save(temporary, compress_level=3)


def in_window(points: Float[np.ndarray, "n 2"], window: Window) -> Float[np.ndarray, "n 2"]:
    """Pixels of the input video to pixels of a window."""
    scale = np.array([window.size[1] / window.width, window.size[0] / window.height])
    return (points - [window.left, window.top]) * scale


def _with_lines(panel: Rgb, landmarks: Float[np.ndarray, "478 2"], window: Window) -> Rgb:
    """A copy with the tracked eyes' and lips' outlines: where the mesh says that they are."""
    from PIL import Image, ImageDraw

    xy = in_window(landmarks, window) - 0.5  # PIL counts from the centre of the first pixel
    picture = Image.fromarray(panel)
    draw = ImageDraw.Draw(picture)
    for line in _LINES:
        draw.line([tuple(point) for point in xy[[*line, line[0]]].tolist()], fill=_LINE_COLOUR)
    return np.asarray(picture)


def _panel(name: str, frame: Rgb, layers: Layers | None, landmarks: np.ndarray, window: Window) -> Rgb:
    """One panel of a frame that is already cropped."""
    if name == "input" or (layers is None and name == "overlay"):
        return frame
    if layers is None:
        return np.full_like(frame, _BACKGROUND)
    empty = 1 - layers.coverage
    if name == "overlay":
        over = frame * (1 - _CLAY * layers.coverage) + _CLAY * 255 * layers.clay
        return _with_lines(np.clip(over + 0.5, 0, 255).astype(np.uint8), landmarks, window)
    if name == "normals":
        return np.clip(255 * layers.normals + _BACKGROUND * empty + 0.5, 0, 255).astype(np.uint8)
    return linear_to_srgb_bytes(layers.colour + srgb_to_linear(np.float32(_BACKGROUND / 255)) * empty)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=size)


def _write_text(picture: "PilImage", at: tuple[int, int], text: str, size: int) -> None:
    """Light text on a dark plate, readable on anything."""
    from PIL import ImageDraw

    draw, font = ImageDraw.Draw(picture), _font(size)
    left, top, right, bottom = draw.textbbox(at, text, font=font)
    pad = size // 4
    draw.rectangle((left - pad, top - pad, right + pad, bottom + pad), fill=(0, 0, 0))
    draw.text(at, text, fill=(235, 235, 235), font=font)


def labelled(panel: Rgb, label: str, caption: str = "") -> Rgb:
    """A copy with a label at the top left and, where there is one, a caption at the bottom left."""
    from PIL import Image

    picture = Image.fromarray(panel)
    size = int(np.clip(panel.shape[0] // 30, 9, 20))
    _write_text(picture, (size // 2, size // 2), label, size)
    if caption:
        _write_text(picture, (size // 2, panel.shape[0] - 2 * size), caption, size)
    return np.asarray(picture)


def _row(
    result: TrackResult, k: int, frame: Rgb, layers: Layers | None, window: Window, panels: Sequence[str], note: str
) -> Rgb:
    """Labelled panels side by side of one whole input frame; `note` stands on the first."""
    _check_frame(frame, result.frame_size[k])
    part = crop_window(frame, window)
    shown = [_panel(name, part, layers, result.landmarks[k], window) for name in panels]
    notes = [note, *[""] * len(panels)]
    return np.concatenate([labelled(s, _LABELS[p], n) for s, p, n in zip(shown, panels, notes, strict=False)], axis=1)


def _caption(result: TrackResult, k: int, layers: Layers | None) -> str:
    if layers is not None:
        return ""
    return f"frame {result.frame_ids[k]}: {result.status_names[result.status[k]].replace('_', ' ')}"


def _check_panels(panels: Sequence[str]) -> None:
    unknown = [p for p in panels if p not in PANELS]
    if unknown or not panels:
        raise InputError(f"Unknown panel {unknown[0] if unknown else ''!r}: choose from {', '.join(PANELS)}.")


def _check_frame(frame: np.ndarray, size: Int[np.ndarray, "2"]) -> None:
    width, height = (int(n) for n in size)
    if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
        raise InputError(
            f"Expected frames of {width} x {height} pixels, 8-bit RGB, got {frame.dtype} {frame.shape}: "
            "give the video that the result was made from."
        )


def overlay_video(
    path: Path | str,
    frames: Iterable[Rgb],
    result: TrackResult,
    *,
    panels: Sequence[str] = PANELS,
    window: Window | None = None,
    audio_from: Path | str | None = None,
    audio_range: tuple[float, float] | None = None,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Write the clip as panels side by side: the input, the mesh over it, the rendering, its normals.

    The mesh shows the tracked outlines of eyes, irises and lips, to be compared with the input's.

    frames: the tracked frames of the input video in order, as 8-bit RGB. window: what part to show and how large, by
    default `face_window`. audio_from: the video whose sound is kept, audio_range: which seconds of it (by default the
    tracked ones). Frames that failed show the input and say why. Returns the encoder's notes. Raises `InputError`.
    """
    _check_panels(panels)
    window = window or face_window(result)
    draw = _make_draw(result, window.size)
    step = result.frame_seconds
    if audio_from is not None and audio_range is None:
        audio_range = (float(result.time[0]), float(result.time[-1]) + step)

    def rows() -> Iterator[Rgb]:
        count = 0
        drawn = _drawn(result, draw, window, range(len(result)))
        for k, (frame, layers) in enumerate(zip(frames, drawn, strict=False)):
            yield _row(result, k, frame, layers, window, panels, _caption(result, k, layers))
            count += 1
            if progress:
                progress("overlay", count, len(result))
        if count < len(result):
            raise InputError(
                f"The video ended after {count} frames of the result's {len(result)}: give the same range."
            )

    time = np.asarray(result.time - result.time[0], dtype=np.float64)
    if len(result) == 1:
        return write_video(path, rows(), fps=1 / step, audio_from=audio_from, audio_range=audio_range)
    return write_video(path, rows(), time=time, audio_from=audio_from, audio_range=audio_range)


def preview_frames(result: TrackResult, count: int = 4) -> Int[np.ndarray, "n"]:
    """Which frames `preview_png` shows: `count` valid ones spread over the clip, or what there is."""
    good = np.flatnonzero(result.valid)
    good = good if len(good) else np.arange(len(result))
    return good[np.unique(np.round((np.arange(count) + 0.5) / count * len(good) - 0.5).astype(int))]


def preview_png(
    path: Path | str,
    frames: Iterable[Rgb],
    result: TrackResult,
    picks: Int[np.ndarray, "n"],
    *,
    window: Window | None = None,
) -> None:
    """Write a contact sheet: a row of panels for each of `picks`; then colour and texture, the light, and numbers.

    frames: the input's frames `picks` (indices into the result, see `preview_frames`), in that order, 8-bit RGB.
    """
    from PIL import Image

    window = window or face_window(result, max_height=360)
    rows = []
    drawn = _drawn(result, _make_draw(result, window.size), window, picks)
    for k, frame, layers in zip(picks.tolist(), frames, drawn, strict=True):
        caption = _caption(result, k, layers) or f"{result.time[k]:.2f} s"
        rows.append(_row(result, k, frame, layers, window, PANELS, caption))
    height, width = window.size
    side = min(width, 512)
    tiles = [
        ("colour over UV", linear_to_srgb_bytes(bake_albedo(result, side))),
        ("texture / 2", _square(linear_to_srgb_bytes(result.texture / 2), side)),
        ("light on a white ball", _light_ball(result.light[picks[len(picks) // 2]], side)),
    ]
    strip = np.full((side, width * len(PANELS), 3), _BACKGROUND, dtype=np.uint8)
    for i, (label, tile) in enumerate(tiles):
        strip[:, i * width : i * width + side] = labelled(tile, label)
    picture = Image.fromarray(np.concatenate([*rows, strip], axis=0))
    _write_lines(picture, (len(tiles) * width + 12, len(rows) * height + 12), _summary(result))
    with atomic_write(path) as temporary:
        picture.save(temporary)


def _square(picture: Rgb, side: int) -> Rgb:
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))


def _light_ball(light: Float[np.ndarray, "b 3"], side: int) -> Rgb:
    """A white Lambert ball in the frame's light as the camera sees it, exposed so that its brightest point is white."""
    y, x = ((np.mgrid[:side, :side] + 0.5) / side - 0.5) * 2.2
    inside: Bool[np.ndarray, "s s"] = x * x + y * y < 1
    normals = np.stack([x, y, -np.sqrt(np.maximum(1 - x * x - y * y, 0))], axis=-1)[inside].astype(np.float32)
    lit = np.maximum(np.asarray(irradiance(jnp.asarray(normals), jnp.asarray(light))), 0)
    ball = np.full((side, side, 3), _BACKGROUND, dtype=np.uint8)
    ball[inside] = linear_to_srgb_bytes(lit / max(float(lit.max()), 1e-6))
    return ball


def _summary(result: TrackResult) -> list[str]:
    focal = result.intrinsics[0, 0]
    lines = [
        f"model {result.model_name}, {len(result.neutral)} vertices",
        f"{len(result)} frames, {int(result.valid.sum())} tracked",
        f"focal length {focal:.0f} px of {result.image_size[0]} x {result.image_size[1]}",
    ]
    for name, value in (result.metrics or {}).items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            lines.append(f"{name.replace('_', ' ')}: {value:.4g}")
    return lines[:16]


def _write_lines(picture: "PilImage", at: tuple[int, int], lines: Sequence[str]) -> None:
    from PIL import ImageDraw

    draw, font = ImageDraw.Draw(picture), _font(14)
    for i, line in enumerate(lines):
        draw.text((at[0], at[1] + 20 * i), line, fill=(220, 220, 220), font=font)


_crop_camera = jax.jit(crop_camera, static_argnums=2)


def write_renders(folder: Path | str, result: TrackResult, *, progress: Progress | None = None) -> None:
    """Write the rendering of every frame as `00000.png`, `00001.png`... into `folder`, at the video's resolution.

    RGBA, 8-bit sRGB, straight alpha, which is the head's coverage. Numbers count the result's frames; one that failed
    is fully transparent. Raises `InputError` if nothing can be written there.
    """
    from PIL import Image

    for k, picture in enumerate(render_frames(result)):
        with atomic_write(Path(folder) / f"{k:05d}.png") as temporary:
            Image.fromarray(picture).save(temporary, compress_level=3)
        if progress:
            progress("renders", k + 1, len(result))


def render_frames(result: TrackResult) -> Iterator[UInt8[np.ndarray, "h w 4"]]:
    """The pictures of `write_renders`, one by one."""
    largest = result.frame_size.max(axis=0, initial=1)
    tile = (min(int(largest[1]), _TILE), min(int(largest[0]), _TILE))
    margin = 2  # pixels drawn around a tile, for silhouettes that cross its border
    drawn_size = (tile[0] + 2 * margin, tile[1] + 2 * margin)
    draw = _make_draw(result, drawn_size)
    for start in range(0, len(result), _CHUNK):
        vertices = result.head_vertices_at(slice(start, start + _CHUNK))
        for k, v in enumerate(vertices, start):
            width, height = (int(n) for n in result.frame_size[k])
            whole = result.camera_at(k)
            picture = np.zeros((height, width, 4), dtype=np.uint8)
            if result.valid[k] and np.isfinite(v).all():
                for top, left in _tiles_with_head(result, k, v, tile):
                    corner = jnp.array([left - margin, top - margin, drawn_size[1], drawn_size[0]], dtype=jnp.float32)
                    camera = _crop_camera(whole, corner, drawn_size)
                    stack = draw(v, result.light[k], result.rotation[k], result.translation[k], camera)
                    inner = np.asarray(stack)[margin:-margin, margin:-margin]
                    here = picture[top : top + tile[0], left : left + tile[1]]
                    alpha = inner[: here.shape[0], : here.shape[1], 7:]
                    colour = inner[: here.shape[0], : here.shape[1], :3] / np.maximum(alpha, 1e-4)
                    here[..., :3] = np.where(alpha > 0, linear_to_srgb_bytes(colour), 0)
                    here[..., 3:] = np.clip(255 * alpha + 0.5, 0, 255).astype(np.uint8)
            yield picture


def _tiles_with_head(
    result: TrackResult, k: int, vertices: Float[np.ndarray, "v 3"], tile: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """(top, left) of the tiles of the image that the head's box in frame `k` touches."""
    width, height = (int(n) for n in result.frame_size[k])
    xy = _on_image(vertices @ result.rotation[k].T + result.translation[k], result.frame_intrinsics[k])
    low, high = xy.min(axis=0) - 2, xy.max(axis=0) + 2
    for top in range(0, height, tile[0]):
        for left in range(0, width, tile[1]):
            if low[0] < left + tile[1] and high[0] > left and low[1] < top + tile[0] and high[1] > top:
                yield top, left
