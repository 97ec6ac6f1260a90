"""How much memory an explanation takes, told before anything is computed at that size.

In: a converted model and inputs, of which the sizes alone are read. Out: :class:`Memory`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxlrp.capture.program import flatten
from fxlrp.engine.conversion import Conversion
from fxlrp.errors import InputError
from fxlrp.readout.rows import scores_apart
from fxlrp.rewrite.memory import sizes_of


@dataclass(frozen=True)
class Memory:
    """Bytes that one explanation holds between its forward and its backward pass.

    Attributes:
        weights: the model's weights; of a model in half precision once more in float32, for the time of the call.
        values: what the backward pass needs of every operation (``checkpoint=None``).
        in_blocks: what enters each block, and all that the largest block needs (``checkpoint="blocks"``).
        scores: scores over a large vocabulary [batch, positions, classes], which ``outputs=False`` does without; 0
            where they are few, and part of the values.

    What single operations need beside, for as long as they run, is not counted: the estimate was within a factor of
    1.5 of what was measured. Rulesets that read several passes hold one at a time.
    """

    weights: int
    values: int
    in_blocks: int
    scores: int

    def __str__(self) -> str:
        lines = {
            "weights": self.weights,
            "values, all kept": self.values,
            "values, checkpoint='blocks'": self.in_blocks,
            "scores, unless outputs=False": self.scores,
        }
        return "\n".join(f"{name:<30}{in_units(size):>10}" for name, size in lines.items() if size)


def in_units(size: int) -> str:
    """A number of bytes as people read it, in powers of 1,024."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} GiB"


def memory_of(lrp: Conversion, inputs: Any) -> Memory:
    """What explaining these inputs takes. The graph captured last serves if it stands for them, so that nothing runs.

    Raises :class:`InputError` where sizes follow from the values of the inputs.
    """
    given, known = lrp.given(inputs), lrp.last
    stands = known is not None and known.program.accepts(lrp.model, given)
    captured = known.folded(lrp.ruleset.fold) if known is not None and stands else lrp.captured(given)
    leaves, explained = flatten(given), [each.name for each in captured.structure.attributed if not each.lookup]
    grad = {name: torch.empty_like(leaves[name]).requires_grad_() for name in explained}  # as an explanation has them
    _, rewritten = lrp.rewritten(captured)
    apart, scores = scores_apart(lrp, captured), 0
    if apart is not None:
        halves, mixed = apart
        rewritten = halves.body
        *_, (rows, *_) = sizes_of(rewritten.module, lrp.arguments(captured.program, rewritten, given, grad))
        scores = rows.shape[:2].numel() * (mixed.classes or 0) * rows.dtype.itemsize
    arguments = lrp.arguments(captured.program, rewritten, given, grad)
    kept = rewritten.kept(arguments)
    if kept is None:
        raise InputError(
            f"The sizes of what {type(lrp.model).__name__} computes follow from the values of its inputs, so that its "
            "memory cannot be told without running it."
        )
    weights = {each.data_ptr(): each for each in (*lrp.model.parameters(), *lrp.model.buffers())}
    floats = [a for a in arguments if isinstance(a, Tensor) and a.is_floating_point()]
    copies = [a for a in floats if a.dtype.itemsize > lrp.dtype.itemsize]
    return Memory(
        weights=sum(each.nbytes for each in weights.values()) + sum(each.nbytes for each in copies),
        values=kept.whole,
        in_blocks=kept.in_blocks,
        scores=scores,
    )
