"""Whether a ruleset fits a model: in go model, ruleset and inputs, out comes yes, or a sentence that says why not.

A property test over all rulesets asks this first: a method that reads attention has nothing to say about a model
without any, and not every method promises every property. All answers are drawn from what rulesets, their readings
and their rules declare; nothing is tried out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fxlrp.errors import visible
from fxlrp.explain.model import ConvertedModel, convert
from fxlrp.graph.nodes import tensor_value
from fxlrp.planning.plan import Plan
from fxlrp.readout.attentions import ATTENTION, nearest_attention
from fxlrp.spec.ruleset import Ruleset
from fxlrp.spec.ruleset import ruleset as load
from fxlrp.testing.checks import at_inputs, check_conservation, not_conserved
from fxlrp.testing.oracle import not_propagated, propagate

#: What a check asks of a plan: why it does not apply, or nothing.
CHECKS: dict[Callable[..., Any], Callable[[Plan], str]] = {
    check_conservation: lambda plan: not_conserved(plan.ruleset),
    propagate: not_propagated,
}


@dataclass(frozen=True)
class Fit:
    """Whether the ruleset of this name fits, as a truth value; ``reason`` is empty, or a sentence that says why not."""

    ruleset: str
    reason: str = ""

    def __bool__(self) -> bool:
        return not self.reason

    def __str__(self) -> str:
        return visible(self.reason or f"'{self.ruleset}' fits.")


def fits(
    model: nn.Module,
    ruleset: str | Path | Mapping[str, Any] | Ruleset,
    inputs: Any,
    check: Callable[..., Any] | None = None,
) -> Fit:
    """Whether ``ruleset`` can explain ``model`` on ``inputs``, and whether ``check`` may be asked of it.

    model: the model, or a conversion of it, whose capture is then shared. inputs: as
    :meth:`ConvertedModel.attribute` takes them. check: :func:`check_conservation`, :func:`propagate`, or None for the
    model alone. A ruleset does not fit

    - a model without attention, if it reads attention maps;
    - inputs that are no token ids, if it scores tokens;
    - images, if it is made for text, and token ids, if it is made for images;
    - :func:`check_conservation`, if it conserves differences from a reference instead of values;
    - :func:`propagate`, if a rule of it that the model needs compares with a reference, treats several operations as
      one, or has no slow reference.

    Both checks concern rules, not what is made of relevance afterwards: they are asked under :func:`at_inputs`.
    Raises :class:`fxlrp.FxlrpError` for whatever conversion refuses, such as an operation without a rule.
    """
    rules = load(ruleset)
    read = at_inputs(rules)
    lrp = model.with_ruleset(read) if isinstance(model, ConvertedModel) else convert(model, read, example_inputs=inputs)
    lrp.conversion.prepare(inputs)
    reason = _misfit(rules, lrp.plan) or (CHECKS[check](lrp.plan) if check is not None else "")
    return Fit(rules.name, reason)


def _misfit(rules: Ruleset, plan: Plan) -> str:
    """Why the method cannot explain the model, or is not meant to."""
    structure = plan.structure
    if rules.readout.of_attention and not any(match.pattern.name == ATTENTION for match in structure.matches):
        near = nearest_attention(structure)
        return f"'{rules.name}' reads attention maps, and the model has no attention that fxlrp recognises.{near}"
    ids = any(each.lookup for each in structure.attributed)
    if rules.readout.of_tokens and not ids:
        return f"'{rules.name}' scores tokens, and the model's inputs are no token ids."
    shapes = [value.ndim for each in structure.attributed if (value := tensor_value(each.node)) is not None]
    images = not ids and 4 in shapes
    if rules.domain == "images" and ids:
        return f"'{rules.name}' is made for images, and the model reads token ids."
    if rules.domain == "text" and images:
        return f"'{rules.name}' is made for text, and the model reads images."
    return ""
