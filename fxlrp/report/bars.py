"""Bars of a horizontal chart, in percent of its width: signed bars from a zero line, and a waterfall of
running sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise


@dataclass(frozen=True)
class Bar:
    """One bar: from ``left`` over ``width`` percent, and where it ``ends`` (the running sum after it)."""

    left: float
    width: float
    ends: float
    negative: bool


@dataclass(frozen=True)
class Chart:
    """Bars that share one axis; ``zero`` is the position of its zero line in percent."""

    bars: tuple[Bar, ...]
    zero: float


def _chart(spans: Sequence[tuple[float, float]]) -> Chart:
    """Scale spans (from, to) so that they and zero fill the width."""
    ends = [0.0, *(end for span in spans for end in span)]
    low, high = min(ends), max(ends)
    extent = (high - low) or 1.0

    def place(value: float) -> float:
        return 100 * (value - low) / extent

    def bar(start: float, end: float) -> Bar:
        return Bar(place(min(start, end)), 100 * abs(end - start) / extent, place(end), negative=end < start)

    return Chart(tuple(bar(start, end) for start, end in spans), place(0.0))


def from_zero(values: Sequence[float]) -> Chart:
    """Bars from the zero line to each value."""
    return _chart([(0.0, value) for value in values])


def waterfall(amounts: Sequence[float], total: float) -> Chart:
    """One bar per amount, each beginning where the one before ended, and a last bar from zero to
    ``total``.
    """
    running = [0.0, *accumulate(amounts)]
    return _chart([*pairwise(running), (0.0, total)])
