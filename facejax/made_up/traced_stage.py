"""Path-traced test images for a capture of the virtual light stage, under the stage's own lights.

The frames of a capture are drawn by a fast renderer, which is also what fitting and training resemble: scores on such
frames alone would flatter both. These frames show faces and poses that no frame of the capture holds, drawn by another
renderer on real relief (`StageStudio`), in the capture's layout. Their files are called `frames/traced-NNN.npz`.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from facejax.data.captures import Entry, LightStage, head_to_camera, mean_over_views, write_facts
from facejax.data.files import atomic_write
from facejax.geometry.arrays import read_npz
from facejax.geometry.errors import InputError
from facejax.geometry.records import Camera, Pose
from facejax.made_up.light_stage import LightStageSpec, perform, subject_of
from facejax.made_up.studio import StageStudio, sky_of_lights
from facejax.renderers.texture import sample_bilinear
from facejax.renderers.uv import Chart, locate_texels, texture_chart, texture_from

TRACED = "frames/traced-"
"""How the names of path-traced entries begin."""

_PER_EXPRESSION = 3  # fully lit, one group, coloured lights of several groups

Progress = Callable[[str, int, int], None]


def is_traced(entry: Entry) -> bool:
    """Whether an entry of a capture was path traced, not drawn by the fast renderer."""
    return entry.file.startswith(TRACED)


def spec_in(facts: dict[str, Any], folder: Path | str) -> LightStageSpec:
    """The spec that a capture's facts tell; `InputError` where they tell none."""
    told = facts.get("spec")
    fields = {f.name for f in dataclasses.fields(LightStageSpec)}
    if not isinstance(told, dict) or not fields >= told.keys():
        raise InputError(
            f"The capture {folder} is not of a virtual light stage of this version, so its person cannot be made "
            "again: give a folder that `facejax data light-stage` has made."
        )
    return LightStageSpec(**told)


def add_test_images(
    folder: Path | str, count: int = 15, *, samples: int = 256, progress: Progress | None = None
) -> list[Entry]:
    """Append `count` path-traced entries of the split "test", seen by all cameras, to a capture; returns them.

    They take turns: fully lit, one group alone, and several groups, each of its own colour and strength. Every three
    show one held-out face. Entries that are there already are kept, so a run that was stopped goes on, and a second run
    adds only what is missing. Raises `InputError` for a capture of another kind, a missing frame, or a missing LLVM.
    """
    if count < 1 or samples < 1:
        raise InputError(f"Test images need a count and samples of at least 1, got {count} and {samples}.")
    stage = LightStage(folder)
    tracer = StageTracer(stage, samples)
    entries: list[Entry] = []
    for i in range(count):
        number = tracer.spec.expressions + i // _PER_EXPRESSION  # beyond those that the capture holds
        name, code = _pattern(tracer.spec, i)
        entry = Entry(f"{TRACED}{i:03d}.npz", expression=number, split="test", pattern=name, tracked=True)
        if not (stage.folder / entry.file).is_file():
            frame = tracer.frame(number, code)
            with atomic_write(stage.folder / entry.file) as path:
                np.savez(path, **frame)  # type: ignore[arg-type]
        entries.append(entry)
        if progress is not None:
            progress("test images", i + 1, count)
    added = {e.file for e in entries}
    facts = {k: v for k, v in stage.facts.items() if k not in ("format", "version", "entries")}
    write_facts(stage.folder, [*(e for e in stage.entries if e.file not in added), *entries], **facts)
    return entries


def _pattern(spec: LightStageSpec, i: int) -> tuple[str, np.ndarray]:
    """(name, strength of each group in red, green and blue) of the i-th test entry."""
    groups, kind = spec.groups, i % _PER_EXPRESSION
    rng = np.random.default_rng([spec.seed, 4, i])
    if kind == 0:
        return "full", np.ones((groups, 3))
    if kind == 1:
        group = int(rng.integers(groups))
        return f"group-{group:02d}", np.repeat(np.eye(groups)[group][:, None], 3, axis=1)
    on = rng.permutation(groups) < rng.integers(2, max(3, groups // 2))
    colour = rng.uniform(0.3, 1.0, (groups, 3))
    return f"mixture-traced-{i:03d}", on[:, None] * rng.uniform(0.3, 1.0, (groups, 1)) * colour


class StageTracer:
    """Draws any face of a capture's subject under any light of its stage."""

    def __init__(self, stage: LightStage, samples: int = 256) -> None:
        self.stage = stage
        self.spec = spec_in(stage.facts, stage.folder)
        held = read_npz(stage.folder / "lights.npz", "make the capture again", ("directions", "group", "weight"))
        self.directions, self.group, self.weight = held["directions"], held["group"], held["weight"]
        self.subject = subject_of(self.spec)
        if self.subject.topology.n_vertices != stage.topology.n_vertices:
            raise InputError(
                f"The head {self.spec.head!r} has {self.subject.topology.n_vertices} vertices here and "
                f"{stage.topology.n_vertices} in the capture {stage.folder}: install the one that made it."
            )
        self.studio = StageStudio(
            self.subject, skin=self.spec.skin, seed=self.spec.seed, size=stage.image_size, samples=samples,
            texture_size=2 * stage.texture_size,
        )  # fmt: skip
        self.chart = texture_chart(stage.topology, stage.texture_size)
        self._unwrap = jax.jit(lambda image, v, pose, camera: _unwrapped(image, v, pose, camera, stage, self.chart))

    def frame(self, number: int, code: Float[np.ndarray, "g 3"]) -> dict[str, np.ndarray]:
        """The arrays of an entry, see `FRAME_KEYS`: the face `number` of `perform` under groups of these colours."""
        expression, head = perform(self.subject, self.spec, number)
        identity, _ = self.subject.init_code()
        vertices = np.asarray(self.subject.vertices(self.subject.params, identity, expression))
        shots = self.shots(vertices, head, code, seed=number)
        image = np.stack([colour for colour, _ in shots])
        unwrapped = [self._unwrap(*x) for x in self._views(shots, vertices, head)]
        textures, seen = (np.stack(x) for x in zip(*jax.device_get(unwrapped), strict=True))
        mean = mean_over_views(textures, seen.astype(np.float32) / 255)
        return {
            "image": image.astype(np.float16),
            "mask": np.stack([np.round(255 * mask) for _, mask in shots]).astype(np.uint8),
            "texture": textures.astype(np.float16),
            "seen": seen.astype(np.uint8),
            "mean_texture": mean.astype(np.float16),
            "vertices": vertices,
            "light": np.asarray(code, np.float32),
            "rotation": np.asarray(head.rotation),
            "translation": np.asarray(head.translation),
            "gaze": np.asarray(expression.gaze),
            "activations": np.asarray(self.subject.full_activations(expression)),
        }

    def shots(
        self, vertices: np.ndarray, head: Pose, code: Float[np.ndarray, "g 3"], seed: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """(linear radiance (H, W, 3), coverage (H, W)) of every camera; vertices in the head frame."""
        power = code[self.group] * self.weight[:, None]
        self.studio.lit_by(sky_of_lights(self.directions, power))
        in_stage = vertices @ np.asarray(head.rotation).T + np.asarray(head.translation)
        self.studio.pose(in_stage)
        made = []
        for k in range(self.stage.n_cameras):
            rotation, translation, focal, centre = (
                self.stage.cameras[name][k] for name in ("rotation", "translation", "focal", "principal_point")
            )
            intrinsics = np.array([[focal[0], 0, centre[0]], [0, focal[1], centre[1]], [0, 0, 1]])
            shot = self.studio.shoot(intrinsics, seed=1009 * seed + k, rotation=rotation, translation=translation)
            made.append((shot.colour, shot.coverage))
        return made

    def _views(self, shots: list[tuple[np.ndarray, np.ndarray]], vertices: np.ndarray, head: Pose) -> list[Any]:
        views = []
        for k, (colour, mask) in enumerate(shots):
            rotation, translation, focal, centre = (
                self.stage.cameras[name][k] for name in ("rotation", "translation", "focal", "principal_point")
            )
            camera = Camera(focal=jnp.asarray(focal), principal_point=jnp.asarray(centre))
            image = jnp.concatenate([jnp.asarray(colour), jnp.asarray(mask)[..., None]], axis=-1)
            views.append((image, jnp.asarray(vertices), head_to_camera(head, rotation, translation), camera))
        return views


def _unwrapped(
    image: Float[Array, "h w 4"], vertices: Array, pose: Pose, camera: Camera, stage: LightStage, chart: Chart
) -> tuple[Array, Array]:
    """(texture (S, S, 3), seen (S, S) in 0 to 255) of a picture with its coverage, as a capture stores them."""
    xy, confidence = locate_texels(
        vertices, pose, camera, stage.topology.faces, stage.image_size, chart.triangles, chart.weights
    )
    values = sample_bilinear(image, xy)
    seen = jnp.round(255 * jnp.where(values[:, 3] > 0.98, confidence, 0.0))  # black background is no skin
    texture = texture_from(chart, jnp.where(seen[:, None] > 0, values[:, :3], 0.0))
    return texture, texture_from(chart, seen[:, None])[..., 0]
