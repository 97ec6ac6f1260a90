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


class Post(BaseModel):
    """One post-operation on the relevance R_x that all operands of an operation y together receive.

    ``abs``: |R_x|. ``clamp``: max(R_x, 0). ``match_sum``: R_x (sum R_y + epsilon) / (sum R_x + epsilon).
    ``match_abs_sum``: R_x (sum |R_y|) / (sum |R_x| + epsilon). Sums are taken ``over`` the ``features`` of each token
    (the last axis), over each ``matrix`` (the last two, if samples lie along neither) or over each ``sample`` (all but
    the axis of samples), and over each sample too where y and x do not share the axes that are kept. epsilon has the
    unit of relevance.
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


def summed_axes(count: int, over: str, samples: int) -> tuple[int, ...]:
    """The axes, of ``count``, that sums named ``over`` are taken over where samples lie along an axis."""
    if over == "features":
        return (count - 1,) if count else ()
    if over == "matrix" and samples < count - 2:
        return count - 2, count - 1
    return tuple(axis for axis in range(count) if axis != samples)


def summed(relevance: Tensor, over: str, samples: int) -> Tensor:
    """The sums that ``over`` names; the axes summed over are kept, of size one."""
    axes = summed_axes(relevance.ndim, over, samples)
    return relevance.sum(axes, keepdim=True) if axes else relevance


def sizes_apart(sums: torch.Size, over: str, samples: int) -> list[int]:
    """The sizes of the axes that the sums named ``over`` keep apart, of values, or sums, of this shape."""
    axes = summed_axes(len(sums), over, samples)
    return [size for axis, size in enumerate(sums) if axis not in axes]


#: Post-operations that look at each entry alone, and what of the arriving relevance the others sum up.
ENTRYWISE: dict[str, Callable[[Tensor], Tensor]] = {"abs": torch.abs, "clamp": lambda r: r.clamp(min=0)}
MATCHING: dict[str, Callable[[Tensor], Tensor]] = {"match_sum": lambda r: r, "match_abs_sum": torch.abs}


def matched(post: Post, received: Sequence[Tensor], tally: Tensor, over: str, samples: Sequence[int]) -> list[Tensor]:
    """``received`` times (arrived + epsilon) / (sum of received + epsilon), for each sum; as it is without a tally.

    tally: [2, ...], the sums of what arrived, in the shape of those of the first operand, and whether there are any.
    samples: the axis along which they lie in each.
    """
    size = MATCHING[post.kind]
    arrived, there = tally
    sums = [summed(size(r), over, axis) for r, axis in zip(received, samples, strict=True)]
    total = torch.stack([each.reshape(arrived.shape) for each in sums]).sum(0)
    factor = ratio(arrived if size is torch.abs else arrived + post.epsilon, total + post.epsilon)
    factor = torch.where(there == 0, 1.0, factor)
    return [r * factor.reshape(each.shape) for r, each in zip(received, sums, strict=True)]


class _Gate(torch.autograd.Function):
    """The operands, behind tallies [2, ...]: one for every way in which a post-operation may compare sums. Backward,
    one tally of each brings the sums of what arrived, and ones.
    """

    @staticmethod
    def forward(ctx: Any, posts: tuple[Post, ...], samples: tuple[int, ...], *operands: Tensor) -> tuple[Tensor, ...]:
        ctx.posts, ctx.samples = posts, samples
        sums = (summed(operands[0].detach(), over, samples[0]) for p in posts for over in p.ways)
        return *(torch.zeros_like(torch.stack((s, s))) for s in sums), *(x.view_as(x) for x in operands)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        count = sum(len(post.ways) for post in ctx.posts)
        tallies, received = iter(grads[:count]), list(grads[count:])
        for post in ctx.posts:
            if post.kind in ENTRYWISE:
                received = [ENTRYWISE[post.kind](r) for r in received]
            for over in post.ways:
                received = matched(post, received, next(tallies), over, ctx.samples)
        return None, None, *received


class _Tallied(torch.autograd.Function):
    """``y``, whose message also reaches, summed, one tally of each post-operation that compares sums."""

    @staticmethod
    def forward(ctx: Any, posts: tuple[Post, ...], samples: tuple[int, int], y: Tensor, *tallies: Tensor) -> Tensor:
        given = iter(tallies)
        ctx.sums, ctx.samples = [], samples[0]
        for post in posts:
            tries = [(post, over, next(given).shape[1:]) for over in post.ways]
            fitting = next((t for t in tries if _share_axes(t[2], y.shape, t[1], samples)), None)
            if tries and fitting is None:
                raise RulesetError(
                    f"Post-operation '{post.kind}' cannot compare the sums of an operation's value {list(y.shape)} "
                    "with those of its operand: they do not even share the axis of samples."
                )
            ctx.sums.extend(t if t is fitting else None for t in tries)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        def arrived(post: Post, over: str, shape: torch.Size) -> Tensor:
            sums = summed(MATCHING[post.kind](grads[0]), over, ctx.samples).reshape(shape)
            return torch.stack((sums, torch.ones_like(sums)))

        return None, None, grads[0], *(None if each is None else arrived(*each) for each in ctx.sums)


def _share_axes(operand: torch.Size, value: torch.Size, over: str, samples: tuple[int, int]) -> bool:
    return sizes_apart(operand, over, samples[1]) == sizes_apart(value, over, samples[0])


def posted(
    posts: tuple[Post, ...],
    live: Sequence[bool],
    call: Callable[..., Tensor],
    operands: Sequence[Any],
    samples: Sequence[int] = (),
) -> Tensor:
    """``call(*operands)`` on relevance, where what the ``live`` operands receive passes through ``posts`` in turn.

    ``samples`` are the axes along which samples lie in the value and in each operand, the first unless given. The other
    operands, weights and additive constants, receive nothing: what arrived is matched by the live ones alone.
    """
    places = [i for i, alive in enumerate(live) if alive]
    own, *others = samples or [0] * (1 + len(live))
    along = tuple(others[i] for i in places)
    count = sum(len(post.ways) for post in posts)
    passed: Any = _Gate.apply(posts, along, *(operands[i] for i in places))  # type: ignore[no-untyped-call]
    behind = dict(zip(places, passed[count:], strict=True))
    y = call(*(behind.get(i, x.detach() if isinstance(x, Tensor) else x) for i, x in enumerate(operands)))
    result: Tensor = _Tallied.apply(posts, (own, along[0]), y, *passed[:count])  # type: ignore[no-untyped-call]
    return result
