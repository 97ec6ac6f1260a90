"""The tables of the experiments, for the terminal and as the manual's page on papers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console
from rich.table import Table

from benchmarks.papers.experiment import Outcome, Verdict

COLOURS = {Verdict.HOLDS: "green", Verdict.UNDECIDED: "yellow", Verdict.REVERSED: "red"}


def print_outcome(outcome: Outcome, console: Console) -> None:
    """Print one experiment: its table, then the verdict on each step of the paper's order."""
    experiment = outcome.experiment
    table = Table(title=f"{experiment.title}\n{experiment.source}. Here: {experiment.ours}", box=None)
    table.add_column("method")
    for column in experiment.columns:
        table.add_column(f"{column.name} {'↑' if column.larger else '↓'}", justify="right")
        if outcome.published:
            table.add_column("paper", justify="right", style="dim")
    for method in experiment.methods:
        cells = []
        for column in experiment.columns:
            value = outcome.intervals[method.name, column.name].value
            cells += [f"{value:.3f}", *([(method.published or {}).get(column.name, "")] if outcome.published else [])]
        table.add_row(method.name, *cells)
    console.print(table)
    for step in outcome.steps:
        console.print(
            f"  {step.column.name}: {step.worse} < {step.better} "
            f"[{COLOURS[step.verdict]}]{step.verdict.value}[/] (difference {step.difference})".replace("[-", "\\[-"),
            highlight=False,
        )


def render(outcomes: Sequence[Outcome]) -> str:
    """The page, in Markdown."""
    return templates().get_template("page.md.j2").render(outcomes=outcomes, Verdict=Verdict)


def templates(*folders: Path) -> Environment:
    """The templates of these folders, and those of the papers' page, whose tables others can import."""
    return Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
