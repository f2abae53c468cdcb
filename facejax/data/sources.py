"""Data that training reads: folders of records in shards, and batches of them by grain.

A data folder holds `dataset.json` (splits, shards, their sizes and sha256) and shards in ArrayRecord, a format that
checks every chunk it reads. An example is a dict of arrays. Any other source will do for `Batches` that has `len()` and
`[index]`, gives the same example for the same index, and can be pickled.
"""

import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from facejax.data.files import atomic_folder
from facejax.geometry.errors import InputError

Example = dict[str, np.ndarray]
"""One record, or a batch of them along a leading axis."""

INDEX = "dataset.json"
_FORMAT = 1


class MachineError(RuntimeError):
    """A run that the machine broke off (a dead process, a full disk), in one sentence that says how to go on."""


@runtime_checkable
class Source(Protocol):
    """Examples by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def sha256_of(path: Any) -> str:
    """Hexadecimal SHA-256 of a file; `path` is a `Path`, or an etils path for remote files."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_records(
    folder: Path | str,
    splits: Mapping[str, Iterable[Example]],
    *,
    about: Mapping[str, Any] | None = None,
    shard_size: int = 1024,
) -> None:
    """Writes a data folder, whole or not at all.

    splits: examples per split, usually "train" and "test". about: what made the data (seeds, counts), kept in
    `dataset.json`. The same examples give the same bytes. An earlier data folder at this place is replaced; a folder of
    anything else is refused with `InputError`, and so is a split without examples.
    """
    from array_record.python.array_record_module import ArrayRecordWriter
    from flax.serialization import msgpack_serialize

    folder = Path(folder).expanduser()
    earlier = _files_of(folder)
    with atomic_folder(folder, [INDEX, *earlier]) as partial:
        index: dict[str, list[dict[str, Any]]] = {}
        for split, examples in splits.items():
            shards = index[split] = []
            for number, shard in enumerate(_chunks(examples, shard_size)):
                path = partial / f"{split}-{number:05d}.array_record"
                writer = ArrayRecordWriter(str(path), "group_size:1")
                for example in shard:
                    writer.write(msgpack_serialize({k: np.asarray(v) for k, v in example.items()}))
                writer.close()
                row = {"file": path.name, "records": len(shard), "bytes": path.stat().st_size}
                shards.append({**row, "sha256": sha256_of(path)})
            if not shards:
                raise InputError(f"Expected examples for the split {split!r} of {folder}, but there are none.")
        content = {"format": _FORMAT, "about": dict(about or {}), "splits": index}
        (partial / INDEX).write_text(json.dumps(content, indent=1) + "\n")


class RecordFolder:
    """One split of a data folder: examples by number. Files are opened on first use, in the process that uses them."""

    def __init__(self, folder: Path | str, split: str) -> None:
        """Raises `InputError` for a folder without data, an unknown split, a missing or a truncated shard."""
        self.folder, self.split = Path(folder).expanduser(), split
        splits = read_index(self.folder)["splits"]
        if split not in splits:
            raise InputError(f"{self.folder} has no split {split!r}: there are {', '.join(sorted(splits))}.")
        self._shards = splits[split]
        for shard in self._shards:
            path = self.folder / shard["file"]
            size = path.stat().st_size if path.is_file() else None
            if size != shard["bytes"]:
                told = "is missing" if size is None else f"has {size} bytes in place of {shard['bytes']}"
                raise InputError(f"The shard {path} {told}: copy the data folder again, or write it again.")
        self._first = np.cumsum([0] + [shard["records"] for shard in self._shards])
        self._reader: Any = None

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> Example:
        """The example; `InputError` names shard and record where it cannot be read."""
        from flax.serialization import msgpack_restore

        if self._reader is None:
            self._reader = self._open()
        try:
            return msgpack_restore(self._reader[int(index)])
        except Exception as error:  # the reader's errors are RuntimeErrors of many texts, some of them empty
            shard = int(np.searchsorted(self._first, index, side="right")) - 1
            path, record = self.folder / self._shards[shard]["file"], int(index - self._first[shard])
            raise InputError(
                f"Record {record} of the shard {path} cannot be read (a part of the file was altered): "
                "copy the data folder again, or write it again."
            ) from error

    def __repr__(self) -> str:  # grain shows its sources in messages
        return f"RecordFolder({str(self.folder)!r}, {self.split!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def _open(self) -> Any:
        import grain

        try:
            return grain.sources.ArrayRecordDataSource([str(self.folder / s["file"]) for s in self._shards])
        except RuntimeError as error:
            bad = [s["file"] for s in self._shards if sha256_of(self.folder / s["file"]) != s["sha256"]]
            raise InputError(
                f"Shards of {self.folder} cannot be opened ({', '.join(bad) or 'all as written'}): "
                "copy the data folder again, or write it again."
            ) from error


def read_index(folder: Path) -> dict[str, Any]:
    """`dataset.json` of a data folder; `InputError` where there is none, or one of a newer format."""
    path = folder / INDEX
    if not path.is_file():
        what = "has no data" if folder.is_dir() else "is not a folder"
        raise InputError(
            f"{folder} {what}: expected a data folder with {INDEX}, as the recipe's own data command writes."
        )
    try:
        index = json.loads(path.read_text())
        number = int(index["format"])
        index["splits"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not an index of data: copy the data folder again, or write it again.") from error
    if number > _FORMAT:
        raise InputError(f"{folder} has data of format {number}, newer than this facejax reads: upgrade facejax.")
    return index


def fingerprint(folder: Path | str) -> str:
    """Digest of a data folder, 64 hexadecimal digits.

    Of a folder with `dataset.json` it covers every byte (through the sha256 of the shards there); of any other folder
    the names and sizes of its files.
    """
    folder = Path(folder).expanduser()
    if (folder / INDEX).is_file():
        return sha256_of(folder / INDEX)
    files = sorted((p.relative_to(folder).as_posix(), p.stat().st_size) for p in folder.rglob("*") if p.is_file())
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Share:
    """Which rows of every global batch a process reads: number `process` of `processes`."""

    process: int = 0
    processes: int = 1


class Batches:
    """Endless batches of a source, the same for the same seed, from any position on.

    Examples are shuffled anew each epoch. Batch number `position` holds the same examples however many processes share
    the work, in the same order (process p reads the p-th part of it), so position is all that a checkpoint has to keep,
    and a run goes on with another number of processes or workers.
    """

    def __init__(
        self,
        source: Source,
        batch: int,
        *,
        seed: int,
        position: int = 0,
        share: Share | None = None,
        augment: Callable[[Example, np.random.Generator], Example] | None = None,
        threads: int = 2,
        workers: int = 0,
    ) -> None:
        """batch: examples in all processes together.

        augment: drawn per example and epoch from a generator that depends on seed and place alone. threads: that read
        ahead in this process. workers: processes that read in its place, 0 for none. Raises `InputError` for a source
        without examples and a batch that the processes cannot share evenly.
        """
        import grain

        share = share or Share()
        if len(source) == 0:
            raise InputError(f"Expected examples to train on, but {source!r} has none.")
        if batch % share.processes:
            raise InputError(f"A batch of {batch} does not divide among {share.processes} processes: change run.batch.")
        data = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
        if augment is not None:
            data = data.random_map(augment)
        data = data.batch(batch // share.processes)[share.process :: share.processes][position:]
        options = grain.ReadOptions(num_threads=max(threads, 1), prefetch_buffer_size=2 * max(threads, 1))
        stream = data.to_iter_dataset(options)
        if workers > 0:
            _allow_grain_workers()
            stream = stream.mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=workers))
        self.position = position
        """Number of the batch that comes next."""
        self.waited = 0.0
        """Seconds spent in `next` so far."""
        self._stream = iter(stream)

    def __iter__(self) -> Iterator[Example]:
        return self

    def __next__(self) -> Example:
        """The next batch: this process's rows.

        Raises `InputError` for a record that cannot be read and `MachineError` for a worker process that died.
        """
        begun = time.perf_counter()
        try:
            found = next(self._stream)
        except (InputError, StopIteration):
            raise
        except Exception as error:
            raise _explained(error) from error
        self.waited += time.perf_counter() - begun
        self.position += 1
        return found

    def close(self) -> None:
        """Stops threads and worker processes."""
        close = getattr(self._stream, "close", None)
        if close is not None:
            close()


def _allow_grain_workers() -> None:
    """grain's worker processes read absl flags, which nobody parses where `absl.app.run` is not in charge."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _explained(error: Exception) -> Exception:
    """What a person can act on, of an error that came out of grain; errors of worker processes come as text."""
    text = str(error)
    if "terminated unexpectedly" in text:
        code = re.search(r"exit code (-?\d+)", text)
        told = f" (exit code {code[1]})" if code else ""
        return MachineError(
            f"A worker process that reads data died{told}, often for want of memory: go on with --resume, perhaps with "
            "fewer of them (--set machine.workers=...)."
        )
    refused = re.search(r"InputError: (.+)", text)
    return InputError(refused[1].strip()) if refused else error


def _chunks(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    chunk: list[Example] = []
    for example in examples:
        chunk.append(example)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _files_of(folder: Path) -> list[str]:
    """Shards that an earlier `write_records` left here."""
    try:
        return [shard["file"] for shards in read_index(folder)["splits"].values() for shard in shards]
    except InputError:
        return []
