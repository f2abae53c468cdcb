"""What MkDocs does beside copying: API pages, the root's pages, links out of `docs/`, and code that leads to its page.

The pages are written for GitHub, where a link is a path in the repository. On the site, one to a page leads to that
page, and one to any other file of the repository leads to GitHub.
"""

import os.path
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


def on_config(config: "MkDocsConfig") -> "MkDocsConfig":
    """Fills the entry `API` of the navigation."""
    for entry in config.nav or []:
        if "API" in entry:
            entry["API"] = [{wing.package: wing.page} for wing in api.wings()]
    return config


def on_files(files: "Files", *, config: "MkDocsConfig") -> "Files":
    """Adds the pages that are no files of `docs/`."""
    from mkdocs.structure.files import File

    texts = {wing.page: api.page(wing) for wing in api.wings()}
    texts |= {page: (ROOT / source).read_text() for source, page in ROOT_PAGES.items()}
    for page, content in texts.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(text: str, *, page: "Page", config: "MkDocsConfig", files: Any) -> str:
    """Turns the repository's links into the site's, and names of the public surface into links to what they are."""
    uri = page.file.src_uri
    if uri.startswith("api/"):
        return text
    text = pages.map_links(text, lambda target: site_link(target, uri, str(config.repo_url)))
    return pages.map_prose(text, api.link_names)


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
