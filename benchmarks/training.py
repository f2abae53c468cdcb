"""What the training engine costs: time per step, per checkpoint, per resume; and what kills and meshes do to a run.

    python benchmarks/training.py --json training.json
    python benchmarks/training.py --parts overhead,checkpoints

Results, with the machine they are from, are in docs/results/training.md.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path.insert(0, str(TESTS))

PARTS = ("overhead", "checkpoints", "resume", "kills", "meshes")


def autoencoder(*settings: str):
    from facejax.training import find_recipe, override, preset_of

    kind = find_recipe("head-autoencoder")
    return kind(override(preset_of(kind, "small").config, settings))


class InMemory:
    """Heads of noise, made beforehand, so that reading costs next to nothing.

    Few arrays go by many numbers: grain's shuffle takes the longer the fewer examples there are (0.3 ms each of 64).
    """

    def __init__(self, vertices: int, count: int = 32) -> None:
        import numpy as np

        rng = np.random.default_rng(0)
        self._heads = [0.1 * rng.standard_normal((vertices, 3)).astype(np.float32) for _ in range(count)]

    def __len__(self) -> int:
        return 2**16

    def __getitem__(self, index: int) -> dict:
        head = self._heads[index % len(self._heads)]
        return {"vertices": head, "seen": head}


def in_memory(recipe, vertices: int):
    """The recipe with examples in memory and no noise on them."""
    source = InMemory(vertices)
    recipe.data = lambda folder, split: source
    recipe.augment = lambda example, rng: example
    return recipe


def reports(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "steps_per_s" in line]


def overhead(folder: Path, steps: int = 600, rounds: int = 3) -> dict:
    """Milliseconds that the loop adds to a step: the engine's time per step less that of a bare loop, in turns."""
    import jax
    import numpy as np

    from facejax.training import train
    from facejax.training.engine import compile_step, initial_state, lay_out
    from facejax.training.sharding import make_mesh, put_batch

    vertices, batch = 1024, 16
    settings = (
        f"data.vertices={vertices}", "network.width=256", f"run.steps={steps}", f"run.batch={batch}",
        "machine.log_every=50", "machine.eval_every=0", "machine.save_every=0", "machine.tensorboard=off",
    )  # fmt: skip
    (folder / "data").mkdir()
    rows = []
    for number in range(rounds):
        recipe = in_memory(autoencoder(*settings), vertices)
        source, mesh = recipe.data(None, "train"), make_mesh(jax.devices(), 1)
        layout = lay_out(jax.eval_shape(lambda r=recipe, s=source: initial_state(r, s)), mesh, recipe)
        example = {k: np.stack([source[i][k] for i in range(batch)]) for k in source[0]}
        step, _ = compile_step(recipe, layout, mesh, example)
        state = jax.device_put(initial_state(recipe, source), jax.tree.map(lambda leaf: leaf.sharding, layout))
        placed = put_batch(example, mesh)
        state, numbers = step(state, placed)
        jax.block_until_ready(state)
        began, worked = time.perf_counter(), time.thread_time()
        for _ in range(steps):
            state, numbers = step(state, placed)
        worked = time.thread_time() - worked
        jax.block_until_ready((state, numbers))
        bare = 1e3 * (time.perf_counter() - began) / steps
        marks: dict[int, float] = {}

        def mark(stage: str, done: int, total: int, marks: dict[int, float] = marks) -> None:
            marks[done] = time.thread_time()

        train(recipe, folder / "data", folder / f"run{number}", progress=mark)
        lines = reports(folder / f"run{number}")[1:]
        engine = 1e3 * statistics.mean(1 / line["steps_per_s"] for line in lines)
        waited = statistics.mean(line["input_wait_share"] for line in lines)
        rows.append({"bare": bare, "engine": engine, "added": engine - bare, "waiting for input (%)": 100 * waited})
        rows[-1]["added, input apart"] = engine * (1 - waited) - bare
        # what other jobs on the machine cannot disturb: the loop's own thread at work
        own = (marks[steps - 50] - marks[50]) / (steps - 100)
        rows[-1]["added, processor time of the loop's thread"] = 1e3 * (own - worked / steps)
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {"steps": steps, "rounds (ms per step)": rows, "medians": medians}


def checkpoints(folder: Path, steps: int = 240, saves: int = 4, rounds: int = 3) -> dict:
    """What a save costs, and so what one a minute would: runs with saves against runs without, in turns."""
    from facejax.training import train

    vertices = 7303
    (folder / "data").mkdir()
    settings = (
        f"data.vertices={vertices}", "network.width=512", "network.layers=2", "network.code=128", "run.batch=8",
        f"run.steps={steps}", "machine.log_every=10", "machine.eval_every=0", "machine.tensorboard=off",
    )  # fmt: skip
    spent: dict[str, list[float]] = {"without": [], "with": []}
    size = 0
    for number in range(rounds):
        for name, every in (("without", 0), ("with", steps // (saves + 1))):
            run = folder / f"{name}{number}"
            train(in_memory(autoencoder(*settings, f"machine.save_every={every}"), vertices), folder / "data", run)
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            ends = {line["step"]: line["time"] for line in lines if "loss" in line}
            spent[name].append(ends[steps] - ends[10])
            files = (run / "checkpoints").rglob("*")
            size = sum(file.stat().st_size for file in files if file.is_file())
            shutil.rmtree(run)
    extra = [(a - b) / saves for a, b in zip(spent["with"], spent["without"], strict=True)]
    middle = statistics.median(extra)
    return {
        "checkpoint (MB)": size / 1e6, "seconds": spent, "seconds per save": extra,
        "share at one save a minute (%)": 100 * middle / 60,
    }  # fmt: skip


def resume(folder: Path, rounds: int = 3) -> dict:
    """Seconds from a process's start to the first step of a resumed run, with nothing and with all compiled before."""
    import signal

    data, run = folder / "heads", folder / "run"
    autoencoder("data.train=256", "data.test=64").write_data(data)
    settings = ["data.train=256", "data.test=64", "run.steps=1000000", "machine.log_every=1", "machine.save_every=20"]
    command = [sys.executable, "-m", "facejax", "train", "head-autoencoder", "--data", str(data), "--out", str(run)]
    command += [word for setting in settings for word in ("--set", setting)] + ["--resume"]
    found: dict[str, list[float]] = {"cold": [], "warm": []}
    for number in range(rounds + 1):
        for kind in ("cold", "warm") if number else ("first",):
            environment = os.environ | {"FACEJAX_HOME": str(folder / (f"cold{number}" if kind == "cold" else "home"))}
            began = time.time()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
            while True:
                time.sleep(0.02)
                lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
                fresh = [json.loads(line) for line in lines if line.endswith("}")]
                fresh = [line for line in fresh if line["time"] > began and "loss" in line]
                if fresh:
                    break
                assert process.poll() is None, "the run ended"
            if kind != "first":
                found[kind].append(fresh[0]["time"] - began)
            time.sleep(1.0)
            process.send_signal(signal.SIGKILL if number % 2 else signal.SIGTERM)
            process.wait()
    return {
        "seconds from process start to the first step's numbers": found,
        "median, nothing compiled before (s)": statistics.median(found["cold"]),
        "median, compiled before (s)": statistics.median(found["warm"]),
    }


def kills(folder: Path, count: int = 30) -> dict:
    return script("kills", folder, count, 1)


def meshes(folder: Path) -> dict:
    return script("meshes", folder)


def script(*words: object) -> dict:
    command = [sys.executable, str(TESTS / "training_processes.py"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma separated")
    parser.add_argument("--json", type=Path, help="also write the figures there, after every part")
    options = parser.parse_args()
    found: dict = {"machine": {"platform": platform.platform(), "cores": os.cpu_count()}}
    for part in options.parts.split(","):
        with tempfile.TemporaryDirectory() as folder:
            load = os.getloadavg()[0]
            result = globals()[part](Path(folder))
        found[part] = {"load before": load, **result}
        print(part, json.dumps(found[part], indent=1), flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
