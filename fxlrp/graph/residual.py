"""Skip connections: sums of a value and of something computed from it."""

from __future__ import annotations

from collections.abc import Iterator
from operator import add

from torch import fx

from fxlrp.graph.nodes import tensor_value
from fxlrp.graph.operators import is_movement, operator_of


def skip_connections(graph: fx.Graph, inside: frozenset[fx.Node]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Each addition of which one term is an ancestor of the other, with that term: where the ways part.

    The search from the later term never goes behind the earlier one, so the cost over the whole graph is that
    of its blocks.
    """
    position = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        operator = operator_of(node)
        if operator is None or operator.arithmetic is not add or len(node.args) < 2:
            continue
        a, b = (unmoved(argument) for argument in node.args[:2])
        if a is None or b is None or a is b or a not in inside or b not in inside:
            continue
        early, late = sorted((a, b), key=lambda n: position[n])
        if _reaches(late, early, position):
            yield node, early


def unmoved(value: object) -> fx.Node | None:
    """What a view, cast or copy is a view of; one of several values, and a part of a complex number, stand alone."""
    while isinstance(value, fx.Node) and is_movement(value) and not _many_or_complex(value.args[0]):
        value = value.args[0]
    return value if isinstance(value, fx.Node) else None


def _many_or_complex(value: object) -> bool:
    if not isinstance(value, fx.Node):
        return False
    tensor = tensor_value(value)
    return tensor is None or tensor.is_complex()


def _reaches(late: fx.Node, early: fx.Node, position: dict[fx.Node, int]) -> bool:
    stack, seen = [late], set()
    while stack:
        node = stack.pop()
        if node is early:
            return True
        if node in seen or position[node] < position[early]:
            continue
        seen.add(node)
        stack.extend(node.all_input_nodes)
    return False
