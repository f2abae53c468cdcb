"""The photometric objective, point-sampled: a head is lit at points fixed on its surface and compared with the picture there.

It is the same composition as `render` without the pixels in between (Dib et al. 2021, eq. 7): exact derivatives for motion,
shape, light and colour, none for silhouettes, at a hundredth of the cost. Which points a frame sees, and how light of each
spherical-harmonic coefficient reaches the eye from them, is found once before a stage and held during it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from facejax.fitting.config import FitConfig
from facejax.fitting.landmark_fit import clip_camera
from facejax.fitting.variables import ClipVariables, FrameVariables, pose_of
from facejax.geometry.cameras import project, to_camera_frame
from facejax.geometry.records import Camera, PyTree, Record, record
from facejax.objectives.photometric import photometric_loss
from facejax.renderers.texture import sample_bilinear


@record
class PhotometricData(Record):
    """What was seen in a batch of frames."""

    crop: Float[Array, "f s s 3"]
    """Face crops, display values in [0, 1]."""
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
    colour: Float[Array, "n 3"]
    """What the clip's texture says of each sample: a factor on its albedo."""


def at_samples(
    head: PyTree, params: PyTree, shared: ClipVariables, frame: FrameVariables, camera: Camera, reference_px: float
) -> tuple[Float[Array, "n 2"], Float[Array, "n 3"]]:
    """Where a head reduced to samples projects in the input video (px), and its albedo (linear)."""
    camera = clip_camera(shared, camera)
    face = head.decode(params, shared.code, frame.code, jnp.array([0.0, 0.0, 1.0]))
    return project(to_camera_frame(face.vertices, pose_of(frame.pose, camera, reference_px)), camera), face.albedo


def crop_coordinates(pixels: Float[Array, "n 2"], box: Float[Array, "4"], size: int) -> Float[Array, "n 2"]:
    """Pixels of the input video to pixels of a crop."""
    return (pixels - box[:2]) / box[2:] * size


def photometric_objective(
    head: PyTree, variables: PyTree, data: PhotometricData, frame_weight: Float[Array, "f"], camera: Camera,
    reference_px: float, config: FitConfig,
) -> Float[Array, ""]:  # fmt: skip
    """Mean over frames of the photometric term. `head` is reduced to the samples."""
    params, shared, frames = variables["params"], variables["shared"], variables["frame"]
    size = data.crop.shape[1]

    def one(frame: FrameVariables, d: PhotometricData) -> Array:
        pixels, albedo = at_samples(head, params, shared, frame, camera, reference_px)
        where = crop_coordinates(pixels, d.box, size)
        seen = sample_bilinear(d.crop, where)
        keep = 1 - sample_bilinear(d.ignore[..., None], jax.lax.stop_gradient(where))[..., 0]
        lit = jnp.maximum(jnp.matmul(d.diffuse, frame.light), 0.0)
        gloss = jnp.maximum(jnp.matmul(d.specular, frame.light), 0.0)
        return photometric_loss(albedo * data.colour * lit + gloss, seen, d.weights * keep)

    per_frame = PhotometricData(crop=0, ignore=0, box=0, weights=0, diffuse=0, specular=0, colour=None)
    losses = jax.vmap(one, in_axes=(0, per_frame))(frames, data)
    total = jnp.maximum(jnp.sum(frame_weight), 1.0)
    return config.photometric_weight * jnp.sum(jnp.where(frame_weight > 0, losses, 0.0)) / total
