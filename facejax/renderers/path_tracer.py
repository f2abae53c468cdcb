"""Path tracing by Mitsuba 3 behind the `render` of every renderer: cast shadows, and the judge of the faster ones.

The head is posed in JAX, so the scene lives in the camera frame and derivatives for the pose come by the chain rule.
Inside the callback everything belongs to Mitsuba and Dr.Jit, on one thread of its own; no JAX function is called there.

Derivatives of the interior of the image are those of the Monte Carlo estimate. Silhouettes move with the vertices,
which no derivative of samples sees: the outline gets an integral over its edges in the image (Li et al. 2018,
"Differentiable Monte Carlo ray tracing through edge sampling", section 3.1), the edges of cast shadows Mitsuba's
projective sampling.
"""

import concurrent.futures
import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from facejax.geometry.cameras import project, to_camera_frame
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import Topology, vertex_normals
from facejax.geometry.records import Camera, Face, Image, Pose, PRNGKey
from facejax.renderers.checks import check_known_light, check_scene, check_topology
from facejax.renderers.lights import Environment, Light, NearLights, environment_directions, radiance_towards
from facejax.renderers.llvm import require_llvm
from facejax.renderers.mitsuba_bsdf import skin_bsdf_class
from facejax.renderers.raster import fragments_of

Silhouettes: TypeAlias = Literal["none", "outline", "all"]

_SH_SIZE = (64, 64)  # of the map that stands for spherical harmonics
_PASS = 1 << 22  # samples drawn at once: bounds the memory
_STEP = 0.02  # pixels: how far from a silhouette its two sides are looked at
_NEAR = 1e-3  # metres
_GUIDING = "octree"  # how the projective integrator learns where shadows have edges
_GUIDING_SAMPLES = 32  # per pixel, for that
_BACKWARD_SEED = np.uint32(0x9E3779B9)  # other random numbers than the image's: their product must have no bias


class _Inputs(NamedTuple):
    """What a picture depends on, camera frame; `light` is (radiance of the map,) or (positions, intensities)."""

    vertices: Any
    normals: Any
    albedo: Any
    texture: Any
    specular: Any
    roughness: Any
    focal: Any
    principal_point: Any
    light: tuple[Any, ...]


def make_path_tracer(
    topology: Topology,
    size: tuple[int, int],
    *,
    samples: int = 64,
    max_depth: int = 2,
    silhouettes: Silhouettes = "outline",
    variant: str | None = None,
) -> Any:
    """A `render` by Mitsuba 3 for one mesh topology and image size (height, width), under jit, vmap and grad.

    samples: paths per pixel. max_depth: 2 is direct light with cast shadows, more adds light from face to face.
    silhouettes: which moving edges derivatives see: "none", the head's "outline" in the image, or "all", cast shadows
    too (many times slower; for vertices, under a map or spherical harmonics, with square pixels).
    variant: Mitsuba's; by default `cuda_ad_rgb` where JAX has a GPU, else `llvm_ad_rgb`.

    Surfaces are one-sided, normals interpolated, the background black. A `key` picks the random numbers; without one
    they are always the same. The scene is built at the first picture and then only updated. Pictures are drawn one
    after another, also under vmap. Raises `InputError` for a topology, size or option that cannot be drawn, and, from
    the first picture, where LLVM is missing or too old.
    """
    _check_options(topology, size, samples, max_depth, silhouettes)
    studio = _Studio(topology, size, samples, max_depth, silhouettes, variant)
    height, width = size
    shapes = (
        jax.ShapeDtypeStruct((height, width, 3), jnp.float32),
        jax.ShapeDtypeStruct((height, width), jnp.float32),
        jax.ShapeDtypeStruct((height, width), jnp.int32),
    )

    @jax.custom_vjp
    def trace(inputs: Any, seed: Any) -> tuple[Array, Array, Array]:
        return jax.pure_callback(studio.forward, shapes, inputs, seed, vmap_method="sequential")

    def trace_forward(inputs: Any, seed: Any) -> tuple[tuple[Array, Array, Array], tuple[Any, Any]]:
        if max_depth > 2:
            _refuse_beyond_direct(inputs)
        inputs, seed = jax.tree.map(lambda x: x.value, (inputs, seed), is_leaf=lambda x: hasattr(x, "perturbed"))
        return trace(inputs, seed), (inputs, seed)

    def trace_backward(kept: tuple[Any, Any], cotangents: tuple[Any, ...]) -> tuple[Any, np.ndarray]:
        inputs, seed = kept
        zero = jax.custom_derivatives.SymbolicZero
        cotangents = tuple(jnp.zeros(c.shape, jnp.float32) if isinstance(c, zero) else c for c in cotangents[:2])
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
        gradient = jax.pure_callback(studio.backward, like, inputs, seed, *cotangents, vmap_method="sequential")
        return gradient, np.zeros(jnp.shape(seed), jax.dtypes.float0)

    trace.defvjp(trace_forward, trace_backward, symbolic_zeros=True)

    def render(face: Face, light: Light, pose: Pose, camera: Camera, key: PRNGKey | None = None) -> Image:
        check_scene(topology, face, pose, camera)
        check_known_light(light)
        in_camera = to_camera_frame(face.vertices, pose)
        normals = vertex_normals(face.vertices, topology.faces)
        inputs = _Inputs(
            vertices=in_camera,
            normals=jnp.matmul(normals, pose.rotation.T, precision=jax.lax.Precision.HIGHEST),
            albedo=face.albedo,
            texture=face.texture,
            specular=face.specular,
            roughness=face.roughness,
            focal=camera.focal,
            principal_point=camera.principal_point,
            light=_light_arrays(light),
        )
        seed = jnp.uint32(0) if key is None else jax.random.bits(key, (), jnp.uint32)
        colour, coverage, triangle = trace(inputs, seed)
        on_image = jnp.concatenate([project(in_camera, camera), in_camera[:, 2:]], axis=-1)
        depth = fragments_of(triangle, on_image, topology.faces).depth
        return Image(colour=colour, coverage=coverage, depth=jnp.where(coverage > 0, depth, 0.0))

    return render


# --- what goes in -----------------------------------------------------------------------------------------------------


def _check_options(
    topology: Topology, size: tuple[int, int], samples: int, max_depth: int, silhouettes: Silhouettes
) -> None:
    check_topology(topology, size)
    if samples < 1 or max_depth < 2:
        raise InputError(f"A path tracer needs samples >= 1 and max_depth >= 2, got {samples} and {max_depth}.")
    if silhouettes not in ("none", "outline", "all"):
        raise InputError(f'silhouettes is "none", "outline" or "all", got {silhouettes!r}.')


def _refuse_beyond_direct(inputs: Any) -> None:
    """Derivatives that Mitsuba's integrator for more than direct light does not have must not come back as 0."""
    lamps = inputs.light[:1] if len(inputs.light) == 2 else ()
    if any(x.perturbed for x in (inputs.focal, inputs.principal_point, *lamps)):
        raise InputError(
            "With max_depth above 2 the path tracer has no derivative for the camera or for positions of lamps: "
            "wrap them in jax.lax.stop_gradient, or use max_depth=2."
        )


def _light_arrays(light: Light) -> tuple[Array, ...]:
    if isinstance(light, NearLights):
        return light.positions, light.intensity
    if not isinstance(light, Environment):
        height, width = _SH_SIZE
        directions = jnp.asarray(environment_directions(height, width).reshape(-1, 3))
        light = Environment(radiance=radiance_towards(light, directions).reshape(height, width, 3))
    return (_rows_to_poles(light.radiance),)


def _rows_to_poles(radiance: Float[Array, "h w 3"]) -> Float[Array, "r w 3"]:
    """The same map with 2 h + 1 rows, the first and last AT the poles, as Mitsuba 3.9 reads them.

    Ours have the centres of their rows half a row away from the poles. Every second new row is one of these, the rows
    between are midpoints, so bilinear interpolation gives the same everywhere. Beyond a pole lies the row next to it,
    half a turn on.
    """
    height, width = radiance.shape[:2]
    beyond = jnp.roll(radiance[jnp.array([0, -1])], width // 2, axis=1)
    padded = jnp.concatenate([beyond[:1], radiance, beyond[1:]])
    between = 0.5 * (padded[:-1] + padded[1:])
    woven = jnp.stack([between[:-1], radiance], axis=1).reshape(2 * height, width, 3)
    return jnp.concatenate([woven, between[-1:]])


def _check_values(inputs: _Inputs) -> None:
    """NaN and the like, once values are known; Mitsuba would draw them as black, or not come back."""
    for name in inputs._fields[:-1]:
        values = np.asarray(getattr(inputs, name))
        if not np.isfinite(values).all():
            raise InputError(f"The path tracer needs finite numbers, got NaN or infinity among {name}.")
    if not all(np.isfinite(x).all() for x in inputs.light):
        raise InputError("The path tracer needs a finite light, got NaN or infinity.")
    if (inputs.light[-1] < 0).any():
        raise InputError(f"Light cannot be negative, got {inputs.light[-1].min():.3g}: clip it at 0.")
    low, high = np.min(inputs.roughness), np.max(inputs.roughness)
    if low <= 0 or high > 1:
        raise InputError(f"Roughness must be above 0 and at most 1, got {low:.3g} to {high:.3g}.")


# --- Mitsuba's side ---------------------------------------------------------------------------------------------------

_WORKER = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="facejax-path-tracer")


@contextlib.contextmanager
def _mitsuba(variant: str) -> Iterator[Any]:
    """Mitsuba with `variant` set, for as long as needed: another user's variant is put back."""
    import mitsuba as mi

    before = mi.variant()
    if before != variant:
        mi.set_variant(variant)
    try:
        yield mi
    finally:
        if before is not None and before != variant:
            mi.set_variant(before)


def _choose_variant(variant: str | None) -> str:
    """The variant to use; an LLVM one only with an LLVM that it survives."""
    if variant is None:
        variant = "cuda_ad_rgb" if jax.default_backend() == "gpu" else "llvm_ad_rgb"
    if variant not in ("cuda_ad_rgb", "llvm_ad_rgb"):
        raise InputError(f"The path tracer's variants are llvm_ad_rgb and cuda_ad_rgb, got {variant}.")
    if variant.startswith("llvm"):
        require_llvm()
    return variant


class _Studio:
    """Scenes of one renderer, one per kind and size of light, and the two functions that JAX calls back."""

    def __init__(
        self,
        topology: Topology,
        size: tuple[int, int],
        samples: int,
        max_depth: int,
        silhouettes: Silhouettes,
        variant: str | None,
    ) -> None:
        self.topology, self.size, self.samples = topology, size, samples
        self.max_depth, self.silhouettes, self.variant = max_depth, silhouettes, variant
        self.scenes: dict[Any, _Scene] = {}

    def forward(self, inputs: _Inputs, seed: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._work(lambda scene, x: scene.picture(x, int(seed)), inputs)

    def backward(self, inputs: _Inputs, seed: Any, colour: Any, coverage: Any) -> _Inputs:
        dark = [np.asarray(g, np.float32) for g in (colour, coverage)]
        return self._work(lambda scene, x: scene.gradient(x, int(np.uint32(seed) ^ _BACKWARD_SEED), *dark), inputs)

    def _work(self, act: Callable[["_Scene", _Inputs], Any], inputs: _Inputs) -> Any:
        arrays = {name: np.asarray(getattr(inputs, name), np.float32) for name in inputs._fields[:-1]}
        values = _Inputs(light=tuple(np.asarray(x, np.float32) for x in inputs.light), **arrays)
        _check_values(values)

        def on_worker() -> Any:
            if self.variant is None or not self.scenes:
                self.variant = _choose_variant(self.variant)
            with _mitsuba(self.variant) as mi:
                shapes = (tuple(x.shape for x in values.light), values.texture.shape)
                if shapes not in self.scenes:
                    self.scenes[shapes] = _Scene(mi, self, values)
                scene = self.scenes[shapes]
                scene.update(values)
                return act(scene, values)

        # Dr.Jit keeps state per thread and Mitsuba a variant per process: one thread does all of it, in order
        return _WORKER.submit(on_worker).result()


class _Scene:
    """One head under one kind of light, as Mitsuba has it."""

    def __init__(self, mi: Any, studio: _Studio, inputs: _Inputs) -> None:
        self.mi, self.dr, self.studio = mi, importlib.import_module("drjit"), studio
        topology = studio.topology
        self.bsdf = skin_bsdf_class(mi.variant())(mi.Properties())
        self.bsdf.set_mesh(topology.faces, np.asarray(topology.uv)[topology.uv_faces])
        self.bsdf.set_material(inputs.albedo, inputs.texture, inputs.specular, inputs.roughness)
        properties = mi.Properties()
        properties["mesh_bsdf"] = self.bsdf
        mesh = mi.Mesh("head", topology.n_vertices, topology.n_faces, has_vertex_normals=True, props=properties)
        params = mi.traverse(mesh)
        params["faces"] = mi.UInt32(np.ravel(topology.faces).astype(np.uint32))
        params["vertex_positions"] = mi.Float(np.ravel(inputs.vertices))
        params.update()
        self.scene = mi.load_dict({"type": "scene", "head": mesh} | self._emitters(inputs.light))
        self.params = mi.traverse(self.scene)
        self.sampler = mi.load_dict({"type": "independent"})
        self.environment: Any = None if len(inputs.light) == 2 else self.scene.environment()
        self.last: dict[str, np.ndarray] = {}
        self.edges = _edges(topology.faces)

    def _emitters(self, light: tuple[np.ndarray, ...]) -> dict[str, Any]:
        """Lamps are Mitsuba's only beyond direct light, see `_direct`; a map always is."""
        mi = self.mi
        if len(light) == 2:
            if self.studio.max_depth == 2:
                return {}
            black = {"type": "rgb", "value": [0.0, 0.0, 0.0]}
            return {
                f"lamp{i}": {"type": "point", "position": [0, 0, 0], "intensity": black} for i in range(len(light[0]))
            }
        # the map's up is +y and its centre +z; the camera's up is -y: half a turn about z
        upright = mi.ScalarTransform4f().rotate([0, 0, 1], 180)
        return {"sky": {"type": "envmap", "bitmap": mi.Bitmap(np.array(light[0])), "to_world": upright}}

    def update(self, inputs: _Inputs) -> None:
        """Hand over what differs from the last picture; only moved vertices cost a new acceleration structure."""
        mi, params = self.mi, self.params
        changed = {
            name
            for name, value in zip(
                (*inputs._fields[:-1], "light0", "light1"), (*inputs[:-1], *inputs.light), strict=False
            )
            if name not in self.last or not np.array_equal(self.last[name], value)
        }
        if not changed:
            return
        if "vertices" in changed:
            params["head.vertex_positions"] = mi.Float(np.ravel(inputs.vertices))
            params.update()
        if changed & {"vertices", "normals"}:  # Mitsuba has just made its own normals
            params["head.vertex_normals"] = mi.Float(np.ravel(inputs.normals))
            params.update()
        if changed & {"albedo", "texture", "specular", "roughness"}:
            self.bsdf.set_material(inputs.albedo, inputs.texture, inputs.specular, inputs.roughness)
        if changed & {"focal", "principal_point"}:
            self.camera = mi.Float(np.concatenate([inputs.focal, inputs.principal_point]))
        if changed & {"light0", "light1"}:
            self._set_light(inputs.light)
        self.last = dict(zip((*inputs._fields[:-1], "light0", "light1"), (*inputs[:-1], *inputs.light), strict=False))
        self.last = {k: np.array(v) for k, v in self.last.items()}

    def _set_light(self, light: tuple[np.ndarray, ...]) -> None:
        mi, params = self.mi, self.params
        if len(light) == 1:
            padded = np.concatenate([light[0][:, -1:], light[0], light[0][:, :1]], axis=1)
            if tuple(params["sky.data"].shape) != padded.shape:
                raise InputError("Path tracing under a map of light needs Mitsuba 3.9: pip install 'mitsuba>=3.9'.")
            params["sky.data"] = mi.TensorXf(padded)
            params.update()
            return
        positions, intensity = light
        self.lamps = (mi.Float(np.ravel(positions)), mi.Float(np.ravel(intensity)))
        # lamps are drawn by power; dark ones now and then, for their derivatives
        power = intensity.sum(axis=1)
        share = 0.9 * power / max(float(power.sum()), 1e-30) + 0.1 / len(power)
        self.lamp_choice = mi.DiscreteDistribution(mi.Float(share.astype(np.float32)))
        for i in range(len(positions)):
            if f"lamp{i}.position" in params:
                params[f"lamp{i}.position"] = mi.Point3f(*(float(x) for x in positions[i]))
                params[f"lamp{i}.intensity.value"] = mi.Color3f(*(float(x) for x in intensity[i]))
        params.update()

    # --- radiance ---

    def _ray(self, x: Any, y: Any) -> Any:
        """Camera ray through pixel coordinates; attached to the camera's parameters."""
        mi, dr = self.mi, self.dr
        fx, fy, cx, cy = (dr.gather(mi.Float, self.camera, mi.UInt32(i)) for i in range(4))
        direction = dr.normalize(mi.Vector3f((x - cx) / fx, (y - cy) / fy, 1.0))
        return mi.Ray3f(mi.Point3f(0), direction)

    def _direct(self, si: Any, sampler: Any) -> Any:
        """Light that reaches hits `si` without a bounce, reflected towards the camera: one sample.

        Map: its own directions and the BSDF's, weighed by the power heuristic. Lamps: one, by power. Which directions
        are drawn and what they see is held constant; everything else is attached.
        """
        mi, dr = self.mi, self.dr
        active = si.is_valid()
        fixed = dr.detach(si)
        material = self.bsdf.material(si, active)
        if self.environment is None:
            lamp, chance = self.lamp_choice.sample_pmf(sampler.next_1d())
            position = dr.gather(mi.Point3f, self.lamps[0], lamp)
            intensity = dr.gather(mi.Color3f, self.lamps[1], lamp)
            away = position - si.p
            square = dr.maximum(dr.squared_norm(away), 1e-12)
            lit = active & ~self.scene.ray_test(fixed.spawn_ray_to(dr.detach(position)), active)
            value = self.bsdf.evaluate(material, si, si.to_local(away * dr.rsqrt(square)), lit)
            return dr.select(lit, value * intensity / (square * chance), 0)

        def arriving(direction: Any) -> Any:
            seen = dr.zeros(mi.SurfaceInteraction3f, dr.width(direction))
            seen.wi = -direction
            return self.environment.eval(seen)

        def weight(mine: Any, other: Any) -> Any:
            share = dr.square(mine) / dr.maximum(dr.square(mine) + dr.square(other), 1e-30)
            return dr.select(mine > 0, share / dr.maximum(mine, 1e-30), 0)

        with dr.suspend_grad():
            to_light, _ = self.environment.sample_direction(fixed, sampler.next_2d(), active)
            drawn = fixed.to_world(self.bsdf.draw(material, fixed.wi, sampler.next_1d(), sampler.next_2d()))
            choices = []
            for d in (to_light.d, drawn):
                ds = mi.DirectionSample3f(to_light)
                ds.d = d
                local = fixed.to_local(d)
                above = active & (local.z > 0)
                lit = above & ~self.scene.ray_test(fixed.spawn_ray(d), above)
                choices.append(
                    (
                        d,
                        lit,
                        self.environment.pdf_direction(fixed, ds, lit),
                        self.bsdf.density(material, fixed.wi, local, lit),
                    )
                )
        total = mi.Color3f(0)
        for i, (d, lit, light_pdf, bsdf_pdf) in enumerate(choices):
            w = weight(light_pdf, bsdf_pdf) if i == 0 else weight(bsdf_pdf, light_pdf)
            value = self.bsdf.evaluate(material, si, si.to_local(d), lit)
            total += dr.select(lit, value * arriving(d) * w, 0)
        return total

    @functools.cached_property
    def _paths(self) -> Any:
        deep = {"type": "prb", "max_depth": self.studio.max_depth, "rr_depth": 1000, "hide_emitters": True}
        return self.mi.load_dict(deep)

    def _radiance(self, ray: Any, sampler: Any) -> tuple[Any, Any, Any]:
        """(radiance, hit or not, depth) along camera rays, one path each, nothing attached."""
        mi, dr = self.mi, self.dr
        with dr.suspend_grad():
            si = self.scene.ray_intersect(ray, mi.RayFlags.All, coherent=True)
            hit = si.is_valid()
            if self.studio.max_depth == 2:
                value = dr.select(hit, self._direct(si, sampler), 0)
            else:
                value = self._paths.sample(dr.ADMode.Primal, self.scene, sampler, ray, None, None, mi.Bool(True))[0]
        return value, hit, dr.select(hit, si.p.z, dr.inf)

    def _passes(self) -> Iterator[tuple[int, int]]:
        """(number of the pass, samples per pixel in it)."""
        height, width = self.studio.size
        most = max(1, _PASS // (height * width))
        for i, start in enumerate(range(0, self.studio.samples, most)):
            yield i, min(most, self.studio.samples - start)

    def _pixels(self, seed: int, number: int, count: int) -> tuple[Any, Any, Any, Any]:
        """(sampler, pixel ids, x, y) of one pass: `count` places in every pixel."""
        mi, dr = self.mi, self.dr
        height, width = self.studio.size
        n = height * width * count
        self.sampler.seed((seed + 0x85EBCA6B * number) % 2**32, n)
        pixel = dr.arange(mi.UInt32, n) // count
        jitter = self.sampler.next_2d()
        return self.sampler, pixel, mi.Float(pixel % width) + jitter.x, mi.Float(pixel // width) + jitter.y

    def picture(self, inputs: _Inputs, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(colour, coverage, first triangle at pixel centres or -1)."""
        mi, dr = self.mi, self.dr
        height, width = self.studio.size
        total = np.zeros((4, height * width), np.float32)
        for number, count in self._passes():
            sampler, _, x, y = self._pixels(seed, number, count)
            value, hit, _ = self._radiance(self._ray(x, y), sampler)
            sums = [dr.block_sum(c, count) for c in (*value, dr.select(hit, mi.Float(1), mi.Float(0)))]
            dr.eval(sums)
            total += np.stack([np.array(s) for s in sums])
        centre = dr.arange(mi.UInt32, height * width)
        ray = self._ray(mi.Float(centre % width) + 0.5, mi.Float(centre // width) + 0.5)
        first = self.scene.ray_intersect_preliminary(ray, coherent=True)
        triangle = dr.select(first.is_valid(), mi.Int32(first.prim_index), -1)
        total /= self.studio.samples
        colour = np.ascontiguousarray(total[:3].T).reshape(height, width, 3)
        return colour, total[3].reshape(height, width), np.array(triangle).reshape(height, width)

    # --- derivatives ---

    def gradient(self, inputs: _Inputs, seed: int, colour: np.ndarray, coverage: np.ndarray) -> _Inputs:
        """Derivative of sum(colour * picture) + sum(coverage * its coverage) for every input."""
        found = self._interior(inputs, seed, colour)
        if self.studio.silhouettes != "none":
            vertices, camera = self._outline(inputs, seed, np.concatenate([colour, coverage[..., None]], axis=-1))
            found["vertices"] += vertices
            found["focal"] += camera[:2]
            found["principal_point"] += camera[2:]
        if self.studio.silhouettes == "all":
            found["vertices"] += self._shadow_edges(inputs, seed, colour)
        light = tuple(found.pop(f"light{i}") for i in range(len(inputs.light)))
        made = {k: np.asarray(v, np.float32) for k, v in found.items()}
        return _Inputs(light=tuple(np.asarray(x, np.float32) for x in light), **made)

    def _leaves(self) -> dict[str, Any]:
        """The Dr.Jit arrays that inputs became."""
        mi, dr = self.mi, self.dr
        leaves = {
            "vertices": self.params["head.vertex_positions"],
            "normals": self.params["head.vertex_normals"],
            "albedo": self.bsdf.albedo,
            "texture": self.bsdf.texture,
            "specular": self.bsdf.specular,
            "roughness": self.bsdf.roughness,
            "camera": self.camera,
        }
        if self.environment is None:
            if self.studio.max_depth > 2:
                names = [f"lamp{i}.intensity.value" for i in range(dr.width(self.lamps[1]) // 3)]
                return leaves | {name: self.params[name] for name in names}
            return leaves | {"light0": self.lamps[0], "light1": self.lamps[1]}
        return leaves | {"light0": mi.TensorXf(self.params["sky.data"])}

    def _interior(self, inputs: _Inputs, seed: int, colour: np.ndarray) -> dict[str, np.ndarray]:
        mi, dr, samples = self.mi, self.dr, self.studio.samples
        leaves = self._leaves()
        for leaf in leaves.values():
            dr.enable_grad(leaf)
        if self.environment is not None:  # the map keeps a copy: hand it the attached one
            self.params["sky.data"] = leaves["light0"]
            self.params.update()
        weight = mi.Float(np.ravel(colour / samples))
        for number, count in self._passes():
            with dr.suspend_grad():
                sampler, pixel, x, y = self._pixels(seed, number, count)
                share = dr.gather(mi.Color3f, weight, pixel)
            ray = self._ray(x, y)
            if self.studio.max_depth == 2:
                si = self.scene.ray_intersect(ray, mi.RayFlags.All, coherent=True)
                dr.backward(dr.sum(dr.sum(dr.select(si.is_valid(), self._direct(si, sampler) * share, 0))))
                continue
            with dr.suspend_grad():  # path replay: the first walk finds the radiance, the second its derivatives
                scene, active = self.scene, mi.Bool(True)
                primal = self._paths.sample(dr.ADMode.Primal, scene, sampler.clone(), ray, None, None, active)
                self._paths.sample(dr.ADMode.Backward, scene, sampler, ray, share, primal[3], active)
        found = {name: np.array(dr.grad(leaf)) for name, leaf in leaves.items()}
        for leaf in leaves.values():
            dr.disable_grad(leaf)
        if self.environment is not None:
            self.params["sky.data"] = dr.detach(leaves["light0"])
            self.params.update()
        camera = found.pop("camera")
        found |= {"focal": camera[:2], "principal_point": camera[2:]}
        for name in inputs._fields[:-1]:
            found[name] = found[name].reshape(getattr(inputs, name).shape)
        if self.environment is None and self.studio.max_depth > 2:
            lamps = [found.pop(f"lamp{i}.intensity.value").reshape(3) for i in range(len(inputs.light[1]))]
            return found | {"light0": np.zeros_like(inputs.light[0]), "light1": np.stack(lamps)}
        if self.environment is None:
            return found | {f"light{i}": found[f"light{i}"].reshape(-1, 3) for i in range(2)}
        sky = found["light0"]
        folded = sky[:, 1:-1].copy()
        folded[:, -1] += sky[:, 0]
        folded[:, 0] += sky[:, -1]
        return found | {"light0": folded}

    def _outline(self, inputs: _Inputs, seed: int, cotangent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(d vertices, d (fx, fy, cx, cy)) from outlines that sweep over pixels.

        An edge that moves by v in the image changes a pixel's mean by the integral of (v.n) times the step of
        radiance across the edge over the edge's part in that pixel.
        """
        mi, dr = self.mi, self.dr
        height, width = self.studio.size
        camera = np.concatenate([inputs.focal, inputs.principal_point]).astype(np.float64)
        points = inputs.vertices.astype(np.float64)
        ends = self.edges.silhouettes(points)
        ends = ends[(points[ends, 2] > _NEAR).all(axis=1)]
        screen = points[:, :2] / np.maximum(points[:, 2:], _NEAR) * camera[:2] + camera[2:]
        a, b = screen[ends[:, 0]], screen[ends[:, 1]]
        inside = ((np.minimum(a, b) < [width, height]) & (np.maximum(a, b) > 0)).all(axis=1)
        ends, a, b = ends[inside], a[inside], b[inside]
        length = np.linalg.norm(b - a, axis=1)
        total = length.sum()
        gradient, d_camera = np.zeros_like(points), np.zeros(4)
        if not total > 0:
            return gradient, d_camera
        n = int(max(256, np.ceil(total) * max(4, self.studio.samples)))
        rng = np.random.default_rng(seed)
        place = (np.arange(n) + rng.random(n)) / n * total  # stratified along all edges
        edge = np.minimum(np.searchsorted(np.cumsum(length), place), len(length) - 1)
        t = rng.random(n)[:, None]
        xy = (1 - t) * a[edge] + t * b[edge]
        along = (b - a)[edge] / length[edge, None]
        normal = np.stack([along[:, 1], -along[:, 0]], axis=1)
        # 1/z is linear along the projected edge
        depth = 1 / ((1 - t[:, 0]) / points[ends[edge, 0], 2] + t[:, 0] / points[ends[edge, 1], 2])
        pixel = np.floor(xy).astype(int)
        seen = ((pixel >= 0) & (pixel < [width, height])).all(axis=1)
        sides = []
        for step in (-_STEP, _STEP):
            self.sampler.seed(seed, n)  # equal random numbers on both sides: where nothing changes, nothing is left
            x, y = (mi.Float((xy + step * normal)[:, i].astype(np.float32)) for i in range(2))
            value, hit, z = self._radiance(dr.detach(self._ray(x, y)), self.sampler)
            sides.append([*value, dr.select(hit, mi.Float(1), mi.Float(0)), z])
        dr.eval(sides)
        inner, outer = (np.stack([np.array(x) for x in side]) for side in sides)
        seen &= np.maximum(inner[4], outer[4]) > 0.99 * depth  # else another surface hides the edge from both sides
        difference = np.where(seen, inner[:4] - outer[:4], 0.0)
        at = np.clip(pixel, 0, [width - 1, height - 1])
        strength = np.sum(difference.T * cotangent[at[:, 1], at[:, 0]], axis=1) * (total / n)
        pull = strength[:, None] * normal  # derivative for the edge's place in the image
        for corner, share in ((0, 1 - t), (1, t)):
            vertex = ends[edge, corner]
            g = share * pull
            p = points[vertex]
            z = p[:, 2:]
            d_xy = g * camera[:2] / z
            d_z = -np.sum(g * camera[:2] * p[:, :2], axis=1, keepdims=True) / z**2
            np.add.at(gradient, vertex, np.concatenate([d_xy, d_z], axis=1))
            d_camera += np.concatenate([(g * p[:, :2] / z).sum(axis=0), g.sum(axis=0)])
        return gradient, d_camera

    def _shadow_edges(self, inputs: _Inputs, seed: int, colour: np.ndarray) -> np.ndarray:
        """d vertices from the edges of cast shadows, by Mitsuba's projective sampling."""
        mi, dr, (height, width) = self.mi, self.dr, self.studio.size
        if self.environment is None:
            raise InputError(
                'silhouettes="all" has no derivative for the hard shadows of lamps, only for those of a map or '
                'spherical harmonics: use silhouettes="outline".'
            )
        (fx, fy), (cx, cy) = inputs.focal.astype(float), inputs.principal_point.astype(float)
        if abs(fx / fy - 1) > 1e-3:
            raise InputError(f'silhouettes="all" needs square pixels, got focal lengths {fx:.6g} and {fy:.6g}.')
        film = {"type": "hdrfilm", "width": width, "height": height, "pixel_format": "rgb", "rfilter": {"type": "box"}}
        sensor = mi.load_dict(
            {
                "type": "perspective",
                "fov": float(np.degrees(2 * np.arctan(width / (2 * fx)))),
                "fov_axis": "x",
                "principal_point_offset_x": float(cx / width - 0.5),
                "principal_point_offset_y": float(cy / height - 0.5),
                "near_clip": _NEAR,
                "far_clip": 1e4,
                "to_world": mi.ScalarTransform4f().look_at(origin=[0, 0, 0], target=[0, 0, 1], up=[0, -1, 0]),
                "film": film | {"sample_border": True},
            }
        )
        vertices = self.params["head.vertex_positions"]
        dr.enable_grad(vertices)
        self.params["head.vertex_positions"] = vertices
        self.params.update()  # lists the edges, as vertices are attached
        self.params["head.vertex_normals"] = mi.Float(np.ravel(inputs.normals))
        self.params.update()
        kind = "direct_projective" if self.studio.max_depth == 2 else "prb_projective"
        options: dict[str, Any] = {"type": kind, "sppc": 0, "sppp": 0, "hide_emitters": True, "guiding": _GUIDING}
        if kind == "prb_projective":
            options |= {"max_depth": self.studio.max_depth, "rr_depth": 1000}
        integrator = mi.load_dict(options)
        integrator.proj_seed_spp = _GUIDING_SAMPLES
        integrator.render_backward(self.scene, None, mi.TensorXf(colour), sensor, seed, self.studio.samples)
        found = np.array(dr.grad(self.params["head.vertex_positions"])).reshape(-1, 3)
        self.params["head.vertex_positions"] = dr.detach(vertices)
        return np.nan_to_num(found)


class _Edges(NamedTuple):
    """Edges of a mesh: their ends (E, 2), and the faces beside them (E, 2), -1 at a border."""

    faces: np.ndarray
    ends: np.ndarray
    beside: np.ndarray

    def silhouettes(self, points: np.ndarray) -> np.ndarray:
        """Ends (S, 2) of edges between a triangle that faces the origin and one that does not, or none."""
        a, b, c = (points[self.faces[:, i]] for i in range(3))
        front = np.sum(np.cross(b - a, c - a) * a, axis=1) < 0
        first = front[self.beside[:, 0]]
        second = np.where(self.beside[:, 1] >= 0, front[self.beside[:, 1]], ~first)
        return self.ends[first != second]


def _edges(faces: np.ndarray) -> _Edges:
    """Every edge once; one that more than two triangles share counts as borders of each."""
    faces = np.asarray(faces)
    ends = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    owner = np.tile(np.arange(len(faces)), 3)
    order = np.lexsort((ends[:, 1], ends[:, 0]))
    ends, owner = ends[order], owner[order]
    new = np.concatenate([[True], (ends[1:] != ends[:-1]).any(axis=1)])
    count = np.bincount(np.cumsum(new) - 1)[np.cumsum(new) - 1]
    pair = np.flatnonzero(new & (count == 2))
    single = np.flatnonzero(count != 2)
    beside = np.concatenate(
        [np.stack([owner[pair], owner[pair + 1]], axis=1), np.stack([owner[single], np.full(len(single), -1)], axis=1)]
    ).astype(np.int64)
    return _Edges(faces, np.concatenate([ends[pair], ends[single]]), beside)
