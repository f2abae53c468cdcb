"""A small avatar for tests: the toy head's mesh under a decoder and a lighting network with random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from toy_head import toy_head

from facejax.models.avatar import Avatar
from facejax.models.deep_appearance import DeepAppearanceConfig, DeepAppearanceModel
from facejax.models.lighting_network import LightingNetwork, LightingNetworkConfig

CODE, GROUPS, TEXTURE = 4, 3, 32


@functools.cache
def toy_avatar() -> Avatar:
    head = toy_head()
    mean = np.asarray(head.params.mean)
    appearance = DeepAppearanceModel(
        DeepAppearanceConfig(
            n_vertices=len(mean),
            texture_size=TEXTURE,
            code=CODE,
            features=8,
            encoder_channels=(4, 4),
            decoder_channels=(8, 8),
        )
    )
    network = LightingNetwork(
        LightingNetworkConfig(
            groups=GROUPS,
            texture_size=TEXTURE,
            map_size=16,
            light_features=8,
            pose_features=8,
            base_size=4,
            base_channels=8,
            light_channels=(8,),
            texture_channels=(8,),
            head_channels=(),
            head_scale=0.2,
        )
    )
    params, state = appearance.init(jax.random.key(1))
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0.15, 0.6, (8, 8, 3)).astype(np.float32)
    state = {
        "mean_texture": jnp.asarray(coarse.repeat(4, axis=0).repeat(4, axis=1)),
        "texture_std": jnp.asarray(0.02),
        "mean_vertices": jnp.asarray(mean),
        "vertices_std": jnp.asarray(0.002),
    }
    decoder = {"decoder": params["decoder"]}
    at_rest, basis = appearance.linear_mesh(decoder, state)
    return Avatar(
        name="toy",
        sha256="0" * 64,
        appearance=appearance,
        network=network,
        params={**decoder, "lighting": network.init(jax.random.key(2)), "mesh": {"mean": at_rest, "basis": basis}},
        state=state,
        topology=head.topology,
        landmarks478=head.landmarks478,
        regions=head.regions,
        eye_centres=np.asarray(head.params.eye_pivot),
    )
