"""``make fuzz``: many more random graphs than the suite draws, each under every ruleset, in shards with own seeds.

FUZZ_EXAMPLES says how many (graph, ruleset) examples in all, FUZZ_SEED which ones. A failure is printed shrunk: keep
it in ``test_regressions.py``.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, seed, settings

import fxlrp
from fxlrp.testing import KINDS, RandomGraph, check_conservation, graphs
from fxlrp.testing.checks import at_inputs

SHARDS = 80
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "20000"))
FIRST_SEED = int(os.environ.get("FUZZ_SEED", "0"))
RULESETS = [rules for name in fxlrp.rulesets() if not (rules := at_inputs(name)).compares]
GRAPHS = max(1, EXAMPLES // (SHARDS * len(RULESETS)))


@pytest.mark.parametrize("shard", range(SHARDS))
def test_values_stay_and_the_ledger_closes(shard: int) -> None:
    @seed(FIRST_SEED * SHARDS + shard)
    @settings(max_examples=GRAPHS, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(graphs(kinds=list(KINDS)))
    def check(graph: RandomGraph) -> None:
        lrp = fxlrp.convert(graph.module())
        for ruleset in RULESETS:
            check_conservation(lrp, ruleset, graph.inputs(), target=1).raise_if_failed()

    check()
