"""The lines of a ruleset: what each matches, where, which rule it gives and what that stands for."""

from __future__ import annotations

from enum import Enum
from functools import cached_property, lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict

from fxlrp.patterns import PATTERNS, Pattern
from fxlrp.patterns.language import PART
from fxlrp.places import Where
from fxlrp.rules import Post, Rule, find_rule

#: Operator classes, as rulesets name them.
CLASSES = (
    "linear",
    "convolution",
    "mixing",
    "scale",
    "product",
    "quotient",
    "activation",
    "singular",
    "softmax",
    "selection",
    "rectifier",
    "sum",
    "add",
    "shift",
    "affine",
    "movement",
    "index",
    "general",
    "fork",
    "any",
)
CLASS_ALIASES = {"conv": "convolution", "act": "activation", "matmul": "product"}


class Scope(Enum):
    """What a rule stands for.

    The ``operation`` that is matched; the whole ``pattern`` that ends in the matched part, as one operation of the
    pattern's inputs; of a *residual* sum the whole ``sublayer``: the skip connection receives what the rule makes of
    the sub-layer as one operation of its input, skip and branch, and the branch its own part as well.
    """

    OPERATION = "operation"
    PATTERN = "pattern"
    SUBLAYER = "sublayer"


class Entry(BaseModel):
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

    @cached_property
    def bound(self) -> tuple[Rule, dict[str, Any]]:
        """The rule and its complete parameters."""
        found = find_rule(self.rule)
        return found, found.bind(self.params)

    def fits(self, category: str) -> bool:
        """Whether its rule can take an operation of this class; a whole pattern is of none."""
        return self.bound[0].fits("general" if self.scope is Scope.PATTERN else category)


def labels() -> frozenset[str]:
    """Everything that an entry can match: operator classes, patterns and their parts."""
    return _labels_of(tuple((name, tuple(group)) for name, group in PATTERNS.items()))


@lru_cache(maxsize=8)
def _labels_of(patterns: tuple[tuple[str, tuple[Pattern, ...]], ...]) -> frozenset[str]:
    found = {*CLASSES, "residual"}
    for name, group in patterns:
        found.add(name)
        for pattern in group:
            found.update(f"{name}.{node.args[1]}" for node in pattern.graph.nodes if node.target is PART)
    return frozenset(found)
