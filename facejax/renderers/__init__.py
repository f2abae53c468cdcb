"""Light on skin and pixels from geometry, as pure differentiable functions."""

from facejax.renderers.deferred import Render, light_bases, make_renderer, specular_albedo, vertex_light
from facejax.renderers.raster import Fragments, antialias, fragments_of, interpolate, rasterise
from facejax.renderers.sh import (
    irradiance,
    irradiance_basis,
    lambert_kernel,
    reflection,
    reflection_basis,
    roughness_kernel,
    sh_basis,
)
from facejax.renderers.texture import sample_bilinear, sample_texture

__all__ = [
    "Fragments",
    "Render",
    "antialias",
    "fragments_of",
    "interpolate",
    "irradiance",
    "irradiance_basis",
    "lambert_kernel",
    "light_bases",
    "make_renderer",
    "rasterise",
    "reflection",
    "reflection_basis",
    "roughness_kernel",
    "sample_bilinear",
    "sample_texture",
    "sh_basis",
    "specular_albedo",
    "vertex_light",
]
