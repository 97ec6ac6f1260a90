"""The ledger: where every unit of relevance went, source by source and leak by leak, and the gap that should be none.

In: a plan, the model's arguments, the explained scalars. Out: a :class:`Ledger`. The rewritten graph is run
once more with each additive constant as a leaf of its own; sums are in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fxlrp.capture.attributed import entries_by_lookup
from fxlrp.engine.samples import Amount, arrived, relevance_of
from fxlrp.engine.sources import Naming
from fxlrp.planning.plan import Plan
from fxlrp.rewrite.graph import Rewritten
from fxlrp.rules.rule import Message


@dataclass(frozen=True)
class Entry:
    """One line: ``source`` is a module path (or input name), ``amount`` [batch] its relevance in float64.

    ``leak`` tells a leak that a rule declares from an input or an additive constant.
    """

    source: str
    kind: str
    amount: Tensor
    leak: bool = False


@dataclass(frozen=True)
class Ledger:
    """Entries whose sum is the explained output: ``gap`` = explained - sum of entries, [batch]."""

    entries: tuple[Entry, ...]
    explained: Tensor

    @property
    def total(self) -> Tensor:
        """The sum of all entries, [batch]."""
        return torch.stack([entry.amount for entry in self.entries]).sum(0)

    @property
    def gap(self) -> Tensor:
        """Explained output less the sum of all entries, [batch]: rounding, if every rule keeps its promise."""
        return self.explained - self.total

    def by_kind(self) -> dict[str, Tensor]:
        """Sums by kind of entry, [batch] each, in the order of first appearance."""
        sums: dict[str, Tensor] = {}
        for entry in self.entries:
            sums[entry.kind] = sums[entry.kind] + entry.amount if entry.kind in sums else entry.amount
        return sums


def compute_ledger(
    plan: Plan, rewritten: Rewritten, arguments: Sequence[Any], explain: Callable[[tuple[Any, ...]], Tensor]
) -> Ledger:
    """Run the ledger graph once, with a backward pass for the whole batch and one that tells its samples apart; where
    the model mixes them with one for each, so that an entry is exact whatever it does.

    ``explain`` gives the scalars whose relevance is themselves: what is explained, times its seed.
    """
    with torch.enable_grad():
        outputs, attributed, _, leaves, sites = rewritten.on(arguments)(*arguments)
        explained = explain(outputs)
    given = dict(zip(rewritten.arguments, arguments, strict=True))
    lines = [*_inputs(plan, given, attributed), *_sources(plan, rewritten, given, leaves)]
    lines += _leaks(plan, rewritten, given, sites)
    held = [node not in plan.carrying for node in plan.program.graph.output_node().args[0]]  # type: ignore[union-attr]

    amounts = _accounted(lines, explained) | _not_carried(outputs, held, explain)
    entries = tuple(Entry(source, kind, amount, leak) for (source, kind, leak), amount in amounts.items())
    return Ledger(entries, explained.detach().double())


#: Source, kind, and whether it is a leak.
Name = tuple[str, str, bool]


@dataclass(frozen=True)
class Line:
    """What is entered under a name: ``amount`` of the ``values`` and of the messages, of a ``kind``, that they got."""

    name: Name
    values: Sequence[Tensor]
    kind: Message
    amount: Amount


def _accounted(lines: Sequence[Line], explained: Tensor) -> dict[Name, Tensor]:
    """The sums of all lines of a name, [batch] each."""
    nothing = torch.zeros_like(explained, dtype=torch.float64, requires_grad=False)
    found = {line.name: nothing.clone() for line in lines}
    for part in arrived(explained, [value for line in lines for value in line.values]):
        for line in lines:
            found[line.name][part.samples] += part.amounts(line.values, line.kind, line.amount).to(nothing.device)
    return found


def _inputs(plan: Plan, given: Mapping[str, Any], attributed: Sequence[Tensor]) -> Iterator[Line]:
    """Relevance of what is attributed; that of rows that are looked up for numbers of the model's own (as at the
    beginning of a shifted sequence) is that of an embedding.
    """
    origins = entries_by_lookup(plan.program, plan.structure.attributed, lambda: given)
    for each, value in zip(plan.structure.attributed, attributed, strict=True):
        known = origins.get(each.node)
        if known is None or bool(known.owned.all()):
            yield Line((each.name, "input", False), [value], plan.message, partial(_received, plan.message))
            continue
        for kind, rows in (("input", known.owned), ("embedding", ~known.owned)):
            amount = partial(_received, plan.message, rows=rows[..., None])
            yield Line((each.name, kind, False), [value], plan.message, amount)


def _received(
    kind: Message, values: Sequence[Tensor], messages: Sequence[Tensor], rows: Tensor | None = None
) -> Tensor:
    """The relevance of one value, or of some rows of it."""
    message = messages[0] if rows is None else torch.where(rows, messages[0], 0.0)
    return _amount(kind, values[0], message)


def _sources(
    plan: Plan, rewritten: Rewritten, given: Mapping[str, Any], leaves: Sequence[tuple[Tensor, Sequence[Any]]]
) -> Iterator[Line]:
    """Relevance of additive constants, from the messages at the values that they enter."""
    naming = Naming(plan, given)
    for source, (leaf, takers) in zip(rewritten.sources, leaves, strict=True):
        tensors = all(isinstance(taker, Tensor) for taker in takers)
        entered = (list(takers) if tensors else [leaf]) if leaf.requires_grad else []
        amount, name = partial(_of_leaf, source.message, leaf), naming.source(source, leaf.detach())
        yield Line((*name, False), entered, plan.takes(source.user), amount)


def _of_leaf(kind: Message, leaf: Tensor, values: Sequence[Tensor], messages: Sequence[Tensor]) -> Tensor:
    sent = torch.autograd.grad(
        *(values, leaf, messages), retain_graph=True, allow_unused=True, create_graph=messages[0].requires_grad
    )
    return _amount(kind, leaf, sent[0])


def _leaks(plan: Plan, rewritten: Rewritten, given: Mapping[str, Any], sites: Sequence[Any]) -> Iterator[Line]:
    """What rules declare to keep."""
    naming = Naming(plan, given)
    for leak, (value, operands, extras) in zip(rewritten.leaks, sites, strict=True):
        amount = partial(_of_leak, leak.call.leak, (*operands, *extras))
        yield Line((*naming.leak(leak), True), [value], leak.call.takes, amount)


def _of_leak(
    leak: Callable[..., Tensor], operands: Sequence[Any], values: Sequence[Tensor], messages: Sequence[Tensor]
) -> Tensor:
    return leak(values[0], messages[0], *operands)


def _not_carried(
    outputs: Sequence[Any], constant: Sequence[bool], explain: Callable[[tuple[Any, ...]], Tensor]
) -> dict[Name, Tensor]:
    """What of each scalar e no relevance flows from, [batch] each, where there is any.

    First sum of y de/dy over the outputs y that the rules made constant, then e - sum of y de/dy over all
    outputs: zero for a logit, not so for a probability.
    """
    cut = [y.detach().requires_grad_() if isinstance(y, Tensor) and y.is_floating_point() else y for y in outputs]
    with torch.enable_grad():
        scalars = explain(tuple(cut))
    of_value = partial(_received, Message.GRADIENT)
    lines = [
        Line(("output", "value held constant" if holds else "value carried", False), [y], Message.GRADIENT, of_value)
        for y, holds in zip(cut, constant, strict=True)
        if isinstance(y, Tensor) and y.requires_grad
    ]
    sums = _accounted(lines, scalars)
    sums["target", "target function", True] = scalars.detach().double() - torch.stack([*sums.values()]).sum(0)
    return {name: sum_ for name, sum_ in sums.items() if name[1] != "value carried" and bool((sum_ != 0).any())}


def _amount(kind: Message, value: Tensor, message: Tensor | None) -> Tensor:
    """The relevance that a value received, summed in float64; a function of the message."""
    nothing = torch.zeros((), dtype=torch.float64)
    return nothing if message is None else relevance_of(kind, value, message).sum(dtype=torch.float64)
