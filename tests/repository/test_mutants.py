"""Mutants patch what is public, so that inner changes of a module do not break them."""

from __future__ import annotations

import pytest

from tests.repository.mutants import patching_sources, private_patches

SOURCES = patching_sources()


@pytest.mark.parametrize("path", SOURCES)
def test_nothing_private_is_patched(path: str) -> None:
    assert not private_patches(SOURCES[path], everywhere=path.startswith("tests/mutants/"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('attribute(matcher, "_same", f)', 1),
        ('monkeypatch.setattr("fxlrp.app.cli._shown", f)', 1),
        ("monkeypatch.setattr(ledger, 'amount', lambda *a: ledger._amount(*a))", 1),
        ('patch.setattr(Selection, "__call__", f)', 0),
        ('Mutant("a", attribute(spread, "mean_of_rows", _own), test)', 0),
        ("ledger._amount(1)", 0),
    ],
)
def test_a_private_name_is_found(text: str, found: int) -> None:
    assert len(private_patches(text, everywhere=False)) == found


def test_in_the_tables_of_mutants_a_private_name_is_found_anywhere() -> None:
    assert private_patches("def mutant(x):\n    return ledger._amount(x)", everywhere=True) == ["2: _amount"]
