"""A small head for tests: an ellipsoid of skin with UV seams, two eyeballs, teeth, a few ARKit-named expressions."""

import jax
import jax.numpy as jnp
import numpy as np

from facejax.data.results import TrackResult, assemble
from facejax.geometry.meshes import SurfacePoints, Topology
from facejax.geometry.records import Camera, Pose
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.models.morphable import Expression, Identity, MorphableHead, MorphableParams

NAMES = ("jawOpen", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookOutLeft", "eyeLookUpRight", "mouthSmile_custom")


def ball(centre, radii, rows, columns, box):
    """A closed ellipsoid: vertices shared across the seam of its UV chart, which fills `box` = (u0, v0, u1, v1)."""
    phi = np.linspace(0, 2 * np.pi, columns + 1)  # seam at the back, u grows towards the subject's left
    theta = np.linspace(0, np.pi, rows + 1)
    grid = np.arange(rows - 1)[:, None] * columns + np.arange(columns + 1) % columns + 2
    vertex = np.concatenate([np.zeros((1, columns + 1), int), grid, np.ones((1, columns + 1), int)])
    uv_id = np.arange((rows + 1) * (columns + 1)).reshape(rows + 1, columns + 1)
    t, p = np.meshgrid(theta, phi, indexing="ij")
    xyz = np.stack([-np.sin(t) * np.sin(p), np.cos(t), -np.sin(t) * np.cos(p)], axis=-1) * radii + centre
    vertices = np.zeros((2 + (rows - 1) * columns, 3))
    vertices[vertex] = xyz
    u, v = p / (2 * np.pi), 1 - t / np.pi
    uv = np.stack([box[0] + u * (box[2] - box[0]), box[1] + v * (box[3] - box[1])], axis=-1).reshape(-1, 2)
    faces, uv_faces = [], []
    for i in range(rows):
        for j in range(columns):
            quad = [(i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)]
            for corners in ((0, 1, 2), (0, 2, 3)):
                ids = [vertex[quad[c]] for c in corners]
                if len(set(ids)) == 3:
                    faces.append(ids)
                    uv_faces.append([uv_id[quad[c]] for c in corners])
    return vertices, np.array(faces), uv, np.array(uv_faces)


def toy_head(rows=24, columns=32) -> MorphableHead:
    rng = np.random.default_rng(3)
    centres = np.array([[0.03, 0.03, 0.085], [-0.03, 0.03, 0.085]])
    pieces = [
        ball((0, 0, 0), (0.08, 0.11, 0.09), rows, columns, (0.01, 0.01, 0.69, 0.99)),
        ball(centres[0], (0.012,) * 3, 10, 12, (0.71, 0.51, 0.99, 0.99)),
        ball(centres[1], (0.012,) * 3, 10, 12, (0.71, 0.26, 0.99, 0.49)),
        ball((0, -0.04, 0.07), (0.02, 0.005, 0.01), 6, 8, (0.71, 0.01, 0.99, 0.24)),
    ]
    starts = np.cumsum([0] + [len(p[0]) for p in pieces])
    uv_starts = np.cumsum([0] + [len(p[2]) for p in pieces])
    v = np.concatenate([p[0] for p in pieces]).astype(np.float32)
    part = np.repeat(np.arange(4), np.diff(starts))
    faces = np.concatenate([p[1] + s for p, s in zip(pieces, starts, strict=False)]).astype(np.int32)
    uv_faces = np.concatenate([p[3] + s for p, s in zip(pieces, uv_starts, strict=False)]).astype(np.int32)
    topology = Topology(
        faces=faces, uv=np.concatenate([p[2] for p in pieces]).astype(np.float32), uv_faces=uv_faces, n_vertices=len(v)
    )
    skin, teeth = part == 0, part == 3
    basis = np.zeros((len(NAMES), len(v), 3), dtype=np.float32)
    low = skin & (v[:, 1] < -0.02) & (v[:, 2] > 0)
    basis[0, low | teeth, 1] = -0.02
    for k, side in ((1, 1), (2, -1), (3, 1), (4, -1)):
        near = skin & (np.hypot(v[:, 0] - side * 0.03, v[:, 1] - 0.03) < 0.03) & (v[:, 2] > 0)
        basis[k, near] = rng.normal(scale=0.003, size=(near.sum(), 3))
    basis[5, low] = rng.normal(scale=0.003, size=(low.sum(), 3))
    identity_basis = rng.normal(scale=0.001, size=(3, len(v), 3)).astype(np.float32)
    eye_weight = np.stack([part == 1, part == 2], axis=-1).astype(np.float32)
    colour = np.array([[0.5, 0.3, 0.2], [0.8, 0.8, 0.8], [0.8, 0.8, 0.8], [0.7, 0.7, 0.6]])[part]
    front = np.flatnonzero((v[faces].mean(1)[:, 2] > 0.02) & (part[faces[:, 0]] == 0))
    picks = front[np.arange(478) % len(front)]
    points = SurfacePoints(triangles=faces[picks], weights=rng.dirichlet(np.ones(3), 478).astype(np.float32))
    return MorphableHead(
        name="toy",
        sha256="0" * 64,
        params=MorphableParams(
            mean=jnp.asarray(v),
            identity_basis=jnp.asarray(identity_basis),
            expression_basis=jnp.asarray(basis),
            skin_mean=jnp.log(jnp.asarray(colour, dtype=jnp.float32)),
            skin_basis=jnp.ones((2, len(v), 3)) * 0.1,
            eye_weight=jnp.asarray(eye_weight),
            eye_pivot=jnp.asarray(centres, dtype=jnp.float32),
            eye_pivot_basis=jnp.asarray(rng.normal(scale=0.001, size=(3, 2, 3)), dtype=jnp.float32),
            specular=jnp.full(len(v), 0.03),
            roughness=jnp.where(jnp.asarray(skin), 0.25, 0.04),
        ),
        topology=topology,
        expression_names=NAMES,
        landmarks68=SurfacePoints(triangles=points.triangles[:68], weights=points.weights[:68]),
        landmarks478=points,
        regions={"skin": skin.astype(np.float32), "teeth": teeth.astype(np.float32)},
        mirror=np.arange(len(v)),
    )


def toy_codes(head, n_frames, seed=0):
    """A person and `n_frames` of motion in front of a camera of 640 x 480 pixels: (shared, frames, poses, camera)."""
    rng = np.random.default_rng(seed)
    shared = Identity(
        shape=jnp.asarray(rng.normal(size=3), dtype=jnp.float32),
        skin=jnp.array([0.3, -0.5]),
        texture=jnp.asarray(rng.uniform(0.8, 1.2, (16, 16, 3)), dtype=jnp.float32),
    )
    frames = jax.vmap(Expression)(  # batches of records are made by vmap: their types speak of one frame
        jnp.asarray(rng.uniform(0, 0.6, (n_frames, len(NAMES))), dtype=jnp.float32),
        jnp.asarray(rng.uniform(-0.4, 0.4, (n_frames, 2, 2)), dtype=jnp.float32),
        jnp.asarray(rng.uniform(0, 1, (n_frames, 2)), dtype=jnp.float32),
    )
    upright = jnp.diag(jnp.array([1.0, -1.0, -1.0]))  # head frame to camera frame of a head that looks at the camera
    turns = jax.vmap(rotvec_to_matrix)(jnp.asarray(rng.normal(scale=0.3, size=(n_frames, 3)), dtype=jnp.float32))
    away = jnp.asarray(rng.normal(scale=0.02, size=(n_frames, 3)), dtype=jnp.float32) + jnp.array([0.0, 0.0, 0.6])
    camera = Camera(focal=jnp.array([900.0, 900.0]), principal_point=jnp.array([320.0, 240.0]))
    return shared, frames, jax.vmap(Pose)(upright @ turns, away), camera


def toy_result(n_frames=5, seed=0, **changes) -> TrackResult:
    head = toy_head()
    shared, frames, poses, camera = toy_codes(head, n_frames, seed)
    fields = {
        "params": head.params,
        "code": shared,
        "frames": frames,
        "poses": poses,
        "light": np.tile(np.asarray(head.init_light()), (n_frames, 1, 1)),
        "camera": camera,
        "image_size": (640, 480),
        "time": np.arange(n_frames) / 25,
        "frame_ids": np.arange(n_frames),
        "landmarks_target": np.full((n_frames, 478, 2), np.nan, np.float32),
        "valid": np.ones(n_frames, bool),
        "status": np.zeros(n_frames, int),
        "status_names": ("ok", "no face"),
        "metrics": {"inner_face_percent": 0.9},
    }
    return assemble(head, **(fields | changes))
