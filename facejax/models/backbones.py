"""ResNet and VGG-16 as torchvision has them, so that its weights fit; pure functions of one picture.

`params` and `state` are nested dicts of arrays; `state` holds the running statistics of batch normalisation. Pictures
are (h, w, 3) as `imagenet_input` makes them. `facejax.data.load_torchvision` reads weights.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from facejax.geometry.errors import InputError
from facejax.geometry.records import PRNGKey, PyTree
from facejax.models.layers import (
    BasicBlock,
    BatchNorm,
    Bottleneck,
    Convolution,
    Dense,
    PureNetwork,
    adaptive_average_pool,
    max_pool,
)
from facejax.models.layers.blocks import ConvolutionNorm

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Of ImageNet's sRGB pictures in [0, 1], red, green, blue, as torchvision has it."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of the same."""

_BLOCKS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def imagenet_input(srgb: Float[Array, "h w 3"]) -> Float[Array, "h w 3"]:
    """An sRGB picture in [0, 1] as networks with torchvision's weights expect it."""
    return (srgb - jnp.asarray(IMAGENET_MEAN)) / jnp.asarray(IMAGENET_STD)


@runtime_checkable
class Backbone(Protocol):
    """A network whose tensors have names in torchvision, too: `ResNet`, `VGG16`."""

    @property
    def flattened(self) -> Mapping[str, tuple[int, int, int]]:
        """(rows, columns, channels) of the picture that a fully connected layer reads flattened, by its kernel's path.

        Ours read channels last, torchvision's first.
        """
        ...

    def init(self, key: PRNGKey) -> tuple[PyTree, PyTree]:
        """(params, state), at random from the key."""
        ...

    def torchvision_names(self) -> Mapping[str, str]:
        """Our path of each of torchvision's tensors, "params/stages/0/1/first/convolution/kernel", in its order."""
        ...


@dataclasses.dataclass(frozen=True)
class ResNet:
    """Residual network of He et al. 2016, in torchvision's variant; static under `jit`.

    >>> net = ResNet(18, classes=10)
    >>> params, state = jax.eval_shape(net.init, jax.random.key(0))
    >>> stages, _ = jax.eval_shape(net.features, params, state, jnp.zeros((64, 64, 3)))
    >>> len(stages), stages[0].shape, stages[-1].shape
    (4, (16, 16, 64), (2, 2, 512))
    """

    depth: int = 50
    """18, 50, 101 or 152 layers."""
    classes: int = 1000
    """Numbers that come out: 1000 in torchvision's weights."""
    axis_name: str | None = None
    """Of the batch under `jax.vmap`, over which training normalises."""

    @property
    def flattened(self) -> dict[str, tuple[int, int, int]]:
        """No layer reads a flattened picture."""
        return {}

    def __post_init__(self) -> None:
        if self.depth not in _BLOCKS:
            raise InputError(f"there is no ResNet of {self.depth} layers here, expected one of {sorted(_BLOCKS)}.")

    def init(self, key: PRNGKey) -> tuple[PyTree, PyTree]:
        """(params, state), at random from the key."""
        return _network(self).init(key)

    def __call__(
        self, params: PyTree, state: PyTree, picture: Float[Array, "h w 3"], train: bool = False
    ) -> tuple[Float[Array, "classes"], PyTree]:
        """(a number per class, the state after it): the mean of the last features through a fully connected layer.

        train: normalise by this batch, and let the running statistics move; a plain bool.
        """
        return _network(self)(params, state, picture, train)

    def features(
        self, params: PyTree, state: PyTree, picture: Float[Array, "h w 3"], train: bool = False
    ) -> tuple[tuple[Float[Array, "_ _ _"], ...], PyTree]:
        """(what the four stages say, at 1/4, 1/8, 1/16 and 1/32 of the size, the state after it)."""
        return _network(self)(params, state, picture, train, method="features")

    def torchvision_names(self) -> dict[str, str]:
        """Our path of each of torchvision's tensors, in torchvision's order."""
        kind, counts = _BLOCKS[self.depth]
        names = _pair("conv1", "bn1", "stem")
        parts = ("first", "last") if kind is BasicBlock else ("first", "middle", "last")
        inputs = 64
        for stage, count in enumerate(counts):
            outputs = kind.expansion * 64 * 2**stage
            for block in range(count):
                theirs, ours = f"layer{stage + 1}.{block}", f"stages/{stage}/{block}"
                for n, part in enumerate(parts):
                    names |= _pair(f"{theirs}.conv{n + 1}", f"{theirs}.bn{n + 1}", f"{ours}/{part}")
                if block == 0 and (stage > 0 or inputs != outputs):
                    names |= _pair(f"{theirs}.downsample.0", f"{theirs}.downsample.1", f"{ours}/around")
            inputs = outputs
        return names | {"fc.weight": "params/last/kernel", "fc.bias": "params/last/bias"}


@dataclasses.dataclass(frozen=True)
class VGG16:
    """VGG with 16 layers of Simonyan and Zisserman 2015, without batch normalisation; static under `jit`.

    It has no dropout: it serves as a judge of pictures whose weights stay.

    >>> net = VGG16()
    >>> params, state = jax.eval_shape(net.init, jax.random.key(0))
    >>> stages, _ = jax.eval_shape(net.features, params, state, jnp.zeros((64, 64, 3)))
    >>> len(stages), stages[0].shape, stages[-1].shape
    (5, (64, 64, 64), (4, 4, 512))
    """

    classes: int = 1000
    """Numbers that come out: 1000 in torchvision's weights."""

    @property
    def flattened(self) -> dict[str, tuple[int, int, int]]:
        """The first fully connected layer reads (rows, columns, channels) flattened."""
        return {"params/classifier/0/kernel": (7, 7, 512)}

    def init(self, key: PRNGKey) -> tuple[PyTree, PyTree]:
        """(params, state), at random from the key; the state is empty."""
        return _network(self).init(key)

    def __call__(
        self, params: PyTree, state: PyTree, picture: Float[Array, "h w 3"]
    ) -> tuple[Float[Array, "classes"], PyTree]:
        """(a number per class, the state, which stays)."""
        return _network(self)(params, state, picture)

    def features(
        self, params: PyTree, state: PyTree, picture: Float[Array, "h w 3"]
    ) -> tuple[tuple[Float[Array, "_ _ _"], ...], PyTree]:
        """(what the last ReLU of each of the five stages says, before it is pooled; the state, which stays)."""
        return _network(self)(params, state, picture, method="features")

    def torchvision_names(self) -> dict[str, str]:
        """Our path of each of torchvision's tensors, in torchvision's order."""
        names, place = {}, 0
        for stage, widths in enumerate(_VGG16):
            for n in range(len(widths)):
                names[f"features.{place}.weight"] = f"params/stages/{stage}/{n}/kernel"
                names[f"features.{place}.bias"] = f"params/stages/{stage}/{n}/bias"
                place += 2  # a ReLU after each
            place += 1  # pooling
        for n in range(3):
            names[f"classifier.{3 * n}.weight"] = f"params/classifier/{n}/kernel"
            names[f"classifier.{3 * n}.bias"] = f"params/classifier/{n}/bias"
        return names


class _ResNet(nnx.Module):
    def __init__(self, told: ResNet, rngs: nnx.Rngs) -> None:
        norm = functools.partial(BatchNorm, axis_name=told.axis_name)
        kind, counts = _BLOCKS[told.depth]
        self.stem = ConvolutionNorm(3, 64, 7, stride=2, norm=norm, rngs=rngs)
        stages, inputs = [], 64
        for stage, count in enumerate(counts):
            blocks = []
            for n in range(count):
                stride = 2 if stage > 0 and n == 0 else 1
                blocks.append(kind(inputs, 64 * 2**stage, stride=stride, norm=norm, rngs=rngs))
                inputs = kind.expansion * 64 * 2**stage
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.last = Dense(inputs, told.classes, slope=1.0, normalised=False, rngs=rngs)

    def features(self, x: Float[Array, "h w 3"], train: bool) -> tuple[Array, ...]:
        x = max_pool(jax.nn.relu(self.stem(x, train)), 3, stride=2, padding=1)
        seen = []
        for stage in self.stages:
            for block in stage:
                x = block(x, train)
            seen.append(x)
        return tuple(seen)

    def __call__(self, x: Float[Array, "h w 3"], train: bool) -> Array:
        return self.last(self.features(x, train)[-1].mean(axis=(0, 1)))


class _VGG(nnx.Module):
    def __init__(self, told: VGG16, rngs: nnx.Rngs) -> None:
        widths = iter(itertools.pairwise((3, *itertools.chain(*_VGG16))))
        make = functools.partial(Convolution, size=3, slope=0.0, normalised=False, rngs=rngs)
        self.stages = nnx.List([nnx.List([make(*next(widths)) for _ in stage]) for stage in _VGG16])
        sizes = ((512 * 7 * 7, 4096, 0.0), (4096, 4096, 0.0), (4096, told.classes, 1.0))
        self.classifier = nnx.List([Dense(i, o, slope=s, normalised=False, rngs=rngs) for i, o, s in sizes])

    def features(self, x: Float[Array, "h w 3"]) -> tuple[Array, ...]:
        seen: list[Array] = []
        for stage in self.stages:
            x = max_pool(seen[-1], 2) if seen else x
            for layer in stage:
                x = jax.nn.relu(layer(x))
            seen.append(x)
        return tuple(seen)

    def __call__(self, x: Float[Array, "h w 3"]) -> Array:
        x = adaptive_average_pool(max_pool(self.features(x)[-1], 2), 7).reshape(-1)
        *firsts, last = self.classifier
        for layer in firsts:
            x = jax.nn.relu(layer(x))
        return last(x)


def _pair(convolution: str, norm: str, ours: str) -> dict[str, str]:
    """Names of a convolution and its batch normalisation."""
    return {
        f"{convolution}.weight": f"params/{ours}/convolution/kernel",
        f"{norm}.weight": f"params/{ours}/norm/gain",
        f"{norm}.bias": f"params/{ours}/norm/bias",
        f"{norm}.running_mean": f"state/{ours}/norm/mean",
        f"{norm}.running_var": f"state/{ours}/norm/variance",
    }


@functools.cache
def _network(told: ResNet | VGG16) -> PureNetwork:
    return PureNetwork(lambda rngs: _ResNet(told, rngs) if isinstance(told, ResNet) else _VGG(told, rngs))
