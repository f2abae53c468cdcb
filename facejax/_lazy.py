"""Packages whose names are loaded on first use (PEP 562), so that importing the package costs next to nothing."""

import ast
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """(`__getattr__`, `__dir__`) of a package that imports what its `__all__` names under `TYPE_CHECKING` only.

    Where a name comes from is read from those very imports, the first time that any is asked for: so type checkers,
    documentation and the running program have one list. A name must not be that of one of the package's own modules,
    which would take its place once imported.
    """

    @functools.cache
    def homes() -> dict[str, str]:
        spec = importlib.util.find_spec(package)
        source = spec.loader.get_source(package)  # type: ignore[union-attr]
        imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
        homes = {alias.name: str(node.module) for node in imports for alias in node.names}
        return {name: home for name, home in homes.items() if name in sys.modules[package].__all__}

    def load(name: str) -> Any:
        if name.startswith("__") or name not in homes():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes()[name]), name)
        setattr(sys.modules[package], name, value)  # found at once the next time
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes()})

    return load, names
