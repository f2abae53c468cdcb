"""The avatar of one person: a deep appearance decoder, the lighting network G, and what ties them to a tracker.

Chen et al. 2021 (deep lighting adaptation). Implements `HeadModel`: a frame's code is that of the decoder, what a clip
shares is its lighting code, and `params["lighting"]` are G's weights, which adaptation to a clip moves.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from facejax.geometry.cameras import view_direction
from facejax.geometry.meshes import SurfacePoints, Topology, barycentric_points
from facejax.geometry.records import Face, Pose, PyTree, Record, record
from facejax.models.deep_appearance import DeepAppearanceModel
from facejax.models.landmark_names import IBUG68_FROM_MEDIAPIPE
from facejax.models.lighting_network import LightingNetwork, lights_on_head, relight, rig_pose_features
from facejax.models.morphable import REGIONS, Expression, Identity, MorphableHead, MorphableParams

_HIGHEST = jax.lax.Precision.HIGHEST
_ROLES: Mapping[str, tuple[str, ...]] = {"motion": ("frame.code",), "network": ("params.lighting",)}
_FULL_MOVEMENT = 4.0  # standard deviations of a code


@record
class AvatarClip(Record):
    """What is one for a clip: nothing. An avatar is one person, and its light is the scene's."""


@record
class AvatarFrame(Record):
    """What moves from frame to frame."""

    code: Float[Array, "z"]
    """The decoder's code, standard normal in training."""


def relit_texture(
    network: LightingNetwork,
    weights: PyTree,
    texture: Float[Array, "h w 3"],
    light: Float[Array, "g 3"],
    pose: Pose,
    rig: Float[Array, "3 3"],
    directions: Float[Array | np.ndarray, "d 3"] | None = None,
    group: Int[Array | np.ndarray, "d"] | None = None,
) -> Float[Array, "h w 3"]:
    """Eq. (2) and (3): linear radiance of a fully lit texture under a lighting code; may be negative.

    pose: head to camera. rig: rotation of the head to the frame in which the lights are fixed. directions, group: of
    the capture's lights, for networks that see them as the turned head does.
    """
    features = rig_pose_features(rig, view_direction(pose))
    if network.config.lights:
        assert directions is not None
        assert group is not None
        light = lights_on_head(light, rig, jnp.asarray(directions), jnp.asarray(group))
    return relight(texture, network(weights, light, features, texture))


@dataclasses.dataclass(frozen=True, eq=False)
class Avatar:
    """One person's avatar: implements `HeadModel`. Made by `facejax.data.heads.load_avatar`.

    `params` is {"decoder", "lighting", "mesh": {"mean" (v, 3), "basis" (m, v, 3)}}: the decoder's and G's weights, and
    the decoder's mesh head written out, see `DeepAppearanceModel.linear_mesh`.
    """

    name: str
    sha256: str
    appearance: DeepAppearanceModel
    network: LightingNetwork
    params: PyTree
    state: PyTree
    """Statistics of the decoder's data, see `facejax.models.deep_appearance`."""
    topology: Topology
    landmarks478: SurfacePoints
    regions: Mapping[str, np.ndarray]
    """Named (V,) masks in [0, 1]; those of `REGIONS` that are missing count as empty."""
    eye_centres: np.ndarray
    """(2, 3) centres of the (left, right) eyeball, metres, head frame."""
    light_directions: np.ndarray | None = None
    """(d, 3) unit vectors towards the lights of the capture, which together are even: in the frame of the lights, whose
    axes a camera's are (OpenCV)."""
    light_group: np.ndarray | None = None
    """(d,) which row of a lighting code each of them belongs to."""
    source: str = ""
    """Absolute path of the folder that it was loaded from."""

    @property
    def roles(self) -> Mapping[str, tuple[str, ...]]:
        """See `HeadModel.roles`: no texture is solved for, the avatar brings its appearance."""
        return _ROLES

    @property
    def rates(self) -> Mapping[str, float]:
        """Learning rates of its leaves, for descent by Adam; the network's weights move at the default."""
        return {"code": 0.05}

    def init_code(self) -> tuple[AvatarClip, AvatarFrame]:
        """The code of all zeros, from which the paper starts its adaptation."""
        return AvatarClip(), AvatarFrame(code=jnp.zeros(self.appearance.config.code))

    def no_light(self) -> Float[Array, "g 3"]:
        """The lighting code of darkness."""
        return self.network.no_light()

    def vertices(self, params: PyTree, shared: AvatarClip, frame: AvatarFrame) -> Float[Array, "v 3"]:
        """Decoded vertices, metres, head frame."""
        del shared
        features = self.appearance.mesh_features(params, frame.code)
        return params["mesh"]["mean"] + jnp.einsum("m,mvc->vc", features, params["mesh"]["basis"], precision=_HIGHEST)

    def neutral(self, params: PyTree, shared: AvatarClip) -> Float[Array, "v 3"]:
        """Vertices of the code of zeros, head frame."""
        return self.vertices(params, shared, self.init_code()[1])

    def decode(self, params: PyTree, shared: AvatarClip, frame: AvatarFrame, view: Float[Array, "3"]) -> Face:
        """Eq. (1): decoded mesh, and the fully lit texture seen from `view`; all of its colour is in the texture."""
        texture = self.appearance.decode(params, self.state, frame.code, view).texture
        vertices = self.vertices(params, shared, frame)
        flat = jnp.zeros(vertices.shape[0])
        return Face(
            vertices=vertices, albedo=jnp.ones_like(vertices), texture=texture, specular=flat, roughness=flat + 1
        )

    def relit(
        self,
        params: PyTree,
        face: Face,
        light: Float[Array, "g 3"],
        pose: Pose,
        rig: Float[Array, "3 3"] | None = None,
    ) -> Face:
        """Eq. (2) and (3): the same face with the texture that a lighting code makes of it, as linear radiance.

        pose: head to camera, as the face was decoded for. rig: rotation of the head to the frame in which the lights
        are fixed; None for that camera's own, as in a clip.
        """
        rig = pose.rotation if rig is None else rig
        texture = relit_texture(
            self.network, params["lighting"], face.texture, light, pose, rig, self.light_directions, self.light_group
        )
        return face.replace(texture=texture)

    def code_prior(self, params: PyTree, shared: AvatarClip, frame: AvatarFrame) -> Float[Array, ""]:
        """Standard normal codes."""
        del params, shared
        return jnp.sum(frame.code**2)

    def motion_features(self, frame: AvatarFrame) -> Float[Array, "m"]:
        """See `HeadModel.motion_features`."""
        return frame.code / _FULL_MOVEMENT

    def landmark_points(self, vertices: Float[Array, "v 3"]) -> Float[Array, "478 3"]:
        """See `HeadModel.landmark_points`."""
        return self.landmarks478.on(vertices)

    def eye_pivots(self, params: PyTree, shared: AvatarClip) -> Float[Array, "2 3"]:
        """Centres of the (left, right) eyeball, head frame."""
        del params, shared
        return jnp.asarray(self.eye_centres, jnp.float32)

    def scaled(self, factor: float) -> "Avatar":
        """The same head with every length multiplied."""
        mesh = {k: v * factor for k, v in self.params["mesh"].items()}
        state = {**self.state, **{k: self.state[k] * factor for k in ("mean_vertices", "vertices_std")}}
        return dataclasses.replace(
            self, params={**self.params, "mesh": mesh}, state=state, eye_centres=self.eye_centres * factor
        )

    def at_points(self, points: SurfacePoints) -> "Avatar":
        """The same head reduced to points on its surface: each becomes a vertex, no triangle is left."""
        mix = jax.vmap(lambda v: barycentric_points(v, points.triangles, points.weights))
        mesh = self.params["mesh"]
        reduced = {"mean": mix(mesh["mean"][None])[0], "basis": mix(mesh["basis"])}
        return dataclasses.replace(self, params={**self.params, "mesh": reduced})

    def as_morphable(
        self, params: PyTree, shared: AvatarClip, frames: AvatarFrame, light: Float[Array | np.ndarray, "f g 3"]
    ) -> tuple[MorphableHead, Identity, Expression, Float[Array | np.ndarray, "f b 3"]]:
        """See `HeadModel.as_morphable`: the decoder's mesh features as expressions, under its mean texture.

        Gaze and lids are in the mesh, so their own numbers are zero; the light is the full one, as the texture is.
        """
        del light
        mean, basis = params["mesh"]["mean"], params["mesh"]["basis"]
        n, count = len(mean), len(basis)
        activations = jax.vmap(lambda code: self.appearance.mesh_features(params, code))(frames.code)
        table = self.landmarks478
        at68 = list(IBUG68_FROM_MEDIAPIPE)
        twin = MorphableHead(
            name=self.name,
            sha256=self.sha256,
            params=MorphableParams(
                mean=mean,
                identity_basis=jnp.zeros((0, n, 3)),
                expression_basis=basis,
                skin_mean=jnp.zeros((n, 3)),
                skin_basis=jnp.zeros((0, n, 3)),
                eye_weight=jnp.zeros((n, 2)),
                eye_pivot=self.eye_pivots(params, shared),
                eye_pivot_basis=jnp.zeros((0, 2, 3)),
                specular=jnp.zeros(n),
                roughness=jnp.ones(n),
            ),
            topology=self.topology,
            expression_names=tuple(f"feature_{i:03d}" for i in range(count)),
            landmarks68=SurfacePoints(table.triangles[at68], table.weights[at68]),
            landmarks478=table,
            regions={name: np.asarray(self.regions.get(name, np.zeros(n, np.float32))) for name in REGIONS},
            mirror=np.arange(n),
        )
        texture = jnp.clip(self.state["mean_texture"], 0.0, 1.0)
        frames_of = len(activations)
        return (
            twin,
            Identity(shape=jnp.zeros(0), skin=jnp.zeros(0), texture=texture),
            Expression(activations=jnp.zeros(count), gaze=jnp.zeros((2, 2)), eyelids=jnp.zeros(2)).replace(
                activations=activations, gaze=jnp.zeros((frames_of, 2, 2)), eyelids=jnp.zeros((frames_of, 2))
            ),
            jnp.broadcast_to(twin.init_light(), (frames_of, 9, 3)),
        )
