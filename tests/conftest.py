"""Fixtures that many test files share."""

import functools
import gc
import os
from pathlib import Path

# Most of the suite's time is compilation, and little of it is spent in what was compiled: LLVM need not try hard.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Compiled programs are kept between tests, workers and runs: most of the suite's time is compilation."""
    jax.config.update("jax_compilation_cache_dir", str(config.rootpath / ".pytest_cache" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def assets_folder() -> Path | None:
    """The development assets: `FACEJAX_ASSETS`, else `../shared/assets` beside the checkout; None without any."""
    folder = Path(os.environ.get("FACEJAX_ASSETS", Path(__file__).resolve().parents[2] / "shared" / "assets"))
    return folder if (folder / "SHA256SUMS").is_file() else None


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of the development assets; the test is skipped, and says so, where they are absent."""
    folder = assets_folder()
    if folder is None:
        pytest.skip("development assets not found: set FACEJAX_ASSETS to their folder")
    return folder


_PROGRAMS_BYTES = 3 << 30


@pytest.fixture(scope="module", autouse=True)
def few_programs_are_kept():
    """Forgets what was compiled once that fills a worker's memory: solvers and scenes are kept for the next clip, and
    two hundred test modules have as many heads."""
    yield
    if _resident_bytes() < _PROGRAMS_BYTES:
        return
    for thing in gc.get_objects():
        if isinstance(thing, functools._lru_cache_wrapper) and str(thing.__module__).startswith("facejax"):
            thing.cache_clear()
    jax.clear_caches()
    gc.collect()


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.is_file() else _PROGRAMS_BYTES
