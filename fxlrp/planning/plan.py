"""The plan: which rule at which node, and which values carry relevance. ``print(plan)`` shows it as a table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import fx

from fxlrp.capture import Program
from fxlrp.errors import InputError, visible
from fxlrp.graph.linear_sums import AffineSums
from fxlrp.graph.nodes import module_path
from fxlrp.graph.operator_classes import PRODUCT, QUOTIENT, OperatorClass
from fxlrp.graph.operators import operator_of
from fxlrp.patterns.structure import Structure
from fxlrp.rules import Conserves, Post, Rule, find_rule
from fxlrp.rules.rule import Message
from fxlrp.spec.lines import Line, Scope
from fxlrp.spec.ruleset import Ruleset


@dataclass(frozen=True)
class Decision:
    """What a ruleset decides for a node.

    Attributes:
        rule: the rule.
        params: all its parameters by name, defaults included.
        category: the operator class of the node in this graph.
        label: what the ruleset's line matched: a pattern, a part of one, an operator class.
        note: what the plan's table says about it; that the ruleset's fallback took an operation without a rule.
        post: what becomes of the relevance that the rule hands on, in order.
        scope: what the rule stands for: the operation, a whole pattern, a whole sub-layer.
    """

    rule: Rule
    params: Mapping[str, Any]
    category: OperatorClass
    label: str
    note: str = ""
    post: tuple[Post, ...] = ()
    scope: Scope = Scope.OPERATION

    @staticmethod
    def of(entry: Line, category: OperatorClass, label: str) -> Decision:
        """What a line of a ruleset decides."""
        return Decision(*entry.bound, category, label, post=entry.post, scope=entry.scope)

    @property
    def message(self) -> Message:
        """What is handed on by itself: post-operations act on relevance."""
        return Message.RELEVANCE if self.post else self.rule.message

    @property
    def spelled(self) -> str:
        """The rule with those parameters that are not its defaults, and what follows it."""
        whole = "" if self.scope is Scope.OPERATION else f" of the whole {self.scope.value}"
        after = whole + "".join(f", {post}" for post in self.post)
        return self.rule.spelled(self.params) + after


@dataclass(frozen=True)
class PlanRow:
    """One line of the printed plan: all operations that were matched alike and got the same rule.

    Attributes:
        pattern: what the ruleset's line matched: a pattern, a part of one, an operator class.
        rule: the rule with those parameters that are not its defaults, and what follows it.
        count: how many operations of the graph they are.
        modules: the paths of their modules, numbers written as ``*``; ``(top)`` is the model itself.
        note: that the ruleset's fallback took an operation without a rule; usually empty.
        message: what the rule takes and gives: ``g`` a gradient, ``R`` relevance, or a step from one to the other;
            empty where it passes nothing on.
    """

    pattern: str
    rule: str
    count: int
    modules: str
    note: str = ""
    message: str = "g"


@dataclass(frozen=True, eq=False)
class Plan:
    """Rules by node, and the values that carry relevance. ``print(plan)`` shows it as a table.

    Attributes:
        program: the captured graph, with what its arguments and outputs are.
        structure: what was found in it: labels of nodes, patterns, near misses, residual sums, attributed values.
        ruleset: the ruleset that decided.
        decisions: the rule of each node that needs one; all others keep their plain gradient.
        carrying: the nodes whose values carry relevance, on a way from an attributed input to an output.
        relevant: those of them at which relevance R = x g arrives instead of a gradient g.
        forks: the rule for what arrives from both ways where a skip connection begins, by that node.
        sums: the sums of linear maps that a rule takes for one layer.
    """

    program: Program = field(repr=False)
    structure: Structure = field(repr=False)
    ruleset: Ruleset
    decisions: Mapping[fx.Node, Decision] = field(repr=False)
    carrying: frozenset[fx.Node] = field(repr=False)
    relevant: frozenset[fx.Node] = field(repr=False, default=frozenset())
    forks: Mapping[fx.Node, Decision] = field(repr=False, default_factory=dict)
    sums: AffineSums = field(repr=False, default=AffineSums())

    @property
    def states(self) -> frozenset[fx.Node]:
        """Initial states, which under a rule for sums of linear maps are units that receive relevance."""
        return self.structure.states & self.carrying

    def __deepcopy__(self, memo: Any) -> Plan:
        return self  # nothing of it changes

    def __reduce__(self) -> str:
        raise InputError(
            "A plan belongs to the graph that was captured in this process, and cannot be pickled: keep its text, "
            "str(plan), or pickle the converted model."
        )

    def takes(self, node: fx.Node) -> Message:
        """What arrives at the value of ``node``: its gradient message, or its relevance (``relevant``)."""
        return Message.RELEVANCE if node in self.relevant else Message.GRADIENT

    def rule(self, node: fx.Node) -> Rule:
        """The rule at a node; where none is needed, the plain gradient."""
        decision = self.decisions.get(node)
        return decision.rule if decision is not None else find_rule("gradient")

    def gives(self, node: fx.Node) -> Message:
        """What ``node`` hands to its operands: once relevance, always relevance, but inside a sum of linear maps."""
        if node in self.sums.roots:
            return Message.GRADIENT
        return Message.RELEVANCE if node in self.relevant else self.native(node)

    def native(self, node: fx.Node) -> Message:
        """What ``node`` hands on where a gradient arrives."""
        decision = self.decisions.get(node)
        return decision.message if decision is not None else Message.GRADIENT

    @cached_property
    def compares(self) -> bool:
        """Whether some rule needs the values on a reference input."""
        return any(decision.rule.compares for decision in self.decisions.values())

    @property
    def plain(self) -> bool:
        """Whether every rule is the plain gradient."""
        return all(decision.rule.plain for decision in (*self.decisions.values(), *self.forks.values()))

    @property
    def message(self) -> Message:
        """What arrives at the attributed values."""
        relevant = any(each.node in self.relevant for each in self.structure.attributed)
        return Message.RELEVANCE if relevant else Message.GRADIENT

    @cached_property
    def rows(self) -> tuple[PlanRow, ...]:
        """What was matched, the rule it got, how often and where, in the order of the graph."""
        groups: dict[tuple[str, str, str, str], list[str]] = {}
        for node in self.program.graph.nodes:
            if node in self.decisions:
                decision = self.decisions[node]
                key = (decision.label, decision.spelled, self._conversion(node), decision.note)
            elif node in self.relevant and node.op == "call_function" and self._divides(node):
                operator = operator_of(node)
                key = (str(operator.category) if operator else "", "gradient", self._conversion(node), "")
            else:
                continue
            groups.setdefault(key, []).append(module_path(node))
        for node, decision in self.forks.items():
            key = (decision.label, decision.spelled, self.takes(node).symbol, decision.note)
            groups.setdefault(key, []).append(module_path(node))
        return tuple(PlanRow(k[0], k[1], len(paths), compact(paths), k[3], k[2]) for k, paths in groups.items())

    def _divides(self, node: fx.Node) -> bool:
        """Whether relevance that arrives is turned back into a gradient here, for want of a rule that takes it."""
        rule, operator = self.rule(node), operator_of(node)
        if rule.plain:  # entries that only move, or are scaled, take their relevance along
            return operator is not None and not operator.copies and operator.category not in (PRODUCT, QUOTIENT)
        return rule.converts and rule.conserves is not Conserves.NOTHING

    def _conversion(self, node: fx.Node) -> str:
        """What the rule takes and gives, and how one message becomes the other."""
        if node not in self.carrying:
            return ""
        if self.takes(node) is Message.GRADIENT:
            return "g" if self.gives(node) is Message.GRADIENT else "R = y g"
        return "R, by g = R / y" if self._divides(node) else "R"

    @property
    def near_misses(self) -> tuple[str, ...]:
        """For every pattern that was found nowhere the best attempt, the most complete first: how much of it there
        was, where, what was expected and what was found.
        """
        return tuple(str(miss) for miss in self.structure.misses)

    @property
    def told_misses(self) -> tuple[str, ...]:
        """Those of them that the printed plan has: of patterns that the ruleset mentions, if they are the user's own,
        or if most of a packaged one was there and no other pattern stands in that place.
        """
        named = {match.partition(".")[0] for match in self.ruleset.mentions}
        told = (miss for miss in self.structure.misses if miss.pattern.name in named and miss.telling)
        return tuple(str(miss) for miss in told)

    def __str__(self) -> str:
        head = ("pattern", "rule", "message", "count", "modules", "note")
        table = [head, *((r.pattern, r.rule, r.message, str(r.count), r.modules, r.note) for r in self.rows)]
        widths = [max(len(line[i]) for line in table) for i in range(5)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, [*widths, 0], strict=True)).rstrip() for line in table
        ]
        lines.insert(1, "  ".join("-" * w for w in widths))
        return visible(
            "\n".join(
                [
                    f"{self.ruleset.name}: {self.ruleset.title}",
                    "",
                    *lines,
                    *("near miss: " + m for m in self.told_misses),
                ]
            )
        )


def compact(paths: list[str]) -> str:
    """Module paths as one glob per shape: ``layer.0.x`` and ``layer.1.x`` become ``layer.*.x``."""
    shapes = Counter(re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)", "*", path) or "(top)" for path in paths)
    names = [shape for shape, _ in shapes.most_common(3)]
    return ", ".join(names) + (f" and {len(shapes) - 3} more" if len(shapes) > 3 else "")
