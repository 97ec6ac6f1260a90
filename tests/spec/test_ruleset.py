"""Rulesets: the schema for editors is current, globs mean what they say, errors point into the file."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

import fxlrp
from fxlrp.spec.lines import glob

module = import_module("fxlrp.spec.ruleset")


def test_the_schema_for_editors_is_current() -> None:
    """Write it anew with ``json.dumps(fxlrp.spec.ruleset.json_schema(), indent=2)`` when this fails."""
    assert json.loads((module.folder() / "ruleset.schema.json").read_text()) == module.json_schema()


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("*.mlp.*", "model.layers.0.mlp.up_proj", True),
        ("*.mlp.*", "mlp.up_proj", True),
        ("*.mlp.*", "model.layers.0.mlp", False),
        ("model.layers.*", "model.layers.0", True),
        ("model.layers.*", "model.layers.0.mlp", False),
        ("model.**", "model.layers.0.mlp", True),
        ("classifier", "classifier", True),
        ("classifier", "my.classifier", False),
    ],
)
def test_globs(pattern: str, path: str, fits: bool) -> None:
    assert bool(glob(pattern).fullmatch(path)) is fits


BROKEN = {
    "rules:\n  - {match: linear, rule: gamma\n  - x\n": r"a\.yaml:4:1: not valid YAML",
    "name: a\nrules:\n  - {match: linera, rule: gamma}\n": r"a\.yaml:3:6: no operator class.* 'linera'.*'linear'",
    "name: a\nruls: []\n": r"a\.yaml:2:1: .*'rules'",
    "name: a\nrules:\n  - {match: linear, rule: gama}\n": r"a\.yaml:3:21: There is no rule 'gama'.*'gamma'",
    "name: a\nrules:\n  - {match: linear, rule: secant}\n": r"a\.yaml:3:21: .*for activation, not for 'linear'",
    "name: a\nrules:\n  - {match: linear, rule: gamma, params: {gama: 1}}\n": r"a\.yaml:3:\d+: .*'gamma'",
    "name: a\nextends: atnlrp\n": r"a\.yaml:2:1: .*'attnlrp'",
    "- 1\n": r"a\.yaml:1:1: a ruleset is a mapping",
}


@pytest.mark.parametrize("text", BROKEN)
def test_errors_give_file_line_column_and_the_nearest_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(fxlrp.RulesetError, match=f"(?s){BROKEN[text]}"):
        fxlrp.ruleset(tmp_path / "a.yaml")


def test_overrides_come_first_and_leave_the_ruleset_as_it_was() -> None:
    base = fxlrp.ruleset("attnlrp")
    changed = base.override(linear={"rule": "gamma", "gamma": 0.05}, where="*.mlp.*")
    assert changed.rules[0].match == "linear"
    assert changed.rules[1:] == base.rules
    assert base == fxlrp.ruleset("attnlrp")
    assert changed.hash != base.hash
    assert all(e.bound[1].get("epsilon", 0.0) == 0.0 for e in base.override(epsilon=0.0).rules)
