"""What one process cannot show: kills at any moment, many devices, several hosts."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import toy_recipe

SCRIPT = Path(__file__).with_name("training_processes.py")

KILLS = 30


def start(*words: object) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or ""}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def result(process: subprocess.Popen, seconds: float) -> dict:
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"not done after {seconds} s\n{out}\n{err[-3000:]}")
    assert process.returncode == 0, f"{out}\n{err[-3000:]}"
    return json.loads(out.splitlines()[-1])


def test_a_run_killed_at_any_moment_ends_like_one_that_was_not(tmp_path):
    """`kill -9` while it starts, steps, saves or removes: nothing beyond the last checkpoint is lost."""
    found = result(start("kills", tmp_path, KILLS, 0), 400)
    assert found["kills"] == KILLS
    assert found["lost"] == []
    assert found["same_bits"]
    assert found["lines_in_order"]
    assert 0 < found["at_last_kill"] < found["steps"]  # it got on between the kills, and had not ended before them
    assert len(set(found["resumed_at"])) > 3


def test_any_mesh_of_devices_gives_what_one_device_gives(tmp_path):
    found = result(start("meshes", tmp_path), 300)
    assert found["devices"] == 8
    for mesh in ("data8", "data2model4", "moved"):
        assert found[mesh] < 1e-5, mesh
    assert found["untrained"] > 1e-2  # what the bound would see
    assert found["split on"] == 8
    assert found["shard"] == found["moments shard"] == [4, toy_recipe.WIDTH // 4]
    assert found["moved to the end"]
    assert found["batch of 12"] == "A batch of 12 does not divide among 8 devices: --set run.batch=16 would."
    assert "machine.model_axis=3 does not divide 8 device(s)" in found["axis of 3"]


def test_two_hosts_train_as_one(tmp_path):
    """Two processes of two devices each, on the loopback address; SIGTERM to one stops both at one step."""
    import numpy as np

    from facejax.training import override, train

    data = toy_recipe.make_data(tmp_path / "data")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hosts = [start("host", tmp_path, port, number) for number in (0, 1)]
    first, second = (result(host, 300) for host in hosts)
    assert first == second
    assert first["devices"] == 4
    assert first["stopped_by"] == "preemption"
    assert 3 <= first["stopped"] < 20
    assert first["finished"] == [False, True]
    recipe = toy_recipe.Toy(override(toy_recipe.Toy.presets["small"].config, ["run.steps=20"]))
    alone = train(recipe, data, tmp_path / "alone")
    for name, value in alone.scores.items():
        np.testing.assert_allclose(first["scores"][name], value, rtol=1e-5)
    assert train(recipe, data, tmp_path / "hosts", resume=True).finished  # and one process goes on from what two saved
