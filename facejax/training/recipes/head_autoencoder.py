"""A small autoencoder of head meshes: the engine's example and its test, and a template for a recipe of your own.

The data are heads of the built-in model with random identities and expressions, thinned to a few hundred vertices. The
network reads the vertices of a head, with noise, and gives them back through a short code.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from facejax.data.sources import Example, RecordFolder, Source, write_records
from facejax.geometry.records import PRNGKey, PyTree
from facejax.training.config import Config, Machine, Run
from facejax.training.networks import Pure
from facejax.training.recipe import Preset, Recipe, Terms


@dataclasses.dataclass(frozen=True)
class Heads:
    """Which heads there are to learn from."""

    vertices: int = 256
    """Vertices of the built-in head to keep, spread evenly over it; 0 keeps them all."""
    train: int = 2048
    """Heads to train on."""
    test: int = 128
    """Heads to test on; none of them is trained on."""
    seed: int = 0
    """Of the random identities and expressions."""


@dataclasses.dataclass(frozen=True)
class Network:
    """Size of the encoder, and of the decoder that mirrors it."""

    width: int = 64
    """Units of each hidden layer."""
    layers: int = 1
    """Hidden layers on either side."""
    code: int = 32
    """Length of the code."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the network learns."""

    rate: float = 3e-3
    """Highest learning rate of AdamW; it rises over the first twentieth of the steps and falls to 0 along a cosine."""
    decay: float = 1e-4
    """Weight decay."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    noise_mm: float = 0.5
    """Standard deviation of the noise on the vertices that the encoder sees, millimetres."""
    code_noise: float = 0.01
    """Standard deviation of the noise on the code."""
    code_weight: float = 1e-3
    """Weight of the mean square of the code, in mm^2."""


@dataclasses.dataclass(frozen=True)
class HeadAutoencoderConfig(Config):
    """An autoencoder of head meshes."""

    data: Heads = dataclasses.field(default_factory=Heads)
    """Which heads."""
    network: Network = dataclasses.field(default_factory=Network)
    """How large a network."""
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    """How it learns."""


class HeadAutoencoder(Recipe[HeadAutoencoderConfig]):
    """Vertices in, vertices out. An example is {"vertices": (v, 3) metres, head frame}."""

    name: ClassVar[str] = "head-autoencoder"
    summary: ClassVar[str] = "Vertices of a head through a short code and back; the example recipe."
    score: ClassVar[str] = "vertex error (mm)"
    presets: ClassVar = {
        "small": Preset(
            command="facejax train head-autoencoder --preset small --data heads --make-data --out run",
            hardware="2 CPU cores, busy with other jobs too (load 7)",
            time="28 s, writing the data included",
            score="vertex error 0.837 mm on 128 test heads (the mean head: 5.197 mm)",
            config=HeadAutoencoderConfig(
                run=Run(steps=4000, batch=64), machine=Machine(eval_every=500, save_every=500, log_every=100)
            ),
        ),
        "paper": Preset(
            command="facejax train head-autoencoder --preset paper --data heads-full --make-data --out run-full",
            hardware="not measured: meant for one accelerator",
            time="not measured",
            score="not measured",
            config=HeadAutoencoderConfig(
                run=Run(steps=50_000, batch=256, bf16=True),
                machine=Machine(eval_every=2500, save_every=2500, log_every=100),
                data=Heads(vertices=0, train=20_000, test=1_000),
                network=Network(width=512, layers=2, code=128),
                schedule=Schedule(rate=1e-3),
            ),
        ),
    }

    def __init__(self, config: HeadAutoencoderConfig) -> None:
        super().__init__(config)
        size, dtype = config.network, jnp.bfloat16 if config.run.bf16 else jnp.float32
        wide = 3 * (config.data.vertices or _all_vertices())
        hidden = [size.width] * size.layers
        self._encoder = Pure(lambda rngs: _layers([wide, *hidden, size.code], dtype, rngs))
        self._decoder = Pure(lambda rngs: _layers([size.code, *hidden, wide], dtype, rngs))

    def data(self, folder: Path, split: str) -> RecordFolder:
        """See `Recipe.data`."""
        return RecordFolder(folder, split)

    def write_data(self, folder: Path) -> None:
        """Writes heads of the built-in model, deterministic from `data.seed`."""
        told = self.config.data
        key_train, key_test = jax.random.split(jax.random.key(told.seed))
        splits = {"train": _heads(told, key_train, told.train), "test": _heads(told, key_test, told.test)}
        write_records(folder, splits, about={"what": "heads of the built-in model", **dataclasses.asdict(told)})

    def augment(self, example: Example, rng: np.random.Generator) -> Example:
        """Adds {"seen": the vertices with noise}."""
        noise = rng.standard_normal(example["vertices"].shape, np.float32) * np.float32(
            self.config.schedule.noise_mm * 1e-3
        )
        return {**example, "seen": example["vertices"] + noise}

    def init(self, key: PRNGKey, data: Source) -> tuple[PyTree, PyTree]:
        """Networks at random; the mean head and the spread about it, from the first 512 examples."""
        encoder, decoder = jax.random.split(key)
        heads = np.stack([data[i]["vertices"] for i in range(min(512, len(data)))])
        mean = heads.mean(0)
        spread = np.sqrt(np.mean((heads - mean) ** 2))
        params = {"encoder": self._encoder.init(encoder), "decoder": self._decoder.init(decoder)}
        return params, {"mean": jnp.asarray(mean), "spread": jnp.asarray(spread)}

    def rehearsal(self, key: PRNGKey) -> tuple[PyTree, PyTree, Example]:
        """See `Recipe.rehearsal`: clouds of points as large as a head."""
        first, noise = jax.random.split(key)
        shape = (2, self.config.data.vertices or _all_vertices(), 3)
        heads = np.asarray(0.1 * jax.random.normal(noise, shape))
        params, state = jax.jit(lambda k: self.init(k, [{"vertices": head} for head in heads]))(first)
        return params, state, {"vertices": heads[0], "seen": heads[1]}

    def encode(self, params: PyTree, state: PyTree, vertices: Float[Array, "b v 3"]) -> Float[Array, "b c"]:
        """Codes of heads; vertices in metres, head frame."""
        seen = (vertices - state["mean"]) / state["spread"]
        return self._encoder(params["encoder"], seen.reshape(len(seen), -1)).astype(jnp.float32)

    def decode(self, params: PyTree, state: PyTree, codes: Float[Array, "b c"]) -> Float[Array, "b v 3"]:
        """Heads of codes; metres, head frame, float32 whatever the network multiplies in."""
        offsets = self._decoder(params["decoder"], codes).astype(jnp.float32)
        return state["mean"] + state["spread"] * offsets.reshape(len(codes), *state["mean"].shape)

    def loss(self, params: PyTree, state: PyTree, batch: PyTree, key: PRNGKey) -> tuple[Terms, PyTree]:
        """Mean square distance of the vertices (mm^2), and the square of the code."""
        told = self.config.schedule
        codes = self.encode(params, state, batch["seen"])
        noisy = codes + told.code_noise * jax.random.normal(key, codes.shape)
        missed = 1e3 * (self.decode(params, state, noisy) - batch["vertices"])
        terms = {
            "vertices (mm^2)": jnp.mean(jnp.sum(missed**2, axis=-1)),
            "code": told.code_weight * jnp.mean(codes**2),
        }
        return terms, state

    def optimiser(self) -> optax.GradientTransformation:
        """AdamW with warm-up and cosine."""
        told, steps = self.config.schedule, self.config.run.steps
        warmup = max(steps // 20, 1)
        rate = optax.warmup_cosine_decay_schedule(0.0, told.rate, warmup, max(steps, warmup + 1))
        return optax.chain(optax.clip_by_global_norm(told.clip), optax.adamw(rate, weight_decay=told.decay))

    def evaluate(self, params: PyTree, state: PyTree, batch: PyTree) -> dict[str, Float[Array, "b"]]:
        """Mean distance of the vertices, and what the mean head would reach (the control)."""
        truth = batch["vertices"]
        found = self.decode(params, state, self.encode(params, state, truth))
        return {self.score: _distance_mm(found, truth), "mean head (mm)": _distance_mm(state["mean"], truth)}

    def pictures(self, params: PyTree, state: PyTree, batch: PyTree) -> dict[str, np.ndarray]:
        """Four heads above their reconstructions, seen from the front; red where 3 mm or more are missed."""
        truth = batch["vertices"][:4]
        found = np.asarray(jax.jit(lambda x: self.decode(params, state, self.encode(params, state, x)))(truth))
        missed = np.linalg.norm(found - truth, axis=-1) * 1e3
        upper = [_dots(v, np.zeros(len(v))) for v in truth]
        lower = [_dots(v, e / 3) for v, e in zip(found, missed, strict=True)]
        return {"heads": np.concatenate([np.concatenate(upper, 1), np.concatenate(lower, 1)], 0)}


class _Layers(nnx.Module):
    def __init__(self, layers: list[nnx.Linear]) -> None:
        self.layers = nnx.List(layers)

    def __call__(self, x: Array) -> Array:
        *hidden, last = self.layers
        for layer in hidden:
            x = nnx.gelu(layer(x))
        return last(x)


def _layers(widths: list[int], dtype: Any, rngs: nnx.Rngs) -> _Layers:
    return _Layers(
        [nnx.Linear(a, b, dtype=dtype, param_dtype=jnp.float32, rngs=rngs) for a, b in itertools.pairwise(widths)]
    )


def _distance_mm(a: Float[Array, "*b v 3"], b: Float[Array, "b v 3"]) -> Float[Array, "b"]:
    return 1e3 * jnp.mean(jnp.linalg.norm(a - b, axis=-1), axis=-1)


def _all_vertices() -> int:
    from facejax.data.heads import load_model

    return load_model("generic").topology.n_vertices


def _heads(told: Heads, key: PRNGKey, count: int) -> Iterator[Example]:
    """Random heads, the n-th from the key and n alone."""
    one, block = _random_head(told.vertices), 256  # heads at once
    for first in range(0, count, block):
        keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.arange(first, first + block))
        for vertices in np.asarray(one(keys))[: count - first]:
            yield {"vertices": vertices}


@functools.cache
def _random_head(count: int) -> Callable[[PRNGKey], Float[Array, "b v 3"]]:
    """Makes heads of that many vertices from keys: normal identities, a third of the expressions partly at work."""
    from facejax.data.heads import load_model
    from facejax.models.morphable import Expression, Identity, MorphableParams

    head = load_model("generic")
    p, ids = head.params, spread_vertices(np.asarray(head.params.mean), count)
    thin = MorphableParams(
        **{name: getattr(p, name) for name in ("eye_pivot", "eye_pivot_basis")},
        **{name: getattr(p, name)[ids] for name in ("mean", "skin_mean", "eye_weight", "specular", "roughness")},
        **{name: getattr(p, name)[:, ids] for name in ("identity_basis", "expression_basis", "skin_basis")},
    )
    rest, still = head.init_code()

    def one(key: PRNGKey) -> Float[Array, "v 3"]:
        who, which, how = jax.random.split(key, 3)
        names = still.activations.shape
        identity: Identity = rest.replace(shape=jax.random.normal(who, rest.shape.shape))
        active = jax.random.bernoulli(which, 1 / 3, names) * jax.random.uniform(how, names)
        face: Expression = still.replace(activations=active)
        return head.vertices(thin, identity, face)

    return jax.jit(jax.vmap(one))


def spread_vertices(vertices: np.ndarray, count: int) -> np.ndarray:
    """(count,) ids of vertices spread evenly: each is the farthest from those before it; 0 keeps all."""
    if count <= 0 or count >= len(vertices):
        return np.arange(len(vertices))
    chosen = np.zeros(count, np.int64)
    distance = np.full(len(vertices), np.inf)
    for i in range(1, count):
        distance = np.minimum(distance, np.sum((vertices - vertices[chosen[i - 1]]) ** 2, axis=-1))
        chosen[i] = int(np.argmax(distance))
    return np.sort(chosen)


def _dots(vertices: np.ndarray, redness: np.ndarray, side: int = 192) -> np.ndarray:
    """(side, side, 3) picture of points from the front, the far ones first and darker."""
    picture = np.full((side, side, 3), 24, np.uint8)
    span = 0.32  # metres across the picture
    near = np.clip((vertices[:, 2] + 0.1) / 0.2, 0, 1)
    for i in np.argsort(vertices[:, 2]):
        x = int((vertices[i, 0] / span + 0.5) * side)
        y = int((0.5 - vertices[i, 1] / span) * side)
        red = float(np.clip(redness[i], 0, 1))
        colour = (70 + 185 * near[i]) * np.array([1.0, 1 - 0.8 * red, 1 - 0.8 * red])
        picture[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = colour.astype(np.uint8)
    return picture
