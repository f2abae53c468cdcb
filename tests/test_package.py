"""The package itself: layers, what an import costs, the links at the root, and what a wheel holds."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import facejax

ROOT = Path(__file__).resolve().parents[1]
WINGS = (
    *("geometry", "models", "renderers", "objectives", "data"),
    *("made_up", "fitting", "training", "evaluation", "apps"),
)
PACKAGE = Path(facejax.__file__).parent
MODULES = sorted(
    ".".join(("facejax", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for file in PACKAGE.rglob("*.py")
    if file.name != "__main__.py"
)
HEAVY = ("mitsuba", "drjit", "mediapipe", "av", "trimesh", "cv2", "PIL", "imageio", "orbax", "grain", "scipy", "pandas")

checkout = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not in a checkout")


def run(*command: str, cwd: Path | None = None, **environment: str) -> str:
    """What a command prints; the test fails, and shows everything, when it fails."""
    found = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=os.environ | environment, timeout=600
    )
    assert found.returncode == 0, f"{' '.join(command)}\n{found.stdout}\n{found.stderr}"
    return found.stdout


def test_every_wing_is_there():
    assert {f"facejax.{wing}" for wing in WINGS} <= set(MODULES)


@checkout
def test_imports_go_one_way():
    pytest.importorskip("importlinter")
    command = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    assert "0 broken" in run(sys.executable, "-c", command, cwd=ROOT)


def test_import_costs_little_more_than_jax():
    code = """
import jax, time
start = time.perf_counter()
import facejax
print(time.perf_counter() - start)
"""
    seconds = []
    for _ in range(3):  # the best of three: other work on the machine is no fault of ours
        seconds.append(float(run(sys.executable, "-c", code)))
        if seconds[-1] < 0.5:
            break
    assert min(seconds) < 0.5


def test_heavy_libraries_wait_until_they_are_used():
    """Importing all of facejax loads none of what only some of its functions need."""
    # Some libraries load others of the list by themselves (JAX: scipy), which is no fault of ours.
    code = f"""
import importlib, sys
import jax, jax.numpy, chex, flax, optax, jaxtyping, tyro, rich
before = set(sys.modules)
import facejax
for name in {MODULES!r}:
    importlib.import_module(name)
print([m for m in {HEAVY!r} if m in sys.modules and m not in before])
"""
    assert run(sys.executable, "-c", code).strip() == "[]"


def test_importing_sets_no_global_of_jax():
    code = f"""
import importlib, jax
names = ("jax_compilation_cache_dir", "jax_enable_x64", "jax_default_matmul_precision", "jax_platforms")
before = [getattr(jax.config, n) for n in names]
for name in {MODULES!r}:
    importlib.import_module(name)
assert [getattr(jax.config, n) for n in names] == before
"""
    run(sys.executable, "-c", code)


@checkout
@pytest.mark.parametrize("name", ["renderers", "fitting", "training", "data"])
def test_root_links_show_the_wings(name):
    link = ROOT / name
    if not link.exists():
        pytest.skip("the source distribution holds no links")
    assert link.is_symlink()
    assert os.readlink(link) == f"facejax/{name}"  # relative, so that a checkout may move
    assert link.resolve() == ROOT / "facejax" / name


@checkout
def test_the_readme_and_ci_run_the_same_tests():
    if not (ROOT / ".ci" / "run").is_file():
        pytest.skip("the source distribution holds no CI script")
    command = 'pip install -e ".[landmarks,test]" && pytest -n 2'
    assert command in (ROOT / "README.md").read_text()
    script = (ROOT / ".ci" / "run").read_text()
    assert all(f"\n{part}\n" in script for part in command.split(" && "))


@checkout
def test_the_workflow_runs_ci_on_the_oldest_and_the_newest_python():
    file = ROOT / ".github" / "workflows" / "ci.yml"
    if not file.is_file():
        pytest.skip("the source distribution holds no workflow")
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load(file.read_text())["jobs"]["check"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = [
        c.removeprefix("Programming Language :: Python :: ") for c in project["classifiers"] if "Python :: 3." in c
    ]
    assert job["strategy"]["matrix"]["python"] == [known[0], known[-1]]
    steps = [step for step in job["steps"] if step.get("run") == ".ci/run"]
    assert [step["env"] for step in steps] == [{"PYTHON": "python"}]
    assert "${PYTHON:-" in (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@checkout
def test_ci_tries_the_oldest_versions_with_tests_that_exist():
    script = ROOT / ".ci" / "run"
    if not script.is_file():
        pytest.skip("the source distribution holds no CI script")
    text = script.read_text()
    assert "--resolution lowest-direct" in text
    named = [n for group in re.findall(r"tests/test_\{([\w,]+)\}\.py", text) for n in group.split(",")]
    assert len(named) > 10
    assert [n for n in named if not (ROOT / "tests" / f"test_{n}.py").is_file()] == []


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Where a wheel, built from the source distribution as an installer would, was unpacked by pip."""
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("not in a checkout")
    for module in ("build", "hatchling"):
        pytest.importorskip(module)
    if importlib.util.find_spec("pip") is None:
        pytest.skip("this environment has no pip")
    folder = tmp_path_factory.mktemp("wheel")
    # without --sdist or --wheel, build makes the wheel from the source distribution
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    install = ["install", "--quiet", "--no-deps", "--no-compile", "--target", str(target), str(wheel)]
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *install)
    return target


def test_the_wheel_holds_every_file_of_the_package(installed):
    """The wheel made from the source distribution: links at the root, or a line of .gitignore, could cost it files."""

    def files(folder: Path) -> set[str]:
        return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}

    here = {f for f in files(ROOT / "facejax") if not Path(f).name.startswith(".")}
    assert here - files(installed / "facejax") == set()
    assert "py.typed" in here
    left = {p.name for p in installed.iterdir() if not p.name.endswith(".dist-info")} - {"bin"}
    assert left == {"facejax"}  # one name in site-packages


def test_the_wheel_imports_elsewhere(installed, tmp_path):
    code = f"""
import importlib, sys
sys.path.insert(0, {str(installed)!r})
import facejax
assert facejax.__file__.startswith({str(installed)!r}), facejax.__file__
for name in {MODULES!r}:
    importlib.import_module(name)
"""
    run(sys.executable, "-c", code, cwd=tmp_path)


def test_the_wheel_brings_the_command(installed, tmp_path):
    entry = next(installed.glob("*.dist-info")) / "entry_points.txt"
    assert "facejax = facejax.cli:main" in entry.read_text()
    found = run(sys.executable, "-m", "facejax", "--version", cwd=tmp_path, PYTHONPATH=str(installed))
    assert found.strip() == f"facejax {facejax.__version__}"
