"""Protocols: how good a track, an avatar or a checkpoint is, beside what doing nothing would score."""

from typing import TYPE_CHECKING

from facejax._lazy import lazy_names

if TYPE_CHECKING:
    from facejax.evaluation.deep_lighting import (
        Method,
        Protocol,
        clips_in,
        evaluate_clips,
        held_out_frames,
        measure_geometry,
        measure_pictures,
        open_clip,
        run_method,
    )
    from facejax.evaluation.reproduce import Compared, pin
    from facejax.evaluation.tracking import evaluate_picture, evaluate_track, evaluate_truth

__all__ = [
    "Compared",
    "Method",
    "Protocol",
    "clips_in",
    "evaluate_clips",
    "evaluate_picture",
    "evaluate_track",
    "evaluate_truth",
    "held_out_frames",
    "measure_geometry",
    "measure_pictures",
    "open_clip",
    "pin",
    "run_method",
]

__getattr__, __dir__ = lazy_names(__name__)
