"""One training engine, and one recipe file per system."""

from facejax.training.config import Config, Machine, Run, override
from facejax.training.engine import NonFiniteLossError, Outcome, make_step, rehearse, train
from facejax.training.hosts import join_hosts
from facejax.training.networks import Pure
from facejax.training.recipe import Preset, Recipe, Terms, find_recipe, preset_of, recipe_names, registered_recipe

__all__ = [
    "Config",
    "Machine",
    "NonFiniteLossError",
    "Outcome",
    "Preset",
    "Pure",
    "Recipe",
    "Run",
    "Terms",
    "find_recipe",
    "join_hosts",
    "make_step",
    "override",
    "preset_of",
    "recipe_names",
    "registered_recipe",
    "rehearse",
    "train",
]
