"""Fully connected layers, convolutions, pooling and upsampling."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from facejax.geometry.errors import InputError
from facejax.geometry.records import PRNGKey

SLOPE = 0.2
"""Of every leaky ReLU: Lombardi et al. 2018 for the deep appearance model, our choice for the lighting network."""

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def leaky_relu(x: Float[Array, "*n"], slope: float = SLOPE) -> Float[Array, "*n"]:
    """x where it is positive, else `slope` times x."""
    return jnp.where(x >= 0, x, slope * x)


def normalised_weight(direction: Float[Array, "*i o"], gain: Float[Array, "o"]) -> Float[Array, "*i o"]:
    """Weight normalisation of Lombardi et al. 2018's released code: `gain * direction / norm of the whole direction`.

    The norm is the Frobenius norm of the *whole* tensor; Salimans and Kingma (2016) take one norm per output channel,
    which is another thing: here the channels' directions still trade length among themselves.
    """
    return direction * (gain * jax.lax.rsqrt(jnp.sum(direction**2)))


def glorot_uniform(key: PRNGKey, shape: tuple[int, ...], slope: float, taps: int | None = None) -> Float[Array, "..."]:
    """Uniform of variance 2 gain² / ((inputs + outputs) taps), with the gain sqrt(2 / (1 + slope²)) of a leaky ReLU.

    shape: (*kernel, inputs, outputs). slope: of the activation that follows, 1 for none. taps: how many kernel elements
    meet in one output, all of them unless given.
    """
    taps = int(np.prod(shape[:-2])) if taps is None else taps
    spread = np.sqrt(2 / (1 + slope**2)) * np.sqrt(2 / ((shape[-2] + shape[-1]) * taps))
    bound = float(np.sqrt(3) * spread)
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """The same of rows and columns, unless told one by one."""
    return (value, value) if isinstance(value, int) else value


def centred_padding(length: int, size: int, stride: int) -> tuple[int, int]:
    """(before, after): zeros beside `length` inputs, so that a kernel of `size` has ceil(length / stride) outputs.

    (size - 1) // 2 before, whatever the stride: output n looks around input stride * n. That is PyTorch's explicit
    padding of size // 2 for odd sizes, and of 1 for size 4 and stride 2; "SAME" pads less before where the stride is 2.
    After, as many as the last output reaches.
    """
    before = (size - 1) // 2
    last = -(-length // stride) - 1
    return before, max(stride * last + size - length - before, 0)


def convolve(
    x: Float[Array, "h w i"],
    kernel: Float[Array, "k l i_of_group o"],
    stride: int | tuple[int, int] = 1,
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
    groups: int = 1,
    bf16: bool = False,
) -> Float[Array, "_ _ o"]:
    """Cross-correlation with zeros around, float32 out; `bf16` multiplies and adds in bfloat16.

    stride: of rows and columns. padding: how many zeros (above, below) and (left, right). groups: the inputs and the
    outputs are parted into that many runs of channels, and each run of outputs sees its own run of inputs.
    """
    kind = jnp.bfloat16 if bf16 else jnp.float32
    # Padded by hand: the kernel's gradient of a 2 x 2 convolution that pads takes XLA's slow way on a CPU (26 times).
    x = jnp.pad(x.astype(kind), (*padding, (0, 0)))
    y = jax.lax.conv_general_dilated(
        x[None],
        kernel.astype(kind),
        pair(stride),
        "VALID",
        dimension_numbers=_DIMENSIONS,
        feature_group_count=groups,
    )
    return y[0].astype(jnp.float32)


def transposed_convolve(
    x: Float[Array, "h w i"], kernel: Float[Array, "4 4 i o"], bf16: bool = False
) -> Float[Array, "_ _ o"]:
    """Transposed convolution of size 4 and stride 2 to twice the resolution, (2h, 2w, o), in phase form.

    The same as `lax.conv_transpose(x, kernel, (2, 2), "SAME")`, and as PyTorch's `ConvTranspose2d(i, o, 4, 2, 1)` with
    its kernel turned by 180 degrees. An output row 2m sees input rows m - 1 and m through kernel rows 0 and 2, a row
    2m + 1 sees m and m + 1 through 1 and 3. So one 2 x 2 convolution of the input, padded by one on every side, to 4 o
    channels gives at its row j the output rows 2j - 1 and 2j: depth to space, then cut the border. No product with the
    zeros of a dilated input is made, and none of the 2 x 2 windows' taps is zero.
    """
    h, w, i = x.shape
    o = kernel.shape[-1]
    # (tap, phase) of the rows, (tap, phase) of the columns; phase 1 (odd rows) comes first in the output of window j
    taps = kernel.reshape(2, 2, 2, 2, i, o)[:, ::-1, :, ::-1]
    taps = taps.transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, i, 4 * o)
    y = convolve(x, taps, padding=((1, 1), (1, 1)), bf16=bf16)  # (h + 1, w + 1, 4 o)
    y = y.reshape(h + 1, w + 1, 2, 2, o).transpose(0, 2, 1, 3, 4).reshape(2 * h + 2, 2 * w + 2, o)
    return y[1:-1, 1:-1]


def max_pool(x: Float[Array, "h w c"], size: int, stride: int | None = None, padding: int = 0) -> Float[Array, "_ _ c"]:
    """Largest of each size x size window, channel by channel; windows start `stride` apart, `size` unless given.

    padding: rows and columns around that no window chooses. Only whole windows count, as in PyTorch's `MaxPool2d`.
    """
    return _over_windows(x, -jnp.inf, jax.lax.max, size, stride, padding)


def average_pool(
    x: Float[Array, "h w c"], size: int, stride: int | None = None, padding: int = 0
) -> Float[Array, "_ _ c"]:
    """Means of size x size windows; windows start `stride` apart, `size` unless given.

    padding: rows and columns of zeros around, which count. Only whole windows do, as in PyTorch's `AvgPool2d`.
    """
    h, w, c = x.shape
    if stride in (None, size) and not padding:  # blocks: a reshape is cheaper than windows, its gradient above all
        rows, columns = h // size, w // size
        return x[: rows * size, : columns * size].reshape(rows, size, columns, size, c).mean(axis=(1, 3))
    return _over_windows(x, 0.0, jax.lax.add, size, stride, padding) / size**2


def adaptive_average_pool(x: Float[Array, "h w c"], size: int) -> Float[Array, "{size} {size} c"]:
    """Means of size x size windows that cover the picture, whatever its size: PyTorch's `AdaptiveAvgPool2d`.

    Window n goes from row floor(n h / size) up to row ceil((n + 1) h / size): neighbours overlap where h is no
    multiple.
    """
    rows, columns = (jnp.asarray(_window_means(length, size)) for length in x.shape[:2])
    return jnp.einsum("rh,hwc,sw->rsc", rows, x, columns, precision=jax.lax.Precision.HIGHEST)


def upsample(x: Float[Array, "h w c"], factor: int) -> Float[Array, "_ _ c"]:
    """Bilinear interpolation between texel centres, constant beyond the outermost centres. Linear in x."""
    h, w, c = x.shape
    return jax.image.resize(x, (factor * h, factor * w, c), method="bilinear") if factor > 1 else x


class _Weight(nnx.Module):
    """A kernel, normalised or plain."""

    def __init__(self, kernel: Array, normalised: bool) -> None:
        self.kernel = nnx.Param(kernel)
        if normalised:  # gains start at the norm: the layer starts as if it were not normalised
            self.gain = nnx.Param(jnp.full(kernel.shape[-1], jnp.sqrt(jnp.sum(kernel**2))))
        self.normalised = normalised

    def weight(self) -> Array:
        return normalised_weight(self.kernel[...], self.gain[...]) if self.normalised else self.kernel[...]


class Dense(_Weight):
    """(inputs,) to (outputs,), always in full float32: geometry passes through such layers."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        slope: float = SLOPE,
        normalised: bool = True,
        bias: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        """slope: of the activation that follows, for the initial size of the weights."""
        super().__init__(glorot_uniform(rngs.params(), (inputs, outputs), slope), normalised)
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: Float[Array, "i"]) -> Float[Array, "o"]:
        return self.with_kernel(x, self.weight())

    def with_kernel(self, x: Float[Array, "i"], kernel: Float[Array, "i o"]) -> Float[Array, "o"]:
        """What the layer would say if that were its kernel."""
        y = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
        return y if self.bias is None else y + self.bias[...]


class Convolution(_Weight):
    """(h, w, inputs) to (h / stride, w / stride, outputs), rounded up, zeros around, one bias per channel.

    Output (r, c) looks around input (stride r, stride c), see `centred_padding`; for odd sizes that is PyTorch's
    `Conv2d` with padding `size // 2`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        groups: int = 1,
        slope: float = SLOPE,
        normalised: bool = True,
        bias: bool = True,
        bf16: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        """size: rows and columns of the kernel. stride: of rows and columns. groups: see `convolve`. slope: of the
        activation that follows. Raises InputError where `groups` does not divide the channels."""
        if inputs % groups or outputs % groups:
            raise InputError(
                f"{groups} groups do not divide {inputs} input and {outputs} output channels: choose a common divisor."
            )
        shape = (*pair(size), inputs // groups, outputs)
        super().__init__(glorot_uniform(rngs.params(), shape, slope), normalised)
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None
        self.stride, self.groups, self.bf16 = pair(stride), groups, bf16

    def __call__(self, x: Float[Array, "h w i"]) -> Float[Array, "_ _ o"]:
        return self.with_kernel(x, self.weight())

    def with_kernel(self, x: Float[Array, "h w i"], kernel: Float[Array, "k l i_of_group o"]) -> Float[Array, "_ _ o"]:
        """What the layer would say if that were its kernel."""
        rows, columns = map(centred_padding, x.shape[:2], kernel.shape[:2], self.stride)
        y = convolve(x, kernel, self.stride, (rows, columns), self.groups, bf16=self.bf16)
        return y if self.bias is None else y + self.bias[...]


class TransposedConvolution(_Weight):
    """(n, n, inputs) to (2n, 2n, outputs) by a kernel of 4 x 4.

    `bias`: "untied" learns one number per channel, row and column of the output, "channel" one per channel. The kernel
    starts with equal values in the four phases, as nearest-neighbour upsampling followed by a convolution would: no
    checkerboard at the start.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: str | None = "channel",
        resolution: int | None = None,
        slope: float = SLOPE,
        scale: float = 1.0,
        normalised: bool = True,
        bf16: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        """resolution: 2n, needed for untied bias. scale: factor on the initial kernel."""
        quarter = scale * glorot_uniform(rngs.params(), (2, 2, inputs, outputs), slope)
        super().__init__(jnp.repeat(jnp.repeat(quarter, 2, axis=0), 2, axis=1), normalised)
        untied = (resolution, resolution, outputs)
        shape = {"untied": untied, "channel": (outputs,), None: None}[bias]
        self.bias = None if shape is None else nnx.Param(jnp.zeros(shape))
        self.bf16 = bf16

    def __call__(self, x: Float[Array, "h w i"]) -> Float[Array, "_ _ o"]:
        y = transposed_convolve(x, self.weight(), bf16=self.bf16)
        return y if self.bias is None else y + self.bias[...]


def _over_windows(
    x: Float[Array, "h w c"],
    start: float,
    join: Callable[[Array, Array], Array],
    size: int,
    stride: int | None,
    padding: int,
) -> Float[Array, "_ _ c"]:
    step = size if stride is None else stride
    around = ((padding, padding), (padding, padding), (0, 0))
    return jax.lax.reduce_window(x, start, join, (size, size, 1), (step, step, 1), around)


def _window_means(length: int, count: int) -> np.ndarray:
    """(count, length): the weights of the means of `adaptive_average_pool` along one axis."""
    n, at = np.arange(count)[:, None], np.arange(length)
    inside = (at >= n * length // count) & (at < -(-(n + 1) * length // count))
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)
