"""What registration of an avatar costs: a gradient of one frame, adaptation of a clip, registration of a frame.

    python benchmarks/avatars.py --model avatar --clip clips/sun --json avatars.json

Compilation is timed apart. The peer in the same run is the same registration under spherical harmonics (`sh`, 27
numbers), which is what the paper's lighting network is compared with. Results are in docs/results/deep-lighting.md.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import jax
import numpy as np
from machine import Row, machine_facts, print_table

from facejax.data.heads import load_avatar
from facejax.evaluation.deep_lighting import Protocol, first_step, key_frames, open_clip
from facejax.fitting.adaptation import adapt
from facejax.fitting.registration import register
from facejax.fitting.rendered_fit import rendered_objective
from facejax.fitting.variables import take_frames
from facejax.models.avatar import STAGES


def timed(call, repeats: int = 1) -> tuple[float, float]:
    """(seconds of the first call, median seconds of later ones)."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return times[0], float(np.median(times[1:]))


def gradient(start, given, keys) -> tuple[float, float]:
    one = rendered_objective(start.head, start.lights, start.render, start.camera, start.reference_px, start.config)
    data = start.data(given, keys[:4])
    frames = take_frames(start.frames, keys[:4])

    @jax.jit
    def step(params, shared, frames):
        def loss(params, shared, frames):
            each = jax.vmap(lambda f, d: one(params, shared, f, d, False))(frames, data)
            return each.mean()

        return jax.grad(loss, argnums=(0, 1, 2))(params, shared, frames)

    return timed(lambda: step(start.params, start.shared, frames), repeats=5)


def measure(label: str, start, given, keys, goal: str) -> list[Row]:
    def quiet(done: int, total: int) -> None:
        pass

    adaptation, refinement = (s for s in STAGES["fast"] if s.data == "rendered")
    compiling, run = gradient(start, given, keys)
    adapting = timed(lambda: adapt(start, given, keys, adaptation, quiet).params)
    few = keys[:8]
    registering = timed(lambda: register(start, given, refinement, quiet, only=few).frames.code)
    return [
        (label + "gradient of a frame (s)", run / 4, f"compilation {compiling:.0f} s", ""),
        (label + "adaptation of a clip (s)", adapting[1], f"the first time {adapting[0]:.0f} s", "360"),
        (label + "step 3 (s per frame)", registering[1] / 8, f"the first time {registering[0] / 8:.1f}", goal),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--clip", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    facts = machine_facts(cache_off=False)
    avatar, clip = load_avatar(told.model), open_clip(told.clip)
    rows: list[Row] = []
    for size in told.sizes:
        protocol = Protocol(size=size, landmark_noise_px=1.0)
        begun, given = first_step(avatar, clip, protocol)
        keys = key_frames(np.asarray(clip.truth.rotation), np.flatnonzero(given.valid), 48)
        for model in ("network", "sh"):
            start = dataclasses.replace(
                begun, config=dataclasses.replace(begun.config, light_model=model, texture=True)
            ).unlit()
            rows += measure(f"{model}, {size} px: ", start, given, keys, {128: "1", 256: "3"}.get(size, ""))
    print_table("registration of an avatar", rows)
    if told.json:
        told.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
