"""Finds patterns in a canonical graph: anchored at their root, outputs first, linear in the graph.

In: a graph, and the graphs of patterns (:class:`Form`). Out: :class:`Match` values (which node is which part) and, for
each pattern that matched nowhere, its best attempt and what was wrong with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from torch import fx

from fxlrp.errors import PatternError, visible
from fxlrp.graph.axes import (
    Layout,
)
from fxlrp.graph.nodes import module_path, source_line, tensor_value
from fxlrp.graph.operators import is_movement, packet
from fxlrp.patterns.attempt import Attempt, Bound
from fxlrp.patterns.language import EITHER, MARKERS, PART, Pattern


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
        """Whether a reader should hear of it unasked: a pattern of their own, or most of one that is nowhere else (and
        whose check has not told it from this).
        """
        nearly = self.share >= 0.7 and not self.covered and self.pattern.check is None
        return not self.pattern.packaged or nearly

    def __str__(self) -> str:
        if self.root is None:
            return visible(f"{self.pattern.spelled}: {self.reason}")
        place = module_path(self.root) or "the top level"
        line = source_line(self.root)
        return visible(
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
    best: dict[Form, tuple[Attempt, fx.Node]] = {}
    for node in reversed(graph.nodes):
        for form in anchored.get(packet(node.target), ()):
            attempt = Attempt()
            match = _tried(form, node, inside, attempt)
            if match is not None:
                matches.append(match)
            elif form not in best or attempt.depth > best[form][0].depth:
                best[form] = attempt, node
    found = {match.pattern for match in matches}
    covered = frozenset[fx.Node]().union(*(match.nodes for match in matches))
    misses = [_miss(form, best.get(form), covered) for form in forms if form.pattern not in found]
    return matches, sorted(misses, key=lambda miss: -miss.share)


def _tried(form: Form, node: fx.Node, inside: frozenset[fx.Node], attempt: Attempt) -> Match | None:
    """The first match of a pattern at a root that has the inputs it must have and passes its check."""
    for bound in attempt.match(form.root, node, {}, Bound()):
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


def _miss(form: Form, best: tuple[Attempt, fx.Node] | None, covered: frozenset[fx.Node]) -> NearMiss:
    if best is None:
        names = ", ".join(sorted(str(target) for target in form.anchors))
        return NearMiss(form.pattern, None, 0, form.size, f"no operator of the graph is its root ({names})")
    attempt, root = best
    return NearMiss(form.pattern, root, attempt.matched, form.size, attempt.reason(), root in covered)


def _as_match(form: Form, root: fx.Node, bound: Bound) -> Match:
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
