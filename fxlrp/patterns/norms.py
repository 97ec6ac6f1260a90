"""Normalisations: LayerNorm, RMSNorm, GroupNorm (and their spellings), vectors scaled to unit length."""

from __future__ import annotations

import torch
from torch import Tensor

from fxlrp.patterns.language import any_axis, either, part, pattern


def _inverse_root(x: Tensor, variance: Tensor, eps: Tensor) -> Tensor:
    """x / sqrt(variance + eps), where the root stands is the part ``scale``."""
    floored = either(variance + eps, variance)
    return either(
        x
        * part(
            either(torch.rsqrt(floored), torch.pow(floored, -0.5), torch.reciprocal(torch.sqrt(floored))),
            "scale",
        ),
        x / part(either(torch.sqrt(floored), torch.sqrt(variance) + eps, torch.pow(floored, 0.5)), "scale"),
    )


def _mean(x: Tensor) -> Tensor:
    """The mean over the axes that are normalised: the last, those of a picture, of a group of channels."""
    return any_axis(x.mean(-1, keepdim=True), "normalised")


def _standardised(x: Tensor, eps: Tensor) -> Tensor:
    centred = x - part(_mean(x), "mean")
    square = _mean(torch.pow(centred, 2))
    variance = any_axis(x.var(-1, keepdim=True), "normalised")
    return _inverse_root(centred, either(square, square * eps, variance), eps)


@pattern("norm", x=(2, 3), eps=())
def layer_norm(x: Tensor, eps: Tensor) -> Tensor:
    """(x - mean(x)) / sqrt(var(x) + eps): LayerNorm, and GroupNorm, InstanceNorm on a reshaped x."""
    return _standardised(x, eps)


@pattern("norm", x=(2, 3), eps=(), gain=(3,), shift=(3,))
def layer_norm_affine(x: Tensor, eps: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """The same with what learnt norms add: gain * y + shift."""
    y = _standardised(x, eps)
    return part(either(part(y * gain, "gain"), y) + shift, "shift")


@pattern("norm", x=(2, 3), eps=())
def layer_norm_by_deviation(x: Tensor, eps: Tensor) -> Tensor:
    """(x - mean(x)) / (std(x) + eps)."""
    centred = x - part(_mean(x), "mean")
    deviation = any_axis(x.std(-1, keepdim=True), "normalised")
    return centred / part(either(deviation + eps, deviation), "scale")


@pattern("norm", x=(2, 3), eps=())
def rms_norm(x: Tensor, eps: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + eps)."""
    return _inverse_root(x, _mean(torch.pow(x, 2)), eps)


@pattern("unit_norm", x=(2, 3), eps=())
def unit_norm(x: Tensor, eps: Tensor) -> Tensor:
    """x / ||x||, with a floor under the length or without."""
    length = any_axis(torch.linalg.vector_norm(x, dim=-1, keepdim=True))
    length = either(length, any_axis(torch.pow(x, 2).sum(-1, keepdim=True)).sqrt())
    return x / part(either(torch.clamp_min(length, 1e-12), length + eps, length), "scale")


@pattern("unit_norm", x=(2, 3), eps=())
def unit_norm_by_root(x: Tensor, eps: Tensor) -> Tensor:
    """x / sqrt(sum(x^2) + eps)."""
    return _inverse_root(x, any_axis(torch.pow(x, 2).sum(-1, keepdim=True)), eps)
