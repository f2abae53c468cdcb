"""What a user may choose about a fit."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """Choices of `fit_sequence`. Weights multiply squared residuals in millimetres on the face unless they say
    otherwise."""

    preset: Literal["fast", "full"] = "fast"
    """How many steps the stages take: `full` takes about twice as many on a head's skin, with more points and a finer
    texture, and as many as the paper on an avatar."""
    size: int = 256
    """Side in pixels of the square face crop that photometric terms see."""
    key_frames: int = 32
    """Frames that identity, skin, texture and focal length are solved on, chosen for variety of pose."""
    window: int = 64
    """Frames solved together in one compiled batch; neighbouring windows overlap."""
    texture_size: int | None = None
    """Side in texels of the clip's UV texture, a power of two; default 512 for `fast`, 1024 for `full`."""
    sharpening: int | None = None
    """Rounds of back-projection that sharpen the texture; default 1 for `fast`, 2 for `full`."""
    samples: int | None = None
    """Points on the skin that photometric terms compare; default 1,500 for `fast`, 4,000 for `full`."""
    blur_px: float = 1.0
    """Gaussian blur of face crops, pixels: widens the reach of the photometric terms."""
    bands: int = 3
    """Spherical-harmonic bands of each frame's light."""
    texture: bool = True
    """Whether to solve appearance at all; False stops after landmarks."""

    landmark_weight: float = 60.0
    """Of the mean robust landmark residual of a frame."""
    landmark_share: float = 0.3
    """Factor on `landmark_weight` where pictures are compared too."""
    closure_weight: float = 30.0
    """Of how far lips and lids are apart, compared with the observed distance."""
    photometric_weight: float = 30000.0
    """Of the mean robust colour residual (display values in [0, 1]) of a frame."""
    detail_weight: float = 100.0
    """Of the mean robust difference of detail, see `facejax.fitting.footage.detail`."""
    detail_px: tuple[float, ...] = (5.0,)
    """Radii in pixels of a crop below which a pattern is detail, a channel each."""
    colour_pull: float = 1.0
    """How much colour, beside detail, moves the head: 0 leaves it to light and skin alone."""
    prior_weight: float = 4.0
    """Of the head's prior on each frame's code."""
    identity_prior: float = 0.1
    """Of the head's prior on the code that all frames share."""
    pose_smoothness: float = 4.0
    """Of the second difference in time of head pose (mm on the face)."""
    code_smoothness: float = 5.0
    """Of the second difference in time of expression."""
    light_smoothness: float = 10.0
    """Of the difference in time of light."""
    light_model: Literal["network", "sh", "shadowed-sh"] = "network"
    """How a head is lit, see `facejax.scenes.make_scene`: its own way (an avatar's lighting network, harmonics on a
    surface), spherical harmonics, or those with cast shadows, on an avatar of 9 bands."""
    light_start: Literal["linear", "dark"] = "linear"
    """Where an avatar's light starts: from a linear fit to a few key frames, or from darkness as in the paper."""
    changing_light: bool = False
    """Whether an avatar's light may change in a clip: a code per frame, smooth in time, instead of one."""
    adapt: bool = True
    """Whether an avatar's lighting network is adapted to the clip, beside its code."""
    frames_at_once: int = 4
    """Frames drawn in one step where pictures are rendered: in adaptation, key frames drawn by lot."""
    laplacian_weight: float = 0.3
    """Of the image Laplacian of rendered residuals, beside the residuals; the paper does not give its own."""
    flow_weight: float = 3.0
    """Of squared distances (px of a crop of 256) from where optical flow puts vertices; 0 leaves flow out."""
    code_weight: float = 0.1
    """Of the mean square of an avatar's code where pictures are rendered (0 to 255)."""
    network_prior: float = 0.0
    """Of the squared change of an avatar's lighting network by adaptation."""
    light_change_frames: float = 10.0
    """Standard deviation in time, in frames, of the Gaussian that a changing light is smoothed by."""
    seed: int = 0
    """Of the lot that draws key frames."""
    focal_prior: float = 0.25
    """Standard deviation of the natural log of the focal length about its guess, where intrinsics are unknown."""
    field_of_view_deg: float = 30.0
    """Guess of the field of view over the longer image side, where intrinsics are unknown."""

    @property
    def texture_size_for_preset(self) -> int:
        return self.texture_size or {"fast": 512, "full": 1024}[self.preset]

    @property
    def samples_for_preset(self) -> int:
        return self.samples or {"fast": 1500, "full": 4000}[self.preset]

    @property
    def sharpening_for_preset(self) -> int:
        return {"fast": 1, "full": 2}[self.preset] if self.sharpening is None else self.sharpening
