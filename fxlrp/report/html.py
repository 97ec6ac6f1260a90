"""The HTML report: in go attributions of the same inputs, out comes one self-contained page.

The page needs neither network nor script: its style is in it, pictures are ``data:`` addresses, values on
hover are ``title`` texts. Everything that comes from a model, a tokenizer or a ruleset passes through
jinja2's autoescape, and a content security policy forbids whatever could slip through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from urllib.parse import urlsplit

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from fxlrp.report.bars import Chart, from_zero, waterfall
from fxlrp.report.methods import Methods, whiskers
from fxlrp.report.numbers import correlation, share, signed, statistic
from fxlrp.report.panels import LayerMap, LedgerGroup, LedgerSheet, Panel, SampleView, digest, union
from fxlrp.report.pixels import overlay_data_uri, png_data_uri
from fxlrp.report.tokens import Piece
from fxlrp.results.attribution import Attribution

NUMBERED_TOKENS = 40
"""Up to this many tokens, each shows its value below it; longer texts show it on hover and in the value
table.
"""
MAPPED_TOKENS = 96
"""Up to this many columns a layer map is a table of cells with values on hover; beyond, it is a picture."""
LISTED_FEATURES = 30
"""So many features, the largest by ``|R|``, get a bar of their own."""
LISTED_SOURCES = 40
"""So many sources of one kind, the largest, are listed in a ledger."""
CLOSED = 1e-4
"""A ledger whose gap is below this share of the explained value is called closed (float32 models round)."""


@dataclass(frozen=True)
class _Sample:
    """One sample under every ruleset, in the order the attributions came in."""

    views: tuple[SampleView, ...]

    @property
    def first(self) -> SampleView:
        return self.views[0]

    @property
    def panels(self) -> list[list[tuple[SampleView, Panel]]]:
        """For each attributed input, its panel under each ruleset."""
        named: dict[str, list[tuple[SampleView, Panel]]] = {}
        for view in self.views:
            for panel in view.panels:
                named.setdefault(panel.name, []).append((view, panel))
        return list(named.values())

    @property
    def ledgers(self) -> list[tuple[SampleView, LedgerSheet]]:
        return [(view, view.ledger) for view in self.views if view.ledger is not None]

    @property
    def maps(self) -> list[tuple[SampleView, LayerMap]]:
        return [(view, view.layers) for view in self.views if view.layers is not None]


def _web_address(url: str | None) -> str | None:
    """Return ``url`` if it is a web address: a ruleset may come from anywhere, and ``javascript:`` is an
    address too.
    """
    try:
        parts = urlsplit(url or "")
    except ValueError:  # "https://[bad"
        return None
    return url if parts.scheme in {"http", "https"} and parts.netloc else None


def _sheet_chart(sheet: LedgerSheet) -> Chart:
    return waterfall([group.amount for group in sheet.groups], sheet.total)


def _kinds(ledgers: Sequence[tuple[SampleView, LedgerSheet]]) -> list[tuple[str, bool, list[float | None]]]:
    """Rows of the overview of several ledgers: kind, leak, and the amount under each ruleset (None: no such
    entry).
    """
    groups: dict[tuple[bool, str], dict[int, LedgerGroup]] = {}
    for column, (_, sheet) in enumerate(ledgers):
        for group in sheet.groups:
            groups.setdefault((group.leak, group.kind), {})[column] = group
    # Leaks last; within each part the order of first appearance, which is by size under the first ruleset.
    rows = sorted(groups.items(), key=lambda row: row[0][0])
    return [
        (kind, leak, [found[n].amount if n in found else None for n in range(len(ledgers))])
        for (leak, kind), found in rows
    ]


def _closes(sheet: LedgerSheet) -> bool:
    return abs(sheet.gap) <= CLOSED * abs(sheet.explained)


def _leading(panel: Panel) -> list[int]:
    """Positions of the features with the largest ``|R|``, largest first."""
    order = np.argsort(-np.abs(panel.values), kind="stable")
    return [int(position) for position in order[:LISTED_FEATURES]]


def _feature_chart(panel: Panel) -> Chart:
    return from_zero([float(panel.values[position]) for position in _leading(panel)])


def _union(rows: Sequence[tuple[SampleView, Panel]]) -> list[tuple[int, Piece]]:
    """Place and text of every token that some panel shows, in the order of the input."""
    return union([panel for _, panel in rows])


def _image(panel: Panel) -> str:
    """The relevance of an image, over the image where that is known."""
    return png_data_uri(panel.picture) if panel.backdrop is None else overlay_data_uri(panel.picture, panel.backdrop)


def _original(panel: Panel) -> str:
    """The image that was explained, as pale as below its relevance."""
    assert panel.backdrop is not None
    return overlay_data_uri(np.zeros_like(panel.backdrop), panel.backdrop)


def _strength(value: float, scale: float) -> str:
    """The opacity of a value's colour: ``|value| / scale``."""
    return f"{min(1.0, abs(value) / scale):.3f}" if scale else "0"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fxlrp.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        signed=signed,
        share=share,
        strength=_strength,
        web_address=_web_address,
        picture=png_data_uri,
        image=_image,
        original=_original,
        leading=_leading,
        feature_chart=_feature_chart,
        sheet_chart=_sheet_chart,
        kinds=_kinds,
        closes=_closes,
        union=_union,
        correlation=correlation,
        statistic=statistic,
        whiskers=whiskers,
    )
    environment.globals.update(
        numbered_tokens=NUMBERED_TOKENS,
        mapped_tokens=MAPPED_TOKENS,
        listed_sources=LISTED_SOURCES,
    )
    return environment


def _render(template: str, attributions: Sequence[Attribution], title: str, methods: Methods | None) -> str:
    if not attributions:
        raise ValueError("nothing to report: the sequence of attributions is empty")
    digests = [digest(attribution) for attribution in attributions]
    if len({len(views) for views in digests}) > 1:
        raise ValueError("attributions shown side by side must be of the same batch")
    samples = [_Sample(views) for views in zip(*digests, strict=True)]
    rulesets = [attribution.ruleset for attribution in attributions]
    page = _environment().get_template(template)
    return page.render(title=title, rulesets=rulesets, samples=samples, methods=methods)


def render_html(
    attributions: Sequence[Attribution], title: str = "Relevance report", methods: Methods | None = None
) -> str:
    """Return a complete, self-contained HTML page about ``attributions``.

    ``attributions`` explain the same inputs, one per ruleset; they are shown side by side. Each sample of the
    batch gets its tokens (or pixels, or features) coloured by relevance, its ledger, and a layers x tokens
    map where modules were tapped. ``methods`` says how the rulesets compare, after all samples.

    Raises:
        ValueError: ``attributions`` is empty, or they are not of the same batch size.
    """
    return _render("page.html.j2", attributions, title, methods)


def render_fragment(attributions: Sequence[Attribution], title: str = "", methods: Methods | None = None) -> str:
    """Return the report as one ``<div>`` with its style, to be placed inside another page such as a notebook.

    Takes and raises what :func:`render_html` does.
    """
    return _render("fragment.html.j2", attributions, title, methods)
