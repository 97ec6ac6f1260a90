"""Tables of evaluations: a row per ruleset, a column per statistic, with intervals; turned round if there are many."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from fxlrp.evaluate.evaluation import Evaluation
from fxlrp.results.harmless import put
from fxlrp.results.views import view

ARROWS = {1: " ↑", -1: " ↓", 0: ""}
MOST_COLUMNS = 4


def print_evaluations(evaluations: Sequence[Evaluation], console: Console | None = None) -> None:
    """Print evaluations of one protocol; an arrow says whether larger or smaller values speak for a ruleset."""
    protocol = evaluations[0].protocol
    better = protocol.better()
    table = Table(title=f"{type(protocol).__name__}, {len(evaluations[0])} samples, 95 % intervals", box=None)
    head = ["ruleset", *(name + ARROWS[better.get(name, 0)] for name in evaluations[0].statistics)]
    rows = [head, *([e.ruleset.name, *map(str, e.intervals().values())] for e in evaluations)]
    if len(head) > MOST_COLUMNS:
        rows = [list(column) for column in zip(*rows, strict=True)]
        rows[0][0] = "statistic"
    for index, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if index else "left")
    for row in rows[1:]:
        table.add_row(*row)
    put(console or Console(), table)


@view("show", Evaluation)
def show_evaluation(evaluation: Evaluation) -> None:
    """Print the statistics of one evaluation."""
    print_evaluations([evaluation])
