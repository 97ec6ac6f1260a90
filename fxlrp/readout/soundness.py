"""Whether an answer is one: finite, not all held on its way, not blown up. What is wrong is said with its place.

In: a task and what was read out of it. An answer costs a look at its few numbers; only where something is wrong the
graph runs once more, value by value and message by message.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.capture.program import flatten, widened
from fxlrp.engine.ledger import Ledger
from fxlrp.errors import NotFiniteError, RelevanceWarning, warn
from fxlrp.graph.handles import fetched
from fxlrp.graph.nodes import ancestors, module_path, source_line, tensor_value
from fxlrp.planning.plan import Plan
from fxlrp.readout.passes import Propagated, Task
from fxlrp.rewrite import Rewritten
from fxlrp.rewrite.call import RuleCall, SumCall
from fxlrp.rules import Conserves
from fxlrp.spec.readings import DifferenceReading, FeatureReading

#: How many times the explained value the largest relevance may be before a warning says so.
BLOWN_UP = 1000.0
#: How many times its size rounding may be: three times is five times what was met over all rulesets and families.
ROUNDINGS = 3.0
#: How many eps of what it is the sum of a sum may be and yet be rounding: an error of a fraction of it, after a pass.
CANCELLED = 100.0
#: The relative error at which half of the digits of float32 are right, in which models of any type may compute a part.
HALF_THE_DIGITS = torch.finfo(torch.float32).eps ** 0.5
#: The eps of float32, the coarsest type that anything is computed in.
EPS = torch.finfo(torch.float32).eps


def check(task: Task, propagated: Propagated, answers: Mapping[str, Tensor]) -> None:
    """Raise :class:`NotFiniteError` for NaN and infinities; warn where all of a sample's relevance is zero though what
    is explained is not, and where the largest relevance is more than 1,000 times what is explained.

    answers: relevance by input, samples along the first axis.
    """
    explained = propagated.explained
    values = [value.detach() for value in answers.values()]
    if not all(_is_finite(value) for value in (explained, *values)):
        raise NotFiniteError(_not_finite(task, explained))
    several = [value for value in values if value.ndim and value.numel()]
    by_sample = [value.reshape(len(value), -1) for value in several if len(value) == len(explained)]
    largest = [value.abs().amax(1) for value in by_sample]
    if not largest:
        return
    size = explained.abs()
    most = torch.stack([each.to(size) for each in largest]).amax(0)
    if bool(((most == 0) & (size > 0)).any()):
        warn(_all_held(task), RelevanceWarning)
    reading = task.lrp.ruleset.readout
    if not isinstance(reading, FeatureReading) or reading.reduce != "sum" or _reads_gradients(reading):
        return
    if isinstance(reading, DifferenceReading) and reading.kind == "difference":
        _check_completeness(task, propagated, by_sample)
    begun = size if propagated.begun is None or not reading.accounts else propagated.begun
    times = torch.where(begun > 0, most / begun, 0.0)
    if bool((times > BLOWN_UP).any()):
        warn(_blown_up(task, float(times.max())), RelevanceWarning)


def check_sums(task: Task, features: Tensor, summed: Tensor) -> None:
    """Warn where scores of features [..., features] cancel in their sums to what rounding leaves, in every token."""
    size = float(features.detach().abs().sum(-1).max()) if features.numel() else 0.0
    left = float(summed.detach().abs().max()) if size else 0.0
    if 0 < left < CANCELLED * EPS * size and left < CANCELLED * _coarsest(task) * size:
        warn(
            f"The scores under '{task.lrp.ruleset.name}' are rounding alone: those of a token's features, which are up "
            f"to {size:.2g} together, cancel to {left:.2g} in their sum, as behind a norm. Read their length, "
            "override(readout={'reduce': 'norm'}), or take another ruleset.",
            RelevanceWarning,
        )


def check_ledger(task: Task, ledger: Ledger) -> None:
    """Warn where what is entered in a ledger is not what is explained.

    Rounding moves eps sum_i |R_i| of the relevance of each value, independently: over all values the root of the sum of
    squares. With |R| as large as the entries alone that is eps sqrt(values) of their sizes; only a gap above that is
    compared with what the sizes of |R| allow. A gap above half of float32's digits is told in any case.
    """
    gap, name = ledger.gap.abs(), task.lrp.ruleset.name
    size = torch.stack([entry.amount.abs() for entry in ledger.entries]).sum(0) + ledger.explained.abs()
    values = _carrying(task)
    above = gap > ROUNDINGS * torch.finfo(_computed_in(task.lrp.dtype)).eps * (len(values) + 1) ** 0.5 * size
    if not bool(above.any()):
        return
    rounding = ROUNDINGS * _rounding(task, values)
    if bool((above & (gap > rounding)).any()):
        warn(
            f"The ledger under '{name}' does not close: {float(gap.max()):.3g} of what is explained is in no entry, "
            f"and rounding accounts for {rounding:.2g}. A rule of it keeps relevance that it does not declare.",
            RelevanceWarning,
        )
    elif bool((gap > HALF_THE_DIGITS * size).any()):
        warn(
            f"The ledger under '{name}' does not close: {float(gap.max()):.3g} of what is explained is in no entry, "
            f"which rounding may account for ({rounding:.2g}), as denominators nearly cancel: explain in float64.",
            RelevanceWarning,
        )


def _carrying(task: Task) -> tuple[fx.Node, ...]:
    """The values of the graph that relevance arrives at."""
    plan, _ = task.lrp.rewritten(task.captured)
    nodes = task.captured.program.graph.nodes
    return tuple(n for n in nodes if n in plan.carrying and n.op == "call_function" and tensor_value(n) is not None)


def _rounding(task: Task, values: tuple[fx.Node, ...]) -> float:
    """The root of sum (eps sum_i |R_i|)^2 over these values and what is attributed, with eps of the type of each."""
    found = task.propagate(values)
    moved = (_unit(c.value) * float(c.relevance.abs().double().sum()) for c in found.taps + found.attributed)
    return math.hypot(*moved)


def _unit(value: Tensor) -> float:
    """The relative error of a product of this type; accelerators may take those of float32 with TF32's ten bits."""
    dtype = _computed_in(value.dtype)
    return 2.0**-10 if dtype is torch.float32 and value.device.type != "cpu" else torch.finfo(dtype).eps


def _coarsest(task: Task) -> float:
    """The eps of the coarsest type that any value of the graph is computed in."""
    types = (value.dtype for node in _carrying(task) if (value := tensor_value(node)) is not None)
    return max((torch.finfo(_computed_in(dtype)).eps for dtype in types), default=EPS)


def _computed_in(dtype: torch.dtype) -> torch.dtype:
    return widened(torch.empty((), dtype=dtype)).dtype


def _check_completeness(task: Task, propagated: Propagated, values: list[Tensor]) -> None:
    """Warn where rules that hand differences back leave a part of the difference of the outputs to nobody."""
    explained, begun = propagated.explained, propagated.begun
    if begun is None or not any(line.bound[0].compares for line in task.lrp.ruleset.rules):
        return
    given = torch.stack([value.sum(1).double() for value in values]).sum(0)
    size = torch.stack([value.abs().sum(1).double() for value in values]).sum(0) + explained.abs()
    missing = (explained.double() - given).abs()
    half = _coarsest(task) ** 0.5  # of the digits
    if bool((missing > 10 * half * (size + 100 * half * begun)).any()):
        warn(
            f"The contributions under '{task.lrp.ruleset.name}' do not add up to f(x) - f(x_ref): "
            f"{float(missing.max()):.3g} of it goes to no input. Inputs that are not explained, masks or choices by "
            "value differ on the reference. Take a reference (reference=) that shares them.",
            RelevanceWarning,
        )


def _is_finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())


def _reads_gradients(reading: FeatureReading) -> bool:
    return getattr(reading, "score", "relevance") == "gradient"


def _blown_up(task: Task, times: float) -> str:
    remedy = (
        "Take another reference (reference=), one that is no edge of what the model knows."
        if task.lrp.ruleset.compares
        else "Denominators of its rules nearly cancel: raise their stabiliser, as in "
        f"ruleset('{task.lrp.ruleset.name}').override(epsilon=1e-3), or take another ruleset."
    )
    return (
        f"The largest relevance under '{task.lrp.ruleset.name}' is {times:,.3g} times the explained value: relevance "
        f"of both signs that cancels, in which rounding is large. {remedy}"
    )


# --- where it went wrong ----------------------------------------------------------------------------------------


@dataclass
class _Watch:
    """What the values of one run were, node by node in their order, and the messages in the order they came back."""

    values: dict[fx.Node, Tensor] = field(default_factory=dict)
    messages: dict[fx.Node, Tensor] = field(default_factory=dict)

    def module(self, rewritten: Rewritten) -> Rewritten:
        """The same module, watched."""
        watch = self

        class Watching(fx.Interpreter):
            def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
                return fetched(super().placeholder(target, args, kwargs))

            def run_node(self, n: fx.Node) -> Any:
                value = super().run_node(n)
                if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
                    watch.values[n] = value.detach()
                    if value.requires_grad:
                        value.register_hook(lambda message: watch.arrived(n, message))
                return value

        interpreter: Any = Watching(rewritten.module)
        return replace(rewritten, module=interpreter.run)

    def arrived(self, node: fx.Node, message: Tensor | None) -> None:
        """Keep a message, if there is one; one that comes again is the sum by then."""
        if message is not None:
            self.messages[node] = message.detach()


def _watched(task: Task) -> tuple[Plan, _Watch]:
    """One pass with everything watched."""
    watch = _Watch()
    task.watched(watch.module)
    return task.lrp.rewritten(task.captured)[0], watch


def _not_finite(task: Task, explained: Tensor) -> str:
    """Where the first number that is none appears, and what to do about it."""
    _, watch = _watched(task)
    what = "What is explained" if not _is_finite(explained) else f"Relevance under '{task.lrp.ruleset.name}'"
    found = _first_value(watch) or _first_message(watch)
    if found is None:
        return (
            f"{what} is not finite, in one of the passes at other inputs that its reading makes. Look at the range of "
            "the inputs, or take a ruleset that reads one pass."
        )
    kind, node, remedy = found
    return f"{what} is not finite: {kind} {_place(node)}. {_extremes(task)}{remedy}"


def _extremes(task: Task) -> str:
    """A sentence about inputs that are infinite, or so large that their products are."""
    for name, value in flatten(task.given).items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            largest = float(value.abs().max())
            if largest > torch.finfo(torch.float32).max ** 0.5:
                return f"Input '{name}' holds {largest:.3g}: scale or clean it first. "
    return ""


def _first_value(watch: _Watch) -> tuple[str, fx.Node, str] | None:
    """The first NaN among the values, else the first infinity that is made of finite values and no mask's."""
    remedy = "The model itself computes it: look at its weights and inputs there."
    for node, value in watch.values.items():
        if bool(value.isnan().any()):
            return "NaN first appears in", node, remedy
    for node, value in watch.values.items():
        inputs = [watch.values[n] for n in node.all_input_nodes if n in watch.values]
        made = node.op == "call_function" and inputs and all(map(_is_finite, inputs))
        if made and value.requires_grad is False and bool((value == float("inf")).any()):
            return "an infinity first appears in", node, remedy
    return None


def _first_message(watch: _Watch) -> tuple[str, fx.Node, str] | None:
    """The operation that makes the first message that is not finite."""
    for node, message in watch.messages.items():
        if not _is_finite(message):
            users = [user for user in node.users if user in watch.messages] or list(node.users) or [node]
            made = next((user for user in users if _is_finite(watch.messages.get(user, message[:0]))), users[0])
            remedy = "Stabilise that rule (override(epsilon=1e-6)), take another rule for it, or explain in float64."
            return "its messages first are not in", made, remedy
    return None


def _place(node: fx.Node) -> str:
    target: Any = node.target
    rule = f" under rule '{target.rule.name}'" if isinstance(target, (RuleCall, SumCall)) else ""
    operation = target.operation.target if isinstance(target, RuleCall) else target
    name = getattr(operation, "__name__", str(operation)) if not isinstance(operation, str) else operation
    return f"'{name}'{rule} in {_where(node)}"


def _all_held(task: Task) -> str:
    """Which rules hold all relevance."""
    plan, watch = _watched(task)
    held = list(dict.fromkeys(f"rule '{rule}' in {where}" for rule, where in _holders(plan, watch)))
    shown = ", ".join(held[:3]) + (f" and {len(held) - 3} more" if len(held) > 3 else "")
    by = f"It is held by {shown}." if held else "No message reaches them from what is explained."
    return (
        f"All relevance under '{task.lrp.ruleset.name}' is zero though what is explained is not. {by} Give these "
        "operations another rule with override, explain a value before them, or take another ruleset."
    )


def _holders(plan: Plan, watch: _Watch) -> Iterator[tuple[str, str]]:
    """The operations at which messages end: constants that nothing passes, and rules that hand on zeros."""
    held = {n: d for n, d in plan.decisions.items() if d.rule.conserves is Conserves.NOTHING}
    for output in plan.program.graph.output_node().all_input_nodes:
        for node in ancestors(output, sources=lambda n: () if n in held else n.all_input_nodes):
            if node in held and output not in plan.carrying:
                yield held[node].rule.name, _where(node)
    for node, message in watch.messages.items():
        given = [watch.messages[n] for n in node.all_input_nodes if n in watch.messages]
        if node.op == "call_function" and _any(message) and not any(map(_any, given)):
            rule = getattr(getattr(node.target, "rule", None), "name", "gradient")
            yield rule, _where(node)


def _any(message: Tensor) -> bool:
    return bool((message != 0).any())


def _where(node: fx.Node) -> str:
    line = source_line(node)
    return f"module '{module_path(node) or 'the top level'}'" + (f" ({line})" if line else "")
