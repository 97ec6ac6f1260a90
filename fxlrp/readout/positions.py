"""Reads relevance of tokens together with that of their positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from fxlrp.capture.program import flatten, widened
from fxlrp.engine.sources import Naming, counts
from fxlrp.errors import ReadingError
from fxlrp.graph.nodes import module_path, tensor_value
from fxlrp.graph.operator_classes import ADD
from fxlrp.graph.operators import is_float, operator_of
from fxlrp.graph.uses import hides
from fxlrp.planning.plan import Plan
from fxlrp.readout.inputs import by_input
from fxlrp.readout.passes import Carried, Task
from fxlrp.readout.readers import Answer, reader
from fxlrp.rewrite.graph import Source
from fxlrp.rules.elementary import sink
from fxlrp.spec.readings import PositionReading


@dataclass(frozen=True)
class Sink:
    """A value that shares relevance with a constant: a sum with position embeddings, a product with rotary tables.

    ``group`` are the sinks that are one to the reading: those of one module and table. ``share`` of the value's
    relevance is kept; None for a sum, where it is the constant times the message.
    """

    node: fx.Node
    constant: fx.Node
    group: tuple[str, ...]
    share: float | None = None


@reader(PositionReading)
def with_positions(task: Task, reading: PositionReading) -> Answer:
    """sum_d R_token + sum over sinks |sum_d R_position|, [batch, tokens].

    Raises :class:`ReadingError` for inputs that are no tokens, or positions of other tokens than theirs.
    """
    plan = task.lrp.rewritten(task.captured)[0]
    sinks = list(sinks_of(plan))
    taps = [node for one in sinks for node in (one.node, one.constant)]
    propagated = task.propagate((*task.taps, *taps))
    answer = by_input(task, reading, propagated, [c.relevance for c in propagated.attributed])
    main = task.main_input
    tokens = answer.summed[main]
    if not dict(task.attributed)[main]:
        raise ReadingError(
            f"'{task.lrp.ruleset.name}' scores tokens, but the main input '{main}' does not hold token ids."
        )
    carried = propagated.taps[len(task.taps) :]
    leaves, program = flatten(task.given), plan.program
    naming = Naming(plan, {placeholder: leaves[name] for placeholder, name in program.inputs.items()})
    groups: dict[tuple[str, ...], Tensor] = {}
    for one, value, constant in zip(sinks, carried[::2], carried[1::2], strict=True):
        if one.share is None and not naming.is_position(Source(one.node, one.constant), constant.value):
            continue
        found = _by_token(one, value, constant)
        _check(found, tokens, main, f"The positions in '{module_path(one.node)}'")
        groups[one.group] = groups[one.group] + found if one.group in groups else found
    for name, found in _given_positions(task, propagated.attributed):
        _check(found, tokens, main, f"The positions '{name}'")
        groups[name,] = groups[name,] + found if (name,) in groups else found
    for found in groups.values():
        tokens = tokens + (found.abs() if reading.absolute else found)
    return replace(answer, summed={**answer.summed, main: tokens})


def _check(found: Tensor, tokens: Tensor, main: str, positions: str) -> None:
    if found.shape != tokens.shape:
        raise ReadingError(
            f"{positions} are those of {found.shape[1]} values, '{main}' has {tokens.shape[1]} tokens: their relevance "
            "cannot be told by token."
        )


def _given_positions(task: Task, attributed: Sequence[Carried]) -> Iterator[tuple[str, Tensor]]:
    """Look-ups of other inputs that are attributed and count positions, [batch, tokens]."""
    leaves = flatten(task.given)
    for (name, lookup), carried in zip(task.attributed, attributed, strict=True):
        if lookup and name != task.main_input and counts(leaves[name]):
            yield name, carried.relevance.sum(-1)


def sinks_of(plan: Plan) -> Iterator[Sink]:
    """Where a plan may book relevance to positions: operations under ``sink``, and sums with constants."""
    for node in plan.program.graph.nodes:
        if node not in plan.carrying:
            continue
        constants = [n for n in node.all_input_nodes if n not in plan.carrying and is_float(n)]
        if plan.rule(node) is sink:
            labels = (label for label in plan.structure.labels.get(node, ()) if "." in label)
            group = (module_path(node), next(labels, ""))
            yield Sink(node, constants[0], group, plan.decisions[node].params["share"])
        operator = operator_of(node)
        adds = operator is not None and operator.category == ADD and plan.decisions.get(node) is None
        if adds and not hides(node, plan.carrying):
            yield from (Sink(node, constant, (node.name,)) for constant in constants)


def _by_token(one: Sink, value: Carried, constant: Carried) -> Tensor:
    """The constant's relevance by token, [batch, tokens]."""
    if one.share is None:
        kept = widened(constant.value) * value.gradient
        axis = 1
    else:
        kept = one.share * value.relevance
        axis = _token_axis(one)
    others = [a for a in range(1, kept.ndim) if a != axis]
    return torch.sum(kept, others) if others else kept


def _token_axis(one: Sink) -> int:
    """The axis along which the constant differs by position: not the batch, the features or one that it is spread
    over.
    """
    value, table = tensor_value(one.node), tensor_value(one.constant)
    assert value is not None
    assert table is not None
    spread = value.ndim - table.ndim
    axes = [
        axis + spread
        for axis, size in enumerate(table.shape[:-1])
        if axis + spread > 0 and not (isinstance(size, int) and size == 1)
    ]
    if len(axes) != 1:
        raise ReadingError(
            f"The positions in '{module_path(one.node)}' have shape {tuple(table.shape)}: no axis of tokens."
        )
    return axes[0]
