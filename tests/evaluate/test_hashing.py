"""Fingerprints tell contents apart, and nothing else: the same in every process, whatever the address or the order."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import combinations
from typing import Any

import pytest
import torch

from fxlrp.errors import FxlrpError
from fxlrp.evaluate.hashing import fingerprint


class Colour(Enum):
    RED = 1


@dataclass
class Options:
    keep: Any
    name: str = "a"


class Held:
    def __init__(self, value: Any) -> None:
        self.value = value

    def method(self, x: Any) -> Any:
        return x * self.value


def _multiplied(by: float) -> Callable[[float], float]:
    return lambda x: x * by


SCALE = 2.0


def _scaled(x: float) -> float:
    return x * SCALE


DIFFERENT: dict[str, Any] = {
    "keep=(1, 12)": {"keep": (1, 12)},
    "keep=(11, 2)": {"keep": (11, 2)},
    "keep=(112,)": {"keep": (112,)},
    "keep='(1, 12)'": {"keep": "(1, 12)"},
    "nested": {"keep": ((1,), 12)},
    "nested otherwise": {"keep": ((1, 12),)},
    "two names": {"a": 1, "b": 2},
    "one name": {"a": "1b2"},
    "1": 1,
    "1.0": 1.0,
    "True": True,
    "'1'": "1",
    "0.0": 0.0,
    "-0.0": -0.0,
    "None": None,
    "'None'": "None",
    "empty": (),
    "empty mapping": {},
    "float32": torch.ones(2),
    "float64": torch.ones(2, dtype=torch.float64),
    "a column": torch.ones(2, 1),
    "two tensors": [torch.ones(1), torch.ones(1)],
    "an enum": Colour.RED,
    "options": Options((1, 12)),
    "other options": Options((11, 2)),
    "times 2": _multiplied(2),
    "times 3": _multiplied(3),
    "plus": lambda x: x + 2,
    "minus": lambda x: x - 2,
    "partial": partial(_multiplied, 2),
    "other partial": partial(_multiplied, 3),
    "method": Held(2).method,
    "method of another": Held(3).method,
    "object": Held(2),
    "a built-in": len,
    "another": abs,
    "a type": torch.float32,
    "another type": torch.float64,
}


def test_different_contents_differ() -> None:
    found = {name: fingerprint(value) for name, value in DIFFERENT.items()}
    assert not [pair for pair in combinations(found, 2) if found[pair[0]] == found[pair[1]]]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, 12), [1, 12]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"c", "a", "b"}, {"b", "a", "c"}),
        (_multiplied(2), _multiplied(2)),
        (Held(2).method, Held(2).method),
        (Options((1, 12)), Options([1, 12])),
        (torch.ones(3, 2), torch.ones(2, 3).T),
    ],
)
def test_equal_contents_are_equal(one: Any, other: Any) -> None:
    assert one is not other
    assert fingerprint(one) == fingerprint(other)


def test_a_function_is_hashed_with_the_values_that_it_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(_scaled)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert fingerprint(_scaled) != before


def test_it_is_the_same_in_every_process() -> None:
    code = (
        "from fxlrp.evaluate.hashing import fingerprint as f\n"
        "def g(x, *, k={'b', 'a'}): return [x, lambda: k]\n"
        "print(f([g, {'x', 'y', 'z'}, object(), slice(1, 2), print]))"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert len({run.stdout for run in runs}) == 1


def test_what_holds_itself_ends() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    assert fingerprint(ring) == fingerprint(ring) != fingerprint([1, [1]])


def test_what_cannot_be_told_is_said() -> None:
    with pytest.raises(FxlrpError, match="resume= cannot tell what generator holds"):
        fingerprint({"metric": (i for i in range(3))})
