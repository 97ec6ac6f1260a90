"""The replacements that give each of the other operations one spelling.

Each function has the signature of the ATen operator it stands for.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch.fx.proxy import Proxy

from fxlrp.capture import torch_private as private
from fxlrp.capture.canonical import replaces
from fxlrp.capture.expansions import as_rounded, size_of, value_of
from fxlrp.errors import CaptureError
from fxlrp.graph.operators import is_continuous, is_movement, packet, parameter_names

aten = torch.ops.aten


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


def _holds_nothing(value: Any) -> bool:
    return value.ndim == 1 and isinstance(value.shape[0], int) and len(value) == 0


@replaces(aten.cat)
def _cat(tensors: Any, dim: int = 0) -> Any:
    """Concatenation to nothing, as an empty cache is extended, is nothing."""
    filled = [x for x in tensors if not _holds_nothing(value_of(x))]
    if len(filled) == len(tensors):
        return NotImplemented
    return filled[0] if len(filled) == 1 else aten.cat.default(filled, dim)


@replaces(aten.clamp, aten.clip)
def _clamp(x: Any, low: Any = None, high: Any = None) -> Any:
    """One bound after the other; an infinite bound is none."""
    for bound, operator, nothing in ((low, aten.clamp_min, -math.inf), (high, aten.clamp_max, math.inf)):
        if isinstance(value_of(bound), torch.Tensor):
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
    if not isinstance(a, Proxy) or not any(is_continuous(value_of(x)) for x in (a, b)):
        return NotImplemented
    overload = aten.div.Tensor_mode if isinstance(b, Proxy) else aten.div.Scalar_mode
    return as_rounded(aten.div.Tensor(a, b), overload(a, b, rounding_mode=mode))


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
    """Sums (mode 0), means (1) or maxima (2) of looked-up rows; a bag begins at each offset. Padding is in no bag."""
    if last:
        return NotImplemented
    rows = aten.embedding.default(table, ids)
    places = {"dtype": value_of(offsets).dtype, "device": value_of(offsets).device}

    def counted(number: Any) -> Any:
        return ids.tracer.create_proxy("call_function", aten.arange.default, (number,), places)  # also of a number

    bags = size_of(offsets, 0)
    bag = aten.sub.Tensor(aten.searchsorted.Tensor(offsets, counted(size_of(ids, 0)), right=True), 1)
    inside = None if padding is None or padding < 0 else aten.ne.Scalar(ids, padding)
    if mode == 2:
        member = aten.eq.Tensor(aten.unsqueeze.default(counted(bags), 1), bag)
        member = member if inside is None else aten.logical_and.default(member, inside)
        each = aten.expand.default(aten.unsqueeze.default(rows, 0), [bags, -1, -1])
        apart = aten.masked_fill.Scalar(
            each, aten.unsqueeze.default(aten.logical_not.default(member), 2), float("-inf")
        )
        empty = aten.logical_not.default(aten.any.dim(member, 1, True))
        return (aten.masked_fill.Scalar(aten.amax.default(apart, [1]), empty, 0), None, None, None)
    rows = rows if weights is None else aten.mul.Tensor(rows, aten.unsqueeze.default(weights, 1))
    ones = aten.new_ones.default(rows, [size_of(ids, 0)])
    ones = ones if inside is None else aten._to_copy.default(inside, dtype=value_of(rows).dtype)
    rows = rows if inside is None else aten.mul.Tensor(rows, aten.unsqueeze.default(ones, 1))
    total = aten.index_add.default(aten.new_zeros.default(rows, [bags, size_of(rows, 1)]), 0, bag, rows)
    if mode == 0:
        return (total, None, None, None)
    sizes = aten.index_add.default(aten.new_zeros.default(rows, [bags]), 0, bag, ones)
    return (aten.div.Tensor(total, aten.unsqueeze.default(aten.clamp_min.default(sizes, 1), 1)), None, None, None)


@replaces(aten.index)
def _index(table: Any, places: Any) -> Any:
    """Entries of a vector, or of a stored table along a later axis, are looked up as rows of a table whose first axis
    that is.
    """
    chosen = [axis for axis, place in enumerate(places) if place is not None]
    if len(chosen) != 1 or value_of(places[chosen[0]]).dtype in (torch.bool, torch.uint8):
        return NotImplemented
    (axis,), ndim, ids = chosen, value_of(table).ndim, places[chosen[0]]
    if ndim == 1 and value_of(table).is_floating_point():
        rows = aten.index.Tensor(aten.unsqueeze.default(table, 1), [ids])
        return aten.squeeze.dim(rows, -1)
    if axis == 0 or not _is_stored(table):
        return NotImplemented
    rows = aten.index.Tensor(aten.permute.default(table, [axis, *(i for i in range(ndim) if i != axis)]), [ids])
    first = value_of(ids).ndim
    others = list(range(first, first + ndim - 1))
    return aten.permute.default(rows, [*others[:axis], *range(first), *others[axis:]])


@replaces(aten.index_select)
def _index_select(table: Any, dim: int, ids: Any) -> Any:
    """Entries of a vector as rows of a table of one column."""
    if value_of(table).ndim != 1 or not value_of(table).is_floating_point():
        return NotImplemented
    return aten.squeeze.dim(aten.index_select.default(aten.unsqueeze.default(table, 1), 0, ids), -1)


def _is_stored(table: Any) -> bool:
    """Whether a float value is a placeholder, or the same moved."""
    node = table.node
    while node.op != "placeholder" and is_movement(node) and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node.op == "placeholder" and value_of(table).is_floating_point()


@replaces(aten.glu)
def _glu(x: Any, dim: int = -1) -> Any:
    half = value_of(x).shape[dim] // 2
    first, second = aten.slice.Tensor(x, dim, 0, half), aten.slice.Tensor(x, dim, half, 2 * half)
    return aten.mul.Tensor(first, aten.sigmoid.default(second))


@replaces(aten.constant_pad_nd, aten.pad)
def _pad(x: Any, pad: list[int], mode: Any = 0, value: float | None = None) -> Any:
    """Padding by a constant other than zero is padding by zero plus that constant where nothing was."""
    filler = value if isinstance(mode, str) else mode
    if mode not in ("constant", filler) or not filler or not value_of(x).is_floating_point():
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
    before = value_of(x)
    with private.fake_mode_of(before) or torch.no_grad():
        after = aten.to(before, *args, **kwargs) if args else aten._to_copy(before, **kwargs)
    return x if (after.dtype, after.device) == (before.dtype, before.device) else NotImplemented


@replaces(aten.copy)
def _copy(x: Any, source: Any, non_blocking: bool = False) -> Any:
    """What is copied over x is what counts: in x's shape and type."""
    spread = aten.expand_as.default(source, x)
    dtype = value_of(x).dtype
    return spread if value_of(source).dtype == dtype else aten._to_copy.default(spread, dtype=dtype)


@replaces(aten.detach_)
def _detach(x: Any) -> Any:
    return aten.detach.default(x)


def _of_parts(operator: Any, axes: int) -> None:
    """Of complex values, for which torch has no gradient: the same of their real and imaginary parts, in a last axis.

    The operator's arguments after its two tensors begin with, or end with, ``axes`` numbers of axes.
    """

    @replaces(operator)
    def scatter(x: Any, source: Any, *place: Any, **named: Any) -> Any:
        if not value_of(x).is_complex():
            return NotImplemented
        overload = next(iter(operator.overloads()))
        names = parameter_names(getattr(operator, overload))
        given = dict(zip(names[2:], place, strict=False)) | named
        defaults = {"dim": 0} if axes == 1 else {"dim1": 0, "dim2": 1}
        given |= {name: given.get(name, first) % value_of(x).ndim for name, first in defaults.items()}
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
