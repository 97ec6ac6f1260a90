"""Attention: scores, weights and output, in the fused form (expanded on capture) and in every eager spelling."""

from __future__ import annotations

import torch
from torch import Tensor

from fxlrp.graph.operator_table import SAFE_SOFTMAX
from fxlrp.patterns.language import chain, either, part, pattern


def softmax(x: Tensor) -> Tensor:
    """The softmax of a module and that of the fused operator, which maps rows of -inf to zero."""
    return either(torch.softmax(x, -1), SAFE_SOFTMAX(x, -1))


@pattern("attention", q=(2, 4, 3), k=(2, 4, 3), v=(2, 4, 3))
def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(scale * q k^T + masks and biases) v; between the products any scaling, soft-capping, masking,
    casting, sinks.
    """
    scores = chain(part(torch.matmul(q, k.mT), "scores"))
    capped = chain(torch.tanh(scores))
    weights = part(softmax(either(scores, capped)), "weights")
    return part(torch.matmul(chain(weights), v), "output")


@pattern("attention", q=(2, 4, 3), k=(2, 4, 3), v=(2, 4, 3))
def attention_by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same with einsum."""
    scores = chain(part(torch.einsum("bqd,bkd->bqk", q, k), "scores"))
    weights = part(softmax(scores), "weights")
    return part(torch.einsum("bqk,bkd->bqd", chain(weights), v), "output")


@pattern("rotary", x=(2, 4), turned=(2, 4), cos=(2, 4), sin=(2, 4))
def rotary(x: Tensor, turned: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x cos + turn(x) sin, where turn swaps and negates halves: linear in x. Tables are scaled, cast and moved."""
    cosine, sine = chain(torch.cos(cos), adding=False), chain(torch.sin(sin), adding=False)
    return part(x * cosine, "cos") + part(turned * sine, "sin")
