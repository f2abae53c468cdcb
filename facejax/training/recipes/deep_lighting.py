"""The lighting network of one person, from a capture under many lights (Chen et al. 2021, eq. 4 and 5).

An example is one camera's view of one entry, under any lights. The decoder of a `deep-appearance` run, which stays as
it is, gives mesh and fully lit texture of the expression's code; the network relights the texture; drawn, it is
compared with the image. Free are the network and the code of every expression. What the run leaves is an avatar:

    params/network, params/codes      of the lighting network; (n, z) codes by the expressions' numbers
    state/appearance/params/decoder   of the deep appearance model, float16, which halves what an avatar weighs
    state/appearance/state            its statistics
    state/head/...                    faces, uv, uv_faces, and what else the capture tells of the mesh
"""

import collections
import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from facejax.data.captures import Capture, View, select
from facejax.data.checkpoints import find_checkpoint, read_network, unflatten
from facejax.data.multiface import open_capture
from facejax.data.sources import INDEX, Example, RecordFolder, Source
from facejax.geometry.arrays import read_npz
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import SurfacePoints, Topology
from facejax.geometry.records import Camera, Face, Pose, PRNGKey, PyTree
from facejax.models import deep_appearance, lighting_network
from facejax.models.avatar import Avatar, relit_texture
from facejax.models.deep_appearance import Appearance, DeepAppearanceConfig, DeepAppearanceModel
from facejax.models.lighting_network import (
    LightingNetwork,
    LightingNetworkConfig,
)
from facejax.objectives.deep_appearance import LightingWeights, lighting_terms
from facejax.renderers.textured import make_textured_renderer
from facejax.scenes import AsCaptured, NetworkLight, Scene
from facejax.training.config import Config, Machine, Run, fields_of
from facejax.training.recipe import Preset, Recipe, Terms, registered_recipe, revive
from facejax.training.recipes.deep_appearance import (
    CaptureViews,
    DeepAppearance,
    DeepAppearanceRunConfig,
    Schedule,
    check_capture,
    psnr_of_255,
    sheet,
    side_by_side,
    square_of_255,
)

_WHOLE = 0.99
"""Pixels that show the head to less than this share are not compared: their colour is partly the background's."""
_ENCODED = 16
"""Frames that are encoded at once."""
_REHEARSED_FACES = 2000
"""Expressions of a rehearsal: those of the paper-sized stage."""
_BRIGHTNESS, _DIMMEST = 0.25, 0.005
"""Mean radiance to which test images are exposed, and the least that counts: light from behind leaves a view dark."""


@dataclasses.dataclass(frozen=True)
class Lights:
    """Which lights training shows beyond those recorded: light adds, and it scales, for each colour on its own.

    Every entry that goes into an example is scaled by a factor for each channel, image and code alike. One group of
    lights is a fiftieth of all: without exposure the loss would hardly see it, and codes as bright as those of a room
    with one lamp would never occur.
    """

    colour: float = 2.0
    """Channels are scaled by factors log-uniform in [1 / colour, colour]; 1 leaves colours as they are."""
    darkest: float = 0.0
    """Least mean radiance of the head after exposure; 0 leaves images as bright as they are."""
    brightest: float = 0.0
    """Greatest mean radiance; between the two it is log-uniform."""
    exposure: float = 100.0
    """Largest factor of the exposure: light from behind leaves a view almost black."""
    dimmest: float = 0.0
    """Views of a lower mean radiance than this are exposed as if they had this much: what hardly reaches the camera by
    one group of lights never makes a picture of its own."""
    white: float = 0.0
    """Pixels of at least this radiance, after exposure, only ask for as much: highlights of rims, dozens of times as
    bright as the rest, do not drown it; 0 compares them as they are."""
    mixed: float = 0.0
    """Share of the examples that add up several entries of one expression, scaled and coloured each on its own; the
    subject must hold still between them."""


@dataclasses.dataclass(frozen=True)
class DeepLightingConfig(Config):
    """A lighting network of one person."""

    avatar: str = ""
    """Run of `deep-appearance`, or a pinned checkpoint of one by name or folder: the decoder."""
    appearance: DeepAppearanceConfig = dataclasses.field(default_factory=lambda: deep_appearance.PRESETS["small"])
    """Sizes of that decoder: the `network` of its config."""
    network: LightingNetworkConfig = dataclasses.field(default_factory=lambda: lighting_network.PRESETS["small"])
    """Sizes of the lighting network; `groups` are those of the capture."""
    weights: LightingWeights = dataclasses.field(default_factory=LightingWeights)
    """Of the loss."""
    lights: Lights = dataclasses.field(default_factory=Lights)
    """Which lights training shows."""
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    """How it learns."""
    shape: Literal["tracked", "decoded"] = "decoded"
    """Which mesh the texture is drawn on: `decoded`, as in eq. 4, which then also moves the codes through the mesh; or
    `tracked`, which costs less and puts texels where they were seen (untracked frames: decoded, held)."""
    shrink: int = 1
    """Images are averaged over blocks of so many pixels a side for training."""


class DeepLighting(Recipe[DeepLightingConfig]):
    """Code of an expression, light and camera in; the relit image out.

    An example is {"image": (h, w, 3) linear, "mask": (h, w) of 255, "light": (g, 3), "vertices": (v, 3) metres, head
    frame, "tracked": whether they are known, "rotation", "translation": head to camera, "head_rotation": head to stage,
    "focal", "principal_point": pixels, "expression": its number, "place": number of the example}.
    """

    name: ClassVar[str] = "deep-lighting"
    summary: ClassVar[str] = "Gain and bias of a person's texture under any light; the other half of an avatar."
    score: ClassVar[str] = "exposed image error (L2, of 255)"
    presets: ClassVar = {
        "small": Preset(
            command="facejax train deep-lighting --preset small --data stage --set avatar=run-appearance "
            "--out run-light",
            hardware="2 CPU cores, busy with other jobs too (load 4 to 8)",
            time="29 min, after the capture and the decoder",
            score="exposed image error 264, 26.2 dB (fully lit texture at its best exposure: 2058, 19.3 dB), 480 test "
            "views of 30 faces under one group of lights or all",
            config=DeepLightingConfig(
                run=Run(steps=5000, batch=4),
                machine=Machine(eval_every=2000, save_every=1000, log_every=100),
                appearance=dataclasses.replace(deep_appearance.PRESETS["small"], n_vertices=7303),
                network=dataclasses.replace(
                    lighting_network.PRESETS["small"], superposition=True, lights=460, transfer=64
                ),
                lights=Lights(colour=1.6, darkest=0.1, brightest=0.5, mixed=0.5),
                # the image counts from 0 to 255, and so do gradients
                schedule=Schedule(rate=2e-3, clip=1000.0),
                shape="tracked",
            ),
        ),
        "paper": Preset(
            command="facejax train deep-lighting --preset paper --data stage-large --set avatar=run-appearance-paper "
            "--out run-light-paper",
            hardware="not measured: meant for one accelerator",
            time="not measured",
            score="not measured",
            # the paper tells neither batch nor epochs: 36 h on a DGX
            config=DeepLightingConfig(
                run=Run(steps=200_000, batch=16),
                machine=Machine(eval_every=4000, save_every=4000, log_every=100),
                appearance=dataclasses.replace(deep_appearance.PRESETS["paper"], n_cameras=40),
                network=lighting_network.PRESETS["paper"],
                schedule=Schedule(rate=1e-3, decay=0.75, decay_every=40_000),
            ),
        ),
    }

    def __init__(self, config: DeepLightingConfig) -> None:
        super().__init__(config)
        if config.network.texture_size != config.appearance.texture_size:
            raise InputError(
                f"The decoder's textures have {config.appearance.texture_size} texels a side and network.texture_size "
                f"is {config.network.texture_size}: --set network.texture_size={config.appearance.texture_size}."
            )
        self.model = DeepAppearanceModel(config.appearance)
        self.network = LightingNetwork(dataclasses.replace(config.network, bf16=config.network.bf16 or config.run.bf16))
        self._views: LitViews | None = None

    # -- data ---------------------------------------------------------------------------------------------------------

    def data(self, folder: Path, split: str) -> Source:
        """Every camera's view of every entry of a capture; or the examples that a checkpoint brings.

        `InputError` for a capture of another texture size, mesh or number of groups of lights than the config's, or one
        that is fully lit throughout.
        """
        if (folder / INDEX).is_file():
            return RecordFolder(folder, split)
        told = self.config
        capture = open_capture(folder, told.appearance.texture_size)
        check_capture(capture, told.appearance, "appearance")
        if all(e.fully_lit for e in capture.entries):
            raise InputError(
                f"The capture {folder} has no partly lit frames, so it tells nothing about light: make one with some, "
                "as `facejax data light-stage` does."
            )
        if capture.groups != told.network.groups:
            raise InputError(
                f"Light codes of the capture have {capture.groups} groups of lights, and network.groups is "
                f"{told.network.groups}: --set network.groups={capture.groups}, or give another capture."
            )
        views = LitViews(capture, split, told.shrink if split == "train" else 1)
        if split == "train":
            self._views = views
        return views

    def augment(self, example: Example, rng: np.random.Generator) -> Example:
        """Other lights, see `Lights`."""
        told = self.config.lights
        parts = [example]
        others = self._views.beside(int(example["place"])) if self._views is not None else []
        if others and rng.random() < told.mixed:
            chosen = rng.permutation(len(others))[: rng.integers(1, len(others) + 1)]
            parts += [self._views[others[i]] for i in chosen]  # type: ignore[index]
        return {**example, **mix_lights(parts, told, rng)}

    # -- model --------------------------------------------------------------------------------------------------------

    def init(self, key: PRNGKey, data: Source) -> tuple[PyTree, PyTree]:
        """The identity for a network, codes as the deep appearance model's encoder gives them.

        `InputError` for an `avatar` that is not a complete `deep-appearance` run of the config's sizes.
        """
        if not isinstance(data, LitViews):
            raise InputError("Training starts from a capture: what a pinned checkpoint brings is for evaluation.")
        with jax.ensure_compile_time_eval():  # else every texture becomes a constant of the compiled program
            arrays = self._read_avatar()
            codes = self._first_codes(arrays, data.capture)
        head = head_arrays(data.capture)
        return self._start(key, codes, arrays, head)

    def _start(
        self, key: PRNGKey, codes: Float[ArrayLike, "n z"], avatar: PyTree, head: dict[str, np.ndarray]
    ) -> tuple[PyTree, PyTree]:
        """(params, state) of codes, a deep appearance model's params and state, and a capture's mesh and lights."""
        if self.config.network.lights not in (0, len(head.get("light_directions", ()))):
            raise InputError(
                f"The capture knows the directions of {len(head.get('light_directions', ()))} lights and "
                f"network.lights is {self.config.network.lights}: give their number, or 0 to read groups as they are."
            )
        params = {"network": self.network.init(key), "codes": jnp.asarray(codes)}
        decoder = jax.tree.map(lambda x: x.astype(np.float16), {"decoder": avatar["params"]["decoder"]})
        appearance = {"params": decoder, "state": avatar["state"]}
        return params, jax.tree.map(jnp.asarray, {"appearance": appearance, "head": head})

    def rehearsal(self, key: PRNGKey) -> tuple[PyTree, PyTree, Example]:
        """See `Recipe.rehearsal`: images of noise, as large as the textures, which show the mesh of `sheet`."""
        told, (first, second, third) = self.config, jax.random.split(key, 3)
        decoder = DeepAppearance(DeepAppearanceRunConfig(network=told.appearance))
        params, state, example = decoder.rehearsal(first)
        _, faces, uv = sheet(told.appearance.n_vertices)
        towards = jax.random.normal(second, (told.network.lights, 3))
        head = {
            "faces": faces,
            "uv": uv,
            "uv_faces": faces,
            "light_directions": np.asarray(towards / jnp.linalg.norm(towards, axis=1, keepdims=True)),
            "light_group": np.arange(told.network.lights, dtype=np.int32) % told.network.groups,
        }
        codes = np.zeros((_REHEARSED_FACES, told.appearance.code), np.float32)
        side = told.network.texture_size // told.shrink
        lit = {
            "image": np.asarray(jax.random.uniform(third, (side, side, 3), jnp.float16)),
            "mask": np.full((side, side), 255, np.uint8),
            "light": np.ones((told.network.groups, 3), np.float32),
            "vertices": example["vertices"],
            "tracked": np.array(True),
            "rotation": np.diag([1, -1, -1]).astype(np.float32),  # a metre away, and looking into the camera
            "translation": np.array([0, 0, 1], np.float32),
            "head_rotation": np.diag([1, -1, -1]).astype(np.float32),
            "focal": np.full(2, side / 0.30, np.float32),  # 30 cm across the image, as on the virtual stage
            "principal_point": np.full(2, side / 2, np.float32),
            "expression": np.array(0, np.int32),
            "place": np.array(0, np.int32),
        }
        return *self._start(third, codes, {"params": params, "state": state}, head), lit

    def _read_avatar(self) -> PyTree:
        if not self.config.avatar:
            raise InputError("deep-lighting needs the decoder of a deep-appearance run: --set avatar=RUN.")
        manifest, arrays = read_network(find_checkpoint(self.config.avatar))
        if manifest["recipe"] != "deep-appearance":
            raise InputError(
                f"{self.config.avatar} is of the recipe {manifest['recipe']!r}: avatar takes one of 'deep-appearance'."
            )
        kind = registered_recipe("deep-appearance")
        recipe, arrays = revive(kind, int(manifest["version"]), manifest["config"], arrays)
        held, told = fields_of(recipe.config.network), fields_of(self.config.appearance)
        for name in held:
            if name != "bf16" and held[name] != told[name]:
                raise InputError(
                    f"{self.config.avatar} was trained with network.{name} = {held[name]!r}, and appearance.{name} is "
                    f"{told[name]!r}: --set appearance.{name}={_typed(held[name])}."
                )
        return unflatten(arrays)

    def _first_codes(self, avatar: PyTree, capture: Capture) -> Float[np.ndarray, "n z"]:
        """Of every expression the encoder's mean on its fully lit frame; without one, of the nearest that has one."""
        found: dict[int, int] = {}
        for number, entry in enumerate(capture.entries):
            if entry.fully_lit:
                found.setdefault(entry.expression, number)
        expressions = np.array(sorted(found))

        @jax.jit
        def encode(params: PyTree, textures: Array, vertices: Array) -> Array:
            return jax.vmap(lambda t, v: self.model.encode(params, avatar["state"], t, v).mean)(textures, vertices)

        codes = []
        for first in range(0, len(expressions), _ENCODED):
            few = expressions[first : first + _ENCODED]
            views = [capture.view(found[e], 0) for e in [*few, *few[-1:].repeat(_ENCODED - len(few))]]
            means = encode(
                avatar["params"], np.stack([v.mean_texture for v in views]), np.stack([v.vertices for v in views])
            )
            codes.append(np.asarray(means)[: len(few)])
        every = np.arange(max(e.expression for e in capture.entries) + 1)
        nearest = np.abs(every[:, None] - expressions).argmin(axis=1)
        return np.concatenate(codes)[nearest]

    def scene(self, state: PyTree, size: tuple[int, int]) -> Scene:
        """The avatar as it is being trained, under its own network, as a fit draws it (without smooth outlines, where
        nothing is compared)."""
        head = _Trained.of(self, state)
        render = make_textured_renderer(head.topology, size, antialiased=False)
        return Scene(head, NetworkLight(head), render, size)

    def _drawn(
        self, scene: Scene, params: PyTree, light: PyTree, example: PyTree, drawn: PyTree = None
    ) -> tuple[Float[Array, "h w 3"], Float[Array, "h w"]]:
        """(image, weight) of an example's camera: pixels count where the mesh shows the head and nothing else.

        drawn: vertices to draw the texture on; None: the decoded ones.
        """
        pose = Pose(rotation=example["rotation"], translation=example["translation"])
        camera = Camera(focal=example["focal"], principal_point=example["principal_point"])
        frame = {"code": params["codes"][example["expression"]], "drawn": drawn}
        image = scene.view(params, (), frame, light, pose, camera).image
        whole = (image.coverage > 0) & (example["mask"] >= _WHOLE * 255)
        return image.colour, whole.astype(jnp.float32)

    def loss(self, params: PyTree, state: PyTree, batch: PyTree, key: PRNGKey) -> tuple[Terms, PyTree]:
        """Image, geometry and codes, see `lighting_terms`."""
        del key

        def one(example: PyTree) -> Terms:
            code = params["codes"][example["expression"]]
            scene = self.scene(state, example["image"].shape[:2])
            vertices = scene.head.vertices(params, (), {"code": code, "drawn": None})
            known, drawn = example["tracked"].astype(jnp.float32), None
            if self.config.shape == "tracked":
                drawn = jax.lax.stop_gradient(jnp.where(example["tracked"], example["vertices"], vertices))
            shown, weight = self._drawn(scene, params, (example["light"], example["head_rotation"]), example, drawn)
            drawn_image, image = saturated(shown, example["image"].astype(jnp.float32), self.config.lights.white)
            return lighting_terms(
                drawn_image, image, weight, vertices, example["vertices"], code, known,
                self.config.weights,
            )  # fmt: skip

        return {name: jnp.mean(values) for name, values in jax.vmap(one)(batch).items()}, state

    def optimiser(self) -> optax.GradientTransformation:
        """Adam."""
        return self.config.schedule.optimiser(self.config.run.steps)

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def evaluate(self, params: PyTree, state: PyTree, batch: PyTree) -> dict[str, Float[Array, "b"]]:
        """Errors of the relit image inside the mask, as recorded, and as a camera would expose it; and controls.

        Exposed is to a mean radiance of 0.25 (of views darker than 0.005 as far as if they were not), clipped to
        [0, 1]; the code is exposed alike. Codes of expressions are the encoder's, the mesh is the decoded one. L2 is
        the mean squared difference where linear radiance counts from 0 to 255. The controls draw the fully lit texture:
        with the one factor, or the factor for each channel, that fits this very image best.
        """

        def one(example: PyTree) -> tuple[Array, ...]:
            exposure, lit, exposed, full, weight = self._seen(params, state, example)
            image, w = example["image"].astype(jnp.float32), weight[..., None]
            truth = jnp.clip(exposure * image, 0.0, 1.0)
            best = jnp.sum(w * truth * full) / jnp.maximum(jnp.sum(w * full**2), 1e-9)
            each = jnp.sum(w * truth * full, axis=(0, 1)) / jnp.maximum(jnp.sum(w * full**2, axis=(0, 1)), 1e-9)
            shown = [jnp.clip(x, 0.0, 1.0) for x in (exposed, best * full, each * full)]
            pairs = [(lit, image), *((x, truth) for x in shown)]
            return tuple(square_of_255(x[None], y[None], weight[None])[0] for x, y in pairs)

        plain, ours, scaled, coloured = jax.vmap(one)(batch)
        return {
            self.score: ours,
            "fully lit, best exposure (L2, of 255)": scaled,
            "fully lit, best gain of channels (L2, of 255)": coloured,
            "exposed PSNR (dB)": psnr_of_255(ours),
            "fully lit, best exposure: PSNR (dB)": psnr_of_255(scaled),
            "image error (L2, of 255)": plain,
        }

    def _seen(self, params: PyTree, state: PyTree, example: PyTree) -> tuple[Array, Array, Array, Array, Array]:
        """(exposure, images relit as recorded and exposed, fully lit image, weight of pixels) of a test example."""
        scene, rig = self.scene(state, example["image"].shape[:2]), example["head_rotation"]
        lit, weight = self._drawn(scene, params, (example["light"], rig), example)
        full, _ = self._drawn(dataclasses.replace(scene, lighting=AsCaptured()), params, (), example)
        image, w = example["image"].astype(jnp.float32), weight[..., None]
        exposure = _BRIGHTNESS / jnp.maximum(jnp.sum(w * image) / jnp.maximum(3 * jnp.sum(w), 1e-6), _DIMMEST)
        exposed, _ = self._drawn(scene, params, (exposure * example["light"], rig), example)
        return exposure, lit, exposed, full, weight

    def pictures(self, params: PyTree, state: PyTree, batch: PyTree) -> dict[str, np.ndarray]:
        """Four images inside the mask: as recorded, relit, fully lit; and the difference of the first two."""
        few = {name: jnp.asarray(values[:4]) for name, values in batch.items()}
        exposure, _, relit, full, weight = jax.jit(jax.vmap(self._seen, in_axes=(None, None, 0)))(params, state, few)
        shown = np.asarray(weight)[..., None]
        truth = np.asarray(exposure)[:, None, None, None] * np.asarray(few["image"], np.float32)
        rows = [
            side_by_side([t * s, r * s, f * s], np.abs(t - r) * s)
            for t, r, f, s in zip(truth, np.asarray(relit), np.asarray(full), shown, strict=True)
        ]
        return {"relit": np.concatenate(rows, axis=0)}


@dataclasses.dataclass(frozen=True, eq=False)
class _Trained(Avatar):
    """An avatar whose network is being trained and whose decoder, in the run's state, is held.

    Its frame code is {"code", "drawn"}: vertices to draw instead of the decoded ones, or None. A light is (lighting
    code, rotation of the head to the frame of the lights).
    """

    held: PyTree = None
    """The run's state."""

    @classmethod
    def of(cls, recipe: DeepLighting, state: PyTree) -> "_Trained":
        head, count = state["head"], recipe.config.appearance.n_vertices
        return cls(
            name=recipe.name,
            sha256="",
            appearance=recipe.model,
            network=recipe.network,
            params={},
            state=state["appearance"]["state"],
            topology=Topology(head["faces"], head["uv"], head["uv_faces"], n_vertices=count),
            landmarks478=SurfacePoints(np.zeros((0, 3), np.int32), np.zeros((0, 3), np.float32)),
            regions={},
            eye_centres=np.zeros((2, 3), np.float32),
            held=state,
        )

    def _decoded(self, frame: PyTree, view: Float[Array, "3"]) -> Appearance:
        decoder = jax.tree.map(lambda x: x.astype(jnp.float32), self.held["appearance"]["params"])
        return self.appearance.decode(decoder, self.state, frame["code"], view)

    def vertices(self, params: PyTree, shared: PyTree, frame: PyTree) -> Float[Array, "v 3"]:
        """As decoded."""
        del params, shared
        return self._decoded(frame, jnp.array([0.0, 0.0, 1.0])).vertices  # no mesh depends on the view

    def decode(self, params: PyTree, shared: PyTree, frame: PyTree, view: Float[Array, "3"]) -> Face:
        """Eq. (1): the fully lit face."""
        del params, shared
        found = self._decoded(frame, view)
        vertices = found.vertices if frame["drawn"] is None else frame["drawn"]
        flat = jnp.zeros(len(vertices))
        return Face(
            vertices=vertices, albedo=jnp.ones_like(vertices), texture=found.texture, specular=flat, roughness=flat + 1
        )

    def relit(self, params: PyTree, face: Face, light: PyTree, pose: Pose, rig: Any = None) -> Face:
        """Eq. (2) and (3)."""
        del rig
        head, (code, turn) = self.held["head"], light
        lamps = head.get("light_directions"), head.get("light_group")
        texture = relit_texture(self.network, params["network"], face.texture, code, pose, turn, *lamps)
        return face.replace(texture=texture)


class LitViews(CaptureViews):
    """All views of a split, in an order that mixes lights and expressions, so that a few of them show many."""

    def __init__(self, capture: Capture, split: str, shrink: int = 1) -> None:
        """shrink: pixels a side that are averaged."""
        height, width = capture.image_size
        if height % shrink or width % shrink:
            raise InputError(
                f"Images of {height} x {width} pixels cannot be averaged over {shrink} x {shrink} of them."
            )
        order = np.random.default_rng(0).permutation(select(capture, split))
        super().__init__(capture, order.tolist(), _Lit(shrink), ("vertices", "light", "head_rotation"))
        self._same: dict[int, list[int]] = collections.defaultdict(list)
        for place, number in enumerate(self.entries):
            self._same[capture.entries[number].expression].append(place)

    def __getitem__(self, index: int) -> Example:
        """The example."""
        return {**super().__getitem__(index), "place": np.array(index, np.int32)}

    def beside(self, index: int) -> list[int]:
        """Numbers of the examples that show the same face to the same camera under other lights."""
        place, camera = divmod(index, self.capture.n_cameras)
        same = self._same[self.capture.entries[self.entries[place]].expression]
        return [other * self.capture.n_cameras + camera for other in same if other != place]


@dataclasses.dataclass(frozen=True)
class _Lit:
    shrink: int

    def __call__(self, view: View, camera: int, expression: int, tracked: bool) -> Example:
        del camera
        n = self.shrink
        return {
            "image": block_means(view.image, n).astype(np.float16),
            "mask": np.round(255 * block_means(view.mask[..., None], n)[..., 0]).astype(np.uint8),
            "light": view.light.astype(np.float32),
            # what is not tracked may be anything, and 0 times NaN is NaN
            "vertices": view.vertices.astype(np.float32) if tracked else np.zeros_like(view.vertices, np.float32),
            "tracked": np.array(tracked),
            "rotation": np.asarray(view.pose.rotation),
            "translation": np.asarray(view.pose.translation),
            "head_rotation": np.asarray(view.head.rotation),
            "focal": np.asarray(view.camera.focal) / n,
            "principal_point": np.asarray(view.camera.principal_point) / n,
            "expression": np.array(expression, np.int32),
        }


def mix_lights(parts: list[Example], told: Lights, rng: np.random.Generator) -> Example:
    """{"image", "light"} of examples of one face and camera, each scaled by channel and added up, see `Lights`.

    Parts of a mixture are first made equally bright, then scaled by factors log-uniform in [0.1, 1].
    """
    shown = parts[0]["mask"] > 0
    count = max(int(shown.sum()), 1)
    images = [p["image"].astype(np.float32) for p in parts]
    means = [float(image[shown].sum()) / (3 * count) for image in images]
    scales = np.exp(rng.uniform(-1, 1, (len(parts), 3)) * np.log(told.colour))
    if len(parts) > 1:
        shares = 10.0 ** -rng.uniform(0, 1, len(parts))
        floor = max(max(means) / told.exposure, told.dimmest, 1e-9)
        scales *= (shares / np.maximum(means, floor) * max(*means, floor))[:, None]
    image = sum(s.astype(np.float32) * i for s, i in zip(scales, images, strict=True))
    light = sum(s.astype(np.float32) * p["light"] for s, p in zip(scales, parts, strict=True))
    if told.brightest > 0:
        target = np.exp(rng.uniform(np.log(max(told.darkest, 1e-6)), np.log(told.brightest)))
        mean = float(image[shown].sum()) / (3 * count)
        exposure = np.float32(min(target / max(mean, told.dimmest, 1e-9), told.exposure))
        image, light = exposure * image, exposure * light
    return {"image": np.asarray(image, np.float16), "light": np.asarray(light, np.float32)}


def saturated(
    image: Float[Array, "h w 3"], truth: Float[Array, "h w 3"], white: float
) -> tuple[Float[Array, "h w 3"], Float[Array, "h w 3"]]:
    """(image, truth) where true values of `white` and more say "at least this"; as they are for a white of 0."""
    if white <= 0:
        return image, truth
    return jnp.where(truth >= white, jnp.minimum(image, white), image), jnp.minimum(truth, white)


def block_means(image: Float[np.ndarray, "h w c"], side: int) -> Float[np.ndarray, "_ _ c"]:
    """Means of side x side blocks of pixels."""
    height, width, channels = image.shape
    return image.reshape(height // side, side, width // side, side, channels).mean(axis=(1, 3))


def head_arrays(capture: Capture) -> dict[str, np.ndarray]:
    """What an avatar keeps of a capture's mesh: connectivity, and what else `head.npz` tells (landmarks, regions)."""
    topology = capture.topology
    held = {"faces": topology.faces, "uv": topology.uv, "uv_faces": topology.uv_faces}
    path = Path(getattr(capture, "folder", "")) / "head.npz"
    if path.is_file():
        held = {**read_npz(path, "make the capture again"), **held}
    narrow = {"i": np.int32, "u": np.int32, "f": np.float32, "b": np.bool_}
    # checkpoints hold no arrays without elements
    return {n: a.astype(narrow[a.dtype.kind]) for n, a in held.items() if a.dtype.kind in narrow and a.size}


def _typed(value: Any) -> str:
    """As --set takes it."""
    return ",".join(str(v) for v in value) if isinstance(value, tuple) else str(value).lower()
