"""Whether a graph is its model's, where the model is too large to be run in a wider type."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxlrp.capture import agree, agreement, capture
from tests.support.zoo import ZOO


class Drifting(nn.Module):
    """Four layers whose values some ``factor`` scales, which a graph has taken for a number."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))
        self.factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 64]."""
        for layer in self.layers:
            x = layer(x).tanh()
        return x * self.factor


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("largest", [0, agreement.SETTLED])
def test_a_graph_that_is_a_few_percent_off_is_noticed(
    largest: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 keeps 8 bits: 0.4 % of a value is rounding, 5 % of it is none."""
    monkeypatch.setattr(agreement, "SETTLED", largest)
    model = Drifting().to(dtype).eval()
    given = {"x": torch.randn(8, 64, generator=torch.Generator().manual_seed(1)).to(dtype)}
    program = capture(model, given)
    assert agree(model, program, given)
    for factor in (1.05, 0.96):
        model.factor = factor
        assert not agree(model, program, given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["bert", "llama", "vit"])
def test_rounding_is_no_difference(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    case: Any = ZOO[name]
    model = case.build().to(dtype).eval()
    given = {key: v.to(dtype) if v.is_floating_point() else v for key, v in case.inputs().items()}
    program = capture(model, given)
    monkeypatch.setattr(agreement, "SETTLED", 0)
    assert agree(model, program, given)
