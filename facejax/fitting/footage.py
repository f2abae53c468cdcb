"""What a fit looks at: frames, what to ignore of them, detected points, and square face crops of frames of any size."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from facejax.data.landmarks import Landmarks
from facejax.data.video import Masks, Video

_READ_AT_ONCE = 4  # full frames in memory while they are read out of order: 8K frames are 100 MB each
_KEPT = 16  # crops of the last frames, of which neighbouring windows want some again


@dataclasses.dataclass(frozen=True)
class Look:
    """How face crops are cut."""

    size: int
    """Side, pixels."""
    margin: float
    """Width of the crop over the larger extent of the landmarks."""
    blur_px: float = 0.0
    """Gaussian, pixels of the crop."""
    detail_px: tuple[float, ...] = ()
    """Radii of detail channels that are added, see `detail`."""


@dataclasses.dataclass(eq=False)
class Footage:
    """Frames and what was detected in them. Crops of ascending frames are cut in one pass over the clip, however many
    calls ask for them."""

    clip: Video
    masks: Masks | None
    points: Float[np.ndarray, "f n 2"]
    """Detected points, pixels, NaN where missing."""
    confidence: Float[np.ndarray, "f n"]
    valid: np.ndarray
    """Frames with a face."""

    def __post_init__(self) -> None:
        self._streams: dict[Look, _Stream] = {}

    @functools.cached_property
    def _boxes(self) -> dict[float, Float[np.ndarray, "f 4"]]:
        return {}

    def boxes(self, margin: float) -> Float[np.ndarray, "f 4"]:
        """Every frame's face box, see `face_boxes`."""
        if margin not in self._boxes:
            self._boxes[margin] = face_boxes(self.points, margin)
        return self._boxes[margin]

    def crops(self, ids: np.ndarray, look: Look) -> tuple[Float[np.ndarray, "n s s c"], Float[np.ndarray, "n s s"]]:
        """(pictures, ignore) of these frames: display values in [0, 1], then detail channels; 1 where a mask says that
        a pixel is not the face, or the crop lies outside of the frame."""
        stream = self._streams.setdefault(look, _Stream(self, look))
        cut = stream.take([int(i) for i in ids])
        return np.stack([c[0] for c in cut]), np.stack([c[1] for c in cut])

    def masked_confidence(self) -> Float[np.ndarray, "f n"]:
        """Confidence of the points, 0 for those on ignored pixels."""
        confidence = np.where(np.isfinite(self.confidence), self.confidence, 1.0)
        if self.masks is None:
            return confidence
        confidence = confidence.copy()
        for k, mask in enumerate(self.masks.frames()):
            at = np.nan_to_num(self.points[k]).astype(int)
            column, row = np.clip(at[:, 0], 0, mask.shape[1] - 1), np.clip(at[:, 1], 0, mask.shape[0] - 1)
            confidence[k, mask[row, column]] = 0.0
        return confidence


def footage_of(clip: Video, seen: Landmarks, masks: Masks | None = None) -> Footage:
    """A clip with its landmarks."""
    return Footage(clip, masks, np.asarray(seen.points), np.asarray(seen.confidence), np.asarray(seen.valid))


class _Stream:
    """Crops of one look, in one pass while ids ascend; the last ones are kept."""

    def __init__(self, footage: Footage, look: Look) -> None:
        self.footage, self.look = footage, look
        self.kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.next: int | None = None  # frame that the open pass gives next; None where none is open
        self.frames: Iterator[tuple[np.ndarray, np.ndarray | None]] = iter(())

    def take(self, ids: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        wanted = sorted(set(ids) - self.kept.keys())
        found = {i: self.kept[i] for i in ids if i in self.kept}
        if wanted and len(wanted) * 4 >= wanted[-1] - wanted[0] + 1:
            found |= self._in_one_pass(wanted)
        else:
            images = read_frames(self.footage.clip, self.footage.masks, wanted)
            found |= {i: self._cut(i, *image) for i, image in zip(wanted, images, strict=True)}
        self.kept = {i: found[i] for i in sorted(found)[-_KEPT:]}
        return [found[i] for i in ids]

    def _in_one_pass(self, wanted: list[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        k = self.next
        if k is None or not k <= wanted[0] <= k + _KEPT:
            k, self.frames = wanted[0], self._from(wanted[0])
        found = {}
        while k <= wanted[-1]:
            image = next(self.frames)
            if k in wanted:
                found[k] = self._cut(k, *image)
            k += 1
        self.next = k
        return found

    def _from(self, first: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        masks = self.footage.masks.frames(first) if self.footage.masks is not None else None
        for frame in self.footage.clip.frames(first):
            yield frame, next(masks) if masks is not None else None

    def _cut(self, k: int, frame: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        look, box = self.look, self.footage.boxes(self.look.margin)[k]
        ignore = outside(frame.shape[:2], box, look.size)
        if mask is not None:
            ignore = np.maximum(ignore, crop_image(mask, box, look.size))
            frame = without(frame, mask, box)
        picture = crop_image(frame, box, look.size, blur=look.blur_px)
        if look.detail_px:
            picture = np.concatenate([picture, detail(picture, look.detail_px)], axis=-1)
        return picture, ignore


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


def outside(shape: tuple[int, ...], box: np.ndarray, size: int) -> Float[np.ndarray, "s s"]:
    """Share of each pixel of a crop that lies outside of a frame of this (height, width)."""
    left, top, width, height = (float(x) for x in box)
    if left >= 0 and top >= 0 and left + width <= shape[1] and top + height <= shape[0]:
        return np.zeros((size, size), np.float32)
    return 1 - crop_image(np.ones(shape[:2], bool), box, size)


def without(frame: np.ndarray, mask: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The frame with pixels that are to be ignored in the mean colour of the others in the box: resampling, blur and
    detail would carry what is there to their neighbours."""
    left, top, width, height = (float(x) for x in box)
    near = np.s_[
        max(int(top) - 1, 0) : max(int(top + height) + 2, 0), max(int(left) - 1, 0) : max(int(left + width) + 2, 0)
    ]
    hidden = mask[near]
    if not hidden.any():
        return frame
    rest = frame[near][~hidden]
    filled = frame.copy()
    filled[near][hidden] = rest.mean(axis=0) if len(rest) else 0
    return filled


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


def read_frames(
    clip: Video, masks: Masks | None, ids: Sequence[int] | np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """(frame, mask or None) of these frames, a few in memory at a time."""
    for start in range(0, len(ids), _READ_AT_ONCE):
        part = list(ids[start : start + _READ_AT_ONCE])
        frames = clip.each(part) if clip.photo_sizes else clip.read(part)
        ignored = masks.read(part) if masks is not None else [None] * len(part)
        yield from zip(frames, ignored, strict=True)
