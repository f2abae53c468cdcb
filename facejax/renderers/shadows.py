"""Self-shadowed shading: direct light on rough skin with cast shadows, summed over directions or lamps.

Distant light is gathered along one set of directions that is fixed in the HEAD frame, so a visibility table made once
serves every pose and every light; near lamps have tables of their own. Everything but visibility is exact and
differentiable. Visibility is a step function of geometry: it is computed without derivative, and the caller says when
(`visibility=None` computes it in this call; give a table from `visibility_of` to keep it for N steps).

All functions take arbitrary points with normals: vertices for a picture, texels for a map.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from facejax.geometry.cameras import to_camera_frame
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import Topology, normalise, vertex_normals
from facejax.geometry.records import Camera, Face, Image, Pose, PRNGKey
from facejax.renderers.checks import check_known_light, check_scene
from facejax.renderers.deferred import Render, make_renderer
from facejax.renderers.directional_albedo import check_energy, diffuse_share
from facejax.renderers.lights import (
    Environment,
    Light,
    NearLights,
    power_along,
    rotate_light,
    solid_angles,
    sphere_directions,
)
from facejax.renderers.microfacet import gather_light, specular_from_cosines
from facejax.renderers.sh import sh_basis
from facejax.renderers.visibility import RESOLUTION, SAMPLES, distant_visibility, lamp_visibility

_HIGHEST = jax.lax.Precision.HIGHEST


def shadowed_transfer(
    visible: Float[Array, "v d"],
    directions: Float[ArrayLike, "d 3"],
    normals: Float[Array, "v 3"],
    bands: int,
) -> Float[Array, "v b"]:
    """Radiance of a white Lambert surface (irradiance / pi), cast shadows included, per coefficient of a light.

    The self-shadowed twin of `irradiance_basis` (precomputed radiance transfer, Sloan et al. 2002): `transfer @ light`
    is the diffuse term, linear in coefficients, which may be negative in places. directions: evenly spread on the
    sphere; they, the normals and the light share one frame, that of the head if `visible` is to serve all poses (turn
    the light there by `rotate_light(light, pose.rotation.T)`).
    """
    towards = jnp.asarray(directions)
    cosine = jnp.maximum(jnp.matmul(normals, towards.T, precision=_HIGHEST), 0.0)
    return jnp.matmul(visible * cosine, sh_basis(towards, bands), precision=_HIGHEST) * (4 / towards.shape[0])


def head_power(light: Light, rotation: Float[Array, "3 3"], directions: np.ndarray) -> Float[Array, "d 3"]:
    """Radiance times solid angle that a light in the CAMERA frame sends along directions fixed in the HEAD frame.

    rotation: of the pose, head to camera. Differentiable in light and rotation. Spherical harmonics are cut off at 0.
    An environment is first averaged down to texels of about a third of the directions' distance, then turned; energy
    is kept per colour. Raises `InputError` for `NearLights`.
    """
    if not isinstance(light, Environment):
        return power_along(light, jnp.matmul(directions, rotation.T, precision=_HIGHEST))
    small = _reduced(light, rows=int(3 * math.pi / math.sqrt(4 * math.pi / len(directions))))
    turned = rotate_light(small, rotation.T)
    power = power_along(turned, directions)
    before, after = _energy(small), jnp.sum(power, axis=0)
    return power * jnp.where(after > 0, before / jnp.where(after > 0, after, 1.0), 0.0)


def _energy(light: Environment) -> Float[Array, "3"]:
    weights = solid_angles(*light.radiance.shape[:2])
    return jnp.sum(light.radiance * weights[..., None], axis=(0, 1))


def _reduced(light: Environment, rows: int) -> Environment:
    """The map with about `rows` rows or a few more, each texel the mean of a whole block of the old ones."""
    height, width = light.radiance.shape[:2]
    block = max(
        (b for b in range(1, height + 1) if height % b == 0 and width % b == 0 and height // b >= rows), default=1
    )
    if block == 1:
        return light
    weights = solid_angles(height, width)[..., None]

    def sums(x: Array | np.ndarray) -> Array:
        return jnp.asarray(x).reshape(height // block, block, width // block, block, -1).sum(axis=(1, 3))

    return Environment(radiance=sums(light.radiance * weights) / sums(weights))


def gather_lamps(
    points: Float[Array, "v 3"],
    normals: Float[Array, "v 3"],
    to_eye: Float[Array, "v 3"],
    specular: Float[Array, "v"],
    roughness: Float[Array, "v"],
    lamps: NearLights,
    visible: Float[Array, "v n"] | None = None,
    *,
    distribution: str = "ggx",
    energy: str = "additive",
) -> tuple[Float[Array, "v 3"], Float[Array, "v 3"]]:
    """(irradiance / pi, specular radiance) at points from lamps in the points' frame, the sum of f V (n . l)+ I / r².

    The near twin of `gather_light`; differentiable in everything but `visible`, which None leaves out. Lamps are taken
    one after the other, so memory does not grow with them. energy: of the two terms together, see `diffuse_share`.
    """
    check_energy(energy, distribution)
    seen = jnp.ones((points.shape[0], lamps.positions.shape[0])) if visible is None else visible

    @jax.checkpoint
    def add(sums: tuple[Array, Array], lamp: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        position, intensity, share = lamp
        away = position - points
        square = jnp.maximum(jnp.sum(away * away, axis=-1), 1e-8)  # nearer than 0.1 mm light does not grow
        to_lamp = away * jax.lax.rsqrt(square)[:, None]
        cosine, cos_eye = jnp.sum(normals * to_lamp, axis=-1), jnp.sum(normals * to_eye, axis=-1)
        gloss = specular_from_cosines(
            cosine,
            jnp.sum(to_lamp * to_eye, axis=-1),
            cos_eye,
            specular,
            roughness,
            distribution,
        )
        arriving = (share / square)[:, None] * intensity
        matt = jnp.maximum(cosine, 0.0) / math.pi
        if energy != "additive":
            matt = matt * diffuse_share(energy, specular, roughness, cos_eye, cosine)
        diffuse, shine = sums
        return (
            diffuse + matt[:, None] * arriving,
            shine + gloss[:, None] * arriving,
        ), None

    zero = jnp.zeros_like(points)
    items = (lamps.positions, lamps.intensity, jax.lax.stop_gradient(seen).T)
    return jax.lax.scan(add, (zero, zero), items)[0]


@dataclasses.dataclass(frozen=True, eq=False)
class ShadowedRender:
    """A `Render` with cast shadows; made by `make_shadowed_renderer`.

    `light` may be spherical harmonics (cut off at 0), an `Environment`, or `NearLights`, all in the camera frame.
    """

    topology: Topology
    directions: np.ndarray
    """(d, 3) in the head frame, in opposite pairs: what distant light is gathered along."""
    distribution: str
    samples: int
    resolution: int
    draw: Render
    """Draws pictures of what is given as `light`: (v, 6), diffuse and specular radiance at vertices."""
    energy: str = "additive"
    """Of diffuse and specular light together, see `diffuse_share`."""

    def visibility_of(
        self,
        vertices: Float[Array, "v 3"],
        light: Light | None = None,
        pose: Pose | None = None,
        points: Float[Array, "p 3"] | None = None,
        normals: Float[Array, "p 3"] | None = None,
    ) -> Float[Array, "p d"]:
        """The visibility table that a call with these vertices (head frame) would make, to be kept for later calls.

        For distant light (None, or any but lamps) it depends on the shape alone. For `NearLights` it has one column per
        lamp, and needs the pose. points, normals: receivers on the mesh in the head frame, such as texels; None: the
        vertices.
        """
        options = {"samples": self.samples, "resolution": self.resolution}
        if not isinstance(light, NearLights):
            return distant_visibility(vertices, self.topology.faces, self.directions, points, normals, **options)
        if pose is None:
            raise InputError("Visibility towards near lamps depends on where the head is: give its pose too.")
        positions = jnp.matmul(light.positions - pose.translation, pose.rotation, precision=_HIGHEST)
        return lamp_visibility(vertices, self.topology.faces, positions, points, normals, **options)

    def light_on(
        self,
        face: Face,
        light: Light,
        pose: Pose,
        normals_head: Float[Array, "v 3"],
        visible: Float[Array, "v d"] | None = None,
    ) -> tuple[Float[Array, "v 3"], Float[Array, "v 3"]]:
        """(irradiance / pi, specular radiance) at vertices: `make_renderer`'s `shade`, with a table to reuse.

        face: may be one of texels (`face_at_texels`) with a table of theirs; None makes the table of a mesh's vertices.
        """
        if visible is None:
            visible = self.visibility_of(face.vertices, light, pose)
        visible = jax.lax.stop_gradient(visible)
        in_camera = to_camera_frame(face.vertices, pose)
        to_eye = normalise(-in_camera)
        if isinstance(light, NearLights):
            normals = jnp.matmul(normals_head, pose.rotation.T, precision=_HIGHEST)
            diffuse, gloss = gather_lamps(
                in_camera,
                normals,
                to_eye,
                face.specular,
                face.roughness,
                light,
                visible,
                distribution=self.distribution,
                energy=self.energy,
            )
        else:
            diffuse, gloss = gather_light(
                normals_head,
                jnp.matmul(to_eye, pose.rotation, precision=_HIGHEST),
                face.specular,
                face.roughness,
                self.directions,
                head_power(light, pose.rotation, self.directions),
                visible,
                distribution=self.distribution,
                energy=self.energy,
            )
        return diffuse, jnp.where(face.specular[:, None] > 0, gloss, 0.0)  # else Fresnel's term would stay at outlines

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
        """The picture. visibility: a table from `visibility_of`, perhaps of an earlier step; None makes one now."""
        check_scene(self.topology, face, pose, camera)
        check_known_light(light)
        normals = vertex_normals(face.vertices, self.topology.faces)
        lit = self.light_on(face, light, pose, normals, visibility)
        return self.draw(face, jnp.concatenate(lit, axis=-1), pose, camera, key)


def make_shadowed_renderer(
    topology: Topology,
    size: tuple[int, int],
    *,
    directions: int | np.ndarray = 256,
    distribution: str = "ggx",
    energy: str = "additive",
    samples: int = SAMPLES,
    resolution: int = RESOLUTION,
    antialiased: bool = True,
    cull: bool = True,
) -> ShadowedRender:
    """A `render` with cast shadows for one mesh topology and image size (height, width).

    directions: how many (even), or the set itself, evenly spread unit vectors in the head frame in opposite pairs.
    distribution: of facets, "ggx" or "beckmann". energy: "additive", or, of GGX facets, "dimmed" or "coupled", with
    which no surface returns more than it gets (`diffuse_share`). samples, resolution: of depth maps, see
    `distant_visibility`. Raises `InputError` for others.
    """
    check_energy(energy, distribution)
    chosen = sphere_directions(directions) if isinstance(directions, int) else np.asarray(directions, np.float32)
    if chosen.ndim != 2 or chosen.shape[1] != 3:
        raise InputError(f"Directions are a number, or unit vectors (d, 3), got {chosen.shape}.")

    def given(face: Face, light: Array, pose: Pose, normals_head: Array) -> tuple[Array, Array]:
        return light[:, :3], light[:, 3:]

    return ShadowedRender(
        topology=topology,
        directions=chosen,
        distribution=distribution,
        samples=samples,
        resolution=resolution,
        draw=make_renderer(topology, size, shade=given, antialiased=antialiased, cull=cull),
        energy=energy,
    )
