"""Finds patterns in a canonical graph: anchored at their root, outputs first, linear in the graph.

In: a graph, and the graphs of patterns (:class:`Form`). Out: :class:`Match` values (which node is which part) and, for
each pattern that matched nowhere, its best attempt and what was wrong with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from torch import fx

from fxlrp.errors import PatternError
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
from fxlrp.graph.nodes import module_path, source_line, tensor_value
from fxlrp.graph.operator_classes import MOVEMENT, PRODUCT, QUOTIENT
from fxlrp.graph.operators import Dependence, Move, is_movement, nodes_in, operator_of, packet
from fxlrp.patterns.language import ANY_AXIS, CHAIN, EITHER, MARKERS, PART, Pattern

_CHAIN_LIMIT = 24  # nodes that a chain may cross; attention with relative positions and masks crosses about a dozen


@dataclass(frozen=True)
class Match:
    """A pattern found in a graph: its root, its labelled parts, its inputs, and every node it covers.

    ``layouts`` tells for a part which axis of the pattern's value each of its axes is, where they stand in another
    order than in the pattern's code (counted from the end, axes in their own place left out).
    """

    pattern: Pattern
    root: fx.Node
    parts: Mapping[str, fx.Node]
    inputs: Mapping[str, Any]
    nodes: frozenset[fx.Node]
    layouts: Mapping[str, Layout] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[Any, ...]:
        """The shape of a part or input, ``()`` of a number; axes of free size are symbols."""
        value = {**self.inputs, **self.parts}[name]
        tensor = tensor_value(value) if isinstance(value, fx.Node) else None
        return () if tensor is None else tuple(tensor.shape)


@dataclass(frozen=True)
class NearMiss:
    """The best attempt at a pattern that matched nowhere: ``matched`` of its ``size`` operators were there.

    ``root`` is where the attempt began, None if no operator of the graph is the pattern's root. ``covered``: that place
    belongs to the match of another pattern.
    """

    pattern: Pattern
    root: fx.Node | None
    matched: int
    size: int
    reason: str
    covered: bool = False

    @property
    def share(self) -> float:
        """How much of the pattern was there, from 0 to 1."""
        return min(1.0, self.matched / self.size)

    @property
    def telling(self) -> bool:
        """Whether a reader should hear of it unasked: a pattern of their own, or most of one that is nowhere else."""
        return not self.pattern.packaged or (self.share >= 0.7 and not self.covered)

    def __str__(self) -> str:
        if self.root is None:
            return f"{self.pattern.spelled}: {self.reason}"
        place = module_path(self.root) or "the top level"
        line = source_line(self.root)
        return (
            f"{self.pattern.spelled} matched {min(self.matched, self.size)} of {self.size} operators in {place}"
            f"{f' ({line})' if line else ''}: {self.reason}"
        )


@dataclass(frozen=True, eq=False)
class Form:
    """A pattern with the graph that is looked for."""

    pattern: Pattern
    graph: fx.Graph

    @cached_property
    def root(self) -> fx.Node:
        """The node whose value the pattern computes; matching is anchored there."""
        result: Any = self.graph.output_node().args[0]
        if not isinstance(result, fx.Node) or result.op != "call_function":
            raise PatternError(f"The pattern {self.pattern.spelled} returns one of its arguments as it is.")
        return result

    @cached_property
    def size(self) -> int:
        """How many operators its shortest spelling has."""
        return max(1, len(_shortest(self.root)))

    @cached_property
    def parameters(self) -> Mapping[str, fx.Node]:
        """The pattern's inputs by name."""
        found = {str(node.target): node for node in self.graph.nodes if node.op == "placeholder"}
        return {name: found[name] for name in self.pattern.examples}

    @cached_property
    def anchors(self) -> frozenset[Any]:
        """The operators at which it may begin."""
        return frozenset(_anchors(self.root))


def _shortest(node: Any) -> frozenset[fx.Node]:
    """The operators of the shortest spelling of a pattern value (markers and inputs are no evidence of a match)."""
    if not isinstance(node, fx.Node) or node.op == "placeholder":
        return frozenset()
    if node.target is EITHER:
        options: Any = node.args[0]
        return min((_shortest(option) for option in options), key=len)
    own = frozenset[fx.Node]() if node.target in MARKERS or is_movement(node) else frozenset({node})
    return own.union(*(_shortest(argument) for argument in node.all_input_nodes))


def _anchors(root: Any) -> set[Any]:
    """The operators at which a pattern with this root may begin."""
    if root.target is EITHER:
        return set().union(*(_anchors(option) for option in root.args[0]))
    if root.target in MARKERS or (is_movement(root) and root.args[0].op == "call_function"):
        return _anchors(root.args[0])  # a pattern does not begin by moving its result
    return {packet(root.target)}


@dataclass(frozen=True)
class _Bound:
    """What is settled: graph nodes (or numbers) by pattern nodes, their layouts, and axes by name."""

    values: Mapping[fx.Node, Any] = field(default_factory=dict)
    layouts: Mapping[fx.Node, Layout] = field(default_factory=dict)
    axes: Mapping[str, frozenset[int]] = field(default_factory=dict)
    depth: int = 0

    def to(self, want: fx.Node, have: Any, layout: Layout) -> _Bound:
        """With a pattern node bound as well."""
        counts = want.op == "call_function" and want.target not in MARKERS and not is_movement(want)
        values, layouts = {**self.values, want: have}, {**self.layouts, want: layout}
        return replace(self, values=values, layouts=layouts, depth=self.depth + counts)

    def alike(self, want: fx.Node, inner: Any, have: Any, layout: Layout) -> _Bound:
        """With the marker ``want`` bound to what the value that it marks is bound to."""
        return self.to(want, self.values.get(inner, have), self.layouts.get(inner, layout))


@dataclass
class _Attempt:
    """One pattern tried at one root, and the deepest failure seen on the way: after how many operators that were right
    (``matched``), and with how many on the way (``depth``, one more where the last had another axis or the like).
    """

    depth: int = 0
    matched: int = 0
    reason: Callable[[], str] = lambda: "nothing of it was found"

    def fail(self, bound: _Bound, reason: Callable[[], str], wrong: bool = False) -> None:
        """Note a failure, if none was deeper; the operator bound last may be the ``wrong`` one."""
        if bound.depth >= self.depth:
            self.depth, self.matched, self.reason = bound.depth, bound.depth - wrong, reason

    def match(self, want: Any, have: Any, layout: Layout, bound: _Bound, free: str | None = None) -> Iterator[_Bound]:
        """Every way in which the graph value ``have`` is the pattern value ``want``, given what is bound already.

        ``layout`` tells which axes of ``want`` those of ``have`` are; ``free`` that its axes may be any (by a name).
        """
        if not isinstance(want, fx.Node):
            if _same_literal(want, have):
                yield bound
            else:
                self.fail(bound, lambda: f"expected the number {want}, found {_label(have)}")
        elif want in bound.values:
            if bound.values[want] is have or _same_entries(bound.values[want], have):
                yield bound
            else:
                earlier = bound.values[want]
                self.fail(bound, lambda: f"expected {_label(earlier)} a second time, found {_label(have)}")
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
            self.fail(bound, lambda: f"expected {_label(want)}, found {_label(have)}")

    def _operator(
        self, want: fx.Node, have: fx.Node, layout: Layout, bound: _Bound, free: str | None
    ) -> Iterator[_Bound]:
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
                    self.fail(bound, lambda: f"expected a factor of {scaled[1]:g}, found {_label(have)}")
            else:
                self.fail(bound, lambda: f"expected {_label(want)}, found {_label(have)}")
            return
        ours, theirs = _operands(want), _operands(have)
        bound = bound.to(want, have, layout)
        if len(ours) > len(theirs):
            self.fail(bound, lambda: f"expected {_label(want)} with {len(ours)} operands, found {_label(have)}", True)
            return
        for order in _orders(want, theirs):
            fitting = self._layouts(want, have, order is not theirs, layout, bound, free)
            if fitting is not None:
                layouts, settled = fitting
                further = free if is_movement(want) else None
                yield from self._all(list(zip(ours, order, layouts * len(ours), strict=False)), settled, further)

    def _all(
        self, triples: Sequence[tuple[Any, Any, Layout]], bound: _Bound, free: str | None = None
    ) -> Iterator[_Bound]:
        if not triples:
            yield bound
            return
        (want, have, layout), *rest = triples
        for found in self.match(want, have, layout, bound, free):
            yield from self._all(rest, found, free)

    def _layouts(
        self, want: fx.Node, have: fx.Node, swapped: bool, layout: Layout, bound: _Bound, free: str | None
    ) -> tuple[list[Layout], _Bound] | None:
        """The layouts of the operands and what that settles, None if the two calls act along other axes."""
        ours, theirs = Contraction.of(want), Contraction.of(have)
        if ours is not None and theirs is not None:
            pair = ours.layouts(theirs, (1, 0) if swapped else (0, 1), layout)
            if pair is not None:
                return list(pair), bound
            if not swapped:
                self.fail(
                    bound, lambda: f"expected {ours} as the sum of products, found {theirs}: {_label(have)}", True
                )
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
                bound, lambda: f"expected {_label(want)} with its axes in place (keepdim), found {_label(have)}", True
            )
            return None
        return [behind], bound


def _behind(want: fx.Node, have: fx.Node, along: frozenset[int], found: frozenset[int], layout: Layout) -> Layout:
    """The layout of the argument of a call that acts along axes, given that of its result."""
    ours, theirs = before_reduction(want, along), before_reduction(have, found)
    places = {source: ours.get(layout.get(axis, axis), layout.get(axis, axis)) for axis, source in theirs.items()}
    return {axis: place for axis, place in places.items() if place != axis}


def attempts(
    graph: fx.Graph, forms: Sequence[Form], inside: frozenset[fx.Node] = frozenset()
) -> tuple[list[Match], list[NearMiss]]:
    """All matches, outermost (nearest the output) first, and the best attempt of each form that matched nowhere, the
    most complete first.

    ``inside`` are the nodes that depend on what is explained in the model's inputs, not on sizes or masks alone.
    """
    anchored: dict[Any, list[Form]] = {}
    for form in forms:
        for target in form.anchors:
            anchored.setdefault(target, []).append(form)
    matches: list[Match] = []
    best: dict[Form, tuple[_Attempt, fx.Node]] = {}
    for node in reversed(graph.nodes):
        for form in anchored.get(packet(node.target), ()):
            attempt = _Attempt()
            match = _tried(form, node, inside, attempt)
            if match is not None:
                matches.append(match)
            elif form not in best or attempt.depth > best[form][0].depth:
                best[form] = attempt, node
    found = {match.pattern for match in matches}
    covered = frozenset[fx.Node]().union(*(match.nodes for match in matches))
    misses = [_miss(form, best.get(form), covered) for form in forms if form.pattern not in found]
    return matches, sorted(misses, key=lambda miss: -miss.share)


def _tried(form: Form, node: fx.Node, inside: frozenset[fx.Node], attempt: _Attempt) -> Match | None:
    """The first match of a pattern at a root that has the inputs it must have and passes its check."""
    for bound in attempt.match(form.root, node, {}, _Bound()):
        match = _as_match(form, node, bound)
        objection = _objection(match, inside)
        if not objection:
            return match
        attempt.fail(bound, partial(str, objection))
    return None


def _objection(match: Match, inside: frozenset[fx.Node]) -> str:
    """Why a structure that is all there is no match of its pattern, "" if it is."""
    for name in match.pattern.dependent:
        if match.inputs[name] not in inside:
            return f"its input '{name}' does not depend on what is explained in the inputs"
    verdict = None if match.pattern.check is None else match.pattern.check(match)
    if verdict is None or verdict is True:
        return ""
    return verdict if isinstance(verdict, str) and verdict else "its check does not hold"


def _miss(form: Form, best: tuple[_Attempt, fx.Node] | None, covered: frozenset[fx.Node]) -> NearMiss:
    if best is None:
        names = ", ".join(sorted(str(target) for target in form.anchors))
        return NearMiss(form.pattern, None, 0, form.size, f"no operator of the graph is its root ({names})")
    attempt, root = best
    return NearMiss(form.pattern, root, attempt.matched, form.size, attempt.reason(), root in covered)


def _as_match(form: Form, root: fx.Node, bound: _Bound) -> Match:
    parts = [node for node in bound.values if node.target is PART]
    return Match(
        pattern=form.pattern,
        root=root,
        parts={str(node.args[1]): bound.values[node] for node in parts},
        inputs={name: bound.values.get(node) for name, node in form.parameters.items()},
        nodes=frozenset(
            value
            for node, value in bound.values.items()
            if node.op == "call_function" and node.target not in MARKERS and isinstance(value, fx.Node)
        ),
        layouts={str(node.args[1]): bound.layouts[node] for node in parts if bound.layouts[node]},
    )


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


def _same_entries(a: Any, b: Any) -> bool:
    """Whether two values are movements of one value by the same steps, casts and copies aside.

    Two different slices of one value (the halves of a gate) are not the same value.
    """
    return _steps(a) == _steps(b)


def _steps(value: Any) -> tuple[Any, list[Any]]:
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


def _label(value: Any) -> str:
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
    return f"expected {_label(want)} along axis {names[0]} (from the end), found axis {names[1]} in {_label(have)}"
