"""The recipes of the avatar: a tiny capture in, a deep appearance model and a lighting network out."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_head import toy_head

from facejax.data.captures import Entry, LightStage, head_to_camera, mean_over_views, write_facts
from facejax.data.checkpoints import read_network, unflatten
from facejax.data.sources import Batches
from facejax.geometry.cameras import view_direction
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import vertex_normals
from facejax.geometry.records import Camera, Pose
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.models.deep_appearance import DeepAppearanceConfig, DeepAppearanceModel
from facejax.models.lighting_network import LightingNetwork, LightingNetworkConfig, relight, rig_pose_features
from facejax.objectives.deep_appearance import lighting_terms
from facejax.renderers.textured import draw_texture
from facejax.renderers.uv import at_texels, locate_texels, texture_chart, texture_from
from facejax.training import find_recipe, preset_of, train
from facejax.training.config import Machine, Run, from_json
from facejax.training.recipes.deep_appearance import CaptureViews, Schedule, sheet, spread, square_of_255
from facejax.training.recipes.deep_lighting import Lights, LitViews, block_means, head_arrays, mix_lights, saturated

SIZE, GROUPS, CAMERAS, EXPRESSIONS = 32, 3, 2, 6
TOWARDS = np.array([[0.7, 0.0, -0.7], [-0.7, 0.0, -0.7], [0.0, -0.9, -0.4]])  # of the groups, stage
HEAD = toy_head(10, 12)


def write_capture(folder, *, partly_lit=True, texture_size=SIZE):
    """A toy head under three groups of lights, diffuse, that opens its jaw and turns; half-way is the test face."""
    (folder / "frames").mkdir(parents=True)
    topology = HEAD.topology
    chart = texture_chart(topology, texture_size)
    albedo = 0.5 + 0.2 * jnp.sin(60 * at_texels(HEAD.params.mean, chart.triangles, chart.weights))
    rotations = np.stack([np.eye(3), np.asarray(rotvec_to_matrix(jnp.array([0.0, 0.4, 0.0])))]).astype(np.float32)
    translations = np.tile(np.array([0.0, 0.0, 0.8], np.float32), (CAMERAS, 1))
    focal, centre = np.full((CAMERAS, 2), 90.0, np.float32), np.full((CAMERAS, 2), SIZE / 2, np.float32)

    @jax.jit
    def shoot(vertices, code, rotation, pose, camera):
        """(image, mask, texture, seen)."""
        normals = at_texels(vertex_normals(vertices, topology.faces), chart.triangles, chart.weights)
        light = jnp.maximum(normals @ rotation.T @ TOWARDS.T, 0.0) @ code
        texture = texture_from(chart, albedo * light)
        image = draw_texture(vertices, texture, pose, camera, topology, (SIZE, SIZE))
        _, seen = locate_texels(vertices, pose, camera, topology.faces, (SIZE, SIZE), chart.triangles, chart.weights)
        return image.colour, image.coverage, texture, texture_from(chart, seen[:, None])[..., 0]

    entries = []
    for n in range(EXPRESSIONS):
        part = [0.0, 0.2, 0.4, 0.6, 1.0, 0.5][n]  # the last one for tests
        vertices = np.asarray(HEAD.params.mean + part * HEAD.params.expression_basis[0])
        turned = np.diag([1.0, -1.0, -1.0]) @ np.asarray(rotvec_to_matrix(jnp.array([0.0, 1.6 * part - 0.8, 0.0])))
        head = Pose(rotation=jnp.asarray(turned, jnp.float32), translation=jnp.zeros(3))
        codes = {"full": np.ones(GROUPS), **({f"group-{g}": np.eye(GROUPS)[g] for g in range(2)} if partly_lit else {})}
        for name, code in codes.items():
            shots = [
                [np.asarray(x) for x in shoot(
                    vertices, jnp.asarray(np.tile(code[:, None], 3), jnp.float32), head.rotation,
                    head_to_camera(head, r, t),
                    Camera(focal=jnp.asarray(f), principal_point=jnp.asarray(c)),
                )]
                for r, t, f, c in zip(rotations, translations, focal, centre, strict=True)
            ]  # fmt: skip
            images, masks, textures, seen = (np.stack(x) for x in zip(*shots, strict=True))
            textures = textures * (np.round(255 * seen) > 0)[..., None]
            file = f"frames/{len(entries):03d}.npz"
            np.savez(
                folder / file, image=images.astype(np.float16), mask=np.round(255 * masks).astype(np.uint8),
                texture=textures.astype(np.float16), seen=np.round(255 * seen).astype(np.uint8),
                mean_texture=mean_over_views(textures, seen).astype(np.float16), vertices=vertices.astype(np.float32),
                light=np.tile(code[:, None], 3).astype(np.float32), rotation=np.asarray(head.rotation),
                translation=np.asarray(head.translation),
            )  # fmt: skip
            split = "test" if n == EXPRESSIONS - 1 else "train"
            entries.append(Entry(file, expression=n, split=split, pattern=name, tracked=True))
    np.savez(folder / "cameras.npz", rotation=rotations, translation=translations, focal=focal, principal_point=centre)
    np.savez(
        folder / "head.npz", faces=topology.faces, uv=topology.uv, uv_faces=topology.uv_faces,
        light_directions=TOWARDS / np.linalg.norm(TOWARDS, axis=1, keepdims=True), light_group=np.arange(GROUPS),
        landmark_triangles=HEAD.landmarks478.triangles, landmark_weights=HEAD.landmarks478.weights,
        region_skin=np.ones(topology.n_vertices, np.float32), eye_weight=HEAD.params.eye_weight,
        names=np.array(["jawOpen"]),
    )  # fmt: skip
    write_facts(
        folder, entries, image_size=[SIZE, SIZE], texture_size=texture_size, groups=GROUPS, cameras=CAMERAS,
        vertices=topology.n_vertices,
    )  # fmt: skip
    return folder


APPEARANCE = DeepAppearanceConfig(
    n_vertices=HEAD.topology.n_vertices, texture_size=SIZE, code=4, features=16, encoder_channels=(8, 8, 8),
    decoder_channels=(8,),
)  # fmt: skip
NETWORK = LightingNetworkConfig(
    groups=GROUPS, texture_size=SIZE, map_size=16, light_features=16, pose_features=8, base_size=4, base_channels=8,
    light_channels=(8,), texture_channels=(8,), head_channels=(),
)  # fmt: skip
MACHINE = Machine(eval_every=0, save_every=1000, log_every=30, tensorboard="off")


def appearance(**changes):
    kind = find_recipe("deep-appearance")
    config = preset_of(kind, "small").config
    told = {"run": Run(steps=300, batch=4), "machine": MACHINE, "network": APPEARANCE, "schedule": Schedule(rate=1e-2)}
    return kind(dataclasses.replace(config, **told | changes))


def lighting(avatar="", **changes):
    kind = find_recipe("deep-lighting")
    config = preset_of(kind, "small").config
    told = {
        "run": Run(steps=60, batch=4), "machine": MACHINE, "avatar": str(avatar), "appearance": APPEARANCE,
        "network": NETWORK, "schedule": Schedule(rate=1e-2),
    }  # fmt: skip
    return kind(dataclasses.replace(config, **told | changes))


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return write_capture(tmp_path_factory.mktemp("stage") / "capture")


@pytest.fixture(scope="module")
def avatar(stage, tmp_path_factory):
    """(run folder, outcome) of a deep appearance model."""
    folder = tmp_path_factory.mktemp("runs") / "appearance"
    return folder, train(appearance(), stage, folder)


@pytest.fixture(scope="module")
def light_run(stage, avatar, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "lighting"
    return folder, train(lighting(avatar[0]), stage, folder)


@pytest.fixture(scope="module")
def begun(stage, avatar):
    """(source, params, state) as the engine finds them before the first step."""
    recipe = lighting(avatar[0])
    source = recipe.data(stage, "train")
    return source, *jax.jit(lambda: recipe.init(jax.random.key(0), source))()


def batch_of(source, numbers):
    examples = [source[i] for i in numbers]
    return {k: jnp.asarray(np.stack([e[k] for e in examples])) for k in examples[0]}


# -- rehearsals -------------------------------------------------------------------------------------------------------


def shapes_of(tree):
    return jax.tree.map(lambda x: (np.shape(x), np.asarray(x).dtype), tree)


def test_a_rehearsal_of_appearance_has_the_shapes_of_training(stage):
    recipe = appearance()
    source = recipe.data(stage, "train")
    params, state = jax.jit(lambda: recipe.init(jax.random.key(0), source))()
    assert shapes_of(recipe.rehearsal(jax.random.key(1))) == shapes_of((params, state, source[0]))


def test_a_rehearsal_of_lighting_has_the_shapes_of_training(begun):
    """All but the number of faces, and what a capture tells of its mesh that no loss reads."""
    source, params, state = begun
    recipe = lighting()
    found_params, found_state, example = recipe.rehearsal(jax.random.key(1))
    assert shapes_of(example) == shapes_of(recipe.augment(source[0], np.random.default_rng(0)))
    assert shapes_of(found_params["network"]) == shapes_of(params["network"])
    assert found_params["codes"].shape[1] == params["codes"].shape[1]
    assert shapes_of(found_state["appearance"]) == shapes_of(state["appearance"])
    for name in ("faces", "uv", "uv_faces"):
        assert found_state["head"][name].shape[1:] == state["head"][name].shape[1:]
        assert found_state["head"][name].dtype == state["head"][name].dtype
    one_by_one = lighting(network=dataclasses.replace(NETWORK, superposition=True, lights=GROUPS))
    lit = one_by_one.rehearsal(jax.random.key(1))[1]["head"]
    for name in ("light_directions", "light_group"):
        assert shapes_of(lit[name]) == shapes_of(state["head"][name])


def test_the_sheet_of_rehearsals_fills_most_of_the_image():
    vertices, faces, uv = sheet(7306)
    assert vertices.shape == (7306, 3)
    assert faces.max() < 7306
    edges = vertices[faces[:, 1:]] - vertices[faces[:, :1]]
    normals = np.cross(edges[:, 0], edges[:, 1])
    assert (normals[:, 2] > 0).all()  # towards the camera, and no triangle without area
    assert uv.min() == 0
    assert uv.max() == 1
    share = 0.5 * normals[:, 2].sum() / 0.30**2
    assert 0.4 < share < 0.6


# -- deep appearance --------------------------------------------------------------------------------------------------


def test_appearance_learns_from_the_fully_lit_frames(stage, avatar):
    """Test frames are another face than all that was trained on; the controls are the training frames' means."""
    folder, outcome = avatar
    scores = outcome.scores
    assert scores["texture error (L2, of 255)"] < 0.5 * scores["mean texture (L2, of 255)"]
    assert scores["texture PSNR (dB)"] > scores["mean texture PSNR (dB)"] + 3
    assert scores["vertex error (mm)"] < 0.6 * scores["mean mesh (mm)"]
    assert (folder / "pictures" / "textures-0000300.png").is_file()
    assert len(appearance().data(stage, "train")) == (EXPRESSIONS - 1) * CAMERAS


def test_appearance_keeps_the_statistics_of_the_data(stage, avatar):
    state, source = unflatten(read_network(avatar[0])[1])["state"], appearance().data(stage, "train")
    views = [source[i] for i in range(len(source))]
    seen = np.stack([v["seen"] for v in views])[..., None] / 255
    textures = np.stack([v["texture"] for v in views]).astype(np.float32)
    expected = (seen * textures).sum(0) / np.maximum(seen.sum(0), 1e-6)
    np.testing.assert_allclose(state["mean_texture"], expected, atol=1e-5)
    np.testing.assert_allclose(state["mean_vertices"], np.mean([v["vertices"] for v in views], axis=0), atol=1e-6)
    assert spread(100, 3) == [0, 50, 99]
    assert spread(2, 5) == [0, 1]


def test_examples_are_what_the_capture_says(stage):
    capture, recipe = LightStage(stage), appearance()
    source = recipe.data(stage, "test")
    view = capture.view(len(capture.entries) - 3, 1)  # the test face, fully lit, as the second camera sees it
    example = source[1]
    np.testing.assert_array_equal(example["texture"], view.texture.astype(np.float16))
    np.testing.assert_allclose(example["seen"] / 255, view.seen, atol=1e-6)
    np.testing.assert_allclose(example["view"], view_direction(view.pose), atol=1e-6)
    assert example["camera"] == 1
    first, second = source[0], source[1]
    assert first["vertices"] is second["vertices"]  # kept once
    again = pickle.loads(pickle.dumps(source))  # as worker processes get it
    np.testing.assert_array_equal(again[1]["texture"], example["texture"])


def test_examples_that_do_not_fit_into_memory_are_read_again(stage, monkeypatch):
    import facejax.training.recipes.deep_appearance as module

    kept, source = (appearance().data(stage, "train") for _ in range(2))
    examples = [kept[i] for i in range(3)]
    monkeypatch.setattr(module, "_MEMORY_SHARE", 0.0)
    for i, example in enumerate(examples):
        for name, value in example.items():
            np.testing.assert_array_equal(source[i][name], value)
    assert not source._kept
    assert kept._kept


def test_colours_of_cameras_are_corrected_where_asked(stage, avatar):
    recipe = appearance(network=dataclasses.replace(APPEARANCE, n_cameras=CAMERAS))
    held = jax.tree.map(jnp.asarray, unflatten(read_network(avatar[0])[1]))
    params = {**held["params"], "cameras": {"gain": jnp.full((1, 3), 2.0), "bias": jnp.zeros((1, 3))}}
    batch = batch_of(recipe.data(stage, "train"), (0, 0)) | {"camera": jnp.array([0, 1])}
    _, (first, second) = jax.jit(recipe.decode)(params, held["state"], jnp.zeros((2, 4)), batch)
    np.testing.assert_allclose(second, 2 * first, rtol=1e-5, atol=1e-6)


def test_error_counts_what_is_seen():
    image, truth = jnp.zeros((1, 4, 4, 3)), jnp.full((1, 4, 4, 3), 0.1)
    weight = jnp.zeros((1, 4, 4)).at[0, :2].set(1.0)
    assert float(square_of_255(image, truth, weight)[0]) == pytest.approx(25.5**2, rel=1e-5)
    assert float(square_of_255(image, truth.at[0, 3].set(9.0), weight)[0]) == pytest.approx(25.5**2, rel=1e-5)


# -- deep lighting ----------------------------------------------------------------------------------------------------


def test_lighting_starts_as_the_fully_lit_avatar(stage, avatar, begun):
    """The identity network, codes of the encoder, the decoder as it is, and all that an avatar needs of the mesh."""
    _, params, state = begun
    held = jax.tree.map(jnp.asarray, unflatten(read_network(avatar[0])[1]))
    decoder = jax.tree.map(lambda x: x.astype(jnp.float16), held["params"]["decoder"])
    jax.tree.map(np.testing.assert_array_equal, state["appearance"]["params"], {"decoder": decoder})
    jax.tree.map(np.testing.assert_array_equal, state["appearance"]["state"], held["state"])
    view = LightStage(stage).view(3, 0)  # the second face, fully lit
    code = jax.jit(DeepAppearanceModel(APPEARANCE).encode)(
        held["params"], held["state"], jnp.asarray(view.mean_texture), jnp.asarray(view.vertices)
    )
    assert params["codes"].shape == (EXPRESSIONS, 4)
    np.testing.assert_allclose(params["codes"][1], code.mean, atol=1e-5)
    assert state["head"].keys() >= {"faces", "uv", "uv_faces", "landmark_triangles", "region_skin", "eye_weight"}
    assert "names" not in state["head"]  # arrays of numbers only
    np.testing.assert_array_equal(state["head"]["faces"], HEAD.topology.faces)


@pytest.mark.parametrize("shape", ["tracked", "decoded"])
def test_the_loss_is_that_of_the_paper(avatar, begun, shape):
    """One example, put together by hand from the public pieces: decode, relight, draw, compare."""
    recipe, (source, params, state) = lighting(avatar[0], shape=shape), begun
    params = {**params, "network": jax.tree.map(lambda x: x + 0.05, params["network"])}
    batch = batch_of(source, (5,))
    e = {k: v[0] for k, v in batch.items()}

    @jax.jit
    def by_hand(code):
        pose, light = Pose(rotation=e["rotation"], translation=e["translation"]), LightingNetwork(NETWORK)
        camera = Camera(focal=e["focal"], principal_point=e["principal_point"])
        decoder = jax.tree.map(jnp.float32, state["appearance"]["params"])
        view = view_direction(pose)
        face = DeepAppearanceModel(APPEARANCE).decode(decoder, state["appearance"]["state"], code, view)
        features = rig_pose_features(e["head_rotation"], view)
        texture = relight(face.texture, light(params["network"], e["light"], features, face.texture))
        vertices = e["vertices"] if shape == "tracked" else face.vertices
        image = draw_texture(vertices, texture, pose, camera, HEAD.topology, (SIZE, SIZE), antialiased=False)
        mask = image.coverage * (e["mask"] > 252)
        return lighting_terms(image.colour, jnp.float32(e["image"]), mask, face.vertices, e["vertices"], code)

    def image_term(p, batch):
        terms, _ = recipe.loss(p, state, batch, jax.random.key(0))
        return terms["image"], terms

    gradient = jax.jit(jax.grad(image_term, has_aux=True))
    grad, terms = gradient(params, batch)
    for name, value in by_hand(params["codes"][e["expression"]]).items():
        assert float(terms[name]) == pytest.approx(float(value), rel=1e-4)
    moved = np.flatnonzero(np.abs(grad["codes"]).sum(axis=1))
    assert moved.tolist() == [int(e["expression"])]
    # a frame that was not tracked: no geometry, drawn on the decoded mesh
    lost = {**batch, "tracked": jnp.zeros(1, bool), "vertices": jnp.zeros_like(batch["vertices"])}
    _, untracked = gradient(params, lost)
    assert float(untracked["geometry"]) == 0.0 < float(terms["geometry"])
    assert float(untracked["image"]) == pytest.approx(float(terms["image"]), rel=0.2)


def test_lighting_learns_and_leaves_an_avatar(begun, light_run):
    """Better than the fully lit texture at its best exposure on a face that it never saw; the contract of the run."""
    folder, outcome = light_run
    scores = outcome.scores
    ours, control = scores["exposed image error (L2, of 255)"], scores["fully lit, best exposure (L2, of 255)"]
    assert ours < 0.6 * control
    assert control >= scores["fully lit, best gain of channels (L2, of 255)"]
    assert (folder / "pictures" / "relit-0000060.png").is_file()
    manifest, arrays = read_network(folder)
    tree = unflatten(arrays)
    jax.tree.map(np.testing.assert_array_equal, tree["state"], jax.device_get(begun[2]))  # the decoder is left alone
    assert np.abs(tree["params"]["codes"] - begun[1]["codes"]).max() > 1e-3
    assert tree["params"].keys() == {"network", "codes"}
    assert tree["state"].keys() == {"appearance", "head"}
    assert tree["state"]["appearance"].keys() == {"params", "state"}
    config = from_json(type(lighting().config), manifest["config"])
    assert (config.appearance, config.network) == (APPEARANCE, NETWORK)


def test_a_pinned_avatar_reproduces_without_capture_or_decoder(stage, light_run, tmp_path):
    from facejax.evaluation.reproduce import pin, reproduce

    pin(light_run[0], stage, tmp_path / "avatar-1", examples=4, say=lambda line: None)
    assert all(row.agrees for row in reproduce(tmp_path / "avatar-1"))


def test_a_mixture_is_the_sum_of_its_lights(stage):
    """Light adds: image and code of a mixture are the same combination of what was recorded, by channel."""
    source = LitViews(LightStage(stage), "train")
    beside = source.beside(0)
    assert len(beside) == 2
    assert all(i % CAMERAS == 0 and source[i]["expression"] == source[0]["expression"] for i in beside)
    parts = [source[i] for i in (0, *beside)]
    told, seen = Lights(colour=2.0, darkest=0.1, brightest=0.4, mixed=1.0), []
    for seed in range(20):
        made = mix_lights(parts, told, np.random.default_rng(seed))
        lights = np.stack([p["light"] for p in parts]).astype(np.float64)  # (part, g, 3)
        images = np.stack([p["image"] for p in parts]).astype(np.float64)
        total = 0.0
        for c in range(3):
            share, *_ = np.linalg.lstsq(lights[..., c].T, made["light"][:, c].astype(np.float64), rcond=None)
            assert (share >= -1e-5).all()
            np.testing.assert_allclose(made["image"][..., c], np.einsum("p,phw->hw", share, images[..., c]), atol=2e-3)
            total += made["image"][..., c][parts[0]["mask"] > 0].mean() / 3
        seen.append(total)
    assert min(seen) > 0.095
    assert max(seen) < 0.41
    assert max(seen) > 1.5 * min(seen)
    still = mix_lights(parts[:1], Lights(colour=1.0), np.random.default_rng(0))
    np.testing.assert_array_equal(still["image"], parts[0]["image"])
    np.testing.assert_array_equal(still["light"], parts[0]["light"])


def test_exposure_is_limited():
    """A view that the light hardly reaches is not scaled until rounding shows."""
    dark = {
        "image": np.full((2, 2, 3), 1e-5, np.float16), "mask": np.full((2, 2), 255, np.uint8), "light": np.ones((1, 3))
    }  # fmt: skip
    made = mix_lights([dark], Lights(colour=1.0, darkest=0.1, brightest=0.1, exposure=50.0), np.random.default_rng(0))
    np.testing.assert_allclose(made["light"], 50.0)
    told = Lights(colour=1.0, darkest=0.1, brightest=0.1, dimmest=0.01)
    np.testing.assert_allclose(mix_lights([dark], told, np.random.default_rng(0))["light"], 10.0, rtol=1e-6)


def test_saturated_pixels_ask_for_no_more_than_white():
    """Above white nothing more is asked for where truth is white, and too much is still too much where it is not."""
    image, truth = jnp.array([[[3.0, 1.5, 3.0]]]), jnp.array([[[5.0, 5.0, 1.0]]])
    found, asked = saturated(image, truth, 2.0)
    np.testing.assert_array_equal(found - asked, [[[0.0, -0.5, 2.0]]])
    assert saturated(image, truth, 0.0) == (image, truth)


def test_augmentation_follows_the_generator_alone(stage, avatar):
    recipe = lighting(avatar[0])
    source = recipe.data(stage, "train")
    batches = [next(Batches(source, 4, seed=0, augment=recipe.augment, threads=threads)) for threads in (1, 3)]
    for name in batches[0]:
        np.testing.assert_array_equal(batches[0][name], batches[1][name])


def test_images_may_be_halved(stage):
    full, half = (LitViews(LightStage(stage), "train", n)[3] for n in (1, 2))
    np.testing.assert_allclose(half["image"][0, 0], full["image"][:2, :2].astype(np.float32).mean((0, 1)), atol=1e-3)
    np.testing.assert_allclose(half["focal"], full["focal"] / 2)
    assert block_means(np.ones((4, 6, 1)), 2).shape == (2, 3, 1)
    with pytest.raises(InputError, match="cannot be averaged over 5 x 5"):
        LitViews(LightStage(stage), "train", 5)


class Bare:
    """A capture with what the protocol asks for and nothing else: no folder, no landmarks."""

    def __init__(self, folder):
        real = LightStage(folder)
        for name in ("topology", "entries", "n_cameras", "groups", "image_size", "texture_size", "view"):
            setattr(self, name, getattr(real, name))


def test_any_capture_will_do(stage):
    source = CaptureViews(Bare(stage), [0], lambda view, camera, expression, tracked: {"light": view.light})
    assert len(source) == CAMERAS
    assert source[1]["light"].shape == (GROUPS, 3)
    assert head_arrays(Bare(stage)).keys() == {"faces", "uv", "uv_faces"}


# -- what is common ---------------------------------------------------------------------------------------------------


def test_presets_fit_together():
    dam = find_recipe("deep-appearance").presets
    for which, preset in find_recipe("deep-lighting").presets.items():
        assert preset.config.appearance == dam[which].config.network


def test_the_paper_s_rate_falls_in_steps():
    optimiser = Schedule(rate=1e-3, decay=0.5, decay_every=2).optimiser(10)
    x = jnp.zeros(())
    state, moves = optimiser.init(x), []
    for _ in range(4):
        step, state = optimiser.update(jnp.ones(()), state, x)
        moves.append(float(step))
    np.testing.assert_allclose(moves, [-1e-3, -1e-3, -5e-4, -5e-4], rtol=1e-3)


REFUSED = {
    "another texture": ({"network": dataclasses.replace(APPEARANCE, texture_size=64)}, "texture_size of 32"),
    "another mesh": ({"network": dataclasses.replace(APPEARANCE, n_vertices=7)}, "--set network.n_vertices="),
    "another rig": ({"network": dataclasses.replace(APPEARANCE, n_cameras=5)}, "The capture has 2 cameras"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_appearance_refuses_what_does_not_fit(stage, case):
    changes, told = REFUSED[case]
    with pytest.raises(InputError, match=told):
        appearance(**changes).data(stage, "train")


def test_lighting_refuses_what_does_not_fit(stage, avatar, light_run, tmp_path):
    def begin(data=stage, **changes):
        recipe = lighting(**{"avatar": avatar[0], **changes})
        recipe.init(jax.random.key(0), recipe.data(data, "train"))

    def refused(told, **changes):
        with pytest.raises(InputError, match=told):
            begin(**changes)

    refused("3 groups of lights, and network.groups is 5", network=dataclasses.replace(NETWORK, groups=5))
    refused("--set network.texture_size=32", network=dataclasses.replace(NETWORK, texture_size=64, map_size=16))
    refused("knows the directions of 3 lights", network=dataclasses.replace(NETWORK, lights=5))
    refused("--set appearance.n_vertices=", appearance=dataclasses.replace(APPEARANCE, n_vertices=7))
    refused("was trained with network.code = 4", appearance=dataclasses.replace(APPEARANCE, code=5))
    refused(
        "--set appearance.encoder_channels=8,8,8", appearance=dataclasses.replace(APPEARANCE, encoder_channels=(4,))
    )
    refused("needs the decoder of a deep-appearance run", avatar="")
    refused("There is no checkpoint", avatar=tmp_path / "nowhere")
    refused("takes one of 'deep-appearance'", avatar=light_run[0])
    refused("has no partly lit frames", data=write_capture(tmp_path / "even", partly_lit=False))
    with pytest.raises(InputError, match="starts from a capture"):
        lighting(avatar[0]).init(jax.random.key(0), [{}])
