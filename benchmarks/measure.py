"""How one run is measured: seconds on the wall, and the peak of tensor memory above what lived before the run.

The peak is the running maximum over every allocation and release that torch's CPU allocator reports to its profiler. Unlike the
resident set of the process it holds nothing but tensors (saved activations, gradients, outputs and the scratch space of
operators), does not depend on what earlier runs left in malloc's free lists, and is the same number on every run.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from torch.profiler import ProfilerActivity, profile

Run = Callable[[], object]


class Contender(Protocol):
    """Something that computes relevance and can be measured, here or in a process of its own."""

    name: str

    def seconds(self) -> float:
        """The duration of one run."""
        ...

    def peak(self) -> int:
        """The peak of tensor memory in one run, in bytes."""
        ...


@dataclass(frozen=True)
class Local:
    """A contender that runs in this process."""

    name: str
    run: Run

    def seconds(self) -> float:
        """The duration of one run."""
        return seconds(self.run)

    def peak(self) -> int:
        """The peak of tensor memory in one run, in bytes."""
        return peak(self.run)


def seconds(run: Run) -> float:
    """The duration of ``run`` on the wall, with the garbage of earlier runs collected first."""
    gc.collect()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak(run: Run) -> int:
    """The most bytes that tensors held at once during ``run``, above what they held before it."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


def paired_ratio(baseline: Contender, contender: Contender, rounds: int) -> tuple[float, float]:
    """The median ratio of durations, and the contender's median duration.

    Each ratio is of two runs next to each other, in an order that alternates, so that what else the machine does
    weighs on both alike.
    """
    ratios, durations = [], []
    for turn in range(rounds):
        pair = (baseline, contender) if turn % 2 == 0 else (contender, baseline)
        taken = {id(one): one.seconds() for one in pair}
        ratios.append(taken[id(contender)] / taken[id(baseline)])
        durations.append(taken[id(contender)])
    return median(ratios), median(durations)
