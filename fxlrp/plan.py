"""The plan: which rule at which node, and which values carry relevance.

In: a captured program, a ruleset, the attributed values. Out: a frozen :class:`Plan`. One pass in the order of
the graph decides both at once: a rule that makes a value constant ends the life of what only it fed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import fx

from fxlrp.capture import Program
from fxlrp.errors import UncoveredOperatorError
from fxlrp.graph.live import Entrance, dependent
from fxlrp.graph.operators import Kind, Operator, is_float, nodes_in, operator_of, packet
from fxlrp.graph.residual import skip_connections
from fxlrp.graph.view import module_path, module_stack, source_line
from fxlrp.patterns import PATTERNS, Match, NearMiss, find
from fxlrp.rules import Conserves, Rule, find_rule
from fxlrp.rules.elementary import value_at_zero
from fxlrp.rules.operation import take_apart
from fxlrp.rulesets import Ruleset

#: Classes whose plain gradient keeps relevance by itself: linear maps, sums and homogeneous selections.
KEEPING = frozenset({"linear", "convolution", "mixing", "scale", "sum", "add", "movement", "selection"})


@dataclass(frozen=True)
class Decision:
    """The rule chosen for a node, its complete parameters, and what the ruleset matched."""

    rule: Rule
    params: Mapping[str, Any]
    category: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class PlanRow:
    """One line of the printed plan."""

    pattern: str
    rule: str
    count: int
    modules: str
    note: str = ""


@dataclass(frozen=True)
class Structure:
    """What a program is made of, whatever the ruleset: its matches, skip connections and input-dependent values."""

    matches: tuple[Match, ...]
    misses: tuple[NearMiss, ...]
    labels: Mapping[fx.Node, tuple[str, ...]]
    dependent: frozenset[fx.Node]
    entrances: tuple[Entrance, ...]

    @staticmethod
    def of(program: Program, entrances: tuple[Entrance, ...]) -> Structure:
        """Collect the labels of every node: parts of patterns first, then patterns, then skip connections."""
        inside = dependent(program.graph, program.inputs)
        # Spelled-out activations have been folded into single operators by now.
        structures = {name: group for name, group in PATTERNS.items() if name != "activation"}
        matches, misses = find(program.graph, structures, inside)
        labels: dict[fx.Node, tuple[str, ...]] = {}
        for match in matches:
            name = match.pattern.name
            for part, node in match.parts.items():
                labels[node] = (f"{name}.{part}", *labels.get(node, ()))
            for node in match.nodes:
                labels[node] = (*labels.get(node, ()), name)
        for node in skip_connections(program.graph, inside):
            labels[node] = (*labels.get(node, ()), "residual")
        return Structure(tuple(matches), tuple(misses), labels, inside, entrances)


@dataclass(frozen=True)
class Plan:
    """Rules by node, and the values that carry relevance. ``print(plan)`` shows it as a table."""

    program: Program = field(repr=False)
    structure: Structure = field(repr=False)
    ruleset: Ruleset
    decisions: Mapping[fx.Node, Decision] = field(repr=False)
    carrying: frozenset[fx.Node] = field(repr=False)

    @cached_property
    def rows(self) -> tuple[PlanRow, ...]:
        """What was matched, the rule it got, how often and where, in the order of the graph."""
        groups: dict[tuple[str, str, str], list[str]] = {}
        for node, decision in self.decisions.items():
            shown = {k: v for k, v in decision.params.items() if v != decision.rule.parameters[k].default}
            options = ", ".join(f"{k}={v}" for k, v in shown.items())
            rule = decision.rule.name + (f"({options})" if options else "")
            groups.setdefault((decision.label, rule, decision.note), []).append(module_path(node))
        return tuple(PlanRow(k[0], k[1], len(paths), compact(paths), k[2]) for k, paths in groups.items())

    @property
    def near_misses(self) -> tuple[str, ...]:
        """Patterns found nowhere, and where the best attempt failed."""
        return tuple(str(miss) for miss in self.structure.misses)

    def __str__(self) -> str:
        head = ("pattern", "rule", "count", "modules", "note")
        table = [head, *((r.pattern, r.rule, str(r.count), r.modules, r.note) for r in self.rows)]
        widths = [max(len(line[i]) for line in table) for i in range(4)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, [*widths, 0], strict=True)).rstrip() for line in table
        ]
        lines.insert(1, "  ".join("-" * w for w in widths))
        return "\n".join(
            [
                f"{self.ruleset.name}: {self.ruleset.title}",
                "",
                *lines,
                *("near miss: " + m for m in self.near_misses),
            ]
        )


def compact(paths: list[str]) -> str:
    """Module paths as one glob per shape: ``layer.0.x`` and ``layer.1.x`` become ``layer.*.x``."""
    shapes = Counter(re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)", "*", path) or "(top)" for path in paths)
    names = [shape for shape, _ in shapes.most_common(3)]
    return ", ".join(names) + (f" and {len(shapes) - 3} more" if len(shapes) > 3 else "")


def make_plan(program: Program, structure: Structure, ruleset: Ruleset, strict: bool = True) -> Plan:
    """Choose a rule for every operation that needs one.

    Raises :class:`UncoveredOperatorError` for a live operation that does not keep relevance by itself and that
    no rule covers; with ``strict=False`` the ruleset's fallback takes it and the plan says so.
    """
    decisions: dict[fx.Node, Decision] = {}
    refused: dict[fx.Node, UncoveredOperatorError] = {}
    carrying: set[fx.Node] = {entrance.node for entrance in structure.entrances}
    for node in program.graph.nodes:
        if node in carrying or node.op != "call_function" or not is_float(node):
            continue
        operator = operator_of(node)
        feeding = node.all_input_nodes if operator is None else nodes_in(node, operator.factors + operator.terms)
        if not any(n in carrying for n in feeding) or (operator is not None and operator.kind is Kind.CONSTANT):
            continue  # nothing arrives, or only as a condition or an index
        try:
            decision = _decide(node, operator, carrying, ruleset, structure, strict)
        except UncoveredOperatorError as error:
            decision, refused[node] = None, error
        if decision is not None:
            decisions[node] = decision
        if decision is None or decision.rule.conserves is not Conserves.NOTHING:
            carrying.add(node)
    useful = _useful(program.graph, carrying)
    for node, refusal in refused.items():
        if node in useful:
            raise refusal
    kept = {node: decision for node, decision in decisions.items() if node in useful or node not in carrying}
    return Plan(program, structure, ruleset, kept, frozenset(carrying & useful))


def _useful(graph: fx.Graph, carrying: set[fx.Node]) -> set[fx.Node]:
    """The carrying values from which a path of carrying values leads to the output."""
    useful = {node for node in graph.output_node().all_input_nodes if node in carrying}
    for node in reversed(graph.nodes):
        operator = operator_of(node)
        if node in useful and node.op == "call_function":
            feeding = node.all_input_nodes if operator is None else nodes_in(node, operator.factors + operator.terms)
            useful.update(n for n in feeding if n in carrying)
    return useful


def classify(node: fx.Node, operator: Operator, carrying: set[fx.Node], inside: frozenset[fx.Node]) -> str:
    """The operator class of a node, given which of its arguments carry relevance."""
    if operator.kind is Kind.FACTORS:
        factors = nodes_in(node, operator.factors)
        if sum(n in carrying for n in factors) > 1:
            return "product"
        if operator.category == "product":
            return "scale"
        if any(n in inside and n not in carrying for n in factors):
            return "mixing"
        return "convolution" if operator.category == "convolution" else "linear"
    if operator.kind is Kind.QUOTIENT:
        numerator = any(n in carrying for n in nodes_in(node, operator.factors[:1]))
        denominator = any(n in carrying for n in nodes_in(node, operator.factors[1:]))
        return "scale" if not denominator else "quotient" if numerator else "singular"
    if operator.kind is Kind.ACTIVATION:
        site = take_apart(node, carrying.__contains__)
        if site.extras or any(isinstance(a, fx.Node) for a in [*node.args[1:], *node.kwargs.values()]):
            return "general"  # the exponent of a power is itself a value
        at_zero = value_at_zero(site.operation)
        return "activation" if abs(at_zero) < float("inf") else "singular"
    return operator.category


def _decide(
    node: fx.Node,
    operator: Operator | None,
    carrying: set[fx.Node],
    ruleset: Ruleset,
    structure: Structure,
    strict: bool,
) -> Decision | None:
    if operator is None:
        return _uncovered(node, "unknown operator", ruleset, structure, strict)
    category = classify(node, operator, carrying, structure.dependent)
    labels = (*structure.labels.get(node, ()), category, "any")
    if not ruleset.mentions.isdisjoint(labels):
        entry = ruleset.choose(labels, module_stack(node), category)
        if entry is not None:
            rule, params = entry.bound
            if rule.name == "gradient" and category in KEEPING:
                return None
            return Decision(rule, params, category, entry.match if entry.match != "any" else category)
    if ruleset.bias == "distribute" and category in ("linear", "convolution"):
        rule = find_rule("distribute")
        return Decision(rule, rule.bind({}), category, category)
    if category in KEEPING:
        return None
    return _uncovered(node, category, ruleset, structure, strict)


def _uncovered(node: fx.Node, category: str, ruleset: Ruleset, structure: Structure, strict: bool) -> Decision:
    if not strict and operator_of(node) is not None:
        rule = find_rule(ruleset.fallback)
        return Decision(rule, rule.bind({}), category, category, note="fallback: no rule of the ruleset covers it")
    place = module_path(node) or "the top level"
    nearest_rule = next((e for e in ruleset.rules if e.match.split(".")[0] == category), None)
    hint = f" Its nearest rule is '{nearest_rule.rule}' for '{nearest_rule.match}'." if nearest_rule else ""
    misses = "".join(f"\n  {miss}" for miss in structure.misses[:2])
    remedy = (
        f"Add a rule for '{category}' to the ruleset (for example "
        f"ruleset('{ruleset.name}').override({category}='gradient')), or convert with strict=False."
        if operator_of(node) is not None
        else "fxlrp does not know this operator: tell it with fxlrp.graph.operators.register(operator, Operator(kind, "
        "category, slots))."
    )
    raise UncoveredOperatorError(
        f"No rule of '{ruleset.name}' covers {packet(node.target)} ({category}) in module '{place}' "
        f"({source_line(node) or 'no source line'}).{hint}\n{remedy}{misses}"
    )
