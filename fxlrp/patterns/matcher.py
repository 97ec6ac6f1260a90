"""Finds patterns in a canonical graph: anchored at their root, outputs first, linear in the graph.

In: a graph. Out: :class:`Match` values (which node is which part) and, for the report, the best near-miss of
each pattern.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxlrp.graph.nodes import module_path, source_line
from fxlrp.graph.operator_classes import MOVEMENT
from fxlrp.graph.operators import Dependence, Move, is_movement, nodes_in, operator_of, packet
from fxlrp.patterns.language import CHAIN, EITHER, PART, PATTERNS, Pattern

_CHAIN_LIMIT = 24  # nodes that a chain may cross; attention with relative positions and masks crosses about a dozen


@dataclass(frozen=True)
class Match:
    """A pattern found in a graph: its root, its labelled parts, its inputs, and every node it covers."""

    pattern: Pattern
    root: fx.Node
    parts: Mapping[str, fx.Node]
    inputs: Mapping[str, Any]
    nodes: frozenset[fx.Node]


@dataclass(frozen=True)
class NearMiss:
    """Where the best attempt at a pattern failed."""

    pattern: str
    root: fx.Node
    matched: int
    reason: str

    def __str__(self) -> str:
        place = module_path(self.root) or "the top level"
        return f"'{self.pattern}' nearly matched in {place} ({source_line(self.root)}): {self.reason}"


@dataclass
class _Attempt:
    """The deepest failure seen while one pattern is tried at one root."""

    depth: int = 0
    reason: str = ""

    def fail(self, bound: Mapping[fx.Node, Any], reason: Callable[[], str]) -> None:
        depth = sum(node.op == "call_function" and node.target not in (PART, EITHER, CHAIN) for node in bound)
        if depth >= self.depth:
            self.depth, self.reason = depth, reason()


Bound = dict[Any, Any]  # pattern node -> graph node (or number)


def find(
    graph: fx.Graph,
    patterns: Mapping[str, list[Pattern]] | None = None,
    inside: frozenset[fx.Node] = frozenset(),
) -> tuple[list[Match], list[NearMiss]]:
    """All matches, outermost (nearest the output) first, and the best near-miss of each pattern that matched nowhere.

    ``inside`` are the nodes that depend on what is explained in the model's inputs, not on sizes or masks alone.
    """
    patterns = PATTERNS if patterns is None else patterns
    anchored: dict[Any, list[Pattern]] = {}
    for group in patterns.values():
        for candidate in group:
            for target in _anchors(candidate.root):
                anchored.setdefault(target, []).append(candidate)
    matches: list[Match] = []
    misses: dict[str, NearMiss] = {}
    for node in reversed(graph.nodes):
        for candidate in anchored.get(packet(node.target), ()):
            attempt = _Attempt()
            found = (
                b
                for b in _match(candidate.root, node, {}, attempt)
                if all(b[p] in inside for p in candidate.must_depend)
            )
            bound = next(found, None)
            if bound is not None:
                matches.append(_as_match(candidate, node, bound))
            elif attempt.depth >= 0.7 * candidate.size and attempt.depth > getattr(
                misses.get(candidate.name), "matched", 0
            ):
                misses[candidate.name] = NearMiss(candidate.name, node, attempt.depth, attempt.reason)
    names = {match.pattern.name for match in matches}
    covered = frozenset[fx.Node]().union(*(match.nodes for match in matches))
    return matches, [miss for name, miss in misses.items() if name not in names and miss.root not in covered]


def _anchors(root: Any) -> set[Any]:
    """The operators at which a pattern with this root may begin."""
    if root.target in (PART, CHAIN):
        return _anchors(root.args[0])
    if root.target is EITHER:
        return set().union(*(_anchors(option) for option in root.args[0]))
    return {packet(root.target)}


def _as_match(found: Pattern, root: fx.Node, bound: Bound) -> Match:
    return Match(
        pattern=found,
        root=root,
        parts={str(node.args[1]): value for node, value in bound.items() if node.target is PART},
        inputs={name: bound.get(node) for name, node in zip(found.examples, found.parameters, strict=True)},
        nodes=frozenset(
            value
            for node, value in bound.items()
            if node.op == "call_function" and node.target not in (PART, EITHER, CHAIN) and isinstance(value, fx.Node)
        ),
    )


def _match(want: Any, have: Any, bound: Bound, attempt: _Attempt) -> Iterator[Bound]:
    """Every way in which the graph value ``have`` is the pattern value ``want``, given what is bound already."""
    if not isinstance(want, fx.Node):
        if _same_literal(want, have):
            yield bound
        else:
            attempt.fail(bound, lambda: f"expected the constant {want}, found {have}")
        return
    if want in bound:
        if bound[want] is have or _same_entries(bound[want], have):
            yield bound
        return
    if want.op == "placeholder":
        yield bound | {want: have}
    elif want.target is PART:
        for result in _match(want.args[0], have, bound, attempt):
            yield result | {want: result.get(want.args[0], have)}
    elif want.target is EITHER:
        for option in want.args[0]:  # type: ignore[union-attr]
            for result in _match(option, have, bound, attempt):
                yield result | {want: result.get(option, have)}
    elif want.target is CHAIN:
        for value in _along_chain(have, bool(want.args[1])):
            for result in _match(want.args[0], value, bound, attempt):
                yield result | {want: have}
    elif isinstance(have, fx.Node):
        yield from _match_operator(want, have, bound, attempt)


def _match_operator(want: fx.Node, have: fx.Node, bound: Bound, attempt: _Attempt) -> Iterator[Bound]:
    if packet(want.target) != packet(have.target):
        if is_movement(have):  # movements and casts are transparent unless the pattern asks for them
            yield from (
                _match_operator(want, have.args[0], bound, attempt) if isinstance(have.args[0], fx.Node) else ()
            )
        elif is_movement(want):
            yield from _match(want.args[0], have, bound, attempt)
        else:
            attempt.fail(bound, lambda: f"expected {_label(want)}, found {_label(have)} ({source_line(have)})")
        return
    ours, theirs = _operands(want), _operands(have)
    if len(ours) > len(theirs):
        return
    orders, operator = [theirs], operator_of(want)
    if operator is not None and operator.commutative and len(theirs) == 2:
        orders.append(theirs[::-1])
    for order in orders:
        yield from _match_all(list(zip(ours, order, strict=False)), bound | {want: have}, attempt)


def _match_all(pairs: list[tuple[Any, Any]], bound: Bound, attempt: _Attempt) -> Iterator[Bound]:
    if not pairs:
        yield bound
        return
    (want, have), *rest = pairs
    for result in _match(want, have, bound, attempt):
        yield from _match_all(rest, result, attempt)


def _operands(node: fx.Node) -> list[Any]:
    """Tensors and real-valued constants of a call; axes, shapes and flags do not matter to a pattern."""
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


def _along_chain(start: Any, adding: bool) -> Iterator[fx.Node]:
    """Values that ``start`` is a scaled, masked, cast, moved and (if ``adding``) shifted form of, nearest first."""
    queue, seen = [start], set[fx.Node]()
    while queue and len(seen) < _CHAIN_LIMIT:
        value = queue.pop(0)
        if not isinstance(value, fx.Node) or value in seen or value.op != "call_function":
            continue
        seen.add(value)
        yield value
        operator = operator_of(value)
        if operator is None:
            continue
        sums = operator.dependence is Dependence.TERMS and (adding or operator.category.within(MOVEMENT))
        if sums or operator.masks:
            queue.extend(nodes_in(value, operator.terms))
        elif operator.scales:
            queue.extend(nodes_in(value, operator.factors))


def _label(node: fx.Node) -> str:
    return str(packet(node.target)) if node.op == "call_function" else f"the {node.op} {node.name}"
