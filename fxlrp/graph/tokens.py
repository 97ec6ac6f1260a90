"""Which tokens a value stands for: the values from which its rows descend one by one.

In: a captured graph, its roots and the attentions in it. Out: for every value the roots that it is made of token by
token, that is, by any path on which no attention mixes tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import fx

from fxlrp.graph.operators import Dependence, is_float, nodes_in, operator_of

Roots = frozenset[fx.Node]


def descent(graph: fx.Graph, attributed: Iterable[fx.Node], rows: Mapping[fx.Node, fx.Node]) -> dict[fx.Node, Roots]:
    """The roots of every float value: attributed and, where parameters are added or stand as tokens, these.

    ``rows`` tells of a node that mixes tokens which argument its rows belong to (of q k^T the queries, of A v the
    weights A); of any other node all terms and factors count, but no weights of linear maps.
    """
    entered = set(attributed)
    found: dict[fx.Node, Roots] = {}
    for node in graph.nodes:
        if node in entered or (node.op == "placeholder" and is_float(node)):
            found[node] = frozenset({node})
        elif node in rows:
            found[node] = found.get(rows[node], frozenset())
        elif node.op == "call_function" and is_float(node):
            found[node] = frozenset[fx.Node]().union(*(found.get(n, frozenset()) for n in _followed(node)))
    return found


def _followed(node: fx.Node) -> list[fx.Node]:
    operator = operator_of(node)
    if operator is None or operator.dependence is Dependence.CONSTANT:
        return []
    mapped = operator.factors[:1] if operator.category.weighted else operator.factors + operator.terms
    return nodes_in(node, mapped)
