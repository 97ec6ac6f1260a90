"""Pairs of modules that compute one function in two spellings, with shared weights.

An explanation must not depend on which of the two an author wrote.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxlrp.testing import attentions, kinds
from fxlrp.testing.blocks import FEATURES, TOKENS, Block, Part, across_tokens, linear, parameter
from fxlrp.testing.weights import realistic

Apply = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Spelling:
    """Two modules with equal outputs.  inputs: forward's keyword arguments, x of shape [2, 5, 8], float64.

    Both end in the same mean over tokens and linear map to 3 logits.
    """

    name: str
    first: nn.Module
    second: nn.Module
    inputs: dict[str, Tensor]


class _Classifier(nn.Module):
    def __init__(self, block: Block, head: nn.Linear) -> None:
        super().__init__()
        self.block, self.head = block, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x).mean(1))


@dataclass(frozen=True)
class _Pair:
    name: str
    first: Apply
    second: Apply
    parts: Mapping[str, Callable[[], Part]]
    derive: Callable[[Any], dict[str, Part]] = lambda parts: {}

    def spelling(self, seed: int) -> Spelling:
        shared = realistic(Block(self.first, {name: make() for name, make in self.parts.items()}), seed)
        shared = shared.double().eval()
        own = dict(shared.named_children()) | dict(shared.named_parameters(recurse=False))
        parts = own | dict(shared.named_buffers(recurse=False)) | self.derive(shared)
        head = realistic(nn.Linear(FEATURES, 3), seed).double()
        first, second = (_Classifier(Block(apply, parts), head).eval() for apply in (self.first, self.second))
        rng = torch.Generator().manual_seed(seed)
        x = torch.randn(2, TOKENS, FEATURES, generator=rng, dtype=torch.float64)
        return Spelling(self.name, first, second, {"x": x})


def _split(fused: nn.Linear, *names: str) -> dict[str, Part]:
    """The fused linear as several, with the same rows of its weight."""
    parts: dict[str, Part] = {}
    for name, weight, bias in zip(names, fused.weight.chunk(len(names)), fused.bias.chunk(len(names)), strict=True):
        part = nn.Linear(weight.shape[1], weight.shape[0]).to(weight.dtype)
        part.weight, part.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        parts[name] = part
    return parts


def _folded(m: Any) -> dict[str, Part]:
    """The convolution with its batch norm's scale and shift folded in."""
    scale = m.norm.weight / torch.sqrt(m.norm.running_var + m.norm.eps)
    conv = nn.Conv1d(FEATURES, FEATURES, 3, padding=1).double()
    conv.weight = nn.Parameter((m.conv.weight * scale[:, None, None]).detach())
    shift = (m.conv.bias - m.norm.running_mean) * scale + m.norm.bias
    conv.bias = nn.Parameter(shift.detach())
    return {"folded": conv}


def _mask_added(m: Any, x: Tensor) -> Tensor:
    q, k, v = attentions.projected(m, x)
    hidden = attentions.causal(q @ k.transpose(-2, -1))
    bias = torch.zeros(TOKENS, TOKENS, dtype=x.dtype).masked_fill(hidden, float("-inf"))
    return m.o(attentions.merged((attentions.scaled_scores(q, k) + bias).softmax(-1) @ v))


def _unfused_module(m: Any, x: Tensor) -> Tensor:
    q, k, v = F.linear(x, m.attention.in_proj_weight, m.attention.in_proj_bias).chunk(3, -1)
    q, k, v = (attentions.heads(t) for t in (q, k, v))
    return m.attention.out_proj(attentions.merged(attentions.scaled_scores(q, k).softmax(-1) @ v))


def _gelu_tanh(m: Any, x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3))))


def _fused_gate(m: Any, x: Tensor) -> Tensor:
    gate, up = m.gate_up(x).chunk(2, -1)
    return m.down(F.silu(gate) * up)


def _rms_norm(m: Any, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * m.norm.weight


def _hand_layer_norm(m: Any, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(x.var(-1, correction=0, keepdim=True) + 1e-5) * m.norm_weight + m.bias


def _group_norm(m: Any, x: Tensor) -> Tensor:
    grouped = x.transpose(1, 2).reshape(x.shape[0], 2, -1)
    centred = grouped - grouped.mean(-1, keepdim=True)
    normal = (centred / torch.sqrt(grouped.var(-1, correction=0, keepdim=True) + 1e-5)).view(-1, FEATURES, TOKENS)
    return normal.transpose(1, 2) * m.norm.weight + m.norm.bias


QKVO, GROUPED = kinds.QKVO, kinds.GROUPED
NORM = {"norm_weight": parameter(FEATURES, value=1.0), "bias": parameter(FEATURES)}
FUSED_QKV = {"qkv": linear(8, 24), "o": linear()}
FUSED_GATE = {"gate_up": linear(8, 24), "down": linear(12, 8)}
CONV_NORM: dict[str, Callable[[], Part]] = {
    "conv": partial(nn.Conv1d, 8, 8, 3, padding=1),
    "norm": partial(nn.BatchNorm1d, 8),
}
ATTENTION = {"attention": partial(nn.MultiheadAttention, 8, 2, batch_first=True)}

PAIRS = (
    _Pair("eager_sdpa", attentions.eager, attentions.sdpa, QKVO),
    _Pair("eager_sdpa_masked", attentions.eager_additive_mask, attentions.sdpa_mask, QKVO | {"keep": kinds.keep}),
    _Pair("eager_sdpa_causal", attentions.eager_masked_fill, attentions.sdpa_causal, QKVO),
    _Pair("causal_filled_added", attentions.eager_masked_fill, _mask_added, QKVO),
    _Pair("eager_bmm", attentions.eager, attentions.bmm, QKVO),
    _Pair("eager_einsum", attentions.eager, attentions.einsum, QKVO),
    _Pair("eager_sdpa_grouped", attentions.repeated_grouped, attentions.sdpa_grouped, GROUPED),
    _Pair("qkv_fused_split", attentions.fused_qkv, attentions.sdpa, FUSED_QKV, lambda m: _split(m.qkv, *"qkv")),
    _Pair("multihead_module", attentions.multihead_module, _unfused_module, ATTENTION),
    _Pair(
        "gate_fused_split",
        _fused_gate,
        lambda m, x: m.down(F.silu(m.gate(x)) * m.up(x)),
        FUSED_GATE,
        lambda m: _split(m.gate_up, "gate", "up"),
    ),
    _Pair("layer_norm", lambda m, x: F.layer_norm(x, (8,), m.norm_weight, m.bias), kinds.layer_norm, NORM),
    _Pair("layer_norm_var", kinds.layer_norm, _hand_layer_norm, NORM),
    _Pair("rms_norm", lambda m, x: m.norm(x), _rms_norm, {"norm": partial(nn.RMSNorm, 8, eps=1e-6)}),
    _Pair(
        "group_norm",
        lambda m, x: across_tokens(m.norm, x),
        _group_norm,
        {"norm": partial(nn.GroupNorm, 2, 8)},
    ),
    _Pair(
        "batch_norm_folded",
        lambda m, x: across_tokens(lambda t: m.norm(m.conv(t)), x),
        lambda m, x: across_tokens(m.folded, x),
        CONV_NORM,
        _folded,
    ),
    _Pair(
        "gelu_tanh",
        lambda m, x: F.gelu(m.w(x), approximate="tanh"),
        lambda m, x: _gelu_tanh(m, m.w(x)),
        {"w": linear()},
    ),
    _Pair("gelu_erf", lambda m, x: F.gelu(x), lambda m, x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))), {}),
    _Pair("silu", lambda m, x: F.silu(x), lambda m, x: x * x.sigmoid(), {}),
    _Pair("squared_relu", lambda m, x: F.relu(x).square(), lambda m, x: F.relu(x).pow(2), {}),
    _Pair("softmax", lambda m, x: x.softmax(-1), lambda m, x: (e := x.exp()) / e.sum(-1, keepdim=True), {}),
    _Pair("linear_matmul", lambda m, x: m.w(x), lambda m, x: x @ m.w.weight.T + m.w.bias, {"w": linear()}),
    _Pair(
        "linear_einsum",
        lambda m, x: m.w(x),
        lambda m, x: torch.einsum("btd,ed->bte", x, m.w.weight) + m.w.bias,
        {"w": linear()},
    ),
    _Pair(
        "linear_pointwise_conv",
        lambda m, x: m.w(x),
        lambda m, x: across_tokens(lambda t: F.conv1d(t, m.w.weight[..., None], m.w.bias), x),
        {"w": linear()},
    ),
    _Pair(
        "mean_sum",
        lambda m, x: x + x.mean(1, keepdim=True),
        lambda m, x: x + x.sum(1, keepdim=True) / TOKENS,
        {},
    ),
    _Pair("add_stack", lambda m, x: x + m.w(x), lambda m, x: torch.stack([x, m.w(x)]).sum(0), {"w": linear()}),
    _Pair(
        "unit_vector",
        lambda m, x: F.normalize(x, dim=-1),
        lambda m, x: x / x.pow(2).sum(-1, keepdim=True).sqrt(),
        {},
    ),
    _Pair("multiply_divide", lambda m, x: x * 0.25, lambda m, x: x / 4, {}),
)


def spellings(seed: int = 0) -> tuple[Spelling, ...]:
    """Every pair, with weights and inputs drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator; `realistic` redraws
        return tuple(pair.spelling(seed) for pair in PAIRS)
