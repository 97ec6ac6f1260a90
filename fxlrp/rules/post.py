"""Post-operations: what becomes of the relevance that a rule hands on, before the operands receive it.

A rule works as it is; its operands stand behind a gate (:func:`posted`) that alters what passes, given sums of what
arrived at the operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fxlrp.errors import RulesetError
from fxlrp.rules.primitives import ratio

#: How many axes in front are kept apart by sums over the others.
_KEPT = {"head": 2, "sample": 1}


class Post(BaseModel):
    """One post-operation on the relevance R_x that all operands of an operation y together receive.

    ``abs``: |R_x|. ``clamp``: max(R_x, 0). ``match_sum``: R_x (sum R_y + epsilon) / (sum R_x + epsilon).
    ``match_abs_sum``: R_x (sum |R_y|) / (sum |R_x| + epsilon). Sums are taken ``over`` the ``features`` of each token
    (the last axis), over each ``head`` (all axes but the first two) or over each ``sample`` (all but the first).
    epsilon has the unit of relevance.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["abs", "clamp", "match_sum", "match_abs_sum"]
    epsilon: float = Field(default=0.0, ge=0)
    over: Literal["features", "head", "sample"] = "features"

    @property
    def matches(self) -> bool:
        """Whether it needs to know what arrived."""
        return self.kind in MATCHING

    def summed(self, relevance: Tensor) -> Tensor:
        """Sums over the axes in ``over``, which are kept with size one."""
        axes = (-1,) if self.over == "features" else tuple(range(_KEPT[self.over], relevance.ndim))
        return relevance.sum(axes, keepdim=True) if axes else relevance

    def __str__(self) -> str:
        return self.kind


def _factor(post: Post, received: Sequence[Tensor], arrived: Tensor) -> list[Tensor]:
    """``received`` times one factor for each sum."""
    sized = post.kind == "match_abs_sum"
    total = sum((post.summed(r.abs() if sized else r).reshape(arrived.shape) for r in received), 0 * arrived)
    factor = ratio(arrived if sized else arrived + post.epsilon, total + post.epsilon)
    return [r * factor.reshape(post.summed(r).shape) for r in received]


#: Post-operations that look at each entry alone, and what of the arriving relevance the others sum up.
ENTRYWISE: dict[str, Callable[[Tensor], Tensor]] = {"abs": torch.abs, "clamp": lambda r: r.clamp(min=0)}
MATCHING: dict[str, Callable[[Tensor], Tensor]] = {"match_sum": lambda r: r, "match_abs_sum": torch.abs}


class _Gate(torch.autograd.Function):
    """The operands, behind a tally for each matching post-operation; backward, the tallies bring what arrived."""

    @staticmethod
    def forward(ctx: Any, posts: tuple[Post, ...], *operands: Tensor) -> tuple[Tensor, ...]:
        ctx.posts = posts
        tallies = (torch.zeros_like(p.summed(operands[0].detach())) for p in posts if p.matches)
        return *tallies, *(x.view_as(x) for x in operands)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        count = sum(p.matches for p in ctx.posts)
        arrived, received = iter(grads[:count]), list(grads[count:])
        for post in ctx.posts:
            if post.matches:
                received = _factor(post, received, next(arrived))
            else:
                received = [ENTRYWISE[post.kind](r) for r in received]
        return None, *received


class _Tallied(torch.autograd.Function):
    """``y``, whose message also reaches the tallies, summed as each post-operation asks."""

    @staticmethod
    def forward(ctx: Any, posts: tuple[Post, ...], y: Tensor, *tallies: Tensor) -> Tensor:
        for post, tally in zip(posts, tallies, strict=True):
            if post.summed(y).numel() != tally.numel():
                raise RulesetError(
                    f"Post-operation '{post.kind}' over '{post.over}' cannot compare an operation's value "
                    f"{list(y.shape)} with its operand, which has {tally.numel()} sums: they do not share the other "
                    "axes. Use over: sample."
                )
        ctx.posts, ctx.shapes = posts, [tally.shape for tally in tallies]
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        sums = (p.summed(MATCHING[p.kind](grads[0])) for p in ctx.posts)
        return None, grads[0], *(s.reshape(shape) for s, shape in zip(sums, ctx.shapes, strict=True))


def posted(
    posts: tuple[Post, ...], live: Sequence[bool], call: Callable[..., Tensor], operands: Sequence[Any]
) -> Tensor:
    """``call(*operands)`` on relevance, where what the ``live`` operands receive passes through ``posts`` in turn.

    The other operands, weights and additive constants, receive nothing: what arrived is matched by the live ones alone.
    """
    places = [i for i, alive in enumerate(live) if alive]
    matching = tuple(post for post in posts if post.matches)
    passed: Any = _Gate.apply(posts, *(operands[i] for i in places))  # type: ignore[no-untyped-call]
    behind = dict(zip(places, passed[len(matching) :], strict=True))
    y = call(*(behind.get(i, x.detach() if isinstance(x, Tensor) else x) for i, x in enumerate(operands)))
    result: Tensor = _Tallied.apply(matching, y, *passed[: len(matching)])  # type: ignore[no-untyped-call]
    return result
