"""Maps of a shape alone: ambient occlusion (how much of the sky each point sees) and thickness along the normal."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from facejax.geometry.errors import InputError
from facejax.geometry.meshes import Topology, normalise, vertex_normals
from facejax.renderers.lights import sphere_directions
from facejax.renderers.uv import Chart, at_texels, gutter_chart, texture_chart, texture_from
from facejax.renderers.visibility import RESOLUTION, SAMPLES, distant_visibility

_HIGHEST = jax.lax.Precision.HIGHEST
_PART = 64  # directions taken at once: a map of a million texels needs 256 MB for their table
_BLOCK = 64  # points tested against all triangles at once
_TOUCHING = 1e-4  # metres: a nearer triangle is the one that the point lies on


def sky_share(
    visible: Float[Array, "v d"], directions: Float[ArrayLike, "d 3"], normals: Float[Array, "v 3"]
) -> Float[Array, "v"]:
    """Ambient occlusion from a visibility table: mean visibility weighed by the cosine to the normal; 1 is open.

    What an even light's irradiance is multiplied by. directions: evenly spread on the sphere. 1 where there is no
    normal.
    """
    cosine = jnp.maximum(jnp.matmul(normals, jnp.asarray(directions).T, precision=_HIGHEST), 0.0)
    return _ratio(jnp.sum(visible * cosine, axis=-1), jnp.sum(cosine, axis=-1))


def _ratio(share: Array, whole: Array) -> Array:
    return jnp.where(whole > 0, share / jnp.where(whole > 0, whole, 1.0), 1.0)


def ambient_occlusion(
    vertices: Float[Array, "v 3"],
    faces: Int[Array, "t 3"] | np.ndarray,
    points: Float[Array, "p 3"] | None = None,
    normals: Float[Array, "p 3"] | None = None,
    *,
    directions: int = 256,
    samples: int = SAMPLES,
    resolution: int = RESOLUTION,
) -> Float[Array, "p"]:
    """`sky_share` of points (None: the vertices) on a mesh, without keeping the table. Carries no derivative."""
    points, normals = _on_mesh(vertices, faces, points, normals)
    up = sphere_directions(directions)[: directions // 2]
    share, whole = jnp.zeros(points.shape[0]), jnp.zeros(points.shape[0])
    for first in range(0, len(up), _PART // 2):
        half = up[first : first + _PART // 2]
        both = np.concatenate([half, -half])
        visible = distant_visibility(vertices, faces, both, points, normals, samples=samples, resolution=resolution)
        cosine = jnp.maximum(jnp.matmul(normals, both.T, precision=_HIGHEST), 0.0)
        share, whole = share + jnp.sum(visible * cosine, axis=-1), whole + jnp.sum(cosine, axis=-1)
    return jax.lax.stop_gradient(_ratio(share, whole))


def thickness(
    vertices: Float[Array, "v 3"],
    faces: Int[Array, "t 3"] | np.ndarray,
    points: Float[Array, "p 3"] | None = None,
    normals: Float[Array, "p 3"] | None = None,
    *,
    limit: float = 0.1,
) -> Float[Array, "p"]:
    """Metres from points (None: the vertices) along their inward normals to where the ray leaves the body.

    The nearest triangle that is crossed from inside counts, so an ear is thin though a head lies behind it. `limit`
    where that is farther away, or nowhere (through the open neck). Triangles with NaN corners or no area are skipped.
    Carries no derivative.

    Every ray is tested against every triangle, by their Plücker coordinates: that is matrix products. Triangles are
    widened by some micrometres, or rays that meet an edge could slip through by rounding.
    """
    if limit <= 0:
        raise InputError(f"Thickness needs a limit above 0 metres, got {limit}.")
    points, normals = _on_mesh(vertices, faces, points, normals)
    corners = vertices[jnp.asarray(faces)]
    centre = jnp.nan_to_num(jnp.mean(vertices, axis=0))
    whole = jnp.all(jnp.isfinite(corners), axis=(1, 2), keepdims=True)
    corners = jnp.where(whole, corners - centre, 0.0)  # small coordinates: moments lose no digits
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    plane = jnp.cross(b - a, c - a)
    edges = jnp.stack([jnp.concatenate([jnp.cross(p, q), q - p], axis=-1) for p, q in ((a, b), (b, c), (c, a))])
    height = jnp.sum(a * plane, axis=-1)
    slack = -1e-6 * jnp.max(jnp.sum(corners**2, axis=-1))  # square metres: what products of coordinates round to

    def block(part: tuple[Array, Array]) -> Array:
        origin, inward = part
        ray = jnp.concatenate([inward, jnp.cross(origin, inward)], axis=-1)
        side = jnp.matmul(edges, ray.T, precision=_HIGHEST)  # (3, t, points)
        leaving = jnp.matmul(plane, inward.T, precision=_HIGHEST)
        distance = (height[:, None] - jnp.matmul(plane, origin.T, precision=_HIGHEST)) / jnp.where(
            leaving > 0, leaving, 1.0
        )
        # inside a triangle the ray passes its three edges on one side; when it leaves that is the positive one
        hit = (leaving > 0) & jnp.all(side >= slack, axis=0) & (distance > _TOUCHING)
        return jnp.min(jnp.where(hit, distance, limit), axis=0, initial=limit)

    count = points.shape[0]
    origin, inward = (jnp.pad(x, ((0, -count % _BLOCK), (0, 0))) for x in (points - centre, -normals))
    blocks = jax.lax.map(block, (origin.reshape(-1, _BLOCK, 3), inward.reshape(-1, _BLOCK, 3)))
    return jax.lax.stop_gradient(blocks.reshape(-1)[:count])


def ambient_occlusion_map(
    vertices: Float[Array, "v 3"], topology: Topology, size: int, *, directions: int = 256
) -> Float[Array, "size size 1"]:
    """`ambient_occlusion` per texel, a rim outside the chart's seams included; 1 elsewhere."""
    chart, points, normals = _texel_points(vertices, topology, size)
    values = ambient_occlusion(vertices, topology.faces, points, normals, directions=directions)
    return texture_from(chart, values[:, None], background=1.0)


def thickness_map(
    vertices: Float[Array, "v 3"], topology: Topology, size: int, *, limit: float = 0.1
) -> Float[Array, "size size 1"]:
    """`thickness` per texel in metres, a rim outside the chart's seams included; `limit` elsewhere."""
    chart, points, normals = _texel_points(vertices, topology, size)
    values = thickness(vertices, topology.faces, points, normals, limit=limit)
    return texture_from(chart, values[:, None], background=limit)


def _texel_points(vertices: Array, topology: Topology, size: int) -> tuple[Chart, Array, Array]:
    inside = texture_chart(topology, size)
    chart = inside.joined(gutter_chart(topology, inside))
    stack = jnp.concatenate([vertices, vertex_normals(vertices, topology.faces)], axis=-1)
    at = at_texels(stack, chart.triangles, chart.weights)
    return chart, at[:, :3], normalise(at[:, 3:])


def _on_mesh(
    vertices: Array, faces: Array | np.ndarray, points: Array | None, normals: Array | None
) -> tuple[Array, Array]:
    if (points is None) != (normals is None):
        raise InputError("Points and normals go together: give both, or neither for the mesh's vertices.")
    if points is None or normals is None:
        return vertices, vertex_normals(vertices, faces)
    return points, normals
