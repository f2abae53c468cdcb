"""`generic_head`: the built-in head as a `MorphableHead`."""

import functools
import hashlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from facejax.geometry.arrays import open_npz
from facejax.geometry.meshes import SurfacePoints, Topology
from facejax.models.generic import appearance, build, expressions, identity, layout, sculpt
from facejax.models.generic.build import Mesh
from facejax.models.morphable import REGIONS, MorphableHead, MorphableParams

LANDMARKS_478 = Path(__file__).parent / "landmarks478.npz"

VERSION = 1
"""Part of the head's sha256: raise it when identity modes or expressions change, which are computed, not stored."""

# iBUG points of the subject's left half, or of the midline, as places (mm) that are taken to the nearest free skin.
_PLACES = {
    16: (71, 28, 14), 15: (69, 8, 19), 14: (67, -11, 20), 13: (61, -30, 26), 12: (54, -46, 38), 11: (45, -60, 53),
    10: (32, -71, 70), 9: (18, -77.5, 86), 8: (0, -81, 93),
    22: (8.5, 51, 103), 23: (17, 55.5, 100), 24: (27, 58.5, 96), 25: (37, 57, 89), 26: (46, 51, 80),
    27: (0, 38, 103), 28: (0, 27, 109), 29: (0, 15, 118), 30: (0, 3.5, 127),
    33: (0, -11.5, 113), 34: (7, -11.5, 111.5), 35: (13, -9.5, 107),
}  # fmt: skip
# Points on rings: part, ring, place on the ring.
_LID_RING, _BORDER, _CONTACT = 8, 4, 9
_HALF = layout.EYE_COUNT // 2
_TOP, _CORNER = layout.MOUTH_COUNT // 2, layout.MOUTH_COUNT // 4
_ON_RINGS = {
    42: (build.EYE, _LID_RING, _HALF), 43: (build.EYE, _LID_RING, round(0.66 * _HALF)),
    44: (build.EYE, _LID_RING, round(0.34 * _HALF)), 45: (build.EYE, _LID_RING, 0),
    46: (build.EYE, _LID_RING, 2 * _HALF - round(0.34 * _HALF)),
    47: (build.EYE, _LID_RING, 2 * _HALF - round(0.66 * _HALF)),
    51: (build.MOUTH, _BORDER, _TOP), 52: (build.MOUTH, _BORDER, _TOP - 2), 53: (build.MOUTH, _BORDER, _TOP - 6),
    54: (build.MOUTH, _BORDER, _CORNER), 55: (build.MOUTH, _BORDER, 6), 56: (build.MOUTH, _BORDER, 3),
    57: (build.MOUTH, _BORDER, 0),
    62: (build.MOUTH, _CONTACT, _TOP), 63: (build.MOUTH, _CONTACT, _TOP - 3), 64: (build.MOUTH, _CONTACT, _CORNER),
    65: (build.MOUTH, _CONTACT, 3), 66: (build.MOUTH, _CONTACT, 0),
}  # fmt: skip
_RIGHT_TO_LEFT = {
    **{k: 16 - k for k in range(8)}, **{17 + k: 26 - k for k in range(5)}, 31: 35, 32: 34,
    36: 45, 37: 44, 38: 43, 39: 42, 40: 47, 41: 46, 48: 54, 49: 53, 50: 52, 58: 56, 59: 55, 60: 64, 61: 63, 67: 65,
}  # fmt: skip


def landmarks68(mesh: Mesh) -> SurfacePoints:
    """iBUG's 68 points, each at a vertex."""
    v = mesh.vertices.astype(float) * 1e3
    free = np.flatnonzero(mesh.part == build.SKIN)
    brows = np.flatnonzero(appearance.regions(mesh)["brows"] > 0.4)
    ids: dict[int, int] = {}
    for k, place in _PLACES.items():
        allowed = brows if 22 <= k <= 26 else free if place[0] else free[v[free, 0] == 0]
        ids[k] = int(allowed[np.argmin(np.linalg.norm(v[allowed] - np.array(place), axis=1))])
    for k, (part, ring, slot) in _ON_RINGS.items():
        ids[k] = int(
            np.flatnonzero((mesh.part == part) & (mesh.ring == ring) & (mesh.slot == slot) & (v[:, 0] >= 0))[0]
        )
    for right, left in _RIGHT_TO_LEFT.items():
        ids[right] = int(mesh.mirror[ids[left]])
    return _at_vertices(mesh, [ids[k] for k in range(68)])


def _at_vertices(mesh: Mesh, ids: list[int]) -> SurfacePoints:
    """Points at vertices: a triangle around each, all weight on its first corner."""
    triangles = np.zeros((len(ids), 3), np.int32)
    for row, i in enumerate(ids):
        t, corner = np.argwhere(mesh.faces == i)[0]
        triangles[row] = np.roll(mesh.faces[t], -corner)
    weights = np.zeros((len(ids), 3), np.float32)
    weights[:, 0] = 1.0
    return SurfacePoints(triangles, weights)


def _landmarks478(mesh: Mesh, points68: SurfacePoints) -> SurfacePoints:
    if LANDMARKS_478.is_file():
        with open_npz(LANDMARKS_478) as data:
            return SurfacePoints(
                data["landmarks478_triangles"].astype(np.int32), data["landmarks478_weights"].astype(np.float32)
            )
    # While the table is being derived (which needs this head): the chin everywhere but at the irises.
    ids = [int(points68.triangles[8, 0])] * 468 + appearance.iris_ids(mesh, False) + appearance.iris_ids(mesh, True)
    return _at_vertices(mesh, ids)


def _skin(mesh: Mesh, masks: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """((V, 3) mean log albedo, (k, V, 3) basis): the skin prior on skin, paint on brows, lips, eyes and mouth."""
    from facejax.models.skin import skin_prior

    mean, basis = skin_prior(jnp.asarray(mesh.vertices), {k: jnp.asarray(m) for k, m in masks.items()})
    albedo = appearance.mean_albedo(mesh, masks, np.exp(np.asarray(mean, np.float64)))
    return np.log(np.clip(albedo, 1e-3, 0.98)).astype(np.float32), np.asarray(basis, np.float32)


@functools.cache
def generic_head() -> MorphableHead:
    """The built-in head, made by our own code: about 7,000 vertices, 68 identity modes, the 52 ARKit expressions.

    Metres, head frame, the origin near the middle of the head. The arrays are made once per process.
    """
    mesh = build.load()
    masks = appearance.regions(mesh)
    missing = set(REGIONS) - set(masks)
    assert not missing, f"regions without a mask: {sorted(missing)}"
    identity_basis, pivot_basis, _ = identity.modes(mesh)
    expression_basis = expressions.displacements(mesh)
    skin_mean, skin_basis = _skin(mesh, masks)
    specular, roughness = appearance.specular_and_roughness(mesh, masks)
    ball = mesh.part == build.EYEBALL
    left = mesh.vertices[:, 0] > 0
    eye = sculpt.EYE * 1e-3
    points68 = landmarks68(mesh)
    points478 = _landmarks478(mesh, points68)
    digest = hashlib.sha256(f"generic {VERSION}".encode())
    for array in (mesh.vertices, mesh.faces, mesh.uv, mesh.uv_faces, points478.triangles, points478.weights):
        digest.update(np.ascontiguousarray(array).tobytes())
    params = MorphableParams(
        mean=jnp.asarray(mesh.vertices),
        identity_basis=jnp.asarray(identity_basis),
        expression_basis=jnp.asarray(expression_basis),
        skin_mean=jnp.asarray(skin_mean),
        skin_basis=jnp.asarray(skin_basis),
        eye_weight=jnp.asarray(np.column_stack([ball & left, ball & ~left]).astype(np.float32)),
        eye_pivot=jnp.asarray(np.stack([eye, eye * sculpt.FLIP]).astype(np.float32)),
        eye_pivot_basis=jnp.asarray(pivot_basis),
        specular=jnp.asarray(specular),
        roughness=jnp.asarray(roughness),
    )
    return MorphableHead(
        name="generic",
        sha256=digest.hexdigest(),
        params=params,
        topology=Topology(faces=mesh.faces, uv=mesh.uv, uv_faces=mesh.uv_faces, n_vertices=len(mesh.vertices)),
        expression_names=expressions.ARKIT_NAMES,
        landmarks68=points68,
        landmarks478=points478,
        regions=masks,
        mirror=mesh.mirror,
    )
