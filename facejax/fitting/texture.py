"""One UV texture per clip: pictures unwrapped through the fitted head, light divided out, frames combined robustly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from facejax.geometry.cameras import project, to_camera_frame
from facejax.geometry.meshes import Topology, normalise, vertex_normals
from facejax.geometry.records import Camera, Face, Pose
from facejax.renderers.deferred import vertex_light
from facejax.renderers.raster import rasterise
from facejax.renderers.texture import sample_bilinear

_TEXELS_AT_ONCE = 1 << 15  # keeps the temporaries of `combine` small


@dataclasses.dataclass(frozen=True, eq=False)
class Chart:
    """Which surface point each covered texel of a square texture shows."""

    size: int
    texels: np.ndarray
    """(n,) flat ids, row 0 at the top."""
    triangles: np.ndarray
    """(n, 3) vertex ids."""
    weights: np.ndarray
    """(n, 3) barycentric weights."""


def texture_chart(topology: Topology, size: int) -> Chart:
    """Rasterise the UV layout once: texel centres to points on the mesh."""
    flat = np.asarray(topology.uv) * [size, -size] + [0, size]
    corners = jnp.asarray(np.column_stack([flat, np.ones(len(flat))]), jnp.float32)
    fragments = jax.jit(lambda c: rasterise(c, topology.uv_faces, (size, size), cull=False))(corners)
    triangle = np.asarray(fragments.triangle).ravel()
    texels = np.flatnonzero(triangle >= 0)
    weights = np.asarray(fragments.barycentric).reshape(-1, 3)[texels]
    return Chart(
        size=size, texels=texels, triangles=topology.faces[triangle[texels]], weights=weights.astype(np.float32)
    )


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

    image: linear. Confidence is the squared cosine to the viewer, fading to 0 near depth edges (so that colour from
    behind a silhouette is not taken), where the light model is near black, and where the picture is clipped.
    """
    size = (image.shape[0], image.shape[1])
    in_camera = to_camera_frame(face.vertices, pose)
    drawn = jnp.concatenate([project(in_camera, camera), in_camera[:, 2:]], axis=-1)
    fragments = rasterise(drawn, faces, size)
    depth = jnp.where(fragments.triangle >= 0, fragments.depth, 10.0)
    normals = vertex_normals(face.vertices, faces)
    diffuse, specular = vertex_light(face, light, pose, normals)
    turned = jnp.matmul(normals, pose.rotation.T, precision="highest")
    cosine = jnp.sum(turned * normalise(-in_camera), axis=-1, keepdims=True)
    stack = jnp.concatenate([drawn, face.albedo * diffuse, cosine, specular], axis=-1)
    a, b, c = (stack[triangles[:, i]] * weights[:, i, None] for i in range(3))
    value = a + b + c
    xy, z, shade, facing = value[:, :2], value[:, 2], value[:, 3:6], value[:, 6]
    # the nearest depth around the pixel: a texel next to an occlusion edge is not trusted. An eyeball lies a millimetre
    # behind the lid's margin, so the tolerance is no more than what the slope of the surface makes of two pixels
    near = -jax.lax.reduce_window(-depth, -jnp.inf, jax.lax.max, (3, 3), (1, 1), "SAME")
    front = sample_bilinear(near[..., None], xy)[:, 0]
    slope = jnp.sqrt(jnp.maximum(1 / jnp.clip(facing, 0.2, 1.0) ** 2 - 1, 0.0))
    inside = (xy[:, 0] > 1) & (xy[:, 1] > 1) & (xy[:, 0] < size[1] - 1) & (xy[:, 1] < size[0] - 1)
    seen = inside & (z < front + 0.0012 + 2.5 * slope * z / camera.focal[0])
    colour = sample_bilinear(image, xy)
    clipped = jnp.max(colour, axis=-1) > 0.98
    usable = sample_bilinear(ignore[..., None], xy)[:, 0] < 0.01
    confidence = jnp.where(seen & usable & (jnp.min(shade, axis=-1) > 0.005), jnp.clip(facing, 0, 1) ** 2, 0.0)
    confidence = confidence * jnp.where(clipped, 0.1, 1.0)
    return jnp.maximum(colour - value[:, 7:], 0.0) / jnp.maximum(shade, 0.005), confidence


def on_image(face: Face, pose: Pose, camera: Camera) -> Float[Array, "v 2"]:
    """Where vertices project, pixels."""
    return project(to_camera_frame(face.vertices, pose), camera)


def unwrap_ratio(
    image: Float[Array, "h w 3"],
    render: Float[Array, "h w 3"],
    vertices_px: Float[Array, "v 2"],
    triangles: Int[Array, "n 3"] | np.ndarray,
    weights: Float[Array, "n 3"] | np.ndarray,
) -> Float[Array, "n 3"]:
    """Per texel, picture over render (both linear): what is left to multiply into the texture."""
    a, b, c = (vertices_px[triangles[:, i]] * weights[:, i, None] for i in range(3))
    seen = sample_bilinear(jnp.concatenate([image, render], axis=-1), a + b + c)
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


def fill_holes(image: Float[np.ndarray, "h w c"], weight: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w c"]:
    """Texels of low weight from their surroundings, by pushing averages down a pyramid and pulling them back up."""
    if image.shape[0] == 1:
        return np.where(weight[..., None] > 0, image, 1.0)
    h, w = image.shape[0] // 2, image.shape[1] // 2
    blocks = (image * weight[..., None]).reshape(h, 2, w, 2, -1).sum(axis=(1, 3))
    block_weight = weight.reshape(h, 2, w, 2).sum(axis=(1, 3))
    coarse = blocks / np.maximum(block_weight, 1e-9)[..., None]
    filled = fill_holes(coarse, np.minimum(block_weight, 1.0))
    up = _smooth(filled.repeat(2, axis=0).repeat(2, axis=1))
    keep = np.clip(weight, 0, 1)[..., None]
    return image * keep + up * (1 - keep)


def _smooth(image: np.ndarray) -> np.ndarray:
    """Binomial blur over three texels each way, so that a pulled-up level shows no blocks."""
    for axis in (0, 1):
        padded = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in range(image.ndim)], mode="edge")
        low, mid, high = (np.take(padded, range(i, i + image.shape[axis]), axis=axis) for i in range(3))
        image = 0.25 * low + 0.5 * mid + 0.25 * high
    return image
