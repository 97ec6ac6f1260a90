"""What a protocol measured: numbers per sample, from which statistics and their bootstrap intervals are computed.

In: numbers per sample by name. Out: :class:`Evaluation`, statistics of the data set with confidence intervals, and
paired differences of two of them.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from fxlrp.errors import InputError, MissingExtraError, nearest
from fxlrp.evaluate.figures import bars
from fxlrp.evaluate.resampling import middle, resampled
from fxlrp.results.harmless import as_cell
from fxlrp.results.views import Viewed
from fxlrp.spec.citation import RulesetInfo

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

#: Numbers per sample, each [samples, ...], by name.
Measured = Mapping[str, Tensor]


@dataclass(frozen=True)
class Interval:
    """A statistic of a data set, and the bounds between which the middle ``level`` of its bootstrap values lies."""

    value: float
    low: float
    high: float
    level: float = 0.95

    @staticmethod
    def around(value: float, drawn: Tensor, level: float) -> Interval:
        """The percentile interval of drawn values."""
        low, high = middle(drawn, level).tolist()
        return Interval(value, low, high, level)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Wording:
    """What a protocol is called and what it measures, for readers who know no paper; ``meanings`` is by statistic."""

    title: str = ""
    summary: str = ""
    meanings: Mapping[str, str] = field(default_factory=dict)


class Measurement(ABC):
    """What is measured, in words and statistics; how it is measured is a :class:`fxlrp.evaluate.Protocol`."""

    #: What reports say of it; what is left out is its name, and the first sentence of its description.
    WORDS: ClassVar[Wording] = Wording()

    @abstractmethod
    def statistics(self, measured: Measured) -> dict[str, float]:
        """The statistics of a data set, from the numbers of all its samples."""

    def better(self) -> dict[str, int]:
        """Which way a statistic speaks for a ruleset: 1 where larger is better, -1 where smaller is; the others say
        nothing of the kind.
        """
        return {}

    @property
    def title(self) -> str:
        """What reports call the protocol."""
        return self.WORDS.title or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(self).__name__)

    @property
    def summary(self) -> str:
        """One sentence that tells a reader who knows no paper what is measured: that of the class, unless the protocol
        has its own.
        """
        if self.WORDS.summary:
            return self.WORDS.summary
        text = " ".join((type(self).__doc__ or "").replace("``", "").split())
        return text.split(". ")[0].rstrip(".") + "."

    def meanings(self) -> dict[str, str]:
        """Statistics in plain words; those left out are called by their names."""
        return dict(self.WORDS.meanings)

    def draw(self, evaluation: Evaluation) -> Figure:
        """The plot of an evaluation: its statistics as bars with their intervals, unless the protocol has its own."""
        return bars(evaluation.intervals(), f"{type(self).__name__} · {evaluation.ruleset.name}")


@dataclass(frozen=True)
class Evaluation(Viewed):
    """What a protocol measured of a ruleset on a data set: ``measured`` holds numbers per sample by name."""

    protocol: Measurement
    ruleset: RulesetInfo
    measured: Measured

    def __len__(self) -> int:
        return len(next(iter(self.measured.values())))

    @cached_property
    def statistics(self) -> dict[str, float]:
        """The protocol's statistics over all samples, by name."""
        return self.protocol.statistics(self.measured)

    def __getitem__(self, name: str) -> float:
        if name not in self.statistics:
            known = nearest(name, self.statistics)
            raise InputError(f"{type(self.protocol).__name__} has no statistic '{name}'.{known}")
        return self.statistics[name]

    def intervals(self, level: float = 0.95, draws: int = 1000, seed: int = 0) -> dict[str, Interval]:
        """Each statistic with its percentile bootstrap interval: samples are drawn with replacement ``draws`` times.

        The same ``seed`` draws the same samples for every ruleset, so that intervals of one data set are comparable.
        """
        drawn = resampled(lambda rows: [*self._of(rows).values()], len(self), draws, seed)
        named = zip(self.statistics.items(), drawn, strict=True)
        return {name: Interval.around(value, values, level) for (name, value), values in named}

    def less(self, other: Evaluation, name: str, level: float = 0.95, draws: int = 1000, seed: int = 0) -> Interval:
        """A statistic of this evaluation less that of ``other`` on the same samples, with the interval of the paired
        bootstrap: both see the same draws. It tells a difference that the two intervals alone may hide.
        """
        if len(self) != len(other):
            raise InputError(f"A paired difference needs the same samples: there are {len(self)} and {len(other)}.")
        drawn = resampled(lambda rows: [self._of(rows)[name] - other._of(rows)[name]], len(self), draws, seed)
        return Interval.around(self[name] - other[name], drawn[0], level)

    def _of(self, rows: Tensor) -> dict[str, float]:
        return self.protocol.statistics({name: value[rows] for name, value in self.measured.items()})

    def to_dataframe(self) -> pd.DataFrame:
        """One row per sample with every number that was measured (extra 'data')."""
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtraError("pandas", "data") from error
        columns: dict[str, Any] = {}
        for name, value in self.measured.items():
            if value.ndim == 1:
                columns[name] = value.numpy()
            else:
                flat = value.flatten(1)
                columns |= {f"{name}[{i}]": flat[:, i].numpy() for i in range(flat.shape[1])}
        return pd.DataFrame({"ruleset": as_cell(self.ruleset.name), **columns})

    def plot(self) -> Figure:
        """A matplotlib figure (extra 'plot')."""
        return self.protocol.draw(self)
