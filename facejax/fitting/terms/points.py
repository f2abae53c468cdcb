"""Points: a head is lit at points fixed on its surface and compared with the picture there.

It is the same composition as a picture without the pixels in between (Dib et al. 2021, eq. 7): exact derivatives for
motion, shape, light and colour, none for silhouettes, at a hundredth of the cost. Which points a frame sees, and how
light of each coefficient reaches the eye from them, is found once before a solve and held during it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from facejax.fitting.footage import Footage, Look
from facejax.fitting.terms.term import Observed, Term, settled
from facejax.geometry.cameras import crop_camera
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import SurfacePoints, sample_surface
from facejax.geometry.records import PyTree, Record, batch_of, record
from facejax.objectives.landmarks import robust
from facejax.objectives.photometric import photometric_loss
from facejax.renderers.depth_test import visible_points
from facejax.renderers.texture import sample_bilinear, sample_texture
from facejax.scenes import ClipVariables, FrameVariables, LinearLighting, Scene, Unknowns
from facejax.scenes.unknowns import leaf_at, light_in, placed, take_frames

_FACE_MARGIN = 1.5
_LOST = 0.03  # mean robust square of display values, about a third of full scale
COLOUR = "point_colour"
"""Name under which the points' colours are settled: (n, c), a factor on albedo, then what is kept of detail."""


@record
class SeenPoints(Record):
    """What was seen in a frame."""

    crop: Float[Array, "s s c"]
    """Face crop: display values in [0, 1], then the detail channels of `facejax.fitting.footage.detail`."""
    ignore: Float[Array, "s s"]
    """1 where a mask says that a pixel is not the face, or there is no picture."""
    box: Float[Array, "4"]
    """Left, top, width, height of the crop in pixels of the input video."""
    weights: Float[Array, "n"]
    """How well each point is seen, see `visible_points`."""
    diffuse: Float[Array, "n b"]
    """Radiance of a white Lambert surface per light coefficient."""
    specular: Float[Array, "n b"]
    """Radiance of the specular lobe per light coefficient."""


@record
class SharedPoints(Record):
    """What is one for all frames."""

    params: PyTree
    """Of the head reduced to the points."""
    colour: Float[Array, "n c"]
    """A factor on each point's albedo, then its detail."""


@dataclasses.dataclass(frozen=True)
class Points(Term):
    """Robust differences of display values at points on the skin, and of detail: luminance without its lighting.

    Any head can be compared so: what its albedo does not say, each point's `colour` does, in closed form.
    """

    size: int = 256
    """Side of the face crop, pixels."""
    count: int = 1500
    """Points."""
    weight: float = 30000.0
    """Of the mean robust residual of a frame."""
    detail_weight: float = 100.0
    """Of the mean robust difference of detail."""
    detail_px: tuple[float, ...] = (5.0,)
    """Radii, pixels of the crop, below which a pattern is detail, a channel each."""
    blur_px: float = 1.0
    """Gaussian blur of crops: widens the reach."""
    colour_pull: float = 1.0
    """How much colour, beside detail, moves the head."""
    colour: Literal["even", "common", "kept", "held"] = "kept"
    """Of each point, as a factor on the head's albedo: 1; what all frames together say, anew at every evaluation; what
    an earlier stage settled; or that of the clip code's texture, which never changes."""
    detail: Literal["common", "kept"] = "kept"
    """The same of detail."""

    @property
    def look(self) -> Look:
        return Look(self.size, _FACE_MARGIN, self.blur_px, self.detail_px)

    def observe(
        self, scene: Scene, footage: Footage, unknowns: Unknowns, ids: np.ndarray, before: Observed | None = None
    ) -> Observed:
        """Crops, and what of the points each frame sees; `InputError` for a light that is not linear."""
        if not isinstance(scene.lighting, LinearLighting):
            raise InputError(
                f"Points need a light that is linear in its coefficients, and {type(scene.lighting).__name__} is not: "
                "take spherical harmonics, or compare pictures."
            )
        del before
        points, reduced = skin_points(scene, self.count)
        crop, ignore = footage.crops(ids, self.look)
        box = footage.boxes(_FACE_MARGIN)[ids]
        look = _look(scene, self.count, self.size)
        rows = [
            look(unknowns.params, reduced.head.params, unknowns.clip, take_frames(unknowns.frames, i), box[k])
            for k, i in enumerate(ids)
        ]
        weights, diffuse, specular = (np.stack([np.asarray(x) for x in each]) for each in zip(*rows, strict=True))
        frames = batch_of(SeenPoints, crop, ignore, box, weights, diffuse, specular)
        shared = SharedPoints(
            params=reduced.head.params,
            colour=jnp.asarray(self._colour(scene, points, unknowns)),
        )
        return Observed(frames=frames, shared=shared)

    def _colour(self, scene: Scene, points: SurfacePoints, unknowns: Unknowns) -> Float[np.ndarray, "n c"]:
        even = np.ones((self.count, 3 + len(self.detail_px)), np.float32)
        colour = np.array(unknowns.settled.get(COLOUR, even))
        if self.colour == "even":
            colour = even
        elif self.colour == "held":
            colour[:, :3] = texture_colour(scene, points, unknowns)
        return colour

    def common(
        self,
        scene: Scene,
        params: PyTree,
        clip: ClipVariables,
        frames: FrameVariables,
        seen: Observed,
        weight: Float[Array, "f"],
    ) -> Observed:
        """Colours and detail that explain all frames best, where they are not kept."""
        del params
        if self.colour != "common" and self.detail != "common":
            return seen
        shared = seen.shared
        rows = jax.vmap(functools.partial(self._sample, scene, clip), in_axes=(0, 0, None))(frames, seen.frames, shared)
        colours, detail, lit, gloss, weights = jax.lax.stop_gradient(rows)
        weights = weights * weight[:, None]
        colour, pattern = shared.colour[:, :3], shared.colour[:, 3:]
        if self.colour == "common":
            colour = common_colour(colours, lit, gloss, weights)
        if self.detail == "common":
            pattern = common_detail(detail, weights)
        told = jax.lax.stop_gradient(jnp.concatenate([colour, pattern], axis=-1))
        return seen.replace(shared=shared.replace(colour=told))

    def _sample(
        self, scene: Scene, clip: ClipVariables, frame: FrameVariables, seen: SeenPoints, shared: SharedPoints
    ) -> tuple[Array, Array, Array, Array, Array]:
        """(colour, detail, diffuse radiance, gloss, weight) at every point of a frame."""
        _, reduced = skin_points(scene, self.count)
        at = reduced.points(shared.params, clip, frame)
        light = light_in(clip, frame)
        where = crop_coordinates(at.pixels, seen.box, self.size)
        sampled = sample_bilinear(seen.crop, where)
        keep = 1 - sample_bilinear(seen.ignore[..., None], jax.lax.stop_gradient(where))[..., 0]
        lit = at.face.albedo * jnp.maximum(jnp.matmul(seen.diffuse, light), 0.0)
        gloss = jnp.maximum(jnp.matmul(seen.specular, light), 0.0)
        colour = sampled[..., :3]
        colour = self.colour_pull * colour + (1 - self.colour_pull) * jax.lax.stop_gradient(colour)
        return colour, sampled[..., 3:], lit, gloss, seen.weights * keep

    def loss(
        self,
        scene: Scene,
        params: PyTree,
        clip: ClipVariables,
        frame: FrameVariables,
        seen: SeenPoints,
        shared: SharedPoints,
    ) -> Float[Array, ""]:
        """Colour and detail."""
        del params
        colours, detail, lit, gloss, weights = self._sample(scene, clip, frame, seen, shared)
        colour, pattern = shared.colour[:, :3], shared.colour[:, 3:]
        total = self.weight * photometric_loss(lit * colour + gloss, colours, weights)
        if self.detail_weight > 0:
            squared = jnp.sum((detail - pattern) ** 2, axis=-1)
            error = jnp.sum(weights * robust(squared, 0.5)) / jnp.maximum(jnp.sum(weights), 1e-6)
            total += self.detail_weight * error
        return total

    def settle(
        self, scene: Scene, footage: Footage, unknowns: Unknowns, ids: np.ndarray, seen: Observed | None
    ) -> Unknowns:
        """Colours and detail of the points from these frames as they are aligned now, for later stages."""
        assert seen is not None
        colour, total = _recolour(self, scene)(unknowns.clip, take_frames(unknowns.frames, ids), seen)
        kept = np.where(np.asarray(total)[:, None] > 0.2, colour, 1.0).astype(np.float32)
        return settled(unknowns, **{COLOUR: kept})

    @property
    def lost_above(self) -> float:
        """See `Term.lost_above`."""
        return _LOST * self.weight


@functools.lru_cache(maxsize=16)
def _recolour(term: Points, scene: Scene) -> Callable[..., tuple[Array, Array]]:
    @jax.jit
    def colours(clip: PyTree, frames: PyTree, seen: Observed) -> tuple[Array, Array]:
        sample = jax.vmap(functools.partial(term._sample, scene, clip), in_axes=(0, 0, None))
        colour, detail, lit, gloss, weights = sample(frames, seen.frames, seen.shared)
        told = jnp.concatenate([common_colour(colour, lit, gloss, weights), common_detail(detail, weights)], axis=-1)
        return told, weights.sum(axis=0)

    return colours


# -- where points are, and what sees them ------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
def skin_points(scene: Scene, count: int) -> tuple[SurfacePoints, Scene]:
    """Points on the skin of a scene's head, and the scene reduced to them."""
    head = scene.head
    at_rest = np.asarray(head.neutral(head.params, head.init_code()[0]))
    points = sample_surface(at_rest, head.topology.faces, skin_weight(head.regions), count)
    return points, scene.at(points)


def skin_weight(regions: Any) -> Float[np.ndarray, "v"]:
    """How densely to sample the skin: the face most, lips more; no scalp, which is hair, nor neck."""
    region = {k: np.asarray(v) for k, v in regions.items()}
    empty = np.zeros(len(region["skin"]), np.float32)

    def of(name: str) -> np.ndarray:
        return region.get(name, empty)

    skin = of("skin") * (1 - of("scalp")) * (1 - of("neck")) * (1 - 0.7 * of("ears"))
    return np.clip(skin, 0, 1) * (0.3 + of("narrow_face") + 1.5 * of("lips"))


@functools.lru_cache(maxsize=16)
def _look(scene: Scene, count: int, size: int) -> Callable[..., tuple[Array, Array, Array]]:
    """(weights, diffuse, specular) of the points in one frame as it is."""
    points, reduced = skin_points(scene, count)
    faces = scene.head.topology.faces

    @jax.jit
    def look(params: PyTree, few: PyTree, clip: PyTree, frame: PyTree, box: Array) -> tuple[Array, Array, Array]:
        pose, camera = placed(clip, frame)
        vertices = scene.head.vertices(params, clip.code, frame.code)
        small = crop_camera(camera, box, (size, size))
        weights, normals = visible_points(vertices, faces, points, pose, small, (size, size))
        seen = reduced.points(few, clip, frame)
        diffuse, specular = scene.lighting.transfer(seen.face, pose, normals)  # type: ignore[attr-defined]
        return weights, diffuse, specular

    return look


def texture_colour(scene: Scene, points: SurfacePoints, unknowns: Unknowns) -> Float[np.ndarray, "n 3"]:
    """Colours of points in the clip code's texture."""
    topology = scene.head.topology
    row = {tuple(corners): i for i, corners in enumerate(topology.faces.tolist())}
    faces = np.array([row[tuple(corners)] for corners in points.triangles.tolist()])
    uv = np.einsum("nij,ni->nj", topology.uv[topology.uv_faces[faces]], points.weights)
    texture = leaf_at({"clip": unknowns.clip}, scene.head.roles["texture"][0])
    return np.asarray(sample_texture(jnp.asarray(texture), jnp.asarray(uv, jnp.float32)))


def crop_coordinates(pixels: Float[Array, "n 2"], box: Float[Array, "4"], size: int) -> Float[Array, "n 2"]:
    """Pixels of the input video to pixels of a crop."""
    return (pixels - box[:2]) / box[2:] * size


def common_detail(detail: Float[Array, "f n c"], weights: Float[Array, "f n"]) -> Float[Array, "n c"]:
    """Detail of each sample that explains all frames best: a robust weighted mean, two rounds."""

    def mean(w: Array) -> Array:
        return jnp.sum(w[..., None] * detail, axis=0) / jnp.maximum(jnp.sum(w, axis=0), 1e-6)[:, None]

    rough = mean(weights)
    return mean(weights / (1 + jnp.sum((detail - rough) ** 2, axis=-1) / 0.5**2))


def common_colour(
    seen: Float[Array, "f n 3"], lit: Float[Array, "f n 3"], gloss: Float[Array, "f n 3"], weights: Float[Array, "f n"]
) -> Float[Array, "n 3"]:
    """Colour factor of each sample that explains all frames best: a robust weighted mean of log ratios, two rounds.

    seen: display values. lit, gloss: linear radiance of the sample without its colour factor, and of its specular lobe.
    """
    linear = jnp.maximum(seen, 1e-3) ** 2.2
    ratio = jnp.log(jnp.clip(jnp.maximum(linear - gloss, 0.002) / jnp.maximum(lit, 0.003), 0.02, 20.0))

    def mean(w: Array) -> Array:
        return jnp.sum(w[..., None] * ratio, axis=0) / jnp.maximum(jnp.sum(w, axis=0), 1e-6)[:, None]

    rough = mean(weights)
    return jnp.exp(mean(weights / (1 + jnp.sum((ratio - rough) ** 2, axis=-1) / 0.15**2)))
