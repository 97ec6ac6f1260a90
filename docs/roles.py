"""Prepares docstrings and names for the manual, where static analysis or Markdown would read them wrongly."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`~?([^`]+)`")


class PlainRoles(griffe.Extension):
    """Sphinx roles (``:class:`Plan```) and double backticks become the plain code that Markdown knows."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value).replace("``", "`")


class ShadowedFunctions(griffe.Extension):
    """A package's function that has the name of one of its modules is found with ``()`` behind."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: dict[str, griffe.Function] = {}

    def on_function_instance(self, *, func: griffe.Function, **kwargs: Any) -> None:
        self.functions[func.path] = func

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for path, function in self.functions.items():
            package, _, name = path.rpartition(".")
            if package == pkg.path and pkg.members[name].is_module:
                pkg.members[f"{name}()"] = function
