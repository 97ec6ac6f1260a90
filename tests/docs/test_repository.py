"""The repository's own rules: imports flow one way, public names are documented, no model is named."""

from __future__ import annotations

import inspect

import networkx as nx
import pytest
import repository

import fxlrp

MODULES = repository.sources()
LONGEST = 400


def test_imports_flow_one_way() -> None:
    assert not repository.forward_imports(MODULES)


def test_no_module_needs_itself_to_be_imported() -> None:
    needed = nx.DiGraph(
        (each.importer, each.imported)
        for each in repository.imports(MODULES)
        if not each.late and each.imported in MODULES
    )
    assert not list(nx.simple_cycles(needed))


@pytest.mark.parametrize(
    ("importer", "text", "found"),
    [
        ("fxlrp.rules.bad", "from fxlrp.plan import Plan", True),
        ("fxlrp.plan", "def late():\n    import fxlrp.report", True),
        ("fxlrp.attribution", "from fxlrp.report import show", True),
        ("fxlrp.attribution", "def late():\n    from fxlrp.report import show", False),
        (
            "fxlrp.model",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fxlrp.report import show",
            False,
        ),
        ("fxlrp.ledger", "from fxlrp import rewrite", False),
        ("fxlrp.capture.canonical", "from fxlrp import cli", True),
        ("fxlrp.utils", "", True),
    ],
)
def test_a_wrong_import_is_found(importer: str, text: str, found: bool) -> None:
    wrong = repository.forward_imports({**dict.fromkeys(MODULES, ""), importer: text})
    assert bool(wrong) is found, wrong


def test_every_public_name_is_documented() -> None:
    assert not repository.undocumented(MODULES)


@pytest.mark.parametrize("name", fxlrp.__all__)
def test_everything_exported_says_what_it_is(name: str) -> None:
    assert len(inspect.getdoc(getattr(fxlrp, name)) or "") > 20


def test_a_missing_docstring_is_found() -> None:
    text = '"""M."""\ndef f(): ...\nclass C:\n    """C."""\n    def m(self): ...\n    def _p(self): ...\n'
    assert repository.undocumented({"m": text}) == ["m:2 f has no docstring", "m:5 C.m has no docstring"]


@pytest.mark.parametrize("name", MODULES)
def test_no_file_is_long(name: str) -> None:
    assert MODULES[name].count("\n") <= LONGEST


def test_the_engine_names_no_architecture() -> None:
    engine = repository.engine(MODULES)
    assert "fxlrp.rules.linear" in engine
    assert "fxlrp.checkpoints" not in engine
    assert not repository.architectures_named(engine)


def test_a_named_architecture_is_found() -> None:
    named = 'def of(x):\n    if name(x) == "LlamaRMSNorm":\n        return x.gpt_neox\n    return option\n'
    text = '"""As in Llama."""  # BERT\n' + named
    assert len(repository.architectures_named({"m": text})) == 2
