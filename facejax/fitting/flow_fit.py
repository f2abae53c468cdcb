"""Eq. (8) of Chen et al. 2021 on its own: a frame's pose and code go where optical flow puts the vertices.

Pose and expression pull at the same pixels, so descent on pictures takes hundreds of steps to tell them apart. Given
targets, the problem is one of small nonlinear least squares, whose Jacobian is known: Gauss-Newton takes a few.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from facejax.fitting.config import FitConfig
from facejax.fitting.flow import dense_flow
from facejax.fitting.landmark_fit import clip_camera
from facejax.fitting.optimise import join, path_name, split
from facejax.fitting.rendered_fit import RenderedData
from facejax.fitting.variables import ClipVariables, FrameVariables, pose_of
from facejax.geometry.cameras import crop_camera, project, to_camera_frame
from facejax.geometry.colour import linear_to_srgb_bytes
from facejax.geometry.meshes import SurfacePoints
from facejax.geometry.records import Camera, PyTree
from facejax.renderers.texture import sample_bilinear

_VERTICES = 2500  # that speak for all
_ITERATIONS = 3
_ROBUST_PX = 1.5  # of a crop of 256: vertices that are further off pull as if they were this far
_RIDGE = 1e-6


def flow_targets(data: RenderedData, colour: Array, coverage: Array, pixels: Array, visible: Array) -> RenderedData:
    """Where flow from the drawn head to the picture says that each vertex is; the picture itself is the backdrop.

    All arguments have a leading axis of frames: what `facejax.fitting.rendered_fit.draw` drew in linear radiance, and
    what `visible_vertices` says of it.
    """
    seen = np.asarray(data.picture)
    cover = np.asarray(coverage)[..., None]
    targets, weights = [], []
    for k in range(len(seen)):
        drawn = linear_to_srgb_bytes(np.asarray(colour[k])).astype(np.float32) / 255
        source = cover[k] * drawn + (1 - cover[k]) * seen[k]
        flow, trust = dense_flow(*((255 * x + 0.5).clip(0, 255).astype(np.uint8) for x in (source, seen[k])))
        stack = np.concatenate([np.nan_to_num(flow), trust[..., None]], axis=-1)
        at = np.asarray(sample_bilinear(jnp.asarray(stack, jnp.float32), pixels[k]))
        targets.append(np.asarray(pixels[k]) + at[:, :2])
        weights.append(np.asarray(visible[k]) * (at[:, 2] > 0.99))
    return data.replace(
        target=jnp.asarray(np.stack(targets), jnp.float32), target_weight=jnp.asarray(np.stack(weights), jnp.float32)
    )


def flow_solver(
    head: Any, camera: Camera, reference_px: float | Array, config: FitConfig, free: tuple[str, ...]
) -> Callable[[ClipVariables, FrameVariables, RenderedData], FrameVariables]:
    """(shared, frames, data) -> the frames where eq. (8) and the prior on codes, at the config's weights, are least.

    free: leaves of a frame that move, as in `Stage`. Frames have a leading axis, and so has the data. Distances count
    as Huber's do. A frame of which flow says nothing stays, but for the prior.
    """
    count = head.topology.n_vertices
    few = np.arange(0, count, max(count // _VERTICES, 1))
    corners = np.tile(np.array([1, 0, 0], np.float32), (len(few), 1))
    thinned = head.at_points(SurfacePoints(np.repeat(few[:, None], 3, axis=1).astype(np.int32), corners))
    prior = config.code_weight / config.flow_weight

    def one(params: PyTree, shared: ClipVariables, frame: FrameVariables, data: RenderedData) -> FrameVariables:
        side = data.picture.shape[0]
        lens = clip_camera(shared, camera)
        small = crop_camera(lens, data.box, (side, side))
        moving, held = split({"frame": frame}, free)
        start, place = ravel_pytree(moving)
        of_code, _ = ravel_pytree(
            jax.tree_util.tree_map_with_path(
                lambda p, x: jnp.full_like(x, path_name(p).startswith("frame.code.") / x.size), moving
            )
        )
        weight, target = data.target_weight[few], data.target[few]
        weight = weight / jnp.maximum(jnp.sum(weight), 1.0)

        def off(x: Array) -> Array:
            moved = join(place(x), held)["frame"]
            vertices = thinned.vertices(params, shared.code, moved.code)
            where = to_camera_frame(vertices, pose_of(moved.pose, lens, reference_px))
            return 256.0 / side * (project(where, small) - target)

        def step(x: Array, _: None) -> tuple[Array, None]:
            rest, jacobian = off(x), jax.jacfwd(off)(x)
            robust = weight / jnp.maximum(jnp.sqrt(jnp.sum(rest**2, axis=-1)) / _ROBUST_PX, 1.0)
            weighted = jacobian * robust[:, None, None]
            curvature = jnp.einsum("vai,vaj->ij", weighted, jacobian) + jnp.diag(prior * of_code + _RIDGE)
            slope = jnp.einsum("vai,va->i", weighted, rest) + prior * of_code * x
            return x - jnp.linalg.solve(curvature, slope), None

        x, _ = jax.lax.scan(step, start, length=_ITERATIONS)
        good = jnp.all(jnp.isfinite(x)) & (jnp.sum(weight) > 0)
        return join(place(jnp.where(good, x, start)), held)["frame"]

    return functools.partial(jax.jit(jax.vmap(one, in_axes=(None, None, 0, 0))), thinned.params)
