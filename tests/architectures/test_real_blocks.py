"""Rulesets on blocks of trained networks, whose activations have outliers a thousand times the median and whose
attention ends at the first token.
"""

from __future__ import annotations

import copy
from functools import lru_cache

import pytest
import torch
from torch import Tensor

import fxlrp
from benchmarks.precision import distance
from tests.support.real_blocks import BLOCKS

WIDE = torch.float64
TYPES = [torch.float32, *(pytest.param(half, marks=pytest.mark.slow) for half in (torch.float16, torch.bfloat16))]
#: The distance from float64 with the weights and inputs that a type leaves, beside the largest relevance: what float32,
#: in which all is computed, leaves of sums that cancel. The most that was met is 6e-6.
NEAR = 1e-5
#: Rulesets that divide by sums which nearly cancel, or read the small difference of large ones, and what that costs.
FAR = {
    "arras2019-prop": 1e-3,
    "chefer2021-bert": 1e-4,
    "deeplift-rescale": 1e-4,
    "full-lrp": 5e-3,
    "partial-lrp": 2e-4,
}
PROBABILITIES = ("libragrad",)
#: The norms of this model compute in float32 in every type.
GAP = {"smollm2": 1e-6, "minilm": 1e-13}


@lru_cache
def _converted(block: str, weights: torch.dtype, dtype: torch.dtype) -> tuple[fxlrp.ConvertedModel, Tensor]:
    model, x = BLOCKS[block]()
    lrp, x = fxlrp.convert(copy.deepcopy(model).to(weights).to(dtype), "gradient"), x.to(weights).to(dtype)
    for _ in range(3):  # until the graph is no longer compared with the model
        lrp.attribute({"inputs_embeds": x}, target=1)
    return lrp, x


def _attributed(block: str, rules: str, weights: torch.dtype, dtype: torch.dtype) -> fxlrp.Attribution:
    lrp, x = _converted(block, weights, dtype)
    ruleset = fxlrp.ruleset(rules)
    # The probability is 1 to the last digits.
    lrp = lrp.with_ruleset(ruleset.override(seed="logit") if rules in PROBABILITIES else ruleset)
    ledger = dtype is WIDE and lrp.ruleset.readout.accounts and not lrp.ruleset.compares
    given = {"inputs_embeds": x}
    other = {"inputs_embeds": x / 2} if getattr(lrp.ruleset.readout, "kind", "") == "patching" else None
    try:
        return lrp.attribute(given, target=1, ledger=ledger, reference=other)
    except fxlrp.FxlrpError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("weights", TYPES)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("rules", fxlrp.rulesets())
def test_a_type_is_near_float64_and_the_ledger_closes(block: str, rules: str, weights: torch.dtype) -> None:
    exact = _attributed(block, rules, weights, WIDE)
    found = _attributed(block, rules, weights, weights)
    if exact.ledger is not None:
        assert float((exact.ledger.gap / exact.explained).abs().max()) < GAP[block]
    far = distance(found.relevance, exact.relevance)
    if far is None:  # nothing is above 0 where the method clamps
        assert not found.relevance.any()
    else:
        assert far <= FAR.get(rules, NEAR)


def test_these_blocks_have_outliers_and_a_sink() -> None:
    model, x = BLOCKS["smollm2"]()
    assert float(x.abs().max() / x.abs().median()) > 5000
    model.set_attn_implementation("eager")
    try:
        weights = model(inputs_embeds=x, output_attentions=True).attentions[0]
    finally:
        model.set_attn_implementation("sdpa")
    assert float(weights[0, :, 1:, 0].mean()) > 0.5
