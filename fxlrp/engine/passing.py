"""How the passes of one call run: which random numbers they draw, and whether blocks keep their values or run again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import fx

from fxlrp.errors import InputError
from fxlrp.graph.handles import Elsewhere
from fxlrp.rewrite import Rewritten

Again = Literal["blocks", "auto"]
#: Whether values are kept for the backward pass (None), computed again block by block, or what memory allows.
Checkpoint = Again | None
#: The share of free memory that values may take before ``auto`` computes them again.
SHARE = 0.5


@dataclass(frozen=True)
class Passing:
    """``random_seed``: which draw of a model that draws random numbers; ``checkpoint``: what is kept; ``outputs``:
    whether the caller wants the outputs, or explained rows of them are enough; ``lean``: whether what lies between two
    layers may run again in the backward pass, which then takes one message at a time.
    """

    random_seed: int | None = None
    checkpoint: Checkpoint = None
    outputs: bool = True
    lean: bool = True

    def __post_init__(self) -> None:
        if self.checkpoint is not None and self.checkpoint not in get_args(Again):
            raise InputError(f"checkpoint={self.checkpoint!r} is none of None, 'blocks' and 'auto'.")

    def module(self, rewritten: Rewritten, arguments: Sequence[Any], device: torch.device) -> fx.GraphModule:
        """The form of a rewritten module that runs on these arguments."""
        if not torch.is_grad_enabled():
            return rewritten.on(arguments)
        if any(isinstance(value, Elsewhere) for value in arguments):
            return rewritten.on(arguments, "blocks")
        kept = rewritten.kept(arguments) if self.checkpoint == "auto" else None
        fits = kept is not None and kept.whole <= SHARE * free_memory(device)
        if self.checkpoint is not None and not fits:
            return rewritten.on(arguments, "blocks")
        return rewritten.on(arguments, "stretches" if self.lean else "whole")


def free_memory(device: torch.device) -> float:
    """The bytes that are free on a device; infinity where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) / 2
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return float("inf")
