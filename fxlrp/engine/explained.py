"""The scalars that are explained, one per sample, and the seeds with which their backward passes begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fxlrp.engine.conversion import Conversion
from fxlrp.engine.targets import Selection, Target, call_target, label, resolve
from fxlrp.spec.ruleset import Ruleset


class Explained:
    """The scalars of an output that are explained, target and contrast, each with the seed of its backward pass."""

    def __init__(self, lrp: Conversion, batch: int, terms: Sequence[tuple[float, Any]]) -> None:
        self.lrp, self.batch, self.terms = lrp, batch, terms

    @staticmethod
    def of(lrp: Conversion, given: Mapping[str, Any], target: Target, contrast: Target, outputs: Any) -> Explained:
        """Target and contrast in any of their forms."""
        conventions = lrp.conventions
        batch, mask = conventions.batch(given), conventions.mask_of_outputs(given)
        terms: list[tuple[float, Any]] = []
        for sign, wanted in ((1.0, target), (-1.0, contrast)):
            if sign > 0 or wanted is not None:
                terms.append(
                    (sign, wanted if callable(wanted) else resolve(wanted, outputs, mask, conventions.generates))
                )
        return Explained(lrp, batch, terms)

    def __call__(self, outputs: Any, rules: Ruleset) -> tuple[list[Tensor], list[Tensor]]:
        """Scalars [batch] whose sum is explained, and the gradient with which the backward pass begins at each."""
        scalars, gradients = [], []
        for sign, chosen in self.terms:
            if isinstance(chosen, Selection):
                scalar = chosen(outputs, rules.explained)
                begun = scalar if rules.begins_as_explained else chosen(outputs, rules.begun).detach()
            else:
                scalar = begun = call_target(chosen, outputs, self.batch)
                if rules.seed.amount is not None:
                    begun = torch.full_like(scalar, rules.seed.amount)
            scalars.append(sign * scalar)
            gradients.append(rules.seed.gradient(scalar, begun).detach())
        return scalars, gradients

    def relevance(self, outputs: Any) -> Tensor:
        """Scalars [batch] that begin with gradient one and stand for the same relevance: for the ledger."""
        scalars, seeds = self(outputs, self.lrp.ruleset)
        return torch.stack([s * seed for s, seed in zip(scalars, seeds, strict=True)]).sum(0)

    @property
    def resolved(self) -> Any:
        """The target in its final form."""
        chosen = self.terms[0][1]
        if not isinstance(chosen, Selection):
            return chosen
        return [place[0] if len(place) == 1 else tuple(place) for place in chosen.index]

    def labels(self, tokenizer: Any) -> list[str]:
        """What a report calls the explained output of each sample."""
        names = getattr(self.lrp.config, "id2label", None)
        texts = []
        first = self.terms[0][1]
        for sample in range(len(first.index) if isinstance(first, Selection) else self.batch):
            parts = [
                label(chosen.index[sample], names, tokenizer)
                if isinstance(chosen, Selection)
                else getattr(chosen, "__name__", "target")
                for _, chosen in self.terms
            ]
            texts.append(" minus ".join(parts))
        return texts
