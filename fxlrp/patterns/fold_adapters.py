"""Merges low-rank branches into the linear layer beside them: W x + b + s B A x is (W + s B A) x + b.

In: a program. Out: a program of equal values (to rounding) in which rules meet one linear map where the model has the
sum of several of one input, as adapters that were not merged leave it. Rules that look at signs would otherwise see the
factors apart, whose products cancel.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Any

from torch import fx
from torch.fx.proxy import Proxy

from fxlrp.capture import Program
from fxlrp.capture import torch_private as private
from fxlrp.capture.arithmetic import cast, matrix_product, plus, times
from fxlrp.capture.builder import Builder
from fxlrp.graph.live import dependent
from fxlrp.graph.nodes import drop_unused, tensor_value
from fxlrp.graph.operator_classes import ADD, PRODUCT
from fxlrp.graph.operators import LINEAR_LAYER, operator_of


@dataclass(frozen=True)
class Branch:
    """A linear map of ``source``: ``layers`` one after the other, the last maybe with a bias, times ``scale``."""

    source: fx.Node
    layers: tuple[fx.Node, ...]
    scale: float = 1.0

    @property
    def low_rank(self) -> bool:
        """Whether what lies between its layers is smaller than what it takes and what it gives."""
        shapes = [_weight(layer).meta["val"].shape for layer in self.layers]
        inner = [given for given, _ in shapes[:-1]]
        return bool(inner) and min(inner) < min(shapes[0][1], shapes[-1][0])


def fold_adapters(program: Program) -> Program:
    """A copy of ``program`` with every such branch merged."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(program.graph, values))
    inside = dependent(graph, (values[program.placeholders[name]] for name in program.inputs))
    made: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        pair = _branches(node, inside)
        if pair is not None:
            made[node] = _merge(graph, node, *pair)
    drop_unused(graph)
    moved = {old: made.get(new, new) for old, new in values.items()}
    fused = {moved[end]: region.moved(moved) for end, region in program.fused.items()}
    return replace(program, graph=graph, fused=fused)


def _branches(node: fx.Node, inside: Container[fx.Node]) -> tuple[Branch, Branch] | None:
    """The two maps of one input that a node adds, one of them of low rank; None for any other node."""
    operator = operator_of(node)
    if operator is None or operator.category != ADD or len(node.args) != 2 or node.kwargs:
        return None
    found = [_branch(each, inside) for each in node.args]
    first, second = found
    if first is None or second is None or first.source is not second.source:
        return None
    return (first, second) if first.low_rank or second.low_rank else None


def _branch(node: Any, inside: Container[fx.Node]) -> Branch | None:
    """The linear map that makes a value which nothing else takes; None if that is none."""
    operator = operator_of(node) if isinstance(node, fx.Node) and len(node.users) == 1 else None
    if operator is None or node.kwargs or tensor_value(node) is None:
        return None
    if operator.category == PRODUCT and len(node.args) == 2 and isinstance(node.args[1], (int, float)):
        scaled = _branch(node.args[0], inside)
        return None if scaled is None else replace(scaled, scale=scaled.scale * node.args[1])
    if LINEAR_LAYER not in operator.maps or node.args[1] in inside:
        return None
    before = _branch(node.args[0], inside)
    if before is None or before.scale != 1.0 or _bias(before.layers[-1]) is not None:
        return Branch(node.args[0], (node,))
    return Branch(before.source, (*before.layers, node))


def _bias(layer: fx.Node) -> Any:
    return layer.args[2] if len(layer.args) > 2 else None


def _weight(layer: fx.Node) -> fx.Node:
    weight = layer.args[1]
    assert isinstance(weight, fx.Node)
    return weight


def _merge(graph: fx.Graph, node: fx.Node, first: Branch, second: Branch) -> fx.Node:
    """Put the merged layer in the place of the sum."""
    value = tensor_value(node)
    assert value is not None
    builder = Builder(graph, private.fake_mode_of(value))
    builder.origin = node.meta

    def weight_of(branch: Branch) -> Proxy:
        made = Proxy(_weight(branch.layers[0]), builder)
        for layer in branch.layers[1:]:
            made = matrix_product(Proxy(_weight(layer), builder), made)
        return made if branch.scale == 1.0 else times(made, branch.scale)

    def bias_of(branch: Branch) -> Any:
        bias = _bias(branch.layers[-1])
        made = None if bias is None else Proxy(bias, builder)
        return made if made is None or branch.scale == 1.0 else times(made, branch.scale)

    with graph.inserting_before(node):
        weight = plus(weight_of(first), weight_of(second))
        given = [each for each in map(bias_of, (first, second)) if each is not None]
        bias = given[0] if len(given) == 1 else plus(*given) if given else None
        args = (first.source, cast(weight, value.dtype).node, None if bias is None else bias.node)
        layer = first.layers[-1].target
        merged = graph.call_function(layer, args)  # type: ignore[arg-type]
        merged.meta = dict(node.meta)
    node.replace_all_uses_with(merged)
    return merged
