"""Adapters beside a linear layer are merged into it: the numbers are the merged model's, by any ruleset."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


class Formed(nn.Module):
    """A linear layer with an adapter of one of the forms that :data:`FORMS` spells."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.base, self.form = nn.Linear(12, 16), form
        self.a, self.b, self.c = (nn.Parameter(torch.randn(size)) for size in ((2, 12), (16, 2), (2, 12)))
        self.columns, self.rank = nn.Parameter(torch.randn(16)), nn.Parameter(torch.randn(2))
        self.inputs, self.number = nn.Parameter(torch.randn(1, 12)), nn.Parameter(torch.tensor(0.3))
        self.down, self.up = nn.Linear(12, 2), nn.Linear(2, 16)

    def forward(self, x: Tensor) -> Tensor:
        """[..., 16]."""
        y: Tensor = self.base(x)
        made: Tensor = FORMS[self.form](self, x, y)
        return made


FORMS: dict[str, Callable[[Formed, Tensor, Tensor], Tensor]] = {
    "a number for each column": lambda m, x, y: y + F.linear(F.linear(x, m.a) * m.rank, m.b) * m.columns,
    "a number for each input": lambda m, x, y: y + F.linear(x * m.inputs / m.number, m.b @ m.a),
    "magnitudes": lambda m, x, y: y + ((m.columns - 1) * F.linear(x, m.base.weight) + m.columns * (x @ m.a.T @ m.b.T)),
    "of the layer's own output": lambda m, x, y: (
        y + ((m.columns - 1) * y + m.columns * F.linear(F.linear(x, m.a), m.b))
    ),
    "products of matrices": lambda m, x, y: y + (x @ (m.a * m.rank[:, None]).T @ m.b.T) * 2 / (m.number + 1e-5),
    "a computed matrix": lambda m, x, y: y + F.linear(x, (m.b @ m.a) * (m.b @ m.c)),
    "biases": lambda m, x, y: m.up(m.down(x)) * 0.5 + y,
    "taken away": lambda m, x, y: y - m.up(-m.down(x)),
    "taken from": lambda m, x, y: m.up(m.down(x)) - y,
    "a row between": lambda m, x, y: y + F.linear(m.rank - F.linear(x, m.a) + 1.5 * m.rank, m.b),
    "two": lambda m, x, y: y + m.up(m.down(x)) + F.linear(F.linear(x, m.a), m.b),
    "two, joined first": lambda m, x, y: y + (m.up(m.down(x)) + F.linear(F.linear(x, m.a), m.b)),
}


def _as_layer(module: nn.Module) -> nn.Linear:
    """The linear layer that a module is, from its values at unit vectors."""
    with torch.no_grad():
        bias = module(torch.zeros(1, 12, dtype=torch.float64))[0]
        made = nn.Linear(12, len(bias)).double()
        made.weight.copy_((module(torch.eye(12, dtype=torch.float64)) - bias).T)
        made.bias.copy_(bias)
    return made


@pytest.mark.parametrize("form", FORMS)
def test_adapters_of_any_form_are_explained_as_the_merged_layer(form: str) -> None:
    torch.manual_seed(0)
    adapted, last, x = Formed(form).double(), nn.Linear(16, 3).double(), torch.randn(3, 2, 12, dtype=torch.float64)
    models = [nn.Sequential(each, nn.Tanh(), last).eval() for each in (adapted, _as_layer(adapted))]
    found, expected = (fxlrp.convert(m, RULES["gamma"]).attribute(x, target=(1, 2), ledger=True) for m in models)
    torch.testing.assert_close(found.relevance, expected.relevance)
    assert found.ledger is not None
    assert float(found.ledger.gap.abs().max()) < 1e-9


@pytest.mark.parametrize(
    "form",
    [
        lambda m, x, y: y * torch.sigmoid(m.up(m.down(x))),  # a gate
        lambda m, x, y: y + m.up(m.down(x).relu()),  # a layer of its own, which bends
        lambda m, x, y: y + F.linear(F.linear(x, m.a) * x.mean(-1, keepdim=True), m.b),  # a factor made of the inputs
        lambda m, x, y: y + F.linear(F.linear(x + 1, m.a), m.b) * y.amax(-1, keepdim=True),
    ],
)
def test_what_only_looks_like_an_adapter_keeps_its_values(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMS, "other", form)
    model = nn.Sequential(Formed("other").double(), nn.Linear(16, 3).double()).eval()
    x = torch.randn(3, 2, 12, dtype=torch.float64, requires_grad=True)
    found = fxlrp.convert(model, "gradient").attribute(x, target=(1, 2), ledger=True)
    (slope,) = torch.autograd.grad(model(x)[:, 1, 2].sum(), x)
    torch.testing.assert_close(found.relevance, x.detach() * slope)


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
