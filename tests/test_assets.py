"""Installing assets: every source, every refusal, nothing half-written; and `load_model`'s errors."""

import dataclasses
import gc
import hashlib
import http.server
import io
import os
import tarfile
import threading
import zipfile

import pytest

from facejax.data import assets
from facejax.data.heads import load_model
from facejax.geometry.errors import InputError

FILES = {"a.obj": b"first file\n", "b.obj": b"second file\n"}


def _sha(data):
    return hashlib.sha256(data).hexdigest()


def _build(folder, path):
    with assets.atomic_write(path) as temporary:
        temporary.write_bytes(b"".join((folder / name).read_bytes() for name in FILES))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty FACEJAX_HOME where a two-file asset `toy` and a one-file asset `single` can be installed."""
    folder = tmp_path / "home"
    monkeypatch.setenv("FACEJAX_HOME", str(folder))
    toy = assets.Asset(
        name="toy",
        licence="CC0",
        url="http://127.0.0.1:9/",  # nobody answers at the discard port
        sha256={name: _sha(data) for name, data in FILES.items()},
        bytes=23,
        target="toy/x.npz",
        build=_build,
    )
    single = dataclasses.replace(
        toy, name="single", sha256={"a.obj": toy.sha256["a.obj"]}, target="single/a.obj", build=assets._copy_file
    )
    monkeypatch.setattr(assets, "_ASSETS", {"toy": lambda: toy, "single": lambda: single})
    monkeypatch.setattr(assets, "_RETRIES", 0)
    return folder


def _files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) if folder.exists() else []


def _write_folder(folder, files=FILES):
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def _tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def _zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def _special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return name, info


def _good(prefix="FaceXModel/"):
    return [(prefix + name, data) for name, data in FILES.items()]


def _sources(tmp_path):
    return {
        "folder": _write_folder(tmp_path / "plain"),
        "parent": _write_folder(tmp_path / "parent" / "repository" / "FaceXModel").parents[1],
        "tar.gz": _tar(tmp_path / "x.tar.gz", _good()),
        "tar.xz": _tar(tmp_path / "x.tar.xz", [("README.md", b"hello"), *_good("ICT-FaceKit/FaceXModel/")], "w:xz"),
        "zip": _zip(tmp_path / "x.zip", [("README.md", b"hello"), *_good()]),
    }


@pytest.mark.parametrize("kind", ["folder", "parent", "tar.gz", "tar.xz", "zip"])
def test_install_from_every_kind_of_source(home, tmp_path, kind):
    reports = []
    path = assets.install("toy", _sources(tmp_path)[kind], progress=lambda *report: reports.append(report))
    assert path.read_bytes() == b"first file\nsecond file\n"
    assert assets.asset_path("toy") == path
    assert _files_in(home) == ["toy/x.npz"]
    assert reports[-1] == ("check toy", 2, 2)


def test_install_a_single_file_by_any_name(home, tmp_path):
    copy = tmp_path / "renamed.task"
    copy.write_bytes(FILES["a.obj"])
    for source in (copy, _write_folder(tmp_path / "folder"), _zip(tmp_path / "x.zip", _good())):
        assert assets.install("single", source).read_bytes() == FILES["a.obj"]
    assert _files_in(home) == ["single/a.obj"]
    copy.write_bytes(b"other")
    with pytest.raises(InputError, match=f"must have sha256 {_sha(FILES['a.obj'])}.*has {_sha(b'other')}"):
        assets.install("single", copy)


@pytest.mark.parametrize(
    ("member", "why"),
    [
        (("../evil.obj", b"x"), "escapes"),
        (("FaceXModel/../../evil.obj", b"x"), "escapes"),
        (("/evil.obj", b"x"), "escapes"),
        (("..\\evil.obj", b"x"), "escapes"),
        (("C:/evil.obj", b"x"), "escapes"),
        (_special("FaceXModel/c.obj", tarfile.SYMTYPE, "/etc/passwd"), "is a link"),
        (_special("FaceXModel/c.obj", tarfile.SYMTYPE, "a.obj"), "is a link"),
        (_special("FaceXModel/c.obj", tarfile.LNKTYPE, "FaceXModel/a.obj"), "is a link"),
        (_special("FaceXModel/pipe", tarfile.FIFOTYPE), "neither a file nor a folder"),
        (_special("FaceXModel/device", tarfile.CHRTYPE), "neither a file nor a folder"),
    ],
)
def test_unsafe_archives_are_refused_whole(home, tmp_path, member, why):
    archive = _tar(tmp_path / "x.tar.gz", [*_good(), member])
    with pytest.raises(InputError, match=f"was refused: its member .* {why}"):
        assets.install("toy", archive)
    assert _files_in(home) == []
    assert _files_in(tmp_path) == ["x.tar.gz"]
    if isinstance(member[1], bytes):
        archive = _zip(tmp_path / "x.zip", [*_good(), member])
        with pytest.raises(InputError, match=f"was refused: its member .* {why}"):
            assets.install("toy", archive)
        assert _files_in(tmp_path) == ["x.tar.gz", "x.zip"]


def test_a_link_in_a_zip_is_refused(home, tmp_path):
    link = zipfile.ZipInfo("FaceXModel/c.obj")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    archive = _zip(tmp_path / "x.zip", [*_good(), (link, "/etc/passwd")])
    with pytest.raises(InputError, match="is a link"):
        assets.install("toy", archive)
    assert _files_in(home) == []


def test_absurd_sizes_are_refused(home, tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "_MAX_BYTES", 1000)
    bomb = ("FaceXModel/bomb.bin", bytes(2000))
    for archive in (_tar(tmp_path / "x.tar.gz", [bomb, *_good()]), _zip(tmp_path / "x.zip", [bomb, *_good()])):
        with pytest.raises(InputError, match="makes it larger than"):
            assets.install("toy", archive)
    monkeypatch.setattr(assets, "_MAX_MEMBERS", 1)
    with pytest.raises(InputError, match="makes it larger than"):
        assets.install("toy", _tar(tmp_path / "y.tar.gz", _good()))
    assert _files_in(home) == []


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.xz", "zip"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_damaged_archives_are_refused(home, tmp_path, suffix, share):
    noise = [("FaceXModel/noise.bin", os.urandom(20_000)), *_good()]
    mode = {"tar.gz": "w:gz", "tar.xz": "w:xz"}.get(suffix)
    path = tmp_path / f"x.{suffix}"
    _tar(path, noise, mode) if mode else _zip(path, noise)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match="cannot be unpacked"):
        assets.install("toy", path)
    assert _files_in(home) == []


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.xz", "zip"])
def test_changed_bytes_in_an_archive_are_refused(home, tmp_path, suffix):
    noise = [("FaceXModel/noise.bin", os.urandom(20_000)), *_good()]
    mode = {"tar.gz": "w:gz", "tar.xz": "w:xz"}.get(suffix)
    path = tmp_path / f"x.{suffix}"
    _tar(path, noise, mode) if mode else _zip(path, noise)
    data = bytearray(path.read_bytes())
    data[60:80] = bytes(20)
    data[-200:-150] = bytes(50)
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"x\.(tar|zip)"):
        assets.install("toy", path)
    assert _files_in(home) == []


def test_wrong_and_missing_files_are_named(home, tmp_path):
    wrong = _write_folder(tmp_path / "wrong", FILES | {"b.obj": b"changed"})
    with pytest.raises(InputError, match=rf"b\.obj must have sha256 {_sha(FILES['b.obj'])}.*has {_sha(b'changed')}"):
        assets.install("toy", wrong)
    (wrong / "b.obj").unlink()
    with pytest.raises(InputError, match=r"must hold the 2 files of toy, b\.obj is missing"):
        assets.install("toy", wrong)
    with pytest.raises(InputError, match=r"a\.obj and 1 more is missing"):
        assets.install("toy", _tar(tmp_path / "x.tar.gz", [("README", b"x")]))
    with pytest.raises(InputError, match="does not exist"):
        assets.install("toy", tmp_path / "absent")
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(InputError, match="is neither"):
        assets.install("toy", text)
    assert _files_in(home) == []


def test_not_installed_and_unknown(home):
    with pytest.raises(InputError, match=r"toy is not installed: run `facejax assets install toy`.*--from PATH"):
        assets.asset_path("toy")
    for call in (assets.asset_path, assets.install):
        with pytest.raises(InputError, match="No asset named 'tpy': facejax knows toy and single"):
            call("tpy")


def test_another_version_is_told(home):
    (home / "toy").mkdir(parents=True)
    (home / "toy" / "older.npz").write_bytes(b"")
    with pytest.raises(InputError, match="was installed by another version of facejax"):
        assets.asset_path("toy")


def test_list(home, tmp_path):
    before = assets.list_assets()
    assert [(a.name, a.installed, a.size) for a in before] == [("toy", False, 23), ("single", False, 23)]
    path = assets.install("single", _write_folder(tmp_path / "folder"))
    single = assets.list_assets()[1]
    assert (single.installed, single.path, single.size, single.licence) == (True, path, 11, "CC0")


def test_an_unwritable_home(tmp_path, monkeypatch, home):
    source = _write_folder(tmp_path / "folder")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FACEJAX_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(InputError, match=r"Cannot write .*: "):
        assets.install("toy", source)


def test_a_full_disk(home, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(assets.shutil, "copyfileobj", full)
    with pytest.raises(InputError, match="disk is full"):
        assets.install("toy", _tar(tmp_path / "x.tar.gz", _good()))
    assert _files_in(home) == []


def test_an_interrupted_install_leaves_nothing(home, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(assets, "_check", stop)
    with pytest.raises(KeyboardInterrupt):
        assets.install("toy", _tar(tmp_path / "x.tar.gz", _good()))
    assert list(home.iterdir()) == []


@pytest.fixture
def server(home, tmp_path, monkeypatch):
    """The toy asset at an address on this machine; yields (folder that is served, list of paths asked for)."""
    folder = tmp_path / "served"
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            asked.append(self.path)

    _write_folder(folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        toy = dataclasses.replace(assets._ASSETS["toy"](), url=f"http://127.0.0.1:{listening.server_port}/")
        monkeypatch.setattr(assets, "_ASSETS", {"toy": lambda: toy})
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield folder, asked
        listening.shutdown()
        thread.join()
    gc.collect()  # requests leaves the socket of a refused answer to the garbage collector, which pytest would report


def test_download(server, home):
    reports = []
    path = assets.install("toy", progress=lambda *report: reports.append(report))
    assert path.read_bytes() == b"first file\nsecond file\n"
    assert _files_in(home) == ["toy/x.npz"]
    assert reports == [("download toy", i, 2) for i in range(3)]
    assert sorted(server[1]) == ["/a.obj", "/b.obj"]
    assert assets.install("toy") == path  # there already: nobody is asked again
    assert len(server[1]) == 2


def test_a_wrong_download_is_refused_and_the_rest_kept(server, home):
    folder, asked = server
    (folder / "b.obj").write_bytes(b"changed")
    with pytest.raises(InputError, match=rf"b\.obj must have sha256 {_sha(FILES['b.obj'])}.*{_sha(b'changed')}"):
        assets.install("toy")
    assert _files_in(home) == ["downloads/toy/a.obj"]
    (folder / "b.obj").write_bytes(FILES["b.obj"])
    asked.clear()
    assets.install("toy")
    assert asked == ["/b.obj"]
    assert _files_in(home) == ["toy/x.npz"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_such_file_on_the_server_and_no_server(server, home, monkeypatch):
    (server[0] / "b.obj").unlink()
    with pytest.raises(InputError, match=r"Could not download .*b\.obj \(404.*--from PATH"):
        assets.install("toy")
    away = dataclasses.replace(assets._ASSETS["toy"](), url="http://127.0.0.1:9/")
    monkeypatch.setattr(assets, "_ASSETS", {"toy": lambda: away})
    with pytest.raises(InputError, match=r"Could not download .*check the connection"):
        assets.install("toy")
    assert not (home / "toy").exists()


def test_the_real_table_pins_every_file(monkeypatch, tmp_path):
    monkeypatch.setenv("FACEJAX_HOME", str(tmp_path))
    facekit = assets._ASSETS["ict-facekit"]()
    assert len(facekit.sha256) == 158  # neutral, 100 identity and 57 expression shapes
    assert all(len(d) == 64 and int(d, 16) >= 0 for d in facekit.sha256.values())
    assert "/da5f95a607f5e6b37755b38d3385d7f2853732e5/FaceXModel/" in facekit.url
    assert assets.home() == tmp_path


def test_home_defaults_to_the_platforms_cache(monkeypatch):
    monkeypatch.delenv("FACEJAX_HOME", raising=False)
    assert assets.home().name == "facejax"


@pytest.mark.parametrize(("name", "meant"), [("ict-facekt", "ict-facekit"), ("Generic", "generic")])
def test_an_unknown_model_suggests_the_nearest(name, meant, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"No model named '{name}'.*did you mean {meant}\?.*generic or ict-facekit"):
        load_model(name)


def test_a_model_that_is_not_installed_says_how(monkeypatch, tmp_path):
    monkeypatch.setenv("FACEJAX_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"ict-facekit is not installed: run `facejax assets install ict-facekit`"):
        load_model("ict-facekit")


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(InputError, match=r"must hold generic_neutral_mesh\.obj"):
        load_model(tmp_path)
