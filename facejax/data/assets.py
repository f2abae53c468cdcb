"""What facejax uses but does not ship: downloaded or taken from a copy, checked by sha256, kept in one folder.

An asset is a set of files at a pinned place with a sha256 each, and what to make of them: a head's distribution is
converted once to one `.npz`, a detector is kept as it is. Everything appears in the folder whole or not at all.
"""

import dataclasses
import hashlib
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from facejax.data.files import atomic_write, explain_os_errors
from facejax.geometry.errors import InputError

Progress = Callable[[str, int, int], None]
"""`progress(stage, done, total)`."""

CONVERSION_VERSION = 4
"""Raised when the conversion of a distribution to a head file changes, so that stale files are not read."""

_TABLES = Path(__file__).parent / "tables"
_FACEKIT_COMMIT = "da5f95a607f5e6b37755b38d3385d7f2853732e5"
_MAX_MEMBERS, _MAX_BYTES = 20_000, 4 << 30
_RETRIES = 2


@dataclasses.dataclass(frozen=True)
class Asset:
    """Files at a pinned place, and what becomes of them."""

    name: str
    licence: str
    url: str
    """Where the files lie: `url` + file name."""
    sha256: Mapping[str, str]
    """File name to the sha256 of its bytes."""
    bytes: int
    """How much is downloaded."""
    target: str
    """Path of the installed file inside `home()`."""
    build: Callable[[Path, Path], None]
    """`build(folder of the checked files, path to write)`."""


@dataclasses.dataclass(frozen=True)
class AssetStatus:
    """What `facejax assets list` says of one asset."""

    name: str
    installed: bool
    path: Path
    """Where it lies, or would."""
    licence: str
    size: int
    """Bytes: of the installed file, or to be downloaded."""
    source: str
    """Where it comes from."""


def home() -> Path:
    """The folder of installed assets: `FACEJAX_HOME`, else the platform's cache folder."""
    if folder := os.environ.get("FACEJAX_HOME"):
        return Path(folder).expanduser().absolute()
    import pooch

    return Path(pooch.os_cache("facejax"))


def _build_facekit(folder: Path, path: Path) -> None:
    from facejax.data.heads.ict_facekit import convert_facekit
    from facejax.data.heads.model_file import save_arrays

    save_arrays(path, convert_facekit(folder))


def _copy_file(folder: Path, path: Path) -> None:
    with atomic_write(path) as temporary:
        shutil.copyfile(folder / path.name, temporary)


def read_sha256_table(path: Path) -> dict[str, str]:
    """File name to sha256, from a file of `sha256sum`'s lines."""
    lines = (line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip())
    return {name.strip(): digest for digest, name in lines}


def _facekit() -> Asset:
    manifest = _TABLES / "ict-facekit.sha256"
    # what the converted file depends on: the files, our tables, and our code by its version
    key = hashlib.sha256(f"{CONVERSION_VERSION}\n".encode() + manifest.read_bytes())
    table = _TABLES / "ict-facekit.npz"
    key.update(table.read_bytes() if table.is_file() else b"")
    return Asset(
        name="ict-facekit",
        licence="MIT",
        url=f"https://raw.githubusercontent.com/ICT-VGL/ICT-FaceKit/{_FACEKIT_COMMIT}/FaceXModel/",
        sha256=read_sha256_table(manifest),
        bytes=404_607_860,
        target=f"ict-facekit/{key.hexdigest()[:16]}.npz",
        build=_build_facekit,
    )


def _face_landmarker() -> Asset:
    digest = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
    return Asset(
        name="face-landmarker",
        licence="Apache-2.0",
        url="https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/",
        sha256={"face_landmarker.task": digest},
        bytes=3_758_596,
        target=f"face-landmarker/{digest[:16]}/face_landmarker.task",
        build=_copy_file,
    )


_ASSETS: Mapping[str, Callable[[], Asset]] = {"ict-facekit": _facekit, "face-landmarker": _face_landmarker}


def _find(name: str) -> Asset:
    if name not in _ASSETS:
        raise InputError(f"No asset named {name!r}: facejax knows {' and '.join(_ASSETS)}.")
    return _ASSETS[name]()


def asset_path(name: str) -> Path:
    """Where an installed asset lies. Raises `InputError` that says how to install it where it does not."""
    asset = _find(name)
    path = home() / asset.target
    if not path.is_file():
        stale = path.suffix == ".npz" and any(path.parent.glob("*.npz"))
        state = "was installed by another version of facejax" if stale else "is not installed"
        raise InputError(
            f"{name} {state}: run `facejax assets install {name}`, or `facejax assets install {name} --from PATH` with "
            "a copy that you have."
        )
    return path


def list_assets() -> list[AssetStatus]:
    """Every asset that facejax knows, installed or not."""
    statuses = []
    for make in _ASSETS.values():
        asset = make()
        path = home() / asset.target
        there = path.is_file()
        size = path.stat().st_size if there else asset.bytes
        statuses.append(AssetStatus(asset.name, there, path, asset.licence, size, asset.url))
    return statuses


def install(name: str, source: Path | None = None, progress: Progress | None = None) -> Path:
    """Install an asset and return where it lies; without a `source` nothing is done when it is there already.

    `source` is a folder, a single file or an archive (.zip, .tar, .tar.gz, .tar.bz2, .tar.xz) with the asset's files;
    None downloads them. What a broken download has left is taken up again. Raises `InputError` for an unknown name, a
    file that is missing or whose sha256 is wrong, an archive that is damaged or unsafe, no connection, a full disk.
    """
    asset = _find(name)
    path = home() / asset.target
    report = progress or (lambda stage, done, total: None)
    if source is None and path.is_file():
        return path
    with explain_os_errors(home()):
        home().mkdir(parents=True, exist_ok=True)
    if source is None:
        downloads = home() / "downloads" / asset.name
        _download(asset, downloads, report)
        asset.build(downloads, path)
        shutil.rmtree(downloads, ignore_errors=True)
    else:
        with _scratch() as scratch:
            asset.build(_take(asset, Path(source).expanduser(), scratch, report), path)
    return path


@contextmanager
def _scratch() -> Iterator[Path]:
    with explain_os_errors(home()), tempfile.TemporaryDirectory(prefix=".install-", dir=home()) as folder:
        yield Path(folder)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _download(asset: Asset, folder: Path, report: Progress) -> None:
    """Bring every file of an asset into `folder`; those that are there and right are not fetched again."""
    import pooch

    pooch.get_logger().setLevel("ERROR")  # its notes would tear the progress bar
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    registry = {name: f"sha256:{digest}" for name, digest in asset.sha256.items()}
    store = pooch.create(path=folder, base_url=asset.url, registry=registry, retry_if_failed=_RETRIES)
    stage = f"download {asset.name}"
    report(stage, 0, len(registry))
    with ThreadPoolExecutor(4) as pool:  # many files of 2.5 MB: latency, not bandwidth, is what one at a time pays for
        jobs = {pool.submit(store.fetch, name, downloader=pooch.HTTPDownloader(timeout=60)): name for name in registry}
        try:
            for done, job in enumerate(as_completed(jobs), 1):
                with explain_os_errors(folder):
                    _explain_download(asset, jobs[job], job.result)
                report(stage, done, len(jobs))
        except BaseException:  # Ctrl-C too: do not wait for what has not begun
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _explain_download(asset: Asset, name: str, fetch: Callable[[], str]) -> None:
    import requests

    try:
        fetch()
    except requests.RequestException as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(
            f"Could not download {asset.url}{name} ({reason}): check the connection, or run `facejax assets install "
            f"{asset.name} --from PATH` with a copy."
        ) from error
    except ValueError as error:  # pooch's word for a wrong hash; it has removed the file
        expected = asset.sha256[name]
        raise InputError(
            f"{asset.url}{name} must have sha256 {expected}, what was downloaded has another ({error}): a proxy may "
            "have changed it; try again, or give a copy with --from PATH."
        ) from error


def _take(asset: Asset, source: Path, scratch: Path, report: Progress) -> Path:
    """The folder with an asset's checked files, from a folder, a file or an archive that a person gave."""
    if not source.exists():
        raise InputError(
            f"--from takes a folder, a file or an archive with {asset.name}'s files: {source} does not exist."
        )
    if source.is_dir():
        folder = _folder_with(asset, source)
    elif list(asset.sha256) == [source.name] or (len(asset.sha256) == 1 and not _is_archive(source)):
        (name,) = asset.sha256
        _check(source, asset.sha256[name])
        shutil.copyfile(source, scratch / name)
        return scratch
    elif _is_archive(source):
        _extract(source, scratch, frozenset(asset.sha256), report)
        folder = _folder_with(asset, scratch, shown=source)
    else:
        raise InputError(
            f"--from takes a folder or an archive (.zip, .tar.gz, .tar.xz) with {asset.name}'s files, "
            f"{source} is neither."
        )
    stage = f"check {asset.name}"
    for done, (name, digest) in enumerate(asset.sha256.items(), 1):
        _check(folder / name, digest)
        report(stage, done, len(asset.sha256))
    return folder


def _check(path: Path, expected: str) -> None:
    try:
        found = sha256_of(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error
    if found != expected:
        raise InputError(
            f"{path.name} must have sha256 {expected}, the one in {path.parent} has {found}: it is damaged or of "
            "another version; give an unchanged copy."
        )


def _folder_with(asset: Asset, root: Path, shown: Path | None = None) -> Path:
    """The folder at or up to two levels below `root` that has all of an asset's files."""
    fewest = list(asset.sha256)
    for folder in (root, *sorted(p for pattern in ("*", "*/*") for p in root.glob(pattern) if p.is_dir())):
        missing = [name for name in asset.sha256 if not (folder / name).is_file()]
        if not missing:
            return folder
        if len(missing) < len(fewest):
            fewest = missing
    more = f" and {len(fewest) - 1} more" if len(fewest) > 1 else ""
    raise InputError(
        f"{shown or root} must hold the {len(asset.sha256)} files of {asset.name}, {fewest[0]}{more} is missing: "
        "give the whole folder or archive."
    )


_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2")


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(_ARCHIVES)


def _extract(archive: Path, folder: Path, wanted: frozenset[str], report: Progress) -> None:
    """Unpack the files named in `wanted` from an archive, refusing the whole of it if any member is unsafe."""
    stage = f"unpack {archive.name}"
    report(stage, 0, len(wanted))
    try:
        if archive.name.lower().endswith(".zip"):
            _extract_zip(archive, folder, wanted)
        else:
            _extract_tar(archive, folder, wanted)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"{archive} cannot be unpacked ({error}): it is damaged or incomplete; get it again."
        ) from error
    except OSError as error:
        if error.errno is None:  # gzip's and bzip2's word for damaged data carries no errno
            raise InputError(f"{archive} cannot be unpacked ({error}): it is damaged; get it again.") from error
        raise
    except Exception as error:
        if type(error).__name__ == "LZMAError":  # lzma may be missing from a Python, so it is not imported to be named
            raise InputError(f"{archive} cannot be unpacked ({error}): it is damaged; get it again.") from error
        raise
    report(stage, len(wanted), len(wanted))


def _refuse_member(archive: Path, name: str, why: str) -> InputError:
    return InputError(f"{archive} was refused: its member {name!r} {why}; use the archive from the asset's own source.")


def _check_member(archive: Path, name: str, sizes: Sequence[int]) -> None:
    """Refuse a member whose path leaves the folder it is unpacked to, and archives of absurd size."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]) or "\0" in name:
        raise _refuse_member(archive, name, "escapes the folder it would be unpacked to")
    if len(sizes) > _MAX_MEMBERS or sum(sizes) > _MAX_BYTES:
        raise _refuse_member(archive, name, f"makes it larger than {_MAX_MEMBERS} files or {_MAX_BYTES >> 30} GiB")


def _extract_tar(archive: Path, folder: Path, wanted: frozenset[str]) -> None:
    sizes: list[int] = []
    with tarfile.open(archive) as tar:
        for member in tar:  # one pass: finding the members of a compressed archive means decompressing all of it
            sizes.append(member.size)
            _check_member(archive, member.name, sizes)
            if member.issym() or member.islnk():
                raise _refuse_member(archive, member.name, "is a link")
            if not (member.isfile() or member.isdir()):
                raise _refuse_member(archive, member.name, "is neither a file nor a folder")
            if member.isfile() and PurePosixPath(member.name).name in wanted:
                # by hand, since `extract` has its `filter` from Python 3.11.4 on
                target = folder / PurePosixPath(member.name.replace("\\", "/"))
                target.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                assert content is not None  # a file has content
                with content, target.open("wb") as out:
                    shutil.copyfileobj(content, out)


def _extract_zip(archive: Path, folder: Path, wanted: frozenset[str]) -> None:
    sizes: list[int] = []
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            sizes.append(member.file_size)
            _check_member(archive, member.filename, sizes)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind == stat.S_IFLNK:
                raise _refuse_member(archive, member.filename, "is a link")
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refuse_member(archive, member.filename, "is neither a file nor a folder")
        for member in file.infolist():
            if not member.is_dir() and PurePosixPath(member.filename).name in wanted:
                file.extract(member, folder)
