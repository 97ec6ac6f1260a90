"""What the sources promise about themselves: from source text to violations, each with file and line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).parents[2]

#: The corridor, bottom to top: a module may import from its own package and from those before it.
CORRIDOR = (
    "errors",
    "graph",
    "capture",
    "rules",
    "patterns",
    "spec",
    "planning",
    "rewrite",
    "engine",
    "readout",
    "results",
    "explain",
    "testing",
    "evaluate",
    "report",
    "shipped",
    "app",
)
#: What knows no model: everything from capture to what a user calls.
ENGINE = CORRIDOR[: CORRIDOR.index("testing")]
#: The face of the package and its command stand above all rooms.
TOP = ("fxlrp", "fxlrp.__main__")

ARCHITECTURES = re.compile(
    "llama|bert|electra|gpt|neox|bloom|falcon|mistral|mixtral|qwen|gemma|olmo|cohere|stablelm|starcoder|mamba|pegasus|convnext|resnet|"
    r"dinov2|wav2vec|whisper|mpnet|\bbart\b|\bt5\b|\bvit\b|\bdeit\b|\bbeit\b|\bswin\b|\bopt\b|\bphi\d?\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Import:
    """One import of a module of the package by another, wherever it stands: at load, in a function, for types."""

    importer: str
    imported: str
    line: int


def sources() -> dict[str, str]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((ROOT / "fxlrp").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


def imports(modules: Mapping[str, str]) -> Iterator[Import]:
    """All imports among ``modules``: those at load, those inside functions, those for type checkers."""
    for name, text in modules.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield Import(name, inner if inner in modules else node.module, node.lineno)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(name, alias.name, node.lineno)


def floor(module: str) -> int | None:
    """The place of a module in the corridor, None if it has none."""
    if module in TOP:
        return len(CORRIDOR)
    package = module.split(".")[1]
    return CORRIDOR.index(package) if package in CORRIDOR else None


def upward_imports(modules: Mapping[str, str]) -> list[str]:
    """Imports that point up the corridor, and modules that have no place in it."""
    wrong = [f"{name} has no place in CORRIDOR" for name in modules if floor(name) is None]
    for each in imports(modules):
        if each.imported not in modules:
            continue
        here, there = floor(each.importer), floor(each.imported)
        if here is not None and there is not None and there > here:
            wrong.append(f"{each.importer}:{each.line} imports {each.imported}, which stands above it")
    return wrong


def circles(modules: Mapping[str, str]) -> list[list[str]]:
    """Modules that need each other, by imports of any kind."""
    needed = nx.DiGraph((each.importer, each.imported) for each in imports(modules) if each.imported in modules)
    rings = [sorted(ring) for ring in nx.strongly_connected_components(needed) if len(ring) > 1]
    return sorted(rings) + [[name] for name in nx.nodes_with_selfloops(needed)]


def undocumented(modules: Mapping[str, str]) -> list[str]:
    """Public modules, functions, classes and methods without a docstring. Magic methods need none."""
    wrong = []
    for name, text in modules.items():
        tree = ast.parse(text)
        if ast.get_docstring(tree) is None:
            wrong.append(f"{name} has no docstring")
        wrong.extend(f"{name}:{line} {what} has no docstring" for what, line in _bare(tree, ""))
    return wrong


def _bare(scope: ast.AST, path: str) -> Iterator[tuple[str, int]]:
    for node in ast.iter_child_nodes(scope):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None and not _needs_none(node, scope):
            yield path + node.name, node.lineno
        if isinstance(node, ast.ClassDef):
            yield from _bare(node, f"{path}{node.name}.")


def _needs_none(node: ast.AST, scope: ast.AST) -> bool:
    """Overrides of a method that another library's base class documents."""
    return (
        isinstance(scope, ast.ClassDef)
        and bool(scope.bases)
        and getattr(node, "name", "") in ("forward", "backward", "invoke")
    )


def architectures_named(modules: Mapping[str, str]) -> list[str]:
    """Identifiers and strings that name an architecture; docstrings and comments may."""
    wrong = []
    for name, text in modules.items():
        tree = ast.parse(text)
        documentation = set(_docstrings(tree))
        for node in ast.walk(tree):
            for word in _words(node, documentation):
                if ARCHITECTURES.search(word.replace("_", " ")):
                    wrong.append(f"{name}:{getattr(node, 'lineno', 0)} says '{word}'")
    return wrong


def _docstrings(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield id(node.value)


def _words(node: ast.AST, documentation: set[int]) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
        yield node.value
    for field in ("id", "attr", "arg", "name", "module"):
        value = getattr(node, field, None)
        if isinstance(value, str):
            yield value


def operators_spelled(modules: Mapping[str, str]) -> list[str]:
    """Names of ATen operators outside the table of operators and capture; docstrings and comments may have them."""
    wrong = []
    for name, text in modules.items():
        if name == "fxlrp.graph.operator_table" or name.startswith("fxlrp.capture"):
            continue
        tree = ast.parse(text)
        documentation = set(_docstrings(tree))
        for node in ast.walk(tree):
            if any(re.search(r"\baten\b", word) for word in _words(node, documentation)):
                wrong.append(f"{name}:{getattr(node, 'lineno', 0)} spells an ATen operator")
    return wrong


def engine(modules: Mapping[str, str]) -> dict[str, str]:
    """The modules that may not know any architecture."""
    return {name: text for name, text in modules.items() if name not in TOP and name.split(".")[1] in ENGINE}


#: The one module that may reach for what torch and transformers keep to themselves.
PRIVATE_ROOM = "fxlrp.capture.torch_private"
#: Modules without an underscore that are promised no more than those with one.
_UNPROMISED = ("torch.fx.experimental", "torch.ao")
#: Of transformers, what its manual documents under a path of its own.
_PROMISED = ("transformers.utils",)
_PRIVATE_ATTRIBUTES = ("_guards_code",)


def private_apis(modules: Mapping[str, str]) -> list[str]:
    """Imports and uses of private names of torch and transformers outside the room that checks them."""
    wrong = []
    for name, text in modules.items():
        if name == PRIVATE_ROOM:
            continue
        for node in ast.walk(ast.parse(text)):
            wrong.extend(f"{name}:{node.lineno} uses {path}" for path in _paths(node) if _is_private(path))
    return sorted(set(wrong))


def _paths(node: ast.AST) -> Iterator[str]:
    """The dotted names of other packages that a line imports or spells out."""
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.Attribute):
        parts, value = [node.attr], node.value
        while isinstance(value, ast.Attribute):
            parts.append(value.attr)
            value = value.value
        root = value.id if isinstance(value, ast.Name) else ""
        yield ".".join([root, *reversed(parts)])
    elif isinstance(node, ast.Constant) and node.value in _PRIVATE_ATTRIBUTES:
        yield f".{node.value}"


def _is_private(path: str) -> bool:
    root, *rest = path.split(".")
    if rest and rest[-1] in _PRIVATE_ATTRIBUTES:
        return True
    if root not in ("torch", "transformers") or rest[:1] == ["ops"]:
        return False
    unpromised = any(f"{path}.".startswith(f"{each}.") for each in _UNPROMISED)
    deep = root == "transformers" and any(part.islower() for part in rest) and not path.startswith(_PROMISED)
    return unpromised or deep or any(re.match("_(?!_)", part) for part in rest)
