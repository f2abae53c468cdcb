"""Rotations: matrices in public, axis-angle inside an optimiser, quaternions at file borders."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_HIGHEST = jax.lax.Precision.HIGHEST


def skew(v: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """Cross-product matrix: `skew(a) @ b == cross(a, b)`."""
    x, y, z = v
    zero = jnp.zeros_like(x)
    return jnp.stack([jnp.stack([zero, -z, y]), jnp.stack([z, zero, -x]), jnp.stack([-y, x, zero])])


def rotvec_to_matrix(rotvec: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """Axis-angle (rad) to rotation matrix by Rodrigues' formula, with finite derivatives of every order at zero.

    Below 1e-4 rad² the two coefficients are taken from their Taylor series, whose error there is under 1e-10.
    """
    angle2 = jnp.sum(rotvec**2)
    small = angle2 < 1e-4
    safe = jnp.where(small, 1.0, angle2)
    angle = jnp.sqrt(safe)
    a = jnp.where(small, 1 - angle2 / 6 * (1 - angle2 / 20), jnp.sin(angle) / angle)
    # half angles: 1 - cos(angle) would lose every digit of its second derivative at small angles in float32
    b = jnp.where(small, 0.5 - angle2 / 24 * (1 - angle2 / 30), 2 * (jnp.sin(angle / 2) / angle) ** 2)
    k = skew(rotvec)
    return jnp.eye(3, dtype=rotvec.dtype) + a * k + b * jnp.matmul(k, k, precision=_HIGHEST)


def rotate(points: Float[Array, "*n 3"], rotation: Float[Array, "3 3"]) -> Float[Array, "*n 3"]:
    """Many points under one rotation: `points @ rotation.T`, three products and two sums a coordinate.

    Written out because a matrix product of three columns is several times slower on CPUs, where it is not fused.
    """
    x, y, z = (points[..., i : i + 1] for i in range(3))
    return x * rotation[:, 0] + y * rotation[:, 1] + z * rotation[:, 2]


def matrix_to_quaternion(rotation: Float[Array, "3 3"]) -> Float[Array, "4"]:
    """Rotation matrix to unit quaternion (w, x, y, z) with w >= 0.

    The largest of the four components is taken from the diagonal and the others by division, so no angle is singular
    (Shepperd 1978).
    """
    m = rotation
    t = jnp.stack([m[0, 0] + m[1, 1] + m[2, 2], m[0, 0], m[1, 1], m[2, 2]])
    trace = t[0]
    squares = jnp.stack([1 + trace, 1 + 2 * t[1] - trace, 1 + 2 * t[2] - trace, 1 + 2 * t[3] - trace])
    wx, wy, wz = m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]
    xy, xz, yz = m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1]
    rows = jnp.stack(
        [
            jnp.stack([squares[0], wx, wy, wz]),
            jnp.stack([wx, squares[1], xy, xz]),
            jnp.stack([wy, xy, squares[2], yz]),
            jnp.stack([wz, xz, yz, squares[3]]),
        ]
    )
    q = rows[jnp.argmax(squares)]
    q = q / jnp.linalg.norm(q)
    return jnp.where(q[0] < 0, -q, q)


def quaternion_to_matrix(quaternion: Float[Array, "4"]) -> Float[Array, "3 3"]:
    """Quaternion (w, x, y, z), of any length but zero, to rotation matrix."""
    w, x, y, z = quaternion / jnp.linalg.norm(quaternion)
    return jnp.stack(
        [
            jnp.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)]),
            jnp.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)]),
            jnp.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]),
        ]
    )


def matrix_to_rotvec(rotation: Float[Array, "3 3"]) -> Float[Array, "3"]:
    """Rotation matrix to axis-angle (rad), angle in [0, pi]; the gradient is finite at the identity, too."""
    q = matrix_to_quaternion(rotation)
    square = jnp.sum(q[1:] ** 2)
    small = square < 1e-12
    sine = jnp.sqrt(jnp.where(small, 1.0, square))  # the root of 0 has no derivative, even where it is not used
    scale = jnp.where(small, 2.0, 2 * jnp.arctan2(sine, q[0]) / sine)
    return scale * q[1:]


def rotation_angle(a: Float[Array, "3 3"], b: Float[Array, "3 3"]) -> Float[Array, ""]:
    """Angle (rad) of the rotation that takes `a` to `b`, in [0, pi]; its gradient is 0 where `a == b`."""
    q = matrix_to_quaternion(jnp.matmul(a.T, b, precision=_HIGHEST))
    square = jnp.sum(q[1:] ** 2)
    sine = jnp.sqrt(jnp.where(square > 0, square, 1.0))  # the root of 0 has no derivative, even where it is not used
    return jnp.where(square > 0, 2 * jnp.arctan2(sine, q[0]), 0.0)


def nearest_rotation(matrix: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
    """Proper rotation closest to `matrix` in the Frobenius norm (orthogonal Procrustes).

    Not for gradients: where singular values coincide, as in a matrix that is a rotation already, the SVD has none.
    """
    u, _, vt = jnp.linalg.svd(matrix)
    sign = jnp.linalg.det(jnp.matmul(u, vt, precision=_HIGHEST))
    return jnp.matmul(u * jnp.stack([jnp.ones_like(sign), jnp.ones_like(sign), sign]), vt, precision=_HIGHEST)


def gaze_to_matrix(gaze: Float[Array, "2"]) -> Float[Array, "3 3"]:
    """Rotation of an eyeball in the head frame from (yaw, pitch) in rad.

    Positive yaw turns the eye towards the subject's left (+x), positive pitch turns it up (+y): the line of sight
    becomes `(sin yaw cos pitch, sin pitch, cos yaw cos pitch)`.
    """
    yaw, pitch = gaze
    cy, sy, cp, sp = jnp.cos(yaw), jnp.sin(yaw), jnp.cos(pitch), jnp.sin(pitch)
    zero = jnp.zeros_like(cy)
    about_y = jnp.stack([jnp.stack([cy, zero, sy]), jnp.stack([zero, zero + 1, zero]), jnp.stack([-sy, zero, cy])])
    about_x = jnp.stack([jnp.stack([zero + 1, zero, zero]), jnp.stack([zero, cp, sp]), jnp.stack([zero, -sp, cp])])
    return jnp.matmul(about_y, about_x, precision=_HIGHEST)
