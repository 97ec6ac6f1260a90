"""The backward pass of attention with constant weights, by some rows at a time, against the formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxlrp.rewrite import kernels


def _by_hand(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, g: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask)^T g, keys repeated for each head."""
    groups = q.shape[-3] // k.shape[-3]
    scores = q @ k.repeat_interleave(groups, -3).mT / q.shape[-1] ** 0.5
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
    sent = torch.nan_to_num(scores.softmax(-1)).mT @ g
    return sent.unflatten(-3, (-1, groups)).sum(-3)


@pytest.mark.parametrize("mask", ["none", "causal", "bools", "numbers"])
@pytest.mark.parametrize(("heads", "keys"), [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize(("rows", "columns"), [(9, 9), (610, 610), (700, 500), (500, 700)])
def test_constant_weights_by_rows(rows: int, columns: int, heads: int, keys: int, mask: str) -> None:
    """Where the matrix is large (from 2^18 entries on) it is made by some rows at a time."""
    torch.manual_seed(0)
    q = torch.randn(2, heads, rows, 4, dtype=torch.float64)
    k, v = (torch.randn(2, keys, columns, 4, dtype=torch.float64) for _ in range(2))
    own = None
    if mask == "bools":
        own = torch.rand(2, 1, rows, columns) > 0.3
        own[0, 0, 3] = False  # a row that sees nothing
    elif mask == "numbers":
        own = torch.randn(1, 1, rows, columns, dtype=torch.float64)
    g, causal = torch.randn(2, heads, rows, 4, dtype=torch.float64), mask == "causal"
    v.requires_grad_()
    y = kernels.constant_weights_attention(q, k, v, own, is_causal=causal, enable_gqa=heads != keys)
    (sent,) = torch.autograd.grad(y, v, g)
    torch.testing.assert_close(sent, _by_hand(q, k, own, causal, g), rtol=1e-10, atol=1e-12)
