"""Kinds of vision models, on tokens and features laid out as small images, and of what only runs can decide."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxlrp.testing.blocks import FEATURES, TOKENS, across_tokens, bounded, kind, linear, parameter

CHANNELS, HEIGHT, WIDTH = 2, 4, 5


def image(x: Tensor) -> Tensor:
    """[batch, 5 tokens, 8 features] as [batch, 2 channels, 4, 5]."""
    return x.reshape(-1, CHANNELS, HEIGHT, WIDTH)


def enlarged(m: Any, x: Tensor) -> Tensor:
    """Enlarged by interpolation, then pooled to its size."""
    mode = ("nearest", "bilinear", "bicubic")[m.option]
    return F.avg_pool2d(F.interpolate(image(x), scale_factor=2, mode=mode), 2).reshape(x.shape)


def reduced(m: Any, x: Tensor) -> Tensor:
    """Made smaller with a filter against aliasing, and brought back."""
    small = F.interpolate(image(x), (3, 3), mode="bilinear", antialias=True)
    return x + F.interpolate(small, (HEIGHT, WIDTH), mode="nearest").reshape(x.shape)


def sampled(m: Any, x: Tensor) -> Tensor:
    """Looked up between the pixels, at places of a grid."""
    ends = ((-0.9, 0.8, HEIGHT), (-0.7, 0.9, WIDTH))
    rows, columns = torch.meshgrid(*(torch.linspace(*end, dtype=x.dtype) for end in ends), indexing="ij")
    grid = torch.stack([columns, rows], -1).expand(x.shape[0], HEIGHT, WIDTH, 2)
    return F.grid_sample(image(x), grid, align_corners=False).reshape(x.shape)


def folded(m: Any, x: Tensor) -> Tensor:
    """Laid out as overlapping patches, which a weight scales, and added up again."""
    patches = F.unfold(image(x), 2) * m.scale
    return F.fold(patches, (HEIGHT, WIDTH), 2).reshape(x.shape)


def pooled(m: Any, x: Tensor) -> Tensor:
    """The maximum and the mean of neighbourhoods, of distinct values."""
    pixels = image(x + m.offset_bias)
    return (
        F.max_pool2d(pixels, 3, 1, 1).reshape(x.shape) + F.adaptive_avg_pool2d(pixels, 1).mean((1, 2, 3))[:, None, None]
    )


def codebook(m: Any, x: Tensor) -> Tensor:
    """Every token finds entries in a table, as discrete codes do; the choice is no continuous function of it."""
    chosen = m.w(x).topk(2, -1).indices
    return x + m.table(chosen[..., 0]) + m.bag(chosen.flatten(0, 1)).view_as(x)


def strided(m: Any, x: Tensor) -> Tensor:
    """Overlapping chunks of tokens, by strides on the memory and by windows."""
    batch, step = x.shape[0], FEATURES
    chunks = x.contiguous().as_strided((batch, TOKENS - 1, 2, FEATURES), (TOKENS * step, step, step, 1))
    windows = x.unfold(1, 2, 1).transpose(2, 3)  # the same [batch, 4, 2, 8]
    return x + F.pad((m.pair * (chunks + windows)).sum(2), (0, 0, 1, 0))


def created(m: Any, x: Tensor) -> Tensor:
    """Constants made on the way in every manner."""
    total = x.new_full((1,), 0.5) + x.new_ones(FEATURES) + torch.full_like(x[:1], 0.1)
    return (
        x * total + torch.full((TOKENS, 1), 0.2).to(x) + torch.ones(FEATURES).to(x) - x.new_empty(FEATURES).fill_(0.3)
    )


def limited(m: Any, x: Tensor) -> Tensor:
    """Held between bounds that are values themselves, and made finite."""
    return (1.3 * x).clamp(m.bound - 2.0, m.bound + 1.0).nan_to_num()


def between(m: Any, x: Tensor) -> Tensor:
    """The larger of two values, and the smaller of two."""
    low = x.amin(1, keepdim=True)
    return torch.min(torch.max(x + m.low_bias, 0.5 * low), low + 1.5)


def checked(m: Any, x: Tensor) -> Tensor:
    """Values are looked at before they are used: what follows can be recorded from a run, not exported."""
    if not bool(torch.isfinite(x).all()):
        raise ValueError("the values are not finite")
    mixed = F.adaptive_avg_pool2d(m.conv(F.pad(image(x), (1, 1, 1, 1))), (HEIGHT, WIDTH)).reshape(x.shape)
    return F.softmax(x, -1) * across_tokens(m.norm, mixed) + (x > 0).to(x.dtype) * m.groups(x)


def reordered(m: Any, x: Tensor) -> Tensor:
    """Features in another order by less usual spellings."""
    rows = x.take_along_dim(x.detach().argsort(-1), -1).flatten(0, 1)
    return torch.concatenate([rows.T[:3].flip(0), rows.t()[3:]]).T.view_as(x)


def polar(m: Any, x: Tensor) -> Tensor:
    """Complex numbers of which length and angle both are values."""
    return torch.view_as_real(torch.polar(x.abs() + 0.5, m.w(x))).sum(-1)


CHECKED: dict[str, Any] = {
    "conv": partial(nn.Conv2d, 2, 2, 3),
    "norm": partial(nn.BatchNorm1d, 8),
    "groups": partial(nn.GroupNorm, 1, 5),
}

IMAGES = (
    kind(
        "transposed_convolution_2d",
        lambda m, x: m.up(image(x)).reshape(x.shape),
        up=partial(nn.ConvTranspose2d, 2, 2, 3, 1, 1),
    ),
    kind(
        "convolution_3d",
        lambda m, x: m.conv(image(x)[:, None]).reshape(x.shape),
        conv=partial(nn.Conv3d, 1, 1, 3, 1, 1),
    ),
    kind("enlarged", enlarged),
    kind("reduced", reduced),
    kind("grid_sample", sampled),
    kind("fold", folded, scale=parameter(8, 12)),
    kind("max_pool_2d", pooled, offset_bias=parameter(TOKENS, FEATURES)),
    kind("codebook", codebook, w=linear(8, 6), table=partial(nn.Embedding, 6, 8), bag=partial(nn.EmbeddingBag, 6, 8)),
    kind("strided_chunks", strided, pair=parameter(2, 1)),
    kind("constants", created),
    kind("clamp_between_values", limited, bounded, bound=parameter(FEATURES)),
    kind("hard_sigmoid", lambda m, x: F.hardsigmoid(2.0 * x.abs() - 1.0), bounded),
    kind("hard_tanh", lambda m, x: F.hardtanh(1.2 * x) + F.relu6(0.9 * x), bounded),
    kind("round", lambda m, x: x + 0.1 * torch.round(x.abs() + 0.6) + 0.1 * torch.ceil(x.abs())),  # see "rounded"
    kind("between", between, low_bias=parameter(TOKENS, FEATURES)),
    kind("waves", lambda m, x: x.sin() + 0.5 * (2.0 * x).cos() * x, bounded),
    kind("asinh", lambda m, x: torch.asinh(2.0 * x)),
    kind("length", lambda m, x: x + torch.linalg.vector_norm(x, dim=-1, keepdim=True)),
    kind("reordered", reordered),
    kind("polar", polar, w=linear()),
    kind("checked", checked, **CHECKED),
)
