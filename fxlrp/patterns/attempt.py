"""One try of a pattern at one place of a graph: every way in which a graph's value is a pattern's value.

In: a value of a pattern's graph and one of a captured graph. Out: :class:`Bound` values (what stands for what, and in
which axes), and of a try that failed how far it came and what was wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx

from fxlrp.graph.activations import SpelledActivation
from fxlrp.graph.axes import (
    Contraction,
    Layout,
    acts_along,
    before_movement,
    before_reduction,
    keeps_axes,
    rank,
    seen_through,
    through,
)
from fxlrp.graph.nodes import source_line
from fxlrp.graph.operator_classes import MOVEMENT, PRODUCT, QUOTIENT
from fxlrp.graph.operators import Dependence, Move, is_movement, nodes_in, operator_of, packet
from fxlrp.patterns.language import ANY_AXIS, CHAIN, EITHER, MARKERS, PART

_CHAIN_LIMIT = 24  # nodes that a chain may cross; attention with relative positions and masks crosses about a dozen


@dataclass(frozen=True)
class Bound:
    """What is settled: graph nodes (or numbers) by pattern nodes, their layouts, and axes by name."""

    values: Mapping[fx.Node, Any] = field(default_factory=dict)
    layouts: Mapping[fx.Node, Layout] = field(default_factory=dict)
    axes: Mapping[str, frozenset[int]] = field(default_factory=dict)
    depth: int = 0

    def to(self, want: fx.Node, have: Any, layout: Layout) -> Bound:
        """With a pattern node bound as well."""
        counts = want.op == "call_function" and want.target not in MARKERS and not is_movement(want)
        values, layouts = {**self.values, want: have}, {**self.layouts, want: layout}
        return replace(self, values=values, layouts=layouts, depth=self.depth + counts)

    def alike(self, want: fx.Node, inner: Any, have: Any, layout: Layout) -> Bound:
        """With the marker ``want`` bound to what the value that it marks is bound to."""
        return self.to(want, self.values.get(inner, have), self.layouts.get(inner, layout))


@dataclass
class Attempt:
    """One pattern tried at one root, and the deepest failure seen on the way: after how many operators that were right
    (``matched``), and with how many on the way (``depth``, one more where the last had another axis or the like).
    """

    depth: int = 0
    matched: int = 0
    reason: Callable[[], str] = lambda: "nothing of it was found"

    def fail(self, bound: Bound, reason: Callable[[], str], wrong: bool = False) -> None:
        """Note a failure, if none was deeper; the operator bound last may be the ``wrong`` one."""
        if bound.depth >= self.depth:
            self.depth, self.matched, self.reason = bound.depth, bound.depth - wrong, reason

    def match(self, want: Any, have: Any, layout: Layout, bound: Bound, free: str | None = None) -> Iterator[Bound]:
        """Every way in which the graph value ``have`` is the pattern value ``want``, given what is bound already.

        ``layout`` tells which axes of ``want`` those of ``have`` are; ``free`` that its axes may be any (by a name).
        """
        if not isinstance(want, fx.Node):
            if _same_literal(want, have):
                yield bound
            else:
                self.fail(bound, lambda: f"expected the number {want}, found {label(have)}")
        elif want in bound.values:
            if bound.values[want] is have or same_entries(bound.values[want], have):
                yield bound
            else:
                earlier = bound.values[want]
                self.fail(bound, lambda: f"expected {label(earlier)} a second time, found {label(have)}")
        elif want.op == "placeholder":
            yield bound.to(want, have, layout)
        elif want.target is PART or want.target is ANY_AXIS:
            free = str(want.args[1]) if want.target is ANY_AXIS else free
            for found in self.match(want.args[0], have, layout, bound, free):
                yield found.alike(want, want.args[0], have, layout)
        elif want.target is EITHER:
            for option in want.args[0]:  # type: ignore[union-attr]
                for found in self.match(option, have, layout, bound, free):
                    yield found.alike(want, option, have, layout)
        elif want.target is CHAIN:
            for value, moved in _along_chain(have, bool(want.args[1]), layout):
                for found in self.match(want.args[0], value, moved, bound, free):
                    yield found.to(want, have, layout)
        elif isinstance(have, fx.Node):
            yield from self._operator(want, have, layout, bound, free)
        else:
            self.fail(bound, lambda: f"expected {label(want)}, found {label(have)}")

    def _operator(
        self, want: fx.Node, have: fx.Node, layout: Layout, bound: Bound, free: str | None
    ) -> Iterator[Bound]:
        if not _same_operator(want, have):
            # Movements and casts are transparent unless the pattern asks for them.
            if is_movement(have) or have.target in (PART, ANY_AXIS):
                source: Any = have.args[0]
                yield from self._operator(want, source, through(layout, before_movement(have)), bound, free)
            elif is_movement(want):
                seen = seen_through(layout, before_movement(want), rank(have) or 0)
                yield from self.match(want.args[0], have, seen, bound, free)
            elif (scaled := _scaling(want)) is not None and (other := _scaling(have)) is not None:
                if math.isclose(scaled[1], other[1], rel_tol=1e-5):  # x / 8 and x * 0.125
                    yield from self.match(scaled[0], other[0], layout, bound.to(want, have, layout))
                else:
                    self.fail(bound, lambda: f"expected a factor of {scaled[1]:g}, found {label(have)}")
            else:
                self.fail(bound, lambda: f"expected {label(want)}, found {label(have)}")
            return
        ours, theirs = _operands(want), _operands(have)
        bound = bound.to(want, have, layout)
        if len(ours) > len(theirs):
            self.fail(bound, lambda: f"expected {label(want)} with {len(ours)} operands, found {label(have)}", True)
            return
        for order in _orders(want, theirs):
            fitting = self._layouts(want, have, order is not theirs, layout, bound, free)
            if fitting is not None:
                layouts, settled = fitting
                further = free if is_movement(want) else None
                yield from self._all(list(zip(ours, order, layouts * len(ours), strict=False)), settled, further)

    def _all(
        self, triples: Sequence[tuple[Any, Any, Layout]], bound: Bound, free: str | None = None
    ) -> Iterator[Bound]:
        if not triples:
            yield bound
            return
        (want, have, layout), *rest = triples
        for found in self.match(want, have, layout, bound, free):
            yield from self._all(rest, found, free)

    def _layouts(
        self, want: fx.Node, have: fx.Node, swapped: bool, layout: Layout, bound: Bound, free: str | None
    ) -> tuple[list[Layout], Bound] | None:
        """The layouts of the operands and what that settles, None if the two calls act along other axes."""
        ours, theirs = Contraction.of(want), Contraction.of(have)
        if ours is not None and theirs is not None:
            pair = ours.layouts(theirs, (1, 0) if swapped else (0, 1), layout)
            if pair is not None:
                return list(pair), bound
            if not swapped:
                self.fail(bound, lambda: f"expected {ours} as the sum of products, found {theirs}: {label(have)}", True)
            return None
        operator = operator_of(have)
        if operator is not None and operator.dependence is Dependence.FACTORS and operator.category != PRODUCT:
            return [{}], bound  # a linear map: its argument's axes are its own
        if is_movement(want) and not (keeps_axes(want) and keeps_axes(have)):
            seen = seen_through(layout, before_movement(want), rank(have) or 0)
            return [through(seen, before_movement(have))], bound
        along, found = acts_along(want), acts_along(have)
        if along is None or found is None:
            return [layout], bound
        both = keeps_axes(want) and keeps_axes(have)
        met = frozenset(layout.get(axis, axis) for axis in found) if both else found
        if free is not None:
            known = bound.axes.get(free, met)
            if free:
                bound = replace(bound, axes={**bound.axes, free: met})
            if known != met:
                self.fail(bound, lambda: _other_axes(want, known, met, have), True)
                return None
            return [_behind(want, have, along, found, layout)], bound
        if met != along:
            self.fail(bound, lambda: _other_axes(want, along, met, have), True)
            return None
        behind = _behind(want, have, along, found, layout)
        lost = [axis for axis in range(-(rank(have.args[0]) or 0), 0) if axis not in found]
        if any(behind.get(axis, axis) in along for axis in lost):
            self.fail(
                bound, lambda: f"expected {label(want)} with its axes in place (keepdim), found {label(have)}", True
            )
            return None
        return [behind], bound


def _behind(want: fx.Node, have: fx.Node, along: frozenset[int], found: frozenset[int], layout: Layout) -> Layout:
    """The layout of the argument of a call that acts along axes, given that of its result."""
    ours, theirs = before_reduction(want, along), before_reduction(have, found)
    places = {source: ours.get(layout.get(axis, axis), layout.get(axis, axis)) for axis, source in theirs.items()}
    return {axis: place for axis, place in places.items() if place != axis}


def _same_operator(want: fx.Node, have: fx.Node) -> bool:
    if packet(want.target) != packet(have.target):
        return False
    folded = isinstance(want.target, SpelledActivation) and isinstance(have.target, SpelledActivation)
    return not folded or want.target.name == have.target.name  # type: ignore[union-attr]


def _orders(want: fx.Node, operands: list[Any]) -> list[list[Any]]:
    """The orders in which the operands of a call may stand: factors and summands in either."""
    operator = operator_of(want)
    either_way = (operator is not None and operator.commutative) or Contraction.of(want) is not None
    return [operands, operands[::-1]] if either_way and len(operands) == 2 else [operands]


def _scaling(node: fx.Node) -> tuple[Any, float] | None:
    """What a call multiplies or divides by a number, and the factor; None for any other call."""
    operator = operator_of(node)
    values = _operands(node) if operator is not None and operator.category in (PRODUCT, QUOTIENT) else []
    if len(values) != 2 or not isinstance(values[0], fx.Node) or not isinstance(values[1], (int, float)):
        return None
    factor = float(values[1])
    if operator is not None and operator.dependence is Dependence.QUOTIENT:
        return (values[0], 1 / factor) if factor else None
    return values[0], factor


def _operands(node: fx.Node) -> list[Any]:
    """Tensors and real-valued constants of a call; shapes and flags do not matter to a pattern."""
    operator = operator_of(node)
    known = operator.factors + operator.terms + operator.parameters if operator else range(len(node.args))
    slots = sorted({*known})
    values: list[Any] = [node.args[slot] for slot in slots if slot < len(node.args) and node.args[slot] is not None]
    flat: list[Any] = []
    for value in values:
        flat.extend(value if isinstance(value, (list, tuple)) else [value])
    return flat


def _same_literal(want: Any, have: Any) -> bool:
    numbers = isinstance(want, (int, float)) and isinstance(have, (int, float))
    return math.isclose(want, have, rel_tol=1e-5) if numbers else want == have


def same_entries(a: Any, b: Any) -> bool:
    """Whether two values are movements of one value by the same steps, casts and copies aside.

    Two different slices of one value (the halves of a gate) are not the same value.
    """
    return steps_of(a) == steps_of(b)


def steps_of(value: Any) -> tuple[Any, list[Any]]:
    """The value that movements were made of, and the movements, the last first; casts and copies are none."""
    steps = []
    while isinstance(value, fx.Node) and is_movement(value):
        operator = operator_of(value)
        if operator is None or operator.move is not Move.STAYS:
            steps.append((packet(value.target), value.args[1:], dict(value.kwargs)))
        value = value.args[0]
    return value, steps


def _along_chain(start: Any, adding: bool, layout: Layout) -> Iterator[tuple[fx.Node, Layout]]:
    """Values that ``start`` is a scaled, masked, cast, moved and (if ``adding``) shifted form of, nearest first, with
    their layouts.
    """
    queue, seen = [(start, layout)], set[fx.Node]()
    while queue and len(seen) < _CHAIN_LIMIT:
        value, layout = queue.pop(0)
        if not isinstance(value, fx.Node) or value in seen or value.op != "call_function":
            continue
        seen.add(value)
        yield value, layout
        operator = operator_of(value)
        if operator is None:
            continue
        sources: list[fx.Node] = []
        sums = operator.dependence is Dependence.TERMS and (adding or operator.category.within(MOVEMENT))
        if sums or operator.masks:
            sources = nodes_in(value, operator.terms)
        elif operator.scales:
            sources = nodes_in(value, operator.factors)
        moved = through(layout, before_movement(value)) if is_movement(value) else layout
        queue.extend((source, moved) for source in sources)


def label(value: Any) -> str:
    """A value in words: an operator with its source line, an input, a number."""
    if not isinstance(value, fx.Node):
        return str(value)
    if value.op != "call_function":
        return f"the {value.op} {value.name}"
    name = value.target.name if isinstance(value.target, SpelledActivation) else str(packet(value.target))
    line = source_line(value)
    return f"{name} ({line})" if line else name


def _other_axes(want: fx.Node, wanted: frozenset[int], met: frozenset[int], have: fx.Node) -> str:
    names = [" and ".join(map(str, sorted(axes))) for axes in (wanted, met)]
    return f"expected {label(want)} along axis {names[0]} (from the end), found axis {names[1]} in {label(have)}"
