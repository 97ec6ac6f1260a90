"""Reads means over several inputs: along the straight path from a reference, or with noise around the inputs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fxlrp.capture.program import widened
from fxlrp.readout.inputs import by_input, score
from fxlrp.readout.inputs_at import Point, point_of
from fxlrp.readout.passes import Task
from fxlrp.readout.readers import Answer, reader
from fxlrp.rules.rescale import gauss_legendre
from fxlrp.spec.readings import IntegratedReading, SmoothReading


@reader(IntegratedReading)
def along_path(task: Task, reading: IntegratedReading) -> Answer:
    """(x - x_ref) sum_k w_k g(x_ref + t_k (x - x_ref)); what is explained is f(x) - f(x_ref).

    Other inputs (masks, positions) are those of the inputs all along. Modules have no straight path of their own.
    """
    here = point_of(task.lrp, task.captured, task.given)
    there = here.moved(task.reference.values)
    propagated = task.propagate()
    means = [torch.zeros_like(widened(value)) for value in here.values]
    for place, weight in gauss_legendre(reading.steps):
        values = tuple(b + place * (a - b) for a, b in zip(here.values, there.values, strict=True))
        carried = task.propagate(at=here.moved(values)).attributed
        means = [mean + weight * c.gradient for mean, c in zip(means, carried, strict=True)]
    steps = (widened(a) - widened(b) for a, b in zip(here.values, there.values, strict=True))
    explained, *_ = task.forward(there)
    propagated = replace(propagated, explained=propagated.explained - explained)
    return by_input(task, reading, propagated, [step * mean for step, mean in zip(steps, means, strict=True)])


@reader(SmoothReading)
def under_noise(task: Task, reading: SmoothReading) -> Answer:
    """The mean of R or g over noisy inputs, at the inputs and at taps."""
    here, propagated = point_of(task.lrp, task.captured, task.given), task.propagate()
    generator = torch.Generator().manual_seed(reading.seed)
    totals: list[Tensor] = []
    for _ in range(reading.samples):
        moved = task.propagate(task.taps, at=noisy(here, reading.sigma, generator))
        found = [score(carried, reading.score) for carried in (*moved.attributed, *moved.taps)]
        totals = [a + b for a, b in zip(totals, found, strict=True)] if totals else found
    means = [total / reading.samples for total in totals]
    count = len(propagated.attributed)
    answer = by_input(task, reading, propagated, means[:count])
    return replace(answer, at=dict(zip(task.tapped, means[count:], strict=True)))


def noisy(point: Point, sigma: float, generator: torch.Generator) -> Point:
    """x + sigma (max x - min x) e with standard normal e, the range being each sample's own."""
    values = []
    for x in point.values:
        axes = tuple(range(min(1, x.ndim), x.ndim))
        spread = sigma * (x.amax(axes, keepdim=True) - x.amin(axes, keepdim=True))
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        values.append(x + spread * noise.to(x.device, x.dtype))
    return point.moved(tuple(values))
