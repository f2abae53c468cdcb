"""facejax: track, relight and learn 3D faces from ordinary video, in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facejax.data.heads import load_head as load_head
    from facejax.data.heads import load_model as load_model
    from facejax.data.results import TrackResult as TrackResult
    from facejax.fitting import FitConfig as FitConfig
    from facejax.fitting import fit_sequence as fit_sequence

__version__ = "0.1.0"

# Loaded on first use (PEP 562), so that `import facejax` and `facejax --help` cost next to nothing.
_HOMES = {
    "FitConfig": "facejax.fitting",
    "TrackResult": "facejax.data.results",
    "fit_sequence": "facejax.fitting",
    "load_head": "facejax.data.heads",
    "load_model": "facejax.data.heads",
}

__all__ = ["FitConfig", "TrackResult", "__version__", "fit_sequence", "load_head", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
