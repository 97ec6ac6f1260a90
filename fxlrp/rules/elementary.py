"""Rules for activations, softmax, and for any operation: the plain gradient, the constant, the identity by its
secant.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fxlrp.graph.operators import Dependence, is_continuous
from fxlrp.rules.dense import jacobian
from fxlrp.rules.operation import Hole, Operation, fill
from fxlrp.rules.primitives import (
    as_relevance,
    carry,
    change_message,
    nowhere_zero,
    ratio,
    received,
    same_value,
    scale_message,
)
from fxlrp.rules.ranges import NotNegative, Share
from fxlrp.rules.rule import Cite, Conserves, rule, twin


def value_at_zero(op: Operation) -> float:
    """f(0) of an activation, infinite or NaN where it has none."""
    return _value_at_zero(op.target, op.args, tuple(op.kwargs.items()))


@lru_cache(maxsize=4096)
def _value_at_zero(target: Any, args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...]) -> float:
    zero = torch.zeros((), dtype=torch.float64)
    values = fill((args, dict(kwargs)), (zero,), ())
    return float(target(*values[0], **values[1]))


def _gradient_leak(op: Operation, y: Tensor, g: Tensor, *operands: Tensor) -> Tensor:
    """sum of y g - sum of x . VJP_x(g), in closed form for products and softmax."""
    count = sum(op.live[: op.factors])
    if op.operator.dependence is Dependence.FACTORS:
        # each live factor receives sum(y g) less what the additive constants got
        terms = [term for term in operands[op.factors :] if isinstance(term, Tensor)]
        return (1 - count) * received(y - _additive(op, operands) if terms else y, g)
    if op.operator.dependence is Dependence.SOFTMAX:
        return _softmax_leak(op, y, g, *operands)
    return _local_defect(op, y, g, *operands)


def _additive(op: Operation, operands: tuple[Tensor, ...]) -> Tensor:
    zeros = [torch.zeros_like(x) if i < op.factors else x for i, x in enumerate(operands)]
    result: Tensor = op(*zeros)
    return result


def _local_defect(op: Operation, y: Tensor, g: Tensor, *operands: Tensor) -> Tensor:
    """Euler's defect of the operation itself: sum of y g - sum of x . (df/dx)^T g over its live operands and
    constants.
    """
    counted = [i for i, x in enumerate(operands) if isinstance(x, Tensor) and (op.live[i] or i in op.sources)]
    with torch.enable_grad():
        leaves = {i: operands[i].detach().requires_grad_() for i in counted if is_continuous(operands[i])}
        value = op(*(leaves.get(i, x) for i, x in enumerate(operands)))
    grads = torch.autograd.grad(value, list(leaves.values()), g, allow_unused=True, create_graph=g.requires_grad)
    shares = [received(x.detach(), v).sum() for x, v in zip(leaves.values(), grads, strict=True) if v is not None]
    return received(y, g).sum() - sum(shares)


def axis_of(op: Operation) -> int:
    """The axis over which a softmax normalises."""
    given = (a for a in op.args[1:] if isinstance(a, int) and not isinstance(a, bool))
    axis: int = next(given, op.kwargs.get("dim", -1))
    return axis


def _softmax_leak(op: Operation, s: Tensor, g: Tensor, x: Tensor, *rest: Tensor) -> Tensor:
    """Virtual bias B_j = s_j (1 - x_j + sum_k s_k x_k) g_j of the Taylor expansion; entries of -inf carry nothing.

    As the s_k sum to one it is the same for x less its maximum, which keeps the huge constants of masks out of
    the sums.
    """
    axis = axis_of(op)
    finite = torch.where(torch.isfinite(x), x, torch.full_like(x, torch.finfo(x.dtype).min)).double()
    shifted = torch.where(s == 0, 0.0, finite - finite.amax(axis, keepdim=True))
    return torch.where(s == 0, 0.0, s.double() * (1 - shifted + (s * shifted).sum(axis, keepdim=True)) * g)


@rule(
    "any",
    conserves=Conserves.WITH_LEAK,
    source=Cite("Shrikumar et al. 2016", "gradient x input"),
    leak=_gradient_leak,
    leak_kind="plain gradient",
    plain=True,
    derivative=True,
)
def gradient(op: Operation, *operands: Tensor) -> Tensor:
    """g_x = J^T g, the plain gradient.  x: any shape.

    Exact where the operation is homogeneous of degree one in its operands (linear maps, ReLU, maxima, norms);
    elsewhere Euler's defect sum(y g) - sum(x . J^T g) is its declared leak.
    """
    result: Tensor = op(*operands)
    return result


@gradient.in_relevance
def _(op: Operation, *operands: Tensor) -> Tensor:
    """R_x = x J^T (R_y / y). Where y holds entries of x, or each times a constant, R moves along undivided."""
    if op.operator.copies:
        moved: Tensor = op(*operands)
        return moved
    if op.live == (True, False) and _scales(op) and not any(map(torch.is_complex, filter(torch.is_tensor, operands))):
        x, other = operands
        y = op(x, other)
        factor = op(x.new_ones(()), other)
        if nowhere_zero(factor):
            return same_value(y, x.expand_as(y))
        return carry(y, x.expand_as(y), (factor != 0).to(y.dtype))
    result: Tensor = twin(gradient.surrogate, op, *operands)
    return result


def _scales(op: Operation) -> bool:
    """Whether the first operand is multiplied, or divided, entry by entry."""
    return op.operator.scales and (op.operator.dependence is Dependence.FACTORS or op.args[0] == Hole(0))


@gradient.reference
def _(op: Operation, relevance: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
    y = op(*operands)
    results = []
    for i, x in enumerate(operands):
        if not isinstance(x, Tensor):  # a number, or no bias
            results.append(relevance.new_zeros(()))
            continue
        message = ratio(relevance, y).flatten()
        results.append(x * torch.einsum("ij,i->j", jacobian(op, operands, i), message).reshape(x.shape))
    return tuple(results)


@rule(
    "softmax",
    conserves=Conserves.WITH_LEAK,
    source=Cite("Achtibat et al. 2024, AttnLRP", "prop. 3.1"),
    leak=_softmax_leak,
    leak_kind="softmax expansion",
    derivative=True,
)
def taylor(op: Operation, x: Tensor, *rest: Tensor) -> Tensor:
    """R_x = x (R_s - s sum R_s), the first-order expansion of softmax at x: its ordinary gradient.

    x: [..., n]. Its constant term, the virtual bias s (1 - x + sum s x) g, is the declared leak.
    """
    result: Tensor = op(x, *rest)
    return result


@taylor.in_relevance
def _(op: Operation, x: Tensor, *rest: Tensor) -> Tensor:
    """The same as the paper has it, without a division by s: x (R_s - s sum R_s)."""
    s: Tensor = op(x.detach(), *rest)

    def change(relevance: Tensor, s: Tensor) -> Tensor:
        return relevance - s * relevance.sum(axis_of(op), keepdim=True)

    return same_value(s, change_message(as_relevance(x), change, s))


@taylor.reference
def _(op: Operation, relevance: Tensor, x: Tensor, *rest: Tensor) -> Tensor:
    s = op(x, *rest)
    return x * (relevance - s * relevance.sum(axis_of(op), keepdim=True))


def _offset_leak(op: Operation, y: Tensor, g: Tensor, x: Tensor, *, epsilon: float) -> Tensor:
    """f(0) sum of g, and with a stabiliser (y - f(0)) g epsilon / (x + epsilon).

    At an infinite x, the entry of a mask, the slope is zero: all of y g stays.
    """
    offset = value_at_zero(op)
    lost = (y - offset) * (1 - ratio(x, x + epsilon)) if epsilon else torch.zeros_like(y)
    return torch.where(torch.isinf(x), received(y, g), (offset + lost) * g)


@rule(
    "activation",
    conserves=Conserves.WITH_LEAK,
    source=Cite("Bach et al. 2015; Achtibat et al. 2024", "identity rule, sec. 3.2"),
    leak=_offset_leak,
    leak_kind="activation offset",
)
def secant(op: Operation, x: Tensor, *, epsilon: NotNegative = 0.0) -> Tensor:
    """R_x = R_y as g_x = slope(x) g_y with slope(x) = (f(x) - f(0)) / x in closed form, finite at x = 0.

    x: any shape. Where f(0) is not zero (sigmoid, softplus) it is a constant of its own: f(0) sum(g) is the
    declared leak. ``epsilon`` > 0 (unit of x) takes (f(x) - f(0)) / (x + epsilon) instead, as the code of
    Achtibat et al. does with 1e-10.
    """
    with torch.no_grad():
        x_ = x.detach()
        y: Tensor = op(x_)
        closed = op.slope
        if epsilon:
            offset = value_at_zero(op)
            # A quotient, not a product with the reciprocal, which overflows float16 where x is below 1e-5.
            slope = (y - offset if offset else y) / (x_ + epsilon)
            slope.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)  # x = -epsilon exactly, or both below the resolution
        else:
            slope = closed(x_) if closed is not None else _difference_quotient(op, x_, y)
    return carry(y, x, slope)


def _difference_quotient(op: Operation, x: Tensor, y: Tensor) -> Tensor:
    zero = x == 0
    quotient = (y - value_at_zero(op)) / torch.where(zero, torch.ones_like(x), x)
    step = torch.full_like(x, 1e-4)
    centred = (op(step) - op(-step)) / (2 * step)
    return torch.where(zero, torch.nan_to_num(centred), quotient)


@secant.reference
def _(op: Operation, relevance: Tensor, x: Tensor, *, epsilon: float) -> Tensor:
    y = op(x)
    return ratio(relevance, y) * (y - value_at_zero(op)) * ratio(x, x + epsilon)


def _rounding_leak(op: Operation, y: Tensor, g: Tensor, x: Tensor, *rest: Any) -> Tensor:
    """(y - x) g."""
    return received(y - x, g)


@rule(
    "rounding",
    conserves=Conserves.WITH_LEAK,
    source=Cite("Bengio, Leonard, Courville 2013", "the straight-through estimator"),
    leak=_rounding_leak,
    leak_kind="rounding",
)
def straight_through(op: Operation, x: Tensor, *rest: Any) -> Tensor:
    """g_x = g_y: the value y that x was rounded to stands for x.  x: any shape.

    The derivative of y is 0 almost everywhere and says nothing. What rounding changed, (y - x) g, is the declared leak.
    On relevance it is R_x = x / y R_y, and R_x = R_y where x was rounded to 0.
    """
    y = op(x.detach(), *rest)
    return carry(y, x, torch.ones_like(y))


@straight_through.in_relevance
def _(op: Operation, x: Tensor, *rest: Any) -> Tensor:
    """R_x = x / y R_y; where y is 0, what arrives is of x all the same."""
    with torch.no_grad():
        y: Tensor = op(x.detach(), *rest)
        share = torch.where(y == 0, torch.ones_like(y), ratio(x.detach(), y))
    return carry(y, x, share)


@straight_through.reference
def _(op: Operation, relevance: Tensor, x: Tensor, *rest: Any) -> Tensor:
    y = op(x, *rest)
    return torch.where(y == 0, relevance, x * ratio(relevance, y))


def _chord(y: Tensor, x: Tensor) -> Tensor:
    """y / x, the slope of the chord from the origin; 0 at x = 0 and where either is infinite or their ratio is."""
    return torch.nan_to_num(ratio(y, x), nan=0.0, posinf=0.0, neginf=0.0)


def _chord_leak(op: Operation, y: Tensor, g: Tensor, x: Tensor, *rest: Any) -> Tensor:
    """y g where the chord has no slope."""
    x = x.expand_as(y)
    return torch.where(_chord(y, x) == 0, received(y, g), 0.0)


@rule(
    "softmax",
    "activation",
    "singular",
    conserves=Conserves.WITH_LEAK,
    source=Cite("Bach et al. 2015", "sec. 2.4: relevance of a function's value is that of its argument"),
    leak=_chord_leak,
    leak_kind="pole",
)
def hand_on(op: Operation, x: Tensor, *rest: Tensor) -> Tensor:
    """R_x = R_y, entry by entry, as g_x = f(x) / x g_y: the slope of the chord from the origin to (x, f(x)).

    x, y: shapes that broadcast. For functions that have no value at 0 (log, 1 / x), where no secant begins, and for the
    softmax of a prediction: the relevance of a probability is that of its logit. Where x is 0, or f(x) infinite, there
    is no chord, and the relevance is the declared leak.
    """
    with torch.no_grad():
        y: Tensor = op(x.detach(), *rest)
        slope = _chord(y, x.detach().expand_as(y))
    return carry(y, x.expand_as(y), slope)


@hand_on.in_relevance
def _(op: Operation, x: Tensor, *rest: Tensor) -> Tensor:
    """R_x = R_y where there is a chord."""
    with torch.no_grad():
        y: Tensor = op(x.detach(), *rest)
        passed = (_chord(y, x.detach().expand_as(y)) != 0).to(y.dtype)
    return carry(y, x.expand_as(y), passed)


@hand_on.reference
def _(op: Operation, relevance: Tensor, x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    y = op(x, *rest)
    wide = x.expand_as(y)
    received_by_x = torch.where((wide == 0) | (y == 0) | torch.isinf(y) | torch.isinf(wide), 0.0, relevance)
    return received_by_x.sum_to_size(x.shape), *(torch.zeros_like(r) for r in rest if isinstance(r, Tensor))


def _kept(op: Operation, y: Tensor, g: Tensor, *operands: Any, share: float) -> Tensor:
    """share y g."""
    return share * received(y, g)


@rule(
    "scale",
    conserves=Conserves.WITH_LEAK,
    source=Cite("Bakish et al. 2025, PA-LRP", "rotary embeddings: the uniform rule between a value and its rotation"),
    leak=_kept,
    leak_kind="rotary position",
)
def sink(op: Operation, x: Tensor, factor: Any, *, share: Share = 0.5) -> Tensor:
    """R_x = (1 - share) R_y; the constant factor of y = x c keeps R_c = share R_y, a sink: its declared leak.

    x, c: shapes that broadcast. The uniform rule of a product, for a factor that depends on positions alone.
    """
    return scale_message(op(x, factor), 1 - share)


@sink.in_relevance
def _(op: Operation, x: Tensor, factor: Any, *, share: float) -> Tensor:
    moved: Tensor = gradient.relevances[0](op, x, factor)
    return scale_message(moved, 1 - share)


@sink.reference
def _(op: Operation, relevance: Tensor, x: Tensor, factor: Any, *, share: float) -> Tensor:
    return ((1 - share) * relevance).sum_to_size(x.shape)


@rule(
    "any",
    conserves=Conserves.NOTHING,
    source=Cite("Ali et al. 2022", "eq. 8-9: gates and scales are constants"),
)
def constant(op: Operation, *operands: Tensor) -> Tensor:
    """y.detach(), of any shape: the value passes no relevance on. Where it then stands as a term of a sum it is
    a source of the ledger.
    """
    result: Tensor = op(*(x.detach() if isinstance(x, Tensor) else x for x in operands))
    return result.detach()


@constant.reference
def _(op: Operation, relevance: Tensor, *operands: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(x) for x in operands)
