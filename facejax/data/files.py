"""Files and folders that appear whole or not at all, and the operating system's refusals in plain words."""

import errno
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from facejax.geometry.errors import InputError

_REASONS = {
    errno.ENOSPC: "the disk is full: free some space or choose another place",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another place",
    errno.EACCES: "no permission to write there: choose another place",
    errno.EPERM: "no permission to write there: choose another place",
    errno.EROFS: "the file system is read-only: choose another place",
    errno.ENOTDIR: "a part of the path is a file, not a folder: choose another place",
    errno.EEXIST: "a file of that name is in the way: remove it or choose another place",
    errno.EISDIR: "a folder of that name is in the way: remove it or choose another place",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.ENOENT: "the folder it belongs in went away: create it again",
    errno.EBUSY: "it is in use: close what uses it or choose another place",
}


@contextmanager
def explain_os_errors(path: Path | str) -> Iterator[None]:
    """Inside, an `OSError` that a person can mend becomes an `InputError` of one sentence that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        raise InputError(f"Cannot write {path}: {_REASONS[error.errno]}.") from error


@contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Creates the folders above `path`; takes away those it created, as far as they are empty, if the body fails."""
    created = [parent for parent in path.parents if not parent.exists()]  # innermost first
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:  # Ctrl-C too
        for parent in created:
            with suppress(OSError):
                parent.rmdir()
        raise


def _beside(path: Path, word: str) -> Path:
    # the suffix stays last: writers of pictures and videos choose the format by it
    return path.with_name(f".{path.stem[:100]}.{word}-{secrets.token_hex(4)}{path.suffix}")


@contextmanager
def atomic_write(path: Path | str, *, sync: bool = False) -> Iterator[Path]:
    """A temporary path beside `path`, with its suffix, to write to; moved onto `path` when the body ends well.

    If the body raises (Ctrl-C included) the temporary file is removed and what stood at `path` before stays as it was.
    Missing parent folders are created. `sync` flushes to the disk before the move, for files that must survive a power
    cut. Raises `InputError` for a full disk, a missing permission and their like.

    >>> with atomic_write("notes.txt") as temporary:  # doctest: +SKIP
    ...     temporary.write_text("whole")
    """
    path = Path(path).expanduser().absolute()
    temporary = _beside(path, "partial")
    with explain_os_errors(path), _parents(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        try:
            yield temporary
            if sync:
                with open(temporary, "rb+") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def atomic_folder(path: Path | str, ours: Collection[str] = ()) -> Iterator[Path]:
    """An empty folder `<path>.partial-xxxxxxxx` to fill; it becomes `path` when the body ends well, else it is removed.

    `ours` lists the names that we write into such a folder, the one that tells it as ours first. An existing `path` is
    replaced if it is empty or holds the file `ours[0]`; what is not in `ours` (a person's own notes) moves over to the
    new folder. Any other folder, or a file, is refused before the body runs. Raises `InputError`.
    """
    path = Path(path).expanduser().resolve()  # a link to a folder stays a link: its target is what we replace
    names = list(ours)
    partial = path.with_name(f"{path.name}.partial-{secrets.token_hex(4)}")
    with explain_os_errors(path), _parents(path):
        _refuse_foreign(path, names)
        partial.mkdir()
        try:
            yield partial
            _refuse_foreign(path, names)  # it may have been filled in the meantime
            _swap_in(partial, path, names)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _refuse_foreign(path: Path, ours: list[str]) -> None:
    if not path.exists():
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return
    if not path.is_dir():
        raise InputError(f"Expected a folder to write to, but {path} is a file: choose another name.")
    mine = bool(ours) and (path / ours[0]).is_file()
    if not mine and any(path.iterdir()):
        told = f" and no {ours[0]}" if ours else ""
        raise InputError(f"{path} holds other files{told}, so it is not replaced: choose a new or an empty folder.")


def _swap_in(partial: Path, path: Path, ours: list[str]) -> None:
    if not path.exists():
        os.replace(partial, path)
        return
    old = path.with_name(f"{path.name}.old-{secrets.token_hex(4)}")
    os.replace(path, old)
    try:
        os.replace(partial, path)
    except BaseException:
        os.replace(old, path)
        raise
    for entry in list(old.iterdir()):
        if entry.name not in ours:
            os.replace(entry, path / entry.name)
    shutil.rmtree(old)


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM, which batch systems send, cleans up as Ctrl-C does. Only the main thread may ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
