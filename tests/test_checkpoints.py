"""Checkpoints as files: whole, named when they are not, fetched, exported."""

import json
import shutil
import zipfile

import numpy as np
import pytest
import toy_recipe

from facejax.data import checkpoints
from facejax.data.checkpoints import (
    export_safetensors,
    fetch,
    find_checkpoint,
    flatten,
    pinned,
    read_manifest,
    read_network,
    unflatten,
    verify,
)
from facejax.data.sources import sha256_of
from facejax.evaluation.reproduce import pin
from facejax.geometry.errors import InputError
from facejax.training import override, train
from facejax.training.recipe import revive


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("FACEJAX_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, home):
    """(run, pinned checkpoint) of a toy; its recipe is a file, which the manifest names by the recipe's name."""
    folder = tmp_path_factory.mktemp("made")
    data = toy_recipe.make_data(folder / "data")
    recipe = toy_recipe.Toy(override(toy_recipe.Toy.presets["small"].config, ["run.steps=6"]))
    train(recipe, data, folder / "run")
    options = {"recipe_file": toy_recipe.__file__, "say": lambda line: None}
    pin(folder / "run", data, folder / "toy-1", examples=13, **options)
    with pytest.raises(InputError, match="recipe 'toy', which is not installed here"):
        pin(folder / "run", data, folder / "toy-2")
    return folder / "run", folder / "toy-1"


@pytest.fixture
def copy(made, tmp_path):
    """A pinned checkpoint to spoil."""
    shutil.copytree(made[1], tmp_path / "toy-1")
    return tmp_path / "toy-1"


def rewrite(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


def test_trees_flatten_and_come_back():
    tree = {"a": {"b": np.ones(2), "c": {"d": np.zeros((1, 3))}}, "e": np.float32(4)}
    flat = flatten(tree)
    assert list(flat) == ["a/b", "a/c/d", "e"]
    back = unflatten(flat)
    assert back["a"].keys() == {"b", "c"}
    np.testing.assert_array_equal(back["a"]["c"]["d"], tree["a"]["c"]["d"])


def test_a_pinned_network_is_the_run_s(made):
    run, checkpoint = made
    (_, from_run), (manifest, from_pinned) = read_network(run), read_network(checkpoint)
    assert from_run.keys() == from_pinned.keys()
    assert {"params/in/kernel", "params/in/bias", "params/out/kernel", "state/seen", "state/mean"} == from_run.keys()
    for name, array in from_run.items():
        np.testing.assert_array_equal(array, from_pinned[name])
    assert from_run["state/seen"] == 48
    assert manifest["step"] == 6


def test_a_manifest_says_what_by_what_from_what(made):
    manifest = read_manifest(made[1])
    assert manifest["recipe"] == "toy"
    assert manifest["seeds"] == {"run.seed": 0}
    assert manifest["config"]["run"]["batch"] == 8
    assert len(manifest["data"]) == 64
    for part in (manifest["trained"], manifest["pinned"]):
        assert {"facejax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "python"} <= part["versions"].keys()
        assert part["device"]
        assert part["revision"]
    assert set(manifest["files"]) == {"network.npz", "evaluation/dataset.json", "evaluation/test-00000.array_record"}
    assert manifest["files"]["network.npz"]["sha256"] == sha256_of(made[1] / "network.npz")


@pytest.mark.parametrize("which", [0, 1], ids=["run", "pinned"])
@pytest.mark.parametrize("harm", ["missing", "truncated", "altered"])
def test_a_damaged_file_is_named(which, harm, made, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(made[which], folder)
    names = list(verify(folder)["files"])
    file = folder / max(names, key=lambda name: (folder / name).stat().st_size)
    content = bytearray(file.read_bytes())
    if harm == "missing":
        file.unlink()
    elif harm == "truncated":
        file.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    words = {"missing": "is missing", "truncated": "was truncated or altered", "altered": "was altered"}[harm]
    with pytest.raises(InputError, match=f"{file.name} .*{words}"):
        verify(folder)
    with pytest.raises(InputError, match=words):
        read_network(folder)


def test_manifests_that_cannot_be_read(copy, tmp_path):
    rewrite(copy, format=99)
    with pytest.raises(InputError, match=r"format 99, newer than this facejax reads \(1\): upgrade"):
        read_manifest(copy)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="not a whole manifest"):
        read_manifest(copy)
    with pytest.raises(InputError, match=r"has no manifest.json: expected"):
        read_manifest(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"the run is not complete; --resume"):
        read_manifest(tmp_path)


def test_a_manifest_may_not_point_outside(copy):
    rewrite(copy, files={"../../etc/passwd": {"bytes": 1, "sha256": "0"}})
    with pytest.raises(InputError, match="outside of it"):
        verify(copy)


def test_checkpoints_are_fetched_from_folders_and_archives(made, tmp_path, home):
    assert fetch("from-folder", made[1]) == home / "checkpoints" / "from-folder"
    archive = tmp_path / "toy.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in made[1].rglob("*"):
            file.write(path, path.relative_to(made[1].parent))
    digest = sha256_of(made[1] / "manifest.json")
    fetch("from-zip", archive, digest)
    assert {"from-folder", "from-zip"} <= pinned().keys()
    assert find_checkpoint("from-zip") == home / "checkpoints" / "from-zip"
    assert verify(find_checkpoint("from-zip")) == read_manifest(made[1])
    with pytest.raises(InputError, match="not the one that was asked for"):
        fetch("other", archive, "0" * 64)
    assert "other" not in pinned()
    with pytest.raises(InputError, match="no checkpoint 'from-zp': did you mean 'from-zip'"):
        find_checkpoint("from-zp")
    fetch("from-zip", archive)  # again, over itself


def test_what_is_not_a_checkpoint_is_not_fetched(made, copy, tmp_path):
    with pytest.raises(InputError, match="is a run, not a pinned checkpoint"):
        fetch("run", made[0])
    (copy / "network.npz").write_bytes(b"")
    with pytest.raises(InputError, match=r"network.npz has 0 bytes"):
        fetch("spoilt", copy)
    with pytest.raises(InputError, match="No such folder or archive"):
        fetch("none", tmp_path / "none.zip")
    (tmp_path / "bad.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"not a whole .zip"):
        fetch("bad", tmp_path / "bad.zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as file:
        file.writestr("a", "b")
    with pytest.raises(InputError, match=r"holds no manifest.json"):
        fetch("empty", tmp_path / "empty.zip")
    with pytest.raises(InputError, match="over https, not from http://"):
        fetch("plain", "http://example.org/a.zip")


def test_a_network_is_exported_as_safetensors(made, tmp_path):
    safetensors = pytest.importorskip("safetensors")
    out = tmp_path / "net.safetensors"
    _, arrays = read_network(made[1])
    assert export_safetensors(made[1], out) == len(arrays)
    with safetensors.safe_open(out, "np") as file:
        assert set(file.keys()) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)
        assert file.metadata()["recipe"] == "toy"
        assert json.loads(file.metadata()["config"])["run"]["batch"] == 8


def test_export_without_safetensors_says_what_to_install(made, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(InputError, match="pip install safetensors"):
        export_safetensors(made[1], tmp_path / "x.safetensors")


def test_the_source_revision_is_a_commit_or_a_release(monkeypatch, tmp_path):
    assert checkpoints.source_revision()
    monkeypatch.setattr(checkpoints, "__file__", str(tmp_path / "facejax" / "data" / "checkpoints.py"))
    assert checkpoints.source_revision().startswith("release ")


# -- versions ---------------------------------------------------------------------------------------------------------


def widen(config, arrays):
    """From version 1, where the rate was called `speed`."""
    config = {("rate" if name == "speed" else name): value for name, value in config.items()}
    return config, {name.replace("first", "in"): array for name, array in arrays.items()}


def shift(config, arrays):
    return config, arrays | {"state/mean": arrays["state/mean"] + 1}


class Third(toy_recipe.Toy):
    """The toy, twice changed."""

    version = 3
    migrations = {1: widen, 2: shift}  # noqa: RUF012


def test_old_checkpoints_are_migrated_step_by_step():
    arrays = {"params/first/bias": np.zeros(2), "state/mean": np.float32(1)}
    recipe, moved = revive(Third, 1, {"speed": 0.5}, arrays)
    assert recipe.config.rate == 0.5
    assert moved.keys() == {"params/in/bias", "state/mean"}
    assert moved["state/mean"] == 2
    recipe, moved = revive(Third, 3, {"rate": 0.25}, arrays)
    assert recipe.config.rate == 0.25
    assert moved is arrays
    recipe, moved = revive(Third, 2, {}, arrays)
    assert moved["state/mean"] == 2


def test_versions_that_cannot_be_read():
    with pytest.raises(InputError, match="of version 4 of toy, newer than version 3"):
        revive(Third, 4, {}, {})

    class Gap(toy_recipe.Toy):
        version = 3
        migrations = {2: shift}  # noqa: RUF012

    with pytest.raises(InputError, match="version 1 of toy, from which this facejax has no migration to version 3"):
        revive(Gap, 1, {}, {})
    with pytest.raises(InputError, match="names the field 'speed'"):
        revive(Third, 3, {"speed": 1.0}, {})
