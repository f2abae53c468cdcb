"""Scenes: a head, a light and a renderer as one pure function of their unknowns. THE composition."""

from facejax.scenes.lighting import (
    AsCaptured,
    Harmonics,
    Lamps,
    Lighting,
    LinearLighting,
    Lit,
    NetworkLight,
    SelfShadowed,
    ShadowedTexture,
    TextureHarmonics,
)
from facejax.scenes.scene import Drawn, Scene, Seen, make_scene
from facejax.scenes.unknowns import ClipVariables, FrameVariables, Lens, PoseVariables, Unknowns

__all__ = [
    "AsCaptured",
    "ClipVariables",
    "Drawn",
    "FrameVariables",
    "Harmonics",
    "Lamps",
    "Lens",
    "Lighting",
    "LinearLighting",
    "Lit",
    "NetworkLight",
    "PoseVariables",
    "Scene",
    "Seen",
    "SelfShadowed",
    "ShadowedTexture",
    "TextureHarmonics",
    "Unknowns",
    "make_scene",
]
