"""Direct light with cast shadows by Monte Carlo, in the form of Dib et al. (ICCV 2021): K noisy samples per pixel.

Half of the samples are drawn from the map of the light (luminance times solid angle), half from the surface (cosine and
facets), stratified, and weighed by the balance heuristic. Which directions are drawn, their densities and visibility
are constants for derivatives; radiance, BRDF, normals and colours are differentiated, which is unbiased for all of
them, silhouettes and the edges of shadows left out.

Visibility of a drawn direction is that of the nearest one in a table at vertices, interpolated over the triangle. So a
sample costs a lookup instead of a ray, one table serves all steps until the caller makes a new one, and edges of
shadows are as fine as the table's directions (13 degrees apart with 256, 6 with 1,024).
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from facejax.geometry.cameras import project, to_camera_frame
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import Topology, edge_neighbours, normalise, vertex_normals
from facejax.geometry.records import Camera, Face, Image, Pose, PRNGKey
from facejax.renderers.checks import check_known_light, check_scene, check_topology
from facejax.renderers.directional_albedo import check_energy, diffuse_share
from facejax.renderers.lights import (
    Environment,
    Light,
    NearLights,
    environment_directions,
    sh_to_environment,
    solid_angles,
    sphere_directions,
)
from facejax.renderers.microfacet import facet_density, specular_from_cosines
from facejax.renderers.raster import antialias, interpolate, rasterise
from facejax.renderers.texture import sample_texture
from facejax.renderers.visibility import RESOLUTION, SAMPLES, distant_visibility

_HIGHEST = jax.lax.Precision.HIGHEST
_GOLDEN = (math.sqrt(5) - 1) / 2
_TABLE = (64, 128)  # rows and columns of the map from directions to the nearest one of a set

OpenShare = Callable[[Float[Array, "p k 3"]], Float[Array, "p k"]]
"""Visibility at each point of directions that are its own."""


def monte_carlo_light(
    key: PRNGKey,
    normals: Float[Array, "p 3"],
    to_eye: Float[Array, "p 3"],
    specular: Float[Array, "p"],
    roughness: Float[Array, "p"],
    light: Environment,
    open_share: OpenShare | None = None,
    *,
    samples: int = 8,
    distribution: str = "ggx",
    energy: str = "additive",
) -> tuple[Float[Array, "p 3"], Float[Array, "p 3"]]:
    """(irradiance / pi, specular radiance) at points, an unbiased estimate whose variance falls as 1 / samples.

    normals, to_eye and light in one frame. light: each texel counts as one even patch of the sky. open_share: None
    leaves shadows out. samples: an even number. energy: of the two terms together, see `diffuse_share`. Raises
    `InputError` for others.
    """
    check_energy(energy, distribution)
    if samples < 2 or samples % 2:
        raise InputError(f"Samples are drawn in halves, from light and surface, so give an even number, got {samples}.")
    half = samples // 2
    n, eye, s, alpha = (jax.lax.stop_gradient(x) for x in (normals, to_eye, specular, roughness))
    sky = _Sky.of(light)
    share = jnp.where(s > 0, 0.5, 0.0)  # of the surface's samples, those from facets
    keys = jax.random.split(key)
    towards = jnp.concatenate(
        [sky.draw(keys[0], n.shape[0], half), _draw_surface(keys[1], n, eye, alpha, share, half, distribution)], axis=1
    )
    texel = sky.texel_of(towards)
    density = 0.5 * (sky.density[texel] + _surface_density(towards, n, eye, alpha, share, distribution))
    seen = 1.0 if open_share is None else open_share(towards)
    weight = jax.lax.stop_gradient(seen / (samples * jnp.maximum(density, 1e-12)))
    towards = jax.lax.stop_gradient(towards)

    cos_light, cos_eye = _dots(towards, normals), jnp.sum(normals * to_eye, axis=-1, keepdims=True)
    gloss = specular_from_cosines(
        cos_light,
        _dots(towards, to_eye),
        cos_eye,
        specular[:, None],
        roughness[:, None],
        distribution,
    )
    arriving = light.radiance.reshape(-1, 3)[texel] * weight[..., None]
    matt = jnp.maximum(cos_light, 0.0) / math.pi
    if energy != "additive":
        matt = matt * diffuse_share(energy, specular[:, None], roughness[:, None], cos_eye, cos_light)
    return jnp.sum(matt[..., None] * arriving, axis=1), jnp.sum(gloss[..., None] * arriving, axis=1)


def table_lookup(
    visible: Float[Array, "rows d"],
    directions: np.ndarray,
    rotation: Float[Array, "3 3"],
    corners: tuple[Int[Array, "p 3"], Float[Array, "p 3"]] | None = None,
) -> OpenShare:
    """Visibility of the nearest direction of a table, for directions in the CAMERA frame.

    directions: (d, 3) of the table, head frame. rotation: of the pose. corners: (vertex ids, barycentric weights) of
    points on triangles when the table is one of vertices; None: its rows are the points.
    """
    nearest = jnp.asarray(_nearest(np.ascontiguousarray(directions, np.float32).tobytes()))

    def look(towards: Array) -> Array:
        at_head = jnp.matmul(towards, rotation, precision=_HIGHEST)
        column = nearest[_texel(at_head, *_TABLE)]
        if corners is None:
            return jnp.take_along_axis(visible, column, axis=1)
        ids, weights = corners
        return sum(weights[:, i, None] * visible[ids[:, i, None], column] for i in range(3))  # type: ignore[return-value]

    return look


@dataclasses.dataclass(frozen=True, eq=False)
class MonteCarloRender:
    """A `Render` by Monte Carlo; made by `make_monte_carlo_renderer`."""

    topology: Topology
    size: tuple[int, int]
    samples: int
    directions: np.ndarray
    """(d, 3) of visibility tables, head frame."""
    distribution: str
    neighbours: np.ndarray
    cull: bool
    depth_samples: int
    resolution: int
    energy: str = "additive"
    """Of diffuse and specular light together, see `diffuse_share`."""

    def visibility_of(self, vertices: Float[Array, "v 3"]) -> Float[Array, "v d"]:
        """The visibility table that a call with these vertices (head frame) would make, to be kept for later calls."""
        options = {"samples": self.depth_samples, "resolution": self.resolution}
        return distant_visibility(vertices, self.topology.faces, self.directions, **options)

    def __call__(
        self,
        face: Face,
        light: Light,
        pose: Pose,
        camera: Camera,
        key: PRNGKey | None = None,
        *,
        visibility: Float[Array, "v d"] | None = None,
    ) -> Image:
        """A noisy picture. key: must be given. visibility: a table from `visibility_of`; None makes one now."""
        if key is None:
            raise InputError("The Monte Carlo renderer draws random numbers: give it a `key`.")
        if isinstance(light, NearLights):
            raise InputError(
                "The Monte Carlo renderer draws directions of distant light, got lamps: use `make_shadowed_renderer`."
            )
        check_scene(self.topology, face, pose, camera)
        check_known_light(light)
        if not isinstance(light, Environment):
            light = sh_to_environment(light)
        if visibility is None:
            visibility = self.visibility_of(face.vertices)
        faces = self.topology.faces
        in_camera = to_camera_frame(face.vertices, pose)
        on_image = jnp.concatenate([project(in_camera, camera), in_camera[:, 2:]], axis=-1)
        fragments = rasterise(on_image, faces, self.size, cull=self.cull)
        covered = (fragments.triangle >= 0).reshape(-1, 1)
        turned = jnp.matmul(vertex_normals(face.vertices, faces), pose.rotation.T, precision=_HIGHEST)
        stack = jnp.concatenate(
            [in_camera, turned, face.albedo, face.specular[:, None], face.roughness[:, None]], axis=-1
        )
        at = interpolate(stack, fragments, faces).reshape(-1, stack.shape[-1])
        # off the head any surface does, but none that makes NaN
        at = jnp.where(covered, at, jnp.array([0.0, 0, 1, 0, 0, -1, 0, 0, 0, 0, 1]))
        ids = jnp.asarray(faces)[jnp.maximum(fragments.triangle.reshape(-1), 0)]
        look = table_lookup(visibility, self.directions, pose.rotation, (ids, fragments.barycentric.reshape(-1, 3)))
        matt, gloss = monte_carlo_light(
            key,
            normalise(at[:, 3:6]),
            normalise(-at[:, :3]),
            at[:, 9],
            at[:, 10],
            light,
            look,
            samples=self.samples,
            distribution=self.distribution,
            energy=self.energy,
        )
        uv = interpolate(jnp.asarray(self.topology.uv), fragments, self.topology.uv_faces)
        texture = sample_texture(face.texture, uv).reshape(-1, 3)
        gloss = jnp.where(at[:, 9:10] > 0, gloss, 0.0)  # a surface without specular reflectance has no lobe at all
        colour = jnp.where(covered, at[:, 6:9] * texture * matt + gloss, 0.0)
        whole = jnp.concatenate([colour, covered.astype(colour.dtype)], axis=-1).reshape(*self.size, 4)
        whole = antialias(whole, fragments, on_image, faces, self.neighbours)
        return Image(colour=whole[..., :3], coverage=whole[..., 3], depth=fragments.depth)


def make_monte_carlo_renderer(
    topology: Topology,
    size: tuple[int, int],
    *,
    samples: int = 8,
    directions: int = 1024,
    distribution: str = "ggx",
    energy: str = "additive",
    cull: bool = True,
    depth_samples: int = SAMPLES,
    resolution: int = RESOLUTION,
) -> MonteCarloRender:
    """A `render` by Monte Carlo for one mesh topology and image size (height, width).

    samples: per pixel, even. directions: of the visibility table. depth_samples, resolution: of its depth maps. energy:
    "additive", or, of GGX facets, "dimmed" or "coupled", with which no surface returns more than it gets
    (`diffuse_share`). Raises `InputError` for others.
    """
    check_energy(energy, distribution)
    check_topology(topology, size)
    return MonteCarloRender(
        topology=topology,
        size=size,
        samples=samples,
        directions=sphere_directions(directions),
        distribution=distribution,
        neighbours=edge_neighbours(topology.faces),
        cull=cull,
        depth_samples=depth_samples,
        resolution=resolution,
        energy=energy,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Sky:
    """Drawing directions from a map."""

    height: int
    width: int
    cumulative: Array
    """(texels,) of probability."""
    density: Array
    """(texels,) per steradian."""

    @classmethod
    def of(cls, light: Environment) -> "_Sky":
        height, width = light.radiance.shape[:2]
        area = jnp.asarray(solid_angles(height, width)).reshape(-1)
        luminance = jnp.matmul(
            jax.lax.stop_gradient(light.radiance).reshape(-1, 3),
            jnp.array([0.2126, 0.7152, 0.0722]),
            precision=_HIGHEST,
        )
        energy = jnp.maximum(luminance, 0.0) * area
        total = jnp.sum(energy)
        share = jnp.where(total > 0, energy / jnp.where(total > 0, total, 1.0), area / (4 * math.pi))
        return cls(height=height, width=width, cumulative=jnp.cumsum(share), density=share / area)

    def draw(self, key: PRNGKey, points: int, count: int) -> Array:
        u = jax.random.uniform(key, (3, points, count))
        place = (jnp.arange(count) + u[0]) / count * self.cumulative[-1]
        texel = jnp.searchsorted(self.cumulative, place, side="right")
        texel = jnp.minimum(texel, self.cumulative.shape[0] - 1)
        edges = jnp.cos(math.pi * jnp.arange(self.height + 1) / self.height)
        row, column = texel // self.width, texel % self.width
        down = edges[row] + u[1] * (edges[row + 1] - edges[row])  # cosine from straight up, which is -y
        azimuth = 2 * math.pi * (column + u[2]) / self.width
        across = jnp.sqrt(jnp.maximum(1 - down**2, 0.0))
        return jnp.stack([-across * jnp.sin(azimuth), -down, -across * jnp.cos(azimuth)], axis=-1)

    def texel_of(self, towards: Array) -> Array:
        return _texel(towards, self.height, self.width)


def _texel(towards: Array, height: int, width: int) -> Array:
    """Flat id of the texel of a map that holds a direction, see `Environment`."""
    row = jnp.arccos(jnp.clip(-towards[..., 1], -1.0, 1.0)) * (height / math.pi)
    column = (math.pi + jnp.arctan2(towards[..., 0], towards[..., 2])) * (width / (2 * math.pi))
    row = jnp.clip(row.astype(jnp.int32), 0, height - 1)
    return row * width + jnp.clip(column.astype(jnp.int32), 0, width - 1)


@functools.lru_cache(maxsize=4)
def _nearest(packed: bytes) -> np.ndarray:
    directions = np.frombuffer(packed, np.float32).reshape(-1, 3)
    cells = environment_directions(*_TABLE).reshape(-1, 3)
    return np.argmax(cells @ directions.T, axis=1).astype(np.int32)


def _dots(towards: Array, one: Array) -> Array:
    return jnp.sum(towards * one[:, None], axis=-1)


def _frame(normals: Array) -> tuple[Array, Array]:
    """Two unit vectors across each unit normal (Duff et al. 2017)."""
    x, y, z = normals[:, 0], normals[:, 1], normals[:, 2]
    sign = jnp.where(z >= 0, 1.0, -1.0)
    a = -1 / (sign + z)
    b = x * y * a
    return (
        jnp.stack([1 + sign * x**2 * a, sign * b, -sign * x], axis=-1),
        jnp.stack([b, sign + y**2 * a, -y], axis=-1),
    )


def _draw_surface(
    key: PRNGKey, normals: Array, to_eye: Array, alpha: Array, share: Array, count: int, distribution: str
) -> Array:
    """Directions (p, count, 3): a share of them mirrored in facets, the others by their cosine to the normal."""
    points = normals.shape[0]
    keys = jax.random.split(key)
    u = (jnp.arange(count) + jax.random.uniform(keys[0], (points, count))) / count
    turn = (jnp.arange(count) * _GOLDEN + jax.random.uniform(keys[1], (points, 1))) % 1.0
    share, alpha = share[:, None], alpha[:, None]
    facet = u < share
    u = jnp.where(facet, u / jnp.maximum(share, 1e-6), (u - share) / (1 - share))
    u = jnp.clip(u, 0.0, 1 - 1e-6)
    tangent2 = alpha**2 * u / (1 - u) if distribution == "ggx" else -(alpha**2) * jnp.log(1 - u)
    cosine2 = jnp.where(facet, 1 / (1 + tangent2), 1 - u)
    up, across = jnp.sqrt(cosine2), jnp.sqrt(jnp.maximum(1 - cosine2, 0.0))
    right, forward = _frame(normals)
    way = (
        (across * jnp.cos(2 * math.pi * turn))[..., None] * right[:, None]
        + (across * jnp.sin(2 * math.pi * turn))[..., None] * forward[:, None]
        + up[..., None] * normals[:, None]
    )
    mirrored = 2 * _dots(way, to_eye)[..., None] * way - to_eye[:, None]
    return normalise(jnp.where(facet[..., None], mirrored, way))


def _surface_density(
    towards: Array, normals: Array, to_eye: Array, alpha: Array, share: Array, distribution: str
) -> Array:
    """Density per steradian of `_draw_surface`."""
    cosine = _dots(towards, normals)
    half = normalise(towards + to_eye[:, None])
    cos_h, between = _dots(half, normals), _dots(half, to_eye)
    facets = facet_density(cos_h, alpha[:, None], distribution) * jnp.maximum(cos_h, 0.0)
    facets = facets / jnp.maximum(4 * between, 1e-6)
    return share[:, None] * facets + (1 - share[:, None]) * jnp.maximum(cosine, 0.0) / math.pi
