"""One batch explained once, and the model run on other inputs in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from fxlrp.engine.targets import Selection, logits_of
from fxlrp.errors import InputError
from fxlrp.evaluate.batches import Batch
from fxlrp.evaluate.units import Replacement, Units, units_of
from fxlrp.explain.model import ConvertedModel
from fxlrp.results.attribution import Attribution

#: Which class is explained: the one that the model predicts, or the sample's label.
Of = Literal["predicted", "label"]
#: What is watched of a class: its softmax probability, its logit, or whether it is the arg-max.
Watched = Literal["probability", "logit", "accuracy"]
#: What is watched of an entry of the logits, as a function of all of them.
SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "probability": lambda logits: torch.softmax(logits, -1),
    "logit": lambda logits: logits,
}


@dataclass(frozen=True)
class Explanation:
    """The attribution of a batch, the units it gives relevance to, and the unmodified model."""

    lrp: ConvertedModel
    given: Mapping[str, Any]
    result: Attribution
    units: Units

    def logits(self, inputs: Mapping[str, Any] | None = None) -> Tensor:
        """The logits of the unmodified model, [samples, ..., classes], on other inputs if given."""
        with torch.no_grad():
            return logits_of(self.lrp.model(**(self.given if inputs is None else inputs)))

    def with_units(self, value: Tensor) -> dict[str, Any]:
        """The inputs with another value of the one whose units are explained."""
        return {**self.given, self.units.name: value}

    def in_units(self, units: Units) -> Explanation:
        """The same in other units."""
        return replace(self, units=units)

    def without(self, chosen: Tensor, replacement: Replacement | None) -> dict[str, Any]:
        """The inputs with the ``chosen`` units [samples, units] replaced."""
        return self.with_units(self.units.replaced(chosen, replacement))

    def chosen(self, labels: Tensor | None = None) -> Selection:
        """The entries of the logits that are explained, or those of ``labels`` [samples].

        Raises :class:`InputError` where labels are no entries, as the model's logits have positions.
        """
        explained = selection(self.result.target)
        if labels is None:
            return explained
        if any(len(place) > 1 for place in explained.index):
            raise InputError(
                "Labels are classes, but this model's logits are [samples, positions, classes]: explain the labels "
                "(of='label') and watch what is explained."
            )
        return selection(labels.tolist())

    def seen(self, labels: Tensor | None = None) -> Callable[[Tensor, str], Tensor]:
        """What is watched [samples] as a function of logits and 'probability', 'logit' or 'accuracy': of the explained
        entry, or of ``labels``.
        """
        chosen = self.chosen(labels)

        def seen(logits: Tensor, watch: str) -> Tensor:
            if watch != "accuracy":
                return chosen(logits, SCORES[watch]).double()
            best = at_places(logits, chosen).argmax(-1)
            return (best == torch.tensor([place[-1] for place in chosen.index], device=best.device)).double()

        return seen


def at_places(logits: Tensor, chosen: Selection) -> Tensor:
    """The logits of all classes where the chosen entries are, [samples, classes]: of logits with positions, theirs."""
    return torch.stack([logits[(sample, *place[:-1])] for sample, place in enumerate(chosen.index)])


def selection(targets: Any) -> Selection:
    """The entries of the logits that an attribution's ``target`` names."""
    if callable(targets):
        raise InputError(
            "Protocols watch an entry of the logits, which a callable target does not name: explain a class."
        )
    return Selection(tuple(tuple(t) if isinstance(t, (tuple, list)) else (t,) for t in targets))


def explain(lrp: ConvertedModel, batch: Batch, target: Any = None, keep: tuple[int, ...] = ()) -> Explanation:
    """Attribute a batch; ``target`` None explains what the model predicts."""
    given = batch.given(lrp)
    wanted = target.tolist() if isinstance(target, Tensor) else target
    result = lrp.attribute(given, target=wanted)
    return Explanation(lrp, given, result, units_of(given, result, keep))


def explain_class(lrp: ConvertedModel, batch: Batch, of: Of, keep: tuple[int, ...], protocol: str) -> Explanation:
    """Attribute a batch to the ``predicted`` classes, or to its labels. Raises :class:`InputError` without labels."""
    labels = batch.needs("labels", f"{protocol} of labels") if of == "label" else None
    return explain(lrp, batch, labels, keep)
