"""A sub-layer as one operation: the sum that ends a skip connection, as a function of its branch and of its fork.

In: a plan and such a sum. Out: a :class:`Site` whose operation has the sum's value and two operands: the branch, which
receives what the sum hands to it, and the fork, which receives what the sub-layer as a whole does, skip and branch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from fxlrp.graph.operators import Kind, Operator, is_float
from fxlrp.graph.residual import unmoved
from fxlrp.plan import Plan
from fxlrp.rules import Operation, take_apart
from fxlrp.rules.operation import Hole, Site
from fxlrp.rules.primitives import send_twice

#: A whole sub-layer is to rules what an operator without any structure is.
SUBLAYER = Operator(Kind.GENERAL, "general", terms=(0, 1))


@dataclass(frozen=True, eq=False)
class Sublayer:
    """y = branch + skip, with the derivative of that sum by the branch and of the whole sub-layer by the fork."""

    add: Operation
    whole: Callable[..., Tensor]

    def __call__(self, branch: Tensor, fork: Tensor, skip: Tensor, *others: Any) -> Tensor:
        """The sum's value, from the branch, the fork, the sum's other term, and the values that the branch uses."""
        return send_twice(self.add(branch, skip.detach()), self.whole(fork, *others))


def whole_sublayer(plan: Plan, node: fx.Node) -> Site:
    """The sub-layer that the sum ``node`` ends."""
    fork = plan.structure.skips[node]
    inside = between(fork, node)
    first, second = (term for term in node.args[:2] if isinstance(term, fx.Node))
    branch, skip = (second, first) if unmoved(first) is fork else (first, second)
    graph, others = _extracted(inside, fork)
    site = take_apart(node, lambda term: term is branch)
    holes = (Hole(0), Hole(1), *(Hole(~index) for index in range(1 + len(others))))
    target = Sublayer(site.operation, fx.GraphModule({}, graph))
    operation = Operation(target, SUBLAYER, holes, {}, (True, True), 0)
    return Site(operation, (branch, fork), (skip, *others))


def between(fork: fx.Node, node: fx.Node) -> list[fx.Node]:
    """The float values on the ways from ``fork`` to ``node``, in the order of the graph, ``node`` the last."""
    reached, found = {fork}, []
    current = fork
    while current is not node:
        current = current.next
        if is_float(current) and not reached.isdisjoint(current.all_input_nodes):
            reached.add(current)
            found.append(current)
    needed = {node}
    for each in reversed(found):
        if each in needed:
            needed.update(each.all_input_nodes)
    return [each for each in found if each in needed]


def _extracted(inside: list[fx.Node], fork: fx.Node) -> tuple[fx.Graph, list[fx.Node]]:
    """A graph of ``inside`` that takes the fork and then the other values it uses, which are given as well."""
    graph = fx.Graph()
    image = {fork: graph.placeholder("fork")}
    members = {*inside, fork}
    others = list(dict.fromkeys(n for each in inside for n in each.all_input_nodes if n not in members))
    image |= {other: graph.placeholder(f"other_{index}") for index, other in enumerate(others)}
    for each in inside:
        image[each] = graph.node_copy(each, image.__getitem__)
    graph.output(image[inside[-1]])
    graph.lint()
    return graph, others
