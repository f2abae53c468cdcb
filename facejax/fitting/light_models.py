"""How an avatar is lit in a clip: by its lighting network, or by spherical harmonics, the paper's baselines.

Each takes a lighting code (rows of colours) and a decoded, fully lit face to a face that shows its own radiance.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from facejax.fitting.config import FitConfig
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import Topology, vertex_normals
from facejax.geometry.records import Face, Pose, PyTree
from facejax.renderers.lights import sphere_directions
from facejax.renderers.sh import irradiance_basis, rotate_sh
from facejax.renderers.shadows import shadowed_transfer
from facejax.renderers.visibility import distant_visibility

_LEAST_OPEN = 0.05  # of the sky; vertices that see less are inside the mouth or the neck


@runtime_checkable
class LightModel(Protocol):
    """What adaptation needs of a way to light a face."""

    @property
    def rows(self) -> int:
        """Of a lighting code (rows, 3)."""
        ...

    def prepare(self, vertices: Float[Array, "v 3"]) -> Array:
        """What depends on a frame's geometry and is held while it is fitted; may have no elements."""
        ...

    def lit(self, params: PyTree, face: Face, light: Float[Array, "r 3"], pose: Pose, prepared: Array) -> Face:
        """The face as it shows itself: texture times albedo is the radiance that it sends to the camera."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkLight:
    """The avatar's own lighting network G: gain and bias per texel (eq. 2 and 3)."""

    head: Any
    rows: int

    def prepare(self, vertices: Float[Array, "v 3"]) -> Array:
        """Nothing."""
        del vertices
        return jnp.zeros((0, 0))

    def lit(self, params: PyTree, face: Face, light: Float[Array, "r 3"], pose: Pose, prepared: Array) -> Face:
        """See `LightModel.lit`."""
        del prepared
        return self.head.relit(params, face, light, pose)


@dataclasses.dataclass(frozen=True, eq=False)
class HarmonicLight:
    """ "ours-SH" of the paper: texture times sum_b gamma_b H_b(n), 27 numbers (MoFA's, Tewari et al. 2017).

    The sum is written on irradiance / pi of an orthonormal light, which scales each band of gamma by a constant.
    """

    topology: Topology
    bands: int = 3

    @property
    def rows(self) -> int:
        return self.bands**2

    def prepare(self, vertices: Float[Array, "v 3"]) -> Array:
        """Unit normals, head frame."""
        return vertex_normals(vertices, self.topology.faces)

    def lit(self, params: PyTree, face: Face, light: Float[Array, "r 3"], pose: Pose, prepared: Array) -> Face:
        """See `LightModel.lit`."""
        del params
        normals = jnp.matmul(prepared, pose.rotation.T, precision=jax.lax.Precision.HIGHEST)
        return face.replace(albedo=irradiance_basis(normals, self.bands) @ light)


@dataclasses.dataclass(frozen=True, eq=False)
class ShadowedLight:
    """Self-shadowed harmonics: precomputed transfer with cast shadows, 81 coefficients per colour (Dib et al. 2021).

    Visibility is found at the vertices, along directions fixed in the head frame. The texture that is lit was seen
    under light from everywhere, so it holds that light's occlusion already: transfer is that of the light over that of
    even light, and even light shows the texture as it is.
    """

    topology: Topology
    bands: int = 9
    directions: int = 256

    @property
    def rows(self) -> int:
        return self.bands**2

    def prepare(self, vertices: Float[Array, "v 3"]) -> Array:
        """Transfer of every vertex over that of even light, (v, rows), head frame."""
        towards = sphere_directions(self.directions)
        visible = distant_visibility(vertices, self.topology.faces, towards)
        transfer = shadowed_transfer(visible, towards, vertex_normals(vertices, self.topology.faces), self.bands)
        even = jnp.sqrt(4 * jnp.pi) * transfer[:, :1]  # ambient occlusion: 1 where nothing is in the way
        alike = jnp.eye(self.rows)[0] / jnp.sqrt(4 * jnp.pi)  # lit by the mean of all light
        return jnp.where(even > _LEAST_OPEN, transfer / jnp.maximum(even, _LEAST_OPEN), alike)

    def lit(self, params: PyTree, face: Face, light: Float[Array, "r 3"], pose: Pose, prepared: Array) -> Face:
        """See `LightModel.lit`."""
        del params
        return face.replace(albedo=jnp.matmul(prepared, rotate_sh(light, pose.rotation.T)))


def light_model(head: Any, config: FitConfig) -> LightModel:
    """The light model that a config asks for; `InputError` for an unknown one."""
    if config.light_model == "network":
        return NetworkLight(head, rows=int(np.shape(head.init_light())[0]))
    if config.light_model == "sh":
        return HarmonicLight(head.topology)
    if config.light_model == "shadowed-sh":
        return ShadowedLight(head.topology)
    raise InputError(f'A light model is "network", "sh" or "shadowed-sh", and {config.light_model!r} was given.')
