"""Dense optical flow between what a fit draws and what was seen (OpenCV's DIS, Kroeger et al. 2016)."""

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from facejax.geometry.errors import InputError

_FURTHEST = 0.15  # of the picture's side: longer vectors are failures
_DISAGREE_PX = 1.0  # forward and backward flow


def dense_flow(
    source: UInt8[np.ndarray, "h w 3"], target: UInt8[np.ndarray, "_ _ 3"]
) -> tuple[Float[np.ndarray, "h w 2"], Float[np.ndarray, "h w"]]:
    """(flow, weight): what is at pixel x of the source is at x + flow in the target.

    Weight is 0 where the flow fails: it is not finite, longer than any fit is off, or not undone by the flow from the
    target back to the source. Raises `InputError` without OpenCV.
    """
    try:
        import cv2 as opencv
    except ImportError as error:
        raise InputError(
            'Registration with optical flow needs OpenCV: `pip install "facejax[flow]"`, or set `flow_weight=0`.'
        ) from error
    if source.shape != target.shape:
        raise InputError(f"Flow needs two pictures of one size, got {source.shape} and {target.shape}.")
    cv2: Any = opencv  # its type hints lack DIS
    grey = [cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in (source, target)]
    finder = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    finder.setFinestScale(0)  # its own choice stops at half the resolution: lips and lids are a few pixels here
    there = finder.calc(grey[0], grey[1], None)
    back = finder.calc(grey[1], grey[0], None)
    return there, agreement(there, back)


def agreement(there: Float[np.ndarray, "h w 2"], back: Float[np.ndarray, "h w 2"]) -> Float[np.ndarray, "h w"]:
    """1 where going along one flow and back along the other ends near the start, else 0; see `dense_flow`."""
    height, width = there.shape[:2]
    finite = np.isfinite(there).all(axis=-1)
    moved = np.where(finite[..., None], there, 0.0)
    y, x = np.mgrid[:height, :width]
    column = np.clip(np.rint(x + moved[..., 0]), 0, width - 1).astype(int)
    row = np.clip(np.rint(y + moved[..., 1]), 0, height - 1).astype(int)
    rest = np.linalg.norm(moved + np.nan_to_num(back[row, column], nan=1e6, posinf=1e6, neginf=1e6), axis=-1)
    length = np.linalg.norm(moved, axis=-1)
    allowed = np.maximum(_DISAGREE_PX, 0.2 * length)
    good = finite & (length < _FURTHEST * max(height, width)) & (rest < allowed)
    return good.astype(np.float32)
