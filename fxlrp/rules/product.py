"""Rules for products and quotients of values that all carry relevance, and for sums of two such values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxlrp.rules.operation import Operation
from fxlrp.rules.primitives import ratio, scale_message
from fxlrp.rules.rule import Cite, Conserves, rule

ACHTIBAT = "Achtibat et al. 2024, AttnLRP"


@rule("product", conserves=Conserves.EXACTLY, source=Cite(ACHTIBAT, "eq. 14, prop. 3.3"))
def split(op: Operation, *operands: Tensor, first: float = -1.0) -> Tensor:
    """g_a = lambda_a VJP_a(g), g_b = lambda_b VJP_b(g) with lambda_a + lambda_b = 1, for a * b, a @ b and any
    bilinear operation.

    Equal shares by default (the *uniform* rule); ``first`` in [0, 1] is the share of the first factor, the rest
    goes to the others alike. Each factor's relevance sums to its share of sum(y g_y). Factors: any shapes the
    operation takes.
    """
    live = [i for i, alive in enumerate(op.live[: op.factors]) if alive]
    shares = {i: 1 / len(live) for i in live}
    if first >= 0:
        shares = {i: first if i == live[0] else (1 - first) / (len(live) - 1) for i in live}
    if len(set(shares.values())) == 1 and op.factors == len(op.live):
        return scale_message(op(*operands), shares[live[0]])
    result: Tensor = op(*(scale_message(x, shares[i]) if i in shares else x for i, x in enumerate(operands)))
    return result


@split.reference
def _(op: Operation, relevance: Tensor, a: Tensor, b: Tensor, *, first: float) -> tuple[Tensor, Tensor]:
    share = 0.5 if first < 0 else first
    results = []
    for index, part in ((0, share), (1, 1 - share)):
        x = (a, b)[index]
        rows = torch.autograd.functional.jacobian(lambda v, i=index: op(v, b) if i == 0 else op(a, v), x)
        dense = rows.reshape(-1, x.numel())
        contributions = dense * x.flatten()[None, :]
        results.append(
            part * torch.einsum("ij,i->j", contributions, ratio(relevance, op(a, b)).flatten()).reshape(x.shape)
        )
    return results[0], results[1]


@rule("product", conserves=Conserves.EXACTLY, source=Cite("Arras et al. 2017, WASSA", "signal-take-all"))
def take_all(op: Operation, *operands: Tensor, signal: int = 0) -> Tensor:
    """g_signal = VJP(g), the other factors are constants: all relevance of a product goes to factor number ``signal``.

    Factors: any shapes the operation takes.
    """
    result: Tensor = op(*(x if i == signal or i >= op.factors else x.detach() for i, x in enumerate(operands)))
    return result


@take_all.reference
def _(op: Operation, relevance: Tensor, a: Tensor, b: Tensor, *, signal: int) -> tuple[Tensor, Tensor]:
    chosen = (a, b)[signal]
    taken = _by_jacobian(lambda v: op(v, b) if signal == 0 else op(a, v), chosen, relevance)
    return (taken, torch.zeros_like(b)) if signal == 0 else (torch.zeros_like(a), taken)


@rule("quotient", conserves=Conserves.EXACTLY, source=Cite("Ali et al. 2022", "eq. 9, for any denominator"))
def detach_denominator(op: Operation, a: Tensor, b: Tensor) -> Tensor:
    """y = a / b.detach(): R_a = R_y, the denominator is a constant scale.  a, b: shapes that broadcast, or a
    system b y = a that is solved, where R_a = a (b^-T (R_y / y)).
    """
    result: Tensor = op(a, b.detach())
    return result


@detach_denominator.reference
def _(op: Operation, relevance: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return _by_jacobian(lambda v: op(v, b), a, relevance), torch.zeros_like(b)


def _by_jacobian(linear: Callable[[Tensor], Tensor], x: Tensor, relevance: Tensor) -> Tensor:
    """R_j = x_j sum_i (dy_i / dx_j) R_i / y_i of a linear function y of x, with its Jacobian written out."""
    rows = torch.autograd.functional.jacobian(linear, x)
    return x * torch.einsum("ij,i->j", rows.reshape(-1, x.numel()), ratio(relevance, linear(x)).flatten()).view_as(x)


class _NormalisedAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, a: Tensor, b: Tensor, sign: float) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.sign = sign
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, None]:
        a, b = ctx.saved_tensors
        g_a, g_b = grads[0].sum_to_size(a.shape), (ctx.sign * grads[0]).sum_to_size(b.shape)
        share_a, share_b = balance(_per_sample(a * g_a), _per_sample(b * g_b))
        return None, g_a * share_a, g_b * share_b, None


def _per_sample(relevance: Tensor) -> Tensor:
    return relevance.sum(tuple(range(1, relevance.ndim)), keepdim=True) if relevance.ndim > 1 else relevance


def balance(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """lambda_a = sign(A) (A + B) / (|A| + |B|) and lambda_b likewise, for the sums A, B of the two branches'
    relevance.
    """
    if a.shape != b.shape:  # operands of different rank broadcast: their sums as numbers of the whole
        a, b = a.sum(), b.sum()
    factor = ratio(a + b, a.abs() + b.abs())
    return torch.sign(a) * factor, torch.sign(b) * factor


@rule("add", conserves=Conserves.EXACTLY, source=Cite("Chefer et al. 2021, CVPR", "eq. 9-10, per sample"))
def normalised_add(op: Operation, *operands: Tensor) -> Tensor:
    """g_a = lambda_a g, g_b = lambda_b g with A = sum a g, B = sum b g of one sample and lambda_a = sign(A)(A +
    B)/(|A| + |B|).

    Two branches whose relevance cancels are kept from exploding; branches of the same sign are left as they are.
    a, b: [batch, ...]. A sum with a constant is a plain sum.
    """
    if len(operands) != 2 or not all(op.live):
        result: Tensor = op(*operands)
        return result
    a, b = operands
    return normalised(op(a.detach(), b.detach()), a, b, float(op(torch.zeros(()), torch.ones(()))))


def normalised(y: Tensor, a: Tensor, b: Tensor, sign: float) -> Tensor:
    """``y = a + sign b`` whose message is balanced between its terms."""
    result: Any = _NormalisedAdd.apply(y, a, b, sign)  # type: ignore[no-untyped-call]
    return result


@normalised_add.reference
def _(op: Operation, relevance: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    y = op(a, b)
    first, second = a * ratio(relevance, y), (y - a) * ratio(relevance, y)
    axes = tuple(range(1, y.ndim))
    sum_a, sum_b = first.sum(axes, keepdim=True), second.sum(axes, keepdim=True)
    total = relevance.sum(axes, keepdim=True)
    size = sum_a.abs() + sum_b.abs()
    size_a, size_b = ratio(sum_a.abs(), size), ratio(sum_b.abs(), size)
    return first * size_a * ratio(total, sum_a), second * size_b * ratio(total, sum_b)
