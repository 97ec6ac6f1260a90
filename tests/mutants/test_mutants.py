"""The suite can fail: every mutant is noticed by the test it names, which passes without it."""

from __future__ import annotations

import pytest

from tests.mutants.mutant import Mutant
from tests.mutants.table import MUTANTS


def test_there_are_at_least_twenty_five() -> None:
    assert len(MUTANTS) >= 25


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_mutant_is_noticed(mutant: Mutant) -> None:
    mutant.check()
