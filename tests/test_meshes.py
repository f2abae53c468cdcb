"""Meshes: normals of shapes whose normals are known, points on surfaces, and neighbours across edges."""

import jax
import jax.numpy as jnp
import numpy as np
import trimesh

from facejax.geometry.meshes import (
    Topology,
    barycentric_points,
    edge_neighbours,
    face_normals,
    normalise,
    vertex_normals,
)

TETRAHEDRON = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]], dtype=np.int32)


def sphere(radius: float = 0.1) -> tuple[jax.Array, np.ndarray]:
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=radius)
    return jnp.array(mesh.vertices, dtype=jnp.float32), np.asarray(mesh.faces, dtype=np.int32)


def plain_neighbours(faces: np.ndarray) -> np.ndarray:
    """The same as `edge_neighbours` by search, as a judge."""
    result = np.full(faces.shape, -1)
    for t, face in enumerate(faces):
        for e in range(3):
            edge = set(face) - {face[e]}
            others = [set(g) - edge for u, g in enumerate(faces) if u != t and edge <= set(g)]
            if len(others) == 1:
                result[t, e] = others[0].pop()
    return result


def test_vertex_normals_of_a_sphere_point_outwards():
    vertices, faces = sphere()
    normals = vertex_normals(vertices, faces)
    cosine = jnp.sum(normals * vertices / 0.1, axis=1)
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 1  # the icosphere of 1,280 triangles, weighted by area
    np.testing.assert_allclose(jnp.linalg.norm(normals, axis=1), 1, atol=1e-6)


def test_face_normals_have_twice_the_area():
    vertices, faces = sphere()
    mesh = trimesh.Trimesh(np.asarray(vertices), faces, process=False)
    found = np.asarray(face_normals(vertices, faces))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 2 * mesh.area_faces, rtol=2e-3)
    np.testing.assert_allclose(np.asarray(normalise(jnp.array(found))), mesh.face_normals, atol=2e-3)


def test_normals_do_not_depend_on_scale():
    """Triangles of a micrometre have normals, too: squares of squares must not fall out of float32."""
    vertices, faces = sphere(1.0)
    np.testing.assert_allclose(vertex_normals(vertices * 2.0**-16, faces), vertex_normals(vertices, faces), atol=1e-6)


def test_a_triangle_without_area_leaves_normals_and_gradients_finite():
    vertices, faces = jnp.zeros((3, 3)), np.array([[0, 1, 2]], dtype=np.int32)
    np.testing.assert_array_equal(vertex_normals(vertices, faces), np.zeros((3, 3)))
    np.testing.assert_array_equal(jax.grad(lambda v: vertex_normals(v, faces).sum())(vertices), np.zeros((3, 3)))
    np.testing.assert_array_equal(normalise(jnp.zeros((2, 3))), np.zeros((2, 3)))


def test_normalise_gradient_is_across_the_vector():
    v = jnp.array([0.3, -0.4, 1.2])
    unit = np.asarray(normalise(v))
    expected = (np.eye(3) - np.outer(unit, unit)) / np.linalg.norm(v)
    np.testing.assert_allclose(jax.jacrev(normalise)(v), expected, atol=1e-6)


def test_barycentric_points():
    vertices, faces = sphere()
    weights = np.random.default_rng(0).dirichlet(np.ones(3), len(faces)).astype(np.float32)
    found = barycentric_points(vertices, faces, weights)
    expected = np.stack([w @ np.asarray(vertices)[f] for w, f in zip(weights, faces, strict=True)])
    np.testing.assert_allclose(found, expected, atol=1e-7)
    corner = barycentric_points(vertices, faces[:1], np.float32([[0, 1, 0]]))
    np.testing.assert_array_equal(corner[0], vertices[faces[0, 1]])


def test_edge_neighbours_of_a_closed_mesh():
    found = edge_neighbours(TETRAHEDRON)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, plain_neighbours(TETRAHEDRON))
    _, faces = sphere()
    assert (edge_neighbours(faces) >= 0).all()
    np.testing.assert_array_equal(edge_neighbours(faces[:80]), plain_neighbours(faces[:80]))


def test_edge_neighbours_of_an_open_mesh():
    #  2 - 3
    #  | \ |   two triangles share the edge 1-2
    #  0 - 1
    faces = np.array([[0, 1, 2], [3, 2, 1]], dtype=np.int32)
    np.testing.assert_array_equal(edge_neighbours(faces), [[3, -1, -1], [0, -1, -1]])
    np.testing.assert_array_equal(edge_neighbours(faces[:, [1, 2, 0]]), [[-1, -1, 3], [-1, -1, 0]])


def test_edge_neighbours_where_three_triangles_share_an_edge():
    faces = np.array([[0, 1, 2], [1, 0, 3], [0, 1, 4]], dtype=np.int32)  # all three on the edge 0-1
    np.testing.assert_array_equal(edge_neighbours(faces), np.full((3, 3), -1))
    fan = np.array([[0, 1, 2], [1, 0, 3], [0, 1, 4], [2, 1, 5]], dtype=np.int32)  # the edge 1-2 is an ordinary one
    np.testing.assert_array_equal(edge_neighbours(fan), plain_neighbours(fan))


def test_edge_neighbours_of_no_triangles():
    assert edge_neighbours(np.zeros((0, 3), dtype=np.int32)).shape == (0, 3)


def test_topology_is_static_under_jit():
    vertices, faces = sphere()
    topology = Topology(faces=faces, uv=np.zeros((1, 2)), uv_faces=np.zeros_like(faces), n_vertices=len(vertices))
    assert topology.n_faces == len(faces)
    traces = []

    def normals(v: jax.Array, t: Topology) -> jax.Array:
        traces.append(1)
        return vertex_normals(v, t.faces)

    jitted = jax.jit(normals, static_argnums=1)
    jitted(vertices, topology)
    jitted(vertices + 1, topology)
    assert len(traces) == 1
