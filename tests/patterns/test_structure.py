"""What a plan sees in a graph, and what an attribution explains and returns beside its inputs."""

from __future__ import annotations

import pytest
import torch

import fxlrp
from fxlrp.testing import RandomGraph, largest_difference
from tests.support.zoo import ZOO, converted


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


def test_a_probability_is_explained_where_the_ruleset_says_so() -> None:
    graph = RandomGraph.parse("v1 = mlp(x)")
    result = fxlrp.convert(graph.module(), "libragrad").attribute(graph.inputs(), target=2)
    assert torch.allclose(result.explained, result.outputs.softmax(-1)[:, 2])


def test_relevance_at_a_module_is_that_of_its_output() -> None:
    graph = RandomGraph.parse("v1 = linear(x)\nv2 = gelu(v1)\nv3 = linear_no_bias(v2)")
    model = graph.module()
    result = fxlrp.convert(model, "conservative").attribute(graph.inputs(), target=1, at=("v1", "v2"))
    for name in ("v1", "v2"):
        assert result.at[name].shape == (2, 5, 8)
        assert torch.allclose(result.at[name].sum((1, 2)), result.explained - model.head.bias[1])
    assert not torch.allclose(result.relevance.sum((1, 2)), result.explained - model.head.bias[1])


def test_one_conversion_serves_calls_with_and_without_a_mask() -> None:
    case = ZOO["attention"]
    model, padded, full = case.build(), case.inputs(padding="right"), case.inputs(padding=None)
    lrp = fxlrp.convert(model, "attnlrp")
    for inputs in (full, padded, full):
        fresh = fxlrp.convert(model, "attnlrp").attribute(inputs, target=1).inputs
        assert largest_difference(lrp.attribute(inputs, target=1).inputs, fresh) < 1e-12


def test_the_last_word_is_explained_not_the_padding_behind_it() -> None:
    case = ZOO["gpt2"]
    inputs = case.inputs(batch=3, length=7, padding="right")
    result = converted("gpt2").with_ruleset("attnlrp").attribute(inputs, target=3)
    assert result.target == [(6, 3), (4, 3), (3, 3)]


@pytest.mark.slow  # test_model and test_shapes do so on other lengths
def test_one_conversion_serves_other_lengths_and_batches() -> None:
    case = ZOO["gpt2"]
    model = case.build()
    lrp = fxlrp.convert(model, "attnlrp")
    for batch, length in ((2, 7), (1, 7), (3, 4), (2, 1)):
        inputs = case.inputs(batch, length, padding=None)
        fresh = fxlrp.convert(model, "attnlrp").attribute(inputs, target=1).inputs
        assert largest_difference(lrp.attribute(inputs, target=1).inputs, fresh) < 1e-12


def test_a_branch_on_the_length_is_captured_anew() -> None:
    class Branch(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :3].sum(1) if x.shape[1] > 4 else 2 * x.sum(1)

    lrp = fxlrp.convert(Branch().double().eval(), "conservative")
    for length in (6, 3, 5, 4):
        x = torch.randn(2, length, 4, dtype=torch.float64)
        expected = torch.where(torch.arange(length)[:, None] < 3, 1.0, 0.0) * x if length > 4 else 2 * x
        relevance = lrp.attribute(x, target=1).relevance
        assert torch.allclose(relevance[..., 1], expected[..., 1])
