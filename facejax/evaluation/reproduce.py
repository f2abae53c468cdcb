"""Pinned checkpoints: made from a run with the numbers that it reaches, and measured again anywhere, years later."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from facejax.data.checkpoints import (
    FORMAT,
    MANIFEST,
    NETWORK,
    describe_files,
    find_checkpoint,
    provenance,
    read_network,
    unflatten,
    write_network,
)
from facejax.data.files import atomic_folder
from facejax.data.sources import RecordFolder, Source, write_records
from facejax.geometry.errors import InputError
from facejax.training.engine import Evaluator
from facejax.training.recipe import Recipe, find_recipe, recipe_names, registered_recipe, revive
from facejax.training.sharding import make_mesh

MOST_TOLERANCE = 0.02
"""Largest relative tolerance that a pinned number may have."""

_EVALUATION = "evaluation"


@dataclasses.dataclass(frozen=True)
class Compared:
    """One number, as recorded and as measured here."""

    name: str
    recorded: float
    measured: float
    tolerance: float
    """Relative."""

    @property
    def agrees(self) -> bool:
        """Whether the measured number is within the tolerance; never for one that is not a number."""
        return abs(self.measured - self.recorded) <= self.tolerance * abs(self.recorded)


def reproduce(name: str | Path, recipe_file: str = "", *, examples: Source | None = None) -> list[Compared]:
    """Runs the evaluation of a pinned checkpoint again, on the data that it brings, and compares every number.

    name: of a checkpoint that came with the package or was fetched, or a folder. recipe_file: the .py file of its
    recipe, where that is not installed; a checkpoint never brings code. examples: those of `evaluation_of(name)`, where
    they were read before; a machine without grain cannot read them. Raises `InputError` for an unknown one, for a
    file that is missing, truncated or altered (by name), and for a run, which was not pinned yet.
    """
    folder = find_checkpoint(name)
    manifest, arrays = read_network(folder)
    if manifest.get("kind") != "pinned":
        raise InputError(f"{folder} is a run: make a pinned checkpoint of it first (facejax checkpoints pin).")
    recorded = manifest["evaluation"]
    for value, told in recorded["values"].items():
        if not 0 <= told["tolerance"] <= MOST_TOLERANCE:
            raise InputError(
                f"{folder} allows {value!r} a tolerance of {told['tolerance']:g}, over {MOST_TOLERANCE:g}: pin it anew."
            )
    recipe, arrays = _revived(manifest, arrays, recipe_file)
    scores = _scores(recipe, arrays, evaluation_of(folder) if examples is None else examples, recorded["batch"])
    missing = sorted(set(recorded["values"]) - set(scores))
    if missing:
        raise InputError(
            f"{folder} records {missing[0]!r}, which {recipe.name} does not measure any more: pin it anew."
        )
    return [
        Compared(value, told["value"], scores[value], told["tolerance"]) for value, told in recorded["values"].items()
    ]


def evaluation_of(name: str | Path) -> RecordFolder:
    """The examples that a pinned checkpoint is measured on; `InputError` where there are none."""
    return RecordFolder(find_checkpoint(name) / _EVALUATION, "test")


def pin(
    run: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    examples: int = 64,
    tolerance: float = 0.01,
    recipe_file: str = "",
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Makes a pinned checkpoint of a complete run's best step, and measures it; gives back the manifest.

    run: folder of `train`; data: the data folder that it was trained on; out: folder to write, whose name is the
    checkpoint's. examples: how many of the test split to bring along. tolerance: relative, of every number.
    recipe_file: the .py file of the recipe, where it is not installed. Raises `InputError` for a run that is not
    complete, and for data other than it was trained on.
    """
    if not 0 < tolerance <= MOST_TOLERANCE:
        raise InputError(f"A tolerance lies above 0 and at most at {MOST_TOLERANCE:g}, not at {tolerance:g}.")
    from facejax.data.sources import fingerprint

    run, data, out = Path(run).expanduser(), Path(data).expanduser(), Path(out).expanduser()
    manifest, arrays = read_network(run)
    if manifest.get("kind") != "run":
        raise InputError(f"{run} is not a run of `facejax train`: expected the folder that --out named.")
    if fingerprint(data) != manifest["data"]:
        raise InputError(f"{data} is not the data that {run} was trained on: give the same --data.")
    recipe, arrays = _revived(manifest, arrays, recipe_file)
    source = recipe.data(data, "test")
    count, batch = min(examples, len(source)), min(64, examples)
    with atomic_folder(out, [MANIFEST, NETWORK, _EVALUATION]) as partial:
        write_records(
            partial / _EVALUATION, {"test": (source[i] for i in range(count))}, about={"of": manifest["data"]}
        )
        write_network(partial / NETWORK, arrays)
        scores = _scores(recipe, arrays, RecordFolder(partial / _EVALUATION, "test"), batch)
        (say or print)(", ".join(f"{k} {v:.4g}" for k, v in scores.items()))
        pinned = {
            "format": FORMAT,
            "kind": "pinned",
            "name": out.name,
            "recipe": recipe.name,
            "version": recipe.version,
            "preset": manifest["preset"],
            "config": dataclasses.asdict(recipe.config),
            "seeds": manifest["seeds"],
            "data": manifest["data"],
            "step": manifest["best_step"],
            "trained": {k: manifest[k] for k in ("versions", "device", "platform", "revision")},
            "pinned": provenance(jax.devices()[0].device_kind),
            "evaluation": {
                "batch": batch,
                "values": {k: {"value": v, "tolerance": tolerance} for k, v in sorted(scores.items())},
            },
            "files": describe_files(partial, [NETWORK, _EVALUATION]),
        }
        (partial / MANIFEST).write_text(json.dumps(pinned, indent=1) + "\n")
    return pinned


def _revived(manifest: dict[str, Any], arrays: dict[str, Any], recipe_file: str) -> tuple[Recipe, dict[str, Any]]:
    """recipe_file: what the person typed, the only way to a recipe that is not installed."""
    if not recipe_file and manifest["recipe"] not in recipe_names():
        raise InputError(
            f"The checkpoint is of the recipe {manifest['recipe']!r}, which is not installed here, and it never brings "
            "code: give the recipe's own .py file with --recipe FILE, if you trust it."
        )
    kind = find_recipe(recipe_file) if recipe_file else registered_recipe(manifest["recipe"])
    if kind.name != manifest["recipe"]:
        raise InputError(f"The checkpoint is of the recipe {manifest['recipe']!r}, not {kind.name!r}: give that one.")
    return revive(kind, int(manifest["version"]), manifest["config"], arrays)


def _scores(recipe: Recipe, arrays: dict[str, Any], source: Source, batch: int) -> dict[str, float]:
    """The engine's own evaluation, on one device."""
    mesh = make_mesh(jax.local_devices()[:1], 1)
    network = unflatten(arrays)
    return Evaluator(recipe, source, mesh, batch).scores(
        jax.device_put({"params": network.get("params", {}), "state": network.get("state", {})})
    )
