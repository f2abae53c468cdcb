"""Live tracking: as good as the offline fit, constant in memory, compiled once, and honest about frames it lost."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_fit
from test_fit import EXACT, SIZE, degrees_apart, head, intrinsics, quick

from facejax.fitting import FitConfig, Known, live
from facejax.fitting.live import LiveConfig, LiveFrame
from facejax.fitting.plans import tracking
from facejax.fitting.sequence import STATUS_NAMES, fit_clip
from facejax.geometry.errors import InputError
from facejax.geometry.rotations import rotation_angle
from facejax.renderers import make_renderer
from facejax.scenes import Harmonics, Scene

quick_compilation = test_fit.quick_compilation
N = 12
# weights as the library has them: what live tracking cannot do is look ahead
USUAL = dataclasses.replace(EXACT, prior_weight=4.0, pose_smoothness=4.0, code_smoothness=5.0)


@functools.cache
def clip():
    before, test_fit.N = test_fit.N, N
    try:
        return test_fit.clip()
    finally:
        test_fit.N = before


@functools.cache
def enrolled(config=USUAL, frames=N):
    """A fit by landmarks of the first frames."""
    pictures, landmarks, _, camera, _ = clip()
    stages = quick(config, Known(zoom=True))
    return fit_clip(pictures[:frames], head(), landmarks=landmarks[:frames], intrinsics=intrinsics(camera),
                    config=config, stages=stages)  # fmt: skip


def begun(config=USUAL, frames=N, **more):
    fit = enrolled(config, frames)
    return fit, live.init(fit, LiveConfig(fit=config, **more))


def frame(i, *, at=None, points=None, size=SIZE):
    pictures, landmarks, *_ = clip()
    picture = pictures[i] if size == SIZE else np.full((size[1], size[0], 3), 90, np.uint8)
    points = landmarks[i] * (size[0] / SIZE[0]) if points is None else points
    return LiveFrame(picture, points.astype(np.float32), at if at is not None else 100 + i / 25)


def follow(scene, state, frames):
    ended = []
    for one in frames:
        state, tracked = live.step(scene, state, one)
        ended.append(tracked)
    return state, ended


def stacked(ended):
    return types.SimpleNamespace(
        rotation=np.stack([t.pose.rotation for t in ended]), translation=np.stack([t.pose.translation for t in ended])
    )


def bytes_of(state):
    leaves = jax.tree_util.tree_leaves((state.metric, state.unknowns, state.lens))
    return [(np.shape(x), np.asarray(x).dtype) for x in leaves]


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree_util.tree_leaves(a), jax.tree_util.tree_leaves(b), strict=True)
    )


@pytest.mark.parametrize(
    ("config", "steps", "degrees", "depth"), [(USUAL, 12, 0.5, 0.01), (USUAL, 40, 0.3, 0.003), (EXACT, 40, 0.02, 0.001)]
)
def test_it_agrees_with_the_windows_of_the_offline_fit(config, steps, degrees, depth):
    fit, state = begun(config, steps=steps)
    offline = fit.result()
    _, ended = follow(fit.scene, state, [frame(i) for i in range(N)])
    found = stacked(ended)
    assert [t.status for t in ended] == [0] * N
    assert degrees_apart(found, types.SimpleNamespace(rotation=jnp.asarray(offline.rotation))).max() < degrees
    np.testing.assert_allclose(found.translation[:, 2], offline.translation[:, 2], rtol=depth)
    code = np.stack([t.code.activations[0] for t in ended])
    assert np.ptp(code) > 0.1  # it talks


def test_frames_after_the_enrolment_are_tracked():
    fit, state = begun(EXACT, frames=8, steps=40)
    _, _, poses, _, _ = clip()
    _, ended = follow(fit.scene, state, [frame(i) for i in range(8, N)])
    truth = types.SimpleNamespace(rotation=poses.rotation[8:])
    assert degrees_apart(stacked(ended), truth).max() < 1.0
    one = ended[-1]
    assert one.valid
    assert STATUS_NAMES[one.status] == "tracked"
    assert one.vertices.shape == (head().topology.n_vertices, 3)
    assert np.isfinite(one.vertices).all()
    np.testing.assert_allclose(one.camera.focal, 400, rtol=1e-5)


def test_smoothness_looks_back():
    """A jump of one frame's points is let through less where the frames before say otherwise."""
    fit, state = begun(USUAL, steps=40)
    state, _ = follow(fit.scene, state, [frame(i) for i in range(3)])
    alone = dataclasses.replace(state, run=0)
    shifted = frame(3, points=clip()[1][3] + np.float32(1.5))
    expected, _ = live.step(fit.scene, state, frame(3))
    followed, _ = live.step(fit.scene, state, shifted)
    by_itself, _ = live.step(fit.scene, alone, shifted)

    def moved(after):
        return np.linalg.norm(after.unknowns.frames.pose.anchor[1] - expected.unknowns.frames.pose.anchor[1])

    assert moved(followed) < 0.97 * moved(by_itself)


def test_a_frame_is_moved_on_at_constant_velocity():
    _, state = begun(USUAL, steps=40)
    two = jax.tree_util.tree_map(jnp.asarray, state.unknowns.frames)
    first = jax.tree_util.tree_map(lambda x: x[0], two)
    again = live._at(two, jnp.float32(-1.0))  # as long before the second as the first was: the first
    np.testing.assert_allclose(live._rotation(again.pose), live._rotation(first.pose), atol=1e-6)
    np.testing.assert_allclose(again.pose.anchor, first.pose.anchor, atol=1e-6)
    np.testing.assert_allclose(again.code.activations, first.code.activations, atol=1e-6)
    ahead = live._at(two, jnp.float32(2.0))  # turns on by twice as much
    turned = rotation_angle(live._rotation(ahead.pose), live._rotation(first.pose))
    second = jax.tree_util.tree_map(lambda x: x[1], two)
    apart = rotation_angle(live._rotation(second.pose), live._rotation(first.pose))
    assert float(apart) > 1e-3
    np.testing.assert_allclose(turned, 3 * apart, rtol=1e-3)


def test_memory_is_constant_and_nothing_is_compiled_after_the_second_frame():
    fit, state = begun(steps=4)
    before = bytes_of(state)
    state, _ = follow(fit.scene, state, [frame(0), frame(1)])
    compiled = []
    listener = lambda event, seconds, **_: compiled.append(event)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        gone = np.full((478, 2), np.nan)
        sizes = [SIZE, (640, 480), SIZE, (480, 360)]
        frames = [frame(i, size=sizes[i % 4]) for i in range(2, N)]
        frames += [frame(0, points=gone, at=101.0), frame(1, at=101.1), frame(2, at=103.0)]
        state, ended = follow(fit.scene, state, frames)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert [t.status for t in ended] == [0] * (N - 2) + [1, 0, 0]
    assert not [e for e in compiled if e.startswith("/jax/core/compile/")]
    assert bytes_of(state) == before
    assert live._solver(fit.scene, state.turn)._cache_size() == 1


def test_a_frame_of_another_size_gives_the_same_pose():
    fit, state = begun(steps=40)
    _, (small,) = follow(fit.scene, state, [frame(3)])
    _, (large,) = follow(fit.scene, state, [frame(3, size=(640, 480))])
    np.testing.assert_allclose(small.pose.rotation, large.pose.rotation, atol=2e-3)
    np.testing.assert_allclose(small.pose.translation, large.pose.translation, rtol=5e-3, atol=1e-4)
    np.testing.assert_allclose(large.camera.focal, 800, rtol=1e-5)


def test_a_frame_without_a_face_holds_the_state_and_the_next_starts_anew():
    fit, state = begun(steps=40)
    state, _ = follow(fit.scene, state, [frame(0), frame(1)])
    held, gone = live.step(fit.scene, state, frame(2, points=np.full((478, 2), np.nan)))
    assert STATUS_NAMES[gone.status] == "no face found"
    assert not gone.valid
    assert same(held.unknowns, state.unknowns)
    assert held.run == 0
    after, back = live.step(fit.scene, held, frame(N - 1, at=held.time + 0.1))  # where it is now, not where it was
    assert back.valid
    assert degrees_apart(stacked([back]), types.SimpleNamespace(rotation=clip()[2].rotation[N - 1 :])).max() < 1
    assert after.run == 1


def test_points_that_are_not_a_face_never_enter_the_state():
    fit, state = begun(steps=12)
    state, _ = follow(fit.scene, state, [frame(0), frame(1)])
    rng = np.random.default_rng(0)
    noise = rng.uniform(50, 200, (478, 2))
    for points, words in ((noise, "landmarks not matched"), (np.full((478, 2), 1e30), "no face found")):
        held, ended = live.step(fit.scene, state, frame(2, points=points))
        assert STATUS_NAMES[ended.status] == words
        assert same(held.unknowns, state.unknowns)
        after, back = live.step(fit.scene, held, frame(3))
        assert back.valid
        assert live._finite(after.unknowns)


# -- with pictures -----------------------------------------------------------------------------------------------------

SEEN = dataclasses.replace(EXACT, texture=True, sharpening=0, samples=100, key_frames=4)


class Fickle(Harmonics):
    """A light that is no number on a head further away than a metre."""

    def transfer(self, face, pose, normals_head):
        diffuse, specular = super().transfer(face, pose, normals_head)
        return jnp.where(pose.translation[2] > 1.0, jnp.nan, diffuse), specular


@functools.cache
def painted():
    """The clip under a light from one side, drawn."""
    _, landmarks, poses, camera, person = clip()
    render = jax.jit(make_renderer(head().topology, (SIZE[1], SIZE[0])))
    light = (0.6 * head().init_light()).at[3].add(0.3)
    rest = head().init_code()[1]
    frames = []
    for i in range(N):
        face = head().decode(head().params, person, rest)
        colour = np.asarray(render(face, light, jax.tree_util.tree_map(lambda x, i=i: x[i], poses), camera).colour)
        frames.append(np.clip(255 * colour ** (1 / 2.2), 0, 255).astype(np.uint8))
    return np.stack(frames), landmarks


@functools.cache
def enrolled_on_pictures():
    frames, landmarks = painted()
    scene = Scene(head(), Fickle(3), make_renderer(head().topology, (SEEN.size, SEEN.size)), (SEEN.size, SEEN.size))
    steps = {"identity": 150, "motion": 60, "skin": 20, "appearance": 10, "refinement": 20}
    stages = tuple(
        dataclasses.replace(s, turns=(dataclasses.replace(s.turns[0], steps=steps[s.name]),))
        for s in tracking(SEEN, Known(zoom=True))
    )
    return fit_clip(frames, head(), landmarks=landmarks, intrinsics=intrinsics(clip()[3]), config=SEEN, scene=scene,
                    stages=stages)  # fmt: skip


@pytest.mark.slow
def test_pictures_move_pose_and_light_as_offline():
    fit = enrolled_on_pictures()
    offline = fit.result()
    frames, landmarks = painted()
    state = live.init(fit, LiveConfig(fit=SEEN, steps=20))
    shots = [LiveFrame(frames[i], landmarks[i], i / 25) for i in range(N)]
    _, ended = follow(fit.scene, state, shots)
    assert all(t.valid for t in ended)
    assert degrees_apart(stacked(ended), types.SimpleNamespace(rotation=jnp.asarray(offline.rotation))).max() < 0.5
    np.testing.assert_allclose(stacked(ended).translation[:, 2], offline.translation[:, 2], rtol=0.01)
    mean = np.stack([t.light for t in ended])[:, 0]  # how bright: an ellipsoid says little of the directions
    np.testing.assert_allclose(mean, offline.light_code[:, 0], rtol=0.15)
    frames_of = state.unknowns.frames
    dark = state.unknowns.replace(frames=frames_of.replace(light=0.6 * frames_of.light))
    _, ended = follow(fit.scene, dataclasses.replace(state, unknowns=dark), shots)
    np.testing.assert_allclose(ended[-1].light[0], mean[-1], rtol=0.15)


@pytest.mark.slow
def test_a_light_that_is_no_number_ends_in_a_status_and_not_in_the_state():
    fit = enrolled_on_pictures()
    frames, landmarks = painted()
    state = live.init(fit, LiveConfig(fit=SEEN, steps=4))
    centre = np.array([SIZE[0] / 2, SIZE[1] / 2], np.float32)
    far = LiveFrame(frames[0], (0.6 * (landmarks[0] - centre) + centre).astype(np.float32), 0.0)
    held, ended = live.step(fit.scene, state, far)
    assert STATUS_NAMES[ended.status] == "not finite"
    assert same(held.unknowns, state.unknowns)
    _, back = live.step(fit.scene, held, LiveFrame(frames[1], landmarks[1], 0.04))
    assert back.valid


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_refused_frames():
    fit, state = begun()
    good = frame(0)
    for bad, words in (
        (dataclasses.replace(good, picture=np.zeros((240, 200, 3), np.uint8)), "enrol again"),
        (dataclasses.replace(good, picture=np.zeros((240, 320), np.uint8)), "uint8"),
        (dataclasses.replace(good, picture=np.zeros((240, 320, 3), np.float64)), "uint8"),
        (dataclasses.replace(good, points=np.zeros((468, 2), np.float32)), "478"),
    ):
        with pytest.raises(InputError, match=words):
            live.step(fit.scene, state, bad)


def test_refused_enrolments():
    fit = enrolled()
    with pytest.raises(InputError, match="texture=True"):
        live.init(fit, LiveConfig(fit=FitConfig()))
    light = jnp.full_like(fit.unknowns.clip.light, jnp.nan)
    spoilt = dataclasses.replace(fit, unknowns=fit.unknowns.replace(clip=fit.unknowns.clip.replace(light=light)))
    with pytest.raises(InputError, match="enrol on frames"):
        live.init(spoilt, LiveConfig(fit=USUAL))
