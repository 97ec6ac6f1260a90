"""The three primitives that surrogates are made of, beside ``detach``: all return a value unchanged and alter
its message.
"""

from __future__ import annotations

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


class _Carried(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        (slope,) = ctx.saved_tensors
        return None, grads[0] * slope, None


class _SameValue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, y: Tensor, surrogate: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]


def scale_message(x: Tensor, factor: Tensor | float) -> Tensor:
    """``x``, whose message is multiplied by ``factor`` (of x's shape or a number)."""
    return _apply(_Scaled, x, factor)


def carry(y: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    """``y``, whose message reaches ``x`` times ``slope``: the same as ``x * slope.detach()`` where that is y,
    bit for bit y.
    """
    return _apply(_Carried, y.detach(), x, slope.detach())


def same_value(y: Tensor, surrogate: Tensor) -> Tensor:
    """``y``, whose message goes where ``surrogate`` (equal to y but for rounding) came from."""
    return _apply(_SameValue, y.detach(), surrogate)


def _apply(function: Any, *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)
    return result


def away_from_zero(x: Tensor, epsilon: float) -> Tensor:
    """x + epsilon sign(x), with sign(0) = +1."""
    return x + epsilon * torch.where(x < 0, -1.0, 1.0).to(x.dtype)


def received(value: Tensor, message: Tensor) -> Tensor:
    """value x message, and 0 where the message is 0, also at the infinite values of masks. What a complex number
    receives is the sum of what its two parts do: Re(z conj(g)).
    """
    if value.is_complex():
        return received(torch.view_as_real(value.resolve_conj()), torch.view_as_real(message.resolve_conj())).sum(-1)
    return torch.where(message == 0, torch.zeros_like(message), value * message)


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0."""
    zero = b == 0
    return torch.where(zero, torch.zeros_like(a), a / torch.where(zero, torch.ones_like(b), b))
