"""Deciding: from a captured program, its structure and a ruleset to a :class:`~fxlrp.planning.plan.Plan`.

One pass in the order of the graph decides at once which rule stands where and which values carry relevance: a rule
that makes a value constant ends the life of what only it fed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import replace

from torch import fx

from fxlrp.capture import Program
from fxlrp.errors import RulesetError, UncoveredOperatorError, nearest, warn
from fxlrp.graph.linear_sums import affine_sums
from fxlrp.graph.nodes import module_path, module_stack, source_line
from fxlrp.graph.operator_classes import (
    ACTIVATION,
    ADD,
    AFFINE,
    ANY,
    CLASSES,
    CONVOLUTION,
    DIVISION,
    DIVISOR,
    FORK,
    GENERAL,
    LINEAR,
    MATMUL,
    MIXING,
    PREDICTION,
    PRODUCT,
    QUOTIENT,
    SCALE,
    SHIFT,
    SINGULAR,
    SOFTMAX,
    OperatorClass,
)
from fxlrp.graph.operators import Dependence, Operator, is_float, nodes_in, operands_of, operator_of, packet
from fxlrp.graph.order import Ends
from fxlrp.graph.residual import unmoved
from fxlrp.graph.roles import divides, predicts
from fxlrp.patterns.structure import Structure
from fxlrp.planning.plan import Decision, Plan
from fxlrp.rules import Conserves, find_rule
from fxlrp.rules.elementary import value_at_zero
from fxlrp.rules.operation import take_apart
from fxlrp.rules.rule import Message
from fxlrp.rules.shares import ShareRule
from fxlrp.spec.lines import Scope, labels
from fxlrp.spec.ruleset import Ruleset

#: How the note on a rule begins that stands in for one that the ruleset lacks.
FALLBACK = "fallback"


def make_plan(program: Program, structure: Structure, ruleset: Ruleset, strict: bool = True) -> Plan:
    """Choose a rule for every operation that needs one.

    Raises :class:`UncoveredOperatorError` for a live operation that does not keep relevance by itself and that
    no rule covers; with ``strict=False`` the ruleset's fallback takes it, a warning and the plan say so. Raises
    :class:`RulesetError` for a ruleset older than a pattern that was replaced, if it names a part that is gone.
    """
    for name in sorted(ruleset.mentions - labels()):
        raise RulesetError(f"Ruleset '{ruleset.name}' names '{name}', which no longer exists.{nearest(name, labels())}")
    plan, refused = _draft(program, structure, ruleset, strict, Ends())
    if ruleset.positional:
        plan, refused = _draft(program, structure, ruleset, strict, _ends(plan))
    for refusal in refused:
        raise refusal
    if taken := {node: each for node, each in plan.decisions.items() if each.note.startswith(FALLBACK)}:
        places = sorted({f"{packet(node.target)} in '{module_path(node) or 'the top level'}'" for node in taken})
        warn(
            f"No rule of '{ruleset.name}' covers {', '.join(places)}: as strict=False asks, the fallback "
            f"'{ruleset.fallback}' takes it, which may not conserve relevance."
        )
    return replace(plan, relevant=_relevant(plan))


def _draft(
    program: Program, structure: Structure, ruleset: Ruleset, strict: bool, ends: Ends
) -> tuple[Plan, list[UncoveredOperatorError]]:
    """The plan without its messages, and what it leaves uncovered."""
    decisions: dict[fx.Node, Decision] = {}
    refused: dict[fx.Node, UncoveredOperatorError] = {}
    carrying: set[fx.Node] = {each.node for each in structure.attributed}
    if AFFINE.name in ruleset.mentions:
        carrying |= structure.states
    for node in program.graph.nodes:
        if node in carrying or node.op != "call_function" or not is_float(node):
            continue
        operator = operator_of(node)
        if not any(n in carrying for n in operands_of(node)) or (
            operator is not None and operator.dependence is Dependence.CONSTANT
        ):
            continue  # nothing arrives, or only as a condition or an index
        try:
            decision = _decide(node, operator, carrying, ruleset, structure, strict, ends)
        except UncoveredOperatorError as error:
            decision, refused[node] = None, error
        if decision is not None:
            decisions[node] = decision
        if decision is None or decision.rule.conserves is not Conserves.NOTHING:
            carrying.add(node)
    useful = _useful(program.graph, carrying)
    kept = {node: decision for node, decision in decisions.items() if node in useful or node not in carrying}
    plan = Plan(program, structure, ruleset, kept, frozenset(carrying & useful), forks=_forks(structure, ruleset))
    plan = joined(plan)
    return plan, [refusal for node, refusal in refused.items() if node in useful]


def _ends(plan: Plan) -> Ends:
    """The first and last operations of every class and part, along the ways that relevance takes under ``plan``."""
    kinds: dict[fx.Node, frozenset[str]] = {}
    for node in plan.program.graph.nodes:
        operator = operator_of(node)
        if node in plan.carrying and operator is not None:
            category = classify(node, operator, plan.carrying, plan.structure.dependent)
            alike = [each for each in CLASSES.values() if each.weighted] if category.weighted else category.lineage
            kinds[node] = frozenset((*plan.structure.labels.get(node, ()), *map(str, alike)))
    return Ends.of(kinds, operands_of)


def joined(plan: Plan) -> Plan:
    """The plan in which a rule for affine sums stands once on each, at its root."""
    groups = {
        node: (decision.rule.name, tuple(decision.params.items()))
        for node, decision in plan.decisions.items()
        if decision.label == AFFINE.name and isinstance(decision.rule, ShareRule)
    }
    if not groups:
        return plan
    watched = {each.node for each in plan.structure.attributed} | plan.structure.states
    apart = (
        watched | {*plan.forks} | {*plan.decisions} - {*groups} | {*plan.program.graph.output_node().all_input_nodes}
    )
    sums = affine_sums(plan.program.graph, plan.carrying, groups, apart)
    decisions = {node: decision for node, decision in plan.decisions.items() if node not in sums.inner}
    return replace(plan, decisions=decisions, sums=sums)


def _forks(structure: Structure, ruleset: Ruleset) -> dict[fx.Node, Decision]:
    """The rule, if any, for what arrives where a skip connection begins, from both of its ways."""
    chosen = {node: ruleset.choose((FORK.name,), module_stack(node), FORK) for node in structure.forks}
    return {node: Decision.of(entry, FORK, FORK.name) for node, entry in chosen.items() if entry is not None}


def _relevant(plan: Plan) -> frozenset[fx.Node]:
    """The values at which relevance arrives: some user hands on relevance, or the ruleset asks for it throughout.

    All attributed values get the same message, so that a caller knows what it holds.
    """
    everywhere = plan.ruleset.message == Message.RELEVANCE.value
    found: set[fx.Node] = set()
    inside: set[fx.Node] = set()  # of sums whose terms receive relevance: what lies in between takes gradients
    for node in reversed(plan.program.graph.nodes):
        if node not in plan.carrying:
            continue
        users = (user for user in node.users if user in plan.carrying and node in operands_of(user))
        if any(u in found or u in inside or plan.native(u) is Message.RELEVANCE for u in users):
            (inside if node in plan.sums.inner else found).add(node)
        elif everywhere and node not in plan.sums.inner:
            found.add(node)
    attributed = {each.node for each in plan.structure.attributed} & plan.carrying
    return frozenset(found | attributed if found & attributed else found)


def _useful(graph: fx.Graph, carrying: set[fx.Node]) -> set[fx.Node]:
    """The carrying values from which a path of carrying values leads to the output."""
    useful = {node for node in graph.output_node().all_input_nodes if node in carrying}
    for node in reversed(graph.nodes):
        if node in useful and node.op == "call_function":
            useful.update(n for n in operands_of(node) if n in carrying)
    return useful


def classify(node: fx.Node, operator: Operator, carrying: Set[fx.Node], inside: frozenset[fx.Node]) -> OperatorClass:
    """The operator class of a node, given which of its arguments carry relevance."""
    decide = DECIDED.get(operator.category)
    return operator.category if decide is None else decide(node, operator, carrying, inside)


def _by_factors(node: fx.Node, operator: Operator, carrying: Set[fx.Node], inside: frozenset[fx.Node]) -> OperatorClass:
    factors = nodes_in(node, operator.factors)
    if sum(n in carrying for n in factors) > 1:
        return DIVISION if operator.scales and any(_is_divisor(n, carrying, inside) for n in factors) else PRODUCT
    if operator.category == PRODUCT:
        return SCALE
    if any(n in inside and n not in carrying for n in factors):
        return MIXING
    return CONVOLUTION if operator.category == CONVOLUTION else LINEAR


def _by_place(node: fx.Node, operator: Operator, carrying: Set[fx.Node], inside: frozenset[fx.Node]) -> OperatorClass:
    numerator = any(n in carrying for n in nodes_in(node, operator.factors[:1]))
    denominator = any(n in carrying for n in nodes_in(node, operator.factors[1:]))
    return SCALE if not denominator else QUOTIENT if numerator else _singular(node, inside)


def _by_value(node: fx.Node, operator: Operator, carrying: Set[fx.Node], inside: frozenset[fx.Node]) -> OperatorClass:
    site = take_apart(node, carrying.__contains__)
    if site.extras or any(isinstance(a, fx.Node) for a in [*node.args[1:], *node.kwargs.values()]):
        return GENERAL  # the exponent of a power is itself a value
    return ACTIVATION if abs(value_at_zero(site.operation)) < float("inf") else _singular(node, inside)


def _singular(node: fx.Node, inside: frozenset[fx.Node]) -> OperatorClass:
    return DIVISOR if divides(node, inside) else SINGULAR


def _is_divisor(node: fx.Node, carrying: Set[fx.Node], inside: frozenset[fx.Node]) -> bool:
    """Whether a factor is a singular value, moved or not, that only divides."""
    source = unmoved(node) or node
    operator = operator_of(source)
    return operator is not None and classify(source, operator, carrying, inside) == DIVISOR


def _by_use(node: fx.Node, operator: Operator, carrying: Set[fx.Node], inside: frozenset[fx.Node]) -> OperatorClass:
    return PREDICTION if predicts(node, inside) else SOFTMAX


def _by_terms(node: fx.Node, operator: Operator, carrying: Set[fx.Node], inside: frozenset[fx.Node]) -> OperatorClass:
    return SHIFT if sum(n in carrying for n in nodes_in(node, operator.terms)) == 1 else ADD


#: Classes whose operations are of it, or of another, as their arguments carry relevance; any other class is what it is.
DECIDED: Mapping[OperatorClass, Callable[..., OperatorClass]] = {
    LINEAR: _by_factors,
    CONVOLUTION: _by_factors,
    MATMUL: _by_factors,
    PRODUCT: _by_factors,
    QUOTIENT: _by_place,
    ACTIVATION: _by_value,
    ADD: _by_terms,
    SOFTMAX: _by_use,
}


def _decide(
    node: fx.Node,
    operator: Operator | None,
    carrying: set[fx.Node],
    ruleset: Ruleset,
    structure: Structure,
    strict: bool,
    ends: Ends,
) -> Decision | None:
    if operator is None:
        return _uncovered(node, None, ruleset, structure, strict)
    category = classify(node, operator, carrying, structure.dependent)
    offered = (AFFINE,) if category.joins else ()
    labels = (*structure.labels.get(node, ()), *map(str, (*offered, *category.lineage, ANY)))
    if not ruleset.mentions.isdisjoint(labels):
        entry = ruleset.choose(labels, module_stack(node), category, ends.at(node))
        if entry is not None:
            decision = Decision.of(entry, category, entry.match if entry.match != ANY.name else category.name)
            plain = decision.rule.plain and not decision.post and decision.scope is Scope.OPERATION
            return None if plain and category.keeps else decision
    if ruleset.bias == "distribute" and category.weighted:
        rule = find_rule("distribute")
        return Decision(rule, rule.bind({}), category, category.name)
    if category.keeps:
        return None
    return _uncovered(node, category, ruleset, structure, strict)


def _uncovered(
    node: fx.Node, category: OperatorClass | None, ruleset: Ruleset, structure: Structure, strict: bool
) -> Decision:
    if not strict:
        rule, taken = find_rule(ruleset.fallback), category or GENERAL
        known = "no rule of the ruleset covers it" if category else "fxlrp does not know the operator"
        return Decision(rule, rule.bind({}), taken, taken.name, note=f"{FALLBACK}: {known}")
    place = module_path(node) or "the top level"
    nearest_rule = next((e for e in ruleset.rules if e.match.split(".")[0] == str(category)), None)
    hint = f" Its nearest rule is '{nearest_rule.rule}' for '{nearest_rule.match}'." if nearest_rule else ""
    misses = "".join(f"\n  near miss: {miss}" for miss in structure.misses if miss.telling)
    remedy = (
        f"Add a rule for '{category}' to the ruleset (for example "
        f"ruleset('{ruleset.name}').override({category}='gradient')), or convert with strict=False."
        if category is not None
        else "fxlrp does not know this operator: tell it with fxlrp.graph.operators.register(operator, Operator("
        "dependence, category, slots)), or convert with strict=False."
    )
    raise UncoveredOperatorError(
        f"No rule of '{ruleset.name}' covers {packet(node.target)} ({category or 'unknown operator'}) in module "
        f"'{place}' "
        f"({source_line(node) or 'no source line'}).{hint}\n{remedy}{misses}"
    )
