"""Reads the code blocks of a Markdown page and runs them: in comes a page, out goes what each block printed.

Blocks whose language is exactly ``python`` are run in order in one namespace; a block with a title is
written to that file first; a ``text`` block right after one is the output it must have printed. Other
blocks (``py``) are only read.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(?P<info>[^\n`]+)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"^[+-]?\d+(\.\d+)?(e[+-]?\d+)?$")
ROUNDING = 0.015  # one unit of the second decimal, and a bit: other processors round otherwise


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, title and text, and the line of the page on which the text begins."""

    language: str
    title: str | None
    text: str
    line: int
    directly_after_previous: bool


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found, end = [], 0
    for match in FENCE.finditer(page):
        language, _, rest = match["info"].partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        near = not page[end : match.start()].strip()
        found.append(
            Block(language, title and title[1], match["body"], page[: match.start("body")].count("\n") + 1, near)
        )
        end = match.end()
    return found


def run(page: Path, folder: Path) -> Iterator[tuple[Block, str, str | None]]:
    """Run the page's blocks inside ``folder``: yields each Python block, its output, what that should be."""
    found = blocks(page.read_text(encoding="utf-8"))
    namespace: dict[str, Any] = {"__name__": "page"}
    for block, after in zip(found, [*found[1:], None], strict=True):
        if block.title:
            (folder / block.title).write_text(block.text, encoding="utf-8")
        if block.language != "python":
            continue
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        printed = io.StringIO()
        with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
            exec(code, namespace)
        expected = after.text if after and after.language == "text" and after.directly_after_previous else None
        yield block, printed.getvalue(), expected


def same_output(printed: str, expected: str) -> bool:
    """Whether both say the same: word by word, numbers up to :data:`ROUNDING`; layout does not count."""
    ours, theirs = _words(printed), _words(expected)
    return len(ours) == len(theirs) and all(map(_same_word, ours, theirs))


def _words(text: str) -> list[str]:
    return text.replace("−", "-").replace("%", " ").split()


def _same_word(one: str, other: str) -> bool:
    if NUMBER.match(one) and NUMBER.match(other):
        return math.isclose(float(one), float(other), rel_tol=ROUNDING, abs_tol=ROUNDING)
    return one == other
