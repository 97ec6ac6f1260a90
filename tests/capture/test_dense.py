"""Weights packed in a class of their own are explained as the matrices that they stand for."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp

X = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))


class Packed(Tensor):
    """Eight bits a weight and a scale a row, as libraries of quantisation have them. ``rounds``: its inputs, too."""

    whole: Tensor
    scale: Tensor
    rounds: bool

    @staticmethod
    def __new__(cls, weight: Tensor, rounds: bool = False) -> Packed:
        made: Any = Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype)  # type: ignore[attr-defined]
        made.scale = weight.abs().amax(1, keepdim=True) / 127
        made.whole, made.rounds = (weight / made.scale).round().to(torch.int8), rounds
        return made  # type: ignore[no-any-return]

    def __init__(self, weight: Tensor, rounds: bool = False) -> None: ...

    def matrix(self) -> Tensor:
        return self.whole.float() * self.scale

    def dequantize(self) -> Tensor:
        return self.matrix()

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["whole", "scale"], self.rounds

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and isinstance(args[1], Packed):
            x, weight, *bias = args
            step = x.abs().amax(-1, keepdim=True) / 127
            x = (x / step).round() * step if weight.rounds else x
            return F.linear(x, weight.matrix(), *bias, **(kwargs or {}))
        if func is F.embedding and isinstance(args[1], Packed):
            return F.embedding(args[0], args[1].matrix(), *args[2:], **(kwargs or {}))
        if func in (Tensor.detach, Tensor.requires_grad_):
            return args[0]
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "detach" in str(func) or "alias" in str(func):
            return args[0]
        raise NotImplementedError(str(func))


class Nibbles(nn.Parameter):
    """Four bits a weight, two in a byte, which only their layer can compute with."""


class Fours(nn.Module):
    """A linear layer with such weights."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        weight = plain.weight.detach()
        self.in_features, self.scale, self.bias = plain.in_features, weight.abs().max() / 7, plain.bias
        whole = ((weight / self.scale).round() + 8).to(torch.uint8)
        self.weight = Nibbles(whole[:, ::2] * 16 + whole[:, 1::2], requires_grad=False)

    def matrix(self) -> Tensor:
        whole = torch.stack([self.weight // 16, self.weight % 16], -1).flatten(1)
        return (whole.float() - 8) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.matrix(), self.bias)


def fours(packed: bool) -> nn.Sequential:
    """Two layers with weights of four bits, packed or as matrices."""
    torch.manual_seed(1)
    made = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    for index in (0, 2):
        layer = Fours(made[index])
        if packed:
            made[index] = layer
        else:
            made[index].weight = nn.Parameter(layer.matrix())
    return made.eval()


def net(packed: bool, rounds: bool = False) -> nn.Sequential:
    """Two layers with weights of eight bits, packed or as matrices."""
    torch.manual_seed(1)
    made = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    for layer in (made[0], made[2]):
        weight = Packed(layer.weight.detach(), rounds)
        held = nn.Parameter(weight if packed else weight.dequantize(), requires_grad=False)
        layer.weight = held
    return made


@pytest.mark.parametrize("ruleset", ["epsilon", "attnlrp", "epsilon-alpha2-beta1"])
def test_relevance_is_that_of_the_matrices(ruleset: str) -> None:
    model = net(packed=True)
    assert isinstance(model[0].weight, Packed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fxlrp.convert(model, ruleset).attribute(X, target=1, ledger=True)
    expected = fxlrp.convert(net(packed=False), ruleset).attribute(X, target=1)
    torch.testing.assert_close(found.relevance, expected.relevance)
    torch.testing.assert_close(found.outputs, model(X))
    assert found.ledger is not None
    assert float(found.ledger.gap.abs().max()) < 1e-5
    assert isinstance(model[0].weight, Packed)


def test_weights_that_round_their_inputs_are_told() -> None:
    with pytest.warns(UserWarning, match=r"2 packed weights, '0\.weight' \(.*Packed\) among them, round what they are"):
        found = fxlrp.convert(net(packed=True, rounds=True), "epsilon").attribute(X, target=1)
    expected = fxlrp.convert(net(packed=False), "epsilon").attribute(X, target=1)
    torch.testing.assert_close(found.relevance, expected.relevance)


def test_a_class_that_stands_for_no_matrix_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(packed=True)
    monkeypatch.setattr(Packed, "dequantize", lambda self: self.whole.float())  # without its scale
    with pytest.raises(fxlrp.CaptureError, match=r"'0\.weight' is a .*Packed, packed in a way that fxlrp cannot look"):
        fxlrp.convert(model, "epsilon")


def test_a_packed_table_is_looked_up() -> None:
    torch.manual_seed(2)
    table, head = nn.Embedding(10, 16), nn.Linear(16, 2)
    packed = Packed(table.weight.detach())
    ids = torch.tensor([1, 3, 3, 9, 0, 2])
    results = []
    for weight in (packed, packed.dequantize()):
        table.weight = nn.Parameter(weight, requires_grad=False)
        model = nn.Sequential(table, head).eval()
        results.append(fxlrp.convert(model, "gradient").attribute(ids, target=1).relevance)
    assert bool(results[0].all())
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("ruleset", ["epsilon", "epsilon-alpha2-beta1"])
def test_weights_that_only_their_layer_can_read(ruleset: str) -> None:
    model = fours(packed=True)
    called: list[Any] = []
    model[0].register_forward_hook(lambda *given: called.append(given))
    lrp = fxlrp.convert(model, ruleset)
    found = lrp.attribute(X, target=1, ledger=True, at="0")
    expected = fxlrp.convert(fours(packed=False), ruleset).attribute(X, target=1, at="0")
    torch.testing.assert_close(found.relevance, expected.relevance)
    torch.testing.assert_close(found.at["0"], expected.at["0"])
    torch.testing.assert_close(found.outputs, model(X))
    assert type(model[0]) is Fours
    assert isinstance(model[0].weight, Nibbles)
    model[0].bias.data += 1  # followed as any weight is
    torch.testing.assert_close(lrp.attribute(X, target=1).outputs, model(X))


def test_a_layer_that_is_not_affine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fours, "forward", lambda self, x: F.linear(x, self.matrix(), self.bias).square())
    with pytest.raises(fxlrp.CaptureError, match=r"'0\.weight' is a .*Nibbles, packed in a way that fxlrp cannot look"):
        fxlrp.convert(fours(packed=True), "epsilon")
