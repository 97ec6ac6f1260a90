"""Sums of linear maps: trees of additions, scalings and moves over linear maps, which rules may treat as one layer.

In: a graph, the values that carry relevance, and which nodes are to be joined. Out: :class:`AffineSums`, and the
constants that such a sum reads as the units of a lower layer: initial states.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Hashable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from operator import neg
from typing import Any

from torch import fx

from fxlrp.graph.nodes import tensor_value
from fxlrp.graph.operator_classes import ADD, PRODUCT
from fxlrp.graph.operators import Dependence, Move, in_slots, is_float, is_movement, nodes_in, operator_of, row_map


class Role(Enum):
    """What a node does inside a sum of linear maps."""

    SUM = "adds"
    MAP = "maps the last axis of its input by constant weights"
    SCALE = "multiplies entry by entry with a constant"
    MOVE = "moves rows, or cuts them into pieces"


@dataclass(frozen=True)
class AffineSums:
    """The sums of a graph: ``roots`` are the additions whose values they are, ``inner`` what else they are made of."""

    roots: frozenset[fx.Node] = frozenset()
    inner: frozenset[fx.Node] = frozenset()


def role(node: fx.Node, carrying: Container[fx.Node]) -> Role | None:
    """The role that a node can have, given which values carry relevance; None if it has no place in such a sum."""
    operator = operator_of(node)
    if operator is None:
        return None
    live = [n for n in nodes_in(node, operator.factors) if n in carrying]
    if operator.category == ADD:
        return Role.SUM
    mapped = row_map(node)
    if mapped is not None:
        weight = next(in_slots(node, (mapped.weight,)), None)
        return Role.MAP if live == [node.args[mapped.value]] and _matrix(weight) else None
    if operator.arithmetic is neg:
        return Role.SCALE
    if operator.scales:
        numerator = operator.dependence is Dependence.FACTORS or live == [node.args[0]]
        return Role.SCALE if len(live) == 1 and numerator else None
    return Role.MOVE if is_movement(node) and moved_axes(node) is not None else None


def _matrix(value: Any) -> bool:
    held = tensor_value(value) if isinstance(value, fx.Node) else None
    return held is not None and held.ndim == 2


def moved_axes(node: fx.Node) -> tuple[int, ...] | None:
    """The axes, from the end (-1 is the last), along which a movement acts; None if it does more than move rows or cut
    them into pieces.
    """
    source: Any = node.args[0]
    operator, value = operator_of(node), tensor_value(source)
    move = operator.move if operator is not None else None
    if move in (Move.STAYS, Move.ITEM):
        return ()
    if value is None or move not in (Move.ROWS, Move.CUTS):
        return None
    axes = _axes(node)
    result = tensor_value(node)
    counted = max(value.ndim, result.ndim if result is not None else 0)  # a new axis is counted where it then is
    found = tuple(axis - counted if axis >= 0 else axis for axis in axes)
    return None if not axes or (move is Move.ROWS and -1 in found) else found


def _axes(node: fx.Node) -> list[int]:
    found: list[Any] = []
    target: Any = node.target
    for place, argument in enumerate(target._schema.arguments):
        if argument.name.startswith("dim"):
            given = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
            given = argument.default_value if given is None else given
            found.extend(given if isinstance(given, (list, tuple)) else [given])
    return [axis for axis in found if isinstance(axis, int)]


def affine_sums(
    graph: fx.Graph,
    carrying: Collection[fx.Node],
    groups: Mapping[fx.Node, Hashable],
    apart: Container[fx.Node],
) -> AffineSums:
    """The largest sums. ``groups`` tells which additions and linear maps may be joined, those of one group only;
    nodes in ``apart`` stay outside.

    A node is inside a sum if whatever it hands on, it hands on to that sum or to others of its group, not through a
    linear map.
    """
    joined: dict[fx.Node, Hashable] = {}
    roots, inner = set(), set()
    for node in reversed(graph.nodes):
        what = role(node, carrying) if node in carrying and node.op == "call_function" else None
        if what is None:
            continue
        above = {joined.get(user) if _adds(user, carrying) else None for user in _takers(node, carrying)}
        group = next(iter(above)) if len(above) == 1 else None
        own = groups.get(node)
        free = own is None and what in (Role.SCALE, Role.MOVE)
        if group is not None and node not in apart and (free or own == group):
            joined[node] = group
            inner.add(node)
        elif what is Role.SUM and own is not None:
            joined[node] = own
            roots.add(node)
    return AffineSums(frozenset(roots), frozenset(_without_idle_moves(graph, carrying, inner)))


def _takers(node: fx.Node, carrying: Container[fx.Node]) -> list[fx.Node]:
    """The users to which relevance leads from the output to this node."""
    found = []
    for user in node.users:
        operator = operator_of(user)
        if user in carrying and operator is not None and node in nodes_in(user, operator.factors + operator.terms):
            found.append(user)
    return found


def _adds(node: fx.Node, carrying: Container[fx.Node]) -> bool:
    return role(node, carrying) is not Role.MAP


def _without_idle_moves(graph: fx.Graph, carrying: Container[fx.Node], inner: set[fx.Node]) -> set[fx.Node]:
    """A value that was only moved before it is added is a term as it is."""
    for node in graph.nodes:
        if node in inner and role(node, carrying) is Role.MOVE and node.args[0] not in inner:
            inner.remove(node)
    return inner


def initial_states(graph: fx.Graph, inputs: Container[str], carried: Iterable[Any]) -> frozenset[fx.Node]:
    """Constants that are units of a lower layer all the same: those among the values ``carried`` from step to step, and
    those of which a linear map is added to a value that depends on what is in the inputs.
    """
    valued: set[fx.Node] = set()
    for node in graph.nodes:
        given = node.op == "placeholder" and node.target in inputs
        if given or (not _sized(node) and any(n in valued for n in node.all_input_nodes)):
            valued.add(node)
    found = {n for n in carried if isinstance(n, fx.Node) and n not in valued and is_float(n)}
    for node in graph.nodes:
        mapped = row_map(node)
        read = node.args[mapped.value] if mapped is not None else None
        if isinstance(read, fx.Node) and read not in valued and _added(node, valued):
            found.add(read)
    return frozenset(found)


def _sized(node: fx.Node) -> bool:
    operator = operator_of(node)
    return operator is not None and operator.sized


def _added(node: fx.Node, valued: Container[fx.Node]) -> bool:
    """Whether a constant value is used in additions to values that depend on the inputs, moved or gated before."""
    return bool(node.users) and all(_adds_to_value(user, valued) for user in node.users)


def _adds_to_value(user: fx.Node, valued: Container[fx.Node]) -> bool:
    operator = operator_of(user)
    if operator is None:
        return False
    if operator.category == ADD:
        return user in valued
    return (is_movement(user) or operator.category == PRODUCT) and _added(user, valued)
