"""Residual, bottleneck and dense blocks, and the U-Net, of which networks are made."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from facejax.geometry.errors import InputError
from facejax.models.layers.convolution import Convolution, TransposedConvolution, leaky_relu, max_pool

Norm = Callable[[int], Any]
"""Makes the normalisation of so many channels, which is called as `layer(x, train)`: `BatchNorm`, or
`functools.partial(GroupNorm, groups=8)`."""


class ConvolutionNorm(nnx.Module):
    """A convolution and the normalisation of what it says; without a normalisation it has a bias."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        norm: Norm | None,
        slope: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        """slope: of the activation that follows, for the initial size of the weights."""
        self.convolution = Convolution(
            inputs,
            outputs,
            size,
            stride=stride,
            groups=groups,
            slope=slope,
            normalised=False,
            bias=norm is None,
            rngs=rngs,
        )
        self.norm = None if norm is None else norm(outputs)

    def __call__(self, x: Float[Array, "h w i"], train: bool = False) -> Float[Array, "_ _ o"]:
        y = self.convolution(x)
        return y if self.norm is None else self.norm(y, train)


class BasicBlock(nnx.Module):
    """Two 3 x 3 convolutions and a way around them: He et al. 2016, Fig. 5 left; ReLU after each and after the sum.

    Where size or channels change, the way around is a 1 x 1 convolution.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, *, stride: int = 1, norm: Norm | None, rngs: nnx.Rngs) -> None:
        """width: channels out. stride: of the first convolution. norm: makes the normalisations, None for none."""
        self.first = ConvolutionNorm(inputs, width, 3, stride=stride, norm=norm, rngs=rngs)
        self.last = ConvolutionNorm(width, width, 3, norm=norm, rngs=rngs)
        self.around = _around(inputs, width, stride, norm, rngs)

    def __call__(self, x: Float[Array, "h w i"], train: bool = False) -> Float[Array, "_ _ o"]:
        y = self.last(jax.nn.relu(self.first(x, train)), train)
        return jax.nn.relu(y + (x if self.around is None else self.around(x, train)))


class Bottleneck(nnx.Module):
    """1 x 1 to `width` channels, 3 x 3, 1 x 1 to four times as many, and a way around: He et al. 2016, Fig. 5 right.

    The 3 x 3 convolution takes the stride (the variant called v1.5, whose weights torchvision has).
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, *, stride: int = 1, norm: Norm | None, rngs: nnx.Rngs) -> None:
        """width: channels within; 4 width come out. norm: makes the normalisations, None for none."""
        outputs = self.expansion * width
        self.first = ConvolutionNorm(inputs, width, 1, norm=norm, rngs=rngs)
        self.middle = ConvolutionNorm(width, width, 3, stride=stride, norm=norm, rngs=rngs)
        self.last = ConvolutionNorm(width, outputs, 1, norm=norm, rngs=rngs)
        self.around = _around(inputs, outputs, stride, norm, rngs)

    def __call__(self, x: Float[Array, "h w i"], train: bool = False) -> Float[Array, "_ _ o"]:
        y = jax.nn.relu(self.middle(jax.nn.relu(self.first(x, train)), train))
        return jax.nn.relu(self.last(y, train) + (x if self.around is None else self.around(x, train)))


class DenseBlock(nnx.Module):
    """Five 3 x 3 convolutions, each of which sees all that came before, and a way around (Wang et al. 2018, ESRGAN)."""

    def __init__(self, channels: int, growth: int = 32, *, scale: float = 0.2, rngs: nnx.Rngs) -> None:
        """growth: channels of each convolution but the last. scale: of the branch beside the way around."""
        ins = [channels + n * growth for n in range(5)]
        self.convolutions = nnx.List(
            [
                Convolution(i, o, 3, slope=slope, normalised=False, rngs=rngs)
                for i, o, slope in zip(ins, [growth] * 4 + [channels], [0.2] * 4 + [1.0], strict=True)
            ]
        )
        self.scale = scale

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        *firsts, last = self.convolutions
        seen = x
        for layer in firsts:
            seen = jnp.concatenate([seen, leaky_relu(layer(seen))], axis=-1)
        return x + self.scale * last(seen)


class RRDB(nnx.Module):
    """Residual-in-residual dense block: three dense blocks and a way around them (Wang et al. 2018, ESRGAN)."""

    def __init__(self, channels: int, growth: int = 32, *, scale: float = 0.2, rngs: nnx.Rngs) -> None:
        """growth: see `DenseBlock`. scale: of every branch beside a way around."""
        self.blocks = nnx.List([DenseBlock(channels, growth, scale=scale, rngs=rngs) for _ in range(3)])
        self.scale = scale

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        y = x
        for block in self.blocks:
            y = block(y)
        return x + self.scale * y


class UNet(nnx.Module):
    """Halves a picture level by level and doubles it again, each level beside what the way down saw (Ronneberger 2015).

    Each level is two 3 x 3 convolutions with normalisation and ReLU; max-pooling halves, transposed convolutions of
    4 x 4 double; a 1 x 1 convolution ends it. Zeros are padded, so that the picture keeps its size.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        channels: tuple[int, ...] = (64, 128, 256, 512, 1024),
        *,
        norm: Norm | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        """channels: of each level, the full size first. norm: makes the normalisations, None for none."""
        downs = itertools.pairwise((inputs, *channels))
        self.down = nnx.List([_Double(i, o, norm, rngs) for i, o in downs])
        ups = list(itertools.pairwise(reversed(channels)))
        self.double = nnx.List([TransposedConvolution(i, o, slope=1.0, normalised=False, rngs=rngs) for i, o in ups])
        self.up = nnx.List([_Double(2 * o, o, norm, rngs) for _, o in ups])
        self.last = Convolution(channels[0], outputs, 1, slope=1.0, normalised=False, rngs=rngs)
        self.halvings = len(channels) - 1

    def __call__(self, x: Float[Array, "h w i"], train: bool = False) -> Float[Array, "h w o"]:
        """Raises InputError for a size that cannot be halved once per level."""
        if any(length % 2**self.halvings for length in x.shape[:2]):
            raise InputError(
                f"a picture of {x.shape[0]} x {x.shape[1]} cannot be halved {self.halvings} times: give multiples of "
                f"{2**self.halvings}."
            )
        seen = [self.down[0](x, train)]
        for level in list(self.down)[1:]:
            seen.append(level(max_pool(seen[-1], 2), train))
        y = seen.pop()
        for double, level in zip(self.double, self.up, strict=True):
            y = level(jnp.concatenate([seen.pop(), double(y)], axis=-1), train)
        return self.last(y)


class _Double(nnx.Module):
    """Two 3 x 3 convolutions with normalisation and ReLU."""

    def __init__(self, inputs: int, outputs: int, norm: Norm | None, rngs: nnx.Rngs) -> None:
        self.first = ConvolutionNorm(inputs, outputs, 3, norm=norm, rngs=rngs)
        self.last = ConvolutionNorm(outputs, outputs, 3, norm=norm, rngs=rngs)

    def __call__(self, x: Float[Array, "h w i"], train: bool) -> Float[Array, "h w o"]:
        return jax.nn.relu(self.last(jax.nn.relu(self.first(x, train)), train))


def _around(inputs: int, outputs: int, stride: int, norm: Norm | None, rngs: nnx.Rngs) -> ConvolutionNorm | None:
    if stride == 1 and inputs == outputs:
        return None
    return ConvolutionNorm(inputs, outputs, 1, stride=stride, norm=norm, slope=1.0, rngs=rngs)
