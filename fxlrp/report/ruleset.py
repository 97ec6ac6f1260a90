"""The terminal's view of the library of rulesets: in goes a description, out go its lines to a console."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fxlrp.report.descriptions import Description, override
from fxlrp.results.harmless import put

#: The width at which running text is easy to read.
WIDEST = 110


def print_ruleset(described: Description, console: Console) -> None:
    """Print what a ruleset does: citation, law, settings, each rule with formula and source, switches, notes."""
    ruleset = described.ruleset
    width = min(console.width, WIDEST)

    def say(*parts: str | tuple[str, str], indent: int = 0) -> None:
        put(console, Padding(Text.assemble(*parts), (0, 0, 0, indent)), width=width)

    say((ruleset.name, "bold"), "  ", ruleset.title)
    if ruleset.description:
        say(ruleset.description.strip())
    if ruleset.citation:
        say(str(ruleset.citation), (f"  {ruleset.citation.url}" if ruleset.citation.url else "", "dim"))
    put(console)
    put(console, _settings(described), width=width)
    say("\nRules", ("  the first line that matches an operation decides", "dim"))
    origin = ruleset.name
    for line, matches in described.blocks:
        if line.origin != origin:
            origin = line.origin
            say((f"from {origin}", "italic dim"))
        where = (f"  where {line.where}", "dim") if line.where else ""
        head = (", ".join(matches), "dim" if line.overruled else "bold")
        say(head, where, " → ", (line.spelled, "dim" if line.overruled else "cyan"), indent=2)
        if line.overruled:
            say(("a line above decides", "dim"), indent=6)
            continue
        say(line.formula, indent=6)
        say((line.source, "dim"), indent=6)
    if ruleset.switches:
        say("\nPaper and code")
    for switch in ruleset.switches:
        say((switch.name, "bold"), f"  as in the {switch.default}; the other by ", (override(switch), "cyan"), indent=2)
        say(("paper  ", "dim"), switch.paper, indent=6)
        say(("code   ", "dim"), switch.code, indent=6)
    if ruleset.notes:
        say("\nNotes")
    for note in ruleset.notes:
        say("- ", note.strip(), indent=2)


def _settings(described: Description) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for title, sentence in described.settings:
        if sentence:
            table.add_row(title, Text(sentence))
    return table
