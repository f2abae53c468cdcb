"""A recipe as small as one can be, for tests of the engine: a line through noisy points by a two-layer network."""

import dataclasses
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from facejax.data.sources import RecordFolder, write_records
from facejax.training import Config, Machine, Preset, Recipe, Run

WIDTH = 2**12  # large enough that the engine splits the first layer


@dataclasses.dataclass(frozen=True)
class ToyConfig(Config):
    """A toy."""

    rate: float = 1e-3
    """Learning rate."""
    wobble: float = 0.01
    """Noise drawn inside the step."""
    rule: bool = False
    """Split the second layer by a rule of the recipe's own."""


class Toy(Recipe[ToyConfig]):
    """Learns y from x; an example is {"x": (4,), "y": ()}."""

    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "A line through points."
    score: ClassVar[str] = "error"
    presets: ClassVar = {
        "small": Preset(
            command="facejax train tests/toy_recipe.py --data DIR --out RUN",
            hardware="any",
            time="a second",
            score="none",
            config=ToyConfig(
                run=Run(steps=12, batch=8),
                machine=Machine(log_every=4, eval_every=0, save_every=5, threads=1, tensorboard="off"),
            ),
        )
    }

    def data(self, folder, split):
        return RecordFolder(folder, split)

    def augment(self, example, rng):
        return {**example, "x": example["x"] + np.float32(0.01) * rng.standard_normal(4, np.float32)}

    def init(self, key, data):
        first, second = jax.random.split(key)
        params = {
            "in": {"kernel": 0.5 * jax.random.normal(first, (4, WIDTH)), "bias": jnp.zeros(WIDTH)},
            "out": {"kernel": jax.random.normal(second, (WIDTH, 1)) / WIDTH**0.5},
        }
        return params, {"seen": jnp.zeros(()), "mean": jnp.asarray(np.mean([data[i]["y"] for i in range(len(data))]))}

    def loss(self, params, state, batch, key):
        x = batch["x"] + self.config.wobble * jax.random.normal(key, batch["x"].shape)
        missed = self.predict(params, state, x) - batch["y"]
        terms = {"square": jnp.mean(missed**2), "bias": 1e-4 * jnp.mean(params["in"]["bias"] ** 2)}
        return terms, {**state, "seen": state["seen"] + len(x)}

    def predict(self, params, state, x):
        hidden = jnp.tanh(jnp.matmul(x, params["in"]["kernel"], precision="highest") + params["in"]["bias"])
        return state["mean"] + jnp.matmul(hidden, params["out"]["kernel"], precision="highest")[:, 0]

    def optimiser(self):
        return optax.adam(self.config.rate)

    def evaluate(self, params, state, batch):
        return {"error": jnp.abs(self.predict(params, state, batch["x"]) - batch["y"]), "size": jnp.abs(batch["y"])}

    def pictures(self, params, state, batch):
        return {"bars": np.full((4, len(batch["y"]), 3), 200, np.uint8)}

    def sharding_rules(self):
        return (("out/kernel", PartitionSpec("model")),) if self.config.rule else ()


def make_data(folder: Path, train: int = 40, test: int = 13, bad: int | None = None) -> Path:
    """A data folder for the toy; the train example `bad` is not a number."""
    rng = np.random.default_rng(0)

    def examples(count):
        for i in range(count):
            x = rng.standard_normal(4, np.float32)
            yield {"x": x, "y": np.float32(np.nan if i == bad and count == train else x.sum())}

    write_records(folder, {"train": examples(train), "test": examples(test)}, shard_size=16)
    return folder
