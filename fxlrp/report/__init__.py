"""Views of an attribution or a comparison: an HTML page, a terminal heat map, a matplotlib figure, a data
frame and plain values for JSON.

Importing the package registers its views with :mod:`fxlrp.results.views`. The functions beneath them are
pure and take a sequence of attributions of the same inputs, one per ruleset.
"""

from fxlrp.report import evaluations, generation
from fxlrp.report.html import render_fragment, render_html
from fxlrp.report.json import as_plain
from fxlrp.report.terminal import render_terminal
from fxlrp.report.views import (
    comparison_as_plain,
    plot,
    print_comparison,
    show,
    to_dataframe,
    to_html,
    to_notebook,
)

__all__ = [
    "as_plain",
    "comparison_as_plain",
    "evaluations",
    "generation",
    "plot",
    "print_comparison",
    "render_fragment",
    "render_html",
    "render_terminal",
    "show",
    "to_dataframe",
    "to_html",
    "to_notebook",
]
