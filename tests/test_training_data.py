"""What training reads: records on disk and batches of them, the same whoever reads how."""

import collections
import itertools
import multiprocessing
import os
import signal

import numpy as np
import pytest

from facejax.data.sources import Batches, MachineError, RecordFolder, Share, fingerprint, read_index, write_records
from facejax.geometry.errors import InputError


class Numbers:
    """Examples that hold their own number."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"n": np.int64(index)}


def shaken(example, rng):
    return {**example, "draw": rng.integers(0, 2**62)}


def take(count, *arguments, **options):
    batches = Batches(*arguments, **options)
    found = [next(batches) for _ in range(count)]
    batches.close()
    return found


def examples(count, seed=0):
    rng = np.random.default_rng(seed)
    for i in range(count):
        yield {"image": rng.integers(0, 255, (8, 8, 3), np.uint8), "pose": np.eye(3, dtype=np.float32) * i}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "records"
    write_records(path, {"train": examples(25), "test": examples(3, seed=1)}, about={"seed": 0}, shard_size=10)
    return path


def test_records_come_back_as_they_were(folder):
    source = RecordFolder(folder, "train")
    assert len(source) == 25
    assert [s["records"] for s in read_index(folder)["splits"]["train"]] == [10, 10, 5]
    for i, example in enumerate(examples(25)):
        assert source[i].keys() == example.keys()
        for name, value in example.items():
            np.testing.assert_array_equal(source[i][name], value)
            assert source[i][name].dtype == value.dtype


def test_the_same_examples_give_the_same_fingerprint_and_others_another(folder, tmp_path):
    splits = {"train": examples(25), "test": examples(3, seed=1)}
    write_records(tmp_path / "again", splits, about={"seed": 0}, shard_size=10)
    assert fingerprint(tmp_path / "again") == fingerprint(folder)
    write_records(
        tmp_path / "other", {"train": examples(25), "test": examples(3, seed=2)}, about={"seed": 0}, shard_size=10
    )
    assert fingerprint(tmp_path / "other") != fingerprint(folder)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.png").write_bytes(b"12")
    before = fingerprint(tmp_path / "plain")
    (tmp_path / "plain" / "a.png").write_bytes(b"123")
    assert fingerprint(tmp_path / "plain") != before


def test_writing_again_replaces_data_and_nothing_else(tmp_path):
    write_records(tmp_path / "d", {"train": examples(3)}, shard_size=1)
    write_records(tmp_path / "d", {"train": examples(2)})
    assert len(RecordFolder(tmp_path / "d", "train")) == 2
    assert {p.name for p in (tmp_path / "d").iterdir()} == {"dataset.json", "train-00000.array_record"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("x")
    with pytest.raises(InputError, match="holds other files"):
        write_records(tmp_path / "mine", {"train": examples(3)})
    with pytest.raises(InputError, match="Expected examples for the split 'test'"):
        write_records(tmp_path / "e", {"test": iter(())})
    assert not (tmp_path / "e").exists()


def test_an_epoch_shows_every_example_once_and_the_next_in_another_order():
    found = [b["n"] for b in take(6, Numbers(12), 4, seed=3)]
    first, second = np.concatenate(found[:3]), np.concatenate(found[3:])
    assert sorted(first) == sorted(second) == list(range(12))
    assert list(first) != list(second)
    assert list(first) != list(range(12))
    other = np.concatenate([b["n"] for b in take(3, Numbers(12), 4, seed=4)])
    assert list(other) != list(first)


@pytest.mark.parametrize("position", [0, 1, 5, 50])
def test_any_position_is_reached_at_once_and_exactly(position):
    whole = take(position + 3, Numbers(10), 4, seed=1, augment=shaken)
    late = take(3, Numbers(10), 4, seed=1, augment=shaken, position=position, threads=4)
    for a, b in zip(whole[position:], late, strict=True):
        np.testing.assert_array_equal(a["n"], b["n"])
        np.testing.assert_array_equal(a["draw"], b["draw"])


def test_random_draws_differ_between_examples_and_epochs():
    draws = np.concatenate([b["draw"] for b in take(6, Numbers(8), 4, seed=1, augment=shaken)])
    assert len(set(draws.tolist())) == 24


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_same_global_batches(processes):
    alone = take(5, Numbers(22), 8, seed=7, augment=shaken)
    parts = [take(5, Numbers(22), 8, seed=7, augment=shaken, share=Share(p, processes)) for p in range(processes)]
    for i, batch in enumerate(alone):
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([part[i][name] for part in parts]), batch[name])


def test_a_batch_larger_than_the_data_wraps_around():
    (batch,) = take(1, Numbers(3), 6, seed=0)
    assert sorted(batch["n"]) == [0, 0, 1, 1, 2, 2]


def test_waiting_is_counted():
    class Slow(Numbers):
        def __getitem__(self, index):
            import time

            time.sleep(0.02)
            return super().__getitem__(index)

    batches = Batches(Slow(8), 4, seed=0, threads=1)
    next(batches)
    assert batches.position == 1
    assert batches.waited >= 0.08
    batches.close()


def test_worker_processes_read_the_same_and_their_death_is_told(folder):
    source = RecordFolder(folder, "train")
    plain = take(3, source, 4, seed=0)
    batches = Batches(source, 4, seed=0, workers=1)
    for expected in plain:
        np.testing.assert_array_equal(next(batches)["image"], expected["image"])
    workers = multiprocessing.active_children()
    assert workers
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(MachineError, match=r"worker process .* died \(exit code -9\).*--resume"):
        collections.deque(itertools.islice(batches, 500), maxlen=0)
    batches.close()


# -- what it refuses --------------------------------------------------------------------------------------------------


def test_a_folder_without_data(tmp_path):
    with pytest.raises(InputError, match=r"has no data: expected a data folder with dataset.json"):
        RecordFolder(tmp_path, "train")
    with pytest.raises(InputError, match="is not a folder"):
        RecordFolder(tmp_path / "none", "train")
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(InputError, match="is not an index of data"):
        RecordFolder(tmp_path, "train")
    (tmp_path / "dataset.json").write_text('{"format": 99, "splits": {}}')
    with pytest.raises(InputError, match=r"format 99, newer .* upgrade facejax"):
        RecordFolder(tmp_path, "train")
    with pytest.raises(InputError, match="has none"):
        Batches(Numbers(0), 4, seed=0)


def test_unknown_splits_and_shards_that_are_not_whole(folder, tmp_path):
    import shutil

    with pytest.raises(InputError, match="no split 'val': there are test, train"):
        RecordFolder(folder, "val")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shard = copy / "train-00001.array_record"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"train-00001.array_record has \d+ bytes in place of \d+"):
        RecordFolder(copy, "train")
    shard.unlink()
    with pytest.raises(InputError, match=r"train-00001.array_record is missing"):
        RecordFolder(copy, "train")


def test_a_corrupt_record_in_the_middle_of_a_shard_is_named(folder, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shard = copy / "train-00001.array_record"
    content = bytearray(shard.read_bytes())
    content[2000] ^= 0xFF  # inside a record, past the first ones
    shard.write_bytes(content)
    source = RecordFolder(copy, "train")

    def complaint(index):
        try:
            source[index]
        except InputError as error:
            return str(error)

    told = {i: text for i in range(25) if (text := complaint(i))}
    assert len(told) == 1
    ((bad, text),) = told.items()
    assert 10 < bad < 20
    assert f"Record {bad - 10} of the shard {shard} cannot be read" in text
    with pytest.raises(InputError, match=rf"Record {bad - 10} of the shard .*train-00001"):
        take(50, RecordFolder(copy, "train"), 5, seed=0)


def test_a_shard_that_does_not_open_is_named(folder, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shard = copy / "train-00002.array_record"
    shard.write_bytes(b"\xff" * shard.stat().st_size)
    with pytest.raises(InputError, match=r"cannot be opened \(train-00002.array_record\)"):
        RecordFolder(copy, "train")[0]


def test_a_batch_must_divide_among_the_processes():
    with pytest.raises(InputError, match="A batch of 9 does not divide among 2 processes"):
        Batches(Numbers(4), 9, seed=0, share=Share(1, 2))
