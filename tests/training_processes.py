"""Runs of the toy recipe in processes of their own, for what one process cannot show: kills, devices, hosts.

Each role prints one line of JSON. `benchmarks/training.py` uses them too.

    python training_processes.py kills FOLDER COUNT SEED     a run killed COUNT times ends like one that was not
    python training_processes.py meshes FOLDER               8 simulated devices, and other meshes on the way
    python training_processes.py host FOLDER PORT NUMBER     one of two hosts
"""

import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

role, folder = (sys.argv[1], Path(sys.argv[2])) if len(sys.argv) > 2 else ("", Path())
if role == "meshes":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
if role == "host":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import flax  # noqa: E402, F401  (children of `kills` find everything imported)
import grain  # noqa: E402, F401
import jax  # noqa: E402
import numpy as np  # noqa: E402
import orbax.checkpoint  # noqa: E402, F401
import toy_recipe  # noqa: E402

from facejax.training import engine, join_hosts, override, train  # noqa: E402
from facejax.training.config import to_json  # noqa: E402, F401
from facejax.training.folder import Checkpoints  # noqa: E402
from facejax.training.sharding import make_mesh  # noqa: E402


def toy(*settings: str) -> toy_recipe.Toy:
    return toy_recipe.Toy(override(toy_recipe.Toy.presets["small"].config, settings))


def state_of(run: Path, mesh=None, recipe=None):
    """What the last checkpoint of a run holds, laid out on a mesh (default: one device)."""
    recipe = recipe or toy()
    mesh = mesh or make_mesh(jax.local_devices()[:1], 1)
    source = recipe.data(folder / "data", "train")
    shapes = jax.eval_shape(lambda: engine.initial_state(recipe, source))
    checkpoints = Checkpoints(run / "checkpoints", recipe.score)
    try:
        return checkpoints.restore(engine.lay_out(shapes, mesh, recipe))[0]
    finally:
        checkpoints.close()


def largest_difference(a, b) -> float:
    """Relative to the largest value of each array."""
    pairs = zip(jax.tree.leaves(jax.device_get(a)), jax.tree.leaves(jax.device_get(b)), strict=True)
    return max(float(np.max(np.abs(x - y)) / max(float(np.max(np.abs(y))), 1e-3)) for x, y in pairs)


def same_bits(a, b) -> bool:
    pairs = zip(jax.tree.leaves(jax.device_get(a)), jax.tree.leaves(jax.device_get(b)), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


# -- kills ------------------------------------------------------------------------------------------------------------


def in_child(work) -> int:
    """Forks a process that does the work; nothing of JAX has started yet here, so that it may."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of forks, which is for processes whose threads have started
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        sys.stderr = open(folder / "log", "a")  # noqa: SIM115
        jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
        work()
        status = 0
    except BaseException as error:
        print("failed:", repr(error), error.__cause__, file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def whole_steps(run: Path) -> list[int]:
    """Steps of whole checkpoints: those that bear their final name."""
    names = os.listdir(run / "checkpoints") if (run / "checkpoints").is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def kills(count: int, seed: int) -> dict:
    """Kills a run at random moments: half of them while it starts or works, half once it works."""
    assert os.waitpid(in_child(lambda: toy_recipe.make_data(folder / "data")), 0)[1] == 0
    rng, steps = random.Random(seed), 10 * count + 50
    settings = (f"run.steps={steps}", "machine.log_every=10")
    straight, killed = folder / "straight", folder / "killed"
    work = in_child(lambda: train(toy(*settings, "machine.save_every=1000"), folder / "data", straight))
    status = os.waitpid(work, 0)[1]
    assert status == 0, (status, (folder / "log").read_text())
    done, lost, resumed, began = 0, [], [], time.monotonic()
    span = 1.0
    while done < count:
        before = max(whole_steps(killed), default=0)
        reader, writer = os.pipe()
        first = None

        def life(writer=writer):
            settings_here = (*settings, "machine.save_every=5")
            train(
                toy(*settings_here), folder / "data", killed, resume=True,
                progress=lambda stage, step, total: os.write(writer, step.to_bytes(4)),
            )  # fmt: skip

        born = time.monotonic()
        child = in_child(life)
        os.close(writer)
        if rng.random() < 0.7:  # while it works: after some steps, and a moment
            wanted = rng.randint(1, 25)
            for _ in range(wanted):
                said = os.read(reader, 4)
                if not said:
                    break
                if first is None:
                    first = int.from_bytes(said) - 1
                    span = 0.8 * span + 0.2 * (time.monotonic() - born)
            time.sleep(rng.uniform(0, 0.05))
        else:  # at any moment of its start
            time.sleep(rng.uniform(0, 1.2 * span))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        os.close(reader)
        if first is not None:
            resumed.append(first)
            if first < before:
                lost.append((before, first))
        if os.WIFSIGNALED(status):
            done += 1
        elif os.WEXITSTATUS(status):
            raise SystemExit((folder / "log").read_text())
        else:
            break  # finished before it could be killed
    at_last_kill = max(whole_steps(killed), default=0)
    last = in_child(lambda: train(toy(*settings, "machine.save_every=50"), folder / "data", killed, resume=True))
    assert os.waitpid(last, 0)[1] == 0, (folder / "log").read_text()
    seconds = time.monotonic() - began
    equal = same_bits(state_of(straight), state_of(killed))
    lines = [json.loads(line)["step"] for line in (killed / "metrics.jsonl").read_text().splitlines()]
    return {
        "kills": done, "lost": lost, "resumed_at": resumed, "steps": steps, "at_last_kill": at_last_kill,
        "same_bits": equal, "lines_in_order": lines == sorted(lines), "seconds": round(seconds, 1),
    }  # fmt: skip


# -- devices and hosts ------------------------------------------------------------------------------------------------


def meshes() -> dict:
    """One device against eight, parameters split or not; and a run that moves from mesh to mesh."""
    toy_recipe.make_data(folder / "data")
    every = jax.devices

    def run(name: str, devices: int, *settings: str, **options):
        jax.devices = lambda *a: every(*a)[:devices]
        try:
            return train(toy(*settings), folder / "data", folder / name, **options)
        finally:
            jax.devices = every

    run("one", 1)
    reference = state_of(folder / "one")
    found = {"devices": len(every())}
    for name, settings in (("data8", ()), ("data2model4", ("machine.model_axis=4", "rule=true"))):
        run(name, 8, *settings)
        found[name] = largest_difference(state_of(folder / name), reference)
    recipe = toy()
    first = engine.initial_state(recipe, recipe.data(folder / "data", "train"))
    found["untrained"] = largest_difference(first, reference)
    wide = make_mesh(every(), 4)
    split = state_of(folder / "one", wide)
    found["split on"] = len(split["params"]["in"]["kernel"].sharding.device_set)
    found["shard"] = split["params"]["in"]["kernel"].addressable_shards[0].data.shape
    found["moments shard"] = jax.tree.leaves(split["optimiser"])[2].addressable_shards[0].data.shape
    # from eight devices, parameters split, to two, to one
    for devices, model, stop_at in ((8, 4, 4), (2, 2, 8), (1, 1, None)):

        def stop(stage, step, total, stop_at=stop_at):
            if step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        outcome = run("moved", devices, f"machine.model_axis={model}", resume=True, progress=stop)
    found["moved"] = largest_difference(state_of(folder / "moved"), reference)
    found["moved to the end"] = outcome.finished
    try:
        run("odd", 8, "run.batch=12")
    except ValueError as error:
        found["batch of 12"] = str(error)
    try:
        run("odd", 8, "machine.model_axis=3")
    except ValueError as error:
        found["axis of 3"] = str(error)
    return found


def host(port: str, number: int) -> dict:
    """One of two processes of two devices each; the data lie where both can read them."""
    join_hosts(f"127.0.0.1:{port}", 2, number)
    assert jax.process_count() == 2

    def stop(stage, step, total):
        if step == 3 and number == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    recipe = toy("run.steps=20", "machine.model_axis=2")
    early = train(recipe, folder / "data", folder / "hosts", progress=stop)
    later = train(recipe, folder / "data", folder / "hosts", resume=True)
    return {
        "devices": jax.device_count(), "stopped": early.step, "stopped_by": early.stopped_by,
        "finished": (early.finished, later.finished), "scores": later.scores,
    }  # fmt: skip


if __name__ == "__main__":
    if role == "kills":
        result = kills(int(sys.argv[3]), int(sys.argv[4]))
    elif role == "meshes":
        result = meshes()
    else:
        result = host(sys.argv[3], int(sys.argv[4]))
    print(json.dumps(result), flush=True)
