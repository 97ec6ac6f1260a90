"""Gates by hand: a gate is a factor like any other, where a router's weight has a rule of its own.

The reference is the model written with the rules' surrogates, detached parts in plain autograd.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp

Function = Callable[[Tensor], Tensor]
Gate = Callable[[Tensor, Tensor], Tensor]


def secant(function: Function, x: Tensor) -> Tensor:
    """f(x) with the derivative (f(x) - f(0)) / x."""
    offset = function(torch.zeros_like(x))
    return offset + x * ((function(x) - offset) / x).detach()


def halves(a: Tensor, b: Tensor) -> Tensor:
    """a b with half of its derivative by each."""
    return (a * b.detach() + a.detach() * b) / 2


class Gated(nn.Module):
    """A model over ``x``, in which ``times`` multiplies and ``through`` applies a function."""

    shape: tuple[int, ...] = (3, 4)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)

    def run(self, x: Tensor, times: Gate, through: Callable[[Function, Tensor], Tensor]) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, torch.mul, lambda f, z: f(z))


class Glu(Gated):
    def run(self, x: Tensor, times: Gate, through: Callable[[Function, Tensor], Tensor]) -> Tensor:
        return self.head(times(self.a(x), through(torch.sigmoid, self.b(x)))).mean(1)


class FusedGlu(Gated):
    def run(self, x: Tensor, times: Gate, through: Callable[[Function, Tensor], Tensor]) -> Tensor:
        a, b = torch.cat([self.a(x), self.b(x)], -1).chunk(2, -1)
        return self.head(times(a, through(torch.sigmoid, b))).mean(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.glu(torch.cat([self.a(x), self.b(x)], -1))).mean(1)


class Steep(Gated):
    """q sigmoid(2 q): no activation of a name, and no expert's weight."""

    def run(self, x: Tensor, times: Gate, through: Callable[[Function, Tensor], Tensor]) -> Tensor:
        q = self.a(x)
        return self.head(times(q, through(torch.sigmoid, 2 * q))).mean(1)


class SqueezeAndExcite(Gated):
    def run(self, x: Tensor, times: Gate, through: Callable[[Function, Tensor], Tensor]) -> Tensor:
        z = self.a(x)
        return self.head(times(z, through(torch.sigmoid, self.b(x.mean(1))).unsqueeze(1)).mean(1))


class GatedPooling(Gated):
    def run(self, x: Tensor, times: Gate, through: Callable[[Function, Tensor], Tensor]) -> Tensor:
        return self.head(times(self.a(x), through(torch.sigmoid, self.b(x)[..., :1])).sum(1))


class Lstm(Gated):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(4, 8, batch_first=True)

    def run(self, x: Tensor, times: Gate, through: Callable[[Function, Tensor], Tensor]) -> Tensor:
        cell, c = self.cell, x.new_zeros(len(x), 8)
        h = c
        for t in range(x.shape[1]):
            z = F.linear(x[:, t], cell.weight_ih_l0, cell.bias_ih_l0) + F.linear(h, cell.weight_hh_l0, cell.bias_hh_l0)
            i, f, g, o = z.chunk(4, -1)
            fed = times(through(torch.sigmoid, i), through(torch.tanh, g))
            c = times(through(torch.sigmoid, f), c) + fed
            h = times(through(torch.sigmoid, o), through(torch.tanh, c))
        return self.head(h)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Gru(Gated):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(4, 8, batch_first=True)

    def run(self, x: Tensor, times: Gate, through: Callable[[Function, Tensor], Tensor]) -> Tensor:
        cell, h = self.cell, x.new_zeros(len(x), 8)
        for t in range(x.shape[1]):
            a = F.linear(x[:, t], cell.weight_ih_l0, cell.bias_ih_l0).chunk(3, -1)
            b = F.linear(h, cell.weight_hh_l0, cell.bias_hh_l0).chunk(3, -1)
            r, z = through(torch.sigmoid, a[0] + b[0]), through(torch.sigmoid, a[1] + b[1])
            n = through(torch.tanh, a[2] + (times if t else torch.mul)(r, b[2]))  # of no state it is a bias
            h = times(z, h - n) + n
        return self.head(h)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


@pytest.mark.parametrize("ruleset", ["attnlrp", "conservative"])
@pytest.mark.parametrize("kind", [Glu, FusedGlu, Steep, SqueezeAndExcite, GatedPooling, Lstm, Gru])
def test_a_gate_has_half_of_its_products_relevance(kind: type[Gated], ruleset: str) -> None:
    model = kind().double().eval()
    x = torch.randn(2, *model.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    leaf = x.clone().requires_grad_()
    model.run(leaf, halves, secant)[:, 1].sum().backward()
    assert leaf.grad is not None
    rules = fxlrp.ruleset("attnlrp").override(epsilon=0.0) if ruleset == "attnlrp" else ruleset
    found = fxlrp.convert(model, rules).attribute(x, target=1)
    torch.testing.assert_close(found.relevance, x * leaf.grad)
    torch.testing.assert_close(found.explained, model(x)[:, 1].detach())
