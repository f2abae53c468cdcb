"""What renderers refuse, in one sentence each: at making for what is fixed, at eager calls for values.

Under `jit` values are not known; shapes always are.
"""

from typing import Any

import jax
import numpy as np

from facejax.geometry.errors import InputError
from facejax.geometry.meshes import Topology
from facejax.geometry.records import Camera, Face, Pose
from facejax.renderers.lights import Environment, Light, NearLights, check_light
from facejax.renderers.microfacet import check_surface

_ROTATION_TOLERANCE = 1e-3


def check_topology(topology: Topology, size: tuple[int, int]) -> None:
    """Refuse a mesh or an image size that cannot be drawn: no triangles, ids out of range, UV that do not fit."""
    faces, uv_faces = topology.faces, topology.uv_faces
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"An image size is (height, width) in pixels, both at least 1, got {size}.")
    if faces.ndim != 2 or faces.shape[1] != 3 or not len(faces):
        raise InputError(f"A mesh to draw needs triangles, (T, 3) vertex ids, got {faces.shape}.")
    if not known(faces, uv_faces):
        return
    faces, uv_faces = np.asarray(faces), np.asarray(uv_faces)
    if faces.min() < 0 or faces.max() >= topology.n_vertices:
        raise InputError(
            f"Triangles must name vertices from 0 to {topology.n_vertices - 1}, got {faces.min()} to {faces.max()}."
        )
    if uv_faces.shape != faces.shape or uv_faces.min() < 0 or uv_faces.max() >= len(topology.uv):
        raise InputError(
            f"UV triangles must be as many as triangles, {faces.shape}, and name one of {len(topology.uv)} texture "
            f"coordinates, got {uv_faces.shape} with ids from {uv_faces.min()} to {uv_faces.max()}."
        )


def check_scene(topology: Topology, face: Face, pose: Pose, camera: Camera) -> None:
    """Refuse a head of another mesh, and, where values are known, what would draw black or nonsense.

    That is: NaN and infinities, albedo and specular reflectance outside [0, 1], roughness outside (0, 1], textures that
    are negative, a rotation that is none, focal lengths that are not positive.
    """
    if face.vertices.shape != (topology.n_vertices, 3):
        raise InputError(
            f"This renderer was made for {topology.n_vertices} vertices, got {face.vertices.shape}: "
            "make one for this head's topology."
        )
    if not known(face, pose, camera):
        return
    for name in ("vertices", "albedo", "texture", "specular", "roughness"):
        _check_finite(getattr(face, name), f"the {name} of a face")
    check_surface(albedo=face.albedo, specular=face.specular, roughness=face.roughness)
    lowest = np.asarray(face.texture).min()
    if lowest < 0:
        raise InputError(f"A texture is a factor on albedo and cannot be negative, got {lowest:.3g}.")
    _check_finite(pose.translation, "the translation of a pose")
    rotation = np.asarray(pose.rotation, np.float64)
    if not (
        np.isfinite(rotation).all()
        and np.abs(rotation @ rotation.T - np.eye(3)).max() < _ROTATION_TOLERANCE
        and np.linalg.det(rotation) > 0
    ):
        raise InputError(
            f"The rotation of a pose must be a proper rotation matrix, got {np.round(rotation, 3).tolist()}: its rows "
            "must be unit vectors at right angles, its determinant 1."
        )
    focal = np.asarray(camera.focal)
    if not (np.isfinite(focal).all() and (focal > 0).all() and np.isfinite(camera.principal_point).all()):
        raise InputError(
            f"A camera needs positive focal lengths and a finite principal point in pixels, got {focal.tolist()} and "
            f"{np.asarray(camera.principal_point).tolist()}."
        )


def check_known_light(light: Light) -> None:
    """`check_light`, which values permitting says more than shapes; an environment may have any height and width."""
    if known(light):
        check_light(light, two_to_one=False)
    elif not isinstance(light, Environment | NearLights):
        check_coefficients(light)


def check_coefficients(light: Any) -> None:
    """Refuse what is not (bands², 3) coefficients; only shapes are looked at."""
    if isinstance(light, Environment | NearLights):
        raise InputError(
            f"This renderer takes spherical harmonics, got {type(light).__name__}: use `make_shadowed_renderer`, or "
            "`project_environment` for a map's coefficients."
        )
    rows = light.shape[0] if light.ndim == 2 else 0
    if light.ndim != 2 or light.shape[1] != 3 or rows == 0 or round(rows**0.5) ** 2 != rows:
        raise InputError(f"Light as spherical harmonics is (bands², 3), got {light.shape}.")


def known(*trees: Any) -> bool:
    """Whether every leaf has values: nothing is being traced."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def _check_finite(values: Any, name: str) -> None:
    bad = int(np.sum(~np.isfinite(np.asarray(values))))
    if bad:
        raise InputError(f"A renderer needs finite numbers, got {bad} NaN or infinite among {name}.")
