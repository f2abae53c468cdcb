"""What every training recipe owes the engine: one suite over all that are registered.

A recipe joins by one line in `TINY`: what of its config makes it small. What it learns is for its own tests.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_recipes_deep import APPEARANCE, NETWORK

from facejax.training import Recipe, find_recipe, make_step, preset_of, recipe_names, rehearse
from facejax.training.config import Config, from_json, to_json
from facejax.training.recipe import config_type
from facejax.training.recipes.head_autoencoder import Heads, Network

TINY = {
    "head-autoencoder": {"data": Heads(vertices=24), "network": Network(width=16, code=4)},
    "deep-appearance": {"network": APPEARANCE},
    "deep-lighting": {"appearance": APPEARANCE, "network": NETWORK},
}
BATCH = 2


@pytest.fixture(params=list(TINY))
def name(request):
    return request.param


@functools.cache
def recipe(name) -> Recipe:
    kind = find_recipe(name)
    return kind(dataclasses.replace(preset_of(kind, "small").config, **TINY[name]))


@functools.cache
def begun(name):
    """(params, state, batch), none of them of real data."""
    state, batch = rehearse(recipe(name), BATCH)
    return state["params"], state["state"], batch


@functools.cache
def loss_of(name):
    """(params, state, batch, key) -> ((total, (terms, state)), gradient); compiled."""

    def total(params, state, batch, key):
        terms, state = recipe(name).loss(params, state, batch, key)
        return sum(terms.values()), (terms, state)

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def finite(tree) -> bool:
    return all(
        np.isfinite(leaf).all()
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating)
    )


def shapes(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.asarray(x).dtype), tree)


def test_all_that_are_registered_are_here():
    assert set(TINY) == set(recipe_names())


def test_it_says_what_it_is(name):
    kind = find_recipe(name)
    assert issubclass(kind, Recipe)
    assert kind.name == name
    assert kind.summary.endswith(".")
    assert kind.score
    assert set(range(1, kind.version)) <= set(kind.migrations)  # every older checkpoint can be read


def test_its_presets_are_configs_with_what_came_of_them(name):
    kind = find_recipe(name)
    assert {"small", "paper"} <= set(kind.presets)
    for label, preset in kind.presets.items():
        assert list(vars(preset))[:4] == ["command", "hardware", "time", "score"]
        assert preset.command.startswith(f"facejax train {name} --preset {label} ")
        assert preset.hardware
        assert preset.time
        assert preset.score
        config = preset.config
        assert isinstance(config, Config)
        assert isinstance(config, config_type(kind))
        assert from_json(type(config), json.loads(json.dumps(to_json(config)))) == config
        assert config.run.steps > 0
        assert config.run.batch > 0
        kind(config).optimiser()


def test_it_can_be_rehearsed(name):
    """Else benchmarks/device.py could not measure it."""
    assert find_recipe(name).rehearsal is not Recipe.rehearsal
    params, state, batch = begun(name)
    assert finite((params, state, batch))
    assert all(len(rows) == BATCH for rows in batch.values())
    for leaf in jax.tree.leaves(params):  # what an optimiser moves
        assert leaf.dtype == jnp.float32
    key = jax.random.key(4)
    one, other, again = (recipe(name).rehearsal(k) for k in (key, jax.random.key(5), key))
    assert shapes(one) == shapes(other)
    same = jax.tree.map(np.array_equal, one, again)
    assert all(jax.tree.leaves(same))
    assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def test_its_loss_is_finite_named_and_the_same_for_a_key(name):
    params, state, batch = begun(name)
    before = jax.tree.map(np.array, (params, state, batch))
    (total, (terms, after)), gradient = loss_of(name)(params, state, batch, jax.random.key(1))
    assert all(isinstance(term, str) and value.shape == () for term, value in terms.items())
    assert finite((total, terms, gradient))
    assert shapes(after) == shapes(state)
    assert shapes(gradient) == shapes(params)
    assert optax.global_norm(gradient) > 0
    (again, _), slope = loss_of(name)(params, state, batch, jax.random.key(1))
    assert again == total
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, slope, gradient)))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before, (params, state, batch))))


def test_a_step_against_its_gradient_lowers_its_loss(name):
    params, state, batch = begun(name)
    key = jax.random.key(1)
    (before, _), gradient = loss_of(name)(params, state, batch, key)
    square = optax.global_norm(gradient) ** 2
    wanted = 1e-3 * before
    ahead = jax.tree.map(lambda p, g: p - wanted / square * g, params, gradient)
    (after, _), _ = loss_of(name)(ahead, state, batch, key)
    assert float(before - after) == pytest.approx(float(wanted), rel=0.5)


def test_its_own_optimiser_lowers_its_loss(name):
    state, batch = rehearse(recipe(name), BATCH)
    step = jax.jit(make_step(recipe(name)))
    first = None
    for _ in range(12):  # rates begin near 0
        state, numbers = step(state, batch)
        assert finite(numbers)
        first = numbers if first is None else first
    assert int(state["step"]) == 12
    key = jax.random.key(1)
    (before, _), _ = loss_of(name)(*begun(name), key)
    (after, _), _ = loss_of(name)(state["params"], state["state"], batch, key)
    assert after < before
    for old, new in zip(*map(jax.tree.leaves, (begun(name)[0], state["params"])), strict=True):
        assert old.shape == new.shape


def test_it_evaluates_each_example_by_its_score(name):
    params, state, batch = begun(name)
    errors = jax.jit(recipe(name).evaluate)(params, state, batch)
    assert recipe(name).score in errors
    assert all(rows.shape == (BATCH,) for rows in errors.values())
    assert finite(errors)
    for rows in errors.values():  # the examples are all the same
        np.testing.assert_allclose(rows, rows[0], rtol=1e-3)
