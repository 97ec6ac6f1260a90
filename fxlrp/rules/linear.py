"""Rules for linear maps: linear layers, convolutions, products with a constant matrix.

Notation: z_i = sum_j W_ij x_j + b_i, a+ = max(a, 0), a- = min(a, 0). Where a bias stands in a denominator, its
share of the relevance is a source of its own and appears in the ledger.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from fxlrp.rules.choices import BiasShare, Denominators, Stabiliser, away_from_zero
from fxlrp.rules.dense import jacobian, matrix, shares
from fxlrp.rules.operation import Operation
from fxlrp.rules.primitives import ratio, same_value
from fxlrp.rules.ranges import NotNegative, Range, Share, sums_to_one
from fxlrp.rules.rule import Cite, Conserves, rule
from fxlrp.rules.shares import Shares, proportional_rule, share_rule

LINEAR = ("linear", "convolution", "mixing")
BACH = "Bach et al. 2015, On Pixel-Wise Explanations"


def positive(x: Tensor) -> Tensor:
    """max(x, 0), with no message where x is zero."""
    return torch.relu(x)


def negative(x: Tensor) -> Tensor:
    """min(x, 0), with no message where x is zero."""
    return -torch.relu(-x)


def without(bias: Tensor | None) -> Tensor | None:
    """Zero in place of a bias, if there is one."""
    return None if bias is None else 0 * bias


def affine(op: Operation, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The operation on other operands; one that takes no bias is given none."""
    result: Tensor = op(x, weight) if len(op.live) == op.factors else op(x, weight, bias)
    return result


@proportional_rule(*LINEAR, "add", "sum", "movement", "fork", source=Cite(BACH, "eq. 58"), leak_kind="epsilon")
def epsilon(z: Tensor, *, epsilon: NotNegative = 1e-6, stabiliser: Stabiliser = Stabiliser.SIGNED) -> Tensor:
    """R_j = x_j sum_i W_ij R_i / (z_i + epsilon sign z_i), that is g_j = sum_i W_ij kappa_i g_i, kappa = z / (z
    + epsilon sign z).

    x: any shape the operation takes; a sum is a map with weights of one. epsilon has the unit of z; at 0 the rule
    is the plain gradient. ``stabiliser``: ``signed`` as above, ``unsigned`` z + epsilon, ``masked`` the same but
    no share at z = 0.
    """
    return stabiliser(z, epsilon)


@epsilon.reference
def _(
    op: Operation,
    relevance: Tensor,
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float,
    stabiliser: Stabiliser,
) -> Tensor | tuple[Tensor, ...]:
    if not op.factors:  # a sum, or values that move: each term takes its own part
        operands = [x] if weight is None else [x, weight]
        share = ratio(relevance, stabiliser(op(*operands), epsilon))
        return tuple(
            operand * torch.einsum("ij,i->j", jacobian(op, operands, i), share.flatten()).reshape(operand.shape)
            for i, operand in enumerate(operands)
        )
    assert weight is not None
    z = affine(op, x, weight, bias).flatten()
    contributions = matrix(op, x, weight) * x.flatten()[None, :]
    return shares(contributions, stabiliser(z, epsilon), relevance.flatten()).reshape(x.shape)


def _bias_shares(bias: Tensor | None, share: BiasShare) -> tuple[Tensor | None, Tensor | None]:
    """What of the bias stands in the positive and in the negative denominator."""
    if bias is None:
        return None, None
    if share is BiasShare.SIGNED:
        return positive(bias), negative(bias)
    return (bias, bias) if share is BiasShare.WHOLE else (0 * bias, 0 * bias)


@share_rule(
    *LINEAR, source=Cite(BACH, "eq. 60"), leak_kind="dead output", relation=sums_to_one("alpha", "beta", sign=-1)
)
def alphabeta(
    op: Operation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    alpha: Annotated[float, Range(1)] = 2.0,
    beta: NotNegative = 1.0,
    epsilon: NotNegative = 0.0,
    stabiliser: Stabiliser = Stabiliser.SIGNED,
    bias_share: BiasShare = BiasShare.SIGNED,
    denominators: Denominators = Denominators.JOINT,
) -> Shares:
    """R_j = alpha sum_i z_ij+ / Z_i+ R_i - beta sum_i z_ij- / Z_i- R_i with z_ij = W_ij x_j, alpha - beta = 1.

    x: any shape the operation takes. Contributions are split by the sign of W_ij x_j; Z+ and Z- include b+ and
    b- (``bias_share``: or the ``whole`` bias, or ``none``). An output with no contribution of a sign has nobody
    to pass that share to: it is the declared leak. Products of two positive and of two negative numbers share one
    denominator (``joint``); with ``separate`` ones each has its own, and an output that has both passes its
    relevance on twice (Chefer et al.'s baseline code). epsilon stabilises the denominators (unit of z).
    """
    plus, minus = _bias_shares(bias, bias_share)
    found: Shares = []
    for part, (same, other), constant in ((alpha, _SIGNS[0], plus), (-beta, _SIGNS[1], minus)):
        if part:
            parts = (
                affine(op, positive(x), weight.clamp(**same), constant),
                affine(op, negative(x), weight.clamp(**other), without(bias)),
            )
            for value in (parts[0] + parts[1],) if denominators is Denominators.JOINT else parts:
                found.append((part * value, stabiliser(value, epsilon)))
    return found


#: The bounds on W that make W x positive, and negative, for positive x and for negative x.
_SIGNS: tuple[tuple[dict[str, int], dict[str, int]], ...] = (({"min": 0}, {"max": 0}), ({"max": 0}, {"min": 0}))


@alphabeta.reference
def _(
    op: Operation, relevance: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any
) -> Tensor:
    dense, flat = matrix(op, x, weight), x.flatten()
    constant = affine(op, x, weight, bias).flatten() - dense @ flat
    result = torch.zeros_like(flat)
    for i, row in enumerate(dense * flat):
        offset = torch.zeros(()) if options["bias_share"] is BiasShare.NONE else constant[i]
        for part, sign in ((options["alpha"], 1), (-options["beta"], -1)):
            chosen = row * (sign * row > 0)
            extra = offset * (sign * offset > 0) if options["bias_share"] is BiasShare.SIGNED else offset
            groups = [(chosen, extra)]
            if options["denominators"] is Denominators.SEPARATE:
                groups = [(chosen * (flat > 0), extra), (chosen * (flat < 0), 0 * extra)]
            for numerator, added in groups:
                z = options["stabiliser"](numerator.sum() + added, options["epsilon"])
                result += part * ratio(numerator, z.expand_as(numerator)) * relevance.flatten()[i]
    return result.reshape(x.shape)


@share_rule(*LINEAR, source=Cite("Montavon et al. 2017, Deep Taylor", "z+ rule"), leak_kind="dead output")
def z_plus(
    op: Operation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: NotNegative = 0.0,
    stabiliser: Stabiliser = Stabiliser.SIGNED,
    bias_share: BiasShare = BiasShare.SIGNED,
    denominators: Denominators = Denominators.JOINT,
) -> Shares:
    """R_j = sum_i z_ij+ / Z_i+ R_i: alpha-beta with alpha = 1 and beta = 0.  x: any shape the operation takes."""
    options = {
        "epsilon": epsilon,
        "stabiliser": stabiliser,
        "bias_share": bias_share,
        "denominators": denominators,
    }
    return alphabeta.shares(op, x, weight, bias, alpha=1.0, beta=0.0, **options)


@z_plus.reference
def _(op: Operation, relevance: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Any:
    return alphabeta.references[0](op, relevance, x, weight, bias, alpha=1.0, beta=0.0, **options)


@share_rule(
    *LINEAR,
    source=Cite(BACH, "eq. 60, in its own signs"),
    leak_kind="dead output",
    relation=sums_to_one("alpha", "beta"),
)
def bach60(
    op: Operation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    alpha: NotNegative = 2.0,
    beta: float = -1.0,
    epsilon: NotNegative = 0.0,
    bias_share: BiasShare = BiasShare.SIGNED,
) -> Shares:
    """R_j = alpha sum_i z_ij+ / Z_i+ R_i + beta sum_i z_ij- / Z_i- R_i with alpha + beta = 1: alpha-beta with the
    sign of beta as Bach et al. write it.  x: any shape the operation takes.
    """
    return alphabeta.shares(op, x, weight, bias, alpha=alpha, beta=-beta, epsilon=epsilon, bias_share=bias_share)


@bach60.reference
def _(op: Operation, relevance: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Any:
    options |= {"beta": -options["beta"], "stabiliser": Stabiliser.SIGNED, "denominators": Denominators.JOINT}
    return alphabeta.references[0](op, relevance, x, weight, bias, **options)


@share_rule(
    *LINEAR,
    source=Cite("Wu & Ong 2020, code", "util/lrp.py; captum's alpha-1-beta-0"),
    leak_kind="epsilon",
    relation=sums_to_one("alpha", "beta"),
)
def weight_sign(
    op: Operation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    alpha: Share = 0.5,
    beta: Share = 0.5,
    epsilon: NotNegative = 1e-7,
    bias_share: BiasShare = BiasShare.SIGNED,
) -> Shares:
    """R_j = x_j sum_i (alpha W_ij+ / (Z_i+ + epsilon) + beta W_ij- / (Z_i- - epsilon)) R_i, Z+ = W+ x + b+.

    x: any shape the operation takes. Split by the sign of the weight alone, which is alpha-beta where x >= 0; for
    x of both signs the denominators are signed sums that may vanish. alpha + beta = 1. epsilon (unit of z) moves
    the first denominator up and the second down, whatever their signs.
    """
    plus, minus = _bias_shares(bias, bias_share)
    gain, loss = affine(op, x, weight.clamp(min=0), plus), affine(op, x, weight.clamp(max=0), minus)
    return [(alpha * gain, gain + epsilon)] + ([(beta * loss, loss - epsilon)] if beta else [])


@weight_sign.reference
def _(
    op: Operation, relevance: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any
) -> Tensor:
    dense, flat, r = matrix(op, x, weight), x.flatten(), relevance.flatten()
    constant = affine(op, x, weight, bias).flatten() - dense @ flat
    plus, minus = {
        BiasShare.SIGNED: (constant.clamp(min=0), constant.clamp(max=0)),
        BiasShare.WHOLE: (constant, constant),
        BiasShare.NONE: (0 * constant, 0 * constant),
    }[options["bias_share"]]
    up, down = dense.clamp(min=0) * flat, dense.clamp(max=0) * flat
    above, below = up.sum(1) + plus + options["epsilon"], down.sum(1) + minus - options["epsilon"]
    return (options["alpha"] * shares(up, above, r) + options["beta"] * shares(down, below, r)).reshape(x.shape)


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
    epsilon: NotNegative = 1e-6,
    bound: NotNegative = 10.0,
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
