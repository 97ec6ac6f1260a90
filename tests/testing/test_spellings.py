"""The two modules of each spelling compute the same function, from different operators."""

from __future__ import annotations

import pytest
import torch

from fxlrp.testing.spellings import Spelling, spellings

PAIRS = {pair.name: pair for pair in spellings()}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_both_compute_the_same(pair: Spelling) -> None:
    torch.testing.assert_close(pair.first(**pair.inputs), pair.second(**pair.inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_they_are_spelled_differently(pair: Spelling) -> None:
    first, second = (
        [str(node.target) for node in torch.export.export(model, (), pair.inputs, strict=False).graph.nodes]
        for model in (pair.first, pair.second)
    )
    assert first != second
