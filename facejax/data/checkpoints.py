"""Trained networks as files: read, checked against their manifest, listed and fetched.

Two kinds of folder have a `manifest.json`. A run (`facejax train --out RUN`) holds everything that training needs to go
on. A pinned checkpoint holds what others need to use and to judge a network:

    NAME/manifest.json     recipe, version, config, seeds, software, device, data, revision; sha256 of every file
    NAME/network.npz       parameters and state, float32, by path ("params/encoder/kernel")
    NAME/evaluation/       a few megabytes of test data, and in the manifest what was measured on them
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from facejax.data.assets import home
from facejax.data.files import atomic_folder
from facejax.data.sources import sha256_of
from facejax.geometry.arrays import read_npz
from facejax.geometry.errors import InputError
from facejax.geometry.processes import ProcessError, run_program
from facejax.geometry.records import PyTree

FORMAT = 1
"""Of a pinned checkpoint's manifest. Readers take this and every earlier one, and refuse later ones."""

MANIFEST = "manifest.json"
NETWORK = "network.npz"

SHIPPED = Path(__file__).parent / "pinned"
"""Pinned checkpoints that come with the package."""

_SOFTWARE = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def provenance(device: str) -> dict[str, Any]:
    """Versions, device, platform and source revision: the part of a manifest that says by what it was made."""
    return {
        "versions": {
            "facejax": importlib.metadata.version("facejax"),
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _SOFTWARE},
        },
        "device": device,
        "platform": platform.platform(),
        "revision": source_revision(),
    }


def source_revision() -> str:
    """The commit of this checkout, "+changes" added where files differ from it; the version outside of a checkout."""

    def git(*words: str) -> str:
        return run_program("git", "-C", str(root), *words, timeout=20.0)

    root = Path(__file__).parents[2]
    released = f"release {importlib.metadata.version('facejax')}"
    if not (root / ".git").exists():  # an installed package may lie inside somebody else's checkout
        return released
    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", "facejax") else "")
    except ProcessError:
        return released


def describe_files(folder: Path, entries: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and sha256 of these files, and of every file in these folders, by their path in `folder`."""
    found = {}
    for entry in entries:
        path = folder / entry
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            found[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    return found


def flatten(tree: PyTree, prefix: str = "") -> dict[str, np.ndarray]:
    """Nested dicts of arrays as one dict by path, {"a": {"b": x}} as {"a/b": x}."""
    if not isinstance(tree, dict):
        return {prefix: np.asarray(tree)}
    return {
        k: v for name, part in tree.items() for k, v in flatten(part, f"{prefix}/{name}" if prefix else name).items()
    }


def unflatten(arrays: dict[str, np.ndarray]) -> PyTree:
    """The nested dicts that `flatten` took apart."""
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *parents, name = path.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = array
    return tree


def arrays_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """The sha256 of arrays by path: of their names and bytes, in the order of the names."""
    total = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        total.update(name.encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """A folder's manifest; `InputError` where it has none, or one that is damaged or from a newer facejax."""
    path = folder / MANIFEST
    if not path.is_file():
        unfinished = " (the run is not complete; --resume goes on)" if (folder / "config.json").is_file() else ""
        raise InputError(f"{folder} has no {MANIFEST}{unfinished}: expected a complete run or a pinned checkpoint.")
    try:
        manifest = json.loads(path.read_text())
        number, _ = int(manifest["format"]), manifest["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a whole manifest: fetch the checkpoint again.") from error
    if number > FORMAT:
        raise InputError(f"{folder} is of format {number}, newer than this facejax reads ({FORMAT}): upgrade facejax.")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """The manifest, after every file was compared with it.

    `InputError` names the first file that is missing, truncated or altered.
    """
    manifest = read_manifest(folder)
    for name, told in manifest["files"].items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"The manifest of {folder} names {name!r}, outside of it: it is not one of ours.")
        if not path.is_file():
            raise InputError(f"{path} is missing: fetch the checkpoint again.")
        if path.stat().st_size != told["bytes"]:
            raise InputError(
                f"{path} has {path.stat().st_size} bytes in place of {told['bytes']}, it was truncated or altered: "
                "fetch the checkpoint again."
            )
        if sha256_of(path) != told["sha256"]:
            raise InputError(f"{path} was altered, its sha256 is not the manifest's: fetch the checkpoint again.")
    return manifest


def fetched_folder() -> Path:
    """Where `fetch` puts checkpoints."""
    return Path(home()) / "checkpoints"


def pinned() -> dict[str, Path]:
    """Every pinned checkpoint on this machine by name: those fetched go before those that came with the package."""
    return {
        path.name: path
        for parent in (SHIPPED, fetched_folder())
        if parent.is_dir()
        for path in sorted(parent.iterdir())
        if (path / MANIFEST).is_file()
    }


def find_checkpoint(name: str | Path) -> Path:
    """The folder of a pinned checkpoint, by its name or its path; `InputError`, with the near name, for neither."""
    path = Path(name).expanduser()
    if path.is_absolute() and path.is_dir():  # no name is like that, so what is installed need not be known
        return path
    known = pinned()
    if str(name) in known:
        return known[str(name)]
    if path.is_dir():
        return path
    import difflib

    near = difflib.get_close_matches(str(name), known, n=1)
    told = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known) or 'none'}; or give a folder."
    raise InputError(f"There is no checkpoint {str(name)!r}: {told}")


def fetch(name: str, source: Path | str, sha256: str | None = None) -> Path:
    """Takes a pinned checkpoint from a folder, a .zip or a https:// address of one, checks it, and installs it.

    sha256: of its manifest.json, where it was published; everything else follows from the manifest. Installed under
    `name`, whole or not at all. Raises `InputError` when something is not as it was pinned.
    """
    import tempfile

    target = fetched_folder() / name
    with tempfile.TemporaryDirectory() as temporary:
        folder = _unpacked(source, Path(temporary))
        manifest = verify(folder)
        if sha256 is not None and sha256_of(folder / MANIFEST) != sha256:
            raise InputError(f"The manifest of {source} is not the one that was asked for: its sha256 is another.")
        if manifest.get("kind") != "pinned":
            raise InputError(
                f"{source} is a {manifest.get('kind')}, not a pinned checkpoint: see `facejax checkpoints pin`."
            )
        with atomic_folder(target, [MANIFEST, *_tops(manifest)]) as partial:
            for file in [MANIFEST, *manifest["files"]]:
                (partial / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file, partial / file)
    return target


def _tops(manifest: dict[str, Any]) -> list[str]:
    return sorted({Path(name).parts[0] for name in manifest["files"]})


def _unpacked(source: Path | str, temporary: Path) -> Path:
    """The folder with the manifest, wherever it came from."""
    import zipfile

    if "://" in str(source):
        source = _downloaded(str(source), temporary)
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if not path.is_file():
        raise InputError(f"No such folder or archive: {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(temporary / "unpacked")  # zipfile keeps members inside the folder
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is not a whole .zip archive: fetch it again.") from error
    found = sorted((temporary / "unpacked").rglob(MANIFEST), key=lambda p: len(p.parts))
    if not found:
        raise InputError(f"{path} holds no {MANIFEST}: expected an archive of a pinned checkpoint.")
    return found[0].parent


def _downloaded(url: str, temporary: Path) -> Path:
    import pooch

    if not url.startswith("https://"):
        raise InputError(f"Checkpoints are fetched over https, not from {url}.")
    try:
        name = hashlib.sha256(url.encode()).hexdigest()[:16] + ".zip"
        return Path(pooch.retrieve(url, known_hash=None, fname=name, path=temporary, progressbar=False))
    except Exception as error:  # every library below raises its own
        raise InputError(f"{url} cannot be fetched ({error}): check the address and the network.") from error


def read_network(folder: Path, *, check: bool = True) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(manifest, arrays by path) of a pinned checkpoint or of a complete run's best step.

    check: compare every file with the manifest first. Paths begin with "params/" or "state/".
    """
    manifest = verify(folder) if check else read_manifest(folder)
    if manifest.get("kind") == "run":
        return manifest, _from_run(folder, int(manifest["best_step"]))
    return manifest, read_npz(folder / NETWORK, "fetch the checkpoint again")


def _from_run(folder: Path, step: int) -> dict[str, np.ndarray]:
    import jax
    import orbax.checkpoint as ocp

    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    path = (folder / "checkpoints" / str(step) / "state").absolute()
    reader = ocp.StandardCheckpointHandler()
    shapes = reader.metadata(path).tree
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes)
    tree = reader.restore(path, args=ocp.args.StandardRestore(like))
    return flatten({name: tree[name] for name in ("params", "state") if tree.get(name)})


def write_network(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays by path as `network.npz`: plain, compressed, readable by anything that reads NumPy files."""
    with open(path, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **{name: arrays[name] for name in sorted(arrays)})


def export_safetensors(folder: Path, out: Path) -> int:
    """Writes a checkpoint's network as .safetensors, its recipe and config as metadata; the number of arrays.

    Needs the package safetensors; `InputError` without it.
    """
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise InputError("Exporting to .safetensors needs safetensors: pip install safetensors.") from error
    from facejax.data.files import atomic_write

    manifest, arrays = read_network(folder)
    about = {
        "recipe": manifest["recipe"],
        "version": str(manifest["version"]),
        "config": json.dumps(manifest["config"]),
    }
    with atomic_write(out) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, os.fspath(temporary), about)
    return len(arrays)
