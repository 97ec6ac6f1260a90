"""Every numeric parameter has a range, which is told with its name when a ruleset or an override is made."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from torch import Tensor

import fxlrp
from fxlrp.errors import ParameterError, RulesetError
from fxlrp.rules import RULES, Cite, Conserves, Operation, Post, rule
from fxlrp.rules.ranges import ANY_NUMBER, Range, Relation
from fxlrp.spec.readings import READINGS
from fxlrp.spec.seeds import Seed

#: What a published formula takes although it is infinite or negative.
MEANT = {
    ("z_box", "low"): {-math.inf, -1.0},
    ("z_box", "high"): {math.inf, -1.0},
    ("split", "first"): {-1.0},
    ("bach60", "beta"): {-1.0},
}
NONSENSE = (math.nan, math.inf, -math.inf, -1.0)


def _nonsense() -> Iterator[tuple[str, str, float]]:
    for name, each in RULES.items():
        for parameter in each.ranges:
            for value in NONSENSE:
                if value not in MEANT.get((name, parameter), ()):
                    yield name, parameter, value


@pytest.mark.parametrize(("name", "parameter", "value"), list(_nonsense()))
def test_nonsense_is_refused_with_its_name_and_range(name: str, parameter: str, value: float) -> None:
    given: Any = int(value) if isinstance(RULES[name].parameters[parameter].default, int) and value == -1 else value
    with pytest.raises(ParameterError, match=f"'{name}'") as told:
        RULES[name].bind({parameter: given})
    assert parameter in str(told.value)
    assert f"not {given!r}." in str(told.value)
    assert told.value.parameter == parameter


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epsilon": -1}, "'epsilon' of rule 'epsilon' must be at least 0, not -1"),
        ({"epsilon": math.nan}, "'epsilon' of rule 'epsilon' must be at least 0, not nan"),
        ({"epsilon": 10**400}, "'epsilon' of rule 'epsilon' must be at least 0, not 1000"),
        ({"epsilon": "1e-9"}, "must be a float like 1e-06, not '1e-9'. YAML takes 1e-9 for a text: write 1.0e-9"),
        ({"epsilon": True}, "must be a float like 1e-06, not True"),
        ({"linear": {"rule": "gamma", "gamma": -0.25}}, "'gamma' of rule 'gamma' must be at least 0, not -0.25"),
        ({"linear": {"rule": "gamma", "gamma": math.inf}}, "'gamma' of rule 'gamma' must be at least 0, not inf"),
        ({"linear": {"rule": "alphabeta", "alpha": 2.0, "beta": 2.0}}, r"alpha - beta = 1 must hold.*beta = 2\.0"),
        ({"linear": {"rule": "alphabeta", "alpha": 3.0}}, r"alpha - beta = 1 must hold, and alpha = 3\.0, beta = 1\.0"),
        ({"linear": {"rule": "alphabeta", "alpha": 0.5, "beta": -0.5}}, "'alpha'.* must be at least 1, not 0.5"),
        ({"linear": {"rule": "bach60", "alpha": 2.0, "beta": 1.0}}, r"alpha \+ beta = 1 must hold"),
        ({"linear": {"rule": "weight_sign", "alpha": 1.0}}, r"alpha \+ beta = 1 must hold"),
        ({"attention": {"rule": "jacobian_shares", "alpha": 1.0, "beta": 1.0}}, r"alpha \+ beta = 1 must hold"),
        ({"linear": {"rule": "z_box", "low": 1.0, "high": -1.0}}, "low <= high must hold, and low = 1.0, high = -1.0"),
        ({"product": {"rule": "split", "first": 1.5}}, "'first' of rule 'split' must be from 0 to 1 or -1, not 1.5"),
        ({"product": {"rule": "take_all", "signal": 2}}, "'signal' of rule 'take_all' must be from 0 to 1, not 2"),
        ({"linear": {"rule": "spread", "bias_factor": 2.0}}, "'bias_factor' of rule 'spread' must be from 0 to 1"),
        ({"temperature": 0}, "temperature: Input should be greater than 0, not 0"),
        ({"temperature": math.nan}, "temperature: Input should be a finite number, not nan"),
        ({"temperature": math.inf}, "temperature: Input should be a finite number, not inf"),
        ({"readout": {"kind": "smooth", "sigma": -0.1}}, "readout.sigma: .*greater than or equal to 0, not -0.1"),
        ({"readout": {"kind": "smooth", "sigma": math.inf}}, "readout.sigma: Input should be a finite number, not inf"),
        ({"readout": {"kind": "smooth", "samples": 0}}, "readout.samples: .*greater than or equal to 1, not 0"),
        ({"readout": {"kind": "smooth", "seed": -1}}, "readout.seed: .*greater than or equal to 0, not -1"),
        ({"readout": {"kind": "integrated", "steps": 0}}, "readout.steps: .*greater than or equal to 1, not 0"),
        ({"linear": {"rule": "epsilon", "post": [{"kind": "match_sum", "epsilon": -1}]}}, "post.0.epsilon: .*, not -1"),
        ({"linear": {"rule": "epsilon", "post": [{"kind": "match_sum", "epsilon": math.nan}]}}, "post.0.epsilon.*nan"),
    ],
)  # fmt: skip
def test_an_override_with_nonsense_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(RulesetError, match=said):
        fxlrp.ruleset("epsilon").override(**given)


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("{match: linear, rule: epsilon, params: {stabiliser: signed, epsilon: -1.0}}", "epsilon: -1"),
        ("{match: linear, rule: epsilon, params: {epsilon: .nan}}", "epsilon: .nan"),
        ("{match: linear, rule: alphabeta, params: {alpha: 3.0}}", "alpha: 3"),
        ("{match: linear, rule: epsilon, post: [{kind: match_sum, epsilon: -1.0}]}", "epsilon: -1"),
    ],
)
def test_a_file_tells_the_place(line: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"name: a\nrules:\n- {line}\n")
    with pytest.raises(RulesetError, match=rf"a\.yaml:3:{len('- ') + line.index(key) + 1}: "):
        fxlrp.ruleset(tmp_path / "a.yaml")


@pytest.mark.parametrize("gamma", [0.02, 0.25, 0.5, 1.0, 10.0])
def test_gamma_in_a_badly_conditioned_form_is_advised_against(gamma: float) -> None:
    """Largest |R| on six random layers with a GELU: 5e2, 2e4 and 9e6 times the explained value."""
    with pytest.warns(UserWarning, match=rf"gamma of at most 0\.01 in the form 'ali'.*gamma = {gamma}, form = ali"):
        fxlrp.ruleset("epsilon").override(linear={"rule": "gamma", "form": "ali", "gamma": gamma})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxlrp.ruleset("epsilon").override(linear={"rule": "gamma", "gamma": gamma})
        fxlrp.ruleset("epsilon").override(linear={"rule": "gamma", "form": "ali", "gamma": 0.01})


@pytest.mark.usefixtures("tables_restored")
def test_a_rule_of_ones_own_declares_its_ranges() -> None:
    @rule(
        "linear",
        conserves=Conserves.NOTHING,
        source=Cite("here"),
        relation=Relation("a < b", lambda given: given["a"] < given["b"], ("a", "b")),
    )
    def mine(op: Operation, x: Tensor, *rest: Tensor, a: Annotated[float, Range(high=5)] = 0.0, b: float = 1.0) -> Any:
        """y."""

    assert mine.ranges == {"a": Range(high=5), "b": ANY_NUMBER}
    assert mine.bind({"a": -7}) == {"a": -7, "b": 1.0}
    for given, said in (
        ({"a": 6}, "at most 5, not 6"),
        ({"b": math.inf}, "a finite number, not inf"),
        ({"a": 1}, "a < b"),
    ):
        with pytest.raises(ParameterError, match=said):
            mine.bind(given)


def test_packaged_rulesets_are_in_range() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in fxlrp.rulesets():
            fxlrp.ruleset(name)


@pytest.mark.parametrize("amount", [0.0, math.nan, math.inf])
def test_a_seed_begins_as_a_number(amount: float) -> None:
    with pytest.raises(RulesetError, match="Seed 'mine' must begin as a finite number other than 0"):
        Seed("mine", "mine", amount=amount)


def test_no_reading_or_post_operation_takes_infinite_numbers() -> None:
    assert all(not reading.model_config["allow_inf_nan"] for reading in READINGS.values())
    assert not Post.model_config["allow_inf_nan"]
