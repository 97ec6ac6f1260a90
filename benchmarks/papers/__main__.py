"""``python -m benchmarks.papers``: run the papers' experiments, print their tables, write ``docs/papers.md``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.papers import ali, arras, chefer
from benchmarks.papers.data import SHARED
from benchmarks.papers.experiment import Experiment
from benchmarks.papers.page import print_outcome, render
from fxlrp.errors import FxlrpError, InputError, nearest

#: Each takes the folder of SST-2 and how many samples to use.
EXPERIMENTS: dict[str, Callable[[Path, int | None], Experiment]] = {
    "ali": ali.experiment,
    "chefer": lambda _, count: chefer.methods_compared(count),
    "chefer-ablation": lambda _, count: chefer.ablation(count),
    "arras": arras.experiment,
}

app = typer.Typer(add_completion=False)


@app.command()
def main(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Which: {', '.join(EXPERIMENTS)}; all unless given.")
    ] = None,
    sst2: Annotated[Path, typer.Option(help="Folder with dev.tsv of SST-2 (GLUE).")] = SHARED,
    count: Annotated[int | None, typer.Option(help="So many samples only, for a first look.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder that keeps finished batches.")] = Path("build/papers"),
    write: Annotated[Path | None, typer.Option(help="Markdown page to write.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of torch.", show_default="its own choice")] = None,
) -> None:
    """Reproduce the orderings of the papers' tables on the models that come with fxlrp."""
    if threads:
        torch.set_num_threads(threads)
    console = Console()
    try:
        if write is not None and (names or count):
            raise InputError("The page holds all experiments on all samples: leave out names and --count, or --write.")
        for name in names or []:
            if name not in EXPERIMENTS:
                raise InputError(f"There is no experiment '{name}'.{nearest(name, EXPERIMENTS)}")
        outcomes = []
        for name in names or EXPERIMENTS:
            experiment = EXPERIMENTS[name](sst2, count)
            outcome = experiment.run(resume and resume / experiment.key, progress=console.is_terminal)
            print_outcome(outcome, console)
            outcomes.append(outcome)
    except FxlrpError as error:
        Console(stderr=True).print(str(error), style="red", markup=False)
        raise typer.Exit(2) from error
    if write is not None:
        write.write_text(render(outcomes), encoding="utf-8")
        console.print(f"Written: {write}")


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.papers")
