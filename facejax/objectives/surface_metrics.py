"""How far one surface is from another: distances along rays and to triangles, and angles between normals.

Plain numpy in float64, on the host. Distances are in the unit of the vertices (metres here), angles in radians.
`facejax.objectives.face_protocols` scores faces with these as NoW and REALY do.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Float, Int

from facejax.geometry.errors import InputError
from facejax.objectives.metrics import SurfaceSearch

_SLACK = 1e-9
"""Of barycentric weights, so that no ray slips through between two triangles."""


@dataclasses.dataclass(frozen=True, eq=False)
class Surface:
    """A triangle mesh to be measured. Raises `InputError` for one without triangles or with values that are none."""

    vertices: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "t 3"]
    """Vertex ids, counter-clockwise seen from outside. Triangles without area count as the lines or points they are."""

    def __post_init__(self) -> None:
        vertices, faces = np.asarray(self.vertices, np.float64), np.asarray(self.faces)
        if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1:] != (3,) or not len(faces):
            raise InputError(
                f"A surface is vertices (v, 3) and at least one triangle (t, 3), got {vertices.shape} and "
                f"{faces.shape}: check that a region or crop is not empty."
            )
        if faces.min() < 0 or faces.max() >= len(vertices):
            raise InputError(
                f"Triangles must name vertices from 0 to {len(vertices) - 1}, got {faces.min()} to {faces.max()}."
            )
        if not np.isfinite(vertices).all():
            raise InputError(f"Vertices must be finite, got {np.sum(~np.isfinite(vertices))} NaN or infinite numbers.")
        object.__setattr__(self, "vertices", vertices)
        object.__setattr__(self, "faces", faces)

    @functools.cached_property
    def search(self) -> SurfaceSearch:
        """Exact closest points on it; made once."""
        return SurfaceSearch(self.vertices, self.faces)

    @functools.cached_property
    def _triangle_normals(self) -> np.ndarray:
        """(t, 3), of twice the area's length."""
        a, b, c = (self.vertices[self.faces[:, i]] for i in range(3))
        return np.cross(b - a, c - a)

    def _summed(self, per_triangle: np.ndarray) -> np.ndarray:
        """Values of triangles added up at their corners."""
        total = np.zeros((len(self.vertices), *per_triangle.shape[1:]))
        for i in range(3):
            np.add.at(total, self.faces[:, i], per_triangle)
        return total

    @functools.cached_property
    def normals(self) -> Float[np.ndarray, "v 3"]:
        """Unit normals at vertices, the area-weighted mean over incident triangles; NaN where there is none."""
        return _unit(self._summed(self._triangle_normals))

    @functools.cached_property
    def areas(self) -> Float[np.ndarray, " v"]:
        """Area that belongs to each vertex, a third of its triangles'; they add up to the surface's."""
        return self._summed(np.linalg.norm(self._triangle_normals, axis=1) / 6)

    @functools.cached_property
    def on_border(self) -> Bool[np.ndarray, " v"]:
        """Whether a vertex is at an edge of one triangle only, or of no triangle."""
        edges = np.sort(self.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
        unique, count = np.unique(edges, axis=0, return_counts=True)
        border = np.ones(len(self.vertices), bool)
        border[self.faces] = False
        border[unique[count == 1]] = True
        return border

    def weights_at(
        self, points: Float[np.ndarray, "n 3"], triangles: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n 3"]:
        """Barycentric weights of points on triangles; on one without area, all weight on the nearest corner."""
        corners = self.vertices[self.faces[triangles]]
        p, e1, e2 = points - corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        d11, d12, d22 = _dot(e1, e1), _dot(e1, e2), _dot(e2, e2)
        p1, p2 = _dot(p, e1), _dot(p, e2)
        gram = d11 * d22 - d12**2
        flat = gram <= 1e-14 * d11 * d22
        safe = np.where(flat, 1.0, gram)
        u, v = (d22 * p1 - d12 * p2) / safe, (d11 * p2 - d12 * p1) / safe
        weights = np.clip(np.stack([1 - u - v, u, v], axis=1), 0, 1)
        nearest = np.argmin(np.linalg.norm(corners - points[:, None], axis=2), axis=1)
        weights[flat] = np.eye(3)[nearest[flat]]
        return weights / weights.sum(axis=1, keepdims=True)

    def normals_at(
        self, points: Float[np.ndarray, "n 3"], triangles: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n 3"]:
        """Unit normals of points on triangles, interpolated from the vertices; NaN where there is none."""
        mixed = self.weights_at(points, triangles)[..., None] * np.nan_to_num(self.normals[self.faces[triangles]])
        return _unit(mixed.sum(axis=1))


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", a, b)


def _unit(v: np.ndarray) -> np.ndarray:
    """Rows of length 1; NaN for those of no length."""
    length = np.linalg.norm(v, axis=1, keepdims=True)
    return v / np.where(length > 0, length, np.nan)


def angles_between(a: Float[np.ndarray, "n 3"], b: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
    """Angles between directions, radians in [0, pi], of any lengths; NaN where one is NaN or has no length.

    By the arc tangent, so small angles are exact, which the arc cosine of a product near 1 is not.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    angle = np.arctan2(np.linalg.norm(np.cross(a, b), axis=1), _dot(a, b))
    return np.where((_dot(a, a) > 0) & (_dot(b, b) > 0), angle, np.nan)


def normal_angles(surface: Surface, target: Surface, match: str = "vertices") -> Float[np.ndarray, " v"]:
    """Angle at each vertex of `surface` between its normal and the target's, radians; NaN where either has none.

    match: "vertices": vertex i corresponds to the target's vertex i; "closest": to the target's closest point, whose
    normal is interpolated. Both surfaces in one frame. Raises `InputError` for other numbers of vertices, or another
    `match`.
    """
    if match == "closest":
        return angles_between(surface.normals, target.normals_at(*target.search.nearest(surface.vertices)))
    if match != "vertices":
        raise InputError(f'Normals are compared at "vertices" or at the "closest" point, got {match!r}.')
    if len(surface.vertices) != len(target.vertices):
        raise InputError(
            f"Vertices that correspond must be equally many, got {len(surface.vertices)} and {len(target.vertices)}: "
            'use match="closest".'
        )
    return angles_between(surface.normals, target.normals)


def normal_error(surface: Surface, target: Surface, match: str = "vertices", area_weighted: bool = True) -> float:
    """Mean of `normal_angles`, radians, over vertices that have normals; each weighed by its area, or all the same.

    Raises `InputError` as `normal_angles` does, and when no vertex has a normal on both surfaces.
    """
    angles = normal_angles(surface, target, match)
    weight = np.where(np.isfinite(angles), surface.areas if area_weighted else 1.0, 0.0)
    if weight.sum() <= 0:
        raise InputError("No vertex has a normal on both surfaces: all their triangles are without area.")
    return float(weight @ np.nan_to_num(angles) / weight.sum())


def ray_distance(
    origins: Float[np.ndarray, "n 3"],
    directions: Float[np.ndarray, "n 3"],
    target: Surface,
    both_ways: bool = False,
) -> Float[np.ndarray, " n"]:
    """Distance along each ray to the first triangle it meets, from whichever side; infinite where it meets none.

    directions: of any length but 0. both_ways: also along the opposite direction, whichever is nearer. A ray in a
    triangle's plane does not meet it (Moeller and Trumbore 1997). Exact: triangles are looked for step by step along
    the ray. Raises `InputError` for directions without length.
    """
    origins, directions = np.asarray(origins, np.float64), np.asarray(directions, np.float64)
    length = np.linalg.norm(directions, axis=-1, keepdims=True)
    if not (length > 0).all():
        raise InputError(f"Rays need directions, got {np.sum(~(length > 0))} without length or NaN.")
    way = directions / length
    found = _first_hits(origins, way, target.search)
    return np.minimum(found, _first_hits(origins, -way, target.search)) if both_ways else found


def _first_hits(origins: np.ndarray, way: np.ndarray, search: SurfaceSearch) -> np.ndarray:
    corners = search.corners
    middle = corners.mean(axis=(0, 1))
    extent = np.linalg.norm(corners - middle, axis=2).max()
    end_of_mesh = np.linalg.norm(origins - middle, axis=1) + extent
    # steps as long as a triangle find few candidates; never so short that a ray takes more than some hundreds
    size = np.median(np.linalg.norm(corners - corners.mean(axis=1, keepdims=True), axis=2).max(axis=1))
    step = max(2 * size, end_of_mesh.max(initial=0.0) / 300)
    nearest, alive, start = np.full(len(origins), np.inf), np.arange(len(origins)), 0.0
    while len(alive):
        centre = origins[alive] + (start + step / 2) * way[alive]
        for rows, triangles in search.near(centre, np.full(len(alive), (1 + _SLACK) * step / 2)):
            ray = alive[rows]
            np.minimum.at(nearest, ray, _hits(origins[ray], way[ray], corners[triangles]))
        start += step
        alive = alive[(nearest[alive] > start) & (end_of_mesh[alive] > start)]
    return nearest


def _hits(origins: np.ndarray, way: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Distance along ray i to triangle i, infinite where they do not meet."""
    a, e1, e2 = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    p = np.cross(way, e2)
    determinant = _dot(e1, p)
    size = np.linalg.norm(e1, axis=1) * np.linalg.norm(e2, axis=1)
    meets = np.abs(determinant) > 1e-12 * size
    inverse = 1 / np.where(meets, determinant, 1.0)
    s = origins - a
    q = np.cross(s, e1)
    u, v, t = _dot(s, p) * inverse, _dot(way, q) * inverse, _dot(e2, q) * inverse
    meets &= (u >= -_SLACK) & (v >= -_SLACK) & (u + v <= 1 + _SLACK) & (t >= -_SLACK * np.sqrt(size))
    return np.where(meets, np.maximum(t, 0.0), np.inf)


def ray_or_closest_distance(surface: Surface, target: Surface, reach: float) -> Float[np.ndarray, " v"]:
    """Distance from each vertex to the target along its normal, in or out; to the closest point where none is met.

    The mesh error of Dib et al. 2021, appendix C (by intersections of rays and triangles; that rays go both ways, and
    what counts without a hit, is not printed there). reach: hits farther than this, such as the far side of the head,
    count as none; in the unit of the vertices. Both surfaces in one frame. Never less than `surface_distance`. Raises
    `InputError` for a reach that is not positive.
    """
    if not reach > 0:
        raise InputError(f"The reach of rays must be positive, in the unit of the vertices, got {reach}.")
    distance = np.linalg.norm(surface.vertices - target.search.closest(surface.vertices), axis=1)
    along = np.full(len(distance), np.inf)
    has = np.isfinite(surface.normals).all(axis=1)
    if has.any():
        along[has] = ray_distance(surface.vertices[has], surface.normals[has], target, both_ways=True)
    return np.where(along <= reach, np.maximum(along, distance), distance)
