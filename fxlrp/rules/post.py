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

#: The axes that sums are taken over, as a slice of all.
_AXES = {"features": slice(-1, None), "matrix": slice(-2, None), "sample": slice(1, None)}


class Post(BaseModel):
    """One post-operation on the relevance R_x that all operands of an operation y together receive.

    ``abs``: |R_x|. ``clamp``: max(R_x, 0). ``match_sum``: R_x (sum R_y + epsilon) / (sum R_x + epsilon).
    ``match_abs_sum``: R_x (sum |R_y|) / (sum |R_x| + epsilon). Sums are taken ``over`` the ``features`` of each token
    (the last axis), over each ``matrix`` (the last two) or over each ``sample`` (all but the first), and
    over each sample too where y and x do not share the axes that are kept. epsilon has the unit of relevance.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["abs", "clamp", "match_sum", "match_abs_sum"]
    epsilon: float = Field(default=0.0, ge=0)
    over: Literal["features", "matrix", "sample"] = "features"

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways to take sums, of which the first that y and x share is taken; none if no sums are compared."""
        return tuple(dict.fromkeys((self.over, "sample"))) if self.kind in MATCHING else ()

    def __str__(self) -> str:
        return self.kind


def summed(relevance: Tensor, over: str) -> Tensor:
    """The sums that ``over`` names; the axes summed over are kept, of size one."""
    axes = tuple(range(relevance.ndim))[_AXES[over]]
    return relevance.sum(axes, keepdim=True) if axes else relevance


def axes_apart(shape: torch.Size, over: str) -> torch.Size:
    """The sizes of the axes that the sums named ``over`` keep apart, of values of this ``shape``."""
    count = len(range(len(shape))[_AXES[over]])
    return shape[: len(shape) - count]


#: Post-operations that look at each entry alone, and what of the arriving relevance the others sum up.
ENTRYWISE: dict[str, Callable[[Tensor], Tensor]] = {"abs": torch.abs, "clamp": lambda r: r.clamp(min=0)}
MATCHING: dict[str, Callable[[Tensor], Tensor]] = {"match_sum": lambda r: r, "match_abs_sum": torch.abs}


def matched(post: Post, received: Sequence[Tensor], tally: Tensor, over: str) -> list[Tensor]:
    """``received`` times (arrived + epsilon) / (sum of received + epsilon), for each sum; as it is without a tally.

    tally: [2, ...], the sums of what arrived, in the shape of those of the first operand, and whether there are any.
    """
    size = MATCHING[post.kind]
    arrived, there = tally
    total = torch.stack([summed(size(r), over).reshape(arrived.shape) for r in received]).sum(0)
    factor = ratio(arrived if size is torch.abs else arrived + post.epsilon, total + post.epsilon)
    factor = torch.where(there == 0, 1.0, factor)
    return [r * factor.reshape(summed(r, over).shape) for r in received]


class _Gate(torch.autograd.Function):
    """The operands, behind tallies [2, ...]: one for every way in which a post-operation may compare sums. Backward,
    one tally of each brings the sums of what arrived, and ones.
    """

    @staticmethod
    def forward(ctx: Any, posts: tuple[Post, ...], *operands: Tensor) -> tuple[Tensor, ...]:
        ctx.posts = posts
        sums = (summed(operands[0].detach(), over) for p in posts for over in p.ways)
        return *(torch.zeros_like(torch.stack((s, s))) for s in sums), *(x.view_as(x) for x in operands)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        count = sum(len(post.ways) for post in ctx.posts)
        tallies, received = iter(grads[:count]), list(grads[count:])
        for post in ctx.posts:
            if post.kind in ENTRYWISE:
                received = [ENTRYWISE[post.kind](r) for r in received]
            for over in post.ways:
                received = matched(post, received, next(tallies), over)
        return None, *received


class _Tallied(torch.autograd.Function):
    """``y``, whose message also reaches, summed, one tally of each post-operation that compares sums."""

    @staticmethod
    def forward(ctx: Any, posts: tuple[Post, ...], y: Tensor, *tallies: Tensor) -> Tensor:
        given = iter(tallies)
        ctx.sums = []
        for post in posts:
            tries = [(post, over, next(given).shape[1:]) for over in post.ways]
            fitting = next((t for t in tries if axes_apart(t[2], t[1]) == axes_apart(y.shape, t[1])), None)
            if tries and fitting is None:
                raise RulesetError(
                    f"Post-operation '{post.kind}' cannot compare the sums of an operation's value {list(y.shape)} "
                    "with those of its operand: they do not even share their first axis, the samples."
                )
            ctx.sums.extend(t if t is fitting else None for t in tries)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        def arrived(post: Post, over: str, shape: torch.Size) -> Tensor:
            sums = summed(MATCHING[post.kind](grads[0]), over).reshape(shape)
            return torch.stack((sums, torch.ones_like(sums)))

        return None, grads[0], *(None if each is None else arrived(*each) for each in ctx.sums)


def posted(
    posts: tuple[Post, ...], live: Sequence[bool], call: Callable[..., Tensor], operands: Sequence[Any]
) -> Tensor:
    """``call(*operands)`` on relevance, where what the ``live`` operands receive passes through ``posts`` in turn.

    The other operands, weights and additive constants, receive nothing: what arrived is matched by the live ones alone.
    """
    places = [i for i, alive in enumerate(live) if alive]
    count = sum(len(post.ways) for post in posts)
    passed: Any = _Gate.apply(posts, *(operands[i] for i in places))  # type: ignore[no-untyped-call]
    behind = dict(zip(places, passed[count:], strict=True))
    y = call(*(behind.get(i, x.detach() if isinstance(x, Tensor) else x) for i, x in enumerate(operands)))
    result: Tensor = _Tallied.apply(posts, y, *passed[:count])  # type: ignore[no-untyped-call]
    return result
