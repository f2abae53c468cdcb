"""The deep appearance model of one person, from the fully lit frames of a capture (Lombardi et al. 2018).

An example is one camera's view of one entry. The encoder reads the mean texture over all cameras and the tracked mesh;
the decoder answers with the mesh and the texture as that camera sees it. `deep-lighting` trains on what comes out.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from facejax.data.captures import Capture, View, select
from facejax.data.multiface import open_capture
from facejax.data.sources import INDEX, Example, RecordFolder, Source
from facejax.geometry.cameras import view_direction
from facejax.geometry.colour import linear_to_srgb
from facejax.geometry.errors import InputError
from facejax.geometry.records import PRNGKey, PyTree
from facejax.models.deep_appearance import (
    PRESETS,
    Appearance,
    CodeDistribution,
    DeepAppearanceConfig,
    DeepAppearanceModel,
    sample_code,
    statistics,
)
from facejax.objectives.deep_appearance import AppearanceWeights, appearance_terms
from facejax.training.config import Config, Machine, Run
from facejax.training.recipe import Preset, Recipe, Terms

_MEMORY_SHARE = 0.4
"""Of the machine's memory, how much the examples of a split may take; if they need more they are read again."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How networks learn: Adam."""

    rate: float = 3e-4
    """Highest learning rate."""
    decay: float = 0.0
    """Factor on the rate every `decay_every` steps; 0 rises over the first twentieth and falls to 0 along a cosine."""
    decay_every: int = 4000
    """Steps between two decays."""
    clip: float = 10.0
    """Largest norm of the gradient."""

    def optimiser(self, steps: int) -> optax.GradientTransformation:
        """Adam with this schedule over so many steps."""
        if self.decay:
            rate: Any = optax.exponential_decay(self.rate, self.decay_every, self.decay, staircase=True)
        else:
            warmup = max(steps // 20, 1)
            rate = optax.warmup_cosine_decay_schedule(0.0, self.rate, warmup, max(steps, warmup + 1))
        return optax.chain(optax.clip_by_global_norm(self.clip), optax.adam(rate))


@dataclasses.dataclass(frozen=True)
class DeepAppearanceRunConfig(Config):
    """A deep appearance model of one person."""

    network: DeepAppearanceConfig = dataclasses.field(default_factory=lambda: PRESETS["small"])
    """Sizes of encoder and decoder; `n_vertices` and `texture_size` are those of the capture. With `n_cameras` above 1
    every camera but the first has a colour correction of its own."""
    weights: AppearanceWeights = dataclasses.field(default_factory=AppearanceWeights)
    """Of the loss."""
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    """How it learns."""
    statistics_views: int = 256
    """Views of the training split, spread over it, of which mean and standard deviation are taken."""


class DeepAppearance(Recipe[DeepAppearanceRunConfig]):
    """Mean texture and mesh in, mesh and one camera's texture out.

    An example is {"texture", "mean_texture": (s, s, 3) float16, "seen": (s, s) of 255, "vertices": (v, 3) metres, head
    frame, "view": (3,) unit vector from the head to the camera, head frame, "camera": its number}.
    """

    name: ClassVar[str] = "deep-appearance"
    summary: ClassVar[str] = "A person's mesh and view-dependent texture from a code; the decoder of an avatar."
    score: ClassVar[str] = "texture error (L2, of 255)"
    presets: ClassVar = {
        "small": Preset(
            command="facejax train deep-appearance --preset small --data stage --out run-appearance",
            hardware="2 CPU cores, busy with other jobs too (load 7)",
            time="8 min, after the capture (9 min: facejax data light-stage)",
            score="texture error 15.5 (the mean texture: 33.4), vertex error 0.137 mm (the mean mesh: 1.291 mm), "
            "120 test views of 30 faces",
            config=DeepAppearanceRunConfig(
                run=Run(steps=2000, batch=8),
                machine=Machine(eval_every=500, save_every=500, log_every=50),
                network=dataclasses.replace(PRESETS["small"], n_vertices=7303),
                # the mean runs over all texels, of which a camera of the virtual stage sees a sixth
                weights=AppearanceWeights(texture=10.0),
                schedule=Schedule(rate=2e-3),
            ),
        ),
        "paper": Preset(
            command="facejax train deep-appearance --preset paper --data multiface --out run-appearance-paper",
            hardware="not measured: meant for one accelerator",
            time="not measured",
            score="not measured",
            # 200,000 steps are 50 epochs of the released code, whose rate decays after each
            config=DeepAppearanceRunConfig(
                run=Run(steps=200_000, batch=16),
                machine=Machine(eval_every=4000, save_every=4000, log_every=100),
                network=dataclasses.replace(PRESETS["paper"], n_cameras=40),
                schedule=Schedule(rate=3e-4, decay=0.95, decay_every=4000),
            ),
        ),
    }

    def __init__(self, config: DeepAppearanceRunConfig) -> None:
        super().__init__(config)
        self.model = DeepAppearanceModel(
            dataclasses.replace(config.network, bf16=config.network.bf16 or config.run.bf16)
        )

    def data(self, folder: Path, split: str) -> Source:
        """The fully lit frames of a capture, every camera's view of each; or examples that a checkpoint brings.

        `InputError` for a capture of another texture size, mesh or number of cameras than the config's.
        """
        if (folder / INDEX).is_file():
            return RecordFolder(folder, split)
        capture = open_capture(folder, self.config.network.texture_size)
        check_capture(capture, self.config.network, "network")
        return CaptureViews(capture, select(capture, split, fully_lit=True), _example, ("mean_texture", "vertices"))

    def init(self, key: PRNGKey, data: Source) -> tuple[PyTree, PyTree]:
        """Networks at random; means and standard deviations of some examples."""
        params, _ = self.model.init(key)
        with jax.ensure_compile_time_eval():  # else every example becomes a constant of the compiled program
            examples = [data[i] for i in spread(len(data), self.config.statistics_views)]
            state = statistics(
                jnp.stack([jnp.asarray(e["texture"], jnp.float32) for e in examples]),
                jnp.stack([jnp.asarray(e["vertices"]) for e in examples]),
                jnp.stack([jnp.asarray(e["seen"], jnp.float32) / 255 for e in examples]),
            )
        return params, state

    def rehearsal(self, key: PRNGKey) -> tuple[PyTree, PyTree, Example]:
        """See `Recipe.rehearsal`: textures of noise, on the mesh of `sheet`."""
        told, (first, noise, wobble) = self.config.network, jax.random.split(key, 3)
        side = (told.texture_size, told.texture_size)
        textures = np.asarray(jax.random.uniform(noise, (2, *side, 3), jnp.float16))
        rest, _, _ = sheet(told.n_vertices)
        examples: list[Example] = [
            {
                "texture": texture,
                "mean_texture": textures[0],
                "seen": np.full(side, 255, np.uint8),
                "vertices": rest + moved,
                "view": np.array([0, 0, 1], np.float32),
                "camera": np.array(told.n_cameras - 1, np.int32),
            }
            for texture, moved in zip(
                textures, np.asarray(1e-4 * jax.random.normal(wobble, (2, *rest.shape))), strict=True
            )
        ]
        params, state = jax.jit(lambda k: self.init(k, examples))(first)
        return params, state, examples[1]

    def encode(self, params: PyTree, state: PyTree, batch: PyTree) -> CodeDistribution:
        """Distributions of the codes of a batch."""
        return jax.vmap(lambda t, v: self.model.encode(params, state, t.astype(jnp.float32), v))(
            batch["mean_texture"], batch["vertices"]
        )

    def decode(
        self, params: PyTree, state: PyTree, codes: Float[Array, "b z"], batch: PyTree
    ) -> tuple[Float[Array, "b v 3"], Float[Array, "b s s 3"]]:
        """(vertices, textures) of codes, as the cameras of a batch see and record them."""

        def one(code: Array, view: Array, camera: Array) -> tuple[Array, Array]:
            face: Appearance = self.model.decode(params, state, code, view)
            return face.vertices, self.model.correct_colour(params, face.texture, camera)

        return jax.vmap(one)(codes, batch["view"], batch["camera"])

    def loss(self, params: PyTree, state: PyTree, batch: PyTree, key: PRNGKey) -> tuple[Terms, PyTree]:
        """Texture, geometry and divergence of the code, see `appearance_terms`."""
        codes = self.encode(params, state, batch)
        drawn = jax.vmap(sample_code)(codes, jax.random.split(key, len(codes.mean)))
        vertices, textures = self.decode(params, state, drawn, batch)

        def one(texture: Array, seen: Array, mask: Array, found: Array, tracked: Array, code: Any) -> Terms:
            return appearance_terms(
                texture,
                seen.astype(jnp.float32),
                mask.astype(jnp.float32) / 255,
                found,
                tracked,
                code.mean,
                code.log_std,
                state["texture_std"],
                state["vertices_std"],
                self.config.weights,
            )

        terms = jax.vmap(one)(textures, batch["texture"], batch["seen"], vertices, batch["vertices"], codes)
        return {name: jnp.mean(values) for name, values in terms.items()}, state

    def optimiser(self) -> optax.GradientTransformation:
        """Adam."""
        return self.config.schedule.optimiser(self.config.run.steps)

    def evaluate(self, params: PyTree, state: PyTree, batch: PyTree) -> dict[str, Float[Array, "b"]]:
        """Errors of texture, over the texels that are seen, and mesh, beside those of the mean texture and mesh.

        L2 is the mean squared difference where linear radiance counts from 0 to 255, PSNR 10 log10(255^2 / L2).
        """
        vertices, textures = self.decode(params, state, self.encode(params, state, batch).mean, batch)
        seen = batch["seen"].astype(jnp.float32) / 255
        truth = batch["texture"].astype(jnp.float32)
        error, control = (square_of_255(t, truth, seen) for t in (textures, state["mean_texture"]))
        return {
            self.score: error,
            "mean texture (L2, of 255)": control,
            "texture PSNR (dB)": psnr_of_255(error),
            "mean texture PSNR (dB)": psnr_of_255(control),
            "vertex error (mm)": distance_mm(vertices, batch["vertices"]),
            "mean mesh (mm)": distance_mm(state["mean_vertices"], batch["vertices"]),
        }

    def pictures(self, params: PyTree, state: PyTree, batch: PyTree) -> dict[str, np.ndarray]:
        """Four textures: as recorded, reconstructed, and their difference; black where a camera does not see."""
        few = {name: values[:4] for name, values in batch.items()}
        _, found = jax.jit(lambda p, s, b: self.decode(p, s, self.encode(p, s, b).mean, b))(params, state, few)
        truth, shown = few["texture"].astype(np.float32), (few["seen"] > 0)[..., None]
        rows = [
            side_by_side([t, f * s], np.abs(f - t) * s) for t, f, s in zip(truth, np.asarray(found), shown, strict=True)
        ]
        return {"textures": np.concatenate(rows, axis=0)}


def _example(view: View, camera: int, expression: int, tracked: bool) -> Example:
    del expression, tracked
    return {
        "texture": view.texture.astype(np.float16),
        "mean_texture": view.mean_texture.astype(np.float16),
        "seen": np.round(255 * view.seen).astype(np.uint8),
        "vertices": view.vertices.astype(np.float32),
        "view": np.asarray(view_direction(view.pose)),
        "camera": np.array(camera, np.int32),
    }


# -- what recipes that read captures share ----------------------------------------------------------------------------


class CaptureViews:
    """Views of some entries of a capture as examples: number i is entry i // cameras, camera i % cameras.

    They stay in memory once read, if all of them fit; arrays that all cameras share are kept once.
    """

    def __init__(
        self,
        capture: Capture,
        entries: Sequence[int],
        make: Callable[[View, int, int, bool], Example],
        shared: tuple[str, ...] = (),
    ) -> None:
        """make: (view, camera, expression, tracked) -> example. shared: names in it that all cameras have alike."""
        self.capture, self.entries = capture, list(entries)
        self._make, self._shared = make, shared
        self._kept: dict[int, list[Example]] = {}
        self._keep: bool | None = None  # not known before an example is seen

    def __len__(self) -> int:
        return len(self.entries) * self.capture.n_cameras

    def __getitem__(self, index: int) -> Example:
        """The example."""
        place, camera = divmod(int(index), self.capture.n_cameras)
        if place in self._kept:
            return dict(self._kept[place][camera])
        example = self._read(place, camera)
        if self._keep is None:
            size = sum(a.nbytes for name, a in example.items() if name not in self._shared) * len(self)
            size += sum(example[name].nbytes for name in self._shared) * len(self.entries)
            self._keep = size < _MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if self._keep:  # a frame's file holds all cameras
            views = [example if c == camera else self._read(place, c) for c in range(self.capture.n_cameras)]
            once = {name: views[0][name] for name in self._shared}
            self._kept[place] = [{**view, **once} for view in views]
        return dict(example)

    def __repr__(self) -> str:  # grain shows its sources in messages
        return f"CaptureViews({len(self.entries)} entries, {self.capture.n_cameras} cameras)"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    def _read(self, place: int, camera: int) -> Example:
        entry = self.capture.entries[self.entries[place]]
        return self._make(self.capture.view(self.entries[place], camera), camera, entry.expression, entry.tracked)


def check_capture(capture: Capture, config: DeepAppearanceConfig, group: str) -> None:
    """`InputError` for a capture that does not fit a model's sizes; `group` is where the config has them."""
    for field, found in (("texture_size", capture.texture_size), ("n_vertices", capture.topology.n_vertices)):
        expected = getattr(config, field)
        if found != expected:
            raise InputError(
                f"The capture has a {field} of {found}, and {group}.{field} is {expected}: "
                f"--set {group}.{field}={found}, or give another capture."
            )
    if config.n_cameras not in (1, capture.n_cameras):
        raise InputError(
            f"The capture has {capture.n_cameras} cameras, and {group}.n_cameras is {config.n_cameras}: "
            f"--set {group}.n_cameras={capture.n_cameras}, or 1 for no correction of colours."
        )


def sheet(count: int) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "t 3"], Float[np.ndarray, "v 2"]]:
    """(vertices, faces, uv) of a sheet that bulges as a face does, for rehearsals: metres, head frame, 20 cm wide.

    Has exactly `count` vertices; those that fill no row of the grid lie at its corner, and no triangle has them.
    """
    columns = max(int(count**0.5), 1)
    rows = count // columns
    i, j = np.divmod(np.arange(count), columns)
    i, j = np.where(i < rows, i, 0), np.where(i < rows, j, 0)
    uv = np.stack([j / max(columns - 1, 1), 1 - i / max(rows - 1, 1)], axis=1)
    x, y = (0.2 * (uv - 0.5)).T
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    below = corner + columns
    faces = np.concatenate([np.stack([corner, below, corner + 1], 1), np.stack([corner + 1, below, below + 1], 1)])
    vertices = np.stack([x, y, 0.05 - 4 * (x**2 + y**2)], axis=1)
    return vertices.astype(np.float32), faces.astype(np.int32), uv.astype(np.float32)


def spread(count: int, few: int) -> list[int]:
    """Up to `few` of `count` numbers, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(few, count)).round().astype(int)).tolist()


def square_of_255(
    image: Float[Array, "*b h w 3"], truth: Float[Array, "b h w 3"], weight: Float[Array, "b h w"]
) -> Float[Array, "b"]:
    """Weighted mean squared difference of each image, where radiance 1 counts as 255."""
    square = jnp.sum((255 * (image - truth)) ** 2, axis=-1)
    return jnp.sum(weight * square, axis=(1, 2)) / jnp.maximum(3 * jnp.sum(weight, axis=(1, 2)), 1e-6)


def psnr_of_255(square: Float[Array, "b"]) -> Float[Array, "b"]:
    """Peak signal-to-noise ratio of a mean squared difference, dB."""
    return 10 * jnp.log10(255**2 / jnp.maximum(square, 1e-6))


def distance_mm(a: Float[Array, "*b v 3"], b: Float[Array, "b v 3"]) -> Float[Array, "b"]:
    """Mean distance of vertices, mm."""
    return 1e3 * jnp.mean(jnp.linalg.norm(a - b, axis=-1), axis=-1)


def side_by_side(images: Sequence[Float[np.ndarray, "h w 3"]], difference: Float[np.ndarray, "h w 3"]) -> np.ndarray:
    """(h, n w, 3) uint8 sRGB: images as bright as lets 1 % of the first be white, then five times the difference."""
    white = max(float(np.percentile(images[0].max(axis=-1), 99)), 1e-6)
    row = np.concatenate([*images, 5 * difference], axis=1) / white
    return np.round(255 * linear_to_srgb(np.clip(row, 0, 1))).astype(np.uint8)
