"""Rounding: a value that stands for another one close to it, and the step of the grid that it was taken from.

Dynamic quantisation computes ``round(z / c) c`` with c made of z itself. The step c decides how fine the grid is; what
was computed of z does not change with it but for the rounding, so it is no factor that could earn relevance.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

from torch import Tensor, fx

from fxlrp.graph.nodes import is_one, tensor_value
from fxlrp.graph.operator_classes import ADD, ROUNDING, SELECTION, SUM
from fxlrp.graph.operators import is_movement, nodes_in, operator_of

#: The label of a step: `rounding.step`.
STEP = f"{ROUNDING}.step"


def rounded(x: Tensor, y: Tensor) -> Tensor:
    """``y``, which is ``x`` rounded: the spelling of every rounding that is more than one operator."""
    return y


def steps(graph: fx.Graph, carried: Container[fx.Node]) -> frozenset[fx.Node]:
    """The values that the steps of grids are made of: in round(z / c + o) or round(z s), what reduces z to c or s.

    A step has fewer entries than what it scales and is made entry by entry from the largest, the smallest or the mean
    of others. What else a value is divided by before it is rounded is no step.
    """
    found: set[fx.Node] = set()
    for node in graph.nodes:
        operator = operator_of(node)
        if operator is not None and operator.category == ROUNDING and node in carried:
            for scaled, step in _scalings(node, carried):
                found.update(_reductions(scaled, step, carried))
    return frozenset(found)


def _scalings(node: fx.Node, carried: Container[fx.Node]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Products and quotients that a rounding is made of by shifts and limits, each with a factor that carries."""
    pending = nodes_in(node, operator_of(node).terms)  # type: ignore[union-attr]
    while pending:
        value = pending.pop()
        operator = operator_of(value)
        if value not in carried or operator is None:
            continue
        if operator.scales:
            yield from ((value, factor) for factor in nodes_in(value, operator.factors) if factor in carried)
        elif is_movement(value) or operator.category == ADD or operator.masks:
            pending += nodes_in(value, operator.terms)


def _reductions(scaled: fx.Node, step: fx.Node, carried: Container[fx.Node]) -> set[fx.Node]:
    """The reductions that a factor of ``scaled`` is made of; none where it is no step."""
    found: set[fx.Node] = set()
    pending, spread = [step], False
    while pending:
        value = pending.pop()
        operator = operator_of(value)
        if value not in carried:
            continue
        if operator is None:
            return set()
        spread = spread or _smaller(value, scaled)
        operands = nodes_in(value, operator.factors + operator.terms)
        if operator.entrywise or (is_movement(value) and not operator.indexed):
            pending += operands
        elif (operator.copies or operator.category in (SUM, SELECTION)) and any(_smaller(value, n) for n in operands):
            found.add(value)
        else:
            return set()
    return found if spread else set()


def _smaller(node: fx.Node, other: fx.Node) -> bool:
    """Whether a value has one entry along an axis along which another has more, or has not that axis."""
    here, there = tensor_value(node), tensor_value(other)
    if here is None or there is None or here.ndim > there.ndim:
        return False
    pairs = zip(reversed(here.shape), reversed(there.shape), strict=False)
    return here.ndim < there.ndim or any(is_one(a) and not is_one(b) for a, b in pairs)
