"""Parts of a rewritten graph as one call each: what blocks and stretches are made with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import getitem
from typing import Any

import torch
from torch import fx

from fxlrp.capture.canonical import Fused


def carrying(nodes: Iterable[fx.Node], roots: Iterable[fx.Node]) -> set[fx.Node]:
    """The values through which messages go back to ``roots``, themselves included; ``nodes`` in order."""
    found = {*roots}
    for node in nodes:
        passes = node.op == "call_function" and node.target is not torch.detach
        if passes and any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


#: Makes the call from a graph of its own, the nodes in it by those they stand for, and the values that leave it.
Making = Callable[[fx.Graph, Mapping[fx.Node, fx.Node], Sequence[fx.Node]], Callable[..., Any]]


def as_one_call(graph: fx.Graph, values: dict[fx.Node, fx.Node], members: Sequence[fx.Node], making: Making) -> None:
    """Put ``members`` into ``graph`` as one call; the values that others use are taken out of it again."""
    inside = {*members}
    entering = list(dict.fromkeys(n for m in members for n in m.all_input_nodes if n not in inside))
    leaving = [node for node in members if not inside.issuperset(node.users)]
    own = fx.Graph()
    inner = {node: own.placeholder(node.name) for node in entering}
    for node in members:
        inner[node] = own.node_copy(node, inner.__getitem__)
    own.output(tuple(inner[node] for node in leaving))
    call = graph.call_function(making(own, inner, leaving), tuple(values[node] for node in entering))
    for place, node in enumerate(leaving):
        values[node] = graph.call_function(getitem, (call, place))
        values[node].meta = dict(node.meta)


def within(fused: Mapping[fx.Node, Fused], inner: Mapping[fx.Node, fx.Node]) -> dict[fx.Node, Fused]:
    """The fused operators of a graph that a part of it holds with all they are made of, by its own nodes ``inner``."""
    found = {}
    for node, each in fused.items():
        whole = inner.keys() >= {*each.members, *each.arguments}
        if whole and all(inner[member].op == "call_function" for member in each.members):
            found[inner[node]] = each.moved(inner)
    return found


def attributed(graph: fx.Graph) -> list[fx.Node]:
    """The values of a rewritten graph at which relevance is read."""
    outputs: Any = graph.output_node().args[0]
    return [node for node in outputs[1] if isinstance(node, fx.Node)]


def asked(graph: fx.Graph) -> set[fx.Node]:
    """The values of a rewritten graph whose messages may be asked for: all it returns beside the model's outputs."""
    outputs: Any = graph.output_node().args[0]
    return {node for part in outputs[1:] for node in part if isinstance(node, fx.Node)}
