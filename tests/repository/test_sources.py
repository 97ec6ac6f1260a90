"""The repository's own rules: imports flow one way, public names are documented, no model is named."""

from __future__ import annotations

import inspect

import pytest

import fxlrp
from tests.repository import sources

MODULES = sources.sources()
LONGEST = 400


def test_imports_point_down_the_corridor() -> None:
    assert not sources.upward_imports(MODULES)


def test_no_module_needs_itself() -> None:
    assert not sources.circles(MODULES)


@pytest.mark.parametrize(
    ("importer", "text", "found"),
    [
        ("fxlrp.rules.bad", "from fxlrp.planning.plan import Plan", True),
        ("fxlrp.planning.plan", "def late():\n    import fxlrp.report", True),
        (
            "fxlrp.engine.ledger",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fxlrp.report import show",
            True,
        ),
        ("fxlrp.engine.ledger", "from fxlrp import rewrite", False),
        ("fxlrp.capture.canonical", "from fxlrp.app import cli", True),
        ("fxlrp.utils", "", True),
    ],
)
def test_an_upward_import_is_found(importer: str, text: str, found: bool) -> None:
    wrong = sources.upward_imports({**dict.fromkeys(MODULES, ""), importer: text})
    assert bool(wrong) is found, wrong


@pytest.mark.parametrize(
    "late", ["", "def late():\n    ", "if TYPE_CHECKING:\n    "], ids=["load", "function", "types"]
)
def test_a_circle_is_found(late: str) -> None:
    bare = dict.fromkeys(MODULES, "")
    ring = {
        "fxlrp.graph.nodes": "import fxlrp.graph.live",
        "fxlrp.graph.live": f"{late}from fxlrp.graph import nodes",
    }
    assert sources.circles({**bare, **ring}) == [["fxlrp.graph.live", "fxlrp.graph.nodes"]]


def test_the_house_has_few_rooms() -> None:
    rooms = [path for path in (sources.ROOT / "fxlrp").iterdir() if path.is_dir() or path.suffix == ".py"]
    rooms = [path for path in rooms if path.name != "__pycache__"]
    assert len(rooms) <= 22
    assert {path.name for path in rooms if path.suffix == ".py"} == {"__init__.py", "__main__.py", "errors.py"}


def test_every_public_name_is_documented() -> None:
    assert not sources.undocumented(MODULES)


@pytest.mark.parametrize("name", fxlrp.__all__)
def test_everything_exported_says_what_it_is(name: str) -> None:
    assert len(inspect.getdoc(getattr(fxlrp, name)) or "") > 20


def test_a_missing_docstring_is_found() -> None:
    text = '"""M."""\ndef f(): ...\nclass C:\n    """C."""\n    def m(self): ...\n    def _p(self): ...\n'
    assert sources.undocumented({"m": text}) == ["m:2 f has no docstring", "m:5 C.m has no docstring"]


@pytest.mark.parametrize("name", MODULES)
def test_no_file_is_long(name: str) -> None:
    assert MODULES[name].count("\n") <= LONGEST


def test_the_engine_names_no_architecture() -> None:
    engine = sources.engine(MODULES)
    assert "fxlrp.rules.linear" in engine
    assert "fxlrp.shipped.checkpoints" not in engine
    assert not sources.architectures_named(engine)


def test_a_named_architecture_is_found() -> None:
    named = 'def of(x):\n    if name(x) == "LlamaRMSNorm":\n        return x.gpt_neox\n    return option\n'
    text = '"""As in Llama."""  # BERT\n' + named
    assert len(sources.architectures_named({"m": text})) == 2


def test_operators_are_spelled_in_their_table_alone() -> None:
    assert "fxlrp.graph.operator_table" in MODULES
    assert not sources.operators_spelled(MODULES)


@pytest.mark.parametrize(
    ("module", "text", "found"),
    [
        ("fxlrp.planning.decide", "import torch\nINDEXING = {torch.ops.aten.select}", True),
        ("fxlrp.rules.bad", "def f(x, aten):\n    return aten.relu(x)", True),
        ("fxlrp.rules.bad", 'def f(x):\n    return getattr(x, "aten")', True),
        ("fxlrp.rules.bad", 'def f(x):\n    return str(x).startswith("aten.relu")', True),
        ("fxlrp.rules.bad", "from torch.ops import aten as a", True),
        ("fxlrp.rules.bad", '"""As aten.relu does."""\n# aten\ndef concatenated(latent): return latent', False),
        ("fxlrp.capture.bad", "import torch\naten = torch.ops.aten", False),
        ("fxlrp.graph.operator_table", "import torch\naten = torch.ops.aten", False),
        ("fxlrp.graph.operators", "import torch\naten = torch.ops.aten", True),
    ],
)
def test_an_operator_spelled_elsewhere_is_found(module: str, text: str, found: bool) -> None:
    assert bool(sources.operators_spelled({module: text})) is found


def test_private_apis_have_one_door() -> None:
    assert not sources.private_apis(MODULES)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from torch.utils import _pytree as pytree", True),
        ("import torch._dynamo", True),
        ("import torch\ndef late(n):\n    return isinstance(n, torch._ops.OpOverload)", True),
        ("from torch.fx.experimental.proxy_tensor import make_fx", True),
        ("from transformers.cache_utils import Cache", True),
        ("def of(e):\n    return getattr(e, '_guards_code', None) or ()", True),
        ("from torch.fx.proxy import Proxy\nfrom transformers import PreTrainedModel", False),
        ("import torch\nsoftmax = torch.ops.aten._softmax.default", False),
    ],
)
def test_a_private_api_elsewhere_is_found(text: str, found: bool) -> None:
    assert bool(sources.private_apis({"fxlrp.engine.bad": text})) is found
    assert not sources.private_apis({sources.PRIVATE_ROOM: text})
