"""The lighting network G: the figure's sizes, the identity at the start, the two kinds of response to light."""

import dataclasses
import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.geometry.errors import InputError
from facejax.geometry.records import Pose
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.models import deep_appearance
from facejax.models.layers import count_parameters
from facejax.models.lighting_network import (
    PRESETS,
    GainBias,
    LightingNetwork,
    LightingNetworkConfig,
    lights_on_head,
    pose_features,
    relight,
    rig_pose_features,
)
from facejax.objectives.deep_appearance import superposition_error
from facejax.renderers.lights import sphere_directions

KEY = jax.random.key(0)
TINY = LightingNetworkConfig(
    groups=3,
    texture_size=16,
    map_size=8,
    light_features=6,
    pose_features=5,
    base_size=2,
    base_channels=4,
    light_channels=(3,),
    texture_channels=(5,),
    head_channels=(),
)
DEEPER = dataclasses.replace(TINY, map_size=16, texture_channels=(4, 5), head_channels=(4,))
KINDS = {"free": DEEPER, "superposition": dataclasses.replace(DEEPER, superposition=True, transfer=2)}


def random(seed, *shape):
    """Normal numbers, by NumPy: every shape would be a program of its own to compile."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


LIGHT, POSE, TEXTURE = jnp.abs(random(1, 3, 3)), 0.5 * random(2, 6), 0.3 + 0.1 * random(3, 16, 16, 3)
ONES = jnp.ones((16, 16))


def weights(config):
    """Random weights everywhere, the last layers too."""
    shapes = jax.eval_shape(LightingNetwork(config).init, KEY)
    seeds = iter(range(100, 200))
    return jax.tree.map(lambda leaf: 0.3 * random(next(seeds), *leaf.shape), shapes)


def starts(config):
    """Random weights everywhere but in the heads and the texels' own map, which are as `init` makes them."""
    names = ("gain", "bias", *(["transfer"] if config.transfer else []))
    init = jax.jit(lambda key: {name: LightingNetwork(config).init(key)[name] for name in names})
    return {**weights(config), **init(KEY)}


@functools.cache
def compiled_network(kind):
    """(config, params, compiled network)."""
    return KINDS[kind], weights(KINDS[kind]), jax.jit(LightingNetwork(KINDS[kind]).__call__)


@pytest.fixture(params=KINDS)
def network(request):
    """(config, params, compiled network) of either kind."""
    return compiled_network(request.param)


def lit(network, light, pose=POSE, texture=TEXTURE):
    _, params, compiled = network
    return relight(texture, compiled(params, light, pose, texture))


# -- sizes ------------------------------------------------------------------------------------------------------------


def shapes(config):
    net, n = LightingNetwork(config), config.texture_size
    params = jax.eval_shape(net.init, KEY)
    floats = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((config.groups, 3), (6,), (n, n, 3))]
    maps = jax.eval_shape(net.__call__, params, *floats)
    assert maps.gain.shape == maps.bias.shape == (n, n, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, maps))} == {jnp.dtype("float32")}
    slopes = jax.eval_shape(jax.grad(lambda p, *x: jnp.sum(relight(x[2], net(p, *x)))), params, *floats)
    assert jax.tree.map(jnp.shape, slopes) == jax.tree.map(jnp.shape, params)
    return params


def test_the_figure_s_sizes():
    params = shapes(PRESETS["paper"])

    def kernels(layers):
        return [layers[str(n)]["kernel"].shape for n in range(len(layers))]

    assert kernels(params["light"]) == [(150, 256), (256, 256)]
    assert kernels(params["branches"]["pose"]) == [(6, 128), (128, 128)]
    assert params["join"]["kernel"].shape == (384, 4096)
    assert params["first"]["kernel"].shape == (3, 3, 256, 256)
    assert kernels(params["up"]) == [(4, 4, 256, 256), (4, 4, 256, 128)]
    assert [s[-2:] for s in kernels(params["branches"]["texture"])] == [(3, 64), (64, 64), (64, 128), (128, 128)]
    for head in ("gain", "bias"):
        assert kernels(params[head]) == [(4, 4, 256, 128), (4, 4, 128, 64), (4, 4, 64, 32), (4, 4, 32, 3)]
    assert count_parameters(params) == 5_502_086  # the digest's "about 5.5 M"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("changes", [{"superposition": True}, {"bf16": True}])
def test_every_preset_has_its_shapes(preset, changes):
    shapes(dataclasses.replace(PRESETS[preset], **changes))


def test_small_decoder_and_network_fit_a_checkpoint_of_20_mb():
    model = deep_appearance.DeepAppearanceModel(deep_appearance.PRESETS["small"])
    params, state = jax.eval_shape(model.init, KEY)
    shipped = (params["decoder"], state, jax.eval_shape(LightingNetwork(PRESETS["small"]).init, KEY))
    assert 4 * count_parameters(shipped) < 20e6


# -- what it does -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_starts_as_exactly_the_identity(kind):
    config, _, compiled = compiled_network(kind)
    net, params = LightingNetwork(config), starts(config)
    maps = compiled(params, net.full_light(), POSE, TEXTURE)
    np.testing.assert_array_equal(relight(TEXTURE, maps), TEXTURE)
    # and can leave it by the last layers, which alone are zero
    params["gain"]["1"]["kernel"] += 0.01
    assert float(jnp.abs(compiled(params, LIGHT, POSE, TEXTURE).gain - maps.gain).max()) > 1e-4


def test_head_scale_moves_it_off_the_identity():
    net = LightingNetwork(dataclasses.replace(TINY, head_scale=0.1))
    maps = jax.jit(net.__call__)(starts(net.config), LIGHT, POSE, TEXTURE)
    assert 1e-5 < float(jnp.abs(maps.gain - 1).max()) < 1
    assert float(jnp.abs(maps.bias).max()) > 1e-5


def test_every_input_matters(network):
    _, params, compiled = network
    maps = compiled(params, LIGHT, POSE, TEXTURE)
    for n, shift in enumerate((LIGHT.at[1, 2].add(0.3), POSE.at[1].add(0.2), TEXTURE.at[5, 5].add(0.3))):
        inputs = [LIGHT, POSE, TEXTURE]
        inputs[n] = shift
        other = compiled(params, *inputs)
        for field in ("gain", "bias"):
            assert float(jnp.abs(getattr(other, field) - getattr(maps, field)).max()) > 1e-4, (n, field)


def test_superposition_of_lights():
    """Linear in the code by construction, colour by colour; the paper's network is not, so the test can tell."""
    a, b = LIGHT, jnp.abs(random(4, 3, 3))
    colour = jnp.array([0.5, 2.0, -0.7])
    errors = {}
    for kind in KINDS:
        net = compiled_network(kind)
        one, other, both = lit(net, a), lit(net, b), lit(net, colour * a + 2 * b)
        size = float(jnp.abs(both).mean())
        errors[kind] = float(superposition_error(both, colour * one, 2 * other, ONES)) / size
        dark = float(jnp.abs(lit(net, jnp.zeros((3, 3)))).max())
        assert (dark < 1e-6 * size) == (kind == "superposition")
    assert errors["superposition"] < 1e-5
    assert errors["free"] > 1e-2


def test_colours_do_not_mix_under_superposition():
    net = compiled_network("superposition")
    red = lit(net, LIGHT * jnp.array([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(red[..., 0], lit(net, LIGHT)[..., 0], rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(red[..., 1:]).max()) < 1e-6


def test_eager_jit_and_vmap_agree(network):
    config, params, compiled = network
    eager = LightingNetwork(config)(params, LIGHT, POSE, TEXTURE)
    inputs = LIGHT + random(5, 3, 1, 1), POSE + random(6, 3, 1), TEXTURE + 0.1 * random(7, 3, 1, 1, 1)
    batch = jax.jit(jax.vmap(LightingNetwork(config).__call__, (None, 0, 0, 0)))(params, *inputs)
    pairs = [(eager, compiled(params, LIGHT, POSE, TEXTURE))]
    for n in (0, 2):
        alone = compiled(params, *(x[n] for x in inputs))
        pairs.append((jax.tree.map(lambda x, n=n: x[n], batch), alone))
    for a, b in pairs:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=3e-5, rtol=1e-4), a, b)


def test_gradients_are_those_of_finite_differences(network):
    config, params, _ = network

    @jax.jit
    def loss(variables):
        maps = LightingNetwork(config)(variables["params"], variables["light"], variables["pose"], TEXTURE)
        return jnp.mean((relight(TEXTURE, maps) - 0.2) ** 2)

    variables = {"params": params, "light": LIGHT, "pose": POSE}
    gradient = jax.jit(jax.grad(loss))(variables)
    for name in variables:
        flat, unravel = jax.flatten_util.ravel_pytree(variables[name])
        slope, _ = jax.flatten_util.ravel_pytree(gradient[name])
        size, step = jnp.linalg.norm(slope), 3e-3
        up, down = (loss({**variables, name: unravel(flat + s * slope / size)}) for s in (step, -step))
        np.testing.assert_allclose((up - down) / (2 * step), size, rtol=0.02, err_msg=name)


def test_use_changes_nothing_and_the_key_decides():
    net = LightingNetwork(TINY)
    params = weights(TINY)
    before = jax.tree.map(np.array, params)
    net(params, LIGHT, POSE, TEXTURE)
    jax.tree.map(np.testing.assert_array_equal, before, params)
    init = jax.jit(lambda key: net.init(key)["join"])
    one, again, other = init(KEY), init(KEY), init(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert not np.allclose(other["kernel"], one["kernel"])


def test_bfloat16_is_close(network):
    config, params, compiled = network
    half = LightingNetwork(dataclasses.replace(config, bf16=True))
    a, b = compiled(params, LIGHT, POSE, TEXTURE), jax.jit(half.__call__)(params, LIGHT, POSE, TEXTURE)
    missed = float(jnp.abs(a.gain - b.gain).max())
    assert 1e-6 < missed < 0.05 * float(jnp.abs(a.gain).max())


def test_equal_configs_share_one_compiled_program():
    params, traces = weights(TINY), []

    def f(net, light):
        traces.append(1)
        return net(params, light, POSE, TEXTURE)

    compiled = jax.jit(f, static_argnums=0)
    for n in range(3):
        compiled(LightingNetwork(dataclasses.replace(TINY)), random(n, 3, 3))
    assert len(traces) == 1


def test_relighting_is_equation_2():
    maps = GainBias(gain=random(8, 4, 4, 3), bias=random(9, 4, 4, 3))
    texture = random(10, 4, 4, 3)
    np.testing.assert_allclose(relight(texture, maps), np.asarray(texture) * maps.gain + maps.bias, rtol=1e-6)


# -- pose -------------------------------------------------------------------------------------------------------------

FACING = jnp.diag(jnp.array([1.0, -1.0, -1.0]))


def test_pose_is_counted_from_a_head_that_looks_into_the_camera():
    ahead = Pose(rotation=FACING, translation=jnp.array([0.0, 0.0, 0.6]))
    np.testing.assert_allclose(pose_features(ahead), [0, 0, 0, 0, 0, 1], atol=1e-6)
    turn = jnp.array([0.1, -0.4, 0.2])
    turned = Pose(rotation=FACING @ rotvec_to_matrix(turn), translation=jnp.array([0.0, 0.0, 0.6]))
    found = pose_features(turned)
    np.testing.assert_allclose(found[:3], turn, atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(found[3:]), 1, rtol=1e-6)


def test_pose_features_are_smooth_about_a_frontal_head():
    """Axis-angle of the matrix itself jumps by a full turn there."""

    def features(turn):
        rotation = FACING @ rotvec_to_matrix(turn)
        return pose_features(Pose(rotation=rotation, translation=jnp.array([0.0, 0.0, 0.6])))

    slope = jax.jit(jax.jacfwd(features))(jnp.zeros(3))
    np.testing.assert_allclose(slope[:3], np.eye(3), atol=1e-5)
    both = jax.jit(jax.vmap(features))(jnp.array([[0.0, 0.01, 0.0], [0.0, -0.01, 0.0]]))
    assert float(jnp.abs(both[0] - both[1]).max()) < 0.03


def test_a_camera_of_a_rig_changes_the_view_alone():
    rotation, view = FACING @ rotvec_to_matrix(jnp.array([0.0, 0.3, 0.0])), jnp.array([0.6, 0.0, 0.8])
    a, b = rig_pose_features(rotation, view), rig_pose_features(rotation, jnp.array([0.0, 0.0, 1.0]))
    np.testing.assert_array_equal(a[:3], b[:3])
    np.testing.assert_allclose(a[3:], view)


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"texture_channels": (5, 5, 5)}, "the lighting branch ends at 4 texels, the texture branch at 16 / 8"),
        ({"head_channels": (4, 4)}, "heads of 3 doublings"),
        ({"texture_size": 24}, "multiple of `map_size`"),
    ],
)
def test_sizes_that_do_not_meet_are_refused(changes, match):
    with pytest.raises(InputError, match=match):
        dataclasses.replace(DEEPER, **changes)


def test_codes_and_textures_of_another_size_are_refused():
    net = LightingNetwork(TINY)
    params = jax.eval_shape(net.init, KEY)
    with pytest.raises(InputError, match=r"a lighting code must be \(3, 3\).*got \(4, 3\)"):
        net(params, jnp.ones((4, 3)), POSE, TEXTURE)
    with pytest.raises(InputError, match=r"`texture` must be \(16, 16, 3\), got \(8, 8, 3\)"):
        net(params, LIGHT, POSE, TEXTURE[:8, :8])


DIRECTIONS = np.asarray(sphere_directions(200), np.float32)
GROUP = np.argmax(DIRECTIONS @ DIRECTIONS[::20].T, axis=1)
TURN = rotvec_to_matrix(jnp.array([0.2, -0.7, 0.1]))


def on_head(code, turn=TURN):
    return np.asarray(lights_on_head(jnp.asarray(code, jnp.float32), turn, jnp.asarray(DIRECTIONS), jnp.asarray(GROUP)))


def test_an_even_light_is_even_from_everywhere():
    np.testing.assert_allclose(on_head(np.ones((10, 3))), 1.0, atol=1e-5)


def test_a_turned_head_sees_a_lamp_where_it_is():
    for lamp in range(10):
        code = np.zeros((10, 3))
        code[lamp] = 1.0
        seen = (on_head(code)[:, :1] * DIRECTIONS).sum(axis=0)
        true = DIRECTIONS[lamp == GROUP].sum(axis=0) @ np.asarray(TURN)  # to the head's frame
        cosine = seen @ true / np.linalg.norm(seen) / np.linalg.norm(true)
        assert cosine > np.cos(np.radians(8))


def test_light_on_a_head_adds_up_and_keeps_its_colours():
    one, other = np.random.default_rng(0).uniform(size=(2, 10, 3))
    np.testing.assert_allclose(on_head(one + 2 * other), on_head(one) + 2 * on_head(other), atol=1e-4)
    red = on_head(one * [1, 0, 0])
    assert not red[:, 1:].any()


def test_a_network_of_lights_refuses_a_code_of_groups():
    net = LightingNetwork(dataclasses.replace(TINY, lights=200))
    params = net.init(KEY)
    with pytest.raises(InputError, match=r"must be \(200, 3\), a colour for each light, see `lights_on_head`"):
        net(params, jnp.ones((3, 3)), jnp.zeros(6), jnp.ones((16, 16, 3)))
