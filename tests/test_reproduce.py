"""Pinned checkpoints measured again: those that ship reach what they recorded, and spoilt ones do not."""

import json
import shutil

import numpy as np
import pytest

from facejax import cli
from facejax.data.checkpoints import SHIPPED, describe_files, read_manifest, read_network, write_network
from facejax.evaluation.reproduce import MOST_TOLERANCE, Compared, pin, reproduce
from facejax.geometry.errors import InputError

NAME = "head-autoencoder-small"
MOST_BYTES = 20e6  # of one checkpoint with its evaluation data, in a wheel that people install


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(SHIPPED / NAME, tmp_path / "copy")
    return tmp_path / "copy"


def rewrite(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    manifest["files"] = describe_files(folder, manifest["files"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_every_shipped_checkpoint_reaches_what_it_recorded(capsys):
    shipped = [path.name for path in SHIPPED.iterdir()]
    assert NAME in shipped
    for name in shipped:
        assert cli.main(["reproduce", name]) == 0
    said = capsys.readouterr().out
    assert "vertex error (mm)" in said
    assert "DIFFERS" not in said


def test_shipped_checkpoints_are_small_and_come_from_a_commit():
    for folder in SHIPPED.iterdir():
        manifest = read_manifest(folder)
        assert sum(file["bytes"] for file in manifest["files"].values()) < MOST_BYTES
        assert len(manifest["trained"]["revision"]) == 40  # no changes beside it
        values = manifest["evaluation"]["values"]
        assert all(0 < value["tolerance"] <= MOST_TOLERANCE for value in values.values())


def test_the_autoencoder_is_better_than_the_mean_head():
    values = read_manifest(SHIPPED / NAME)["evaluation"]["values"]
    assert values["vertex error (mm)"]["value"] < 0.25 * values["mean head (mm)"]["value"]


def test_another_network_differs(copy, capsys):
    """Weights changed by 5 %, the manifest made to fit: the numbers tell."""
    _, arrays = read_network(copy)
    name = "params/decoder/layers/0/kernel"
    write_network(copy / "network.npz", arrays | {name: arrays[name] * np.float32(1.05)})
    rewrite(copy, lambda manifest: None)
    rows = {row.name: row for row in reproduce(copy)}
    assert not rows["vertex error (mm)"].agrees
    assert rows["mean head (mm)"].agrees  # does not ask the network
    assert cli.main(["reproduce", str(copy)]) == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_an_altered_file_is_refused_before_anything_is_measured(copy, capsys):
    content = bytearray((copy / "network.npz").read_bytes())
    content[1000] ^= 1
    (copy / "network.npz").write_bytes(content)
    assert cli.main(["reproduce", str(copy)]) == 2
    assert "network.npz was altered" in capsys.readouterr().err


def test_tolerances_are_bounded(copy):
    rewrite(copy, lambda m: m["evaluation"]["values"]["vertex error (mm)"].update(tolerance=0.5))
    with pytest.raises(InputError, match=r"a tolerance of 0.5, over 0.02"):
        reproduce(copy)
    with pytest.raises(InputError, match=r"at most at 0.02, not at 0.1"):
        pin("run", "data", "out", tolerance=0.1)


def test_a_number_that_is_no_longer_measured(copy):
    rewrite(copy, lambda m: m["evaluation"]["values"].update({"hair (mm)": {"value": 1.0, "tolerance": 0.01}}))
    with pytest.raises(InputError, match=r"records 'hair \(mm\)', which head-autoencoder does not measure any more"):
        reproduce(copy)


def test_newer_checkpoints_are_refused(copy):
    rewrite(copy, lambda m: m.update(version=9))
    with pytest.raises(InputError, match=r"version 9 of head-autoencoder, newer than version 1"):
        reproduce(copy)


@pytest.mark.parametrize(
    ("recorded", "measured", "agrees"),
    [(2.0, 2.019, True), (2.0, 2.021, False), (2.0, 1.981, True), (-2.0, -2.01, True), (0.0, 0.0, True),
     (0.0, 1e-9, False), (1.0, float("nan"), False)],
)  # fmt: skip
def test_agreement_is_relative(recorded, measured, agrees):
    assert Compared("x", recorded, measured, 0.01).agrees == agrees


# -- the commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [["train"], ["checkpoints"], ["checkpoints", "list"], ["checkpoints", "verify"], ["checkpoints", "fetch"],
     ["checkpoints", "pin"], ["checkpoints", "export"], ["reproduce"]],
    ids=" ".join,
)  # fmt: skip
def test_help(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments, "--help"])
    assert stopped.value.code == 0
    assert "usage: facejax" in capsys.readouterr().out


def test_help_of_a_recipe_shows_its_fields(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "head-autoencoder", "--preset", "paper", "--help"])
    shown = capsys.readouterr().out
    assert "schedule.noise_mm" in shown
    assert "50000" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "takes RECIPE --data DIR --out RUN"),
        (["train", "head-autoencodr", "--data", "d", "--out", "o"], "did you mean 'head-autoencoder'"),
        (["train", "head-autoencoder", "--preset", "smal", "--data", "d", "--out", "o"], "did you mean 'small'"),
        (["train", "head-autoencoder", "--set", "run.bach=1", "--data", "d", "--out", "o"], "did you mean 'run.batch'"),
        (["train", "head-autoencoder", "--data", "no-such-folder", "--out", "o"], "no-such-folder is not a folder"),
        (["checkpoints", "verify", "head-autoencoder-smal"], "did you mean 'head-autoencoder-small'"),
        (["reproduce", "nothing-like-it"], "There is no checkpoint 'nothing-like-it'"),
    ],
)
def test_bad_commands_are_one_sentence_and_exit_2(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_listing(capsys):
    assert cli.main(["train", "--list"]) == 0
    assert "head-autoencoder: " in capsys.readouterr().out
    assert cli.main(["checkpoints", "list"]) == 0
    assert f"{NAME}: head-autoencoder" in capsys.readouterr().out
    assert cli.main(["checkpoints", "verify", NAME]) == 0
    assert "are as they were written" in capsys.readouterr().out


def test_from_a_recipe_to_a_pinned_checkpoint_by_commands(tmp_path, capsys, monkeypatch):
    """What docs/training.md tells: make data, train, stop and go on, pin, reproduce, export."""
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    settings = ["data.vertices=16", "data.train=24", "data.test=8", "network.width=8", "network.code=4"]
    settings += ["run.steps=6", "run.batch=4"]
    train = ["train", "head-autoencoder", "--data", str(tmp_path / "heads"), "--out", str(tmp_path / "run")]
    train += [word for setting in settings for word in ("--set", setting)]
    assert cli.main([*train, "--make-data"]) == 0
    shown = capsys.readouterr()
    assert "vertex error (mm)" in shown.out
    assert "step 6/6  loss" in shown.err
    assert (tmp_path / "run" / "pictures" / "heads-0000006.png").is_file()
    assert cli.main(train) == 2
    assert "--resume" in capsys.readouterr().err
    assert cli.main([*train, "--resume"]) == 0
    pinned = str(tmp_path / "pinned")
    assert (
        cli.main(["checkpoints", "pin", str(tmp_path / "run"), "--data", str(tmp_path / "heads"), "--out", pinned]) == 0
    )
    assert cli.main(["reproduce", pinned]) == 0
    pytest.importorskip("safetensors")
    assert cli.main(["checkpoints", "export", pinned, "--out", str(tmp_path / "net.safetensors")]) == 0
    assert (tmp_path / "net.safetensors").is_file()


def test_a_signal_gives_the_shell_its_status(tmp_path, monkeypatch, capsys):
    from facejax.data.sources import MachineError
    from facejax.training import Outcome

    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    line = ["train", "head-autoencoder", "--data", str(tmp_path), "--out", str(tmp_path / "o")]
    for reason, status in (("SIGTERM", 143), ("SIGINT", 130), ("preemption", 143)):
        monkeypatch.setattr("facejax.training.train", lambda *a, r=reason, **k: Outcome(7, False, r))
        assert cli.main(line) == status
        assert f"stopped by {reason} after step 7, all of it saved; --resume goes on" in capsys.readouterr().err

    def fails(*arguments, **options):
        raise MachineError("No space left.")

    monkeypatch.setattr("facejax.training.train", fails)
    assert cli.main(line) == 1
    assert capsys.readouterr().err == "facejax: No space left.\n"
