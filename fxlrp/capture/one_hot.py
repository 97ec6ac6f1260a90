"""Ids written out as rows of ones and zeros get one spelling, and their products with tables become look-ups.

A rule of linear layers would share the relevance of a table's row out by the signs of its numbers, of which one belongs
to the id as much as another.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxlrp.capture.builder import Builder
from fxlrp.graph.nodes import tensor_value
from fxlrp.graph.one_hot import written_out
from fxlrp.graph.operators import Move, is_float, operator_of, packet

aten = torch.ops.aten


def look_up_one_hot(graph: fx.Graph, builder: Builder) -> None:
    """Mark one-hot values, and put look-ups in the place of their products with tables [classes, features]."""
    for node in list(graph.nodes):
        ids = _ids(node) if is_float(node) else None
        if ids is None:
            continue
        if packet(_uncast(node).target) is not aten.eq:  # to which an id that is no class is a row of zeros
            for user in list(node.users):
                _look_up(user, node, ids, builder)
        if node.users:
            builder.origin = node.meta
            with graph.inserting_after(node):
                made = builder.create_node("call_function", written_out, (node, ids), {})
            node.replace_all_uses_with(made, delete_user_cb=lambda user, made=made: user is not made)


def _look_up(product: fx.Node, rows: fx.Node, ids: fx.Node, builder: Builder) -> None:
    """Replace the product of one-hot rows and a table, if it is one."""
    kind = packet(product.target)
    table: Any = product.args[1] if kind in (aten.matmul, aten.linear) and product.args[0] is rows else None
    value = tensor_value(table) if isinstance(table, fx.Node) else None
    if value is None or value.ndim != 2:
        return
    builder.origin = product.meta
    with product.graph.inserting_before(product):
        if kind is aten.linear:
            table = builder.create_node("call_function", aten.permute.default, (table, [1, 0]), {})
        made = builder.create_node("call_function", aten.index.Tensor, (table, [ids]), {})
        bias = product.args[2] if len(product.args) > 2 else product.kwargs.get("bias")
        if bias is not None:
            made = builder.create_node("call_function", aten.add.Tensor, (made, bias), {})
    product.replace_all_uses_with(made)
    product.graph.erase_node(product)


def _ids(node: fx.Node) -> fx.Node | None:
    """The ids [...] that a value [..., classes] is one-hot of: 1 at the class of each row, else 0; None of another."""
    inner = _uncast(node)
    kind, args = packet(inner.target), inner.args
    ids: fx.Node | None = None
    if kind is aten.one_hot:
        ids = _node(args[0])
    elif kind is aten.eq:
        ids = _compared(_node(args[0]), _node(args[1])) or _compared(_node(args[1]), _node(args[0]))
    elif kind is aten.scatter and len(args) == 4 and args[3] == 1 and _is_zero(args[0]) and _is_last(args[1], inner):
        ids = _widened(_node(args[2]))
    elif kind in (aten.index, aten.embedding) and (table := _node(args[0])) is not None:
        chosen = args[1]
        chosen = chosen[0] if isinstance(chosen, (list, tuple)) and len(chosen) == 1 else chosen
        ids = _node(chosen) if packet(_uncast(table).target) is aten.eye else None
    value = None if ids is None else tensor_value(ids)
    return ids if value is not None and not value.is_floating_point() and value.dtype != torch.bool else None


def _uncast(node: fx.Node) -> fx.Node:
    while (known := operator_of(node)) is not None and known.move is Move.STAYS and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _node(value: object) -> fx.Node | None:
    return value if isinstance(value, fx.Node) else None


def _widened(node: fx.Node | None) -> fx.Node | None:
    """The value that has got a last axis of one entry."""
    if node is None or packet(node.target) is not aten.unsqueeze or not _is_last(node.args[1], node):
        return None
    return _node(node.args[0])


def _compared(ids: fx.Node | None, classes: fx.Node | None) -> fx.Node | None:
    """The ids that are compared with every class, 0, 1, 2, ..."""
    counted = None if classes is None else _uncast(classes)
    if counted is None or packet(counted.target) is not aten.arange or len(counted.args) != 1:
        return None
    return _widened(ids)


def _is_zero(value: object) -> bool:
    node = _node(value)
    return node is not None and packet(_uncast(node).target) in (aten.zeros, aten.new_zeros, aten.zeros_like)


def _is_last(axis: object, node: fx.Node) -> bool:
    value = tensor_value(node)
    return value is not None and axis in (-1, value.ndim - 1)
