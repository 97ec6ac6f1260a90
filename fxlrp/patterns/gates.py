"""Gates and routers: an activated branch times a linear one, expert weights times expert outputs, pooled means."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fxlrp.graph.activations import spelled_activation
from fxlrp.graph.axes import acts_along
from fxlrp.graph.live import between
from fxlrp.graph.operator_table import CHOICES
from fxlrp.graph.operators import packet
from fxlrp.patterns.language import any_axis, chain, either, part, pattern
from fxlrp.patterns.matcher import Match


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


def _chosen(match: Match) -> str | None:
    """A router chooses: between its scores and the product some of them are selected (topk, sort, argmax, and what
    these indices pick). A gate weighs all that there is.
    """
    way = between(match.inputs["scores"], match.parts["weight"])
    if any(packet(node.target) in CHOICES and acts_along(node) for node in way):
        return None
    return "a gate, and no router: nothing is chosen (topk, argmax, sort) between its scores and the product"


@pattern("router", dependent=("scores", "expert"), check=_chosen, scores=(2, 3), expert=(2, 3))
def router(scores: Tensor, expert: Tensor) -> Tensor:
    """w_k * E_k(x): the output (or input) of each chosen expert times its weight, the scores normalised before or after
    the choice of the best; the axis of experts is another one than that of their outputs. Weights of all experts
    at once are gates: nothing is chosen.
    """
    among = chain(either(any_axis(torch.softmax(scores, -1)), torch.sigmoid(scores)), adding=False)
    best = either(any_axis(torch.topk(scores, 3)[0]), any_axis(torch.sort(scores, -1)[0]))
    greatest = any_axis(torch.max(among, -1, keepdim=True)[0])
    by_index = any_axis(torch.gather(among, -1, torch.ones_like(scores).long()))
    chosen = chain(either(best, greatest, by_index), adding=False)
    weights = chain(either(chosen, any_axis(torch.softmax(chosen, -1)), torch.sigmoid(chosen)), adding=False)
    return part(part(weights, "weight") * expert, "product")
