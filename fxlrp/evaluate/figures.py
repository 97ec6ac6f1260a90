"""Plots of evaluations: in go evaluations of one protocol, one a ruleset, out comes a matplotlib figure.

Lines differ in dash and marker as well as in colour (Okabe and Ito's, which colour-blind readers tell apart), so that a
figure can be read in black and white.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import torch

from fxlrp.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fxlrp.evaluate.perturbation import PerturbationCurves
    from fxlrp.evaluate.protocol import Evaluation

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c8c8c")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


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


def curves(evaluations: Sequence[PerturbationCurves], draws: int = 500) -> Figure:
    """The mean curve of each evaluation over the fractions, with the band of its 95 % bootstrap intervals."""
    figure = new_figure(5.6, 3.6)
    axes = plain_axes(figure)
    styles = zip(cycle(COLOURS), cycle(DASHES), cycle(MARKERS), strict=False)
    for evaluation, (colour, dash, marker) in zip(evaluations, styles, strict=False):
        x, y = evaluation.fractions.numpy(), evaluation.curve.numpy()
        low, high = (bound.numpy() for bound in band(evaluation.curves, draws))
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        name = "random" if evaluation.protocol.order == "random" else evaluation.ruleset.name
        label = f"{name} ({evaluation.auac:.3f})"
        axes.plot(x, y, color=colour, linestyle=dash, marker=marker, markersize=4, linewidth=1.4, label=label)
    protocol = evaluations[0].protocol
    done = "put back" if protocol.mode == "add" else "replaced"
    axes.set_xlabel(f"fraction of units {done}, {protocol.order} relevant first")
    axes.set_ylabel(f"{protocol.watch} (mean of {len(evaluations[0])} samples)")
    axes.legend(title="area under the curve", fontsize=8, title_fontsize=8, frameon=False)
    return figure


def band(values: torch.Tensor, draws: int, level: float = 0.95, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Bootstrap bounds [F] of the mean over samples of values [samples, F]."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(values), (draws, len(values)), generator=generator)
    means = torch.stack([values[row].mean(0) for row in rows])
    tail = (1 - level) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=means.dtype), dim=0)
    return low, high


def bars(evaluation: Evaluation) -> Figure:
    """The statistics of an evaluation as points with their intervals."""
    intervals = evaluation.intervals()
    figure = new_figure(5.6, 0.8 + 0.4 * len(intervals))
    axes = plain_axes(figure)
    for row, interval in enumerate(intervals.values()):
        axes.plot([interval.low, interval.high], [row, row], color=COLOURS[0], linewidth=1.4)
        axes.plot([interval.value], [row], marker="o", color=COLOURS[0])
        axes.annotate(f"{interval.value:.3f}", (interval.value, row), (0, 6), textcoords="offset points", fontsize=8)
    axes.set_yticks(range(len(intervals)), list(intervals))
    axes.invert_yaxis()
    axes.margins(y=0.3)
    axes.set_title(f"{type(evaluation.protocol).__name__} · {evaluation.ruleset.name}", fontsize=9)
    return figure
