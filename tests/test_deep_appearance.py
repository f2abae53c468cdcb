"""The deep appearance model: its layers against plain definitions, its sizes against the paper's, and its losses."""

import dataclasses
import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from facejax.geometry.cameras import view_direction
from facejax.geometry.errors import InputError
from facejax.geometry.records import Pose
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.models.deep_appearance import (
    PRESETS,
    CodeDistribution,
    DeepAppearanceConfig,
    DeepAppearanceModel,
    sample_code,
    statistics,
)
from facejax.models.layers import (
    Convolution,
    Dense,
    PureNetwork,
    TransposedConvolution,
    average_pool,
    count_parameters,
    normalised_weight,
    transposed_convolve,
    upsample,
)
from facejax.objectives.deep_appearance import (
    AppearanceWeights,
    appearance_terms,
    kl_to_standard_normal,
    lighting_terms,
    masked_l1,
    masked_square,
    superposition_error,
)

TINY = DeepAppearanceConfig(
    n_vertices=5, texture_size=16, code=4, features=6, view_features=3, encoder_channels=(2, 3), decoder_channels=(3,)
)
MODEL = DeepAppearanceModel(TINY)
KEY = jax.random.key(0)


def random(seed, *shape):
    """Normal numbers, by NumPy: every shape would be a program of its own to compile."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


EXAMPLE = 0.3 + 0.1 * random(90, 16, 16, 3), 0.05 * random(91, 5, 3)
"""A texture and a mesh."""


@pytest.fixture(scope="module")
def tiny():
    """(params, state) with no bias at 0 and no gain alike."""
    seeds = itertools.count(100)

    def fill(path, leaf):
        return (4.0 if path[-1].key == "gain" else 0.0) + 0.5 * random(next(seeds), *leaf.shape)

    params = jax.tree.map_with_path(fill, jax.eval_shape(MODEL.init, KEY)[0])
    return params, jax.jit(statistics)(0.3 + 0.1 * random(1, 4, 16, 16, 3), 0.05 * random(2, 4, 5, 3))


def encode(params, state, texture, vertices):
    return MODEL.encode(params, state, texture, vertices)


def decode(params, state, code, view):
    return MODEL.decode(params, state, code, view)


# -- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("h", "w", "i", "o"), [(1, 1, 2, 1), (3, 5, 2, 3)])
def test_phase_form_is_the_transposed_convolution(h, w, i, o):
    x, kernel = random(0, h, w, i), random(1, 4, 4, i, o)

    def plain(x, kernel):
        return jax.lax.conv_transpose(
            x[None], kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
        )[0]

    weight = random(2, 2 * h, 2 * w, o)
    ours, theirs = (
        jax.jit(lambda x, k, f=f: (f(x, k), *jax.grad(lambda *a: jnp.sum(weight * f(*a)), (0, 1))(x, k)))(x, kernel)
        for f in (transposed_convolve, plain)
    )
    assert ours[0].shape == (2 * h, 2 * w, o)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)


def test_transposed_convolution_by_its_definition():
    """Every input texel stamps the kernel, turned, onto 4 x 4 outputs from twice its place minus one."""
    x, kernel = np.asarray(random(3, 3, 2, 2)), np.asarray(random(4, 4, 4, 2, 3))
    out = np.zeros((3 * 2 + 2, 2 * 2 + 2, 3))
    for r, c in itertools.product(range(3), range(2)):
        out[2 * r : 2 * r + 4, 2 * c : 2 * c + 4] += np.einsum("i,yxio->yxo", x[r, c], kernel[::-1, ::-1])
    np.testing.assert_allclose(transposed_convolve(jnp.array(x), jnp.array(kernel)), out[1:-1, 1:-1], atol=1e-5)


@pytest.mark.parametrize(("size", "stride"), itertools.product(range(1, 8), (1, 2, 3)))
def test_convolution_looks_around_each_stride_th_texel(size, stride):
    """By its definition, for every size of kernel: zeros beyond the edge, and no output lost at it."""
    x = random(20, 7, 8, 2)
    layer = Convolution(2, 3, size, stride=stride, normalised=False, rngs=nnx.Rngs(0))
    kernel, reach = np.asarray(layer.kernel[...]), (size - 1) // 2
    wide = np.pad(np.asarray(x), ((size, size + stride), (size, size + stride), (0, 0)))
    expected = np.zeros((-(-7 // stride), -(-8 // stride), 3))
    for r, c in np.ndindex(expected.shape[:2]):
        top, left = stride * r - reach + size, stride * c - reach + size
        expected[r, c] = np.einsum("yxi,yxio->o", wide[top : top + size, left : left + size], kernel)
    found = np.asarray(layer(x))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_weight_normalisation_by_a_loop():
    direction, gain = np.asarray(random(5, 2, 2, 3, 4)), np.asarray(random(6, 4))
    length = sum(float(v) ** 2 for v in direction.reshape(-1)) ** 0.5
    expected = np.empty_like(direction)
    for where in np.ndindex(direction.shape):
        expected[where] = gain[where[-1]] * direction[where] / length
    found = normalised_weight(jnp.array(direction), jnp.array(gain))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # The whole tensor's norm, not each channel's: channels keep their relative lengths.
    per_channel = gain * direction / np.linalg.norm(direction.reshape(-1, 4), axis=0)
    assert not np.allclose(found, per_channel, rtol=0.1)
    # The direction's length has no effect.
    np.testing.assert_allclose(normalised_weight(7 * jnp.array(direction), jnp.array(gain)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda r: Dense(7, 5, rngs=r),
        lambda r: Convolution(3, 5, 4, stride=2, rngs=r),
        lambda r: TransposedConvolution(3, 5, bias="untied", resolution=8, rngs=r),
    ],
)
def test_layers_start_with_gains_at_the_norm_and_no_bias(make):
    layer = make(nnx.Rngs(0))
    np.testing.assert_allclose(layer.gain[...], np.linalg.norm(layer.kernel[...]), rtol=1e-5)
    np.testing.assert_allclose(layer.weight(), layer.kernel[...], rtol=1e-5)
    assert not np.any(layer.bias[...])


def test_transposed_kernels_start_without_a_checkerboard():
    layer = TransposedConvolution(3, 5, rngs=nnx.Rngs(0))
    flat = np.asarray(layer(jnp.ones((6, 6, 3))))[2:-2, 2:-2]
    np.testing.assert_allclose(flat, np.broadcast_to(flat[0, 0], flat.shape), atol=1e-5)
    assert np.abs(flat).max() > 1e-2


def test_initial_weights_have_glorots_variance():
    gain = 2 / (1 + 0.2**2)
    for layer, taps in (
        (Dense(200, 300, rngs=nnx.Rngs(0)), 1),
        (Convolution(40, 60, 4, rngs=nnx.Rngs(0)), 16),
        (TransposedConvolution(40, 60, rngs=nnx.Rngs(0)), 4),
    ):
        i, o = layer.kernel[...].shape[-2:]
        np.testing.assert_allclose(np.var(layer.kernel[...]), gain * 2 / ((i + o) * taps), rtol=0.03)


def test_pooling_and_upsampling():
    x = random(7, 4, 4, 2)
    np.testing.assert_allclose(average_pool(x, 2)[1, 0], x[2:4, 0:2].mean((0, 1)), rtol=1e-5)
    ramp = jnp.broadcast_to(jnp.arange(4.0)[:, None, None], (4, 4, 1))
    fine = (np.arange(16) + 0.5) / 4 - 0.5
    np.testing.assert_allclose(upsample(ramp, 4)[:, 3, 0], np.clip(fine, 0, 3), atol=1e-5)
    np.testing.assert_allclose(average_pool(upsample(ramp, 4), 4)[1:-1], ramp[1:-1], atol=1e-5)


class _Counter(nnx.Module):
    """A network with something that changes when it is used."""

    def __init__(self, rngs):
        self.linear = Dense(2, 2, rngs=rngs)
        self.calls = nnx.BatchStat(jnp.zeros(()))

    def __call__(self, x):
        self.calls[...] = self.calls[...] + 1
        return self.linear(x)

    def look(self, x):
        return self.linear(x)


def test_pure_networks_return_what_changed_and_change_nothing():
    net = PureNetwork(lambda rngs: _Counter(rngs))
    params, rest = net.init(KEY)
    before = jax.tree.map(np.array, (params, rest))
    for call in (net, jax.jit(net.__call__)):
        _, after = call(params, rest, jnp.ones(2))
        _, after = call(params, after, jnp.ones(2))
        assert float(after["calls"]) == 2
        jax.tree.map(np.testing.assert_array_equal, before, (params, rest))
    _, after = net(params, rest, jnp.ones(2), method="look")
    assert float(after["calls"]) == 0


# -- sizes ------------------------------------------------------------------------------------------------------------


def shapes(config):
    """Shapes of params and state, encoder's and decoder's output, without computing anything."""
    model = DeepAppearanceModel(config)
    params, state = jax.eval_shape(model.init, KEY)
    n = config.texture_size
    told = jax.eval_shape(model.encode, params, state, state["mean_texture"], state["mean_vertices"])
    face = jax.eval_shape(model.decode, params, state, told.mean, jax.ShapeDtypeStruct((3,), jnp.float32))
    assert (told.mean.shape, told.log_std.shape) == ((config.code,), (config.code,))
    assert (face.vertices.shape, face.texture.shape) == ((config.n_vertices, 3), (n, n, 3))
    assert {leaf.dtype for leaf in jax.tree.leaves((params, state, told, face))} == {jnp.dtype("float32")}
    return params


def test_the_paper_s_sizes():
    params = shapes(PRESETS["paper"])
    layers = params["decoder"]["convolutions"]
    assert [layers[str(n)]["bias"].shape for n in range(8)] == [
        (8, 8, 256), (16, 16, 64), (32, 32, 64), (64, 64, 32), (128, 128, 32), (256, 256, 16), (512, 512, 16),
        (1024, 1024, 3),
    ]  # fmt: skip
    encoder = [params["encoder"]["convolutions"][str(n)]["kernel"].shape[-1] for n in range(8)]
    assert encoder == [16, 16, 32, 32, 64, 64, 128, 128]
    assert params["encoder"]["texture"]["kernel"].shape == (2048, 256)
    assert params["encoder"]["mesh"]["kernel"].shape == (21918, 256)
    assert params["encoder"]["code"]["kernel"].shape == (512, 512)
    assert params["decoder"]["view"]["kernel"].shape == (3, 8)
    assert params["decoder"]["texture"]["kernel"].shape == (264, 16 * 256)
    # Of about 24 million parameters, 9.1 million are untied biases.
    assert sum(layers[n]["bias"].size for n in layers) == 9_142_272
    assert count_parameters(params) == 24_313_095


@pytest.mark.parametrize("changes", [{}, {"bf16": True}, {"n_vertices": 100}, {"untied_bias": False}])
def test_small_sizes(changes):
    config = dataclasses.replace(PRESETS["small"], **changes)
    assert config.base_size == 4
    params = shapes(config)
    untied = 643_072
    if not changes:
        assert count_parameters(params["decoder"]) == 3_831_607
    if changes == {"untied_bias": False}:
        assert count_parameters(params["decoder"]) == 3_831_607 - untied + 64 + 64 + 32 + 32 + 16 + 3


def test_a_texture_of_512_starts_from_two_texels():
    config = DeepAppearanceConfig(texture_size=512)
    assert config.base_size == 2
    shapes(config)


# -- the model --------------------------------------------------------------------------------------------------------


def test_encode_and_decode_alike_eager_jit_and_vmap(tiny):
    params, state = tiny
    textures, vertices = jnp.stack([EXAMPLE[0]] * 3) + random(10, 3, 1, 1, 3), 0.05 * random(11, 3, 5, 3)
    batch = jax.jit(jax.vmap(encode, (None, None, 0, 0)))(params, state, textures, vertices)
    views = random(12, 3, 3)
    faces = jax.jit(jax.vmap(decode, (None, None, 0, 0)))(params, state, batch.mean, views)
    for n in (0, 2):
        one = encode(params, state, textures[n], vertices[n])
        face = decode(params, state, one.mean, views[n])
        for a, b in ((batch, one), (faces, face)):
            jax.tree.map(lambda x, y, n=n: np.testing.assert_allclose(x[n], y, atol=2e-5, rtol=1e-4), a, b)
    assert float(jnp.std(batch.mean, axis=0).max()) > 1e-4
    np.testing.assert_allclose(MODEL.decode_vertices(params, state, one.mean), face.vertices, atol=1e-6)


def test_the_view_moves_the_texture_and_never_the_mesh(tiny):
    params, state = tiny
    code, there = random(13, 4), jnp.array([0.6, 0.0, 0.8])
    a, b = (jax.jit(decode)(params, state, code, view) for view in (jnp.array([0.0, 0.0, 1.0]), there))
    np.testing.assert_array_equal(a.vertices, b.vertices)
    assert float(jnp.abs(a.texture - b.texture).max()) > 1e-4


def test_gradients_are_those_of_finite_differences(tiny):
    params, state = tiny
    (texture, vertices), view = EXAMPLE, jnp.array([0.0, 0.6, 0.8])

    @jax.jit
    def loss(params):
        told = encode(params, state, texture, vertices)
        face = decode(params, state, sample_code(told, KEY), view)
        terms = appearance_terms(
            face.texture, texture, jnp.ones((16, 16)), face.vertices, vertices, told.mean, told.log_std,
            state["texture_std"], state["vertices_std"],
        )  # fmt: skip
        return sum(terms.values())

    gradient = jax.jit(jax.grad(loss))(params)
    assert np.isfinite(jax.flatten_util.ravel_pytree(gradient)[0]).all()
    for part in ("encoder", "decoder"):
        flat, unravel = jax.flatten_util.ravel_pytree(params[part])
        slope, _ = jax.flatten_util.ravel_pytree(gradient[part])
        along = slope / jnp.linalg.norm(slope)
        step = 3e-3
        up, down = (loss({**params, part: unravel(flat + s * along)}) for s in (step, -step))
        np.testing.assert_allclose((up - down) / (2 * step), jnp.linalg.norm(slope), rtol=0.02)


def test_init_and_samples_follow_the_key(tiny):
    init = jax.jit(lambda key: MODEL.init(key)[0]["decoder"]["mesh"])
    a, b, c = (init(jax.random.key(n)) for n in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert not np.allclose(a["kernel"], c["kernel"])
    told = CodeDistribution(mean=jnp.array([1.0, -2.0]), log_std=jnp.log(jnp.array([0.5, 0.1])))
    np.testing.assert_array_equal(sample_code(told, KEY), sample_code(told, KEY))
    many = jax.vmap(lambda k: sample_code(told, k))(jax.random.split(KEY, 4000))
    np.testing.assert_allclose(many.mean(0), told.mean, atol=0.05)
    np.testing.assert_allclose(many.std(0), [0.5, 0.1], rtol=0.05)


def test_use_changes_neither_weights_nor_statistics(tiny):
    before = jax.tree.map(np.array, tiny)
    params, state = tiny
    code = encode(params, state, *EXAMPLE).mean  # eager: a compiled function could not do harm
    decode(params, state, code, jnp.array([0.0, 0.0, 1.0]))
    jax.tree.map(np.testing.assert_array_equal, before, tiny)


def test_bfloat16_leaves_the_mesh_alone(tiny):
    params, state = tiny
    half = DeepAppearanceModel(dataclasses.replace(TINY, bf16=True))
    code, view = random(16, 4), jnp.array([0.0, 0.0, 1.0])
    a, b = jax.jit(decode)(params, state, code, view), jax.jit(half.decode)(params, state, code, view)
    np.testing.assert_array_equal(a.vertices, b.vertices)
    assert b.texture.dtype == jnp.float32
    missed = float(jnp.abs(a.texture - b.texture).max())
    assert 1e-6 < missed < 0.1 * float(jnp.std(a.texture) + state["texture_std"])


def test_equal_configs_share_one_compiled_program(tiny):
    params, state = tiny
    traces = []

    def f(model, code):
        traces.append(1)
        return model.decode_vertices(params, state, code)

    compiled = jax.jit(f, static_argnums=0)
    for n in range(3):
        compiled(DeepAppearanceModel(dataclasses.replace(TINY)), random(n, 4))
    assert len(traces) == 1


def test_statistics_leave_unseen_texels_out():
    textures, vertices = 0.5 + 0.2 * random(20, 50, 4, 4, 3), random(21, 50, 6, 3)
    seen = jnp.ones((50, 4, 4)).at[:25, 0].set(0.0)
    told = jax.jit(statistics)(jnp.where(seen[..., None] > 0, textures, 0.0), vertices, seen)
    np.testing.assert_allclose(told["mean_texture"][0], textures[25:, 0].mean(0), rtol=1e-4)
    np.testing.assert_allclose(told["texture_std"], 0.2, rtol=0.1)
    np.testing.assert_allclose(told["vertices_std"], np.std(vertices - vertices.mean(0)), rtol=1e-3)
    alone = jax.jit(statistics)(textures[:1], vertices[:1])
    assert float(alone["texture_std"]) > 0
    assert float(alone["vertices_std"]) > 0


def test_camera_colours_start_as_none_and_the_first_stays_so():
    model = DeepAppearanceModel(dataclasses.replace(TINY, n_cameras=3))
    params = jax.jit(lambda key: {"cameras": model.init(key)[0]["cameras"]})(KEY)
    texture = random(22, 16, 16, 3)
    np.testing.assert_array_equal(model.correct_colour(params, texture, 2), texture)
    np.testing.assert_array_equal(MODEL.correct_colour({}, texture, 0), texture)
    empty = [leaf for leaf in jax.tree.leaves(jax.eval_shape(MODEL.init, KEY)) if not leaf.size]
    assert not empty  # which checkpoints could not hold
    params["cameras"]["gain"] = params["cameras"]["gain"].at[1].set(jnp.array([2.0, 1.0, 0.5]))
    params["cameras"]["bias"] = params["cameras"]["bias"].at[1, 2].set(0.25)
    np.testing.assert_array_equal(model.correct_colour(params, texture, 0), texture)
    expected = texture * jnp.array([2.0, 1.0, 0.5]) + jnp.array([0, 0, 0.25])
    np.testing.assert_allclose(model.correct_colour(params, texture, 2), expected, rtol=1e-6)


def test_view_direction_points_from_head_to_camera():
    facing = jnp.diag(jnp.array([1.0, -1.0, -1.0]))
    pose = Pose(rotation=facing, translation=jnp.array([0.0, 0.0, 0.7]))
    np.testing.assert_allclose(view_direction(pose), [0, 0, 1], atol=1e-6)
    pose = Pose(rotation=facing @ rotvec_to_matrix(jnp.array([0.1, 0.5, -0.2])), translation=jnp.array([0.1, 0.2, 0.7]))
    back = pose.rotation @ view_direction(pose) * jnp.linalg.norm(pose.translation) + pose.translation
    np.testing.assert_allclose(back, 0, atol=1e-6)


def test_what_does_not_fit_is_refused(tiny):
    params, state = tiny
    with pytest.raises(InputError, match="cannot be halved 8 times"):
        DeepAppearanceConfig(texture_size=300)
    with pytest.raises(InputError, match="`texture` must have the shape"):
        encode(params, state, jnp.zeros((8, 8, 3)), jnp.zeros((5, 3)))
    with pytest.raises(InputError, match="`vertices` must have the shape"):
        encode(params, state, jnp.zeros((16, 16, 3)), jnp.zeros((6, 3)))
    with pytest.raises(InputError, match=r"`code` must have the shape \(4,\)"):
        decode(params, state, jnp.zeros(5), jnp.ones(3))


# -- losses -----------------------------------------------------------------------------------------------------------


def test_divergence_of_a_code():
    np.testing.assert_allclose(kl_to_standard_normal(jnp.zeros(4), jnp.zeros(4)), 0, atol=1e-7)
    mean, std = 0.7, 0.4
    x = np.linspace(-6, 6, 20_001)
    p = np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    by_sum = np.sum(p * (-np.log(std) - 0.5 * ((x - mean) / std) ** 2 + 0.5 * x**2)) * (x[1] - x[0])
    np.testing.assert_allclose(kl_to_standard_normal(jnp.array([mean]), jnp.log(jnp.array([std]))), by_sum, rtol=1e-4)


@pytest.mark.parametrize("loss", [masked_square, masked_l1])
def test_nothing_behind_a_mask_counts_not_even_nan(loss):
    image, target = random(30, 6, 6, 3), random(31, 6, 6, 3)
    mask = jnp.asarray(np.arange(6)[:, None] >= 3, jnp.float32) * jnp.ones((6, 6))
    hidden = target.at[:3].set(jnp.nan)
    loss = jax.jit(loss)
    value, slope = jax.jit(jax.value_and_grad(loss))(image, hidden, mask)
    assert np.isfinite(value)
    assert not np.any(slope[:3])
    assert np.all(slope[3:])
    np.testing.assert_array_equal(value, loss(image.at[:3].add(5.0), target, mask))
    np.testing.assert_allclose(loss(image, image, mask), 0)
    assert float(loss(image, hidden, jnp.zeros((6, 6)))) == 0


def test_values_of_the_terms():
    image, target, mask = random(32, 4, 5, 3), random(33, 4, 5, 3), jax.random.uniform(KEY, (4, 5))
    missed = np.asarray(mask)[..., None] * np.abs(np.asarray(image - target))
    np.testing.assert_allclose(masked_l1(image, target, mask), missed.sum() / (3 * mask.sum()), rtol=1e-5)
    np.testing.assert_allclose(masked_square(image, target, mask), np.mean(missed**2), rtol=1e-5)
    vertices, code = jnp.zeros((7, 3)), jnp.array([1.0, -1.0])
    tracked = vertices.at[:, 1].set(2e-3)  # 2 mm off
    terms = lighting_terms(image, image, mask, vertices, tracked, code)
    np.testing.assert_allclose([terms[k] for k in ("image", "geometry", "code")], [0, 4, 0.1], rtol=1e-5)
    untracked = lighting_terms(image, image + 0.1, mask, vertices, tracked, code, 0.0)
    np.testing.assert_allclose([untracked[k] for k in ("image", "geometry")], [25.5, 0], rtol=1e-4)
    std, weights = jnp.float32(2e-3), AppearanceWeights(texture=2.0, geometry=3.0, kl=0.0)
    terms = appearance_terms(
        image, image + 0.5, jnp.ones((4, 5)), vertices, tracked, code, code, jnp.float32(0.5), std, weights
    )
    np.testing.assert_allclose([terms[k] for k in ("texture", "geometry", "kl")], [2, 1, 0], rtol=1e-5)


def test_light_that_adds_up_has_no_superposition_error():
    a, b, mask = random(34, 4, 4, 3), random(35, 4, 4, 3), jnp.ones((4, 4))
    np.testing.assert_allclose(superposition_error(a + b, a, b, mask), 0, atol=1e-7)
    np.testing.assert_allclose(superposition_error(a + b + 0.2, a, b, mask), 0.2, rtol=1e-5)
