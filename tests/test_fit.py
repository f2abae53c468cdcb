"""`fit_sequence` on a small head whose landmarks are known exactly, and the input that it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_head import toy_codes, toy_head, toy_result

from facejax.fitting import FitConfig, Known, fit_sequence
from facejax.fitting.plans import tracking
from facejax.geometry.cameras import project, to_camera_frame
from facejax.geometry.errors import InputError
from facejax.geometry.records import Camera, Pose
from facejax.geometry.rotations import rotation_angle, rotvec_to_matrix
from facejax.models.morphable import REGIONS, Expression
from facejax.renderers import make_renderer

N = 6
SIZE = (320, 240)
# priors and smoothness pull a fit away from exact data: here they only settle what the data leave open
EXACT = FitConfig(
    texture=False, key_frames=N, prior_weight=1e-3, pose_smoothness=1e-3, code_smoothness=1e-3, size=64, window=8,
    texture_size=32, samples=200,
)  # fmt: skip


def quick(config, known):
    """Few steps, whatever the library's own plan says."""
    stages = []
    steps = {"identity": 250, "motion": 200, "skin": 20, "refinement": 4}
    for stage in tracking(config, known):
        if stage.name in steps:
            (turn,) = stage.turns
            rate = 0.3 if stage.name == "refinement" else 1.0
            stages.append(
                dataclasses.replace(stage, turns=(dataclasses.replace(turn, steps=steps[stage.name], rate=rate),))
            )
    return tuple(stages)


def fit(frames, head, *, config=EXACT, intrinsics=None, **more):
    stages = quick(config, Known(zoom=intrinsics is not None))
    return fit_sequence(frames, head, config=config, intrinsics=intrinsics, stages=stages, **more)


@functools.cache
def head():
    plain = toy_head(16, 24)
    empty = dict.fromkeys(REGIONS, np.zeros(plain.topology.n_vertices, np.float32))
    regions = {**empty, "narrow_face": plain.regions["skin"], **plain.regions}
    return dataclasses.replace(plain, regions=regions)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(tmp_path_factory):
    """Little time goes into making tiny problems fast, and what one test compiles the next finds again."""
    before = {
        name: getattr(jax.config, name)
        for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    }
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    for name, value in before.items():
        jax.config.update(name, value)


def clip(focal=400.0, distance=0.75, talks=True):
    """A head that nods, turns and talks: (frames, landmarks, poses, camera, person)."""
    person, _, _, _ = toy_codes(head(), 1, seed=2)
    camera = Camera(focal=jnp.array([focal, focal]), principal_point=jnp.array([160.0, 120.0]))
    t = np.linspace(0, 1, N)
    turns = np.stack([0.15 * np.sin(3 * t), 0.5 * t - 0.25, 0.05 * np.cos(4 * t)], axis=1)
    places = np.stack([0.02 * t - 0.01, 0.01 * np.sin(5 * t), distance + 0 * t], axis=1)
    upright = jnp.diag(jnp.array([1.0, -1.0, -1.0]))
    rotations = jax.vmap(lambda r: jnp.matmul(upright, rotvec_to_matrix(r)))(jnp.asarray(turns, jnp.float32))
    poses = jax.vmap(Pose)(rotations, jnp.asarray(places, jnp.float32))
    activations = np.zeros((N, len(head().expression_names)), np.float32)
    activations[:, 0] = talks * (0.3 + 0.3 * np.sin(4 * t))
    moves = jax.vmap(Expression)(jnp.asarray(activations), jnp.zeros((N, 2, 2)), jnp.zeros((N, 2)))

    def points(pose, move):
        vertices = head().vertices(head().params, person, move)
        return project(to_camera_frame(head().landmark_points(vertices), pose), camera)

    landmarks = np.asarray(jax.jit(jax.vmap(points))(poses, moves))
    frames = np.full((N, SIZE[1], SIZE[0], 3), 90, np.uint8)
    return frames, landmarks, poses, camera, person


def intrinsics(camera):
    return np.array([*camera.focal, *camera.principal_point])


def degrees_apart(result, poses):
    return np.degrees(jax.vmap(rotation_angle)(jnp.asarray(result.rotation), poses.rotation))


@functools.cache
def tracked():
    frames, landmarks, poses, camera, person = clip()
    stages = []
    result = fit(
        frames, head(), landmarks=landmarks, intrinsics=intrinsics(camera), config=EXACT,
        progress=lambda stage, done, total: stages.append((stage, done, total)),
    )  # fmt: skip
    return result, landmarks, poses, person, stages


def test_exact_landmarks_give_back_pose_shape_and_landmarks():
    result, landmarks, poses, person, _ = tracked()
    assert degrees_apart(result, poses).max() < 0.3
    error = np.linalg.norm(result.landmarks - landmarks, axis=-1)
    assert error.mean() < 0.25
    assert np.quantile(error, 0.99) < 0.5
    np.testing.assert_allclose(result.translation, poses.translation, atol=0.01)
    assert np.abs(result.identity - person.shape).max() < 0.5
    assert result.valid.all()
    assert [result.status_names[s] for s in result.status] == ["tracked"] * N
    np.testing.assert_allclose(result.intrinsics, [[400, 0, 160], [0, 400, 120], [0, 0, 1]])
    np.testing.assert_array_equal(result.image_size, SIZE)
    assert result.expression_names == head().expression_names
    np.testing.assert_allclose(result.expression[:, 0], 0.3 + 0.3 * np.sin(4 * np.linspace(0, 1, N)), atol=0.1)


def test_progress_is_told():
    stages = tracked()[-1]
    assert [s for s, done, total in stages if done == total] == ["identity", "motion"]
    assert all(0 <= done <= total for _, done, total in stages)


def test_a_long_lens():
    """8 degrees over the image's width: almost no perspective, which is no reason to lose the head."""
    focal = 160 / np.tan(np.radians(4))
    frames, landmarks, poses, camera, _ = clip(focal=focal, distance=0.75 * focal / 400)
    result = fit(frames, head(), landmarks=landmarks, intrinsics=intrinsics(camera), config=EXACT)
    assert degrees_apart(result, poses).max() < 0.4
    np.testing.assert_allclose(result.translation[:, 2], poses.translation[:, 2], rtol=0.02)
    assert np.linalg.norm(result.landmarks - landmarks, axis=-1).mean() < 0.3
    np.testing.assert_allclose(result.intrinsics[0, 0], focal, rtol=1e-5)


def test_frames_without_a_face_are_bridged_and_flagged():
    frames, landmarks, poses, camera, _ = clip()
    gone = landmarks.copy()
    gone[[0, 3]] = np.nan
    gone[4, 100:200] = np.nan  # part of a face is still a face
    result = fit(frames, head(), landmarks=gone, intrinsics=intrinsics(camera), config=EXACT)
    np.testing.assert_array_equal(result.valid, [False, True, True, False, True, True])
    assert [result.status_names[s] for s in result.status[[0, 3]]] == ["no face found"] * 2
    apart = degrees_apart(result, poses)
    assert apart[[1, 2, 4, 5]].max() < 0.4
    assert apart[3] < 2  # between its neighbours
    for field in (result.rotation, result.translation, result.expression, result.landmarks):
        assert np.isfinite(field).all()
    np.testing.assert_allclose(np.linalg.det(result.rotation), 1, atol=1e-4)
    np.testing.assert_allclose(result.rotation[0], result.rotation[1], atol=0.02)  # before the first: as in the first
    assert np.isnan(result.landmarks_target[0]).all()


def test_unknown_focal_length_is_solved_for_within_its_prior():
    frames, landmarks, poses, _, _ = clip()
    result = fit(frames, head(), landmarks=landmarks, config=EXACT)
    guess = 160 / np.tan(np.radians(15))
    assert result.intrinsics[0, 0] != pytest.approx(guess)
    assert abs(result.intrinsics[0, 0] - 400) < abs(guess - 400)
    assert degrees_apart(result, poses).max() < 3
    assert np.linalg.norm(result.landmarks - landmarks, axis=-1).mean() < 1


def test_a_known_pupil_distance_sets_the_scale():
    frames, landmarks, _, camera, _ = clip()
    result = fit(frames, head(), landmarks=landmarks, intrinsics=intrinsics(camera), config=EXACT, ipd_mm=66.0)
    plain = tracked()[0]
    factor = result.translation[:, 2] / plain.translation[:, 2]
    pivots = head().eye_pivots(head().params, result.identity_code())
    np.testing.assert_allclose(factor, 0.066 / np.linalg.norm(pivots[0] - pivots[1]), rtol=0.03)
    np.testing.assert_allclose(np.ptp(result.neutral[:, 1]) / np.ptp(plain.neutral[:, 1]), factor.mean(), rtol=0.05)


@pytest.mark.slow
def test_pictures_give_colour_and_texture():
    """The whole way once, on rendered frames, which the result's own light, skin and texture then draw again."""
    frames, landmarks, poses, camera, person = clip(talks=False)
    painted = np.ones((8, 8, 3), np.float32)
    painted[:, ::2, 1] = 1.25
    render = jax.jit(make_renderer(head().topology, (SIZE[1], SIZE[0])))
    face = head().decode(head().params, person.replace(texture=jnp.asarray(painted)), head().init_code()[1])
    light = (0.6 * head().init_light()).at[3].add(0.3)
    truth = [
        np.asarray(render(face, light, jax.tree_util.tree_map(lambda x, k=k: x[k], poses), camera).colour)
        for k in range(N)
    ]
    frames = np.stack([np.clip(255 * x ** (1 / 2.2), 0, 255).astype(np.uint8) for x in truth])
    whole = dataclasses.replace(EXACT, texture=True)
    result = fit(frames, head(), landmarks=landmarks, intrinsics=intrinsics(camera), config=whole)
    assert result.valid.all()
    assert degrees_apart(result, poses).max() < 1.0
    assert result.texture.shape == (32, 32, 3)
    for k in (0, N - 1):
        again = render(result.face(k), jnp.asarray(result.light[k]), result.pose(k), result.camera)
        inside = (np.asarray(again.coverage) == 1) & (truth[k].sum(axis=-1) > 0.05)
        assert inside.mean() > 0.08
        error = (np.asarray(again.colour) - truth[k])[inside]
        assert -10 * np.log10(np.mean(error**2)) > 28


def refused(match, **changes):
    frames, landmarks, _, camera, _ = clip()
    given = {"landmarks": landmarks, "intrinsics": intrinsics(camera), "config": EXACT} | changes
    with pytest.raises(InputError, match=match) as caught:
        fit_sequence(given.pop("video", frames), head(), **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [[400.0, 400.0], [400.0, 400.0, 160.0, np.nan], [-400.0, 400.0, 160.0, 120.0], np.zeros((3, 3)), np.eye(4)],
    ids=["two", "nan", "negative", "zero matrix", "4x4"],
)
def test_bad_intrinsics_are_refused(bad):
    refused("Intrinsics must be", intrinsics=bad)


def test_a_camera_matrix_is_as_good_as_four_numbers():
    from facejax.fitting.sequence import camera_from

    camera = camera_from([[400, 0, 160], [0, 410, 120], [0, 0, 1]])
    np.testing.assert_allclose(camera.focal, [400, 410])
    np.testing.assert_allclose(camera.principal_point, [160, 120])


@pytest.mark.parametrize(
    ("shape", "match"),
    [((N, 468, 2), "shape"), ((N, 478), "shape"), ((N, 478, 4), "shape"), ((N - 1, 478, 2), "every frame")],
)
def test_landmarks_of_another_shape_are_refused(shape, match):
    refused(match, landmarks=np.ones(shape))


def test_landmarks_that_are_all_missing_are_refused():
    refused("NaN", landmarks=np.full((N, 478, 2), np.nan))


@pytest.mark.parametrize(
    "video",
    [np.full((N, 240, 320, 3), 90.0), np.full((N, 240, 320, 3), np.nan), np.zeros((N, 16, 16, 3), np.uint8)],
    ids=["0 to 255 as floats", "nan", "tiny"],
)
def test_pictures_that_cannot_be_read_as_such_are_refused(video):
    refused(".", video=video)


def test_an_identity_of_another_model_is_refused():
    earlier = toy_result(2)
    refused("only be held within one model", identity=dataclasses.replace(earlier, model_sha256="1" * 64))
