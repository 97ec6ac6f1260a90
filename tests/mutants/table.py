"""The table of mutants: each breaks one thing in fxlrp's own objects, and names the test that must notice.

A mutant patches through :class:`pytest.MonkeyPatch`, which puts everything back. ``test_mutants.py`` runs each
test with and without its mutant.
"""

from __future__ import annotations

from tests.mutants.mutant import Mutant
from tests.mutants.of_methods import METHOD_MUTANTS
from tests.mutants.of_passes import PASS_MUTANTS, READ_OUT_MUTANTS
from tests.mutants.of_recurrent import RECURRENT_MUTANTS
from tests.mutants.of_rules import KERNEL_MUTANTS, RULE_MUTANTS

TABLES = (RULE_MUTANTS, KERNEL_MUTANTS, PASS_MUTANTS, READ_OUT_MUTANTS, METHOD_MUTANTS, RECURRENT_MUTANTS)
MUTANTS: dict[str, Mutant] = {mutant.name: mutant for table in TABLES for mutant in table}
