"""A rewritten module whose weights are brought in by the operations that take them, and let go after these.

In: a module, in blocks or not, and which of its arguments are handles of weights
(:class:`~fxlrp.graph.handles.Elsewhere`). Out: the same module on these. What is brought in within a block is let go
when the block ends, and brought in again when the backward pass repeats it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.graph.handles import fetched
from fxlrp.rewrite.blocks import Block


def fetching(module: fx.GraphModule, handles: Mapping[str, bool]) -> fx.GraphModule:
    """The module on ``handles``, arguments by name, with whether a backward pass ends at what is looked up in them."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    kept = {node for node in module.graph.nodes if node.op == "placeholder" and str(node.target) in handles}
    looked_up = {node for node in kept if handles[str(node.target)]}

    def taken(node: fx.Node) -> fx.Node:
        return graph.call_function(fetched, (values[node],)) if node in kept else values[node]

    for node in module.graph.nodes:
        target: Any = node.target
        if node.op == "output":
            graph.output(fx.map_arg(node.args[0], taken))
        elif node.op == "placeholder":
            values[node] = graph.node_copy(node)
        elif isinstance(target, Block):
            inner = [place for place in target.module.graph.nodes if place.op == "placeholder"]
            pairs = zip(inner, node.args, strict=True)
            own = {str(place.target): given in looked_up for place, given in pairs if given in kept}
            block = Block(fetching(target.module, own)) if own else target
            values[node] = graph.call_function(block, tuple(fx.map_arg(node.args, values.__getitem__)))
        else:
            values[node] = graph.node_copy(node, taken)
            if looked_up.intersection(node.all_input_nodes):
                values[node] = graph.call_function(_begun, (values[node],))
    return fx.GraphModule({}, graph)


def _begun(value: Tensor) -> Tensor:
    """A value at which a backward pass ends."""
    return value.requires_grad_() if torch.is_grad_enabled() and not value.requires_grad else value
