"""Layers, blocks and networks of them, and flax nnx networks as pure functions.

Layers take one item, (height, width, channels), (features,) or (vertices, channels); `jax.vmap` makes batches, and
computes what depends on the weights alone once for all of them. A layer with statistics over a batch is told the name
of the batch's axis, and is called as `layer(x, train)`, where `train` is a plain bool: its statistics move where it is
true. A `PureNetwork` takes and returns them as `rest`:

    net = PureNetwork(lambda rngs: UNet(3, 3, norm=functools.partial(BatchNorm, axis_name="batch"), rngs=rngs))
    params, rest = net.init(key)
    step = lambda picture: net(params, rest, picture, True)
    pictures, rest = jax.vmap(step, out_axes=(0, None), axis_name="batch")(batch)
"""

from facejax.models.layers.blocks import (
    RRDB,
    BasicBlock,
    Bottleneck,
    DenseBlock,
    Norm,
    UNet,
)
from facejax.models.layers.convolution import (
    SLOPE,
    Convolution,
    Dense,
    TransposedConvolution,
    adaptive_average_pool,
    average_pool,
    centred_padding,
    convolve,
    glorot_uniform,
    leaky_relu,
    max_pool,
    normalised_weight,
    transposed_convolve,
    upsample,
)
from facejax.models.layers.graph import (
    ChebyshevConvolution,
    MeshPooling,
    SparseMatrix,
    quadric_pooling,
    scaled_laplacian,
)
from facejax.models.layers.normalisation import (
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    SpectralNorm,
    power_iteration,
    standardise,
)
from facejax.models.layers.pure import PureNetwork, count_parameters

__all__ = [
    "RRDB",
    "SLOPE",
    "BasicBlock",
    "BatchNorm",
    "Bottleneck",
    "ChebyshevConvolution",
    "Convolution",
    "Dense",
    "DenseBlock",
    "GroupNorm",
    "InstanceNorm",
    "MeshPooling",
    "Norm",
    "PureNetwork",
    "SparseMatrix",
    "SpectralNorm",
    "TransposedConvolution",
    "UNet",
    "adaptive_average_pool",
    "average_pool",
    "centred_padding",
    "convolve",
    "count_parameters",
    "glorot_uniform",
    "leaky_relu",
    "max_pool",
    "normalised_weight",
    "power_iteration",
    "quadric_pooling",
    "scaled_laplacian",
    "standardise",
    "transposed_convolve",
    "upsample",
]
