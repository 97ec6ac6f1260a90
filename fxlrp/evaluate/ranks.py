"""Rank correlation of relevance, which compares orders and so methods whose units differ."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def spearman(a: Tensor, b: Tensor, present: Tensor | None = None) -> Tensor:
    """Spearman's rho [samples] of two scores [samples, units]: the correlation of their ranks, ties sharing their mean.

    ``present`` [samples, units] leaves out padding. NaN where a score is the same for all units of a sample, and where
    there is but one unit.
    """
    kept = torch.ones_like(a, dtype=torch.bool) if present is None else present
    pairs = zip(a.detach().cpu().double(), b.detach().cpu().double(), kept.cpu(), strict=True)
    return torch.tensor([_rho(x[k], y[k]) for x, y, k in pairs], dtype=torch.float64)


def _rho(a: Tensor, b: Tensor) -> float:
    from scipy.stats import ConstantInputWarning, spearmanr

    if len(a) < 2:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        return float(spearmanr(a.numpy(), b.numpy()).statistic)
