"""How one run is measured: its duration, and the peak of tensor memory above what lived before the run.

The peak is the running maximum over every allocation and release that torch's CPU allocator reports to its
profiler. Unlike the resident set of the process it holds nothing but tensors (saved activations, gradients,
outputs and the scratch space of operators), does not depend on what earlier runs left in malloc's free lists,
and is the same number on every run. What a matrix library allocates past torch's allocator is not in it.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from statistics import median
from typing import Any, Protocol

from torch.profiler import ProfilerActivity, profile

Run = Callable[[], object]


class Clock(Enum):
    """What a duration is."""

    WALL = "wall"  #: seconds on the wall
    CPU = "cpu"  #: seconds of processor time of this process, which other work on the machine hardly touches

    def now(self) -> float:
        """The clock's reading, in seconds."""
        return time.perf_counter() if self is Clock.WALL else time.process_time()


class Timed:
    """A function that adds up how long it runs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.seconds = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function gives."""
        start = time.perf_counter()
        try:
            return self.function(*args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - start


class Contender(Protocol):
    """Something that computes relevance and can be measured, here or in a process of its own."""

    @property
    def name(self) -> str:
        """What the table calls it."""
        ...

    def seconds(self, clock: Clock) -> float:
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

    def seconds(self, clock: Clock) -> float:
        """The duration of one run."""
        return seconds(self.run, clock)

    def peak(self) -> int:
        """The peak of tensor memory in one run, in bytes."""
        return peak(self.run)


def seconds(run: Run, clock: Clock) -> float:
    """The duration of ``run``, with the garbage of earlier runs collected first."""
    gc.collect()
    start = clock.now()
    run()
    return clock.now() - start


def peak(run: Run) -> int:
    """The most bytes that tensors held at once during ``run``, above what they held before it."""
    gc.collect()
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = recorded.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps off the terminal what the profiler writes to standard error at every start and stop."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def paired_ratio(baseline: Contender, contender: Contender, rounds: int, clock: Clock) -> tuple[float, float]:
    """The median ratio of durations, and the contender's median duration.

    Each ratio is of two runs next to each other, in an order that alternates, so that what else the machine
    does weighs on both alike.
    """
    ratios, durations = [], []
    for turn in range(rounds):
        pair = (baseline, contender) if turn % 2 == 0 else (contender, baseline)
        taken = {id(one): one.seconds(clock) for one in pair}
        ratios.append(taken[id(contender)] / taken[id(baseline)])
        durations.append(taken[id(contender)])
    return median(ratios), median(durations)
