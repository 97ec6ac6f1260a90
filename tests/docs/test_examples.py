"""Every example runs offline as it stands, prints something telling, and says what to change."""

from __future__ import annotations

import ast
import contextlib
import re
import runpy
from pathlib import Path

import pytest

from tests.docs import pages

FOLDER = pages.ROOT / "examples"
#: What each example prints, among other things.
PRINTS = {
    "quickstart": ["negative = ", "explained"],
    "text": ["positive minus negative: It never once bored me.", "bored -0.8"],
    "image": [r"attnlrp-vit: \d+%, \d+% of the positive relevance lies on the digit", "chefer2021-vit: "],
    "lstm": [r"negative: score \+0\.13", "initial state"],
    "generation": [r"token \d+: logit .*, rests most on position \d"],
    "own_ruleset": [r"linear +gamma\(gamma=0.1\) +g +2", "attnlrp-gamma"],
    "own_rule": ["rule 'shrinking' keeps its promises", "shrunk"],
    "own_pattern": [r"size_norm.scale +constant", "largest gap"],
    "own_architecture": [r"attnlrp +gap .*, second opinion", "skipped: 'rollout' reads attention maps"],
}
#: These write the packaged models anew, for hours; everybody else's examples are above.
TRAINING = {"train_digits", "train_sst2", "train_bilstm"}


def test_every_example_is_run() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {*PRINTS} | TRAINING


@pytest.mark.usefixtures("tables_restored")
@pytest.mark.parametrize("name", PRINTS)
def test_an_example_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.chdir(tmp_path):
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    for wanted in PRINTS[name]:
        assert re.search(wanted, printed), printed


@pytest.mark.parametrize("name", [name for name in PRINTS if name != "quickstart"])
def test_an_example_says_what_to_change(name: str) -> None:
    text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8")))
    assert text is not None
    assert "Change " in text
    assert f"examples/{name}.py" in (pages.ROOT / "README.md").read_text(encoding="utf-8")
