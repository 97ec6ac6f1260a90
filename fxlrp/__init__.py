"""fxlrp explains any PyTorch model: it rewrites the model's graph so that one backward pass is layer-wise
relevance propagation.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from fxlrp.attribution import Attribution
from fxlrp.comparison import Comparison, compare
from fxlrp.errors import (
    CaptureError,
    FxlrpError,
    InputError,
    MissingExtraError,
    RetraceWarning,
    RulesetError,
    TargetError,
    TrainingModeError,
    UncoveredOperatorError,
)
from fxlrp.generated import GenerationAttribution
from fxlrp.ledger import Entry, Ledger
from fxlrp.model import ConvertedModel, convert
from fxlrp.plan import Plan
from fxlrp.rulesets import Ruleset, ruleset, rulesets
from fxlrp.targets import Target

__version__ = "0.1.0"


def attribute(
    model: nn.Module,
    inputs: Any,
    *,
    ruleset: str | Path | Mapping[str, Any] | Ruleset,
    target: Target = None,
    **options: Any,
) -> Attribution:
    """Convert and attribute in one call; ``options`` are those of :meth:`ConvertedModel.attribute`."""
    return convert(model, ruleset).attribute(inputs, target=target, **options)


def __getattr__(name: str) -> Any:
    """Public modules on first use: nothing else needs them."""
    if name in ("evaluate", "plots", "shipped", "testing"):
        return import_module(f"fxlrp.{name}")
    raise AttributeError(f"module 'fxlrp' has no attribute '{name}'")


__all__ = [
    "Attribution",
    "CaptureError",
    "Comparison",
    "ConvertedModel",
    "Entry",
    "FxlrpError",
    "GenerationAttribution",
    "InputError",
    "Ledger",
    "MissingExtraError",
    "Plan",
    "RetraceWarning",
    "Ruleset",
    "RulesetError",
    "TargetError",
    "TrainingModeError",
    "UncoveredOperatorError",
    "attribute",
    "compare",
    "convert",
    "ruleset",
    "rulesets",
]
