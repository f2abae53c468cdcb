"""What the tables of deep lighting adaptation are made of."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_avatar import CODE, GROUPS, toy_avatar
from toy_head import toy_head

from facejax.data.video import open_video
from facejax.evaluation.deep_lighting import (
    TABLE_1,
    TABLES,
    Protocol,
    by_shadow,
    clips_in,
    effect_size,
    effects,
    held_out_frames,
    identity_plugin,
    key_frames,
    measure_geometry,
    open_clip,
    report,
    table,
)
from facejax.fitting.footage import Footage
from facejax.fitting.sequence import Fit
from facejax.geometry.cameras import to_camera_frame
from facejax.geometry.errors import InputError
from facejax.geometry.records import Camera, Pose
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.models.avatar import AvatarClip, AvatarFrame
from facejax.objectives.metrics import similarity_align
from facejax.scenes import ClipVariables, FrameVariables, Lens, Unknowns, make_scene
from facejax.scenes.unknowns import on_host, variables_of

CAMERA = Camera(focal=jnp.full(2, 300.0), principal_point=jnp.full(2, 48.0))
POSE = Pose(rotation=jnp.diag(jnp.array([1.0, -1.0, -1.0])), translation=jnp.array([0.0, 0.0, 0.8]))


def test_a_rigid_motion_is_found_again():
    points = np.random.default_rng(0).normal(size=(20, 3))
    turn = np.asarray(rotvec_to_matrix(jnp.array([0.1, -0.4, 0.2])))
    found = similarity_align(points, points @ turn.T + [1, 2, 3], with_scale=False)
    np.testing.assert_allclose(found.rotation, turn, atol=1e-5)
    np.testing.assert_allclose(found.translation, [1, 2, 3], atol=1e-5)


def test_held_out_frames_are_spread_and_not_all():
    held = held_out_frames(96, 24)
    assert len(held) == 24
    assert held[0] < 4
    assert held[-1] > 91
    with pytest.raises(InputError, match="24 frames cannot be held out of a clip of 20"):
        held_out_frames(20, 24)


def test_key_frames_spread_over_the_turn():
    yaw = np.concatenate([np.zeros(30), np.linspace(-0.6, 0.6, 10)])
    rotation = np.stack([np.asarray(rotvec_to_matrix(jnp.array([0.0, y, 0.0]))) for y in yaw])
    among = np.arange(40)
    assert np.ptp(yaw[key_frames(rotation, among, 3)]) > 1.1
    np.testing.assert_array_equal(key_frames(rotation, among, None), among)
    with pytest.raises(InputError, match="needs a key frame at least"):
        key_frames(rotation, among, 0)


def test_effect_size_is_cohen_s():
    np.testing.assert_allclose(effect_size([1.0, 2.0, 3.0], [3.0, 4.0, 5.0]), -2.0)
    assert effect_size([2.0, 2.0], [1.0, 1.0]) == np.inf


def row(method, seed, l2, clip="sun"):
    geometry = {"face (mm)": 1.0, "rotation (degrees)": 0.5}
    return {
        "clip": clip, "method": method, "seed": seed, "geometry": geometry,
        "held out": {"L2": l2, "SSIM": 0.9, "PSNR": 30.0}, "adapted to": {"L2": l2 / 2},
    }  # fmt: skip


def test_a_table_shows_means_and_spread_over_seeds():
    rows = [row("ours", 0, 10.0), row("ours", 0, 30.0, "lamp"), row("ours", 1, 24.0), row("ours", 1, 24.0, "lamp")]
    text = table(rows)
    assert "| ours | 22.00 ± 2.8 |" in text
    assert "CSIM" not in text
    assert "| ours | 17.00 ± 9.9 |" in table(rows, ["sun"])


def test_effects_compare_neighbours_in_the_paper_s_order():
    order = ["K = all", "K = 48", "K = 12", "w/o pre-training", "w/o adaptation", "K = 1"]
    rows = [row(m, seed, 10.0 * (i + 1) + seed) for i, m in enumerate(order) for seed in (0, 1, 2)]
    lines = effects(rows).splitlines()[2:]
    assert lines[0] == "| K = 48 | K = all | 1.909 | 10.0 |"
    assert lines[-1].startswith("| K = 1 | w/o adaptation |")
    assert len(lines) == 5


def test_frames_are_sorted_by_their_shadow_over_all_clips():
    share = {"sun": [0.3, 0.1], "lamp": [0.0, 0.2]}
    rows = []
    for clip, shares in share.items():
        for k, method in enumerate(TABLE_1):
            errors = [10.0 + (200.0 if k == 1 else 0.0) * x for x in shares]
            rows.append(row(method.name, 0, 1.0, clip) | {"per frame": {"L2": errors, "shadowed": shares}})
    lines = by_shadow(rows, parts=2).splitlines()[2:]
    assert lines[0] == "| 5.0 % | 2 | 10.0 | 20.0 | 10.0 | 0.50 |"
    assert lines[1] == "| 25.0 % | 2 | 10.0 | 60.0 | 10.0 | 0.17 |"


@pytest.fixture
def exact():
    """A registration of two frames, and true vertices: the same."""
    eyes = np.asarray(toy_head().params.eye_weight).max(axis=1)
    avatar = dataclasses.replace(toy_avatar(), regions={**toy_avatar().regions, "eyeballs": eyes})
    codes = np.random.default_rng(0).normal(size=(2, CODE)).astype(np.float32)
    shared = AvatarClip()
    faces = [avatar.vertices(avatar.params, shared, AvatarFrame(code=jnp.asarray(c))) for c in codes]
    one = FrameVariables(
        lens=Lens(camera=CAMERA, reference_px=jnp.asarray(24.0)),
        pose=variables_of(POSE, CAMERA, 24.0),
        code=AvatarFrame(code=jnp.zeros(CODE)),
        light=jnp.zeros((GROUPS, 3)),
        log_zoom=jnp.zeros(()),
    )
    frames = on_host(jax.tree.map(lambda x: jnp.stack([x, x]), one))
    frames = frames.replace(code=frames.code.replace(code=codes))
    clip = ClipVariables(code=shared, light=jnp.zeros((GROUPS, 3)), log_zoom=jnp.zeros(()))
    unknowns = Unknowns(params=avatar.params, clip=clip, frames=frames, settled={})
    footage = Footage(
        open_video(np.zeros((2, 48, 48, 3), np.uint8)), None, np.zeros((2, 478, 2)), np.ones((2, 478)), np.ones(2, bool)
    )
    done = Fit(make_scene(avatar, (48, 48)), footage, unknowns, [])
    seen = np.stack([np.asarray(to_camera_frame(v, POSE)) for v in faces])

    return done, seen


def test_the_truth_has_no_error_and_a_turn_is_a_turn(exact):
    done, truth = exact
    errors = measure_geometry(done, truth, np.arange(2))
    assert max(errors.values()) < 0.05
    frames = done.unknowns.frames
    turned = frames.pose.turn + np.array([0.0, np.radians(2.0), 0.0], np.float32)
    moved = done.unknowns.replace(frames=frames.replace(pose=frames.pose.replace(turn=turned)))
    off = dataclasses.replace(done, unknowns=moved)
    errors = measure_geometry(off, truth, np.arange(2))
    np.testing.assert_allclose(errors["rotation (degrees)"], 2.0, atol=0.05)
    assert errors["face (mm)"] < 0.05  # a rigid error is the rotation's, not the mesh's
    assert errors["gaze (degrees)"] < 0.1


def test_what_is_no_clip_and_no_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="no clips with truth"):
        clips_in(tmp_path)
    with pytest.raises(InputError, match="it lacks frames"):
        open_clip(tmp_path)
    with pytest.raises(InputError, match=f"Tables are {', '.join(TABLES)}, and 3 was asked for"):
        report(toy_avatar(), [], tmp_path, Protocol(), ["3"])
    with pytest.raises(InputError, match="cannot be imported"):
        identity_plugin("no_such_module:likeness")
