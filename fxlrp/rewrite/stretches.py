"""Stretches of a rewritten graph between two layers, of which the backward pass keeps no more than what enters them.

Rules in relevance need many values of the same size for one operation: numerators, denominators, shares. Between the
layers (maps by weights, which cost nearly all of the time) everything is cheap to compute again, the products of
attention included. So a stretch runs plainly in the forward pass, without its rules and with operators as fused as they
were; with its rules it runs in the backward pass, where its messages arrive. The graph without stretches is the
definition.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.capture.canonical import Fused
from fxlrp.graph.live import dependent
from fxlrp.graph.nodes import ancestors, drop_unused, tensor_value
from fxlrp.graph.operators import Dependence, Operator, draws, in_slots, is_continuous, is_random, operator_of, packet
from fxlrp.rewrite.call import RuleCall, SumCall
from fxlrp.rewrite.kernels import PLAIN, as_taken
from fxlrp.rewrite.parts import as_one_call, carrying, within
from fxlrp.rules.primitives import as_gradient, as_relevance
from fxlrp.rules.rule import Message
from fxlrp.rules.shares import ShareRule


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stretch: Stretch, *values: Any) -> tuple[Tensor, ...]:
        ctx.stretch = stretch
        ctx.save_for_backward(*(value for value in values if isinstance(value, Tensor)))
        ctx.others = [None if isinstance(value, Tensor) else value for value in values]
        ctx.set_materialize_grads(False)
        found = apart(stretch.plain(*values))
        carrying = zip(found, stretch.carrying, strict=True)
        ctx.mark_non_differentiable(*(y for y, carries in carrying if not carries))
        return found

    @staticmethod
    def backward(ctx: Any, *messages: Tensor | None) -> tuple[Tensor | None, ...]:
        kept = iter(ctx.saved_tensors)
        wanted = ctx.needs_input_grad[1:]
        values = [_leaf(next(kept), asked) if x is None else x for x, asked in zip(ctx.others, wanted, strict=True)]
        leaves = [x for x, asked in zip(values, wanted, strict=True) if asked]
        with torch.enable_grad():
            found = ctx.stretch.again(*values)
        arrived = [(y, g) for y, g in zip(found, messages, strict=True) if g is not None and y.requires_grad]
        sent: tuple[Tensor | None, ...] = (None,) * len(leaves)
        if arrived:
            values_given, messages_given = zip(*arrived, strict=True)
            sent = torch.autograd.grad(values_given, leaves, messages_given, allow_unused=True)
        given = iter(sent)
        return None, *(next(given) if asked else None for asked in wanted)


def apart(values: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Each value as an object of its own. Without messages a conversion gives the value itself, and autograd would take
    both for one.
    """
    return tuple(y.view_as(y) for y in values)


def _leaf(x: Tensor, asked: bool) -> Tensor:
    return x.detach().requires_grad_() if asked else x


@dataclass(frozen=True, eq=False)
class Stretch:
    """A part of a rewritten graph as one call that keeps what enters it. ``plain`` gives the same values without rules,
    ``again`` is what runs in the backward pass, for the messages; ``carrying`` tells through which of the values that
    leave the part messages go.
    """

    module: fx.GraphModule
    plain: fx.GraphModule
    again: fx.GraphModule
    carrying: tuple[bool, ...]

    __name__ = "stretch"

    def __call__(self, *values: Any) -> Any:
        """The values that leave the stretch."""
        if torch.compiler.is_compiling():
            return self.module(*values)
        if not torch.is_grad_enabled():
            return self.plain(*values)
        return _Again.apply(self, *values)  # type: ignore[no-untyped-call]


def in_stretches(
    graph: fx.Graph, roots: Collection[fx.Node], fixed: Collection[fx.Node], fused: Mapping[fx.Node, Fused]
) -> fx.Graph:
    """A rewritten graph whose rules stand in stretches, where these keep more than what their operations are made of;
    itself where none does.

    Messages go back to ``roots``. ``fixed`` values, whose messages are asked for, stay values of the graph itself;
    ``fused`` are the operators that stand expanded in it.
    """
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    live, parts = carrying(nodes, roots), Parts(graph, roots, fixed)
    if not any(map(parts.keeps_much, nodes)):
        return graph
    made = fx.Graph()
    values: dict[fx.Node, fx.Node] = {node: made.node_copy(node) for node in graph.nodes if node.op == "placeholder"}

    def making(own: fx.Graph, inner: Mapping[fx.Node, fx.Node], leaving: Sequence[fx.Node]) -> Stretch:
        carries = tuple(node in live and is_continuous(tensor_value(node)) for node in leaving)
        module = fx.GraphModule({}, own)
        return Stretch(module, plainly(own, within(fused, inner)), for_messages(module), carries)

    for members in _ordered(nodes, parts.stretches(nodes)):
        if len(members) > 1 or parts.keeps_much(members[0]):
            as_one_call(made, values, members, making)
        else:
            values[members[0]] = made.node_copy(members[0], values.__getitem__)
    made.output(fx.map_arg(graph.output_node().args[0], values.__getitem__))
    made.lint()
    return made


def plainly(graph: fx.Graph, fused: Mapping[fx.Node, Fused]) -> fx.GraphModule:
    """The graph with ``fused`` operators as they were, where nothing that they became is used but their values."""
    plain, images = fx.Graph(), dict[fx.Node, fx.Node]()
    outputs = plain.output(plain.graph_copy(graph, images))

    def prepared(function: Any, value: Any) -> Any:
        return plain.call_function(function, (value,)) if isinstance(value, fx.Node) else value

    for node, each in fused.items():
        last = images[node]
        if not {images[member] for member in each.members if member is not node}.isdisjoint(
            ancestors(outputs, (last,))
        ):
            continue
        with plain.inserting_before(last):
            args, kwargs = as_taken(each, images.__getitem__, prepared)
            whole = plain.call_function(PLAIN.get(packet(each.target), each.target), args, kwargs)
        last.replace_all_uses_with(whole)
    drop_unused(plain)
    return fx.GraphModule({}, plain)


def for_messages(module: fx.GraphModule) -> fx.GraphModule:
    """The module, whose shares are not summed up to values where nothing else in it uses these."""
    shares = [n for n in module.graph.nodes if isinstance(n.target, RuleCall) and isinstance(n.target.rule, ShareRule)]
    last = [node for node in shares if all(user.op == "output" for user in node.users)]
    if not last:
        return module
    graph, images = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(module.graph, images))
    for node in last:
        images[node].target = replace(node.target, valued=False)
    return fx.GraphModule({}, graph)


class Parts:
    """Which nodes of a graph form stretches."""

    def __init__(self, graph: fx.Graph, roots: Collection[fx.Node], fixed: Collection[fx.Node]) -> None:
        self.fixed = {*roots, *fixed}
        self.dependent = dependent(graph, roots)
        self.known: dict[fx.Node, bool] = {}

    def stretches(self, nodes: Sequence[fx.Node]) -> list[list[fx.Node]]:
        """Sets of cheap nodes that hang together between two layers, if a rule among them keeps much.

        The level of a node is how many nodes that are not cheap the longest way to it has. None of them lies between
        two nodes of one level, so a stretch never waits for what it gives.
        """
        import networkx as nx

        level: dict[fx.Node, int] = {}
        together: Any = nx.Graph()
        for node in nodes:
            cheap = self.cheap(node)
            sources = [source for source in node.all_input_nodes if source in level]
            level[node] = max((level[s] for s in sources), default=0) + (node in self.dependent and not cheap)
            if cheap:
                together.add_node(node)
                together.add_edges_from((s, node) for s in sources if s in together and level[s] == level[node])
        place = {node: index for index, node in enumerate(nodes)}
        found = (sorted(members, key=place.__getitem__) for members in nx.connected_components(together))
        return [members for members in found if any(map(self.keeps_much, members))]

    def cheap(self, node: fx.Node) -> bool:
        """Whether a node may run again: it makes a tensor of tensors, draws no random number, and is no layer."""
        if node not in self.known:
            self.known[node] = self._cheap(node)
        return self.known[node]

    def _cheap(self, node: fx.Node) -> bool:
        if node in self.fixed or node not in self.dependent or not self._of_tensors(node):
            return False
        if isinstance(node.target, SumCall) or node.target in (as_relevance, as_gradient, torch.detach):
            return True
        operator = _operator(node)
        return operator is not None and not self._is_layer(node, operator)

    def _of_tensors(self, node: fx.Node) -> bool:
        """Whether the value of a node, and all those it is made of, are single tensors: what autograd can follow."""
        made_of = [source for source in node.all_input_nodes if source in self.dependent]
        return all(tensor_value(each) is not None for each in (node, *made_of))

    def _is_layer(self, node: fx.Node, operator: Operator) -> bool:
        """Whether an operation is a product with weights: of its factors one depends on no input."""
        if operator.scales:
            return False
        call = node.target
        factors = (
            node.args[: call.operation.factors] if isinstance(call, RuleCall) else in_slots(node, operator.factors)
        )
        return any(isinstance(factor, fx.Node) and factor not in self.dependent for factor in factors)

    def keeps_much(self, node: fx.Node) -> bool:
        """Whether the rule at a node keeps more than its operands and its value."""
        call = node.target
        if not isinstance(call, RuleCall) or _operator(node) is None or not self._of_tensors(node):
            return False
        shares = isinstance(call.rule, ShareRule) and call.rule.denominators is None
        return shares or (Message.RELEVANCE in (call.takes, call.gives) and self.cheap(node))


def _operator(node: fx.Node) -> Operator | None:
    """The operator that a node applies, with a rule or without; None where it may be several, or any, or draws random
    numbers.
    """
    if not isinstance(node.target, RuleCall):
        return None if is_random(node) else operator_of(node)
    operation = node.target.operation
    several = operation.operator.dependence is Dependence.GENERAL or draws(operation.target)
    return None if several else operation.operator


def _ordered(nodes: Sequence[fx.Node], stretches: Iterable[Sequence[fx.Node]]) -> Iterator[Sequence[fx.Node]]:
    """All nodes, those of a stretch together, each behind what it uses and else in the order of the graph."""
    import networkx as nx

    place = {node: index for index, node in enumerate(nodes)}
    whole = {node: members for members in stretches for node in members}
    first = {node: place[whole.get(node, [node])[0]] for node in nodes}
    parts: Any = nx.DiGraph()
    parts.add_nodes_from(first.values())
    for node in nodes:
        before = {first[source] for source in node.all_input_nodes if source in first}
        parts.add_edges_from((part, first[node]) for part in before - {first[node]})
    for part in nx.lexicographical_topological_sort(parts):
        yield whole.get(nodes[part], [nodes[part]])
