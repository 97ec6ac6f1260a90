"""The ledger: where every unit of relevance went, source by source and leak by leak, and the gap that should be none.

In: a plan, the model's arguments, the explained scalars. Out: a :class:`Ledger`. The rewritten graph is run
once more with each additive constant as a leaf of its own; sums are in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxlrp.capture.attributed import entries_by_lookup
from fxlrp.capture.program import widened
from fxlrp.engine.sources import Naming
from fxlrp.planning.plan import Plan
from fxlrp.rewrite.call import total
from fxlrp.rewrite.graph import Rewritten
from fxlrp.rules.primitives import received
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
    """Run the ledger graph and one backward pass per sample, so that an entry is exact whatever the model mixes.

    ``explain`` gives the scalars whose relevance is themselves: what is explained, times its seed.
    """
    with torch.enable_grad():
        outputs, attributed, _, leaves, sites = rewritten.on(arguments)(*arguments)
        explained = explain(outputs)
    constant = [node not in plan.carrying for node in plan.program.graph.output_node().args[0]]  # type: ignore[union-attr]
    held, outside = _not_carried(outputs, constant, explain)
    watched = [*attributed, *leaves, *(site[0] for site in sites)]
    given = dict(zip(rewritten.arguments, arguments, strict=True))
    naming = Naming(plan, given)
    origins = entries_by_lookup(plan.program, plan.structure.attributed, lambda: given)
    owned = [None if (known := origins.get(each.node)) is None else known.owned for each in plan.structure.attributed]
    names = (
        [each.name for each in plan.structure.attributed],
        [naming.source(source, leaf.detach()) for source, leaf in zip(rewritten.sources, leaves, strict=True)],
        [naming.leak(leak) for leak in rewritten.leaks],
    )
    rows = [
        _one_sample(plan, names, rewritten, scalar, watched, attributed, owned, leaves, sites) for scalar in explained
    ]
    for row, constants, rest in zip(rows, held, outside, strict=True):
        if abs(constants) > 0:
            row["output", "value held constant", False] = constants
        if abs(rest) > 0:
            row["target", "target function", True] = rest
    merged: dict[tuple[str, str, bool], list[Tensor]] = {}
    for index, row in enumerate(rows):
        for key, amount in row.items():
            merged.setdefault(key, [torch.zeros((), dtype=torch.float64)] * len(rows))[index] = amount
    entries = tuple(Entry(source, kind, torch.stack(amounts), leak) for (source, kind, leak), amounts in merged.items())
    return Ledger(entries, explained.detach().double())


def _one_sample(
    plan: Plan,
    names: tuple[list[str], list[tuple[str, str]], list[tuple[str, str]]],
    rewritten: Rewritten,
    scalar: Tensor,
    watched: Sequence[Tensor],
    attributed: Sequence[Tensor],
    owned: Sequence[Tensor | None],
    leaves: Sequence[Tensor],
    sites: Sequence[Any],
) -> dict[tuple[str, str, bool], Tensor]:
    wanted = [tensor for tensor in watched if tensor.requires_grad]
    grads = (
        torch.autograd.grad(scalar, wanted, retain_graph=True, allow_unused=True)
        if scalar.requires_grad
        else [None] * len(wanted)
    )
    found = dict(zip(map(id, wanted), grads, strict=True))
    row: dict[tuple[str, str, bool], Tensor] = {}

    def enter(source: str, kind: str, leak: bool, amount: Tensor) -> None:
        key = (source, kind, leak)
        row[key] = row[key] + amount if key in row else amount

    for name, tensor, kept in zip(names[0], attributed, owned, strict=True):
        message = found.get(id(tensor))
        whole = amount_of(plan.message, tensor, message)
        if kept is not None and message is not None and not bool(kept.all()):
            # Rows that are looked up for numbers of the model's own, as at the beginning of a shifted sequence.
            own = amount_of(plan.message, tensor * kept[..., None], message * kept[..., None])
            enter(name, "embedding", False, whole - own)
            whole = own
        enter(name, "input", False, whole)
    for (path, kind), source, leaf in zip(names[1], rewritten.sources, leaves, strict=True):
        enter(path, kind, False, amount_of(source.message, leaf, found.get(id(leaf))))
    for (path, kind), leak, (value, operands, extras) in zip(names[2], rewritten.leaks, sites, strict=True):
        message = found.get(id(value))
        nothing = torch.zeros((), dtype=torch.float64)
        amount = nothing if message is None else leak.call.leak(value, message, *operands, *extras)
        enter(path, kind, True, amount)
    return row


def _not_carried(
    outputs: Sequence[Any], constant: Sequence[bool], explain: Callable[[tuple[Any, ...]], Tensor]
) -> tuple[Tensor, Tensor]:
    """What of each scalar e no relevance flows from, [batch] each.

    First sum of y de/dy over the outputs y that the rules made constant, then e - sum of y de/dy over all
    outputs: zero for a logit, not so for a probability.
    """
    cut = [y.detach().requires_grad_() if isinstance(y, Tensor) and y.is_floating_point() else y for y in outputs]
    leaves = {i: y for i, y in enumerate(cut) if isinstance(y, Tensor) and y.requires_grad}
    with torch.enable_grad():
        scalars = explain(tuple(cut))
    held, rest = [], []
    for scalar in scalars:
        grads = torch.autograd.grad(scalar, list(leaves.values()), retain_graph=True, allow_unused=True)
        parts = {i: product_sum(y, g) for (i, y), g in zip(leaves.items(), grads, strict=True)}
        rest.append(scalar.detach().double() - torch.stack(list(parts.values())).sum())
        held.append(sum((part for i, part in parts.items() if constant[i]), torch.zeros_like(rest[-1])))
    return torch.stack(held), torch.stack(rest)


def amount_of(kind: Message, value: Tensor, message: Tensor | None) -> Tensor:
    """The relevance that a value received, summed in float64, from either message."""
    if kind is Message.GRADIENT or message is None:
        return product_sum(value, message)
    return total(widened(message.detach()))


def product_sum(value: Tensor, message: Tensor | None) -> Tensor:
    """sum of value x message in float64, where a zero message makes the product zero (also with an infinite mask)."""
    if message is None:
        return torch.zeros((), dtype=torch.float64)
    value, message = widened(value.detach()), widened(message.detach())
    return total(received(value, message))
