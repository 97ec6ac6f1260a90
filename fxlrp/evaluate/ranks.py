"""Rank correlation of relevance, which compares orders and so methods whose units differ."""

from __future__ import annotations

import torch
from torch import Tensor


def spearman(a: Tensor, b: Tensor, present: Tensor | None = None) -> Tensor:
    """Spearman's rho [samples] of two scores [samples, units]: the correlation of their ranks, ties sharing their mean.

    ``present`` [samples, units] leaves out padding. NaN where a score is the same for all units of a sample.
    """
    kept = torch.ones_like(a, dtype=torch.bool) if present is None else present
    return torch.stack([_rho(x[k].double(), y[k].double()) for x, y, k in zip(a, b, kept, strict=True)])


def _rho(a: Tensor, b: Tensor) -> Tensor:
    ranks = torch.stack([average_ranks(a), average_ranks(b)])
    centred = ranks - ranks.mean(1, keepdim=True)
    return centred.prod(0).sum() / centred.square().sum(1).prod().sqrt()


def average_ranks(values: Tensor) -> Tensor:
    """The rank of each value [units], from 1; equal values share the mean of their ranks."""
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum(0).double() - (counts.double() - 1) / 2)[place]
