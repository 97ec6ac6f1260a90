"""The words of a data set that speak most for a class, and most against it.

In: batches of token ids. Out: :class:`RepresentativeWords`, a table of words with their relevance.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table

from fxlrp.errors import InputError, MissingExtraError, nearest
from fxlrp.evaluate.batches import as_batches
from fxlrp.evaluate.explanation import explain
from fxlrp.evaluate.units import Tokens
from fxlrp.explain.model import ConvertedModel
from fxlrp.results.harmless import as_cell, put

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Word:
    """A token, how often it occurs, and its mean, largest and smallest relevance."""

    text: str
    count: int
    mean: float
    largest: float
    smallest: float


@dataclass(frozen=True)
class RepresentativeWords:
    """The words that speak most ``against`` and most ``for_`` a class, each in the order of how much they do."""

    for_: tuple[Word, ...]
    against: tuple[Word, ...]

    def show(self, console: Console | None = None) -> None:
        """Print both lists side by side."""
        table = Table(box=None)
        for title in ("for", "mean", "max", "n", "against", "mean", "min", "n"):
            table.add_column(title, justify="left" if title in ("for", "against") else "right")
        for ours, theirs in zip(self.for_, self.against, strict=True):
            table.add_row(
                *(ours.text, f"{ours.mean:+.3f}", f"{ours.largest:+.3f}", str(ours.count)),
                *(theirs.text, f"{theirs.mean:+.3f}", f"{theirs.smallest:+.3f}", str(theirs.count)),
            )
        put(console or Console(), table)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per word (extra 'data')."""
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtraError("pandas", "data") from error
        sides = (("for", self.for_), ("against", self.against))
        return pd.DataFrame(
            [{"speaks": side, **asdict(word), "text": as_cell(word.text)} for side, words in sides for word in words]
        )


def representative_words(
    lrp: ConvertedModel,
    batches: Any,
    tokenizer: Any,
    target: int,
    count: int = 10,
    by: Literal["extreme", "mean"] = "extreme",
    min_count: int = 1,
    keep: tuple[int, ...] = (),
) -> RepresentativeWords:
    """The ``count`` words of highest and of lowest relevance for class ``target`` over a data set.

    by: a word's ``extreme`` (the largest relevance of its occurrences, or the smallest), or its ``mean``. Words that
    occur fewer than ``min_count`` times are left out, as are special tokens in ``keep``. Raises :class:`InputError`
    for inputs that are no token ids, and where no word is left.

    Source: Arras et al. 2017 (arXiv 1706.07206), section 4.2, table 2.
    """
    if by not in ("extreme", "mean"):
        raise InputError(f"by='{by}' is not known.{nearest(by, ('extreme', 'mean'))}")
    found: dict[int, list[float]] = {}
    for batch in as_batches(batches):
        units = explain(lrp, batch, target, keep).units
        if not isinstance(units, Tokens):
            raise InputError("Words are counted in token ids, and this model's main input does not hold any.")
        here = (units.value[units.present].tolist(), units.relevance[units.present].tolist())
        for token, relevance in zip(*here, strict=True):
            found.setdefault(token, []).append(relevance)
    often = {token: values for token, values in found.items() if len(values) >= min_count}
    if not often:
        raise InputError(f"No word occurs min_count={min_count} times in these batches.")
    names = tokenizer.convert_ids_to_tokens(list(often))
    words = [
        Word(name, len(values), sum(values) / len(values), max(values), min(values))
        for name, values in zip(names, often.values(), strict=True)
    ]
    high = sorted(words, key=lambda word: -(word.mean if by == "mean" else word.largest))
    low = sorted(words, key=lambda word: word.mean if by == "mean" else word.smallest)
    return RepresentativeWords(tuple(high[:count]), tuple(low[:count]))
