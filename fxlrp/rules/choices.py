"""Options of rules that have a few named forms: values that check themselves when they are made."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from fxlrp.errors import RulesetError, nearest
from fxlrp.rules.primitives import nowhere_zero


class Choice(StrEnum):
    """One of a few named forms. ``Choice("...")`` raises :class:`RulesetError` for any other name."""

    @classmethod
    def _missing_(cls, value: object) -> Any:
        words = "".join(f" {c.lower()}" if c.isupper() else c for c in cls.__name__).strip()
        raise RulesetError(f"There is no {words} '{value}'.{nearest(str(value), (each.value for each in cls))}")


class Stabiliser(Choice):
    """How a denominator z is kept from zero by an epsilon of its unit.

    ``signed``: z + epsilon sign z (sign 0 = +1). ``unsigned``: z + epsilon. ``masked``: z + epsilon, but 0 at 0 (a
    share of it is then 0).
    """

    SIGNED = "signed"
    UNSIGNED = "unsigned"
    MASKED = "masked"

    def __call__(self, z: Tensor, epsilon: float) -> Tensor:
        """The stabilised denominator; z itself where epsilon is 0."""
        return FORMS[self](z, epsilon) if epsilon else z


def away_from_zero(x: Tensor, epsilon: float) -> Tensor:
    """x + epsilon sign(x), with sign(0) = +1."""
    return x + epsilon * torch.copysign(x.new_ones(()), x + 0.0)  # -0.0 + 0.0 is 0.0


def _masked(z: Tensor, epsilon: float) -> Tensor:
    kept = z + epsilon
    if nowhere_zero(z) and nowhere_zero(kept):
        return kept
    return torch.where(z == 0, z, torch.where(kept == 0, epsilon, kept))


#: The formulas of stabilisers.
FORMS: dict[Stabiliser, Callable[[Tensor, float], Tensor]] = {
    Stabiliser.SIGNED: away_from_zero,
    Stabiliser.UNSIGNED: lambda z, epsilon: z + epsilon,
    Stabiliser.MASKED: _masked,
}


class BiasShare(Choice):
    """What of a bias stands in the positive and in the negative denominator.

    ``signed``: b+ in the one, b- in the other. ``whole``: b in both. ``none``: 0 in both.
    """

    SIGNED = "signed"
    WHOLE = "whole"
    NONE = "none"


class Denominators(Choice):
    """Whether products of two positive and of two negative numbers share one denominator (``joint``) or have one each
    (``separate``).
    """

    JOINT = "joint"
    SEPARATE = "separate"


class GammaForm(Choice):
    """The form of the gamma rule: ``generalised`` for inputs of any sign, ``ali`` of Ali et al. 2022."""

    GENERALISED = "generalised"
    ALI = "ali"
