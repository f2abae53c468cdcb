"""The records that every part of facejax passes around: what a head is, where it is, and what a camera saw.

All are pytrees of arrays for ONE face and ONE frame; batches are made by `jax.vmap`. Metres and radians throughout, see
`docs/conventions.md`. Topology (which vertices make a triangle) is not an array that anyone differentiates: it lives in
`facejax.geometry.meshes.Topology`.
"""

import dataclasses
import typing
from typing import Any, TypeVar

import chex
import jax
from jaxtyping import Array, Float

PyTree = Any
"""Nested dicts, tuples and records with arrays as leaves: what JAX's transformations go through."""
PRNGKey = jax.Array
"""A random key, as `jax.random.key` makes it."""

_T = TypeVar("_T", bound="Record")


class Record:
    """What `record` adds to a class, spelt out for type checkers."""

    def replace(self: _T, **changes: Any) -> _T:
        """The same record with some fields changed. Shapes are not checked: it may be a batch made by `jax.vmap`."""
        unknown = changes.keys() - self.__dict__.keys()
        if unknown:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(sorted(unknown))}")
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, **changes)
        return twin


@typing.dataclass_transform(frozen_default=True)
def record(cls: type[_T]) -> type[_T]:
    """Class decorator: a frozen dataclass that is a pytree, for subclasses of `Record`.

    chex's kind survives vmap, scan, hessian and optax masks under run-time shape checks, because its unflatten does not
    run `__init__`, as that of `jax.tree_util.register_dataclass` does.
    """
    made = chex.dataclass(cls, frozen=True, mappable_dataclass=False)
    # chex's own `replace` runs `__init__` and with it the shape checks, which refuse batches
    made.replace = Record.replace
    return made


def batch_of(kind: type[_T], *fields: Any) -> _T:
    """A record of batches, fields in order, with a leading axis each: as `jax.vmap` makes it, but of any arrays, on the
    host too. Shapes are not checked."""
    made = object.__new__(kind)
    made.__dict__.update(zip((f.name for f in dataclasses.fields(kind)), fields, strict=True))  # type: ignore[arg-type]
    return made


@record
class Pose(Record):
    """Rigid motion from the head frame to the camera frame: `x_camera = rotation @ x_head + translation`."""

    rotation: Float[Array, "3 3"]
    """Proper rotation matrix."""
    translation: Float[Array, "3"]
    """Metres, in the camera frame."""


@record
class Camera(Record):
    """Pinhole camera at the origin of the OpenCV camera frame (+x right, +y down, +z forward)."""

    focal: Float[Array, "2"]
    """Focal lengths (fx, fy) in pixels."""
    principal_point: Float[Array, "2"]
    """(cx, cy) in pixels; the centre of the top-left pixel is (0.5, 0.5)."""


@record
class Face(Record):
    """Geometry and appearance of a head, in the head frame: what `HeadModel.decode` returns and `render` draws."""

    vertices: Float[Array, "v 3"]
    """Metres, head frame."""
    albedo: Float[Array, "v 3"]
    """Diffuse reflectance per vertex, linear, in [0, 1]."""
    texture: Float[Array, "h w 3"]
    """What `albedo` does not say, as a factor per texel on it (linear, 1 = nothing to add); row 0 is the top, v = 1."""
    specular: Float[Array, "v"]
    """Fresnel reflectance at normal incidence per vertex; 0 switches the specular lobe off."""
    roughness: Float[Array, "v"]
    """Width alpha of the specular lobe per vertex, in (0, 1]."""


@record
class Image(Record):
    """What `render` returns. Where `coverage` is 0, colour and depth are 0."""

    colour: Float[Array, "h w 3"]
    """Linear radiance, premultiplied by `coverage`."""
    coverage: Float[Array, "h w"]
    """Share of the pixel that the head covers, in [0, 1]."""
    depth: Float[Array, "h w"]
    """Distance along +z of the camera, metres."""
