"""Rendered objectives, optical flow, light models, and registration of a small avatar."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from facejax.fitting.adaptation import adapt, time_kernel
from facejax.fitting.flow import agreement, dense_flow
from facejax.fitting.flow_fit import flow_solver
from facejax.fitting.light_models import HarmonicLight, ShadowedLight, light_model
from facejax.fitting.registration import Pictures, Registration, register
from facejax.fitting.rendered_fit import (
    flow_loss,
    inside,
    laplacian,
    picture_loss,
    rendered_objective,
)
from facejax.fitting.variables import ClipVariables, FrameVariables, pose_of, take_frames, variables_of
from toy_avatar import CODE, GROUPS, toy_avatar

from facejax.data.video import open_video
from facejax.fitting.checkpoint import Checkpoint
from facejax.fitting.config import FitConfig
from facejax.geometry.cameras import project, to_camera_frame, view_direction
from facejax.geometry.colour import linear_to_srgb_bytes
from facejax.geometry.errors import InputError
from facejax.geometry.records import Camera, Pose
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.models.avatar import AvatarClip, AvatarFrame
from facejax.models.head import Stage, Turn
from facejax.renderers.textured import make_textured_renderer

SIDE = 48
CAMERA = Camera(focal=jnp.full(2, 150.0), principal_point=jnp.full(2, SIDE / 2))
UPRIGHT = jnp.diag(jnp.array([1.0, -1.0, -1.0]))
rng = np.random.default_rng(2)
NOISE = rng.uniform(size=(SIDE, SIDE, 3)).astype(np.float32)


# -- losses ------------------------------------------------------------------------------------------------------------


def test_laplacian_is_that_of_a_plain_loop():
    image = NOISE[:6, :7]
    expected = np.zeros_like(image)
    for i in range(6):
        for j in range(7):
            for a, b in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                expected[i, j] += image[np.clip(a, 0, 5), np.clip(b, 0, 6)] - image[i, j]
    np.testing.assert_allclose(laplacian(jnp.asarray(image)), expected, atol=1e-6)


def test_a_constant_error_is_seen_by_the_first_term_alone():
    mask, seen = jnp.ones((SIDE, SIDE)), 0.5 * jnp.asarray(NOISE)
    both = [float(picture_loss(seen - 0.1, seen, mask, w)) for w in (0.0, 1.0)]
    np.testing.assert_allclose(both, 25.5, rtol=1e-4)


def test_smooth_light_hardly_moves_the_laplacian_term():
    seen = 0.3 + 0.4 * jnp.asarray(NOISE)
    slope = 0.1 * jnp.linspace(-1, 1, SIDE)[None, :, None] ** 2
    mask = jnp.ones((SIDE, SIDE))
    first = float(picture_loss(seen + slope, seen, mask, 0.0))
    second = float(picture_loss(seen + slope, seen, mask, 1.0)) - first
    assert second < 0.02 * first


def test_a_burnt_out_picture_does_not_ask_for_less_light():
    seen, mask = jnp.ones((4, 4, 3)), jnp.ones((4, 4))
    assert picture_loss(seen + 0.5, seen, mask, 0.3) == 0
    assert picture_loss(seen - 0.5, seen, mask, 0.0) > 100


def test_pixels_at_the_border_of_a_mask_do_not_count():
    mask = jnp.zeros((7, 7)).at[1:6, 1:6].set(1.0)
    assert float(inside(mask).sum()) == 9


def test_flow_loss_is_zero_where_flow_says_and_a_square_beside():
    pixels, weight = jnp.asarray(rng.uniform(0, 64, (9, 2)), jnp.float32), jnp.ones(9)
    assert flow_loss(pixels, pixels, weight, 64) == 0
    off = flow_loss(pixels, pixels + jnp.array([0.5, 0.0]), weight, 64)
    np.testing.assert_allclose(off, (0.5 * 256 / 64) ** 2, rtol=1e-5)
    assert flow_loss(pixels, pixels + 3.0, jnp.zeros(9), 64) == 0


# -- flow --------------------------------------------------------------------------------------------------------------


def blobs(dx: float, dy: float) -> np.ndarray:
    y, x = np.mgrid[:96, :96].astype(np.float64)
    waves = np.random.default_rng(0).uniform([0.1, 0.1, 0], [0.5, 0.5, 6], (12, 3))
    image = sum(np.cos(a * (x - dx) + b * (y - dy) + c) for a, b, c in waves)
    return np.repeat((127 + 20 * image).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def test_flow_finds_how_a_picture_was_moved():
    pytest.importorskip("cv2")
    flow, weight = dense_flow(blobs(0, 0), blobs(2.5, -1.5))
    inner = np.s_[16:-16, 16:-16]
    np.testing.assert_allclose(np.median(flow[inner].reshape(-1, 2), axis=0), [2.5, -1.5], atol=0.15)
    assert weight[inner].mean() > 0.9


def test_flow_that_fails_has_no_weight():
    there = np.zeros((20, 20, 2), np.float32)
    there[0, 0], there[1, 1], there[2, 2], there[3, 3] = np.nan, np.inf, (15.0, 0), (2.0, 2.0)
    back = np.zeros_like(there)
    weight = agreement(there, back)
    assert [weight[i, i] for i in range(5)] == [0, 0, 0, 0, 1]


def test_flow_between_sizes_is_refused():
    pytest.importorskip("cv2")
    with pytest.raises(InputError, match="two pictures of one size"):
        dense_flow(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8))


# -- light models ------------------------------------------------------------------------------------------------------


def test_an_unknown_light_model_is_refused():
    unknown = FitConfig()
    object.__setattr__(unknown, "light_model", "sun")
    with pytest.raises(InputError, match='"network", "sh" or "shadowed-sh"'):
        light_model(toy_avatar(), unknown)


def test_harmonics_light_evenly_and_from_one_side():
    avatar = toy_avatar()
    lights = HarmonicLight(avatar.topology)
    pose = Pose(rotation=UPRIGHT, translation=jnp.array([0.0, 0.0, 0.8]))
    face = avatar.decode(avatar.params, avatar.init_code()[0], avatar.init_code()[1], view_direction(pose))
    normals = lights.prepare(face.vertices)
    even = jnp.zeros((9, 3)).at[0].set(jnp.sqrt(4 * jnp.pi))
    np.testing.assert_allclose(lights.lit(None, face, even, pose, normals).albedo, 1.0, atol=1e-5)
    right = even.at[3].set(1.0)  # more from +x of the camera, the image's right
    lit = np.asarray(lights.lit(None, face, right, pose, normals).albedo)[:, 0]
    assert np.corrcoef(lit, np.asarray(normals)[:, 0])[0, 1] > 0.999


def test_cast_shadows_follow_the_head_and_leave_even_light_alone():
    avatar = toy_avatar()
    plain, shadowed = HarmonicLight(avatar.topology, bands=9), ShadowedLight(avatar.topology, directions=64)
    code = avatar.init_code()[1]
    pose = Pose(rotation=UPRIGHT @ rotvec_to_matrix(jnp.array([0.0, 0.6, 0.0])), translation=jnp.array([0, 0, 0.8]))
    face = avatar.decode(avatar.params, avatar.init_code()[0], code, view_direction(pose))
    light = jnp.zeros((81, 3)).at[0].set(jnp.sqrt(4 * jnp.pi)).at[3].set(0.8).at[1].set(-0.5)
    free = np.asarray(plain.lit(None, face, light, pose, plain.prepare(face.vertices)).albedo)
    cast = np.asarray(shadowed.lit(None, face, light, pose, shadowed.prepare(face.vertices)).albedo)
    skin = np.asarray(avatar.regions["skin"]) > 0.5
    assert np.corrcoef(cast[skin, 0], free[skin, 0])[0, 1] > 0.9
    assert np.std(cast[skin] - free[skin]) > 0.01
    even = jnp.zeros((81, 3)).at[0].set(jnp.sqrt(4 * jnp.pi))  # the light that the texture was seen under
    as_it_is = np.asarray(shadowed.lit(None, face, even, pose, shadowed.prepare(face.vertices)).albedo)
    np.testing.assert_allclose(as_it_is[skin], 1.0, atol=1e-4)


# -- a small avatar ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip():
    """Four frames of the toy avatar under one light, as it draws itself, and where every vertex truly is."""
    avatar, count = toy_avatar(), 4
    random = np.random.default_rng(1)
    codes = random.normal(size=(count, CODE)).astype(np.float32)
    shared = AvatarClip(light=jnp.asarray(random.uniform(1.0, 3.0, (GROUPS, 3)), jnp.float32))
    render = make_textured_renderer(avatar.topology, (SIDE, SIDE))

    @jax.jit
    def one(code, turn):
        pose = Pose(rotation=rotvec_to_matrix(turn) @ UPRIGHT, translation=jnp.array([0.0, 0.0, 0.8]))
        face = avatar.decode(avatar.params, shared, AvatarFrame(code=code), view_direction(pose))
        image = render(avatar.relit(avatar.params, face, shared.light, pose), jnp.zeros((1, 3)), pose, CAMERA)
        return (
            image.colour,
            variables_of(pose, CAMERA, SIDE / 4.0),
            project(to_camera_frame(face.vertices, pose), CAMERA),
        )

    made = [one(codes[k], jnp.array([0.0, 0.1 * (k - 1.5), 0.0])) for k in range(count)]
    frames = np.stack([linear_to_srgb_bytes(np.asarray(m[0])) for m in made])
    pose = jax.tree.map(lambda *x: np.stack(x), *[m[1] for m in made])
    truth = FrameVariables(
        pose=pose,
        code=AvatarFrame(code=jnp.zeros(CODE)).replace(code=codes),
        light=np.zeros((count, GROUPS, 3), np.float32),
    )
    boxes = np.tile(np.array([0, 0, SIDE, SIDE], np.float32), (count, 1))
    given = Pictures(open_video(frames), None, boxes, np.ones(count, bool))
    config = FitConfig(size=SIDE, frames_at_once=2, flow_weight=0.0)
    clip_variables = ClipVariables(code=shared, log_focal=jnp.log(CAMERA.focal[0]))
    start = Registration(avatar, avatar.params, clip_variables, truth, CAMERA, SIDE / 4.0, config)
    return start, given, np.stack([m[2] for m in made])


ADAPTATION = Stage(
    "adaptation", "rendered", "key", rounds=2,
    turns=(
        Turn(free=("shared.code.light", "frame.light"), steps=12, rate=5.0),
        Turn(free=("params.lighting", "frame.pose", "frame.code"), steps=6, rate=0.1),
    ),
)  # fmt: skip
KEY = np.array([0, 1, 3])


def loss_of(done: Registration, given: Pictures, ids: np.ndarray) -> float:
    one = rendered_objective(done.head, done.lights, done.render, done.camera, done.reference_px, done.config)
    each = jax.jit(jax.vmap(lambda p, s, f, d: one(p, s, f, d, False), in_axes=(None, None, 0, 0)))
    return float(each(done.params, done.shared, take_frames(done.frames, ids), done.data(given, ids)).mean())


def with_config(start: Registration, **changes) -> Registration:
    return dataclasses.replace(start, config=dataclasses.replace(start.config, **changes))


def quiet(done, total):
    pass


def test_the_truth_has_almost_no_loss_and_gradients_are_differences(clip):
    start, given, _ = clip
    start = with_config(start, code_weight=0.0, laplacian_weight=0.0)
    assert loss_of(start, given, KEY) < 2.0  # rounding to 8 bits, and radiance below 0
    one = rendered_objective(start.head, start.lights, start.render, start.camera, start.reference_px, start.config)
    data = take_frames(start.data(given, KEY), 0)
    frame = jax.tree.map(jnp.asarray, take_frames(start.frames, 0))
    dark = start.shared.replace(code=AvatarClip(light=0.8 * start.shared.code.light))

    def loss(code):
        return one(start.params, dark, frame.replace(code=AvatarFrame(code=code)), data, False)

    code = jnp.asarray(frame.code.code)
    gradient = jax.jit(jax.grad(loss))(code)
    way = jnp.asarray(np.random.default_rng(0).normal(size=CODE), jnp.float32)
    values = [float(jax.jit(loss)(code + h * way)) for h in (-2e-2, 2e-2)]
    np.testing.assert_allclose(float(gradient @ way), (values[1] - values[0]) / 4e-2, rtol=0.1)


def test_adaptation_finds_a_light_and_moves_what_it_may(clip, tmp_path):
    start, given, _ = clip
    dark = loss_of(start.unlit(), given, KEY)
    keep = Checkpoint(tmp_path, "one")
    lit = adapt(start, given, KEY, ADAPTATION, quiet, keep)
    assert loss_of(lit, given, KEY) < 0.5 * dark
    assert not np.asarray(lit.frames.light).any()
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), lit.params, start.params)
    assert max(jax.tree.leaves(moved["lighting"])) > 0
    assert max(jax.tree.leaves((moved["decoder"], moved["mesh"]))) == 0
    np.testing.assert_array_equal(lit.frames.code.code[2], start.frames.code.code[2])  # not a key frame
    again = adapt(start, given, KEY, dataclasses.replace(ADAPTATION, rounds=2), quiet, keep)  # all rounds are kept
    np.testing.assert_array_equal(again.shared.code.light, lit.shared.code.light)


def test_without_adaptation_the_network_stays(clip):
    start, given, _ = clip
    lit = adapt(with_config(start, adapt=False), given, KEY[:1], ADAPTATION, quiet)
    jax.tree.map(np.testing.assert_array_equal, lit.params["lighting"], start.params["lighting"])
    assert np.abs(lit.shared.code.light).max() > 0.1


def test_a_changing_light_has_a_code_per_frame_and_is_continued_between(clip):
    start, given, _ = clip
    lit = adapt(with_config(start, changing_light=True), given, KEY, ADAPTATION, quiet)
    light = lit.frames.light
    assert np.abs(np.diff(light, axis=0)).max() > 0
    np.testing.assert_allclose(light[2], 0.5 * (light[1] + light[3]), atol=1e-6)


def test_a_changing_light_averages_over_time_and_ignores_padding():
    ids = np.array([0, 2, 4, 30])
    kernel = time_kernel(ids, 6, width=2.0)
    np.testing.assert_allclose(kernel[:4].sum(axis=1), 1.0, rtol=1e-6)
    assert not kernel[4:].any()
    assert not kernel[:, 4:].any()
    np.testing.assert_allclose(kernel[0, 1] / kernel[0, 0], np.exp(-0.5), rtol=1e-6)
    np.testing.assert_allclose(kernel[3, 3], 1.0, atol=1e-6)  # alone in its time
    np.testing.assert_allclose(time_kernel(ids, 4, width=0.0), np.eye(4), atol=1e-9)


def test_registration_moves_the_chosen_frames_towards_the_truth(clip):
    start, given, _ = clip
    off = start.frames.pose.turn + np.array([0.0, 0.06, 0.0], np.float32)
    begun = start.lit_from(start.shared, start.frames.replace(pose=start.frames.pose.replace(turn=off)))
    stage = Stage("registration", "rendered", "all", ("frame.pose", "frame.code"), steps=25, rate=0.5)
    only = np.array([1, 3])
    done = register(begun, given, stage, quiet, only=only)
    turn = np.abs(np.asarray(done.frames.pose.turn) - np.asarray(start.frames.pose.turn))[:, 1]
    assert (turn[only] < 0.03).all()
    np.testing.assert_allclose(turn[[0, 2]], 0.06, atol=1e-6)
    assert loss_of(done, given, only) < 0.6 * loss_of(begun, given, only)


def test_true_flow_alone_brings_vertices_home(clip):
    start, given, pixels = clip
    ids = np.array([0, 2])
    moved = start.frames.pose.replace(anchor=start.frames.pose.anchor + np.float32(0.1))
    begun = start.lit_from(start.shared, start.frames.replace(pose=moved))
    data = begun.data(given, ids).replace(target=jnp.asarray(pixels[ids]), target_weight=jnp.ones((2, pixels.shape[1])))

    def off(frames, weight):
        config = dataclasses.replace(start.config, flow_weight=weight, code_weight=0.0)
        one = rendered_objective(start.head, start.lights, start.render, CAMERA, start.reference_px, config)
        each = jax.vmap(lambda f, d: one(start.params, start.shared, f, d, True))(take_frames(frames, ids), data)
        return float(each.mean())

    assert off(begun.frames, 3.0) - off(begun.frames, 0.0) > 10
    assert abs(off(start.frames, 3.0) - off(start.frames, 0.0)) < 1e-3


MOTION = ("frame.pose", "frame.code")


def displaced(start: Registration, ids: np.ndarray) -> FrameVariables:
    """Frames that lean by three degrees, are beside their place and wear another expression."""
    frames = take_frames(start.frames, ids)
    turn = frames.pose.turn + np.array([0.05, -0.02, 0.01], np.float32)
    pose = frames.pose.replace(turn=turn, anchor=frames.pose.anchor + np.float32(0.05))
    return frames.replace(pose=pose, code=frames.code.replace(code=frames.code.code + np.float32(0.3)))


def positions(start: Registration, frames: FrameVariables) -> np.ndarray:
    """Where every vertex is, millimetres, camera frame."""

    def one(frame):
        vertices = start.head.vertices(start.params, start.shared.code, frame.code)
        return 1e3 * to_camera_frame(vertices, pose_of(frame.pose, CAMERA, start.reference_px))

    return np.asarray(jax.vmap(one)(frames))


def test_gauss_newton_finds_pose_and_code_from_exact_targets(clip):
    start, given, pixels = clip
    ids = np.array([0, 2])
    begun = displaced(start, ids)
    data = start.data(given, ids).replace(target=jnp.asarray(pixels[ids]), target_weight=jnp.ones((2, pixels.shape[1])))
    config = dataclasses.replace(start.config, flow_weight=3.0, code_weight=1e-6)
    solve = flow_solver(start.head, CAMERA, start.reference_px, config, MOTION)
    truth = positions(start, take_frames(start.frames, ids))
    off = np.linalg.norm(positions(start, begun) - truth, axis=-1)
    found = solve(start.shared, begun, data)
    assert np.median(off) > 5
    assert np.median(np.linalg.norm(positions(start, found) - truth, axis=-1)) < 0.1
    spoilt = data.replace(target=data.target.at[:, ::10].add(20.0))  # a tenth of the flow is wrong by a face's half
    again = solve(start.shared, solve(start.shared, begun, spoilt), spoilt)
    assert np.median(np.linalg.norm(positions(start, again) - truth, axis=-1)) < 1.0


def test_gauss_newton_ends_where_scipy_does(clip):
    """On targets with small noise, which Huber's distance does not see, against a plain trust region."""
    from jax.flatten_util import ravel_pytree
    from scipy.optimize import least_squares

    start, given, pixels = clip
    ids = np.array([1])
    begun = displaced(start, ids)
    target = pixels[ids] + np.random.default_rng(4).normal(scale=0.05, size=pixels[ids].shape)
    weight = np.random.default_rng(5).uniform(size=(1, pixels.shape[1]))
    data = start.data(given, ids).replace(target=jnp.asarray(target), target_weight=jnp.asarray(weight))
    config = dataclasses.replace(start.config, flow_weight=3.0, code_weight=0.1)
    solve = flow_solver(start.head, CAMERA, start.reference_px, config, MOTION)
    found = solve(start.shared, solve(start.shared, begun, data), data)

    frame = take_frames(begun, 0)
    moving = {"pose": {k: getattr(frame.pose, k) for k in ("turn", "anchor", "log_scale")}, "code": frame.code.code}
    first, place = ravel_pytree(moving)

    @jax.jit
    def residuals(x):
        v = place(x)
        now = frame.replace(pose=frame.pose.replace(**v["pose"]), code=frame.code.replace(code=v["code"]))
        vertices = start.head.vertices(start.params, start.shared.code, now.code)
        at = project(to_camera_frame(vertices, pose_of(now.pose, CAMERA, start.reference_px)), CAMERA)
        share = jnp.sqrt(3.0 * weight[0] / weight[0].sum())[:, None]
        flow = share * 256 / SIDE * (at - target[0])
        return jnp.concatenate([flow.ravel(), jnp.sqrt(0.1 / CODE) * v["code"]])

    judge = least_squares(residuals, np.asarray(first, float), jac=jax.jit(jax.jacfwd(residuals)), x_scale="jac")
    ours, _ = ravel_pytree({"pose": {k: getattr(found.pose, k)[0] for k in moving["pose"]}, "code": found.code.code[0]})
    value = [float((residuals(jnp.asarray(x, jnp.float32)) ** 2).sum()) for x in (first, ours, judge.x)]
    assert value[1] < 0.1 * value[0]
    np.testing.assert_allclose(value[1], value[2], rtol=5e-3)


def test_frames_of_which_flow_says_nothing_stay(clip):
    start, given, _ = clip
    ids = np.array([0])
    begun = displaced(start, ids)
    solve = flow_solver(start.head, CAMERA, start.reference_px, FitConfig(size=SIDE), MOTION)
    found = solve(start.shared, begun, start.data(given, ids))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, begun))


def test_flow_turns_bring_key_frames_home_before_the_network_learns(clip):
    pytest.importorskip("cv2")
    start, given, pixels = clip
    begun = start.lit_from(start.shared, displaced(start, np.arange(4)))
    stage = dataclasses.replace(ADAPTATION, turns=(Turn(free=MOTION, steps=4, by="flow"), *ADAPTATION.turns), rounds=1)

    def off(done):
        at = [project(jnp.asarray(p) / 1e3, CAMERA) for p in positions(start, done.frames)[KEY]]
        return float(np.median(np.linalg.norm(np.stack(at) - pixels[KEY], axis=-1)))

    with_flow = adapt(with_config(begun, flow_weight=3.0), given, KEY, stage, quiet)
    without = adapt(with_config(begun, flow_weight=0.0), given, KEY, stage, quiet)  # such turns are left out
    assert off(with_flow) < 0.5 * off(without)
    np.testing.assert_array_equal(with_flow.frames.code.code[2], begun.frames.code.code[2])  # not a key frame


def test_pose_variables_are_unharmed(clip):
    start, _, _ = clip
    pose = jax.vmap(lambda p: pose_of(p, CAMERA, start.reference_px))(start.frames.pose)
    np.testing.assert_allclose(pose.translation, np.tile([0, 0, 0.8], (4, 1)), atol=1e-5)
