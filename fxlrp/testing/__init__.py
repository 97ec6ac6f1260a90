"""Property tests for explanations.

- :func:`fits`: whether a ruleset fits a model and a check may be asked of it, and if not, why.
- :func:`check_conservation`: a model under a ruleset loses no relevance and keeps its outputs.
- :func:`check_derivative`: the gradient is the derivative, along random directions, which no ledger can show.
- :func:`check_rule`: a rule keeps what it declares, on random operations of every class it stands on.
- :func:`propagate`: a slow second opinion on any attribution, :func:`largest_difference` to compare with it, under
  :func:`at_inputs`, the ruleset with relevance read at the inputs.
- :func:`graphs`: a Hypothesis strategy of small random models; :func:`spellings`: pairs that compute one function
  in two ways; :func:`realistic`: weights at a trained model's scale.
"""

from __future__ import annotations

from typing import Any

from fxlrp.errors import MissingExtraError
from fxlrp.testing.blocks import Block, Kind
from fxlrp.testing.checks import ConservationReport, at_inputs, check_conservation
from fxlrp.testing.derivatives import DerivativeReport, check_derivative
from fxlrp.testing.fit import Fit, fits
from fxlrp.testing.kinds import KINDS
from fxlrp.testing.oracle import largest_difference, propagate
from fxlrp.testing.rule_checks import RuleReport, check_rule
from fxlrp.testing.spellings import Spelling, spellings
from fxlrp.testing.weights import realistic

try:
    from fxlrp.testing.graphs import RandomGraph, Step, graphs
except MissingExtraError as error:
    # Random graphs alone need Hypothesis: the checks, and the command that runs one, do without.
    _missing = error

    def __getattr__(name: str) -> Any:
        if name in ("RandomGraph", "Step", "graphs"):
            raise _missing
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "KINDS",
    "Block",
    "ConservationReport",
    "DerivativeReport",
    "Fit",
    "Kind",
    "RandomGraph",
    "RuleReport",
    "Spelling",
    "Step",
    "at_inputs",
    "check_conservation",
    "check_derivative",
    "check_rule",
    "fits",
    "graphs",
    "largest_difference",
    "propagate",
    "realistic",
    "spellings",
]
