"""What every `Term` of a fit owes its solvers, whatever it compares: one suite, all of them.

A term joins by one line in `TERMS`: an example of it, and where it is least.
"""

import ast
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from posed_clip import SIDE, PosedClip, posed_clip
from toy_head import toy_codes, toy_head

import facejax.fitting
from facejax.data.video import load_masks, open_video
from facejax.fitting.footage import Footage
from facejax.fitting.solve import join, objective, paths_of, split
from facejax.fitting.terms import (
    CodePrior,
    Flow,
    Landmarks,
    LightOfPictures,
    LightPrior,
    Pictures,
    Points,
    Smoothness,
    StayNear,
    Term,
    ZoomPrior,
)
from facejax.models.avatar import AvatarFrame
from facejax.models.morphable import Expression, Identity
from facejax.renderers.deferred import make_renderer
from facejax.scenes import Harmonics, Scene, Unknowns
from facejax.scenes.unknowns import path_name, repeat_frames, take_frames

IDS = np.array([0, 1, 3])
CROP = 48
LIGHT = jnp.asarray(np.random.default_rng(0).uniform(-0.2, 0.2, (9, 3)), jnp.float32).at[0].set(3.0)
FREE = ("frame.pose", "motion", "frame.light", "clip.light", "shape", "skin", "clip.log_zoom", "frame.log_zoom")


def at_truth(truth: Unknowns) -> Unknowns:
    return truth


def at_rest(truth: Unknowns) -> Unknowns:
    code, frame = toy_head(12, 16).init_code()
    count = len(truth.frames.log_zoom)
    return truth.replace(
        clip=truth.clip.replace(code=code), frames=truth.frames.replace(code=repeat_frames(frame, count))
    )


def under_white_light(truth: Unknowns) -> Unknowns:
    white = Harmonics().init()
    return truth.replace(clip=truth.clip.replace(light=white))


def standing_still(truth: Unknowns) -> Unknowns:
    return truth.replace(frames=repeat_frames(take_frames(truth.frames, 0), len(truth.frames.log_zoom)))


@dataclasses.dataclass(frozen=True)
class Member:
    """A term, and what holds of it."""

    term: Term
    least: Callable[[Unknowns], Unknowns] | None = at_truth
    """The unknowns at which it is least, from the true ones; None where it has no loss."""
    zero: float = 1e-4
    """What it is there, at most."""
    free: tuple[str, ...] = FREE
    """What it is differentiated by."""
    exact: tuple[str, ...] = ()
    """Of that, what its gradient is exact in; empty: all of it."""
    sees: bool = False
    """Whether it looks at pixels."""
    settles: tuple[str, ...] = ()
    """What `settle` may replace."""


POINTS = Points(size=CROP, count=60, detail_px=(3.0,))
COMMON = dataclasses.replace(POINTS, colour="common", detail="common")
COLOUR = ("settled.point_colour",)
TERMS = {
    "landmarks": Member(Landmarks()),
    "points": Member(POINTS, zero=300.0, sees=True, settles=COLOUR),
    "points of common colour": Member(COMMON, zero=300.0, sees=True, settles=COLOUR),
    # every step of the head takes pixels in or out at its outline
    "pictures": Member(Pictures(), zero=10.0, exact=("frame.light", "clip.light"), sees=True),
    "flow": Member(Flow(), zero=3.0, sees=True),
    "light of pictures": Member(LightOfPictures(), None, sees=True, settles=("clip.light", "frames.light")),
    "code prior": Member(CodePrior(), at_rest),
    "light prior": Member(LightPrior(), under_white_light),
    "zoom prior": Member(ZoomPrior()),
    "stay near": Member(StayNear(1.0), free=("params.skin_mean", "params.mean")),
    # how large a pixel is on the face is held
    "smoothness": Member(
        Smoothness(light=1.0), standing_still, exact=("frame.pose.turn", "frame.pose.anchor", "motion", "frame.light")
    ),
}


@pytest.fixture(params=list(TERMS))
def member(request) -> Member:
    if request.param == "flow":
        pytest.importorskip("cv2")
    return TERMS[request.param]


@functools.cache
def clip() -> PosedClip:
    """Four frames of the toy head, as it draws itself."""
    head = toy_head(12, 16)
    scene = Scene(head, Harmonics(), make_renderer(head.topology, (CROP, CROP)), (CROP, CROP))
    large = dataclasses.replace(scene, render=make_renderer(head.topology, (SIDE, SIDE)), size=(SIDE, SIDE))
    person, moves, _, _ = toy_codes(head, 4, seed=1)
    moves = [take_frames(moves, k) for k in range(4)]
    return posed_clip(scene, person, moves, LIGHT, drawn_by=large)


@functools.cache
def observed(member: Member):
    return member.term.observe(clip().scene, clip().footage, told(member), IDS)


def told(member: Member) -> Unknowns:
    """The true unknowns, with what the term itself settles of them."""
    truth = clip().truth
    if not any(name.startswith("settled") for name in member.settles):
        return truth
    seen = member.term.observe(clip().scene, clip().footage, truth, IDS)
    return member.term.settle(clip().scene, clip().footage, truth, IDS, seen)


def variables_of(unknowns: Unknowns, ids=IDS):
    rows = {"params": unknowns.params, "clip": unknowns.clip, "frame": take_frames(unknowns.frames, ids)}
    return jax.tree.map(jnp.asarray, rows)


@functools.lru_cache(maxsize=1)
def losses(term: Term):
    """(variables, seen) -> (total, each): what a solver minimises; compiled."""
    return jax.jit(lambda v, seen: objective(clip().scene, (term,), v, (seen,), jnp.ones(len(IDS)), in_time=True))


def loss_of(member: Member, unknowns: Unknowns, seen=None) -> float:
    return float(losses(member.term)(variables_of(unknowns), observed(member) if seen is None else seen)[0])


def moved(unknowns: Unknowns, free, by: float, seed=0) -> Unknowns:
    """The leaves under `free` moved at random."""
    random = np.random.default_rng(seed)
    parts, held = split({"params": unknowns.params, "clip": unknowns.clip, "frame": unknowns.frames}, paths(free))
    parts = jax.tree.map(lambda x: np.asarray(x + by * random.normal(size=np.shape(x)), np.float32), parts)
    whole = join(parts, held)
    return unknowns.replace(params=whole["params"], clip=whole["clip"], frames=whole["frame"])


def paths(free):
    return paths_of(clip().scene.head.roles, free)


def plain(tree):
    """Arrays of a tree, keys as their numbers."""
    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in map(jnp.asarray, jax.tree.leaves(tree))
    ]


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(plain(a), plain(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_it_is_a_choice_known_by_its_value(member):
    term = member.term
    twin = dataclasses.replace(term)
    assert twin is not term
    assert twin == term
    assert hash(twin) == hash(term)
    assert dataclasses.is_dataclass(term)
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def anything(term, x):
        traced.append(term)
        return x

    anything(term, 1.0)
    anything(twin, 2.0)
    assert len(traced) == 1
    numbers = {f.name: getattr(term, f.name) for f in dataclasses.fields(term) if f.type in ("float", float)}
    for name, value in numbers.items():
        assert dataclasses.replace(term, **{name: value + 1}) != term


def test_what_is_seen_of_frames_has_a_row_for_each_in_their_order(member):
    it, seen = clip(), observed(member)
    assert all(len(leaf) == len(IDS) for leaf in jax.tree.leaves(seen.frames))
    again = member.term.observe(it.scene, it.footage, told(member), IDS[::-1])
    assert_same(again.frames, take_frames(seen.frames, slice(None, None, -1)))
    assert_same(again.shared, seen.shared)
    one = member.term.observe(it.scene, it.footage, told(member), IDS[1:2])
    for x, y in zip(plain(one.frames), plain(seen.frames), strict=True):
        np.testing.assert_allclose(x[0], y[1], atol=1e-4)


def test_observing_again_uses_what_was_seen_before(member):
    seen = observed(member)
    again = member.term.observe(clip().scene, clip().footage, told(member), IDS, seen)
    assert jax.tree.structure(again) == jax.tree.structure(seen)
    assert [x.shape for x in plain(again)] == [x.shape for x in plain(seen)]


def test_the_loss_of_a_frame_is_its_own_and_pure(member):
    term, v, seen = member.term, variables_of(moved(told(member), member.free, 0.02)), observed(member)
    before = plain((v, seen))
    held = term.common(clip().scene, v["params"], v["clip"], v["frame"], seen, jnp.ones(len(IDS)))
    one = jax.jit(lambda f, s: term.loss(clip().scene, v["params"], v["clip"], f, s, held.shared))
    alone = [one(take_frames(v["frame"], k), take_frames(seen.frames, k)) for k in range(len(IDS))]
    assert all(x.shape == () for x in alone)
    total, each = losses(term)(v, seen)
    np.testing.assert_allclose(each[0], np.stack(alone), rtol=1e-4, atol=1e-5)
    assert np.isfinite(total)
    assert losses(term)(v, seen)[0] == total
    for x, y in zip(before, plain((v, seen)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_frame_without_weight_has_no_say(member):
    term, unknowns, seen = member.term, told(member), observed(member)
    weighed = jax.jit(lambda v, w: objective(clip().scene, (term,), v, (seen,), w, in_time=True)[0])
    v, weight = variables_of(unknowns), jnp.array([1.0, 1.0, 0.0])
    other = variables_of(moved(unknowns, ("frame.pose", "motion", "frame.light"), 0.1))
    last = jax.tree.map(lambda x, y: jnp.concatenate([x[:2], y[2:]]), v["frame"], other["frame"])
    np.testing.assert_allclose(weighed({**v, "frame": last}, weight), weighed(v, weight), rtol=1e-5)


def test_gradients_are_finite_and_those_of_differences(member):
    if member.least is None:
        pytest.skip("it has no loss")
    start = variables_of(moved(told(member), member.free, 0.02))
    moving, rest = split(start, paths(member.free))
    seen, term = observed(member), member.term
    held = term.common(clip().scene, start["params"], start["clip"], start["frame"], seen, jnp.ones(len(IDS)))
    still = dataclasses.replace(term, colour="kept", detail="kept") if isinstance(term, Points) else term

    def loss(moving, term, seen):
        return objective(clip().scene, (term,), join(moving, rest), (seen,), jnp.ones(len(IDS)), in_time=True)[0]

    value = jax.jit(loss, static_argnums=1)
    slope = jax.jit(jax.grad(loss), static_argnums=1)
    gradient = slope(moving, still, held)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path_name(path)
    for a, b in zip(jax.tree.leaves(slope(moving, term, seen)), jax.tree.leaves(gradient), strict=True):
        # what frames say together is held (variable projection)
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * (1 + np.abs(b).max()))
    exact = split(moving, paths(member.exact or member.free))[0]
    for seed in range(2):
        along, differences = _along_a_line(lambda x: value(x, still, held), moving, gradient, exact, seed)
        # pictures have kinks, and masks steps: not every step is free of them
        assert min(abs(d - along) for d in differences) < 0.03 * abs(along) + 1e-3


def _along_a_line(value, start, gradient, exact, seed):
    """(slope of a random line by the gradient, by differences of several lengths), through leaves that `exact` has."""
    random = np.random.default_rng(seed)
    moves = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(exact)}
    way = jax.tree_util.tree_map_with_path(
        lambda path, x: (path_name(path) in moves) * jnp.asarray(random.normal(size=x.shape), jnp.float32), start
    )
    along = sum(float(jnp.vdot(a, b)) for a, b in zip(*map(jax.tree.leaves, (gradient, way)), strict=True))

    def at(step):
        return float(value(jax.tree.map(lambda x, w: x + step * w, start, way)))

    return along, [(at(step) - at(-step)) / (2 * step) for step in (1e-4, 3e-4, 1e-3)]


def test_gradients_are_finite_where_fits_start(member):
    """At rest, unturned and under the light of `init`: where roots and norms have no slope."""
    start = variables_of(at_rest(told(member)))
    seen, term = observed(member), member.term
    gradient = jax.jit(
        jax.grad(lambda v: objective(clip().scene, (term,), v, (seen,), jnp.ones(len(IDS)), in_time=True)[0])
    )(start)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path_name(path)


def test_it_is_least_where_it_should_be(member):
    if member.least is None:
        pytest.skip("it has no loss")
    best = member.least(told(member))
    least = loss_of(member, best)
    assert -1e-6 <= least <= member.zero
    further = [loss_of(member, moved(best, member.free, 0.1, seed)) for seed in range(3)]
    assert min(further) > 1.2 * least + 1e-6


def test_settling_replaces_what_the_term_owns_and_nothing_else(member):
    it, unknowns = clip(), moved(told(member), ("frame.pose", "clip.light"), 0.01)
    seen = member.term.observe(it.scene, it.footage, unknowns, IDS)
    after = member.term.settle(it.scene, it.footage, unknowns, IDS, seen)
    before = {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(unknowns)}
    now = {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(after)}
    changed = {k for k in now if k not in before or not np.array_equal(now[k], before[k])}
    assert changed <= set(member.settles)
    assert bool(changed) == bool(member.settles)
    assert all(np.isfinite(x).all() for x in now.values())


def footage_with(frames: np.ndarray, masks: Path | None = None) -> Footage:
    it, video = clip().footage, open_video(frames)
    ignored = load_masks(masks, video) if masks else None
    return Footage(video, ignored, it.points, it.confidence, it.valid)


def test_ignored_pixels_have_no_say(member, tmp_path):
    frames = clip().frames
    masks = np.zeros(frames.shape[:3], bool)
    masks[:, 20:34, 28:44] = True  # a hand before half of the face
    for k, mask in enumerate(masks):
        Image.fromarray(mask).save(tmp_path / f"{k}.png")
    spoilt = frames.copy()
    spoilt[masks] = np.random.default_rng(0).integers(0, 256, (masks.sum(), 3))
    unknowns, scene, term = moved(told(member), ("frame.pose",), 0.01), clip().scene, member.term
    found = []
    for pictures in (frames, spoilt):
        footage = footage_with(pictures, tmp_path)
        seen = term.observe(scene, footage, unknowns, IDS)
        after = term.settle(scene, footage, unknowns, IDS, seen)
        found.append((loss_of(member, unknowns, seen), plain((after.clip, after.frames, after.settled))))
    (one, first), (other, second) = found
    np.testing.assert_allclose(other, one, rtol=1e-5)
    for x, y in zip(first, second, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)
    unmasked = [term.observe(scene, footage_with(x), unknowns, IDS) for x in (frames, spoilt)]
    if member.sees and member.least is not None:  # and without a mask they have one
        assert loss_of(member, unknowns, unmasked[1]) != pytest.approx(loss_of(member, unknowns, unmasked[0]), rel=1e-3)


# -- terms know no head by name ----------------------------------------------------------------------------------------


HEADS = {"morphable", "avatar", "generic", "deep_appearance"}
# fields of codes, but for those that arrays, configs and records of fitting have by the same name
FIELDS = {f.name for kind in (Identity, Expression, AvatarFrame) for f in dataclasses.fields(kind)}
OWN = FIELDS - {"shape", "texture", "code"}


@pytest.mark.parametrize("path", sorted(Path(facejax.fitting.__file__).parent.rglob("*.py")), ids=lambda p: p.name)
def test_fitting_imports_no_head_and_names_no_field_of_a_code(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            named = {part for module in modules for part in module.split(".")}
            assert not ("models" in named and named & HEADS), f"{path.name}:{node.lineno}"
        if isinstance(node, ast.Attribute):
            assert node.attr not in OWN, f"{path.name}:{node.lineno} reads .{node.attr}"
            of_code = isinstance(node.value, ast.Attribute) and node.value.attr == "code"
            assert not (of_code and node.attr in FIELDS), f"{path.name}:{node.lineno} reads .code.{node.attr}"
