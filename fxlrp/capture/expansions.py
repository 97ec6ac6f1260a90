"""The replacements of fused operations: normalisations and attention spelled out.

Each function has the signature of the ATen operator it stands for. The expansions are the definitions of these
operations, so their values agree with the fused kernels to rounding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx.proxy import Proxy

from fxlrp.capture.canonical import replaces
from fxlrp.graph.rounding import rounded

aten = torch.ops.aten


def value_of(x: Any) -> Any:
    """The fake value of a proxy; a number as it is."""
    return x.node.meta["val"] if isinstance(x, Proxy) else x


def size_of(x: Proxy, axis: int) -> Any:
    """The size of an axis: a number, or the node of a free one."""
    size = value_of(x).shape[axis]
    return size if isinstance(size, int) else aten.sym_size.int(x, axis % value_of(x).ndim)


def _affine(y: Any, weight: Any, bias: Any) -> Any:
    y = y if weight is None else aten.mul.Tensor(y, widened(weight))
    return y if bias is None else aten.add.Tensor(y, widened(bias))


# --- normalisations: in float32 where the model computes in half precision, as the fused kernels do ----------


def widened(x: Any) -> Any:
    """``x`` in float32 if it is half precision: squares of float16 overflow from 256 on."""
    narrow = x is not None and value_of(x).dtype in (torch.float16, torch.bfloat16)
    return aten._to_copy.default(x, dtype=torch.float32) if narrow else x


def narrowed(y: Any, like: Any) -> Any:
    """``y`` in the type of ``like``."""
    same = value_of(y).dtype == value_of(like).dtype
    return y if same else aten._to_copy.default(y, dtype=value_of(like).dtype)


def _standardise(x: Any, axes: list[int], eps: float) -> Any:
    """(x - mean) / sqrt(var + eps) over ``axes``, widened."""
    x = widened(x)
    centred = aten.sub.Tensor(x, aten.mean.dim(x, axes, True))
    variance = aten.mean.dim(aten.pow.Tensor_Scalar(centred, 2), axes, True)
    return aten.mul.Tensor(centred, aten.rsqrt.default(aten.add.Tensor(variance, eps)))


@replaces(aten.layer_norm, fused=True)
def _layer_norm(
    x: Any, shape: list[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, _cudnn: bool = True
) -> Any:
    return narrowed(_affine(_standardise(x, list(range(-len(shape), 0)), eps), weight, bias), x)


@replaces(aten.native_layer_norm)
def _native_layer_norm(x: Any, shape: list[int], weight: Any, bias: Any, eps: float) -> Any:
    return (_layer_norm(x, shape, weight, bias, eps), None, None)


@replaces(aten.rms_norm, fused=True)
def _rms_norm(x: Any, shape: list[int], weight: Any = None, eps: float | None = None) -> Any:
    wide = widened(x)
    eps = torch.finfo(value_of(wide).dtype).eps if eps is None else eps
    mean = aten.mean.dim(aten.pow.Tensor_Scalar(wide, 2), list(range(-len(shape), 0)), True)
    scaled = aten.mul.Tensor(wide, aten.rsqrt.default(aten.add.Tensor(mean, eps)))
    return narrowed(_affine(scaled, weight, None), x)


def _per_channel(parameter: Any, ndim: int) -> Any:
    return None if parameter is None else aten.reshape.default(parameter, [1, -1] + [1] * (ndim - 2))


@replaces(aten.group_norm, fused=True)
def _group_norm(
    x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, _cudnn: bool = True
) -> Any:
    ndim = value_of(x).ndim
    grouped = aten.reshape.default(x, [size_of(x, 0), groups, -1])
    standard = aten.reshape.default(_standardise(grouped, [-1], eps), [size_of(x, axis) for axis in range(ndim)])
    return narrowed(_affine(standard, _per_channel(weight, ndim), _per_channel(bias, ndim)), x)


def _fixed_statistics(x: Any, weight: Any, bias: Any, mean: Any, variance: Any, eps: float) -> Any:
    ndim = value_of(x).ndim
    scale = aten.rsqrt.default(aten.add.Tensor(widened(variance), eps))
    scale = scale if weight is None else aten.mul.Tensor(scale, widened(weight))
    centred = aten.sub.Tensor(widened(x), _per_channel(widened(mean), ndim))
    return narrowed(_affine(centred, _per_channel(scale, ndim), _per_channel(bias, ndim)), x)


@replaces(aten.batch_norm, fused=True)
def _batch_norm(
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool = True,
) -> Any:
    if mean is None:  # of the batch itself, also in eval mode
        ndim = value_of(x).ndim
        standard = _standardise(x, [0, *range(2, ndim)], eps)
        return narrowed(_affine(standard, _per_channel(weight, ndim), _per_channel(bias, ndim)), x)
    return NotImplemented if training else _fixed_statistics(x, weight, bias, mean, variance, eps)


@replaces(aten._native_batch_norm_legit_no_training)
def _native_batch_norm(x: Any, weight: Any, bias: Any, mean: Any, variance: Any, momentum: float, eps: float) -> Any:
    return (_fixed_statistics(x, weight, bias, mean, variance, eps), None, None)


@replaces(aten.native_batch_norm, aten.cudnn_batch_norm)
def _recorded_batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float
) -> Any:
    standard = _batch_norm(x, weight, bias, mean, variance, training, momentum, eps)
    return NotImplemented if standard is NotImplemented else (standard, None, None)


@replaces(aten.native_group_norm)
def _native_group_norm(x: Any, weight: Any, bias: Any, _n: Any, _c: Any, _hw: Any, groups: int, eps: float) -> Any:
    return (_group_norm(x, groups, weight, bias, eps), None, None)


@replaces(aten.instance_norm, fused=True)
def _instance_norm(
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    use_input: bool,
    momentum: float,
    eps: float,
    cudnn: bool = True,
) -> Any:
    ndim = value_of(x).ndim
    if not use_input:
        return _fixed_statistics(x, weight, bias, mean, variance, eps)
    standard = _standardise(x, list(range(2 - ndim, 0)), eps)
    return narrowed(_affine(standard, _per_channel(weight, ndim), _per_channel(bias, ndim)), x)


def as_rounded(x: Proxy, y: Any) -> Any:
    """``y``, which ``x`` was rounded to."""
    return x.tracer.create_proxy("call_function", rounded, (x, y), {})


def _count(x: Any, axes: list[int]) -> Any:
    return math.prod(int(value_of(x).shape[axis]) for axis in axes)


@replaces(aten.var)
def _var(x: Any, dim: Any = None, correction: float | None = 1, keepdim: bool = False, unbiased: Any = None) -> Any:
    if isinstance(dim, bool):  # var.default(x, unbiased)
        dim, correction = None, int(dim)
    correction = (int(unbiased) if unbiased is not None else 1) if correction is None else correction
    axes = list(range(value_of(x).ndim)) if dim is None else ([dim] if isinstance(dim, int) else list(dim))
    if not all(isinstance(value_of(x).shape[axis], int) for axis in axes):
        return NotImplemented
    count, wide = _count(x, axes), widened(x)
    centred = aten.sub.Tensor(wide, aten.mean.dim(wide, axes, True))
    variance = aten.mean.dim(aten.pow.Tensor_Scalar(centred, 2), axes, keepdim)
    correction = int(correction)
    return narrowed(variance if not correction else aten.mul.Tensor(variance, count / (count - correction)), x)


@replaces(aten.var_mean)
def _var_mean(
    x: Any, dim: Any = None, correction: float | None = 1, keepdim: bool = False, unbiased: Any = None
) -> Any:
    variance = _var(x, dim, correction, keepdim, unbiased)
    if variance is NotImplemented:
        return NotImplemented
    axes = list(range(value_of(x).ndim)) if dim is None else dim
    return (variance, aten.mean.dim(x, axes, keepdim))


# --- attention ----------------------------------------------------------------------------------------------


@replaces(aten.scaled_dot_product_attention, fused=True)
def _attention(
    q: Any,
    k: Any,
    v: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(scale * q k^T + mask) v, heads of k and v repeated for grouped queries."""
    scale = 1 / math.sqrt(value_of(q).shape[-1]) if scale is None else scale
    groups = value_of(q).shape[-3] // value_of(k).shape[-3] if enable_gqa else 1
    if groups > 1:
        k, v = (aten.repeat_interleave.self_int(x, groups, -3) for x in (k, v))
    scores = aten.mul.Tensor(aten.matmul.default(q, aten.transpose.int(k, -2, -1)), scale)
    if is_causal:
        everything = aten.new_ones.default(scores, [size_of(q, -2), size_of(k, -2)], dtype=torch.bool)
        scores = aten.where.ScalarOther(aten.tril.default(everything), scores, -math.inf)
    if attn_mask is not None and value_of(attn_mask).dtype == torch.bool:
        scores = aten.where.ScalarOther(attn_mask, scores, -math.inf)
    elif attn_mask is not None:
        scores = aten.add.Tensor(scores, attn_mask)
    return aten.matmul.default(aten._safe_softmax.default(scores, -1), v)
