"""A virtual light stage: a made-up person under the lights of a dome, seen by calibrated cameras, as a capture.

The stage has the layout of Chen et al. 2021: 460 distant white lights in 50 groups of neighbours, a full light, and up
to 40 cameras on the front of a sphere. The person comes from `facejax.made_up.subjects`. Light is direct and distant;
each pixel gathers it from every light that its surface sees (depth maps at texels, `distant_visibility`), with a
Lambert and a GGX term and the relief of the skin. There is no light between one part of the face and another, and none
below skin: see the card that is written beside the frames. Layout on disk: `facejax.data.captures`, `docs/captures.md`.
"""

import dataclasses
import functools
import importlib.metadata
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from facejax.data.captures import Entry, entries_in, head_to_camera, mean_over_views, read_facts, write_facts
from facejax.data.files import atomic_write, explain_os_errors
from facejax.data.heads import load_morphable
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import edge_neighbours, normalise, vertex_normals
from facejax.geometry.records import Camera, Pose
from facejax.made_up.subjects import make_subject, relief_normals, surface_at, turn
from facejax.models.morphable import Expression, MorphableHead
from facejax.renderers.lights import sphere_directions
from facejax.renderers.microfacet import specular_from_cosines
from facejax.renderers.raster import antialias, interpolate, rasterise
from facejax.renderers.texture import sample_bilinear, sample_texture
from facejax.renderers.uv import (
    Chart,
    at_texels,
    fill_outside,
    locate_texels,
    on_image,
    texture_chart,
    texture_from,
)
from facejax.renderers.visibility import distant_visibility

FLIP = np.diag([1.0, -1.0, -1.0]).astype(np.float32)
"""A head at rest looks at camera 0: head frame to stage frame."""
MAX_CAMERAS = 40

_LOW = [0.0, 0.018, 0.0]  # metres: the hair takes more room than the neck
_WIDTH = 0.30  # metres across the picture at the middle of the stage
_BLOCK = 512  # pixels shaded at a time: their tables fit the processor's cache
_HIGHEST = jax.lax.Precision.HIGHEST

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class LightStageSpec:
    """What a capture shows. Captures of one spec are equal to the bit on one machine."""

    seed: int = 0
    head: str = "generic"
    """Model from whose family the person is: a name or path that `load_model` takes."""
    expressions: int = 300
    """How many faces in how many places; each is seen fully lit and partly lit, and by all cameras."""
    partly_lit: int = 3
    """Partly lit frames per expression, each with one group of lights on."""
    mixtures: int = 0
    """How many of these have several groups on instead, each at a strength of its own."""
    cameras: int = 4
    image_size: int = 256
    """Rows and columns of the pictures."""
    texture_size: int = 256
    """Rows and columns of the unwrapped textures."""
    shadow_size: int = 256
    """Rows and columns of the texture at whose texels shadows are found."""
    lights: int = 460
    groups: int = 50
    skin: float = 0.35
    """0 very light, 1 very dark."""
    yaw_degrees: float = 40.0
    """The head turns this far each way."""
    distance: float = 1.0
    """From the cameras to the middle of the stage, metres."""
    test_every: int = 10
    """Every n-th expression is for tests."""

    def __post_init__(self) -> None:
        least = {"expressions": 1, "cameras": 1, "image_size": 16, "texture_size": 16, "shadow_size": 16, "groups": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InputError(f"A light stage needs {name} of at least {low}, not {getattr(self, name)}.")
        if self.cameras > MAX_CAMERAS:
            raise InputError(f"The stage has places for {MAX_CAMERAS} cameras, not for {self.cameras}.")
        if self.lights % 2 or self.lights < self.groups:
            raise InputError(f"Lights come in pairs, at least one per group: {self.lights} do not fill {self.groups}.")
        if not 0 <= self.mixtures <= self.partly_lit <= self.groups:
            raise InputError(
                f"Of {self.partly_lit} partly lit frames {self.mixtures} cannot be mixtures: 0 <= mixtures <= "
                f"partly_lit <= groups ({self.groups})."
            )


PRESETS = {
    "small": LightStageSpec(),
    "paper": LightStageSpec(
        head="ict-facekit", expressions=2000, partly_lit=9, cameras=40, image_size=1024, texture_size=1024,
        shadow_size=512,
    ),
}  # fmt: skip
"""A stage for two processor cores, and the paper's (days of computing and terabytes)."""


# -- the stage ---------------------------------------------------------------------------------------------------------


def dome(lights: int, groups: int) -> tuple[Float32[np.ndarray, "d 3"], Int[np.ndarray, " d"]]:
    """(unit directions towards the lights in the stage's frame, number of each one's group).

    Lights are spread evenly over the sphere, in opposite pairs (`sphere_directions`); groups are of neighbours, do not
    overlap, and differ in size by one at most.
    """
    from scipy.optimize import linear_sum_assignment

    directions = np.asarray(sphere_directions(lights), np.float64)
    i = np.arange(groups) + 0.5
    z, angle = 1 - 2 * i / groups, np.pi * (1 + 5**0.5) * i
    centres = np.stack([np.sqrt(1 - z * z) * np.cos(angle), np.sqrt(1 - z * z) * np.sin(angle), z], axis=1)
    places = np.arange(lights) % groups  # the group of each place that a light can take
    group = places
    for _ in range(8):  # k-means with a number of places per group
        _, chosen = linear_sum_assignment(-directions @ centres[places].T)
        group = places[chosen]
        centres = np.stack([directions[group == k].sum(axis=0) for k in range(groups)])
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-9)
    return directions.astype(np.float32), group.astype(np.int32)


def ring_cameras(count: int, image_size: int, distance: float) -> dict[str, Float32[np.ndarray, "..."]]:
    """Calibration of cameras on rings around the frontal one, number 0, all looking at the middle of the stage.

    rotation (c, 3, 3) and translation (c, 3) take points of the stage to each camera; focal (c, 2) and principal_point
    (c, 2) are in pixels. Up to seven cameras: one ring at 40 degrees; more: at 25 and 50, then 20, 40 and 60.
    """
    angles = [40.0] if count <= 7 else [25.0, 50.0] if count <= 18 else [20.0, 40.0, 60.0]
    shares = np.sin(np.radians(angles))
    upto = np.round(np.cumsum(shares) / shares.sum() * (count - 1)).astype(int)
    rotations = [np.eye(3)]
    for angle, number in zip(np.radians(angles), np.diff(upto, prepend=0), strict=True):
        for k in range(number):
            around = np.pi + 2 * np.pi * k / number  # the first stands to the left of camera 0
            place = [np.sin(angle) * np.cos(around), np.sin(angle) * np.sin(around), -np.cos(angle)]
            forward = -np.array(place)
            right = np.cross([0.0, 1.0, 0.0], forward)
            right /= np.linalg.norm(right)
            rotations.append(np.stack([right, np.cross(forward, right), forward]))
    made = {
        "rotation": np.stack(rotations),
        "translation": np.tile([0.0, 0.0, distance], (count, 1)),
        "focal": np.full((count, 2), image_size * distance / _WIDTH),
        "principal_point": np.full((count, 2), image_size / 2),
    }
    return {k: v.astype(np.float32) for k, v in made.items()}


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Which lights are on: `code` is the strength of each group."""

    name: str
    code: np.ndarray


def patterns_of(spec: LightStageSpec, expression: int) -> list[Pattern]:
    """The full light, then the partly lit patterns of an expression: by the seed and its number alone.

    Single groups come in turn, in an order that the seed draws, so every group is seen about as often as any other.
    """
    order = np.random.default_rng([spec.seed, 1]).permutation(spec.groups)
    single = spec.partly_lit - spec.mixtures
    made = [Pattern("full", np.ones(spec.groups))]
    for k in range(single):
        group = order[(expression * single + k) % spec.groups]
        made.append(Pattern(f"group-{group:02d}", np.eye(spec.groups)[group]))
    rng = np.random.default_rng([spec.seed, 2, expression])
    for k in range(spec.mixtures):
        on = rng.permutation(spec.groups) < rng.integers(2, max(3, spec.groups // 2))
        made.append(Pattern(f"mixture-{expression:05d}-{k}", on * rng.uniform(0.2, 1.0, spec.groups)))
    return made


def list_entries(spec: LightStageSpec) -> list[Entry]:
    """All entries of a capture, expression by expression, the fully lit one first."""
    entries: list[Entry] = []
    for n in range(spec.expressions):
        split = "test" if n % spec.test_every == spec.test_every - 1 else "train"
        for pattern in patterns_of(spec, n):
            file = f"frames/{len(entries):05d}.npz"
            # a person moves between patterns; this one does not, so partly lit meshes are known too
            entries.append(Entry(file, expression=n, split=split, pattern=pattern.name, tracked=True))
    return entries


def subject_of(spec: LightStageSpec) -> MorphableHead:
    """The person of a capture: a head whose mean is that person; `surface_at` with `spec.skin` and seed paints it."""
    return make_subject(load_morphable(spec.head), spec.seed, warp_mm=1.0)


# -- the performance ---------------------------------------------------------------------------------------------------

_NEVER = ("mouthClose", "tongueOut", "jawForward")  # lips through teeth, or shapes that some heads lack


def perform(head: MorphableHead, spec: LightStageSpec, number: int) -> tuple[Expression, Pose]:
    """(face, head to stage) of an expression: by the seed and its number alone. Number 0 is at rest and frontal.

    A third are posed faces, a third speech, a third both faint; one in seven blinks; gaze and head turn freely. A tenth
    of all heads are turned as far as they go, half of them to each side.
    """
    rng = np.random.default_rng([spec.seed, 3, number])
    names = head.expression_names
    activations = np.zeros(len(names))

    def act(value: float, *which: str) -> None:
        for i, name in enumerate(names):
            if name in which or name.removesuffix("Left").removesuffix("Right") in which:
                activations[i] = max(activations[i], value)

    gaze, eyelids, angles, sway = np.zeros((2, 2)), np.zeros(2), np.zeros(3), np.zeros(3)
    if number > 0:
        kind = number % 3
        posed, spoken = ((1.0, 0.0), (0.15, 1.0), (0.5, 0.5))[kind]
        usable = [n for n in names if not n.startswith(("eyeLook", "eyeBlink")) and n not in _NEVER]
        for name in rng.choice(usable, size=min(6, len(usable)), replace=False):
            value = posed * rng.uniform() ** 1.5
            stem = name.removesuffix("Left").removesuffix("Right")
            act(value, stem if rng.uniform() < 0.7 else name)
        syllable, vowel = spoken * rng.uniform(), rng.uniform()
        act(0.7 * syllable, "jawOpen")
        act(0.6 * syllable * vowel, "mouthFunnel")
        act(0.5 * spoken * vowel * rng.uniform(), "mouthPucker")
        act(0.5 * spoken * (1 - vowel) * rng.uniform(), "mouthSmile", "mouthStretch")
        act(0.35 * syllable, "mouthLowerDown", "mouthUpperUp")
        act(0.5 * rng.uniform() ** 2, "browInnerUp", "browOuterUp")
        if rng.uniform() < 1 / 7:
            eyelids[:] = rng.uniform(0.3, 1.0) if rng.uniform() < 0.5 else 1.0
        gaze[:] = rng.uniform([-0.45, -0.22], [0.45, 0.22])
        gaze[0, 0] -= 0.02  # eyes meet about a metre and a half away
        gaze[1, 0] += 0.02
        # steps of the golden ratio spread turns evenly however many expressions there are
        across = (number * 0.6180339887498949 + rng.uniform(0, 0.02)) % 1
        yaw = np.clip((2 * across - 1) / 0.9, -1, 1) * spec.yaw_degrees
        angles = np.radians([rng.uniform(-14, 14), yaw, rng.uniform(-9, 9)])
        sway = rng.uniform(-1, 1, 3) * [0.012, 0.01, 0.02]
    rest = np.asarray(head.params.mean)
    pivot = rest[np.asarray(head.regions["narrow_face"]) > 0.5].mean(axis=0) - [0, 0, 0.05]
    rotation = FLIP @ turn(*angles)
    expression = Expression(
        activations=jnp.asarray(activations, jnp.float32),
        gaze=jnp.asarray(gaze, jnp.float32),
        eyelids=jnp.asarray(eyelids, jnp.float32),
    )
    pose = Pose(
        rotation=jnp.asarray(rotation, jnp.float32),
        translation=jnp.asarray(sway + _LOW - rotation @ pivot, jnp.float32),
    )
    return expression, pose


# -- pictures ----------------------------------------------------------------------------------------------------------


def light_weights(codes: Float[np.ndarray, "p g"], group: Int[np.ndarray, " d"]) -> Float32[np.ndarray, "d p"]:
    """Irradiance of each light under each pattern on a surface that faces it.

    Scaled so that a white Lambert surface that nothing shadows has radiance 1 under the full light.
    """
    return (codes[:, group].T * (4 * math.pi / len(group))).astype(np.float32)


class Studio:
    """A person on a stage: everything that does not change between frames."""

    def __init__(self, spec: LightStageSpec) -> None:
        self.spec = spec
        self.subject = subject = subject_of(spec)
        self.directions, self.group = dome(spec.lights, spec.groups)
        self.cameras = ring_cameras(spec.cameras, spec.image_size, spec.distance)
        faces = subject.topology.faces
        self.rest = np.asarray(subject.params.mean)
        self.chart = texture_chart(subject.topology, spec.texture_size)
        self._shadow_chart = shadows = texture_chart(subject.topology, spec.shadow_size)
        self._shadow_row = _nearest_rows(shadows)
        self._looks = _looks(subject, spec)
        self._rest_normals = vertex_normals(jnp.asarray(self.rest), faces)
        self._neighbours = edge_neighbours(faces)
        self._identity, _ = subject.init_code()
        self._vertices = jax.jit(subject.vertices)
        self._see = jax.jit(self._visibility)
        self._shoot = jax.jit(self._picture)

    def frames(self, number: int) -> list[dict[str, np.ndarray]]:
        """The arrays of every entry of an expression, as `FRAME_KEYS` lists them."""
        expression, head = perform(self.subject, self.spec, number)
        codes = np.stack([p.code for p in patterns_of(self.spec, number)])
        weights = jnp.asarray(light_weights(codes, self.group))
        vertices = self._vertices(self.subject.params, self._identity, expression)
        directions = jnp.matmul(jnp.asarray(self.directions), head.rotation, precision=_HIGHEST)  # in the head's frame
        visible = self._see(vertices, directions)
        shots = []
        for k in range(self.spec.cameras):
            rotation, translation = (self.cameras[name][k] for name in ("rotation", "translation"))
            camera = Camera(
                focal=jnp.asarray(self.cameras["focal"][k]),
                principal_point=jnp.asarray(self.cameras["principal_point"][k]),
            )
            pose = head_to_camera(head, rotation, translation)
            shots.append(self._shoot(vertices, pose, camera, visible, directions, weights))
        images, masks, textures, seen = (np.stack(x) for x in zip(*jax.device_get(shots), strict=True))
        told = {
            "mask": masks, "seen": seen, "vertices": np.asarray(vertices), "rotation": np.asarray(head.rotation),
            "translation": np.asarray(head.translation), "gaze": np.asarray(expression.gaze),
            "activations": np.asarray(self.subject.full_activations(expression)),
        }  # fmt: skip
        frames = []
        for p, code in enumerate(codes):
            mean = mean_over_views(textures[:, p].astype(np.float32), seen.astype(np.float32) / 255)
            light = np.tile(code[:, None], 3).astype(np.float32)
            shown = {"image": images[:, p], "texture": textures[:, p], "mean_texture": mean.astype(np.float16)}
            frames.append({**told, **shown, "light": light})
        return frames

    def _visibility(self, vertices: Array, directions: Array) -> Array:
        chart, faces = self._shadow_chart, self.subject.topology.faces
        stack = jnp.concatenate([vertices, vertex_normals(vertices, faces)], axis=-1)
        at = at_texels(stack, chart.triangles, chart.weights)
        return distant_visibility(vertices, faces, directions, at[:, :3], normalise(at[:, 3:]))

    def _picture(
        self, vertices: Array, pose: Pose, camera: Camera, visible: Array, directions: Array, weights: Array
    ) -> tuple[Array, Array, Array, Array]:
        """(image (p, h, w, 3), mask, texture (p, s, s, 3), seen) of a camera under all patterns, as they are stored."""
        topology, side, count = self.subject.topology, self.spec.image_size, weights.shape[1]
        drawn = on_image(vertices, pose, camera)
        fragments = rasterise(drawn, topology.faces, (side, side))
        stack = jnp.concatenate([vertices, vertex_normals(vertices, topology.faces), self._rest_normals], axis=-1)
        surface = interpolate(stack, fragments, topology.faces).reshape(side * side, -1)
        uv = interpolate(jnp.asarray(topology.uv), fragments, topology.uv_faces).reshape(side * side, 2)
        covered = (fragments.triangle >= 0).reshape(-1)
        eye = -jnp.matmul(pose.translation, pose.rotation, precision=_HIGHEST)  # where the camera is, head frame

        def shade(at: Array) -> Array:
            return self._radiance(surface[at], uv[at], eye, visible, directions, weights)

        lit = _where_covered(shade, covered, count * 3)
        image = jnp.concatenate([lit, covered[:, None].astype(lit.dtype)], axis=-1).reshape(side, side, -1)
        image = antialias(image, fragments, drawn, topology.faces, self._neighbours)
        chart = self.chart
        xy, confidence = locate_texels(
            vertices, pose, camera, topology.faces, (side, side), chart.triangles, chart.weights
        )
        values = sample_bilinear(image, xy)
        seen = jnp.round(255 * jnp.where(values[:, -1] > 0.98, confidence, 0.0))  # black background is no skin
        texture = texture_from(chart, jnp.where(seen[:, None] > 0, values[:, :-1], 0.0))
        seen = texture_from(chart, seen[:, None])[..., 0]

        def patterns(x: Array) -> Array:
            return jnp.moveaxis(x.reshape(*x.shape[:2], count, 3), 2, 0).astype(jnp.float16)

        mask = jnp.round(255 * jnp.clip(image[..., -1], 0, 1)).astype(jnp.uint8)
        return patterns(image[..., :-1]), mask, patterns(texture), seen.astype(jnp.uint8)

    def _radiance(
        self, surface: Array, uv: Array, eye: Array, visible: Array, directions: Array, weights: Array
    ) -> Array:
        """(n, 3 p) radiance that points of the surface send to the camera under every pattern."""
        looks = sample_texture(jnp.asarray(self._looks), uv)
        albedo, fresnel, alpha, gradient = looks[:, :3], looks[:, 3:4], looks[:, 4:5], looks[:, 5:]
        smooth = normalise(surface[:, 3:6])
        normals = relief_normals(smooth, normalise(surface[:, 6:]), gradient)
        to_eye = normalise(eye - surface[:, :3])
        product = functools.partial(jnp.matmul, precision=_HIGHEST)
        cos_light, cos_between = product(normals, directions.T), product(to_eye, directions.T)
        cos_eye = jnp.sum(normals * to_eye, axis=-1, keepdims=True)
        # the table knows nothing of what is below the smooth surface's horizon
        share = jnp.where(product(smooth, directions.T) > 0, self._open(uv, visible), 0.0)
        gloss = product(share * specular_from_cosines(cos_light, cos_between, cos_eye, fresnel, alpha), weights)
        diffuse = product(share * jnp.maximum(cos_light, 0.0), weights) / math.pi
        return (albedo[:, None, :] * diffuse[:, :, None] + gloss[:, :, None]).reshape(len(uv), -1)

    def _open(self, uv: Array, visible: Array) -> Array:
        """(n, d) share of each light that reaches points: bilinear, texels off the chart repeat those on it."""
        size, row = self.spec.shadow_size, jnp.asarray(self._shadow_row)
        x, y = jnp.clip(uv[:, 0] * size - 0.5, 0, size - 1.001), jnp.clip((1 - uv[:, 1]) * size - 0.5, 0, size - 1.001)
        i, j = x.astype(jnp.int32), y.astype(jnp.int32)
        fx, fy = (x - i)[:, None], (y - j)[:, None]
        first = j * size + i
        return (
            visible[row[first]] * (1 - fx) * (1 - fy)
            + visible[row[first + 1]] * fx * (1 - fy)
            + visible[row[first + size]] * (1 - fx) * fy
            + visible[row[first + size + 1]] * fx * fy
        )


def _where_covered(shade: Callable[[Array], Array], covered: Array, channels: int) -> Array:
    """Values at covered pixels, block by block, 0 elsewhere: a head fills a third of its picture."""
    n = covered.shape[0]
    order = jnp.pad(jnp.argsort(~covered, stable=True), (0, _BLOCK), mode="edge")

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        i, image = state
        at = jax.lax.dynamic_slice(order, (i * _BLOCK,), (_BLOCK,))
        return i + 1, image.at[at].set(shade(at))

    count = jnp.sum(covered)
    _, image = jax.lax.while_loop(lambda s: s[0] * _BLOCK < count, step, (jnp.int32(0), jnp.zeros((n, channels))))
    return jnp.where(covered[:, None], image, 0.0)


def _nearest_rows(chart: Chart) -> Int[np.ndarray, " n"]:
    """For every texel the row of the chart's nearest one."""
    from scipy.ndimage import distance_transform_edt

    number = np.zeros(chart.size**2, np.int32)
    number[chart.texels] = np.arange(len(chart.texels))
    near = distance_transform_edt(~chart.covered, return_distances=False, return_indices=True)
    return number.reshape(chart.size, chart.size)[tuple(near)].ravel()


def _looks(subject: MorphableHead, spec: LightStageSpec) -> Float32[np.ndarray, "s s 8"]:
    """Albedo, specular, roughness and the relief's gradient, twice as fine as the textures that are unwrapped."""
    chart = texture_chart(subject.topology, 2 * spec.texture_size)
    rest = np.asarray(subject.params.mean)
    names = list(subject.regions)
    stack = np.concatenate([rest, np.stack([subject.regions[k] for k in names], axis=1)], axis=1).astype(np.float32)
    at = np.asarray(at_texels(jnp.asarray(stack), chart.triangles, chart.weights))
    made = surface_at(
        at[:, :3], {k: at[:, 3 + i] for i, k in enumerate(names)}, np.asarray(subject.params.eye_pivot), spec.skin,
        spec.seed, spacing=max(_spacing(rest, chart), _WIDTH / spec.image_size),
    )  # fmt: skip
    values = np.concatenate([made.albedo, made.specular[:, None], made.roughness[:, None], made.gradient], axis=1)
    return fill_outside(np.asarray(texture_from(chart, jnp.asarray(values))), chart.covered)


def _spacing(rest: np.ndarray, chart: Chart) -> float:
    """Metres between neighbouring texels of a chart, the median."""
    points = np.full((chart.size, chart.size, 3), np.nan)
    points.reshape(-1, 3)[chart.texels] = np.einsum("nk,nkj->nj", chart.weights, rest[chart.triangles])
    return float(np.nanmedian(np.linalg.norm(np.diff(points, axis=1), axis=-1)))


# -- files -------------------------------------------------------------------------------------------------------------


def capture_bytes(spec: LightStageSpec, vertices: int) -> int:
    """Size on disk of a capture of a head of so many vertices, near enough."""
    pixels = spec.cameras * (spec.image_size**2 + spec.texture_size**2) * 7 + spec.texture_size**2 * 6
    return spec.expressions * (1 + spec.partly_lit) * (pixels + 12 * vertices)


def write_capture(folder: Path | str, spec: LightStageSpec, progress: Progress | None = None) -> Path:
    """Make a capture in a folder, or what is missing of one of the same spec; `LightStage(folder)` then reads it.

    Frames appear whole or not at all, so a stopped run goes on where it was. Raises `InputError` for a folder that
    holds something else or a capture of another spec, and for a disk without enough room.
    """
    folder = Path(folder).expanduser()
    told = dataclasses.asdict(spec)
    _check_folder(folder, told)
    entries = list_entries(spec)
    per_expression = 1 + spec.partly_lit
    missing = [
        n
        for n in range(spec.expressions)
        if not all((folder / e.file).is_file() for e in entries[n * per_expression : (n + 1) * per_expression])
    ]
    studio = Studio(spec)
    subject = studio.subject
    _check_room(folder, capture_bytes(spec, len(studio.rest)) * len(missing) // spec.expressions)
    write_facts(
        folder,
        [*entries, *_added_since(folder, entries)],
        kind="virtual light stage",
        made_by=f"facejax {_version()}",
        spec=told,
        image_size=[spec.image_size, spec.image_size],
        texture_size=spec.texture_size,
        groups=spec.groups,
        cameras=spec.cameras,
        vertices=len(studio.rest),
        expression_names=list(subject.expression_names),
    )
    _save(folder / "cameras.npz", studio.cameras)
    weight = np.full(spec.lights, 4 * math.pi / spec.lights, np.float32)
    _save(folder / "lights.npz", {"directions": studio.directions, "group": studio.group, "weight": weight})
    lit_by = {"light_directions": studio.directions, "light_group": studio.group}  # what an avatar's codes mean
    _save(folder / "head.npz", _head_arrays(subject) | lit_by)
    with atomic_write(folder / "README.md") as path:
        path.write_text(_card(spec, subject))
    done = spec.expressions - len(missing)
    say = progress or (lambda stage, done, total: None)
    say("expressions", done, spec.expressions)
    for n in missing:
        for entry, frame in zip(entries[n * per_expression :], studio.frames(n), strict=False):
            _save(folder / entry.file, frame)
        done += 1
        say("expressions", done, spec.expressions)
    return folder


def _version() -> str:
    return importlib.metadata.version("facejax")


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with atomic_write(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]


def _check_folder(folder: Path, told: dict[str, Any]) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"Expected a folder to write to, but {folder} is a file: choose another name.")
    if (folder / "capture.json").is_file():
        before = read_facts(folder).get("spec")
        if before != told:
            before = before if isinstance(before, dict) else {}
            other = ", ".join(f"{k} {before.get(k)} there, {v} asked" for k, v in told.items() if before.get(k) != v)
            raise InputError(f"{folder} holds another capture ({other}): choose another folder, or the same options.")
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} holds other files and no capture.json: choose a new or an empty folder.")


def _added_since(folder: Path, made: list[Entry]) -> list[Entry]:
    """What others have added to a capture that is being completed, such as path-traced test images."""
    if not (folder / "capture.json").is_file():
        return []
    files = {e.file for e in made}
    return [e for e in entries_in(read_facts(folder), folder) if e.file not in files]


def _check_room(folder: Path, needed: int) -> None:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    with explain_os_errors(folder):
        free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            f"The capture needs {needed / 1e9:.1f} GB and {place} has {free / 1e9:.1f} GB free: make room, or take "
            "fewer expressions or cameras, or smaller pictures."
        )


def _head_arrays(subject: MorphableHead) -> dict[str, np.ndarray]:
    topology, p = subject.topology, subject.params
    return {
        "faces": topology.faces,
        "uv": topology.uv,
        "uv_faces": topology.uv_faces,
        "landmark_triangles": subject.landmarks478.triangles,
        "landmark_weights": subject.landmarks478.weights,
        "neutral": np.asarray(p.mean),
        "eye_weight": np.asarray(p.eye_weight),
        "eye_pivot": np.asarray(p.eye_pivot),
        **{f"region_{k}": np.asarray(v) for k, v in subject.regions.items()},
    }


def _card(spec: LightStageSpec, subject: MorphableHead) -> str:
    """The dataset card."""
    entries = list_entries(spec)
    test = sum(e.split == "test" and e.fully_lit for e in entries)
    options = "\n".join(f"- `{k}`: {v}" for k, v in dataclasses.asdict(spec).items())
    size = capture_bytes(spec, subject.topology.n_vertices) / 1e9
    return f"""# A virtual light stage capture

Made by facejax {_version()} (`facejax data light-stage`), layout in facejax's `docs/captures.md`. Nobody was
filmed: the person is made up from the head model `{spec.head}` and the seed {spec.seed}, so no consent or privacy of
anyone is involved; the capture may be used as the head model's licence allows (the built-in head's is facejax's own).

- {spec.expressions} expressions ({test} of them for tests), {len(entries)} frames, {spec.cameras} cameras,
  {size:.2f} GB
- {spec.lights} distant white lights all around, in {spec.groups} groups of neighbours; each expression is seen fully
  lit and under {spec.partly_lit} other patterns
- images: linear radiance over a black background, {spec.image_size} x {spec.image_size} pixels, float16; under the full
  light a white Lambert surface that nothing shadows has radiance 1
- textures: these images unwrapped through the mesh, {spec.texture_size} x {spec.texture_size}
- meshes: exact, {subject.topology.n_vertices} vertices

## What is not as on a real stage

- The subject holds still while the patterns go by, so partly lit frames have exact meshes too. No person can.
- Light is direct: none goes from one part of the face to another, and none travels below the skin.
- Shadows come from depth maps at {spec.shadow_size} x {spec.shadow_size} texels: contact shadows under about two
  millimetres are lost.
- Relief finer than the pictures can show (pores, in small captures) is roughness. It casts no shadows.
- Hair is colour only; there are no lashes, no clothes, no tongue in the built-in head.
- Images have no noise, no lens distortion and no saturation.

## Options

{options}
"""
