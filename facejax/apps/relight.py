"""`facejax relight`: a tracked head under new light, as a video, pictures with alpha and a preview.

Exposure. Maps come in any unit, so pictures are metered as a camera meters a face: a few frames are rendered, and light
is scaled until the skin's mean radiance is `_METER` of its albedo (what is dark stays dark, a white surface would come
out at `_METER`), less where that would burn more than a fiftieth of the skin. One factor holds for the whole clip, so
nothing pumps. What is brighter than `_SHOULDER` is rolled off smoothly towards white instead of being cut.
"""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

import facejax
from facejax.apps.avatar import AvatarView
from facejax.apps.pictures import Window, face_window, window_camera, write_png
from facejax.data.environments import load_environment, load_sh
from facejax.data.files import atomic_folder, atomic_write, terminate_as_interrupt
from facejax.data.results import TrackResult
from facejax.data.video import write_video
from facejax.geometry.colour import linear_to_srgb_bytes, luminance, srgb_to_linear
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import Topology
from facejax.geometry.records import Camera, Face, Image, Pose
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.renderers.lights import Light, NearLights, check_light, radiance_towards, rotate_light, sphere_directions
from facejax.renderers.shadows import make_shadowed_renderer
from facejax.renderers.uv import Chart, at_texels, fill_gutter, fill_outside, gutter_chart, locate_texels, texture_chart

Row = tuple[str, object, object]
"""(name, value, control): a line of the table."""
Progress = Callable[[str, int, int], None]
"""`progress(stage, done, total)`."""

RELIT_FILES = ("relit.mp4", "preview.png", "relight.json", "renders")
"""Names that an output folder holds; the first tells a folder as ours."""

_METER = 0.75
_HIGHLIGHT = 0.8  # radiance of the skin's brightest fiftieth: above, light is turned down
_SHOULDER = 0.7
_BULB, _BULB_LAMPS = 0.04, 12  # metres
_FILL = 0.04
_TURN_SECONDS = 6.0
_TURNTABLE_DISTANCE = 1.2  # metres
_MOST_ALBEDO = 0.9  # of what unwrapping made: highlights and background that got into a texture are above it
_BLUER = 0.75  # of ln(blue / red) against the skin's own
_STIFF = 0.02  # of the mesh's edges against known texels, where colour is continued
_SEEN = (0.12, 0.4)  # squared cosine at which a texel's colour begins to be trusted, and is fully
_BACKDROP = 0.6  # of the light behind the head: dimmed, so that the eye goes to the face


@dataclasses.dataclass(frozen=True)
class RelightConfig:
    """How a tracked head is shown under new light."""

    view: Literal["camera", "turntable"] = "camera"
    """The input's camera, or a head that turns once around its vertical axis."""
    frames: tuple[int | None, int | None] | None = None
    """Frames of the result, (first, one past the last)."""
    size: int = 512
    """Height of the picture in pixels."""
    rotate: float = 0.0
    """Degrees by which the light is turned about the vertical: what was straight ahead comes from the right."""
    sweep: float = 0.0
    """Degrees per second by which it goes on turning."""
    exposure: float = 0.0
    """Stops brighter than the meter says."""
    path_traced: bool = False
    """Trace paths with Mitsuba instead of rasterising with self-shadows."""
    samples: int = 128
    """Paths per pixel."""


@dataclasses.dataclass(frozen=True, eq=False)
class Shot:
    """One picture to be made."""

    frame: int
    """Of the result."""
    pose: Pose
    camera: Camera
    turn: float
    """Degrees by which the light is turned."""


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """All pictures to be made."""

    shots: tuple[Shot, ...]
    camera: Camera
    """Of the first picture."""
    size: tuple[int, int]
    """(height, width)."""
    fps: float
    window: Window | None
    """The part of the input that is shown; None in the turntable view."""
    pivot: np.ndarray
    """(3,) middle of the head, camera frame, metres: near lights turn about its vertical axis."""


# -- what is shown ----------------------------------------------------------------------------------------------------


def plan_shots(result: TrackResult, config: RelightConfig) -> Plan:
    """Which frames are shown, from where, and how far the light has turned. Raises `InputError`."""
    if config.size < 32:
        raise InputError(f"`size` must be at least 32 pixels, not {config.size}.")
    if config.view not in ("camera", "turntable"):
        raise InputError(f"`view` must be 'camera' or 'turntable', not {config.view!r}.")
    ids = _frames(result, config.frames)
    step = result.frame_seconds
    fps = 1 / step if step > 0 else 25.0
    turn = [config.rotate + config.sweep * i / fps for i in range(max(len(ids), _turn_frames(fps)))]
    if config.view == "camera":
        window = face_window(result, max_height=config.size)
        window = dataclasses.replace(window, size=_even(float(config.size), config.size * window.width / window.height))
        cameras = [window_camera(result, window, k) for k in ids]
        return Plan(
            shots=tuple(Shot(frame=k, pose=result.pose(k), camera=cameras[i], turn=turn[i]) for i, k in enumerate(ids)),
            camera=cameras[0],
            size=window.size,
            fps=fps,
            window=window,
            pivot=head_middle(result, ids),
        )
    size = _even(float(config.size), float(config.size))
    count = max(len(ids), _turn_frames(fps))
    turns = max(1, round(count / _turn_frames(fps)))
    there_and_back = [*ids, *ids[-2:0:-1]]
    middle, radius = _bounds(result.neutral)
    focal = 0.43 * size[0] * _TURNTABLE_DISTANCE / radius
    camera = Camera(focal=jnp.full(2, focal), principal_point=jnp.array([size[1] / 2, size[0] / 2]))
    shots = []
    for i in range(count):
        upright = jnp.diag(jnp.array([1.0, -1.0, -1.0]))
        yaw = rotvec_to_matrix(jnp.array([0.0, 2 * math.pi * turns * i / count, 0.0]))
        rotation = jnp.matmul(upright, yaw, precision=jax.lax.Precision.HIGHEST)
        away = jnp.array([0.0, 0.0, _TURNTABLE_DISTANCE]) - rotation @ jnp.asarray(middle)
        k = there_and_back[i % len(there_and_back)]
        shots.append(Shot(frame=k, pose=Pose(rotation=rotation, translation=away), camera=camera, turn=turn[i]))
    pivot = np.array([0, 0, _TURNTABLE_DISTANCE], np.float32)
    return Plan(shots=tuple(shots), camera=camera, size=size, fps=fps, window=None, pivot=pivot)


def _frames(result: TrackResult, frames: tuple[int | None, int | None] | None) -> list[int]:
    first, stop = frames or (None, None)
    first, stop = first or 0, len(result) if stop is None else stop
    if not 0 <= first < stop <= len(result):
        raise InputError(f"Frames {first}:{stop} are not in the result, which has {len(result)}: give 0 <= A < B.")
    return list(range(first, stop))


def _turn_frames(fps: float) -> int:
    return max(2, round(_TURN_SECONDS * fps))


def _even(height: float, width: float) -> tuple[int, int]:
    """As video encoders want a picture's (height, width)."""
    return max(2, 2 * round(height / 2)), max(2, 2 * round(width / 2))


def _bounds(neutral: np.ndarray) -> tuple[np.ndarray, float]:
    """Middle of a head on its vertical axis, and half of what it is high (or deep, as it turns), metres."""
    low, high = neutral.min(axis=0), neutral.max(axis=0)
    middle = (low + high) / 2
    around = float(np.hypot(*(neutral - middle)[:, [0, 2]].T).max())
    return middle.astype(np.float32), max(float(high[1] - low[1]) / 2, around)


def head_middle(result: TrackResult, frames: list[int] | None = None) -> Float32[np.ndarray, "3"]:
    """Middle of the head over the frames, camera frame, metres: lamps are placed from there."""
    ids = np.asarray(frames if frames is not None else range(len(result)))
    good = ids[result.valid[ids]]
    ids = good if len(good) else ids
    middle, _ = _bounds(result.neutral)
    return (result.rotation[ids] @ middle + result.translation[ids]).mean(axis=0).astype(np.float32)


# -- appearance -------------------------------------------------------------------------------------------------------


def relightable(result: TrackResult) -> dict[str, Array]:
    """`albedo`, `texture`, `specular` and `roughness` of a tracked head, made fit for light from elsewhere.

    Tracking has divided its light out of the texture. What the clip saw at a grazing angle only (there, a silhouette's
    background is mixed in) or never is continued from what it saw well, and no surface reflects more than 90 %. A
    result without a specular lobe gets that of skin, 0.03 at alpha 0.3.
    """
    size = result.texture.shape[0]
    albedo, texture = result.albedo, np.asarray(result.texture, np.float32)
    if result.texture.shape[1] == size > 1:
        chart = texture_chart(result.topology, size)
        view = _best_view(result, chart)
        trust = np.zeros(size * size, np.float32)
        trust[chart.texels] = np.clip((view - _SEEN[0]) / (_SEEN[1] - _SEEN[0]), 0, 1)
        trust *= ~_foreign(result, chart, view).ravel()
        flat = texture.reshape(-1, 3)[chart.texels]
        flat = _continued(flat, trust[chart.texels], chart, result.faces, len(albedo))
        at = np.asarray(at_texels(jnp.asarray(albedo), chart.triangles, chart.weights))
        texture = np.ones((size * size, 3), np.float32)
        texture[chart.texels] = np.minimum(flat, _MOST_ALBEDO / np.maximum(at, 1e-3))
        texture = fill_outside(texture.reshape(size, size, 3), chart.covered)
        texture = np.asarray(fill_gutter(jnp.asarray(texture), chart, gutter_chart(result.topology, chart)))
    shiny = bool((result.specular > 0).any())
    return {
        "albedo": jnp.asarray(albedo),
        "texture": jnp.asarray(texture),
        "specular": jnp.asarray(result.specular if shiny else np.full_like(result.specular, 0.03)),
        "roughness": jnp.asarray(result.roughness if shiny else np.full_like(result.roughness, 0.3)),
    }


def _continued(
    factor: Float[np.ndarray, "n 3"], trust: Float[np.ndarray, "n"], chart: Chart, faces: np.ndarray, n_vertices: int
) -> Float[np.ndarray, "n 3"]:
    """Factors of a chart's texels, those of low trust continued from the others smoothly over the mesh.

    Not over the texture: charts that meet at a seam would each be filled from their own side, and it would show. The
    logarithm is spread over the mesh's edges (a screened Poisson equation); parts without any known texel become 1.
    """
    from scipy.sparse import coo_matrix, diags
    from scipy.sparse.linalg import splu

    share = chart.weights * trust[:, None]
    corner = chart.triangles.ravel()
    weight = np.bincount(corner, share.ravel(), n_vertices)
    log = np.log(np.clip(factor, 0.02, 50.0))
    known = np.stack([np.bincount(corner, (share * log[:, None, c]).ravel(), n_vertices) for c in range(3)], axis=-1)
    data = np.minimum(weight, 1.0)
    target = data[:, None] * known / np.maximum(weight, 1e-6)[:, None]
    i, j = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).T
    edges = coo_matrix((np.ones(2 * len(i)), (np.r_[i, j], np.r_[j, i])), (n_vertices, n_vertices)).tocsr()
    degree = np.asarray(edges.sum(axis=1)).ravel()
    matrix = diags(data + _STIFF * degree + 1e-6) - _STIFF * edges
    spread = splu(matrix.tocsc()).solve(target)
    filled = np.exp(np.einsum("nkc,nk->nc", spread[chart.triangles], chart.weights))
    return (factor * trust[:, None] + filled * (1 - trust[:, None])).astype(np.float32)


def _foreign(result: TrackResult, chart: Chart, view: np.ndarray) -> np.ndarray:
    """(size, size) bool: skin that took its colour from behind the head, by its hue, with three texels around it.

    Where the mesh reaches beyond the person (ears, neck, shoulders) unwrapping paints the background on it. Skin, hair
    and grey cloth are never that much bluer than the skin seen face on; a blue shirt is, so what was seen well is kept.
    """
    size = chart.size
    skin = _skin(result)[chart.triangles[:, 0]]
    factor = np.maximum(np.asarray(result.texture, np.float32).reshape(-1, 3)[chart.texels], 1e-3)
    blue = np.log(factor[:, 2] / factor[:, 0])
    well = skin & (view > 0.7)
    usual = np.median(blue[well]) if well.any() else 0.0
    flat = np.zeros(size * size, dtype=bool)
    flat[chart.texels] = skin & (view < 0.6) & (blue - usual > _BLUER)
    mask = flat.reshape(size, size)
    for _ in range(3):
        padded = np.pad(mask, 1)
        mask = padded[1:-1, 1:-1] | padded[2:, 1:-1] | padded[:-2, 1:-1] | padded[1:-1, 2:] | padded[1:-1, :-2]
    return mask


def _skin(result: TrackResult) -> np.ndarray:
    names = result.part_names
    return result.parts == names.index("skin") if "skin" in names else np.ones(len(result.parts), dtype=bool)


def _best_view(result: TrackResult, chart: Chart, count: int = 8) -> np.ndarray:
    """(n,) the best confidence of `locate_texels` over some frames."""
    good = np.flatnonzero(result.valid & np.isfinite(result.translation).all(axis=-1))
    if not len(good):
        return np.ones(len(chart.texels), np.float32)
    picks = good[np.unique(np.linspace(0, len(good) - 1, count).round().astype(int))]
    window = face_window(result, max_height=256)
    triangles, weights = jnp.asarray(chart.triangles), jnp.asarray(chart.weights)
    look = _look(result.topology, window.size)
    views = (
        look(
            jnp.asarray(result.head_vertices_at(k)),
            result.pose(k),
            window_camera(result, window, k),
            triangles,
            weights,
        )
        for k in picks.tolist()
    )
    return functools.reduce(np.maximum, map(np.asarray, views))


@functools.lru_cache(maxsize=4)
def _look(topology: Topology, size: tuple[int, int]) -> Callable[..., Array]:
    def look(vertices: Array, pose: Pose, camera: Camera, triangles: Array, weights: Array) -> Array:
        return locate_texels(vertices, pose, camera, topology.faces, size, triangles, weights)[1]

    return jax.jit(look)


# -- light ------------------------------------------------------------------------------------------------------------


def turned_light(light: Light, degrees: float, pivot: Float[np.ndarray, "3"]) -> Light:
    """The light turned about the vertical: what came from straight ahead comes from the camera's right after 90.

    Lamps go around `pivot`, so that at 180 degrees what was between camera and head is behind the head.
    """
    if degrees % 360 == 0:
        return light
    rotation = rotvec_to_matrix(jnp.array([0.0, math.radians(degrees), 0.0]))
    if isinstance(light, NearLights):
        around = jnp.matmul(light.positions - pivot, rotation.T, precision=jax.lax.Precision.HIGHEST)
        return light.replace(positions=around + pivot)
    return rotate_light(light, rotation)


def lamp_at(point: tuple[float, float, float], plan: Plan, result: TrackResult) -> NearLights:
    """A white bulb of 4 cm radius, `point` metres from the head's middle along the camera's axes (right, down, away).

    It is made of a dozen lamps, so that its shadows have soft edges. Raises `InputError` if it is inside the head in
    any of the frames shown, or nearer than a millimetre to its skin.
    """
    if not np.isfinite(point).all():
        raise InputError(f"A lamp needs three finite coordinates in metres, got {point}.")
    position = plan.pivot + np.asarray(point, np.float32)
    for shot in plan.shots[:: max(1, len(plan.shots) // 12)]:
        local = (position - np.asarray(shot.pose.translation)) @ np.asarray(shot.pose.rotation)
        if inside_mesh(local, result.head_vertices_at(shot.frame), result.faces):
            low, high = (f(result.neutral, axis=0) for f in (np.min, np.max))
            extent = " x ".join(f"{100 * x:.0f}" for x in high - low)
            raise InputError(
                f"The lamp at {', '.join(f'{x:g}' for x in point)} m from the head's middle is inside the head, which "
                f"is {extent} cm: move it away."
            )
    around = position + _BULB * sphere_directions(_BULB_LAMPS)
    return NearLights(positions=jnp.asarray(around), intensity=jnp.full((_BULB_LAMPS, 3), 1 / _BULB_LAMPS))


def dim_room(lamps: NearLights, pivot: Float[np.ndarray, "3"]) -> Float[Array, "1 3"]:
    """Even light, one coefficient, `_FILL` as strong at the head as the lamps: a room is never black around a lamp."""
    square = jnp.sum((lamps.positions - pivot) ** 2, axis=-1, keepdims=True)
    radiance = _FILL * jnp.sum(lamps.intensity / square, axis=0) / math.pi
    return math.sqrt(4 * math.pi) * radiance[None]


def inside_mesh(
    point: Float[np.ndarray, "3"], vertices: Float[np.ndarray, "v 3"], faces: np.ndarray, margin: float = 1e-3
) -> bool:
    """Whether a point is inside a mesh, which may be open (a bust), or nearer than `margin` metres to a vertex.

    By the solid angle that the triangles span (the winding number): more than half of the sphere.
    """
    corner = (vertices - point)[faces].astype(np.float64)
    length = np.linalg.norm(corner, axis=2)
    if length.min() < margin:
        return True
    a, b, c = (corner[:, i] for i in range(3))
    la, lb, lc = length.T
    volume = np.einsum("ni,ni->n", a, np.cross(b, c))
    below = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
    return bool(abs(np.arctan2(volume, below).sum() * 2) > 2 * math.pi)


# -- rendering --------------------------------------------------------------------------------------------------------


Draw = Callable[[Array, Light, Pose, Camera], Array]
"""(vertices in the head frame, light, pose, camera) -> (h, w, 4): premultiplied radiance, and coverage."""


def _stacked(image: Image) -> Array:
    return jnp.concatenate([image.colour, image.coverage[..., None]], axis=-1)


@functools.lru_cache(maxsize=4)
def _compiled(topology: Topology, size: tuple[int, int]) -> Callable[..., Array]:
    """The shadowed renderer, compiled once per mesh and size of the picture."""
    render = make_shadowed_renderer(topology, size)

    def draw(appearance: dict[str, Array], vertices: Array, light: Light, pose: Pose, camera: Camera) -> Array:
        return _stacked(render(Face(vertices=vertices, **appearance), light, pose, camera))

    return jax.jit(draw)


def _shadowed_draw(topology: Topology, appearance: dict[str, Array], plan: Plan) -> Draw:
    """Rasterised, with cast shadows, found anew in every picture: older ones would flicker as lips move."""
    return functools.partial(_compiled(topology, plan.size), appearance)


def _traced_draw(topology: Topology, appearance: dict[str, Array], plan: Plan, samples: int) -> Draw:
    """By Mitsuba: light may go from face to face once before it reaches the camera."""
    from facejax.renderers.llvm import require_llvm
    from facejax.renderers.path_tracer import make_path_tracer

    if jax.default_backend() != "gpu":
        require_llvm()  # here, where its sentence reaches a person: from inside a compiled function it would not
    render = make_path_tracer(topology, plan.size, samples=samples, max_depth=3, silhouettes="none")

    @jax.jit
    def draw(appearance: dict[str, Array], vertices: Array, light: Light, pose: Pose, camera: Camera) -> Array:
        return _stacked(render(Face(vertices=vertices, **appearance), light, pose, camera))

    return functools.partial(draw, appearance)


class Relighting:
    """A tracked head under one light, metered: makes the picture of any shot of a plan.

    An avatar is drawn as itself, any other head as the tracked surface. fill: light that is added and does not turn.
    """

    def __init__(
        self,
        result: TrackResult,
        light: Light,
        config: RelightConfig,
        plan: Plan,
        *,
        fill: Light | None = None,
    ) -> None:
        check_light(light)
        self.light, self.plan, self._result, self._fill = light, plan, result, fill
        self._avatar = avatar = AvatarView(result) if result.is_avatar else None
        if avatar is None:
            appearance = relightable(result)
            self._draw = (
                _traced_draw(result.topology, appearance, plan, config.samples)
                if config.path_traced
                else _shadowed_draw(result.topology, appearance, plan)
            )
            albedo = mean_albedo(result, appearance)
        else:
            if config.path_traced:
                raise InputError("An avatar has no surface to trace paths on: leave --path-traced out.")
            albedo = avatar.mean_albedo()
        shown = [s for s in plan.shots if result.valid[s.frame]]
        some = np.unique(np.linspace(0, len(shown) - 1, 3).round().astype(int)).tolist() if shown else []
        self.factor = exposure_factor([self._drawn(shown[i]) for i in some], albedo) * 2.0**config.exposure
        """What radiance is multiplied by."""

    def picture(self, shot: Shot) -> Float32[np.ndarray, "h w 4"]:
        """Exposed linear radiance, premultiplied by the coverage in the fourth channel; empty where tracking failed."""
        drawn = self._drawn(shot)
        drawn[..., :3] *= self.factor
        return drawn

    def light_of(self, shot: Shot) -> Light:
        """The light as it stands in a shot, camera frame, not exposed."""
        return turned_light(self.light, shot.turn, self.plan.pivot)

    def _drawn(self, shot: Shot) -> np.ndarray:
        vertices = self._result.head_vertices_at(shot.frame)
        if not (self._result.valid[shot.frame] and np.isfinite(vertices).all()):
            return np.zeros((*self.plan.size, 4), np.float32)
        if self._avatar is not None:
            code = self._avatar.code_of(self.light_of(shot), shot.pose)
            code = code if self._fill is None else code + self._avatar.code_of(self._fill, shot.pose)
            return self._avatar.draw(shot.frame, shot.pose, shot.camera, self.plan.size, code)
        seen = (shot.pose, shot.camera)
        drawn = np.array(self._draw(jnp.asarray(vertices), self.light_of(shot), *seen), dtype=np.float32)
        if self._fill is not None:
            drawn[..., :3] += self._draw(jnp.asarray(vertices), self._fill, *seen)[..., :3]
        return drawn


def relight(
    result: TrackResult, light: Light, config: RelightConfig | None = None
) -> Iterator[Float32[np.ndarray, "h w 4"]]:
    """Pictures of a tracked head under `light` (camera frame), one by one: exposed linear radiance and coverage.

    Colours are premultiplied by coverage. A frame in which tracking failed is empty. Raises `InputError`.
    """
    config = config or RelightConfig()
    plan = plan_shots(result, config)
    relighting = Relighting(result, light, config, plan)
    return (relighting.picture(shot) for shot in plan.shots)


def mean_albedo(result: TrackResult, appearance: dict[str, Array]) -> float:
    """Mean albedo of the skin, texture included, luminance."""
    return float(luminance(np.asarray(appearance["albedo"])[_skin(result)]).mean())


def exposure_factor(pictures: list[np.ndarray], albedo: float) -> float:
    """What light has to be multiplied by, see the module's docstring. `InputError` if no light reaches the head."""
    whole = np.concatenate([np.zeros((0, 3), np.float32), *(p[p[..., 3] > 0.99][:, :3] for p in pictures)])
    lit = luminance(whole)
    if not len(lit) or not lit.max() > 0:
        raise InputError("No light reaches the head as the camera sees it: turn the light or move the lamp.")
    mean, bright = float(lit.mean()), float(np.quantile(lit, 0.98))
    return min(_METER * albedo / mean, _HIGHLIGHT / max(bright, 1e-12))


# -- pictures ---------------------------------------------------------------------------------------------------------


def tone(linear: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Linear radiance with highlights rolled off: unchanged up to `_SHOULDER`, then smoothly towards 1."""
    over = np.maximum(linear - _SHOULDER, 0) / (1 - _SHOULDER)
    return np.minimum(linear, _SHOULDER) + (1 - _SHOULDER) * (1 - np.exp(-over))


def straight_rgba(picture: Float[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 4"]:
    """8-bit sRGB with straight alpha of a premultiplied linear picture."""
    alpha = np.clip(picture[..., 3:], 0, 1)
    colour = tone(np.maximum(picture[..., :3], 0) / np.maximum(alpha, 1e-4))
    colour = np.where(alpha > 0, linear_to_srgb_bytes(colour), 0)
    return np.concatenate([colour, (255 * alpha + 0.5).astype(np.uint8)], axis=-1).astype(np.uint8)


def composed(picture: Float[np.ndarray, "h w 4"], background: Float[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """A picture laid over a background, both linear; 8-bit sRGB."""
    alpha = np.clip(picture[..., 3:], 0, 1)
    head = tone(np.maximum(picture[..., :3], 0) / np.maximum(alpha, 1e-4))
    return linear_to_srgb_bytes(head * alpha + tone(background) * (1 - alpha))


def backdrop(light: Light, camera: Camera, size: tuple[int, int], factor: float) -> Float32[np.ndarray, "h w 3"]:
    """What stands behind the head, linear: the distant light itself, out of focus and dimmed; grey behind a lamp."""
    height, width = size
    if isinstance(light, NearLights):
        y, x = (np.mgrid[:height, :width] + 0.5) / np.array([height, width])[:, None, None] - 0.5
        return (0.035 / (1 + 6 * (x * x + y * y)))[..., None].astype(np.float32) * np.ones(3, np.float32)
    coarse = (48, max(2, round(48 * width / height)))
    edge = 24  # coarse pixels around the picture, so that what is outside is blurred into it
    rows, columns = (np.arange(-edge, n + edge) + 0.5 for n in coarse)
    pixels = np.stack(np.meshgrid(columns * width / coarse[1], rows * height / coarse[0]), axis=-1)
    plane = (pixels - np.asarray(camera.principal_point)) / np.asarray(camera.focal)
    rays = np.concatenate([plane, np.ones_like(plane[..., :1])], axis=-1)
    rays = (rays / np.linalg.norm(rays, axis=-1, keepdims=True)).astype(np.float32)
    seen = np.asarray(_towards(light, jnp.asarray(rays.reshape(-1, 3)))).reshape(rays.shape) * factor
    # one bright pixel (a sun) would wash out everything; a lens shows it as a disc no brighter than film takes
    seen = np.minimum(seen, 4.0)
    blur = [_gaussian(len(seen), 4.0), _gaussian(seen.shape[1], 4.0)]
    seen = np.einsum("ab,bcj,dc->adj", blur[0], seen, blur[1], optimize=True)[edge:-edge, edge:-edge]
    behind = _BACKDROP * _enlarged(seen.astype(np.float32), size)
    return behind / (1 + luminance(behind)[..., None])


_towards = jax.jit(radiance_towards)


def _gaussian(n: int, sigma: float) -> np.ndarray:
    """(n, n) blur over a line of n values."""
    weights = np.exp(-0.5 * ((np.arange(n)[:, None] - np.arange(n)) / sigma) ** 2)
    return weights / weights.sum(axis=1, keepdims=True)


def _enlarged(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    channels = [
        np.asarray(Image.fromarray(image[..., c]).resize((size[1], size[0]), Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    return np.maximum(np.stack(channels, axis=-1), 0)


def mirror_ball(light: Light, side: int) -> Float32[np.ndarray, "side side 4"]:
    """A mirror ball far in front of the camera: linear radiance, premultiplied by the coverage in the fourth channel.

    Its middle shows what is behind the camera, its rim what is straight ahead.
    """
    return _ball(side, lambda normals: _mirror(light, normals))


def _mirror(light: Light, normals: np.ndarray) -> np.ndarray:
    ahead = np.array([0, 0, 1], np.float32)
    reflected = ahead - 2 * normals[:, 2:] * normals
    return np.asarray(_towards(light, jnp.asarray(reflected)))


def _ball(side: int, shade: Callable[[np.ndarray], np.ndarray], samples: int = 3) -> np.ndarray:
    fine = side * samples
    y, x = ((np.mgrid[:fine, :fine] + 0.5) / fine - 0.5) * 2.1
    inside = x * x + y * y < 1
    normals = np.stack([x, y, -np.sqrt(np.maximum(1 - x * x - y * y, 0))], axis=-1)[inside].astype(np.float32)
    ball = np.zeros((fine, fine, 4), np.float32)
    ball[inside, :3], ball[inside, 3] = shade(normals), 1
    return ball.reshape(side, samples, side, samples, 4).mean(axis=(1, 3))


# -- the command ------------------------------------------------------------------------------------------------------


def relight_folder(
    folder: Path | str,
    out: Path | str,
    *,
    env: Path | str | None = None,
    sh: Path | str | None = None,
    point: tuple[float, float, float] | None = None,
    config: RelightConfig | None = None,
    renders: bool = False,
    progress: Progress | None = None,
) -> list[Row]:
    """Relight the tracked head of a result folder and write `out`, whole or not at all; returns a table.

    Exactly one of `env` (a map), `sh` (a file of coefficients) and `point` (metres from the head's middle along the
    camera's axes) says what the light is. renders: also write `renders/00000.png`..., RGBA with straight alpha.
    Raises `InputError`, in one sentence, for what cannot be used.
    """
    config, report = config or RelightConfig(), progress or (lambda stage, done, total: None)
    if sum(given is not None for given in (env, sh, point)) != 1:
        raise InputError("Say what the light is by exactly one of --env FILE, --sh FILE and --point x,y,z.")
    if Path(out).suffix.lower() in (".mp4", ".png", ".mov", ".avi"):
        raise InputError(f"The output is a folder, and {Path(out).name!r} looks like a file: leave its suffix out.")
    result = TrackResult.load(folder)
    plan = plan_shots(result, config)
    fill = None
    if env is not None:
        light: Light = load_environment(env)
    elif sh is not None:
        light = load_sh(sh)
    else:
        assert point is not None
        light = lamp_at(point, plan, result)
        fill = dim_room(light, plan.pivot)
    with terminate_as_interrupt(), atomic_folder(out, RELIT_FILES) as target:
        report("light", 0, 1)
        relighting = Relighting(result, light, config, plan, fill=fill)
        report("light", 1, 1)
        kept: list[tuple[Shot, np.ndarray]] = []
        began = time.perf_counter()
        picks = {int((i + 0.5) * len(plan.shots) / 4) for i in range(4)}

        def frames() -> Iterator[np.ndarray]:
            behind: tuple[float, np.ndarray] | None = None
            for i, shot in enumerate(plan.shots):
                picture = relighting.picture(shot)
                if behind is None or behind[0] != shot.turn:
                    lit = relighting.light_of(shot)
                    behind = (shot.turn, backdrop(lit, shot.camera, plan.size, relighting.factor))
                if renders:
                    write_png(target / "renders" / f"{i:05d}.png", straight_rgba(picture))
                shown = composed(picture, behind[1])
                if i in picks:
                    kept.append((shot, shown))
                yield shown
                report("pictures", i + 1, len(plan.shots))

        notes = write_video(target / RELIT_FILES[0], frames(), fps=plan.fps)
        seconds = (time.perf_counter() - began) / len(plan.shots)
        write_png(target / "preview.png", preview(relighting, kept))
        facts = _facts(folder, env, sh, point, config, plan, relighting)
        with atomic_write(target / "relight.json") as path:
            path.write_text(json.dumps(facts | {"seconds_per_frame": seconds}, indent=2) + "\n", encoding="utf-8")
    shown = f"{plan.size[1]} x {plan.size[0]}"
    return [
        ("pictures", f"{len(plan.shots)} of {shown} px", None),
        ("seconds per frame", f"{seconds:.3g}", None),
        ("light multiplied by", f"{relighting.factor:.3g}", None),
        *(("note", note, None) for note in notes),
    ]


def _facts(
    folder: Path | str,
    env: Path | str | None,
    sh: Path | str | None,
    point: tuple[float, float, float] | None,
    config: RelightConfig,
    plan: Plan,
    relighting: Relighting,
) -> dict[str, Any]:
    """What `relight.json` says: enough to make the pictures again, and to lay them over the input."""
    window = plan.window
    return {
        "result": str(folder),
        "light": {"env": None if env is None else str(env), "sh": None if sh is None else str(sh), "point": point},
        "light_multiplied_by": relighting.factor,
        "config": dataclasses.asdict(config),
        "window": None if window is None else [window.left, window.top, window.width, window.height],
        "frames": [shot.frame for shot in plan.shots],
        "fps": plan.fps,
        "facejax": facejax.__version__,
    }


def preview(relighting: Relighting, kept: list[tuple[Shot, np.ndarray]]) -> UInt8[np.ndarray, "h w 3"]:
    """Pictures side by side; in a corner of each a mirror ball in the same light, unless that is a lamp."""
    pictures = []
    for shot, shown in kept:
        picture, light = shown.copy(), relighting.light_of(shot)
        if not isinstance(light, NearLights):
            side, margin = min(shown.shape[:2]) // 5, min(shown.shape[:2]) // 32
            ball = mirror_ball(light, side)
            ball[..., :3] *= relighting.factor
            top = shown.shape[0] - margin - side
            corner = picture[top : top + side, margin : margin + side]
            alpha = ball[..., 3:]
            colour = alpha * tone(ball[..., :3] / np.maximum(alpha, 1e-4))
            corner[...] = linear_to_srgb_bytes(colour + (1 - alpha) * srgb_to_linear(corner.astype(np.float32) / 255))
        pictures.append(picture)
    return np.concatenate(pictures, axis=1)
