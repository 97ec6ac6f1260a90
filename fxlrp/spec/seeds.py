"""Seeds: what relevance begins as at the explained output, one value that everything asks that needs to know.

The backward pass begins at one scalar s per sample with the gradient R / s, where R is the relevance that the seed
says. Which scalar that is follows from the seed, too: an entry of *scores*, which the seed makes of the logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema
from torch import Tensor

from fxlrp.errors import RulesetError, TargetError, nearest
from fxlrp.rules.rule import Message


def logits_as_they_are(logits: Tensor, temperature: float) -> Tensor:
    """z."""
    return logits


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """softmax(z / temperature) over the classes. Raises :class:`TargetError` where there are none."""
    _check_classes(logits, "probability")
    return torch.softmax(logits / temperature, -1)


def contrasts(logits: Tensor, temperature: float) -> Tensor:
    """z_c - mean of z_k over k != c. Raises :class:`TargetError` where there is no other class."""
    _check_classes(logits, "contrastive")
    classes = logits.shape[-1]
    if classes < 2:
        raise TargetError("Seed 'contrastive' needs at least two classes to tell apart; use seed='logit'.")
    return logits - (logits.sum(-1, keepdim=True) - logits) / (classes - 1)


def _check_classes(logits: Tensor, seed: str) -> None:
    if logits.ndim < 2:
        raise TargetError(
            f"Seed '{seed}' compares the scores of classes, but the model gives one number per sample: use "
            "seed='logit'."
        )


@dataclass(frozen=True)
class Seed:
    """What relevance begins as.

    ``sentence`` completes "relevance begins as ...". ``scores(logits, temperature)`` [..., classes] are made of the
    logits before one entry per sample is chosen. Scores that are ``linear`` in the logits are explained under either
    message; others under gradient messages only, as a relevance message would have to pass through them: it begins at
    the logit with the score's value. ``amount`` is what relevance begins as where that is a number of its own.
    """

    name: str
    sentence: str
    scores: Callable[[Tensor, float], Tensor] = logits_as_they_are
    linear: bool = True
    amount: float | None = None

    def __post_init__(self) -> None:
        if self.amount is not None and (self.amount == 0 or not math.isfinite(self.amount)):
            raise RulesetError(f"Seed '{self.name}' must begin as a finite number other than 0, not {self.amount}.")

    def __str__(self) -> str:
        return self.name

    def explained(self, logits: Tensor, temperature: float, message: Message) -> Tensor:
        """The scores [..., classes] of which one entry per sample is explained."""
        kept = self.linear or message is Message.GRADIENT
        return self.scores(logits, temperature) if kept else logits

    def begun(self, logits: Tensor, temperature: float) -> Tensor:
        """The relevance [..., classes] that the entry of each class would begin as."""
        if self.amount is not None:
            return torch.full_like(logits, self.amount)
        return self.scores(logits, temperature)

    def gradient(self, scalar: Tensor, begun: Tensor, *, at_zero: bool = False) -> Tensor:
        """R / s [samples], the gradient with which the backward pass begins at the scalars s.

        Raises :class:`TargetError` where a scalar is exactly 0 but its relevance is not s itself; with ``at_zero`` an
        ``amount`` stands for itself there, for the caller to begin with.
        """
        if begun is scalar:
            return torch.ones_like(scalar)
        zero = scalar == 0
        if bool(zero.any()) and not (at_zero and self.amount is not None):
            raise TargetError(
                f"An explained output is exactly 0, so relevance '{self.name}' has no gradient to begin with. Explain "
                "another output, or use seed='logit'."
            )
        return torch.where(zero, begun, begun / scalar)


LOGIT = Seed("logit", "the explained output itself")
ONE = Seed("one", "1, whatever the explained output", amount=1.0)
PROBABILITY = Seed("probability", "the softmax probability of the explained output", scores=probabilities, linear=False)
CONTRASTIVE = Seed(
    "contrastive", "the explained output less the mean of the outputs of all other classes", scores=contrasts
)
SEEDS: dict[str, Seed] = {seed.name: seed for seed in (LOGIT, ONE, PROBABILITY, CONTRASTIVE)}


def find_seed(name: Any) -> Seed:
    """The seed of this name, or a seed as it is. Raises :class:`RulesetError` with the nearest valid name."""
    if isinstance(name, Seed):
        return name
    if name not in SEEDS:
        raise RulesetError(f"There is no seed '{name}'.{nearest(str(name), SEEDS)}")
    return SEEDS[name]


def _known(name: Any) -> Seed:
    try:
        return find_seed(name)
    except RulesetError as error:
        raise ValueError(str(error)) from None


#: A seed as rulesets write it: by its name.
NamedSeed = Annotated[
    Seed,
    BeforeValidator(_known),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "enum": sorted(SEEDS), "default": LOGIT.name}),
]
