"""Scores of the explained rows alone: of a large vocabulary the others are computed for the caller, or not at all.

In: a task whose target is one entry [position, class] of the scores per sample. Out: what a pass of the whole module
gives, from the mixed value's explained rows: no message, and no rule, meets the scores of other positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx

from fxlrp.engine.conversion import Conversion
from fxlrp.engine.explained import Explained
from fxlrp.engine.graphs import Captured
from fxlrp.engine.outputs import Kind, Scored
from fxlrp.engine.targets import Target, last_position, logits_of, named
from fxlrp.errors import TargetError
from fxlrp.graph.nodes import ancestors
from fxlrp.graph.rowwise import last_mixed
from fxlrp.planning.plan import Plan
from fxlrp.readout.inputs_at import Point
from fxlrp.rewrite import Rewritten
from fxlrp.rewrite.head import Halves, halves

#: The number of classes from which on scores are made for explained rows alone.
MANY = 4096


class Asked(Protocol):
    """What is asked: a conversion, inputs as they were ``given`` and ``captured``, the ``wanted`` target and contrast;
    what they ``explain`` is kept here once it is known.
    """

    lrp: Conversion
    given: Mapping[str, Any]
    captured: Captured
    wanted: tuple[Target, Target]
    tokenizer: Any
    explain: Explained | None

    def arguments(self, lrp: Conversion, rewritten: Rewritten, at: Point | None = None) -> list[Any]:
        """The arguments of a rewritten module."""
        ...


@dataclass(frozen=True)
class Ran:
    """What a forward pass gave: flat outputs and the object that they make, attributed and tapped values, the explained
    scalars and their seeds.
    """

    flat: tuple[Any, ...]
    outputs: Any
    values: tuple[Tensor, ...]
    tapped: tuple[Tensor, ...]
    scalars: list[Tensor]
    seeds: list[Tensor]


@dataclass(frozen=True)
class Mixed:
    """The last value in which positions are mixed, and the place of the scores [batch, positions, classes] among the
    flat outputs.
    """

    node: fx.Node
    place: int
    classes: int | None


def last_mixed_value(plan: Plan, taps: Sequence[fx.Node]) -> Mixed | None:
    """The value behind which no row of the logits is mixed with others, if everything that is watched lies before."""
    if plan not in _MIXED:
        _MIXED[plan] = _last_mixed(plan)
    mixed = _MIXED[plan]
    before = mixed is not None and (not taps or set(taps) <= set(ancestors(mixed.node)))
    return mixed if before else None


_MIXED: WeakKeyDictionary[Plan, Mixed | None] = WeakKeyDictionary()


def _last_mixed(plan: Plan) -> Mixed | None:
    nodes: Any = plan.program.graph.output_node().args[0]
    values = [node.meta.get("val") if isinstance(node, fx.Node) else node for node in nodes]
    try:
        logits = logits_of(plan.program.unpack(tuple(values)))
    except TargetError:  # there is none by itself: said where the outputs are known
        return None
    place = next((i for i, value in enumerate(values) if value is logits), None)
    if place is None or not isinstance(nodes[place], fx.Node):
        return None
    comparing = {n for n, decision in (*plan.decisions.items(), *plan.forks.items()) if decision.post}
    cut = last_mixed(nodes[place], plan.carrying, comparing)
    classes = logits.shape[-1] if logits.ndim else None
    return None if cut is None else Mixed(cut, place, classes if isinstance(classes, int) else None)


def by_rows(task: Asked, lrp: Conversion, taps: tuple[fx.Node, ...], at: Point | None) -> Ran | None:
    """One forward pass for the explained rows; None where the scores are few, or are not explained one by one."""
    if any(callable(wanted) or named(wanted)[0] is not None for wanted in task.wanted):
        return None
    found = scores_apart(lrp, task.captured, taps, entered=at is not None)
    return None if found is None else _run(task, lrp, *found, task.arguments(lrp, found[0].body, at))


def scores_apart(
    lrp: Conversion, captured: Captured, taps: tuple[fx.Node, ...] = (), entered: bool = False
) -> tuple[Halves, Mixed] | None:
    """The rewritten graph without its scores, where these are many and made row by row; None where they are not."""
    plan, _ = lrp.rewritten(captured, taps, entered=entered)
    mixed = last_mixed_value(plan, taps)
    if mixed is None or mixed.classes is None or mixed.classes < MANY or mixed.node in taps or plan.compares:
        return None
    parts = halves(lrp.rewritten(captured, (*taps, mixed.node), entered=entered)[1], mixed.place)
    return None if parts is None else (parts, mixed)


def _run(task: Asked, lrp: Conversion, parts: Halves, mixed: Mixed, arguments: Sequence[Any]) -> Ran:
    flat, values, tapped, (value, *others) = lrp.run(parts.body, arguments, task.given)
    outputs = list(flat)
    outputs[mixed.place] = value.new_zeros(()).expand(*value.shape[:2], mixed.classes)
    with torch.no_grad():
        wanted = None if lrp.passing.outputs else _asked(task, parts, (value, *others), outputs)
        if wanted is None:
            outputs[mixed.place], wanted = _scores(task, parts, mixed, (value, *others)), task.wanted
    whole = task.captured.program.unpack(tuple(outputs))
    if task.explain is None:
        task.explain = Explained.of(task.lrp, task.given, *wanted, whole, task.tokenizer)
    samples = torch.arange(len(value), device=value.device)[:, None]
    positions = torch.tensor(task.explain.positions, device=value.device).mT
    few = list(outputs)
    few[mixed.place] = parts.scores((value, *others), value[samples, positions])
    scalars, seeds = task.explain.at_rows(task.captured.program.unpack(tuple(few)), lrp.ruleset)
    return Ran(tuple(outputs), whole, tuple(values), tuple(tapped), scalars, seeds)


def _scores(task: Asked, parts: Halves, mixed: Mixed, arguments: Sequence[Tensor]) -> Tensor:
    """The scores of all rows for the caller: as the model computes them, without what rules would add."""
    lrp = task.lrp.plain
    plain = halves(lrp.rewritten(task.captured, (mixed.node,))[1], mixed.place)
    if plain is None or plain.weights is None:
        return parts.scores(arguments)
    held = dict(zip(plain.body.arguments, task.arguments(lrp, plain.body), strict=True))
    return plain.scores((arguments[0], *(held[name] for name in plain.weights)))


def _asked(task: Asked, parts: Halves, mixed: Sequence[Tensor], flat: Sequence[Any]) -> tuple[Target, Target] | None:
    """Target and contrast with positions and classes, where they follow from few rows: the scores of others, zeros
    without memory in ``flat``, are not looked at. None where the target is the largest score of all.
    """
    target, contrast = task.wanted
    if target is not None:
        return target, contrast
    lrp, outputs = task.lrp, task.captured.program.unpack(tuple(flat))
    scored = Scored.of(outputs, None, lrp.config, lrp.conventions, task.given, task.tokenizer)
    if scored.kind is not Kind.NEXT_TOKEN:
        return None
    mask = lrp.conventions.mask_of_outputs(task.given)
    value = mixed[0]
    last = [last_position(mask, sample, value.shape[1]) for sample in range(len(value))]
    rows = value[torch.arange(len(value), device=value.device), torch.tensor(last, device=value.device)]
    classes = parts.scores(mixed, rows[:, None])[:, 0].argmax(-1)
    return list(zip(last, classes.tolist(), strict=True)), contrast
