"""What belongs to the whole process and a capture cannot do without: under one lock, put back on every way out.

Messages of the exporters are kept back for the capturing thread alone; random states are as they were; kernels of
attention are chosen for one thread at a time.
"""

from __future__ import annotations

import logging
import pickle
import random
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from fxlrp.capture.torch_private import LOCK

#: Who writes about an export's own doings to the log: that it failed, which the error says, or which versions it likes.
_LOGGERS = (
    "torch.export._trace",
    "torch.export.dynamic_shapes",
    "torch._export.non_strict_utils",
    "torch._export.utils",
    "torch.fx.experimental.symbolic_shapes",
    "torch.fx.experimental.proxy_tensor",
    "torch._subclasses.fake_tensor",
    "transformers.exporters.utils",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps back what the exporters print, log and warn of about themselves in this thread; errors still rise."""
    here = _Here()
    with LOCK, ExitStack() as stack:
        stack.callback(here.leave)
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            logger.addFilter(here.elsewhere)
            stack.callback(logger.removeFilter, here.elsewhere)
        stack.enter_context(_ignored_warnings(here))
        stack.enter_context(_kept_back(here))
        yield


class _Here:
    """The thread that captures, for as long as it does. Other threads meet what is set up for it, without effect."""

    def __init__(self) -> None:
        self.thread: int | None = threading.get_ident()

    def __bool__(self) -> bool:
        return threading.get_ident() == self.thread

    def leave(self) -> None:
        """From now on, nowhere: also where another thread keeps what was set up."""
        self.thread = None

    def match(self, text: str) -> bool:
        """As the pattern of a warning's filter: anything, here."""
        return bool(self)

    def elsewhere(self, record: logging.LogRecord) -> bool:
        """As a logger's filter: what is logged elsewhere passes."""
        return not self


@contextmanager
def _ignored_warnings(here: _Here) -> Iterator[None]:
    """An entry among the filters that holds for one thread; ``warnings.catch_warnings`` would silence all of them."""
    entry: Any = ("ignore", here, Warning, None, 0)
    before: Any = warnings.filters
    before.insert(0, entry)
    try:
        yield
    finally:
        now: Any = warnings.filters
        for each in (before, now):  # others, if the model's own code has entered catch_warnings
            while entry in each:
                each.remove(entry)


class _Stream:
    """A text stream that drops what one thread writes and passes on what the others do."""

    def __init__(self, stream: Any, here: _Here) -> None:
        self._stream = stream
        self._here = here

    def write(self, text: str) -> int:
        """Write, or drop, ``text``."""
        if self._here or self._stream is None:  # a process without a console has no standard error
            return len(text)
        written: int = self._stream.write(text)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _kept_back(here: _Here) -> Iterator[None]:
    """Drops what this thread writes to standard error: torch.export prints the graph at which it gives up."""
    before, stream = sys.stderr, _Stream(sys.stderr, here)
    sys.stderr = stream
    try:
        yield
    finally:
        if sys.stderr is stream:
            sys.stderr = before


@contextmanager
def plainly() -> Iterator[None]:
    """Whatever mode the caller is in: gradients are recorded, tensors are ordinary ones on the CPU unless said else."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def at_rest() -> Iterator[None]:
    """As a graph is made and compared, one thread at a time: plainly, and in the weights' own types."""
    with LOCK, plainly(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


@contextmanager
def unmoved() -> Iterator[None]:
    """The random states of torch, numpy and Python are afterwards what they were."""
    with LOCK:
        torch_states, state, numpy = _torch_states(), random.getstate(), sys.modules.get("numpy")
        numpy_state = None if numpy is None else numpy.random.get_state(legacy=False)
        try:
            yield
        finally:  # what did not move is not written: other threads may be drawing
            for device, now in _torch_states().items():
                then = torch_states.get(device)
                if then is not None and not torch.equal(then, now):
                    _set_torch_state(device, then)
            if random.getstate() != state:
                random.setstate(state)
            if numpy is not None and pickle.dumps(numpy.random.get_state(legacy=False)) != pickle.dumps(numpy_state):
                numpy.random.set_state(numpy_state)


def _torch_states() -> dict[int | None, torch.Tensor]:
    """The state of each of torch's own generators: the CPU's, and those of devices in use."""
    states: dict[int | None, torch.Tensor] = {None: torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states |= dict(enumerate(torch.cuda.get_rng_state_all()))
    return states


def _set_torch_state(device: int | None, state: torch.Tensor) -> None:
    if device is None:
        torch.set_rng_state(state)
    else:
        torch.cuda.set_rng_state(state, device)


@contextmanager
def attention_spelled_out() -> Iterator[None]:
    """Attention by products of matrices and a softmax, not by a fused kernel: torch's choice is the process's own."""
    with LOCK, sdpa_kernel(SDPBackend.MATH):
        yield
