"""Rules that share relevance out: R_j = sum_i (numerator of j at i) / (denominator at i) R_i, in both messages.

Such a rule is one function that gives numerators, as differentiable values, and their denominators. From it come its
surrogate for gradients, sum N (z / D).detach(), and its form for relevance, sum N (1 / D).detach() between R and x g:
the paper's own, in which nothing is divided by z.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial, reduce, wraps
from typing import Any

import torch
from torch import Tensor

from fxlrp.graph.operator_classes import ADD, AFFINE, OperatorClass, find_class
from fxlrp.rules.operation import Operation
from fxlrp.rules.primitives import as_relevance, change_message, ratio, same_value
from fxlrp.rules.ranges import Relation
from fxlrp.rules.rule import Cite, Conserves, Message, Rule, enter

#: Numerators, whose gradients are the contributions, with their denominators.
Shares = list[tuple[Tensor, Tensor]]


def shared(z: Tensor, shares: Shares, amount: Tensor | float = 1.0) -> Tensor:
    """``z``, whose message goes to each numerator times ``amount`` / its denominator (0 where that is 0)."""
    return same_value(z, reduce(torch.add, _parts(shares, amount)))


def _parts(shares: Shares, amount: Tensor | float = 1.0) -> list[Tensor]:
    """Each numerator times the constant ``amount`` / its denominator."""
    amounts = (amount if isinstance(amount, Tensor) else torch.full_like(d, amount) for _, d in shares)
    return [n * ratio(a, d).detach() for (n, d), a in zip(shares, amounts, strict=True)]


@dataclass(frozen=True)
class ShareRule(Rule):
    """A rule made of ``shares(op, *operands, **parameters)``. One for sums stands on *affine* sums as well:
    :data:`fxlrp.rules.spread.AFFINE`; ``whole`` tells whether it then asks for more operands than their value.
    ``denominators(z, **parameters)``: those of a rule with z itself as its one numerator (:func:`proportional_rule`).
    """

    shares: Callable[..., Shares] = field(default=list, compare=False)
    whole: Callable[[Mapping[str, Any]], bool] = field(default=lambda parameters: False, compare=False)
    denominators: Callable[..., Tensor] | None = field(default=None, compare=False)

    def sent(self, message: Message, op: Operation, *operands: Any, **parameters: Any) -> Tensor:
        """What :meth:`apply` gives, with the same messages to the operands, but not with the operation's value: that
        of relevance is not computed.
        """
        if message is Message.GRADIENT or self.denominators is not None:
            return self.apply(message, op, *operands, **parameters)
        relevant = operands if self.message is Message.RELEVANCE else _relevant(op, operands)
        return reduce(torch.add, _parts(self.shares(op, *relevant, **parameters)))

    def fits(self, category: OperatorClass) -> bool:
        """Whether the rule can take operations of this class; an affine sum is a sum."""
        return super().fits(ADD if category == AFFINE else category)


def share_rule(
    *on: str | OperatorClass,
    source: Cite,
    leak_kind: str,
    leak: Callable[..., Tensor] | None = None,
    relation: Relation | None = None,
) -> Callable[[Callable[..., Shares]], ShareRule]:
    """Register a function that gives shares as the rule of its name; what no numerator takes is its leak (unless
    another is given).
    """
    classes = tuple(map(find_class, on))

    def register(function: Callable[..., Shares]) -> ShareRule:
        @wraps(function)
        def surrogate(op: Operation, *operands: Any, **parameters: Any) -> Tensor:
            z: Tensor = op(*operands)
            return shared(z, function(op, *operands, **parameters), z)

        def relevance(op: Operation, *operands: Any, **parameters: Any) -> Tensor:
            return shared(op(*operands), function(op, *_relevant(op, operands), **parameters))

        def untaken(op: Operation, y: Tensor, g: Tensor, *operands: Any, **parameters: Any) -> Tensor:
            passed = [n * ratio(y, d) for n, d in function(op, *operands, **parameters)]
            return (y - torch.stack(passed).sum(0)) * g

        sharing = {"shares": function, "relation": relation}
        return _entered(classes, surrogate, relevance, source, leak or untaken, leak_kind, **sharing)

    return register


def proportional_rule(
    *on: str | OperatorClass, source: Cite, leak_kind: str
) -> Callable[[Callable[..., Tensor]], ShareRule]:
    """Register a function that gives the denominators D(z) of an operation's value z as the rule by which each operand
    receives what it contributes, R_j = sum_i z_ij / D(z_i) R_i. Nothing but operands and value is kept for it.
    """
    classes = tuple(map(find_class, on))

    def register(function: Callable[..., Tensor]) -> ShareRule:
        @wraps(function)
        def shares(op: Operation, *operands: Any, **parameters: Any) -> Shares:
            z: Tensor = op(*operands)
            return [(z, function(z, **parameters))]

        @wraps(function)
        def surrogate(op: Operation, *operands: Any, **parameters: Any) -> Tensor:
            return in_proportion(op(*operands), partial(function, **parameters), Message.GRADIENT)

        def relevance(op: Operation, *operands: Any, **parameters: Any) -> Tensor:
            z = op(*_relevant(op, operands))
            return in_proportion(z, partial(function, **parameters), Message.RELEVANCE)

        def untaken(op: Operation, y: Tensor, g: Tensor, *operands: Any, **parameters: Any) -> Tensor:
            return (y - y * ratio(y, function(y, **parameters))) * g

        sharing = {"shares": shares, "denominators": function}
        return _entered(classes, surrogate, relevance, source, untaken, leak_kind, **sharing)

    return register


def in_proportion(z: Tensor, denominators: Callable[[Tensor], Tensor], message: Message) -> Tensor:
    """``z``, whose gradient message is multiplied by z / D(z), or whose relevance is divided by D(z); 0 at D(z) = 0."""

    def change(arrived: Tensor, z: Tensor) -> Tensor:
        if message is Message.RELEVANCE:
            return ratio(arrived, denominators(z).conj())
        return arrived * ratio(z, denominators(z)).conj()

    return change_message(z, change, z)


def relevance_share_rule(
    *on: str | OperatorClass,
    source: Cite,
    leak_kind: str,
    leak: Callable[..., Tensor] | None = None,
    whole: Callable[[Mapping[str, Any]], bool] = lambda parameters: False,
    relation: Relation | None = None,
) -> Callable[[Callable[..., Shares]], ShareRule]:
    """The same for a rule whose numerators are not proportional to x: it takes and gives relevance alone, and its
    function sends each numerator's message to x as it is.
    """
    classes = tuple(map(find_class, on))

    def register(function: Callable[..., Shares]) -> ShareRule:
        @wraps(function)
        def surrogate(op: Operation, *operands: Any, **parameters: Any) -> Tensor:
            return shared(op(*operands), function(op, *operands, **parameters))

        sharing = {"message": Message.RELEVANCE, "shares": function, "whole": whole, "relation": relation}
        return _entered(classes, surrogate, None, source, leak, leak_kind, **sharing)

    return register


def _entered(
    classes: tuple[OperatorClass, ...],
    surrogate: Callable[..., Tensor],
    relevance: Callable[..., Tensor] | None,
    source: Cite,
    leak: Callable[..., Tensor] | None,
    leak_kind: str,
    **sharing: Any,
) -> ShareRule:
    """The rule of a surrogate's name, registered; ``relevance`` is its form between R and x g, if it has both."""
    made = ShareRule(surrogate.__name__, classes, surrogate, Conserves.WITH_LEAK, source, leak, leak_kind, **sharing)
    if relevance is not None:
        made.in_relevance(relevance)
    enter(made)
    return made


def _relevant(op: Operation, operands: tuple[Any, ...]) -> tuple[Any, ...]:
    """The operands, those that carry relevance or are sources behind a step from gradient to relevance."""
    return tuple(as_relevance(x) if op.live[i] or i in op.sources else x for i, x in enumerate(operands))
