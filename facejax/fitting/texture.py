"""One UV texture per clip: pictures unwrapped through the fitted head, light divided out, frames combined robustly."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from facejax.geometry.meshes import vertex_normals
from facejax.geometry.records import Camera, Face, Pose
from facejax.renderers.deferred import vertex_light
from facejax.renderers.texture import sample_bilinear
from facejax.renderers.uv import Chart, at_texels, fill_holes, locate_texels, texture_chart
from facejax.renderers.uv import on_image as drawn_at

__all__ = ["Chart", "combine", "fill_holes", "on_image", "texture_chart", "unwrap_frame", "unwrap_ratio"]

_TEXELS_AT_ONCE = 1 << 15  # keeps the temporaries of `combine` small


def unwrap_frame(
    image: Float[Array, "h w 3"],
    ignore: Float[Array, "h w"],
    face: Face,
    light: Float[Array, "b 3"],
    pose: Pose,
    camera: Camera,
    faces: np.ndarray,
    triangles: Int[Array, "n 3"] | np.ndarray,
    weights: Float[Array, "n 3"] | np.ndarray,
) -> tuple[Float[Array, "n 3"], Float[Array, "n"]]:
    """(factor, confidence) per texel: linear colour over lit albedo, and how well this frame sees the texel.

    image: linear. Confidence is that of `locate_texels`; it is 0 where the light model is near black or `ignore` marks
    the pixel, and low where the picture is clipped.
    """
    size = (image.shape[0], image.shape[1])
    xy, confidence = locate_texels(face.vertices, pose, camera, faces, size, triangles, weights)
    diffuse, specular = vertex_light(face, light, pose, vertex_normals(face.vertices, faces))
    lit = at_texels(jnp.concatenate([face.albedo * diffuse, specular], axis=-1), triangles, weights)
    shade, gloss = lit[:, :3], lit[:, 3:]
    colour = sample_bilinear(image, xy)
    clipped = jnp.max(colour, axis=-1) > 0.98
    usable = sample_bilinear(ignore[..., None], xy)[:, 0] < 0.01
    confidence = jnp.where(usable & (jnp.min(shade, axis=-1) > 0.005), confidence, 0.0)
    confidence = confidence * jnp.where(clipped, 0.1, 1.0)
    return jnp.maximum(colour - gloss, 0.0) / jnp.maximum(shade, 0.005), confidence


def on_image(face: Face, pose: Pose, camera: Camera) -> Float[Array, "v 2"]:
    """Where vertices project, pixels."""
    return drawn_at(face.vertices, pose, camera)[:, :2]


def unwrap_ratio(
    image: Float[Array, "h w 3"],
    render: Float[Array, "h w 3"],
    vertices_px: Float[Array, "v 2"],
    triangles: Int[Array, "n 3"] | np.ndarray,
    weights: Float[Array, "n 3"] | np.ndarray,
) -> Float[Array, "n 3"]:
    """Per texel, picture over render (both linear): what is left to multiply into the texture."""
    where = at_texels(vertices_px, triangles, weights)
    seen = sample_bilinear(jnp.concatenate([image, render], axis=-1), where)
    return jnp.clip((seen[:, :3] + 0.005) / (seen[:, 3:] + 0.005), 0.5, 2.0)


def combine(
    factors: Float[np.ndarray, "k n 3"], confidence: Float[np.ndarray, "k n"], *, rounds: int = 3, scale: float = 0.15
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n"]]:
    """Robust weighted mean over frames (iteratively reweighted, Cauchy weights in log colour) and total confidence."""
    n = factors.shape[1]
    colour, sum_confidence = np.empty((n, 3), np.float32), np.empty(n, np.float32)
    for start in range(0, n, _TEXELS_AT_ONCE):
        part = slice(start, start + _TEXELS_AT_ONCE)
        log = np.log(np.clip(factors[:, part].astype(np.float32), 0.02, 20.0))
        trust = confidence[:, part].astype(np.float32)
        weight = trust
        for _ in range(rounds):
            mean = _weighted_mean(log, weight)
            weight = trust / (1 + np.square(log - mean).sum(axis=2) / scale**2)
        colour[part], sum_confidence[part] = np.exp(_weighted_mean(log, weight)), trust.sum(axis=0)
    return colour, sum_confidence


def _weighted_mean(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return (weight[..., None] * values).sum(axis=0) / np.maximum(weight.sum(axis=0), 1e-9)[:, None]
