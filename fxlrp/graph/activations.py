"""Activation functions: slopes ``f(x)/x`` in closed form where f(0) = 0, and activations that a model spells out.

The slope is the whole of the identity rule (``g_x = slope(x) g_y``): no division by x, exact at and near zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

Function = Callable[..., Tensor]


@torch.library.custom_op("fxlrp::spelled_activation", mutates_args=())
def spelled_activation(x: Tensor) -> Tensor:
    """Stands in patterns for any activation that a model spells out in arithmetic."""
    return x.clone()


spelled_activation.register_fake(torch.empty_like)
SPELLED = torch.ops.fxlrp.spelled_activation


@dataclass(frozen=True, eq=False)
class SpelledActivation:
    """An activation that a model spells out, folded into one operator: its own arithmetic and the closed-form slope."""

    name: str
    arithmetic: fx.GraphModule
    closed_slope: Function
    overloadpacket: Any = SPELLED

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, x: Tensor) -> Tensor:
        """The activation's value, by the model's own arithmetic."""
        value: Tensor = self.arithmetic(x)
        return value


def sinc_like(value: Tensor, x: Tensor, limit: float) -> Tensor:
    """``value / x`` with ``limit`` where x is zero (value must vanish there)."""
    zero = x == 0
    return torch.where(zero, torch.full_like(x, limit), value / torch.where(zero, torch.ones_like(x), x))


def normal_cdf(x: Tensor) -> Tensor:
    """Phi(x), the standard normal distribution function, by erfc: exact in the far left tail."""
    return 0.5 * torch.erfc(x * (-1 / math.sqrt(2.0)))


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """The slope of GELU, exact or in its tanh form."""
    if approximate == "tanh":
        return torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
    return normal_cdf(x)


def elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    """The slope of ELU and its scaled forms (CELU, SELU)."""
    negative = torch.clamp(x, max=0) * input_scale
    return torch.where(
        x > 0,
        torch.full_like(x, scale),
        scale * alpha * input_scale * sinc_like(torch.expm1(negative), negative, 1.0),
    )


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """The slope of softplus, less its value at zero."""
    value = F.softplus(x, beta, threshold) - math.log(2.0) / beta
    return sinc_like(value, x, 0.5)


def power(x: Tensor, exponent: float) -> Tensor:
    """The slope of x to a constant power."""
    return torch.pow(x, exponent - 1)
