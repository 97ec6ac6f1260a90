"""An LSTM cell spelled out in a forward is explained like ``nn.LSTM``, however it is spelled."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp
from fxlrp.testing.weights import realistic
from tests.rulesets.test_arras import FEATURES, HIDDEN, LABELS, build, feed, rules

Cell = Callable[["ByHand", Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


def _chunked(model: ByHand, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    i, f, g, o = (F.linear(x, model.w, model.b) + F.linear(h, model.u, model.d)).chunk(4, -1)
    return i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()


def _gate_by_gate(model: ByHand, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    parts = zip(*(part.chunk(4) for part in (model.w, model.b, model.u, model.d)), strict=True)
    i, f, g, o = (d + (F.linear(h, u) + (F.linear(x, w) + b)) for w, b, u, d in parts)
    return torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)


def joined(model: ByHand, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z = F.linear(torch.cat([x, h], -1), torch.cat([model.w, model.u], -1), model.b + model.d)
    gates = torch.sigmoid(torch.cat([z[:, : 2 * HIDDEN], z[:, 3 * HIDDEN :]], -1))
    i, f, o = gates.split(HIDDEN, -1)
    return i, f, torch.tanh(z[:, 2 * HIDDEN : 3 * HIDDEN]), o


class ByHand(nn.Module):
    """An LSTM spelled out.  x: [batch, steps, 3]."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell
        self.w, self.b = nn.Parameter(torch.zeros(4 * HIDDEN, FEATURES)), nn.Parameter(torch.zeros(4 * HIDDEN))
        self.u, self.d = nn.Parameter(torch.zeros(4 * HIDDEN, HIDDEN)), nn.Parameter(torch.zeros(4 * HIDDEN))
        self.head = nn.Linear(HIDDEN, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, [batch, 3]."""
        h = c = x.new_zeros(x.shape[0], HIDDEN)
        for step in x.unbind(1):
            i, f, g, o = self.cell(self, step, h)
            c = g * i + c * f
            h = torch.tanh(c) * o
        return self.head(h)


class ByModule(nn.Module):
    """The same by ``nn.LSTM`` or ``nn.LSTMCell``."""

    def __init__(self, single: bool) -> None:
        super().__init__()
        self.lstm: Any = nn.LSTMCell(FEATURES, HIDDEN) if single else nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, [batch, 3]."""
        if isinstance(self.lstm, nn.LSTM):
            return self.head(self.lstm(x)[0][:, -1])
        state = None
        for step in x.unbind(1):
            state = self.lstm(step, state)
        assert state is not None
        return self.head(state[0])


def _with_weights(model: nn.Module, like: nn.Module) -> nn.Module:
    with torch.no_grad():
        for to, of in zip(_ordered(model), _ordered(like), strict=True):
            to.copy_(of)
    return model.double().eval()


def _ordered(model: nn.Module) -> list[Tensor]:
    own = [model.w, model.u, model.b, model.d] if isinstance(model, ByHand) else list(model.lstm.parameters())  # type: ignore[operator,union-attr]
    return [*own, *model.head.parameters()]  # type: ignore[list-item,operator,union-attr]


@cache
def _module() -> tuple[nn.Module, fxlrp.ConvertedModel]:
    model = realistic(ByModule(single=False).double().eval(), 0)
    return model, fxlrp.convert(model, "arras2017")


@pytest.mark.parametrize("spelling", [_chunked, _gate_by_gate, joined, None])
def test_a_cell_by_hand_is_explained_like_the_module(spelling: Cell | None) -> None:
    module, expected = _module()
    other = _with_weights((ByModule(single=True) if spelling is None else ByHand(spelling)).double(), module)
    x = feed(build())["x"]
    lrp = fxlrp.convert(other, "arras2017")
    for ruleset in (rules(bias_factor=0.0), rules(), rules("arras2019-abs")):
        a, b = (each.with_ruleset(ruleset).attribute(x, target=2, ledger=True) for each in (expected, lrp))
        assert (a.outputs - b.outputs).abs().max() < 1e-13
        assert (a.relevance - b.relevance).abs().max() < 1e-12 * a.relevance.abs().max()
        assert a.ledger is not None
        assert b.ledger is not None
        states = [each.ledger.by_kind()["initial state"] for each in (a, b) if each.ledger is not None]
        assert (states[0] - states[1]).abs().max() < 1e-13
