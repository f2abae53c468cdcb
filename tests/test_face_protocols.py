"""NoW's and REALY's protocols on made-up scans: what must score 0, what must not change a score, what must fail."""

import functools

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from test_visibility import plane

from facejax import load_head
from facejax.geometry.errors import InputError
from facejax.objectives import (
    REALY_REGIONS,
    Surface,
    bend_onto,
    now_crop,
    now_score,
    realy_score,
    realy_total_mm,
)

SEVEN = [33, 133, 362, 263, 2, 61, 291]
"""NoW's landmarks among MediaPipe's."""
MORE = [10, 4, 6, 152, 234, 454, 50, 280, 13, 17]
"""And more points of the face, for REALY."""


@functools.cache
def head():
    return load_head("generic")


@functools.cache
def scan():
    """The skin of the front of a head, 5,000 triangles."""
    vertices, faces = np.asarray(head().params.mean, np.float64), head().topology.faces
    front = vertices[:, 2] > np.quantile(vertices[:, 2], 0.4)
    keep = (front & (head().regions["skin"] > 0.5))[faces].all(axis=1)
    return compact(vertices, faces[keep])


def compact(vertices, faces):
    used = np.unique(faces)
    return Surface(vertices[used], np.searchsorted(used, faces))


def landmarks(ids=SEVEN):
    return np.asarray(head().landmarks478.on(head().params.mean), np.float64)[ids]


def part(surface, centre, radius):
    """The triangles of a surface near a point."""
    near = np.linalg.norm(surface.vertices - centre, axis=1) < radius
    return compact(surface.vertices, surface.faces[near[surface.faces].all(axis=1)])


@functools.cache
def regions():
    nose, mouth, forehead, cheek = landmarks([4, 13, 10, 280])
    centres = zip(REALY_REGIONS, (nose, mouth, forehead - [0, 0.01, 0], cheek), strict=True)
    return {name: part(scan(), centre, 0.025) for name, centre in centres}


def wavy(amplitude=0.002):
    """The scan as a fit might have it: off by soft waves, with the landmarks where they then are."""

    def move(points):
        return points + amplitude * np.sin(60 * points[:, [1, 2, 0]])

    return Surface(move(scan().vertices), scan().faces), move


def moved(points, scale=1.0):
    return scale * Rotation.from_rotvec([0.3, -0.8, 0.2]).apply(points) + [0.1, -0.3, 0.6]


def spiky(height=0.006):
    """The scan with every twentieth vertex pulled out along its normal."""
    vertices = scan().vertices.copy()
    chosen = np.flatnonzero(~scan().on_border)[::20]
    vertices[chosen] += height * scan().normals[chosen]
    return Surface(vertices, scan().faces)


def realy(face, points=lambda p: p, regions_=None):
    ids = SEVEN + MORE
    return realy_score(face, points(landmarks(ids)), regions_ or regions(), landmarks(ids), start=range(7))


def figures(score):
    return [score.median_mm, score.mean_mm, score.std_mm, score.back_mm, score.back_worst_mm, score.normal_rad]


def test_a_face_that_is_the_scan_scores_nothing():
    score = now_score(scan(), landmarks(), scan(), landmarks())
    np.testing.assert_allclose(figures(score), 0, atol=1e-6)
    assert len(score.distances_mm) == now_crop(scan().vertices, landmarks()).sum() > 500
    for part_score in realy(scan()).values():
        np.testing.assert_allclose(figures(part_score), 0, atol=1e-6)
    assert realy_total_mm(realy(scan())) == pytest.approx(0, abs=1e-6)


def test_now_is_blind_to_a_similarity_and_its_metrical_variant_to_a_rigid_motion():
    face, move = wavy()
    points = move(landmarks())
    for with_scale, scale in ((True, 1.7), (False, 1.0)):
        score = now_score(face, points, scan(), landmarks(), with_scale)
        assert 0.3 < score.mean_mm < 2
        other = Surface(moved(face.vertices, scale), face.faces)
        again = now_score(other, moved(points, scale), scan(), landmarks(), with_scale)
        np.testing.assert_allclose(figures(again), figures(score), rtol=1e-4, atol=1e-6)
    grown = now_score(Surface(1.1 * scan().vertices, scan().faces), 1.1 * landmarks(), scan(), landmarks(), False)
    assert grown.mean_mm > 0.5
    assert score.alignment.scale == 1


def test_realy_is_blind_to_a_similarity():
    face, move = wavy()
    score = realy(face, move)
    again = realy(Surface(moved(face.vertices, 1.7), face.faces), lambda p: moved(move(p), 1.7))
    for name in REALY_REGIONS:
        assert 0.1 < score[name].mean_mm < 2
        np.testing.assert_allclose(figures(again[name]), figures(score[name]), rtol=1e-3, atol=1e-6)
    assert realy_total_mm(score) == pytest.approx(np.mean([s.mean_mm for s in score.values()]))


def test_the_scan_may_move_as_well():
    face, move = wavy()
    score = now_score(face, move(landmarks()), scan(), landmarks())
    there = now_score(face, move(landmarks()), Surface(moved(scan().vertices), scan().faces), moved(landmarks()))
    np.testing.assert_allclose(figures(there), figures(score), rtol=1e-4)


def test_spikes_that_the_way_from_the_scan_hardly_sees_show_on_the_way_back_and_in_normals():
    face = spiky()
    score = now_score(face, landmarks(), scan(), landmarks())
    assert score.median_mm < 0.3
    assert score.back_worst_mm > 5
    assert score.back_mm > 0.2
    assert score.normal_rad > 0.1
    for part_score in realy(face).values():
        assert part_score.back_worst_mm > 4
        assert part_score.normal_rad > 0.1


def test_a_dent_shows_in_its_region_only():
    centre = landmarks([4])[0]
    depth = 0.008 * np.exp(-np.sum((scan().vertices - centre) ** 2, axis=1) / (2 * 0.008**2))
    dented = Surface(scan().vertices - depth[:, None] * [0, 0, 1], scan().faces)
    score = realy(dented)
    assert score["nose"].mean_mm > 0.3
    for name in ("mouth", "forehead", "cheek"):
        assert score[name].mean_mm < 0.05 * score["nose"].mean_mm


def test_errors_are_millimetres():
    """A plane whose quarters are 1 mm up and down in turn, which no motion makes good."""
    vertices, faces = plane(0.05, 20)
    ground = Surface(vertices, faces)
    points = np.array([[-3.0, 0, 1], [-1, 0, 1], [1, 0, 1], [3, 0, 1], [0, 0, 0], [-1, 0, -2], [1, 0, -2]]) / 100
    raised = vertices.copy()
    raised[:, 1] += 0.001 * np.sign(vertices[:, 0] * vertices[:, 2])
    score = now_score(Surface(raised, faces), points, ground, points, with_scale=False)
    assert score.mean_mm == pytest.approx(0.9, abs=0.05)  # of the 41 by 41 vertices, those in between count as 0
    assert bend_onto(ground, Surface(vertices + np.array([0, 0.003, 0]), faces))[:, 1] == pytest.approx(0.003, abs=1e-9)


def test_bending_goes_onto_the_target_and_stays_where_it_is_already():
    region = regions()["cheek"]
    np.testing.assert_allclose(bend_onto(region, scan()), region.vertices, atol=1e-12)
    face, _ = wavy(0.001)
    before = np.linalg.norm(region.vertices - face.search.closest(region.vertices), axis=1)
    bent = bend_onto(region, face)
    after = np.linalg.norm(bent - face.search.closest(bent), axis=1)
    assert after.mean() < 0.3 * before.mean()


def test_the_crop_is_nows_sphere():
    """By hand: eyes 10 cm apart at height 4, the nose's bottom at the origin."""
    points = np.array([[-5.0, 4, 0], [-2, 4, 0], [2, 4, 0], [5, 4, 0], [0, 0, 0], [-2, -3, 0], [2, -3, 0]]) / 100
    radius = 0.7 * 0.14
    centre = np.array([0, 0.012, 0])
    ways = np.eye(3)
    assert now_crop(centre + 0.999 * radius * ways, points).all()
    assert not now_crop(centre + 1.001 * radius * ways, points).any()


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(InputError, match=r"the same points, \(7, 3\) each"):
        now_score(scan(), landmarks()[:6], scan(), landmarks()[:6])
    line = np.outer(np.arange(7.0), [1, 1, 0])
    with pytest.raises(InputError, match="those of the face are 7 on one line"):
        now_score(scan(), line, scan(), landmarks())
    with pytest.raises(InputError, match="must be finite"):
        now_score(scan(), np.nan * line, scan(), landmarks())
    far = Surface(scan().vertices + 9, scan().faces)
    with pytest.raises(InputError, match="No vertex of the scan is near its landmarks"):
        now_score(scan(), landmarks(), far, landmarks())
    with pytest.raises(InputError, match="none was given"):
        realy_score(scan(), landmarks(), {}, landmarks())
    with pytest.raises(InputError, match="region or crop is not empty"):
        part(scan(), np.array([9.0, 9, 9]), 0.01)
