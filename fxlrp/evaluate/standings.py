"""Which ruleset stands where: in go evaluations of several rulesets, out comes, for each statistic, who is best and who
cannot be told from the best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fxlrp.errors import InputError, MissingExtraError
from fxlrp.evaluate.protocol import Evaluation, Interval, Protocol

if TYPE_CHECKING:
    import pandas as pd

#: 'close' says that the interval overlaps that of the best, so that the samples do not clearly tell the two apart.
Place = Literal["best", "close", ""]


@dataclass(frozen=True)
class Standing:
    """One statistic of one protocol under every ruleset: ``intervals`` and ``places`` by name of the ruleset.

    ``better`` is 1 where larger is better, -1 where smaller is, 0 where neither (and no place is given).
    """

    protocol: Protocol
    statistic: str
    better: int
    samples: int
    intervals: Mapping[str, Interval]

    @property
    def meaning(self) -> str:
        """The statistic in plain words; its name where the protocol has no more to say."""
        return self.protocol.meanings().get(self.statistic, self.statistic)

    @property
    def places(self) -> dict[str, Place]:
        """The best ruleset, and those whose intervals overlap its interval."""
        known = {name: i for name, i in self.intervals.items() if not math.isnan(i.value)}
        if not self.better or not known:
            return dict.fromkeys(self.intervals, "")
        best = max(known, key=lambda name: self.better * known[name].value)
        low, high = known[best].low, known[best].high

        def place(name: str) -> Place:
            if name == best:
                return "best"
            return "close" if name in known and known[name].low <= high and known[name].high >= low else ""

        return {name: place(name) for name in self.intervals}


def standings(evaluations: Mapping[str, Sequence[Evaluation]]) -> list[Standing]:
    """A :class:`Standing` for each statistic of each protocol, in the protocols' order.

    ``evaluations`` holds for each ruleset what the same protocols measured on the same samples. Raises
    :class:`InputError` where protocols or numbers of samples differ.
    """
    found = []
    if len({len(each) for each in evaluations.values()}) > 1:
        raise InputError("Rulesets can be compared only where each was evaluated by the same protocols.")
    for one in zip(*evaluations.values(), strict=True):
        # By their spelling: protocols may hold tensors, which have no equality of one value.
        if len({(repr(each.protocol), len(each)) for each in one}) > 1:
            raise InputError(f"{one[0].protocol.title}: evaluations of other options or samples cannot be compared.")
        intervals = dict(zip(evaluations, (each.intervals() for each in one), strict=True))
        better = one[0].protocol.better()
        for name in one[0].statistics:
            by_ruleset = {ruleset: known[name] for ruleset, known in intervals.items()}
            found.append(Standing(one[0].protocol, name, better.get(name, 0), len(one[0]), by_ruleset))
    return found


def tabulate(found: Sequence[Standing]) -> pd.DataFrame:
    """One row per protocol, statistic and ruleset: value, low, high, better (1 larger, -1 smaller), place, samples.

    Raises :class:`MissingExtraError` without pandas.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingExtraError("pandas", "data") from error
    columns = ("protocol", "statistic", "ruleset", "value", "low", "high", "better", "place", "samples")
    rows = [
        (s.protocol.title, s.statistic, name, i.value, i.low, i.high, s.better, s.places[name], s.samples)
        for s in found
        for name, i in s.intervals.items()
    ]
    return pd.DataFrame(rows, columns=list(columns))
