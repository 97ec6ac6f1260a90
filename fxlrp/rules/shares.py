"""Rules that share relevance out: R_j = sum_i (numerator of j at i) / (denominator at i) R_i, in both messages.

Such a rule is one function that gives numerators, as differentiable values, and their denominators. From it come its
surrogate for gradients, sum N (z / D).detach(), and its form for relevance, sum N (1 / D).detach() between R and x g:
the paper's own, in which nothing is divided by z.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce, wraps
from typing import Any

import torch
from torch import Tensor

from fxlrp.graph.operator_classes import ADD, AFFINE, OperatorClass, find_class
from fxlrp.rules.operation import Operation
from fxlrp.rules.primitives import as_relevance, ratio, same_value
from fxlrp.rules.ranges import Relation
from fxlrp.rules.rule import Cite, Conserves, Message, Rule, enter

#: Numerators, whose gradients are the contributions, with their denominators.
Shares = list[tuple[Tensor, Tensor]]


def shared(z: Tensor, shares: Iterable[tuple[Tensor, Tensor]], amount: Tensor | float = 1.0) -> Tensor:
    """``z``, whose message goes to each numerator times ``amount`` / its denominator (0 where that is 0)."""
    amounts = amount if isinstance(amount, Tensor) else torch.full_like(z, amount)
    parts = [numerator * ratio(amounts, denominator).detach() for numerator, denominator in shares]
    return same_value(z, reduce(torch.add, parts))


@dataclass(frozen=True)
class ShareRule(Rule):
    """A rule made of ``shares(op, *operands, **parameters)``. One for sums stands on *affine* sums as well:
    :data:`fxlrp.rules.spread.AFFINE`; ``whole`` tells whether it then asks for more operands than their value.
    """

    shares: Callable[..., Shares] = field(default=list, compare=False)
    whole: Callable[[Mapping[str, Any]], bool] = field(default=lambda parameters: False, compare=False)

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

        made = ShareRule(
            function.__name__,
            classes,
            surrogate,
            Conserves.WITH_LEAK,
            source,
            leak or untaken,
            leak_kind,
            shares=function,
            relation=relation,
        )
        made.in_relevance(relevance)
        enter(made)
        return made

    return register


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

        made = ShareRule(
            function.__name__,
            classes,
            surrogate,
            Conserves.WITH_LEAK,
            source,
            leak,
            leak_kind,
            message=Message.RELEVANCE,
            shares=function,
            whole=whole,
            relation=relation,
        )
        enter(made)
        return made

    return register


def _relevant(op: Operation, operands: tuple[Any, ...]) -> tuple[Any, ...]:
    """The operands, those that carry relevance or are sources behind a step from gradient to relevance."""
    return tuple(as_relevance(x) if op.live[i] or i in op.sources else x for i, x in enumerate(operands))
