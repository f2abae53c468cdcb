"""A made-up person as real geometry, path traced: what pictures in the wild and test images of a stage are drawn by.

The fast renderer that draws captures bends normals by the relief of the skin. Here the relief is geometry: the mesh is
subdivided onto its smooth surface and moved out by it, light bounces from face to face, and visibility is traced. Both
share one surface model, one skin and one unit of light, so their pictures of the same scene may be compared.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int

from facejax.geometry.errors import InputError
from facejax.made_up.subjects import SubdividedPart, surface_at
from facejax.models.morphable import MorphableHead
from facejax.renderers.lights import Environment, radiance_towards
from facejax.renderers.llvm import require_llvm
from facejax.renderers.mitsuba_bsdf import skin_bsdf_class
from facejax.renderers.uv import fill_outside, texture_chart, texture_from

_LEVELS = {"skin": 2, "eyes": 2, "teeth": 0, "gums": 0}  # teeth and gums are dense and mostly dark
_MOST_BULGE = 0.15  # of an edge's length: at creases normals say little about the surface between
_SHARE_SAMPLES = 32  # directions per pixel that `StageStudio.light_share` looks along


# -- the surface -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class DenseHead:
    """A head cut into its materials and subdivided: one mesh, whose vertices follow from the head's."""

    parts: tuple[SubdividedPart, ...]
    faces: Int[np.ndarray, "t 3"]
    """Of the dense mesh."""
    uv_corners: Float32[np.ndarray, "t 3 2"]
    """Where the corners of the dense faces lie in the head's texture."""
    coarse_faces: Int[np.ndarray, "s 3"]
    """Of the head."""
    skin: np.ndarray
    """(N,) whether a dense vertex is of the skin, which alone has relief."""

    @classmethod
    def of(cls, head: MorphableHead) -> "DenseHead":
        faces = np.asarray(head.topology.faces)
        corner = {k: np.asarray(v)[faces].mean(axis=1) > 0.5 for k, v in head.regions.items()}
        eye, tooth = corner["eyeballs"] | corner["iris"], corner["teeth"]
        gum = corner["gums"] & ~tooth
        kinds = {"skin": ~(eye | tooth | gum), "eyes": eye, "teeth": tooth, "gums": gum}
        named = {k: SubdividedPart.of(faces[of], _LEVELS[k]) for k, of in kinds.items() if of.any()}
        charts = [SubdividedPart.of(np.asarray(head.topology.uv_faces)[kinds[k]], _LEVELS[k]) for k in named]
        counts = [_count(p) for p in named.values()]
        starts = np.concatenate([[0], np.cumsum(counts)])
        return cls(
            parts=tuple(named.values()),
            faces=np.concatenate([p.faces + start for p, start in zip(named.values(), starts[:-1], strict=True)]),
            # a chart's faces are split in the same order as the surface's
            uv_corners=np.concatenate([c.spread(head.topology.uv)[c.faces] for c in charts]),
            coarse_faces=faces,
            skin=np.repeat([k == "skin" for k in named], counts),
        )

    def spacing(self, vertices: Float[np.ndarray, "v 3"]) -> float:
        """Metres between vertices of the skin: the median edge."""
        points = self.spread(vertices)
        faces = self.faces[self.skin[self.faces[:, 0]]]
        return float(np.median(np.linalg.norm(points[faces[:, 0]] - points[faces[:, 1]], axis=1)))

    def spread(self, values: Float[np.ndarray, "v *c"]) -> Float32[np.ndarray, "n *c"]:
        """Values at the head's vertices, at the dense mesh's, linearly."""
        return np.concatenate([part.spread(values) for part in self.parts])

    def surface(self, vertices: Float[np.ndarray, "v 3"]) -> tuple[np.ndarray, np.ndarray]:
        """(points (N, 3), unit normals (N, 3)) of the smooth surface through the head's vertices."""
        normals = _vertex_normals(vertices, self.coarse_faces)
        made = [_arcs(part, np.asarray(vertices, np.float32), normals) for part in self.parts]
        return np.concatenate([p for p, _ in made]), np.concatenate([n for _, n in made])


def _count(part: SubdividedPart) -> int:
    return len(part.used) + sum(len(pairs) for pairs in part.pairs)


def _vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals weighted by area, outwards for faces that run counter-clockwise."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    across = np.cross(b - a, c - a)
    sums = np.stack(
        [np.bincount(faces.ravel(), np.repeat(across[:, k], 3), minlength=len(vertices)) for k in range(3)], axis=1
    )
    return (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-20)).astype(np.float32)


def _arcs(part: SubdividedPart, points: np.ndarray, normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Subdivision onto a surface: the middle of an edge lies on the arc that meets both ends' normals.

    After Boubekeur and Alexa 2008, "Phong tessellation", with the weight (1/2) that is exact for a circle. Flat
    triangles would show their edges where a hard light grazes them.
    """
    p, n = points[part.used], normals[part.used]
    for pairs in part.pairs:
        i, j = pairs.T
        edge = p[j] - p[i]
        lift_i, lift_j = (np.einsum("nk,nk->n", edge, n[k])[:, None] for k in (i, j))
        bulge = 0.125 * (lift_j * n[j] - lift_i * n[i])
        most = _MOST_BULGE * np.linalg.norm(edge, axis=1, keepdims=True)
        bulge *= np.minimum(1, most / np.maximum(np.linalg.norm(bulge, axis=1, keepdims=True), 1e-12))
        between = n[i] + n[j]
        p = np.concatenate([p, 0.5 * (p[i] + p[j]) + bulge])
        n = np.concatenate([n, between / np.maximum(np.linalg.norm(between, axis=1, keepdims=True), 1e-12)])
    return p, n


def _albedo_texture(head: MorphableHead, skin: float, seed: int, size: int) -> Float32[np.ndarray, "s s 3"]:
    """Reflectance at the texels of the head's chart; colours go on beyond its borders."""
    chart = texture_chart(head.topology, size)

    def at(values: Any) -> np.ndarray:
        return np.einsum("nk,nk...->n...", chart.weights, np.asarray(values, np.float64)[chart.triangles])

    regions = {k: at(v) for k, v in head.regions.items()}
    look = surface_at(at(head.params.mean), regions, np.asarray(head.params.eye_pivot), skin, seed)
    return fill_outside(np.asarray(texture_from(chart, jnp.asarray(look.albedo))), chart.covered)


# -- the light ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Lamp:
    """A glowing ball near the head, which no camera sees."""

    position: tuple[float, float, float]
    """Metres, in the frame of the scene."""
    radius: float
    intensity: tuple[float, float, float]
    """Irradiance on a surface that faces it from one metre away, as of `NearLights`."""


_NO_LAMP = Lamp((0.0, 10.0, 0.0), 1e-3, (0.0, 0.0, 0.0))  # below the scene, where it is in nobody's way


def sky_directions(rows: int, columns: int) -> Float32[np.ndarray, "r c 3"]:
    """Unit directions of the values of a map of light as Mitsuba 3.9 has them: the first and last row AT the poles.

    Otherwise as `environment_directions`: -y is up, the picture's middle is +z.
    """
    polar, azimuth = np.pi * np.arange(rows) / (rows - 1), 2 * np.pi * (np.arange(columns) + 0.5) / columns
    x, z = -np.sin(polar)[:, None] * np.sin(azimuth), -np.sin(polar)[:, None] * np.cos(azimuth)
    return np.stack([x, np.broadcast_to(-np.cos(polar)[:, None], x.shape), z], axis=-1).astype(np.float32)


def sky_of(light: Environment | Callable[[np.ndarray], np.ndarray], rows: int = 257) -> Float32[np.ndarray, "r c 3"]:
    """A map for `StageStudio.lit_by`: an environment, or a function from directions (N, 3) to radiance (N, 3)."""
    directions = sky_directions(rows, 2 * (rows - 1))
    flat = directions.reshape(-1, 3)
    radiance = np.asarray(radiance_towards(light, flat)) if isinstance(light, Environment) else light(flat)
    return np.asarray(radiance, np.float32).reshape(directions.shape)


def sky_of_lights(
    directions: Float[np.ndarray, "n 3"], power: Float[np.ndarray, "n 3"], rows: int = 513
) -> Float32[np.ndarray, "r c 3"]:
    """A map of distant lights: unit directions towards them, and their power (radiance times solid angle, the
    irradiance on a surface that faces them).

    Each light is spread over the four values around it, so its mean direction is kept and it is about half a degree
    wide at 513 rows.
    """
    columns = 2 * (rows - 1)
    step = np.pi / (rows - 1)
    x, y, z = np.asarray(directions, np.float64).T
    row = np.arctan2(np.hypot(x, z), -y) / step
    column = (np.pi + np.arctan2(x, z)) / (2 * np.pi) * columns - 0.5
    # what a value of 1 between zeros holds: the integral of its tent over the sphere
    polar = np.arange(rows) * step
    held = 2 * np.sin(polar) * (1 - np.cos(step)) / step
    held[[0, -1]] = 1 - np.sin(step) / step
    held *= 2 * np.pi / columns
    top, left = np.minimum(np.floor(row).astype(int), rows - 2), np.floor(column).astype(int)
    sky = np.zeros((rows, columns, 3))
    for down in (0, 1):
        for right in (0, 1):
            weight = np.abs(1 - down - (row - top)) * np.abs(1 - right - (column - left))
            at = (top + down, (left + right) % columns)
            np.add.at(sky, at, (weight / held[at[0]])[:, None] * power)
    return sky.astype(np.float32)


# -- the camera --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Shot:
    """What a camera saw."""

    colour: Float32[np.ndarray, "h w 3"]
    """Linear radiance on black, premultiplied by `coverage`."""
    coverage: Float32[np.ndarray, "h w"]
    """Share of the pixel that shows the head."""


class StageStudio:
    """A scene of one person that is built once; then vertices, light and camera change."""

    def __init__(
        self,
        subject: MorphableHead,
        *,
        skin: float,
        seed: int,
        size: tuple[int, int],
        samples: int = 64,
        max_depth: int = 4,
        matt: bool = False,
        texture_size: int = 512,
    ) -> None:
        """skin, seed: of the subject's looks, see `surface_at`. size: (height, width) of pictures. samples: paths per
        pixel. max_depth: 4 is light of up to two bounces from face to face. matt: no gloss. texture_size: side of the
        texture of reflectance, whose stubble and freckles are finer than the mesh; 512 is what `light_stage` has for
        textures of 256.

        Raises `InputError` where LLVM is missing or too old.
        """
        require_llvm()
        import mitsuba as mi

        mi.set_variant("llvm_ad_rgb")
        mi.set_log_level(mi.LogLevel.Error)
        self.mi, self.size, self.samples = mi, size, samples
        self.dense = DenseHead.of(subject)
        neutral = np.asarray(subject.params.mean)
        regions = {k: self.dense.spread(np.asarray(v, np.float32)) for k, v in subject.regions.items()}
        pivots, spacing = np.asarray(subject.params.eye_pivot), self.dense.spacing(neutral)
        look = surface_at(self.dense.spread(neutral), regions, pivots, skin, seed, spacing)
        self.height = np.where(self.dense.skin, look.height, 0)[:, None].astype(np.float32)
        n = len(self.height)
        self.bsdf = skin_bsdf_class(mi.variant())(mi.Properties())
        self.bsdf.set_mesh(self.dense.faces, self.dense.uv_corners)
        self.bsdf.set_material(
            np.ones((n, 3), np.float32),
            _albedo_texture(subject, skin, seed, texture_size),
            np.zeros(n, np.float32) if matt else look.specular,
            look.roughness,
        )
        properties = mi.Properties()
        properties["mesh_bsdf"] = self.bsdf
        mesh = mi.Mesh("head", n, len(self.dense.faces), has_vertex_normals=True, props=properties)
        params = mi.traverse(mesh)
        params["faces"] = mi.UInt32(np.ravel(self.dense.faces).astype(np.uint32))
        params["vertex_positions"] = mi.Float(np.ravel(self.points(neutral)))
        params.update()
        self.mesh, self.max_depth = mesh, max_depth
        self.scene: Any = None

    def points(self, vertices: Float[np.ndarray, "v 3"]) -> Float32[np.ndarray, "n 3"]:
        """The dense surface, relief included, of a head with these vertices, in their frame."""
        points, normals = self.dense.surface(vertices)
        return (points + self.height * normals).astype(np.float32)

    def lit_by(self, sky: Float32[np.ndarray, "r c 3"], lamp: Lamp | None = None) -> None:
        """Set the light, in the frame of the scene, whose -y is up: a map (see `sky_of`) and perhaps a lamp.

        All maps of one studio must have one size. Raises `InputError` for another size and for what is no light.
        """
        if not np.isfinite(sky).all() or sky.min() < 0:
            raise InputError("A map of light must be finite and nowhere negative: clip or repair it.")
        mi = self.mi
        if self.scene is None:
            # the map's up is +y and its middle +z: half a turn about z
            upright = mi.ScalarTransform4f().rotate([0, 0, 1], 180)
            glow = {"type": "area", "radiance": {"type": "rgb", "value": [1.0, 1.0, 1.0]}}
            self.scene = mi.load_dict(
                {
                    "type": "scene",
                    "integrator": {
                        "type": "path",
                        "max_depth": self.max_depth,
                        "rr_depth": 1000,
                        "hide_emitters": True,
                    },
                    "head": self.mesh,
                    "sky": {"type": "envmap", "bitmap": mi.Bitmap(np.ones_like(sky)), "to_world": upright},
                    "lamp": {"type": "sphere", "emitter": glow},
                }
            )
            self.params = mi.traverse(self.scene)
        padded = np.concatenate([sky[:, -1:], sky, sky[:, :1]], axis=1)
        if tuple(self.params["sky.data"].shape) != padded.shape:
            raise InputError(f"Maps of light of one studio must have one size, got another one: {sky.shape[:2]}.")
        self.params["sky.data"] = mi.TensorXf(padded)
        shown = lamp or _NO_LAMP
        radiance = np.asarray(shown.intensity) / (np.pi * shown.radius**2)
        place = [float(x) for x in shown.position]
        self.params["lamp.to_world"] = mi.AffineTransform4f().translate(place).scale(float(shown.radius))
        self.params["lamp.emitter.radiance.value"] = mi.Color3f(*(float(x) for x in radiance))
        self.params["lamp.emitter.sampling_weight"] = float(lamp is not None)
        self.params.update()

    def pose(self, vertices: Float[np.ndarray, "v 3"]) -> None:
        """Move the head: its vertices, metres, in the frame of the scene. Light must have been set before."""
        self.params["head.vertex_positions"] = self.mi.Float(np.ravel(self.points(vertices)))
        self.params.update()  # Mitsuba makes the normals of the dense surface, relief included

    def shoot(
        self,
        intrinsics: Float[np.ndarray, "3 3"],
        seed: int,
        rotation: Float[np.ndarray, "3 3"] | None = None,
        translation: Float[np.ndarray, " 3"] | None = None,
    ) -> Shot:
        """A picture by a pinhole camera with square pixels, free of noise but that of sampling.

        intrinsics: pixels. rotation, translation: scene to camera; by default the scene's frame is the camera's. The
        same seed draws the same picture.
        """
        sensor = self._sensor(np.asarray(intrinsics, np.float64), rotation, translation)
        number = self.mi.UInt32(seed % 2**32)
        rgba = np.array(self.mi.render(self.scene, sensor=sensor, spp=self.samples, seed=number), np.float32)
        return Shot(colour=rgba[..., :3], coverage=np.clip(rgba[..., 3], 0, 1))

    def _sensor(self, intrinsics: np.ndarray, rotation: np.ndarray | None, translation: np.ndarray | None) -> Any:
        (h, w), (fx, fy) = self.size, intrinsics[[0, 1], [0, 1]]
        if abs(fx / fy - 1) > 1e-3:
            raise InputError(
                f"Pictures by the path tracer need square pixels, got focal lengths {fx:.6g} and {fy:.6g}."
            )
        r = np.eye(3) if rotation is None else np.asarray(rotation, np.float64)
        t = np.zeros(3) if translation is None else np.asarray(translation, np.float64)
        eye = -r.T @ t
        view = self.mi.ScalarTransform4f().look_at(
            origin=eye.tolist(), target=(eye + r[2]).tolist(), up=(-r[1]).tolist()
        )
        film = {"type": "hdrfilm", "width": w, "height": h, "rfilter": {"type": "box"}, "pixel_format": "rgba"}
        return self.mi.load_dict(
            {
                "type": "perspective",
                "fov": float(np.degrees(2 * np.arctan(w / (2 * fx)))),
                "fov_axis": "x",
                "principal_point_offset_x": float(intrinsics[0, 2] / w - 0.5),
                "principal_point_offset_y": float(intrinsics[1, 2] / h - 0.5),
                "near_clip": 0.01,
                "far_clip": 100.0,
                "to_world": view,
                "film": film,
                "sampler": {"type": "multijitter", "sample_count": self.samples},
            }
        )

    def light_share(self, intrinsics: Float[np.ndarray, "3 3"], seed: int) -> Float32[np.ndarray, "h w"]:
        """What cast shadows leave: the irradiance that arrives, over that without anything in its way; NaN where the
        centre of a pixel shows no head.

        Direct light only, by its luminance, on the side of the surface that the camera sees; a surface turned away
        from a hard light is not in its cast shadow. The scene's frame must be the camera's. Pixels below 1/2 are
        "shadowed".
        """
        mi, (h, w) = self.mi, self.size
        import drjit as dr

        (fx, fy), (cx, cy) = intrinsics[[0, 1], [0, 1]], intrinsics[:2, 2]
        pixel = dr.arange(mi.UInt32, h * w)
        x, y = mi.Float(pixel % w) + 0.5, mi.Float(pixel // w) + 0.5
        direction = dr.normalize(mi.Vector3f((x - float(cx)) / float(fx), (y - float(cy)) / float(fy), 1.0))
        si = self.scene.ray_intersect(mi.Ray3f(mi.Point3f(0), direction))
        active = si.is_valid() & (si.shape == mi.ShapePtr(self.mesh))
        sampler = mi.load_dict({"type": "independent"})
        sampler.seed(seed % 2**32, h * w)
        arrived, offered = mi.Float(0), mi.Float(0)
        for _ in range(_SHARE_SAMPLES):
            sample, weight = self.scene.sample_emitter_direction(si, sampler.next_2d(), False, active)
            amount = mi.luminance(weight) * dr.maximum(dr.dot(si.sh_frame.n, sample.d), 0)
            lit = active & (amount > 0)
            open_way = ~self.scene.ray_test(si.spawn_ray_to(sample.p), lit)
            offered += dr.select(lit, amount, 0)
            arrived += dr.select(lit & open_way, amount, 0)
        share = dr.select(active, arrived / dr.maximum(offered, 1e-12), dr.nan)
        return np.array(dr.select(active & (offered <= 0), 1, share), np.float32).reshape(h, w)
