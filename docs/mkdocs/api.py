"""The public surface of facejax and the pages about it, found in the source: nothing is imported, nothing is listed.

A *wing* is `facejax` itself, a package directly below it, or one below those that has an `__all__`, which holds its
public names. Every wing gets a page with one directive for each name: a new wing or a new name needs no line here.
"""

import ast
import dataclasses
import functools
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "facejax"
WITHOUT_NAMES = ("facejax.apps",)
"""Wings that people reach by commands: they offer no names."""
PLAIN = ("__version__",)
"""Names that say all about themselves."""

_CODE = re.compile(r"(?<![`\[])`([A-Za-z_][\w.]*)`(?![`\]])")


@dataclasses.dataclass(frozen=True)
class Name:
    """A public name: where it is defined, and its docstring there ("" for none)."""

    name: str
    home: str
    docstring: str


@dataclasses.dataclass(frozen=True)
class Wing:
    """A package that offers names; `names` are in the order of the modules that define them, and there as written."""

    package: str
    docstring: str
    names: tuple[Name, ...]

    @property
    def page(self) -> str:
        """Path of its page, from the documentation's root."""
        return f"api/{self.package.removeprefix('facejax.')}.md"


def wings() -> tuple[Wing, ...]:
    """Every wing, the package itself first."""
    inits = sorted(PACKAGE.glob("*/__init__.py")) + sorted(PACKAGE.glob("*/*/__init__.py"))
    below = [".".join(init.parent.relative_to(PACKAGE.parent).parts) for init in inits]
    offering = [name for name in below if name.count(".") == 1 or _literal(_tree(name), "__all__")]
    return tuple(wing(package) for package in ("facejax", *sorted(offering)) if package not in WITHOUT_NAMES)


def wing(package: str) -> Wing:
    """What a package's `__init__.py` offers. Raises ValueError for a name whose import is not to be seen there."""
    offered = [name for name in _literal(_tree(package), "__all__") if name not in PLAIN]
    homes = {name: home_of(package, name) for name in offered}
    written = {home: docstrings(home) for home in sorted(set(homes.values()))}
    names = [
        Name(name, home, text)
        for home, found in written.items()
        for name, text in found.items()
        if homes.get(name) == home
    ]
    return Wing(package, ast.get_docstring(_tree(package)) or "", tuple(names))


def home_of(module: str, name: str) -> str:
    """The module that defines what `module` offers by that name, through however many imports."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
            return home_of(str(node.module), name)
    if name not in docstrings(module):
        raise ValueError(f"{module} offers {name!r}, and neither defines nor imports it where it can be seen.")
    return module


@functools.cache
def docstrings(module: str) -> dict[str, str]:
    """The docstring of everything that a module defines, in its order; "" for what has none."""
    body = _tree(module).body
    found = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = ast.get_docstring(node) or ""
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            says = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {t.id: str(after.value.value) if says else "" for t in targets if isinstance(t, ast.Name)}
    return found


def page(wing: Wing) -> str:
    """The page of a wing: a directive for every name, under the title of the module that defines it."""
    lines = [f"# {wing.package}", "", link_names(wing.docstring), ""]
    for home in dict.fromkeys(name.home for name in wing.names):
        if wing.package != "facejax":  # which gathers a few names from everywhere
            title = home.removeprefix(f"{wing.package}.").replace("_", " ").replace(".", ", ")
            lines += [f"## {title.capitalize()}", "", link_names(ast.get_docstring(_tree(home)) or ""), ""]
        lines += [line for name in wing.names if name.home == home for line in (directive(wing, name), "")]
    return "\n".join(lines)


def directive(wing: Wing, name: Name) -> str:
    """What mkdocstrings replaces by the documentation of a name."""
    return f"::: {wing.package}.{name.name}"


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
    for wing in wings():
        for name in wing.names:
            path, defined = f"{wing.package}.{name.name}", f"{name.home}.{name.name}"
            paths |= {path: path, defined: path}
            meanings.setdefault(name.name, set()).add(defined)
    alone = {name: paths[homes.pop()] for name, homes in meanings.items() if len(homes) == 1}
    return paths | {name: path for name, path in alone.items() if "_" in name or name != name.lower()}


@functools.cache
def _tree(module: str) -> ast.Module:
    path = PACKAGE.parent.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(source.read_text())


def _literal(tree: ast.Module, name: str) -> list[str]:
    """The value of a module's constant, which is written out as a list; empty where there is none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return list(ast.literal_eval(node.value))
    return []
