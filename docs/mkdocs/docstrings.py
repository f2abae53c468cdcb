"""Docstrings as Markdown: what is said of each argument becomes a list, and public names become links."""

import inspect
import sys
from pathlib import Path

import griffe

# loaded by its path, so that its neighbours are not found by themselves
sys.path.insert(0, str(Path(__file__).parent))
import api
import pages


class FacejaxDocstrings(griffe.Extension):
    """Changes docstrings as they are read."""

    def on_instance(self, *, obj: griffe.Object, **unused: object) -> None:
        if obj.docstring:
            text = inspect.cleandoc(obj.docstring.value)
            arguments = [p.name for p in obj.parameters] if isinstance(obj, griffe.Function) else []
            obj.docstring.value = api.link_names(pages.list_arguments(text, arguments))
