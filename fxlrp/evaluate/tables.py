"""Tables of evaluations: a row per ruleset, a column per statistic, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from fxlrp.evaluate.protocol import Evaluation

ARROWS = {1: " ↑", -1: " ↓", 0: ""}


def print_evaluations(evaluations: Sequence[Evaluation], console: Console | None = None) -> None:
    """Print evaluations of one protocol; an arrow says whether larger or smaller values speak for a ruleset."""
    protocol = evaluations[0].protocol
    better = protocol.better()
    table = Table(title=f"{type(protocol).__name__}, {len(evaluations[0])} samples, 95 % intervals", box=None)
    table.add_column("ruleset")
    for name in evaluations[0].statistics:
        table.add_column(name + ARROWS[better.get(name, 0)], justify="right")
    for evaluation in evaluations:
        table.add_row(evaluation.ruleset.name, *(str(interval) for interval in evaluation.intervals().values()))
    (console or Console()).print(table)
