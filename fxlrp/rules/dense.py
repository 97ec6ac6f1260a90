"""Slow building blocks of the reference rules: every linear operation as an explicit matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxlrp.rules.operation import Hole, Operation


def matrix(op: Operation, x: Tensor, weight: Tensor) -> Tensor:
    """W of shape [outputs, inputs] with ``op(x, weight) = W x`` (flattened, no bias): column by column."""
    columns = []
    for index in range(x.numel()):
        unit = torch.zeros_like(x).flatten()
        unit[index] = 1
        columns.append(without_bias(op, unit.reshape(x.shape), weight).flatten())
    return torch.stack(columns, dim=1)


def jacobian(op: Operation, operands: Sequence[Any], index: int) -> Tensor:
    """dy_i / dx_j of one operand, [outputs, inputs] (flattened)."""
    x = operands[index]
    rows = torch.autograd.functional.jacobian(lambda v: op(*operands[:index], v, *operands[index + 1 :]), x)
    return rows.reshape(-1, x.numel())


def without_bias(op: Operation, x: Tensor, weight: Tensor) -> Tensor:
    """The operation with zero in place of its additive constant."""
    if len(op.live) == op.factors:
        return op(x, weight) - op(torch.zeros_like(x), weight)
    # addmm cannot do without its additive constant, a convolution takes none but one of full shape
    needed = op.args[0] == Hole(op.factors)
    return op(x, weight, x.new_zeros(()) if needed else None)


def shares(contributions: Tensor, denominator: Tensor, relevance: Tensor) -> Tensor:
    """R_j = sum_i z_ij / d_i R_i, with 0/0 = 0."""
    safe = torch.where(denominator == 0, torch.ones_like(denominator), denominator)
    weights = torch.where((denominator == 0)[:, None], torch.zeros_like(contributions), contributions / safe[:, None])
    return torch.einsum("ij,i->j", weights, relevance)
