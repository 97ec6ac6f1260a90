"""Rules that carry relevance itself: what they pass on is not proportional to x, so no gradient form exists."""

from __future__ import annotations

import torch
from torch import Tensor

from fxlrp.rules.elementary import gradient
from fxlrp.rules.operation import Operation
from fxlrp.rules.primitives import carry
from fxlrp.rules.rule import Cite, Conserves, Message, rule

ZENNIT = "Anders et al. 2021, zennit"


@rule(
    "activation",
    "softmax",
    "selection",
    "scale",
    "shift",
    conserves=Conserves.EXACTLY,
    source=Cite("Bach et al. 2015; Chefer et al. 2021, code", "layers whose relevance is copied"),
    message=Message.RELEVANCE,
)
def pass_through(op: Operation, x: Tensor, *rest: Tensor) -> Tensor:
    """R_x = R_y, entry by entry, whatever the values.  x, y: any shape, the same for both (x is broadcast).

    Of a sum with constants (*shift*) the constants receive none. A maximum over an axis or of two values is no copy:
    there relevance follows the entries that were chosen.
    """
    y: Tensor = op(x, *rest)
    if sum(op.live) > 1 or y.ndim < x.ndim or y.numel() < x.numel():
        return gradient.relevances[0](op, x, *rest)
    return carry(y, x.expand_as(y), torch.ones_like(y))


@pass_through.reference
def _(op: Operation, relevance: Tensor, x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    if sum(op.live) > 1 or relevance.numel() < x.numel():
        parts: tuple[Tensor, ...] = gradient.references[0](op, relevance, x, *rest)
        return parts
    return relevance.sum_to_size(x.shape), *(torch.zeros_like(r) for r in rest if isinstance(r, Tensor))
