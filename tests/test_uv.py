"""UV space: charts and gutters, seams that do not show, shading per texel, filtering that keeps means."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_head import toy_head

from facejax.geometry.errors import InputError
from facejax.geometry.meshes import Topology, barycentric_points, vertex_normals
from facejax.geometry.records import Camera, Pose
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.renderers.deferred import make_renderer, vertex_light
from facejax.renderers.raster import interpolate, rasterise
from facejax.renderers.texture import sample_texture
from facejax.renderers.uv import (
    at_texels,
    box_pyramid,
    face_at_texels,
    fill_gutter,
    fill_outside,
    gutter_chart,
    locate_texels,
    on_image,
    sample_pyramid,
    shade_chart,
    texel_footprint,
    texture_chart,
    texture_from,
    unwrap_image,
)

HEAD = toy_head(16, 24)
TEXELS, SIZE = 64, (96, 96)
RNG = np.random.default_rng(0)
LIGHT = 0.6 * HEAD.init_light().at[2].add(-0.5).at[3].add(0.6)
POSE = Pose(
    rotation=jnp.diag(jnp.array([1.0, -1.0, -1.0])) @ rotvec_to_matrix(jnp.array([0.1, 0.3, 0.0])),
    translation=jnp.array([0.0, 0.0, 0.6]),
)
CAMERA = Camera(focal=jnp.array([200.0, 200.0]), principal_point=jnp.array([48.0, 48.0]))


def face():
    shared, frame = HEAD.init_code()
    return HEAD.decode(HEAD.params, shared, frame)


@functools.cache
def charts(size=TEXELS):
    chart = texture_chart(HEAD.topology, size)
    return chart, gutter_chart(HEAD.topology, chart)


def positions(chart):
    return np.asarray(barycentric_points(face().vertices, chart.triangles, chart.weights))


# -- charts -----------------------------------------------------------------------------------------------------------


def test_texels_of_a_chart_are_where_it_says():
    chart, _ = charts()
    row, column = np.divmod(chart.texels, TEXELS)
    np.testing.assert_allclose(chart.uv, np.stack([(column + 0.5) / TEXELS, 1 - (row + 0.5) / TEXELS], -1), atol=1e-6)
    assert chart.covered.sum() == len(chart.texels) > 0.6 * TEXELS**2
    with pytest.raises(InputError, match="at least one texel"):
        texture_chart(HEAD.topology, 0)


def test_gutter_lies_around_the_chart_and_shows_the_mesh():
    chart, gutter = charts()
    assert len(gutter.texels) > 100
    assert not chart.covered.ravel()[gutter.texels].any()
    assert gutter.weights.min() >= 0
    np.testing.assert_allclose(gutter.weights.sum(axis=1), 1, atol=1e-5)
    near = np.argwhere(chart.covered)
    for texel in RNG.choice(gutter.texels, 30, replace=False):
        at = divmod(int(texel), TEXELS)
        assert np.linalg.norm(near - at, axis=1).min() < 4.5
    assert (chart.joined(gutter).covered == (chart.covered | gutter.covered)).all()
    with pytest.raises(InputError, match="cannot be joined"):
        chart.joined(charts(16)[0])


def folded_sheet(turn, scale):
    """Two squares side by side on the mesh, [0, 1] x [0, 1] and [1, 2] x [0, 1]; the second's chart is apart."""
    uv_left = np.array([[0.05, 0.05], [0.45, 0.05], [0.45, 0.45], [0.05, 0.45]])
    corners = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]]) - 0.5
    c, s = np.cos(turn), np.sin(turn)
    uv_right = 0.4 * scale * corners @ np.array([[c, -s], [s, c]]).T + [0.7, 0.7]
    faces = np.array([[0, 1, 2], [0, 2, 3], [1, 4, 5], [1, 5, 2]], np.int32)
    uv_faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]], np.int32)
    vertices = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [2, 0, 0], [2, 1, 0]], np.float32)
    uv = np.concatenate([uv_left, uv_right]).astype(np.float32)
    return Topology(faces=faces, uv=uv, uv_faces=uv_faces, n_vertices=6), vertices


@pytest.mark.parametrize(("turn", "scale"), [(0.0, 1.0), (np.pi / 2, 1.0), (0.6, 0.7), (-2.0, 1.1)])
def test_a_gutter_continues_the_plane_across_the_seam(turn, scale):
    topology, vertices = folded_sheet(turn, scale)
    chart = texture_chart(topology, 80)
    gutter = gutter_chart(topology, chart, width=3)
    at = at_texels(jnp.asarray(vertices), gutter.triangles, gutter.weights)
    row, column = np.divmod(gutter.texels, 80)
    # texels right of the left square: one texel is 1 / 32 of the sheet
    right = (column >= 36) & (column < 39) & (row > 46) & (row < 74)
    assert right.sum() > 60
    expected = np.stack([((column + 0.5) / 80 - 0.05) / 0.4, (1 - (row + 0.5) / 80 - 0.05) / 0.4], axis=-1)
    np.testing.assert_allclose(np.asarray(at)[right, :2], expected[right], atol=1e-4)
    left = (column < 4) & (row > 46) & (row < 74)  # the sheet ends there: its edge is repeated
    np.testing.assert_allclose(np.asarray(at)[left, 0], 0, atol=1e-6)
    np.testing.assert_allclose(np.asarray(at)[left, 1], expected[left, 1], atol=1e-4)


def along_the_seam(offset):
    """UV on both sides of the seam at the back of the toy's skin, `offset` of the chart's width away from it."""
    v = 0.01 + 0.98 * np.linspace(0.15, 0.85, 200)
    left, right = 0.01 + 0.68 * offset, 0.69 - 0.68 * offset
    return (jnp.asarray(np.stack([np.full_like(v, u), v], -1), jnp.float32) for u in (left, right))


def test_no_line_shows_at_a_seam():
    """A colour that is smooth over the head, painted texel by texel, is smooth across the seam when it is looked up."""
    chart, gutter = charts()
    paint = at_texels(10 * face().vertices, chart.triangles, chart.weights)
    texture = texture_from(chart, paint, background=-5.0)
    sealed = jax.jit(lambda t: fill_gutter(t, chart, gutter))(texture)

    def step(texture):
        at_left, at_right = (np.asarray(sample_texture(texture, uv)) for uv in along_the_seam(0.0))
        return np.abs(at_left - at_right).max()

    inner, outer = (np.asarray(sample_texture(sealed, uv)) for uv in along_the_seam(1 / 64))
    repeated = jnp.asarray(fill_outside(np.asarray(texture), chart.covered))
    assert step(texture) > 1  # the background shows
    assert step(sealed) < 0.02
    assert step(sealed) < 0.2 * step(repeated)
    assert step(sealed) < 0.1 * np.abs(inner - outer).max()
    np.testing.assert_array_equal(np.asarray(sealed)[chart.covered], np.asarray(texture)[chart.covered])


def test_a_sealed_texture_is_linear_in_the_texture():
    chart, gutter = charts()
    a, b = (jnp.asarray(RNG.uniform(size=(TEXELS, TEXELS, 3)), jnp.float32) for _ in range(2))
    seal = jax.jit(functools.partial(fill_gutter, chart=chart, gutter=gutter))
    np.testing.assert_allclose(seal(2 * a - b), 2 * seal(a) - seal(b), atol=1e-5)
    by_texel = jax.jit(jax.grad(lambda t: seal(t).sum()))(a)
    assert np.isfinite(by_texel).all()
    np.testing.assert_allclose(by_texel.sum(), 3 * TEXELS**2, rtol=1e-4)


# -- unwrapping -------------------------------------------------------------------------------------------------------


def test_confidence_is_the_squared_cosine_where_nothing_hides():
    chart, _ = charts()
    drawn = jax.jit(lambda v: locate_texels(v, POSE, CAMERA, HEAD.topology.faces, SIZE, chart.triangles, chart.weights))
    xy, confidence = (np.asarray(x) for x in drawn(face().vertices))
    normals = vertex_normals(face().vertices, HEAD.topology.faces) @ POSE.rotation.T
    at = positions(chart) @ np.asarray(POSE.rotation).T + np.asarray(POSE.translation)
    n = np.asarray(at_texels(normals, chart.triangles, chart.weights))
    cosine = -np.sum(n * at, axis=1) / np.linalg.norm(at, axis=1)
    seen = confidence > 0
    assert 0.15 < seen.mean() < 0.6
    np.testing.assert_allclose(confidence[seen], cosine[seen] ** 2, atol=0.02)
    assert (confidence[cosine < -0.05] == 0).all()
    expected = at[:, :2] / at[:, 2:] * 200 + 48
    np.testing.assert_allclose(xy, expected, atol=0.05)


def test_a_nearer_surface_hides_texels():
    """A card before the left half of the head takes all confidence there, and none elsewhere."""
    chart, _ = charts()
    vertices, faces = np.asarray(face().vertices), HEAD.topology.faces
    card = np.array([[0.01, -0.3, 0.2], [0.3, -0.3, 0.2], [0.3, 0.3, 0.2], [0.01, 0.3, 0.2]], np.float32)
    more = np.concatenate([faces, len(vertices) + np.array([[0, 1, 2], [0, 2, 3]])]).astype(np.int32)
    straight = POSE.replace(rotation=jnp.diag(jnp.array([1.0, -1.0, -1.0])))

    def confidence(v, f):
        return np.asarray(locate_texels(jnp.asarray(v), straight, CAMERA, f, SIZE, chart.triangles, chart.weights)[1])

    free, hidden = confidence(vertices, faces), confidence(np.concatenate([vertices, card]), more)
    at = positions(chart)
    behind = (at[:, 0] > 0.02) & (free > 0.1)
    clear = (at[:, 0] < -0.01) & (free > 0.1)
    assert behind.sum() > 50
    assert (hidden[behind] == 0).all()
    np.testing.assert_allclose(hidden[clear], free[clear], atol=1e-5)


def test_a_painted_head_unwraps_to_its_paint():
    chart, _ = charts()
    y, x = np.mgrid[:TEXELS, :TEXELS] / TEXELS
    paint = np.stack([0.5 + 0.3 * np.sin(9 * x + k) * np.cos(7 * y) for k in range(3)], -1).astype(np.float32)
    topology = HEAD.topology
    drawn = on_image(face().vertices, POSE, CAMERA)
    fragments = rasterise(drawn, topology.faces, SIZE)
    image = sample_texture(jnp.asarray(paint), interpolate(jnp.asarray(topology.uv), fragments, topology.uv_faces))
    colour, confidence = unwrap_image(
        image, face().vertices, POSE, CAMERA, topology.faces, chart.triangles, chart.weights
    )
    good = np.asarray((confidence > 0.3) & (HEAD.regions["skin"][chart.triangles[:, 0]] > 0))
    error = np.asarray(colour)[good] - paint.reshape(-1, 3)[chart.texels][good]
    assert good.sum() > 300
    assert np.sqrt(np.mean(error**2)) < 0.01


# -- shading ----------------------------------------------------------------------------------------------------------


def test_shading_texels_is_shading_vertices_at_vertices():
    """A chart whose texels are vertices."""
    f = face()
    chart = texture_chart(HEAD.topology, 8)
    n = HEAD.topology.n_vertices
    at_vertices = type(chart)(
        size=8,
        texels=np.arange(n),
        triangles=np.repeat(np.arange(n)[:, None], 3, axis=1),
        weights=np.tile(np.array([[1.0, 0, 0]], np.float32), (n, 1)),
        uv=np.full((n, 2), 0.5, np.float32),
    )
    diffuse, specular = vertex_light(f, LIGHT, POSE, vertex_normals(f.vertices, HEAD.topology.faces))
    np.testing.assert_allclose(
        shade_chart(f, LIGHT, POSE, HEAD.topology.faces, at_vertices), f.albedo * diffuse + specular, atol=1e-5
    )
    made, normals = face_at_texels(f.replace(texture=jnp.full((4, 4, 3), 0.5)), HEAD.topology.faces, at_vertices)
    np.testing.assert_allclose(made.albedo, 0.5 * f.albedo, atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(normals, axis=1), 1, atol=1e-5)


def test_a_head_shaded_in_uv_looks_like_one_shaded_at_vertices():
    f, topology = face(), HEAD.topology
    chart = texture_chart(topology, 256)
    gutter = gutter_chart(topology, chart)

    @jax.jit
    def pictures():
        shaded = texture_from(chart.joined(gutter), shade_chart(f, LIGHT, POSE, topology.faces, chart.joined(gutter)))
        drawn = on_image(f.vertices, POSE, CAMERA)
        fragments = rasterise(drawn, topology.faces, SIZE)
        uv = interpolate(jnp.asarray(topology.uv), fragments, topology.uv_faces)
        seen = (fragments.triangle >= 0)[..., None]
        return jnp.where(seen, sample_texture(shaded, uv), 0.0), render(f, LIGHT, POSE, CAMERA).colour, seen

    render = make_renderer(topology, SIZE, antialiased=False)
    in_uv, at_vertices, seen = (np.asarray(x) for x in pictures())
    error = np.abs(in_uv - at_vertices)[seen[..., 0]]
    assert error.mean() < 0.004
    assert np.quantile(error, 0.99) < 0.04


# -- filtering --------------------------------------------------------------------------------------------------------


def test_a_pyramid_keeps_the_mean():
    texture = jnp.asarray(RNG.uniform(size=(32, 32, 3)), jnp.float32)
    levels = box_pyramid(texture)
    assert [len(l) for l in levels] == [32, 16, 8, 4, 2, 1]
    for level in levels:
        np.testing.assert_allclose(level.mean((0, 1)), texture.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(levels[1][3, 5], texture[6:8, 10:12].mean((0, 1)), rtol=1e-5)
    with pytest.raises(InputError, match="power of two"):
        box_pyramid(jnp.zeros((24, 24, 3)))


def test_what_lies_between_charts_stays_out_of_coarse_levels():
    covered = np.zeros((32, 32), np.float32)
    covered[4:13, 3:20] = 1
    texture = jnp.where(covered[..., None] > 0, 0.4, 100.0) * jnp.ones(3)
    for k, level in enumerate(box_pyramid(texture, covered)):
        inside = covered.reshape(32 >> k, 1 << k, 32 >> k, 1 << k).sum(axis=(1, 3)) > 0
        np.testing.assert_allclose(level[inside], 0.4, rtol=1e-5)


def test_levels_are_chosen_by_footprint():
    texture = jnp.asarray(RNG.uniform(size=(16, 16, 2)), jnp.float32)
    levels = box_pyramid(texture)
    uv = jnp.asarray(RNG.uniform(size=(40, 2)), jnp.float32)

    def at(footprint):
        return np.asarray(sample_pyramid(levels, uv, jnp.full(40, footprint)))

    np.testing.assert_allclose(at(0.2), sample_texture(texture, uv), atol=1e-6)
    np.testing.assert_allclose(at(2.0), sample_texture(levels[1], uv), atol=1e-6)
    np.testing.assert_allclose(at(2**1.5), (at(2.0) + at(4.0)) / 2, atol=1e-5)
    np.testing.assert_allclose(at(1e9), np.broadcast_to(texture.mean((0, 1)), (40, 2)), atol=1e-5)


def test_filtering_removes_aliasing():
    """A checkerboard of texels drawn at an eighth of its size is grey when it is filtered, noise when it is not."""
    size = 128
    y, x = np.mgrid[:size, :size]
    board = jnp.asarray(((x + y) % 2)[..., None] * np.ones(3), jnp.float32)
    corners = np.array([[0, 0, 1], [16, 0, 1], [16, 16, 1], [0, 16, 1]], np.float32)
    topology = Topology(
        faces=np.array([[0, 2, 1], [0, 3, 2]], np.int32),
        uv=np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32),
        uv_faces=np.array([[0, 2, 1], [0, 3, 2]], np.int32),
        n_vertices=4,
    )

    @jax.jit
    def draw(board):
        fragments = rasterise(jnp.asarray(corners), topology.faces, (16, 16), cull=False)
        footprint = texel_footprint(jnp.asarray(corners), topology, fragments.triangle, size)
        uv = interpolate(jnp.asarray(topology.uv), fragments, topology.uv_faces) + 0.5 / size
        return footprint, sample_pyramid(box_pyramid(board), uv, footprint), sample_texture(board, uv)

    footprint, filtered, plain = draw(board)
    np.testing.assert_allclose(footprint, 8, rtol=1e-4)
    np.testing.assert_allclose(filtered, 0.5, atol=1e-4)
    assert np.abs(plain - 0.5).max() > 0.4


def test_outside_is_continued_and_never_invented():
    picture = RNG.uniform(0.2, 0.6, size=(33, 40, 3)).astype(np.float32)
    covered = np.zeros((33, 40), bool)
    covered[5:20, 8:30] = True
    filled = fill_outside(picture, covered)
    np.testing.assert_array_equal(filled[covered], picture[covered])
    low, high = picture[covered].min(), picture[covered].max()
    assert low - 1e-5 <= filled.min()
    assert filled.max() <= high + 1e-5
    np.testing.assert_allclose(
        filled[5:20, 7], [picture[max(r - 1, 5) : min(r + 2, 20), 8].mean(0) for r in range(5, 20)], rtol=1e-4
    )
