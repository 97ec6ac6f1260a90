"""What an attribution explains and returns beside its inputs, and which calls one conversion serves."""

from __future__ import annotations

import pytest
import torch

import fxlrp
from fxlrp.testing import RandomGraph, largest_difference
from tests.support.zoo import ZOO, converted


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
