"""Checks that a model under a ruleset keeps its promises: values equal, every unit of relevance accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.capture import torch_private as private
from fxlrp.engine.ledger import Ledger
from fxlrp.engine.targets import Target
from fxlrp.errors import FxlrpError, InputError, visible
from fxlrp.explain.model import ConvertedModel, convert
from fxlrp.graph.nodes import tensor_value
from fxlrp.planning.plan import Plan
from fxlrp.spec.readings import InputReading
from fxlrp.spec.ruleset import Ruleset
from fxlrp.spec.ruleset import ruleset as load

EXACT, ROUNDED = 1e-9, 1e-5
VALUE_EXACT = 1e-12  # an operation that had to be re-associated
#: A sum is only as exact as its largest terms: 4,500 epsilon of float64 times 1e-9, 8 epsilon of float32 times 1e-5.
EXACT_FLOOR, ROUNDED_FLOOR = 1e-3, 0.1


@dataclass(frozen=True)
class ConservationReport:
    """What :func:`check_conservation` found. Print it to see where the relevance went.

    ``gap`` is the largest |explained - sum of ledger entries| of a sample, relative to max(|explained|, floor x
    sum |entries|): a logit that happens to lie near zero is a sum of large entries that cancel, and such a
    sum is only as exact as they are. The floor is 1e-3 in float64 and 0.1 where a value is of lower precision.
    ``max_value_error`` is the largest deviation of an output from the model's own, relative to the largest output.
    """

    ruleset: str
    gap: float
    tolerance: float
    values_equal: bool
    max_value_error: float
    ledger: Ledger

    @property
    def passed(self) -> bool:
        """Whether the ledger closes within the tolerance and the outputs are the model's (a NaN is a failure)."""
        return self.values_equal and self.gap <= self.tolerance

    def raise_if_failed(self) -> None:
        """Raise :class:`fxlrp.FxlrpError` with the report's text unless the check passed."""
        if not self.passed:
            raise FxlrpError(str(self))

    def __str__(self) -> str:
        verdict = "conserved" if self.passed else "NOT conserved"
        values = "equal" if self.values_equal else "NOT EQUAL"
        sums = {"explained": self.ledger.explained, **self.ledger.by_kind(), "gap": self.ledger.gap}
        width = max(map(len, sums))
        rows = [
            f"  {kind.ljust(width)}  " + "  ".join(f"{v:+.6e}" for v in sum_.tolist()) for kind, sum_ in sums.items()
        ]
        head = f"{verdict} under {self.ruleset}: largest relative gap {self.gap:.2e}, tolerance {self.tolerance:.0e}"
        return visible("\n".join([head, f"outputs {values} to the model's (off by {self.max_value_error:.2e})", *rows]))


def check_conservation(
    model: nn.Module,
    ruleset: str | Path | Mapping[str, Any] | Ruleset,
    inputs: Any,
    *,
    tolerance: float | None = None,
    target: Target = None,
) -> ConservationReport:
    """Check that no relevance is lost in ``model`` on ``inputs`` under ``ruleset``, and that its outputs stay.

        sum of input relevance + sum of constant relevance + declared leaks = explained output,   per sample

    model: the model, or a conversion of it, whose capture is then shared. inputs: as
    :meth:`ConvertedModel.attribute` takes them. tolerance: of the relative gap; None is 1e-9 where
    every value that carries relevance is float64, 1e-5 where one is of lower precision (a float32 cast inside
    rounds, and no sum can undo that). Outputs must agree to 1e-12 in float64, else to 1e-5, relative to the
    largest. Use float64 where you can: there a wrong rule shows. Relevance is read at the inputs, whatever the
    ruleset makes of it afterwards (:func:`at_inputs`). Raises :class:`fxlrp.InputError` for a ruleset that promises
    another law than this one, which conserves differences from a reference, and :class:`fxlrp.FxlrpError` for whatever
    conversion refuses; a gap is no error but a report that did not pass.
    """
    rules = at_inputs(ruleset)
    if reason := not_conserved(rules):
        raise InputError(reason)
    lrp = model.with_ruleset(rules) if isinstance(model, ConvertedModel) else convert(model, rules)
    with torch.no_grad():
        expected = lrp.model(**lrp.conversion.given(inputs))
    result = lrp.attribute(inputs, target=target, ledger=True)
    assert result.ledger is not None
    exact = all(map(is_double, carried_types(lrp.plan)))
    if tolerance is None:
        tolerance = EXACT if exact else ROUNDED
    error = value_error(expected, result.outputs)
    bound = VALUE_EXACT if all(map(is_double, float_types(lrp))) else ROUNDED
    return ConservationReport(
        ruleset=lrp.ruleset.name,
        gap=relative_gap(result.ledger, EXACT_FLOOR if exact else ROUNDED_FLOOR),
        tolerance=tolerance,
        values_equal=error <= bound,
        max_value_error=error,
        ledger=result.ledger,
    )


def at_inputs(source: str | Path | Mapping[str, Any] | Ruleset) -> Ruleset:
    """A ruleset with relevance read at the inputs: where it is conserved, and where its rules can be checked, whatever
    the ruleset makes of it afterwards (attention maps, absolute values, means over noise).
    """
    return load(source).override(readout=InputReading().model_dump())


def not_conserved(rules: Ruleset) -> str:
    """Why relevance at the inputs does not add up to f(x) under a ruleset; empty where it must."""
    comparing = next((line.bound[0].name for line in rules.rules if line.bound[0].compares), None)
    if comparing is None:
        return ""
    return (
        f"'{rules.name}' conserves differences, not values: its rule '{comparing}' compares with a reference, and "
        "relevance adds up to f(x) - f(x_ref). Check result.relevance.sum() == result.explained instead."
    )


def relative_gap(ledger: Ledger, floor: float = EXACT_FLOOR) -> float:
    """The largest |gap| of a sample, relative to max(|explained|, floor x sum |entries|); NaN stays NaN."""
    size = torch.stack([entry.amount.abs() for entry in ledger.entries]).sum(0)
    scale = torch.maximum(ledger.explained.abs(), floor * size)
    return float((ledger.gap.abs() / torch.where(scale == 0, torch.ones_like(scale), scale)).max())


def value_error(expected: Any, found: Any) -> float:
    """The largest deviation among the float tensors of two output objects, relative to the largest entry of each."""
    errors = [0.0]
    for ours, theirs in zip(private.pytree.tree_leaves(expected), private.pytree.tree_leaves(found), strict=True):
        if isinstance(ours, Tensor) and ours.is_floating_point() and ours.numel():
            largest = ours.abs().max().clamp_min(torch.finfo(ours.dtype).tiny)
            errors.append(float((ours - theirs).abs().max() / largest) if not torch.equal(ours, theirs) else 0.0)
    return float(torch.tensor(errors, dtype=torch.float64).max())


def carried_types(plan: Plan) -> set[torch.dtype]:
    """The types of the values that carry relevance."""
    values = [tensor_value(node) for node in plan.carrying]
    return {value.dtype for value in values if value is not None and value.is_floating_point()}


def float_types(lrp: ConvertedModel) -> set[torch.dtype]:
    """The types of all floating point values in the graph captured last."""
    values = [tensor_value(node) for node in lrp.plan.program.graph.nodes]
    return {value.dtype for value in values if value is not None and value.is_floating_point()}


def is_double(dtype: torch.dtype) -> bool:
    """Whether a type has the precision of float64."""
    return torch.finfo(dtype).eps <= torch.finfo(torch.float64).eps
