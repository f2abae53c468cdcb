"""Heads and the networks that light them: parameters and pure functions."""

from facejax.models.avatar import Avatar, AvatarClip, AvatarFrame
from facejax.models.backbones import IMAGENET_MEAN, IMAGENET_STD, VGG16, Backbone, ResNet, imagenet_input
from facejax.models.deep_appearance import (
    Appearance,
    CodeDistribution,
    DeepAppearanceConfig,
    DeepAppearanceModel,
    sample_code,
    statistics,
)
from facejax.models.head import ROLES, Encoder, Guess, HeadModel
from facejax.models.lighting_network import (
    GainBias,
    LightingNetwork,
    LightingNetworkConfig,
    pose_features,
    relight,
    rig_pose_features,
)
from facejax.models.morphable import Expression, Identity, MorphableHead, MorphableParams

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "ROLES",
    "VGG16",
    "Appearance",
    "Avatar",
    "AvatarClip",
    "AvatarFrame",
    "Backbone",
    "CodeDistribution",
    "DeepAppearanceConfig",
    "DeepAppearanceModel",
    "Encoder",
    "Expression",
    "GainBias",
    "Guess",
    "HeadModel",
    "Identity",
    "LightingNetwork",
    "LightingNetworkConfig",
    "MorphableHead",
    "MorphableParams",
    "ResNet",
    "imagenet_input",
    "pose_features",
    "relight",
    "rig_pose_features",
    "sample_code",
    "statistics",
]
