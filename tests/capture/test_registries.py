"""What an installed package keeps for all models: a registry is looked up, not walked through, and a module is named.

Walked through, a package that keeps its own modules in a dict led to everything that Python had loaded: gigabytes.
"""

from __future__ import annotations

import sys
import sysconfig
import types
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fxlrp
from fxlrp.capture.state import State

PACKAGE = """
import sys
import torch
from torch import nn

class Functions:
    shared = {}
    def __init__(self): self.own = {}
    def get(self, name, default): return self.own.get(name, self.shared.get(name, default))

KINDS = {}
MODULES = {"self": sys.modules, "torch": torch}
FUNCTIONS = Functions()

def plain(x): return x

class Net(nn.Module):
    def __init__(self, kind="relu"):
        super().__init__()
        self.a, self.kind = nn.Linear(4, 2), kind
        KINDS[str(type(self)) + kind] = {"made": [1]}

    def forward(self, x):
        KINDS.get(str(type(self)) + self.kind)
        MODULES.get("torch")
        return FUNCTIONS.get(self.kind, plain)(self.a(x))
"""
X = torch.linspace(-1, 2, 8).reshape(2, 4)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An installed package with registries, as libraries of models keep them."""
    made: Any = types.ModuleType("installed_beside")
    made.__file__ = f"{sysconfig.get_paths()['purelib']}/installed_beside.py"
    monkeypatch.setitem(sys.modules, made.__name__, made)
    exec(PACKAGE, vars(made))
    return made


def test_modules_in_a_registry_are_not_walked_through(package: Any) -> None:
    assert len(State(package.Net()).told) < 500


def test_what_a_registry_holds_for_other_models_changes_nothing(package: Any) -> None:
    model = package.Net().eval()
    lrp = fxlrp.convert(model, "gradient")
    lrp.attribute(X, target=1)
    before = State(model)
    package.Net("tanh")
    package.KINDS["another"] = [model]
    package.KINDS["relu"] = sys.modules["torch"]  # loaded when it was needed, under a key that the model holds
    package.FUNCTIONS.own["another"] = torch.tanh
    assert before.difference(State(model)) is None
    assert before.digest == State(model).digest
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lrp.attribute(X, target=1)


@pytest.mark.parametrize("place", ["own", "shared"])
def test_what_the_model_looks_up_is_followed(package: Any, place: str) -> None:
    """A function that nobody had registered is found under the name that the model holds."""
    model = package.Net().eval()
    lrp = fxlrp.convert(model, "gradient")
    lrp.attribute(X, target=1)
    getattr(package.FUNCTIONS, place)["relu"] = lambda x: x * 3
    with pytest.warns(fxlrp.RetraceWarning):
        found = lrp.attribute(X, target=1).relevance
    expected = fxlrp.convert(model, "gradient").attribute(X, target=1).relevance
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(expected, X * 3 * model.a.weight[1])


def test_a_module_as_an_attribute_is_known_by_its_values() -> None:
    settings: Any = types.ModuleType("settings_beside")
    settings.scale, settings.other = 2.0, sys
    model = nn.Linear(4, 2)
    vars(model)["settings"] = settings
    state = State(model)
    assert len(state.told) < 500
    settings.scale = 3.0
    assert not state.stands()
    assert state.difference(State(model)) == "settings.scale"


def test_fake_tensors_are_known_by_who_they_are() -> None:
    model = nn.Linear(4, 2)
    with FakeTensorMode():
        vars(model)["seen"] = torch.ones(2, 3)
    state = State(model)
    assert state.stands()
    assert state.difference(State(model)) is None
    vars(model)["seen"] = torch.ones(2, 3)
    assert state.difference(State(model)) == "seen"


def test_a_hook_elsewhere_leaves_a_model_that_keeps_a_handle_as_it_is() -> None:
    net, other = nn.Linear(4, 2).eval(), nn.Linear(4, 2)
    net.handle = net.register_forward_hook(lambda module, args, out: out * 2)
    state = State(net)
    other.register_forward_hook(lambda module, args, out: out)  # torch numbers all hooks of a process
    assert state.stands()
    assert state.difference(State(net)) is None
    net.handle.remove()
    assert not state.stands()
    assert state.difference(State(net)) is not None
