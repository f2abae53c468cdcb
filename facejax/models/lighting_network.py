"""The lighting network G of Chen et al. 2021 (deep lighting adaptation, eq. 2-3, Fig. 10).

A lighting code, the head's pose and view and its fully lit texture in; a gain and a bias per texel out. The texture
under that light is `texture * gain + bias`. All functions are pure and take one frame.

A lighting code is (groups, 3): per group of lights its colour, all ones under the full light; flattened group by group
where the network reads it (the paper does not tell the order). Textures are linear radiance, 0 = no light, as the
decoder gives them. Where text and figure of the paper disagree, sizes follow the figure; what both leave open (3 x 3
convolutions, slopes of 0.2, average pooling, no normalisation, identity at the start) is our choice.
"""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from facejax.geometry.cameras import view_direction
from facejax.geometry.errors import InputError
from facejax.geometry.records import Pose, PRNGKey, PyTree, Record, record
from facejax.geometry.rotations import matrix_to_rotvec
from facejax.models.layers import (
    Convolution,
    Dense,
    PureNetwork,
    TransposedConvolution,
    average_pool,
    leaky_relu,
    upsample,
)


@dataclasses.dataclass(frozen=True)
class LightingNetworkConfig:
    """Sizes of the lighting network. The defaults are the paper's."""

    groups: int = 50
    """Groups of lights; a code has three numbers for each."""
    lights: int = 0
    """Lights one by one, seen from the head, that are read in place of a code (`lights_on_head`); 0 as in the paper."""
    texture_size: int = 1024
    """Rows and columns of the texture that is lit."""
    map_size: int = 256
    """Resolution at which the texture is read, and gain and bias are made; both are resized between."""
    light_features: int = 256
    """Units of the two layers that read the code."""
    pose_features: int = 128
    """Units of the two layers that read pose and view."""
    base_size: int = 4
    """Resolution at which light and pose become an image."""
    base_channels: int = 256
    """Channels of that image."""
    light_channels: tuple[int, ...] = (256, 128)
    """Channels of the transposed convolutions of the lighting branch; each doubles the resolution."""
    texture_channels: tuple[int, ...] = (64, 64, 128, 128)
    """Channels of the convolutions of the texture branch; the resolution is halved after each."""
    head_channels: tuple[int, ...] = (128, 64, 32)
    """Channels of the transposed convolutions of each head but the last, which has 3; each doubles the resolution."""
    head_scale: float = 0.0
    """Factor on the heads' last kernel at the start; at 0 G starts as exactly the identity: gain 1, bias 0."""
    transfer: int = 0
    """With `superposition`: rank of a map that every texel of the gain has for itself, see `LightingNetwork`."""
    superposition: bool = False
    """Gain and bias linear in the code by construction, as light itself is; the paper's network is not."""
    bf16: bool = False
    """Convolutions in bfloat16; the rest stays float32."""

    def __post_init__(self) -> None:
        fused = self.base_size * 2 ** len(self.light_channels)
        if self.map_size != fused * 2 ** len(self.texture_channels):
            raise InputError(
                f"the lighting branch ends at {fused} texels, the texture branch at {self.map_size} / "
                f"{2 ** len(self.texture_channels)}: choose lists of channels so that both are the same."
            )
        if self.map_size != fused * 2 ** (len(self.head_channels) + 1):
            raise InputError(
                f"heads of {len(self.head_channels) + 1} doublings take {fused} texels to "
                f"{fused * 2 ** (len(self.head_channels) + 1)}, not to the {self.map_size} of `map_size`."
            )
        if self.texture_size % self.map_size:
            raise InputError(
                f"`texture_size` must be a multiple of `map_size`, got {self.texture_size} and {self.map_size}."
            )

    @property
    def rows(self) -> int:
        """Of what the network reads as its light."""
        return self.lights or self.groups

    @property
    def factor(self) -> int:
        """Texels of the texture per texel of the maps, along a side."""
        return self.texture_size // self.map_size


PRESETS: dict[str, LightingNetworkConfig] = {
    "paper": LightingNetworkConfig(),
    "small": LightingNetworkConfig(
        texture_size=256,
        map_size=128,
        light_features=128,
        pose_features=64,
        base_channels=64,
        light_channels=(64, 64),
        texture_channels=(32, 32, 64),
        head_channels=(64, 32),
    ),
}
"""The sizes of Fig. 10, and sizes that two CPU cores can train."""


@record
class GainBias(Record):
    """What G says of a texture under a light, at the texture's resolution."""

    gain: Float[Array, "h w 3"]
    """Factor on the fully lit texture."""
    bias: Float[Array, "h w 3"]
    """Linear radiance on top."""


def lights_on_head(
    code: Float[Array, "g 3"],
    rotation: Float[Array, "3 3"],
    directions: Float[Array, "d 3"],
    group: Int[Array, "d"],
) -> Float[Array, "d 3"]:
    """What comes to a turned head from each of the directions, counted in its own frame, under a code.

    rotation: of the head, to the frame in which lights are fixed. directions: unit, towards the lights in that frame,
    even over the sphere; group: of each, its row of the code. Between lights is interpolated, by weights that sum to 1,
    so an even light stays what it is. Linear in the code.

    Beyond the paper, which leaves it to the network to find what a turn of the head does to fifty unknown lights: where
    their directions are known, a head that turns sees the same light from elsewhere, and nothing else is to be learnt.
    """
    turned = jnp.matmul(directions, rotation.T, precision=jax.lax.Precision.HIGHEST)
    closeness = jnp.matmul(turned, directions.T, precision=jax.lax.Precision.HIGHEST)
    sharpness = len(directions) / 4.0  # a Gaussian about as wide as lights are apart
    weights = jax.nn.softmax(sharpness * closeness, axis=-1)
    return jnp.matmul(weights, code[group], precision=jax.lax.Precision.HIGHEST)


def relight(texture: Float[Array, "h w 3"], maps: GainBias) -> Float[Array, "h w 3"]:
    """Eq. (2): the fully lit texture under the light of the maps. Not clipped: G is free to say less than no light."""
    return texture * maps.gain + maps.bias


def pose_features(pose: Pose) -> Float[Array, "6"]:
    """What G reads of a pose: rotation as axis-angle (rad), and the unit view vector in the head frame.

    The rotation is counted from a head that looks straight into the camera, whose matrix in the OpenCV frame is
    diag(1, -1, -1): counted from the identity, ordinary heads would lie around the half turn, where axis-angle jumps.
    The light is fixed in the camera frame. With several cameras under one light see `rig_pose_features`.
    """
    return rig_pose_features(pose.rotation, view_direction(pose))


def rig_pose_features(rotation: Float[Array, "3 3"], view: Float[Array, "3"]) -> Float[Array, "6"]:
    """`pose_features` for a camera of a rig: rotation of the head to the frame (OpenCV axes) in which lights are fixed.

    view: unit vector from the head to this camera, head frame.
    """
    upright = rotation * jnp.array([[1.0], [-1.0], [-1.0]])  # diag(1, -1, -1) @ rotation
    return jnp.concatenate([matrix_to_rotvec(upright), view])


@dataclasses.dataclass(frozen=True)
class LightingNetwork:
    """G as pure functions; static under `jit`: two of equal configs are the same.

    With `superposition` the code meets no bias and no activation. Each colour of it takes the same linear way, and what
    pose and texture say multiplies it at every resolution: T(a l + b m) = a T(l) + b T(m) for every colour on its own,
    so a light fitted to pictures is a linear problem, and colour needs no augmentation. The other branches are those of
    Fig. 10; the layers that carry the gates are an addition. So is `transfer`: of itself the network makes its maps of
    one small image by the same kernels everywhere, and learns slowly where on the face things are; a low-rank map per
    texel, as precomputed radiance transfer has it, learns that at once and leaves the network what pose, view and
    expression change.

    >>> net = LightingNetwork(LightingNetworkConfig(
    ...     groups=3, texture_size=16, map_size=8, light_features=4, pose_features=4, base_size=2, base_channels=4,
    ...     light_channels=(4,), texture_channels=(4,), head_channels=()))
    >>> params = jax.eval_shape(net.init, jax.random.key(0))  # shapes only; call `init` for numbers
    >>> maps = jax.eval_shape(net, params, net.full_light(), jnp.zeros(6), jnp.ones((16, 16, 3)))
    >>> maps.gain.shape, maps.bias.shape
    ((16, 16, 3), (16, 16, 3))
    """

    config: LightingNetworkConfig = dataclasses.field(default_factory=LightingNetworkConfig)

    def init(self, key: PRNGKey) -> PyTree:
        """Weights at random; gain 1 and bias 0 whatever the code, or with `superposition` under the full light."""
        return _network(self.config).init(key)[0]

    def __call__(
        self, params: PyTree, light: Float[Array, "g 3"], pose: Float[Array, "6"], texture: Float[Array, "h w 3"]
    ) -> GainBias:
        """Eq. (3). light: code. pose: see `pose_features`. texture: fully lit, linear.

        Raises InputError for a code or a texture of another size than the config's.
        """
        told = self.config
        if light.shape != (told.rows, 3):
            each = "group of lights" if told.lights == 0 else "light, see `lights_on_head`"
            raise InputError(
                f"a lighting code must be ({told.rows}, 3), a colour for each {each}, got {light.shape}: "
                "wrap a batch in `jax.vmap`, or reshape a flat code group by group."
            )
        if texture.shape != (told.texture_size, told.texture_size, 3):
            raise InputError(
                f"`texture` must be ({told.texture_size}, {told.texture_size}, 3), got {texture.shape}: resample it, "
                "or set `texture_size`, on which the weights do not depend."
            )
        (gain, bias), _ = _network(told)(params, {}, light, pose, average_pool(texture, told.factor))
        return GainBias(gain=upsample(gain, told.factor), bias=upsample(bias, told.factor))

    def full_light(self) -> Float[Array, "g 3"]:
        """The code of all lights on, in white: the light of the texture itself."""
        return jnp.ones((self.config.groups, 3))

    def no_light(self) -> Float[Array, "g 3"]:
        """The code of all lights off, from where adaptation starts."""
        return jnp.zeros((self.config.groups, 3))


class _Branches(nnx.Module):
    """What both kinds of network read from pose and texture."""

    def __init__(self, told: LightingNetworkConfig, rngs: nnx.Rngs) -> None:
        self.pose = nnx.List(
            [
                Dense(a, b, normalised=False, rngs=rngs)
                for a, b in itertools.pairwise((6, told.pose_features, told.pose_features))
            ]
        )
        self.texture = nnx.List(
            [
                Convolution(a, b, 3, normalised=False, bf16=told.bf16, rngs=rngs)
                for a, b in itertools.pairwise((3, *told.texture_channels))
            ]
        )

    def __call__(self, pose: Array, texture: Array) -> tuple[Array, Array]:
        for dense in self.pose:
            pose = leaky_relu(dense(pose))
        for convolution in self.texture:
            texture = average_pool(leaky_relu(convolution(texture)), 2)
        return pose, texture


class _Network(nnx.Module):
    """Fig. 10."""

    def __init__(self, told: LightingNetworkConfig, rngs: nnx.Rngs) -> None:
        base, channels = told.base_size, told.base_channels
        self.branches = _Branches(told, rngs)
        self.light = nnx.List(
            [
                Dense(a, b, normalised=False, rngs=rngs)
                for a, b in itertools.pairwise((3 * told.rows, told.light_features, told.light_features))
            ]
        )
        self.join = Dense(told.light_features + told.pose_features, base * base * channels, normalised=False, rngs=rngs)
        self.first = Convolution(channels, channels, 3, normalised=False, bf16=told.bf16, rngs=rngs)
        self.up = _ups((channels, *told.light_channels), told, rngs)
        fused = told.light_channels[-1] + told.texture_channels[-1]
        self.gain = _head(fused, told, rngs)
        self.bias = _head(fused, told, rngs)
        self.base = (base, base, channels)

    def __call__(
        self, light: Float[Array, "g 3"], pose: Float[Array, "6"], texture: Float[Array, "h w 3"]
    ) -> tuple[Array, Array]:
        p, t = self.branches(pose, texture)
        x = light.reshape(-1)
        for dense in self.light:
            x = leaky_relu(dense(x))
        x = leaky_relu(self.join(jnp.concatenate([x, p]))).reshape(self.base)
        x = leaky_relu(self.first(x))
        for layer in self.up:
            x = leaky_relu(layer(x))
        fused = jnp.concatenate([x, t], axis=-1)
        gain, bias = fused, fused
        for n, (one, other) in enumerate(zip(self.gain, self.bias, strict=True)):
            gain, bias = one(gain), other(bias)
            if n < len(self.gain) - 1:
                gain, bias = leaky_relu(gain), leaky_relu(bias)
        return 1 + gain, bias


class _LinearNetwork(nnx.Module):
    """Linear in the code; pose and texture make gates of 1 + something, which multiply what comes of the code."""

    def __init__(self, told: LightingNetworkConfig, rngs: nnx.Rngs) -> None:
        base, channels, last = told.base_size, told.base_channels, told.light_channels[-1]
        wide = base * base * channels
        self.branches = _Branches(told, rngs)
        self.light = Dense(told.rows, told.light_features, slope=1.0, normalised=False, bias=False, rngs=rngs)
        self.join = Dense(told.light_features, wide, slope=1.0, normalised=False, bias=False, rngs=rngs)
        self.join_gate = Dense(told.pose_features, wide, normalised=False, rngs=rngs)
        self.first = Convolution(
            channels, channels, 3, slope=1.0, normalised=False, bias=False, bf16=told.bf16, rngs=rngs
        )
        self.up = _ups((channels, *told.light_channels), told, rngs, linear=True)
        self.pose_map = Dense(told.pose_features, told.texture_channels[-1], normalised=False, rngs=rngs)
        self.fuse_gate = Convolution(told.texture_channels[-1], last, 3, normalised=False, bf16=told.bf16, rngs=rngs)
        self.gates = _ups((told.texture_channels[-1], *told.head_channels), told, rngs)
        self.gain = _head(last, told, rngs, linear=True)
        self.bias = _head(last, told, rngs, linear=True)
        self.base = (base, base, channels)
        self.rank = told.transfer
        if self.rank:
            self.coefficients = Dense(told.rows, self.rank, slope=1.0, normalised=False, bias=False, rngs=rngs)
            self.transfer = nnx.Param(jnp.zeros((told.map_size, told.map_size, self.rank)))

    def __call__(
        self, light: Float[Array, "g 3"], pose: Float[Array, "6"], texture: Float[Array, "h w 3"]
    ) -> tuple[Array, Array]:
        p, t = self.branches(pose, texture)
        context = leaky_relu(t + self.pose_map(p))
        gates = [1 + self.fuse_gate(context)]
        for layer in self.gates:
            context = leaky_relu(layer(context))
            gates.append(1 + context)
        join = 1 + self.join_gate(p)
        full = light  # one lamp alone that lights a room has as many times its share as there are rows
        light = light / math.sqrt(light.shape[0])

        def one_colour(code: Float[Array, "g"]) -> tuple[Array, Array]:
            x = self.first((self.join(self.light(code)) * join).reshape(self.base))
            for layer in self.up:
                x = layer(x)
            gain = bias = x * gates[0]
            for one, other, gate in zip(self.gain[:-1], self.bias[:-1], gates[1:], strict=True):
                gain, bias = one(gain) * gate, other(bias) * gate
            return self.gain[-1](gain), self.bias[-1](bias)

        gain, bias = jax.vmap(one_colour, in_axes=1, out_axes=2)(light)  # (h, w, colour of the code, channel)
        gain, bias = (jnp.diagonal(m, axis1=2, axis2=3) for m in (gain, bias))
        if self.rank:
            gain = gain + self.transfer[...] @ jax.vmap(self.coefficients, in_axes=1, out_axes=1)(light)
        return jnp.mean(full, axis=0) + gain, bias


def _ups(widths: tuple[int, ...], told: LightingNetworkConfig, rngs: nnx.Rngs, linear: bool = False) -> nnx.List:
    """Transposed convolutions through these channels; linear: no bias, and weights for no activation."""
    bias, slope = (None, 1.0) if linear else ("channel", 0.2)
    return nnx.List(
        [
            TransposedConvolution(a, b, bias=bias, slope=slope, normalised=False, bf16=told.bf16, rngs=rngs)
            for a, b in itertools.pairwise(widths)
        ]
    )


def _head(inputs: int, told: LightingNetworkConfig, rngs: nnx.Rngs, linear: bool = False) -> nnx.List:
    """Transposed convolutions to 3 channels, the last one scaled by `head_scale`."""
    layers = list(_ups((inputs, *told.head_channels), told, rngs, linear))
    last = TransposedConvolution(
        (inputs, *told.head_channels)[-1],
        3,
        bias=None if linear else "channel",
        slope=1.0,
        scale=told.head_scale,
        normalised=False,
        bf16=told.bf16,
        rngs=rngs,
    )
    return nnx.List([*layers, last])


@functools.cache
def _network(config: LightingNetworkConfig) -> PureNetwork:
    return PureNetwork(lambda rngs: (_LinearNetwork if config.superposition else _Network)(config, rngs))
