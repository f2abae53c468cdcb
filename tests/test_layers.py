"""Layers, blocks and graph convolutions against plain numpy and scipy; what the statistics of a batch do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from flax import nnx

from facejax.geometry.errors import InputError
from facejax.models.layers import (
    RRDB,
    BasicBlock,
    BatchNorm,
    Bottleneck,
    ChebyshevConvolution,
    Convolution,
    Dense,
    DenseBlock,
    GroupNorm,
    InstanceNorm,
    PureNetwork,
    SpectralNorm,
    UNet,
    adaptive_average_pool,
    average_pool,
    max_pool,
    quadric_pooling,
    scaled_laplacian,
)


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def windows(x: np.ndarray, size: int, stride: int, padding: int, fill: float) -> np.ndarray:
    """(rows, columns, size, size, c)."""
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)), constant_values=fill)
    seen = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(0, 1))[::stride, ::stride]
    return seen.transpose(0, 1, 3, 4, 2)


# -- convolutions and pooling ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 7, (1, 5), (5, 3)])
@pytest.mark.parametrize("stride", [1, 2, 3, (1, 2)])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_is_correlation_of_each_group(size, stride, groups):
    inputs, outputs = 4, 6
    layer = Convolution(inputs, outputs, size, stride=stride, groups=groups, normalised=False, rngs=nnx.Rngs(0))
    x, kernel = random(1, 11, 8, inputs), np.asarray(layer.kernel[...])
    rows, columns = layer.stride
    expected = np.zeros((11, 8, outputs))
    for o in range(outputs):
        first = o // (outputs // groups) * (inputs // groups)
        for i in range(inputs // groups):
            expected[..., o] += scipy.signal.correlate(x[..., first + i], kernel[..., i, o], mode="same")
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected[::rows, ::columns], atol=1e-5)


def test_groups_must_divide_the_channels():
    with pytest.raises(InputError, match="3 groups do not divide 4 input and 6 output channels"):
        Convolution(4, 6, 3, groups=3, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("size", "stride", "padding"), [(2, None, 0), (3, 2, 1), (3, 1, 1), (2, 3, 0), (5, 2, 2)])
def test_pooling_is_by_windows(size, stride, padding):
    x = random(2, 9, 11, 3)
    step = stride or size
    largest = windows(x, size, step, padding, -np.inf).max((2, 3))
    means = windows(x, size, step, padding, 0.0).mean((2, 3))
    np.testing.assert_array_equal(max_pool(jnp.asarray(x), size, stride, padding), largest)
    np.testing.assert_allclose(average_pool(jnp.asarray(x), size, stride, padding), means, atol=1e-6)


def test_the_gradient_of_max_pooling_goes_to_the_largest():
    x = jnp.asarray(random(3, 4, 4, 1))
    moved = np.asarray(jax.grad(lambda x: (max_pool(x, 2) * jnp.arange(4.0).reshape(2, 2, 1)).sum())(x))
    for row, column in np.ndindex(2, 2):
        block = np.s_[2 * row : 2 * row + 2, 2 * column : 2 * column + 2, 0]
        assert moved[block].ravel()[np.asarray(x)[block].argmax()] == 2 * row + column
        assert np.count_nonzero(moved[block]) == (1 if row + column else 0)


@pytest.mark.parametrize("shape", [(7, 7), (14, 21), (10, 3)])
def test_adaptive_pooling_covers_the_picture(shape):
    x = random(4, *shape, 2)
    expected = np.zeros((7, 7, 2))
    for r, c in np.ndindex(7, 7):
        rows = slice(r * shape[0] // 7, -(-(r + 1) * shape[0] // 7))
        columns = slice(c * shape[1] // 7, -(-(c + 1) * shape[1] // 7))
        expected[r, c] = x[rows, columns].mean((0, 1))
    np.testing.assert_allclose(adaptive_average_pool(jnp.asarray(x), 7), expected, atol=1e-6)


# -- normalisation -----------------------------------------------------------------------------------------------------


def in_batches(net: PureNetwork, train: bool):
    """(params, rest, batch) -> (what it says, rest)."""

    def call(params, rest, batch):
        one = lambda x: net(params, rest, x, train)  # noqa: E731
        return jax.vmap(one, out_axes=(0, None), axis_name="batch")(batch)

    return call


def test_batch_norm_standardises_and_keeps_unbiased_running_statistics():
    net = PureNetwork(lambda rngs: BatchNorm(3, axis_name="batch", momentum=0.25))
    params, rest = net.init(jax.random.key(0))
    params = {"gain": jnp.array([1.0, 2.0, 3.0]), "bias": jnp.array([0.5, 0.0, -0.5])}
    mean, variance = np.zeros(3), np.ones(3)
    for step in range(3):
        x = 2 * random(step, 4, 5, 6, 3) + 1
        y, rest = in_batches(net, True)(params, rest, jnp.asarray(x))
        flat = x.reshape(-1, 3).astype(np.float64)
        expected = (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5) * params["gain"] + params["bias"]
        np.testing.assert_allclose(y, expected, atol=2e-5)
        mean, variance = 0.75 * mean + 0.25 * flat.mean(0), 0.75 * variance + 0.25 * flat.var(0, ddof=1)
    np.testing.assert_allclose(rest["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(rest["variance"], variance, rtol=1e-5)
    y, after = in_batches(net, False)(params, rest, jnp.asarray(x))
    expected = (x - mean) / np.sqrt(variance + 1e-5) * params["gain"] + params["bias"]
    np.testing.assert_allclose(y, expected, atol=2e-5)
    jax.tree.map(np.testing.assert_array_equal, after, rest)


def test_batch_norm_of_one_item_is_over_its_own_positions():
    net = PureNetwork(lambda rngs: BatchNorm(2))
    x = random(0, 3, 4, 2)
    y, _ = net(*net.init(jax.random.key(0)), jnp.asarray(x), True)
    np.testing.assert_allclose(y, (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-5), atol=1e-5)


@pytest.mark.parametrize("make", [BatchNorm, InstanceNorm])
def test_one_number_has_no_variance(make):
    net = PureNetwork(lambda rngs: make(2))
    with pytest.raises(InputError, match="one number per channel has no variance"):
        net(*net.init(jax.random.key(0)), jnp.ones((1, 1, 2)), True)


def test_instance_norm_takes_each_picture_alone_and_may_keep_statistics():
    x = random(1, 4, 5, 6, 3)
    mean, variance = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
    expected = (x - mean) / np.sqrt(variance + 1e-5)
    plain = PureNetwork(lambda rngs: InstanceNorm(3))
    params, rest = plain.init(jax.random.key(0))
    assert (params, rest) == ({}, {})
    for train in (True, False):
        np.testing.assert_allclose(in_batches(plain, train)(params, rest, jnp.asarray(x))[0], expected, atol=2e-5)
    net = PureNetwork(lambda rngs: InstanceNorm(3, axis_name="batch", running=True))
    params, rest = net.init(jax.random.key(0))
    y, rest = in_batches(net, True)(params, rest, jnp.asarray(x))
    np.testing.assert_allclose(y, expected, atol=2e-5)
    np.testing.assert_allclose(rest["mean"], 0.1 * mean.mean(0).ravel(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(rest["variance"], 0.9 + 0.1 * variance.mean(0).ravel() * 30 / 29, rtol=1e-5)
    y, _ = in_batches(net, False)(params, rest, jnp.asarray(x))
    np.testing.assert_allclose(y, (x - rest["mean"]) / np.sqrt(rest["variance"] + 1e-5), atol=2e-5)


@pytest.mark.parametrize("shape", [(5, 4, 6), (6,)])
def test_group_norm_takes_runs_of_channels_together(shape):
    x = random(2, *shape)
    y = GroupNorm(6, 3)(jnp.asarray(x))
    for run in (slice(0, 2), slice(2, 4), slice(4, 6)):
        part = x[..., run]
        np.testing.assert_allclose(y[..., run], (part - part.mean()) / np.sqrt(part.var() + 1e-5), atol=2e-5)
    with pytest.raises(InputError, match="4 groups do not divide 6 channels"):
        GroupNorm(6, 4)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda rngs: Dense(5, 7, normalised=False, rngs=rngs), (5,)),
        (lambda rngs: Convolution(2, 7, 3, normalised=False, rngs=rngs), (6, 6, 2)),
    ],
    ids=["dense", "convolution"],
)
def test_spectral_norm_divides_by_the_largest_singular_value(make, shape):
    net = PureNetwork(lambda rngs: SpectralNorm(make(rngs), rngs=rngs))
    params, rest = net.init(jax.random.key(1))
    bare = PureNetwork(make)
    x = jnp.asarray(random(3, *shape))
    for _ in range(30):
        y, rest = net(params, rest, x, True)
    kernel = np.asarray(params["layer"]["kernel"])
    largest = np.linalg.svd(kernel.reshape(-1, 7), compute_uv=False)[0]
    np.testing.assert_allclose(y, bare(params["layer"], {}, x)[0] / largest, rtol=1e-4, atol=1e-5)
    same, after = net(params, rest, x, False)
    np.testing.assert_allclose(same, y, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, after, rest)
    # scaling the kernel changes nothing, so the gradient is upright on it
    grad = jax.grad(lambda p: (net(p, rest, x, False)[0] ** 2).sum())(params)["layer"]["kernel"]
    assert abs(np.vdot(grad, kernel)) < 1e-3 * np.linalg.norm(grad) * np.linalg.norm(kernel)
    assert np.linalg.norm(grad) > 1e-2


# -- blocks ------------------------------------------------------------------------------------------------------------

NORMED = functools.partial(BatchNorm, axis_name="batch")


@pytest.mark.parametrize(
    ("make", "out"),
    [
        (lambda rngs: BasicBlock(4, 4, norm=NORMED, rngs=rngs), (8, 12, 4)),
        (lambda rngs: BasicBlock(4, 6, stride=2, norm=NORMED, rngs=rngs), (4, 6, 6)),
        (lambda rngs: Bottleneck(4, 1, norm=NORMED, rngs=rngs), (8, 12, 4)),
        (lambda rngs: Bottleneck(4, 3, stride=2, norm=NORMED, rngs=rngs), (4, 6, 12)),
        (lambda rngs: UNet(4, 3, (4, 6, 8), norm=NORMED, rngs=rngs), (8, 12, 3)),
    ],
    ids=["basic", "basic, half", "bottleneck", "bottleneck, half", "U-Net"],
)
def test_blocks_have_their_sizes_move_their_statistics_and_are_the_same_under_jit(make, out):
    net = PureNetwork(make)
    params, rest = net.init(jax.random.key(0))
    batch = jnp.asarray(random(5, 3, 8, 12, 4))
    y, moved = in_batches(net, True)(params, rest, batch)
    assert y.shape == (3, *out)
    again, moved_again = jax.jit(in_batches(net, True))(params, rest, batch)
    np.testing.assert_allclose(again, y, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), moved_again, moved)
    assert all(bool((a != b).any()) for a, b in zip(jax.tree.leaves(rest), jax.tree.leaves(moved), strict=True))
    together, _ = in_batches(net, False)(params, moved, batch)
    alone = [net(params, moved, x, False)[0] for x in batch]
    np.testing.assert_allclose(together, jnp.stack(alone), atol=1e-5)
    grads = jax.jit(jax.grad(lambda p: (in_batches(net, True)(p, rest, batch)[0] ** 2).sum()))(params)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("kind", [BasicBlock, Bottleneck])
def test_a_residual_block_whose_branch_is_silent_is_a_relu(kind):
    net = PureNetwork(lambda rngs: kind(4, 4 // kind.expansion, norm=BatchNorm, rngs=rngs))
    params, rest = net.init(jax.random.key(0))
    params["last"]["norm"]["gain"] *= 0
    x = jnp.asarray(random(6, 5, 5, 4))
    np.testing.assert_array_equal(net(params, rest, x, False)[0], np.maximum(x, 0))


def test_blocks_without_normalisation_have_biases():
    net = PureNetwork(lambda rngs: BasicBlock(4, 4, norm=None, rngs=rngs))
    params, rest = net.init(jax.random.key(0))
    assert rest == {}
    assert sorted(params["first"]["convolution"]) == ["bias", "kernel"]


def test_rrdb_is_what_esrgan_says():
    net = PureNetwork(lambda rngs: RRDB(4, 3, rngs=rngs))
    params, _ = net.init(jax.random.key(0))
    x = jnp.asarray(random(7, 6, 6, 4))

    def convolve(told, x):
        kernel, expected = np.asarray(told["kernel"]), np.zeros((6, 6, told["kernel"].shape[-1]))
        for i, o in np.ndindex(kernel.shape[2:]):
            expected[..., o] += scipy.signal.correlate(x[..., i], kernel[..., i, o], mode="same")
        return expected + np.asarray(told["bias"])

    y = np.asarray(x)
    for n in "012":
        told, seen = params["blocks"][n]["convolutions"], [y]
        for k in "0123":
            z = convolve(told[k], np.concatenate(seen, -1))
            seen.append(np.where(z > 0, z, 0.2 * z))
        y = y + 0.2 * convolve(told["4"], np.concatenate(seen, -1))
    np.testing.assert_allclose(net(params, {}, x)[0], x + 0.2 * y, atol=1e-5)
    assert DenseBlock(4, 3, scale=0.0, rngs=nnx.Rngs(0))(x) == pytest.approx(x)


def test_a_unet_refuses_what_it_cannot_halve():
    net = PureNetwork(lambda rngs: UNet(3, 3, (2, 2, 2), rngs=rngs))
    with pytest.raises(InputError, match="10 x 8 cannot be halved 2 times: give multiples of 4"):
        net(*net.init(jax.random.key(0)), jnp.zeros((10, 8, 3)))


# -- graphs ------------------------------------------------------------------------------------------------------------


def grid(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """An open mesh."""
    at = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = at[:-1, :-1].ravel(), at[:-1, 1:].ravel(), at[1:, :-1].ravel(), at[1:, 1:].ravel()
    faces = np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, d], 1)]).astype(np.int32)
    y, x = np.mgrid[:rows, :columns]
    return np.stack([x.ravel(), -y.ravel(), np.zeros(at.size)], 1).astype(np.float32), faces


def sphere() -> tuple[np.ndarray, np.ndarray]:
    """A closed mesh of 162 vertices."""
    trimesh = pytest.importorskip("trimesh")
    made = trimesh.creation.icosphere(subdivisions=2)
    return np.asarray(made.vertices, np.float32), np.asarray(made.faces, np.int32)


@pytest.mark.parametrize("mesh", [lambda: grid(6, 7), sphere], ids=["grid", "sphere"])
def test_the_scaled_laplacian_has_eigenvalues_between_minus_one_and_one(mesh):
    points, faces = mesh()
    n = len(points)
    adjacency = np.zeros((n, n))
    for a, b, c in faces:
        for i, j in ((a, b), (b, c), (c, a)):
            adjacency[i, j] = adjacency[j, i] = 1
    degree = adjacency.sum(1)
    found = scaled_laplacian(faces, n).dense()
    np.testing.assert_allclose(found, -adjacency / np.sqrt(np.outer(degree, degree)), atol=1e-7)
    spectrum = np.linalg.eigvalsh(found.astype(np.float64))
    np.testing.assert_allclose(spectrum[0], -1, atol=1e-6)
    assert spectrum[-1] <= 1 + 1e-6


def test_a_vertex_without_edges_has_a_row_of_zeros():
    np.testing.assert_array_equal(scaled_laplacian(np.array([[0, 1, 3]]), 5).dense()[[2, 4]], 0)
    with pytest.raises(InputError, match="triangles name vertices 0 to 3, expected 0 to 2"):
        scaled_laplacian(np.array([[0, 1, 3]]), 3)
    with pytest.raises(InputError, match=r"expected triangles as \(t, 3\) whole numbers"):
        scaled_laplacian(np.zeros((4, 3)), 3)


@pytest.mark.parametrize("order", [1, 2, 3, 6])
def test_chebyshev_convolution_is_the_sum_of_polynomials(order):
    points, faces = grid(5, 6)
    laplacian = scaled_laplacian(faces, len(points))
    layer = ChebyshevConvolution(2, 3, order, laplacian, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.array([1.0, 2.0, 3.0])
    values, vectors = np.linalg.eigh(laplacian.dense().astype(np.float64))
    x = random(8, len(points), 2)
    expected = np.full((len(points), 3), [1.0, 2.0, 3.0])
    for k in range(order):  # T_k(cos a) = cos(k a)
        term = vectors @ np.diag(np.cos(k * np.arccos(np.clip(values, -1, 1)))) @ vectors.T
        expected += term @ x @ np.asarray(layer.kernel[k])
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=2e-5)


def test_order_one_sees_each_vertex_alone_and_order_zero_is_refused():
    points, faces = grid(4, 4)
    laplacian = scaled_laplacian(faces, len(points))
    layer = ChebyshevConvolution(2, 3, 1, laplacian, rngs=nnx.Rngs(0))
    x = random(9, 16, 2)
    np.testing.assert_allclose(layer(jnp.asarray(x)), x @ np.asarray(layer.kernel[0]), atol=1e-6)
    with pytest.raises(InputError, match="at least order 1, got 0"):
        ChebyshevConvolution(2, 3, 0, laplacian, rngs=nnx.Rngs(0))


def test_chebyshev_convolution_does_not_care_how_vertices_are_numbered():
    points, faces = sphere()
    order = np.random.default_rng(0).permutation(len(points))
    renamed = np.argsort(order)[faces]  # vertex order[i] becomes i
    x = jnp.asarray(random(10, len(points), 2))
    made = [
        PureNetwork(lambda rngs, f=f: ChebyshevConvolution(2, 4, 4, scaled_laplacian(f, len(points)), rngs=rngs))
        for f in (faces, renamed)
    ]
    params, _ = made[0].init(jax.random.key(0))
    one, other = jax.jit(made[0])(params, {}, x)[0], made[1](params, {}, x[order])[0]
    np.testing.assert_allclose(other, one[order], atol=1e-5)
    batch = jnp.stack([x, 2 * x])
    np.testing.assert_allclose(jax.vmap(lambda x: made[0](params, {}, x)[0])(batch)[0], one, atol=1e-5)


@pytest.mark.parametrize(("mesh", "count"), [(lambda: grid(9, 9), 20), (sphere, 42)], ids=["grid", "sphere"])
def test_quadric_pooling_keeps_vertices_and_constants(mesh, count):
    points, faces = mesh()
    pooling = quadric_pooling(points, faces, count)
    assert pooling.kept.shape == (count,)
    assert len(np.unique(pooling.faces)) == count
    x = jnp.asarray(random(11, len(points), 3))
    coarse = pooling.down @ x
    np.testing.assert_array_equal(coarse, x[pooling.kept])
    np.testing.assert_array_equal((pooling.up @ coarse)[pooling.kept], coarse)
    np.testing.assert_allclose(pooling.up @ jnp.ones((count, 1)), 1, atol=1e-6)
    assert pooling.up.weights.min() >= 0
    again = quadric_pooling(points, faces, count)
    np.testing.assert_array_equal(again.faces, pooling.faces)


def test_a_plane_stays_a_plane_with_its_border():
    """Nothing of a flat square is lost: its area, its orientation, and where each lost vertex was."""
    points, faces = grid(9, 9)
    pooling = quadric_pooling(points, faces, 12)
    coarse = points[pooling.kept]
    a, b, c = (coarse[pooling.faces[:, i]] for i in range(3))
    signed = 0.5 * np.cross(b - a, c - a)[:, 2]
    assert (signed > 0).all()
    np.testing.assert_allclose(signed.sum(), 64, rtol=1e-6)
    np.testing.assert_allclose(pooling.up @ jnp.asarray(coarse), points, atol=1e-5)


def test_a_coarse_sphere_is_closed_and_near():
    points, faces = sphere()
    pooling = quadric_pooling(points, faces, 42)
    sides = np.sort(np.concatenate([pooling.faces[:, [i, (i + 1) % 3]] for i in range(3)]), axis=1)
    _, uses = np.unique(sides, axis=0, return_counts=True)
    assert (uses == 2).all()
    assert len(pooling.faces) == 2 * 42 - 4  # Euler
    back = np.asarray(pooling.up @ jnp.asarray(points[pooling.kept]))
    assert np.linalg.norm(back - points, axis=1).max() < 0.3
    trimesh = pytest.importorskip("trimesh")
    coarse = trimesh.Trimesh(points[pooling.kept], pooling.faces, process=False)
    _, distance, _ = trimesh.proximity.closest_point_naive(coarse, points)
    np.testing.assert_allclose(np.linalg.norm(back - points, axis=1), distance, atol=1e-5)


def test_too_few_vertices_are_refused():
    points, faces = sphere()
    with pytest.raises(InputError, match="expected from 3 to 162 vertices"):
        quadric_pooling(points, faces, 163)
    with pytest.raises(InputError, match="cannot have fewer than 4 vertices"):
        quadric_pooling(points, faces, 3)
