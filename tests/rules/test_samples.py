"""Rules that sum over a sample find its axis: a batch gives what its samples give alone, wherever samples lie."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.graph import axes
from fxlrp.testing import RandomGraph
from fxlrp.testing.checks import at_inputs

SUMMED = fxlrp.ruleset("epsilon").override(add={"rule": "normalised_add"})


class Steps(nn.Module):
    """Two recurrent layers, time first: x is [time, batch, 4], the answer [batch, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 2]."""
        out: Tensor = self.head((self.lower(x).tanh() + self.upper(x)).mean(0))
        return out


def _relevance(model: nn.Module, x: Tensor, rules: object) -> Tensor:
    return fxlrp.convert(model, rules).attribute(x, target=1).relevance  # type: ignore[arg-type]


def _apart(rules: object) -> float:
    torch.manual_seed(0)
    model, x = Steps().double().eval(), torch.randn(3, 4, 4, dtype=torch.float64)
    batch = _relevance(model, x, rules)
    alone = [_relevance(model, x[:, i : i + 1], rules) for i in range(4)]
    return float((batch - torch.cat(alone, 1)).abs().max() / batch.abs().max())


def test_sums_over_a_sample_that_lies_along_the_second_axis() -> None:
    assert _apart(SUMMED) < 1e-10


def test_a_first_axis_taken_for_that_of_samples_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxlrp.rules.operation.samples_axis", lambda node: 0)
    assert _apart(SUMMED) > 1e-3


def test_bounds_of_each_sample() -> None:
    boxed = fxlrp.ruleset("epsilon").override(
        linear={"rule": "z_box", "low": float("-inf"), "high": float("inf")}, where="lower"
    )
    assert _apart(boxed) < 1e-10


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("name", ["chefer2021-vit", "chefer2021-generic"])
def test_recurrent_kernels_written_out(kind: str, name: str) -> None:
    graph = RandomGraph.parse(f"v1 = {kind}(x)")
    inputs = graph.inputs(seed=1, batch=3)
    lrp = fxlrp.convert(graph.module().double(), at_inputs(name))
    x = inputs["x"].double()
    batch = lrp.attribute({"x": x}, target=1).relevance
    for i in range(3):
        alone = lrp.attribute({"x": x[i : i + 1]}, target=1).relevance
        torch.testing.assert_close(batch[i : i + 1], alone, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["wu-ong2020", "wu-ong2020-jacobian"])
def test_post_operations_compare_the_sums_of_each_sample(name: str) -> None:
    assert _apart(name) < 1e-10


def test_axes_of_samples_by_size() -> None:
    lrp = fxlrp.convert(Steps().eval(), "gradient")
    lrp.attribute(torch.randn(3, 2, 4), target=1)
    graph = lrp.plan.program.graph
    found = {str(node.target): axes.samples_axis(node) for node in graph.nodes if node.op == "call_function"}
    assert found["aten.tanh.default"] == 1
    assert found["aten.mean.dim"] == 0
