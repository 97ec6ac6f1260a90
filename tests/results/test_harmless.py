"""Texts of somebody else's do no harm: terminals show them and do not obey, spreadsheets take none for a formula."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console

import fxlrp
from fxlrp.errors import UNSEEN, FxlrpError, visible, warn
from fxlrp.evaluate.representative import RepresentativeWords, Word
from fxlrp.report import render_terminal
from fxlrp.report.descriptions import describe
from fxlrp.report.generation import rows, show_generation
from fxlrp.report.html import render_html
from fxlrp.report.ruleset import print_ruleset
from fxlrp.results.generation import GenerationAttribution
from fxlrp.results.harmless import as_cell, put
from tests.report.samples import float_attribution, info, text_attribution

#: What clears a screen, sets a title, writes to the clipboard, turns text round, and is rich's markup, even wrong one.
EVIL = (
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b31m",
    "over\rwritten",
    "back\x08",
    "\u202egnp.exe",
    "\udc80",
    "[/blue]",
    "[link=x]",
    "[bold",
)


def _console() -> Console:
    return Console(file=io.StringIO(), width=200, force_terminal=False, color_system=None)


def _generated(word: str) -> GenerationAttribution:
    ids = torch.zeros(1, 2, dtype=torch.long)
    return GenerationAttribution(
        relevance=torch.ones(1, 3, 2),
        inputs={"input_ids": torch.ones(1, 3, 2)},
        generated_ids=ids,
        padding=ids.bool(),
        explained=torch.ones(1, 2),
        ruleset=info(word),
        main="input_ids",
        stream="input_ids",
        start=2,
        names={"input_ids": [[word] * 3]},
        generated_tokens=[[word] * 2],
    )


def _features(word: str) -> fxlrp.Attribution:
    return replace(float_attribution(torch.ones(1, 3)), ruleset=info(word), label=[word])


def _with_layers(word: str) -> fxlrp.Attribution:
    plain = text_attribution([[word, "b"]], ruleset=word, label=word, with_ledger=True)
    assert plain.ledger is not None
    entries = tuple(replace(entry, kind=word, source=word) for entry in plain.ledger.entries)
    at = {f"{word}.{i}": torch.ones(1, 2, 4) for i in range(2)}
    return replace(plain, ledger=replace(plain.ledger, entries=entries), at=at)


PRINTED: dict[str, Callable[[str, Console], object]] = {
    "tokens": lambda word, console: render_terminal([_with_layers(word)], console),
    "rulesets": lambda word, console: render_terminal([_with_layers(word), _with_layers(word + "2")], console),
    "features": lambda word, console: render_terminal([_features(word)], console),
    "generation": lambda word, console: show_generation(_generated(word), console),
    "words": lambda word, console: RepresentativeWords(*[(Word(word, 1, 1.0, 1.0, 1.0),)] * 2).show(console),
    "a ruleset": lambda word, console: print_ruleset(
        describe(fxlrp.ruleset({"name": "a", "title": word, "description": word, "notes": [word]})), console
    ),
    "a line": lambda word, console: put(console, word),
}


@pytest.mark.parametrize("word", EVIL, ids=ascii)
@pytest.mark.parametrize("view", PRINTED)
def test_a_terminal_obeys_no_text(view: str, word: str) -> None:
    console = _console()
    PRINTED[view](word, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert not UNSEEN.search(text)
    dropped = {ord(each): None for each in "\x07\x08\x0b\x0c\r"}  # rich has no place for them
    assert visible(word.translate(dropped)) in text  # shown, and no part of it taken for markup


class _Named(torch.nn.Module):
    def __init__(self, word: str) -> None:
        super().__init__()
        self.first, self.word = torch.nn.Linear(3, 3), word
        self.add_module(word.replace(".", "") or "x", torch.nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 3]."""
        found: torch.Tensor = getattr(self, self.word.replace(".", ""))(self.first(x))
        return found


@pytest.mark.filterwarnings("ignore")  # of names that no exporter has met
@pytest.mark.parametrize("word", ["\x1b[2J", "\x9b31m", "\u202egnp"], ids=ascii)
def test_what_python_prints_obeys_no_text(word: str) -> None:
    rules = fxlrp.ruleset({"name": "a", "title": word, "extends": "attnlrp"})
    lrp = fxlrp.convert(_Named(word).eval(), rules)
    ledger = lrp.attribute(torch.ones(1, 3), target=0, ledger=True).ledger
    report = fxlrp.testing.check_conservation(lrp, rules, torch.ones(1, 3))
    assert visible(word) in str(lrp.plan)
    for text in (str(lrp.plan), str(ledger), str(report), repr(lrp.plan), *lrp.plan.near_misses):
        assert not UNSEEN.search(text)


def test_warnings_obey_no_text() -> None:
    with pytest.warns(UserWarning, match="^no \u241b") as caught:
        warn("no \x1b[2J")
    assert caught[0].filename == __file__


def test_errors_obey_no_text() -> None:
    assert str(FxlrpError("no class '\x1b[2J'\nvalid: a\tb")) == "no class '\u241b[2J'\nvalid: a\tb"


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "\uff1d1+1"])
def test_no_cell_is_a_formula(text: str) -> None:
    assert as_cell(text) == "'" + text
    pytest.importorskip("pandas")
    made = replace(text_attribution([[text, "-", "a=b", "[CLS]"]], ruleset=text, label=text))
    table = made.to_dataframe()
    assert list(table["token"]) == ["'" + text, "-", "a=b", "[CLS]"]
    assert {*table["ruleset"], *table["label"]} == {"'" + text}
    assert {row[3] for row in rows(_generated(text))} == {row[5] for row in rows(_generated(text))} == {"'" + text}


@pytest.mark.parametrize("url", ["https://[bad", "http://[::1", "https://", "javascript:alert(1)", "//x", ""])
def test_what_is_no_web_address_is_no_link(url: str) -> None:
    shown: Any = replace(text_attribution([["a"]]), ruleset=info("epsilon", url=url))
    page = render_html((shown,), "title", None)
    assert 'rel="noopener' not in page
    assert "Achtibat et al. 2024" in page
