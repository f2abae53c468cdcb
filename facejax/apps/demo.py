"""`facejax demo`: a clip whose every vertex is known, drawn, tracked like any other, and compared with the truth."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from facejax.apps.track import Progress, Row, track
from facejax.data.heads import load_morphable
from facejax.data.landmarks import BLENDSHAPE_NAMES, Landmarks, landmark_confidence, save_landmarks
from facejax.data.results import TrackResult
from facejax.data.video import write_video
from facejax.evaluation.tracking import evaluate_truth
from facejax.geometry.colour import linear_to_srgb_bytes
from facejax.geometry.records import Camera, Face, Pose
from facejax.geometry.rotations import nearest_rotation, rotation_angle
from facejax.made_up.subjects import smooth_noise
from facejax.made_up.truth_clip import Truth, TruthSpec, make_truth
from facejax.models.landmark_names import LIP_GAP_PAIRS
from facejax.models.morphable import MorphableHead
from facejax.renderers import make_renderer
from facejax.renderers.uv import texture_chart

SPEC = TruthSpec(seed=4, frames=48, size=320, yaw_degrees=30.0, warp_mm=1.0)
"""What the clip shows: a random person, warped a little out of the model's space, turning, speaking, blinking."""

FILES = ("input.mp4", "landmarks.npz", "truth.npz")
"""What the demo leaves beside a track's files."""

_LIGHT = np.array([-0.55, -0.45, -0.7])  # towards the lamp, camera frame: from above, at the image's left
_NOISE_PX = (0.5, 0.7)  # of landmarks: constant per point, as a detector's bias is, and new in every frame
_TEXTURE = 256


def demo(
    out: Path | str,
    progress: Progress | None = None,
    *,
    spec: TruthSpec = SPEC,
    head: MorphableHead | None = None,
    size: int = 256,
) -> list[Row]:
    """Render the clip of `spec`, track it, and write the folder `out` as `track` does; returns the table.

    Tracking sees `input.mp4` and `landmarks.npz`: the points' true projections plus noise of about one pixel, so that
    no detector needs to be installed. It knows neither the person, the paint, the light nor the focal length. Errors
    against the truth stand beside what the mean head, or a face that does not move, would score.
    """
    report = progress or (lambda stage, done, total: None)
    head = head or load_morphable("generic")
    truth, subject = make_truth(head, spec)
    light = make_light()
    with tempfile.TemporaryDirectory(prefix="facejax-demo-") as scratch:
        clip = Path(scratch) / "input.mp4"

        def frames() -> Iterator[np.ndarray]:
            for k, frame in enumerate(render_clip(truth, subject, light, spec)):
                yield frame
                report("rendering the clip", k + 1, spec.frames)

        write_video(clip, frames(), fps=spec.fps, crf=10)
        landmarks = make_landmarks(truth, spec)

        def compare(result: TrackResult, folder: Path) -> list[Row]:
            shutil.copyfile(clip, folder / "input.mp4")
            save_landmarks(folder / "landmarks.npz", landmarks, spec.fps)
            truth.save(folder / "truth.npz")
            return compare_with_truth(result, truth, light)

        return track(
            clip,
            out,
            model=head,
            landmarks=landmarks,
            size=size,
            progress=report,
            extra=compare,
            extra_files=FILES,
        )


def make_light() -> Float[np.ndarray, "9 3"]:
    """Spherical harmonics of a warm lamp, softened, and a cooler, dimmer surrounding, camera frame."""
    to_lamp = _LIGHT / np.linalg.norm(_LIGHT)
    x, y, z = to_lamp
    basis = np.array(
        [
            0.282095,
            0.488603 * y,
            0.488603 * z,
            0.488603 * x,
            1.092548 * x * y,
            1.092548 * y * z,
            0.315392 * (3 * z * z - 1),
            1.092548 * x * z,
            0.546274 * (x * x - y * y),
        ]
    )
    lobe = np.repeat([1.0, 0.85, 0.5], [1, 3, 5])  # a point's are all 1; less in the upper bands spares black rings
    light = (basis * lobe)[:, None] * [5.4, 4.9, 4.4]
    light[0] += np.sqrt(4 * np.pi) * np.array([0.20, 0.23, 0.28])
    return light.astype(np.float32)


def render_clip(
    truth: Truth, subject: MorphableHead, light: Float[np.ndarray, "9 3"], spec: TruthSpec
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """The clip's frames, drawn by the default renderer at twice the size, with sensor noise, as 8-bit sRGB."""
    rng = np.random.default_rng(spec.seed + 3)
    shared, _ = subject.init_code()
    skin = rng.normal(scale=0.8, size=len(shared.skin)).astype(np.float32)
    texture = paint(subject, rng)
    face = Face(
        vertices=subject.params.mean,
        albedo=subject.albedo(subject.params, shared.replace(skin=jnp.asarray(skin))),
        texture=jnp.asarray(texture),
        specular=subject.params.specular,
        roughness=subject.params.roughness,
    )
    large = 2 * spec.size
    render = make_renderer(subject.topology, (large, large))
    focal, centre = 2 * truth.intrinsics[0, 0], 2 * truth.intrinsics[:2, 2]
    camera = Camera(focal=jnp.full(2, focal, jnp.float32), principal_point=jnp.asarray(centre, jnp.float32))

    @jax.jit
    def draw(vertices: jax.Array, rotation: jax.Array, translation: jax.Array) -> jax.Array:
        image = render(face.replace(vertices=vertices), jnp.asarray(light), Pose(rotation, translation), camera)
        stack = jnp.concatenate([image.colour, image.coverage[..., None]], axis=-1)
        return stack.reshape(spec.size, 2, spec.size, 2, 4).mean(axis=(1, 3))

    down = np.linspace(0, 1, spec.size)[:, None, None]
    wall = (1 - down) * np.array([0.20, 0.24, 0.28]) + down * np.array([0.09, 0.10, 0.12])
    for vertices, rotation, translation in zip(truth.vertices, truth.rotation, truth.translation, strict=True):
        stack = np.asarray(draw((vertices - translation) @ rotation, rotation, translation))
        linear = stack[..., :3] + (1 - stack[..., 3:]) * wall
        deviation = np.sqrt(spec.shot_noise * np.maximum(linear, 0) + spec.read_noise**2)
        yield linear_to_srgb_bytes((linear + deviation * rng.normal(size=linear.shape)).astype(np.float32))


def paint(subject: MorphableHead, rng: np.random.Generator) -> Float[np.ndarray, "h w 3"]:
    """A texture that no skin prior can say: blotches, freckles and moles on the skin; a factor on the albedo."""
    chart = texture_chart(subject.topology, _TEXTURE)

    def at_texels(values: np.ndarray) -> np.ndarray:
        return np.einsum("nk,nk...->n...", chart.weights, values[chart.triangles])

    points = at_texels(np.asarray(subject.params.mean))
    blotches = 0.08 * smooth_noise(points, 0.03, rng) + 0.05 * smooth_noise(points, 0.01, rng)
    freckles = np.clip(smooth_noise(points, 0.007, rng) - 1.3, 0, 1)
    narrow = np.flatnonzero(np.asarray(subject.regions["narrow_face"]) > 0.5)
    spots = np.asarray(subject.params.mean)[rng.choice(narrow, 6)]
    distance = np.linalg.norm(points[:, None] - spots, axis=2).min(axis=1)
    moles = np.clip(1.5 - distance / 0.0015, 0, 1)
    log = blotches[:, None] * [0.6, 1.0, 1.0] - (0.35 * freckles + 1.0 * moles)[:, None] * [0.7, 1.0, 1.2]
    texture = np.ones((_TEXTURE * _TEXTURE, 3), np.float32)
    on_skin = at_texels(np.asarray(subject.regions["skin"]))[:, None]
    texture[chart.texels] = np.exp(log * on_skin)
    return texture.reshape(_TEXTURE, _TEXTURE, 3)


def make_landmarks(truth: Truth, spec: TruthSpec) -> Landmarks:
    """The true projections as a detector might report them: with noise, and with its guess of how far to trust each."""
    rng = np.random.default_rng(spec.seed + 5)
    constant, fresh = (
        scale * rng.normal(size=(n, 478, 2)) for scale, n in zip(_NOISE_PX, (1, spec.frames), strict=True)
    )
    points = (truth.landmarks + constant + fresh).astype(np.float32)
    away = truth.landmarks_camera[..., 2]
    middle = away.mean(axis=1, keepdims=True)
    depth = ((away - middle) * truth.intrinsics[0, 0] / middle).astype(np.float32)
    size = (spec.size, spec.size)
    return Landmarks(
        points=points,
        depth=depth,
        blendshapes=np.full((spec.frames, 52), np.nan, np.float32),
        blendshape_names=BLENDSHAPE_NAMES,
        valid=np.ones(spec.frames, bool),
        confidence=np.stack([landmark_confidence(p, d, size) for p, d in zip(points, depth, strict=True)]),
        image_size=size,
        box=np.full((spec.frames, 4), np.nan, np.float32),
        notes=("landmarks are the truth's plus noise: no detector was asked",),
    )


def compare_with_truth(result: TrackResult, truth: Truth, light: Float[np.ndarray, "9 3"]) -> list[Row]:
    """Rows of errors against the truth, each with what a method that does nothing would reach."""
    found = evaluate_truth(result, truth)
    surface, turned = found["surface"], found["rotation"]
    head = result.load_head()
    tracked = np.stack(
        [np.asarray(head.landmark_points(jnp.asarray(result.vertices_at(k)))) for k in range(len(result))]
    )
    gap, true_gap = (_lip_gap_mm(x) for x in (tracked * surface["scale"], truth.landmarks_camera))
    gaze, still = (np.degrees(np.abs(truth.gaze - x)).mean() for x in (result.gaze, truth.gaze.mean(axis=0)))
    focal, true_focal = float(result.intrinsics[0, 0]), float(truth.intrinsics[0, 0])
    lamp = _angle(_towards_light(result.light.mean(axis=0)), _towards_light(light))
    rows: list[tuple[str, float | str, str | None]] = [
        ("shape error (mm)", surface["narrow_face_mm"], f"{surface['mean_head_mm']:.3g} (mean head)"),
        ("rotation error (degrees)", turned["mean_degrees"], f"{_still_head_degrees(truth):.3g} (still head)"),
        ("lip gap error (mm)", float(np.abs(gap - true_gap).mean()), f"{_spread(true_gap):.3g} (frozen lips)"),
        ("lip peaks (% of the truth's)", 100 * found["lips"]["amplitude"], "0 (frozen lips)"),
        ("blinks (% of the truth's)", 100 * found["blink"]["amplitude"], "0 (frozen lids)"),
        ("gaze error (degrees)", float(gaze), f"{still:.3g} (fixed gaze)"),
        ("light's direction (degrees off)", lamp, "90 (any guess)"),
        ("focal length error (%)", 100 * abs(focal / true_focal - 1), None),
    ]
    return [(name, f"{value:.3g}" if isinstance(value, float) else value, control) for name, value, control in rows]


def _lip_gap_mm(points: Float[np.ndarray, "f 478 3"]) -> Float[np.ndarray, " f"]:
    upper, lower = np.asarray(LIP_GAP_PAIRS).T
    return 1e3 * np.linalg.norm(points[:, upper] - points[:, lower], axis=-1).mean(axis=1)


def _spread(values: np.ndarray) -> float:
    return float(np.abs(values - values.mean()).mean())


def _still_head_degrees(truth: Truth) -> float:
    rotation = jnp.asarray(truth.rotation, jnp.float32)
    middle = nearest_rotation(rotation.mean(axis=0))
    return float(np.degrees(np.asarray(jax.vmap(lambda r: rotation_angle(r, middle))(rotation)).mean()))


def _towards_light(light: Float[np.ndarray, "b 3"]) -> Float[np.ndarray, "3"]:
    """Where most light comes from, camera frame: the first band's coefficients are (y, z, x)."""
    grey = light.mean(axis=1)
    return grey[[3, 1, 2]]


def _angle(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12), -1, 1))))
