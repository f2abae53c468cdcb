"""flax nnx networks as pure functions of nested dicts, which is what recipes and checkpoints hold."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from facejax.geometry.records import PRNGKey, PyTree
from facejax.models.layers import PureNetwork


class Pure:
    """A network without variables of its own: `init(key)` makes them, calls take them.

    >>> import jax, jax.numpy as jnp
    >>> net = Pure(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
    >>> params = net.init(jax.random.key(0))
    >>> sorted(params), net(params, jnp.ones(3)).shape
    (['bias', 'kernel'], (2,))
    """

    def __init__(self, make: Callable[[nnx.Rngs], Any]) -> None:
        """make: builds the network from its random streams. Only `nnx.Param` variables are allowed."""
        self._network = PureNetwork(make)

    def init(self, key: PRNGKey) -> PyTree:
        """Parameters as nested dicts; entries of lists go by their number, as text."""
        params, rest = self._network.init(key)
        if jax.tree.leaves(rest):
            raise ValueError(f"Only nnx.Param variables are allowed here, got also {sorted(rest)}: use PureNetwork.")
        return params

    def __call__(self, params: PyTree, *inputs: Any, method: str = "__call__") -> Any:
        """The network's method on these inputs."""
        return self._network(params, {}, *inputs, method=method)[0]
