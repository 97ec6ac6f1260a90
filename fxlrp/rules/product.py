"""Rules for products and quotients of values that all carry relevance, and for sums of two such values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from fxlrp.rules import elementary
from fxlrp.rules.choices import Stabiliser
from fxlrp.rules.dense import jacobian
from fxlrp.rules.operation import Operation
from fxlrp.rules.primitives import as_relevance, carry, carry_all, ratio, received, scale_message
from fxlrp.rules.ranges import NotNegative, Range
from fxlrp.rules.rule import Cite, Conserves, rule, twin

ACHTIBAT = "Achtibat et al. 2024, AttnLRP"


def _kappa_leak(op: Operation, y: Tensor, g: Tensor, *operands: Tensor, **options: Any) -> Tensor:
    """sum of y g (1 - kappa), kappa = y / stabilised y."""
    return y * g * (1 - ratio(y, options["stabiliser"](y, options["epsilon"])))


def _split_scales(parameters: Mapping[str, Any]) -> tuple[float, float] | None:
    """The shares of two factors, where no stabiliser keeps anything."""
    first = float(parameters["first"])
    shares = (0.5, 0.5) if first < 0 else (first, 1 - first)
    return None if parameters["epsilon"] else shares


@rule(
    "product",
    conserves=Conserves.WITH_LEAK,
    source=Cite(ACHTIBAT, "eq. 14, prop. 3.3"),
    leak=_kappa_leak,
    leak_kind="epsilon",
    scales=_split_scales,
)
def split(
    op: Operation,
    *operands: Tensor,
    first: Annotated[float, Range(0, 1, also=(-1,))] = -1.0,
    epsilon: NotNegative = 0.0,
    stabiliser: Stabiliser = Stabiliser.SIGNED,
) -> Tensor:
    """R_a = lambda_a a sum (dy / da) R_y / (y + epsilon sign y), and so for b, with lambda_a + lambda_b = 1: g_a =
    lambda_a VJP_a(kappa g), for a * b, a @ b and any bilinear operation.

    Equal shares by default (the *uniform* rule); ``first`` in [0, 1] is the share of the first factor, the rest
    goes to the others alike. Each factor's relevance sums to its share of sum(y g_y), less what epsilon (unit of y)
    keeps, kappa = y / (y + epsilon sign y). Factors: any shapes the operation takes.
    """
    live = [i for i, alive in enumerate(op.live[: op.factors]) if alive]
    shares = {i: 1 / len(live) for i in live}
    if first >= 0:
        shares = {i: first if i == live[0] else (1 - first) / (len(live) - 1) for i in live}
    if len(set(shares.values())) == 1 and op.factors == len(op.live):
        y = scale_message(op(*operands), shares[live[0]])
    else:
        y = op(*(scale_message(x, shares[i]) if i in shares else x for i, x in enumerate(operands)))
    return scale_message(y, ratio(y, stabiliser(y, epsilon)).detach()) if epsilon else y


def _share_relevance(y: Tensor, *parts: tuple[Tensor, Tensor | float]) -> Tensor:
    """``y``, whose relevance reaches each factor times its share, undivided: also where y is 0."""
    return carry_all(y, *((x.expand_as(y), torch.ones_like(y) * part) for x, part in parts))


@split.in_relevance
def _(
    op: Operation, *operands: Tensor, epsilon: float = 0.0, stabiliser: Stabiliser = Stabiliser.SIGNED, **options: Any
) -> Tensor:
    """R_y / stabilised y in place of kappa R_y / y."""
    if not epsilon and _entrywise(op, operands) and all(op.live):
        first = 0.5 if options.get("first", -1.0) < 0 else options["first"]
        return _share_relevance(op(*operands), (operands[0], first), (operands[1], 1 - first))
    y = split.surrogate(op, *map(as_relevance, operands), **options)
    return scale_message(y, ratio(torch.ones_like(y), stabiliser(y, epsilon)).detach())


@split.reference
def _(
    op: Operation, relevance: Tensor, a: Tensor, b: Tensor, *, first: float, epsilon: float, stabiliser: Stabiliser
) -> tuple[Tensor, Tensor]:
    share = 0.5 if first < 0 else first
    results = []
    for index, part in ((0, share), (1, 1 - share)):
        x = (a, b)[index]
        contributions = jacobian(op, (a, b), index) * x.flatten()[None, :]
        y = stabiliser(op(a, b), epsilon)
        results.append(part * torch.einsum("ij,i->j", contributions, ratio(relevance, y).flatten()).reshape(x.shape))
    return results[0], results[1]


def _shares_of_values(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a / (a + b) and b / (a + b); one half where a + b is 0."""
    total = a + b
    nothing = total == 0
    share = torch.where(nothing, 0.5, ratio(a, total))
    return share, torch.where(nothing, 0.5, ratio(b, total))


def _proportional(op: Operation, a: Tensor, b: Tensor, sizes: tuple[Tensor, Tensor]) -> Tensor:
    y = op(a, b)
    shares = _shares_of_values(*torch.broadcast_tensors(*sizes))
    return carry_all(y, (a, shares[0] * b), (b, shares[1] * a))


def _entrywise(op: Operation, operands: tuple[Tensor, ...]) -> bool:
    """Whether the operation is a * b of two live factors; of any other product there is no share by entry."""
    return op.operator.scales and len(operands) == 2


@rule("product", conserves=Conserves.EXACTLY, source=Cite("Arras et al. 2019, sec. 3.1", "LRP-prop"))
def share(op: Operation, *operands: Tensor) -> Tensor:
    """R_a = a / (a + b) R_y, R_b = b / (a + b) R_y, entry by entry of a * b: g_a = a / (a + b) b g.

    a, b: shapes that broadcast; halves where a + b is 0. A product that is not entry by entry is split evenly.
    """
    if not _entrywise(op, operands):
        return split.surrogate(op, *operands)
    a, b = operands
    return _proportional(op, a, b, (a.detach(), b.detach()))


@share.in_relevance
def _(op: Operation, *operands: Tensor) -> Tensor:
    """R_a = a / (a + b) R_y, R_b = b / (a + b) R_y as it stands; of any other product the twin."""
    if not _entrywise(op, operands):
        return twin(share.surrogate, op, *operands)
    a, b = torch.broadcast_tensors(*operands)
    return _share_relevance(op(*operands), *zip((a, b), _shares_of_values(a, b), strict=True))


@share.reference
def _(op: Operation, relevance: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if not _entrywise(op, (a, b)):
        return split.references[0](op, relevance, a, b, **split.bind({}))
    return (
        (relevance * a / (a + b)).sum_to_size(a.shape),
        (relevance * b / (a + b)).sum_to_size(b.shape),
    )


@rule("product", conserves=Conserves.EXACTLY, source=Cite("Arras et al. 2019, sec. 3.1", "LRP-abs"))
def absolute_share(op: Operation, *operands: Tensor) -> Tensor:
    """R_a = |a| / (|a| + |b|) R_y, R_b = |b| / (|a| + |b|) R_y, entry by entry of a * b: g_a = |a| / (|a| + |b|) b g.

    a, b: shapes that broadcast; halves where both are 0. A product that is not entry by entry is split evenly.
    """
    if not _entrywise(op, operands):
        return split.surrogate(op, *operands)
    a, b = operands
    return _proportional(op, a, b, (a.detach().abs(), b.detach().abs()))


@absolute_share.in_relevance
def _(op: Operation, *operands: Tensor) -> Tensor:
    """R_a = |a| / (|a| + |b|) R_y, R_b = |b| / (|a| + |b|) R_y as it stands; of any other product the twin."""
    if not _entrywise(op, operands):
        return twin(absolute_share.surrogate, op, *operands)
    a, b = torch.broadcast_tensors(*operands)
    return _share_relevance(op(*operands), *zip((a, b), _shares_of_values(a.abs(), b.abs()), strict=True))


@absolute_share.reference
def _(op: Operation, relevance: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if not _entrywise(op, (a, b)):
        return split.references[0](op, relevance, a, b, **split.bind({}))
    size = a.abs() + b.abs()
    return (
        (relevance * a.abs() / size).sum_to_size(a.shape),
        (relevance * b.abs() / size).sum_to_size(b.shape),
    )


@rule("product", conserves=Conserves.EXACTLY, source=Cite("Arras et al. 2017, WASSA", "signal-take-all"))
def take_all(op: Operation, *operands: Tensor, signal: Annotated[int, Range(0, 1)] = 0) -> Tensor:
    """g_signal = VJP(g), the other factors are constants: all relevance of a product goes to factor number ``signal``.

    Factors: any shapes the operation takes.
    """
    result: Tensor = op(*(x if i == signal or i >= op.factors else x.detach() for i, x in enumerate(operands)))
    return result


@take_all.in_relevance
def _(op: Operation, *operands: Tensor, signal: int = 0) -> Tensor:
    """R_signal = R_y, entry by entry, where the product is; else the twin."""
    if not _entrywise(op, operands):
        return twin(take_all.surrogate, op, *operands, signal=signal)
    y = op(*operands)
    return carry(y, operands[signal].expand_as(y), torch.ones_like(y))


@take_all.reference
def _(op: Operation, relevance: Tensor, a: Tensor, b: Tensor, *, signal: int) -> tuple[Tensor, Tensor]:
    taken = _by_jacobian(op, (a, b), signal, relevance)
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
    return _by_jacobian(op, (a, b), 0, relevance), torch.zeros_like(b)


def _by_jacobian(op: Operation, operands: tuple[Tensor, Tensor], index: int, relevance: Tensor) -> Tensor:
    """R_j = x_j sum_i (dy_i / dx_j) R_i / y_i of one operand x in which y is linear, with its Jacobian written out."""
    x, message = operands[index], ratio(relevance, op(*operands)).flatten()
    return x * torch.einsum("ij,i->j", jacobian(op, operands, index), message).view_as(x)


class _NormalisedAdd(torch.autograd.Function):
    """In gradients: g times the lambdas of :func:`balance`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, a: Tensor, b: Tensor, sign: float, axes: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.sign, ctx.axes = sign, axes
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        g_a, g_b = grads[0], ctx.sign * grads[0]
        share_a, share_b = balance(*(received(x, g).sum(ctx.axes, keepdim=True) for x, g in ((a, g_a), (b, g_b))))
        return None, (g_a * share_a).sum_to_size(a.shape), (g_b * share_b).sum_to_size(b.shape), None, None


class _NormalisedAddOfRelevance(torch.autograd.Function):
    """In relevance, each division stabilised as the authors' code has it."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, a: Tensor, b: Tensor, sign: float, axes: tuple[int, ...], epsilon: float, form: str
    ) -> Tensor:
        ctx.save_for_backward(y, a, b)
        ctx.options = sign, axes, epsilon, form
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y, a, b = ctx.saved_tensors
        sign, axes, epsilon, form = ctx.options

        def over(numerator: Tensor, denominator: Tensor) -> Tensor:
            return ratio(numerator, form(denominator, epsilon))

        share = over(grads[0], y)
        parts = [received(a, share), received(sign * b, share)]
        sums = [part.sum(axes, keepdim=True) for part in parts]
        total, size = grads[0].sum(axes, keepdim=True), sums[0].abs() + sums[1].abs()
        given = [part * over(over(s.abs(), size) * total, s) for part, s in zip(parts, sums, strict=True)]
        return None, given[0].sum_to_size(a.shape), given[1].sum_to_size(b.shape), None, None, None, None


def balance(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """lambda_a = sign(A) (A + B) / (|A| + |B|) and lambda_b likewise, for the sums A, B of the two branches'
    relevance.
    """
    factor = ratio(a + b, a.abs() + b.abs())
    return torch.sign(a) * factor, torch.sign(b) * factor


@rule("add", conserves=Conserves.EXACTLY, source=Cite("Chefer et al. 2021, CVPR", "eq. 9-10, per sample"))
def normalised_add(
    op: Operation,
    *operands: Tensor,
    whole_batch: bool = False,
    epsilon: NotNegative = 0.0,
    stabiliser: Stabiliser = Stabiliser.MASKED,
) -> Tensor:
    """g_a = lambda_a g, g_b = lambda_b g with A = sum a g, B = sum b g of one sample and lambda_a = sign(A)(A +
    B)/(|A| + |B|).

    Two branches whose relevance cancels are kept from exploding; branches of the same sign are left as they are.
    a, b: [batch, ...]; an additive constant (a position embedding, a mask) counts as a branch, a number does not.
    ``whole_batch`` sums over the batch as well, as the authors' code does: relevance then depends on the other
    samples. epsilon stabilises the divisions of the relevance form, as that code does (unit of a, and of relevance).
    """
    if not _branches(operands):
        result: Tensor = op(*operands)
        return result
    return _normalised(_NormalisedAdd, op, operands, whole_batch)


def _beside_samples(op: Operation, y: Tensor, whole_batch: bool) -> tuple[int, ...]:
    """The axes that a sample has in y; with ``whole_batch`` that of the samples as well."""
    return tuple(axis for axis in range(y.ndim) if whole_batch or axis != op.samples)


def _branches(operands: tuple[Any, ...]) -> bool:
    """Whether a sum has two branches: a number is none, nor its leaf in a ledger, nor a parameter without axes."""
    return len(operands) == 2 and all(isinstance(x, Tensor) and x.ndim for x in operands)


def _normalised(function: Any, op: Operation, operands: tuple[Tensor, ...], whole_batch: bool, *options: Any) -> Tensor:
    a, b = operands
    y = op(a.detach(), b.detach())
    sign_a, sign_b = (
        float(op(*unit)) for unit in ((torch.ones(()), torch.zeros(())), (torch.zeros(()), torch.ones(())))
    )
    first, second, sign = (a, b, sign_b) if sign_a == 1 else (b, a, sign_a)
    axes = _beside_samples(op, y, whole_batch)
    result: Tensor = function.apply(y, first, second, sign, axes, *options)
    return result


@normalised_add.in_relevance
def _(op: Operation, *operands: Tensor, whole_batch: bool, epsilon: float, stabiliser: Stabiliser) -> Tensor:
    """R_a = a R_y / y |A| / (|A| + |B|) (sum R_y) / A, and so for b, with A, B the sums of a R_y / y, b R_y / y."""
    if not _branches(operands):
        return elementary.gradient.relevances[0](op, *operands)
    return _normalised(_NormalisedAddOfRelevance, op, operands, whole_batch, epsilon, stabiliser)


@normalised_add.reference
def _(
    op: Operation, relevance: Tensor, a: Tensor, b: Tensor, *, whole_batch: bool, epsilon: float, stabiliser: Stabiliser
) -> tuple[Tensor, Tensor]:
    def over(numerator: Tensor, denominator: Tensor) -> Tensor:
        return ratio(numerator, stabiliser(denominator, epsilon).expand_as(numerator))

    y = op(a, b)
    if not _branches((a, b)):  # relevance is shared in proportion
        return a * ratio(relevance, y), (y - a) * ratio(relevance, y)
    share = over(relevance, y)
    first, second = a * share, (y - a) * share
    axes = _beside_samples(op, y, whole_batch)
    sum_a, sum_b = first.sum(axes, keepdim=True), second.sum(axes, keepdim=True)
    total, size = relevance.sum(axes, keepdim=True), sum_a.abs() + sum_b.abs()
    return (
        first * over(over(sum_a.abs(), size) * total, sum_a),
        second * over(over(sum_b.abs(), size) * total, sum_b),
    )
