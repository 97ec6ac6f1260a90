"""Texts of somebody else's (tokens, labels, names) where they could do harm: in terminals and spreadsheets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxlrp.errors import visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.measure import Measurement

#: What spreadsheets take for a formula: a sign, also a wide one, with something behind it.
FORMULA = re.compile(r"[\s\x00-\x1f]*[=+\-@\uff1d\uff0b\uff0d\uff20].*\S", re.DOTALL)


def as_cell(text: str) -> str:
    """A text as tables hold it: one that a spreadsheet would take for a formula has an apostrophe in front.

    >>> [as_cell(text) for text in ("=1+1", "-", "a = b")]
    ["'=1+1", '-', 'a = b']
    """
    return f"'{text}" if FORMULA.match(text) else text


@dataclass(frozen=True)
class Harmless:
    """What rich prints, with nothing in it that a terminal would obey, and with texts taken as they are: no markup."""

    renderable: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        for segment in console.render(self.renderable, options.update(markup=False)):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement

        return Measurement.get(console, options.update(markup=False), self.renderable)


def put(console: Console, renderable: RenderableType = "", **options: Any) -> None:
    """Print to a console what may hold texts of somebody else's: see :class:`Harmless`. It is how fxlrp prints."""
    console.print(Harmless(renderable), **options)
