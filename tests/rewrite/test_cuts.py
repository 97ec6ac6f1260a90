"""Relevance is conserved over every cut between input and output, not only in sum."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fxlrp
from fxlrp.testing import RandomGraph, graphs
from tests.support.cuts import worst_cut
from tests.support.zoo import ZOO, converted


@given(graphs(max_blocks=5), st.sampled_from(["conservative", "conservative-residual", "attnlrp", "gradient"]))
@settings(max_examples=20)
def test_random_graphs(graph: RandomGraph, ruleset: str) -> None:
    gap, before = worst_cut(fxlrp.convert(graph.module(), ruleset), graph.inputs())
    assert gap < 1e-9, f"the cut after {sorted(before)}"


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_models(name: str) -> None:
    lrp, inputs = converted(name).with_ruleset("conservative"), ZOO[name].inputs(length=5, padding=None)
    gap, before = worst_cut(lrp, inputs, orders=1, most=10)
    assert gap < 1e-9, f"the cut after {sorted(before)}"
