"""An experiment of a paper: methods in rows, statistics in columns, and the order in which the paper found the methods.

In: models, data and rulesets. Out: :class:`Outcome`, evaluations by method and column, and a verdict on every step of
the order from a paired bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import fxlrp
from benchmarks.papers.chance import AtRandom
from fxlrp.evaluate import Evaluation, Interval, Protocol


@dataclass(frozen=True)
class Method:
    """A row: what the paper calls it, the ruleset (None: units in random order), and the paper's ``published`` numbers
    by column.
    """

    name: str
    ruleset: fxlrp.Ruleset | str | None
    published: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Column:
    """A statistic of a protocol, and whether larger values are better."""

    name: str
    protocol: Protocol
    statistic: str
    larger: bool = True

    def of(self, method: Method) -> Protocol:
        """The protocol for a method: the random baseline needs no relevance, or has it drawn."""
        protocol: Any = self.protocol
        if method.ruleset is not None:
            return self.protocol
        return replace(protocol, order="random") if hasattr(protocol, "order") else AtRandom(self.protocol)


class Verdict(Enum):
    """Whether a step of the paper's order is found here: the 95 % interval of the paired difference lies on its side,
    includes zero, or lies on the other side.
    """

    HOLDS = "holds"
    UNDECIDED = "not decided"
    REVERSED = "reversed"


@dataclass(frozen=True)
class Step:
    """One step of the order: ``better`` should beat ``worse`` in a column, by ``difference``."""

    worse: str
    better: str
    column: Column
    difference: Interval

    @property
    def verdict(self) -> Verdict:
        """What the interval says."""
        low, high = sorted((self.sign * self.difference.low, self.sign * self.difference.high))
        return Verdict.HOLDS if low > 0 else Verdict.REVERSED if high < 0 else Verdict.UNDECIDED

    @property
    def sign(self) -> int:
        """1 where larger values are better."""
        return 1 if self.column.larger else -1


@dataclass(frozen=True)
class Experiment:
    """What a paper measured, and how it is measured here.

    ``theirs`` and ``ours`` name model and data. ``steps`` are pairs (worse, better) of methods that the paper's table
    orders; ``ordered`` are the columns in which it does. ``remarks`` say what differs and why.
    """

    key: str
    title: str
    source: str
    url: str
    theirs: str
    ours: str
    methods: tuple[Method, ...]
    columns: tuple[Column, ...]
    steps: tuple[tuple[str, str], ...]
    ordered: tuple[str, ...]
    build: Callable[[], tuple[Any, Sequence[Any]]]
    remarks: tuple[str, ...] = ()

    def run(self, resume: Path | None, progress: bool) -> Outcome:
        """Evaluate every method in every column."""
        model, batches = self.build()
        captured = fxlrp.convert(model, "gradient")
        found = {}
        for method in self.methods:
            lrp = captured.with_ruleset(method.ruleset or "gradient")
            done: dict[Protocol, Evaluation] = {}  # columns are statistics, and several may be of one protocol
            for column in self.columns:
                protocol = column.of(method)
                if protocol not in done:
                    done[protocol] = protocol.run(lrp, batches, resume=resume, progress=progress)
                found[method.name, column.name] = done[protocol]
        return Outcome(self, found)


@dataclass(frozen=True)
class Outcome:
    """The evaluations of an experiment, by names of method and column."""

    experiment: Experiment
    evaluations: Mapping[tuple[str, str], Evaluation]

    @cached_property
    def intervals(self) -> dict[tuple[str, str], Interval]:
        """Each cell of the table with its 95 % bootstrap interval."""
        statistics = {column.name: column.statistic for column in self.experiment.columns}
        distinct = {id(each): each for each in self.evaluations.values()}  # columns share evaluations
        drawn = {key: each.intervals() for key, each in distinct.items()}
        return {key: drawn[id(each)][statistics[key[1]]] for key, each in self.evaluations.items()}

    @cached_property
    def steps(self) -> list[Step]:
        """Every step of the paper's order, in every column that it orders."""
        return list(self._steps())

    def _steps(self) -> Iterator[Step]:
        for column in self.experiment.columns:
            if column.name not in self.experiment.ordered:
                continue
            for worse, better in self.experiment.steps:
                first, second = (self.evaluations[name, column.name] for name in (better, worse))
                yield Step(worse, better, column, first.less(second, column.statistic))

    @property
    def samples(self) -> int:
        """How many samples the numbers are of."""
        measured = next(iter(self.evaluations.values())).measured
        return int(measured["used"].sum()) if "used" in measured else len(next(iter(measured.values())))

    @property
    def published(self) -> bool:
        """Whether the paper's numbers stand beside ours."""
        return any(method.published for method in self.experiment.methods)
