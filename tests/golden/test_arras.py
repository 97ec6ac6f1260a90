"""Relevance of words through a bi-LSTM equals what Arras et al.'s own code computed (``../shared/golden``).

Their weights are for research and stay in that folder.
"""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from tests.golden.test_golden import GOLDEN, close, read

CASE = "arras_bilstm"
pytestmark = [
    pytest.mark.skipif(not GOLDEN.is_dir(), reason="the reference results (../shared/golden) are not here"),
    pytest.mark.filterwarnings("ignore::fxlrp.errors.RetraceWarning"),  # sentences of two lengths
]
SENTENCES = [f"s{i}" for i in range(10)]


class Sentiment(nn.Module):
    """Scores [batch, 5] of sentences x [batch, words, 60], from the last state of each direction."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(60, 60, bidirectional=True, batch_first=True)
        self.output = nn.Linear(120, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        _, (h, _) = self.lstm(x)
        return self.output(torch.cat([h[0], h[1]], -1))


@cache
def converted() -> fxlrp.ConvertedModel:
    model = Sentiment().double().eval()
    model.load_state_dict(read(CASE)[1])
    return fxlrp.convert(model, "arras2017")


def test_the_folder_holds_what_is_compared() -> None:
    expected = read(CASE)[3]
    explained = {key.rsplit("/", 1)[0] for key in expected if "/bias" in key}
    classes = {name: sum(key.startswith(f"{name}/bias1.0") for key in explained) for name in SENTENCES}
    assert sum(classes.values()) * 2 == len(explained)
    assert max(classes.values()) == 5


@pytest.mark.parametrize("bias_factor", [0.0, 1.0])
@pytest.mark.parametrize("sentence", SENTENCES)
def test_words_and_initial_states(sentence: str, bias_factor: float) -> None:
    _, _, inputs, expected = read(CASE)
    lrp = converted().with_ruleset(fxlrp.ruleset("arras2017").override(bias_factor=bias_factor))
    x = inputs[f"{sentence}/x"][None]
    for key in sorted(key for key in expected if key.startswith(f"{sentence}/bias{bias_factor}") and "/Rx_rev" in key):
        place = key.removesuffix("/Rx_rev")
        result = lrp.attribute(x, target=int(place[-1]), ledger=True)
        close(result.relevance[0], expected[f"{place}/Rx"] + expected[key], 1e-9)
        close(result.relevance[0].sum(-1), expected[f"{place}/R_words"], 1e-9)
        assert result.ledger is not None
        kinds = result.ledger.by_kind()
        scale = float(expected[f"{place}/R_words"].abs().max())
        rest = expected[f"{place}/R_rest"]
        assert (kinds["initial state"] - rest).abs().max() < 1e-9 * scale
        assert result.ledger.gap.abs().max() < 1e-12 * scale
        if bias_factor:
            assert (kinds["input"] + kinds["initial state"] - result.explained).abs().max() < 1e-12 * scale
            assert rest.abs() > 1e-3  # which is no small part of it


@pytest.mark.parametrize("sentence", SENTENCES)
def test_scores_sensitivity_and_gradient_times_input(sentence: str) -> None:
    _, _, inputs, expected = read(CASE)
    x = inputs[f"{sentence}/x"][None]
    found = int(json.loads((GOLDEN / CASE / "meta.json").read_text())["sentences"][sentence]["pred"])
    result = converted().with_ruleset("gradient").attribute(x)
    close(result.outputs[0], expected[f"{sentence}/scores"], 1e-12)
    assert result.target == [found]
    close(result.features[0].sum(-1), expected[f"{sentence}/class{found}/GI_words"], 1e-9)
    sensitivity = (result.features[0] / x[0]).square().sum(-1)
    close(sensitivity, expected[f"{sentence}/class{found}/SA_words"], 1e-9)
