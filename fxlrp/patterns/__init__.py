"""Patterns: sub-structures that rulesets speak of, written as the torch code they look for."""

from fxlrp.patterns import activations, attention, cells, gates, norms, recurrence
from fxlrp.patterns.language import PATTERNS, Pattern, chain, either, part, pattern
from fxlrp.patterns.matcher import Match, NearMiss, find

__all__ = [
    "PATTERNS",
    "Match",
    "NearMiss",
    "Pattern",
    "activations",
    "attention",
    "cells",
    "chain",
    "either",
    "find",
    "gates",
    "norms",
    "part",
    "pattern",
    "recurrence",
]
