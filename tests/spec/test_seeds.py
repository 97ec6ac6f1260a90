"""Seeds: one value says what relevance begins as, to targets, oracle, ledger, reports and the manual alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.errors import RulesetError
from fxlrp.report.descriptions import describe
from fxlrp.rules.rule import Message
from fxlrp.spec.seeds import CONTRASTIVE, LOGIT, ONE, PROBABILITY, SEEDS, find_seed
from fxlrp.testing import largest_difference, propagate

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64)
MANUAL = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-ruleset.md"


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()


def _expected(name: str, temperature: float) -> Tensor:
    return {
        "logit": LOGITS,
        "one": torch.ones_like(LOGITS),
        "probability": torch.softmax(LOGITS / temperature, -1),
        "contrastive": LOGITS - torch.stack([LOGITS[:, [1, 2]], LOGITS[:, [0, 2]], LOGITS[:, [0, 1]]], 1).mean(-1),
    }[name]


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_relevance_begins_as_the_seed_says(name: str) -> None:
    torch.testing.assert_close(SEEDS[name].begun(LOGITS, 2.5), _expected(name, 2.5))


def test_only_what_is_linear_in_the_logits_is_explained_under_relevance() -> None:
    assert torch.equal(PROBABILITY.explained(LOGITS, 1.0, Message.RELEVANCE), LOGITS)
    assert torch.equal(PROBABILITY.explained(LOGITS, 1.0, Message.GRADIENT), torch.softmax(LOGITS, -1))
    for seed in (LOGIT, ONE, CONTRASTIVE):
        assert torch.equal(*(seed.explained(LOGITS, 1.0, message) for message in Message))


@pytest.mark.parametrize("message", ["gradient", "relevance"])
@pytest.mark.parametrize("name", sorted(SEEDS))
def test_the_oracle_begins_as_the_attribution_does(name: str, message: str) -> None:
    """It took 'contrastive' for a probability: 0.73 off on a packaged ruleset."""
    rules = fxlrp.ruleset("clrp").override(seed=name, message=message, temperature=2.0)
    lrp, x = fxlrp.convert(_model(), rules), torch.randn(2, 4, dtype=torch.float64)
    found = lrp.attribute(x, target=1)
    assert largest_difference(found.inputs, propagate(lrp, x, target=1)) < 1e-10
    assert largest_difference(propagate(lrp, x, target=1), propagate(lrp.with_ruleset("attnlrp"), x, target=1)) > 0 or (
        name == "logit"
    )


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_reports_and_manual_say_what_a_seed_is(name: str) -> None:
    said = dict(describe(fxlrp.ruleset("attnlrp").override(seed=name)).settings)["Relevance begins as"]
    assert said == SEEDS[name].sentence
    assert len(said.split()) > 2
    line = next(line for line in MANUAL.read_text(encoding="utf-8").splitlines() if line.startswith("| `seed` |"))
    assert f"`{name}`" in line


def test_a_seed_is_known_by_its_name() -> None:
    assert find_seed("one") is ONE
    assert find_seed(ONE) is ONE
    assert fxlrp.ruleset("clrp").seed is CONTRASTIVE
    with pytest.raises(RulesetError, match=r"no seed 'contrast'\. Did you mean 'contrastive'"):
        find_seed("contrast")
    with pytest.raises(RulesetError, match=r"seed: .*no seed 'prob'"):
        fxlrp.ruleset("attnlrp").override(seed="prob")
