"""Writes the reference pages from the package itself, and checks that the built site needs no network.

In: the tables of rules, patterns and operators. Out: one generated page for each table. The pages on rulesets
are files of their own, which ``make rulesets`` writes (``ruleset_pages.py``).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from writing import joined, linked, plain, prose, table

import fxlrp
from fxlrp.graph.operators import OPERATORS, Dependence
from fxlrp.patterns import PATTERNS, Pattern
from fxlrp.rules import RULES, Conserves, Rule
from fxlrp.rules.rule import ALIASES

CONSERVES = {
    Conserves.EXACTLY: "exactly",
    Conserves.WITH_LEAK: "with a declared leak",
    Conserves.DIFFERENCES: "differences from a reference",
    Conserves.NOTHING: "passes nothing on",
}


# --- mkdocs events ----------------------------------------------------------------------------------------


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for path, text in pages():
        files.append(File.generated(config, path, content=text))
    return files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List every ruleset in the navigation, where it names their folder."""
    config.nav = [_filled(item) for item in config.nav or []]
    return config


def _filled(item: Any) -> Any:
    if isinstance(item, dict):
        return {title: _filled(value) for title, value in item.items()}
    if isinstance(item, list):
        return [_filled(value) for value in item]
    if item == "rulesets/":
        return [{"All rulesets": item + "index.md"}, *({name: f"{item}{name}.md"} for name in fxlrp.rulesets())]
    return item


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that loads a script, a style, a font or a picture from a network."""
    for page in Path(config.site_dir).rglob("*.html"):
        for tag in external(page.read_text(encoding="utf-8")):
            raise PluginError(f"{page.relative_to(config.site_dir)} needs a network: {tag}")


def external(html: str) -> Iterator[str]:
    """The tags of a page that would load something from another host; links to click on are none."""
    for tag in re.findall(r"<(?:script|link|img|iframe|source|video)\b[^>]*>", html):
        if re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag) and 'rel="canonical"' not in tag:
            yield tag
    yield from re.findall(r"@import[^;]*//[^;]*;|url\(['\"]?(?:https?:)?//[^)]*\)", html)


# --- pages ------------------------------------------------------------------------------------------------


def pages() -> Iterator[tuple[str, str]]:
    """Path and Markdown of every generated page."""
    yield "reference/rules.md", rules_page()
    yield "reference/patterns.md", patterns_page()
    yield "reference/operators.md", operators_page()


def rules_page() -> str:
    """All rules: a table, then a section each."""
    rows = [
        (f"[{r.name}](#{r.name})", ", ".join(map(str, r.on)), CONSERVES[r.conserves], plain(str(r.source)))
        for r in RULES.values()
    ]
    return joined(
        "# Rules",
        "Every rule is one function in `fxlrp/rules/`; this page is written from them. In the formulas x "
        "is an input of an operation, y its output, R relevance, and g the message with R = x · g.",
        table(("rule", "for", "conserves", "source"), rows),
        *(rule_section(each) for each in RULES.values()),
    )


def rule_section(each: Rule) -> str:
    """One rule: formula, classes, promise, leak, source, parameters, and who uses it."""
    aliases = [alias for alias, name in ALIASES.items() if name == each.name]
    users = [name for name in fxlrp.rulesets() if any(e.bound[0] is each for e in fxlrp.ruleset(name).rules)]
    facts = [
        ("for operations of class", ", ".join(linked(str(category), "operators.md") for category in each.on)),
        ("conserves", f"{CONSERVES[each.conserves]}: {plain(each.conserves.value)}"),
        ("source", plain(str(each.source))),
        ("used by", ", ".join(linked(name, f"../rulesets/{name}.md") for name in users)),
        ("also called", ", ".join(f"`{alias}`" for alias in aliases)),
    ]
    if each.leak is not None:
        facts.insert(2, ("leak", f"**{each.leak_kind}** in the ledger. {prose(each.leak.__doc__)}"))
    options = [(f"`{name}`", f"`{p.default!r}`", str(p.annotation)) for name, p in each.parameters.items()]
    return joined(
        f"## {each.name} {{ #{each.name} }}",
        prose(each.doc),
        "\n".join(f"- {name}: {text}" for name, text in facts if text),
        table(("parameter", "default", "type"), options) if options else "It takes no parameters.",
    )


def patterns_page() -> str:
    """All patterns, grouped by the name that rulesets use."""
    sections = [
        joined(f"## {name} {{ #{name} }}", *(pattern_text(each) for each in group)) for name, group in PATTERNS.items()
    ]
    return joined(
        "# Patterns",
        "What rulesets can speak of above the operator classes. Each pattern is written as the torch code "
        "it looks for, in `fxlrp/patterns/`; a ruleset names it (`norm`) or one of its parts (`norm.scale`). "
        "[Add a pattern](../how-to/add-a-pattern.md) says how to write one. Beside these there is "
        "`residual`, the sum of a skip connection and what it skips, which is found by the shape of the "
        "graph.",
        *sections,
    )


def pattern_text(each: Pattern) -> str:
    """One pattern: its docstring, its parts and its code."""
    parts = sorted(each.parts)
    named = "Parts: " + ", ".join(f"`{each.name}.{part}`" for part in parts) + "." if parts else ""
    code = dedent(inspect.getsource(each.code))
    return joined(f"**{each.code.__name__}**: {prose(each.doc)} {named}", f"```python\n{code}```")


def operators_page() -> str:
    """The operator classes and the ATen operators in each."""
    groups: dict[str, tuple[Dependence, list[str]]] = {}
    for target, operator in OPERATORS.items():
        groups.setdefault(str(operator.category), (operator.dependence, []))[1].append(
            getattr(target, "__name__", str(target))
        )
    rows = [
        (f'<span id="{name}">`{name}`</span>', plain(dependence.value), ", ".join(f"`{op}`" for op in names))
        for name, (dependence, names) in groups.items()
    ]
    return joined(
        "# Operator classes",
        "What fxlrp knows about single operators: the class by which rulesets name them, and how they "
        "depend on their arguments. Which class an operation has in a graph also depends on which of its "
        "arguments carry relevance. An elementwise product of which only one factor does is a `scale`. A "
        "matrix product of which only one does is `linear` if the other is a weight, and `mixing` if it "
        "was computed from the inputs. A quotient is a `scale` if only its numerator does, and `singular` "
        "if only its denominator does. A sum of which only one term does is a `shift`, and what is said of an `add` "
        "holds of it; the choice of some entries of an axis is an `index`, and what is said of a `movement` holds. "
        "Where a skip connection begins, a rule for `fork` applies to what arrives from both ways.",
        table(("class", "dependence on its arguments", "ATen operators"), rows),
    )
