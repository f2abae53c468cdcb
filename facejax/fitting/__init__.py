"""Analysis by synthesis: a scene's unknowns from pictures."""

from facejax.fitting.config import FitConfig
from facejax.fitting.image import fit_image
from facejax.fitting.plans import Known, plan_for
from facejax.fitting.schedule import Stage
from facejax.fitting.sequence import fit_sequence
from facejax.fitting.solve import Descent, GaussNewton, Lots, Settle, Turn

__all__ = [
    "Descent",
    "FitConfig",
    "GaussNewton",
    "Known",
    "Lots",
    "Settle",
    "Stage",
    "Turn",
    "fit_image",
    "fit_sequence",
    "plan_for",
]
