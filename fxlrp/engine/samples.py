"""One backward pass for a whole batch, told apart by samples afterwards.

In: the explained scalars, one per sample, and the values that are watched. Out: their messages, and for each entry of a
message the sample that it is from, so that any amount of relevance can be given sample by sample.

The samples are found, not assumed: a second pass begins with 2^b at sample b, which multiplies each entry of a message
by 2^b without rounding, wherever in the model's layouts it stands. An entry that several samples have a part in is
multiplied by something else; then there is one pass per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxlrp.capture.program import widened
from fxlrp.rules.primitives import received
from fxlrp.rules.rule import Message

#: An amount of relevance, summed in float64, as a function of values and the messages that arrived at them.
Amount = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
_DIGITS = 32  # samples told apart by one more pass: a factor of 2^31 at most, far from the end of what float32 holds
_ROUNDING = 32  # of the last digit, by which sums may differ that are equal but for rounding
_EXACT = 8  # of the last digit, by which a message may differ that was multiplied by a power of two


@dataclass(frozen=True)
class Along:
    """Samples one after the other along an axis, each of as many entries."""

    axis: int

    def split(self, x: Tensor, count: int) -> Tensor:
        """The entries of each of ``count`` samples, [samples, entries]."""
        return x.unflatten(self.axis, (count, -1)).movedim(self.axis, 0).flatten(1)


#: Where the samples lie among the entries of a message: along an axis, or the number of each entry's.
Owners = Along | Tensor


@dataclass(frozen=True)
class Arrived:
    """The messages of one pass for ``samples``, by the identity of the watched tensor, and the ``owners`` of their
    entries (None: there is but one sample).
    """

    samples: range
    messages: Mapping[int, Tensor]
    owners: Mapping[int, Owners] | None = field(default=None)

    def amounts(self, values: Sequence[Tensor], kind: Message, amount: Amount) -> Tensor:
        """``amount(values, messages)`` [samples] in float64 of the messages of each sample, which are of this kind;
        values without one are left out.
        """
        values = [value for value in values if id(value) in self.messages]
        messages = [self.messages[id(value)] for value in values]
        if not values:
            return torch.zeros(len(self.samples), dtype=torch.float64)
        if self.owners is None:
            return amount(values, messages).detach()[None]
        owners = [self.owners[id(value)] for value in values]
        found = of_degree_one(values, messages, owners, kind, amount, len(self.samples))
        if found is not None:
            return found
        pairs, count = [*zip(messages, owners, strict=True)], len(self.samples)
        own = [[_only(message, owner, sample, count) for message, owner in pairs] for sample in self.samples]
        return torch.stack([amount(values, each).detach() for each in own])


def of_degree_one(
    values: Sequence[Tensor],
    messages: Sequence[Tensor],
    owners: Sequence[Owners],
    kind: Message,
    amount: Amount,
    count: int,
) -> Tensor | None:
    """The amounts [samples] at once: one that is of degree one in the messages m is sum of m dA/dm (Euler), where each
    term belongs to the sample of its entry. None where that is not all of it, as beside a stabiliser of relevance.
    """
    leaves = [message.detach().requires_grad_() for message in messages]
    with torch.enable_grad():
        whole = amount(values, leaves)
    slopes = torch.autograd.grad(whole, leaves, allow_unused=True) if whole.requires_grad else [None] * len(leaves)
    found = torch.zeros(count, dtype=torch.float64, device=whole.device)
    size = whole.detach().abs()
    for value, message, owner, slope in zip(values, messages, owners, slopes, strict=True):
        size += relevance_of(kind, value, message).abs().sum()
        if slope is not None:
            parts = relevance_of(Message.GRADIENT, slope, message)
            found += _by_sample(parts, owner, count)
            size += parts.abs().sum()
    off = (found.sum() - whole.detach()).abs()
    return found if bool(off <= size * _ROUNDING * torch.finfo(messages[0].dtype).eps) else None


def arrived(scalars: Tensor, watched: Sequence[Tensor]) -> Iterator[Arrived]:
    """The messages of ``watched`` values under the sum of ``scalars`` [samples], with the samples told apart: of one
    pass for all where no entry is shared among samples, else of one for each.
    """
    wanted = list({id(value): value for value in watched if value.requires_grad}.values())
    count = len(scalars)
    together = None if count == 1 else _together(scalars, wanted)
    if together is not None:
        yield together
        return
    for sample in range(count):
        yield Arrived(range(sample, sample + 1), _pass(scalars[sample : sample + 1], wanted, None))


def relevance_of(kind: Message, value: Tensor, message: Tensor) -> Tensor:
    """The relevance of each entry of a value, from either message; a function of the message."""
    message = widened(message)
    if kind is Message.GRADIENT:
        return received(widened(value.detach()), message)
    return message.real + message.imag if message.is_complex() else message


def _only(message: Tensor, owners: Owners, sample: int, count: int) -> Tensor:
    """The message of one sample, 0 elsewhere."""
    if isinstance(owners, Tensor):
        return torch.where(owners == sample, message, 0.0)
    whole = torch.zeros_like(message)
    one = whole.unflatten(owners.axis, (count, -1)).select(owners.axis, sample)
    one.copy_(message.unflatten(owners.axis, (count, -1)).select(owners.axis, sample))
    return whole


def _by_sample(amounts: Tensor, owners: Owners, count: int) -> Tensor:
    """The sums [samples] of entries that belong to samples."""
    if isinstance(owners, Along):
        return owners.split(amounts, count).sum(1, dtype=torch.float64)
    found = torch.zeros(count, dtype=torch.float64, device=amounts.device)
    return found.index_add_(0, owners.flatten(), amounts.double().flatten())


def _together(scalars: Tensor, wanted: Sequence[Tensor]) -> Arrived | None:
    count, place = len(scalars), 1
    messages, marks = _pass(scalars, wanted, None), []
    while place < count:
        digits = torch.arange(count, device=scalars.device) // place % _DIGITS
        factors = torch.exp2(digits.to(scalars.dtype))
        marks.append((factors, _pass(scalars, wanted, factors)))
        place *= _DIGITS
    owners: dict[int, Owners] = {}
    for key, message in messages.items():
        marked = [(factors, found[key]) for factors, found in marks if key in found]
        place_of = _owners_along(message, marked) or _owners_of_entries(message, marked)
        if place_of is None:
            return None
        owners[key] = place_of
    return Arrived(range(count), messages, owners)


def _owners_along(message: Tensor, marked: Sequence[tuple[Tensor, Tensor]]) -> Along | None:
    """The axis along which samples lie; None where they lie otherwise."""
    count = len(marked[0][0])
    for axis in (axis for axis, size in enumerate(message.shape) if size and size % count == 0):
        along = Along(axis)
        one = along.split(message, count)
        if all(torch.equal(one * factors[:, None], along.split(found, count)) for factors, found in marked):
            return along
    return None


def _owners_of_entries(message: Tensor, marked: Sequence[tuple[Tensor, Tensor]]) -> Tensor | None:
    """The sample of each entry, the first where no message arrived; None where some entries are of no single one."""
    size, owners = widened(message).abs(), torch.zeros_like(message, dtype=torch.int32)
    rounding = _EXACT * torch.finfo(size.dtype).eps
    for place, (_, found) in enumerate(marked):
        raised = widened(found).abs()
        digit = (torch.log2(raised) - torch.log2(size)).round().nan_to_num(0, _DIGITS, _DIGITS).clamp(0, _DIGITS - 1)
        off = torch.where(size > 0, (raised * torch.exp2(-digit) - size).abs(), raised)
        if not bool(off.sum() <= rounding * size.sum()):
            return None
        owners += digit.to(torch.int32) * _DIGITS**place
    own = owners < len(marked[0][0])
    return torch.where(own, owners, 0) if bool((own | (size == 0)).all()) else None


def _pass(scalars: Tensor, wanted: Sequence[Tensor], seeds: Tensor | None) -> dict[int, Tensor]:
    """The messages of values that receive one; the graph is kept for more passes."""
    if not scalars.requires_grad or not wanted:
        return {}
    seeds = torch.ones_like(scalars) if seeds is None else seeds
    found = torch.autograd.grad(scalars, wanted, seeds, retain_graph=True, allow_unused=True)
    return {id(value): message for value, message in zip(wanted, found, strict=True) if message is not None}
