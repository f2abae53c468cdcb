"""Rough surfaces: Lambert plus simplified Cook and Torrance (1982), pointwise.

f = albedo / pi + F D G / (4 (n . l)(n . v)), with the half vector h of light l and viewer v. D is the GGX (Walter et
al. 2007) or Beckmann distribution of facets, G = G1(l) G1(v) is Smith's shadowing, F is Schlick's Fresnel term with
`specular` as reflectance at normal incidence; where that is 0 there is no specular term at all. Width `alpha` in (0, 1]
is the square of what some tools call roughness; redner's roughness is alpha squared. As in the papers, the diffuse term
is not scaled by 1 - F, unless `energy` says so (`facejax.renderers.diffuse_share`).

All vectors are unit vectors away from the surface, in one frame of the caller's choice. Everything depends on three
cosines only: n . l, l . v and n . v. The half vector follows from them by |l + v|² = 2 + 2 l . v, so a matrix of
(points, directions) costs two small matrix products, and no vector per pair is ever made.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from facejax.geometry.errors import InputError
from facejax.renderers.directional_albedo import check_energy, diffuse_share

_HIGHEST = jax.lax.Precision.HIGHEST
_TINY = 1e-6


def check_surface(
    *, albedo: ArrayLike | None = None, specular: ArrayLike | None = None, roughness: ArrayLike | None = None
) -> None:
    """Refuse what no surface has. For borders (files, commands), where values are known: not under jit.

    albedo and specular must be in [0, 1], roughness (alpha) in (0, 1]. Raises `InputError`.
    """
    for name, values in (("albedo", albedo), ("specular reflectance", specular)):
        if values is not None:
            low, high = _range(values, name)
            if low < 0 or high > 1:
                raise InputError(
                    f"A surface's {name} must be in [0, 1], linear, got values from {low:.3g} to {high:.3g}: divide "
                    "8-bit values by 255 and undo their sRGB curve."
                )
    if roughness is not None:
        low, high = _range(roughness, "roughness")
        if low <= 0 or high > 1:
            raise InputError(
                f"Roughness (alpha, the width of the specular lobe) must be in (0, 1], got values from {low:.3g} to "
                f"{high:.3g}: use 0.05 for a glossy surface."
            )


def _range(values: ArrayLike, name: str) -> tuple[float, float]:
    known = np.asarray(values)
    if known.size == 0 or not np.isfinite(known).all():
        raise InputError(
            f"A surface's {name} must be finite numbers, got {'NaN or infinity' if known.size else 'none'}."
        )
    return float(known.min()), float(known.max())


def _unknown(distribution: str) -> InputError:
    return InputError(f'A distribution of facets is "ggx" or "beckmann", got {distribution!r}.')


def facet_density(
    cos_h: Float[ArrayLike, "*#n"], alpha: Float[ArrayLike, "*#n"], distribution: str = "ggx"
) -> Float[Array, "*#n"]:
    """D(h), per steradian: density of facets whose normal is h, so that D (n . h) integrates to 1.

    cos_h: n . h in [-1, 1]; no facet faces away. Walter et al. 2007, equations 25 and 33.
    """
    cos_h, alpha = jnp.asarray(cos_h), jnp.asarray(alpha)
    faces_out = cos_h > 0
    c2 = jnp.where(faces_out, jnp.clip(cos_h, 0.0, 1.0), 1.0) ** 2
    return jnp.where(faces_out, _density(c2, alpha**2, distribution), 0.0)


def _density(c2: Array, a2: Array, distribution: str) -> Array:
    if distribution == "ggx":
        return a2 / (math.pi * (1 - c2 * (1 - a2)) ** 2)
    if distribution == "beckmann":
        c2 = jnp.maximum(c2, _TINY)
        return jnp.exp(jnp.maximum((c2 - 1) / (a2 * c2), -80.0)) / (math.pi * a2 * c2**2)
    raise _unknown(distribution)


def smith_g1(
    cosine: Float[ArrayLike, "*#n"], alpha: Float[ArrayLike, "*#n"], distribution: str = "ggx"
) -> Float[Array, "*#n"]:
    """Share of facets that are visible from a direction at this cosine to the normal, in [0, 1]; 0 from behind.

    Exact for GGX; for Beckmann the rational fit of Walter et al. 2007, whose error is under 0.35 %.
    """
    cosine = jnp.maximum(jnp.asarray(cosine), 0.0)
    return 2 * cosine * _g1_over_two_cosines(cosine, jnp.asarray(alpha) ** 2, distribution)


def _g1_over_two_cosines(cosine: Array, a2: Array, distribution: str) -> Array:
    """G1 / (2 cosine), finite at grazing angles: the division that Cook and Torrance's denominator asks for."""
    if distribution == "ggx":
        return 1 / (cosine + jnp.sqrt(a2 + (1 - a2) * cosine**2))
    if distribution == "beckmann":
        # with t = 1 / (alpha tan): (3.535 t + 2.181 t²) / (1 + 2.276 t + 2.577 t²), over the cosine
        sine = jnp.sqrt(jnp.maximum(1 - cosine**2, _TINY))
        slope = 1 / (jnp.sqrt(a2) * sine)
        t = slope * cosine
        fit = slope * (3.535 + 2.181 * t) / (1 + 2.276 * t + 2.577 * t**2)
        return 0.5 * jnp.where(t < 1.6, fit, 1 / jnp.maximum(cosine, _TINY))
    raise _unknown(distribution)


def schlick(specular: Float[ArrayLike, "*#n"], cosine: Float[ArrayLike, "*#n"]) -> Float[Array, "*#n"]:
    """Fresnel reflectance: `specular` at normal incidence (cosine 1), 1 at grazing (0). Schlick 1994."""
    return jnp.asarray(specular) + (1 - jnp.asarray(specular)) * _fresnel_weight(jnp.asarray(cosine))


def _fresnel_weight(cosine: Array) -> Array:
    x = 1 - jnp.clip(cosine, 0.0, 1.0)
    x2 = x * x
    return x2 * x2 * x


def _fresnel(specular: ArrayLike, cos_between: Array) -> Array:
    """Schlick's term for the half vector; 0 where `specular` is 0, which switches the lobe off (`Face.specular`)."""
    cos_half = jnp.sqrt(jnp.maximum(0.5 * (1 + cos_between), _TINY))
    return jnp.where(jnp.asarray(specular) > 0, schlick(specular, cos_half), 0.0)


def specular_from_cosines(
    cos_light: Float[ArrayLike, "*#n"],
    cos_between: Float[ArrayLike, "*#n"],
    cos_eye: Float[ArrayLike, "*#n"],
    specular: Float[ArrayLike, "*#n"],
    roughness: Float[ArrayLike, "*#n"],
    distribution: str = "ggx",
) -> Float[Array, "*#n"]:
    """F D G / (4 (n . v)), that is the specular BRDF TIMES the cosine of the light; 0 for light from behind.

    cos_light = n . l, cos_between = l . v, cos_eye = n . v; all broadcast, so (points, directions) against (points, 1)
    gathers a whole sky. Without division by a cosine, so finite with finite derivatives everywhere. A viewer behind the
    surface (interpolated normals at an outline) is treated as one at grazing angle: the value is continuous there.
    """
    a, b, c = jnp.asarray(cos_light), jnp.asarray(cos_between), jnp.asarray(cos_eye)
    a2 = jnp.asarray(roughness) ** 2
    above = jnp.maximum(a, 0.0)
    inverse = 1 / jnp.maximum(1 + b, _TINY)
    # (n . h)² = (n . l + n . v)² / (2 + 2 l . v); beyond 1 by rounding only
    c2 = jnp.minimum(0.5 * jnp.maximum(a + c, 0.0) ** 2 * inverse, 1.0)
    fresnel = _fresnel(specular, b)
    lit = _g1_over_two_cosines(above, a2, distribution) * above
    seen = _g1_over_two_cosines(jnp.maximum(c, 0.0), a2, distribution)
    return fresnel * _density(c2, a2, distribution) * lit * seen


def specular_brdf(
    normal: Float[Array, "*#n 3"],
    to_light: Float[Array, "*#n 3"],
    to_eye: Float[Array, "*#n 3"],
    specular: Float[ArrayLike, "*#n"],
    roughness: Float[ArrayLike, "*#n"],
    distribution: str = "ggx",
) -> Float[Array, "*#n"]:
    """F D G / (4 (n . l)(n . v)), per steradian; 0 where light or viewer is behind the surface.

    Grows without bound only where roughness goes to 0. Reciprocal: light and viewer can be exchanged.
    """
    a, b, c = _dot(normal, to_light), _dot(to_light, to_eye), _dot(normal, to_eye)
    both = (a > 0) & (c > 0)
    a, c = jnp.where(both, a, 1.0), jnp.where(both, c, 1.0)
    a2 = jnp.asarray(roughness) ** 2
    c2 = jnp.minimum(0.5 * (a + c) ** 2 / jnp.maximum(1 + b, _TINY), 1.0)
    fresnel = _fresnel(specular, b)
    visible = _g1_over_two_cosines(a, a2, distribution) * _g1_over_two_cosines(c, a2, distribution)
    return jnp.where(both, fresnel * _density(c2, a2, distribution) * visible, 0.0)


def lambert(albedo: Float[ArrayLike, "*#n 3"]) -> Float[Array, "*#n 3"]:
    """BRDF of a matt surface: albedo / pi, per steradian."""
    return jnp.asarray(albedo) / math.pi


def brdf(
    normal: Float[Array, "*#n 3"],
    to_light: Float[Array, "*#n 3"],
    to_eye: Float[Array, "*#n 3"],
    albedo: Float[ArrayLike, "*#n 3"],
    specular: Float[ArrayLike, "*#n"],
    roughness: Float[ArrayLike, "*#n"],
    distribution: str = "ggx",
    energy: str = "additive",
) -> Float[Array, "*#n 3"]:
    """Lambert plus specular term, per steradian and colour; 0 where light or viewer is behind the surface.

    energy: "additive": a surface returns at most its albedo plus the specular term's own directional albedo; "dimmed"
    or "coupled": at most what it gets, see `diffuse_share`.
    """
    check_energy(energy, distribution)
    cos_light, cos_eye = _dot(normal, to_light), _dot(normal, to_eye)
    both = (cos_light > 0) & (cos_eye > 0)
    gloss = specular_brdf(normal, to_light, to_eye, specular, roughness, distribution)
    matt = lambert(albedo)
    if energy != "additive":
        matt = matt * diffuse_share(energy, specular, roughness, cos_eye, cos_light)[..., None]
    return jnp.where(both[..., None], matt, 0.0) + gloss[..., None]


def gather_light(
    normals: Float[Array, "v 3"],
    to_eye: Float[Array, "v 3"],
    specular: Float[Array, "v"],
    roughness: Float[Array, "v"],
    directions: Float[ArrayLike, "n 3"],
    power: Float[Array, "n 3"],
    visibility: Bool[Array, "v n"] | Float[Array, "v n"] | None = None,
    *,
    distribution: str = "ggx",
    energy: str = "additive",
    block: int = 512,
) -> tuple[Float[Array, "v 3"], Float[Array, "v 3"]]:
    """(irradiance / pi, specular radiance) at points from light along n directions: the sum of f V (n . l)+ power.

    directions: unit vectors towards the light; power: radiance times solid angle along each
    (`facejax.renderers.lights.power_along`). visibility: whether, or how much of, each direction reaches each point;
    None: all of it. energy: of the two terms together, see `diffuse_share`. Differentiable in everything but
    `directions`, exactly; linear in `power`.

    Points are taken in blocks whose tables fit the processor's cache, and the tables are made again for the derivative:
    several times faster than whole tables, and in a small part of their memory.
    """
    check_energy(energy, distribution)
    towards = jnp.asarray(directions)

    @jax.checkpoint
    def of_block(
        normals: Array, to_eye: Array, specular: Array, roughness: Array, seen: Array | None
    ) -> tuple[Array, Array]:
        cos_light = jnp.matmul(normals, towards.T, precision=_HIGHEST)
        cos_between = jnp.matmul(to_eye, towards.T, precision=_HIGHEST)
        cos_eye = _dot(normals, to_eye)[:, None]
        gloss = specular_from_cosines(
            cos_light, cos_between, cos_eye, specular[:, None], roughness[:, None], distribution
        )

        def gathered(share: Array) -> Array:
            if seen is not None:
                share = jnp.where(seen, share, 0.0) if seen.dtype == jnp.bool_ else share * seen
            # colours first: the derivative for `power` is then a product that needs no transposed table
            return jnp.einsum("dc,vd->cv", power, share, precision=_HIGHEST).T

        matt = jnp.maximum(cos_light, 0.0)
        if energy == "coupled":
            matt = matt * diffuse_share(energy, specular[:, None], roughness[:, None], cos_eye, cos_light)
        # one product each: a table of both, side by side, costs five times as much
        diffuse = gathered(matt) / math.pi
        if energy == "dimmed":
            diffuse = diffuse * diffuse_share(energy, specular[:, None], roughness[:, None], cos_eye)
        return diffuse, gathered(gloss)

    count = normals.shape[0]
    fill = -count % block

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, ((0, fill), *((0, 0),) * (x.ndim - 1)), mode="edge")
        return padded.reshape(-1, block, *x.shape[1:])

    parts = jax.tree.map(cut, (normals, to_eye, specular, roughness, visibility))
    diffuse, gloss = jax.lax.map(lambda part: of_block(*part), parts)
    return diffuse.reshape(-1, 3)[:count], gloss.reshape(-1, 3)[:count]


def _dot(a: Array, b: Array) -> Array:
    return jnp.sum(a * b, axis=-1)
