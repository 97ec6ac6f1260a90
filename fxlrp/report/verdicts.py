"""How rulesets compare, in the terminal: the agreement matrix, and a table for each statistic."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fxlrp.evaluate.standings import Standing
from fxlrp.report.methods import Agreement, Methods
from fxlrp.report.numbers import correlation, statistic
from fxlrp.results.harmless import put

ARROWS = {1: "  ↑ larger is better", -1: "  ↓ smaller is better", 0: ""}
#: ≈ best: the interval of the difference from the best includes zero.
WORDS = {"best": "best", "close": "≈ best", "": ""}


def print_methods(methods: Methods, console: Console) -> None:
    """Print how far rulesets agree, then what each protocol measured, the best in bold; first, which are left out."""
    for name, reason in methods.left_out:
        put(console, Text(f"\n{name} is left out: {reason}", "yellow"))
    if len(methods.agreement.names) > 1:
        _print(f"Do the methods agree?  {methods.agreement.samples} samples", _matrix(methods.agreement), console)
    if methods.measured:
        told = "Which explains this model best?  (≈ best: not told from it by these samples)"
        put(console, Text("\n" + told, "bold"))
    for measured in methods.measured:
        put(console, Text(f"\n{measured.title}, {measured.standings[0].samples} samples", "bold"))
        put(console, Text(measured.summary, "dim"))
        for standing in measured.standings:
            put(console, Text(f"\n{standing.statistic}: {standing.meaning}{ARROWS[standing.better]}"))
            put(console, _standing(standing))


def _print(title: str, table: Table, console: Console) -> None:
    put(console, Text("\n" + title, "bold"))
    put(console, Text("rank correlation of relevance: 1 the same order, 0 unrelated, −1 the opposite", "dim"))
    put(console, Padding(table, (1, 0, 0, 0), expand=False))


def _matrix(agreement: Agreement) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for number in range(len(agreement.names)):
        table.add_column(str(number + 1), justify="right")
    for number, (name, row) in enumerate(zip(agreement.names, agreement.rho, strict=True), 1):
        table.add_row(Text(f"{number} {name}"), *("–" if rho is None else correlation(rho) for rho in row))
    return table


def _standing(standing: Standing) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("ruleset")
    table.add_column(standing.statistic, justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("")
    for name, interval in standing.intervals.items():
        place = standing.places[name]
        bounds = f"{statistic(interval.low)} to {statistic(interval.high)}"
        style = "bold" if place == "best" else ""
        table.add_row(Text(name), statistic(interval.value), bounds, WORDS[place], style=style)
    return table
