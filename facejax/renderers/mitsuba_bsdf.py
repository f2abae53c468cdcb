"""facejax's surface model as a Mitsuba BSDF: Lambert plus a simplified Cook-Torrance lobe, per vertex, times a texture.

    f = albedo texture / pi + F D G / (4 (n.wi) (n.wo))

D: GGX with alpha = roughness; G: Smith's, separable; F: Schlick's, with `specular` at normal incidence. The diffuse
part is not scaled by 1 - F. Mitsuba has no such sum among its own plugins: `principled` rescales its parts, and a blend
halves them. Vertex data and UVs are looked up through the triangle, so UV seams need no split vertices, whose edges a
derivative would take for silhouettes.
"""

import functools
from typing import Any

import numpy as np

_FLOOR = 1e-3  # alpha: a narrower lobe is a mirror, which neither sampling nor a derivative can find


@functools.cache
def skin_bsdf_class(variant: str) -> Any:
    """The BSDF's class for a Mitsuba variant, which must be the current one: its base class belongs to the variant."""
    import drjit as dr
    import mitsuba as mi

    class SkinBSDF(mi.BSDF):
        """Material of one mesh; its arrays are Dr.Jit buffers, set by `set_material` and `set_mesh`."""

        def __init__(self, props: Any) -> None:
            mi.BSDF.__init__(self, props)
            diffuse = mi.BSDFFlags.DiffuseReflection | mi.BSDFFlags.FrontSide
            glossy = mi.BSDFFlags.GlossyReflection | mi.BSDFFlags.FrontSide
            self.m_components = [diffuse, glossy]
            self.m_flags = diffuse | glossy
            self.texture_size = (1, 1)

        def set_mesh(self, faces: np.ndarray, uv_corners: np.ndarray) -> None:
            """faces (T, 3) vertex ids; uv_corners (T, 3, 2)."""
            self.faces = mi.UInt32(np.ravel(faces).astype(np.uint32))
            self.uv_corners = mi.Float(np.ravel(uv_corners).astype(np.float32))

        def set_material(
            self, albedo: np.ndarray, texture: np.ndarray, specular: np.ndarray, roughness: np.ndarray
        ) -> None:
            """Per vertex (V, 3), (V,), (V,); texture (H, W, 3)."""
            self.texture_size = texture.shape[:2]
            self.glossy = bool(np.any(specular > 0))
            self.albedo, self.texture = mi.Float(np.ravel(albedo)), mi.Float(np.ravel(texture))
            self.specular, self.roughness = mi.Float(np.ravel(specular)), mi.Float(np.ravel(roughness))

        def _texel(self, u: Any, v: Any, active: Any) -> Any:
            """Bilinear, clamped at the border; row 0 is v = 1."""
            height, width = self.texture_size
            if height == width == 1:
                return dr.gather(mi.Color3f, self.texture, mi.UInt32(0))
            x, y = dr.clip(u * width - 0.5, 0, width - 1), dr.clip((1 - v) * height - 0.5, 0, height - 1)
            x0 = dr.minimum(mi.UInt32(dr.detach(x)), max(width - 2, 0))
            y0 = dr.minimum(mi.UInt32(dr.detach(y)), max(height - 2, 0))
            x1, y1 = dr.minimum(x0 + 1, width - 1), dr.minimum(y0 + 1, height - 1)
            fx, fy = x - mi.Float(x0), y - mi.Float(y0)

            def at(row: Any, column: Any) -> Any:
                return dr.gather(mi.Color3f, self.texture, row * width + column, active)

            upper = dr.lerp(at(y0, x0), at(y0, x1), fx)
            return dr.lerp(upper, dr.lerp(at(y1, x0), at(y1, x1), fx), fy)

        def material(self, si: Any, active: Any) -> tuple[Any, Any, Any]:
            """(albedo times texture, specular, roughness) at hits; `si.uv` must be barycentric (a mesh without UVs)."""
            corner = dr.gather(mi.Vector3u, self.faces, si.prim_index, active)
            weights = (1 - si.uv.x - si.uv.y, si.uv.x, si.uv.y)
            albedo, uv, specular, roughness = mi.Color3f(0), mi.Point2f(0), mi.Float(0), mi.Float(0)
            for i, weight in enumerate(weights):
                albedo += weight * dr.gather(mi.Color3f, self.albedo, corner[i], active)
                uv += weight * dr.gather(mi.Point2f, self.uv_corners, 3 * si.prim_index + i, active)
                if self.glossy:
                    specular += weight * dr.gather(mi.Float, self.specular, corner[i], active)
                    roughness += weight * dr.gather(mi.Float, self.roughness, corner[i], active)
            return albedo * self._texel(uv.x, uv.y, active), specular, dr.maximum(roughness, _FLOOR)

        def evaluate(self, material: tuple[Any, Any, Any], si: Any, wo: Any, active: Any) -> Any:
            """f times the cosine at `wo`, both directions in the shading frame.

            What the camera sees from the front reflects even where the interpolated normal turns away from it (then as
            at a right angle), as a rasteriser's shading does: otherwise silhouettes would get a black seam, whose edge
            no derivative would see.
            """
            albedo, specular, alpha = material
            wi = si.wi
            front = active & (wo.z > 0) & ((wi.z > 0) | (dr.dot(si.n, si.to_world(wi)) > 0))
            value = dr.select(front, albedo * (dr.inv_pi * wo.z), 0)
            if self.glossy:
                shiny = front & (specular > 0)
                ci, co = dr.select(shiny, dr.maximum(wi.z, 0), 1), dr.select(shiny, wo.z, 1)
                h = dr.normalize(dr.select(shiny, wi + wo, mi.Vector3f(0, 0, 1)))
                square = alpha * alpha
                d = square / (dr.pi * dr.square(dr.square(h.z) * (square - 1) + 1))
                smith_i = 0.5 / (ci + dr.sqrt(square + (1 - square) * ci * ci))  # G1 / (4 n.wi): finite at grazing wi
                smith_o = 2 * co / (co + dr.sqrt(square + (1 - square) * co * co))
                schlick = specular + (1 - specular) * dr.power(dr.maximum(1 - dr.dot(h, wo), 0), 5)
                value += dr.select(shiny, schlick * d * smith_i * smith_o, 0)
            return value

        def _lobe(self, material: tuple[Any, Any, Any], wi: Any) -> tuple[Any, Any]:
            """(share of samples for the specular lobe, its normal distribution)."""
            albedo, specular, alpha = (dr.detach(x) for x in material)
            strength = specular + (1 - specular) * dr.power(1 - dr.clip(wi.z, 0, 1), 5)
            share = dr.clip(strength / dr.maximum(strength + dr.mean(albedo), 1e-6), 0.1, 0.9)
            share = dr.select(specular > 0, share, 0)
            return share, mi.MicrofacetDistribution(mi.MicrofacetType.GGX, alpha, True)

        def _raised(self, wi: Any) -> Any:
            """`wi` for drawing directions: lifted above the horizon of the interpolated normal."""
            wi = dr.detach(wi)
            return dr.normalize(mi.Vector3f(wi.x, wi.y, dr.maximum(wi.z, 1e-3)))

        def density(self, material: tuple[Any, Any, Any], wi: Any, wo: Any, active: Any) -> Any:
            """Probability per steradian that `draw` returns `wo`."""
            wi, wo = self._raised(wi), dr.detach(wo)
            cosine = dr.select(active & (wo.z > 0), wo.z * dr.inv_pi, 0)
            if not self.glossy:
                return cosine
            share, lobe = self._lobe(material, wi)
            h = dr.normalize(wi + wo)
            usable = active & (wo.z > 0)
            lobe_pdf = dr.select(usable, lobe.pdf(wi, h) / (4 * dr.maximum(dr.dot(wo, h), 1e-6)), 0)
            return (1 - share) * cosine + share * lobe_pdf

        def draw(self, material: tuple[Any, Any, Any], wi: Any, sample1: Any, sample2: Any) -> Any:
            """An outgoing direction in the shading frame, maybe below the horizon."""
            wo = mi.warp.square_to_cosine_hemisphere(sample2)
            if not self.glossy:
                return wo
            wi = self._raised(wi)
            share, lobe = self._lobe(material, wi)
            h, _ = lobe.sample(wi, sample2)
            return dr.select(sample1 < share, mi.reflect(wi, h), wo)

        # What Mitsuba's own integrators call:

        def eval(self, ctx: Any, si: Any, wo: Any, active: Any = True) -> Any:
            return self.evaluate(self.material(si, active), si, wo, active)

        def pdf(self, ctx: Any, si: Any, wo: Any, active: Any = True) -> Any:
            return self.density(self.material(si, active), si.wi, wo, active)

        def eval_pdf(self, ctx: Any, si: Any, wo: Any, active: Any = True) -> tuple[Any, Any]:
            material = self.material(si, active)
            return self.evaluate(material, si, wo, active), self.density(material, si.wi, wo, active)

        def sample(self, ctx: Any, si: Any, sample1: Any, sample2: Any, active: Any = True) -> tuple[Any, Any]:
            material = self.material(si, active)
            bs: Any = dr.zeros(mi.BSDFSample3f)
            bs.wo = dr.detach(self.draw(material, si.wi, sample1, sample2))
            bs.pdf = dr.detach(self.density(material, si.wi, bs.wo, active))
            bs.eta = 1.0
            bs.sampled_type = mi.UInt32(+mi.BSDFFlags.GlossyReflection)
            bs.sampled_component = mi.UInt32(0)
            usable = active & (bs.pdf > 0) & (bs.wo.z > 0)
            value = self.evaluate(material, si, bs.wo, usable)
            return bs, dr.select(usable, value / dr.maximum(bs.pdf, 1e-20), 0)

        def traverse(self, callback: Any) -> None:
            pass

        def parameters_changed(self, keys: Any = ()) -> None:
            pass

        def to_string(self) -> str:
            return "facejax skin"

    del variant
    return SkinBSDF
