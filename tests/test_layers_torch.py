"""Layers, blocks and backbones against PyTorch, values and gradients, where it is installed (extra parity)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from facejax.data import load_torchvision, read_tensors
from facejax.models import VGG16, ResNet
from facejax.models.layers import (
    BasicBlock,
    BatchNorm,
    Bottleneck,
    Convolution,
    Dense,
    GroupNorm,
    InstanceNorm,
    PureNetwork,
    SpectralNorm,
    TransposedConvolution,
    adaptive_average_pool,
    average_pool,
    max_pool,
)

torch = pytest.importorskip("torch")

BATCH = np.random.default_rng(0).normal(size=(3, 10, 8, 4)).astype(np.float32)


def theirs(x: np.ndarray) -> "torch.Tensor":
    """(n, h, w, c) as PyTorch has it."""
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2).copy())


def ours(x: "torch.Tensor") -> np.ndarray:
    return x.detach().numpy().transpose(0, 2, 3, 1)


def in_batches(net: PureNetwork, train: bool):
    def call(params, rest, batch):
        one = lambda x: net(params, rest, x, train)  # noqa: E731
        return jax.vmap(one, out_axes=(0, None), axis_name="batch")(batch)

    return call


def same(call, module, batch: np.ndarray = BATCH, **held: np.ndarray) -> None:
    """Values and gradients of a function of (a dict of arrays, batch) and of a module with parameters of these names.

    held: arrays of the module's parameters, in our order of axes.
    """
    x = theirs(batch).requires_grad_()
    expected = module(x)
    weights = np.random.default_rng(1).normal(size=ours(expected).shape).astype(np.float32)
    (expected * theirs(weights)).sum().backward()
    params = {name: jnp.asarray(value) for name, value in held.items()}
    np.testing.assert_allclose(call(params, jnp.asarray(batch)), ours(expected), atol=3e-5, rtol=1e-5)
    grads, moved = jax.grad(lambda p, x: (call(p, x) * weights).sum(), (0, 1))(params, jnp.asarray(batch))
    np.testing.assert_allclose(moved, ours(x.grad), atol=2e-4, rtol=1e-4)
    for name, grad in grads.items():
        expected = dict(module.named_parameters())[name].grad.numpy()
        expected = expected.transpose(2, 3, 1, 0) if expected.ndim == 4 else expected.T
        np.testing.assert_allclose(grad, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("size", [1, 3, 5, 7, (3, 1)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolution(size, stride, groups):
    rows, columns = (size, size) if isinstance(size, int) else size
    module = torch.nn.Conv2d(4, 8, size, stride, (rows // 2, columns // 2), groups=groups)
    layer = PureNetwork(lambda rngs: Convolution(4, 8, size, stride=stride, groups=groups, normalised=False, rngs=rngs))

    def call(held, batch):
        params = {"kernel": held["weight"], "bias": held["bias"]}
        return jax.vmap(lambda x: layer(params, {}, x)[0])(batch)

    weight = module.weight.detach().numpy().transpose(2, 3, 1, 0)
    same(call, module, weight=weight, bias=module.bias.detach().numpy())


def test_transposed_convolution():
    module = torch.nn.ConvTranspose2d(4, 5, 4, 2, 1)
    layer = TransposedConvolution(4, 5, normalised=False, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.asarray(module.weight.detach().numpy().transpose(2, 3, 0, 1)[::-1, ::-1].copy())
    layer.bias[...] = jnp.asarray(module.bias.detach().numpy())
    same(lambda _, batch: jax.vmap(layer)(batch), module)


@pytest.mark.parametrize(("size", "stride", "padding"), [(2, None, 0), (3, 2, 1), (3, 1, 1), (2, 3, 0), (3, 3, 1)])
def test_pooling(size, stride, padding):
    for pool, module in ((max_pool, torch.nn.MaxPool2d), (average_pool, torch.nn.AvgPool2d)):
        call = functools.partial(pool, size=size, stride=stride, padding=padding)
        same(lambda _, batch, call=call: jax.vmap(call)(batch), module(size, stride, padding))


def test_adaptive_pooling():
    same(lambda _, x: jax.vmap(lambda x: adaptive_average_pool(x, 7))(x), torch.nn.AdaptiveAvgPool2d(7))


@pytest.mark.parametrize(
    ("make", "module"),
    [
        (lambda: BatchNorm(4, axis_name="batch"), lambda: torch.nn.BatchNorm2d(4)),
        (
            lambda: BatchNorm(4, axis_name="batch", momentum=0.3, epsilon=1e-3),
            lambda: torch.nn.BatchNorm2d(4, 1e-3, 0.3),
        ),
        (
            lambda: InstanceNorm(4, axis_name="batch", affine=True, running=True),
            lambda: torch.nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        ),
        (lambda: InstanceNorm(4, affine=True), lambda: torch.nn.InstanceNorm2d(4, affine=True)),
        (lambda: GroupNorm(4, 2), lambda: torch.nn.GroupNorm(2, 4)),
    ],
    ids=["batch", "batch, other settings", "instance, running", "instance", "group"],
)
def test_normalisation_and_its_statistics_over_three_steps(make, module):
    net, module = PureNetwork(lambda rngs: make()), module()
    _, rest = net.init(jax.random.key(0))
    gain, bias = np.array([1.0, 2, 0.5, -1], np.float32), np.array([0.0, 1, -1, 2], np.float32)
    with torch.no_grad():
        module.weight[:], module.bias[:] = torch.tensor(gain), torch.tensor(bias)

    def call(train, rest):
        def run(held, batch):
            return in_batches(net, train)({"gain": held["weight"], "bias": held["bias"]}, rest, batch)[0]

        return run

    for step in range(3):
        batch = (step + 1) * BATCH + step
        module.zero_grad()
        same(call(True, rest), module, batch, weight=gain, bias=bias)
        _, rest = in_batches(net, True)({"gain": gain, "bias": bias}, rest, jnp.asarray(batch))
        if rest:
            np.testing.assert_allclose(rest["mean"], module.running_mean.numpy(), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(rest["variance"], module.running_var.numpy(), rtol=1e-5)
    module.eval()
    module.zero_grad()
    same(call(False, rest), module, weight=gain, bias=bias)


def test_spectral_normalisation_over_three_steps():
    from torch.nn.utils.parametrizations import spectral_norm

    bare = torch.nn.Conv2d(4, 6, 3, padding=1)
    kernel = bare.weight.detach().numpy().transpose(2, 3, 1, 0).copy()
    module = spectral_norm(bare)
    held = module.parametrizations.weight[0]
    net = PureNetwork(lambda rngs: SpectralNorm(Convolution(4, 6, 3, normalised=False, rngs=rngs), rngs=rngs))
    params, rest = net.init(jax.random.key(0))
    params["layer"] = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bare.bias.detach().numpy())}
    right = held._v.numpy().reshape(4, 3, 3).transpose(1, 2, 0).reshape(-1)
    rest = {"left": jnp.asarray(held._u.numpy().copy()), "right": jnp.asarray(right)}
    for train in (True, True, True, False):
        module.train(train)
        module.zero_grad()
        expected = module(theirs(BATCH))
        (expected**2).sum().backward()

        def loss(params, rest=rest, train=train):
            y, rest = in_batches(net, train)(params, rest, jnp.asarray(BATCH))
            return (y**2).sum(), (y, rest)

        grad, (y, rest) = jax.grad(loss, has_aux=True)(params)
        np.testing.assert_allclose(y, ours(expected), atol=3e-5)
        np.testing.assert_allclose(rest["left"], held._u.numpy(), atol=1e-6)
        expected = module.parametrizations.weight.original.grad.numpy().transpose(2, 3, 1, 0)
        np.testing.assert_allclose(grad["layer"]["kernel"], expected, atol=2e-3, rtol=1e-3)


def test_dense_layers_are_linear_ones():
    module, layer = torch.nn.Linear(4, 6), Dense(4, 6, normalised=False, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.asarray(module.weight.detach().numpy().T)
    layer.bias[...] = jnp.asarray(module.bias.detach().numpy())
    expected = module(torch.tensor(BATCH[0, 0])).detach().numpy()
    np.testing.assert_allclose(jax.vmap(layer)(BATCH[0, 0]), expected, atol=1e-6)


# -- torchvision's networks, written again in PyTorch with torchvision's names -----------------------------------------


class Block(torch.nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, deep: bool) -> None:
        super().__init__()
        outputs = 4 * width if deep else width
        sizes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        sizes = sizes if deep else [(inputs, width, 3, stride), (width, width, 3, 1)]
        self.count = len(sizes)
        for n, (i, o, size, step) in enumerate(sizes, 1):
            setattr(self, f"conv{n}", torch.nn.Conv2d(i, o, size, step, size // 2, bias=False))
            setattr(self, f"bn{n}", torch.nn.BatchNorm2d(o))
        if stride != 1 or inputs != outputs:
            self.downsample = torch.nn.Sequential(
                torch.nn.Conv2d(inputs, outputs, 1, stride, bias=False), torch.nn.BatchNorm2d(outputs)
            )

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        y = x
        for n in range(1, self.count + 1):
            y = getattr(self, f"bn{n}")(getattr(self, f"conv{n}")(y))
            y = y if n == self.count else torch.relu(y)
        return torch.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class TheirResNet(torch.nn.Module):
    def __init__(self, counts: tuple[int, ...], deep: bool, classes: int) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(64)
        inputs = 64
        for stage, count in enumerate(counts):
            blocks = []
            for n in range(count):
                blocks.append(Block(inputs, 64 * 2**stage, 2 if stage and n == 0 else 1, deep))
                inputs = 64 * 2**stage * (4 if deep else 1)
            setattr(self, f"layer{stage + 1}", torch.nn.Sequential(*blocks))
        self.fc = torch.nn.Linear(inputs, classes)

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        x = torch.nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


def varied(module: "torch.nn.Module") -> None:
    """Statistics and gains that are not all the same."""
    made = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1, generator=made)
                part.running_var.uniform_(0.5, 1.5, generator=made)
                part.weight.uniform_(0.5, 1.0, generator=made)
                part.bias.normal_(0, 0.1, generator=made)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "stream"])
@pytest.mark.parametrize(("depth", "counts"), [(18, (2, 2, 2, 2)), (50, (3, 4, 6, 3))])
def test_a_resnet_with_weights_of_pytorchs_own_file(depth, counts, old, tmp_path):
    torch.manual_seed(0)
    module = TheirResNet(counts, depth > 18, 7)
    varied(module)
    torch.save(module.state_dict(), tmp_path / "x.pth", _use_new_zipfile_serialization=not old)
    model = ResNet(depth, classes=7, axis_name="batch")
    params, state = load_torchvision(model, tmp_path / "x.pth")
    batch = np.random.default_rng(2).normal(size=(2, 64, 48, 3)).astype(np.float32)
    for train in (False, True):
        module.train(train)
        expected = module(theirs(batch)).detach().numpy()
        one = lambda x, train=train: model(params, state, x, train)  # noqa: E731
        y, after = jax.jit(jax.vmap(one, out_axes=(0, None), axis_name="batch"))(batch)
        np.testing.assert_allclose(y, expected, atol=2e-3 * np.abs(expected).max(), rtol=1e-3)
    moved = module.state_dict()
    for name, ours in model.torchvision_names().items():
        if ours.startswith("state/"):
            leaf = after
            for part in ours.split("/")[1:]:
                leaf = leaf[part]
            np.testing.assert_allclose(leaf, moved[name].numpy(), rtol=2e-3, atol=1e-4)


def test_a_vgg_with_weights_of_pytorchs_own_file(tmp_path):
    """Of 5 classes, on a picture of another size than 224, which is pooled to 7 x 7."""
    layers, inputs = [], 3
    for widths in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
        for width in widths:
            layers += [torch.nn.Conv2d(inputs, width, 3, 1, 1), torch.nn.ReLU()]
            inputs = width
        layers.append(torch.nn.MaxPool2d(2))
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.features = torch.nn.Sequential(*layers)
    module.classifier = torch.nn.Sequential(
        torch.nn.Linear(512 * 49, 4096), torch.nn.ReLU(), torch.nn.Dropout(),
        torch.nn.Linear(4096, 4096), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(4096, 5),
    )  # fmt: skip
    module.eval()
    torch.save(module.state_dict(), tmp_path / "x.pth")
    model = VGG16(classes=5)
    params, state = load_torchvision(model, tmp_path / "x.pth")
    batch = np.random.default_rng(2).normal(size=(1, 96, 64, 3)).astype(np.float32)
    with torch.no_grad():
        seen = module.features(theirs(batch))
        pooled = torch.nn.functional.adaptive_avg_pool2d(seen, 7).flatten(1)
        expected = module.classifier(pooled).numpy()
        stage = module.features[:30](theirs(batch))
    y, _ = jax.jit(model)(params, state, batch[0])
    np.testing.assert_allclose(y, expected[0], atol=1e-5, rtol=1e-3)
    stages, _ = jax.jit(model.features)(params, state, batch[0])
    np.testing.assert_allclose(stages[-1], ours(stage)[0], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("kind", "deep"), [(BasicBlock, False), (Bottleneck, True)])
def test_a_block_and_its_gradients(kind, deep):
    module = Block(4, 8, 2, deep)
    net = PureNetwork(
        lambda rngs: kind(4, 8, stride=2, norm=functools.partial(BatchNorm, axis_name="batch"), rngs=rngs)
    )
    params, rest = net.init(jax.random.key(0))
    parts = ("first", "middle", "last") if deep else ("first", "last")
    pairs = [(f"conv{n}", f"bn{n}", part) for n, part in enumerate(parts, 1)]
    weights = dict(module.named_parameters())
    for convolution, _, part in [*pairs, ("downsample.0", "", "around")]:
        kernel = weights[f"{convolution}.weight"].detach().numpy().transpose(2, 3, 1, 0)
        params[part]["convolution"]["kernel"] = jnp.asarray(kernel)
    same(lambda _, batch: in_batches(net, True)(params, rest, batch)[0], module)


def test_tensors_that_share_numbers_are_read(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": whole, "b": whole.T, "c": whole[1:, 2:], "h": whole.half(), "w": whole.bfloat16()}, tmp_path / "x")
    found = read_tensors(tmp_path / "x")
    np.testing.assert_array_equal(found["b"], whole.T.numpy())
    np.testing.assert_array_equal(found["c"], whole[1:, 2:].numpy())
    np.testing.assert_array_equal(found["h"], whole.half().numpy())
    np.testing.assert_array_equal(found["w"].astype(np.float32), whole.numpy())
