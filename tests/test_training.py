"""The training engine: what it computes, what it keeps, where it goes on, and what it refuses."""

import dataclasses
import errno
import functools
import json
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_recipe
from jax.sharding import AbstractMesh, PartitionSpec

from facejax.data.checkpoints import verify
from facejax.data.sources import MachineError
from facejax.geometry.errors import InputError
from facejax.training import (
    Config,
    NonFiniteLossError,
    Pure,
    find_recipe,
    make_step,
    override,
    preset_of,
    recipe_names,
    rehearse,
    train,
)
from facejax.training import engine as engine_module
from facejax.training import folder as folder_module
from facejax.training.config import differences, fields_of, from_json, to_json
from facejax.training.engine import Evaluator, Watch, initial_state
from facejax.training.folder import Checkpoints, locked, open_folder
from facejax.training.metrics import Pace, Reporter, flops_of, peak_flops
from facejax.training.sharding import check_batch, make_mesh, shardings


def toy(*settings: str) -> toy_recipe.Toy:
    return toy_recipe.Toy(override(toy_recipe.Toy.presets["small"].config, settings))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return toy_recipe.make_data(tmp_path_factory.mktemp("toy") / "data")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """(folder, outcome, lines that were said) of a run that nothing interrupted."""
    folder, said = tmp_path_factory.mktemp("runs") / "straight", []
    return folder, train(toy(), data, folder, say=said.append), said


def state_of(folder, data, recipe=None):
    recipe = recipe or toy()
    shapes = jax.eval_shape(functools.partial(initial_state, recipe, recipe.data(data, "train")))
    checkpoints = Checkpoints(open_folder(folder) / "checkpoints", recipe.score)
    try:
        return jax.device_get(checkpoints.restore(engine_module.lay_out(shapes, one_device(), recipe))[0])
    finally:
        checkpoints.close()


def one_device():
    return make_mesh(jax.devices()[:1], 1)


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def stop_at(step, number=signal.SIGTERM):
    return lambda stage, done, total: os.kill(os.getpid(), number) if done == step else None


# -- what it computes -------------------------------------------------------------------------------------------------


def test_the_loop_does_what_a_plain_loop_does(run, data):
    """The engine's end against ten lines of the same mathematics."""
    from facejax.data.sources import Batches

    recipe = toy()
    state = initial_state(recipe, recipe.data(data, "train"))
    step = jax.jit(make_step(recipe))
    batches = Batches(recipe.data(data, "train"), 8, seed=0, augment=recipe.augment)
    for _ in range(12):
        state, _ = step(state, next(batches))
    batches.close()
    assert int(state["step"]) == 12
    assert float(state["state"]["seen"]) == 96.0  # what the loss returns beside its terms is kept
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state, state_of(run[0], data))


def test_a_run_leaves_a_record(run):
    folder, outcome, said = run
    assert (outcome.finished, outcome.step, outcome.best_step, outcome.stopped_by) == (True, 12, 12, "")
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["run"] == {"steps": 12, "batch": 8, "seed": 0, "bf16": False}
    assert (config["recipe"], config["version"]) == ("toy", 1)
    manifest = verify(folder)
    assert {"versions", "device", "revision", "seeds", "data", "files"} <= manifest.keys()
    assert (folder / "pictures" / "bars-0000012.png").read_bytes().startswith(b"\x89PNG")
    start, *reports = lines_of(folder)
    assert start["event"] == "start"
    assert [r["step"] for r in reports] == [4, 8, 12, 12]
    assert reports[-1].keys() == {"step", "time", "test/error", "test/size"}
    for line in reports[:-1]:
        assert line["loss"] == pytest.approx(line["square"] + line["bias"], rel=1e-6)
        assert 0 <= line["input_wait_share"] <= 1
        assert line["images_per_s_per_device"] == pytest.approx(8 * line["steps_per_s"], rel=1e-6)
        assert line["mfu"] is None  # nobody knows a CPU's peak
    assert said[-1].startswith("step 12/12  loss ")


def test_the_loss_falls(data, tmp_path):
    train(toy("run.steps=60", "rate=0.01", "machine.log_every=20"), data, tmp_path / "run")
    losses = [line["loss"] for line in lines_of(tmp_path / "run") if "loss" in line]
    assert losses[-1] < 0.2 * losses[0]


def test_the_best_is_kept_beside_the_last(data, tmp_path):
    """A learning rate that spoils the network: an early checkpoint stays the best."""
    folder = tmp_path / "run"
    outcome = train(toy("run.steps=8", "rate=0.3", "machine.eval_every=2", "machine.save_every=1"), data, folder)
    errors = {line["step"]: line["test/error"] for line in lines_of(folder) if "test/error" in line}
    assert outcome.best_step == min(errors, key=lambda step: errors[step]) < 8
    kept = {int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdecimal()}
    assert kept == {outcome.best_step, 8}


def test_scores_that_are_no_numbers_are_never_best(tmp_path):
    checkpoints = Checkpoints(open_folder(tmp_path), "error")
    for step, error in ((1, 2.0), (2, 1.0), (3, float("nan")), (4, 3.0)):
        checkpoints.save(step, {"x": jnp.ones(3)}, step, {"error": error})
        checkpoints.wait()
    assert (checkpoints.best(), checkpoints.last()) == (2, 4)
    checkpoints.close()
    again = Checkpoints(open_folder(tmp_path), "error")
    assert (again.best(), again.last(), again.scores(2)) == (2, 4, {"error": 1.0})
    again.close()


def test_scores_are_means_over_all_examples_whatever_the_batch(data):
    """13 examples do not divide into batches of 8 or 5: what fills the last batch must not count."""
    recipe, mesh = toy(), one_device()
    source = recipe.data(data, "test")
    state = initial_state(recipe, source)
    plain = [recipe.evaluate(state["params"], state["state"], {k: v[None] for k, v in e.items()}) for e in source]
    for batch in (5, 8, 64):
        scores = Evaluator(recipe, source, mesh, batch).scores(state)
        for name, value in scores.items():
            assert value == pytest.approx(np.mean([float(row[name][0]) for row in plain]), rel=1e-5)


def test_bf16_changes_products_and_nothing_else():
    recipe_type = find_recipe("head-autoencoder")
    small = ("network.width=8", "network.code=4", "data.vertices=16")
    preset = preset_of(recipe_type, "small").config
    full, half = (recipe_type(override(preset, (*small, f"run.bf16={on}"))) for on in ("false", "true"))
    heads = [{"vertices": 0.1 * np.random.default_rng(i).standard_normal((16, 3)).astype(np.float32)} for i in range(8)]
    params, state = jax.jit(lambda: half.init(jax.random.key(0), heads))()
    assert {leaf.dtype for leaf in jax.tree.leaves((params, state))} == {jnp.dtype("float32")}
    vertices = jnp.stack([h["vertices"] for h in heads])
    a, b = (jax.jit(lambda v, r=r: r.decode(params, state, r.encode(params, state, v)))(vertices) for r in (full, half))
    assert b.dtype == jnp.float32
    assert 1e-7 < float(jnp.max(jnp.abs(a - b))) < 0.05 * float(state["spread"]) * 10
    batch = {"vertices": vertices, "seen": vertices}
    terms, _ = jax.eval_shape(half.loss, params, state, batch, jax.random.key(1))
    assert {t.dtype for t in terms.values()} == {jnp.dtype("float32")}


def test_pure_networks_round_trip():
    from flax import nnx

    net = Pure(lambda rngs: nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), jax.nn.relu, nnx.Linear(4, 2, rngs=rngs)))
    params, x = net.init(jax.random.key(3)), jnp.arange(3.0)
    first, _, last = (params["layers"].get(i, {}) for i in "012")
    expected = jax.nn.relu(x @ first["kernel"] + first["bias"]) @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(net(params, x), expected, rtol=1e-5)
    assert all(isinstance(k, str) for k in params["layers"])


# -- where it goes on -------------------------------------------------------------------------------------------------


def test_sigterm_saves_and_the_end_is_the_same_to_the_last_bit(run, data, tmp_path):
    straight, folder = run[0], tmp_path / "stopped"
    early = train(toy(), data, folder, progress=stop_at(7))
    assert (early.step, early.finished, early.stopped_by) == (7, False, "SIGTERM")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # as it was before
    assert int(state_of(folder, data)["step"]) == 7  # between the regular saves
    later = train(toy("machine.threads=3", "machine.save_every=2"), data, folder, resume=True)
    assert later.finished
    assert later.scores == run[1].scores
    assert_same_bits(state_of(folder, data), state_of(straight, data))
    steps = [line["step"] for line in lines_of(folder)]
    assert steps == sorted(steps)


def test_ctrl_c_saves_too_and_a_second_one_ends_at_once():
    stop = engine_module.StopSignals()
    stop.ask(signal.SIGINT, None)
    assert stop.asked(1)
    assert stop.reason == "SIGINT"
    with pytest.raises(KeyboardInterrupt):
        stop.ask(signal.SIGINT, None)


def test_resuming_what_is_finished_changes_nothing(run, data):
    folder, outcome, _ = run
    before = (folder / "metrics.jsonl").read_text(), verify(folder)["best_step"]
    again = train(toy(), data, folder, resume=True)
    assert (again.step, again.finished, again.scores) == (12, True, outcome.scores)
    assert [line for line in lines_of(folder) if line.get("event") != "start"] == [
        line for line in map(json.loads, before[0].splitlines()) if line.get("event") != "start"
    ]
    assert verify(folder)["best_step"] == before[1]


def test_lines_of_lost_steps_are_dropped(tmp_path):
    reporter = Reporter(open_folder(tmp_path), 0, "off")
    for step in (2, 4, 6):
        reporter.line(step, {"loss": 1.0})
    reporter.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')  # killed while writing
    reporter = Reporter(open_folder(tmp_path), 4, "off")
    reporter.line(5, {"loss": 2.0})
    reporter.close()
    assert [line["step"] for line in lines_of(tmp_path)] == [2, 4, 5]


def test_a_half_removed_older_checkpoint_is_no_obstacle(data, tmp_path):
    """A kill may fall into the removal of a checkpoint that newer ones have replaced."""
    import shutil

    folder = tmp_path / "run"
    train(toy(), data, folder, progress=stop_at(6))
    checkpoints = folder / "checkpoints"
    shutil.copytree(checkpoints / "6", checkpoints / "5")
    shutil.rmtree(checkpoints / "5" / "about")
    assert train(toy(), data, folder, resume=True).finished
    assert {p.name for p in checkpoints.iterdir()} == {"12"}


# -- what it refuses --------------------------------------------------------------------------------------------------


@pytest.fixture
def begun(data, tmp_path):
    """Folder of a run that was stopped after its second step."""
    train(toy(), data, tmp_path / "begun", progress=stop_at(2))
    return tmp_path / "begun"


def test_resume_needs_config_recipe_and_data_of_the_run(begun, data, tmp_path):
    with pytest.raises(
        InputError, match=r"--resume needs the config of .*: rate was 0.001, is 0.1; run.batch was 8, is 4"
    ):
        train(toy("run.batch=4", "rate=0.1"), data, begun, resume=True)
    other = toy_recipe.make_data(tmp_path / "other", train=24)
    with pytest.raises(InputError, match=r"The data is not what .* was trained on"):
        train(toy(), other, begun, resume=True)

    class Newer(toy_recipe.Toy):
        version = 2

    with pytest.raises(InputError, match="run of version 1, not 2"):
        train(Newer(toy().config), data, begun, resume=True)
    with pytest.raises(InputError, match="holds a run already: go on with --resume"):
        train(toy(), data, begun)


def test_a_folder_of_other_files_is_left_alone(data, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds other files and no run"):
        train(toy(), data, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"thesis.tex", "lock"}


def test_two_runs_do_not_share_a_folder(data, tmp_path):
    with (
        locked(open_folder(tmp_path)),
        pytest.raises(InputError, match=rf"Another run is at work .*process {os.getpid()}"),
    ):
        train(toy(), data, tmp_path)
    with locked(open_folder(tmp_path)):
        pass  # let go of at the end


def test_a_loss_that_is_not_finite_stops_with_step_and_term(tmp_path):
    """Example 17 is not a number: whichever step sees it is named, and no checkpoint is poisoned."""
    bad = toy_recipe.make_data(tmp_path / "data", bad=17)
    recipe = toy("machine.save_every=1", "machine.log_every=100")
    # the mean of the data must not see it
    recipe.init = lambda key, source: toy_recipe.Toy.init(recipe, key, [source[0]])
    with pytest.raises(NonFiniteLossError, match=r"At step (\d+) 'square' is nan") as stopped:
        train(recipe, bad, tmp_path / "run")
    step = int(str(stopped.value).split()[2])
    assert not isinstance(stopped.value, InputError)
    from facejax.data.sources import Batches

    batches = Batches(recipe.data(bad, "train"), 8, seed=0)
    seen = [bool(np.isnan(next(batches)["y"]).any()) for _ in range(step)]
    batches.close()
    assert seen == [False] * (step - 1) + [True]
    last = {int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert last == ({step - 1} if step > 1 else set())


def test_watch_names_every_term_and_falls_back_to_the_gradient():
    watch = Watch(["a", "b", "gradient norm"])
    watch.look(1, jnp.array([1.0, 2.0, 3.0]))
    watch.look(2, jnp.array([3.0, 4.0, 5.0]))
    watch.catch_up()
    assert watch.means() == {"loss": 5.0, "a": 2.0, "b": 3.0, "gradient norm": 4.0}
    watch.look(3, jnp.array([jnp.nan, jnp.inf, jnp.nan]))
    with pytest.raises(NonFiniteLossError, match="At step 3 'a' is nan and 'b' is inf;"):
        watch.catch_up()
    watch.look(4, jnp.array([1.0, 1.0, jnp.inf]))
    with pytest.raises(NonFiniteLossError, match="At step 4 'gradient norm' is inf;"):
        watch.catch_up()


@pytest.mark.parametrize("where", ["save", "wait_until_finished"])
def test_a_full_disk_says_where_to_go_on(where, data, tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    real, calls = getattr(ocp.CheckpointManager, where), []

    def full(self, *arguments, **options):
        calls.append(1)
        if where == "save" and len(calls) == 1:
            return real(self, *arguments, **options)
        if where == "wait_until_finished" and len(calls) > 2:
            return real(self, *arguments, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, where, full)
    with pytest.raises(MachineError, match=r"No space left in .*checkpoint.*; free some space and go on with --resume"):
        train(toy("machine.save_every=4"), data, tmp_path / "run")
    monkeypatch.undo()
    assert train(toy(), data, tmp_path / "run", resume=True).finished


def test_full_disks_are_recognised_and_other_errors_are_not(tmp_path):
    for error in (
        OSError(errno.ENOSPC, "x"),
        ValueError("RESOURCE_EXHAUSTED: Error writing ... [OS error 28: No space left on device]"),
    ):
        with (
            pytest.raises(MachineError, match="the last whole checkpoint is of step 7"),
            folder_module.explained(tmp_path, lambda: 7),
        ):
            raise error
    with pytest.raises(KeyError), folder_module.explained(tmp_path, lambda: 7):
        raise KeyError("x")


@pytest.mark.parametrize("harm", ["truncate", "remove", "flip a bit", "unseal"])
def test_a_damaged_checkpoint_is_refused_by_name(harm, begun, data):
    folder = begun / "checkpoints" / "2"
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    if harm == "truncate":
        largest.write_bytes(content[:-1])
    elif harm == "remove":
        largest.unlink()
    elif harm == "unseal":
        (folder / "sha256.json").unlink()
    else:
        content[len(content) // 2] ^= 1  # orbax itself would restore it, and train on
        largest.write_bytes(content)
    with pytest.raises(
        InputError, match=r"The checkpoint .*checkpoints/2 was altered, truncated or is of another model"
    ):
        train(toy(), data, begun, resume=True)


def test_a_batch_must_divide_among_the_devices():
    eight = AbstractMesh((8, 1), ("data", "model"))
    check_batch(16, eight)
    with pytest.raises(InputError, match=r"A batch of 12 does not divide among 8 devices: --set run.batch=16 would"):
        check_batch(12, eight)
    with pytest.raises(InputError, match=r"machine.model_axis=3 does not divide 1 device"):
        make_mesh(jax.devices()[:1], 3)


def test_recipes_are_found_by_name_or_file_and_near_names_are_told(tmp_path):
    assert "head-autoencoder" in recipe_names()
    assert find_recipe("head-autoencoder").name == "head-autoencoder"
    found = find_recipe(toy_recipe.__file__)
    assert found.name == "toy"
    with pytest.raises(InputError, match="no recipe 'head-autoencodr'; did you mean 'head-autoencoder'"):
        find_recipe("head-autoencodr")
    with pytest.raises(InputError, match=r"there are .*head-autoencoder"):
        find_recipe("xyzzy")
    with pytest.raises(InputError, match="no preset 'smol'; did you mean 'small'"):
        preset_of(found, "smol")
    with pytest.raises(InputError, match="No such recipe file"):
        find_recipe(str(tmp_path / "none.py"))
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(InputError, match=r"Expected one subclass of facejax.training.Recipe .* found 0"):
        find_recipe(str(tmp_path / "empty.py"))
    (tmp_path / "slip.py").write_text("x = 1\nif x\n")
    with pytest.raises(InputError, match=r"not valid Python \(.*slip\.py, line 2: "):
        find_recipe(str(tmp_path / "slip.py"))


def test_a_rehearsal_has_the_shapes_of_training(tmp_path):
    kind = find_recipe("head-autoencoder")
    recipe = kind(override(preset_of(kind, "small").config, ["data.vertices=16", "data.train=4", "data.test=2"]))
    recipe.write_data(tmp_path / "heads")
    source = recipe.data(tmp_path / "heads", "train")
    shown = recipe.augment(source[0], np.random.default_rng(0))
    expected = jax.eval_shape(lambda: (initial_state(recipe, source), {k: jnp.stack([v, v]) for k, v in shown.items()}))
    found = rehearse(recipe, 2)
    assert jax.eval_shape(lambda: found) == expected
    after, _ = jax.jit(make_step(recipe))(*found)
    assert int(after["step"]) == 1


def test_a_recipe_without_a_rehearsal_says_so():
    with pytest.raises(InputError, match="toy says no shapes of its own"):
        rehearse(toy())


# -- configs ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Many(Config):
    """Fields of every kind."""

    sizes: tuple[int, ...] = (1, 2)
    """Sizes."""
    name: str = "a"
    """Name."""
    ratio: float | None = None
    """Ratio."""


@pytest.mark.parametrize(
    ("setting", "field", "value"),
    [
        ("run.batch=32", "run.batch", 32),
        ("run.bf16=true", "run.bf16", True),
        ("run.bf16=False", "run.bf16", False),
        ("sizes=3,4,5", "sizes", (3, 4, 5)),
        ("name=x=y", "name", "x=y"),
        ("ratio=0.5", "ratio", 0.5),
        ("ratio=None", "ratio", None),
        ("ratio=-1e-3", "ratio", -1e-3),
        ("machine.tensorboard=off", "machine.tensorboard", "off"),
    ],
)
def test_settings(setting, field, value):
    changed = fields_of(override(Many(), [setting]))
    assert changed[field] == value
    assert {k: v for k, v in changed.items() if k != field} == {
        k: v for k, v in fields_of(Many()).items() if k != field
    }


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("run.batch", "takes field=value"),
        ("run.bach=1", "no field 'run.bach'; did you mean 'run.batch'"),
        ("batch=1", "no field 'batch'; did you mean 'run.batch'"),
        ("run=1", "no field 'run'"),
        ("run.batch=a", "run.batch takes a whole number, not 'a'"),
        ("run.batch=1.5", "run.batch takes a whole number"),
        ("run.bf16=maybe", "run.bf16 is true or false"),
        ("machine.tensorboard=up", "'auto' or 'on' or 'off'"),
        ("name=--help", "name takes a text"),
        ("run.batch=", "run.batch takes a whole number"),
    ],
)
def test_settings_refused(setting, words, capsys):
    with pytest.raises(InputError, match=words):
        override(Many(), [setting])
    assert capsys.readouterr() == ("", "")  # one sentence, nothing else


def test_configs_round_trip_through_json_and_name_what_differs():
    config = override(Many(), ["sizes=3", "run.seed=7", "ratio=0.25"])
    assert from_json(Many, json.loads(json.dumps(to_json(config)))) == config
    assert list(differences(Many(), config)) == [
        "ratio was None, is 0.25",
        "run.seed was 0, is 7",
        "sizes was (1, 2), is (3,)",
    ]
    assert not list(differences(Many(), override(Many(), ["machine.workers=4"])))  # the machine may change
    older = to_json(Many())
    del older["ratio"]
    assert from_json(Many, older) == Many()  # a new field's default is what was done before
    with pytest.raises(InputError, match=r"names the field 'run.bach', which Run does not have"):
        from_json(Many, {"run": {"bach": 1}})


def test_every_field_has_a_sentence(capsys):
    from facejax.training.listing import config_help, recipe_list

    told = config_help("head-autoencoder")
    for field in fields_of(preset_of(find_recipe("head-autoencoder"), "small").config):
        assert f" {field} " in told
    assert "Optimiser steps in all." in told
    assert "facejax train head-autoencoder --preset small" in recipe_list()


# -- devices and speed ------------------------------------------------------------------------------------------------


def test_large_arrays_are_split_along_their_longest_axis_and_rules_come_first():
    mesh = make_mesh(jax.devices()[:1], 1)
    sixteen = AbstractMesh((2, 4), ("data", "model"))
    shapes = {
        "params": {"a": {"kernel": (6, 4096), "bias": (4096,)}, "odd": (30_001,), "b": (8192, 4, 4)},
        "optimiser": {"mu": {"a": {"kernel": (6, 4096)}}, "count": ()},
    }
    tree = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), shapes, is_leaf=lambda x: isinstance(x, tuple))
    specs = jax.tree.map(lambda s: s.spec, shardings(tree, sixteen), is_leaf=lambda x: hasattr(x, "spec"))
    assert specs["params"]["a"] == {"kernel": PartitionSpec(None, "model"), "bias": PartitionSpec()}
    assert specs["params"]["odd"] == PartitionSpec()
    assert specs["params"]["b"] == PartitionSpec("model")
    assert specs["optimiser"]["mu"]["a"]["kernel"] == PartitionSpec(None, "model")
    assert specs["optimiser"]["count"] == PartitionSpec()
    rules = (("b$", PartitionSpec(None, "model")), ("kernel", PartitionSpec()))
    ruled = shardings(tree, sixteen, rules)
    assert ruled["params"]["b"].spec == PartitionSpec(None, "model")
    assert ruled["optimiser"]["mu"]["a"]["kernel"].spec == PartitionSpec()
    with pytest.raises(InputError, match="it does not divide"):
        shardings(tree, sixteen, (("odd", PartitionSpec("model")),))
    with pytest.raises(InputError, match="more axes than params/odd"):
        shardings(tree, sixteen, (("odd", PartitionSpec(None, "model")),))
    assert {s.spec for s in jax.tree.leaves(shardings(tree, mesh))} == {PartitionSpec()}


def test_pace_counts_what_was_done_since_the_last_report(monkeypatch):
    clock = iter([0.0, 10.0, 14.0, 14.0, 15.0, 15.0])
    monkeypatch.setattr("facejax.training.metrics.time.perf_counter", lambda: next(clock))
    pace = Pace(batch=32, devices=4, flops=2e9, peak=1e10)
    pace.start(100, waited=5.0)
    pace.leave_out(2.0)
    assert pace.report(110, waited=6.0) == {
        "steps_per_s": 5.0, "images_per_s_per_device": 40.0, "input_wait_share": 0.5, "mfu": 1.0,
    }  # fmt: skip
    assert pace.report(112, waited=6.0)["steps_per_s"] == 2.0


def test_peaks_of_devices():
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5p") == 459e12
    assert peak_flops("cpu") is None
    assert peak_flops("cpu", 0.5) == 5e11


def test_operations_are_counted_by_the_compiler():
    compiled = jax.jit(lambda a, b: a @ b).lower(jnp.ones((64, 128)), jnp.ones((128, 32))).compile()
    assert flops_of(compiled) == pytest.approx(2 * 64 * 128 * 32, rel=0.01)


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    reporter = Reporter(open_folder(tmp_path), 0, "on")
    reporter.line(3, {"loss": 0.25, "mfu": None})
    reporter.close()
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"loss" in events.read_bytes()


def test_tensorboard_asked_for_and_absent(tmp_path, monkeypatch):
    monkeypatch.setattr("facejax.training.metrics.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install tensorboardX"):
        Reporter(open_folder(tmp_path), 0, "on")
    Reporter(open_folder(tmp_path), 0, "auto").close()


def test_an_object_store_out_of_reach_is_told(monkeypatch):
    from etils import epath

    def absent(self):
        raise ImportError("gcsfs")

    monkeypatch.setattr(type(epath.Path("gs://nowhere/run")), "exists", absent)
    with pytest.raises(InputError, match=r"gs://nowhere/run cannot be reached \(ImportError\).*pip install gcsfs"):
        open_folder("gs://nowhere/run")


def test_training_off_the_main_thread_leaves_signals_alone(data, tmp_path):
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(train(toy("run.steps=2"), data, tmp_path / "run")))
    thread.start()
    thread.join()
    assert outcomes[0].finished
