"""The sections of a page that compare rulesets: the numbers are the comparison's, the words escaped."""

from __future__ import annotations

import base64
import math
import re
from dataclasses import dataclass

import pytest
import torch
from rich.console import Console

from fxlrp.evaluate import Evaluation, Perturbation, PerturbationCurves, Protocol
from fxlrp.evaluate.comparison import Comparison
from fxlrp.report import print_comparison, to_html
from fxlrp.report.methods import methods_of, whiskers
from fxlrp.results.attribution import RulesetInfo
from tests.report.samples import EVIL, SENTENCE, text_attribution
from tests.report.test_html import Elements

NAMES = ("attnlrp", "cp-lrp", "ali2022", "conservative", "gradient", "integrated-gradients", "rollout", "attn-gradcam")


def comparison(names: tuple[str, ...] = NAMES[:3], protocols: int = 2, label: str = "positive") -> Comparison:
    """Attributions and perturbation curves drawn at random, 12 samples."""
    generator = torch.Generator().manual_seed(0)
    fixed = [Perturbation("most", "add", replace=0), Perturbation("absolute-least", replace=0)][:protocols]

    def curves(name: str, protocol: Perturbation) -> Evaluation:
        drawn = torch.rand(12, 11, generator=generator, dtype=torch.float64).cumsum(1) / 11
        return PerturbationCurves(protocol, RulesetInfo(name, "1", "0"), {"curve": drawn, "squared_error": 9 * drawn})

    return Comparison(
        {name: text_attribution([SENTENCE], ruleset=name, seed=n, label=label) for n, name in enumerate(names)},
        {name: [curves(name, protocol) for protocol in fixed] for name in names} if protocols else {},
    )


def cells(page: str) -> list[list[str]]:
    (table,) = re.findall(r'<table class="map agreement">.*?</table>', page, re.DOTALL)
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", table)
    return [re.findall(r">([^<]+)</td>", row) for row in rows]


@pytest.mark.parametrize("count", [2, 8])
def test_the_matrix_on_the_page_is_the_agreement(count: int) -> None:
    found = comparison(NAMES[:count])
    printed = [[float(cell.replace("−", "-")) for cell in row] for row in cells(to_html(found))]
    assert torch.allclose(torch.tensor(printed).double(), found.agreement, atol=0.0051)


def test_intervals_on_the_page_are_those_of_the_evaluations() -> None:
    found = comparison()
    page = to_html(found)
    tables = re.findall(r'<table class="standing">.*?</table>', page, re.DOTALL)
    asked = [(0, "auac"), (1, "auac"), (1, "au_mse")]  # au_mse says nothing of orders by sign
    assert [re.findall(r"<code>(\w+)</code>", table)[0] for table in tables] == [name for _, name in asked]
    for table, (number, statistic) in zip(tables, asked, strict=True):
        rows = re.findall(r'<tr[^>]*><th scope="row">([\w-]+)</th>(.*?)</tr>', table, re.DOTALL)
        assert [name for name, _ in rows] == list(found.names)
        for name, row in rows:
            value, low, high = (float(x) for x in re.findall(r'<data value="([^"]+)"', row))
            interval = found.evaluations[name][number].intervals()[statistic]
            assert (value, low, high) == (interval.value, interval.low, interval.high)
    assert len(re.findall('<tr class="best">', page)) == 3


def test_whiskers_span_their_axis() -> None:
    standing = comparison().standings[0]
    found = [whisker for whisker in whiskers(standing).values() if whisker]
    assert min(whisker.low for whisker in found) == pytest.approx(0)
    assert max(whisker.high for whisker in found) == pytest.approx(100)
    assert all(whisker.low <= whisker.value <= whisker.high for whisker in found)


def test_curves_are_a_picture_in_the_page() -> None:
    pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")
    addresses = re.findall(r'<img class="curves" src="data:image/png;base64,([^"]+)"', to_html(comparison()))
    assert len(addresses) == 2
    assert base64.b64decode(addresses[0]).startswith(b"\x89PNG")


def test_without_matplotlib_there_are_tables_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    page = to_html(comparison())
    assert '<img class="curves"' not in page
    assert '<table class="standing">' in page


@dataclass(frozen=True)
class Hostile(Protocol):
    """<script>alert(1)</script> measures."""

    def start(self, lrp: object) -> object:
        raise NotImplementedError

    def statistics(self, measured: object) -> dict[str, float]:
        return {EVIL: 1.0}

    def better(self) -> dict[str, int]:
        return {EVIL: 1}

    def meanings(self) -> dict[str, str]:
        return {EVIL: '"><img src=x onerror=alert(1)>'}


def test_hostile_names_are_escaped() -> None:
    shown = {name: text_attribution([["a", EVIL]], ruleset=name, label=EVIL) for name in (EVIL, '"><b onclick=x>')}
    measured = {
        name: [Evaluation(Hostile(), RulesetInfo(name, "1", "0"), {"x": torch.ones(3)})]
        for name in (EVIL, '"><b onclick=x>')
    }
    page = to_html(Comparison(shown, measured))
    assert "Which explains this model best?" in page
    tags = Elements(page.replace("<b>", "").replace("</b>", "")).tags
    assert not [tag for tag, _ in tags if tag in {"script", "iframe", "object", "link", "b"}]
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]


def test_one_ruleset_alone_is_not_compared() -> None:
    page = to_html(comparison(NAMES[:1], protocols=0))
    assert "Do the methods agree?" not in page
    assert methods_of(comparison(NAMES[:1], protocols=0)) is None


def test_the_terminal_prints_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    found = comparison()
    print_comparison(found, Console(width=120), maps=False)
    text = capsys.readouterr().out
    assert "SEP" not in text
    assert f"{float(found.agreement[0, 1]):.2f}".replace("-", "−") in text
    interval = found.evaluations["cp-lrp"][1].intervals()["au_mse"]
    assert f"{interval.value:.3f}  {interval.low:.3f} to {interval.high:.3f}" in text
    assert "smaller is better" in text


def test_nan_is_a_dash() -> None:
    found = comparison(protocols=1)
    broken = {"curve": torch.full((12, 11), math.nan), "squared_error": torch.zeros(12, 11)}
    first = found.evaluations["attnlrp"][0]
    found.evaluations["attnlrp"][0] = PerturbationCurves(first.protocol, first.ruleset, broken)
    page = to_html(found)
    Elements(page)
    assert '<data value="nan">–</data>' in page
