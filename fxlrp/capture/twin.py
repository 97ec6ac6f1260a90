"""A model's twin: other modules with the same weights, on which tracing leaves its traces.

Tracers put their own tensors in the place of weights, call hooks, and a forward pass writes to attributes and buffers.
All of that happens to the twin; the user's model, and other threads that call it, see nothing.
"""

from __future__ import annotations

import copy
import copyreg
import weakref
from collections import OrderedDict, defaultdict, deque
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.capture.dense import dense, dequantises, is_packed
from fxlrp.capture.elsewhere import is_bringing

#: Containers that are copied with what they hold. Their subclasses may hold more than they show, and are shared.
_SEQUENCES = (list, tuple, set, frozenset)
_MAPPINGS = (dict, OrderedDict, defaultdict)


def twin(model: nn.Module) -> nn.Module:
    """A model of the same modules, hooks and attributes with the same parameters, and copies of its buffers.

    Copied as well are weights that a forward pass scales in place (of an embedding with ``max_norm``), containers,
    plain objects and functions that hold modules; packed weights are the matrices that they stand for. Shared with
    ``model`` are its other parameters and what has a way of its own to be copied or none (files, tokenizers, compiled
    code).
    """
    twins = _Twins(model)
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if getattr(module, "max_norm", None) is not None and isinstance(weight, nn.Parameter):
            twins.scaled(weight)
    made: nn.Module = twins.of(model)
    return made


class _Twins:
    """The copies made so far, by the identity of what they are copies of, which is kept alive with them."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.known: dict[int, tuple[Any, Any]] = {}

    def of(self, value: Any) -> Any:
        """The copy of ``value``; ``value`` itself if it is shared."""
        if id(value) in self.known:
            return self.known[id(value)][1]
        kind = type(value)
        if is_bringing(value):
            return self._keep(value, copy.copy(value))  # which brings in the same weights
        if isinstance(value, nn.Module) and not isinstance(value, torch.jit.ScriptModule):
            return self._object(value, self._unpacked(value))
        if kind is Tensor:
            return self._keep(value, value.detach().clone())
        if isinstance(value, nn.Parameter) and value.is_inference():  # no tracer follows such a one
            return self._keep(value, nn.Parameter(value.detach().clone()))
        if kind in _MAPPINGS:
            return self._mapping(value)
        if kind in _SEQUENCES:
            return self._sequence(value)
        if kind is deque:
            copied = self._keep(value, deque(maxlen=value.maxlen))
            copied.extend(map(self.of, value))
            return copied
        if kind is MethodType:
            owner = self.of(value.__self__)
            return value if owner is value.__self__ else self._keep(value, MethodType(value.__func__, owner))
        if kind is partial:
            return self._partial(value)
        if kind is weakref.ref:
            there = value()
            return weakref.ref(self.of(there)) if isinstance(there, nn.Module) else value
        if kind is FunctionType:
            return self._function(value)
        return self._object(value) if _is_plain(value) else value

    def scaled(self, weight: nn.Parameter) -> None:
        """Have a weight copied."""
        self._keep(weight, nn.Parameter(weight.detach().clone(), weight.requires_grad))

    def _keep(self, value: Any, copied: Any) -> Any:
        self.known[id(value)] = (value, copied)
        return copied

    def _unpacked(self, layer: nn.Module) -> type:
        """The class of a layer's twin, which has matrices in the place of packed weights: where the layer alone knows
        how to compute with these, it is a linear one.
        """
        kind: type = type(layer)
        for name, weight in layer.named_parameters(recurse=False):
            if is_packed(weight):
                self._keep(weight, nn.Parameter(dense(layer, name, self.model), requires_grad=False))
                kind = kind if dequantises(weight) else nn.Linear
        return kind

    def _object(self, value: Any, kind: type | None = None) -> Any:
        copied = self._keep(value, object.__new__(kind or type(value)))
        vars(copied).update({name: self.of(each) for name, each in vars(value).items()})
        return copied

    def _mapping(self, value: Any) -> Any:
        copied = self._keep(value, value.copy())  # of its kind, with its default
        copied.clear()
        copied.update({self.of(key): self.of(each) for key, each in value.items()})
        return copied

    def _sequence(self, value: Any) -> Any:
        if isinstance(value, list):
            copied = self._keep(value, [])
            copied.extend(map(self.of, value))
            return copied
        items = [self.of(each) for each in value]
        same = all(a is b for a, b in zip(items, value, strict=True))
        immutable = isinstance(value, (tuple, frozenset))
        return value if same and immutable else self._keep(value, type(value)(items))

    def _partial(self, value: Any) -> Any:
        copied = self._keep(value, partial(self.of(value.func), *map(self.of, value.args), **self.of(value.keywords)))
        vars(copied).update({name: self.of(each) for name, each in vars(value).items()})
        return copied

    def _function(self, value: Any) -> Any:
        """A function that closes over modules or over what it writes to, closed over the copies."""
        cells = value.__closure__ or ()
        closed = [_content(cell) for cell in cells]
        if not any(map(_is_held, closed)):
            return value
        fresh = tuple(CellType() for _ in cells)
        copied = FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, fresh)
        self._keep(value, copied)
        for name in ("__kwdefaults__", "__annotations__", "__qualname__", "__module__", "__doc__"):
            setattr(copied, name, getattr(value, name))
        vars(copied).update({name: self.of(each) for name, each in vars(value).items()})
        for cell, content in zip(fresh, closed, strict=True):
            if content is not _EMPTY:
                cell.cell_contents = self.of(content) if _is_held(content) else content
        return copied


_EMPTY = object()


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # assigned later
        return _EMPTY


def _is_held(content: Any) -> bool:
    """Whether what a function closes over is copied with it; plain objects there may be anything, and are shared."""
    kinds = (nn.Module, MethodType, FunctionType, partial, deque, *_SEQUENCES, *_MAPPINGS)
    return isinstance(content, kinds)


def _is_plain(value: Any) -> bool:
    """Whether an object is its class and its attributes, with no way of its own to be made or copied."""
    kind = type(value)
    return (
        isinstance(getattr(value, "__dict__", None), dict)
        and not isinstance(value, (type, BaseException))
        and all(getattr(kind, name) is getattr(object, name) for name in _MAKING)
        and not any(hasattr(kind, name) for name in _OWN_WAYS)
        and kind not in copyreg.dispatch_table
    )


#: How objects are made and taken apart, unless their class has a way of its own.
_MAKING = ("__new__", "__reduce__", "__reduce_ex__", "__getstate__")
#: By these a class says that its objects are more than their attributes.
_OWN_WAYS = ("__deepcopy__", "__copy__", "__setstate__", "__slots__", "__del__")
