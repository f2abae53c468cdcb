"""The optimiser: what moves, what stays, and where it ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_head import toy_head

from facejax.fitting.checkpoint import Checkpoint, fingerprint
from facejax.fitting.optimise import join, minimise, path_name, split
from facejax.fitting.variables import ClipVariables, FrameVariables, PoseVariables

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
