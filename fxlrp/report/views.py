"""The views of an attribution and of a comparison, both of which are a sequence of attributions to what draws them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fxlrp.evaluate.comparison import Comparison
from fxlrp.report.dataframe import tabulate
from fxlrp.report.figures import draw
from fxlrp.report.html import render_fragment, render_html
from fxlrp.report.json import as_plain
from fxlrp.report.methods import Methods, methods_of
from fxlrp.report.methods import as_plain as methods_as_plain
from fxlrp.report.terminal import render_terminal
from fxlrp.report.verdicts import print_methods
from fxlrp.results.attribution import Attribution
from fxlrp.results.files import write_whole
from fxlrp.results.views import view

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Result = Attribution | Comparison


def _side_by_side(result: Result) -> tuple[Attribution, ...]:
    return tuple(result.attributions.values()) if isinstance(result, Comparison) else (result,)


def _methods(result: Result) -> Methods | None:
    return methods_of(result) if isinstance(result, Comparison) else None


@view("show", Attribution, Comparison)
def show(result: Result) -> None:
    """Print the heat map, the ledger if there is one, and how rulesets compare, to the terminal."""
    if isinstance(result, Comparison):
        print_comparison(result, Console())
    else:
        render_terminal((result,), Console())


def print_comparison(comparison: Comparison, console: Console, *, maps: bool = True) -> None:
    """Print how rulesets compare, after the heat maps of each unless these are left out."""
    if maps:
        render_terminal(_side_by_side(comparison), console)
    if methods := methods_of(comparison, pictures=False):
        print_methods(methods, console)


def comparison_as_plain(comparison: Comparison) -> dict[str, Any]:
    """``{"attributions": [...], "agreement": {...}, "evaluations": [...], "left_out": {...}}`` for JSON;
    the last three where two or more rulesets are compared, see :func:`fxlrp.report.as_plain`.
    """
    methods = methods_of(comparison, pictures=False)
    shown = {"attributions": [as_plain(each) for each in _side_by_side(comparison)]}
    return {**shown, **methods_as_plain(methods)} if methods else shown


@view("to_html", Attribution, Comparison)
def to_html(result: Result, path: str | Path | None = None, title: str = "Relevance report") -> str:
    """Return the report as a self-contained HTML page, and write it to ``path`` if one is given.

    Raises:
        FileError: ``path`` cannot be written (an ``OSError``).
    """
    page = render_html(_side_by_side(result), title, _methods(result))
    if path is not None:
        write_whole(path, page)
    return page


@view("to_notebook", Attribution, Comparison)
def to_notebook(result: Result) -> str:
    """Return the report as one ``<div>`` with its own style, for a notebook's cell."""
    return render_fragment(_side_by_side(result), methods=_methods(result))


@view("plot", Attribution, Comparison)
def plot(result: Result) -> Figure:
    """Return a matplotlib figure of the main input's relevance: a row per sample, a column per ruleset.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return draw(_side_by_side(result))


@view("to_dataframe", Attribution, Comparison)
def to_dataframe(result: Result) -> pd.DataFrame:
    """Return one row per ruleset, sample, attributed input and position; see
    :func:`fxlrp.report.dataframe.tabulate`.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    return tabulate(_side_by_side(result))
