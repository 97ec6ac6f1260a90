"""Weights that are packed in a class of their own, as the matrices that they stand for.

A weight-only quantised layer computes x W^T with W = dequantised weight, and is explained as the linear layer that it
is: a graph is made of, and run with, the matrices. They are made for the time of a call.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping
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
    return kind is not nn.Parameter and (hasattr(kind, "__tensor_flatten__") or foreign)


def dense(weight: Tensor) -> Tensor:
    """The matrix that a packed weight stands for; any other weight as it is."""
    if not is_packed(weight):
        return weight
    packed: Any = weight
    with torch.no_grad():
        matrix: Tensor = packed.detach().dequantize()
        return matrix.to(weight.dtype)


def distance_from_matrix(weight: Tensor) -> float:
    """How far what a layer computes with a packed weight is from what it computes with the matrix, as a share of its
    largest entry: an affine map of inputs, or rows that are looked up. Infinite where it can do neither.
    """
    if weight not in _KNOWN:
        _KNOWN[weight] = _distance(weight)
    return _KNOWN[weight]


def rounding_of(dtype: torch.dtype) -> float:
    """How far they may be by the rounding of kernels alone."""
    return 1e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-4


_KNOWN: MutableMapping[Tensor, float] = WeakIdKeyDictionary()


def _distance(weight: Tensor) -> float:
    if weight.ndim != 2 or not hasattr(weight, "dequantize"):
        return math.inf
    x = torch.randn(4, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    rows = torch.arange(min(4, len(weight)), device=weight.device)
    for compute, given in ((F.linear, x), (F.embedding, rows)):
        try:
            with torch.no_grad():
                found, expected = compute(given, weight), compute(given, dense(weight))
        except (RuntimeError, NotImplementedError, TypeError, AttributeError):  # it is not packed for that
            continue
        return float((found - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(weight.dtype).tiny))
    return math.inf
