"""Kinds that only some architectures have: partial writes, complex numbers, scans, routing, sorting by hashes."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxlrp.testing.attentions import merged, projected, scaled_scores
from fxlrp.testing.blocks import FEATURES, TOKENS, across_tokens, bounded, kind, linear, parameter, squared

ORDER = torch.tensor([3, 0, 4, 1, 2])


# ------------------------------------------------------------------------------------------------ partial writes
def write_slice(m: Any, x: Tensor) -> Tensor:
    """Some tokens are overwritten in place."""
    y = x.clone()
    y[:, 1:3] = m.w(x)[:, :2]
    return y


def write_entry(m: Any, x: Tensor) -> Tensor:
    """One token, and one feature of all tokens, are overwritten in place."""
    y = x.clone()
    y[:, m.option] = m.w(x)[:, 0]
    y[..., 2] = x[..., 5]
    return y


def write_places(m: Any, x: Tensor) -> Tensor:
    """Tokens are written to listed places."""
    y = torch.zeros_like(x)
    y[:, ORDER[:3]] = m.w(x)[:, :3]
    return y + x


def add_in_place(m: Any, x: Tensor) -> Tensor:
    """Sums and scalings in place, also of a part."""
    y = m.w(x)
    y.add_(x)
    y[..., :4].mul_(0.5)
    return y


def add_rows(m: Any, x: Tensor) -> Tensor:
    """Rows are added at listed places, as a loop over experts does."""
    return torch.zeros_like(x).index_add(1, ORDER, m.w(x)).index_add(1, ORDER[:2], x[:, :2])


def masked_write(m: Any, x: Tensor) -> Tensor:
    """Embeddings take the places of placeholder tokens, as in a vision-language model."""
    places = (torch.arange(TOKENS) % 2 == 0)[:, None].expand(TOKENS, FEATURES)
    return x.masked_scatter(places.expand_as(x), m.w(x)[:, ::2])  # as many as there are places, sample by sample


def scattered(m: Any, x: Tensor) -> Tensor:
    """Tokens are scattered to other places of zeros."""
    return torch.zeros_like(x).scatter(1, ORDER[None, :, None].expand_as(x), m.w(x))


def scattered_extremes(m: Any, x: Tensor) -> Tensor:
    """The largest of what is scattered to a place, and a mean of it, as for words of several bytes."""
    index = torch.tensor([0, 0, 1, 1, 2])[None, :, None].expand_as(x)
    largest = x.scatter_reduce(1, index, m.w(x), "amax")
    return largest + torch.zeros_like(x).scatter_reduce(1, index, x, "mean", include_self=False)


# ----------------------------------------------------------------------------------------------- complex numbers
def rotary_complex(m: Any, x: Tensor) -> Tensor:
    """Rotary positions as products of complex numbers."""
    angle = torch.arange(TOKENS, dtype=x.dtype)[:, None] / (1.0 + torch.arange(4, dtype=x.dtype))
    turned = torch.view_as_complex(x.unflatten(-1, (4, 2)).contiguous()) * torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(turned).flatten(-2).type_as(x)


def fourier(m: Any, x: Tensor) -> Tensor:
    """Tokens and features are mixed by a Fourier transform."""
    return torch.fft.fftn(x, dim=(1, 2)).real / math.sqrt(TOKENS * FEATURES)


# ---------------------------------------------------------------------------------------------------- elementwise
def expanded_relu(m: Any, x: Tensor) -> Tensor:
    """The xIELU form: a square above zero, an exponential below."""
    return torch.where(x > 0, 0.3 * x * x, (torch.expm1(torch.minimum(x, -0.01 * torch.ones_like(x))) - x) * 0.4)


def masked_exponential(m: Any, x: Tensor) -> Tensor:
    """exp of differences, masked by -inf, as decays within a chunk are."""
    later = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    steps = torch.tanh(x[..., :1]).cumsum(1)
    decay = (steps - steps.transpose(1, 2)).masked_fill(later, -torch.inf).exp()
    return decay @ x


def unfolded(m: Any, x: Tensor) -> Tensor:
    """A window around each entry is laid out and summed with learned weights."""
    windows = F.unfold(x[:, None], (3, 3), padding=1)  # [batch, 9, tokens * features]
    return (m.window @ windows).view_as(x)


# --------------------------------------------------------------------------------------- mixing and recurrences
def solved(m: Any, x: Tensor) -> Tensor:
    """(1 + L)^-1 x with a lower triangular L of products, as delta rules have it."""
    lower = (0.3 * scaled_scores(m.w(x), m.u(x)).tanh()).tril(-1)
    return torch.linalg.solve_triangular(lower, x, upper=False, unitriangular=True)


def delta_rule(m: Any, x: Tensor) -> Tensor:
    """A gated delta net, step by step: S = a S + k b (v - k^T a S), y = q^T S."""
    q, k, v = (F.normalize(m.q(x), dim=-1), F.normalize(m.k(x), dim=-1), m.v(x))
    decay, rate = m.decay(x).sigmoid(), m.rate(x).sigmoid()  # [batch, tokens, 1]
    state = x.new_zeros(x.shape[0], FEATURES, FEATURES)
    outputs = []
    for t in range(TOKENS):
        state = decay[:, t, :, None] * state
        known = (k[:, t, :, None] * state).sum(1)
        state = state + k[:, t, :, None] * (rate[:, t] * (v[:, t] - known))[:, None]
        outputs.append((q[:, t, :, None] * state).sum(1))
    return torch.stack(outputs, 1)


def differential_attention(m: Any, x: Tensor) -> Tensor:
    """The difference of two attentions."""
    q, k, v = projected(m, x)
    first, second = (scaled_scores(q, k * sign).softmax(-1) for sign in (1.0, -0.5))
    return m.o(merged((first - 0.4 * second) @ v))


def quantised(m: Any, x: Tensor) -> Tensor:
    """Magnitudes as bytes, in steps of 1/127 of the largest of a token."""
    step = x.abs().amax(-1, keepdim=True) / 127
    whole = (x.abs() / step).ceil().clamp(0, 127).to(torch.int8)
    return x + 0.2 * (whole * step)


def hashed(m: Any, x: Tensor) -> Tensor:
    """Tokens sorted by a hash mix within their group and are put back, as in attention by buckets."""
    order = (m.w(x).detach().sum(-1)).argsort(1)[..., None].expand_as(x)
    ordered = x.gather(1, order)
    mixed = ordered + 0.5 * F.pad(ordered, (0, 0, 1, 0))[:, :-1]
    return mixed.gather(1, order.argsort(1))


def routed(m: Any, x: Tensor) -> Tensor:
    """The best two of three experts by sigmoid scores, their weights scaled to one."""
    scores = m.router(x).sigmoid()
    chosen = (scores + m.choice_bias).topk(2, -1).indices
    weights = scores.gather(-1, chosen)
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    outputs = torch.stack([m.first(x), m.second(x).relu(), x], -2)
    best = outputs.gather(-2, chosen[..., None].expand(*chosen.shape, FEATURES))
    return (best * weights[..., None]).sum(-2)


EXPERTS: dict[str, Any] = {
    "router": linear(8, 3),
    "first": linear(),
    "second": linear(),
    "choice_bias": parameter(3),
}
QKVO: dict[str, Any] = {name: linear() for name in "qkvo"}
DELTA: dict[str, Any] = {name: linear() for name in "qkv"} | {"decay": linear(8, 1), "rate": linear(8, 1)}

UNCOMMON = (
    kind("write_slice", write_slice, w=linear()),
    kind("write_entry", write_entry, w=linear()),
    kind("write_places", write_places, w=linear()),
    kind("add_in_place", add_in_place, w=linear()),
    kind("add_rows", add_rows, w=linear()),
    kind("masked_write", masked_write, w=linear()),
    kind("scatter", scattered, w=linear()),
    kind("scatter_reduce", scattered_extremes, w=linear()),
    kind("rotary_complex", rotary_complex),
    kind("fourier", fourier),
    kind("xielu", expanded_relu, squared),
    kind("expm1", lambda m, x: torch.expm1(-x.abs()), bounded),
    kind("log_of_scale", lambda m, x: torch.log(1.0 + x * x) * x.tanh()),
    kind("log_sigmoid", lambda m, x: F.logsigmoid(x)),
    kind("reciprocal_gate", lambda m, x: x * torch.reciprocal(1.0 + x * x), bounded),
    kind("angle", lambda m, x: (1.0 - torch.acos(0.99 * x.tanh()) / math.pi).pow(2), bounded),
    # Never to 0, whose relevance x * g = 0 tells the second opinion nothing of what was rounded to it.
    kind("rounded", lambda m, x: x + 0.1 * torch.floor(x.abs() + 1.0)),
    kind("quantised", quantised),
    kind("deviation", lambda m, x: x / (x.std(-1, keepdim=True) + 0.1), bounded),
    kind("smallest", lambda m, x: x - x.amin(-1, keepdim=True)),
    kind("masked_exponential", masked_exponential),
    kind("average_pool_2d", lambda m, x: F.avg_pool2d(x[:, None], 3, 1, 1)[:, 0]),
    kind("unfold", unfolded, window=parameter(1, 9)),
    kind("split_features", lambda m, x: torch.concat(m.w(x).split([3, 5], -1)[::-1], -1), w=linear()),
    kind("lower_triangle", lambda m, x: m.w(x).tril() + x.triu(1).reshape_as(x), w=linear()),
    kind("padded_by_ones", lambda m, x: F.pad(x, (1, 1), value=1.0)[..., m.option :][..., :8]),
    kind("transposed_convolution", lambda m, x: across_tokens(m.up, x), up=partial(nn.ConvTranspose1d, 8, 8, 3, 1, 1)),
    kind("solve_triangular", solved, w=linear(), u=linear()),
    kind("delta_rule", delta_rule, bounded, **DELTA),
    kind("differential_attention", differential_attention, **QKVO),
    kind("hashed", hashed, w=linear()),
    kind("router_renormalised", routed, **EXPERTS),
)
