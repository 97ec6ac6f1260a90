"""Attributions as plain values: in goes an attribution, out come dicts, lists, strings and numbers, ready for
JSON.
"""

from __future__ import annotations

import math
from typing import Any

from fxlrp.report.panels import Array, LayerMap, LedgerSheet, Panel, SampleView, digest
from fxlrp.results.attribution import Attribution


def as_plain(attribution: Attribution) -> dict[str, Any]:
    """Return ``{"ruleset": {...}, "samples": [...]}`` with every number a view shows, in full precision.

    A sample holds ``label``, ``explained``, ``inputs`` (per attributed input its ``relevance``, and
    ``tokens`` for a text), ``ledger`` and ``layers`` (both None when not asked for). Numbers that JSON cannot
    spell (NaN, infinity) become None.
    """
    ruleset = attribution.ruleset
    return {
        "ruleset": {"name": ruleset.name, "version": ruleset.version, "hash": ruleset.hash},
        "samples": [_sample(view) for view in digest(attribution)],
    }


def _sample(view: SampleView) -> dict[str, Any]:
    return {
        "label": view.label,
        "explained": _number(view.explained),
        "inputs": {panel.name: _panel(panel) for panel in view.panels},
        "ledger": None if view.ledger is None else _ledger(view.ledger),
        "layers": None if view.layers is None else _layers(view.layers),
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _numbers(values: Array) -> list[Any]:
    """Nest like ``values``: one number per position, a list of them per row of an image."""
    return [_numbers(row) for row in values] if values.ndim > 1 else [_number(float(v)) for v in values]


def _panel(panel: Panel) -> dict[str, Any]:
    plain: dict[str, Any] = {"layout": panel.layout.value, "relevance": _numbers(panel.values)}
    if panel.pieces:
        plain["tokens"] = [piece.raw for piece in panel.pieces]
    return plain


def _ledger(sheet: LedgerSheet) -> dict[str, Any]:
    return {
        "entries": [
            {"source": source, "kind": group.kind, "leak": group.leak, "amount": _number(amount)}
            for group in sheet.groups
            for source, amount in group.sources
        ],
        "total": _number(sheet.total),
        "gap": _number(sheet.gap),
    }


def _layers(layers: LayerMap) -> dict[str, list[Any]]:
    return {layers.prefix + name: _numbers(row) for name, row in zip(layers.names, layers.values, strict=True)}
