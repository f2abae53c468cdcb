"""Dib et al. 2021, equations 4 to 6: what distant light makes of a vertex, without shadows.

    B_d = albedo * sum A_l / pi * L_lm * Y_lm(n)        (4)
    B_s = sum S_l * L_lm * Y_lm(mirror of the viewer)   (5)
    B   = (1 - specular) B_d + specular B_s             (6)

Three choices are ours. Equation 4 is printed without 1 / pi; here A_l is divided by pi, so that albedo is a reflectance
and the ray tracer agrees under the same light. The kernel S_l is the caller's: one value per band, or per vertex
(`lobe_kernel` is exact face on, `roughness_kernel` is close to it and cheap). Normals, viewer and light are in ONE
frame: the camera's at our borders, as in `dib_vertex_light`.

There is no Fresnel term: specular albedo blends. So B is exact for matt convex surfaces, and nearly so for glossy ones
seen face on, if the kernel is the lobe's own: `lobe_kernel(alpha, bands, normalised=False)`, whose S_0 is the share of
light that the lobe returns. With S_0 = 1, as papers have it, it is too bright by that share (1 / 0.88 for GGX at 0.3).
The error grows with roughness and towards grazing angles, where the real lobe is neither round nor in the mirror
direction.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from facejax.geometry.cameras import to_camera_frame
from facejax.geometry.meshes import normalise
from facejax.geometry.records import Face, Pose
from facejax.renderers.sh import filtered_light, irradiance, mirror_direction, roughness_kernel


def vertex_diffuse(
    normals: Float[Array, "*n 3"], albedo: Float[Array, "*n 3"], light: Float[Array, "b 3"]
) -> Float[Array, "*n 3"]:
    """Equation 4: radiance of matt skin, albedo times irradiance / pi. Linear in the light; not cut off at 0."""
    return albedo * irradiance(normals, light)


def vertex_specular(
    normals: Float[Array, "*n 3"],
    to_eye: Float[Array, "*n 3"],
    light: Float[Array, "b 3"],
    kernel: Float[ArrayLike, "*#n l"],
) -> Float[Array, "*n 3"]:
    """Equation 5: light around the mirror direction, blurred by the lobe. Linear in the light; not cut off at 0."""
    return filtered_light(mirror_direction(normals, to_eye), light, kernel)


def vertex_radiance(
    normals: Float[Array, "*n 3"],
    to_eye: Float[Array, "*n 3"],
    albedo: Float[Array, "*n 3"],
    specular: Float[Array, "*n"],
    light: Float[Array, "b 3"],
    kernel: Float[ArrayLike, "*#n l"],
) -> Float[Array, "*n 3"]:
    """Equation 6: diffuse and specular light, blended by specular albedo. Linear in the light; not cut off at 0.

    Where the kernel's first value is 1, a white surface in white light is white: no energy is created.
    """
    share = specular[..., None]
    diffuse = vertex_diffuse(normals, albedo, light)
    return (1 - share) * diffuse + share * vertex_specular(normals, to_eye, light, kernel)


def dib_vertex_light(
    face: Face,
    light: Float[Array, "b 3"],
    pose: Pose,
    normals_head: Float[Array, "v 3"],
    kernel: Float[ArrayLike, "*#v l"] | None = None,
) -> tuple[Float[Array, "v 3"], Float[Array, "v 3"]]:
    """(irradiance / pi, specular radiance) at vertices after equations 4 to 6, as a renderer's `shade` gives them.

    light: spherical harmonics in the camera frame. kernel: S_l; None: `roughness_kernel` of the vertices' roughness.
    Negative radiance is cut off at 0.
    """
    normals = jnp.matmul(normals_head, pose.rotation.T, precision=jax.lax.Precision.HIGHEST)
    to_eye = normalise(-to_camera_frame(face.vertices, pose))
    if kernel is None:
        kernel = roughness_kernel(face.roughness, math.isqrt(light.shape[0]))
    share = face.specular[:, None]
    diffuse = (1 - share) * irradiance(normals, light)
    gloss = share * vertex_specular(normals, to_eye, light, kernel)
    return jnp.maximum(diffuse, 0.0), jnp.maximum(gloss, 0.0)
