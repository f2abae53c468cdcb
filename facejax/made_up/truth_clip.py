"""Path-traced clips of a head whose every vertex is known: what tracking is measured against.

The subject lies outside the tracker's space on purpose: a random person of some head model, bent by a smooth asymmetric
warp that no identity mode holds, painted, lit by an environment and a small hard lamp that casts shadows, and drawn by
another renderer (Mitsuba 3) with sensor noise. Everything follows from a seed.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from facejax.data.codes import decoded_vertices
from facejax.geometry.arrays import read_npz
from facejax.geometry.colour import linear_to_srgb_bytes
from facejax.geometry.errors import InputError
from facejax.made_up.subjects import SubdividedPart, make_motion, make_subject, paint_eyes, paint_skin, sky, turn
from facejax.models.morphable import MorphableHead
from facejax.objectives.metrics import hull_mask
from facejax.renderers.llvm import require_llvm

_FLIP = np.diag([1.0, -1.0, -1.0])  # a head at rest looks into the camera: +y up becomes +y down, +z out becomes -z


@dataclasses.dataclass(frozen=True)
class TruthSpec:
    """What the clip shows. Two clips of one spec are equal to the bit on one machine."""

    seed: int = 0
    frames: int = 24
    fps: float = 25.0
    size: int = 512
    """Width and height in pixels."""
    moving: bool = True
    """False: head and face stand still, and only the noise differs between frames."""
    identity_scale: float = 1.0
    """Standard deviations of the random identity."""
    warp_mm: float = 2.0
    """RMS over the narrow face of what the warp adds, after the best similarity is taken out."""
    yaw_degrees: float = 40.0
    """The head turns from one side to the other, this far each way."""
    pitch_degrees: float = 10.0
    roll_degrees: float = 7.0
    field_of_view_degrees: float = 25.0
    """Across the picture; 8 is a long lens. The camera steps back to keep the head's size."""
    skin: float = 0.5
    """0 very light, 1 very dark."""
    key_to_fill: float = 2.5
    """Irradiance of the lamp over that of the environment."""
    key_azimuth_degrees: float = 50.0
    """The lamp stands to the image's right of the camera for positive angles."""
    key_elevation_degrees: float = 30.0
    samples: int = 48
    """Paths per pixel."""
    shot_noise: float = 2e-4
    """Variance of a pixel per linear value."""
    read_noise: float = 2e-3
    """Standard deviation of a black pixel, linear."""

    def __post_init__(self) -> None:
        if self.frames < 1 or self.size < 32:
            raise InputError(f"a clip needs a frame and 32 pixels, got frames={self.frames}, size={self.size}")


@dataclasses.dataclass(frozen=True)
class Truth:
    """What is known about a clip; `F` frames, `V` vertices. Saved as one `.npz` of plain arrays."""

    vertices: Float[np.ndarray, "f v 3"]
    """Metres, camera frame."""
    faces: Int[np.ndarray, "t 3"]
    neutral: Float[np.ndarray, "v 3"]
    """Identity without expression, metres, head frame."""
    rotation: Float[np.ndarray, "f 3 3"]
    """Head to camera, as in `Pose`."""
    translation: Float[np.ndarray, "f 3"]
    intrinsics: Float[np.ndarray, "3 3"]
    activations: Float[np.ndarray, "f e"]
    """Full activations of `expression_names`, what lids and gaze add included."""
    expression_names: np.ndarray
    gaze: Float[np.ndarray, "f 2 2"]
    """(yaw, pitch) of the (left, right) eye, rad."""
    narrow_face: Float[np.ndarray, " v"]
    """The region on which surfaces are compared, 0 or 1."""
    landmarks: Float[np.ndarray, "f 478 2"]
    """MediaPipe's points on the subject, projected, in pixels."""
    landmarks_camera: Float[np.ndarray, "f 478 3"]
    """The same in space, metres, camera frame."""
    landmarks_neutral: Float[np.ndarray, "478 3"]
    """The same on `neutral`."""
    fps: np.ndarray
    subject: np.ndarray
    """Name of the model that the subject was made from."""

    def save(self, path: Path) -> None:
        """Write the arrays to a `.npz`."""
        np.savez_compressed(path, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

    @classmethod
    def load(cls, path: Path) -> "Truth":
        """Read what `save` wrote; `path` is the file, or the clip's folder. `InputError` where it is not whole."""
        path = Path(path)
        path = path / "truth.npz" if path.is_dir() else path
        return cls(**read_npz(path, "make the clip again", [f.name for f in dataclasses.fields(cls)]))


# --- the subject ------------------------------------------------------------------------------------------------------


def make_truth(head: MorphableHead, spec: TruthSpec) -> tuple[Truth, MorphableHead]:
    """Everything about a clip but its pixels, and the subject, who is of the family of `head`."""
    subject = make_subject(head, spec.seed, spec.identity_scale, spec.warp_mm)
    return truth_of(subject, spec), subject


def truth_of(subject: MorphableHead, spec: TruthSpec) -> Truth:
    """What a subject (a head whose mean is a person) does before the camera of `spec`; its seed is the motion's."""
    expression, angles = make_motion(subject, spec)
    activations = np.asarray(jax.vmap(subject.full_activations)(expression))
    neutral = np.asarray(subject.params.mean)
    narrow = np.asarray(subject.regions["narrow_face"]) > 0.5

    # The head turns about a point inside the skull, which stays near the middle of the picture.
    pivot = neutral[narrow].mean(axis=0) - np.array([0, 0, 0.05])
    focal = 0.5 * spec.size / np.tan(np.radians(spec.field_of_view_degrees) / 2)
    distance = focal * 0.30 / spec.size  # the picture is 30 cm wide at the head
    sway = np.sin(2 * np.pi * np.linspace(0, 1, spec.frames)[:, None] * [0.7, 1.1, 0.6] + [0, 1, 2])
    place = np.array([0, 0, distance]) + spec.moving * sway * [0.012, 0.006, 0.02 * distance]
    rotation = _FLIP @ np.stack([turn(*a) for a in angles])
    translation = place - np.einsum("fij,j->fi", rotation, pivot)
    person, _ = subject.init_code()  # of the subject, whose mean is the person
    gaze = np.asarray(expression.gaze)
    vertices = decoded_vertices(subject, subject.params, person, expression, spec.frames, (rotation, translation))

    table = subject.landmarks478
    points = np.einsum("fnij,ni->fnj", vertices[:, table.triangles], table.weights)
    intrinsics = np.array([[focal, 0, spec.size / 2], [0, focal, spec.size / 2], [0, 0, 1]])
    pixels = points @ intrinsics.T
    return Truth(
        vertices=vertices,
        faces=np.asarray(subject.topology.faces),
        neutral=neutral,
        rotation=rotation.astype(np.float32),
        translation=translation.astype(np.float32),
        intrinsics=intrinsics.astype(np.float32),
        activations=activations,
        expression_names=np.array(subject.expression_names),
        gaze=gaze,
        narrow_face=narrow.astype(np.float32),
        landmarks=(pixels[..., :2] / pixels[..., 2:]).astype(np.float32),
        landmarks_camera=points.astype(np.float32),
        landmarks_neutral=np.einsum("nij,ni->nj", neutral[table.triangles], table.weights),
        fps=np.array(spec.fps),
        subject=np.array(subject.name),
    )


# --- its picture ------------------------------------------------------------------------------------------------------


def _mitsuba() -> Any:
    """Mitsuba with its fastest variant here: vectorised where a good LLVM is found, else scalar and slow."""
    import mitsuba as mi

    try:
        require_llvm()
        mi.set_variant("llvm_ad_rgb")
    except InputError:
        mi.set_variant("scalar_rgb")
    mi.set_log_level(mi.LogLevel.Error)
    return mi


class _Studio:
    """A scene that is built once; every frame only moves its vertices."""

    def __init__(self, subject: MorphableHead, truth: Truth, spec: TruthSpec, environment: Path | None) -> None:
        self.mi = mi = _mitsuba()
        self.spec, self.faces = spec, truth.faces
        regions = {k: np.asarray(v, np.float32) for k, v in subject.regions.items()}
        corner = {k: v[truth.faces].mean(axis=1) > 0.5 for k, v in regions.items()}
        is_eye, is_tooth = corner["eyeballs"] | corner["iris"], corner["teeth"]
        is_gum = corner["gums"] & ~is_tooth
        self.parts = {
            "skin": SubdividedPart.of(truth.faces[~(is_eye | is_tooth | is_gum)], 2),
            "eyes": SubdividedPart.of(truth.faces[is_eye], 2),
            "teeth": SubdividedPart.of(truth.faces[is_tooth], 0),
            "gums": SubdividedPart.of(truth.faces[is_gum], 0),
        }
        self.parts = {k: p for k, p in self.parts.items() if len(p.faces)}
        looks = {"eyes": (0.06, 0.5), "teeth": (0.15, 0.5), "gums": (0.25, 0.5), "skin": (0.45, 0.5)}
        scene: dict[str, Any] = {"type": "scene", "integrator": {"type": "path", "max_depth": 4}}
        for name, part in self.parts.items():
            points = part.spread(truth.neutral)
            roughness = np.full(len(points), looks[name][0])
            if name == "skin":
                albedo, roughness = paint_skin(
                    points, {k: part.spread(v) for k, v in regions.items()}, spec.skin, spec.seed
                )
            elif name == "eyes":
                albedo = paint_eyes(points, np.asarray(subject.params.eye_pivot), spec.seed)
            else:
                albedo = np.tile([0.62, 0.56, 0.46] if name == "teeth" else [0.33, 0.09, 0.08], (len(points), 1))
            scene[name] = self._mesh(name, part, points, albedo, roughness, looks[name][1])
        scene |= self._lights(truth, environment) | {"sensor": self._sensor()}
        self.scene = mi.load_dict(scene)
        self.params = mi.traverse(self.scene)

    def _mesh(
        self,
        name: str,
        part: SubdividedPart,
        points: np.ndarray,
        albedo: np.ndarray,
        roughness: np.ndarray,
        specular: float,
    ) -> Any:
        mi = self.mi
        surface = {
            "type": "principled",
            "base_color": {"type": "mesh_attribute", "name": "vertex_albedo"},
            "roughness": {"type": "mesh_attribute", "name": "vertex_roughness"},
            "specular": specular,
        }
        bsdf = mi.load_dict(
            {"type": "twosided", "bsdf": surface}
        )  # the inside of an open mouth may be seen from behind
        properties = mi.Properties()
        properties["mesh_bsdf"] = bsdf
        mesh = mi.Mesh(name, len(points), len(part.faces), has_vertex_normals=True, props=properties)
        mesh.add_attribute("vertex_albedo", 3, np.ravel(albedo).astype(np.float32))
        mesh.add_attribute("vertex_roughness", 1, np.ravel(roughness).astype(np.float32))
        params = mi.traverse(mesh)
        _set(params, "faces", part.faces)
        _set(params, "vertex_positions", points)
        params.update()
        return mesh

    def _lights(self, truth: Truth, environment: Path | None) -> dict[str, Any]:
        """The environment, scaled to irradiance pi on average, and the lamp."""
        mi, spec = self.mi, self.spec
        if environment is None:
            pixels = sky(spec.seed)
        else:
            pixels = np.asarray(mi.Bitmap(str(environment)).convert(mi.Bitmap.PixelFormat.RGB, mi.Struct.Type.Float32))
        weight = np.sin((np.arange(len(pixels)) + 0.5) / len(pixels) * np.pi)[:, None, None]
        pixels = pixels / ((pixels * weight).mean() / weight.mean())
        upright = mi.ScalarTransform4f().rotate([1, 0, 0], 180).rotate([0, 1, 0], 40.0 * spec.seed)
        azimuth, elevation = np.radians([spec.key_azimuth_degrees, spec.key_elevation_degrees])
        towards = np.array(
            [np.sin(azimuth) * np.cos(elevation), -np.sin(elevation), -np.cos(azimuth) * np.cos(elevation)]
        )
        head = truth.vertices[0].mean(axis=0)
        radius, away = 0.04, 1.1
        lamp = [float(x) for x in head + away * towards]
        radiance = spec.key_to_fill * away**2 / radius**2  # irradiance pi key_to_fill on a surface that faces it
        return {
            "environment": {"type": "envmap", "bitmap": mi.Bitmap(pixels.astype(np.float32)), "to_world": upright},
            "lamp": {
                "type": "sphere",
                "center": lamp,
                "radius": radius,
                "emitter": {
                    "type": "area",
                    "radiance": {"type": "rgb", "value": [radiance, 0.92 * radiance, 0.8 * radiance]},
                },
            },
        }

    def _sensor(self) -> dict[str, Any]:
        """The pinhole at the origin that looks along +z with +y down."""
        size = self.spec.size
        return {
            "type": "perspective",
            "fov": self.spec.field_of_view_degrees,
            "fov_axis": "x",
            "near_clip": 0.01,
            "far_clip": 100.0,
            "to_world": self.mi.ScalarTransform4f().look_at(origin=[0, 0, 0], target=[0, 0, 1], up=[0, -1, 0]),
            "film": {
                "type": "hdrfilm",
                "width": size,
                "height": size,
                "rfilter": {"type": "gaussian"},
                "pixel_format": "rgb",
            },
            "sampler": {"type": "multijitter", "sample_count": self.spec.samples},
        }

    def render(self, vertices: np.ndarray, seed: int) -> np.ndarray:
        """(H, W, 3) linear radiance of the head with these vertices (camera frame)."""
        for name, part in self.parts.items():
            _set(self.params, f"{name}.vertex_positions", part.spread(vertices))
        self.params.update()
        image = self.mi.render(self.scene, spp=self.spec.samples, seed=seed)
        return np.array(image, dtype=np.float32)


def _set(params: Any, key: str, values: np.ndarray) -> None:
    """Overwrite a mesh buffer of Mitsuba's."""
    kind = np.uint32 if key.endswith("faces") else np.float32
    params[key] = type(params[key])(np.ravel(values).astype(kind))


def add_sensor_noise(linear: np.ndarray, spec: TruthSpec, rng: np.random.Generator) -> np.ndarray:
    """A photograph of linear radiance: shot noise, whose variance grows with the light, and read noise."""
    sigma = np.sqrt(spec.shot_noise * np.clip(linear, 0, None) + spec.read_noise**2)
    return linear + sigma * rng.normal(size=linear.shape)


def make_truth_clip(out: Path, head: MorphableHead, spec: TruthSpec, environment: Path | None = None) -> Truth:
    """Render a clip into the folder `out`: `frames/00000.png`... and `truth.npz`.

    head: the model from whose family the subject is made, see `make_subject`.
    environment: a latitude-longitude `.hdr` or `.exr` picture; without one, a sky is made up.
    The exposure puts the 95th percentile of the first frame's face at 0.7 linear. Raises `InputError` for an
    environment that does not exist.
    """
    import imageio.v3 as iio

    if environment is not None and not Path(environment).is_file():
        raise InputError(
            f"no environment picture at {environment}: give a .hdr or .exr file, or None for a made-up sky"
        )
    truth, subject = make_truth(head, spec)
    studio = _Studio(subject, truth, spec, environment)
    rng = np.random.default_rng(spec.seed + 5)
    frames = Path(out) / "frames"
    frames.mkdir(parents=True, exist_ok=True)
    exposure = 1.0
    for i, vertices in enumerate(truth.vertices):
        linear = studio.render(vertices, seed=spec.seed * 100_003 + i)
        if i == 0:
            on_image = vertices[truth.narrow_face > 0.5] @ truth.intrinsics.T
            face = hull_mask(on_image[:, :2] / on_image[:, 2:], linear.shape[:2])
            exposure = 0.7 / max(float(np.percentile(linear[face].mean(axis=1), 95)), 1e-6)
        photograph = add_sensor_noise(exposure * linear, spec, rng)
        iio.imwrite(frames / f"{i:05d}.png", linear_to_srgb_bytes(photograph))
    truth.save(Path(out) / "truth.npz")
    return truth
