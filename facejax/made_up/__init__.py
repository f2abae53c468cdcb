"""People, stages and clips that anyone can make again from a seed, with their truth.

What a fit is scored on is drawn by another renderer than the fit's (Mitsuba 3), so that the score does not flatter it.
"""

from typing import TYPE_CHECKING

from facejax._lazy import lazy_names

if TYPE_CHECKING:
    from facejax.made_up.light_stage import LightStageSpec, subject_of, write_capture
    from facejax.made_up.subjects import make_motion, make_subject
    from facejax.made_up.traced_stage import add_test_images
    from facejax.made_up.truth_clip import Truth, TruthSpec, make_truth_clip
    from facejax.made_up.wild_clips import Person, WildSpec, WildTruth, make_wild_clip

__all__ = [
    "LightStageSpec",
    "Person",
    "Truth",
    "TruthSpec",
    "WildSpec",
    "WildTruth",
    "add_test_images",
    "make_motion",
    "make_subject",
    "make_truth_clip",
    "make_wild_clip",
    "subject_of",
    "write_capture",
]

__getattr__, __dir__ = lazy_names(__name__)
