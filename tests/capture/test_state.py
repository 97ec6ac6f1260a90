"""A model that changes after its conversion is captured anew, with a word; what graphs follow by themselves is not."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import fxlrp
import fxlrp.engine.graphs
from fxlrp.capture.state import State


class Configured(nn.Module):
    """Reads everything that a module may read beside its weights.  x: [batch, 4]."""

    squared = False

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.scale, self.shift, self.on = 1.0, torch.ones(8), True
        self.config: dict[str, Any] = {"factor": 1.0, "powers": [1, 2]}
        self.register_buffer("gains", torch.ones(8))
        self.added: list[Callable[[Tensor], Tensor]] = []
        self.activation: Callable[[Tensor], Tensor] = F.relu

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 2]."""
        h = self.activation(self.first(x)) * self.scale * self.config["factor"] * self.config["powers"][0]
        h = h * self.shift * self.gains
        for function in self.added:
            h = function(h)
        if self.squared or not self.on:
            h = h.square()
        return self.last(h)


class Own(Configured):
    """A class of its own, whose attributes can be changed."""


def _class_flag(model: nn.Module) -> None:
    type(model).squared = True


def _in_training_of(parametrized: nn.Module) -> None:
    with torch.no_grad():
        parametrized.first.parametrizations.weight.original0.mul_(2)
    parametrize.remove_parametrizations(parametrized.first, "weight")


CHANGES: dict[str, Callable[[Any], Any]] = {
    "submodule of another size": lambda m: setattr(m, "last", nn.Linear(8, 3).eval()),
    "hook": lambda m: m.first.register_forward_hook(lambda module, args, out: out * 2),
    "hook before the model": lambda m: m.register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
    "number": lambda m: setattr(m, "scale", 2.0),
    "sign of a zero": lambda m: setattr(m, "scale", -1.0),
    "flag": lambda m: setattr(m, "on", False),
    "flag of the class": _class_flag,
    "forward of the model": lambda m: setattr(m, "forward", lambda x: m.last(m.first(x))),
    "function": lambda m: setattr(m, "activation", torch.tanh),
    "entry of a dict": lambda m: m.config.update(factor=3.0),
    "entry of a list in a dict": lambda m: m.config["powers"].__setitem__(0, 5),
    "tensor": lambda m: setattr(m, "shift", torch.arange(8.0)),
    "tensor in place": lambda m: m.shift.mul_(torch.arange(8.0)),
    "tensor behind autograd's back": lambda m: m.shift.data.mul_(torch.arange(8.0)),
    "entry that is added to a list": lambda m: m.config["powers"].insert(0, 7),
    "entry that is added at the end": lambda m: m.added.append(lambda h: h.square()),
}

FOLLOWED: dict[str, Callable[[Any], Any]] = {
    "submodule of the same kind": lambda m: setattr(m, "first", nn.Linear(4, 8).eval()),
    "parameter": lambda m: setattr(m.first, "weight", nn.Parameter(torch.randn(8, 4))),
    "parameter in place": lambda m: m.first.weight.data.mul_(3),
    "state dict": lambda m: m.load_state_dict(Configured().state_dict()),
    "state dict, assigned": lambda m: m.load_state_dict(Configured().state_dict(), assign=True),
    "buffer": lambda m: setattr(m, "gains", torch.arange(8.0)),
    "buffer in place": lambda m: m.gains.mul_(torch.arange(8.0)),
    "nothing but another object": lambda m: setattr(m, "config", copy.deepcopy(m.config)),
}


def _changed(change: Callable[[Any], Any], model: nn.Module) -> tuple[fxlrp.ConvertedModel, list[str]]:
    torch.manual_seed(0)
    x = torch.randn(2, 4)
    lrp = fxlrp.convert(model, "epsilon")
    lrp.attribute(x, target=1)
    change(model)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = lrp.attribute(x, target=1)
    fresh = fxlrp.convert(model, "epsilon").attribute(x, target=1)
    assert torch.equal(found.outputs, model(x))
    assert torch.equal(found.relevance, fresh.relevance)
    return lrp, [str(each.message) for each in seen]


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_model_is_captured_anew_with_a_word(name: str) -> None:
    kind = type("Own", (Configured,), {}) if "class" in name else Configured
    lrp, said = _changed(CHANGES[name], kind().eval())
    assert lrp.captures == 2
    assert any("has changed since it was captured" in text for text in said)


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_a_graph_follows_is_not_captured_anew(name: str) -> None:
    lrp, said = _changed(FOLLOWED[name], Configured().eval())
    assert lrp.captures == 1
    assert not said


def test_weights_that_were_one_and_are_no_longer_are_told_apart() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    model[1].weight = model[0].weight
    lrp, _ = _changed(lambda m: setattr(m[1], "weight", nn.Parameter(torch.randn(4, 4))), model)
    assert lrp.captures == 2


def test_a_parametrisation_that_is_removed() -> None:
    model = Configured()
    parametrizations.weight_norm(model.first)
    _changed(_in_training_of, model.eval())


def test_functions_and_numbers_that_a_forward_pass_reads_from_its_file() -> None:
    file = types.ModuleType("file")
    text = "K = 1.0\ndef f(x):\n    return x\nclass Net(nn.Module):\n    forward = lambda s, x: s.a(f(x) * K)"
    exec(f"from torch import nn\n{text}", vars(file))
    for name, value in (("K", 3.0), ("f", lambda x: x * x)):
        model = file.Net()
        model.a = nn.Linear(4, 2)
        lrp, said = _changed(lambda m, name=name, value=value: setattr(file, name, value), model.eval())
        assert lrp.captures == 2
        assert name in said[0]


def test_what_a_hook_closes_over() -> None:
    told = {"factor": 1.0}
    model = Configured().eval()
    model.first.register_forward_hook(lambda module, args, out: out * told["factor"])
    lrp, _ = _changed(lambda m: told.update(factor=4.0), model)
    assert lrp.captures == 2


@pytest.mark.filterwarnings("ignore::fxlrp.RetraceWarning")
def test_states_that_are_switched_to_and_fro_are_captured_once_each() -> None:
    model, x = Configured().eval(), torch.randn(2, 4)
    lrp = fxlrp.convert(model, "epsilon")
    for model.scale in (1.0, 2.0, 1.0, 2.0, 1.0):
        lrp.attribute(x, target=1)
    assert lrp.captures == 2


def test_an_attribute_that_is_not_looked_at_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(State, "stands", lambda self: True)
    monkeypatch.setattr(fxlrp.engine.graphs, "CHECKS", 1)  # comparisons of a new graph would find it, too
    with pytest.raises(AssertionError):
        _changed(CHANGES["number"], Configured().eval())


_DIGEST = """
import torch
from torch import nn
from fxlrp.capture.state import State
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
for _ in range({hooks}):
    model.register_forward_hook(lambda module, args, out: out).remove()
model[0].register_forward_hook(lambda module, args, out: out * {factor})
print(State(model).digest)
"""


_OF_TRANSFORMERS = """
import transformers
from fxlrp.capture.state import State
config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=16)
print(State(transformers.GPT2LMHeadModel(config).eval()).digest)
"""


def test_a_digest_is_that_of_every_process_and_differs_with_the_model() -> None:
    def digest(hooks: int, factor: int) -> str:
        code = _DIGEST.format(hooks=hooks, factor=factor)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert digest(0, 2) == digest(5, 2)
    assert digest(0, 2) != digest(0, 3)


def test_a_digest_of_a_model_of_transformers_is_that_of_every_process() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", _OF_TRANSFORMERS],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
