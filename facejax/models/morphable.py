"""Linear morphable heads: mean, identity modes, expression blendshapes, rotating eyeballs, and a skin colour prior.

One functional core serves every linear head (`ict-facekit`, `generic`, FLAME-like files); what differs between them is
data: a `MorphableHead` is arrays plus tables, and a new one is a new loader that fills them.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from facejax.geometry.meshes import SurfacePoints, Topology
from facejax.geometry.records import Face, Record, record
from facejax.geometry.rotations import gaze_to_matrix, rotate

_HIGHEST = jax.lax.Precision.HIGHEST

_ROLES: Mapping[str, tuple[str, ...]] = {
    "shape": ("clip.code.shape",),
    "skin": ("clip.code.skin",),
    "texture": ("clip.code.texture",),
    "motion": ("frame.code",),
}

REGIONS = (
    "skin", "narrow_face", "neck", "scalp", "ears", "lips", "nose", "brows", "eye_sockets",
    "eyeballs", "iris", "teeth", "gums",
)  # fmt: skip
"""Region masks that every morphable head carries."""

GAZE_RANGE_RAD = 0.6
"""Eyeball rotation (rad) at which an `eyeLook...` shape of the lids reaches activation 1."""


@record
class MorphableParams(Record):
    """Arrays of a linear head; metres, head frame; v vertices, i identity modes, e expressions, k skin modes."""

    mean: Float[Array, "v 3"]
    """The mean neutral head."""
    identity_basis: Float[Array, "i v 3"]
    """Displacement per standard deviation of each identity mode."""
    expression_basis: Float[Array, "e v 3"]
    """Displacement at activation 1 of each expression."""
    skin_mean: Float[Array, "v 3"]
    """Mean of the natural logarithm of linear albedo."""
    skin_basis: Float[Array, "k v 3"]
    """Change of log albedo per standard deviation of each skin mode."""
    eye_weight: Float[Array, "v 2"]
    """1 where a vertex turns with the subject's (left, right) eyeball."""
    eye_pivot: Float[Array, "2 3"]
    """Centres of rotation of the (left, right) eyeball of the mean head."""
    eye_pivot_basis: Float[Array, "i 2 3"]
    """How they move per identity mode."""
    specular: Float[Array, "v"]
    """Fresnel reflectance at normal incidence."""
    roughness: Float[Array, "v"]
    """Width alpha of the specular lobe."""


@record
class Identity(Record):
    """What is one for a person and a clip."""

    shape: Float[Array, "i"]
    """Identity coefficients, standard deviations."""
    skin: Float[Array, "k"]
    """Skin coefficients, standard deviations."""
    texture: Float[Array, "h w 3"]
    """Factor per texel on the albedo (linear): what the prior cannot say."""


@record
class Expression(Record):
    """What moves from frame to frame."""

    activations: Float[Array, "e"]
    """Expression activations, nominally in [0, 1]; `eyeBlink...` and `eyeLook...` are added by `eyelids` and `gaze`."""
    gaze: Float[Array, "2 2"]
    """(yaw, pitch) of the subject's (left, right) eye, rad, see `gaze_to_matrix`."""
    eyelids: Float[Array, "2"]
    """Closure of the subject's (left, right) lids: activation of `eyeBlink...`."""


_BLINK = ("eyeBlinkLeft", "eyeBlinkRight")
_LOOK = (  # name, eye, axis (0 yaw, 1 pitch), sign; the subject's left is +yaw
    ("eyeLookOutLeft", 0, 0, 1),
    ("eyeLookInLeft", 0, 0, -1),
    ("eyeLookUpLeft", 0, 1, 1),
    ("eyeLookDownLeft", 0, 1, -1),
    ("eyeLookInRight", 1, 0, 1),
    ("eyeLookOutRight", 1, 0, -1),
    ("eyeLookUpRight", 1, 1, 1),
    ("eyeLookDownRight", 1, 1, -1),
)


def full_activations(names: tuple[str, ...], frame: Expression) -> Float[Array, "e"]:
    """Activations of expressions of these names, with what lids and gaze add."""
    index = {name: i for i, name in enumerate(names)}
    full = frame.activations
    for side, name in enumerate(_BLINK):
        if name in index:
            full = full.at[index[name]].add(frame.eyelids[side])
    for name, eye, axis, sign in _LOOK:
        if name in index:
            full = full.at[index[name]].add(jax.nn.relu(sign * frame.gaze[eye, axis]) / GAZE_RANGE_RAD)
    return full


@dataclasses.dataclass(frozen=True, eq=False)
class MorphableHead:
    """A linear head: implements `HeadModel`."""

    name: str
    sha256: str
    params: MorphableParams
    topology: Topology
    expression_names: tuple[str, ...]
    landmarks68: SurfacePoints
    """iBUG-68."""
    landmarks478: SurfacePoints
    """MediaPipe's 468 face points, then the irises: 468-472 the subject's RIGHT eye (image left), 473-477 the left."""
    regions: Mapping[str, np.ndarray]
    """Named (V,) float masks in [0, 1], see `REGIONS`."""
    mirror: np.ndarray
    """(V,) id of each vertex's mirror image across x = 0."""
    source: str = ""
    """Absolute path that it was loaded from; empty where its name says enough."""

    @property
    def roles(self) -> Mapping[str, tuple[str, ...]]:
        """See `HeadModel.roles`."""
        return _ROLES

    @property
    def rates(self) -> Mapping[str, float]:
        """Learning rates of its leaves, for descent by Adam."""
        return {"activations": 0.02, "gaze": 0.02, "eyelids": 0.03, "shape": 0.05, "skin": 0.05, "texture": 0.01}

    def init_code(self, texture_size: int = 8) -> tuple[Identity, Expression]:
        """The mean person at rest, with an empty texture."""
        p = self.params
        identity = Identity(
            shape=jnp.zeros(p.identity_basis.shape[0]),
            skin=jnp.zeros(p.skin_basis.shape[0]),
            texture=jnp.ones((texture_size, texture_size, 3)),
        )
        expression = Expression(
            activations=jnp.zeros(p.expression_basis.shape[0]), gaze=jnp.zeros((2, 2)), eyelids=jnp.zeros(2)
        )
        return identity, expression

    def init_light(self, bands: int = 3) -> Float[Array, "b 3"]:
        """Even white light under which a white Lambert surface has radiance 1."""
        return jnp.zeros((bands**2, 3)).at[0].set(jnp.sqrt(4 * jnp.pi))

    def full_activations(self, frame: Expression) -> Float[Array, "e"]:
        """Activations with what lids and gaze add: the vector that multiplies `expression_basis`."""
        return full_activations(self.expression_names, frame)

    def neutral(self, params: MorphableParams, shared: Identity) -> Float[Array, "v 3"]:
        """Identity without expression, head frame."""
        return params.mean + jnp.einsum("i,ivc->vc", shared.shape, params.identity_basis, precision=_HIGHEST)

    def eye_pivots(self, params: MorphableParams, shared: Identity) -> Float[Array, "2 3"]:
        """Centres of rotation of the (left, right) eyeball, head frame."""
        return params.eye_pivot + jnp.einsum("i,isc->sc", shared.shape, params.eye_pivot_basis, precision=_HIGHEST)

    def vertices(self, params: MorphableParams, shared: Identity, frame: Expression) -> Float[Array, "v 3"]:
        """Identity, plus blendshapes, with the eyeballs then turned rigidly about their centres."""
        full = self.full_activations(frame)
        v = self.neutral(params, shared) + jnp.einsum("e,evc->vc", full, params.expression_basis, precision=_HIGHEST)
        pivots = self.eye_pivots(params, shared)
        for side in range(2):
            turn = gaze_to_matrix(frame.gaze[side]) - jnp.eye(3)
            v = v + params.eye_weight[:, side : side + 1] * rotate(v - pivots[side], turn)
        return v

    def albedo(self, params: MorphableParams, shared: Identity) -> Float[Array, "v 3"]:
        """Linear diffuse albedo per vertex, in (0, 1)."""
        log = params.skin_mean + jnp.einsum("k,kvc->vc", shared.skin, params.skin_basis, precision=_HIGHEST)
        return jnp.exp(jnp.minimum(log, -0.01))

    def decode(
        self, params: MorphableParams, shared: Identity, frame: Expression, view: Float[Array, "3"] | None = None
    ) -> Face:
        """See `HeadModel.decode`; a morphable head looks the same from everywhere, so `view` is ignored."""
        del view
        return Face(
            vertices=self.vertices(params, shared, frame),
            albedo=self.albedo(params, shared),
            texture=shared.texture,
            specular=params.specular,
            roughness=params.roughness,
        )

    def code_prior(self, params: MorphableParams, shared: Identity, frame: Expression) -> Float[Array, ""]:
        """Unit Gaussian on identity and skin; activations are kept small and inside [0, 1], eyes together."""
        del params
        a = frame.activations
        outside = jnp.sum(jax.nn.relu(-a) ** 2) + jnp.sum(jax.nn.relu(a - 1) ** 2)
        lids = jnp.sum(jax.nn.relu(-frame.eyelids - 0.1) ** 2) + jnp.sum(jax.nn.relu(frame.eyelids - 1.1) ** 2)
        gaze = jnp.sum(frame.gaze**2) + 10 * jnp.sum((frame.gaze[0] - frame.gaze[1]) ** 2)
        return jnp.sum(shared.shape**2) + jnp.sum(shared.skin**2) + jnp.sum(a**2) + 30 * (outside + lids) + gaze

    def motion_features(self, frame: Expression) -> Float[Array, "m"]:
        """See `HeadModel.motion_features`: lids are left out, a blink is over in three frames."""
        return jnp.concatenate([frame.activations, frame.gaze.ravel()])

    def landmark_points(self, vertices: Float[Array, "v 3"]) -> Float[Array, "478 3"]:
        """See `HeadModel.landmark_points`."""
        return self.landmarks478.on(vertices)

    def as_morphable(
        self, params: MorphableParams, shared: Identity, frames: Expression, light: Float[Array | np.ndarray, "f b 3"]
    ) -> tuple["MorphableHead", Identity, Expression, Float[Array | np.ndarray, "f b 3"]]:
        """See `HeadModel.as_morphable`: itself."""
        return dataclasses.replace(self, params=params), shared, frames, light

    def scaled(self, factor: float) -> "MorphableHead":
        """The same head with every length multiplied."""
        p = self.params
        names = ("mean", "identity_basis", "expression_basis", "eye_pivot", "eye_pivot_basis")
        return dataclasses.replace(self, params=p.replace(**{n: getattr(p, n) * factor for n in names}))

    def at_points(self, points: SurfacePoints) -> "MorphableHead":
        """The same head reduced to points on its surface: each becomes a vertex, no triangle is left.

        A linear model of n points costs n / V of the whole one, which is what makes landmark and point-sampled
        photometric fits cheap. Eye weights are those of the nearest corner: a point is either on an eyeball or not.
        """
        p, triangles, weights = self.params, points.triangles, np.asarray(points.weights, np.float32)

        def mix(values: Array) -> Array:  # (..., V, c) -> (..., n, c), without a copy of the whole basis on the device
            host = np.asarray(values)
            return jnp.asarray(sum(host[..., triangles[:, i], :] * weights[:, i, None] for i in range(3)))

        nearest = triangles[np.arange(len(triangles)), np.argmax(weights, axis=1)]
        params = p.replace(
            mean=mix(p.mean),
            identity_basis=mix(p.identity_basis),
            expression_basis=mix(p.expression_basis),
            skin_mean=mix(p.skin_mean),
            skin_basis=mix(p.skin_basis),
            eye_weight=jnp.asarray(np.asarray(p.eye_weight)[nearest]),
            specular=mix(p.specular[:, None])[:, 0],
            roughness=mix(p.roughness[:, None])[:, 0],
        )
        return dataclasses.replace(self, params=params)
