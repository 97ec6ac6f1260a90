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

from fxlrp.graph.live import dependent, reached
from fxlrp.graph.nodes import ancestors, is_one, tensor_value
from fxlrp.graph.operator_classes import ADD, MATMUL, MOVEMENT, PRODUCT, QUOTIENT, ROUNDING, SELECTION, SUM
from fxlrp.graph.operators import Dependence, Move, Operator, is_float, is_movement, nodes_in, operator_of


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
_ARITHMETIC = (MOVEMENT, SUM, ADD, PRODUCT, QUOTIENT, SELECTION, ROUNDING)
#: What may lie between scores and their softmax.
_SCALING = (ADD, PRODUCT, QUOTIENT, SELECTION)
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
    lookups = [n for n in graph.nodes if _looks_up(n) and n.args[1] in behind]
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
        if operator is None:  # the output, or what the table does not know
            return frozenset({Use.VALUE})
        if operator.sized:
            return frozenset({Use.SIZE})
        if operator.move is Move.STAYS and _is_bool(user) and not _is_bool(node):  # a cast
            return frozenset({Use.CONDITION})
        constant = operator.dependence is Dependence.CONSTANT
        if constant and not operator.rounds:
            return frozenset({Use.CONDITION})
        if not constant and node not in nodes_in(user, operator.factors + operator.terms):
            return frozenset({_asked(user, node)})
        if operator.counts and not is_float(user):
            return frozenset({Use.COUNT})
        return self._numbers(user, node, operator)

    def _numbers(self, user: fx.Node, node: fx.Node, operator: Operator) -> frozenset[Use]:
        """The uses of what ``user`` computes from ``node``."""
        beside = [n for n in nodes_in(user, operator.factors + operator.terms) if n is not node]
        if any(n in self.others for n in beside):
            return frozenset({self._meeting(user, node, operator)})
        scaled = operator.factors and any(n in self.weights and _entries(n) for n in beside)
        constant = operator.dependence is Dependence.CONSTANT
        arithmetic = constant or any(map(operator.category.within, _ARITHMETIC)) or not is_float(user)
        return self.of(user) if arithmetic and not scaled else frozenset({Use.VALUE})

    def _meeting(self, user: fx.Node, node: fx.Node, operator: Operator) -> Use:
        """The use of ``node`` where it meets what other inputs hold."""
        if operator.dependence is Dependence.QUOTIENT:
            below = node is not user.args[0] and any(_sums(n) for n in made_of(node))
            return Use.COUNT if below else Use.VALUE
        if operator.category == ADD and hides(user, self.others, _scales_rows(user, node)):
            return Use.HIDES
        if operator.scales:
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
            chooses = operator.largest and by_row
            if chooses or (operator.dependence is Dependence.SOFTMAX and _weighs(user, values)):
                found = True
            elif is_movement(user) or operator.category in _SCALING:
                pending += [user] if user not in seen else []
                seen.add(user)
            elif operator.dependence is not Dependence.CONSTANT:
                return False
    return found


def _weighs(weights: fx.Node, values: Container[fx.Node]) -> bool:
    """Whether a softmax is a factor of products with ``values``, cast and moved before."""
    for user in weights.users:
        operator = operator_of(user)
        if operator is not None and operator.category in (MATMUL, PRODUCT):
            if any(n in values for n in user.all_input_nodes if n is not weights):
                return True
        elif is_movement(user) and _weighs(user, values):
            return True
    return False


def _sums(node: fx.Node) -> bool:
    operator = operator_of(node)
    return operator is not None and operator.category == SUM


def _scales_rows(user: fx.Node, node: fx.Node) -> bool:
    """Whether a factor differs by place and is spread over features: one number for each row of a value that is not
    spread itself.
    """
    value, factor = tensor_value(user), _unspread(node)
    others = [tensor_value(n) for n in user.all_input_nodes if n is not node]
    if value is None or factor is None or any(o is None or o.ndim < value.ndim for o in others):
        return False
    sizes = [1] * (value.ndim - factor.ndim) + [*factor.shape]
    spread = [axis for axis, size in enumerate(sizes) if axis and is_one(size) and not is_one(value.shape[axis])]
    differs = [axis for axis, size in enumerate(sizes) if axis and not is_one(size)]
    whole = all(str(o.shape[a]) == str(value.shape[a]) for o in others if o is not None for a in range(value.ndim))
    return bool(spread) and bool(differs) and whole


def _unspread(node: fx.Node) -> torch.Tensor | None:
    """A value before it was spread over axes that it does not differ along."""
    operator = operator_of(node)
    while operator is not None and operator.move in (Move.SPREADS, Move.STAYS) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        operator = operator_of(node)
    return tensor_value(node)


def _asked(user: fx.Node, node: fx.Node) -> Use:
    """The use of a value that is none of the terms and factors of an operator."""
    if _looks_up(user):
        return Use.IDS
    return Use.CONDITION if _is_bool(node) else Use.INDEX


def _looks_up(node: fx.Node) -> bool:
    operator = operator_of(node)
    return operator is not None and operator.looks_up


def _is_bool(node: fx.Node) -> bool:
    value = tensor_value(node)
    return value is not None and value.dtype == torch.bool


def _entries(node: fx.Node) -> bool:
    """Whether a value has several entries, so that it is no number."""
    value = tensor_value(node)
    return value is not None and any(not is_one(size) for size in value.shape)


def taken_from(node: fx.Node) -> list[fx.Node]:
    """The arguments whose entries make up the entries of a value; conditions, indices, sizes and what is counted do
    not.
    """
    operator = operator_of(node)
    if operator is None:
        return node.all_input_nodes
    if operator.counts or operator.sized:
        return []
    if operator.dependence is Dependence.CONSTANT:
        return node.all_input_nodes if operator.rounds else []
    return nodes_in(node, operator.factors + operator.terms)


def made_of(node: fx.Node, beyond: Container[fx.Node] = ()) -> list[fx.Node]:
    """``node`` and what its entries are made of, nearest first; nodes in ``beyond`` are neither given nor passed."""
    return list(ancestors(node, beyond, taken_from))


def is_counted(ids: Any) -> bool:
    """Whether ids are made by counting along an axis."""
    operators = map(operator_of, made_of(ids)) if isinstance(ids, fx.Node) else ()
    return any(operator is not None and operator.counts for operator in operators)
