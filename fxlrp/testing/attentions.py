"""Attention as people write it, one function per spelling.

Takes a block's parts `m` and values [batch, 5, 8], gives that shape.  The parts are `q`, `k`, `v`, `o` (or a
fused `qkv`) and whatever the spelling adds.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

HEADS = 2


def heads(x: Tensor, count: int = HEADS) -> Tensor:
    """[batch, tokens, features] -> [batch, count, tokens, features / count]."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    """[batch, heads, tokens, size] -> [batch, tokens, heads * size]."""
    return x.transpose(1, 2).flatten(2)


def causal(scores: Tensor) -> Tensor:
    """True above the diagonal, where a query must not look: [tokens, tokens]."""
    return torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)


def projected(m: Any, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of x, keys and values of y (of x where there is no y), each with its heads apart."""
    y = x if y is None else y
    return heads(m.q(x)), heads(m.k(y)), heads(m.v(y))


def scaled_scores(q: Tensor, k: Tensor) -> Tensor:
    """Q k^T / sqrt(size)."""
    return q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])


def eager(m: Any, x: Tensor) -> Tensor:
    """Softmax of the scores, spelled out."""
    q, k, v = projected(m, x)
    return m.o(merged(scaled_scores(q, k).softmax(-1) @ v))


def eager_additive_mask(m: Any, x: Tensor) -> Tensor:
    """Adds the lowest float where a token is padding, as transformers does."""
    q, k, v = projected(m, x)
    bias = torch.zeros_like(m.keep, dtype=x.dtype).masked_fill(~m.keep, torch.finfo(x.dtype).min)
    return m.o(merged((scaled_scores(q, k) + bias).softmax(-1) @ v))


def eager_masked_fill(m: Any, x: Tensor) -> Tensor:
    """Causal, by masked_fill with -inf."""
    q, k, v = projected(m, x)
    scores = scaled_scores(q, k)
    return m.o(merged(scores.masked_fill(causal(scores), float("-inf")).softmax(-1) @ v))


def eager_softcap(m: Any, x: Tensor) -> Tensor:
    """Scores squeezed through cap * tanh(scores / cap), as in Gemma 2."""
    q, k, v = projected(m, x)
    return m.o(merged((2.0 * torch.tanh(scaled_scores(q, k) / 2.0)).softmax(-1) @ v))


def eager_relative_bias(m: Any, x: Tensor) -> Tensor:
    """A learned bias per head and pair of tokens, as in T5 and Swin."""
    q, k, v = projected(m, x)
    return m.o(merged((scaled_scores(q, k) + m.relative_position_bias).softmax(-1) @ v))


def eager_sinks(m: Any, x: Tensor) -> Tensor:
    """One learned score per head takes part in the softmax and is dropped, as in gpt-oss."""
    q, k, v = projected(m, x)
    scores = scaled_scores(q, k)
    sinks = m.sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    return m.o(merged(torch.cat([scores, sinks], -1).softmax(-1)[..., :-1] @ v))


def eager_float32_softmax(m: Any, x: Tensor) -> Tensor:
    """Softmax in float32, cast back: the usual spelling in transformers."""
    q, k, v = projected(m, x)
    weights = F.softmax(scaled_scores(q, k), dim=-1, dtype=torch.float32).to(x.dtype)
    return m.o(merged(weights @ v))


def bmm(m: Any, x: Tensor) -> Tensor:
    """Heads folded into the batch, baddbmm and bmm, as in BLOOM."""
    q, k, v = (t.flatten(0, 1) for t in projected(m, x))
    bias = torch.zeros(1, 1, 1, dtype=x.dtype)
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), beta=1.0, alpha=0.5)
    return m.o(merged(torch.bmm(scores.softmax(-1), v).unflatten(0, (-1, HEADS))))


def einsum(m: Any, x: Tensor) -> Tensor:
    """Both products by einsum."""
    q, k, v = projected(m, x)
    weights = torch.einsum("bhqd,bhkd->bhqk", q * 0.5, k).softmax(-1)
    return m.o(torch.einsum("bhqk,bhkd->bqhd", weights, v).flatten(2))


def fused_qkv(m: Any, x: Tensor) -> Tensor:
    """One linear for queries, keys and values, then SDPA."""
    q, k, v = (heads(t) for t in m.qkv(x).chunk(3, -1))
    return m.o(merged(F.scaled_dot_product_attention(q, k, v)))


def rotary(m: Any, x: Tensor) -> Tensor:
    """Queries and keys rotated by position, half against half, as in Llama."""
    q, k, v = projected(m, x)
    angles = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1], dtype=x.dtype).repeat(2)
    q, k = (t * angles.cos() + _half_turned(t) * angles.sin() for t in (q, k))
    return m.o(merged(F.scaled_dot_product_attention(q, k, v, is_causal=True)))


def _half_turned(t: Tensor) -> Tensor:
    first, second = t.chunk(2, -1)
    return torch.cat([-second, first], -1)


def sdpa(m: Any, x: Tensor) -> Tensor:
    """Fused attention without a mask."""
    return m.o(merged(F.scaled_dot_product_attention(*projected(m, x))))


def sdpa_mask(m: Any, x: Tensor) -> Tensor:
    """Fused attention, boolean mask."""
    return m.o(merged(F.scaled_dot_product_attention(*projected(m, x), attn_mask=m.keep[None])))


def sdpa_additive_bias(m: Any, x: Tensor) -> Tensor:
    """Fused attention, learned additive bias."""
    bias = m.relative_position_bias
    return m.o(merged(F.scaled_dot_product_attention(*projected(m, x), attn_mask=bias)))


def sdpa_causal(m: Any, x: Tensor) -> Tensor:
    """Fused attention, causal flag."""
    return m.o(merged(F.scaled_dot_product_attention(*projected(m, x), is_causal=True)))


def sdpa_scale(m: Any, x: Tensor) -> Tensor:
    """Fused attention, a scale of its own."""
    return m.o(merged(F.scaled_dot_product_attention(*projected(m, x), scale=0.3)))


def sdpa_grouped(m: Any, x: Tensor) -> Tensor:
    """Four query heads share two key-value heads; `k` and `v` give 4 features."""
    q, k, v = heads(m.q(x), 4), heads(m.k(x), 2), heads(m.v(x), 2)
    return m.o(merged(F.scaled_dot_product_attention(q, k, v, enable_gqa=True)))


def repeated_grouped(m: Any, x: Tensor) -> Tensor:
    """The same with keys and values repeated, spelled out."""
    q, k, v = heads(m.q(x), 4), heads(m.k(x), 2), heads(m.v(x), 2)
    k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
    return m.o(merged(scaled_scores(q, k).softmax(-1) @ v))


def cross(m: Any, x: Tensor, y: Tensor) -> Tensor:
    """Queries from one value, keys and values from another."""
    return m.o(merged(F.scaled_dot_product_attention(*projected(m, x, y))))


def multihead_module(m: Any, x: Tensor) -> Tensor:
    """`nn.MultiheadAttention`."""
    return m.attention(x, x, x, need_weights=False)[0]


def linear_attention(m: Any, x: Tensor) -> Tensor:
    """No softmax: positive feature maps, normalised by their sum."""
    q, k, v = projected(m, x)
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return m.o(merged(q @ (k.transpose(-2, -1) @ v) / (q @ k.sum(-2)[..., None])))
