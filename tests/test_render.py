"""The default renderer: what light makes of a head, and another renderer as judge of its geometry."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_head import toy_codes, toy_head

from facejax.geometry.cameras import crop_camera, project, to_camera_frame
from facejax.geometry.meshes import normalise, vertex_normals
from facejax.geometry.records import Camera, Pose
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.renderers.deferred import Render, make_renderer, vertex_light
from facejax.renderers.raster import interpolate, rasterise

HEAD = toy_head(16, 24)
SIZE = (56, 64)
UPRIGHT = jnp.diag(jnp.array([1.0, -1.0, -1.0]))
CAMERA = Camera(focal=jnp.array([150.0, 150.0]), principal_point=jnp.array([32.4, 27.7]))
TURN = rotvec_to_matrix(jnp.array([0.2, -0.4, 0.1]))
POSE = Pose(rotation=UPRIGHT @ TURN, translation=jnp.array([0.01, -0.01, 0.6]))
EVEN = HEAD.init_light()
RNG = np.random.default_rng(0)


def face(specular=0.0):
    shared, frame = HEAD.init_code()
    made = HEAD.decode(HEAD.params, shared, frame)
    return made.replace(specular=jnp.full_like(made.specular, specular))


@functools.cache
def renderer(antialiased=True):
    return jax.jit(make_renderer(HEAD.topology, SIZE, antialiased=antialiased))


def lights(n=2):
    """Lights of three bands that are positive everywhere a surface could look."""
    extra = jnp.asarray(RNG.uniform(-0.25, 0.25, (n, 9, 3)), jnp.float32)
    return EVEN + extra.at[:, 0].add(0.5)


def test_it_is_a_render():
    assert isinstance(make_renderer(HEAD.topology, SIZE), Render)


def test_even_light_shows_the_albedo():
    image = renderer(antialiased=False)(face(), EVEN, POSE, CAMERA)
    seen = to_camera_frame(face().vertices, POSE)
    screen = jnp.concatenate([project(seen, CAMERA), seen[:, 2:]], axis=-1)
    f = rasterise(screen, HEAD.topology.faces, SIZE)
    expected = interpolate(face().albedo, f, HEAD.topology.faces)
    np.testing.assert_allclose(image.colour, expected, atol=2e-3)
    np.testing.assert_array_equal(image.coverage, np.asarray(f.triangle) >= 0)
    np.testing.assert_allclose(image.depth, f.depth, atol=1e-5)
    assert (np.asarray(image.coverage) > 0).sum() > 500


def test_outside_is_black_empty_and_without_depth():
    image = renderer()(face(0.03), lights()[0], POSE, CAMERA)
    outside = np.asarray(image.coverage) == 0
    assert outside.any()
    assert (np.asarray(image.colour)[outside] == 0).all()
    inside = np.asarray(image.depth) > 0
    assert (np.asarray(image.coverage)[inside] >= 0.45).all()  # a pixel whose centre is covered
    assert (np.asarray(image.coverage)[~inside] <= 0.55).all()
    depth = np.asarray(image.depth)[inside]
    assert depth.min() > 0.6 - 0.12
    assert depth.max() < 0.6 + 0.12


def test_antialiasing_is_premultiplied_and_keeps_the_inside():
    soft, hard = (renderer(a)(face(), EVEN, POSE, CAMERA) for a in (True, False))
    assert ((np.asarray(soft.coverage) > 0.02) & (np.asarray(soft.coverage) < 0.98)).sum() > 60
    np.testing.assert_allclose(np.asarray(soft.coverage).sum(), np.asarray(hard.coverage).sum(), rtol=0.01)
    coverage = np.asarray(soft.coverage)
    rim = (coverage > 0.05) & (coverage < 0.95)
    ratio = np.asarray(soft.colour)[rim] / coverage[rim, None]
    assert ratio.max() < 0.8 + 1e-3  # no brighter than the brightest albedo: the background adds nothing
    np.testing.assert_allclose(np.median(ratio, axis=0), [0.5, 0.3, 0.2], atol=0.02)


def test_diffuse_light_adds_up():
    a, b = lights()
    together = renderer()(face(), a + b, POSE, CAMERA).colour
    apart = renderer()(face(), a, POSE, CAMERA).colour + renderer()(face(), b, POSE, CAMERA).colour
    np.testing.assert_allclose(together, apart, atol=2e-5)
    np.testing.assert_allclose(
        renderer()(face(), 3 * a, POSE, CAMERA).colour, 3 * renderer()(face(), a, POSE, CAMERA).colour, atol=2e-5
    )


def test_gloss_is_added_and_bounded():
    matte, glossy = (renderer()(face(s), EVEN, POSE, CAMERA).colour for s in (0.0, 0.04))
    gain = np.asarray(glossy - matte)
    assert gain.min() > -1e-5
    assert gain.max() > 0.03
    assert gain.max() < 1.0
    normals = vertex_normals(face().vertices, HEAD.topology.faces)
    diffuse, specular = vertex_light(face(0.04), EVEN, POSE, normals)
    np.testing.assert_allclose(diffuse, 1, atol=1e-5)
    to_eye = normalise(-to_camera_frame(face().vertices, POSE))
    facing = jnp.sum((normals @ POSE.rotation.T) * to_eye, axis=-1)
    front = np.asarray(facing) > 0.9
    np.testing.assert_allclose(np.asarray(specular)[front], 0.04, atol=0.012)


def test_light_stays_with_the_camera():
    """A light from the camera's right brightens what is on the image's right, however the head is turned."""
    light = EVEN.at[3].add(0.8)  # + x
    for rotation in (UPRIGHT, UPRIGHT @ rotvec_to_matrix(jnp.array([0.0, 1.2, 0.0]))):
        pose = Pose(rotation=rotation, translation=jnp.array([0.0, 0.0, 0.6]))
        centred = CAMERA.replace(principal_point=jnp.array([32.0, 28.0]))
        colour = np.asarray(renderer()(face(), light, pose, centred).colour)[..., 0]
        assert colour[:, 32:].sum() > 1.15 * colour[:, :32].sum()


def test_the_texture_multiplies():
    plain = face()
    half = plain.replace(texture=jnp.full((8, 8, 3), 0.5))
    a, b = (renderer()(x, EVEN, POSE, CAMERA).colour for x in (plain, half))
    np.testing.assert_allclose(b, 0.5 * np.asarray(a), atol=1e-5)


def test_a_crop_is_a_part_of_the_image():
    box = jnp.array([16.0, 14.0, 32.0, 28.0])
    part = renderer()(face(), EVEN, POSE, crop_camera(CAMERA, box, SIZE))
    whole = renderer()(face(), EVEN, POSE, CAMERA)
    small = np.asarray(part.depth).reshape(28, 2, 32, 2).mean(axis=(1, 3))
    both = (np.asarray(part.depth).reshape(28, 2, 32, 2) > 0).all(axis=(1, 3))
    error = np.abs(small - np.asarray(whole.depth)[14:42, 16:48])[both]
    assert np.quantile(error, 0.9) < 5e-4
    assert error.max() < 0.012  # where eyeballs and teeth meet the skin


def test_gradients_reach_everything_and_are_finite():
    target = renderer()(face(0.03), lights()[1], POSE, CAMERA).colour

    def loss(albedo, texture, light, rotvec, translation, vertices):
        pose = Pose(rotation=jnp.matmul(rotvec_to_matrix(rotvec), POSE.rotation), translation=translation)
        f = face(0.03).replace(albedo=albedo, texture=texture, vertices=vertices)
        return jnp.sum((renderer()(f, light, pose, CAMERA).colour - target) ** 2)

    start = (face().albedo, face().texture, EVEN, jnp.full(3, 0.01), POSE.translation + 0.003, face().vertices)
    for slope in jax.jit(jax.grad(loss, argnums=tuple(range(6))))(*start):
        assert np.isfinite(np.asarray(slope)).all()
        assert np.abs(np.asarray(slope)).max() > 0


def test_a_head_finds_its_place_by_silhouettes_and_shading():
    """The derivative with respect to translation points home from either side."""
    target = renderer()(face(), EVEN, POSE, CAMERA)

    @jax.jit
    @jax.grad
    def slope(offset):
        image = renderer()(face(), EVEN, POSE.replace(translation=POSE.translation + offset), CAMERA)
        return jnp.sum((image.coverage - target.coverage) ** 2)

    for axis in range(3):
        for side in (0.004, -0.004):
            offset = jnp.zeros(3).at[axis].set(side * (4 if axis == 2 else 1))
            assert np.sign(slope(offset)[axis]) == np.sign(side)


def test_batches_and_compilation():
    traces = []
    render = make_renderer(HEAD.topology, SIZE)
    _, _, poses, _ = toy_codes(HEAD, 2)

    @jax.jit
    def both(light):
        traces.append(1)
        return jax.vmap(lambda pose: render(face(), light, pose, CAMERA))(poses)

    first = both(EVEN)
    both(lights()[0])
    assert len(traces) == 1
    one = renderer()(face(), EVEN, jax.tree_util.tree_map(lambda x: x[1], poses), CAMERA)
    np.testing.assert_allclose(first.colour[1], one.colour, atol=1e-3)
    assert first.colour.dtype == jnp.float32


def test_behind_the_camera_is_nothing():
    image = renderer()(face(), EVEN, POSE.replace(translation=jnp.array([0.0, 0.0, -0.6])), CAMERA)
    assert (np.asarray(image.coverage) == 0).all()
    assert (np.asarray(image.colour) == 0).all()


def test_mitsuba_agrees_on_what_is_where(tmp_path):
    mitsuba = pytest.importorskip("mitsuba")
    import trimesh

    before = mitsuba.variant()
    mitsuba.set_variant("scalar_rgb")
    try:
        points = np.asarray(to_camera_frame(face().vertices, POSE))
        trimesh.Trimesh(points, HEAD.topology.faces, process=False).export(tmp_path / "head.ply")
        scene = mitsuba.load_dict(
            {"type": "scene", "head": {"type": "ply", "filename": str(tmp_path / "head.ply"), "face_normals": True}}
        )

        def trace(x, y):
            d = np.array([(x - 32.4) / 150, (y - 27.7) / 150, 1.0])
            hit = scene.ray_intersect(mitsuba.Ray3f([0, 0, 0], (d / np.linalg.norm(d)).tolist()))
            return float(hit.p[2]) if hit.is_valid() else 0.0

        n = 3
        depth = np.array([[trace(x + 0.5, y + 0.5) for x in range(64)] for y in range(56)])
        image = renderer()(face(), EVEN, POSE, CAMERA)
        ours = np.asarray(image.depth)
        assert ((ours > 0) != (depth > 0)).sum() <= 2  # on the rim itself rounding decides
        both = (ours > 0) & (depth > 0)
        np.testing.assert_allclose(ours[both], depth[both], atol=2e-5)
        coverage = np.asarray(image.coverage)
        rim = np.argwhere((coverage > 0.02) & (coverage < 0.98))
        steps = (np.arange(n) + 0.5) / n
        judged = [np.mean([trace(x + u, y + v) > 0 for u in steps for v in steps]) for y, x in rim]
        assert np.abs(coverage[tuple(rim.T)] - judged).mean() < 0.1
        assert np.abs(coverage.sum() - (depth > 0).sum()) < 0.01 * coverage.sum()
    finally:
        if before:
            mitsuba.set_variant(before)
