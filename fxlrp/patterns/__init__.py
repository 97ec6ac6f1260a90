"""Patterns: sub-structures that rulesets speak of, written as the torch code they look for."""

from fxlrp.patterns import activations, attention, cells, gates, norms, recurrence
from fxlrp.patterns.forms import find, graph_of
from fxlrp.patterns.language import PATTERNS, Pattern, any_axis, chain, either, part, pattern, registered
from fxlrp.patterns.matcher import Match, NearMiss

__all__ = [
    "PATTERNS",
    "Match",
    "NearMiss",
    "Pattern",
    "activations",
    "any_axis",
    "attention",
    "cells",
    "chain",
    "either",
    "find",
    "gates",
    "graph_of",
    "norms",
    "part",
    "pattern",
    "recurrence",
    "registered",
]
