"""A model's twin computes what the model computes, shares its parameters, and keeps its own traces."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, defaultdict, deque
from functools import partial
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import fxlrp
from fxlrp.capture.twin import twin


class Note:
    """A plain object."""

    def __init__(self) -> None:
        self.last: Any = None
        self.lock = threading.Lock()


class Keeping(nn.Module):
    """Writes what it computes to everything that it holds.  x: [batch, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.note, self.steps, self.by_name, self.recent = Note(), [], {"a": torch.ones(4)}, deque(maxlen=2)
        self.scale, self.extra = torch.ones(4), [nn.Linear(4, 4)]
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 2]."""
        self.count += 1
        self.calls.add_(1)
        y = self.layer(x) + self.extra[0](x) * self.by_name["a"]
        self.note.last, self.by_name["b"], self.last = y, y, y
        self.steps.append(y)
        self.recent.append(y)
        return self.head(y * self.scale)


def contents(model: Keeping) -> list[Any]:
    return [
        dict(vars(model)),
        dict(model._buffers),
        dict(model._modules),
        dict(vars(model.note)),
        list(model.steps),
        dict(model.by_name),
        list(model.recent),
        float(model.calls),
        model.count,
    ]


def test_the_model_is_left_as_it_was_whatever_it_writes() -> None:
    model, x = Keeping().eval(), torch.randn(2, 4)
    before, weights = contents(model), dict(model.named_parameters())
    result = fxlrp.convert(model, "gradient").attribute(x, target=1)
    assert contents(model) == before
    assert all(p is weights[name] and type(p) is nn.Parameter for name, p in model.named_parameters())
    assert torch.allclose(result.outputs, model(x))


def test_the_traces_are_in_the_twin() -> None:
    model, x = Keeping().eval(), torch.randn(2, 4)
    other = twin(model)
    found = other(x)
    assert not model.steps
    assert model.count == 0
    assert float(model.calls) == 0
    assert [len(other.steps), other.count, float(other.calls)] == [1, 1, 1]
    assert other.note.last is other.last
    assert other.note.lock is model.note.lock
    assert other.extra[0] is not model.extra[0]
    assert torch.equal(found, model(x))
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_what_functions_close_over_is_the_twins() -> None:
    model, seen, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval(), [], torch.randn(2, 4)
    model[0].register_forward_hook(lambda module, args, y: seen.append(y) or model[0].weight.sum() + y)
    model.forward = lambda input: model[1](model[0](input))  # type: ignore[method-assign]
    expected = model(x)
    seen.clear()
    result = fxlrp.convert(model, "gradient").attribute({"input": x}, target=1)
    assert not seen
    assert torch.equal(result.outputs, expected)
    with torch.no_grad():
        model[1].weight.mul_(2)  # followed: it was captured as the model's weight, not as a constant
    again = fxlrp.convert(model, "gradient").attribute({"input": x}, target=1).outputs
    assert torch.equal(again, model(x))


def test_weights_that_a_function_closes_over_stay_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 2)).eval()
    model.forward = lambda input: model[0](input)  # type: ignore[method-assign]
    lrp, x = fxlrp.convert(model, "gradient"), torch.randn(2, 4)
    lrp.attribute({"input": x}, target=1)
    with torch.no_grad():
        model[0].weight.mul_(2)
    assert torch.equal(lrp.attribute({"input": x}, target=1).outputs, model(x))
    assert lrp.captures == 1


def test_kinds_of_attributes() -> None:
    model = nn.Linear(4, 2)
    model.method = MethodType(lambda self, x: self.weight.sum() * x, model)
    model.part = partial(nn.Linear.forward, model, bias=model)
    model.parent = weakref.ref(model)
    model.table = defaultdict(list, {"a": [model]})
    model.order = OrderedDict(first=model)
    model.pair, model.plain = (model, 1), (1, 2)
    other = twin(model)
    assert other.method.__self__ is other.part.args[0] is other.part.keywords["bias"] is other.parent() is other
    assert other.table["a"][0] is other.order["first"] is other.pair[0] is other
    assert type(other.table) is defaultdict
    assert other.table["new"] == []
    assert type(other.order) is OrderedDict
    assert other.plain is model.plain


def test_tied_and_parametrised_weights() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4), nn.LSTM(4, 4)).eval()
    model[1].weight = model[2].weight_ih_l0
    other, x = twin(model), torch.randn(3, 4)
    assert parametrize.is_parametrized(other[0])
    assert torch.equal(other[0](x), model[0](x))
    assert other[1].weight is other[2].weight_ih_l0 is model[1].weight
    assert torch.equal(other[2](x)[0], model[2](x)[0])


@pytest.mark.parametrize("nested", [False, True])
def test_copies_keep_what_is_one(nested: bool) -> None:
    model, shared = nn.Linear(4, 2), [torch.ones(2)]
    model.first, model.second = shared, [shared] if nested else shared
    other = twin(model)
    assert other.first is (other.second[0] if nested else other.second)
    assert other.first is not shared
