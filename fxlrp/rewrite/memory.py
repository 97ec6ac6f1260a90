"""How much memory a rewritten module takes, found without computing anything: it runs on tensors that have no data.

Counted is what is alive between the forward and the backward pass: the values that autograd keeps, each once, and the
outputs; weights and inputs are the caller's. What single operators need beside, for as long as they run, is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, fx

from fxlrp.capture import torch_private as private
from fxlrp.graph.handles import Elsewhere
from fxlrp.rewrite.blocks import Block
from fxlrp.rewrite.kernels import simplified_mask
from fxlrp.rewrite.stretches import Stretch


@dataclass(frozen=True)
class Kept:
    """Bytes alive between the two passes, and in the largest part when it runs again: ``whole``, where all is kept that
    enters a layer or a stretch, and ``in_blocks``, where what enters each block is.
    """

    whole: int
    in_blocks: int


def kept_by(blocks: fx.GraphModule, arguments: Sequence[Any]) -> Kept | None:
    """What a module in blocks keeps for its backward pass on these arguments; None where sizes follow from values."""
    mode = private.FakeTensorMode()
    given = [_without_data(mode, value) for value in arguments]
    run, outside = _Counting(blocks), _Saved()
    try:
        with mode, torch.enable_grad(), outside.followed():
            outputs = run.run(*given, enable_io_processing=False)
    except RuntimeError:  # a value was asked for
        return None
    between = [*outside.values(), *_tensors(outputs)]
    entering, inside = _tensors(run.entering), [each.values() for each in run.inside]
    return Kept(
        _bytes([*between, *chain(*inside)], given) + max(run.stretches, default=0),
        _bytes([*between, *entering], given) + max(run.largest, default=0),
    )


def sizes_of(module: fx.GraphModule, arguments: Sequence[Any]) -> Any:
    """What a module returns, as tensors that have no data."""
    mode = private.FakeTensorMode()
    given = [_without_data(mode, value) for value in arguments]
    with mode, torch.no_grad():
        return _Counting(module).run(*given, enable_io_processing=False)


def _without_data(mode: private.FakeTensorMode, value: Any) -> Any:
    value = value.stand_in() if isinstance(value, Elsewhere) else value
    return mode.from_tensor(value) if isinstance(value, Tensor) else value


class _Saved:
    """The values that autograd keeps, for as long as it does: parts of its graph that nothing leads to are let go."""

    def __init__(self) -> None:
        self._alive: WeakSet[_Holder] = WeakSet()

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Sees what is kept from now on."""

        def keep(value: Tensor) -> _Holder:
            holder = _Holder(value)
            self._alive.add(holder)
            return holder

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda holder: holder.value):
            yield

    def values(self) -> list[Tensor]:
        """Those that are kept now."""
        return [holder.value for holder in self._alive]


class _Holder:
    def __init__(self, value: Tensor) -> None:
        self.value = value


class _Counting(fx.Interpreter):
    """Runs a module in blocks and follows what each of them keeps by itself."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.inside: list[_Saved] = []
        self.entering: list[Any] = []
        self.largest: list[int] = []
        self.stretches: list[int] = []

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of an operation. A mask that is only known from its values counts as none: most are padding."""
        if target is simplified_mask:
            return None, False
        if isinstance(target, Stretch) and torch.is_grad_enabled():
            again = _Saved()
            with again.followed():
                made = target.again(*args)  # alive until it is counted
            self.stretches.append(_bytes(again.values(), _tensors(args)))
            del made
        if not isinstance(target, Block):
            return super().call_function(target, args, kwargs)
        saved, run = _Saved(), _Counting(target.module)
        with saved.followed():
            outputs = run.run(*args, enable_io_processing=False)
        self.inside.append(saved)
        self.entering.append(args)
        self.stretches.extend(run.stretches)
        self.largest.append(_bytes(saved.values(), _tensors(args)) + max(run.stretches, default=0))
        return outputs


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in private.pytree.tree_leaves(values) if isinstance(value, Tensor)]


def _bytes(values: Iterable[Tensor], but: Iterable[Any]) -> int:
    """The bytes of the memory behind these values, each once, and but for that behind others."""
    memory = {value.untyped_storage()._cdata: value.untyped_storage().nbytes() for value in values}
    others = {value.untyped_storage()._cdata for value in but if isinstance(value, Tensor)}
    return sum(size for place, size in memory.items() if place not in others)
