"""What is a router, and what a gate: a router chooses between its scores and the product."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp
from fxlrp.graph.live import between
from tests.graph.test_rowwise import _captured

Mixture = Callable[[Tensor, Tensor], Tensor]


def picked(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def best_two(s: Tensor, e: Tensor) -> Tensor:
    weights, index = s.softmax(-1).topk(2)
    return (weights[..., None] * picked(e, index)).sum(1)


def best_two_of_raw_scores(s: Tensor, e: Tensor) -> Tensor:
    weights, index = s.topk(2)
    return (weights.softmax(-1)[..., None] * picked(e, index)).sum(1)


def biased_choice(s: Tensor, e: Tensor) -> Tensor:
    index = (s.sigmoid() + torch.tensor([0.1, 0.0, -0.1])).topk(2).indices
    return (s.sigmoid().gather(1, index)[..., None] * picked(e, index)).sum(1)


def largest(s: Tensor, e: Tensor) -> Tensor:
    weight, index = s.softmax(-1).max(-1, keepdim=True)
    return weight * picked(e, index)[:, 0]


def argmax(s: Tensor, e: Tensor) -> Tensor:
    index = s.argmax(-1, keepdim=True)
    return s.softmax(-1).gather(1, index) * picked(e, index)[:, 0]


def one_hot(s: Tensor, e: Tensor) -> Tensor:
    return ((s.softmax(-1) * F.one_hot(s.argmax(-1), 3))[..., None] * e).sum(1)


def in_order(s: Tensor, e: Tensor) -> Tensor:
    weights, index = s.softmax(-1).sort(-1, descending=True)
    return (weights[:, :2, None] * picked(e, index[:, :2])).sum(1)


def below_are_masked(s: Tensor, e: Tensor) -> Tensor:
    weights = s.softmax(-1)
    return (weights.masked_fill(weights < weights.topk(2)[0][:, -1:], 0.0)[..., None] * e).sum(1)


def scattered(s: Tensor, e: Tensor) -> Tensor:
    values, index = s.topk(2)
    return (torch.full_like(s, -torch.inf).scatter(1, index, values).sigmoid()[..., None] * e).sum(1)


def all_experts(s: Tensor, e: Tensor) -> Tensor:
    return (s.softmax(-1)[..., None] * e).sum(1)


def all_by_sigmoid(s: Tensor, e: Tensor) -> Tensor:
    return (s.sigmoid()[..., None] * e).sum(1)


def every_second(s: Tensor, e: Tensor) -> Tensor:
    return (s.sigmoid()[:, ::2, None] * e[:, ::2]).sum(1)


def chosen_otherwise(s: Tensor, e: Tensor) -> Tensor:
    """Something is chosen, but not by these scores."""
    return s.sigmoid()[:, :1] * picked(e, e.sum(-1).argmax(-1, keepdim=True))[:, 0]


ROUTERS = (
    best_two,
    best_two_of_raw_scores,
    biased_choice,
    largest,
    argmax,
    one_hot,
    in_order,
    below_are_masked,
    scattered,
)
GATES = (all_experts, all_by_sigmoid, every_second, chosen_otherwise)


class Mixed(nn.Module):
    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixture = mixture
        self.scores, self.experts = nn.Linear(4, 3), nn.ModuleList(nn.Linear(4, 2) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.mixture(self.scores(x), torch.stack([expert(x) for expert in self.experts], 1))


def labels(mixture: Mixture) -> set[str]:
    lrp = fxlrp.convert(Mixed(mixture).eval(), "gradient", example_inputs=torch.randn(2, 4))
    return {label for each in lrp.plan.structure.labels.values() for label in each}


@pytest.mark.parametrize("mixture", ROUTERS)
def test_what_chooses_is_a_router(mixture: Mixture) -> None:
    assert "router.weight" in labels(mixture)


@pytest.mark.parametrize("mixture", GATES)
def test_what_weighs_all_is_none(mixture: Mixture) -> None:
    assert not any(label.startswith("router") for label in labels(mixture))


@pytest.mark.parametrize("mixture", GATES)
def test_a_gate_is_no_near_miss_of_a_router(mixture: Mixture) -> None:
    lrp = fxlrp.convert(Mixed(mixture).eval(), "gradient", example_inputs=torch.randn(2, 4))
    assert not any("router" in str(miss) for miss in lrp.plan.told_misses)


def test_what_stands_between_two_values() -> None:
    def code(x: Tensor, w: Tensor) -> Tensor:
        y = torch.relu(x)
        return torch.tanh(y) * torch.sigmoid(w.sum()) + torch.exp(x)

    graph, _, last = _captured(code)
    by_name = {str(node.target).split(".")[1]: node for node in graph.nodes if node.op == "call_function"}
    names = {name for name, node in by_name.items() if node in between(by_name["relu"], last)}
    assert names == {"tanh", "mul", "add"}
