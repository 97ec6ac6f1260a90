"""Models as they are called: wrapped, by position, by any name, with nested inputs, returning objects of their own."""

from __future__ import annotations

import copy
import dataclasses
import types
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, LlamaModel

import fxlrp
from tests.support.calls import with_forward

torch.manual_seed(0)
NET = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
X = torch.randn(2, 4)
made = partial(with_forward, NET)


def relevance(model: nn.Module, inputs: Any = X) -> Tensor:
    return fxlrp.convert(model, "epsilon").attribute(inputs, target=1).relevance


EXPECTED = relevance(NET)


@dataclasses.dataclass(frozen=True)
class Answer:
    """Logits, something beside them, and more inside."""

    logits: Tensor
    name: str = "answer"
    inner: Any = None


class Easy(dict[str, Any]):
    """A dict whose keys are attributes."""

    __getattr__ = dict.__getitem__


WRAPPED = {
    "compiled": lambda: torch.compile(NET),
    "compiled in place": lambda: _compiled_in_place(),
    "compiled inside": lambda: nn.Sequential(torch.compile(NET[0]), *NET[1:]).eval(),
    "data parallel": lambda: nn.DataParallel(NET),
    "data parallel inside": lambda: nn.Sequential(nn.DataParallel(NET[0]), *NET[1:]).eval(),
    "symbolically traced": lambda: torch.fx.symbolic_trace(NET),
    "exported": lambda: torch.export.export(NET, (X,)).module(),
    "takes *args": lambda: made(lambda self, *args: self.net(args[0])),
    "takes **kwargs": lambda: made(lambda self, **batch: self.net(batch["x"])),
    "hands all on": lambda: made(lambda self, *args, **kwargs: self.net(*args, **kwargs)),
    "by position alone": lambda: made(_by_position),
    "hooked from outside": lambda: _hooked(),
}


def _by_position(self: Any, x: Tensor, /) -> Tensor:
    out: Tensor = self.net(x)
    return out


def _compiled_in_place() -> nn.Module:
    model = copy.deepcopy(NET)
    model.compile()
    return model


def _hooked() -> nn.Module:
    model = made(lambda self, x: self.net(x * 0.5))
    model.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    return model


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_models_give_what_the_model_gives(name: str) -> None:
    inputs: Any = {"x": X} if name == "takes **kwargs" else X
    found = relevance(WRAPPED[name](), inputs)
    torch.testing.assert_close(found, EXPECTED)


OUTPUTS = {
    "dataclass": lambda y: Answer(y),
    "dict with attributes": lambda y: Easy(logits=y),
    "namespace": lambda y: types.SimpleNamespace(logits=y),
    "list": lambda y: [y],
    "nested": lambda y: Answer(y, inner={"more": [Answer(y.detach() * 2)]}),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_of_any_class_come_back_whole(name: str) -> None:
    model = made(lambda self, x: OUTPUTS[name](self.net(x)))
    found = fxlrp.convert(model, "epsilon").attribute(X, target=1)
    torch.testing.assert_close(found.relevance, EXPECTED)
    assert type(found.outputs) is type(model(X))
    if name == "nested":
        assert found.outputs.name == "answer"
        torch.testing.assert_close(found.outputs.inner["more"][0].logits, NET(X) * 2)


def test_nested_inputs_on_first_and_later_calls() -> None:
    model = made(lambda self, x, more: self.net(x + more["a"][0] * 0 + more["b"]))
    lrp = fxlrp.convert(model, "epsilon")
    for batch in (2, 1, 3):
        x, zeros = torch.randn(batch, 4), torch.zeros(batch, 4)
        found = lrp.attribute({"x": x, "more": {"a": (zeros,), "b": zeros}}, target=1)
        assert set(found.inputs) == {"x", "more.a.0", "more.b"}
        torch.testing.assert_close(found.relevance, relevance(NET, x))


def test_several_inputs_as_a_tuple() -> None:
    model = made(lambda self, a, b: self.net(a - b))
    by_place, by_name = relevance(model, (X, 2 * X)), relevance(model, {"b": 2 * X, "a": X})
    assert torch.equal(by_place, by_name)


def test_one_tensor_given_twice_is_two_inputs() -> None:
    model = made(lambda self, a, b: self.net(a - 2 * b))
    lrp, other = fxlrp.convert(model, "epsilon"), torch.randn(2, 4)
    lrp.attribute({"a": X, "b": X}, target=1)
    torch.testing.assert_close(lrp.attribute({"a": X, "b": other}, target=1).outputs, model(X, other))


def test_a_model_of_the_library_inside_a_plain_module() -> None:
    config = LlamaConfig(num_hidden_layers=1, hidden_size=16, intermediate_size=16, num_attention_heads=2, vocab_size=9)
    inner, ids = LlamaModel(config).eval(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    model = made(
        lambda self, ids: self.others[1](self.others[0](ids).last_hidden_state[:, -1]), inner, nn.Linear(16, 2)
    )
    found = fxlrp.convert(model, "attnlrp").attribute(ids, target=1, ledger=True)
    assert found.ledger is not None
    assert float(found.ledger.gap.abs().max()) < 1e-5


def test_a_cache_of_keys_is_refused_and_left_as_it_was() -> None:
    config = LlamaConfig(num_hidden_layers=1, hidden_size=16, intermediate_size=16, num_attention_heads=2, vocab_size=9)
    model, ids = LlamaForCausalLM(config).eval(), torch.tensor([[1, 2, 3]])
    cache = model(ids, past_key_values=DynamicCache(config=config)).past_key_values
    with pytest.raises(fxlrp.InputError, match="Pass all tokens at once"):
        fxlrp.convert(model).attribute({"input_ids": ids[:, -1:], "past_key_values": cache}, target=1)
    assert cache.get_seq_length() == 3


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "TorchScript": (lambda: torch.jit.script(NET), X, "Load the model from its Python class"),
    "traced TorchScript": (lambda: torch.jit.trace(NET, X), X, "Load the model from its Python class"),
    "converted": (lambda: fxlrp.convert(NET, "epsilon"), X, "with_ruleset"),
    "array": (lambda: NET, X.numpy(), "torch.as_tensor"),
    "array by name": (lambda: NET, {"input": np.ones((2, 4))}, "torch.as_tensor"),
    "list": (lambda: NET, [[1.0, 2.0, 3.0, 4.0]], "torch.tensor"),
    "packed sequence": (lambda: NET, pack_padded_sequence(torch.ones(3, 2, 4), torch.tensor([3, 2])), "padded tensor"),
    "object with tensors": (lambda: NET, {"input": types.SimpleNamespace(x=X)}, "Wrap the model"),
    "dict that is one input": (lambda: made(lambda self, d: self.net(d["x"])), {"x": X}, "{'d': {...}}"),
    "tuple that is one input": (lambda: made(lambda self, d: self.net(d[0] + d[1])), (X, X), "{'d': (...)}"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_taken_is_refused_with_a_remedy(name: str) -> None:
    model, inputs, remedy = REFUSED[name]
    with pytest.raises(fxlrp.FxlrpError) as raised:
        fxlrp.convert(model(), "epsilon").attribute(inputs, target=1)
    assert remedy in str(raised.value)


class Plain:
    """An object with a number."""

    def __init__(self, factor: float) -> None:
        self.factor = factor


@pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
def test_an_object_as_input_is_known_by_what_it_holds() -> None:
    model, given = made(lambda self, x, how: self.net(x * how.factor)), Plain(1.0)
    lrp = fxlrp.convert(model, "epsilon")
    torch.testing.assert_close(lrp.attribute({"x": X, "how": given}, target=1).relevance, EXPECTED)
    given.factor = 2.0
    torch.testing.assert_close(lrp.attribute({"x": X, "how": given}, target=1).outputs, NET(2 * X))


def test_numbers_that_python_calls_equal_are_told_apart() -> None:
    def forward(self: Any, x: Tensor, k: Any) -> Tensor:
        out: Tensor = self.net(x) * (2 if k is True else 3 if isinstance(k, float) else 1)
        return out * (-1 if str(k).startswith("-") else 1)

    model = made(forward)
    lrp = fxlrp.convert(model, "epsilon")
    for k in (True, 1, 1.0, 0.0, -0.0):
        torch.testing.assert_close(lrp.attribute({"x": X, "k": k}, target=1).outputs, model(X, k))


def test_at_of_a_module_with_two_outputs_gives_both() -> None:
    pair = made(lambda self, x: (self.others[0](x), self.others[1](x)), nn.Linear(4, 4), nn.Linear(4, 4))
    model = made(lambda self, x: self.others[1](sum(self.others[0](x))), pair, nn.Linear(4, 2, bias=False))
    found = fxlrp.convert(model, "epsilon").attribute(X, target=1, at="others.0")
    assert set(found.at) == {"others.0[0]", "others.0[1]"}
    torch.testing.assert_close(sum(each.sum(-1) for each in found.at.values()), found.explained)


class Packed(nn.Parameter):
    """Integers that stand for numbers in a way of their own."""


def _packed() -> nn.Module:
    model = copy.deepcopy(NET)
    model[0].weight = Packed(torch.ones(8, 4, dtype=torch.int8), requires_grad=False)
    return model


def _offloaded() -> nn.Module:
    model = copy.deepcopy(NET)
    model[2].to("meta")
    return model


UNLOADED: dict[str, tuple[Any, str]] = {
    "packed": (_packed, "dequantised"),
    "offloaded": (_offloaded, "Load the model whole"),
}


@pytest.mark.parametrize("name", UNLOADED)
def test_weights_without_numbers_are_told_with_a_remedy(name: str) -> None:
    model, remedy = UNLOADED[name]
    with pytest.raises(fxlrp.FxlrpError, match=remedy):
        relevance(model())


def test_none_that_is_not_the_default_is_handed_on() -> None:
    def forward(self: Any, x: Tensor, scale: float | None = 2.0, mask: Tensor | None = None) -> Tensor:
        return self.net(x) * (5.0 if scale is None else scale)  # type: ignore[no-any-return]

    model, x = with_forward(nn.Linear(4, 2), forward), torch.randn(2, 4)
    lrp = fxlrp.convert(model, "epsilon")
    for scale in (None, 2.0, None, 3.0):
        found = lrp.attribute({"x": x, "scale": scale, "mask": None}, target=1)
        assert torch.equal(found.outputs, model(x, scale))
        own = x * model.net.weight[1] * (5.0 if scale is None else scale)
        assert torch.allclose(found.relevance, own, rtol=1e-5)
