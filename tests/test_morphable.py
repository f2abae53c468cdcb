"""Linear heads: the contract of `HeadModel`, eyes that turn rigidly, reductions to points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_head import NAMES, toy_codes, toy_head

from facejax.geometry.meshes import SurfacePoints, barycentric_points
from facejax.geometry.records import Face
from facejax.geometry.rotations import gaze_to_matrix
from facejax.models.head import ROLES, HeadModel
from facejax.models.morphable import GAZE_RANGE_RAD, Expression, Identity
from facejax.scenes.unknowns import path_name

HEAD = toy_head(12, 16)
REST = HEAD.init_code()[1]
MEAN = HEAD.init_code()[0]
SOMEONE = toy_codes(HEAD, 1)[0]


def frames(n=3):
    return toy_codes(HEAD, n, seed=1)[1]


def frame(k=0):
    return jax.tree_util.tree_map(lambda x: x[k], frames())


def decode(shared, expression):
    return HEAD.decode(HEAD.params, shared, expression, jnp.array([0.0, 0.0, 1.0]))


def test_it_is_a_head():
    assert isinstance(HEAD, HeadModel)
    assert not isinstance(HEAD.params, HeadModel)
    assert len(HEAD.sha256) == 64


def test_roles_name_leaves_that_exist():
    shared, frame = HEAD.init_code()
    names = {
        path_name(p)
        for p, _ in jax.tree_util.tree_leaves_with_path({"clip": {"code": shared}, "frame": {"code": frame}})
    }
    assert set(HEAD.roles) <= set(ROLES)
    for paths in HEAD.roles.values():
        assert all(any(n == p or n.startswith(p + ".") for n in names) for p in paths)
    assert len(HEAD.roles["texture"]) == 1


def test_the_mean_head_at_rest_is_the_mean():
    face = decode(MEAN, REST)
    assert isinstance(face, Face)
    np.testing.assert_allclose(face.vertices, HEAD.params.mean, atol=1e-7)
    np.testing.assert_allclose(face.albedo, np.exp(HEAD.params.skin_mean), rtol=1e-5)
    assert (np.asarray(face.texture) == 1).all()
    assert HEAD.code_prior(HEAD.params, MEAN, REST) == 0


def test_identity_and_expression_add_linearly():
    p = HEAD.params
    shape = jnp.array([1.0, -2.0, 0.5])
    activations = jnp.zeros(len(NAMES)).at[0].set(0.5).at[5].set(0.25)
    face = decode(MEAN.replace(shape=shape), REST.replace(activations=activations))
    expected = (
        np.asarray(p.mean, np.float64)
        + np.einsum("i,ivc->vc", shape, p.identity_basis)
        + 0.5 * np.asarray(p.expression_basis)[0]
        + 0.25 * np.asarray(p.expression_basis)[5]
    )
    np.testing.assert_allclose(face.vertices, expected, atol=1e-7)


def test_lids_and_gaze_move_the_shapes_that_are_named_for_them():
    full = HEAD.full_activations(REST.replace(eyelids=jnp.array([0.7, 0.2])))
    np.testing.assert_allclose(full, [0, 0.7, 0.2, 0, 0, 0])
    gaze = jnp.array([[0.3, 0.0], [0.0, 0.15]])  # left eye out, right eye up
    np.testing.assert_allclose(
        HEAD.full_activations(REST.replace(gaze=gaze)),
        [0, 0, 0, 0.3 / GAZE_RANGE_RAD, 0.15 / GAZE_RANGE_RAD, 0],
        atol=1e-6,
    )
    assert (
        np.asarray(HEAD.full_activations(REST.replace(gaze=-gaze))) == 0
    ).all()  # those directions have no shapes here
    base = jnp.full(len(NAMES), 0.1)
    both = HEAD.full_activations(Expression(activations=base, gaze=gaze, eyelids=jnp.array([0.5, 0.0])))
    np.testing.assert_allclose(both[:3], [0.1, 0.6, 0.1], atol=1e-6)


@pytest.mark.parametrize("angles", [(0.3, 0.0), (-0.2, 0.25), (0.0, -0.35)])
@pytest.mark.parametrize("side", [0, 1])
def test_eyes_turn_rigidly_by_the_stated_angles(side, angles):
    gaze = jnp.zeros((2, 2)).at[side].set(jnp.array(angles))
    before, after = (np.asarray(decode(SOMEONE, REST.replace(gaze=g)).vertices) for g in (jnp.zeros((2, 2)), gaze))
    eye = np.asarray(HEAD.params.eye_weight)[:, side] == 1
    other = np.asarray(HEAD.params.eye_weight)[:, 1 - side] == 1
    pivot = np.asarray(HEAD.eye_pivots(HEAD.params, SOMEONE))[side]
    turn = np.asarray(gaze_to_matrix(jnp.array(angles)))
    np.testing.assert_allclose(after[eye] - pivot, (before[eye] - pivot) @ turn.T, atol=1e-6)
    np.testing.assert_allclose(after[other], before[other], atol=1e-8)
    ahead = turn @ [0, 0, 1]
    np.testing.assert_allclose(np.arctan2(ahead[0], ahead[2]), angles[0], atol=1e-6)
    np.testing.assert_allclose(np.arcsin(ahead[1]), angles[1], atol=1e-6)


def test_pivots_follow_identity():
    p = HEAD.params
    expected = np.asarray(p.eye_pivot) + np.einsum("i,isc->sc", SOMEONE.shape, p.eye_pivot_basis)
    np.testing.assert_allclose(HEAD.eye_pivots(p, SOMEONE), expected, atol=1e-7)


def test_albedo_stays_below_one():
    bright = MEAN.replace(skin=jnp.array([50.0, 50.0]))
    albedo = np.asarray(HEAD.albedo(HEAD.params, bright))
    assert albedo.max() < 1
    assert np.isfinite(
        np.asarray(jax.grad(lambda s: HEAD.albedo(HEAD.params, MEAN.replace(skin=s)).sum())(MEAN.skin))
    ).all()


def test_landmarks_lie_on_the_decoded_head():
    v = decode(SOMEONE, frame()).vertices
    points = HEAD.landmark_points(v)
    assert points.shape == (478, 3)
    k = 17
    expected = HEAD.landmarks478.weights[k] @ np.asarray(v)[HEAD.landmarks478.triangles[k]]
    np.testing.assert_allclose(points[k], expected, atol=1e-7)


def test_a_head_reduced_to_points_gives_the_points_of_the_whole():
    rng = np.random.default_rng(0)
    skin = HEAD.topology.faces[(np.asarray(HEAD.params.eye_weight)[HEAD.topology.faces].sum(axis=(1, 2))) == 0]
    eye = HEAD.topology.faces[(np.asarray(HEAD.params.eye_weight)[HEAD.topology.faces].sum(axis=(1, 2))) == 3]
    triangles = np.concatenate([skin[rng.choice(len(skin), 40)], eye[rng.choice(len(eye), 10)]])
    points = SurfacePoints(triangles=triangles, weights=rng.dirichlet(np.ones(3), 50).astype(np.float32))
    small = HEAD.at_points(points)
    for k in range(3):
        whole = decode(SOMEONE, frame(k))
        part = small.decode(small.params, SOMEONE, frame(k))
        np.testing.assert_allclose(part.vertices, points.on(whole.vertices), atol=2e-6)
    log_albedo = barycentric_points(jnp.log(whole.albedo), points.triangles, points.weights)
    np.testing.assert_allclose(part.albedo, jnp.exp(log_albedo), rtol=1e-4)
    np.testing.assert_allclose(part.specular, 0.03, rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(small.params.eye_weight).sum(axis=1)[40:], 1)
    np.testing.assert_array_equal(np.asarray(small.params.eye_weight)[:40], 0)


def test_scaling_multiplies_every_length():
    large = HEAD.scaled(1.3)
    np.testing.assert_allclose(
        large.vertices(large.params, SOMEONE, frame()), 1.3 * decode(SOMEONE, frame()).vertices, atol=1e-6
    )
    np.testing.assert_allclose(
        large.eye_pivots(large.params, SOMEONE), 1.3 * HEAD.eye_pivots(HEAD.params, SOMEONE), atol=1e-7
    )
    np.testing.assert_array_equal(large.params.skin_mean, HEAD.params.skin_mean)
    np.testing.assert_array_equal(HEAD.params.mean, toy_head(12, 16).params.mean)  # the first is left as it was


def test_the_prior_prefers_the_mean_and_keeps_activations_in_range():
    def prior(shared=MEAN, **changes):
        return float(HEAD.code_prior(HEAD.params, shared, REST.replace(**changes)))

    np.testing.assert_allclose(prior(MEAN.replace(shape=jnp.array([1.0, -2.0, 0.0]))), 5, rtol=1e-6)
    np.testing.assert_allclose(prior(MEAN.replace(skin=jnp.array([0.0, 3.0]))), 9, rtol=1e-6)
    one = jnp.zeros(len(NAMES)).at[2]
    assert prior(activations=one.set(-0.2)) > 5 * prior(activations=one.set(0.2))
    assert prior(activations=one.set(1.3)) - prior(activations=one.set(1.0)) > 2
    assert prior(eyelids=jnp.array([1.0, 0.0])) == 0
    assert prior(eyelids=jnp.array([1.5, 0.0])) > 1
    together, apart = jnp.array([[0.2, 0.0], [0.2, 0.0]]), jnp.array([[0.2, 0.0], [-0.2, 0.0]])
    assert prior(gaze=apart) > 5 * prior(gaze=together)
    slope = jax.grad(lambda s, f: HEAD.code_prior(HEAD.params, s, f), argnums=(0, 1))(MEAN, REST)
    assert all((np.asarray(x) == 0).all() for x in jax.tree_util.tree_leaves(slope))


def test_even_light():
    for bands in (1, 3):
        light = np.asarray(HEAD.init_light(bands))
        assert light.shape == (bands**2, 3)
        np.testing.assert_allclose(light[0], np.sqrt(4 * np.pi), rtol=1e-6)
        assert (light[1:] == 0).all()


def test_motion_features_are_what_moves():
    f = frame()
    features = HEAD.motion_features(f)
    assert features.shape == (len(NAMES) + 4,)
    np.testing.assert_array_equal(features[: len(NAMES)], f.activations)
    np.testing.assert_array_equal(HEAD.motion_features(f.replace(eyelids=jnp.ones(2))), features)


def test_vmap_equals_loop_and_gradients_are_finite():
    together = jax.jit(jax.vmap(lambda f: decode(SOMEONE, f).vertices))(frames())
    for k in range(3):
        np.testing.assert_allclose(together[k], decode(SOMEONE, frame(k)).vertices, atol=1e-6)

    def far(shared, expression):
        return jnp.sum(decode(shared, expression).vertices ** 2)

    for slope in jax.tree_util.tree_leaves(jax.jit(jax.grad(far, argnums=(0, 1)))(MEAN, REST)):
        assert np.isfinite(np.asarray(slope)).all()


def test_records_survive_what_jax_does_to_them():
    """vmap, scan and masks with None make records whose fields are not what their types say."""
    stacked = jax.vmap(lambda x: Identity(shape=x, skin=x[:1], texture=jnp.ones((2, 2, 3))))(jnp.ones((4, 3)))
    assert stacked.shape.shape == (4, 3)
    assert stacked.replace(skin=stacked.skin * 2).skin.shape == (4, 1)
    with pytest.raises(TypeError, match="colour"):
        stacked.replace(colour=1)
    (last, _) = jax.lax.scan(lambda c, x: (c.replace(shape=c.shape + x), None), MEAN, jnp.ones(5))
    np.testing.assert_allclose(last.shape, 5)
    holed = jax.tree_util.tree_map_with_path(lambda p, x: x if p[-1].name == "shape" else None, MEAN)
    assert holed.skin is None
    with pytest.raises(AttributeError):
        MEAN.shape = jnp.ones(3)
