"""Memory by depth and length: what an explanation takes, as a ratio to the plain gradient of the untouched model.

``python -m benchmarks.memory --help``. Both sides in float32, measured as :func:`benchmarks.measure.peak` does, which
is the same number on every run; beside it what :meth:`fxlrp.ConvertedModel.memory` tells without running.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import fxlrp
from benchmarks.measure import peak
from benchmarks.models import FAMILIES, Case, gradient_times_input

app = typer.Typer(add_completion=False)
HEAD = ("model", "layers", "tokens", "ruleset", "kept", "in blocks", "told: kept", "told: in blocks", "MiB")


def row(case: Case, ruleset: str) -> tuple[str, ...]:
    """One line of the table."""
    model: Any = case.model()
    lrp, x = fxlrp.convert(model, ruleset), {"inputs_embeds": case.inputs()}
    attribute, plain = partial(lrp.attribute, x, outputs=False), partial(gradient_times_input, model, case.inputs())
    for _ in range(3):  # on the first inputs the graph is compared with its model
        attribute()
    attribute(checkpoint="blocks")
    plain()
    base, whole, blocks = peak(plain), peak(attribute), peak(partial(attribute, checkpoint="blocks"))
    told = lrp.memory(x)
    ratios = (whole / base, blocks / base, told.values / base, told.in_blocks / base)
    shown = (f"{ratio:.2f}" for ratio in ratios)
    return (case.family, str(case.layers), str(case.length), ruleset, *shown, f"{base / 2**20:,.0f}")


@app.command()
def table(
    family: Annotated[str, typer.Option(help=f"One of {', '.join(FAMILIES)}.")] = "Llama",
    layers: Annotated[list[int] | None, typer.Option(help="Numbers of layers.")] = None,
    length: Annotated[list[int] | None, typer.Option(help="Numbers of tokens.")] = None,
    ruleset: Annotated[list[str] | None, typer.Option(help="Rulesets.")] = None,
    hidden: Annotated[int, typer.Option(help="The width of the model.")] = 256,
) -> None:
    """Print the table: ratios to the plain gradient's memory, which the last column has in MiB."""
    torch.set_num_threads(1)
    found = Table(*HEAD)
    for depth in layers or (4, 16):
        for tokens in length or (128, 512, 2048):
            for name in ruleset or ("attnlrp", "cp-lrp", "attnlrp-relevance"):
                found.add_row(*row(Case(family, tokens, hidden, depth), name))
    Console().print(found)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.memory")
