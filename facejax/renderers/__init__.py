"""Light on skin and pixels from geometry, as pure differentiable functions."""

from facejax.renderers.deferred import Render, make_renderer, vertex_light
from facejax.renderers.raster import Fragments, antialias, fragments_of, interpolate, rasterise
from facejax.renderers.sh import irradiance, lambert_kernel, reflection, roughness_kernel, sh_basis
from facejax.renderers.texture import sample_bilinear, sample_texture

__all__ = [
    "Fragments",
    "Render",
    "antialias",
    "fragments_of",
    "interpolate",
    "irradiance",
    "lambert_kernel",
    "make_renderer",
    "rasterise",
    "reflection",
    "roughness_kernel",
    "sample_bilinear",
    "sample_texture",
    "sh_basis",
    "vertex_light",
]
