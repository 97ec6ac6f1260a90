"""Where a model has mixed its positions for the last time: the one value from which the logits are made row by row.

In: the node of the logits [batch, positions, classes] and the values that carry relevance. Out: that value's node.
"""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import fx

from fxlrp.graph.nodes import tensor_value
from fxlrp.graph.operators import Kind, in_slots, operator_of, packet

aten = torch.ops.aten
#: Movements that leave every entry at its place.
STAYING = frozenset({aten._to_copy, aten.to, aten.alias, aten.contiguous, aten.clone, aten.type_as, aten.dropout})
ENTRYWISE = frozenset({"add", "product", "quotient", "rectifier", "activation"})
BY_ROW = frozenset({"sum", "linear"})


def last_mixed(logits: fx.Node, carrying: Container[fx.Node], passed: Container[fx.Node] = ()) -> fx.Node | None:
    """The earliest value through which all relevance of the logits comes and behind which every row [batch, position]
    is computed from that row alone; None where already the logits' own operator mixes rows. Nodes ``passed`` count as
    mixing.
    """
    order = {node: place for place, node in enumerate(logits.graph.nodes)}
    found: fx.Node | None = None
    needed = {logits}
    while needed:
        latest = max(needed, key=order.__getitem__)
        if len(needed) == 1 and _rows(latest) is not None:
            found = latest
        if latest in passed or not keeps_rows(latest, carrying):
            break
        needed = (needed - {latest}) | {n for n in latest.all_input_nodes if n in carrying}
    return None if found is logits else found


def keeps_rows(node: fx.Node, carrying: Container[fx.Node]) -> bool:
    """Whether the rows [batch, position] of a node are made of the same rows of its operands, and of constants."""
    operator, rows = operator_of(node), _rows(node)
    operands = [n for n in node.all_input_nodes if n in carrying]
    if operator is None or rows is None or not operands or any(_rows(n) != rows for n in operands):
        return False
    if operator.category == "sum":
        dims = node.args[1] if len(node.args) > 1 else None
        return packet(node.target) in (aten.sum, aten.mean) and dims in ([-1], (-1,), [2], (2,)) and _width(node) == 1
    if operator.category == "linear":
        return operands == [next(in_slots(node, (0,)))]
    if operator.kind is Kind.TERMS and operator.copies:
        return packet(node.target) in STAYING
    return operator.category in ENTRYWISE


def _rows(node: fx.Node) -> tuple[str, str] | None:
    """The sizes of the first two of a value's three axes, as the graph knows them."""
    value = tensor_value(node)
    return (str(value.shape[0]), str(value.shape[1])) if value is not None and value.ndim == 3 else None


def _width(node: fx.Node) -> object:
    value = tensor_value(node)
    return value.shape[-1] if value is not None else None
