"""Half precision carried in float32: relevance divides by sums that cancel, and its messages are small.

A float16 or bfloat16 model is explained on a graph of its own weights and inputs that computes in float32. What the
model returns stays its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.capture import torch_private as private
from fxlrp.capture.program import Program, widened
from fxlrp.graph.nodes import tensor_value
from fxlrp.graph.operator_table import BITS
from fxlrp.graph.operators import Move, operator_of

#: The type in which each narrow one is carried.
WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.complex32: torch.complex64}


def is_narrow(program: Program) -> bool:
    """Whether some value of the graph is in half precision, and none is read as the bits of another type."""
    nodes = list(program.graph.nodes)
    values = (value for node in nodes for value in private.pytree.tree_leaves(node.meta.get("val")))
    narrow = any(isinstance(value, Tensor) and value.dtype in WIDER for value in values)
    return narrow and not any(node.target is BITS for node in nodes)


def in_float32(program: Program) -> Program:
    """A copy of ``program`` in which every value of half precision is one of float32, arguments included, without the
    casts between the two: the graph of the same model in float32.
    """
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(program.graph, values))
    kept: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        node.args, node.kwargs = private.pytree.tree_map(_wider, (node.args, node.kwargs))
        if "val" in node.meta:
            node.meta = {**node.meta, "val": private.pytree.tree_map(widened, node.meta["val"])}
        kept[node] = node
        if (source := _cast_to_its_own(node)) is not None:
            kept[node] = kept[source]
            node.replace_all_uses_with(source)
            graph.erase_node(node)
    moved = {old: kept[new] for old, new in values.items()}
    fused = {
        moved[end]: _wide_region(region.moved(moved), [n for old in region.members if kept[n := values[old]] is n])
        for end, region in program.fused.items()
    }
    return replace(program, graph=graph, fused=fused, wide=True)


def _cast_to_its_own(node: fx.Node) -> fx.Node | None:
    """The value that a cast casts, where it has the type already."""
    known = operator_of(node)
    source = node.args[0] if known is not None and known.move is Move.STAYS else None
    arguments = (*node.args, *node.kwargs.values())
    if not isinstance(source, fx.Node) or not any(isinstance(value, torch.dtype) for value in arguments):
        return None
    before, after = tensor_value(source), tensor_value(node)
    same = before is not None and after is not None and (before.dtype, before.device) == (after.dtype, after.device)
    return source if same and set(node.kwargs) <= {"dtype"} else None


def _wide_region(region: Any, members: list[fx.Node]) -> Any:
    """The region of ``members`` alone: what stood before a cast at its beginning is none of it."""
    args, kwargs = private.pytree.tree_map(_wider, (region.args, dict(region.kwargs)))
    return replace(region, args=args, kwargs=kwargs, members=tuple(members))


def _wider(value: Any) -> Any:
    return WIDER.get(value, value) if isinstance(value, torch.dtype) else value
