"""The doctor, and the LLVM check that stands between a user and a process that aborts."""

import dataclasses
import io
import sys
import types
from pathlib import Path

import pytest
from rich.console import Console

from facejax.apps import doctor
from facejax.geometry.errors import InputError
from facejax.renderers import llvm


@pytest.fixture
def no_llvm_named(monkeypatch):
    monkeypatch.setenv("DRJIT_LIBLLVM_PATH", "")  # set first, so that what require_llvm sets is undone
    monkeypatch.delenv("DRJIT_LIBLLVM_PATH")


@pytest.fixture
def two_assets(monkeypatch):
    @dataclasses.dataclass
    class Status:
        name: str
        installed: bool
        path: Path
        licence: str
        size: int = 3_700_000

    module = types.SimpleNamespace(
        list_assets=lambda: [
            Status("ict-facekit", True, Path("/cache/ict"), "MIT"),
            Status("face-landmarker", False, Path("/cache/fl"), "Apache-2.0"),
        ],
        home=lambda: Path("/nowhere/at/all"),
    )
    monkeypatch.setitem(sys.modules, "facejax.data.assets", module)


def shown(table) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("libLLVM-14.0.6.so.1", (14, 0, 6)),
        ("libLLVM-15.so.1", (15, 0, 0)),
        ("libLLVM.so.19.1", (19, 1, 0)),
        ("libLLVM.so", (0, 0, 0)),
        ("libLLVM.dylib", (0, 0, 0)),
        ("libLLVM-18.dylib", (18, 0, 0)),
        ("libGL.so.1", (0, 0, 0)),
    ],
)
def test_version_by_name(name, version, monkeypatch):
    assert llvm._version_in_name(f"/usr/lib/{name}") == version


def test_what_is_no_llvm_has_no_version(tmp_path):
    (tmp_path / "libLLVM-19.so").write_text("not a library")
    assert llvm.llvm_version(str(tmp_path / "libLLVM-19.so")) is None
    assert llvm.llvm_version(str(tmp_path / "absent.so")) is None


def test_require_llvm_names_the_library_it_checked(monkeypatch, no_llvm_named):
    monkeypatch.setattr(llvm, "_candidates", lambda: ["/a/libLLVM.so.19.1"])
    monkeypatch.setattr(llvm, "llvm_version", lambda path: (19, 1, 7))
    assert llvm.require_llvm() == ("/a/libLLVM.so.19.1", (19, 1, 7))
    assert llvm.os.environ["DRJIT_LIBLLVM_PATH"] == "/a/libLLVM.so.19.1"


@pytest.mark.parametrize("version", [(14, 0, 6), (15, 0, 7), (0, 0, 0)])
def test_an_old_llvm_is_refused(version, monkeypatch, no_llvm_named):
    monkeypatch.setattr(llvm, "_candidates", lambda: ["/a/libLLVM-15.so"])
    monkeypatch.setattr(llvm, "llvm_version", lambda path: version)
    with pytest.raises(InputError, match=r"needs LLVM 16 or newer.*install it with"):
        llvm.require_llvm()
    assert "DRJIT_LIBLLVM_PATH" not in llvm.os.environ


def test_no_llvm_is_refused(monkeypatch, no_llvm_named):
    monkeypatch.setattr(llvm, "_candidates", lambda: [])
    with pytest.raises(InputError, match="none was found: install it with"):
        llvm.require_llvm()


def test_a_named_llvm_that_is_not_there_is_refused_and_no_other_taken(monkeypatch):
    monkeypatch.setenv("DRJIT_LIBLLVM_PATH", "/no/such/libLLVM.so")
    monkeypatch.setattr(llvm, "_candidates", lambda: pytest.fail("the one that was named is the one to take"))
    with pytest.raises(InputError, match=r"/no/such/libLLVM\.so, which cannot be loaded"):
        llvm.require_llvm()


def test_the_newest_real_library_is_found(no_llvm_named):
    found = llvm.find_llvm()
    if found is None:
        pytest.skip("no LLVM on this machine: apt install libllvm19")
    path, version = found
    assert Path(path).is_file()
    readable = [v for v in map(llvm.llvm_version, llvm._candidates()) if v is not None]
    assert version == max(readable)


def test_report_says_how_to_get_what_is_missing():
    tables = []
    checks = [
        doctor.Check("codecs", "ok", "h264 [fast]"),
        doctor.Check("mediapipe", "optional", "not installed", "pip install mediapipe"),
    ]
    assert doctor.report(iter(checks), tables.append) == 0
    text = shown(tables[0])
    assert "get it: pip install mediapipe" in text
    assert "h264 [fast]" in text  # square brackets are no markup here
    assert doctor.report(iter([doctor.Check("packages", "missing", "jax")]), tables.append) == 1


def test_a_check_that_breaks_is_a_line_of_the_report(monkeypatch, two_assets):
    def broken():
        raise RuntimeError("something odd")

    broken.__name__ = "_codecs"
    monkeypatch.setattr(doctor, "_codecs", broken)
    for name in ("_devices", "_mediapipe", "_mitsuba"):
        monkeypatch.setattr(doctor, name, lambda: iter([]))
    checks = {c.name: c for c in doctor.examine()}
    assert checks["codecs"].state == "missing"
    assert "something odd" in checks["codecs"].detail
    assert checks["asset ict-facekit"].state == "ok"
    assert checks["asset face-landmarker"].fix == "facejax assets install face-landmarker"


def test_an_unwritable_cache_is_said(monkeypatch, two_assets, tmp_path):
    (tmp_path / "file").write_text("in the way")
    sys.modules["facejax.data.assets"].home = lambda: tmp_path / "file" / "cache"
    (check,) = doctor._cache()
    assert check.state == "optional"
    assert "FACEJAX_HOME" in check.fix


def test_asset_table(two_assets):
    text = shown(doctor.asset_table())
    assert "/cache/ict" in text
    assert "MIT" in text
    assert "4 MB to get" in text
    assert "facejax assets install face-landmarker" in text
    assert "generic" in text


def test_codecs_of_this_installation():
    checks = list(doctor._codecs())
    assert checks[0].name == "codecs"
    assert "h264 decoder" in checks[0].detail


def test_mediapipe_absent(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    (check,) = doctor._mediapipe()
    assert check.fix == "pip install mediapipe"


def test_mitsuba_without_llvm(monkeypatch, no_llvm_named):
    monkeypatch.setattr(llvm, "_candidates", lambda: [])
    (check,) = doctor._mitsuba()
    assert check.state == "optional"
    assert check.fix == llvm.HOW_TO_GET.get(sys.platform)


def test_last_words_are_the_cause_and_not_its_echo():
    said = "Traceback\n  File x\nOSError: libEGL.so.1: cannot open\nException ignored in: y\nAttributeError: _image_ptr"
    assert doctor._last_words(said) == "OSError: libEGL.so.1: cannot open"
    assert doctor._last_words("LLVM ERROR: oh\nAborted") == "Aborted"
    assert doctor._last_words("") == "it ended without a word"
