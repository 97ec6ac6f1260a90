"""One value in many layouts in memory, and the gradients of an operator in all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map


def _ordered(x: Tensor, *axes: int) -> Tensor:
    """``x`` with its axes in memory in this order."""
    back = sorted(range(x.ndim), key=axes.__getitem__)
    return x.permute(axes).contiguous().permute(back)


def _spread(x: Tensor) -> Tensor:
    """``x`` with gaps between its entries."""
    wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])[..., ::2]
    return wide.copy_(x)


def _of_pixels(x: Tensor) -> Tensor:
    """``x`` as what mixes the features of pixels leaves it: channels last, all spatial axes one until then."""
    return x.flatten(2).transpose(1, 2).contiguous().transpose(1, 2).view(x.shape) if x.ndim > 2 else x


Layout = Callable[[Tensor], Tensor]

#: Layouts of a value of at least two axes, of the same entries.
LAYOUTS: Mapping[str, Layout] = {
    "contiguous": lambda x: x.clone(memory_format=torch.contiguous_format),
    "channels last": lambda x: _ordered(x, 0, *range(2, x.ndim), 1),
    "rows of pixels": _of_pixels,
    "columns first": lambda x: _ordered(x, *range(x.ndim - 2), x.ndim - 1, x.ndim - 2),
    "with gaps": _spread,
}
#: What a sum or a mean behind an operator gives back: the same message for every entry along an axis.
EXPANDED: Mapping[str, Layout] = {
    "along the first axis": lambda g: g[:1].expand(g.shape),
    "along the last axis": lambda g: g[..., :1].expand(g.shape),
}


@dataclass(frozen=True, eq=False)
class Call:
    """An operator of a graph with the values that it was called with; equal for equal shapes and other arguments."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __str__(self) -> str:
        described = tree_map(lambda v: tuple(v.shape) if isinstance(v, Tensor) else v, (self.args, self.kwargs))
        return f"{getattr(self.target, '__name__', self.target)} {self.target} {described}"

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def by_memory(self) -> bool:
        """Whether it says itself where its entries lie in memory, so that it is another function in each layout."""
        return str(self.target).startswith("aten.as_strided")

    def messages(self, own: Layout, given: Layout, dtype: torch.dtype) -> Any:
        """The gradients of what carries relevance, in the layout ``own``, for a message in the layout ``given``.

        None where nothing carries any.
        """
        leaves: list[Tensor] = []

        def leaf(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            made = value.detach().to(dtype)
            if value.requires_grad:
                made = (own(made) if made.ndim > 1 else made.clone()).requires_grad_()
                leaves.append(made)
            return made

        args, kwargs = tree_map(leaf, (self.args, self.kwargs))
        results = [y for y in tree_leaves(self.target(*args, **kwargs)) if isinstance(y, Tensor) and y.requires_grad]
        results = [torch.view_as_real(y) if y.is_complex() else y for y in results]
        if not leaves or not results:
            return None
        rng = torch.Generator().manual_seed(0)
        drawn = [torch.randn(y.shape, generator=rng, dtype=torch.float64).to(y.dtype) for y in results]
        return torch.autograd.grad(results, leaves, [given(g) if g.ndim > 1 else g for g in drawn], allow_unused=True)


def calls_of(module: fx.GraphModule, arguments: list[Any]) -> Iterator[Call]:
    """Every operator of a graph with the values that it is called with."""
    found: list[Call] = []

    class Recorder(fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            found.append(Call(target, args, kwargs))
            return super().call_function(target, args, kwargs)

    Recorder(module).run(*arguments)
    return iter(found)


@cache
def faults(call: Call) -> tuple[str, ...]:
    """The layouts in which an operator's gradients are others than of contiguous values in float64, with the error.

    1e-9 of the largest entry (of message or gradient) in float64 is rounding of sums in another order; 1e-3 in float32,
    where slopes such as that of 1 / x near 0 are steep.
    """
    if call.by_memory:
        return ()
    wrong = []
    plain = LAYOUTS["contiguous"]
    tries = [(name, torch.float64, 1e-9) for name in LAYOUTS] + [("contiguous", torch.float32, 1e-3)]
    for name, given in {**LAYOUTS, **EXPANDED}.items():
        same: Layout = given if name in EXPANDED else plain
        expected = call.messages(plain, lambda g, same=same: plain(same(g)), torch.float64)
        for own, dtype, bound in tries if expected is not None else ():
            try:
                found = call.messages(LAYOUTS[own], given, dtype)
            except RuntimeError:  # a layout that torch refuses, as view_as_complex does
                continue
            error = _difference(found, expected)
            if not error <= bound:
                wrong.append(f"{call}: values {own}, message {name}, {dtype}: off by {error:.1e}")
    return tuple(wrong)


def _difference(found: Any, expected: Any) -> float:
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if b is not None and b.numel()]
    assert all((a is None) == (b is None) for a, b in zip(found, expected, strict=True))
    return max((float((a.double() - b).abs().max()) / max(1.0, float(b.abs().max())) for a, b in pairs), default=0.0)
