"""The rescale rule of DeepLIFT: what an operation does to the difference between an input and a reference input.

Each form below is a linear map M with M (x - x_ref) = y - y_ref, so that differences are conserved through every
operation. Notation: dx = x - x_ref, dy = y - y_ref.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxlrp.errors import RulesetError
from fxlrp.graph.operators import Dependence, is_continuous
from fxlrp.rules.dense import jacobian
from fxlrp.rules.elementary import axis_of
from fxlrp.rules.operation import Operation, Reference
from fxlrp.rules.primitives import carry, carry_all, ratio, same_value
from fxlrp.rules.rule import Cite, Conserves, rule

#: How many roundings two numbers may be apart and still be the same but for rounding.
ROUNDINGS = 16.0


def difference(x: Tensor, reference: Tensor) -> Tensor:
    """x - x_ref, and 0 where both are equal, also infinite."""
    return torch.where(x == reference, 0.0, x - reference)


def between(x: Tensor, reference: Tensor, place: float) -> Tensor:
    """x_ref + place (x - x_ref) as a value whose message reaches x undiminished."""
    there = (reference + place * difference(x, reference)).detach()
    return carry(there, x, torch.ones_like(there))


def gauss_legendre(count: int) -> list[tuple[float, float]]:
    """Places in [0, 1] and weights that integrate polynomials of degree 2 count - 1 exactly."""
    places, weights = np.polynomial.legendre.leggauss(count)
    return list(zip((0.5 * (1 + places)).tolist(), (0.5 * weights).tolist(), strict=True))


@rule(
    "product",
    "quotient",
    "activation",
    "singular",
    "softmax",
    "selection",
    "rounding",
    "general",
    conserves=Conserves.DIFFERENCES,
    source=Cite("Shrikumar et al. 2017, DeepLIFT", "sec. 3.5.1, the rescale rule"),
    compares=True,
)
def rescale(op: Operation, *operands: Any, weighed: bool = False) -> Any:
    """g_x = g_y dy / dx, entry by entry.  x, y: shapes that broadcast. Where the mean of both ends' derivatives
    explains dy but for rounding, it stands in place of dy / dx, which rounding then spoils.

    Products a b, a @ b: the gradient at the midpoint, g_a = VJP_a at (b + b_ref) / 2, exact for a bilinear map (of more
    factors the mean over the straight path). Quotients a / b: the product of a and 1 / b, the latter with its own dy /
    dx. ``weighed``: products and quotients entry by entry have g_a = (w b + w' b_ref) g, g_b = (w' a + w a_ref) g with
    w + w' = 1, which is exact for any w: w = p'^2 / (p^2 + p'^2) for the sizes p = |b da| + |a_ref db|, p' = |b_ref da|
    + |a db| of the two ways from one end to the other, so that nothing large cancels where b is a norm's scale, which
    is 1 / sqrt(eps) on a reference of zeros. Softmax [..., n]: M = diag(L) - L L^T / sum L, L the logarithmic mean (s -
    s_ref) / (log s - log s_ref), which shifts of x leave as it is and which tends to the Jacobian; an entry that is
    masked receives nothing. A maximum: relevance goes to the entry that wins on the input where the maximum rises, else
    to the one that wins on the reference, times dy / dx. Any other operation: a combination c VJP_x + c' VJP_ref of the
    gradients at both ends, c and c' next to 1/2 with c J dx + c' J_ref dx = dy. Rounding has dy / dx, and 1 where dx is
    what rounding leaves.
    """
    if op.reference is None:
        raise RulesetError("Rule 'rescale' needs the values on a reference input, and this operation was given none.")
    if weighed and op.live == (True, True) and op.operator.scales:
        return _weighed(op, op.reference, operands)
    form = FORMS.get(op.operator.dependence, between_ends)
    if form in (_activation, _quotient) and not op.operator.entrywise:
        form = between_ends
    return form(op, op.reference, operands)


def _activation(op: Operation, reference: Reference, operands: Sequence[Any]) -> Tensor:
    """g_x = g_y dy / dx."""
    (x, *rest), (x_ref, *_) = operands, reference.operands
    y, slope = _value_and_slope(op, x, rest)
    _, slope_ref = _value_and_slope(reference.operation, x_ref.expand(x.shape), reference.operands[1:])
    dx, dy, mean = difference(x.detach(), x_ref), difference(y, reference.value), 0.5 * (slope + slope_ref)
    sizes = y.abs() + reference.value.abs() + mean.abs() * (x.detach().abs() + x_ref.abs())
    return carry_all(y, (x, torch.where(_rounded(dy - mean * dx, sizes), mean, ratio(dy, dx))))


def _value_and_slope(op: Operation, x: Tensor, rest: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """f(x) and its derivative, entry by entry."""
    shape = op(x.detach(), *rest).shape
    with torch.enable_grad():
        leaf = x.detach().expand(shape).clone().requires_grad_()
        value = op(leaf, *rest)
    (slope,) = torch.autograd.grad(value, leaf, torch.ones_like(value))
    return value.detach(), slope


def _rounded(missing: Tensor, size: Tensor) -> Tensor:
    """Where a number is what rounding leaves of numbers of this size."""
    return missing.abs() <= ROUNDINGS * torch.finfo(missing.dtype).eps * size


def _rounding(op: Operation, reference: Reference, operands: Sequence[Any]) -> Tensor:
    """g_x = g_y dy / dx, else g_y."""
    (x, *rest), (x_ref, *_) = operands, reference.operands
    y: Tensor = op(x.detach(), *rest)
    dx = difference(x.detach(), x_ref)
    alike = _rounded(dx, x.detach().abs() + x_ref.abs())
    slope = torch.where(alike, 1.0, ratio(difference(y, reference.value), dx))
    return carry_all(y, (x, slope))


def _product(op: Operation, reference: Reference, operands: Sequence[Any]) -> Tensor:
    """g_a = mean of VJP_a over the straight path from the reference; of two factors that is VJP_a at the midpoint."""
    live = [i for i, alive in enumerate(op.live[: op.factors]) if alive]
    total: Tensor = torch.zeros(())
    for place, weight in gauss_legendre((len(live) + 1) // 2):
        there = list(operands)
        for i in live:
            there[i] = between(operands[i], reference.operands[i], place)
        total = total + weight * op(*there)
    return same_value(op(*operands), total)


def _quotient(op: Operation, reference: Reference, operands: Sequence[Any]) -> Tensor:
    """g_a = (1 / b + 1 / b_ref) / 2 g_y; g_b = -(a + a_ref) / 2 / (b b_ref) g_y."""
    if op.live != (True, True):
        return _activation(op, reference, operands)
    (a, b), (a_ref, b_ref) = operands, reference.operands
    inverse = 0.5 * (1 / b + 1 / b_ref)
    return carry_all(op(a, b), (a, inverse), (b, -0.5 * (a + a_ref) / (b * b_ref)))


def _weighed(op: Operation, reference: Reference, operands: Sequence[Any]) -> Tensor:
    """Of a product g_a = (w b + w' b_ref) g, g_b = (w' a + w a_ref) g; of a quotient the same for 1 / b, which passes
    on -1 / (b b_ref).
    """
    (a, b), (a_ref, b_ref) = operands, reference.operands
    inverse = op.operator.dependence is Dependence.QUOTIENT
    ends = (a.detach(), 1 / b.detach() if inverse else b.detach()), (a_ref, 1 / b_ref if inverse else b_ref)
    of_a, of_b = two_ways(*ends[0], *ends[1])
    return carry_all(op(a, b), (a, of_a), (b, -of_b / (b.detach() * b_ref) if inverse else of_b))


def two_ways(a: Tensor, b: Tensor, a_ref: Tensor, b_ref: Tensor) -> tuple[Tensor, Tensor]:
    """The slopes of a b by a and by b: b and a_ref (a moves first), or b_ref and a, each weighed by the size of what it
    adds up: the way on which less cancels counts more.
    """
    da, db = difference(a, a_ref).abs(), difference(b, b_ref).abs()
    first, second = b.abs() * da + a_ref.abs() * db, b_ref.abs() * da + a.abs() * db
    size = torch.maximum(first, second)
    first, second = ratio(first, size).square(), ratio(second, size).square()
    w = torch.where(size == 0, 0.5, ratio(second, first + second))
    return w * b + (1 - w) * b_ref, (1 - w) * a + w * a_ref


def _softmax(op: Operation, reference: Reference, operands: Sequence[Any]) -> Tensor:
    """g_x = L (g - sum L g / sum L) with L = (s - s_ref) / (log s - log s_ref)."""
    (x, *rest), (x_ref, *_) = operands, reference.operands
    axis, s = axis_of(op), op(x, *rest).detach()
    logs = [torch.log_softmax(v.detach(), axis) for v in (x, x_ref)]
    mean = logarithmic_mean(s, reference.value, difference(*logs))
    moved = carry(torch.zeros_like(s), x, mean)
    return same_value(s, moved - ratio(mean, mean.sum(axis, keepdim=True)) * moved.sum(axis, keepdim=True))


def logarithmic_mean(s: Tensor, s_ref: Tensor, step: Tensor) -> Tensor:
    """(s - s_ref) / step for step = log s - log s_ref, s where they are equal; 0 where the step is not finite."""
    finite = torch.isfinite(step)
    near = torch.where(step.abs() < 1, step, 0.0)
    half = 0.5 * near
    rise = torch.where(half == 0, 1.0, ratio(torch.sinh(half), half))
    wide = ratio(s - s_ref, torch.where(finite, step, 0.0))
    return torch.where(finite, torch.where(step.abs() < 1, (s * s_ref).sqrt() * rise, wide), 0.0)


def between_ends(op: Operation, reference: Reference, operands: Sequence[Any]) -> Any:
    """c VJP_x + c' VJP_ref with c J dx + c' J_ref dx = dy; what no gradient at either end sees is not passed on."""
    live = [i for i, alive in enumerate(op.live) if alive]
    moved = list(reference.operands)
    for i in live:
        moved[i] = carry(reference.operands[i], operands[i], torch.ones_like(operands[i]))
    results = op(*operands)
    several = isinstance(results, (tuple, list))
    place = next(i for i, v in enumerate(results) if is_continuous(v)) if several else 0

    def value(on: Operation, *values: Any) -> Tensor:
        found = on(*values)
        y: Tensor = found[place] if several else found
        return y

    y, y_ref = value(op, *operands), value(reference.operation, *moved)
    steps = [difference(operands[i].detach(), reference.operands[i]) for i in live]
    dy = difference(y.detach(), y_ref.detach())
    d = _directional(lambda *v: value(op, *v), operands, live, steps)
    d_ref = _directional(lambda *v: value(reference.operation, *v), reference.operands, live, steps)
    size = y.detach().abs() + y_ref.detach().abs()
    c, c_ref = (winner if op.operator.copies else _nearest_half)(dy, d, d_ref, torch.nan_to_num(size))
    made = same_value(y, c * y + c_ref * y_ref)
    return tuple(made if i == place else v for i, v in enumerate(results)) if several else made


def winner(dy: Tensor, d: Tensor, d_ref: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The end at which dy / d lies in [0, 1]: there it is the entry that explains the change of a maximum."""
    here, there = ratio(dy, d), ratio(dy, d_ref)
    at_input = (d != 0) & (here >= 0) & (here <= 1)
    at_reference = (d_ref != 0) & (there >= 0) & (there <= 1) & ~at_input
    c, c_ref = _nearest_half(dy, d, d_ref, size)
    c = torch.where(at_input, here, torch.where(at_reference, 0.0, c))
    return c, torch.where(at_reference, there, torch.where(at_input, 0.0, c_ref))


def _nearest_half(dy: Tensor, d: Tensor, d_ref: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The c, c' nearest to 1/2 with c d + c' d_ref = dy, but for the rounding of values of this size."""
    rest = dy - 0.5 * (d + d_ref)
    missing = torch.where(_rounded(rest, size), 0.0, ratio(rest, d * d + d_ref * d_ref))
    return 0.5 + d * missing, 0.5 + d_ref * missing


def _directional(f: Callable[..., Tensor], at: Sequence[Any], live: Sequence[int], steps: Sequence[Tensor]) -> Tensor:
    """The derivative J dx of f along ``steps``: the gradient of v^T J dx by v."""
    with torch.enable_grad():
        leaves = {i: at[i].detach().requires_grad_() for i in live}
        y = f(*(leaves.get(i, x) for i, x in enumerate(at)))
        v = torch.zeros_like(y, requires_grad=True)
        grads = torch.autograd.grad(y, list(leaves.values()), v, create_graph=True, allow_unused=True)
        parts = [(g * step).sum() for g, step in zip(grads, steps, strict=True) if g is not None]
        along = torch.stack(parts).sum() if parts else (0 * v).sum()
        (found,) = torch.autograd.grad(along, v, allow_unused=True)
    return torch.zeros_like(y) if found is None else found.detach()


#: The form of the rule by what the operation is to its operands; any other is taken between its two ends.
FORMS: dict[Dependence, Callable[[Operation, Reference, Sequence[Any]], Any]] = {
    Dependence.ACTIVATION: _activation,
    Dependence.ROUNDING: _rounding,
    Dependence.FACTORS: _product,
    Dependence.QUOTIENT: _quotient,
    Dependence.SOFTMAX: _softmax,
}


@rescale.reference
def _(op: Operation, relevance: Tensor, *operands: Any, weighed: bool) -> tuple[Tensor, ...]:
    assert op.reference is not None
    live = [i for i, alive in enumerate(op.live) if alive]
    steps = [operands[i] - op.reference.operands[i] for i in live]
    y, y_ref = op(*operands), op.reference.value
    kind = op.operator.dependence
    g = ratio(relevance, y - y_ref).flatten()
    ends = [_jacobians(op, at, live) for at in (operands, op.reference.operands)]
    if kind in (Dependence.ACTIVATION, Dependence.ROUNDING) or (len(live) == 1 and kind is Dependence.QUOTIENT):
        return (relevance.sum_to_size(operands[live[0]].shape),)
    if weighed and op.operator.scales and len(live) == 2:
        pairs = (operands, op.reference.operands)
        here, there = ((a, 1 / b if kind is Dependence.QUOTIENT else b) for a, b in pairs)
        return _shares_of_two_ways(here, there, g.reshape(y.shape))
    if kind is Dependence.FACTORS:  # of a bilinear map the mean of both ends is the midpoint
        maps = [0.5 * (a + b) for a, b in zip(*ends, strict=True)]
    elif kind is Dependence.SOFTMAX:
        maps = [_softmax_matrix(operands[0], op.reference.operands[0], axis_of(op))]
    elif kind is Dependence.QUOTIENT and op.operator.entrywise:
        (a, b), (a_ref, b_ref) = (torch.broadcast_tensors(*v) for v in (operands, op.reference.operands))
        parts = (0.5 * (1 / b + 1 / b_ref) * (a - a_ref), 0.5 * (a + a_ref) * (1 / b - 1 / b_ref))
        shares = (part * ratio(relevance, y - y_ref) for part in parts)
        return tuple(share.sum_to_size(x.shape) for share, x in zip(shares, operands, strict=True))
    else:
        maps = _combined(ends, steps, (y - y_ref).flatten(), op.operator.copies)
    return tuple(
        step * torch.einsum("ij,i->j", dense, g).reshape(step.shape) for dense, step in zip(maps, steps, strict=True)
    )


def _jacobians(op: Operation, at: Sequence[Any], live: Sequence[int]) -> list[Tensor]:
    """dy_i / dx_j of each live operand, [outputs, inputs]."""
    return [jacobian(op, at, k) for k in live]


def _shares_of_two_ways(here: Any, there: Any, g: Tensor) -> tuple[Tensor, ...]:
    """What a and b receive of a b, entry by entry in plain loops: both ways from one end to the other, weighed."""
    shapes = [x.shape for x in here]
    (a, b), (a_ref, b_ref) = (torch.broadcast_tensors(*v) for v in (here, there))
    results = [torch.zeros_like(a), torch.zeros_like(b)]
    for place in product(*map(range, a.shape)):
        da, db = float(a[place] - a_ref[place]), float(b[place] - b_ref[place])
        ways = [(float(b[place]) * da, float(a_ref[place]) * db), (float(b_ref[place]) * da, float(a[place]) * db)]
        sizes = [abs(first) + abs(second) for first, second in ways]
        w = sizes[1] ** 2 / (sizes[0] ** 2 + sizes[1] ** 2) if any(sizes) else 0.5
        for result, first, second in zip(results, *ways, strict=True):
            result[place] = (w * first + (1 - w) * second) * g[place]
    return tuple(result.sum_to_size(shape) for result, shape in zip(results, shapes, strict=True))


def _softmax_matrix(x: Tensor, x_ref: Tensor, axis: int) -> Tensor:
    """diag(L) - L L^T / sum L inside a row, L = (s - s_ref) / (log s - log s_ref) with s as it is."""
    s, s_ref = x.softmax(axis), x_ref.softmax(axis)
    mean = torch.where(s == s_ref, s, ratio(s - s_ref, s.log() - s_ref.log()))
    row = torch.arange(x.numel()).reshape(x.shape)
    row = row.amin(axis, keepdim=True).expand_as(x).flatten()
    same_row = (row[:, None] == row[None, :]).to(x.dtype)
    total = mean.sum(axis, keepdim=True).expand_as(x).flatten()
    flat = mean.flatten()
    return torch.diag(flat) - same_row * flat[:, None] * flat[None, :] / total[:, None]


def _combined(ends: list[list[Tensor]], steps: list[Tensor], dy: Tensor, copies: bool) -> list[Tensor]:
    """Row by row the combination of both ends' gradients that gives dy."""
    d, d_ref = (sum(j @ step.flatten() for j, step in zip(end, steps, strict=True)) for end in ends)
    rows = [torch.zeros_like(j) for j in ends[0]]
    for i in range(len(dy)):
        a, b = float(d[i]), float(d_ref[i])  # type: ignore[index]
        if copies and a != 0 and 0 <= float(dy[i]) / a <= 1:
            c, c_ref = float(dy[i]) / a, 0.0
        elif copies and b != 0 and 0 <= float(dy[i]) / b <= 1:
            c, c_ref = 0.0, float(dy[i]) / b
        else:
            missing = (float(dy[i]) - 0.5 * (a + b)) / (a * a + b * b) if a or b else 0.0
            c, c_ref = 0.5 + a * missing, 0.5 + b * missing
        for row, here, there in zip(rows, *ends, strict=True):
            row[i] = c * here[i] + c_ref * there[i]
    return rows
