"""Reading pictures from files: the one place that calls `Image.open`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from facejax.geometry.arrays import require_file
from facejax.geometry.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
"""What is opened, whatever a file is called. Pillow knows many more, and one of them is EPS: a program, which Pillow
has Ghostscript run."""

_ADVICE = f"give a whole {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


@contextmanager
def open_picture(path: Path | str, what: str = "", advice: str = _ADVICE) -> Iterator["Image"]:
    """A picture of `FORMATS`: its header is read here, its pixels when they are asked for, inside.

    what, advice: for the sentence of the error: what the file is, as "mask", and what to do. Raises `InputError`, also
    inside, for a file that is missing or damaged, of another format, too large for Pillow, or not a regular file.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(require_file(path), formats=FORMATS) as image:
            yield image
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        other = isinstance(error, UnidentifiedImageError)
        reason = "it is of another format, or damaged" if other else getattr(error, "strerror", None) or error
        named = f"The {what} {path}" if what else str(path)
        raise InputError(f"{named} could not be read as an image ({reason}): {advice}.") from error
