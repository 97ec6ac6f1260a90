"""A ledger that does not close to rounding warns: not where rounding opens it, and not only where much is lost."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.errors import RelevanceWarning
from fxlrp.rules import RULES, Cite, Conserves, Operation, rule
from fxlrp.rules.primitives import scale_message
from tests.support.zoo import ZOO, converted

#: Convolutions, attention, gated layers with norms in float32 inside of float64, scans, experts, two stacks.
FAMILIES = ["mlp", "cnn", "bert", "llama", "vit", "mamba", "mixtral", "t5", "gemma2", "attention"]
PLAIN = {("cnn", "epsilon-plus"), ("bert", "attnlrp"), ("bert", "arras2019-prop"), ("llama", "libragrad")}


@functools.cache
def narrow(name: str) -> fxlrp.ConvertedModel:
    return fxlrp.convert(copy.deepcopy(ZOO[name].build()).float())


def explained(name: str, rules: fxlrp.Ruleset, dtype: torch.dtype) -> fxlrp.Attribution:
    inputs: dict[str, Any] = ZOO[name].inputs()
    lrp = converted(name) if dtype is torch.float64 else narrow(name)
    if dtype is not torch.float64:
        inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    target = (3, 1) if name in ("t5", "bart") else 1
    return lrp.with_ruleset(rules).attribute(inputs, target=target, ledger=True)


def accounting(name: str) -> fxlrp.Ruleset:
    """The ruleset, read as the account of one pass."""
    rules = fxlrp.ruleset(name)
    return rules if rules.readout.accounts else rules.override(readout={"kind": "input"})


ACCOUNTS = [name for name in fxlrp.rulesets() if not accounting(name).compares]
EVERY = [
    pytest.param(model, name, dtype, marks=() if (model, name) in PLAIN else pytest.mark.slow, id=f"{model}-{name}-{d}")
    for model in FAMILIES
    for name in ACCOUNTS
    for d, dtype in (("double", torch.float64), ("single", torch.float32))
]


@pytest.mark.parametrize(("model", "name", "dtype"), EVERY)
def test_rounding_is_no_reason_to_warn(model: str, name: str, dtype: torch.dtype) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            explained(model, accounting(name), dtype)
        except fxlrp.errors.ReadingError as error:
            pytest.skip(str(error))
    assert not [each for each in told if "does not close" in str(each.message)]


@pytest.fixture
def loses() -> Iterator[str]:
    """A rule that promises to conserve relevance and loses a part of it."""

    @rule("linear", conserves=Conserves.EXACTLY, source=Cite("a test"))
    def loses(op: Operation, *operands: Tensor, part: float = 1e-6) -> Tensor:
        """R_j = (1 - part) x_j sum_i W_ij R_i / z_i."""
        return scale_message(op(*operands), 1 - part)

    yield "loses"
    del RULES["loses"]


@pytest.mark.parametrize("model", ["mlp", "cnn", "bert", "vit"])
def test_a_loss_of_a_millionth_in_double_precision_is_told(model: str, loses: str) -> None:
    for name in ("attnlrp", "gradient-x-input"):
        rules = fxlrp.ruleset(name)
        for part, warned in ((1e-6, True), (0.0, False)):
            planted = rules.override(rules={"linear": {"rule": loses, "part": part}})
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                explained(model, planted, torch.float64)
            assert any("keeps relevance that it does not declare" in str(each.message) for each in told) is warned


def test_in_single_precision_what_rounding_cannot_account_for_is_told(loses: str) -> None:
    planted = fxlrp.ruleset("gradient-x-input").override(rules={"linear": {"rule": loses, "part": 1e-4}})
    with pytest.warns(RelevanceWarning, match="rounding accounts for"):
        explained("mlp", planted, torch.float32)


def test_a_gap_that_cancelling_contributions_explain_is_no_rules() -> None:
    """10,000 - 9,999.9999 in float32: what is left has three digits."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False)).eval()
    x = torch.tensor([[1.0, 1.0]])
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[10000.1, -10000.0]]))
        model[1].weight.fill_(1.0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = fxlrp.convert(model, "gradient-x-input").attribute(x, target=0, ledger=True)
    assert result.ledger is not None
    assert not any("does not declare" in str(each.message) for each in told)
