"""Data sets: in goes whatever a user has at hand, out come batches of inputs with the labels and truths that go with
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxlrp.errors import InputError
from fxlrp.explain.model import ConvertedModel

#: Keys of a mapping that are no inputs of the model.
LABELS, TRUTH = "labels", "truth"


@dataclass(frozen=True)
class Batch:
    """Inputs as the model takes them, ``labels`` [samples] (classes), and ``truth``, 1 where relevance should be
    ([samples, tokens], or [samples, height, width] of an image).
    """

    inputs: Any
    labels: Tensor | None = None
    truth: Tensor | None = None

    @staticmethod
    def of(item: Any) -> Batch:
        """A batch of what data loaders give: inputs, ``(inputs, labels)``, ``(inputs, labels, truth)``, or a mapping
        with the keys 'labels' and 'truth' beside the inputs.
        """
        if isinstance(item, Batch):
            return item
        if isinstance(item, (tuple, list)):
            if not 1 <= len(item) <= 3:
                raise InputError(
                    f"A batch is inputs, (inputs, labels) or (inputs, labels, truth); this one has {len(item)} parts."
                )
            return Batch(item[0], *(None if part is None else torch.as_tensor(part) for part in item[1:]))
        if isinstance(item, Mapping) and not {LABELS, TRUTH}.isdisjoint(item):
            rest = {name: value for name, value in item.items() if name not in (LABELS, TRUTH)}
            labels, truth = (None if item.get(k) is None else torch.as_tensor(item[k]) for k in (LABELS, TRUTH))
            return Batch(rest, labels, truth)
        return Batch(item)

    def given(self, lrp: ConvertedModel) -> dict[str, Any]:
        """The inputs by name."""
        return lrp.conversion.given(self.inputs)

    def __len__(self) -> int:
        values = self.inputs.values() if isinstance(self.inputs, Mapping) else (self.inputs,)
        return next(len(value) for value in values if isinstance(value, Tensor) and value.ndim)

    def needs(self, part: str, what: str) -> Tensor:
        """The labels or the truth. Raises :class:`InputError` where they are missing or of another length."""
        value: Tensor | None = getattr(self, part)
        if value is None:
            raise InputError(
                f"{what} needs the {part} of each sample: give batches as (inputs, labels, truth), or as mappings with "
                f"the key '{part}'."
            )
        if len(value) != len(self):
            raise InputError(f"A batch has {len(self)} samples and {part} for {len(value)}.")
        return value


def as_batches(batches: Any) -> Iterator[Batch]:
    """The batches of a data set: one batch, or any iterable of them (a list, a DataLoader)."""
    if isinstance(batches, (Mapping, Tensor, Batch)):
        yield Batch.of(batches)
        return
    if not isinstance(batches, Iterable) or isinstance(batches, str):
        raise InputError(f"Batches are an iterable of inputs as the model takes them, not {type(batches).__name__}.")
    for item in batches:
        yield Batch.of(item)
