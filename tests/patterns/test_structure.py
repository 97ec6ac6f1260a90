"""What a plan sees in a graph: skip connections, and the parts of patterns by their labels."""

from __future__ import annotations

import pytest
import torch

import fxlrp
from fxlrp.testing import RandomGraph


def _labels(code: str) -> list[str]:
    graph = RandomGraph.parse(code)
    structure = fxlrp.convert(graph.module(), "conservative", example_inputs=graph.inputs()).plan.structure
    return [label for labels in structure.labels.values() for label in labels]


@pytest.mark.parametrize(
    ("code", "skips"),
    [
        ("v1 = linear(x)\nv2 = add(v1, x)", 1),
        ("v1 = residual(x)\nv2 = residual(v1)", 2),
        ("v1 = linear(x)\nv2 = linear(y)\nv3 = add(v1, v2)", 0),
        ("v1 = position_embedding(x)", 0),
    ],
)
def test_skip_connections(code: str, skips: int) -> None:
    assert _labels(code).count("residual") == skips


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("v1 = gate(x, y)", "gated.gate"),
        ("v1 = glu(x)", "gated.gate"),
        ("v1 = gated_mlp_silu(x)", "gated.product"),
        ("v1 = rms_norm_spelled_out(x)", "norm.scale"),
        ("v1 = layer_norm_spelled_out(x)", "norm.mean"),
        ("v1 = attention_softcap(x)", "attention.weights"),
        ("v1 = sdpa_causal(x)", "attention.scores"),
    ],
)
def test_parts(code: str, part: str) -> None:
    assert part in _labels(code)


def test_the_operands_of_a_sum_may_stand_in_either_order() -> None:
    class Swapped(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (torch.rsqrt(1e-6 + x.pow(2).mean(-1, keepdim=True)) * x).sum(1)

    lrp = fxlrp.convert(Swapped().double().eval(), "conservative", example_inputs=torch.randn(2, 3, 4).double())
    assert "norm" in [name for labels in lrp.plan.structure.labels.values() for name in labels]


def test_entries_that_are_scaled_by_others_are_no_norm() -> None:
    class Halves(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second = x.chunk(2, -1)
            return (first * torch.rsqrt(second.pow(2).mean(-1, keepdim=True) + 1e-6)).sum(1)

    lrp = fxlrp.convert(Halves().double().eval(), "conservative", example_inputs=torch.randn(2, 3, 4).double())
    assert "norm" not in [name for labels in lrp.plan.structure.labels.values() for name in labels]
