"""How much of even light a rough surface reflects towards the viewer: one table, looked up.

The integral of `facejax.renderers.microfacet.specular_from_cosines` (GGX facets, Smith's shadowing, Schlick's Fresnel
term) over all lights. Schlick's term is linear in the reflectance at normal incidence, so two numbers for each width
and viewing angle are enough (the "split sum" of Karis 2013): specular * scale + bias. What the lobe reflects does not
reach the diffuse layer below it: `diffuse_share` is what is left.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from facejax.geometry.errors import InputError
from facejax.renderers.texture import sample_bilinear

ENERGIES = ("additive", "dimmed", "coupled")
"""Ways to add a diffuse term and a specular lobe, see `diffuse_share`."""

_SIDE = 40
_SOFTENING = 1e-3
"""Of the square root in `_place`: its slope stays finite at 0."""
_LOW, _HIGH = _SOFTENING**0.5, (1 + _SOFTENING) ** 0.5


def specular_albedo(
    specular: Float[Array, "*n"], roughness: Float[Array, "*n"], facing: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    """Share of even light that a GGX surface (Smith shadowing, Schlick's Fresnel term) reflects towards the viewer.

    Within 1 % of the integral; 0 where `specular` is 0. Finite derivatives, up to and at the edges. roughness: alpha in
    (0, 1]. facing: cosine between normal and viewer, in [0, 1]. What is outside counts as the edge.
    """
    row, column = _place(jnp.clip(roughness, 0.0, 1.0)), _place(jnp.clip(facing, 0.0, 1.0))
    xy = (_SIDE - 1) * jnp.stack([column, row], axis=-1) + 0.5
    split = sample_bilinear(jnp.asarray(_table()), xy)
    return jnp.where(specular > 0, specular * split[..., 0] + split[..., 1], 0.0)


def mean_specular_albedo(specular: Float[Array, "*n"], roughness: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Share of even light that a GGX surface reflects in all directions together.

    The mean of `specular_albedo` over viewers, weighted by their cosine; exact for its table. 0 where `specular` is 0.
    """
    row = _place(jnp.clip(roughness, 0.0, 1.0))
    split = sample_bilinear(jnp.asarray(_means())[:, None], jnp.stack([0.0 * row, (_SIDE - 1) * row], axis=-1) + 0.5)
    return jnp.where(specular > 0, specular * split[..., 0] + split[..., 1], 0.0)


def check_energy(energy: str, distribution: str = "ggx", lights_known: bool = True) -> None:
    """Refuse a way to add diffuse and specular light that there is none of, or none for such a surface or light."""
    if energy not in ENERGIES:
        raise InputError(f'Diffuse and specular light are "additive", "dimmed" or "coupled", got {energy!r}.')
    if energy != "additive" and distribution != "ggx":
        raise InputError(f'Diffuse light can be {energy} by a lobe of "ggx" facets only, got {distribution!r}.')
    if energy == "coupled" and not lights_known:
        raise InputError(
            "Diffuse light that is coupled to the lobe needs the direction of each light, which spherical harmonics at "
            'vertices do not have: use "dimmed", or a renderer that gathers light along directions.'
        )


def diffuse_share(
    energy: str,
    specular: Float[ArrayLike, "*#n"],
    roughness: Float[ArrayLike, "*#n"],
    cos_eye: Float[ArrayLike, "*#n"],
    cos_light: Float[ArrayLike, "*#n"] | None = None,
) -> Float[Array, "*#n"]:
    """What a GGX lobe on top leaves of a diffuse BRDF, as a factor on it; with E for `specular_albedo`:

    "additive": 1, the lobe takes nothing: diffuse and specular term sum up to more than came in.
    "dimmed": 1 - E(n . v). The sum returns all of even light if the diffuse layer is white, and never more. Not
    reciprocal, and the same for every light.
    "coupled": (1 - E(n . l)) (1 - E(n . v)) / (1 - mean E), reciprocal (Kelemen and Szirmay-Kalos 2001); under even
    light the same as "dimmed", under lamps darker at grazing incidence.

    cos_eye = n . v; cos_light = n . l, needed by "coupled" only. Below 0 they count as 0. Raises `InputError` for
    another `energy`, and for "coupled" without `cos_light`.
    """
    check_energy(energy, lights_known=cos_light is not None)
    given = [jnp.asarray(x) for x in (specular, roughness, cos_eye)]
    shape = jnp.broadcast_shapes(*(x.shape for x in given))
    if energy == "additive":
        return jnp.ones(shape)
    f0, alpha, eye = (jnp.broadcast_to(x, shape) for x in given)
    left = jnp.maximum(1 - specular_albedo(f0, alpha, eye), 0.0)
    if energy == "dimmed" or cos_light is None:
        return left
    light = jnp.asarray(cos_light)
    wide = jnp.broadcast_shapes(shape, light.shape)
    through = 1 - specular_albedo(*(jnp.broadcast_to(x, wide) for x in (given[0], given[1], light)))
    # a perfect mirror leaves nothing in any direction: 0 / 0 becomes 0
    mean = jnp.maximum(1 - mean_specular_albedo(f0, alpha), 1e-4)
    return jnp.maximum(through, 0.0) * (left / mean)


def _place(x: Array) -> Array:
    """[0, 1] to [0, 1], where the table is even: finest at small widths and grazing angles, where the albedo bends."""
    return (jnp.sqrt(x + _SOFTENING) - _LOW) / (_HIGH - _LOW)


@functools.cache
def _table() -> np.ndarray:
    """(scale, bias) for rows of widths and columns of cosines, (side, side, 2); 20 ms, once."""
    even = np.clip(np.linspace(_LOW, _HIGH, _SIDE) ** 2 - _SOFTENING, 0.0, 1.0)  # undoes `_place`
    # row by row: a row's samples fit the processor's cache
    return np.stack([scale_and_bias(max(alpha, 1e-3), even) for alpha in even]).astype(np.float32)


@functools.cache
def _means() -> np.ndarray:
    """(side, 2): `_table` averaged over cosines, each weighed by itself."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    edges = np.clip(np.linspace(_LOW, _HIGH, _SIDE) ** 2 - _SOFTENING, 0.0, 1.0)
    # cell by cell, since the table bends between its cells only
    cosines = (edges[:-1, None] + (nodes + 1) / 2 * np.diff(edges)[:, None]).ravel()
    weights = (weights / 2 * np.diff(edges)[:, None]).ravel() * 2 * cosines
    column = (np.sqrt(cosines + _SOFTENING) - _LOW) / (_HIGH - _LOW) * (_SIDE - 1)
    values = [[np.interp(column, np.arange(_SIDE), row[:, i]) @ weights for i in range(2)] for row in _table()]
    return np.asarray(values, np.float32)


def scale_and_bias(alpha: float, cosines: np.ndarray, samples: tuple[int, int] = (24, 12)) -> np.ndarray:
    """(cosines, 2): the albedo is specular * scale + bias, by quadrature over the facets that the viewer sees.

    In proportion to how well they are seen, facets are the half vectors of the viewer and of even directions on a cap
    (Dupuy and Benyoub 2023, "Sampling visible GGX normals with spherical caps"). With that density F G1(light) is what
    is left of the integrand: bounded at every width and angle. samples: (along, around) the cap.
    """
    c, s = cosines[:, None, None], np.sqrt(1 - cosines**2)[:, None, None]
    # the viewer of the hemisphere that the facets' ellipsoid is stretched from
    length = np.hypot(alpha * s, c)
    view_x, view_z = alpha * s / length, c / length
    nodes, weights = np.polynomial.legendre.leggauss(samples[0])
    around = np.pi * (np.arange(samples[1]) + 0.5) / samples[1]  # the other half is this one's mirror image
    z = (1 + view_z) * (1 + nodes[:, None]) / 2 - view_z
    r = np.sqrt(1 - z**2)
    x, y, z = alpha * (r * np.cos(around) + view_x), alpha * r * np.sin(around), z + view_z
    norm = np.sqrt(x**2 + y**2 + z**2)
    view_half = (s * x + c * z) / norm
    light_z = np.maximum(2 * view_half * z / norm - c, 0.0)
    visible = 2 * light_z / (light_z + np.sqrt(alpha**2 + (1 - alpha**2) * light_z**2))
    weighted = visible * weights[:, None] / (2 * samples[1])
    grazing = np.clip(1 - view_half, 0.0, 1.0) ** 5
    return np.stack([((1 - grazing) * weighted).sum(axis=(1, 2)), (grazing * weighted).sum(axis=(1, 2))], axis=-1)
