"""The scalars that are explained, one per sample, and the seeds with which their backward passes begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fxlrp.capture.program import flatten
from fxlrp.engine.conversion import Conversion
from fxlrp.engine.outputs import Scored
from fxlrp.engine.targets import Handed, Selection, Target, call_target, logits_of, named, resolve
from fxlrp.errors import TargetError
from fxlrp.spec.ruleset import Ruleset


class Explained:
    """The scalars of an output that are explained, target and contrast, each with the seed of its backward pass.

    ``at_zero``: whether an amount of relevance is begun with where a scalar is exactly 0.
    """

    def __init__(
        self,
        lrp: Conversion,
        terms: Sequence[tuple[float, Any]],
        scores: Sequence[Scored] = (),
        *,
        at_zero: bool = False,
    ) -> None:
        self.lrp, self.terms = lrp, terms
        self.scores = scores or [Scored()] * len(terms)
        self.at_zero = at_zero

    @staticmethod
    def of(
        lrp: Conversion,
        given: Mapping[str, Any],
        target: Target,
        contrast: Target,
        outputs: Any,
        tokenizer: Any = None,
    ) -> Explained:
        """Target and contrast in any of their forms."""
        conventions = lrp.conventions
        mask = conventions.mask_of_outputs(given)
        terms: list[tuple[float, Any]] = []
        scores: list[Scored] = []
        for sign, wanted in ((1.0, target), (-1.0, contrast)):
            if sign > 0 or wanted is not None:
                if callable(wanted):
                    terms.append((sign, wanted))
                    scores.append(Scored())
                    continue
                scored = Scored.of(outputs, named(wanted)[0], lrp.config, conventions, given, tokenizer)
                terms.append((sign, resolve(wanted, outputs, mask, scored)))
                _check_samples(logits_of(outputs, named(wanted)[0]), given)
                scores.append(scored)
        return Explained(lrp, terms, scores, at_zero=True)

    def __call__(
        self, outputs: Any, rules: Ruleset, functions: Sequence[Tensor] = ()
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Scalars [batch] whose sum is explained, and the gradient with which the backward pass begins at each.

        ``functions`` are the values of callable terms that the graph itself computes, in their order.
        """
        scalars, gradients = [], []
        computed = iter(functions)
        for sign, chosen in self.terms:
            if isinstance(chosen, Selection):
                scalar = chosen(outputs, rules.explained)
                begun = scalar if rules.begins_as_explained else chosen(outputs, rules.begun).detach()
            elif isinstance(chosen, Handed):
                scalar = begun = chosen(outputs)
            else:
                found = next(computed, None)
                scalar = begun = call_target(chosen, outputs) if found is None else found
                if rules.seed.amount is not None:
                    begun = torch.full_like(scalar, rules.seed.amount)
            scalars.append(sign * scalar)
            gradients.append(rules.seed.gradient(scalar, begun, at_zero=self.at_zero).detach())
        return scalars, gradients

    def relevance(self, outputs: Any, functions: Sequence[Tensor] = ()) -> Tensor:
        """Scalars [batch] that begin with gradient one and stand for the same relevance: for the ledger."""
        scalars, seeds = self(outputs, self.lrp.ruleset, functions)
        if self.begins_at_zero(scalars, self.lrp.ruleset):
            raise TargetError(
                f"An explained output is exactly 0, so that relevance '{self.lrp.ruleset.seed}' of it has no ledger. "
                "Leave ledger= out, or use seed='logit'."
            )
        return torch.stack([s * seed for s, seed in zip(scalars, seeds, strict=True)]).sum(0)

    def begins_at_zero(self, scalars: Sequence[Tensor], rules: Ruleset) -> bool:
        """Whether relevance is an amount of its own and a scalar exactly 0, of which no share can be it."""
        own = rules.seed.amount is not None and not isinstance(self.terms[0][1], Handed)
        return own and any(bool((scalar == 0).any()) for scalar in scalars)

    @property
    def positions(self) -> list[list[int]]:
        """The position of each sample's entry [position, class], by term."""
        return [[place[0] for place in chosen.index] for _, chosen in self.terms]

    def at_rows(self, outputs: Any, rules: Ruleset) -> tuple[list[Tensor], list[Tensor]]:
        """The same of outputs that hold one row a term: that of its :attr:`positions`."""
        terms = [
            (sign, replace(chosen, index=tuple((row, *place[1:]) for place in chosen.index)))
            for row, (sign, chosen) in enumerate(self.terms)
        ]
        return Explained(self.lrp, terms, self.scores, at_zero=self.at_zero)(outputs, rules)

    @property
    def resolved(self) -> Any:
        """The target in its final form."""
        chosen = self.terms[0][1]
        if not isinstance(chosen, Selection):
            return None if isinstance(chosen, Handed) else chosen
        places = [place[0] if len(place) == 1 else tuple(place) for place in chosen.index]
        return places if chosen.field is None else [(chosen.field, place) for place in places]

    def labels(self, samples: int, tokenizer: Any, tokens: Sequence[Sequence[str]] | None = None) -> list[str]:
        """What a report calls the explained output of each of the ``samples``, whose ``tokens`` are spelled so."""
        texts = []
        for sample in range(samples):
            spelled = tokens[sample] if tokens is not None and sample < len(tokens) else None
            parts = [
                scored.label(chosen.index[sample], tokenizer, spelled)
                if isinstance(chosen, Selection)
                else "the relevance handed in"
                if isinstance(chosen, Handed)
                else getattr(chosen, "__name__", "target")
                for (_, chosen), scored in zip(self.terms, self.scores, strict=True)
            ]
            texts.append(" minus ".join(parts))
        return texts


def _check_samples(logits: Tensor, given: Mapping[str, Any]) -> None:
    """Raise :class:`TargetError` for scores of classes without a batch axis, which are not one number per sample."""
    sizes = {size for value in flatten(given).values() if isinstance(value, Tensor) for size in value.shape}
    if logits.ndim == 1 and len(logits) not in {1, *sizes}:
        raise TargetError(
            f"The output {list(logits.shape)} has no batch axis, as none of the inputs is as long: outputs are "
            "[batch], [batch, classes] or [batch, positions, classes]. Give the inputs a first axis of samples."
        )
