"""The vocabulary of random graphs: `KINDS`, one entry per operator kind, simplest first.

Each takes a block's parts `m` and values [batch, 5 tokens, 8 features], and gives a value of that shape.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxlrp.testing import attentions
from fxlrp.testing.blocks import (
    FEATURES,
    TOKENS,
    Kind,
    across_tokens,
    bounded,
    kind,
    linear,
    parameter,
    squared,
)
from fxlrp.testing.images import IMAGES
from fxlrp.testing.uncommon import UNCOMMON


def _inverse_rms(x: Tensor) -> Tensor:
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def keep() -> Tensor:
    """A key mask: all tokens but the last."""
    return torch.arange(TOKENS) < TOKENS - 1


def _checkerboard() -> Tensor:
    return (torch.arange(TOKENS)[:, None] + torch.arange(FEATURES)) % 3 == 0


def layer_norm(m: Any, x: Tensor) -> Tensor:
    """LayerNorm as written by hand."""
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.pow(2).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-5) * m.norm_weight + m.bias


def chunk_product(m: Any, x: Tensor) -> Tensor:
    """One half of the features gates the other."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * second, second], -1)


def convex_gate(m: Any, x: Tensor, y: Tensor) -> Tensor:
    """g x + (1 - g) y, as in a highway network."""
    gate = m.w(x).sigmoid()
    return gate * x + (1 - gate) * y


def recurrence(m: Any, x: Tensor) -> Tensor:
    """A plain recurrent cell, token after token."""
    states = [torch.zeros_like(x[:, 0])]
    for token in x.unbind(1):
        states.append(torch.tanh(m.w(token) + m.u(states[-1])))
    return torch.stack(states[1:], 1)


def state_space(m: Any, x: Tensor) -> Tensor:
    """A selective linear recurrence: the decay depends on the token, as in Mamba."""
    decay, state, states = m.w(x).sigmoid(), torch.zeros_like(x[:, 0]), []
    for index in range(TOKENS):
        state = decay[:, index] * state + 0.5 * x[:, index]
        states.append(state)
    return torch.stack(states, 1)


def mixture(m: Any, x: Tensor) -> Tensor:
    """Two experts; a token goes to the one its router prefers, weighted by the router's probability."""
    best = m.router(x).softmax(-1).topk(1, -1)
    chosen = torch.stack([m.first(x), F.gelu(m.second(x))], 2)
    index = best.indices[..., None].expand(-1, -1, 1, FEATURES)
    return best.values * chosen.gather(2, index).squeeze(2)


def class_token(m: Any, x: Tensor) -> Tensor:
    """A learned token is put in front, takes part in a mean, and is dropped."""
    longer = torch.cat([m.cls_token.expand(x.shape[0], -1, -1), x], 1)
    return (longer + longer.mean(1, keepdim=True))[:, 1:]


def class_token_pool(m: Any, x: Tensor) -> Tensor:
    """A learned query gathers the tokens, as in attention pooling."""
    weights = (m.cls_token @ x.transpose(1, 2)).softmax(-1)
    return x + weights @ x


QKVO: dict[str, Any] = {name: linear() for name in "qkvo"}
GROUPED: dict[str, Any] = {"q": linear(), "k": linear(8, 4), "v": linear(8, 4), "o": linear()}
GATED: dict[str, Any] = {"gate": linear(8, 12), "up": linear(8, 12), "down": linear(12, 8)}
# Added before a maximum: equal values (zeros of a ReLU, say) would tie, and a tie has no one gradient.
OFFSET: dict[str, Any] = {"offset_bias": parameter(TOKENS, FEATURES)}

ELEMENTWISE = (
    kind("scale", lambda m, x: x * (0.5, 1.5, -1.2)[m.option]),
    kind("negate", lambda m, x: -x),
    kind("add_scalar", lambda m, x: x + (1.0, -0.5, 2)[m.option]),
    kind("subtract_from_scalar", lambda m, x: 1.0 - x),
    kind("divide_by_scalar", lambda m, x: x / 1.7),
    kind("relu", lambda m, x: F.relu(x)),
    kind("leaky_relu", lambda m, x: F.leaky_relu(x, 0.1)),
    kind("abs", lambda m, x: x.abs()),
    kind("clamp", lambda m, x: (1.1 * x).clamp(-1.3, 0.9), bounded),  # 1.1: a second clamp must not tie
    kind("gelu", lambda m, x: F.gelu(x)),
    kind("gelu_tanh", lambda m, x: F.gelu(x, approximate="tanh")),
    kind("quick_gelu", lambda m, x: x * torch.sigmoid(1.702 * x)),
    kind("silu", lambda m, x: F.silu(x)),
    kind("mish", lambda m, x: F.mish(x)),
    kind("hardswish", lambda m, x: F.hardswish(x)),
    kind("elu", lambda m, x: F.elu(x)),
    kind("softplus", lambda m, x: F.softplus(x)),
    kind("tanh", lambda m, x: x.tanh(), bounded),
    kind("sigmoid", lambda m, x: x.sigmoid(), bounded),
    kind("squared_relu", lambda m, x: F.relu(x).square(), squared),
    kind("exp", lambda m, x: x.tanh().exp(), bounded),
    kind("sqrt", lambda m, x: (x.pow(2) + 1).sqrt()),
    kind("log", lambda m, x: x.abs().log1p()),
    kind("softmax_features", lambda m, x: x.softmax(-1), bounded),
    kind("prelu", lambda m, x: across_tokens(m.act, x), act=lambda: nn.PReLU(FEATURES)),
)
LINEAR = (
    kind("linear", lambda m, x: m.w(x), w=linear()),
    kind("linear_no_bias", lambda m, x: m.w(x), w=linear(bias=False)),
    kind("matmul_weight", lambda m, x: x @ m.w, w=parameter(8, 8)),
    kind("einsum_weight", lambda m, x: torch.einsum("btd,de->bte", x, m.w), w=parameter(8, 8)),
    kind(
        "addmm",
        lambda m, x: torch.addmm(m.bias, x.flatten(0, 1), m.w).view(x.shape),
        bias=parameter(8),
        w=parameter(8, 8),
    ),
    kind("conv1d", lambda m, x: across_tokens(m.conv, x), conv=lambda: nn.Conv1d(8, 8, 3, padding=1)),
    kind(
        "conv1d_depthwise",
        lambda m, x: across_tokens(m.conv, x),
        conv=lambda: nn.Conv1d(8, 8, 3, padding=1, groups=8),
    ),
    kind(
        "conv2d",
        lambda m, x: m.conv(x.reshape(-1, 2, 4, 5)).reshape(x.shape),
        conv=lambda: nn.Conv2d(2, 2, 3, padding=1),
    ),
    kind(
        "conv_transpose1d",
        lambda m, x: across_tokens(m.conv, x),
        conv=lambda: nn.ConvTranspose1d(8, 8, 3, padding=1),
    ),
    kind("token_mixing", lambda m, x: across_tokens(m.w, x), w=linear(TOKENS, TOKENS)),
    kind(
        "bilinear_heads",
        lambda m, x: torch.einsum("bthd,hde->bthe", x.unflatten(-1, (2, 4)), m.w).flatten(2),
        w=parameter(2, 4, 4),
    ),
)
NORMS = (
    kind("layer_norm", lambda m, x: m.norm(x), bounded, norm=lambda: nn.LayerNorm(8)),
    kind("layer_norm_plain", lambda m, x: F.layer_norm(x, (8,)), bounded),
    kind("layer_norm_spelled_out", layer_norm, bounded, norm_weight=parameter(8, value=1.0), bias=parameter(8)),
    kind("rms_norm", lambda m, x: m.norm(x), bounded, norm=lambda: nn.RMSNorm(8, eps=1e-6)),
    kind(
        "rms_norm_spelled_out",
        lambda m, x: m.norm_weight * (x * _inverse_rms(x)),
        bounded,
        norm_weight=parameter(8, value=1.0),
    ),
    kind(
        "rms_norm_one_plus",
        lambda m, x: x * _inverse_rms(x) * (1.0 + m.norm_weight),
        bounded,
        norm_weight=parameter(8),
    ),
    kind("rms_norm_plain", lambda m, x: x * _inverse_rms(x), bounded),
    kind("group_norm", lambda m, x: across_tokens(m.norm, x), bounded, norm=lambda: nn.GroupNorm(2, 8)),
    kind("batch_norm", lambda m, x: across_tokens(m.norm, x), norm=lambda: nn.BatchNorm1d(8)),
    kind("unit_vector", lambda m, x: F.normalize(x, dim=-1), bounded),
    kind("unit_vector_spelled_out", lambda m, x: x / (x.norm(dim=-1, keepdim=True) + 1e-6), bounded),
)
MIXES = (
    kind("add", lambda m, x, y: x + y),
    kind("subtract", lambda m, x, y: x - y),
    kind("add_scaled", lambda m, x, y: torch.add(x, y, alpha=0.5)),
    kind("residual", lambda m, x: x + F.gelu(m.w(x)), w=linear()),
    kind(
        "residual_post_norm",
        lambda m, x: m.norm(x + m.w(x)),
        bounded,
        w=linear(),
        norm=lambda: nn.LayerNorm(8),
    ),
    kind("layer_scale", lambda m, x: x + m.layer_scale * m.w(x), w=linear(), layer_scale=parameter(8)),
    kind("product", lambda m, x, y: x * y, sum),
    kind("gate", lambda m, x, y: x * y.sigmoid()),
    kind("convex_gate", convex_gate, w=linear()),
    kind("matmul_values", lambda m, x, y: x @ y.transpose(1, 2) @ x / 8, lambda d: 2 * d[0] + d[1]),
    kind("divide", lambda m, x, y: x / (1 + y.abs())),
    kind("maximum", lambda m, x, y: torch.maximum(x + m.offset_bias, y), **OFFSET),
    kind("lerp", lambda m, x, y: torch.lerp(x, y, 0.3)),
    kind("dense_skip", lambda m, x, y: m.w(torch.cat([x, y], -1)), w=linear(16, 8)),
    kind("stack_sum", lambda m, x, y: torch.stack([x, y]).sum(0)),
    kind("add_features", lambda m, x, y: x + y.mean(1, keepdim=True)),
    kind("gated_mlp_silu", lambda m, x: m.down(F.silu(m.gate(x)) * m.up(x)), squared, **GATED),
    kind(
        "gated_mlp_gelu",
        lambda m, x: m.down(F.gelu(m.gate(x), approximate="tanh") * m.up(x)),
        squared,
        **GATED,
    ),
    kind("glu", lambda m, x: F.glu(m.w(x), -1), w=linear(8, 16)),
    kind("mlp", lambda m, x: m.down(F.relu(m.up(x))), up=linear(8, 12), down=linear(12, 8)),
    kind("reused_module", lambda m, x: m.w(F.gelu(m.w(x))), w=linear()),
    kind("tied_weights", lambda m, x: F.linear(F.relu(F.linear(x, m.w)), m.w.T), w=parameter(8, 8)),
    kind("recurrence", recurrence, bounded, w=linear(), u=linear(bias=False)),
    kind("state_space", state_space, w=linear()),
    kind("lstm", lambda m, x: m.cell(x)[0], bounded, cell=lambda: nn.LSTM(8, 8, batch_first=True)),
    kind("gru", lambda m, x: m.cell(x)[0], cell=lambda: nn.GRU(8, 8, batch_first=True)),
    kind("mixture_of_experts", mixture, router=linear(8, 2), first=linear(), second=linear()),
)
MOVEMENT = (
    kind("transpose_twice", lambda m, x: x.transpose(1, 2).contiguous().transpose(1, 2)),
    kind("reshape", lambda m, x: x.reshape(x.shape[0], FEATURES, TOKENS).transpose(1, 2)),
    kind("permute_features", lambda m, x: x.unflatten(-1, (2, 4)).permute(0, 1, 3, 2).flatten(2)),
    kind("flip", lambda m, x: x.flip(1 + m.option % 2)),
    kind("roll", lambda m, x: x.roll(m.option + 1, 1)),
    kind("split_cat", lambda m, x: torch.cat(x.split([3, 5], -1)[::-1], -1)),
    kind("chunk_product", chunk_product, squared),
    kind("unbind_stack", lambda m, x: torch.stack(x.unbind(1)[::-1], 1)),
    kind("slice_cat", lambda m, x: torch.cat([x[:, 1:], x[:, :1]], 1)),
    kind("shift_pad", lambda m, x: x + F.pad(x[:, :-1], (0, 0, 1, 0))),
    kind("index_select", lambda m, x: x.index_select(1, m.order), order=lambda: torch.tensor([2, 0, 4, 4, 1])),
    kind(
        "gather",
        lambda m, x: x.gather(2, m.order.expand_as(x)),
        order=lambda: torch.tensor([3, 0, 7, 7, 1, 5, 2, 2]),
    ),
    kind("advanced_index", lambda m, x: x[:, [4, 2, 0, 1, 1]]),
    kind("expand_first", lambda m, x: x + x[:, :1].expand(-1, TOKENS, -1)),
    kind("repeat_drop", lambda m, x: x.repeat(1, 2, 1)[:, 3 : 3 + TOKENS]),
)
SELECTION = (
    kind("where", lambda m, x, y: torch.where(_checkerboard(), x, y)),
    kind("where_constant", lambda m, x: torch.where(_checkerboard(), 0.7, x)),
    kind("masked_fill", lambda m, x: x.masked_fill(_checkerboard(), 0.0)),
    kind("mask_product", lambda m, x: x * m.keep[:, None].to(x.dtype), keep=keep),
    kind("topk_tokens", lambda m, x: x + (x + m.offset_bias).topk(2, 1).values.sum(1, keepdim=True), **OFFSET),
    kind("sort_features", lambda m, x: (x + m.offset_bias).sort(-1).values, **OFFSET),
    kind("threshold_by_value", lambda m, x: torch.where(x + m.offset_bias > 0, x, 0.2 * x), **OFFSET),
)
REDUCTIONS = (
    kind("mean_tokens", lambda m, x: x - 0.7 * x.mean(1, keepdim=True)),
    kind("mean_features", lambda m, x: x + x.mean(-1, keepdim=True)),
    kind("sum_tokens", lambda m, x: 0.5 * x + 0.3 * x.sum(1, keepdim=True)),
    kind("masked_mean", lambda m, x: x + (x * m.keep[:, None]).sum(1, keepdim=True) / m.keep.sum(), keep=keep),
    kind("amax_tokens", lambda m, x: 0.5 * x + (x + m.offset_bias).amax(1, keepdim=True), **OFFSET),
    kind("max_features", lambda m, x: 0.5 * x + (x + m.offset_bias).max(-1, keepdim=True).values, **OFFSET),
    kind("logsumexp", lambda m, x: x - x.logsumexp(-1, keepdim=True)),
    kind("softmax_pool", lambda m, x: x + (m.w(x).softmax(1) * x).sum(1, keepdim=True), w=linear(8, 1)),
    kind("squeeze_excite", lambda m, x: x * m.w(x.mean(1, keepdim=True)).sigmoid(), w=linear()),
    kind("cumsum", lambda m, x: 0.4 * x.cumsum(1)),
    kind("avg_pool1d", lambda m, x: across_tokens(lambda t: F.avg_pool1d(t, 3, 1, 1), x)),
    kind(
        "max_pool1d",
        lambda m, x: across_tokens(lambda t: F.max_pool1d(t, 3, 1, 1), x + m.offset_bias),
        **OFFSET,
    ),
    kind("adaptive_avg_pool", lambda m, x: x + F.adaptive_avg_pool1d(x.transpose(1, 2), 1).transpose(1, 2)),
    kind("interpolate", lambda m, x: F.interpolate(F.avg_pool1d(x, 2), scale_factor=2.0)),
)
CONSTANTS = (
    kind("position_embedding", lambda m, x: x + m.position_embeddings, position_embeddings=parameter(1, 5, 8)),
    kind("embedding_lookup", lambda m, x: x + m.table(torch.arange(TOKENS)), table=lambda: nn.Embedding(9, 8)),
    kind("scale_parameter", lambda m, x: x * m.layer_scale, layer_scale=parameter(8)),
    kind("class_token", class_token, cls_token=parameter(1, 1, 8)),
    kind("class_token_pool", class_token_pool, cls_token=parameter(1, 1, 8)),
)
ATTENTIONS = (
    kind("attention", attentions.eager, **QKVO),
    kind("attention_additive_mask", attentions.eager_additive_mask, keep=keep, **QKVO),
    kind("attention_masked_fill", attentions.eager_masked_fill, **QKVO),
    kind("attention_softcap", attentions.eager_softcap, **QKVO),
    kind(
        "attention_relative_bias",
        attentions.eager_relative_bias,
        relative_position_bias=parameter(2, 5, 5),
        **QKVO,
    ),
    kind("attention_sinks", attentions.eager_sinks, sinks=parameter(2), **QKVO),
    kind("attention_bmm", attentions.bmm, **QKVO),
    kind("attention_einsum", attentions.einsum, **QKVO),
    kind("attention_fused_qkv", attentions.fused_qkv, qkv=linear(8, 24), o=linear()),
    kind("attention_rotary", attentions.rotary, **QKVO),
    kind("attention_grouped", attentions.repeated_grouped, **GROUPED),
    kind("linear_attention", attentions.linear_attention, **QKVO),
    kind("sdpa", attentions.sdpa, **QKVO),
    kind("sdpa_mask", attentions.sdpa_mask, keep=keep, **QKVO),
    kind("sdpa_additive_bias", attentions.sdpa_additive_bias, relative_position_bias=parameter(2, 5, 5), **QKVO),
    kind("sdpa_causal", attentions.sdpa_causal, **QKVO),
    kind("sdpa_scale", attentions.sdpa_scale, **QKVO),
    kind("sdpa_grouped", attentions.sdpa_grouped, **GROUPED),
    kind("cross_attention", attentions.cross, lambda degrees: degrees[1], **QKVO),
    kind(
        "multihead_attention_module",
        attentions.multihead_module,
        attention=lambda: nn.MultiheadAttention(8, 2, batch_first=True),
    ),
)
ROUNDED = (
    Kind("cast_float32", lambda m, x: x.float().to(x.dtype), exact=False),
    Kind(
        "rms_norm_float32",
        lambda m, x: m.norm_weight * (x.float() * _inverse_rms(x.float())).to(x.dtype),
        bounded,
        False,
        {"norm_weight": parameter(8, value=1.0)},
    ),
    Kind("attention_float32_softmax", attentions.eager_float32_softmax, exact=False, parts=QKVO),
)

KINDS: dict[str, Kind] = {
    entry.name: entry
    for table in (
        ELEMENTWISE,
        LINEAR,
        NORMS,
        MIXES,
        MOVEMENT,
        SELECTION,
        REDUCTIONS,
        CONSTANTS,
        ATTENTIONS,
        UNCOMMON,
        IMAGES,
        ROUNDED,
    )
    for entry in table
}
