"""What mutants patch, read from their sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.repository.sources import ROOT

PRIVATE = re.compile(r"_[A-Za-z]\w*")  # dunder methods are the language's own, thus public
PATCHES = {"attribute", "entry", "setattr", "setitem", "delattr", "delitem"}


def patching_sources() -> dict[str, str]:
    """The text of every test file that patches, by its path."""
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / "tests").rglob("*.py"))}
    return {path: text for path, text in texts.items() if re.search(r"\bMutant\b|\bmonkeypatch\b|\bsetattr\(", text)}


def private_patches(text: str, everywhere: bool) -> list[str]:
    """The private names, with their lines, that a file patches, or with ``everywhere`` reads from other objects."""
    tree = ast.parse(text)
    nodes = ast.walk(tree) if everywhere else (inner for call in _patches(tree) for inner in ast.walk(call))
    found = {(node.lineno, name) for node in nodes for name in _private(node)}
    found |= {(call.lineno, name) for call in _patches(tree) for name in _strings(call)}
    return [f"{line}: {name}" for line, name in sorted(found)]


def _patches(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in PATCHES:
            yield node


def _private(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Attribute) and PRIVATE.fullmatch(node.attr):
        yield node.attr


def _strings(call: ast.Call) -> Iterator[str]:
    for argument in call.args[:2]:
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            name = argument.value.rsplit(".", 1)[-1]
            if PRIVATE.fullmatch(name):
                yield name
