"""Whether gradients are right: the derivative of what is explained along random directions, by differences.

A ledger closes on any backward pass that keeps its promises node by node with the gradients that torch gave. It cannot
tell that one of these is wrong, as some of torch's own kernels are for some layouts in memory; a difference of two
forward passes can.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxlrp.engine.targets import Target
from fxlrp.errors import FxlrpError
from fxlrp.explain.model import ConvertedModel, convert
from fxlrp.graph.nodes import run
from fxlrp.graph.operator_classes import ROUNDING
from fxlrp.graph.operator_table import DETACH
from fxlrp.graph.operators import operator_of, packet
from fxlrp.readout.inputs_at import Point, point_of
from fxlrp.readout.passes import Task
from fxlrp.testing.checks import float_types, is_double

#: Steps along a direction, in units of the values. A difference over a step h of float64 is off by about h^2 of what is
#: curved and 1e-16 / h of the value: at best 1e-11 or so, and 1e-6 leaves room for models that are curved strongly. Of
#: several steps the best counts, as a kink (of a rectifier, a maximum) may lie within some.
EXACT_STEPS, EXACT = (1e-4, 1e-5, 1e-6), 1e-6
#: The same where a value of the model is float32 (1e-7 / h) or half.
ROUNDED_STEPS, ROUNDED = (1e-1, 3e-2, 1e-2, 3e-3), 0.02
#: How far the point lies from the inputs, in units of the values: at an input of exactly 0, and where two are equal,
#: rectifiers and maxima have no derivative.
ASIDE = 1e-3
#: A derivative is only as exact as the value: below this share of it, nothing is told.
FLOOR = 1e-3


@dataclass(frozen=True)
class DerivativeReport:
    """What :func:`check_derivative` found: ``error`` is the largest |ds/dv - sum g v| of a direction v, relative to
    sum |g v|, of which ``tolerance`` is allowed.
    """

    error: float
    tolerance: float
    directions: int

    @property
    def passed(self) -> bool:
        """Whether the gradient is the derivative, within the tolerance (a NaN is a failure)."""
        return self.error <= self.tolerance

    def raise_if_failed(self) -> None:
        """Raise :class:`fxlrp.FxlrpError` with the report's text unless the check passed."""
        if not self.passed:
            raise FxlrpError(str(self))

    def __str__(self) -> str:
        verdict = "the gradient is the derivative" if self.passed else "the gradient is NOT the derivative"
        return (
            f"{verdict} along {self.directions} random directions: largest relative error {self.error:.2e}, "
            f"tolerance {self.tolerance:.0e}"
        )


def check_derivative(model: nn.Module, inputs: Any, *, target: Target = None, directions: int = 3) -> DerivativeReport:
    """Check that the gradient of what is explained is its derivative, next to ``inputs``.

        (s(x + h v) - s(x - h v)) / 2h = sum of g v        for random v, of the shape of everything that is attributed

    s is the sum over the batch, g what the ruleset ``gradient`` propagates, with the kernels that run. The differences
    are of forward passes of the captured graph, operator by operator. Of a rounding it is the derivative of what is not
    rounded; a detached value stays as it is. model: the model, or a conversion of it, whose capture is then shared,
    best in float64; inputs, target: as :meth:`ConvertedModel.attribute` takes them. Raises :class:`fxlrp.FxlrpError`
    for whatever conversion refuses; a difference is no error but a report that did not pass.
    """
    lrp = model.with_ruleset("gradient") if isinstance(model, ConvertedModel) else convert(model, "gradient")
    conversion = lrp.conversion
    task = Task(conversion, conversion.prepare(inputs), target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        point = point_of(conversion, task.captured, task.given)
        point = point.moved(tuple(_along(point.values, _directions(point), ASIDE)))
        propagated = task.propagate(at=point)
        gradients = [carried.gradient for carried in propagated.attributed]
        exact = all(map(is_double, float_types(lrp)))
        scalar = _Scalar(task, point)
        errors = [
            _error(scalar, gradients, _directions(point), EXACT_STEPS if exact else ROUNDED_STEPS)
            for _ in range(directions)
        ]
    worst = float(torch.tensor(errors, dtype=torch.float64).max())  # NaN stays NaN
    return DerivativeReport(worst, EXACT if exact else ROUNDED, directions)


def _directions(point: Point) -> list[Tensor]:
    """Random values of the size of the attributed ones."""
    return [torch.randn_like(x) * x.double().pow(2).mean().sqrt().clamp_min(1e-3).to(x.dtype) for x in point.values]


def _error(scalar: _Scalar, gradients: list[Tensor], direction: list[Tensor], steps: tuple[float, ...]) -> float:
    """The error of the directional derivative at the step where it is smallest."""
    terms = [g.double() * v.double() for g, v in zip(gradients, direction, strict=True)]
    expected = sum(float(term.sum()) for term in terms)
    size = max(sum(float(term.abs().sum()) for term in terms), FLOOR * abs(scalar.value))
    found = [(scalar(direction, h) - scalar(direction, -h)) / (2 * h) for h in steps]
    errors = [abs(difference - expected) / (size or 1.0) for difference in found]
    return min(errors)


class _Scalar:
    """The sum of what is explained of a batch, as a function of the attributed values around a point."""

    def __init__(self, task: Task, point: Point) -> None:
        self.task, self.point, self.program = task, point, task.captured.program
        self.arguments = self.program.arguments(task.lrp.model, point.given)
        self.roundings = {node: node.args[0] for node in self.program.graph.nodes if _rounds(node)}
        self.kept: dict[fx.Node, Tensor] = {}
        self.value = self._at(point)

    def __call__(self, direction: list[Tensor], step: float) -> float:
        """The sum at the point, moved by a step in a direction."""
        return self._at(self.point.moved(tuple(_along(self.point.values, direction, step))))

    def _at(self, point: Point) -> float:
        """The sum at a point; what roundings add, and what is detached, stays what it was at the first."""
        operands: dict[Any, Any] = dict.fromkeys(self.roundings.values())

        def each(node: fx.Node, value: Any) -> Any:
            if node in point.by_node:
                value = point.by_node[node]
            elif node in self.roundings:
                x = operands[self.roundings[node]]
                value = x + self.kept.setdefault(node, value - x)
            elif packet(node.target) is DETACH:
                value = self.kept.setdefault(node, value)
            if node in operands:
                operands[node] = value
            return value

        returned: Any = self.program.graph.output_node().args[0]
        values = run(self.program.graph, self.arguments, [n for n in returned if isinstance(n, fx.Node)], each)
        outputs = self.program.unpack(tuple(values[n] if isinstance(n, fx.Node) else n for n in returned))
        assert self.task.explain is not None
        with torch.no_grad():
            scalars, _ = self.task.explain(outputs, self.task.lrp.ruleset)
        return sum(float(scalar.double().sum()) for scalar in scalars)


def _rounds(node: fx.Node) -> bool:
    operator = operator_of(node)
    return operator is not None and operator.category == ROUNDING


def _along(values: Iterable[Tensor], direction: Iterable[Tensor], step: float) -> Iterator[Tensor]:
    return (x + step * v for x, v in zip(values, direction, strict=True))
