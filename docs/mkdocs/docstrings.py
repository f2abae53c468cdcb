"""Docstrings of functions as Markdown: what is said of each argument becomes a list."""

import inspect
import sys
from pathlib import Path

import griffe

# loaded by its path, so that its neighbours are not found by themselves
sys.path.insert(0, str(Path(__file__).parent))
import pages


class ArgumentLists(griffe.Extension):
    """Changes the docstrings of functions and methods as they are read."""

    def on_function_instance(self, *, func: griffe.Function, **unused: object) -> None:
        if func.docstring:
            arguments = [parameter.name for parameter in func.parameters]
            func.docstring.value = pages.list_arguments(inspect.cleandoc(func.docstring.value), arguments)
