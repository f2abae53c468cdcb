"""Light patterns of Goliath's head captures (CC-BY-NC-4.0): which lights of the stage were on in each frame."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from facejax.geometry.errors import InputError

FULL_DURATION = 5555.0
"""Of a light that is on for the whole of a frame, in the unit of the files."""


@dataclasses.dataclass(frozen=True, eq=False)
class LightPatterns:
    """The lights of a stage, and the groups in which they were switched on."""

    positions: Float32[np.ndarray, "n 3"]
    """Metres, world frame."""
    groups: tuple[tuple[int, ...], ...]
    """Lights of each distinct partial pattern, in the order in which the file first has them."""
    pattern_group: tuple[int | None, ...]
    """Each pattern's group: None for the fully lit pattern 0 and for one without any light."""
    intensity: tuple[float, ...]
    """Each pattern's mean of duration / 5555 over its lights."""
    frame_pattern: dict[int, int]


def read_light_patterns(folder: Path | str) -> LightPatterns:
    """The files `lights/light_pattern_metadata.json` and `lights/light_pattern_per_frame.json`. Raises `InputError`."""
    metadata, frames = (_json(Path(folder) / "lights" / f"light_pattern_{n}.json") for n in ("metadata", "per_frame"))
    try:
        positions = np.asarray(metadata["light_positions"], np.float32).reshape(-1, 3) * np.float32(1e-3)
        patterns = [
            {int(light): float(duration) / FULL_DURATION for light, duration in p["light_index_durations"]}
            for p in metadata["light_patterns"]
        ]
        frame_pattern = {int(frame): int(pattern) for frame, pattern in frames}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"The light patterns in {Path(folder) / 'lights'} must have light_positions, light_patterns with "
            f"light_index_durations, and pairs of frame and pattern ({error!r} came): get the two files again."
        ) from error
    lights = {light for p in patterns for light in p}
    if not patterns or not patterns[0] or not lights <= set(range(len(positions))):
        raise InputError(
            f"The light patterns in {Path(folder) / 'lights'} must begin with the fully lit one and name lights "
            f"among the {len(positions)} that have positions: get the two files again."
        )
    wrong = next((f for f, p in frame_pattern.items() if not 0 <= p < len(patterns)), None)
    if wrong is not None:
        raise InputError(
            f"Frame {wrong} of {Path(folder) / 'lights'} has the pattern {frame_pattern[wrong]}, and there are "
            f"{len(patterns)}: the two files do not belong together."
        )
    full = frozenset(patterns[0])
    sets = [frozenset(light for light, on in p.items() if on > 0) for p in patterns]
    partial = list(dict.fromkeys(s for s in sets[1:] if s and s != full))
    return LightPatterns(
        positions=positions,
        groups=tuple(tuple(sorted(s)) for s in partial),
        pattern_group=(None, *(partial.index(s) if s in partial else None for s in sets[1:])),
        intensity=tuple(float(np.mean([*p.values()])) if p else 0.0 for p in patterns),
        frame_pattern=frame_pattern,
    )


def goliath_light_codes(folder: Path | str, frames: Sequence[int]) -> Float32[np.ndarray, "n groups 3"]:
    """Light codes of frames of a Goliath head capture, as `View.light` has them; the lights are white.

    A group is a distinct set of lights that were on together (5 in the published captures). Under the full light
    (pattern 0) every group is 1; under a partial pattern its own group has its lights' intensity (duration / 5555) in
    units of that under the full light, and the others are 0. Raises `InputError` for files that are missing
    or damaged and for frames that have no pattern.
    """
    held = read_light_patterns(folder)
    unknown = next((f for f in frames if int(f) not in held.frame_pattern), None)
    if unknown is not None:
        raise InputError(
            f"Frame {unknown} has no light pattern in {Path(folder) / 'lights' / 'light_pattern_per_frame.json'}, "
            f"which has {len(held.frame_pattern)} frames: ask for frames of this capture."
        )
    codes = np.zeros((len(frames), len(held.groups), 3), np.float32)
    for row, frame in zip(codes, frames, strict=True):
        pattern = held.frame_pattern[int(frame)]
        group = held.pattern_group[pattern]
        if group is not None:
            row[group] = held.intensity[pattern] / held.intensity[0]
        elif held.intensity[pattern] > 0:
            row[:] = held.intensity[pattern] / held.intensity[0]
    return codes


def _json(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"The light pattern file {path} is missing: download the capture's `lights`.")
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not JSON ({error}): get it again.") from error
