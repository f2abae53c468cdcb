"""The rasteriser against a loop over pixels, and its silhouettes against the area that they enclose."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes
from toy_head import ball

from facejax.geometry.meshes import edge_neighbours
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.renderers.raster import antialias, fragments_of, interpolate, rasterise

SIZE = (36, 44)  # one image size for most tests, so that they share compilations
compiled = jax.jit(rasterise, static_argnames=("size", "cull"))


def draw(vertices, faces, size=SIZE, cull=True, n=60):
    """Rasterise, filled up with triangles without area, so that one compilation serves many tests."""
    more, ids = np.zeros((3 * n, 3), np.float32), np.zeros((n, 3), np.int32)
    more[: len(vertices)], ids[: len(faces)] = vertices, faces
    return compiled(jnp.asarray(more), jnp.asarray(ids), size, cull=cull)


def loop(vertices, faces, size, cull=True, near=1e-3, margin=1e-3):
    """(triangle, depth, barycentric, clear) in float64; `clear` where neither an edge nor a second surface is close."""
    height, width = size
    triangle, barycentric = np.full(size, -1), np.zeros((*size, 3))
    inverse, clear = np.zeros(size), np.ones(size, bool)
    y, x = np.mgrid[:height, :width] + 0.5
    for k, face in enumerate(faces):
        a, b, c = np.asarray(vertices, np.float64)[face]
        if not np.isfinite([a, b, c]).all() or min(a[2], b[2], c[2]) <= near:
            continue
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if abs(area) <= 1e-12 or (cull and area > 0):
            continue
        w = np.stack(
            [(t[0] - s[0]) * (y - s[1]) - (t[1] - s[1]) * (x - s[0]) for s, t in ((b, c), (c, a), (a, b))], axis=-1
        )
        lengths = np.array([np.hypot(*(t - s)[:2]) for s, t in ((b, c), (c, a), (a, b))])
        clear &= ~((np.abs(w) / lengths < margin).any(axis=-1) & (w / area > -0.01).all(axis=-1))  # pixels to an edge
        share = w / area / np.array([a[2], b[2], c[2]])
        here = share.sum(axis=-1)
        inside = (w / area >= 0).all(axis=-1)
        clear &= ~(inside & (np.abs(here - inverse) < 1e-4 * here))
        win = inside & (here > inverse)
        triangle[win], inverse[win] = k, here[win]
        barycentric[win] = share[win] / here[win, None]
    depth = np.where(triangle >= 0, 1 / np.where(inverse > 0, inverse, 1), 0)
    return triangle, depth, barycentric, clear


def soup(seed, count=60, scale=(0.3, 60)):
    """Triangles of every size, partly outside the image: vertices (3 count, 3), faces."""
    rng = np.random.default_rng(seed)
    height, width = SIZE
    centre = rng.uniform([-8, -8], [width + 8, height + 8], (count, 1, 2))
    width_px = np.exp(rng.uniform(*np.log(scale), (count, 1, 1)))
    xy = centre + rng.normal(size=(count, 3, 2)) * width_px
    z = (0.4 + width_px / 20) * rng.uniform(0.7, 1.4, (count, 3, 1))  # the larger mostly behind, so that all show
    vertices = np.concatenate([xy, z], axis=-1).reshape(-1, 3).astype(np.float32)
    return vertices, np.arange(3 * count, dtype=np.int32).reshape(-1, 3)


@pytest.mark.parametrize("cull", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_agrees_with_a_loop(seed, cull):
    vertices, faces = soup(seed)
    found = draw(vertices, faces, SIZE, cull=cull)
    triangle, depth, barycentric, clear = loop(vertices, faces, SIZE, cull)
    assert clear.mean() > 0.9
    assert len(np.unique(triangle)) > 10
    np.testing.assert_array_equal(np.asarray(found.triangle)[clear], triangle[clear])
    np.testing.assert_allclose(np.asarray(found.depth)[clear], depth[clear], rtol=2e-5)
    np.testing.assert_allclose(np.asarray(found.barycentric)[clear], barycentric[clear], atol=5e-4)


@pytest.mark.parametrize("scale", [(0.3, 0.7), (300, 3000)])
def test_specks_and_giants_agree_with_a_loop(scale):
    vertices, faces = soup(5, count=60, scale=scale)
    found = draw(vertices, faces, cull=False)
    triangle, depth, _, clear = loop(vertices, faces, SIZE, cull=False)
    assert (triangle >= 0).sum() > 5
    np.testing.assert_array_equal(np.asarray(found.triangle)[clear], triangle[clear])
    np.testing.assert_allclose(np.asarray(found.depth)[clear], depth[clear], rtol=1e-3)


def test_many_giants_take_several_chunks():
    """2,000 triangles that each fill the image need 380,000 patches, so the loop over chunks runs about 90 times."""
    rng = np.random.default_rng(0)
    depth = rng.permutation(np.linspace(1, 2, 2000)).astype(np.float32)
    corner = np.array([[-100, -100], [22, 500], [200, -100]], np.float32)  # counter-clockwise seen with y up
    vertices = np.concatenate([np.tile(corner, (2000, 1)), depth.repeat(3)[:, None]], axis=1)
    found = draw(vertices, np.arange(6000).reshape(-1, 3), n=2000)
    assert (np.asarray(found.triangle) == np.argmin(depth)).all()
    np.testing.assert_allclose(found.depth, 1.0, rtol=1e-5)


TRIANGLE = np.array([[5, 5, 1], [5, 30, 1], [35, 5, 1]], np.float32)  # counter-clockwise: is drawn under culling


def drawn(triangles, **options):
    return draw(np.concatenate(triangles), np.arange(3 * len(triangles)).reshape(-1, 3), **options)


def test_culling_leaves_out_what_is_seen_from_inside():
    assert (np.asarray(drawn([TRIANGLE]).triangle) >= 0).sum() > 300
    assert (np.asarray(drawn([TRIANGLE[::-1]]).triangle) == -1).all()
    np.testing.assert_array_equal(drawn([TRIANGLE[::-1]], cull=False).triangle, drawn([TRIANGLE]).triangle)


@pytest.mark.parametrize(
    "bad",
    [
        TRIANGLE * [1, 1, -1],  # behind the camera
        np.array([[5, 5, 1], [5, 30, -1], [35, 5, 1]]),  # across the camera's plane
        np.array([[5, 5, 1], [5, 30, np.nan], [35, 5, 1]]),
        np.array([[5, 5, 1], [np.nan, 30, 1], [35, 5, 1]]),
        np.array([[5, 5, 1], [5, np.inf, 1], [35, 5, 1]]),
        np.array([[5, 5, 1], [20, 20, 1], [35, 35, 1]]),  # a line
        np.array([[5, 5, 1], [5, 5, 1], [5, 5, 1]]),
    ],
    ids=["behind", "across", "nan depth", "nan x", "infinite", "line", "point"],
)
def test_what_cannot_be_drawn_is_left_out(bad):
    alone, beside = drawn([bad], cull=False), drawn([bad, np.add(TRIANGLE, [0, 0, 1])], cull=False)
    assert (np.asarray(alone.triangle) == -1).all()
    assert (np.asarray(alone.depth) == 0).all()
    assert (np.asarray(alone.barycentric) == 0).all()
    np.testing.assert_array_equal(np.asarray(beside.triangle) == 1, np.asarray(drawn([TRIANGLE]).triangle) == 0)
    assert np.isfinite(np.asarray(beside.depth)).all()


def test_nearer_wins_whatever_the_order():
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        stack = [np.add(TRIANGLE, [0, 0, 0.1 * k]) for k in order]
        seen = np.asarray(drawn(stack).triangle)
        assert set(np.unique(seen)) == {-1, order.index(0)}


def test_of_equal_triangles_one_is_drawn():
    twice = drawn([TRIANGLE, TRIANGLE])
    assert len(np.unique(twice.triangle)) == 2  # nothing, and one of the two
    np.testing.assert_allclose(twice.depth, drawn([TRIANGLE]).depth)


def test_crossing_triangles_part_at_their_intersection():
    a, b = TRIANGLE.copy(), TRIANGLE.copy()
    a[:, 2], b[:, 2] = 1.0, [0.8, 0.8, 1.6]  # 1/z of b falls linearly along x
    seen = np.asarray(drawn([a, b]).triangle)
    inverse_b = 1 / 0.8 + (np.arange(SIZE[1]) + 0.5 - 5) / 30 * (1 / 1.6 - 1 / 0.8)
    row, inside = seen[6], seen[6] >= 0
    np.testing.assert_array_equal(row[inside], (inverse_b > 1).astype(int)[inside])


def test_barycentrics_are_perspective_correct():
    corners = np.array([[2, 2, 0.5], [3, 34, 3.0], [40, 3, 1.2]], np.float32)
    f = drawn([corners])
    points = np.concatenate(
        [corners[:, :2] * corners[:, 2:], corners[:, 2:]], axis=1
    )  # of a camera with focal length 1
    at = np.asarray(f.barycentric) @ points
    covered = np.asarray(f.triangle) >= 0
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    at, x, y = at[covered], x[covered], y[covered]
    np.testing.assert_allclose(at[:, 0] / at[:, 2], x, atol=2e-3)
    np.testing.assert_allclose(at[:, 1] / at[:, 2], y, atol=2e-3)
    np.testing.assert_allclose(at[:, 2], np.asarray(f.depth)[covered], rtol=1e-4)


BALL, BALL_FACES, _, _ = ball((0, 0, 0), (1, 1, 1), 30, 40, (0, 0, 1, 1))
BALL_SIZE = (64, 64)


@jax.jit
def seen_ball(turn, centre):
    points = jnp.matmul(jnp.asarray(BALL, jnp.float32), rotvec_to_matrix(turn).T, precision="highest")
    points = points * jnp.array([1.0, -1.0, -1.0]) + jnp.array([0.0, 0.0, 5.0])
    xy = points[:, :2] / points[:, 2:] * 130 + centre
    screen = jnp.concatenate([xy, points[:, 2:]], axis=1)
    return screen, rasterise(screen, BALL_FACES, BALL_SIZE)


def test_a_closed_surface_has_no_holes():
    rng = np.random.default_rng(0)
    for _ in range(40):
        turn, centre = rng.normal(size=3), 32 + rng.uniform(-2, 2, 2)
        covered = (
            np.asarray(seen_ball(jnp.asarray(turn, jnp.float32), jnp.asarray(centre, jnp.float32))[1].triangle) >= 0
        )
        np.testing.assert_array_equal(covered, binary_fill_holes(covered))
        y, x = np.mgrid[:64, :64] + 0.5
        distance = np.hypot(x - centre[0], y - centre[1])
        radius = 130 / np.sqrt(24)  # the tangent cone of a unit ball at distance 5
        assert covered[distance < 0.98 * radius].all()
        assert not covered[distance > radius + 0.01].any()


def test_no_pixel_on_a_shared_edge_is_lost():
    """A fan of triangles that meet at pixel centres and along diagonals through them."""
    n = 24
    ring = np.stack([np.cos(np.arange(n) * 2 * np.pi / n), np.sin(-np.arange(n) * 2 * np.pi / n)], axis=1) * 15
    for centre in ([20.5, 18.5], [20.0, 18.0], [20.3, 18.7]):
        xy = np.concatenate([[[0, 0]], ring]) + centre
        vertices = np.concatenate([xy, np.ones((n + 1, 1))], axis=1).astype(np.float32)
        faces = np.array([[0, 1 + i, 1 + (i + 1) % n] for i in range(n)], np.int32)
        covered = np.asarray(draw(vertices, faces, SIZE).triangle) >= 0
        np.testing.assert_array_equal(covered, binary_fill_holes(covered))
        assert abs(covered.sum() - np.pi * 15**2) < 20


def test_vmap_equals_loop_and_jit_equals_eager():
    batch = np.stack([soup(k)[0] for k in range(3)])
    faces = soup(0)[1]
    together = jax.jit(jax.vmap(lambda v: rasterise(v, faces, SIZE)))(jnp.asarray(batch))
    for k in range(3):
        alone = draw(batch[k], faces, SIZE)
        np.testing.assert_array_equal(together.triangle[k], alone.triangle)
        np.testing.assert_allclose(together.depth[k], alone.depth, rtol=1e-5)
        np.testing.assert_allclose(together.barycentric[k], alone.barycentric, atol=1e-4)
    eager = fragments_of(together.triangle[0], jnp.asarray(batch[0]), faces)  # all of it would compile for many seconds
    np.testing.assert_allclose(eager.depth, together.depth[0], rtol=1e-5)


def test_other_vertices_reuse_the_compilation():
    traces = []
    f = jax.jit(lambda v: traces.append(1) or rasterise(v, soup(0)[1], SIZE).depth)
    f(jnp.asarray(soup(0)[0]))
    f(jnp.asarray(soup(1)[0]))
    assert len(traces) == 1


def test_attributes_and_depth_have_the_derivatives_of_finite_differences():
    rng = np.random.default_rng(0)
    vertices = np.array([[2, 2, 0.5], [3, 34, 0.9], [40, 3, 0.7], [42, 35, 0.6]], np.float32)
    faces = np.array([[0, 1, 2], [2, 1, 3]], np.int32)
    attributes = jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)
    triangle = draw(vertices, faces).triangle
    weight = jnp.asarray(rng.normal(size=(*SIZE, 3)), jnp.float32)

    @jax.jit
    def value(v, a):  # visibility is held: it has no derivative
        f = fragments_of(triangle, v, faces)
        return jnp.sum(weight[..., :2] * interpolate(a, f, faces)) + jnp.sum(weight[..., 2] * f.depth)

    by_vertex, by_attribute = jax.grad(value, argnums=(0, 1))(jnp.asarray(vertices), attributes)
    numeric = np.zeros_like(vertices)
    for i, j in np.ndindex(4, 3):
        step = np.zeros_like(vertices)
        step[i, j] = 1e-2 if j < 2 else 1e-3
        up, down = (float(value(jnp.asarray(vertices + s), attributes)) for s in (step, -step))
        numeric[i, j] = (up - down) / (2 * step[i, j])
    np.testing.assert_allclose(by_vertex, numeric, rtol=0.02, atol=0.02 * np.abs(numeric).max())
    shifted = float(value(jnp.asarray(vertices), attributes + 0.5)) - float(value(jnp.asarray(vertices), attributes))
    np.testing.assert_allclose(0.5 * by_attribute.sum(), shifted, rtol=1e-2, atol=0.05)


def disc(n=64):
    angle = np.arange(n) * 2 * np.pi / n
    ring = np.stack([np.cos(angle), -np.sin(angle)], axis=1)  # counter-clockwise with y up
    faces = np.array([[0, 1 + i, 1 + (i + 1) % n] for i in range(n)], np.int32)
    return np.concatenate([[[0, 0]], ring]).astype(np.float32), faces


SQUARE = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]], np.float32), np.array([[0, 1, 2], [0, 2, 3]], np.int32)
SHAPES = {"square": SQUARE, "disc": disc()}


@functools.cache
def coverage_of(name):
    outline, faces = SHAPES[name]
    neighbours = edge_neighbours(faces)

    @jax.jit
    def coverage(place, scale, turn):
        c, s = jnp.cos(turn), jnp.sin(turn)
        xy = jnp.matmul(jnp.asarray(outline), jnp.array([[c, s], [-s, c]]), precision="highest") * scale + place
        vertices = jnp.concatenate([xy, jnp.ones((len(outline), 1))], axis=1)
        f = rasterise(vertices, faces, SIZE)
        return antialias((f.triangle >= 0).astype(jnp.float32)[..., None], f, vertices, faces, neighbours)[..., 0]

    return coverage


@functools.cache
def slope_of(name):
    return jax.jit(jax.grad(lambda p, s, turn: jnp.sum(coverage_of(name)(p, s, turn)), argnums=(0, 1)))


PLACES = [(21.3, 17.8), (20.0, 18.0), (20.5, 18.5), (21.72, 17.41)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("name", "turn"), [("square", 0.0), ("square", 0.3), ("square", np.pi / 4), ("disc", 0.1)])
def test_summed_coverage_is_the_area(name, turn, place):
    for scale in (8.0, 9.37, 11.5):
        image = np.asarray(coverage_of(name)(jnp.array(place), scale, turn))
        area = 4 * scale**2 if name == "square" else 32 * np.sin(2 * np.pi / 64) * scale**2
        assert image.min() > -1e-5
        assert image.max() < 1 + 1e-5
        # four corners may each be off by a fraction of a pixel, of 256 to 530
        np.testing.assert_allclose(image.sum(), area, atol=1.6 if name == "square" else 1.2)


@pytest.mark.parametrize(("name", "turn"), [("square", 0.0), ("square", 0.3), ("square", np.pi / 4), ("disc", 0.1)])
def test_summed_coverage_grows_by_the_perimeter(name, turn):
    """d area / d scale is 8 scale, or 2 pi scale; translation changes nothing."""
    moves, grows = zip(*[slope_of(name)(jnp.array(p), 9.37, turn) for p in PLACES], strict=True)
    exact = 8 * 9.37 if name == "square" else 64 * np.sin(2 * np.pi / 64) * 9.37
    np.testing.assert_allclose(np.mean(grows), exact, rtol=0.05)
    np.testing.assert_allclose(np.mean(moves, axis=0), 0, atol=0.05 * exact)


@pytest.mark.parametrize("name", ["square", "disc"])
def test_one_side_moves_by_its_height(name):
    """Of the right half of the image: its coverage changes by the height of the shape per pixel of movement."""

    @jax.jit
    @jax.value_and_grad
    def half(x, turn):
        return jnp.sum(coverage_of(name)(jnp.stack([x, 17.6]), 9.4, turn)[:, 21:])

    places = 21.2 + np.array([0.0, 0.13, 0.31, 0.44])
    for turn in (0.0, 0.4, 0.7):
        slope = np.mean([half(x, turn)[1] for x in places])
        difference = np.mean([half(x + 0.5, turn)[0] - half(x - 0.5, turn)[0] for x in places])
        height = 18.8 if name == "disc" else None if turn else 18.8  # of a turned square, that of a slice, which moves
        np.testing.assert_allclose(slope, height or difference, rtol=0.08)
        np.testing.assert_allclose(difference, height or difference, rtol=0.03)


def test_a_square_moved_by_parts_of_a_pixel_changes_linearly():
    image = coverage_of("square")
    column = [float(np.asarray(image(jnp.array([20.0 + d, 18.0]), 8.0, 0.0))[18, 12]) for d in np.linspace(0, 1, 11)]
    np.testing.assert_allclose(column, 1 - np.linspace(0, 1, 11), atol=1e-4)


def test_each_pixel_is_near_a_supersampled_image():
    for name, turn in (("square", 0.3), ("disc", 0.0)):
        outline, faces = SHAPES[name]
        c, s = np.cos(turn), np.sin(turn)
        fine = (outline @ np.array([[c, s], [-s, c]]) * 9.37 + [21.3, 17.8]) * 8
        vertices = np.concatenate([fine, np.ones((len(fine), 1))], axis=1).astype(np.float32)
        hard = np.asarray(draw(vertices, faces, (SIZE[0] * 8, SIZE[1] * 8), n=64).triangle) >= 0
        reference = hard.reshape(SIZE[0], 8, SIZE[1], 8).mean(axis=(1, 3))
        found = np.asarray(coverage_of(name)(jnp.array([21.3, 17.8]), 9.37, turn))
        rim = (reference > 0) & (reference < 1)
        jagged = np.abs((np.asarray(found) > 0.5) - reference)[rim].mean()
        assert np.abs(found - reference)[rim].mean() < 0.06 < jagged
        assert np.abs(found - reference)[~rim].max() < 0.15


def test_a_fine_mesh_has_soft_limbs_all_around():
    """More triangles than pixels: the limb's edge hardly ever belongs to the triangle that its pixel shows."""
    points, faces, _, _ = ball((0, 0, 0), (1, 1, 1), 90, 100, (0, 0, 1, 1))
    radius, centre = 25.0, np.array([31.3, 32.6])
    vertices = np.concatenate([points[:, :2] * [radius, -radius] + centre, 3 - 0.1 * points[:, 2:]], axis=1)
    vertices, neighbours = jnp.asarray(vertices, jnp.float32), edge_neighbours(faces)

    @jax.jit
    def coverage(offset):
        v = vertices + jnp.append(offset, 0.0)
        f = rasterise(v, faces, BALL_SIZE)
        return antialias((f.triangle >= 0).astype(jnp.float32)[..., None], f, v, faces, neighbours)[..., 0]

    image = np.asarray(coverage(jnp.zeros(2)))
    y, x = np.mgrid[:64, :64] + 0.5
    distance = np.hypot(x - centre[0], y - centre[1]) - radius
    rim = np.abs(distance) < 0.45
    assert np.abs(image - np.clip(0.5 - distance, 0, 1))[rim].mean() < 0.06
    assert ((image > 0.01) & (image < 0.99))[rim].mean() > 0.9
    np.testing.assert_allclose(image.sum(), np.pi * radius**2, rtol=2e-3)
    lower = jax.grad(lambda d: jnp.sum(coverage(d)[32:]))(jnp.zeros(2))
    np.testing.assert_allclose(lower, [0, 2 * radius], atol=3)


def test_a_fold_in_front_of_the_same_surface_is_blended_and_the_inside_is_not():
    """A small square before a large one: two colours, one closed rim, nothing else changes."""
    small, large = SQUARE[0] * 8 + [20.3, 17.6], SQUARE[0] * 15 + [21, 18]
    xy, z = np.concatenate([small, large]), np.repeat([1.0, 2.0], 4)[:, None]
    vertices = jnp.asarray(np.concatenate([xy, z], axis=1), jnp.float32)
    faces = np.concatenate([SQUARE[1], SQUARE[1] + 4])

    @jax.jit
    def colour(vertices):
        f = rasterise(vertices, faces, SIZE)
        image = jnp.where(f.triangle >= 0, jnp.where(f.triangle < 2, 1.0, 0.25), 0.0)[..., None]
        return image, antialias(image, f, vertices, faces, edge_neighbours(faces))[..., 0]

    image, out = (np.asarray(x) for x in colour(vertices))
    inside = np.s_[5:31, 8:34]  # within the large square, which is exactly on pixel borders
    np.testing.assert_allclose(out[inside].sum(), 0.25 * 26 * 26 + 0.75 * 256, atol=0.5)
    changed = np.abs(out - image[..., 0]) > 1e-6
    assert not changed[image[..., 0] == 0].any()
    assert changed.sum() <= 2 * 4 * 17


def test_gradients_are_finite_whatever_the_mesh():
    vertices, faces = soup(3)
    vertices[0], vertices[4, 2], vertices[6:9] = np.nan, -1.0, vertices[6]  # NaN, behind the camera, without area
    neighbours = edge_neighbours(faces)

    def total(v):
        f = rasterise(v, faces, SIZE, cull=False)
        image = jnp.concatenate([(f.triangle >= 0).astype(jnp.float32)[..., None], f.depth[..., None]], axis=-1)
        return jnp.sum(antialias(image, f, v, faces, neighbours) ** 2)

    value, gradient = jax.jit(jax.value_and_grad(total))(jnp.asarray(vertices))
    gradient = np.asarray(gradient)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert (gradient[:3] == 0).all()  # the triangle with a NaN
    assert np.abs(gradient).max() > 0


def test_nothing_drawn_stays_nothing():
    assert (np.asarray(coverage_of("square")(jnp.array([200.0, 18.0]), 8.0, 0.0)) == 0).all()
    assert (np.asarray(slope_of("square")(jnp.array([200.0, 18.0]), 8.0, 0.0)[0]) == 0).all()


def test_antialias_is_the_same_under_vmap():
    places = jnp.array(PLACES)
    together = jax.jit(jax.vmap(lambda p: coverage_of("disc")(p, 9.3, 0.2)))(places)
    for k in range(len(PLACES)):
        np.testing.assert_allclose(together[k], coverage_of("disc")(places[k], 9.3, 0.2), atol=1e-4)
