"""Views of an attribution of generated tokens: in it goes, out come a page, a terminal table, a figure, a data frame
and plain values.

All show one matrix per sample and attributed input of tokens: tokens before as rows, generated tokens as columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fxlrp.errors import InputError, MissingExtraError
from fxlrp.report.figures import colours, plain
from fxlrp.report.html import _environment
from fxlrp.report.numbers import signed
from fxlrp.report.panels import Array
from fxlrp.report.terminal import _style
from fxlrp.report.tokens import Piece, readable
from fxlrp.results.files import write_whole
from fxlrp.results.generation import GenerationAttribution
from fxlrp.results.harmless import as_cell, put
from fxlrp.results.views import view

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

STRONGEST = 3
"""So many tokens before are named for each generated token in the terminal."""
COLUMNS = ("sample", "input", "position", "token", "generated_position", "generated_token", "relevance")


@dataclass(frozen=True)
class Matrix:
    """Relevance of the tokens of one input (rows) to the generated ones (columns); None at tokens not yet there."""

    name: str
    rows: tuple[Piece, ...]
    places: tuple[int, ...]
    values: Array
    seen: NDArray[np.bool_]

    def cell(self, row: int, column: int) -> float | None:
        """The relevance, None where the generated token cannot see the row's."""
        return float(self.values[row, column]) if self.seen[row, column] else None

    @property
    def scales(self) -> list[float]:
        """The largest ``|R|`` of each column."""
        return [float(v) for v in np.abs(self.values).max(0, initial=0.0)]


@dataclass(frozen=True)
class GeneratedText:
    """One sample: its generated tokens that are no padding, and a matrix for every attributed input of tokens."""

    index: int
    columns: tuple[Piece, ...]
    labels: tuple[str, ...]
    explained: tuple[float, ...]
    matrices: tuple[Matrix, ...]


def digest_generation(result: GenerationAttribution) -> tuple[GeneratedText, ...]:
    """Every sample without padding. Raises :class:`InputError` where no input is of tokens."""
    return tuple(_sample(result, sample) for sample in range(len(result.generated_ids)))


def _sample(result: GenerationAttribution, sample: int) -> GeneratedText:
    kept = (~result.padding[sample]).nonzero()[:, 0].tolist()
    spelled = _spelled(result.generated_tokens, result.generated_ids[sample].tolist(), sample)
    matrices = tuple(_matrix(result, name, sample, kept) for name, value in result.inputs.items() if value.ndim == 3)
    if not matrices:
        raise InputError(f"'{result.main}' is not text, so there is no matrix of tokens to show: read .relevance.")
    return GeneratedText(
        sample,
        readable([spelled[k] for k in kept]),
        tuple(result.label(sample, k) for k in kept),
        tuple(float(result.explained[sample, k]) for k in kept),
        matrices,
    )


def _spelled(names: Sequence[Sequence[str]] | None, ids: Sequence[int], sample: int) -> Sequence[str]:
    return [str(i) for i in ids] if names is None else names[sample]


def _matrix(result: GenerationAttribution, name: str, sample: int, kept: list[int]) -> Matrix:
    values = result.inputs[name][sample].detach().cpu().double().numpy()[:, kept]
    places = np.arange(len(values))
    mask = result.attention_mask
    if name == result.stream:
        # The generated tokens behind padding columns are padding themselves.
        places = places[: result.start + max(len(kept) - 1, 0)]
    if mask is not None and name == result.main:
        places = places[mask[sample].cpu().numpy().astype(bool)[: len(places)]]
    names = result.names.get(name)
    rows = readable([names[sample][p] if names else f"#{p}" for p in places])
    ends = result.start + np.array(kept)
    seen = (places[:, None] < ends) | (name != result.stream)
    return Matrix(name, rows, tuple(int(p) for p in places), values[places], seen)


@view("show", GenerationAttribution)
def show_generation(result: GenerationAttribution, console: Console | None = None) -> None:
    """Print, for each generated token, its explained logit and the tokens before with the largest ``|R|``."""
    console = console or Console()
    for sample in digest_generation(result):
        for matrix in sample.matrices:
            table = Table(box=None, pad_edge=False, header_style="dim", title=matrix.name, title_justify="left")
            for name in ("generated", "explained", "most relevant tokens before"):
                table.add_column(name, overflow="fold", justify="right" if name == "explained" else "left")
            for column, label in enumerate(sample.labels):
                table.add_row(Text(label), signed(sample.explained[column]), _strongest(matrix, column))
            put(console, table)


def _strongest(matrix: Matrix, column: int) -> Text:
    values, scale = matrix.values[:, column], matrix.scales[column]
    seen = [r for r in np.argsort(-np.abs(values), kind="stable") if matrix.seen[r, column]]
    parts = [
        Text(f" {matrix.rows[r].text} {signed(float(values[r]), scale)} ", _style(float(values[r]), scale))
        for r in seen[:STRONGEST]
    ]
    return Text(" ").join(parts)


@view("to_html", GenerationAttribution)
def generation_html(
    result: GenerationAttribution, path: str | Path | None = None, title: str = "What each generated token rests on"
) -> str:
    """A self-contained page without script: a generated token is selected with pointer or keyboard, and the tokens
    before are coloured by their relevance to it; below stands the whole matrix. Written to ``path`` if one is given.
    """
    page = (
        _environment()
        .get_template("generation.html.j2")
        .render(title=title, ruleset=result.ruleset, rulesets=[result.ruleset], samples=digest_generation(result))
    )
    if path is not None:
        write_whole(path, page)
    return page


@view("plot", GenerationAttribution)
def draw_generation(result: GenerationAttribution) -> Figure:
    """A matplotlib figure: one picture per sample and input, tokens before by generated tokens, colours centred at 0.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    pictures = [(sample, matrix) for sample in digest_generation(result) for matrix in sample.matrices]
    heights = [0.9 + 0.2 * len(matrix.rows) for _, matrix in pictures]
    widest = max(len(sample.columns) for sample, _ in pictures)
    figure = Figure(figsize=(2.5 + 0.25 * widest, sum(heights)), layout="constrained")
    palette = colours()
    palette.set_bad("#e4e6ea")
    grid = figure.subplots(len(pictures), 1, squeeze=False, height_ratios=heights)
    for (sample, matrix), axes in zip(pictures, grid[:, 0], strict=True):
        limit = max(matrix.scales, default=0.0) or 1.0
        shown = np.ma.masked_where(~matrix.seen, matrix.values)
        image = axes.imshow(shown, cmap=palette, vmin=-limit, vmax=limit, aspect="auto")
        axes.set_xticks(range(len(sample.columns)), [plain(p.text) for p in sample.columns], rotation=90, fontsize=8)
        axes.set_yticks(range(len(matrix.rows)), [plain(p.text) for p in matrix.rows], fontsize=8)
        axes.set_title(f"{result.ruleset.name}: {matrix.name}", fontsize=9)
        figure.colorbar(image, ax=axes, label="relevance")
    return figure


@view("to_dataframe", GenerationAttribution)
def tabulate_generation(result: GenerationAttribution) -> pd.DataFrame:
    """One row per sample, input, token before and generated token that sees it, with the columns ``COLUMNS``.

    What a spreadsheet would take for a formula has an apostrophe in front.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingExtraError("pandas", "data") from error
    return pd.DataFrame(rows(result), columns=list(COLUMNS))


def rows(result: GenerationAttribution) -> Iterator[tuple[Any, ...]]:
    """The rows of the table: values of the columns ``COLUMNS``."""
    for sample in digest_generation(result):
        for matrix in sample.matrices:
            for r, before in enumerate(matrix.rows):
                for c, piece in enumerate(sample.columns):
                    if (value := matrix.cell(r, c)) is not None:
                        place = (sample.index, as_cell(matrix.name), matrix.places[r], as_cell(before.raw))
                        yield (*place, c, as_cell(piece.raw), value)


def generation_as_plain(result: GenerationAttribution) -> dict[str, Any]:
    """Every number that a view shows, in full precision, ready for JSON: None at tokens that are not seen."""
    return {
        "ruleset": {"name": result.ruleset.name, "version": result.ruleset.version, "hash": result.ruleset.hash},
        "samples": [
            {
                "generated": [piece.raw for piece in sample.columns],
                "explained": list(sample.explained),
                "inputs": {
                    matrix.name: {
                        "tokens": [piece.raw for piece in matrix.rows],
                        "relevance": [
                            [matrix.cell(r, c) for c in range(len(sample.columns))] for r in range(len(matrix.rows))
                        ],
                    }
                    for matrix in sample.matrices
                },
            }
            for sample in digest_generation(result)
        ],
    }
