"""Real spherical harmonics: orthonormal, index l*l + l + m, no Condon-Shortley phase, evaluated as polynomials.

The polynomial form has finite derivatives everywhere, the poles included. The convention and its test vector stand in
`docs/conventions.md`.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from facejax.geometry.errors import InputError
from facejax.renderers.microfacet import smith_g1

_LOBE_NODES = 64
_HIGHEST = jax.lax.Precision.HIGHEST


def sh_basis(directions: Float[Array, "*n 3"], bands: int) -> Float[Array, "*n b"]:
    """Values of the first `bands`² functions in unit directions.

    With Y_l^m = N_l^m Q_l^|m|(z) times Re or Im of (x + iy)^|m|, where Q is the associated Legendre function without
    its (1 - z²)^(m/2) factor, built by the usual upward recurrence in l.
    """
    x, y, z = directions[..., 0], directions[..., 1], directions[..., 2]
    values: list[Array | None] = [None] * bands**2
    real, imag = jnp.ones_like(x), jnp.zeros_like(x)
    for m in range(bands):
        q_before, q = jnp.zeros_like(z), jnp.full_like(z, float(_double_factorial(2 * m - 1)))
        for l in range(m, bands):
            scale = _norm(l, m)
            if m == 0:
                values[l * l + l] = scale * q
            else:
                values[l * l + l + m] = math.sqrt(2) * scale * q * real
                values[l * l + l - m] = math.sqrt(2) * scale * q * imag
            q_before, q = q, ((2 * l + 1) * z * q - (l + m) * q_before) / (l + 1 - m)
        real, imag = real * x - imag * y, real * y + imag * x
    return jnp.stack(values, axis=-1)  # type: ignore[arg-type]


def _double_factorial(n: int) -> int:
    return 1 if n <= 0 else n * _double_factorial(n - 2)


def _norm(l: int, m: int) -> float:
    return math.sqrt((2 * l + 1) / (4 * math.pi) * math.factorial(l - m) / math.factorial(l + m))


def per_band(values: np.ndarray | Float[Array, "l"], bands: int) -> Float[Array, "b"]:
    """One value per band spread over its 2 l + 1 coefficients."""
    return jnp.asarray(values)[np.repeat(np.arange(bands), 2 * np.arange(bands) + 1)]


def lambert_kernel(bands: int) -> np.ndarray:
    """A_l / pi (bands,): what turns radiance coefficients into the radiance of a white Lambert surface.

    1, 2/3, 1/4, 0, -1/24, ... (Ramamoorthi and Hanrahan 2001, divided by pi, so that albedo times this is radiance).
    """
    a = np.zeros(bands)
    for l in range(bands):
        if l == 1:
            a[l] = 2 / 3
        elif l % 2 == 0:
            half = l // 2
            ratio = math.factorial(l) / (2**l * math.factorial(half) ** 2)
            a[l] = 1.0 if l == 0 else 2 * (-1) ** (half - 1) / ((l + 2) * (l - 1)) * ratio
    return a.astype(np.float32)


def roughness_kernel(alpha: Float[Array, "*n"], bands: int) -> Float[Array, "*n l"]:
    """exp(-alpha² l (l + 1)): the lobe of a microfacet surface of width alpha, seen face on.

    Of the closed forms in use, the closest to a Beckmann lobe for alpha from 0.2 to 0.5.
    """
    l = jnp.arange(bands)
    return jnp.exp(-(jnp.asarray(alpha)[..., None] ** 2) * l * (l + 1))


def lobe_kernel(
    alpha: Float[ArrayLike, "*n"], bands: int, distribution: str = "ggx", *, normalised: bool = True
) -> Float[Array, "*n l"]:
    """S_l: the lobe of a microfacet surface of width `alpha`, seen face on, by quadrature.

    S_l = 2 pi integral of D(t / 2) G(t) P_l(cos t) sin(t) / 4 over the hemisphere, for "ggx" or "beckmann" with the
    shadowing of `facejax.renderers.microfacet`, before Fresnel. Divided by S_0 unless `normalised` is False; S_0 is the
    share of light that such a mirror-like surface returns in one bounce. alpha in (0, 1]; differentiable in it.

    Half vectors are drawn by quantiles u of D(h) (n . h), of which few points suffice at any width.
    """
    alpha = jnp.asarray(alpha)[..., None]
    nodes, weights = np.polynomial.legendre.leggauss(_LOBE_NODES)
    node, weight = jnp.asarray((nodes + 1) / 2, jnp.float32), jnp.asarray(weights / 2, jnp.float32)
    # the light is above the horizon while the half vector is within 45 degrees: tan² = 1
    if distribution == "ggx":
        top = 1 / (1 + alpha**2)
        u = top * node
        tan2 = alpha**2 * u / (1 - u)
    elif distribution == "beckmann":
        top = -jnp.expm1(-1 / alpha**2)
        u = top * node
        tan2 = -(alpha**2) * jnp.log1p(-u)
    else:
        raise InputError(f'A distribution of facets is "ggx" or "beckmann", got {distribution!r}.')
    cosine = (1 - tan2) / (1 + tan2)
    shadow = smith_g1(jnp.clip(cosine, 0.0, 1.0), alpha, distribution)
    before, p = jnp.zeros_like(cosine), jnp.ones_like(cosine)
    moments = []
    for l in range(bands):
        moments.append(jnp.sum(top * weight * shadow * p, axis=-1))
        before, p = p, ((2 * l + 1) * cosine * p - l * before) / (l + 1)
    kernel = jnp.stack(moments, axis=-1)
    return kernel / kernel[..., :1] if normalised else kernel


def phong_kernel(exponent: Float[ArrayLike, "*n"], bands: int) -> Float[Array, "*n l"]:
    """exp(-l² / (2 p)): a Phong lobe of exponent p (Ramamoorthi and Hanrahan 2001)."""
    l = jnp.arange(bands)
    return jnp.exp(-(l**2) / (2 * jnp.asarray(exponent)[..., None]))


def torrance_sparrow_kernel(alpha: Float[ArrayLike, "*n"], bands: int) -> Float[Array, "*n l"]:
    """exp(-(alpha l)²): the usual approximation to a microfacet lobe (Ramamoorthi and Hanrahan 2001).

    It blurs less than the lobe it stands for: `roughness_kernel` is nearer, `lobe_kernel` exact.
    """
    l = jnp.arange(bands)
    return jnp.exp(-((jnp.asarray(alpha)[..., None] * l) ** 2))


def irradiance_basis(normals: Float[Array, "*n 3"], bands: int) -> Float[Array, "*n b"]:
    """Radiance of a white Lambert surface (irradiance / pi) per coefficient of a light in the normals' frame."""
    return sh_basis(normals, bands) * per_band(lambert_kernel(bands), bands)


def irradiance(normals: Float[Array, "*n 3"], light: Float[Array, "b 3"]) -> Float[Array, "*n 3"]:
    """Radiance of a white Lambert surface with these normals (irradiance / pi) under an unshadowed light.

    normals and light in the same frame. Light that is negative in places gives negative values: they are not clipped.
    """
    return jnp.matmul(irradiance_basis(normals, math.isqrt(light.shape[0])), light, precision=_HIGHEST)


def mirror_direction(normals: Float[Array, "*n 3"], to_eye: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    """Where a mirror with these unit normals shows the viewer its light from: 2 (n . v) n - v."""
    return 2 * jnp.sum(normals * to_eye, axis=-1, keepdims=True) * normals - to_eye


def filtered_light(
    directions: Float[Array, "*n 3"], light: Float[Array, "b 3"], kernel: Float[ArrayLike, "*#n l"]
) -> Float[Array, "*n 3"]:
    """Light blurred by a zonal kernel, read in unit directions: the sum of kernel_l L_lm Y_lm(direction).

    kernel: one value per band, the same everywhere (l,) or per direction (*n, l); as many bands of the light are used
    as it has. Linear in the light; negative where blurred light is, and not cut off.
    """
    kernel = jnp.asarray(kernel)
    bands = kernel.shape[-1]
    if light.shape[0] < bands**2:
        raise InputError(
            f"A kernel of {bands} bands needs a light of at least {bands**2} coefficients, got {light.shape[0]}."
        )
    band_of = np.repeat(np.arange(bands), 2 * np.arange(bands) + 1)
    return jnp.matmul(sh_basis(directions, bands) * kernel[..., band_of], light[: bands**2], precision=_HIGHEST)


def reflection_basis(
    normals: Float[Array, "*n 3"], to_eye: Float[Array, "*n 3"], roughness: Float[Array, "*n"], bands: int
) -> Float[Array, "*n b"]:
    """Light arriving from the mirror direction, blurred by a lobe of width `roughness` (alpha), per coefficient."""
    mirror = mirror_direction(normals, to_eye)
    band_of = np.repeat(np.arange(bands), 2 * np.arange(bands) + 1)
    return sh_basis(mirror, bands) * roughness_kernel(roughness, bands)[..., band_of]


def reflection(
    normals: Float[Array, "*n 3"],
    to_eye: Float[Array, "*n 3"],
    light: Float[Array, "b 3"],
    roughness: Float[Array, "*n"],
) -> Float[Array, "*n 3"]:
    """Light arriving from around the mirror direction, before Fresnel, see `reflection_basis`."""
    bands = math.isqrt(light.shape[0])
    return jnp.matmul(reflection_basis(normals, to_eye, roughness, bands), light, precision=_HIGHEST)


@functools.lru_cache(maxsize=16)
def _exact_samples(bands: int) -> tuple[np.ndarray, np.ndarray]:
    """Directions (k, 3) and weights (k,) that integrate products of two functions of these bands exactly."""
    z, weight = np.polynomial.legendre.leggauss(bands)
    count = 2 * bands
    azimuth = (np.arange(count) + 0.5) * 2 * np.pi / count
    z, azimuth = (a.ravel() for a in np.meshgrid(z, azimuth, indexing="ij"))
    r = np.sqrt(1 - z**2)
    points = np.stack([r * np.cos(azimuth), r * np.sin(azimuth), z], axis=-1)
    return points.astype(np.float32), (np.repeat(weight, count) * 2 * np.pi / count).astype(np.float32)


def _same_band(bands: int) -> np.ndarray:
    band = np.repeat(np.arange(bands), 2 * np.arange(bands) + 1)
    return band[:, None] == band[None, :]


def rotation_matrix_sh(rotation: Float[Array, "3 3"], bands: int) -> Float[Array, "b b"]:
    """What turns coefficients as `rotation` turns directions: light from d then comes from `rotation @ d`.

    Orthogonal, one block per band. The turned basis is projected on the basis at sample points where that projection is
    exact, so the result is exact for every rotation (reflections, too) and differentiable in it.
    """
    points, weights = _exact_samples(bands)
    fixed = sh_basis(jnp.asarray(points), bands) * weights[:, None]
    turned = sh_basis(jnp.matmul(points, rotation, precision=_HIGHEST), bands)  # rows are rotation.T @ point
    return jnp.where(_same_band(bands), jnp.matmul(fixed.T, turned, precision=_HIGHEST), 0.0)


def rotate_sh(light: Float[Array, "b c"], rotation: Float[Array, "3 3"]) -> Float[Array, "b c"]:
    """Coefficients of a light turned by a rotation matrix, see `rotation_matrix_sh`."""
    matrix = rotation_matrix_sh(rotation, math.isqrt(light.shape[0]))
    return jnp.matmul(matrix, light, precision=_HIGHEST)


@dataclasses.dataclass(frozen=True)
class SHConvention:
    """How somebody else writes spherical harmonics, as departures from ours.

    Ours are real, orthonormal, without the Condon-Shortley phase, at index l*l + l + m, in the OpenCV camera frame, and
    describe radiance.
    """

    condon_shortley: bool = False
    """Whether functions of odd m have the opposite sign."""
    axes: tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    """Matrix (by rows) that turns a direction in their frame into ours; proper or not."""
    order: str = "m"
    """Within a band: "m" for m = -l ... l, "cosine first" for 0, 1, -1, 2, -2, ... (m > 0 is the cosine)."""
    band_scale: tuple[float, ...] = ()
    """Their coefficient times this, per band, is that of radiance; empty for 1 throughout."""


CONDON_SHORTLEY = SHConvention(condon_shortley=True)
"""The phase alone, in our frame."""
REDNER = SHConvention(condon_shortley=True, axes=((1, 0, 0), (0, -1, 0), (0, 0, -1)))
"""redner and what is built on it: with the phase, in a frame with +y up and -z ahead.

NextFace's saved coefficients are NOT of this kind, although it uses redner: it swaps polar angle and azimuth when it
draws its map, so that its functions are no spherical harmonics at all. Convert its map, not its coefficients.
"""
DEEP3D = SHConvention(
    condon_shortley=True,
    axes=((1, 0, 0), (0, -1, 0), (0, 0, -1)),
    band_scale=(math.pi, math.pi * math.sqrt(3), math.pi * math.sqrt(8)),
)
"""Deep3DFaceReconstruction, three bands: +y up, +z towards the viewer; its basis has A_l times 1, sqrt(3), sqrt(8).

Its first coefficient is stored less 0.8, and colours are of its display space: both are the caller's to undo.
"""


def _to_our_order(bands: int, order: str) -> np.ndarray:
    """Where each of our coefficients stands in theirs."""
    if order == "m":
        return np.arange(bands**2)
    if order != "cosine first":
        raise InputError(f'The order of harmonics within a band is "m" or "cosine first", got {order!r}.')
    return np.array([l * l + (2 * m - 1 if m > 0 else -2 * m) for l in range(bands) for m in range(-l, l + 1)])


def _signs_and_scale(bands: int, convention: SHConvention) -> np.ndarray:
    if convention.band_scale and len(convention.band_scale) < bands:
        raise InputError(f"This convention has {len(convention.band_scale)} bands, got coefficients of {bands}.")
    m = np.concatenate([np.arange(-l, l + 1) for l in range(bands)])
    sign = np.where((m % 2 == 1) & convention.condon_shortley, -1.0, 1.0)
    scale = np.asarray(convention.band_scale[:bands] or np.ones(bands))
    return (sign * np.repeat(scale, 2 * np.arange(bands) + 1)).astype(np.float32)


def from_convention(coefficients: Float[Array, "b c"], convention: SHConvention) -> Float[Array, "b c"]:
    """Coefficients that somebody else wrote, as ours: radiance in the camera frame."""
    bands = math.isqrt(coefficients.shape[0])
    ours = coefficients[_to_our_order(bands, convention.order)] * _signs_and_scale(bands, convention)[:, None]
    return rotate_sh(ours, jnp.asarray(convention.axes, ours.dtype))


def to_convention(coefficients: Float[Array, "b c"], convention: SHConvention) -> Float[Array, "b c"]:
    """Our coefficients as somebody else would write them; the inverse of `from_convention`."""
    bands = math.isqrt(coefficients.shape[0])
    theirs = rotate_sh(coefficients, jnp.asarray(convention.axes, coefficients.dtype).T)
    theirs = theirs / _signs_and_scale(bands, convention)[:, None]
    return theirs[np.argsort(_to_our_order(bands, convention.order))]
