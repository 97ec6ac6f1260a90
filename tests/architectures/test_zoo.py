"""The zoo's models run, and are neither saturated nor trivial: tests that use them mean something."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.zoo import LABELS, VOCAB, ZOO, Case


@pytest.mark.parametrize("case", ZOO.values(), ids=ZOO)
@torch.no_grad()
def test_outputs_are_finite_and_neither_tiny_nor_huge(case: Case) -> None:
    model = case.build()
    for padding in case.paddings:
        outputs = model(**case.inputs(padding=padding))
        logits = outputs if isinstance(outputs, Tensor) else outputs.logits
        assert logits.isfinite().all()
        assert logits.abs().median() > 1e-2
        assert logits.abs().max() < 1e3
        assert logits.std(0).mean() > 1e-2  # samples differ
        assert logits.shape[0] == 2
        assert logits.shape[-1] in (LABELS, VOCAB)


@pytest.mark.parametrize("name", ["bert", "mamba", "swin", "attention"])
def test_equal_seeds_give_equal_models(name: str) -> None:
    first, second, other = (ZOO[name].build(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_padding() -> None:
    right = ZOO["bert"].inputs(batch=3, length=7)
    assert right["attention_mask"].sum(1).tolist() == [7, 5, 4]
    assert right["attention_mask"][1].tolist() == [1, 1, 1, 1, 1, 0, 0]
    left = ZOO["bert"].inputs(batch=3, length=7, padding="left")
    assert left["attention_mask"][1].tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert list(ZOO["bert"].inputs(padding=None)) == ["input_ids"]
