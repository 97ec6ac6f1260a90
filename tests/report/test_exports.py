"""A report is what the suffix of its name says, with the same numbers in every form."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

import fxlrp
from fxlrp.errors import InputError
from fxlrp.report.exports import as_json, as_plain, export
from fxlrp.results.generation import GenerationAttribution
from tests.report.samples import info

NET = torch.nn.Sequential(torch.nn.Linear(3, 2)).eval()
X = torch.tensor([[1.0, -2.0, 0.5], [0.1, 0.2, 0.3]])


@pytest.fixture(scope="module")
def comparison() -> fxlrp.Comparison:
    return fxlrp.compare(NET, [X], ["epsilon", "gradient"], target=1)


@pytest.fixture(scope="module")
def generation() -> GenerationAttribution:
    ids = torch.zeros(1, 2, dtype=torch.long)
    relevance = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [0.0, 5.0]]])
    return GenerationAttribution(
        relevance=relevance,
        inputs={"input_ids": relevance},
        generated_ids=ids,
        padding=ids.bool(),
        explained=torch.ones(1, 2),
        ruleset=info("epsilon"),
        main="input_ids",
        stream="input_ids",
        start=2,
        names={"input_ids": [["=a", "b", "c"]]},
        generated_tokens=[["c", "d"]],
    )


@pytest.mark.parametrize("name", ["a.html", "a.htm", "a.HTML", "a"])
def test_a_page(name: str, comparison: fxlrp.Comparison, generation: GenerationAttribution, tmp_path: Path) -> None:
    for result in (comparison, generation):
        export(result, tmp_path / name, "title")
        assert (tmp_path / name).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_all_numbers(comparison: fxlrp.Comparison, generation: GenerationAttribution, tmp_path: Path) -> None:
    for result in (comparison, generation):
        export(result, tmp_path / "a.json", "title")
        assert json.loads((tmp_path / "a.json").read_text()) == {"title": "title", **as_plain(result)}


def test_a_table_of_a_comparison(comparison: fxlrp.Comparison, tmp_path: Path) -> None:
    export(comparison, tmp_path / "a.csv", "title")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["ruleset"] for row in rows] == ["epsilon"] * 6 + ["gradient"] * 6
    found = torch.tensor([float(row["relevance"]) for row in rows]).view(2, 2, 3)
    weight = NET[0].weight[1].detach()
    torch.testing.assert_close(found, (X * weight).expand(2, 2, 3), rtol=1e-6, atol=1e-7)


def test_a_table_of_generated_tokens(generation: GenerationAttribution, tmp_path: Path) -> None:
    export(generation, tmp_path / "a.csv", "title")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = [(row["token"], row["generated_token"], float(row["relevance"])) for row in csv.DictReader(file)]
    assert rows == [
        *(("'=a", "c", 1.0), ("'=a", "d", 2.0), ("b", "c", 3.0), ("b", "d", 4.0)),
        ("c", "d", 5.0),  # a generated token does not see itself
    ]


@pytest.mark.parametrize("name", ["a.pdf", "a.csv.gz", "a.xlsx", "a.txt"])
def test_any_other_suffix_is_refused(name: str, comparison: fxlrp.Comparison, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No report is written as '\.\w+'.*name it \.html, \.htm, \.json, \.csv"):
        export(comparison, tmp_path / name, "title")
    assert not list(tmp_path.iterdir())


def test_json_is_shown_and_not_obeyed() -> None:
    evil = {"token": "\x1b[2J \x9b31m \x7f \u202e \udc80 é"}
    assert json.loads(as_json(evil)) == evil
    assert as_json(evil).isprintable() or "\n" in as_json(evil)
    assert not {"\x1b", "\x9b", "\x7f", "\u202e", "\udc80"} & {*as_json(evil)}
    assert "é" in as_json(evil)
