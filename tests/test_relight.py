"""Relighting: light comes from where it should, exposure is steady, files are whole, bad input is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from toy_avatar import GROUPS, toy_avatar
from toy_head import toy_result

from facejax import cli
from facejax.apps.avatar import AvatarView
from facejax.apps.relight import (
    RelightConfig,
    Relighting,
    backdrop,
    composed,
    exposure_factor,
    head_middle,
    inside_mesh,
    lamp_at,
    mirror_ball,
    plan_shots,
    relight,
    relight_folder,
    relightable,
    straight_rgba,
    tone,
    turned_light,
)
from facejax.data.environments import save_environment
from facejax.data.results import TrackResult, assemble
from facejax.data.video import open_video
from facejax.geometry.errors import InputError
from facejax.geometry.records import Camera, Pose
from facejax.renderers.lights import Environment, NearLights, radiance_towards, sphere_directions

EVEN = jnp.zeros((1, 3)).at[0].set(np.sqrt(4 * np.pi))
SMALL = RelightConfig(size=64)


@pytest.fixture(scope="module")
def result():
    """Three frames of the toy, looking straight at the camera; the second was lost."""
    made = toy_result(n_frames=3, valid=np.array([True, False, True]))
    straight = np.tile(np.diag([1.0, -1.0, -1.0]).astype(np.float32), (3, 1, 1))
    away = np.tile(np.array([0, 0, 0.6], np.float32), (3, 1))
    fields = {"rotation": straight, "translation": away, "time": np.arange(3, dtype=np.float32) / 25}
    copy = dataclasses.replace(made, **fields, texture=np.ones_like(made.texture))
    copy.__dict__["topology"] = made.topology
    return copy


@pytest.fixture(scope="module")
def folder(result, tmp_path_factory):
    path = tmp_path_factory.mktemp("tracked")
    result.save(path)
    return path


def spot(direction, radius=0.35):
    """A map that is bright around one direction of the camera frame and dim elsewhere."""
    from facejax.renderers.lights import environment_directions

    towards = environment_directions(32, 64) @ (np.array(direction) / np.linalg.norm(direction))
    return Environment(
        radiance=jnp.asarray(np.where(towards > np.cos(radius), 30.0, 0.05)[..., None] * np.ones(3), jnp.float32)
    )


def halves(picture):
    """Mean luminance of the head's (left, right, upper, lower) half in the picture."""
    y, x = np.nonzero(picture[..., 3] > 0.99)
    value = picture[y, x, :3].mean(axis=1)
    cx, cy = x.mean(), y.mean()
    return value[x < cx].mean(), value[x > cx].mean(), value[y < cy].mean(), value[y > cy].mean()


# -- light and exposure -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def relit(result):
    """Draws the first frame under a light; compiled once for maps."""
    plan = plan_shots(result, SMALL)

    def draw(light, turn=0.0, **changes):
        relighting = Relighting(result, light, dataclasses.replace(SMALL, rotate=turn, **changes), plan)
        return relighting.picture(dataclasses.replace(plan.shots[0], turn=turn))

    return draw


def test_light_comes_from_where_it_is(relit):
    left, right, upper, lower = halves(relit(spot([1, 0, -0.5])))
    assert right > 2 * left
    left, right, upper, lower = halves(relit(spot([0, -1, -0.5])))
    assert upper > 1.5 * lower
    np.testing.assert_allclose(left, right, rtol=0.15)


def test_turning_brings_what_was_ahead_to_the_right(relit):
    left, right, *_ = halves(relit(spot([-0.5, 0, -1]), turn=-90.0))  # from behind the camera's left to its right
    assert right > 1.5 * left
    ahead = spot([0, 0, 1])
    for degrees, direction in ((90.0, [1.0, 0, 0]), (180.0, [0.0, 0, -1]), (-90.0, [-1.0, 0, 0]), (0.0, [0.0, 0, 1])):
        turned = turned_light(ahead, degrees, np.zeros(3, np.float32))
        assert radiance_towards(turned, jnp.array([direction])).min() > 20
    lamp = NearLights(positions=jnp.array([[0.0, 0.1, 0.3]]), intensity=jnp.ones((1, 3)))
    moved = turned_light(lamp, 90.0, np.array([0, 0, 0.8], np.float32))
    np.testing.assert_allclose(moved.positions, [[-0.5, 0.1, 0.8]], atol=1e-6)


def test_a_lamp_shines_from_its_side(result, relit):
    plan = plan_shots(result, SMALL)
    left, right, *_ = halves(relit(lamp_at((-0.5, 0.0, -0.2), plan, result)))
    assert left > 3 * right


def test_exposure_makes_dim_and_bright_maps_alike_and_counts_in_stops(relit):
    light = spot([1, -1, -1])
    picture = relit(light)
    brighter = relit(light.replace(radiance=500 * light.radiance))
    np.testing.assert_allclose(brighter, picture, atol=2e-3)
    np.testing.assert_allclose(relit(light, exposure=1.0)[..., :3], 2 * picture[..., :3], rtol=1e-4, atol=1e-6)


def test_metering_keeps_dark_skin_dark_and_highlights_whole():
    def flat(value):
        return [np.concatenate([np.full((8, 8, 3), value), np.ones((8, 8, 1))], axis=-1).astype(np.float32)]

    assert exposure_factor(flat(0.1), 0.4) == pytest.approx(3.0)
    assert exposure_factor(flat(0.1), 0.05) == pytest.approx(0.375)
    spots = flat(0.1)
    spots[0][0, :, :3] = 3.0
    assert exposure_factor(spots, 0.4) * 3 <= 1.0
    with pytest.raises(InputError, match="No light reaches the head"):
        exposure_factor(flat(0.0), 0.4)
    with pytest.raises(InputError, match="No light reaches the head"):
        exposure_factor([np.zeros((4, 4, 4), np.float32)], 0.4)


def test_tone_leaves_the_middle_and_never_clips():
    x = np.linspace(0, 20, 2000)[:, None] * np.ones(3)
    y = tone(x)
    np.testing.assert_allclose(y[x < 0.7], x[x < 0.7])
    assert (np.diff(y[:, 0]) >= 0).all()
    assert y.max() <= 1
    slope = np.diff(y[:, 0]) / np.diff(x[:, 0])
    assert np.abs(np.diff(slope)).max() < 0.05  # no kink


def test_even_light_gives_back_the_albedo(relit, result):
    picture = relit(EVEN)
    plan = plan_shots(result, SMALL)
    middle = picture[plan.size[0] // 2, plan.size[1] // 2, :3]
    np.testing.assert_allclose(middle / middle[0], np.array([0.5, 0.3, 0.2]) / 0.5, rtol=0.1)


def test_paths_agree_with_self_shadowed_light(result):
    """Under a lamp: the two renderers share nothing but the light. Light from face to face makes paths brighter."""
    from facejax.renderers.llvm import MINIMUM_VERSION, find_llvm

    found = find_llvm()
    if found is None or found[1] < MINIMUM_VERSION:
        pytest.skip("path tracing needs LLVM 16 or newer")
    means = []
    for traced in (False, True):
        config = RelightConfig(size=48, frames=(0, 1), path_traced=traced, samples=16)
        plan = plan_shots(result, config)
        relighting = Relighting(result, lamp_at((0.4, -0.3, -0.3), plan, result), config, plan)
        picture = relighting.picture(plan.shots[0])
        means.append(picture[picture[..., 3] > 0.99][:, :3].mean() / relighting.factor)
    assert means[0] == pytest.approx(means[1], rel=0.06)


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_a_lost_frame_is_empty_and_others_are_not(result):
    pictures = list(relight(result, EVEN, SMALL))
    assert len(pictures) == 3
    assert pictures[1].max() == 0
    assert all((p[..., 3] > 0.99).sum() > 300 for p in (pictures[0], pictures[2]))


def test_turntable_goes_around_once(result):
    config = RelightConfig(size=64, view="turntable", sweep=10.0)
    plan = plan_shots(result, config)
    assert len(plan.shots) == 150
    front = np.stack([np.asarray(s.pose.rotation) @ [0, 0, 1] for s in plan.shots])
    np.testing.assert_allclose(front[[0, 75]], [[0, 0, -1], [0, 0, 1]], atol=1e-5)
    np.testing.assert_allclose(front[:, 1], 0, atol=1e-6)
    assert front[10, 0] > 0  # the subject turns to its left, the picture's right
    assert plan.shots[-1].turn == pytest.approx(149 * 10 / 25, rel=1e-4)
    for shot in plan.shots[::30]:
        at = result.neutral @ np.asarray(shot.pose.rotation).T + np.asarray(shot.pose.translation)
        xy = at[:, :2] / at[:, 2:] * np.asarray(plan.camera.focal) + np.asarray(plan.camera.principal_point)
        assert xy.min() > 0
        assert xy.max() < 64


def test_camera_view_shows_the_inputs_window(result):
    plan = plan_shots(result, RelightConfig(size=120, frames=(1, 3)))
    assert plan.size[0] == 120
    assert [s.frame for s in plan.shots] == [1, 2]
    window = plan.window
    assert plan.camera.focal[0] == pytest.approx(900 * plan.size[1] / window.width, rel=1e-5)
    np.testing.assert_allclose(head_middle(result), [0, 0, 0.6], atol=0.02)


def test_composition_and_alpha():
    picture = np.zeros((4, 4, 4), np.float32)
    picture[:2] = [0.2, 0.2, 0.2, 1.0]
    picture[2] = [0.1, 0.1, 0.1, 0.5]
    rgba = straight_rgba(picture)
    assert rgba.dtype == np.uint8
    np.testing.assert_array_equal(rgba[2, 0, :3], rgba[0, 0, :3])  # straight: half covered, the same colour
    assert rgba[2, 0, 3] == 128
    assert rgba[3].max() == 0
    shown = composed(picture, np.full((4, 4, 3), 0.2, np.float32))
    assert len(np.unique(shown)) == 1


def test_backdrop_shows_what_is_ahead():
    camera = Camera(focal=jnp.array([80.0, 80.0]), principal_point=jnp.array([32.0, 32.0]))
    right = backdrop(spot([1.0, 0, 1.2], 0.3), camera, (64, 64), 1.0)
    assert right.shape == (64, 64, 3)
    assert right[:, 48:].mean() > 3 * right[:, :16].mean()
    up = backdrop(spot([0, -1.0, 1.2], 0.3), camera, (64, 64), 1.0)
    assert up[:16].mean() > 3 * up[48:].mean()
    assert backdrop(spot([0, 0, 1.0]), camera, (64, 64), 1e6).max() < 1
    lamp = NearLights(positions=jnp.zeros((1, 3)), intensity=jnp.ones((1, 3)))
    assert 0 < backdrop(lamp, camera, (64, 64), 1.0).max() < 0.1


def test_a_mirror_ball_reflects_what_is_behind_the_camera_in_its_middle():
    ball = mirror_ball(spot([0, 0, -1.0]), 33)
    assert ball[16, 16, 0] > 20
    assert ball[0, 0, 3] == 0
    right = mirror_ball(spot([1.0, 0, 0]), 33)
    row = right[16, :, 0]
    assert 16 < np.argmax(row) < 33
    assert 16 < np.argmax(mirror_ball(spot([0, 1.0, 0]), 33)[:, 16, 0]) < 33  # down is down


# -- appearance -------------------------------------------------------------------------------------------------------


def test_skin_without_gloss_gets_some_and_albedo_is_bounded(result):
    dull = dataclasses.replace(result, specular=np.zeros_like(result.specular), texture=np.full_like(result.texture, 9))
    made = relightable(dull)
    np.testing.assert_allclose(made["specular"], 0.03)
    np.testing.assert_allclose(made["roughness"], 0.3)
    assert float(made["texture"].max()) <= 9
    skin = result.parts == result.part_names.index("skin")
    assert float((made["texture"].mean((0, 1)) * made["albedo"][skin].max(0)).max()) < 1.2
    kept = relightable(result)
    np.testing.assert_array_equal(kept["specular"], result.specular)


def test_what_was_never_seen_is_continued_from_what_was(result):
    """The back of the head is painted by accident in an odd colour; the front is what counts."""
    texture = np.ones((64, 64, 3), np.float32)
    texture[:, :6] = texture[:, 40:44] = [4.0, 0.1, 4.0]  # the chart of the skin: its seam is at the back
    made = np.asarray(relightable(dataclasses.replace(result, texture=texture))["texture"])
    assert np.abs(made[20:44, :6] - 1).max() < 0.4
    np.testing.assert_allclose(made[28:36, 18:26], 1, atol=0.05)


# -- inside and outside -----------------------------------------------------------------------------------------------


def test_inside_of_closed_and_open_meshes(result):
    vertices, faces = result.neutral, result.faces
    skin = faces[(result.parts[faces] == result.part_names.index("skin")).all(axis=1)]
    open_below = skin[vertices[skin].mean(axis=1)[:, 1] > -0.08]
    for some in (skin, open_below):
        assert inside_mesh(np.array([0, 0, 0], np.float32), vertices, some)
        assert inside_mesh(np.array([0, 0.09, 0.0], np.float32), vertices, some)
        assert not inside_mesh(np.array([0, 0, 0.12], np.float32), vertices, some)
        assert not inside_mesh(np.array([0.5, 0.5, 0.5], np.float32), vertices, some)
    assert inside_mesh(vertices[skin[0, 0]] * 1.0001, vertices, skin)  # on the skin


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("relit") / "out"
    stages = []
    env = tmp_path_factory.mktemp("maps") / "sky.hdr"
    save_environment(env, spot([1, -1, -1]))
    rows = relight_folder(folder, out, env=env, config=SMALL, renders=True, progress=lambda *told: stages.append(told))
    return out, rows, stages, env


def test_a_folder_is_written_whole(written):
    out, rows, stages, _ = written
    assert sorted(p.name for p in out.iterdir()) == ["preview.png", "relight.json", "relit.mp4", "renders"]
    assert open_video(out / "relit.mp4").n_frames == 3
    names = sorted(p.name for p in (out / "renders").iterdir())
    assert names == ["00000.png", "00001.png", "00002.png"]
    alpha = [np.asarray(Image.open(out / "renders" / n))[..., 3] for n in names]
    assert alpha[0].max() == 255
    assert alpha[1].max() == 0
    facts = json.loads((out / "relight.json").read_text())
    assert facts["frames"] == [0, 1, 2]
    assert facts["light"]["env"].endswith("sky.hdr")
    assert stages[-1] == ("pictures", 3, 3)
    assert {name for name, *_ in rows} >= {"pictures", "seconds per frame"}


def test_a_preview_shows_the_mirror_ball(written):
    preview = np.asarray(Image.open(written[0] / "preview.png"))
    height = preview.shape[0]
    corner = preview[height - height // 5 - height // 32 : height - height // 32, height // 32 : height // 4]
    assert corner.max() == 255  # the lamp is reflected


def test_an_interruption_leaves_what_was_there(folder, written, monkeypatch):
    out, _, _, env = written
    before = {p.name: p.stat().st_mtime_ns for p in out.rglob("*")}

    def stop(self, shot):
        raise KeyboardInterrupt

    monkeypatch.setattr(Relighting, "__init__", lambda self, *args, **options: None)
    monkeypatch.setattr(Relighting, "picture", stop)
    with pytest.raises(KeyboardInterrupt):
        relight_folder(folder, out, env=env, config=SMALL)
    assert {p.name: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    assert [p.name for p in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "exactly one of --env FILE, --sh FILE and --point"),
        (["--env", "a.hdr", "--point", "0.3,0.3,-0.5"], "exactly one of"),
        (["--env", "gone.hdr"], "No environment map at gone.hdr"),
        (["--env", "sky.jpg"], "as .hdr or .exr, got 'sky.jpg'"),
        (["--sh", "sky.csv"], "as .npy, .npz, .json or .txt"),
        (["--point", "1,2"], "--point takes three numbers"),
        (["--point", "nan,2,3"], "--point takes three numbers"),
        (["--point", "0,0,0"], "is inside the head, which is 16 x 22 x"),
        (["--point", "-0.01,0.02,0.03"], "is inside the head"),
        (["--env", "a.hdr", "--size", "31"], "--size must be at least 32 pixels, not 31"),
        (["--env", "a.hdr", "--frames", "2:9"], "Frames 2:9 are not in the result, which has 3"),
        (["--env", "a.hdr", "--frames", "x"], "--frames takes A:B"),
        (["--env", "a.hdr", "--rotate", "fast"], "--rotate takes degrees"),
        (["--env", "a.hdr", "--samples", "0"], "--samples must be at least 1"),
        (["--env", "a.hdr", "--exposure", "nan"], "--exposure must be"),
    ],
)
def test_the_command_refuses(folder, tmp_path, capsys, arguments, sentence, monkeypatch):
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    assert cli.main(["relight", str(folder), "--out", str(tmp_path / "out"), *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_folders_that_are_refused(folder, tmp_path, capsys, monkeypatch, written):
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    env = str(written[3])
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    for source, out, sentence in (
        (tmp_path / "gone", tmp_path / "out", "No result at"),
        (other, tmp_path / "out", "No result at"),
        (folder, other, "holds other files and no relit.mp4"),
        (folder, folder, "holds other files and no relit.mp4"),
        (folder, tmp_path / "out.mp4", "leave its suffix out"),
    ):
        assert cli.main(["relight", str(source), "--env", env, "--out", str(out), "--size", "64"]) == 2
        assert sentence in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


def test_path_tracing_without_llvm_says_what_to_install(folder, tmp_path, capsys, monkeypatch, written):
    from facejax.renderers import llvm

    def missing():
        raise InputError("Path tracing needs the LLVM library.")

    monkeypatch.setattr(llvm, "require_llvm", missing)
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    arguments = ["relight", str(folder), "--env", str(written[3]), "--path-traced", "--size", "64"]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert "needs the LLVM library" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_turns_are_read():
    assert cli.parse_turn(None) == (0, 0)
    assert cli.parse_turn("90") == (90, 0)
    assert cli.parse_turn("-30/s") == (0, -30)
    assert cli.parse_turn("90,30/s") == (90, 30)
    assert cli.parse_point("-0.1,2,3e-1") == (-0.1, 2, 0.3)


def test_lights_that_no_renderer_can_use(result):
    with pytest.raises(InputError):
        relight(result, jnp.ones((5, 3)), SMALL)
    with pytest.raises(InputError):
        relight(result, Environment(radiance=jnp.ones((4, 9, 3))), SMALL)
    with pytest.raises(InputError, match="at least 32"):
        relight(result, EVEN, RelightConfig(size=8))


# --- avatars ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def avatar_clip():
    """Two frames of an avatar that says where the lights of its capture were, as `fit_sequence` returns them."""
    directions = np.asarray(sphere_directions(24), np.float32)
    avatar = dataclasses.replace(toy_avatar(), light_directions=directions, light_group=np.arange(24) % GROUPS)
    clip, frame = avatar.init_code()
    n = 2
    straight = jax.vmap(lambda z: Pose(jnp.diag(jnp.array([1.0, -1.0, -1.0])), jnp.array([0.0, 0.0, 0.6]) + 0 * z))
    return assemble(
        avatar,
        params=avatar.params,
        code=clip,
        frames=frame.replace(code=jnp.ones((n, *frame.code.shape))),
        poses=straight(jnp.zeros(n)),
        light=jnp.ones((n, *avatar.no_light().shape)),
        light_model="network",
        camera=Camera(focal=jnp.array([900.0, 900.0]), principal_point=jnp.array([320.0, 240.0])),
        image_size=(640, 480),
        time=np.arange(n) / 25,
        frame_ids=np.arange(n),
        landmarks_target=np.full((n, 478, 2), np.nan, np.float32),
        valid=np.ones(n, bool),
        status=np.zeros(n, int),
        status_names=("ok",),
    )


def test_an_avatar_is_relit_as_itself_from_memory_and_from_its_folder(avatar_clip, tmp_path):
    plan = plan_shots(avatar_clip, SMALL)
    shot = plan.shots[1]
    view = AvatarView(avatar_clip)
    want = view.draw(1, shot.pose, shot.camera, plan.size, view.code_of(EVEN, shot.pose))
    for result in (avatar_clip, saved_and_loaded(avatar_clip, tmp_path)):
        drawn = list(relight(result, EVEN, SMALL))[1]
        np.testing.assert_allclose(drawn[..., 3], want[..., 3], atol=1e-3)
        factor = Relighting(result, EVEN, SMALL, plan).factor
        np.testing.assert_allclose(drawn[..., :3], factor * want[..., :3], rtol=1e-2, atol=1e-3)
        assert want[..., :3].max() > 0
    with pytest.raises(InputError, match="no surface to trace paths on"):
        relight(avatar_clip, EVEN, dataclasses.replace(SMALL, path_traced=True))


def saved_and_loaded(result, folder):
    result.save(folder)
    return TrackResult.load(folder)
