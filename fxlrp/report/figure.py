"""The matplotlib view: in go attributions of the same inputs, out comes a figure to save or to put into a
paper.

Tokens and features become bars, images become heat maps: one row of axes per sample, one column per ruleset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fxlrp.errors import MissingExtraError
from fxlrp.report.digest import Layout, Panel, SampleView, digest
from fxlrp.report.numbers import signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fxlrp.attribution import Attribution

POSITIVE = "#e0603a"
NEGATIVE = "#4a8fc2"
COLUMN_INCHES = 3.4
BAR_INCHES = 0.2
LABELLED = 60
"""Up to this many positions have their names printed; beyond, the axis only counts them."""


def draw(attributions: Sequence[Attribution]) -> Figure:
    """Return a figure of the main input's relevance: a row per sample, a column per ruleset.

    The figure belongs to no window and to no global state of pyplot; save it with ``.savefig(path)``.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    rows = list(zip(*(digest(attribution) for attribution in attributions), strict=True))
    heights = [_height(views[0].panels[0]) for views in rows]
    figure = Figure(figsize=(COLUMN_INCHES * len(attributions) + 0.6, sum(heights)), layout="constrained")
    grid = figure.subplots(len(rows), len(attributions), squeeze=False, height_ratios=heights)
    for views, axes_row in zip(rows, grid, strict=True):
        for column, (view, axes) in enumerate(zip(views, axes_row, strict=True)):
            _draw_sample(view, axes, named=column == 0 or view.panels[0].pieces != views[0].panels[0].pieces)
    return figure


def _height(panel: Panel) -> float:
    if panel.layout is Layout.IMAGE:
        return COLUMN_INCHES
    return 0.9 + BAR_INCHES * min(len(panel.values), LABELLED)


def _draw_sample(view: SampleView, axes: Axes, *, named: bool) -> None:
    """Draw one sample under one ruleset; ``named`` says whether positions are labelled here (in the first
    column, and where they are others than there).
    """
    panel = view.panels[0]
    axes.set_title(f"{view.ruleset}\n{_plain(view.label)} = {signed(view.explained)}", fontsize=9)
    if panel.layout is Layout.IMAGE:
        from matplotlib.colors import LinearSegmentedColormap

        colours = LinearSegmentedColormap.from_list("relevance", [NEGATIVE, "#ffffff", POSITIVE])
        limit = float(abs(panel.picture).max(initial=0.0)) or 1.0
        axes.imshow(panel.picture, cmap=colours, vmin=-limit, vmax=limit)
        axes.set_axis_off()
        return
    positions = np.arange(len(panel.values))
    axes.barh(positions, panel.values, color=[NEGATIVE if value < 0 else POSITIVE for value in panel.values])
    axes.axvline(0, color="#8a909c", linewidth=0.8)
    axes.invert_yaxis()  # reading order: the first token on top
    axes.margins(y=0.01)
    axes.locator_params(axis="x", nbins=4)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="both", labelsize=8, length=0)
    if len(panel.pieces) <= LABELLED:
        axes.set_yticks(positions, [_plain(piece.raw) if named else "" for piece in panel.pieces])


def _plain(text: str) -> str:
    """Keep matplotlib from reading ``$`` as the beginning of a formula."""
    return text.replace("$", r"\$")
