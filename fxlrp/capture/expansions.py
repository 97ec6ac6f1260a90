"""The replacements: fused operations spelled out, and one spelling for each of the others.

Each function has the signature of the ATen operator it stands for. The expansions are the definitions of these
operations, so their values agree with the fused kernels to rounding.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch.fx.proxy import Proxy

from fxlrp.capture import torch_private as private
from fxlrp.capture.canonical import replaces
from fxlrp.errors import CaptureError
from fxlrp.graph.operators import is_continuous, packet
from fxlrp.graph.rounding import rounded

aten = torch.ops.aten


def _value(x: Any) -> Any:
    return x.node.meta["val"] if isinstance(x, Proxy) else x


def _size(x: Proxy, axis: int) -> Any:
    size = _value(x).shape[axis]
    return size if isinstance(size, int) else aten.sym_size.int(x, axis % _value(x).ndim)


def _affine(y: Any, weight: Any, bias: Any) -> Any:
    y = y if weight is None else aten.mul.Tensor(y, _widened(weight))
    return y if bias is None else aten.add.Tensor(y, _widened(bias))


# --- normalisations: in float32 where the model computes in half precision, as the fused kernels do ----------


def _widened(x: Any) -> Any:
    """``x`` in float32 if it is half precision: squares of float16 overflow from 256 on."""
    narrow = x is not None and _value(x).dtype in (torch.float16, torch.bfloat16)
    return aten._to_copy.default(x, dtype=torch.float32) if narrow else x


def _narrowed(y: Any, like: Any) -> Any:
    """``y`` in the type of ``like``."""
    same = _value(y).dtype == _value(like).dtype
    return y if same else aten._to_copy.default(y, dtype=_value(like).dtype)


def _standardise(x: Any, axes: list[int], eps: float) -> Any:
    """(x - mean) / sqrt(var + eps) over ``axes``, widened."""
    x = _widened(x)
    centred = aten.sub.Tensor(x, aten.mean.dim(x, axes, True))
    variance = aten.mean.dim(aten.pow.Tensor_Scalar(centred, 2), axes, True)
    return aten.mul.Tensor(centred, aten.rsqrt.default(aten.add.Tensor(variance, eps)))


@replaces(aten.layer_norm, fused=True)
def _layer_norm(
    x: Any, shape: list[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, _cudnn: bool = True
) -> Any:
    return _narrowed(_affine(_standardise(x, list(range(-len(shape), 0)), eps), weight, bias), x)


@replaces(aten.native_layer_norm)
def _native_layer_norm(x: Any, shape: list[int], weight: Any, bias: Any, eps: float) -> Any:
    return (_layer_norm(x, shape, weight, bias, eps), None, None)


@replaces(aten.rms_norm, fused=True)
def _rms_norm(x: Any, shape: list[int], weight: Any = None, eps: float | None = None) -> Any:
    wide = _widened(x)
    eps = torch.finfo(_value(wide).dtype).eps if eps is None else eps
    mean = aten.mean.dim(aten.pow.Tensor_Scalar(wide, 2), list(range(-len(shape), 0)), True)
    scaled = aten.mul.Tensor(wide, aten.rsqrt.default(aten.add.Tensor(mean, eps)))
    return _narrowed(_affine(scaled, weight, None), x)


def _per_channel(parameter: Any, ndim: int) -> Any:
    return None if parameter is None else aten.reshape.default(parameter, [1, -1] + [1] * (ndim - 2))


@replaces(aten.group_norm, fused=True)
def _group_norm(
    x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, _cudnn: bool = True
) -> Any:
    ndim = _value(x).ndim
    grouped = aten.reshape.default(x, [_size(x, 0), groups, -1])
    standard = aten.reshape.default(_standardise(grouped, [-1], eps), [_size(x, axis) for axis in range(ndim)])
    return _narrowed(_affine(standard, _per_channel(weight, ndim), _per_channel(bias, ndim)), x)


def _fixed_statistics(x: Any, weight: Any, bias: Any, mean: Any, variance: Any, eps: float) -> Any:
    ndim = _value(x).ndim
    scale = aten.rsqrt.default(aten.add.Tensor(_widened(variance), eps))
    scale = scale if weight is None else aten.mul.Tensor(scale, _widened(weight))
    centred = aten.sub.Tensor(_widened(x), _per_channel(_widened(mean), ndim))
    return _narrowed(_affine(centred, _per_channel(scale, ndim), _per_channel(bias, ndim)), x)


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
        ndim = _value(x).ndim
        standard = _standardise(x, [0, *range(2, ndim)], eps)
        return _narrowed(_affine(standard, _per_channel(weight, ndim), _per_channel(bias, ndim)), x)
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
    ndim = _value(x).ndim
    if not use_input:
        return _fixed_statistics(x, weight, bias, mean, variance, eps)
    standard = _standardise(x, list(range(2 - ndim, 0)), eps)
    return _narrowed(_affine(standard, _per_channel(weight, ndim), _per_channel(bias, ndim)), x)


def _rounded(x: Proxy, y: Any) -> Any:
    """``y``, which ``x`` was rounded to."""
    return x.tracer.create_proxy("call_function", rounded, (x, y), {})


def _count(x: Any, axes: list[int]) -> Any:
    return math.prod(int(_value(x).shape[axis]) for axis in axes)


@replaces(aten.var)
def _var(x: Any, dim: Any = None, correction: float | None = 1, keepdim: bool = False, unbiased: Any = None) -> Any:
    if isinstance(dim, bool):  # var.default(x, unbiased)
        dim, correction = None, int(dim)
    correction = (int(unbiased) if unbiased is not None else 1) if correction is None else correction
    axes = list(range(_value(x).ndim)) if dim is None else ([dim] if isinstance(dim, int) else list(dim))
    if not all(isinstance(_value(x).shape[axis], int) for axis in axes):
        return NotImplemented
    count, wide = _count(x, axes), _widened(x)
    centred = aten.sub.Tensor(wide, aten.mean.dim(wide, axes, True))
    variance = aten.mean.dim(aten.pow.Tensor_Scalar(centred, 2), axes, keepdim)
    correction = int(correction)
    return _narrowed(variance if not correction else aten.mul.Tensor(variance, count / (count - correction)), x)


@replaces(aten.var_mean)
def _var_mean(
    x: Any, dim: Any = None, correction: float | None = 1, keepdim: bool = False, unbiased: Any = None
) -> Any:
    variance = _var(x, dim, correction, keepdim, unbiased)
    if variance is NotImplemented:
        return NotImplemented
    axes = list(range(_value(x).ndim)) if dim is None else dim
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
    scale = 1 / math.sqrt(_value(q).shape[-1]) if scale is None else scale
    groups = _value(q).shape[-3] // _value(k).shape[-3] if enable_gqa else 1
    if groups > 1:
        k, v = (aten.repeat_interleave.self_int(x, groups, -3) for x in (k, v))
    scores = aten.mul.Tensor(aten.matmul.default(q, aten.transpose.int(k, -2, -1)), scale)
    if is_causal:
        everything = aten.new_ones.default(scores, [_size(q, -2), _size(k, -2)], dtype=torch.bool)
        scores = aten.where.ScalarOther(aten.tril.default(everything), scores, -math.inf)
    if attn_mask is not None and _value(attn_mask).dtype == torch.bool:
        scores = aten.where.ScalarOther(attn_mask, scores, -math.inf)
    elif attn_mask is not None:
        scores = aten.add.Tensor(scores, attn_mask)
    return aten.matmul.default(aten._safe_softmax.default(scores, -1), v)


# --- one spelling each --------------------------------------------------------------------------------------


@replaces(aten.bmm, aten.mm, aten.mv)
def _matmul(a: Any, b: Any) -> Any:
    return aten.matmul.default(a, b)


@replaces(aten.baddbmm)
def _baddbmm(bias: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> Any:
    product = aten.matmul.default(a, b)
    product = product if alpha == 1 else aten.mul.Tensor(product, alpha)
    return aten.add.Tensor(product, bias if beta == 1 else aten.mul.Tensor(bias, beta))


@replaces(aten.view, aten._unsafe_view)
def _view(x: Any, shape: Any) -> Any:
    """A view asks for a memory layout that an expanded operation need not have; a reshape does not."""
    return aten.reshape.default(x, shape) if isinstance(shape, (list, tuple)) else NotImplemented


@replaces(aten.slice)
def _slice(x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    """A slice of everything is nothing (its gradient would be a copy)."""
    if isinstance(start, Proxy) or isinstance(end, Proxy):
        return NotImplemented
    return x if start in (None, 0) and end in (None, sys.maxsize) and step == 1 else NotImplemented


@replaces(aten.cat)
def _cat(tensors: Any, dim: int = 0) -> Any:
    """Concatenation to nothing, as an empty cache is extended, is nothing."""
    filled = [
        x for x in tensors if not (_value(x).ndim == 1 and isinstance(_value(x).shape[0], int) and not len(_value(x)))
    ]
    if len(filled) == len(tensors):
        return NotImplemented
    return filled[0] if len(filled) == 1 else aten.cat.default(filled, dim)


@replaces(aten.clamp, aten.clip)
def _clamp(x: Any, low: Any = None, high: Any = None) -> Any:
    """One bound after the other; an infinite bound is none."""
    for bound, operator, nothing in ((low, aten.clamp_min, -math.inf), (high, aten.clamp_max, math.inf)):
        if isinstance(_value(bound), torch.Tensor):
            x = operator.Tensor(x, bound)
        elif isinstance(bound, Proxy) or (bound is not None and bound != nothing):  # a proxy: a size that may vary
            x = operator.default(x, bound)
    return x


def _extreme(where: Any) -> Any:
    """A maximum along an axis is the entry where it is (the first, of equal ones)."""

    def replacement(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
        if not isinstance(dim, int):  # the maximum of everything, or of two tensors
            return NotImplemented
        index = where(x, dim, True)
        found = (aten.gather.default(x, dim, index), index)
        return found if keepdim else tuple(aten.squeeze.dim(value, dim) for value in found)

    return replacement


replaces(aten.max)(_extreme(aten.argmax.default))
replaces(aten.min)(_extreme(aten.argmin.default))


@replaces(aten.scatter_reduce)
def _scatter_reduce(x: Any, dim: int, index: Any, source: Any, reduce: str, *, include_self: bool = True) -> Any:
    """Sums, means and extremes are homogeneous; a product of scattered values is not, and has no rule."""
    if reduce == "prod":
        raise CaptureError(
            "scatter_reduce with reduce='prod' has no rule. Multiply the values by index_select instead."
        )
    return aten.scatter_add.default(x, dim, index, source) if reduce == "sum" and include_self else NotImplemented


@replaces(aten.square)
def _square(x: Any) -> Any:
    return aten.pow.Tensor_Scalar(x, 2)


@replaces(aten.mul, aten.multiply)
def _mul(a: Any, b: Any) -> Any:
    if isinstance(a, Proxy) and isinstance(b, Proxy) and a.node is b.node:
        return aten.pow.Tensor_Scalar(a, 2)
    return aten.mul.Tensor(a, b)


@replaces(aten.rsub)
def _rsub(a: Any, b: Any, alpha: float = 1) -> Any:
    a = a if alpha == 1 else aten.mul.Tensor(a, alpha)
    return aten.sub.Tensor(b, a) if isinstance(b, Proxy) else aten.add.Tensor(aten.neg.default(a), b)


@replaces(aten.sub, aten.subtract)
def _sub(a: Any, b: Any, alpha: float = 1) -> Any:
    """What is left of a value that its whole part is taken from: a function with a slope of its own."""
    parts = {aten.floor: aten.remainder.Scalar, aten.trunc: aten.fmod.Scalar}
    part = parts.get(packet(b.node.target)) if isinstance(a, Proxy) and isinstance(b, Proxy) and alpha == 1 else None
    return part(a, 1) if part is not None and b.node.args[0] is a.node else NotImplemented


@replaces(aten.floor_divide)
def _floor_divide(a: Any, b: Any) -> Any:
    return _whole_quotient(a, b, "floor")


@replaces(aten.div, aten.divide)
def _div(a: Any, b: Any, rounding_mode: str | None = None) -> Any:
    return NotImplemented if rounding_mode is None else _whole_quotient(a, b, rounding_mode)


def _whole_quotient(a: Any, b: Any, mode: str) -> Any:
    """The quotient of float values, rounded; that of integers as it is."""
    if not isinstance(a, Proxy) or not any(is_continuous(_value(x)) for x in (a, b)):
        return NotImplemented
    overload = aten.div.Tensor_mode if isinstance(b, Proxy) else aten.div.Scalar_mode
    return _rounded(aten.div.Tensor(a, b), overload(a, b, rounding_mode=mode))


@replaces(aten.embedding_bag, aten._embedding_bag, aten._embedding_bag_forward_only)
def _embedding_bag(
    table: Any,
    ids: Any,
    offsets: Any,
    scale_grad: bool = False,
    mode: int = 0,
    sparse: bool = False,
    weights: Any = None,
    last: bool = False,
    padding: int | None = None,
) -> Any:
    """Sums (mode 0) or means (1) of looked-up rows; a bag begins at each offset."""
    if mode not in (0, 1) or last or (padding is not None and padding >= 0):
        return NotImplemented
    rows = aten.embedding.default(table, ids)
    places = {"dtype": _value(offsets).dtype, "device": _value(offsets).device}
    count = aten.arange.default(_size(ids, 0), **places)
    bag = aten.sub.Tensor(aten.searchsorted.Tensor(offsets, count, right=True), 1)
    rows = rows if weights is None else aten.mul.Tensor(rows, aten.unsqueeze.default(weights, 1))
    bags = _size(offsets, 0)
    total = aten.index_add.default(aten.new_zeros.default(rows, [bags, _size(rows, 1)]), 0, bag, rows)
    if mode == 0:
        return (total, None, None, None)
    ones = aten.new_ones.default(rows, [_size(ids, 0)])
    sizes = aten.index_add.default(aten.new_zeros.default(rows, [bags]), 0, bag, ones)
    return (aten.div.Tensor(total, aten.unsqueeze.default(aten.clamp_min.default(sizes, 1), 1)), None, None, None)


@replaces(aten.glu)
def _glu(x: Any, dim: int = -1) -> Any:
    half = _value(x).shape[dim] // 2
    first, second = aten.slice.Tensor(x, dim, 0, half), aten.slice.Tensor(x, dim, half, 2 * half)
    return aten.mul.Tensor(first, aten.sigmoid.default(second))


@replaces(aten.constant_pad_nd, aten.pad)
def _pad(x: Any, pad: list[int], mode: Any = 0, value: float | None = None) -> Any:
    """Padding by a constant other than zero is padding by zero plus that constant where nothing was."""
    filler = value if isinstance(mode, str) else mode
    if mode not in ("constant", filler) or not filler or not _value(x).is_floating_point():
        return NotImplemented
    inside = aten.pad.default(aten.ones_like.default(x), pad)  # unlike constant_pad_nd it takes free sizes
    outside = aten.mul.Tensor(aten.sub.Tensor(aten.ones_like.default(inside), inside), filler)
    return aten.add.Tensor(aten.pad.default(x, pad), outside)


@replaces(aten.dropout, aten.feature_dropout, aten.alpha_dropout)
def _dropout(x: Any, p: float, train: bool) -> Any:
    return NotImplemented if train else x


@replaces(aten.alias, aten.lift_fresh, aten.lift_fresh_copy)
def _alias(x: Any) -> Any:
    return x


@replaces(aten.to, aten._to_copy)
def _cast(x: Any, *args: Any, **kwargs: Any) -> Any:
    """A cast to the same type and place is nothing; a real one stays."""
    before = _value(x)
    with private.fake_mode_of(before) or torch.no_grad():
        after = aten.to(before, *args, **kwargs) if args else aten._to_copy(before, **kwargs)
    return x if (after.dtype, after.device) == (before.dtype, before.device) else NotImplemented


@replaces(aten.copy)
def _copy(x: Any, source: Any, non_blocking: bool = False) -> Any:
    """What is copied over x is what counts: in x's shape and type."""
    spread = aten.expand_as.default(source, x)
    dtype = _value(x).dtype
    return spread if _value(source).dtype == dtype else aten._to_copy.default(spread, dtype=dtype)


@replaces(aten.detach_)
def _detach(x: Any) -> Any:
    return aten.detach.default(x)


def _of_parts(operator: Any, axes: int) -> None:
    """Of complex values, for which torch has no gradient: the same of their real and imaginary parts, in a last axis.

    The operator's arguments after its two tensors begin with, or end with, ``axes`` numbers of axes.
    """

    @replaces(operator)
    def scatter(x: Any, source: Any, *place: Any, **named: Any) -> Any:
        if not _value(x).is_complex():
            return NotImplemented
        overload = next(iter(operator.overloads()))
        names = [argument.name for argument in getattr(operator, overload)._schema.arguments][2:]
        given = dict(zip(names, place, strict=False)) | named
        defaults = {"dim": 0} if axes == 1 else {"dim1": 0, "dim2": 1}
        given |= {name: given.get(name, first) % _value(x).ndim for name, first in defaults.items()}
        parts = (aten.view_as_real.default(each) for each in (x, source))
        if operator is aten.diagonal_scatter:  # whose diagonal is the last axis, after the parts
            whole, diagonal = parts
            diagonal = aten.transpose.int(diagonal, -1, -2)
            return aten.view_as_complex.default(_laid_out(getattr(operator, overload)(whole, diagonal, **given)))
        return aten.view_as_complex.default(_laid_out(getattr(operator, overload)(*parts, **given)))


def _laid_out(x: Any) -> Any:
    """With its last axis contiguous, as complex numbers need it."""
    return aten.clone.default(x, memory_format=torch.contiguous_format)


_of_parts(aten.slice_scatter, 1)
_of_parts(aten.select_scatter, 1)
_of_parts(aten.diagonal_scatter, 2)
