"""`benchmarks/device.py`: what it times, what it counts, and a run as small as one can be where little is installed."""

import importlib
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_head import toy_head

from facejax.evaluation.reproduce import evaluation_of

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
ABSENT = ("mediapipe", "mitsuba", "drjit", "av", "trimesh", "tyro", "pooch", "grain", "array_record", "cv2")
"""What a machine may lack on which a device is measured."""


@pytest.fixture(scope="module")
def device():
    """The script as a module."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("device")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def tiny(device):
    return device.Size(16, (2,), 2, 32, False, "small", 2, 2, 60.0)


def check_rate(found):
    assert found["compile_seconds"] > 0
    assert found["run_seconds"] > 0
    assert min(found["runs"]) <= found["run_seconds"] <= max(found["runs"])
    assert math.isfinite(found["per_second"])
    assert found["per_second"] > 0


def test_seconds_are_those_of_one_call(device):
    calls = []

    def call():
        calls.append(1)
        time.sleep(0.01)

    taken = device.seconds_of(call, 3)
    assert len(taken) == 3
    assert all(0.01 <= seconds < 0.05 for seconds in taken)
    assert len(calls) > 2 + 3  # a short call is repeated within a run


def test_a_rate_is_the_medians(device):
    found = device.rate(8, 1.0, [0.5, 4.0, 2.0])
    assert found["per_second"] == 4.0
    check_rate(found)


def test_flops_are_those_of_the_products(device):
    program = device.Program.of(lambda a, b: a @ b, jnp.ones((64, 32)), jnp.ones((32, 16)))
    assert program.flops == pytest.approx(2 * 64 * 32 * 16, rel=0.01)
    assert program.call(jnp.ones((64, 32)), jnp.ones((32, 16))).shape == (64, 16)
    assert program.memory_gb == pytest.approx(4e-9 * (64 * 32 + 32 * 16 + 64 * 16), rel=0.2)


def test_a_batch_that_does_not_fit_is_halved_and_says_so(device, capsys):
    tried = []

    def measure(batch):
        tried.append(batch)
        if batch > 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return {"per_second": 1.0}

    assert device.largest_that_fits(16, measure) == {"asked": 16, "batch": 4, "per_second": 1.0}
    assert tried == [16, 8, 4]
    assert "a batch of 16 does not fit" in capsys.readouterr().err


def test_other_errors_are_not_taken_for_want_of_memory(device):
    def broken(batch):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        device.largest_that_fits(4, broken)


def test_a_single_example_that_does_not_fit_is_an_error(device):
    def hungry(batch):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        device.largest_that_fits(4, hungry)


def test_peaks_are_known_of_some_devices_and_made_up_of_none(device):
    assert device.peaks_of("NVIDIA H200") == {"bf16": 989e12, "tf32": 494.5e12, "fp32": 67e12}
    assert device.peaks_of("cpu") == {"bf16": None, "tf32": None, "fp32": None}
    assert device.peaks_of("TPU v4")["tf32"] is None


@pytest.mark.parametrize("what", ["rasterise", "image", "self-shadowed image"])
def test_drawing_is_timed_forward_and_backward(device, tiny, what):
    found = device.measure_drawing(toy_head(10, 12), what, tiny, 2)
    for way in ("forward", "forward and backward"):
        check_rate(found[way])


@pytest.mark.parametrize("what", ["rasterise", "image", "self-shadowed image"])
def test_every_drawn_picture_shows_the_head_and_moves_with_it(device, what):
    """Else a figure would be that of an empty picture, or of a gradient that XLA may leave out."""
    head = toy_head(10, 12)
    vertices, albedo, light, poses = device._faces(head, 2)
    one, tables = device._drawing(head, what, 16, vertices)
    pictures = jax.jit(jax.vmap(one, in_axes=(0, None, None, 0, 0)))(vertices, albedo, light, poses, tables)
    assert (np.abs(pictures).sum(axis=-1) > 0).mean() > 0.1
    assert np.abs(pictures[0] - pictures[1]).max() > 1e-3
    pose = jax.tree.map(lambda x: x[0], poses)
    gradient = jax.jit(jax.grad(lambda v: jnp.mean(one(v, albedo, light, pose, tables[0]) ** 2)))
    assert np.abs(gradient(vertices[0])).max() > 0


def test_examples_come_out_of_the_pack_as_they_went_in(device, tmp_path):
    device.pack_examples(tmp_path / "examples.npz")
    found = device.unpack_examples(tmp_path / "examples.npz")
    assert sorted(found) == device.shipped()
    for name, examples in found.items():
        source = evaluation_of(name)
        assert len(examples) == len(source)
        for example, expected in zip(examples[:3], (source[i] for i in range(3)), strict=True):
            assert sorted(example) == sorted(expected)
            for field, value in expected.items():
                np.testing.assert_array_equal(example[field], value)


@pytest.mark.slow
def test_a_small_run_where_little_is_installed(device, tmp_path):
    """One measurement of each part, by the command, without the libraries that none of them needs."""
    device.pack_examples(tmp_path / "examples.npz")
    script = BENCHMARKS / "device.py"
    code = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT!r}))  # an import of any of them fails
sys.path.insert(0, {str(BENCHMARKS)!r})
sys.argv = ["device.py", *sys.argv[1:]]
runpy.run_path({str(script)!r}, run_name="__main__")
"""
    options = ["--size", "small", "--only", "rasterise,autoencoder,fit_sequence", "--json", "report.json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *options, "--examples", "examples.npz"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600,
        env=os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["format"] == device.FORMAT
    assert report["size"] == "small"
    assert report["failed"] == {}
    assert report["left_out"] == []
    assert report["machine"]["backend"] == jax.default_backend()
    assert report["seconds"] > 0
    drawn = report["renderers"]["rasterise, batch 2"]
    assert drawn["batch"] == drawn["asked"] == 2
    check_rate(drawn["forward"])
    check_rate(drawn["forward and backward"])
    step = report["recipes"]["head-autoencoder"]
    check_rate(step)
    assert step["finite"]
    assert step["flops"] > 1e5
    assert set(step["mfu"]) == {"bf16", "tf32", "fp32"}
    tracked = report["tracking"]["fit_sequence"]
    check_rate(tracked)
    assert tracked["per_second_compilation_apart"] >= tracked["per_second"]
    assert tracked["share_tracked"] == 1.0
    assert tracked["landmark_error_px"] < 1.0
    values = report["pinned"]["head-autoencoder-small"]["values"]
    assert values["vertex error (mm)"]["agrees"]
    assert abs(values["vertex error (mm)"]["measured"] / values["vertex error (mm)"]["recorded"] - 1) < 0.01
    assert "4/4" in done.stderr
    assert "s left" in done.stderr
    assert "images per second" in done.stdout


def test_nothing_is_begun_after_the_time_is_up(device, tmp_path, monkeypatch):
    monkeypatch.setattr(device.jax.config, "update", lambda *_: None)  # the suite's cache stays as it is
    path = tmp_path / "report.json"
    monkeypatch.setattr(sys, "argv", ["device.py", "--size", "small", "--seconds", "0", "--json", str(path)])
    assert device.main() == 0
    report = json.loads(path.read_text())
    assert report["renderers"] == {}
    assert "recipes: deep-lighting" in report["left_out"]
    assert "tracking: fit_sequence" in report["left_out"]


def test_a_measurement_that_fails_leaves_the_others(device, tmp_path, monkeypatch, capsys):
    def broken():
        raise ValueError("no such thing")

    monkeypatch.setattr(device.jax.config, "update", lambda *_: None)
    todo = [("pinned", "a", broken), ("pinned", "b", lambda: {"seconds": float("nan"), "values": {}})]
    monkeypatch.setattr(device, "plan", lambda *_: todo)
    path = tmp_path / "report.json"
    monkeypatch.setattr(sys, "argv", ["device.py", "--parts", "pinned", "--json", str(path)])
    assert device.main() == 1
    report = json.loads(path.read_text())
    assert report["failed"] == {"pinned: a": "ValueError: no such thing"}
    assert report["pinned"] == {"b": {"seconds": None, "values": {}}}
    assert "FAILED pinned: a" in capsys.readouterr().err


def test_an_unknown_part_is_refused(device, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["device.py", "--parts", "renderers,nothing"])
    with pytest.raises(SystemExit):
        device.main()
    assert "--parts takes" in capsys.readouterr().err
