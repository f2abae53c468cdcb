"""MoSAR's shading of skin per texel (Dib et al. 2024, equations 5 to 8), without cast shadows.

    m    = B_d + B_ss + B_s                                                  (5)
    B_d  = diffuse * occlusion * sum_{l <= 2} A_l / pi * L_lm * Y_lm(n)      (6)
    B_ss = diffuse * sum_{l = 1, 2} exp(-l² / t⁴) / pi * L_lm * Y_lm(n)      (7)
    B_s  = f * sum_{l <= 8} R_l * L_lm * Y_lm(mirror of the viewer)          (8)

with f = s + (1 - s)(1 - cos)⁵ of the angle between normal and viewer.

What the paper leaves open is decided thus. L is radiance, so A_l is divided by pi; S_l = exp(-l² / t⁴) is divided
with it, so that equations 6 and 7 keep the proportion in which they are printed. R_l is the caller's kernel
(`lobe_kernel`). Normals, viewer and light are in ONE frame; the paper does not say which, ours is the camera's:
`shade_texels` takes maps in the head frame and turns them by the pose.

Known and kept: f is Fresnel's term at the normal, without shadowing, so rough skin is too bright towards grazing angles
(measured on an ellipsoid: two to three times the specular light where the cosine is below 0.5). B_ss has no mean, it
adds contrast towards the light and blurs nothing. Diffuse light is not scaled by 1 - f, so a white, glossy texel can
return more than it gets. Each term is linear in the light and may be negative where the light's series is; only
`shade_texels` cuts off at 0.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from facejax.geometry.cameras import to_camera_frame
from facejax.geometry.meshes import normalise
from facejax.geometry.records import Pose, Record, record
from facejax.renderers.microfacet import schlick
from facejax.renderers.sh import filtered_light, lambert_kernel, mirror_direction

DIFFUSE_BANDS = 3
_THINNEST = 1e-2
"""Of translucency, before it is raised to the power -4."""
_GRAZING = 1e-4


@record
class TexelMaps(Record):
    """Geometry and skin of a head per texel. Texels outside the chart may hold anything finite."""

    position: Float[Array, "h w 3"]
    """Metres, head frame."""
    normal: Float[Array, "h w 3"]
    """Unit shading normals, head frame."""
    diffuse: Float[Array, "h w 3"]
    """Diffuse albedo, linear, in [0, 1]."""
    specular: Float[Array, "h w"]
    """Fresnel reflectance at normal incidence, in [0, 1]."""
    occlusion: Float[Array, "h w"]
    """Share of even light that reaches the texel, in [0, 1]; 1 is open."""
    translucency: Float[Array, "h w"]
    """In [0, 1]; high where tissue is thin. Below 0.6 it does nothing and has no gradient: start near 0.85."""


def translucency_kernel(translucency: Float[Array, "*n"], bands: int = DIFFUSE_BANDS) -> Float[Array, "*n l"]:
    """S_l / pi = exp(-l² / t⁴) / pi for l >= 1, and 0 for l = 0: even light is not scattered further."""
    l = jnp.arange(bands)
    inverse = jnp.maximum(translucency, _THINNEST)[..., None] ** -4
    return jnp.where(l > 0, jnp.exp(-(l**2) * inverse) / math.pi, 0.0)


def texel_diffuse(
    diffuse: Float[Array, "*n 3"],
    occlusion: Float[Array, "*n"],
    normals: Float[Array, "*n 3"],
    light: Float[Array, "b 3"],
) -> Float[Array, "*n 3"]:
    """Equation 6: matt skin, dimmed by ambient occlusion. Of the light, three bands are used."""
    return diffuse * occlusion[..., None] * filtered_light(normals, light, lambert_kernel(DIFFUSE_BANDS))


def texel_subsurface(
    diffuse: Float[Array, "*n 3"],
    translucency: Float[Array, "*n"],
    normals: Float[Array, "*n 3"],
    light: Float[Array, "b 3"],
) -> Float[Array, "*n 3"]:
    """Equation 7: light through thin tissue, of bands 1 and 2; 0 where translucency is 0, and of zero mean."""
    return diffuse * filtered_light(normals, light, translucency_kernel(translucency))


def texel_specular(
    specular: Float[Array, "*n"],
    normals: Float[Array, "*n 3"],
    to_eye: Float[Array, "*n 3"],
    light: Float[Array, "b 3"],
    kernel: Float[ArrayLike, "*#n l"],
) -> Float[Array, "*n 3"]:
    """Equation 8: light around the mirror direction, blurred by the lobe R_l, times Schlick's Fresnel term."""
    facing = jnp.maximum(jnp.sum(normals * to_eye, axis=-1), _GRAZING)
    return schlick(specular, facing)[..., None] * filtered_light(mirror_direction(normals, to_eye), light, kernel)


def texel_radiance(
    diffuse: Float[Array, "*n 3"],
    specular: Float[Array, "*n"],
    occlusion: Float[Array, "*n"],
    translucency: Float[Array, "*n"],
    normals: Float[Array, "*n 3"],
    to_eye: Float[Array, "*n 3"],
    light: Float[Array, "b 3"],
    kernel: Float[ArrayLike, "*#n l"],
) -> Float[Array, "*n 3"]:
    """Equation 5: diffuse, subsurface and specular light together. Linear in the light; not cut off at 0."""
    matt = texel_diffuse(diffuse, occlusion, normals, light) + texel_subsurface(diffuse, translucency, normals, light)
    return matt + texel_specular(specular, normals, to_eye, light, kernel)


def shade_texels(
    maps: TexelMaps, light: Float[Array, "b 3"], pose: Pose, kernel: Float[ArrayLike, "l"]
) -> Float[Array, "h w 3"]:
    """Radiance of every texel towards the camera under a light in the CAMERA frame, never negative.

    light: spherical harmonics, at least three bands and as many as `kernel` has. Texels that face away are shaded as at
    grazing angles.
    """
    normals = jnp.matmul(maps.normal, pose.rotation.T, precision=jax.lax.Precision.HIGHEST)
    shape = maps.position.shape
    to_eye = normalise(-to_camera_frame(maps.position.reshape(-1, 3), pose)).reshape(shape)
    return jnp.maximum(
        texel_radiance(maps.diffuse, maps.specular, maps.occlusion, maps.translucency, normals, to_eye, light, kernel),
        0.0,
    )
