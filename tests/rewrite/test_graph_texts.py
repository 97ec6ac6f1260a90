"""What rewriting does to small models stands as text beside this file; ``make graphs`` writes it anew."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.rewrite.graph_texts import CASES, FOLDER, path_of


@pytest.mark.parametrize("name", CASES)
def test_the_graphs_are_the_written_ones(name: str) -> None:
    assert CASES[name].text() == path_of(name).read_text(), "look at the difference, then: make graphs"


def test_no_text_is_left_over() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {path_of(name).name for name in CASES}


def test_another_rule_is_another_text() -> None:
    other = replace(CASES["product"], ruleset="gradient").text()
    assert other != path_of("product").read_text().replace("attnlrp", "gradient")
