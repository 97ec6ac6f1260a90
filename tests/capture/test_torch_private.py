"""Private names of torch and transformers: each is there, and one that is gone is an error that says so."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

import fxlrp
from fxlrp.capture import torch_private as private
from fxlrp.errors import VersionError


def convert(model: nn.Module | None = None) -> None:
    fxlrp.convert((model or nn.Sequential(nn.Linear(4, 2))).eval(), "epsilon").attribute(torch.ones(2, 4), target=1)


class Choosing(nn.Module):
    """Cannot be exported, but recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 2]."""
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The room as it is before anything was asked for."""
    for name in private.PLACES:
        monkeypatch.delitem(vars(private), name, raising=False)


@pytest.mark.parametrize("name", private.PLACES)
def test_each_is_there(name: str) -> None:
    assert getattr(private, name) is not None


def test_the_tested_versions_are_those_of_the_constraints() -> None:
    text = (Path(__file__).parents[2] / "constraints.txt").read_text(encoding="utf-8")
    for package, version in private.TESTED.items():
        assert re.search(rf"^{package}=={re.escape(version)}$", text, re.MULTILINE)


def gone(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    owner: Any = torch
    *way, name = path.split(".")[1:]
    for part in way:
        owner = getattr(owner, part)
    monkeypatch.delattr(owner, name)


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("torch._subclasses.fake_tensor.FakeTensorMode", "FakeTensorMode"),
        ("torch._dispatch.python.enable_python_dispatcher", "enable_python_dispatcher"),
        ("torch.utils._pytree.tree_map", "pytree"),
        ("torch._ops.OpOverload", "OpOverload"),
        ("torch._check", "check"),
    ],
)
def test_one_that_is_gone_is_named_with_the_version(path: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gone(monkeypatch, path)
    with pytest.raises(VersionError, match=re.escape(path)) as raised:
        getattr(private, name)
    assert torch.__version__ in str(raised.value)
    assert f"torch=={private.TESTED['torch']}" in str(raised.value)


@pytest.mark.usefixtures("unloaded")
def test_a_module_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch._functorch.predispatch", None)
    with pytest.raises(VersionError, match=r"torch\._functorch\.predispatch"):
        convert()


def test_guards_that_are_gone_are_no_guards_that_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ExportedProgram.__init__

    def without(self: ExportedProgram, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        del self._guards_code

    monkeypatch.setattr(ExportedProgram, "__init__", without)
    with pytest.raises(VersionError, match="_guards_code"):
        convert()


def test_fake_tensors_without_their_mode_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare(torch.Tensor):
        """A fake tensor that no longer says which mode it belongs to."""

    monkeypatch.setattr(private, "FakeTensor", Bare, raising=False)
    with pytest.raises(VersionError, match=r"FakeTensor\.fake_mode"):
        private.fake_mode_of(torch.ones(2).as_subclass(Bare))
    assert private.fake_mode_of(torch.ones(2)) is None


@pytest.mark.usefixtures("unloaded")
def test_the_recorder_is_no_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = private.Place("torch.fx.experimental.proxy_tensor", "no_proxy_mode")
    monkeypatch.setitem(private.PLACES, "get_proxy_mode", gone)
    with pytest.raises(VersionError, match="no_proxy_mode"):
        convert(Choosing())


def test_transformers_without_its_exporter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertModel(BertConfig(vocab_size=9, **sizes)).eval()
    monkeypatch.setitem(sys.modules, "transformers.exporters.exporter_dynamo", None)
    with pytest.raises(VersionError, match=r"transformers\.exporters\.exporter_dynamo") as raised:
        fxlrp.convert(model, "attnlrp").attribute(torch.ones(1, 3, dtype=torch.int64))
    assert f"transformers=={private.TESTED['transformers']}" in str(raised.value)


def test_any_other_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Absent'"):
        _ = private.Absent
