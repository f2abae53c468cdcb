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


def detail(picture: Float[np.ndarray, "h w 3"], radii_px: tuple[float, ...]) -> Float[np.ndarray, "h w c"]:
    """Luminance minus its Gaussian mean, over its local standard deviation: a face without its lighting.

    radii_px: standard deviations of the Gaussian, one channel each; finer detail than a fifth of the radius is
    blurred away, so that the largest pulls from furthest. Shading, cast shadows and exposure are smooth or local gains
    and drop out; brows, lips, lids, moles and stubble stay. About in [-2, 2]; contrasts under 0.02 fade to 0.
    """
    grey = picture @ np.array([0.299, 0.587, 0.114], np.float32)
    channels = []
    for radius in radii_px:
        high = _gaussian(grey, radius / 5) - _gaussian(grey, radius)
        channels.append(high / np.sqrt(_gaussian(high**2, radius) + 0.02**2))
    return np.stack(channels, axis=-1)


def _gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """Separable Gaussian blur with reflected borders."""
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for axis in (0, 1):
        padded = np.pad(image, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], mode="reflect")
        image = sum(k * np.take(padded, range(i, i + image.shape[axis]), axis=axis) for i, k in enumerate(kernel))
    return image


def key_frame_images(
    video: Video, masks: Masks | None, ids: Sequence[int] | np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """(frame, mask or None) of the given frames, a few in memory at a time."""
    for start in range(0, len(ids), _READ_AT_ONCE):
        part = list(ids[start : start + _READ_AT_ONCE])
        frames = video.read(part)
        ignored = masks.read(part) if masks is not None else [None] * len(part)
        yield from zip(frames, ignored, strict=True)
