"""Small random operations of every class that a rule can stand on, as torch code, traced and taken apart.

In: the name of an operator class. Out: :class:`Sample` values with their operands, for
:func:`fxlrp.testing.check_rule`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from fxlrp.capture.code import capture_code
from fxlrp.graph import operator_classes as classes
from fxlrp.graph.operator_classes import OperatorClass
from fxlrp.graph.operator_table import SAFE_SOFTMAX
from fxlrp.rules.operation import IDENTITY, Operation, take_apart

BATCH = 2
FORK = "a value whose ways part"


@dataclass(frozen=True)
class Sample:
    """An operation as torch code. ``shapes`` are those of its arguments; the first ``live`` of them carry relevance.

    ``signed=False`` draws positive arguments. ``referenced=False``: the operation has more operands than the
    references of rules take, or an infinite one; value and conservation are checked all the same.
    """

    name: str
    code: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    live: int = 1
    signed: bool = True
    referenced: bool = True

    def draw(self, seed: int) -> tuple[Operation, tuple[Any, ...]]:
        """The operation and its operands, float64, drawn from ``seed``; live operands require gradients."""
        rng = torch.Generator().manual_seed(seed)
        values = [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in self.shapes]
        values = values if self.signed else [value.abs() + 0.5 for value in values]
        if self.name == FORK:  # no operator: the value itself
            return IDENTITY, (values[0].requires_grad_(),)
        graph = _traced(self)
        holders = [node for node in graph.nodes if node.op == "placeholder"]
        given = dict(zip(holders, values, strict=True))
        root = graph.output_node().args[0]
        site = take_apart(root, holders[: self.live].__contains__)  # type: ignore[arg-type]
        operands = tuple(given.get(operand, operand) for operand in site.operands)
        for operand, live in zip(operands, site.operation.live, strict=True):
            if live:
                operand.requires_grad_()
        return site.operation.bind([given[extra] for extra in site.extras]), operands


@cache
def _traced(sample: Sample) -> fx.Graph:
    """The graph of a sample's code, which its shapes alone decide: traced once for all rules, messages and seeds."""
    examples = {f"x{i}": torch.ones(shape, dtype=torch.float64) for i, shape in enumerate(sample.shapes)}
    return capture_code(lambda **given: sample.code(*given.values()), examples)


def _hidden(x: Tensor) -> Tensor:
    """Scores of which one is masked."""
    return SAFE_SOFTMAX(x, -1)


#: Samples of each operator class that rules can stand on, by class. One for a new class is all that its rules need to
#: be checked: ``OPERATIONS[SORTING] = (Sample("sort", ...),)``.
OPERATIONS: dict[OperatorClass, tuple[Sample, ...]] = {}
ROWS, SQUARE = (BATCH, 3, 4), (BATCH, 4, 4)
IMAGE, KERNEL = (BATCH, 2, 5), (3, 2, 3)
OPERATIONS[classes.LINEAR] = (
    Sample("linear", F.linear, (ROWS, (5, 4), (5,))),
    Sample("linear without bias", F.linear, (ROWS, (5, 4))),
    Sample("addmm", lambda x, w, b: torch.addmm(b, x, w), ((BATCH, 4), (4, 3), (3,))),
)
OPERATIONS[classes.CONVOLUTION] = (
    Sample("conv1d", F.conv1d, (IMAGE, KERNEL, (3,))),
    Sample("conv1d without bias, strided", lambda x, w: F.conv1d(x, w, stride=2, padding=1), (IMAGE, KERNEL)),
    Sample("conv1d by groups", lambda x, w, b: F.conv1d(x, w, b, groups=2), (IMAGE, (2, 1, 2), (2,))),
    Sample("conv2d", F.conv2d, ((BATCH, 2, 3, 3), (2, 2, 2, 2), (2,))),
    Sample("conv_transpose1d", F.conv_transpose1d, (IMAGE, (2, 3, 2), (3,))),
)
OPERATIONS[classes.MIXING] = (
    Sample("values mixed by constant weights", lambda x, a: torch.matmul(a, x), (ROWS, (BATCH, 2, 3))),
    Sample("values times a constant matrix", torch.matmul, (ROWS, (BATCH, 4, 2))),
)
OPERATIONS[classes.PRODUCT] = (
    Sample("mul", lambda a, b: a * b, (ROWS, ROWS), live=2),
    Sample("mul with broadcasting", lambda a, b: a * b, (ROWS, (BATCH, 1, 4)), live=2),
    Sample("matmul", torch.matmul, (ROWS, (BATCH, 4, 2)), live=2),
    Sample("einsum", lambda a, b: torch.einsum("btd,bsd->bts", a, b), (ROWS, ROWS), live=2),
    Sample("bilinear", F.bilinear, (ROWS, ROWS, (2, 4, 4), (2,)), live=2, referenced=False),
    Sample("addcmul", lambda a, b, c: torch.addcmul(c, a, b), (ROWS, ROWS, ROWS), live=2, referenced=False),
)
OPERATIONS[classes.QUOTIENT] = (
    Sample("div", lambda a, b: a / b, (ROWS, ROWS), live=2),
    Sample("div with broadcasting", lambda a, b: a / b, (ROWS, (BATCH, 3, 1)), live=2),
    Sample(
        "triangular solve",
        lambda a, b: torch.linalg.solve_triangular(b, a, upper=False),
        ((BATCH, 3, 2), (BATCH, 3, 3)),
        live=2,
    ),
)
OPERATIONS[classes.ACTIVATION] = (
    *(
        Sample(function.__name__, function, (ROWS,))
        for function in (
            F.silu,
            F.gelu,
            F.mish,
            F.elu,
            F.hardswish,
            torch.tanh,
            torch.expm1,
            torch.sin,
            torch.atan,
        )
    ),
    Sample("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), (ROWS,)),
    Sample("square", lambda x: x.pow(2), (ROWS,)),
    Sample("cube", lambda x: x.pow(3), (ROWS,)),
    Sample("elu with alpha", lambda x: F.elu(x, 0.7), (ROWS,)),
    # f(0) is not zero
    Sample("sigmoid", torch.sigmoid, (ROWS,)),
    Sample("softplus", F.softplus, (ROWS,)),
    Sample("softplus with beta", lambda x: F.softplus(x, beta=2.0), (ROWS,)),
    Sample("exp", torch.exp, (ROWS,)),
    Sample("cos", torch.cos, (ROWS,)),
    Sample("hardsigmoid", F.hardsigmoid, (ROWS,)),
)
OPERATIONS[classes.SOFTMAX] = (
    Sample("softmax", lambda x: x.softmax(-1), (ROWS,)),
    Sample("softmax of the middle axis", lambda x: x.softmax(1), (ROWS,)),
    Sample("safe softmax", _hidden, (ROWS,)),
)
OPERATIONS[classes.ADD] = (
    Sample("add", lambda a, b: a + b, (ROWS, ROWS), live=2),
    Sample("sub", lambda a, b: a - b, (ROWS, ROWS), live=2),
    Sample("add scaled", lambda a, b: torch.add(a, b, alpha=0.5), (ROWS, ROWS), live=2),
    Sample("add broadcast", lambda a, b: a + b, (ROWS, (BATCH, 1, 4)), live=2, referenced=False),
)
OPERATIONS[classes.SHIFT] = (
    Sample("add a constant", lambda a, c: a + c, (ROWS, ROWS)),
    Sample("subtract a constant row", lambda a, c: a - c, (ROWS, (4,))),
)
OPERATIONS[classes.RECTIFIER] = (
    Sample("relu", torch.relu, (ROWS,)),
    Sample("leaky relu", lambda x: F.leaky_relu(x, 0.1), (ROWS,)),
    Sample("prelu", F.prelu, (ROWS, (3,))),
)
OPERATIONS[classes.SELECTION] = (
    Sample("abs", torch.abs, (ROWS,)),
    Sample("maximum", torch.maximum, (ROWS, ROWS), live=2),
    Sample("amax", lambda x: x.amax(-1), (ROWS,)),
    Sample("norm", lambda x: torch.linalg.vector_norm(x, dim=-1), (ROWS,)),
)
OPERATIONS[classes.SINGULAR] = (
    Sample("log", torch.log, (ROWS,), signed=False),
    Sample("rsqrt", torch.rsqrt, (ROWS,), signed=False),
    Sample("reciprocal", torch.reciprocal, (ROWS,), signed=False),
    Sample("constant over value", lambda b, a: torch.div(a, b), (ROWS, ROWS), signed=False, referenced=False),
)
# To numbers other than 0, where the relevance of y says nothing of x.
OPERATIONS[classes.ROUNDING] = (
    Sample("round", torch.round, (ROWS,), signed=False),
    Sample("ceil", torch.ceil, (ROWS,), signed=False),
)
OPERATIONS[classes.GENERAL] = (
    Sample("logsumexp", lambda x: x.logsumexp(-1), (ROWS,)),
    Sample("log_softmax", lambda x: x.log_softmax(-1), (ROWS,)),
    Sample("prod", lambda x: x.prod(-1), (ROWS,)),
)
OPERATIONS[classes.SUM] = (Sample("sum", lambda x: x.sum(1), (ROWS,)), Sample("cumsum", lambda x: x.cumsum(1), (ROWS,)))
OPERATIONS[classes.SCALE] = (Sample("mul by a constant", lambda x, w: x * w, (ROWS, ROWS)),)
OPERATIONS[classes.MOVEMENT] = (
    Sample("transpose", lambda x: x.transpose(1, 2), (ROWS,)),
    Sample("flip", lambda x: x.flip(1), (ROWS,)),
)
OPERATIONS[classes.INDEX] = (Sample("select", lambda x: x[:, 0], (ROWS,)),)
OPERATIONS[classes.FORK] = (Sample(FORK, lambda x: x, (ROWS,)),)
