"""One thing to explain: a converted model, inputs and a target, and the passes that readers ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.capture.attributed import Attributed, entries_by_lookup
from fxlrp.capture.program import flatten, widened
from fxlrp.engine.conversion import Conversion, Prepared
from fxlrp.engine.explained import Explained
from fxlrp.engine.functions import Function, with_functions
from fxlrp.engine.graphs import Captured
from fxlrp.engine.targets import Handed, Target, call_target
from fxlrp.errors import CaptureError, SharedRelevanceWarning, warn
from fxlrp.graph.entries import Entries
from fxlrp.graph.nodes import module_path, run, tensor_value
from fxlrp.graph.operators import is_continuous
from fxlrp.planning.plan import Plan
from fxlrp.readout.inputs_at import Point, point_of, reference_point
from fxlrp.readout.rows import Ran, by_rows
from fxlrp.rewrite import Rewritten
from fxlrp.rules.primitives import ratio, received
from fxlrp.rules.rule import Message


@dataclass(frozen=True)
class Carried:
    """A value and the message that arrived at it, which is a gradient or relevance."""

    value: Tensor
    message: Tensor
    kind: Message

    @property
    def relevance(self) -> Tensor:
        """R = x g; half precision is widened first, as sums over hundreds of features follow."""
        message = widened(self.message)
        return message if self.kind is Message.RELEVANCE else received(widened(self.value), message)

    @property
    def gradient(self) -> Tensor:
        """g, from relevance as g = R / x (0 where x is 0)."""
        message = widened(self.message)
        return message if self.kind is Message.GRADIENT else ratio(message, widened(self.value))


@dataclass(frozen=True)
class Propagated:
    """What one forward and one backward pass gave: the output object, the explained scalars, what was watched
    (without the attributed values where it did not go back to them), the flat outputs of the graph, and how much
    relevance began per sample, whatever its sign (None where no pass went back).
    """

    outputs: Any
    explained: Tensor
    attributed: tuple[Carried, ...]
    taps: tuple[Carried, ...]
    flat: tuple[Any, ...] = ()
    begun: Tensor | None = None


class Task:
    """What is explained: ``prepared`` inputs of ``lrp``, and per sample the target (less a contrast); for what
    compares, the user's ``reference`` inputs. The ``tokenizer`` tells mask tokens.
    """

    def __init__(
        self,
        lrp: Conversion,
        prepared: Prepared,
        target: Target = None,
        contrast: Target = None,
        reference: Mapping[str, Any] | None = None,
        tokenizer: Any = None,
    ) -> None:
        self.lrp = lrp
        self.given: Mapping[str, Any] = prepared.given
        self.wanted = (target, contrast)
        self.chosen = reference
        self.tokenizer = tokenizer
        self.captured = prepared.captured
        self.explain: Explained | None = None
        self.tapped: dict[str, fx.Node] = {}
        self.functions = [each for each in self.wanted if callable(each) and not isinstance(each, Handed)]
        if self.functions:
            self.captured = self._with(self.functions)

    def _with(self, functions: Sequence[Function]) -> Captured:
        """The program with the callable targets in it; where one cannot be captured, without, and a warning says how
        much of the explained value the plain gradient through it loses.
        """
        program = self.captured.narrowest.program
        outputs: Any = program.graph.output_node().args[0]
        wanted = [each for each in outputs if isinstance(each, fx.Node)]
        values = run(program.graph, program.arguments(self.lrp.model, self.given), wanted)
        flat = _leaves([values.get(each, each) for each in outputs])
        with torch.enable_grad():
            scalars = [call_target(each, program.unpack(flat)) for each in functions]
        try:
            joined = with_functions(self.captured, functions, flat)
            self.lrp.check_random(joined.program)
            return joined
        except CaptureError as error:
            lost = max(_not_handed_on(scalar, flat) for scalar in scalars)
            warn(
                "The target function cannot be captured with the model, so the plain gradient is taken through it: "
                f"{lost:.0%} of the explained value (of the sample that loses most) leaks there, the ledger's 'target "
                "function'. Write it with torch operations alone, or put it into the model. The reason: "
                f"{error}",
            )
            return self.captured

    def tap(self, globs: Sequence[str]) -> None:
        """Ask for the relevance of the outputs of modules as well."""
        self.tapped = self.lrp.taps(self.captured, globs)

    @property
    def taps(self) -> tuple[fx.Node, ...]:
        """The nodes whose relevance the caller wants as well."""
        return tuple(self.tapped.values())

    @property
    def attributed(self) -> list[tuple[str, bool]]:
        """Name of each attributed value, and whether it is a look-up of ids."""
        return [(each.name, each.lookup) for each in self.captured.structure.attributed]

    def by_entry(self, each: Attributed, scores: Tensor) -> list[tuple[str, Tensor]]:
        """Scores of an attributed value by input name: of a look-up [..., features] those of the input's entries."""
        entries = self._entries.get(each.node)
        if entries is None or scores.shape[:-1] != entries.owned.shape:  # in place, or of what a module made of it
            return [(each.name, scores)]
        inputs = self.captured.program.inputs
        return [(inputs[str(node.target)], own) for node, own in entries.given_to(scores).items()]

    @cached_property
    def _entries(self) -> dict[fx.Node, Entries | None]:
        program = self.captured.program
        attributed = self.captured.structure.attributed
        found = entries_by_lookup(program, attributed, lambda: program.arguments(self.lrp.model, self.given))
        for node, entries in found.items():
            if entries is not None and entries.shared:
                warn(
                    f"What '{module_path(node) or node.name}' looks up is chosen by several ids together: its "
                    "relevance is shared among them evenly, as nothing tells more.",
                    SharedRelevanceWarning,
                )
        return found

    def nodes_of(self, name: str) -> list[fx.Node]:
        """The attributed values of one input."""
        return [each.node for each in self.captured.structure.attributed if each.name == name]

    def observe(self, taps: Sequence[fx.Node]) -> Propagated:
        """A forward pass alone: the values of ``taps``, whose messages are zero."""
        lrp, program = self.lrp.plain, self.captured.program
        _, rewritten = lrp.rewritten(self.captured, tuple(taps))
        with torch.no_grad():
            flat, _, tapped = lrp.run(rewritten, self.arguments(lrp, rewritten), self.given)
        carried = tuple(Carried(value, value.new_zeros(()).expand_as(value), Message.GRADIENT) for value in tapped)
        return Propagated(program.unpack(flat), self._explained_at(flat, lrp), (), carried, tuple(flat))

    def behind(self, taps: Sequence[fx.Node], node: fx.Node) -> Propagated | None:
        """A forward pass of the model as it is, recorded from ``node`` on: the values of ``taps``, of which ``node`` is
        the last, and its plain gradient; None where the explained scalars do not depend on it.
        """
        program = self.captured.program
        arguments = program.arguments(self.lrp.model, self.given)
        cut_off = {name: v.detach() if isinstance(v, Tensor) else v for name, v in arguments.items()}
        outputs: Any = program.graph.output_node().args[0]
        wanted = [*taps, *(each for each in outputs if isinstance(each, fx.Node))]

        def leaf(each: fx.Node, value: Any) -> Any:
            return value.detach().requires_grad_() if each is node else value

        values = run(program.graph, cut_off, wanted, leaf, recorded=True)
        found = tuple(values[each] if isinstance(each, fx.Node) else each for each in outputs)
        flat = _leaves(found)
        scalars, _ = self._explained(flat, self.lrp.plain)
        starts = {i: v for i, v in enumerate(flat) if isinstance(v, Tensor) and found[i].requires_grad}
        begun = (
            torch.autograd.grad([s.sum() for s in scalars], list(starts.values()), allow_unused=True) if starts else ()
        )
        reached = [(found[i], g) for i, g in zip(starts, begun, strict=True) if g is not None]
        ends, seeds = zip(*reached, strict=True) if reached else ((), ())
        gradient = torch.autograd.grad(ends, values[node], seeds, allow_unused=True)[0] if ends else None
        if gradient is None:
            return None
        messages = [*(values[tap].new_zeros(()).expand_as(values[tap]) for tap in taps[:-1]), gradient]
        carried = tuple(
            Carried(values[tap].detach(), message, Message.GRADIENT)
            for tap, message in zip(taps, messages, strict=True)
        )
        explained = sum(scalars, torch.zeros(())).detach()
        return Propagated(program.unpack(flat), explained, (), carried, flat)

    def _explained(
        self, flat: Sequence[Any], lrp: Conversion, outputs: Any = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The explained scalars and their seeds, of flat outputs and the object that they make, if there is one yet."""
        program = self.captured.program
        outputs = program.unpack(tuple(flat)) if outputs is None else outputs
        if self.explain is None:
            self.explain = Explained.of(self.lrp, self.given, *self.wanted, outputs, self.tokenizer)
        with torch.enable_grad():
            return self.explain(outputs, lrp.ruleset, self.computed(flat))

    def computed(self, flat: Sequence[Any]) -> Sequence[Tensor]:
        """The values of the callable targets at flat outputs: computed by the graph or, where it could not be followed,
        by the function itself, which takes what the model gives.
        """
        program, own = self.captured.program, self.captured.narrowest.program
        if program.functions or not self.functions:
            return flat[len(flat) - program.functions :]
        returned: Any = own.graph.output_node().args[0]
        types = [getattr(tensor_value(node), "dtype", None) if isinstance(node, fx.Node) else None for node in returned]
        given = [v if kind is None else v.to(kind) for v, kind in zip(flat, types, strict=True)]
        return [call_target(each, program.unpack(tuple(given))) for each in self.functions]

    def _explained_at(self, flat: Sequence[Any], lrp: Conversion) -> Tensor:
        """The explained scalars [batch] of flat outputs."""
        scalars, _ = self._explained(_leaves(flat), lrp)
        return sum(scalars, torch.zeros(())).detach()

    def explained_outputs(self, propagated: Propagated) -> list[fx.Node]:
        """The outputs of the graph that the explained scalars are computed from."""
        leaves = _leaves(propagated.flat)
        scalars, _ = self._explained(leaves, self.lrp.plain)
        nodes: Any = self.captured.program.graph.output_node().args[0]
        floats = [(node, v) for node, v in zip(nodes, leaves, strict=True) if isinstance(v, Tensor) and v.requires_grad]
        grads = torch.autograd.grad([s.sum() for s in scalars], [v for _, v in floats], allow_unused=True)
        return [node for (node, _), g in zip(floats, grads, strict=True) if g is not None]

    @cached_property
    def reference(self) -> Point:
        """What the inputs are compared with: the user's reference inputs, else zeros for every attributed value."""
        if self.chosen is None:
            return point_of(self.lrp, self.captured, self.given).zeros()
        return reference_point(self.lrp, self.captured, self.given, self.chosen)

    def arguments(self, lrp: Conversion, rewritten: Rewritten, at: Point | None = None) -> list[Any]:
        """The arguments of a rewritten module; ``at`` gives other values of what is attributed."""
        named: dict[str, Any] = {}
        leaves = self.leaves() if at is None else at.leaves()
        if at is not None:
            named |= {name: at.by_node[node].detach().requires_grad_() for name, node in rewritten.entered.items()}
        if rewritten.references:
            named |= self.reference.arguments(rewritten)
        return lrp.arguments(self.captured.program, rewritten, self.given if at is None else at.given, leaves, named)

    def forward(self, at: Point, taps: Sequence[fx.Node] = ()) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """A forward pass alone at other inputs: the explained scalars, the attributed values, those of ``taps``."""
        flat, values, tapped = self._entered(at, taps)
        explained = self._explained_at(flat, self.lrp)
        return explained, tuple(v.detach() for v in values), tuple(v.detach() for v in tapped)

    def outputs(self, at: Point) -> Any:
        """The model's output object at other inputs."""
        return self.captured.program.unpack(self._entered(at)[0])

    def _entered(self, at: Point, taps: Sequence[fx.Node] = ()) -> Any:
        rewritten = self.lrp.rewritten(self.captured, tuple(taps), entered=True)[1]
        with torch.no_grad():
            return self.lrp.run(rewritten, self.arguments(self.lrp, rewritten, at), at.given)

    def propagate(
        self,
        taps: Sequence[fx.Node] = (),
        lrp: Conversion | None = None,
        at: Point | None = None,
        inputs: bool = True,
    ) -> Propagated:
        """One forward and one backward pass, under another conversion of the model, or at other inputs, if given.
        Without ``inputs`` the pass goes back no further than to the ``taps``.
        """
        return self._passed(lrp or self.lrp, tuple(taps), at, inputs=inputs)

    def watched(self, module: Callable[[Rewritten], Rewritten]) -> Propagated:
        """The same for the rewritten module in a form in which its values and messages are seen."""
        kept = replace(self.lrp.passing, checkpoint=None)
        return Task._passed(self, self.lrp.running(kept), (), None, module=module)

    def _passed(
        self,
        lrp: Conversion,
        taps: tuple[fx.Node, ...],
        at: Point | None,
        inputs: bool = True,
        module: Callable[[Rewritten], Rewritten] | None = None,
    ) -> Propagated:
        plan, rewritten = lrp.rewritten(self.captured, taps, entered=at is not None)
        with torch.enable_grad():
            ran = by_rows(self, lrp, taps, at) if module is None else None
            if ran is None:
                rewritten = rewritten if module is None else module(rewritten)
                flat, values, tapped = lrp.run(rewritten, self.arguments(lrp, rewritten, at), self.given)
                outputs = self.captured.program.unpack(flat)
                ran = Ran(flat, outputs, values, tapped, *self._explained(flat, lrp, outputs))
            flat, values, tapped, scalars, seeds = ran.flat, ran.values, ran.tapped, ran.scalars, ran.seeds
            explained = sum(scalars, torch.zeros(()))
        amounts = [(s.detach() * seed).abs() for s, seed in zip(scalars, seeds, strict=True)]
        if self.explain is not None and self.explain.begins_at_zero(scalars, lrp.ruleset):
            returned = self._given_relevance(plan)
            if returned and not set(returned) <= set(taps):
                found = self.propagate((*taps, *returned), lrp, at, inputs)
                return replace(found, taps=found.taps[: len(taps)])
            if returned:
                scalars, seeds = [tapped[taps.index(node)] for node in returned], self._at_zero(flat, plan, lrp)
                amounts = [seed.abs().reshape(len(seed), -1).sum(1) for seed in seeds]
        values = values if inputs else ()
        kept = (*values, *tapped)
        wanted = [value for value in kept if value.requires_grad]  # a tapped constant has no message
        starts = [s for s in zip(scalars, seeds, strict=True) if s[0].requires_grad]
        messages: Sequence[Tensor | None] = (
            torch.autograd.grad([s for s, _ in starts], wanted, [seed for _, seed in starts], allow_unused=True)
            if starts and wanted
            else [None] * len(wanted)
        )
        carried = self.carried(plan, taps, kept, messages)
        begun, count = sum(amounts, torch.zeros(())), len(values)
        return Propagated(ran.outputs, explained.detach(), carried[:count], carried[count:], tuple(flat), begun)

    def _given_relevance(self, plan: Plan) -> list[fx.Node]:
        """The outputs at which relevance itself arrives."""
        outputs: Any = self.captured.program.graph.output_node().args[0]
        nodes = dict.fromkeys(each for each in outputs if isinstance(each, fx.Node) and each in plan.carrying)
        return [node for node in nodes if plan.takes(node) is Message.RELEVANCE]

    def _at_zero(self, flat: Sequence[Any], plan: Plan, lrp: Conversion) -> list[Tensor]:
        """The relevance of outputs y, y ds/dy R / s and, where s is exactly 0, R ds/dy."""
        outputs: Any = self.captured.program.graph.output_node().args[0]
        nodes, leaves = self._given_relevance(plan), _leaves(flat)
        scalars, seeds = self._explained(leaves, lrp)
        places = [leaves[outputs.index(node)] for node in nodes]
        shares = [torch.where(s == 0, 0.0, seed) for s, seed in zip(scalars, seeds, strict=True)]
        rest = [torch.where(s == 0, seed, 0.0) for s, seed in zip(scalars, seeds, strict=True)]
        first, second = (
            torch.autograd.grad(scalars, places, given, retain_graph=True, allow_unused=True)
            for given in (shares, rest)
        )
        return [
            torch.zeros_like(y) if a is None or b is None else y.detach() * a + b
            for y, a, b in zip(places, first, second, strict=True)
        ]

    @staticmethod
    def carried(
        plan: Plan, taps: Sequence[fx.Node], watched: Sequence[Tensor], messages: Sequence[Tensor | None]
    ) -> tuple[Carried, ...]:
        """Attributed and tapped values with their messages, which are given for those that can have one."""
        wanted = [value for value in watched if value.requires_grad]
        by_value = dict(zip(map(id, wanted), messages, strict=True))
        kinds = [plan.message] * (len(watched) - len(taps)) + [plan.takes(node) for node in taps]
        return tuple(
            Carried(value.detach(), torch.zeros_like(value) if message is None else message, kind)
            for value, message, kind in zip(watched, [by_value.get(id(v)) for v in watched], kinds, strict=True)
        )

    def leaves(self) -> dict[str, Tensor]:
        """The float inputs that are attributed, as leaves of a backward pass."""
        named = [e.name for e in self.captured.structure.attributed if not e.lookup]
        taken = self.captured.program.taken
        return {name: taken(self.values[name].detach().clone()).requires_grad_() for name in named}

    @cached_property
    def values(self) -> dict[str, Any]:
        """The leaves of the given inputs by name: what nested inputs hold, each by its path."""
        return flatten(self.given)

    @cached_property
    def main_input(self) -> str:
        """The input whose relevance is the answer: the model's own choice, else the first that is attributed."""
        return self.lrp.conventions.main_input((name for name, _ in self.attributed), self.values)


def _not_handed_on(scalar: Tensor, flat: Sequence[Any]) -> float:
    """The largest share of a sample's scalar that is not sum y ds/dy over the outputs y."""
    leaves = [v for v in flat if isinstance(v, Tensor) and v.requires_grad]
    grads = torch.autograd.grad(scalar.sum(), leaves, allow_unused=True)
    amounts = [(y * g).detach().flatten(1).sum(1) for y, g in zip(leaves, grads, strict=True) if g is not None]
    return float(ratio(scalar.detach() - sum(amounts, torch.zeros(())), scalar.detach()).abs().max())


def _leaves(flat: Sequence[Any]) -> tuple[Any, ...]:
    """Flat outputs cut off from the model, from which scalars can be computed as if they were its own."""
    return tuple(v.detach().requires_grad_(is_continuous(v)) if isinstance(v, Tensor) else v for v in flat)
