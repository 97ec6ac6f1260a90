"""Selective state spaces: one step of h' = decay * h + input * u, read out by y = h' read."""

from __future__ import annotations

import torch
from torch import Tensor

from fxlrp.patterns.language import part, pattern


@pattern(
    "recurrence",
    rate=(2, 3, 4),
    before=(2, 3, 4),
    step=(2, 3, 4),
    gain=(2, 3, 4),
    signal=(2, 3, 4),
    read=(2, 4, 1),
)
def selective_scan(rate: Tensor, before: Tensor, step: Tensor, gain: Tensor, signal: Tensor, read: Tensor) -> Tensor:
    """y = (exp(rate) * before + (step * gain) * signal) @ read: decay, input and read depend on the data (Mamba)."""
    state = part(torch.exp(rate), "decay") * before + part(step * gain, "input") * signal
    return part(torch.matmul(state, part(read, "read")), "output")
