"""The rewriting itself: a plan becomes a new graph whose plain backward pass is the propagation of relevance.

Values stay equal. A rule stands at its node as a :class:`RuleCall`; wherever a value that carries relevance
feeds one that does not, the edge is detached, so nothing is saved or computed for branches that a rule cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import fx

from fxlrp.capture import torch_private as private
from fxlrp.capture.canonical import Fused
from fxlrp.graph.handles import Elsewhere
from fxlrp.graph.nodes import drop_unused
from fxlrp.graph.operators import is_float, is_random, operands_of, operator_of
from fxlrp.planning.plan import Decision, Plan
from fxlrp.rewrite import few_rows, kernels
from fxlrp.rewrite.blocks import in_blocks
from fxlrp.rewrite.call import RuleCall, SumCall, source_leaf
from fxlrp.rewrite.composite import site_of
from fxlrp.rewrite.fetching import fetching
from fxlrp.rewrite.linear_sums import Layers
from fxlrp.rewrite.memory import Kept, kept_by
from fxlrp.rewrite.parts import asked, attributed
from fxlrp.rewrite.stretches import in_stretches
from fxlrp.rules import find_rule
from fxlrp.rules.operation import IDENTITY
from fxlrp.rules.primitives import as_relevance
from fxlrp.rules.rule import Message
from fxlrp.rules.shares import ShareRule

#: What of a module runs again in the backward pass: nothing, its stretches, or whole blocks of it.
Form = Literal["whole", "stretches", "blocks"]


@dataclass(frozen=True)
class Source:
    """An additive constant: the node it feeds, the constant itself as a node of the canonical graph or a number, and
    the message that its leaf receives.
    """

    user: fx.Node
    value: fx.Node | float
    message: Message = Message.GRADIENT


@dataclass(frozen=True)
class Leak:
    """A rule that declares to keep some relevance: its node and the call that computes the amount."""

    node: fx.Node
    call: RuleCall | SumCall


@dataclass(frozen=True)
class Rewritten:
    """A module that returns the model's flat outputs, the attributed values, the tapped values and, for a
    ledger, the leaves.

    It takes weights, constants, inputs and the weights of attributed look-ups, by the names in ``arguments``. Arguments
    in ``entered`` stand for look-ups whose values are given, those in ``references`` for inputs and look-ups as they
    are on the reference input; both lead to the node of the canonical graph.
    ``fused`` operators that stand expanded in the module are known by the last of their nodes.
    A ledger graph also returns for each source its leaf and the values that take it in (an initial state: itself), for
    each leak the value and operands that its formula needs.
    """

    module: fx.GraphModule
    arguments: tuple[str, ...]
    lookups: tuple[str, ...]
    sources: tuple[Source, ...] = ()
    leaks: tuple[Leak, ...] = ()
    entered: Mapping[str, fx.Node] = field(default_factory=dict)
    references: Mapping[str, fx.Node] = field(default_factory=dict)
    fused: Mapping[fx.Node, Fused] = field(default_factory=dict)

    @cached_property
    def stretches(self) -> fx.GraphModule:
        """The module in stretches, of which the backward pass keeps no more than what enters them."""
        graph = self.module.graph
        made = in_stretches(graph, attributed(graph), asked(graph), self.fused)
        return self.module if made is graph else fx.GraphModule({}, made)

    @cached_property
    def blocks(self) -> fx.GraphModule:
        """The module in blocks of stretches, of which the backward pass keeps no more than what enters them."""
        return in_blocks(self.module, self.fused)

    @cached_property
    def _fetching(self) -> dict[Any, fx.GraphModule]:
        return {}

    def on(self, arguments: Sequence[Any], form: Form = "whole") -> fx.GraphModule:
        """The module for these arguments, among which may be handles of weights, as it is or in parts that run again in
        the backward pass. Between the passes no weight is kept that a handle brought in.
        """
        if not isinstance(self.module, fx.GraphModule):  # what runs node by node brings them in itself
            return self.module
        pairs = zip(self.arguments, arguments, strict=True)
        handles = tuple((name, value.ends) for name, value in pairs if isinstance(value, Elsewhere))
        if not handles:
            match form:
                case "whole":
                    return self.module
                case "stretches":
                    return self.stretches
                case "blocks":
                    return self.blocks
        if (form, handles) not in self._fetching:
            module = in_blocks(self.module, self.fused, lean=False) if form == "blocks" else self.module
            self._fetching[form, handles] = fetching(module, dict(handles))
        return self._fetching[form, handles]

    def kept(self, arguments: Sequence[Any]) -> Kept | None:
        """How much memory its values take on these arguments, of which it reads the shapes alone; None: unknown."""
        return kept_by(self.blocks, arguments)


def rewrite(
    plan: Plan, taps: Sequence[fx.Node] = (), *, ledger: bool = False, fused: bool = True, entered: bool = False
) -> Rewritten:
    """Apply ``plan``. ``taps`` are values to return as well; ``ledger`` adds leaves for every source and the
    operands of leaks, ``entered`` makes attributed look-ups arguments.

    With ``fused`` the fast kernels stand where they apply; without, and in a ledger, every rule stands in its
    definition.
    """
    return _Rewriting(plan, ledger, fused and not ledger, taps, entered).run(taps)


class _Rewriting:
    def __init__(self, plan: Plan, ledger: bool, fused: bool, taps: Sequence[fx.Node], entered: bool) -> None:
        self.plan = plan
        self.enter = entered
        self.ledger = ledger
        self.fused = fused
        self.regions: dict[fx.Node, Callable[..., Any]] = {}
        if fused:
            whole = {
                n: region for n, region in plan.program.fused.items() if {*region.members}.isdisjoint({*taps} - {n})
            }
            found = {node: kernels.choose(plan, region) for node, region in whole.items()}
            self.regions = {node: function for node, function in found.items() if function is not None}
        self.tail = set(few_rows.after_mixing(plan)) if fused else set()
        self.graph = fx.Graph()
        self.values: dict[fx.Node, fx.Node] = {}
        self.returned: dict[fx.Node, fx.Node] = {}
        self.detached: dict[fx.Node, fx.Node] = {}
        self.converted: dict[fx.Node, fx.Node] = {}
        self.prepared: dict[fx.Node, fx.Node] = {}
        # In the plain gradient a tapped value that depends on no input is a leaf, so that its gradient is known.
        self.watched = {n for n in taps if plan.plain and n not in plan.carrying and n.op == "call_function"}
        self.lookups = {e.node for e in plan.structure.attributed if e.lookup}
        self.attributed = {e.node for e in plan.structure.attributed}
        # Tables that the model computes (of an adapter, of rows scaled to a norm), or indexes, are no arguments.
        self.tables = {t for n in self.lookups if _looks_up(n) and (t := n.args[0]).op == "placeholder"}  # type: ignore[union-attr]
        self.lookup_weights: dict[Any, fx.Node] = {}
        self.entered: dict[fx.Node, fx.Node] = {}
        self.references: dict[fx.Node, fx.Node] = {}
        self.sources: list[Source] = []
        self.leaves: list[fx.Node] = []
        self.leaks: list[Leak] = []
        self.held: dict[tuple[fx.Node, int], Any] = {}
        self.layers = Layers(plan, self.graph, self.values, self.held, self._constant)
        self.operands: list[Any] = []

    def run(self, taps: Sequence[fx.Node]) -> Rewritten:
        nodes = list(self.plan.program.graph.nodes)
        for node in (n for n in nodes if n.op == "placeholder"):
            self.values[node] = self.returned[node] = self._state(node, self.graph.node_copy(node))
            if node in self.plan.forks and node in self.plan.carrying:
                self.values[node] = self._forked(node)
        for table in (n for n in nodes if n in self.tables):
            self.lookup_weights[table] = self.graph.placeholder(f"{table.target}_lookup")
        if self.enter:
            self.entered = {n: self.graph.placeholder(f"{n.name}_value") for n in nodes if n in self.lookups}
        if self.plan.compares:
            inputs = [n for n in nodes if n in self.lookups or (n.op == "placeholder" and n in self._dependent)]
            self.references = {n: self.graph.placeholder(f"{n.name}_reference") for n in inputs}
        given = dict(self.references)
        for node in (n for n in nodes if n.op == "call_function"):
            self.values[node] = self.returned[node] = self._emit(node)
            if self.references and node in self._dependent and node not in given:
                self.references[node] = self.graph.node_copy(node, self._on_reference)
            if node in self.watched:
                self.values[node] = self.returned[node] = self.graph.call_function(source_leaf, (self.values[node], 0))
            self.values[node].meta = dict(node.meta)
            if node in self.plan.forks and node in self.plan.carrying:
                self.values[node] = self._forked(node)
                self.values[node].meta = dict(node.meta)
        outputs: Any = fx.map_arg(self.plan.program.graph.output_node().args[0], self._returned)
        attributed = tuple(self.returned[e.node] for e in self.plan.structure.attributed)
        extra = (self._entering(), tuple(self.operands)) if self.ledger else ()
        self.graph.output((tuple(outputs), attributed, tuple(self.returned[n] for n in taps), *extra))
        drop_unused(self.graph)
        self.graph.lint()
        return Rewritten(
            module=fx.GraphModule({}, self.graph),
            arguments=tuple(str(n.target) for n in self.graph.nodes if n.op == "placeholder"),
            lookups=tuple(str(table.target) for table in self.lookup_weights),
            sources=tuple(self.sources),
            leaks=tuple(self.leaks),
            entered={str(made.target): node for node, made in self.entered.items()},
            references={str(made.target): node for node, made in given.items()},
            fused=self._expanded() if self.fused else {},
        )

    def _expanded(self) -> dict[fx.Node, Fused]:
        """The fused operators that no kernel stands for and that draw no random numbers, by the last of the nodes that
        they became; of these, those that depend on inputs.
        """
        here, found = {*self.graph.nodes}, {}
        for node, fused in self.plan.program.fused.items():
            if any(map(is_random, fused.members)):
                continue
            members = tuple(n for n in fused.members if n in self._dependent and self.values.get(n) in here)
            own = replace(fused, members=members)
            if node in members and node not in self.regions and {self.values.get(n) for n in own.arguments} <= here:
                found[self.values[node]] = own.moved(self.values)
        return found

    @property
    def _dependent(self) -> frozenset[fx.Node]:
        return self.plan.structure.dependent

    def _on_reference(self, value: Any) -> Any:
        """The value as it is on the reference input: the same where it depends on no input."""
        return self.references.get(value, self.values[value]) if isinstance(value, fx.Node) else value

    def _emit(self, node: fx.Node) -> fx.Node:
        if node in self.entered:
            return self.entered[node]
        if node in self.lookups and not (_looks_up(node) and node.args[0] in self.tables):
            return self.graph.call_function(source_leaf, (self.graph.node_copy(node, self._constant), 0))
        if node in self.lookups:
            args = (self.lookup_weights[node.args[0]], *(self._constant(a) for a in node.args[1:]))
            target: Any = node.target
            return self.graph.call_function(target, args, fx.map_arg(dict(node.kwargs), self._constant))
        if node in self.regions:
            return self._emit_fused(node)
        if node in self.plan.states:
            return self._state(node, self.graph.node_copy(node, self._constant))
        if node not in self.plan.carrying:
            copied = self.graph.node_copy(node, self._constant)
            # Of several values (split, topk) one may be cut off while others carry on: it is detached after it
            # was taken.
            taken = any(n in self.plan.carrying and not _is_tensor(n) for n in node.all_input_nodes)
            return self.graph.call_function(torch.detach, (copied,)) if taken and _is_tensor(node) else copied
        if node in self.plan.sums.roots:
            return self._sum(node)
        plain = self.plan.rule(node).plain and (self.plan.takes(node) is Message.GRADIENT or _copies(node))
        return self._plain(node) if plain and not self.ledger else self._apply(node, self.plan.decisions.get(node))

    def _plain(self, node: fx.Node) -> fx.Node:
        if node in self.tail:
            return self.graph.call_function(
                few_rows.few_rows_linear, fx.map_arg(node.args, lambda n: self._operand(n, node))
            )
        operands = operands_of(node)
        return self.graph.node_copy(node, lambda n: self._operand(n, node) if n in operands else self._constant(n))

    def _sum(self, node: fx.Node) -> fx.Node:
        """A sum of linear maps, whose rule stands on its value; what lies between that and its units is plain."""
        decision, z = self.plan.decisions[node], self._apply(node, None) if self.ledger else self._plain(node)
        assert isinstance(decision.rule, ShareRule)
        asked = (
            (self.layers.offset_of(node, z), *self.layers.units_of(node))
            if decision.rule.whole(decision.params)
            else ()
        )
        call = SumCall(decision.rule, decision.params, self.plan.takes(node))
        made = self.graph.call_function(call, (z, *asked))
        if self.ledger:
            self.leaks.append(Leak(node, call))
            self.operands.append((made, (z, *asked), ()))
        return made

    def _state(self, node: fx.Node, value: fx.Node) -> fx.Node:
        """An initial state, for a ledger as a leaf that reports what it receives."""
        if not self.ledger or node not in self.plan.states:
            return value
        leaf = self.graph.call_function(source_leaf, (value, value))
        self.sources.append(Source(node, node, self.plan.takes(node)))
        self.leaves.append(leaf)
        return leaf

    def _entering(self) -> tuple[tuple[fx.Node, tuple[fx.Node, ...]], ...]:
        """Each leaf with the values that take it in: of its operation and, where the sum asks for one, an offset."""
        pairs = zip(self.sources, self.leaves, strict=True)
        return tuple((leaf, (leaf,) if source.value is source.user else tuple(leaf.users)) for source, leaf in pairs)

    def _forked(self, node: fx.Node) -> fx.Node:
        """The value behind the rule for what arrives from all of its ways."""
        decision, kind = self.plan.forks[node], self.plan.takes(node)
        call = RuleCall(decision.rule, decision.params, IDENTITY, kind, kind, decision.post)
        made = self.graph.call_function(call, (self.values[node],))
        if self.ledger and (decision.rule.leak is not None or kind is Message.RELEVANCE):
            self.leaks.append(Leak(node, call))
            self.operands.append((made, (self.values[node],), ()))
        return made

    def _emit_fused(self, node: fx.Node) -> fx.Node:
        image = self._value if node in self.plan.carrying else self._constant
        args, kwargs = kernels.as_taken(self.plan.program.fused[node], image, self._prepare)
        return self.graph.call_function(self.regions[node], args, kwargs)

    def _prepare(self, prepare: Callable[..., Any], value: Any) -> Any:
        if not isinstance(value, fx.Node):
            return value
        if value not in self.prepared:
            self.prepared[value] = self.graph.call_function(prepare, (value,))
        return self.prepared[value]

    def _value(self, node: fx.Node) -> fx.Node:
        return self.values[node]

    def _operand(self, node: fx.Node, user: fx.Node) -> fx.Node:
        """The value as ``user`` takes it: where relevance must arrive, a user's gradient is converted on its edge."""
        return self.values[node] if self.plan.gives(user) is Message.RELEVANCE else self._returned(node)

    def _returned(self, node: fx.Node) -> fx.Node:
        """The value, to which a gradient message may be sent."""
        if node not in self.plan.relevant or node not in self.plan.carrying:
            return self.values[node]
        if node not in self.converted:
            self.converted[node] = self.graph.call_function(as_relevance, (self.values[node],))
            self.converted[node].meta = dict(node.meta)
        return self.converted[node]

    def _constant(self, node: Any) -> Any:
        """The value cut off from relevance."""
        if not isinstance(node, fx.Node):
            return node
        # An attributed input is a leaf of the backward pass even where every way from it to the output is cut.
        if (node not in self.plan.carrying and node not in self.attributed) or not _is_tensor(node):
            return self.values[node]
        if node not in self.detached:
            self.detached[node] = self.graph.call_function(torch.detach, (self.values[node],))
            self.detached[node].meta = dict(node.meta)
        return self.detached[node]

    def _apply(self, node: fx.Node, decision: Decision | None) -> fx.Node:
        """The operation with the backward pass of the rule decided, the plain one if there is none."""
        site = site_of(self.plan, node)
        gives = self.plan.gives(node)
        takes = gives if node in self.plan.sums.roots else self.plan.takes(node)
        call = RuleCall(find_rule("gradient"), {}, site.operation, takes, gives)
        if decision is not None:
            call = replace(call, rule=decision.rule, params=decision.params, post=decision.post)
        operands = [self._operand(o, node) if isinstance(o, fx.Node) else o for o in site.operands]
        extras = [self._constant(extra) for extra in site.extras]
        if self.ledger:
            for index in site.operation.sources:
                operands[index] = self.held[node, index] = self._leaf(node, site.operands[index], operands[0])
        target = site.operation.target
        if self.ledger and isinstance(target, private.OpOverload):  # a number that became a leaf needs another overload
            call = replace(call, operation=replace(site.operation, target=target.overloadpacket))
        others = map(self._on_reference, (*site.operands, *site.extras)) if call.rule.compares else ()
        made = self.graph.call_function(call, (*operands, *extras, *others))
        keeps = decision is not None and call.rule.leak is not None
        moves = call.rule.plain and _copies(node)
        if self.ledger and _is_tensor(node) and not moves and (keeps or gives is Message.RELEVANCE):
            self.leaks.append(Leak(node, call))
            self.operands.append((made, tuple(operands), tuple(extras)))
        return made

    def _leaf(self, user: fx.Node, value: Any, like: Any) -> Any:
        """The leaf that stands for an additive constant, unless it is none (an integer, zero, an infinite mask)."""
        if isinstance(value, fx.Node):
            if not is_float(value):
                return self.values[value]
        elif value is None or value == 0 or value in (float("inf"), float("-inf")):
            return value
        leaf = self.graph.call_function(
            source_leaf, (self.values[value] if isinstance(value, fx.Node) else value, like)
        )
        self.sources.append(Source(user, value, self.plan.gives(user)))
        self.leaves.append(leaf)
        return leaf


def _looks_up(node: fx.Node) -> bool:
    operator = operator_of(node)
    return operator is not None and operator.looks_up


def _copies(node: fx.Node) -> bool:
    operator = operator_of(node)
    return operator is not None and operator.copies


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)
