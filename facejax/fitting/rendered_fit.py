"""The rendered objective: whole pictures of a lit head against frames (Chen et al. 2021, eq. 7 and 8).

Residuals are display values on a scale of 0 to 255, averaged over the head's pixels where the paper sums: weights then
do not depend on resolution.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from facejax.fitting.config import FitConfig
from facejax.fitting.landmark_fit import clip_camera
from facejax.fitting.light_models import LightModel
from facejax.fitting.variables import ClipVariables, FrameVariables, pose_of
from facejax.geometry.cameras import crop_camera, project, to_camera_frame
from facejax.geometry.colour import linear_to_srgb
from facejax.geometry.meshes import normalise, vertex_normals
from facejax.geometry.records import Camera, Face, Image, Pose, PyTree, Record, record
from facejax.models.deep_appearance import view_direction
from facejax.renderers.deferred import Render


@record
class RenderedData(Record):
    """What was seen in a frame."""

    picture: Float[Array, "s s 3"]
    """Face crop, display values in [0, 1]."""
    ignore: Float[Array, "s s"]
    """1 where a mask says that a pixel is not the face."""
    box: Float[Array, "4"]
    """Left, top, width, height of the crop in pixels of the input video."""
    prepared: Float[Array, "a b"]
    """Of the light model, for this frame's geometry."""
    target: Float[Array, "v 2"]
    """Where flow says that each vertex is, pixels of the crop."""
    target_weight: Float[Array, "v"]
    """0 where flow says nothing of a vertex."""


def draw(
    head: PyTree,
    lights: LightModel,
    render: Render,
    params: PyTree,
    shared: ClipVariables,
    frame: FrameVariables,
    data: RenderedData,
    camera: Camera,
    reference_px: float | Array,
) -> tuple[Image, Face, Pose, Camera]:
    """(picture of the crop in linear radiance, the lit face, its pose, the crop's camera)."""
    camera = clip_camera(shared, camera)
    pose = pose_of(frame.pose, camera, reference_px)
    face = head.decode(params, shared.code, frame.code, view_direction(pose))
    lit = lights.lit(params, face, shared.code.light + frame.light, pose, data.prepared)
    size = data.picture.shape[0]
    small = crop_camera(camera, data.box, (size, size))
    return render(lit, jnp.zeros((1, 3)), pose, small), lit, pose, small


def laplacian(image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    """Sum of the four neighbours minus four times the pixel; borders repeat. Zero on constants and slopes."""
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    return padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * image


def inside(mask: Float[Array, "h w"]) -> Float[Array, "h w"]:
    """1 where a pixel and all its neighbours are wholly covered."""
    whole = (mask > 0.999).astype(mask.dtype)
    return -jax.lax.reduce_window(-whole, -jnp.inf, jax.lax.max, (3, 3), (1, 1), "SAME")


def picture_loss(
    drawn: Float[Array, "h w 3"], seen: Float[Array, "h w 3"], mask: Float[Array, "h w"], laplacian_weight: float
) -> Float[Array, ""]:
    """Eq. (7) of one frame: mean absolute difference over the mask, and that of the difference's Laplacian.

    drawn, seen: display values in [0, 1]; where the picture is burnt out, brighter is no error. What is returned counts
    from 0 to 255, mean over pixels and colours.
    """
    burnt_out = (seen > 0.995) & (drawn > seen)
    residual = 255 * jnp.where(burnt_out, 0.0, seen - drawn)
    total = jnp.maximum(3 * jnp.sum(mask), 1.0)
    first = jnp.sum(mask[..., None] * jnp.abs(residual)) / total
    if laplacian_weight == 0:
        return first
    return first + laplacian_weight * jnp.sum(mask[..., None] * jnp.abs(laplacian(residual))) / total


def flow_loss(
    pixels: Float[Array, "v 2"], target: Float[Array, "v 2"], weight: Float[Array, "v"], side_px: int
) -> Float[Array, ""]:
    """Eq. (8) of one frame: mean squared distance of projected vertices from where flow puts them.

    side_px: of the crop; distances are taken as if it were 256, so that the weight serves every size.
    """
    squared = jnp.sum((256.0 / side_px * (pixels - target)) ** 2, axis=-1)
    return jnp.sum(weight * squared) / jnp.maximum(jnp.sum(weight), 1.0)


def visible_vertices(
    face: Face, image: Image, pose: Pose, camera: Camera, faces: np.ndarray, tolerance_m: float = 0.003
) -> tuple[Float[Array, "v 2"], Float[Array, "v"]]:
    """(pixels, weight): where vertices are in the image of their own mesh, and 1 if they are seen there, else 0."""
    in_camera = to_camera_frame(face.vertices, pose)
    pixels = project(in_camera, camera)
    normals = jnp.matmul(vertex_normals(face.vertices, faces), pose.rotation.T, precision=jax.lax.Precision.HIGHEST)
    facing = jnp.sum(normals * normalise(-in_camera), axis=-1)
    height, width = image.depth.shape
    column, row = (jnp.floor(pixels[:, i]).astype(jnp.int32) for i in (0, 1))
    on_picture = (column >= 0) & (row >= 0) & (column < width) & (row < height)
    front = image.depth[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
    seen = on_picture & (front > 0) & (in_camera[:, 2] < front + tolerance_m) & (facing > 0.3)
    return pixels, seen.astype(jnp.float32)


def rendered_objective(
    head: PyTree, lights: LightModel, render: Render, camera: Camera, reference_px: float | Array, config: FitConfig
) -> Callable[[PyTree, ClipVariables, FrameVariables, RenderedData, bool], Float[Array, ""]]:
    """(params, shared, frame, data, flow) -> what one frame adds to the loss; `flow` (static) adds eq. (8)."""

    def one(params: PyTree, shared: ClipVariables, frame: FrameVariables, data: RenderedData, flow: bool) -> Array:
        image, lit, pose, small = draw(head, lights, render, params, shared, frame, data, camera, reference_px)
        mask = jax.lax.stop_gradient(inside(image.coverage)) * (1 - data.ignore)
        loss = picture_loss(linear_to_srgb(image.colour), data.picture, mask, config.laplacian_weight)
        loss += config.code_weight * jnp.mean(frame.code.code**2)
        if flow and config.flow_weight > 0:
            pixels = project(to_camera_frame(lit.vertices, pose), small)
            loss += config.flow_weight * flow_loss(pixels, data.target, data.target_weight, data.picture.shape[0])
        return loss

    return one
