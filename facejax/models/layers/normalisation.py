"""Batch, instance, group and spectral normalisation, with PyTorch's conventions.

Statistics that a network keeps are no parameters: a `PureNetwork` takes and returns them as `rest`. `train` is a plain
bool, as what is computed depends on it.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from facejax.geometry.errors import InputError
from facejax.models.layers.convolution import Convolution, Dense

EPSILON = 1e-5
"""Added to variances before the square root."""
MOMENTUM = 0.1
"""Share of the newest statistics in the running ones."""


def standardise(
    x: Float[Array, "*n c"], mean: Float[Array, "*#n c"], variance: Float[Array, "*#n c"], epsilon: float = EPSILON
) -> Float[Array, "*n c"]:
    """(x - mean) / sqrt(variance + epsilon)."""
    return (x - mean) * jax.lax.rsqrt(variance + epsilon)


class _Affine(nnx.Module):
    """A gain and a bias per channel, or neither."""

    def __init__(self, channels: int, affine: bool) -> None:
        self.gain = nnx.Param(jnp.ones(channels)) if affine else None
        self.bias = nnx.Param(jnp.zeros(channels)) if affine else None

    def scaled(self, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        return x if self.gain is None or self.bias is None else x * self.gain[...] + self.bias[...]


class _Running(_Affine):
    """The mean and variance of each channel over past batches."""

    def __init__(self, channels: int, affine: bool, running: bool, momentum: float, axis_name: str | None) -> None:
        super().__init__(channels, affine)
        self.mean = nnx.BatchStat(jnp.zeros(channels)) if running else None
        self.variance = nnx.BatchStat(jnp.ones(channels)) if running else None
        self.momentum, self.axis_name = momentum, axis_name

    def move(self, mean: Float[Array, "c"], variance: Float[Array, "c"]) -> None:
        """Towards the newest statistics. The same for all of a batch: no gradient passes."""
        if self.mean is None or self.variance is None:
            return
        for held, new in ((self.mean, mean), (self.variance, variance)):
            held[...] = (1 - self.momentum) * held[...] + self.momentum * jax.lax.stop_gradient(new)


class BatchNorm(_Running):
    """Channels standardised over a batch and all positions: `BatchNorm1d` and `BatchNorm2d` of PyTorch.

    In training by the mean and the (biased) variance of the batch, which is the axis `axis_name` of `jax.vmap`, or of
    this item's positions alone without a name; the running variance moves towards the unbiased one. Otherwise by the
    running statistics.
    """

    def __init__(
        self,
        channels: int,
        *,
        axis_name: str | None = None,
        momentum: float = MOMENTUM,
        epsilon: float = EPSILON,
        affine: bool = True,
    ) -> None:
        """axis_name: of the batch. momentum: share of the newest statistics. affine: learns a gain and a bias."""
        super().__init__(channels, affine, True, momentum, axis_name)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*n c"], train: bool = False) -> Float[Array, "*n c"]:
        """Raises InputError for a training batch of one number per channel, whose variance means nothing."""
        assert self.mean is not None
        assert self.variance is not None
        if not train:
            return self.scaled(standardise(x, self.mean[...], self.variance[...], self.epsilon))
        count = x.size // x.shape[-1] * _members(self.axis_name)
        _more_than_one(count)
        flat = x.reshape(-1, x.shape[-1])
        mean = _over_batch(flat.mean(axis=0), self.axis_name)
        variance = _over_batch(jnp.mean((flat - mean) ** 2, axis=0), self.axis_name)
        self.move(mean, variance * (count / (count - 1)))
        return self.scaled(standardise(x, mean, variance, self.epsilon))


class InstanceNorm(_Running):
    """Channels of each picture standardised over its own positions: `InstanceNorm2d` of PyTorch.

    With `running`, statistics of past batches are kept (means over the batch of each picture's) and take the place of
    the picture's own where it is not training.
    """

    def __init__(
        self,
        channels: int,
        *,
        axis_name: str | None = None,
        momentum: float = MOMENTUM,
        epsilon: float = EPSILON,
        affine: bool = False,
        running: bool = False,
    ) -> None:
        """axis_name: of the batch, for running statistics only. affine: learns a gain and a bias per channel."""
        super().__init__(channels, affine, running, momentum, axis_name)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*n c"], train: bool = False) -> Float[Array, "*n c"]:
        """Raises InputError for a picture of one position, whose variance means nothing."""
        if self.mean is not None and self.variance is not None and not train:
            return self.scaled(standardise(x, self.mean[...], self.variance[...], self.epsilon))
        count = x.size // x.shape[-1]
        _more_than_one(count)
        flat = x.reshape(-1, x.shape[-1])
        mean, variance = flat.mean(axis=0), flat.var(axis=0)
        if self.mean is not None:
            unbiased = variance * (count / (count - 1))
            self.move(_over_batch(mean, self.axis_name), _over_batch(unbiased, self.axis_name))
        return self.scaled(standardise(x, mean, variance, self.epsilon))


class GroupNorm(_Affine):
    """Runs of channels standardised together over one item's positions: `GroupNorm` of PyTorch; no statistics kept."""

    def __init__(self, channels: int, groups: int, *, epsilon: float = EPSILON, affine: bool = True) -> None:
        """groups: how many runs; one is layer normalisation. Raises InputError where it does not divide `channels`."""
        if channels % groups:
            raise InputError(f"{groups} groups do not divide {channels} channels: choose a divisor.")
        super().__init__(channels, affine)
        self.groups, self.epsilon = groups, epsilon

    def __call__(self, x: Float[Array, "*n c"], train: bool = False) -> Float[Array, "*n c"]:
        """`train` changes nothing: it is there so that any normalisation can stand in another's place."""
        runs = x.reshape(-1, self.groups, x.shape[-1] // self.groups)
        mean = runs.mean(axis=(0, 2), keepdims=True)
        variance = runs.var(axis=(0, 2), keepdims=True)
        return self.scaled(((runs - mean) * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape))


def power_iteration(
    matrix: Float[Array, "m n"], left: Float[Array, "n"], right: Float[Array, "m"], steps: int = 1
) -> tuple[Float[Array, "n"], Float[Array, "m"]]:
    """Unit vectors that come nearer to the matrix's first singular vectors with each step: of its rows, of its columns.

    No gradient passes through them (Miyato et al. 2018). PyTorch's order: first `left` from `right`, then back.
    """
    matrix = jax.lax.stop_gradient(matrix)
    for _ in range(steps):
        left = _unit(jnp.matmul(right, matrix, precision=jax.lax.Precision.HIGHEST))
        right = _unit(jnp.matmul(matrix, left, precision=jax.lax.Precision.HIGHEST))
    return left, right


class SpectralNorm(nnx.Module):
    """A layer whose kernel is divided by its largest singular value (Miyato et al. 2018).

    That of the kernel as a matrix (all other axes, outputs). The singular vectors are statistics (`rest`): in training
    each call makes them better by one step of power iteration, otherwise they stay. As
    `torch.nn.utils.parametrizations.spectral_norm`, which starts with 15 steps, too.
    """

    def __init__(self, layer: Dense | Convolution, *, rngs: nnx.Rngs) -> None:
        """layer: made with `normalised=False`."""
        self.layer = layer
        matrix = layer.weight().reshape(-1, layer.weight().shape[-1])
        right = _unit(jax.random.normal(rngs.params(), matrix.shape[:1]))
        left, right = power_iteration(matrix, jnp.zeros(matrix.shape[1]), right, 15)
        self.left, self.right = nnx.BatchStat(left), nnx.BatchStat(right)

    def __call__(self, x: Float[Array, "*n i"], train: bool = False) -> Float[Array, "*m o"]:
        kernel = self.layer.weight()
        matrix = kernel.reshape(-1, kernel.shape[-1])
        left, right = self.left[...], self.right[...]
        if train:
            left, right = power_iteration(matrix, left, right)
            self.left[...], self.right[...] = left, right
        largest = jnp.einsum("m,mn,n->", right, matrix, left, precision=jax.lax.Precision.HIGHEST)
        return self.layer.with_kernel(x, kernel / largest)


def _members(axis_name: str | None) -> int:
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def _over_batch(x: Float[Array, "*n"], axis_name: str | None) -> Float[Array, "*n"]:
    return x if axis_name is None else jax.lax.pmean(x, axis_name)


def _more_than_one(count: int) -> None:
    if count < 2:
        raise InputError(
            "one number per channel has no variance: train with a larger batch, or a picture of more positions."
        )


def _unit(x: Float[Array, "n"], epsilon: float = 1e-12) -> Float[Array, "n"]:
    return x / jnp.maximum(jnp.linalg.norm(x), epsilon)
