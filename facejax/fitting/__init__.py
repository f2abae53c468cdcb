"""Analysis by synthesis: a head's variables from pictures."""

from facejax.fitting.config import FitConfig
from facejax.fitting.sequence import fit_sequence

__all__ = ["FitConfig", "fit_sequence"]
