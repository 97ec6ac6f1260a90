"""What a forward pass reads from around it is followed as far as its code names it, and no further."""

from __future__ import annotations

import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxlrp
from fxlrp.capture.reads import Reads
from fxlrp.capture.state import State
from fxlrp.evaluate.hashing import fingerprint

_HEAD = "import os\nimport torch\nimport types\nimport settings\nfrom torch import nn\n"
_NET = (
    "\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.a = nn.Linear(4, 2)\n"
)


def _hook_all(kind: type) -> None:
    nn.modules.module.register_module_forward_hook(lambda m, args, out: out * 3 if isinstance(m, kind) else out)


#: A file's text, what the forward pass makes of x, and what is done to the file, to ``settings`` or to the model.
AROUND: dict[str, tuple[str, str, Callable[[Any, Any, Any], Any]]] = {
    "a number two calls deep": (
        "K = 1.0\ndef g(x): return x * K\ndef f(x): return g(x)",
        "f(x)",
        lambda file, settings, model: setattr(file, "K", 3.0),
    ),
    "a function three calls deep": (
        "def h(x): return x\ndef g(x): return h(x)\ndef f(x): return g(x)",
        "f(x)",
        lambda file, settings, model: setattr(file, "h", torch.square),
    ),
    "a number that a function inside reads": (
        "K = 1.0",
        "(lambda z: z * K)(x)",
        lambda file, settings, model: setattr(file, "K", 3.0),
    ),
    "an entry of a list": ("K = [1.0]", "x * K[0]", lambda file, settings, model: file.K.__setitem__(0, 3.0)),
    "an entry of a dict": ("K = {'s': 1.0}", "x * K['s']", lambda file, settings, model: file.K.update(s=3.0)),
    "an attribute of an object": (
        "K = types.SimpleNamespace(s=1.0)",
        "x * K.s",
        lambda file, settings, model: setattr(file.K, "s", 3.0),
    ),
    "an attribute of a class": (
        "class K: s = 1.0",
        "x * K.s",
        lambda file, settings, model: setattr(file.K, "s", 3.0),
    ),
    "an attribute of the class of an object": (
        "class C: s = 1.0\nK = C()",
        "x * K.s",
        lambda file, settings, model: setattr(file.C, "s", 3.0),
    ),
    "a method of the class of an object": (
        "class C:\n    def go(self, x): return x\nK = C()",
        "K.go(x)",
        lambda file, settings, model: setattr(file.C, "go", lambda self, x: x * x),
    ),
    "an attribute in a slot": (
        "class C:\n    __slots__ = ('s',)\nK = C()\nK.s = 1.0",
        "x * K.s",
        lambda file, settings, model: setattr(file.K, "s", 3.0),
    ),
    "an attribute of an object that has a way of its own to be copied": (
        "class C:\n    s = 0.0\n    def __reduce__(self): return C, ()\nK = C()\nK.s = 1.0",
        "x * K.s",
        lambda file, settings, model: setattr(file.K, "s", 3.0),
    ),
    "an attribute of a function": (
        "def f(x): return x * f.k\nf.k = 1.0",
        "f(x)",
        lambda file, settings, model: setattr(file.f, "k", 3.0),
    ),
    "a default that is given by name": (
        "def f(x, *, k=1.0): return x * k",
        "f(x)",
        lambda file, settings, model: file.f.__kwdefaults__.update(k=3.0),
    ),
    "what an autograd function reads": (
        "K = 1.0\nclass Fn(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x): return x * K\n"
        "    @staticmethod\n    def backward(ctx, g): return g * K",
        "Fn.apply(x)",
        lambda file, settings, model: setattr(file, "K", 3.0),
    ),
    "a number of another file": ("", "x * settings.K", lambda file, settings, model: setattr(settings, "K", 3.0)),
    "a number of a file in a file": (
        "",
        "x * settings.inner.K",
        lambda file, settings, model: setattr(settings.inner, "K", 3.0),
    ),
    "a number of a file that is imported on the way": (
        "def f(x):\n    from settings import K\n    return x * K",
        "f(x)",
        lambda file, settings, model: setattr(settings, "K", 3.0),
    ),
    "a file that is imported on the way": (
        "def f(x):\n    import settings\n    return x * settings.K",
        "f(x)",
        lambda file, settings, model: setattr(settings, "K", 3.0),
    ),
    "a variable of the environment": (
        "",
        "x * float(os.environ.get('FXLRP_TEST_FACTOR', '1'))",
        lambda file, settings, model: os.environ.update(FXLRP_TEST_FACTOR="3"),
    ),
    "the class of a module": (
        "class Other(nn.Linear):\n    def forward(self, x): return super().forward(x) * 3",
        "x",
        lambda file, settings, model: setattr(model.a, "__class__", file.Other),
    ),
    "an attribute of a dict": (
        "class D(dict): pass\nK = D()\nK.s = 1.0",
        "x * K.s",
        lambda file, settings, model: setattr(file.K, "s", 3.0),
    ),
    "the type of a key": (
        "K = {1: 1.0}",
        "x * K.get(1, 3.0)",
        lambda file, settings, model: file.__setattr__("K", {"1": 1.0}),
    ),
    "the default type": (
        "",
        "x * (3 if torch.get_default_dtype() is torch.float64 else 1)",
        lambda file, settings, model: torch.set_default_dtype(torch.float64),
    ),
    "a function of torch": (
        "F = nn.functional",
        "F.relu(x)",
        lambda file, settings, model: setattr(F, "relu", torch.square),
    ),
    "a function that a module of torch calls": (
        "R = nn.ReLU().eval()",
        "R(x)",
        lambda file, settings, model: setattr(F, "relu", lambda x, inplace=False: x * x),
    ),
    "a hook on all modules": ("", "x", lambda file, settings, model: _hook_all(nn.Linear)),
}


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "settings", types.ModuleType("settings"))
    monkeypatch.delenv("FXLRP_TEST_FACTOR", raising=False)
    relu, hooks = F.relu, nn.modules.module._global_forward_hooks
    before = dict(hooks)
    yield
    torch.set_default_dtype(torch.float32)
    F.relu = relu
    hooks.clear()
    hooks.update(before)
    os.environ.pop("FXLRP_TEST_FACTOR", None)


def _written(text: str, made: str) -> tuple[Any, Any, Any]:
    settings: Any = sys.modules["settings"]
    settings.K, settings.inner = 1.0, types.ModuleType("settings.inner")
    settings.inner.K = 1.0
    file: Any = types.ModuleType("file")
    exec(f"{_HEAD}{text}{_NET}    def forward(self, x):\n        return self.a({made}).tanh()", vars(file))
    torch.manual_seed(0)
    return file, settings, file.Net().eval()


@pytest.mark.parametrize("name", AROUND)
def test_what_a_forward_pass_reads_from_around_it_is_followed(name: str) -> None:
    text, made, change = AROUND[name]
    file, settings, model = _written(text, made)
    x = torch.randn(2, 4)
    lrp, key = fxlrp.convert(model, "epsilon"), fingerprint(model)
    before = lrp.attribute(x, target=1)
    change(file, settings, model)
    with pytest.warns(fxlrp.RetraceWarning, match="has changed since it was captured"):
        found = lrp.attribute(x, target=1)
    own = x.clone().requires_grad_()
    expected = model(own)
    (gradient,) = torch.autograd.grad(expected[:, 1].sum(), own)
    assert not torch.allclose(expected, before.outputs, rtol=1e-2)  # the change is one
    assert torch.allclose(found.outputs, expected, rtol=1e-5)
    plain = fxlrp.convert(model, "gradient").attribute(x, target=1)
    assert torch.allclose(plain.relevance, x * gradient, rtol=1e-4, atol=1e-6)
    assert torch.equal(found.relevance, fxlrp.convert(model, "epsilon").attribute(x, target=1).relevance)
    assert lrp.captures == 2
    assert fingerprint(model) != key


def test_what_code_does_not_read_is_not_looked_at() -> None:
    file, settings, model = _written("K = 1.0\nOTHER = [1.0]\ndef a(x): return OTHER", "x * K")
    model.data = 1.0
    lrp, x = fxlrp.convert(model, "epsilon"), torch.randn(2, 4)
    lrp.attribute(x, target=1)
    file.a, file.OTHER, file.x, settings.K = None, [2.0], 5, 7.0  # names of attributes and locals among them
    os.environ["FXLRP_TEST_FACTOR"] = "3"
    with warnings.catch_warnings():
        warnings.simplefilter("error", fxlrp.RetraceWarning)
        lrp.attribute(x, target=1)
    assert lrp.captures == 1


def test_places_are_chains_of_names() -> None:
    def code(x: Any) -> Any:
        return x.shape, torch.nn.functional.relu(x), [len(each) for each in x]

    assert [place.path for place in Reads.of(code.__code__).places] == [
        ("torch", "nn", "functional", "relu"),
        ("len",),
    ]


def test_a_state_stands_after_it_was_looked_at() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 2).eval()
    state = State(model)
    model(torch.randn(2, 3, 8))
    assert state.stands()
    assert state.difference(State(model)) is None


class Asked:
    """Stands in for something that is loaded when it is asked for."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"asked for {name}")


def test_objects_are_looked_at_without_being_asked() -> None:
    model = nn.Linear(4, 2).eval()
    vars(model)["other"] = Asked()
    assert State(model).stands()


class Comparing(nn.Module):
    """Reads of a package that is installed, and none of whose classes it is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if pytest.approx(1.0) == 1.0 else x


def test_what_is_installed_beside_the_model_is_not_walked_through() -> None:
    # Walked through, the test runner alone takes gigabytes and minutes.
    state = State(Comparing())
    assert len(state.told) < 1000
    assert any("pytest" in path for path in state.told)
