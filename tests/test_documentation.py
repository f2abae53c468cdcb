"""The documentation is whole: every public name has a page and a docstring, every link leads somewhere."""

import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HELPERS = ROOT / "docs" / "mkdocs"

if not HELPERS.is_dir():
    pytest.skip("not in a checkout", allow_module_level=True)


def helper(name: str):
    """A module of the site's own code, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", HELPERS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


api, pages = helper("api"), helper("pages")
WINGS = {wing.package: wing for wing in api.wings()}
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
GUIDES = sorted(page.name for page in ROOT.glob("docs/*.md") if page.name != "index.md")


def test_every_wing_offers_names():
    packages = {f"facejax.{init.parent.name}" for init in ROOT.glob("facejax/*/__init__.py")}
    below = {
        f"facejax.{i.parts[-3]}.{i.parts[-2]}"
        for i in ROOT.glob("facejax/*/*/__init__.py")
        if "__all__" in i.read_text()
    }
    assert set(WINGS) == {"facejax", *packages, *below} - set(api.WITHOUT_NAMES)
    assert "facejax.fitting.terms" in below
    assert [package for package, wing in WINGS.items() if not wing.names] == []


@pytest.mark.parametrize("package", WINGS)
def test_the_names_of_a_wing_are_there_and_each_has_a_place_on_its_page(package):
    module = importlib.import_module(package)
    offered = set(module.__all__) - set(api.PLAIN)
    for name in offered:
        value = getattr(module, name)
        # a module of that name would take the name's place as soon as anybody imports it
        assert importlib.util.find_spec(f"{package}.{name}") is None, f"{package}.{name} is a module, too: {value}"
    directives = re.findall(r"^::: (\S+)$", api.page(WINGS[package]), re.M)
    assert sorted(directives) == sorted(f"{package}.{name}" for name in offered)
    assert offered <= set(dir(module))
    assert not hasattr(module, "no_such_name")


@pytest.mark.parametrize("package", WINGS)
def test_every_public_name_says_what_it_is(package):
    silent = [name.name for name in WINGS[package].names if len(name.docstring.split()) < 3]
    assert silent == []
    assert WINGS[package].docstring


def test_a_name_without_a_docstring_is_noticed(tmp_path, monkeypatch):
    """Through an import in another module, and with constants, whose docstring stands below them."""
    (tmp_path / "wing").mkdir()
    init = 'from facejax.wing.shown import A, f\n__all__ = ["A", "B", "f"]\nB = 1\n"""A number."""\n'
    (tmp_path / "wing" / "__init__.py").write_text(init)
    (tmp_path / "wing" / "shown.py").write_text('def f():\n    """What f does."""\n\nA = 2\n')
    monkeypatch.setattr(api, "PACKAGE", tmp_path.rename(tmp_path.with_name("facejax")))
    found = {name.name: (name.home, name.docstring) for name in api.wing("facejax.wing").names}
    home = "facejax.wing.shown"
    assert found == {"A": (home, ""), "B": ("facejax.wing", "A number."), "f": (home, "What f does.")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in pages.links(page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in pages.anchors(target.read_text()), link


def test_links_and_anchors_are_found():
    text = "# A Title: `x`\n[a](b.md) ![c](d.png) [e](https://f.g)\n```\n[h](i.md)\n# no title\n```\n[j](#k)\n"
    assert pages.links(text) == ["b.md", "d.png", "#k"]
    assert pages.anchors(text) == {"a-title-x"}


@pytest.fixture
def hooks(monkeypatch):
    monkeypatch.syspath_prepend(str(HELPERS))
    for name in ("api", "pages"):
        monkeypatch.setitem(sys.modules, name, globals()[name])
    return helper("hooks")


@pytest.mark.parametrize(
    ("page", "link", "on_the_site"),
    [
        ("index.md", "../CONTRIBUTING.md#documentation", "contributing.md#documentation"),
        ("contributing.md", "docs/architecture.md", "architecture.md"),
        ("contributing.md", "LICENSE", "https://x/blob/main/LICENSE"),
        ("results/tracking.md", "../../CHANGELOG.md", "../changes.md"),
        ("results/tracking.md", "../papers/deep-lighting.md#a", "../papers/deep-lighting.md#a"),
        ("training.md", "../facejax/training/engine.py", "https://x/blob/main/facejax/training/engine.py"),
        ("training.md", "#limits", "#limits"),
        ("training.md", "nowhere.md", "nowhere.md"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(hooks, page, link, on_the_site):
    assert hooks.site_link(link, page, "https://x") == on_the_site


def test_names_become_links_to_what_they_are():
    text = "# `make_renderer`\n`make_renderer`, `facejax.data.results.TrackResult`, `display` and [`psnr`](a.md)\n"
    assert api.link_names(text) == (
        "# `make_renderer`\n[`make_renderer`][facejax.renderers.make_renderer], "
        "[`facejax.data.results.TrackResult`][facejax.data.TrackResult], `display` and [`psnr`](a.md)\n"
    )


def test_what_is_said_of_arguments_becomes_a_list():
    text = "What it does.\n\na: one thing\n    or two.\nb, c: more. Note: d.\nd: x\n"
    listed = "What it does.\n\n- `a`: one thing\n    or two.\n- `b, c`: more. Note: d.\nd: x\n"
    assert pages.list_arguments(text, ["a", "b", "c"]) == listed
    assert pages.list_arguments("Text\na: one", ["a"]) == "Text\n\n- `a`: one"


@pytest.mark.parametrize("place", ["README.md", "docs/index.md"])
def test_the_front_pages_lead_to_every_guide(place):
    linked = {Path(link).name for link in pages.links((ROOT / place).read_text())}
    assert set(GUIDES) - linked == set()


def test_the_navigation_holds_every_page():
    navigation = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r"^ +- [^:\n]+: (\S+\.md)$", navigation, re.M))
    written = {str(page.relative_to(ROOT / "docs")) for page in PAGES if ROOT / "docs" in page.parents}
    assert listed - {"contributing.md", "changes.md"} == written


def test_the_gallery_shows_every_picture_and_how_it_is_made():
    sections = (ROOT / "docs" / "gallery.md").read_text().split("\n## ")[1:]
    shown = [link for section in sections for link in pages.links(section) if link.endswith(".png")]
    assert sorted(shown) == sorted(f"images/{picture.name}" for picture in ROOT.glob("docs/images/*.png"))
    assert [section.splitlines()[0] for section in sections if "```bash\n" not in section] == []
