"""Weights that are packed in a class of their own, as the matrices that they stand for.

A quantised layer computes x W^T + b with W = dequantised weight, and is explained as the linear layer that it is: a
graph is made of, and run with, the matrices, which are made for the time of a call. A class that can dequantise itself
is asked; of a layer with another the matrix is what it makes of unit vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

#: How far products with a packed weight may be from those with its matrix, as a share of the largest, where they round
#: what they multiply to eight bits. Beyond that a weight stands for no matrix.
ROUNDS_INPUTS = 0.1


def is_packed(weight: Tensor) -> bool:
    """Whether a weight is no tensor of numbers but packed, in a class of its own."""
    kind = type(weight)
    foreign = not kind.__module__.startswith("torch.nn.") and not weight.is_floating_point()
    return kind not in (Tensor, nn.Parameter) and (hasattr(kind, "__tensor_flatten__") or foreign)


def dequantises(weight: Tensor) -> bool:
    """Whether a packed weight passes for a matrix of floats, which it can be asked for."""
    return weight.is_floating_point() and getattr(type(weight), "dequantize", None) is not Tensor.dequantize


def dtype_of(model: nn.Module) -> torch.dtype:
    """The type that a model computes in: that of its first weight of floats."""
    floats = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floats, torch.get_default_dtype())


def dense(layer: nn.Module, name: str, model: nn.Module) -> Tensor:
    """The parameter or buffer of a layer; of one that is packed the matrix that it stands for, in the type that the
    model computes in.
    """
    weight: Tensor = getattr(layer, name)
    return _matrix(layer, weight, dtype_of(model)) if is_packed(weight) else weight


def _matrix(layer: nn.Module, weight: Any, dtype: torch.dtype) -> Tensor:
    with torch.no_grad():
        matrix: Tensor = weight.detach().dequantize() if dequantises(weight) else _of_units(layer, weight, dtype)
    return matrix.to(dtype)


def _of_units(layer: nn.Module, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """W [out, in] of a layer f(x) = x W^T + b: f of unit vectors, less f(0)."""
    width: Any = layer.in_features
    units = torch.eye(width, dtype=dtype, device=weight.device)
    found: Tensor = _forward(layer)(units) - _forward(layer)(units[:1] * 0)
    return found.T.contiguous()


def _forward(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a layer computes, without the hooks that others put on it."""
    return lambda x: type(layer).forward(layer, x)


def distance_from_matrix(layer: nn.Module, name: str, dtype: torch.dtype) -> float:
    """How far what a layer computes with a packed weight is from what it computes with the matrix, as a share of its
    largest entry. Infinite where there is none.
    """
    weight: Tensor = getattr(layer, name)
    if weight not in _KNOWN:
        _KNOWN[weight] = _distance(layer, name, dtype)
    return _KNOWN[weight]


_KNOWN: MutableMapping[Tensor, float] = WeakIdKeyDictionary()


def rounding_of(dtype: torch.dtype) -> float:
    """How far it may be by the rounding of kernels alone."""
    return 1e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-4


def _distance(layer: nn.Module, name: str, dtype: torch.dtype) -> float:
    weight: Tensor = getattr(layer, name)
    itself = dequantises(weight)
    width = weight.shape[-1] if itself else getattr(layer, "in_features", 0)
    if not width or (itself and weight.ndim != 2):
        return math.inf
    x = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).to(weight.device, dtype)
    rows = torch.arange(min(4, len(weight)), device=weight.device)
    for compute, given in ((F.linear, x), (F.embedding, rows)):
        try:
            with torch.no_grad():
                matrix = _matrix(layer, weight, dtype)
                own = compute(given, weight) if itself else _forward(layer)(x) - _forward(layer)(x[:1] * 0)
                expected = compute(given, matrix)
        except (RuntimeError, NotImplementedError, TypeError, AttributeError):  # it is not packed for that
            continue
        return float((own - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(dtype).tiny))
    return math.inf
