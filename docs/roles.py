"""Prepares docstrings for the manual, where Markdown would read them wrongly."""

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
