"""Every registered rule keeps what it declares: registering a rule is enough to have it tested here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fxlrp.errors import FxlrpError, RulesetError
from fxlrp.graph.operator_classes import SINGULAR, SOFTMAX
from fxlrp.rules import RULES, Cite, Conserves, Operation, Rule
from fxlrp.rules.choices import Stabiliser
from fxlrp.testing import check_rule

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("rescale", {"weighed": True}),
    ("secant", {"epsilon": 1e-10}),
    ("secant", {"epsilon": 1e-2}),
    ("epsilon", {"epsilon": 0.0}),
    ("epsilon", {"epsilon": 0.5}),
    ("gamma", {"gamma": 0.0}),
    ("gamma", {"gamma": 2.0, "epsilon": 0.1, "bridge": 0.1}),
    ("gamma", {"gamma": 0.7, "epsilon": 0.0, "bridge": 0.0}),
    ("gamma", {"scale_bias": False}),
    ("gamma", {"form": "ali", "gamma": 0.3}),
    ("gamma", {"form": "ali", "scale_bias": False}),
    ("alphabeta", {"alpha": 1.0, "beta": 0.0}),
    ("alphabeta", {"denominators": "separate", "epsilon": 1e-9, "stabiliser": "masked", "bias_share": "none"}),
    ("weight_sign", {"alpha": 1.0, "beta": 0.0, "bias_share": "whole", "epsilon": 1e-9}),
    ("weight_sign", {"epsilon": 0.0, "bias_share": "none"}),
    ("bach60", {"alpha": 1.5, "beta": -0.5}),
    ("epsilon", {"epsilon": 0.5, "stabiliser": "unsigned"}),
    ("epsilon", {"epsilon": 0.5, "stabiliser": "masked"}),
    ("split", {"epsilon": 0.1, "stabiliser": "unsigned"}),
    ("normalised_add", {"whole_batch": True}),
    ("alphabeta", {"epsilon": 0.1}),
    ("alphabeta", {"bias_share": "none"}),
    ("z_plus", {"bias_share": "none"}),
    ("distribute", {"bound": 1.0}),
    ("distribute", {"epsilon": 0.1}),
    ("split", {"first": 0.0}),
    ("split", {"first": 0.8}),
    ("take_all", {"signal": 1}),
    ("z_box", {"epsilon": 0.1, "stabiliser": "unsigned"}),
    ("z_box", {"low": -3.0, "high": 2.5}),
]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_rule_keeps_its_promises(rule: Rule) -> None:
    report = check_rule(rule)
    assert report.passed, str(report)


@pytest.mark.parametrize(("name", "parameters"), VARIANTS, ids=[f"{n}-{p}" for n, p in VARIANTS])
def test_rule_keeps_its_promises_with_other_parameters(name: str, parameters: dict[str, Any]) -> None:
    report = check_rule(RULES[name], seeds=(0, 1), parameters=parameters)
    assert report.passed, str(report)


def test_a_rule_that_breaks_its_promises_is_told_in_words() -> None:
    def halved(op: Operation, x: Tensor) -> Tensor:
        """Half."""
        result: Tensor = 0.5 * op(x) + 0.5 * op(x).detach() + 1e-9
        return result

    broken = Rule("halved", (SOFTMAX,), halved, Conserves.EXACTLY, Cite(""))
    report = check_rule(broken, seeds=[7])
    assert not report.passed
    text = str(report)
    assert "rule 'halved' BREAKS its promises (3 operations tried)" in text
    for fault in ("no formula", "no shapes", "no source", "no slow reference"):
        assert fault in text
    assert "softmax (softmax), seed 7, gradient: the value is off by 1.0e-09" in text
    assert "conserves EXACTLY" in text
    with pytest.raises(FxlrpError, match="BREAKS"):
        report.raise_if_failed()


def test_unknown_parameters_are_refused() -> None:
    with pytest.raises(RulesetError, match="no parameter 'gama'"):
        check_rule(RULES["gamma"], parameters={"gama": 1.0})


def test_a_constant_over_a_value_leaks_twice_what_arrives() -> None:
    """Regression: the plain gradient of c / x took its denominator for a numerator, and declared no leak."""
    from fxlrp.testing.operations import OPERATIONS

    sample = next(s for s in OPERATIONS[SINGULAR] if s.name == "constant over value")
    operation, (b, a) = sample.draw(0)
    y = (a / b).detach()
    message = torch.ones_like(y)
    leak = RULES["gradient"].leak
    assert leak is not None
    assert torch.allclose(leak(operation, y, message, b, a).sum(), 2 * y.sum())


def test_stabilisers() -> None:
    z = torch.tensor([-1.0, -0.25, 0.0, 2.0])
    assert Stabiliser("signed")(z, 0.25).tolist() == [-1.25, -0.5, 0.25, 2.25]
    assert Stabiliser("unsigned")(z, 0.25).tolist() == [-0.75, 0.0, 0.25, 2.25]
    assert Stabiliser("masked")(z, 0.25).tolist() == [-0.75, 0.25, 0.0, 2.25]
    assert Stabiliser("masked")(z, 0.0) is z
    with pytest.raises(RulesetError, match="no stabiliser 'signd'"):
        Stabiliser("signd")
