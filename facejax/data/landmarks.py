"""Facial landmarks of a video by MediaPipe's FaceLandmarker, and landmarks kept in files.

FaceLandmarker's detector works on the whole picture reduced to 128 pixels, so it finds no face that is small in a wide
shot, and of several faces it returns now one, now another. `detect_landmarks` therefore searches zoomed, overlapping
tiles until it has seen every face, chooses one, and then gives FaceLandmarker a view cropped around that face alone.
"""

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from facejax.data.video import Video
from facejax.geometry.arrays import read_npz
from facejax.geometry.errors import InputError

N_POINTS = 478
N_BLENDSHAPES = 52
INSTALL = 'pip install "facejax[landmarks]"'

# The order of FaceLandmarker's activations, for files that do not name them.
BLENDSHAPE_NAMES = tuple(
    """
    _neutral browDownLeft browDownRight browInnerUp browOuterUpLeft browOuterUpRight cheekPuff cheekSquintLeft
    cheekSquintRight eyeBlinkLeft eyeBlinkRight eyeLookDownLeft eyeLookDownRight eyeLookInLeft eyeLookInRight
    eyeLookOutLeft eyeLookOutRight eyeLookUpLeft eyeLookUpRight eyeSquintLeft eyeSquintRight eyeWideLeft
    eyeWideRight jawForward jawLeft jawOpen jawRight mouthClose mouthDimpleLeft mouthDimpleRight
    mouthFrownLeft mouthFrownRight mouthFunnel mouthLeft mouthLowerDownLeft mouthLowerDownRight mouthPressLeft
    mouthPressRight mouthPucker mouthRight mouthRollLower mouthRollUpper mouthShrugLower mouthShrugUpper
    mouthSmileLeft mouthSmileRight mouthStretchLeft mouthStretchRight mouthUpperUpLeft mouthUpperUpRight
    noseSneerLeft noseSneerRight
    """.split()  # noqa: SIM905
)

# Indices of MediaPipe's face mesh. Right and left are the subject's.
EYES = ((33, 133, 159, 145, range(468, 473)), (263, 362, 386, 374, range(473, 478)))  # outer, inner, upper, lower, iris
CHEEK_RIGHT, CHEEK_LEFT, FOREHEAD, CHIN = 234, 454, 10, 152

# The largest view, in pixels, given to the network, whose own crop to 256 pixels is sampled without a prefilter.
MAX_VIEW = 640
MAX_SEARCH_SIDE = (
    3840  # larger frames are reduced before anything is searched: a face of 30 pixels there is no face to track
)
MIN_TILE = 160
VIEW_FACTOR = 3.0  # side of the view over that of the face's box
TIGHT_FACTOR = 1.6  # the same, where a neighbour stands close
WARM_UP = 4  # frames that a new view's tracker sees beforehand, so that its filter has settled
TILES_A_FRAME = 24  # searched in each frame while the face is lost; a full search of 1080p is 150 tiles, half a second

Box = np.ndarray  # (4,) x0, y0, x1, y1 in pixels


@dataclasses.dataclass(frozen=True, eq=False)
class Landmarks:
    """Landmarks of one face over a clip.

    points: pixels of the input video, pixel (0, 0)'s centre at (0.5, 0.5); NaN where missing.
    depth: pixels of the same scale, relative to the head's centre, smaller is nearer to the camera.
    blendshapes: MediaPipe's 52 activations in [0, 1], named by `blendshape_names`; NaN where missing; none if unknown.
    valid: frames in which the face was found.
    confidence: in [0, 1], a heuristic (see `landmark_confidence`); 0 where a point is missing.
    box: (x0, y0, x1, y1), the part of the frame that the network was given.
    """

    points: Float[np.ndarray, "frames 478 2"]
    depth: Float[np.ndarray, "frames 478"]
    blendshapes: Float[np.ndarray, "frames _"]
    blendshape_names: tuple[str, ...]
    valid: Bool[np.ndarray, " frames"]
    confidence: Float[np.ndarray, "frames 478"]
    image_size: tuple[int, int]
    box: Float[np.ndarray, "frames 4"]
    notes: tuple[str, ...] = ()

    @property
    def n_frames(self) -> int:
        return len(self.points)


def landmark_confidence(
    points: Float[np.ndarray, "478 2"], depth: Float[np.ndarray, "478"], image_size: tuple[int, int]
) -> Float[np.ndarray, "478"]:
    """How far to trust each landmark, in [0, 1]; FaceLandmarker itself does not say.

    A point on the side that is turned away is a guess of the network. Its normal is taken as the direction from the
    head's centre, between the ears, to the point; confidence rises smoothly from 0.1 where that is 30 degrees past the
    silhouette to 1 where it is 10 degrees before it. The points of an iris count less as its lid closes, and points
    outside the image a fifth. NaN points get 0; without depth all others get 1.
    """
    xyz = np.concatenate([points, depth[:, None]], axis=-1).astype(np.float64)
    finite: np.ndarray = np.all(np.isfinite(points), axis=-1)
    if not np.isfinite(xyz[[CHEEK_RIGHT, CHEEK_LEFT, FOREHEAD, CHIN]]).all():
        return finite.astype(np.float32)  # a partial file: no orientation to judge by
    finite = finite & np.isfinite(depth)
    across = xyz[CHEEK_LEFT] - xyz[CHEEK_RIGHT]
    down = xyz[CHIN] - xyz[FOREHEAD]
    down = down / max(float(np.linalg.norm(down)), 1e-9)
    width = float(np.linalg.norm(across))
    back = np.cross(across, down)  # x right, y down, z away from the camera: points from the face into the head
    back = back / max(float(np.linalg.norm(back)), 1e-9)
    # The cheek points lie in front of the ears, about where the head is widest, and hence about at its centre's depth.
    centre = 0.5 * (xyz[CHEEK_LEFT] + xyz[CHEEK_RIGHT]) + 0.1 * width * back
    normal = xyz - centre
    # The head is longer than wide: without its height, chin and forehead would count as pointing down and up.
    normal = normal - 0.7 * np.outer(normal @ down, down)
    facing = -normal[:, 2] / np.maximum(np.linalg.norm(normal, axis=-1), 1e-9)
    confidence = 0.1 + 0.9 * _smoothstep(facing, -0.5, 0.17)
    for outer, inner, upper, lower, iris in EYES:
        eye_width = float(np.linalg.norm(points[outer] - points[inner]))
        opening = float(np.linalg.norm(points[upper] - points[lower])) / max(eye_width, 1e-9)
        confidence[list(iris)] *= _smoothstep(opening, 0.05, 0.2)
    outside = np.any((points < 0) | (points > np.asarray(image_size)), axis=-1)
    confidence = np.where(outside, 0.2 * confidence, confidence)
    return np.where(finite, confidence, 0.0).astype(np.float32)


def _smoothstep(x: Any, low: float, high: float) -> np.ndarray:
    t = np.clip((np.asarray(x) - low) / (high - low), 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t))


# Finding the faces of one frame --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Face:
    """One detection. points: (478, 3) pixels of the frame, depth at the same scale. view: the box it was found in."""

    points: np.ndarray
    blendshapes: np.ndarray
    view: np.ndarray

    @property
    def box(self) -> np.ndarray:
        xy = self.points[:, :2]
        return np.concatenate([xy.min(axis=0), xy.max(axis=0)])


class _Network:
    """FaceLandmarker on views of a frame. `track` keeps state between calls (one face); else each call stands alone."""

    def __init__(self, model: bytes, n_faces: int, *, track: bool) -> None:
        from mediapipe.tasks.python import BaseOptions, vision

        self._track = track
        self._calls = 0
        mode = vision.RunningMode.VIDEO if track else vision.RunningMode.IMAGE
        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_buffer=model),
            running_mode=mode,
            num_faces=n_faces,
            output_face_blendshapes=True,
        )
        with quiet_stderr():
            self._task = vision.FaceLandmarker.create_from_options(options)
        self.names: tuple[str, ...] = ()

    def __call__(self, frame: np.ndarray, view: np.ndarray, milliseconds: int = 0) -> list[_Face]:
        """Faces in the part `view` of the frame."""
        import mediapipe as mp

        x0, y0, x1, y1 = (int(v) for v in view)
        pixels = _reduced(frame[y0:y1, x0:x1])
        image = mp.Image(image_format=mp.ImageFormat.SRGB, data=pixels)
        # The libraries below say their piece on first use; later calls have nothing to say unless something is wrong.
        with quiet_stderr() if self._calls < 2 else contextlib.nullcontext():
            result = self._task.detect_for_video(image, milliseconds) if self._track else self._task.detect(image)
        self._calls += 1
        scale = np.asarray([x1 - x0, y1 - y0, x1 - x0], np.float64)  # z is in units of the image's width, like x
        origin = np.asarray([x0, y0, 0], np.float64)
        faces = []
        for i, points in enumerate(result.face_landmarks):
            xyz = np.asarray([(p.x, p.y, p.z) for p in points], np.float64) * scale + origin
            shapes = result.face_blendshapes[i]
            self.names = tuple(c.category_name for c in shapes)
            faces.append(_Face(xyz, np.asarray([c.score for c in shapes], np.float32), np.asarray(view, np.float32)))
        return faces

    def close(self) -> None:
        with quiet_stderr():
            self._task.close()


def _reduced(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    if max(height, width) <= MAX_VIEW:
        return np.ascontiguousarray(pixels)
    from PIL import Image

    scale = MAX_VIEW / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.array(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BOX))


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keep the C++ libraries' log (on file descriptor 2, past Python) off the screen; show all of it if anything fails.

    Lines that log an error (E) or a fatal one (F) are passed on in any case.
    """
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # there is no such descriptor, and so nothing to keep quiet
        yield
        return
    with tempfile.TemporaryFile() as log:
        failed = True
        try:
            os.dup2(log.fileno(), 2)
            yield
            failed = False
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines()
            shown = lines if failed else [line for line in lines if line[:1] in "EF" and line[1:5].isdigit()]
            for line in shown:
                print(line, file=sys.stderr)


def _clip_box(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    width, height = size
    low = np.floor(np.clip(box[:2], 0, [width - 1, height - 1]))
    high = np.ceil(np.clip(box[2:], low + 1, [width, height]))
    return np.concatenate([low, high])


def _side(box: np.ndarray) -> float:
    return float(max(box[2] - box[0], box[3] - box[1]))


def _centre(box: np.ndarray) -> np.ndarray:
    return 0.5 * (box[:2] + box[2:])


def _view_around(box: np.ndarray, size: tuple[int, int], factor: float = VIEW_FACTOR) -> np.ndarray:
    half = 0.5 * factor * _side(box)
    return _clip_box(np.concatenate([_centre(box) - half, _centre(box) + half]), size)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Between two boxes' centres, in units of the larger box."""
    return float(np.linalg.norm(_centre(a) - _centre(b))) / max(_side(a), _side(b), 1.0)


def _tiles(size: tuple[int, int], side: int) -> list[np.ndarray]:
    """Square tiles of this side (clipped to the frame) that overlap by half."""
    starts = []
    for length in size:
        count = max(1, int(np.ceil((length - side) / (side / 2))) + 1)
        starts.append(np.linspace(0, max(0, length - side), count).round())
    return [_clip_box(np.asarray([x, y, x + side, y + side]), size) for y in starts[1] for x in starts[0]]


def _tile_sides(size: tuple[int, int]) -> list[int]:
    sides, side = [], min(size)
    while side >= MIN_TILE:
        sides.append(side)
        side //= 2
    return sides or [min(size)]


def _search(
    network: _Network, frame: np.ndarray, views: list[np.ndarray], known: list[_Face] | None = None
) -> list[_Face]:
    """Every distinct face in these views, each confirmed in a view of its own; the largest first."""
    size = (frame.shape[1], frame.shape[0])
    found = list(known or [])
    for view in views:
        for candidate in network(frame, view):
            if any(_distance(candidate.box, face.box) < 0.5 for face in found):
                continue
            # A second look, centred and at the right scale, rejects most false alarms and mends faces that a tile cuts.
            again = network(frame, _view_around(candidate.box, size))
            near = [face for face in again if _distance(candidate.box, face.box) < 0.5]
            if not near:
                continue
            best = min(near, key=lambda face: _distance(candidate.box, face.box))
            if not any(_distance(best.box, face.box) < 0.5 for face in found):
                found.append(best)
    return sorted(found, key=lambda face: -_side(face.box))


def _search_everywhere(network: _Network, frame: np.ndarray) -> list[_Face]:
    """The whole frame, then ever smaller tiles: faces from about 30 pixels on, but none beside one 8 times as large."""
    size = (frame.shape[1], frame.shape[0])
    faces = _search(network, frame, [np.asarray([0, 0, *size])])
    for side in _tile_sides(size):
        if faces and side < _side(faces[0].box):
            break
        faces = _search(network, frame, _tiles(size, side), faces)
    return faces


# Following one face --------------------------------------------------------------------------------------------------


class _Follower:
    """Finds the face asked for, follows it in a view of its own, and finds it again when it is lost."""

    def __init__(self, model: bytes, face: int, smoothing: bool) -> None:
        self._model = model
        self._face = face
        # A clock that runs a thousand times too fast makes FaceLandmarker's low-pass filter transparent.
        self._clock = 1000.0 if smoothing else 1_000_000.0
        self._finder = _Network(model, 8, track=False)
        self._tracker: _Network | None = None
        self._view = np.zeros(4)
        self._whole = False
        self._recent: deque[tuple[np.ndarray, float, np.ndarray]] = deque(maxlen=WARM_UP)
        self._last: np.ndarray | None = None  # the last box of the face followed
        self._others: list[np.ndarray] = []  # the last boxes of the faces that are not followed
        self._lost_for = 0
        self._milliseconds = -1
        self._next_tile = 0
        self.notes: list[str] = []

    def __call__(self, number: int, frame: np.ndarray, time: float) -> _Face | None:
        face = self._followed(frame, time) if self._tracker is not None else None
        if face is None:
            self._drop_tracker()
            face = self._find(number, frame)
            if face is None:
                self._lost_for += 1
                self._recent.clear()
                return None
            self._set_view(face.box, frame, alone=not self._others)
            # The tracker's own first result, where it has one, so that what follows is of one make.
            tracked = self._track(frame, time, face.box)
            if tracked is None and self._others:  # it took a neighbour: show it less of them
                self._drop_tracker()
                self._view = _view_around(face.box, (frame.shape[1], frame.shape[0]), TIGHT_FACTOR)
                tracked = self._track(frame, time, face.box)
            face = tracked or face
        elif self._needs_new_view(face.box, frame):
            self._drop_tracker()
            self._set_view(face.box, frame, alone=self._whole)
            for old_frame, old_time, old_box in self._recent:
                if (old_box[:2] >= self._view[:2]).all() and (old_box[2:] <= self._view[2:]).all():
                    self._track(old_frame, old_time, old_box)
            face = self._track(frame, time, face.box) or face
        self._lost_for = 0
        self._last = face.box
        self._recent.append((frame, time, face.box))
        return face

    @property
    def names(self) -> tuple[str, ...]:
        return self._finder.names

    def close(self) -> None:
        self._drop_tracker()
        self._finder.close()

    def _followed(self, frame: np.ndarray, time: float) -> _Face | None:
        assert self._last is not None
        return self._track(frame, time, self._last)

    def _track(self, frame: np.ndarray, time: float, expected: np.ndarray) -> _Face | None:
        """The tracker's face, unless it has jumped to somebody else's."""
        if self._tracker is None:
            self._tracker = _Network(self._model, 1, track=True)
            self._milliseconds = -1
        self._milliseconds = max(self._milliseconds + 1, round(time * self._clock))
        faces = self._tracker(frame, self._view, self._milliseconds)
        if not faces or _distance(faces[0].box, expected) > 0.6:
            return None
        ratio = _side(faces[0].box) / max(_side(expected), 1.0)
        return faces[0] if 0.5 < ratio < 2.0 else None

    def _drop_tracker(self) -> None:
        if self._tracker is not None:
            self._tracker.close()
            self._tracker = None

    def _set_view(self, box: np.ndarray, frame: np.ndarray, *, alone: bool) -> None:
        size = (frame.shape[1], frame.shape[0])
        self._whole = alone and _side(box) >= 0.25 * max(size)
        self._view = np.asarray([0.0, 0.0, *size]) if self._whole else _view_around(box, size)

    def _needs_new_view(self, box: np.ndarray, frame: np.ndarray) -> bool:
        """Only when it must: each change disturbs the filter's memory."""
        size = np.asarray([frame.shape[1], frame.shape[0]], float)
        if self._whole:
            return _side(box) < 0.15 * float(size.max())
        margin = 0.2 * _side(box)
        near_edge = ((box[:2] - margin < self._view[:2]) & (self._view[:2] > 0)).any() or (
            (box[2:] + margin > self._view[2:]) & (self._view[2:] < size)
        ).any()
        return bool(near_edge or VIEW_FACTOR * _side(box) < 0.6 * _side(self._view))

    def _find(self, number: int, frame: np.ndarray) -> _Face | None:
        if self._last is not None and not self._others:  # nobody to mistake for ours: the likely places first
            faces = _search(self._finder, frame, self._likely_views(frame))
            if faces:
                return self._returned(number, faces)
        if self._last is not None and self._others:
            near = [face for face in _search(self._finder, frame, self._likely_views(frame)[:1]) if self._is_mine(face)]
            if near:
                return self._returned(number, near)
        if self._lost_for < 3:
            faces = _search_everywhere(self._finder, frame)
        else:
            faces = _search(self._finder, frame, self._next_tiles(frame))
            if faces and (self._last is None or self._others):
                faces = _search_everywhere(self._finder, frame) or faces  # who is who takes everybody
        if not faces:
            return None
        return self._choose_first(number, faces) if self._last is None else self._returned(number, faces)

    def _likely_views(self, frame: np.ndarray) -> list[np.ndarray]:
        size = (frame.shape[1], frame.shape[0])
        whole = np.asarray([0, 0, *size])
        if self._last is None:
            return [whole]
        return [_view_around(self._last, size), _view_around(self._last, size, 2 * VIEW_FACTOR), whole]

    def _next_tiles(self, frame: np.ndarray) -> list[np.ndarray]:
        """Some of the frame's tiles, others in each frame: what searching all would cost is spread over time."""
        size = (frame.shape[1], frame.shape[0])
        tiles = [tile for side in _tile_sides(size) for tile in _tiles(size, side)]
        chosen = [tiles[(self._next_tile + i) % len(tiles)] for i in range(min(TILES_A_FRAME, len(tiles)))]
        self._next_tile = (self._next_tile + len(chosen)) % len(tiles)
        return [*self._likely_views(frame), *chosen]

    def _choose_first(self, number: int, faces: list[_Face]) -> _Face:
        if self._face >= len(faces):
            count = f"{len(faces)} face{'s were' if len(faces) > 1 else ' was'} seen"
            raise InputError(
                f"Face {self._face} was asked for, but only {count} (in frame {number}); "
                "faces are numbered from 0, the largest."
            )
        mine = faces[self._face]
        self._others = [face.box for face in faces if face is not mine]
        x, y = _centre(mine.box)
        which = f"at x={x:.0f}, y={y:.0f}, {mine.box[2] - mine.box[0]:.0f} pixels wide"
        if number > 0:
            self.notes.append(f"no face before frame {number}")
        if len(faces) > 1:
            rank = "the largest" if self._face == 0 else f"number {self._face + 1} by size"
            self.notes.append(f"{len(faces)} faces in frame {number}: following face {self._face}, {rank}, {which}")
        elif _side(mine.box) < 100:
            self.notes.append(f"small face in frame {number}, {which}")
        return mine

    def _mine_among(self, faces: list[_Face]) -> _Face | None:
        """The face followed, among all of a frame's: each is matched to where it was last seen, the nearest first."""
        assert self._last is not None
        seen = [self._last, *self._others]
        pairs = sorted((_distance(box, face.box), i, j) for i, box in enumerate(seen) for j, face in enumerate(faces))
        owner: dict[int, int] = {}
        for _, i, j in pairs:
            if i not in owner and j not in owner.values():
                owner[i] = j
        if 0 not in owner:
            return None
        # With somebody missing, a face far from where ours was may be a stranger's or a neighbour's: wait.
        if len(faces) < len(seen) and _distance(self._last, faces[owner[0]].box) > 1.0 + 0.05 * self._lost_for:
            return None
        for i, j in owner.items():
            if i > 0:
                self._others[i - 1] = faces[j].box
        return faces[owner[0]]

    def _is_mine(self, face: _Face) -> bool:
        """Whether this is where ours was last seen, and nobody else was."""
        assert self._last is not None
        distance = _distance(face.box, self._last)
        return distance < 0.5 and all(distance < _distance(face.box, other) for other in self._others)

    def _returned(self, number: int, faces: list[_Face]) -> _Face | None:
        last = self._last
        assert last is not None
        sure = [face for face in faces if self._is_mine(face)] or ([] if self._others else faces)
        mine = min(sure, key=lambda face: _distance(face.box, last)) if sure else self._mine_among(faces)
        if mine is not None and self._lost_for:
            self.notes.append(f"no face in {_span(number - self._lost_for, number - 1)}")
        return mine


@dataclasses.dataclass(frozen=True, eq=False)
class FaceSeen:
    """One face's landmarks in one frame, see `Landmarks`."""

    points: Float[np.ndarray, "478 2"]
    depth: Float[np.ndarray, "478"]
    confidence: Float[np.ndarray, "478"]


class FaceDetector:
    """Follows one face through frames as they come, as `detect_landmarks` does through a clip. A context.

    face: which of several, numbered by size in the first frame that shows any. model_path: MediaPipe's bundle; by
    default the installed asset `face-landmarker`. Raises `InputError` without MediaPipe or its model.
    """

    def __init__(self, *, face: int = 0, model_path: Path | None = None) -> None:
        if face < 0:
            raise InputError(f"`face` must be 0 or more (0 is the largest face), not {face}.")
        self._follower = _make_follower(_read_model(model_path), face, smoothing=False)
        self._frames = 0

    def detect(self, frame: UInt8[np.ndarray, "h w 3"], time: float) -> FaceSeen | None:
        """The face in the next frame, sRGB-encoded; None where it is not found. time: seconds, ascending.

        Raises `InputError` for a `face` that is not there.
        """
        found = self._follower(self._frames, frame, time)
        self._frames += 1
        if found is None:
            return None
        points = found.points.astype(np.float32)
        size = (frame.shape[1], frame.shape[0])
        confidence = landmark_confidence(points[:, :2], points[:, 2], size)
        return FaceSeen(points=points[:, :2], depth=points[:, 2], confidence=confidence)

    def __enter__(self) -> "FaceDetector":
        return self

    def __exit__(self, *unused: object) -> None:
        self._follower.close()


def _span(first: int, last: int) -> str:
    return f"frame {first}" if first == last else f"frames {first} to {last}"


def landmarks_from_array(points: np.ndarray, n_frames: int, size: tuple[int, int]) -> Landmarks:
    """Landmarks from an array (F, 478, 2 or 3) in pixels, NaN where missing."""
    if points.ndim != 3 or points.shape[1] != 478 or points.shape[2] not in (2, 3):
        raise InputError(f"Landmarks must have the shape (frames, 478, 2 or 3), and these have {points.shape}.")
    if len(points) != n_frames:
        raise InputError(
            f"Landmarks must be given for every frame: the video has {n_frames} and these are {len(points)}."
        )
    points = points.astype(np.float32)
    depth = points[..., 2] if points.shape[2] == 3 else np.full(points.shape[:2], np.nan, np.float32)
    seen = np.isfinite(points[..., :2]).all(axis=2)
    if not seen.any():
        raise InputError("Every landmark is NaN; give at least one frame with a face.")
    confidence = np.stack([landmark_confidence(p[:, :2], d, size) for p, d in zip(points, depth, strict=True)])
    box = np.concatenate([np.nanmin(np.where(seen[..., None], points[..., :2], np.inf), axis=1),
                          np.nanmax(np.where(seen[..., None], points[..., :2], -np.inf), axis=1)], axis=1)  # fmt: skip
    return Landmarks(
        points=points[..., :2],
        depth=depth,
        blendshapes=np.full((n_frames, 0), np.nan, np.float32),
        blendshape_names=(),
        valid=seen.any(axis=1),
        confidence=confidence.astype(np.float32),
        image_size=size,
        box=box.astype(np.float32),
    )


def detect_landmarks(
    video: Video,
    *,
    face: int = 0,
    model_path: Path | None = None,
    smoothing: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Landmarks:
    """Follow one face through a clip and return its landmarks in every frame.

    face: which of several, numbered by size in the first frame that shows any (0 is the largest).
    model_path: MediaPipe's bundle `face_landmarker.task`; by default the installed asset `face-landmarker`.
    smoothing: FaceLandmarker's own temporal filter (VIDEO mode). On a talking head at 25 frames per second it takes the
        jitter down to 0.4 of single images' and delays lips by 0.3 and lids by 0.5 of a frame, and a seventh of a fast
        blink is lost; without it there is no delay, and jitter is 0.7, because the network's crop still follows the
        frame before. Off, because a fit smooths in time itself, and knows what moves.
    progress: called with (frames done, frames in all).
    Frames without the face are NaN and not `valid`. Raises InputError without MediaPipe or its model, for a `face` that
    is not there, and if no frame shows any.
    """
    if face < 0:
        raise InputError(f"`face` must be 0 or more (0 is the largest face), not {face}.")
    model = _read_model(model_path)
    width, height = video.size
    count = video.n_frames
    points = np.full((count, N_POINTS, 3), np.nan, np.float32)
    blendshapes = np.full((count, N_BLENDSHAPES), np.nan, np.float32)
    boxes = np.full((count, 4), np.nan, np.float32)
    follower = _make_follower(model, face, smoothing)
    try:
        for i, frame in enumerate(video.frames(max_side=MAX_SEARCH_SIDE)):
            found = follower(i, frame, float(video.time[i] - video.time[0]))
            if found is not None:
                scale = np.asarray([width / frame.shape[1], height / frame.shape[0]])
                points[i] = found.points * np.append(scale, scale[0])
                blendshapes[i] = found.blendshapes
                boxes[i] = found.view * np.tile(scale, 2)
            if progress is not None:
                progress(i + 1, count)
    finally:
        follower.close()
    valid = np.isfinite(points[:, 0, 0])
    if not valid.any():
        name = video.path if video.path is not None else "the array"
        raise InputError(
            f"No face was found in any of the {count} frames of {name}; check that a face is visible and upright."
        )
    notes = list(follower.notes)
    if not valid[-1]:
        notes.append(f"no face in {_span(int(np.flatnonzero(valid)[-1]) + 1, count - 1)}")
    confidence = np.stack([landmark_confidence(p[:, :2], p[:, 2], video.size) for p in points])
    return Landmarks(
        points=points[..., :2],
        depth=points[..., 2],
        blendshapes=blendshapes,
        blendshape_names=follower.names,
        valid=valid,
        confidence=confidence,
        image_size=video.size,
        box=boxes,
        notes=tuple(notes),
    )


def _read_model(model_path: Path | None) -> bytes:
    try:
        with quiet_stderr():
            import mediapipe  # noqa: F401
            from mediapipe.tasks.python import vision  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"Landmark detection needs MediaPipe, which could not be imported ({error}): {INSTALL}"
        ) from error
    if model_path is None:
        from facejax.data.assets import asset_path

        model_path = asset_path("face-landmarker")
    path = Path(model_path).expanduser()
    if not path.is_file():
        raise InputError(f"No such landmark model: {path}; expected MediaPipe's face_landmarker.task.")
    return path.read_bytes()


def _make_follower(model: bytes, face: int, smoothing: bool) -> _Follower:
    try:
        return _Follower(model, face, smoothing)
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"The landmark model could not be loaded; expected MediaPipe's face_landmarker.task bundle ({error})."
        ) from error


# Files ---------------------------------------------------------------------------------------------------------------


def load_landmarks(
    path: str | os.PathLike[str],
    n_frames: int,
    image_size: tuple[int, int],
    *,
    source_frames: int | None = None,
    first: int = 0,
) -> Landmarks:
    """Landmarks from an .npz: `landmarks` (frames, 478, 2 or 3), pixels of the video, NaN where a point is missing.

    Optional arrays: `blendshapes` (frames, 52), `blendshape_names`, `image_size` [width, height], `confidence` (frames,
    478), `box` (frames, 4). A file for a whole source of `source_frames` frames serves a range from `first` too.
    Raises InputError if the file does not fit the video.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"No such file of landmarks: {file}")
    arrays = read_npz(file, "detect again, or copy the file again")
    if "landmarks" not in arrays:
        raise InputError(f"{file} must hold an array `landmarks`, and it holds {', '.join(arrays) or 'nothing'}.")
    xyz = arrays["landmarks"]
    if xyz.ndim != 3 or xyz.shape[1] != N_POINTS or xyz.shape[2] not in (2, 3) or xyz.dtype.kind not in "fiu":
        raise InputError(
            f"`landmarks` in {file} must be (frames, {N_POINTS}, 2 or 3) numbers, not {xyz.shape} {xyz.dtype}."
        )
    rows = slice(first, first + n_frames) if len(xyz) == source_frames else slice(None)
    total = len(xyz)
    xyz = xyz[rows].astype(np.float32)
    if len(xyz) != n_frames:
        raise InputError(
            f"{file} holds landmarks for {total} frames, and the video has {n_frames}; they must be of one clip."
        )
    if "image_size" in arrays:
        size = tuple(int(v) for v in arrays["image_size"].reshape(-1))
        if size != tuple(image_size):
            shown = " x ".join(str(v) for v in size)
            raise InputError(
                f"{file} was made for images of {shown} pixels, and the video has {image_size[0]} x {image_size[1]}; "
                "detect again at the video's size."
            )
    points = xyz[..., :2]
    if np.isinf(xyz).any():
        raise InputError(f"`landmarks` in {file} hold infinite values; write NaN for a missing point.")
    finite = np.isfinite(points).all(axis=-1)
    valid = finite.sum(axis=1) >= 68
    if not valid.any():
        raise InputError(
            f"`landmarks` in {file} are missing (NaN) in every frame; at least one frame with a face is needed."
        )
    if float(np.nanmax(np.abs(points))) <= 4.0:
        raise InputError(
            f"`landmarks` in {file} look normalised; expected pixels: multiply x by the width and y by the height."
        )
    depth = xyz[..., 2] if xyz.shape[2] == 3 else np.full(points.shape[:2], np.nan, np.float32)
    blendshapes = _optional(arrays, "blendshapes", (n_frames, N_BLENDSHAPES), rows, file)
    confidence = _optional(arrays, "confidence", (n_frames, N_POINTS), rows, file)
    box = _optional(arrays, "box", (n_frames, 4), rows, file)
    if confidence is None:
        if xyz.shape[2] == 3:
            confidence = np.stack([landmark_confidence(p, z, image_size) for p, z in zip(points, depth, strict=True)])
        else:
            confidence = finite.astype(np.float32)
    confidence = np.where(finite & valid[:, None], np.clip(np.nan_to_num(confidence), 0.0, 1.0), 0.0).astype(np.float32)
    names = tuple(str(n) for n in arrays["blendshape_names"]) if "blendshape_names" in arrays else BLENDSHAPE_NAMES
    return Landmarks(
        points=np.where(finite[..., None], points, np.float32(np.nan)),
        depth=depth,
        blendshapes=np.full((n_frames, N_BLENDSHAPES), np.nan, np.float32) if blendshapes is None else blendshapes,
        blendshape_names=names,
        valid=valid,
        confidence=confidence,
        image_size=(int(image_size[0]), int(image_size[1])),
        box=np.full((n_frames, 4), np.nan, np.float32) if box is None else box,
        notes=(f"landmarks read from {file.name}",),
    )


def _optional(
    arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...], rows: slice, file: Path
) -> np.ndarray | None:
    if name not in arrays:
        return None
    values = arrays[name][rows] if arrays[name].ndim else arrays[name]
    if values.shape != shape or values.dtype.kind not in "fiu":
        raise InputError(f"`{name}` in {file} must be {shape} numbers, and are {values.shape} {values.dtype}.")
    return values.astype(np.float32)


def save_landmarks(path: str | os.PathLike[str], landmarks: Landmarks, fps: float) -> None:
    """Write landmarks as the .npz that `load_landmarks` reads, whole or not at all. Raises InputError if it cannot."""
    target = Path(path)
    partial = target.with_name(f".{target.stem}.part{os.getpid()}.npz")
    try:
        np.savez_compressed(
            partial,
            landmarks=np.concatenate([landmarks.points, landmarks.depth[..., None]], axis=-1),
            blendshapes=landmarks.blendshapes,
            blendshape_names=np.asarray(landmarks.blendshape_names, dtype=str),
            image_size=np.asarray(landmarks.image_size),
            fps=np.asarray(fps, np.float64),
            confidence=landmarks.confidence,
            box=landmarks.box,
        )
        os.replace(partial, target)
    except OSError as error:
        raise InputError(f"The landmarks {target} could not be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
