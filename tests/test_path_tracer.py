"""The path tracer: its picture, its derivatives, its agreement with the rasteriser and with Mitsuba's own parts."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_head import ball

from facejax.geometry.cameras import project, to_camera_frame
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import Topology
from facejax.geometry.records import Camera, Face, Pose
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.renderers.deferred import Render, make_renderer
from facejax.renderers.lights import Environment, NearLights
from facejax.renderers.llvm import require_llvm
from facejax.renderers.path_tracer import make_path_tracer
from facejax.renderers.raster import rasterise

pytestmark = pytest.mark.usefixtures("llvm")

SIZE = (40, 48)
CAMERA = Camera(focal=jnp.array([85.0, 93.0]), principal_point=jnp.array([20.3, 22.6]))
POSE = Pose(
    rotation=jnp.diag(jnp.array([1.0, -1.0, -1.0])) @ rotvec_to_matrix(jnp.array([0.2, -0.4, 0.1])),
    translation=jnp.array([0.01, -0.01, 0.6]),
)
EVEN = jnp.zeros((9, 3)).at[0].set(math.sqrt(4 * math.pi))  # radiance 1 from everywhere
SKEWED = EVEN + 0.4 * jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (9, 3)), jnp.float32)
LAMPS = NearLights(
    positions=jnp.array([[0.2, -0.2, 0.1], [-0.3, 0.0, 0.2]]), intensity=jnp.array([[0.3, 0.2, 0.1], [0.1, 0.2, 0.2]])
)


@pytest.fixture(scope="module")
def llvm():
    try:
        return require_llvm()
    except InputError as e:
        pytest.skip(str(e))


@functools.cache
def egg(rows=32, columns=48):
    """(topology, vertices) of an ellipsoid with a UV seam."""
    vertices, faces, uv, uv_faces = ball((0, 0, 0), (0.08, 0.11, 0.09), rows, columns, (0.0, 0.0, 1.0, 1.0))
    topology = Topology(
        faces=faces.astype(np.int32),
        uv=uv.astype(np.float32),
        uv_faces=uv_faces.astype(np.int32),
        n_vertices=len(vertices),
    )
    return topology, jnp.asarray(vertices, jnp.float32)


def face_of(vertices, albedo=0.6, specular=0.0, roughness=0.4, texture=None):
    n = len(vertices)
    return Face(
        vertices=vertices,
        albedo=jnp.full((n, 3), albedo),
        texture=jnp.ones((1, 1, 3)) if texture is None else texture,
        specular=jnp.full(n, specular),
        roughness=jnp.full(n, roughness),
    )


@functools.cache
def tracer(samples=16, **options):
    return jax.jit(make_path_tracer(egg()[0], SIZE, samples=samples, **options))


def inner(coverage):
    """Pixels that the head fills, with their neighbours."""
    full = np.asarray(coverage) > 0.999
    for axis in (0, 1):
        full &= np.roll(full, 1, axis) & np.roll(full, -1, axis)
    return full


# --- the picture ---


def test_it_is_a_render():
    assert isinstance(make_path_tracer(egg()[0], SIZE), Render)


def test_even_light_shows_albedo_times_texture():
    rows, columns = jnp.meshgrid(jnp.linspace(0.2, 1.0, 5), jnp.linspace(0.3, 1.0, 4), indexing="ij")
    face = face_of(egg()[1], texture=jnp.stack([rows, columns, rows * columns], axis=-1))
    face = face.replace(albedo=0.5 + 3 * face.vertices)
    image = tracer(64)(face, EVEN, POSE, CAMERA)
    expected = jax.jit(make_renderer(egg()[0], SIZE))(face, EVEN, POSE, CAMERA)
    where = inner(image.coverage)
    assert where.sum() > 200
    # directions of the lobe and of the map are weighed together: what is left is noise and what a facet hides of itself
    assert abs(np.mean(np.asarray(image.colour - expected.colour)[where])) < 2e-3
    np.testing.assert_allclose(np.asarray(image.colour)[where], np.asarray(expected.colour)[where], atol=0.1)
    np.testing.assert_allclose(image.coverage, expected.coverage, atol=0.25)
    assert abs(float(image.coverage.sum() / expected.coverage.sum()) - 1) < 2e-3
    np.testing.assert_allclose(image.depth, expected.depth, atol=1e-5)


def test_a_shiny_white_surface_returns_no_more_than_it_gets():
    for roughness in (0.1, 0.6):
        shiny = face_of(egg()[1], albedo=0.0, specular=1.0, roughness=roughness)
        image = tracer(64)(shiny, EVEN, POSE, CAMERA)
        seen = np.asarray(image.colour)[inner(image.coverage)]
        assert seen.mean() < 1.0
        assert seen.mean() > (0.9 if roughness == 0.1 else 0.5)  # light that bounces between facets is lost


def test_nothing_outside_and_the_camera_is_where_it_says():
    image = tracer()(face_of(egg()[1]), EVEN, POSE, CAMERA)
    outside = np.asarray(image.coverage) == 0
    assert outside.any()
    assert not np.asarray(image.colour)[outside].any()
    assert not np.asarray(image.depth)[outside].any()
    in_camera = to_camera_frame(egg()[1], POSE)
    screen = jnp.concatenate([project(in_camera, CAMERA), in_camera[:, 2:]], axis=-1)
    fragments = jax.jit(lambda s: rasterise(s, egg()[0].faces, SIZE))(screen)
    assert np.mean((np.asarray(fragments.depth) > 0) == (np.asarray(image.depth) > 0)) > 0.999


def square(half):
    """(topology, vertices) of a square that faces the camera of a head that is not turned."""
    corners = jnp.array([[-1.0, -1.0, 0.0], [1.0, -1.0, 0.0], [1.0, 1.0, 0.0], [-1.0, 1.0, 0.0]]) * half
    faces = np.array([[0, 2, 1], [0, 3, 2]])
    uv = np.zeros((1, 2), np.float32)
    return Topology(faces=faces, uv=uv, uv_faces=np.zeros_like(faces), n_vertices=4), corners


def test_edges_are_drawn_where_they_project():
    topology, corners = square(0.03)
    render = jax.jit(make_path_tracer(topology, SIZE, samples=2048))
    for place in ([-0.04, -0.05, 0.6], [0.1, 0.05, 0.7]):
        pose = Pose(rotation=jnp.eye(3), translation=jnp.array(place))
        coverage = np.asarray(render(face_of(corners), EVEN, pose, CAMERA).coverage)
        low, _, high, _ = np.asarray(project(to_camera_frame(corners, pose), CAMERA))
        for axis in (0, 1):  # x, y: how much of each column and row lies between the edges
            ids = np.arange(SIZE[1 - axis])
            expected = np.clip(np.minimum(ids + 1, high[axis]) - np.maximum(ids, low[axis]), 0, None)
            profile = coverage.sum(axis=axis) / (high - low)[1 - axis]
            np.testing.assert_allclose(profile, expected, atol=0.01)


def test_lambert_under_soft_light_agrees_with_the_rasteriser_within_its_noise():
    face = face_of(egg(64, 96)[1])
    render = jax.jit(make_path_tracer(egg(64, 96)[0], SIZE, samples=64))
    keys = jax.random.split(jax.random.key(0), 4)
    drawn = np.stack([render(face, SKEWED, POSE, CAMERA, key).colour for key in keys])
    expected = np.asarray(jax.jit(make_renderer(egg(64, 96)[0], SIZE))(face, SKEWED, POSE, CAMERA).colour)
    where = inner(render(face, SKEWED, POSE, CAMERA).coverage)
    sigma = math.sqrt(drawn.std(axis=0, ddof=1)[where].__pow__(2).mean() / len(keys))
    error = (drawn.mean(axis=0) - expected)[where]
    assert sigma < 0.02
    assert math.sqrt((error**2).mean()) < 1.5 * sigma + 2e-3
    assert abs(error.mean()) < 4 * sigma / math.sqrt(error.size) + 1e-3  # facets hide a little of the sky


@pytest.mark.parametrize(("row", "column", "normal"), [(0, 3, [0, -1, 0]), (2, 7, [1, 0, 0]), (2, 2, [-1, 0, 0])])
def test_one_bright_texel_lights_the_side_it_is_on(row, column, normal):
    height, width = 5, 10
    radiance = jnp.zeros((height, width, 3)).at[row, column].set(10.0)
    image = tracer(64)(face_of(egg()[1]), Environment(radiance=radiance), POSE, CAMERA)
    colour = np.asarray(image.colour[..., 0])
    y, x = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]), indexing="ij")
    lit = np.array([(colour * x).sum(), (colour * y).sum()]) / colour.sum()
    middle = np.asarray(project(POSE.translation, CAMERA))
    assert np.dot(lit - middle, normal[:2]) > 3


def test_a_lamp_twice_as_far_gives_a_quarter():
    face = face_of(egg()[1])

    def brightness(metres):
        lamp = NearLights(positions=jnp.array([[0.0, 0.0, -metres + 0.6]]), intensity=jnp.ones((1, 3)) * 100)
        return float(tracer()(face, lamp, POSE, CAMERA).colour.sum())

    assert abs(brightness(20.0) / brightness(40.0) - 4) < 0.05
    # a matt square that faces the lamp at 1 m: irradiance = intensity
    topology, corners = square(0.5)
    lamp = NearLights(positions=jnp.zeros((1, 3)), intensity=jnp.array([[1.0, 2.0, 3.0]]))
    pose = Pose(rotation=jnp.eye(3), translation=jnp.array([0.0, 0.0, 1.0]))
    camera = CAMERA.replace(principal_point=jnp.array([24.5, 20.5]))
    image = make_path_tracer(topology, SIZE, samples=64)(face_of(corners), lamp, pose, camera)
    np.testing.assert_allclose(image.colour[20, 24], 0.6 / np.pi * np.array([1, 2, 3]), rtol=1e-3)


def test_more_bounces_add_light_between_faces_only_where_there_are_some():
    direct = tracer(64)(face_of(egg()[1]), SKEWED, POSE, CAMERA).colour
    deep = tracer(64, max_depth=4)(face_of(egg()[1]), SKEWED, POSE, CAMERA).colour
    assert abs(float(deep.sum() / direct.sum()) - 1) < 0.01  # convex


# --- the surface model ---


def directions(rng, n):
    v = rng.normal(size=(3, n))
    v[2] = np.abs(v[2]) + 0.02
    return (v / np.linalg.norm(v, axis=0)).astype(np.float32)


def hits(mi, dr, wi):
    si = dr.zeros(mi.SurfaceInteraction3f, wi.shape[1])
    si.wi = mi.Vector3f(wi)
    si.n, si.sh_frame = mi.Normal3f(0, 0, 1), mi.Frame3f(mi.Vector3f(0, 0, 1))
    return si


def one_triangle(mi, albedo, specular, roughness):
    from facejax.renderers.mitsuba_bsdf import skin_bsdf_class

    bsdf = skin_bsdf_class(mi.variant())(mi.Properties())
    bsdf.set_mesh(np.array([[0, 1, 2]]), np.zeros((1, 3, 2)))
    bsdf.set_material(np.full((3, 3), albedo), np.ones((1, 1, 3)), np.full(3, specular), np.full(3, roughness))
    return bsdf


@pytest.fixture
def mitsuba(llvm):
    import drjit as dr
    import mitsuba as mi

    mi.set_variant("llvm_ad_rgb")
    return mi, dr


@pytest.mark.parametrize("roughness", [0.1, 0.3, 0.9])
def test_surface_model_equals_our_formula_and_mitsubas_own_conductor(mitsuba, roughness):
    from facejax.renderers.microfacet import specular_brdf

    mi, dr = mitsuba
    rng = np.random.default_rng(2)
    wi, wo = directions(rng, 4000), directions(rng, 4000)
    si, context = hits(mi, dr, wi), mi.BSDFContext()
    for specular, albedo in ((1.0, 0.0), (0.04, 0.5)):
        ours = one_triangle(mi, albedo, specular, roughness).eval(context, si, mi.Vector3f(wo), mi.Bool(True))
        up = jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0]), (4000, 3))
        formula = specular_brdf(
            up, jnp.asarray(wo.T), jnp.asarray(wi.T), jnp.full(4000, specular), jnp.full(4000, roughness)
        )
        np.testing.assert_allclose(ours.x, (formula + albedo / np.pi) * wo[2], rtol=3e-4)
        if specular == 1.0:
            # a perfect mirror's facets: Fresnel's term is 1
            plugin = {"type": "roughconductor", "material": "none", "alpha": roughness, "distribution": "ggx"}
            theirs = mi.load_dict(plugin).eval(context, si, mi.Vector3f(wo))
            np.testing.assert_allclose(ours.x, theirs.x, rtol=3e-4)


def test_drawn_directions_have_the_density_that_is_claimed(mitsuba):
    mi, dr = mitsuba
    rng = np.random.default_rng(3)
    n = 1 << 19
    wi = np.repeat(np.array([[0.6], [0.0], [0.8]], np.float32), n, axis=1)
    si = hits(mi, dr, wi)
    bsdf = one_triangle(mi, 0.3, 0.2, 0.35)
    u = rng.random((3, n)).astype(np.float32)
    drawn, weight = bsdf.sample(mi.BSDFContext(), si, mi.Float(u[0]), mi.Point2f(u[1:]), mi.Bool(True))
    sphere = mi.warp.square_to_uniform_hemisphere(mi.Point2f(u[1:]))
    value, pdf = bsdf.eval_pdf(mi.BSDFContext(), si, sphere, mi.Bool(True))
    uniform = np.array(value.x) * 2 * np.pi
    kept = np.array(weight.x)
    sigma = math.sqrt(uniform.var() / n + kept.var() / n)
    assert abs(uniform.mean() - kept.mean()) < 5 * sigma
    below = np.mean(np.array(drawn.wo.z) <= 0)
    assert abs(np.mean(np.array(pdf)) * 2 * np.pi - (1 - below)) < 0.01


def test_direct_light_on_a_convex_body_is_all_that_mitsubas_prb_finds():
    """Ours has its own light sampling; Mitsuba's `prb`, at one more bounce, shares scene and camera."""
    face = face_of(egg()[1], specular=0.3, roughness=0.3)
    mine = np.stack([tracer(64)(face, SKEWED, POSE, CAMERA, jax.random.key(i)).colour for i in range(2)]).mean(axis=0)
    deep = np.stack(
        [tracer(64, max_depth=3)(face, SKEWED, POSE, CAMERA, jax.random.key(i)).colour for i in range(2)]
    ).mean(axis=0)
    assert abs(mine.sum() / deep.sum() - 1) < 5e-3


# --- transformations ---


def test_jit_vmap_and_keys():
    render = make_path_tracer(egg()[0], SIZE, samples=4)
    face = face_of(egg()[1])
    before = jax.tree.map(np.array, (face, SKEWED, POSE, CAMERA))
    compiled = jax.jit(render)
    poses = jax.tree.map(lambda x: jnp.stack([x, x]), POSE)
    poses = poses.replace(translation=poses.translation.at[1, 0].add(0.02))
    key = jax.random.key(5)
    batch = jax.jit(jax.vmap(render, in_axes=(None, None, 0, None, None)))(face, SKEWED, poses, CAMERA, key)
    for i in range(2):
        pose = jax.tree.map(lambda x: x[i], poses)  # noqa: B023
        eager, traced = render(face, SKEWED, pose, CAMERA, key), compiled(face, SKEWED, pose, CAMERA, key)
        np.testing.assert_allclose(eager.colour, traced.colour, atol=2e-5)
        np.testing.assert_allclose(batch.colour[i], traced.colour, atol=2e-5)
    assert compiled._cache_size() == 1
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, (face, SKEWED, POSE, CAMERA)))
    again = compiled(face, SKEWED, POSE, CAMERA, key)
    np.testing.assert_array_equal(again.colour, compiled(face, SKEWED, POSE, CAMERA, key).colour)
    other = compiled(face, SKEWED, POSE, CAMERA, jax.random.key(6))
    assert float(jnp.abs(other.colour - again.colour).max()) > 1e-3


# --- derivatives ---

WEIGHT = jnp.asarray(np.add.outer(np.arange(SIZE[0]) / SIZE[0], np.arange(SIZE[1]) / SIZE[1]), jnp.float32)
STEPS = {
    "light": 0.1,
    "scale": 0.01,
    "shift": 0.003,
    "albedo": 0.1,
    "roughness": 0.02,
    "specular": 0.02,
    "texture": 0.1,
    "turn": 0.05,
    "away": 0.01,
    "focal": 0.02,
    "lamp": 0.02,
}


def summed(render, light, p):
    """A weighted sum over the picture, as a function of one number per kind of input."""
    face = face_of(egg()[1], specular=0.2, texture=jnp.full((3, 4, 3), 0.8) * (1 + p["texture"]))
    face = face.replace(
        vertices=face.vertices * (1 + p["scale"]) + p["shift"] * jnp.array([1.0, 0.3, 0.0]),
        albedo=face.albedo * (1 + p["albedo"]),
        specular=face.specular + p["specular"],
        roughness=face.roughness + p["roughness"],
    )
    if isinstance(light, NearLights):
        moved = light.positions + p["lamp"] * jnp.array([1.0, 0.5, -0.3])
        light = NearLights(positions=moved, intensity=light.intensity * (1 + p["light"]))
    else:
        light = light.at[2].add(p["light"])
    turn = rotvec_to_matrix(p["turn"] * jnp.array([0.2, 1.0, 0.1]))
    pose = Pose(rotation=POSE.rotation @ turn, translation=POSE.translation + p["away"] * jnp.array([0.0, 0.0, 1.0]))
    image = render(face, light, pose, CAMERA.replace(focal=CAMERA.focal * (1 + p["focal"])))
    return jnp.sum(image.colour * WEIGHT[..., None]) + jnp.sum(image.coverage * WEIGHT)


@pytest.mark.parametrize("light", [SKEWED, LAMPS], ids=["harmonics", "lamps"])
def test_derivatives_equal_differences(light):
    zero = {k: jnp.zeros(()) for k in STEPS}
    found = jax.jit(jax.grad(lambda p: summed(tracer(128), light, p)))(zero)
    value = jax.jit(lambda p: summed(tracer(256), light, p))
    kinds = STEPS if isinstance(light, NearLights) else STEPS.keys() - {"lamp"}
    for kind in kinds:
        h = STEPS[kind]
        up, down = (float(value(zero | {kind: jnp.float32(s * h)})) for s in (1, -1))
        difference = (up - down) / (2 * h)
        # 3 %, or what the facets of a coarse mesh, which hide light from themselves in steps, leave
        tolerance = max(
            (0.1 if kind in ("shift", "turn") else 0.03) * abs(difference),
            0.004 * float(value(zero)) * {"shift": 10, "turn": 1}.get(kind, 0.3),
        )
        assert abs(float(found[kind]) - difference) < tolerance, (kind, float(found[kind]), difference)


def test_outline_can_be_left_out():
    zero = {k: jnp.zeros(()) for k in STEPS}
    inside = jax.jit(jax.grad(lambda p: summed(tracer(64, silhouettes="none"), SKEWED, p)))(zero)
    whole = jax.jit(jax.grad(lambda p: summed(tracer(64), SKEWED, p)))(zero)
    assert float(whole["scale"]) > 2 * abs(float(inside["scale"]))
    np.testing.assert_allclose(inside["albedo"], whole["albedo"], rtol=1e-4)


def test_derivatives_per_vertex_are_finite_even_with_a_broken_mesh():
    topology, vertices = egg()
    vertices = vertices.at[5].set(vertices[6])  # triangles without area
    render = make_path_tracer(topology, SIZE, samples=4)
    face = face_of(vertices, specular=0.5, roughness=0.05)

    def total(face, light, pose, camera):
        return jnp.sum(render(face, light, pose, camera).colour)

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))(face, SKEWED, POSE, CAMERA)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    assert float(jnp.abs(gradient[0].vertices).max()) > 0


def test_derivative_for_a_map_is_linear():
    """The picture is linear in the light: the derivative's product with the light is the picture."""
    rng = np.random.default_rng(4)
    light = Environment(radiance=jnp.asarray(rng.uniform(0.5, 1.5, (4, 9, 3)), jnp.float32))
    face = face_of(egg()[1])
    value, gradient = jax.value_and_grad(lambda l: jnp.sum(tracer(64)(face, l, POSE, CAMERA).colour))(light)
    assert abs(float(jnp.sum(gradient.radiance * light.radiance) / value) - 1) < 0.01
    assert float(gradient.radiance.min()) >= 0


# --- bad input ---


def test_options_that_cannot_be_drawn_are_refused():
    topology, _ = egg()
    with pytest.raises(InputError, match="vertices from 0"):
        make_path_tracer(dataclasses.replace(topology, n_vertices=10), SIZE)
    with pytest.raises(InputError, match="UV triangles"):
        make_path_tracer(dataclasses.replace(topology, uv=topology.uv[:10]), SIZE)
    with pytest.raises(InputError, match="triangles"):
        make_path_tracer(dataclasses.replace(topology, faces=topology.faces[:0]), SIZE)
    with pytest.raises(InputError, match="samples"):
        make_path_tracer(topology, SIZE, samples=0)
    with pytest.raises(InputError, match="size"):
        make_path_tracer(topology, (0, 5))


def test_values_that_cannot_be_drawn_are_refused():
    face = face_of(egg()[1])
    with pytest.raises(InputError, match="finite"):
        make_path_tracer(egg()[0], SIZE)(face.replace(vertices=face.vertices.at[3, 1].set(jnp.nan)), EVEN, POSE, CAMERA)
