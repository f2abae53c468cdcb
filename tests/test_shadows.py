"""Shading with cast shadows: against unshadowed closed forms, quadrature, finite differences, and energy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_visibility import joined, plane, sphere
from toy_head import ball

from facejax.geometry.errors import InputError
from facejax.geometry.meshes import Topology, normalise, vertex_normals
from facejax.geometry.records import Camera, Face, Pose
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.renderers.deferred import Render, vertex_light
from facejax.renderers.lights import Environment, NearLights, rotate_light, solid_angles, sphere_directions
from facejax.renderers.microfacet import gather_light
from facejax.renderers.occlusion import ambient_occlusion, sky_share, thickness, thickness_map
from facejax.renderers.sh import irradiance_basis, sh_basis
from facejax.renderers.shadows import gather_lamps, head_power, make_shadowed_renderer, shadowed_transfer
from facejax.renderers.uv import face_at_texels, texture_chart

SIZE = (40, 40)
CAMERA = Camera(focal=jnp.array([120.0, 120.0]), principal_point=jnp.array([20.0, 20.0]))
POSE = Pose(
    rotation=jnp.diag(jnp.array([1.0, -1.0, -1.0])) @ rotvec_to_matrix(jnp.array([0.2, 0.4, 0.1])),
    translation=jnp.array([0.0, 0.0, 0.8]),
)


def topology_of(vertices, faces):
    """Each triangle a chart of its own, side by side in the texture."""
    n = len(faces)
    side = math.ceil(math.sqrt(n))
    corner = np.stack(np.divmod(np.arange(n), side), axis=-1)[:, None] / side
    uv = (corner + np.array([[0.1, 0.1], [0.9, 0.1], [0.1, 0.9]]) / side).reshape(-1, 2).astype(np.float32)
    return Topology(
        faces=faces, uv=uv, uv_faces=np.arange(3 * n, dtype=np.int32).reshape(n, 3), n_vertices=len(vertices)
    )


def nose():
    """A head with a nose: a sphere and a smaller one in front of it."""
    return joined(sphere((0, 0, 0), 0.1, 14), sphere((0.01, 0.0, 0.1), 0.03, 8))


def face_of(vertices, specular=0.04, roughness=0.4):
    n = len(vertices)
    colour = 0.3 + 0.4 * np.random.default_rng(0).random((n, 3))
    return Face(
        vertices=jnp.asarray(vertices, jnp.float32),
        albedo=jnp.asarray(colour, jnp.float32),
        texture=jnp.ones((2, 2, 3)),
        specular=jnp.full(n, specular),
        roughness=jnp.full(n, roughness),
    )


VERTICES, FACES = nose()
TOPOLOGY = topology_of(VERTICES, FACES)
RENDER = make_shadowed_renderer(TOPOLOGY, SIZE, directions=64, samples=20_000, resolution=96)
FACE = face_of(VERTICES)
SH = jnp.asarray(np.random.default_rng(1).normal(size=(16, 3)) * 0.2, jnp.float32).at[0].set(3.0)
SKY = Environment(radiance=jnp.asarray(np.random.default_rng(2).random((8, 16, 3)), jnp.float32))
LAMPS = NearLights(
    positions=jnp.array([[0.3, -0.2, 0.4], [-0.4, 0.1, 0.6]]), intensity=jnp.array([[0.3, 0.2, 0.1], [0.1, 0.1, 0.3]])
)
LIGHTS = {"sh": SH, "environment": SKY, "lamps": LAMPS}


@functools.cache
def table(kind):
    return RENDER.visibility_of(FACE.vertices, LIGHTS[kind], POSE)


def colour(face, light, pose, seen):
    return RENDER(face, light, pose, CAMERA, visibility=seen).colour


compiled = jax.jit(colour)


def test_it_is_a_render():
    assert isinstance(RENDER, Render)


@pytest.mark.parametrize("kind", LIGHTS)
def test_light_on_vertices(kind):
    light, seen = LIGHTS[kind], table(kind)
    normals = vertex_normals(FACE.vertices, FACES)
    shade = jax.jit(lambda light, seen: jnp.stack(RENDER.light_on(FACE, light, POSE, normals, seen)))
    once = shade(light, seen)
    assert 0.02 < float(1 - seen.mean()) < 0.9
    assert jnp.isfinite(once).all()
    assert float(once[0].max()) > 0.05
    np.testing.assert_allclose(jnp.stack(RENDER.light_on(FACE, light, POSE, normals, seen)), once, atol=1e-4)
    # linear in the light
    brighter = (
        light.replace(intensity=2.5 * light.intensity) if kind == "lamps" else jax.tree.map(lambda x: 2.5 * x, light)
    )
    np.testing.assert_allclose(shade(brighter, seen), 2.5 * once, rtol=1e-4, atol=1e-5)
    # shadows only take away
    assert (shade(light, jnp.ones_like(seen)) >= once - 1e-5).all()
    assert not shade(light, 0 * seen).any()


def test_image_with_a_table_is_the_image_without():
    given = compiled(FACE, SH, POSE, table("sh"))
    made = jax.jit(RENDER)(FACE, SH, POSE, CAMERA)
    np.testing.assert_allclose(made.colour, given, atol=2e-2)  # rounding moves a few samples to other cells
    assert float(made.coverage.max()) == 1
    assert float(given.max()) > 0.1


def test_batch_is_a_loop_and_compiles_once():
    traces = []

    @jax.jit
    def draw(light, pose):
        traces.append(1)
        return colour(FACE, light, pose, table("sh"))

    poses = [POSE.replace(translation=jnp.array([0.01 * i, 0, 0.8])) for i in range(2)]
    lights = [SH, SH * 1.5]
    loop = jnp.stack([draw(l, p) for l, p in zip(lights, poses, strict=True)])
    assert len(traces) == 1
    batch = jax.vmap(draw)(jnp.stack(lights), jax.tree.map(lambda *x: jnp.stack(x), *poses))
    np.testing.assert_allclose(batch, loop, atol=2e-5)


@pytest.mark.parametrize("kind", LIGHTS)
def test_gradients_are_finite_differences(kind):
    """At vertices, where no pixel changes hands; visibility is held, as it is detached."""
    light, seen = LIGHTS[kind], table(kind)
    rng = np.random.default_rng(3)
    weights = jnp.asarray(rng.normal(size=(2, len(VERTICES), 3)), jnp.float32)
    ways = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), (light, FACE, POSE.translation))

    def value(step, what):
        scale = {"light": 0.1, "vertices": 1e-3, "specular": 0.02, "roughness": 0.1, "translation": 0.05}[what]
        face, pose, lit = FACE, POSE, light
        if what == "light":
            lit = jax.tree.map(lambda x, w: x + scale * step * w, light, ways[0])
        elif what == "translation":
            pose = POSE.replace(translation=POSE.translation + scale * step * ways[2])
        else:
            face = FACE.replace(**{what: getattr(FACE, what) + scale * step * getattr(ways[1], what)})
        both = RENDER.light_on(face, lit, pose, vertex_normals(face.vertices, FACES), seen)
        return sum(jnp.sum(w * x) for w, x in zip(weights, both, strict=True))

    for what in ("light", "vertices", "specular", "roughness", "translation"):
        f = jax.jit(functools.partial(value, what=what))
        slope = float(jax.jit(jax.grad(functools.partial(value, what=what)))(0.0))
        h = 0.003 if kind == "lamps" else 0.02  # small: n . l of two lamps changes its sign somewhere at any step
        numeric = float(f(h) - f(-h)) / (2 * h)
        size = max(abs(slope), 0.01 * abs(float(f(0.0))))
        assert abs(slope - numeric) < 0.03 * size, (what, slope, numeric)


def test_gradients_of_an_image_are_finite_at_grazing_angles_and_flat_triangles():
    vertices, faces = joined((np.asarray(VERTICES), FACES), (np.zeros((3, 3)), np.array([[0, 1, 2]])))
    render = make_shadowed_renderer(topology_of(vertices, faces), SIZE, directions=32, samples=5000, resolution=48)
    face = face_of(vertices, roughness=0.05)

    def loss(face, light):
        return jnp.sum(render(face, light, POSE, CAMERA).colour ** 2)

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(face, SH)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert jnp.abs(gradients[0].vertices).max() > 0


def test_open_convex_body_has_the_closed_form():
    """Nothing blocks a sphere: its transfer is the clamped cosine's, and the image the unshadowed one."""
    vertices, faces = sphere((0, 0, 0), 0.1, 16)
    vertices = jnp.asarray(vertices, jnp.float32)
    normals = vertex_normals(vertices, faces)
    directions = sphere_directions(256)
    transfer = shadowed_transfer(jnp.ones((len(vertices), 256)), directions, normals, 4)
    np.testing.assert_allclose(transfer, irradiance_basis(normals, 4), atol=0.01)
    assert np.abs(np.asarray(irradiance_basis(normals, 4))).max() > 0.3
    face = face_of(vertices, specular=0.0)
    light = jnp.asarray(np.random.default_rng(4).normal(size=(9, 3)) * 0.1, jnp.float32).at[0].set(3.0)
    render = make_shadowed_renderer(topology_of(vertices, faces), SIZE, samples=100_000, resolution=200)
    shadowed, plain = (f(face, light, POSE, normals)[0] for f in (render.light_on, vertex_light))
    assert float(jnp.mean(jnp.abs(shadowed - plain)) / jnp.mean(plain)) < 0.01


def test_transfer_is_what_gathering_says_and_linear_in_negative_light():
    normals = vertex_normals(FACE.vertices, FACES)
    transfer = shadowed_transfer(table("sh"), RENDER.directions, normals, 4)
    radiance = sh_basis(jnp.asarray(RENDER.directions), 4) @ SH
    assert (radiance > 0).all()
    matt = face_of(VERTICES, specular=0.0)
    at_head = Pose(rotation=jnp.eye(3), translation=POSE.translation)
    gathered, gloss = RENDER.light_on(matt, SH, at_head, normals, table("sh"))
    np.testing.assert_allclose(transfer @ SH, gathered, rtol=1e-3, atol=1e-4)
    assert not gloss.any()  # no specular reflectance: no lobe, grazing angles included
    np.testing.assert_allclose(transfer @ -SH, -gathered, rtol=1e-3, atol=1e-4)


def test_one_table_serves_every_pose():
    """Head and light turned together give the same light on skin; so does an environment, but for its resampling."""
    normals = vertex_normals(FACE.vertices, FACES)
    turn = rotvec_to_matrix(jnp.array([0.3, -0.5, 0.2]))
    turned = Pose(rotation=turn @ POSE.rotation, translation=turn @ POSE.translation)
    for kind, bound in (("sh", 2e-3), ("lamps", 2e-3), ("environment", 0.05)):
        here = jnp.stack(RENDER.light_on(FACE, LIGHTS[kind], POSE, normals, table(kind)))
        there = jnp.stack(RENDER.light_on(FACE, rotate_light(LIGHTS[kind], turn), turned, normals, table(kind)))
        assert float(jnp.abs(here - there).mean() / here.mean()) < bound


def test_environment_keeps_its_energy_in_any_pose():
    sun = jnp.zeros((64, 128, 3)).at[20, 33].set(jnp.array([100.0, 50.0, 20.0])) + 0.01
    energy = jnp.sum(sun * solid_angles(64, 128)[..., None], axis=(0, 1))
    for vector in ([0, 0, 0], [0.3, 1.0, -0.4], [1.5, 0.1, 0.0]):
        power = head_power(
            Environment(radiance=sun), rotvec_to_matrix(jnp.array(vector, jnp.float32)), RENDER.directions
        )
        np.testing.assert_allclose(power.sum(0), energy, rtol=1e-4)
        # and it comes from where the sun is
        assert float(power.max(0)[0]) > 0.3 * float(energy[0])
    assert not head_power(Environment(radiance=jnp.zeros((8, 16, 3))), jnp.eye(3), RENDER.directions).any()


def test_white_furnace():
    """Under even light a white body shows its occlusion, with a specular lobe at most 1 plus that."""
    face = face_of(VERTICES, specular=0.04).replace(albedo=jnp.ones((len(VERTICES), 3)))
    even = jnp.zeros((1, 3)).at[0].set(math.sqrt(4 * math.pi))
    normals = vertex_normals(FACE.vertices, FACES)
    diffuse, gloss = RENDER.light_on(face, even, POSE, normals, table("sh"))
    assert float(diffuse.max()) < 1.03  # 64 directions
    assert float((face.specular[:, None] + gloss).max()) < 1.05
    np.testing.assert_allclose(diffuse[:, 0], sky_share(table("sh"), RENDER.directions, normals), atol=0.02)
    assert float(diffuse.min()) < 0.7


@pytest.mark.parametrize("energy", ["additive", "dimmed", "coupled"])
def test_a_lamp_far_away_is_light_from_a_direction(energy):
    """Whatever the lobe leaves of the diffuse term: `gather_lamps` and `gather_light` agree."""
    draw = np.random.default_rng(8)
    normals = normalise(jnp.asarray(draw.normal(size=(40, 3)), jnp.float32))
    to_eye = normalise(normals + 0.7 * normalise(jnp.asarray(draw.normal(size=(40, 3)), jnp.float32)))
    specular, roughness = (jnp.asarray(draw.uniform(low, 1, 40), jnp.float32) for low in (0, 0.2))
    directions = np.asarray(normalise(jnp.asarray(draw.normal(size=(3, 3)), jnp.float32)))
    power = jnp.asarray(draw.random((3, 3)), jnp.float32)
    lamps = NearLights(positions=1e4 * jnp.asarray(directions), intensity=1e8 * power)
    points = jnp.zeros((40, 3))
    near = gather_lamps(points, normals, to_eye, specular, roughness, lamps, energy=energy)
    far = gather_light(normals, to_eye, specular, roughness, directions, power, energy=energy)
    for one, other in zip(near, far, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_lamp_on_a_plane_has_the_closed_form():
    vertices, faces = joined(plane(0.4, 8), sphere((0, 0.1, 0), 0.03, 12))
    points = jnp.asarray(np.random.default_rng(5).uniform(-0.12, 0.12, (500, 3)) * [1, 0, 1], jnp.float32)
    normals = jnp.tile(jnp.array([0.0, 1, 0]), (500, 1))
    position = jnp.array([0.1, 0.5, 0.05])
    lamp = NearLights(positions=position[None], intensity=jnp.array([[1.0, 2.0, 3.0]]))
    render = make_shadowed_renderer(topology_of(vertices, faces), SIZE, samples=30_000, resolution=128)
    still = Pose(rotation=jnp.eye(3), translation=jnp.zeros(3))
    seen = render.visibility_of(jnp.asarray(vertices), lamp, still, points, normals)
    zero = jnp.zeros(500)
    diffuse, _ = gather_lamps(points, normals, normals, zero, zero + 0.5, lamp, seen)
    away = position - points
    square = jnp.sum(away**2, axis=-1)
    exact = away[:, 1] / square**1.5 / math.pi
    to_ball = jnp.array([0, 0.1, 0]) - points
    beside = jnp.linalg.norm(jnp.cross(to_ball, normalise(away)), axis=-1)
    clear, dark = beside > 0.04, beside < 0.02
    np.testing.assert_allclose(diffuse[clear], (exact[:, None] * jnp.array([1.0, 2.0, 3.0]))[clear], rtol=1e-3)
    assert dark.sum() > 5
    np.testing.assert_allclose(diffuse[dark], 0, atol=1e-6)


def test_texels_are_shaded_by_the_same_functions():
    chart = texture_chart(TOPOLOGY, 64)
    at, normals = face_at_texels(FACE, FACES, chart)
    seen = RENDER.visibility_of(FACE.vertices, points=at.vertices, normals=normals)
    texels = RENDER.light_on(at, SH, POSE, normals, seen)[0]
    vertices = RENDER.light_on(FACE, SH, POSE, vertex_normals(FACE.vertices, FACES), table("sh"))[0]
    between = jnp.einsum("nij,ni->nj", vertices[chart.triangles], chart.weights)
    assert float(jnp.abs(texels - between).mean() / between.mean()) < 0.05


def test_occlusion_of_a_plane_under_a_ball():
    """Of a point under a ball's centre: the form factor (r / h)² is hidden."""
    vertices, faces = joined(plane(0.16, 8), sphere((0, 0.1, 0), 0.06, 24))
    points, normals = jnp.array([[0.0, 0, 0], [0.0, 0, 0.13]]), jnp.array([[0.0, 1, 0], [0.0, 1, 0]])
    share = ambient_occlusion(
        jnp.asarray(vertices), faces, points, normals, directions=512, samples=200_000, resolution=320
    )
    assert abs(float(share[0]) - (1 - 0.36)) < 0.02
    # off centre the ball's form factor is (r / d)² cos
    distance = math.hypot(0.13, 0.1)
    assert abs(float(share[1]) - (1 - (0.06 / distance) ** 2 * 0.1 / distance)) < 0.02


def test_thickness_of_an_ellipsoid_and_of_layers():
    radii = np.array([0.05, 0.08, 0.06])
    vertices, faces, _, _ = ball((0.2, 0.1, 0), radii, 40, 60, (0, 0, 1, 1))
    vertices = jnp.asarray(vertices, jnp.float32)
    local = np.asarray(vertices) - [0.2, 0.1, 0]
    normals = local / radii**2
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    exact = 2 * np.sum(local * normals / radii**2, axis=1) / np.sum((normals / radii) ** 2, axis=1)
    depth = thickness(vertices, faces, vertices, jnp.asarray(normals, jnp.float32), limit=1.0)
    np.testing.assert_allclose(depth, exact, rtol=0.01)
    assert float(thickness(vertices, faces, limit=0.03).max()) == pytest.approx(0.03)
    # an ear in front of a head: the ear's own back counts
    ear, ids = joined(sphere((0, 0, 0), 0.01, 12), sphere((0.2, 0, 0), 0.1, 12))
    bad = np.concatenate([ids, [[0, 0, 1]]])
    ear = jnp.asarray(np.concatenate([ear, [[np.nan] * 3]]), jnp.float32)
    bad = np.concatenate([bad, [[len(ear) - 1, 0, 1]]])
    depth = thickness(ear, bad, jnp.array([[-0.01, 0.0, 0.0]]), jnp.array([[-1.0, 0.001, 0.002]]), limit=1.0)
    assert 0.019 < float(depth[0]) < 0.0201
    nothing = thickness(jnp.zeros((3, 3)), np.array([[0, 1, 2]]), jnp.zeros((1, 3)), jnp.ones((1, 3)))
    assert float(nothing[0]) == pytest.approx(0.1)


def test_maps_cover_the_chart():
    vertices, faces, uv, uv_faces = ball((0, 0, 0), (0.1,) * 3, 12, 16, (0.2, 0.2, 0.8, 0.8))
    topology = Topology(faces=faces, uv=uv.astype(np.float32), uv_faces=uv_faces, n_vertices=len(vertices))
    depth = np.asarray(thickness_map(jnp.asarray(vertices, jnp.float32), topology, 64, limit=0.3))
    inside = texture_chart(topology, 64).covered
    assert depth.shape == (64, 64, 1)
    assert (np.abs(depth[inside] - 0.19) < 0.011).all()
    assert depth[0, 0] == pytest.approx(0.3)


def test_refuses_what_it_cannot_draw():
    with pytest.raises(InputError, match="must be even"):
        make_shadowed_renderer(TOPOLOGY, SIZE, directions=7)
    with pytest.raises(InputError, match="unit vectors"):
        make_shadowed_renderer(TOPOLOGY, SIZE, directions=np.zeros((4, 2), np.float32))
    with pytest.raises(InputError, match="pose too"):
        RENDER.visibility_of(FACE.vertices, LAMPS)
    with pytest.raises(InputError, match="limit above 0"):
        thickness(FACE.vertices, FACES, limit=0.0)
