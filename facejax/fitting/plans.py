"""Plans: which stages follow a head through a clip, or find it in photos.

A head whose texture is an unknown is tracked: by landmarks, then by points on its skin. A head that brings its own
appearance is registered by whole pictures: steps 1 to 3 of Chen et al. 2021. Neither asks which head it is.
"""

import dataclasses
from collections.abc import Mapping

from facejax.fitting.config import FitConfig
from facejax.fitting.schedule import Stage
from facejax.fitting.solve import GaussNewton, Lots, Settle, Turn
from facejax.fitting.terms import (
    CodePrior,
    Flow,
    Landmarks,
    LightOfPictures,
    LightPrior,
    Pictures,
    Points,
    Smoothness,
    StayNear,
    Term,
    ZoomPrior,
)

_MOTION = ("frame.pose", "motion")
_LANDMARK_WINDOW = 512


@dataclasses.dataclass(frozen=True)
class Known:
    """What need not be solved for."""

    zoom: bool = False
    """The focal length."""
    person: bool = False
    """Shape, skin and texture."""
    photos: bool = False
    """Frames are photos: no two are neighbours in time, and each has a focal length of its own."""


def plan_for(roles: Mapping[str, tuple[str, ...]], config: FitConfig, known: Known) -> tuple[Stage, ...]:
    """The stages for a head with these roles."""
    stages = tracking(config, known) if "texture" in roles else registration(config, known)
    return tuple(s for s in stages if not (known.photos and s.frames == "windows"))


# -- a head whose texture is an unknown --------------------------------------------------------------------------------

_TRACKING_STEPS: Mapping[str, Mapping[str, int]] = {
    "fast": {"identity": 150, "motion": 24, "skin": 40, "appearance": 40, "refinement": 20},
    "full": {"identity": 400, "motion": 40, "skin": 60, "appearance": 80, "appearance again": 80, "refinement": 30},
}


def tracking(config: FitConfig, known: Known) -> tuple[Stage, ...]:
    """Landmarks on key frames and on all; skin and light; everything together; every frame's motion and light."""
    steps = _TRACKING_STEPS[config.preset]
    zoom = () if known.zoom else ("frame.log_zoom",) if known.photos else ("clip.log_zoom",)
    person = () if known.person else ("shape",)
    code, focal = CodePrior(config.prior_weight, config.identity_prior), ZoomPrior(config.focal_prior)
    landmarks = Landmarks(config.landmark_weight, config.closure_weight)
    still = Smoothness(config.pose_smoothness, config.code_smoothness)
    stages = [
        Stage(
            "identity",
            (Turn((landmarks, code, focal), (*person, *zoom, *_MOTION), steps["identity"]),),
            "key",
            others="stay" if known.photos else "alike",
        ),
        Stage(
            "motion", (Turn((landmarks, code, still), _MOTION, steps["motion"]),), "windows", window=_LANDMARK_WINDOW
        ),
    ]
    if not config.texture:
        return tuple(stages)
    colour = "held" if known.person else "common"
    weaker = dataclasses.replace(landmarks, weight=config.landmark_weight * config.landmark_share)
    free_skin = () if known.person else ("skin",)
    even: Term = _points(config, detail_weight=0.0, colour="held" if known.person else "even")
    stages.append(
        Stage(
            "skin",
            (
                Turn(
                    (even, CodePrior(0.0, config.prior_weight), LightPrior()),
                    (*free_skin, "frame.light"),
                    steps["skin"],
                ),
            ),
            "key",
            others="light",
            settle=True,
        )
    )
    common = _points(config, colour=colour, detail="common")
    for name in (n for n in steps if n.startswith("appearance")):
        turn = Turn((weaker, common, code, focal, LightPrior()), (*person, *zoom, *_MOTION, "frame.light"), steps[name])
        stages.append(Stage(name, (turn,), "key", others="light", settle=True))
    kept = _points(config, colour="held" if known.person else "kept")
    in_time = dataclasses.replace(still, light=config.light_smoothness)
    stages.append(
        Stage(
            "refinement",
            (
                Turn(
                    (weaker, kept, code, LightPrior(), in_time),
                    (*_MOTION, "frame.light"),
                    steps["refinement"],
                ),
            ),
            "windows",
            window=config.window,
        )
    )
    return tuple(stages)


def _points(config: FitConfig, **changes: object) -> Points:
    points = Points(
        size=config.size,
        count=config.samples_for_preset,
        weight=config.photometric_weight,
        detail_weight=config.detail_weight,
        detail_px=config.detail_px,
        blur_px=config.blur_px,
        colour_pull=config.colour_pull,
    )
    return dataclasses.replace(points, **changes)  # type: ignore[arg-type]


# -- a head that brings its own appearance -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Counts:
    landmark: int
    light: int
    network: int
    refine: int
    light_rate: float
    refine_rate: float


_REGISTRATION: Mapping[str, _Counts] = {
    "fast": _Counts(landmark=150, light=30, network=60, refine=12, light_rate=5.0, refine_rate=0.5),
    "full": _Counts(landmark=1000, light=250, network=500, refine=1000, light_rate=0.5, refine_rate=0.4),
}
"""`full` takes as many iterations as the paper and its rates for light and network; `fast` few, with a bolder light.

The paper's rate of 0.1 for pose and code is for Adam on its own units; here landmarks are fitted in whitened
coordinates, and pictures at the rates of `facejax.fitting.solve.rates_of`."""


def registration(config: FitConfig, known: Known) -> tuple[Stage, ...]:
    """Step 1 by landmarks, step 2 (Algorithm 1) on key frames, step 3 on every frame alone."""
    begun = landmark_steps(config, known)
    if not config.texture:
        return begun
    return (*begun, *adaptation(config), refinement(config))


def landmark_steps(config: FitConfig, known: Known) -> tuple[Stage, ...]:
    """Step 1: pose and code from landmarks."""
    count = _REGISTRATION[config.preset].landmark
    zoom = () if known.zoom else ("frame.log_zoom",) if known.photos else ("clip.log_zoom",)
    code, focal = CodePrior(config.prior_weight, 0.0), ZoomPrior(config.focal_prior)
    landmarks = Landmarks(config.landmark_weight, config.closure_weight)
    still = Smoothness(config.pose_smoothness, config.code_smoothness)
    return (
        Stage(
            "expression",
            (Turn((landmarks, code, focal), (*_MOTION, *zoom) if known.photos else _MOTION, count),),
            "key",
            others="stay" if known.photos else "alike",
        ),
        Stage(
            "motion",
            (Turn((landmarks, code, still), _MOTION, max(count // 4, 24)),),
            "windows",
            window=_LANDMARK_WINDOW,
        ),
    )


def _follow(config: FitConfig, steps: int) -> tuple[Turn, ...]:
    if config.flow_weight <= 0:
        return ()
    prior = config.code_weight / config.flow_weight
    by = GaussNewton(code_prior=prior, frames=config.frames_at_once)
    return (Turn((Flow(config.flow_weight),), _MOTION, steps, by=by),)


def adaptation(config: FitConfig) -> tuple[Stage, ...]:
    """Step 2, Algorithm 1 (eq. 7) on the key frames: the clip's light, then network, pose and code, in turns.

    At each step `frames_at_once` key frames are drawn by lot; with as many as there are, it is all of them, as in the
    paper. Turns by flow are not in the paper: a network that adapts to frames as landmarks left them learns their
    error, a constant lean above all, and step 3 then finds nothing to mend. With `changing_light` frames have lights
    of their own, smooth in time, and those between key frames are interpolated.
    """
    counts = _REGISTRATION[config.preset]
    lots = Lots(config.frames_at_once, config.seed, config.light_change_frames if config.changing_light else 0.0)
    terms: tuple[Term, ...] = (
        Pictures(config.laplacian_weight),
        CodePrior(config.code_weight, 0.0, per_number=True),
    )
    if config.network_prior > 0:
        terms = (*terms, StayNear(config.network_prior))
    light = ("clip.light", "frame.light") if config.changing_light else ("clip.light",)
    network = ("network", *_MOTION) if config.adapt else _MOTION
    turns = (
        *_follow(config, 3),
        Turn(terms, light, counts.light, counts.light_rate, by=lots),
        Turn(terms, network, counts.network, 0.1, by=lots),
    )
    stages = [Stage("adaptation", turns, "key", rounds=4)]
    if config.light_start == "linear":
        settle = Turn((LightOfPictures(config.changing_light),), by=Settle())
        first = Turn((LightOfPictures(False),), by=Settle())
        follow = _follow(config, 3)
        stages.insert(0, Stage("light", (first, *follow, settle) if follow else (settle,), "key"))
    return tuple(stages)


def refinement(config: FitConfig) -> Stage:
    """Step 3 (eq. 7 and 8): pose and code of every frame, alone, under the light as it is."""
    counts = _REGISTRATION[config.preset]
    terms: tuple[Term, ...] = (Pictures(config.laplacian_weight), CodePrior(config.code_weight, 0.0, per_number=True))
    if config.flow_weight > 0:
        terms = (*terms, Flow(config.flow_weight))
    descend = Turn(terms, _MOTION, counts.refine, counts.refine_rate, by=Lots(config.frames_at_once, config.seed))
    return Stage("registration", (*_follow(config, 6), descend), "alone")
