"""The terminal heat map: in go attributions of the same inputs, out go coloured tokens and a ledger table to
a console.

Relevance is the background's colour, from a neutral grey to red (for) or blue (against). Where a terminal
shows no colours, the numbers printed for short inputs still tell the whole story.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.style import Style
from rich.table import Table
from rich.text import Text

from fxlrp.report.numbers import share, signed
from fxlrp.report.panels import LayerMap, Layout, LedgerSheet, Panel, SampleView, digest, union
from fxlrp.results.attribution import Attribution
from fxlrp.results.harmless import put

NEUTRAL = (88, 88, 94)
POSITIVE = (200, 62, 36)
NEGATIVE = (28, 116, 200)
FAINT = 0.02
"""Below this share of the largest ``|R|`` a token stays uncoloured."""
NUMBERED = 24
"""Up to this many positions are listed with their numbers."""
MAPPED = 30
"""Up to this many tokens, a layer's relevance is drawn as a row of cells."""


def render_terminal(attributions: Sequence[Attribution], console: Console) -> None:
    """Print a heat map per sample and ruleset, numbers for short inputs, and the ledgers side by side.

    ``attributions`` explain the same inputs, one per ruleset. Nothing is returned; ``console`` decides on
    width and colours.
    """
    for views in zip(*(digest(attribution) for attribution in attributions), strict=True):
        _print_sample(views, console)


def _print_sample(views: Sequence[SampleView], console: Console) -> None:
    first = views[0]
    put(console, Text.assemble("\n", (first.label, "bold"), " = ", (signed(first.explained), "bold")))
    for panels in zip(*(view.panels for view in views), strict=True):
        if len(first.panels) > 1:
            put(console, Text(panels[0].name, "italic"))
        _print_panels(views, panels, console)
    if len(views) == 1 and first.layers is not None:
        put(console, Padding(_layer_table(first.layers), (1, 0, 0, 0), expand=False))
    ledgers = [(view.ruleset, view.ledger) for view in views if view.ledger is not None]
    if ledgers:
        put(console, Padding(_ledger_table(ledgers), (1, 0, 0, 0), expand=False))


def _print_panels(views: Sequence[SampleView], panels: Sequence[Panel], console: Console) -> None:
    groups: dict[tuple[Layout, int], list[tuple[SampleView, Panel]]] = {}
    for view, panel in zip(views, panels, strict=True):
        if panel.layout is Layout.TOKENS:
            put(console, Text.assemble((view.ruleset, "dim"), ("  ΣR " + signed(panel.total), "dim")))
            put(console, Padding(_heat(panel), (0, 0, 0, 2), expand=False))
        if panel.layout is Layout.IMAGE:
            put(console, Text(f"{view.ruleset}  {_image_summary(panel)}"))
            if console.color_system and max(panel.values.shape) <= MAPPED:
                put(console, Padding(_cells(panel), (0, 0, 0, 2), expand=False))
        else:  # features of two rulesets stand side by side if they are the same
            key = (panel.layout, len(panel.values) if panel.layout is Layout.FEATURES else 0)
            groups.setdefault(key, []).append((view, panel))
    for (layout, _), rows in groups.items():
        if layout is Layout.FEATURES or len(rows[0][1].pieces) <= NUMBERED:
            table = _number_table([view for view, _ in rows], [panel for _, panel in rows])
            put(console, Padding(table, (1, 0, 0, 0), expand=False))


def _cells(panel: Panel) -> Text:
    """An image as rows of coloured cells."""
    rows = (Text().join(Text("  ", _style(float(value), panel.scale)) for value in row) for row in panel.values)
    return Text("\n").join(rows)


def _style(value: float, scale: float) -> Style:
    """White on a colour between grey (nothing) and red or blue (the largest ``|R|``)."""
    strength = min(1.0, abs(value) / scale) if scale else 0.0
    if not strength > FAINT:  # also for NaN
        return Style()
    end = NEGATIVE if value < 0 else POSITIVE
    red, green, blue = (round(grey + strength * (full - grey)) for grey, full in zip(NEUTRAL, end, strict=True))
    return Style(color="#ffffff", bgcolor=f"rgb({red},{green},{blue})")


def _heat(panel: Panel) -> Text:
    """The text as one paragraph, each token on its colour; only words are kept apart."""
    paragraph = Text()
    for piece, value in zip(panel.pieces, panel.values, strict=True):
        if paragraph and not piece.glued:
            paragraph.append(" ")
        paragraph.append(piece.text, _style(float(value), panel.scale))
    return paragraph


def _image_summary(panel: Panel) -> str:
    height, width = panel.values.shape
    row, column = np.unravel_index(int(np.abs(panel.values).argmax()), panel.values.shape)
    return (
        f"{height} x {width} {panel.unit}, ΣR {signed(panel.total)}, "
        f"largest {signed(float(panel.values[row, column]))} at row {row}, column {column}"
    )


def _number_table(views: Sequence[SampleView], panels: Sequence[Panel]) -> Table:
    """Positions as rows, rulesets as columns; of many features, the largest under the first ruleset."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("token" if panels[0].layout is Layout.TOKENS else "feature", overflow="fold")
    for view in views:
        table.add_column(view.ruleset, justify="right")
    positions = union(panels)
    if len(positions) > NUMBERED:
        positions.sort(key=lambda position: -abs(panels[0].at(position[0]) or 0.0))
        positions = positions[:NUMBERED]
        table.caption = f"the {NUMBERED} largest of {len(panels[0].values)}"
    for place, piece in positions:
        found = [(panel.at(place), panel.scale) for panel in panels]
        cells = [Text("·") if v is None else Text(signed(v, scale), _style(v, scale)) for v, scale in found]
        table.add_row(Text(piece.raw), *cells)
    return table


def _layer_table(layers: LayerMap) -> Table:
    """Layers as rows: a coloured cell per token (while they fit a line), then the strongest token."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(f"at {layers.prefix}*")
    if len(layers.pieces) <= MAPPED:
        table.add_column("tokens, left to right", no_wrap=True)
    table.add_column("most at", no_wrap=True)
    for name, row, scale in zip(layers.names, layers.values, layers.scales, strict=True):
        top = int(np.abs(row).argmax())
        cells = Text().join(Text("  ", _style(float(value), scale)) for value in row)
        most = Text(f"{layers.pieces[top].raw} {signed(float(row[top]))}")
        table.add_row(Text(name), *([cells] if len(layers.pieces) <= MAPPED else []), most)
    return table


def _ledger_table(ledgers: Sequence[tuple[str, LedgerSheet]]) -> Table:
    """Kinds as rows, rulesets as columns; a lone ruleset gets a column of shares as well."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("ledger: where it went")
    for ruleset, _ in ledgers:
        table.add_column(ruleset, justify="right")
    lone = ledgers[0][1] if len(ledgers) == 1 else None
    if lone is not None:
        table.add_column("share", justify="right", style="dim")
    kinds = {(group.kind, group.leak): None for _, sheet in ledgers for group in sheet.groups}
    for kind, leak in sorted(kinds, key=lambda row: row[1]):
        found = [
            next((group.amount for group in sheet.groups if (group.kind, group.leak) == (kind, leak)), None)
            for _, sheet in ledgers
        ]
        cells = [
            "·" if amount is None else signed(amount, sheet.magnitude)
            for amount, (_, sheet) in zip(found, ledgers, strict=True)
        ]
        shares = [] if lone is None else [share(found[0] or 0.0, lone.explained)]
        table.add_row(Text(kind + (" (leak)" if leak else "")), *cells, *shares)
    table.add_section()
    for name, values in (
        ("total", [signed(sheet.total, sheet.magnitude) for _, sheet in ledgers]),
        ("explained", [signed(sheet.explained, sheet.magnitude) for _, sheet in ledgers]),
        ("gap", [signed(sheet.gap) for _, sheet in ledgers]),
    ):
        table.add_row(Text(name, "bold"), *values)
    return table
