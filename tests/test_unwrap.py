"""From pictures to one texture: painted, rendered, unwrapped, combined, filled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_head import toy_head

from facejax.fitting.texture import combine, crop_side, unwrap_frame
from facejax.geometry.meshes import barycentric_points
from facejax.geometry.records import Camera, Pose
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.renderers.deferred import make_renderer
from facejax.renderers.uv import fill_holes, texture_chart

HEAD = toy_head(16, 24)
SIZE, TEXELS = (160, 160), 64
UPRIGHT = jnp.diag(jnp.array([1.0, -1.0, -1.0]))
CAMERA = Camera(focal=jnp.array([360.0, 360.0]), principal_point=jnp.array([80.0, 80.0]))
LIGHT = 0.5 * HEAD.init_light().at[2].add(-0.5).at[3].add(0.6)
RNG = np.random.default_rng(0)


def painted():
    """Smooth stripes and blotches between 0.6 and 1.4."""
    y, x = np.mgrid[:TEXELS, :TEXELS] / TEXELS
    waves = [np.sin(2 * np.pi * (a * x + b * y) + c) for a, b, c in ((3, 1, 0), (-2, 4, 1), (1, -5, 2))]
    return jnp.asarray(
        1 + 0.13 * np.stack([waves[0] + waves[k] + waves[k - 1] for k in range(3)], axis=-1), jnp.float32
    )


def face(texture=None):
    shared, frame = HEAD.init_code()
    made = HEAD.decode(HEAD.params, shared, frame).replace(specular=jnp.full(HEAD.topology.n_vertices, 0.03))
    return made if texture is None else made.replace(texture=texture)


@functools.cache
def chart():
    return texture_chart(HEAD.topology, TEXELS)


@functools.cache
def functions():
    render = make_renderer(HEAD.topology, SIZE)
    c = chart()

    def unwrap(image, ignore, pose):
        return unwrap_frame(image, ignore, face(), LIGHT, pose, CAMERA, HEAD.topology.faces, c.triangles, c.weights)

    return jax.jit(lambda texture, pose: render(face(texture), LIGHT, pose, CAMERA)), jax.jit(unwrap)


def poses():
    turns = [(0.0, 0.0, 0.0), (0.1, 0.7, 0.0), (0.0, -0.7, 0.1), (0.4, 0.1, 0.0), (-0.4, 0.2, 0.0)]
    return [
        Pose(rotation=jnp.matmul(UPRIGHT, rotvec_to_matrix(jnp.array(t))), translation=jnp.array([0.0, 0.0, 0.6]))
        for t in turns
    ]


@functools.cache
def unwrapped():
    render, unwrap = functions()
    pairs = [unwrap(render(painted(), p).colour, jnp.zeros(SIZE), p) for p in poses()]
    return np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])


def truth():
    return np.asarray(painted()).reshape(-1, 3)[chart().texels]


def on_skin():
    return HEAD.regions["skin"][chart().triangles[:, 0]] > 0


def psnr(error):
    return -10 * np.log10(np.mean(np.square(error)))


def test_the_chart_names_the_point_of_every_texel():
    c = chart()
    corners = np.repeat(np.asarray(HEAD.topology.uv_faces)[..., None], 1, axis=-1)[..., 0]
    assert c.size == TEXELS
    assert len(c.texels) > 0.6 * TEXELS**2
    np.testing.assert_allclose(c.weights.sum(axis=1), 1, atol=1e-4)
    triangle_of = {tuple(f): k for k, f in enumerate(HEAD.topology.faces)}
    for k in RNG.choice(len(c.texels), 40, replace=False):
        uv = c.weights[k] @ HEAD.topology.uv[corners[triangle_of[tuple(c.triangles[k])]]]
        row, column = divmod(int(c.texels[k]), TEXELS)
        np.testing.assert_allclose(uv, [(column + 0.5) / TEXELS, 1 - (row + 0.5) / TEXELS], atol=1e-3)


def test_one_frame_gives_back_what_it_sees():
    factors, trust = (x[0] for x in unwrapped())
    good = (trust > 0.3) & on_skin()
    assert 0.05 < good.mean() < 0.6
    error = factors[good] - truth()[good]
    assert psnr(error) > 45
    assert np.abs(np.median(error)) < 0.002
    assert (
        psnr((factors - truth())[trust > 0.3]) > 23
    )  # with texels where the toy's eyes and teeth poke through its skin


def test_what_faces_away_is_not_trusted():
    _, trust = unwrapped()
    at = np.asarray(barycentric_points(face().vertices, chart().triangles, chart().weights))
    behind = at[:, 2] < -0.02
    assert (trust[0][behind] == 0).all()
    assert trust.min() >= 0
    assert trust.max() <= 1


def test_eyeballs_do_not_take_the_colour_of_lids():
    """Texels of an eyeball inside the skull are never seen."""
    _, trust = unwrapped()
    at = np.asarray(barycentric_points(face().vertices, chart().triangles, chart().weights))
    eye = np.asarray(HEAD.params.eye_weight)[chart().triangles[:, 0], 0] == 1
    inside = eye & (np.sum(np.square(at / [0.08, 0.11, 0.09]), axis=1) < 0.93)
    assert inside.any()
    assert (trust[0][inside] == 0).all()


def test_frames_together_recover_the_painting():
    factors, trust = unwrapped()
    colour, total = combine(factors, trust)
    good = (total > 0.5) & on_skin()
    assert good.sum() > 1.5 * ((trust[0] > 0.5) & on_skin()).sum()
    assert psnr((colour - truth())[good]) > 38
    assert psnr((factors[0] - truth())[good]) < 25  # which one frame does not see


def test_an_ignored_pixel_gives_nothing():
    render, unwrap = functions()
    image = render(painted(), poses()[0]).colour
    _, free = unwrap(image, jnp.zeros(SIZE), poses()[0])
    _, left = unwrap(image, jnp.zeros(SIZE).at[:, 80:].set(1.0), poses()[0])
    at = np.asarray(barycentric_points(face().vertices, chart().triangles, chart().weights))
    right_of_image = at[:, 0] > 0.004  # the subject's left
    assert (np.asarray(left)[right_of_image] == 0).all()
    clear = at[:, 0] < -0.004
    np.testing.assert_allclose(np.asarray(left)[clear], np.asarray(free)[clear], atol=1e-6)


def test_a_clipped_picture_is_trusted_less():
    render, unwrap = functions()
    image = render(painted(), poses()[0]).colour
    _, dim = unwrap(image, jnp.zeros(SIZE), poses()[0])
    _, clipped = unwrap(jnp.ones_like(image), jnp.zeros(SIZE), poses()[0])
    np.testing.assert_allclose(clipped, 0.1 * np.asarray(dim), rtol=1e-4, atol=1e-7)


def test_an_outlier_is_voted_out():
    factors = np.full((6, 50, 3), 0.8, np.float32) * np.exp(RNG.normal(scale=0.01, size=(6, 50, 3))).astype(np.float32)
    factors[2, :, :] = 6.0  # a hand before the face
    trust = np.ones((6, 50), np.float32)
    colour, total = combine(factors, trust)
    np.testing.assert_allclose(colour, 0.8, rtol=0.02)
    np.testing.assert_allclose(total, 6)
    trust[:, 7] = 0
    colour, total = combine(factors.astype(np.float16), trust.astype(np.float16))
    assert total[7] == 0
    assert np.isfinite(colour).all()
    assert colour.dtype == np.float32


def test_frames_of_no_confidence_do_not_count():
    factors = np.stack([np.full((9, 3), 0.5), np.full((9, 3), 0.52), np.full((9, 3), 2.0)]).astype(np.float32)
    trust = np.stack([np.ones(9), np.ones(9), np.zeros(9)]).astype(np.float32)
    np.testing.assert_allclose(combine(factors, trust)[0], 0.51, rtol=0.01)


@pytest.mark.parametrize("size", [1, 2, 64])
def test_holes_take_the_colour_around_them(size):
    image = np.full((size, size, 3), 0.7, np.float32)
    weight = np.ones((size, size), np.float32)
    if size > 2:
        image[10:30, 12:40], weight[10:30, 12:40] = 99.0, 0.0
    np.testing.assert_allclose(fill_holes(image, weight), 0.7, atol=1e-4)


def test_what_is_known_is_kept_and_nothing_known_is_neutral():
    image = RNG.uniform(size=(32, 32, 3)).astype(np.float32)
    weight = (RNG.uniform(size=(32, 32)) > 0.3).astype(np.float32)
    filled = fill_holes(image, weight)
    known = weight > 0
    np.testing.assert_allclose(filled[known], image[known], atol=1e-6)
    assert filled.min() >= image[known].min() - 1e-5
    assert filled.max() <= image[known].max() + 1e-5
    np.testing.assert_array_equal(fill_holes(image, np.zeros((32, 32), np.float32)), 1)


def test_a_hole_between_two_colours_is_bridged():
    image = np.zeros((64, 64, 1), np.float32)
    image[:, 40:] = 1.0
    weight = np.ones((64, 64), np.float32)
    weight[:, 24:40] = 0
    row = fill_holes(image, weight)[32, :, 0]
    assert (row[:24] == 0).all()
    assert (row[40:] == 1).all()
    assert (np.diff(row) >= -1e-6).all()


def test_crops_of_faces_of_like_size_share_their_side():
    assert [crop_side(x) for x in (20.0, 260.0, 500.0, 600.0, 5000.0)] == [64, 256, 512, 512, 1024]
