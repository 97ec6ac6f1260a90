"""The manual's pages on rulesets are what ``make rulesets`` writes from the rulesets as they are now."""

from __future__ import annotations

import copy
import json
import sys
from types import ModuleType

import pytest
import torch

import fxlrp
from benchmarks import precision
from fxlrp.report.descriptions import describe
from tests.docs import pages


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    folder = str(pages.ROOT / "docs")
    sys.path.insert(0, folder)
    try:
        import ruleset_pages
    finally:
        sys.path.remove(folder)
    return ruleset_pages


@pytest.fixture(scope="module")
def made(writer: ModuleType) -> dict[str, str]:
    return dict(writer.pages())


def test_every_page_is_current(writer: ModuleType, made: dict[str, str]) -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in writer.FOLDER.glob("*.md")}
    stale = sorted({name for name in {*made, *written} if made.get(name) != written.get(name)})
    assert not stale, "run `make rulesets` (python docs/ruleset_pages.py) and commit what it writes"


def test_every_ruleset_has_a_page_and_a_row_in_every_table(writer: ModuleType, made: dict[str, str]) -> None:
    assert {*made} == {"index.md", *(f"{name}.md" for name in fxlrp.rulesets())}
    tables = 1 + len(writer.specimens.TABLES)
    for name in fxlrp.rulesets():
        assert made["index.md"].count(f"\n| [`{name}`]({name}.md) |") == tables


def test_a_page_says_where_each_line_stands(made: dict[str, str]) -> None:
    page = made["attnlrp.md"]
    assert "| `softmax` | [taylor](../reference/rules.md#taylor) | R\\_x = x (R\\_s - s sum R\\_s)" in page
    assert "| `attnlrp` |" in page
    (quotient,) = [line for line in page.splitlines() if line.startswith("| `quotient` |")]
    assert quotient.endswith("| `_base` |")
    assert "| `softmax` | [constant](../reference/rules.md#constant) | *a line above decides* |" in page


def test_a_changed_ruleset_changes_its_page(writer: ModuleType, made: dict[str, str]) -> None:
    changed = describe(fxlrp.ruleset("attnlrp").override(softmax="constant"))
    assert writer.page(changed) != made["attnlrp.md"]


def test_the_matrix_reads_plans(writer: ModuleType) -> None:
    cells = {
        (row[0], column.title): rule
        for title, rows in writer.specimens.matrix(["attnlrp", "ali2022", "chefer2021-vit"]).items()
        for row in rows
        for column, rule in zip(writer.specimens.TABLES[title], row[1:], strict=True)
    }
    assert cells["attnlrp", "softmax"] == "taylor"
    assert cells["attnlrp", "linear layer"] == writer.specimens.PLAIN
    assert cells["ali2022", "softmax"] == "constant"
    assert cells["ali2022", "scores q kᵀ"] == writer.specimens.NOTHING  # nothing passes the constant weights
    assert cells["chefer2021-vit", "residual sum"] == "normalised_add"
    assert cells["chefer2021-vit", "where its branches part"] == "epsilon"


def test_every_column_has_operations_in_its_specimen(writer: ModuleType) -> None:
    for columns in writer.specimens.TABLES.values():
        for column in columns:
            assert writer.specimens.cell("gradient", column) != writer.specimens.NOTHING, column.title


def test_stale_pages_are_rewritten_and_those_of_gone_rulesets_removed(
    writer: ModuleType, made: dict[str, str], tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "FOLDER", tmp_path)
    monkeypatch.setattr(writer, "pages", lambda: iter(made.items()))
    assert writer.write() == sorted(made)
    assert writer.write() == []
    (tmp_path / "gradient.md").write_text("old")
    (tmp_path / "gone.md").write_text("old")
    assert writer.write() == ["gone.md", "gradient.md"]
    assert {path.name for path in tmp_path.glob("*")} == {*made}


def test_every_page_states_its_error_by_type_and_none_is_of_more_than_a_twentieth(writer: ModuleType) -> None:
    """Above that a call in that type would have to warn, or to be computed in float32."""
    stated = json.loads(writer.PRECISION.read_text(encoding="utf-8"))
    assert {*stated} == {*fxlrp.rulesets()}
    for errors in stated.values():
        assert {*errors} == {"float32", "float16", "bfloat16"}
        found = [error for by_model in errors.values() for error in by_model.values() if error is not None]
        assert found
        assert max(found) < 0.05


@pytest.mark.parametrize("name", ["deconvnet", "guided-backprop", "smoothgrad", "pa-lrp", "full-lrp"])
def test_a_page_states_the_error_of_a_run(writer: ModuleType, name: str) -> None:
    """Rounding differs from machine to machine, by less than a factor of 30."""
    stated = json.loads(writer.PRECISION.read_text(encoding="utf-8"))[name]["bfloat16"]["BERT"]
    with torch.random.fork_rng(devices=[]):
        narrow = precision.bert().to(torch.bfloat16)
    error = precision.error(name, fxlrp.convert(narrow), fxlrp.convert(copy.deepcopy(narrow).double()))
    assert error is not None
    assert stated / 30 < error < 30 * stated
