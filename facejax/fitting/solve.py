"""How unknowns are moved: optax over a filtered tree of variables, and Gauss-Newton for sums of squares.

Every solver takes its data as arguments and is made once for a scene and a turn, so that another clip compiles nothing.
A solve returns its losses and whether it stayed finite: what is not finite stops what it would have moved.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from facejax.fitting.terms.term import Observed, Term
from facejax.geometry.records import PyTree, Record, record
from facejax.models.head import HeadModel
from facejax.scenes import Scene
from facejax.scenes.unknowns import path_name, take_frames

RATES: Mapping[str, float] = {
    "turn": 0.01,
    "anchor": 0.01,
    "log_scale": 0.005,
    "log_zoom": 0.02,
    "light": 0.02,
}
"""Learning rates by name of the leaf, of what every scene has; a head's own leaves move at its `rates`, any other leaf
at 0.01."""

_FROZEN = ("base", "lens")  # constants that travel with variables


@dataclasses.dataclass(frozen=True)
class Descent:
    """Whitened descent: Nesterov's method, each frame's gradient clipped. Pose, expression and light pull at the same
    pixels, and this takes a tenth of Adam's steps to the same loss; what frames share moves by Adam beside it."""

    rate: float = 0.4
    momentum: float = 0.8
    clip: float = 30.0
    """Longest gradient of one frame, in whitened units: what keeps a bad start from jumping."""
    floor: float = 10.0
    """Smallest curvature that is believed."""


@dataclasses.dataclass(frozen=True)
class Lots:
    """Adam; at each step some of the frames are drawn by lot, or all."""

    frames: int = 4
    seed: int = 0
    light_frames: float = 0.0
    """Standard deviation in frames of the Gaussian in time that frames' lights are means by; 0: lights of their own."""


@dataclasses.dataclass(frozen=True)
class GaussNewton:
    """Each frame on its own, for terms that are sums of squares: `steps` times observed anew and solved."""

    iterations: int = 3
    robust_px: float = 1.5
    """Residuals further off pull as if they were this far."""
    code_prior: float = 0.0
    """Of the mean square of the leaves under `frame.code`, over the term's own weight."""
    frames: int = 4
    """Taken at once."""


@dataclasses.dataclass(frozen=True)
class Settle:
    """The terms' closed forms, see `Term.settle`."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """One optimisation: what is compared, what moves, for how long, and how."""

    terms: tuple[Term, ...]
    free: tuple[str, ...] = ()
    """Leaves that move, as prefixes of dotted paths in {"params", "clip", "frame"}, such as "frame.pose"; or roles of
    the head's leaves, such as "motion"."""
    steps: int = 0
    rate: float = 1.0
    """Factor on every leaf's own learning rate."""
    by: Descent | Lots | GaussNewton | Settle = Descent()


@record
class Solved(Record):
    """How a solve ended."""

    variables: PyTree
    losses: Float[Array, "s"]
    """Before each step."""
    last: Float[Array, "t f"]
    """Of each term, for each frame, before the last step."""
    finite: Bool[Array, "f"]
    """Frames whose loss and gradient stayed finite throughout; where not, they stopped."""
    whole: Bool[Array, ""]
    """The same of what frames share."""


# -- which leaves move -------------------------------------------------------------------------------------------------


def paths_of(roles: Mapping[str, tuple[str, ...]], free: tuple[str, ...]) -> tuple[str, ...]:
    """`free` with roles replaced by the head's paths; roles that a head does not have name nothing."""
    return tuple(p for name in free for p in (roles.get(name, ()) if "." not in name else (name,)))


def split(variables: PyTree, free: tuple[str, ...]) -> tuple[PyTree, PyTree]:
    """(moving, held): the same tree twice, with None where a leaf belongs to the other.

    free: prefixes of dotted paths.
    """

    def moves(path: tuple) -> bool:
        name = path_name(path)
        return not set(name.split(".")) & set(_FROZEN) and any(name == f or name.startswith(f + ".") for f in free)

    moving = jax.tree_util.tree_map_with_path(lambda p, x: x if moves(p) else None, variables)
    held = jax.tree_util.tree_map_with_path(lambda p, x: None if moves(p) else x, variables)
    return moving, held


def join(moving: PyTree, held: PyTree) -> PyTree:
    """Inverse of `split`."""
    return jax.tree_util.tree_map(lambda a, b: b if a is None else a, moving, held, is_leaf=lambda x: x is None)


# -- what is minimised -------------------------------------------------------------------------------------------------


def objective(
    scene: Scene,
    terms: tuple[Term, ...],
    variables: PyTree,
    seen: tuple[Observed, ...],
    weight: Float[Array, "f"],
    in_time: bool = False,
) -> tuple[Float[Array, ""], Float[Array, "t f"]]:
    """(mean over frames of all terms, and what they share; each term's loss of each frame).

    variables: {"params", "clip", "frame"}, the last with a leading axis. weight: 1 for a frame that counts, else 0.
    in_time: whether the frames follow each other, so that terms over time count.
    """
    params, clip, frames = variables["params"], variables["clip"], variables["frame"]
    count = jnp.maximum(jnp.sum(weight), 1.0)
    total, each = jnp.zeros(()), []
    for term, held in zip(terms, seen, strict=True):
        told = term.common(scene, params, clip, frames, held, weight)
        losses = jax.vmap(functools.partial(term.loss, scene, params, clip), in_axes=(0, 0, None))(
            frames, told.frames, told.shared
        )
        total += jnp.sum(jnp.where(weight > 0, losses, 0.0)) / count + term.clip_loss(scene, params, clip, told.shared)
        if in_time:
            total += term.over_time(scene, params, clip, frames, weight)
        each.append(losses)
    return total, jnp.stack(each)


# -- whitened descent --------------------------------------------------------------------------------------------------


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
    loss: Callable[[PyTree], tuple[Float[Array, ""], Float[Array, "t f"]]],
    variables: PyTree,
    free: tuple[str, ...],
    *,
    steps: int,
    rate: float = 1.0,
    metric: Float[Array, "p p"] | None = None,
    descent: Descent = Descent(),
    rates: Mapping[str, float] = RATES,
) -> Solved:
    """Minimise a loss over the leaves under `free`, as one scan with a cosine decay to a twentieth.

    loss: variables -> (a mean over frames, each term's loss of each frame). Leaves move by Adam at their own rates
    (`rates`). With a `metric` (`whitening` of one frame's curvature) the leaves of `variables["frame"]`, whose first
    axis is frames, move in whitened coordinates, see `Descent`. Pure; meant to be called inside one jit.
    """
    moving, held = split(variables, free)
    decay = optax.cosine_decay_schedule(1.0, max(steps, 1), alpha=0.05)
    if metric is None:
        start, place = moving, lambda m: join(m, held)
    else:
        flat = jax.vmap(lambda t: ravel_pytree(t)[0])(moving["frame"])
        unravel = ravel_pytree(take_frames(moving["frame"], 0))[1]
        start = {**moving, "frame": jnp.zeros_like(flat)}

        def place(m: PyTree) -> PyTree:
            rows = flat + jnp.matmul(m["frame"], metric, precision=jax.lax.Precision.HIGHEST)
            return join({**m, "frame": jax.vmap(unravel)(rows)}, held)

    optimiser = _optimiser(start, rate, rates, descent if metric is not None else None)
    first = jax.eval_shape(lambda m: loss(place(m)), start)[1]
    alive = jnp.ones(first.shape[1], bool)

    def step(carry: tuple, i: Array) -> tuple[tuple, Array]:
        current, state, alive, whole, _ = carry
        (value, each), gradient = jax.value_and_grad(lambda m: loss(place(m)), has_aux=True)(current)
        alive = alive & _finite_rows(gradient["frame"], len(alive)) & jnp.all(jnp.isfinite(each), axis=0)
        whole = whole & _all_finite({k: v for k, v in gradient.items() if k != "frame"})
        update, state = optimiser.update(_only(gradient, alive, whole), state, current)
        update = _only(update, alive, whole)
        current = jax.tree_util.tree_map(lambda m, u: m + decay(i) * u, current, update)
        return (current, state, alive, whole, each), value

    carry = (start, optimiser.init(start), alive, jnp.asarray(True), jnp.zeros(first.shape, first.dtype))
    (solved, _, alive, whole, each), losses = jax.lax.scan(step, carry, jnp.arange(steps))
    return Solved(variables=place(solved), losses=losses, last=each, finite=alive, whole=whole)


@functools.lru_cache(maxsize=64)
def descent_solver(scene: Scene, turn: Turn, in_time: bool) -> Callable[..., Solved]:
    """(metric, variables, seen, weight, held) -> `Solved`: the compiled descent of a turn.

    held: (f,) frames that stay as they are, though others look at them. metric: of `curvature_solver`.
    """
    assert isinstance(turn.by, Descent)
    free, descent = paths_of(scene.head.roles, turn.free), turn.by

    @jax.jit
    def solve(
        metric: Array, variables: PyTree, seen: tuple[Observed, ...], weight: Array, held: Bool[Array, "f"]
    ) -> Solved:
        start = variables["frame"]

        def loss(v: PyTree) -> tuple[Array, Array]:
            frames = jax.tree_util.tree_map(lambda x, x0: jnp.where(_along(held, x), x0, x), v["frame"], start)
            return objective(scene, turn.terms, {**v, "frame": frames}, seen, weight, in_time)

        return minimise(
            loss,
            variables,
            free,
            steps=turn.steps,
            rate=turn.rate,
            metric=metric,
            descent=descent,
            rates=rates_of(scene.head),
        )

    return solve


@functools.lru_cache(maxsize=64)
def curvature_solver(scene: Scene, turn: Turn, in_time: bool) -> Callable[..., Float[Array, "p p"]]:
    """(variables, seen) -> the metric of a turn's descent, from the mean curvature over a few frames.

    Terms over time count as they would for a frame between two pairs of still neighbours.
    """
    assert isinstance(turn.by, Descent)
    free = tuple(f for f in paths_of(scene.head.roles, turn.free) if f.startswith("frame."))
    floor = turn.by.floor

    @jax.jit
    def metric(variables: PyTree, seen: tuple[Observed, ...]) -> Float[Array, "p p"]:
        params, clip = variables["params"], variables["clip"]

        def one(frame: PyTree, rows: tuple[PyTree, ...]) -> Array:
            moving, held = split({"frame": frame}, free)

            def loss(moving: PyTree) -> Array:
                current = join(moving, held)["frame"]
                total = jnp.zeros(())
                for term, row, told in zip(turn.terms, rows, seen, strict=True):
                    total += term.loss(scene, params, clip, current, row, told.shared)
                    if in_time:
                        five = jax.tree_util.tree_map(lambda x, x0: jnp.stack([x0, x0, x, x0, x0]), current, frame)
                        total += 5 * term.over_time(scene, params, clip, five, jnp.ones(5))
                return total

            return frame_curvature(loss, moving)

        rows = tuple(told.frames for told in seen)
        return whitening(jnp.mean(jax.vmap(one)(variables["frame"], rows), axis=0), floor)

    return metric


# -- Adam by lots ------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _lots_step(scene: Scene, turn: Turn) -> Callable[..., tuple]:
    """One compiled step of Adam, looped over on the host: for kernels of convolutions, whose derivative XLA computes
    ten times slower inside a loop on the CPU (2.0 in place of 0.2 seconds a step for an avatar's lighting network)."""
    decay = optax.cosine_decay_schedule(1.0, max(turn.steps, 1), alpha=0.05)

    @jax.jit
    def step(
        current: PyTree,
        state: PyTree,
        held: PyTree,
        alive: Array,
        i: Array,
        drawn: Array,
        seen: tuple[Observed, ...],
        kernel: Array | None,
    ) -> tuple:
        few = tuple(told.replace(frames=take_frames(told.frames, drawn)) for told in seen)

        def loss(moving: PyTree) -> tuple[Array, Array]:
            v = join(moving, held)
            frames = take_frames(v["frame"], drawn)
            if kernel is not None:
                means = jax.tree_util.tree_map(lambda x: jnp.tensordot(kernel[drawn], x, 1), v["frame"].light)
                frames = frames.replace(light=means)
            total, each = objective(scene, turn.terms, {**v, "frame": frames}, few, jnp.ones(len(drawn)))
            if kernel is not None:  # what all frames share belongs to the clip's light
                total += 1e-3 * jnp.mean(ravel_pytree(v["frame"].light)[0] ** 2)
            return total, each

        (value, each), gradient = jax.value_and_grad(loss, has_aux=True)(current)
        good = alive[drawn] & jnp.all(jnp.isfinite(each), axis=0)
        alive = alive.at[drawn].set(good) & _finite_rows(gradient.get("frame"), len(alive))
        whole = _all_finite({k: v for k, v in gradient.items() if k != "frame"})
        update, moved = _optimiser(current, turn.rate, rates_of(scene.head)).update(
            _only(gradient, alive, whole), state, current
        )
        update = _only(update, alive, whole)
        return jax.tree_util.tree_map(lambda m, u: m + decay(i) * u, current, update), moved, alive, whole, value, each

    return step


def by_lots(
    scene: Scene,
    turn: Turn,
    variables: PyTree,
    seen: tuple[Observed, ...],
    draws: Int[np.ndarray, "steps b"],
    kernel: Float[Array, "f f"] | None = None,
) -> Solved:
    """Adam over a turn's leaves; at each step the frames `draws[i]` are compared.

    kernel: rows by which frames' lights are means over time, see `Lots`. `last` holds the loss of each frame when it
    was last drawn.
    """
    free = paths_of(scene.head.roles, turn.free)
    variables, seen = jax.tree_util.tree_map(jnp.asarray, (variables, seen))  # once, not at every step
    moving, held = split(variables, free)
    step, state = _lots_step(scene, turn), _optimiser(moving, turn.rate, rates_of(scene.head)).init(moving)
    count = len(jax.tree_util.tree_leaves(variables["frame"])[0])
    alive, whole, losses = jnp.ones(count, bool), jnp.asarray(True), []
    last = np.zeros((len(turn.terms), count), np.float32)
    for i, drawn in enumerate(draws):
        moving, state, alive, good, value, each = step(
            moving, state, held, alive, jnp.asarray(i), jnp.asarray(drawn), seen, kernel
        )
        whole = whole & good
        losses.append(value)
        if i >= len(draws) - -(-count // max(len(drawn), 1)):
            last[:, drawn] = np.asarray(each)
    return Solved(
        variables=join(moving, held),
        losses=jnp.stack(losses) if losses else jnp.zeros(0),
        last=jnp.asarray(last),
        finite=alive,
        whole=whole,
    )


# -- Gauss-Newton ------------------------------------------------------------------------------------------------------

_RIDGE = 1e-6


@functools.lru_cache(maxsize=64)
def gauss_newton_solver(scene: Scene, turn: Turn) -> Callable[..., PyTree]:
    """(variables, seen) -> (frames, finite): each frame where its term's residuals and the prior on its code are least.

    Residuals count as Huber's do. A frame of which the term says nothing stays, but for the prior. The Jacobian is
    exact, so that a few iterations do what descent on pictures takes hundreds of steps for.
    """
    assert isinstance(turn.by, GaussNewton)
    (term,), by, free = turn.terms, turn.by, paths_of(scene.head.roles, turn.free)

    def one(params: PyTree, clip: PyTree, frame: PyTree, row: PyTree, shared: PyTree) -> tuple[PyTree, Array]:
        moving, held = split({"frame": frame}, free)
        start, place = ravel_pytree(moving)
        of_code, _ = ravel_pytree(
            jax.tree_util.tree_map_with_path(
                lambda p, x: jnp.full_like(x, path_name(p).startswith("frame.code.") / x.size), moving
            )
        )

        def off(x: Array) -> Array:
            return term.residuals(scene, params, clip, join(place(x), held)["frame"], row, shared)[0]

        weight = term.residuals(scene, params, clip, frame, row, shared)[1]
        weight = weight / jnp.maximum(jnp.sum(weight), 1.0)

        def step(x: Array, _: None) -> tuple[Array, None]:
            rest, jacobian = off(x), jax.jacfwd(off)(x)
            robust = weight / jnp.maximum(jnp.sqrt(jnp.sum(rest**2, axis=-1)) / by.robust_px, 1.0)
            weighted = jacobian * robust[:, None, None]
            curvature = jnp.einsum("vai,vaj->ij", weighted, jacobian) + jnp.diag(by.code_prior * of_code + _RIDGE)
            slope = jnp.einsum("vai,va->i", weighted, rest) + by.code_prior * of_code * x
            return x - jnp.linalg.solve(curvature, slope), None

        x, _ = jax.lax.scan(step, start, length=by.iterations)
        finite = jnp.all(jnp.isfinite(x))
        return join(place(jnp.where(finite & (jnp.sum(weight) > 0), x, start)), held)["frame"], finite

    @jax.jit
    def solve(variables: PyTree, seen: Observed) -> tuple[PyTree, Bool[Array, "f"]]:
        return jax.vmap(one, in_axes=(None, None, 0, 0, None))(
            variables["params"], variables["clip"], variables["frame"], seen.frames, seen.shared
        )

    return solve


# -- pieces ------------------------------------------------------------------------------------------------------------


def _along(rows: Array, x: Array) -> Array:
    """(f,) with trailing axes to meet x."""
    return rows.reshape((-1,) + (1,) * (x.ndim - 1))


def _finite_rows(tree: PyTree, count: int) -> Bool[Array, "f"]:
    rows = jnp.ones(count, bool)
    for leaf in jax.tree_util.tree_leaves(tree):
        rows &= jnp.all(jnp.isfinite(leaf).reshape(count, -1), axis=1)
    return rows


def _all_finite(tree: PyTree) -> Bool[Array, ""]:
    return jnp.all(
        jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree_util.tree_leaves(tree)] or [jnp.asarray(True)])
    )


def _only(tree: PyTree, alive: Array, whole: Array) -> PyTree:
    """Nothing for frames that are not alive, and, where what is shared is not whole, for that."""
    kept = {k: jax.tree_util.tree_map(lambda x: jnp.where(whole, x, 0.0), v) for k, v in tree.items() if k != "frame"}
    if "frame" in tree:
        kept["frame"] = jax.tree_util.tree_map(lambda x: jnp.where(_along(alive, x), x, 0.0), tree["frame"])
    return kept


def rates_of(head: HeadModel) -> dict[str, float]:
    """Learning rates by name of the leaf: every scene's, and what the head says of its own."""
    return {**RATES, **getattr(head, "rates", {})}


def _optimiser(
    start: PyTree, rate: float, rates: Mapping[str, float], descent: Descent | None = None
) -> optax.GradientTransformation:
    """Adam, each leaf at its own rate; with a descent the whitened rows of `start["frame"]` by Nesterov's method."""

    def at_own_rates(update: PyTree, _: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda p, u: -rate * rates.get(path_name(p).split(".")[-1], 0.01) * u, update
        )

    adam = optax.chain(optax.scale_by_adam(b1=0.9, b2=0.99), optax.stateless(at_own_rates))
    if descent is None:
        return adam
    n_frames, longest = start["frame"].shape[0], descent.clip

    def clipped(update: PyTree, _: PyTree) -> PyTree:
        def one(g: Array) -> Array:
            g = n_frames * g
            return g * jnp.minimum(1.0, longest / jnp.maximum(jnp.linalg.norm(g, axis=1, keepdims=True), 1e-9))

        return jax.tree_util.tree_map(one, update)

    nesterov = optax.chain(optax.stateless(clipped), optax.sgd(descent.rate * rate, descent.momentum, nesterov=True))
    labels = {k: "frame" if k == "frame" else "other" for k in start}  # a label stands for all leaves below it
    return optax.partition({"frame": nesterov, "other": adam}, labels)
