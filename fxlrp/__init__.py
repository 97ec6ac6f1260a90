"""fxlrp explains any PyTorch model: it rewrites the model's graph so that one backward pass is layer-wise
relevance propagation.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fxlrp.engine.ledger import Entry, Ledger
from fxlrp.engine.targets import Target
from fxlrp.errors import (
    CaptureError,
    FxlrpError,
    InputError,
    MissingExtraError,
    PatternError,
    RetraceWarning,
    RulesetError,
    SharedRelevanceWarning,
    TargetError,
    TrainingModeError,
    UncoveredOperatorError,
    VersionError,
)
from fxlrp.explain.model import ConvertedModel, convert
from fxlrp.planning.plan import Plan
from fxlrp.results.attribution import Attribution
from fxlrp.results.generation import GenerationAttribution
from fxlrp.results.views import provided_by, view
from fxlrp.spec.ruleset import Ruleset, ruleset, rulesets

if TYPE_CHECKING:
    from fxlrp.evaluate.comparison import Comparison, compare

__version__ = "0.1.0"

provided_by("fxlrp.report")
#: Public names and the modules that hold them, loaded on first use: nothing else needs these.
_NAMES = dict.fromkeys(("Comparison", "compare"), "fxlrp.evaluate.comparison")
_MODULES = {name: f"fxlrp.{name}" for name in ("evaluate", "shipped", "testing")} | {"plots": "fxlrp.report.plots"}


def attribute(
    model: nn.Module,
    given: Any = None,
    /,
    *,
    ruleset: str | Path | Mapping[str, Any] | Ruleset,
    target: Target = None,
    **options: Any,
) -> Attribution:
    """Convert and attribute in one call; ``options`` are those of :meth:`ConvertedModel.attribute`."""
    return convert(model, ruleset).attribute(given, target=target, **options)


def __getattr__(name: str) -> Any:
    """Public modules and names on first use."""
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name in _NAMES:
        found = globals()[name] = getattr(import_module(_NAMES[name]), name)
        return found
    raise AttributeError(f"module 'fxlrp' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Also what is loaded on first use."""
    return sorted({*globals(), *_MODULES, *_NAMES})


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
    "PatternError",
    "Plan",
    "RetraceWarning",
    "Ruleset",
    "RulesetError",
    "SharedRelevanceWarning",
    "TargetError",
    "TrainingModeError",
    "UncoveredOperatorError",
    "VersionError",
    "attribute",
    "compare",
    "convert",
    "ruleset",
    "rulesets",
    "view",
]
