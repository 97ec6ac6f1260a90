"""One walk over all that a model's forward pass may read: modules, hooks, flags, numbers, and what code reads.

In: a model, or any value. Out: what is said of each thing by its path, who holds whom, and which tensors and containers
a forward pass may write to. The same object is told once, and what an installed package keeps is not walked through.
"""

from __future__ import annotations

import enum
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import PurePath
from types import (
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.capture.calling import below
from fxlrp.capture.contents import code_hash, content, has_values, layout
from fxlrp.capture.elsewhere import is_placing
from fxlrp.capture.held import Code, Held, Scope, inside_of, items_of
from fxlrp.capture.reads import (
    Reads,
    attributes,
    in_slots,
    is_beside,
    is_foreign,
    is_installed,
    is_library,
    is_steering,
    reads_of,
)

#: Told apart by type and text. ``repr`` tells -0.0 from 0.0.
_VALUES = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, enum.Enum, PurePath),
)
#: What a library's code reads of its own file and may be changed from outside, such as hooks on all modules.
_PLAIN = (*_VALUES, Tensor, list, tuple, dict, set, frozenset)
#: What is told apart by its name and by who it is.
_NAMED = (type, FunctionType, ModuleType)
#: What classes have by themselves.
_DESCRIPTORS = (GetSetDescriptorType, MemberDescriptorType)
#: Containers that a forward pass may write to.
_WRITTEN = (list, dict, set, deque, OrderedDict, defaultdict)
#: Methods that are called without being named.
_OPERATORS = tuple(
    f"__{name}__"
    for name in (
        *("call", "getattr", "getattribute", "getitem", "len", "iter", "next", "contains", "enter", "exit", "bool"),
        *("float", "int", "index", "eq", "lt", "le", "gt", "ge", "neg", "add", "radd", "sub", "rsub", "mul", "rmul"),
        *("truediv", "rtruediv", "matmul", "rmatmul", "pow", "get", "torch_function"),
    )
)
#: What ``functools.lru_cache`` makes of a function.
_CACHED = type(lru_cache(len))
_WEIGHTS = ("_parameters", "_buffers")
#: What a module keeps that its forward pass does not read, and numbers by which a process knows an object again.
_NOT_READ = (
    *("_state_dict", "_load_state_dict", "_backward", "_full_backward", "_non_persistent", "_is_full_backward"),
    *("_torchdynamo", "_original_object_hash"),
)


@dataclass(frozen=True)
class Told:
    """What is said of a value: ``text`` is the same in every process; ``same`` is who it is, where text cannot tell."""

    text: str
    same: Any = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Told) and self.text == other.text and self.same is other.same

    def __hash__(self) -> int:
        return hash((self.text, id(self.same)))


class Walk:
    """One walk over what is reached from a model, each object once, the nearest first."""

    def __init__(self, own: Set[str] = frozenset()) -> None:
        self.own = own
        self.told: dict[str, Told] = {}
        self.held: list[Held | Code] = []
        self.tensors: list[Tensor] = []
        self.containers: list[Any] = []
        self.seen: dict[int, tuple[str, Any]] = {}
        self.classes: set[type] = set()
        self.named: set[str] = {"forward", *_OPERATORS}
        self.texts: set[str] = set()
        self.methods: dict[str, list[tuple[str, FunctionType]]] = {}
        self.shared: set[str] = set()
        self.registries: dict[str, Mapping[Any, Any]] = {}
        self.waiting: deque[tuple[str, str, Any]] = deque()
        self.scopes: dict[int, Scope] = {}

    def visit(self, path: str, value: Any) -> None:
        """Tell ``value``, and later what it holds."""
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if issubclass(type(value), _VALUES):
            self.told[path] = Told(f"{kind} {value!r}")
            if isinstance(value, str):
                self.texts.add(value)
        elif id(value) in self.seen:
            self.told[path] = Told(f"is {self.seen[id(value)][0]}")
        else:
            self.seen[id(value)] = (path, value)
            self.waiting.append((path, kind, value))

    def done(self) -> None:
        """Walk on until nothing waits to be told."""
        while self.waiting or self._called() or self._looked_up():
            while self.waiting:
                self._once(*self.waiting.popleft())
        for path, function in (each for methods in self.methods.values() for each in methods):
            self.told[path] = Told(f"{function.__module__}.{function.__qualname__} {code_hash(function.__code__)}")
        self.held.extend(Held.of(scope.read) for scope in self.scopes.values())
        self.scopes = {}

    def _called(self) -> bool:
        """Visit the methods that something names, and say whether there were any."""
        called = sorted(self.named.intersection(self.methods))
        for path, function in [each for name in called for each in self.methods.pop(name)]:
            self.visit(path, function)
        return bool(called)

    def _looked_up(self) -> bool:
        """Visit what registries hold under keys that something names or holds, and say whether there was any. What
        they hold for others comes and goes with these, and so do modules that are loaded when they are needed.
        """
        found = False
        for path, registry in self.registries.items():
            for key, each in zip(*items_of(registry), strict=True):
                place = below(path, _name_of(key))
                known = not isinstance(key, str) or key in self.named or key in self.texts
                loaded = issubclass(type(each), ModuleType) and is_installed(each)
                if known and not loaded and place not in self.told:
                    self.visit(place, each)
                    self.told.setdefault(place, Told(""))
                    found = True
        return found

    def _once(self, path: str, kind: str, value: Any) -> None:
        of = type(value)  # not isinstance, which asks objects that stand in for others what they are
        if issubclass(of, Tensor):
            self._tensor(path, value)
        elif is_placing(value):  # what it brings are weights
            self.told[path] = Told(f"{kind} {value!r}", value)
        elif issubclass(of, nn.Module):
            self._object(path, kind, value)
        elif issubclass(of, dict) or (issubclass(of, (Mapping, Sequence, Set, deque)) and _is_inside(of)):
            self._container(path, kind, value)
        elif of is FunctionType:
            self._function(path, value)
        elif of is MethodType:
            self.told[path] = Told(kind)
            self.visit(f"{path}.__self__", value.__self__)
            self.visit(f"{path}.__func__", value.__func__)
        elif issubclass(of, partial):
            self.told[path] = Told(kind)
            self._members(path, {"func": value.func, "args": value.args, "keywords": value.keywords})
        elif of is weakref.ref:
            self.visit(path, value())
        elif issubclass(of, ModuleType):
            self._module(path, value)
        elif issubclass(of, type):
            self.told[path] = Told(f"class {value.__module__}.{value.__qualname__}", value)
            self._class(path, value)
        elif _is_open(value):
            self._object(path, kind, value)
        else:
            self.told[path] = Told(f"{kind} {getattr(value, '__qualname__', '')}", value)
            if of is _CACHED:
                self.visit(f"{path}()", value.__wrapped__)

    def _tensor(self, path: str, tensor: Tensor) -> None:
        """A tensor by its values; one that has none to look at, such as a fake one, by who it is."""
        if has_values(tensor):
            self.told[path] = Told(f"{layout(tensor)} {content(tensor)}")
            self.tensors.append(tensor)
        else:
            self.told[path] = Told(layout(tensor), tensor)

    def _module(self, path: str, module: ModuleType) -> None:
        """A module that is kept somewhere by who it is, and by the values in it if nobody installed it: it holds all
        that it imports, and ``sys`` holds all modules.
        """
        self._who(path, module)
        if not is_installed(module):
            named = [(name, each) for name, each in vars(module).items() if not _is_of_python(name)]
            values = {name: each for name, each in named if issubclass(type(each), _VALUES)}
            self._each(path, values.items())
            self.held.append(Held.of(partial(_attributes, module, list(values))))

    def _object(self, path: str, kind: str, value: Any) -> None:
        """An object by its class and its attributes."""
        self.told[path] = Told(kind)
        slots = in_slots(value)
        self.held.append(Held.of(lambda: ((), (type(value), *(in_slots(value).values() if slots else ())))))
        self._class(path, type(value))
        self._each(path, slots.items())
        self._members(path, attributes(value), issubclass(type(value), nn.Module))

    def _container(self, path: str, kind: str, value: Any) -> None:
        registry = path in self.shared and isinstance(value, Mapping)
        self.told[path] = Told(kind if registry else f"{kind} {len(value)}")
        if type(value) in _WRITTEN:
            self.containers.append(value)
        if isinstance(value, Mapping):
            self.held.append(Held.of(partial(items_of, value)))
            pairs = [] if registry else [(_name_of(key), each) for key, each in zip(*items_of(value), strict=True)]
        elif isinstance(value, Set):
            self.held.append(Held.of(lambda: ((), list(value))))
            pairs = [(str(index), each) for index, each in enumerate(sorted(value, key=repr))]
        else:
            self.held.append(Held.of(lambda: ((), value)))
            pairs = [(str(index), each) for index, each in enumerate(value)]
        self._each(path, pairs)
        if registry:
            self.registries[path] = value
        if not is_library(value) and hasattr(value, "__dict__"):  # one that says more than what it contains
            self._class(path, type(value))
            self._members(path, vars(value))

    def _each(self, path: str, pairs: Iterable[tuple[Any, Any]]) -> None:
        for name, value in pairs:
            self.visit(below(path, name), value)

    def _members(self, path: str, members: dict[str, Any], of_module: bool = False) -> None:
        """The attributes of an object. Of a module's the weights are told without their values."""
        self.held.append(Held.of(partial(items_of, members)))
        for name, value in list(members.items()):
            own = (
                of_module
                and issubclass(type(value), dict)
                and (name in (*_WEIGHTS, "_modules") or name.startswith("_forward"))
            )
            comes = own and name in _WEIGHTS and any(each is not None and each.is_meta for each in value.values())
            if own and not comes:  # a module's own, which is told by what it holds
                self.held.append(Held.of(partial(items_of, value)))
            if own and name in _WEIGHTS:
                self._weights(path, value)
            elif own and name == "_modules":
                self._each(path, value.items())
            elif own:  # hooks, whose numbers count up in a process
                self._each(below(path, name), enumerate(value.values()))
            elif not name.startswith(_NOT_READ):
                if path in self.shared and issubclass(type(value), dict):
                    self.shared.add(below(path, name))
                self.visit(below(path, name), value)

    def _weights(self, path: str, weights: dict[str, Any]) -> None:
        for name, weight in weights.items():
            place = below(path, name)
            first, _ = self.seen.setdefault(id(weight), (place, weight))
            same = weight is None or first == place
            self.told[place] = Told(layout(weight) if same else f"is {first}")

    def _class(self, path: str, kind: type) -> None:
        """What classes say: their attributes and methods, and what these read. A library's are told apart by who
        they are.
        """
        for base in kind.__mro__:
            if base is object or base in self.classes or is_beside(base, self.own):
                continue
            self.classes.add(base)
            counts = is_library(base) and not issubclass(base, nn.Module)  # such as how many hooks there ever were
            named = [(name, each) for name, each in vars(base).items() if not _is_of_python(name)]
            names = [name for name, each in named if not (counts and issubclass(type(each), _VALUES))]
            self.held.append(Held.of(partial(_attributes, base, names)))
            for name in names:
                value = vars(base)[name]
                function = getattr(value, "__func__", getattr(value, "fget", value))
                place = f"{path}:{base.__qualname__}.{name}"
                if type(function) is FunctionType and not is_library(base):
                    self.methods.setdefault(name, []).append((place, function))
                elif type(function) is FunctionType:
                    self._function(place, function)
                elif not isinstance(value, _DESCRIPTORS):
                    self._found(place, function, base)

    def _function(self, path: str, function: FunctionType) -> None:
        code, cells, reads = function.__code__, function.__closure__ or (), Reads.of(function.__code__)
        self.told[path] = Told(f"{function.__module__}.{function.__qualname__} {code_hash(code)}")
        about = vars(function)
        given = (code, function.__defaults__, function.__kwdefaults__)
        self.held.append(Code(function, given, cells, tuple(map(inside_of, cells)), tuple(about.values())))
        if not is_steering(function):
            self.scopes.setdefault(id(function.__globals__), Scope(function.__globals__)).add(reads)
        for name, value, kept in reads_of(function, self.own):
            self._found(f"{path}:{name}", value, function, kept)
        for name, value in zip(code.co_freevars, map(inside_of, cells), strict=True):
            self.visit(f"{path}:{name}", value)
        self.visit(f"{path}:defaults", function.__defaults__)
        self.visit(f"{path}:keyword defaults", function.__kwdefaults__)
        self._each(path, ((name, each) for name, each in about.items() if not name.startswith(_NOT_READ)))
        self.named |= reads.names

    def _found(self, path: str, value: Any, by: FunctionType | type, kept: bool = False) -> None:
        """What code reads from around it. A library's functions and classes are told by who they are; so are objects
        that its modules have ``kept``, and those that its own code reads. What an installed package reads is shared by
        all that use it.
        """
        kind, shallow = type(value), is_foreign(by, self.own)
        if is_installed(by):
            self.shared.add(path)
        if issubclass(kind, _NAMED):
            known = is_foreign(value, self.own)
        elif kept:
            known = not issubclass(kind, _VALUES)
        else:
            known = shallow and not issubclass(kind, _PLAIN)
        if known:
            self._who(path, value)
        else:
            self.visit(path, value)

    def _who(self, path: str, value: Any) -> None:
        kind = type(value)
        named = f" {value.__module__}.{value.__qualname__}" if issubclass(kind, (type, FunctionType)) else ""
        self.told[path] = Told(f"{kind.__qualname__}{named}", value)


def _attributes(base: type | ModuleType, names: list[str]) -> tuple[Collection[Any], Collection[Any]]:
    held = vars(base)
    return held.keys(), [held.get(name) for name in names]


def _name_of(key: Any) -> str:
    return key if isinstance(key, str) else f"[{key!r}]"


def _is_of_python(name: str) -> bool:
    return (name.startswith("__") and name.endswith("__") and name not in _OPERATORS) or name.startswith("_abc_")


def _is_inside(kind: type) -> bool:
    """Whether a container's items are what it holds, and not what code of its own makes when it is asked."""
    return is_library(kind) or issubclass(kind, (list, tuple, set, frozenset, deque))


def _is_open(value: Any) -> bool:
    """Whether an object is its attributes: not one that stands for something outside, such as a file or a lock."""
    kind = type(value)
    if not (kind.__dictoffset__ or in_slots(value)):
        return False
    if kind is SimpleNamespace or not is_library(kind):
        return True
    plain = getattr(kind, "__reduce__", None) is object.__reduce__ and not hasattr(kind, "__del__")
    return plain and kind.__module__ != "threading"
