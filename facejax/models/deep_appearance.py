"""The deep appearance model (DAM): a code and a view to a head's vertices and its fully lit, view-dependent texture.

Lombardi et al. 2018, as used by Chen et al. 2021 (deep lighting adaptation, eq. 1). All functions are pure and take one
frame; `params` and `state` are nested dicts of arrays. `state` holds statistics of the data that no gradient moves:

    {"mean_texture": (h, w, 3) linear, "texture_std": () linear, "mean_vertices": (v, 3) m, "vertices_std": () m}

Textures are linear radiance under the full light, 0 = no light, row 0 at the top; vertices are metres, head frame.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from facejax.geometry.errors import InputError
from facejax.geometry.records import PRNGKey, PyTree, Record, record
from facejax.models.layers import Convolution, Dense, PureNetwork, TransposedConvolution, leaky_relu


@dataclasses.dataclass(frozen=True)
class DeepAppearanceConfig:
    """Sizes of encoder and decoder. The defaults are the paper's."""

    n_vertices: int = 7306
    """Vertices of the mesh; any topology will do."""
    texture_size: int = 1024
    """Rows and columns of the texture."""
    code: int = 256
    """Length Z of the code."""
    features: int = 256
    """Units of each fully connected layer that reads the texture, the mesh or the code."""
    view_features: int = 8
    """Units of the layer that reads the view direction."""
    encoder_channels: tuple[int, ...] = (16, 16, 32, 32, 64, 64, 128, 128)
    """Channels of the encoder's convolutions; each halves the resolution."""
    decoder_channels: tuple[int, ...] = (64, 64, 32, 32, 16, 16)
    """Channels of the decoder's transposed convolutions between the first, which has Z, and the last, which has 3."""
    n_cameras: int = 1
    """Cameras with a colour correction of their own; the first is the reference and has none."""
    untied_bias: bool = True
    """A bias per channel, row and column in the decoder, as in the paper; else one per channel."""
    mean_scale: float = 0.1
    """Factor on what the encoder says of the code's mean."""
    log_std_scale: float = 0.01
    """Factor on what the encoder says of the code's log standard deviation, which so starts near 0."""
    bf16: bool = False
    """Convolutions in bfloat16; everything that vertices pass through stays float32."""

    def __post_init__(self) -> None:
        size, down, up = self.texture_size, len(self.encoder_channels), len(self.decoder_channels) + 2
        for what, halvings in (("the encoder", down), ("the decoder", up)):
            if size % 2**halvings:
                raise InputError(
                    f"a texture of {size} texels cannot be halved {halvings} times, which {what} asks for: choose a "
                    f"multiple of {2**halvings}, or fewer channels in the list."
                )

    @property
    def base_size(self) -> int:
        """Resolution at which the decoder's texture starts: 4 in the paper."""
        return self.texture_size // 2 ** (len(self.decoder_channels) + 2)


PRESETS: dict[str, DeepAppearanceConfig] = {
    "paper": DeepAppearanceConfig(),
    "small": DeepAppearanceConfig(
        texture_size=256,
        code=64,
        features=128,
        encoder_channels=(16, 16, 32, 32, 64, 64),
        decoder_channels=(64, 32, 32, 16),
    ),
}
"""The sizes of the paper, and sizes that two CPU cores can train; set `n_vertices` by `dataclasses.replace`."""


@record
class CodeDistribution(Record):
    """What the encoder says of a frame's code: an axis-aligned normal distribution."""

    mean: Float[Array, "z"]
    log_std: Float[Array, "z"]


@record
class Appearance(Record):
    """What the decoder makes of a code and a view."""

    vertices: Float[Array, "v 3"]
    """Metres, head frame; the same from every view."""
    texture: Float[Array, "h w 3"]
    """Linear radiance under the full light, as seen from the view. Not clipped: may be slightly negative."""


def sample_code(code: CodeDistribution, key: PRNGKey) -> Float[Array, "z"]:
    """A code drawn from the distribution: mean + std * noise, so that gradients reach both."""
    return code.mean + jnp.exp(code.log_std) * jax.random.normal(key, code.mean.shape)


@dataclasses.dataclass(frozen=True)
class DeepAppearanceModel:
    """Encoder and decoder as pure functions; static under `jit`: two of equal configs are the same.

    >>> model = DeepAppearanceModel(DeepAppearanceConfig(
    ...     n_vertices=5, texture_size=16, code=4, features=8, encoder_channels=(2, 2), decoder_channels=(2,)))
    >>> params, state = jax.eval_shape(model.init, jax.random.key(0))  # shapes only; call `init` for numbers
    >>> face = jax.eval_shape(model.decode, params, state, jnp.zeros(4), jnp.array([0.0, 0.0, 1.0]))
    >>> face.vertices.shape, face.texture.shape
    ((5, 3), (16, 16, 3))
    """

    config: DeepAppearanceConfig = dataclasses.field(default_factory=DeepAppearanceConfig)

    def init(self, key: PRNGKey) -> tuple[PyTree, PyTree]:
        """(params, state): networks at random, statistics that change nothing; see `statistics`."""
        told = self.config
        encoder, decoder = jax.random.split(key)
        params = {"encoder": _encoder(told).init(encoder)[0], "decoder": _decoder(told).init(decoder)[0]}
        others = (told.n_cameras - 1, 3)
        if others[0]:  # checkpoints hold no arrays without elements
            params["cameras"] = {"gain": jnp.ones(others), "bias": jnp.zeros(others)}
        state = {
            "mean_texture": jnp.zeros((told.texture_size, told.texture_size, 3)),
            "texture_std": jnp.ones(()),
            "mean_vertices": jnp.zeros((told.n_vertices, 3)),
            "vertices_std": jnp.ones(()),
        }
        return params, state

    def encode(
        self, params: PyTree, state: PyTree, texture: Float[Array, "h w 3"], vertices: Float[Array, "v 3"]
    ) -> CodeDistribution:
        """Distribution of the code of a frame.

        texture: mean over the views, 0 where no camera sees the skin. vertices: tracked mesh. Raises InputError for
        another texture size or number of vertices than the config's.
        """
        told = self.config
        _same("`texture`", texture.shape, (told.texture_size, told.texture_size, 3))
        _same("`vertices`", vertices.shape, (told.n_vertices, 3))
        seen = (texture - state["mean_texture"]) / state["texture_std"]
        shape = (vertices - state["mean_vertices"]) / state["vertices_std"]
        (mean, log_std), _ = _encoder(told)(params["encoder"], {}, seen, shape.reshape(-1))
        return CodeDistribution(mean=told.mean_scale * mean, log_std=told.log_std_scale * log_std)

    def decode(self, params: PyTree, state: PyTree, code: Float[Array, "z"], view: Float[Array, "3"]) -> Appearance:
        """Eq. (1). view: unit vector from the head to the camera, head frame. Reads `params["decoder"]` alone."""
        _same("`code`", code.shape, (self.config.code,))
        (offsets, texture), _ = _decoder(self.config)(params["decoder"], {}, code, view)
        return Appearance(
            vertices=_place(state, offsets), texture=state["mean_texture"] + state["texture_std"] * texture
        )

    def decode_vertices(self, params: PyTree, state: PyTree, code: Float[Array, "z"]) -> Float[Array, "v 3"]:
        """The vertices of `decode` without the cost of its texture: what a fit to landmarks needs."""
        _same("`code`", code.shape, (self.config.code,))
        offsets, _ = _decoder(self.config)(params["decoder"], {}, code, method="vertices")
        return _place(state, offsets)

    def mesh_features(self, params: PyTree, code: Float[Array, "z"]) -> Float[Array, "m"]:
        """What the mesh depends on linearly, see `linear_mesh`."""
        _same("`code`", code.shape, (self.config.code,))
        return _decoder(self.config)(params["decoder"], {}, code, method="features")[0]

    def linear_mesh(self, params: PyTree, state: PyTree) -> tuple[Float[Array, "v 3"], Float[Array, "m v 3"]]:
        """(mean, basis), metres, head frame: decoded vertices are mean + mesh_features(params, code) @ basis.

        Exact, as the mesh head is one layer without activation: a decoded head is a set of blend shapes, which can be
        reduced to a few points, or given to tools that know nothing of networks.
        """
        place = jax.vmap(lambda f: _place(state, _decoder(self.config)(params["decoder"], {}, f, method="mesh_of")[0]))
        features = self.config.features
        mean, moved = place(jnp.zeros((1, features)))[0], place(jnp.eye(features))
        return mean, moved - mean

    def correct_colour(
        self, params: PyTree, texture: Float[Array, "h w 3"], camera: Int[Array, ""] | int
    ) -> Float[Array, "h w 3"]:
        """The texture as that camera records it: a gain and a bias per channel, none for camera 0."""
        if self.config.n_cameras == 1:
            return texture
        gain = jnp.concatenate([jnp.ones((1, 3)), params["cameras"]["gain"]])
        bias = jnp.concatenate([jnp.zeros((1, 3)), params["cameras"]["bias"]])
        return gain[camera] * texture + bias[camera]


def statistics(
    textures: Float[Array, "n h w 3"], vertices: Float[Array, "n v 3"], seen: Float[Array, "n h w"] | None = None
) -> dict[str, Array]:
    """The `state` of a model from examples: means per texel and per coordinate, one standard deviation each.

    seen: 0 where a texel is not seen; such texels count neither in means nor in the deviation.
    """
    weight = jnp.ones(textures.shape[:3]) if seen is None else seen
    weight = weight[..., None]
    count = jnp.maximum(jnp.sum(weight, axis=0), 1e-6)
    mean = jnp.sum(weight * textures, axis=0) / count
    variance = jnp.sum(weight * (textures - mean) ** 2) / jnp.maximum(3 * jnp.sum(weight), 1e-6)
    centre = jnp.mean(vertices, axis=0)
    # Nothing varies in a single frame: a deviation of 0 would divide by 0.
    return {
        "mean_texture": mean,
        "texture_std": jnp.maximum(jnp.sqrt(variance), 1e-6),
        "mean_vertices": centre,
        "vertices_std": jnp.maximum(jnp.sqrt(jnp.mean((vertices - centre) ** 2)), 1e-6),
    }


class _Encoder(nnx.Module):
    def __init__(self, told: DeepAppearanceConfig, rngs: nnx.Rngs) -> None:
        widths = (3, *told.encoder_channels)
        last = told.texture_size // 2 ** len(told.encoder_channels)
        self.convolutions = nnx.List(
            [Convolution(a, b, 4, stride=2, bf16=told.bf16, rngs=rngs) for a, b in itertools.pairwise(widths)]
        )
        self.texture = Dense(last * last * widths[-1], told.features, rngs=rngs)
        self.mesh = Dense(3 * told.n_vertices, told.features, rngs=rngs)
        self.code = Dense(2 * told.features, 2 * told.code, slope=1.0, rngs=rngs)

    def __call__(self, x: Float[Array, "h w 3"], vertices: Float[Array, "n"]) -> tuple[Array, Array]:
        for layer in self.convolutions:
            x = leaky_relu(layer(x))
        features = jnp.concatenate([leaky_relu(self.texture(x.reshape(-1))), leaky_relu(self.mesh(vertices))])
        mean, log_std = jnp.split(self.code(features), 2)
        return mean, log_std


class _Decoder(nnx.Module):
    def __init__(self, told: DeepAppearanceConfig, rngs: nnx.Rngs) -> None:
        base = told.base_size
        widths = (told.code, told.code, *told.decoder_channels, 3)
        self.code = Dense(told.code, told.features, rngs=rngs)
        self.view = Dense(3, told.view_features, rngs=rngs)
        self.mesh = Dense(told.features, 3 * told.n_vertices, slope=1.0, rngs=rngs)
        self.texture = Dense(told.features + told.view_features, base * base * told.code, rngs=rngs)
        self.convolutions = nnx.List(
            [
                TransposedConvolution(
                    a,
                    b,
                    bias="untied" if told.untied_bias else "channel",
                    resolution=base * 2 ** (n + 1),
                    slope=1.0 if n == len(widths) - 2 else 0.2,
                    bf16=told.bf16,
                    rngs=rngs,
                )
                for n, (a, b) in enumerate(itertools.pairwise(widths))
            ]
        )
        self.base = (base, base, told.code)

    def features(self, code: Float[Array, "z"]) -> Float[Array, "m"]:
        return leaky_relu(self.code(code))

    def mesh_of(self, features: Float[Array, "m"]) -> Float[Array, "n"]:
        return self.mesh(features)

    def vertices(self, code: Float[Array, "z"]) -> Float[Array, "n"]:
        return self.mesh_of(self.features(code))

    def __call__(self, code: Float[Array, "z"], view: Float[Array, "3"]) -> tuple[Array, Array]:
        features = self.features(code)
        both = jnp.concatenate([features, leaky_relu(self.view(view))])
        x = leaky_relu(self.texture(both)).reshape(self.base)
        *hidden, last = self.convolutions
        for layer in hidden:
            x = leaky_relu(layer(x))
        return self.mesh(features), last(x)


@functools.cache
def _encoder(config: DeepAppearanceConfig) -> PureNetwork:
    return PureNetwork(lambda rngs: _Encoder(config, rngs))


@functools.cache
def _decoder(config: DeepAppearanceConfig) -> PureNetwork:
    return PureNetwork(lambda rngs: _Decoder(config, rngs))


def _place(state: PyTree, offsets: Float[Array, "n"]) -> Float[Array, "v 3"]:
    return state["mean_vertices"] + state["vertices_std"] * offsets.reshape(-1, 3)


def _same(what: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise InputError(
            f"{what} must have the shape {expected} that this model was made for, got {found}: "
            "resample it, change the config, or wrap a batch in `jax.vmap`."
        )
