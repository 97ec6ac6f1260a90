"""What a model does beside the values of its weights: its modules, hooks, flags, numbers and code, as they are now.

In: a model. Out: its :class:`State`, which a captured graph holds for. :meth:`State.stands` tells at the cost of a look
at every attribute whether anything was replaced since; only then is the model described anew and compared by value.
"""

from __future__ import annotations

import enum
import hashlib
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from operator import is_
from pathlib import PurePath
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.capture.calling import below

#: Told apart by type and text. ``repr`` tells -0.0 from 0.0.
_VALUES = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, enum.Enum, PurePath),
)
_WEIGHTS = ("_parameters", "_buffers")
#: What a module keeps that its forward pass does not read.
_NOT_READ = ("_state_dict", "_load_state_dict", "_backward", "_full_backward", "_non_persistent", "_is_full_backward")


@dataclass(frozen=True)
class Told:
    """What is said of a value: ``text`` is the same in every process; ``same`` is who it is, where text cannot tell."""

    text: str
    same: Any = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Told) and self.text == other.text and self.same is other.same

    def __hash__(self) -> int:
        return hash((self.text, id(self.same)))


class State:
    """Everything that a model's forward pass may read but the values of its parameters and buffers.

    ``told`` describes it by path. Weights are told by shape, type and which of them are one.
    """

    def __init__(self, model: nn.Module) -> None:
        walk = _Walk()
        walk.visit("", model)
        self.told: dict[str, Told] = walk.told
        self._held = walk.held
        self._tensors = [(tensor, tensor.detach().clone()) for tensor in walk.tensors]

    def stands(self) -> bool:
        """Whether every attribute is the very object that it was, and tensors that are no weights have their values."""
        return all(held.stands() for held in self._held) and all(_equal(now, then) for now, then in self._tensors)

    def difference(self, other: State) -> str | None:
        """The path of the first thing that differs, None if nothing does."""
        paths = dict.fromkeys((*self.told, *other.told))
        return next((path for path in paths if self.told.get(path) != other.told.get(path)), None)

    @property
    def digest(self) -> str:
        """A hash that is equal in every process for models that compute alike."""
        return _short(f"{path}={told.text}".encode() for path, told in sorted(self.told.items()))


def described(value: Any) -> tuple[tuple[str, Told], ...]:
    """A value that is no tensor, such as an argument of a model, as something that can be compared and hashed."""
    walk = _Walk()
    walk.visit("", value)
    return tuple(walk.told.items())


@dataclass(frozen=True)
class _Held:
    """A container, how to read it, and the very objects that it held."""

    read: Callable[[], tuple[Collection[Any], Collection[Any]]]
    keys: tuple[Any, ...]
    values: tuple[Any, ...]

    @staticmethod
    def of(read: Callable[[], tuple[Collection[Any], Collection[Any]]]) -> _Held:
        keys, values = read()
        return _Held(read, tuple(keys), tuple(values))

    def stands(self) -> bool:
        keys, values = self.read()
        same = len(values) == len(self.values) and all(map(is_, values, self.values))
        return same and tuple(keys) == self.keys


class _Walk:
    """One walk over what is reached from a model, each object once."""

    def __init__(self) -> None:
        self.told: dict[str, Told] = {}
        self.held: list[_Held] = []
        self.tensors: list[Tensor] = []
        self.seen: dict[int, tuple[str, Any]] = {}

    def visit(self, path: str, value: Any) -> None:
        """Tell ``value``, and what it holds."""
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if isinstance(value, _VALUES):
            self.told[path] = Told(f"{kind} {value!r}")
        elif id(value) in self.seen:
            self.told[path] = Told(f"is {self.seen[id(value)][0]}")
        else:
            self.seen[id(value)] = (path, value)
            self._once(path, kind, value)

    def _once(self, path: str, kind: str, value: Any) -> None:
        if isinstance(value, Tensor):
            self.told[path] = Told(f"{_layout(value)} {_content(value)}")
            self.tensors.append(value)
        elif isinstance(value, nn.Module):
            self.told[path] = Told(kind)
            self._class(path, type(value))
            self._members(path, vars(value))
        elif isinstance(value, (Mapping, Sequence, Set, deque)):
            self._container(path, kind, value)
        elif isinstance(value, FunctionType):
            self._function(path, value)
        elif isinstance(value, MethodType):
            self.told[path] = Told(kind)
            self.visit(f"{path}.__self__", value.__self__)
            self.visit(f"{path}.__func__", value.__func__)
        elif isinstance(value, partial):
            self.told[path] = Told(kind)
            self._members(path, {"func": value.func, "args": value.args, "keywords": value.keywords})
        elif isinstance(value, weakref.ref):
            self.visit(path, value())
        elif isinstance(value, type):
            self.told[path] = Told(f"class {value.__module__}.{value.__qualname__}", value)
        elif isinstance(vars(value) if hasattr(value, "__dict__") else None, dict) and _is_open(value):
            self.told[path] = Told(kind)
            self._members(path, vars(value))
        else:
            self.told[path] = Told(f"{kind} {getattr(value, '__qualname__', '')}", value)

    def _container(self, path: str, kind: str, value: Any) -> None:
        self.told[path] = Told(f"{kind} {len(value)}")
        if isinstance(value, Mapping):
            self.held.append(_Held.of(partial(_items, value)))
            pairs = [(str(key), each) for key, each in value.items()]
        elif isinstance(value, Set):
            self.held.append(_Held.of(lambda: ((), list(value))))
            pairs = [(str(index), each) for index, each in enumerate(sorted(value, key=repr))]
        else:
            self.held.append(_Held.of(lambda: ((), value)))
            pairs = [(str(index), each) for index, each in enumerate(value)]
        self._each(path, pairs)

    def _each(self, path: str, pairs: Iterable[tuple[Any, Any]]) -> None:
        for name, value in pairs:
            self.visit(below(path, name), value)

    def _members(self, path: str, members: dict[str, Any]) -> None:
        """The attributes of an object, which may be a module: its weights are told without their values."""
        self.held.append(_Held.of(partial(_items, members)))
        for name, value in list(members.items()):
            own = isinstance(value, dict) and (name in (*_WEIGHTS, "_modules") or name.startswith("_forward"))
            if own:  # a module's own, which is told by what it holds
                self.held.append(_Held.of(partial(_items, value)))
            if own and name in _WEIGHTS:
                self._weights(path, value)
            elif own and name == "_modules":
                self._each(path, value.items())
            elif own:  # hooks, whose numbers count up in a process
                self._each(below(path, name), enumerate(value.values()))
            elif not name.startswith(_NOT_READ):
                self.visit(below(path, name), value)

    def _weights(self, path: str, weights: dict[str, Any]) -> None:
        for name, weight in weights.items():
            place = below(path, name)
            first, _ = self.seen.setdefault(id(weight), (place, weight))
            same = weight is None or first == place
            self.told[place] = Told(_layout(weight) if same else f"is {first}")

    def _class(self, path: str, kind: type) -> None:
        """What the classes of a module say: their attributes and methods, and the globals that these read."""
        for base in kind.__mro__:
            if base.__module__.startswith("torch.") or base is object or id(base) in self.seen:
                continue
            self.seen[id(base)] = (path, base)
            names = [name for name in vars(base) if not _is_of_python(name)]
            self.held.append(_Held.of(partial(_attributes, base, names)))
            for name in names:
                value = vars(base)[name]
                function = getattr(value, "__func__", getattr(value, "fget", value))
                if isinstance(function, FunctionType):
                    self._function(f"{path}:{base.__qualname__}.{name}", function)
                elif isinstance(value, (*_VALUES, Tensor, list, tuple, dict, set)):
                    self.visit(f"{path}:{base.__qualname__}.{name}", value)

    def _function(self, path: str, function: FunctionType) -> None:
        code, cells = function.__code__, function.__closure__ or ()
        self.told[path] = Told(f"{function.__module__}.{function.__qualname__} {_code(code)}")
        self.held.append(_Held.of(lambda: ((), (function.__code__, function.__defaults__, *map(_inside, cells)))))
        scope = function.__globals__
        names = [name for name in code.co_names if name in scope]
        self.held.append(_Held.of(lambda: ((), [scope.get(name) for name in names])))
        for name in names:
            if isinstance(scope[name], _VALUES):
                self.told[f"{path}:{name}"] = Told(repr(scope[name]))
            else:
                self.told[f"{path}:{name}"] = Told(type(scope[name]).__qualname__, scope[name])
        for name, value in zip(code.co_freevars, map(_inside, cells), strict=True):
            self.visit(f"{path}:{name}", value)
        self.visit(f"{path}:defaults", function.__defaults__)


def _items(mapping: Mapping[Any, Any]) -> tuple[Collection[Any], Collection[Any]]:
    return mapping.keys(), mapping.values()


def _attributes(base: type, names: list[str]) -> tuple[Collection[Any], Collection[Any]]:
    held = vars(base)
    return held.keys(), [held.get(name) for name in names]


def _is_of_python(name: str) -> bool:
    return (name.startswith("__") and name.endswith("__") and name != "__call__") or name.startswith("_abc_")


def _inside(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # assigned later
        return None


def _is_open(value: Any) -> bool:
    """Whether an object is its attributes: not one that stands for something outside, such as a file or a lock."""
    kind = type(value)
    return (
        getattr(kind, "__reduce__", None) is object.__reduce__
        and not hasattr(kind, "__del__")
        and kind.__module__ != "threading"
    )


def _layout(tensor: Tensor | None) -> str:
    if tensor is None:
        return "None"
    return f"{type(tensor).__qualname__} {tuple(tensor.shape)} {tensor.dtype} {tensor.device.type} {tensor.layout}"


def _content(tensor: Tensor) -> str:
    if tensor.is_meta or tensor.layout is not torch.strided:
        return ""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return _short([bytes(flat.view(torch.uint8).numpy())] if flat.numel() else [])


def _equal(now: Tensor, then: Tensor) -> bool:
    if now.shape != then.shape or now.dtype != then.dtype or now.device != then.device:
        return False
    return now.is_meta or torch.equal(now, then) or bool((now != now).any() and _content(now) == _content(then))


def _code(code: CodeType) -> str:
    inner = (_code(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts)
    return _short([code.co_code, *(text.encode() for text in (*inner, *code.co_names, *code.co_freevars))])


def hashed(parts: Iterable[bytes]) -> bytes:
    """A hash of parts in their order, each with its length, so that none runs into the next."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big"))
        found.update(part)
    return found.digest()


def _short(parts: Iterable[bytes]) -> str:
    return hashed(parts).hex()[:16]
