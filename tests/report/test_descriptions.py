"""The library of rulesets: every ruleset states source, law and switches, and is described as it works."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fxlrp
from fxlrp.app.cli import app
from fxlrp.graph.operator_classes import ADD, ANY, CLASSES
from fxlrp.report.descriptions import Description, describe, formula, override, readout
from fxlrp.rules import RULES
from fxlrp.spec.lines import RESIDUAL, labels
from fxlrp.spec.readings import AttentionReading, InputReading, Reading
from fxlrp.spec.ruleset import origins

NAMES = fxlrp.rulesets()
MINE = """
name: mine
extends: attnlrp
rules:
  - {match: linear, where: {module: "*.mlp.*"}, rule: gamma, params: {gamma: 0.05}}
  - {match: softmax, rule: constant}
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_every_packaged_ruleset_cites_describes_and_states_its_law(name: str) -> None:
    ruleset = fxlrp.ruleset(name)
    assert ruleset.citation is not None
    for text in (ruleset.title, ruleset.description, ruleset.conserves, ruleset.citation.url):
        assert text, f"rulesets/{name}.yaml needs citation (with url), title, description and conserves"
    assert ruleset.conserves.endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_every_switch_selects_something_else(name: str) -> None:
    ruleset = fxlrp.ruleset(name)
    names = [switch.name for switch in ruleset.switches]
    assert len({*names}) == len(names)
    for switch in ruleset.switches:
        other = ruleset.switch(switch.name)
        assert (other.rules, other.seed, other.readout, other.bias) != (
            ruleset.rules,
            ruleset.seed,
            ruleset.readout,
            ruleset.bias,
        ), f"switch '{switch.name}' of '{name}' changes nothing"


def test_an_unknown_switch_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(fxlrp.RulesetError, match=r"no switch 'identity-stabilizer'.*'identity-stabiliser'"):
        fxlrp.ruleset("attnlrp").switch("identity-stabilizer")


def test_switches_are_combined() -> None:
    ruleset = fxlrp.ruleset("attnlrp").switch("identity-stabiliser", "linear-epsilon")
    assert ruleset.rules[0].bound[1] == {"epsilon": 1e-8, "stabiliser": "unsigned"}
    assert all(entry.params.get("epsilon", 0.0) == 0.0 for entry in ruleset.rules[1:])


def test_rules_are_traced_to_the_file_they_stand_in(mine: Path) -> None:
    assert origins(mine)[:3] == ("mine", "mine", "attnlrp")
    assert origins(mine)[-1] == "_base"
    assert len(origins(mine)) == len(fxlrp.ruleset(mine).rules)
    assert set(origins(fxlrp.ruleset(mine))) == {"mine"}
    assert origins({"name": "short", "extends": "gradient"}) == ("gradient", "gradient")


@pytest.mark.parametrize("name", NAMES)
def test_a_line_is_called_overruled_when_nothing_can_reach_it(name: str) -> None:
    described = describe(name)
    chosen = [
        described.ruleset.choose((label, label.split(".")[0], *map(str, (*category.lineage, ANY))), (), category)
        for label in labels()
        for category in ((ADD,) if label == RESIDUAL else (CLASSES[label],) if label in CLASSES else CLASSES.values())
    ]
    for line, entry in zip(described.lines, described.ruleset.rules, strict=True):
        reached = any(found is entry for found in chosen)
        assert reached is not line.overruled or (line.where and not line.overruled), line.match


def test_a_line_for_some_modules_overrules_none(mine: Path) -> None:
    lines = {(line.match, line.rule): line for line in describe(mine).lines}
    assert lines["linear", "gamma"].where == "module=*.mlp.*"
    assert lines["softmax", "taylor"].overruled
    other = fxlrp.ruleset("epsilon").override(linear="gamma", where="*.mlp.*")
    assert not any(line.overruled for line in describe(other).lines if line.match == "linear")


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_a_formula(name: str) -> None:
    assert "\n" not in formula(RULES[name])
    assert len(formula(RULES[name])) > 10


class Novel(Reading):
    """What nobody has read before.

    More about it.
    """

    kind: str = "novel"
    depth: int = 1


def test_readings_in_words() -> None:
    assert readout(InputReading()).startswith("relevance R = x g at every input")
    assert "absolute value" in readout(InputReading(reduce="l1"))
    rollout = readout(AttentionReading(normalise=True, start_layer=-1))
    assert "rows divided by their sums" in rollout
    assert "of the last layer" in rollout
    assert rollout.endswith("(normalise: true, start_layer: -1)")
    assert readout(Novel(depth=3)) == "What nobody has read before (depth: 3)"


def test_overrides_are_spelled_as_they_are_called() -> None:
    switch = import_module("fxlrp.spec.citation").Switch
    simple = switch(name="a", paper="", code="", override={"epsilon": 0.0})
    dotted = switch(name="a", paper="", code="", override={"norm.mean": "constant"})
    assert override(simple) == ".override(epsilon=0.0)"
    assert override(dotted) == ".override(**{'norm.mean': 'constant'})"
    with pytest.raises(ValueError, match="at least 1"):
        switch(name="a", paper="", code="", override={})


def printed(*arguments: str | Path, columns: int = 80) -> str:
    result = CliRunner(env={"COLUMNS": str(columns), "NO_COLOR": "1"}).invoke(app, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", NAMES)
def test_the_command_prints_all_there_is_to_say(name: str, columns: int) -> None:
    text = printed("rulesets", name, columns=columns)
    assert all(len(line) <= columns for line in text.splitlines())
    described: Description = describe(name)
    words = " ".join(text.split())
    for line in described.lines:
        assert line.overruled or line.formula in words
        assert line.overruled or line.source in words
    for sentence in (described.ruleset.conserves, *(switch.code for switch in described.ruleset.switches)):
        assert " ".join(sentence.split()) in words


def test_a_ruleset_of_ones_own_is_printed_with_its_origins(mine: Path) -> None:
    text = printed("rulesets", mine)
    assert "linear  where module=*.mlp.* → gamma(gamma=0.05)" in text
    assert text.index("from attnlrp") < text.index("from _base")
    assert "a line above decides" in text


def test_the_command_prints_json(mine: Path) -> None:
    plain = json.loads(printed("rulesets", mine, "--json"))
    assert plain["rules"][0]["origin"] == "mine"
    assert plain["rules"][2]["formula"].startswith("R_x = x (R_s")
    assert plain["rules"][2]["overruled"] is True
    assert plain["in_words"]["Message"].startswith("the gradient g")
