"""Kinds of light that a renderer accepts, and how each is sampled.

A light is one of three pytrees: coefficients of spherical harmonics (bands², 3), an `Environment`, or `NearLights`. All
are in the CAMERA frame. Distant lights are sampled along directions; near ones have a position.
"""

from typing import TypeAlias

from jaxtyping import Array, Float

from facejax.geometry.records import Record, record


@record
class Environment(Record):
    """Radiance that arrives from infinitely far away, as a latitude-longitude picture around the camera.

    Row 0 is straight up (-y of the camera frame), the centre of the picture is straight ahead of the camera (+z), and
    columns run to the camera's right, as in any panorama seen from within.
    """

    radiance: Float[Array, "h w 3"]
    """Linear, never negative; w is 2 h for a map from a file, any for one that is made here."""


@record
class NearLights(Record):
    """Small lamps near the head; an area light is many of them."""

    positions: Float[Array, "n 3"]
    """Metres, camera frame."""
    intensity: Float[Array, "n 3"]
    """Radiant intensity: irradiance on a surface that faces the lamp from one metre away."""


Light: TypeAlias = Float[Array, "b 3"] | Environment | NearLights
