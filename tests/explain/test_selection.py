"""Inputs that are left out are constants: `exclude=` and `inputs=` of `attribute`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxlrp


class Graph(nn.Module):
    """A graph network: y = mean over nodes of W A x + p."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor, adj: Tensor, pad: Tensor) -> Tensor:
        """[batch, 2] of x [batch, nodes, 4], adj [batch, nodes, nodes], pad [batch, nodes, 2]."""
        return (self.layer(adj @ x) + pad).mean(1)


@pytest.fixture(scope="module")
def model() -> Graph:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Graph().eval().double()


@pytest.fixture(scope="module")
def given() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 5, 4), "adj": (2, 5, 5), "pad": (2, 5, 2)}
    return {name: torch.randn(shape, generator=rng, dtype=torch.float64) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "chosen", [{"exclude": ("adj", "pad")}, {"inputs": "x"}, {"inputs": ["x", "adj"], "exclude": "adj"}]
)
def test_what_is_left_out_is_a_constant(model: Graph, given: dict[str, Tensor], chosen: dict[str, Any]) -> None:
    """R_x = x (A^T 1 w / 5): all of the product is x's, and what `pad` adds is a source of the ledger."""
    result = fxlrp.convert(model, "conservative").attribute(given, target=1, ledger=True, **chosen)
    assert list(result.inputs) == ["x"]
    by_hand = given["x"] * (given["adj"].sum(1)[..., None] * model.layer.weight[1] / 5)
    assert torch.allclose(result.relevance, by_hand.detach(), atol=1e-12)
    assert result.ledger is not None
    assert result.ledger.gap.abs().max() < 1e-12
    assert torch.allclose(result.ledger.by_kind()["other input"], given["pad"].mean(1)[:, 1], atol=1e-12)


def test_nothing_left_out_changes_nothing(model: Graph, given: dict[str, Tensor]) -> None:
    lrp = fxlrp.convert(model, "conservative")
    lrp.attribute(given, target=1, exclude="adj")
    result = lrp.attribute(given, target=1)
    assert list(result.inputs) == ["x", "adj", "pad"]
    named = lrp.attribute(inputs=given, target=1)  # the inputs by name, as before
    assert all(torch.equal(named.inputs[name], value) for name, value in result.inputs.items())


def test_a_choice_is_planned_once(model: Graph, given: dict[str, Tensor]) -> None:
    lrp = fxlrp.convert(model, "conservative")
    for _ in range(3):
        lrp.attribute(given, target=1, exclude="adj")
    assert lrp.captures == 1
    assert len(lrp.conversion._made.rewrites) == 1


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"exclude": "ajd"}, "no input 'ajd'.*adj, pad, x"),
        ({"exclude": ("x", "adj", "pad")}, "Nothing is left to explain"),
        ({"inputs": "y"}, "no input 'y'"),
    ],
)
def test_wrong_names_are_told(model: Graph, given: dict[str, Tensor], chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(fxlrp.InputError, match=message):
        fxlrp.convert(model).attribute(given, target=1, **chosen)
