"""What a mutant is, and how one is written: a patch of one of fxlrp's own objects, and the test that must notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, wraps
from typing import Any

import pytest
import torch

from fxlrp.errors import FxlrpError, RetraceWarning
from fxlrp.rules import RULES, shares
from fxlrp.testing import RandomGraph
from tests.kinds import test_kinds
from tests.properties import test_properties, test_regressions
from tests.rules import test_rules
from tests.support import kinds
from tests.testing import test_oracle

aten = torch.ops.aten
Patch = Callable[[pytest.MonkeyPatch], None]
Test = Callable[[], None]


#: Tests that have passed without a mutant. Several mutants share one.
_HEALTHY: set[Test] = set()


@dataclass(frozen=True)
class Mutant:
    """``patch`` breaks one thing; ``test``, a test of this suite applied to fitting arguments, must then fail."""

    name: str
    patch: Patch
    test: Test

    def check(self, forget: Callable[[], None] = lambda: None) -> None:
        """The test passes, and with the patch it fails: a wrong number is found, or fxlrp refuses or doubts its graph.

        A crash is neither. ``forget`` drops what the test has cached.
        """
        with pytest.MonkeyPatch.context() as patch:
            self.patch(patch)
            forget()
            with pytest.raises((AssertionError, FxlrpError, RetraceWarning)):
                self.test()
        forget()
        if self.test not in _HEALTHY:
            self.test()
            _HEALTHY.add(self.test)


def changed_rule(name: str, **changes: Any) -> Patch:
    """The registered rule with some fields replaced."""
    if "surrogate" in changes:
        broken = changes["surrogate"]

        @wraps(RULES[name].surrogate)  # keeps signature and docstring, or the mutant would be noticed by those
        def surrogate(*arguments: Any, **parameters: Any) -> Any:
            return broken(*arguments, **parameters)

        changes["surrogate"] = surrogate
    return lambda patch: patch.setitem(RULES, name, replace(RULES[name], **changes))


def changed_shares(name: str, broken: Any) -> Patch:
    """The registered rule rebuilt from other shares."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        whole: Any = RULES[name]
        monkeypatch.setitem(RULES, name, whole)  # put back when done
        shares.share_rule(*whole.on, source=whole.source, leak_kind=whole.leak_kind)(wraps(whole.shares)(broken))
        RULES[name].references.extend(whole.references)

    return patch


def attribute(owner: Any, name: str, value: Any) -> Patch:
    return lambda patch: patch.setattr(owner, name, value)


def entry(table: dict[Any, Any], key: Any, value: Any) -> Patch:
    return lambda patch: patch.setitem(table, key, value)


@cache
def rule(name: str, **parameters: Any) -> Test:
    if parameters:
        return lambda: test_rules.test_rule_keeps_its_promises_with_other_parameters(name, parameters)
    return lambda: test_rules.test_rule_keeps_its_promises(RULES[name])


def on(test: Any, code: str, *others: Any) -> Test:
    """A property test on one graph."""
    return lambda: test.hypothesis.inner_test(RandomGraph.parse(code), *others)


@cache
def closes(code: str, ruleset: str = "conservative") -> Test:
    return on(test_properties.test_values_stay_and_the_ledger_closes, code, ruleset)


@cache
def agrees(code: str, ruleset: str = "conservative") -> Test:
    return on(test_oracle.test_random_graphs, code, ruleset)


@cache
def kernel(kind: str, ruleset: str) -> Test:
    return lambda: test_kinds.kernels_agree(kinds.convert(kind), ruleset)


@cache
def computes(kind: str) -> Test:
    """A graph is what its model is."""
    return lambda: test_kinds.graph_computes(*kinds.captured(kind))


@cache
def found(name: str) -> Test:
    return lambda: test_regressions.test_found(name)
