"""Graphs are those of their model to rounding, whatever mode the caller is in; few are kept; none draws at random."""

from __future__ import annotations

import threading
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp
import fxlrp.engine.graphs
from fxlrp.capture import agreement
from tests.support.calls import with_forward

torch.manual_seed(0)
NET = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
X = torch.randn(2, 4)
made = partial(with_forward, NET)


def attributed(model: nn.Module = NET, x: Tensor = X, **options: Any) -> fxlrp.Attribution:
    return fxlrp.convert(model, "epsilon").attribute(x, target=1, **options)


EXPECTED = attributed().relevance

MODES = {
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "tensors on meta": lambda: torch.device("meta"),
    "saved on the CPU": torch.autograd.graph.save_on_cpu,
}


@pytest.mark.parametrize("ledger", [False, True])
@pytest.mark.parametrize("name", MODES)
def test_numbers_are_those_of_no_mode(name: str, ledger: bool) -> None:
    with MODES[name]():
        found = attributed(ledger=ledger)
    assert torch.equal(found.relevance, EXPECTED)
    if found.ledger is not None:
        assert float(found.ledger.gap.abs().max()) < 1e-6


def test_a_conversion_first_called_in_inference_mode_is_good_outside() -> None:
    lrp, x = fxlrp.convert(NET, "epsilon"), X.clone().requires_grad_()
    with torch.inference_mode():
        lrp(X)
    lrp(x)[:, 1].sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x * x.grad, EXPECTED)


def test_weights_and_inputs_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model, x = nn.Linear(4, 2).eval(), torch.randn(2, 4)
    found = fxlrp.convert(model, "epsilon").attribute(x, target=1, ledger=True)
    torch.testing.assert_close(found.relevance, (x * model.weight[1]).clone())


def test_under_a_default_type_of_double() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        found = attributed(ledger=True)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found.relevance, EXPECTED)


def test_eight_first_calls_at_once() -> None:
    lrp, found = fxlrp.convert(NET, "epsilon"), [torch.zeros(0)] * 8

    def call(index: int) -> None:
        found[index] = lrp.attribute(X, target=1).relevance

    threads = [threading.Thread(target=call, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(each, EXPECTED) for each in found)
    assert lrp.captures == 1


def test_compiled_before_any_other_call() -> None:
    lrp, x = fxlrp.convert(NET, "epsilon"), X.clone().requires_grad_()
    torch.compile(lrp)(x)[:, 1].sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x * x.grad, EXPECTED)
    assert torch.equal(lrp.attribute(X, target=1).relevance, EXPECTED)
    assert torch.equal(attributed().relevance, EXPECTED)


APART: dict[str, Any] = {
    "where it is exported": lambda self, x: self.net(x) * (1.001 if torch.compiler.is_exporting() else 1.0),
    "for a batch of one": lambda self, x: self.net(x) * (1.001 if len(x) == 1 else 1.0),
    "for a length": lambda self, x: self.net(x.mean(1)) * (1.001 if x.shape[1] == 7 else 1.0),
}


@pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", APART)
def test_a_model_that_does_something_else_is_followed(name: str, dtype: torch.dtype) -> None:
    factor = 1.05 if dtype is torch.bfloat16 else 1.001
    model = made(lambda self, x: APART[name](self, x) * (factor / 1.001 if _differs(name, x) else 1.0))
    model.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    model = model.to(dtype)
    lrp = fxlrp.convert(model, "gradient")
    sizes: list[tuple[int, ...]] = [(2, 5, 4), (2, 7, 4)] if "length" in name else [(2, 4), (1, 4)]
    for size in sizes:
        x = torch.randn(size).to(dtype)
        torch.testing.assert_close(lrp.attribute(x, target=1).outputs, model(x))


def _differs(name: str, x: Tensor) -> bool:
    return {
        "where it is exported": torch.compiler.is_exporting(),
        "for a batch of one": len(x) == 1,
        "for a length": x.ndim == 3 and x.shape[1] == 7,
    }[name]


def test_a_wide_check_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "ROUNDING", 0.1)
    model = made(APART["where it is exported"])
    assert not torch.allclose(attributed(model).outputs, model(X), rtol=1e-4)


def test_a_state_that_drifts_is_followed_or_refused() -> None:
    class Drifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return NET(x) * (1 + 0.04 * self.calls)

    model = Drifting().eval()
    lrp = fxlrp.convert(model, "epsilon")
    torch.testing.assert_close(lrp.attribute(X, target=1).outputs, NET(X) * 1.04)
    assert model.calls == 0
    model(X)
    with pytest.warns(fxlrp.RetraceWarning, match="calls"):
        torch.testing.assert_close(lrp.attribute(X, target=1).outputs, NET(X) * 1.08)


@pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
def test_a_recording_is_of_the_weights_that_it_was_decided_by() -> None:
    model = made(lambda self, x: self.net(x) if float(self.net[0].weight.sum()) > 0 else self.net(-x) * 2)
    model.net = nn.Sequential(nn.Linear(4, 2)).eval()
    lrp = fxlrp.convert(model, "epsilon")
    for _ in range(2):
        torch.testing.assert_close(lrp.attribute(X, target=1).outputs, model(X))
        model.net[0].weight.data.neg_()


def test_graphs_are_bounded_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fxlrp.engine.graphs, "KEPT", 3)
    lrp = fxlrp.convert(made(lambda self, x, k: self.net(x * k)), "epsilon")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for k in range(1, 7):
            lrp.attribute({"x": X, "k": float(k)}, target=1)
    assert sum(map(len, lrp.conversion.graphs.programs.values())) == 3
    assert ["'k'" in str(each.message) for each in seen] == [True]


RANDOM: dict[str, Any] = {
    "dropout left on": lambda self, x: self.net(F.dropout(x)),
    "an initial state": lambda self, x: self.net(x + torch.randn(1, 4)),
    "noise like a value": lambda self, x: self.net(x * torch.rand_like(x)),
}


@pytest.mark.parametrize("name", RANDOM)
def test_what_draws_at_random_is_refused_or_explained_in_one_draw(name: str) -> None:
    model = made(RANDOM[name])
    with pytest.raises(fxlrp.InputError, match=r"random_seed=0.*") as raised:
        attributed(model)
    assert "aten." in str(raised.value)
    before = torch.get_rng_state()
    first, second = (attributed(model, random_seed=3, ledger=True) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.relevance, second.relevance)
    assert first.ledger is not None
    assert float(first.ledger.gap.abs().max()) < 1e-6
    torch.testing.assert_close(first.ledger.explained, first.explained.double())
    torch.manual_seed(3)
    torch.testing.assert_close(first.outputs, model(X))
    assert not torch.equal(attributed(model, random_seed=4).relevance, first.relevance)


def test_the_line_that_draws_is_named() -> None:
    class Drawing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return NET(F.dropout(x))

    with pytest.raises(fxlrp.InputError, match=r"test_graphs\.py:\d+"):
        attributed(Drawing().eval())


@pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
def test_a_branch_on_values_that_tracers_are_kept_from_is_found_on_later_inputs_of_one_size() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting() or float(x.detach().sum()) < 0:
            return self.net(x)  # type: ignore[no-any-return]
        return self.net(x) * 1.05  # type: ignore[no-any-return]

    x = torch.rand(2, 4) + 0.1
    model = with_forward(nn.Linear(4, 2), forward)
    lrp = fxlrp.convert(model, "epsilon")
    for inputs in (-x, x, -2 * x, 2 * x):
        assert torch.allclose(lrp.attribute(inputs, target=1).outputs, model(inputs), rtol=1e-5)
