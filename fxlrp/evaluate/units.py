"""What is taken out of an input or put back: tokens, pixels, features.

In: an attribution and the inputs it explains. Out: :class:`Units`, the relevance of each unit as [samples, units], and
inputs in which chosen units are replaced.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxlrp.errors import InputError
from fxlrp.results.attribution import Attribution

#: What a unit is replaced with: a token id or a number, or a tensor that broadcasts against the input.
Replacement = int | float | Tensor


@dataclass(frozen=True)
class Units(ABC):
    """The units of one input: their ``relevance`` [samples, units], and ``present`` [samples, units], False for padding
    and for tokens that are to be left alone.
    """

    name: str
    value: Tensor
    relevance: Tensor
    present: Tensor

    @abstractmethod
    def replaced(self, chosen: Tensor, replacement: Replacement | None) -> Tensor:
        """The input with the ``chosen`` units [samples, units] replaced."""

    def as_value(self, replacement: Replacement | None) -> Tensor:
        """A replacement of floats as a tensor like the input; 0 where none is given."""
        number = 0 if replacement is None else replacement
        return torch.as_tensor(number, dtype=self.value.dtype, device=self.value.device)

    @property
    def counts(self) -> Tensor:
        """How many units each sample has [samples]."""
        return self.present.sum(1)

    def ranks(self, order: str, generator: torch.Generator | None = None) -> Tensor:
        """Place of each unit [samples, units] in an order (see ``ORDERS``), from 0; absent units come last.

        Equal units keep the order of the input.
        """
        keys = ORDERS[order](self.relevance.double(), generator).masked_fill(~self.present, float("inf"))
        return keys.argsort(dim=1, stable=True).argsort(dim=1)

    def first(self, ranks: Tensor, counts: Tensor) -> Tensor:
        """Whether a unit [samples, units] is among the first so many of its sample."""
        return (ranks < counts[:, None]) & self.present


def _random(relevance: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(relevance.shape, generator=generator, dtype=torch.float64).to(relevance.device)


#: Orders of units by a key that grows, from relevance [samples, units].
ORDERS = {
    "most": lambda relevance, _: -relevance,
    "least": lambda relevance, _: relevance,
    "absolute-most": lambda relevance, _: -relevance.abs(),
    "absolute-least": lambda relevance, _: relevance.abs(),
    "random": _random,
}


class Tokens(Units):
    """Token ids [samples, tokens]."""

    def replaced(self, chosen: Tensor, replacement: Replacement | None) -> Tensor:
        """The ids with the chosen ones replaced by one id, or by those of a tensor [samples, tokens]."""
        if isinstance(replacement, Tensor):
            return torch.where(chosen, replacement.to(self.value), self.value)
        if replacement is None:
            raise InputError("Tokens need a token to be replaced with: pass replace=tokenizer.unk_token_id.")
        if int(replacement) != replacement:
            raise InputError(f"replace={replacement} is not a token id: it must be an integer.")
        return self.value.masked_fill(chosen, int(replacement))


class Pixels(Units):
    """The pixels of images [samples, channels, height, width], all channels of one together."""

    def replaced(self, chosen: Tensor, replacement: Replacement | None) -> Tensor:
        """The images with the chosen pixels replaced by a number, a colour [channels] or another image."""
        value = self.as_value(replacement)
        if value.ndim == 1:
            value = value[:, None, None]
        return torch.where(chosen.unflatten(1, self.value.shape[2:])[:, None], value, self.value)


class Features(Units):
    """Every number of a float input."""

    def replaced(self, chosen: Tensor, replacement: Replacement | None) -> Tensor:
        """The input with the chosen numbers replaced."""
        return torch.where(chosen.view_as(self.value), self.as_value(replacement), self.value)


def units_of(given: Mapping[str, Any], result: Attribution, keep: tuple[int, ...] = ()) -> Units:
    """The units of the main input, with their relevance; tokens whose id is in ``keep`` are left alone.

    Relevance by patch is enlarged to pixels bilinearly. Raises :class:`InputError` for relevance that belongs to no
    unit of the input.
    """
    name = next(name for name, value in result.inputs.items() if value is result.relevance)
    value, relevance = given[name], finite(result)
    if result.of_ids and relevance.shape == value.shape:
        return Tokens(name, value, relevance, present_tokens(result, value, keep))
    if keep:
        raise InputError("keep= names token ids to leave alone; this model's main input does not hold any.")
    if result.image_size is not None:
        relevance = result.map(result.image_size).flatten(1)
        return Pixels(name, value, relevance, torch.ones_like(relevance, dtype=torch.bool))
    if relevance.shape == value.shape:
        relevance = relevance.flatten(1)
        return Features(name, value, relevance, torch.ones_like(relevance, dtype=torch.bool))
    raise InputError(
        f"Relevance of shape {tuple(relevance.shape)} under '{result.ruleset.name}' does not belong to the units of "
        f"input '{name}' of shape {tuple(value.shape)}."
    )


def present_tokens(result: Attribution, ids: Tensor, keep: tuple[int, ...]) -> Tensor:
    """Where ids [samples, tokens] are tokens to rank: not padding, none of the special ids in ``keep``."""
    present = torch.ones_like(ids, dtype=torch.bool)
    if result.attention_mask is not None and result.attention_mask.shape == ids.shape:
        present &= result.attention_mask.bool()
    for token in keep:
        present &= ids != token
    return present


def finite(result: Attribution) -> Tensor:
    """The relevance of the main input. Raises :class:`InputError` for NaN and infinity, which no order is made of."""
    relevance = result.relevance.detach()
    if not bool(torch.isfinite(relevance).all()):
        raise InputError(
            f"The relevance that '{result.ruleset.name}' gave holds NaN or infinity, of which no protocol makes a "
            "number: attribute these inputs again, or leave the ruleset out."
        )
    return relevance
