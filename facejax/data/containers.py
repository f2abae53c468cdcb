"""Video and sound files, and camera devices, as FFmpeg's containers: the one place that calls `av.open`."""

import sys
from pathlib import Path
from typing import Any


def open_container(path: Path | str) -> Any:
    """A file to read pictures and sound from. Raises PyAV's errors, `OSError` and `ValueError`."""
    import av

    return av.open(_address(path), metadata_errors="replace")


DEVICE_FORMATS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
"""FFmpeg's reader of cameras, by `sys.platform`."""


def open_device(address: str, reader: str | None = None) -> Any:
    """A camera to read pictures from, by its address in the terms of FFmpeg's reader for it: "/dev/video0", a number or
    a name. reader: another of FFmpeg's input devices. Raises PyAV's errors, `OSError` and `ValueError`."""
    import av

    return av.open(address, format=reader or DEVICE_FORMATS.get(sys.platform, "v4l2"))


def create_mp4(path: Path | str) -> Any:
    """An MP4 file to write, whose index comes first, so that it plays while it is loaded. Raises PyAV's errors."""
    import av

    return av.open(_address(path), "w", format="mp4", options={"movflags": "+faststart"})


def _address(path: Path | str) -> str:
    """FFmpeg reads a plain "Meeting-12:30.mp4" as a protocol called Meeting-12, and would open "concat:a|b"."""
    return f"file:{Path(path).absolute()}"
