"""A read-out is one class, which says what it can do, and a function that reads it out; nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import pytest
import torch
from torch import nn

import fxlrp
from fxlrp.errors import InputError
from fxlrp.readout import READERS, Answer, reader
from fxlrp.readout.passes import Task
from fxlrp.report.descriptions import describe
from fxlrp.spec.readings import READINGS, Reading


@pytest.fixture
def largest() -> Iterator[None]:
    class LargestReading(Reading):
        """The relevance of each sample's most relevant feature, 0 elsewhere."""

        taps: ClassVar[bool] = False
        accounts: ClassVar[bool] = False
        kind: Literal["largest"] = "largest"
        least: float = 0.0

    @reader(LargestReading)
    def by_largest(task: Task, reading: LargestReading) -> Answer:
        propagated = task.propagate()
        relevance = propagated.attributed[0].relevance
        kept = relevance.where((relevance == relevance.amax(-1, keepdim=True)) & (relevance > reading.least), 0.0)
        return Answer({task.main_input: kept}, {task.main_input: kept}, propagated)

    yield
    READINGS.pop("largest")
    READERS.pop(LargestReading)


@pytest.mark.usefixtures("largest")
def test_a_reading_of_ones_own() -> None:
    model, x = nn.Sequential(nn.Linear(3, 2)).eval(), torch.tensor([[1.0, 2.0, -3.0]])
    whole = fxlrp.convert(model, "gradient-x-input").attribute(x, target=1)
    rules = fxlrp.ruleset({"name": "mine", "extends": "gradient", "readout": {"kind": "largest", "least": -9.0}})
    found = fxlrp.convert(model, rules).attribute(x, target=1)
    assert found.relevance.count_nonzero() == 1
    assert found.relevance.sum() == (x * model[0].weight[1]).max()
    assert whole.relevance.count_nonzero() == 3
    assert "most relevant feature" in dict(describe(rules).settings)["Answer"]


@pytest.mark.usefixtures("largest")
def test_what_it_cannot_do_is_refused() -> None:
    model, x = nn.Sequential(nn.Linear(3, 2)).eval(), torch.ones(1, 3)
    rules = fxlrp.ruleset({"name": "mine", "extends": "gradient", "readout": {"kind": "largest"}})
    with pytest.raises(InputError, match="A ledger accounts for"):
        fxlrp.convert(model, rules).attribute(x, target=1, ledger=True)
    with pytest.raises(InputError, match="reading 'largest' says nothing of modules"):
        fxlrp.convert(model, rules).attribute(x, target=1, at=["0"])
