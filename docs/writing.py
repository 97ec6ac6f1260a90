"""Writes Markdown: in goes text with formulas and docstrings, out come tables, links and paragraphs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape


def joined(*paragraphs: str) -> str:
    """Paragraphs with an empty line between them."""
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "&#124;").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def linked(name: str, page: str) -> str:
    """A name in code type, as a link."""
    return f"[`{name}`]({page})"


def plain(text: str) -> str:
    """Text in which no letter means anything to Markdown."""
    return re.sub(r"([\\*_\[\]])", r"\\\1", escape(text, quote=False))


def prose(text: str | None) -> str:
    """A docstring as Markdown: text in backticks and Sphinx roles is code, all else is plain text."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"``\1``", text or "")
    pieces = re.split(r"(`+[^`]+`+)", text)
    return "".join(f"`{p.strip('`')}`" if p.startswith("`") else plain(p) for p in pieces).strip()
