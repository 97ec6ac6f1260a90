"""Low-rank branches beside a linear layer are merged into it: the numbers are the merged model's, by any ruleset."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.engine import graphs


class Adapted(nn.Module):
    """W x + b + s B A x, as adapters leave it that were not merged."""

    def __init__(self, base: nn.Linear, ranks: tuple[int, ...] = (2,), scale: float = 0.5) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.down = nn.ModuleList(nn.Linear(base.in_features, rank, bias=False) for rank in ranks)
        self.up = nn.ModuleList(nn.Linear(rank, base.out_features, bias=False) for rank in ranks)

    def forward(self, x: Tensor) -> Tensor:
        """[..., out]."""
        y: Tensor = self.base(x)
        for down, up in zip(self.down, self.up, strict=True):
            y = y + up(down(x)) * self.scale
        return y

    def merged(self) -> nn.Linear:
        """The same in one layer."""
        made = copy.deepcopy(self.base)
        with torch.no_grad():
            for down, up in zip(self.down, self.up, strict=True):
                made.weight += self.scale * up.weight @ down.weight
        return made


def pair(ranks: tuple[int, ...] = (2,), bias: bool = True) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    adapted = [Adapted(nn.Linear(6, 8, bias=bias), ranks), Adapted(nn.Linear(8, 6, bias=bias), ranks)]
    model = nn.Sequential(adapted[0], nn.ReLU(), adapted[1]).double().eval()
    return model, nn.Sequential(model[0].merged(), nn.ReLU(), model[2].merged()).eval()


RULES: dict[str, Any] = {
    "gamma": fxlrp.ruleset("epsilon").override(linear={"rule": "gamma", "gamma": 0.25}),
    "alpha beta": fxlrp.ruleset("epsilon").override(linear={"rule": "alpha_beta", "alpha": 2.0, "beta": 1.0}),
    "z plus": fxlrp.ruleset("epsilon").override(linear={"rule": "z_plus"}),
    "gradient": "gradient",
    "attnlrp": "attnlrp",
}


@pytest.mark.parametrize("ranks", [(2,), (2, 3)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", RULES)
def test_adapters_are_explained_as_the_merged_model(name: str, bias: bool, ranks: tuple[int, ...]) -> None:
    (model, merged), x = pair(ranks, bias), torch.randn(3, 6, dtype=torch.float64)
    found, expected = (fxlrp.convert(m, RULES[name]).attribute(x, target=1, ledger=True) for m in (model, merged))
    torch.testing.assert_close(found.relevance, expected.relevance)
    assert found.ledger is not None
    assert float(found.ledger.gap.abs().max()) < 1e-9


def test_adapters_that_stay_apart_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "fold_adapters", lambda program: program)
    (model, merged), x = pair(), torch.randn(3, 6, dtype=torch.float64)
    apart, expected = (fxlrp.convert(m, RULES["gamma"]).attribute(x, target=1).relevance for m in (model, merged))
    assert float((apart - expected).abs().max() / expected.abs().max()) > 0.01


def test_branches_of_full_rank_and_of_other_inputs_stay_what_they_are() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.a(x) + self.c(self.b(x))
            return out + self.a(out).relu()

    lrp = fxlrp.convert(Two().eval(), "epsilon")
    lrp.attribute(torch.randn(2, 6), target=1)
    assert sum(str(n.target).startswith("aten.linear") for n in lrp.plan.program.graph.nodes) == 4
