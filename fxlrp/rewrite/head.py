"""A rewritten module in two parts: up to the last value in which positions are mixed, and from there to the scores.

What follows that value is made row by row, [batch, position]. Where one row is explained it need not be kept, nor
rewritten, for the others: scores of a large vocabulary are most of what a short text takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, fx

from fxlrp.graph.handles import fetched
from fxlrp.graph.live import dependent
from fxlrp.graph.nodes import ancestors, drop_unused, tensor_value
from fxlrp.rewrite.graph import Rewritten
from fxlrp.rules.primitives import as_relevance


@dataclass(frozen=True, eq=False)
class Halves:
    """``body`` returns what the module does, but for the scores (None among the flat outputs) and the
    last tap; and the arguments of ``head``: the mixed value, and whatever else the scores are made of. Where all of
    the latter is handed to the module, ``weights`` names it.
    """

    body: Rewritten
    head: fx.GraphModule
    weights: tuple[str, ...] | None

    def scores(self, arguments: Sequence[Tensor], rows: Tensor | None = None) -> Tensor:
        """The scores of all rows [batch, positions, classes], or of chosen ``rows`` of the mixed value."""
        mixed, *others = arguments
        found: Tensor = self.head(mixed if rows is None else rows, *map(fetched, others))
        return found


def halves(rewritten: Rewritten, place: int) -> Halves | None:
    """The parts of a module whose last tap is the value that its flat output at ``place`` is made of row by row; None
    where an operation in between asks for the sizes of the whole.
    """
    module = rewritten.module
    if module not in _MADE:
        parts = _cut(module.graph, place)
        if parts is None:
            _MADE[module] = None
        else:
            body, head, others = parts
            named = tuple(str(n.target) for n in others) if all(n.op == "placeholder" for n in others) else None
            _MADE[module] = Halves(replace(rewritten, module=body), head, named)
    return _MADE[module]


_MADE: WeakKeyDictionary[fx.GraphModule, Halves | None] = WeakKeyDictionary()


def _cut(graph: fx.Graph, place: int) -> tuple[fx.GraphModule, fx.GraphModule, list[fx.Node]] | None:
    outputs: Any = graph.output_node().args[0]
    flat, attributed, taps = outputs
    scores, mixed = flat[place], taps[-1]
    if mixed.target is as_relevance:  # on its way to the caller alone
        mixed = mixed.args[0]
    behind = dependent(graph, [mixed])
    between = [node for node in graph.nodes if node in behind and node in {scores, *ancestors(scores)}]
    between.remove(mixed)
    others = list(dict.fromkeys(n for node in between for n in node.all_input_nodes if n not in behind))
    if any(tensor_value(node) is None for node in (mixed, *others)):
        return None
    head = fx.Graph()
    values = {node: head.placeholder(node.name) for node in (mixed, *others)}
    for node in between:
        values[node] = head.node_copy(node, values.__getitem__)
    head.output(values[scores])
    body = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    body.graph_copy(graph, made)
    kept = tuple(None if i == place else each for i, each in enumerate(flat))
    body.output(fx.map_arg((kept, attributed, taps[:-1], (mixed, *others)), made.__getitem__))
    drop_unused(body)
    return fx.GraphModule({}, body), fx.GraphModule({}, head), others
