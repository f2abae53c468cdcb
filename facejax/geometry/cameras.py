"""Pinhole cameras in the OpenCV frame, and the converters to the frames of other tools (`docs/conventions.md`)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from facejax.geometry.meshes import normalise
from facejax.geometry.records import Camera, Pose

_HIGHEST = jax.lax.Precision.HIGHEST


def to_camera_frame(points_head: Float[Array, "*n 3"], pose: Pose) -> Float[Array, "*n 3"]:
    """Points from the head frame to the camera frame, metres."""
    return jnp.matmul(points_head, pose.rotation.T, precision=_HIGHEST) + pose.translation


def view_direction(pose: Pose) -> Float[Array, "3"]:
    """Unit vector from the head's origin to the camera, in the head frame: a decoder's `view`."""
    return normalise(-jnp.matmul(pose.translation, pose.rotation, precision=_HIGHEST))


def project(points_camera: Float[Array, "*n 3"], camera: Camera) -> Float[Array, "*n 2"]:
    """Pixel coordinates of points in the camera frame (metres). Depth is floored at 1 mm: nothing divides by zero."""
    depth = jnp.maximum(points_camera[..., 2:], 1e-3)
    return points_camera[..., :2] / depth * camera.focal + camera.principal_point


def unproject(pixels: Float[Array, "*n 2"], depth: Float[Array, "*n"], camera: Camera) -> Float[Array, "*n 3"]:
    """Points in the camera frame (metres) whose `project` is `pixels` at distance `depth` along +z."""
    xy = (pixels - camera.principal_point) / camera.focal * depth[..., None]
    return jnp.concatenate([xy, depth[..., None]], axis=-1)


def crop_camera(camera: Camera, crop: Float[Array, "4"], size: tuple[int, int]) -> Camera:
    """Camera of the image at `crop` = (left, top, width, height), pixels, resized to `size` = (height, width)."""
    scale = jnp.stack([size[1] / crop[2], size[0] / crop[3]])
    return Camera(focal=camera.focal * scale, principal_point=(camera.principal_point - crop[:2]) * scale)


def camera_matrix(camera: Camera) -> Float[Array, "3 3"]:
    """Intrinsics as the 3x3 matrix K."""
    zero = jnp.zeros_like(camera.focal[0])
    return jnp.stack(
        [
            jnp.stack([camera.focal[0], zero, camera.principal_point[0]]),
            jnp.stack([zero, camera.focal[1], camera.principal_point[1]]),
            jnp.stack([zero, zero, zero + 1]),
        ]
    )


def opencv_to_opengl(pose: Pose) -> Pose:
    """The same head seen from an OpenGL / glTF camera (+x right, +y up, -z forward)."""
    flip = jnp.array([1.0, -1.0, -1.0])
    return Pose(rotation=flip[:, None] * pose.rotation, translation=flip * pose.translation)


opengl_to_opencv = opencv_to_opengl
"""Inverse of `opencv_to_opengl`: the flip is its own."""


def opencv_to_pytorch3d(pose: Pose) -> tuple[Float[Array, "3 3"], Float[Array, "3"]]:
    """(R, T) as PyTorch3D's cameras take them: +x left, +y up, +z forward, points as row vectors (`x @ R + T`)."""
    flip = jnp.array([-1.0, -1.0, 1.0])
    return (flip[:, None] * pose.rotation).T, flip * pose.translation


def pytorch3d_to_opencv(rotation: Float[Array, "3 3"], translation: Float[Array, "3"]) -> Pose:
    """Inverse of `opencv_to_pytorch3d`."""
    flip = jnp.array([-1.0, -1.0, 1.0])
    return Pose(rotation=flip[:, None] * rotation.T, translation=flip * translation)


def intrinsics_to_ndc(camera: Camera, size: tuple[int, int]) -> tuple[Float[Array, "2"], Float[Array, "2"]]:
    """Focal length and principal point in PyTorch3D's NDC: the shorter image side spans [-1, 1], +x left, +y up."""
    height, width = size
    half = min(height, width) / 2
    return camera.focal / half, (jnp.array([width / 2, height / 2]) - camera.principal_point) / half


def ndc_to_intrinsics(focal: Float[Array, "2"], principal_point: Float[Array, "2"], size: tuple[int, int]) -> Camera:
    """Inverse of `intrinsics_to_ndc`: the camera, in pixels, of an image of `size` = (height, width)."""
    height, width = size
    half = min(height, width) / 2
    return Camera(focal=focal * half, principal_point=jnp.array([width / 2, height / 2]) - principal_point * half)
