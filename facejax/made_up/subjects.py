"""Made-up people whose every point is known: who they are, how they move, and what their surface is like.

A subject is a random person of some head model, bent by a smooth asymmetric warp that no identity mode holds. Looks are
functions of points of the neutral head, so a renderer of texels and a path tracer of a subdivided mesh see the same
skin. Everything follows from a seed.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Int

from facejax.geometry.meshes import normalise
from facejax.models.morphable import Expression, MorphableHead
from facejax.objectives.metrics import similarity_align

_EYE_SIZE = 0.96  # of a subject's eyeballs, see `make_subject`


@runtime_checkable
class MotionSpec(Protocol):
    """What `make_motion` needs to know about a performance; `TruthSpec` of `facejax.made_up.truth_clip` is one."""

    @property
    def seed(self) -> int: ...
    @property
    def frames(self) -> int: ...
    @property
    def fps(self) -> float: ...
    @property
    def moving(self) -> bool:
        """False: head and face stand still."""
        ...

    @property
    def yaw_degrees(self) -> float:
        """The head turns from one side to the other, this far each way."""
        ...

    @property
    def pitch_degrees(self) -> float: ...
    @property
    def roll_degrees(self) -> float: ...


# -- who they are and how they move ------------------------------------------------------------------------------------


def make_subject(head: MorphableHead, seed: int, identity_scale: float = 1.0, warp_mm: float = 2.0) -> MorphableHead:
    """A random person of `head`'s family, then warped out of it: a head whose mean is that person.

    The warp is a sum of broad Gaussian bumps (2.5 to 5 cm) in random directions, without symmetry, scaled to `warp_mm`
    RMS over the narrow face after the best similarity is taken out. Around each eye it is constant, so that eyeballs
    stay round; they are made a little smaller, or the corneas of some random persons would poke through closed lids.
    """
    rng = np.random.default_rng(seed)
    p = head.params
    shared, _ = head.init_code()
    shape = rng.normal(scale=identity_scale, size=len(p.identity_basis)).clip(-2.5, 2.5).astype(np.float32)
    person = np.asarray(head.neutral(p, dataclasses.replace(shared, shape=jnp.asarray(shape))), np.float64)
    pivots = np.asarray(p.eye_pivot + np.einsum("i,isc->sc", shape, p.eye_pivot_basis), np.float64)

    narrow = np.flatnonzero(np.asarray(head.regions["narrow_face"]) > 0.5)
    centres = person[rng.choice(narrow, 16)]
    widths = rng.uniform(0.025, 0.05, 16)
    pushes = rng.normal(size=(16, 3))

    def bumps(x: np.ndarray) -> np.ndarray:
        squared = ((x[:, None] - centres) ** 2).sum(axis=2)
        return np.exp(-squared / (2 * widths**2)) @ pushes

    def warp(x: np.ndarray) -> np.ndarray:
        field, at_eyes = bumps(x), bumps(pivots)
        for pivot, move in zip(pivots, at_eyes, strict=True):
            keep = np.clip((np.linalg.norm(x - pivot, axis=1) - 0.018) / 0.02, 0, 1)[:, None]
            keep = keep**2 * (3 - 2 * keep)
            field = keep * field + (1 - keep) * move
        return field

    field = warp(person)
    before, after = person[narrow], person[narrow] + 1e-3 * field[narrow]
    residual = similarity_align(after, before).apply(after) - before
    gain = 1e-3 * (1e-3 * warp_mm) / np.sqrt((residual**2).sum(axis=1).mean())
    bent, bent_pivots = person + gain * field, pivots + gain * warp(pivots)
    for side, pivot in enumerate(bent_pivots):
        bent -= (1 - _EYE_SIZE) * np.asarray(p.eye_weight)[:, side : side + 1] * (bent - pivot)
    params = dataclasses.replace(
        p, mean=jnp.asarray(bent, jnp.float32), eye_pivot=jnp.asarray(bent_pivots, jnp.float32)
    )
    return dataclasses.replace(head, params=params)


def make_motion(head: MorphableHead, spec: MotionSpec) -> tuple[Expression, np.ndarray]:
    """A short performance: (expressions of all frames, head angles (F, 3) as pitch, yaw, roll in rad).

    The head turns from -yaw to +yaw, nods and tilts; the mouth speaks at about three and a half syllables a second; two
    blinks close the lids fully for about four frames; the gaze jumps between targets.
    """
    f, t = spec.frames, np.arange(spec.frames) / spec.fps
    phase = np.linspace(0, 1, f)
    rng = np.random.default_rng(spec.seed + 1)
    activations = np.zeros((f, len(head.expression_names)))

    def act(value: np.ndarray, *names: str) -> None:
        for i, name in enumerate(head.expression_names):
            if name in names or name.removesuffix("Left").removesuffix("Right") in names:
                activations[:, i] += value

    def wave(hertz: float) -> np.ndarray:
        return 0.5 - 0.5 * np.cos(2 * np.pi * (hertz * t + rng.uniform()))

    gaze, eyelids, angles = np.zeros((f, 2, 2)), np.zeros((f, 2)), np.zeros((f, 3))
    if spec.moving:
        syllables = wave(3.5) * (0.35 + 0.65 * wave(0.9))
        vowel = wave(1.6)  # from spread to rounded
        act(0.55 * syllables, "jawOpen")
        act(0.45 * vowel * wave(2.1), "mouthFunnel")
        act(0.35 * vowel, "mouthPucker")
        act(0.4 * (1 - vowel), "mouthSmile", "mouthStretch")
        act(0.3 * syllables, "mouthLowerDown", "mouthUpperUp")
        act(0.5 * wave(0.8), "browInnerUp")
        act(0.35 * wave(0.6), "browOuterUpLeft")  # one side only: faces are not symmetric in motion either
        act(0.3 * wave(0.7), "cheekSquint")
        blink = np.array([0.45, 1.0, 0.7, 0.2])
        for start in sorted({int(0.3 * f), int(0.72 * f)}):
            n = max(0, min(len(blink), f - start))
            eyelids[start : start + n] = blink[:n, None]
        for at, target in zip((0.0, 0.2, 0.5, 0.8), rng.uniform([-0.3, -0.12], [0.3, 0.12], (4, 2)), strict=True):
            jump = np.clip((phase - at) * f / 2, 0, 1)[:, None, None]
            gaze = gaze + jump * (target - gaze)
        angles[:, 1] = -np.radians(spec.yaw_degrees) * np.cos(np.pi * phase)
        angles[:, 0] = np.radians(spec.pitch_degrees) * np.sin(2 * np.pi * phase)
        angles[:, 2] = np.radians(spec.roll_degrees) * np.sin(2 * np.pi * (1.3 * phase + 0.1))
    else:
        angles[:] = np.radians([3.0, 12.0, -2.0])
    arrays = (jnp.asarray(x, jnp.float32) for x in (activations, gaze, eyelids))
    return jax.vmap(lambda a, g, l: Expression(activations=a, gaze=g, eyelids=l))(*arrays), angles


def turn(pitch: float, yaw: float, roll: float) -> np.ndarray:
    """Rotation (3, 3) by roll about z, then pitch about x, then yaw about y, rad."""
    (sx, cx), (sy, cy), (sz, cz) = ((np.sin(a), np.cos(a)) for a in (pitch, yaw, roll))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_y @ about_x @ about_z


# -- denser meshes -----------------------------------------------------------------------------------------------------


def subdivide(faces: Int[np.ndarray, "t 3"], n_vertices: int) -> tuple[np.ndarray, np.ndarray]:
    """Split each triangle into four at the middles of its edges.

    Returns the new faces (4T, 3) and pairs of vertices (E, 2): their means are the vertices from number n_vertices on.
    """
    edges = np.sort(np.stack([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]], axis=1).reshape(-1, 2), axis=1)
    pairs, new = np.unique(edges, axis=0, return_inverse=True)
    ab, bc, ca = (n_vertices + new.reshape(-1, 3)).T
    a, b, c = faces.T
    quarters = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    return np.concatenate([np.stack(q, axis=1) for q in quarters]), pairs


@dataclasses.dataclass(frozen=True)
class SubdividedPart:
    """A mesh of one material: vertices of the head, then the middles of edges, level by level."""

    used: np.ndarray
    pairs: tuple[np.ndarray, ...]
    faces: np.ndarray

    @classmethod
    def of(cls, faces: np.ndarray, levels: int) -> "SubdividedPart":
        used, local = np.unique(faces, return_inverse=True)
        faces, pairs, n = local.reshape(-1, 3), [], len(used)
        for _ in range(levels):
            faces, new = subdivide(faces, n)
            pairs.append(new)
            n += len(new)
        return cls(used=used, pairs=tuple(pairs), faces=faces)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values at the head's vertices (V, ...), at this mesh's; so the surface is the head's own, only denser."""
        values = np.asarray(values, np.float32)[self.used]
        for pairs in self.pairs:
            values = np.concatenate([values, values[pairs].mean(axis=1)])
        return values


# -- looks -------------------------------------------------------------------------------------------------------------


def smooth_noise(points: Float[np.ndarray, "n 3"], wavelength: float, rng: np.random.Generator) -> np.ndarray:
    """(N,) random field of unit variance that varies over about `wavelength` (metres): a sum of cosines."""
    waves = 48
    direction = rng.normal(size=(waves, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    frequency = 2 * np.pi / (wavelength * rng.uniform(0.7, 1.5, (waves, 1)))
    phase = rng.uniform(0, 2 * np.pi, waves)
    return np.sqrt(2 / waves) * np.cos(points @ (direction * frequency).T + phase).sum(axis=1)


def paint_skin(
    points: np.ndarray, regions: dict[str, np.ndarray], skin: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(albedo (N, 3) linear, roughness (N,)) at points of the neutral head (metres, head frame).

    Melanin and blood by Beer's law, patchy; brows and a cap of hair, lips, freckles, stubble below the nose.
    """
    rng = np.random.default_rng(seed + 2)
    melanin = 0.12 + 1.3 * skin + 0.05 * smooth_noise(points, 0.03, rng) + 0.04 * smooth_noise(points, 0.008, rng)
    freckles = np.clip(smooth_noise(points, 0.005, rng) - 1.6, 0, 1) * np.clip(
        smooth_noise(points, 0.05, rng) + 0.6, 0, 1
    )
    lips = regions["lips"]
    blood = 0.5 + 0.12 * smooth_noise(points, 0.02, rng) + 0.35 * regions["nose"] + 0.9 * lips
    melanin = np.maximum(melanin + 0.8 * freckles * (1 - lips), 0.05)
    albedo = 0.86 * np.exp(
        -melanin[:, None] * [0.45, 0.85, 1.35] - np.maximum(blood, 0.1)[:, None] * [0.12, 0.62, 0.55]
    )

    # The beard's shadow: fine dots on jaw and upper lip, denser away from the mouth.
    mouth = points[lips > 0.5].mean(axis=0) if (lips > 0.5).any() else np.zeros(3)
    low = np.clip((mouth[1] + 0.022 - points[:, 1]) / 0.012, 0, 1) * np.clip(
        (points[:, 2] - mouth[2] + 0.09) / 0.03, 0, 1
    )
    dots = np.clip(smooth_noise(points, 0.0022, rng) + 0.2, 0, 1)
    stubble = 0.4 * low * dots * (1 - lips) * (1 - regions["neck"])
    strands = np.clip(0.8 + 0.2 * smooth_noise(points, 0.003, rng), 0, 1)
    hair = np.clip(np.maximum(regions["brows"] * strands, regions["scalp"]), 0, 1)
    dark = np.array([0.035, 0.022, 0.014])
    cover = np.clip(np.maximum(hair, stubble), 0, 1)[:, None]
    albedo = (1 - cover) * albedo + cover * dark
    roughness = 0.42 + 0.06 * smooth_noise(points, 0.012, rng) - 0.12 * lips + 0.25 * hair
    return np.clip(albedo, 0.005, 0.95), np.clip(roughness, 0.2, 0.8)


def paint_eyes(points: np.ndarray, pivots: np.ndarray, seed: int) -> np.ndarray:
    """Albedo (N, 3) of the eyeballs: pupil, streaked iris with a dark rim, off-white sclera reddening to the back."""
    rng = np.random.default_rng(seed + 3)
    side = np.argmin([np.linalg.norm(points - p, axis=1) for p in pivots], axis=0)
    ray = points - pivots[side]
    distance = np.hypot(ray[:, 0], ray[:, 1])  # from the axis of the eye at rest, metres
    behind = ray[:, 2] < 0
    angle = np.arctan2(ray[:, 1], ray[:, 0])
    colours = np.array([[0.10, 0.17, 0.22], [0.16, 0.09, 0.04], [0.10, 0.15, 0.07]])
    iris = colours[rng.integers(3)] * (1 + 0.35 * np.cos(23 * angle + 3 * np.cos(5 * angle)))[:, None]
    iris = iris * np.clip((0.0062 - distance) / 0.0012, 0.25, 1)[:, None]
    sclera = np.array([0.70, 0.66, 0.62]) * np.clip(1.25 - distance / 0.03, 0.5, 1)[:, None] ** [0.3, 1.0, 1.0]

    def step(radius: float) -> np.ndarray:
        return np.clip((radius - distance) / 0.0005 + 0.5, 0, 1)[:, None] * ~behind[:, None]

    albedo = sclera + step(0.0058) * (iris - sclera)
    return albedo + step(0.0019) * (0.005 - albedo)


def sky(seed: int, height: int = 64) -> np.ndarray:
    """(H, 2H, 3) linear latitude-longitude picture of a hazy sky with a soft bright patch over brown ground."""
    rng = np.random.default_rng(seed + 4)
    up = np.cos(np.linspace(0, np.pi, height))[:, None]
    around = np.linspace(0, 2 * np.pi, 2 * height)[None]
    blend = np.clip(0.5 + 4 * up, 0, 1)[..., None]
    colour = blend * [0.75, 0.9, 1.1] + (1 - blend) * [0.5, 0.42, 0.34]
    colour = colour * (1 + 0.2 * np.cos(3 * around + rng.uniform(0, 6)) * np.sqrt(1 - up**2))[..., None]
    patch = np.exp(6 * (np.cos(around - rng.uniform(0, 6)) * np.sqrt(1 - up**2) * 0.9 + 0.4 * up - 1))
    return (colour + 4 * patch[..., None] * [1.0, 0.93, 0.82]).astype(np.float32)


# -- relief and gloss --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Surface:
    """What a head is made of, at N points of it."""

    albedo: Float32[np.ndarray, "n 3"]
    """Linear diffuse reflectance, in [0, 1]."""
    specular: Float32[np.ndarray, " n"]
    """Fresnel reflectance at normal incidence."""
    roughness: Float32[np.ndarray, " n"]
    """Width alpha of the GGX lobe; bumps too small for the asked `spacing` are in it."""
    height: Float32[np.ndarray, " n"]
    """Metres along the normal."""
    gradient: Float32[np.ndarray, "n 3"]
    """Of the height in coordinates of the neutral head; `relief_normals` makes normals of it."""


def surface_at(
    points: Float[np.ndarray, "n 3"],
    regions: Mapping[str, np.ndarray],
    pivots: Float[np.ndarray, "2 3"],
    skin: float,
    seed: int,
    spacing: float = 0.0,
) -> Surface:
    """Looks of points of the neutral head (metres, head frame): skin, eyes, teeth and gums, by their regions.

    regions: masks in [0, 1] at the points; give all points of the skin at once, mouth and nose are found among them.
    pivots: centres of the (left, right) eye. skin: 0 very light, 1 very dark. spacing: metres between samples of
    whoever asks; bumps that these could not show become roughness, as they do to the eye.
    """
    on = {k: np.asarray(v, np.float64) for k, v in regions.items()}
    points, pivots = np.asarray(points, np.float64), np.asarray(pivots, np.float64)
    albedo, width = paint_skin(points, on, skin, seed)
    rng = np.random.default_rng(seed + 7)
    forehead = _window(points[:, 1] - pivots[:, 1].mean(), 0.025, 0.07, 0.01) * (1 - on["scalp"])
    oily = 0.5 * on["nose"] + 0.6 * on["lips"] + 0.35 * forehead
    specular = 0.028 * (1 + oily) * (1 + 0.15 * smooth_noise(points, 0.006, rng)) * (1 - 0.4 * on["scalp"])
    height, gradient, lost = _relief(points, on, pivots, seed, spacing)
    # Beckmann's alpha squared is twice the variance of slopes along an axis, and lobes add by it
    roughness = np.sqrt((width**2 + 0.06 - 0.03 * forehead) ** 2 + 2 * lost)

    is_eye = np.maximum(on["eyeballs"], on["iris"]) > 0.5
    is_tooth = (on["teeth"] > 0.5) & ~is_eye
    is_gum = (on["gums"] > 0.5) & ~is_eye & ~is_tooth
    if is_eye.any():
        albedo[is_eye] = paint_eyes(points[is_eye], pivots, seed)
    for part, colour, fresnel, alpha in (
        (is_eye, None, 0.04, 0.1),
        (is_tooth, (0.62, 0.56, 0.46), 0.05, 0.15),
        (is_gum, (0.33, 0.09, 0.08), 0.04, 0.2),
    ):
        if colour is not None:
            albedo[part] = colour
        specular[part], roughness[part] = fresnel, alpha
    return Surface(
        albedo=albedo.astype(np.float32),
        specular=np.clip(specular, 0.005, 0.1).astype(np.float32),
        roughness=np.clip(roughness, 0.05, 1.0).astype(np.float32),
        height=height.astype(np.float32),
        gradient=gradient.astype(np.float32),
    )


def skin_relief(
    points: Float[np.ndarray, "n 3"],
    regions: Mapping[str, np.ndarray],
    pivots: Float[np.ndarray, "2 3"],
    seed: int,
    spacing: float = 0.0,
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n 3"]]:
    """(height in metres, its gradient) of pores, uneven skin and wrinkles, at points of the neutral head; 0 off skin.

    Pores are 1 to 1.8 mm apart and about 0.03 mm high; forehead lines, crow's feet and smile lines 0.1 to 0.2 mm deep.
    The gradient is that of the height as a function of space, the skin's own border left out. The rest as in
    `surface_at`.
    """
    on = {k: np.asarray(v, np.float64) for k, v in regions.items()}
    height, gradient, _ = _relief(np.asarray(points, np.float64), on, np.asarray(pivots, np.float64), seed, spacing)
    return height, gradient


def relief_normals(
    normals: Float[Array, "*n 3"], rest_normals: Float[Array, "*n 3"], gradient: Float[Array, "*n 3"]
) -> Float[Array, "*n 3"]:
    """Unit normals of a surface with relief: `gradient`, known on the neutral head, is carried along as skin moves.

    normals, rest_normals: unit, of the smooth surface now and at rest. Skin is taken to turn by the least rotation that
    brings one onto the other, and not to stretch.
    """
    slope = gradient - jnp.sum(gradient * rest_normals, axis=-1, keepdims=True) * rest_normals
    middle = normals + rest_normals
    cosine = jnp.sum(normals * rest_normals, axis=-1, keepdims=True)
    turned = slope - jnp.sum(slope * normals, axis=-1, keepdims=True) / jnp.maximum(1 + cosine, 1e-3) * middle
    return normalise(normals - turned)


_BUMPS = ((0.0010, 0.0018, 96, 2e-5), (0.003, 0.007, 64, 4e-5))  # wavelengths from, to; waves; RMS height; metres


def _relief(
    points: np.ndarray, regions: Mapping[str, np.ndarray], pivots: np.ndarray, seed: int, spacing: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(height, gradient, variance of the slopes along an axis that are finer than the spacing)."""
    mask = regions["skin"] * np.prod([1 - regions[k] for k in ("lips", "eyeballs", "teeth", "gums")], axis=0)
    waves, amplitudes, lost = _bumps(seed, spacing)
    phases = np.random.default_rng(seed + 9).uniform(0, 2 * np.pi, len(waves))
    anchors = _anchors(points, regions, pivots)

    def height(x: Array) -> Array:
        bumps = jnp.sum(jnp.asarray(amplitudes, jnp.float32) * jnp.cos(jnp.asarray(waves, jnp.float32) @ x + phases))
        return bumps + _wrinkles(x, anchors)

    value, slope = _blocks(jax.value_and_grad(height), points)
    return value * mask, slope * mask[:, None], lost * mask


def _blocks(function: Callable[[Array], tuple[Array, Array]], points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    value, slope = jax.jit(lambda x: jax.lax.map(function, x, batch_size=4096))(jnp.asarray(points, jnp.float32))
    return np.asarray(value, np.float64), np.asarray(slope, np.float64)


def _bumps(seed: int, spacing: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Wave vectors (w, 3) rad/m, their amplitudes in metres, and the variance of slopes that the spacing takes away."""
    rng = np.random.default_rng(seed + 8)
    waves, amplitudes, lost = [], [], 0.0
    for shortest, longest, count, rms in _BUMPS:
        direction = rng.normal(size=(count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        length = rng.uniform(shortest, longest, count)
        full = rms * np.sqrt(2 / count)
        # a wave needs a little more than two samples: it fades out between 3 and 2 of them
        kept = np.clip(length / max(spacing, 1e-9) - 2, 0, 1) * full
        waves.append(2 * np.pi / length[:, None] * direction)
        amplitudes.append(kept)
        lost += float(((2 * np.pi / length) ** 2 * (full**2 - kept**2)).sum() / 2 / 3)  # a third along each axis
    return np.concatenate(waves), np.concatenate(amplitudes), lost


def _anchors(points: np.ndarray, regions: Mapping[str, np.ndarray], pivots: np.ndarray) -> np.ndarray:
    """(3, 2), x and y: centre of an eye, corner of the mouth, wing of the nose, on the subject's left."""
    eyes = np.array([np.abs(pivots[:, 0]).mean(), pivots[:, 1].mean()])
    lips, nose = points[regions["lips"] > 0.5], points[regions["nose"] > 0.5]
    if not len(lips) or not len(nose):
        return np.stack([eyes] * 3).astype(np.float32)
    mouth = np.array([np.abs(lips[:, 0]).max(), np.median(lips[:, 1])])
    wing = np.array([np.abs(nose[:, 0]).max(), nose[:, 1].min() + 0.006])
    return np.stack([eyes, mouth, wing]).astype(np.float32)


def _wrinkles(x: Array, anchors: np.ndarray) -> Array:
    """Height of the wrinkles at a point, metres; left and right alike."""
    (eye_x, eye_y), (mouth_x, mouth_y), (wing_x, wing_y) = anchors
    side = jnp.sqrt(x[0] ** 2 + 1e-10)
    front = jax.nn.sigmoid((x[2] - 0.03) / 0.008)

    def grooves(phase: Array, depth: float) -> Array:
        return -depth * jnp.exp(2.5 * (jnp.cos(phase) - 1))

    up = x[1] - eye_y
    bend = 0.0025 * jnp.cos(side / 0.016) + 0.001 * jnp.sin(x[0] / 0.007)
    lines = grooves(2 * math.pi * (up + bend) / 0.0085, 1.6e-4)
    forehead = lines * _window(up, 0.030, 0.066, 0.006) * _window(side, -1.0, 0.042, 0.01)

    out, above = side - eye_x - 0.012, up + 0.001
    radius = jnp.sqrt(out**2 + above**2 + 1e-10)
    angle = jnp.arctan2(above, out)
    fan = _window(radius, 0.008, 0.022, 0.004) * _window(angle, -0.75, 0.75, 0.2)
    feet = grooves(2 * math.pi * angle / 0.34, 1.1e-4) * fan

    along = (wing_y - x[1]) / max(float(wing_y - mouth_y), 1e-3)
    curve = wing_x + (mouth_x + 0.007 - wing_x) * along + 0.006 * along * (1 - along)
    smile = -2e-4 * jnp.exp(-0.5 * ((side - curve) / 0.0016) ** 2) * _window(along, 0.0, 1.1, 0.2)
    return front * (forehead + feet + smile)


def _window(x: ArrayLike, low: float, high: float, soft: float) -> Any:
    """1 between low and high, 0 outside, over `soft` within each border; once differentiable. Of numpy or JAX."""
    xp = np if isinstance(x, np.ndarray) else jnp
    a, b = xp.clip((x - low) / soft, 0, 1), xp.clip((high - x) / soft, 0, 1)
    return a * a * (3 - 2 * a) * b * b * (3 - 2 * b)
