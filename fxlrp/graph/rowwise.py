"""Where a model has mixed its positions for the last time: the one value from which the logits are made row by row.

In: the node of the logits [batch, positions, classes] and the values that carry relevance. Out: that value's node.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from torch import fx

from fxlrp.graph.nodes import tensor_value
from fxlrp.graph.operator_classes import SUM
from fxlrp.graph.operators import Move, operator_of, row_map

MIXED = "where rows are mixed"


def last_mixed(logits: fx.Node, carrying: Container[fx.Node], passed: Container[fx.Node] = ()) -> fx.Node | None:
    """The earliest value through which all relevance of the logits comes and behind which every row [batch, position]
    is computed from that row alone; None where already the logits' own operator mixes rows. Nodes ``passed`` count as
    mixing.

    Seen from the logits backwards, it is the earliest dominator of all the places at which rows are mixed.
    """
    import networkx as nx  # loaded where a graph is walked: not everyone who imports fxlrp does

    backwards: nx.DiGraph[Any] = nx.DiGraph()
    queue = [logits]
    while queue:
        node = queue.pop()
        rowwise = node not in passed and keeps_rows(node, carrying)
        behind: list[Any] = [n for n in node.all_input_nodes if n in carrying] if rowwise else []
        queue.extend(n for n in behind if n not in backwards)
        backwards.add_edges_from([(node, n) for n in behind or [MIXED]])
    dominators = nx.immediate_dominators(backwards, logits)
    found = dominators[MIXED]
    while found is not logits:
        if _rows(found) is not None:
            return found
        found = dominators[found]
    return None


def keeps_rows(node: fx.Node, carrying: Container[fx.Node]) -> bool:
    """Whether the rows [batch, position] of a node are made of the same rows of its operands, and of constants."""
    operator, rows = operator_of(node), _rows(node)
    operands = [n for n in node.all_input_nodes if n in carrying]
    if operator is None or rows is None or not operands or any(_rows(n) != rows for n in operands):
        return False
    if operator.category == SUM and operator.reduces is not None:
        dims = node.args[operator.reduces] if operator.reduces < len(node.args) else None
        return dims in ([-1], (-1,), [2], (2,)) and _width(node) == 1
    mapped = row_map(node)
    if mapped is not None:
        return operands == [node.args[mapped.value]]
    return operator.entrywise or operator.move is Move.STAYS


def _rows(node: fx.Node) -> tuple[str, str] | None:
    """The sizes of the first two of a value's three axes, as the graph knows them."""
    value = tensor_value(node)
    return (str(value.shape[0]), str(value.shape[1])) if value is not None and value.ndim == 3 else None


def _width(node: fx.Node) -> object:
    value = tensor_value(node)
    return value.shape[-1] if value is not None else None
