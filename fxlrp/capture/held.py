"""Who is where: containers, functions and files of globals, each with the very objects that it held.

Looking at all of them tells, at the cost of comparing references, whether anything was replaced since.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from operator import is_
from types import CellType, FunctionType
from typing import Any

from fxlrp.capture.reads import Place, Reads, found


@dataclass(frozen=True)
class Held:
    """A container, how to read it, and the very objects that it held."""

    read: Callable[[], tuple[Collection[Any], Collection[Any]]]
    keys: tuple[Any, ...]
    values: tuple[Any, ...]

    @staticmethod
    def of(read: Callable[[], tuple[Collection[Any], Collection[Any]]]) -> Held:
        """What ``read`` gives now, keys and values."""
        keys, values = read()
        return Held(read, tuple(keys), tuple(values))

    def stands(self) -> bool:
        """Whether it holds the same still."""
        keys, values = self.read()
        same = len(values) == len(self.values) and all(map(is_, values, self.values))
        return same and tuple(keys) == self.keys


@dataclass(frozen=True)
class Code:
    """A function, and the very objects that it consists of."""

    function: FunctionType
    given: tuple[Any, ...]
    cells: tuple[CellType, ...]
    inside: tuple[Any, ...]
    about: tuple[Any, ...]

    def stands(self) -> bool:
        """Whether it consists of the same still."""
        function, (code, defaults, keywords) = self.function, self.given
        return (
            function.__code__ is code
            and function.__defaults__ is defaults
            and function.__kwdefaults__ is keywords
            and (not self.cells or all(map(is_, map(inside_of, self.cells), self.inside)))
            and len(about := vars(function)) == len(self.about)
            and (not about or all(map(is_, about.values(), self.about)))
        )


class Scope:
    """The globals of a file, and where all functions that have them read."""

    def __init__(self, scope: dict[str, Any]) -> None:
        self.scope = scope
        self.places: dict[Place, None] = {}
        self.variables: dict[str, None] = {}

    def add(self, reads: Reads) -> None:
        """Look at these places as well."""
        self.places.update(dict.fromkeys(reads.places))
        self.variables.update(dict.fromkeys(reads.variables))

    def read(self) -> tuple[Collection[Any], Collection[Any]]:
        """What stands at all places now."""
        return (), found(self.places, self.variables, self.scope)


def items_of(mapping: Mapping[Any, Any]) -> tuple[Collection[Any], Collection[Any]]:
    """Keys and values; a dict's own, since a class of its own may do anything when it is asked for them."""
    if isinstance(mapping, dict):
        own = OrderedDict if isinstance(mapping, OrderedDict) else dict
        return own.keys(mapping), own.values(mapping)
    return mapping.keys(), mapping.values()


def inside_of(cell: CellType) -> Any:
    """What a function closes over; None where it is assigned later."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
