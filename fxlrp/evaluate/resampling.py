"""The bootstrap: statistics of samples drawn with replacement."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def resampled(statistic: Callable[[Tensor], Sequence[float]], count: int, draws: int, seed: int) -> Tensor:
    """The values [statistics, draws] of ``statistic(rows)``, for ``draws`` times ``count`` rows out of ``count``.

    The same ``seed`` and ``count`` draw the same rows, so that two evaluations of one data set can be paired.
    """
    from scipy.stats import DegenerateDataWarning, bootstrap

    def of(rows: Any) -> Any:
        return np.asarray(statistic(torch.from_numpy(rows.astype(np.int64))), dtype=np.float64)

    if count == 1:  # there is but one draw
        return torch.from_numpy(of(np.zeros(1)))[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = bootstrap(
            (np.arange(count),),
            of,
            n_resamples=draws,
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    return torch.from_numpy(np.ascontiguousarray(found.bootstrap_distribution))


def middle(drawn: Tensor, level: float) -> Tensor:
    """The bounds [2, ...] between which the middle ``level`` of drawn values [..., draws] lies; NaN is none."""
    tail = (1 - level) / 2
    return torch.nanquantile(drawn, torch.tensor([tail, 1 - tail], dtype=drawn.dtype), dim=-1)


def band(values: Tensor, draws: int, level: float = 0.95, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Bootstrap bounds [F] of the mean over samples of values [samples, F]; NaN is no sample."""
    means = resampled(lambda rows: values[rows].nanmean(0).tolist(), len(values), draws, seed)
    low, high = middle(means, level)
    return low, high
