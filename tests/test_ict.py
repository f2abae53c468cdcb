"""ICT-FaceKit: the pieces of the conversion by their mathematics, then the real distribution, converted once."""

import time

import jax.numpy as jnp
import numpy as np
import pytest

from facejax.data import assets as installed
from facejax.data.heads import ict_facekit as ict
from facejax.data.heads import load_model, model_file
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import vertex_normals
from facejax.models.morphable import REGIONS

OBJ = """# two triangles' worth of a square, and a triangle
v 0 0 0
v 2e0 0 0
v 1.5 1 0
v 0.0 1 -0.5
v 3 1 0
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl M
f 1/1 2/2 3/3 4/4
f 2/1 5/2 3/3
"""


def test_obj_reading(tmp_path):
    path = tmp_path / "x.obj"
    path.write_text(OBJ)
    np.testing.assert_array_equal(
        ict.read_obj_vertices(path, 5), [[0, 0, 0], [2, 0, 0], [1.5, 1, 0], [0, 1, -0.5], [3, 1, 0]]
    )
    polygons, uv_polygons, uv = ict.read_obj_polygons(path)
    np.testing.assert_array_equal(polygons, [[0, 1, 2, 3], [1, 4, 2, 2]])
    np.testing.assert_array_equal(uv_polygons, [[0, 1, 2, 3], [0, 1, 2, 2]])
    np.testing.assert_array_equal(uv, [[0, 0], [1, 0], [1, 1], [0, 1]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OBJ.replace("v 1.5 1 0\n", ""), "must be 5 x 3 numbers, got 12"),
        (OBJ.replace("1.5", "one"), "must be numbers"),
        (OBJ.replace("1.5", "nan"), "must be finite"),
        ("", "must be 5 x 3 numbers, got 0"),
    ],
)
def test_damaged_obj_is_refused(tmp_path, text, message):
    path = tmp_path / "x.obj"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        ict.read_obj_vertices(path, 5)


def test_missing_obj_is_named(tmp_path):
    with pytest.raises(InputError, match=r"must hold generic_neutral_mesh\.obj"):
        ict.convert_facekit(tmp_path)


@pytest.mark.parametrize(
    ("name", "arkit"),
    [
        ("eyeBlink_L", "eyeBlinkLeft"),
        ("PupilDilate_R", "pupilDilateRight"),
        ("browInnerUp_L", "browInnerUpLeft"),
        ("jawLeft", "jawLeft"),
        ("mouthClose", "mouthClose"),
    ],
)
def test_arkit_names(name, arkit):
    assert ict.arkit_name(name) == arkit


def test_quads_are_cut_along_the_shorter_diagonal():
    kite = np.array([[0, 0, 0], [1, -0.2, 0], [4, 0, 0], [1, 0.2, 0]], float)
    corners, of = ict.triangulate(kite, np.array([[0, 1, 2, 3], [0, 1, 3, 3]]))
    np.testing.assert_array_equal(corners, [[0, 1, 3], [1, 2, 3], [0, 1, 2]])
    np.testing.assert_array_equal(of, [0, 0, 1])
    corners, _ = ict.triangulate(kite, np.array([[1, 2, 3, 0]]))  # the same quad from another corner: the same cut
    np.testing.assert_array_equal(np.array([1, 2, 3, 0])[corners], [[1, 2, 3], [1, 3, 0]])


def test_sphere_centre_is_exact_on_part_of_a_sphere():
    rng = np.random.default_rng(0)
    d = rng.normal(size=(60, 3))
    d = d[d[:, 2] > -0.2]
    points = np.array([0.03, 0.04, 0.08]) + 0.0123 * d / np.linalg.norm(d, axis=1, keepdims=True)
    centre, radius = ict.sphere_centre(points)
    np.testing.assert_allclose(centre, [0.03, 0.04, 0.08], atol=1e-9)
    np.testing.assert_allclose(radius, 0.0123, atol=1e-9)


@pytest.fixture(scope="module")
def home(assets, tmp_path_factory):
    """FACEJAX_HOME with ICT-FaceKit installed from its archive, once."""
    archive = assets / "ict-facekit" / "FaceXModel.tar.xz"
    if not archive.is_file():
        pytest.skip("ICT-FaceKit's archive is not among the development assets")
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACEJAX_HOME", str(folder))
        installed.install("ict-facekit", archive)
        yield folder


@pytest.fixture(scope="module")
def arrays(home):
    return model_file.read_arrays(installed.asset_path("ict-facekit"))[0]


@pytest.fixture(scope="module")
def head(home):
    return load_model("ict-facekit")


@pytest.mark.assets
def test_it_installs_one_file_and_loads_fast(home):
    (path,) = [p for p in home.rglob("*") if p.is_file()]
    assert path == installed.asset_path("ict-facekit")
    start = time.perf_counter()
    head = load_model("ict-facekit")
    assert time.perf_counter() - start < 1.5
    assert head.sha256 == installed.sha256_of(path)


@pytest.mark.assets
def test_sizes(arrays, head):
    assert arrays["mean"].shape == (26719, 3)
    assert arrays["identity_basis"].shape == (100, 26719, 3)
    assert len(arrays["expression_names"]) == 57
    # the whole skin, as papers count it
    skin = np.isin(arrays["part_names"][arrays["face_part"]], ["face", "head_neck"])
    assert len(np.unique(arrays["faces"][skin])) == 11248
    assert skin.sum() == 22288
    assert head.topology.n_vertices == 26719 - 2 * (800 + 204 + 24 + 152 + 684)
    assert len(np.unique(head.topology.faces)) == head.topology.n_vertices


@pytest.mark.assets
def test_metres_and_axes(head):
    mean = np.asarray(head.params.mean)
    size = np.ptp(mean[head.regions["skin"] > 0], axis=0)
    assert 0.2 < size[0] < 0.3  # shoulders' width of the bust
    assert 0.3 < size[1] < 0.4
    points = np.asarray(head.landmarks68.on(head.params.mean))
    assert points[45, 0] > 0.04  # the subject's left outer eye corner lies at +x
    assert points[27, 1] > points[33, 1] > points[8, 1]  # bridge, nose base, chin
    assert points[30, 2] > points[0, 2]  # the nose tip is in front
    pupils = np.asarray(head.landmarks478.on(head.params.mean))[[473, 468]]
    np.testing.assert_allclose(np.linalg.norm(pupils[0] - pupils[1]), 0.063, atol=0.004)  # the human mean
    outward = np.sum(np.asarray(vertex_normals(head.params.mean, head.topology.faces))[head.regions["nose"] > 0.5], 0)
    assert outward[2] > 0


@pytest.mark.assets
def test_expressions_do_what_they_say(head):
    def moved(name, point):
        basis = head.params.expression_basis[head.expression_names.index(name)]
        return np.asarray(head.landmarks68.on(basis))[point]

    assert moved("jawOpen", 8)[1] < -0.01  # the chin drops by over a centimetre
    assert moved("mouthSmileLeft", 54)[1] > 0.003
    assert abs(moved("mouthSmileLeft", 48)[1]) < 0.001
    assert moved("jawLeft", 8)[0] > 0.003
    assert moved("eyeBlinkLeft", 44)[1] < -0.003
    assert np.abs(moved("eyeBlinkLeft", 37)).max() < 1e-4


@pytest.mark.assets
def test_eyeballs_turn_by_gaze_alone(arrays, head):
    eyes = arrays["eye_weight"].max(1) > 0
    for name, basis in zip(arrays["expression_names"], arrays["expression_basis"], strict=True):
        if name.startswith(("eyeLook", "eyeBlink")):
            assert np.abs(basis[eyes]).max() == 0
    shared, frame = head.init_code()
    left = head.params.eye_weight[:, 0] > 0
    still = np.asarray(head.vertices(head.params, shared, frame))
    turned = head.vertices(head.params, shared, frame.replace(gaze=jnp.array([[0.3, 0.1], [0.0, 0.0]])))
    moved = np.asarray(turned) - still
    assert np.abs(moved[left]).max() > 0.003
    assert np.abs(moved[np.asarray(head.params.eye_weight[:, 1]) > 0]).max() == 0
    radius = [np.linalg.norm(v[left] - np.asarray(head.params.eye_pivot)[0], axis=1) for v in (still, still + moved)]
    np.testing.assert_allclose(radius[0], radius[1], atol=1e-6)
    iris = left & (head.regions["iris"] > 0.5)
    assert moved[iris, 0].mean() > 0.003  # +yaw looks to the subject's left


@pytest.mark.assets
def test_eye_pivots_follow_a_sphere_fitted_to_the_whole_head(arrays):
    rng = np.random.default_rng(1)
    shell = ict.part_vertices("eyeball_right")
    points = arrays["mean"][shell].astype(float)
    to = points - arrays["eye_pivot"][1]
    sclera = to[:, 2] < np.cos(np.radians(30)) * np.linalg.norm(to, axis=1)
    for _ in range(5):
        shape = rng.normal(size=100)
        moved = points + np.einsum("i,ivc->vc", shape, arrays["identity_basis"][:, shell])
        centre, radius = ict.sphere_centre(moved[sclera])
        pivot = arrays["eye_pivot"][1] + np.einsum("i,ic->c", shape, arrays["eye_pivot_basis"][:, 1])
        assert np.linalg.norm(centre - pivot) < 1.5e-4
        assert 0.013 < radius < 0.019


@pytest.mark.assets
def test_mirror(arrays, head):
    for mirror, mean in ((arrays["mirror"], arrays["mean"]), (head.mirror, np.asarray(head.params.mean))):
        assert np.mean(mirror[mirror] == np.arange(len(mirror))) > 0.99
        gap = np.linalg.norm(mean[mirror] * [-1, 1, 1] - mean, axis=1)
        assert np.quantile(gap, 0.99) < 1e-4
    smile = [head.params.expression_basis[head.expression_names.index(f"mouthSmile{s}")] for s in ("Left", "Right")]
    np.testing.assert_allclose(np.asarray(smile[0])[head.mirror] * [-1, 1, 1], smile[1], atol=2e-3)
    jaw = np.asarray(head.params.expression_basis[head.expression_names.index("jawOpen")])
    off = np.linalg.norm(jaw[head.mirror] * [-1, 1, 1] - jaw, axis=1)
    assert np.quantile(off, 0.999) < 1e-3  # no upper lip is matched to the lower one, which moves by 3 cm


@pytest.mark.assets
def test_regions(arrays, head):
    masks = head.regions
    assert set(masks) == set(REGIONS)
    for name, mask in masks.items():
        assert mask.min() >= 0
        assert mask.max() == 1
        assert 1 <= (mask > 0.5).sum() < len(mask), name
        asymmetry = np.abs(mask - mask[head.mirror])
        assert asymmetry.mean() < 0.01 * mask.mean() + 1e-3, name
    mean = np.asarray(head.params.mean)
    height = {name: np.average(mean[:, 1], weights=mask) for name, mask in masks.items()}
    assert height["scalp"] > height["brows"] > height["iris"] > height["nose"] > height["lips"] > height["neck"]
    assert np.abs(mean[masks["ears"] > 0.5, 0]).min() > 0.05
    iris = (masks["iris"] > 0.5) & (mean[:, 0] > 0)
    assert 0.0105 < np.ptp(mean[iris, 1]) < 0.0125  # the human iris, 11.7 mm
    points = np.asarray(head.landmarks68.triangles)[:, 0]
    assert (masks["brows"][points[17:27]] == 1).all()
    assert (masks["nose"][points[28:36]] > 0.3).all()
    assert (masks["neck"][points[17:]] == 0).all()
    assert (arrays["region_masks"][REGIONS.index("narrow_face")][:6706] == 1).all()


@pytest.mark.assets
def test_atlas(arrays):
    uv, ids, faces = arrays["uv"], arrays["uv_faces"], arrays["faces"]
    assert uv.min() >= 0
    assert uv.max() <= 1
    corners = uv[ids]
    face = arrays["part_names"][arrays["face_part"]] == "face"
    assert (corners[face].max(1) <= 0.75).all(1).mean() > 0.97
    assert len(faces) == len(ids)
    # no place of the atlas belongs to two triangles of what tracking shows: centroids lie in their own triangle alone
    shown = np.isin(arrays["part_names"][arrays["face_part"]], ict.TRACKING_PARTS)
    a, b, c = (corners[shown][:, i].astype(float) for i in range(3))
    centroids = ((a + b + c) / 3)[np.random.default_rng(0).choice(shown.sum(), 400, replace=False)]

    def side(p, q):
        to, edge = centroids[:, None] - p, q - p
        return to[..., 0] * edge[:, 1] - to[..., 1] * edge[:, 0]

    sides = np.stack([side(a, b), side(b, c), side(c, a)])
    inside = (sides > 1e-12).all(0) | (sides < -1e-12).all(0)
    assert np.mean(inside.sum(1) == 1) > 0.95
    assert inside.sum(1).min() == 1


@pytest.mark.assets
def test_only_skin(home):
    head = load_model("ict-facekit", parts=["face", "head_neck"])
    assert head.topology.n_faces == 22288
    whole = load_model("ict-facekit")
    for table in ("landmarks68", "landmarks478"):
        a, b = (np.asarray(getattr(h, table).on(h.params.mean)) for h in (head, whole))
        np.testing.assert_allclose(a, b, atol=1e-7)
    with pytest.raises(InputError, match="`parts` must be among face, head_neck"):
        load_model("ict-facekit", parts=["hair"])


@pytest.mark.assets
def test_albedo_is_plausible(head):
    shared, _ = head.init_code()
    albedo = np.asarray(head.albedo(head.params, shared))
    assert albedo.min() > 0
    assert albedo.max() < 1
    mean = {name: np.average(albedo, weights=mask, axis=0) for name, mask in head.regions.items()}
    assert mean["eyeballs"].min() > 0.4
    assert mean["iris"].max() < 0.3
    assert mean["teeth"].min() > 0.4
    assert mean["gums"][0] > 1.5 * mean["gums"][1]
    assert mean["skin"].min() > 0.05
