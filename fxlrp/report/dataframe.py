"""Attributions as a pandas data frame, one row per position: the form statistics and plotting libraries
take.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fxlrp.errors import MissingExtraError
from fxlrp.report.panels import digest
from fxlrp.results.attribution import Attribution
from fxlrp.results.harmless import as_cell

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("ruleset", "sample", "label", "explained", "input", "position", "token", "relevance")


def tabulate(attributions: Sequence[Attribution]) -> pd.DataFrame:
    """Return one row per ruleset, sample, attributed input and position, with the columns ``COLUMNS``.

    ``position`` is the place of a token or feature in the input (padding is left out), or ``(row, column)``
    of a pixel or patch; ``token`` is the tokenizer's own spelling, empty for those. What a spreadsheet would take for a
    formula has an apostrophe in front.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingExtraError("pandas", "data") from error
    return pd.DataFrame(rows(attributions), columns=list(COLUMNS))


def rows(attributions: Sequence[Attribution]) -> Iterator[tuple[Any, ...]]:
    """The rows of the table: values of the columns ``COLUMNS``."""
    for attribution in attributions:
        for view in digest(attribution):
            for panel in view.panels:
                for position, value in np.ndenumerate(panel.values):
                    token = as_cell(panel.pieces[position[0]].raw) if panel.pieces else ""
                    place = panel.places[position[0]] if panel.places else position
                    yield (
                        *(as_cell(view.ruleset), view.index, as_cell(view.label), view.explained),
                        *(as_cell(panel.name), place, token, float(value)),
                    )
