"""The views for programs: plain values for JSON, a data frame, a figure."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fxlrp.errors import MissingExtraError
from fxlrp.evaluate.comparison import Comparison
from fxlrp.report import as_plain, plot, show, to_dataframe, to_html, to_notebook
from tests.report.samples import SENTENCE, float_attribution, text_attribution


def test_plain_values_survive_json() -> None:
    attribution = text_attribution([SENTENCE], layers=2, with_ledger=True, gap=0.25)
    plain = json.loads(json.dumps(as_plain(attribution), allow_nan=False))
    (sample,) = plain["samples"]
    assert plain["ruleset"]["name"] == "attnlrp"
    assert sample["inputs"]["input_ids"]["tokens"] == SENTENCE
    np.testing.assert_array_equal(sample["inputs"]["input_ids"]["relevance"], attribution.relevance[0].double().numpy())
    assert list(sample["layers"]) == ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    entries = sample["ledger"]["entries"]
    assert len(entries) == len(attribution.ledger.entries)
    assert sum(entry["amount"] for entry in entries) + 0.25 == pytest.approx(sample["explained"])


def test_what_json_cannot_spell_is_null() -> None:
    plain = as_plain(float_attribution(torch.tensor([[1.0, torch.nan]]), with_ledger=True))
    assert plain["samples"][0]["inputs"]["pixel_values"]["relevance"] == [1.0, None]
    json.dumps(plain, allow_nan=False)


def test_data_frame_has_a_row_per_position() -> None:
    pytest.importorskip("pandas", reason="the extra 'data' is not installed")
    attributions = {name: text_attribution([SENTENCE] * 2, ruleset=name, seed=n) for n, name in enumerate("ab")}
    frame = to_dataframe(Comparison(attributions))
    assert len(frame) == 2 * 2 * len(SENTENCE)
    row = frame[(frame.ruleset == "b") & (frame["sample"] == 1) & (frame.position == 4)].iloc[0]
    assert row.token == SENTENCE[4]
    assert row.relevance == pytest.approx(float(attributions["b"].relevance[1, 4]))
    pixels = to_dataframe(float_attribution(torch.ones(1, 3, 2, 2)))
    assert list(pixels.position) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert list(pixels.relevance) == [3.0] * 4


@pytest.mark.parametrize(
    "attribution",
    [
        text_attribution([SENTENCE, SENTENCE], label="costs $5 and $6"),
        text_attribution([["word"] * 100]),
        float_attribution(torch.randn(2, 3, 8, 8)),
        float_attribution(torch.zeros(1, 7)),
    ],
    ids=["tokens", "long", "image", "features"],
)
def test_plot_draws_every_sample_under_every_ruleset(attribution, tmp_path) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")
    figure = plot(Comparison({"a": attribution, "b": attribution}))
    assert len(figure.axes) == 2 * len(attribution.label)
    figure.savefig(tmp_path / "figure.png", dpi=40)


def test_plot_bars_are_the_relevance() -> None:
    pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")
    attribution = text_attribution([SENTENCE])
    (axes,) = plot(attribution).axes
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], attribution.relevance[0].numpy())
    assert [label.get_text() for label in axes.get_yticklabels()] == SENTENCE


@pytest.mark.parametrize(("view", "package"), [(plot, "matplotlib"), (to_dataframe, "pandas")])
def test_a_missing_extra_is_named(view, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=package):
        view(text_attribution([SENTENCE]))


def test_views_of_an_attribution_and_of_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attributions = {name: text_attribution([SENTENCE], ruleset=name) for name in ("attnlrp", "gradient")}
    page = to_html(attributions["attnlrp"], tmp_path / "page.html", title="One")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
    assert "<title>One</title>" in page
    assert page.count("<figcaption>") == 1
    assert to_html(Comparison(attributions)).count("<figcaption>") == 2
    assert to_notebook(Comparison(attributions)).lstrip().startswith('<div class="fxlrp">')
    show(Comparison(attributions))
    assert "gradient" in capsys.readouterr().out
