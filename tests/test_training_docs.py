"""docs/training.md does what it says."""

import json
import re
from pathlib import Path

import pytest

from facejax import cli

PAGE = Path(__file__).resolve().parents[1] / "docs" / "training.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="not in a checkout")


def test_the_recipe_of_the_page_goes_from_a_file_to_a_pinned_checkpoint(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    (tmp_path / "width.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    lines = re.search(r"anybody can judge:\n\n((?:    .*\n)+)", PAGE.read_text())[1].splitlines()
    assert len(lines) == 3
    for line in lines:
        command, *words = line.split()
        assert command == "facejax"
        assert cli.main(words) == 0
    assert "error (mm)" in capsys.readouterr().out
    recorded = json.loads((tmp_path / "width-1" / "manifest.json").read_text())["evaluation"]["values"]
    assert recorded["error (mm)"]["value"] < 2.5  # the mean of |noise| is 2.0 mm; without learning it is 9


def test_every_command_of_the_page_exists():
    """Options that the page names are options that the command line has."""
    for line in re.findall(r"^    (?:XLA\S+ \\\n\s+)?(facejax [^\n]*)", PAGE.read_text(), re.M):
        words = line.split("   ")[0].replace("...", "0" * 64).split()[1:]
        if "--help" not in words:
            cli.parse(words)
