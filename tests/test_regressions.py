"""Counter-examples that were found once, each with the fault it showed."""

from __future__ import annotations

import pytest
import torch

import fxlrp
from fxlrp.testing import RandomGraph, check_conservation, largest_difference, propagate, spellings

FOUND = {
    # every way from y to the output is cut: y was a leaf of the backward pass and received a message through
    # the cut gate
    "input cut off behind a gate": ("cp-lrp", "v1 = gate(x, y)"),
    "queries cut off in cross attention": ("conservative", "v1 = cross_attention(x, y)"),
    # all rules together make the output a constant: the explained value had no entry
    "output held constant": ("conservative", "v1 = softmax_features(x)"),
    "output held constant, probability": ("libragrad", "v1 = softmax_features(x)"),
    # the two halves of a gate were taken for one value, and a * sigmoid(b) for a SiLU
    "halves of a gate": ("conservative", "v1 = glu(x)"),
    # one of several values of a split is cut off while another carries on
    "split with one output cut off": ("cp-lrp", "v1 = chunk_product(x)\nv2 = attention_fused_qkv(v1)"),
}


@pytest.mark.parametrize("name", FOUND)
def test_found(name: str) -> None:
    ruleset, code = FOUND[name]
    graph = RandomGraph.parse(code)
    inputs = graph.inputs()
    check_conservation(graph.module(), ruleset, inputs, target=1).raise_if_failed()
    lrp = fxlrp.convert(graph.module(), ruleset)
    found = lrp.attribute(inputs, target=1).inputs
    assert largest_difference(found, propagate(lrp, inputs, 1)) < 1e-9


def test_what_is_cut_off_receives_nothing() -> None:
    graph = RandomGraph.parse("v1 = gate(x, y)")
    found = fxlrp.convert(graph.module(), "cp-lrp").attribute(graph.inputs(), target=1).inputs
    assert torch.equal(found["y"], torch.zeros_like(found["y"]))
    assert found["x"].abs().max() > 0.1


def test_infinite_mask() -> None:
    """A mask of -inf is added: its message is zero, and its entry is zero, not NaN."""
    pair = next(pair for pair in spellings() if pair.name == "causal_filled_added")
    check_conservation(pair.second, "attnlrp", pair.inputs, target=1).raise_if_failed()
