"""Reads what a difference between inputs and a reference does: DeepLIFT's differences, relevance patching."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fxlrp.capture.program import widened
from fxlrp.errors import InputError
from fxlrp.readout.inputs import by_input
from fxlrp.readout.passes import Carried, Task
from fxlrp.readout.readers import Answer, reader
from fxlrp.spec.readings import DifferenceReading


@reader(DifferenceReading)
def by_difference(task: Task, reading: DifferenceReading) -> Answer:
    """(x - x_ref) g(x) at the inputs and taps, or (x_ref - x) g(x); explained is f(x) - f(x_ref), in patching f(x).

    Raises :class:`InputError` where patching has no reference.
    """
    patching = reading.kind == "patching"
    if patching and task.chosen is None:
        raise InputError(
            f"'{task.lrp.ruleset.name}' compares with the values of another run: pass the inputs of that run as "
            "reference= (the clean ones, where the inputs are the corrupt ones)."
        )
    propagated = task.propagate(task.taps)
    there, values, tapped = task.forward(task.reference, task.taps)
    sign = -1.0 if patching else 1.0
    pairs = zip(propagated.attributed, values, strict=True)
    answer = by_input(task, reading, propagated, [sign * changed(carried, value) for carried, value in pairs])
    at = {
        name: sign * changed(carried, value)
        for name, carried, value in zip(task.tapped, propagated.taps, tapped, strict=True)
    }
    if not patching:
        propagated = replace(propagated, explained=propagated.explained - there)
    return replace(answer, propagated=propagated, at=at)


def changed(carried: Carried, reference: Tensor) -> Tensor:
    """(x - x_ref) g, in the shape of x."""
    return (widened(carried.value) - widened(reference)) * carried.gradient
