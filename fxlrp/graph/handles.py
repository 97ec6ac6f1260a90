"""Handles in the place of weights that are kept elsewhere: the operation that takes one brings the weight in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Elsewhere:
    """A weight by its ``name`` among ``weights``, brought to ``device`` when it is fetched, and there of ``dtype``. A
    backward pass ends (if it ``ends``) at what is looked up in it.
    """

    weights: Mapping[str, Tensor]
    name: str
    device: torch.device
    shape: torch.Size
    dtype: torch.dtype
    ends: bool = False

    def fetch(self) -> Tensor:
        """The weight."""
        return self.weights[self.name].detach().to(self.device, self.dtype)

    def to(self, dtype: torch.dtype) -> Elsewhere:
        """The same weight in another type."""
        return replace(self, dtype=dtype)

    def stand_in(self) -> Tensor:
        """A tensor of its size that takes no memory, and must not be read."""
        made = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        made.untyped_storage().resize_(0)
        return made.requires_grad_(self.ends)


def fetched(value: Any) -> Any:
    """What a handle stands for, brought in; any other value as it is."""
    return value.fetch() if isinstance(value, Elsewhere) else value
