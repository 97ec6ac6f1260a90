"""Rules that carry relevance itself: what they pass on is not proportional to x, so no gradient form exists."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxlrp.errors import RulesetError, nearest
from fxlrp.rules.dense import matrix, shares
from fxlrp.rules.elementary import gradient
from fxlrp.rules.linear import affine, without
from fxlrp.rules.operation import Operation
from fxlrp.rules.primitives import as_relevance, carry, stabilised
from fxlrp.rules.rule import Cite, Conserves, Message, rule
from fxlrp.rules.shares import Shares, relevance_share_rule

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


@relevance_share_rule(
    "linear", "convolution", source=Cite("Montavon et al. 2017, Deep Taylor", "z^B rule"), leak_kind="epsilon"
)
def z_box(
    op: Operation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    low: float = 0.0,
    high: float = 1.0,
    bounds: str = "fixed",
    epsilon: float = 1e-9,
    stabiliser: str = "signed",
) -> Shares:
    """R_j = sum_i (W_ij x_j - W_ij+ l - W_ij- h) / (sum_j of these + epsilon) R_i for inputs within l <= x <= h.

    x: [batch, ...]. l and h are ``low`` and ``high`` (``bounds: fixed``; unit of x) or the smallest and largest entry
    of each sample (``sample``). Biases take no part. epsilon has the unit of z.
    """
    least, most = _bounds(x.detach(), low, high, bounds)
    z = (
        affine(op, as_relevance(x), weight, without(bias))
        - affine(op, carry(least, x, least), weight.clamp(min=0), without(bias))
        - affine(op, carry(most, x, most), weight.clamp(max=0), without(bias))
    )
    return [(z, stabilised(z, epsilon, stabiliser))]


def _bounds(x: Tensor, low: float, high: float, bounds: str) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value that each entry may have."""
    if bounds not in ("fixed", "sample"):
        raise RulesetError(f"Rule 'z_box' has no bounds '{bounds}'.{nearest(bounds, ('fixed', 'sample'))}")
    if bounds == "fixed":
        return torch.full_like(x, low), torch.full_like(x, high)
    axes = tuple(range(1, x.ndim))
    return x.amin(axes, keepdim=True).expand_as(x), x.amax(axes, keepdim=True).expand_as(x)


@z_box.reference
def _(
    op: Operation, relevance: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any
) -> Tensor:
    dense, flat = matrix(op, x, weight), x.flatten()
    least, most = torch.full_like(x, options["low"]), torch.full_like(x, options["high"])
    if options["bounds"] == "sample":
        for index, sample in enumerate(x):
            least[index], most[index] = sample.min(), sample.max()
    contributions = dense * flat - dense.clamp(min=0) * least.flatten() - dense.clamp(max=0) * most.flatten()
    z = stabilised(contributions.sum(1), options["epsilon"], options["stabiliser"])
    return shares(contributions, z, relevance.flatten()).reshape(x.shape)
