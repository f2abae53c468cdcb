"""Files and folders from strangers run nothing: each way in which one could, tried with code that writes a file."""

import ast
import builtins
import json
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import toy_recipe
from PIL import EpsImagePlugin, Image, ImageOps

import facejax
from facejax import cli
from facejax.apps import doctor
from facejax.data import checkpoints
from facejax.data.checkpoints import SHIPPED, describe_files, fetch
from facejax.data.multiface import read_picture
from facejax.data.pictures import FORMATS, open_picture
from facejax.data.video import load_masks, open_video
from facejax.evaluation.reproduce import pin, reproduce
from facejax.geometry.errors import InputError
from facejax.geometry.processes import ProcessError, find_program, run_program, run_python
from facejax.renderers.llvm import llvm_version
from facejax.training import override, registered_recipe, train

PACKAGE = Path(facejax.__file__).parent
NAME = "head-autoencoder-small"
EVIL = """
from pathlib import Path
Path({mark!r}).touch()
from facejax.training.recipes.head_autoencoder import HeadAutoencoder
class Evil(HeadAutoencoder):
    name = {name!r}
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def soon():
    """Fails a test that waits for what never comes."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError("it waits for ever")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# -- manifests that name code ------------------------------------------------------------------------------------------


def plant(folder: Path, recipe: Path, mark: Path) -> None:
    """Puts a recipe that writes `mark` where `recipe` says, and names it in the manifest of `folder`, sums and all."""
    recipe.write_text(EVIL.format(mark=str(mark), name=str(recipe)))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["recipe"] = str(recipe)
    if recipe.resolve().is_relative_to(folder.resolve()):
        name = str(recipe.resolve().relative_to(folder.resolve()))
        manifest["files"] |= describe_files(folder, [name])
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("where", ["ck/evil.py", "beside.py", "/"])
def test_a_manifest_names_no_file_to_run(where, here, capsys):
    shutil.copytree(SHIPPED / NAME, "ck")
    recipe = here / "ck" / "evil.py" if where == "/" else Path(where)
    plant(Path("ck"), recipe, here / "ran")
    assert cli.main(["checkpoints", "verify", "ck"]) == 0  # nothing shows
    assert cli.main(["reproduce", "ck"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"recipe {str(recipe)!r}, which is not installed here" in said
    assert "--recipe FILE" in said
    assert not (here / "ran").exists()
    reproduce("ck", str(recipe))  # the person's own word
    assert (here / "ran").exists()


def test_nor_does_that_of_a_fetched_checkpoint(here, monkeypatch):
    monkeypatch.setenv("FACEJAX_HOME", str(here / "home"))
    shutil.copytree(SHIPPED / NAME, "ck")
    installed = here / "home" / "checkpoints" / "nice" / "evil.py"
    installed.parent.mkdir(parents=True)
    plant(Path("ck"), installed, here / "ran")
    shutil.move(installed, "ck")
    installed.parent.rmdir()
    manifest = json.loads(Path("ck/manifest.json").read_text())
    manifest["files"] |= describe_files(Path("ck"), ["evil.py"])
    Path("ck/manifest.json").write_text(json.dumps(manifest))
    fetch("nice", "ck")
    assert installed.is_file()
    with pytest.raises(InputError, match="--recipe FILE"):
        reproduce("nice")
    assert not (here / "ran").exists()


def test_nor_does_that_of_a_run(here):
    data = toy_recipe.make_data(here / "data")
    train(toy_recipe.Toy(override(toy_recipe.Toy.presets["small"].config, ["run.steps=2"])), data, "run")
    plant(Path("run"), here / "run" / "evil.py", here / "ran")
    with pytest.raises(InputError, match="--recipe FILE"):
        pin("run", data, "pinned")
    assert not (here / "ran").exists()


@pytest.mark.parametrize("name", ["evil.py", "./evil.py", "evil"])
def test_a_name_out_of_a_file_is_registered_or_refused(name, here):
    (here / "evil.py").write_text(EVIL.format(mark=str(here / "ran"), name=name))
    with pytest.raises(InputError, match="There is no recipe"):
        registered_recipe(name)
    assert not (here / "ran").exists()


@pytest.mark.parametrize("name", [5, None, ["head-autoencoder"]])
def test_a_name_that_is_no_word_is_refused(name, here):
    shutil.copytree(SHIPPED / NAME, "ck")
    manifest = json.loads(Path("ck/manifest.json").read_text())
    Path("ck/manifest.json").write_text(json.dumps(manifest | {"recipe": name}))
    with pytest.raises(InputError, match="which is not installed here"):
        reproduce("ck")


# -- pictures that are programs ----------------------------------------------------------------------------------------


@pytest.fixture
def ghostscript(tmp_path, monkeypatch) -> Path:
    """The file that a `gs` on the PATH writes when it is started."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{tmp_path / 'gs-ran'}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return tmp_path / "gs-ran"


def eps(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 96\n%%EndComments\nshowpage\n")
    return path


def test_ghostscript_would_run_what_an_eps_holds(ghostscript, tmp_path):
    """What the tests below would see."""
    with Image.open(eps(tmp_path / "x.png")) as image, pytest.raises(OSError):  # noqa: PT011
        image.load()
    assert ghostscript.exists()


def test_an_eps_is_no_frame_whatever_it_is_called(ghostscript, tmp_path):
    for source in (eps(tmp_path / "frames" / "000.png"), tmp_path / "frames"):
        with pytest.raises(InputError, match=r"000\.png could not be read as an image .*: give a whole PNG, JPEG"):
            open_video(source)
    assert not ghostscript.exists()


def test_an_eps_is_no_mask(ghostscript, tmp_path):
    video = open_video(np.zeros((1, 96, 96, 3), np.uint8))
    with pytest.raises(InputError, match=r"000\.png could not be read as an image"):
        load_masks(eps(tmp_path / "masks" / "000.png").parent, video).read([0])
    assert not ghostscript.exists()


def test_an_eps_is_no_picture_of_a_capture(ghostscript, tmp_path):
    with pytest.raises(InputError, match=r"The picture .*\.png could not be read .*: unpack its segment again"):
        read_picture(eps(tmp_path / "x.png"), "picture")
    assert not ghostscript.exists()


@pytest.mark.parametrize("name", FORMATS)
def test_the_formats_are_opened_whatever_the_file_is_called(name, tmp_path):
    Image.new("RGB", (48, 40), (200, 100, 50)).save(tmp_path / "x.png", format=name)
    with open_picture(tmp_path / "x.png") as image:
        assert image.size == (48, 40)
        np.testing.assert_allclose(np.asarray(image.convert("RGB"))[20, 20], (200, 100, 50), atol=8)


def test_a_phones_picture_of_several_parts_is_a_jpeg(tmp_path):
    """MPO, which phones call .jpg; and the orientation stays."""
    image, exif = Image.new("RGB", (48, 40)), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[image], exif=exif)
    with open_picture(tmp_path / "x.jpg") as opened:
        assert ImageOps.exif_transpose(opened).size == (40, 48)
    assert open_video(tmp_path / "x.jpg").size == (40, 48)


def test_a_pipe_is_no_picture(tmp_path, soon):
    os.mkfifo(tmp_path / "000.png")
    with pytest.raises(InputError, match="no regular file"):
        open_video(tmp_path)


def test_what_is_missing_or_damaged_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"The mask .*none\.png could not be read as an image \(No such file"):  # noqa: SIM117
        with open_picture(tmp_path / "none.png", "mask"):
            pass
    Image.effect_noise((64, 64), 50).save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:900])
    with pytest.raises(InputError, match=r"x\.png could not be read as an image \(.*\): give"):  # noqa: SIM117
        with open_picture(tmp_path / "x.png") as image:
            image.load()


# -- folders with modules and programs in them -------------------------------------------------------------------------


@pytest.fixture
def trap(here) -> Path:
    """The current folder holds modules that write a file when they are imported, and a program that does when run."""
    for module in ("ctypes", "numpy", "mediapipe", "mitsuba", "drjit", "pickle", "struct"):
        (here / f"{module}.py").write_text(f"open({str(here / 'ran')!r}, 'w')\n")
    for program in ("git", "nvidia-smi"):
        (here / program).write_text(f"#!/bin/sh\ntouch '{here / 'ran'}'\n")
        (here / program).chmod(0o755)
    return here


def test_no_module_is_imported_from_the_current_folder(trap, tmp_path):
    assert llvm_version(str(tmp_path / "libLLVM.so")) is None
    assert llvm_version(str(next(iter(Path(np.__file__).parents[1].rglob("*.so"))))) is None  # a library, no LLVM
    assert not (trap / "ran").exists()


def test_the_doctor_imports_nothing_from_the_current_folder(trap):
    pytest.importorskip("mediapipe")
    found = [*doctor._mediapipe(), *doctor._mitsuba()]
    assert not (trap / "ran").exists()
    assert {check.name for check in found} == {"mediapipe", "path tracer"}


def test_a_child_finds_what_its_parent_finds(tmp_path, monkeypatch):
    """A folder of PYTHONPATH counts, as does the user's own; isolated mode would leave both out."""
    (tmp_path / "of_my_own.py").write_text("told = 'mine'\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{PACKAGE.parent}")
    done = run_python(
        "import sys, of_my_own, facejax; print(of_my_own.told, facejax.__file__, *sys.argv[1:])", "a", "b"
    )
    assert done.stdout.split() == ["mine", facejax.__file__, "a", "b"], done.stderr
    assert run_python("import sys; print(sys.flags.no_user_site)").stdout.strip() == str(sys.flags.no_user_site)
    with pytest.raises(ProcessError):
        run_python("import time; time.sleep(60)", timeout=0.5)


def test_workers_import_nothing_from_the_current_folder(trap):
    """Interpreters that `multiprocessing` starts import its own modules before they are told where to look."""
    data = toy_recipe.make_data(trap.parent / "data")
    script = trap.parent / "script.py"
    script.write_text(
        "import sys, toy_recipe\n"
        "from facejax.training import override, train\n"
        "if __name__ == '__main__':\n"
        "    config = override(toy_recipe.Toy.presets['small'].config, ['run.steps=2', 'machine.workers=1'])\n"
        "    print(train(toy_recipe.Toy(config), sys.argv[1], sys.argv[2]).step)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{PACKAGE.parent}:{Path(__file__).parent}"}
    command = [sys.executable, str(script), str(data), str(trap.parent / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=200)
    assert not (trap / "ran").exists()
    assert done.stdout.split()[-1:] == ["2"], done.stderr
    assert multiprocessing.get_start_method(allow_none=True) != "forkserver"


def test_no_program_is_run_from_the_current_folder(trap, monkeypatch):
    usual = shutil.which("git")
    for path in (f".:{os.environ['PATH']}", f":{os.environ['PATH']}", f"../here:{os.environ['PATH']}"):
        monkeypatch.setenv("PATH", path)
        assert find_program("git") == usual
        checkpoints.source_revision()
    assert not (trap / "ran").exists()
    monkeypatch.setenv("PATH", ":.")
    assert find_program("git") is None
    with pytest.raises(ProcessError):
        run_program("git", "--version", timeout=5.0)
    assert not (trap / "ran").exists()


# -- and no other way --------------------------------------------------------------------------------------------------

HELPERS = {
    "PIL.Image.open": {"data/pictures.py"},
    "av.open": {"data/containers.py"},
    "av.container": set(),
    "numpy.load": {"geometry/arrays.py"},
    "numpy.lib.npyio.NpzFile": {"geometry/arrays.py"},
    "numpy.lib.format.read_array": set(),
    "imageio.v3.imread": set(),
    "imageio.v3.imiter": set(),
    "imageio.imread": set(),
    "cv2.imread": set(),
    "cv2.VideoCapture": set(),
    "subprocess": {"geometry/processes.py"},
    "multiprocessing": set(),
    "concurrent.futures.ProcessPoolExecutor": set(),
    "grain.multiprocessing": {"data/sources.py"},  # its workers: see safe_workers
    "importlib.import_module": {
        "_lazy.py",  # the package's own names, loaded when they are asked for
        "training/recipe.py",  # a table's
        "renderers/path_tracer.py",  # drjit
        "evaluation/deep_lighting.py",  # --identity module:function, typed by the person
    },
    "importlib.util.spec_from_file_location": {"training/recipe.py"},  # find_recipe's, typed by the person
    "importlib.util.module_from_spec": {"training/recipe.py"},
    "importlib.machinery": set(),
    "runpy": set(),
    "code": set(),
    "pty": set(),
    "webbrowser": set(),
    **{f"os.{name}": set() for name in dir(os) if name.startswith(("exec", "spawn", "posix_spawn", "fork"))},
    **{f"os.{name}": set() for name in ("system", "popen", "startfile")},
    **{name: set() for name in ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")},
    **{f"builtins.{name}": set() for name in ("eval", "exec", "compile", "__import__")},
}
"""What opens a stranger's file, starts a process or runs code, and the files of the package that may name it."""


def mentioned(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything imported or built in that a module mentions, by the names it was imported under."""
    known = {name: f"builtins.{name}" for name in dir(builtins)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                known[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                yield alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id in known:
            yield ".".join([known[node.id], *reversed(parts)])


def found_in(code: str) -> set[str]:
    """Which of `HELPERS` a module mentions."""
    return {
        guarded for name in mentioned(ast.parse(code)) for guarded in HELPERS if f"{name}.".startswith(f"{guarded}.")
    }


def test_everything_that_runs_or_opens_goes_through_its_helper():
    used: dict[str, set[str]] = {guarded: set() for guarded in HELPERS}
    for path in sorted(PACKAGE.rglob("*.py")):
        for guarded in found_in(path.read_text()):
            used[guarded].add(path.relative_to(PACKAGE).as_posix())
    assert used == HELPERS


def test_nothing_is_allowed_to_unpickle():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path


@pytest.mark.parametrize(
    ("code", "guarded"),
    [
        ("from PIL import Image\nImage.open(p)", "PIL.Image.open"),
        ("from PIL import Image as I\nf = I.open", "PIL.Image.open"),
        ("import PIL.Image\nPIL.Image.open(p)", "PIL.Image.open"),
        ("from PIL.Image import open as o\no(p)", "PIL.Image.open"),
        ("def f():\n    import av\n    return av.open(p)", "av.open"),
        ("import numpy as np\nnp.load(p)", "numpy.load"),
        ("from numpy import load", "numpy.load"),
        ("from os import system", "os.system"),
        ("import os\nos.execvp('a', [])", "os.execvp"),
        ("import subprocess as s\ns.run([])", "subprocess"),
        ("from importlib import import_module as i\ni('x')", "importlib.import_module"),
        (
            "import importlib.util\nimportlib.util.spec_from_file_location('a', 'b')",
            "importlib.util.spec_from_file_location",
        ),
        ("import pickle", "pickle"),
        ("from multiprocessing.pool import Pool", "multiprocessing"),
        ("import grain as g\ng.multiprocessing.MultiprocessingOptions()", "grain.multiprocessing"),
        ("eval('1')", "builtins.eval"),
        ("import builtins\nbuiltins.exec('1')", "builtins.exec"),
    ],
)
def test_the_search_finds_them(code, guarded):
    assert guarded in found_in(code)


@pytest.mark.parametrize(
    "code",
    [
        "import drjit as dr\ndr.eval(x)",
        "self.f.open()",
        "from PIL import Image\nImage.fromarray(x)",
        "import re\nre.compile('')",
    ],
)
def test_and_not_what_is_only_called_alike(code):
    assert not found_in(code)


def test_the_trap_would_work(trap):
    """What the tests above would see."""
    subprocess.run([sys.executable, "-c", "import ctypes"], check=True, capture_output=True)
    assert (trap / "ran").exists()
    assert (trap / "git").stat().st_mode & stat.S_IXUSR
