"""Visibility against closed forms, a loop over triangles, and Mitsuba's rays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_head import ball

from facejax.geometry.errors import InputError
from facejax.geometry.meshes import vertex_normals
from facejax.renderers.lights import sphere_directions
from facejax.renderers.visibility import distant_visibility, lamp_visibility, surface_samples

DIRECTIONS = sphere_directions(16)
SMALL = {"samples": 40_000, "resolution": 128}


def joined(*pieces):
    """(vertices, faces) of several meshes as one."""
    starts = np.cumsum([0] + [len(v) for v, _ in pieces])
    vertices = np.concatenate([v for v, _ in pieces]).astype(np.float32)
    return vertices, np.concatenate([f + s for (_, f), s in zip(pieces, starts, strict=False)]).astype(np.int32)


def sphere(centre, radius, rows=48):
    vertices, faces, _, _ = ball(centre, (radius,) * 3, rows, 2 * rows, (0, 0, 1, 1))
    return vertices, faces


def plane(half, n=24):
    """A square in y = 0 that looks up (+y)."""
    x, z = np.meshgrid(np.linspace(-half, half, n + 1), np.linspace(-half, half, n + 1), indexing="ij")
    vertices = np.stack([x, 0 * x, z], axis=-1).reshape(-1, 3)
    i = (np.arange(n)[:, None] * (n + 1) + np.arange(n)).ravel()
    quads = np.stack([i, i + 1, i + n + 2, i + n + 1], axis=-1)
    return vertices, np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def rays_blocked(vertices, faces, origins, towards, reach=np.inf):
    """Möller and Trumbore's test in float64, each ray against all triangles: (rays,)."""
    a, b, c = (np.asarray(vertices, np.float64)[faces[:, i]] for i in range(3))
    blocked = np.zeros(len(origins), bool)
    for i, (o, w) in enumerate(zip(np.float64(origins), np.float64(towards), strict=True)):
        p = np.cross(w, c - a)
        det = np.sum((b - a) * p, axis=1)
        inverse = 1 / np.where(np.abs(det) < 1e-18, np.inf, det)
        u = np.sum((o - a) * p, axis=1) * inverse
        q = np.cross(o - a, b - a)
        v, t = q @ w * inverse, np.sum((c - a) * q, axis=1) * inverse
        blocked[i] = np.any((inverse != 0) & (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0) & (t < reach))
    return blocked


def test_samples_are_even_and_skip_triangles_without_area():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [3, 0, 0], [0, np.nan, 0], [0, 0, 1]], np.float32)
    faces = np.array([[0, 0, 1], [0, 1, 2], [0, 4, 1], [0, 3, 5], [1, 3, 0]])
    points, area = surface_samples(vertices, faces, 4000)
    points = np.asarray(points)
    assert np.isfinite(points).all()
    np.testing.assert_allclose(area, 0.5 + 1.5, rtol=1e-6)
    flat = points[:, 2] == 0
    np.testing.assert_allclose(flat.mean(), 0.25, atol=2e-3)
    # the mean of points in a triangle is its middle, and a corner of half its size holds a quarter of them
    np.testing.assert_allclose(points[flat].mean(0), [1 / 3, 1 / 3, 0], atol=5e-3)
    np.testing.assert_allclose((points[flat][:, 0] > 0.5).mean(), 0.25, atol=0.01)


def test_convex_body_has_no_acne():
    for radii in ((0.1, 0.1, 0.1), (0.05, 0.12, 0.08)):
        vertices, faces, _, _ = ball((0.3, 0, -0.2), radii, 40, 60, (0, 0, 1, 1))
        vertices = jnp.asarray(vertices, jnp.float32)
        cosine = np.asarray(vertex_normals(vertices, faces)) @ DIRECTIONS.T
        open_share = np.asarray(distant_visibility(vertices, faces, DIRECTIONS, **SMALL))
        assert open_share[cosine > 0.15].min() == 1
        assert open_share[cosine > 0.1].min() > 0.95
        assert (open_share[cosine < -0.3] > 0.5).mean() < 1e-3  # light does not come through
        lamps = jnp.array([[0.3, 0.3, 0.0], [0.9, 0.1, 0.2]])
        away = np.asarray(lamps)[None] - np.asarray(vertices)[:, None]
        cosine = np.einsum(
            "pni,pi->pn",
            away / np.linalg.norm(away, axis=-1, keepdims=True),
            np.asarray(vertex_normals(vertices, faces)),
        )
        open_share = np.asarray(lamp_visibility(vertices, faces, lamps, **SMALL))
        assert open_share[cosine > 0.15].min() == 1
        assert (open_share[cosine < -0.3] > 0.5).mean() < 2e-3


def test_sphere_casts_its_shadow_on_a_plane():
    height, radius = 0.2, 0.07
    vertices, faces = joined(plane(0.4), sphere((0, height, 0), radius))
    points = np.random.default_rng(0).uniform(-0.38, 0.38, (4000, 3)).astype(np.float32) * np.float32([1, 0, 1])
    normals = np.tile(np.float32([0, 1, 0]), (len(points), 1))
    wrong = []
    open_share = np.asarray(distant_visibility(jnp.asarray(vertices), faces, DIRECTIONS, points, normals, **SMALL))
    for k in np.flatnonzero(DIRECTIONS[:, 1] > 0.3):
        to_centre = np.array([0, height, 0]) - points
        beside = np.linalg.norm(np.cross(to_centre, DIRECTIONS[k]), axis=1)
        far = np.abs(beside - radius) > 0.02  # two cells
        np.testing.assert_allclose(open_share[far, k], beside[far] > radius, atol=1e-5)
        wrong.append(((open_share[:, k] > 0.5) != (beside > radius)).mean())
    assert np.mean(wrong) < 0.01


def test_lamp_casts_a_larger_shadow_than_the_sphere():
    vertices, faces = joined(plane(0.4), sphere((0.05, 0.15, 0), 0.05))
    points = np.random.default_rng(1).uniform(-0.38, 0.38, (4000, 3)).astype(np.float32) * np.float32([1, 0, 1])
    normals = np.tile(np.float32([0, 1, 0]), (len(points), 1))
    lamps = np.array([[0.05, 0.45, 0.0], [-0.2, 0.4, 0.1], [0.05, 0.15, 0.12], [0, 0.0, 1]], np.float32)
    open_share = np.asarray(lamp_visibility(jnp.asarray(vertices), faces, jnp.asarray(lamps), points, normals, **SMALL))
    for k in range(3):
        to_lamp, to_centre = lamps[k] - points, np.array([0.05, 0.15, 0]) - points
        along = np.sum(to_centre * to_lamp, axis=1) / np.sum(to_lamp**2, axis=1)
        beside = np.linalg.norm(to_centre - np.clip(along, 0, 1)[:, None] * to_lamp, axis=1)
        # the third grazes the plane: its shadow is long, and so is its border
        assert ((open_share[:, k] > 0.5) != (beside > 0.05)).mean() < (0.008, 0.008, 0.06)[k]
        assert (beside < 0.05).mean() > 0.03


def test_lamp_far_away_is_a_direction():
    vertices, faces = joined(sphere((0, 0, 0), 0.1, 32), sphere((0.12, 0.05, 0), 0.05, 24))
    far = 1000 * DIRECTIONS[:4]
    near_way = np.asarray(lamp_visibility(jnp.asarray(vertices), faces, jnp.asarray(far), **SMALL))
    far_way = np.asarray(distant_visibility(jnp.asarray(vertices), faces, DIRECTIONS, **SMALL))[:, :4]
    lit = np.asarray(vertex_normals(jnp.asarray(vertices), faces)) @ DIRECTIONS[:4].T > 0.05
    assert ((near_way > 0.5) != (far_way > 0.5))[lit].mean() < 0.01


def test_agrees_with_a_loop_over_triangles():
    rng = np.random.default_rng(2)
    vertices, faces = joined(
        sphere((0, 0, 0), 0.1, 16), sphere((0.11, 0.05, 0.03), 0.04, 10), sphere((0, 0, 0.12), 0.03, 9)
    )
    normals = np.asarray(vertex_normals(jnp.asarray(vertices), faces))
    open_share = np.asarray(distant_visibility(jnp.asarray(vertices), faces, DIRECTIONS, **SMALL))
    lit = np.argwhere(normals @ DIRECTIONS.T > 0)
    pick = lit[rng.choice(len(lit), 1000, replace=False)]
    blocked = rays_blocked(vertices, faces, (vertices + 1e-4 * normals)[pick[:, 0]], DIRECTIONS[pick[:, 1]])
    assert 0.05 < blocked.mean() < 0.5
    assert ((open_share[pick[:, 0], pick[:, 1]] < 0.5) == blocked).mean() > 0.97


def test_agrees_with_mitsuba_on_a_head():
    from facejax.models.generic import generic_head
    from facejax.renderers.llvm import require_llvm

    mi = pytest.importorskip("mitsuba")
    try:
        require_llvm()
    except InputError as error:
        pytest.skip(str(error))
    mi.set_variant("llvm_ad_rgb")
    head = generic_head()
    vertices, faces = head.params.mean, head.topology.faces
    mesh = mi.Mesh("head", len(vertices), len(faces))
    parameters = mi.traverse(mesh)
    parameters["vertex_positions"] = np.asarray(vertices).ravel()
    parameters["faces"] = faces.astype(np.uint32).ravel()
    parameters.update()
    normals = np.asarray(vertex_normals(vertices, faces))
    origins = np.repeat(np.asarray(vertices) + 1e-4 * normals, len(DIRECTIONS), axis=0)
    ray = mi.Ray3f(mi.Point3f(origins.T.copy()), mi.Vector3f(np.tile(DIRECTIONS, (len(vertices), 1)).T.copy()))
    blocked = np.array(mi.load_dict({"type": "scene", "head": mesh}).ray_test(ray)).reshape(len(vertices), -1)
    lit = normals @ DIRECTIONS.T > 0
    open_share = np.asarray(distant_visibility(vertices, faces, DIRECTIONS))
    assert 0.05 < blocked[lit].mean() < 0.6
    assert ((open_share < 0.5) == blocked)[lit].mean() > 0.97


def test_bad_triangles_cast_nothing_and_read_nothing():
    vertices, faces = sphere((0, 0, 0), 0.1, 12)
    clean = distant_visibility(jnp.asarray(vertices, jnp.float32), faces, DIRECTIONS, **SMALL)
    bad = np.concatenate([vertices, [[np.nan, 0, 0], [np.inf, 0, 0]]]).astype(np.float32)
    n = len(vertices)
    more = np.concatenate([faces, [[0, 0, 1], [n, 1, 2], [n + 1, 1, 2]]])
    normals = vertex_normals(jnp.asarray(vertices, jnp.float32), faces)
    points = jnp.concatenate([bad[:n], jnp.full((1, 3), jnp.nan)]).astype(jnp.float32)
    got = distant_visibility(
        jnp.asarray(bad), more, DIRECTIONS, points, jnp.concatenate([normals, normals[:1]]), **SMALL
    )
    assert jnp.isfinite(got).all()
    np.testing.assert_allclose(got[:n], clean, atol=1e-6)
    nothing = distant_visibility(jnp.zeros((3, 3)), np.array([[0, 1, 2]]), DIRECTIONS, points, points, **SMALL)
    assert jnp.isfinite(nothing).all()


def test_carries_no_derivative_and_compiles_once():
    vertices, faces = joined(sphere((0, 0, 0), 0.1, 12), sphere((0.12, 0, 0), 0.04, 8))
    vertices = jnp.asarray(vertices)
    traces = []

    @jax.jit
    def both(v, lamps):
        traces.append(1)
        far = distant_visibility(v, faces, DIRECTIONS, samples=5000, resolution=48)
        return jnp.concatenate([far, lamp_visibility(v, faces, lamps, samples=5000, resolution=48)], axis=-1)

    lamps = jnp.array([[0.5, 0.2, 0.1]])
    once = both(vertices, lamps)
    eager = distant_visibility(vertices, faces, DIRECTIONS, samples=5000, resolution=48)
    assert (np.abs(once[:, :-1] - eager) > 1e-3).mean() < 1e-3  # rounding moves a sample to the next cell
    moved = jnp.stack([vertices, vertices * jnp.array([1.0, 1.2, 0.8])])
    batched = jax.vmap(both, in_axes=(0, None))(moved, lamps)
    traced = len(traces)
    looped = jnp.stack([both(v, lamps) for v in moved])
    assert len(traces) == traced
    assert (np.abs(batched - looped) > 1e-3).mean() < 1e-3
    assert not jax.grad(lambda v: both(v, lamps).sum())(vertices).any()


def test_refuses_directions_without_pairs_and_points_without_normals():
    vertices, faces = sphere((0, 0, 0), 0.1, 6)
    vertices = jnp.asarray(vertices, jnp.float32)
    with pytest.raises(InputError, match="opposite pairs"):
        distant_visibility(vertices, faces, DIRECTIONS[:8])
    with pytest.raises(InputError, match="opposite pairs"):
        distant_visibility(vertices, faces, DIRECTIONS[:5])
    with pytest.raises(InputError, match="go together"):
        distant_visibility(vertices, faces, DIRECTIONS, vertices)
