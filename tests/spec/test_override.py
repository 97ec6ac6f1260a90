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
        ({"fields": {"epsilon": 1}}, r"no 'epsilon' among its fields\. Did you mean params=\{'epsilon': \.\.\.\}"),
        ({"rules": {"epsilo": 1}}, r"no 'epsilo' among its rules\. Did you mean params=\{'epsilon': \.\.\.\}"),
        ({"params": {"epsilo": 1}}, "no 'epsilo' among its params. Did you mean 'epsilon'"),
        ({"linear": {"epsilo": 1}}, "no rule for 'linear' that takes epsilo. Did you mean 'epsilon'"),
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


@pytest.mark.parametrize("match", ["norm", "any", "fork"])
def test_first_and_last_choose_among_single_operations(match: str) -> None:
    content = {"name": "a", "rules": [{"match": match, "where": {"first": True}, "rule": "epsilon"}]}
    with pytest.raises(RulesetError, match="'first' and 'last' choose among"):
        fxlrp.ruleset(content)


def test_parameters_change_by_name_and_by_class() -> None:
    base = fxlrp.ruleset("epsilon-gamma-box")
    changed = {(e.match, e.rule): e.bound[1] for e in base.override(low=-3.0, high=3.0, gamma=0.1).rules}
    assert changed["convolution", "z_box"]["low"] == -3.0
    assert changed["convolution", "z_box"]["high"] == 3.0
    assert changed["convolution", "gamma"]["gamma"] == 0.1
    changed = {(e.match, e.rule): e.bound[1] for e in base.override(linear={"epsilon": 0.01}).rules}
    assert changed["linear", "epsilon"]["epsilon"] == 0.01
    assert changed["convolution", "gamma"]["epsilon"] == changed["sum", "epsilon"]["epsilon"] == 1e-6
    with pytest.raises(RulesetError, match="no rule for 'linear' that takes gamma"):
        base.override(linear={"gamma": 0.01})
