"""Values on a grid of whole numbers: how what they were rounded from is carried along.

No gradient passes through integers. Beside each integer value that is made of float values by casts, arithmetic and
moves stands its *shadow*, the same arithmetic on the float values; where the integers become float again, or meet
float values, they are the shadow, rounded. Values stay those of the integers, overflows too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from fxlrp.capture.builder import Builder
from fxlrp.graph.nodes import tensor_value
from fxlrp.graph.operator_classes import ADD, ROUNDING
from fxlrp.graph.operators import Dependence, Move, is_continuous, is_float, nodes_in, operator_of, packet
from fxlrp.graph.rounding import rounded

aten = torch.ops.aten

#: What operators for integers alone are on float values.
_SHADOWS = {aten._int_mm: aten.matmul.default, aten.floor_divide: aten.div.Tensor}
#: The operators that integers are computed with.
_ARITHMETIC = frozenset(
    {
        Dependence.TERMS,
        Dependence.FACTORS,
        Dependence.QUOTIENT,
        Dependence.HOMOGENEOUS,
        Dependence.ROUNDING,
        Dependence.ACTIVATION,
    }
)
#: The ends of a grid, and the step beyond them up to which a value was only rounded, not cut off.
_ENDS = {aten.clamp_min: -1, aten.clamp_max: 1}


def carry_through_grids(graph: fx.Graph, builder: Builder) -> None:
    """Put the shadow, rounded, in the place of each integer operand of a float value, and widen the ends of grids."""
    shadows = _Shadows(graph, builder)
    for node in list(graph.nodes):
        operator = operator_of(node)
        if operator is None or not is_float(node):
            continue
        for operand in nodes_in(node, operator.factors + operator.terms):
            shadow = shadows.of(operand)
            if shadow is not None:
                node.replace_input_with(operand, shadows.rounded(operand, shadow, node))
        if packet(node.target) in _ENDS and isinstance(node.args[1], (int, float)) and _on_grid(node.args[0]):
            shadows.widen(node)


class _Shadows:
    """The shadows of the values of one graph that lie on grids, each made where its value is."""

    def __init__(self, graph: fx.Graph, builder: Builder) -> None:
        self.graph, self.builder = graph, builder
        self.known: dict[fx.Node, fx.Node | None] = {}

    def of(self, node: fx.Node) -> fx.Node | None:
        """The shadow of an integer value; None of a float value, and of integers that no float value is rounded to."""
        if node not in self.known:
            self.known[node] = self._made(node) if _is_whole(node) else None
        return self.known[node]

    def rounded(self, node: fx.Node, shadow: fx.Node, user: fx.Node) -> fx.Node:
        """An integer value as a float one that its shadow was rounded to, of the type that ``user`` computes in."""
        dtype = user.meta["val"].dtype
        with self._at(user, user):
            x, y = (self._cast(value, dtype) for value in (shadow, node))
            return self._call(rounded, x, y)

    def widen(self, end: fx.Node) -> None:
        """Make of the end of a grid what lets values through that are a step beyond it, and rounds them to it."""
        with self._at(end.next, end):
            wider = self._call(end.target, *_wider(end, end.args[0]))
            made = self._call(rounded, wider, end)
        end.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)

    def _made(self, node: fx.Node) -> fx.Node | None:
        operator = operator_of(node)
        target: Any = _SHADOWS.get(packet(node.target))
        if operator is None or operator.counts or not (target or operator.dependence in _ARITHMETIC):
            return None
        operands = nodes_in(node, operator.factors + operator.terms) or node.all_input_nodes
        found = {n: n if is_continuous(tensor_value(n)) else self.of(n) for n in operands}
        shadow = next(filter(None, found.values()), None)
        if shadow is None or operator.move is Move.STAYS:
            return shadow
        dtype = shadow.meta["val"].dtype
        with self._at(node.next, node):
            values = {n: self._cast(known or n, dtype) for n, known in found.items()}
            args: Any = fx.map_arg(node.args, lambda n: values.get(n, n))
            options = {key: value for key, value in node.kwargs.items() if key not in ("dtype", "rounding_mode")}
            target = aten.div.Tensor if "rounding_mode" in node.kwargs else target or node.target
            ends = packet(node.target) in _ENDS and isinstance(node.args[1], (int, float))
            return self._call(target, *(_wider(node, args[0]) if ends else args), **options)

    @contextmanager
    def _at(self, place: fx.Node, origin: fx.Node) -> Iterator[None]:
        """Operators are put in front of ``place``, as if ``origin`` had called them."""
        self.builder.origin = origin.meta
        with self.graph.inserting_before(place):
            yield

    def _cast(self, node: fx.Node, dtype: torch.dtype) -> fx.Node:
        same = node.meta["val"].dtype == dtype
        return node if same else self._call(aten._to_copy.default, node, dtype=dtype)

    def _call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.builder.create_node("call_function", target, args, kwargs)


def _wider(end: fx.Node, value: Any) -> tuple[Any, Any]:
    """The arguments of the end of a grid with one step more."""
    bound: Any = end.args[1]
    return value, bound + _ENDS[packet(end.target)]


def _on_grid(node: Any) -> bool:
    """Whether a value was rounded, shifted by what was rounded as well, and cut off."""
    operator = operator_of(node) if isinstance(node, fx.Node) else None
    if operator is None:
        return False
    shifted = operator.category == ADD or packet(node.target) in _ENDS
    return operator.category == ROUNDING or (shifted and any(map(_on_grid, node.all_input_nodes)))


def _is_whole(node: fx.Node) -> bool:
    """Whether a value holds integers, not truths."""
    value = tensor_value(node)
    return value is not None and not is_continuous(value) and value.dtype != torch.bool
