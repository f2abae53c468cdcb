"""Frames from a camera device, of which the latest wins."""

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from facejax.data.containers import open_device
from facejax.geometry.errors import InputError


class Shot(NamedTuple):
    """A frame as it came."""

    picture: UInt8[np.ndarray, "h w 3"]
    """sRGB-encoded."""
    arrived: float
    """Seconds on the clock of `time.monotonic`."""


def is_device(source: str | os.PathLike[str]) -> bool:
    """Whether this names a camera: a number, or a device file; a file or folder of that name comes first."""
    name = os.fspath(source)
    return not os.path.isfile(name) and not os.path.isdir(name) and bool(re.fullmatch(r"\d{1,3}|/dev/video\d+", name))


class CameraDevice:
    """A camera, read in a thread of its own as fast as it delivers. A context.

    `dropped` counts the frames since `shots` was called that nobody took before the next one came.
    """

    def __init__(self, container: Any, name: str) -> None:
        self.name, self.dropped = name, 0
        self._container = container
        self._changed = threading.Condition()
        self._latest: tuple[Any, float] | None = None
        self._ended, self._closing = False, False
        self._thread = threading.Thread(target=self._read, name=f"camera {name}", daemon=True)

    def shots(self) -> Iterator[Shot]:
        """Frames from now on, each the latest there is when it is asked for; until the camera ends."""
        with self._changed:
            self.dropped = 0
            if not self._ended:
                self._latest = None  # what came while nobody was asking is old
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._latest is not None or self._ended)
                if self._latest is None:
                    return
                frame, arrived = self._latest
                self._latest = None
            yield Shot(frame.to_ndarray(format="rgb24"), arrived)

    def _read(self) -> None:
        import av

        try:
            for frame in self._container.decode(video=0):
                with self._changed:
                    self.dropped += self._latest is not None
                    self._latest = (frame, time.monotonic())
                    self._changed.notify_all()
                    if self._closing:
                        break
        except (av.error.FFmpegError, OSError):
            pass  # unplugged: what was seen until now is what there is
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def __enter__(self) -> "CameraDevice":
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        with self._changed:
            self._closing = True
        self._thread.join(timeout=2.0)
        if not self._thread.is_alive():  # FFmpeg must not lose what it is reading from
            self._container.close()


def open_camera(device: str | os.PathLike[str]) -> CameraDevice:
    """A camera by its number or device file. Raises `InputError` for one that cannot be opened or shows no picture."""
    import av

    name = os.fspath(device)
    address = f"/dev/video{name}" if sys.platform == "linux" and name.isdigit() else name
    try:
        container = open_device(address)
        if not container.streams.video:
            raise ValueError("it has no picture")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(
            f"The camera {address} could not be opened ({reason.rstrip('.')}): give another number or device, such as "
            "0 or /dev/video0, or the path of a video."
        ) from error
    return CameraDevice(container, address)
