"""Rotations, cameras, meshes and colour, and the records that every other part passes around."""

from typing import TYPE_CHECKING

from facejax._lazy import lazy_names

if TYPE_CHECKING:
    from facejax.geometry.cameras import (
        camera_matrix,
        crop_camera,
        intrinsics_to_ndc,
        ndc_to_intrinsics,
        opencv_to_opengl,
        opencv_to_pytorch3d,
        opengl_to_opencv,
        project,
        pytorch3d_to_opencv,
        to_camera_frame,
        unproject,
    )
    from facejax.geometry.colour import (
        linear_to_srgb,
        linear_to_srgb_bytes,
        luminance,
        srgb_bytes_to_linear,
        srgb_to_linear,
    )
    from facejax.geometry.errors import InputError
    from facejax.geometry.meshes import (
        SurfacePoints,
        Topology,
        barycentric_points,
        edge_neighbours,
        face_normals,
        normalise,
        vertex_normals,
    )
    from facejax.geometry.records import Camera, Face, Image, Pose, PRNGKey, PyTree, Record, record
    from facejax.geometry.rotations import (
        gaze_to_matrix,
        matrix_to_quaternion,
        matrix_to_rotvec,
        nearest_rotation,
        quaternion_to_matrix,
        rotation_angle,
        rotvec_to_matrix,
        skew,
    )

__all__ = [
    "Camera",
    "Face",
    "Image",
    "InputError",
    "PRNGKey",
    "Pose",
    "PyTree",
    "Record",
    "SurfacePoints",
    "Topology",
    "barycentric_points",
    "camera_matrix",
    "crop_camera",
    "edge_neighbours",
    "face_normals",
    "gaze_to_matrix",
    "intrinsics_to_ndc",
    "linear_to_srgb",
    "linear_to_srgb_bytes",
    "luminance",
    "matrix_to_quaternion",
    "matrix_to_rotvec",
    "ndc_to_intrinsics",
    "nearest_rotation",
    "normalise",
    "opencv_to_opengl",
    "opencv_to_pytorch3d",
    "opengl_to_opencv",
    "project",
    "pytorch3d_to_opencv",
    "quaternion_to_matrix",
    "record",
    "rotation_angle",
    "rotvec_to_matrix",
    "skew",
    "srgb_bytes_to_linear",
    "srgb_to_linear",
    "to_camera_frame",
    "unproject",
    "vertex_normals",
]

__getattr__, __dir__ = lazy_names(__name__)
