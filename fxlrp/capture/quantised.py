"""Quantised layers in floating point: packed weights as the matrices they are, what was rounded beside what it was.

A product with a packed weight is linear in its other factor but has no derivative in PyTorch: it is spelled out as
a linear layer. A value that is rounded to a grid is ``rounded(x, y)``, y standing for x, so that relevance passes to x
and the ledger shows the rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx.proxy import Proxy

from fxlrp.capture.canonical import replaces
from fxlrp.capture.expansions import as_rounded, narrowed, value_of, widened
from fxlrp.capture.foreign import FOREIGN, Foreign, name_of
from fxlrp.graph.operator_classes import CONSTANT
from fxlrp.graph.operators import Dependence, Operator, register

aten = torch.ops.aten


@replaces(aten._weight_int8pack_mm)
def _int8_product(x: Any, weight: Any, scales: Any) -> Any:
    """x (diag(s) W)^T with W [out, in] of int8, s [out]."""
    dense = aten.mul.Tensor(
        aten._to_copy.default(weight, dtype=torch.float32), aten.unsqueeze.default(widened(scales), 1)
    )
    return narrowed(aten.linear.default(widened(x), dense), x)


def _packed_product(target: Any) -> Callable[..., Any]:
    """x W^T with W^T what the operator makes of the unit vectors: the layout of the packed weight is its own affair."""

    def replacement(x: Any, *packed: Any) -> Any:
        value = value_of(x)
        kind = {"dtype": value.dtype, "device": value.device}
        units = x.tracer.create_proxy("call_function", aten.eye.default, (int(value.shape[1]),), kind)
        return aten.linear.default(x, aten.t.default(target(units, *packed)))

    return replacement


for _packet in (
    aten._weight_int4pack_mm,
    aten._weight_int4pack_mm_for_cpu,
    aten._weight_int4pack_mm_with_scales_and_zeros,
):
    replaces(_packet)(_packed_product(_packet.default))


def _within(x: Any, scale: Any, zero: Any, low: int, high: int) -> Any:
    """``x`` between the values that a grid ends at: what is beyond them is cut off, not rounded."""
    bounds = [aten.mul.Tensor(aten.rsub.Scalar(zero, bound), scale) for bound in (low - 0.5, high + 0.5)]
    low, high = (narrowed(aten.detach.default(bound), x) for bound in bounds)
    return aten.minimum.default(aten.maximum.default(x, low), high)


@replaces(aten.fake_quantize_per_tensor_affine)
def _fake_per_tensor(x: Any, scale: Any, zero: Any, low: int, high: int) -> Any:
    target = aten.fake_quantize_per_tensor_affine
    if isinstance(scale, Proxy):
        return as_rounded(_within(x, scale, zero, low, high), target.tensor_qparams(x, scale, zero, low, high))
    inside = aten.clamp_max.default(aten.clamp_min.default(x, (low - 0.5 - zero) * scale), (high + 0.5 - zero) * scale)
    return as_rounded(inside, target.default(x, scale, zero, low, high))


@replaces(aten.fake_quantize_per_channel_affine)
def _fake_per_channel(x: Any, scale: Any, zero: Any, axis: int, low: int, high: int) -> Any:
    along = [-1 if place == axis % value_of(x).ndim else 1 for place in range(value_of(x).ndim)]
    inside = _within(x, aten.reshape.default(scale, along), aten.reshape.default(zero, along), low, high)
    return as_rounded(inside, aten.fake_quantize_per_channel_affine.default(x, scale, zero, axis, low, high))


#: The operators that torch spells these with, which give a mask as well.
_WITH_MASK = {
    aten.fake_quantize_per_tensor_affine_cachemask: _fake_per_tensor,
    aten.fake_quantize_per_channel_affine_cachemask: _fake_per_channel,
    aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams: lambda x, scale, zero, on, low, high: (
        _fake_per_tensor(x, scale, zero, low, high)
    ),
}
for _packet, _spelled in _WITH_MASK.items():
    replaces(_packet)(lambda *grid, _made=_spelled: (_made(*grid), None))


def _there_and_back(target: Any) -> Callable[..., Any]:
    """What was quantised from x and comes back is x, rounded; a stored integer weight is only spelled out."""

    def replacement(q: Any, *grid: Any, **options: Any) -> Any:
        if name_of(q.node.target) not in QUANTISING:
            return NotImplemented
        overload = target.tensor if hasattr(target, "tensor") and isinstance(grid[0], Proxy) else target.default
        return as_rounded(Proxy(q.node.args[0], q.tracer), overload(q, *grid, **options))

    return replacement


def _decomposed(*names: str) -> tuple[str, ...]:
    """Operators that torch.ao and torchao both define, by name."""
    return tuple(f"quantized_decomposed::{name}" for name in names)


#: Operators from floating point to integers, and their steps and zeros.
QUANTISING = _decomposed(
    "quantize_per_tensor", "quantize_per_channel", "quantize_per_channel_group", "quantize_per_token"
)
_GRIDS = _decomposed(
    "choose_qparams",
    "choose_qparams_symmetric",
    "choose_qparams_per_token",
    "choose_qparams_per_token_asymmetric",
)
_BACK = _decomposed(
    "dequantize_per_tensor", "dequantize_per_channel", "dequantize_per_channel_group", "dequantize_per_token"
)
_ROUNDING = Operator(Dependence.CONSTANT, CONSTANT)
FOREIGN.update({name: Foreign(_ROUNDING) for name in (*QUANTISING, *_GRIDS)})
FOREIGN.update({name: Foreign(_ROUNDING, _there_and_back) for name in _BACK})
for _packet in (aten.fake_quantize_per_tensor_affine, aten.fake_quantize_per_channel_affine):
    register(_packet, _ROUNDING)
