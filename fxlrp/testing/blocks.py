"""What an operator kind of a random graph is made of: `Kind` describes it, `Block` has the parameters.

A kind takes one or two values of shape [batch, 5 tokens, 8 features] and gives one of the same shape, so that
any composition is valid.  The kinds themselves are in `fxlrp.testing.kinds`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

TOKENS, FEATURES, OPTIONS = 5, 8, 3
Part = nn.Module | Tensor
Growth = Callable[[list[int]], int]


class Block(nn.Module):
    """`apply(self, *values)`, with `parts` (modules, parameters, constant tensors) as its attributes."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, apply: Callable[..., Tensor], parts: Mapping[str, Part], option: int = 0) -> None:
        super().__init__()
        self.compute, self.option = apply, option
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *values: Tensor) -> Tensor:
        """[batch, 5, 8] for values of that shape."""
        return self.compute(self, *values)


def largest(degrees: list[int]) -> int:
    """Growth of what is linear in its operands, or nearly."""
    return max(degrees)


def bounded(degrees: list[int]) -> int:
    """Growth of what stays within fixed bounds, or starts anew at scale 1."""
    return 1


def squared(degrees: list[int]) -> int:
    """Growth of what multiplies its operand with itself."""
    return 2 * degrees[0]


@dataclass(frozen=True)
class Kind:
    """One operator kind of a random graph.

    name: as printed in a listing.  apply: (block, value[, value]) -> value.  parts: make the parameters.
    growth: the degree in which the result grows with the graph's inputs, from the operands' degrees;
    strategies keep it small, so that values stay in a sane range.  exact: False where it rounds to float32.
    """

    name: str
    apply: Callable[..., Tensor]
    growth: Growth = largest
    exact: bool = True
    parts: Mapping[str, Callable[[], Part]] = field(default_factory=dict)

    @property
    def arity(self) -> int:
        """How many values it takes."""
        return len(inspect.signature(self.apply).parameters) - 1

    def block(self, option: int = 0) -> Block:
        """A fresh block; `option`, 0 to 2, is a small parameter (a shift, say), read as the kind likes."""
        return Block(self.apply, {name: make() for name, make in self.parts.items()}, option)


def kind(name: str, apply: Callable[..., Tensor], growth: Growth = largest, **parts: Callable[[], Part]) -> Kind:
    """An exact `Kind`; the makers of its parts are keyword arguments."""
    return Kind(name, apply, growth, parts=parts)


def linear(inside: int = FEATURES, outside: int = FEATURES, bias: bool = True) -> Callable[[], nn.Module]:
    """A maker of `nn.Linear`."""
    return partial(nn.Linear, inside, outside, bias=bias)


def parameter(*shape: int, value: float = 0.0) -> Callable[[], nn.Parameter]:
    """A maker of a parameter; `value` 1 marks the weight of a norm, all else is redrawn by its name."""
    return lambda: nn.Parameter(torch.full(shape, value))


def across_tokens(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply what expects [batch, features, tokens]."""
    return module(x.transpose(1, 2)).transpose(1, 2)
