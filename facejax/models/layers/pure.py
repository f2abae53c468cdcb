"""flax nnx networks as pure functions of nested dicts."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from facejax.geometry.records import PRNGKey, PyTree


class PureNetwork:
    """An nnx network as pure functions of nested dicts: `params` is what is optimised, `rest` what else it holds.

    >>> import jax.numpy as jnp
    >>> from facejax.models.layers import Dense
    >>> net = PureNetwork(lambda rngs: Dense(3, 2, rngs=rngs))
    >>> params, rest = net.init(jax.random.key(0))
    >>> y, rest = net(params, rest, jnp.ones(3))
    >>> sorted(params), rest, y.shape
    (['bias', 'gain', 'kernel'], {}, (2,))
    """

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module]) -> None:
        """make: builds the network from its random streams; it keeps no stream."""
        self._make = make
        shapes = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
        self._graph, (self._params, self._rest) = _split(shapes)

    def init(self, key: PRNGKey) -> tuple[PyTree, PyTree]:
        """(params, rest), deterministic from the key."""
        _, (params, rest) = _split(self._make(nnx.Rngs(key)))
        return _named(nnx.to_pure_dict(params)), _named(nnx.to_pure_dict(rest))

    def __call__(self, params: PyTree, rest: PyTree, *inputs: Any, method: str = "__call__") -> tuple[Any, PyTree]:
        """(what the network's method returns, `rest` after it). The arguments are left as they are."""
        weights = nnx.map_state(lambda path, leaf: leaf.replace(_at(params, path)), self._params)
        others = nnx.map_state(lambda path, leaf: leaf.replace(_at(rest, path)), self._rest)
        # Without the copy, an eager call that changes a variable would change what the caller holds.
        network = nnx.merge(self._graph, weights, others, copy=True)
        result = getattr(network, method)(*inputs)
        return result, _named(nnx.to_pure_dict(_split(network)[1][1]))


def count_parameters(tree: PyTree) -> int:
    """How many numbers the leaves of a tree hold, arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _split(network: Any) -> tuple[Any, tuple[Any, Any]]:
    """(graph, (parameters, the rest)) of a network."""
    graph, *parts = nnx.split(network, nnx.Param, ...)
    params, rest = parts
    return graph, (params, rest)


def _named(tree: Any) -> Any:
    """Keys as text: entries of lists go by their number."""
    return {str(k): _named(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def _at(tree: PyTree, path: tuple) -> Any:
    for name in path:
        tree = tree[str(name)]
    return tree
