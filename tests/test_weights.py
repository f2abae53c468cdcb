"""Weights from others' files: every tensor finds its place, and whatever else a file holds is refused and never run."""

import io
import json
import os
import pickle
import struct
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facejax.data import load_torchvision, read_tensors
from facejax.data.weights import MAX_HEADER_BYTES
from facejax.geometry.errors import InputError
from facejax.models import VGG16, ResNet, imagenet_input


class Named:
    """Pickled as a name, "module name", that need not be there."""

    def __init__(self, name: str) -> None:
        self.name = name


class Stored:
    """Pickled as a storage."""

    def __init__(self, key: str, array: np.ndarray, kind: str = "Float") -> None:
        self.key, self.array, self.kind = key, array, kind


class Call:
    """Pickled as a call of a name."""

    def __init__(self, name: str, *arguments: object) -> None:
        self.name, self.arguments = name, arguments


class Writer(pickle._Pickler):
    """The Python pickler, which lets us write names of modules that are not installed."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, protocol=2)

    def persistent_id(self, value: object) -> tuple | None:
        if isinstance(value, Stored):
            return ("storage", Named(f"torch {value.kind}Storage"), value.key, "cpu", value.array.size)
        return None

    def save(self, value: object, save_persistent_id: bool = True) -> None:
        if isinstance(value, Named):
            module, name = value.name.split(" ")
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        elif isinstance(value, Call):
            self.save(Named(value.name))
            self.save(value.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(value, save_persistent_id)


def table(value: object) -> bytes:
    stream = io.BytesIO()
    Writer(stream).dump(value)
    return stream.getvalue()


def tensor(stored: Stored, **changes: object) -> Call:
    shape = stored.array.shape
    told = {"offset": 0, "shape": shape, "stride": tuple(s // stored.array.itemsize for s in stored.array.strides)}
    told |= changes
    return Call(
        "torch._utils _rebuild_tensor_v2",
        stored, told["offset"], told["shape"], told["stride"], False, Call("collections OrderedDict"),
    )  # fmt: skip


def write_pth(path: Path, said: bytes, parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", said)
        archive.writestr("archive/byteorder", b"little")
        for key, content in parts.items():
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", b"3\n")
    return path


def save(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """As torch.save writes the state_dict of a module."""
    stored = {name: Stored(str(n), np.ascontiguousarray(array)) for n, (name, array) in enumerate(tensors.items())}
    said = table(OrderedDict((name, tensor(one)) for name, one in stored.items()))
    return write_pth(path, said, {one.key: one.array.tobytes() for one in stored.values()})


def random_torchvision(model: ResNet | VGG16, seed: int = 0) -> dict[str, np.ndarray]:
    """Small random numbers under torchvision's names, in PyTorch's shapes, from our own tree."""
    rng = np.random.default_rng(seed)
    shapes = dict(zip(("params", "state"), jax.eval_shape(model.init, jax.random.key(0)), strict=True))
    made = {}
    for name, ours in model.torchvision_names().items():
        leaf = shapes
        for part in ours.split("/"):
            leaf = leaf[part]
        shape = leaf.shape
        shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        made[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return made


def refused(path: Path, what: str) -> str:
    with pytest.raises(InputError, match=what) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def small(tmp_path):
    return save(
        tmp_path / "small.pth", {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(1, "f4")}
    )


# -- what is read ------------------------------------------------------------------------------------------------------


def test_a_pth_is_read_as_it_was_written(small):
    found = read_tensors(small)
    assert list(found) == ["a.weight", "b"]
    np.testing.assert_array_equal(found["a.weight"], np.arange(6).reshape(2, 3))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("Half", np.float16), ("Double", np.float64), ("BFloat16", jnp.bfloat16), ("Long", np.int64), ("Bool", np.bool_)],
)
def test_every_kind_of_number_is_read(kind, dtype, tmp_path):
    numbers = np.array([0, 1, 1, 0]).astype(dtype)
    said = table({"x": tensor(Stored("0", numbers, kind))})
    found = read_tensors(write_pth(tmp_path / "x.pth", said, {"0": numbers.tobytes()}))["x"]
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found.astype(np.float32), [0, 1, 1, 0])


def test_views_and_shared_numbers_are_read(tmp_path):
    numbers = Stored("0", np.arange(12, dtype=np.float32))
    said = table({
        "turned": tensor(numbers, shape=(4, 3), stride=(1, 4)),
        "part": tensor(numbers, offset=5, shape=(2,), stride=(3,)),
        "number": tensor(numbers, offset=7, shape=(), stride=()),
        "none": tensor(numbers, offset=12, shape=(0, 2), stride=(2, 1)),
    })  # fmt: skip
    found = read_tensors(write_pth(tmp_path / "x.pth", said, {"0": numbers.array.tobytes()}))
    np.testing.assert_array_equal(found["turned"], np.arange(12).reshape(3, 4).T)
    np.testing.assert_array_equal(found["part"], [5, 8])
    assert found["number"] == 7
    assert found["none"].shape == (0, 2)


def write_stream(path: Path, said: object, storages: dict[str, np.ndarray], version: int = 1001) -> Path:
    """As torch.save wrote before 1.6."""
    system = {"protocol_version": version, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    pickles = [0x1950A86A20F9469CFC6C, version, system, said, list(storages)]
    numbers = [struct.pack("<q", array.size) + array.tobytes() for array in storages.values()]
    path.write_bytes(b"".join(map(table, pickles)) + b"".join(numbers))
    return path


def test_the_older_kind_of_pth_is_read(tmp_path):
    one, two = Stored("94", np.arange(6, dtype=np.float32).reshape(2, 3)), Stored("17", np.ones(4, np.float32))
    said = OrderedDict(a=tensor(one), b=tensor(two))
    path = write_stream(tmp_path / "old.pth", said, {"17": two.array, "94": one.array})
    found = read_tensors(path)
    np.testing.assert_array_equal(found["a"], one.array)
    np.testing.assert_array_equal(found["b"], two.array)
    path.write_bytes(path.read_bytes()[:-4])
    refused(path, "storage 94 has another size than the table says")
    refused(write_stream(tmp_path / "v.pth", said, {"17": two.array, "94": one.array}, 1000), "another version")


def test_safetensors_are_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    numbers = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(7), "h": np.ones(3, np.float16)}
    safetensors.save_file(numbers, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = read_tensors(tmp_path / "x.safetensors")
    assert set(found) == set(numbers)
    for name, array in numbers.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


# -- what is refused ---------------------------------------------------------------------------------------------------


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_program_is_refused_by_name_and_not_run(tmp_path):
    mark = tmp_path / "ran"
    said = pickle.dumps({"a": Payload(mark)}, protocol=2)
    pickle.loads(said)
    assert mark.exists()  # what the test would see
    mark.unlink()
    for protocol in (0, 1, 2, 3, 4, 5):
        path = write_pth(tmp_path / f"{protocol}.pth", pickle.dumps({"a": Payload(mark)}, protocol=protocol), {})
        refused(path, "cannot be read as weights")
        assert not mark.exists()
    refused(tmp_path / "2.pth", r"\(it asks for `(builtins|__builtin__)\.getattr`, which is no part of tensors")
    write_stream(tmp_path / "old.pth", Call("os system", f"touch {mark}"), {})
    refused(tmp_path / "old.pth", r"it asks for `os\.system`")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["os system", "torch load", "torch._utils _rebuild_parameter", "builtins eval"])
def test_every_other_name_is_refused(name, tmp_path):
    refused(write_pth(tmp_path / "x.pth", table({"a": Call(name, "1")}), {}), f"asks for `{name.replace(' ', '.')}`")


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (pickle.dumps([1, 2], protocol=2), "no dictionary of tensors"),
        (pickle.dumps({"a": 1}, protocol=2), "other things than tensors"),
        (pickle.dumps({1: 2}, protocol=2), "damaged"),
        (pickle.dumps({"a": 1.5}, protocol=2), "the instruction BINFLOAT"),
        (table({"a": Call("collections OrderedDict", [1])}), r"uses `collections\.OrderedDict` in a way"),
        (table({"a": Call("torch FloatStorage", 4)}), r"uses `torch\.FloatStorage` in a way"),
        (b"\x80\x02.", "list index out of range|pop from empty list"),
        (b"\x80\x02}", "not enough|exhausted|cut short"),
        (b"", "cut short|exhausted|no"),
    ],
)
def test_a_table_that_is_none_is_refused(said, what, tmp_path):
    refused(write_pth(tmp_path / "x.pth", said, {}), what)


def test_a_table_of_marks_is_read_in_no_more_time_than_its_length(tmp_path):
    said = b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b"."
    path = write_pth(tmp_path / "x.pth", said, {})
    start = time.process_time()
    refused(path, "no dictionary of tensors")
    assert time.process_time() - start < 20  # a search from the bottom takes minutes


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (7,), "stride": (1,)},
        {"shape": (1 << 31, 1 << 31), "stride": (0, 0)},
        {"shape": (1 << 20,), "stride": (0,)},
        {"offset": 5, "shape": (2,), "stride": (1,)},
        {"offset": -1, "shape": (2,), "stride": (1,)},
        {"shape": (2,), "stride": (-1,)},
        {"shape": (2,), "stride": (1, 1)},
        {"shape": (2.0,), "stride": (1,)},
        {"shape": (10**30,), "stride": (1,)},
        {"offset": True, "shape": (2,), "stride": (1,)},
    ],
)
def test_a_tensor_stays_within_its_numbers(changes, tmp_path):
    numbers = Stored("0", np.zeros(6, np.float32))
    refused(write_pth(tmp_path / "x.pth", table({"a": tensor(numbers, **changes)}), {"0": bytes(24)}), "cannot be read")


def test_numbers_of_another_size_or_missing_are_refused(tmp_path):
    said = table({"a": tensor(Stored("0", np.zeros(6, np.float32)))})
    refused(write_pth(tmp_path / "x.pth", said, {"0": bytes(20)}), "another size than the table says")
    refused(write_pth(tmp_path / "y.pth", said, {}), "archive/data/0")
    refused(write_pth(tmp_path / "z.pth", said, {"../0": bytes(24)}), "archive/data/0")


def test_a_bomb_is_refused_before_it_is_read(small, tmp_path):
    path = write_pth(tmp_path / "c.pth", table({}), {"0": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
    refused(path, "compressed or larger than the file")
    content = bytearray(small.read_bytes())  # a directory that promises 4 GB
    place = content.index(b"PK\x01\x02")
    content[place + 20 : place + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    small.write_bytes(content)
    refused(small, "compressed or larger than the file")
    refused(write_pth(tmp_path / "l.pth", bytes(MAX_HEADER_BYTES + 1), {}), "table of tensors is larger")


def test_a_file_cut_short_or_altered_is_one_sentence(small):
    whole = small.read_bytes()
    for length in range(0, len(whole), 23):
        small.write_bytes(whole[:length])
        refused(small, "cannot be read as weights")
    rng = np.random.default_rng(0)
    for _ in range(300):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), 3):
            content[place] = rng.integers(256)
        small.write_bytes(content)
        try:
            read_tensors(small)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_an_altered_table_is_one_sentence(tmp_path):
    """Past the checksums of the archive."""
    rng, numbers = np.random.default_rng(0), Stored("0", np.zeros(6, np.float32))
    whole = table({"a": tensor(numbers), "b": tensor(numbers)})
    for _ in range(500):
        said = bytearray(whole)
        for place in rng.integers(0, len(said), 2):
            said[place] = rng.integers(256)
        path = write_pth(tmp_path / "x.pth", bytes(said), {"0": bytes(24)})
        try:
            read_tensors(path)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 20]}}, "`a` does not fit the file"),
        ({"a": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}}, "`a` does not fit the file"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-4, 4]}}, "size that cannot be"),
        ({"a": {"dtype": "X", "shape": [2], "data_offsets": [0, 8]}}, "unknown type X"),
        ({n: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for n in "ab"}, "`b` does not fit the file"),
        ({"a": [1]}, "damaged"),
        ({"a": {"dtype": "F32"}}, "shape"),
    ],
)
def test_damaged_safetensors_are_refused(header, what, tmp_path):
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    refused(tmp_path / "x.safetensors", what)


def test_absurd_safetensors_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    refused(path, "larger than the file")
    path.write_bytes(struct.pack("<Q", 400_005) + b'{"a":' + b"[" * 400_000)
    refused(path, "cannot be read as weights")


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    refused(tmp_path / "none.pth", "No such file")
    (tmp_path / "text.pth").write_text("these are no weights at all")
    refused(tmp_path / "text.pth", "of another kind")
    os.mkfifo(tmp_path / "pipe.pth")
    refused(tmp_path / "pipe.pth", "no regular file")
    refused(tmp_path, "no regular file")


# -- backbones ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "tensors", "parameters"),
    [(ResNet(18), 102, 11_689_512), (ResNet(50), 267, 25_557_032), (ResNet(101), 522, 44_549_160),
     (ResNet(152), 777, 60_192_808), (VGG16(), 32, 138_357_544)],
)  # fmt: skip
def test_every_number_of_a_network_has_a_name_in_torchvision(model, tensors, parameters):
    """The counts are torchvision's."""
    shapes = dict(zip(("params", "state"), jax.eval_shape(model.init, jax.random.key(0)), strict=True))
    leaves = {"/".join(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    names = model.torchvision_names()
    assert len(names) == tensors
    assert sorted(names.values()) == sorted(leaves)
    assert sum(leaf.size for path, leaf in leaves.items() if path.startswith("params/")) == parameters


def test_torchvisions_names_are_as_in_its_files():
    assert list(ResNet(18).torchvision_names())[:12] == [
        "conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var",
        "layer1.0.conv1.weight", "layer1.0.bn1.weight", "layer1.0.bn1.bias", "layer1.0.bn1.running_mean",
        "layer1.0.bn1.running_var", "layer1.0.conv2.weight", "layer1.0.bn2.weight",
    ]  # fmt: skip
    assert "layer1.0.downsample.0.weight" not in ResNet(18).torchvision_names()
    assert "layer1.0.downsample.0.weight" in ResNet(50).torchvision_names()
    kernels = [name for name in VGG16().torchvision_names() if name.endswith("weight")]
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    assert kernels == [f"features.{n}.weight" for n in places] + [f"classifier.{n}.weight" for n in (0, 3, 6)]


def test_every_tensor_finds_its_place(tmp_path):
    model = ResNet(18, classes=5)
    tensors = random_torchvision(model)
    path = save(tmp_path / "x.pth", tensors | {"bn1.num_batches_tracked": np.zeros(1, np.float32)})
    params, state = load_torchvision(model, path)
    assert jax.tree.map(jnp.shape, (params, state)) == jax.tree.map(
        lambda leaf: leaf.shape, jax.eval_shape(model.init, jax.random.key(0))
    )
    kernel = params["stages"]["1"]["0"]["around"]["convolution"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 0], tensors["layer2.0.downsample.0.weight"][:, :, 0, 0].T)
    np.testing.assert_array_equal(params["last"]["kernel"], tensors["fc.weight"].T)
    np.testing.assert_array_equal(
        state["stages"]["3"]["1"]["last"]["norm"]["variance"], tensors["layer4.1.bn2.running_var"]
    )
    x = imagenet_input(jnp.full((32, 32, 3), 0.5))
    logits, after = jax.jit(model)(params, state, x)
    assert logits.shape == (5,)
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_another_network_is_refused_by_its_first_tensor(tmp_path):
    model = ResNet(18, classes=5)
    tensors = random_torchvision(model)
    path = save(tmp_path / "x.pth", tensors)
    with pytest.raises(
        InputError, match=r"expected `layer1.0.conv1.weight` as 64 x 64 x 1 x 1 floats .* 64 x 64 x 3 x 3"
    ):
        load_torchvision(ResNet(50), path)
    with pytest.raises(InputError, match=r"expected `fc.weight` as 1000 x 512 floats for ResNet\(depth=18"):
        load_torchvision(ResNet(18), path)
    with pytest.raises(InputError, match=r"no tensor of this name, expected `features.0.weight`"):
        load_torchvision(VGG16(), path)
    save(path, tensors | {"head.weight": np.zeros(3, np.float32)})
    with pytest.raises(InputError, match=r"holds 'head.weight', which ResNet"):
        load_torchvision(model, path)
    save(path, tensors | {"bn1.bias": np.full(64, np.nan, np.float32)})
    with pytest.raises(InputError, match=r"`bn1.bias` .* not finite"):
        load_torchvision(model, path)


def test_only_some_depths_are_there():
    with pytest.raises(InputError, match=r"no ResNet of 34 layers here, expected one of \[18, 50, 101, 152\]"):
        ResNet(34)
