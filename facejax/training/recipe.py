"""What the engine asks of a system: `Recipe`. A system is a file with one subclass; the engine knows none by name."""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from facejax.data.sources import Example, Source
from facejax.geometry.errors import InputError
from facejax.geometry.records import PRNGKey, PyTree
from facejax.training.config import Config, from_json, nearest

C = TypeVar("C", bound=Config)
Terms = dict[str, Float[Array, ""]]
"""The terms of a loss by name; their sum is what training minimises."""
Migration = Callable[[dict[str, Any], dict[str, np.ndarray]], tuple[dict[str, Any], dict[str, np.ndarray]]]
"""(config as JSON, arrays by path) of one version to those of the next."""


@dataclasses.dataclass(frozen=True)
class Preset(Generic[C]):
    """A config that was run, and what came of it."""

    command: str
    """The line that repeats it."""
    hardware: str
    """What it ran on."""
    time: str
    """How long it took there."""
    score: str
    """What it reached; says so where it was never measured."""
    config: C
    """The config."""


class Recipe(Generic[C]):
    """Parameters, loss, data, schedule and evaluation of one system, made from its config.

    `params` and `state` are nested dicts with names as keys and arrays as leaves: what is optimised, and what else
    belongs to the model (statistics of the data, running means). All functions of them are pure, and take a batch: a
    dict of arrays with the examples along the first axis.
    """

    name: ClassVar[str]
    """As the command calls it."""
    summary: ClassVar[str]
    """One line for `facejax train --list`."""
    version: ClassVar[int] = 1
    """Goes up when an older checkpoint would no longer mean the same; see `migrations`."""
    migrations: ClassVar[Mapping[int, Migration]] = {}
    """From each earlier version to the next one."""
    presets: ClassVar[Mapping[str, Preset]]
    """Ready configs by name."""
    score: ClassVar[str]
    """The value of `evaluate` that decides which checkpoint is best; lower is better."""

    def __init__(self, config: C) -> None:
        self.config = config

    def data(self, folder: Path, split: str) -> Source:
        """Examples of the split "train" or "test" of a data folder; `InputError` where there are none."""
        raise NotImplementedError

    def write_data(self, folder: Path) -> None:
        """Writes a data folder for this config, where a recipe can make its own data."""
        raise InputError(f"{self.name} cannot make its data: see its page in docs/ for where data comes from.")

    def augment(self, example: Example, rng: np.random.Generator) -> Example:
        """An example as this epoch shows it; `rng` depends on the run's seed and the place in it alone."""
        del rng
        return example

    def init(self, key: PRNGKey, data: Source) -> tuple[PyTree, PyTree]:
        """(params, state) to start from."""
        raise NotImplementedError

    def rehearsal(self, key: PRNGKey) -> tuple[PyTree, PyTree, Example]:
        """(params, state, example) of random numbers in the shapes that this config trains on, without any data.

        The example is as `loss` sees one. They serve to measure what a step takes, and mean nothing else. Raises
        `InputError` where a recipe has none.
        """
        raise InputError(
            f"{self.name} says no shapes of its own, so a step of it cannot be measured without data: give it a method "
            "`rehearsal`, or train on its data and read the run's metrics.jsonl."
        )

    def loss(self, params: PyTree, state: PyTree, batch: PyTree, key: PRNGKey) -> tuple[Terms, PyTree]:
        """(terms, state): what is minimised is the sum of the terms, each a mean over the batch, already weighted."""
        raise NotImplementedError

    def optimiser(self) -> optax.GradientTransformation:
        """Optimiser and learning-rate schedule."""
        raise NotImplementedError

    def evaluate(self, params: PyTree, state: PyTree, batch: PyTree) -> dict[str, Float[Array, "b"]]:
        """Errors of each example, by name and unit; the engine averages them over the test split."""
        raise NotImplementedError

    def pictures(self, params: PyTree, state: PyTree, batch: PyTree) -> dict[str, np.ndarray]:
        """Sample pictures, (height, width, 3) uint8 sRGB by name, of a few test examples; none by default."""
        del params, state, batch
        return {}

    def sharding_rules(self) -> tuple[tuple[str, PartitionSpec], ...]:
        """(regular expression on a parameter's path, PartitionSpec) pairs, the first match holds.

        The mesh has the axes "data" and "model". What nothing matches is split by the engine's own rule: the longest
        axis that "model" divides, where the array is large enough to be worth it.
        """
        return ()


_BUILT_IN: dict[str, str] = {
    "deep-appearance": "facejax.training.recipes.deep_appearance",
    "deep-lighting": "facejax.training.recipes.deep_lighting",
    "head-autoencoder": "facejax.training.recipes.head_autoencoder",
}
_ENTRY_POINTS = "facejax.recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that come with facejax or with other installed packages."""
    return sorted({*_BUILT_IN, *(point.name for point in importlib.metadata.entry_points(group=_ENTRY_POINTS))})


def find_recipe(name_or_file: str) -> type[Recipe]:
    """The recipe that a person named: one of `recipe_names`, or that in a `.py` file of their own, which is run.

    Only for what was typed. A name that was read from a file (a manifest, a config) is somebody else's word, and goes
    to `registered_recipe`, which runs no file. Raises `InputError`, with the near name, where there is none.
    """
    if name_or_file.endswith(".py"):
        return _only_recipe(_module_of(Path(name_or_file)), name_or_file)
    return registered_recipe(name_or_file)


def registered_recipe(name: str) -> type[Recipe]:
    """The recipe of that name, of facejax or of another installed package; never that of a file.

    Other packages offer recipes by the entry point group `facejax.recipes`: a name and the module that holds the class.
    Raises `InputError`, with the near name, where there is none.
    """
    for point in importlib.metadata.entry_points(group=_ENTRY_POINTS, name=name):
        found = point.load()
        return found if isinstance(found, type) else _only_recipe(found, name)
    if name not in _BUILT_IN:
        known = recipe_names()
        raise InputError(
            f"There is no recipe {name!r}{nearest(name, known) or '; there are ' + ', '.join(known) + '.'}"
        )
    return _only_recipe(importlib.import_module(_BUILT_IN[name]), name)


def preset_of(recipe: type[Recipe], name: str) -> Preset:
    """A recipe's preset; `InputError`, with the near name, where there is none."""
    if name not in recipe.presets:
        near = nearest(name, recipe.presets) or f"; there are {', '.join(recipe.presets)}."
        raise InputError(f"{recipe.name} has no preset {name!r}{near}")
    return recipe.presets[name]


def revive(recipe: type[Recipe], version: int, config: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    """(recipe, arrays) of a checkpoint of any version so far, migrated step by step.

    config: as JSON. arrays: by path. Raises `InputError` for a version from the future, or one that nothing migrates.
    """
    values = dict(config)
    if version > recipe.version:
        raise InputError(
            f"The checkpoint is of version {version} of {recipe.name}, newer than version {recipe.version}, which "
            "this facejax has: upgrade it."
        )
    while version < recipe.version:
        if version not in recipe.migrations:
            raise InputError(
                f"The checkpoint is of version {version} of {recipe.name}, from which this facejax has no migration to "
                f"version {recipe.version}: use the facejax that wrote it."
            )
        values, arrays = recipe.migrations[version](values, arrays)
        version += 1
    return recipe(from_json(config_type(recipe), values)), arrays


def config_type(recipe: type[Recipe]) -> type[Config]:
    """The class of a recipe's configs."""
    return type(next(iter(recipe.presets.values())).config)


def _module_of(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"No such recipe file: {path}.")
    spec = importlib.util.spec_from_file_location(f"facejax_recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        where = f"{error.filename or path}, line {error.lineno}"
        raise InputError(f"The recipe file {path} is not valid Python ({where}: {error.msg}): mend it.") from error
    return module


def _only_recipe(module: Any, name: str) -> type[Recipe]:
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Recipe) and value.__module__ == module.__name__
    ]
    if len(own) != 1:
        raise InputError(f"Expected one subclass of facejax.training.Recipe in {name}, found {len(own)}.")
    return own[0]
