"""Linear maps behind the last mixing of positions: their messages are often zero at most of these, whose rows are
skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from fxlrp.graph.operators import LINEAR_LAYER, Dependence, nodes_in, operator_of
from fxlrp.planning.plan import Plan


def _few_rows_product(g: Tensor, weight: Tensor) -> Tensor:
    """g @ weight, where rows of zeros are skipped if they are many."""
    rows = g.flatten(0, -2)
    if 2 * int(rows[:, 0].count_nonzero()) <= len(rows):  # a cheap look before the exact one
        chosen = torch.linalg.vector_norm(rows, math.inf, -1).nonzero()[:, 0]
        if 2 * len(chosen) <= len(rows):
            result = rows.new_zeros(len(rows), weight.shape[-1])
            result[chosen] = rows[chosen] @ weight
            return result.unflatten(0, g.shape[:-1])
    return g @ weight


class FewRowsProduct(torch.autograd.Function):
    """The product for messages of many targets as well, which torch hands over with the targets as an axis."""

    @staticmethod
    def forward(g: Tensor, weight: Tensor) -> Tensor:
        """g W."""
        return _few_rows_product(g, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], g: Tensor, weight: Tensor) -> tuple[Tensor, int]:
        """The same of many g."""
        return _few_rows_product(g.movedim(in_dims[0], 0), weight), 0


class _FewRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        g: Any = FewRowsProduct.apply(grads[0], weight)  # type: ignore[no-untyped-call]
        return g, None, None


def few_rows_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The linear layer whose message is usually zero at all positions but the explained one: those rows are skipped."""
    if torch.compiler.is_compiling() or x.ndim < 2:
        return F.linear(x, weight, bias)
    result: Any = _FewRows.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return result


def after_mixing(plan: Plan) -> Iterator[fx.Node]:
    """The plain linear layers behind the last softmax of the graph, where a message is often zero at most positions.

    Which ones are named here changes no value: any linear layer may run as :func:`few_rows_linear`.
    """
    for node in reversed(plan.program.graph.nodes):
        operator = operator_of(node)
        if operator is not None and operator.dependence is Dependence.SOFTMAX:
            return
        plain = operator is not None and operator.maps == (LINEAR_LAYER,) and node not in plan.decisions
        if plain and [n for n in nodes_in(node, (0, 1, 2)) if n in plan.carrying] == [node.args[0]]:
            yield node
