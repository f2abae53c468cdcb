"""Make `relighting.png`: a map with a lamp of its own colour in every direction, a mirror ball and a head under it.

Run it as `python docs/images/make_relighting.py [OUT.png]`.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from facejax.apps.relight import RelightConfig, Relighting, composed, mirror_ball, plan_shots
from facejax.data.heads import load_model
from facejax.data.results import TrackResult, assemble
from facejax.geometry.records import Camera, Pose
from facejax.renderers.lights import Environment, environment_directions

SIDE = 256
LAMPS = {  # direction in the camera frame, colour
    "ahead": ((0, 0, 1), (0.9, 0.9, 0.9)),
    "right": ((1, 0, 0), (1.0, 0.35, 0.1)),
    "left": ((-1, 0, 0), (0.15, 0.45, 1.0)),
    "behind": ((0, 0, -1), (1.0, 0.9, 0.3)),
    "up": ((0, -1, 0), (0.4, 1.0, 0.5)),
    "down": ((0, 1, 0), (0.6, 0.1, 0.6)),
}


def synthetic_map(height: int = 256) -> Environment:
    """A pale sky over dark ground, with a lamp in each of six directions."""
    directions = environment_directions(height, 2 * height)
    up = -directions[..., 1:2]
    radiance = np.where(up > 0, 0.25 + 0.15 * up, 0.08) * np.array([0.9, 1.0, 1.1])
    for towards, colour in LAMPS.values():
        inside = 1 / (1 + np.exp(-60 * (directions @ np.array(towards, np.float32) - np.cos(0.32))))
        radiance = radiance * (1 - inside[..., None]) + 3.0 * inside[..., None] * np.array(colour)
    return Environment(radiance=jnp.asarray(radiance, jnp.float32))


def standing_head() -> TrackResult:
    """The built-in head, looking into a camera at arm's length, as a result of one frame."""
    head = load_model("generic")
    shared, frame = head.init_code()
    pose = Pose(rotation=jnp.diag(jnp.array([1.0, -1.0, -1.0])), translation=jnp.array([0.0, 0.0, 0.8]))
    one = jax.tree_util.tree_map(lambda x: x[None], (frame, pose))
    return assemble(
        head,
        params=head.params,
        code=shared,
        frames=one[0],
        poses=one[1],
        light=np.asarray(head.init_light())[None],
        camera=Camera(focal=jnp.full(2, 2.9 * SIDE), principal_point=jnp.full(2, SIDE / 2)),
        image_size=(SIDE, SIDE),
        time=np.zeros(1),
        frame_ids=np.zeros(1, int),
        landmarks_target=np.full((1, 478, 2), np.nan),
        valid=np.ones(1, bool),
        status=np.zeros(1, int),
        status_names=("ok",),
    )


def label(draw: ImageDraw.ImageDraw, x: float, y: float, text: str) -> None:
    """Dark text on a light plate, centred."""
    font = ImageFont.load_default(size=13)
    box = draw.textbbox((x, y), text, font=font, anchor="mm")
    draw.rectangle((box[0] - 3, box[1] - 2, box[2] + 3, box[3] + 2), fill=(245, 245, 245))
    draw.text((x, y), text, fill=(20, 20, 20), font=font, anchor="mm")


def main(path: Path) -> None:
    """Draw the picture."""
    light = synthetic_map()
    grey = np.full((SIDE, SIDE, 3), 0.02, np.float32)
    panorama = np.asarray(light.radiance)
    flat = np.concatenate([panorama, np.ones_like(panorama[..., :1])], axis=-1)
    result, config = standing_head(), RelightConfig(size=SIDE, exposure=0.7)
    plan = plan_shots(result, config)
    head = Relighting(result, light, config, plan).picture(plan.shots[0])
    around = np.full((*plan.size, 3), 0.02, np.float32)
    panels = [composed(flat / [2, 2, 2, 1], panorama), composed(mirror_ball(light, SIDE) / [2, 2, 2, 1], grey)]
    panels.append(composed(head, around))
    picture = Image.fromarray(np.concatenate(panels, axis=1))
    draw = ImageDraw.Draw(picture)
    for u, v, name in ((1, 1, "ahead"), (1.5, 1, "right"), (0.5, 1, "left"), (0.12, 1, "behind"), (1.88, 1, "behind"),
                       (1, 0.08, "up"), (1, 1.92, "down")):  # fmt: skip
        label(draw, u * SIDE, v * SIDE / 2, name)
    for name, (towards, _) in LAMPS.items():
        if name != "ahead":  # all around the rim
            half = np.array(towards, float) - [0, 0, 1]
            half /= np.linalg.norm(half)
            label(draw, 2.5 * SIDE + half[0] * SIDE / 2.1, SIDE / 2 + half[1] * SIDE / 2.1, name)
    label(draw, 2.5 * SIDE, 0.03 * SIDE, "ahead: the rim")
    picture.save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("relighting.png"))
