"""Mixtures of experts: the router's rules, the re-normalised router's law, and the implementations of the experts."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor, nn

import fxlrp
from fxlrp.testing.weights import realistic
from tests.support.zoo import GROUPED

ONE_BLOCK = GROUPED | {"num_hidden_layers": 1}


class Combined(nn.Module):
    """The best two of four experts, whose weights are scaled to one: scores [batch, 4], experts [batch, 4, 3]."""

    def __init__(self, renormalise: bool = True) -> None:
        super().__init__()
        self.renormalise = renormalise

    def forward(self, scores: Tensor, experts: Tensor) -> Tensor:
        weights, chosen = scores.topk(2, -1)
        if self.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        best = experts.gather(1, chosen[..., None].expand(-1, -1, experts.shape[-1]))
        return (best * weights[..., None]).sum(1)


def shares(rules: fxlrp.Ruleset, renormalise: bool = True) -> tuple[float, float]:
    """The parts of the explained value that scores and experts receive, of the first sample."""
    rng = torch.Generator().manual_seed(0)
    inputs = {
        "scores": torch.rand(2, 4, generator=rng, dtype=torch.float64),
        "experts": torch.randn(2, 4, 3, generator=rng, dtype=torch.float64),
    }
    found = fxlrp.attribute(Combined(renormalise).eval(), inputs, ruleset=rules, target=1)
    parts = [float(found.inputs[name][0].sum() / found.explained[0]) for name in ("scores", "experts")]
    return parts[0], parts[1]


def test_the_experts_take_all_by_default() -> None:
    assert shares(fxlrp.ruleset("conservative")) == pytest.approx((0, 1), abs=1e-12)


def test_uniform_gives_the_router_half() -> None:
    uniform = fxlrp.ruleset("conservative").override(**{"router.weight": "gradient"})
    assert shares(uniform, renormalise=False) == pytest.approx((0.5, 0.5), abs=1e-12)
    assert shares(uniform) == pytest.approx((0.5, 0.5), abs=1e-12)


def test_the_expert_takes_all_under_any_ruleset_that_says_so() -> None:
    rules = fxlrp.ruleset("attnlrp").override(**{"router.weight": "take_all_expert"})
    assert shares(rules) == pytest.approx((0, 1), abs=1e-12)


def test_t10_the_half_of_a_renormalised_router_is_lost_unless_its_sum_is_constant() -> None:
    rules = fxlrp.ruleset("attnlrp")
    assert shares(rules) == pytest.approx((0, 0.5), abs=1e-12)
    kept = rules.override(**{"renormalised.scale": "constant", "renormalised": "detach_denominator"})
    assert shares(kept) == pytest.approx((0.5, 0.5), abs=1e-12)


@pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
@pytest.mark.parametrize("rules", [pytest.param("attnlrp", marks=pytest.mark.slow), "conservative"])
def test_grouped_batched_and_looped_experts_agree(rules: str) -> None:
    ids = torch.randint(4, 90, (2, 5), generator=torch.Generator().manual_seed(0))
    found = {}
    for implementation in ("batched_mm", "grouped_mm", "eager"):
        config = transformers.AutoConfig.for_model(
            "mixtral", **ONE_BLOCK, num_local_experts=4, experts_implementation=implementation
        )
        model = realistic(transformers.MixtralForCausalLM._from_config(config, experts_implementation=implementation))
        lrp = fxlrp.convert(model.eval(), rules)
        found[implementation] = lrp.attribute({"input_ids": ids}, ledger=True)
        recorded = lrp.conversion.captured({"input_ids": ids}).program.recorded is not None
        assert recorded == (implementation == "eager")  # a loop over the experts that some token chose
        ledger = found[implementation].ledger
        assert ledger is not None
        assert float((ledger.gap / ledger.explained).abs().max()) < 1e-4
    reference = found["batched_mm"]
    for other in found.values():  # the same sums in other orders, in float32
        torch.testing.assert_close(other.explained, reference.explained, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other.relevance, reference.relevance, rtol=1e-3, atol=1e-4)
