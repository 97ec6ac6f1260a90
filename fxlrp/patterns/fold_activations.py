"""Folds each activation that a model, or a pattern, spells out into one operator, so that rules meet it as a whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx

from fxlrp.capture import Program
from fxlrp.graph.activations import SpelledActivation
from fxlrp.graph.nodes import drop_unused
from fxlrp.patterns import activations  # fills the table of patterns
from fxlrp.patterns.language import PATTERNS
from fxlrp.patterns.matcher import Form, Match, attempts

__all__ = ["activations", "fold_activations", "folded"]


def fold_activations(program: Program) -> Program:
    """A copy of ``program`` in which each match of an ``activation`` pattern is one call with the same
    arithmetic inside.
    """
    graph, moved = folded(program.graph)
    fused = {moved[exit_node]: region.moved(moved) for exit_node, region in program.fused.items()}
    return replace(program, graph=graph, fused=fused)


def folded(source: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy of a graph in which each match of an ``activation`` pattern is one call, and where its nodes went."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(source, values))
    calls: dict[fx.Node, fx.Node] = {}
    for match in attempts(graph, [Form(each, each.written) for each in PATTERNS.get("activation", ())])[0]:
        if match.root.users:  # an inner spelling of an activation folded already has none left
            calls[match.root] = _fold(graph, match)
    drop_unused(graph)
    return graph, {old: calls.get(new, new) for old, new in values.items()}  # a fused operator may act on an activation


def _fold(graph: fx.Graph, match: Match) -> fx.Node:
    source = next(iter(match.inputs.values()))
    assert match.pattern.slope is not None
    arithmetic = fx.GraphModule({}, _between(source, match.root))
    target = SpelledActivation(match.pattern.code.__name__, arithmetic, match.pattern.slope)
    with graph.inserting_after(match.root):
        call = graph.call_function(target, (source,))
    call.meta = dict(match.root.meta)
    match.root.replace_all_uses_with(call)
    return call


def _between(source: fx.Node, root: fx.Node) -> fx.Graph:
    """The arithmetic from ``source`` to ``root`` as a graph of one argument."""
    graph = fx.Graph()
    values: dict[fx.Node, Any] = {source: graph.placeholder("x")}

    def copy(node: fx.Node) -> fx.Node:
        if node not in values:
            for argument in node.all_input_nodes:
                copy(argument)
            values[node] = graph.node_copy(node, lambda n: values[n])
        return values[node]

    graph.output(copy(root))
    return graph
