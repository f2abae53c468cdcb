"""Large .npz files: written in pieces, and read without reading what is not used."""

import math
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from facejax.geometry.arrays import DAMAGE, open_npz
from facejax.geometry.errors import InputError

_MAP_BYTES = 1 << 24  # arrays above 16 MiB are mapped from the file, not read


def write_npz(
    path: Path,
    arrays: Mapping[str, Any],
    streams: Mapping[str, Callable[[], tuple[tuple[int, ...], Iterator[np.ndarray]]]],
) -> None:
    """An uncompressed npz; `streams` give (shape, float32 chunks along axis 0) of arrays too large for memory."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, value in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(value), allow_pickle=False)
        for name, stream in streams.items():
            shape, chunks = stream()
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for chunk in chunks:
                    member.write(np.ascontiguousarray(chunk, dtype="<f4").tobytes())


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz; the large ones mapped from the file if they are not compressed.

    Raises `InputError` for a file that is truncated or of another kind, and for one that holds objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            mapped = {
                info.filename.removesuffix(".npy"): _map_member(path, info)
                for info in archive.infolist()
                if info.file_size > _MAP_BYTES and info.compress_type == zipfile.ZIP_STORED
            }
        with open_npz(path) as file:
            return {name: mapped[name] if name in mapped else file[name] for name in file.files}
    except DAMAGE as error:
        raise InputError(f"{path} cannot be read as a result ({error}): it is truncated or not an npz file.") from error


def _map_member(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        local = file.read(30)
        name_length, extra_length = struct.unpack("<HH", local[26:30])  # they may differ from the central directory's
        file.seek(name_length + extra_length, 1)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject or file.tell() + dtype.itemsize * math.prod(shape) > path.stat().st_size:
            raise ValueError(f"`{info.filename}` does not fit the file")
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")
