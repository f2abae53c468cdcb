"""The file of a linear head: round trip, choice of parts, and every way in which a file can be wrong."""

import errno
import hashlib
import os
import pickle

import numpy as np
import pytest

from facejax.data.heads import load_model, model_file
from facejax.geometry.errors import InputError
from facejax.models.morphable import REGIONS


def toy_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Two tetrahedra, one per part, the second the mirror image of the first; vertices 0-3 and 4-7."""
    rng = np.random.default_rng(seed)
    corners = np.array([[0.01, 0, 0], [0.02, 0, 0], [0.01, 0.01, 0], [0.01, 0, 0.01]])
    mean = np.concatenate([corners, corners * [-1, 1, 1]])
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    i, e, k, v = 3, 2, 1, 8
    real = {
        "mean": mean,
        "identity_basis": rng.normal(size=(i, v, 3)) * 1e-3,
        "expression_basis": rng.normal(size=(e, v, 3)) * 1e-3,
        "skin_mean": np.log(rng.uniform(0.2, 0.8, (v, 3))),
        "skin_basis": rng.normal(size=(k, v, 3)) * 0.1,
        "specular": np.full(v, 0.04),
        "roughness": np.full(v, 0.3),
        "eye_weight": np.zeros((v, 2)),
        "eye_pivot": np.array([[0.03, 0, 0], [-0.03, 0, 0]]),
        "eye_pivot_basis": rng.normal(size=(i, 2, 3)) * 1e-3,
        "uv": rng.uniform(size=(2 * v, 2)),
        "landmarks68_weights": np.tile([0.5, 0.25, 0.25], (68, 1)),
        "landmarks478_weights": np.tile([1.0, 0, 0], (478, 1)),
        "region_masks": rng.uniform(size=(len(REGIONS), v)),
    }
    ids = {
        "faces": np.concatenate([faces, faces[:, ::-1] + 4]),
        "uv_faces": np.concatenate([faces, faces + 8]),
        "landmarks68_triangles": np.tile([0, 1, 2], (68, 1)),
        "landmarks478_triangles": np.tile([1, 2, 5], (478, 1)),
        "mirror": (np.arange(v) + 4) % 8,
        "vertex_part": np.repeat([0, 1], 4),
        "face_part": np.repeat([0, 1], 4),
    }
    return {
        "name": np.array("toy"),
        "source": np.array("made up"),
        "licence": np.array("CC0"),
        "units": np.array("m"),
        **{key: a.astype(np.float32) for key, a in real.items()},
        **{key: a.astype(np.int32) for key, a in ids.items()},
        "expression_names": np.array(["jawOpen", "eyeBlinkLeft"]),
        "region_names": np.array(REGIONS),
        "part_names": np.array(["one", "two"]),
        "default_parts": np.array(["one", "two"]),
    }


def test_arrays_survive_the_file_bit_by_bit(tmp_path):
    arrays = toy_arrays()
    path = model_file.save_arrays(tmp_path / "deep" / "toy.npz", arrays)
    read, digest = model_file.read_arrays(path)
    assert set(read) == set(arrays)
    for key, a in arrays.items():
        np.testing.assert_array_equal(read[key], a)
        assert read[key].dtype == a.dtype
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    with np.load(path, allow_pickle=False) as plain:
        assert int(plain["format_version"]) == model_file.FORMAT_VERSION


def test_a_head_saved_and_read_is_the_same_head(tmp_path):
    head = model_file.head_from_arrays(toy_arrays())
    path = model_file.save_head(tmp_path / "toy.npz", head, source="here", licence="CC0")
    again = load_model(path)
    for key in ("mean", "identity_basis", "expression_basis", "skin_mean", "skin_basis", "eye_pivot", "roughness"):
        np.testing.assert_array_equal(getattr(again.params, key), getattr(head.params, key))
        assert getattr(again.params, key).dtype == np.float32
    assert again.expression_names == head.expression_names
    assert again.name == "toy"
    assert again.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    np.testing.assert_array_equal(again.topology.faces, head.topology.faces)
    np.testing.assert_array_equal(again.landmarks68.triangles, head.landmarks68.triangles)
    np.testing.assert_array_equal(again.regions["lips"], head.regions["lips"])


def test_the_same_head_gives_the_same_bytes(tmp_path):
    a = model_file.save_arrays(tmp_path / "a.npz", toy_arrays())
    b = model_file.save_arrays(tmp_path / "b.npz", toy_arrays())
    assert a.read_bytes() == b.read_bytes()


def test_choosing_a_part_keeps_its_geometry_and_all_landmarks():
    arrays = toy_arrays()
    whole = model_file.head_from_arrays(arrays)
    part = model_file.head_from_arrays(arrays, ["two"])
    # vertices 4-7 are the part's own; 0, 1 and 2 stay because landmarks lie on them (478: on vertex 1 only, by weight)
    assert part.topology.n_vertices == 7
    assert part.topology.n_faces == 4
    old, new = whole.topology, part.topology
    np.testing.assert_array_equal(part.params.mean[new.faces], whole.params.mean[old.faces[4:]])
    np.testing.assert_array_equal(new.uv[new.uv_faces], old.uv[old.uv_faces[4:]])
    for key in ("landmarks68", "landmarks478"):
        np.testing.assert_allclose(
            getattr(part, key).on(part.params.mean), getattr(whole, key).on(whole.params.mean), atol=1e-9
        )
    np.testing.assert_array_equal(part.params.identity_basis[:, 3:], whole.params.identity_basis[:, 4:])
    np.testing.assert_array_equal(part.regions["nose"][3:], whole.regions["nose"][4:])
    np.testing.assert_array_equal(part.mirror, [3 + 1 - 1, 4, 5, 0, 1, 2, 6])  # the last one's image is left out


def test_default_parts_and_all():
    arrays = toy_arrays() | {"default_parts": np.array(["one"])}
    assert model_file.head_from_arrays(arrays).topology.n_faces == 4
    assert model_file.head_from_arrays(arrays, ("all",)).topology.n_faces == 8


@pytest.mark.parametrize("parts", [["three"], [], ["one", "three"]])
def test_unknown_parts_are_refused(parts):
    with pytest.raises(InputError, match="must be among one, two"):
        model_file.select_parts(toy_arrays(), parts)


def _bad(key, change):
    def make():
        arrays = toy_arrays()
        arrays[key] = change(arrays[key])
        return arrays

    return make


def _first(value):
    def change(a):
        a = a.copy()
        a.flat[0] = value
        return a

    return change


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_bad("mean", lambda a: a[:, :2]), "`mean` must have shape"),
        (_bad("expression_basis", lambda a: a[:, :-1]), r"`expression_basis` must have shape \('E', 8, 3\)"),
        (_bad("expression_names", lambda a: a[:1]), "`expression_names` must have shape"),
        (_bad("mean", _first(np.nan)), "`mean` holds a value that is not finite"),
        (_bad("identity_basis", _first(np.inf)), "not finite"),
        (_bad("faces", _first(8)), r"`faces` must lie in \[0, 8\)"),
        (_bad("landmarks478_triangles", _first(-1)), "`landmarks478_triangles` must lie"),
        (_bad("uv_faces", _first(16)), "`uv_faces` must lie"),
        (_bad("faces", lambda a: a.astype(np.float32)), "`faces` must hold ids"),
        (_bad("mean", lambda a: a.astype(np.int32)), "`mean` must hold real"),
        (_bad("units", lambda a: np.array("cm")), "metres"),
        (_bad("region_names", lambda a: np.array(["x", *a[1:]])), "no region `skin`"),
        (_bad("default_parts", lambda a: np.array(["three"])), "three"),
        (_bad("faces", lambda a: a[:0]), "has none"),
    ],
)
def test_wrong_arrays_are_refused_by_name(tmp_path, make, message):
    arrays = make()
    if message == "has none":
        arrays = arrays | {"uv_faces": arrays["uv_faces"][:0], "face_part": arrays["face_part"][:0]}
    with pytest.raises(InputError, match=message):
        model_file.save_arrays(tmp_path / "bad.npz", arrays)
    assert list(tmp_path.iterdir()) == []
    np.savez(tmp_path / "bad.npz", format_version=np.array(1), **arrays)
    with pytest.raises(InputError, match=message):
        model_file.read_head(tmp_path / "bad.npz")


def test_missing_array_is_named(tmp_path):
    arrays = toy_arrays()
    del arrays["mirror"]
    np.savez(tmp_path / "bad.npz", format_version=np.array(1), **arrays)
    with pytest.raises(InputError, match="no array `mirror`"):
        model_file.read_head(tmp_path / "bad.npz")


def test_truncated_file_is_refused(tmp_path):
    path = model_file.save_arrays(tmp_path / "toy.npz", toy_arrays())
    data = path.read_bytes()
    for size in (0, 10, len(data) // 2, len(data) - 30):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match="cannot be read as a head"):
            model_file.read_head(path)


def test_flipped_bit_is_refused(tmp_path):
    path = model_file.save_arrays(tmp_path / "toy.npz", toy_arrays())
    data = bytearray(path.read_bytes())
    where = bytes(data).find(toy_arrays()["mean"].tobytes())
    assert where > 0
    data[where] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match="cannot be read as a head"):
        model_file.read_head(path)


class _Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_pickles_are_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = toy_arrays()
    np.savez("object.npz", format_version=np.array(1), **(arrays | {"name": np.array(_Bomb(), dtype=object)}))
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(_Bomb()))
    for name in ("object.npz", "plain.npz"):
        with pytest.raises(InputError, match="cannot be read as a head"):
            model_file.read_head(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_other_files_and_versions_are_refused(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    os.rename(tmp_path / "one.npy", tmp_path / "one.npz")
    with pytest.raises(InputError, match="single array"):
        model_file.read_head(tmp_path / "one.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(InputError, match="format 1, it is of None"):
        model_file.read_head(tmp_path / "other.npz")
    np.savez(tmp_path / "later.npz", format_version=np.array(2), **toy_arrays())
    with pytest.raises(InputError, match="it is of 2"):
        model_file.read_head(tmp_path / "later.npz")
    with pytest.raises(InputError, match="No head file at"):
        model_file.read_head(tmp_path / "absent.npz")


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = model_file.save_arrays(tmp_path / "toy.npz", toy_arrays())
    before = path.read_bytes()

    def full(stream, **arrays):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(InputError, match="disk is full"):
        model_file.save_arrays(path, toy_arrays(1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
