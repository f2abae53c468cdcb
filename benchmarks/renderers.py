"""Measure the renderers: speed, accuracy against path tracing, and what each shortcut costs.

Every figure stands beside what a renderer that does nothing about it would reach (control) and what the project asks
for (goal); Mitsuba is timed in the same run. See `benchmarks/README.md`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from machine import Row, machine_facts, print_table, say

from facejax.data.environments import load_environment
from facejax.data.heads import load_model
from facejax.data.heads.ict_facekit import PARTS as ICT_PARTS
from facejax.geometry.cameras import project, to_camera_frame
from facejax.geometry.meshes import Topology, normalise, vertex_normals
from facejax.geometry.records import Camera, Face, Image, Pose
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.models.morphable import MorphableHead
from facejax.renderers.deferred import make_renderer, vertex_light
from facejax.renderers.lights import Environment, Light, power_along, rotate_light, sphere_directions
from facejax.renderers.llvm import require_llvm
from facejax.renderers.microfacet import gather_light
from facejax.renderers.path_tracer import make_path_tracer
from facejax.renderers.raster import Fragments, interpolate, rasterise
from facejax.renderers.sh import lobe_kernel, sh_basis
from facejax.renderers.shadows import ShadowedRender, make_shadowed_renderer
from facejax.renderers.texel_shading import texel_specular
from facejax.renderers.vertex_shading import vertex_specular

PARTS = ("speed", "visibility", "accuracy", "environment", "refresh", "lobes", "batch")
SIZE = (256, 256)
SKIN = ICT_PARTS["mouth_socket"][0]  # face, head and neck come before the mouth
CAMERA = Camera(focal=jnp.array([600.0, 600.0]), principal_point=jnp.array([128.0, 128.0]))
_SPECULAR, _ROUGHNESS, _ALBEDO = 0.04, 0.3, 0.6


# --- the scene --------------------------------------------------------------------------------------------------------


def skin_and_neck(head: MorphableHead) -> tuple[Topology, np.ndarray]:
    """(topology, vertices) of the part of ICT-FaceKit that is skin: 11,248 vertices, 22,288 triangles."""
    faces = head.topology.faces
    own = (faces < SKIN).all(axis=1)
    topology = Topology(
        faces=faces[own].astype(np.int32),
        uv=head.topology.uv,
        uv_faces=head.topology.uv_faces[own],
        n_vertices=SKIN,
    )
    return topology, np.asarray(head.params.mean)[:SKIN]


def face_of(vertices: Any, specular: float = _SPECULAR, albedo: float = _ALBEDO) -> Face:
    """Even skin on a shape."""
    n = len(vertices)
    return Face(
        vertices=jnp.asarray(vertices),
        albedo=jnp.full((n, 3), albedo),
        texture=jnp.ones((4, 4, 3)),
        specular=jnp.full(n, specular),
        roughness=jnp.full(n, _ROUGHNESS),
    )


def pose_of(yaw: float) -> Pose:
    """Turned by `yaw` (rad), 0.9 m away."""
    upright = jnp.diag(jnp.array([1.0, -1.0, -1.0]))
    return Pose(
        rotation=upright @ rotvec_to_matrix(jnp.array([0.0, yaw, 0.0])), translation=jnp.array([0.0, -0.02, 0.9])
    )


def key_light() -> jax.Array:
    """(81, 3) a lobe ((1 + cos) / 2)^8 from above and beside, over dim light: never negative, exactly 9 bands."""
    towards = np.array([0.8, -0.3, -0.52])
    towards /= np.linalg.norm(towards)
    x, weights = np.polynomial.legendre.leggauss(64)
    lobe = ((1 + x) / 2) ** 8
    zonal = [2 * np.pi * (weights * lobe * np.polynomial.legendre.legval(x, np.eye(9)[l])).sum() for l in range(9)]
    band = np.repeat(np.arange(9), 2 * np.arange(9) + 1)
    basis = np.asarray(sh_basis(jnp.asarray(towards, jnp.float32), 9))
    light = (np.array(zonal)[band] * basis)[:, None] * np.array([3.0, 2.8, 2.5])
    light[0] += 0.3
    return jnp.asarray(light, jnp.float32)


# --- measuring --------------------------------------------------------------------------------------------------------


def milliseconds(call: Callable[[], Any], runs: int = 15) -> float:
    """Median time of a call after the first, which compiles."""
    jax.block_until_ready(call())
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken)


def converged(
    topology: Topology, face: Face, light: Light, pose: Pose, size: tuple[int, int], camera: Camera, paths: int
) -> tuple[Image, float]:
    """Mean of path-traced pictures with direct light, and the share of their mean radiance that is still noise."""
    each = min(paths, 512)
    trace = make_path_tracer(topology, size, samples=each, max_depth=2, silhouettes="none")
    rounds = max(2, paths // each)
    pictures = [trace(face, light, pose, camera, jax.random.PRNGKey(i)) for i in range(rounds)]
    colours = np.stack([np.asarray(p.colour, np.float64) for p in pictures])
    whole = np.asarray(pictures[0].coverage) > 0.99
    spread = colours.std(axis=0, ddof=1) / np.sqrt(rounds)
    mean = colours.mean(axis=0)
    noise = float(np.sqrt(2 / np.pi) * spread.mean(axis=-1)[whole].mean() / mean.mean(axis=-1)[whole].mean())
    return pictures[0].replace(colour=jnp.asarray(mean, jnp.float32)), noise


def _inside(*pictures: Image) -> np.ndarray:
    return np.logical_and.reduce([np.asarray(p.coverage) > 0.99 for p in pictures])


def relative_error(picture: Image, reference: Image) -> float:
    """Mean error of the mean over colours, over the mean radiance, where both cover whole pixels."""
    inside = _inside(picture, reference)
    ours, true = (np.asarray(p.colour).mean(axis=-1)[inside] for p in (picture, reference))
    return float(np.abs(ours - true).mean() / true.mean())


def shadow_figures(picture: Image, reference: Image, unshadowed: Image) -> dict[str, float]:
    """Error where the reference is darker than 0.7 of no shadows, and how well the two shadows' regions overlap."""
    inside = _inside(picture, reference)
    ours, true, bare = (np.asarray(p.colour).mean(axis=-1) for p in (picture, reference, unshadowed))
    dark, found = inside & (true < 0.7 * bare), inside & (ours < 0.7 * bare)
    if not dark.any():
        return {"pixels": 0.0, "error": float("nan"), "overlap": float("nan")}
    return {
        "pixels": float(dark.sum()),
        "error": float(np.abs(ours - true)[dark].mean() / true[dark].mean()),
        "overlap": float((dark & found).sum() / (dark | found).sum()),
    }


# --- parts ------------------------------------------------------------------------------------------------------------


def measure_speed(topology: Topology, vertices: np.ndarray) -> dict[str, Any]:
    """Rasteriser, self-shadowed microfacet picture, and Mitsuba's direct light at 8 paths a pixel."""
    face, light, pose = face_of(vertices), key_light(), pose_of(0.35)
    faces = topology.faces

    def coordinates(points: jax.Array) -> jax.Array:
        in_camera = to_camera_frame(points, pose)
        on_image = jnp.concatenate([project(in_camera, CAMERA), in_camera[:, 2:]], axis=-1)
        return interpolate(points, rasterise(on_image, faces, SIZE), faces)

    def energy(points: jax.Array) -> jax.Array:
        return jnp.sum(coordinates(points) ** 2)

    def fragments(points: jax.Array) -> Fragments:
        in_camera = to_camera_frame(points, pose)
        on_image = jnp.concatenate([project(in_camera, CAMERA), in_camera[:, 2:]], axis=-1)
        return rasterise(on_image, faces, SIZE)

    forward, both = jax.jit(fragments), jax.jit(jax.value_and_grad(energy))
    report = {
        "rasterise_ms": milliseconds(lambda: forward(face.vertices)),
        "rasterise_backward_ms": milliseconds(lambda: both(face.vertices)),
    }
    renderer = make_shadowed_renderer(topology, SIZE)
    visible = renderer.visibility_of(face.vertices)

    def loss(light: Any, albedo: Any, points: Any, table: Any) -> jax.Array:
        changed = face.replace(albedo=albedo, vertices=points)
        return jnp.sum(renderer(changed, light, pose, CAMERA, visibility=table).colour ** 2)

    picture = jax.jit(loss)
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    arguments = (light, face.albedo, face.vertices)
    report["shadowed_ms"] = milliseconds(lambda: picture(*arguments, visible))
    report["shadowed_backward_ms"] = milliseconds(lambda: gradient(*arguments, visible))
    report["shadowed_refreshed_ms"] = milliseconds(lambda: gradient(*arguments, None), runs=4)
    memory = gradient.lower(*arguments, visible).compile().memory_analysis()
    if memory is not None:
        report["shadowed_backward_gb"] = (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 1e9

    plain = make_renderer(topology, SIZE)
    unshadowed = jax.jit(lambda l: plain(face, l, pose, CAMERA).colour)
    report["unshadowed_ms"] = milliseconds(lambda: unshadowed(light))
    trace = make_path_tracer(topology, SIZE, samples=8, max_depth=2, silhouettes="none")
    traced = jax.jit(lambda l: trace(face, l, pose, CAMERA).colour)

    def traced_loss(light: Any, albedo: Any, points: Any) -> jax.Array:
        return jnp.sum(trace(face.replace(albedo=albedo, vertices=points), light, pose, CAMERA).colour ** 2)

    traced_gradient = jax.jit(jax.grad(traced_loss, argnums=(0, 1, 2)))
    report["mitsuba_ms"] = milliseconds(lambda: traced(light), runs=8)
    report["mitsuba_backward_ms"] = milliseconds(lambda: traced_gradient(*arguments), runs=5)
    return report


def traced_visibility(vertices: np.ndarray, topology: Topology, directions: np.ndarray) -> tuple[np.ndarray, float]:
    """(V, D) whether Mitsuba's shadow rays get away, and the seconds that its ray tests took."""
    require_llvm()
    import drjit as dr
    import mitsuba as mi

    mi.set_variant("llvm_ad_rgb")
    mesh = mi.Mesh("head", len(vertices), len(topology.faces))
    fields = mi.traverse(mesh)
    fields["vertex_positions"], fields["faces"] = vertices.ravel(), topology.faces.astype(np.uint32).ravel()
    fields.update()
    scene = mi.load_dict({"type": "scene", "head": mesh})
    normals = np.asarray(vertex_normals(jnp.asarray(vertices), topology.faces))
    origins = vertices + 1e-4 * normals
    open_, seconds = np.zeros((len(vertices), len(directions)), bool), 0.0
    for first in range(0, len(directions), 64):
        towards = directions[first : first + 64]
        start = mi.Point3f(np.repeat(origins, len(towards), axis=0).T.copy())
        way = mi.Vector3f(np.tile(towards, (len(vertices), 1)).T.copy())
        dr.eval(start, way)
        dr.sync_thread()
        began = time.perf_counter()
        blocked = scene.ray_test(mi.Ray3f(start, way))
        dr.eval(blocked)
        dr.sync_thread()
        seconds += time.perf_counter() - began
        open_[:, first : first + 64] = ~np.array(blocked).reshape(len(vertices), -1)
    return open_, seconds


def measure_visibility(topology: Topology, vertices: np.ndarray) -> dict[str, Any]:
    """Depth maps against rays, of pairs above the receiver's horizon."""
    renderer = make_shadowed_renderer(topology, SIZE, directions=256)
    points = jnp.asarray(vertices)
    took = milliseconds(lambda: renderer.visibility_of(points), runs=5)
    ours = np.asarray(renderer.visibility_of(points)) > 0.5
    traced_visibility(vertices[:100], topology, renderer.directions[:64])  # Mitsuba compiles too
    true, seconds = traced_visibility(vertices, topology, renderer.directions)
    normals = np.asarray(vertex_normals(points, topology.faces))
    above = normals @ renderer.directions.T > 0
    return {
        "seconds": took / 1e3,
        "mitsuba_seconds": seconds,
        "agreement": float((ours == true)[above].mean()),
        "all_open": float(true[above].mean()),
    }


def measure_accuracy(topology: Topology, vertices: np.ndarray, paths: int) -> dict[str, Any]:
    """Self-shadowed pictures under smooth light against converged path tracing; controls: no shadows, one factor."""
    light, pose = key_light(), pose_of(0.35)
    report: dict[str, Any] = {}
    for name, specular in (("lambert", 0.0), ("specular", _SPECULAR)):
        face = face_of(vertices, specular)
        true, noise = converged(topology, face, light, pose, SIZE, CAMERA, paths)
        case: dict[str, Any] = {"noise": noise}
        for count in (256, 1024):
            renderer = make_shadowed_renderer(topology, SIZE, directions=count)
            draw = jax.jit(
                lambda table, face=face, renderer=renderer: renderer(face, light, pose, CAMERA, visibility=table)
            )
            visible = renderer.visibility_of(face.vertices)
            case[f"error_{count}"] = relative_error(draw(visible), true)
            if count == 256:
                case["no_shadows"] = relative_error(draw(jnp.ones_like(visible)), true)
                case["one_factor"] = relative_error(draw(_one_factor(renderer, visible, face)), true)
        report[name] = case
    return report


def _one_factor(renderer: ShadowedRender, visible: jax.Array, face: Face) -> jax.Array:
    """A table that says of every direction what ambient occlusion says of all together."""
    normals = vertex_normals(face.vertices, renderer.topology.faces)
    cosine = jnp.maximum(normals @ renderer.directions.T, 0.0)
    occlusion = jnp.sum(visible * cosine, axis=1) / jnp.maximum(jnp.sum(cosine, axis=1), 1e-6)
    return jnp.broadcast_to(occlusion[:, None], visible.shape)


def measure_environment(topology: Topology, vertices: np.ndarray, path: Path, paths: int) -> dict[str, Any]:
    """Cast shadows under a real sky, in two turns of it, at 128x128."""
    size, pose, face = (128, 128), pose_of(0.35), face_of(vertices, 0.0)
    camera = CAMERA.replace(focal=CAMERA.focal / 2, principal_point=CAMERA.principal_point / 2)
    sky = load_environment(path)
    report: dict[str, Any] = {}
    for turn in (0.0, 0.3):
        quarter = 2 * np.pi * turn
        turned: Environment = rotate_light(sky, rotvec_to_matrix(jnp.array([0.0, quarter, 0.0])))
        true, noise = converged(topology, face, turned, pose, size, camera, paths)
        case: dict[str, Any] = {"noise": noise}
        for count in (256, 1024):
            renderer = make_shadowed_renderer(topology, size, directions=count)
            draw = jax.jit(
                lambda table, light=turned, renderer=renderer: renderer(face, light, pose, camera, visibility=table)
            )
            visible = renderer.visibility_of(face.vertices)
            bare = draw(jnp.ones_like(visible))
            case[f"shadows_{count}"] = shadow_figures(draw(visible), true, bare)
            case[f"error_{count}"] = relative_error(draw(visible), true)
            if count == 256:
                case["no_shadows"] = shadow_figures(bare, true, bare)
                case["one_factor"] = shadow_figures(draw(_one_factor(renderer, visible, face)), true, bare)
        report[f"turn_{turn}"] = case
    return report


def measure_refresh(head: MorphableHead, topology: Topology) -> dict[str, Any]:
    """What a visibility table of N steps ago costs while a mouth opens fully within 24 steps."""
    names = list(head.expression_names)
    opened = np.asarray(head.params.expression_basis[names.index("jawOpen")])[:SKIN]
    rest = np.asarray(head.params.mean)[:SKIN]
    light, pose = key_light(), pose_of(0.35)
    renderer = make_shadowed_renderer(topology, SIZE)
    draw = jax.jit(lambda v, table: renderer(face_of(v), light, pose, CAMERA, visibility=table))
    shapes = [jnp.asarray(rest + k / 24 * opened) for k in range(25)]
    tables = [renderer.visibility_of(v) for v in shapes]
    fresh = draw(shapes[24], tables[24])
    return {f"every_{n}": relative_error(draw(shapes[24], tables[24 - n]), fresh) for n in (1, 4, 12, 24)}


def measure_lobes(directions: int = 16384) -> dict[str, Any]:
    """Specular light on a convex body, an ellipsoid, against sums over directions, as seen by a camera.

    The mean error over the mean radiance, over all that the camera sees and over what faces it (cosine above 0.9).
    """
    radii, light = np.array([0.075, 0.11, 0.09]), key_light()
    on_sphere = np.asarray(sphere_directions(4000), np.float64)
    normals_head = on_sphere / radii
    area = np.linalg.norm(normals_head, axis=1)  # of the surface, per solid angle of the sphere; up to a factor
    pose, points = pose_of(0.0), jnp.asarray(on_sphere * radii, jnp.float32)
    in_camera = to_camera_frame(points, pose)
    to_eye = normalise(-in_camera)
    normals = normalise(jnp.asarray(normals_head, jnp.float32)) @ pose.rotation.T
    facing = np.asarray(jnp.sum(normals * to_eye, axis=-1))
    pixels = area * np.maximum(facing, 0.0) / np.sum(np.asarray(in_camera) ** 2, axis=1)
    towards = sphere_directions(directions)
    power = power_along(light, towards)
    report: dict[str, Any] = {}
    for alpha in (0.1, 0.3, 0.5):
        face = face_of(np.asarray(points)).replace(roughness=jnp.full(len(points), alpha))
        true = np.asarray(gather_light(normals, to_eye, face.specular, face.roughness, towards, power)[1])
        found = {}
        for name, normalised in (("normalised", True), ("as integrated", False)):
            kernel = lobe_kernel(alpha, 9, normalised=normalised)
            found[f"Dib, {name}"] = face.specular[:, None] * vertex_specular(normals, to_eye, light, kernel)
            found[f"MoSAR, {name}"] = texel_specular(face.specular, normals, to_eye, light, kernel)
        found["make_renderer"] = vertex_light(face, light, pose, normals @ pose.rotation)[1]
        for name, value in found.items():
            for where, seen in (("all", facing > 0), ("facing", facing > 0.9)):
                off = np.abs(np.asarray(value) - true).mean(axis=1)[seen] @ pixels[seen]
                report[f"{name}, {where}, alpha {alpha}"] = float(off / (true.mean(axis=1)[seen] @ pixels[seen]))
    return report


def measure_batch(topology: Topology, vertices: np.ndarray, count: int) -> dict[str, Any]:
    """Pictures per second of a batch of poses, visibility cached: for accelerators."""
    renderer = make_shadowed_renderer(topology, SIZE)
    face, light = face_of(vertices), key_light()
    visible = renderer.visibility_of(face.vertices)
    poses = jax.vmap(pose_of)(jnp.linspace(-0.6, 0.6, count))

    def one(pose: Pose, light: jax.Array) -> jax.Array:
        return renderer(face, light, pose, CAMERA, visibility=visible).colour

    forward = jax.jit(jax.vmap(one, in_axes=(0, None)))
    both = jax.jit(jax.grad(lambda light: jnp.sum(jax.vmap(one, in_axes=(0, None))(poses, light) ** 2)))
    return {
        "batch": count,
        "forward_per_second": 1e3 * count / milliseconds(lambda: forward(poses, light), runs=5),
        "backward_per_second": 1e3 * count / milliseconds(lambda: both(light), runs=5),
    }


# --- the table and the command ----------------------------------------------------------------------------------------


def rows_of(part: str, m: dict[str, Any]) -> list[Row]:
    if part == "speed":
        return [
            ("rasterise, forward (ms)", m["rasterise_ms"], "", "<= 10"),
            ("rasterise, forward and backward (ms)", m["rasterise_backward_ms"], "", "<= 30"),
            ("unshadowed picture, forward (ms)", m["unshadowed_ms"], "", ""),
            ("self-shadowed picture, forward (ms)", m["shadowed_ms"], f"{m['mitsuba_ms']:.3g} Mitsuba, 8 paths", ""),
            ("the same, forward and backward (ms)", m["shadowed_backward_ms"],
             f"{m['mitsuba_backward_ms']:.3g} Mitsuba, 8 paths", "<= 60"),
            ("the same, visibility made anew (ms)", m["shadowed_refreshed_ms"], "", ""),
            ("memory of forward and backward (GB)", m.get("shadowed_backward_gb"), "", "<= 1"),
        ]  # fmt: skip
    if part == "visibility":
        return [
            ("11,248 points x 256 directions (s)", m["seconds"], f"{m['mitsuba_seconds']:.3g} Mitsuba", "<= 1.2"),
            ("agreement with rays (%)", 100 * m["agreement"], f"{100 * m['all_open']:.3g} all open", ">= 97"),
        ]
    if part == "accuracy":
        rows: list[Row] = []
        for name, goals in (("lambert", (1.5, 1.0)), ("specular", (3.0, 3.0))):
            case = m[name]
            control = f"{100 * case['no_shadows']:.3g} no shadows, {100 * case['one_factor']:.3g} one occlusion factor"
            rows += [
                (f"{name}, 256 directions (% of mean radiance)", 100 * case["error_256"], control, f"<= {goals[0]}"),
                (f"{name}, 1,024 directions", 100 * case["error_1024"], "", f"<= {goals[1]}"),
                (f"{name}, noise left in the reference", 100 * case["noise"], "", ""),
            ]
        return rows
    if part == "environment":
        rows = []
        for turn, case in m.items():
            turn = f"sky turned by {turn.removeprefix('turn_')}"
            for count in (256, 1024):
                shadows, bare, factor = case[f"shadows_{count}"], case["no_shadows"], case["one_factor"]
                control = f"{100 * bare['error']:.3g} no shadows, {100 * factor['error']:.3g} one occlusion factor"
                rows.append(
                    (f"{turn}, {count} directions: error in shadow (%)", 100 * shadows["error"], control, "<= 10")
                )
                rows.append((f"{turn}, {count} directions: overlap of shadows", shadows["overlap"],
                             f"{factor['overlap']:.2g} one factor", ">= 0.85"))  # fmt: skip
            rows.append((f"{turn}, noise left in the reference (%)", 100 * case["noise"], "", ""))
        return rows
    if part == "refresh":
        return [(f"visibility {n.removeprefix('every_')} of 24 steps old (% of mean radiance)", 100 * error, "", "")
                for n, error in m.items()]  # fmt: skip
    if part == "lobes":
        return [(f"{name} (% of specular radiance)", 100 * error, "", "") for name, error in sorted(m.items())]
    return [
        (f"pictures per second, batch {m['batch']}, forward", m["forward_per_second"], "", ""),
        (f"pictures per second, batch {m['batch']}, forward and backward", m["backward_per_second"], "", ""),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure and facts of the machine")
    parser.add_argument("--parts", default=",".join(PARTS), help="of " + ",".join(PARTS))
    parser.add_argument("--sky", type=Path, metavar="FILE", help="a latitude-longitude .hdr or .exr, for `environment`")
    parser.add_argument("--paths", type=int, default=4096, help="per pixel of the path-traced references")
    parser.add_argument("--batch", type=int, help="pictures in a batch; default 64 on a GPU, else 4")
    args = parser.parse_args()
    head = load_model("ict-facekit")
    topology, vertices = skin_and_neck(head)
    batch = args.batch or (64 if jax.default_backend() == "gpu" else 4)
    parts = [p for p in args.parts.split(",") if p]
    unknown = set(parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown parts {', '.join(sorted(unknown))}: choose of {', '.join(PARTS)}")
    if "environment" in parts and args.sky is None:
        say("No --sky FILE: shadows under a real sky are left out.")
        parts.remove("environment")
    measure: dict[str, Callable[[], dict[str, Any]]] = {
        "speed": lambda: measure_speed(topology, vertices),
        "visibility": lambda: measure_visibility(topology, vertices),
        "accuracy": lambda: measure_accuracy(topology, vertices, args.paths),
        "environment": lambda: measure_environment(topology, vertices, args.sky, args.paths),
        "refresh": lambda: measure_refresh(head, topology),
        "lobes": measure_lobes,
        "batch": lambda: measure_batch(topology, vertices, batch),
    }
    report: dict[str, Any] = {"machine": machine_facts(cache_off=False)}
    for part in parts:
        say(part)
        report[part] = measure[part]()
        print_table(part, rows_of(part, report[part]))
        if args.json:
            args.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
