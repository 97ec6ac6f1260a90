"""The page about generated tokens: self-contained, without script, and safe whatever a token is spelled like."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser

import torch

from fxlrp.report.generation import generation_as_plain, generation_html
from fxlrp.results.attribution import RulesetInfo
from fxlrp.results.generation import GenerationAttribution

HOSTILE = "<script>alert(1)</script>"


def made() -> GenerationAttribution:
    """Two tokens of a prompt, three generated, of which the last is padding."""
    relevance = torch.tensor([[[1.0, -2.0, 0.0], [0.5, 0.25, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]]])
    return GenerationAttribution(
        relevance=relevance,
        inputs={"input_ids": relevance},
        generated_ids=torch.tensor([[5, 6, 1]]),
        padding=torch.tensor([[False, False, True]]),
        explained=torch.tensor([[1.5, 1.25, 0.0]]),
        ruleset=RulesetInfo(HOSTILE, "1", "0" * 64, url="javascript:alert(1)"),
        main="input_ids",
        stream="input_ids",
        start=2,
        names={"input_ids": [["a", HOSTILE, "b", "c"]]},
        generated_tokens=[[HOSTILE, '" onload="x', "pad"]],
    )


def attributes(page: str) -> set[str]:
    """The names of all attributes of all elements, as a browser reads them."""
    found: set[str] = set()
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.update(name for name, _ in attrs)  # type: ignore[method-assign]
    parser.feed(page)
    return found


def test_tokens_are_text_and_nothing_else() -> None:
    page = generation_html(made())
    assert "<script" not in page
    assert "javascript:" not in page
    assert HOSTILE in unescape(page)
    assert not any(name.startswith("on") for name in attributes(page))
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_every_generated_token_can_be_chosen_and_padding_cannot() -> None:
    page = generation_html(made())
    assert page.count('type="radio"') == 2
    assert page.count(" checked") == 1
    assert page.count('class="later"') == 1
    assert "\N{MINUS SIGN}2.00" in page


def test_plain_values_leave_out_what_is_not_seen() -> None:
    (sample,) = generation_as_plain(made())["samples"]
    assert sample["inputs"]["input_ids"]["relevance"] == [[1.0, -2.0], [0.5, 0.25], [None, 3.0]]
