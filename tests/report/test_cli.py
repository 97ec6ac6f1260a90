"""The `fxlrp` command, end to end on tiny checkpoints."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fxlrp.checkpoints import DEMO_MODEL
from fxlrp.cli import app

COMMANDS = ("demo", "explain", "compare", "plan", "rulesets", "check")
TEXT = "an unforgettable film"


def fxlrp(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, [str(each) for each in arguments])


def succeeds(*arguments: str | Path) -> str:
    result = fxlrp(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_help_lists_every_command_and_where_to_begin() -> None:
    text = succeeds("--help")
    assert all(command in text for command in COMMANDS)
    assert "fxlrp demo" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    text = succeeds(command, "--help")
    assert "--json" in text
    assert "Traceback" not in text


def test_explain_prints_tokens_values_and_the_ledger(classifier: Path) -> None:
    text = succeeds("explain", "--model", classifier, "--text", TEXT, "--target", "positive")
    for word in ("positive = ", "attnlrp", "film", "[SEP]", "input", "bias", "explained", "gap"):
        assert word in text


def test_explain_as_json_closes_its_ledger(classifier: Path) -> None:
    printed = succeeds("explain", "-m", classifier, "-t", TEXT, "-t", "bad", "--layers", "blocks", "--json")
    (attribution,) = json.loads(printed)["attributions"]
    assert len(attribution["samples"]) == 2
    assert attribution["samples"][1]["inputs"]["input_ids"]["tokens"] == ["[CLS]", "bad", "[SEP]"]
    for sample in attribution["samples"]:
        amounts = sum(entry["amount"] for entry in sample["ledger"]["entries"])
        assert amounts + sample["ledger"]["gap"] == pytest.approx(sample["explained"], abs=1e-6)
        assert abs(sample["ledger"]["gap"]) < 1e-5
        assert list(sample["layers"]) == ["bert.encoder.layer.0", "bert.encoder.layer.1"]


def test_explain_writes_the_report(classifier: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    text = succeeds("explain", "-m", classifier, "-t", TEXT, "--out", out)
    assert str(out) in text
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_contrast_changes_what_is_explained(classifier: Path) -> None:
    def explained(*options: str) -> float:
        printed = succeeds("explain", "-m", classifier, "-t", TEXT, "--json", "--no-ledger", *options)
        return json.loads(printed)["attributions"][0]["samples"][0]["explained"]

    positive, negative = explained("--target", "positive"), explained("--target", "negative")
    difference = explained("--target", "positive", "--contrast", "negative")
    assert difference == pytest.approx(positive - negative, abs=1e-6)
    assert abs(positive - negative) > 1e-6


def test_a_language_model_is_explained(language_model: Path) -> None:
    text = succeeds("explain", "-m", language_model, "-t", "a good", "--target", " film")
    assert "film" in text.splitlines()[1]


def test_compare_has_a_column_per_ruleset(classifier: Path) -> None:
    text = succeeds("compare", "-m", classifier, "-t", TEXT, "--rulesets", "attnlrp, gradient")
    (header,) = [line for line in text.splitlines() if line.startswith("token ")]
    assert header.split() == ["token", "attnlrp", "gradient"]
    printed = json.loads(succeeds("compare", "-m", classifier, "-t", TEXT, "-r", "cp-lrp,gradient", "--json"))
    assert [each["ruleset"]["name"] for each in printed["attributions"]] == ["cp-lrp", "gradient"]


def test_plan_shows_rules_and_modules(classifier: Path) -> None:
    assert "attention" in succeeds("plan", classifier)
    printed = json.loads(succeeds("plan", classifier, "--ruleset", "cp-lrp", "--json"))
    assert printed["ruleset"] == "cp-lrp"
    assert {"pattern": "attention.weights", "rule": "constant", "count": 2}.items() <= printed["plan"][1].items()
    assert all(set(row) == {"pattern", "rule", "message", "count", "modules", "note"} for row in printed["plan"])


def test_rulesets_are_listed_and_shown() -> None:
    text = succeeds("rulesets")
    assert "attnlrp" in text
    assert "Achtibat" in text
    assert "attnlrp" in [each["name"] for each in json.loads(succeeds("rulesets", "--json"))]
    rules = succeeds("rulesets", "attnlrp")
    assert "softmax" in rules
    assert "taylor" in rules
    assert {"match": "softmax", "rule": "taylor"}.items() <= json.loads(succeeds("rulesets", "attnlrp", "--json"))[
        "rules"
    ][0].items()


def test_check_passes_and_fails_by_exit_code(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = succeeds("check", classifier, "--ruleset", "conservative")
    assert "conserved" in text
    printed = json.loads(succeeds("check", classifier, "--json"))
    assert printed["passed"] is True
    assert printed["gap"] < 1e-9

    class Failed:
        passed, gap = False, 0.5

    monkeypatch.setattr("fxlrp.testing.check_conservation", lambda *_: Failed())
    result = fxlrp("check", classifier)
    assert result.exit_code == 1
    assert "NOT conserved" in result.stdout


@pytest.mark.skipif(not DEMO_MODEL.is_dir(), reason="the demo model has not been trained yet")
def test_demo_prints_and_writes_its_report(tmp_path: Path) -> None:
    out = tmp_path / "demo.html"
    text = succeeds("demo", "--out", out)
    assert str(out) in text
    page = out.read_text(encoding="utf-8")
    for part in ("attnlrp", "gradient", "Ledger", "Layers × tokens"):
        assert part in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "-t", "x", "-m", "./nowhere"], "is no folder"),
        (["rulesets", "attnlpr"], "Did you mean 'attnlrp'"),
    ],
)
def test_a_mistake_is_a_panel_on_stderr(arguments: list[str], message: str) -> None:
    result = fxlrp(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_mistakes_about_a_model_are_panels(classifier: Path, tmp_path: Path) -> None:
    for options, message in (
        (["--target", "positiv"], "Did you mean 'positive'"),
        (["--ruleset", "nonsense"], "no ruleset 'nonsense'"),
        (["--target", "17"], "17"),
        (["--out", str(tmp_path / "no" / "report.html")], "does not exist"),
    ):
        result = fxlrp("explain", "-m", classifier, "-t", TEXT, *options)
        assert result.exit_code == 2, options
        assert message in result.stderr
        assert "Traceback" not in result.output


def test_a_required_option_is_named() -> None:
    result = fxlrp("explain")
    assert result.exit_code == 2
    assert "--text" in result.stderr


def test_every_generated_token_is_explained(language_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "generation.html"
    printed = succeeds("explain", "-m", language_model, "-t", TEXT, "-t", "a", "-g", "3", "--json", "--out", out)
    first, second = json.loads(printed)["generation"]["samples"]
    matrix = first["inputs"]["input_ids"]
    assert len(first["generated"]) == len(first["explained"]) == len(matrix["relevance"][0]) == 3
    assert matrix["tokens"][-2:] == first["generated"][:2]
    assert matrix["relevance"][-1][:2] == [None, None]
    assert len(second["inputs"]["input_ids"]["tokens"]) < len(matrix["tokens"])
    assert "<script" not in out.read_text(encoding="utf-8")
    assert "runner" not in succeeds("explain", "-m", language_model, "-t", TEXT, "-g", "2", "--contrast", "runner-up")


def test_what_does_not_generate_says_so(classifier: Path, language_model: Path) -> None:
    for arguments, words in (
        (("-m", classifier, "-g", "3"), "does not generate"),
        (("-m", language_model, "-g", "99"), "99 are to be generated"),
        (("-m", language_model, "-g", "3", "--target", "a"), "--target"),
    ):
        result = fxlrp("explain", "-t", TEXT, *arguments)
        assert result.exit_code == 2
        assert words in " ".join(result.output.split())
