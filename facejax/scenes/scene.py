"""The one composition: a head, a way to light it and a way to draw it.

Fitting, training, evaluation and apps all draw with a `Scene`; nobody else calls `decode` and then `render`.
"""

import dataclasses
import functools
from typing import Any

from jaxtyping import Array, Float

from facejax.geometry.cameras import crop_camera, project, to_camera_frame, view_direction
from facejax.geometry.errors import InputError
from facejax.geometry.meshes import SurfacePoints
from facejax.geometry.records import Camera, Face, Image, Pose, PRNGKey, PyTree, Record, record
from facejax.models.head import HeadModel
from facejax.renderers.deferred import Render, make_renderer
from facejax.renderers.shadows import make_shadowed_renderer
from facejax.renderers.textured import make_textured_renderer
from facejax.scenes.lighting import (
    Harmonics,
    Lighting,
    NetworkLight,
    Relightable,
    SelfShadowed,
    ShadowedTexture,
    TextureHarmonics,
)
from facejax.scenes.unknowns import ClipVariables, FrameVariables, light_in, placed


@record
class Drawn(Record):
    """A drawn frame, and what it was drawn from."""

    image: Image
    face: Face
    """As it was handed to the renderer: lit, head frame."""
    pose: Pose
    camera: Camera
    """Of the window, in its own pixels."""


@record
class Seen(Record):
    """The points of a scene in a frame."""

    pixels: Float[Array, "n 2"]
    """Where they project, pixels of the frame."""
    face: Face
    """Their geometry and surface, head frame."""
    pose: Pose
    camera: Camera


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """A head, its light and its renderer: static under `jit`; all arrays come in as arguments."""

    head: HeadModel
    lighting: Lighting
    render: Render
    size: tuple[int, int]
    """(height, width) of the pictures that `render` makes."""

    def picture(
        self,
        params: PyTree,
        clip: ClipVariables,
        frame: FrameVariables,
        window: Float[Array, "4"],
        key: PRNGKey | None = None,
        prepared: PyTree = None,
    ) -> Drawn:
        """A part of a frame as the scene shows it.

        window: left, top, width, height in pixels of the frame. key: for renderers that draw random numbers. prepared:
        what `prepare` gave, perhaps for an earlier shape; None finds it now.
        """
        pose, camera = placed(clip, frame)
        window_camera = crop_camera(camera, window, self.size)
        light = light_in(clip, frame)
        return self.view(params, clip.code, frame.code, light, pose, window_camera, key, prepared)

    def view(
        self,
        params: PyTree,
        clip: PyTree,
        frame: PyTree,
        light: PyTree,
        pose: Pose,
        camera: Camera,
        key: PRNGKey | None = None,
        prepared: PyTree = None,
    ) -> Drawn:
        """A face from anywhere, under any light of the scene's lighting.

        clip, frame: the head's codes. camera: in pixels of the picture, whose size is the scene's.
        """
        face = self.head.decode(params, clip, frame, view_direction(pose))
        if prepared is None:
            prepared = self.lighting.prepare(face.vertices)
        lit = self.lighting.shade(params, face, light, pose, prepared)
        image = self.render(lit.face, lit.light, pose, camera, key, **lit.options)
        return Drawn(image=image, face=lit.face, pose=pose, camera=camera)

    def points(self, params: PyTree, clip: ClipVariables, frame: FrameVariables) -> Seen:
        """Every vertex in a frame: for a scene reduced to points (`at`), those points."""
        pose, camera = placed(clip, frame)
        face = self.head.decode(params, clip.code, frame.code, view_direction(pose))
        return Seen(pixels=project(to_camera_frame(face.vertices, pose), camera), face=face, pose=pose, camera=camera)

    def vertices_px(
        self, params: PyTree, clip: ClipVariables, frame: FrameVariables, window: Float[Array, "4"] | None = None
    ) -> Float[Array, "v 2"]:
        """Where vertices project, pixels of the frame, or of a window of the scene's size."""
        pose, camera = placed(clip, frame)
        camera = camera if window is None else crop_camera(camera, window, self.size)
        return project(to_camera_frame(self.head.vertices(params, clip.code, frame.code), pose), camera)

    def prepare(self, params: PyTree, clip: ClipVariables, frame: FrameVariables) -> PyTree:
        """What the lighting holds while a frame is fitted, for its shape as it is now."""
        return self.lighting.prepare(self.head.vertices(params, clip.code, frame.code))

    def at(self, points: SurfacePoints) -> "Scene":
        """The same scene reduced to points on the head, whose `params` are reduced with it; it draws no picture."""
        return dataclasses.replace(self, head=self.head.at_points(points), render=_no_picture)

    @functools.cached_property
    def landmarks(self) -> "Scene":
        """The scene reduced to MediaPipe's 478 points."""
        return self.at(self.head.landmarks478)


def _no_picture(face: Face, light: Any, pose: Pose, camera: Camera, key: PRNGKey | None = None) -> Image:
    raise InputError("A scene reduced to points has no triangles to draw: take the whole scene for pictures.")


@functools.lru_cache(maxsize=16)
def make_scene(
    head: HeadModel,
    size: tuple[int, int],
    *,
    light_model: str = "network",
    bands: int = 3,
    antialiased: bool = True,
) -> Scene:
    """The scene of a head for pictures of `size` = (height, width); the same object for the same arguments.

    light_model: `network` is the head's own way: its lighting network where it has one, spherical harmonics on its
    surface otherwise; `sh`: spherical harmonics; `shadowed-sh`: the same with cast shadows. bands: of harmonics on a
    surface. Raises `InputError` for another one. Other scenes are made by `Scene(head, lighting, render, size)`.
    """
    if light_model not in ("network", "sh", "shadowed-sh"):
        raise InputError(f'A light model is "network", "sh" or "shadowed-sh", and {light_model!r} was given.')
    topology = head.topology
    if isinstance(head, Relightable):
        lighting: Lighting = NetworkLight(head)
        if light_model != "network":
            lighting = ShadowedTexture(topology) if light_model == "shadowed-sh" else TextureHarmonics(topology)
        return Scene(head, lighting, make_textured_renderer(topology, size), size)
    if light_model == "shadowed-sh":
        render = make_shadowed_renderer(topology, size, antialiased=antialiased)
        return Scene(head, SelfShadowed(bands=bands, render=render), render, size)
    return Scene(head, Harmonics(bands), make_renderer(topology, size, antialiased=antialiased), size)
