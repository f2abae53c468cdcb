"""The photometric objective, point-sampled: a head is lit at points fixed on its surface and compared with the
picture there.

It is the same composition as `render` without the pixels in between (Dib et al. 2021, eq. 7): exact derivatives for
motion, shape, light and colour, none for silhouettes, at a hundredth of the cost. Which points a frame sees, and how
light of each spherical-harmonic coefficient reaches the eye from them, is found once before a stage and held during it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from facejax.fitting.config import FitConfig
from facejax.fitting.landmark_fit import at_points
from facejax.fitting.variables import FrameVariables
from facejax.geometry.records import Camera, PyTree, Record, record
from facejax.objectives.landmarks import robust
from facejax.objectives.photometric import photometric_loss
from facejax.renderers.texture import sample_bilinear


@record
class PhotometricData(Record):
    """What was seen in a batch of frames."""

    crop: Float[Array, "f s s c"]
    """Face crops: display values in [0, 1], then the detail channels of `facejax.fitting.crops.detail`."""
    ignore: Float[Array, "f s s"]
    """1 where a mask says that a pixel is not the face."""
    box: Float[Array, "f 4"]
    """Left, top, width, height of each crop in pixels of the input video."""
    weights: Float[Array, "f n"]
    """How well each sample is seen, see `visible_points`."""
    diffuse: Float[Array, "f n b"]
    """Radiance of a white Lambert surface per light coefficient."""
    specular: Float[Array, "f n b"]
    """Radiance of the specular lobe per light coefficient."""
    colour: Float[Array, "n c"]
    """What the clip's texture says of each sample: a factor on its albedo, then its detail."""


def crop_coordinates(pixels: Float[Array, "n 2"], box: Float[Array, "4"], size: int) -> Float[Array, "n 2"]:
    """Pixels of the input video to pixels of a crop."""
    return (pixels - box[:2]) / box[2:] * size


def photometric_objective(
    head: PyTree, variables: PyTree, data: PhotometricData, frame_weight: Float[Array, "f"], camera: Camera,
    reference_px: float | Array, config: FitConfig, *, colour_from_frames: bool = False,
    detail_from_frames: bool = False, use_detail: bool = True,
) -> Float[Array, ""]:  # fmt: skip
    """Mean over frames of the photometric term. `head` is reduced to the samples.

    colour_from_frames, detail_from_frames: take each sample's colour, or detail, from the frames themselves, at every
    evaluation, instead of `data.colour`: frames are then aligned to their common mean, and no colour of an earlier,
    worse alignment holds them back. Both are the minimisers for given variables, so they are not differentiated
    (variable projection).
    """
    params, shared, frames = variables["params"], variables["shared"], variables["frame"]
    size = data.crop.shape[1]

    def sample(frame: FrameVariables, d: PhotometricData) -> tuple[Array, Array, Array, Array]:
        pixels, albedo = at_points(head, params, shared, frame, camera, reference_px)
        where = crop_coordinates(pixels, d.box, size)
        seen = sample_bilinear(d.crop, where)
        keep = 1 - sample_bilinear(d.ignore[..., None], jax.lax.stop_gradient(where))[..., 0]
        lit = albedo * jnp.maximum(jnp.matmul(d.diffuse, frame.light), 0.0)
        gloss = jnp.maximum(jnp.matmul(d.specular, frame.light), 0.0)
        return seen, lit, gloss, d.weights * keep

    seen, lit, gloss, weights = jax.vmap(sample, in_axes=(0, picture_axes(data)))(frames, data)
    seen, detail = seen[..., :3], seen[..., 3:]
    g = config.colour_pull
    seen = g * seen + (1 - g) * jax.lax.stop_gradient(seen)
    weights = weights * frame_weight[:, None]
    colour, pattern = data.colour[:, :3], data.colour[:, 3:]
    if colour_from_frames:
        colour = jax.lax.stop_gradient(common_colour(seen, lit, gloss, weights))
    if detail_from_frames:
        pattern = jax.lax.stop_gradient(common_detail(detail, weights))
    losses = jax.vmap(photometric_loss)(lit * colour + gloss, seen, weights)
    total = jnp.maximum(jnp.sum(frame_weight), 1.0)
    result = config.photometric_weight * jnp.sum(jnp.where(frame_weight > 0, losses, 0.0)) / total
    if config.detail_weight > 0 and use_detail:
        squared = jnp.sum((detail - pattern) ** 2, axis=-1)
        errors = jnp.sum(weights * robust(squared, 0.5), axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1e-6)
        result += config.detail_weight * jnp.sum(jnp.where(frame_weight > 0, errors, 0.0)) / total
    return result


def picture_axes(data: PhotometricData) -> PhotometricData:
    """Which fields of `PhotometricData` have an axis of frames, as `vmap` wants to know it."""
    return data.replace(crop=0, ignore=0, box=0, weights=0, diffuse=0, specular=0, colour=None)


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
