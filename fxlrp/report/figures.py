"""The matplotlib view: in go attributions of the same inputs, out comes a figure to save or to put into a
paper.

Tokens and features become bars, images become heat maps: one row of axes per sample, one column per ruleset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fxlrp.errors import MissingExtraError
from fxlrp.report.numbers import signed
from fxlrp.report.panels import Array, Layout, Panel, SampleView, digest
from fxlrp.results.attribution import Attribution

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

POSITIVE = "#e0603a"
NEGATIVE = "#4a8fc2"
INK = "#1b1e24"
HATCH = "////"
"""What is against is hatched, so that it is told from what is for in black and white as well."""
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
    axes.set_title(f"{view.ruleset}\n{plain(view.label)} = {signed(view.explained)}", fontsize=9)
    if panel.layout is Layout.IMAGE:
        draw_image(axes, panel)
        return
    positions = np.arange(len(panel.values))
    negative = panel.values < 0
    colour = np.where(negative, NEGATIVE, POSITIVE)
    hatches = [HATCH if each else "" for each in negative]
    axes.barh(positions, panel.values, color=colour, hatch=hatches, edgecolor="#ffffff", linewidth=0)
    axes.axvline(0, color="#8a909c", linewidth=0.8)
    axes.invert_yaxis()  # reading order: the first token on top
    axes.margins(y=0.01)
    axes.locator_params(axis="x", nbins=4)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="both", labelsize=8, length=0)
    if len(panel.pieces) <= LABELLED:
        axes.set_yticks(positions, [plain(piece.raw) if named else "" for piece in panel.pieces])


def colours() -> LinearSegmentedColormap:
    """Blue below zero, white at zero, red above."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("relevance", [NEGATIVE, "#ffffff", POSITIVE])


def draw_image(axes: Axes, panel: Panel, mask: Array | None = None) -> AxesImage:
    """Draw the relevance of an image, over the image in grey where that is known; gives what a colour bar is made of.

    A dashed line is drawn around what is below -1/3 of the largest ``|R|``. ``mask`` [height, width] is outlined.
    """
    values = panel.picture
    limit = float(np.abs(values).max(initial=0.0)) or 1.0
    height, width = values.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    opacity: Any = None
    if panel.backdrop is not None:
        axes.imshow(0.45 + 0.55 * panel.backdrop, cmap="gray", vmin=0, vmax=1, extent=extent)
        opacity = 0.9 * np.abs(values) / limit
    scale = axes.imshow(values, cmap=colours(), vmin=-limit, vmax=limit, extent=extent)
    if opacity is not None:
        scale.set_visible(False)
        ends = np.where(values[..., None] < 0, _rgb(NEGATIVE), _rgb(POSITIVE))
        axes.imshow(np.concatenate([ends, opacity[..., None]], -1), extent=extent)
    if values.min(initial=0.0) < -limit / 3:
        axes.contour(values, levels=[-limit / 3], colors=INK, linestyles="dashed", linewidths=0.7)
    if mask is not None:
        rows, columns = (
            np.linspace(-0.5, n - 0.5, 2 * m + 1)[1::2] for n, m in zip(values.shape, mask.shape, strict=True)
        )
        for colour, line in (("#ffffff", 3.0), (INK, 1.4)):
            axes.contour(columns, rows, (mask > 0).astype(float), levels=[0.5], colors=colour, linewidths=line)
    axes.set_axis_off()
    return scale


def _rgb(colour: str) -> Array:
    from matplotlib.colors import to_rgb

    return np.array(to_rgb(colour))


def plain(text: str) -> str:
    """Keep matplotlib from reading ``$`` as the beginning of a formula."""
    return text.replace("$", r"\$")
