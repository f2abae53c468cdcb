"""Distances and angles between surfaces: closed forms, symmetries, plain loops over all triangles, edges."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from test_visibility import plane, sphere

from facejax.geometry.errors import InputError
from facejax.objectives import (
    Surface,
    angles_between,
    normal_angles,
    normal_error,
    ray_distance,
    ray_or_closest_distance,
)
from facejax.objectives.metrics import SurfaceSearch


def ball(radius=0.1, rings=24, centre=(0.0, 0.0, 0.0)):
    return Surface(*sphere(centre, radius, rings))


def soup(seed=0):
    """Random triangles, some without area, some much larger than others."""
    draw = np.random.default_rng(seed)
    vertices = draw.normal(size=(60, 3)) * 0.1
    faces = draw.integers(60, size=(80, 3))
    vertices = np.concatenate([vertices, draw.normal(size=(6, 3))])
    return Surface(vertices, np.concatenate([faces, [[60, 61, 62], [63, 64, 65], [3, 3, 3], [4, 4, 5]]]))


def first_hit_by_a_loop(origin, way, surface):
    """By a linear system for each triangle: origin + t way = a + u (b - a) + v (c - a)."""
    best = np.inf
    for a, b, c in surface.vertices[surface.faces]:
        system = np.stack([-way, b - a, c - a], axis=1)
        if abs(np.linalg.det(system)) > 1e-15:
            t, u, v = np.linalg.solve(system, origin - a)
            if t >= 0 and u >= 0 and v >= 0 and u + v <= 1:
                best = min(best, t)
    return best


def test_rays_meet_what_a_loop_over_all_triangles_finds():
    surface, draw = soup(), np.random.default_rng(1)
    origins, ways = draw.normal(size=(150, 3)) * 0.2, draw.normal(size=(150, 3))
    found = ray_distance(origins, 7 * ways, surface)
    unit = ways / np.linalg.norm(ways, axis=1, keepdims=True)
    wanted = [first_hit_by_a_loop(o, w, surface) for o, w in zip(origins, unit, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    assert 20 < np.isfinite(found).sum() < 150
    behind = [first_hit_by_a_loop(o, -w, surface) for o, w in zip(origins, unit, strict=True)]
    np.testing.assert_allclose(ray_distance(origins, ways, surface, both_ways=True), np.minimum(wanted, behind))


def test_rays_from_a_centre_reach_the_ball_and_none_slips_through_an_edge():
    surface = ball()
    corners = surface.vertices
    edges = (corners[surface.faces] + np.roll(corners[surface.faces], 1, axis=1)).reshape(-1, 3) / 2
    for ways in (corners, edges):
        ways = ways[np.linalg.norm(ways, axis=1) > 0]
        found = ray_distance(np.zeros_like(ways), ways, surface)
        np.testing.assert_allclose(found, np.linalg.norm(ways, axis=1), rtol=1e-6)
    outwards = ray_distance(1.01 * corners, corners, surface)
    assert np.isinf(outwards).all()
    assert np.isfinite(ray_distance(1.01 * corners, corners, surface, both_ways=True)).all()


def test_slanted_rays_on_a_plane_of_small_triangles_have_the_closed_form():
    """Many steps of a ray, hits anywhere in a step: none is passed over."""
    surface, draw = Surface(*plane(0.2, 60)), np.random.default_rng(6)
    origins = draw.uniform(-0.2, 0.2, (2000, 3))
    ways = draw.normal(size=(2000, 3))
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    along = -origins[:, 1] / ways[:, 1]
    inside = (np.abs(origins + along[:, None] * ways)[:, [0, 2]] < 0.2).all(axis=1)
    wanted = np.where((along >= 0) & inside, along, np.inf)
    assert np.isfinite(wanted).sum() > 400
    np.testing.assert_allclose(ray_distance(origins, ways, surface), wanted, rtol=1e-9)


def test_nearest_points_are_on_the_triangles_that_are_named():
    surface = soup(2)
    points = np.random.default_rng(3).normal(size=(100, 3)) * 0.2
    found, triangles = surface.search.nearest(points)
    one = [SurfaceSearch(surface.vertices, face[None]).closest(points) for face in surface.faces]
    distances = np.linalg.norm(points - np.stack(one), axis=2)
    np.testing.assert_allclose(np.linalg.norm(points - found, axis=1), distances.min(axis=0), atol=1e-12)
    np.testing.assert_allclose(distances[triangles, np.arange(100)], distances.min(axis=0), atol=1e-12)
    weights = surface.weights_at(found, triangles)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    flat = surface.areas.sum() and np.linalg.norm(surface._triangle_normals[triangles], axis=1) < 1e-12
    mixed = np.einsum("ni,nij->nj", weights, surface.vertices[surface.faces[triangles]])
    np.testing.assert_allclose(mixed[~flat], found[~flat], atol=1e-9)


def test_mesh_error_of_balls_and_of_planes_is_the_gap():
    big, small = ball(0.104), ball(0.1)
    for one, other in ((big, small), (small, big)):  # symmetric, but for the facets
        np.testing.assert_allclose(ray_or_closest_distance(one, other, 0.05), 0.004, atol=1.2e-3)
        assert ray_or_closest_distance(one, other, 0.05).mean() == pytest.approx(0.004, abs=5e-4)
    vertices, faces = plane(0.2, 10)
    flat = Surface(vertices, faces)
    moved = Surface(flat.vertices + 0.003 * flat.normals, faces)
    np.testing.assert_allclose(ray_or_closest_distance(moved, flat, 0.05), 0.003, atol=1e-7)
    assert not ray_or_closest_distance(flat, flat, 0.05).any()
    # hits out of reach count as none: the closest point stands in
    np.testing.assert_allclose(ray_or_closest_distance(moved, flat, 0.001), 0.003, atol=1e-7)
    with pytest.raises(InputError, match="reach of rays must be positive"):
        ray_or_closest_distance(flat, flat, 0.0)


def test_normals_and_areas():
    surface = ball(rings=60)
    outwards = angles_between(surface.normals, surface.vertices)
    assert np.nanmax(np.minimum(outwards, np.pi - outwards)) < 0.06
    assert surface.areas.sum() == pytest.approx(4 * np.pi * 0.01, rel=5e-3)
    sheet = Surface(*plane(0.2, 4))
    assert sheet.on_border.sum() == 16
    assert np.isnan(soup().normals).any()  # a vertex of no triangle


def test_normal_error_is_the_turn_and_sees_no_rigid_motion():
    vertices, faces = plane(0.2, 6)
    flat = Surface(vertices, faces)
    for angle in (1e-6, 0.3, np.pi / 2, 3.0):
        tilted = Surface(Rotation.from_rotvec([angle, 0, 0]).apply(vertices), faces)
        for weighted in (True, False):
            assert normal_error(tilted, flat, area_weighted=weighted) == pytest.approx(angle, rel=1e-5)
            assert normal_error(flat, tilted, area_weighted=weighted) == pytest.approx(angle, rel=1e-5)
    draw = np.random.default_rng(4)
    first = ball()
    second = Surface(first.vertices * (1 + 0.05 * draw.random((len(first.vertices), 1))), first.faces)
    turn = Rotation.from_rotvec([0.4, -1.0, 0.3])
    for match in ("vertices", "closest"):
        assert normal_error(first, first, match) < 1e-9
        moved = [Surface(turn.apply(s.vertices) + 0.2, s.faces) for s in (first, second)]
        error = normal_error(first, second, match)
        assert error > 0.02
        assert normal_error(*moved, match) == pytest.approx(error, rel=1e-6)
    assert normal_error(ball(0.1), ball(0.1, rings=33), "closest") < 0.02


def test_weights_by_area_and_without():
    """Of two squares, one nine times as large, only the small one is turned."""
    square = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    flat = Surface(np.concatenate([square, 3 * square + 5]), faces)
    turned = Surface(np.concatenate([Rotation.from_rotvec([0.5, 0, 0]).apply(square), 3 * square + 5]), faces)
    assert normal_error(turned, flat, area_weighted=False) == pytest.approx(0.25)
    assert normal_error(turned, flat) == pytest.approx(0.05)


def test_triangles_without_area_have_no_say():
    vertices, faces = plane(0.2, 4)
    good = Surface(vertices, faces)
    more = np.concatenate([good.vertices, [[0.0, 1, 0], [0, 2, 0], [0, 3, 0]]])
    n = len(vertices)
    spoilt = Surface(more, np.concatenate([faces, [[n, n + 1, n + 2], [0, 0, 1]]]))
    angles = normal_angles(spoilt, spoilt)
    assert np.isnan(angles[n:]).all()
    assert not angles[:n].any()
    assert normal_error(spoilt, spoilt) == 0
    line = Surface(more[n:], np.array([[0, 1, 2]]))
    with pytest.raises(InputError, match="No vertex has a normal on both"):
        normal_error(line, line)
    assert np.isinf(ray_distance(np.array([[1.0, 1.5, 0]]), np.array([[-1.0, 0, 0]]), line)).all()


def test_what_cannot_be_measured_is_refused():
    vertices, faces = plane(0.2, 2)
    with pytest.raises(InputError, match="at least one triangle"):
        Surface(vertices, faces[:0])
    with pytest.raises(InputError, match="must name vertices from 0 to"):
        Surface(vertices, faces + 7)
    with pytest.raises(InputError, match="must be finite"):
        Surface(vertices * np.nan, faces)
    surface = Surface(vertices, faces)
    with pytest.raises(InputError, match="Rays need directions, got 1 without"):
        ray_distance(np.zeros((1, 3)), np.zeros((1, 3)), surface)
    with pytest.raises(InputError, match="got 'furthest'"):
        normal_error(surface, surface, "furthest")
    with pytest.raises(InputError, match="equally many"):
        normal_error(surface, ball())
