"""What registration of an avatar costs: a gradient of one frame, adaptation of a clip, registration of a frame.

    python benchmarks/avatars.py --model avatar --clip clips/sun --json avatars.json

Compilation is timed apart. The peer in the same run is the same registration under spherical harmonics (`sh`, 27
numbers), which is what the paper's lighting network is compared with. Results are in docs/results/deep-lighting.md.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import numpy as np
from machine import Row, machine_facts, print_table

from facejax.data.heads import load_avatar
from facejax.evaluation.deep_lighting import Protocol, first_step, key_frames, open_clip
from facejax.fitting.config import FitConfig
from facejax.fitting.plans import adaptation, refinement
from facejax.fitting.schedule import Job, run_stage
from facejax.fitting.solve import objective
from facejax.fitting.terms import CodePrior, Pictures
from facejax.scenes import Unknowns, make_scene
from facejax.scenes.lighting import in_darkness
from facejax.scenes.unknowns import take_frames


def timed(call, repeats: int = 1) -> tuple[float, float]:
    """(seconds of the first call, median seconds of later ones)."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return times[0], float(np.median(times[1:]))


def gradient(job: Job, unknowns: Unknowns) -> tuple[float, float]:
    few = job.key[:4]
    terms = (Pictures(), CodePrior(0.1, 0.0, per_number=True))
    seen = tuple(term.observe(job.scene, job.footage, unknowns, few) for term in terms)
    variables = {"params": unknowns.params, "clip": unknowns.clip, "frame": take_frames(unknowns.frames, few)}

    @jax.jit
    def step(variables, seen):
        return jax.grad(lambda v: objective(job.scene, terms, v, seen, jax.numpy.ones(len(few)))[0])(variables)

    return timed(lambda: step(variables, seen), repeats=5)


def measure(label: str, job: Job, dark: Unknowns, config: FitConfig, goal: str) -> list[Row]:
    def adapt() -> Unknowns:
        unknowns = dark
        for stage in adaptation(config):
            unknowns, _ = run_stage(job, stage, unknowns)
        return unknowns

    few = job.key[:8]
    compiling, run = gradient(job, dark)
    adapting = timed(lambda: adapt().params)
    registering = timed(lambda: run_stage(job, refinement(config), dark, only=few)[0].frames.code)
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
        begun = first_step(avatar, clip, protocol)
        valid = np.asarray(begun.footage.valid)
        keys = key_frames(np.asarray(clip.truth.rotation), np.flatnonzero(valid), 48)
        for model in ("network", "sh"):
            config = FitConfig(size=size, light_model=model)
            scene = make_scene(avatar, (size, size), light_model=model)
            job = Job(scene, begun.footage, keys, np.zeros((len(valid), 0), np.float32))
            dark = in_darkness(begun.unknowns, scene.lighting)
            rows += measure(f"{model}, {size} px: ", job, dark, config, {128: "1", 256: "3"}.get(size, ""))
    print_table("registration of an avatar", rows)
    if told.json:
        told.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
