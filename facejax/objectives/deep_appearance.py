"""Losses of the deep appearance model and of the lighting network (Lombardi et al. 2018; Chen et al. 2021, eq. 4-5).

Each returns its weighted terms by name; their sum is the loss. All are of one frame and one camera, and are means where
the papers write sums, as in Lombardi et al.'s released code: weights then do not depend on resolution or mesh.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

Terms = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class AppearanceWeights:
    """Weights of the deep appearance model's terms: the defaults of Lombardi et al.'s released code."""

    texture: float = 1.0
    """Of the mean squared texel difference, in units of the textures' standard deviation."""
    geometry: float = 1.0
    """Of the mean squared coordinate difference, in units of the vertices' standard deviation."""
    kl: float = 0.01
    """Of the divergence of the code from the standard normal, mean over its entries."""


@dataclasses.dataclass(frozen=True)
class LightingWeights:
    """Weights of eq. (4) and (5). The paper does not tell its units of intensity; ours are explicit."""

    image: float = 255.0
    """Of the mean absolute difference of linear radiance: intensities count from 0 to 255."""
    geometry: float = 1.0
    """Of the mean squared distance of vertices, mm^2; lambda_geo of the paper."""
    code: float = 0.1
    """Of the mean square of the code's entries; lambda_reg of the paper."""


def kl_to_standard_normal(mean: Float[Array, "z"], log_std: Float[Array, "z"]) -> Float[Array, ""]:
    """KL divergence of N(mean, exp(log_std)^2) from N(0, 1), in nats, mean over the entries. Zero iff they agree."""
    return jnp.mean(0.5 * (jnp.exp(2 * log_std) + mean**2 - 1) - log_std)


def masked_square(
    image: Float[Array, "h w 3"], target: Float[Array, "h w 3"], mask: Float[Array, "h w"]
) -> Float[Array, ""]:
    """Mean over all texels of |mask * (image - target)|^2 / 3. The target may be anything, NaN too, where mask is 0."""
    shown = mask[..., None] > 0
    missed = jnp.where(shown, image - jnp.where(shown, target, 0.0), 0.0)
    return jnp.mean((mask[..., None] * missed) ** 2)


def masked_l1(
    image: Float[Array, "h w 3"], target: Float[Array, "h w 3"], mask: Float[Array, "h w"]
) -> Float[Array, ""]:
    """Mean absolute difference per channel over the mask; 0 where it is empty. See `masked_square` for NaN."""
    shown = mask[..., None] > 0
    missed = jnp.where(shown, image - jnp.where(shown, target, 0.0), 0.0)
    return jnp.sum(mask[..., None] * jnp.abs(missed)) / jnp.maximum(3 * jnp.sum(mask), 1e-6)


def vertex_square_mm(vertices: Float[Array, "v 3"], tracked: Float[Array, "v 3"]) -> Float[Array, ""]:
    """Mean squared distance of vertices in mm^2; both are in metres."""
    return jnp.mean(jnp.sum((1e3 * (vertices - tracked)) ** 2, axis=-1))


def appearance_terms(
    texture: Float[Array, "h w 3"],
    seen_texture: Float[Array, "h w 3"],
    mask: Float[Array, "h w"],
    vertices: Float[Array, "v 3"],
    tracked: Float[Array, "v 3"],
    mean: Float[Array, "z"],
    log_std: Float[Array, "z"],
    texture_std: Float[Array, ""],
    vertices_std: Float[Array, ""],
    weights: AppearanceWeights = AppearanceWeights(),
) -> Terms:
    """Texture, geometry and code of a frame seen by one camera: Lombardi et al. 2018's loss, to be minimised.

    texture, vertices: decoded. seen_texture: unwrapped from the camera's image, of weight `mask` (0 where the camera
    does not see the skin). mean, log_std: of the encoder. The standard deviations are those of the model's `state`.
    """
    return {
        "texture": weights.texture * masked_square(texture, seen_texture, mask) / texture_std**2,
        "geometry": weights.geometry * jnp.mean(((vertices - tracked) / vertices_std) ** 2),
        "kl": weights.kl * kl_to_standard_normal(mean, log_std),
    }


def lighting_terms(
    rendered: Float[Array, "h w 3"],
    image: Float[Array, "h w 3"],
    mask: Float[Array, "h w"],
    vertices: Float[Array, "v 3"],
    tracked: Float[Array, "v 3"],
    code: Float[Array, "z"],
    tracked_weight: Float[Array, ""] | float = 1.0,
    weights: LightingWeights = LightingWeights(),
) -> Terms:
    """Eq. (5) of one frame and camera: masked L1 of linear radiance (eq. 4), decoded against tracked mesh, small codes.

    rendered: the relit head. mask: foreground, in [0, 1]. tracked_weight: 0 for partly lit frames that were not tracked
    (then `tracked` may be anything finite).
    """
    return {
        "image": weights.image * masked_l1(rendered, image, mask),
        "geometry": weights.geometry * tracked_weight * vertex_square_mm(vertices, tracked),
        "code": weights.code * jnp.mean(code**2),
    }


def superposition_error(
    together: Float[Array, "h w 3"],
    one: Float[Array, "h w 3"],
    other: Float[Array, "h w 3"],
    mask: Float[Array, "h w"],
) -> Float[Array, ""]:
    """Mean |T(a + b) - T(a) - T(b)| over the mask: how far relit textures are from adding up, as light does.

    In linear radiance. Textures under no light are black; T(0) counts as error where a network says otherwise.
    """
    return masked_l1(together, one + other, mask)
