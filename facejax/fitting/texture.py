"""One UV texture per clip: pictures unwrapped through the fitted head, light divided out, frames combined robustly."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from facejax.fitting.config import FitConfig
from facejax.fitting.footage import crop_image, read_frames
from facejax.fitting.schedule import Job
from facejax.geometry.colour import srgb_to_linear
from facejax.geometry.meshes import vertex_normals
from facejax.geometry.records import Camera, Face, Pose, PyTree
from facejax.models.head import HeadModel
from facejax.renderers.deferred import vertex_light
from facejax.renderers.texture import sample_bilinear
from facejax.renderers.uv import at_texels, fill_holes, locate_texels, texture_chart
from facejax.renderers.uv import on_image as drawn_at
from facejax.scenes import Unknowns, make_scene
from facejax.scenes.unknowns import light_in, take_frames, with_leaf

_MARGIN = 2.2  # face crops, in widths of the landmarks' box
_SMALLEST_PX, _LARGEST_PX = 64, 1024
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


@functools.lru_cache(maxsize=8)
def _unwrapper(head: HeadModel, side: int, first: bool) -> Callable[..., tuple[Array, Array]]:
    """(factor, confidence) per texel of one frame; of the first round from light, of later ones from the ratio of
    picture to render."""
    faces = head.topology.faces
    scene = make_scene(head, (side, side), antialiased=False)

    @jax.jit
    def unwrap(
        params: PyTree, clip: PyTree, frame: PyTree, picture: Array, ignore: Array, box: Array, triangles: Array,
        weights: Array,
    ) -> tuple[Array, Array]:  # fmt: skip
        drawn = scene.picture(params, clip, frame, box)
        linear, light = srgb_to_linear(picture), light_in(clip, frame)
        factor, trust = unwrap_frame(
            linear, ignore, drawn.face, light, drawn.pose, drawn.camera, faces, triangles, weights
        )
        if first:
            return factor, trust
        at = on_image(drawn.face, drawn.pose, drawn.camera)
        return unwrap_ratio(linear, drawn.image.colour, at, triangles, weights), trust

    return unwrap


def solve_texture(job: Job, unknowns: Unknowns, config: FitConfig) -> Unknowns:
    """Unwrap key frames through the fitted head into the clip's texture, then add what its renders still lack.

    Each further round renders the key frames, unwraps the ratio of picture to render and multiplies it in (iterative
    back-projection): resampling blurs, and this takes most of the blur back.
    """
    head, key = job.scene.head, job.key
    (path,) = head.roles["texture"]
    size, rounds = config.texture_size_for_preset, 1 + config.sharpening_for_preset
    chart = texture_chart(head.topology, size)
    boxes = job.footage.boxes(_MARGIN)
    side = crop_side(float(np.median(boxes[key, 2])))
    pictures = []
    for i, (frame, mask) in zip(key, read_frames(job.footage.clip, job.footage.masks, key), strict=True):
        ignore = np.zeros((side, side), np.float32) if mask is None else crop_image(mask, boxes[i], side)
        pictures.append(((crop_image(frame, boxes[i], side) * 255).astype(np.uint8), ignore))
    triangles, weights = jnp.asarray(chart.triangles), jnp.asarray(chart.weights)
    texture = np.ones((size, size, 3), np.float32)
    for n in range(rounds):
        unwrap = _unwrapper(head, side, n == 0)
        factors, trust = [], []
        for done, (i, (picture, ignore)) in enumerate(zip(key, pictures, strict=True)):
            job.report("texture", n * len(key) + done, rounds * len(key))
            f, t = unwrap(unknowns.params, unknowns.clip, take_frames(unknowns.frames, int(i)),
                          jnp.asarray(picture, jnp.float32) / 255, jnp.asarray(ignore), jnp.asarray(boxes[i]),
                          triangles, weights)  # fmt: skip
            factors.append(np.asarray(f, np.float16))
            trust.append(np.asarray(t, np.float16))
        colour, total = combine(np.stack(factors), np.stack(trust))
        layer, weight = np.ones((size, size, 3), np.float32), np.zeros((size, size), np.float32)
        layer.reshape(-1, 3)[chart.texels], weight.reshape(-1)[chart.texels] = colour, np.clip(2 * total, 0, 1)
        if n == 0:
            texture = fill_holes(layer, weight)
        else:
            texture = np.clip(texture * np.where(weight[..., None] > 0.2, layer, 1.0), 0.0, 20.0)
        clip = with_leaf({"clip": unknowns.clip}, path, texture.astype(np.float32))["clip"]
        unknowns = unknowns.replace(clip=clip)
    job.report("texture", 1, 1)
    return unknowns


def crop_side(box_px: float) -> int:
    """Side of the crops that a texture is unwrapped from: the power of two nearest to the face's size, so that most
    clips share compiled code."""
    return int(2 ** np.clip(np.round(np.log2(box_px)), np.log2(_SMALLEST_PX), np.log2(_LARGEST_PX)))
