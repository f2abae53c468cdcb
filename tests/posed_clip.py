"""Clips of toy heads with their truth: what a scene draws of known unknowns, as footage that fits look at."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from facejax.data.video import open_video
from facejax.fitting.footage import Footage
from facejax.geometry.colour import linear_to_srgb_bytes
from facejax.geometry.records import Camera, Pose
from facejax.geometry.rotations import rotvec_to_matrix
from facejax.scenes import ClipVariables, FrameVariables, Lens, Scene, Unknowns
from facejax.scenes.lighting import zero_light
from facejax.scenes.unknowns import variables_of

SIDE = 64
CAMERA = Camera(focal=jnp.full(2, 150.0), principal_point=jnp.full(2, SIDE / 2))
REFERENCE_PX = 13.0
UPRIGHT = jnp.diag(jnp.array([1.0, -1.0, -1.0]))


@dataclasses.dataclass(frozen=True, eq=False)
class PosedClip:
    """Frames that a scene drew, and the unknowns that it drew them of."""

    scene: Scene
    footage: Footage
    truth: Unknowns

    @property
    def points(self) -> np.ndarray:
        """(f, 478, 2) landmarks, pixels."""
        return self.footage.points

    @property
    def frames(self) -> np.ndarray:
        """(f, SIDE, SIDE, 3) sRGB bytes."""
        return np.stack(list(self.footage.clip.frames()))


def posed_clip(scene: Scene, clip_code, frame_codes, light, *, drawn_by: Scene | None = None) -> PosedClip:
    """A head that turns, with these codes (frames: a list), under one light; all pixels of the frame.

    drawn_by: what draws it, of size (SIDE, SIDE), where it is not `scene`.
    """
    draws, count = drawn_by or scene, len(frame_codes)
    clip = ClipVariables(code=clip_code, light=light, log_zoom=jnp.zeros(()))

    def frame(k: int) -> FrameVariables:
        turn = jnp.array([0.05 * (k % 3 - 1), 0.12 * (k - (count - 1) / 2), 0.03 * (-1) ** k])
        pose = Pose(
            rotation=jnp.matmul(rotvec_to_matrix(turn), UPRIGHT, precision="highest"),
            translation=jnp.array([0.01 * (k % 2), 0.005 * k, 0.8]),
        )
        return FrameVariables(
            lens=Lens(camera=CAMERA, reference_px=jnp.asarray(REFERENCE_PX)),
            pose=variables_of(pose, CAMERA, REFERENCE_PX),
            code=frame_codes[k],
            light=zero_light(scene.lighting),
            log_zoom=jnp.zeros(()),
        )

    rows, params = [frame(k) for k in range(count)], draws.head.params
    frames = jax.tree.map(lambda *x: jnp.stack(x), *rows)
    whole, key = jnp.array([0.0, 0.0, SIDE, SIDE]), jax.random.key(5)
    draw = jax.jit(lambda f: draws.picture(params, clip, f, whole, key).image.colour)
    pictures = np.stack([linear_to_srgb_bytes(np.asarray(draw(row))) for row in rows])
    marks = draws.landmarks
    points = jax.jit(jax.vmap(lambda f: marks.points(marks.head.params, clip, f).pixels))(frames)
    truth = Unknowns(params=params, clip=clip, frames=jax.tree.map(np.array, frames), settled={})
    footage = Footage(
        open_video(pictures), None, np.asarray(points), np.ones((count, 478), np.float32), np.ones(count, bool)
    )
    return PosedClip(scene, footage, truth)
