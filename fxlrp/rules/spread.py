"""The rule for sums of linear maps that shares bias and stabiliser out among the units of the lower layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxlrp.graph import operator_classes
from fxlrp.graph.operator_classes import ADD
from fxlrp.graph.operators import Dependence, Operator
from fxlrp.rules.choices import away_from_zero
from fxlrp.rules.dense import jacobian, matrix
from fxlrp.rules.linear import LINEAR
from fxlrp.rules.operation import Hole, Operation
from fxlrp.rules.primitives import as_relevance, ratio
from fxlrp.rules.ranges import NotNegative, Share
from fxlrp.rules.rule import Cite
from fxlrp.rules.shares import Shares, relevance_share_rule


def _sum_itself(z: Tensor, *_: Any) -> Tensor:
    return z


#: A sum of linear maps as an operation on its own value z, whose terms get gradient messages. Further operands are what
#: z is where all units are 0, and the units, whose last axis is summed over and whose others broadcast with those of z.
AFFINE = Operation(
    _sum_itself, Operator(Dependence.TERMS, operator_classes.AFFINE, terms=(0,)), (Hole(0),), {}, (True,), 0
)


def _epsilon_leak(op: Operation, z: Tensor, g: Tensor, *operands: Any, epsilon: float, bias_factor: float) -> Tensor:
    """The part of epsilon that is not shared out: (1 - bias_factor) epsilon sign z / (z + epsilon sign z) R."""
    kept = away_from_zero(z, epsilon)
    return (1 - bias_factor) * (1 - ratio(z, kept)) * z * g


@relevance_share_rule(
    *LINEAR,
    "add",
    "sum",
    source=Cite("Arras et al. 2017, WASSA", "sec. 3.1, with the authors' bias_factor"),
    leak_kind="epsilon",
    leak=_epsilon_leak,
    whole=lambda parameters: bool(parameters["bias_factor"]),
)
def spread(op: Operation, *operands: Tensor, epsilon: NotNegative = 1e-3, bias_factor: Share = 0.0) -> Shares:
    """R_j = sum_i (w_ij x_j + bias_factor (b_i + epsilon sign z_i) / N) / (z_i + epsilon sign z_i) R_i, sign 0 = +1.

    x: any shape the operation takes. N is the number of units x_j that z_i is connected to. In a sum of values and
    linear maps those are all entries along the last axis of each value, as if every w were a matrix; in a
    convolution, a mixing by weights or a sum over an axis those whose weight (or term) is not 0. epsilon has the unit
    of z. With a bias_factor of 1 nothing is kept: bias and epsilon are shared out alike; with 0 the bias takes its
    part b_i / (z_i + epsilon sign z_i) R_i, and the part of epsilon is the declared leak.
    """
    z, offset = value_and_offset(op, operands)
    kept = away_from_zero(z, epsilon)
    if not bias_factor:
        return [(z, kept)]
    rest = bias_factor * torch.where(z.isinf(), 0.0, offset + kept - z).detach()  # masked entries receive nothing
    return [(z - bias_factor * offset, kept), (_mean_of_units(op, operands) * rest, kept)]


def value_and_offset(op: Operation, operands: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """z, and what it is where all units are 0 (its additive constants alone), of z's shape."""
    if op is AFFINE:
        return operands[0], operands[1] if len(operands) > 1 else torch.zeros_like(operands[0])
    relevant = [as_relevance(x) if op.live[i] or i in op.sources else x for i, x in enumerate(operands)]
    z: Tensor = op(*relevant)
    if not any(isinstance(operands[i], Tensor) or operands[i] for i in op.sources):
        return z, torch.zeros_like(z)
    return z, op(*(torch.zeros_like(x) if op.live[i] else x for i, x in enumerate(relevant)))


def _mean_of_units(op: Operation, operands: tuple[Any, ...]) -> Tensor:
    """The mean of the units that each entry of z is connected to, for their relevance."""
    if op is AFFINE:
        return mean_of_rows(operands[2:])
    live = [x for i, x in enumerate(operands) if op.live[i]]
    if op.operator.category == ADD:
        return mean_of_rows(live)
    (x,) = live
    if op.factors:
        weights = [(w != 0).to(x.dtype) for w in operands[1 : op.factors]]
        none = [None if w is None else 0 * w for w in operands[op.factors :]]
        return ratio(op(x, *weights, *none), op(torch.ones_like(x), *weights, *none))
    present = (x != 0).to(x.dtype)
    nothing = op(present) == 0
    count = torch.where(nothing, op(torch.ones_like(x)), op(present))
    return torch.where(nothing, op(x), op(x * present)) / count


def mean_of_rows(units: Sequence[Tensor]) -> Tensor:
    """The mean over the last axes of all units together, [..., 1]: sum_k sum_j x_kj / sum_k width_k."""
    count = sum(unit.shape[-1] for unit in units)
    return sum((unit.sum(-1, keepdim=True) for unit in units), torch.zeros_like(units[0][..., :1])) / count


@spread.reference
def _(
    op: Operation, relevance: Tensor, *operands: Any, epsilon: float, bias_factor: float
) -> Tensor | tuple[Tensor, ...]:
    live = [x for i, x in enumerate(operands) if op.live[i]]
    z = op(*operands).flatten()
    kept = torch.where(z < 0, z - epsilon, z + epsilon)
    offset = op(*(0 * x if op.live[i] else x for i, x in enumerate(operands))).flatten()
    results = [torch.zeros_like(x).flatten() for x in live]
    weights = [_weights(op, operands, i) for i in range(len(live))]
    connected = [_connected(op, w, x) for w, x in zip(weights, live, strict=True)]
    for i, arrived in enumerate(relevance.flatten()):
        count = sum(int(c[i].sum()) for c in connected)
        for x, w, c, result in zip(live, weights, connected, results, strict=True):
            uniform = bias_factor * (offset[i] + kept[i] - z[i]) / max(count, 1)
            result += (w[i] * x.flatten() + uniform * c[i]) / kept[i] * arrived
    shaped = tuple(result.reshape(x.shape) for result, x in zip(results, live, strict=True))
    return shaped if len(shaped) > 1 else shaped[0]


def _weights(op: Operation, operands: tuple[Any, ...], place: int) -> Tensor:
    """w of shape [outputs, inputs] of one live operand."""
    x = operands[place]
    if op.factors:
        return matrix(op, x, operands[1])
    return jacobian(op, operands, place)


def _connected(op: Operation, weights: Tensor, x: Tensor) -> Tensor:
    if op.operator.category == ADD:  # a whole row for each of its entries
        row = torch.arange(weights.shape[1]) // x.shape[-1]
        return (weights != 0).to(x.dtype) @ (row[:, None] == row[None, :]).to(x.dtype)
    return (weights != 0).to(x.dtype) * (torch.ones_like(x) if op.factors else x != 0).flatten()
