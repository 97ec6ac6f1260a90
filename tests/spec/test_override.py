"""Overrides: fields, rules and parameters are three things, and each is checked when it is given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import fxlrp
from fxlrp.errors import RulesetError
from fxlrp.graph.operator_classes import CLASSES
from fxlrp.rules import RULES
from fxlrp.rules.choices import Stabiliser
from fxlrp.spec.lines import labels
from fxlrp.spec.ruleset import Ruleset


def test_the_three_kinds_may_be_named() -> None:
    rules = fxlrp.ruleset("epsilon")
    spelled = rules.override(fields={"bias": "distribute"}, rules={"activation": "gradient"}, params={"epsilon": 0.1})
    assert spelled == rules.override(bias="distribute", activation="gradient", epsilon=0.1)
    assert spelled.bias == "distribute"
    assert spelled.rules[0].match == "activation"
    assert all(line.params.get("epsilon", 0.1) == 0.1 for line in spelled.rules)


def test_no_name_is_of_two_kinds() -> None:
    kinds = [
        {*Ruleset.model_fields},
        {*labels(), *(alias for known in CLASSES.values() for alias in known.aliases)},
        {parameter for rule in RULES.values() for parameter in rule.parameters},
    ]
    assert not any(kinds[i] & kinds[j] for i in range(3) for j in range(i))


def test_a_name_of_two_kinds_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLASSES, "linear", replace(CLASSES["linear"], aliases=("epsilon",)))
    with pytest.raises(RulesetError, match=r"rules=\{'epsilon': \.\.\.\} or params=\{'epsilon': \.\.\.\}"):
        fxlrp.ruleset("epsilon").override(epsilon=0.1)
    assert fxlrp.ruleset("epsilon").override(params={"epsilon": 0.1}).rules[0].params["epsilon"] == 0.1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epsilo": 1}, "Did you mean 'epsilon'"),
        ({"fields": {"epsilon": 1}}, "no 'epsilon' among its fields"),
        ({"rules": {"bias": "source"}}, "no 'bias' among its rules"),
        ({"params": {"linear": "epsilon"}}, "no 'linear' among its params"),
        ({"stabiliser": "signd"}, "Parameter 'stabiliser' of rule 'epsilon'.*no stabiliser 'signd'.*'signed'"),
        ({"linear": {"rule": "alphabeta", "bias_share": "al"}}, "'bias_share' of rule 'alphabeta'.*no bias share 'al'"),
        ({"linear": {"rule": "gamma", "form": "alis"}}, "no gamma form 'alis'. Did you mean 'ali'"),
        ({"linear": {"rule": "alphabeta", "denominators": "one"}}, "no denominators 'one'.*joint, separate"),
        ({"low": 0.0}, "No rule of 'epsilon' takes the parameter 'low'.*z_box"),
        ({"epsilon": 0.1, "where": "*.mlp.*"}, "no rule was given"),
        ({"readout": {"kind": "inputs"}}, "no reading 'inputs'. Did you mean 'input'"),
        ({"readout": {"kind": "smooth", "sample": 3}}, "readout.sample.*Did you mean 'samples'"),
    ],
)
def test_what_is_wrong_is_said_at_once(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RulesetError, match=said):
        fxlrp.ruleset("epsilon").override(**changes)


def test_forms_are_values() -> None:
    changed = fxlrp.ruleset("epsilon").override(stabiliser="masked")
    assert all(line.bound[1].get("stabiliser", Stabiliser.MASKED) is Stabiliser.MASKED for line in changed.rules)
    assert changed.rules[0].params["stabiliser"] == "masked"  # as a file writes it
