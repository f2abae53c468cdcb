"""What MkDocs does beside copying: API pages, the root's pages, links out of `docs/`, and code that leads to its page.

The pages are written for GitHub, where a link is a path in the repository. On the site, one to a page leads to that
page, and one to any other file of the repository leads to GitHub.
"""

import functools
import os.path
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import api
import pages

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
ROOT_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
"""Files of the root that are pages of the site."""

_CODE = re.compile(r"(?<![`\[])`([A-Za-z_][\w.]*)`(?![`\]])")


def on_config(config: "MkDocsConfig") -> "MkDocsConfig":
    """Fills the entry `API` of the navigation."""
    for entry in config.nav or []:
        if "API" in entry:
            entry["API"] = [{wing.package: wing.page} for wing in api.wings()]
    return config


def on_files(files: "Files", *, config: "MkDocsConfig") -> "Files":
    """Adds the pages that are no files of `docs/`."""
    from mkdocs.structure.files import File

    pages = {wing.page: api.page(wing) for wing in api.wings()}
    pages |= {page: (ROOT / source).read_text() for source, page in ROOT_PAGES.items()}
    for page, content in pages.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(text: str, *, page: "Page", config: "MkDocsConfig", files: Any) -> str:
    """Turns the repository's links into the site's, and names of the public surface into links to what they are."""
    uri = page.file.src_uri
    if uri.startswith("api/"):
        return text
    text = pages.map_links(text, lambda target: site_link(target, uri, str(config.repo_url)))
    return pages.map_prose(text, link_names)


def site_link(target: str, page: str, repository: str) -> str:
    """Where a link of a page leads on the site; what is in `docs/`, or nowhere, stays, and MkDocs checks it."""
    path, _, anchor = target.partition("#")
    if not path:
        return target
    sources = {page: source for source, page in ROOT_PAGES.items()}
    file = os.path.normpath((ROOT / sources.get(page, f"docs/{page}")).parent / path)
    inside = os.path.relpath(file, ROOT).replace(os.sep, "/")
    if inside in ROOT_PAGES or inside.startswith("docs/"):
        to = ROOT_PAGES.get(inside, inside.removeprefix("docs/"))
        return os.path.relpath(to, os.path.dirname(page) or ".").replace(os.sep, "/") + (f"#{anchor}" if anchor else "")
    return f"{repository}/blob/main/{inside}" if os.path.exists(file) else target


def link_names(text: str) -> str:
    """Prose whose public names are links: written with their path, or alone if no plain word and of one meaning."""
    return "".join(
        line
        if line.startswith("#")
        else _CODE.sub(lambda m: f"[{m[0]}][{_paths()[m[1]]}]" if m[1] in _paths() else m[0], line)
        for line in text.splitlines(keepends=True)
    )


@functools.cache
def _paths() -> dict[str, str]:
    """What a name may be called, and what its page calls it."""
    paths: dict[str, str] = {}
    meanings: dict[str, set[str]] = {}
    for wing in api.wings():
        for name in wing.names:
            path = f"{wing.package}.{name.name}"
            paths |= {path: path, f"{name.home}.{name.name}": path}
            meanings.setdefault(name.name, set()).add(f"{name.home}.{name.name}")
    alone = {name: paths[homes.pop()] for name, homes in meanings.items() if len(homes) == 1}
    return paths | {name: path for name, path in alone.items() if "_" in name or name != name.lower()}
