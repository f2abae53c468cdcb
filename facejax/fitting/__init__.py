"""Analysis by synthesis: a scene's unknowns from pictures."""

from facejax.fitting.config import FitConfig
from facejax.fitting.live import LiveConfig, LiveFrame, LiveState, Tracked
from facejax.fitting.plans import Known, plan_for
from facejax.fitting.schedule import Stage
from facejax.fitting.sequence import fit_sequence
from facejax.fitting.solve import Descent, GaussNewton, Lots, Settle, Turn

__all__ = [
    "Descent",
    "FitConfig",
    "GaussNewton",
    "Known",
    "LiveConfig",
    "LiveFrame",
    "LiveState",
    "Lots",
    "Settle",
    "Stage",
    "Tracked",
    "Turn",
    "fit_sequence",
    "plan_for",
]
