"""The optimiser: what moves, what stays, and where it ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from facejax.fitting.optimise import frame_curvature, join, minimise, path_name, split, whitening
from facejax.fitting.variables import ClipVariables, FrameVariables, PoseVariables
from toy_head import toy_head

from facejax.fitting.checkpoint import Checkpoint, fingerprint

HEAD = toy_head(6, 8)
SHARED, FRAME = HEAD.init_code()


def variables():
    pose = PoseVariables(base=jnp.eye(3), turn=jnp.zeros(3), anchor=jnp.zeros(2), log_scale=jnp.zeros(()))
    frame = FrameVariables(pose=pose, code=FRAME, light=HEAD.init_light())
    return {"shared": ClipVariables(code=SHARED, log_focal=jnp.zeros(())), "frame": frame}


def names(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path) for path, _ in leaves}


def test_paths_have_names():
    assert {"shared.log_focal", "shared.code.shape", "frame.pose.turn", "frame.code.gaze"} <= names(variables())


def test_split_takes_what_is_free_and_never_constants():
    moving, held = split(variables(), ("frame.pose", "shared.code.shape"))
    assert names(moving) == {"frame.pose.turn", "frame.pose.anchor", "frame.pose.log_scale", "shared.code.shape"}
    assert names(held) == names(variables()) - names(moving)
    assert "frame.pose.base" in names(held)


def test_a_prefix_is_a_whole_name():
    tree = {"a": {"light": jnp.zeros(1), "lights": jnp.zeros(1)}}
    assert names(split(tree, ("a.light",))[0]) == {"a.light"}
    assert names(split(tree, ())[0]) == set()


def test_join_is_the_inverse_of_split():
    v = variables()
    for free in ((), ("frame",), ("shared.code", "frame.light")):
        back = join(*split(v, free))
        assert jax.tree_util.tree_structure(back) == jax.tree_util.tree_structure(v)
        for a, b in zip(jax.tree_util.tree_leaves(back), jax.tree_util.tree_leaves(v), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_quadratic_is_solved_and_the_rest_stays():
    goal = jnp.array([0.3, -0.2, 0.1])

    def loss(v):
        away = jnp.sum((v["shared"].code.shape - goal) ** 2)
        return away + jnp.sum((v["frame"].pose.turn - goal) ** 2) + jnp.sum((v["frame"].light - 5) ** 2)

    v = variables()
    run = jax.jit(lambda v: minimise(loss, v, ("shared.code.shape", "frame.pose.turn"), steps=300))
    solved, losses = run(v)
    np.testing.assert_allclose(solved["shared"].code.shape, goal, atol=2e-3)
    np.testing.assert_allclose(solved["frame"].pose.turn, goal, atol=2e-3)
    np.testing.assert_array_equal(solved["frame"].light, v["frame"].light)
    np.testing.assert_array_equal(solved["frame"].pose.base, jnp.eye(3))
    assert losses.shape == (300,)
    np.testing.assert_allclose(losses[0], loss(v), rtol=1e-6)
    assert losses[-1] < losses[0]


def test_coordinates_of_different_curvature_arrive_together():
    """Adam does not mind that one direction is 10,000 times as steep."""
    stiff = jnp.array([1.0, 100.0, 10_000.0])
    start = variables()
    start["shared"] = start["shared"].replace(code=SHARED.replace(shape=jnp.ones(3)))
    loss = lambda v: jnp.sum(stiff * v["shared"].code.shape ** 2)  # noqa: E731
    solved, _ = jax.jit(lambda v: minimise(loss, v, ("shared.code.shape",), steps=300))(start)
    assert np.abs(np.asarray(solved["shared"].code.shape)).max() < 0.02


def test_a_gradient_that_is_not_finite_stops_its_leaf_and_no_other():
    def loss(v):
        bad = jnp.sum(jnp.sqrt(v["shared"].code.skin))  # infinite slope at 0
        return bad + jnp.sum((v["shared"].code.shape - 1) ** 2)

    solved, _ = jax.jit(lambda v: minimise(loss, v, ("shared.code",), steps=100))(variables())
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree_util.tree_leaves(solved))
    np.testing.assert_allclose(solved["shared"].code.shape, 1, atol=0.05)
    np.testing.assert_array_equal(solved["shared"].code.skin, 0)


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
        "shared": jnp.zeros(2),
    }

    def loss(v):
        away = jnp.concatenate([v["frame"]["turn"], v["frame"]["x"]], axis=1) - goal
        each = 0.5 * jnp.einsum("fi,ij,fj->f", away, curvature, away)
        return jnp.mean(each) + 0 * jnp.sum(v["frame"]["held"]) + jnp.sum((v["shared"] - 0.1) ** 2)

    free, metric = ("frame.turn", "frame.x", "shared"), whitening(curvature, 10.0)
    solved, losses = jax.jit(lambda v: minimise(loss, v, free, steps=60, metric=metric))(start)
    assert losses[0] > 1e3 * losses[-1]
    np.testing.assert_allclose(
        jnp.concatenate([solved["frame"]["turn"], solved["frame"]["x"]], axis=1), goal, atol=5e-3
    )
    np.testing.assert_allclose(solved["shared"], 0.1, atol=0.02)
    np.testing.assert_array_equal(solved["frame"]["held"], 1)
    _, plain = jax.jit(lambda v: minimise(loss, v, free, steps=60))(start)
    assert plain[-1] > 10 * losses[-1]


def test_rate_scales_the_first_step():
    loss = lambda v: jnp.sum(v["shared"].code.shape)  # noqa: E731
    one, half = (
        minimise(loss, variables(), ("shared.code.shape",), steps=1, rate=r)[0]["shared"].code.shape for r in (1.0, 0.5)
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
