"""Where arrays lie: a mesh of all devices, parameters split by rule, batches split by row.

`jax.sharding` does the work and XLA puts in the communication. The mesh has two axes: "data" and "model". Every device
takes a share of the batch; parameters are split along "model" and gathered where they are used.
"""

import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from facejax.data.sources import Example
from facejax.geometry.errors import InputError
from facejax.geometry.records import PyTree

Rules = Sequence[tuple[str, PartitionSpec]]
AnyMesh = Mesh | AbstractMesh  # the latter plans for devices that are not here

SMALL = 2**14
"""Arrays with fewer elements are not worth splitting: every device keeps a copy."""


def make_mesh(devices: Sequence[jax.Device], model_axis: int) -> Mesh:
    """Mesh ("data", "model") of these devices; `InputError` when `model_axis` does not divide their number."""
    if model_axis < 1 or len(devices) % model_axis:
        raise InputError(
            f"machine.model_axis={model_axis} does not divide {len(devices)} device(s): choose a divisor of that."
        )
    return Mesh(np.asarray(devices).reshape(-1, model_axis), ("data", "model"))


def check_batch(batch: int, mesh: AnyMesh) -> None:
    """`InputError` when a batch does not divide among the devices of a mesh."""
    if batch < 1 or batch % mesh.size:
        near = max(round(batch / mesh.size), 1) * mesh.size
        raise InputError(f"A batch of {batch} does not divide among {mesh.size} devices: --set run.batch={near} would.")


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """The first axis split among all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "model")))


def shardings(tree: PyTree, mesh: AnyMesh, rules: Rules = ()) -> PyTree:
    """A `NamedSharding` for each array (or its shape) of a tree.

    The first rule whose expression is found in the array's path ("params/encoder/kernel") holds; the optimiser's copies
    of a parameter have its path within theirs, and so lie where it lies. Without a rule, large arrays are split along
    their longest axis that the mesh's "model" axis divides. A rule that an array is too flat for, or whose axis does
    not divide, raises `InputError`.
    """

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, _spec(name, leaf.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(place, tree)


def _spec(name: str, shape: tuple[int, ...], mesh: AnyMesh, rules: Rules) -> PartitionSpec:
    for pattern, spec in rules:
        if re.search(pattern, name):
            if not shape:  # counters of an optimiser
                return PartitionSpec()
            _check_rule(name, shape, spec, mesh)
            return spec
    ways = mesh.shape["model"]
    if ways == 1 or int(np.prod(shape)) < SMALL:
        return PartitionSpec()
    axes = [axis for axis, length in enumerate(shape) if length % ways == 0]
    if not axes:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*("model" if axis == longest else None for axis in range(longest + 1)))


def _check_rule(name: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: AnyMesh) -> None:
    if len(spec) > len(shape):
        raise InputError(f"The sharding rule {spec} has more axes than {name}, which is {shape}.")
    for length, names in zip(shape, spec, strict=False):
        ways = int(np.prod([mesh.shape[n] for n in ((names,) if isinstance(names, str) else names or ())]))
        if length % ways:
            raise InputError(
                f"The sharding rule {spec} splits {name}, which is {shape}, {ways} ways: it does not divide."
            )


def put_batch(batch: Example, mesh: Mesh) -> PyTree:
    """The global batch on the mesh, from the rows that this process read."""
    sharding = rows(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)  # one call for all arrays: half the time of one each
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
