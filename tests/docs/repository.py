"""What the sources promise about themselves: from source text to violations, each with file and line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: The line along which values flow: a module may import from its own stage and from those before it. Of
#: several prefixes that fit a module the longest decides.
STAGES: tuple[tuple[str, ...], ...] = (
    ("fxlrp.errors", "fxlrp.graph", "fxlrp.graph.operators", "fxlrp.graph.elementwise", "fxlrp.graph.view"),
    ("fxlrp.capture",),
    ("fxlrp.graph.live", "fxlrp.graph.residual"),
    ("fxlrp.patterns",),
    ("fxlrp.rules",),
    ("fxlrp.rulesets", "fxlrp.entries", "fxlrp.readings", "fxlrp.published", "fxlrp.places"),
    ("fxlrp.structure",),
    ("fxlrp.plan",),
    ("fxlrp.rewrite",),
    (
        "fxlrp.targets",
        "fxlrp.ledger",
        "fxlrp.cache",
        "fxlrp.attribution",
        "fxlrp.attribute",
        "fxlrp.generated",
        "fxlrp.generation",
        "fxlrp.model",
        "fxlrp.readout",
    ),
    ("fxlrp.comparison",),
    ("fxlrp",),
    (
        "fxlrp.report",
        "fxlrp.testing",
        "fxlrp.evaluate",
        "fxlrp.checkpoints",
        "fxlrp.texts",
        "fxlrp.plots",
        "fxlrp.options",
        "fxlrp.shipped",
        "fxlrp.cli",
        "fxlrp.__main__",
    ),
)
#: Result objects have methods that show them, and a comparison measures: both reach forward when they are called.
LATE = {
    ("fxlrp.attribution", "fxlrp.report"),
    ("fxlrp.comparison", "fxlrp.evaluate"),
    ("fxlrp.generated", "fxlrp.report"),
}

#: What knows no model: everything from capture to read-out.
ENGINE = (
    "capture",
    "graph",
    "patterns",
    "rules",
    "rewrite",
    "rulesets.py",
    "readings.py",
    "published.py",
    "places.py",
    "readout",
    "entries.py",
    "structure.py",
    "plan.py",
    "cache.py",
    "model.py",
    "attribution.py",
    "attribute.py",
    "ledger.py",
    "targets.py",
)
ARCHITECTURES = re.compile(
    "llama|bert|electra|gpt|neox|bloom|falcon|mistral|mixtral|qwen|gemma|olmo|cohere|stablelm|starcoder|mamba|pegasus|convnext|resnet|"
    r"dinov2|wav2vec|whisper|mpnet|\bbart\b|\bt5\b|\bvit\b|\bdeit\b|\bbeit\b|\bswin\b|\bopt\b|\bphi\d?\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Import:
    """One import of a module of the package by another; ``late`` if it happens inside a function."""

    importer: str
    imported: str
    line: int
    late: bool


def sources() -> dict[str, str]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((ROOT / "fxlrp").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


def imports(modules: Mapping[str, str]) -> Iterator[Import]:
    """All imports among ``modules`` that happen at run time (those for type checkers do not)."""
    for name, text in modules.items():
        for node, late in _run_time(ast.parse(text), late=False):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield Import(name, inner if inner in modules else node.module, node.lineno, late)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(name, alias.name, node.lineno, late)


def _run_time(node: ast.AST, late: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child, late
        yield from _run_time(child, late or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))


def stage(module: str) -> int | None:
    """The place of a module on the line, None if it is not one of ours."""
    fitting = [
        (len(p), i)
        for i, group in enumerate(STAGES)
        for p in group
        if module == p or (module.startswith(p + ".") and p != "fxlrp")
    ]
    return max(fitting)[1] if fitting else None


def forward_imports(modules: Mapping[str, str]) -> list[str]:
    """Imports that point forward along the line, and modules that have no place on it."""
    wrong = [f"{name} has no place in STAGES" for name in modules if stage(name) is None]
    for each in imports(modules):
        here, there = stage(each.importer), stage(each.imported)
        package = ".".join(each.imported.split(".")[:2])
        if here is None or there is None or there <= here or (each.late and (each.importer, package) in LATE):
            continue
        wrong.append(f"{each.importer}:{each.line} imports {each.imported}, which comes after it")
    return wrong


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


def engine(modules: Mapping[str, str]) -> dict[str, str]:
    """The modules that may not know any architecture."""
    names = {f"fxlrp.{part.removesuffix('.py')}" for part in ENGINE}
    return {name: text for name, text in modules.items() if ".".join(name.split(".")[:2]) in names}
