"""Ways to light a head: what a light is made of, and what it makes of a decoded face before a renderer draws it.

A `Lighting` stands between `decode` and `render`. On a surface (albedo, gloss) it hands the light to the renderer; on a
face that brings its own appearance (an avatar's texture) it makes the radiance itself.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from facejax.geometry.meshes import Topology, vertex_normals
from facejax.geometry.records import Face, Pose, PyTree
from facejax.renderers.deferred import light_bases
from facejax.renderers.lights import NearLights, sphere_directions
from facejax.renderers.sh import irradiance_basis, rotate_sh
from facejax.renderers.shadows import ShadowedRender, shadowed_transfer
from facejax.renderers.visibility import distant_visibility
from facejax.scenes.unknowns import Unknowns, repeat_frames

_HIGHEST = jax.lax.Precision.HIGHEST
_LEAST_OPEN = 0.05  # of the sky; vertices that see less are inside the mouth or the neck


@dataclasses.dataclass(frozen=True, eq=False)
class Lit:
    """What a renderer is called with: the face, the light, and options of its own."""

    face: Face
    light: Any
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@runtime_checkable
class Lighting(Protocol):
    """How a head is lit. All pure; the light is in the camera frame."""

    def init(self) -> PyTree:
        """The light where a fit starts: what one frame adds to the clip's, which starts at zero."""
        ...

    def prepare(self, vertices: Float[Array, "v 3"]) -> PyTree:
        """What depends on a frame's geometry (head frame, metres) and is held while it is fitted, such as shadows."""
        ...

    def shade(self, params: PyTree, face: Face, light: PyTree, pose: Pose, prepared: PyTree) -> Lit:
        """What the renderer is to draw."""
        ...

    def prior(self, light: PyTree) -> Float[Array, ""]:
        """Negative log prior of a frame's light, up to a constant."""
        ...


@runtime_checkable
class LinearLighting(Lighting, Protocol):
    """A lighting whose radiance at a point is linear in its coefficients (b, 3): what point-sampled fits need."""

    def transfer(
        self, face: Face, pose: Pose, normals_head: Float[Array, "n 3"]
    ) -> tuple[Float[Array, "n b"], Float[Array, "n b"]]:
        """(irradiance / pi, specular radiance) at the face's points per coefficient."""
        ...


@runtime_checkable
class Relightable(Protocol):
    """A head with a lighting network of its own."""

    def relit(self, params: PyTree, face: Face, light: Any, pose: Pose, rig: Any = None) -> Face: ...

    def no_light(self) -> Float[Array, "g 3"]: ...


@dataclasses.dataclass(frozen=True)
class Harmonics:
    """Distant light as spherical harmonics (bands², 3) on a surface; what it does there is the renderer's."""

    bands: int = 3

    def init(self) -> Float[Array, "b 3"]:
        """Even white light under which a white Lambert surface has radiance 1."""
        return jnp.zeros((self.bands**2, 3)).at[0].set(jnp.sqrt(4 * jnp.pi))

    def prepare(self, vertices: Float[Array, "v 3"]) -> tuple[()]:
        """Nothing."""
        del vertices
        return ()

    def shade(self, params: PyTree, face: Face, light: Float[Array, "b 3"], pose: Pose, prepared: PyTree) -> Lit:
        """See `Lighting.shade`."""
        del params, pose, prepared
        return Lit(face, light)

    def prior(self, light: Float[Array, "b 3"]) -> Float[Array, ""]:
        """How far colour changes with direction: most lamps in a room are of one colour."""
        tint = light - light.mean(axis=1, keepdims=True)
        return 0.5 * jnp.sum(tint[1:] ** 2)

    def transfer(
        self, face: Face, pose: Pose, normals_head: Float[Array, "n 3"]
    ) -> tuple[Float[Array, "n b"], Float[Array, "n b"]]:
        """See `LinearLighting.transfer`: unshadowed."""
        return light_bases(face, pose, normals_head, self.bands)


@dataclasses.dataclass(frozen=True, eq=False)
class SelfShadowed(Harmonics):
    """Harmonics with cast shadows (Dib et al. 2021): visibility is found for a frame's shape and held while it is
    fitted. The scene draws with the same `render`."""

    render: ShadowedRender = None  # type: ignore[assignment]

    def prepare(self, vertices: Float[Array, "v 3"]) -> Float[Array, "v d"]:  # type: ignore[override]
        """Visibility of every direction from every vertex."""
        return self.render.visibility_of(vertices)

    def shade(self, params: PyTree, face: Face, light: Float[Array, "b 3"], pose: Pose, prepared: Array) -> Lit:
        """See `Lighting.shade`."""
        del params, pose
        return Lit(face, light, {"visibility": prepared})


@dataclasses.dataclass(frozen=True, eq=False)
class Lamps:
    """Point lamps near the head, for renderers that take `NearLights`; places (m, camera frame) and powers move."""

    start: NearLights

    def init(self) -> NearLights:
        """The lamps as they were given."""
        return self.start

    def prepare(self, vertices: Float[Array, "v 3"]) -> tuple[()]:
        """Nothing: shadows of near lamps move with the pose."""
        del vertices
        return ()

    def shade(self, params: PyTree, face: Face, light: NearLights, pose: Pose, prepared: PyTree) -> Lit:
        """See `Lighting.shade`."""
        del params, pose, prepared
        return Lit(face, light)

    def prior(self, light: NearLights) -> Float[Array, ""]:
        """How far lamps have left the places they started from, in squares of 10 cm."""
        return jnp.sum((light.positions - self.start.positions) ** 2) / 0.1**2


# -- faces that bring their own appearance -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkLight:
    """A head's own lighting network: gain and bias per texel (Chen et al. 2021, eq. 2 and 3); a code as light."""

    head: Relightable
    positive: bool = True
    """Rows are lamps, which cannot be negative."""

    def init(self) -> Float[Array, "g 3"]:
        """Darkness, as in the paper."""
        return self.head.no_light()

    def prepare(self, vertices: Float[Array, "v 3"]) -> tuple[()]:
        """Nothing."""
        del vertices
        return ()

    def shade(self, params: PyTree, face: Face, light: PyTree, pose: Pose, prepared: PyTree) -> Lit:
        """See `Lighting.shade`: the texture is the radiance. light: whatever the head's `relit` takes."""
        del prepared
        return Lit(self.head.relit(params, face, light, pose), jnp.zeros((1, 3)))

    def prior(self, light: PyTree) -> Float[Array, ""]:
        """None."""
        del light
        return jnp.zeros(())


@dataclasses.dataclass(frozen=True)
class AsCaptured:
    """No light of its own: a texture shows what it was under the light that it was captured in."""

    def init(self) -> tuple[()]:
        """Nothing."""
        return ()

    def prepare(self, vertices: Float[Array, "v 3"]) -> tuple[()]:
        """Nothing."""
        del vertices
        return ()

    def shade(self, params: PyTree, face: Face, light: PyTree, pose: Pose, prepared: PyTree) -> Lit:
        """The face as it is."""
        del params, light, pose, prepared
        return Lit(face, jnp.zeros((1, 3)))

    def prior(self, light: PyTree) -> Float[Array, ""]:
        """None."""
        del light
        return jnp.zeros(())


@dataclasses.dataclass(frozen=True, eq=False)
class TextureHarmonics:
    """ "ours-SH" of Chen et al.: texture times sum_b gamma_b H_b(n), 27 numbers (MoFA's, Tewari et al. 2017).

    The sum is written on irradiance / pi of an orthonormal light, which scales each band of gamma by a constant.
    """

    topology: Topology
    bands: int = 3

    def init(self) -> Float[Array, "b 3"]:
        """Darkness."""
        return jnp.zeros((self.bands**2, 3))

    def prepare(self, vertices: Float[Array, "v 3"]) -> Float[Array, "v 3"]:
        """Unit normals, head frame."""
        return vertex_normals(vertices, self.topology.faces)

    def shade(self, params: PyTree, face: Face, light: Float[Array, "b 3"], pose: Pose, prepared: Array) -> Lit:
        """See `Lighting.shade`: texture times albedo is the radiance."""
        del params
        normals = jnp.matmul(prepared, pose.rotation.T, precision=_HIGHEST)
        lit = face.replace(albedo=jnp.matmul(irradiance_basis(normals, self.bands), light, precision=_HIGHEST))
        return Lit(lit, jnp.zeros((1, 3)))

    def prior(self, light: Float[Array, "b 3"]) -> Float[Array, ""]:
        """None."""
        del light
        return jnp.zeros(())


@dataclasses.dataclass(frozen=True, eq=False)
class ShadowedTexture(TextureHarmonics):
    """Self-shadowed harmonics: precomputed transfer with cast shadows, 81 coefficients per colour (Dib et al. 2021).

    Visibility is found at the vertices, along directions fixed in the head frame. The texture that is lit was seen
    under light from everywhere, so it holds that light's occlusion already: transfer is that of the light over that of
    even light, and even light shows the texture as it is.
    """

    bands: int = 9
    directions: int = 256

    def prepare(self, vertices: Float[Array, "v 3"]) -> Float[Array, "v b"]:
        """Transfer of every vertex over that of even light, (v, bands²), head frame."""
        towards = sphere_directions(self.directions)
        visible = distant_visibility(vertices, self.topology.faces, towards)
        transfer = shadowed_transfer(visible, towards, vertex_normals(vertices, self.topology.faces), self.bands)
        even = jnp.sqrt(4 * jnp.pi) * transfer[:, :1]  # ambient occlusion: 1 where nothing is in the way
        alike = jnp.eye(self.bands**2)[0] / jnp.sqrt(4 * jnp.pi)  # lit by the mean of all light
        return jnp.where(even > _LEAST_OPEN, transfer / jnp.maximum(even, _LEAST_OPEN), alike)

    def shade(self, params: PyTree, face: Face, light: Float[Array, "b 3"], pose: Pose, prepared: Array) -> Lit:
        """See `Lighting.shade`: texture times albedo is the radiance."""
        del params
        turned = rotate_sh(light, pose.rotation.T)
        return Lit(face.replace(albedo=jnp.matmul(prepared, turned, precision=_HIGHEST)), jnp.zeros((1, 3)))


def zero_light(lighting: Lighting) -> PyTree:
    """No light, in a lighting's own terms."""
    return jax.tree_util.tree_map(lambda x: jnp.zeros_like(jnp.asarray(x)), lighting.init())


def light_rows(lighting: Lighting) -> int:
    """Of a light (rows, 3)."""
    return int(np.shape(lighting.init())[0])


def in_darkness(unknowns: Unknowns, lighting: Lighting) -> Unknowns:
    """Unknowns without any light, in the terms of this lighting."""
    none = zero_light(lighting)
    count = len(unknowns.frames.log_zoom)
    return unknowns.replace(
        clip=unknowns.clip.replace(light=none), frames=unknowns.frames.replace(light=repeat_frames(none, count))
    )
