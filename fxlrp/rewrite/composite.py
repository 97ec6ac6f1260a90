"""Several operators as one operation: a whole pattern of its inputs, a whole sub-layer of its fork and its branch.

In: a plan and the node that the operators end in. Out: a :class:`Site`, like that of a single node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from fxlrp.errors import RulesetError
from fxlrp.graph.nodes import module_path, to_networkx
from fxlrp.graph.operator_classes import GENERAL
from fxlrp.graph.operators import Dependence, Operator, is_float, is_movement
from fxlrp.graph.residual import unmoved
from fxlrp.planning.plan import Plan
from fxlrp.rules import Operation, take_apart
from fxlrp.rules.operation import Hole, Site
from fxlrp.rules.primitives import send_twice
from fxlrp.spec.lines import Scope


def site_of(plan: Plan, node: fx.Node) -> Site:
    """The operation that the decision at ``node`` stands for, with its operands and other values."""
    decision = plan.decisions.get(node)
    scope = decision.scope if decision is not None else Scope.OPERATION
    if scope is Scope.PATTERN:
        return whole_pattern(plan, node)
    if scope is Scope.SUBLAYER and plan.structure.skips[node] in plan.carrying:
        return whole_sublayer(plan, node)
    return take_apart(node, plan.carrying.__contains__)


def whole_pattern(plan: Plan, node: fx.Node) -> Site:
    """The pattern that ends in ``node``, as one function of those of its inputs that carry relevance.

    An input whose entries the pattern first moves is taken behind that.
    """
    match = next((m for m in plan.structure.matches if m.root is node), None)
    if match is None:
        raise RulesetError(
            f"'{plan.decisions[node].label}' in module '{module_path(node) or 'the top level'}' is not the value that "
            "its pattern ends in, so a rule of scope 'pattern' cannot stand there. Match that part of it."
        )
    live = [n for n in dict.fromkeys(match.inputs.values()) if isinstance(n, fx.Node) and n in plan.carrying]
    moved = moved_along(live, between(live, node))
    graph, others = extracted(between(moved, node), moved)
    return _site(fx.GraphModule({}, graph), moved, others, (True,) * len(moved))


def moved_along(values: Sequence[fx.Node], inside: Sequence[fx.Node]) -> list[fx.Node]:
    """The values, and those ``inside`` that only move them, as far as something computed inside uses them."""
    found = {*values}
    for each in inside:
        if is_movement(each) and each.args[0] in found:
            found.add(each)
    computed = {*inside} - found
    return [value for value in dict.fromkeys((*values, *inside)) if value in found and computed & {*value.users}]


@dataclass(frozen=True, eq=False)
class Sublayer:
    """y = branch + skip, with the derivative of that sum by the branch and of the whole sub-layer by the fork."""

    add: Operation
    whole: Callable[..., Tensor]

    def __call__(self, fork: Tensor, branch: Tensor, skip: Tensor, *others: Any) -> Tensor:
        """The sum's value, from the fork, the branch, the sum's other term, and the values that the branch uses."""
        return send_twice(self.add(branch, skip.detach()), self.whole(fork, *others))


def whole_sublayer(plan: Plan, node: fx.Node) -> Site:
    """The sub-layer that the sum ``node`` ends, as a function of the fork where it begins and of its branch.

    The branch receives what the sum hands to it, the fork what the sub-layer as a whole does, skip and branch.
    """
    fork = plan.structure.skips[node]
    first, second = (term for term in node.args[:2] if isinstance(term, fx.Node))
    branch, skip = (second, first) if unmoved(first) is fork else (first, second)
    graph, others = extracted(between([fork], node), [fork])
    add = take_apart(node, lambda term: term is branch).operation
    live = (True, branch in plan.carrying)
    return _site(Sublayer(add, fx.GraphModule({}, graph)), [fork, branch], [skip, *others], live)


def _site(
    target: Callable[..., Tensor], operands: Sequence[fx.Node], others: Sequence[fx.Node], live: tuple[bool, ...]
) -> Site:
    holes = (*(Hole(i) for i in range(len(operands))), *(Hole(~i) for i in range(len(others))))
    operator = Operator(Dependence.GENERAL, GENERAL, terms=tuple(range(len(operands))))
    return Site(Operation(target, operator, holes, {}, live, 0), tuple(operands), tuple(others))


def between(starts: Sequence[fx.Node], node: fx.Node) -> list[fx.Node]:
    """The float values on the ways from ``starts`` to ``node``, in the order of the graph, ``node`` the last."""
    import networkx as nx

    window = [each for each in _from_first(starts, node) if each in starts or is_float(each)]
    drawn = to_networkx(window)
    drawn.remove_edges_from(list(drawn.in_edges(starts)))  # a way begins at the last of the starts on it
    reached = set[fx.Node]().union(*(nx.descendants(drawn, start) for start in starts))
    needed = nx.ancestors(drawn, node) | {node}
    return [each for each in window if each in reached and each in needed]


def _from_first(starts: Sequence[fx.Node], node: fx.Node) -> list[fx.Node]:
    """The nodes of the graph from the first of ``starts`` to ``node``."""
    passed, missing, current = [node], {*starts}, node
    while missing:
        current = current.prev
        missing.discard(current)
        passed.append(current)
    return passed[::-1]


def extracted(inside: Sequence[fx.Node], starts: Sequence[fx.Node]) -> tuple[fx.Graph, list[fx.Node]]:
    """A graph of ``inside`` that takes ``starts`` and then the other values it uses, which are given as well."""
    graph = fx.Graph()
    members = {*inside, *starts}
    others = list(dict.fromkeys(n for each in inside for n in each.all_input_nodes if n not in members))
    image = {value: graph.placeholder(f"value_{index}") for index, value in enumerate((*starts, *others))}
    for each in inside:
        image[each] = graph.node_copy(each, image.__getitem__)
    graph.output(image[inside[-1]])
    graph.lint()
    return graph, others
