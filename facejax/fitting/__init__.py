"""Analysis by synthesis: a scene's unknowns from pictures."""

from facejax.fitting.config import FitConfig
from facejax.fitting.image import fit_image
from facejax.fitting.live import LiveConfig, LiveFrame, LiveState, Tracked
from facejax.fitting.plans import Known, plan_for
from facejax.fitting.schedule import Job, Stage, StageLog, run_stages
from facejax.fitting.sequence import Fit, fit_clip, fit_sequence
from facejax.fitting.solve import Descent, GaussNewton, Lots, Settle, Turn

__all__ = [
    "Descent",
    "Fit",
    "FitConfig",
    "GaussNewton",
    "Job",
    "Known",
    "LiveConfig",
    "LiveFrame",
    "LiveState",
    "Lots",
    "Settle",
    "Stage",
    "StageLog",
    "Tracked",
    "Turn",
    "fit_clip",
    "fit_image",
    "fit_sequence",
    "plan_for",
    "run_stages",
]
