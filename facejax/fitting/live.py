"""Live tracking: one frame in, one frame out, in constant memory.

A fit of a few frames (`enrol`) says what a clip shares: shape, light, focal length, colours of points. `init` makes a
state of it, and `step` moves the state by one frame: the last turn in time of the head's plan, on the new frame alone,
beside two frames that stay as they are. It looks back as a window of the offline fit does, and never ahead.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from facejax.data.landmarks import landmark_confidence
from facejax.data.video import open_video
from facejax.fitting.config import FitConfig
from facejax.fitting.footage import Footage
from facejax.fitting.plans import Known, plan_for
from facejax.fitting.sequence import LOST_MM, STATUS_NAMES, Fit, fit_clip
from facejax.fitting.solve import Solved, Turn, curvature_solver, minimise, objective, paths_of
from facejax.fitting.start import pose_from_landmarks
from facejax.fitting.terms import Points
from facejax.fitting.terms.landmarks import SeenLandmarks, landmark_residual_mm, landmarks_of
from facejax.fitting.terms.points import COLOUR
from facejax.fitting.terms.term import Observed
from facejax.geometry.errors import InputError
from facejax.geometry.records import Camera, Pose, PyTree
from facejax.geometry.rotations import matrix_to_rotvec, rotvec_to_matrix
from facejax.models.head import HeadModel
from facejax.scenes import ClipVariables, FrameVariables, Lens, PoseVariables, Scene, Unknowns
from facejax.scenes.unknowns import camera_of, light_in, on_host, placed, take_frames, variables_of

TRACKED, NO_FACE, LANDMARKS_OFF, PICTURE_OFF, NOT_FINITE = range(len(STATUS_NAMES))

_HIGHEST = jax.lax.Precision.HIGHEST
_CURVATURE_FRAMES = 8
_LEAST_POINTS = 8  # of a frame with a face
_FARTHEST_PX = 1e6  # a point beyond, as one that is no number, was not seen


NO_POINTS = np.full((478, 2), np.nan, np.float32)
"""The points of a frame without a face."""


@dataclasses.dataclass(frozen=True)
class LiveConfig:
    """Choices of live tracking."""

    fit: FitConfig = FitConfig()  # noqa: RUF009 (frozen)
    """Of the enrolment, and with it the weights of every step."""
    steps: int = 12
    """Steps of descent on each frame: what a frame costs is proportional to it."""
    longest_gap: float = 0.5
    """Seconds between two frames beyond which the later one does not follow the earlier."""


@dataclasses.dataclass(frozen=True, eq=False)
class LiveFrame:
    """What came of one moment."""

    picture: np.ndarray
    """(height, width, 3) of uint8, sRGB-encoded."""
    points: np.ndarray
    """(478, 2): MediaPipe's points, pixels; NaN where missing, all NaN where no face was found."""
    time: float
    """Seconds, on any clock that goes forward."""
    confidence: Float[np.ndarray, "478"] | None = None
    """In [0, 1]; None: 1 for every point."""


@dataclasses.dataclass(frozen=True, eq=False)
class LiveState:
    """All that a step needs of the past. Its size never changes; it is replaced, not changed."""

    turn: Turn
    """What each step minimises, and for how long."""
    longest_gap: float
    lens: Lens
    """Of the frames it was enrolled on."""
    size: tuple[int, int]
    """(width, height) that the lens is in pixels of."""
    metric: Float[Array, "p p"]
    """Of the descent, see `facejax.fitting.solve.curvature_solver`."""
    unknowns: Unknowns
    """What is shared, and as `frames` the last two that were tracked."""
    run: int
    """How many of these two follow each other up to now: 0 after a frame that was lost."""
    time: float
    """Of the last frame that was tracked."""
    gap: float
    """Seconds between these two."""


@dataclasses.dataclass(frozen=True, eq=False)
class Tracked:
    """How a frame ended."""

    scene: Scene
    params: PyTree
    clip: ClipVariables
    frame: FrameVariables
    """Where nothing could be tracked, the last frame that was."""
    status: int
    """An index into `facejax.fitting.sequence.STATUS_NAMES`; 0 is a frame that can be trusted."""
    time: float

    @property
    def valid(self) -> bool:
        return self.status == TRACKED

    @property
    def code(self) -> PyTree:
        """The head's frame code."""
        return self.frame.code

    @property
    def light(self) -> PyTree:
        """In the terms of the scene's lighting, camera frame."""
        return light_in(self.clip, self.frame)

    @functools.cached_property
    def _placed(self) -> tuple[Pose, Camera]:
        return _place(self.clip, self.frame)

    @property
    def pose(self) -> Pose:
        """Head to camera, metres."""
        return self._placed[0]

    @property
    def camera(self) -> Camera:
        """In pixels of the frame."""
        return self._placed[1]

    @functools.cached_property
    def vertices(self) -> Float[Array, "v 3"]:
        """Head frame, metres; computed when asked for."""
        return _vertices(self.scene)(self.params, self.clip.code, self.frame.code)


def enrol(
    frames: Sequence[np.ndarray] | np.ndarray,
    head: HeadModel | str,
    landmarks: Any = None,
    config: LiveConfig = LiveConfig(),
    **more: Any,
) -> Fit:
    """The fit that `init` starts from: of a few dozen frames (height, width, 3), best with several poses and a talking
    mouth.

    landmarks and more: as of `facejax.fitting.sequence.fit_clip`. Raises `InputError` as that does.
    """
    return fit_clip(np.stack(list(frames)), head, landmarks=landmarks, config=config.fit, **more)


def init(fit: Fit, config: LiveConfig = LiveConfig()) -> LiveState:
    """The state after a fit. The first frame does not follow the fit's last, for its clock may be another.

    config: its `fit` as the fit was made with. Raises `InputError` for a fit that is not finite, and for one that lacks
    what a step compares.
    """
    scene, unknowns = fit.scene, fit.unknowns
    turn = _turn(scene, config)
    if any(isinstance(t, Points) and t.colour == "kept" for t in turn.terms) and COLOUR not in unknowns.settled:
        raise InputError(
            "Live tracking compares colours that the fit of the first frames has not settled: make that fit with "
            "`texture=True`, or give `texture=False` to track by landmarks alone."
        )
    good = np.flatnonzero((fit.status == TRACKED) & _finite_rows(unknowns.frames, len(fit.footage.points)))
    if not len(good) or not _finite((unknowns.params, unknowns.clip, unknowns.settled)):
        raise InputError(
            "Live tracking cannot start from a fit none of whose frames were tracked: enrol on frames in which the "
            "face is well lit, near and not turned away."
        )
    few = good[np.linspace(0, len(good) - 1, min(_CURVATURE_FRAMES, len(good))).astype(int)]
    told = tuple(term.observe(scene, fit.footage, unknowns, few) for term in turn.terms)
    variables = {"params": unknowns.params, "clip": unknowns.clip, "frame": take_frames(unknowns.frames, few)}
    metric = curvature_solver(scene, turn, True)(variables, told)
    if not _finite(metric):
        raise InputError("The curvature of the enrolled frames is not finite: enrol on other frames.")
    last = good[-2:] if len(good) > 1 else np.repeat(good, 2)
    return LiveState(
        turn=dataclasses.replace(turn, steps=config.steps),
        longest_gap=config.longest_gap,
        lens=jax.tree_util.tree_map(jnp.asarray, take_frames(unknowns.frames.lens, 0)),
        size=(int(fit.footage.clip.sizes[0, 0]), int(fit.footage.clip.sizes[0, 1])),
        metric=metric,
        unknowns=unknowns.replace(frames=on_host(take_frames(unknowns.frames, last))),
        run=0,
        time=0.0,
        gap=1.0,
    )


def step(scene: Scene, state: LiveState, frame: LiveFrame) -> tuple[LiveState, Tracked]:
    """(the state after a frame, how that ended).

    A frame that is lost in whatever way leaves the state as it was, but that the next one does not follow it: it starts
    at the pose that its own points say. Frames not equally far apart are compared as if the last but one had come as
    long before the last as this one after it; smoothness is per frame, as in the offline fit.
    Raises `InputError` for a picture or points of a shape that is none, or another camera's.
    """
    lens = _lens_of(state, frame)
    footage = _footage(frame)
    if not footage.valid.all():
        return _lost(scene, state, frame, NO_FACE)
    seen = landmarks_of(footage)
    apart = frame.time - state.time
    run = state.run if 0 < apart <= state.longest_gap else 0
    shared = state.unknowns
    begun, before = _begin(scene)(
        scene.landmarks.head.params, shared.clip, shared.frames, lens, take_frames(seen, 0),
        np.float32(apart / state.gap if run > 1 else 0.0), np.bool_(run > 0),
    )  # fmt: skip
    start = shared.replace(frames=on_host(begun))
    if not _finite(start.frames):
        return _lost(scene, state, frame, NOT_FINITE)
    told = tuple(term.observe(scene, footage, start, np.array([0])) for term in state.turn.terms)
    variables = {"params": shared.params, "clip": shared.clip, "frame": start.frames}
    weight = np.array([run > 1, run > 0, True], np.float32)
    solved = _solver(scene, state.turn)(state.metric, variables, told, before, weight)
    found = start.replace(frames=on_host(solved.variables["frame"]))
    status = _status(scene, state.turn, found, solved, seen)
    if status in (NOT_FINITE, LANDMARKS_OFF):
        return _lost(scene, state, frame, status)
    last_two = jax.tree_util.tree_map(lambda old, new: np.concatenate([old[1:], new]), shared.frames, found.frames)
    after = dataclasses.replace(
        state, unknowns=shared.replace(frames=last_two), run=min(run + 1, 2), time=frame.time, gap=apart if run else 1.0
    )
    return after, _tracked(scene, after, frame, status)


# -- pieces of a step --------------------------------------------------------------------------------------------------


def _turn(scene: Scene, config: LiveConfig) -> Turn:
    """The last turn in time of the head's plan."""
    windows = [s for s in plan_for(scene.head.roles, config.fit, Known()) if s.frames == "windows"]
    (turn,) = windows[-1].turns
    return turn


def _status(scene: Scene, turn: Turn, found: Unknowns, solved: Solved, seen: SeenLandmarks) -> int:
    if not (bool(solved.finite[0]) and bool(solved.whole) and _finite(found.frames)):
        return NOT_FINITE
    if not landmark_residual_mm(scene, found, seen).item() <= LOST_MM:
        return LANDMARKS_OFF
    last = np.asarray(solved.last)[:, 0]
    off = [t.lost_above is not None and loss > t.lost_above for t, loss in zip(turn.terms, last, strict=True)]
    return PICTURE_OFF if any(off) else TRACKED


def _lost(scene: Scene, state: LiveState, frame: LiveFrame, status: int) -> tuple[LiveState, Tracked]:
    held = dataclasses.replace(state, run=0)
    return held, _tracked(scene, held, frame, status)


def _tracked(scene: Scene, state: LiveState, frame: LiveFrame, status: int) -> Tracked:
    last, shared = take_frames(state.unknowns.frames, 1), state.unknowns
    return Tracked(scene, shared.params, shared.clip, last, status, frame.time)


def _lens_of(state: LiveState, frame: LiveFrame) -> Lens:
    """The enrolled camera's, in pixels of a frame that may be smaller or larger."""
    shape = np.shape(frame.picture)
    if len(shape) != 3 or shape[2] != 3 or frame.picture.dtype != np.uint8:
        raise InputError(f"A live picture must be (height, width, 3) of uint8, and this is {shape}.")
    if np.shape(frame.points) != (478, 2):
        raise InputError(f"Live points must be (478, 2) in pixels, and these are {np.shape(frame.points)}.")
    width, height = state.size
    factor = shape[1] / width
    if abs(factor * height - shape[0]) > 1.0:
        raise InputError(
            f"A live picture must have the shape of those enrolled on, {width} x {height} or scaled evenly, and this "
            f"is {shape[1]} x {shape[0]}: enrol again for another camera."
        )
    camera = state.lens.camera
    return Lens(
        camera=Camera(focal=camera.focal * factor, principal_point=camera.principal_point * factor),
        reference_px=state.lens.reference_px * factor,
    )


def _footage(frame: LiveFrame) -> Footage:
    points = np.asarray(frame.points, np.float32)
    confidence = frame.confidence
    if confidence is None:
        size = (frame.picture.shape[1], frame.picture.shape[0])
        confidence = landmark_confidence(points, np.full(478, np.nan, np.float32), size)
    seen: np.ndarray = np.all(np.abs(points) < _FARTHEST_PX, axis=1)
    points = np.where(seen[:, None], points, np.float32(np.nan))
    return Footage(
        clip=open_video(frame.picture[None]),
        masks=None,
        points=points[None],
        confidence=np.asarray(confidence, np.float32)[None],
        valid=np.array([seen.sum() >= _LEAST_POINTS]),
    )


def _rotation(pose: PoseVariables) -> Float[Array, "3 3"]:
    return jnp.matmul(rotvec_to_matrix(pose.turn), pose.base, precision=_HIGHEST)


def _at(two: FrameVariables, ratio: Float[Array, ""]) -> FrameVariables:
    """A frame `ratio` times as long after the second of two frames as that is after the first, at constant velocity."""
    first, second = take_frames(two, 0), take_frames(two, 1)
    rotation = _rotation(second.pose)
    velocity = matrix_to_rotvec(jnp.matmul(rotation, _rotation(first.pose).T, precision=_HIGHEST))
    moved = jax.tree_util.tree_map(lambda a, b: b + ratio * (b - a), first, second)
    base = jnp.matmul(rotvec_to_matrix(ratio * velocity), rotation, precision=_HIGHEST)
    return moved.replace(pose=moved.pose.replace(base=base, turn=jnp.zeros(3)), lens=second.lens)


@functools.lru_cache(maxsize=16)
def _begin(scene: Scene) -> Callable[..., tuple[FrameVariables, FrameVariables]]:
    """(where a new frame starts, the two before it), a leading axis of 1 and of 2.

    It starts with the last code, at the pose that its points say or where the head was going, whichever lies nearer to
    the points.
    """
    points = scene.landmarks

    @jax.jit
    def begin(
        params: PyTree,
        clip: ClipVariables,
        two: FrameVariables,
        lens: Lens,
        seen: SeenLandmarks,
        ratio: Float[Array, ""],
        follows: Bool[Array, ""],
    ) -> tuple[FrameVariables, FrameVariables]:
        last = take_frames(two, 1).replace(lens=lens)
        camera = camera_of(clip, last)
        known = points.head.vertices(params, clip.code, last.code)
        pose = pose_from_landmarks(known, seen.target, seen.weights, camera)
        anew = last.replace(pose=variables_of(pose, camera, lens.reference_px))
        on = last.replace(pose=_at(two, ratio).pose)

        def off(frame: FrameVariables) -> Array:
            error = jnp.linalg.norm(points.points(params, clip, frame).pixels - seen.target, axis=-1)
            return jnp.sum(seen.weights * error)

        nearer = follows & (off(on) < off(anew))
        begun = jax.tree_util.tree_map(lambda a, b: jnp.where(nearer, a, b)[None], on, anew)
        earlier = _at(two, -ratio)
        before = jax.tree_util.tree_map(lambda a, b: jnp.stack([a, b]), earlier, take_frames(two, 1))
        sized = jax.tree_util.tree_map(lambda x: jnp.broadcast_to(x, (2, *jnp.shape(x))), lens)
        return begun, before.replace(lens=sized)

    return begin


@functools.lru_cache(maxsize=16)
def _solver(scene: Scene, turn: Turn) -> Callable[..., Solved]:
    """(metric, variables, seen, before, weight) -> `Solved`: a turn's descent on one frame after two that are held.

    The same minimum as of `descent_solver` on all three with the first two held, at a third of its cost: what the held
    frames see is not looked at again.
    """
    free = paths_of(scene.head.roles, turn.free)

    @jax.jit
    def solve(
        metric: Array,
        variables: PyTree,
        seen: tuple[Observed, ...],
        before: FrameVariables,
        weight: Float[Array, "3"],
    ) -> Solved:
        def loss(v: PyTree) -> tuple[Array, Array]:
            total, each = objective(scene, turn.terms, v, seen, jnp.ones(1))
            three = jax.tree_util.tree_map(lambda a, b: jnp.concatenate([a, b]), before, v["frame"])
            for term in turn.terms:
                total += jnp.sum(weight) * term.over_time(scene, v["params"], v["clip"], three, weight)
            return total, each

        return minimise(
            loss, variables, free, steps=turn.steps, rate=turn.rate, metric=metric, descent=turn.by  # type: ignore[arg-type]
        )  # fmt: skip

    return solve


_place = jax.jit(placed)


@functools.lru_cache(maxsize=16)
def _vertices(scene: Scene) -> Callable[..., Array]:
    return jax.jit(scene.head.vertices)


def _finite(tree: PyTree) -> bool:
    return all(bool(np.isfinite(np.asarray(x)).all()) for x in jax.tree_util.tree_leaves(tree))


def _finite_rows(tree: PyTree, count: int) -> Bool[np.ndarray, "f"]:
    good = np.ones(count, bool)
    for leaf in jax.tree_util.tree_leaves(tree):
        good &= np.isfinite(np.asarray(leaf)).reshape(count, -1).all(axis=1)
    return good
