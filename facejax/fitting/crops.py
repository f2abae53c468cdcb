"""Square face crops: what photometric terms look at, cut out of frames of any size."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from facejax.data.video import Masks, Video

_READ_AT_ONCE = 4  # full frames in memory while key frames are read: 8K frames are 100 MB each


def face_boxes(points: Float[np.ndarray, "f n 2"], margin: float) -> Float[np.ndarray, "f 4"]:
    """(left, top, width, height) px of squares `margin` times as wide as the landmarks' larger extent, NaN-aware.

    Frames without landmarks get the box of the nearest frame with some.
    """
    seen = np.isfinite(points).all(axis=2)
    rows = np.flatnonzero(seen.any(axis=1))
    nearest = rows[np.abs(np.arange(len(points))[:, None] - rows).argmin(axis=1)]
    low = np.nanmin(points[nearest], axis=1)
    high = np.nanmax(points[nearest], axis=1)
    side = np.max(high - low, axis=1, keepdims=True) * margin
    return np.concatenate([(low + high - side) / 2, side, side], axis=1).astype(np.float32)


def crop_image(frame: np.ndarray, box: np.ndarray, size: int, blur: float = 0.0) -> np.ndarray:
    """`box` of a uint8 or bool frame, resampled to size x size with area filtering; outside the frame it is black.

    blur: standard deviation of a Gaussian afterwards, in pixels of the crop. Returns float32 in [0, 1].
    """
    from PIL import Image, ImageFilter

    left, top, width, height = (float(x) for x in box)
    if frame.dtype == bool:
        frame = frame.astype(np.uint8) * 255
    # PIL resamples boxes inside the image only: cut out whole pixels with a black border, then resample the exact box
    x0, y0, x1, y1 = (int(np.floor(left)), int(np.floor(top)), int(np.ceil(left + width)), int(np.ceil(top + height)))
    cut = np.zeros((y1 - y0, x1 - x0, *frame.shape[2:]), dtype=np.uint8)
    fy0, fy1, fx0, fx1 = max(y0, 0), min(y1, frame.shape[0]), max(x0, 0), min(x1, frame.shape[1])
    if fy1 > fy0 and fx1 > fx0:
        cut[fy0 - y0 : fy1 - y0, fx0 - x0 : fx1 - x0] = frame[fy0:fy1, fx0:fx1]
    region = (left - x0, top - y0, left - x0 + width, top - y0 + height)
    image = Image.fromarray(cut).resize((size, size), Image.Resampling.BILINEAR, box=region)
    if blur > 0:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    return np.asarray(image, dtype=np.float32) / 255


def key_frame_images(
    video: Video, masks: Masks | None, ids: Sequence[int] | np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """(frame, mask or None) of the given frames, a few in memory at a time."""
    for start in range(0, len(ids), _READ_AT_ONCE):
        part = list(ids[start : start + _READ_AT_ONCE])
        frames = video.read(part)
        ignored = masks.read(part) if masks is not None else [None] * len(part)
        yield from zip(frames, ignored, strict=True)
