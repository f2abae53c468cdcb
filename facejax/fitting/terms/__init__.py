"""What a fit compares, one term a file; see `facejax.fitting.terms.term.Term`."""

from facejax.fitting.terms.flow import Flow
from facejax.fitting.terms.landmarks import Landmarks
from facejax.fitting.terms.pictures import LightOfPictures, Pictures
from facejax.fitting.terms.points import Points
from facejax.fitting.terms.priors import CodePrior, LightPrior, StayNear, ZoomPrior
from facejax.fitting.terms.smoothness import Smoothness
from facejax.fitting.terms.term import Observed, Term

__all__ = [
    "CodePrior",
    "Flow",
    "Landmarks",
    "LightOfPictures",
    "LightPrior",
    "Observed",
    "Pictures",
    "Points",
    "Smoothness",
    "StayNear",
    "Term",
    "ZoomPrior",
]
