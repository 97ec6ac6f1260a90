"""Two recordings of other lengths make one that holds for all lengths, as long as it gives what its model gives."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from tests.support.calls import with_forward

pytestmark = pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
NET = nn.Linear(4, 2).double().eval()


def decided(x: Tensor, ids: Tensor) -> Tensor:
    """What no exporter follows, and comes out as it was where the first id is 2."""
    return x * int(ids[0, 0])


def attended(x: Tensor) -> Tensor:
    hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    return (x @ x.mT).masked_fill(hidden, float("-inf")).softmax(-1) @ x


#: Forward passes over x [batch, length, 4] in which a number grows with the length.
GROWING: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda x: x,
    "joined rows": lambda x: (x.reshape(x.shape[0] * x.shape[1], 4) * 2).view(*x.shape),
    "a causal mask": attended,
    "the last place": lambda x: x + x[:, x.shape[1] - 1 : x.shape[1]],
    "all but one": lambda x: x[:, : x.shape[1] - 1] * x[:, 1:],
    "a mean": lambda x: x - x.sum(1, keepdim=True) / x.shape[1],
    "places": lambda x: x + torch.arange(x.shape[1], dtype=x.dtype)[:, None],
    "twice as many": lambda x: torch.cat((x, x), 1).view(x.shape[0], 2 * x.shape[1], 4),
}

#: The same where two lengths, 3 and 4, let a number seem to grow with the length, or where it is no whole one.
OTHERWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "a square": lambda x: x * (x.shape[1] ** 2),
    "padding": lambda x: nn.functional.pad(x, (0, 0, 0, -x.shape[1] % 4)).view(x.shape[0], -1, 2, 4).sum(2),
    "a threshold": lambda x: x * (3 if x.shape[1] > 4 else 2),
    "a part": lambda x: x * (1 / x.shape[1]),
    "a loop": lambda x: torch.stack([x[:, i] * (i + 1) for i in range(x.shape[1])], 1),
    "a table": lambda x: x * torch.tensor([1.0 / (1 + i) for i in range(x.shape[1])], dtype=x.dtype)[:, None],
}


def model_of(code: Callable[[Tensor], Tensor]) -> Any:
    return with_forward(NET, lambda self, x, ids: self.net(code(decided(x, ids)).mean(1)))


def inputs(length: int, batch: int = 2) -> dict[str, Tensor]:
    x = torch.randn(batch, length, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(length))
    return {"x": x, "ids": torch.full((batch, length), 2)}


def captures(code: Callable[[Tensor], Tensor], given: list[dict[str, Tensor]]) -> list[int]:
    """How many captures were made after each of the inputs, whose relevance is x times the gradient."""
    model = model_of(code)
    lrp, made = fxlrp.convert(model, "gradient"), []
    for each in given:
        leaf = each["x"].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(leaf, each["ids"])[:, 1].sum(), leaf)
        result = lrp.attribute(each, target=1, ledger=True)
        torch.testing.assert_close(result.relevance, (gradient * leaf).detach(), rtol=1e-9, atol=1e-12)
        assert result.ledger is not None
        made.append(lrp.captures)
    return made


@pytest.mark.parametrize("kind", GROWING)
def test_two_lengths_serve_all(kind: str) -> None:
    assert captures(GROWING[kind], [inputs(length) for length in (3, 4, 6, 2, 30, 3)]) == [1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("kind", OTHERWISE)
def test_what_grows_otherwise_is_recorded_anew(kind: str) -> None:
    assert captures(OTHERWISE[kind], [inputs(length) for length in (3, 4, 6, 9)])[-1] > 2


def test_two_sizes_of_a_batch_serve_all() -> None:
    assert captures(attended, [inputs(5, batch) for batch in (2, 3, 7, 1)]) == [1, 2, 2, 2]


def test_what_is_decided_otherwise_is_recorded_anew() -> None:
    other = inputs(6)
    other["ids"] = other["ids"] + 1
    assert captures(attended, [inputs(3), inputs(4), inputs(6), other, inputs(7)]) == [1, 2, 2, 3, 3]


def by_runs(self: Any, x: Tensor, ids: Tensor) -> Tensor:
    """Runs of equal ids, as of words and pictures in a prompt: each has a mean of its own; a mask counts what stays."""
    types = ids[0].tolist()
    starts = [0, *(i for i in range(1, len(types)) if types[i] != types[i - 1]), len(types)]
    parts = [x[:, a:b] - x[:, a:b].mean(1, keepdim=True) * types[a] for a, b in itertools.pairwise(starts)]
    kept = torch.cat(parts, 1)[:, : int((ids[0] > 0).sum())]
    result: Tensor = self.net(attended(kept).sum(1))
    return result


def test_a_list_that_is_read_is_longer_by_its_last_entry() -> None:
    """Words behind a picture: as many more as there are, but no second picture and no padding."""
    model = with_forward(NET, by_runs)
    lrp, made = fxlrp.convert(model, "gradient"), []
    for types in ([1, 2, 2, 1], [1, 2, 2, 1, 1], [1, 2, 2, 1, 1, 1, 1], [1, 2, 2, 1, 1, 2, 2], [1, 2, 2, 1, 1, 1, 0]):
        x = inputs(len(types))["x"].requires_grad_()
        ids = torch.tensor([types, types])
        (gradient,) = torch.autograd.grad(model(x, ids)[:, 1].sum(), x)
        found = lrp.attribute({"x": x.detach(), "ids": ids}, target=1).relevance
        torch.testing.assert_close(found, (gradient * x).detach(), rtol=1e-9, atol=1e-12)
        made.append(lrp.captures)
    assert made == [1, 2, 2, 3, 4]


def test_two_lengths_that_differ_apart_are_recorded() -> None:
    """Ids that are longer than x has rows, by other amounts: no one length tells the numbers."""
    given = [inputs(3), inputs(4), inputs(6)]
    for i, each in enumerate(given):
        each["ids"] = torch.full((2, (5, 9, 11)[i]), 2)
    assert captures(attended, given)[-1] == 3


def test_a_callable_target_is_followed_at_every_length() -> None:
    model = model_of(attended)
    lrp = fxlrp.convert(model, "gradient")
    for length in (3, 4, 6, 9):
        each = inputs(length)
        result = lrp.attribute(each, target=lambda y: y[:, 0] - y[:, 1])
        leaf = each["x"].clone().requires_grad_()
        y = model(leaf, each["ids"])
        (gradient,) = torch.autograd.grad((y[:, 0] - y[:, 1]).sum(), leaf)
        torch.testing.assert_close(result.relevance, (gradient * leaf).detach(), rtol=1e-9, atol=1e-12)
    assert lrp.captures == 2


@pytest.mark.parametrize("ruleset", ["attnlrp", "epsilon", "attnlrp-relevance"])
def test_relevance_is_that_of_a_recording_of_its_own(ruleset: str) -> None:
    model = model_of(attended)
    lrp = fxlrp.convert(model, ruleset)
    for length in (3, 4, 7):
        found = lrp.attribute(inputs(length), target=1, checkpoint="blocks" if length == 7 else None).relevance
        alone = fxlrp.convert(model_of(attended), ruleset).attribute(inputs(length), target=1).relevance
        torch.testing.assert_close(found, alone, rtol=1e-9, atol=1e-12)
    assert lrp.captures == 2
