"""Which of MediaPipe's 478 landmarks are what: index tables for fitting, metrics and correspondences.

Left and right are the SUBJECT's: in a face that looks at the camera, the right eye (33, 133, iris 468) is on the left
of the image. Contours run from the corner nearer the image's left to the one on the right. MediaPipe publishes the
connectivity (`FaceLandmarksConnections`); the numbers are facts of its canonical mesh, checked against that mesh and a
real clip in `tests/test_correspondence.py`.
"""

import numpy as np

IRIS_RIGHT = (468, 469, 470, 471, 472)
"""Iris of the right eye: centre, then its rim at the image's right (the subject's left), top, image left, bottom."""
IRIS_LEFT = (473, 474, 475, 476, 477)
"""Iris of the left eye, ordered as `IRIS_RIGHT`."""

EYE_RIGHT_UPPER = (33, 246, 161, 160, 159, 158, 157, 173, 133)
"""Margin of the right upper lid, from the outer to the inner corner."""
EYE_RIGHT_LOWER = (33, 7, 163, 144, 145, 153, 154, 155, 133)
"""Margin of the right lower lid, from the outer to the inner corner."""
EYE_LEFT_UPPER = (362, 398, 384, 385, 386, 387, 388, 466, 263)
"""Margin of the left upper lid, from the inner to the outer corner."""
EYE_LEFT_LOWER = (362, 382, 381, 380, 374, 373, 390, 249, 263)
"""Margin of the left lower lid, from the inner to the outer corner."""
EYE_RIGHT = (*EYE_RIGHT_UPPER, *EYE_RIGHT_LOWER[-2:0:-1])
"""Closed contour of the right eye (16 points)."""
EYE_LEFT = (*EYE_LEFT_UPPER, *EYE_LEFT_LOWER[-2:0:-1])
"""Closed contour of the left eye (16 points)."""
OUTER_EYE_CORNERS = (33, 263)
"""Outer corners of the (right, left) eye: their distance is the unit in which landmark errors are reported."""
INNER_EYE_CORNERS = (133, 362)
"""Inner corners of the (right, left) eye."""

LID_PAIRS_RIGHT = ((161, 163), (160, 144), (159, 145), (158, 153), (157, 154))
"""(upper, lower) points of the right lids that face each other: their distances measure how far the eye is open."""
LID_PAIRS_LEFT = ((388, 390), (387, 373), (386, 374), (385, 380), (384, 381))
"""(upper, lower) points of the left lids that face each other, in the mirror order of `LID_PAIRS_RIGHT`."""

LIPS_OUTER_UPPER = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291)
"""Outer border of the upper lip, from the right to the left corner of the mouth."""
LIPS_OUTER_LOWER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291)
"""Outer border of the lower lip, from the right to the left corner of the mouth."""
LIPS_INNER_UPPER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
"""Inner border of the upper lip, from the right to the left corner."""
LIPS_INNER_LOWER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
"""Inner border of the lower lip, from the right to the left corner."""
LIPS_OUTER = (*LIPS_OUTER_UPPER, *LIPS_OUTER_LOWER[-2:0:-1])
"""Closed outer contour of the lips (20 points)."""
LIPS_INNER = (*LIPS_INNER_UPPER, *LIPS_INNER_LOWER[-2:0:-1])
"""Closed inner contour of the lips (20 points)."""
LIPS = (*LIPS_OUTER, *LIPS_INNER)
"""Both contours of the lips (40 points): what `lips` means in an error."""
LIP_GAP_PAIRS = tuple(zip(LIPS_INNER_UPPER[1:-1], LIPS_INNER_LOWER[1:-1], strict=True))
"""(upper, lower) points of the inner lips that face each other: their distances are the lip gap; 13, 14: the middle."""
MOUTH_CORNERS = (61, 291)
"""Outer corners of the mouth, (right, left)."""

BROW_RIGHT = (46, 53, 52, 65, 55, 107, 66, 105, 63, 70)
"""Closed contour of the right brow: lower edge from the temple to the nose, upper edge back."""
BROW_LEFT = (276, 283, 282, 295, 285, 336, 296, 334, 293, 300)
"""Closed contour of the left brow, mirrored from `BROW_RIGHT`."""
NOSE = (
    168, 6, 197, 195, 5, 4, 1, 19, 94, 2, 98, 97, 326, 327, 294, 278, 344, 440, 275, 45, 220, 115, 48, 64,
    60, 75, 240, 290, 305, 460, 129, 358, 102, 331, 49, 279, 131, 360, 134, 363, 51, 281, 3, 248, 196, 419, 122, 351,
)  # fmt: skip
"""The nose: ridge from its root (168) to the tip (4, 1), the columella (94, 2), nostrils and wings."""
FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
"""Border of the face, closed, from the top of the forehead (10) by the subject's left, the chin (152) and the right."""

INNER_FACE = tuple(sorted({*BROW_RIGHT, *BROW_LEFT, *EYE_RIGHT, *EYE_LEFT, *NOSE, *LIPS}))
"""What `inner face` means in an error: brows, lids, nose and lips, without irises, cheeks, forehead, chin and oval."""

IBUG68_FROM_MEDIAPIPE = (
    127, 234, 93, 132, 58, 172, 150, 176, 152, 400, 379, 397, 288, 361, 323, 454, 356,
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,
    168, 197, 5, 4, 98, 97, 2, 326, 327,
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,
    78, 81, 13, 311, 308, 402, 14, 178,
)  # fmt: skip
"""The MediaPipe point nearest in meaning to each of the 68 iBUG landmarks (jaw points slide, so those 17 are rough)."""

MIRROR478 = np.array(
    [
        0, 1, 2, 248, 4, 5, 6, 249, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,
        250, 251, 252, 253, 254, 255, 256, 257, 258, 259, 260, 261, 262, 263, 264, 265, 266, 267, 268, 269,
        270, 271, 272, 273, 274, 275, 276, 277, 278, 279, 280, 281, 282, 283, 284, 285, 286, 287, 288, 289,
        290, 291, 292, 293, 294, 295, 296, 297, 298, 299, 300, 301, 302, 303, 304, 305, 306, 307, 308, 309,
        310, 311, 312, 313, 314, 315, 316, 317, 318, 319, 320, 321, 322, 323, 94, 324, 325, 326, 327, 328,
        329, 330, 331, 332, 333, 334, 335, 336, 337, 338, 339, 340, 341, 342, 343, 344, 345, 346, 347, 348,
        349, 350, 351, 352, 353, 354, 355, 356, 357, 358, 359, 360, 361, 362, 363, 364, 365, 366, 367, 368,
        369, 370, 371, 372, 373, 374, 375, 376, 377, 378, 379, 151, 152, 380, 381, 382, 383, 384, 385, 386,
        387, 388, 389, 390, 164, 391, 392, 393, 168, 394, 395, 396, 397, 398, 399, 175, 400, 401, 402, 403,
        404, 405, 406, 407, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417, 418, 195, 419, 197, 420, 199,
        200, 421, 422, 423, 424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 435, 436, 437, 438, 439,
        440, 441, 442, 443, 444, 445, 446, 447, 448, 449, 450, 451, 452, 453, 454, 455, 456, 457, 458, 459,
        460, 461, 462, 463, 464, 465, 466, 467, 3, 7, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29,
        30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49,
        50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69,
        70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 83, 84, 85, 86, 87, 88, 89,
        90, 91, 92, 93, 95, 96, 97, 98, 99, 100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110,
        111, 112, 113, 114, 115, 116, 117, 118, 119, 120, 121, 122, 123, 124, 125, 126, 127, 128, 129, 130,
        131, 132, 133, 134, 135, 136, 137, 138, 139, 140, 141, 142, 143, 144, 145, 146, 147, 148, 149, 150,
        153, 154, 155, 156, 157, 158, 159, 160, 161, 162, 163, 165, 166, 167, 169, 170, 171, 172, 173, 174,
        176, 177, 178, 179, 180, 181, 182, 183, 184, 185, 186, 187, 188, 189, 190, 191, 192, 193, 194, 196,
        198, 201, 202, 203, 204, 205, 206, 207, 208, 209, 210, 211, 212, 213, 214, 215, 216, 217, 218, 219,
        220, 221, 222, 223, 224, 225, 226, 227, 228, 229, 230, 231, 232, 233, 234, 235, 236, 237, 238, 239,
        240, 241, 242, 243, 244, 245, 246, 247, 473, 476, 475, 474, 477, 468, 471, 470, 469, 472,
    ],
    dtype=np.int32,
)  # fmt: skip
"""(478,) the landmark that is each landmark's mirror image, from the symmetry of the canonical mesh."""
