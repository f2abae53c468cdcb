"""One optimiser for every stage: Adam over a filtered tree of variables, as a scan."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from facejax.geometry.records import PyTree

RATES: Mapping[str, float] = {
    "turn": 0.01,
    "anchor": 0.01,
    "log_scale": 0.005,
    "log_focal": 0.02,
    "activations": 0.02,
    "gaze": 0.02,
    "eyelids": 0.03,
    "shape": 0.05,
    "skin": 0.05,
    "light": 0.02,
    "texture": 0.01,
}
"""Learning rates by name of the leaf; any other leaf moves at 0.01."""

_FROZEN = ("base",)  # constants that travel with variables


def path_name(path: tuple) -> str:
    """A key path as dotted names, e.g. `frame.pose.turn`."""
    return ".".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def split(variables: PyTree, free: tuple[str, ...]) -> tuple[PyTree, PyTree]:
    """(moving, held): the same tree twice, with None where a leaf belongs to the other.

    free: prefixes of dotted paths.
    """

    def moves(path: tuple) -> bool:
        name = path_name(path)
        return name.split(".")[-1] not in _FROZEN and any(name == f or name.startswith(f + ".") for f in free)

    moving = jax.tree_util.tree_map_with_path(lambda p, x: x if moves(p) else None, variables)
    held = jax.tree_util.tree_map_with_path(lambda p, x: None if moves(p) else x, variables)
    return moving, held


def join(moving: PyTree, held: PyTree) -> PyTree:
    """Inverse of `split`."""
    return jax.tree_util.tree_map(lambda a, b: b if a is None else a, moving, held, is_leaf=lambda x: x is None)


def minimise(
    loss: Callable[[PyTree], Float[Array, ""]],
    variables: PyTree,
    free: tuple[str, ...],
    *,
    steps: int,
    rate: float = 1.0,
) -> tuple[PyTree, Float[Array, "steps"]]:
    """Run Adam on the leaves under `free`, each at its own rate (`RATES`), with a cosine decay to a twentieth.

    Returns the variables and the loss before each step. Pure; meant to be called inside one jit.
    """
    moving, held = split(variables, free)
    rates = jax.tree_util.tree_map_with_path(lambda p, x: rate * RATES.get(path_name(p).split(".")[-1], 0.01), moving)
    schedule = optax.cosine_decay_schedule(1.0, max(steps, 1), alpha=0.05)
    adam = optax.scale_by_adam(b1=0.9, b2=0.99)

    def step(carry: tuple, i: Array) -> tuple[tuple, Array]:
        moving, state = carry
        value, gradient = jax.value_and_grad(lambda m: loss(join(m, held)))(moving)
        gradient = jax.tree_util.tree_map(lambda g: jnp.where(jnp.isfinite(g), g, 0.0), gradient)
        direction, state = adam.update(gradient, state, moving)
        moving = jax.tree_util.tree_map(lambda m, d, r: m - schedule(i) * r * d, moving, direction, rates)
        return (moving, state), value

    (moving, _), losses = jax.lax.scan(step, (moving, adam.init(moving)), jnp.arange(steps))
    return join(moving, held), losses
