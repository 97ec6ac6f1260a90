"""What a reader gives, and the table of readers by the reading that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fxlrp.readout.passes import Propagated, Task
from fxlrp.spec.readings import Reading


@dataclass(frozen=True)
class Answer:
    """Relevance by input name, summed and unsummed, and the propagation that it was read from."""

    summed: Mapping[str, Tensor]
    features: Mapping[str, Tensor]
    propagated: Propagated
    at: Mapping[str, Tensor] = field(default_factory=dict)


#: What reads a task out, by the class of the reading.
READERS: dict[type[Reading], Callable[[Task, Any], Answer]] = {}


def reader(kind: type[Reading]) -> Callable[[Callable[[Task, Any], Answer]], Callable[[Task, Any], Answer]]:
    """Register the function that reads out what a reading of this class asks for."""

    def register(function: Callable[[Task, Any], Answer]) -> Callable[[Task, Any], Answer]:
        READERS[kind] = function
        return function

    return register


def read(task: Task, reading: Reading) -> Answer:
    """The answer that ``reading`` asks for."""
    return READERS[type(reading)](task, reading)
