"""A ledger of a batch is the ledgers of its samples, from two backward passes however many samples there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fxlrp
from fxlrp.engine.samples import arrived
from fxlrp.rules.rule import Message

X = torch.randn(70, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Layout(nn.Module):
    """Two linear maps with biases, a place for each token, and attention, in one of several layouts."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layout, self.first, self.last = layout, nn.Linear(6, 6), nn.Linear(6, 3)
        self.places = nn.Parameter(torch.randn(5, 6))
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x)) + self.places
        if self.layout == "time first":
            x = self.first(x.transpose(0, 1)).relu().transpose(0, 1)
        elif self.layout == "joined":
            x = self.first(x.flatten(0, 1)).relu().view(*x.shape)
        elif self.layout == "joined behind time":
            x = self.first(x.transpose(0, 1).flatten(0, 1)).relu().view(5, -1, 6).transpose(0, 1)
        elif self.layout == "mixed":
            x = x - 0.5 * x.mean(0)
        x = x + (x @ x.mT).softmax(-1) @ x
        return self.last(x.mean(1))


LAYOUTS = ["batch first", "time first", "joined", "joined behind time"]


def amounts(result: fxlrp.Attribution) -> dict[tuple[str, str, bool], Tensor]:
    assert result.ledger is not None
    return {(entry.source, entry.kind, entry.leak): entry.amount for entry in result.ledger.entries}


def of_samples(lrp: fxlrp.ConvertedModel, x: Tensor, target: list[int]) -> None:
    """The ledger of ``x`` has what those of its samples have."""
    together = amounts(lrp.attribute(x, target=target, ledger=True))
    alone = [amounts(lrp.attribute(one[None], target=[t], ledger=True)) for one, t in zip(x, target, strict=True)]
    for name in {*together, *(name for each in alone for name in each)}:
        own = torch.cat([each.get(name, torch.zeros(1, dtype=torch.float64)) for each in alone])
        torch.testing.assert_close(together[name], own, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


def batch_is_its_samples(layout: str, ruleset: str, count: int = 5) -> None:
    target = [i % 3 for i in range(count)]
    of_samples(fxlrp.convert(Layout(layout), ruleset), X[:count], target)


@pytest.mark.parametrize("ruleset", ["attnlrp", "epsilon", "attnlrp-relevance", "gradient-x-input", "epsilon-plus"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_is_its_samples(layout: str, ruleset: str) -> None:
    """Wherever samples lie; five of them, as many as tokens, so that sizes tell nothing."""
    batch_is_its_samples(layout, ruleset)


@pytest.mark.parametrize("axis", [0, 1])
def test_amounts_of_relevance_in_denominators_are_those_of_samples(axis: int) -> None:
    """A stabiliser of relevance: what it keeps is not of degree one in the messages."""
    weights, message = X[0, :4, :4], X[1, :4, :4]
    scalars = (x := weights.clone().requires_grad_()).mul(message).sum(1 - axis)

    def kept(values: Sequence[Tensor], messages: Sequence[Tensor]) -> Tensor:
        return (messages[0] - messages[0].abs() * messages[0] / (messages[0].abs() + 1e-3)).sum()

    (part,) = arrived(scalars, [x])
    owed = [kept([x], [message.select(axis, sample)]) for sample in range(4)]
    torch.testing.assert_close(part.amounts([x], Message.RELEVANCE, kept), torch.stack(owed))


def test_more_samples_than_one_pass_can_tell_apart() -> None:
    batch_is_its_samples("joined behind time", "attnlrp", count=70)


def test_samples_that_are_mixed_have_a_pass_each() -> None:
    """Of two samples that enter each other's output, an entry is what one output owes to both."""
    model, x = Layout("mixed"), X[:3]
    result = fxlrp.convert(model, "gradient-x-input").attribute(x, target=[0, 1, 2], ledger=True)
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    owed = [(torch.autograd.grad(logits[i, i], leaf, retain_graph=True)[0] * x).sum() for i in range(3)]
    torch.testing.assert_close(amounts(result)["x", "input", False], torch.stack(owed), rtol=1e-9, atol=1e-12)
    assert result.ledger is not None
    assert result.ledger.gap.abs().max() < 1e-12


class Products(TorchDispatchMode):
    """Counts products of matrices."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("ruleset", ["attnlrp", "epsilon", "attnlrp-relevance"])
def test_a_ledger_costs_as_many_products_whatever_the_batch(ruleset: str) -> None:
    lrp, counts = fxlrp.convert(Layout("batch first"), ruleset), []
    for count in 2 * (6, 12, 24):  # the first time a size is seen the graph is compared with the model
        with Products() as products:
            lrp.attribute(X[:count], target=1, ledger=True)
        counts.append(products.count)
    assert counts[3] == counts[4] == counts[5] > 0
