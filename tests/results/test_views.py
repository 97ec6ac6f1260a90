"""A view is one function, registered from above: results know no report."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import fxlrp
from fxlrp.errors import InputError
from fxlrp.results.views import VIEWS, find_view


@pytest.fixture
def result() -> fxlrp.Attribution:
    model = nn.Sequential(nn.Linear(3, 2)).eval()
    return fxlrp.attribute(model, torch.tensor([[1.0, -2.0, 0.5]]), ruleset="gradient", target=1)


@pytest.fixture
def largest() -> Iterator[None]:
    @fxlrp.view("largest", fxlrp.Attribution)
    def largest(result: fxlrp.Attribution, count: int = 1) -> list[int]:
        return result.relevance[0].abs().topk(count).indices.tolist()

    yield
    VIEWS.pop("largest")


@pytest.mark.usefixtures("largest")
def test_a_view_of_ones_own(result: fxlrp.Attribution) -> None:
    expected = result.relevance[0].abs().argsort(descending=True).tolist()
    assert result.view("largest", count=3) == expected


def test_a_later_view_replaces_an_earlier_one(result: fxlrp.Attribution, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VIEWS, "plot", dict(VIEWS.get("plot", {})))
    find_view("plot", fxlrp.Attribution)  # the standard views are there
    fxlrp.view("plot", fxlrp.Attribution)(lambda result: "mine")
    assert result.plot() == "mine"


def test_a_view_that_there_is_not(result: fxlrp.Attribution) -> None:
    with pytest.raises(InputError, match=r"Attribution has no view 'plod'\. Did you mean 'plot'"):
        result.view("plod")


@pytest.mark.parametrize("kind", [fxlrp.Attribution, fxlrp.Comparison, fxlrp.GenerationAttribution])
@pytest.mark.parametrize("name", ["show", "to_html", "plot", "to_dataframe"])
def test_results_have_the_standard_views(kind: type, name: str) -> None:
    assert callable(find_view(name, kind))


def test_no_report_is_loaded_before_a_view_is_asked_for() -> None:
    script = (
        "import sys, torch, fxlrp\n"
        "model = torch.nn.Linear(3, 2).eval()\n"
        "result = fxlrp.attribute(model, torch.ones(1, 3), ruleset='gradient', target=1)\n"
        "assert not any(name.startswith('fxlrp.report') for name in sys.modules)\n"
        "result.show()\n"
        "assert 'fxlrp.report.terminal' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
