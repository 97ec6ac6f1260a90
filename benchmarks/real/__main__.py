"""``python -m benchmarks.real``: every ruleset on trained networks; writes ``docs/real-models.md``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

import fxlrp
from benchmarks.papers.experiment import Outcome
from benchmarks.papers.page import print_outcome
from benchmarks.real import runs
from benchmarks.real.experiments import experiment
from benchmarks.real.networks import NETWORKS, Network
from benchmarks.real.page import render
from fxlrp.errors import FxlrpError, InputError, nearest

#: What a quick run has, and what a full run begins with.
FIRST = (
    "attnlrp",
    "cp-lrp",
    "gradient",
    "rollout",
    "epsilon",
    "arras2019-prop",
    "ali2022",
    "conservative",
    "epsilon-plus",
    "relp",
    "integrated-gradients",
)

app = typer.Typer(add_completion=False)


@app.command()
def main(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Which networks: {', '.join(NETWORKS)}; all unless given.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="A few rulesets, and no experiments.")] = False,
    fresh: Annotated[bool, typer.Option(help="Forget earlier results.")] = False,
    resume: Annotated[Path, typer.Option(help="Folder that keeps what is finished.")] = Path("build/real"),
    write: Annotated[Path | None, typer.Option(help="Markdown page to write.")] = None,
    experiments: Annotated[bool, typer.Option(help="Compare methods by perturbation, too.")] = True,
    finished: Annotated[bool, typer.Option(help="Run no further ruleset; the page says what is missing.")] = False,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
) -> None:
    """Run every ruleset on trained networks in every type, and find out which explains them best."""
    torch.set_num_threads(threads)
    console = Console()
    try:
        for name in names or []:
            if name not in NETWORKS:
                raise InputError(f"There is no network '{name}'.{nearest(name, NETWORKS)}")
        if write is not None and (names or quick):
            raise InputError("The page holds all networks: leave out names and --quick, or --write.")
        loaders: dict[str, Callable[[], Network]] = {key: cache(NETWORKS[key][0]) for key in names or NETWORKS}
        file = resume / "rulesets.jsonl"
        if fresh:
            file.unlink(missing_ok=True)

        def say(text: str) -> None:
            console.print(text, markup=False, highlight=False, soft_wrap=True)

        outcomes: list[Outcome] = []
        for key in loaders if experiments and not quick else ():
            say(f"{key}: experiments")
            outcomes.append(experiment(key, loaders[key]).run(resume / key, progress=console.is_terminal))
            print_outcome(outcomes[-1], console)
        rest = () if quick else tuple(name for name in fxlrp.rulesets() if name not in FIRST)
        prepared = cache(lambda key: runs.Prepared.of(loaders[key]()))
        for rulesets in () if finished else (FIRST, rest):
            for key in loaders:
                runs.run(key, partial(prepared, key), rulesets, file, say)
    except FxlrpError as error:
        Console(stderr=True).print(str(error), style="red", markup=False)
        raise typer.Exit(2) from error
    if write is not None:
        write.write_text(render(list(runs.load(file).values()), outcomes), encoding="utf-8")
        console.print(f"Written: {write}")


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.real")
