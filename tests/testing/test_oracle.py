"""The naive oracle agrees with the rewritten graph, on random graphs, rules and models."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fxlrp
from fxlrp.testing import RandomGraph, graphs, largest_difference, propagate, realistic
from fxlrp.testing.oracle import AGREEMENT
from tests.properties.test_properties import METHODS
from tests.support.zoo import ZOO, converted

#: Rulesets that differ in what they do; the others combine the same rules.
RULESETS = (
    "conservative-residual",
    "attnlrp",
    "gradient",
    "libragrad",
    "chefer2021-vit",
    "conservative in relevance",
)


@given(graphs(max_blocks=4), st.sampled_from(RULESETS))
@settings(max_examples=10)
def test_random_graphs(graph: RandomGraph, ruleset: str) -> None:
    inputs = graph.inputs()
    lrp = fxlrp.convert(graph.module(), METHODS[ruleset])
    found = lrp.attribute(inputs, target=1).inputs
    assert largest_difference(found, propagate(lrp, inputs, 1)) < AGREEMENT


@pytest.mark.parametrize(
    "linear", [{"rule": "gamma"}, {"rule": "alphabeta"}, {"rule": "z_plus"}, {"rule": "distribute"}], ids=str
)
def test_rules_of_linear_layers(linear: dict[str, str]) -> None:
    graph = RandomGraph.parse("v1 = mlp(x)\nv2 = conv1d(v1, seed=1)\nv3 = gelu(v2)\nv4 = residual(v3, seed=2)")
    inputs = graph.inputs()
    rules = fxlrp.ruleset("conservative").override(linear=linear, convolution=linear)
    lrp = fxlrp.convert(realistic(graph.module()), rules)
    assert largest_difference(lrp.attribute(inputs, target=2).inputs, propagate(lrp, inputs, 2)) < AGREEMENT


@pytest.mark.parametrize("name", ["gpt2", "llama", "vit"])
def test_models(name: str) -> None:
    lrp, inputs = converted(name).with_ruleset("conservative"), ZOO[name].inputs(length=3)
    found = lrp.attribute(inputs)
    bound = 1e-6 if name == "llama" else AGREEMENT  # its norms round to float32
    assert largest_difference(found.inputs, propagate(lrp, inputs)) < bound


def test_a_difference_is_seen() -> None:
    graph = RandomGraph.parse("v1 = product(x, y)")
    inputs = graph.inputs()
    lrp = fxlrp.convert(graph.module(), "conservative")
    found = lrp.attribute(inputs, target=1).inputs
    assert largest_difference({**found, "x": 1.2 * found["x"]}, propagate(lrp, inputs, 1)) > 0.1
