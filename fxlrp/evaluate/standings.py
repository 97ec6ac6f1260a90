"""Which ruleset stands where: in go evaluations of several rulesets, out comes, for each statistic, who is best and who
cannot be told from the best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fxlrp.errors import InputError, MissingExtraError
from fxlrp.evaluate.evaluation import Evaluation, Interval
from fxlrp.evaluate.protocol import Protocol

if TYPE_CHECKING:
    import pandas as pd

#: 'close': the samples do not tell a ruleset from the best (the 95 % interval of the paired difference holds 0).
Place = Literal["best", "close", ""]


@dataclass(frozen=True)
class Standing:
    """One statistic of one protocol under every ruleset: ``intervals`` and ``places`` by ruleset.

    ``better`` is 1 where larger is better, -1 where smaller is, 0 where neither (and no place is given).
    """

    protocol: Protocol
    statistic: str
    better: int
    samples: int
    intervals: Mapping[str, Interval]
    places: Mapping[str, Place]

    @property
    def meaning(self) -> str:
        """The statistic in plain words; its name where the protocol has no more to say."""
        return self.protocol.meanings().get(self.statistic, self.statistic)


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
            raise InputError(
                f"{one[0].protocol.title}: evaluations with different options or samples cannot be compared."
            )
        intervals = dict(zip(evaluations, (each.intervals() for each in one), strict=True))
        better = one[0].protocol.better()
        for name in one[0].statistics:
            way = better.get(name, 0)
            by_ruleset = {ruleset: known[name] for ruleset, known in intervals.items()}
            places = _places(dict(zip(evaluations, one, strict=True)), name, way)
            found.append(Standing(one[0].protocol, name, way, len(one[0]), by_ruleset, places))
    return found


def _places(evaluations: Mapping[str, Evaluation], statistic: str, way: int) -> dict[str, Place]:
    """The best ruleset, and those that the samples do not tell from it; none where no direction is better."""
    places: dict[str, Place] = dict.fromkeys(evaluations, "")
    known = {name: each for name, each in evaluations.items() if not math.isnan(each[statistic])}
    if not way or not known:
        return places
    best = max(known, key=lambda name: way * known[name][statistic])
    for name, each in known.items():
        difference = known[best].less(each, statistic)
        if difference.low <= 0 <= difference.high:
            places[name] = "close"
    places[best] = "best"
    return places


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
