"""What values a rule's parameters may take: each range stands in the annotation of its parameter, and what must hold
between several of them with the rule.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated, Any, get_type_hints

#: The largest finite number.
FINITE = sys.float_info.max


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``, both included, and those of ``also``. NaN is in no range, infinity in one
    whose bound it is.
    """

    low: float = -FINITE
    high: float = FINITE
    also: tuple[float, ...] = ()

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high or value in self.also

    def __str__(self) -> str:
        lowest, highest = self.low <= -FINITE, self.high >= FINITE
        words = (
            "a finite number"
            if lowest and highest
            else f"at least {self.low:g}"
            if highest
            else f"at most {self.high:g}"
            if lowest
            else f"from {self.low:g} to {self.high:g}"
        )
        unbounded = [bound for bound in (self.low, self.high) if math.isinf(bound)]
        return " or ".join((words, *(f"{each:g}" for each in (*unbounded, *self.also))))


#: Any finite number: the range of a parameter that declares none.
ANY_NUMBER = Range()
#: A stabiliser, or the weight of what is favoured.
NotNegative = Annotated[float, Range(0)]
#: A part of a whole.
Share = Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class Relation:
    """What must hold between parameters: in words, as a test of all of them, and the names of those that it reads.

    Where the formula stands without it, but is badly conditioned, ``advised`` says so: a ruleset is then made with a
    warning.
    """

    words: str
    holds: Callable[[Mapping[str, Any]], bool]
    names: tuple[str, ...]
    advised: bool = False

    def told(self, given: Mapping[str, Any]) -> str:
        """A sentence on parameters for which it does not hold."""
        found = ", ".join(f"{name} = {given[name]}" for name in self.names)
        return f"{self.words} {'should' if self.advised else 'must'} hold, and {found}"


def sums_to_one(first: str, second: str, sign: int = 1) -> Relation:
    """first + second = 1, or first - second = 1."""
    return Relation(
        f"{first} {'+' if sign > 0 else '-'} {second} = 1",
        lambda given: math.isclose(given[first] + sign * given[second], 1, rel_tol=0, abs_tol=1e-9),
        (first, second),
    )


def range_of(function: Callable[..., Any], name: str) -> Range:
    """The range that the annotation of a parameter declares, as in ``epsilon: Annotated[float, Range(0)]``."""
    annotated = SimpleNamespace(__annotations__={name: function.__annotations__.get(name, Any)})
    try:
        hint = get_type_hints(annotated, function.__globals__, include_extras=True)[name]
    except NameError:  # a type that is imported for type checkers alone
        return ANY_NUMBER
    return next((each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Range)), ANY_NUMBER)
