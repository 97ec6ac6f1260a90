"""The manual's page on real networks: in go records and outcomes, out comes Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import fxlrp
from benchmarks.papers.experiment import Outcome, Verdict
from benchmarks.papers.page import templates
from benchmarks.precision import DTYPES
from benchmarks.real.networks import NETWORKS
from benchmarks.real.runs import Reading, Record
from fxlrp.evaluate.standings import standings

UNDECIDED = 0.05  # of the largest relevance: what float32 may be away from float64 and yet show the same picture


@dataclass(frozen=True)
class Section:
    """What the page says of one network."""

    key: str
    title: str
    asked: str
    records: Sequence[Record]
    outcome: Outcome | None

    @property
    def ran(self) -> list[Record]:
        """The rulesets that fit the network, by name."""
        return sorted((r for r in self.records if not r.reason), key=lambda r: r.ruleset)

    @property
    def refused(self) -> dict[str, list[str]]:
        """The rulesets that do not fit, by reason."""
        found: dict[str, list[str]] = {}
        for record in sorted(self.records, key=lambda r: r.ruleset):
            if record.reason:
                reason = record.reason.replace(f"'{record.ruleset}'", "the ruleset")
                found.setdefault(reason.replace("the reading of the ruleset", "the ruleset's reading"), []).append(
                    record.ruleset
                )
        return found

    @property
    def missing(self) -> list[str]:
        """The rulesets that have not run yet."""
        return sorted(set(fxlrp.rulesets()) - {record.ruleset for record in self.records})

    @property
    def readings(self) -> list[Reading]:
        """Those of all rulesets and types."""
        return [reading for record in self.ran for reading in record.readings.values()]

    @property
    def gap(self) -> str:
        """The largest gap of a ledger."""
        return small(max((r.gap for r in self.readings if r.gap is not None), default=None))

    @property
    def infinite(self) -> list[str]:
        """The rulesets that gave NaN or infinity in some type."""
        return [r.ruleset for r in self.ran if not all(each.finite for each in r.readings.values())]

    @property
    def warned(self) -> dict[str, str]:
        """The first warning of each ruleset that gave one, and in which types."""
        found = {}
        for record in self.ran:
            types = [name for name, each in record.readings.items() if each.warned]
            if types:
                found[record.ruleset] = f"{record.readings[types[0]].warned[0]} ({', '.join(types)})"
        return found

    @property
    def undecided(self) -> dict[str, str]:
        """The rulesets whose relevance float32 does not give, and how far it is from float64 on the same weights."""
        found = {}
        for record in self.ran:
            own = max(
                (each.distance if each.rounded is None else each.rounded) or 0 for each in record.readings.values()
            )
            if own > UNDECIDED:
                found[record.ruleset] = small(own)
        return found

    @cached_property
    def best(self) -> Mapping[str, tuple[str, list[str]]]:
        """By column of the experiment the best method, and those that the samples do not tell from it."""
        if self.outcome is None:
            return {}
        found = {}
        methods = [method.name for method in self.outcome.experiment.methods if method.ruleset is not None]
        for column in self.outcome.experiment.columns:
            evaluations = {name: [self.outcome.evaluations[name, column.name]] for name in methods}
            standing = next(s for s in standings(evaluations) if s.statistic == column.statistic)
            best = next(name for name, place in standing.places.items() if place == "best")
            found[column.name] = best, [name for name, place in standing.places.items() if place == "close"]
        return found


def row(record: Record) -> list[str]:
    """The cells of a ruleset."""
    readings = list(record.readings.values())
    gap = max((r.gap for r in readings if r.gap is not None), default=None)
    far = [_far(record.readings[name]) for name in DTYPES]
    cost = [f"{value:.1f}" if value is not None else "–" for value in (record.time, record.memory)]
    return [f"[`{record.ruleset}`](rulesets/{record.ruleset}.md)", small(gap), _largest(readings), *far, *cost]


def _far(reading: Reading) -> str:
    """The distance from float64 and, in brackets, from float64 with the same rounded weights."""
    own = "" if reading.rounded is None else f" ({small(reading.rounded)})"
    return small(reading.distance) + own


def _largest(readings: Sequence[Reading]) -> str:
    largest = max((r.largest for r in readings), default=math.nan)
    finite = all(r.finite for r in readings)
    text = f"{largest:.2g}" if finite else "**not finite**"
    return f"**{text}**" if finite and any(r.warned for r in readings) else text


def small(value: float | None) -> str:
    """A number that may be tiny; a dash for none."""
    return "–" if value is None else "0" if value == 0 else f"{value:.0e}"


def render(records: Sequence[Record], outcomes: Sequence[Outcome]) -> str:
    """The page, in Markdown."""
    known = {outcome.experiment.key: outcome for outcome in outcomes}
    sections = [
        Section(key, title, asked, [r for r in records if r.network == key], known.get(key))
        for key, (_, title, asked) in NETWORKS.items()
    ]
    page = templates(Path(__file__).parent).get_template("real.md.j2")
    return page.render(sections=sections, types=list(DTYPES), row=row, Verdict=Verdict)
