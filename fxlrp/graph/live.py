"""Which values of a graph depend on others: on the inputs at all, or otherwise than as a condition or a size."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from fxlrp.graph.nodes import ancestors
from fxlrp.graph.operators import Dependence, is_float, operator_of


def dependent(graph: fx.Graph, roots: Iterable[fx.Node]) -> frozenset[fx.Node]:
    """The nodes whose value depends on ``roots``, which are among them."""
    found = {*roots}
    for node in graph.nodes:
        if any(n in found for n in node.all_input_nodes):
            found.add(node)
    return frozenset(found)


def between(first: fx.Node, last: fx.Node) -> frozenset[fx.Node]:
    """The nodes that depend on ``first`` and that ``last``, which is among them, depends on. Of the graph only what
    stands between the two is looked at.
    """
    behind = set(ancestors(last, (first,), lambda node: [n for n in node.all_input_nodes if first < n]))
    found = {first}
    for node in sorted(behind):
        if any(n in found for n in node.all_input_nodes):
            found.add(node)
    return frozenset(found - {first})


def reached(graph: fx.Graph, attributed: Iterable[fx.Node]) -> frozenset[fx.Node]:
    """The float values that depend on attributed ones otherwise than as a condition, an index or a size does."""
    found = {*attributed}
    for node in graph.nodes:
        operator = operator_of(node)
        carries = operator is None or operator.dependence is not Dependence.CONSTANT
        if carries and is_float(node) and any(n in found for n in node.all_input_nodes):
            found.add(node)
    return frozenset(found)
