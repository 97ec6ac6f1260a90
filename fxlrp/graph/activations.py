"""The activation functions, each with its slope ``f(x)/x`` in closed form where f(0) = 0.

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

aten = torch.ops.aten
Function = Callable[..., Tensor]


@torch.library.custom_op("fxlrp::spelled_activation", mutates_args=())
def spelled_activation(x: Tensor) -> Tensor:
    """Stands in patterns for any activation that a model spells out in arithmetic."""
    return x.clone()


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


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        return torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
    return normal_cdf(x)


def _elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    negative = torch.clamp(x, max=0) * input_scale
    return torch.where(
        x > 0,
        torch.full_like(x, scale),
        scale * alpha * input_scale * sinc_like(torch.expm1(negative), negative, 1.0),
    )


def _softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    value = F.softplus(x, beta, threshold) - math.log(2.0) / beta
    return sinc_like(value, x, 0.5)


def _power(x: Tensor, exponent: float) -> Tensor:
    return torch.pow(x, exponent - 1)


#: Every elementwise operator with its slope ``(f(x) - f(0)) / x``, or None where no closed form is known: then
#: the difference
#: quotient is taken. Where f(0) is infinite (log, reciprocal, rsqrt) there is no secant.
SLOPES: dict[Any, Function | None] = {
    aten.silu: torch.sigmoid,
    aten.gelu: _gelu,
    aten.tanh: lambda x: sinc_like(torch.tanh(x), x, 1.0),
    aten.sigmoid: lambda x: sinc_like(0.5 * torch.tanh(x / 2), x, 0.25),
    aten.mish: lambda x: torch.tanh(F.softplus(x)),
    aten.hardswish: lambda x: torch.clamp(x + 3, 0, 6) / 6,
    aten.hardsigmoid: None,
    aten.softplus: _softplus,
    aten.elu: _elu,
    aten.celu: lambda x, alpha=1.0: _elu(x, alpha, 1.0, 1.0 / alpha),
    aten.log_sigmoid: None,
    aten.hardshrink: None,
    aten.softshrink: None,
    aten.hardtanh: None,
    aten.relu6: None,
    aten.threshold: None,
    aten.erf: lambda x: sinc_like(torch.erf(x), x, 2 / math.sqrt(math.pi)),
    aten.erfc: None,
    aten.exp: lambda x: sinc_like(torch.expm1(x), x, 1.0),
    aten.exp2: None,
    aten.expm1: lambda x: sinc_like(torch.expm1(x), x, 1.0),
    aten.log: None,
    aten.log2: None,
    aten.log10: None,
    aten.log1p: lambda x: sinc_like(torch.log1p(x), x, 1.0),
    aten.sqrt: None,
    aten.rsqrt: None,
    aten.reciprocal: None,
    aten.pow: _power,
    aten.sin: lambda x: sinc_like(torch.sin(x), x, 1.0),
    aten.cos: None,
    aten.tan: None,
    aten.asin: None,
    aten.acos: None,
    aten.asinh: lambda x: sinc_like(torch.asinh(x), x, 1.0),
    aten.acosh: None,
    aten.atanh: lambda x: sinc_like(torch.atanh(x), x, 1.0),
    aten.frac: None,
    aten.logit: None,
    aten.sinc: None,
    aten.erfinv: None,
    aten.lgamma: None,
    aten.digamma: None,
    aten.special_i0: None,
    aten.sinh: lambda x: sinc_like(torch.sinh(x), x, 1.0),
    aten.cosh: None,
    aten.atan: lambda x: sinc_like(torch.atan(x), x, 1.0),
}


def slope_of(target: Any) -> Function | None:
    """The closed-form slope of an activation operator, None where none is known."""
    return (
        target.closed_slope
        if isinstance(target, SpelledActivation)
        else SLOPES.get(getattr(target, "overloadpacket", target))
    )
