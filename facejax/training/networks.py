"""flax nnx networks as pure functions of nested dicts, which is what recipes and checkpoints hold."""

from collections.abc import Callable
from typing import Any

from flax import nnx

from facejax.geometry.records import PRNGKey, PyTree


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
        self._make = make
        self._graph, self._shapes = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param)

    def init(self, key: PRNGKey) -> PyTree:
        """Parameters as nested dicts; entries of lists go by their number, as text."""
        return _named(nnx.to_pure_dict(nnx.state(self._make(nnx.Rngs(key)), nnx.Param)))

    def __call__(self, params: PyTree, *inputs: Any, method: str = "__call__") -> Any:
        """The network's method on these inputs."""
        state = nnx.map_state(lambda path, leaf: leaf.replace(_at(params, path)), self._shapes)
        return getattr(nnx.merge(self._graph, state), method)(*inputs)


def _named(tree: Any) -> Any:
    return {str(k): _named(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def _at(tree: PyTree, path: tuple) -> Any:
    for name in path:
        tree = tree[str(name)]
    return tree
