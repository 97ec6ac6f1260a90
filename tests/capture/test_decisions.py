"""A recording stands for all inputs on which its model decides the same, and for no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.capture import capture, decisions
from fxlrp.engine.graphs import RECORDINGS
from tests.support.calls import with_forward

pytestmark = pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
ODD = torch.tensor([1, 0, 1])
NET = nn.Linear(4, 2).double().eval()


#: What a forward pass makes of x [3, 4] and ids [3] before a linear layer; ids that decide as [1, 2, 5] does, and
#: ids that decide otherwise.
KINDS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], list[int], list[int]]] = {
    "a number": (lambda x, ids: x * int(ids.max()), [5, 2, 1], [1, 2, 6]),
    "a branch": (lambda x, ids: x * 2 if bool((ids > 4).any()) else x, [7, 2, 1], [1, 2, 3]),
    "a comparison": (
        lambda x, ids: x * 2 if torch.equal(ids % 2, ids.new_tensor([1, 0, 1])) else x,
        [3, 4, 7],
        [1, 1, 1],
    ),
    "a list": (lambda x, ids: x * 2 if ids.clamp(max=2).tolist() == [1, 2, 2] else x, [1, 3, 9], [1, 1, 5]),
    "an array": (lambda x, ids: x * float(ids.clamp(max=2).numpy().sum()), [1, 3, 9], [1, 1, 5]),
    "an array by its protocol": (
        lambda x, ids: x * float(np.from_dlpack(ids.clamp(max=2)).sum()),
        [1, 3, 9],
        [1, 1, 5],
    ),
    "a loop": (lambda x, ids: x + sum(x[i : i + 1] for i in range(int(ids[0]) + 1)), [1, 7, 7], [2, 2, 5]),
    "a slice": (lambda x, ids: x[: int(ids[0])].sum(0, keepdim=True) + x, [1, 7, 7], [2, 2, 5]),
    "what a mask takes": (lambda x, ids: x[ids > 1].sum(0, keepdim=True) + x, [2, 1, 5], [1, 1, 5]),
    "what a mask selects": (
        lambda x, ids: x.masked_select((ids > 1)[:, None]).view(-1, 4).mean(0) + x,
        [2, 1, 5],
        [1, 1, 5],
    ),
    "places": (lambda x, ids: x[(ids > 1).nonzero()[:, 0]].sum(0, keepdim=True) + x, [2, 1, 5], [2, 2, 5]),
    "different ones": (lambda x, ids: x * len(ids.unique()), [9, 4, 3], [5, 5, 1]),
}


def made(code: Callable[[Tensor, Tensor], Tensor]) -> Any:
    return with_forward(NET, lambda self, x, ids: self.net(code(x, ids)))


def by_autograd(model: nn.Module, x: Tensor, ids: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf, ids)[:, 1].sum(), leaf)
    return gradient * x


def inputs(ids: list[int], seed: int) -> dict[str, Tensor]:
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return {"x": x, "ids": torch.tensor(ids)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_recording_serves_what_is_decided_alike(kind: str) -> None:
    code, alike, other = KINDS[kind]
    model = made(code)
    lrp = fxlrp.convert(model, "gradient")
    captures = []
    for seed, ids in enumerate(([1, 2, 5], alike, [1, 2, 5], other, alike)):
        given = inputs(ids, seed)
        found = lrp.attribute(given, target=1).relevance
        assert torch.allclose(found, by_autograd(model, **given), atol=1e-12)
        captures.append(lrp.captures)
    exported = lrp.conversion.captured(given).program.recorded is None
    assert captures == ([1] * 5 if exported else [1, 1, 1, 2, 2])


@pytest.mark.parametrize("kind", ["a list", "an array", "an array by its protocol"])
def test_what_python_reads_past_operators_is_seen(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, alike, other = KINDS[kind]
    model = made(code)
    program = capture(model, inputs([1, 2, 5], 0), record_only=True)
    assert program.accepts(model, inputs(alike, 1))
    assert not program.accepts(model, inputs(other, 1))
    monkeypatch.setattr(decisions, "READERS", ())
    blind = capture(model, inputs([1, 2, 5], 0), record_only=True)
    assert blind.accepts(model, inputs(other, 1))  # the mutant, which only a comparison with the model finds


def test_what_is_not_seen_is_found_by_comparing_with_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "READERS", ())
    code, alike, other = KINDS["an array"]
    model = made(code)
    lrp = fxlrp.convert(model, "gradient")
    for seed, ids in enumerate(([1, 2, 5], other, alike, other)):
        given = inputs(ids, seed)
        assert torch.allclose(lrp.attribute(given, target=1).relevance, by_autograd(model, **given), atol=1e-12)


def test_weights_decide_as_they_are_now() -> None:
    def forward(self: Any, x: Tensor, ids: Tensor) -> Tensor:
        return self.net(x) * (2 if bool(self.net.weight.sum() > 0) else 3)  # type: ignore[no-any-return]

    model = with_forward(nn.Linear(4, 2).double(), forward)
    lrp, given = fxlrp.convert(model, "gradient"), inputs([1, 2, 5], 0)
    for sign in (1.0, -1.0, 1.0):
        with torch.no_grad():
            model.net.weight.copy_(model.net.weight.abs() * sign)
        assert torch.allclose(lrp.attribute(given, target=1).relevance, by_autograd(model, **given), atol=1e-12)
    assert lrp.captures == 2


def test_recordings_are_bounded() -> None:
    lrp = fxlrp.convert(made(KINDS["a number"][0]), "gradient")
    for number in range(1, RECORDINGS + 4):
        lrp.attribute(inputs([0, 0, number], 0), target=1)
    assert lrp.captures == RECORDINGS + 3
    assert [len(known) for known in lrp.conversion.graphs.programs.values()] == [RECORDINGS]


def test_what_decides_is_named_with_its_line() -> None:
    def forward(self: Any, x: Tensor, ids: Tensor) -> Tensor:
        return self.net(x) * float(ids.clamp(max=2).numpy().sum())  # type: ignore[no-any-return]

    lrp = fxlrp.convert(with_forward(NET, forward), "gradient")
    found = lrp.conversion.captured(inputs([1, 2, 5], 0)).program.decisions
    assert found is not None
    assert found.by_integers
    assert any("test_decisions.py:" in line for line in found.said)
