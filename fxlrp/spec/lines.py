"""The lines of a ruleset: what each matches, where, which rule it gives and what that stands for."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from fxlrp.graph.operator_classes import ADD, CLASSES, GENERAL, OperatorClass, ruled_names
from fxlrp.graph.rounding import STEP
from fxlrp.patterns import Pattern, registered
from fxlrp.rules import Post, Rule, find_rule

RESIDUAL = "residual"
#: The longest glob.
LONGEST = 1000


class Scope(Enum):
    """What a rule stands for.

    The ``operation`` that is matched; the whole ``pattern`` that ends in the matched part, as one operation of the
    pattern's inputs; of a *residual* sum the whole ``sublayer``: the skip connection receives what the rule makes of
    the sub-layer as one operation of its input, skip and branch, and the branch its own part as well.
    """

    OPERATION = "operation"
    PATTERN = "pattern"
    SUBLAYER = "sublayer"


class Where(BaseModel):
    """A restriction to modules: ``module`` is a glob over module paths, ``class`` one over class names.

    ``first`` (``last``): only operations that no other of the class or part of a pattern that the entry matches comes
    before on a way from an input (after on a way to an output) that relevance takes. Linear layers and convolutions
    count as one class. Where ways branch, as in a model with two inputs, there may be several.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    module: str | None = Field(default=None, max_length=LONGEST)
    class_: str | None = Field(default=None, alias="class", max_length=LONGEST)
    first: bool = False
    last: bool = False

    def accepts(self, match: str, stack: Sequence[tuple[str, str]], ends: tuple[Set[str], Set[str]]) -> bool:
        """Whether any module that encloses the node fits, and, if asked, it is a first (last) ``match``.

        ``ends`` are the labels of which the node is a first, and a last one.
        """
        if (self.first and match not in ends[0]) or (self.last and match not in ends[1]):
            return False
        paths = [path for path, _ in stack]
        kinds = [kind for _, kind in stack]
        return (self.module is None or any(glob(self.module).fullmatch(p) for p in paths)) and (
            self.class_ is None or any(glob(self.class_).fullmatch(k) for k in kinds)
        )


@dataclass(frozen=True)
class Glob:
    """A pattern of module paths: ``*`` is any part of one segment (any number of segments at the very front), ``**``
    any number of segments, ``?`` one character.
    """

    pattern: str

    @lru_cache(maxsize=65536)  # noqa: B019 (patterns are few)
    def fullmatch(self, path: str) -> bool:
        """Whether it stands for the whole path.

        All places of the pattern that the path may have reached are followed at once, so that the time is at most
        proportional to the product of the two lengths.
        """
        parts = _parts(self.pattern)
        reached = _with_empty({0, 1} if parts[:1] == (_FRONT,) else {0}, parts)
        for character in path:
            moved = set()
            for place in reached:
                part = parts[place] if place < len(parts) else ""
                if part == _FRONT:
                    moved |= {place, place + 1} if character == "." else {place}
                elif part == "**" or (part == "*" and character != "."):
                    moved.add(place)
                elif part == character or (part == _ONE and character != "."):
                    moved.add(place + 1)
            reached = _with_empty(moved, parts)
        return len(parts) in reached


@lru_cache(maxsize=4096)
def glob(pattern: str) -> Glob:
    """The glob that is written so."""
    return Glob(pattern)


#: Parts of a pattern that are no characters of a path: any segments in front, and one character.
_FRONT, _ONE = "*.", "one"


@lru_cache(maxsize=4096)
def _parts(pattern: str) -> tuple[str, ...]:
    found = re.findall(r"^\*\.|\*\*|.", pattern, re.DOTALL)
    return tuple(_ONE if part == "?" else part for part in found)


def _with_empty(places: set[int], parts: tuple[str, ...]) -> set[int]:
    """``places``, with those behind stars that stand for nothing."""
    found = set(places)
    for place in places:
        while place < len(parts) and parts[place] in ("*", "**"):
            place += 1
            found.add(place)
    return found


class Line(BaseModel):
    """One line of a ruleset: what it matches, where, which rule it gives, with which parameters.

    ``post`` are operations on the relevance that the rule hands on. ``scope`` is what the rule stands for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    match: str
    rule: str
    where: Where = Where()
    params: dict[str, float | int | bool | str] = {}
    post: tuple[Post, ...] = ()
    scope: Scope = Scope.OPERATION

    @property
    def bound(self) -> tuple[Rule, dict[str, Any]]:
        """The rule that its name means now, and its complete parameters."""
        found = find_rule(self.rule)
        return found, found.bind(self.params)

    @property
    def category(self) -> OperatorClass | None:
        """The class of the operations that it matches; None for a pattern or a part of one."""
        return ADD if self.match == RESIDUAL else CLASSES.get(self.match)

    def fits(self, category: OperatorClass) -> bool:
        """Whether its rule can take an operation of this class; a whole pattern is of none."""
        return find_rule(self.rule).fits(GENERAL if self.scope is Scope.PATTERN else category)


def labels() -> frozenset[str]:
    """Everything that an entry can match: operator classes, patterns and their parts."""
    return ruled_names() | _labels_of(registered())


@lru_cache(maxsize=8)
def _labels_of(patterns: tuple[Pattern, ...]) -> frozenset[str]:
    named = {label for each in patterns for label in (each.name, *(f"{each.name}.{part}" for part in each.parts))}
    return frozenset({RESIDUAL, STEP, *named})
