"""Weights that others trained, from PyTorch's .pth files and from .safetensors, without PyTorch.

A .pth holds a pickle, which is a program. It is not unpickled here: `_said_by` follows the few instructions that
dictionaries of tensors are made of, and refuses any other, and any name but those of `_NAMES`. Nothing is imported or
called on a file's word, and nothing is read that is larger than the file.
"""

import dataclasses
import io
import json
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from facejax.geometry.arrays import DAMAGE, require_file
from facejax.geometry.errors import InputError
from facejax.geometry.records import PyTree
from facejax.models.backbones import Backbone

MAX_FILE_BYTES = 1 << 32
"""Of a file of weights, 4 GiB."""
MAX_HEADER_BYTES = 1 << 22
"""Of its table of tensors, 4 MiB; that of ResNet-152 has less than 0.2."""

_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of files that torch.save wrote before version 1.6
_DTYPES = {
    "Double": np.dtype("<f8"),
    "Float": np.dtype("<f4"),
    "Half": np.dtype("<f2"),
    "BFloat16": np.dtype(jnp.bfloat16),
    "Long": np.dtype("<i8"),
    "Int": np.dtype("<i4"),
    "Short": np.dtype("<i2"),
    "Char": np.dtype("i1"),
    "Byte": np.dtype("u1"),
    "Bool": np.dtype("?"),
}
_DICT, _REBUILD = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
_STORAGES = {f"torch {kind}Storage": dtype for kind, dtype in _DTYPES.items()}
_NAMES = {_DICT, _REBUILD, *_STORAGES}
_SAFE_DTYPES = {
    "F64": "Double", "F32": "Float", "F16": "Half", "BF16": "BFloat16", "I64": "Long", "I32": "Int", "I16": "Short",
    "I8": "Char", "U8": "Byte", "BOOL": "Bool",
}  # fmt: skip


def read_tensors(path: Path | str) -> dict[str, np.ndarray]:
    """The tensors of a .pth of `torch.save(module.state_dict(), path)`, or of a .safetensors, by name.

    The kind is told from the content. Raises `InputError` for a file that is missing, damaged, larger than 4 GiB, no
    dictionary of tensors, or that asks for anything but tensors: nothing of it is ever run.
    """
    try:
        with open(require_file(path), "rb") as file:
            size = file.seek(0, io.SEEK_END)
            if size > MAX_FILE_BYTES:
                raise ValueError(f"it has {size} bytes, expected at most {MAX_FILE_BYTES}")
            file.seek(0)
            start = file.read(16)
            file.seek(0)
            if start.startswith(b"PK\x03\x04"):
                return _from_zip(file, size)
            if start.startswith(_MAGIC):
                return _from_stream(file, size)
            if start[8:9] == b"{":
                return _from_safetensors(file, size)
            raise ValueError("it is of another kind, or damaged")
    except (*DAMAGE, IndexError, RecursionError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        said = str(error.strerror if isinstance(error, OSError) and error.strerror else error)
        reason = said.splitlines()[0][:300] if said else type(error).__name__
        raise InputError(
            f"{path} cannot be read as weights ({reason}): give a .pth of a module's state_dict, or a .safetensors."
        ) from error


def load_torchvision(model: Backbone, path: Path | str) -> tuple[PyTree, PyTree]:
    """(params, state) of a `ResNet` or `VGG16` with torchvision's weights, float32, from a file that you have.

    Raises `InputError` for what `read_tensors` refuses, and for weights of another network: it names the first tensor
    that differs.
    """
    found = read_tensors(path)
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    shapes = {"params": params, "state": state}
    made: dict[str, Any] = {"params": {}, "state": {}}
    for name, ours in model.torchvision_names().items():
        *above, last = ours.split("/")
        tree, shape = made, shapes
        for part in above:
            tree, shape = tree.setdefault(part, {}), shape[part]
        tensor = _checked(path, model, name, found, _theirs(shape[last].shape))
        tree[last] = jnp.asarray(_ours(tensor, model.flattened.get(ours)))
    known = model.torchvision_names()
    for name in found:  # a count of batches is kept by PyTorch and used by nothing
        if name not in known and not name.endswith(".num_batches_tracked"):
            raise InputError(
                f"{path} holds {name!r}, which {model} has not: choose the network whose weights they are."
            )
    return made["params"], made["state"]


def _theirs(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in PyTorch's order of axes: outputs, inputs, rows, columns."""
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def _checked(
    path: Path | str, model: Backbone, name: str, found: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> np.ndarray:
    what = f"`{name}` as {' x '.join(map(str, shape))} floats for {model}"
    other = "choose the network whose weights they are"
    if name not in found:
        raise InputError(f"{path} has no tensor of this name, expected {what}: {other}.")
    tensor = found[name]
    floats = jnp.issubdtype(tensor.dtype, jnp.floating)
    if tensor.shape != shape or not floats:
        got = f"{' x '.join(map(str, tensor.shape)) or 'one'} of {tensor.dtype}"
        raise InputError(f"expected {what}, {path} has {got}: {other}.")
    tensor = tensor.astype(np.float32)
    if not np.isfinite(tensor).all():
        raise InputError(f"expected {what}, {path} has some that are not finite: get the weights again.")
    return tensor


def _ours(tensor: np.ndarray, flattened: tuple[int, int, int] | None) -> np.ndarray:
    """Axes in our order; a layer that reads a flattened (rows, columns, channels) picture reads its channels last."""
    if flattened is not None:
        rows, columns, channels = flattened
        pictures = tensor.reshape(-1, channels, rows, columns)
        return pictures.transpose(2, 3, 1, 0).reshape(-1, len(tensor))
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


# -- .pth --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Name:
    """A name that the file speaks of, "module name". It stands for what it names, and is never looked up."""

    text: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    """Numbers that lie elsewhere in the file."""

    dtype: np.dtype
    key: str
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, numbers: np.ndarray) -> np.ndarray:
        item = numbers.itemsize
        strides = tuple(item * step for step in self.stride)
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides, writeable=False)


class _Mark:
    """Where a run of values begins."""


def _from_zip(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        stored = all(m.compress_type == zipfile.ZIP_STORED and m.file_size == m.compress_size for m in members)
        if not stored or sum(m.file_size for m in members) > size:
            raise ValueError("its parts are compressed or larger than the file, which torch.save does not do")
        tables = [m.filename for m in members if m.filename.endswith("/data.pkl") and m.filename.count("/") == 1]
        if len(tables) != 1:
            raise ValueError("it has no single table of tensors, data.pkl")
        folder = tables[0].removesuffix("data.pkl")
        if archive.getinfo(tables[0]).file_size > MAX_HEADER_BYTES:
            raise ValueError(f"its table of tensors is larger than {MAX_HEADER_BYTES} bytes")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder").strip() != b"little":
            raise ValueError("its numbers are not little-endian")

        def numbers(storage: _Storage) -> np.ndarray:
            name = f"{folder}data/{storage.key}"
            if archive.getinfo(name).file_size != storage.count * storage.dtype.itemsize:
                raise ValueError(f"{name} has another size than the table says")
            return np.frombuffer(archive.read(name), storage.dtype)

        return _tensors(_said_by(io.BytesIO(archive.read(tables[0]))), numbers)


def _from_stream(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    """As torch.save wrote before 1.6: five pickles, then each storage as its count and its numbers."""
    head = io.BytesIO(file.read(MAX_HEADER_BYTES))
    _, version, system, said, keys = (_said_by(head) for _ in range(5))
    if version != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("it is of another version, or its numbers are not little-endian")
    if not isinstance(keys, list) or len(set(map(_text, keys))) != len(keys):
        raise ValueError("its list of storages is damaged")
    kinds = {tensor.storage.key: tensor.storage for tensor in _named(said).values()}
    held: dict[str, np.ndarray] = {}
    file.seek(head.tell())
    for key in keys:
        storage = kinds.get(key)
        if storage is None:
            raise ValueError("it holds numbers that belong to no tensor")
        (count,) = struct.unpack("<q", file.read(8))
        if count != storage.count or count * storage.dtype.itemsize > size - file.tell():
            raise ValueError(f"storage {key} has another size than the table says")
        held[key] = np.frombuffer(file.read(count * storage.dtype.itemsize), storage.dtype)
    return _tensors(said, lambda storage: held[storage.key])


def _named(said: Any) -> dict[str, _Tensor]:
    if not isinstance(said, dict):
        raise ValueError("it holds no dictionary of tensors")
    for name, value in said.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise ValueError("it holds other things than tensors by name")
    return said


def _tensors(said: Any, numbers: Callable[[_Storage], np.ndarray]) -> dict[str, np.ndarray]:
    held: dict[str, tuple[_Storage, np.ndarray]] = {}  # tensors that share numbers share them here
    found = {}
    for name, tensor in _named(said).items():
        key = tensor.storage.key
        if key not in held:
            held[key] = tensor.storage, numbers(tensor.storage)
        if held[key][0] != tensor.storage:
            raise ValueError(f"storage {key} is told in two ways")
        found[name] = tensor.of(held[key][1])
    return found


def _said_by(stream: io.BytesIO) -> Any:
    """What a pickle says, if it says dictionaries of tensors and nothing else; the stream is left behind its end."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        values = []
        while not isinstance(
            value := stack.pop(), _Mark
        ):  # from the top: a table of marks alone must not take for ever
            values.append(value)
        return values[::-1]

    for opcode, argument, _ in pickletools.genops(stream):
        kind = opcode.name
        if kind in ("PROTO", "FRAME"):
            pass
        elif kind == "STOP":
            return stack.pop()
        elif kind == "MARK":
            stack.append(_Mark())
        elif kind in _LITERALS:
            stack.append(_LITERALS[kind](argument))
        elif kind in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif kind in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif kind == "TUPLE":
            stack.append(tuple(since_mark()))
        elif kind in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack[-int(kind[-1]) :] = [tuple(stack[-int(kind[-1]) :])]
        elif kind in ("APPEND", "APPENDS"):
            values = since_mark() if kind == "APPENDS" else [stack.pop()]
            _be(stack[-1], list).extend(values)
        elif kind in ("SETITEM", "SETITEMS"):
            values = since_mark() if kind == "SETITEMS" else [stack.pop(-2), stack.pop()]
            into = _be(stack[-1], dict)
            for key, value in zip(values[::2], values[1::2], strict=True):
                into[_text(key)] = value
        elif kind == "GLOBAL":
            if argument not in _NAMES:
                named = ".".join(str(argument).split(" ", 1))
                raise ValueError(f"it asks for `{named[:100]}`, which is no part of tensors and may do harm")
            stack.append(_Name(argument))
        elif kind == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif kind == "REDUCE":
            arguments, made_by = _be(stack.pop(), tuple), _be(stack.pop(), _Name)
            stack.append(_made(made_by.text, arguments))
        elif kind == "BUILD":  # the metadata of a state_dict, which nothing here needs
            stack.pop()
            _be(stack[-1], dict)
        else:
            raise ValueError(f"it has the instruction {kind}, which tensors do not need")
    raise EOFError("its table of tensors is cut short")


_LITERALS: dict[str, Callable[[Any], Any]] = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: {},
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE"), lambda value: value),
}


def _made(name: str, arguments: tuple) -> Any:
    if name == _DICT and not arguments:
        return {}
    if name == _REBUILD and len(arguments) in (6, 7):
        storage, offset, shape, stride = arguments[:4]
        storage, shape, stride = _be(storage, _Storage), _sizes(shape), _sizes(stride)
        last = _size(offset) + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        count = math.prod(shape)
        # A step of 0 would make many numbers of one: a small file must not fill the memory.
        if count > storage.count or (count and last >= storage.count) or offset > storage.count:
            raise ValueError("a tensor is larger than its numbers")
        return _Tensor(storage, offset, shape, stride)
    raise ValueError(f"it uses `{'.'.join(name.split(' '))}` in a way that tensors do not need")


def _storage(told: Any) -> _Storage:
    told = _be(told, tuple)
    if len(told) not in (5, 6) or told[0] != "storage" or told[5:] not in ((), (None,)):
        raise ValueError("a storage is told in an unknown way")
    dtype = _STORAGES.get(_be(told[1], _Name).text)
    if dtype is None:
        raise ValueError("a storage is told in an unknown way")
    return _Storage(dtype, _text(told[2]), _size(told[4]))


def _be(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError("its table of tensors is damaged")
    return value


def _text(value: Any) -> str:
    return _be(value, str)


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_FILE_BYTES:
        raise ValueError("a tensor has a size that cannot be")
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or len(value) > 8:
        raise ValueError("a tensor has a shape that cannot be")
    return tuple(map(_size, value))


# -- .safetensors ------------------------------------------------------------------------------------------------------


def _from_safetensors(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise ValueError("its table of tensors is larger than the file, or than 4 MiB")
    table = _be(json.loads(file.read(length)), dict)
    table.pop("__metadata__", None)
    start, left, found = 8 + length, size - 8 - length, {}
    for name, told in table.items():
        shape, offsets = _sizes(_be(told, dict)["shape"]), _sizes(told["data_offsets"])
        kind = _SAFE_DTYPES.get(_text(told["dtype"]))
        if kind is None:
            raise ValueError(f"`{name[:100]}` has the unknown type {told['dtype'][:20]}")
        begin, end = offsets
        wide = math.prod(shape) * _DTYPES[kind].itemsize
        left -= wide  # the parts must not overlap: a small file must not fill the memory
        if end - begin != wide or start + end > size or left < 0:
            raise ValueError(f"`{name[:100]}` does not fit the file")
        file.seek(start + begin)
        found[name] = np.frombuffer(file.read(wide), _DTYPES[kind]).reshape(shape)
    return found
