"""Plots of what protocols measure: in go numbers per sample or intervals by name, out comes a matplotlib figure.

Lines differ in dash and marker as well as in colour (Okabe and Ito's, which colour-blind readers tell apart), so that a
figure can be read in black and white.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Protocol

import torch

from fxlrp.errors import MissingExtraError
from fxlrp.evaluate.resampling import band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c8c8c")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


class Bounds(Protocol):
    """A value and the bounds of its interval."""

    @property
    def value(self) -> float:
        """The statistic."""

    @property
    def low(self) -> float:
        """Its lower bound."""

    @property
    def high(self) -> float:
        """Its upper bound."""


def new_figure(width: float, height: float) -> Figure:
    """A figure that belongs to no window. Raises :class:`MissingExtraError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    return Figure(figsize=(width, height), layout="constrained")


def plain_axes(figure: Figure) -> Axes:
    """One pair of axes without a box."""
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def lines(
    x: Sequence[float], values: Mapping[str, torch.Tensor], across: str, up: str, title: str, draws: int = 500
) -> Figure:
    """A line for each of the values [samples, X]: their mean over samples, with its 95 % bootstrap band.

    NaN is no sample. ``across`` and ``up`` name the axes, ``title`` the legend.
    """
    figure = new_figure(5.6, 3.6)
    axes = plain_axes(figure)
    styles = zip(cycle(COLOURS), cycle(DASHES), cycle(MARKERS), strict=False)
    for (label, rows), (colour, dash, marker) in zip(values.items(), styles, strict=False):
        low, high = (bound.numpy() for bound in band(rows.double(), draws))
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        mean = rows.double().nanmean(0).numpy()
        axes.plot(x, mean, color=colour, linestyle=dash, marker=marker, markersize=4, linewidth=1.4, label=label)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.legend(title=title, fontsize=8, title_fontsize=8, frameon=False)
    return figure


def distributions(values: Mapping[str, torch.Tensor], across: str) -> Figure:
    """How numbers [samples] are distributed, a row for each name: every sample a dot, and a box from the lower to the
    upper quartile with the median. NaN is left out.
    """
    figure = new_figure(5.6, 1.0 + 0.5 * len(values))
    axes = plain_axes(figure)
    generator = torch.Generator().manual_seed(0)
    for row, numbers in enumerate(values.values()):
        kept = numbers[~numbers.isnan()].double()
        if not len(kept):
            continue
        scatter = row + 0.3 * (torch.rand(len(kept), generator=generator) - 0.5)
        axes.scatter(kept.numpy(), scatter.numpy(), s=9, color=COLOURS[0], alpha=0.35, linewidths=0)
        low, middle, high = kept.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=kept.dtype)).tolist()
        axes.barh(row, high - low, height=0.5, left=low, fill=False, edgecolor="black", linewidth=1)
        axes.plot([middle, middle], [row - 0.25, row + 0.25], color="black", linewidth=2)
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xlabel(across)
    return figure


def against_diagonal(
    x: torch.Tensor, y: torch.Tensor, gap: torch.Tensor, names: tuple[str, str, str], title: str
) -> Figure:
    """Points (x, y) [samples] with the diagonal on which they should lie, and a histogram of ``gap`` [samples], whose
    ends hold the twentieth that is largest; the three ``names`` are those of the axes.
    """
    figure = new_figure(7.2, 3.4)
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
    left.plot(ends, ends, color="black", linewidth=0.8, linestyle="--", label="equal")
    left.scatter(x.numpy(), y.numpy(), s=12, color=COLOURS[0], alpha=0.6, linewidths=0)
    left.set_xlabel(names[0])
    left.set_ylabel(names[1])
    left.set_title(title, fontsize=9)
    left.legend(fontsize=8, frameon=False)
    finite = gap[gap.isfinite()]
    bound = max(1.1 * float(finite.abs().quantile(0.95)), 1e-12) if len(finite) else 1.0
    inside = finite.clamp(-bound, bound).numpy()
    right.hist(inside, bins=31, range=(-bound, bound), color=COLOURS[0], edgecolor="white", linewidth=0.4)
    right.axvline(0, color="black", linewidth=0.8, linestyle="--")
    right.set_xlabel(names[2])
    right.set_ylabel("samples")
    return figure


def bars(intervals: Mapping[str, Bounds], title: str) -> Figure:
    """Statistics as points with their intervals."""
    figure = new_figure(5.6, 0.8 + 0.4 * len(intervals))
    axes = plain_axes(figure)
    for row, interval in enumerate(intervals.values()):
        axes.plot([interval.low, interval.high], [row, row], color=COLOURS[0], linewidth=1.4)
        axes.plot([interval.value], [row], marker="o", color=COLOURS[0])
        axes.annotate(f"{interval.value:.3f}", (interval.value, row), (0, 6), textcoords="offset points", fontsize=8)
    axes.set_yticks(range(len(intervals)), list(intervals))
    axes.invert_yaxis()
    axes.margins(y=0.3)
    axes.set_title(title, fontsize=9)
    return figure
