"""The built-in head: a closed, symmetric mesh whose lids, lips and jaw do what their names say."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from facejax.geometry.meshes import edge_neighbours
from facejax.models.generic import ARKIT_NAMES, build, expressions, generic_head, identity, layout, parts, sculpt
from facejax.models.morphable import REGIONS, MorphableHead

FLIP = np.array([-1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def head() -> MorphableHead:
    return generic_head()


@functools.cache
def mesh() -> build.Mesh:
    return build.load()


def mm(head: MorphableHead, **activations: float) -> np.ndarray:
    """The mean head with these expressions, millimetres."""
    v = np.asarray(head.params.mean, np.float64).copy()
    for name, value in activations.items():
        v += value * np.asarray(head.params.expression_basis, np.float64)[ARKIT_NAMES.index(name)]
    return v * 1e3


def triangles(head: MorphableHead, part: int | None = None) -> np.ndarray:
    """Triangles of a part; of the skin (with the inside of the mouth) without one."""
    f = head.topology.faces
    inside = mesh().part <= build.EAR if part is None else mesh().part == part
    return f[inside[f].all(axis=1)]


def volume(v: np.ndarray, f: np.ndarray) -> float:
    centre = v[np.unique(f)].mean(axis=0)
    a, b, c = (v[f[:, i]] - centre for i in range(3))
    return float(np.einsum("ni,ni->", np.cross(a, b), c) / 6)


def areas(v: np.ndarray, f: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.cross(v[f[:, 1]] - v[f[:, 0]], v[f[:, 2]] - v[f[:, 0]]), axis=1) / 2


def test_size_and_place(head: MorphableHead) -> None:
    v = mm(head)
    assert 6000 <= len(v) <= 9000
    assert head.topology.n_vertices == len(v)
    skull = v[(v[:, 1] > -85) & (mesh().part == build.SKIN)]
    assert 220 < np.ptp(skull[:, 1]) < 245
    assert 130 < np.ptp(skull[:, 0]) < 160
    assert 180 < np.ptp(skull[:, 2]) < 225
    np.testing.assert_allclose(np.asarray(head.params.eye_pivot) * 1e3, [sculpt.EYE, sculpt.EYE * FLIP], rtol=1e-6)
    assert all(a.dtype == jnp.float32 for a in vars(head.params).values())


def test_mirror_is_an_exact_involution(head: MorphableHead) -> None:
    v, mirror = np.asarray(head.params.mean), head.mirror
    np.testing.assert_array_equal(mirror[mirror], np.arange(len(v)))
    np.testing.assert_array_equal(v[mirror], v * FLIP.astype(np.float32))
    assert np.all((mirror == np.arange(len(v))) == (v[:, 0] == 0))
    flipped = np.sort(mirror[head.topology.faces], axis=1)
    assert set(map(tuple, flipped)) == set(map(tuple, np.sort(head.topology.faces, axis=1)))


def test_oriented_outwards_and_closed(head: MorphableHead) -> None:
    v, f = mm(head), head.topology.faces
    directed = np.concatenate([f[:, [0, 1]], f[:, [1, 2]], f[:, [2, 0]]])
    assert len(np.unique(directed, axis=0)) == len(directed), "two triangles run along an edge the same way"
    assert 3.0e6 < volume(v, triangles(head)) < 5.5e6
    for part in range(build.EYEBALL, build.TONGUE + 1):
        own = triangles(head, part)
        assert volume(v, own) > 0
        assert np.all(edge_neighbours(own) >= 0)
    # The skin is open at the neck and behind the lids, nowhere else.
    skin = triangles(head)
    border = np.argwhere(edge_neighbours(skin) < 0)
    ends = np.unique(np.stack([skin[t, [(e + 1) % 3, (e + 2) % 3]] for t, e in border]))
    neck = v[ends, 1] < layout.NECK_Y + 1
    assert np.all(neck | ((mesh().part[ends] == build.EYE) & (mesh().ring[ends] > build.SOCKET_RING)))


def test_no_degenerate_triangle(head: MorphableHead) -> None:
    v, f = mm(head), head.topology.faces
    assert areas(v, f).min() > 1e-3
    assert len(np.unique(f)) == len(v)


def test_normals_of_the_face_look_outwards(head: MorphableHead) -> None:
    v, f = mm(head), triangles(head)
    n = np.cross(v[f[:, 1]] - v[f[:, 0]], v[f[:, 2]] - v[f[:, 0]])
    n /= np.linalg.norm(n, axis=1, keepdims=True)
    middle = v[f].mean(axis=1)
    free = (mesh().part == build.SKIN)[f].all(axis=1)
    assert np.mean(np.einsum("ni,ni->n", n, sculpt.gradient(middle))[free] > 0.5) > 0.995


def test_shipped_mesh_is_what_the_code_builds(head: MorphableHead) -> None:
    """The whole build takes half a minute (below); what it starts from must still give the shipped vertices."""
    m = mesh()
    v = m.vertices.astype(float) * 1e3
    ball = np.flatnonzero((m.part == build.EYEBALL) & (v[:, 0] > 0))
    np.testing.assert_allclose(v[ball], parts.eyeball().position, atol=1e-4)
    for part, piece in ((build.UPPER_TEETH, parts.teeth(True)), (build.TONGUE, parts.tongue())):
        own = np.flatnonzero((m.part == part) & (v[:, 0] >= 0))
        np.testing.assert_allclose(v[own], piece.position, atol=1e-4)
    for ring, made in enumerate(layout.eye_rings()):
        if np.min(made.hold) == 1:
            own = np.flatnonzero((m.part == build.EYE) & (m.ring == ring) & (v[:, 0] > 0))
            np.testing.assert_allclose(v[own], made.position, atol=1e-3)
    free = (m.part == build.SKIN) & (v[:, 1] > layout.NECK_Y + 1)
    assert np.percentile(np.abs(sculpt.field(v[free])), 99) < 0.6


@pytest.mark.slow
def test_build_from_nothing() -> None:
    built, shipped = build.build(), mesh()
    if built.vertices.shape == shipped.vertices.shape and np.array_equal(built.faces, shipped.faces):
        np.testing.assert_allclose(built.vertices, shipped.vertices, atol=1e-5)
        np.testing.assert_allclose(built.uv, shipped.uv, atol=1e-4)
        np.testing.assert_allclose(built.jaw, shipped.jaw, atol=1e-4)
        return
    # Another processor or scipy may round another way, which can move free vertices; the features must be the same.
    assert abs(len(built.vertices) - len(shipped.vertices)) < 0.02 * len(shipped.vertices)
    for part in range(build.EYE, build.TONGUE + 1):
        a, b = (m.vertices[m.part == part] for m in (built, shipped))
        np.testing.assert_allclose(a, b, atol=5e-4)
    free = (built.part == build.SKIN) & (built.vertices[:, 1] * 1e3 > layout.NECK_Y + 1)
    assert np.percentile(np.abs(sculpt.field(built.vertices[free].astype(float) * 1e3)), 99) < 0.6


def test_arkit_names(head: MorphableHead) -> None:
    assert head.expression_names == ARKIT_NAMES
    assert len(set(ARKIT_NAMES)) == 52
    assert ARKIT_NAMES[0] == "eyeBlinkLeft"
    assert ARKIT_NAMES[-1] == "tongueOut"
    lefts = {n[:-4] for n in ARKIT_NAMES if n.endswith("Left")}
    assert lefts == {n[:-5] for n in ARKIT_NAMES if n.endswith("Right")}
    assert np.all(np.abs(np.asarray(head.params.expression_basis)).max(axis=(1, 2)) > 5e-4)


def test_pairs_are_mirror_images(head: MorphableHead) -> None:
    basis = np.asarray(head.params.expression_basis)
    for name in ARKIT_NAMES:
        twin = name.replace("Left", "#").replace("Right", "Left").replace("#", "Right")
        a, b = basis[ARKIT_NAMES.index(name)], basis[ARKIT_NAMES.index(twin)]
        np.testing.assert_allclose(b, a[head.mirror] * FLIP, atol=2e-7, err_msg=name)


def lid_rings(ring: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the left (upper, lower) margin, matched from the outer to the inner corner, corners left out."""
    m = mesh()
    ids = np.flatnonzero((m.part == build.EYE) & (m.ring == ring) & (m.vertices[:, 0] > 0))
    ids = ids[np.argsort(m.slot[ids])]
    n = layout.EYE_COUNT // 2
    return ids[1:n], ids[:n:-1]


def test_blink_closes_the_eye(head: MorphableHead) -> None:
    upper, lower = lid_rings(8)
    open_, shut = mm(head), mm(head, eyeBlinkLeft=1.0)
    gap = np.linalg.norm(open_[upper] - open_[lower], axis=1)
    assert 8.0 < gap.max() < 13.0
    assert np.linalg.norm(shut[upper] - shut[lower], axis=1).max() < 1.5
    right = head.mirror[upper]
    np.testing.assert_allclose(shut[right], open_[right], atol=1e-3)
    travel = np.linalg.norm(shut - open_, axis=1)
    assert travel[upper].max() > 2.5 * travel[lower].max()


@pytest.mark.parametrize("name", [n for n in ARKIT_NAMES if n.startswith("eye")])
def test_lids_stay_out_of_the_eyeball(head: MorphableHead, name: str) -> None:
    m = mesh()
    lid = (m.part == build.EYE) & (m.ring >= 5) & (m.ring <= build.SOCKET_RING)
    for amount in (0.0, 0.5, 1.0):
        v = mm(head, **{name: amount})[lid]
        r = np.linalg.norm(v - sculpt.EYE * np.where(v[:, :1] > 0, 1.0, FLIP), axis=1)
        assert r.min() > sculpt.EYE_RADIUS - 0.5


def lip_gap(head: MorphableHead, v: np.ndarray) -> float:
    top, bottom = (head.landmarks68.triangles[k, 0] for k in (62, 66))
    return float(np.linalg.norm(v[top] - v[bottom]))


def test_jaw_opens_and_mouth_close_shuts(head: MorphableHead) -> None:
    assert lip_gap(head, mm(head)) < 0.5
    opened = mm(head, jawOpen=1.0)
    assert 20 < lip_gap(head, opened) < 45
    assert lip_gap(head, mm(head, jawOpen=1.0, mouthClose=1.0)) < 1.0
    m, v = mesh(), mm(head)
    moved = opened - v
    for part in (build.LOWER_TEETH, build.LOWER_GUM, build.TONGUE):
        assert moved[m.part == part][:, 1].max() < -5
    for part in (build.UPPER_TEETH, build.UPPER_GUM, build.EYEBALL):
        assert np.abs(moved[m.part == part]).max() == 0
    chin = head.landmarks68.triangles[8, 0]
    assert moved[chin, 1] < -15
    assert np.abs(moved[head.landmarks68.triangles[30, 0]]).max() < 0.1


def test_expressions_go_the_right_way(head: MorphableHead) -> None:
    v = mm(head)
    ids = head.landmarks68.triangles[:, 0]

    def move(name: str, landmark: int) -> np.ndarray:
        return (mm(head, **{name: 1.0}) - v)[ids[landmark]]

    assert move("mouthSmileLeft", 54)[1] > 3
    assert move("mouthSmileLeft", 54)[0] > 2
    assert move("mouthFrownLeft", 54)[1] < -3
    assert move("mouthPucker", 54)[0] < -4
    assert move("mouthLeft", 51)[0] > 4
    assert move("jawLeft", 8)[0] > 4
    assert move("jawForward", 8)[2] > 4
    assert move("browInnerUp", 22)[1] > 3
    assert move("browOuterUpLeft", 25)[1] > 3
    assert move("browDownLeft", 23)[1] < -3
    assert move("mouthUpperUpLeft", 52)[1] > 2
    assert move("mouthLowerDownLeft", 56)[1] < -2
    assert move("noseSneerLeft", 35)[1] > 1
    assert move("eyeWideLeft", 43)[1] > 0.5
    assert move("eyeLookDownLeft", 43)[1] < -2
    assert move("eyeLookUpLeft", 43)[1] > 0.5
    assert move("eyeSquintLeft", 47)[1] > 0.8
    assert (mm(head, tongueOut=1.0) - v)[mesh().part == build.TONGUE][:, 2].max() > 20


def test_uv_covers_the_square_without_overlap(head: MorphableHead) -> None:
    uv, f = head.topology.uv.astype(np.float64), head.topology.uv_faces
    assert uv.min() >= 0
    assert uv.max() <= 1
    signed = build.signed_areas(uv, f)
    assert np.abs(signed).min() > 0
    # Paint every triangle; texels well inside more than one are overlaps.
    size = 1024
    count = np.zeros((size, size), np.int32)
    for t in uv[f] * size:
        low, high = np.floor(t.min(axis=0)).astype(int), np.ceil(t.max(axis=0)).astype(int)
        x, y = np.meshgrid(np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5)
        d = np.linalg.solve(
            np.column_stack([t[1] - t[0], t[2] - t[0]]), np.stack([x.ravel() - t[0, 0], y.ravel() - t[0, 1]])
        )
        inside = ((d > 1e-6).all(axis=0) & (d.sum(axis=0) < 1 - 1e-6)).reshape(x.shape)
        count[low[1] : high[1], low[0] : high[0]][inside] += 1
    assert np.mean(count > 0) > 0.5
    assert np.sum(count > 1) <= 2e-4 * np.sum(count > 0)
    assert abs(np.abs(signed).sum() - np.mean(count > 0)) < 0.01


def test_regions(head: MorphableHead) -> None:
    v, masks = mm(head), head.regions
    assert set(masks) == set(REGIONS)
    for name, mask in masks.items():
        assert mask.shape == (len(v),)
        assert mask.min() >= 0, name
        assert 0.9 < mask.max() <= 1, name
        np.testing.assert_allclose(mask[head.mirror], mask, atol=1e-6, err_msg=name)

    def middle(name: str) -> np.ndarray:
        left = (masks[name] > 0.5) & (v[:, 0] >= 0)
        return v[left].mean(axis=0)

    assert middle("scalp")[1] > 60
    assert middle("neck")[1] < -60
    assert middle("ears")[0] > 60
    assert 45 < middle("brows")[1] < 65
    assert abs(middle("lips")[1] - sculpt.MOUTH_Y) < 3
    assert -15 < middle("nose")[1] < 25
    inner = masks["eyeballs"] + masks["eye_sockets"] + masks["teeth"] + masks["gums"]
    assert np.all(masks["skin"] * inner == 0)
    assert np.all(masks["skin"] + inner == 1)
    assert np.all(masks["narrow_face"] <= masks["skin"])
    assert np.all(masks["iris"] <= masks["eyeballs"])
    assert v[masks["narrow_face"] > 0.5][:, 2].min() > 30


def test_landmarks68(head: MorphableHead) -> None:
    p = np.asarray(head.landmarks68.on(head.params.mean)) * 1e3
    assert p.shape == (68, 3)
    top = head.landmarks68.triangles[:, 0]
    assert len(set(top.tolist())) == 68
    flip = [
        *range(16, -1, -1),
        *range(26, 16, -1),
        *range(27, 31),
        *range(35, 30, -1),
        45,
        44,
        43,
        42,
        47,
        46,
        39,
        38,
        37,
        36,
    ]
    flip += [41, 40, *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1)]
    np.testing.assert_allclose(p[flip], p * FLIP, atol=1e-3)
    assert np.all(head.regions["nose"][top[27:36]] > 0.5)
    assert np.all(head.regions["brows"][top[17:27]] > 0.3)
    assert np.all(head.regions["lips"][top[48:68]] > 0.5)
    assert np.all(mesh().part[top[36:48]] == build.EYE)
    jaw = p[:17]
    assert np.all(np.diff(jaw[1:16, 0]) > 0)
    assert jaw[8, 1] < jaw[:, 1].min() + 1.5
    assert p[30, 2] == p[:, 2].max()
    outer_eyes = np.linalg.norm(p[36] - p[45])
    assert 80 < outer_eyes < 100
    assert 45 < np.linalg.norm(p[48] - p[54]) < 60


def test_landmarks478(head: MorphableHead) -> None:
    p = np.asarray(head.landmark_points(head.params.mean)) * 1e3
    assert p.shape == (478, 3)
    np.testing.assert_allclose(head.landmarks478.weights.sum(axis=1), 1, atol=1e-5)
    p68 = np.asarray(head.landmarks68.on(head.params.mean)) * 1e3
    for mediapipe, ibug, near in (
        (1, 30, 9),
        (152, 8, 9),
        (33, 36, 5),
        (263, 45, 5),
        (133, 39, 5),
        (61, 48, 5),
        (291, 54, 5),
        (13, 62, 4),
        (14, 66, 4),
        (168, 27, 12),
    ):
        assert np.linalg.norm(p[mediapipe] - p68[ibug]) < near, mediapipe
    for start, eye in ((468, sculpt.EYE * FLIP), (473, sculpt.EYE)):
        assert np.linalg.norm((p[start] - eye)[:2]) < 1.0
        assert np.all(p[start : start + 5, 2] > eye[2] + 8)
        assert np.all(np.linalg.norm((p[start + 1 : start + 5] - p[start])[:, :2], axis=1) < 7.5)


def test_identity_modes(head: MorphableHead) -> None:
    basis = np.asarray(head.params.identity_basis)
    assert len(basis) >= 30
    power = np.sum(basis.astype(np.float64) ** 2, axis=(1, 2))
    assert np.all(np.diff(power) <= 1e-6 * power[0])
    mirrored = basis[:, head.mirror] * FLIP
    symmetric = np.abs(mirrored - basis).max(axis=(1, 2)) < 1e-6
    assert 3 <= np.sum(~symmetric) <= 12
    # Eyeballs are rigid: every vertex moves as the pivot does.
    weight = np.asarray(head.params.eye_weight)
    for side in range(2):
        own = weight[:, side] > 0
        assert own.sum() > 200
        np.testing.assert_allclose(
            basis[:, own],
            np.broadcast_to(np.asarray(head.params.eye_pivot_basis)[:, side, None], basis[:, own].shape),
            atol=1e-7,
        )
    names = identity.modes(mesh())[2]
    assert len(names) == len(set(names)) == len(basis)


def outward_flips(head: MorphableHead, v: np.ndarray, f: np.ndarray) -> float:
    """Share of triangles whose normal is turned by more than a right angle against the mean head."""
    rest = mm(head)
    a, b = (np.cross(w[f[:, 1]] - w[f[:, 0]], w[f[:, 2]] - w[f[:, 0]]) for w in (rest, v))
    return float(np.mean(np.einsum("ni,ni->n", a, b) < 0))


def test_random_people_are_people(head: MorphableHead) -> None:
    rng = np.random.default_rng(0)
    basis = np.asarray(head.params.identity_basis, np.float64) * 1e3
    skin = triangles(head)
    for k in range(12):
        c = rng.normal(size=len(basis))
        v = mm(head) + np.einsum("i,ivc->vc", c, basis)
        assert np.isfinite(v).all()
        assert outward_flips(head, v, skin) < 0.002
        lid = (mesh().part == build.EYE) & (mesh().ring >= 5) & (mesh().ring <= 9) & (head.mirror != np.arange(len(v)))
        pivot = (
            np.asarray(head.params.eye_pivot) + np.einsum("i,isc->sc", c, np.asarray(head.params.eye_pivot_basis))
        ) * 1e3
        side = (mm(head)[lid][:, 0] < 0).astype(int)
        assert np.linalg.norm(v[lid] - pivot[side], axis=1).min() > sculpt.EYE_RADIUS - 0.6, k
        assert 50 < np.linalg.norm(pivot[0] - pivot[1]) < 76
    for i in range(len(basis)):
        for sd in (-2.0, 2.0):
            assert outward_flips(head, mm(head) + sd * basis[i], skin) < 0.002, identity.modes(mesh())[2][i]


def test_expressions_do_not_turn_the_face_inside_out(head: MorphableHead) -> None:
    skin = triangles(head)
    front = skin[((mesh().ring < 8) | (mesh().part == build.EAR))[skin].all(axis=1)]
    for name in ARKIT_NAMES:
        v = mm(head, mouthClose=1.0, jawOpen=1.0) if name == "mouthClose" else mm(head, **{name: 1.0})
        assert outward_flips(head, v, front) < 0.01, name


def test_colours(head: MorphableHead) -> None:
    albedo = np.asarray(head.albedo(head.params, head.init_code()[0]))
    assert np.all((albedo > 0) & (albedo < 1))
    brightness = albedo.mean(axis=1)
    masks = head.regions

    def mean(mask: np.ndarray) -> float:
        return float(brightness[mask > 0.9].mean())

    cheek = masks["narrow_face"] * (1 - masks["lips"]) * (1 - masks["brows"])
    assert mean(masks["brows"]) < 0.6 * mean(cheek)
    assert mean(masks["iris"]) < 0.3 * mean(masks["eyeballs"] - masks["iris"])
    assert mean(masks["teeth"]) > 1.3 * mean(masks["gums"])
    lips, plain = albedo[masks["lips"] > 0.9].mean(axis=0), albedo[cheek > 0.9].mean(axis=0)
    assert lips[0] / lips[1] > 1.15 * plain[0] / plain[1]
    assert np.all(np.asarray(head.params.roughness) > 0)
    assert np.all((np.asarray(head.params.specular) > 0.01) & (np.asarray(head.params.specular) < 0.06))


def test_gaze_turns_eyeballs_only_with_lids(head: MorphableHead) -> None:
    identity_code, frame = head.init_code()
    looked = frame.replace(gaze=jnp.array([[0.3, 0.0], [0.0, 0.0]]))
    v0, v1 = (np.asarray(head.vertices(head.params, identity_code, x)) * 1e3 for x in (frame, looked))
    ball = np.asarray(head.params.eye_weight)[:, 0] > 0
    r0, r1 = (np.linalg.norm(v[ball] - sculpt.EYE, axis=1) for v in (v0, v1))
    np.testing.assert_allclose(r0, r1, atol=1e-3)
    assert v1[ball][0, 0] - v0[ball][0, 0] > 2.5  # the pupil goes to the subject's left
    assert np.abs(v1 - v0)[(mesh().part == build.MOUTH)].max() == 0


def test_lid_motion_is_pure_left_of_the_midline() -> None:
    moved = np.abs(expressions.lids(mesh(), 1.0, 1.0)).max(axis=1) > 0
    assert np.all(mesh().vertices[moved, 0] > 0)
