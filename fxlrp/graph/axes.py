"""Along which axes an operator acts, and where the axes of a value go when it is moved.

Axes are counted from the end of a value (-1 is the last), so that they mean the same for values of different ranks.
A :data:`Layout` says which axis of one value an axis of another is; axes that it leaves out are themselves.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx

from fxlrp.graph.nodes import tensor_value
from fxlrp.graph.operator_classes import CONVOLUTION
from fxlrp.graph.operator_table import NORMS
from fxlrp.graph.operators import Move, is_float, is_movement, operator_of, packet, row_map

Layout = Mapping[int, int]

_EVERYWHERE = (True, True, True)
_ELLIPSIS = string.digits  # stand for the axes of an ellipsis: letters are the equation's own


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by the names of the operator's schema, defaults included."""
    if getattr(node.target, "_schema", None) is None:
        return {}
    names, defaults = _parameters(node.target)
    return {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}


@cache
def _parameters(target: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The names of an operator's parameters and the defaults among them."""
    declared = target._schema.arguments
    return tuple(a.name for a in declared), {a.name: a.default_value for a in declared if a.has_default_value()}


def rank(value: Any) -> int | None:
    """The number of axes of a node's value (of the first, where there are several), None where it is no tensor."""
    while isinstance(value, (tuple, list)):
        value = value[0] if value else None
    if isinstance(value, fx.Node):
        return rank(value.meta.get("val"))
    return value.ndim if isinstance(value, torch.Tensor) else None


def samples_axis(node: fx.Node) -> int:
    """The axis along which a value holds samples: the first as long as the first axis of the outputs is.

    It is axis 0 where no axis has that size: samples are then joined with something else, or there is but one value.
    """
    value, outputs = tensor_value(node), node.graph.output_node().all_input_nodes
    floats = [v for v in map(tensor_value, outputs) if v is not None and v.is_floating_point() and v.ndim]
    if value is None or not floats:
        return 0
    count = _told(floats[0].shape[0])
    return next((axis for axis, size in enumerate(value.shape) if _told(size) == count), 0)


def _told(size: Any) -> Any:
    """A size as it can be compared: a number, or the expression that a free one is."""
    return size if isinstance(size, int) else size.node.expr


def acts_along(node: fx.Node) -> frozenset[int] | None:
    """The axes that a call acts along (of a softmax, sum, concatenation), None for a call that names none."""
    before, after = rank(node.args[0] if node.args else None), rank(node)
    given = arguments(node)
    if before is None or after is None:
        return None
    whole = frozenset(range(-before, 0))
    if "dim" not in given:  # a sum of everything
        return whole if before > 0 and after == 0 else None
    dims = given["dim"]
    if dims is None or dims == []:
        return whole
    count = max(before, after)
    return frozenset(_from_the_end(dim, count) for dim in (dims if isinstance(dims, (list, tuple)) else [dims]))


def _from_the_end(axis: int, count: int) -> int:
    return axis if axis < 0 else axis - count


def keeps_axes(node: fx.Node) -> bool:
    """Whether a call leaves the number of axes as it is."""
    return rank(node.args[0]) == rank(node)


def before_reduction(node: fx.Node, along: frozenset[int]) -> dict[int, int]:
    """For each axis of a call's result the axis of its argument; it acts ``along`` these of the argument."""
    count = rank(node.args[0]) or 0
    left = [axis for axis in range(-count, 0) if keeps_axes(node) or axis not in along]
    return {index - len(left): axis for index, axis in enumerate(left)}


def before_movement(node: fx.Node) -> dict[int, int]:
    """For each axis of a moved value (a view, transpose, selection) the axis of the value that it was made of, where
    there is one.
    """
    before, after = rank(node.args[0]), rank(node)
    given = arguments(node)
    if before is None or after is None:
        return {}
    own = {axis: axis for axis in range(-after, 0)}
    if not given:  # one of several values
        return own if before == after else {}
    if "dim0" in given or "axis0" in given:
        one, two = (
            _from_the_end(given[n], before) for n in (("dim0", "dim1") if "dim0" in given else ("axis0", "axis1"))
        )
        return own | {one: two, two: one}
    operator = operator_of(node)
    if operator is not None and operator.move is Move.EXCHANGES and before > 1:
        return own | {-1: -2, -2: -1}
    dims = given.get("dims")
    if isinstance(dims, (list, tuple)) and len(dims) == before == after and len(given) == 2:
        order = [_from_the_end(dim, before) for dim in dims]
        if sorted(order) == list(range(-before, 0)):
            return {index - before: axis for index, axis in enumerate(order)}
    if isinstance(given.get("dim"), int) and after == before + 1:
        new = _from_the_end(given["dim"], after)
        return {axis: axis if axis > new else axis + 1 for axis in own if axis != new}
    if isinstance(given.get("dim"), int) and after == before - 1:
        gone = _from_the_end(given["dim"], before)
        return {axis: axis if axis > gone else axis - 1 for axis in own}
    return _regrouped(_sizes(node.args[0]), _sizes(node), own)


def _sizes(value: Any) -> list[int | None]:
    found = tensor_value(value) if isinstance(value, fx.Node) else None
    return [] if found is None else [known_size(size) for size in found.shape]


def known_size(size: Any) -> int | None:
    """A size, of a free one that at which the model was traced."""
    hint = size if isinstance(size, int) else getattr(size.node, "hint", None)
    return None if hint is None else int(hint)


def _regrouped(before: Sequence[int | None], after: Sequence[int | None], own: dict[int, int]) -> dict[int, int]:
    """Where a reshape joins or splits axes, the last of those that are joined stands for all of them."""
    if None in before or None in after or math.prod(before) != math.prod(after):  # type: ignore[arg-type]
        return own if len(before) == len(after) else {}
    if list(before) == list(after):
        return own
    found: dict[int, int] = {}
    old, new = (_of_length(sizes) for sizes in (before, after))
    there, here = next(old, None), next(new, None)
    while there is not None and here is not None:
        found[here[0]] = there[0]
        inside, outside = there[1], here[1]
        while inside != outside:
            side = old if inside < outside else new
            step = next(side, None)
            if step is None:
                return found
            inside, outside = (inside * step[1], outside) if side is old else (inside, outside * step[1])
        there, here = next(old, None), next(new, None)
    return found


def _of_length(sizes: Sequence[int | None]) -> Iterator[tuple[int, int]]:
    """The axes that are longer than one and their sizes, the last first."""
    return (
        (index - len(sizes), size) for index, size in reversed(list(enumerate(sizes))) if size is not None and size > 1
    )


def axis_of_features(node: fx.Node) -> int | None:
    """Along which axis of a value the features of the linear map lie that it is made by, after moves, norms and
    functions of entries; None where it is made otherwise, or these are spread over several.
    """
    value = tensor_value(node)
    places = {axis: axis for axis in range(-(0 if value is None else value.ndim), 0)}
    while (operator := operator_of(node)) is not None:
        if row_map(node) is not None or operator.category == CONVOLUTION:
            features = -1 if row_map(node) is not None else 1 - (rank(node) or 0)
            found = [axis for axis, place in places.items() if place == features]
            return max(found, default=None)
        if is_movement(node):
            before = before_movement(node)
            places = {axis: before[place] for axis, place in places.items() if place in before}
        elif not operator.entrywise and packet(node.target) not in NORMS:
            return None
        sources = [n for n in node.all_input_nodes if is_float(n) and (is_movement(node) or rank(n) == rank(node))]
        if not sources:
            return None
        node = sources[0]
    return None


def through(layout: Layout, before: Mapping[int, int]) -> Layout:
    """The layout of what a value was made of, given that of the value and where its axes were ``before``."""
    return {old: layout.get(axis, axis) for axis, old in before.items() if layout.get(axis, axis) != old}


def seen_through(layout: Layout, before: Mapping[int, int], count: int) -> Layout:
    """The same where it is the other value that is moved, and this one has ``count`` axes."""
    found = {axis: layout.get(axis, axis) for axis in range(-count, 0)}
    return {axis: before[other] for axis, other in found.items() if before.get(other, axis) != axis}


@dataclass(frozen=True)
class Contraction:
    """A sum of products as an equation: a letter for each axis of its two operands and of its result.

    A letter's role says whether it occurs in the first operand, the second and the result. ``open``: the equation has
    an ellipsis, whose axes may be of any role.
    """

    operands: tuple[str, str]
    result: str
    batch: frozenset[str]
    open: bool = False
    explicit: bool = False

    @staticmethod
    def of(node: fx.Node) -> Contraction | None:
        """The equation of a matrix product or einsum of two operands, None for any other call."""
        given = arguments(node)
        if "equation" in given:
            return _of_equation(given["equation"], [rank(x) or 0 for x in given["tensors"]])
        operator = operator_of(node)
        if operator is None or not operator.matrices:
            return None
        ranks = [rank(x) for x in node.args[:2]]
        return None if 0 in ranks or None in ranks else _of_ranks(*ranks)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{','.join(self.operands)}->{self.result}"

    def role(self, letter: str, order: tuple[int, int] = (0, 1)) -> tuple[bool, bool, bool]:
        """Where a letter occurs, with the operands in this order."""
        if letter in self.batch:
            return _EVERYWHERE
        return letter in self.operands[order[0]], letter in self.operands[order[1]], letter in self.result

    def roles(self, order: tuple[int, int] = (0, 1)) -> set[tuple[bool, bool, bool]]:
        """The roles of all letters but those that occur everywhere."""
        return {self.role(letter, order) for letter in {*"".join(self.operands), *self.result}} - {_EVERYWHERE}

    def layouts(self, other: Contraction, order: tuple[int, int], layout: Layout) -> tuple[Layout, Layout] | None:
        """The layouts of the operands of ``other``, taken in this order, that is to be this contraction with its
        result in ``layout``; None if it is another one.
        """
        theirs, ours = other.roles(order), self.roles()
        if self.explicit and (ours - theirs or any(not self.open or not role[2] for role in theirs - ours)):
            return None
        twins: dict[str, str] = {}  # letters of the other's result, and their place in this one's
        for index, letter in enumerate(other.result):
            axis = index - len(other.result)
            place = layout.get(axis, axis)
            if -place <= len(self.result):
                twins[letter] = self.result[place]
                role = self.role(twins[letter])
                if role != _EVERYWHERE and role != other.role(letter, order):
                    return None
        return self._operand(0, other, order, twins), self._operand(1, other, order, twins)

    def _operand(self, which: int, other: Contraction, order: tuple[int, int], twins: Mapping[str, str]) -> Layout:
        mine, its = self.operands[which], other.operands[order[which]]
        found: dict[int, int] = {}
        for index, letter in enumerate(its):
            alike = [own for own in mine if self.role(own) == other.role(letter, order)]
            own = twins.get(letter) if twins.get(letter) in alike else alike[0] if len(alike) == 1 else None
            if own is not None and mine.index(own) - len(mine) != index - len(its):
                found[index - len(its)] = mine.index(own) - len(mine)
        return found


def _of_ranks(first: int, second: int) -> Contraction:
    batch = string.ascii_lowercase[: max(first, second, 2) - 2]
    left = batch[len(batch) - max(first - 2, 0) :] + "MK"[-first:]
    right = batch[len(batch) - max(second - 2, 0) :] + ("KN" if second > 1 else "K")
    return Contraction((left, right), batch + "M" * (first > 1) + "N" * (second > 1), frozenset(batch))


def _of_equation(equation: str, ranks: Sequence[int]) -> Contraction | None:
    inside, _, result = equation.replace(" ", "").partition("->")
    terms = inside.split(",")
    if len(terms) != 2:
        return None
    if "->" not in equation:
        letters = sorted({*inside} - {".", ","})
        result = "..." * ("..." in inside) + "".join(x for x in letters if inside.count(x) == 1)
    extra = [
        count - len(term.replace("...", "")) if "..." in term else 0 for term, count in zip(terms, ranks, strict=True)
    ]
    rest = _ELLIPSIS[: max(extra)]
    operands = tuple(term.replace("...", rest[len(rest) - n :]) for term, n in zip(terms, extra, strict=True))
    return Contraction(
        (operands[0], operands[1]), result.replace("...", rest), frozenset(rest), "..." in equation, explicit=True
    )
