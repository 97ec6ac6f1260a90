"""Gated cells of recurrent networks: states that gates let pass, and what they feed in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fxlrp.patterns.language import either, part, pattern


def _gate(x: Tensor) -> Tensor:
    return either(torch.sigmoid(x), F.hardsigmoid(x))


def _next(forget: Tensor, state: Tensor, admit: Tensor, new: Tensor) -> Tensor:
    """f c + i g: what is kept of the state and what is fed in."""
    fed = part(_gate(admit), "input") * part(torch.tanh(new), "candidate")
    return part(_gate(forget), "forget") * state + fed


@pattern(
    "cell",
    dependent=("forget", "admit"),
    carried=("state",),
    forget=(2, 3),
    state=(2, 3),
    admit=(2, 3),
    new=(2, 3),
)
def state_by_two_gates(forget: Tensor, state: Tensor, admit: Tensor, new: Tensor) -> Tensor:
    """c' = sigmoid(f) c + sigmoid(i) tanh(g), the state of an LSTM."""
    return _next(forget, state, admit, new)


@pattern(
    "cell",
    dependent=("forget", "admit", "show"),
    carried=("state",),
    forget=(2, 3),
    state=(2, 3),
    admit=(2, 3),
    new=(2, 3),
    show=(2, 3),
)
def output_of_a_state(forget: Tensor, state: Tensor, admit: Tensor, new: Tensor, show: Tensor) -> Tensor:
    """h' = sigmoid(o) tanh(c')."""
    after = _next(forget, state, admit, new)
    return part(_gate(show), "output") * either(torch.tanh(after), after)


@pattern("cell", dependent=("update",), carried=("state",), update=(2, 3), state=(2, 3), new=(2, 3))
def state_by_one_gate(update: Tensor, state: Tensor, new: Tensor) -> Tensor:
    """h' = z h + (1 - z) n or (1 - z) h + z n with z = sigmoid(u) and n = tanh(v), the state of a GRU."""
    z, n = part(_gate(update), "update"), part(torch.tanh(new), "candidate")
    kept = either((state - n) * z + n, z * state + (1.0 - z) * n)
    return either(kept, (n - state) * z + state, z * n + (1.0 - z) * state)


@pattern("cell", dependent=("x", "reset"), x=(2, 3), w=(3, 3), reset=(2, 3), state=(2, 3), u=(3, 3))
def candidate_of_a_reset_state(x: Tensor, w: Tensor, reset: Tensor, state: Tensor, u: Tensor) -> Tensor:
    """n = tanh(W x + sigmoid(r) (U h)), the candidate of a GRU."""
    return torch.tanh(F.linear(x, w) + part(_gate(reset), "reset") * F.linear(state, u))
