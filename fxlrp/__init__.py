"""fxlrp explains any PyTorch model: it rewrites the model's graph so that one backward pass is layer-wise
relevance propagation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from fxlrp.attribution import Attribution, Comparison
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


def compare(
    model: nn.Module,
    inputs: Any,
    rulesets: Sequence[str | Path | Mapping[str, Any] | Ruleset],
    target: Target = None,
    **options: Any,
) -> Comparison:
    """The same inputs under several rulesets; the model is captured once.

    Results are keyed by ruleset name; a second one of the same name gets its number behind it. A ``reference`` is for
    those rulesets that compare with one.
    """
    results: dict[str, Attribution] = {}
    first = convert(model, rulesets[0])
    for rules in rulesets:
        lrp = first if not results else first.with_ruleset(rules)
        name = lrp.ruleset.name
        same = sum(key == name or key.startswith(f"{name} (") for key in results)
        known = options if lrp.ruleset.compares else {k: v for k, v in options.items() if k != "reference"}
        results[f"{name} ({same + 1})" if same else name] = lrp.attribute(inputs, target=target, **known)
    return Comparison(results)


def __getattr__(name: str) -> Any:
    """``fxlrp.testing`` on first use: it is public, and nothing else needs it."""
    if name == "testing":
        return import_module("fxlrp.testing")
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
