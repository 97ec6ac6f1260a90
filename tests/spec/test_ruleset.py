"""Rulesets: the schema for editors is current, globs mean what they say, errors point into the file."""

from __future__ import annotations

import json
import re
import time
from importlib import import_module
from itertools import pairwise, product
from pathlib import Path

import pytest

import fxlrp
from fxlrp.spec.lines import Glob, glob

module = import_module("fxlrp.spec.ruleset")


def test_the_schema_for_editors_is_current() -> None:
    """Write it anew with ``json.dumps(fxlrp.spec.ruleset.json_schema(), indent=2)`` when this fails."""
    assert json.loads((module.folder() / "ruleset.schema.json").read_text()) == module.json_schema()


@pytest.mark.parametrize(
    "pattern", ["*a" * 25 + "b", "**a" * 17 + "b", "*.*.*.*.*.*.*.*.*.*.b", "**" * 25 + "b", "?*" * 25 + "b"]
)
def test_no_glob_takes_long(pattern: str) -> None:
    """By a regular expression the first took 20 s."""
    begun = time.perf_counter()
    for path in ("a" * 60, "a." * 30, "a" * 1000):
        assert not glob(pattern).fullmatch(path)
    assert time.perf_counter() - begun < 1


@pytest.mark.parametrize("front", ["", "*."])
def test_globs_are_what_a_regular_expression_takes(front: str) -> None:
    """Every pattern and path of few characters, against the expression that it stands for."""
    meant = {"*": "[^.]*", "**": ".*", "?": "[^.]", "a": "a", ".": r"\."}
    paths = ["".join(path) for size in range(6) for path in product("a.", repeat=size)]
    for size in range(4):
        for parts in product(meant, repeat=size):
            if "*" in parts and any(p[0] == q[0] == "*" for p, q in pairwise(parts)):
                continue  # "*" before "**" reads as "**" before "*"
            if not front and parts[:2] == ("*", "."):
                continue
            wanted = re.compile((r"(?:.*\.)?" if front else "") + "".join(meant[part] for part in parts))
            glob = Glob(front + "".join(parts))
            assert [p for p in paths if glob.fullmatch(p)] == [p for p in paths if wanted.fullmatch(p)], glob


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
