"""Whether an avatar's light depends on the viewpoint where the person's does: do highlights move with the camera?

    python benchmarks/highlights.py --model avatar --capture stage

For partly lit frames of held-out faces, the gain of a texel is its relit over its fully lit colour. Between two cameras
that both see it, the true gain differs where the surface shines and not where it is matt. Compared are the true
difference and the avatar's: their correlation over texels, and the avatar's mean difference where the truth's is among
the largest tenth and the smallest half. The control is a light that does not know the camera: no difference at all.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from machine import machine_facts, print_table

from facejax.data.captures import LightStage, select
from facejax.data.checkpoints import find_checkpoint, read_network
from facejax.data.heads import load_avatar
from facejax.geometry.cameras import view_direction
from facejax.models.avatar import AvatarFrame

SEEN = 0.35  # squared cosine: both cameras look at the texel
LIT = 0.1  # radiance under the full light below which a ratio means nothing


def differences(avatar, codes, capture, number: int, sibling: int, cameras: tuple[int, int]):
    """(true, avatar's) difference of the gain between two cameras, at the texels that both see."""
    true, ours, both = [], [], None

    @jax.jit
    def relit(code, light, pose, rig):
        shared, frame = avatar.init_code()[0], AvatarFrame(code=code)
        face = avatar.decode(avatar.params, shared, frame, view_direction(pose))
        return avatar.relit(avatar.params, face, light, pose, rig).texture, face.texture

    for camera in cameras:
        partly, full = capture.view(number, camera), capture.view(sibling, camera)
        seen = (partly.seen > SEEN) & (full.texture.mean(axis=-1) > LIT)
        both = seen if both is None else both & seen
        strength = 1 / max(float(partly.texture[seen].mean() / full.texture[seen].mean()), 1e-3)
        true.append(strength * partly.texture.mean(axis=-1) / np.maximum(full.texture.mean(axis=-1), LIT))
        code = codes[capture.entries[number].expression]
        lit, dark = relit(code, jnp.asarray(partly.light), partly.pose, partly.head.rotation)
        lit, dark = np.asarray(lit).mean(axis=-1), np.asarray(dark).mean(axis=-1)
        ours.append(strength * lit / np.maximum(dark, LIT))
    return [(x[0] - x[1])[both] for x in (true, ours)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--capture", required=True)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    avatar, capture = load_avatar(told.model), LightStage(told.capture)
    codes = jnp.asarray(read_network(find_checkpoint(told.model))[1]["params/codes"], jnp.float32)
    full = {capture.entries[i].expression: i for i in select(capture, "test", fully_lit=True)}
    partly = [i for i in select(capture, "test", fully_lit=False) if capture.entries[i].expression in full]
    rows = []
    for number in partly[:: max(len(partly) // told.frames, 1)]:
        true, ours = differences(avatar, codes, capture, number, full[capture.entries[number].expression], (0, 1))
        if len(true) < 500 or true.std() < 1e-4:
            continue
        size = np.abs(true)
        rows.append(
            {
                "correlation": float(np.corrcoef(true, ours)[0, 1]),
                "shiny": float(np.abs(ours[size > np.quantile(size, 0.9)]).mean()),
                "matt": float(np.abs(ours[size <= np.quantile(size, 0.5)]).mean()),
                "true shiny": float(size[size > np.quantile(size, 0.9)].mean()),
                "true matt": float(size[size <= np.quantile(size, 0.5)].mean()),
            }
        )
    mean = {name: float(np.mean([r[name] for r in rows])) for name in rows[0]}
    table = [
        ("frames", float(len(rows)), "", ""),
        ("correlation of the difference between cameras", mean["correlation"], "0", ""),
        ("difference where the truth's is large", mean["shiny"], f"the truth's {mean['true shiny']:.3g}", ""),
        ("difference where the truth's is small", mean["matt"], f"the truth's {mean['true matt']:.3g}", ""),
    ]
    print_table("gain between two cameras, in units of a frame's mean gain", table)
    if told.json:
        told.json.write_text(json.dumps({"machine": machine_facts(False), "mean": mean}, indent=1) + "\n")


if __name__ == "__main__":
    main()
