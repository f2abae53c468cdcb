"""What every benchmark says of the machine it ran on, and how it prints its figures."""

import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

import facejax

Row = tuple[str, float | None, str, str]
"""A figure: its name, its value, what a control reaches, the goal."""


def machine_facts(cache_off: bool) -> dict[str, Any]:
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "facejax": facejax.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "load_at_start": os.getloadavg()[0],
        "compilation_cache": "off" if cache_off else "as JAX is set",
    }


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def print_table(
    title: str, rows: list[Row], heads: tuple[str, str, str, str] = ("figure", "value", "control", "goal")
) -> None:
    lines = [heads]
    lines += [(n, "n/a" if v is None or not np.isfinite(v) else f"{v:.3g}", c, g) for n, v, c, g in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    print(f"\n{title}")
    for line in lines:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
    sys.stdout.flush()
