"""Mutants of the rules for recurrent networks: sums of linear maps, initial states, shares of the bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxlrp.patterns import structure
from fxlrp.planning import decide
from fxlrp.rewrite import linear_sums as layers
from fxlrp.rules import spread
from tests.mutants.mutant import Mutant, attribute
from tests.rulesets import test_arras, test_cells_by_hand


def _units_of_one_term(units: Any, original: Any = spread.mean_of_rows) -> Tensor:
    return original(units[:1])


def _too_many(units: Any) -> Tensor:
    return sum(unit.sum(-1, keepdim=True) for unit in units) / (1 + sum(unit.shape[-1] for unit in units))  # type: ignore[no-any-return]


def _twice(op: Any, operands: Any, original: Any = spread.value_and_offset) -> tuple[Tensor, Tensor]:
    z, offset = original(op, operands)
    return z, 2 * offset


def _no_offset(self: Any, root: Any, z: Any) -> Any:
    return self.graph.call_function(torch.zeros_like, (z,))


def _by_hand_and_module() -> None:
    test_cells_by_hand.test_a_cell_by_hand_is_explained_like_the_module(test_cells_by_hand.joined)


def _conserves() -> None:
    test_arras.conserves("two layers, both directions")


def _conserves_anew() -> None:
    test_arras.conserves("learnt states", of=test_arras.convert)


RECURRENT_MUTANTS = (
    Mutant("more units than there are", attribute(spread, "mean_of_rows", _too_many), _conserves),
    Mutant("units of one term alone", attribute(spread, "mean_of_rows", _units_of_one_term), _by_hand_and_module),
    Mutant("bias counted twice", attribute(spread, "value_and_offset", _twice), _conserves),
    Mutant("bias forgotten", attribute(layers.Layers, "offset_of", _no_offset), _conserves),
    Mutant(
        "initial states forgotten",
        attribute(structure, "initial_states", lambda *_: frozenset()),
        _conserves_anew,
    ),
    Mutant(
        "terms of a sum one by one",
        attribute(decide, "joined", lambda plan: plan),
        _by_hand_and_module,
    ),
)
