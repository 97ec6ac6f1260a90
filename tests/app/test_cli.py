"""The `fxlrp` command, end to end on tiny checkpoints."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fxlrp.app.cli import app
from fxlrp.app.texts import read_texts
from fxlrp.rewrite import few_rows
from fxlrp.rules.primitives import scale_message
from fxlrp.shipped.checkpoints import DEMO_MODEL
from tests.support.checkpoints import write_encoder_decoder

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


def test_a_report_is_what_its_suffix_says(classifier: Path, tmp_path: Path) -> None:
    printed = json.loads(succeeds("explain", "-m", classifier, "-t", TEXT, "--json", "--out", tmp_path / "a.csv"))
    (shown,) = printed["attributions"][0]["samples"][0]["inputs"].values()
    assert printed["report"] == str(tmp_path / "a.csv")
    assert "html" not in printed
    with (tmp_path / "a.csv").open(newline="") as file:
        assert [float(row["relevance"]) for row in csv.DictReader(file)] == shown["relevance"]


@pytest.mark.parametrize("command", [("explain", "-t", TEXT), ("explain", "-t", TEXT, "-g", "2"), ("demo",)])
def test_a_suffix_that_nothing_is_written_as_is_refused_at_once(command: tuple[str, ...], tmp_path: Path) -> None:
    result = fxlrp(*command, "--out", tmp_path / "a.pdf")
    assert result.exit_code == 2
    assert "'.pdf'" in result.stderr
    assert ".html, .htm, .json, .csv" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_report_that_cannot_be_written_is_a_panel(classifier: Path) -> None:
    result = fxlrp("explain", "-m", classifier, "-t", TEXT, "--out", "/dev/full")
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr


def test_output_to_a_full_device_is_no_success() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "fxlrp", "rulesets"]
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert run.returncode != 0
    assert "No space left on device" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    for name, content in (("a.csv", "sentence,label\ngood,1\n"), ("a.tsv", "sentence\tlabel\ngood\t1\n")):
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert [(each.text, each.label) for each in read_texts(tmp_path / name)] == [("good", "1")]
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n', encoding="utf-8-sig")
    assert [each.text for each in read_texts(tmp_path / "a.jsonl")] == ["good"]


def test_names_reach_the_terminal_harmless(tmp_path: Path) -> None:
    for name in ("./\x1b[2J", "./[/blue]"):
        result = fxlrp("explain", "-t", TEXT, "-m", name)
        assert result.exit_code == 2
        assert "\x1b" not in result.output
        assert "is not a folder" in result.stderr


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


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rows = ["sentence\tlabel", "an unforgettable film\t1", 'a "bad film\t0', "a night in paris .\tpositive"]
    (tmp_path / "texts.tsv").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path / "texts.tsv"


def test_compare_on_a_file_of_texts(classifier: Path, texts: Path, tmp_path: Path) -> None:
    arguments = ("compare", "-m", classifier, "--data", texts, "-r", "attnlrp,gradient", "--resume", tmp_path / "kept")
    printed = json.loads(succeeds(*arguments, "--show", "1", "--json", "--out", tmp_path / "page.html"))
    assert [len(each["samples"]) for each in printed["attributions"]] == [1, 1]
    assert printed["agreement"]["samples"] == 3
    assert printed["agreement"]["spearman"][0][0] == pytest.approx(1)
    assert {(row["ruleset"], row["statistic"]) for row in printed["evaluations"]} == {
        *(("attnlrp", "auac"), ("attnlrp", "au_mse"), ("gradient", "auac"), ("gradient", "au_mse"))
    }
    assert all(row["low"] <= row["value"] <= row["high"] for row in printed["evaluations"])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<h1>Methods compared on 3 texts of texts.tsv</h1>" in page
    assert "Which explains this model best?" in page
    assert len(list((tmp_path / "kept").iterdir())) == 2 * 2
    text = succeeds(*arguments, "--limit", "2", "--metrics", "pruning")
    assert "Do the methods agree?  2 samples" in text
    assert "au_mse" in text
    assert "put back" not in text
    assert "au_mse" not in succeeds(*arguments, "--metrics", "none")


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.tsv", "words\tlabel\nx\t1\n", [], "no column 'sentence' or 'text' (line 2); its columns are 'words'"),
        ("a.tsv", "sentence\tlabel\n", [], "holds no text"),
        ("a.jsonl", "", [], "holds no text"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', [], "Line 2 is not JSON"),
        ("a.jsonl", '["a"]\n', [], "its columns are none"),
        ("a.csv", 'text,label\n"a, film",1\n,0\n', [], "line 3: the column 'text' holds no text"),
        ("a.csv", "text,label\na film\n", [], "line 2: the text has no label"),
        ("a.csv", "text,label\na film,2\n", [], "Line 2: label 2 is none of the model's 2 classes"),
        ("a.csv", "text,label\na film,positiv\n", [], "Did you mean 'positive'"),
        ("a.csv", "text\n" + "film " * 60, [], "Lines 2 to 2: The text has"),
        ("a.txt", "a film", [], "is not a table of texts"),
        ("a.csv", "text\na film\n", ["--metrics", "prunning"], "Did you mean 'pruning'"),
        ("a.csv", "text\na film\n", ["--text", "x"], "give texts, or a file of them"),
    ],
)
def test_mistakes_in_a_file_of_texts(
    classifier: Path, tmp_path: Path, name: str, content: str, options: list[str], message: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    result = fxlrp("compare", "-m", classifier, "--data", tmp_path / name, *options)
    assert result.exit_code == 2
    assert message in re.sub(r"[\s│]+", " ", result.stderr)
    assert "Traceback" not in result.output


def test_texts_of_each_kind_of_file(tmp_path: Path) -> None:
    for name, content in (
        ("a.tsv", 'text\tlabel\na "lone mark\t1\n'),
        ("a.csv", 'label,text\n1,"a ""lone mark"\n'),
        ("a.jsonl", '{"text": "a \\"lone mark", "label": 1}\n\n'),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
        (found,) = read_texts(tmp_path / name)
        assert (found.text, found.label) == ('a "lone mark', "1")


def test_plan_tells_the_memory_of_a_length(classifier: Path) -> None:
    assert "checkpoint='blocks'" in succeeds("plan", classifier, "--memory", "--tokens", "6")
    few, many = (
        json.loads(succeeds("plan", classifier, "--memory", "--tokens", tokens, "--json"))["bytes"]["values"]
        for tokens in ("4", "8")
    )
    assert 1.5 * few < many < 3 * few
    assert "itself fails" in fxlrp("plan", classifier, "--memory", "--tokens", "100000").output


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
    assert "the gradient is the derivative" in text
    assert printed["derivative_error"] < 1e-6

    class Failed:
        passed, gap = False, 0.5

    monkeypatch.setattr("fxlrp.app.cli.check_conservation", lambda *_: Failed())
    result = fxlrp("check", classifier)
    assert result.exit_code == 1
    assert "NOT conserved" in result.stdout


def test_check_fails_where_a_gradient_is_no_derivative(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One backward pass in ten is lost, of which no ledger tells."""
    right = few_rows.few_rows_linear
    monkeypatch.setattr(few_rows, "few_rows_linear", lambda x, *w: right(scale_message(x, 0.9), *w))
    result = fxlrp("check", classifier, "--ruleset", "conservative")
    assert result.exit_code == 1
    assert "NOT the derivative" in result.stdout


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
        (["explain", "-t", "x", "-m", "./nowhere"], "is not a folder"),
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


@pytest.mark.slow  # the manual's commands have one, and test_generation its numbers
def test_an_encoder_decoder_has_a_matrix_for_each_side(tmp_path: Path) -> None:
    folder, out = write_encoder_decoder(tmp_path), tmp_path / "generation.html"
    printed = succeeds("explain", "-m", folder, "-t", TEXT, "-g", "3", "--json", "--out", out)
    (sample,) = json.loads(printed)["generation"]["samples"]
    read, written = sample["inputs"]["input_ids"], sample["inputs"]["decoder_input_ids"]
    assert len(sample["generated"]) == 3
    assert all(value is not None for row in read["relevance"] for value in row)
    assert written["tokens"][1:] == sample["generated"][:2]
    assert written["relevance"][2][:2] == [None, None]
    page = out.read_text(encoding="utf-8")
    assert "decoder_input_ids" in page


def test_what_does_not_generate_says_so(classifier: Path, language_model: Path) -> None:
    for arguments, words in (
        (("-m", classifier, "-g", "3"), "does not generate"),
        (("-m", language_model, "-g", "99"), "99 are to be generated"),
        (("-m", language_model, "-g", "3", "--target", "a"), "--target"),
    ):
        result = fxlrp("explain", "-t", TEXT, *arguments)
        assert result.exit_code == 2
        assert words in " ".join(result.output.split())
