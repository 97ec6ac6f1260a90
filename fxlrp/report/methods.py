"""How rulesets compare: in goes a comparison, out come plain frozen values for the last sections of the page, the
terminal and JSON.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from typing import Any

from fxlrp.errors import MissingExtraError
from fxlrp.evaluate.comparison import Comparison
from fxlrp.evaluate.evaluation import Evaluation
from fxlrp.evaluate.perturbation import PerturbationCurves, curves
from fxlrp.evaluate.standings import Standing

RESOLUTION = 170


@dataclass(frozen=True)
class Agreement:
    """Rank correlations ``rho[row][column]`` between rulesets, mean over ``samples``; None where there is none."""

    names: tuple[str, ...]
    rho: tuple[tuple[float | None, ...], ...]
    samples: int

    @property
    def pairs(self) -> list[tuple[float, str, str]]:
        """Every two rulesets with their number, those that agree least first."""
        places = combinations(range(len(self.names)), 2)
        found = [(self.rho[i][j], self.names[i], self.names[j]) for i, j in places]
        return sorted((rho, a, b) for rho, a, b in found if rho is not None)


@dataclass(frozen=True)
class Whisker:
    """An interval on the axis that all rulesets share: ends and value in percent of its width."""

    low: float
    high: float
    value: float


@dataclass(frozen=True)
class MeasuredProtocol:
    """The statistics of one protocol, and the picture of its curves as a ``data:`` address where it has some."""

    standings: tuple[Standing, ...]
    curves: str | None

    @property
    def title(self) -> str:
        """The protocol's name."""
        return self.standings[0].protocol.title

    @property
    def summary(self) -> str:
        """What the protocol measures, for a reader who knows no paper."""
        return self.standings[0].protocol.summary


@dataclass(frozen=True)
class Methods:
    """What there is to say about the rulesets as such; ``left_out`` are those that do not fit the model, and why."""

    agreement: Agreement
    measured: tuple[MeasuredProtocol, ...]
    left_out: tuple[tuple[str, str], ...] = ()


def methods_of(comparison: Comparison, *, pictures: bool = True) -> Methods | None:
    """The sections of a comparison of two or more rulesets; None of one alone without protocols."""
    if len(comparison.names) + len(comparison.left_out) < 2 and not comparison.evaluations:
        return None
    rho = tuple(tuple(_number(value) for value in row) for row in comparison.agreement.tolist())
    agreement = Agreement(comparison.names, rho, len(comparison.agreements))
    by_protocol = list(zip(*comparison.evaluations.values(), strict=True))
    groups = [tuple(group) for _, group in groupby(comparison.standings, key=lambda s: id(s.protocol))]
    measured = (
        MeasuredProtocol(_telling(standings), _picture(one) if pictures else None)
        for standings, one in zip(groups, by_protocol, strict=True)
    )
    return Methods(agreement, tuple(measured), tuple(comparison.left_out.items()))


def _telling(standings: tuple[Standing, ...]) -> tuple[Standing, ...]:
    """The statistics that speak for or against a ruleset; all of a protocol that has none."""
    return tuple(standing for standing in standings if standing.better) or standings


def whiskers(standing: Standing) -> dict[str, Whisker | None]:
    """Where the intervals lie between the smallest and the largest bound of any ruleset; None where there is none."""
    bounds = [x for i in standing.intervals.values() for x in (i.low, i.high, i.value) if math.isfinite(x)]
    low, high = min(bounds, default=0.0), max(bounds, default=1.0)

    def place(value: float) -> float:
        return 100 * (value - low) / ((high - low) or 1.0)

    return {
        name: Whisker(place(i.low), place(i.high), place(i.value)) if math.isfinite(i.low + i.high + i.value) else None
        for name, i in standing.intervals.items()
    }


def _picture(evaluations: Sequence[Evaluation]) -> str | None:
    """Curves as a PNG, where the protocol has curves and matplotlib is there to draw them."""
    found = [each for each in evaluations if isinstance(each, PerturbationCurves)]
    if len(found) < len(evaluations):
        return None
    try:
        figure = curves(found)
    except MissingExtraError:
        return None
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=RESOLUTION)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def as_plain(methods: Methods) -> dict[str, Any]:
    """``{"agreement": {...}, "evaluations": [...], "left_out": {...}}`` for JSON; numbers that it cannot spell are
    None.
    """
    return {
        "agreement": {
            "rulesets": list(methods.agreement.names),
            "spearman": [list(row) for row in methods.agreement.rho],
            "samples": methods.agreement.samples,
        },
        "evaluations": list(_rows(methods)),
        "left_out": dict(methods.left_out),
    }


def _rows(methods: Methods) -> Iterator[dict[str, Any]]:
    for measured in methods.measured:
        for standing in measured.standings:
            for name, interval in standing.intervals.items():
                yield {
                    "protocol": measured.title,
                    "statistic": standing.statistic,
                    "ruleset": name,
                    "value": _number(interval.value),
                    "low": _number(interval.low),
                    "high": _number(interval.high),
                    "better": standing.better,
                    "place": standing.places[name],
                    "samples": standing.samples,
                }
