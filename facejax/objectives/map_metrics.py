"""How good a surface's map is (albedo, specular, roughness): texel by texel, or as a camera sees it.

Maps that share a layout are compared in UV; maps of different layouts are drawn by one camera first, as Dib et al. 2021
compare theirs with measured ones. Values are in [0, 1].
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from facejax.geometry.errors import InputError
from facejax.geometry.meshes import Topology
from facejax.geometry.records import Camera, Face, Pose
from facejax.objectives.metrics import masked_mean, psnr, ssim_map
from facejax.renderers.deferred import make_renderer


@dataclasses.dataclass(frozen=True)
class MapScore:
    """How like a reference a map, or a picture of one, is."""

    psnr_db: float
    """Peak signal-to-noise ratio for the range 1, dB; infinite if equal."""
    ssim: float
    """Mean structural similarity, windows of valid pixels only, in [-1, 1]; 1 if equal."""
    share: float
    """Share of the reference's valid pixels that were compared."""


@dataclasses.dataclass(frozen=True)
class DrawnMap:
    """A map as a camera sees it on its surface."""

    values: Float[np.ndarray, "h w c"]
    valid: Bool[np.ndarray, "h w"]
    """Pixels wholly of valid texels."""


def map_score(
    values: Float[ArrayLike, "h w c"],
    reference: Float[ArrayLike, "_ _ _"],
    valid: Bool[ArrayLike, "_ _"] | None = None,
    reference_valid: Bool[ArrayLike, "_ _"] | None = None,
) -> MapScore:
    """A map against a reference of the same layout, over texels that are valid in both; None: all of them.

    What other texels hold is not looked at, NaN included. Raises `InputError` for shapes that differ, values outside
    [0, 1], and when no texel is valid in both.
    """
    ours, theirs = np.asarray(values, np.float32), np.asarray(reference, np.float32)
    if ours.shape != theirs.shape or ours.ndim != 3:
        raise InputError(
            f"Maps to compare are (h, w, c), of one size, got {ours.shape} and {theirs.shape}: resize one, or draw "
            "both."
        )
    masks = [np.ones(ours.shape[:2], bool) if m is None else np.asarray(m, bool) for m in (valid, reference_valid)]
    for mask in masks:
        if mask.shape != ours.shape[:2]:
            raise InputError(f"A map of {ours.shape[:2]} texels needs a mask of the same size, got {mask.shape}.")
    both = masks[0] & masks[1]
    if not both.any():
        raise InputError("No texel is valid in both maps, so there is nothing to compare.")
    for name, one in (("map", ours), ("reference", theirs)):
        low, high = one[both].min(), one[both].max()
        if not (low >= 0 and high <= 1 + 1e-5):  # a drawn map is rounded
            raise InputError(f"The valid values of a {name} must be in [0, 1], got from {low:.3g} to {high:.3g}.")
    ours, theirs = (np.where(both[..., None], one, 0) for one in (ours, theirs))
    return MapScore(
        psnr_db=float(psnr(ours, theirs, both)),
        ssim=float(masked_mean(ssim_map(ours, theirs, both), jnp.asarray(both))),
        share=float(both.sum() / masks[1].sum()),
    )


def draw_map(
    topology: Topology,
    vertices: Float[ArrayLike, "v 3"],
    values: Float[ArrayLike, "h w c"],
    pose: Pose,
    camera: Camera,
    size: tuple[int, int],
    valid: Bool[ArrayLike, "_ _"] | None = None,
) -> DrawnMap:
    """What a camera sees of a map on its surface, without light: each pixel has the map's own value.

    vertices: metres, head frame. values: one or three channels, not negative. size: (height, width) of the picture.
    valid: texels that hold anything; None: all. Pixels that even partly come from others are not valid. Raises
    `InputError` for other numbers of channels, and as `make_renderer` does.
    """
    texture = np.asarray(values, np.float32)
    if texture.ndim != 3 or texture.shape[2] not in (1, 3):
        raise InputError(f"A map to draw is (h, w, 1) or (h, w, 3), got {texture.shape}.")
    good = np.ones(texture.shape[:2], bool) if valid is None else np.asarray(valid, bool)
    if good.shape != texture.shape[:2]:
        raise InputError(f"A map of {texture.shape[:2]} texels needs a mask of the same size, got {good.shape}.")
    points = jnp.asarray(vertices, jnp.float32)
    render = make_renderer(topology, size, shade=_unlit, antialiased=False)
    flat = jnp.zeros(len(points))

    def drawn(texels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        face = Face(
            vertices=points,
            albedo=jnp.ones_like(points),
            texture=jnp.broadcast_to(jnp.asarray(texels, jnp.float32), (*texels.shape[:2], 3)),
            specular=flat,
            roughness=flat + 1,
        )
        image = render(face, jnp.zeros((1, 3)), pose, camera)
        return np.asarray(image.colour), np.asarray(image.coverage)

    colour, covered = drawn(np.where(good[..., None], texture, 0))
    seen = (covered > 0.999) & (drawn(good[..., None])[0][..., 0] > 0.999)
    return DrawnMap(values=colour[..., : texture.shape[2]], valid=seen)


def projected_score(drawn: DrawnMap, reference: DrawnMap) -> MapScore:
    """A map against a reference of another layout, each drawn by the same camera with `draw_map`, where both are valid.

    Raises `InputError` as `map_score` does.
    """
    return map_score(drawn.values, reference.values, drawn.valid, reference.valid)


def _unlit(face: Face, light: Array, pose: Pose, normals_head: Array) -> tuple[Array, Array]:
    return jnp.ones_like(face.albedo), jnp.zeros_like(face.albedo)
