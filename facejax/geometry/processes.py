"""Every process that facejax starts, so that none takes its code from the folder that it happens to run in.

A folder that somebody unpacked may hold a `numpy.py` or a program called `git`. `python -c` puts the current folder
first where modules are looked for, and so do the interpreters that `multiprocessing` starts; a relative entry of PATH
does the same for programs.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ProcessError = (OSError, subprocess.SubprocessError)
"""A process that cannot be started, takes too long, or, in `run_program`, fails."""


def run_python(code: str, *arguments: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process of its own, which finds the packages that this one finds, but not by `""`.

    timeout: seconds. Raises one of `ProcessError`.
    """
    # -P leaves the current folder out, and nothing else. -I would ignore PYTHONPATH and the packages of
    # `pip install --user` as well, and report what this process has just imported as missing.
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def find_program(name: str) -> str | None:
    """Absolute path of a program by the absolute folders in PATH; None where none of them has it."""
    folders = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if os.path.isabs(folder)]
    return shutil.which(name, path=os.pathsep.join(folders))


def run_program(name: str, *arguments: str, timeout: float) -> str:
    """What a program prints, without the white space around it.

    timeout: seconds. Raises one of `ProcessError`, also where it is not there.
    """
    path = find_program(name)
    if path is None:
        raise FileNotFoundError(f"no {name} in an absolute folder of PATH")
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=True, timeout=timeout)
    return done.stdout.strip()


@contextmanager
def safe_workers() -> Iterator[None]:
    """Inside, interpreters that `multiprocessing` starts leave the current folder out of where modules are looked for.

    They take no -P from us, so the environment says it; only inside, as a caller's own scripts may want their folder.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before
