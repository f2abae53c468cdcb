"""Finding an LLVM that Mitsuba's `llvm_ad_rgb` variant survives, before that variant is set.

Dr.Jit loads LLVM when the variant is set and compiles with it later. With LLVM 14 or 15 some kernels then abort the
whole process, and no Python exception says why. So the library is looked for and its version read here, in a process
of its own, without Mitsuba.
"""

import glob
import os
import re
import sys

from facejax.geometry.errors import InputError
from facejax.geometry.processes import ProcessError, run_python

MINIMUM_VERSION = (16, 0, 0)
"""The oldest LLVM that Mitsuba's JIT compiler works with."""

HOW_TO_GET = {
    "linux": "apt install libllvm19",
    "darwin": "brew install llvm",
    "win32": "winget install LLVM.LLVM",
}
"""The command that installs a new enough LLVM, by `sys.platform`."""

_PATTERNS = {
    "linux": (
        "/usr/lib/*-linux-gnu/libLLVM*.so*",
        "/usr/lib/llvm-*/lib/libLLVM*.so*",
        "/usr/lib64/libLLVM*.so*",
        "/usr/lib64/llvm*/lib*/libLLVM*.so*",
        "/usr/lib/libLLVM*.so*",
        "/usr/local/lib/libLLVM*.so*",
    ),
    "darwin": (
        "/opt/homebrew/opt/llvm*/lib/libLLVM*.dylib",
        "/usr/local/opt/llvm*/lib/libLLVM*.dylib",
        "/opt/local/libexec/llvm-*/lib/libLLVM*.dylib",
    ),
    "win32": (r"C:\Program Files\LLVM\bin\LLVM-C.dll",),
}

# `LLVMGetVersion` came with LLVM 16, so a library without it is too old. Each library is read in a process of its own:
# two LLVMs in one process may abort it.
_READ_VERSION = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.LLVMContextCreate
numbers = [ctypes.c_uint(0) for _ in range(3)]
if hasattr(library, "LLVMGetVersion"):
    library.LLVMGetVersion(*[ctypes.byref(n) for n in numbers])
print(*[n.value for n in numbers])
"""


def llvm_version(path: str) -> tuple[int, int, int] | None:
    """Version of the LLVM library at `path`, (major, minor, patch); None when it cannot be loaded or is no LLVM.

    Before 16 the library cannot say its version; it is then read off the file's name, or (0, 0, 0) where that has none.
    """
    try:
        run = run_python(_READ_VERSION, path, timeout=60.0)
    except ProcessError:
        return None
    if run.returncode != 0:
        return None
    major, minor, patch = (int(n) for n in run.stdout.split())
    return (major, minor, patch) if major else _version_in_name(path)


def find_llvm() -> tuple[str, tuple[int, int, int]] | None:
    """(path, version) of the LLVM to use: `DRJIT_LIBLLVM_PATH` if set, else the newest in the system's usual places.

    The version may be too old, see `require_llvm`. None when there is none, or when the one named cannot be loaded.
    """
    named = os.environ.get("DRJIT_LIBLLVM_PATH")
    if named:
        version = llvm_version(named)
        return None if version is None else (named, version)
    for path in _candidates():
        version = llvm_version(path)
        if version is not None:
            return path, version
    return None


def require_llvm() -> tuple[str, tuple[int, int, int]]:
    """(path, version) of an LLVM of at least 16; from then on Dr.Jit loads this very one.

    Call it before a Mitsuba `llvm_*` variant is set: it names the library in `DRJIT_LIBLLVM_PATH`, so the library that
    was checked is the one that is used. Raises `InputError`, with the command that installs one, when there is none.
    """
    found = find_llvm()
    get = f"install it with `{HOW_TO_GET.get(sys.platform, HOW_TO_GET['linux'])}`"
    if found is None:
        named = os.environ.get("DRJIT_LIBLLVM_PATH")
        where = f"DRJIT_LIBLLVM_PATH names {named}, which cannot be loaded" if named else "none was found"
        raise InputError(f"Path tracing needs the LLVM library, version 16 or newer, but {where}: {get}.")
    path, version = found
    if version < MINIMUM_VERSION:
        shown = ".".join(map(str, version)) if any(version) else "an older one"
        raise InputError(f"Path tracing needs LLVM 16 or newer, but {path} is {shown}: {get}.")
    os.environ["DRJIT_LIBLLVM_PATH"] = path
    return found


def _version_in_name(path: str) -> tuple[int, int, int]:
    """Version by the real file name (libLLVM-15.so.1 is 15, libLLVM.so.19.1 is 19.1), (0, 0, 0) where it has none."""
    name = os.path.basename(os.path.realpath(path))
    match = re.search(r"LLVM(?:-(?P<dash>[\d.]+\d|\d+))?\.(?:so|dylib)(?:\.(?P<tail>[\d.]+))?", name)
    numbers = [int(n) for n in ((match["dash"] or match["tail"] or "") if match else "").split(".") if n]
    major, minor, patch = [*numbers, 0, 0, 0][:3]
    return major, minor, patch


def _candidates() -> list[str]:
    """Libraries in the usual places, newest name first, each file once."""
    paths = [p for pattern in _PATTERNS.get(sys.platform, ()) for p in glob.glob(pattern)]
    real = {os.path.realpath(p): p for p in sorted(paths) if os.path.isfile(p)}
    return sorted(real, key=_version_in_name, reverse=True)
