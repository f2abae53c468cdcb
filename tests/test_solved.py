"""How fits end, and what they compile: statuses of frames that cannot be solved, and solvers that serve every clip."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_fit import EXACT, clip, head, intrinsics, quick

from facejax.fitting import FitConfig, Known, Stage, Turn, fit_sequence
from facejax.fitting.schedule import window_starts
from facejax.fitting.sequence import STATUS_NAMES, fit_clip
from facejax.fitting.solve import Descent, Lots, Settle
from facejax.fitting.terms import Landmarks
from facejax.geometry.errors import InputError
from facejax.scenes import Harmonics, Scene, make_scene

WHOLE = dataclasses.replace(EXACT, texture=True, sharpening=0)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def statuses(result):
    return [result.status_names[s] for s in result.status]


def some_clip(**options):
    frames, landmarks, _, camera, _ = clip(**options)
    return frames, landmarks, intrinsics(camera)


def landmark_stages(**turn):
    stages = quick(EXACT, Known(zoom=True))
    return tuple(dataclasses.replace(s, turns=(dataclasses.replace(s.turns[0], **turn),)) for s in stages)


class Compiled:
    """Counts programs that JAX traces or compiles."""

    def __enter__(self):
        self.events = []
        jax.monitoring.register_event_duration_secs_listener(self.count)
        return self

    def __exit__(self, *unused):
        jax.monitoring.unregister_event_duration_listener(self.count)

    def count(self, event, seconds, **unused):
        if event.startswith("/jax/core/compile/"):
            self.events.append(event)


@pytest.mark.slow
def test_a_second_clip_of_another_length_and_distance_compiles_nothing():
    """Solvers are made once for a head, a stage and a config; camera, face size, data come in as arguments."""
    scene_of = {"config": WHOLE, "stages": quick(WHOLE, Known(zoom=True))}
    frames, landmarks, camera = some_clip()
    fit_sequence(frames, head(), landmarks=landmarks, intrinsics=camera, **scene_of)
    frames, landmarks, camera = some_clip(focal=520.0, distance=0.8)
    longer = np.concatenate([landmarks, landmarks[-1:] + 1.0])
    with Compiled() as compiled:
        solved = fit_sequence(
            np.concatenate([frames, frames[-1:]]), head(), landmarks=longer, intrinsics=camera, **scene_of
        )
    assert solved.valid.all()
    assert not compiled.events


def test_a_light_that_is_not_finite_ends_in_a_status():
    @dataclasses.dataclass(frozen=True)
    class Broken(Harmonics):
        def init(self):
            return super().init() * jnp.nan

    scene = make_scene(head(), (EXACT.size, EXACT.size))
    broken = Scene(scene.head, Broken(), scene.render, scene.size)
    frames, landmarks, camera = some_clip()
    stages = tuple(s for s in quick(WHOLE, Known(zoom=True)) if s.name in ("identity", "skin"))
    result = fit_sequence(
        frames, head(), landmarks=landmarks, intrinsics=camera, config=WHOLE, scene=broken, stages=stages
    )
    assert set(statuses(result)) == {"not finite"}
    assert not result.valid.any()


def test_a_frame_that_is_not_finite_stops_alone():
    frames, landmarks, camera = some_clip()
    spoilt = head().init_code()[1].replace(gaze=jnp.full((2, 2), jnp.nan))

    class Spoiling(type(head())):
        """Guesses nonsense of one frame."""

        def encode(self, params, picture, camera):
            from facejax.models.head import Guess

            clip_code, frame_code = self.init_code()
            dark = jnp.mean(picture) < 0.2
            return Guess(
                clip=clip_code,
                frame=jax.tree.map(lambda bad, good: jnp.where(dark, bad, good), spoilt, frame_code),
                pose=None,
            )

    fields = {f.name: getattr(head(), f.name) for f in dataclasses.fields(head())}
    frames[3] = 10
    stages = landmark_stages(steps=60)
    result = fit_sequence(
        frames, Spoiling(**fields), landmarks=landmarks, intrinsics=camera, config=EXACT, stages=stages
    )
    assert statuses(result)[3] == "not finite"
    assert [s for k, s in enumerate(statuses(result)) if k != 3] == ["tracked"] * 5


def test_a_solve_that_diverges_ends_in_a_status():
    frames, landmarks, camera = some_clip()
    wild = Turn((Landmarks(),), ("frame.pose", "motion"), 60, rate=1e6, by=Descent(clip=1e9, floor=1e-9))
    stages = (Stage("wild", (wild,), "windows", window=8),)
    result = fit_sequence(frames, head(), landmarks=landmarks, intrinsics=camera, config=EXACT, stages=stages)
    assert not result.valid.any()
    assert set(statuses(result)) <= {"not finite", "landmarks not matched"}
    assert np.isfinite(result.rotation).all()


def test_losses_of_every_stage_are_told():
    frames, landmarks, camera = some_clip()
    stages = landmark_stages(steps=40)
    fit = fit_clip(frames, head(), landmarks=landmarks, intrinsics=camera, config=EXACT, stages=stages)
    told = fit.result().metrics["stages"]
    assert [t["name"] for t in told][:2] == ["identity", "motion"]
    assert all(t["last_loss"] < t["first_loss"] for t in told[:1])
    assert all(t["frames_stopped"] == 0 for t in told)
    assert STATUS_NAMES[0] == "tracked"
    assert FitConfig().key_frames == 32


@pytest.mark.parametrize(
    ("frames", "by"), [("alone", Descent()), ("windows", Lots()), ("windows", Settle()), ("alone", Settle())]
)
def test_a_stage_that_cannot_run_is_refused(frames, by):
    with pytest.raises(InputError, match="takes"):
        Stage("odd", (Turn((Landmarks(),), ("frame.pose",), 3, by=by),), frames)


def test_a_stage_without_turns_is_refused():
    with pytest.raises(InputError, match="has 0"):
        Stage("empty", (), "key")


@pytest.mark.parametrize(("count", "wanted"), [(1, 64), (8, 8), (9, 8), (30, 8), (100, 64), (300, 512)])
def test_windows_reach_every_frame_and_overlap(count, wanted):
    window, starts = window_starts(count, wanted)
    assert 8 <= window <= max(8, wanted)
    assert starts[0] == 0
    assert starts[-1] + window >= count
    assert all(b - a < window for a, b in itertools.pairwise(starts))
    assert all(a + window < count for a in starts[:-1])
