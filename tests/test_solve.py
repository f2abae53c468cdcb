"""The optimiser: what moves, what stays, and where it ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_head import toy_head

from facejax.fitting.checkpoint import Checkpoint, fingerprint
from facejax.fitting.solve import frame_curvature, join, minimise, paths_of, rates_of, split, whitening
from facejax.geometry.records import Camera
from facejax.scenes import ClipVariables, FrameVariables, Lens, PoseVariables
from facejax.scenes.unknowns import leaf_at, path_name, with_leaf

HEAD = toy_head(6, 8)
SHARED, FRAME = HEAD.init_code()


def variables():
    pose = PoseVariables(base=jnp.eye(3), turn=jnp.zeros(3), anchor=jnp.zeros(2), log_scale=jnp.zeros(()))
    lens = Lens(camera=Camera(focal=jnp.ones(2), principal_point=jnp.zeros(2)), reference_px=jnp.ones(()))
    frame = FrameVariables(lens=lens, pose=pose, code=FRAME, light=HEAD.init_light(), log_zoom=jnp.zeros(()))
    return {"clip": ClipVariables(code=SHARED, light=jnp.zeros((9, 3)), log_zoom=jnp.zeros(())), "frame": frame}


def alone(loss):
    """A loss without frames, as `minimise` wants it: one term, one frame that it says nothing of."""
    return lambda v: (loss(v), jnp.zeros((1, 1)))


def names(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path) for path, _ in leaves}


def test_paths_have_names():
    assert {"clip.log_zoom", "clip.code.shape", "frame.pose.turn", "frame.code.gaze"} <= names(variables())


def test_split_takes_what_is_free_and_never_constants():
    moving, held = split(variables(), ("frame.pose", "clip.code.shape"))
    assert names(moving) == {"frame.pose.turn", "frame.pose.anchor", "frame.pose.log_scale", "clip.code.shape"}
    assert names(held) == names(variables()) - names(moving)
    assert {"frame.pose.base", "frame.lens.reference_px"} <= names(held)
    assert "frame.lens.camera.focal" in names(split(variables(), ("frame",))[1])


def test_roles_stand_for_the_head_s_own_leaves():
    roles = {"motion": ("frame.code",), "shape": ("clip.code.shape",)}
    assert paths_of(roles, ("frame.pose", "motion", "network")) == ("frame.pose", "frame.code")


def test_a_leaf_is_found_and_replaced_by_its_name():
    v = variables()
    assert leaf_at(v, "frame.pose.turn").shape == (3,)
    changed = with_leaf(v, "clip.code.shape", jnp.ones(3))
    np.testing.assert_array_equal(changed["clip"].code.shape, 1)
    np.testing.assert_array_equal(v["clip"].code.shape, 0)
    with pytest.raises(KeyError):
        with_leaf(v, "clip.code.no_such", 0)


def test_a_prefix_is_a_whole_name():
    tree = {"a": {"light": jnp.zeros(1), "lights": jnp.zeros(1)}}
    assert names(split(tree, ("a.light",))[0]) == {"a.light"}
    assert names(split(tree, ())[0]) == set()


def test_join_is_the_inverse_of_split():
    v = variables()
    for free in ((), ("frame",), ("clip.code", "frame.light")):
        back = join(*split(v, free))
        assert jax.tree_util.tree_structure(back) == jax.tree_util.tree_structure(v)
        for a, b in zip(jax.tree_util.tree_leaves(back), jax.tree_util.tree_leaves(v), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_quadratic_is_solved_and_the_rest_stays():
    goal = jnp.array([0.3, -0.2, 0.1])

    def loss(v):
        away = jnp.sum((v["clip"].code.shape - goal) ** 2)
        return away + jnp.sum((v["frame"].pose.turn - goal) ** 2) + jnp.sum((v["frame"].light - 5) ** 2)

    v = variables()
    v["frame"] = jax.tree_util.tree_map(lambda x: x[None], v["frame"])  # one frame
    run = jax.jit(lambda v: minimise(alone(loss), v, ("clip.code.shape", "frame.pose.turn"), steps=300))
    done = run(v)
    solved, losses = done.variables, done.losses
    assert done.finite.all()
    assert done.whole
    np.testing.assert_allclose(solved["clip"].code.shape, goal, atol=2e-3)
    np.testing.assert_allclose(solved["frame"].pose.turn[0], goal, atol=2e-3)
    np.testing.assert_array_equal(solved["frame"].light, v["frame"].light)
    np.testing.assert_array_equal(solved["frame"].pose.base[0], jnp.eye(3))
    assert losses.shape == (300,)
    np.testing.assert_allclose(losses[0], loss(v), rtol=1e-6)
    assert losses[-1] < losses[0]


def test_coordinates_of_different_curvature_arrive_together():
    """Adam does not mind that one direction is 10,000 times as steep."""
    stiff = jnp.array([1.0, 100.0, 10_000.0])
    start = variables()
    start["clip"] = start["clip"].replace(code=SHARED.replace(shape=jnp.ones(3)))
    loss = lambda v: jnp.sum(stiff * v["clip"].code.shape ** 2)  # noqa: E731
    solved = jax.jit(lambda v: minimise(alone(loss), v, ("clip.code.shape",), steps=300, rates=rates_of(HEAD)))(
        start
    ).variables
    assert np.abs(np.asarray(solved["clip"].code.shape)).max() < 0.02


def test_a_gradient_that_is_not_finite_stops_what_frames_share_and_says_so():
    def loss(v):
        bad = jnp.sum(jnp.sqrt(v["clip"].code.skin))  # infinite slope at 0
        return bad + jnp.sum((v["clip"].code.shape - 1) ** 2)

    done = jax.jit(lambda v: minimise(alone(loss), v, ("clip.code",), steps=5))(variables())
    assert not done.whole
    for a, b in zip(*map(jax.tree_util.tree_leaves, (done.variables, variables())), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("whitened", [True, False])
def test_a_frame_that_is_not_finite_stops_alone(whitened):
    start = {"frame": {"x": jnp.ones((3, 2))}, "clip": jnp.zeros(2)}

    def loss(v):
        each = jnp.sum((v["frame"]["x"] - 2) ** 2, axis=1)
        each = each.at[1].add(jnp.sum(jnp.sqrt(v["frame"]["x"][1] - 1)))  # infinite slope where it starts
        return jnp.sum(each) / 3 + jnp.sum((v["clip"] - 0.1) ** 2), each[None]

    metric = jnp.eye(2) if whitened else None
    free = ("frame.x", "clip")
    done = jax.jit(lambda v: minimise(loss, v, free, steps=400, rate=2.0 if whitened else 20.0, metric=metric))(start)
    np.testing.assert_array_equal(done.finite, [True, False, True])
    assert done.whole
    np.testing.assert_array_equal(done.variables["frame"]["x"][1], 1)
    np.testing.assert_allclose(done.variables["frame"]["x"][jnp.array([0, 2])], 2, atol=0.05)
    np.testing.assert_allclose(done.variables["clip"], 0.1, atol=0.02)
    assert done.losses.shape == (400,)


def tilted(seed=0, size=6):
    """A curvature with eigenvalues from 20 to 200,000 along directions that mix all variables."""
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]
    return jnp.asarray(rotation * np.geomspace(20, 2e5, size) @ rotation.T, jnp.float32)


def test_whitening_makes_every_direction_equally_steep():
    curvature = tilted()
    w = np.asarray(whitening(curvature, 10.0), np.float64)
    np.testing.assert_allclose(w @ np.asarray(curvature, np.float64) @ w, np.eye(6), atol=0.02)
    np.testing.assert_allclose(w, w.T, atol=1e-6)
    flat = np.asarray(whitening(jnp.diag(jnp.array([0.0, 1e-3, -40.0, 1000.0])), 10.0))
    np.testing.assert_allclose(np.diag(flat), [10**-0.5, 10**-0.5, 40**-0.5, 1000**-0.5], rtol=1e-4)


def test_the_curvature_is_that_of_the_leaves_that_move():
    a, b = tilted()[:3, :3], jnp.array([1.0, 2.0, 3.0])
    frame = {"light": None, "pose": {"turn": jnp.ones(3), "anchor": jnp.zeros(2)}}

    def loss(f):
        t = f["pose"]["turn"]
        return 0.5 * t @ a @ t + t @ b + jnp.sum(f["pose"]["anchor"] ** 2)

    found = frame_curvature(loss, frame)  # anchor comes before turn
    np.testing.assert_allclose(found[2:, 2:], a, rtol=1e-4)
    np.testing.assert_allclose(found[:2, :2], 2 * np.eye(2), atol=1e-5)
    np.testing.assert_allclose(found[:2, 2:], 0, atol=1e-5)


def test_whitened_frames_are_solved_in_few_steps():
    """Adam alone would need thousands; and a variable that all frames share still moves by Adam beside them."""
    curvature, rng = tilted(), np.random.default_rng(1)
    goal = jnp.asarray(rng.normal(size=(5, 6)) * 0.05, jnp.float32)
    start = {
        "frame": {"turn": jnp.zeros((5, 3)), "x": jnp.zeros((5, 3)), "held": jnp.ones((5, 2))},
        "clip": jnp.zeros(2),
    }

    def loss(v):
        away = jnp.concatenate([v["frame"]["turn"], v["frame"]["x"]], axis=1) - goal
        each = 0.5 * jnp.einsum("fi,ij,fj->f", away, curvature, away)
        return jnp.mean(each) + 0 * jnp.sum(v["frame"]["held"]) + jnp.sum((v["clip"] - 0.1) ** 2), each[None]

    free, metric = ("frame.turn", "frame.x", "clip"), whitening(curvature, 10.0)
    done = jax.jit(lambda v: minimise(loss, v, free, steps=60, metric=metric))(start)
    solved, losses = done.variables, done.losses
    np.testing.assert_allclose(done.last.mean(), losses[-1] - jnp.sum((solved["clip"] - 0.1) ** 2), atol=1e-3)
    assert losses[0] > 1e3 * losses[-1]
    np.testing.assert_allclose(
        jnp.concatenate([solved["frame"]["turn"], solved["frame"]["x"]], axis=1), goal, atol=5e-3
    )
    np.testing.assert_allclose(solved["clip"], 0.1, atol=0.02)
    np.testing.assert_array_equal(solved["frame"]["held"], 1)
    plain = jax.jit(lambda v: minimise(loss, v, free, steps=60))(start).losses
    assert plain[-1] > 10 * losses[-1]


def test_rate_scales_the_first_step():
    loss = alone(lambda v: jnp.sum(v["clip"].code.shape))
    one, half = (
        minimise(loss, variables(), ("clip.code.shape",), steps=1, rate=r).variables["clip"].code.shape
        for r in (1.0, 0.5)
    )
    np.testing.assert_allclose(half, one / 2, rtol=1e-5)
    assert (np.asarray(one) < 0).all()


def test_a_checkpoint_returns_what_was_kept(tmp_path):
    keep = Checkpoint(tmp_path / "work", fingerprint(video="a", size=(1, 2)))
    assert keep.load("stage", variables()) is None
    v = jax.tree_util.tree_map(lambda x: x + 1, variables())
    keep.save("stage", v, frame=17, label="x")
    tree, numbers = keep.load("stage", variables())
    assert jax.tree_util.tree_structure(tree) == jax.tree_util.tree_structure(v)
    for a, b in zip(jax.tree_util.tree_leaves(tree), jax.tree_util.tree_leaves(v), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(numbers["frame"]) == 17
    keep.discard()
    assert not (tmp_path / "work").exists()
    keep.discard()  # twice is no error


def test_work_on_another_input_is_not_taken(tmp_path):
    facts = {"video": "a", "size": (640, 480), "rate": 0.5}
    assert fingerprint(**facts) == fingerprint(**facts)
    others = [fingerprint(**(facts | {k: v})) for k, v in (("video", "b"), ("size", (480, 640)), ("rate", 0.25))]
    assert len({fingerprint(**facts), *others}) == 4
    Checkpoint(tmp_path, fingerprint(**facts)).save("stage", {"x": np.ones(3)})
    assert Checkpoint(tmp_path, others[0]).load("stage", {"x": 0}) is None
    assert Checkpoint(tmp_path, fingerprint(**facts)).load("stage", {"x": 0}) is not None


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "fewer leaves"])
def test_a_damaged_checkpoint_is_no_checkpoint(tmp_path, damage):
    keep = Checkpoint(tmp_path, "f")
    keep.save("stage", {"x": np.arange(1000.0), "y": np.ones(3)})
    path = tmp_path / "stage.npz"
    whole = path.read_bytes()
    if damage == "fewer leaves":
        keep.save("stage", {"x": np.arange(3.0)})
    else:
        path.write_bytes({"empty": b"", "cut": whole[:5000], "garbage": b"not a checkpoint" * 40}[damage])
    assert keep.load("stage", {"x": 0, "y": 0}) is None
