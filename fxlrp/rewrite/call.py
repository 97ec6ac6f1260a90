"""A rule applied to one operation, as a callable that a graph can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fxlrp.capture import torch_private as private
from fxlrp.capture.program import widened
from fxlrp.graph.operators import is_continuous
from fxlrp.rules import Operation, Post, Rule
from fxlrp.rules.operation import Reference
from fxlrp.rules.post import posted
from fxlrp.rules.primitives import as_relevance, received
from fxlrp.rules.rule import Message
from fxlrp.rules.shares import ShareRule, in_proportion, shared
from fxlrp.rules.spread import AFFINE


@dataclass(frozen=True, eq=False)
class RuleCall:
    """Calls ``rule`` on ``operation``; takes the operands, then the operation's other arguments, and for a rule that
    compares all of them once more, as they are on the reference input. ``takes`` and ``gives`` are the messages that
    arrive and that are handed on, ``post`` what happens to relevance on its way to the operands. Without ``valued`` the
    value may be any: it is the messages that are wanted.
    """

    rule: Rule
    params: Mapping[str, Any]
    operation: Operation
    takes: Message = Message.GRADIENT
    gives: Message = Message.GRADIENT
    post: tuple[Post, ...] = ()
    valued: bool = True

    @property
    def __name__(self) -> str:
        return self.rule.name

    def __call__(self, *values: Any) -> Any:
        """The operation's value, with the rule's backward pass."""
        count = len(self.operation.live)
        own, other = values, ()
        if self.rule.compares:
            own, other = values[: len(values) // 2], values[len(values) // 2 :]
        operation = self.operation.bind(own[count:])
        if other:
            elsewhere = Reference(self.operation.bind(other[count:]), other[:count])
            operation = replace(operation, reference=elsewhere)
        if self.rule.keeps_value and not torch.is_grad_enabled():  # no message will come
            return operation(*own[:count])
        apply = self.rule.sent if isinstance(self.rule, ShareRule) and not self.valued else self.rule.apply
        if not self.post:
            return apply(self.takes, operation, *own[:count], **self.params)
        on_relevance = partial(apply, Message.RELEVANCE, operation, **self.params)
        y = posted(self.post, operation.live, on_relevance, own[:count], operation.axes_of_samples())
        return y if self.takes is Message.RELEVANCE else as_relevance(y)

    def leak(self, y: Tensor, message: Tensor, *values: Any) -> Tensor:
        """What the rule declares to keep of the incoming relevance, summed in float64: a function of the message."""
        count = len(self.operation.live)
        y, *wide = private.pytree.tree_map_only(Tensor, lambda x: widened(x.detach()), [y, *values])
        with torch.set_grad_enabled(message.requires_grad):
            if self.gives is Message.RELEVANCE:
                return self._lost(y, widened(message), wide)
            assert self.rule.leak is not None
            operation = self.operation.bind(wide[count:])
            return total(self.rule.leak(operation, y, widened(message), *wide[:count], **self.params))

    def _lost(self, y: Tensor, message: Tensor, values: list[Any]) -> Tensor:
        """Relevance that arrived less what operands and sources receive, from the rule applied here alone."""
        arrived = message if self.takes is Message.RELEVANCE else received(y, message)
        counted = [i for i, live in enumerate(self.operation.live) if live or i in self.operation.sources]
        # An operand may be several tensors, of which the operation takes one out.
        leaves = {i: private.pytree.tree_map_only(Tensor, _leaf, values[i]) for i in counted}
        watched = [x for x in private.pytree.tree_leaves(leaves) if isinstance(x, Tensor) and x.requires_grad]
        with torch.enable_grad():
            value = self(*(leaves.get(i, x) for i, x in enumerate(values)))
        given = torch.autograd.grad(value, watched, message, allow_unused=True, create_graph=message.requires_grad)
        return total(arrived) - torch.stack([total(r) for r in given if r is not None] or [total(arrived * 0)]).sum()


@dataclass(frozen=True, eq=False)
class SumCall:
    """Calls ``rule`` on a sum of linear maps as a whole: on its value z, whose terms take gradient messages and, where
    the rule asks for them, on its offset (z where all units are 0) and on its units, which take relevance.
    """

    rule: ShareRule
    params: Mapping[str, Any]
    takes: Message = Message.GRADIENT

    @property
    def __name__(self) -> str:
        return self.rule.name

    def __call__(self, z: Tensor, *rest: Tensor) -> Tensor:
        """The sum's value, with the rule's backward pass."""
        if self.rule.denominators is not None:
            return in_proportion(z, partial(self.rule.denominators, **self.params), self.takes)
        shares = self.rule.shares(AFFINE, z, *rest, **self.params)
        if self.takes is Message.GRADIENT and self.rule.message is Message.GRADIENT:
            return shared(z, shares, z)
        y = shared(z, shares)
        return y if self.takes is Message.RELEVANCE else as_relevance(y)

    def leak(self, y: Tensor, message: Tensor, *values: Tensor) -> Tensor:
        """Relevance that arrived less what the terms, the offset and the units receive, summed in float64."""
        y, message = widened(y.detach()), widened(message)
        leaves = [widened(value).detach().requires_grad_() for value in values]
        twice = message.requires_grad
        with torch.enable_grad():
            given = torch.autograd.grad(self(*leaves), leaves, message, allow_unused=True, create_graph=twice)
        arrived = message if self.takes is Message.RELEVANCE else received(y, message)
        relevance = [
            (received(x.detach(), g) if i < 2 else g)
            for i, (x, g) in enumerate(zip(leaves, given, strict=True))
            if g is not None
        ]
        return total(arrived) - torch.stack([total(r) for r in relevance]).sum()


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_(is_continuous(x))


def total(amount: Tensor) -> Tensor:
    """The sum in float64."""
    return (amount.real + amount.imag if amount.is_complex() else amount).sum(dtype=torch.float64)


def source_leaf(value: Tensor | float, like: Tensor) -> Tensor:
    """An additive constant as a leaf of its own, so that the backward pass reports its message."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(is_continuous(value))
    return torch.full((), value, dtype=like.dtype, device=like.device, requires_grad=True)
