"""Units taken together: word pieces as words, pixels as patches.

In: units and the group of each. Out: :class:`Grouped`, units again, whose relevance is the sum over their parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxlrp.errors import InputError
from fxlrp.evaluate.units import Pixels, Replacement, Units


@dataclass(frozen=True)
class Grouped(Units):
    """Groups of the units of ``parts``: ``group`` [samples, parts] is the group of each part, -1 for none."""

    parts: Units
    group: Tensor

    @staticmethod
    def of(parts: Units, group: Tensor) -> Grouped:
        """Units whose relevance is the sum over their present parts; a group without any is absent."""
        group = group.to(parts.relevance.device).masked_fill(~parts.present, -1)
        # A group too many, and then left out, takes up the parts that belong to none.
        sums = parts.relevance.new_zeros(len(group), int(group.max()) + 2, dtype=torch.float64)
        place = group.remainder(sums.shape[1])
        counts = torch.zeros_like(sums).scatter_add_(1, place, torch.ones_like(place, dtype=sums.dtype))
        sums = sums.scatter_add_(1, place, parts.relevance.double())
        return Grouped(parts.name, parts.value, sums[:, :-1], counts[:, :-1] > 0, parts, group)

    def members(self, chosen: Tensor) -> Tensor:
        """The parts [samples, parts] of the ``chosen`` groups [samples, groups]."""
        nowhere = chosen.new_zeros(len(chosen), 1)
        padded = torch.cat([chosen, nowhere], 1)
        return padded.gather(1, self.group.remainder(padded.shape[1]))

    def replaced(self, chosen: Tensor, replacement: Replacement | None) -> Tensor:
        """The input with all parts of the chosen groups replaced."""
        return self.parts.replaced(self.members(chosen), replacement)


def patches(units: Units, size: int) -> Grouped:
    """The pixels of an image as squares of ``size`` by ``size`` pixels, row by row; those at the edge may be smaller.

    Raises :class:`InputError` for units that are no pixels.
    """
    if not isinstance(units, Pixels):
        raise InputError(f"patch={size} groups pixels; the input '{units.name}' is not an image.")
    height, width = units.value.shape[2:]
    rows, columns = torch.arange(height) // size, torch.arange(width) // size
    index = rows[:, None] * (int(columns[-1]) + 1) + columns
    return Grouped.of(units, index.flatten().expand(len(units.relevance), -1))


def words(units: Units, inputs: Any) -> Grouped:
    """Word pieces as words, by the ``word_ids`` of the encoding that a fast tokenizer gave.

    Raises :class:`InputError` for inputs that are no such encoding.
    """
    if not getattr(inputs, "is_fast", False):
        raise InputError(
            "Word pieces become words by the encoding's word_ids: give the batch as a fast tokenizer returns it, "
            f"(encoding, labels), not a {type(inputs).__name__}."
        )
    ids = [inputs.word_ids(sample) for sample in range(len(units.relevance))]
    return Grouped.of(units, torch.tensor([[-1 if word is None else word for word in row] for row in ids]))
