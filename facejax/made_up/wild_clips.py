"""Clips in the wild of a light stage's subject, with truth: what avatars and their light are fitted to and judged by.

The same person as in the capture, before another camera (a phone's, nearer and wider, with noise and its own white
balance), in motion that the capture does not hold, under light that no group of the stage makes, path traced.
Everything follows from a seed.

A clip is a folder: `frames/00000.png`... (8 bit sRGB), `truth.npz` (a `Truth`), `wild.npz` (`WildTruth`) and
`wild.json` (how it was made).
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, UInt8

from facejax.data.captures import read_facts
from facejax.data.environments import load_environment, resize_environment
from facejax.data.files import atomic_write
from facejax.geometry.arrays import read_npz
from facejax.geometry.colour import linear_to_srgb_bytes
from facejax.geometry.errors import InputError
from facejax.made_up.light_stage import LightStageSpec, subject_of
from facejax.made_up.studio import Lamp, StageStudio, sky_of, sky_of_lights
from facejax.made_up.traced_stage import spec_in
from facejax.made_up.truth_clip import Truth, TruthSpec, add_sensor_noise, truth_of
from facejax.models.morphable import MorphableHead
from facejax.objectives.metrics import hull_mask
from facejax.renderers.lights import Environment, environment_directions, radiance_towards

FORMAT, VERSION = "facejax-wild-clip", 1
LIGHTS = ("soft", "sun", "lamp", "environment", "changing", "steady", "profile")
"""Kinds of light: "soft" is nearly even and casts no shadow to speak of; "sun" a sky and a sun of one degree; "lamp" a
warm lamp half a metre away, from the side and below; "environment" a picture of light from a file; "changing" a lamp
that goes around the head, dims and changes colour; "steady" the first moment of "changing", held; "profile" the sun on
a head that turns to profile."""

_HELD_OUT = 900_000  # added to a clip's seed: no capture's motion has such a seed
_SUN_RADIUS = np.radians(0.5)
_EXPOSED = 0.7  # linear: where the 95th percentile of the face lies
_BACKGROUND_ROWS = 16  # of the picture of light behind the head, as out of focus as a phone would have it

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class WildSpec:
    """What a clip shows. Two clips of one spec are equal to the bit on one machine."""

    light: str = "sun"
    """One of `LIGHTS`."""
    environment: str | None = None
    """Path of a latitude-longitude `.hdr` or `.exr` for the light "environment"."""
    seed: int = 0
    """Of motion, noise, white balance and the direction of the light."""
    frames: int = 96
    fps: float = 25.0
    size: int = 256
    """Width and height in pixels."""
    field_of_view_degrees: float = 36.0
    """Across the picture; the head fills it at every angle, so this sets the distance: 0.46 m for 36 degrees."""
    yaw_degrees: float | None = None
    """The head turns this far each way; by default 25, and 60 for "profile"."""
    key_to_fill: float = 6.0
    """Irradiance of the hard light over that of the rest."""
    matt: bool = False
    """Skin without gloss: what spherical harmonics of low order explain."""
    samples: int = 96
    """Paths per pixel: 96 leave about as much noise as the sensor has."""
    shot_noise: float = 2e-4
    """Variance of a pixel per linear value."""
    read_noise: float = 2e-3
    """Standard deviation of a black pixel, linear."""

    def __post_init__(self) -> None:
        if self.light not in LIGHTS:
            raise InputError(f"A wild clip's light is one of {', '.join(LIGHTS)}, got {self.light!r}.")
        if self.light == "environment" and self.environment is None:
            raise InputError('The light "environment" needs a picture of light: give the path of a .hdr or .exr file.')
        if self.light != "environment" and self.environment is not None:
            raise InputError(f'Only the light "environment" takes a picture of light, and the light is {self.light!r}.')
        if self.frames < 1 or self.size < 32 or self.samples < 1:
            raise InputError(
                "A wild clip needs a frame, 32 pixels and a path per pixel at least, got "
                f"frames={self.frames}, size={self.size}, samples={self.samples}."
            )
        if not (5 <= self.field_of_view_degrees <= 90 and self.key_to_fill > 0 and self.fps > 0):
            raise InputError(
                "A wild clip needs a field of view of 5 to 90 degrees, and positive key_to_fill and fps, got "
                f"{self.field_of_view_degrees}, {self.key_to_fill} and {self.fps}."
            )

    def performance(self) -> TruthSpec:
        """Motion, camera and sensor in the terms of a truth clip."""
        yaw = self.yaw_degrees if self.yaw_degrees is not None else 60.0 if self.light == "profile" else 25.0
        return TruthSpec(
            seed=_HELD_OUT + self.seed, frames=self.frames, fps=self.fps, size=self.size, yaw_degrees=yaw,
            pitch_degrees=8.0, roll_degrees=6.0, field_of_view_degrees=self.field_of_view_degrees,
            samples=self.samples, shot_noise=self.shot_noise, read_noise=self.read_noise,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Person:
    """Whom a clip shows: a head whose mean is that person, and the seed and darkness of their looks (`surface_at`)."""

    head: MorphableHead
    skin: float
    seed: int

    @classmethod
    def of(cls, spec: LightStageSpec) -> "Person":
        """The subject of captures of this spec."""
        return cls(head=subject_of(spec), skin=spec.skin, seed=spec.seed)

    @classmethod
    def of_capture(cls, folder: Path | str) -> "Person":
        """The subject of a capture of the virtual light stage; `InputError` for a folder that is none."""
        return cls.of(spec_in(read_facts(Path(folder)), folder))


@dataclasses.dataclass(frozen=True, eq=False)
class WildTruth:
    """What is known about a wild clip beyond its `Truth`; saved as `wild.npz`."""

    vertices: Float32[np.ndarray, "f v 3"]
    """Metres, HEAD frame."""
    shadowed: Float32[np.ndarray, " f"]
    """Share of the head's pixels that lie in a cast shadow: less than half of the light that would arrive if nothing
    were in its way does."""
    light_share: UInt8[np.ndarray, "f h w"]
    """That share of each pixel's light, times 255, see `StageStudio.light_share`; 255 beside the head."""
    mask: UInt8[np.ndarray, "f h w"]
    """Share of the pixel that shows the head, times 255."""
    towards_light: Float32[np.ndarray, "f 3"]
    """Unit vector from the head towards the hard light, camera frame; 0 where there is none."""
    exposure: np.ndarray
    """Factor from the scene's radiance to the picture's linear values, before white balance."""
    white_balance: Float32[np.ndarray, "3"]
    """Factors of red, green and blue on top of that."""
    light: np.ndarray
    """One of `LIGHTS`."""

    def save(self, path: Path) -> None:
        """Write the arrays to a `.npz`."""
        np.savez_compressed(path, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

    @classmethod
    def load(cls, path: Path) -> "WildTruth":
        """Read what `save` wrote; `path` is the file, or the clip's folder. `InputError` where it is not there."""
        path = Path(path)
        path = path / "wild.npz" if path.is_dir() else path
        if not path.is_file():
            raise InputError(f"{path} is not there: make the clip with `facejax data wild-clip`, or let it finish.")
        return cls(**read_npz(path, "make the clip again", [f.name for f in dataclasses.fields(cls)]))


# -- light -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class WildLight:
    """Light in a clip, camera frame."""

    fill: Environment
    """What comes from everywhere; mean radiance 1, if nothing dims it."""
    sun: np.ndarray | None = None
    """(direction (3,), power (3,)) as (2, 3): a disc of one degree."""
    lamp: Lamp | None = None

    def sky(self) -> np.ndarray:
        """The map that a studio takes."""
        if self.sun is not None:
            return sky_of(self.fill, 513) + sky_of_lights(*_disc(*self.sun), 513)
        return sky_of(self.fill, 2 * self.fill.radiance.shape[0] + 1)

    def towards(self, centre: np.ndarray) -> np.ndarray:
        """Unit vector towards the hard light from the head's centre, else 0."""
        if self.lamp is not None:
            away = np.asarray(self.lamp.position) - centre
            return away / np.linalg.norm(away)
        return np.zeros(3) if self.sun is None else self.sun[0]


def wild_light(spec: WildSpec, phase: float, centre: np.ndarray) -> WildLight:
    """The light at `phase` (0 to 1) of the clip; `centre` is where the head is, metres, camera frame."""
    rng = np.random.default_rng([_HELD_OUT, spec.seed, 1])
    side, high, turned = rng.choice([-1.0, 1.0]), rng.uniform(), rng.uniform()
    key = spec.key_to_fill * np.pi
    if spec.light == "soft":
        return WildLight(fill=_fill([1.02, 1.0, 0.98], [0.94, 0.97, 1.0], side * 0.15))
    if spec.light == "environment":
        return WildLight(fill=_from_file(str(spec.environment), turned))
    if spec.light in ("sun", "profile"):
        direction = _towards(side * (45 + 20 * turned), 30 + 15 * high)
        return WildLight(
            fill=_fill([0.62, 0.85, 1.25], [0.55, 0.47, 0.38], 0.1 * side),
            sun=np.stack([direction, key * np.array([1.0, 0.93, 0.80])]),
        )
    if spec.light == "lamp":
        place = centre + 0.5 * _towards(side * (50 + 15 * turned), -20 - 10 * high)
        return WildLight(
            fill=_fill([0.75, 0.95, 1.2], [0.8, 0.9, 1.0], -0.3 * side),
            lamp=_lamp(place, 0.03, 0.5**2 * key * np.array([1.0, 0.66, 0.36])),
        )
    t = phase if spec.light == "changing" else 0.0
    bright = 0.3 + 0.7 * np.cos(np.pi * t) ** 2  # full at both ends, dim in the middle
    warm, cool = np.array([1.0, 0.72, 0.45]), np.array([0.6, 0.8, 1.0])
    colour = (1 - t) * warm + t * cool
    place = centre + 0.8 * _towards(side * (65 - 130 * t), 30 + 10 * high)
    fill = _fill([0.9, 1.0, 1.1], [0.9, 0.85, 0.8], 0.2 * side)
    return WildLight(
        fill=fill.replace(radiance=fill.radiance * (1 - 0.4 * np.sin(np.pi * t) ** 2)),
        lamp=_lamp(place, 0.05, 0.8**2 * key * bright * colour),
    )


def _towards(azimuth_degrees: float, elevation_degrees: float) -> np.ndarray:
    """Unit vector, camera frame: from the head, azimuth 0 is to the camera, positive to the image's right."""
    a, e = np.radians([azimuth_degrees, elevation_degrees])
    return np.array([np.sin(a) * np.cos(e), -np.sin(e), -np.cos(a) * np.cos(e)])


def _lamp(place: np.ndarray, radius: float, intensity: np.ndarray) -> Lamp:
    x, y, z = (float(v) for v in place)
    r, g, b = (float(v) for v in intensity)
    return Lamp(position=(x, y, z), radius=radius, intensity=(r, g, b))


def _disc(direction: np.ndarray, power: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directions (N, 3) that fill the sun's disc evenly, and their powers (N, 3)."""
    n = 256
    radius, angle = np.sqrt((np.arange(n) + 0.5) / n) * _SUN_RADIUS, np.arange(n) * np.pi * (3 - np.sqrt(5))
    across = np.cross(direction, [1.0, 0.0, 0.0] if abs(direction[0]) < 0.9 else [0.0, 1.0, 0.0])
    across /= np.linalg.norm(across)
    up = np.cross(direction, across)
    offset = np.cos(angle)[:, None] * across + np.sin(angle)[:, None] * up
    around = np.cos(radius)[:, None] * direction + np.sin(radius)[:, None] * offset
    return around, np.tile(power / n, (n, 1))


def _fill(above: list[float], below: list[float], sideways: float, rows: int = 32) -> Environment:
    """Smooth light from everywhere, of mean radiance 1: one colour above, one below, more from one side."""
    d = environment_directions(rows, 2 * rows).astype(np.float64)
    up = 0.5 + 0.5 * np.tanh(-2 * d[..., 1])[..., None] / np.tanh(2)
    colour = (up * above + (1 - up) * below) * (1 + sideways * d[..., :1])
    return _of_mean_one(colour)


def _of_mean_one(radiance: np.ndarray) -> Environment:
    polar = np.pi * (np.arange(len(radiance)) + 0.5) / len(radiance)
    weight = np.broadcast_to(np.sin(polar)[:, None, None], radiance.shape)
    return Environment(radiance=jnp.asarray(radiance / np.average(radiance, weights=weight), jnp.float32))


def _from_file(path: str, turned: float) -> Environment:
    radiance = np.asarray(load_environment(path).radiance)
    return _of_mean_one(np.roll(radiance, round(turned * radiance.shape[1]), axis=1))


def _background(light: WildLight, truth: Truth, size: int) -> np.ndarray:
    """(H, W, 3) radiance behind the head, out of focus."""
    blurred = resize_environment(light.fill, min(_BACKGROUND_ROWS, light.fill.radiance.shape[0]))
    y, x = np.mgrid[:size, :size] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3) @ np.linalg.inv(truth.intrinsics).T
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    return np.asarray(radiance_towards(blurred, rays.astype(np.float32))).reshape(size, size, 3)


# -- the clip ----------------------------------------------------------------------------------------------------------


def make_wild_clip(out: Path | str, person: Person, spec: WildSpec, *, progress: Progress | None = None) -> WildTruth:
    """Render a clip into the folder `out`, see the top of this file; what an interrupted run had finished is kept.

    The exposure puts the 95th percentile of the face at 0.7 linear where it is brightest, of the first, middle and last
    frame. Raises `InputError` for a folder that holds another clip, a picture of light that is none, or a missing LLVM.
    """
    out = Path(out)
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "spec": dataclasses.asdict(spec),
        "person": {"model": person.head.name, "sha256": person.head.sha256, "skin": person.skin, "seed": person.seed},
    }
    if spec.environment is not None and not Path(spec.environment).is_file():
        raise InputError(f"No environment picture at {spec.environment}: give the path of a .hdr or .exr file.")
    if _finished(out, facts):
        return WildTruth.load(out)
    shots = _Clip(out, person, spec, facts)
    for frame in range(spec.frames):
        shots.take(frame)
        if progress is not None:
            progress("frames", frame + 1, spec.frames)
    return shots.finish()


def _finished(out: Path, facts: dict[str, Any]) -> bool:
    """Whether the folder holds the whole clip; an `InputError` if it holds another one."""
    for name in ("wild.json", "making.json"):
        if not (out / name).is_file():
            continue
        try:
            held = json.loads((out / name).read_text())
        except ValueError as error:
            raise InputError(
                f"{out / name} is not JSON ({error}): remove the folder and make the clip again."
            ) from error
        if {k: held.get(k) for k in facts} != json.loads(json.dumps(facts)):
            raise InputError(f"{out} holds a clip of other options: choose another folder, or remove that one.")
        frames = facts["spec"]["frames"]
        whole = all((out / "frames" / f"{i:05d}.png").is_file() for i in range(frames))
        return name == "wild.json" and whole and (out / "truth.npz").is_file() and (out / "wild.npz").is_file()
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"{out} is there and is no wild clip: choose a new or an empty folder.")
    return False


class _Clip:
    """A clip in the making. What is known of a frame waits in `parts/` until all are there."""

    def __init__(self, out: Path, person: Person, spec: WildSpec, facts: dict[str, Any]) -> None:
        self.out, self.spec, self.facts = out, spec, facts
        self.performance = spec.performance()
        self.truth = truth_of(person.head, self.performance)
        self.centre = np.array([0.0, 0.0, np.median(self.truth.vertices[..., 2])])
        self.studio = StageStudio(
            person.head, skin=person.skin, seed=person.seed, size=(spec.size, spec.size), samples=spec.samples,
            matt=spec.matt,
        )  # fmt: skip
        self.lit_at: float | None = None
        rng = np.random.default_rng([_HELD_OUT, spec.seed, 2])
        self.white_balance = np.array([rng.uniform(0.92, 1.12), 1.0, rng.uniform(0.88, 1.12)], np.float32)
        self.exposure = self._meter()
        with atomic_write(out / "making.json") as path:
            path.write_text(json.dumps(facts, indent=1))

    def _light(self, frame: int) -> WildLight:
        phase = frame / max(self.spec.frames - 1, 1) if self.spec.light == "changing" else 0.0
        if phase != self.lit_at:
            self.light = wild_light(self.spec, phase, self.centre)
            self.studio.lit_by(self.light.sky(), self.light.lamp)
            self.background = _background(self.light, self.truth, self.spec.size)
            self.lit_at = phase
        return self.light

    def _shoot(self, frame: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(linear radiance, coverage)."""
        self._light(frame)
        self.studio.pose(self.truth.vertices[frame])
        shot = self.studio.shoot(self.truth.intrinsics, seed)
        return shot.colour + (1 - shot.coverage[..., None]) * self.background, shot.coverage

    def _meter(self) -> float:
        bright = 1e-6
        for frame in sorted({0, self.spec.frames // 2, self.spec.frames - 1}):
            linear, _ = self._shoot(frame, seed=frame)
            on_image = self.truth.vertices[frame, self.truth.narrow_face > 0.5] @ self.truth.intrinsics.T
            face = hull_mask(on_image[:, :2] / on_image[:, 2:], linear.shape[:2])
            bright = max(bright, float(np.percentile((linear * self.white_balance)[face].mean(axis=1), 95)))
        return _EXPOSED / bright

    def take(self, frame: int) -> None:
        """Draw a frame, unless it is there."""
        import imageio.v3 as iio

        picture = self.out / "frames" / f"{frame:05d}.png"
        part = self.out / "parts" / f"{frame:05d}.npz"
        if picture.is_file() and part.is_file():
            return
        linear, coverage = self._shoot(frame, seed=self.performance.seed * 1009 + frame)
        rng = np.random.default_rng([_HELD_OUT, self.spec.seed, 3, frame])
        photograph = add_sensor_noise(self.exposure * self.white_balance * linear, self.performance, rng)
        share = self.studio.light_share(self.truth.intrinsics, seed=frame)
        on_head = np.isfinite(share)
        with atomic_write(part) as path:
            np.savez_compressed(
                path,
                mask=_bytes(coverage),
                light_share=_bytes(np.where(on_head, share, 1.0)),
                shadowed=np.float32((share[on_head] < 0.5).mean() if on_head.any() else 0.0),
                towards_light=self._light(frame).towards(self.centre).astype(np.float32),
            )
        with atomic_write(picture) as path:
            iio.imwrite(path, linear_to_srgb_bytes(photograph))

    def finish(self) -> WildTruth:
        """Write what is known, and say that the clip is whole."""
        parts = []
        for frame in range(self.spec.frames):
            part = self.out / "parts" / f"{frame:05d}.npz"
            parts.append(read_npz(part, "remove it and run the command again"))
        made = {k: np.stack([p[k] for p in parts]) for k in parts[0]}
        truth = self.truth
        in_head = np.einsum("fvi,fij->fvj", truth.vertices - truth.translation[:, None], truth.rotation)
        wild = WildTruth(
            vertices=in_head.astype(np.float32),
            exposure=np.array(self.exposure),
            white_balance=self.white_balance,
            light=np.array(self.spec.light),
            **made,
        )
        with atomic_write(self.out / "truth.npz") as path:
            truth.save(path)
        with atomic_write(self.out / "wild.npz") as path:
            wild.save(path)
        told = {"shadowed": float(wild.shadowed.mean()), "exposure": self.exposure}
        with atomic_write(self.out / "wild.json") as path:
            path.write_text(json.dumps(self.facts | told, indent=1))
        (self.out / "making.json").unlink(missing_ok=True)
        shutil.rmtree(self.out / "parts", ignore_errors=True)
        return wild


def _bytes(share: np.ndarray) -> UInt8[np.ndarray, "..."]:
    return np.round(255 * np.clip(share, 0, 1)).astype(np.uint8)
