"""Rules for linear maps: linear layers, convolutions, products with a constant matrix.

Notation: z_i = sum_j W_ij x_j + b_i, a+ = max(a, 0), a- = min(a, 0). Where a bias stands in a denominator, its
share of the relevance is a source of its own and appears in the ledger.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxlrp.errors import RulesetError, nearest
from fxlrp.rules.dense import matrix, shares
from fxlrp.rules.operation import Operation
from fxlrp.rules.primitives import away_from_zero, ratio, same_value, scale_message
from fxlrp.rules.rule import Cite, Conserves, rule

LINEAR = ("linear", "convolution", "mixing")
BACH = "Bach et al. 2015, On Pixel-Wise Explanations"


def positive(x: Tensor) -> Tensor:
    """max(x, 0), with no message where x is zero."""
    return x * (x > 0)


def negative(x: Tensor) -> Tensor:
    """min(x, 0), with no message where x is zero."""
    return x * (x < 0)


def without(bias: Tensor | None) -> Tensor | None:
    """Zero in place of a bias, if there is one."""
    return None if bias is None else 0 * bias


def _epsilon_leak(op: Operation, y: Tensor, g: Tensor, *operands: Tensor, epsilon: float) -> Tensor:
    """sum of z g (1 - kappa), kappa = z / (z + epsilon sign z)."""
    return y * g * (1 - ratio(y, away_from_zero(y, epsilon)))


@rule(
    *LINEAR,
    "add",
    conserves=Conserves.WITH_LEAK,
    source=Cite(BACH, "eq. 58"),
    leak=_epsilon_leak,
    leak_kind="epsilon",
)
def epsilon(op: Operation, *operands: Tensor, epsilon: float = 1e-6) -> Tensor:
    """R_j = x_j sum_i W_ij R_i / (z_i + epsilon sign z_i), that is g_j = sum_i W_ij kappa_i g_i, kappa = z / (z
    + epsilon sign z).

    x: any shape the operation takes. epsilon has the unit of z; at 0 the rule is the plain gradient.
    """
    z: Tensor = op(*operands)
    return scale_message(z, ratio(z, away_from_zero(z, epsilon)).detach())


@epsilon.reference
def _(
    op: Operation, relevance: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, epsilon: float
) -> Tensor | tuple[Tensor, Tensor]:
    if not op.factors:  # a sum: each term takes its own part
        first = op(x, torch.zeros_like(weight))
        share = relevance / away_from_zero(op(x, weight), epsilon)
        return first * share, (op(x, weight) - first) * share
    z = op(x, weight, bias).flatten() if op.factors + 1 == len(op.live) else op(x, weight).flatten()
    contributions = matrix(op, x, weight) * x.flatten()[None, :]
    return shares(contributions, away_from_zero(z, epsilon), relevance.flatten()).reshape(x.shape)


def affine(op: Operation, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The operation on other operands; one that takes no bias is given none."""
    result: Tensor = op(x, weight) if len(op.live) == op.factors else op(x, weight, bias)
    return result


def _alphabeta_expression(
    op: Operation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: float,
    beta: float,
    epsilon: float,
    bias_share: str,
    split_by: str,
) -> Tensor:
    z = affine(op, x, weight, bias)
    up, down = weight.clamp(min=0), weight.clamp(max=0)
    plus, minus = (None, None) if bias is None else _bias_shares(bias, bias_share)
    if split_by == "weight":
        gain, loss = affine(op, x, up, plus), affine(op, x, down, minus)
    else:
        gain = affine(op, positive(x), up, plus) + affine(op, negative(x), down, without(bias))
        loss = affine(op, positive(x), down, minus) + affine(op, negative(x), up, without(bias))
    share = gain * (alpha * ratio(z, away_from_zero(gain, epsilon) if epsilon else gain)).detach()
    return (
        share - loss * (beta * ratio(z, away_from_zero(loss, epsilon) if epsilon else loss)).detach() if beta else share
    )


def _bias_shares(bias: Tensor, share: str) -> tuple[Tensor, Tensor]:
    """What of the bias stands in the positive and in the negative denominator."""
    shares_by_name = {
        "signed": (positive(bias), negative(bias)),
        "whole": (bias, bias),
        "none": (0 * bias, 0 * bias),
    }
    if share not in shares_by_name:
        raise RulesetError(f"A bias has no share '{share}'.{nearest(share, shares_by_name)}")
    return shares_by_name[share]


def _alphabeta_leak(
    op: Operation, y: Tensor, g: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any
) -> Tensor:
    """alpha z g where an output has no positive contribution, -beta z g where it has no negative one."""
    options = {"alpha": 1.0, "beta": 0.0, "epsilon": 0.0, "split_by": "contribution", **options}
    return (y - _alphabeta_expression(op, x, weight, bias, **options)) * g


@rule(
    *LINEAR,
    conserves=Conserves.WITH_LEAK,
    source=Cite(BACH, "eq. 60"),
    leak=_alphabeta_leak,
    leak_kind="dead output",
)
def alphabeta(
    op: Operation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    alpha: float = 2.0,
    beta: float = 1.0,
    epsilon: float = 0.0,
    bias_share: str = "signed",
    split_by: str = "contribution",
) -> Tensor:
    """R_j = alpha sum_i z_ij+ / Z_i+ R_i - beta sum_i z_ij- / Z_i- R_i with z_ij = W_ij x_j, alpha - beta = 1.

    x: any shape the operation takes. Contributions are split by the sign of W_ij x_j; Z+ and Z- include b+ and
    b- (``bias_share``: or the ``whole`` bias, or ``none``). An output with no contribution of a sign has nobody
    to pass that share to: it is the declared leak. ``split_by="weight"`` splits by the sign of W_ij alone, as
    captum's alpha-1-beta-0 rule does (it supposes x >= 0, and takes the whole bias); ``epsilon`` stabilises the
    denominators (unit of z).
    """
    if split_by not in ("contribution", "weight"):
        raise RulesetError(
            f"Rule 'alphabeta' cannot split by '{split_by}'.{nearest(split_by, ('contribution', 'weight'))}"
        )
    z = affine(op, x, weight, bias)
    return same_value(z, _alphabeta_expression(op, x, weight, bias, alpha, beta, epsilon, bias_share, split_by))


@alphabeta.reference
def _(
    op: Operation, relevance: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any
) -> Tensor:
    dense = matrix(op, x, weight)
    contributions = dense * x.flatten()[None, :]
    plus, minus = _bias_shares(affine(op, x, weight, bias).flatten() - contributions.sum(1), options["bias_share"])
    gain, loss = contributions.clamp(min=0), contributions.clamp(max=0)
    if options["split_by"] == "weight":
        gain, loss = dense.clamp(min=0) * x.flatten(), dense.clamp(max=0) * x.flatten()
    above, below = gain.sum(1) + plus, loss.sum(1) + minus
    if options["epsilon"]:
        above, below = away_from_zero(above, options["epsilon"]), away_from_zero(below, options["epsilon"])
    r = relevance.flatten()
    return (options["alpha"] * shares(gain, above, r) - options["beta"] * shares(loss, below, r)).reshape(x.shape)


@rule(
    *LINEAR,
    conserves=Conserves.WITH_LEAK,
    source=Cite("Montavon et al. 2017, Deep Taylor", "z+ rule"),
    leak=_alphabeta_leak,
    leak_kind="dead output",
)
def z_plus(
    op: Operation, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, bias_share: str = "signed"
) -> Tensor:
    """R_j = sum_i z_ij+ / Z_i+ R_i: alpha-beta with alpha = 1 and beta = 0.  x: any shape the operation takes."""
    return alphabeta.surrogate(op, x, weight, bias, alpha=1.0, beta=0.0, bias_share=bias_share)


@z_plus.reference
def _(
    op: Operation,
    relevance: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    bias_share: str,
) -> Tensor:
    contributions = (matrix(op, x, weight) * x.flatten()[None, :]).clamp(min=0)
    constant = affine(op, x, weight, bias).flatten() - matrix(op, x, weight) @ x.flatten()
    total = contributions.sum(1) + _bias_shares(constant, bias_share)[0]
    return shares(contributions, total, relevance.flatten()).reshape(x.shape)


def _distribute_leak(
    op: Operation,
    y: Tensor,
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: float,
    bound: float,
) -> Tensor:
    """sum of (z + b - z f) g with the bounded factor f of the rule."""
    z = affine(op, x, weight, without(bias))
    return (y - z * _bounded_factor(y, z, epsilon, bound)) * g


def _bounded_factor(y: Tensor, z: Tensor, epsilon: float, bound: float) -> Tensor:
    return (y / away_from_zero(z, epsilon)).clamp(-bound, bound)


@rule(
    *LINEAR,
    conserves=Conserves.WITH_LEAK,
    source=Cite("design of this toolkit", "bias distributed in proportion to the contributions, bounded"),
    leak=_distribute_leak,
    leak_kind="bias not distributed",
)
def distribute(
    op: Operation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-6,
    bound: float = 10.0,
) -> Tensor:
    """g_x = W^T (f g) with f = (z + b) / (z + epsilon sign z), |f| <= bound: the bias is shared out in
    proportion to W_ij x_j.

    x: any shape the operation takes. Badly conditioned where z is near 0, hence the bound; what it keeps back
    is the declared leak.
    """
    z = affine(op, x, weight, without(bias.detach() if bias is not None else None))
    y = affine(op, x, weight, bias)
    return same_value(y, z * _bounded_factor(y, z, epsilon, bound).detach())


@distribute.reference
def _(
    op: Operation,
    relevance: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: float,
    bound: float,
) -> Tensor:
    contributions = matrix(op, x, weight) * x.flatten()[None, :]
    z, y = contributions.sum(1), affine(op, x, weight, bias).flatten()
    factor = (y / away_from_zero(z, epsilon)).clamp(-bound, bound)
    return torch.einsum("ij,i,i->j", contributions, factor, ratio(relevance.flatten(), y)).reshape(x.shape)
