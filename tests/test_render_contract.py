"""What every renderer owes its caller, whatever it does inside: one suite, all of them.

A renderer joins by one line in `RENDERERS`; how it treats shadows, noise and edges is for its own tests.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_shadows import CAMERA, FACES, POSE, SIZE, TOPOLOGY, VERTICES, face_of, topology_of

from facejax.geometry.errors import InputError
from facejax.geometry.records import Image
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.renderers.deferred import Render, make_renderer, vertex_light
from facejax.renderers.llvm import require_llvm
from facejax.renderers.monte_carlo import make_monte_carlo_renderer
from facejax.renderers.path_tracer import make_path_tracer
from facejax.renderers.shadows import make_shadowed_renderer

RENDERERS = {
    "unshadowed": make_renderer,
    "shadowed": functools.partial(make_shadowed_renderer, directions=64, samples=20_000, resolution=96),
    "monte carlo": functools.partial(
        make_monte_carlo_renderer, samples=4, directions=64, depth_samples=20_000, resolution=96
    ),
    "path tracer": functools.partial(make_path_tracer, samples=16, silhouettes="none"),
}
KEY = jax.random.PRNGKey(3)
FACE = face_of(VERTICES)
RNG = np.random.default_rng(5)
EVEN = jnp.zeros((9, 3)).at[0].set(np.sqrt(4 * np.pi))  # radiance 1 from everywhere
LIGHT = EVEN + jnp.asarray(RNG.uniform(-0.15, 0.15, (9, 3)), jnp.float32)  # and positive everywhere


@pytest.fixture(params=list(RENDERERS))
def name(request):
    if request.param == "path tracer":
        try:
            require_llvm()
        except InputError as e:
            pytest.skip(str(e))
    return request.param


@functools.cache
def renderer(name):
    return RENDERERS[name](TOPOLOGY, SIZE)


@functools.cache
def compiled(name):
    return jax.jit(renderer(name))


def poses(n):
    turns = [rotvec_to_matrix(jnp.array([0.0, 0.2 * k, 0.1])) for k in range(n)]
    return [POSE.replace(rotation=POSE.rotation @ t) for t in turns]


def test_it_is_a_render(name):
    render = renderer(name)
    assert isinstance(render, Render)
    image = compiled(name)(FACE, LIGHT, POSE, CAMERA, KEY)
    assert isinstance(image, Image)
    assert image.colour.shape == (*SIZE, 3)
    assert image.coverage.shape == image.depth.shape == SIZE
    coverage = np.asarray(image.coverage)
    assert coverage.min() >= 0
    assert coverage.max() <= 1 + 1e-6
    assert (coverage > 0.99).sum() > 100
    empty = coverage == 0
    assert empty.any()
    assert not np.asarray(image.colour)[empty].any()
    assert not np.asarray(image.depth)[empty].any()


def test_compiled_is_eager_and_inputs_stay(name):
    before = jax.tree.map(np.array, (FACE, LIGHT, POSE, CAMERA))
    eager = renderer(name)(FACE, LIGHT, POSE, CAMERA, KEY)
    again = compiled(name)(FACE, LIGHT, POSE, CAMERA, KEY)
    np.testing.assert_allclose(again.colour, eager.colour, atol=2e-5)
    np.testing.assert_allclose(again.coverage, eager.coverage, atol=2e-5)
    jax.tree.map(np.testing.assert_array_equal, before, (FACE, LIGHT, POSE, CAMERA))


def test_a_batch_is_a_loop(name):
    batch = poses(3)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *batch)
    together = jax.jit(jax.vmap(renderer(name), in_axes=(None, None, 0, None, None)))(FACE, LIGHT, stacked, CAMERA, KEY)
    for i, pose in enumerate(batch):
        alone = compiled(name)(FACE, LIGHT, pose, CAMERA, KEY)
        np.testing.assert_allclose(together.colour[i], alone.colour, atol=2e-4)


def test_it_compiles_once(name):
    traced = []

    @jax.jit
    def draw(face, light, pose):
        traced.append(1)
        return renderer(name)(face, light, pose, CAMERA, KEY).colour

    for pose, gain in zip(poses(3), (1.0, 0.5, 2.0), strict=True):
        draw(FACE, gain * LIGHT, pose)
    assert len(traced) == 1


def test_light_adds_up(name):
    """Twice the light is twice the picture; two lights are the sum, but for a renderer that draws them by chance."""
    other = EVEN.at[2].set(-0.4)
    one = compiled(name)(FACE, LIGHT, POSE, CAMERA, KEY).colour
    np.testing.assert_allclose(compiled(name)(FACE, 2 * LIGHT, POSE, CAMERA, KEY).colour, 2 * one, atol=3e-4)
    both = compiled(name)(FACE, LIGHT + other, POSE, CAMERA, KEY).colour
    two = one + compiled(name)(FACE, other, POSE, CAMERA, KEY).colour
    chance = name in ("monte carlo", "path tracer")
    if chance:
        error, scale = np.asarray(both - two), float(jnp.mean(two[two > 0]))
        assert abs(error[np.asarray(two) > 0].mean()) < 0.03 * scale
    else:
        np.testing.assert_allclose(both, two, atol=3e-4)


def test_white_furnace(name):
    """Even light on white skin: no pixel sends out more than arrives, and an open convex one just as much."""
    white = FACE.replace(albedo=jnp.ones_like(FACE.albedo), specular=jnp.zeros_like(FACE.specular))
    image = compiled(name)(white, EVEN, POSE, CAMERA, KEY)
    full = np.asarray(image.coverage) > 0.999
    values = np.asarray(image.colour)[full]
    if name in ("monte carlo", "path tracer"):
        assert values.mean() < 1.01
        assert np.median(values) == pytest.approx(1, abs=0.08)
    else:
        quadrature = 0.03 if name == "shadowed" else 0.01  # of 64 directions
        assert values.max() < 1 + quadrature
        assert np.median(values) == pytest.approx(1, abs=quadrature)


CONSERVING = {
    "unshadowed": lambda energy: make_renderer(
        TOPOLOGY, SIZE, shade=functools.partial(vertex_light, energy=energy), antialiased=False
    ),
    "shadowed": lambda energy: RENDERERS["shadowed"](TOPOLOGY, SIZE, energy=energy, directions=512),
    "monte carlo": lambda energy: RENDERERS["monte carlo"](TOPOLOGY, SIZE, energy=energy, samples=64),
}


@pytest.mark.parametrize("energy", ["dimmed", "coupled"])
@pytest.mark.parametrize("kind", list(CONSERVING))
def test_glossy_white_skin_in_a_white_furnace(kind, energy):
    """The sum of diffuse and specular light: no more than arrives, which without the option it is."""
    n = len(FACE.albedo)
    white = FACE.replace(albedo=jnp.ones((n, 3)), specular=jnp.full(n, 0.3), roughness=jnp.full(n, 0.6))
    if kind == "unshadowed" and energy == "coupled":
        with pytest.raises(InputError, match="needs the direction of each light"):
            CONSERVING[kind](energy)(white, EVEN, POSE, CAMERA, KEY)
        return

    def returned(energy):
        image = jax.jit(CONSERVING[kind](energy))(white, EVEN, POSE, CAMERA, KEY)
        return np.asarray(image.colour)[np.asarray(image.coverage) > 0.999]

    found, noise = returned(energy), {"unshadowed": 1e-3, "shadowed": 0.03, "monte carlo": 0.02}[kind]
    assert found.mean() < 1 + noise
    assert np.median(found) == pytest.approx(1, abs=2 * noise)
    assert np.median(returned("additive")) > 1.1


def test_a_diffuse_term_by_another_sum_is_refused():
    for make in (make_shadowed_renderer, make_monte_carlo_renderer):
        with pytest.raises(InputError, match='"additive", "dimmed" or "coupled"'):
            make(TOPOLOGY, SIZE, energy="conserving")
        with pytest.raises(InputError, match='of "ggx" facets only'):
            make(TOPOLOGY, SIZE, energy="dimmed", distribution="beckmann")


def test_gradients_are_those_of_differences(name):
    """For light and albedo, in which a picture with fixed random numbers is smooth."""
    weights = jnp.asarray(RNG.random((*SIZE, 3)), jnp.float32)
    towards = (
        jnp.asarray(RNG.uniform(-0.1, 0.1, LIGHT.shape), jnp.float32),
        jnp.asarray(RNG.uniform(-0.1, 0.1, FACE.albedo.shape), jnp.float32),
    )

    @jax.jit
    def loss(light, albedo):
        return jnp.mean(weights * renderer(name)(FACE.replace(albedo=albedo), light, POSE, CAMERA, KEY).colour)

    if name == "monte carlo":  # which draws by the light: only its scale leaves the directions as they are
        towards = (0.1 * LIGHT, towards[1])
    step = 0.5  # the picture is linear in each, so a wide step costs nothing and drowns rounding
    for i, way in enumerate(towards):
        start = [LIGHT, FACE.albedo]
        slope = float(jnp.vdot(jax.grad(loss, argnums=i)(*start), way))
        ahead, behind = ([*start[:i], start[i] + s * step * way, *start[i + 1 :]] for s in (1, -1))
        difference = float(loss(*ahead) - loss(*behind)) / (2 * step)
        tolerance = 0.06 if name == "path tracer" else 3e-3  # its derivative draws other random numbers
        assert slope == pytest.approx(difference, rel=tolerance, abs=tolerance * 1e-3), ("light", "albedo")[i]


def test_gradients_stay_finite_on_broken_meshes(name):
    """A doubled triangle, one without area and a vertex that no triangle uses; grazing angles are at every outline."""
    faces = np.concatenate([FACES, FACES[:1], [[0, 0, 1]]]).astype(np.int32)
    vertices = np.concatenate([VERTICES, [[0.0, 0.0, 0.0]]]).astype(np.float32)
    render = RENDERERS[name](topology_of(vertices, faces), SIZE)
    face = face_of(vertices)

    def loss(face, light, pose):
        image = render(face, light, pose, CAMERA, KEY)
        return jnp.sum(image.colour**2) + jnp.sum(image.coverage)

    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(face, LIGHT, POSE)
    assert np.isfinite(value)
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(leaf).all()
    for part in (gradients[0].albedo, gradients[0].vertices, gradients[1], gradients[2].translation):
        assert np.abs(part).max() > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"faces": TOPOLOGY.faces[:0], "uv_faces": TOPOLOGY.uv_faces[:0]}, "needs triangles"),
        ({"n_vertices": 10}, "vertices from 0 to 9"),
        ({"uv": TOPOLOGY.uv[:5]}, "one of 5 texture coordinates"),
        ({"uv_faces": TOPOLOGY.uv_faces[:-1]}, "as many as triangles"),
    ],
    ids=["empty", "out of range", "uv out of range", "uv triangles"],
)
def test_meshes_that_cannot_be_drawn_are_refused(name, change, words):
    with pytest.raises(InputError, match=words):
        RENDERERS[name](dataclasses.replace(TOPOLOGY, **change), SIZE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"face": face_of(VERTICES[:-1])}, "made for"),
        ({"face": FACE.replace(vertices=FACE.vertices.at[3, 1].set(jnp.nan))}, "NaN or infinite among the vertices"),
        ({"face": FACE.replace(albedo=1.5 * jnp.ones_like(FACE.albedo))}, "albedo must be in"),
        ({"face": FACE.replace(roughness=jnp.zeros_like(FACE.roughness))}, "Roughness"),
        ({"face": FACE.replace(texture=-FACE.texture)}, "cannot be negative"),
        ({"pose": POSE.replace(rotation=1.1 * POSE.rotation)}, "proper rotation"),
        ({"pose": POSE.replace(rotation=-POSE.rotation)}, "proper rotation"),
        ({"light": jnp.ones((10, 3))}, "bands²"),
        ({"camera": CAMERA.replace(focal=jnp.array([0.0, 1.0]))}, "positive focal"),
    ],
    ids=["vertices", "nan", "albedo", "roughness", "texture", "scaled", "mirrored", "coefficients", "focal"],
)
def test_values_that_would_draw_black_are_refused(name, arguments, words):
    given = {"face": FACE, "light": LIGHT, "pose": POSE, "camera": CAMERA, "key": KEY, **arguments}
    with pytest.raises(InputError, match=words):
        renderer(name)(**given)
