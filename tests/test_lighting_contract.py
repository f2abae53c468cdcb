"""What every `Lighting` owes a scene, whatever it does to a face: one suite, all of them.

A lighting joins by one line in `LIGHTINGS`: a scene that uses it, and what of this page cannot be asked of it.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_avatar import GROUPS, toy_avatar
from toy_head import toy_head

from facejax.geometry.meshes import vertex_normals
from facejax.geometry.records import Camera, Face, Image, Pose
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.renderers.deferred import make_renderer, vertex_light
from facejax.renderers.lights import NearLights
from facejax.renderers.sh import rotate_sh
from facejax.renderers.shadows import make_shadowed_renderer
from facejax.scenes import (
    AsCaptured,
    ClipVariables,
    FrameVariables,
    Harmonics,
    Lamps,
    Lens,
    Lighting,
    LinearLighting,
    Scene,
    SelfShadowed,
    ShadowedTexture,
    TextureHarmonics,
    make_scene,
)
from facejax.scenes.lighting import zero_light
from facejax.scenes.unknowns import variables_of

SIDE = 32
SIZE = (SIDE, SIDE)
CAMERA = Camera(focal=jnp.full(2, 90.0), principal_point=jnp.full(2, SIDE / 2))
WINDOW = jnp.array([0.0, 0.0, SIDE, SIDE])
UPRIGHT = jnp.diag(jnp.array([1.0, -1.0, -1.0]))
RNG = np.random.default_rng(7)


def pose_of(rotvec=(0.1, 0.3, 0.0)):
    turned = jnp.matmul(rotvec_to_matrix(jnp.asarray(rotvec, jnp.float32)), UPRIGHT)
    return Pose(rotation=turned, translation=jnp.array([0.0, 0.0, 0.7]))


POSE = pose_of()
WEIGHTS = jnp.asarray(RNG.random((*SIZE, 3)), jnp.float32)


def harmonics(bands=3):
    """A light that is positive everywhere, of several colours and from several sides."""
    rows = 1 + 3 + 5 + 7  # no more: finer light would be negative somewhere
    light = np.zeros((bands**2, 3))
    light[:rows] = RNG.uniform(-0.15, 0.15, (min(rows, bands**2), 3))
    light[0] = np.sqrt(4 * np.pi)
    return jnp.asarray(light, jnp.float32)


def lamps():
    places = jnp.array([[0.3, -0.2, 0.1], [-0.4, 0.1, 0.3]])
    return NearLights(positions=places, intensity=jnp.array([[0.5, 0.4, 0.3], [0.2, 0.3, 0.4]]))


@functools.cache
def head():
    return toy_head(16, 20)


def shadowed():
    return make_shadowed_renderer(head().topology, SIZE, directions=64, samples=20_000, resolution=64)


def textured(lighting):
    """The toy avatar under a light that works on its texture."""
    return dataclasses.replace(make_scene(toy_avatar(), SIZE), lighting=lighting(toy_avatar().topology))


def self_shadowed():
    render = shadowed()
    return Scene(head(), SelfShadowed(render=render), render, SIZE)


def turned_lamps(light: NearLights, rotation):
    return light.replace(positions=jnp.matmul(light.positions, rotation.T))


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """A lighting in a scene, and what holds of it."""

    scene: Callable[[], Scene]
    light: Any
    """Bright, and not where `init` starts."""
    linear: bool = True
    """Twice the light is twice the picture."""
    tolerance: float = 0.02
    """Of differences against gradients, relative: networks have kinks."""
    step: float = 0.1
    """Of differences: its own units of light, in which its picture is smooth so far."""
    turn: Callable[[Any, Any], Any] | None = rotate_sh
    """(light, rotation) -> the light that comes from turned directions; None where directions have no names."""


LIGHTINGS = {
    "harmonics": Member(lambda: Scene(head(), Harmonics(), make_renderer(head().topology, SIZE), SIZE), harmonics()),
    "self-shadowed": Member(self_shadowed, harmonics()),
    "lamps": Member(
        lambda: Scene(head(), Lamps(lamps()), shadowed(), SIZE),
        jax.tree.map(lambda x: 1.2 * x, lamps()),
        linear=False,  # twice a lamp is also twice as far away: its intensity alone is asked below
        step=0.002,
        turn=turned_lamps,
    ),
    "network": Member(
        lambda: make_scene(toy_avatar(), SIZE),
        jnp.asarray(RNG.uniform(1, 2, (GROUPS, 3)), jnp.float32),
        linear=False,
        tolerance=0.1,
        step=0.05,
        turn=None,
    ),
    "as captured": Member(
        lambda: dataclasses.replace(make_scene(toy_avatar(), SIZE), lighting=AsCaptured()),
        (),
        linear=False,
        turn=lambda light, rotation: light,
    ),
    "texture harmonics": Member(lambda: textured(TextureHarmonics), harmonics()),
    "shadowed texture": Member(lambda: textured(functools.partial(ShadowedTexture, directions=64)), harmonics(9)),
}


@pytest.fixture(params=list(LIGHTINGS))
def name(request):
    return request.param


@functools.cache
def scene(name) -> Scene:
    return LIGHTINGS[name].scene()


@functools.cache
def decoded(name) -> Face:
    person = scene(name).head
    return person.decode(person.params, *person.init_code(), jnp.array([0.0, 0.0, 1.0]))


@functools.cache
def held(name):
    return jax.jit(scene(name).lighting.prepare)(decoded(name).vertices)


TRACED: dict[str, int] = collections.Counter()


@functools.cache
def viewer(name):
    """(light, pose, prepared) -> picture; compiled, and counted in `TRACED`."""
    person = scene(name).head

    def draw(light, pose, prepared) -> Image:
        TRACED[name] += 1
        return scene(name).view(person.params, *person.init_code(), light, pose, CAMERA, None, prepared).image

    return jax.jit(draw)


def picture(name, light=None, pose=POSE):
    return viewer(name)(LIGHTINGS[name].light if light is None else light, pose, held(name))


def finite(tree) -> bool:
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def same(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_it_is_a_lighting_whose_lights_add_up(name):
    lighting = scene(name).lighting
    assert isinstance(lighting, Lighting)
    hash(lighting)  # what is compiled for it is found again
    start = lighting.init()
    assert finite(start)
    assert all(jnp.asarray(leaf).dtype == jnp.float32 for leaf in jax.tree.leaves(start))
    same(lighting.init(), start)
    # of the same kind as the light that it is asked to show, and a clip's light adds to a frame's
    assert jax.tree.structure(LIGHTINGS[name].light) == jax.tree.structure(start)
    same(jax.tree.map(jnp.add, start, zero_light(lighting)), start)
    same(jax.tree.map(jnp.add, start, start), jax.tree.map(lambda x: 2 * x, start))


def test_a_clip_s_light_and_a_frame_s_are_one_light(name):
    """Through the whole of a scene, from a fit's unknowns to pixels."""
    it, light = scene(name), LIGHTINGS[name].light
    code, frame_code = it.head.init_code()
    frame = FrameVariables(
        lens=Lens(camera=CAMERA, reference_px=jnp.asarray(8.0)),
        pose=variables_of(POSE, CAMERA, 8.0),
        code=frame_code,
        light=jax.tree.map(lambda x: 0.3 * x, light),
        log_zoom=jnp.zeros(()),
    )
    clip = ClipVariables(code=code, light=jax.tree.map(lambda x: 0.7 * x, light), log_zoom=jnp.zeros(()))
    draw = jax.jit(lambda clip, frame, held: it.picture(it.head.params, clip, frame, WINDOW, None, held).image)
    same(draw(clip, frame, held(name)), picture(name), atol=2e-4)


def test_a_picture_shows_the_head(name):
    image = picture(name)
    assert image.colour.shape == (*SIZE, 3)
    assert finite(image)
    seen = np.asarray(image.coverage) > 0.99
    assert seen.sum() > 100
    assert np.asarray(image.colour)[seen].mean() > 0.02
    assert finite(picture(name, scene(name).lighting.init()))


def test_compiled_is_eager_and_nothing_is_changed(name):
    lighting, face, light = scene(name).lighting, decoded(name), LIGHTINGS[name].light
    before = jax.tree.map(np.array, (face, light, POSE))
    params = scene(name).head.params

    def lit(face, light, pose):
        shaded = lighting.shade(params, face, light, pose, lighting.prepare(face.vertices))
        return shaded.face, shaded.light, dict(shaded.options)

    eager = lit(face, light, POSE)
    same(jax.jit(lit)(face, light, POSE), eager, atol=1e-4)
    same((face, light, POSE), before)
    # a batch is a loop
    poses = [pose_of((0.0, 0.2 * k, 0.1)) for k in range(3)]
    lights = [jax.tree.map(lambda x, k=k: (1 + 0.5 * k) * x, light) for k in range(3)]
    stacked = [jax.tree.map(lambda *x: jnp.stack(x), *rows) for rows in (poses, lights)]
    together = jax.jit(jax.vmap(viewer(name), in_axes=(0, 0, None)))(stacked[1], stacked[0], held(name))
    for k in range(3):
        same(jax.tree.map(lambda x, k=k: x[k], together), picture(name, lights[k], poses[k]), atol=2e-4)


def test_it_compiles_once(name):
    picture(name)
    before = TRACED[name]
    for k in range(3):
        picture(name, jax.tree.map(lambda x, k=k: (1 + k) * x, LIGHTINGS[name].light), pose_of((0.0, 0.1 * k, 0.0)))
    assert TRACED[name] == before


def test_what_is_held_is_what_is_found_anew(name):
    person, it = scene(name).head, scene(name)
    anew = jax.jit(lambda light: it.view(person.params, *person.init_code(), light, POSE, CAMERA).image)(
        LIGHTINGS[name].light
    )
    same(anew, picture(name), atol=1e-5)


def test_gradients_of_the_light_are_those_of_differences(name):
    light = LIGHTINGS[name].light
    if not jax.tree.leaves(light):
        pytest.skip("there is no light to differentiate by")

    table = held(name)

    @jax.jit
    def loss(light):
        return jnp.mean(WEIGHTS * viewer(name)(light, POSE, table).colour)

    slope = jax.grad(loss)(light)
    assert finite(slope)
    assert finite(jax.grad(loss)(scene(name).lighting.init()))
    random = np.random.default_rng(1)
    way = jax.tree.map(lambda x: jnp.asarray(random.uniform(-1, 1, x.shape), jnp.float32), light)
    way = jax.tree.map(lambda x: LIGHTINGS[name].step * x, way)
    along = sum(jnp.vdot(s, w) for s, w in zip(jax.tree.leaves(slope), jax.tree.leaves(way), strict=True))
    ahead, behind = (loss(jax.tree.map(lambda x, w, s=s: x + s * w, light, way)) for s in (1, -1))
    assert abs(float(along)) > 1e-6
    assert float(along) == pytest.approx(float(ahead - behind) / 2, rel=LIGHTINGS[name].tolerance, abs=3e-7)


def test_twice_the_light_is_twice_the_radiance(name):
    if not LIGHTINGS[name].linear:
        pytest.skip("its picture is not linear in all of its light")
    light = LIGHTINGS[name].light
    twice = picture(name, jax.tree.map(lambda x: 2 * x, light)).colour
    np.testing.assert_allclose(twice, 2 * picture(name).colour, atol=2e-4)
    assert not np.asarray(picture(name, zero_light(scene(name).lighting)).colour).any()
    other = jax.tree.map(lambda x: x.at[1:].multiply(-1.0), light)
    both = picture(name, jax.tree.map(jnp.add, light, other)).colour
    np.testing.assert_allclose(both, picture(name).colour + picture(name, other).colour, atol=3e-4)


def test_head_and_light_that_turn_together_turn_the_picture_and_nothing_else(name):
    """By a quarter about the line of sight: pixels fall on pixels, and the eye is where it was on the head."""
    turn = LIGHTINGS[name].turn
    if turn is None:
        pytest.skip("its light comes from directions without names")
    quarter = rotvec_to_matrix(jnp.array([0.0, 0.0, np.pi / 2]))  # +x, right, becomes +y, down
    turned = POSE.replace(rotation=quarter @ POSE.rotation, translation=quarter @ POSE.translation)
    expected = np.rot90(np.asarray(picture(name).colour), -1)
    found = np.asarray(picture(name, turn(LIGHTINGS[name].light, quarter), turned).colour)
    apart = np.abs(found - expected)  # outlines may fall on other pixels
    assert np.quantile(apart, 0.98) < 2e-3
    assert apart.mean() < 2e-3
    if name != "as captured":
        still = np.asarray(picture(name, LIGHTINGS[name].light, turned).colour)
        assert np.abs(still - expected).mean() > 2 * apart.mean() + 1e-3


def test_its_prior_is_finite_and_so_is_its_slope(name):
    lighting = scene(name).lighting
    for light in (lighting.init(), LIGHTINGS[name].light, zero_light(lighting)):
        value, slope = jax.jit(jax.value_and_grad(lighting.prior))(light)
        assert value.shape == ()
        assert np.isfinite(value)
        assert finite(slope)
    assert float(lighting.prior(lighting.init())) <= float(lighting.prior(LIGHTINGS[name].light))


def test_transfer_times_the_light_is_what_is_drawn_at_the_vertices(name):
    """For a lighting that points can be fitted under: without what blocks the light, which points do not know of."""
    it = scene(name)
    if not isinstance(it.lighting, LinearLighting):
        pytest.skip("points cannot be fitted under it")
    face, light = decoded(name), LIGHTINGS[name].light
    normals = vertex_normals(face.vertices, it.head.topology.faces)
    parts = it.lighting.transfer(face, POSE, normals)
    assert all(part.shape == (it.head.topology.n_vertices, len(light)) for part in parts)
    diffuse, gloss = (np.maximum(np.asarray(part) @ np.asarray(light), 0) for part in parts)
    drawn = vertex_light(face, light, POSE, normals)
    np.testing.assert_allclose(diffuse, drawn[0], atol=1e-4)
    np.testing.assert_allclose(gloss, drawn[1], atol=1e-4)
    if name == "self-shadowed":  # gathered along a few directions
        free = it.render.light_on(face, light, POSE, normals, jnp.ones_like(held(name)))
        np.testing.assert_allclose(diffuse, free[0], atol=0.04)


def test_a_lamp_s_intensity_adds_up():
    light = LIGHTINGS["lamps"].light
    twice = picture("lamps", light.replace(intensity=2 * light.intensity)).colour
    np.testing.assert_allclose(twice, 2 * picture("lamps").colour, atol=2e-4)
