"""One optimiser for every stage: optax over a filtered tree of variables, as a scan."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

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
    "code": 0.05,
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


@dataclasses.dataclass(frozen=True)
class Descent:
    """How whitened per-frame variables descend: Nesterov's method with each frame's gradient clipped."""

    rate: float = 0.4
    momentum: float = 0.8
    clip: float = 30.0
    """Longest gradient of one frame, in whitened units: what keeps a bad start from jumping."""
    floor: float = 10.0
    """Smallest curvature that is believed."""


def whitening(curvature: Float[Array, "p p"], floor: float) -> Float[Array, "p p"]:
    """Inverse square root of |curvature|, its eigenvalues floored: steps of equal length then change a loss equally."""
    values, vectors = jnp.linalg.eigh((curvature + curvature.T) / 2)
    scaled = vectors / jnp.sqrt(jnp.maximum(jnp.abs(values), floor))
    return jnp.matmul(scaled, vectors.T, precision=jax.lax.Precision.HIGHEST)


def frame_curvature(loss: Callable[[PyTree], Float[Array, ""]], frame: PyTree) -> Float[Array, "p p"]:
    """Hessian of one frame's loss in its moving leaves, flattened (`split` already done; None leaves do not count)."""
    flat, unravel = ravel_pytree(frame)
    return jax.hessian(lambda x: loss(unravel(x)))(flat)


def minimise(
    loss: Callable[[PyTree], Float[Array, ""]],
    variables: PyTree,
    free: tuple[str, ...],
    *,
    steps: int,
    rate: float = 1.0,
    metric: Float[Array, "p p"] | None = None,
    descent: Descent = Descent(),
) -> tuple[PyTree, Float[Array, "steps"]]:
    """Minimise a loss over the leaves under `free`, as one scan with a cosine decay to a twentieth.

    Leaves move by Adam at their own rates (`RATES`). With a `metric` (`whitening` of one frame's curvature) the leaves
    of `variables["frame"]`, whose first axis is frames, move in whitened coordinates by Nesterov's method instead:
    pose, expression and light pull at the same pixels, and this takes a tenth of Adam's steps to the same loss. `loss`
    is then a mean over frames.

    Returns the variables and the loss before each step. Pure; meant to be called inside one jit.
    """
    moving, held = split(variables, free)
    decay = optax.cosine_decay_schedule(1.0, max(steps, 1), alpha=0.05)
    if metric is None:
        start, place = moving, lambda m: join(m, held)
    else:
        flat = jax.vmap(lambda t: ravel_pytree(t)[0])(moving["frame"])
        unravel = ravel_pytree(jax.tree_util.tree_map(lambda x: x[0], moving["frame"]))[1]
        start = {**moving, "frame": jnp.zeros_like(flat)}

        def place(m: PyTree) -> PyTree:
            rows = flat + jnp.matmul(m["frame"], metric, precision=jax.lax.Precision.HIGHEST)
            return join({**m, "frame": jax.vmap(unravel)(rows)}, held)

    optimiser = _optimiser(start, rate, metric is not None, descent)

    def step(carry: tuple, i: Array) -> tuple[tuple, Array]:
        current, state = carry
        value, gradient = jax.value_and_grad(lambda m: loss(place(m)))(current)
        gradient = jax.tree_util.tree_map(lambda g: jnp.where(jnp.isfinite(g), g, 0.0), gradient)
        update, state = optimiser.update(gradient, state, current)
        current = jax.tree_util.tree_map(lambda m, u: m + decay(i) * u, current, update)
        return (current, state), value

    (solved, _), losses = jax.lax.scan(step, (start, optimiser.init(start)), jnp.arange(steps))
    return place(solved), losses


def stepwise(
    loss: Callable[..., Float[Array, ""]], free: tuple[str, ...], *, steps: int, rate: float = 1.0
) -> Callable[..., PyTree]:
    """`minimise` without metric as a loop on the host over one compiled step: (variables, draws, *rest) -> variables.

    loss: (variables, drawn, *rest). The same numbers as the scan; for variables with kernels of convolutions, whose
    derivative XLA computes ten times slower inside a loop on the CPU (2.0 in place of 0.2 seconds a step for an
    avatar's lighting network).
    """
    decay = optax.cosine_decay_schedule(1.0, max(steps, 1), alpha=0.05)

    @jax.jit
    def step(current: PyTree, state: PyTree, held: PyTree, i: Array, drawn: Array, *rest: PyTree) -> tuple:
        gradient = jax.grad(lambda m: loss(join(m, held), drawn, *rest))(current)
        gradient = jax.tree_util.tree_map(lambda g: jnp.where(jnp.isfinite(g), g, 0.0), gradient)
        update, state = _optimiser(current, rate, False, Descent()).update(gradient, state, current)
        return jax.tree_util.tree_map(lambda m, u: m + decay(i) * u, current, update), state

    def run(variables: PyTree, draws: Int[Array, "steps b"], *rest: PyTree) -> PyTree:
        moving, held = split(variables, free)
        moving = jax.tree_util.tree_map(jnp.asarray, moving)
        state = _optimiser(moving, rate, False, Descent()).init(moving)
        for i in range(steps):
            moving, state = step(moving, state, held, jnp.asarray(i), draws[i], *rest)
        return join(moving, held)

    return run


def _optimiser(start: PyTree, rate: float, whitened: bool, descent: Descent) -> optax.GradientTransformation:
    def at_own_rates(update: PyTree, _: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda p, u: -rate * RATES.get(path_name(p).split(".")[-1], 0.01) * u, update
        )

    adam = optax.chain(optax.scale_by_adam(b1=0.9, b2=0.99), optax.stateless(at_own_rates))
    if not whitened:
        return adam
    n_frames = start["frame"].shape[0]

    def clipped(update: PyTree, _: PyTree) -> PyTree:
        def one(g: Array) -> Array:
            g = n_frames * g
            return g * jnp.minimum(1.0, descent.clip / jnp.maximum(jnp.linalg.norm(g, axis=1, keepdims=True), 1e-9))

        return jax.tree_util.tree_map(one, update)

    nesterov = optax.chain(optax.stateless(clipped), optax.sgd(descent.rate * rate, descent.momentum, nesterov=True))
    labels = {k: "frame" if k == "frame" else "other" for k in start}  # a label stands for all leaves below it
    return optax.partition({"frame": nesterov, "other": adam}, labels)
