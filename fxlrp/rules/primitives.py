"""The primitives that surrogates are made of, beside ``detach``: each returns a value unchanged and alters its message.

A message is a gradient g or a relevance R = x g; :func:`as_relevance` and :func:`as_gradient` lead from one to the
other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor | float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


class _Positive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].clamp(min=0)


class _Carried(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        (slope,) = ctx.saved_tensors
        return None, grads[0] * slope, None


class _Changed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, change: Callable[..., Tensor], *kept: Tensor) -> Tensor:
        ctx.save_for_backward(*kept)
        ctx.change = change
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors  # to be read once
        return ctx.change(grads[0], *kept), None, *(None for _ in kept)


class _SameValue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, y: Tensor, surrogate: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]


class _SentTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, y: Tensor, other: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], grads[0]


class _AsRelevance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return _by_part(received, x, grads[0]).to(x.dtype)


class _AsGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return _by_part(ratio, grads[0], y)


def _by_part(function: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Entry by entry, of complex numbers each part for itself: both parts carry relevance of their own."""
    if not b.is_complex():
        return function(a, b)
    return torch.complex(function(a.real, b.real), function(a.imag, b.imag))


def as_relevance(x: Any) -> Any:
    """``x`` (a tensor, several, a number), through which a gradient message g passes as relevance: R = x g."""
    return _converted(_AsRelevance, x)


def as_gradient(y: Any) -> Any:
    """``y`` (a tensor or several), through which relevance R passes as a gradient message: g = R / y, 0 at y = 0."""
    return _converted(_AsGradient, y)


def _converted(function: Any, value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_converted(function, item) for item in value)
    return _apply(function, value) if isinstance(value, Tensor) and value.requires_grad else value


def scale_message(x: Tensor, factor: Tensor | float) -> Tensor:
    """``x``, whose message is multiplied by ``factor`` (of x's shape or a number)."""
    return _apply(_Scaled, x, factor)


def change_message(y: Tensor, change: Callable[..., Tensor], *kept: Tensor) -> Tensor:
    """``y``, whose message m becomes ``change(m, *kept)``; nothing else is kept for it."""
    return _apply(_Changed, y, change, *(each.detach() for each in kept))


def positive_message(x: Tensor) -> Tensor:
    """``x``, of whose message only what is positive passes."""
    return _apply(_Positive, x)


def carry(y: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    """``y``, whose message reaches ``x`` times ``slope``: the same as ``x * slope.detach()`` where that is y,
    bit for bit y.
    """
    return _apply(_Carried, y.detach(), x, slope.detach())


def carry_all(y: Tensor, *ways: tuple[Tensor, Tensor]) -> Tensor:
    """``y``, whose message reaches each x times its slope: the derivative of the sum of x slope.detach()."""
    return same_value(y, reduce(torch.add, [(x * slope.detach()).expand_as(y) for x, slope in ways]))


def same_value(y: Tensor, surrogate: Tensor) -> Tensor:
    """``y``, whose message goes where ``surrogate`` (equal to y but for rounding) came from."""
    return _apply(_SameValue, y.detach(), surrogate)


def send_twice(y: Tensor, other: Tensor) -> Tensor:
    """``y``, whose message goes in full to ``other`` (of the same shape) as well."""
    return _apply(_SentTwice, y, other)


def _apply(function: Any, *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)
    return result


def known(holds: Callable[[], Any], x: Tensor) -> bool:
    """Whether a condition on the values of ``x`` is known to hold without waiting for a device: masks and choices are
    many times as slow on a CPU as a look whether they are needed.
    """
    if x.device.type != "cpu" or type(x) is not Tensor or torch.compiler.is_compiling():
        return False
    try:
        return bool(holds())
    except RuntimeError:  # a value of many samples at once, which is none by itself
        return False


def nowhere_zero(x: Tensor) -> bool:
    """Whether it is known that no entry is 0."""
    return known(lambda: x.count_nonzero() == x.numel(), x)


def received(value: Tensor, message: Tensor) -> Tensor:
    """value x message, and 0 where the message is 0, also at the infinite values of masks. What a complex number
    receives is the sum of what its two parts do: Re(z conj(g)).
    """
    if value.is_complex():
        return received(torch.view_as_real(value.resolve_conj()), torch.view_as_real(message.resolve_conj())).sum(-1)
    if known(lambda: torch.isfinite(value.sum()), value):
        return value * message
    fast = not message.requires_grad
    if fast and known(lambda: torch.isfinite(message.sum()) and not value.amax().isnan(), message):  # NaN: 0 x inf
        return torch.nan_to_num(value * message, nan=0.0, posinf=float("inf"), neginf=-float("inf"))
    return torch.where(message == 0, 0.0, value) * message


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0."""
    if nowhere_zero(b):
        return a / b
    zero = b == 0
    return torch.where(zero, torch.zeros_like(a), a / torch.where(zero, torch.ones_like(b), b))
