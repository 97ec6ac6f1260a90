"""What a function's code reads from around it: globals, attributes of modules, the environment.

In: a function. Out: the places that its instructions name, each of which can be read anew at any time, and who owns
what is found there: a library, whose insides do not change, or somebody who may change them.
"""

from __future__ import annotations

import dis
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from types import CodeType, FunctionType, ModuleType
from typing import Any

#: Packages whose functions and classes are told by who they are: what they read themselves is their own affair.
_LIBRARIES = frozenset({*sys.stdlib_module_names, "torch", "numpy", "fxlrp"})
#: By these names code reads variables of the environment.
_ENVIRONMENT = {"environ", "getenv"}
_BEGINS = ("LOAD_GLOBAL", "LOAD_NAME")
_GOES_ON = ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM")
#: Where packages are installed.
_INSTALLED = tuple({sysconfig.get_paths()[name] for name in ("purelib", "platlib")})


#: What steers torch's compiler changes when that is first used, and computes nothing.
_STEERS = ("torch._dynamo", "torch.compiler")


class Absent:
    """What stands for a name that is not there."""


@dataclass(frozen=True)
class Place:
    """Where code reads: a dotted name, the first part of which is a global or, if ``imported``, a module."""

    path: tuple[str, ...]
    imported: bool = False


@dataclass(frozen=True)
class Reads:
    """The places that a function's code names, the variables of the environment if it asks for any, and all ``names``
    and texts, of which some are attributes that it reads.
    """

    places: tuple[Place, ...]
    variables: tuple[str, ...]
    names: frozenset[str]

    @staticmethod
    @lru_cache(maxsize=8192)
    def of(code: CodeType) -> Reads:
        """Those of ``code`` and of the functions that are written in it."""
        codes = list(_with_inner(code))
        places = dict.fromkeys(place for each in codes for place in _places(each))
        asks = any(_ENVIRONMENT.intersection(each.co_names) for each in codes)
        texts = tuple(dict.fromkeys(text for each in codes for text in each.co_consts if isinstance(text, str)))
        return Reads(tuple(places), texts if asks else (), frozenset(texts).union(*(each.co_names for each in codes)))


def found(places: Iterable[Place], variables: Iterable[str], scope: dict[str, Any]) -> list[Any]:
    """What is at each place now, then each variable of the environment."""
    return [_at(place, scope)[0] for place in places] + [os.environ.get(name) for name in variables]


def reads_of(function: FunctionType, own: Set[str] = frozenset()) -> Iterator[tuple[str, Any, bool]]:
    """What a function reads now: the name that it has there, the value, and whether a module that is foreign to the
    packages ``own`` keeps it.

    What is not there is left out.
    """
    reads, scope = Reads.of(function.__code__), function.__globals__
    if is_steering(function):
        return
    for place in reads.places:
        value, holder, depth = _at(place, scope)
        if value is not Absent:
            yield ".".join(place.path[:depth]), value, holder is not None and is_foreign(holder, own)
    for name in reads.variables:
        if name in os.environ:
            yield f"environment {name}", os.environ[name], False


def is_steering(function: FunctionType) -> bool:
    """Whether a function is a part of torch's compiler: also one that is put around a model's own, and named as it."""
    return str(function.__globals__.get("__name__")).startswith(_STEERS)


def package_of(value: Any) -> str:
    """The package of a function, a class, a module, or of the class of an object."""
    named = value if isinstance(value, (type, FunctionType, ModuleType)) else type(value)
    module = named.__name__ if isinstance(named, ModuleType) else named.__module__
    return str(module).split(".")[0]


def is_library(value: Any) -> bool:
    """Whether a function, a class, a module, or the class of an object, is Python's, torch's, numpy's or fxlrp's."""
    return package_of(value) in _LIBRARIES


def is_beside(value: Any, own: Set[str]) -> bool:
    """Whether it is that of another installed package than libraries and those that are the model's ``own``."""
    package = package_of(value)
    return package not in _LIBRARIES and package not in own and _is_installed(package)


def is_foreign(value: Any, own: Set[str]) -> bool:
    """Whether what it reads itself is not followed, or the walk would go through all that is installed: a library's,
    or what is beside the model.
    """
    return is_library(value) or is_beside(value, own)


def is_installed(value: Any) -> bool:
    """Whether it is a library's or another installed package's, the model's own among them."""
    return is_library(value) or _is_installed(package_of(value))


@lru_cache(maxsize=1024)
def _is_installed(package: str) -> bool:
    module = sys.modules.get(package)
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    return any(str(place).startswith(_INSTALLED) for place in places if place)


def attributes(value: Any) -> dict[str, Any]:
    """An object's own attributes, without asking it: one that loads or warns when it is looked at does not notice."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return found if isinstance(found, dict) else {}


def in_slots(value: Any) -> dict[str, Any]:
    """The attributes of an object that its classes keep a slot for."""
    slots = (name for base in type(value).__mro__ for name in vars(base).get("__slots__", ()))
    return {name: getattr(value, name) for name in slots if not name.startswith("__") and hasattr(value, name)}


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _with_inner(each)


def _places(code: CodeType) -> Iterator[Place]:
    """Chains of names, ``a.b.c``, from where a is loaded for as long as attributes follow; and what is imported."""
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    attributes = [str(step.argval) for step in steps if step.opname in _GOES_ON]
    for number, step in enumerate(steps):
        if step.opname in _BEGINS:
            after = takewhile(lambda other: other.opname in _GOES_ON, steps[number + 1 :])
            yield Place((str(step.argval), *(str(other.argval) for other in after)))
        elif step.opname == "IMPORT_NAME":
            yield from (Place((str(step.argval), name), imported=True) for name in attributes)


def _at(place: Place, scope: dict[str, Any]) -> tuple[Any, ModuleType | None, int]:
    """What stands at a place, the first thing on the way that is no module; the module that holds it, None where code
    has it in its own file; and how many names led there.
    """
    value: Any = sys.modules.get(place.path[0], Absent) if place.imported else scope.get(place.path[0], Absent)
    holder, depth = None, 1
    for name in place.path[1:]:
        if not isinstance(value, ModuleType):
            break
        value, holder, depth = vars(value).get(name, Absent), value, depth + 1  # what is loaded by need stays unloaded
    return value, holder, depth
