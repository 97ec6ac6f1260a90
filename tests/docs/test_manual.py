"""The manual has a place for every rule, ruleset, pattern and public name, and needs no network."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from types import ModuleType

import pytest

import fxlrp
from fxlrp.graph.operators import OPERATORS
from fxlrp.patterns import PATTERNS
from fxlrp.planning.plan import Decision, Plan, PlanRow
from fxlrp.rules import RULES
from tests.docs import pages


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    pytest.importorskip("mkdocs", reason="the generator of the manual is not installed: pip install -e '.[docs]'")
    with pytest.MonkeyPatch.context() as patch:  # mkdocs as well lets a hook import the files beside it
        patch.syspath_prepend(pages.ROOT / "docs")
        return _loaded()


def _loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", pages.ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_navigation_lists_every_ruleset(hooks: ModuleType) -> None:
    listed = hooks._filled({"Reference": [{"Rulesets": "rulesets/"}]})["Reference"][0]["Rulesets"]
    assert [path for item in listed for path in item.values()][1:] == [f"rulesets/{n}.md" for n in fxlrp.rulesets()]


def test_every_table_is_rendered_whole(hooks: ModuleType) -> None:
    made = dict(hooks.pages())
    assert all(f"{{ #{name} }}" in made["reference/rules.md"] for name in RULES)
    assert all(f"{{ #{name} }}" in made["reference/patterns.md"] for name in PATTERNS)
    assert all(f'id="{operator.category}"' in made["reference/operators.md"] for operator in OPERATORS.values())


def test_formulas_survive_markdown(hooks: ModuleType) -> None:
    assert hooks.plain("sum_j W_ij * x_j < [1]") == r"sum\_j W\_ij \* x\_j &lt; \[1\]"
    assert hooks.prose("``a_b`` is :class:`Plan` x_i") == r"`a_b` is `Plan` x\_i"


def test_a_page_that_needs_a_network_is_found(hooks: ModuleType) -> None:
    assert not list(hooks.external('<a href="https://arxiv.org">x</a><script src="assets/x.js"></script>'))
    for bad in (
        '<script src="https://unpkg.com/x"></script>',
        "<link rel=stylesheet href=//fonts.x>",
        "<style>@import '//x.y/z.css';</style>",
    ):
        assert list(hooks.external(bad))


def test_every_public_name_has_a_place_in_the_interface() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in (pages.ROOT / "docs" / "api").glob("*.md"))
    listed = set(re.findall(r"^::: (\S+)", text, re.MULTILINE))
    missing = [name for name in fxlrp.__all__ if not {*_places(name)} & listed]
    assert not missing


def _places(name: str) -> tuple[str, ...]:
    """Where a public name may be documented: in the package, at its definition, or with its module."""
    home = getattr(fxlrp, name).__module__
    return f"fxlrp.{name}", f"{home}.{name}", home


@pytest.mark.parametrize(
    "described",
    [fxlrp.Attribution, fxlrp.GenerationAttribution, Plan, PlanRow, Decision],
    ids=lambda described: described.__name__,
)
def test_every_field_is_described(described: type) -> None:
    text = (described.__doc__ or "").split("Attributes:")[-1]
    assert re.findall(r"^ {8}(\w+): ", text, re.MULTILINE) == [each.name for each in dataclasses.fields(described)]


def test_the_forms_of_a_target_stand_where_a_reader_looks() -> None:
    text = fxlrp.ConvertedModel.attribute.__doc__ or ""
    for form in (
        "``None``",
        "an int",
        "``(position, class)``",
        "a list, or a tensor",
        "a function of the output object",
    ):
        assert f"- {form}" in text
