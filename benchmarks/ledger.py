"""What a ledger costs by size of the batch: the time of an explanation with it, as a ratio to the same one without.

``python -m benchmarks.ledger``. A BERT of six layers, 64 tokens a text, float32, one thread, processor time.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

import fxlrp
from benchmarks.measure import Clock, Local, paired_ratio
from benchmarks.models import Case

app = typer.Typer(add_completion=False)


def row(lrp: fxlrp.ConvertedModel, case: Case, samples: int, rounds: int) -> tuple[str, str, str]:
    """One line of the table."""
    x = {"inputs_embeds": case.inputs().expand(samples, -1, -1).contiguous()}
    without = Local("without", partial(lrp.attribute, x, target=1))
    with_it = Local("with", partial(lrp.attribute, x, target=1, ledger=True))
    for _ in range(2):  # the first calls on a size compare the graph with its model
        without.run(), with_it.run()
    ratio, _ = paired_ratio(without, with_it, rounds, Clock.CPU)
    return lrp.ruleset.name, str(samples), f"{ratio:.2f}x"


@app.command()
def table(
    samples: Annotated[list[int] | None, typer.Option(help="Sizes of the batch.")] = None,
    ruleset: Annotated[list[str] | None, typer.Option(help="Rulesets.")] = None,
    rounds: Annotated[int, typer.Option(help="Pairs of runs, of which the median is taken.")] = 5,
) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    case, found = Case("MiniLM", 64, 384, 6), Table("ruleset", "samples", "with a ledger")
    lrp = fxlrp.convert(case.model(), "attnlrp")
    for name in ruleset or ("attnlrp", "epsilon", "attnlrp-relevance"):
        for size in samples or (1, 2, 8, 16):
            found.add_row(*row(lrp.with_ruleset(name), case, size, rounds))
    Console().print(found)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.ledger")
