"""Reads what a difference between inputs and a reference does: DeepLIFT's differences, relevance patching."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxlrp.errors import InputError
from fxlrp.readings import DifferenceReading
from fxlrp.readout.answer import Answer, reader
from fxlrp.readout.inputs import by_input
from fxlrp.readout.task import Carried, Task
from fxlrp.rewrite.call import widened


@reader(DifferenceReading)
def by_difference(task: Task, reading: DifferenceReading) -> Answer:
    """(x - x_ref) g(x) at the inputs and taps, or (x_ref - x) g(x); explained is f(x) - f(x_ref), in patching f(x).

    Raises :class:`InputError` where patching has no reference.
    """
    patching = reading.kind == "patching"
    if patching and task.chosen is None:
        raise InputError(
            f"'{task.lrp.ruleset.name}' asks what the values of another run would do in the place of these: pass "
            "reference=, the inputs of that run (the clean ones, where the inputs are the corrupt ones)."
        )
    propagated = task.propagate(task.taps)
    outputs, values, tapped = task.forward(task.reference, task.taps)
    sign = -1.0 if patching else 1.0
    pairs = zip(propagated.entrances, values, strict=True)
    answer = by_input(task, reading, propagated, [sign * _changed(carried, value) for carried, value in pairs])
    at = {
        name: sign * _changed(carried, value)
        for name, carried, value in zip(task.tapped, propagated.taps, tapped, strict=True)
    }
    if not patching:
        propagated = replace(propagated, explained=propagated.explained - explained_at(task, outputs))
    return replace(answer, propagated=propagated, at=at)


def explained_at(task: Task, outputs: object) -> Tensor:
    """The explained scalars [batch] at other outputs."""
    assert task.explain is not None
    with torch.enable_grad():  # a callable target must give something differentiable
        scalars, _ = task.explain(_attached(outputs), task.lrp.ruleset)
    return sum(scalars, torch.zeros(())).detach()


def _attached(outputs: object) -> object:
    """Outputs whose tensors require gradients."""
    return pytree.tree_map(
        lambda v: v.detach().requires_grad_() if isinstance(v, Tensor) and v.is_floating_point() else v, outputs
    )


def _changed(carried: Carried, reference: Tensor) -> Tensor:
    """(x - x_ref) g."""
    return (widened(carried.value) - widened(reference)) * carried.gradient
