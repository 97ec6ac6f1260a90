"""Do rulesets agree?  In go attributions of the same inputs, one a ruleset, out come rank correlations by sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxlrp.evaluate.ranks import spearman
from fxlrp.evaluate.units import finite
from fxlrp.results.attribution import Attribution


def rank_agreement(results: Sequence[Attribution]) -> Tensor:
    """Spearman's rho [samples, rulesets, rulesets] of the relevance of the main input's units.

    Units are tokens that are no padding, pixels (channels summed, patches enlarged), or features. NaN where two
    rulesets give relevance to units that are not the same (patches of a grid that is none, frames beside samples), and
    where a ruleset gives all units of a sample the same relevance.
    """
    scored = [_scores(result) for result in results]
    count = len(results)
    rho = torch.full((len(scored[0][0]), count, count), torch.nan, dtype=torch.float64)
    for i, (a, present) in enumerate(scored):
        for j, (b, _) in enumerate(scored[: i + 1]):
            if a.shape == b.shape:
                rho[:, i, j] = rho[:, j, i] = spearman(a, b, present)
    return rho


def _scores(result: Attribution) -> tuple[Tensor, Tensor]:
    """Relevance [samples, units], and which units are real."""
    relevance, mask = finite(result).cpu(), result.attention_mask
    if result.image_size is not None and (relevance.ndim == 4 or result.grid is not None):
        relevance = result.map(result.image_size).detach().cpu().flatten(1)
    present = torch.ones_like(relevance, dtype=torch.bool)
    if mask is not None and mask.shape == relevance.shape[:2]:
        present &= mask.cpu().bool().reshape(*mask.shape, *(1 for _ in relevance.shape[2:]))
    return relevance.flatten(1), present.flatten(1)
