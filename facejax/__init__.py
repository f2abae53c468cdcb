"""facejax: track, relight and learn 3D faces from ordinary video, in JAX."""

from typing import TYPE_CHECKING

from facejax._lazy import lazy_names

if TYPE_CHECKING:
    from facejax.data.heads import load_head, load_model
    from facejax.data.results import TrackResult
    from facejax.fitting import FitConfig, fit_image, fit_sequence

__version__ = "0.1.0"

__all__ = ["FitConfig", "TrackResult", "__version__", "fit_image", "fit_sequence", "load_head", "load_model"]

__getattr__, __dir__ = lazy_names(__name__)
