"""Pictures for files and notebooks: in go results, out come matplotlib figures (extra 'plot') that belong to no window.

    fxlrp.plots.tokens(result).savefig("tokens.png", dpi=200)

Red speaks for the explained output and blue against it, colours that colour-blind readers tell apart. In black and
white the signs of numbers say so, and where there are none hatching or a dashed outline of what is against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from fxlrp.engine.targets import Target
from fxlrp.errors import InputError
from fxlrp.evaluate.comparison import Comparison
from fxlrp.evaluate.figures import new_figure
from fxlrp.evaluate.perturbation import curves
from fxlrp.explain.model import ConvertedModel
from fxlrp.readout.heads import head_relevance
from fxlrp.report.figures import HATCH, colours, draw_image, plain
from fxlrp.report.numbers import correlation, signed
from fxlrp.report.panels import Array, Layout, SampleView, digest
from fxlrp.report.tokens import readable
from fxlrp.results.attribution import Attribution

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["agreement", "curves", "heads_by_tokens", "image", "layers_by_tokens", "tokens"]

LINE_INCHES = 7.0
CELL_INCHES = 0.42
DARK = "#1d4e79"
FAINT = 0.04
"""Below this share of the scale a negative cell is not hatched."""


def tokens(result: Attribution, sample: int = 0) -> Figure:
    """The text of one sample: each token on its colour, with its relevance below.

    Raises :class:`InputError` where the main input is no text, and for a sample that the batch does not have.
    """
    view = _view(result, sample)
    panel = view.panels[0]
    if panel.layout is not Layout.TOKENS:
        raise InputError("plots.tokens draws text. Use plots.image for an image, result.plot() for features.")
    numbers = [signed(float(value), panel.scale) for value in panel.values]
    texts = [piece.text for piece in panel.pieces]
    widths = [0.14 + max(0.105 * len(text), 0.075 * len(n)) for text, n in zip(texts, numbers, strict=True)]
    places, rows = _wrapped(widths)
    figure = new_figure(LINE_INCHES + 0.2, 0.58 * rows + 0.5)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(-0.1, LINE_INCHES + 0.1)
    axes.set_ylim(rows * 0.58 + 0.1, -0.4)
    axes.set_axis_off()
    axes.text(0, -0.12, _title(view), fontsize=9)
    from matplotlib.patches import Rectangle

    palette = colours()
    for text, number, value, width, (x, row) in zip(texts, numbers, panel.values, widths, places, strict=True):
        share = float(value) / (panel.scale or 1.0)
        box = Rectangle((x, row * 0.58), width - 0.05, 0.5, facecolor=palette((share + 1) / 2), edgecolor="#c8ccd4")
        box.set_linewidth(0.4)
        axes.add_patch(box)
        middle = x + (width - 0.05) / 2
        axes.text(middle, row * 0.58 + 0.21, plain(text), ha="center", va="center", fontsize=10)
        axes.text(middle, row * 0.58 + 0.39, number, ha="center", va="center", fontsize=7)
    return figure


def layers_by_tokens(result: Attribution, sample: int = 0) -> Figure:
    """Relevance at the outputs of modules, those of ``at=`` that have a vector for each token: a row per module.

    Each row has a colour scale of its own, whose largest ``|R|`` stands beside it. Raises :class:`InputError` where no
    such module was asked for.
    """
    view = _view(result, sample)
    if view.layers is None:
        raise InputError("There are no layers to draw: attribute with at=, such as at='bert.encoder.layer.*'.")
    layers = view.layers
    rows = [f"{name}  (max {signed(scale)[1:]})" for name, scale in zip(layers.names, layers.scales, strict=True)]
    figure, axes = _matrix_figure(len(layers.pieces), len(rows), max(map(len, rows)))
    _matrix(axes, layers.relative, rows, [piece.raw for piece in layers.pieces], 1.0)
    axes.set_title(f"{_title(view)}\nat {plain(layers.prefix)}*, each row on its own scale", fontsize=9, loc="left")
    return figure


def heads_by_tokens(
    lrp: ConvertedModel,
    inputs: Any,
    sample: int = 0,
    *,
    target: Target = None,
    tokenizer: Any = None,
    of: Literal["values", "outputs"] = "values",
) -> Figure:
    """Relevance by attention head and token: a matrix per attention, the first layer on top, all on one colour scale.

    ``of``: what heads take from tokens (``values``), or what they give to them (``outputs``); see
    :func:`fxlrp.readout.heads.head_relevance`, whose errors this raises.
    """
    heads = head_relevance(lrp.conversion, inputs, target=target, of=of)
    result = lrp.attribute(inputs, target=target, tokenizer=tokenizer)
    view = _view(result, sample)
    found = {place: relevance[sample].double().cpu().numpy() for place, relevance in heads.items()}
    length = max(values.shape[1] for values in found.values())
    names = result.tokens[sample] if result.tokens else []
    kept = [p for p in view.panels[0].places if p < length] if len(names) == length else list(range(length))
    texts = [piece.raw for piece in readable(names)] if len(names) == length else [str(p) for p in range(length)]
    scale = max(float(np.abs(values).max()) for values in found.values()) or 1.0
    count = sum(len(values) for values in found.values())
    figure, axes = _matrix_figure(len(kept), count, 12, len(found), [len(values) for values in found.values()])
    for number, (place, values) in enumerate(found.items()):
        own = kept if values.shape[1] == length else list(range(values.shape[1]))
        last = number == len(found) - 1
        columns = [texts[p] for p in own] if last and values.shape[1] == length else [""] * len(own)
        rows = [f"head {h}" for h in range(len(values))]
        _matrix(axes[number], values[:, own], rows, columns, scale, bar=figure if last else None)
        axes[number].set_title(plain(place), fontsize=8, loc="left")
    what = "taken from" if of == "values" else "given to"
    figure.suptitle(f"{_title(view)}: relevance that heads have {what} tokens", fontsize=9, x=0.02, ha="left")
    return figure


def image(
    result: Attribution, sample: int = 0, picture: Tensor | None = None, mask: Tensor | Array | None = None
) -> Figure:
    """Relevance of an image over the image in grey, on a colour scale that is centred at zero.

    picture: another image to draw below it [channels, height, width], as before normalisation. mask: [height, width],
    non-zero where relevance should be; its outline is drawn. Raises :class:`InputError` where relevance is none of an
    image, or picture or mask are of another size.
    """
    if picture is not None:
        size = result.image_size
        if size is None or picture.ndim != 3 or tuple(picture.shape[1:]) != size:
            raise InputError(f"A picture is [channels, *{size}], as the image; this one is {tuple(picture.shape)}.")
        result = replace(result, picture=picture[None].expand(len(result.explained), *picture.shape))
    view = _view(result, sample)
    panel = view.panels[0]
    if panel.layout is not Layout.IMAGE:
        raise InputError(
            "plots.image draws relevance by pixel or patch, which this result does not have; result.plot() draws it."
        )
    outline = None if mask is None else np.asarray(mask, dtype=float)
    if outline is not None and outline.shape != (result.image_size or panel.picture.shape):
        raise InputError(f"A mask is [height, width] of the image; this one is {outline.shape}.")
    figure = new_figure(4.6, 4.2)
    axes = figure.subplots()
    shown = draw_image(axes, panel, outline)
    axes.set_title(_title(view), fontsize=9)
    figure.colorbar(shown, ax=axes, shrink=0.8, label="relevance (against: dashed outline)")
    return figure


def agreement(comparison: Comparison) -> Figure:
    """The rank correlations between rulesets as a matrix with numbers; see :attr:`fxlrp.Comparison.agreement`."""
    names, rho = list(comparison.names), comparison.agreement.numpy()
    side = max(1.4, 0.62 * len(names))
    figure = new_figure(side + 1.9, side + 1.5)
    axes = figure.subplots()
    _matrix(axes, rho, names, names, 1.0, bar=figure, label="Spearman's rho", numbers=True)
    axes.set_title(f"agreement of rankings, {len(comparison.agreements)} samples", fontsize=9, loc="left")
    return figure


def _view(result: Attribution, sample: int) -> SampleView:
    count = len(result.explained)
    if not -count <= sample < count:
        raise InputError(f"sample={sample} is out of range: the batch has {count} samples.")
    return digest(result)[sample]


def _title(view: SampleView) -> str:
    return f"{plain(view.ruleset)} · {plain(view.label)} = {signed(view.explained)}"


def _wrapped(widths: Sequence[float]) -> tuple[list[tuple[float, int]], int]:
    """Left end and row of boxes of these widths, and how many rows they take."""
    places: list[tuple[float, int]] = []
    x, row = 0.0, 0
    for width in widths:
        if x and x + width > LINE_INCHES:
            x, row = 0.0, row + 1
        places.append((x, row))
        x += width
    return places, row + 1


def _matrix_figure(
    columns: int, rows: int, label: int, parts: int = 1, heights: Sequence[int] | None = None
) -> tuple[Figure, Any]:
    """A figure with axes (several, one above the other, where there are parts) of cells of one size."""
    width = 1.4 + 0.08 * label + max(2.6, CELL_INCHES * columns)
    figure = new_figure(width, 1.5 + 0.36 * rows + 0.3 * parts)
    return figure, figure.subplots(parts, height_ratios=heights) if heights and parts > 1 else figure.subplots()


def _matrix(
    axes: Axes,
    values: Array,
    rows: Sequence[str],
    columns: Sequence[str],
    scale: float,
    bar: Figure | None = None,
    label: str = "relevance",
    *,
    numbers: bool = False,
) -> None:
    """Draw values [rows, columns] between -scale and scale: with their numbers, or with negative ones hatched."""
    shown = axes.imshow(values, cmap=colours(), vmin=-scale, vmax=scale, aspect="auto")
    for row, column in np.ndindex(*values.shape):
        value = float(values[row, column])
        if numbers:
            text = "–" if np.isnan(value) else correlation(value)
            axes.text(column, row, text, ha="center", va="center", fontsize=8)
        elif value < -FAINT * scale:
            _hatch(axes, row, column, -value / scale)
    axes.set_yticks(range(len(rows)), [plain(name) for name in rows], fontsize=8)
    axes.set_xticks(range(len(columns)), [plain(name) for name in columns], fontsize=8, rotation=60, ha="right")
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#ffffff", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    if bar is not None:
        bar.colorbar(shown, ax=axes.figure.axes, shrink=0.8, label=label)


def _hatch(axes: Axes, row: int, column: int, strength: float) -> None:
    """Hatch a cell of a matrix, the bolder the stronger."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    colour = to_rgba(DARK, 0.3 + 0.7 * min(1.0, strength))
    corner = (column - 0.5, row - 0.5)
    axes.add_patch(Rectangle(corner, 1.0, 1.0, fill=False, edgecolor=colour, linewidth=0, hatch=HATCH))
