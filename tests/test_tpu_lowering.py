"""Every public array function lowers for TPU, here, where there is none: what a pod would refuse is seen before it.

Arguments are made from the jaxtyping annotations: an array of that shape, a record of its fields. Functions of NumPy
arrays alone run on the host and are left out; so is what calls Mitsuba.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_recipe

import facejax
import facejax.renderers
from facejax.data.heads import load_model
from facejax.fitting.solve import minimise
from facejax.geometry.meshes import SurfacePoints, Topology, edge_neighbours
from facejax.geometry.records import Camera, Face, Pose, Record
from facejax.renderers import make_renderer, sphere_directions
from facejax.renderers.uv import texture_chart
from facejax.training import find_recipe, make_step, override, preset_of

PACKAGE = Path(facejax.__file__).parent

MODULES = sorted(
    f"{wing}.{module.name}"
    for wing in ("geometry", "renderers", "objectives")
    for module in pkgutil.iter_modules([str(PACKAGE / wing)])
    if not {"mitsuba", "path", "llvm"} & set(module.name.split("_"))  # what Mitsuba draws, it draws on the host
)

# A sheet of 5 x 5 vertices.
_GRID = np.arange(25).reshape(5, 5)
_CORNERS = np.stack([_GRID[:-1, :-1], _GRID[1:, :-1], _GRID[:-1, 1:], _GRID[1:, 1:]], -1).reshape(-1, 4)
FACES = np.concatenate([_CORNERS[:, [0, 1, 2]], _CORNERS[:, [2, 1, 3]]]).astype(np.int32)
UV = np.stack(np.meshgrid(np.linspace(0, 1, 5), np.linspace(0, 1, 5)), -1).reshape(-1, 2).astype(np.float32)
TOPOLOGY = Topology(faces=FACES, uv=UV, uv_faces=FACES, n_vertices=25)

CHART = texture_chart(TOPOLOGY, 32)

LENGTHS = {"v": 25, "p": 25, "n": 25, "t": len(FACES), "h": 32, "w": 32, "b": 9, "l": 3, "c": 3, "d": 8, "size": 32}
"""Of the axes that annotations name; any other has 5."""

CHOICES = {
    "bands": 3, "size": (32, 32), "height": 16, "width": 32, "count": 64, "scale": 1.0, "topology": TOPOLOGY,
    "energy": "dimmed", "points": SurfacePoints(FACES[:25], np.full((25, 3), 1 / 3, np.float32)),
    "faces": FACES, "neighbours": edge_neighbours(FACES), "pairs": np.array([[0, 1]]),
    "chart": CHART, "gutter": CHART, "triangles": FACES[:25], "weights": np.full((25, 3), 1 / 3, np.float32),
}  # fmt: skip
"""What stays the same, by the parameter's name."""

SPECIAL = {
    **{name: {"size": 16} for name in ("ambient_occlusion_map", "thickness_map", "texel_footprint")},
    "texture_from": {"values": jnp.ones((len(CHART.texels), 3))},
}
"""What stays the same for one function."""

PAIRS = sphere_directions(8)
"""For `directions` of the axis d: opposite pairs, as sums over the sphere ask for."""

ON_THE_HOST = {
    "from_convention", "to_convention", "surface_samples", "check_light", "check_surface",
    "delta_e_1976", "delta_e_2000", "draw_map", "linear_to_lab", "map_score", "tone_errors",
}  # fmt: skip
"""Functions of tables, checks of values, and metrics that take arrays of either kind and compute with NumPy."""


def argument(hint):
    """An array, or a record of arrays, for that annotation; None where it asks for neither."""
    for kind in typing.get_args(hint) or (hint,):
        if isinstance(kind, type) and issubclass(kind, Record):
            hints = typing.get_type_hints(kind)
            return kind(**{field.name: argument(hints[field.name]) for field in dataclasses.fields(kind)})
        array, words = getattr(kind, "array_type", None), getattr(kind, "dim_str", "").split()
        if array is None or array is np.ndarray:
            continue
        batch = 1 if words[:1] and words[0].startswith("*") else 0
        shape = (25,) * batch + tuple(int(w) if w.isdecimal() else LENGTHS.get(w, 5) for w in words[batch:])
        kinds = {"Int": jnp.int32, "Bool": jnp.bool_}
        return jnp.ones(shape, kinds.get(kind.__name__.split("[")[0], jnp.float32))
    return None


def arguments(function) -> dict | None:
    """Arguments of a function of arrays; None for one that takes none."""
    signature, hints = inspect.signature(function), typing.get_type_hints(function)
    found, arrays = {}, 0
    for name, parameter in signature.parameters.items():
        if parameter.default is not parameter.empty:
            continue
        if name in SPECIAL.get(function.__name__, {}):
            found[name] = SPECIAL[function.__name__][name]
            continue
        if name in CHOICES and ("ndarray" in str(hints[name]) or argument(hints[name]) is None):
            found[name] = CHOICES[name]
            continue
        if name == "directions" and "'d 3'" in str(hints[name]):
            found[name] = PAIRS
            continue
        found[name] = argument(hints[name])
        if found[name] is None:
            return None
        arrays += 1
    return found if arrays else None


def functions() -> dict:
    found = {}
    for module in MODULES:
        content = importlib.import_module(f"facejax.{module}")
        for name, value in vars(content).items():
            own = getattr(value, "__module__", None) == content.__name__
            if own and callable(value) and not isinstance(value, type) and name[0] != "_" and name not in ON_THE_HOST:
                found[f"{module}.{name}"] = value
    return found


FUNCTIONS = functions()
LOWERED = {name: made for name, function in FUNCTIONS.items() if (made := arguments(function)) is not None}


def lower(function, *operands) -> str:
    """The program for TPU."""
    exported = jax.export.export(jax.jit(function), platforms=["tpu"])(*operands)
    assert exported.platforms == ("tpu",)
    return exported.mlir_module()


@pytest.mark.parametrize("name", sorted(LOWERED))
def test_public_functions_lower(name):
    made = LOWERED[name]
    arrays = {k: v for k, v in made.items() if isinstance(v, jax.Array | Record)}
    fixed = {k: v for k, v in made.items() if k not in arrays}
    lower(lambda operands: FUNCTIONS[name](**operands, **fixed), arrays)


def test_nearly_all_that_renderers_offer_is_among_them():
    """What arguments cannot be made for falls out silently: this keeps it few. It says which."""
    lowered = {name.rsplit(".", 1)[1] for name in LOWERED}
    public = {
        name
        for name in facejax.renderers.__all__
        if inspect.isfunction(inspect.unwrap(value := getattr(facejax.renderers, name)))
        and any(argument(hint) is not None for key, hint in typing.get_type_hints(value).items() if key != "return")
    } - ON_THE_HOST
    assert len(public & lowered) > 30
    assert len(public - lowered) < 0.1 * len(public), sorted(public - lowered)


def test_what_tpu_cannot_do_is_noticed():
    """The judge can say no: a callback to the host has no TPU program on this machine."""

    def calls_home(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct((3,), jnp.float32), x)

    with pytest.raises(Exception, match=r"(?i)callback|platform"):
        jax.export.export(jax.jit(calls_home), platforms=["tpu"])(jnp.ones(3)).serialize()


def test_rendering_and_its_gradient_lower():
    face, light = argument(Face), jnp.ones((9, 3))
    pose, camera = Pose(rotation=jnp.eye(3), translation=jnp.array([0.0, 0.0, 1.0])), argument(Camera)
    render = make_renderer(TOPOLOGY, (32, 32))
    program = lower(jax.grad(lambda f: jnp.sum(render(f, light, pose, camera).colour)), face)
    assert "f64" not in program


def test_the_built_in_head_lowers():
    head = load_model("generic")
    shared, frame = head.init_code()
    program = lower(lambda p, s, f: head.landmark_points(head.decode(p, s, f).vertices), head.params, shared, frame)
    assert "HIGHEST" in program  # or a TPU would multiply geometry in bfloat16


def test_fitting_lowers():
    def fit(start):
        def loss(v):
            each = jnp.sum((v["frame"]["a"] - 1) ** 2, axis=1)
            return jnp.mean(each), each[None]

        return minimise(loss, {"frame": {"a": start}}, ("frame",), steps=3)

    lower(fit, jnp.zeros((4, 2)))


@pytest.mark.parametrize("bf16", ["false", "true"])
def test_training_steps_lower(bf16):
    recipe_type = find_recipe("head-autoencoder")
    small = ("data.vertices=16", "network.width=8", "network.code=4", f"run.bf16={bf16}")
    for recipe in (
        recipe_type(override(preset_of(recipe_type, "small").config, small)),
        toy_recipe.Toy(toy_recipe.Toy.presets["small"].config),
    ):
        heads = [{"vertices": np.ones((16, 3), np.float32), "seen": np.ones((16, 3), np.float32)}] * 4
        points = [{"x": np.ones(4, np.float32), "y": np.float32(1)}] * 4
        data = points if recipe.name == "toy" else heads
        params, rest = jax.eval_shape(lambda r=recipe, d=data: r.init(jax.random.key(0), d))
        state = {
            "step": jax.ShapeDtypeStruct((), jnp.int32), "params": params, "state": rest,
            "optimiser": jax.eval_shape(recipe.optimiser().init, params),
        }  # fmt: skip
        batch = {k: np.stack([e[k] for e in data]) for k in data[0]}
        program = lower(make_step(recipe), state, batch)
        assert ("bf16" in program) == (bf16 == "true" and recipe.name != "toy")
