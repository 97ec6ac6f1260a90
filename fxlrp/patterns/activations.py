"""Activations that models spell out in arithmetic, each folded into one operator with its slope f(x)/x in
closed form.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fxlrp.graph.activations import normal_cdf, sinc_like
from fxlrp.patterns.language import either, pattern

ROOT = math.sqrt(2 / math.pi)


def _gelu_tanh_slope(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(ROOT * (x + 0.044715 * x * x * x)))


@pattern("activation", slope=_gelu_tanh_slope, x=(2, 3))
def gelu_tanh(x: Tensor) -> Tensor:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), in the orders of factors that models use."""
    cubic = either(
        ROOT * (x + 0.044715 * torch.pow(x, 3.0)),
        (x * ROOT) * (1 + (0.044715 * x) * x),
        ROOT * (x + 0.044715 * x * x * x),
    )
    bracket = either(1.0 + torch.tanh(cubic), 1.0 + torch.tanh(ROOT * x * (1 + 0.044715 * x * x)))
    return either((0.5 * x) * bracket, x * (0.5 * bracket))


@pattern("activation", slope=normal_cdf, x=(2, 3))
def gelu_erf(x: Tensor) -> Tensor:
    """x/2 (1 + erf(x / sqrt 2))."""
    bracket = 1.0 + torch.erf(either(x / math.sqrt(2.0), x * math.sqrt(0.5)))
    return either((x * 0.5) * bracket, x * (0.5 * bracket), 0.5 * (x * bracket))


@pattern("activation", slope=lambda x: torch.sigmoid(1.702 * x), x=(2, 3))
def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


@pattern("activation", slope=torch.sigmoid, x=(2, 3))
def silu(x: Tensor) -> Tensor:
    """x sigmoid(x)."""
    return x * torch.sigmoid(x)


@pattern("activation", slope=lambda x: torch.tanh(F.softplus(x)), x=(2, 3))
def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x))."""
    return x * torch.tanh(either(F.softplus(x), torch.log1p(torch.exp(x))))


@pattern("activation", slope=torch.relu, x=(2, 3))
def relu_squared(x: Tensor) -> Tensor:
    """relu(x)^2."""
    return torch.pow(F.relu(x), 2)


@pattern("activation", slope=lambda x: torch.clamp(x + 3, 0, 6) / 6, x=(2, 3))
def hard_swish(x: Tensor) -> Tensor:
    """x relu6(x + 3) / 6."""
    gate = either(F.relu6(x + 3.0), torch.clamp(x + 3.0, 0.0, 6.0))
    return either(x * (gate / 6.0), (x * gate) / 6.0)


def _laplace_slope(x: Tensor) -> Tensor:
    scaled = (x - 0.707107) / (0.282095 * math.sqrt(2.0))
    at_zero = torch.erf(torch.full_like(x, -0.707107 / (0.282095 * math.sqrt(2.0))))
    steepest = math.exp(-((0.707107 / 0.282095) ** 2) / 2) / (0.282095 * math.sqrt(2 * math.pi))
    return sinc_like(0.5 * (torch.erf(scaled) - at_zero), x, steepest)


@pattern("activation", slope=_laplace_slope, x=(2, 3))
def laplace(x: Tensor) -> Tensor:
    """(1 + erf((x - mu) / (sigma sqrt 2))) / 2, the activation of the Mega family."""
    return 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))
