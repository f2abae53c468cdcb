"""What the design promises a newcomer: another head, light or renderer is fitted without a line in `facejax.fitting`.

Each test displaces some unknowns of a known truth, fits, and asks that at least half of the way back is done.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from posed_clip import CAMERA, SIDE, PosedClip, posed_clip
from toy_avatar import CODE, toy_avatar
from toy_head import toy_codes, toy_head

from facejax.fitting import FitConfig, fit_sequence
from facejax.fitting.schedule import Job, Stage, run_stages
from facejax.fitting.sequence import fit_clip
from facejax.fitting.solve import Lots, Turn
from facejax.fitting.terms import CodePrior, Landmarks, Pictures, Points
from facejax.geometry.colour import srgb_to_linear
from facejax.geometry.records import Face, Record, record
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.models.avatar import AvatarClip, AvatarFrame
from facejax.models.head import Encoder, Guess
from facejax.models.morphable import Expression, MorphableHead
from facejax.renderers.deferred import make_renderer
from facejax.renderers.lights import sphere_directions
from facejax.renderers.monte_carlo import make_monte_carlo_renderer
from facejax.renderers.sh import irradiance_basis
from facejax.scenes import Harmonics, Scene, Unknowns, make_scene
from facejax.scenes.unknowns import take_frames

SIZE = (SIDE, SIDE)
EVEN = Harmonics().init()
LIGHT = 0.7 * EVEN + jnp.asarray(np.random.default_rng(0).uniform(-0.3, 0.3, (9, 3)), jnp.float32)
LITTLE = FitConfig(texture=False, key_frames=2)
EVERY = Lots(frames=4)
INTRINSICS = [*CAMERA.focal.tolist(), *CAMERA.principal_point.tolist()]


def small_head() -> MorphableHead:
    return toy_head(12, 16)


def talking(head: MorphableHead, count: int = 2):
    person, moves, _, _ = toy_codes(head, count, seed=4)
    return person, [take_frames(moves, k) for k in range(count)]


def fitted(clip: PosedClip, start: Unknowns, *turns: Turn) -> Unknowns:
    """The unknowns after these turns on all frames together."""
    count = len(clip.points)
    job = Job(clip.scene, clip.footage, np.arange(count), np.zeros((count, 0), np.float32))
    done, (log,) = run_stages(job, (Stage("all", turns, "key"),), start)
    assert not log.stopped.any()
    return done


def apart(a, b) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(a) - np.asarray(b)))))


def halved(before, after, truth) -> bool:
    """Whether at least half of the way from a displaced start to the truth is done."""
    return apart(after, truth) < 0.5 * apart(before, truth)


def on_skin(light):
    """What a light makes of white skin that faces the camera; what comes from behind nobody sees."""
    towards = sphere_directions(256)
    return irradiance_basis(jnp.asarray(towards[towards[:, 2] < -0.5]), 3) @ light


def under(clip: PosedClip, light) -> Unknowns:
    """The truth under another light."""
    return clip.truth.replace(clip=clip.truth.clip.replace(light=light))


def test_a_morphable_head_through_the_self_shadowed_renderer():
    """By the public function, from landmarks and pictures to a result."""
    head = small_head()
    scene = make_scene(head, SIZE, light_model="shadowed-sh")
    clip = posed_clip(scene, *talking(head), LIGHT)
    stages = (
        Stage("points", (Turn((Landmarks(), CodePrior(0.01)), ("frame.pose", "motion", "shape"), steps=40),), "key"),
        Stage("light", (Turn((Pictures(),), ("clip.light",), steps=40, rate=3.0, by=EVERY),), "key"),
    )
    result = fit_sequence(
        clip.frames, head, landmarks=clip.points, intrinsics=INTRINSICS, config=LITTLE, scene=scene, stages=stages
    )
    assert result.valid.all()
    assert halved(*map(on_skin, (EVEN, result.light_code[0], LIGHT)))


def test_a_morphable_head_through_the_monte_carlo_renderer():
    head = small_head()
    render = make_monte_carlo_renderer(
        head.topology, SIZE, samples=16, directions=64, depth_samples=20_000, resolution=64
    )
    clip = posed_clip(Scene(head, Harmonics(), render, SIZE), *talking(head), LIGHT)
    start = under(clip, 0.7 * LIGHT)
    done = fitted(clip, start, Turn((Pictures(seed=3),), ("clip.light",), steps=25, rate=2.0, by=EVERY))
    assert halved(*map(on_skin, (start.clip.light, done.clip.light, LIGHT)))


def test_an_avatar_by_points_under_spherical_harmonics():
    avatar = toy_avatar()
    scene = Scene(avatar, Harmonics(), make_renderer(avatar.topology, SIZE), SIZE)
    codes = jnp.asarray(np.random.default_rng(1).normal(size=(2, CODE)), jnp.float32)
    clip = posed_clip(scene, AvatarClip(), [AvatarFrame(code=c) for c in codes], LIGHT)
    points = Points(size=SIDE, count=200, detail_px=(3.0,), detail_weight=0.0)
    seen = points.observe(scene, clip.footage, clip.truth, np.arange(2))
    start = points.settle(scene, clip.footage, clip.truth, np.arange(2), seen)  # what its texture shows of the points
    pose = start.frames.pose
    turned = pose.replace(turn=pose.turn + np.array([0.04, -0.06, 0.05], np.float32))
    start = start.replace(frames=start.frames.replace(pose=turned))
    done = fitted(clip, start, Turn((points,), ("frame.pose.turn",), steps=25))
    assert halved(turned.turn, done.frames.pose.turn, pose.turn)


@record
class Jointed(Record):
    """A frame code with joints."""

    face: Expression
    jaw: jax.Array
    """Angle (rad)."""
    neck: jax.Array
    """Axis-angle (rad) of everything above the throat."""


@dataclasses.dataclass(frozen=True, eq=False)
class JointedHead(MorphableHead):
    """The toy head on a neck, with a jaw."""

    def init_code(self, texture_size: int = 8):
        clip, face = super().init_code(texture_size)
        return clip, Jointed(face=face, jaw=jnp.zeros(()), neck=jnp.zeros(3))

    def vertices(self, params, shared, frame):
        still = super().vertices(params, shared, frame.face)
        chin = jax.nn.sigmoid(-200 * (still[:, 1] + 0.04))[:, None]
        jaw = rotvec_to_matrix(jnp.stack([frame.jaw, 0.0 * frame.jaw, 0.0 * frame.jaw]))
        opened = still + chin * (jnp.matmul(still, jaw.T, precision="highest") - still)
        above = jax.nn.sigmoid(200 * (still[:, 1] + 0.08))[:, None]
        turned = jnp.matmul(opened, rotvec_to_matrix(frame.neck).T, precision="highest")
        return opened + above * (turned - opened)

    def decode(self, params, shared, frame, view):
        vertices, albedo = self.vertices(params, shared, frame), self.albedo(params, shared)
        return Face(
            vertices=vertices,
            albedo=albedo,
            texture=shared.texture,
            specular=params.specular,
            roughness=params.roughness,
        )

    def code_prior(self, params, shared, frame):
        return super().code_prior(params, shared, frame.face) + 10 * (frame.jaw**2 + jnp.sum(frame.neck**2))

    def motion_features(self, frame):
        return jnp.concatenate([super().motion_features(frame.face), frame.jaw[None], frame.neck])


def test_a_head_with_joints():
    plain = small_head()
    head = JointedHead(**{f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)})
    person, rest = head.init_code()
    codes = [
        rest.replace(jaw=jnp.asarray(j), neck=jnp.asarray(n)) for j, n in ((0.3, [0.1, 0.2, 0]), (0.2, [0, -0.2, 0.1]))
    ]
    scene = Scene(head, Harmonics(), make_renderer(head.topology, SIZE), SIZE)
    clip = posed_clip(scene, person, codes, EVEN)
    start = clip.truth.replace(
        frames=clip.truth.frames.replace(code=jax.tree.map(lambda x: np.zeros_like(x), clip.truth.frames.code))
    )
    terms = (Landmarks(), CodePrior(0.01))
    done = fitted(clip, start, Turn(terms, ("motion",), steps=60)).frames.code
    truth = clip.truth.frames.code
    assert halved(0, done.jaw, truth.jaw)
    assert halved(0, done.neck, truth.neck)


@dataclasses.dataclass(frozen=True, eq=False)
class KnowingHead(MorphableHead):
    """The toy head with an encoder: how light the skin is, from the middle of the picture."""

    def encode(self, params, picture, camera):
        clip, frame = self.init_code()
        low, high = int(0.45 * len(picture)), int(0.55 * len(picture))
        mean = jnp.log(jnp.mean(srgb_to_linear(picture[low:high, low:high])))
        lighter = (mean - jnp.mean(params.skin_mean[0])) / params.skin_basis[0, 0, 0]
        return Guess(clip=clip.replace(skin=clip.skin.at[0].set(lighter)), frame=frame, pose=None)


def test_a_head_with_an_encoder_starts_from_its_guess():
    plain = small_head()
    head = KnowingHead(**{f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)})
    assert isinstance(head, Encoder)
    person, rest = head.init_code()
    scene = Scene(head, Harmonics(), make_renderer(head.topology, SIZE), SIZE)
    clip = posed_clip(scene, person.replace(skin=jnp.array([-4.0, 0.0])), [rest, rest], EVEN)
    turn = Turn((Landmarks(),), ("frame.pose",), steps=5)
    given = {"landmarks": clip.points, "intrinsics": INTRINSICS, "config": LITTLE, "scene": scene}
    fit = fit_clip(clip.frames, head, **given, stages=(Stage("pose", (turn,), "key"),))
    assert halved(person.skin, fit.unknowns.clip.code.skin, clip.truth.clip.code.skin)
    assert (fit.status == 0).all()
