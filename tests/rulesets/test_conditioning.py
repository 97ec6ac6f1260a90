"""Why some rulesets are less exact in float32 than others: the method turns the last digit of a weight into more."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fxlrp
from benchmarks import precision

PLAIN_SUMS = fxlrp.ruleset("full-lrp").override(add={"rule": "epsilon", "epsilon": 1e-9, "stabiliser": "masked"})


def drawn(model: nn.Module, seed: int) -> nn.Module:
    """Other weights of the same sizes."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=draw) * weight.std())
            else:
                weight.copy_(weight[torch.randperm(len(weight), generator=draw)])
    return model


def read(model: nn.Module, rules: str | fxlrp.Ruleset) -> torch.Tensor:
    return fxlrp.convert(model, rules).attribute(precision.inputs(), target=1).relevance.double()


def moved(model: nn.Module, rules: str | fxlrp.Ruleset) -> tuple[float, float]:
    """By how much of the largest relevance float32 differs, and float64 once weights are off by half of an eps."""
    exact = copy.deepcopy(model).double()
    right = read(exact, rules)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in exact.parameters():
            weight.mul_(1 + 6e-8 * torch.randn(weight.shape, generator=draw, dtype=torch.float64))
    found = (read(model, rules), read(exact, rules))
    narrow, off = (float((each - right).abs().max() / right.abs().max()) for each in found)
    return narrow, off


@pytest.mark.filterwarnings("ignore::fxlrp.errors.RelevanceWarning")
@pytest.mark.parametrize(
    ("model", "rules"),
    [("BERT", "full-lrp"), pytest.param("Llama", "arras2019-prop", marks=pytest.mark.slow)],
)
def test_float32_is_off_by_what_its_last_digit_does_in_float64(model: str, rules: str) -> None:
    with torch.random.fork_rng(devices=[]):
        narrow, off = moved(drawn(precision.MODELS[model](), 0), rules)
    assert off > 1e-6
    assert narrow < 30 * off


@pytest.mark.filterwarnings("ignore::fxlrp.errors.RelevanceWarning")
def test_of_full_lrp_it_is_the_balance_of_sums_over_a_sample_that_magnifies_rounding() -> None:
    with torch.random.fork_rng(devices=[]):
        model = drawn(precision.bert(), 0)
    assert moved(model, PLAIN_SUMS)[1] < moved(model, "full-lrp")[1] / 5
