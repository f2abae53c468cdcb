"""Photos of one person, of any sizes and cameras: read like the frames of a clip, but no two are neighbours in time."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from facejax.data.landmarks import Landmarks, detect_landmarks, landmarks_from_array
from facejax.data.video import IMAGE_SUFFIXES, ImagesReader, Video, image_size, images_in, open_video
from facejax.geometry.errors import InputError

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".ts")
_LEAST_PX = 32


class _Arrays:
    """Pictures in memory, of several sizes."""

    damaged: frozenset[int] = frozenset()

    def __init__(self, videos: list[Video]) -> None:
        self._videos = videos

    def iterate(self, start: int, stop: int, max_side: int | None) -> Iterator[np.ndarray]:
        return self.read(range(start, stop), max_side)

    def read(self, indices: Sequence[int], max_side: int | None) -> Iterator[np.ndarray]:
        for i in indices:
            yield next(self._videos[i].frames(max_side=max_side))


def open_photos(source: Any) -> Video:
    """Photos as a `Video` whose frames may differ in size (`Video.sizes`).

    source: path of a picture or of a folder of them (in natural order), or a list of paths or of arrays
        (height, width, 3), uint8 or floats in [0, 1], sRGB-encoded. Raises `InputError` for anything else, for a folder
        that holds videos beside pictures, and for pictures that cannot be read.
    """
    if isinstance(source, np.ndarray):
        source = list(source) if source.ndim == 4 else [source]
    if isinstance(source, str | os.PathLike):
        source = _files(Path(source).expanduser())
    if not isinstance(source, Sequence) or not len(source):
        raise InputError(f"Photos are a picture, a folder or a list of them, and {type(source).__name__} was given.")
    if all(isinstance(item, str | os.PathLike) for item in source):
        paths = [Path(item).expanduser() for item in source]
        sizes = tuple(image_size(p) for p in paths)
        reader: Any = ImagesReader(paths)
        place = paths[0] if len(paths) == 1 else paths[0].parent
    else:
        videos = [open_video(np.asarray(item)[None]) for item in source]
        sizes, reader, place = tuple(v.size for v in videos), _Arrays(videos), None
    for k, size in enumerate(sizes):
        if min(size) < _LEAST_PX:
            raise InputError(
                f"Photos must be at least {_LEAST_PX} pixels a side, and photo {k} is {size[0]} x {size[1]}."
            )
    next(reader.iterate(0, 1, None))  # a header may be whole where the pixels are not
    count = len(sizes)
    return Video(
        n_frames=count,
        size=sizes[0],
        time=np.arange(count, dtype=np.float64),
        fps=1.0,
        has_audio=False,
        path=place,
        first=0,
        source_frames=count,
        max_side=None,
        notes=photo_notes(count),
        _reader=reader,
        photo_sizes=sizes,
    )


def photo_notes(count: int) -> tuple[str, ...]:
    """What photos cannot tell, for a person."""
    if count > 1:
        return (f"{count} photos of one person: each with its own pose, expression, light and focal length",)
    return (
        "one photo: what it does not show of the head, its depth along the view above all, is the model's guess, and "
        "distance and focal length trade against each other; more photos, or --intrinsics, tell more",
    )


def are_photos(source: Any) -> bool:
    """Whether a path is one picture, or a folder of pictures that are not of one size: a clip's frames are."""
    if not isinstance(source, str | os.PathLike):
        return False
    path = Path(source).expanduser()
    if path.is_file():
        return path.suffix.lower() in IMAGE_SUFFIXES
    if not path.is_dir():
        return False
    pictures = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    return len(pictures) > 1 and len({image_size(p) for p in pictures}) > 1


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        videos = [p.name for p in path.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES]
        pictures = images_in(path)
        if videos:
            raise InputError(f"The folder {path} holds videos ({videos[0]}) beside pictures: give one or the other.")
        return pictures
    if not path.is_file():
        raise InputError(f"No such picture or folder: {path}")
    return [path]


def photo_landmarks(
    photos: Video, given: Any = None, *, face: int = 0, progress: Callable[[int, int], None] | None = None
) -> Landmarks:
    """Landmarks of photos, each searched for on its own.

    given: instead, a `Landmarks`, or for each photo points (478, 2 or 3) in its pixels, NaN where missing. Raises
    `InputError` where no photo shows a face; a photo without one is not `valid`, and a note says so.
    """
    if isinstance(given, Landmarks):
        return given
    found: list[Landmarks | None] = []
    if given is not None:
        if len(given) != photos.n_frames:
            raise InputError(f"Landmarks must be given for each of {photos.n_frames} photos, and {len(given)} were.")
        sizes = [(int(w), int(h)) for w, h in photos.sizes]
        found = [
            landmarks_from_array(np.asarray(p)[None], 1, size) if np.isfinite(np.asarray(p)).any() else None
            for p, size in zip(given, sizes, strict=True)
        ]
    else:
        for k in range(photos.n_frames):
            if progress:
                progress(k, photos.n_frames)
            one = open_video(next(photos.frames(k, k + 1))[None])
            try:
                found.append(detect_landmarks(one, face=face))
            except InputError as error:
                if "no face" not in str(error).lower():
                    raise
                found.append(None)
    seen = next((f for f in found if f is not None), None)
    if seen is None:
        raise InputError("No face was found in any photo; check that a face is visible, or give landmarks of your own.")
    notes = tuple(f"photo {k}: no face was found" for k, f in enumerate(found) if f is None)
    rows = [f if f is not None else _missing(seen) for f in found]

    return dataclasses.replace(
        seen,
        points=np.concatenate([r.points for r in rows]),
        depth=np.concatenate([r.depth for r in rows]),
        blendshapes=np.concatenate([r.blendshapes for r in rows]),
        valid=np.concatenate([r.valid for r in rows]),
        confidence=np.concatenate([r.confidence for r in rows]),
        box=np.concatenate([r.box for r in rows]),
        image_size=photos.size,
        notes=notes,
    )


def _missing(like: Landmarks) -> Landmarks:
    """A photo without a face."""
    return dataclasses.replace(
        like,
        points=np.full_like(like.points, np.nan),
        depth=np.full_like(like.depth, np.nan),
        blendshapes=np.full_like(like.blendshapes, np.nan),
        valid=np.zeros_like(like.valid),
        confidence=np.zeros_like(like.confidence),
        box=np.full_like(like.box, np.nan),
    )
