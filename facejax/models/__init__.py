"""Heads and the networks that light them: parameters and pure functions."""

from facejax.models.deep_appearance import (
    Appearance,
    CodeDistribution,
    DeepAppearanceConfig,
    DeepAppearanceModel,
    sample_code,
    statistics,
)
from facejax.models.lighting_network import (
    GainBias,
    LightingNetwork,
    LightingNetworkConfig,
    pose_features,
    relight,
    rig_pose_features,
)

__all__ = [
    "Appearance",
    "CodeDistribution",
    "DeepAppearanceConfig",
    "DeepAppearanceModel",
    "GainBias",
    "LightingNetwork",
    "LightingNetworkConfig",
    "pose_features",
    "relight",
    "rig_pose_features",
    "sample_code",
    "statistics",
]
