"""Every ``fxlrp ...`` command on a page runs, offline: on packaged or small random models instead of those named."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fxlrp.app.cli import app
from fxlrp.shipped.checkpoints import DEMO_MODEL
from tests.docs import pages
from tests.support.checkpoints import write_encoder_decoder, write_language_model

PAGES = [
    pages.ROOT / "README.md",
    *sorted((pages.ROOT / "docs").glob("*.md")),
    *sorted((pages.ROOT / "docs" / "how-to").glob("*.md")),
]
LINE = re.compile(r"^(?: {4})?(fxlrp [a-z].*)$|`(fxlrp [a-z][^`\n]*)`", re.MULTILINE)
#: A page's placeholders and what stands for them.
PLACEHOLDERS = {"NAME": "attnlrp", "MODEL": "FOLDER", "...": "A touching film.", "20": "3", "200": "2"}
DATA = "sentence\tlabel\nA touching film.\t1\nBleak and far too long.\t0\n"


def commands(page: str) -> list[list[str]]:
    """The commands on a page, split into words, without comments; sentences about fxlrp, and names of commands in
    them, are none.
    """
    found = [shlex.split(match[1] or match[2], comments=True)[1:] for match in LINE.finditer(page)]
    known = {each.name or each.callback.__name__ for each in app.registered_commands}  # type: ignore[union-attr]
    return [words for words in found if words[0] in known and (len(words) > 1 or words == ["rulesets"])]


COMMANDS = list(
    dict.fromkeys(
        tuple(PLACEHOLDERS.get(word, word) for word in words)
        for page in PAGES
        for words in commands(page.read_text(encoding="utf-8"))
    )
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the data, the ruleset and the checkpoints that pages speak of."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dev.tsv").write_text(DATA, encoding="utf-8")
    ruleset = next(
        block
        for block in pages.blocks((pages.ROOT / "docs/how-to/add-a-ruleset.md").read_text(encoding="utf-8"))
        if block.title == "signed-attribution.yaml"
    )
    (tmp_path / "signed-attribution.yaml").write_text(ruleset.text, encoding="utf-8")
    return tmp_path


def test_pages_show_commands() -> None:
    assert len(COMMANDS) >= 8
    assert {words[0] for words in COMMANDS} >= {"explain", "compare", "check", "rulesets", "plan"}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_runs(words: tuple[str, ...], folder: Path) -> None:
    arguments = list(words)
    if "--generate" in arguments or "-g" in arguments:
        if "--model" not in arguments:
            arguments += ["--model", "FOLDER"]
        named = arguments[arguments.index("--model") + 1]
        (write_encoder_decoder if named.startswith("t5") else write_language_model)(folder / named)
    elif "FOLDER" in arguments:
        (folder / "FOLDER").symlink_to(DEMO_MODEL)
    if arguments[0] == "explain" and "--text" not in arguments:
        arguments += ["--text", "A touching film."]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.strip()
    if "--out" in arguments:
        assert (folder / arguments[arguments.index("--out") + 1]).stat().st_size > 1000
