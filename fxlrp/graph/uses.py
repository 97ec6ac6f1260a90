"""What a model does with an input: numbers to compute with, ids to look up, indices, a mask or no more than a size.

In: a graph and one of its placeholders. Out: the :class:`Use`s of its value on every way into the rest of the graph.
What an input is called plays no part.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from enum import Enum
from typing import Any

import torch
from torch import fx

from fxlrp.graph.linear_sums import SIZED
from fxlrp.graph.live import dependent, reached
from fxlrp.graph.nodes import tensor_value
from fxlrp.graph.operators import Kind, Operator, is_float, is_movement, nodes_in, operator_of, packet

aten = torch.ops.aten
#: Operators that keep an integer a number of the same kind (hashed, halved, cut off), though no gradient passes them.
ROUNDED = frozenset(
    {
        *(aten.floor_divide, aten.round, aten.floor, aten.ceil, aten.trunc, aten.sign, aten.sgn, aten.detach),
        *(aten.bitwise_and, aten.bitwise_or, aten.bitwise_xor, aten.__and__, aten.__or__, aten.__xor__),
        *(aten.__lshift__, aten.__rshift__, aten.bitwise_left_shift, aten.bitwise_right_shift),
    }
)
#: What counts along an axis: its result tells places, not what stands there.
COUNTED = frozenset({aten.cumsum, aten.arange})


class Use(Enum):
    """One way in which a value is used; the text completes "it is used ..."."""

    VALUE = "as numbers"
    IDS = "as ids that are looked up"
    INDEX = "as indices"
    CONDITION = "as a mask (a condition)"
    HIDES = "as a mask (added to the scores of a softmax or the entries of a maximum)"
    ROWS = "as a mask (it scales whole rows)"
    ENTRIES = "as weights of entries"
    COUNT = "as a count"
    SIZE = "for its size alone"


#: What a value may be computed by and still be the mask that it was: moved, shifted and scaled by numbers, added up.
_ARITHMETIC = frozenset({"movement", "sum", "add", "product", "quotient", "selection"})
_TELLS = frozenset({Use.CONDITION, Use.HIDES, Use.ROWS})
_MASKS = _TELLS | {Use.ENTRIES, Use.COUNT, Use.SIZE}


def is_mask(uses: frozenset[Use]) -> bool:
    """Whether these uses, all that an input has, make it a mask: something shows that it says which entries count, and
    on no way is it a number that others are computed from.

    What scales a value entry by entry is a mask only if it is counted as well, as in a mean over what is observed.
    """
    tells = {Use.COUNT} if Use.ENTRIES in uses else _TELLS
    return uses <= _MASKS and bool(uses & tells)


def uses_of(graph: fx.Graph, inputs: Iterable[fx.Node], own: fx.Node) -> frozenset[Use]:
    """How the input ``own``, one of ``inputs``, is used."""
    inputs = [n for n in inputs if n is not own]
    behind = dependent(graph, inputs)
    lookups = [n for n in graph.nodes if packet(n.target) is aten.embedding and n.args[1] in behind]
    others = reached(graph, [*(n for n in inputs if is_float(n)), *lookups])
    weights = dependent(graph, (n for n in graph.nodes if n.op == "placeholder" and n not in {own, *inputs}))
    return _Uses(others, weights).of(own)


class _Uses:
    """The uses of a value and of all that is made of it by the arithmetic of masks.

    ``others`` carry what other inputs hold, ``weights`` are computed from parameters and buffers.
    """

    def __init__(self, others: Container[fx.Node], weights: Container[fx.Node]) -> None:
        self.others, self.weights = others, weights
        self.known: dict[fx.Node, frozenset[Use]] = {}

    def of(self, node: fx.Node) -> frozenset[Use]:
        """All uses of a node's value."""
        if node not in self.known:
            self.known[node] = frozenset()
            self.known[node] = frozenset[Use]().union(*(self._at(user, node) for user in node.users))
        return self.known[node]

    def _at(self, user: fx.Node, node: fx.Node) -> frozenset[Use]:
        """The uses of ``node`` by ``user``."""
        operator = operator_of(user)
        if packet(user.target) in SIZED:
            return frozenset({Use.SIZE})
        if operator is None:  # the output, or what the table does not know
            return frozenset({Use.VALUE})
        if packet(user.target) is aten._to_copy and _is_bool(user):
            return frozenset({Use.CONDITION})
        if operator.kind is Kind.CONSTANT and packet(user.target) not in ROUNDED:
            return frozenset({Use.CONDITION})
        if operator.kind is not Kind.CONSTANT and node not in nodes_in(user, operator.factors + operator.terms):
            return frozenset({_asked(user, node)})
        if packet(user.target) in COUNTED and not is_float(user):
            return frozenset({Use.COUNT})
        return self._numbers(user, node, operator)

    def _numbers(self, user: fx.Node, node: fx.Node, operator: Operator) -> frozenset[Use]:
        """The uses of what ``user`` computes from ``node``."""
        beside = [n for n in nodes_in(user, operator.factors + operator.terms) if n is not node]
        if any(n in self.others for n in beside):
            return frozenset({self._meeting(user, node, operator)})
        scaled = operator.factors and any(n in self.weights and _entries(n) for n in beside)
        arithmetic = operator.kind is Kind.CONSTANT or operator.category in _ARITHMETIC or not is_float(user)
        return self.of(user) if arithmetic and not scaled else frozenset({Use.VALUE})

    def _meeting(self, user: fx.Node, node: fx.Node, operator: Operator) -> Use:
        """The use of ``node`` where it meets what other inputs hold."""
        if operator.kind is Kind.QUOTIENT:
            below = node is not user.args[0] and any(_sums(n) for n in made_of(node))
            return Use.COUNT if below else Use.VALUE
        if operator.category == "add" and hides(user, self.others, _scales_rows(user, node)):
            return Use.HIDES
        if operator.category == "product" and not operator.terms:
            return Use.ROWS if _scales_rows(user, node) else Use.ENTRIES
        return Use.VALUE


def hides(node: fx.Node, values: Container[fx.Node], by_row: bool = False) -> bool:
    """Whether what is added to a value tells which of its entries count: on every way, through scalings, sums and
    moves, they are the scores of a softmax that weighs ``values``, or (``by_row``) the entries of a maximum.
    """
    pending, seen, found = [node], set[fx.Node](), False
    while pending:
        for user in pending.pop().users:
            operator = operator_of(user)
            if operator is None:
                return False
            chooses = packet(user.target) in (aten.amax, aten.max) and by_row
            if chooses or (operator.kind is Kind.SOFTMAX and _weighs(user, values)):
                found = True
            elif is_movement(user) or operator.category in ("add", "product", "quotient", "selection"):
                pending += [user] if user not in seen else []
                seen.add(user)
            elif operator.kind is not Kind.CONSTANT:
                return False
    return found


def _weighs(weights: fx.Node, values: Container[fx.Node]) -> bool:
    """Whether a softmax is a factor of products with ``values``, cast and moved before."""
    for user in weights.users:
        operator = operator_of(user)
        if operator is not None and operator.category in ("matmul", "product"):
            if any(n in values for n in user.all_input_nodes if n is not weights):
                return True
        elif is_movement(user) and _weighs(user, values):
            return True
    return False


def _sums(node: fx.Node) -> bool:
    operator = operator_of(node)
    return operator is not None and operator.category == "sum"


def _scales_rows(user: fx.Node, node: fx.Node) -> bool:
    """Whether a factor differs by place and is spread over features: one number for each row of a value that is not
    spread itself.
    """
    value, factor = tensor_value(user), _unspread(node)
    others = [tensor_value(n) for n in user.all_input_nodes if n is not node]
    if value is None or factor is None or any(o is None or o.ndim < value.ndim for o in others):
        return False
    sizes = [1] * (value.ndim - factor.ndim) + [*factor.shape]
    spread = [axis for axis, size in enumerate(sizes) if axis and _one(size) and not _one(value.shape[axis])]
    differs = [axis for axis, size in enumerate(sizes) if axis and not _one(size)]
    whole = all(str(o.shape[a]) == str(value.shape[a]) for o in others if o is not None for a in range(value.ndim))
    return bool(spread) and bool(differs) and whole


def _unspread(node: fx.Node) -> torch.Tensor | None:
    """A value before it was spread over axes that it does not differ along."""
    while packet(node.target) in (aten.expand, aten._to_copy, aten.clone) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return tensor_value(node)


def _asked(user: fx.Node, node: fx.Node) -> Use:
    """The use of a value that is none of the terms and factors of an operator."""
    if packet(user.target) is aten.embedding:
        return Use.IDS
    return Use.CONDITION if _is_bool(node) else Use.INDEX


def _is_bool(node: fx.Node) -> bool:
    value = tensor_value(node)
    return value is not None and value.dtype == torch.bool


def _entries(node: fx.Node) -> bool:
    """Whether a value has several entries, so that it is no number."""
    value = tensor_value(node)
    return value is not None and any(not _one(size) for size in value.shape)


def _one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def taken_from(node: fx.Node) -> list[fx.Node]:
    """The arguments whose entries make up the entries of a value; conditions, indices, sizes and what is counted do
    not.
    """
    operator = operator_of(node)
    if packet(node.target) in COUNTED | SIZED:
        return []
    if operator is None:
        return node.all_input_nodes
    if operator.kind is Kind.CONSTANT:
        return node.all_input_nodes if packet(node.target) in ROUNDED else []
    return nodes_in(node, operator.factors + operator.terms)


def made_of(node: fx.Node, beyond: Container[fx.Node] = ()) -> list[fx.Node]:
    """``node`` and what its entries are made of, nearest first; nodes in ``beyond`` are neither given nor passed."""
    queue, seen = [node], dict[fx.Node, None]()
    while queue:
        current = queue.pop(0)
        if current not in seen and current not in beyond:
            seen[current] = None
            queue.extend(taken_from(current))
    return list(seen)


def is_counted(ids: Any) -> bool:
    """Whether ids are made by counting along an axis."""
    return isinstance(ids, fx.Node) and any(packet(n.target) in COUNTED for n in made_of(ids))
