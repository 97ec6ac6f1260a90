"""Gates and routers: an activated branch times a linear one, expert weights times expert outputs, pooled means."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fxlrp.graph.activations import spelled_activation
from fxlrp.patterns.language import any_axis, chain, either, part, pattern


@pattern("gated", dependent=("gate", "signal"), gate=(2, 3), signal=(2, 3))
def gated(gate: Tensor, signal: Tensor) -> Tensor:
    """activation(gate) * signal: SwiGLU, GeGLU, GLU and gated recurrences."""
    activated = either(
        F.silu(gate),
        F.gelu(gate),
        torch.sigmoid(gate),
        F.relu(gate),
        torch.tanh(gate),
        F.mish(gate),
        spelled_activation(gate),
    )
    return part(part(activated, "gate") * signal, "product")


@pattern("renormalised", weights=(2, 3))
def renormalised(weights: Tensor) -> Tensor:
    """w / sum(w): router weights scaled to one after the best experts were chosen."""
    total = any_axis(weights.sum(-1, keepdim=True))
    return weights / part(either(total, total + 1e-20, torch.clamp_min(total, 1e-20)), "scale")


@pattern("router", dependent=("scores", "expert"), scores=(2, 3), expert=(2, 3))
def router(scores: Tensor, expert: Tensor) -> Tensor:
    """w_k * E_k(x): the output (or input) of each expert times its weight, the scores normalised before or after the
    choice of the best, or of all experts at once; the axis of experts is another one than that of their outputs.
    """
    best = any_axis(torch.topk(scores, 3)[0])
    among = either(any_axis(torch.softmax(scores, -1)), torch.sigmoid(scores))
    by_index = any_axis(torch.gather(among, -1, torch.ones_like(scores).long()))
    chosen = chain(either(best, by_index), adding=False)
    weights = chain(either(chosen, any_axis(torch.softmax(chosen, -1)), torch.sigmoid(chosen)), adding=False)
    return part(part(weights, "weight") * expert, "product")
