"""Outputs by the names that their class gives them, modules called twice, and targets that fail, draw or are none."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from tests.support.calls import LINEAR, X, attributed, of_linear


class Slotted:
    """An output whose attributes lie in slots."""

    __slots__ = ("hidden", "logits")

    def __init__(self, hidden: Tensor, logits: Tensor) -> None:
        self.hidden, self.logits = hidden, logits


Named = namedtuple("Named", ["hidden", "logits"])


@pytest.mark.parametrize("kind", [Slotted, Named])
def test_outputs_by_the_names_that_their_class_gives_them(kind: Any) -> None:
    found = attributed(lambda self, x: kind(x.tanh(), self.net(x)))
    assert type(found.outputs) is kind
    assert torch.allclose(found.outputs.logits, LINEAR(X), atol=1e-6)
    assert torch.allclose(found.relevance, of_linear(), atol=1e-6)


def test_a_bare_tensor_has_no_name() -> None:
    with pytest.raises(fxlrp.TargetError, match="one tensor, which has no name"):
        attributed(lambda self, x: self.net(x), target=("logits", 1))


@pytest.mark.parametrize("last", [True, False], ids=["the output itself", "something behind it"])
def test_a_module_that_is_called_twice_has_two_outputs(last: bool) -> None:
    net = nn.Linear(4, 4)

    def forward(self: Any, x: Tensor) -> Tensor:
        twice: Tensor = self.net(self.net(x).tanh())
        return twice if last else twice * 2

    found = attributed(forward, net=net, at="net")
    logits = net(net(X).tanh()).detach() * (1 if last else 2)
    assert list(found.at) == ["net[0]", "net[1]"]
    assert torch.allclose(found.at["net[1]"], torch.eye(4)[1] * logits, atol=1e-6)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (lambda out: out["x"], "itself fails"),
        (lambda out: out.mul_(2)[:, 1], "writes to nothing"),
    ],
)
def test_a_callable_target_that_fails_is_told(target: Any, said: str) -> None:
    with pytest.raises(fxlrp.TargetError, match=said):
        attributed(lambda self, x: self.net(x), target=target)


def test_a_callable_target_that_draws_is_refused_unless_one_draw_is_asked_for() -> None:
    def target(out: Tensor) -> Tensor:
        return out[:, 1] * torch.rand(2)

    with pytest.raises(fxlrp.InputError, match="draws random numbers"):
        attributed(lambda self, x: self.net(x), target=target)


def test_relevance_that_is_no_tensor_is_told() -> None:
    with pytest.raises(fxlrp.TargetError, match="relevance= is a list"):
        attributed(lambda self, x: self.net(x), target=None, relevance=[[1.0, 1.0], [1.0, 1.0]])
